"""Data sets of images and PNG masks in files: one reader, and what it needs to know of each."""

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import NamedTuple, TypeAlias

from dclip.data.dataset import settle
from dclip.data.segmentation import IGNORE_INDEX, MaskFolderListing, require_masks

Places: TypeAlias = tuple[tuple[str, ...], tuple[Path, ...], tuple[Path, ...]]
"""Keys, image files and mask files of a split."""


class MaskFolders(NamedTuple):
    """How the masks of a data set are found and read.

    Attributes:
        name: The data set.
        find: Samples of a split, from root and split; a missing folder or list is a ValueError.
        classes: By value of the option ``classes``, the default first, what to call each class, and
            the class position (or `IGNORE_INDEX`) of each value in a file. Where there is one
            value, there is no option.
    """

    name: str
    find: Callable[[Path, str], Places]
    classes: Mapping[str, tuple[tuple[tuple[str, ...], ...], Mapping[int, int]]]

    @property
    def options(self) -> dict[str, tuple[str, ...]]:
        """Values that can be chosen, by the name of the option."""
        return {"classes": tuple(self.classes)} if len(self.classes) > 1 else {}

    def open(self, root: Path, split: str, options: Mapping[str, str]) -> MaskFolderListing:
        """A split of the data set.

        Raises:
            ValueError: If images or masks are missing, or an option is not known.
        """
        return self.read(root, split, settle(self.options, options))

    def read(self, root: Path, split: str, chosen: Mapping[str, str]) -> MaskFolderListing:
        """The same with options that are settled; there may be more of them."""
        keys, images, masks = self.find(root, split)
        require_masks(masks, split)
        phrasings, id_map = self.classes[chosen.get("classes", next(iter(self.classes)))]
        return MaskFolderListing(
            name=self.name,
            split=split,
            phrasings=phrasings,
            keys=keys,
            image_paths=images,
            mask_paths=masks,
            id_map=id_map,
            options=chosen,
        )


def beside(images: tuple[Path, ...], folder: Path) -> Places:
    """Images whose masks are in a folder, under the same names."""
    keys = tuple(path.stem for path in images)
    return keys, images, tuple(folder / f"{one}.png" for one in keys)


def in_order(
    counted: Iterable[int], others: Iterable[int] = (255,), first: int = 0
) -> dict[int, int]:
    """Class position of each value: ``counted`` from ``first`` on, the others `IGNORE_INDEX`.

    Example:
        >>> in_order((7, 8), (0, 255))
        {0: 255, 255: 255, 7: 0, 8: 1}
    """
    positions = {stored: first + column for column, stored in enumerate(counted)}
    return dict.fromkeys(others, IGNORE_INDEX) | positions

"""What a segmentation split is to the rest of the project, and reading masks with care."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple, Protocol, TypeAlias, runtime_checkable

import numpy as np
from jaxtyping import Int8, Int32, UInt8
from PIL import Image

from dclip.data.bounds import MAX_PIXELS
from dclip.data.images import DECODING_ERRORS, ImageError, read_image
from dclip.data.listing import ImageListing, Keyed, Split, check_key, digest

IGNORE_INDEX = 255
"""Value of the pixels of a mask that no measure counts."""

WIDE_IGNORE_INDEX = 65_535
"""The same of a mask of more classes than 8 bits hold."""

Mask: TypeAlias = UInt8[np.ndarray, "height width"] | Int32[np.ndarray, "height width"]
"""The class of every pixel: in 8 bits, or in 32 where there are more than 255 classes."""

BACKGROUND = "background"
"""Name of the class of pixels that belong to no other; where there is one, it is the first."""

_PNG_BIT_DEPTH = 24  # where the header says how many bits a number has


class SegmentationSample(NamedTuple):
    """One image and the class of each of its pixels.

    Attributes:
        image: RGB.
        mask: Position in ``class_names`` of every pixel's class, or the listing's ``ignore_index``.
    """

    image: Image.Image
    mask: Mask


@runtime_checkable
class SegmentationListing(Split, Protocol):
    """One split of one data set with masks.

    Masks are in column order: value ``k`` stands for ``class_names[k]``. Where background is a
    class of its own it is the first, named `BACKGROUND`; where it is none, its pixels are
    `IGNORE_INDEX`.
    """

    @property
    def phrasings(self) -> tuple[tuple[str, ...], ...]:
        """What to call each class in prompts, display name first."""
        ...

    @property
    def ignore_index(self) -> int:
        """Value of the pixels that are not counted: 255, or 65535 where classes are many."""
        ...

    @property
    def image_paths(self) -> tuple[Path, ...]:
        """Image file of each sample; empty where images are drawn."""
        ...

    def read(self, index: int) -> SegmentationSample:
        """Image and mask of sample ``index``; an unreadable one of them is an ``ImageError``."""
        ...

    def read_mask(self, index: int) -> Mask:
        """The mask alone; the image is not looked at."""
        ...


class Phrased(Keyed):
    """A split that holds what to call its classes.

    Attributes:
        phrasings: What to call each class, display name first, in the order of mask values.
    """

    phrasings: tuple[tuple[str, ...], ...]

    @property
    def class_names(self) -> tuple[str, ...]:
        """Display names in the order of mask values."""
        return tuple(names[0] for names in self.phrasings)


@dataclass(frozen=True, eq=False)
class MaskFolderListing(Phrased):
    """Images and PNG masks side by side, whose values a table translates to class positions.

    Attributes:
        name: The data set.
        split: Which part of it.
        phrasings: What to call each class, in the order of the translated values.
        keys: One per sample, unique.
        image_paths: Image file of each sample.
        mask_paths: Mask file of each sample.
        id_map: File value to class position or `IGNORE_INDEX`; a value not in it is an error.
        options: Settings that made the listing, for its identity.

    Raises:
        ValueError: If the listing is empty, or a key is unfit or there twice.
    """

    name: str
    split: str
    phrasings: tuple[tuple[str, ...], ...] = field(repr=False)
    keys: tuple[str, ...] = field(repr=False)
    image_paths: tuple[Path, ...] = field(repr=False)
    mask_paths: tuple[Path, ...] = field(repr=False)
    id_map: Mapping[int, int] = field(repr=False)
    options: Mapping[str, str] = field(default_factory=dict)
    ignore_index: int = IGNORE_INDEX

    def __post_init__(self) -> None:
        if not self.keys:
            raise ValueError(f"split {self.split!r} of {self.name} lists no images")
        seen: set[str] = set()
        for key in self.keys:
            if check_key(key) in seen:
                raise ValueError(f"split {self.split!r} of {self.name} lists {key} twice")
            seen.add(key)

    def read(self, index: int) -> SegmentationSample:
        """The image and its translated mask.

        Raises:
            ImageError: If a file is missing or cannot be decoded, their sizes differ, or the mask
                has a value that is no label of the data set.
        """
        image, mask = read_image(self.image_paths[index]), self.read_mask(index)
        check_sizes(image, mask, self.mask_paths[index])
        return SegmentationSample(image, mask)

    def read_mask(self, index: int) -> UInt8[np.ndarray, "height width"]:
        """The translated mask alone.

        Raises:
            ImageError: If it is missing, cannot be decoded, or has a value that is no label.
        """
        path = self.mask_paths[index]
        return translate(read_indices(path), self.id_map, source=str(path), name=self.name)

    def identity(self) -> dict[str, str | int]:
        """Split, options, and a hash of class names, keys and the table of values."""
        table = sorted(self.id_map.items())
        return {
            "name": self.name,
            "split": self.split,
            **self.options,
            "content": digest([self.class_names, self.keys, table]),
        }


def ignore_index_of(num_classes: int) -> int:
    """Value of the pixels that are not counted in masks of so many classes, background included.

    Raises:
        ValueError: If no mask holds so many.
    """
    if num_classes > WIDE_IGNORE_INDEX:
        raise ValueError(f"a mask holds {WIDE_IGNORE_INDEX} classes, not {num_classes}")
    return IGNORE_INDEX if num_classes <= IGNORE_INDEX else WIDE_IGNORE_INDEX


def label_names(class_names: Sequence[str]) -> tuple[str, ...]:
    """The classes of masks that can be labels of an image: all but background.

    Example:
        >>> label_names(("background", "cat", "dog"))
        ('cat', 'dog')
    """
    return tuple(class_names[int(class_names[0] == BACKGROUND) :])


def mask_labels(mask: Mask, class_names: Sequence[str]) -> Int8[np.ndarray, " classes"]:
    """Label vector of a mask: 1 for a class that has a pixel, be it one, and 0 for the others.

    Args:
        mask: Position in ``class_names`` of every pixel's class, or `IGNORE_INDEX`.
        class_names: In the order of mask values.

    Returns:
        One entry for each of ``label_names(class_names)``: background has none.

    Example:
        >>> mask_labels(np.array([[0, 2], [0, 255]], np.uint8), ("background", "cat", "dog"))
        array([0, 1], dtype=int8)
    """
    has_pixel = np.bincount(mask.ravel(), minlength=256)[: len(class_names)] > 0
    return has_pixel[-len(label_names(class_names)) :].astype(np.int8)


def with_labels(
    listing: SegmentationListing,
    labels: Int8[np.ndarray, "images classes"],
    options: Mapping[str, str],
) -> ImageListing:
    """The images of a listing with label vectors in place of masks.

    Args:
        listing: Images and masks.
        labels: A label vector for each image, of the classes `label_names` has.
        options: Settings that made the listing. Its identity also says that labels are of masks.

    Returns:
        A listing that reads no mask. Its image folder is the one that all images lie below.
    """
    paths = listing.image_paths
    folder = paths[0].parent
    for parent in {path.parent for path in paths}:
        while not parent.is_relative_to(folder):
            folder = folder.parent
    return ImageListing(
        name=listing.name,
        split=listing.split,
        class_names=label_names(listing.class_names),
        image_dir=folder,
        keys=tuple(map(listing.key, range(len(listing)))),
        file_names=tuple(path.relative_to(folder).as_posix() for path in paths),
        labels=labels,
        options={**options, "labels": "of masks"},
    )


def read_indices(path: Path) -> UInt8[np.ndarray, "height width"]:
    """The numbers stored in a mask file, not the colours a palette gives them.

    Args:
        path: PNG with one channel of at most 8 bits, grey or with a palette.

    Raises:
        ImageError: If the file is missing, no PNG, cut short, has more than
            `dclip.data.images.MAX_PIXELS` pixels, or holds colours instead of class numbers.
    """
    try:
        with path.open("rb") as file, Image.open(file, formats=("PNG",)) as image:
            file.seek(_PNG_BIT_DEPTH)
            depth = file.read(1)[0]
            if image.width * image.height > MAX_PIXELS:
                raise ImageError(
                    f"{path} has {image.width} x {image.height} pixels, more than {MAX_PIXELS}"
                )
            if image.mode not in ("L", "P", "1"):
                raise ImageError(
                    f"mask {path} is in mode {image.mode!r}, not one 8-bit channel of class"
                    " numbers; is it the coloured picture of the mask?"
                )
            image.load()
            indices = np.array(image, np.uint8)
            if image.mode == "L":  # Pillow stretches 2 and 4 bits of grey to the full range
                indices //= 255 // (2**depth - 1)
            return indices
    except ImageError:
        raise
    except FileNotFoundError:
        raise ImageError(f"there is no mask {path}") from None
    except DECODING_ERRORS as error:
        reason = str(error) or type(error).__name__
        raise ImageError(f"mask {path} cannot be decoded: {reason}") from error


def translate(
    indices: UInt8[np.ndarray, "height width"],
    id_map: Mapping[int, int],
    *,
    source: str,
    name: str,
) -> UInt8[np.ndarray, "height width"]:
    """File values to class positions, by a table; every value must be in it.

    Args:
        indices: Values as stored.
        id_map: Stored value to class position or `IGNORE_INDEX`.
        source: What is read, for errors.
        name: Data set whose labels are expected, for errors.

    Raises:
        ImageError: If there is a value the table does not have.
    """
    table = np.full(256, IGNORE_INDEX, np.uint8)
    known = np.zeros(256, np.bool_)
    stored = list(id_map)
    table[stored] = list(id_map.values())
    known[stored] = True
    counts = np.bincount(indices.ravel(), minlength=256)
    strange = np.flatnonzero((counts > 0) & ~known)
    if strange.size:
        told = ", ".join(f"{value} ({counts[value]} pixels)" for value in strange[:8])
        more = f" and {strange.size - 8} more" if strange.size > 8 else ""
        raise ImageError(f"mask {source} has values that are no labels of {name}: {told}{more}")
    translated: UInt8[np.ndarray, "height width"] = table[indices]
    return translated


def check_sizes(image: Image.Image, mask: np.ndarray, source: object) -> None:
    """Refuse a mask of another size than its image.

    Raises:
        ImageError: If they differ.
    """
    if image.size != mask.shape[::-1]:
        turned = "; did a camera write a rotation that the mask leaves out?"
        raise ImageError(
            f"mask {source} is {mask.shape[1]} x {mask.shape[0]} pixels, its image"
            f" {image.width} x {image.height}" + (turned if image.size == mask.shape else "")
        )


def require_masks(mask_paths: tuple[Path, ...], split: str) -> None:
    """Refuse a split of which masks are missing.

    Raises:
        ValueError: If a file is not there; the message has the first one and their number, and the
            split it was found in if it was.
    """
    missing = [path for path in mask_paths if not path.is_file()]
    if missing:
        first, other = missing[0], _in_other_split(missing[0], split)
        hint = f"; {first.name} is in {other}, were splits exchanged?" if other else ""
        raise ValueError(
            f"{len(missing)} of {len(mask_paths)} masks of split {split!r} are missing, such as"
            f" {first}{hint}"
        )


def _in_other_split(path: Path, split: str) -> Path | None:
    """The folder of another split that has a file of that name; None without one."""
    for base in path.parents:
        if base.name == split and base.parent.is_dir():
            inside = path.relative_to(base)
            folders = (folder for folder in base.parent.iterdir() if folder.name != split)
            return next((f for f in folders if (f / inside).is_file()), None)
    return None


def list_images(folder: Path, pattern: str) -> tuple[Path, ...]:
    """Files of a folder that match a pattern, ascending by name.

    Raises:
        ValueError: If there is no such folder, or no such file in it.
    """
    if not folder.is_dir():
        raise ValueError(f"there is no folder {folder}")
    found = tuple(sorted(folder.glob(pattern), key=lambda path: path.name))
    if not found:
        raise ValueError(f"there is no image {folder / pattern}")
    return found

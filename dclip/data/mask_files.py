"""Images in a folder with a file for each that says what is in front, as DAPT's masks come."""

from collections.abc import Iterator
from dataclasses import dataclass, fields
from pathlib import Path, PurePosixPath

from PIL import Image

from dclip.data.images import ImageError, read_image
from dclip.data.listing import ImageListing


@dataclass(frozen=True, eq=False)
class MaskedImages(ImageListing):
    """An `ImageListing` whose images have masks (`dclip.data.listing.MaskedListing`).

    Attributes:
        mask_dir: Folder of the masks.
        strip: Folders that the path of an image has in front of that of its mask.
        suffix: What names of masks end in; None for that of the image.
        void: Value that is not in front, beside 0.
    """

    mask_dir: Path = Path()
    strip: int = 0
    suffix: str | None = ".png"
    void: int | None = None

    def mask_file(self, index: int) -> Path:
        """Where the mask of a sample is."""
        return self.mask_dir / _mask_name(self.file_names[index], self.strip, self.suffix)

    def mask(self, index: int) -> Image.Image:
        """Mask of a sample: 255 in front, else 0.

        In front is what is not 0, nor `void`, in the first channel of the file.

        Raises:
            ImageError: The file is missing or cannot be decoded.
        """
        try:
            image = read_image(self.mask_file(index))
        except ImageError as error:
            raise ImageError(f"mask of image {self.keys[index]}: {error}") from error
        table = [0 if value in (0, self.void) else 255 for value in range(256)]
        return image.getchannel(0).point(table)


def with_masks(listing: ImageListing, mask_dir: Path, *, void: int | None = None) -> ImageListing:
    """A listing with the masks of its images, if there are any.

    The mask of ``a/b/1.jpg`` is ``a/b/1.png`` or ``b/1.png`` in the folder of masks, or ends in
    ``.jpg`` itself.

    Args:
        listing: Images.
        mask_dir: Folder of the masks.
        void: Value in them that is not in front, beside 0.

    Returns:
        A `MaskedImages`, whose identity says where masks are; where no image has one, the listing
        as it is, with a note.

    Raises:
        ValueError: There is no such folder, or some of the images have a mask, and others none.
    """
    if not mask_dir.is_dir():
        raise ValueError(f"no folder {mask_dir} of masks")
    own = {field.name: getattr(listing, field.name) for field in fields(ImageListing)}
    for strip, suffix in _ways():
        names = [_mask_name(name, strip, suffix) for name in listing.file_names]
        gone = [name for name in names if not (mask_dir / name).is_file()]
        if len(gone) == len(names):
            continue
        if gone:
            raise ValueError(
                f"split {listing.split!r}: of {len(names):,} images {len(gone):,} have no mask in"
                f" {mask_dir}, such as {gone[0]}"
            )
        said = {"masks": str(mask_dir), **({} if void is None else {"mask_void": str(void)})}
        note = f"masks of what is in front: {mask_dir}, such as {names[0]}"
        own |= {"options": {**listing.options, **said}, "notes": (*listing.notes, note)}
        return MaskedImages(**own, mask_dir=mask_dir, strip=strip, suffix=suffix, void=void)
    own["notes"] = (*listing.notes, f"no masks of split {listing.split!r} in {mask_dir}")
    return ImageListing(**own)


def _ways() -> Iterator[tuple[int, str | None]]:
    """How masks may be called, likeliest first."""
    for strip in (0, 1):
        for suffix in (".png", None):
            yield strip, suffix


def _mask_name(file: str, strip: int, suffix: str | None) -> str:
    path = PurePosixPath(*PurePosixPath(file).parts[strip:] or (file,))
    return str(path if suffix is None else path.with_suffix(suffix))

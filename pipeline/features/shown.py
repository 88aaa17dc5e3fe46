"""Images of features as people see them: which file they are, and how they look."""

from PIL import Image

from dclip.data.images import ImageError
from dclip.data.listing import ImageListing, Listing
from dclip.store.paths import AnyPath
from dclip.words import first_line
from pipeline.features.preflight import image_paths


def path_of_image(listing: Listing, index: int) -> AnyPath | None:
    """The file of an image; None where it has none of its own, as in a tar or where it is drawn."""
    if isinstance(listing, ImageListing):
        return listing.image_dir / listing.file_names[index]
    paths = image_paths(listing)
    return paths[index] if paths else None


def look_at(listing: Listing, index: int) -> Image.Image | str:
    """An image, or why it cannot be shown."""
    try:
        return listing.read(index).image
    except (ImageError, OSError) as error:
        return f"cannot be read: {first_line(error, 200)}"

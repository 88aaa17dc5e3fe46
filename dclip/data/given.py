"""Images as people have them at hand: paths, URLs, bytes, PIL images, arrays, tensors."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from jaxtyping import Int8
from PIL import Image

from dclip.data.bounds import MAX_PIXELS
from dclip.data.images import ImageError, read_image, to_rgb
from dclip.data.listing import Keyed, Sample, digest
from dclip.store.paths import RemotePath, as_path

GivenImage: TypeAlias = Any
"""A path or URL as text, a path, the bytes of a file, a PIL image, an array or a tensor.

Arrays and tensors have the axes height, width, 3 or 3, height, width, or height, width alone for
grey; bytes from 0 to 255, or floats from 0 to 1.
"""


def open_image(given: GivenImage) -> Image.Image:
    """An image as RGB.

    Args:
        given: See `GivenImage`.

    Raises:
        ImageError: It is missing, damaged, too large, or no image at all.
        OSError: A remote store cannot be reached, or refuses.
    """
    if isinstance(given, Image.Image):
        if given.width * given.height > MAX_PIXELS:
            raise ImageError(
                f"an image of {given.width} x {given.height} pixels has more than {MAX_PIXELS}"
            )
        return to_rgb(given, "an image")
    if isinstance(given, bytes | Path | RemotePath):
        return read_image(given)
    if isinstance(given, str):
        try:
            return read_image(as_path(given))
        except ValueError as error:
            raise ImageError(f"image {given!r}: {error}") from None
    if hasattr(given, "detach"):  # a tensor, of whatever device
        given = given.detach().cpu().numpy()
    if isinstance(given, np.ndarray):
        return Image.fromarray(_bytes_of(given))
    raise ImageError(
        f"{type(given).__name__} is no image; give a path, a URL, bytes, a PIL image, an array or a"
        " tensor"
    )


def _bytes_of(array: np.ndarray) -> np.ndarray:
    """Pixels of an array, ``[height, width, 3]`` bytes."""
    shape = list(array.shape)
    if array.ndim == 3 and shape[0] in (1, 3) and shape[2] not in (1, 3):
        array = array.transpose(1, 2, 0)
    if array.ndim == 2:
        array = array[:, :, None]
    if array.ndim != 3 or array.shape[2] not in (1, 3) or 0 in array.shape:
        raise ImageError(
            f"an array of shape {shape} is no image; give height x width x 3, 3 x height x width, "
            "or height x width"
        )
    if array.shape[0] * array.shape[1] > MAX_PIXELS:
        raise ImageError(f"an array of shape {shape} has more than {MAX_PIXELS} pixels")
    if np.issubdtype(array.dtype, np.floating):
        if not (np.isfinite(array).all() and array.min() >= 0 and array.max() <= 1):
            raise ImageError(
                "an array of floats has to lie in [0, 1]; give bytes for values up to 255, and no "
                "normalised pixels"
            )
        array = (array * 255).round()
    elif array.dtype != np.uint8 and (array.min() < 0 or array.max() > 255):
        raise ImageError(f"an array of {array.dtype} has values outside 0..255")
    pixels = np.ascontiguousarray(array.astype(np.uint8))
    return np.repeat(pixels, 3, axis=2) if pixels.shape[2] == 1 else pixels


def name_of(given: GivenImage, number: int) -> str:
    """What an image is called: its path or URL, else its number."""
    return str(given) if isinstance(given, str | Path | RemotePath) else f"image {number}"


@dataclass(frozen=True, eq=False)
class GivenImages(Keyed):
    """Images with label vectors, as they were given.

    Attributes:
        images: See `GivenImage`.
        class_names: In column order.
        labels: 1, 0, or -1 for unknown.
        keys: One per image, unique: a number and a hash of the image.
        name: The data set.
        split: Which part of it.
        notes: How it was read.
    """

    images: tuple[GivenImage, ...] = field(repr=False)
    class_names: tuple[str, ...]
    labels: Int8[np.ndarray, "images classes"] = field(repr=False)
    keys: tuple[str, ...] = field(repr=False)
    name: str = "given"
    split: str = "all"
    notes: tuple[str, ...] = ()

    @classmethod
    def of(
        cls,
        images: Sequence[GivenImage],
        labels: Int8[np.ndarray, "images classes"],
        class_names: Sequence[str],
    ) -> "GivenImages":
        """Images by what is in them, so that the same ones are known again.

        Raises:
            ValueError: Their numbers differ, or there are none.
        """
        if not len(images) or len(images) != len(labels):
            raise ValueError(f"{len(images)} images and {len(labels)} rows of labels")
        keys = [f"{number:07d}-{_hash(image)[:24]}" for number, image in enumerate(images)]
        return cls(tuple(images), tuple(class_names), labels, tuple(keys))

    def read(self, index: int) -> Sample:
        """The image and its label vector.

        Raises:
            ImageError: It is missing or damaged.
            OSError: A remote store cannot be reached, or refuses.
        """
        return Sample(open_image(self.images[index]), self.labels[index])

    def identity(self) -> dict[str, str | int]:
        """A hash of class names, images and labels."""
        content = digest([self.class_names, self.keys], self.labels)
        return {"name": self.name, "split": self.split, "content": content}


def _hash(given: GivenImage) -> str:
    """Tells an image from another; of a file its place, size and time of its last change."""
    if isinstance(given, Image.Image):
        return hashlib.sha256(f"{given.mode} {given.size}".encode() + given.tobytes()).hexdigest()
    if isinstance(given, bytes):
        return hashlib.sha256(given).hexdigest()
    if isinstance(given, str | Path | RemotePath):
        path = as_path(given) if isinstance(given, str) else given
        about = [str(path)]
        if isinstance(path, Path):
            about = [str(path.absolute())]
            if path.exists():
                stat = path.stat()
                about += [str(stat.st_size), str(stat.st_mtime_ns)]
        return hashlib.sha256("\n".join(about).encode()).hexdigest()
    array = given.detach().cpu().numpy() if hasattr(given, "detach") else np.asarray(given)
    content = np.ascontiguousarray(array)
    head = f"{content.dtype} {content.shape}".encode()
    return hashlib.sha256(head + content.tobytes()).hexdigest()

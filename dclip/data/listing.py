"""What a split of a data set is to the rest of the project: class names, and samples by index."""

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Int8, Int64, UInt8
from PIL import Image

from dclip.data.images import ImageError, read_image
from dclip.store.paths import AnyPath

_KEY = re.compile(r"[A-Za-z0-9_-]{1,128}")


class Sample(NamedTuple):
    """One image and what is in it.

    Attributes:
        image: RGB.
        labels: Label vector: 1 for every class that occurs, 0 for one that does not, -1 where the
            annotations leave it open.
    """

    image: Image.Image
    labels: UInt8[np.ndarray, " classes"] | Int8[np.ndarray, " classes"]


@runtime_checkable
class Split(Protocol):
    """One split of one data set, whatever its annotations are.

    An implementation holds plain values and paths, no open files, so that it can be pickled and
    sent to workers; they read the samples they are given the indices of.
    """

    @property
    def name(self) -> str:
        """The data set, such as ``"coco"``."""
        ...

    @property
    def split(self) -> str:
        """Which part of it, such as ``"val2014"``."""
        ...

    @property
    def class_names(self) -> tuple[str, ...]:
        """In the order of the label vector, or of the mask's values."""
        ...

    def __len__(self) -> int: ...

    def key(self, index: int) -> str:
        """A name for sample ``index``, unique in the split: letters, digits, ``_`` and ``-``."""
        ...

    def identity(self) -> dict[str, str | int]:
        """What tells this split from every other, as JSON-able values; pixels are not read."""
        ...


@runtime_checkable
class Listing(Split, Protocol):
    """One split of one data set with a label vector for each image."""

    def read(self, index: int) -> Sample:
        """Image and labels of sample ``index``.

        Raises:
            ImageError: If this image is missing or damaged; others may be well.
            OSError: If the place of all images cannot be reached.
        """
        ...


@runtime_checkable
class CaptionedListing(Protocol):
    """A listing whose images have captions."""

    def captions(self, rows: Int64[np.ndarray, " rows"]) -> Sequence[tuple[str, ...]]:
        """Captions of some samples, in the order given; any number each."""
        ...


@runtime_checkable
class MaskedListing(Protocol):
    """A listing whose images have a mask of what is in front."""

    def mask(self, index: int) -> Image.Image:
        """Mask of sample ``index``, as large as its image; not 0 in front.

        Raises:
            ImageError: If it is missing or damaged.
        """
        ...


class Keyed:
    """A split that holds the keys of its samples.

    Attributes:
        keys: One per sample, unique.
        notes: Sentences on how the split was read: what was passed over (counted, one named), what
            was taken for what. They are shown to the user and kept with results, but are no part
            of the identity.
    """

    keys: tuple[str, ...]
    notes: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.keys)

    def key(self, index: int) -> str:
        """The name of sample ``index``."""
        return self.keys[index]


@dataclass(frozen=True, eq=False)
class ImageListing(Keyed):
    """Images in a folder with a table of label vectors; images are read when asked for.

    Attributes:
        name: The data set.
        split: Which part of it.
        class_names: In column order.
        image_dir: Folder of the images, local or remote.
        keys: One per sample, unique.
        file_names: Relative to ``image_dir``.
        labels: Label vectors of all samples: 1, 0, or -1 for unknown.
        options: Settings that made the listing, for its identity.
        notes: How it was read; see `Keyed`.
    """

    name: str
    split: str
    class_names: tuple[str, ...]
    image_dir: AnyPath
    keys: tuple[str, ...] = field(repr=False)
    file_names: tuple[str, ...] = field(repr=False)
    labels: UInt8[np.ndarray, "images classes"] | Int8[np.ndarray, "images classes"] = field(
        repr=False
    )
    options: Mapping[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    def read(self, index: int) -> Sample:
        """The image and its label vector.

        Raises:
            ImageError: If the file is missing or cannot be decoded.
            OSError: If a remote store cannot be reached, or refuses.
        """
        try:
            image = read_image(self.image_dir / self.file_names[index])
        except ImageError as error:
            raise ImageError(f"image {self.keys[index]}: {error}") from error
        return Sample(image, self.labels[index])

    def identity(self) -> dict[str, str | int]:
        """Split, options, and a hash of class names, keys, file names and labels."""
        listed = [self.class_names, self.keys, self.file_names]
        return {
            "name": self.name,
            "split": self.split,
            **self.options,
            "content": digest(listed, self.labels),
        }

    def images_digest(self, count: int) -> str:
        """A hash of the keys and files of the first images, whatever their labels."""
        return digest([self.keys[:count], self.file_names[:count]])


def check_key(key: str) -> str:
    """The key itself, if it is fit to name a sample in files of any kind.

    Raises:
        ValueError: If it is empty, longer than 128, or has characters other than letters, digits,
            ``_`` and ``-``.
    """
    if not is_key(key):
        raise ValueError(
            f"{key!r} cannot be a sample's key; use 1 to 128 letters, digits, '_' and '-'"
        )
    return key


def is_key(text: str) -> bool:
    """Whether a text is fit to name a sample; see `check_key`."""
    return _KEY.fullmatch(text) is not None


def fit_key(text: str) -> str:
    """The text itself where it is fit as a key, else what is fit of it and a hash of all.

    Raises:
        ValueError: If it is empty.

    Example:
        >>> fit_key("000000000139"), fit_key("train/pic 1.jpg")
        ('000000000139', 'train-pic-1-jpg-a518d02c4125')
    """
    if not text or _KEY.fullmatch(text):
        return check_key(text)
    fit = re.sub(r"[^A-Za-z0-9_-]+", "-", text)[-100:]
    return f"{fit}-{hashlib.sha256(text.encode()).hexdigest()[:12]}"


def digest(values: object, *arrays: np.ndarray) -> str:
    """A hash of JSON-able values and the bytes of arrays, as hexadecimal SHA-256."""
    content = hashlib.sha256(json.dumps(values).encode())
    for array in arrays:
        content.update(np.ascontiguousarray(array).tobytes())
    return content.hexdigest()

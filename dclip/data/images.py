"""Image files to pixels: read with care, since they come from anywhere, and resize plainly."""

import stat
import struct
import threading
import time
from collections.abc import Iterable
from io import BufferedReader, BytesIO
from pathlib import Path, PurePosixPath

import numpy as np
from PIL import Image, UnidentifiedImageError, features

from dclip.data.bounds import MAX_BYTES, MAX_PIXELS
from dclip.store.paths import AnyPath, RemotePath

# Formats photographs come in. Others are left out, as some of them hold programs (EPS).
_HAS_AVIF = "avif" in features.modules and bool(features.check("avif"))
_FORMATS = (
    *("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF", "PPM"),
    *(["AVIF"] if _HAS_AVIF else []),
)

IMAGE_SUFFIXES = (
    *(".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff"),
    *(".ppm", ".pgm", ".pbm", ".pnm"),
    *([".avif"] if _HAS_AVIF else []),
)
"""What names of image files end in, in lower case; ``.avif`` where Pillow was built with it."""

_ORIENTATION_TAG = 0x0112

# The transposition that brings an image with this EXIF orientation upright.
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}

DECODING_ERRORS = (
    OSError,
    SyntaxError,
    ValueError,
    TypeError,
    IndexError,
    KeyError,
    EOFError,
    MemoryError,
    OverflowError,
    struct.error,
    Image.DecompressionBombError,
    Image.DecompressionBombWarning,
)
"""What Pillow's decoders raise on files that are cut short or damaged."""


_clock = threading.local()


class ImageError(ValueError):
    """An image that cannot be read; the message names the source and the reason."""


class ImageTooLargeError(ImageError):
    """An image of more bytes or pixels than are read."""


def read_image(
    source: AnyPath | bytes | BufferedReader | BytesIO, *, max_pixels: int = MAX_PIXELS
) -> Image.Image:
    """An image as upright 8-bit RGB, fully decoded.

    Grey, palette and CMYK images are converted; 16-bit grey keeps its upper 8 bits. Transparency is
    dropped: what counts is the colour stored under it. The orientation a camera wrote into the EXIF
    block is applied; an EXIF block that cannot be read counts as none. Of an animation the first
    frame is taken.

    Args:
        source: A path, local or remote; the bytes of a file; or a file open for reading, which
            stays open.
        max_pixels: An image of more is refused before any of them is decoded.

    Returns:
        An image that depends on no open file.

    Raises:
        ImageTooLargeError: If it has more pixels, or more than `MAX_BYTES` bytes.
        ImageError: If the file is missing, no image, damaged or cut short, or keeps its pixels as
            floats or 32-bit integers.
        OSError: If a remote store cannot be reached, or refuses.
    """
    if isinstance(source, Path | RemotePath):
        started = time.perf_counter()
        try:
            data = _read(source)
        finally:
            _clock.seconds = reading_seconds() + time.perf_counter() - started
        if len(data) > MAX_BYTES:
            raise ImageTooLargeError(f"{source} has more than {MAX_BYTES} bytes")
        return _decode(BytesIO(data), str(source), max_pixels)
    if isinstance(source, bytes):
        return _decode(BytesIO(source), f"an image of {len(source)} bytes", max_pixels)
    return _decode(source, str(getattr(source, "name", "the image")), max_pixels)


def is_image_name(name: str) -> bool:
    """Whether a file is called as an image of a format that `read_image` reads.

    Hidden files are not: macOS leaves a ``._photo.jpg`` beside a ``photo.jpg``, which holds no
    image.

    Example:
        >>> [is_image_name(name) for name in ("a.JPG", "b.jfif", "._a.jpg", "scan.jp2", "readme")]
        [True, True, False, False, False]
    """
    path = PurePosixPath(name)
    return not path.name.startswith(".") and path.suffix.lower() in IMAGE_SUFFIXES


def tell_passed_over(names: Iterable[str]) -> str:
    """Files that are not taken for images, counted by kind, each kind with one of its names.

    Args:
        names: Their names.

    Example:
        >>> tell_passed_over(["b.txt", "scan.jp2", "a.txt", "._a.jpg", "photo"])
        '1 .jp2 (scan.jp2), 2 .txt (a.txt), 1 hidden (._a.jpg), 1 without suffix (photo)'
    """
    kinds: dict[str, list[str]] = {}
    for name in sorted(names):
        path = PurePosixPath(name)
        kind = "hidden" if path.name.startswith(".") else path.suffix.lower() or "without suffix"
        kinds.setdefault(kind, []).append(name)
    return ", ".join(f"{len(found)} {kind} ({found[0]})" for kind, found in sorted(kinds.items()))


def reading_seconds() -> float:
    """Seconds this thread has spent so far on getting the bytes of image files."""
    return getattr(_clock, "seconds", 0.0)


def _read(source: AnyPath) -> bytes:
    """The bytes of a file; of a local one at most one more than are allowed."""
    try:
        if isinstance(source, RemotePath):
            return source.read_bytes()
        about = source.stat()
        if stat.S_ISFIFO(about.st_mode):  # to open it would wait for who writes to it
            raise ImageError(f"{source} is a pipe, not a file")
        with source.open("rb") as file:
            # a buffer of all that is allowed would be set aside for each small file
            return file.read(min(about.st_size, MAX_BYTES) + 1)
    except OSError as error:
        if isinstance(source, RemotePath) and not isinstance(error, FileNotFoundError):
            raise  # the store is out of reach, which says nothing of the image
        raise ImageError(f"cannot open {source}: {error.strerror or error}") from error


def _decode(file: BufferedReader | BytesIO, name: str, max_pixels: int) -> Image.Image:
    """The image in an open file; ``name`` is for errors."""
    try:
        with Image.open(file, formats=_FORMATS) as image:
            if image.width * image.height > max_pixels:
                raise ImageTooLargeError(
                    f"{name} has {image.width} x {image.height} pixels, more than {max_pixels}"
                )
            image.load()
            upright = _UPRIGHT.get(_orientation(image))
            rgb = to_rgb(image, name)
            return rgb if upright is None else rgb.transpose(upright)
    except ImageError:
        raise
    except UnidentifiedImageError as error:
        raise ImageError(f"{name} is no image of a known format ({', '.join(_FORMATS)})") from error
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise ImageTooLargeError(f"{name} has more than {max_pixels} pixels") from error
    except DECODING_ERRORS as error:
        raise ImageError(
            f"{name} cannot be decoded: {str(error) or type(error).__name__}"
        ) from error


def _orientation(image: Image.Image) -> int:
    """The EXIF orientation, 1 (upright) where there is none or it cannot be read."""
    try:
        return int(image.getexif().get(_ORIENTATION_TAG, 1))
    except (OSError, SyntaxError, ValueError, TypeError, KeyError, struct.error):
        return 1


def to_rgb(image: Image.Image, name: str) -> Image.Image:
    """A decoded image in mode RGB; itself where it is.

    Raises:
        ImageError: Its pixels have a range that is not known.
    """
    if image.mode.startswith("I;16") or (image.mode == "I" and image.format == "PNG"):
        upper = (np.asarray(image) >> 8).astype(np.uint8)
        return Image.fromarray(upper).convert("RGB")
    if image.mode in ("I", "F"):
        raise ImageError(
            f"{name} has pixels of mode {image.mode!r}, whose range is not known; save it as 8-bit"
            " RGB"
        )
    if image.mode == "P":
        # by way of RGBA, so that a palette with transparency is read without a warning
        return image.convert("RGBA").convert("RGB")
    return image if image.mode == "RGB" else image.convert("RGB")

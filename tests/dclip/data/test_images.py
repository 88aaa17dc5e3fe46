import io
import os
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageOps, features
from torchvision.transforms import functional as transforms

from dclip.data import images
from dclip.data.images import (
    IMAGE_SUFFIXES,
    MAX_PIXELS,
    ImageError,
    is_image_name,
    read_image,
    tell_passed_over,
)
from dclip.data.pixels import image_to_tensor
from dclip.data.preparation import SQUARE

MEAN, STD = (0.48, 0.45, 0.40), (0.26, 0.27, 0.28)


def picture(width: int = 6, height: int = 4) -> Image.Image:
    pixels = np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8)
    return Image.fromarray(pixels)


def encoded(image: Image.Image, format_: str = "PNG", **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format_, **options)
    return buffer.getvalue()


def png_of(width: int, height: int) -> bytes:
    """A PNG of a few bytes that claims to be of this size."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return (
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        )

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    body = chunk(b"IDAT", zlib.compress(b"\0" * 64)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + body


def pixels(image: Image.Image) -> np.ndarray:
    assert image.mode == "RGB"
    return np.asarray(image)


def test_path_bytes_and_open_file_give_the_same_pixels(tmp_path: Path) -> None:
    image, data = picture(), encoded(picture())
    path = tmp_path / "image.png"
    path.write_bytes(data)
    with path.open("rb") as file:
        sources = [read_image(path), read_image(data), read_image(file)]
        assert not file.closed
    for found in sources:
        assert np.array_equal(pixels(found), np.asarray(image))


@pytest.mark.parametrize("format_", ["PNG", "BMP", "GIF", "TIFF", "WEBP", "PPM", "JPEG"])
def test_common_formats_are_read(format_: str) -> None:
    flat = Image.new("RGB", (8, 8), (200, 100, 40))
    found = pixels(read_image(encoded(flat, format_))).astype(int)
    assert np.abs(found - np.asarray(flat).astype(int)).max() <= 4  # JPEG and WebP round


@pytest.mark.parametrize("suffix", IMAGE_SUFFIXES)
def test_a_file_of_every_suffix_of_the_list_is_read(suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"image{suffix}"
    mode = {".pgm": "L", ".pbm": "1"}.get(suffix, "RGB")
    picture(8, 8).convert(mode).save(path, Image.registered_extensions()[suffix])
    assert is_image_name(path.name.upper())
    assert read_image(path).size == (8, 8)


def test_avif_is_on_the_list_where_pillow_reads_it() -> None:
    reads = "avif" in features.modules and features.check("avif")
    assert (".avif" in IMAGE_SUFFIXES) == ("AVIF" in images._FORMATS) == bool(reads)


def test_a_decoder_that_runs_out_of_memory_names_the_image(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_memory(*_: object) -> None:
        raise MemoryError

    monkeypatch.setattr(images, "to_rgb", no_memory)
    with pytest.raises(ImageError, match="cannot be decoded: MemoryError"):
        read_image(encoded(picture()))


def test_what_is_passed_over_is_counted_by_kind_and_one_of_each_is_named() -> None:
    names = ["scan.jp2", "._a.jpg", "b.JP2", ".DS_Store", "photo"]
    assert [name for name in names if is_image_name(name)] == []
    assert tell_passed_over(names) == (
        "2 .jp2 (b.JP2), 2 hidden (.DS_Store), 1 without suffix (photo)"
    )
    assert tell_passed_over([]) == ""


@pytest.mark.parametrize("format_", ["GIF", "TIFF", "WEBP", "PNG"])
def test_the_first_frame_stays_usable_when_its_file_is_closed(format_: str, tmp_path: Path) -> None:
    first, second = Image.new("RGB", (8, 8), "red"), Image.new("RGB", (8, 8), "blue")
    path = tmp_path / "frames"
    path.write_bytes(encoded(first, format_, save_all=True, append_images=[second], lossless=True))
    with path.open("rb") as file:
        found = read_image(file)
    path.unlink()
    for image in (found, found.crop((0, 0, 8, 8)), SQUARE(found, 8)):
        assert np.array_equal(pixels(image), np.asarray(first))


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGBA", "CMYK", "YCbCr"])
def test_every_8_bit_mode_becomes_rgb(mode: str) -> None:
    source = picture().convert(mode)
    format_ = {"CMYK": "TIFF", "YCbCr": "TIFF"}.get(mode, "PNG")
    found = pixels(read_image(encoded(source, format_)))
    assert np.array_equal(found, np.asarray(source.convert("RGB")))


def test_grey_of_16_bits_keeps_the_upper_8() -> None:
    values = np.array([[0, 255, 256, 32767, 65535]], np.uint16)
    found = pixels(read_image(encoded(Image.fromarray(values))))
    assert found[0, :, 0].tolist() == [0, 0, 1, 127, 255]
    assert (found == found[:, :, :1]).all()


def test_pixels_of_unknown_range_are_refused() -> None:
    image = Image.fromarray(np.ones((2, 2), np.float32))
    with pytest.raises(ImageError, match="mode 'F', whose range is not known"):
        read_image(encoded(image, "TIFF"))


def test_transparency_is_dropped_and_the_colour_under_it_kept() -> None:
    clear = Image.new("RGBA", (2, 2), (10, 20, 30, 0))
    assert pixels(read_image(encoded(clear)))[0, 0].tolist() == [10, 20, 30]
    palette = clear.convert("RGB").convert("P")
    found = pixels(read_image(encoded(palette, transparency=b"\0" * 256)))
    assert np.array_equal(found, np.asarray(palette.convert("RGB")))


@pytest.mark.parametrize("orientation", range(9))
@pytest.mark.parametrize("format_", ["JPEG", "PNG", "TIFF"])
def test_the_cameras_orientation_is_applied(format_: str, orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encoded(picture(16, 8), format_, exif=exif)
    with Image.open(io.BytesIO(data)) as image:
        expected = np.asarray(ImageOps.exif_transpose(image).convert("RGB"))
    assert np.array_equal(pixels(read_image(data)), expected)


def test_an_exif_block_that_cannot_be_read_counts_as_none() -> None:
    data = encoded(picture(16, 8), "JPEG", exif=b"Exif\0\0not a tiff header")
    assert read_image(data).size == (16, 8)


def test_of_an_animation_the_first_frame_is_taken() -> None:
    frames = [Image.new("RGB", (4, 4), colour) for colour in ("red", "blue")]
    data = encoded(frames[0], "GIF", save_all=True, append_images=frames[1:])
    assert pixels(read_image(data))[0, 0].tolist() == [255, 0, 0]


@pytest.mark.parametrize(("width", "height"), [(1, 1), (1, 300), (300, 1)])
def test_images_one_pixel_high_or_wide_are_fine(width: int, height: int) -> None:
    image = read_image(encoded(picture(width, height)))
    assert image.size == (width, height)
    assert image_to_tensor(image, 8, MEAN, STD).shape == (3, 8, 8)


@pytest.mark.parametrize(
    ("width", "height"), [(8000, 8001), (10_000, 10_000), (60_000, 60_000)], ids=str
)
@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_a_bomb_is_refused_before_it_is_unpacked(width: int, height: int) -> None:
    with pytest.raises(ImageError, match=rf"{MAX_PIXELS}|decompression bomb"):
        read_image(png_of(width, height))


@pytest.mark.parametrize("format_", ["JPEG", "PNG", "GIF", "TIFF", "WEBP", "BMP"])
def test_a_file_cut_short_is_refused(format_: str, tmp_path: Path) -> None:
    data = encoded(picture(64, 64), format_)
    path = tmp_path / "cut.img"
    path.write_bytes(data[: len(data) * 2 // 3])
    with pytest.raises(ImageError, match=r"cut\.img"):
        read_image(path)


@given(data=st.binary(max_size=60), where=st.integers(0, 10_000))
def test_damage_gives_an_image_or_an_image_error(data: bytes, where: int) -> None:
    whole = encoded(picture(16, 16), "JPEG")
    at = where % len(whole)
    try:
        image = read_image(whole[:at] + data + whole[at + len(data) :])
    except ImageError:
        return
    assert image.mode == "RGB"


@pytest.mark.parametrize(
    "data", [b"", b"hello", b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n"]
)
def test_what_is_no_photograph_is_refused(data: bytes) -> None:
    with pytest.raises(ImageError, match="no image of a known format"):
        read_image(data)


def test_a_missing_file_and_a_folder_are_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(ImageError, match=r"cannot open .*none\.png: No such file"):
        read_image(tmp_path / "none.png")
    os.mkfifo(tmp_path / "pipe.jpg")
    with pytest.raises(ImageError, match="is a pipe"):
        read_image(tmp_path / "pipe.jpg")
    with pytest.raises(ImageError, match="directory"):
        read_image(tmp_path)


@pytest.mark.parametrize(("width", "height"), [(37, 61), (8, 8), (200, 3)])
def test_the_tensor_is_torchvisions_resized_and_normalised(width: int, height: int) -> None:
    image = picture(width, height)
    resized = transforms.resize(image, [16, 16])
    expected = transforms.normalize(transforms.to_tensor(resized), MEAN, STD)
    torch.testing.assert_close(image_to_tensor(image, 16, MEAN, STD), expected)


def test_a_grey_square_by_hand() -> None:
    # 51 / 255 = 0.2; (0.2 - 0.1) / 0.5 = 0.2, and so on
    tensor = image_to_tensor(
        Image.new("RGB", (5, 7), (51, 51, 51)), 2, (0.1, 0.2, 0.3), (0.5, 1, 1)
    )
    assert tensor.dtype == torch.float32
    torch.testing.assert_close(tensor[:, 0, 0], torch.tensor([0.2, 0.0, -0.1]))


def test_only_rgb_is_made_a_tensor() -> None:
    with pytest.raises(ValueError, match="mode 'L'; convert it"):
        image_to_tensor(Image.new("L", (4, 4)), 4, MEAN, STD)

"""Tiny data sets in every official format, drawn from the world of shapes.

``TREES[name](root, split, count)`` lays ``count`` scenes out as the data set of that name does.
Shape class k plays the part of the data set's class k (of the background-free list), so that the
labels and masks expected of an adapter are those of the scene.
"""

import json
import struct
from collections.abc import Callable, Sequence
from io import BytesIO
from pathlib import Path
from xml.sax.saxutils import escape
from zlib import compress, crc32

import numpy as np
from PIL import Image
from pycocotools import mask as run_lengths

from dclip.world import shapes

SIDE = 64  # pixels of an image

VOC_NAMES = [
    "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow",
    "diningtable", "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train",
    "tvmonitor",
]  # fmt: skip

_COCO_NAMES = [
    "person", "bicycle", "car", "motorcycle", "airplane", "bus", "train", "truck", "boat",
    "traffic light", "fire hydrant", "stop sign", "parking meter", "bench", "bird", "cat", "dog",
    "horse", "sheep", "cow", "elephant", "bear", "zebra", "giraffe", "backpack", "umbrella",
    "handbag", "tie", "suitcase", "frisbee", "skis", "snowboard", "sports ball", "kite",
    "baseball bat", "baseball glove", "skateboard", "surfboard", "tennis racket", "bottle",
    "wine glass", "cup", "fork", "knife", "spoon", "bowl", "banana", "apple", "sandwich",
    "orange", "broccoli", "carrot", "hot dog", "pizza", "donut", "cake", "chair", "couch",
    "potted plant", "bed", "dining table", "toilet", "tv", "laptop", "mouse", "remote",
    "keyboard", "cell phone", "microwave", "oven", "toaster", "sink", "refrigerator", "book",
    "clock", "vase", "scissors", "teddy bear", "hair drier", "toothbrush",
]  # fmt: skip

# Ids and names of COCO's categories, as its annotation files have them.
_UNUSED = (12, 26, 29, 30, 45, 66, 68, 69, 71, 83)
COCO_CATEGORIES = dict(zip([n for n in range(1, 91) if n not in _UNUSED], _COCO_NAMES, strict=True))

# Label ids of Cityscapes' first sixteen train ids.
CITYSCAPES_IDS = (7, 8, 11, 12, 13, 17, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28)


def scene(index: int, split: str = "test") -> shapes.Scene:
    """The scene behind sample ``index`` of every tree."""
    return shapes.scene("train" if split.startswith("train") else "test", index, resolution=SIDE)


# ---------------------------------------------------------------------------------------------
# Files
# ---------------------------------------------------------------------------------------------


def write_image(path: Path, pixels: np.ndarray, kind: str = "plain") -> None:
    """A JPEG (or PNG by its suffix) as data sets have them.

    ``kind`` is plain, grey, cmyk, rotated (stored on its side, with EXIF to tell), flat (one pixel
    high) or truncated.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.fromarray(pixels)
    if path.suffix == ".png":
        image.save(path)
        return
    exif = Image.Exif()
    if kind == "grey":
        image = image.convert("L")
    elif kind == "cmyk":
        image = image.convert("CMYK")
    elif kind == "rotated":
        image = image.transpose(Image.Transpose.ROTATE_90)
        exif[0x0112] = 6
    elif kind == "flat":
        image = image.crop((0, 0, image.width, 1))
    buffer = BytesIO()
    image.save(buffer, "JPEG", quality=95, exif=exif)
    data = buffer.getvalue()
    path.write_bytes(data[: len(data) // 2] if kind == "truncated" else data)


def write_mask(path: Path, values: np.ndarray, *, palette: bool = False) -> None:
    """A PNG of 8-bit numbers; with a palette, numbers that look like colours."""
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.fromarray(values.astype(np.uint8))
    if palette:
        image.putpalette(
            [(37 * n + 11 * channel) % 256 for n in range(256) for channel in range(3)]
        )
    image.save(path)


def write_grey_png(path: Path, values: np.ndarray, *, bits: int) -> None:
    """A grey PNG of 1, 2, 4 or 8 bits a pixel, as programs that shrink files leave them."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", crc32(kind + body))

    height, width = values.shape
    planes = np.unpackbits(values.astype(np.uint8)[..., None], axis=2)[..., 8 - bits :]
    packed = np.packbits(planes.reshape(height, width * bits), axis=1)
    rows = b"".join(b"\0" + row.tobytes() for row in packed)
    header = struct.pack(">IIBBBBB", width, height, bits, 0, 0, 0, 0)
    parts = chunk(b"IHDR", header) + chunk(b"IDAT", compress(rows)) + chunk(b"IEND", b"")
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + parts)


def write_lines(path: Path, lines: Sequence[str]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{line}\n" for line in lines))


def voc_xml(objects: Sequence[tuple[str, bool]], name: str = "image") -> str:
    """An annotation with the given classes and difficult flags."""
    items = "".join(
        f"<object><name>{escape(kind)}</name><difficult>{int(difficult)}</difficult>"
        "<bndbox><xmin>1</xmin><ymin>1</ymin><xmax>9</xmax><ymax>9</ymax></bndbox></object>"
        for kind, difficult in objects
    )
    return f"<annotation><filename>{name}.jpg</filename>{items}</annotation>\n"


# ---------------------------------------------------------------------------------------------
# Data sets
# ---------------------------------------------------------------------------------------------


def write_voc(root: Path, split: str, count: int, *, year: str) -> None:
    """Objects and masks of one year; in the first image all objects of one class are difficult."""
    base, ids = root / "VOCdevkit" / year, []
    for index in range(count):
        drawn = scene(index, split)
        name = f"{index + 1:06d}" if year == "VOC2007" else f"2008_{index + 1:06d}"
        ids.append(name)
        classes = [item.class_index for item in drawn.objects]
        objects = [(VOC_NAMES[k], index == 0 and k == classes[0]) for k in classes]
        write_lines(base / "Annotations" / f"{name}.xml", [voc_xml(objects, name)])
        write_image(base / "JPEGImages" / f"{name}.jpg", drawn.image)
        mask = drawn.mask.copy()
        mask[0] = 255
        write_mask(base / "SegmentationClass" / f"{name}.png", mask, palette=True)
    for task in ("Main", "Segmentation"):
        write_lines(base / "ImageSets" / task / f"{split}.txt", ids)


def write_coco(root: Path, split: str, count: int) -> None:
    """Instances as polygon-free run lengths; the last object of each image is a crowd.

    One more image, the last, has no object. Stuff-thing maps lie beside: background is grass,
    except for a row of nothing.
    """
    numbers = list(COCO_CATEGORIES)
    images, annotations = [], []
    for index in range(count + 1):
        drawn = scene(index, split)
        name = f"{index + 1:012d}"
        images.append({"id": index + 1, "file_name": f"{name}.jpg", "width": SIDE, "height": SIDE})
        pixels = drawn.image if index < count else np.full_like(drawn.image, 90)
        write_image(root / split / f"{name}.jpg", pixels)
        things = np.full((SIDE, SIDE), 124 - 1)  # grass
        things[0] = 255
        if index < count:
            shown = drawn.mask > 0
            things[shown] = np.array(numbers)[drawn.mask[shown].astype(int) - 1] - 1
            for number, item in enumerate(drawn.objects, start=1):
                inside = np.asfortranarray(drawn.instances == number).astype(np.uint8)
                encoded = run_lengths.encode(inside)
                annotations.append(
                    {
                        "id": len(annotations) + 1,
                        "image_id": index + 1,
                        "category_id": numbers[item.class_index],
                        "iscrowd": int(number == len(drawn.objects)),
                        "area": item.visible_pixels,
                        "bbox": list(item.box),
                        "segmentation": {
                            "size": [SIDE, SIDE],
                            "counts": encoded["counts"].decode(),
                        },
                    }
                )
        write_mask(root / "stuffthingmaps" / split / f"{name}.png", things)
    categories = [{"id": number, "name": name} for number, name in COCO_CATEGORIES.items()]
    content = {"images": images, "annotations": annotations, "categories": categories}
    write_lines(root / "annotations" / f"instances_{split}.json", [json.dumps(content)])


def write_cityscapes(root: Path, split: str, count: int) -> None:
    """Two cities; background is unlabelled."""
    for index in range(count):
        drawn = scene(index, split)
        city = ("aachen", "bremen")[index % 2]
        name = f"{city}_{index:06d}_000019"
        write_image(root / "leftImg8bit" / split / city / f"{name}_leftImg8bit.png", drawn.image)
        values = np.array([0, *CITYSCAPES_IDS])[drawn.mask]
        folder = root / "gtFine" / split / city
        write_mask(folder / f"{name}_gtFine_labelIds.png", values)


def write_context(root: Path, split: str, count: int) -> None:
    """Masks of the 59 classes as the usual converter leaves them."""
    base, ids = root / "VOCdevkit" / "VOC2010", []
    for index in range(count):
        drawn = scene(index, split)
        ids.append(f"2008_{index + 1:06d}")
        write_image(base / "JPEGImages" / f"{ids[-1]}.jpg", drawn.image)
        write_mask(base / "SegmentationClassContext" / f"{ids[-1]}.png", drawn.mask, palette=True)
    write_lines(base / "ImageSets" / "SegmentationContext" / f"{split}.txt", ids)


def write_ade20k(root: Path, split: str, count: int) -> None:
    """Value 0 is other."""
    base = root / "ADEChallengeData2016"
    short = "train" if split == "training" else "val"
    for index in range(count):
        drawn = scene(index, split)
        name = f"ADE_{short}_{index + 1:08d}"
        write_image(base / "images" / split / f"{name}.jpg", drawn.image)
        write_mask(base / "annotations" / split / f"{name}.png", drawn.mask)


TREES: dict[str, Callable[[Path, str, int], None]] = {
    "coco": write_coco,
    "coco14": write_coco,
    "coco17": write_coco,
    "voc2007": lambda root, split, count: write_voc(root, split, count, year="VOC2007"),
    "voc2012": lambda root, split, count: write_voc(root, split, count, year="VOC2012"),
    "voc12-seg": lambda root, split, count: write_voc(root, split, count, year="VOC2012"),
    "coco17-seg": write_coco,
    "cityscapes": write_cityscapes,
    "context": write_context,
    "stuff": write_coco,
    "ade20k": write_ade20k,
}

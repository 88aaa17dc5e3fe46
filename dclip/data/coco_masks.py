"""COCO 2017 as a segmentation data set: instances painted into a mask, or stuff-thing maps."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple, cast

import numpy as np
from jaxtyping import UInt8
from pycocotools import mask as run_lengths

from dclip.data.coco import check_categories, find_coco_split, index_coco, inner_file_name
from dclip.data.dataset import Dataset, read_class_names, settle
from dclip.data.images import MAX_PIXELS, ImageError, read_image
from dclip.data.listing import check_key, digest
from dclip.data.segmentation import (
    IGNORE_INDEX,
    MaskFolderListing,
    Phrased,
    SegmentationSample,
    check_sizes,
)
from dclip.data.stuff import THING_IDS, find_stuff_maps, pixel_map
from dclip.paths import AnyPath

_OPTIONS = {"classes": ("object81", "object80"), "masks": ("area", "file", "stuff")}
_THINGS, _BACKGROUND = read_class_names("coco80"), read_class_names("background")
_NAMES = tuple(names[0] for names in _THINGS)


class PaintedObject(NamedTuple):
    """One instance of an image.

    Attributes:
        column: Position of its category, ascending by id.
        area: Pixels it covers.
        counts: Its outline as COCO's compressed run lengths.
    """

    column: int
    area: int
    counts: bytes


@dataclass(frozen=True, eq=False)
class PaintedListing(Phrased):
    """Images whose instances are painted one over the other when a mask is asked for.

    Attributes:
        name: The data set.
        split: Which part of it.
        phrasings: What to call each class.
        image_dir: Folder of the images.
        keys: One per sample.
        file_names: Relative to ``image_dir``.
        sizes: Width and height of each image by the annotations.
        objects: Instances of each image in painting order, the last on top.
        with_background: Whether pixels without an instance are a class, the first; else they are
            `ignore_index`.
        options: Settings that made the listing, for its identity.
    """

    name: str
    split: str
    phrasings: tuple[tuple[str, ...], ...] = field(repr=False)
    image_dir: AnyPath
    keys: tuple[str, ...] = field(repr=False)
    file_names: tuple[str, ...] = field(repr=False)
    sizes: tuple[tuple[int, int], ...] = field(repr=False)
    objects: tuple[tuple[PaintedObject, ...], ...] = field(repr=False)
    with_background: bool
    options: Mapping[str, str]
    ignore_index: int = IGNORE_INDEX

    @property
    def image_paths(self) -> tuple[Path, ...]:
        """Image file of each sample."""
        folder = cast("Path", self.image_dir)  # the data sets with masks take no URL
        return tuple(folder / name for name in self.file_names)

    def read(self, index: int) -> SegmentationSample:
        """The image and its painted mask; without an instance all of it is background.

        Raises:
            ImageError: If the file is missing, cannot be decoded, or is not of the size the
                annotations tell.
        """
        path = self.image_dir / self.file_names[index]
        if not path.is_file():
            raise ImageError(f"image {self.keys[index]} is listed but there is no file {path}")
        image, mask = read_image(path), self.read_mask(index)
        check_sizes(image, mask, f"painted for {path}")
        return SegmentationSample(image, mask)

    def read_mask(self, index: int) -> UInt8[np.ndarray, "height width"]:
        """The painted mask alone."""
        width, height = self.sizes[index]
        first = int(self.with_background)
        mask = np.full((height, width), 0 if first else self.ignore_index, np.uint8)
        for item in self.objects[index]:
            runs = decode_runs(item.counts)  # down the columns, in turns outside and inside
            inside = np.repeat(np.arange(len(runs)) % 2 == 1, runs).reshape(width, height).T
            mask[inside] = first + item.column
        return mask

    def identity(self) -> dict[str, str | int]:
        """Split, options, and a hash of class names, keys, sizes and instances."""
        painted = [
            [(item.column, item.counts.decode("ascii")) for item in items] for items in self.objects
        ]
        return {
            "name": self.name,
            "split": self.split,
            **self.options,
            "content": digest([self.class_names, self.keys, self.file_names, self.sizes, painted]),
        }


def is_painted(options: Mapping[str, str]) -> bool:
    """Whether these options of a data set paint masks from outlines; there are no files then."""
    return options.get("masks") in ("area", "file")


def open_coco17_seg(
    root: Path, split: str, options: Mapping[str, str]
) -> PaintedListing | MaskFolderListing:
    """A split of COCO 2017 with masks.

    Raises:
        ValueError: If a file is missing or malformed, the categories are not COCO's, or an option
            is not known.
    """
    chosen = settle(_OPTIONS, options)
    with_background = chosen["classes"] == "object81"
    phrasings = (_BACKGROUND if with_background else ()) + _THINGS
    if chosen["masks"] == "stuff":
        images, masks = find_stuff_maps(root, split)
        return MaskFolderListing(
            name="coco17-seg",
            split=split,
            phrasings=phrasings,
            keys=tuple(path.stem for path in images),
            image_paths=images,
            mask_paths=masks,
            # unlabelled pixels are background too, as in the COCO-Object benchmark
            id_map=pixel_map(
                THING_IDS,
                first=int(with_background),
                other=0 if with_background else IGNORE_INDEX,
            ),
            options=chosen,
        )
    annotation_file, image_dir = find_coco_split(root, split)
    listing = paint_instances(annotation_file, image_dir, split=split, by=chosen["masks"])
    check_categories(listing.class_names, _NAMES, annotation_file)
    return replace(
        listing,
        name="coco17-seg",
        phrasings=phrasings,
        with_background=with_background,
        options=chosen,
    )


def paint_instances(
    annotation_file: AnyPath, image_dir: AnyPath, *, split: str, by: str = "area"
) -> PaintedListing:
    """All images of an annotation file with their instances, crowds included.

    Args:
        annotation_file: JSON with ``images``, ``annotations`` and ``categories``.
        image_dir: Folder the ``file_name`` entries are relative to.
        split: Name of the split.
        by: ``"area"`` paints large instances first, so that small ones stay visible (equal ones in
            the order of the file); ``"file"`` paints in the order of the file, as the authors do.

    Raises:
        ValueError: If the file is not in COCO's format, or an outline cannot be read.
    """
    coco = index_coco(annotation_file, outlines=True)
    try:
        categories = sorted(coco.cats)
        column = {category: position for position, category in enumerate(categories)}
        names = tuple((str(coco.cats[category]["name"]),) for category in categories)
        rows = []
        for image in coco.dataset["images"]:
            number = image["id"]
            key = check_key(f"{number:012d}" if isinstance(number, int) else str(number))
            size = int(image["width"]), int(image["height"])
            items = [
                _painted(annotation, column, size) for annotation in coco.imgToAnns.get(number, [])
            ]
            if by == "area":
                items.sort(key=lambda item: -item.area)
            rows.append((key, inner_file_name(image, key), size, tuple(items)))
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(
            f"{annotation_file} is not in COCO's format: {type(error).__name__} {error}"
        ) from error
    if not rows:
        raise ValueError(f"{annotation_file} lists no images")
    keys, file_names, sizes, objects = zip(*sorted(rows), strict=True)
    if len(set(keys)) < len(keys):
        raise ValueError(f"{annotation_file} lists an image id twice")
    return PaintedListing(
        name="coco",
        split=split,
        phrasings=names,
        image_dir=image_dir,
        keys=keys,
        file_names=file_names,
        sizes=sizes,
        objects=objects,
        with_background=False,
        options={"masks": by},
    )


def _painted(
    annotation: Mapping[str, Any], column: Mapping[int, int], size: tuple[int, int]
) -> PaintedObject:
    """An annotation as run lengths, whichever of COCO's three forms its outline has."""
    width, height = size
    name = f"annotation {annotation.get('id')}"
    if not 0 < width * height <= MAX_PIXELS:
        raise ValueError(f"{name} belongs to an image of {width} x {height} pixels")
    outline = annotation["segmentation"]
    try:
        if isinstance(outline, list):
            encoded = _polygon_runs(outline, width, height)
        elif list(outline["size"]) != [height, width]:
            raise ValueError(f"of size {outline['size']}, its image has {[height, width]}")
        elif isinstance(outline["counts"], list):
            encoded = run_lengths.frPyObjects(outline, height, width)["counts"]
        else:
            encoded = outline["counts"].encode("ascii")
        runs = decode_runs(encoded)
        if min(runs) < 0 or sum(runs) != width * height:
            raise ValueError(f"its runs cover {sum(runs)} pixels, the image has {width * height}")
    except (ValueError, TypeError, KeyError, IndexError, AttributeError, OverflowError) as error:
        raise ValueError(f"{name} has an outline that cannot be read: {error}") from error
    category = annotation["category_id"]
    if category not in column:
        raise ValueError(f"{name} has category {category}, which is not listed")
    return PaintedObject(column[category], sum(runs[1::2]), encoded)


def _polygon_runs(polygons: list[Any], width: int, height: int) -> bytes:
    """The union of polygons as compressed run lengths.

    COCO has some polygons of fewer than three corners; they enclose nothing.
    """
    reach = max(width, height)  # beyond that far outside, drawing would take memory without bound
    for polygon in polygons:
        if len(polygon) % 2 or not all(-reach <= value <= 2 * reach for value in polygon):
            raise ValueError("a polygon needs pairs of coordinates, all about the image")
    closed = [polygon for polygon in polygons if len(polygon) >= 6]
    if not closed:
        nothing = {"size": [height, width], "counts": [width * height]}
        return bytes(run_lengths.frPyObjects(nothing, height, width)["counts"])
    outlines = run_lengths.frPyObjects(closed, height, width)
    return bytes(run_lengths.merge(outlines)["counts"])


def decode_runs(text: bytes) -> list[int]:
    """The run lengths behind COCO's compressed form.

    A number is written in groups of five bits, lowest first, each a printable character from code
    48 on, with a sixth bit where more follow; the last group's fifth bit is the sign. From the
    fourth number on, what is written is the difference to the number two before.

    Args:
        text: Compressed run lengths.

    Raises:
        ValueError: If there is none, a character is not of that alphabet, or a number is cut short
            or longer than any image.

    Example:
        >>> decode_runs(b"52203")
        [5, 2, 2, 2, 5]
    """
    runs: list[int] = []
    number = shift = 0
    for character in text:
        group = character - 48
        if not 0 <= group < 64 or shift > 30:
            raise ValueError(f"compressed run lengths {text[:40]!r} are damaged")
        number |= (group & 31) << shift
        shift += 5
        if not group & 32:
            if group & 16:
                number -= 1 << shift
            runs.append(number + (runs[-2] if len(runs) > 2 else 0))
            number = shift = 0
    if shift or not runs:
        raise ValueError(f"compressed run lengths {text[:40]!r} are cut short")
    return runs


COCO17_SEG = Dataset(
    name="coco17-seg",
    title="MS-COCO 2017 objects as masks",
    task="segmentation",
    train_split="train2017",
    test_split="val2017",
    expected={"train2017": 118_287, "val2017": 5_000},
    class_names=("background", *_NAMES),
    phrasings=_BACKGROUND + _THINGS,
    options=_OPTIONS,
    homepage="https://cocodataset.org/#download",
    layout=(
        ("annotations/instances_{split}.json", "outlines (masks=area or file)"),
        ("stuffthingmaps/{split}/*.png", "maps of COCO-Stuff (masks=stuff)"),
        ("{split}/*.jpg", "images; images/{split}/*.jpg will do as well"),
    ),
    open=open_coco17_seg,
    notes="masks=area paints the instances, large ones first; masks=file in the order of the file,"
    " as the authors do; masks=stuff takes the things of the stuff-thing maps, which is the"
    " COCO-Object benchmark of the field. With classes=object80 background is not counted.",
)

"""COCO 2017 as a segmentation data set: instances painted into a mask, or stuff-thing maps."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple, cast

import numpy as np
from pycocotools import mask as run_lengths

from dclip.data.bounds import MAX_PIXELS
from dclip.data.coco import (
    AnnotatedImage,
    AnnotatedObject,
    FormatError,
    check_categories,
    entry_name,
    file_name_of,
    find_coco_split,
    read_annotations,
    shown,
    told_of,
)
from dclip.data.coco_files import find_image_files
from dclip.data.dataset import Dataset, read_class_names, settle
from dclip.data.images import ImageError, read_image
from dclip.data.listing import digest
from dclip.data.mask_folders import MaskFolders
from dclip.data.segmentation import (
    IGNORE_INDEX,
    Mask,
    MaskFolderListing,
    Phrased,
    SegmentationSample,
    check_sizes,
    ignore_index_of,
)
from dclip.data.stuff import THING_IDS, find_stuff_maps, pixel_map
from dclip.store.paths import AnyPath
from dclip.words import counted

_THINGS, _BACKGROUND = read_class_names("coco80"), read_class_names("background")
_NAMES = tuple(names[0] for names in _THINGS)

# masks=stuff: unlabelled pixels are background too, as in the COCO-Object benchmark
_MAPS = MaskFolders(
    "coco17-seg",
    find_stuff_maps,
    {
        "object81": (_BACKGROUND + _THINGS, pixel_map(THING_IDS, first=1, other=0)),
        "object80": (_THINGS, pixel_map(THING_IDS)),
    },
)
_OPTIONS = {**_MAPS.options, "masks": ("area", "file", "stuff")}


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
        notes: How it was read; see `dclip.data.listing.Keyed`.
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
    notes: tuple[str, ...] = ()

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

    def read_mask(self, index: int) -> Mask:
        """The painted mask alone."""
        width, height = self.sizes[index]
        first = int(self.with_background)
        kept = np.uint8 if self.ignore_index == IGNORE_INDEX else np.int32
        mask = np.full((height, width), 0 if first else self.ignore_index, kept)
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


def only_keys(listing: PaintedListing, keys: Collection[str]) -> PaintedListing:
    """The images of some keys."""
    kept = set(keys)
    rows = [row for row, key in enumerate(listing.keys) if key in kept]

    def of(values: Sequence[Any]) -> tuple[Any, ...]:
        return tuple(values[row] for row in rows)

    return replace(
        listing,
        keys=of(listing.keys),
        file_names=of(listing.file_names),
        sizes=of(listing.sizes),
        objects=of(listing.objects),
    )


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
    if chosen["masks"] == "stuff":
        return _MAPS.read(root, split, chosen)
    annotation_file, image_dir = find_coco_split(root, split)
    listing = paint_instances(annotation_file, image_dir, split=split, by=chosen["masks"])
    check_categories(listing.class_names, _NAMES, annotation_file)
    return replace(
        listing,
        name="coco17-seg",
        phrasings=_MAPS.classes[chosen["classes"]][0],
        with_background=chosen["classes"] == "object81",
        options=chosen,
    )


def open_own_masks(
    annotation_file: AnyPath, folders: Sequence[AnyPath], *, split: str
) -> PaintedListing:
    """The user's own annotation file with outlines: background, then its categories.

    Args:
        annotation_file: As for `paint_instances`; large instances are painted first.
        folders: Where images may lie.
        split: Name of the split.

    Raises:
        ValueError: As `paint_instances`; or a category is called background, or no object has an
            outline with a pixel in it, as in files of boxes alone.
    """
    listing = paint_instances(annotation_file, folders[0], split=split, also=folders[1:])
    areas = [item.area for objects in listing.objects for item in objects]
    if areas and not any(areas):
        raise ValueError(
            f"{annotation_file}: none of {counted(len(areas), 'object')} has an outline with a"
            " pixel in it; masks need outlines, and boxes are none"
        )
    notes = list(listing.notes)
    if 0 in areas:
        notes.append(
            f"{counted(areas.count(0), 'object')} without a pixel in the outline: not in any mask"
        )
    (background,) = _BACKGROUND
    if background[0] in listing.class_names:
        raise ValueError(
            f"{annotation_file} has a category {background[0]!r}, which is what pixels without an "
            "instance are called; rename it"
        )
    return replace(
        listing,
        phrasings=(background, *listing.phrasings),
        with_background=True,
        notes=tuple(notes),
        ignore_index=ignore_index_of(1 + len(listing.class_names)),
    )


def paint_instances(
    annotation_file: AnyPath,
    image_dir: AnyPath,
    *,
    split: str,
    by: str = "area",
    also: Sequence[AnyPath] = (),
) -> PaintedListing:
    """All images of an annotation file with their instances, crowds included.

    Args:
        annotation_file: JSON with ``images``, ``annotations`` and ``categories``.
        image_dir: Folder the ``file_name`` entries are relative to.
        split: Name of the split.
        by: ``"area"`` paints large instances first, so that small ones stay visible (equal ones in
            the order of the file); ``"file"`` paints in the order of the file, as the authors do.
        also: More folders where images may lie.

    Raises:
        ValueError: If the file is not in COCO's format, or an outline cannot be read.
    """
    found = read_annotations(annotation_file, outlines=True)
    if not found.images:
        raise ValueError(f"{annotation_file} lists no images")
    with told_of(annotation_file):
        names = {image.key: file_name_of(image) for image in found.images}
        sizes = tuple(map(_size, found.images))
        objects = [
            [_painted(item, size) for item in image.objects]
            for image, size in zip(found.images, sizes, strict=True)
        ]
    if by == "area":
        for items in objects:
            items.sort(key=lambda item: -item.area)
    places = find_image_files(names, [image_dir, *also], split=split, source=annotation_file)
    return PaintedListing(
        name="coco",
        split=split,
        phrasings=tuple((name,) for name in found.class_names),
        image_dir=places.folder,
        keys=tuple(names),
        file_names=places.file_names,
        sizes=sizes,
        objects=tuple(map(tuple, objects)),
        with_background=False,
        options={"masks": by},
        ignore_index=ignore_index_of(len(found.class_names)),
        notes=(*found.notes, *places.notes),
    )


def _size(image: AnnotatedImage) -> tuple[int, int]:
    """Width and height of an image by the annotations, fit to be painted on."""
    sides = []
    where = entry_name("images", image.number, image.entry)
    for key in ("width", "height"):
        side = image.entry.get(key)
        if side is None:
            raise FormatError(f"{where} has no {key}, which masks need")
        if not _is_number(side) or side <= 0 or not float(side).is_integer():
            raise FormatError(f"{where} has {key} {shown(side)}, which is no number of pixels")
        sides.append(int(side))
    width, height = sides
    if width * height > MAX_PIXELS:
        raise FormatError(f"{where} is of {width} x {height} pixels, more than {MAX_PIXELS}")
    return width, height


def _painted(item: AnnotatedObject, size: tuple[int, int]) -> PaintedObject:
    """An annotation as run lengths, whichever form its outline has."""
    width, height = size
    try:
        encoded = _runs(item.entry.get("segmentation"), width, height)
    except (ValueError, OverflowError) as error:
        where = entry_name("annotations", item.number, item.entry)
        raise FormatError(f"{where} has an outline that cannot be read: {error}") from error
    area = run_lengths.area({"size": [height, width], "counts": encoded})
    return PaintedObject(item.column, int(area), encoded)


def _runs(outline: object, width: int, height: int) -> bytes:
    """An outline as compressed run lengths.

    It is polygons, one polygon, either of them with numbers in a row or in pairs, or run lengths,
    as a list or compressed.

    Raises:
        ValueError: If it is none of these; the message has what it is.
    """
    if outline is None:
        raise ValueError("it has none (segmentation is null or left out), and masks need one")
    if isinstance(outline, list):
        return _polygon_runs(_polygons(outline), width, height)
    if not isinstance(outline, Mapping):
        raise ValueError(f"segmentation is {shown(outline)}, no polygons and no run lengths")
    for key in ("size", "counts"):
        if outline.get(key) is None:
            raise ValueError(f"its run lengths have no {key!r}")
    if outline["size"] != [height, width]:
        raise ValueError(f"of size {shown(outline['size'])}, its image has {[height, width]}")
    counts = outline["counts"]
    if isinstance(counts, str):
        if not counts.isascii():
            raise ValueError(f"compressed run lengths {shown(counts)} are damaged")
        encoded = counts.encode("ascii")
    elif isinstance(counts, list) and all(map(_is_count, counts)):
        encoded = bytes(run_lengths.frPyObjects(dict(outline), height, width)["counts"])
    else:
        raise ValueError(f"its counts are {shown(counts)}, no numbers of pixels and no text")
    runs = decode_runs(encoded)  # pycocotools itself does not check them, see docs/log.md
    if min(runs) < 0 or sum(runs) != width * height:
        raise ValueError(f"its runs cover {sum(runs)} pixels, the image has {width * height}")
    return encoded


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= MAX_PIXELS


def _polygons(outline: list[Any]) -> list[list[float]]:
    """Polygons with their numbers in a row.

    Three or more single corners, ``[[x, y], [x, y], ...]``, are one polygon: as polygons of a
    corner each they would enclose nothing.
    """
    if outline and all(map(_is_number, outline)):
        return [outline]
    if len(outline) > 2 and all(map(_is_pair, outline)):
        outline = [outline]
    polygons = []
    for polygon in outline:
        if not isinstance(polygon, list):
            raise ValueError(f"{shown(polygon)} among its polygons is none")
        is_paired = bool(polygon) and all(map(_is_pair, polygon))
        numbers = [value for pair in polygon for value in pair] if is_paired else polygon
        if not all(map(_is_number, numbers)):
            raise ValueError(f"polygon {shown(polygon)} is no list of numbers")
        polygons.append(numbers)
    return polygons


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _is_pair(value: object) -> bool:
    return isinstance(value, list) and len(value) == 2 and all(map(_is_number, value))


def _polygon_runs(polygons: list[list[float]], width: int, height: int) -> bytes:
    """The union of polygons as compressed run lengths.

    COCO has some polygons of fewer than three corners; they enclose nothing.
    """
    reach = max(width, height)  # beyond that far outside, drawing would take memory without bound
    for polygon in polygons:
        if len(polygon) % 2 or not all(-reach <= value <= 2 * reach for value in polygon):
            raise ValueError(
                f"polygon {shown(polygon)}: a polygon needs pairs of coordinates, all about the"
                " image"
            )
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

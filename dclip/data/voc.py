"""PASCAL VOC: objects in XML as a multi-label data set, palette PNGs as masks."""

import itertools
import re
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from xml.etree import ElementTree

import numpy as np

from dclip.data.dataset import Dataset, first_folder, read_class_names, settle
from dclip.data.listing import ImageListing
from dclip.data.mask_folders import MaskFolders, Places, in_order

MAX_XML_BYTES = 1_000_000
"""A larger annotation file is refused; those of VOC have a few kilobytes."""

_PHRASINGS = read_class_names("voc20")
_BACKGROUND = read_class_names("background")
CLASS_NAMES = tuple(names[0] for names in _PHRASINGS)

# The annotations write the names without spaces and slashes: "pottedplant", "tvmonitor".
_COLUMN = {re.sub(r"\W", "", name): column for column, name in enumerate(CLASS_NAMES)}

# What ids look like: VOC2007 numbers its images, later years put the year in front.
_IDS = {"VOC2007": re.compile(r"\d{6}"), "VOC2012": re.compile(r"20\d\d_\d{6}")}

_OPTIONS = {"difficult": ("negative", "ignore")}


# ---------------------------------------------------------------------------------------------
# Reading
# ---------------------------------------------------------------------------------------------


def read_objects(path: Path) -> list[tuple[int, bool]]:
    """Column and difficult flag of every object in one annotation file.

    Args:
        path: XML as VOC has it. A missing ``difficult`` means no.

    Raises:
        ValueError: If the file is missing, too large, not XML of an annotation, has a document type
            or entities (which could make it grow without bound), or has a class that is not VOC's.
    """
    try:
        if path.stat().st_size > MAX_XML_BYTES:
            raise ValueError(f"{path} has more than {MAX_XML_BYTES} bytes, too many for VOC")
        text = path.read_bytes().decode()  # only UTF-8, so that nothing hides from the next check
    except FileNotFoundError:
        raise ValueError(f"there is no annotation {path}") from None
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8: {error}") from None
    if "<!DOCTYPE" in text or "<!ENTITY" in text:
        raise ValueError(f"{path} declares a document type or entities; VOC's files have neither")
    try:
        root = ElementTree.fromstring(text)
    except ElementTree.ParseError as error:
        raise ValueError(f"{path} is not XML: {error}") from None
    if root.tag != "annotation":
        raise ValueError(f"{path} is not an annotation of VOC: it holds <{root.tag}>")
    return [_object(item, path) for item in root.findall("object")]


def _object(item: ElementTree.Element, path: Path) -> tuple[int, bool]:
    """Column and difficult flag of one ``<object>``."""
    name, difficult = (item.findtext("name") or "").strip(), item.findtext("difficult") or "0"
    if name not in _COLUMN:
        raise ValueError(f"{path} has an object {name!r}, which is no class of VOC")
    if difficult.strip() not in ("0", "1"):
        raise ValueError(f"{path} has difficult={difficult!r}; it is 0 or 1")
    return _COLUMN[name], difficult.strip() == "1"


def label_vector(
    objects: list[tuple[int, bool]], *, difficult: str = "negative"
) -> np.ndarray[tuple[int], np.dtype[np.int8]]:
    """Label vector of one image.

    Args:
        objects: Column and difficult flag of every object.
        difficult: What a class is of which all objects are difficult: ``"negative"`` (0, as
            DualCoOp and DCLIP have it) or ``"ignore"`` (-1, left out of loss and metrics, as in
            VOC's own evaluation).
    """
    labels = np.zeros(len(CLASS_NAMES), np.int8)
    if difficult == "ignore":
        labels[[column for column, is_difficult in objects if is_difficult]] = -1
    labels[[column for column, is_difficult in objects if not is_difficult]] = 1
    return labels


def find_voc(root: Path, year: str) -> Path:
    """The folder with ``JPEGImages`` of one year: the root itself, or below it as published.

    Raises:
        ValueError: If there is none; the message names the places.
    """
    bases = (root / year, root / "VOCdevkit" / year, root)
    images = first_folder(tuple(base / "JPEGImages" for base in bases), f"{year} under {root}")
    return images.parent


def read_ids(path: Path) -> tuple[str, ...]:
    """The ids an image set lists, ascending; more columns of a line are not looked at.

    Raises:
        ValueError: If the file is missing (the message has those there), empty, or lists one twice.
    """
    if not path.is_file():
        there = ", ".join(repr(other.stem) for other in sorted(path.parent.glob("*.txt"))[:12])
        raise ValueError(
            f"no split {path.stem!r}: there is no {path}; splits there: {there or 'none'}"
        )
    ids = sorted(line.split()[0] for line in path.read_text().splitlines() if line.strip())
    if not ids:
        raise ValueError(f"{path} lists no images")
    twice = next((one for one, other in itertools.pairwise(ids) if one == other), None)
    if twice is not None:
        raise ValueError(f"{path} lists {twice} twice")
    return tuple(ids)


def _check_year(ids: tuple[str, ...], year: str, source: Path) -> None:
    """Refuse the ids of another year."""
    strange = next((one for one in ids if not _IDS[year].fullmatch(one)), None)
    if strange is not None:
        others = [other for other, form in _IDS.items() if form.fullmatch(strange)]
        hint = f"; ids of {others[0]} look like that" if others else ""
        raise ValueError(f"{source} is not of {year}: it lists {strange!r}{hint}")


# ---------------------------------------------------------------------------------------------
# Opening
# ---------------------------------------------------------------------------------------------


def open_voc2007(root: Path, split: str, options: Mapping[str, str]) -> ImageListing:
    """A split of VOC2007.

    Raises:
        ValueError: If a file is missing or malformed, of another year, or an option is not known.
    """
    return _open(root, split, options, name="voc2007", year="VOC2007")


def open_voc2012(root: Path, split: str, options: Mapping[str, str]) -> ImageListing:
    """A split of VOC2012; that of the test images has no public labels.

    Raises:
        ValueError: If a file is missing or malformed, of another year, or an option is not known.
    """
    return _open(root, split, options, name="voc2012", year="VOC2012")


def _open(
    root: Path, split: str, options: Mapping[str, str], *, name: str, year: str
) -> ImageListing:
    """Find and read the annotations of a split."""
    chosen = settle(_OPTIONS, options)
    base = find_voc(root, year)
    image_set = base / "ImageSets" / "Main" / f"{split}.txt"
    ids = read_ids(image_set)
    _check_year(ids, year, image_set)
    annotations = tuple(base / "Annotations" / f"{one}.xml" for one in ids)
    missing = [path for path in annotations if not path.is_file()]
    if missing:
        hint = "; labels of VOC2012's test images are not public" if name == "voc2012" else ""
        raise ValueError(
            f"{len(missing)} of {len(ids)} annotations of split {split!r} are missing, such as"
            f" {missing[0]}{hint}"
        )
    rows = [label_vector(read_objects(p), difficult=chosen["difficult"]) for p in annotations]
    return ImageListing(
        name=name,
        split=split,
        class_names=CLASS_NAMES,
        image_dir=base / "JPEGImages",
        keys=ids,
        file_names=tuple(f"{one}.jpg" for one in ids),
        labels=np.stack(rows),
        options=chosen,
    )


def find_listed(year: str, image_set: str, mask_dir: str, root: Path, split: str) -> Places:
    """Samples with masks that an image set lists.

    Args:
        year: ``"VOC2010"``.
        image_set: Folder of the lists in ``ImageSets``.
        mask_dir: Folder of the masks.
        root: As for `find_voc`.
        split: Name of the list.

    Raises:
        ValueError: If a folder or the list is missing, or the list is empty or of another year.
    """
    base = find_voc(root, year)
    source = base / "ImageSets" / image_set / f"{split}.txt"
    ids = read_ids(source)
    if year in _IDS:
        _check_year(ids, year, source)
    images = tuple(base / "JPEGImages" / f"{one}.jpg" for one in ids)
    return ids, images, tuple(base / mask_dir / f"{one}.png" for one in ids)


_MASKS = MaskFolders(
    "voc12-seg",
    partial(find_listed, "VOC2012", "Segmentation", "SegmentationClass"),
    {  # value 0 is background, 255 the border around objects
        "voc21": (_BACKGROUND + _PHRASINGS, in_order(range(21))),
        "voc20": (_PHRASINGS, in_order(range(1, 21), (0, 255))),
    },
)


# ---------------------------------------------------------------------------------------------
# What the registry knows
# ---------------------------------------------------------------------------------------------

VOC2007 = Dataset(
    name="voc2007",
    title="PASCAL VOC 2007",
    task="multilabel",
    train_split="trainval",
    test_split="test",
    expected={"train": 2_501, "val": 2_510, "trainval": 5_011, "test": 4_952},
    class_names=CLASS_NAMES,
    phrasings=_PHRASINGS,
    options=_OPTIONS,
    homepage="http://host.robots.ox.ac.uk/pascal/VOC/voc2007/",
    layout=(
        ("VOC2007/ImageSets/Main/{split}.txt", "ids of the split; VOCdevkit/ may stand above"),
        ("VOC2007/Annotations/*.xml", "objects with class, box and difficult flag"),
        ("VOC2007/JPEGImages/*.jpg", "images; trainval and test unpack into the same folders"),
    ),
    open=open_voc2007,
    notes="A class all of whose objects are flagged difficult is a negative, as in DualCoOp and"
    " DCLIP; difficult=ignore leaves it out, as VOC's own evaluation does.",
)

VOC2012 = replace(
    VOC2007,
    name="voc2012",
    title="PASCAL VOC 2012",
    train_split="train",
    test_split="val",
    expected={"train": 5_717, "val": 5_823, "trainval": 11_540},
    homepage="http://host.robots.ox.ac.uk/pascal/VOC/voc2012/",
    layout=tuple((path.replace("2007", "2012"), what) for path, what in VOC2007.layout),
    open=open_voc2012,
    notes="Labels of the test images are not public: train on train, report on val. Difficult"
    " objects as in voc2007.",
)

VOC12_SEG = Dataset(
    name="voc12-seg",
    title="PASCAL VOC 2012 segmentation",
    task="segmentation",
    train_split="train",
    test_split="val",
    expected={"train": 1_464, "val": 1_449, "trainval": 2_913},
    class_names=("background", *CLASS_NAMES),
    phrasings=_BACKGROUND + _PHRASINGS,
    options=_MASKS.options,
    homepage="http://host.robots.ox.ac.uk/pascal/VOC/voc2012/",
    layout=(
        ("VOC2012/ImageSets/Segmentation/{split}.txt", "ids; VOCdevkit/ may stand above"),
        ("VOC2012/SegmentationClass/*.png", "masks as palette PNGs, 255 on object borders"),
        ("VOC2012/JPEGImages/*.jpg", "images"),
    ),
    open=_MASKS.open,
    notes="VOC21 counts background as a class; with classes=voc20 its pixels are not counted. The"
    " two are not comparable.",
)

"""What data sets there are, whether a copy of one is whole, and what is in it.

The only program here that is no stage: it writes no features and reads no config file.
"""

import re
import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from dclip.store.paths import AnyPath, has_folders, is_remote, remote_errors
from dclip.words import counted
from pipeline.terminal.errors import StageError, UsageError, told
from pipeline.terminal.pages import page

if TYPE_CHECKING:
    import numpy as np

    from dclip.data.dataset import Dataset
    from dclip.data.listing import Listing
    from dclip.data.partition import Part
    from dclip.data.segmentation import SegmentationListing

    AnyListing = Listing | SegmentationListing


# What a sample key or file name tells of the split an image belongs to. Only full splits of these
# names are published, so a stranger means that folders or annotation files were exchanged.
_SIGNS: Mapping[str, Mapping[str, str]] = {
    "coco14": {"train2014": "COCO_train2014_", "val2014": "COCO_val2014_"},
    "ade20k": {"training": "ADE_train_", "validation": "ADE_val_"},
    "cityscapes": {
        "train": "(?!frankfurt|lindau|munster)",
        "val": "(frankfurt|lindau|munster)_",
    },
}

# COCO's annotation files name the split of every image in its address.
_COCO_ADDRESS = re.compile(rb"images\.cocodataset\.org/((?:train|val|test)20\d\d)/")
_HEAD_BYTES = 1 << 16

# Data sets with image-level labels of the same images, in the same folder.
_LABELLED: Mapping[str, tuple[str, Mapping[str, str]]] = {
    "voc12-seg": ("voc2012", {}),
    "coco17-seg": ("coco17", {"images": "all"}),
    "stuff": ("coco17", {"images": "all"}),
}
# With fewer samples, where classes lie in the image is chance.
_FAIR_SAMPLE = 24

_FEW_MASKS = 0.1
"""Share of masks without a counted object that a data set may have: crowds, rare landscapes."""

_LOOKED_AT = 1000
"""How many entries of a folder are looked at in search of a better root."""

_NAMED = 5
"""How many examples of a kind a message names."""


@dataclass
class Findings:
    """What a check found, in the order it looked.

    Attributes:
        lines: Kind (``ok``, ``note``, ``problem`` or ``remedy``), split (empty: all of them),
            and what was found.
        files: Whether a file that is expected is there, where, and what it is.
    """

    lines: list[tuple[str, str, str]] = field(default_factory=list)
    files: list[str] = field(default_factory=list)

    def add(self, kind: str, split: str, text: str) -> None:
        """Keep one finding."""
        self.lines.append((kind, split, text))

    @property
    def problems(self) -> list[str]:
        """Texts of the problems."""
        return [text for kind, _, text in self.lines if kind == "problem"]


# ---------------------------------------------------------------------------------------------
# list
# ---------------------------------------------------------------------------------------------


def table() -> str:
    """All registered data sets, one a line, and the ways to use one's own."""
    from dclip.data.registry import DATASETS

    head = ("name", "task", "classes", "train split", "test split", "options", "title")
    rows = [head, *map(_about, DATASETS.values())]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    ]
    return "\n".join(
        [
            *lines,
            "",
            f"Your own data, without code ({page('datasets')}):",
            "  folder:PATH       images and <split>.csv, .jsonl or .parquet with labels; or another"
            " tool's tree",
            "  webdataset:URLS   tars of images and labels; {split}, {000..009} and * are expanded",
            "  PATH.json         annotations in COCO's format; --root is the folder of the images",
            "PATH, and --root of coco, coco14 and coco17, may be s3://, gs://, http:// or https://.",
        ]
    )


def _about(found: "Dataset") -> tuple[str, ...]:
    """A row of the table."""
    options = [f"{option}={'|'.join(values)}" for option, values in found.options.items()]
    return (
        found.name,
        found.task,
        str(len(found.class_names)) if found.class_names else "any",
        _split_and_size(found, found.train_split),
        _split_and_size(found, found.test_split),
        " ".join(options) or "-",
        found.title,
    )


def _split_and_size(found: "Dataset", split: str | None) -> str:
    if split is None:
        return "-"
    images = found.expected.get(split)
    return split if images is None else f"{split} ({images:,})"


# ---------------------------------------------------------------------------------------------
# check
# ---------------------------------------------------------------------------------------------


def check(
    name: str,
    root: AnyPath | None,
    *,
    splits: Sequence[str] = (),
    options: Mapping[str, str] | None = None,
    limit: int | None = 32,
    cache: Path | None = None,
    test_fraction: float | None = None,
    split_seed: int = 0,
    backbone: str | None = None,
) -> Findings:
    """Compare a copy of a data set with what was published, and read images of it.

    What stages refuse before they begin (`pipeline.features.plan.preflight`) is a problem here.

    Args:
        name: As for `pipeline.features.plan.listings.open_listing`.
        root: Folder of it.
        splits: Which to look at; left out: those to train and report on.
        options: Settings of the data set.
        limit: Images to read of each split, evenly spread; None reads all, and compares the bytes
            of all.
        cache: As for `pipeline.features.plan.listings.open_listing`.
        test_fraction: Look at the two splits that are made of one with it; None: as they are.
        split_seed: Seed of that.
        backbone: The frozen CLIP whose prompts class names have to fit; None: the one that stages
            take.

    Raises:
        UsageError: An unknown data set, split or option, or ``splits`` beside ``test_fraction``.
    """
    from pipeline.features.listings import open_part, root_of, settle_options
    from pipeline.settings.config import usual_backbone

    if test_fraction is not None and splits:
        raise UsageError("--test-fraction makes the splits train and test; leave out --split")
    found = _registered(name)
    chosen = dict(options or {})
    findings = Findings()
    if found is not None:  # what is wrong usage is told at once, what is wrong on disk is a finding
        settle_options(found, chosen)
        unknown = sorted(set(splits) - found.expected.keys()) if found.expected else []
        if unknown:
            known = ", ".join(map(repr, found.expected))
            raise UsageError(f"unknown split {unknown[0]!r}; {name} has {known}")
        try:
            root_of(found, root)
        except UsageError as error:
            if root is not None and is_remote(root) and not found.takes_urls:
                raise
            findings.add("problem", "", _told(error).partition(";")[0])
            _expectations(found, root, splits or _usual_splits(found) or ["{split}"], findings)
            return findings
    listings: dict[str, AnyListing] = {}
    parts: dict[str, Part] = {}
    if test_fraction is not None:
        parts = {"train": "train", "test": "test"}
    try:
        wanted = list(splits or parts) or default_splits(name, root, chosen)
    except UsageError:
        if found is None or root is None or not has_folders(root):
            raise
        findings.add("problem", "", f"no {found.layout[0][0].format(split='*')} under {root}")
        if isinstance(root, Path):
            _remedies(found, root, ["*"], findings)
        _expectations(found, root, ["{split}"], findings)
        return findings
    for split in wanted:
        try:
            if split in parts:
                assert test_fraction is not None
                listings[split] = open_part(
                    name,
                    root,
                    parts[split],
                    chosen,
                    fraction=test_fraction,
                    seed=split_seed,
                    split=split,
                    cache=cache,
                )
            else:
                listings[split] = _open(name, root, split, chosen, cache)
            _check_split(found, root, listings[split], split, chosen, limit, cache, findings)
        except UsageError as error:
            if test_fraction is not None:
                raise
            findings.add("problem", split, _told(error))
        except (ValueError, OSError) as error:
            findings.add("problem", split, _told(error))
    _check_classes(found, listings, findings)
    _check_overlap(listings, limit is None, findings)
    _check_names(listings, backbone or usual_backbone({"dataset": name}), findings)
    _check_pair(name, root, found, wanted, is_asked=bool(splits), findings=findings)
    if found is not None and root is not None and len(listings) < len(wanted):
        if isinstance(root, Path):
            _remedies(found, root, [split for split in wanted if split not in listings], findings)
        for split in listings if not splits else ():
            findings.add("remedy", "", f"to check {split!r} alone: --split {split}")
    if found is not None and root is not None and findings.problems:
        _expectations(found, root, wanted, findings)
    return findings


def _told(error: Exception) -> str:
    """What an error says, without the advice to run this program."""
    from pipeline.features.listings import CHECK

    return told(error).partition(f"; {CHECK}")[0]


def default_splits(
    name: str, root: AnyPath | None, options: Mapping[str, str] | None = None
) -> list[str]:
    """Splits to look at when none is named.

    Raises:
        UsageError: The data set does not tell.
    """
    from dclip.data.coco import coco_splits
    from pipeline.features.listings import FOLDER, known_splits, path_of
    from pipeline.features.trees import folder_splits, no_labels

    found = _registered(name)
    names: list[str] = []
    if found is not None and found.expected:
        names = _usual_splits(found)
    elif found is not None and root is not None:
        names = coco_splits(root)
    elif name.startswith(FOLDER):
        folder = path_of(name.removeprefix(FOLDER))
        if has_folders(folder) and not folder.is_dir():
            raise UsageError(f"no folder {folder}; give one that holds images and tables of labels")
        names = folder_splits(folder, options)
        if not names and has_folders(folder):
            raise StageError(no_labels(folder))
    elif found is None:
        names = known_splits(name, root, options)
    if not names:
        raise UsageError(f"which split of {name!r}? Name it with --split")
    return sorted(names, key=lambda split: "train" not in split.casefold())


def _usual_splits(found: "Dataset") -> list[str]:
    """The splits to train and report on, where they are known."""
    pair = (found.train_split, found.test_split) if found.expected else ()
    return [split for split in pair if split is not None]


def _check_split(
    found: "Dataset | None",
    root: AnyPath | None,
    listing: "AnyListing",
    split: str,
    options: Mapping[str, str],
    limit: int | None,
    cache: Path | None,
    findings: Findings,
) -> None:
    """Everything that one split tells."""
    classes = len(listing.class_names)
    _check_count(found, listing, split, options, findings, classes)
    for note in getattr(listing, "notes", ()):
        findings.add("note", split, note)
    if found is not None:
        _check_signs(found, root, listing, split, findings)
    if not _check_files(listing, split, findings):
        return
    _check_labels(listing, split, findings)
    good = _check_images(listing, split, limit, findings)
    _check_label_map(root, listing, split, good, cache, findings)


def _check_count(
    found: "Dataset | None",
    listing: "AnyListing",
    split: str,
    options: Mapping[str, str],
    findings: Findings,
    classes: int,
) -> None:
    images = len(listing)
    expected = None if found is None else found.expected_images(split, options)
    there = f"{counted(images, 'image')}, {counted(classes, 'class', 'classes')}"
    if found is None or expected is None:
        findings.add("ok", split, f"{there}; there is no published count to compare with")
    elif images == expected:
        findings.add("ok", split, f"{there}, as published")
    elif images == found.expected_also.get(split):
        findings.add("note", split, f"{there}, as published; others have {expected:,}")
    else:
        like = _split_of_that_size(found, images)
        if like:
            hint = f"; {like} has as many, was one taken for the other?"
        else:
            hint = "; is the copy incomplete?" if images < expected else ""
        findings.add("problem", split, f"{there}, but {expected:,} images are published{hint}")


def _split_of_that_size(found: "Dataset", images: int) -> str:
    """A published split of exactly so many images, those of the same data set first."""
    from dclip.data.registry import DATASETS

    for other in (found, *DATASETS.values()):
        sizes = [other.expected.items()]
        sizes += [changed.items() for changed in other.expected_with.values()]
        for split, size in (pair for pairs in sizes for pair in pairs):
            if size == images:
                return f"split {split!r} of {other.name}"
    return ""


def _check_signs(
    found: "Dataset", root: AnyPath | None, listing: "AnyListing", split: str, findings: Findings
) -> None:
    """Whether names speak of another split than the one they were found in."""
    sign = _SIGNS.get(found.name, {}).get(split)
    if sign is not None:
        names: Sequence[str] = getattr(listing, "file_names", ()) or getattr(listing, "keys", ())
        strange = [one for one in names if not re.match(sign, one.rpartition("/")[2])]
        if strange:
            findings.add(
                "problem",
                split,
                f"{len(strange):,} images are of another split by their names, such as"
                f" {strange[0]}; were the splits exchanged?",
            )
    if root is None or not found.name.startswith("coco1"):
        return
    file = root / "annotations" / f"instances_{split}.json"
    if file.is_file():
        with file.open("rb") as opened, remote_errors(file):
            spoken = {match.decode() for match in _COCO_ADDRESS.findall(opened.read(_HEAD_BYTES))}
        if spoken and spoken != {split}:
            findings.add(
                "problem",
                split,
                f"{file} speaks of images of {', '.join(sorted(spoken))}; were splits or years"
                " exchanged?",
            )


def _check_files(listing: "AnyListing", split: str, findings: Findings) -> bool:
    """Whether the listed files are there, as far as the listing names files."""
    from pipeline.features.preflight import image_paths

    everything = image_paths(listing)
    paths = [path for path in everything if isinstance(path, Path)]
    if len(paths) < len(everything):
        findings.add("note", split, "remote images are asked for as they are read; --full: all")
        return True
    missing = [path for path in paths if not path.is_file()]
    if not missing:
        return True
    above = missing[0].parent.parent
    beside = sorted(above.iterdir()) if above.is_dir() else []
    other = next((folder for folder in beside if (folder / missing[0].name).is_file()), None)
    hint = f"; it is in {other}, were folders exchanged?" if other is not None else ""
    findings.add(
        "problem",
        split,
        f"{len(missing):,} of {len(paths):,} images are missing, such as {missing[0]}{hint}",
    )
    return len(missing) < len(paths)


def _check_labels(listing: "AnyListing", split: str, findings: Findings) -> None:
    """Classes without any image, images without any class."""
    from pipeline.features.preflight import label_problem

    labels = getattr(listing, "labels", None)
    if labels is None:
        return
    absent = [
        name
        for name, count in zip(listing.class_names, (labels == 1).sum(axis=0), strict=True)
        if count == 0
    ]
    if absent:
        names = ", ".join(absent[:_NAMED]) + (", ..." if len(absent) > _NAMED else "")
        findings.add(
            "note",
            split,
            f"{counted(len(absent), 'class occurs', 'classes occur')} in no image: {names}",
        )
    empty = int(((labels == 1).sum(axis=1) == 0).sum())
    if empty:
        findings.add("note", split, f"{counted(empty, 'image has', 'images have')} no class")
    problem = label_problem(listing)
    if problem:
        findings.add("problem", split, problem)
    unknown = int((labels == -1).sum())
    if unknown:
        findings.add(
            "note",
            split,
            f"{counted(unknown, 'label is', 'labels are')} unknown and will be left out",
        )


def _check_images(
    listing: "AnyListing", split: str, limit: int | None, findings: Findings
) -> list[int]:
    """Read images, and masks where there are any; positions of the good ones."""
    from dclip.data.images import ImageError
    from pipeline.features.preflight import spread

    rows = spread(len(listing), limit)
    good: list[int] = []
    failures: list[str] = []
    for row in rows:
        try:
            listing.read(row)
            good.append(row)
        except ImageError as error:
            failures.append(" ".join(str(error).split()))
    if failures:
        shown = "; ".join(failures[:2]) + ("; ..." if len(failures) > 2 else "")
        hint = "" if good else "; is this another format or numbering than the one below?"
        findings.add(
            "problem", split, f"{len(failures):,} of {len(rows):,} cannot be read: {shown}{hint}"
        )
    else:
        findings.add("ok", split, f"{len(good):,} read{'' if limit is None else ' as a sample'}")
    _check_masks(listing, split, good, findings)
    return good


def _check_masks(
    listing: "AnyListing", split: str, rows: Sequence[int], findings: Findings
) -> None:
    """Masks in which no object is counted, though there is one to be seen."""
    from dclip.data.segmentation import BACKGROUND, SegmentationListing, read_indices

    if not isinstance(listing, SegmentationListing) or not rows:
        return
    has_background = listing.class_names[0] == BACKGROUND
    files: Sequence[Path] = getattr(listing, "mask_paths", ())
    kinds: dict[str, list[int]] = {}
    for row in rows:
        stored = set(read_indices(files[row]).ravel().tolist()) if files else set()
        values = set(listing.read_mask(row).ravel().tolist())
        objects = values - {listing.ignore_index} - ({0} if has_background else set())
        if stored == {0, 255} or (not files and values == {0, 255} and has_background):
            kind = "hold only the values 0 and 255"
        elif values == {listing.ignore_index}:
            kind = "hold ignored pixels only"
        else:
            continue
        kinds.setdefault(f"{kind}{'' if objects else ', so that no object is counted'}", []).append(
            row
        )
    for kind, held in kinds.items():
        many = len(held) > _FEW_MASKS * len(rows)
        hint = "; save class numbers, not black and white" if "255" in kind else ""
        findings.add(
            "problem" if many else "note",
            split,
            f"{len(held):,} of {len(rows):,} masks {kind}, such as that of"
            f" {listing.key(held[0])}{hint if many else ''}",
        )


def _check_label_map(
    root: AnyPath | None,
    listing: "AnyListing",
    split: str,
    rows: Sequence[int],
    cache: Path | None,
    findings: Findings,
) -> None:
    """Signs that masks are read with a wrong label map."""
    from dclip.data.label_maps import label_map_doubts
    from dclip.data.listing import ImageListing
    from dclip.data.segmentation import SegmentationListing

    if not isinstance(listing, SegmentationListing) or not rows:
        return
    if len(rows) < _FAIR_SAMPLE:
        findings.add("note", split, f"{len(rows)} masks are too few to doubt the label map")
        return
    labelled = None
    if listing.name in _LABELLED:
        name, options = _LABELLED[listing.name]
        try:
            opened = _open(name, root, split, options, cache)
            labelled = opened if isinstance(opened, ImageListing) else None
        except ValueError as error:
            findings.add("note", split, f"no labels to compare the masks with: {_told(error)}")
    if labelled and not {labelled.key(row) for row in range(len(labelled))}.intersection(
        listing.key(row) for row in rows
    ):
        findings.add(
            "problem",
            split,
            f"no image is in {split} by the annotations of {labelled.name}; were the splits"
            " exchanged?",
        )
    doubts = label_map_doubts(listing, rows, labelled=labelled)
    for doubt in doubts[:_NAMED]:
        findings.add("problem", split, f"{doubt}; is the label map permuted?")
    if not doubts:
        findings.add("ok", split, "nothing speaks of a permuted label map")


def _check_names(listings: "Mapping[str, AnyListing]", backbone: str, findings: Findings) -> None:
    """Class names that cannot be prompts, or are one text to CLIP."""
    from pipeline.features.preflight import name_problems, one_text_note

    lists: dict[tuple[str, ...], Sequence[str]] = {}
    for listing in listings.values():
        phrasings = getattr(listing, "phrasings", ())
        every = [name for names in phrasings for name in names]
        lists[listing.class_names] = every or list(listing.class_names)
    for class_names, said in lists.items():
        for problem in name_problems(said, backbone=backbone):
            findings.add("problem", "", problem)
        if note := one_text_note(class_names):
            findings.add("note", "", note)
        if len(class_names) == 1:
            findings.add(
                "note", "", f"one class alone, {class_names[0]!r}: it has no cosine to another"
            )


def _check_classes(
    found: "Dataset | None", listings: "Mapping[str, AnyListing]", findings: Findings
) -> None:
    """Whether all splits have the classes of the training split, in whatever order."""
    from dclip.data.columns import match_columns

    opened = list(listings.items())
    usual = None if found is None else found.train_split
    train, first = next(((s, one) for s, one in opened if s in (usual, "train")), (None, None))
    if first is None and opened:
        train, first = opened[0]
    for split, listing in opened:
        if first is None or train is None or listing.class_names == first.class_names:
            continue
        try:
            match_columns(cast("Listing", listing), first.class_names, of=train)
            findings.add(
                "note",
                split,
                f"classes are in another order than those of {train!r}: columns are matched by"
                " name",
            )
        except ValueError as error:
            findings.add("problem", split, _told(error))


def _check_pair(
    name: str,
    root: AnyPath | None,
    found: "Dataset | None",
    splits: Sequence[str],
    *,
    is_asked: bool,
    findings: Findings,
) -> None:
    """What a stage has to be told where splits are not one to train on and one to test on."""
    from pipeline.features.listings import pair_of

    if is_asked or (found is not None and found.expected):
        return
    place = "" if root is None else f" --root {shlex.quote(str(root))}"
    command = f"python -m pipeline.run --dataset {shlex.quote(name)}{place}"
    if len(splits) == 1:
        findings.add("note", "", f"one split alone, {splits[0]!r}; a test needs images of its own")
        findings.add("remedy", "", f"to part it: {command} --test-fraction 0.2")
    elif not _usual_pair(name) <= set(splits):
        train, test = pair_of(splits)
        findings.add("note", "", f"splits are called {', '.join(map(repr, splits))}")
        findings.add(
            "remedy",
            "",
            f"to use them: {command} --train-split {shlex.quote(train)} --test-split"
            f" {shlex.quote(test)}",
        )


def _usual_pair(name: str) -> set[str]:
    """The splits that stages take of a data set where none is named."""
    from pipeline.settings.config import Config, yaml_layers

    usual = {key: Config.model_fields[key].default for key in ("train_split", "test_split")}
    for _, content in yaml_layers(name, []):
        usual |= {key: content[key] for key in usual if key in content}
    return set(usual.values())


def _check_overlap(
    listings: "Mapping[str, AnyListing]", everything: bool, findings: Findings
) -> None:
    """Images that are in two splits, or twice in the only one.

    A split made of two others is none of ours by default.
    """
    from pipeline.features.duplicates import find_overlap
    from pipeline.features.preflight import are_nested, places

    opened = [(split, one) for split, one in listings.items() if len(places(one))]
    if len(opened) == 1:
        split, listing = opened[0]
        overlap = find_overlap(listing, listing, everything=everything)
        twice = overlap.copies + overlap.alike
        if twice:
            first, second = twice[0]
            findings.add(
                "note",
                split,
                f"{len(twice):,} of the images have the same bytes as another one, such as"
                f" {listing.key(second)} and {listing.key(first)}; where one split is made two,"
                " copies may come into both: keep one of each",
            )
    for number, (split, listing) in enumerate(opened):
        for other_split, other in opened[number + 1 :]:
            if are_nested(split, other_split):
                continue
            overlap = find_overlap(listing, other, everything=everything)
            count = len(overlap.by_place) + len(overlap.copies)
            more = "" if overlap.is_whole else "; --full compares all"
            compared = f"compared {overlap.compared}{more}"
            if overlap.alike:
                first, second = overlap.alike[0]
                findings.add(
                    "note",
                    other_split,
                    f"{len(overlap.alike):,} small images have the same bytes as images of {split},"
                    f" such as {other.key(second)} and {listing.key(first)}: drawn or blank ones"
                    " may be alike by chance",
                )
            if not count:
                which = "no other image" if overlap.alike else "no image"
                findings.add("ok", other_split, f"{which} is in {split} as well, {compared}")
                continue
            if overlap.by_place:
                shown = other.key(overlap.by_place[0])
            else:
                first, second = overlap.copies[0]
                shown = f"{other.key(second)}, which has the bytes of {listing.key(first)}"
            findings.add(
                "problem",
                other_split,
                f"{count:,} images are in {split} as well, such as {shown} ({compared})",
            )


def _remedies(found: "Dataset", root: Path, missing: Sequence[str], findings: Findings) -> None:
    """What to do about files that are not where they should be, as far as one can tell."""
    from dclip.data.registry import DATASETS

    if not all(_is_whole(found, root, split) for split in missing):
        place = _better_root(found, root, missing)
        if place is not None:
            findings.add("remedy", "", f"the files are found from {place}: give --root {place}")
        for other in DATASETS.values():
            alike = other.task == found.task and other.expected and other.layout
            if alike and all(_is_whole(other, root, split) for split in _usual_splits(other)):
                findings.add(
                    "remedy",
                    "",
                    f"the files of {other.name} ({other.title}) are there: is that what you have?",
                )


def _is_whole(found: "Dataset", root: Path, split: str) -> bool:
    """Whether a file of every kind is there."""
    from pipeline.features.listings import layout_of

    return all(is_there for _, _, is_there in layout_of(found, root, split))


def _better_root(found: "Dataset", root: Path, splits: Sequence[str]) -> Path | None:
    """A folder above or below the root from which the files of some splits are found."""
    folder = root.absolute()
    below = [child for child in islice(folder.iterdir(), _LOOKED_AT) if child.is_dir()]
    deeper = (
        grandchild
        for child in below[:_NAMED]
        for grandchild in islice(child.iterdir(), _LOOKED_AT)
        if grandchild.is_dir()
    )
    for place in (*list(folder.parents)[:2], *sorted(below), *sorted(deeper)):
        if all(_is_whole(found, place, split) for split in splits):
            return place
    return None


def _expectations(
    found: "Dataset", root: AnyPath | None, splits: Sequence[str], findings: Findings
) -> None:
    """Which files are expected where, whether they are there, and whom to ask for them."""
    from pipeline.features.listings import layout_of

    place: AnyPath = Path("DIR") if root is None else root
    rows = dict.fromkeys(row for split in splits for row in layout_of(found, place, split))
    findings.files += [
        f"{'found  ' if is_there and root is not None else 'MISSING'} {place}/{pattern}: {what}"
        for pattern, what, is_there in rows
    ]
    findings.files.append(f"to be obtained from its official page: {found.homepage}")


def shown(name: str, root: AnyPath | None, findings: Findings) -> str:
    """Findings, a split after the other, and the files that are expected."""
    lines = [f"{name} at {root}" if root is not None else name]
    seen = ""
    for kind, split, text in findings.lines:
        if split != seen:
            lines.append(f"  {split or 'all splits'}:")
            seen = split
        word = kind.upper() if kind in ("problem", "remedy") else kind
        lines.append(f"    {word:8}{text}")
    if findings.files:
        lines += ["  files that are expected:", *(f"    {line}" for line in findings.files)]
    count = len(findings.problems)
    lines.append(f"  {counted(count, 'problem')}" if count else "  no problem found")
    return "\n".join(lines)


# ---------------------------------------------------------------------------------------------
# stats
# ---------------------------------------------------------------------------------------------


def stats(
    name: str,
    root: AnyPath | None,
    *,
    splits: Sequence[str] = (),
    options: Mapping[str, str] | None = None,
    limit: int = 1000,
    out: Path,
    cache: Path | None = None,
) -> Iterator[dict[str, Any]]:
    """Count and draw each split.

    Args:
        name: As for `pipeline.features.plan.listings.open_listing`.
        root: Folder of it.
        splits: Which to look at; left out: those to train and report on.
        options: Settings of the data set.
        limit: Samples to look at where labels are not listed, evenly spread.
        out: Folder of the pictures; made if missing.
        cache: As for `pipeline.features.plan.listings.open_listing`.

    Yields:
        For each split: images, images looked at, classes, and counts of labels.
    """
    from pipeline.pictures import figures
    from pipeline.pictures.canvas import save

    out.mkdir(parents=True, exist_ok=True)
    for split in splits or default_splits(name, root, options):
        listing = _open(name, root, split, options or {}, cache)
        class_names, labels, unreadable = presence(listing, limit)
        if not len(labels):
            raise StageError(f"no sample of {name} {split} can be read: {unreadable}")
        positives = labels == 1
        together = positives.T.astype("int64") @ positives
        slug = re.sub(r"[^A-Za-z0-9]+", "-", name.rpartition("/")[2]).strip("-")
        files = [out / f"{slug}-{split}-{what}.png" for what in ("classes", "cooccurrence")]
        counts = together.diagonal()
        title = f"{name.rpartition('/')[2]} {split}, {len(labels):,} of {len(listing):,} images"
        save(figures.class_histogram(counts, class_names, title), files[0])
        save(figures.cooccurrence(together, class_names, title), files[1])
        per_image = positives.sum(axis=1)
        yield {
            "dataset": name,
            "split": split,
            "images": len(listing),
            "looked_at": len(labels),
            "unreadable": unreadable,
            "classes": len(class_names),
            "labels_per_image": {
                "mean": round(float(per_image.mean()), 4),
                "min": int(per_image.min()),
                "max": int(per_image.max()),
                "none": int((per_image == 0).sum()),
            },
            "unknown": int((labels == -1).sum()),
            "images_of_class": dict(zip(class_names, counts.tolist(), strict=True)),
            "files": [str(file) for file in files],
        }


def presence(listing: "AnyListing", limit: int) -> "tuple[tuple[str, ...], np.ndarray, int]":
    """Class names and label vectors of a listing, and how many samples could not be read.

    Listed labels are all taken; else they are read from as many samples as ``limit`` says. Of masks
    they are those `pipeline.features.plan.listings.open_listing` has: background is none.
    """
    import numpy as np

    from dclip.data.segmentation import SegmentationListing, label_names
    from pipeline.features.listings import labels_of_masks
    from pipeline.features.preflight import spread
    from pipeline.terminal.progress import progress

    listed = getattr(listing, "labels", None)
    if listed is not None:
        return listing.class_names, cast("np.ndarray", listed), 0
    rows = spread(len(listing), limit)
    if isinstance(listing, SegmentationListing):
        vectors, failures = labels_of_masks(listing, rows)
        read = np.delete(vectors, list(failures), axis=0)
        return label_names(listing.class_names), read, len(failures)
    drawn = []
    with progress("stats", len(rows), "samples") as bar:
        for row in rows:
            drawn.append(listing.read(row).labels)
            bar.advance(1)
    return listing.class_names, np.stack(drawn), 0


def shown_stats(report: Mapping[str, Any]) -> str:
    """A report of stats in words."""
    each, counts = report["labels_per_image"], report["images_of_class"]
    looked = (
        "" if report["looked_at"] == report["images"] else f" ({report['looked_at']:,} looked at)"
    )
    order = sorted(counts, key=lambda name: -counts[name])

    def named(names: Sequence[str]) -> str:
        return ", ".join(f"{name} {counts[name]:,}" for name in names)

    lines = [
        f"{report['dataset']} {report['split']}: {counted(report['images'], 'image')}{looked},"
        f" {counted(report['classes'], 'class', 'classes')}",
        f"  labels per image  mean {each['mean']:.2f}, {each['min']} to {each['max']};"
        f" {counted(each['none'], 'image')} without",
        f"  most frequent     {named(order[:_NAMED])}",
        f"  least frequent    {named(order[::-1][:_NAMED])}",
    ]
    if report["unknown"]:
        lines.append(f"  unknown labels    {report['unknown']:,}")
    if report["unreadable"]:
        lines.append(f"  unreadable        {report['unreadable']:,} samples")
    lines += [f"  wrote {file}" for file in report["files"]]
    return "\n".join(lines)


# ---------------------------------------------------------------------------------------------
# Shared
# ---------------------------------------------------------------------------------------------


def _registered(name: str) -> "Dataset | None":
    """The registered data set of that name; None for the user's own."""
    from pipeline.features.listings import find_dataset, is_own

    return None if is_own(name) else find_dataset(name)


def _open(
    name: str, root: AnyPath | None, split: str, options: Mapping[str, str], cache: Path | None
) -> "AnyListing":
    from pipeline.features.listings import open_listing, open_segmentation

    found = _registered(name)
    if found is not None and found.task == "segmentation":
        return open_segmentation(name, root, split, options)
    return open_listing(name, root, split, options, cache=cache)

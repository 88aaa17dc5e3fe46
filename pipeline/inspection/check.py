"""Comparing a copy of a data set with what was published, and reading images of it."""

import re
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import cast

from dclip.data.columns import match_columns
from dclip.data.dataset import Dataset
from dclip.data.images import ImageError
from dclip.data.listing import Listing
from dclip.data.partition import Part
from dclip.data.registry import DATASETS
from dclip.store.paths import AnyPath, has_folders, is_remote, remote_errors
from dclip.words import counted
from pipeline.features.duplicates import find_overlap
from pipeline.features.listings import open_part, pair_of, root_of, settle_options
from pipeline.features.preflight import (
    are_nested,
    image_paths,
    label_problem,
    name_problems,
    one_text_note,
    places,
    spread,
)
from pipeline.inspection.findings import Findings
from pipeline.inspection.masks import check_label_map, check_masks
from pipeline.inspection.remedies import expectations, remedies
from pipeline.inspection.splits import (
    AnyListing,
    default_splits,
    open_split,
    registered,
    usual_splits,
    without_advice,
)
from pipeline.settings.config import Config, usual_backbone, yaml_layers
from pipeline.terminal.errors import UsageError

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

_NAMED = 5
"""How many examples of a kind a message names."""


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

    What stages refuse before they begin (`pipeline.features.preflight`) is a problem here.

    Args:
        name: As for `pipeline.features.listings.open_listing`.
        root: Folder of it.
        splits: Which to look at; left out: those to train and report on.
        options: Settings of the data set.
        limit: Images to read of each split, evenly spread; None reads all, and compares the bytes
            of all.
        cache: As for `pipeline.features.listings.open_listing`.
        test_fraction: Look at the two splits that are made of one with it; None: as they are.
        split_seed: Seed of that.
        backbone: The frozen CLIP whose prompts class names have to fit; None: the one that stages
            take.

    Raises:
        UsageError: An unknown data set, split or option, or ``splits`` beside ``test_fraction``.
    """
    if test_fraction is not None and splits:
        raise UsageError("--test-fraction makes the splits train and test; leave out --split")
    entry = registered(name)
    chosen = dict(options or {})
    findings = Findings()
    if entry is not None:  # what is wrong usage is told at once, what is wrong on disk is a finding
        settle_options(entry, chosen)
        unknown = sorted(set(splits) - entry.expected.keys()) if entry.expected else []
        if unknown:
            known = ", ".join(map(repr, entry.expected))
            raise UsageError(f"unknown split {unknown[0]!r}; {name} has {known}")
        try:
            root_of(entry, root)
        except UsageError as error:
            if root is not None and is_remote(root) and not entry.takes_urls:
                raise
            findings.add("problem", "", without_advice(error).partition(";")[0])
            expectations(entry, root, splits or usual_splits(entry) or ["{split}"], findings)
            return findings
    listings: dict[str, AnyListing] = {}
    parts: dict[str, Part] = {}
    if test_fraction is not None:
        parts = {"train": "train", "test": "test"}
    try:
        wanted = list(splits or parts) or default_splits(name, root, chosen)
    except UsageError:
        if entry is None or root is None or not has_folders(root):
            raise
        findings.add("problem", "", f"no {entry.layout[0][0].format(split='*')} under {root}")
        if isinstance(root, Path):
            remedies(entry, root, ["*"], findings)
        expectations(entry, root, ["{split}"], findings)
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
                listings[split] = open_split(name, root, split, chosen, cache)
            _check_split(entry, root, listings[split], split, chosen, limit, cache, findings)
        except UsageError as error:
            if test_fraction is not None:
                raise
            findings.add("problem", split, without_advice(error))
        except (ValueError, OSError) as error:
            findings.add("problem", split, without_advice(error))
    _check_classes(entry, listings, findings)
    _check_overlap(listings, limit is None, findings)
    _check_names(listings, backbone or usual_backbone({"dataset": name}), findings)
    _check_pair(name, root, entry, wanted, is_asked=bool(splits), findings=findings)
    if entry is not None and root is not None and len(listings) < len(wanted):
        if isinstance(root, Path):
            remedies(entry, root, [split for split in wanted if split not in listings], findings)
        for split in listings if not splits else ():
            findings.add("remedy", "", f"to check {split!r} alone: --split {split}")
    if entry is not None and root is not None and findings.problems:
        expectations(entry, root, wanted, findings)
    return findings


def _check_split(
    entry: Dataset | None,
    root: AnyPath | None,
    listing: AnyListing,
    split: str,
    options: Mapping[str, str],
    limit: int | None,
    cache: Path | None,
    findings: Findings,
) -> None:
    """Everything that one split tells."""
    classes = len(listing.class_names)
    _check_count(entry, listing, split, options, findings, classes)
    for note in getattr(listing, "notes", ()):
        findings.add("note", split, note)
    if entry is not None:
        _check_signs(entry, root, listing, split, findings)
    if not _check_files(listing, split, findings):
        return
    _check_labels(listing, split, findings)
    good = _check_images(listing, split, limit, findings)
    check_label_map(root, listing, split, good, cache, findings)


def _check_count(
    entry: Dataset | None,
    listing: AnyListing,
    split: str,
    options: Mapping[str, str],
    findings: Findings,
    classes: int,
) -> None:
    images = len(listing)
    expected = None if entry is None else entry.expected_images(split, options)
    there = f"{counted(images, 'image')}, {counted(classes, 'class', 'classes')}"
    if entry is None or expected is None:
        findings.add("ok", split, f"{there}; there is no published count to compare with")
    elif images == expected:
        findings.add("ok", split, f"{there}, as published")
    elif images == entry.expected_also.get(split):
        findings.add("note", split, f"{there}, as published; others have {expected:,}")
    else:
        like = _split_of_that_size(entry, images)
        if like:
            hint = f"; {like} has as many, was one taken for the other?"
        else:
            hint = "; is the copy incomplete?" if images < expected else ""
        findings.add("problem", split, f"{there}, but {expected:,} images are published{hint}")


def _split_of_that_size(entry: Dataset, images: int) -> str:
    """A published split of exactly so many images, those of the same data set first."""
    for other in (entry, *DATASETS.values()):
        sizes = [other.expected.items()]
        sizes += [changed.items() for changed in other.expected_with.values()]
        for split, size in (pair for pairs in sizes for pair in pairs):
            if size == images:
                return f"split {split!r} of {other.name}"
    return ""


def _check_signs(
    entry: Dataset, root: AnyPath | None, listing: AnyListing, split: str, findings: Findings
) -> None:
    """Whether names speak of another split than the one they were found in."""
    sign = _SIGNS.get(entry.name, {}).get(split)
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
    if root is None or not entry.name.startswith("coco1"):
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


def _check_files(listing: AnyListing, split: str, findings: Findings) -> bool:
    """Whether the listed files are there, as far as the listing names files."""
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


def _check_labels(listing: AnyListing, split: str, findings: Findings) -> None:
    """Classes without any image, images without any class."""
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
    listing: AnyListing, split: str, limit: int | None, findings: Findings
) -> list[int]:
    """Read images, and masks where there are any; positions of the good ones."""
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
    check_masks(listing, split, good, findings)
    return good


def _check_names(listings: Mapping[str, AnyListing], backbone: str, findings: Findings) -> None:
    """Class names that cannot be prompts, or are one text to CLIP."""
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
    entry: Dataset | None, listings: Mapping[str, AnyListing], findings: Findings
) -> None:
    """Whether all splits have the classes of the training split, in whatever order."""
    opened = list(listings.items())
    usual = None if entry is None else entry.train_split
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
            findings.add("problem", split, without_advice(error))


def _check_pair(
    name: str,
    root: AnyPath | None,
    entry: Dataset | None,
    splits: Sequence[str],
    *,
    is_asked: bool,
    findings: Findings,
) -> None:
    """What a stage has to be told where splits are not one to train on and one to test on."""
    if is_asked or (entry is not None and entry.expected):
        return
    root_flag = "" if root is None else f" --root {shlex.quote(str(root))}"
    command = f"python -m pipeline.run --dataset {shlex.quote(name)}{root_flag}"
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
    usual = {key: Config.model_fields[key].default for key in ("train_split", "test_split")}
    for _, content in yaml_layers(name, []):
        usual |= {key: content[key] for key in usual if key in content}
    return set(usual.values())


def _check_overlap(
    listings: Mapping[str, AnyListing], everything: bool, findings: Findings
) -> None:
    """Images that are in two splits, or twice in the only one.

    A split made of two others is none of ours by default.
    """
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

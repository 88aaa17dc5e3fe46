"""From what a user calls a data set to a listing: registered names, own folders, tars, COCO files.

Listings that take long to make are kept as Parquet, under a name that holds a hash of everything
they follow from: annotation files (path, size, and time of change or the checksum a remote store
tells), split, options.
"""

import json
import logging
import re
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from glob import escape, glob
from pathlib import Path
from typing import Any, cast

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from jaxtyping import Int8

from dclip.data.captions import read_captions
from dclip.data.coco import (
    ANNOTATIONS,
    OWN_OPTIONS,
    annotation_file_of,
    coco_splits,
    read_coco,
    with_own_options,
)
from dclip.data.coco_masks import is_painted, open_own_masks
from dclip.data.dataset import Dataset, settle
from dclip.data.folder import (
    CLASS_NAMES_FILE,
    find_tables,
    label_files,
    read_class_names_file,
    read_folder,
)
from dclip.data.image_files import images_of, is_there
from dclip.data.images import ImageError
from dclip.data.listing import ImageListing, Listing, check_key
from dclip.data.mask_files import with_masks
from dclip.data.partition import Part, take_part
from dclip.data.registry import DATASETS, get_dataset
from dclip.data.segmentation import SegmentationListing, label_names, mask_labels, with_labels
from dclip.data.tool_tables import METADATA
from dclip.data.webdataset_listing import WebdatasetListing, expand_tars, read_webdataset
from dclip.store.paths import AnyPath, RemotePath, as_path, atomic_write, has_folders, is_remote
from dclip.store.shards import digest
from dclip.words import counted
from pipeline.features.trees import find_tree, folder_splits, no_labels, own_tables, separator_of
from pipeline.terminal.errors import UsageError
from pipeline.terminal.progress import progress

log = logging.getLogger(__name__)

FORMAT = 3
"""Goes up when the same annotations would give another listing; caches depend on it."""

CHECK = "python -m pipeline.datasets check"
"""The program that tells more of a data set that cannot be opened."""

_CACHED = {"positives": 1, "unknown": -1, "absent": 0}
"""Columns of a cached listing that hold the classes of a label; what neither says is the third."""

_NAMED_SOURCES = 100
"""Of more files than that a cache keeps a hash, not names."""

FOLDER, WEBDATASET, CAPTIONS = "folder:", "webdataset:", "captions:"
SPLIT = "{split}"

OWN_DATA = "folder:PATH, webdataset:URLS, captions:PATH, PATH.json (COCO format)"
"""What else than a registered name can be opened."""


def open_listing(
    dataset: str,
    root: AnyPath | None,
    split: str,
    options: Mapping[str, str] | None = None,
    *,
    cache: Path | None = None,
) -> Listing:
    """Images and label vectors of one split; its paths are absolute, for workers elsewhere.

    Of a data set with masks, the labels of an image are the classes that have a pixel; background
    is none. That takes a pass over all masks, once where there is a cache.

    Args:
        dataset: A registered name; ``folder:PATH`` (`dclip.data.folder`); ``webdataset:URLS``
            (`dclip.data.webdataset_listing`); ``captions:PLACE`` (`dclip.data.captions`), whose
            images have no classes; or the path of an annotation file in COCO's format,
            in which ``{split}`` stands for the split. A path may be a URL (`dclip.store.paths`).
        root: Folder of a registered data set, or of the images of an annotation file.
        split: Which part of it.
        options: Settings of the data set by name; those left out take their default.
        cache: Folder for listings that take long to make; None to make them anew each time.

    Raises:
        UsageError: An unknown data set, split or option, or a root that is missing or of no use.
        ValueError: What is on disk cannot be used; the message names file and remedy.
        OSError: A file cannot be read, or a remote store not be reached.
    """
    chosen = dict(options or {})
    if dataset.startswith(FOLDER):
        _refuse_root(dataset, root)
        return _open_folder(path_of(dataset.removeprefix(FOLDER)), split, chosen, cache)
    if dataset.startswith(WEBDATASET):
        _refuse_root(dataset, root)
        return _open_webdataset(dataset.removeprefix(WEBDATASET), split, chosen, cache)
    if dataset.startswith(CAPTIONS):
        if chosen:
            raise UsageError(f"{dataset} takes no --options; there is {', '.join(chosen)}")
        return read_captions(dataset.removeprefix(CAPTIONS), split, images=root)
    if is_coco_file(dataset):
        return _open_coco_file(dataset, root, split, chosen, cache)
    entry = find_dataset(dataset)
    settled = settle_options(entry, chosen)
    folder = root_of(entry, root)
    if entry.task == "segmentation":
        return _open_labels_of_masks(entry, cast("Path", folder), split, settled, cache)

    def make() -> Listing:
        return cast("Listing", _open_registered(entry, folder, split, settled))

    sources = _annotation_files(entry, folder, split)
    return _cached(make, dataset, folder, split, settled, sources, cache)


def known_splits(
    dataset: str, root: AnyPath | None, options: Mapping[str, str] | None = None
) -> list[str]:
    """Splits that a data set is known to have, or is seen to have; none if it does not tell.

    One file or tar pattern without ``{split}`` is one split, ``all``.

    Args:
        dataset: As for `open_listing`.
        root: Folder of a registered data set.
        options: As for `open_listing`.

    Raises:
        UsageError: An unknown data set, or a folder that may be read in two ways.
        ValueError: A folder is another tool's, and something in it cannot be used.
        OSError: A remote store cannot be reached.
    """
    if dataset.startswith(FOLDER):
        return folder_splits(path_of(dataset.removeprefix(FOLDER)), options)
    if dataset.startswith(CAPTIONS):
        return []
    if is_own(dataset):
        place = dataset.removeprefix(WEBDATASET)
        return _splits_of_pattern(place) if SPLIT in place else ["all"]
    entry = find_dataset(dataset)
    if entry.expected:
        return list(entry.expected)
    return coco_splits(root) if root is not None else []


def pair_of(splits: Sequence[str]) -> tuple[str, str]:
    """Which of two splits or more are by their names the one to train on and the one to test on.

    Example:
        >>> pair_of(["test", "train", "val"]), pair_of(["a", "b"])
        (('train', 'test'), ('a', 'b'))
    """

    def unlike_test(split: str) -> int:
        return next((at for at, word in enumerate(("test", "val")) if word in split.casefold()), 2)

    train = next((split for split in splits if "train" in split.casefold()), splits[0])
    return train, min((split for split in splits if split != train), key=unlike_test)


def _splits_of_pattern(place: str) -> list[str]:
    """What stands for ``{split}`` in the local files that a pattern matches, sorted."""
    if not has_folders(path_of(place)):
        return []
    pattern, shape = "", ""
    for part in re.split(r"(\{[^{}]*\}|[*?])", str(path_of(place))):
        if part == SPLIT:
            pattern += "*"
            shape += r"(?P=split)" if "?P" in shape else r"(?P<split>[^/]+)"
        elif part[:1] in ("{", "*", "?"):
            pattern += "*"
            shape += r"[^/]*"
        else:
            pattern += escape(part)
            shape += re.escape(part)
    matches = (re.fullmatch(shape, path) for path in glob(pattern))  # noqa: PTH207
    return sorted({match["split"] for match in matches if match})


def open_part(
    dataset: str,
    root: AnyPath | None,
    part: Part,
    options: Mapping[str, str] | None = None,
    *,
    fraction: float,
    seed: int,
    split: str,
    cache: Path | None = None,
) -> Listing:
    """The training or the test images of a source that has one split alone.

    Args:
        dataset: As for `open_listing`.
        root: As for `open_listing`.
        part: Which of the two.
        options: As for `open_listing`.
        fraction: Share of the test part, above 0 and below 1.
        seed: Of the draw (`dclip.data.partition`).
        split: What to call the part.
        cache: As for `open_listing`.

    Raises:
        UsageError: The source has splits of its own, or does not tell which it has; or as for
            `open_listing`.
        ValueError: What is on disk cannot be used, or cannot be parted.
        OSError: A file cannot be read, or a remote store not be reached.
    """
    known = known_splits(dataset, root, options)
    if len(known) != 1:
        have = ", ".join(map(repr, known[:8])) + (", ..." if len(known) > 8 else "")
        raise UsageError(
            f"--test-fraction parts a source of one split; {dataset} has"
            f" {have or 'none that can be seen'}: leave it out, or leave one split there"
        )
    whole = open_listing(dataset, root, known[0], options, cache=cache)
    return take_part(whole, part, fraction=fraction, seed=seed, split=split)


def open_segmentation(
    dataset: str, root: AnyPath | None, split: str, options: Mapping[str, str] | None = None
) -> SegmentationListing:
    """Images and masks of one split of a registered data set, or of a COCO file with outlines.

    Raises:
        UsageError: An unknown data set, split or option, or no root; or the data set has no masks.
        ValueError: What is on disk cannot be used; the message names file and remedy.
    """
    if is_coco_file(dataset):
        _settle(OWN_OPTIONS, options or {})
        file, _, folders = _coco_places(dataset, root, split)
        return open_own_masks(file, folders, split=split)
    if is_own(dataset):
        raise _no_masks(dataset)
    entry = find_dataset(dataset)
    if entry.open_masks is not None:
        entry = replace(entry, open=entry.open_masks)
    elif entry.task != "segmentation":
        raise _no_masks(dataset)
    settled = settle_options(entry, options or {})
    return cast(
        "SegmentationListing", _open_registered(entry, root_of(entry, root), split, settled)
    )


def _no_masks(dataset: str) -> UsageError:
    have = [d.name for d in DATASETS.values() if d.task == "segmentation" or d.open_masks]
    return UsageError(
        f"dataset {dataset!r} has label vectors, no masks; {', '.join(have)} have, and your own "
        "files in COCO's format with outlines (PATH.json)"
    )


def is_own(dataset: str) -> bool:
    """Whether a data set is the user's own, with label vectors, and not a registered one."""
    return dataset.startswith((FOLDER, WEBDATASET, CAPTIONS)) or is_coco_file(dataset)


def is_coco_file(dataset: str) -> bool:
    """Whether a data set is the path of an annotation file in COCO's format."""
    return not dataset.startswith((FOLDER, WEBDATASET, CAPTIONS)) and dataset.lower().endswith(
        ".json"
    )


def path_of(place: str) -> AnyPath:
    """A path or URL that a user gave.

    Raises:
        UsageError: A URL that cannot be opened.
    """
    try:
        return as_path(place)
    except ValueError as error:
        raise UsageError(str(error)) from None


def find_dataset(name: str) -> Dataset:
    """A registered data set.

    Raises:
        UsageError: There is none of that name; the message has the nearest ones.
    """
    try:
        return get_dataset(name)
    except ValueError as error:
        place = path_of(name)
        kind = FOLDER if isinstance(place, Path) and place.is_dir() else ""
        kind = WEBDATASET if name.lower().endswith(".tar") else kind
        hint = f"; is it {kind}{name}?" if kind else f"; or {OWN_DATA}"
        raise UsageError(f"{error}{hint}") from None


def options_of(dataset: str, images: str | None, options: Mapping[str, str]) -> dict[str, str]:
    """Options as `open_listing` wants them, from the settings ``images`` and ``options``.

    ``images`` is a setting of its own that only data sets in COCO's format know; left out, each of
    them has its own default.

    Raises:
        UsageError: ``images`` is given and the data set does not know it, or ``options`` say
            something else.
    """
    if images is None:
        return dict(options)
    if not is_coco_file(dataset) and (
        is_own(dataset) or "images" not in find_dataset(dataset).options
    ):
        raise UsageError(f"--images {images} is for data sets in COCO's format, not {dataset!r}")
    if options.get("images", images) != images:
        raise UsageError(f"--images {images} and --options images={options['images']} differ")
    return {**options, "images": images}


def settle_options(entry: Dataset, options: Mapping[str, str]) -> dict[str, str]:
    """Every option of a data set with its value.

    Raises:
        UsageError: An option or value is not known.
    """
    return _settle(entry.options, options)


def root_of(entry: Dataset, root: AnyPath | None) -> AnyPath:
    """The root, which only a data set without files can do without.

    Raises:
        UsageError: It is needed and not given, no folder, or remote where it cannot be.
        OSError: A remote store cannot be reached.
    """
    if not entry.layout:
        return Path()
    expected = ", ".join(pattern for pattern, _ in entry.layout)
    tells = f"{CHECK} {entry.name} --root {root or 'DIR'} tells more"
    if root is None:
        raise UsageError(
            f"dataset {entry.name!r} needs --root DIR, the folder that has {expected}; {tells}"
        )
    if is_remote(root) and not entry.takes_urls:
        raise UsageError(
            f"dataset {entry.name!r} cannot be read from {root}; download it, or mount the store as"
            " a folder, and give that to --root"
        )
    if has_folders(root) and not root.is_dir():
        raise UsageError(
            f"--root {root} is no folder; {entry.name} needs one that has {expected}; {tells}"
        )
    return root.absolute()


def layout_of(entry: Dataset, root: AnyPath, split: str) -> list[tuple[str, str, bool]]:
    """The files one split of a data set needs: pattern, what they are, whether one is there.

    The split ``*`` stands for any.
    A web server is not asked for patterns: they count as there.
    """
    tops = {pattern.partition("/")[0] for pattern, _ in entry.layout}
    rows = []
    for pattern, what in entry.layout:
        # adapters accept these places as well: see find_voc, find_coco_split, find_stuff_maps
        places = [pattern, *(f"{top}/{pattern}" for top in ("VOCdevkit", "images", "annotations"))]
        places += ["{split}/_annotations.coco.json"] if pattern == ANNOTATIONS else []
        if len(tops) == 1:
            places.append(pattern.partition("/")[2])
        is_there = any(_is_there(root, place, split) for place in places)
        rows.append((pattern.format(split=split), what.format(split=split), is_there))
    return rows


def _is_there(root: AnyPath, pattern: str, split: str) -> bool:
    if has_folders(root):
        name = split if split == "*" else escape(split)
        return next(iter(root.glob(pattern.format(split=name))), None) is not None
    return "*" in pattern or (root / pattern.format(split=split)).is_file()


def _open_registered(
    entry: Dataset, folder: AnyPath, split: str, options: Mapping[str, str]
) -> Listing | SegmentationListing:
    """Open; a split or root that does not hold what it should is the user's mistake."""
    try:
        return entry.open(cast("Path", folder), split, options)  # root_of refuses wrong kinds
    except ValueError as error:
        is_whole = all(is_there for _, _, is_there in layout_of(entry, folder, split))
        if is_whole and (not entry.expected or split in entry.expected):
            raise
        more = f"{CHECK} {entry.name} --root {folder} tells more"
        raise UsageError(f"{error}; {more}") from None


def _open_labels_of_masks(
    entry: Dataset, folder: Path, split: str, options: Mapping[str, str], cache: Path | None
) -> Listing:
    """Label vectors from masks; a warning names what could not be read."""

    def open_masks() -> Any:
        return _open_registered(entry, folder, split, options)

    painted = is_painted(options)  # then a file is all there is; opening it is what takes long
    opened = None if painted else open_masks()

    def make() -> Listing:
        masks = open_masks() if opened is None else opened
        labels, failures = labels_of_masks(masks, range(len(masks)))
        reasons = "; ".join(list(failures.values())[:3])
        if 2 * len(failures) > len(masks):
            raise ValueError(
                f"{len(failures)} of {len(masks)} masks of {entry.name} {split} cannot be read"
                f" ({reasons}); is this another format? {CHECK} {entry.name} --root {folder} tells"
                " more"
            )
        if failures:
            log.warning("masks that cannot be read: %s", reasons)
        return with_labels(masks, labels, options)

    sources = _annotation_files(entry, folder, split) if opened is None else opened.mask_paths
    listing = _cached(make, entry.name, folder, split, options, sources, cache)
    unknown = np.flatnonzero((cast("ImageListing", listing).labels == -1).all(axis=1))
    if len(unknown):
        log.warning(
            "%s %s: %d of %d masks cannot be read, such as that of %s; the labels of these images"
            " are unknown and left out of loss and metrics",
            entry.name,
            split,
            len(unknown),
            len(listing),
            listing.key(int(unknown[0])),
        )
    return listing


def labels_of_masks(
    listing: SegmentationListing, rows: Sequence[int]
) -> tuple[Int8[np.ndarray, "rows classes"], dict[int, str]]:
    """Label vectors of some masks, -1 throughout where one cannot be read, and why it cannot."""
    names = listing.class_names
    labels = np.full((len(rows), len(label_names(names))), -1, np.int8)
    failures = {}
    what = f"labels of {listing.name} {listing.split}"
    with progress(what, len(rows), "masks") as bar:
        for number, row in enumerate(rows):
            try:
                labels[number] = mask_labels(listing.read_mask(row), names)
            except ImageError as error:
                failures[number] = " ".join(str(error).split())
            bar.advance(1)
    return labels, failures


def _open_folder(
    folder: AnyPath, split: str, options: Mapping[str, str], cache: Path | None
) -> Listing:
    _known_options("folder:", options, ("separator", "format", "masks", "mask_void"))
    plain = {key: value for key, value in options.items() if key not in ("masks", "mask_void")}
    listing = _open_plain_folder(folder, split, plain, cache)
    if "masks" not in options:
        if "mask_void" in options:
            raise UsageError("option mask_void is for masks; give their folder by masks=DIR, too")
        return listing
    void = options.get("mask_void")
    if void is not None and not (void.isdecimal() and int(void) < 256):
        raise UsageError(f"option mask_void must be a number from 0 to 255, got {void!r}")
    if not isinstance(folder, Path) or not isinstance(listing, ImageListing):
        raise UsageError(f"option masks is for a folder on a disk, not {folder}")
    place = folder.absolute() / options["masks"]
    return with_masks(listing, place, void=None if void is None else int(void))


def _open_plain_folder(
    folder: AnyPath, split: str, options: Mapping[str, str], cache: Path | None
) -> Listing:
    if has_folders(folder) and not folder.is_dir():
        raise UsageError(f"no folder {folder}; give one that holds images and a table of labels")
    folder = folder.absolute()
    tree = find_tree(folder, options)
    if tree is not None:
        if split not in tree.splits:
            raise UsageError(
                f"no split {split!r} in {folder} ({tree.evidence}); splits there are"
                f" {', '.join(map(repr, tree.splits))}"
            )
        if "separator" in options and tree.format != METADATA:
            raise UsageError(f"option separator is for tables of labels, not format={tree.format}")

        def make() -> Listing:
            listing = tree.read(split)
            how = [f"read as format={tree.format}: {tree.evidence}"]
            tables = [table.name for table in own_tables(folder)]
            if tables:
                many = f"{counted(len(tables), 'table')}, such as {tables[0]}"
                how.append(f"passed over, as no labels of a split: {many}")
            return replace(listing, notes=(*how, *listing.notes))

        return _cached(make, "folder", folder, split, options, tree.sources(), cache)
    if has_folders(folder) and not find_tables(folder):
        raise UsageError(no_labels(folder))
    separator = separator_of(options)
    images = images_of(folder, leave_out=cache) if isinstance(folder, Path) else None
    return _cached(
        lambda: read_folder(folder, split, separator=separator, images=images),
        "folder",
        folder,
        split,
        {"separator": separator, "images": digest({"images": images})},  # a note tells of these
        label_files(folder, split),
        cache,
    )


def _open_webdataset(
    urls: str, split: str, options: Mapping[str, str], cache: Path | None
) -> Listing:
    _known_options("webdataset:", options, ("class_names", "labels"))
    numbers_as: Any = options.get("labels")
    if numbers_as not in (None, "columns", "vectors"):
        raise UsageError(f"option labels must be columns or vectors, not {numbers_as!r}")
    try:
        tars = expand_tars(urls, split)
    except ValueError as error:
        raise UsageError(str(error)) from None
    paths = [as_path(tar).absolute() for tar in tars]
    tars = tuple(map(str, paths))
    names_file = options.get("class_names")
    names = path_of(names_file) if names_file else paths[0].parent / CLASS_NAMES_FILE
    if not names.is_file():
        raise UsageError(
            f"no class names at {names}; write them there, one class a line in column order, or"
            " name another file with the option class_names=FILE"
        )

    def make() -> Listing:
        classes = read_class_names_file(names)
        listing = read_webdataset(tars, split, classes.names, numbers_as=numbers_as)
        return replace(listing, notes=(*classes.notes, *listing.notes))

    return _cached(
        make,
        "webdataset",
        names.parent,
        split,
        options,
        [*paths, names],
        cache,
    )


def _open_coco_file(
    pattern: str, root: AnyPath | None, split: str, options: Mapping[str, str], cache: Path | None
) -> Listing:
    file, top, there = _coco_places(pattern, root, split)
    chosen = _settle(OWN_OPTIONS, options)

    def make() -> Listing:
        images: Any = chosen["images"]
        listing = read_coco(file, there[0], images=images, also=there[1:])
        return with_own_options(replace(listing, split=split, options=chosen))

    return _cached(make, "coco", top, split, chosen, [file], cache)


def _coco_places(
    pattern: str, root: AnyPath | None, split: str
) -> tuple[AnyPath, AnyPath, list[AnyPath]]:
    """The annotation file of a split, the folder of the images, and where in it they may lie."""
    file = path_of(pattern.replace("{split}", split))
    if not file.is_file():
        raise UsageError(f"no annotation file {file}")
    top = (root or file.parent).absolute()
    if has_folders(top) and not top.is_dir():
        raise UsageError(f"no image folder {top}; give the folder of the images to --root")
    folders = (top / split, top, top / "images" / split, top / "images")
    return file, top, [folder for folder in folders if not has_folders(top) or folder.is_dir()]


def _refuse_root(dataset: str, root: AnyPath | None) -> None:
    if root is not None:
        raise UsageError(f"dataset {dataset!r} says where it is; leave out --root {root}")


def _settle(known: Mapping[str, tuple[str, ...]], options: Mapping[str, str]) -> dict[str, str]:
    try:
        return settle(known, options)
    except ValueError as error:
        raise UsageError(str(error)) from None


def _known_options(what: str, options: Mapping[str, str], known: Sequence[str]) -> None:
    for option in options:
        if option not in known:
            raise UsageError(f"unknown option {option!r}; {what} has {', '.join(known)}")


# ---------------------------------------------------------------------------------------------
# The cache
# ---------------------------------------------------------------------------------------------


def _annotation_files(entry: Dataset, folder: AnyPath, split: str) -> list[AnyPath] | None:
    """The files a listing follows from, where a few JSON files say it all; else None."""
    patterns = [pattern for pattern, _ in entry.layout if pattern.endswith(".json")]
    files = [
        annotation_file_of(folder, split)
        if pattern == ANNOTATIONS
        else folder / pattern.format(split=split)
        for pattern in patterns
    ]
    return files if files and all(file.is_file() for file in files) else None


def _cached(
    make: Callable[[], Listing],
    dataset: str,
    folder: AnyPath,
    split: str,
    options: Mapping[str, str],
    sources: Sequence[AnyPath] | None,
    cache: Path | None,
) -> Listing:
    """The listing from the cache, or made and put there; made anew where that cannot be done."""
    if cache is None or sources is None:
        return make()
    try:
        with ThreadPoolExecutor(16) as pool:  # a remote store takes its time for each
            states = list(pool.map(_state, sources))
    except OSError:
        return make()  # which says what is wrong
    if None in states:
        return make()
    about = {
        "format": FORMAT,
        "dataset": dataset,
        "folder": str(folder.absolute()),
        "split": split,
        "options": dict(options),
        "sources": states if len(states) <= _NAMED_SOURCES else digest({"files": states}),
    }
    slug = "".join(c if c.isalnum() or c in "-_" else "-" for c in f"{dataset}-{split}")
    path = cache / f"{slug[:80]}-{digest(about)[:16]}.parquet"
    listing = _read_cache(path)
    if listing is None or _is_astray(listing):
        listing = make()
        try:
            cache.mkdir(parents=True, exist_ok=True)
            _write_cache(path, listing, about)
        except OSError as error:
            log.warning("listing of %s %s is not cached: %s", dataset, split, error)
    return listing


def _is_astray(listing: Listing) -> bool:
    """Whether the first image of a cached listing is not there; another place may have it now."""
    if not isinstance(listing, ImageListing) or not isinstance(listing.image_dir, Path):
        return False
    return not is_there(listing.image_dir / listing.file_names[0])


def _state(path: AnyPath) -> list[str | int] | None:
    """What changes when a file does: path, size, and time of change or what a store has for it.

    None if the store has nothing.
    """
    if not isinstance(path, RemotePath):
        stat = path.stat()
        return [str(path.absolute()), stat.st_size, stat.st_mtime_ns]
    info = path.info()
    keys = ("ETag", "etag", "LastModified", "Last-Modified")
    mark = next((str(info[key]) for key in keys if info.get(key)), None)
    return None if mark is None else [str(path), info["size"], mark]


def _write_cache(path: Path, listing: Listing, about: Mapping[str, Any]) -> None:
    """Write a listing, one row a sample; kinds that do not follow from their rows are left out."""
    if not isinstance(listing, ImageListing | WebdatasetListing):
        return
    labels = listing.labels
    head: dict[str, Any] = {
        "kind": type(listing).__name__,
        "about": about,
        "name": listing.name,
        "split": listing.split,
        "class_names": list(listing.class_names),
        "labels": str(labels.dtype),
        "identity": listing.identity(),
        "notes": list(listing.notes),
    }
    columns = {"key": pa.array(listing.keys, pa.string())}
    if isinstance(listing, ImageListing):
        head |= {"image_dir": str(listing.image_dir.absolute()), "options": dict(listing.options)}
        columns["file_name"] = pa.array(listing.file_names, pa.string())
    else:
        head["tars"] = list(listing.tars)
        columns |= {
            "tar": pa.array(listing.tar_of),
            "offset": pa.array(listing.offsets),
            "size": pa.array(listing.sizes),
        }
    # what most labels are is not listed: of LVIS's nearly all are unknown, 120 million of them
    other = "absent" if 2 * np.count_nonzero(labels == -1) > labels.size else "unknown"
    for column in ("positives", other):
        rows, places = np.nonzero(labels == _CACHED[column])
        ends = np.searchsorted(rows, np.arange(len(labels) + 1)).astype(np.int32)
        columns[column] = pa.ListArray.from_arrays(ends, pa.array(places.astype(np.int32)))
    table = pa.table(columns).replace_schema_metadata({"listing": json.dumps(head)})
    with atomic_write(path) as temporary:
        pq.write_table(table, temporary, compression="zstd")


def _read_cache(path: Path) -> Listing | None:
    """A listing as it was written; None if there is none, or it cannot be used (any more)."""
    if not path.is_file():
        return None
    try:
        return _load_cache(path)
    except (pa.ArrowException, OSError, ValueError, LookupError, TypeError, MemoryError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        log.warning("cached listing %s cannot be used (%s); it is made anew", path, reason)
        return None


def _load_cache(path: Path) -> Listing | None:
    """A listing as it was written; None if its images are gone."""
    # read_table and to_numpy would import pandas, which takes longer than all of this
    with pq.ParquetFile(path) as file:
        table = file.read()
    head = json.loads((table.schema.metadata or {})[b"listing"])
    rest = 0 if "unknown" in table.column_names else -1
    labels = np.full((table.num_rows, len(head["class_names"])), rest, head["labels"])
    for column, value in _CACHED.items():
        if column not in table.column_names:
            continue
        lists = table[column].combine_chunks()
        counts = np.diff(np.from_dlpack(lists.offsets))
        rows = np.repeat(np.arange(table.num_rows), counts)
        if len(rows):
            labels[rows, np.from_dlpack(lists.flatten())] = value
    keys = tuple(map(check_key, table["key"].to_pylist()))
    names = tuple(head["class_names"])
    notes = tuple(head.get("notes", ()))
    listing: Listing
    if head["kind"] == "WebdatasetListing":
        listing = WebdatasetListing(
            split=head["split"],
            class_names=names,
            tars=tuple(head["tars"]),
            keys=keys,
            tar_of=np.from_dlpack(table["tar"].combine_chunks()),
            offsets=np.from_dlpack(table["offset"].combine_chunks()),
            sizes=np.from_dlpack(table["size"].combine_chunks()),
            labels=labels,
            notes=notes,
        )
    else:
        listing = ImageListing(
            name=head["name"],
            split=head["split"],
            class_names=names,
            image_dir=as_path(head["image_dir"]),
            keys=keys,
            file_names=tuple(table["file_name"].to_pylist()),
            labels=labels,
            options=head["options"],
            notes=notes,
        )
        if has_folders(listing.image_dir) and not listing.image_dir.is_dir():
            return None  # the adapter knows where else to look, and what to say
    if listing.identity() != head["identity"]:
        raise ValueError("its content changed since it was written")
    return listing

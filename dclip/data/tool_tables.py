"""Tables of labels where other tools put them: Hugging Face's metadata, Roboflow's classes."""

from collections.abc import Sequence
from pathlib import Path, PurePosixPath

from dclip.data.folder import CLASS_NAMES_FILE, read_tables
from dclip.data.listing import ImageListing
from dclip.data.tables import columns_of, read_table
from dclip.data.trees import ONE_SPLIT, Tree, in_split_order, list_folder, split_kind

METADATA, CLASSES = "huggingface", "roboflow"
"""The formats, in the option ``format``."""

METADATA_FILES = ("metadata.csv", "metadata.jsonl", "metadata.parquet")
"""What Hugging Face's imagefolder reads."""

CLASSES_FILE = "_classes.csv"
"""What Roboflow exports labels of images to."""

UNLABELLED = "unlabeled"
"""Roboflow's column of images that nobody labelled, in letters of any size."""


def find_metadata(folder: Path, *, separator: str = ";") -> Tree | None:
    """A tree of Hugging Face's imagefolder that has metadata, of all images or beside each split's.

    Metadata of all images has splits where its paths begin with their folders, each called train,
    val, test or the like, or where it has a column ``split``; else it is one split, ``train``.

    Args:
        folder: Of the tree.
        separator: Between labels in a string.

    Raises:
        ValueError: If there is more than one file of metadata in a folder, or one for all images
            and others below; or it cannot be read.
        OSError: If a file cannot be read.
    """
    tables = _find(folder, METADATA_FILES)
    for path in tables.values():
        if "file_name" not in columns_of(path):
            return None  # a table of one's own, or something else
    if "" not in tables:
        return _tree(METADATA, folder, tables, separator=separator) if tables else None
    path = tables[""]
    try:
        table = read_table(path, separator=separator)
    except ValueError:
        return _tree(METADATA, folder, {ONE_SPLIT: path}, separator=separator)  # which says why
    files = [_plain(file) for file in table.files]
    if table.splits is not None:
        where = {file: split for file, split in zip(files, table.splits, strict=True) if split}
    else:
        where = {file: PurePosixPath(file).parts[0] for file in files}
        if not all(split_kind(where[file]) and "/" in file for file in files):
            where = dict.fromkeys(files, ONE_SPLIT)
    tables = dict.fromkeys(sorted(set(where.values())), path)
    return _tree(METADATA, folder, tables, where, separator=separator)


def find_classes_csv(folder: Path) -> Tree | None:
    """A tree that Roboflow exported for multi-label classification.

    Raises:
        ValueError: If there is a table for all images, and others below.
        OSError: If a file cannot be read.
    """
    tables = _find(folder, (CLASSES_FILE,))
    if not tables:
        return None
    return _tree(CLASSES, folder, {split or ONE_SPLIT: path for split, path in tables.items()})


def is_metadata(path: Path) -> bool:
    """Whether a table is Hugging Face's metadata, or Roboflow's, and not one of one's own."""
    if path.name == CLASSES_FILE:
        return True
    try:
        return path.name in METADATA_FILES and "file_name" in columns_of(path)
    except ValueError:
        return False


def _find(folder: Path, names: Sequence[str]) -> dict[str, Path]:
    """Tables of some names: in the folder itself as "", and in those below by their names."""
    found: dict[str, Path] = {}
    for split in ("", *list_folder(folder, folder)[0]):
        paths = [path for name in names if (path := folder / split / name).is_file()]
        if len(paths) > 1:
            raise ValueError(f"{paths[0]} and {paths[1].name} are both there; keep one of them")
        if paths:
            found[split] = paths[0]
    if len(found) > 1 and "" in found:
        other = next(path for split, path in found.items() if split)
        raise ValueError(f"{found['']} and {other} are both there; keep one of them")
    return found


def _tree(
    name: str,
    folder: Path,
    tables: dict[str, Path],
    where: dict[str, str] | None = None,
    *,
    separator: str = ";",
) -> Tree:
    """A tree whose splits have tables; ``where`` is the split of an image, if one has several."""
    names_file = folder / CLASS_NAMES_FILE
    paths = dict.fromkeys(tables.values())

    def read(split: str) -> ImageListing:
        def is_of(file: str) -> bool:
            return where is None or where.get(_plain(file)) == split

        return read_tables(
            folder,
            split,
            tables,
            is_of_split=is_of,
            separator=separator,
            unlabelled=UNLABELLED if name == CLASSES else None,
        )

    return Tree(
        name,
        str(next(iter(paths)).relative_to(folder)),
        in_split_order(list(tables)),
        read,
        lambda: [*paths, *([names_file] if names_file.is_file() else [])],
    )


def _plain(file: str) -> str:
    return str(PurePosixPath(file.replace("\\", "/")))

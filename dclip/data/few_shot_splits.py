"""Data sets of the few-shot protocol on disk: files of splits, other lists, folders of classes.

Where CoOp's code takes files in the order in which the disk lists them, they are sorted here: a
split that is made may differ from one that it makes. A ``split_zhou_*.json`` says the order.
"""

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from random import Random
from typing import NamedTuple

import numpy as np

from dclip.data.class_folders import find_class_folders, read_class_folders
from dclip.data.few_shot import SPLIT_SEED, split_in_three, split_off
from dclip.data.folder import file_keys
from dclip.data.label_text import short
from dclip.data.listing import ImageListing
from dclip.data.trees import ONE_SPLIT, Tree, find_below, list_folder, make_listing, split_kind
from dclip.texts import check_class_names, fold_name
from dclip.words import counted

FORMAT = "few-shot"

SPLITS = ("train", "val", "test")

_SPLIT_FILES = "split_zhou_*.json"
_MAX_BYTES = 1 << 28
_AIRCRAFT = ("variants.txt", "images_variant_{}.txt")
_IMAGENET = "classnames.txt"
_PETS = ("annotations/trainval.txt", "annotations/test.txt")
_SCENES = ("SUN397/ClassName.txt", "SUN397/Training_01.txt", "SUN397/Testing_01.txt")
_ACTIONS = tuple(
    f"ucfTrainTestlist/{name}.txt" for name in ("classInd", "trainlist01", "testlist01")
)

# what CoOp leaves out of Caltech 101 and calls otherwise
_CALTECH_LEFT_OUT = ("BACKGROUND_Google", "Faces_easy")
_CALTECH = {
    "airplanes": "airplane",
    "Faces": "face",
    "Leopards": "leopard",
    "Motorbikes": "motorbike",
}
_EUROSAT = {
    "AnnualCrop": "Annual Crop Land",
    "Forest": "Forest",
    "HerbaceousVegetation": "Herbaceous Vegetation Land",
    "Highway": "Highway or Road",
    "Industrial": "Industrial Buildings",
    "Pasture": "Pasture Land",
    "PermanentCrop": "Permanent Crop Land",
    "Residential": "Residential Buildings",
    "River": "River",
    "SeaLake": "Sea or Lake",
}


def scene_name(path: str) -> str:
    """SUN397's name of a folder: without its letter, the words of the path from the last on.

    Example:
        >>> scene_name("/a/apartment_building/outdoor")
        'outdoor apartment building'
    """
    return " ".join(path.strip("/").split("/")[1:][::-1]).replace("_", " ")


def action_name(name: str) -> str:
    """UCF101's name in words.

    Example:
        >>> action_name("ApplyEyeMakeup")
        'Apply Eye Makeup'
    """
    return " ".join(re.findall("[A-Z][^A-Z]*", name)) or name


def find_few_shot(folder: Path, *, is_sure: bool = False) -> Tree | None:
    """A data set of the few-shot protocol, if that is what a folder is.

    * with one ``split_zhou_*.json``: as that says;
    * FGVC-Aircraft: ``variants.txt`` and ``images_variant_{train,val,test}.txt``;
    * Oxford Pets, SUN397 and UCF101 (middle frames) by their own lists, where there is no such
      file: training images parted 80/20;
    * ImageNet: ``classnames.txt`` and folders ``train`` and ``val``, in ``images`` or not; its
      validation images are both ``val`` and ``test``;
    * only where the user says so, a folder per class: without splits parted 50/20/30; with
      training and test images, the former parted 80/20.

    Args:
        folder: Of the data set.
        is_sure: Whether the user says that it is one.

    Raises:
        ValueError: There are several files of splits, or classes cannot be told from splits.
        OSError: A folder cannot be read.
    """
    files = sorted(folder.glob(_SPLIT_FILES))
    if len(files) > 1:
        told = " and ".join(path.name for path in files)
        raise ValueError(f"{folder} has the splits {told}; keep one of them")
    if files:
        return _tree(files[0].name, partial(read_split, folder, files[0]), files)
    tables = [folder / _AIRCRAFT[0], *(folder / _AIRCRAFT[1].format(split) for split in SPLITS)]
    if all(path.is_file() for path in tables):
        return _tree(_AIRCRAFT[0], partial(_read_aircraft, folder), tables)
    for read, lists in ((_pets, _PETS), (_scenes, _SCENES), (_actions, _ACTIONS)):
        tables = [folder / name for name in lists]
        if all(path.is_file() for path in tables):
            return _tree(lists[-1], partial(_official, folder, read), tables)
    names = folder / _IMAGENET
    if names.is_file():
        top = next((top for top in (folder / "images", folder) if (top / "train").is_dir()), None)
        if top is not None and (top / "val").is_dir():
            places = [names, top / "train", top / "val"]
            return _tree(_IMAGENET, partial(_read_imagenet, folder, top), places)
    tree = find_class_folders(folder, is_sure=True) if is_sure else None
    if tree is None:
        return None
    kinds = {split_kind(split) for split in tree.splits}
    if tree.splits != (ONE_SPLIT,) and not {"train", "test"} <= kinds:
        raise ValueError(
            f"{folder} has the splits {', '.join(tree.splits)}; the few-shot protocol takes a"
            " training and a test split, or one folder of classes"
        )
    return replace(tree, format=FORMAT, splits=SPLITS, read=partial(_made, folder, tree))


def _tree(evidence: str, read: Callable[[str], ImageListing], sources: Sequence[Path]) -> Tree:
    return Tree(FORMAT, evidence, SPLITS, read, lambda: list(sources))


class _Item(NamedTuple):
    """An entry of a file of splits."""

    path: str
    label: int
    name: str


def read_split(folder: Path, file: Path, split: str) -> ImageListing:
    """A split of a ``split_zhou_*.json``, in its order.

    The file is an object with ``train``, ``val`` and ``test``, each a list of [path, number of the
    class, name of the class]. Paths are relative to the folder, or to a folder in it.

    Args:
        folder: Of the data set.
        file: The splits.
        split: One of `SPLITS`.

    Raises:
        ValueError: The file is no such object; a class has two names, or a name two classes, or
            numbers leave a gap; an image lies in the folder of another class; an image is not
            there, or there twice.
        OSError: It cannot be read.
    """
    items = _read_items(file)
    names = _names_of(file, items)
    _check_folders(file, items, names)
    top = _image_folder(folder, file, items[split])
    paths = [item.path for item in items[split]]
    gone = [path for path in paths if not (folder / top / path).is_file()]
    if gone:
        raise ValueError(
            f"{file.name} lists {counted(len(gone), 'image')} in {split!r} that "
            f"{'is' if len(gone) == 1 else 'are'} not in {folder / top}, such as {short(gone[0])}"
        )
    if len(set(paths)) < len(paths):
        twice = next(path for path in paths if paths.count(path) > 1)
        raise ValueError(f"{file.name}: image {short(twice)} is in {split!r} twice")
    files = [path if top == "." else f"{top}/{path}" for path in paths]
    labels = [item.label for item in items[split]]
    notes = [f"splits and classes by {file.name}; {_ONE_CLASS}"]
    shared = {item.path for item in items["train"]} & {item.path for item in items["test"]}
    if shared:
        notes.append(
            f"{counted(len(shared), 'image')} in 'train' and in 'test', such as {min(shared)}"
        )
    return make_listing(folder, split, names, files, _vectors(labels, len(names)), notes)


_ONE_CLASS = "each image is of one class"


def _read_items(file: Path) -> dict[str, list[_Item]]:
    if file.stat().st_size > _MAX_BYTES:
        raise ValueError(f"{file} has more than {_MAX_BYTES:,} bytes")
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{file} is no JSON: {error}") from None
    found: dict[str, list[_Item]] = {}
    for split in SPLITS:
        own = content.get(split) if isinstance(content, dict) else None
        if not isinstance(own, list) or not own:
            raise ValueError(f"{file} must be an object with the lists 'train', 'val' and 'test'")
        for number, entry in enumerate(own):
            is_fit = (
                isinstance(entry, list)
                and len(entry) == len(_Item._fields)
                and isinstance(entry[0], str)
                and type(entry[1]) is int
                and isinstance(entry[2], str)
                and entry[1] >= 0
            )
            if not is_fit:
                raise ValueError(
                    f"{file}: entry {number} of {split!r} must be [path, number of the class, name "
                    f"of the class], not {short(json.dumps(entry))}"
                )
            path = Path(entry[0])
            if path.is_absolute() or ".." in path.parts:
                raise ValueError(f"{file}: {short(entry[0])} leads out of the data set")
        found[split] = [_Item(*entry) for entry in own]
    return found


def _names_of(file: Path, items: Mapping[str, Sequence[_Item]]) -> tuple[str, ...]:
    """Class names by number, as prompts have them."""
    names: dict[int, str] = {}
    numbers: dict[str, int] = {}
    for own in items.values():
        for item in own:
            known = names.setdefault(item.label, item.name)
            if known != item.name:
                raise ValueError(
                    f"{file}: class number {item.label} is called {known!r}, and {item.name!r} at "
                    f"{short(item.path)}"
                )
            if numbers.setdefault(item.name, item.label) != item.label:
                raise ValueError(
                    f"{file}: class {item.name!r} has the numbers {numbers[item.name]} and "
                    f"{item.label}, the latter at {short(item.path)}"
                )
    gap = next((number for number in range(len(names)) if number not in names), None)
    if gap is not None:
        raise ValueError(
            f"{file}: classes are numbered up to {max(names)}, and number {gap} is missing"
        )
    return _as_in_prompts([names[number] for number in range(len(names))], str(file))


def _as_in_prompts(names: Sequence[str], where: str) -> tuple[str, ...]:
    """Names with spaces between their words."""
    plain = tuple(name.replace("_", " ") for name in names)
    try:
        check_class_names(plain)
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from None
    return plain


def _plain(name: str) -> str:
    return fold_name(name).replace(" ", "")


def _check_folders(file: Path, items: Mapping[str, Sequence[_Item]], names: Sequence[str]) -> None:
    """Refuse an image in the folder of another class than its own."""
    owner = {_plain(name): label for label, name in enumerate(names)}
    every = [item for own in items.values() for item in own]
    labels: dict[str, set[int]] = {}
    for item in every:
        labels.setdefault(str(Path(item.path).parent), set()).add(item.label)
    by_class = len(labels) >= len(names) > 1  # else folders hold images of all classes
    for item in every:
        folder = Path(item.path).parent
        expected = owner.get(_plain(folder.name))
        if expected is not None and expected != item.label:
            raise ValueError(
                f"{file}: {short(item.path)} is of class {names[item.label]!r}, and lies in the "
                f"folder of class {names[expected]!r}"
            )
        if by_class and len(labels[str(folder)]) > 1 and split_kind(folder.name) is None:
            told = " and ".join(repr(names[label]) for label in sorted(labels[str(folder)])[:2])
            raise ValueError(f"{file}: folder {short(str(folder))} has images of classes {told}")


def _image_folder(folder: Path, file: Path, items: Sequence[_Item]) -> str:
    """The folder that paths are relative to, as a path in the data set."""
    first = items[0].path
    below, _ = list_folder(folder, folder)
    tops = [top for top in (".", *below) if find_below(folder, f"{top}/{first}") is not None]
    if not tops:
        raise ValueError(
            f"{file.name} lists {short(first)}, which is neither in {folder} nor in a folder of it"
        )
    return tops[0]


def _read_aircraft(folder: Path, split: str) -> ImageListing:
    """FGVC-Aircraft's own tables: a number of an image and its variant on each line."""
    variants = _lines(folder / _AIRCRAFT[0])
    names = _as_in_prompts(variants, str(folder / _AIRCRAFT[0]))
    table = folder / _AIRCRAFT[1].format(split)
    files, labels = [], []
    for number, line in enumerate(_lines(table), 1):
        image, _, variant = line.partition(" ")
        if variant not in variants:
            raise ValueError(f"{table}, line {number}: {variant!r} is none of {_AIRCRAFT[0]}")
        files.append(f"images/{image}.jpg")
        labels.append(variants.index(variant))
    notes = [f"variants by {table.name}; {_ONE_CLASS}"]
    return make_listing(folder, split, names, files, _vectors(labels, len(names)), notes)


class _Official(NamedTuple):
    """What a data set's own lists say: class names by number, and images with their classes."""

    names: list[str]
    train: list[tuple[str, int]]
    test: list[tuple[str, int]]


def _pets(folder: Path) -> _Official:
    """Oxford Pets: a name and a number from 1 on a line; the name without its end is the breed."""
    breeds: dict[int, str] = {}

    def read(table: str) -> list[tuple[str, int]]:
        found = []
        for number, line in enumerate(_lines(folder / table), 1):
            image, *rest = line.split(" ")
            label = _number(rest, folder / table, number) - 1
            breed = image.rpartition("_")[0].lower()
            if breeds.setdefault(label, breed) != breed:
                raise ValueError(
                    f"{folder / table}, line {number}: class {label + 1} is {breeds[label]!r}, and "
                    f"{breed!r} here"
                )
            found.append((f"images/{image}.jpg", label))
        return found

    train, test = (read(table) for table in _PETS)
    return _Official([breeds.get(n, "") for n in range(max(breeds, default=-1) + 1)], train, test)


def _scenes(folder: Path) -> _Official:
    """SUN397: a path on each line, whose folders are the class."""
    classes = {path: n for n, path in enumerate(_lines(folder / _SCENES[0]))}

    def read(table: str) -> list[tuple[str, int]]:
        found = []
        for number, path in enumerate(_lines(folder / table), 1):
            label = classes.get(path.rpartition("/")[0])
            if label is None:
                raise ValueError(f"{folder / table}, line {number}: {path!r} is of no class")
            found.append((f"SUN397{path}", label))
        return found

    return _Official(list(map(scene_name, classes)), *map(read, _SCENES[1:]))


def _actions(folder: Path) -> _Official:
    """UCF101: a video on each line, in the folder of its action; its middle frame is the image."""
    table = folder / _ACTIONS[0]
    classes = [line.partition(" ")[2] for line in _lines(table)]

    def read(name: str) -> list[tuple[str, int]]:
        found = []
        for number, line in enumerate(_lines(folder / name), 1):
            action, _, video = line.split(" ")[0].partition("/")
            if action not in classes:
                raise ValueError(f"{folder / name}, line {number}: {action!r} is not in {table}")
            place = action_name(action).replace(" ", "_")
            frame = f"UCF-101-midframes/{place}/{video.replace('.avi', '.jpg')}"
            found.append((frame, classes.index(action)))
        return found

    return _Official(list(map(action_name, classes)), *map(read, _ACTIONS[1:]))


def _number(words: Sequence[str], table: Path, line: int) -> int:
    if not words or not words[0].isdecimal() or int(words[0]) < 1:
        raise ValueError(f"{table}, line {line}: no number of a class after the name")
    return int(words[0])


def _official(folder: Path, read: Callable[[Path], _Official], split: str) -> ImageListing:
    """A split by a data set's own lists, the training images parted 80/20."""
    names, train, test = read(folder)
    rows, how = test, "by its own lists"
    if split != "test":
        parts = split_off([label for _, label in train], Random(SPLIT_SEED), names=names)
        rows = [train[row] for row in parts[split == "val"]]
        how += f", training images parted 80/20, seed {SPLIT_SEED}"
    files, labels = [file for file, _ in rows], [label for _, label in rows]
    called = _as_in_prompts(names, str(folder))
    return make_listing(
        folder, split, called, files, _vectors(labels, len(names)), [f"{how}; {_ONE_CLASS}"]
    )


def _read_imagenet(folder: Path, top: Path, split: str) -> ImageListing:
    """ImageNet's folders in the order of their names; what they are called is in a file."""
    file = folder / _IMAGENET
    called = dict(line.partition(" ")[::2] for line in _lines(file))
    place = top / ("train" if split == "train" else "val")
    folders, _ = list_folder(top / "train", folder)
    strange = next((name for name in folders if not called.get(name)), None)
    if strange is not None:
        raise ValueError(f"{file} has no name of folder {strange!r} in {top / 'train'}")
    names = _as_in_prompts([called[name] for name in folders], str(file))
    there, _ = list_folder(place, folder)
    if unknown := sorted(set(there) - set(folders)):
        raise ValueError(f"{place} has the folder {unknown[0]!r}, which {top / 'train'} has not")
    files: list[str] = []
    labels: list[int] = []
    for label, name in enumerate(folders):
        if name in there:
            _, images = list_folder(place / name, folder)
            inside = (place / name).relative_to(folder).as_posix()
            files += [f"{inside}/{image}" for image in images]
            labels += [label] * len(images)
    notes = [f"names by {file.name}; {_ONE_CLASS}"]
    if split != "train":
        notes.append("ImageNet's validation images are both 'val' and 'test'")
    return make_listing(folder, split, names, files, _vectors(labels, len(names)), notes)


def _made(folder: Path, tree: Tree, split: str) -> ImageListing:
    """A split of folders of classes, made as CoOp makes it where there is no file of it."""
    random = Random(SPLIT_SEED)
    kinds = {split_kind(name): name for name in tree.splits}
    if len(tree.splits) == 1:
        whole = _renamed(read_class_folders(folder, ONE_SPLIT, splits=()))
        parts = dict(
            zip(
                SPLITS,
                split_in_three(_classes(whole), random, names=whole.class_names),
                strict=True,
            )
        )
        return _some(whole, parts[split], split, "parted 50/20/30")
    if split in kinds or split == "test":
        listing = tree.read(kinds[split])
        if split != "train" or "val" in kinds:
            return replace(_renamed(listing), split=split)
    whole = _renamed(tree.read(kinds["train"]))
    train, val = split_off(_classes(whole), random, names=whole.class_names)
    return _some(whole, train if split == "train" else val, split, "training images parted 80/20")


def _some(whole: ImageListing, rows: Sequence[int], split: str, how: str) -> ImageListing:
    note = f"{how}, seed {SPLIT_SEED}: {len(rows):,} of {len(whole):,} images"
    files = tuple(whole.file_names[row] for row in rows)
    return replace(
        whole,
        split=split,
        keys=file_keys(files),
        file_names=files,
        labels=whole.labels[list(rows)],
        notes=(*whole.notes, note),
    )


def _renamed(listing: ImageListing) -> ImageListing:
    """Caltech 101 and EuroSAT with the class names that CoOp gives them; others as they are."""
    names, notes = list(listing.class_names), list(listing.notes)
    changed: Mapping[str, str] = {}
    if _EUROSAT.keys() == set(names):
        changed = _EUROSAT
    elif _CALTECH.keys() < set(names):
        changed = _CALTECH
    left = [
        n
        for n, name in enumerate(names)
        if changed is not _CALTECH or name not in _CALTECH_LEFT_OUT
    ]
    if changed:
        notes.append("class names as CoOp has them, such as " + next(iter(changed.values())))
    if len(left) < len(names):
        notes.append(f"left out, as CoOp does: {', '.join(set(names) & {*_CALTECH_LEFT_OUT})}")
    rows = np.flatnonzero(listing.labels[:, left].any(1))
    called = [changed.get(names[column], names[column]) for column in left]
    return replace(
        listing,
        class_names=_as_in_prompts(called, str(listing.image_dir)),
        keys=tuple(listing.keys[row] for row in rows),
        file_names=tuple(listing.file_names[row] for row in rows),
        labels=listing.labels[rows][:, left],
        notes=tuple(notes),
    )


def _classes(listing: ImageListing) -> list[int]:
    found: list[int] = listing.labels.argmax(1).tolist()
    return found


def _vectors(labels: Sequence[int], classes: int) -> np.ndarray:
    found = np.zeros((len(labels), classes), np.uint8)
    found[np.arange(len(labels)), list(labels)] = 1
    return found


def _lines(file: Path) -> list[str]:
    """Lines of a text file that are not blank.

    Raises:
        ValueError: It is not UTF-8.
    """
    try:
        text = file.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"{file} is not UTF-8: {error}") from error
    return [line.strip() for line in text.splitlines() if line.strip()]

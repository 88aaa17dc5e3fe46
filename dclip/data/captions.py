"""Images and what is said of them, from the files such data comes in.

Read are captions in COCO's format (``captions_val2017.json``) and Karpathy's splits of them,
ShareGPT4V's JSON, Flickr30k's ``.token`` file, tables (CSV, TSV, JSON lines, Parquet), tars of
images and texts (WebDataset), and a folder of images beside one of texts (Urban1k). What lacks its
other half is left out and counted. Nothing is unpickled.
"""

import json
import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Int64

from dclip.data.folder import file_keys
from dclip.data.image_files import paths_inside
from dclip.data.images import IMAGE_SUFFIXES, is_image_name
from dclip.data.label_text import short
from dclip.data.listing import ImageListing, Keyed, Sample, digest
from dclip.data.tables import FILE_COLUMNS, TABLE_SUFFIXES, cells_of, columns_of
from dclip.data.webdataset_listing import (
    WebdatasetListing,
    expand_tars,
    key_of_name,
    kind_of,
    split_name,
    walk_tar,
)
from dclip.store.paths import AnyPath, RemotePath, as_path
from dclip.words import counted

CAPTION_COLUMNS = ("caption", "captions", "text", "sentence", "title", "raw")
"""What the column of captions may be called; the first goes before all others."""

HELD_OUT = 1000
"""Entries of ShareGPT4V's file that its split ``test`` is, the first; ``train`` has the others."""

_CAPTION_SUFFIXES = (".txt", ".json")  # of both the first counts
_TEXT_FOLDERS = ("caption", "captions", "text", "texts")
_IMAGE_FOLDERS = ("image", "images")
_MAX_BYTES = 1 << 20  # of the captions of one image


@dataclass(frozen=True, eq=False)
class CaptionListing(Keyed):
    """Images with captions; no image is without one, and no caption is blank.

    It is a `dclip.data.listing.Listing` of no class.

    Attributes:
        name: The data set.
        split: Which part of it.
        images: The images, read when asked for.
        keys: One for each, unique.
        texts: Captions of each image, one or more, stripped.
        notes: What was left out and why, counted; see `Keyed`.
    """

    name: str
    split: str
    images: ImageListing | WebdatasetListing = field(repr=False)
    keys: tuple[str, ...] = field(repr=False)
    texts: tuple[tuple[str, ...], ...] = field(repr=False)
    notes: tuple[str, ...] = ()

    @property
    def class_names(self) -> tuple[str, ...]:
        """None."""
        return ()

    def read(self, index: int) -> Sample:
        """The image; its label vector is empty.

        Raises:
            ImageError: If it is missing or damaged.
            OSError: If a remote store cannot be reached, or refuses.
        """
        return self.images.read(index)

    def captions(self, rows: Int64[np.ndarray, " rows"]) -> list[tuple[str, ...]]:
        """Captions of some images, in the order given; one or more each."""
        return [self.texts[row] for row in rows]

    def identity(self) -> dict[str, str | int]:
        """Split, and a hash of keys, places of the images and captions."""
        content = digest([self.images.identity(), self.keys, self.texts])
        return {"name": self.name, "split": self.split, "content": content}


class Entry(NamedTuple):
    """An image and its captions as a file has them, not looked at yet.

    Attributes:
        file: Path of the image.
        captions: Anything; what is no text, or blank, is left out.
        where: File and place, for messages.
    """

    file: str
    captions: Sequence[object]
    where: str


class _LeftOut:
    """What lacks its other half: counted by kind, one of each named."""

    def __init__(self) -> None:
        self._counts: Counter[str] = Counter()
        self._first: dict[str, str] = {}

    def count(self, kind: str, name: str, number: int = 1) -> None:
        """Count some of a kind, which is worded as one of them."""
        if number:
            self._counts[kind] += number
            self._first.setdefault(kind, name)

    def notes(self) -> list[str]:
        """A sentence for each kind."""
        return [
            f"left out: {counted(number, *_KINDS[kind])}, such as {self._first[kind]}"
            for kind, number in self._counts.items()
        ]


_KINDS = {
    "bare image": ("image without a caption", "images without a caption"),
    "lost caption": ("caption without an image", "captions without an image"),
    "empty": ("empty caption", "empty captions"),
    "missing": ("image that is not there", "images that are not there"),
    "more": ("caption beyond those that are asked for", "captions beyond those that are asked for"),
    "other": ("member of another kind", "members of other kinds"),
}


def read_captions(
    place: str,
    split: str = "all",
    *,
    images: AnyPath | None = None,
    most: int | None = None,
    name: str = "captions",
) -> CaptionListing:
    """Images with captions, whatever the file is; what it is goes by its name and content.

    Paths of the listing are absolute, for workers elsewhere.

    Args:
        place: One of

            * ``.json``: captions in COCO's format, of all images in the order of their ids;
              Karpathy's file, of the images whose ``split`` is the one given (``all``: any);
              ShareGPT4V's list, of which the first 1,000 entries are ``test`` and the others
              ``train``;
            * ``.token``: Flickr30k's, a line for each caption;
            * ``.csv``, ``.tsv``, ``.jsonl``, ``.parquet``: a column of images
              (`dclip.data.tables.FILE_COLUMNS`) and one of captions (`CAPTION_COLUMNS`), a text or,
              of an image that has several, a list or a row each; rows of another ``split`` are
              passed over where there is such a column, unless all are asked for;
            * ``.tar``, or a pattern of tars as `dclip.data.webdataset_listing.expand_tars` takes
              it: ``<key>.jpg`` with ``<key>.txt`` (one caption), or ``<key>.json`` with
              ``caption``, ``captions`` or ``text``;
            * a folder in which ``image`` and ``caption`` (or their plurals) are folders, with
              a text file for each image: its first line.
        split: Which part.
        images: Folder of the images; left out: that of the file.
        most: Captions of an image that are taken, the first; left out: all.
        name: Of the listing.

    Raises:
        ValueError: If the file is missing or of none of these kinds, an image's path leads out of
            the folder, or no image with a caption is left. The message names file and place.
        OSError: If a file cannot be read, or a remote store not be reached.
    """
    if place.endswith(".tar") or "{" in place:
        return _read_tars(place, split, most=most, name=name)
    path = as_path(place).absolute()
    if isinstance(path, Path) and path.is_dir():
        entries, folder, left = _of_folder(path)
    else:
        left = _LeftOut()
        folder = path.parent
        suffix = path.suffix.lower()
        if not path.is_file():
            raise ValueError(f"no captions at {path}: there is no such file")
        if suffix == ".json":
            entries = _of_json(path, split, left)
        elif suffix == ".token":
            entries = _of_lines(path)
        elif suffix in TABLE_SUFFIXES:
            entries = _of_table(path, split)
        else:
            raise ValueError(
                f"{path} is no file of captions; give .json, .token, {', '.join(TABLE_SUFFIXES)},"
                " a tar, or a folder with the folders image and caption"
            )
    folder = (images or folder).absolute()
    return _together(entries, folder, split, left, most=most, name=name, source=path)


def first_sentences(caption: str, share: float = 1.0) -> str:
    r"""The first sentences of a caption, as many as a draw says: what SmartCLIP trains on.

    A line break is a space; what stands between two ``". "`` is a sentence. The last of those that
    are taken loses its full stop, unless it is the last of the caption.

    Args:
        caption: Of any length.
        share: From 0, the first sentence alone, to 1, all of them; uniform in [0, 1), each number
            of sentences is as likely as any other.

    Example:
        >>> first_sentences("A dog. A red\nhat. Snow.", 0.5), first_sentences("A dog. Snow.")
        ('A dog. A red hat', 'A dog. Snow.')
    """
    pieces = caption.replace("\n", " ").split(". ")
    taken = min(len(pieces), 1 + int(share * len(pieces)))
    return ". ".join(pieces[:taken])


# ---------------------------------------------------------------------------------------------
# What the files say
# ---------------------------------------------------------------------------------------------


def _of_json(path: AnyPath, split: str, left: _LeftOut) -> Iterable[Entry]:
    try:
        document = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is not JSON: {error}") from error
    if isinstance(document, list):
        return _of_conversations(document, path, split)
    pictures = document.get("images") if isinstance(document, dict) else None
    if isinstance(pictures, list) and isinstance(document.get("annotations"), list):
        return _of_coco(pictures, document["annotations"], path, left)
    if isinstance(pictures, list) and any("sentences" in _object(one) for one in pictures[:1]):
        return _of_karpathy(pictures, path, split)
    raise ValueError(
        f"{path} holds no captions as COCO ('images' and 'annotations'), Karpathy ('images' with"
        " 'sentences') or ShareGPT4V (a list with 'image' and 'conversations') write them"
    )


def _object(value: object) -> Mapping[str, Any]:
    return value if isinstance(value, dict) else {}


def _of_coco(
    pictures: Sequence[object], annotations: Sequence[object], path: AnyPath, left: _LeftOut
) -> Iterator[Entry]:
    """In the order of the images' ids, captions in the order of the file."""
    said: dict[object, list[object]] = {}
    for number, one in enumerate(annotations):
        about = _object(one)
        if "caption" not in about or not isinstance(about.get("image_id"), int | str):
            raise ValueError(
                f"{path}, annotation {number}: it needs 'image_id' and 'caption'; this is no file"
                " of captions" + (", but of objects" if "bbox" in about else "")
            )
        said.setdefault(about["image_id"], []).append(about["caption"])
    files: dict[int | str, str] = {}
    for number, one in enumerate(pictures):
        own, file = _object(one).get("id"), _object(one).get("file_name")
        if not isinstance(own, int | str) or not isinstance(file, str):
            raise ValueError(f"{path}, image {number}: it needs 'id' and 'file_name'")
        if own in files:
            raise ValueError(f"{path}, image {number}: the id {own!r} is there twice")
        files[own] = file
    for own in sorted(files, key=lambda each: (isinstance(each, str), each)):
        yield Entry(files[own], said.pop(own, []), f"{path}, image {own}")
    for own, lost in said.items():
        left.count("lost caption", f"{short(str(lost[0]))} of image {own}", len(lost))


def _of_karpathy(pictures: Sequence[object], path: AnyPath, split: str) -> Iterator[Entry]:
    seen = Counter(str(_object(one).get("split")) for one in pictures)
    if split != "all" and split not in seen:
        raise ValueError(f"{path} has no split {split!r}; it has {', '.join(sorted(seen))}, all")
    for number, one in enumerate(pictures):
        about = _object(one)
        if split != "all" and about.get("split") != split:
            continue
        file, said = about.get("filename"), about.get("sentences")
        if not isinstance(file, str) or not isinstance(said, list):
            raise ValueError(f"{path}, image {number}: it needs 'filename' and 'sentences'")
        place = about.get("filepath")
        file = f"{place}/{file}" if isinstance(place, str) and place else file
        yield Entry(file, [_object(each).get("raw") for each in said], f"{path}, image {number}")


def _of_conversations(document: Sequence[object], path: AnyPath, split: str) -> Iterator[Entry]:
    """ShareGPT4V's: what the model answers first is the caption."""
    parts = {"all": slice(None), "test": slice(HELD_OUT), "train": slice(HELD_OUT, None)}
    if split not in parts:
        raise ValueError(f"{path} has no split {split!r}; it has {', '.join(parts)}")
    for number in range(len(document))[parts[split]]:
        about = _object(document[number])
        file, talk = about.get("image"), about.get("conversations")
        if not isinstance(file, str) or not isinstance(talk, list):
            raise ValueError(f"{path}, entry {number}: it needs 'image' and 'conversations'")
        said = [_object(each).get("value") for each in talk if _object(each).get("from") == "gpt"]
        yield Entry(file, said[:1], f"{path}, entry {number}")


def _of_lines(path: AnyPath) -> Iterator[Entry]:
    """Flickr30k's: ``name.jpg#0``, a tab, the caption."""
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8: {error}") from error
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        head, tab, caption = line.partition("\t")
        file, mark, _ = head.rpartition("#")
        if not tab or not mark:
            raise ValueError(
                f"{path}, line {number}: it needs an image, '#', a number, a tab and the caption,"
                f" not {short(line)}"
            )
        yield Entry(file, [caption], f"{path}, line {number}")


def _of_table(path: AnyPath, split: str) -> Iterator[Entry]:
    columns = columns_of(path)

    def called(names: Sequence[str], what: str) -> str:
        found = [c for name in names for c in columns if c.casefold() == name]
        if not found:
            raise ValueError(
                f"{path}: no column {what} ({', '.join(names)}); columns are {', '.join(columns)}"
            )
        return found[0]

    file = called(FILE_COLUMNS, "of images")
    caption = called(CAPTION_COLUMNS, "of captions")
    parts = [column for column in columns if column.casefold() == "split"][:1]
    some = False
    for where, (name, said, *rest) in cells_of(path, [file, caption, *parts]):
        if rest and split != "all" and str(rest[0]).strip() != split:
            continue
        if not isinstance(name, str) or not name.strip():
            raise ValueError(f"{where}: column {file!r} has no path of an image")
        some = True
        yield Entry(name.strip(), said if isinstance(said, list) else [said], where)
    if parts and not some:
        raise ValueError(f"{path} has no row whose {parts[0]!r} is {split!r}; split all takes any")


def _of_folder(path: Path) -> tuple[Iterable[Entry], AnyPath, _LeftOut]:
    """A folder of images and one of texts."""
    texts = next((path / name for name in _TEXT_FOLDERS if (path / name).is_dir()), None)
    pictures = next((path / name for name in _IMAGE_FOLDERS if (path / name).is_dir()), None)
    if texts is None or pictures is None:
        raise ValueError(
            f"{path} is a folder without the folders {_IMAGE_FOLDERS[0]} and {_TEXT_FOLDERS[0]};"
            " name a file of captions in it"
        )
    left = _LeftOut()
    files: dict[str, str] = {}
    for file in sorted(pictures.iterdir()):
        if not is_image_name(file.name):
            continue
        if file.stem in files:
            raise ValueError(f"{pictures} has two images {file.stem!r}")
        files[file.stem] = file.name
    said: dict[str, Path] = {}
    for file in sorted(texts.iterdir()):
        if file.suffix.lower() == ".txt" and not file.name.startswith("."):
            said[file.stem] = file
    for stem in said.keys() - files.keys():
        left.count("lost caption", str(said[stem]))

    def entries() -> Iterator[Entry]:
        for stem, name in files.items():
            lines = [_text_of(said[stem]).partition("\n")[0]] if stem in said else []
            yield Entry(name, lines, str(said.get(stem, pictures / name)))

    return entries(), pictures, left


def _text_of(path: Path) -> str:
    if path.stat().st_size > _MAX_BYTES:
        raise ValueError(f"{path} has {path.stat().st_size} bytes of captions")
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8: {error}") from error


# ---------------------------------------------------------------------------------------------
# Images and captions together
# ---------------------------------------------------------------------------------------------


def _fit(entry: Entry, left: _LeftOut, most: int | None) -> tuple[str, ...]:
    """Captions that can be read, at most so many."""
    said = [text.strip() for text in entry.captions if isinstance(text, str) and text.strip()]
    left.count("empty", f"one of {entry.where}", len(entry.captions) - len(said))
    if not said:
        left.count("bare image", f"{short(entry.file)} ({entry.where})")
    kept = tuple(said[:most])
    left.count("more", f"one of {entry.where}", len(said) - len(kept))
    return kept


def _together(
    entries: Iterable[Entry],
    folder: AnyPath,
    split: str,
    left: _LeftOut,
    *,
    most: int | None,
    name: str,
    source: AnyPath,
) -> CaptionListing:
    """A listing of images in a folder; rows of one image are one."""
    inside, is_there = paths_inside(folder), _presence(folder)
    found: dict[str, Entry] = {}
    for entry in entries:
        file = inside(entry.file, entry.where)
        known = found.get(file)
        if known is not None:
            entry = known._replace(captions=[*known.captions, *entry.captions])
        found[file] = entry
    texts: dict[str, tuple[str, ...]] = {}
    for file, entry in found.items():
        said = _fit(entry, left, most)
        if said and not is_there(file):
            left.count("missing", f"{folder}/{file} ({entry.where})")
        elif said:
            texts[file] = said
    notes = tuple(left.notes())
    if not texts:
        told = f": {'; '.join(notes)}" if notes else ""
        raise ValueError(f"{source} has no image with a caption, images being in {folder}{told}")
    keys = file_keys(list(texts))
    images = ImageListing(
        name, split, (), folder, keys, tuple(texts), np.zeros((len(texts), 0), np.uint8)
    )
    return CaptionListing(name, split, images, keys, tuple(texts.values()), notes)


def _presence(folder: AnyPath) -> Callable[[str], bool]:
    """Whether a file is in a local folder; folders below are listed once. Remote: taken for so."""
    if isinstance(folder, RemotePath):
        return lambda file: True  # noqa: ARG005 - each would be a request
    listed: dict[str, set[str]] = {}

    def is_there(file: str) -> bool:
        above, _, base = file.rpartition("/")
        if above not in listed:
            try:
                listed[above] = set(os.listdir(folder / above))  # noqa: PTH208 - names alone
            except OSError:
                listed[above] = set()
        return base in listed[above]

    return is_there


def _read_tars(place: str, split: str, *, most: int | None, name: str) -> CaptionListing:
    """Pairs of members of one name without suffix."""
    left = _LeftOut()
    tars = tuple(str(as_path(tar).absolute()) for tar in expand_tars(place, split))
    keys: dict[str, str] = {}
    places: list[tuple[int, int, int]] = []
    texts: list[tuple[str, ...]] = []
    for number, tar in enumerate(tars):
        pictures: dict[str, tuple[int, int]] = {}
        said: dict[str, tuple[int, Sequence[object]]] = {}
        for about, data in walk_tar(tar, _CAPTION_SUFFIXES):
            stem, suffix = split_name(about.name.removeprefix("./"))[1:]
            kind = kind_of(about, about.name.removeprefix("./"))
            if kind is None and suffix in _CAPTION_SUFFIXES:
                rank = _CAPTION_SUFFIXES.index(suffix)
                if stem not in said or rank < said[stem][0]:
                    captions = _of_member(data, suffix, f"{tar}, {about.name}")
                    if captions is not None:
                        said[stem] = rank, captions
            elif kind is None and suffix in IMAGE_SUFFIXES:
                if stem in pictures:
                    raise ValueError(f"{tar}: {stem!r} has two images")
                pictures[stem] = about.offset_data, about.size
            elif kind != "folder":
                left.count("other", f"{about.name} in {tar}")
        for stem, (offset, size) in pictures.items():
            where = f"{tar}, {stem}"
            fit = _fit(Entry(stem, said.pop(stem, (0, []))[1], where), left, most)
            if not fit:
                continue
            key = key_of_name(stem, stem.partition(".")[0] or stem, tar)
            if key in keys:
                raise ValueError(f"{tar}: key {key!r} is in {keys[key]} already")
            keys[key] = tar
            places.append((number, offset, size))
            texts.append(fit)
        for stem, (_, captions) in said.items():
            left.count("lost caption", f"{stem} in {tar}", max(1, len(captions)))
    notes = tuple(left.notes())
    if not texts:
        told = f": {'; '.join(notes)}" if notes else ""
        raise ValueError(f"no image with a caption in {place}{told}")
    table = np.array(places, np.int64)
    images = WebdatasetListing(
        split=split,
        class_names=(),
        tars=tars,
        keys=tuple(keys),
        tar_of=table[:, 0].astype(np.int32),
        offsets=table[:, 1].copy(),
        sizes=table[:, 2].copy(),
        labels=np.zeros((len(texts), 0), np.uint8),
        name=name,
    )
    return CaptionListing(name, split, images, tuple(keys), tuple(texts), notes)


def _of_member(data: bytes, suffix: str, where: str) -> Sequence[object] | None:
    """Captions in a member of a tar; None where JSON holds something else, as img2dataset's may."""
    try:
        text = data.decode("utf-8-sig")
    except ValueError as error:
        raise ValueError(f"{where} is not UTF-8: {error}") from error
    if suffix != ".json":
        return [text]
    try:
        content = _object(json.loads(text))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{where} is not JSON: {error}") from error
    for key in ("caption", "captions", "text"):
        if key in content:
            value = content[key]
            return value if isinstance(value, list) else [value]
    return None

"""Tars of images and labels: read where they lie, and refused where something is wrong."""

import io
import json
import pickle
import tarfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from dclip.data.images import IMAGE_SUFFIXES, ImageError, read_image
from dclip.data.listing import Listing, check_key
from dclip.data.webdataset_listing import WebdatasetListing, expand_tars, read_webdataset

NAMES = ("cat", "dog", "traffic light")


def jpeg(value: int = 0) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (8, 6), (value, value, value)).save(buffer, "JPEG")
    return buffer.getvalue()


def write_tar(path: Path, members: Sequence[tuple[str, bytes]], *, mode: str = "w") -> Path:
    with tarfile.open(path, mode) as tar:
        for name, data in members:
            about = tarfile.TarInfo(name)
            about.size = len(data)
            tar.addfile(about, io.BytesIO(data))
    return path


def pair(key: str, labels: object, value: int = 0) -> list[tuple[str, bytes]]:
    return [(f"{key}.jpg", jpeg(value)), (f"{key}.json", json.dumps(labels).encode())]


@pytest.fixture
def tars(tmp_path: Path) -> list[str]:
    """Two tars with every way to write labels, and members that are none."""
    first = write_tar(
        tmp_path / "val-0.tar",
        [
            *pair("a", {"labels": ["dog", "cat"]}, 10),
            ("b.cls", b"2 0\n"),
            ("b.__key__", b"b"),
            ("b.pyd", b"\x80\x04never unpickled"),
            ("b.PNG", jpeg(20)),
            ("._b.jpg", b"of a file manager"),
        ],
    )
    second = write_tar(
        tmp_path / "val-1.tar",
        [("./sub/c.txt", b"traffic light\n\n"), ("./sub/c.jpeg", jpeg(30)), *pair("d", [], 40)],
    )
    return [str(first), str(second)]


def test_labels_and_pixels_by_hand(tars: list[str]) -> None:
    listing = read_webdataset(tars, "val", NAMES)
    assert isinstance(listing, Listing)
    assert (listing.name, listing.split, len(listing)) == ("webdataset", "val", 4)
    assert listing.keys == ("a", "b", "sub-c", "d")
    assert listing.labels.tolist() == [[1, 1, 0], [1, 0, 1], [0, 0, 1], [0, 0, 0]]
    for index, value in enumerate((10, 20, 30, 40)):
        image, labels = pickle.loads(pickle.dumps(listing)).read(index)
        assert np.abs(np.asarray(image).astype(int) - value).max() <= 2
        assert labels.tolist() == listing.labels[index].tolist()


def test_json_counts_before_other_labels(tmp_path: Path) -> None:
    members = [("a.txt", b"a photo of a dog"), *pair("a", ["cat"]), ("a.cls", b"1")]
    listing = read_webdataset([str(write_tar(tmp_path / "x.tar", members))], "x", NAMES)
    assert listing.labels.tolist() == [[1, 0, 0]]


def test_identity_follows_the_content_not_the_folder(tars: list[str], tmp_path: Path) -> None:
    one = read_webdataset(tars, "val", NAMES).identity()
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    moved = [str(Path(tar).rename(elsewhere / Path(tar).name)) for tar in tars]
    assert read_webdataset(moved, "val", NAMES).identity() == one
    assert read_webdataset(moved[::-1], "val", NAMES).identity() != one


@pytest.mark.parametrize(
    ("members", "message"),
    [
        ([("a.jpg", b"")], "'a' has no labels (json, cls, txt)"),
        ([("a.json", b"[]")], "'a' has no image (jpg"),
        ([*pair("a", []), *pair("a", [])], "key 'a' has two images"),
        ([*pair("a", []), ("a.json", b"[]")], "'a.json' is there twice"),
        ([*pair("a", []), ("a.png", b"")], "key 'a' has two images"),
        (pair("../a", []), "cannot be a sample's key"),
        (pair("a", [None]), "null is none of the 3 classes"),
        ([("a.jpg", b""), ("a.json", b"[")], "a.json is not JSON"),
        ([("a.jpg", b""), ("a.cls", b"dog")], "'dog' is no number; class names go into .txt"),
        (pair("a", {"label": 1}), "a.json must be a list, or have one under 'labels'"),
        (pair("a", ["cow"]), "'cow' is none of the 3 classes"),
        (pair("a", [3]), "3 is none of the 3 classes"),
        (pair("a", [-1]), "-1 is none"),
        (pair("a", [True]), "True is none"),
        (pair("a", [[]]), "[] is none"),
        (
            pair("a", [0, 0]),
            "column 0 is there twice; a vector of 0, 1 and -1 would have 3 numbers",
        ),
        (pair("a", [0, 1, 1, 0]), "column 0 is there twice"),
        (pair("a", [0.5, 0, 1]), "0.5 is none of the 3 classes"),
        (pair("a", {"labels": [], "unknown": "cat"}), "'unknown' must be a list, not cat"),
        (pair("a", {"labels": [], "unknown": [3]}), "'unknown': 3 is none of the 3 classes"),
        (pair("a", {"labels": ["dog"], "unknown": [1]}), "column 1 is both"),
        (pair("a", {"labels": [0, 1, 1], "unknown": [0]}), "says unknown by -1"),
        (
            [*pair("a", [1, 0, 0]), *pair("b", [2])],
            "b.json: [2] can only be columns, and in ",
        ),
        ([*pair("a", [1, 0, 0]), *pair("b", [])], "b.json: [] can only be columns"),
        ([("a.xyz", b""), ("._b.jpg", b"")], "2 members passed over, such as 'a.xyz' (xyz)"),
        ([("a.jpg", b""), ("a.json", b"[" * 100_000)], "a.json"),
        ([("a.jpg", b""), ("a.json", b"\xff")], "a.json"),
        ([("a.jpg", b""), ("a.cls", b"one")], "a.cls"),
        ([("a.jpg", b""), ("a.txt", b"x" * ((1 << 20) + 1))], "bytes of labels"),
        ([("readme.md", b"")], "1 member passed over, such as 'readme.md' (md)"),
        ([], "no member at all"),
        (
            [("a.v1.jpg", b""), ("a.v2.jpg", b""), ("a.cls", b"1")],
            "which labels are of which image",
        ),
        ([*pair("a.v1", []), ("a.v2.jpg", b"")], "'a.v2' has no labels"),
        ([("a.v1.jpg", b"")], "'a.v1' has no labels"),
    ],
)
def test_unusable_members_are_refused(
    tmp_path: Path, members: list[tuple[str, bytes]], message: str
) -> None:
    tar = write_tar(tmp_path / "x.tar", members)
    with pytest.raises(ValueError, match=r"x\.tar") as error:
        read_webdataset([str(tar)], "x", NAMES)
    assert message in str(error.value)


def read(folder: Path, members: Sequence[tuple[str, bytes]], **options: Any) -> WebdatasetListing:
    names = options.pop("names", NAMES)
    return read_webdataset([str(write_tar(folder / "x.tar", members))], "x", names, **options)


@pytest.mark.parametrize(
    ("labels", "expected"),
    [
        ([[1, 0, 0], [1, 1, 0], [0, 1, 1]], [[1, 0, 0], [1, 1, 0], [0, 1, 1]]),
        ([[0, 0, 0], [1, 1, 1]], [[0, 0, 0], [1, 1, 1]]),
        ([[1.0, 0.0, -1.0]], [[1, 0, -1]]),
        ([[True, False, False]], [[1, 0, 0]]),
        ([[1, 0, -1], [-1, -1, -1]], [[1, 0, -1], [-1, -1, -1]]),
        ([[0, 1, 2]], [[1, 1, 1]]),
        ([[], [1, 0], [2]], [[0, 0, 0], [1, 1, 0], [0, 0, 1]]),
        (["1 0 0", "0 1 1"], [[1, 0, 0], [0, 1, 1]]),
        (["[1, 0, 0]", "0,1,1"], [[1, 0, 0], [0, 1, 1]]),
        (["2", "0 1"], [[0, 0, 1], [1, 1, 0]]),
        ([["dog"], [2, 0], "2"], [[0, 1, 0], [1, 0, 1], [0, 0, 1]]),
        ([["dog"], [0, 0, 1]], [[0, 1, 0], [0, 0, 1]]),
        ([{"labels": ["dog"], "unknown": ["cat"]}, []], [[-1, 1, 0], [0, 0, 0]]),
        ([{"labels": [1], "unknown": [0, 2]}], [[-1, 1, -1]]),
        (
            [{"labels": [1], "unknown": []}, {"labels": [0], "unknown": None}],
            [[0, 1, 0], [1, 0, 0]],
        ),
    ],
)
def test_numbers_are_columns_or_vectors_as_all_of_them_say(
    tmp_path: Path, labels: list[Any], expected: list[list[int]]
) -> None:
    members = []
    for number, value in enumerate(labels):
        is_cls = isinstance(value, str)
        data = value.encode() if is_cls else json.dumps(value).encode()
        members += [(f"{number}.jpg", jpeg()), (f"{number}.{'cls' if is_cls else 'json'}", data)]
    listing = read(tmp_path, members)
    assert listing.labels.tolist() == expected
    has_unknown = any(-1 in row for row in expected)
    assert listing.labels.dtype == (np.int8 if has_unknown else np.uint8)


@pytest.mark.parametrize(
    ("names", "open_", "closed", "as_vectors", "as_columns"),
    [
        (("a", "b"), [[0, 1], [1, 0]], [1, 1], [[0, 1], [1, 0]], [[1, 1], [1, 1]]),
        (("a", "b"), [[0, 1], [1, 0]], [0], None, [[1, 1], [1, 1]]),
        (("a",), [[0], [0]], [1], [[0], [0]], [[1], [1]]),
        (("a",), [[0]], [], None, [[1]]),
    ],
)
def test_what_stays_open_is_asked_for_and_one_sample_settles_it_for_all_tars(
    tmp_path: Path,
    names: tuple[str, ...],
    open_: list[list[int]],
    closed: list[int],
    as_vectors: list[list[int]] | None,
    as_columns: list[list[int]],
) -> None:
    members = [part for n, value in enumerate(open_) for part in pair(str(n), value)]
    first = str(write_tar(tmp_path / "0.tar", members))
    with pytest.raises(ValueError, match=r"0\.json.*option labels=columns or labels=vectors"):
        read_webdataset([first], "x", names)
    said = read_webdataset([first], "x", names, numbers_as="columns")
    assert said.labels.tolist() == as_columns
    if as_vectors is not None:
        said = read_webdataset([first], "x", names, numbers_as="vectors")
        assert said.labels.tolist() == as_vectors
    second = str(write_tar(tmp_path / "1.tar", pair("last", closed)))
    both = read_webdataset([first, second], "x", names)
    assert both.labels[: len(open_)].tolist() == (as_vectors or as_columns)
    assert any(("vectors" in note) == bool(as_vectors) for note in both.notes)


def test_numbers_that_are_not_what_the_option_says_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"a\.json: \[2\] is no vector of 3 numbers"):
        read(tmp_path, pair("a", [2]), numbers_as="vectors")
    with pytest.raises(ValueError, match=r"a\.json: \[1, 1, 0\] is no list of columns"):
        read(tmp_path, pair("a", [1, 1, 0]), numbers_as="columns")


def test_notes_say_how_numbers_were_read(tmp_path: Path) -> None:
    assert read(tmp_path, pair("a", ["dog"])).notes == ()
    assert read(tmp_path, pair("a", [1])).notes == ("numbers are columns, counted from 0",)
    assert read(tmp_path, pair("a", [1, 1, 0])).notes == (
        "lists of numbers are vectors: 1, 0 or -1 (unknown) for each of 3 classes",
    )


def test_keys_with_a_dot_are_images_of_their_own(tmp_path: Path) -> None:
    members = [
        *pair("a", ["cat"], 10),
        *pair("sub/b.5m", ["dog"], 20),
        *pair("c.v1", ["cat", "dog"], 30),
        *pair("c.v2", [], 40),
        *pair("c-v1", [], 50),
        ("d.full.jpg", jpeg(60)),
        ("d.cls", b"2"),
    ]
    listing = read(tmp_path, members)
    assert listing.labels.tolist() == [
        *([1, 0, 0], [0, 1, 0], [1, 1, 0], [0, 0, 0], [0, 0, 0], [0, 0, 1])
    ]
    assert [listing.keys[0], *listing.keys[4:]] == ["a", "c-v1", "d"]
    assert [key[:-12] for key in listing.keys[1:4]] == ["sub-b-5m-", "c-v1-", "c-v2-"]
    for index, value in enumerate((10, 20, 30, 40, 50, 60)):
        assert np.abs(np.asarray(listing.read(index).image).astype(int) - value).max() <= 2
    assert listing.notes == (
        "numbers are columns, counted from 0",
        "3 keys with a dot, such as 'sub/b.5m': taken for an image of its own, since image and"
        " labels have the same name",
        "1 image with labels of another name, such as 'd.full.jpg' and 'd.cls': paired by the name"
        " up to its first dot",
    )


def test_names_of_any_letters_have_a_key(tmp_path: Path) -> None:
    names = ["v1.0/a", "a b", "é", "x" * 130, "a-b"]
    members = [member for name in names for member in pair(name, [])]
    listing = read(tmp_path, members)
    assert [key.rpartition("-")[0] for key in listing.keys[:3]] == ["v1-0-a", "a-b", "-"]
    assert len(set(map(check_key, listing.keys))) == 5
    assert listing.keys[4] == "a-b"


def test_a_byte_order_mark_is_no_label_and_other_keys_of_json_are_told(tmp_path: Path) -> None:
    mark = "\ufeff".encode()
    members = [*pair("a", {"labels": ["cat"], "absent": ["dog"], "url": "x"}), ("b.jpg", jpeg())]
    listing = read(tmp_path, [*members, ("b.txt", mark + NAMES[1].encode())])
    assert listing.labels.tolist() == [[1, 0, 0], [0, 1, 0]]
    assert listing.notes == (
        "of labels in JSON 'labels' and 'unknown' alone are looked at, not 'absent', 'url'",
    )


def test_parts_of_a_key_are_passed_over_and_counted(tmp_path: Path) -> None:
    plain = [*pair("a", ["dog"], 10), *pair("b", [], 20)]
    extra = [
        *(
            ("a.mask.png", jpeg()),
            ("b.boxes.json", b"{}"),
            ("a.depth.npy", b""),
            ("a.txt", b"a dog"),
        ),
        *(("._a.jpg", b""), ("__MACOSX/._a.jpg", b""), ("a.tif", b""), ("notes.v1.json", b"{}")),
    ]
    listing = read(tmp_path, plain + extra)
    assert listing.keys == ("a", "b")
    assert listing.identity() == read(tmp_path, plain).identity()
    (note,) = listing.notes
    assert note.startswith("8 members passed over: 2 hidden (._a.jpg), ")
    for kind in (
        "1 .npy (a.depth.npy)",
        "1 .txt beside .json (a.txt)",
        "1 .tif beside .jpg (a.tif)",
    ):
        assert kind in note
    assert "1 .png of other keys (a.mask.png)" in note


def test_folders_and_links_are_counted(tmp_path: Path) -> None:
    path = write_tar(tmp_path / "x.tar", pair("sub/a", []))
    with tarfile.open(path, "a") as tar:
        for name, kind in (("sub", tarfile.DIRTYPE), ("b.jpg", tarfile.SYMTYPE)):
            about = tarfile.TarInfo(name)
            about.type, about.linkname = kind, "/etc/passwd"
            tar.addfile(about)
    listing = read_webdataset([str(path)], "x", NAMES)
    assert listing.keys == ("sub-a",)
    assert listing.notes == ("2 members passed over: 1 folder (sub), 1 link (b.jpg)",)


def test_every_format_that_is_read_from_files_is_read_from_tars(tmp_path: Path) -> None:
    members = []
    for number, suffix in enumerate(IMAGE_SUFFIXES):
        buffer = io.BytesIO()
        Image.new("L" if suffix == ".pgm" else "RGB", (8, 6)).save(
            buffer, Image.registered_extensions()[suffix]
        )
        members += [(f"{number}{suffix.upper()}", buffer.getvalue()), (f"{number}.json", b"[]")]
    listing = read(tmp_path, members)
    assert len(listing) == len(IMAGE_SUFFIXES)
    for index in range(len(listing)):
        assert listing.read(index).image.size == (8, 6)


def test_keys_without_dots_are_those_of_webdataset(tmp_path: Path) -> None:
    iterators = pytest.importorskip("webdataset.tariterators")
    members = [
        *[*pair("a", ["dog"], 10), *pair("sub/b", [], 20), ("c.cls", b"1"), ("c.PNG", jpeg(30))],
        *[("a-b_2.jpeg", jpeg(40)), ("a-b_2.txt", b"cat"), ("._a.jpg", b""), ("readme", b"")],
    ]
    listing = read(tmp_path, members)
    with Path(listing.tars[0]).open("rb") as file:
        files = [one | {"__url__": ""} for one in iterators.tar_file_iterator(file)]
    samples = list(iterators.group_by_keys(files))
    assert tuple(sample["__key__"].replace("/", "-") for sample in samples) == listing.keys
    for index, sample in enumerate(samples):
        (image,) = (data for suffix, data in sample.items() if f".{suffix}" in IMAGE_SUFFIXES)
        assert listing.read(index).image.tobytes() == read_image(image).tobytes()


def test_the_identity_of_plain_tars_is_the_one_it_was(tmp_path: Path) -> None:
    members = [
        *[(f"{key}.jpg", key.encode()) for key in "ab"],
        *[("a.json", b'["dog"]'), ("b.cls", b"0 2")],
    ]
    # made by the version before numbers could be vectors
    assert read(tmp_path, members).identity()["content"] == (
        "0b5b937f65ea43714f8a60d0fbf6f55e1f3c4d2b2b687c7b047b8201bfcc4b8a"
    )


def test_a_key_in_two_tars_is_refused(tmp_path: Path) -> None:
    tars = [str(write_tar(tmp_path / f"{n}.tar", pair("a", []))) for n in "xy"]
    with pytest.raises(ValueError, match=r"y\.tar: key 'a' is in .*x\.tar already"):
        read_webdataset(tars, "x", NAMES)


def test_a_tar_cut_anywhere_is_refused(tmp_path: Path) -> None:
    path = write_tar(tmp_path / "x.tar", [*pair("a", ["dog"]), *pair("b", ["cat"])])
    whole = path.read_bytes()
    end = len(whole.rstrip(b"\0"))
    for size in range(0, end, 97):
        path.write_bytes(whole[:size])
        with pytest.raises(ValueError, match=r"x\.tar"):
            read_webdataset([str(path)], "x", NAMES)
    for size in range(0, end, 512):  # between blocks, where nothing else looks wrong
        path.write_bytes(whole[:size])
        with pytest.raises(ValueError, match=r"x\.tar"):
            read_webdataset([str(path)], "x", NAMES)


def test_bytes_in_a_header_that_changed_are_refused_or_harmless(tmp_path: Path) -> None:
    path = write_tar(tmp_path / "x.tar", [*pair("a", ["dog"]), *pair("b", ["cat"])])
    whole = bytearray(path.read_bytes())
    before = read_webdataset([str(path)], "x", NAMES)
    header = int(before.offsets[1]) - 512
    for place in range(header, header + 512, 7):
        damaged = bytearray(whole)
        damaged[place] ^= 0x5A
        path.write_bytes(damaged)
        with pytest.raises(ValueError, match=r"damaged|cannot read|no image|key"):
            read_webdataset([str(path)], "x", NAMES)


def test_what_is_no_plain_tar_is_refused(tmp_path: Path) -> None:
    packed = write_tar(tmp_path / "x.tar", pair("a", []), mode="w:gz")
    with pytest.raises(ValueError, match="not compressed"):
        read_webdataset([str(packed)], "x", NAMES)
    with pytest.raises(ValueError, match="no tar"):
        read_webdataset([str(tmp_path / "nowhere.tar")], "x", NAMES)
    with pytest.raises(ValueError, match="cannot read"):
        read_webdataset([str(tmp_path)], "x", NAMES)
    with pytest.raises(ValueError, match="class names must be unique"):
        read_webdataset([], "x", ("a", "a"))


def test_links_are_passed_over(tmp_path: Path) -> None:
    path = tmp_path / "x.tar"
    with tarfile.open(path, "w") as tar:
        link = tarfile.TarInfo("a.jpg")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        tar.addfile(link)
        label = tarfile.TarInfo("a.json")
        label.size = 2
        tar.addfile(label, io.BytesIO(b"[]"))
    with pytest.raises(ValueError, match="'a' has no image"):
        read_webdataset([str(path)], "x", NAMES)


def test_unreadable_images_are_found_when_read(tars: list[str]) -> None:
    listing = read_webdataset(tars, "val", NAMES)
    data = bytearray(Path(tars[1]).read_bytes())
    start = int(listing.offsets[2])
    data[start : start + 40] = bytes(40)
    Path(tars[1]).write_bytes(data)
    with pytest.raises(ImageError, match=r"image sub-c of .*val-1\.tar"):
        listing.read(2)
    Path(tars[1]).write_bytes(data[:start])  # cut since
    with pytest.raises(ImageError, match="cut short"):
        listing.read(2)
    Path(tars[1]).unlink()
    with pytest.raises(ImageError, match="cannot read image d"):
        listing.read(3)


def test_patterns_stand_for_tars(tars: list[str], tmp_path: Path) -> None:
    assert list(expand_tars(f"{tmp_path}/{{split}}-{{0..1}}.tar", "val")) == tars
    assert list(expand_tars(f"file:{tmp_path}/val-*.tar", "val")) == tars
    assert expand_tars("{a,b}{08..10}.tar", "x") == tuple(
        f"{word}{n}.tar" for word in "ab" for n in ("08", "09", "10")
    )
    assert expand_tars("http://h/{split}.tar", "val") == ("http://h/val.tar",)


def test_a_folder_whose_name_looks_like_a_pattern_is_that_folder(
    tars: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "set [v1]" / "a*b"
    folder.mkdir(parents=True)
    moved = [str(Path(tar).rename(folder / Path(tar).name)) for tar in tars]
    third = Path(moved[1]).with_name("val-[2].tar")
    Path(moved[1]).rename(third)
    assert expand_tars(f"{folder}/{{split}}-*.tar", "val") == (moved[0], str(third))
    assert expand_tars(f"{folder}/val-[2].tar", "val") == (str(third),)
    assert expand_tars(f"{tmp_path}/set [v1]/*/val-[0-9].tar", "val") == (moved[0],)
    monkeypatch.chdir(tmp_path)
    assert expand_tars("set [v1]/a*b/val-?.tar", "val") == ("set [v1]/a*b/val-0.tar",)


def test_what_exists_as_it_stands_is_no_pattern(tmp_path: Path) -> None:
    folder = tmp_path / "set[v1] {old}"
    folder.mkdir()
    for name in ("val-0.tar", "val-1.tar", "val[0-9].tar"):
        (folder / name).touch()
    (tmp_path / "setv").mkdir()
    tars = [str(folder / f"val-{n}.tar") for n in "01"]
    assert list(expand_tars(f"{folder}/{{split}}-*.tar", "val")) == tars
    assert list(expand_tars(f"{folder}/{{split}}-{{0..1}}.tar", "val")) == tars
    assert expand_tars(f"{folder}/val[0-9].tar", "val") == (str(folder / "val[0-9].tar"),)
    with pytest.raises(ValueError, match="no file matches"):
        expand_tars(f"{folder}/test[0-9].tar", "val")


@pytest.mark.parametrize(
    ("urls", "message"),
    [
        ("pipe:cat x.tar", "cannot open"),
        ("PIPE:cat x.tar", "cannot open"),
        ("ssh://host/x.tar", "cannot open"),
        ("simplecache::https://host/x.tar", "cannot open"),
        ("https://host/x.tar::s3://b", "cannot open"),
        ("{3..1}.tar", "is empty"),
        ("{x}.tar", "neither a range"),
        ("{0..999999999}.tar", "more than 100000"),
        ("{0..99999}{0..99999}{0..99999}.tar", "more than 100000"),
        ("{a,a}.tar", "twice"),
        ("nowhere-*.tar", "no file matches"),
    ],
)
def test_patterns_that_cannot_be_used_are_refused(urls: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        expand_tars(urls, "val")


def test_tars_on_a_web_server_read_as_local_ones(
    tars: list[str], serve: Callable[[Path], Any]
) -> None:
    local = read_webdataset(tars, "val", NAMES)
    url = serve(Path(tars[0]).parent).url
    remote = read_webdataset(expand_tars(f"{url}/{{split}}-{{0..1}}.tar", "val"), "val", NAMES)
    assert remote.identity() == local.identity()
    assert remote.read(2).image.tobytes() == local.read(2).image.tobytes()
    with pytest.raises(ValueError, match=r"no tar .*nowhere\.tar"):
        read_webdataset([f"{url}/nowhere.tar"], "val", NAMES)


def test_tars_in_an_object_store_read_as_local_ones(tars: list[str], s3_bucket: str) -> None:
    import fsspec

    fsspec.filesystem("s3").put(tars, f"{s3_bucket}/tars/")
    local = read_webdataset(tars, "val", NAMES)
    urls = expand_tars(f"{s3_bucket}/tars/{{split}}-{{0..1}}.tar", "val")
    remote = pickle.loads(pickle.dumps(read_webdataset(urls, "val", NAMES)))
    assert remote.identity() == local.identity()
    assert remote.read(2).image.tobytes() == local.read(2).image.tobytes()
    with pytest.raises(ValueError, match=r"no tar s3://.*nowhere\.tar"):
        read_webdataset([f"{s3_bucket}/nowhere.tar"], "val", NAMES)


def test_a_store_that_went_away_is_no_unreadable_image(
    tars: list[str], serve: Callable[[Path], Any]
) -> None:
    server = serve(Path(tars[0]).parent)
    listing = read_webdataset([f"{server.url}/val-0.tar"], "val", NAMES)
    (server.folder / "val-0.tar").unlink()
    with pytest.raises(ImageError, match=r"cannot read image a of http://.*No such file"):
        listing.read(0)
    server.stop()
    for work in (lambda: listing.read(0), lambda: read_webdataset(listing.tars, "val", NAMES)):
        with pytest.raises(OSError, match=r"cannot read http://.*/val-0\.tar") as error:
            work()
        assert not isinstance(error.value, ValueError)

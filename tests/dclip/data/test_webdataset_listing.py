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

from dclip.data.images import ImageError
from dclip.data.listing import Listing
from dclip.data.webdataset_listing import expand_tars, read_webdataset

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
        (pair("a b", []), "cannot be a sample's key"),
        (pair("é", []), "cannot be a sample's key"),
        (pair("a", {"label": 1}), "a.json must be a list, or have one under 'labels'"),
        (pair("a", ["cow"]), "'cow' is none of the 3 classes"),
        (pair("a", [3]), "3 is none of the 3 classes"),
        (pair("a", [-1]), "-1 is none"),
        (pair("a", [True]), "True is none"),
        (pair("a", [[]]), "[] is none"),
        ([("a.jpg", b""), ("a.json", b"[" * 100_000)], "a.json"),
        ([("a.jpg", b""), ("a.json", b"\xff")], "a.json"),
        ([("a.jpg", b""), ("a.cls", b"one")], "a.cls"),
        ([("a.jpg", b""), ("a.txt", b"x" * ((1 << 20) + 1))], "bytes of labels"),
        ([("readme.md", b"")], "no image in"),
        ([], "no image in"),
    ],
)
def test_unusable_members_are_refused(
    tmp_path: Path, members: list[tuple[str, bytes]], message: str
) -> None:
    tar = write_tar(tmp_path / "x.tar", members)
    with pytest.raises(ValueError, match=r"x\.tar") as error:
        read_webdataset([str(tar)], "x", NAMES)
    assert message in str(error.value)


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

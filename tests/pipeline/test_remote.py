"""Data sets at URLs: from the name a user gives to the listing, its cache, and what check says."""

import importlib
import io
import json
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from PIL import Image

from dclip.data.listing import Listing
from dclip.store.paths import RemotePath, as_path
from pipeline import datasets
from pipeline.features.listings import open_listing
from pipeline.terminal.errors import UsageError

pytestmark = pytest.mark.usefixtures("_quick_retries")


@pytest.fixture(autouse=True)
def _output(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("DCLIP_OUTPUT", str(tmp_path / "outputs"))


@pytest.fixture
def _quick_retries(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dclip.store.paths._SECONDS_TO_RETRY", 0)


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A tree of COCO-14, a folder with a table, and a tar, on disk."""
    patch = pytest.MonkeyPatch()
    patch.syspath_prepend(str(Path(__file__).parent.parent / "dclip" / "data"))
    trees: ModuleType = importlib.import_module("trees")
    top = tmp_path_factory.mktemp("home")
    for split in ("train2014", "val2014"):
        trees.TREES["coco14"](top / "coco", split, 3)
    photos = top / "photos"
    photos.mkdir()
    for name in "ab":
        Image.new("RGB", (4, 4)).save(photos / f"{name}.png")
    (photos / "train.csv").write_text("file,labels\na.png,dog\nb.png,cat;dog\n")
    (photos / "class_names.txt").write_text("cat\ndog\n")
    buffer = io.BytesIO()
    Image.new("RGB", (4, 4)).save(buffer, "PNG")
    with tarfile.open(top / "val-0.tar", "w") as tar:
        for suffix, data in (("png", buffer.getvalue()), ("txt", b"dog")):
            member = tarfile.TarInfo(f"a.{suffix}")
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    (top / "class_names.txt").write_text("cat\ndog\n")
    yield top
    patch.undo()


@pytest.fixture(scope="module")
def bucket(s3_bucket: str, home: Path) -> str:
    """The same in an object store."""
    import fsspec

    fsspec.filesystem("s3").put(f"{home}/", f"{s3_bucket}/", recursive=True)
    return s3_bucket


@pytest.fixture(params=["http", "s3"])
def url(request: pytest.FixtureRequest, home: Path, serve: Callable[[Path], Any]) -> str:
    """Where it lies, on a server of each kind."""
    if request.param == "http":
        return str(serve(home).url)
    return str(request.getfixturevalue("bucket"))


def same(one: Listing, other: Listing) -> bool:
    return one.identity() == other.identity() and all(
        one.read(row).image.tobytes() == other.read(row).image.tobytes() for row in range(len(one))
    )


def test_every_kind_of_own_data_opens_from_a_url(home: Path, url: str, tmp_path: Path) -> None:
    pattern = "{}/coco/annotations/instances_{{split}}.json"
    cases: list[tuple[str, str | None, str, dict[str, str]]] = [
        ("coco", "{}/coco", "val2014", {}),
        ("coco14", "{}/coco", "train2014", {"images": "all"}),
        (pattern, "{}/coco", "val2014", {}),
        (pattern, "{}/coco/val2014", "val2014", {}),
        ("folder:{}/photos", None, "train", {}),
        ("webdataset:{}/{{split}}-{{0..0}}.tar", None, "val", {}),
        ("webdataset:{}/val-0.tar", None, "x", {"class_names": "{}/photos/class_names.txt"}),
    ]
    for name, root, split, options in cases:
        both = []
        for place in (str(home), url):
            where = None if root is None else as_path(root.format(place))
            chosen = {key: value.format(place) for key, value in options.items()}
            both.append(open_listing(name.format(place), where, split, chosen))
            cached = [
                open_listing(name.format(place), where, split, chosen, cache=tmp_path)
                for _ in range(2)
            ]
            assert same(both[-1], cached[0])
            assert same(both[-1], cached[1])
        assert same(*both)


def test_a_remote_listing_is_kept_until_its_file_changes(
    home: Path, tmp_path: Path, serve: Callable[[Path], Any]
) -> None:
    server = serve(home)
    root, cache = as_path(f"{server.url}/coco"), tmp_path / "cache"
    file = "/coco/annotations/instances_val2014.json"

    def reads() -> int:
        server.asked.clear()
        open_listing("coco14", root, "val2014", cache=cache)
        return int(server.asked.count(f"GET {file}"))

    assert [reads(), reads(), reads()] == [1, 0, 0]
    annotations = home / file.lstrip("/")
    annotations.write_bytes(annotations.read_bytes())
    assert [reads(), reads()] == [1, 0]
    server.tells_change = False
    assert [reads(), reads()] == [1, 1]


@pytest.mark.parametrize(
    ("dataset", "root", "message"),
    [
        ("voc2007", "{}", "'voc2007' cannot be read from {}; download it, or mount"),
        ("coco14", "{}/nowhere", "{}/nowhere"),
        ("coco14", "{}/coco", "no split 'train2017' under {}/coco"),
        ("folder:{}/nowhere", None, "{}/nowhere"),
        ("{}/{{split}}.json", None, "no annotation file {}/train2017.json"),
        ("webdataset:{}/photos/x/{{split}}.tar", None, "no class names at {}/photos/x/class_nam"),
    ],
)
def test_wrong_usage_names_the_url(url: str, dataset: str, root: str | None, message: str) -> None:
    where = None if root is None else as_path(root.format(url))
    with pytest.raises(ValueError, match=r"://") as error:
        open_listing(dataset.format(url), where, "train2017")
    assert message.format(url) in str(error.value)
    is_listed = not dataset.startswith("folder:") or url.startswith("s3")
    assert isinstance(error.value, UsageError) == is_listed


def main(*words: str) -> int:
    return datasets.main(words)


def test_check_and_stats_look_at_a_url(
    url: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for words in (
        [f"folder:{url}/photos", "--split", "train"],
        ["coco", "--root", f"{url}/coco", "--split", "val2014"],
    ):
        assert main("check", *words) == 0
        out = capsys.readouterr().out
        assert "remote images are asked for as they are read" in out
        assert "read as a sample" in out
        main("check", *words[:-2])
        told = capsys.readouterr()  # splits can be listed in an object store only
        assert ("Name it with --split" in told.err) == url.startswith("http")
    words = [f"folder:{url}/photos", "--split", "train", "--output", str(tmp_path), "--json"]
    assert main("stats", *words) == 0
    report = json.loads(capsys.readouterr().out.splitlines()[-1])[0]
    assert (report["images"], report["images_of_class"]) == (2, {"cat": 1, "dog": 2})


def test_check_tells_what_is_wrong_at_a_url(url: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main("check", "coco14", "--root", f"{url}/coco") == 1
    assert "3 images, 80 classes, but 40,137 images are published" in capsys.readouterr().out
    assert main("check", "coco14", "--root", f"{url}/photos") == 1
    out = capsys.readouterr().out
    assert f"MISSING {url}/photos/annotations/instances_val2014.json" in out
    assert main("check", "cityscapes", "--root", url) == 2
    assert "download it, or mount" in capsys.readouterr().err
    assert main("check", "coco", "--root", "ftp://host") == 2
    assert "--root: cannot open 'ftp://host'" in capsys.readouterr().err


def test_a_server_that_is_down_is_named_in_one_line(
    home: Path, serve: Callable[[Path], Any], capsys: pytest.CaptureFixture[str]
) -> None:
    server = serve(home)
    server.stop()
    for words in (
        ("check", "coco14", "--root", f"{server.url}/coco"),
        ("check", f"folder:{server.url}/photos", "--split", "train"),
        ("stats", f"webdataset:{server.url}/val-0.tar"),
        ("check", f"{server.url}/{{split}}.json", "--split", "val"),
    ):
        assert main(*words) == 1
        captured = capsys.readouterr()
        # what check meets with a split is a finding, on stdout
        assert f"cannot read {server.url}/" in captured.out + captured.err
        assert captured.err.startswith("datasets: error: ")
        assert captured.err.count("\n") == 1


def test_one_request_reads_one_image(home: Path, serve: Callable[[Path], Any]) -> None:
    server = serve(home)
    listing = open_listing(f"folder:{server.url}/photos", None, "train")
    server.asked.clear()
    listing.read(1)
    assert server.asked == ["GET /photos/b.png"]
    assert str(RemotePath(f"{server.url}/photos") / "b.png").endswith("/photos/b.png")

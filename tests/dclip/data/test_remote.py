"""Own data on an object store and on a web server: read as from a folder, with errors that tell."""

import json
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from dclip.data.coco import COCO14, COCO_FORMAT, find_coco_split
from dclip.data.folder import read_folder
from dclip.data.images import ImageError
from dclip.data.listing import ImageListing
from dclip.store.paths import AnyPath, as_path

Put = Callable[[Path], AnyPath]


@pytest.fixture(params=["http", "s3"])
def put(request: pytest.FixtureRequest, serve: Callable[[Path], Any]) -> Put:
    """Puts a folder on a server of each kind."""

    def to_web(folder: Path) -> AnyPath:
        return as_path(serve(folder).url)

    def to_store(folder: Path) -> AnyPath:
        import fsspec

        url = f"{request.getfixturevalue('s3_bucket')}/{folder.name}"
        fsspec.filesystem("s3").put(f"{folder}/", f"{url}/", recursive=True)
        return as_path(url)

    return to_web if request.param == "http" else to_store


def write_image(path: Path, red: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (3, 2), (red, 0, 0)).save(path)


def same(one: ImageListing, other: ImageListing) -> bool:
    other = pickle.loads(pickle.dumps(other))
    return one.identity() == other.identity() and all(
        one.read(row).image.tobytes() == other.read(row).image.tobytes() for row in range(len(one))
    )


# ---------------------------------------------------------------------------------------------
# A folder and tables
# ---------------------------------------------------------------------------------------------

ROWS = [
    {"file": "a.png", "labels": ["dog", "traffic light"]},
    {"file": "sub/50% b#.png", "labels": []},
]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Images, and the same table thrice as three splits."""
    for number, row in enumerate(ROWS):
        write_image(tmp_path / str(row["file"]), number)
    lines = [f"{row['file']},{';'.join(row['labels'])}" for row in ROWS]
    (tmp_path / "x.csv").write_text("\r\n".join(["\ufefffile,labels", *lines]))
    (tmp_path / "y.jsonl").write_text("\n".join(map(json.dumps, ROWS)))
    pq.write_table(pa.Table.from_pylist(ROWS), tmp_path / "z.parquet")
    (tmp_path / "class_names.txt").write_text("traffic light | lights\ndog\n")
    return tmp_path


def test_a_remote_folder_is_read_as_a_local_one(folder: Path, put: Put) -> None:
    remote = put(folder)
    for split in "xyz":
        assert same(read_folder(folder, split), read_folder(remote, split))


def test_what_is_wrong_with_a_remote_folder_is_told_with_its_url(folder: Path, put: Put) -> None:
    (folder / "both.csv").write_text("file,labels\n../x.png,dog\n")
    (folder / "gone.csv").write_text("file,labels\nnowhere.png,dog\na.png,dog\n")
    write_image(folder / "broken.png", 0)
    (folder / "broken.png").write_bytes((folder / "broken.png").read_bytes()[:40])
    (folder / "broken.csv").write_text("file,labels\nbroken.png,dog\n")
    remote = put(folder)
    with pytest.raises(ValueError, match=f"no split 'v' in {remote}: there is no v.csv or v.js"):
        read_folder(remote, "v")
    with pytest.raises(ValueError, match=r"://.*both.csv, line 2: '../x.png' is not inside"):
        read_folder(remote, "both")
    with pytest.raises(ImageError, match=r"image nowhere: .*://.*/nowhere\.png: No such file"):
        read_folder(remote, "gone").read(0)
    with pytest.raises(ImageError, match=r"image broken: .*://.*/broken\.png"):
        read_folder(remote, "broken").read(0)


@pytest.mark.parametrize("put", ["s3"], indirect=True)
def test_tables_of_an_object_store_agree_on_class_names(folder: Path, put: Put) -> None:
    (folder / "class_names.txt").unlink()
    (folder / "other.csv").write_text("file,labels\na.png,cat\n")
    remote = put(folder)
    assert read_folder(remote, "x").class_names == ("cat", "dog", "traffic light")
    with pytest.raises(ValueError, match="splits there are 'other', 'x', 'y', 'z'"):
        read_folder(remote, "v")
    with pytest.raises(ValueError, match=r"no folder s3://.*/nowhere"):
        read_folder(remote / "nowhere", "x")


@pytest.mark.parametrize("put", ["http"], indirect=True)
def test_a_web_server_needs_a_file_of_class_names(folder: Path, put: Put) -> None:
    (folder / "class_names.txt").unlink()
    with pytest.raises(ValueError, match=r"no class names at http://.*/class_names\.txt; a web"):
        read_folder(put(folder), "x")


def test_an_image_behind_a_server_that_went_away_is_no_image_error(
    folder: Path, serve: Callable[[Path], Any]
) -> None:
    server = serve(folder)
    listing = read_folder(as_path(server.url), "x")
    server.stop()
    with pytest.raises(OSError, match=r"cannot read http://.*/a\.png: Cannot connect"):
        listing.read(0)


# ---------------------------------------------------------------------------------------------
# COCO's format
# ---------------------------------------------------------------------------------------------


@pytest.fixture
def root(tmp_path: Path) -> Path:
    images = [{"id": n, "file_name": f"{n}.png", "width": 3, "height": 2} for n in (1, 2)]
    annotations = [{"id": n, "image_id": n, "category_id": 5, "bbox": [0, 0, 1, 1]} for n in (1, 2)]
    document = {
        "images": images,
        "annotations": annotations,
        "categories": [{"id": 5, "name": "dog"}],
    }
    (tmp_path / "annotations").mkdir()
    for split in ("train", "val"):
        (tmp_path / "annotations" / f"instances_{split}.json").write_text(json.dumps(document))
    for n in (1, 2):
        write_image(tmp_path / "train" / f"{n}.png", n)
        write_image(tmp_path / "images" / "val" / f"{n}.png", n)
    return tmp_path


def test_remote_coco_is_read_as_local(root: Path, put: Put) -> None:
    remote = put(root)
    for split in ("train", "val"):  # both layouts
        local = COCO_FORMAT.open(root, split, {})
        opened = COCO_FORMAT.open(remote, split, {})  # type: ignore[arg-type]
        assert isinstance(local, ImageListing)
        assert isinstance(opened, ImageListing)
        assert same(local, opened)
        assert str(opened.image_dir).endswith("/train" if split == "train" else "/images/val")


def test_what_is_wrong_with_remote_coco_is_told_with_its_url(root: Path, put: Put) -> None:
    for split in ("train", "images/val"):
        for file in (root / split).iterdir():
            file.unlink()
    remote = put(root)
    with pytest.raises(ValueError, match=f"no split 'v' under {remote}: there is no {remote}/ann"):
        find_coco_split(remote, "v")
    with pytest.raises(ValueError, match=rf"no images of split 'val'.* {remote}/images/val"):
        COCO_FORMAT.open(remote, "val", {})  # type: ignore[arg-type]
    write_image(root / "train" / "1.png", 0)
    with pytest.raises(ValueError, match=r"instances_train\.json is not COCO"):
        COCO14.open(put(root), "train", {})  # type: ignore[arg-type]

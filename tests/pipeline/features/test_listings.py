"""What a user may call a data set, and the cache of listings that take long to make."""

import io
import json
import os
import tarfile
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from PIL import Image

from dclip.data.images import ImageError
from dclip.data.listing import ImageListing, Listing
from dclip.data.registry import DATASETS
from dclip.data.segmentation import SegmentationListing, mask_labels
from dclip.data.webdataset_listing import WebdatasetListing
from dclip.world import shapes
from pipeline.features.listings import layout_of, open_listing, open_segmentation, options_of
from pipeline.terminal import cli
from pipeline.terminal.errors import UsageError


@pytest.fixture(scope="module")
def coco(trees: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Path:
    root: Path = tmp_path_factory.mktemp("coco")
    for split in ("train2014", "val2014"):
        trees.TREES["coco14"](root, split, 4)
    return root


def tar_of(path: Path, count: int, *, labels: bytes | None = None) -> str:
    """A tar of images with the name dog, or with numbers."""
    member_of_labels = ("txt", b"dog\n") if labels is None else ("cls", labels)
    with tarfile.open(path, "w") as tar:
        for number in range(count):
            buffer = io.BytesIO()
            Image.new("RGB", (4, 4), (number, 0, 0)).save(buffer, "PNG")
            for suffix, data in (("png", buffer.getvalue()), member_of_labels):
                member = tarfile.TarInfo(f"{number:04d}.{suffix}")
                member.size = len(data)
                tar.addfile(member, io.BytesIO(data))
    (path.parent / "class_names.txt").write_text("cat\ndog\n")
    return str(path)


def same(one: Listing, other: Listing) -> bool:
    samples = [(one.read(row), other.read(row)) for row in range(0, len(one), 3)]
    return one.identity() == other.identity() and all(
        a.image.tobytes() == b.image.tobytes() and a.labels.tolist() == b.labels.tolist()
        for a, b in samples
    )


@pytest.mark.parametrize("name", ["coco", "coco14"])
def test_registered_names_open_with_a_root(coco: Path, name: str) -> None:
    listing = open_listing(name, coco, "val2014", {"images": "annotated"})
    assert (listing.name, listing.split, len(listing)) == (name, "val2014", 4)
    everything = open_listing(name, coco, "val2014", {"images": "all"})
    assert len(everything) == 5
    assert everything.identity() != listing.identity()


def test_shapes_needs_no_root() -> None:
    assert len(open_listing("shapes", None, "single")) == shapes.SPLIT_SIZES["single"]


def test_masks_open_as_segmentation(trees: ModuleType, tmp_path: Path) -> None:
    trees.TREES["ade20k"](tmp_path, "validation", 2)
    listing = open_segmentation("ade20k", tmp_path, "validation")
    assert listing.read(0).mask.shape == (trees.SIDE, trees.SIDE)


def test_own_data_opens_without_code(tmp_path: Path, coco: Path) -> None:
    Image.new("RGB", (4, 4)).save(tmp_path / "a.png")
    (tmp_path / "train.csv").write_text("file,labels\na.png,dog|cat\n")
    listing = open_listing(f"folder:{tmp_path}", None, "train", {"separator": "|"})
    assert listing.class_names == ("cat", "dog")

    tar_of(tmp_path / "val-00.tar", 2)
    listing = open_listing(f"webdataset:{tmp_path}/{{split}}-{{00..00}}.tar", None, "val")
    assert (listing.class_names, len(listing)) == (("cat", "dog"), 2)
    names = tmp_path / "names.txt"
    names.write_text("dog\n")
    urls = f"webdataset:{tmp_path}/val-*.tar"
    assert open_listing(urls, None, "x", {"class_names": str(names)}).class_names == ("dog",)

    pattern = f"{coco}/annotations/instances_{{split}}.json"
    listing = open_listing(pattern, coco, "val2014")  # images are in <root>/<split>
    assert (listing.split, len(listing)) == ("val2014", 5)
    listing.read(0)
    file = f"{coco}/annotations/instances_val2014.json"
    assert len(open_listing(file, coco / "val2014", "mine", {"images": "all"})) == 5


def test_relative_places_are_found_from_elsewhere(
    coco: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Image.new("RGB", (4, 4)).save(tmp_path / "a.png")
    (tmp_path / "val2014.csv").write_text("file,labels\na.png,dog\n")
    tar_of(tmp_path / "a.tar", 1)
    (tmp_path / "coco").symlink_to(coco)
    monkeypatch.chdir(tmp_path)
    opened = [
        open_listing("coco14", Path("coco"), "val2014"),
        open_listing("folder:.", None, "val2014"),
        open_listing("webdataset:a.tar", None, "val2014"),
        open_listing("coco/annotations/instances_{split}.json", Path("coco"), "val2014"),
    ]
    monkeypatch.chdir("/")
    for listing in opened:
        listing.read(0)


@pytest.mark.parametrize(
    ("dataset", "root", "split", "options", "message"),
    [
        ("coco1", None, "x", {}, "did you mean 'coco"),
        ("coco1", None, "x", {}, "or folder:PATH, webdataset:URLS"),
        ("coco14", None, "train2014", {}, "needs --root DIR, the folder that has annotations/"),
        ("coco14", "nowhere", "train2014", {}, "--root nowhere is no folder"),
        ("coco14", ".", "train2014", {}, "no split 'train2014' under"),
        ("coco14", "COCO", "val2017", {}, "no split 'val2017' under"),
        ("coco14", "COCO", "val2014", {"image": "all"}, "unknown option 'image'"),
        ("coco14", "COCO", "val2014", {"images": "some"}, "choose from 'annotated', 'all'"),
        ("shapes", None, "val", {}, "unknown split 'val'; shapes has 'train'"),
        ("shapes", None, "test", {"images": "all"}, "unknown option 'images'"),
        ("ade20k", ".", "validation", {}, "check ade20k --root /"),
        ("ade20k", ".", "validation", {"classes": "x"}, "unknown option 'classes'"),
        ("folder:x", ".", "train", {}, "leave out --root"),
        ("folder:x", None, "train", {"sep": ";"}, "unknown option 'sep'; folder: has separator"),
        ("webdataset:pipe:cat x", None, "train", {}, "cannot open"),
        ("webdataset:x.tar", None, "train", {}, "class_names.txt; write them there"),
        ("folder:ftp://h/x", None, "train", {}, "cannot open 'ftp://h/x'"),
        ("pipe:cat {split}.json", None, "train", {}, "cannot open 'pipe:cat train.json'"),
        ("webdataset:x.tar", ".", "train", {}, "leave out --root"),
        ("nowhere/{split}.json", None, "val", {}, "no annotation file nowhere/val.json"),
    ],
)
def test_wrong_usage_says_what_is_right(
    coco: Path, dataset: str, root: str | None, split: str, options: dict[str, str], message: str
) -> None:
    folder = None if root is None else coco if root == "COCO" else Path(root)
    with pytest.raises(UsageError) as error:
        open_listing(dataset, folder, split, options)
    assert message in str(error.value)


@pytest.mark.parametrize("dataset", ["coco14", "folder:photos", "webdataset:own.tar"])
def test_label_vectors_are_no_masks(dataset: str) -> None:
    with pytest.raises(
        UsageError, match=r"has label vectors, no masks; shapes, shapes-single, voc12-seg, .* have"
    ):
        open_segmentation(dataset, None, "test")


def test_shapes_has_masks_of_the_scenes_that_have_its_label_vectors() -> None:
    masked, labelled = (
        open_segmentation("shapes", None, "test"),
        open_listing("shapes", None, "test"),
    )
    assert isinstance(masked, SegmentationListing)
    assert len(masked) == len(labelled)
    assert masked.class_names == ("background", *labelled.class_names)
    for row in (0, 7):
        sample, label_vector = masked.read(row), labelled.read(row).labels
        assert sample.image.tobytes() == labelled.read(row).image.tobytes()
        assert mask_labels(sample.mask, masked.class_names).tolist() == label_vector.tolist()
        assert (masked.read_mask(row) == sample.mask).all()
    assert masked.identity() != labelled.identity()


SEGMENTATION = [name for name, known in DATASETS.items() if known.task == "segmentation"]


@pytest.mark.parametrize("name", SEGMENTATION)
def test_labels_of_masks_are_the_classes_that_have_a_pixel(
    trees: ModuleType, tmp_path: Path, name: str
) -> None:
    known = DATASETS[name]
    trees.TREES[name](tmp_path, known.test_split, 4)
    listing = open_listing(name, tmp_path, known.test_split, cache=tmp_path / "cache")
    names = [one for one in known.class_names if one != "background"]
    assert list(listing.class_names) == names
    for row in range(4):
        sample, masked = listing.read(row), open_segmentation(name, tmp_path, known.test_split)
        # sorted by city, the images of Cityscapes are in another order than they were written
        index = int(listing.key(row).split("_")[1]) if name == "cityscapes" else row
        assert sample.labels[:16].tolist() == trees.scene(index, known.test_split).labels.tolist()
        others = [names[column] for column in np.flatnonzero(sample.labels) if column >= 16]
        assert others == (["grass"] if name == "stuff" else [])
        assert sample.image.tobytes() == masked.read(row).image.tobytes()
        assert listing.key(row) == masked.key(row)
    assert listing.identity()["labels"] == "of masks"
    assert same(listing, open_listing(name, tmp_path, known.test_split, cache=tmp_path / "cache"))


def test_background_is_no_label_whatever_the_options(trees: ModuleType, tmp_path: Path) -> None:
    trees.TREES["voc12-seg"](tmp_path, "val", 3)
    with_it, without = (
        open_listing("voc12-seg", tmp_path, "val", {"classes": classes})
        for classes in ("voc21", "voc20")
    )
    assert with_it.class_names == without.class_names
    assert [with_it.read(row).labels.tolist() for row in range(3)] == [
        without.read(row).labels.tolist() for row in range(3)
    ]
    assert with_it.identity() != without.identity()


@pytest.mark.parametrize(
    ("name", "options"),
    [("ade20k", {}), ("coco17-seg", {"masks": "stuff"}), ("coco17-seg", {"masks": "area"})],
)
def test_masks_are_read_once_until_they_change(
    trees: ModuleType, tmp_path: Path, name: str, options: dict[str, str]
) -> None:
    split, cache = DATASETS[name].test_split, tmp_path / "cache"
    trees.TREES[name](tmp_path, split, 5)
    first = open_listing(name, tmp_path, split, options, cache=cache)
    if options.get("masks") == "area":
        file = tmp_path / "annotations" / f"instances_{split}.json"
    else:
        file = sorted(tmp_path.rglob(f"{split}/*.png"))[2]
    stat, whole = file.stat(), file.read_bytes()
    file.write_bytes(b"x" * stat.st_size)
    os.utime(file, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert same(first, open_listing(name, tmp_path, split, options, cache=cache))
    file.write_bytes(whole)
    os.utime(file, ns=(stat.st_atime_ns, stat.st_mtime_ns + 1))
    assert same(first, open_listing(name, tmp_path, split, options, cache=cache))
    assert len(list(cache.iterdir())) == 2


def test_a_mask_that_cannot_be_read_leaves_the_labels_of_its_image_unknown(
    trees: ModuleType, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    cache = tmp_path / "cache"
    trees.TREES["ade20k"](tmp_path, "validation", 5)
    masks = sorted((tmp_path / "ADEChallengeData2016" / "annotations" / "validation").iterdir())
    masks[1].write_bytes(b"no mask")
    trees.write_mask(masks[3], np.full((trees.SIDE, trees.SIDE), 200))
    for first in (True, False):  # told again where the listing is cached
        caplog.clear()
        listing = open_listing("ade20k", tmp_path, "validation", cache=cache)
        assert "2 of 5 masks cannot be read, such as that of ADE_val_00000002" in caplog.text
        assert ("200 (4096 pixels)" in caplog.text) == first
    assert len(listing) == 5
    for row in range(5):
        labels = listing.read(row).labels
        expected = trees.scene(row, "validation").labels
        assert (labels[:16] == (-1 if row in (1, 3) else expected)).all()
    for mask in masks[:3]:
        mask.write_bytes(b"no mask")
    with pytest.raises(
        ValueError, match="4 of 5 masks of ade20k validation cannot be read"
    ) as told:
        open_listing("ade20k", tmp_path, "validation", cache=cache)
    assert f"check ade20k --root {tmp_path} tells more" in str(told.value)


def test_a_damaged_annotation_is_no_wrong_usage(trees: ModuleType, tmp_path: Path) -> None:
    trees.TREES["coco14"](tmp_path, "val2014", 1)
    (tmp_path / "annotations" / "instances_val2014.json").write_text("{")
    with pytest.raises(ValueError, match="is not JSON") as error:
        open_listing("coco14", tmp_path, "val2014")
    assert not isinstance(error.value, UsageError)


def test_the_setting_images_is_an_option_of_coco_only() -> None:
    assert options_of("coco14", "all", {}) == {"images": "all"}
    assert options_of("a/b.json", "annotated", {}) == {"images": "annotated"}
    assert options_of("a/b.json", None, {}) == {}
    assert options_of("voc2007", None, {"difficult": "ignore"}) == {"difficult": "ignore"}
    assert options_of("folder:x", None, {}) == {}
    for dataset, images in (("shapes", "all"), ("folder:x", "annotated")):
        with pytest.raises(UsageError, match=f"--images {images} is for data sets in COCO's form"):
            options_of(dataset, images, {})
    with pytest.raises(UsageError, match="--images all and --options images=annotated differ"):
        options_of("coco14", "all", {"images": "annotated"})


def test_own_photographs_without_an_object_are_kept(coco: Path, tmp_path: Path) -> None:
    file = str(coco / "annotations" / "instances_{split}.json")
    for dataset in ("coco", file):
        listing = open_listing(dataset, coco, "val2014", cache=tmp_path)
        assert len(listing) == 5
        assert listing.identity()["images"] == "all"
        (note,) = getattr(listing, "notes")  # noqa: B009 - of this kind of listing
        assert "no object in 1 of 5 images, such as 000000000005: kept" in note
        fewer = open_listing(dataset, coco, "val2014", {"images": "annotated"}, cache=tmp_path)
        assert (len(fewer), fewer.identity()["images"]) == (4, "annotated")
    published = open_listing("coco14", coco, "val2014", cache=tmp_path)
    assert (len(published), published.identity()["images"]) == (4, "annotated")


def test_features_of_own_data_without_empty_photographs_keep_their_identity(
    coco: Path, tmp_path: Path
) -> None:
    document = json.loads((coco / "annotations" / "instances_val2014.json").read_text())
    document["images"].pop()  # the one without an object
    file = tmp_path / "a.json"
    file.write_text(json.dumps(document))
    listings = [
        open_listing(str(file), coco / "val2014", "val2014", options)
        for options in ({}, {"images": "annotated"}, {"images": "all"})
    ]
    assert {str(listing.identity()) for listing in listings} == {str(listings[0].identity())}
    assert listings[0].identity()["images"] == "annotated"


def test_options_are_settings_like_any_other(tmp_path: Path) -> None:
    file = tmp_path / "a.yaml"
    file.write_text("options: {difficult: ignore}\n")
    words = ["--config", str(file)]
    assert cli.parse("extract", "", words)[0].options == {"difficult": "ignore"}
    words += ["--options", "difficult=negative", "--options", "classes=voc20"]
    expected = {"difficult": "negative", "classes": "voc20"}
    assert cli.parse("extract", "", words)[0].options == expected


# ---------------------------------------------------------------------------------------------
# The cache
# ---------------------------------------------------------------------------------------------


def test_the_second_time_annotations_are_not_read(trees: ModuleType, tmp_path: Path) -> None:
    root, cache = tmp_path / "coco", tmp_path / "cache"
    trees.TREES["coco14"](root, "val2014", 7)
    first = open_listing("coco14", root, "val2014", cache=cache)
    assert same(first, open_listing("coco14", root, "val2014"))
    file = root / "annotations" / "instances_val2014.json"
    stat = file.stat()
    file.write_bytes(b"x" * stat.st_size)
    os.utime(file, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    second = open_listing("coco14", root, "val2014", cache=cache)
    assert same(first, second)
    assert second.class_names == first.class_names

    os.utime(file, ns=(stat.st_atime_ns, stat.st_mtime_ns + 1))  # now it counts as changed
    with pytest.raises(ValueError, match="is not JSON"):
        open_listing("coco14", root, "val2014", cache=cache)


def test_settings_do_not_share_a_cache(coco: Path, tmp_path: Path) -> None:
    for images, count in (("annotated", 4), ("all", 5), ("annotated", 4)):
        listing = open_listing("coco14", coco, "val2014", {"images": images}, cache=tmp_path)
        assert len(listing) == count
    assert len(open_listing("coco14", coco, "train2014", cache=tmp_path)) == 4
    assert open_listing("coco", coco, "train2014", cache=tmp_path).name == "coco"
    assert len(list(tmp_path.iterdir())) == 4


def test_tars_are_cached_with_their_class_names(tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    urls = "webdataset:" + tar_of(tmp_path / "a.tar", 3)
    first = open_listing(urls, None, "val", cache=cache)
    assert same(first, open_listing(urls, None, "val", cache=cache))
    (tmp_path / "class_names.txt").write_text("dog\ncat\n")
    os.utime(tmp_path / "class_names.txt", ns=(0, 0))
    assert open_listing(urls, None, "val", cache=cache).class_names == ("dog", "cat")
    tar_of(tmp_path / "a.tar", 4)
    assert len(open_listing(urls, None, "val", cache=cache)) == 4


def test_tables_of_a_folder_are_cached_with_their_class_names(tmp_path: Path) -> None:
    cache, folder = tmp_path / "cache", tmp_path / "own"
    folder.mkdir()
    Image.new("RGB", (4, 4)).save(folder / "a.png")
    (folder / "train.csv").write_text("file,dog,cat\na.png,1,-1\n")
    (folder / "test.csv").write_text("file,dog,cat\na.png,0,1\n")

    def opened() -> Listing:
        return open_listing(f"folder:{folder}", None, "train", cache=cache)

    first = opened()
    assert same(first, opened())
    assert len(list(cache.iterdir())) == 1
    stat = (folder / "train.csv").stat()
    (folder / "train.csv").write_bytes(b"x" * stat.st_size)
    os.utime(folder / "train.csv", ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert same(first, opened())  # the table is not read again
    (folder / "train.csv").write_text("file,dog,cat\na.png,1,-1\n")
    (folder / "test.csv").write_text("file,dog,cat,owl\na.png,0,1,1\n")
    assert opened().class_names == ("cat", "dog", "owl")  # of the other table as well
    (folder / "class_names.txt").write_text("dog\ncat\ncow, brown\n")
    third = opened()
    assert third.class_names == ("dog", "cat", "cow, brown")
    assert third.notes == opened().notes != ()


def test_a_file_name_too_long_for_a_file_is_a_missing_image_of_a_cached_listing(
    tmp_path: Path,
) -> None:
    (tmp_path / "train.csv").write_text(f"file,labels\n{'x' * 300}.png,dog\n")
    for _ in range(2):
        listing = open_listing(f"folder:{tmp_path}", None, "train", cache=tmp_path / "cache")
        with pytest.raises(ImageError, match="xxx"):
            listing.read(0)


def test_class_names_of_tars_say_how_they_were_read(tmp_path: Path) -> None:
    urls = "webdataset:" + tar_of(tmp_path / "a.tar", 1)
    (tmp_path / "class_names.txt").write_text("disc, red\ndog\n")
    (note,) = open_listing(urls, None, "val").notes
    assert "line 1 of class_names.txt has a comma; 'disc, red' is one class" in note


def test_a_name_that_looks_like_a_pattern_is_a_name(trees: ModuleType, tmp_path: Path) -> None:
    root, split = tmp_path / "copy [v1]", "val2014"
    trees.TREES["coco14"](root, split, 2)
    assert all(there for _, _, there in layout_of(DATASETS["coco14"], root, split))
    for path in (root / split, root / "annotations" / f"instances_{split}.json"):
        path.rename(path.with_name(path.name.replace(split, "val[1]")))
    assert all(there for _, _, there in layout_of(DATASETS["coco"], root, "val[1]"))
    assert len(open_listing("coco", root, "val[1]")) == 3
    tar = tar_of(root / "a.tar", 2)
    assert len(open_listing(f"webdataset:{root}/*.tar", None, "x")) == 2, tar


def test_what_numbers_in_tars_are_is_an_option(tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    urls = "webdataset:" + tar_of(tmp_path / "a.tar", 1, labels=b"0 1")
    with pytest.raises(ValueError, match="option labels=columns or labels=vectors"):
        open_listing(urls, None, "val", cache=cache)
    for labels, expected in (("columns", [[1, 1]]), ("vectors", [[0, 1]])) * 2:  # made, then cached
        listing = open_listing(urls, None, "val", {"labels": labels}, cache=cache)
        assert isinstance(listing, WebdatasetListing)
        assert listing.labels.tolist() == expected
        assert labels in listing.notes[0]
    with pytest.raises(UsageError, match="labels must be columns or vectors, not 'x'"):
        open_listing(urls, None, "val", {"labels": "x"})
    urls = "webdataset:" + tar_of(tmp_path / "b.tar", 1, labels=b"-1 1")
    for _ in range(2):
        listing = open_listing(urls, None, "val", cache=cache)
        assert isinstance(listing, WebdatasetListing)
        assert listing.labels.tolist() == [[-1, 1]]


def test_a_damaged_cache_is_made_anew(
    coco: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    first = open_listing("coco14", coco, "val2014", cache=tmp_path)
    (path,) = tmp_path.iterdir()
    whole = path.read_bytes()
    rng = np.random.default_rng(0)
    for place in [*rng.integers(0, len(whole), 60).tolist(), None]:
        damaged = bytearray(whole)
        if place is None:
            damaged = damaged[: len(damaged) // 2]
        else:
            damaged[place] ^= 0xFF
        path.write_bytes(damaged)
        assert same(first, open_listing("coco14", coco, "val2014", cache=tmp_path))
    assert "cannot be used" in caplog.text
    assert path.read_bytes() == whole


def test_a_cache_that_cannot_be_written_is_done_without(
    coco: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").write_text("not a folder")
    listing = open_listing("coco14", coco, "val2014", cache=tmp_path / "file")
    assert len(listing) == 4
    assert "is not cached" in caplog.text


def test_images_that_moved_are_looked_for_again(trees: ModuleType, tmp_path: Path) -> None:
    root, cache = tmp_path / "coco", tmp_path / "cache"
    trees.TREES["coco14"](root, "val2014", 2)
    open_listing("coco14", root, "val2014", cache=cache)
    (root / "images").mkdir()
    (root / "val2014").rename(root / "images" / "val2014")
    open_listing("coco14", root, "val2014", cache=cache).read(0)


def test_a_cached_listing_is_made_anew_when_its_images_are_found_elsewhere(
    trees: ModuleType, tmp_path: Path
) -> None:
    root, cache = tmp_path / "coco", tmp_path / "cache"
    trees.TREES["coco14"](root, "val2014", 2)
    file = str(root / "annotations" / "instances_{split}.json")
    (root / "val2014").rename(tmp_path / "away")
    first = open_listing(file, root, "val2014", cache=cache)  # the images are still to come
    (tmp_path / "away").rename(root / "images")
    second = open_listing(file, root, "val2014", cache=cache)
    second.read(0)
    assert second.identity() == first.identity()


@pytest.mark.parametrize(
    "rows", [[[1, -1, 0], [0, 0, 0], [-1, 1, 1]], [[-1, -1, 1], [0, -1, -1]], [[-1, -1, -1]]]
)
def test_unknown_labels_survive_the_cache(tmp_path: Path, rows: list[list[int]]) -> None:
    from pipeline.features.listings import _read_cache, _write_cache

    labels = np.array(rows, np.int8)
    names = ("a", "b", "c")
    keys = names[: len(rows)]
    listing = ImageListing("x", "train", names, tmp_path, keys, keys, labels, {"k": "v"})
    _write_cache(tmp_path / "x.parquet", listing, {})
    again = _read_cache(tmp_path / "x.parquet")
    assert isinstance(again, ImageListing)
    assert again.labels.dtype == np.int8
    assert again.labels.tolist() == labels.tolist()
    assert again.identity() == listing.identity()


def test_partial_labels_of_many_classes_take_little_room_in_the_cache(tmp_path: Path) -> None:
    from pipeline.features.listings import _read_cache, _write_cache

    count, classes = 500, 1203
    labels = np.full((count, classes), -1, np.int8)
    for row in range(count):
        labels[row, row % classes], labels[row, (row * 7 + 1) % classes] = 1, 0
    keys = tuple(f"{row:06d}" for row in range(count))
    names = tuple(f"class {column}" for column in range(classes))
    listing = ImageListing("x", "train", names, tmp_path, keys, keys, labels)
    _write_cache(tmp_path / "x.parquet", listing, {})
    assert (tmp_path / "x.parquet").stat().st_size < 50_000  # not 600,000 numbers
    again = _read_cache(tmp_path / "x.parquet")
    assert isinstance(again, ImageListing)
    assert (again.labels == labels).all()


def test_the_cache_holds_what_a_reader_expects(coco: Path, tmp_path: Path) -> None:
    import pyarrow.parquet as pq

    open_listing("coco14", coco, "val2014", cache=tmp_path)
    table = pq.read_table(next(tmp_path.iterdir()))
    assert table.column_names == ["key", "file_name", "positives", "unknown"]
    about = json.loads(table.schema.metadata[b"listing"])["about"]
    assert about["options"] == {"images": "annotated"}
    assert about["sources"][0][0].endswith("instances_val2014.json")

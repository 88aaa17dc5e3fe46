"""Trees that other tools write: each opens as labels written by hand say, and passes the check."""

import json
import os
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple

import pytest
from PIL import Image

from dclip.data.listing import ImageListing
from pipeline import datasets
from pipeline.errors import UsageError
from pipeline.listings import open_listing
from pipeline.trees import folder_splits


class Expected(NamedTuple):
    """What a tree holds: classes, and of each split the label vectors by file."""

    classes: tuple[str, ...]
    splits: Mapping[str, Mapping[str, list[int]]]


def image(path: Path, value: int = 0) -> None:
    """A picture whose content differs with the value and the path."""
    path.parent.mkdir(parents=True, exist_ok=True)
    seed = sum(os.fsencode(path)[-12:])
    Image.new("RGB", (8, 8), (value % 256, seed % 256, seed // 256)).save(path)


def class_folders(root: Path) -> Expected:
    for number, file in enumerate(("train/dog/1.jpg", "train/cat/1.JPG", "test/dog/7.jpg")):
        image(root / file, number)
    (root / "train/dog/Thumbs.db").write_bytes(b"")
    (root / "README.md").write_text("# Pets")
    return Expected(
        ("cat", "dog"),
        {
            "train": {"train/cat/1.JPG": [1, 0], "train/dog/1.jpg": [0, 1]},
            "test": {"test/dog/7.jpg": [0, 1]},
        },
    )


def class_folders_of_one_split(root: Path) -> Expected:
    for number, file in enumerate(("train/1.jpg", "traffic light/a.png", "bus/x y.webp")):
        image(root / file, number)
    return Expected(
        ("bus", "traffic light", "train"),
        {
            "train": {
                "bus/x y.webp": [1, 0, 0],
                "traffic light/a.png": [0, 1, 0],
                "train/1.jpg": [0, 0, 1],
            }
        },
    )


TREES: Mapping[str, Callable[[Path], Expected]] = {
    function.__name__: function for function in (class_folders, class_folders_of_one_split)
}


@pytest.fixture(params=TREES)
def tree(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Path, Expected]:
    root = tmp_path / "own data [v1]"
    root.mkdir()
    return root, TREES[request.param](root)


def opened(root: Path, split: str, cache: Path | None = None, **options: str) -> ImageListing:
    listing = open_listing(f"folder:{root}", None, split, options, cache=cache)
    assert isinstance(listing, ImageListing)
    return listing


def test_every_split_opens_as_written_by_hand(tree: tuple[Path, Expected], tmp_path: Path) -> None:
    root, expected = tree
    assert folder_splits(root) == list(expected.splits)
    for split, images in expected.splits.items():
        for _ in range(2):  # made, then cached
            listing = opened(root, split, tmp_path / "cache")
            assert listing.class_names == expected.classes
            assert dict(zip(listing.file_names, listing.labels.tolist(), strict=True)) == images
            for row in range(len(listing)):
                assert listing.read(row).image.size == (8, 8)
    with pytest.raises(UsageError, match=r"no split 'nowhere' in .*splits there are '"):
        opened(root, "nowhere")


def test_every_tree_passes_the_check(
    tree: tuple[Path, Expected], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root, expected = tree
    command = ["check", f"folder:{root}", "--json", "--output", str(tmp_path / "out")]
    code = datasets.main(command)
    shown = capsys.readouterr()
    found = json.loads(shown.out.splitlines()[-1])
    assert (code, found["problems"]) == (0, []), shown
    assert {split for _, split, _ in found["findings"]} >= set(expected.splits)


def test_a_folder_per_class_says_what_is_taken_for_what(tmp_path: Path) -> None:
    class_folders(tmp_path)
    image(tmp_path / "train/stray.jpg")
    (tmp_path / "train/empty").mkdir()
    assert opened(tmp_path, "train").notes == (
        "the folder of an image is its one class; it counts as without the others",
        "1 image in no folder of a class, such as stray.jpg: passed over",
        "1 folder without images: passed over",
        "passed over, as no images: 1 .db (train/dog/Thumbs.db)",
    )


def test_a_class_that_one_split_lacks_has_its_column_in_both(tmp_path: Path) -> None:
    class_folders(tmp_path)
    image(tmp_path / "val/owl/1.jpg")
    assert folder_splits(tmp_path) == ["train", "val", "test"]
    for split in ("train", "val", "test"):
        assert opened(tmp_path, split).class_names == ("cat", "dog", "owl")
    (tmp_path / "class_names.txt").write_text("owl\ndog\ncat\n")
    assert opened(tmp_path, "test").class_names == ("owl", "dog", "cat")
    (tmp_path / "class_names.txt").write_text("owl\ndog\n")
    with pytest.raises(ValueError, match=r"class 'cat' of .* is not in .*class_names"):
        opened(tmp_path, "test")


@pytest.mark.parametrize(
    ("files", "message"),
    [
        (["a/dog/1.jpg", "b/1.jpg", "c/1.jpg"], r"a has images in folders, such as dog, and is"),
        (["train/dog/1.jpg", "train/dog/more/2.jpg"], r"dog has images, and more .*'more'"),
        (["train/1.jpg", "test/1.jpg"], "no table of labels"),
        (["photos/1.jpg"], "no table of labels"),
        (["images/1.jpg", "masks/1.png"], "no table of labels"),
        (["1.jpg", "2.jpg"], "no table of labels"),
    ],
)
def test_trees_that_may_mean_something_else_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], files: list[str], message: str
) -> None:
    for file in files:
        image(tmp_path / file)
    with pytest.raises(ValueError, match=r".*"):
        opened(tmp_path, "train")
    assert datasets.main(["check", f"folder:{tmp_path}", "--output", str(tmp_path / "o")]) == 1
    shown = capsys.readouterr()
    assert re.search(message, shown.out + shown.err), shown


def test_one_class_or_folders_of_any_name_can_be_meant(tmp_path: Path) -> None:
    image(tmp_path / "photos/1.jpg")
    assert opened(tmp_path, "train", format="class-folders").class_names == ("photos",)


def test_tables_of_the_folder_go_before_its_folders(tmp_path: Path) -> None:
    class_folders(tmp_path)
    (tmp_path / "train.csv").write_text("file,labels\ntrain/dog/1.jpg,dog;cat\n")
    assert folder_splits(tmp_path) == ["train"]
    assert opened(tmp_path, "train").labels.tolist() == [[1, 1]]
    assert len(opened(tmp_path, "train", format="class-folders")) == 2


def test_links_are_followed_inside_of_the_tree_and_no_further(tmp_path: Path) -> None:
    root, outside = tmp_path / "root", tmp_path / "outside"
    class_folders(root)
    image(outside / "secret.jpg")
    (root / "train/dog/2.jpg").symlink_to("1.jpg")
    (root / "train/dog/3.jpg").symlink_to(outside / "secret.jpg")
    (root / "train/owl").symlink_to(outside)
    (root / "loop").symlink_to(root)
    listing = opened(root, "train")
    assert listing.file_names == ("train/cat/1.JPG", "train/dog/1.jpg", "train/dog/2.jpg")
    assert any("2, such as train/owl; copy what" in note for note in listing.notes), listing.notes


def test_names_that_are_not_utf8_are_refused(tmp_path: Path) -> None:
    class_folders(tmp_path)
    name = b"caf\xe9.jpg".decode("utf-8", "surrogateescape")
    try:
        image(tmp_path / "train/dog" / name)
    except OSError:
        pytest.skip("this file system has UTF-8 names only")
    with pytest.raises(ValueError, match=r"'caf.udce9.jpg' in .*dog is not UTF-8; rename it"):
        opened(tmp_path, "train")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"format": "x"}, "unknown format 'x'; known are table, class-folders"),
        ({"format": "class-folders"}, "is not in the format class-folders"),
    ],
)
def test_a_format_that_is_not_there_is_refused(
    tmp_path: Path, options: dict[str, str], message: str
) -> None:
    with pytest.raises(UsageError, match=message):
        opened(tmp_path, "train", **options)

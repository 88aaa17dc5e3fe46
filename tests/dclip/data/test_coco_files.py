"""What annotation files call images, and the files these are."""

from pathlib import Path
from typing import Any

import pytest

from dclip.data.coco_files import ImageFiles, find_image_files


def tree(root: Path, *files: str) -> Path:
    """A folder with these files."""
    for file in files:
        (root / file).parent.mkdir(parents=True, exist_ok=True)
        (root / file).write_bytes(b"")
    return root


def find(names: list[str], *folders: Path) -> ImageFiles:
    keyed = {f"k{number}": name for number, name in enumerate(names)}
    return find_image_files(keyed, folders, split="train", source=Path("a.json"))


def test_names_that_stand_for_themselves_are_left_as_they_are(tmp_path: Path) -> None:
    root = tree(tmp_path, "train/a.jpg", "train/b/c.jpg", "a.jpg")
    names = ["a.jpg", "b/c.jpg", "./a.jpg", "gone.jpg", "../train/gone.jpg"]
    assert find(names[:4], root / "train", root) == (root / "train", tuple(names[:4]), ())
    assert find(["a.jpg"], root, root / "train").folder == root
    assert find(["gone.jpg"], root / "train").file_names == ("gone.jpg",)


@pytest.mark.parametrize(
    "name",
    [
        "train/pic1.jpg",  # begins with the split
        "data/train/pic1.jpg",
        "images/pic1.jpg",  # a folder that is not there
        "train\\pic1.jpg",
        "images\\pic1.jpg",
        ".\\pic1.jpg",
        "C:\\data\\shots\\pic1.jpg",
        "C:/data/shots/pic1.jpg",
        "\\\\server\\share\\pic1.jpg",
        "http://images.example.org/pic1.jpg",
        "https://host/a/b/pic1.jpg?width=3#x",
        "s3://bucket/pic1.jpg",
        "file:///C:/data/pic1.jpg",
        "file:///elsewhere/train/pic1.jpg",
        "/elsewhere/train/pic1.jpg",
        "../train/pic1.jpg",
        "/data/local-files/?d=shots/pic1.jpg",
        "http://localhost:8080/data/local-files/?d=shots%2Fpic1.jpg",
        "/data/upload/4/pic1.jpg",
        "PIC1.JPG",
        "Train/Pic1.jpg",
        "http://host/Pic1.JPG",
        "%70ic1.jpg",
    ],
)
def test_one_file_is_known_by_many_names(tmp_path: Path, name: str) -> None:
    root = tree(tmp_path / "root", "train/pic1.jpg", "train/pic2.jpg")
    names = [name, name.replace("ic1", "ic2").replace("IC1", "IC2")]
    found = find(names, root / "train")
    assert found.folder == root / "train"
    assert found.file_names == ("pic1.jpg", "pic2.jpg")
    assert found.notes == (
        f"2 of 2 file names taken for another path in {root / 'train'}, such as {name!r} for"
        " pic1.jpg",
    )


def test_percent_signs_and_unicode_forms_are_matched_both_ways(tmp_path: Path) -> None:
    root = tree(tmp_path, "my pic.jpg", "a%20b.jpg", "caf\u00e9.jpg")
    found = find(["my%20pic.jpg", "a b.jpg", "cafe\u0301.jpg"], root)
    assert found.file_names == ("my pic.jpg", "a%20b.jpg", "caf\u00e9.jpg")


def test_absolute_paths_are_read_inside_and_refused_outside(tmp_path: Path) -> None:
    root = tree(tmp_path / "root", "train/pic1.jpg", "train/sub/pic2.jpg")
    (tmp_path / "link").symlink_to(root)
    inside = root / "train"
    names = [f"{inside}/pic1.jpg", f"{inside}/sub/pic2.jpg", f"{inside}/gone.jpg"]
    for place in (inside, tmp_path / "link" / "train"):
        assert find(names, place).file_names == ("pic1.jpg", "sub/pic2.jpg", "gone.jpg")
    outside = tree(tmp_path / "other", "pic1.jpg") / "pic1.jpg"
    for name in (str(outside), f"file://{outside}", "../pic1.jpg", "/pic1.jpg"):
        with pytest.raises(
            ValueError, match=r"a\.json: image k0 has .*not inside the image folder"
        ):
            find([name], inside)


@pytest.mark.parametrize(
    "name",
    ["", "/", ".", "a/../../b.jpg", "..", "a\0b.jpg", "train/../../train/pic1.jpg", "http://["],
)
def test_what_leads_out_or_to_nothing_is_refused(tmp_path: Path, name: str) -> None:
    root = tree(tmp_path, "train/pic1.jpg")
    with pytest.raises(ValueError, match="not inside the image folder"):
        find(["pic1.jpg", name], root / "train")


def test_a_name_that_no_file_can_have_is_refused(tmp_path: Path) -> None:
    for name in ("x" * 256, "a/" + "\u00e9" * 128 + ".jpg", "http://host/" + "x" * 5000):
        with pytest.raises(ValueError, match=r"image k0 .*, which is too long for a file$"):
            find([name], tmp_path)


@pytest.mark.parametrize(
    ("name", "what"),
    [
        ("http://host/gone.jpg", "is a URL"),
        ("/data/local-files/?d=gone.jpg", "is a URL"),
        ("C:\\x\\gone.jpg", "is a path of another machine"),
        ("x\\gone.jpg", "is a path of another machine"),
    ],
)
def test_a_name_of_which_no_image_is_there_is_refused(tmp_path: Path, name: str, what: str) -> None:
    root = tree(tmp_path, "train/pic1.jpg")
    with pytest.raises(
        ValueError, match=f"image k1, .*gone.jpg', {what}, and there is no gone.jpg"
    ):
        find(["pic1.jpg", name], root / "train")


def test_images_that_are_missed_are_missed_beside_the_others(tmp_path: Path) -> None:
    root = tree(tmp_path, "train/pic1.jpg")
    for name in ("http://h/{}", "images\\{}", "train/{}", "shots/{}"):
        found = find([name.format(file) for file in ("pic1.jpg", "gone.jpg")], root / "train")
        missed = name.format("gone.jpg") if name.startswith("shots") else "gone.jpg"
        assert found.file_names == ("pic1.jpg", missed)


def test_another_folder_with_files_of_the_same_names_is_not_taken(tmp_path: Path) -> None:
    root = tree(tmp_path, "val/1.jpg", "shots/1.jpg", "other/1.jpg")
    for name, folder in (("train/1.jpg", "val"), ("shots/1.jpg", "other")):
        assert find([name], root / folder).file_names == (name,)  # and is missed when it is read
    with pytest.raises(ValueError, match=r"is a URL, and there is no 1\.jpg"):
        find(["http://host/shots/1.jpg"], root / "other")


def test_files_that_only_folders_tell_apart_are_not_mixed_up(tmp_path: Path) -> None:
    root = tree(tmp_path, "1.jpg", "pic.jpg")
    assert find(["a/1.jpg", "b/1.jpg"], root).file_names == ("a/1.jpg", "b/1.jpg")
    assert find(["Pic.jpg", "pic.jpg"], root).file_names == ("Pic.jpg", "pic.jpg")
    with pytest.raises(ValueError, match=r"images k0 and k1 have .* and both would be .*1\.jpg"):
        find(["http://h/a/1.jpg", "http://h/b/1.jpg"], root)
    (root / "PIC.jpg").write_bytes(b"")
    assert find(["pIc.jpg", "1.jpg"], root).file_names == ("pIc.jpg", "1.jpg")  # two are alike


def test_images_in_several_folders_are_listed_from_the_one_above(tmp_path: Path) -> None:
    root = tree(tmp_path, "train/1.jpg", "images/2.jpg", "val2017/3.jpg")
    names = ["1.jpg", "2.jpg", "http://h/val2017/3.jpg"]
    found = find(names, root / "train", root / "images", root)
    assert found.folder == root
    assert found.file_names == ("train/1.jpg", "images/2.jpg", "val2017/3.jpg")


def test_folders_are_listed_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import os

    names = [f"{number}.jpg" for number in range(50)]
    root = tree(tmp_path, *names)
    listed: list[Any] = []
    scan = os.scandir
    monkeypatch.setattr(os, "scandir", lambda path: (listed.append(path), scan(path))[1])
    assert find([f"http://h/{name}" for name in names], root).file_names == tuple(names)
    assert listed == [str(root)]

"""Images of two splits are compared by place and by bytes, whatever their ids are."""

import random
import tarfile
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest

from dclip.data.listing import ImageListing
from dclip.data.webdataset_listing import WebdatasetListing
from dclip.store.paths import as_path
from dclip.world.dataset import ShapesListing
from pipeline.features import duplicates
from pipeline.features.duplicates import find_overlap


def content(seed: int, size: int = 5000) -> bytes:
    return random.Random(seed).randbytes(size)


def listing(folder: Path, files: dict[str, bytes], split: str = "train") -> ImageListing:
    for name, data in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)
    return ImageListing(
        name="folder",
        split=split,
        class_names=("a",),
        image_dir=folder,
        keys=tuple(f"{split}{number}" for number in range(len(files))),
        file_names=tuple(files),
        labels=np.ones((len(files), 1), np.uint8),
    )


def tar_listing(path: Path, images: list[bytes]) -> WebdatasetListing:
    with tarfile.open(path, "w") as out:
        for number, data in enumerate(images):
            member = tarfile.TarInfo(f"{number:04d}.jpg")
            member.size = len(data)
            out.addfile(member, BytesIO(data))
    with tarfile.open(path) as inside:
        members = inside.getmembers()
    return WebdatasetListing(
        split=path.stem,
        class_names=("a",),
        tars=(str(path),),
        keys=tuple(f"{number:04d}" for number in range(len(images))),
        tar_of=np.zeros(len(images), np.int32),
        offsets=np.array([member.offset_data for member in members]),
        sizes=np.array([member.size for member in members]),
        labels=np.ones((len(images), 1), np.uint8),
    )


def test_equal_ids_are_no_overlap_and_other_ids_hide_none(tmp_path: Path) -> None:
    one = listing(tmp_path / "a", {f"{n}.jpg": content(n) for n in range(4)})
    other = listing(tmp_path / "b", {f"{n}.jpg": content(10 + n) for n in range(4)})
    found = find_overlap(one, other, everything=False)
    assert (found.by_place, found.copies, found.alike) == ([], [], [])
    assert found.is_whole
    copied = listing(tmp_path / "c", {"x.jpg": content(99), "y.jpg": content(2)}, "test")
    assert find_overlap(one, copied, everything=False).copies == [(2, 1)]


def test_one_file_under_two_ids_is_found_by_its_place(tmp_path: Path) -> None:
    one = listing(tmp_path / "a", {f"{n}.jpg": content(n) for n in range(4)})
    other = listing(tmp_path / "a", {"9.jpg": content(9), "1.jpg": content(1)}, "test")
    assert find_overlap(one, other, everything=False).by_place == [1]
    (tmp_path / "link").symlink_to(tmp_path / "a")
    linked = listing(tmp_path / "link", {"3.jpg": content(3)}, "test")
    assert find_overlap(one, linked, everything=False).by_place == [0]


def test_files_of_one_size_and_one_end_are_compared_by_all_bytes(tmp_path: Path) -> None:
    end = content(0, 2000)
    one = listing(tmp_path / "a", {"a.jpg": content(1, 3000) + end})
    other = listing(tmp_path / "b", {"b.jpg": content(2, 3000) + end})
    assert find_overlap(one, other, everything=True).copies == []


def test_small_pictures_of_another_name_are_alike_and_not_copies(tmp_path: Path) -> None:
    one = listing(tmp_path / "a", {"blank.jpg": b"white", "c.jpg": b"black"})
    other = listing(tmp_path / "b", {"paper.jpg": b"white", "c.jpg": b"black"}, "test")
    found = find_overlap(one, other, everything=False)
    assert (found.copies, found.alike) == ([(1, 1)], [(0, 0)])


def test_tars_are_compared_by_the_bytes_of_their_images(tmp_path: Path) -> None:
    one = tar_listing(tmp_path / "a.tar", [content(1), content(2), b"small"])
    other = tar_listing(tmp_path / "b.tar", [content(5), content(2), b"small"])
    found = find_overlap(one, other, everything=False)
    assert (found.by_place, found.copies, found.alike) == ([], [(1, 1)], [(2, 2)])
    assert find_overlap(one, one, everything=False).copies == []


def test_images_that_are_twice_in_one_split_are_found_once(tmp_path: Path) -> None:
    one = listing(tmp_path, {"a.jpg": content(1), "b.jpg": content(2), "c.jpg": content(1)})
    assert find_overlap(one, one, everything=False).copies == [(0, 2)]


def test_a_missing_image_and_drawn_or_remote_ones_are_passed_over(tmp_path: Path) -> None:
    one = listing(tmp_path / "a", {"a.jpg": content(1), "b.jpg": content(2)})
    (tmp_path / "a" / "a.jpg").unlink()
    other = listing(tmp_path / "b", {"c.jpg": content(2)}, "test")
    assert find_overlap(one, other, everything=False).copies == [(1, 0)]
    drawn = ShapesListing("test")
    assert find_overlap(drawn, ShapesListing("train"), everything=False).compared == "by place"
    remote = ImageListing(
        "coco", "val", ("a",), as_path("s3://b/x"), ("k",), ("a.jpg",), np.ones((1, 1), np.uint8)
    )
    assert find_overlap(one, remote, everything=True).by_place == []
    assert find_overlap(remote, remote, everything=True).copies == []


def test_of_many_files_a_part_is_compared_and_it_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = {f"{n}.jpg": content(n, 5000 + n % 7) for n in range(40)}
    one, other = listing(tmp_path / "a", files), listing(tmp_path / "b", files, "test")
    assert len(find_overlap(one, other, everything=False).copies) == 40
    monkeypatch.setattr(duplicates, "_MOST_READ", 30)
    some = find_overlap(one, other, everything=False)
    assert 0 < len(some.copies) < 40
    assert not some.is_whole
    assert "a part of them" in some.compared
    assert len(find_overlap(one, other, everything=True).copies) == 40
    monkeypatch.setattr(duplicates, "_MOST_SIZES", 10)
    assert not find_overlap(one, other, everything=False).is_whole

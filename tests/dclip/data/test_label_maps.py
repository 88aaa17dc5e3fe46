from dataclasses import replace
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from dclip.data.label_maps import disagreements, label_map_doubts, out_of_place
from dclip.data.listing import ImageListing
from dclip.data.registry import get_dataset
from dclip.data.segmentation import MaskFolderListing

PICTURES = 40


@pytest.fixture(scope="module")
def stuff(trees: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> MaskFolderListing:
    """Stuff-thing maps of some pictures."""
    root = tmp_path_factory.mktemp("coco")
    trees.write_coco(root, "val2017", PICTURES)
    listing = get_dataset("stuff").open(root, "val2017", {})
    assert isinstance(listing, MaskFolderListing)
    return listing


@pytest.fixture(scope="module")
def labelled(stuff: MaskFolderListing) -> ImageListing:
    """The image-level labels of the same pictures."""
    listing = get_dataset("coco17").open(stuff.image_paths[0].parent.parent, "val2017", {})
    assert isinstance(listing, ImageListing)
    return listing


def doubts(stuff: MaskFolderListing, labelled: ImageListing, moved: dict[int, int]) -> list[str]:
    """What is told when things are read through another table."""
    listing = replace(stuff, id_map={**stuff.id_map, **moved})
    return label_map_doubts(listing, range(PICTURES), labelled=labelled, min_images=3)


def test_the_right_table_raises_no_doubt(stuff: MaskFolderListing, labelled: ImageListing) -> None:
    assert doubts(stuff, labelled, {}) == []


def test_two_swapped_classes_are_told_of(stuff: MaskFolderListing, labelled: ImageListing) -> None:
    told = doubts(stuff, labelled, {0: 3, 3: 0})
    assert len(told) == 2
    assert told[0].startswith("masks of 'person' go with labels of 'motorcycle' (1.00)")


def test_ids_that_are_one_off_are_told_of(stuff: MaskFolderListing, labelled: ImageListing) -> None:
    things = {stored: (column + 1) % 16 for stored, column in stuff.id_map.items() if column < 16}
    judged = (labelled.labels.sum(axis=0) >= 3).sum()
    assert judged > 8
    assert len(doubts(stuff, labelled, things)) == judged


def test_unknown_labels_and_rare_classes_are_not_judged() -> None:
    labels = np.eye(2, dtype=np.int8).repeat(4, axis=0)
    swapped = labels[:, ::-1] > 0
    assert len(disagreements(swapped, labels, ("cat", "dog"), min_images=4)) == 2
    assert disagreements(swapped, labels, ("cat", "dog"), min_images=5) == []
    assert disagreements(swapped, -labels, ("cat", "dog"), min_images=1) == []


def test_sky_belongs_above_the_road(trees: ModuleType, tmp_path: Path) -> None:
    values = np.full((trees.SIDE, trees.SIDE), 23)  # sky
    values[trees.SIDE // 2 :] = 7  # road
    trees.write_cityscapes(tmp_path, "val", 1)
    name = "aachen_000000_000019_gtFine_labelIds.png"
    trees.write_mask(tmp_path / "gtFine" / "val" / "aachen" / name, values)
    listing = get_dataset("cityscapes").open(tmp_path, "val", {})
    assert isinstance(listing, MaskFolderListing)
    assert label_map_doubts(listing, [0]) == []
    swapped = replace(listing, id_map={**listing.id_map, 7: 10, 23: 0})
    assert label_map_doubts(swapped, [0]) == [
        "'sky' lies below 'road' (0.75, 0.25 of the way down)"
    ]


def test_classes_without_pixels_have_no_place() -> None:
    assert out_of_place(np.array([np.nan, 0.3]), ("sky", "road")) == []
    assert out_of_place(np.array([0.4, 0.3]), ("sky", "road"), margin=0.2) == []


def test_real_pictures_have_the_sky_above(shared_data: Path, tmp_path: Path) -> None:
    for name, split, pairs in (
        ("cityscapes", "val", {"leftImg8bit": "val/frankfurt", "gtFine": "val/frankfurt"}),
        ("ade20k", "validation", {"images": "validation", "annotations": "validation"}),
    ):
        sample = shared_data / f"{name}_sample" / ("sampleData" if name == "ade20k" else "")
        for folder, below in pairs.items():
            link = tmp_path / name / folder / below
            link.parent.mkdir(parents=True)
            link.symlink_to(sample / folder)
        listing = get_dataset(name).open(tmp_path / name, split, {})
        assert label_map_doubts(listing, range(len(listing))) == []

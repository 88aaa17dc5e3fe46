"""The shapes world: reproducible, and its labels, masks, captions and COCO files agree."""

import hashlib
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from dclip.texts import count_tokens
from dclip.world import shapes

SAMPLE = 120


@pytest.fixture(scope="module")
def scenes() -> dict[str, list[shapes.Scene]]:
    """The first scenes of both splits of scenes."""
    return {split: [shapes.scene(split, i) for i in range(SAMPLE)] for split in ("train", "test")}


def _digest(drawn: shapes.Scene) -> str:
    content = drawn.image.tobytes() + drawn.mask.tobytes() + drawn.labels.tobytes()
    return hashlib.sha256(content + drawn.caption.encode()).hexdigest()


def test_the_images_are_those_of_version_one() -> None:
    # golden: recorded on 2026-11-27, before images had long captions, at commit 6407cd8; caches of
    # features and the packaged CLIPs depend on it. A deliberate change takes another VERSION.
    drawn = [shapes.scene(split, 5) for split in ("train", "test", "single")]
    drawn += [shapes.photo(5), shapes.photo(5, resolution=96, attributes=False)]
    assert [_digest(one)[:12] for one in drawn] == [
        "242626757123",
        "9c90fc929190",
        "cdd5cd44372c",
        "8a054b8954b1",
        "a1661aff8cad",
    ]
    assert shapes.VERSION == 1


def test_a_scene_does_not_depend_on_what_was_drawn_before() -> None:
    forwards = [_digest(shapes.scene("train", index)) for index in range(4)]
    backwards = [_digest(shapes.scene("train", index)) for index in reversed(range(4))]
    assert forwards == backwards[::-1]


def test_another_process_draws_the_same_scene() -> None:
    program = (
        "import hashlib; from dclip.world import shapes; s = shapes.scene('test', 7, seed=3);"
        "print(hashlib.sha256(s.image.tobytes() + s.mask.tobytes()).hexdigest())"
    )
    other = subprocess.run([sys.executable, "-c", program], capture_output=True, check=True)
    here = shapes.scene("test", 7, seed=3)
    digest = hashlib.sha256(here.image.tobytes() + here.mask.tobytes()).hexdigest()
    assert other.stdout.decode().strip() == digest


def test_splits_seeds_and_photos_are_different_worlds() -> None:
    images = [
        shapes.scene("train", 0).image,
        shapes.scene("test", 0).image,
        shapes.scene("single", 0).image,
        shapes.scene("train", 1).image,
        shapes.scene("train", 0, seed=1).image,
        shapes.photo(0).image,
    ]
    assert len({image.tobytes() for image in images}) == len(images)


def test_labels_objects_and_mask_agree(scenes: dict[str, list[shapes.Scene]]) -> None:
    for drawn in scenes["train"]:
        in_mask = set(np.unique(drawn.mask).tolist()) - {0}
        assert in_mask == set((np.flatnonzero(drawn.labels) + 1).tolist())
        assert in_mask == {item.class_index + 1 for item in drawn.objects}
        for number, item in enumerate(drawn.objects, start=1):
            rows, columns = np.nonzero(drawn.instances == number)
            assert item.visible_pixels == rows.size
            assert item.box == (
                columns.min(),
                rows.min(),
                columns.max() - columns.min() + 1,
                rows.max() - rows.min() + 1,
            )
            assert (drawn.mask[rows, columns] == item.class_index + 1).all()
        assert ((drawn.instances > 0) == (drawn.mask > 0)).all()


def test_scenes_hold_one_to_six_objects_that_can_be_seen(
    scenes: dict[str, list[shapes.Scene]],
) -> None:
    counts = []
    for drawn in [*scenes["train"], *scenes["test"]]:
        counts.append(len(drawn.objects))
        for item in drawn.objects:
            assert item.visible_fraction >= shapes.MIN_VISIBLE_FRACTION
            assert item.visible_pixels > 300
    assert min(counts) == 1
    assert 5 <= max(counts) <= shapes.MAX_OBJECTS
    assert np.mean(counts) > 3  # cluttered on the whole


def test_both_splits_hold_all_classes_about_equally(scenes: dict[str, list[shapes.Scene]]) -> None:
    # Prevalence is about 0.18; over 120 scenes its standard error is 0.035.
    for drawn in scenes.values():
        prevalence = np.mean([scene.labels for scene in drawn], axis=0)
        assert prevalence.min() > 0.07
        assert prevalence.max() < 0.32


def test_single_images_show_one_whole_object_and_every_class_equally_often() -> None:
    drawn = [shapes.scene("single", index) for index in range(32)]
    assert [scene.objects[0].class_index for scene in drawn] == [*range(16), *range(16)]
    assert all(len(scene.objects) == 1 and scene.labels.sum() == 1 for scene in drawn)


def test_the_visible_fraction_of_a_whole_object_is_one() -> None:
    # The area of every class is counted once, on a fine grid; drawn pixels must come to the same,
    # a few percent of outline pixels apart. Corners may leave the canvas at some rotations.
    fractions = {
        scene.objects[0].class_index: scene.objects[0].visible_fraction
        for scene in (shapes.scene("single", index) for index in range(64))
    }
    assert len(fractions) == len(shapes.CLASS_NAMES)
    assert min(fractions.values()) > 0.8
    assert np.mean(list(fractions.values())) > 0.95


@given(
    index=st.integers(0, 10_000), resolution=st.sampled_from([96, 192]), attributes=st.booleans()
)
def test_captions_name_the_largest_visible_object(
    index: int, resolution: int, attributes: bool
) -> None:
    drawn = shapes.photo(index, resolution=resolution, neighbours=(0, 4), attributes=attributes)
    largest = max(drawn.objects, key=lambda item: item.visible_pixels)
    words = drawn.caption.strip(".").split()
    assert drawn.objects[drawn.salient] == largest
    assert [word for word in words if word in shapes.CLASS_NAMES] == [
        shapes.CLASS_NAMES[largest.class_index]
    ]


def test_long_captions_tell_each_object_once_and_the_ground(
    scenes: dict[str, list[shapes.Scene]],
) -> None:
    for drawn in scenes["train"]:
        *told, ground = drawn.sentences
        assert "ground" in ground
        assert len(told) == len(drawn.objects)
        largest_first = sorted(drawn.objects, key=lambda item: -item.visible_pixels)
        for sentence, item in zip(told, largest_first, strict=True):
            words = sentence.lower().strip(".").split()
            known = [word for word in words if word in shapes.CLASS_NAMES]
            assert known == [shapes.CLASS_NAMES[item.class_index]]
            assert {item.colour, item.texture, item.size} <= set(words)
            left, top, width, height = item.box
            across, down = left + width / 2, top + height / 2
            for centre, sides in (
                (across, ("left", "right")),
                (down, ("upper top", "lower bottom")),
            ):
                third = int(3 * centre / shapes.RESOLUTION)
                is_told = [bool(set(side.split()) & set(words)) for side in sides]
                assert is_told == [third == 0, third == 2]


def test_long_captions_fit_clip_and_tell_images_apart(
    scenes: dict[str, list[shapes.Scene]],
) -> None:
    every = [" ".join(drawn.sentences) for drawn in (*scenes["train"], *scenes["test"])]
    assert max(map(count_tokens, every)) <= 77
    assert len(set(every)) == len(every)
    short = {drawn.caption for drawn in (*scenes["train"], *scenes["test"])}
    assert len(short) < len(every)


def test_one_object_among_pieces_has_a_mask_of_its_own() -> None:
    for index in range(32):
        drawn = shapes.single("train", index)
        (item,) = drawn.objects
        assert item.class_index == index % 16
        assert np.unique(drawn.mask).tolist() == [0, item.class_index + 1]
        assert item.visible_fraction > 0.8
        assert len(drawn.sentences) == 2
    assert len({shapes.single(split, 0).image.tobytes() for split in shapes.SINGLE_SIZES}) == 3
    with pytest.raises(ValueError, match="shapes-single has 'train', 'val', 'test'"):
        shapes.single("single", 0)
    with pytest.raises(ValueError, match="use 0 to 319"):
        shapes.single("val", 320)


def test_bare_captions_tell_nothing_but_the_name() -> None:
    told = set()
    for index in range(40):
        drawn = shapes.photo(index, resolution=96, neighbours=(0, 0), attributes=False)
        told.add(drawn.caption.replace(shapes.CLASS_NAMES[drawn.objects[0].class_index], "{}"))
    assert told == {"a photo of a {}.", "A photo of a {}", "{}", "a {}"}


def test_scenes_scale_with_the_resolution() -> None:
    # Same layout, twice the pixels a side: about four times the pixels an object.
    small, large = (shapes.scene("test", 5, resolution=side) for side in (96, 192))
    assert small.image.shape == (96, 96, 3)
    ratio = (large.mask > 0).sum() / (small.mask > 0).sum()
    assert ratio == pytest.approx(4, rel=0.1)


# pycocotools 2.0 copies arrays in a way that numpy 2 will refuse one day.
@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
def test_coco_files_give_the_same_labels_and_masks_back(tmp_path: Path) -> None:
    from pycocotools.coco import COCO

    count = 6
    path = shapes.write_coco(tmp_path, "test", count=count)
    assert path == tmp_path / "annotations" / "instances_test.json"
    coco = COCO(str(path))
    names = tuple(item["name"] for item in coco.loadCats(sorted(coco.getCatIds())))
    assert names == shapes.CLASS_NAMES
    assert coco.getImgIds() == list(range(1, count + 1))
    for image_id in coco.getImgIds():
        expected = shapes.scene("test", image_id - 1)
        (record,) = coco.loadImgs(image_id)
        with Image.open(tmp_path / "test" / record["file_name"]) as image:
            pixels = np.asarray(image).astype(int)
        assert np.abs(pixels - expected.image).mean() < 12  # JPEG, on grain
        mask = np.zeros_like(expected.mask)
        annotations = coco.loadAnns(coco.getAnnIds(image_id))
        for annotation, item in zip(annotations, expected.objects, strict=True):
            covered = coco.annToMask(annotation).astype(bool)
            assert covered.sum() == annotation["area"] == item.visible_pixels
            assert tuple(annotation["bbox"]) == item.box
            assert annotation["iscrowd"] == 0
            assert not mask[covered].any()  # visible parts never overlap
            mask[covered] = annotation["category_id"]
        assert (mask == expected.mask).all()
        labels = np.zeros(16, np.uint8)
        labels[[annotation["category_id"] - 1 for annotation in annotations]] = 1
        assert (labels == expected.labels).all()


@pytest.mark.parametrize(
    ("split", "index", "message"),
    [("val", 0, "unknown split 'val'"), ("test", 1000, "index 1000"), ("train", -1, "index -1")],
)
def test_scenes_that_do_not_exist_are_named(split: str, index: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        shapes.scene(split, index)


def test_wrong_requests_say_what_to_use(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="use 64 or more"):
        shapes.scene("test", 0, resolution=32)
    with pytest.raises(ValueError, match="negative"):
        shapes.photo(-1)
    with pytest.raises(ValueError, match="fewest, most"):
        shapes.photo(0, neighbours=(2, 1))
    with pytest.raises(ValueError, match="use 1 to 1000"):
        shapes.write_coco(tmp_path, "test", count=1001)
    with pytest.raises(ValueError, match="unknown split"):
        shapes.write_coco(tmp_path, "val")

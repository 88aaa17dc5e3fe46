"""The few-shot protocol: draws against Dassl's own, files of splits, what they may not say."""

import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from dclip.data.few_shot import (
    SPLIT_SEED,
    base_and_new,
    draw_shots,
    few_shot,
    split_in_three,
    split_off,
)
from dclip.data.few_shot_splits import SPLITS, find_few_shot
from dclip.data.listing import ImageListing
from dclip.fitting.drawn import part_of
from dclip.fitting.fit import learning_rate
from dclip.fitting.loop import Loop
from dclip.fitting.subset import Subset
from dclip.methods.pixels.settings import DAPTSettings, MaPLeSettings
from dclip.methods.settings import DualCoOpSettings, MethodSettings
from dclip.metrics import harmonic_mean, top1_accuracy


@pytest.fixture(scope="module")
def golden() -> dict[str, np.ndarray]:
    path = Path(__file__).parents[2] / "golden" / "few_shot_protocol.npz"
    with np.load(path) as stored:
        return {name: stored[name] for name in stored.files}


@pytest.mark.parametrize("seed", [1, 2, 3])
@pytest.mark.parametrize("shots", [1, 2, 4, 8, 16])
def test_shots_are_dassls_index_by_index(
    shots: int, seed: int, golden: dict[str, np.ndarray]
) -> None:
    train, val = (golden[f"fewshot.input.{name}_labels"].tolist() for name in ("train", "val"))
    found = few_shot(train, val, shots=shots, seed=seed)
    for name, drawn in found._asdict().items():
        assert drawn == golden[f"fewshot.out.{name}_seed{seed}_shots{shots}"].tolist()


def test_base_and_new_classes_are_coops_index_by_index(golden: dict[str, np.ndarray]) -> None:
    train, val = (golden[f"fewshot.input.{name}_labels"].tolist() for name in ("train", "val"))
    drawn = few_shot(train, val, shots=4, seed=1)
    test = (np.arange(len(train) and 70) % 7).tolist()
    both = base_and_new([train[row] for row in drawn.train])
    for kind, classes in zip(("base", "new"), both, strict=True):
        for name, labels, rows in (
            ("train", train, drawn.train),
            ("val", val, drawn.val),
            ("test", test, range(len(test))),
        ):
            kept = [row for row in rows if labels[row] in classes]
            assert kept == golden[f"split.out.{kind}_{name}_index"].tolist()
            relabelled = [classes.index(labels[row]) for row in kept]
            assert relabelled == golden[f"split.out.{kind}_{name}_label"].tolist()


def test_the_split_of_the_training_images_is_coops(golden: dict[str, np.ndarray]) -> None:
    train, val = split_off(golden["fewshot.input.train_labels"].tolist(), Random(1))
    assert train == golden["split_trainval.out.seed1_train_index"].tolist()
    assert val == golden["split_trainval.out.seed1_val_index"].tolist()


@pytest.mark.parametrize(
    ("name", "kind", "changes"),
    [
        ("maple_5_epochs_lr0.0035", MaPLeSettings, {}),
        ("dapt_10_epochs_lr0.0035", DAPTSettings, {}),
        ("dualcoop_50_epochs_lr0.002", DualCoOpSettings, {}),
    ],
)
def test_schedules_of_the_authors_presets_are_theirs(
    name: str, kind: type[MethodSettings], changes: dict[str, Any], golden: dict[str, np.ndarray]
) -> None:
    loop = Loop(**{**kind.presets["author"].loop, **changes})
    found = [learning_rate(loop, epoch) for epoch in range(loop.epochs)]
    np.testing.assert_allclose(found, golden[f"schedule.{name}"], rtol=1e-12)


def test_the_same_draw_trains_in_the_loop(golden: dict[str, np.ndarray]) -> None:
    own = torch.from_numpy(golden["fewshot.input.train_labels"])
    source = Rows(torch.nn.functional.one_hot(own, 7))
    names = [str(n) for n in range(7)]
    every = np.arange(len(own))
    for protocol in ("few_shot", "base_to_new"):
        subset = Subset(shots=4, protocol=protocol)
        drawn = part_of(subset, source, every, names, seed=2)  # type: ignore[arg-type]
        expected = golden["fewshot.out.train_seed2_shots4"]
        if protocol == "base_to_new":
            expected = expected[own.numpy()[expected] < 4]
            assert drawn.columns == [0, 1, 2, 3]
            assert drawn.features.labels.shape == (141, 4)
        assert drawn.rows.tolist() == sorted(expected.tolist())
        assert (drawn.features.labels[drawn.rows].sum(1) == 1).all()
    whole = part_of(Subset(protocol="base_to_new"), source, every, names, seed=0)  # type: ignore[arg-type]
    assert whole.rows.tolist() == np.flatnonzero(own.numpy() < 4).tolist()
    spoilt = Rows(source.labels.clone())
    spoilt.labels[3] = 1
    with pytest.raises(ValueError, match="images of one class each; 1 of 141 show none, several"):
        part_of(Subset(protocol="few_shot"), spoilt, every, names, seed=0)  # type: ignore[arg-type]
    rows = np.flatnonzero(own.numpy() < 6)
    with pytest.raises(ValueError, match="no training image is of class '6'"):
        part_of(Subset(protocol="few_shot"), source, rows, names, seed=0)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="take out label_noise"):
        Subset(protocol="few_shot", label_noise=0.1)


class Rows:
    """Images of which nothing but the labels is there."""

    grid, views = (1, 1), 1

    def __init__(self, labels: torch.Tensor) -> None:
        self.labels = labels

    def local(self, *_: Any) -> torch.Tensor:
        raise NotImplementedError


@given(st.lists(st.integers(0, 4), min_size=1), st.integers(1, 6), st.integers(0, 9))
def test_every_class_has_its_shots_or_all_it_has(labels: list[int], shots: int, seed: int) -> None:
    drawn = draw_shots(labels, shots, Random(seed))
    assert len(set(drawn)) == len(drawn)
    counts = Counter(labels)
    expected = {label: min(shots, count) for label, count in counts.items()}
    assert Counter(labels[row] for row in drawn) == expected


@given(st.lists(st.integers(4, 30), min_size=1, max_size=5), st.integers(0, 9))
def test_parts_hold_each_image_once_and_their_share_of_each_class(
    counts: list[int], seed: int
) -> None:
    labels = [label for label, count in enumerate(counts) for _ in range(count)]
    parts = split_in_three(labels, Random(seed))
    assert sorted(row for part in parts for row in part) == list(range(len(labels)))
    for label, count in enumerate(counts):
        own = [sum(labels[row] == label for row in part) for part in parts]
        train, val = round(count / 2), round(0.2 * count)
        assert own == [train, val, count - train - val]


def test_too_few_images_are_refused() -> None:
    with pytest.raises(ValueError, match="class number 1 has 2 images, too few to be parted 80/20"):
        split_off([0] * 5 + [1] * 2, Random(0))
    with pytest.raises(ValueError, match=r"class 'ox' has 2 images, too few .* 50/20/30"):
        split_in_three([0, 0], Random(0), names=["ox"])
    with pytest.raises(ValueError, match="shots must be 1 or more"):
        few_shot([0], [0], shots=0, seed=1)


def test_accuracy_by_hand() -> None:
    labels = torch.eye(4, dtype=torch.int)
    scores = torch.tensor([[3.0, 1, 2, 0], [1, 1, 0, 0], [0, 0, 0, 0], [0, 0, 9, 8]])
    assert top1_accuracy(scores, labels) == 0.25  # a tie and an empty row are wrong
    with pytest.raises(ValueError, match="2 images of 4 show none or several"):
        top1_accuracy(scores, labels.clone().index_fill_(0, torch.tensor([0, 1]), 1))
    # that of the averages in MaPLe's table, and not the mean over the data sets
    assert round(100 * harmonic_mean(0.8228, 0.7514), 2) == 78.55
    assert round(100 * harmonic_mean(0.6934, 0.7422), 2) == 71.7
    assert harmonic_mean(0.0, 0.0) == harmonic_mean(0.5, 0.0) == 0.0


def pictures(root: Path, *files: str) -> None:
    for file in files:
        (root / file).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 8), (sum(file.encode()) % 256, 9, 9)).save(root / file)


def listed(root: Path, split: str, *, is_sure: bool = False) -> ImageListing:
    tree = find_few_shot(root, is_sure=is_sure)
    assert tree is not None
    assert tree.splits == SPLITS
    return tree.read(split)


def told(listing: ImageListing) -> list[tuple[str, str]]:
    """Each file and the name of its class, in order."""
    assert (listing.labels.sum(1) == 1).all()
    names = [listing.class_names[column] for column in listing.labels.argmax(1)]
    return list(zip(listing.file_names, names, strict=True))


ENTRIES = {
    "train": [["b_x/2.jpg", 1, "hot_dog"], ["a/1.jpg", 0, "cat"], ["b_x/1.jpg", 1, "hot_dog"]],
    "val": [["a/2.jpg", 0, "cat"]],
    "test": [["a/3.jpg", 0, "cat"], ["b_x/3.jpg", 1, "hot_dog"]],
}


def write(root: Path, entries: Any = ENTRIES, top: str = "images") -> None:
    pictures(root, *(f"{top}/{folder}/{n}.jpg" for folder in ("a", "b_x") for n in (1, 2, 3)))
    (root / "split_zhou_Mine.json").write_text(json.dumps(entries))


@pytest.mark.parametrize("top", ["images", "jpg", "."])
def test_a_file_of_splits_says_images_classes_and_order(top: str, tmp_path: Path) -> None:
    write(tmp_path, top=top)
    before = "" if top == "." else f"{top}/"
    for split, entries in ENTRIES.items():
        listing = listed(tmp_path, split)
        assert listing.class_names == ("cat", "hot dog")  # as prompts have them
        expected = [(f"{before}{path}", name.replace("_", " ")) for path, _, name in entries]  # type: ignore[union-attr,has-type]
        assert told(listing) == expected
    assert listing.read(0).image.size == (8, 8)


def changed(split: str, place: int, entry: Any) -> dict[str, Any]:
    lists: dict[str, Any] = {name: list(own) for name, own in ENTRIES.items()}
    lists[split][place] = entry
    return lists


@pytest.mark.parametrize(
    ("entries", "reason"),
    [
        ([], "must be an object with the lists 'train', 'val' and 'test'"),
        ({**ENTRIES, "val": []}, "must be an object with the lists"),
        (changed("val", 0, ["a/2.jpg", "0", "cat"]), "entry 0 of 'val' must be .path, number"),
        (changed("val", 0, ["a/2.jpg", True, "cat"]), "entry 0 of 'val' must be .path, number"),
        (changed("test", 1, ["b_x/3.jpg", 1, "dog"]), "number 1 is called 'hot_dog', and 'dog' at"),
        (changed("test", 1, ["b_x/3.jpg", 2, "hot_dog"]), "'hot_dog' has the numbers 1 and 2"),
        (changed("test", 1, ["b_x/3.jpg", 7, "cow"]), "numbered up to 7, and number 2 is missing"),
        (
            changed("val", 0, ["b_x/3.jpg", 0, "cat"]),
            "folder 'b_x' has images of classes 'cat' and",
        ),
        (changed("train", 0, ["a/9.jpg", 0, "cat"]), "lists .a/9.jpg., which is neither in"),
        (changed("train", 2, ["a/9.jpg", 0, "cat"]), "1 image in 'train' that is not in"),
        (changed("train", 2, ["a/1.jpg", 0, "cat"]), "image 'a/1.jpg' is in 'train' twice"),
        (changed("train", 0, ["../a/9.jpg", 0, "cat"]), "leads out of the data set"),
        (changed("train", 0, ["/etc/a.jpg", 0, "cat"]), "leads out of the data set"),
    ],
)
def test_a_file_of_splits_that_disagrees_is_refused(
    entries: Any, reason: str, tmp_path: Path
) -> None:
    write(tmp_path, entries)
    with pytest.raises(ValueError, match=reason):
        listed(tmp_path, "train")


def test_an_image_in_the_folder_of_another_class_is_refused(tmp_path: Path) -> None:
    swapped = {"a": (1, "b x"), "b_x": (0, "a")}
    entries = {
        split: [[path, *swapped[str(path).partition("/")[0]]] for path, *_ in own]
        for split, own in ENTRIES.items()
    }
    write(tmp_path, entries)
    with pytest.raises(
        ValueError, match=r"'b_x/2.jpg' is of class 'a', and lies in the folder of class 'b x'"
    ):
        listed(tmp_path, "test")
    (tmp_path / "split_zhou_Mine.json").write_text("{")
    with pytest.raises(ValueError, match=r"split_zhou_Mine\.json is no JSON"):
        listed(tmp_path, "test")
    (tmp_path / "split_zhou_Other.json").write_text("{}")
    with pytest.raises(ValueError, match="keep one of them"):
        listed(tmp_path, "test")


def test_a_folder_of_classes_is_parted_where_the_user_asks_for_it(tmp_path: Path) -> None:
    files = [f"{name}/{n:02}.jpg" for name in ("ant", "bee") for n in range(10)]
    pictures(tmp_path, *files)
    assert find_few_shot(tmp_path) is None
    parts = [told(listed(tmp_path, split, is_sure=True)) for split in SPLITS]
    assert [len(part) for part in parts] == [10, 4, 6]
    assert sorted(file for part in parts for file, _ in part) == files
    random = Random(SPLIT_SEED)
    own = list(range(10))
    random.shuffle(own)  # the first class's
    assert [file for file, _ in parts[0][:5]] == [f"ant/{n:02}.jpg" for n in own[:5]]


@pytest.mark.parametrize("val", [False, True])
def test_training_images_are_parted_where_test_images_are_given(val: bool, tmp_path: Path) -> None:
    pictures(tmp_path, *(f"train/{name}/{n}.jpg" for name in ("ant", "bee") for n in range(5)))
    pictures(tmp_path, *(f"testing/{name}/9.jpg" for name in ("ant", "bee")))
    if val:
        pictures(tmp_path, "valid/ant/7.jpg")
    sizes = [len(listed(tmp_path, split, is_sure=True)) for split in SPLITS]
    assert sizes == ([10, 1, 2] if val else [8, 2, 2])


def test_caltech_and_eurosat_have_coops_names(tmp_path: Path) -> None:
    caltech = (
        "BACKGROUND_Google",
        "Faces",
        "Faces_easy",
        "Leopards",
        "Motorbikes",
        "airplanes",
        "ant",
    )
    pictures(tmp_path / "c", *(f"{name}/{n}.jpg" for name in caltech for n in range(4)))
    listing = listed(tmp_path / "c", "test", is_sure=True)
    assert listing.class_names == ("face", "leopard", "motorbike", "airplane", "ant")
    assert {(file.partition("/")[0], name) for file, name in told(listing)} == {
        ("Faces", "face"), ("Leopards", "leopard"), ("Motorbikes", "motorbike"),
        ("airplanes", "airplane"), ("ant", "ant"),
    }  # fmt: skip
    assert any("left out" in note and "Faces_easy" in note for note in listing.notes)
    eurosat = ("AnnualCrop", "Forest", "HerbaceousVegetation", "Highway", "Industrial", "Pasture",
               "PermanentCrop", "Residential", "River", "SeaLake")  # fmt: skip
    pictures(tmp_path / "e", *(f"{name}/{n}.jpg" for name in eurosat for n in range(4)))
    names = listed(tmp_path / "e", "train", is_sure=True).class_names
    assert names[0] == "Annual Crop Land"
    assert names[3] == "Highway or Road"
    assert names[-1] == "Sea or Lake"


def aircraft(root: Path) -> None:
    pictures(root, "images/0001.jpg", "images/0002.jpg", "images/0003.jpg")
    (root / "variants.txt").write_text("A300B4\n707-320 C\n")
    for split, line in zip(SPLITS, ("0002 707-320 C", "0001 A300B4", "0003 A300B4"), strict=True):
        (root / f"images_variant_{split}.txt").write_text(f"{line}\n")


def imagenet(root: Path) -> None:
    pictures(root, "images/train/n01/b.JPEG", "images/train/n02/a.JPEG", "images/val/n02/v.JPEG")
    (root / "classnames.txt").write_text("n02 great white shark\nn01 tench\nn03 left out\n")


def pets(root: Path) -> None:
    pictures(root, *(f"images/Great_Cat_{n}.jpg" for n in range(6)), "images/pug_1.jpg")
    (root / "annotations").mkdir()
    lines = [f"Great_Cat_{n} 1 1 1" for n in range(5)]
    (root / "annotations/trainval.txt").write_text("\n".join(lines))
    (root / "annotations/test.txt").write_text("pug_1 2 2 1\nGreat_Cat_5 1 1 1\n")


def scenes(root: Path) -> None:
    files = [f"/a/apartment_building/outdoor/{n}.jpg" for n in range(5)]
    pictures(root, *(f"SUN397{file}" for file in files), "SUN397/a/abbey/9.jpg")
    (root / "SUN397/ClassName.txt").write_text("/a/abbey\n/a/apartment_building/outdoor\n")
    (root / "SUN397/Training_01.txt").write_text("\n".join(files))
    (root / "SUN397/Testing_01.txt").write_text("/a/abbey/9.jpg\n")


def actions(root: Path) -> None:
    top = "UCF-101-midframes/Apply_Eye_Makeup"
    pictures(root, *(f"{top}/v_{n}.jpg" for n in range(6)))
    lists = root / "ucfTrainTestlist"
    lists.mkdir()
    (lists / "classInd.txt").write_text("1 ApplyEyeMakeup\n2 Archery\n")
    lines = [f"ApplyEyeMakeup/v_{n}.avi 1" for n in range(5)]
    (lists / "trainlist01.txt").write_text("\n".join(lines))
    (lists / "testlist01.txt").write_text("ApplyEyeMakeup/v_5.avi\n")


@pytest.mark.parametrize(
    ("make", "names", "sizes", "test"),
    [
        (aircraft, ("A300B4", "707-320 C"), [1, 1, 1], ("images/0003.jpg", "A300B4")),
        (
            imagenet,
            ("tench", "great white shark"),
            [2, 1, 1],
            ("images/val/n02/v.JPEG", "great white shark"),
        ),
        (pets, ("great cat", "pug"), [4, 1, 2], ("images/pug_1.jpg", "pug")),
        (
            scenes,
            ("abbey", "outdoor apartment building"),
            [4, 1, 1],
            ("SUN397/a/abbey/9.jpg", "abbey"),
        ),
        (
            actions,
            ("Apply Eye Makeup", "Archery"),
            [4, 1, 1],
            ("UCF-101-midframes/Apply_Eye_Makeup/v_5.jpg", "Apply Eye Makeup"),
        ),
    ],
)
def test_data_sets_with_lists_of_their_own(
    make: Callable[[Path], None],
    names: tuple[str, ...],
    sizes: list[int],
    test: tuple[str, str],
    tmp_path: Path,
) -> None:
    make(tmp_path)
    listings = [listed(tmp_path, split) for split in SPLITS]
    assert [len(listing) for listing in listings] == sizes
    assert all(listing.class_names == names for listing in listings)
    assert told(listings[-1])[0] == test
    for listing in listings:
        assert listing.read(0).image.size == (8, 8)


def test_lists_that_disagree_are_refused(tmp_path: Path) -> None:
    aircraft(tmp_path)
    (tmp_path / "images_variant_test.txt").write_text("0001 A300B4\n0003 A380\n")
    with pytest.raises(ValueError, match="line 2: 'A380' is none of"):
        listed(tmp_path, "test")
    imagenet(tmp_path / "i")
    pictures(tmp_path / "i", "images/val/n09/v.JPEG")
    with pytest.raises(ValueError, match="has the folder 'n09', which"):
        listed(tmp_path / "i", "val")
    pictures(tmp_path / "i", "images/train/n09/v.JPEG")
    with pytest.raises(ValueError, match="no name of folder 'n09'"):
        listed(tmp_path / "i", "val")

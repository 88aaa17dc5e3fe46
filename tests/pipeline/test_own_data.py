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
from pipeline.features.listings import open_listing
from pipeline.features.trees import folder_splits
from pipeline.terminal.errors import UsageError


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


def few_shot(root: Path) -> Expected:
    """As of CoOp: a file of splits beside folders of classes, which it tells more of."""
    lists = {
        "train": [["hot_dog/2.jpg", 1, "hot_dog"], ["cat/1.jpg", 0, "cat"]],
        "val": [["cat/2.jpg", 0, "cat"]],
        "test": [["cat/3.jpg", 0, "cat"], ["hot_dog/1.jpg", 1, "hot_dog"]],
    }
    for number, (path, *_) in enumerate(entry for own in lists.values() for entry in own):
        image(root / str(path), number)
    (root / "split_zhou_Food.json").write_text(json.dumps(lists))
    splits = {
        split: {str(path): [int(label == 0), int(label == 1)] for path, label, _ in own}
        for split, own in lists.items()
    }
    return Expected(("cat", "hot dog"), splits)


BOX, OUTLINE, POSE = "0.5 0.5 0.2 0.2", "0.1 0.1 0.9 0.1 0.5 0.9", "0.5 0.5 0.2 0.2 0.4 0.4 2"


def ultralytics(root: Path) -> Expected:
    """As of Ultralytics' own examples: names by number, places below ``path``."""
    (root / "data.yaml").write_text(
        "path: coco8 # dataset root dir\ntrain: images/train\nval: images/val\ntest:\n"
        "names:\n  1: no\n  0: dog\n  7: traffic light\n"
        "download: |\n  from pathlib import Path\n"
    )
    for number, file in enumerate(("train/1.jpg", "train/2.jpg", "train/3.png", "val/9.jpg")):
        image(root / "images" / file, number)
    for file, text in {
        "train/1.txt": f"0 {BOX}\n7 {BOX}\n0 {BOX}\n",
        "train/3.txt": "\n",
        "val/9.txt": f"1.0 {OUTLINE}\n7 {POSE}\n",
    }.items():
        (root / "labels" / file).parent.mkdir(parents=True, exist_ok=True)
        (root / "labels" / file).write_text(text)
    (root / "labels/train.cache").write_bytes(b"\x80\x04never unpickled")
    return Expected(
        ("dog", "no", "traffic light"),
        {
            "train": {
                "images/train/1.jpg": [1, 0, 1],
                "images/train/2.jpg": [0, 0, 0],
                "images/train/3.png": [0, 0, 0],
            },
            "val": {"images/val/9.jpg": [0, 1, 1]},
        },
    )


def roboflow_yolo(root: Path) -> Expected:
    """As Roboflow exports it: one ``../`` too many, a list of names, no test split."""
    (root / "data.yaml").write_text(
        "train: ../train/images\nval: ../valid/images\ntest: ../test/images\n\n"
        "nc: 2\nnames: ['cat', 'dog']\n\nroboflow:\n  version: 1\n"
    )
    (root / "README.roboflow.txt").write_text("exported")
    for split, number in (("train", 0), ("valid", 1)):
        image(root / split / "images/a.rf.12ab.jpg", number)
        (root / split / "labels").mkdir()
        (root / split / "labels/a.rf.12ab.txt").write_text(f"{number} {BOX}")
    return Expected(
        ("cat", "dog"),
        {
            "train": {"train/images/a.rf.12ab.jpg": [1, 0]},
            "val": {"valid/images/a.rf.12ab.jpg": [0, 1]},
        },
    )


def cvat_yolo(root: Path) -> Expected:
    """As CVAT exports it: files that list the images."""
    (root / "data.yaml").write_text("names:\n  0: cat\n  1: dog\npath: .\ntrain: train.txt\n")
    (root / "train.txt").write_text("images/train/1.jpg\n./images/train/2.jpg\n")
    for number in (1, 2, 3):
        image(root / f"images/train/{number}.jpg", number)
    (root / "labels/train").mkdir(parents=True)
    (root / "labels/train/2.txt").write_text(f"1 {BOX}")
    return Expected(
        ("cat", "dog"),
        {"train": {"images/train/1.jpg": [0, 0], "images/train/2.jpg": [0, 1]}},
    )


def label_studio_yolo(root: Path) -> Expected:
    """As Label Studio exports it: no YAML, no splits."""
    (root / "classes.txt").write_text("cat\ndog\n")
    (root / "notes.json").write_text(json.dumps({"categories": [{"id": 0, "name": "cat"}]}))
    image(root / "images/0a1b-1.jpg")
    (root / "labels").mkdir()
    (root / "labels/0a1b-1.txt").write_text(f"1 {BOX}")
    return Expected(("cat", "dog"), {"train": {"images/0a1b-1.jpg": [0, 1]}})


def label_studio_json(root: Path) -> Expected:
    """Choices as Label Studio exports them as JSON; one task was skipped, one has no choice."""
    places = ("/data/upload/1/0a1b2c3d-1.jpg", "/data/local-files/?d=mnt/photos/2%20b.jpg")
    chosen = (["dog", "cat"], ["dog"], [], None)
    tasks = []
    for number, labels in enumerate(chosen):
        place = places[number] if number < 2 else f"s3://bucket/in/{number}.jpg"
        result = [{"type": "choices", "from_name": "what", "value": {"choices": labels}}]
        tasks.append(
            {
                "id": number + 1,
                "data": {"image": place, "text": "of a user"},
                "annotations": [
                    {"id": 7, "was_cancelled": labels is None, "result": result if labels else []}
                ],
                "predictions": [],
            }
        )
    (root / "project-1-at-2026-01-01.json").write_text(json.dumps(tasks))
    for number, file in enumerate(("1.jpg", "photos/2 b.jpg", "images/2.jpg")):
        image(root / file, number)
    return Expected(
        ("cat", "dog"),
        {"train": {"1.jpg": [1, 1], "photos/2 b.jpg": [0, 1], "images/2.jpg": [0, 0]}},
    )


def label_studio_min(root: Path) -> Expected:
    rows = [
        {"image": "/data/upload/1/0a1b2c3d-1.jpg", "id": 1, "choice": {"choices": ["cat", "dog"]}},
        {"image": "/data/upload/1/0a1b2c3e-2.jpg", "id": 2, "choice": "dog"},
    ]
    about = {
        "annotator": 1,
        "annotation_id": 1,
        "created_at": "x",
        "updated_at": "",
        "lead_time": 1,
    }
    (root / "export.json").write_text(json.dumps([row | about for row in rows]))
    for number, file in enumerate(("0a1b2c3d-1.jpg", "2.jpg")):
        image(root / file, number)
    return Expected(("cat", "dog"), {"train": {"0a1b2c3d-1.jpg": [1, 1], "2.jpg": [0, 1]}})


def label_studio_csv(root: Path) -> Expected:
    head = "annotation_id,annotator,created_at,id,image,label,lead_time,updated_at\n"
    many = '"{""choices"":[""cat"",""dog""]}"'
    (root / "train.csv").write_text(f"{head}1,1,x,1,/data/upload/1/1.jpg,{many},9.1,x\n")
    (root / "test.csv").write_text(f"{head}1,1,x,1,/data/upload/1/2.jpg,owl,9.1,x\n")
    for number in (1, 2):
        image(root / f"{number}.jpg", number)
    return Expected(
        ("cat", "dog", "owl"), {"train": {"1.jpg": [1, 1, 0]}, "test": {"2.jpg": [0, 0, 1]}}
    )


def huggingface_of_each_split(root: Path) -> Expected:
    """Metadata beside the images of each split, as lists and as columns."""
    for number, file in enumerate(("train/1.jpg", "train/2.jpg", "validation/sub/1.jpg")):
        image(root / file, number)
    lines = [
        {"file_name": "1.jpg", "text": "a dog", "labels": ["dog", "traffic light"]},
        {"file_name": "2.jpg", "text": "nothing", "labels": []},
    ]
    (root / "train/metadata.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (root / "validation/metadata.csv").write_text("file_name,cat,dog\nsub/1.jpg,1,-1\n")
    return Expected(
        ("cat", "dog", "traffic light"),
        {
            "train": {"train/1.jpg": [0, 1, 1], "train/2.jpg": [0, 0, 0]},
            "validation": {"validation/sub/1.jpg": [1, -1, 0]},
        },
    )


def huggingface_of_all(root: Path) -> Expected:
    """One table for all images, whose paths begin with their splits."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    files, labels = ["train/1.jpg", "test/1.jpg"], [["dog"], ["cat", "dog"]]
    for number, file in enumerate(files):
        image(root / file, number)
    pq.write_table(pa.table({"file_name": files, "labels": labels}), root / "metadata.parquet")
    return Expected(
        ("cat", "dog"), {"train": {"train/1.jpg": [0, 1]}, "test": {"test/1.jpg": [1, 1]}}
    )


def huggingface_without_splits(root: Path) -> Expected:
    image(root / "images/1.jpg")
    (root / "metadata.csv").write_text("file_name,label\n./images/1.jpg,dog\n")
    return Expected(("dog",), {"train": {"images/1.jpg": [1]}})


def roboflow_classes(root: Path) -> Expected:
    """As Roboflow exports multi-label classification, with a space after each comma."""
    for number, split in enumerate(("train", "valid", "test")):
        image(root / split / "a.rf.12ab.jpg", number)
        (root / split / "_classes.csv").write_text(
            f"filename, dog, traffic light\na.rf.12ab.jpg, {number % 2}, 1\n"
        )
    (root / "README.dataset.txt").write_text("exported")
    return Expected(
        ("dog", "traffic light"),
        {
            split: {f"{split}/a.rf.12ab.jpg": [number, 1]}
            for split, number in (("train", 0), ("valid", 1), ("test", 0))
        },
    )


TREES: Mapping[str, Callable[[Path], Expected]] = {
    function.__name__: function
    for function in (
        class_folders,
        class_folders_of_one_split,
        ultralytics,
        roboflow_yolo,
        cvat_yolo,
        label_studio_yolo,
        label_studio_json,
        label_studio_min,
        label_studio_csv,
        huggingface_of_each_split,
        huggingface_of_all,
        huggingface_without_splits,
        roboflow_classes,
        few_shot,
    )
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
        "read as format=class-folders: 3 folders of images, such as test/dog",
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
        (
            ["train/cat/1.jpg", "train/dog/1.jpg", "train/dog/more/2.jpg"],
            r"dog has images, and more .*'more'",
        ),
        (["train/1.jpg", "test/1.jpg"], "no labels in "),
        (["photos/1.jpg"], "no labels in "),
        (["images/1.jpg", "masks/1.png"], "no labels in "),
        (["1.jpg", "2.jpg"], "no labels in "),
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


def test_a_folder_without_labels_says_what_it_may_be(tmp_path: Path) -> None:
    class_folders(tmp_path / "download/pets")
    with pytest.raises(UsageError, match=r"no labels .* is it folder:.*/download/pets\?$"):
        opened(tmp_path / "download", "train")
    image(tmp_path / "coco/train/1.jpg")
    (tmp_path / "coco/train/_annotations.coco.json").write_text("{}")
    with pytest.raises(
        UsageError, match=r"looks like COCO's format: --dataset coco --root .*/coco"
    ):
        opened(tmp_path / "coco", "train")


def test_one_class_or_folders_of_any_name_can_be_meant(tmp_path: Path) -> None:
    image(tmp_path / "photos/1.jpg")
    assert opened(tmp_path, "train", format="class-folders").class_names == ("photos",)


def test_roboflows_column_of_unlabelled_images_is_no_class(tmp_path: Path) -> None:
    for number in (1, 2, 3):
        image(tmp_path / f"train/{number}.jpg", number)
    table = tmp_path / "train/_classes.csv"
    table.write_text(
        "filename, Unlabeled, cat, dog\n1.jpg, 0, 1, 1\n2.jpg, 1, 0, 0\n3.jpg, 0, 0, 0\n"
    )
    listing = opened(tmp_path, "train")
    assert listing.class_names == ("cat", "dog")
    assert listing.labels.tolist() == [[1, 1], [-1, -1], [0, 0]]
    assert (
        "column 'Unlabeled' of _classes.csv is no class: 1 image with 1 there, labels of which are"
        " unknown"
    ) in listing.notes
    table.write_text(table.read_text().lower())
    assert opened(tmp_path, "train").class_names == ("cat", "dog")
    table.write_text("filename, Unlabeled, cat, dog\n1.jpg, 1, 1, 1\n")
    with pytest.raises(ValueError, match="line 2: Unlabeled is 1 and so is a class"):
        opened(tmp_path, "train")
    (tmp_path / "class_names.txt").write_text("Unlabeled\ncat\ndog\n")
    assert opened(tmp_path, "train").labels.tolist() == [[1, 1, 1]]


def test_images_of_a_split_without_folders_of_classes_are_counted(tmp_path: Path) -> None:
    for number, file in enumerate(("train/dog/1.jpg", "train/cat/2.jpg", "test/3.jpg", "4.jpg")):
        image(tmp_path / file, number)
    note = "2 images in no folder of a class, such as 4.jpg: passed over"
    assert note in opened(tmp_path, "train").notes


def test_a_folder_called_after_other_folders_is_no_class(tmp_path: Path) -> None:
    for name in ("dog", "cat", "dog, cat"):
        image(tmp_path / name / "1.jpg")
    with pytest.raises(ValueError, match="called after the classes 'dog' and 'cat'"):
        opened(tmp_path, "train")
    (tmp_path / "class_names.txt").write_text("cat\ndog\ndog, cat\n")
    assert opened(tmp_path, "train").labels.tolist() == [[1, 0, 0], [0, 1, 0], [0, 0, 1]]


def test_a_list_of_choices_as_text_is_a_list(tmp_path: Path) -> None:
    about = {"annotation_id": 1, "lead_time": 1}
    answers = ('["cat", "dog"]', None, "cat")
    rows = [{"image": f"{n}.jpg", "choice": text} | about for n, text in enumerate(answers)]
    (tmp_path / "export.JSON").write_text(json.dumps(rows))
    for number in range(3):
        image(tmp_path / f"{number}.jpg", number)
    listing = opened(tmp_path, "train")
    assert listing.class_names == ("cat", "dog")
    assert listing.labels.tolist() == [[1, 1], [0, 0], [1, 0]]


def test_places_of_yolo_below_a_path_of_another_machine_are_found(tmp_path: Path) -> None:
    ultralytics(tmp_path)
    text = (tmp_path / "data.yaml").read_text()
    text = text.replace("path: coco8", "path: /content/coco8").replace(
        "train: images", "train: /content/coco8/images"
    )
    (tmp_path / "data.yaml").write_text(text)
    assert folder_splits(tmp_path) == ["train", "val"]


def test_tables_of_the_folder_go_before_its_folders(tmp_path: Path) -> None:
    class_folders(tmp_path)
    (tmp_path / "train.csv").write_text("file,labels\ntrain/dog/1.jpg,dog;cat\n")
    assert folder_splits(tmp_path) == ["train"]
    assert opened(tmp_path, "train").labels.tolist() == [[1, 1]]
    assert len(opened(tmp_path, "train", format="class-folders")) == 2


def test_a_broken_table_is_told_and_not_replaced_by_folders(tmp_path: Path) -> None:
    class_folders(tmp_path)
    (tmp_path / "styles.csv").write_text("name,colour\na,b\n")
    assert "passed over, as no labels of a split: 1 table, such as styles.csv" in (
        opened(tmp_path, "train").notes
    )
    (tmp_path / "train.csv").write_text("photo,labels\ntrain/dog/1.jpg,dog\n")
    with pytest.raises(ValueError, match=r"train\.csv: no column 'file'"):
        opened(tmp_path, "train")


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


def test_a_yolo_tree_says_what_is_taken_for_what(tmp_path: Path) -> None:
    ultralytics(tmp_path)
    (tmp_path / "labels/train/gone.txt").write_text(f"0 {BOX}")
    (tmp_path / "images/train/notes.md").write_text("")
    assert opened(tmp_path, "train").notes == (
        "read as format=yolo: data.yaml with 3 class names",
        "an image has the classes of its objects; it counts as without the others",
        "1 image without a file of labels, such as images/train/2.jpg: taken for background,"
        " without class",
        "1 file of labels without an image, such as labels/train/gone.txt: passed over",
        "passed over, as no images: 1 .md (images/train/notes.md)",
        f"'path' of data.yaml is coco8, which is not here; {tmp_path} is taken",
    )


@pytest.mark.parametrize(
    ("file", "text", "message"),
    [
        ("labels/train/1.txt", "3 0.5 0.5 0.1 0.1", r"1\.txt, line 1: class 3 is none of the 3"),
        ("labels/train/1.txt", f"0 {BOX}\n-1 {BOX}", r"1\.txt, line 2: class -1 is none"),
        ("labels/train/1.txt", f"0.5 {BOX}", "line 1: not the number of a class"),
        ("labels/train/1.txt", "0 0.5", "line 1: not the number of a class and 4 numbers"),
        ("labels/train/1.txt", f"dog {BOX}", "not the number of a class .*'dog 0.5"),
        ("labels/train/1.txt", "0 nan nan nan nan", "not the number of a class"),
        ("labels/train/1.txt", f"0 {BOX} 0.98", "a box and a score"),
        ("labels/train/1.txt", b"\xff", r"1\.txt is not UTF-8"),
        ("data.yaml", "names: [a\n", r"data\.yaml cannot be read: while parsing"),
        ("data.yaml", b"\xff\xfe\xff", r"data\.yaml cannot be read"),
        ("data.yaml", "[" * 5000, r"data\.yaml cannot be read"),
        ("data.yaml", "train: images\nnames: &a [x]\nmore: [*a, *a]\n", "aliases"),
        ("data.yaml", "#" * (1 << 18) + "\n", "more than 262,144 bytes"),
        ("data.yaml", "train: images/train\nnames: {0: a, 0: b}", "a key is there twice, line 2"),
        ("data.yaml", "train: images/train\nnames: [a, b, a]", "class is there twice: 'a'"),
        ("data.yaml", "train: images/train\nnames: dog", "'names' must be a list"),
        ("data.yaml", "train: images/train\nnames: [a, [b]]", "class 1: .* is no class name"),
        ("data.yaml", "train: images/train\nnames: [a, '']", "class 1: '' is no class name"),
        ("data.yaml", "train: images/train\nnames: {dog: 1}", "class dog: '1' is no class name"),
        ("data.yaml", "train: images/train\nnc: 3\nnames: [a]", "nc is 3, and there are 1"),
        ("data.yaml", "train: {a: b}\nnames: [a]", "'train' must be a folder, or a list"),
        ("data.yaml", "train: /etc\nnames: [a]", "no split of it is in .*no /etc in"),
        ("data.yaml", "train: ../..\nnames: [a]", "no split of it is in"),
        (
            "data.yaml",
            "train: list.txt\nnames: [a]",
            r"list\.txt, line 1: '/etc/x.jpg' is no image",
        ),
        ("dataset.yaml", "train: images/train\nnames: [a]", "each tell of classes; keep one"),
    ],
)
def test_yolo_trees_that_cannot_be_used_are_refused_by_file(
    tmp_path: Path, file: str, text: str | bytes, message: str
) -> None:
    ultralytics(tmp_path)
    (tmp_path / "list.txt").write_text("/etc/x.jpg")
    (tmp_path / file).write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(ValueError, match=message) as error:
        opened(tmp_path, "train")
    assert "\n" not in str(error.value)


def test_labels_that_are_nowhere_are_no_background(tmp_path: Path) -> None:
    ultralytics(tmp_path)
    (tmp_path / "labels").rename(tmp_path / "annotations")
    with pytest.raises(ValueError, match=r"none of 3 images .* no .*labels/train/1\.txt"):
        opened(tmp_path, "train")


def test_yaml_of_something_else_is_no_data_set(tmp_path: Path) -> None:
    class_folders(tmp_path)
    (tmp_path / "compose.yml").write_text("a: &a {b: 1}\nc: *a\n")
    (tmp_path / "conf.yaml").write_text("names: [a]\n")
    assert folder_splits(tmp_path) == ["train", "test"]


def test_a_tree_that_may_be_read_in_two_ways_is_refused_with_both(tmp_path: Path) -> None:
    ultralytics(tmp_path)
    for name in ("dog", "cat"):
        image(tmp_path / f"train/{name}/1.jpg")
    ways = r"--options format=yolo \(data\.yaml with 3 .*\) or format=class-folders \(2 folders"
    with pytest.raises(UsageError, match=ways):
        opened(tmp_path, "train")
    assert len(opened(tmp_path, "train", format="yolo")) == 3
    assert len(opened(tmp_path, "train", format="class-folders")) == 2


def test_a_label_studio_export_says_what_is_taken_for_what(tmp_path: Path) -> None:
    label_studio_json(tmp_path)
    assert opened(tmp_path, "train").notes == (
        "read as format=label-studio: project-1-at-2026-01-01.json, an export of Label Studio",
        "an image has the classes that were chosen; it counts as without the others",
        "1 task without an answer, such as 's3://bucket/in/3.jpg': passed over",
    )


def task(
    *results: object, image: str = "1.jpg", number: int = 1, **more: object
) -> dict[str, object]:
    annotation = {"result": list(results), **more}
    return {"id": number, "data": {"image": image}, "annotations": [annotation]}


def choices(*names: str, of: str = "what") -> dict[str, object]:
    return {"type": "choices", "from_name": of, "value": {"choices": list(names)}}


@pytest.mark.parametrize(
    ("tasks", "message"),
    [
        (
            [task({"type": "rectanglelabels"})],
            "task 1: has 'rectanglelabels', .* export it as COCO",
        ),
        ([task({"type": "taxonomy"})], "has 'taxonomy', and only choices"),
        ([task(choices("a"), choices("b", of="when"))], "'what' and 'when' may each be the labels"),
        ([task(choices("a")), task(choices("b"))], "'1.jpg' has another answer in .*task 1"),
        ([task(choices("a"), image="2.jpg")], r"none of 1 image of .*'2\.jpg'; put them there"),
        ([task(choices("a"), image="1.txt")], "no image in"),
        ([task({"type": "choices", "value": {"choices": [3]}})], "is no choice"),
        ([task(choices("a"), image="../1.jpg"), task(choices("a"), image="x/1.jpg")], "are both"),
        ([task(choices("a")), 3], "is not a list of tasks"),
        ([task(choices("a"), was_cancelled=True)], "no class in"),
    ],
)
def test_label_studio_exports_that_are_no_labels_are_refused(
    tmp_path: Path, tasks: list[object], message: str
) -> None:
    image(tmp_path / "1.jpg")
    (tmp_path / "export.json").write_text(json.dumps(tasks))
    with pytest.raises(ValueError, match=message):
        opened(tmp_path, "train")
    (tmp_path / "other.json").write_text(json.dumps(tasks))
    with pytest.raises(ValueError, match="keep one, or call them train, val and test"):
        opened(tmp_path, "train")


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"train/metadata.csv": "file_name,labels\n1.jpg,a\n../x.jpg,b\n"}, "line 3: .*not inside"),
        (
            {"train/metadata.csv": "file_name,text\n1.jpg,a dog\n"},
            "line 2: column 'text' has 'a dog'",
        ),
        ({"metadata.csv": "file_name,text\n1.jpg,a dog\n"}, "line 2: column 'text' has 'a dog'"),
        (
            {"train/metadata.csv": "file_name,a\n1.jpg,1\n", "train/metadata.jsonl": "{}"},
            r"metadata\.csv and metadata\.jsonl are both there; keep one",
        ),
        (
            {
                "train/metadata.csv": "file_name,a\n1.jpg,1\n",
                "metadata.csv": "file_name,a\n1.jpg,1",
            },
            "are both there; keep one of them",
        ),
        ({"train/_classes.csv": "filename, a\n1.jpg, 2\n"}, "line 2: column 'a' has"),
    ],
)
def test_tables_of_tools_that_cannot_be_used_are_refused_by_row(
    tmp_path: Path, files: dict[str, str], message: str
) -> None:
    image(tmp_path / "train/1.jpg")
    for file, text in files.items():
        (tmp_path / file).write_text(text)
    with pytest.raises(ValueError, match=message):
        opened(tmp_path, "train")


def test_one_metadata_file_can_have_a_column_of_splits(tmp_path: Path) -> None:
    for name in "ab":
        image(tmp_path / f"{name}.jpg")
    (tmp_path / "metadata.csv").write_text(
        "file_name,split,labels\na.jpg,train,dog|cat\nb.jpg,test,cat\n"
    )
    assert folder_splits(tmp_path, {"separator": "|"}) == ["train", "test"]
    listing = opened(tmp_path, "test", separator="|")
    assert (listing.file_names, listing.class_names) == (("b.jpg",), ("cat", "dog"))


def test_a_table_of_ones_own_may_be_called_metadata(tmp_path: Path) -> None:
    image(tmp_path / "1.jpg")
    (tmp_path / "metadata.csv").write_text("file,labels\n1.jpg,dog\n")
    assert folder_splits(tmp_path) == ["metadata"]


def test_an_option_that_does_nothing_is_refused(tmp_path: Path) -> None:
    class_folders(tmp_path)
    with pytest.raises(UsageError, match="separator is for tables of labels, not format=class-f"):
        opened(tmp_path, "train", separator="|")


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

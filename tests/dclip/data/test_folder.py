"""A folder of one's own: label tables of every kind, and what is wrong with some."""

import json
import pickle
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from dclip.data.folder import read_folder
from dclip.data.images import ImageError
from dclip.data.listing import Listing, check_key

ROWS = [
    {"file": "a.png", "labels": ["dog", "traffic light"]},
    {"file": "sub/b.png", "labels": []},
    {"file": "c d.png", "labels": ["cat"]},
]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "sub").mkdir()
    for number, row in enumerate(ROWS):
        Image.new("RGB", (3, 2), (number, 0, 0)).save(tmp_path / str(row["file"]))
    return tmp_path


def write_csv(folder: Path, text: str, name: str = "train.csv") -> Path:
    (folder / name).write_text(text, encoding="utf-8")
    return folder


def write_table(folder: Path, suffix: str) -> None:
    if suffix == ".csv":
        lines = [f'"{row["file"]}","{";".join(row["labels"])}"' for row in ROWS]
        write_csv(folder, "\n".join(["file,labels", *lines]))
    elif suffix == ".jsonl":
        write_csv(folder, "\n".join(map(json.dumps, ROWS)) + "\n\n", "train.jsonl")
    else:
        pq.write_table(pa.Table.from_pylist(ROWS), folder / "train.parquet")


@pytest.mark.parametrize("suffix", [".csv", ".jsonl", ".parquet"])
def test_every_kind_of_table_says_the_same(folder: Path, suffix: str) -> None:
    write_table(folder, suffix)
    listing = read_folder(folder, "train")
    assert isinstance(listing, Listing)
    assert (listing.name, listing.split, len(listing)) == ("folder", "train", 3)
    assert listing.class_names == ("cat", "dog", "traffic light")  # sorted: no class_names.txt
    assert listing.labels.tolist() == [[0, 1, 1], [0, 0, 0], [1, 0, 0]]
    assert listing.file_names == ("a.png", "sub/b.png", "c d.png")
    assert listing.read(1).image.getpixel((0, 0)) == (1, 0, 0)
    assert pickle.loads(pickle.dumps(listing)).identity() == listing.identity()


def test_keys_are_fit_for_files_and_stay_apart(tmp_path: Path) -> None:
    files = ["a.png", "b.png", "b.jpg", "x y.png", "x-y.png", "sub/a.png", "z" * 140 + ".png"]
    write_csv(tmp_path, "file,labels\n" + "".join(f"{file},dog\n" for file in files))
    keys = read_folder(tmp_path, "train").keys
    assert [check_key(key) for key in keys] == list(keys)
    assert len(set(keys)) == len(files)
    assert keys[0] == "a"
    assert keys[4] == "x-y"


@given(st.lists(st.text("ab./ -é", min_size=1, max_size=9), min_size=1, max_size=8, unique=True))
def test_keys_of_any_names_are_distinct(names: list[str]) -> None:
    from dclip.data.folder import file_keys

    files = sorted({f"{name.strip('/. ') or 'x'}.png" for name in names})
    keys = file_keys(files)
    assert len(set(keys)) == len(files)


def test_class_names_come_in_the_order_of_their_file(folder: Path) -> None:
    write_table(folder, ".csv")
    (folder / "class_names.txt").write_text("traffic light | stoplight\ndog\ncat\ncow\n")
    listing = read_folder(folder, "train")
    assert listing.class_names == ("traffic light", "dog", "cat", "cow")
    assert listing.labels.tolist()[0] == [1, 1, 0, 0]


def test_a_comma_is_part_of_a_class_name_and_what_was_read_is_told(folder: Path) -> None:
    write_csv(folder, 'file,labels\na.png,"disc, red; box"\nsub/b.png,bar\n')
    (folder / "class_names.txt").write_text('box\n bar|rod | pole\ndisc, red\n"x, y"\n')
    listing = read_folder(folder, "train")
    assert listing.class_names == ("box", "bar", "disc, red", '"x, y"')
    assert listing.labels.tolist() == [[1, 0, 1, 0], [0, 1, 0, 0]]
    assert listing.notes == (
        "2 lines of class_names.txt, such as line 3, have a comma; 'disc, red' is one class"
        " (phrasings are parted by '|')",
        "line 2 of class_names.txt has further phrasings; of 'bar | rod | pole' the class is 'bar',"
        " and what follows is not used",
    )


def test_splits_agree_on_the_columns_without_a_file_of_names(folder: Path) -> None:
    write_csv(folder, "file,labels\na.png,dog\n")
    write_csv(folder, "file,labels\nsub/b.png,cat\n", "test.csv")
    write_csv(folder, "author,year\nme,2020\n", "credits.csv")  # not a label table
    write_csv(folder, "not json", "notes.jsonl")
    train, test = read_folder(folder, "train"), read_folder(folder, "test")
    assert train.class_names == test.class_names == ("cat", "dog")
    assert train.identity() != test.identity()


def test_class_columns_know_unknown(folder: Path) -> None:
    write_csv(folder, "file,dog,cat\na.png,1,-1\nsub/b.png,0,1.0\n")
    listing = read_folder(folder, "train")
    assert listing.class_names == ("cat", "dog")
    assert listing.labels.tolist() == [[-1, 1], [1, 0]]


def test_other_columns_may_stand_beside_labels(folder: Path) -> None:
    write_csv(folder, "\ufefffile,width,labels\na.png,12,dog | cat\n")  # with a byte order mark
    listing = read_folder(folder, "train", separator="|")
    assert listing.class_names == ("cat", "dog")


def test_a_missing_image_is_found_when_it_is_read(folder: Path) -> None:
    write_csv(folder, "file,labels\nnowhere.png,dog\na.png,dog\n")
    listing = read_folder(folder, "train")
    assert listing.read(1).labels.tolist() == [1]
    with pytest.raises(ImageError, match=r"nowhere\.png"):
        listing.read(0)


BAD_CSV: list[tuple[str, str]] = [
    ("", "lists no image"),
    ("file,labels\n", "lists no image"),
    ("image,labels\na.png,dog\n", "line 2: no column 'file'; columns are image, labels"),
    ("file\na.png\n", "line 2: no column 'labels', and no column of a class"),
    ("file,file\na.png,b\n", "has a column twice"),
    ("file,labels\na.png\n", "line 2: not as many fields"),
    ("file,labels\na.png,dog,cat\n", "line 2: not as many fields"),
    ("file,labels\n,dog\n", "line 2: 'file' must be a path, not ''"),
    ("file,labels\na.png,dog\nb.png,dgo\n", "line 3: unknown label 'dgo'; did you mean 'dog'?"),
    ("file,labels\na.png,dog\n./a.png,cat\n", "line 3: 'a.png' is listed in line 2 already"),
    ("file,labels\n../a.png,dog\n", "line 2: '../a.png' is not inside the folder"),
    ("file,labels\n/etc/passwd,dog\n", "'/etc/passwd' is not inside the folder"),
    ("file,labels\nb\\..\\a.png,dog\n", "is not inside the folder"),
    ("file,labels\na.png,dog;;cat\n", "line 2: label '' is no class name"),
    ("file,dog,author\na.png,1,me\n", "line 2: column 'author' has 'me'; a class column has"),
    ("file,dog\na.png,2\n", "column 'dog' has '2'"),
    ('file,labels\n"a.png,dog\n', "unexpected end of data"),
    ("file,labels\na.png," + "x" * 200_000 + "\n", "field larger than field limit"),
]


@pytest.mark.parametrize(("text", "message"), BAD_CSV)
def test_a_bad_table_is_told_of_with_its_row(folder: Path, text: str, message: str) -> None:
    write_csv(folder, text)
    (folder / "class_names.txt").write_text("dog\ncat\n")
    with pytest.raises(ValueError, match=r"train\.csv") as error:
        read_folder(folder, "train")
    assert message in str(error.value)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "line 1: not JSON"),
        ("[1]", "line 1: not a JSON object"),
        ("[" * 100_000, "line 1: not JSON"),
        ('{"file": "a.png", "labels": null}', "'labels' must be class names"),
        ('{"file": "a.png", "labels": [1]}', "label 1 is no class name"),
        ('{"file": 5, "labels": []}', "'file' must be a path, not 5"),
        ('{"file": "a.png", "dog": NaN}', "column 'dog' has nan"),
        ('{"file": "a.png", "dog": 1}\n{"file": "b.png", "cat": 1}', "line 2: columns differ"),
    ],
)
def test_a_bad_line_of_json_is_told_of(folder: Path, line: str, message: str) -> None:
    write_csv(folder, line, "train.jsonl")
    with pytest.raises(ValueError, match=r"train\.jsonl") as error:
        read_folder(folder, "train")
    assert message in str(error.value)


def test_damaged_files_are_told_of(folder: Path) -> None:
    (folder / "train.parquet").write_bytes(b"PAR1 and nothing")
    with pytest.raises(ValueError, match=r"train\.parquet is not Parquet, or damaged"):
        read_folder(folder, "train")
    (folder / "val.csv").write_bytes(b"file,labels\n\xff.png,dog\n")
    with pytest.raises(ValueError, match=r"val\.csv is not UTF-8"):
        read_folder(folder, "val")


def test_wrong_places_are_told_of(folder: Path) -> None:
    def message(*args: Any, **options: Any) -> str:
        with pytest.raises(ValueError, match=r".") as error:
            read_folder(*args, **options)
        return str(error.value)

    assert "no folder" in message(folder / "nowhere", "train")
    assert "nor a table of any other split" in message(folder, "train")
    write_table(folder, ".csv")
    assert "splits there are 'train'" in message(folder, "test")
    assert "separates nothing" in message(folder, "train", separator="")
    write_table(folder, ".jsonl")
    assert "train.csv and train.jsonl; keep one" in message(folder, "train")
    (folder / "train.jsonl").unlink()
    (folder / "class_names.txt").write_text("dog\ndog\n")
    assert "twice" in message(folder, "train")

"""A folder of one's own: label tables of every kind, and what is wrong with some."""

import csv
import json
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from dclip.data.folder import find_splits, read_folder
from dclip.data.image_files import images_of
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
    write_csv(folder, f"file,labels\nnowhere.png,dog\na.png,dog\n{'x' * 300}.png,dog\n")
    listing = read_folder(folder, "train")
    assert listing.read(1).labels.tolist() == [1]
    for row, name in ((0, r"nowhere\.png"), (2, "xxx")):
        with pytest.raises(ImageError, match=name):
            listing.read(row)
    write_csv(folder, f"file,labels\n{'x' * 300}.png,dog\n")
    with pytest.raises(ImageError, match="xxx"):
        read_folder(folder, "train").read(0)


BAD_CSV: list[tuple[str, str]] = [
    ("", "lists no image"),
    ("file,labels\n", "lists no image"),
    ("photo,labels\na.png,dog\n", "train.csv: no column 'file' (filename, file_name, image"),
    ("photo,labels\na.png,dog\n", "columns are photo, labels"),
    ("file\na.png\n", "train.csv: no column 'labels', and no column of a class"),
    ("path,image,labels\na.png,a.png,dog\n", "columns path, image may each be that of images"),
    ("file,tags,class\na.png,dog,x\n", "columns tags, class may each be that of labels"),
    ("file,label\na.png,1\n", "column 'label' has '1': is that a class or a number of one?"),
    (",file,labels\n0,a.png,dog\nx,b.png,dog\n", "line 3: the first column has no name, and 'x'"),
    ("file;labels;\na.png;dog;\nb.png;dog;x\n", "line 3: the last column has no name, and 'x'"),
    ("file;labels\na.png;dog;cat\n", "a text with a semicolon in it needs quotes"),
    ("file,labels\nC:\\photos\\a.png,dog\n", "is not inside the folder"),
    ("file,labels\nfile:///etc/passwd,dog\n", "is not inside the folder"),
    ("file,labels\na.png,\"['dog' 'cat']\"\n", "line 2: labels \"['dog' 'cat']\" look like a list"),
    (
        'file,labels\na.png,dog\nb.png,"dog, cat"\n',
        "line 3: unknown label 'dog, cat'; its parts are",
    ),
    ("file,labels\na.png,dog|cat\n", "joined by '|', give the option separator=pipe"),
    (
        "file,class,value\na.png,dog,2\n",
        "line 2: column 'value' has '2'; a pair of image and class",
    ),
    ("file,class,value\na.png,,1\n", "line 2: label '' is no class name"),
    ("file,class,value\na.png,dgo,1\n", "line 2: unknown label 'dgo'; did you mean 'dog'?"),
    (
        "file,class,value\na.png,dog,1\na.png,dog,0\n",
        "line 2: 'a.png' has class 'dog' here, and not in line 3",
    ),
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
        ('{"file": "a.png", "labels": {"dog": 1}}', "labels must be class names, a list or a str"),
        ('{"file": "a.png", "labels": "dog"}\n{"file": "b.png"}', "line 2: columns differ"),
        ('{"file": "a.png", "labels": "[\'dog\', 1]"}', "line 1: labels \"['dog', 1]\" look like"),
        ('{"file": "a\\ud800.png", "labels": "dog"}', "is no text: it has half of a character"),
        ('{"file": "a.png", " file": "b.png"}', "has a column twice: 'file'"),
        (
            '{"file": "a.png", "dog": 1}\n{"file": "b.png", "dog": 1, "cat": 1}',
            "line 2: columns differ",
        ),
        ('{"file": "a.png", "labels": [1]}', "label 1 is a number, not a class name"),
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


# ---------------------------------------------------------------------------------------------
# Labels as text
# ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("write", [json.dumps, repr])
@pytest.mark.parametrize("suffix", [".csv", ".jsonl", ".parquet"])
def test_lists_written_as_text_are_lists(folder: Path, suffix: str, write: Any) -> None:
    rows = [{"file": row["file"], "labels": write(row["labels"])} for row in ROWS]
    if suffix == ".csv":
        with (folder / "train.csv").open("w", newline="") as file:
            writer = csv.DictWriter(file, ["file", "labels"])
            writer.writeheader()
            writer.writerows(rows)
    elif suffix == ".jsonl":
        write_csv(folder, "\n".join(map(json.dumps, rows)), "train.jsonl")
    else:
        pq.write_table(pa.Table.from_pylist(rows), folder / "train.parquet")
    read = read_folder(folder, "train")
    (folder / f"train{suffix}").unlink()
    write_table(folder, suffix)
    assert read.identity() == read_folder(folder, "train").identity()  # as of true lists


@pytest.mark.parametrize(
    ("cells", "message"),
    [
        (["disc, box", "disc"], "line 2: is 'disc, box' one class or a list? No labels are joined"),
        (["bar", "disc|box"], "line 3: is 'disc|box' one class or a list?"),
        (["disc|box"], "if it is a list, give the option separator=pipe"),
        (["disc;box", "disc, box"], "line 3: 'disc, box' is made of the classes 'disc' and 'box'"),
        (["disc;box", "disc/box"], "line 3: 'disc/box' is made of the classes 'disc' and 'box'"),
        (["disc\tbox"], "give the option separator=tab"),
    ],
)
def test_lists_joined_by_something_else_are_refused_with_their_row(
    folder: Path, cells: list[str], message: str
) -> None:
    lines = [f'{number}.png,"{cell}"' for number, cell in enumerate(cells)]
    write_csv(folder, "\n".join(["file,labels", *lines]))
    with pytest.raises(ValueError, match=r"train\.csv, line") as error:
        read_folder(folder, "train")
    assert message in str(error.value)
    assert "list all class names in class_names.txt" in str(error.value)


def test_a_list_of_class_names_settles_what_is_a_name(folder: Path) -> None:
    write_csv(folder, 'file,labels\na.png,"disc, box"\nsub/b.png,disc|box\n')
    (folder / "class_names.txt").write_text("disc, box\ndisc\nbox\n")
    with pytest.raises(
        ValueError, match=r"line 3: unknown label 'disc\|box'; its parts are classes"
    ):
        read_folder(folder, "train")
    write_csv(folder, 'file,labels\na.png,"disc, box"\nsub/b.png,disc;box\n')
    assert read_folder(folder, "train").labels.tolist() == [[1, 0, 0], [0, 1, 1]]
    with pytest.raises(ValueError, match="unknown label 'disc;box'; its parts are classes"):
        read_folder(folder, "train", separator=",")


def test_an_old_list_with_phrasings_after_commas_is_refused_with_what_to_write(
    folder: Path,
) -> None:
    write_csv(folder, "file,labels\na.png,sofa\n")
    (folder / "class_names.txt").write_text("dog\nsofa, couch\n")
    with pytest.raises(
        ValueError, match=r"unknown label 'sofa'; class_names\.txt has 'sofa, couch'"
    ):
        read_folder(folder, "train")
    (folder / "class_names.txt").write_text("dog\nsofa | couch\n")
    assert read_folder(folder, "train").labels.tolist() == [[0, 1]]


def test_a_list_in_one_split_is_seen_by_the_classes_of_another(folder: Path) -> None:
    write_csv(folder, "file,labels\na.png,dog; cat\n")
    write_csv(folder, 'file,labels\na.png,"dog, cat"\n', "test.csv")
    for split in ("train", "test"):
        with pytest.raises(
            ValueError, match=r"test\.csv, line 2: 'dog, cat' is made of the classes"
        ):
            read_folder(folder, split)
    write_csv(folder, "file,labels\na.png,dog\n")
    assert read_folder(folder, "test", separator=",").class_names == ("cat", "dog")


def test_a_comma_is_part_of_a_name_where_labels_are_joined_by_another(folder: Path) -> None:
    write_csv(
        folder, 'file,labels\na.png,"disc, red; bar"\nsub/b.png,fire\nc d.png,fire truck;truck\n'
    )
    listing = read_folder(folder, "train")
    assert listing.class_names == ("bar", "disc, red", "fire", "fire truck", "truck")
    assert "'disc, red' is one class; labels are not joined by ','" in listing.notes
    assert "'fire truck' is one class, though its words are classes too" in listing.notes


@pytest.mark.parametrize("name", ["Train.CSV", "train.CSV", "TRAIN.csv"])
def test_a_table_is_one_in_letters_of_any_size(folder: Path, name: str) -> None:
    write_csv(folder, "file,labels\na.png,dog\nsub/b.png,cat\n", name)
    assert list(find_splits(folder)) == [Path(name).stem]
    assert len(read_folder(folder, "train")) == 2
    write_csv(folder, "file,labels\na.png,dog\nsub/b.png,bird\n")
    assert read_folder(folder, "train").class_names[0] == "bird"  # the exact name goes first


def test_parts_of_a_table_are_no_splits(folder: Path) -> None:
    write_csv(folder, "file,labels\na.png,dog\n", "train-00000-of-00002.csv")
    with pytest.raises(ValueError, match=r"one of 2 parts of a table; .* one, train\.csv"):
        find_splits(folder)


def test_a_table_without_a_header_is_told_so(folder: Path) -> None:
    write_csv(folder, "a.png,0,0,1,1,dog\n")
    with pytest.raises(ValueError, match=r"has no header: its first line has 'a\.png'"):
        read_folder(folder, "train")
    write_csv(folder, "# labels\nfile,labels\na.png,dog\n")
    with pytest.raises(ValueError, match=r"no column 'file'.* columns are # labels"):
        read_folder(folder, "train")


def test_a_space_after_a_comma_and_a_file_uri_are_read(folder: Path) -> None:
    write_csv(folder, f'file, labels\nfile://{folder}/c%20d.png, "disc, red; box"\na.png, box\n')
    listing = read_folder(folder, "train")
    assert listing.file_names == ("c d.png", "a.png")
    assert listing.class_names == ("box", "disc, red")


def test_a_column_of_splits_may_have_another_name(folder: Path) -> None:
    write_csv(folder, "file,labels,Set,w\na.png,dog,train,3\nsub/b.png,dog,test,3\n", "all.csv")
    assert list(find_splits(folder)) == ["train", "test"]
    listing = read_folder(folder, "test")
    assert listing.file_names == ("sub/b.png",)
    assert "all.csv: columns that are not looked at: w" in listing.notes
    write_csv(folder, "file,set,dog\na.png,1,0\nsub/b.png,0,1\n", "all.csv")
    assert read_folder(folder, "all").class_names == ("dog", "set")  # a class called set


def test_a_column_called_after_a_missing_value_is_no_class(folder: Path) -> None:
    write_csv(folder, "file,dog,nan\na.png,1,0\n")
    with pytest.raises(ValueError, match=r"train\.csv, its header: label 'nan' .* missing value"):
        read_folder(folder, "train")
    (folder / "class_names.txt").write_text("dog\nnan\n")
    assert read_folder(folder, "train").class_names == ("dog", "nan")


def test_names_that_others_make_by_spaces_may_be_lists(folder: Path) -> None:
    write_csv(
        folder, "file,labels\na.png,scab rust complex\nsub/b.png,scab\nc d.png,rust complex\n"
    )
    with pytest.raises(ValueError, match=r"line 2: 'scab rust complex' is made of .*=space"):
        read_folder(folder, "train")
    assert read_folder(folder, "train", separator=" ").class_names == ("complex", "rust", "scab")
    (folder / "class_names.txt").write_text("rust complex\nscab\nscab rust complex\n")
    assert read_folder(folder, "train").labels.sum() == 3


def test_null_is_unknown_and_empty_is_none(folder: Path) -> None:
    rows = [
        {"file": "a.png", "labels": ["dog"]},
        {"file": "sub/b.png", "labels": None},
        {"file": "c d.png", "labels": []},
    ]
    write_csv(folder, "\n".join(map(json.dumps, rows)), "train.jsonl")
    pq.write_table(pa.Table.from_pylist(rows), folder / "test.parquet")
    (folder / "class_names.txt").write_text("cat\ndog\n")
    for split, file in (("train", "train.jsonl"), ("test", "test.parquet")):
        listing = read_folder(folder, split)
        assert listing.labels.tolist() == [[0, 1], [-1, -1], [0, 0]]
        assert listing.notes == (
            f"{file}: labels of 1 images are null, such as those of 'sub/b.png'; null is unknown"
            " (-1), an empty list or text is none",
        )


# ---------------------------------------------------------------------------------------------
# Columns
# ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("file", ["filename", "file_name", "image", "path", "Image_Path"])
@pytest.mark.parametrize("label", ["tags", "label", "classes", "class", "Labels"])
@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
def test_other_names_and_delimiters_are_understood(
    folder: Path, file: str, label: str, delimiter: str
) -> None:
    lines = [
        [file, "width", label],
        ["a.png", "12", '"dog; cat;"'],
        ["sub/b.png", "13", ""],
    ]
    write_csv(folder, "\n".join(map(delimiter.join, lines)))
    listing = read_folder(folder, "train")
    assert listing.class_names == ("cat", "dog")
    assert listing.labels.tolist() == [[1, 1], [0, 0]]


def test_what_spreadsheets_and_programs_add_is_passed_over(folder: Path) -> None:
    write_csv(folder, "\ufeff,file;x, labels \n7,a.png,dog\n3,sub/b.png,cat\n\n")  # of pandas
    write_csv(folder, "file;labels;\r\na.png;dog;\r\n", "val.csv")
    write_csv(folder, "file\tlabels\na.png\tdog\n", "test.tsv")
    with pytest.raises(ValueError, match="no column 'file'"):
        read_folder(folder, "train")
    write_csv(folder, "\ufeff,file, labels \n7,a.png,dog\n3,sub/b.png,cat\n\n")
    assert read_folder(folder, "train").labels.tolist() == [[0, 1], [1, 0]]
    for split in ("val", "test"):
        assert read_folder(folder, split).labels.tolist() == [[0, 1]]


def test_truth_is_written_in_many_ways(folder: Path) -> None:
    cells = ["TRUE", "true", "True", " 1 ", "1.0", "yes", "YES"]
    others = ["FALSE", "false", "False", "0", "0.0", "no", "No"]
    header = ",".join(["file", *(f" class {n}" for n in range(7))])
    write_csv(folder, f"{header}\na.png,{','.join(cells)}\nsub/b.png,{','.join(others)}\n")
    listing = read_folder(folder, "train")
    assert listing.class_names == tuple(f"class {n}" for n in range(7))  # without the space
    assert listing.labels.tolist() == [[1] * 7, [0] * 7]


def test_class_columns_of_parquet_may_hold_truth_floats_and_null(folder: Path) -> None:
    table = {
        "file": ["a.png", "sub/b.png"],
        "dog": [True, None],
        "cat": [0.0, 1.0],
        "No. 1": [1, -1],
    }
    pq.write_table(pa.table(table), folder / "train.parquet")
    assert read_folder(folder, "train").labels.tolist() == [[1, 0, 1], [-1, 1, -1]]


def test_a_split_without_a_column_counts_its_class_as_absent_and_says_so(folder: Path) -> None:
    write_csv(folder, "file,dog\na.png,1\n")
    write_csv(folder, "file,dog,cat\na.png,1,0\n", "test.csv")
    listing = read_folder(folder, "train")
    assert listing.labels.tolist() == [[0, 1]]
    assert listing.notes == (
        "train.csv has no column for 1 class, such as 'cat': without one, a class is taken for"
        " absent (0)",
    )


# ---------------------------------------------------------------------------------------------
# Partial labels
# ---------------------------------------------------------------------------------------------

PAIRS = [("a.png", "dog", 1), ("sub/b.png", "dog", 0), ("a.png", "cat", -1), ("a.png", "owl", 0)]


@pytest.mark.parametrize("suffix", [".csv", ".jsonl", ".parquet"])
def test_pairs_of_image_and_class_leave_the_others_unknown(folder: Path, suffix: str) -> None:
    rows = [{"file": f, "class": c, "value": v} for f, c, v in PAIRS]
    if suffix == ".csv":
        write_csv(folder, "file,class,value\n" + "".join(f"{f},{c},{v}\n" for f, c, v in PAIRS))
    elif suffix == ".jsonl":
        write_csv(folder, "\n".join(map(json.dumps, rows)), "train.jsonl")
    else:
        pq.write_table(pa.Table.from_pylist(rows), folder / "train.parquet")
    (folder / "class_names.txt").write_text("cat\ndog\nowl\ncow\n")
    listing = read_folder(folder, "train")
    assert listing.file_names == ("a.png", "sub/b.png")
    assert listing.labels.tolist() == [[-1, 1, 0, -1], [-1, 0, -1, -1]]
    assert listing.notes == (
        f"train{suffix}: 3 of 6 pairs of image and class are known; the others are unknown (-1)",
    )


def test_pairs_without_a_zero_are_told_of(folder: Path) -> None:
    write_csv(folder, "filename,label,value\na.png,dog,1\na.png,dog,1\nb.png,cat,-1\n")
    listing = read_folder(folder, "train")
    assert listing.labels.tolist() == [[-1, 1], [-1, -1]]
    assert "train.csv: no pair has the value 0, so no class is known to be absent" in listing.notes


def open_images(folder: Path) -> None:
    head = "ImageID,Source,LabelName,Confidence\n"
    (folder / "oidv6-train-annotations-human-imagelabels.csv").write_text(
        head + "a1,verification,/m/0dog,1\na1,verification,/m/0cat,0\nb2,machine,/m/0dog,0.7\n"
    )
    (folder / "validation-annotations-human-imagelabels.csv").write_text(
        head + "c3,verification,/m/0cat,1\nc3,verification,/m/0bat,0\nc3,verification,/m/1bat,1.0\n"
    )
    (folder / "class-descriptions.csv").write_text(
        'LabelName,DisplayName\n/m/0dog,Dog\n/m/0cat,"Cat, tame"\n'
        "/m/0bat,Bat\n/m/1bat,Bat\n/m/9,X\n"
    )
    (folder / "validation").mkdir()
    for file in ("a1.jpg", "b2.jpg", "validation/c3.jpg"):
        Image.new("RGB", (3, 2)).save(folder / file)


def test_open_images_labels_are_partial(tmp_path: Path) -> None:
    open_images(tmp_path)
    train, val = read_folder(tmp_path, "train"), read_folder(tmp_path, "validation")
    assert train.class_names == ("Bat (/m/0bat)", "Bat (/m/1bat)", "Cat, tame", "Dog")
    assert val.class_names == train.class_names
    assert train.file_names == ("a1.jpg", "b2.jpg")
    assert train.labels.tolist() == [[-1, -1, 0, 1], [-1, -1, -1, -1]]
    assert val.file_names == ("validation/c3.jpg",)
    assert val.labels.tolist() == [[0, 1, 1, -1]]
    assert val.read(0).image.size == (3, 2)
    assert list(find_splits(tmp_path)) == ["train", "validation"]
    (tmp_path / "class_names.txt").write_text("Dog\nCat, tame\n")
    chosen = read_folder(tmp_path, "validation", images=images_of(tmp_path))
    assert chosen.labels.tolist() == [[-1, 1]]
    assert any("2 of 3 classes are not in class_names.txt; passed over" in n for n in chosen.notes)
    assert not any("listed by no table" in note for note in chosen.notes)
    assert read_folder(tmp_path, "train").labels.tolist() == [[1, 0], [-1, -1]]


def test_open_images_needs_descriptions_and_whole_numbers(tmp_path: Path) -> None:
    open_images(tmp_path)
    (tmp_path / "class-descriptions.csv").unlink()
    with pytest.raises(ValueError, match=r"no name of class '/m/0bat' \(4 of 4 have none\); put"):
        read_folder(tmp_path, "train")
    (tmp_path / "x.csv").write_text("ImageID,Source,LabelName,Confidence\na1,v,/m/0dog,high\n")
    with pytest.raises(
        ValueError, match=r"x\.csv, line 2: 'Confidence' must be from 0 to 1, not 'h"
    ):
        read_folder(tmp_path, "x")


# ---------------------------------------------------------------------------------------------
# Splits, paths, what is passed over
# ---------------------------------------------------------------------------------------------


def test_a_column_split_says_which_rows_are_of_a_split(folder: Path) -> None:
    write_csv(
        folder,
        "file,labels,split\na.png,dog,Train\nsub/b.png,cat,valid\nc d.png,dog,train\nx.png,dog,\n",
        "labels.csv",
    )
    assert list(find_splits(folder)) == ["train", "valid"]
    train, valid = read_folder(folder, "train"), read_folder(folder, "valid")
    assert train.file_names == ("a.png", "c d.png")
    assert train.labels.tolist() == [[0, 1], [0, 1]]
    assert valid.labels.tolist() == [[1, 0]]
    assert train.notes == ("1 rows of labels.csv have no split, such as line 5; they are in none",)
    with pytest.raises(
        ValueError, match=r"no split 'test' in .*; splits there are 'train', 'valid'"
    ):
        read_folder(folder, "test")
    write_csv(folder, "file,dog,split\na.png,1,train\n", "more.csv")
    with pytest.raises(ValueError, match=r"split 'train' of .* is in labels\.csv and more\.csv"):
        read_folder(folder, "train")
    (folder / "more.csv").unlink()
    (folder / "labels.csv").rename(folder / "train.csv")
    with pytest.raises(
        ValueError, match=r"train\.csv, line 3: its column of splits has 'valid' in a table"
    ):
        read_folder(folder, "train")


def test_a_column_split_stands_beside_class_columns_and_pairs(folder: Path) -> None:
    write_csv(folder, "file,split,dog,cat\na.png,train,1,0\nsub/b.png,test,0,-1\n", "all.csv")
    assert read_folder(folder, "test").labels.tolist() == [[-1, 0]]
    write_csv(folder, "file,split,class,value\na.png,train,dog,1\nb.png,test,cat,0\n", "all.csv")
    assert read_folder(folder, "test").labels.tolist() == [[0, -1]]
    write_csv(folder, "file,split,class,value\na.png,train,dog,1\na.png,test,cat,0\n", "all.csv")
    with pytest.raises(ValueError, match=r"'a\.png' is in split 'train' and in 'test'"):
        read_folder(folder, "test")


def test_one_table_of_any_name_is_one_split(folder: Path) -> None:
    write_csv(folder, "filename;tags\na.png;dog\n", "labels.csv")
    write_csv(folder, "author,year\nme,2020\n", "credits.csv")
    assert find_splits(folder) == {"labels": folder / "labels.csv"}
    listing = read_folder(folder, "labels")
    assert listing.notes == ("credits.csv is no table of labels: passed over",)


def test_paths_of_windows_and_whole_paths_inside_are_read(folder: Path) -> None:
    (folder.parent / "link [v1]").symlink_to(folder)
    write_csv(
        folder,
        f"file,labels\n{folder}/a.png,dog\nsub\\b.png,cat\n{folder}/./c d.png,dog\n",
    )
    for place in (folder, folder.parent / "link [v1]"):
        listing = read_folder(place, "train")
        assert listing.file_names == ("a.png", "sub/b.png", "c d.png")
        assert listing.keys[:2] == ("a", read_folder(folder, "train").keys[1])
        listing.read(1)
    write_csv(folder, f"file,labels\n{folder}x/a.png,dog\n")
    with pytest.raises(ValueError, match="is not inside the folder"):
        read_folder(folder, "train")


def test_images_that_no_table_lists_are_counted(folder: Path) -> None:
    write_csv(folder, "file,labels\na.png,dog\n")
    assert images_of(folder) == ("a.png", "c d.png", "sub/b.png")
    notes = read_folder(folder, "train", images=images_of(folder)).notes
    assert notes == ("2 image files are listed by no table, such as 'c d.png'",)
    write_csv(folder, "file,labels\n./c d.png,dog\n", "test.csv")  # another split lists it
    (folder / "._a.png").write_bytes(b"of a file manager")
    (folder / "outputs" / "datasets").mkdir(parents=True)
    Image.new("RGB", (3, 2)).save(folder / "outputs" / "datasets" / "plot.png")
    images = images_of(folder, folder / "outputs" / "listings")
    notes = read_folder(folder, "train", images=images).notes
    assert notes == ("1 image file is listed by no table: 'sub/b.png'",)


def test_images_that_lie_together_in_a_folder_are_found_there(tmp_path: Path) -> None:
    for file in ("photos/1.png", "photos/2.png", "test/1.png", "other/9.png"):
        (tmp_path / file).parent.mkdir(exist_ok=True)
        Image.new("RGB", (3, 2)).save(tmp_path / file)
    write_csv(tmp_path, "filename,tags\n1.png,dog\n2.png,cat\n")
    write_csv(tmp_path, "filename,tags\n1.png,dog\n", "test.csv")
    train = read_folder(tmp_path, "train", images=images_of(tmp_path))
    assert train.file_names == ("photos/1.png", "photos/2.png")
    assert train.notes == (
        "images of train.csv lie in photos/, which its paths leave out",
        "1 image file is listed by no table: 'other/9.png'",
    )
    assert read_folder(tmp_path, "test").file_names == ("test/1.png",)  # not photos/1.png
    write_csv(tmp_path, "filename,tags,split\n9.png,dog,all\n1.png,dog,test\n", "one.csv")
    (tmp_path / "test.csv").unlink()
    for split, file in (("test", "test/1.png"), ("all", "other/9.png")):
        listing = read_folder(tmp_path, split, images=images_of(tmp_path))
        assert listing.file_names == (file,)
        assert not any("no table" in note for note in listing.notes)
    write_csv(tmp_path, "filename,tags\n1.png,dog\n", "val.csv")
    listing = read_folder(tmp_path, "val")  # may be in either folder
    assert listing.file_names == ("1.png",)
    with pytest.raises(ImageError, match=r"1\.png"):
        listing.read(0)


def test_looking_for_images_ends(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder / "sub" / "again").symlink_to(folder)  # a circle
    assert len(images_of(folder)) == 3
    monkeypatch.setattr("dclip.data.image_files.MAX_FILES", 2)
    assert images_of(folder) == ("a.png", "c d.png")


def test_a_wide_table_reads_as_its_rows_say(folder: Path) -> None:
    rng = np.random.default_rng(0)
    values = rng.choice([-1, 0, 1], (300, 120)).astype(np.int8)
    names = [f"class {number:03d}" for number in range(120)]
    lines = [f"{row}.png,{','.join(map(str, cells))}" for row, cells in enumerate(values.tolist())]
    write_csv(folder, "\n".join([",".join(["file", *names]), *lines]))
    assert (read_folder(folder, "train").labels == values).all()

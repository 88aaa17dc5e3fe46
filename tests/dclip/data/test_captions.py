"""Images with captions, from the files such data comes in."""

import io
import json
import tarfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from dclip.data.captions import CaptionListing, first_sentences, read_captions
from dclip.data.listing import Listing

NAMES = ("a.jpg", "b.jpg", "c.jpg")


def jpeg(colour: str = "red") -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (8, 6), colour).save(buffer, "PNG")
    return buffer.getvalue()


def picture(path: Path, colour: str = "red") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(jpeg(colour))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name, colour in zip(NAMES, ("red", "green", "blue"), strict=True):
        picture(tmp_path / "pictures" / name, colour)
    return tmp_path


def write(path: Path, content: Any) -> str:
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return str(path)


def coco(folder: Path) -> str:
    """Ids in another order than the file, captions in the order of the file."""
    pictures = [{"id": 7, "file_name": "b.jpg"}, {"id": 3, "file_name": "a.jpg"}]
    said = [(7, "B one. More"), (3, "A one"), (3, "A two"), (7, "B two"), (3, "  ")]
    annotations = [
        {"id": n, "image_id": own, "caption": text} for n, (own, text) in enumerate(said)
    ]
    return write(folder / "captions_x.json", {"images": pictures, "annotations": annotations})


def karpathy(folder: Path) -> str:
    def one(name: str, split: str, *said: str) -> dict[str, Any]:
        sentences = [{"raw": text, "tokens": text.split()} for text in said]
        return {"filename": name, "split": split, "sentences": sentences}

    pictures = [
        one("a.jpg", "test", "A one", "A two"),
        one("b.jpg", "test", "B one. More", "B two"),
        one("c.jpg", "train", "C"),
    ]
    return write(folder / "dataset_flickr30k.json", {"images": pictures, "dataset": "flickr30k"})


def token(folder: Path) -> str:
    lines = ["a.jpg#0\tA one", "a.jpg#1\tA two", "b.jpg#0\tB one. More", "b.jpg#1\tB two", ""]
    return write(folder / "results.token", "\n".join(lines))


def csv(folder: Path) -> str:
    rows = ["file,caption,split", "a.jpg,A one,test", "b.jpg,B one. More,test"]
    rows += ["a.jpg,A two,test", "c.jpg,C,train", "b.jpg,B two,test"]
    return write(folder / "pairs.csv", "\n".join(rows))


def jsonl(folder: Path) -> str:
    rows = [
        {"image": "a.jpg", "text": ["A one", "A two"]},
        {"image": "b.jpg", "text": ["B one. More", "B two"]},
    ]
    return write(folder / "pairs.jsonl", "\n".join(map(json.dumps, rows)))


def tar(path: Path, members: Sequence[tuple[str, bytes]]) -> str:
    with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as archive:
        for name, data in members:
            about = tarfile.TarInfo(name)
            about.size = len(data)
            archive.addfile(about, io.BytesIO(data))
    return str(path)


def tars(folder: Path) -> str:
    meta = json.dumps({"captions": ["B one. More", "B two"], "url": "x"}).encode()
    tar(folder / "all-0.tar", [("a.png", jpeg("red")), ("a.json", b'{"caption": "no", "sha": 1}'),
                               ("a.txt", b"A one\n")])  # fmt: skip
    tar(folder / "all-1.tar", [("b.json", meta), ("b.png", jpeg("green"))])
    return f"{folder}/{{split}}-{{0..1}}.tar"


@pytest.mark.parametrize(
    ("make", "split", "second"),
    [(coco, "all", True), (karpathy, "test", True), (token, "all", True), (csv, "test", True),
     (jsonl, "all", True), (tars, "all", False)],
)  # fmt: skip
def test_each_kind_of_file_is_read_with_its_images(
    make: Callable[[Path], str], split: str, second: bool, folder: Path
) -> None:
    place = make(folder)
    images = None if make is tars else folder / "pictures"
    listing = read_captions(place, split, images=images)
    assert isinstance(listing, Listing)
    assert listing.texts == ((("A one", "A two") if second else ("A one",)),
                             ("B one. More", "B two"))  # fmt: skip
    assert len(listing) == len(listing.keys) == 2
    assert listing.captions(np.array([1, 0])) == [listing.texts[1], listing.texts[0]]
    for index, colour in enumerate([(255, 0, 0), (0, 128, 0)]):
        sample = listing.read(index)
        assert sample.image.getpixel((0, 0)) == colour
        assert sample.labels.shape == (0,)
    one = read_captions(place, split, images=images, most=1)
    assert one.texts == (("A one",), ("B one. More",))
    assert one.identity() != listing.identity()
    again = read_captions(place, split, images=images)
    assert again.identity() == listing.identity()


def test_what_lacks_its_other_half_is_left_out_and_counted(folder: Path) -> None:
    place = Path(coco(folder))
    content = json.loads(place.read_text())
    content["images"] += [{"id": 8, "file_name": "c.jpg"}, {"id": 9, "file_name": "gone.jpg"}]
    content["annotations"] += [
        {"image_id": 8, "caption": ""},
        {"image_id": 8, "caption": None},
        {"image_id": 9, "caption": "Gone"},
        {"image_id": 77, "caption": "Whose?"},
    ]
    write(place, content)
    listing = read_captions(str(place), images=folder / "pictures", most=1)
    assert listing.texts == (("A one",), ("B one. More",))
    told = "\n".join(listing.notes)
    for words in (
        "3 empty captions",
        "1 image without a caption, such as 'c.jpg'",
        "1 image that is not there, such as",
        "gone.jpg",
        "1 caption without an image, such as 'Whose?' of image 77",
        "2 captions beyond those that are asked for",
    ):
        assert words in told
    for name in NAMES:
        (folder / "pictures" / name).unlink()
    with pytest.raises(ValueError, match=r"no image with a caption.*3 images that are not there"):
        read_captions(str(place), images=folder / "pictures")


def test_tars_with_halves_of_pairs(tmp_path: Path) -> None:
    said = {"a.txt": b"A", "c.txt": b"C", "d.txt": b" \n", "e.cls": b"1", "f.json": b"{}"}
    pictures = [(f"{name}.png", jpeg()) for name in "abdf"]
    place = tar(tmp_path / "x.tar", [*pictures, *said.items()])
    listing = read_captions(place)
    assert listing.texts == (("A",),)
    told = "\n".join(listing.notes)
    assert "3 images without a caption" in told
    assert "1 caption without an image, such as c" in told
    assert "1 empty caption," in told
    assert "1 member of another kind, such as e.cls" in told


def test_sharegpt4v_holds_out_its_first_thousand_entries(tmp_path: Path) -> None:
    picture(tmp_path / "data" / "coco" / "1.jpg")

    def entry(name: str, said: str) -> dict[str, Any]:
        talk = [{"from": "human", "value": "<image>\nWhat?"}, {"from": "gpt", "value": said},
                {"from": "gpt", "value": "And more"}]  # fmt: skip
        return {"id": "1", "image": name, "conversations": talk}

    entries = [entry("coco/1.jpg", f"number {number}") for number in range(1003)]
    place = write(tmp_path / "share.json", entries)
    for split, first, last, count in (
        ("test", 0, 999, 1000),
        ("train", 1000, 1002, 3),
        ("all", 0, 1002, 1003),
    ):
        (said,) = read_captions(place, split, images=tmp_path / "data").texts
        assert (said[0], said[-1], len(said)) == (f"number {first}", f"number {last}", count)
    with pytest.raises(ValueError, match="has no split 'val'; it has all, test, train"):
        read_captions(place, "val", images=tmp_path / "data")


def test_a_folder_of_images_and_one_of_texts_are_paired_by_name(tmp_path: Path) -> None:
    for name in ("2.jpg", "10.jpg", "3.png"):
        picture(tmp_path / "image" / name)
    (tmp_path / "caption").mkdir()
    for name, text in (("2", "Two\nmore"), ("10", "Ten"), ("4", "Four")):
        (tmp_path / "caption" / f"{name}.txt").write_text(text)
    listing = read_captions(str(tmp_path))
    assert listing.texts == (("Ten",), ("Two",))
    assert any("1 caption without an image" in note for note in listing.notes)
    assert any("1 image without a caption, such as '3.png'" in note for note in listing.notes)


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("x.json", "{", "is not JSON"),
        ("x.json", {"images": [], "annotations": [{"image_id": 1, "bbox": []}]},
         "no file of captions, but of objects"),
        ("x.json", {"images": [{"id": 1}], "annotations": []}, "image 0: it needs 'id' and"),
        ("x.json", {"images": [{"id": 1, "file_name": "a.jpg"}] * 2, "annotations": []},
         "the id 1 is there twice"),
        ("x.json", {"a": 1}, "holds no captions as COCO"),
        ("x.json", [{"image": "a.jpg"}], "entry 0: it needs 'image' and 'conversations'"),
        ("x.json", [], "has no image with a caption"),
        ("x.token", "a.jpg A", "line 1: it needs an image, '#'"),
        ("x.csv", "file,labels\na.jpg,dog", "no column of captions"),
        ("x.csv", "picture,caption\na.jpg,dog", "no column of images"),
        ("x.csv", "file,caption\n../../a.jpg,dog", "is not inside the folder"),
        ("x.csv", "file,caption,split\na.jpg,dog,train", "no row whose 'split' is 'test'"),
        ("x.md", "", "is no file of captions; give .json"),
        ("x.tar", "nonsense" * 200, "must be a whole tar"),
    ],
)  # fmt: skip
def test_what_cannot_be_read_is_told_by_file_and_place(
    name: str, content: Any, words: str, folder: Path
) -> None:
    place = write(folder / "pictures" / name, content)
    with pytest.raises(ValueError, match=words) as error:
        read_captions(place, "test" if "split" in str(content) else "all")
    assert name in str(error.value)


def test_places_that_are_not_there(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="there is no such file"):
        read_captions(str(tmp_path / "x.json"))
    with pytest.raises(ValueError, match="without the folders image and caption"):
        read_captions(str(tmp_path))
    with pytest.raises(ValueError, match="no tar"):
        read_captions(str(tmp_path / "x.tar"))


def test_sentences_are_taken_from_the_front_each_number_as_often() -> None:
    caption = "One. Two\nlines. Three."
    counts = [first_sentences(caption, (n + 0.5) / 300).count(". ") for n in range(300)]
    assert [counts.count(each) for each in range(3)] == [100, 100, 100]
    assert first_sentences(caption, 0.0) == "One"
    assert first_sentences(caption) == "One. Two lines. Three."


def test_a_listing_can_be_sent_to_workers(folder: Path) -> None:
    import pickle

    listing = read_captions(token(folder), images=folder / "pictures")
    other = pickle.loads(pickle.dumps(listing))
    assert isinstance(other, CaptionListing)
    assert other.identity() == listing.identity()


@pytest.mark.parametrize("make", [csv, tars])
def test_a_listing_of_a_relative_place_is_read_from_another_folder(
    make: Callable[[Path], str], folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = make(folder)
    monkeypatch.chdir(folder)
    images = None if make is tars else Path("pictures")
    relative = place.replace(f"{folder}/", "")
    listing = read_captions(relative, images=images)
    monkeypatch.chdir(tmp_path.parent)
    assert [listing.read(index).image.getpixel((0, 0)) for index in range(2)] == [
        (255, 0, 0),
        (0, 128, 0),
    ]

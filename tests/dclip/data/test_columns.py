import io
import tarfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dclip.data.columns import match_columns
from dclip.data.listing import ImageListing, Listing
from dclip.data.webdataset_listing import read_webdataset
from dclip.world.dataset import ShapesListing


def listing(names: tuple[str, ...], labels: list[list[int]]) -> ImageListing:
    """Images of a split 'val' with these label vectors."""
    rows = [str(row) for row in range(len(labels))]
    return ImageListing(
        name="own",
        split="val",
        class_names=names,
        image_dir=Path(),
        keys=tuple(rows),
        file_names=tuple(f"{row}.png" for row in rows),
        labels=np.array(labels, np.int8),
        notes=("as it was read",),
    )


def labels_by_name(split: Listing, count: int) -> list[dict[str, int]]:
    labels = getattr(split, "labels")  # noqa: B009 - of both kinds of listing
    return [dict(zip(split.class_names, labels[row].tolist(), strict=True)) for row in range(count)]


def test_columns_are_moved_by_name_with_what_is_unknown() -> None:
    val = listing(("box", "bar", "disc"), [[1, 0, -1], [0, 1, 1]])
    matched = match_columns(val, ("disc", "box", "bar"), of="train")
    assert matched.class_names == ("disc", "box", "bar")
    assert isinstance(matched, ImageListing)
    assert matched.labels.tolist() == [[-1, 1, 0], [1, 0, 1]]
    assert labels_by_name(matched, 2) == labels_by_name(val, 2)
    assert matched.notes == (
        "as it was read",
        "classes are in another order than those of 'train': columns were matched by name",
    )
    assert matched.identity() != val.identity()


def test_columns_in_order_stay_the_listing_itself() -> None:
    val = listing(("disc", "box"), [[1, 0]])
    assert match_columns(val, ["disc", "box"], of="train") is val
    scenes = ShapesListing("test")
    assert match_columns(scenes, scenes.class_names, of="train") is scenes


def test_columns_of_tars_are_moved_as_well(tmp_path: Path) -> None:
    picture = io.BytesIO()
    Image.new("RGB", (4, 4)).save(picture, "PNG")
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        for suffix, data in (("png", picture.getvalue()), ("txt", b"dog\n")):
            member = tarfile.TarInfo(f"0.{suffix}")
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    val = read_webdataset([str(tmp_path / "a.tar")], "val", ("dog", "cat"))
    matched = match_columns(val, ("cat", "dog"), of="train")
    assert labels_by_name(matched, 1) == [{"cat": 0, "dog": 1}]
    assert matched.read(0).labels.tolist() == [0, 1]


@pytest.mark.parametrize(
    ("other", "reason"),
    [
        (("disc", "box", "bar"), "'val' has no 'bar'. Give both"),
        (("disc",), "'train' has no 'box'. Give both"),  # whether or not an image has it
        (("disc", "Box"), "'val' has no 'Box'; 'train' has no 'box'. Give both"),
        (("disc", "box", "box"), "one of them has a class twice"),
        (
            ("disc", "box", *"abcdefgh"),
            "'val' has no 'a' and no 'b' and no 'c' and no 'd' and no 'e' (nor 3 more)",
        ),
    ],
)
def test_a_class_that_one_side_lacks_is_named(other: tuple[str, ...], reason: str) -> None:
    with pytest.raises(ValueError, match="splits 'train' and 'val' have other classes") as error:
        match_columns(listing(("box", "disc"), [[0, 1]]), other, of="train")
    assert reason in str(error.value)


def test_columns_that_cannot_be_moved_are_refused() -> None:
    scenes = ShapesListing("test")
    with pytest.raises(ValueError, match="columns of shapes 'test' are in another order"):
        match_columns(scenes, scenes.class_names[::-1], of="train")

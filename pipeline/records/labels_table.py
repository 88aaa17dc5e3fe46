"""Labels as a table that ``--dataset folder:`` takes: predicted, or corrected, to train on again.

One row an image, one column a class: 1 present, 0 absent, -1 unknown. So classes that no image has
keep their column, what is not known stays so, and a wrong cell is mended by one digit.
"""

import csv
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int

from dclip.data.tables import read_table
from dclip.store.paths import AnyPath, write_text
from pipeline.terminal.errors import StageError, UsageError


def require_place(table: Path, images: Sequence[AnyPath | None], *, flag: str) -> None:
    """Refuse, before any work, a table that could not be written or read again.

    Args:
        table: Where it is to be.
        images: That it is to list.
        flag: That names it, for messages.

    Raises:
        UsageError: It is there already, is no CSV, or does not lie in a folder above all images.
    """
    if table.suffix.lower() != ".csv":
        raise UsageError(f"{flag} {table}: give it a name that ends in .csv")
    if table.exists():
        raise UsageError(
            f"{flag} {table} is there already, and may have been corrected by hand; give another "
            "name, or move it away"
        )
    if not table.absolute().parent.is_dir():
        raise UsageError(f"{flag} {table}: there is no folder {table.absolute().parent}")
    files_below(table, images, flag=flag)


def files_below(table: Path, images: Sequence[AnyPath | None], *, flag: str) -> list[str]:
    """Images as a table lists them: relative to its folder.

    Raises:
        UsageError: One is no file of its own, is not on this machine, or lies elsewhere.
    """
    folders = [table.absolute().parent, table.absolute().parent.resolve()]
    files = []
    for image in images:
        if not isinstance(image, Path):
            what = "images that are drawn or lie in tars" if image is None else str(image)
            raise UsageError(f"{flag}: a table lists files of this machine, not {what}")
        places = [(image.absolute(), folders[0]), (image.resolve(), folders[1])]
        inside = next(
            (one.relative_to(top) for one, top in places if one.is_relative_to(top)), None
        )
        if inside is None:
            raise UsageError(
                f"{flag} {table}: image {image} is not in its folder, nor below; put the table "
                "into the folder of the images"
            )
        files.append(inside.as_posix())
    return files


def write_labels(
    table: Path,
    files: Sequence[str],
    class_names: Sequence[str],
    labels: Int[np.ndarray, "images classes"],
) -> None:
    """Write a table, and read it again as ``--dataset folder:`` would; an image counts once.

    Raises:
        StageError: It would be read as another one, as class names can bring about.
    """
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["file", *class_names])
    first: dict[str, int] = {}
    for row, file in enumerate(files):
        first.setdefault(file, row)
    kept = list(first.values())
    for row in kept:
        writer.writerow([files[row], *labels[row].tolist()])
    write_text(table, text.getvalue())
    try:
        found = read_table(table)
    except ValueError as error:
        raise StageError(f"the labels table cannot be read again: {error}") from None
    is_same = (
        found.files == tuple(files[row] for row in kept)
        and found.classes == tuple(class_names)
        and np.array_equal(found.labels, labels[kept])
    )
    if not is_same:
        raise StageError(
            f"the labels table {table} would be read otherwise than it was written: a class is "
            "called as such tables call a column of theirs; give it another name"
        )


def label_of(row: Mapping[str, Any], *, by_clip: bool) -> int:
    """What a row of a prediction says of its class: 1, 0, or -1 where there is no probability.

    So a class that was not trained is left open, whose presence would be guessed by a cosine.

    Args:
        row: As in ``predictions.jsonl``.
        by_clip: Whether frozen CLIP alone answers, and may tell probabilities (SigLIP).
    """
    probability = row.get("clip_probability" if by_clip else "probability")
    return -1 if probability is None else int(row["present"])


def write_predicted(
    table: Path,
    sources: Mapping[str, AnyPath],
    images: Sequence[Mapping[str, Any]],
    class_names: Sequence[str],
    *,
    by_clip: bool,
) -> None:
    """The labels table of predictions.

    Args:
        table: Where it goes.
        sources: Images by the name of their files.
        images: As in ``predictions.jsonl``; those that could not be predicted are left out.
        class_names: In column order.
        by_clip: As for `label_of`.

    Raises:
        UsageError: As for `require_place`.
        StageError: As for `write_labels`.
    """
    files = files_below(table, [sources[image["name"]] for image in images], flag="--labels")
    column = {name: position for position, name in enumerate(class_names)}
    labels = np.full((len(images), len(class_names)), -1, np.int8)
    for number, image in enumerate(images):
        for row in image["scores"]:
            labels[number, column[row["class"]]] = label_of(row, by_clip=by_clip)
    write_labels(table, files, class_names, labels)

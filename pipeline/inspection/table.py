"""The table of all data sets that can be used."""

from dclip.data.dataset import Dataset
from dclip.data.registry import DATASETS
from pipeline.terminal.pages import page
from pipeline.terminal.table import Column, aligned


def table() -> str:
    """All registered data sets, one a line, and the ways to use one's own."""
    head = ("name", "task", "classes", "train split", "test split", "options", "title")
    columns = [Column(title, is_left=True) for title in head]
    return "\n".join(
        [
            *aligned(columns, map(_about, DATASETS.values())),
            "",
            f"Your own data, without code ({page('datasets')}):",
            "  folder:PATH       images and <split>.csv, .jsonl or .parquet with labels; or another"
            " tool's tree",
            "  webdataset:URLS   tars of images and labels; {split}, {000..009} and * are expanded",
            "  PATH.json         annotations in COCO's format; --root is the folder of the images",
            "PATH, and --root of coco, coco14 and coco17, may be s3://, gs://, http:// or https://.",
        ]
    )


def _about(entry: Dataset) -> tuple[str, ...]:
    """A row of the table."""
    options = [f"{option}={'|'.join(values)}" for option, values in entry.options.items()]
    return (
        entry.name,
        entry.task,
        str(len(entry.class_names)) if entry.class_names else "any",
        _split_and_size(entry, entry.train_split),
        _split_and_size(entry, entry.test_split),
        " ".join(options) or "-",
        entry.title,
    )


def _split_and_size(entry: Dataset, split: str | None) -> str:
    if split is None:
        return "-"
    images = entry.expected.get(split)
    return split if images is None else f"{split} ({images:,})"

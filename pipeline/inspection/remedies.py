"""What to do about files of a data set that are not where they should be."""

from collections.abc import Sequence
from itertools import islice
from pathlib import Path

from dclip.data.dataset import Dataset
from dclip.data.registry import DATASETS
from dclip.store.paths import AnyPath
from pipeline.features.listings import layout_of
from pipeline.inspection.findings import Findings
from pipeline.inspection.splits import usual_splits

_LOOKED_AT = 1000
"""How many entries of a folder are looked at in search of a better root."""

_NAMED = 5
"""How many folders are looked into."""


def remedies(entry: Dataset, root: Path, missing: Sequence[str], findings: Findings) -> None:
    """What to do about files that are not where they should be, as far as one can tell."""
    if not all(_is_whole(entry, root, split) for split in missing):
        place = _better_root(entry, root, missing)
        if place is not None:
            findings.add("remedy", "", f"the files are found from {place}: give --root {place}")
        for other in DATASETS.values():
            alike = other.task == entry.task and other.expected and other.layout
            if alike and all(_is_whole(other, root, split) for split in usual_splits(other)):
                findings.add(
                    "remedy",
                    "",
                    f"the files of {other.name} ({other.title}) are there: is that what you have?",
                )


def _is_whole(entry: Dataset, root: Path, split: str) -> bool:
    """Whether a file of every kind is there."""
    return all(is_there for _, _, is_there in layout_of(entry, root, split))


def _better_root(entry: Dataset, root: Path, splits: Sequence[str]) -> Path | None:
    """A folder above or below the root from which the files of some splits are found."""
    folder = root.absolute()
    below = [child for child in islice(folder.iterdir(), _LOOKED_AT) if child.is_dir()]
    deeper = (
        grandchild
        for child in below[:_NAMED]
        for grandchild in islice(child.iterdir(), _LOOKED_AT)
        if grandchild.is_dir()
    )
    for place in (*list(folder.parents)[:2], *sorted(below), *sorted(deeper)):
        if all(_is_whole(entry, place, split) for split in splits):
            return place
    return None


def expectations(
    entry: Dataset, root: AnyPath | None, splits: Sequence[str], findings: Findings
) -> None:
    """Which files are expected where, whether they are there, and whom to ask for them."""
    place: AnyPath = Path("DIR") if root is None else root
    rows = dict.fromkeys(row for split in splits for row in layout_of(entry, place, split))
    findings.files += [
        f"{'found  ' if is_there and root is not None else 'MISSING'} {place}/{pattern}: {what}"
        for pattern, what, is_there in rows
    ]
    findings.files.append(f"to be obtained from its official page: {entry.homepage}")

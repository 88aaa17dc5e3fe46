"""What masks tell of themselves: whether objects are counted, and whether the label map fits."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from dclip.data.label_maps import label_map_doubts
from dclip.data.listing import ImageListing
from dclip.data.segmentation import BACKGROUND, SegmentationListing, read_indices
from dclip.store.paths import AnyPath
from pipeline.inspection.findings import Findings
from pipeline.inspection.splits import AnyListing, open_split, without_advice

# Data sets with image-level labels of the same images, in the same folder.
_LABELLED: Mapping[str, tuple[str, Mapping[str, str]]] = {
    "voc12-seg": ("voc2012", {}),
    "coco17-seg": ("coco17", {"images": "all"}),
    "stuff": ("coco17", {"images": "all"}),
}
# With fewer samples, where classes lie in the image is chance.
_FAIR_SAMPLE = 24

_FEW_MASKS = 0.1
"""Share of masks without a counted object that a data set may have: crowds, rare landscapes."""

_NAMED = 5
"""How many doubts are told."""


def check_masks(listing: AnyListing, split: str, rows: Sequence[int], findings: Findings) -> None:
    """Masks in which no object is counted, though there is one to be seen."""
    if not isinstance(listing, SegmentationListing) or not rows:
        return
    has_background = listing.class_names[0] == BACKGROUND
    files: Sequence[Path] = getattr(listing, "mask_paths", ())
    kinds: dict[str, list[int]] = {}
    for row in rows:
        stored = set(read_indices(files[row]).ravel().tolist()) if files else set()
        values = set(listing.read_mask(row).ravel().tolist())
        objects = values - {listing.ignore_index} - ({0} if has_background else set())
        if stored == {0, 255} or (not files and values == {0, 255} and has_background):
            kind = "hold only the values 0 and 255"
        elif values == {listing.ignore_index}:
            kind = "hold ignored pixels only"
        else:
            continue
        kinds.setdefault(f"{kind}{'' if objects else ', so that no object is counted'}", []).append(
            row
        )
    for kind, held in kinds.items():
        many = len(held) > _FEW_MASKS * len(rows)
        hint = "; save class numbers, not black and white" if "255" in kind else ""
        findings.add(
            "problem" if many else "note",
            split,
            f"{len(held):,} of {len(rows):,} masks {kind}, such as that of"
            f" {listing.key(held[0])}{hint if many else ''}",
        )


def check_label_map(
    root: AnyPath | None,
    listing: AnyListing,
    split: str,
    rows: Sequence[int],
    cache: Path | None,
    findings: Findings,
) -> None:
    """Signs that masks are read with a wrong label map."""
    if not isinstance(listing, SegmentationListing) or not rows:
        return
    if len(rows) < _FAIR_SAMPLE:
        findings.add("note", split, f"{len(rows)} masks are too few to doubt the label map")
        return
    labelled = None
    if listing.name in _LABELLED:
        name, options = _LABELLED[listing.name]
        try:
            opened = open_split(name, root, split, options, cache)
            labelled = opened if isinstance(opened, ImageListing) else None
        except ValueError as error:
            findings.add(
                "note", split, f"no labels to compare the masks with: {without_advice(error)}"
            )
    if labelled and not {labelled.key(row) for row in range(len(labelled))}.intersection(
        listing.key(row) for row in rows
    ):
        findings.add(
            "problem",
            split,
            f"no image is in {split} by the annotations of {labelled.name}; were the splits"
            " exchanged?",
        )
    doubts = label_map_doubts(listing, rows, labelled=labelled)
    for doubt in doubts[:_NAMED]:
        findings.add("problem", split, f"{doubt}; is the label map permuted?")
    if not doubts:
        findings.add("ok", split, "nothing speaks of a permuted label map")

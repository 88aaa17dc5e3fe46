"""All data sets by name. A new one is a file beside this one, and a line here."""

import difflib
from collections.abc import Mapping

from dclip.data import (
    ade20k,
    cityscapes,
    coco,
    coco_masks,
    context,
    stuff,
    voc,
)
from dclip.data.dataset import Dataset
from dclip.world.dataset import SHAPES, SHAPES_SINGLE

__all__ = ["DATASETS", "Dataset", "get_dataset"]

DATASETS: Mapping[str, Dataset] = {
    dataset.name: dataset
    for dataset in (
        SHAPES,
        SHAPES_SINGLE,
        coco.COCO_FORMAT,
        coco.COCO14,
        coco.COCO17,
        voc.VOC2007,
        voc.VOC2012,
        voc.VOC12_SEG,
        coco_masks.COCO17_SEG,
        cityscapes.CITYSCAPES,
        context.CONTEXT,
        stuff.STUFF,
        ade20k.ADE20K,
    )
}


def get_dataset(name: str) -> Dataset:
    """The data set of that name.

    Raises:
        ValueError: If there is none; the message has names like it.

    Example:
        >>> get_dataset("coco14").test_split
        'val2014'
    """
    if name in DATASETS:
        return DATASETS[name]
    close = difflib.get_close_matches(name, DATASETS, n=3, cutoff=0.5)
    hint = f"did you mean {' or '.join(map(repr, close))}? " if close else ""
    raise ValueError(f"unknown dataset {name!r}; {hint}known: {', '.join(DATASETS)}")

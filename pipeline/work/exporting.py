"""A checkpoint and its backbone to one file, beside which stands what it is and how it is run."""

import json
from typing import Any, NamedTuple

import torch

from dclip.exports.example import example_of
from dclip.exports.export import Export, export_of, write
from dclip.logits import sigmoid_of
from dclip.methods.method import Task, with_classes
from dclip.prompts import ClassTexts, encode_class_names
from dclip.provenance import git_commit
from dclip.store.paths import write_text
from pipeline.features.opened import open_backbone
from pipeline.records.checkpoints import load_checkpoint
from pipeline.work.plans import ExportPlan


class Made(NamedTuple):
    """What was written.

    Attributes:
        size: Bytes of the model.
        difference: Largest one from the model it was made of.
        description: What it says of itself.
    """

    size: int
    difference: float
    description: dict[str, Any]


def make(plan: ExportPlan) -> Made:
    """Write the model, what it is, and a program that runs it.

    Raises:
        ExportError: It cannot be written, or says something else than the model.
        StageError: The checkpoint is damaged.
    """
    export = exported(plan)
    plan.folder.mkdir(parents=True, exist_ok=True)
    written = write(export, plan.file, plan.format)
    told = export.description.to_json()
    write_text(plan.example, example_of(export.description, plan.format))
    write_text(plan.about_file, json.dumps(told, indent=1))
    return Made(written.size, written.difference, told)


def exported(plan: ExportPlan) -> Export:
    """The model that is to be written.

    Raises:
        ExportError: Its method cannot be exported.
        StageError: The checkpoint is damaged.
    """
    backbone = open_backbone(plan.config)
    if plan.checkpoint is None:
        texts = encode_class_names(backbone, plan.classes).float()
        task = Task(
            plan.classes,
            torch.cat([texts, texts]),
            ClassTexts(texts, torch.arange(len(texts))),
            sigmoid=sigmoid_of(backbone),
        )
        return export_of(
            backbone,
            task=task,
            what=plan.what,
            kind=plan.kind,
            feature_space=plan.feature_space,
            commit=git_commit(),
        )
    method, about = load_checkpoint(plan.checkpoint)
    columns = [about.class_names.index(name) for name in plan.classes]
    known = None if about.calibration is None else about.calibration.for_columns(columns)
    asked = method.for_classes(with_classes(method.task, columns))
    return export_of(
        backbone,
        asked,
        what=plan.what,
        kind=plan.kind,
        calibration=known,
        feature_space=plan.feature_space,
        checkpoint=plan.weights,
        commit=git_commit(),
    )

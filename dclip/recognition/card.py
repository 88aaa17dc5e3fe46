"""A model card: what a trained model is, how good it was, and what it is not for."""

import json
from typing import Any

from dclip.checkpoints.calibration import Calibration
from dclip.checkpoints.origin import About
from dclip.words import counted, percent

_MOST_ROWS = 200  # classes of the table of thresholds
_MOST_NAMED = 40


def summary(about: About) -> str:
    """What a model is, as ``config.json``; the checkpoint itself holds all of it."""
    known = about.encoder
    told: dict[str, Any] = {
        "library_name": "dclip",
        "architectures": ["dclip.Recognizer"],
        "model_type": "dclip",
        "method": about.method,
        "settings": about.settings.model_dump(mode="json"),
        "backbone": about.backbone_name,
        "encoder": None if known is None else known.model_dump(mode="json"),
        "feature_space": about.feature_space,
        "embed_dim": about.embed_dim,
        "id2label": {str(number): name for number, name in enumerate(about.class_names)},
        "label2id": {name: number for number, name in enumerate(about.class_names)},
        "thresholds": None if about.calibration is None else about.calibration.thresholds,
        "commit": about.commit,
    }
    return json.dumps(told, indent=1, ensure_ascii=False) + "\n"


def model_card(about: About) -> str:
    """The card of a model, in Markdown with the head that the Hugging Face Hub reads.

    Args:
        about: Of its checkpoint.
    """
    known, names = about.calibration, about.class_names
    shown = ", ".join(names[:_MOST_NAMED])
    more = f", and {len(names) - _MOST_NAMED} more" if len(names) > _MOST_NAMED else ""
    metrics = _metrics(known)
    lines = [
        "---",
        "library_name: dclip",
        "tags: [multi-label-recognition, clip, dclip]",
        "pipeline_tag: image-classification",
        "---",
        "",
        f"# {about.settings.title} on {about.backbone_name}",
        "",
        f"Says which of {counted(len(names), 'class', 'classes')} a photograph shows, and where. "
        f"The CLIP behind it is frozen and not in this folder: {about.made_on}.",
        "",
        "```python",
        "import dclip",
        "",
        'model = dclip.load("FOLDER")  # this folder, or its name on the Hub',
        'result = model.predict(["photo.jpg"])[0]',
        "print(result.present, result.scores)",
        "```",
        "",
        f"Classes: {shown}{more}.",
        "",
        "## How it was made",
        "",
        f"* Method: `{about.method}`, {_settings(about)}, seed {about.seed}.",
        f"* Epoch {about.epoch} of {len(about.history)}; {_loop(about)}.",
        f"* Features: {about.features[:12]}; feature space {about.feature_space[:12]}.",
        f"* Code: commit {about.commit or 'unknown'}.",
        *_part(about),
        "",
        "## How good it is",
        "",
        *metrics,
        "",
        "## Limits",
        "",
        "* It was measured on images held out of its own training data, so it says little of others"
        " that look different.",
        "* Names that it was not trained on are scored by CLIP itself; where presence begins is "
        "then a guess.",
        "* CLIP learned from uncurated pictures of the web and has their biases. Do not use it to "
        "judge people.",
        f"* The licence of the frozen CLIP ({about.backbone_name}) is that of its makers; look it "
        "up where its weights come from. The data's licence is the data's.",
        "",
        *_thresholds(about, known),
    ]
    return "\n".join(lines).rstrip() + "\n"


def _settings(about: About) -> str:
    preset = about.settings.preset_values(about.settings.usual_preset()).own
    usual = type(about.settings).model_validate(preset).model_dump(mode="json")
    own = about.settings.model_dump(mode="json")
    changed = [f"{key} {value}" for key, value in own.items() if usual.get(key) != value]
    return ", ".join(changed) if changed else "settings as usual"


def _loop(about: About) -> str:
    loop = about.loop
    if about.settings.trained_by != "loop":
        return "it fits itself"
    return (
        f"preset {loop.preset}, {loop.optimizer}, learning rate {loop.lr:g}, batches of "
        f"{loop.batch_size}"
    )


def _part(about: About) -> list[str]:
    said = about.subset.identity() if about.subset else {}
    return ["* Part of the data: " + ", ".join(f"{k} {v}" for k, v in said.items())] if said else []


def _metrics(known: Calibration | None) -> list[str]:
    if known is None:
        return ["No images were held out, so nothing is known of it."]
    told = known.measured
    interval = ""
    if told.map_low is not None and told.map_high is not None:
        interval = f" [{100 * told.map_low:.1f}, {100 * told.map_high:.1f}]"
    rows = [
        ("mAP, with its 95 % interval over images", percent(told.map) + interval, ""),
        ("CF1 at 0.5, and at the thresholds", percent(told.cf1_before), percent(told.cf1_after)),
        ("OF1 at 0.5, and at the thresholds", percent(told.of1_before), percent(told.of1_after)),
        (
            "expected calibration error, before and after",
            _number(told.ece_before),
            _number(told.ece_after),
        ),
    ]
    return [
        f"On {counted(known.images, 'image')} that were held out. What comes after calibration is "
        "measured on images that took no part in it, a fifth at a time.",
        "",
        "| | | |",
        "| --- | --- | --- |",
        *(f"| {name} | {first} | {second} |" for name, first, second in rows),
    ]


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"


def _thresholds(about: About, known: Calibration | None) -> list[str]:
    if known is None:
        return ["## Thresholds", "", "One half for every class."]
    rows = list(zip(about.class_names, known.thresholds, known.positives, strict=True))
    lines = [
        "## Thresholds",
        "",
        f"Chosen for {known.rule} on the held-out images; probabilities are calibrated by "
        f"{known.kind}.",
        "",
        "| class | threshold | held-out images that show it |",
        "| --- | --- | --- |",
        *(f"| {name} | {limit:.3f} | {count} |" for name, limit, count in rows[:_MOST_ROWS]),
    ]
    left = len(rows) - _MOST_ROWS
    return [*lines, f"| and {left} more | | |"] if left > 0 else lines

"""Images one by one: what is said of the classes, and the pictures of it."""

import logging
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from PIL import Image

from dclip.data.images import read_image
from dclip.pictures import masks as mask_figures
from dclip.pictures.canvas import save
from dclip.prediction import Prediction
from dclip.recognition.looking import Looker, Trained
from dclip.store.paths import AnyPath, atomic_write
from dclip.words import counted, short, told
from pipeline.cluster.device import choose_device
from pipeline.features.backbone import describe_backbone
from pipeline.features.opened import open_backbone
from pipeline.records.checkpoints import load_checkpoint
from pipeline.terminal.errors import StageError
from pipeline.terminal.progress import progress
from pipeline.work.plans import BY_CLIP, BY_METHOD, PredictPlan, stamp_of

log = logging.getLogger(__name__)

_MOST_PIXELS = 1 << 24  # of the mask of a square with bars; a longer image has coarser ones


def predict_all(
    plan: PredictPlan,
    sources: Mapping[str, AnyPath],
    total: int,
    keep: Callable[[dict[str, Any]], None],
) -> list[str]:
    """Predict and draw images one after the other; what went wrong.

    Args:
        plan: What is looked for.
        sources: Images, by the name of their files.
        total: How many images there are with those that are done already.
        keep: Called with what is to be written of each image, as soon as it is known.
    """
    device, why = choose_device(plan.config.device)
    log.info("predict: %s, %s (%s)", counted(len(sources), "image"), device, why)
    looker, failures = looker_of(plan, device), []
    with progress("predict", total, "images", total - len(sources)) as bar:
        for name, source in sources.items():
            image, failure = _predict_one(plan, looker, source, name)
            if failure:
                failures.append(failure)
                log.warning("predict: %s", failure)
            if image is not None:
                keep(image)
            bar.advance(1)
    return failures


def looker_of(plan: PredictPlan, device: str) -> Looker:
    """The backbone and the method of a plan, which know the names of its classes.

    Args:
        plan: What is looked for.
        device: ``"cpu"`` or ``"cuda"``.

    Raises:
        StageError: The method of the checkpoint is bound to other classes.
    """
    trained, wanted = None, plan.config.predict
    if plan.checkpoint is not None:
        trained = Trained(*load_checkpoint(plan.checkpoint))
    backbone = open_backbone(plan.config, device=device)
    try:  # before any image, and with the backbone, which some methods ask of new names
        return Looker(
            backbone,
            plan.classes,
            trained,
            kind=plan.kind,
            device=device,
            threshold=wanted.threshold,
            untrained_probability=wanted.untrained_probability,
        )
    except ValueError as error:
        where = "" if plan.checkpoint is None else f"checkpoint {plan.checkpoint}: "
        raise StageError(f"{where}{error}") from None


def _predict_one(
    plan: PredictPlan, looker: Looker, source: AnyPath, name: str
) -> tuple[dict[str, Any] | None, str]:
    """What is written of one image, as far as it goes, and what went wrong, if anything did.

    Whatever happens to it, the others go on: so any error is caught.
    """
    shown = _shown(source)
    image: dict[str, Any] = {
        "image": shown,
        "name": name,
        "stamp": stamp_of(source),
        "pictures": {},
    }
    try:
        pixels = read_image(source)
        said = looker.look([pixels])[0]
        image["scores"] = _scores(plan, said)
    except Exception as error:
        reason = told(error)
        return None, reason if shown in reason else f"{shown}: {reason}"
    try:
        image["pictures"] = _draw(plan, looker, name, pixels, said)
    except Exception as error:
        return image, f"{shown}: scores are written, its pictures are not: {told(error)}"
    return image, ""


def _shown(source: AnyPath) -> str:
    """A source as text that every file can hold; bytes that are no UTF-8 as their numbers."""
    return str(source).encode(errors="surrogateescape").decode(errors="backslashreplace")


def _scores(plan: PredictPlan, said: Prediction) -> list[dict[str, Any]]:
    """What is said of each class: those of the checkpoint first, then CLIP's, the likeliest first.

    A class that was not trained has no share of pixels, unless frozen CLIP made the mask.
    """
    count = len(plan.classes)
    assert said.mask is not None  # as it was asked for
    pixels = torch.bincount(said.mask.flatten().long(), minlength=count + 1).tolist()
    presence = [None] * count if said.presence is None else said.presence.tolist()
    cosines, shares = said.cosine.tolist(), said.zero_shot.tolist()
    limits = _limits(plan, said)
    rows = []
    for at, (name, trained) in enumerate(zip(plan.classes, plan.trained_as, strict=True)):
        is_trained = trained is not None
        has_pixels = is_trained or not said.is_located
        row = {
            "class": name,
            "trained": is_trained if plan.checkpoint else None,
            "scored_by": BY_METHOD if is_trained else BY_CLIP,
            "probability": presence[at] if is_trained else None,
            "present": bool(said.present[at]),
            "threshold": limits[at] if is_trained else None,
            "clip_cosine": cosines[at],
            "clip_share": shares[at],
            "pixel_share": pixels[at + 1] / said.mask.numel() if has_pixels else None,
        }
        if said.clip_presence is not None:
            row["clip_probability"] = said.clip_presence[at].item()
        if plan.config.predict.untrained_probability:
            row["untrained_probability"] = None if is_trained else presence[at]
        if said.score is not None:
            row["score"] = said.score[at].item() if is_trained else None
        rows.append(row)
    return sorted(rows, key=lambda row: (row["scored_by"] == BY_CLIP, -_value(row, plan)))


def _limits(plan: PredictPlan, said: Prediction) -> list[float | None]:
    """Probability of each class above which it counts as present, where there is one."""
    if said.presence is None or plan.about is None:
        return [None] * len(plan.classes)
    known = plan.about.calibration
    if known is None:
        return [0.5] * len(plan.classes)
    own = dict(zip(plan.about.class_names, known.thresholds, strict=True))
    return [None if name is None else own[name] for name in plan.trained_as]


def _value(row: dict[str, Any], plan: PredictPlan) -> float:
    """What classes are ranked by: what the method says of one, else what CLIP says."""
    clip = row["clip_share" if plan.checkpoint is None else "clip_cosine"]
    own = (row["probability"], row.get("score"))
    return float(next((value for value in own if value is not None), clip))


def _draw(
    plan: PredictPlan, looker: Looker, name: str, image: Image.Image, said: Prediction
) -> dict[str, str]:
    """Write the pictures of one image; their paths."""
    assert said.mask is not None  # as it was asked for
    mask: np.ndarray = said.mask.cpu().numpy()
    paths = {what: plan.folder / f"{name}-{what}.png" for what in ("mask", "overlay")}
    with atomic_write(paths["mask"]) as temporary:
        _mask_image(mask).save(temporary, format="PNG")
    save(mask_figures.overlay(image, mask, plan.classes), paths["overlay"])
    rows = _scores(plan, said)
    positions = {name: position for position, name in enumerate(plan.classes)}
    # rows of the method come first
    count = sum(row["scored_by"] == BY_METHOD for row in rows) if said.is_located else 0
    by_method, by_clip = rows[:count], rows[count:]
    for what, own, label, limits in (
        ("heat", by_method, "probability at that place", (0.0, 1.0)),
        ("heat-clip" if by_method else "heat", by_clip, "cosine with CLIP's text", None),
    ):
        if not own:
            continue
        paths[what] = plan.folder / f"{name}-{what}.png"
        order = [positions[row["class"]] for row in own]
        save(
            mask_figures.heat_maps(
                image,
                looker.maps_on(
                    said.maps[order].float().cpu().numpy(), image, mask_figures.small_size(image)
                ),
                [f"{short(row['class'], 20)}  {_value(row, plan):.2f}" for row in own],
                label=label,
                limits=limits,
                title=_heading(plan, by_method=own is by_method),
            ),
            paths[what],
        )
    return {what: str(path) for what, path in paths.items()}


def _mask_image(mask: np.ndarray) -> Image.Image:
    """A mask as an image: with a palette, or of 16 bits where it may hold more than 254 classes."""
    if mask.dtype == np.uint8:
        return mask_figures.palette_image(mask)
    return Image.fromarray(mask.astype(np.uint16))


def _heading(plan: PredictPlan, *, by_method: bool) -> str:
    """What a picture of maps is of."""
    backbone = describe_backbone(plan.config).name
    if by_method:
        assert plan.checkpoint is not None
        return f"{backbone}, checkpoint {plan.checkpoint.stem}"
    if plan.checkpoint is None or not plan.locates:
        return f"{backbone}, frozen"
    return f"{backbone}, frozen (classes that were not trained)"

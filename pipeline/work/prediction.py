"""Images one by one: what is said of the classes, and the pictures of it."""

import logging
import math
import warnings
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, UInt8
from PIL import Image

from dclip.backbones import preparation_of
from dclip.data.crops import as_pixels
from dclip.data.images import read_image
from dclip.data.pixels import image_to_tensor
from dclip.data.placing import place_maps, place_mask
from dclip.logits import sigmoid_of
from dclip.methods.method import Task
from dclip.pictures import masks as mask_figures
from dclip.pictures.canvas import save
from dclip.prediction import Prediction, UntrainedWarning, predict_image
from dclip.prompts import ClassTexts, encode_class_names, encode_prompt_pairs
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
    predictor, failures = Predictor(plan, device), []
    with progress("predict", total, "images", total - len(sources)) as bar:
        for name, source in sources.items():
            image, failure = _predict_one(plan, predictor, source, name)
            if failure:
                failures.append(failure)
                log.warning("predict: %s", failure)
            if image is not None:
                keep(image)
            bar.advance(1)
    return failures


class Predictor:
    """A backbone and a method that know the names of the classes.

    Args:
        plan: What is looked for.
        device: ``"cpu"`` or ``"cuda"``.
    """

    def __init__(self, plan: PredictPlan, device: str) -> None:
        self._plan, self._device = plan, device
        self._backbone = open_backbone(plan.config, device=device)
        self.preparation = preparation_of(self._backbone)
        # as in training, whatever the case in which a name is given
        spelt = [old or new for old, new in zip(plan.trained_as, plan.classes, strict=True)]
        self._names = spelt
        self._texts = encode_class_names(self._backbone, spelt).float()
        self._pairs = encode_prompt_pairs(self._backbone, spelt).float()
        self._method = self._trained = None
        if plan.checkpoint is not None:
            method = load_checkpoint(plan.checkpoint)[0].on(device)
            try:  # before any image, and with the backbone, which some methods ask of new names
                self._method = method.for_classes(self._task())
            except ValueError as error:
                raise StageError(f"checkpoint {plan.checkpoint}: {error}") from None
            self._trained = torch.tensor([name is not None for name in plan.trained_as])

    def _task(self) -> Task:
        texts = ClassTexts(self._texts, torch.arange(len(self._names), device=self._texts.device))
        return Task(tuple(self._names), self._pairs, texts, self._backbone)

    def _pixels(self, image: Image.Image) -> UInt8[torch.Tensor, "1 height width 3"] | None:
        """The image as a method is fed it, if it is."""
        if self._method is None or not self._method.settings.sees_images():
            return None
        form, backbone = self._method.settings.image_form, self._backbone
        side = backbone.stride if form == "native" else backbone.resolution
        square = np.array(as_pixels(image, side, form, self.preparation))
        return torch.from_numpy(square)[None].to(self._device)

    def predict(self, image: Image.Image) -> Prediction:
        """What one image shows.

        Its mask has the size of the image, and is background where the backbone sees nothing of
        it; its maps are of the square that the backbone sees (`maps_on`).
        """
        if self.preparation.resize == "squash":
            return self._predict(image, (image.height, image.width))
        side, size = self._backbone.resolution, image.size
        of_image, of_square = self.preparation.shown(*size, side)
        width = side * (of_image.right - of_image.left) / (of_square.right - of_square.left)
        height = side * (of_image.bottom - of_image.top) / (of_square.bottom - of_square.top)
        shrunk = max(1.0, math.sqrt(width * height / _MOST_PIXELS))
        said = self._predict(image, (math.ceil(height / shrunk), math.ceil(width / shrunk)))
        mask = place_mask(said.mask.cpu().numpy(), self.preparation, side=side, size=size)
        return replace(said, mask=torch.from_numpy(mask))

    def maps_on(
        self, maps: Float[np.ndarray, "classes rows columns"], image: Image.Image
    ) -> Float[np.ndarray, "classes height width"]:
        """Maps of an image over a small copy of it; nan where nothing of it was seen.

        Args:
            maps: Of a prediction.
            image: That it is of.
        """
        return place_maps(
            maps,
            self.preparation,
            seen=image.size,
            side=self._backbone.resolution,
            size=mask_figures.small_size(image),
        )

    def _predict(self, image: Image.Image, size: tuple[int, int]) -> Prediction:
        """As `predict`, with a mask of all that the backbone sees, in so many rows and columns."""
        backbone, wanted = self._backbone, self._plan.config.predict
        pixels = image_to_tensor(
            image, backbone.resolution, backbone.mean, backbone.std, self.preparation
        )
        fed = self._pixels(image)
        with torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore", UntrainedWarning)  # it is told once, by name
            features = backbone.encode_images(pixels[None].to(self._device), kind=self._plan.kind)
            return predict_image(
                features,
                backbone.grid(backbone.resolution, backbone.resolution),
                size,
                has_global_token=backbone.include_global_token,
                texts=self._texts,
                pairs=self._pairs,
                class_names=self._names,
                backbone=None if fed is None else backbone,
                pixels=fed,
                model=self._method,
                trained=self._trained,
                untrained_probability=wanted.untrained_probability,
                threshold=wanted.threshold,
                sigmoid=sigmoid_of(backbone),
            )


def _predict_one(
    plan: PredictPlan, predictor: Predictor, source: AnyPath, name: str
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
        said = predictor.predict(pixels)
        image["scores"] = _scores(plan, said)
    except Exception as error:
        reason = told(error)
        return None, reason if shown in reason else f"{shown}: {reason}"
    try:
        image["pictures"] = _draw(plan, predictor, name, pixels, said)
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
    pixels = torch.bincount(said.mask.flatten().long(), minlength=count + 1).tolist()
    presence = [None] * count if said.presence is None else said.presence.tolist()
    cosines, shares = said.cosine.tolist(), said.zero_shot.tolist()
    rows = []
    for at, (name, trained) in enumerate(zip(plan.classes, plan.trained_as, strict=True)):
        is_trained = trained is not None
        has_pixels = is_trained or not said.is_located
        row = {
            "class": name,
            "trained": is_trained if plan.checkpoint else None,
            "scored_by": BY_METHOD if is_trained else BY_CLIP,
            "probability": presence[at] if is_trained else None,
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


def _value(row: dict[str, Any], plan: PredictPlan) -> float:
    """What classes are ranked by: what the method says of one, else what CLIP says."""
    clip = row["clip_share" if plan.checkpoint is None else "clip_cosine"]
    own = (row["probability"], row.get("score"))
    return float(next((value for value in own if value is not None), clip))


def _draw(
    plan: PredictPlan, predictor: Predictor, name: str, image: Image.Image, said: Prediction
) -> dict[str, str]:
    """Write the pictures of one image; their paths."""
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
                predictor.maps_on(said.maps[order].float().cpu().numpy(), image),
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

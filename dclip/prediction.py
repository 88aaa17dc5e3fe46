r"""Classes of one image, their locations and their pixels, for class names of any choice.

A method answers three questions at once, all from the features it was trained on:

* which classes are there: its probability of each, above a threshold of the class; DCLIP's is
  `dclip.logits.presence_probability` over all locations. Both are calibrated by the images that
  its training held out, where the checkpoint has that (`dclip.calibration`); the threshold is one
  half otherwise;
* where: its probability of each location; DCLIP's is what the location's own prompt pair gives,
  with the logit scales :math:`a, b` of training,

  .. math::
      p_{kl} = \sigma\left(a b \, (\cos(z_l, t^+_k) - \cos(z_l, t^-_k))\right)

* which pixels: the classes that are there compete by
  `dclip.segmentation.min_max` of its scores of locations (DCLIP: cosines with their positive
  prompts), and a pixel is background where even the winner has :math:`p_{kl} < \theta`. Of a method
  that gives scores instead of probabilities, all classes that it was trained on compete.

Classes that the method was not trained on are another matter: what their prompt pairs give is
confident and means little (docs/untrained_names.md has the numbers). Such classes are scored by
CLIP itself, by the largest cosine of a location with their text; they take no pixels from the
others. They count as present above the cosine that was best for the training's own classes; where
none is known, by frozen CLIP's rule.

Frozen CLIP's rule: a class is present whose probability is above one half, where CLIP was trained
by a sigmoid; else one whose share in a softmax over the classes is above the even share, 1 / N, for
a softmax tells which is likelier and not which are there. Of a single class it then says nothing,
and that counts as absent.

Without a method, with one that says nothing of locations, or where none of the classes was trained
on, maps are frozen CLIP's cosines, all classes compete, and the background rule is that of
`dclip.segmentation.label_map`.
"""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Bool, Float, UInt8
from torch import Tensor
from torch.nn import functional as F

from dclip.backbones import Backbone, ImageFeatures
from dclip.calibration import is_present, scaling_of
from dclip.checkpoints.calibration import Calibration
from dclip.data.windows import Window
from dclip.fitting.batches import Batch
from dclip.logits import Sigmoid, sigmoid_scores, similarity_maps, zero_shot_scores
from dclip.methods.dclip import DCLIPMethod
from dclip.methods.method import Method, Task
from dclip.model import DCLIP
from dclip.segmentation import LabelMap, label_dtype, label_map, min_max


class UntrainedWarning(UserWarning):
    """Some classes are scored by CLIP itself, as the method was not trained on them."""


@dataclass(frozen=True)
class Prediction:
    """What is said of one image.

    Attributes:
        presence: Probability of each class by the method, calibrated where that is known; nan for
            one that it was not trained on, unless it was asked for; None without a method, or with
            one that gives none.
        present: Which classes count as there.
        is_calibrated: Whether probabilities and thresholds are those that held-out images gave.
        cosine: Largest cosine of any location with CLIP's text of the class, in [-1, 1]: CLIP's own
            say, on a scale of its own. It ranks images and locations of one class; it is no
            probability, and where "present" begins differs from class to class.
        zero_shot: Softmax of CLIP's own global scores over the classes: they sum to 1, so that it
            says which class is likeliest, not which are there.
        clip_presence: Probability of each class by CLIP itself, where it was trained by a sigmoid
            (SigLIP): of the whole image, each class by itself. None where it was not.
        maps: Of each location of what the backbone saw, the probability of each class by the
            method; the cosine with CLIP's text for a class that it was not trained on, and for all
            unless ``is_located``.
        mask: 0 for background, 1 + position of the class elsewhere; in 32 bits instead of 8 where
            there are more than 254 classes. None where it was not asked for.
        trained: Which classes the method was trained on, as was said; None without one.
        score: What a method that gives no probabilities says of each class, on a scale of its own;
            nan for one that it was not trained on. None otherwise.
        is_located: Whether maps and mask are the method's; frozen CLIP's otherwise.
    """

    presence: Float[Tensor, " classes"] | None
    cosine: Float[Tensor, " classes"]
    zero_shot: Float[Tensor, " classes"]
    maps: Float[Tensor, "classes rows columns"]
    mask: LabelMap | None
    present: Bool[Tensor, " classes"]
    trained: Bool[Tensor, " classes"] | None = None
    score: Float[Tensor, " classes"] | None = None
    is_located: bool = False
    clip_presence: Float[Tensor, " classes"] | None = None
    is_calibrated: bool = False


def predict_image(
    features: ImageFeatures,
    grid: tuple[int, int],
    size: tuple[int, int] | None,
    *,
    has_global_token: bool,
    texts: Float[Tensor, "classes dim"],
    pairs: Float[Tensor, "pairs dim"],
    model: Method[Any] | DCLIP | None = None,
    trained: Bool[Tensor, " classes"] | None = None,
    untrained_probability: bool = False,
    threshold: float = 0.5,
    class_names: Sequence[str] | None = None,
    backbone: Backbone | None = None,
    pixels: UInt8[Tensor, "1 height width 3"] | None = None,
    sigmoid: Sigmoid | None = None,
    calibration: Calibration | None = None,
) -> Prediction:
    r"""Classes, maps and mask of one image.

    Args:
        features: Of that image alone, of the kind the method was trained on.
        grid: Rows and columns of its locations.
        size: Height and width of the mask; None for none. It is of all that the backbone saw: where
            that is not the whole image, `dclip.data.placing` puts it there.
        has_global_token: Whether the first location is the mean token; it counts for presence, as
            in training, and is not in maps.
        texts: Frozen text features of the classes, for CLIP's own scores.
        pairs: Frozen features of the classes' prompt pairs, negatives first.
        model: A method, or DCLIP, in evaluation mode; None for frozen CLIP. One that does not
            tell probabilities of locations leaves locations to frozen CLIP.
        trained: Which of the classes the method was trained on. None says all of them: with names
            of your own choice, say which.
        untrained_probability: Also tell ``presence`` of classes that were not trained on. It is
            confident and means little.
        threshold: :math:`\theta` in (0, 1); a pixel less sure than that is background.
        class_names: Of the classes, for methods that are bound to those they were trained on.
        backbone: The frozen CLIP, for methods that look at images through it.
        pixels: The image, for methods that are fed it.
        sigmoid: Of the CLIP, where it was trained by one.
        calibration: Of the classes, by images that the method was not trained on.

    Raises:
        ValueError: If the threshold is out of range, or the method is bound to other classes.

    Warns:
        UntrainedWarning: If the method was not trained on some of the classes.

    Example:
        >>> class_names, of_training = ("dog", "unicorn"), ("cat", "dog")
        >>> torch.tensor([name in of_training for name in class_names])  # for ``trained``
        tensor([ True, False])
    """
    if model is not None and trained is not None:
        _warn_of_untrained(trained)
    return predict_images(
        features,
        grid,
        [size],
        has_global_token=has_global_token,
        texts=texts,
        pairs=pairs,
        model=model,
        trained=trained,
        untrained_probability=untrained_probability,
        threshold=threshold,
        class_names=class_names,
        backbone=backbone,
        pixels=pixels,
        sigmoid=sigmoid,
        calibration=calibration,
    )[0]


@torch.no_grad()
def predict_images(
    features: ImageFeatures,
    grid: tuple[int, int],
    sizes: Sequence[tuple[int, int] | None],
    *,
    has_global_token: bool,
    texts: Float[Tensor, "classes dim"],
    pairs: Float[Tensor, "pairs dim"],
    model: Method[Any] | DCLIP | None = None,
    trained: Bool[Tensor, " classes"] | None = None,
    untrained_probability: bool = False,
    threshold: float = 0.5,
    class_names: Sequence[str] | None = None,
    backbone: Backbone | None = None,
    pixels: UInt8[Tensor, "images height width 3"] | None = None,
    sigmoid: Sigmoid | None = None,
    calibration: Calibration | None = None,
) -> list[Prediction]:
    """The same of several images, whose scores and maps are computed together.

    Nothing is warned of: whoever asks tells it by themselves.

    Args:
        features: Of the images.
        grid: As of `predict_image`.
        sizes: Height and width of each image's mask; None for none.
        has_global_token: As of `predict_image`.
        texts: As of `predict_image`.
        pairs: As of `predict_image`.
        model: As of `predict_image`.
        trained: As of `predict_image`.
        untrained_probability: As of `predict_image`.
        threshold: As of `predict_image`.
        class_names: As of `predict_image`.
        backbone: As of `predict_image`.
        pixels: The images, of one size, for methods that are fed them.
        sigmoid: As of `predict_image`.
        calibration: As of `predict_image`.

    Raises:
        ValueError: If the threshold is out of range, or the method is bound to other classes.
    """
    if not 0 < threshold < 1:
        raise ValueError(f"threshold must lie in (0, 1), got {threshold}")
    local = features.local[:, 1:] if has_global_token else features.local
    zero_shot = zero_shot_scores(features.embedding, texts).softmax(dim=1)
    own = None if sigmoid is None else sigmoid_scores(features.embedding, texts, sigmoid)
    cosines = similarity_maps(local, texts)
    best, maps = cosines.amax(dim=2), cosines.reshape(len(local), -1, *grid)
    by_clip = _present_by_clip(best, zero_shot, own, calibration)

    def frozen(row: int) -> Prediction:
        """What frozen CLIP says; of a method, what it leaves to CLIP."""
        return Prediction(
            None, best[row], zero_shot[row], maps[row], None, by_clip[row],
            clip_presence=None if own is None else own[row],
        )  # fmt: skip

    def with_frozen_mask(said: Prediction, row: int) -> Prediction:
        mask = _frozen_mask(cosines[[row]], grid, sizes[row], threshold)
        return replace(said, mask=mask)

    rows = range(len(sizes))
    if model is None:
        return [with_frozen_mask(frozen(row), row) for row in rows]
    if trained is None:
        trained = torch.ones(len(texts), dtype=torch.bool)
    trained = trained.to(texts.device)
    names = class_names or [str(number) for number in range(len(texts))]
    task = replace(Task.of_features(names, pairs.float()), backbone=backbone)
    if isinstance(model, DCLIP):
        model = DCLIPMethod.around(model, task)
    method = model.for_classes(task)
    labels = torch.empty(0, 0, dtype=torch.int8)
    seen = Batch(features.local.float(), labels, embedding=features.embedding, pixels=pixels)
    told = method.evidence(seen).float()
    presence, score, present = _presence(method, told, calibration)
    if presence is not None and not untrained_probability:
        presence = presence.where(trained, torch.nan)
    score = None if score is None else score.where(trained, torch.nan)
    present = by_clip if present is None else present.where(trained, by_clip)
    said = [
        replace(
            frozen(row),
            presence=None if presence is None else presence[row],
            present=present[row],
            trained=trained,
            score=None if score is None else score[row],
            is_calibrated=calibration is not None,
        )
        for row in rows
    ]
    odds = method.location_logits(local) if method.scores_locations else None
    if not trained.any() or odds is None:
        return [with_frozen_mask(one, row) for row, one in enumerate(said)]
    odds = odds.reshape(len(local), -1, *grid)
    located = torch.where(trained[:, None, None], odds.sigmoid(), maps)
    said = [replace(one, maps=located[row], is_located=True) for row, one in enumerate(said)]
    if all(size is None for size in sizes):
        return said
    positive = method.location_scores(local)
    # of a method that gives scores alone, all classes that it was trained on compete
    competing = [trained & present[row] if presence is not None else trained for row in rows]
    return [
        one
        if (size := sizes[row]) is None
        else replace(one, mask=_mask(competing[row], positive[row], odds[row], size, threshold))
        for row, one in enumerate(said)
    ]


def _mask(
    competing: Bool[Tensor, " classes"],
    scores: Float[Tensor, "classes locations"],
    odds: Float[Tensor, "classes rows columns"],
    size: tuple[int, int],
    threshold: float,
) -> LabelMap:
    """The mask by a method: some classes compete, each has to be sure of a pixel."""
    mask = torch.zeros(size, dtype=label_dtype(1 + len(odds)), device=odds.device)
    columns = competing.nonzero().flatten()
    if not len(columns):
        return mask
    ranked = min_max(scores[None, columns]).reshape(1, -1, *odds.shape[1:])
    whole = (Window(0, 0, *size),)
    winners = columns[label_map(ranked, whole, size, size).long()]
    for column in columns.tolist():  # one class at a time: all of them at full size may not fit
        drawn = F.interpolate(odds[None, None, column], size, mode="bilinear", align_corners=False)
        mask[(winners == column) & (drawn[0, 0].sigmoid() >= threshold)] = column + 1
    return mask


def _presence(
    method: Method[Any], told: Float[Tensor, "images classes"], calibration: Calibration | None
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """Probabilities, scores that are none, and which classes are there, as far as a method says."""
    is_probability = method.tells_probabilities()
    score = None if is_probability else told
    if calibration is None:
        if not is_probability:
            return None, score, None
        presence = told.sigmoid()
        return presence, score, presence >= 0.5
    presence = scaling_of(calibration).apply(told.cpu()).sigmoid()
    present = is_present(calibration, presence).to(told.device)
    return presence.float().to(told.device), score, present


def _present_by_clip(
    best: Float[Tensor, "images classes"],
    shares: Float[Tensor, "images classes"],
    presence: Float[Tensor, "images classes"] | None,
    calibration: Calibration | None,
) -> Bool[Tensor, "images classes"]:
    """Frozen CLIP's rule, or the cosine that suited the classes of the training."""
    if calibration is not None and calibration.untrained_cosine is not None:
        return best > calibration.untrained_cosine
    if presence is not None:
        return presence > 0.5
    count = shares.shape[1]
    return shares > (1 / count if count > 1 else 1.0)


def _frozen_mask(
    cosines: Float[Tensor, "1 classes locations"],
    grid: tuple[int, int],
    size: tuple[int, int] | None,
    threshold: float,
) -> LabelMap | None:
    """The mask by frozen CLIP, in which all classes compete."""
    if size is None:
        return None
    scores = min_max(cosines).reshape(1, -1, *grid)
    return label_map(scores, (Window(0, 0, *size),), size, size, background=threshold)


def _warn_of_untrained(trained: Bool[Tensor, " classes"]) -> None:
    count = int((~trained).sum())
    if count:
        warnings.warn(
            f"the method was not trained on {count} of {len(trained)} classes, which are "
            "scored by CLIP itself: Prediction.cosine, which is no probability",
            UntrainedWarning,
            stacklevel=3,
        )

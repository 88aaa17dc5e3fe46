r"""Classes of one image, their places and their pixels, for class names of any choice.

Projectors answer three questions at once, all from the features they were trained on:

* which classes are there: `dclip.logits.presence_probability` over all locations;
* where: the probability that each location's own prompt pair gives, with the logit scales
  :math:`a, b` of training,

  .. math::
      p_{kl} = \sigma\left(a b \, (\cos(z_l, t^+_k) - \cos(z_l, t^-_k))\right)

* which pixels: the classes of probability one half or more compete by
  `dclip.segmentation.min_max` of the cosines with their positive prompts, and a pixel is background
  where even the winner has :math:`p_{kl} < \theta`.

Without projectors, frozen CLIP's cosines take their place, all classes compete, and the background
rule is that of `dclip.segmentation.label_map`.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float, UInt8
from torch import Tensor
from torch.nn import functional as F

from dclip.backbones import ImageFeatures
from dclip.data.windows import Window
from dclip.logits import presence_probability, similarity_maps, zero_shot_scores
from dclip.model import DCLIP
from dclip.segmentation import MAX_CLASSES, label_map, min_max


@dataclass(frozen=True)
class Prediction:
    """What is said of one image.

    Attributes:
        presence: Probability of each class by the projectors; None without them.
        zero_shot: Softmax of CLIP's own global scores over the classes: they sum to 1, so that it
            says which class is likeliest, not which are there.
        maps: Of each location, the probability of each class by the projectors; without them the
            cosine with CLIP's text.
        mask: 0 for background, 1 + position of the class elsewhere.
    """

    presence: Float[Tensor, " classes"] | None
    zero_shot: Float[Tensor, " classes"]
    maps: Float[Tensor, "classes rows columns"]
    mask: UInt8[Tensor, "height width"]


@torch.no_grad()
def predict_image(
    features: ImageFeatures,
    grid: tuple[int, int],
    size: tuple[int, int],
    *,
    has_global_token: bool,
    texts: Float[Tensor, "classes dim"],
    pairs: Float[Tensor, "pairs dim"],
    model: DCLIP | None = None,
    threshold: float = 0.5,
) -> Prediction:
    r"""Classes, maps and mask of one image.

    Args:
        features: Of that image alone, of the kind the projectors were trained on.
        grid: Rows and columns of its locations.
        size: Height and width of the mask.
        has_global_token: Whether the first location is the mean token; it counts for presence, as
            in training, and has no place in maps.
        texts: Frozen text features of the classes, for CLIP's own scores.
        pairs: Frozen features of the classes' prompt pairs, negatives first.
        model: Projectors in evaluation mode; None for frozen CLIP.
        threshold: :math:`\theta` in (0, 1); a pixel less sure than that is background.

    Raises:
        ValueError: If there are more classes than a mask holds beside background, or the threshold
            is out of range.
    """
    if not 0 < threshold < 1:
        raise ValueError(f"threshold must lie in (0, 1), got {threshold}")
    if len(texts) >= MAX_CLASSES:
        raise ValueError(f"a mask holds background and {MAX_CLASSES - 1} classes, not {len(texts)}")
    local = features.local[:, 1:] if has_global_token else features.local
    zero_shot = zero_shot_scores(features.embedding, texts)[0].softmax(dim=0)
    whole = (Window(0, 0, *size),)
    if model is None:
        cosines = similarity_maps(local, texts)
        scores = min_max(cosines).reshape(1, -1, *grid)
        mask = label_map(scores, whole, size, size, background=threshold)
        return Prediction(None, zero_shot, cosines.reshape(-1, *grid), mask)
    presence = presence_probability(model(features.local.float(), pairs.float()).pair_logits)[0]
    found = (presence >= 0.5).nonzero().flatten()
    projected = model.project_texts(pairs.float(), statistics="running")
    negative, positive = similarity_maps(model.project_images(local.float()), projected).chunk(2, 1)
    odds = (model.local_scale * model.pooled_scale * (positive - negative)).reshape(-1, *grid)
    mask = torch.zeros(size, dtype=torch.uint8, device=presence.device)
    if not len(found):
        return Prediction(presence, zero_shot, odds.sigmoid(), mask)
    scores = min_max(positive[:, found]).reshape(1, -1, *grid)
    winners = found[label_map(scores, whole, size, size).long()]
    for own in found.tolist():  # one class at a time: all of them at full size may not fit
        drawn = F.interpolate(odds[None, None, own], size, mode="bilinear", align_corners=False)
        mask[(winners == own) & (drawn[0, 0].sigmoid() >= threshold)] = own + 1
    return Prediction(presence, zero_shot, odds.sigmoid(), mask)

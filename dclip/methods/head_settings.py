"""Settings of the heads a user tries first: on what CLIP's frozen features say as they are."""

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

from pydantic import Field

from dclip.methods.settings import (
    AslReduction,
    AslWeight,
    Clip,
    Feed,
    GammaNeg,
    GammaPos,
    LocalScale,
    MethodSettings,
    Preset,
)

Vector = Literal["mean", "embedding"]
"""What stands for an image: the mean of its local features, or CLIP's global embedding."""

_FEEDS: Mapping[Vector, Feed] = {"mean": "local", "embedding": "embedding"}


class VectorSettings(MethodSettings):
    """What is common to heads on one vector an image, which they scale to unit length."""

    feeds: ClassVar[frozenset[Feed]] = frozenset(_FEEDS.values())
    trained_by = "itself"

    of: Vector = Field(
        "mean",
        description="the vector of an image: mean of its local features, or CLIP's own embedding",
    )

    def scoring_feeds(self) -> frozenset[Feed]:
        """What the vector is made of."""
        return frozenset({_FEEDS[self.of]})


class LogisticProbeSettings(VectorSettings):
    """Logistic regression on one vector an image, to its optimum."""

    name = "logistic_probe"
    title = "logistic regression"

    c: float = Field(
        1000.0,
        gt=0,
        le=1e6,
        title="C",
        description="weight of the log losses against half the squared length of the weights: "
        "scikit-learn's C, for vectors of unit length",
    )


class TipAdapterSettings(VectorSettings):
    """Training images as a cache, beside CLIP's own scores.

    Sources: arXiv 2207.09519 (beta); alpha is of our normalised cache.
    """

    name = "tip_adapter"
    title = "Tip-Adapter"

    alpha: float = Field(
        50.0,
        ge=0,
        description="weight of the cache, whose say lies in [0, 1], beside CLIP's 100 x cosine; 0 "
        "is CLIP alone",
    )
    beta: float = Field(
        5.5, gt=0, le=100, description="how fast an image fades from the cache as it is less alike"
    )
    shots: int | None = Field(
        None,
        ge=1,
        description="cache only images that are drawn so that each class is shown by so many of "
        "them; left out: all",
    )


Asks = Literal["presence", "pair"]
"""Which prompts are asked: that of presence alone, or how far it is above that of absence."""


class CalibratedSettings(MethodSettings):
    """A threshold and a scale a class on the pooled cosines of CLIP's own prompts."""

    name = "calibrated"
    title = "CLIP's prompts, calibrated"
    presets: ClassVar[Mapping[str, Preset]] = {
        "robust": Preset(loop={"lr": 0.02, "warmup_epochs": 0, "weight_decay": 0.0})
    }
    watched: ClassVar[Mapping[str, str]] = {"scale": "scale", "threshold": "threshold"}
    sweep_space: ClassVar[Mapping[str, list[Any]]] = {"gamma_neg": [0.0, 2.0], "clip": [0.0, 0.05]}

    asks: Asks = Field(
        "presence",
        description="what is calibrated: the prompt of presence, or how far it is above that of "
        "absence",
    )
    local_scale: LocalScale = 20.0
    gamma_neg: GammaNeg = 2.0
    gamma_pos: GammaPos = 1.0
    clip: Clip = 0.05
    asl_weight: AslWeight = 1.0
    asl_reduction: AslReduction = "mean"


class ZeroShotPooledSettings(MethodSettings):
    """DCLIP's pooling without DCLIP's projectors: nothing is trained."""

    name = "zero_shot_pooled"
    title = "CLIP zero-shot (pooled)"
    trained_by = None

    asks: Asks = Field(
        "presence",
        description="what is pooled: the classes' texts, or how far the prompt of presence is "
        "above that of absence",
    )
    local_scale: LocalScale = 20.0

"""Settings of the adapters: methods that were published to train CLIP, here on its features."""

from collections.abc import Iterable, Mapping
from typing import Any, ClassVar, Literal

from pydantic import Field, field_validator

from dclip.methods.settings import (
    Clip,
    Feed,
    GammaNeg,
    GammaPos,
    LocalScale,
    MethodSettings,
    Preset,
)
from dclip.texts import distinct_words

BACKGROUND_WORDS = (
    "ground", "land", "grass", "tree", "building", "wall", "sky", "lake", "water", "river", "sea",
    "railway", "railroad", "keyboard", "helmet", "cloud", "house", "mountain", "ocean", "road",
    "rock", "street", "valley", "bridge", "sign",
)  # fmt: skip
"""What may be behind an object: DAPT's general words."""

BACKGROUND_TEMPLATE = "a clean origami {}."
"""DAPT's prompt of what is behind an object."""


def background_prompts(words: Iterable[str]) -> tuple[str, ...]:
    """DAPT's prompts of some words."""
    return tuple(BACKGROUND_TEMPLATE.replace("{}", word) for word in words)


class AdapterSettings(MethodSettings):
    """What is common to methods that compare locations with one text a class, and train by ASL."""

    gamma_neg: GammaNeg = 2.0
    gamma_pos: GammaPos = 1.0
    clip: Clip = 0.05
    local_scale: LocalScale = 20.0


class SmartCLIPAdapterSettings(AdapterSettings):
    """Hyper-parameters of SmartCLIP's mask on frozen features.

    Sources: the authors' code (hard masks, weights 10 and 2, AdamW at 1e-3 without decay and
    warm-up). They train all of CLIP on captions; ``author`` trains its mask so.
    """

    name = "smartclip_adapter"
    title = "SmartCLIP's mask (adapter)"
    may_differ = frozenset({"sparsity_weight", "masks", "output_dim"})
    presets: ClassVar[Mapping[str, Preset]] = {
        "robust": Preset(),
        "author": Preset(
            loop={
                "epochs": 3,
                "batch_size": 1024,
                "optimizer": "adamw",
                "lr": 1e-3,
                "weight_decay": 0.0,
                "warmup_epochs": 0,
            },
            own={"objective": "captions", "sparsity_weight": 2.0},
        ),
    }
    watched: ClassVar[Mapping[str, str]] = {
        "inter_class_cosine": "cosine",
        "mask_overlap": "overlap",
        "mask_open": "open",
    }
    sweep_space: ClassVar[Mapping[str, list[Any]]] = {
        "sparsity_weight": [0.0, 0.1],
        "masks": ["free", "from_text"],
    }
    bold = ("sparsity_weight",)

    objective: Literal["labels", "captions"] = Field(
        "labels",
        description="what trains the masks: labels by ASL, or captions by telling them and their "
        "images apart",
    )
    masks: Literal["from_text", "free"] = Field(
        "from_text",
        description="a mask that a linear map makes of the class's text, or a free one for each "
        "class, which binds to these classes",
    )
    mask_form: Literal["hard", "soft"] = Field(
        "hard", description="masks of 0 and 1 with the gradient of soft ones, or soft ones"
    )
    mask_start: float = Field(
        0.1, ge=0, description="initial logits of the masks; from 0 on hard masks are open"
    )
    sparsity_weight: float = Field(
        0.01, ge=0, title="sparsity", description="weight of the mean of the masks"
    )
    matching_weight: float = Field(10.0, ge=0, description="weight of the two losses on captions")
    matching_scale: float = Field(
        100.0, gt=0, description="multiplier of the cosines in the two losses on captions"
    )
    projectors: Literal["none", "train"] = Field(
        "none",
        description="masks in CLIP's own space, or behind DCLIP's projectors, trained together",
    )
    hidden_dim: int | None = Field(
        None, ge=1, description="hidden width of the text projector; left out: 3/4 of CLIP's width"
    )
    output_dim: int | None = Field(
        None,
        ge=2,
        title="dim",
        description="dimension of the projected space; left out: half of CLIP's width",
    )

    def training_feeds(self) -> frozenset[Feed]:
        """Captions and the embeddings of their images, where these train."""
        if self.objective == "captions":
            return frozenset({"embedding", "captions"})
        return self.feeds

    def idle(self) -> frozenset[str]:
        """What belongs to the other objective, or to projectors that there are not."""
        found = {"hidden_dim", "output_dim"} if self.projectors == "none" else set[str]()
        if self.objective == "labels":
            return frozenset(found | {"matching_weight", "matching_scale"})
        return frozenset(found | {"gamma_neg", "gamma_pos", "clip"})


class DAPTAdapterSettings(AdapterSettings):
    """Hyper-parameters of DAPT's decoupling on frozen features.

    Sources: the authors' code (margin, phases, words; weights and loop of ``author``). Here weights
    are a tenth of theirs: ASL is a mean over classes, and far smaller than their cross-entropy.
    """

    name = "dapt_adapter"
    title = "DAPT's decoupling (adapter)"
    may_differ = frozenset(
        {"triplet_weight", "foreground_weight", "background_weight", "first_phase", "threshold"}
    )
    presets: ClassVar[Mapping[str, Preset]] = {
        "robust": Preset(),
        "author": Preset(
            loop={
                "epochs": 10,
                "batch_size": 4,
                "optimizer": "sgd",
                "lr": 0.0035,
                "weight_decay": 5e-4,
                "warmup_epochs": 1,
                "warmup_lr": 1e-5,
            },
            own={"triplet_weight": 0.8, "foreground_weight": 0.1, "background_weight": 0.5},
        ),
    }
    watched: ClassVar[Mapping[str, str]] = {"inter_class_cosine": "cosine"}
    sweep_space: ClassVar[Mapping[str, list[Any]]] = {"triplet_weight": [0.0, 0.8]}
    bold = ("triplet_weight", "foreground_weight", "background_weight")

    background_words: tuple[str, ...] = Field(
        BACKGROUND_WORDS,
        min_length=1,
        description="what may be behind an object; those that are classes are left out",
    )
    threshold: float = Field(
        0.5,
        gt=0,
        lt=1,
        description="where CLIP's own map of a present class, from 0 to 1 in each image, is its "
        "foreground",
    )
    first_phase: int = Field(
        7, ge=0, description="first epochs, which train with L_v; the others with L_f and L_b"
    )
    triplet_weight: float = Field(
        0.08, ge=0, description="weight of L_v: what is pooled is near foreground, not background"
    )
    foreground_weight: float = Field(
        0.01, ge=0, description="weight of L_f: the foreground alone shows its class"
    )
    background_weight: float = Field(
        0.05, ge=0, description="weight of L_b: the background is one of the background's words"
    )
    margin: float = Field(1.5, gt=0, description="margin of L_v, a distance of unit vectors")
    background_scale: float = Field(
        100.0, gt=0, description="multiplier of the cosines with the background's words"
    )

    @field_validator("background_words")
    @classmethod
    def _check_words(cls, words: tuple[str, ...]) -> tuple[str, ...]:
        return distinct_words(words)

    def own_texts(self) -> tuple[str, ...]:
        """Prompts of the background's words."""
        return background_prompts(self.background_words)

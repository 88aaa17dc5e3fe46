"""Settings of the training loop, the same for every method; reading them takes no torch."""

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from dclip.marks import RARE, in_short


class Loop(BaseModel):
    """How long, in what steps and by which optimizer a method is trained.

    The defaults shown are those of DCLIP's preset ``robust``; a method may have others.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    preset: str = Field(
        "robust",
        description="defaults of this section and of the method's, by name, such as author (as "
        "published); left out: dclip takes anchored, which starts at CLIP's own ranking, others "
        "robust, whose values are shown here",
        json_schema_extra=in_short(
            "defaults by name: anchored (dclip's usual), robust (others'), author (as published)"
        ),
    )
    epochs: int = Field(20, ge=1, description="passes over the training images")
    batch_size: int = Field(32, ge=1, description="images per step, over all workers together")
    optimizer: Literal["sgd", "adamw"] = Field("adamw", description="sgd (momentum) or adamw")
    lr: float = Field(1e-3, gt=0, description="peak learning rate; cosine to zero")
    momentum: float = Field(0.9, ge=0, lt=1, description="momentum of sgd", json_schema_extra=RARE)
    weight_decay: float = Field(5e-4, ge=0, description="weight decay of every parameter")
    warmup_epochs: int = Field(
        1, ge=0, description="first epochs, at the constant warmup_lr", json_schema_extra=RARE
    )
    warmup_lr: float = Field(
        1e-4, gt=0, description="learning rate of the warm-up epochs", json_schema_extra=RARE
    )
    ema_decay: float | None = Field(
        None,
        gt=0,
        lt=1,
        description="keep a moving average of the weights, with this decay a step (less in the "
        "first steps), and use it; left out: none",
        json_schema_extra=RARE,
    )
    selection: Literal["last", "best_on_val"] = Field(
        "last", description="weights to keep: of the last epoch, or of the best val/map"
    )
    feature_cutout: float = Field(
        0.0,
        ge=0,
        lt=1,
        description="sides of the random box of locations that each training image loses at every "
        "step, as a share of the grid's (Cutout: 0.5); 0 leaves all in",
        json_schema_extra=RARE,
    )
    schedule: Literal["epoch", "step"] = Field(
        "epoch",
        description="what the learning rate follows: epochs (constant warm-up, then a cosine by "
        "epochs) or steps (linear warm-up over warmup_steps, then a cosine to zero)",
        json_schema_extra=RARE,
    )
    warmup_steps: int = Field(
        0,
        ge=0,
        description="first steps, at a learning rate that grows; of the schedule step",
        json_schema_extra=RARE,
    )
    accumulate: int = Field(
        1,
        ge=1,
        description="parts in which each worker goes through its share of a batch, so that only a "
        "part has to fit into memory; a contrastive loss sees one part of each worker at a time",
        json_schema_extra=RARE,
    )
    mixed_precision: Literal["none", "float16", "bfloat16"] = Field(
        "none",
        description="compute in half precision where that is safe, by autocast; float16 scales "
        "the loss, so that small gradients are not lost, and skips steps in which it overflows",
        json_schema_extra=RARE,
    )
    augmentation: Literal["none", "crop"] = Field(
        "none",
        description="of images that a method is fed: none, or crop (random resized crop and "
        "mirroring)",
        json_schema_extra=RARE,
    )

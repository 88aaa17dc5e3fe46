"""Every hyper-parameter of a training run in one validated object, and the two named presets.

``author`` is the published recipe: SGD, one warm-up epoch, summed losses. ``robust`` replaces sums
by means, so that neither batch size nor number of classes changes the balance of the two losses.
"""

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

PresetName = Literal["author", "robust"]

AUTHOR: dict[str, Any] = {
    "initial": "random",
    "epochs": 50,
    "batch_size": 32,
    "optimizer": "sgd",
    "lr": 0.002,
    "weight_decay": 5e-4,
    "warmup_epochs": 1,
    "warmup_lr": 1e-5,
    "asl_reduction": "sum",
    "asl_weight": 0.05,
    "mfi_weight": 7e-5,
    "mfi_reduction": "sum",
    "mfi_gram": "feature",
    "mfi_scope": "both",
    "redundancy_weight": 0.2,
}


class Recipe(BaseModel):
    """Hyper-parameters of training: projector sizes, optimisation, ASL and MFI.

    Fields left out take the value of ``preset``; the defaults shown are those of ``robust``.
    Sources: arXiv 2502.02977 (lambda, c, epochs, learning rate), the authors' code (the rest).

    Example:
        >>> Recipe(preset="author").mfi_weight
        7e-05
        >>> Recipe(preset="author", mfi_weight=0.0).asl_reduction
        'sum'
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    preset: PresetName = Field(
        "robust",
        description="defaults of this section: author (as published) or robust (scale-free)",
    )
    hidden_dim: int | None = Field(
        None, ge=1, description="hidden width of the text projector; left out: 3/4 of CLIP's width"
    )
    output_dim: int | None = Field(
        None,
        ge=2,
        description="dimension d' of the projected space; left out: half of CLIP's width",
    )
    aggregation: Literal["project_then_pool", "pool_then_project"] = Field(
        "project_then_pool", description="order of image projection and spatial pooling"
    )
    initial: Literal["aligned", "random"] = Field(
        "aligned",
        description="initial weights: random, or aligned, which lets the two projectors agree on "
        "the texts",
    )
    epochs: int = Field(20, ge=1, description="passes over the training images")
    batch_size: int = Field(32, ge=1, description="images per step, over all workers together")
    optimizer: Literal["sgd", "adamw"] = Field("adamw", description="sgd (momentum) or adamw")
    lr: float = Field(1e-3, gt=0, description="peak learning rate; cosine to zero")
    momentum: float = Field(0.9, ge=0, lt=1, description="momentum of sgd")
    weight_decay: float = Field(5e-4, ge=0, description="weight decay of every parameter")
    warmup_epochs: int = Field(1, ge=0, description="first epochs, at the constant warmup_lr")
    warmup_lr: float = Field(1e-4, gt=0, description="learning rate of the warm-up epochs")
    ema_decay: float | None = Field(
        None,
        gt=0,
        lt=1,
        description="keep a moving average of the weights, with this decay a step (less in the "
        "first steps), and use it; left out: none",
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
    )
    gamma_neg: float = Field(2.0, ge=0, description="focusing exponent of negatives in ASL")
    gamma_pos: float = Field(1.0, ge=0, description="focusing exponent of positives in ASL")
    clip: float = Field(0.05, ge=0, lt=1, description="probability margin c of negatives in ASL")
    asl_weight: float = Field(1.0, ge=0, description="weight of ASL (the authors' loss_w)")
    asl_reduction: Literal["sum", "mean"] = Field(
        "mean", description="sum over images and classes, or mean over known labels"
    )
    mfi_weight: float = Field(0.1, ge=0, description="weight alpha of MFI; 0 trains with ASL only")
    redundancy_weight: float = Field(
        1.0, ge=0, description="weight lambda of the off-diagonal terms in MFI"
    )
    mfi_scope: Literal["both", "split", "positive"] = Field(
        "both", description="prompts MFI looks at: both polarities as one set, split, or positive"
    )
    mfi_gram: Literal["feature", "class"] = Field(
        "class", description="matrix MFI regulates: feature by feature, or class by class"
    )
    mfi_reduction: Literal["sum", "mean"] = Field(
        "mean", description="sum or mean over the matrix' entries"
    )

    @model_validator(mode="before")
    @classmethod
    def _fill_from_preset(cls, values: Any) -> Any:
        if isinstance(values, dict) and values.get("preset") == "author":
            return {**AUTHOR, **values}
        return values

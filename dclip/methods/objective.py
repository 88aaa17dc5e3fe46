"""ASL and MFI as methods are trained by them: reduced, weighted and checked as settings say."""

import math
from typing import Any, TypeAlias

import torch
from jaxtyping import Float
from torch import Tensor

from dclip.fitting.batches import Batch
from dclip.fitting.loop import Loop
from dclip.losses import check_mfi_stability, mfi_loss
from dclip.losses.asymmetric import Form, WeightGradient, summed_asymmetric_loss
from dclip.methods.head_settings import CalibratedSettings
from dclip.methods.method import Method
from dclip.methods.settings import ContextSettings, DCLIPSettings, PairSettings
from dclip.metrics import inter_class_cosine

WithAsl: TypeAlias = DCLIPSettings | PairSettings | CalibratedSettings
WithMfi: TypeAlias = DCLIPSettings | ContextSettings


def asl_of(
    settings: WithAsl,
    pair_logits: Float[Tensor, "images 2 classes"],
    batch: Batch,
    *,
    form: Form = "pair",
    weight_gradient: WeightGradient = "detached",
) -> Float[Tensor, ""]:
    """ASL of a batch: summed, its mean over the known labels, or that times the classes.

    Args:
        settings: Of the method.
        pair_logits: Index 0 of the second axis says absent, index 1 present.
        batch: Labels, and how many of those of the whole batch are known.
        form: See :func:`dclip.losses.asymmetric_loss`.
        weight_gradient: See there.
    """
    asl = summed_asymmetric_loss(
        pair_logits,
        batch.labels,
        gamma_neg=settings.gamma_neg,
        gamma_pos=settings.gamma_pos,
        clip=settings.clip,
        form=form,
        weight_gradient=weight_gradient,
    )
    if settings.asl_reduction == "sum":
        return asl
    mean = asl / max(1, batch.known)
    return mean if settings.asl_reduction == "mean" else mean * batch.labels.shape[1]


def keep_mfi_weights(method: Method[Any]) -> None:
    """Make buffers of alpha and lambda, in which members of a pack may differ."""
    for name in ("mfi_weight", "redundancy_weight"):
        value = torch.tensor(float(getattr(method.settings, name)))
        method.register_buffer(name, value, persistent=False)


def with_mfi(
    method: Method[Any],
    asl: Float[Tensor, ""],
    features: Float[Tensor, "pairs dim"],
    batch: Batch,
) -> dict[str, Float[Tensor, ""]]:
    r""":math:`w\, L_{ASL} + \alpha\, L_{MFI}`, and both terms.

    MFI, which every worker computes, is divided by their number.

    Args:
        method: Has the buffers of :func:`keep_mfi_weights`.
        asl: Of the batch.
        features: That MFI looks at, negatives first.
        batch: What it is computed on.
    """
    own = method.settings
    mfi = mfi_loss(
        features,
        redundancy_weight=method.get_buffer("redundancy_weight"),
        scope=own.mfi_scope,
        gram=own.mfi_gram,
        reduction=own.mfi_reduction,
    )
    mfi = mfi / batch.workers
    weight = method.get_buffer("mfi_weight")
    return {"loss": own.asl_weight * asl + weight * mfi, "asl": asl, "mfi": mfi}


def check_mfi(settings: WithMfi, loop: Loop, num_classes: int) -> None:
    """Refuse SGD on a summed MFI loss that would step too far.

    Raises:
        ValueError: See :func:`dclip.losses.check_mfi_stability`.
    """
    if loop.optimizer == "sgd" and settings.mfi_reduction == "sum":
        check_mfi_stability(
            alpha=settings.mfi_weight,
            num_classes=num_classes,
            learning_rate=loop.lr,
            redundancy_weight=settings.redundancy_weight,
        )


def watched_cosine(features: Float[Tensor, "classes dim"]) -> dict[str, float]:
    """Mean cosine between the features of different classes; nan of one class."""
    known = features.cpu()
    return {"inter_class_cosine": inter_class_cosine(known) if len(known) > 1 else math.nan}

"""What a model is, told by its weights and by a record in words of our own.

Weights do not tell everything: GELU and QuickGELU have none, heads share one matrix, a causal mask
is no parameter. Names of classes would tell, but they belong to whoever wrote the library: under
another version of it the same model would be taken for another one, and everything that was stored
of it refused. So this record looks at what modules do. An activation is known by its values, a norm
by its epsilon, an attention by its number of heads.
"""

import hashlib
import json
from collections.abc import Iterator
from itertools import groupby
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dclip.backbones.blocks import plain_blocks
from dclip.backbones.text_tower import text_pool_type
from dclip.backbones.towers import ImageTower

_FORMAT = "dclip backbone, v2"

_POINTS = torch.linspace(-4.0, 4.0, 33, dtype=torch.float64)

_FOREIGN = (  # what a configuration of transformers says and its weights do not
    *("model_type", "num_attention_heads", "pad_token_id", "scale_embedding"),
    *("layer_norm_eps", "layer_norm_epsilon", "relative_attention_max_distance"),
)

_ACTIVATIONS: dict[str, Tensor] = {
    "identity": _POINTS,
    "gelu": F.gelu(_POINTS),
    "gelu tanh": F.gelu(_POINTS, approximate="tanh"),
    "quick gelu": _POINTS * torch.sigmoid(1.702 * _POINTS),
    "relu": F.relu(_POINTS),
    "silu": F.silu(_POINTS),
    "tanh": torch.tanh(_POINTS),
    "sigmoid": torch.sigmoid(_POINTS),
}


def fingerprint_of(model: nn.Module, tower: ImageTower, text: nn.Module) -> str:
    """SHA-256 of the weights, the value path and the record of a model.

    Args:
        model: Of open_clip, in eval mode.
        tower: Its image tower, at its native size.
        text: The module of its text tower.
    """
    record = {"image": describe_image(tower), "text": describe_text(text), **_loss(model)}
    digest = hashlib.sha256(f"{_FORMAT}\n{tower.paths['value']}\n".encode())
    digest.update(json.dumps(record, sort_keys=True).encode())
    hash_weights(digest, model)
    return digest.hexdigest()


def former_fingerprint_of(model: nn.Module, tower: ImageTower) -> str:
    """The fingerprint of version 0.1, which took the names of open_clip's classes.

    Under open_clip 3 it is what stands in features and checkpoints of that time.

    Args:
        model: Of open_clip, in eval mode.
        tower: Its image tower, at its native size.
    """
    digest = hashlib.sha256(tower.paths["value"].encode())
    for name, module in sorted(model.named_modules()):
        heads = getattr(module, "num_heads", "")
        digest.update(f"\n{name} {type(module).__name__} {heads}".encode())
    hash_weights(digest, model)
    return digest.hexdigest()


def describe_image(tower: ImageTower) -> dict[str, object]:
    """The record of an image tower."""
    return tower.record() | {
        "activations": activations_of(tower.module),
        "norms": norms_of(tower.module),
    }


def describe_text(text: nn.Module) -> dict[str, object]:
    """The record of a text tower."""
    own: Any = text
    record: dict[str, object] = {
        "activations": activations_of(own.transformer),
        "norms": norms_of(own.transformer),
        "pool": text_pool_type(own) or str(getattr(own, "pooler", "")).lower(),
        "causal": getattr(own, "attn_mask", None) is not None,
    }
    if hasattr(own.transformer, "resblocks"):
        blocks = own.transformer.resblocks
        record["heads"] = [int(block.attn.num_heads) for block in blocks]
        record["plain"] = bool(plain_blocks(blocks))
        record["last norm"] = float(own.ln_final.eps)
    else:
        told = {name: getattr(own.config, name, None) for name in _FOREIGN}
        record |= {name: value for name, value in told.items() if value is not None}
    return record


def activations_of(module: nn.Module) -> list[tuple[str, int]]:
    """Which functions are applied number by number, in the order of the modules, with runs counted.

    Modules with weights, and those that do more than one number after the other, are not
    functions of this kind and are left out; so is what changes nothing.
    """
    names = (name for layer in module.modules() if (name := activation_name(layer)) != "")
    kept = (name for name in names if name != "identity")
    return [(name, len(list(run))) for name, run in groupby(kept)]


def activation_name(layer: nn.Module) -> str:
    """The function that a layer applies to each number; empty if it is none.

    Example:
        >>> activation_name(nn.GELU()), activation_name(nn.Linear(1, 1))
        ('gelu', '')
    """
    if next(layer.children(), None) is not None or next(layer.parameters(), None) is not None:
        return ""
    try:
        with torch.no_grad():
            values = layer(_POINTS.clone())
            alone = layer(_POINTS[:16].clone())
    except Exception:  # it wants something other than a row of numbers
        return ""
    if not isinstance(values, Tensor) or values.shape != _POINTS.shape:
        return ""
    if not isinstance(alone, Tensor) or alone.shape != (16,):
        return ""
    if not torch.allclose(values[:16], alone):  # looks at its neighbours
        return ""
    for name, expected in _ACTIVATIONS.items():
        if torch.allclose(values, expected, rtol=1e-6, atol=1e-9):
            return name
    told = ",".join(f"{value:.4f}" for value in values[::4].tolist())
    return f"function {told}"


def norms_of(module: nn.Module) -> list[tuple[float, int]]:
    """Epsilons of the norms, in the order of the modules, with runs counted."""
    norms: Iterator[Any] = (layer for layer in module.modules() if _is_norm(layer))
    eps = (float(layer.eps) for layer in norms)
    return [(value, len(list(run))) for value, run in groupby(eps)]


def _is_norm(layer: nn.Module) -> bool:
    """Whether a layer divides by a deviation, or by one that it has kept."""
    return isinstance(getattr(layer, "eps", None), float) and (
        hasattr(layer, "normalized_shape") or hasattr(layer, "num_features")
    )


def _loss(model: Any) -> dict[str, object]:
    """Which loss a model is of, as far as the shape of its weights does not tell."""
    return {"sigmoid": getattr(model, "logit_bias", None) is not None}


def hash_weights(digest: Any, model: nn.Module) -> None:
    """Add every weight: name, dtype, shape, bytes."""
    for head, data in _weights(model):
        digest.update(head)
        digest.update(data)


def _weights(model: nn.Module) -> Iterator[tuple[bytes, Any]]:
    """Name, dtype and shape of each weight, and its bytes, in the order of the names."""
    for name, weight in sorted(model.state_dict().items()):
        flat = weight.detach().cpu().contiguous().reshape(-1)
        head = f"\n{name} {weight.dtype} {tuple(weight.shape)}\n".encode()
        yield head, flat.view(torch.uint8).numpy()

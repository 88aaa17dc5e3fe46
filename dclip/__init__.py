"""DCLIP: disentangle frozen CLIP's class features with two small projectors.

The public names load on first use, so that ``import dclip`` costs nothing.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    __version__: str

    from dclip.backbones import Backbone, ImageFeatures, load_backbone
    from dclip.fitting.batches import MemoryFeatures, hold_out
    from dclip.fitting.fit import check_training
    from dclip.fitting.fit import fit as train_loop
    from dclip.logits import pair_logits, presence_probability
    from dclip.losses import asymmetric_loss, mfi_loss
    from dclip.metrics import (
        average_precision,
        confusion_matrix,
        inter_class_cosine,
        mean_average_precision,
        miou,
    )
    from dclip.model import DCLIP
    from dclip.prediction import Prediction, UntrainedWarning, predict_image
    from dclip.projectors import PROJECTOR_PRESETS, ProjectorSizes
    from dclip.prompts import encode_class_names, encode_class_texts, encode_prompt_pairs
    from dclip.recognition.recognizer import Recognizer, fit, load
    from dclip.recognition.result import Result
    from dclip.segmentation import Rule, System, segment_images
    from dclip.training import Recipe, Training, predict

_HOME = {
    "Backbone": "dclip.backbones",
    "ImageFeatures": "dclip.backbones",
    "load_backbone": "dclip.backbones",
    "MemoryFeatures": "dclip.fitting.batches",
    "hold_out": "dclip.fitting.batches",
    "pair_logits": "dclip.logits",
    "presence_probability": "dclip.logits",
    "asymmetric_loss": "dclip.losses",
    "mfi_loss": "dclip.losses",
    "average_precision": "dclip.metrics",
    "confusion_matrix": "dclip.metrics",
    "inter_class_cosine": "dclip.metrics",
    "mean_average_precision": "dclip.metrics",
    "miou": "dclip.metrics",
    "DCLIP": "dclip.model",
    "Prediction": "dclip.prediction",
    "UntrainedWarning": "dclip.prediction",
    "predict_image": "dclip.prediction",
    "PROJECTOR_PRESETS": "dclip.projectors",
    "ProjectorSizes": "dclip.projectors",
    "encode_class_names": "dclip.prompts",
    "encode_prompt_pairs": "dclip.prompts",
    "Recipe": "dclip.training",
    "Training": "dclip.training",
    "Rule": "dclip.segmentation",
    "System": "dclip.segmentation",
    "encode_class_texts": "dclip.prompts",
    "segment_images": "dclip.segmentation",
    "check_training": "dclip.fitting.fit",
    "train_loop": "dclip.fitting.fit:fit",
    "predict": "dclip.training",
    "Recognizer": "dclip.recognition.recognizer",
    "Result": "dclip.recognition.result",
    "fit": "dclip.recognition.recognizer",
    "load": "dclip.recognition.recognizer",
}

__all__ = [
    "DCLIP",
    "PROJECTOR_PRESETS",
    "Backbone",
    "ImageFeatures",
    "MemoryFeatures",
    "Prediction",
    "ProjectorSizes",
    "Recipe",
    "Recognizer",
    "Result",
    "Rule",
    "System",
    "Training",
    "UntrainedWarning",
    "asymmetric_loss",
    "average_precision",
    "check_training",
    "confusion_matrix",
    "encode_class_names",
    "encode_class_texts",
    "encode_prompt_pairs",
    "fit",
    "hold_out",
    "inter_class_cosine",
    "load",
    "load_backbone",
    "mean_average_precision",
    "mfi_loss",
    "miou",
    "pair_logits",
    "predict",
    "predict_image",
    "presence_probability",
    "segment_images",
    "train_loop",
]


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from importlib.metadata import version  # so that an import of a part costs nothing

        return version("dclip")
    if name not in _HOME:
        raise AttributeError(f"module 'dclip' has no attribute {name!r}")
    module, _, other = _HOME[name].partition(":")
    return getattr(import_module(module), other or name)

"""Measures, one a file; all fractions in [0, 1] except cosines."""

from dclip.metrics.accuracy import harmonic_mean, top1_accuracy
from dclip.metrics.average_precision import (
    ap_11_point,
    average_precision,
    mean_average_precision,
    precision_recall,
)
from dclip.metrics.calibration import Reliability, expected_calibration_error, reliability
from dclip.metrics.f1 import F1Scores, f1_scores
from dclip.metrics.iou import (
    Confusion,
    Leakage,
    PaperIoU,
    class_iou,
    confusion_matrix,
    confusion_pairs,
    image_miou_paper,
    leakage,
    miou,
    pixel_accuracy,
)
from dclip.metrics.paired import Interval, paired_interval
from dclip.metrics.retrieval import Recall, retrieval_recall
from dclip.metrics.similarity import (
    cosine_matrix,
    inter_class_cosine,
    mask_overlap,
    similarity_report,
)

__all__ = [
    "Confusion",
    "F1Scores",
    "Interval",
    "Leakage",
    "PaperIoU",
    "Recall",
    "Reliability",
    "ap_11_point",
    "average_precision",
    "class_iou",
    "confusion_matrix",
    "confusion_pairs",
    "cosine_matrix",
    "expected_calibration_error",
    "f1_scores",
    "harmonic_mean",
    "image_miou_paper",
    "inter_class_cosine",
    "leakage",
    "mask_overlap",
    "mean_average_precision",
    "miou",
    "paired_interval",
    "pixel_accuracy",
    "precision_recall",
    "reliability",
    "retrieval_recall",
    "similarity_report",
    "top1_accuracy",
]

"""Measures, one a file; all fractions in [0, 1] except cosines."""

from dclip.metrics.average_precision import (
    ap_11_point,
    average_precision,
    mean_average_precision,
)
from dclip.metrics.f1 import F1Scores, f1_scores
from dclip.metrics.similarity import cosine_matrix, inter_class_cosine, similarity_report

__all__ = [
    "F1Scores",
    "ap_11_point",
    "average_precision",
    "cosine_matrix",
    "f1_scores",
    "inter_class_cosine",
    "mean_average_precision",
    "similarity_report",
]

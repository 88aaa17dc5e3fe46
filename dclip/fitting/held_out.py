"""Held-out images to the calibration of a trained method."""

from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int64
from torch import Tensor

from dclip.calibration import CalibrationError, calibrate
from dclip.checkpoints.calibration import Calibration, Kind, Rule
from dclip.fitting.batches import FeatureSource, clean_batches
from dclip.fitting.fit import scores_of
from dclip.logits import similarity_maps
from dclip.methods.method import Method
from dclip.prompts import best_phrasing


@torch.no_grad()
def evidence_of(
    method: Method[Any],
    features: FeatureSource,
    rows: Int64[np.ndarray, " rows"],
    *,
    batch_size: int = 256,
) -> tuple[Float[Tensor, "rows classes"], Float[Tensor, "rows classes"] | None]:
    """What a method says of some rows, and beside it frozen CLIP by itself; both on the CPU.

    Args:
        method: Trained.
        features: What it is fed.
        rows: Rows to look at.
        batch_size: Rows per forward pass.

    Returns:
        `Method.evidence`, and the largest cosine of any location with CLIP's text of each class;
        None of a method that is not fed local features.
    """
    was_training = method.training
    method.eval()
    device, feeds = method.task.pairs.device, method.settings.scoring_feeds()
    if method.settings.image_form == "native":
        batch_size = 1
    classes = len(method.task.class_names)
    told, cosines = [torch.empty(0, classes)], [torch.empty(0, classes)]
    texts, cells = method.task.texts, features.grid[0] * features.grid[1]
    for batch in clean_batches(features, rows, device, batch_size, feeds):
        told.append(method.evidence(batch).float().cpu())
        if "local" in feeds:
            maps = similarity_maps(batch.local[:, -cells:], texts.features)
            cosines.append(best_phrasing(maps, texts.classes).amax(-1).float().cpu())
    method.train(was_training)
    return torch.cat(told), torch.cat(cosines) if "local" in feeds else None


def scores_and_evidence(
    method: Method[Any], features: FeatureSource, rows: Int64[np.ndarray, " rows"]
) -> tuple[Float[Tensor, "rows classes"], Float[Tensor, "rows classes"]]:
    """`Method.scores` and `Method.evidence` of some rows, from one look at them.

    Args:
        method: Trained.
        features: What it is fed.
        rows: Rows to look at.
    """
    if type(method).evidence is Method.evidence:  # which follows from its scores
        scores = scores_of(method, features, rows)
        is_odds = method.tells_probabilities()
        return scores, torch.logit(scores.float(), eps=1e-7) if is_odds else scores
    evidence, _ = evidence_of(method, features, rows)
    return evidence.sigmoid(), evidence


def calibrate_method(
    method: Method[Any],
    features: FeatureSource,
    rows: Int64[np.ndarray, " rows"],
    *,
    kind: Kind = "platt",
    rule: Rule = Rule(),  # noqa: B008 - it cannot be changed
) -> Calibration:
    """Scaling and thresholds of a trained method, from images that it was not trained on.

    Args:
        method: Trained.
        features: What it is fed, with labels.
        rows: The images.
        kind: How probabilities are made; of a method that gives none always by Platt's scaling.
        rule: What thresholds are chosen for.

    Raises:
        CalibrationError: The images say nothing of it (see `dclip.calibration.calibrate`).
    """
    if len(rows) < 2:
        raise CalibrationError(
            f"{len(rows)} held-out images are too few to choose thresholds by; hold out more"
        )
    told, cosines = evidence_of(method, features, rows)
    are_odds = method.tells_probabilities()
    return calibrate(
        told,
        features.labels[torch.from_numpy(rows)].cpu(),
        kind=kind if are_odds else "platt",
        rule=rule,
        are_log_odds=are_odds,
        cosines=cosines,
    )

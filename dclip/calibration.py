r"""From scores to probabilities one can believe, and to a yes or no for each class.

A loss that forgets easy negatives, such as ASL, gives probabilities that are too high, and one
threshold of 0.5 suits no class. Both are put right on images that were held out, by little: a scale
and an offset that all classes share, an offset of each class that is drawn towards 0, and a
threshold of each class that is drawn towards that of all.

With :math:`z` the log-odds of presence (of DCLIP the difference of its pair of logits), the
probability of class c is

.. math::
    p_c = \sigma(a z_c + b + d_c), \qquad a > 0

which is Platt's scaling for every class with one :math:`a`; where kind is ``temperature``,
:math:`b = d_c = 0`. It never changes the order of the images of a class, so average precision stays
what it is.
"""

import math
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, Float64, Shaped
from torch import Tensor

from dclip.checkpoints.calibration import Calibration, Kind, Measured, Rule
from dclip.metrics.average_precision import mean_average_precision
from dclip.metrics.calibration import expected_calibration_error
from dclip.metrics.f1 import f1_scores

PRIOR_POSITIVES = 5.0
"""How many positives of all classes together are added to those of a class in its threshold."""

_PRIOR_DEVIATION = 1.0  # of d_c, in log-odds
_FOLDS = 5
_RESAMPLES = 200
_MOST_PAIRS = 2_000_000  # of image and class, of which an interval is made
_MOST_CANDIDATES = 4096  # for a threshold
_BOUND = 15.0  # log-odds beyond which no threshold lies: one and its float32 are told apart


class Scaling(NamedTuple):
    """From log-odds to calibrated ones: ``scale * z + offset + class_offsets``."""

    scale: float
    offset: float
    class_offsets: Float64[Tensor, " classes"]

    def apply(self, log_odds: Float[Tensor, "images classes"]) -> Float64[Tensor, "images classes"]:
        """Calibrated log-odds, in float64."""
        shift = self.class_offsets.to(log_odds.device) + self.offset
        return self.scale * log_odds.double() + shift


class Thresholds(NamedTuple):
    """Probabilities above which a class counts as present.

    Attributes:
        own: Of each class.
        shared: One for all classes together; for a class of which nothing is known.
    """

    own: Float64[Tensor, " classes"]
    shared: float


def scaling_of(calibration: Calibration) -> Scaling:
    """The scaling that a checkpoint keeps."""
    offsets = torch.tensor(calibration.class_offsets, dtype=torch.float64)
    return Scaling(calibration.scale, calibration.offset, offsets)


def is_present(
    calibration: Calibration, probabilities: Float[Tensor, "*images classes"]
) -> Bool[Tensor, "*images classes"]:
    """Which classes are there: those above their thresholds.

    Args:
        calibration: Of these classes.
        probabilities: Calibrated.
    """
    thresholds = torch.tensor(calibration.thresholds, dtype=torch.float64)
    return probabilities.double().cpu() > thresholds


class CalibrationError(ValueError):
    """Held-out images from which nothing can be learned of probabilities or thresholds."""


def fit_scaling(
    log_odds: Float[Tensor, "images classes"],
    labels: Shaped[Tensor, "images classes"],
    *,
    kind: Kind = "platt",
) -> Scaling:
    r"""The scale and offsets under which held-out labels are likeliest.

    Minimised is the negative log-likelihood of all known pairs of an image and a class, with
    Platt's targets instead of 1 and 0 (:math:`(n_+ + 1) / (n_+ + 2)` and :math:`1 / (n_- + 2)`, so
    that nothing is taken for certain), plus :math:`\sum_c d_c^2 / 2`. It is convex, and solved by
    Newton's method; the Hessian has an arrow's form, so the time is linear in the classes.

    Args:
        log_odds: Of presence; any score will do that grows with it.
        labels: 1, 0, or -1 for unknown, which are not counted.
        kind: ``"none"`` changes nothing.

    Raises:
        CalibrationError: There are no known positives or negatives, values that are not finite, or
            scores that fall where presence rises.

    References:
        Platt, "Probabilistic Outputs for Support Vector Machines", 1999; Guo et al., "On
        Calibration of Modern Neural Networks", ICML 2017 (temperature).

    Example:
        >>> odds = torch.tensor([[4.0], [4.0], [4.0], [-4.0], [-4.0], [-4.0]])
        >>> labels = torch.tensor([[1], [1], [0], [0], [0], [1]])
        >>> round(fit_scaling(odds, labels, kind="temperature").scale, 3)  # too sure of itself
        0.101
    """
    classes = log_odds.shape[1]
    nothing = torch.zeros(classes, dtype=torch.float64)
    if kind == "none":
        return Scaling(1.0, 0.0, nothing)
    known = labels >= 0
    values, columns = log_odds.double()[known].cpu(), known.nonzero()[:, 1].cpu()
    present = (labels[known] == 1).double().cpu()
    if not values.isfinite().all():
        raise CalibrationError("scores that are not finite cannot be calibrated")
    positives = float(present.sum())
    negatives = len(present) - positives
    if not (positives and negatives):
        raise CalibrationError("held-out images have no known positives, or no known negatives")
    low, high = 1 / (negatives + 2), (positives + 1) / (positives + 2)
    targets = low + (high - low) * present
    # scores of any size: what is solved is of size one
    size = max(float(values.abs().mean()), 1e-12)
    solved = _newton(values / size, columns, targets, classes, has_offsets=kind == "platt")
    scale = solved.scale / size
    if scale <= 0:
        raise CalibrationError("scores fall where presence rises, so no scale above 0 suits them")
    return solved._replace(scale=scale)


def _newton(
    values: Float64[Tensor, " pairs"],
    columns: Tensor,
    targets: Float64[Tensor, " pairs"],
    classes: int,
    *,
    has_offsets: bool,
) -> Scaling:
    """Damped Newton steps to the minimum; see `fit_scaling`."""
    shared = torch.zeros(2, dtype=torch.float64)
    own = torch.zeros(classes, dtype=torch.float64)
    ridge = 1 / _PRIOR_DEVIATION**2

    def odds(shared: Tensor, own: Tensor) -> Tensor:
        return shared[0] * values + shared[1] + own[columns]

    def loss(shared: Tensor, own: Tensor) -> float:
        z = odds(shared, own)
        return float(
            (torch.nn.functional.softplus(z) - targets * z).sum() + ridge * own.dot(own) / 2
        )

    def per_class(weights: Tensor) -> Tensor:
        return torch.zeros(classes, dtype=torch.float64).index_add_(0, columns, weights)

    now = loss(shared, own)
    for _ in range(100):
        p = odds(shared, own).sigmoid()
        error, weight = p - targets, p * (1 - p) + 1e-12
        gradient = torch.stack([(error * values).sum(), error.sum()])
        own_gradient = per_class(error) + ridge * own
        square, cross, plain = (weight * values * values), (weight * values), weight
        if has_offsets:
            corner = torch.stack([per_class(cross), per_class(plain)])  # [2, classes]
            diagonal = corner[1] + ridge
            block = torch.stack(
                [
                    torch.stack([square.sum(), cross.sum()]),
                    torch.stack([cross.sum(), plain.sum()]),
                ]
            )
            schur = block - (corner / diagonal) @ corner.mT
            step = torch.linalg.solve(schur, gradient - corner @ (own_gradient / diagonal))
            own_step = (own_gradient - corner.mT @ step) / diagonal
        else:
            step = torch.stack([gradient[0] / square.sum(), torch.zeros((), dtype=torch.float64)])
            own_step = torch.zeros_like(own)
        slope = (
            float(gradient.dot(step) + own_gradient.dot(own_step))
            if has_offsets
            else float(gradient[0] * step[0])
        )
        if slope < 1e-12 * max(1.0, abs(now)):
            break
        length = 1.0
        while True:
            after = loss(shared - length * step, own - length * own_step)
            if after <= now - 1e-4 * length * slope or length < 1e-6:
                break
            length /= 2
        shared, own, now = shared - length * step, own - length * own_step, after
    return Scaling(float(shared[0]), float(shared[1]), own)


def choose_thresholds(
    log_odds: Float[Tensor, "images classes"],
    labels: Shaped[Tensor, "images classes"],
    rule: Rule = Rule(),  # noqa: B008 - it cannot be changed
    *,
    prior: float = PRIOR_POSITIVES,
) -> Thresholds:
    r"""Thresholds of each class by what held-out images say.

    A class with few positives says little, and the threshold that suits them best may be far off.
    So its counts are mixed with those of all classes together: at a threshold t, with m positives
    added,

    .. math::
        TP = TP_c(t) + m \frac{TP(t)}{P}, \quad FP = FP_c(t) + m \frac{FP(t)}{P}, \quad
        P' = P_c + m

    where values without an index are sums over the classes. With ``m = 0`` each class stands alone.
    Candidates lie halfway between neighbouring scores, and beyond both ends; of more than 4,096
    evenly many are left out.

    Args:
        log_odds: Calibrated log-odds.
        labels: 1, 0, or -1 for unknown, which are not counted.
        rule: What they are chosen for. Of several that are equal the highest is taken; a precision
            that is not reached gives the threshold where it is largest.
        prior: m, 0 or more.

    Raises:
        CalibrationError: There are no known positives.
        ValueError: The prior is below 0.

    Example:
        >>> odds = torch.tensor([[3.0], [1.0], [-1.0], [-3.0]])
        >>> chosen = choose_thresholds(odds, torch.tensor([[1], [1], [0], [0]]), prior=0)
        >>> chosen.own
        tensor([0.5000], dtype=torch.float64)
    """
    if prior < 0:
        raise ValueError(f"prior must be 0 or more, got {prior}")
    values, marks = log_odds.double().cpu().numpy(), labels.cpu().numpy()
    known = marks >= 0
    every = _Counts.of(values[known], marks[known] == 1)
    if not every.positives:
        raise CalibrationError("no held-out image shows a class, so no threshold can be chosen")
    shared = _best(every, every, 0.0, rule)
    own = [shared] * values.shape[1]
    for column in range(values.shape[1]):
        seen = known[:, column]
        counts = _Counts.of(values[seen, column], marks[seen, column] == 1)
        if counts.positives:
            own[column] = _best(counts, every, prior, rule)
    bounded = torch.tensor(own, dtype=torch.float64).clamp(-_BOUND, _BOUND).sigmoid()
    return Thresholds(bounded, 1 / (1 + math.exp(-min(max(shared, -_BOUND), _BOUND))))


class _Counts(NamedTuple):
    """Scores in falling order, and how many of the first so many are positive."""

    scores: np.ndarray
    hits: np.ndarray  # one longer: of none, of the first, of the first two, ...
    positives: int

    @classmethod
    def of(cls, scores: np.ndarray, present: np.ndarray) -> "_Counts":
        order = np.argsort(-scores, kind="stable")
        hits = np.concatenate([[0], np.cumsum(present[order])])
        return cls(scores[order], hits, int(present.sum()))

    def above(self, thresholds: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """How many positives and negatives lie above each threshold."""
        first = np.searchsorted(-self.scores, -thresholds, side="left")
        return self.hits[first], first - self.hits[first]


def _best(
    counts: _Counts, every: _Counts, prior: float, rule: Rule, *, without: _Counts | None = None
) -> float:
    """The threshold of some counts that are mixed with those of all; see `choose_thresholds`.

    Args:
        counts: That it is of.
        every: Of all classes.
        prior: How many positives of theirs are added.
        rule: What it is chosen for.
        without: Part of ``counts`` that does not count.
    """
    rising = np.unique(counts.scores)[::-1]
    middles = (rising[:-1] + rising[1:]) / 2
    middles = middles[:: -(-len(middles) // _MOST_CANDIDATES) or 1]
    candidates = np.concatenate([[rising[0] + 1], middles, [rising[-1] - 1]])
    if prior:  # where the class has few scores, those of all say where to cut
        finer = np.unique(every.scores[:: max(1, len(every.scores) // 512)])[::-1]
        candidates = np.unique(np.concatenate([candidates, (finer[:-1] + finer[1:]) / 2]))[::-1]
    hits, misses = (each.astype(float) for each in counts.above(candidates))
    if prior:
        all_hits, all_misses = every.above(candidates)
        hits += prior * all_hits / every.positives
        misses += prior * all_misses / every.positives
    positives = counts.positives + prior
    if without is not None:
        own_hits, own_misses = without.above(candidates)
        hits, misses, positives = (
            hits - own_hits,
            misses - own_misses,
            positives - without.positives,
        )
    taken = hits + misses
    precision = np.divide(hits, taken, out=np.zeros_like(hits), where=taken > 0)
    recall = hits / positives
    if rule.measure == "f1":
        return float(candidates[np.argmax(2 * hits / (taken + positives))])
    target = rule.target or 0.0
    reached = precision if rule.measure == "precision" else recall
    other = recall if rule.measure == "precision" else precision
    good = reached >= target
    if not good.any():
        return float(candidates[np.argmax(reached)])
    return float(candidates[np.argmax(np.where(good, other, -1.0))])


def calibrate(
    log_odds: Float[Tensor, "images classes"],
    labels: Shaped[Tensor, "images classes"],
    *,
    kind: Kind = "platt",
    rule: Rule = Rule(),  # noqa: B008 - it cannot be changed
    are_log_odds: bool = True,
    cosines: Float[Tensor, "images classes"] | None = None,
    seed: int = 0,
) -> Calibration:
    """Scaling and thresholds from held-out images, and what they are worth.

    Args:
        log_odds: Of presence, or scores on any scale.
        labels: 1, 0, or -1 for unknown.
        kind: How probabilities are made.
        rule: What thresholds are chosen for.
        are_log_odds: Whether a probability follows from the scores as they are.
        cosines: Largest cosine of each image's locations with CLIP's text of each class, from which
            the threshold of new names follows.
        seed: Of the folds and of the draws behind the interval.

    Raises:
        CalibrationError: See `fit_scaling` and `choose_thresholds`; or there are fewer than two
            images, or scores are no log-odds and ``kind`` is ``"none"``.
    """
    if len(log_odds) < 2:
        raise CalibrationError(f"thresholds take two held-out images at least, not {len(log_odds)}")
    if kind != "platt" and not are_log_odds:
        raise CalibrationError(
            f"the scores are no log-odds, which {kind!r} takes; make probabilities by 'platt'"
        )
    labels = labels.cpu()
    log_odds = log_odds.double().cpu()
    scaling = fit_scaling(log_odds, labels, kind=kind)
    chosen = choose_thresholds(scaling.apply(log_odds), labels, rule)
    untrained, untrained_f1 = None, None
    if cosines is not None:
        untrained, untrained_f1 = _of_new_names(cosines.double().cpu(), labels, rule)
    measured = _measured(log_odds, labels, kind, rule, are_log_odds=are_log_odds, seed=seed)
    return Calibration(
        kind=kind,
        scale=scaling.scale,
        offset=scaling.offset,
        class_offsets=scaling.class_offsets.tolist(),
        rule=str(rule),
        thresholds=chosen.own.tolist(),
        shared_threshold=chosen.shared,
        untrained_cosine=untrained,
        images=len(labels),
        positives=(labels == 1).sum(0).tolist(),
        measured=measured.model_copy(update={"untrained_f1": untrained_f1}),
    )


def _of_new_names(
    cosines: Float64[Tensor, "images classes"], labels: Tensor, rule: Rule
) -> tuple[float, float | None]:
    """The threshold of cosines of all classes, and the F1 of each by that of the others."""
    values, marks = cosines.numpy(), labels.numpy()
    known = marks >= 0
    every = _Counts.of(values[known], marks[known] == 1)
    chosen = _best(every, every, 0.0, rule)
    if ((marks == 1).any(0)).sum() < 2 or values.shape[1] > 200:
        return chosen, None  # of many classes one more or less is no matter
    hits = taken = positives = 0
    for column in range(values.shape[1]):
        seen = known[:, column]
        own = _Counts.of(values[seen, column], marks[seen, column] == 1)
        if own.positives == every.positives:
            continue
        theirs = _best(every, every, 0.0, rule, without=own)
        above, others = own.above(np.array([theirs]))
        hits, taken = hits + int(above[0]), taken + int(above[0] + others[0])
        positives += own.positives
    return chosen, 2 * hits / (taken + positives) if taken + positives else None


def _measured(
    log_odds: Float64[Tensor, "images classes"],
    labels: Tensor,
    kind: Kind,
    rule: Rule,
    *,
    are_log_odds: bool,
    seed: int,
) -> Measured:
    random = np.random.default_rng([seed, 21])
    fold = random.permutation(len(labels)) % min(_FOLDS, len(labels))
    calibrated = torch.full_like(log_odds, math.nan)
    is_found = torch.zeros_like(labels, dtype=torch.bool)
    for number in range(fold.max() + 1):
        out = torch.from_numpy(fold == number)
        try:
            scaling = fit_scaling(log_odds[~out], labels[~out], kind=kind)
            chosen = choose_thresholds(scaling.apply(log_odds[~out]), labels[~out], rule)
        except CalibrationError:  # too few for folds
            continue
        calibrated[out] = scaling.apply(log_odds[out])
        is_found[out] = calibrated[out].sigmoid() > chosen.own
    told: dict[str, float] = {}
    done = ~calibrated.isnan().any(1)
    if are_log_odds:
        raw = log_odds.sigmoid()
        told["ece_before"] = expected_calibration_error(raw, labels)
        f1 = f1_scores(raw, labels)
        told |= {"cf1_before": f1.cf1, "of1_before": f1.of1}
    if done.all():
        told["ece_after"] = expected_calibration_error(calibrated.sigmoid(), labels)
        f1 = f1_scores(is_found.double(), labels)
        told |= {"cf1_after": f1.cf1, "of1_after": f1.of1}
    told["map"] = mean_average_precision(log_odds, labels)
    if log_odds.numel() <= _MOST_PAIRS:
        low, high = _interval(log_odds, labels, random)
        told |= {"map_low": low, "map_high": high}
    return Measured(**{name: value for name, value in told.items() if math.isfinite(value)})


def _interval(
    log_odds: Float64[Tensor, "images classes"], labels: Tensor, random: np.random.Generator
) -> tuple[float, float]:
    """Ends of the 95 % interval of mAP, by drawing images anew; nan where none has a class.

    Images that are drawn several times weigh as much, so that scores are sorted once.
    """
    order = log_odds.argsort(0, descending=True)
    known, present = (labels >= 0).gather(0, order), (labels == 1).gather(0, order)
    drawn = []
    for _ in range(_RESAMPLES):
        rows = random.integers(len(labels), size=len(labels))
        times = torch.from_numpy(np.bincount(rows, minlength=len(labels)))[order] * known
        hits = times * present
        positives = hits.sum(0)
        precision = hits.cumsum(0) / times.cumsum(0).clamp_min(1)
        ap = (hits * precision).sum(0) / positives
        if (positives > 0).any():
            drawn.append(float(ap[positives > 0].mean()))
    low, high = np.quantile(drawn, [0.025, 0.975]).tolist() if drawn else (math.nan, math.nan)
    return low, high

"""Logistic regression of many classes at once, to the optimum."""

from typing import NamedTuple

import torch
from jaxtyping import Float, Float64, Shaped
from torch import Tensor

_MEMORY = 30  # pairs of steps from which L-BFGS knows curvature
_RENEWED = 5  # steps after which curvature along the axes is looked at again
_MOST_TRIALS = 60  # of the length of one step
_STEEPEST, _RISING = -0.5, 0.1  # slope at the end of a step, as a share of that at its beginning
_CROWDED = 0.75  # share of the classes that are still searched for, below which the others go
_MOST_NUMBERS = 1 << 25  # in one array of all classes that are worked on together


class Logistic(NamedTuple):
    """A fitted linear classifier for each class.

    Attributes:
        weight: One row a class.
        bias: Of each class.
        gradient_norm: Norm of the objective's gradient, the largest of all classes that were
            fitted.
        steps: The most that a class took.
    """

    weight: Float64[Tensor, "classes dim"]
    bias: Float64[Tensor, " classes"]
    gradient_norm: float
    steps: int


def fit_logistic(
    vectors: Float[Tensor, "images dim"],
    labels: Shaped[Tensor, "images classes"],
    *,
    c: float,
    tolerance: float = 1e-5,
    most_steps: int = 2000,
) -> Logistic:
    r"""Logistic regression of every class by itself, with scikit-learn's objective.

    For each class, with the sum over the images whose label is known,

    .. math::
        \min_{w, b} \; \tfrac{1}{2} \lVert w \rVert^2
            + C \sum_i \left[\log(1 + e^{z_i}) - y_i z_i\right], \qquad z_i = w \cdot x_i + b

    Classes are independent problems, solved side by side in float64 by L-BFGS until the gradient
    of each is small. The search runs along the principal axes of the centred vectors, which leaves
    the optimum where it is, and scales each by the curvature of the objective along it, which is
    what makes it short. Steps are as long as makes the slope along them small, which takes no
    further pass over the vectors; a convex objective needs no more to fall.

    A class of which all known labels are alike has no optimum, as its bias would grow for ever. It
    gets no weights, and the bias of Laplace's rule of succession: the probability is
    :math:`(n_1 + 1) / (n_0 + n_1 + 2)`, with the numbers of absent and present images.

    Args:
        vectors: One an image, of any length and dtype.
        labels: 1 (present), 0 (absent) or -1 (unknown: it costs nothing).
        c: Weight :math:`C` of the losses, above 0.
        tolerance: Norm of the gradient of a class at which its search ends.
        most_steps: Steps after which it ends anyway; ``gradient_norm`` tells of it.

    Returns:
        Weights and biases on the device of the vectors.

    Raises:
        ValueError: There is no image, shapes do not match, a vector is not finite, or ``c`` is not
            above 0.

    References:
        Nocedal and Wright, "Numerical Optimization", 2nd ed., algorithm 7.4.

    Example:
        >>> fitted = fit_logistic(torch.tensor([[1.0], [-1.0]]), torch.tensor([[1], [0]]), c=1.0)
        >>> round(float(fitted.weight), 4), round(float(fitted.bias), 4)
        (0.6748, 0.0)
    """
    if not len(vectors) or len(labels) != len(vectors) or labels.ndim != 2:
        raise ValueError(
            "expected vectors [images, dim] and labels [images, classes] of an image or more, got "
            f"{list(vectors.shape)} and {list(labels.shape)}"
        )
    if not c > 0:
        raise ValueError(f"c must be above 0, got {c}")
    if not vectors.isfinite().all():
        raise ValueError("some of the vectors are not finite")
    axes = _Axes(vectors.double())
    labels = labels.to(vectors.device)
    present, absent = ((labels == value).sum(0).double() for value in (1, 0))
    weight = axes.mean.new_zeros(labels.shape[1], len(axes.mean))
    bias = torch.log((present + 1) / (absent + 1))
    mixed = ((present > 0) & (absent > 0)).nonzero().flatten()
    norm, steps = 0.0, 0
    of_a_class = max(len(vectors), 2 * _MEMORY * axes.rows.shape[1])
    for own in torch.split(mixed, max(1, _MOST_NUMBERS // of_a_class)) if len(mixed) else ():
        problem = _Problem(axes, labels[:, own], c)
        points, norms, count = _minimise(problem, tolerance, most_steps)
        weight[own], bias[own] = axes.back(points)
        norm, steps = max(norm, float(norms.max())), max(steps, count)
    return Logistic(weight, bias, norm, steps)


class _Axes:
    """Vectors by their principal axes: centred, rotated, and a one for the bias behind.

    Args:
        vectors: In float64.
    """

    def __init__(self, vectors: Float64[Tensor, "images dim"]) -> None:
        self.mean = vectors.mean(0)
        centred = vectors - self.mean
        squares, rotation = torch.linalg.eigh(centred.mT @ centred)
        is_used = squares > 1e-14 * squares.amax()  # along the others no image differs
        self._rotation = rotation[:, is_used]
        ones = vectors.new_ones(len(vectors), 1)
        self.rows = torch.cat([centred @ self._rotation, ones], dim=1)
        self.squares = self.rows.square()
        self._rotated_mean = self.mean @ self._rotation

    def back(self, points: Float64[Tensor, "classes _"]) -> tuple[Tensor, Tensor]:
        """Weights and biases for the vectors as they were."""
        weight = points[:, :-1] @ self._rotation.mT
        return weight, points[:, -1] - weight @ self.mean

    def norms(self, gradients: Float64[Tensor, "classes _"]) -> Float64[Tensor, " classes"]:
        """Norm of the gradient by weights and biases for the vectors as they were."""
        by_bias = gradients[:, -1:]
        whole = gradients[:, :-1] + by_bias * self._rotated_mean
        return torch.cat([whole, by_bias], dim=1).square().sum(1).sqrt()


class _Problem:
    """The objectives of some classes.

    Args:
        axes: Of the vectors.
        labels: Of classes that have both kinds.
        c: Weight of the losses.
    """

    def __init__(self, axes: _Axes, labels: Shaped[Tensor, "images classes"], c: float) -> None:
        self.axes = axes
        self._present = (labels == 1).double()
        self._cost = c * (labels != -1).double()
        self.ridge = torch.ones_like(axes.rows[0])
        self.ridge[-1] = 0
        self.share = self._present.sum(0) / (labels != -1).sum(0)

    def only(self, keep: Tensor) -> None:
        """Leave all but these classes out."""
        self._present, self._cost = self._present[:, keep], self._cost[:, keep]

    def gradients(self, logits: Tensor, points: Tensor) -> Float64[Tensor, "classes _"]:
        """By the points, which have these logits."""
        return self._errors(logits).mT @ self.axes.rows + self.ridge * points

    def curvatures(self, logits: Tensor) -> Float64[Tensor, "classes _"]:
        """Second derivatives along each axis, at points which have these logits."""
        shares = logits.sigmoid()
        along = (self._cost * shares * (1 - shares)).mT @ self.axes.squares
        return (along + self.ridge).clamp(min=torch.finfo(along.dtype).tiny)

    def slopes(self, logits: Tensor, along: Tensor) -> Float64[Tensor, " classes"]:
        """Of the losses, per length of a way along which logits change so."""
        return (self._errors(logits) * along).sum(0)

    def _errors(self, logits: Tensor) -> Float64[Tensor, "images classes"]:
        return self._cost * (logits.sigmoid() - self._present)


def _minimise(
    problem: _Problem, tolerance: float, most_steps: int
) -> tuple[Float64[Tensor, "classes _"], Float64[Tensor, " classes"], int]:
    """Where each class has its optimum, the norm of its gradient there, and the number of steps."""
    rows = problem.axes.rows
    points = rows.new_zeros(len(problem.share), rows.shape[1])
    points[:, -1] = torch.logit(problem.share)
    logits = points[:, -1].expand(len(rows), -1).clone()
    gradients = problem.gradients(logits, points)
    ended, norms = points.clone(), problem.axes.norms(gradients)
    open_ = torch.arange(len(points), device=rows.device)
    memory: list[_Step] = []
    diagonal = problem.curvatures(logits)
    for step in range(most_steps + 1):
        norms[open_], ended[open_] = problem.axes.norms(gradients), points
        keep = norms[open_] > tolerance
        if not keep.any() or step == most_steps:
            break
        if keep.double().mean() < _CROWDED:  # leaving one out copies all others
            problem.only(keep)
            points, gradients, logits = points[keep], gradients[keep], logits[:, keep]
            memory, open_ = [_Step(*(part[keep] for part in one)) for one in memory], open_[keep]
            diagonal = diagonal[keep]
        if step and step % _RENEWED == 0:
            diagonal = problem.curvatures(logits)
        way = -_preconditioned(gradients, memory, diagonal)
        along = rows @ way.mT
        length = _length(problem, logits, along, points, way, gradients)
        before, last = points, gradients
        points, logits = points + length[:, None] * way, logits + length * along
        gradients = problem.gradients(logits, points)
        memory = [*memory[1 - _MEMORY :], _step(points - before, gradients - last)]
    return ended, norms, step


class _Step(NamedTuple):
    """A step that was taken: how far, what it did to the gradient, and one over their product."""

    moved: Tensor
    changed: Tensor
    inverse: Tensor


def _step(moved: Tensor, changed: Tensor) -> _Step:
    product = _dot(moved, changed)  # above 0, unless it is lost in rounding
    return _Step(moved, changed, torch.where(product > 0, 1 / product, 0))


def _preconditioned(gradients: Tensor, memory: list[_Step], diagonal: Tensor) -> Tensor:
    """Gradients times the inverse curvature, as far as the last steps tell of it."""
    result, shares = gradients.clone(), []
    for one in reversed(memory):
        shares.append(one.inverse * _dot(one.moved, result))
        result -= shares[-1] * one.changed
    result /= diagonal
    if memory:
        _, changed, inverse = memory[-1]
        scale = inverse * _dot(changed, changed / diagonal)
        result /= torch.where(scale > 0, scale, 1)
    for one, share in zip(memory, reversed(shares), strict=True):
        result += one.moved * (share - one.inverse * _dot(one.changed, result))
    return result


def _length(
    problem: _Problem, logits: Tensor, along: Tensor, points: Tensor, way: Tensor, gradients: Tensor
) -> Float64[Tensor, " classes"]:
    """How far to go along the way, as a multiple of it: to where the slope is small.

    The slope of a convex objective rises along the way. What is too short bounds it from below,
    what is too far from above, and between the two a straight line through the slopes guesses.
    """
    first = _dot(gradients, way)[:, 0].abs()
    ridge = problem.ridge * way
    constant, growth = _dot(ridge, points)[:, 0], _dot(ridge, way)[:, 0]
    length = torch.ones_like(first)
    low, high = torch.zeros_like(first), torch.full_like(first, torch.inf)
    at_low, at_high = -torch.ones_like(first), torch.ones_like(first)
    for _ in range(_MOST_TRIALS):
        slope = problem.slopes(logits + length * along, along) + constant + length * growth
        slope = slope / first
        is_short, is_far = slope < _STEEPEST, slope > _RISING
        if not (is_short | is_far).any():
            break
        low, at_low = length.where(is_short, low), slope.where(is_short, at_low)
        high, at_high = length.where(is_far, high), slope.where(is_far, at_high)
        share = (-at_low / (at_high - at_low)).clamp(0.05, 0.95)
        guess = torch.where(high.isinf(), 4 * length, low + (high - low) * share)
        length = guess.where(is_short | is_far, length)
    return length


def _dot(one: Tensor, other: Tensor) -> Float64[Tensor, "classes 1"]:
    return (one * other).sum(dim=1, keepdim=True)

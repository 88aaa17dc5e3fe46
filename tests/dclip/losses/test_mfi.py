"""MFI: its forms, the identity between them, and what each does to the similarity of classes."""

import inspect
import itertools

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

from dclip.losses.mfi import STABILITY_LIMIT, check_mfi_stability, mfi_loss
from dclip.metrics.similarity import inter_class_cosine
from dclip.projectors import ProjectorSizes, TextProjector

SCOPES = ("both", "split", "positive")
GRAMS = ("feature", "class")


def loss_by_loops(vectors: list[list[float]], weight: float, *, mean: bool) -> float:
    """Of the Gram matrix of given vectors, entry by entry."""
    diagonal, off_diagonal = [], []
    for i, j in itertools.product(range(len(vectors)), repeat=2):
        entry = sum(a * b for a, b in zip(vectors[i], vectors[j], strict=True))
        if i == j:
            diagonal.append((entry - 1) ** 2)
        else:
            off_diagonal.append(entry**2)
    if mean:
        redundancy = sum(off_diagonal) / max(len(off_diagonal), 1)
        return sum(diagonal) / len(diagonal) + weight * redundancy
    return sum(diagonal) + weight * sum(off_diagonal)


def correlated_texts(num_classes: int, dim: int) -> Tensor:
    """Prompt pairs that share most of their direction: mean inter-class cosine about 0.7."""
    common = F.normalize(torch.randn(dim), dim=0)
    own = F.normalize(torch.randn(num_classes, dim), dim=1)
    polarity = F.normalize(torch.randn(2, 1, dim), dim=2)
    return (0.8 * common + 0.5 * own + 0.25 * polarity).flatten(0, 1)


@pytest.mark.parametrize("scope", SCOPES)
@pytest.mark.parametrize("gram", GRAMS)
@pytest.mark.parametrize("reduction", ["sum", "mean"])
def test_is_the_equation_on_the_rows_in_scope(
    scope: str, gram: str, reduction: str, device: torch.device
) -> None:
    features = torch.randn(8, 5, dtype=torch.float64)
    unit = F.normalize(features, dim=1)
    blocks = {"both": [unit], "split": [unit[:4], unit[4:]], "positive": [unit[4:]]}[scope]
    expected = sum(
        loss_by_loops(
            (block.T if gram == "feature" else block).tolist(), 0.3, mean=reduction == "mean"
        )
        for block in blocks
    )
    loss = mfi_loss(
        features.to(device), redundancy_weight=0.3, scope=scope, gram=gram, reduction=reduction
    )
    assert loss.item() == pytest.approx(expected, rel=1e-12)


def test_a_hand_worked_pair() -> None:
    # Rows (1, 0) and (3, 4)/5.  C = TtT = [[1.36, 0.48], [0.48, 0.64]], G = [[1, 0.6], [0.6, 1]].
    features = torch.tensor([[2.0, 0.0], [3.0, 4.0]], dtype=torch.float64)
    assert mfi_loss(features).item() == pytest.approx(0.36**2 + 0.36**2 + 0.2 * 2 * 0.48**2)
    assert mfi_loss(features, gram="class").item() == pytest.approx(0.2 * 2 * 0.6**2)
    mean = mfi_loss(features, reduction="mean").item()
    assert mean == pytest.approx((0.36**2 + 0.36**2) / 2 + 0.2 * 0.48**2)


@given(
    seed=st.integers(0, 2**32),
    num_classes=st.integers(1, 6),
    dim=st.integers(1, 9),
    weight=st.floats(0, 2),
)
def test_feature_wise_is_class_wise_plus_a_spread_of_energy(
    seed: int, num_classes: int, dim: int, weight: float
) -> None:
    generator = torch.Generator().manual_seed(seed)
    features = torch.randn(2 * num_classes, dim, generator=generator, dtype=torch.float64)
    energy = F.normalize(features, dim=1).square().sum(dim=0)
    rows = 2 * num_classes
    identity = (
        mfi_loss(features, redundancy_weight=weight, gram="class")
        + (1 - weight) * energy.square().sum()
        + (rows * weight - 2 * rows + dim)
    )
    feature_wise = mfi_loss(features, redundancy_weight=weight, gram="feature")
    torch.testing.assert_close(feature_wise, identity, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("scope", SCOPES)
@pytest.mark.parametrize("reduction", ["sum", "mean"])
def test_orthogonal_texts_cost_nothing_class_wise(scope: str, reduction: str) -> None:
    features = 3 * torch.linalg.qr(torch.randn(9, 6, dtype=torch.float64)).Q.T
    loss = mfi_loss(features, scope=scope, gram="class", reduction=reduction)
    assert loss.item() == pytest.approx(0, abs=1e-20)


def test_orthogonal_texts_that_fill_the_space_cost_nothing_feature_wise() -> None:
    features = torch.linalg.qr(torch.randn(6, 6, dtype=torch.float64)).Q
    assert mfi_loss(features).item() == pytest.approx(0, abs=1e-20)


@pytest.mark.parametrize("num_classes", [1, 4])
def test_collapsed_texts_have_every_cosine_one(num_classes: int) -> None:
    rows = 2 * num_classes
    features = torch.randn(1, 5, dtype=torch.float64).expand(rows, 5)
    loss = mfi_loss(features, redundancy_weight=0.3, gram="class")
    assert loss.item() == pytest.approx(0.3 * rows * (rows - 1))
    mean = mfi_loss(features, redundancy_weight=0.3, gram="class", reduction="mean")
    assert mean.item() == pytest.approx(0.3)
    # Feature-wise C = 2N u u^T.
    u = F.normalize(features[0], dim=0)
    matrix = rows * torch.outer(u, u)
    expected = loss_by_gram(matrix, weight=0.3)
    assert mfi_loss(features, redundancy_weight=0.3).item() == pytest.approx(expected)


def loss_by_gram(matrix: Tensor, *, weight: float) -> float:
    identity = torch.eye(len(matrix), dtype=matrix.dtype)
    is_diagonal = identity.bool()
    squares = (matrix - identity).square()
    return (squares[is_diagonal].sum() + weight * squares[~is_diagonal].sum()).item()


@given(
    seed=st.integers(0, 2**32),
    scope=st.sampled_from(SCOPES),
    gram=st.sampled_from(GRAMS),
    reduction=st.sampled_from(("sum", "mean")),
)
def test_lengths_and_the_order_within_a_polarity_do_not_matter(
    seed: int, scope: str, gram: str, reduction: str
) -> None:
    generator = torch.Generator().manual_seed(seed)
    features = torch.randn(8, 5, generator=generator, dtype=torch.float64)
    lengths = torch.rand(8, 1, generator=generator, dtype=torch.float64) + 0.1
    order = torch.randperm(4, generator=generator)
    shuffled = (lengths * features)[torch.cat((order, 4 + order))]
    settings = {"scope": scope, "gram": gram, "reduction": reduction}
    torch.testing.assert_close(mfi_loss(shuffled, **settings), mfi_loss(features, **settings))


def test_split_adds_the_two_polarities() -> None:
    features = torch.randn(8, 5, dtype=torch.float64)
    swapped = features.roll(4, dims=0)
    for gram in GRAMS:
        both = sum(mfi_loss(block, scope="positive", gram=gram) for block in (features, swapped))
        torch.testing.assert_close(mfi_loss(features, scope="split", gram=gram), both)


def test_a_class_pair_may_be_as_like_as_it_wants_when_split() -> None:
    # Negative and positive prompts equal, classes orthogonal.
    features = torch.eye(4, 6).repeat(2, 1)
    assert mfi_loss(features, scope="split", gram="class").item() == 0
    assert mfi_loss(features, scope="both", gram="class").item() > 0


@pytest.mark.parametrize("gram", GRAMS)
def test_gradients_are_those_of_the_equation(gram: str) -> None:
    features = torch.randn(6, 4, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda rows: mfi_loss(rows, gram=gram), (features,))


@pytest.mark.parametrize("gram", ["feature", "class"])
@pytest.mark.parametrize("shape", [(30, 8), (3, 30, 8)])
def test_gradients_are_bit_for_bit_those_of_differentiating_step_by_step(
    gram: str, shape: tuple[int, ...]
) -> None:
    features = torch.randn(shape, requires_grad=True)
    loss = mfi_loss(features, gram=gram, redundancy_weight=0.37)
    loss.sum().backward()
    by_step = features.detach().clone().requires_grad_()
    rows = F.normalize(by_step, dim=-1)
    matrix = rows.mT @ rows if gram == "feature" else rows @ rows.mT
    diagonal = matrix.diagonal(dim1=-2, dim2=-1)
    off_diagonal = matrix - torch.diag_embed(diagonal)
    expected = (diagonal - 1).square().sum(-1) + 0.37 * off_diagonal.square().sum((-2, -1))
    expected.sum().backward()
    assert features.grad is not None
    assert by_step.grad is not None
    assert torch.equal(loss, expected)
    assert torch.equal(features.grad, by_step.grad)


def test_the_gram_matrix_of_many_classes_is_kept_once() -> None:
    kept: list[int] = []

    def pack(tensor: Tensor) -> Tensor:
        kept.append(tensor.numel())
        return tensor

    features = torch.randn(400, 8, requires_grad=True)
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        mfi_loss(features, gram="class")
    assert sum(size >= 400 * 400 for size in kept) == 1


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_computed_in_float32(dtype: torch.dtype) -> None:
    features = torch.randn(8, 5).to(dtype)
    loss = mfi_loss(features)
    assert loss.dtype == torch.float32
    assert torch.equal(loss, mfi_loss(features.float()))


@pytest.mark.parametrize("gram", GRAMS)
def test_autocast_does_not_reach_the_gram_matrix(gram: str) -> None:
    # 400 aligned rows: an entry of 400 squares to more than float16 holds.
    features = torch.ones(400, 1)
    with torch.autocast("cpu", dtype=torch.float16):
        loss = mfi_loss(features, gram=gram)
    assert loss.dtype == torch.float32
    assert torch.equal(loss, mfi_loss(features, gram=gram))


@pytest.mark.parametrize("length", [0.0, 1e-30, 1e15])
@pytest.mark.parametrize("scope", SCOPES)
@pytest.mark.parametrize("gram", GRAMS)
def test_loss_and_gradient_are_finite_at_extreme_lengths(
    length: float, scope: str, gram: str
) -> None:
    features = (length * torch.ones(2, 3)).requires_grad_()
    loss = mfi_loss(features, scope=scope, gram=gram)
    loss.backward()
    assert loss.isfinite()
    assert features.grad.isfinite().all()


@pytest.mark.parametrize("gram", GRAMS)
def test_one_class_among_its_own_polarity_has_no_redundancy(gram: str) -> None:
    features = torch.tensor([[1.0], [2.0]])
    for reduction in ("sum", "mean"):
        assert mfi_loss(features, scope="positive", gram=gram, reduction=reduction).item() == 0


def test_centred_form_is_the_matrix_of_correlations() -> None:
    features = torch.randn(8, 3, dtype=torch.float64)
    correlations = torch.corrcoef(F.normalize(features, dim=1).T)
    expected = loss_by_gram(correlations, weight=0.2)
    assert mfi_loss(features, center=True).item() == pytest.approx(expected)


def similarity_after_training(**settings: object) -> tuple[float, float]:
    """Before and after training a projector on MFI alone, as the method trains it."""
    texts = correlated_texts(20, 128)
    projector = TextProjector(ProjectorSizes.for_embed_dim(128))
    before = inter_class_cosine(projector(texts)[20:].detach())
    optimizer = torch.optim.SGD(projector.parameters(), lr=5e-5, momentum=0.9)
    for _ in range(200):
        optimizer.zero_grad()
        mfi_loss(projector(texts), **settings).backward()
        optimizer.step()
    return before, inter_class_cosine(projector(texts)[20:].detach())


@pytest.mark.parametrize("scope", SCOPES)
@pytest.mark.parametrize("gram", GRAMS)
def test_every_uncentred_form_holds_classes_apart(scope: str, gram: str) -> None:
    before, after = similarity_after_training(scope=scope, gram=gram)
    assert before > 0.7
    assert after < 0.1


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_the_centred_form_draws_classes_together(seed: int) -> None:
    torch.manual_seed(seed)
    before, after = similarity_after_training(center=True)
    assert after > before + 0.05


def test_settings_without_a_meaning_are_refused() -> None:
    with pytest.raises(ValueError, match="even number of text features above 0, got 3"):
        mfi_loss(torch.randn(3, 4))
    with pytest.raises(ValueError, match="even number of text features above 0, got 0"):
        mfi_loss(torch.randn(0, 4))
    for weight in (-0.1, float("nan")):
        with pytest.raises(ValueError, match="redundancy_weight"):
            mfi_loss(torch.randn(4, 4), redundancy_weight=weight)
    # Past the type checks of these tests, as in a user's program.
    for setting in ({"scope": "negative"}, {"gram": "row"}, {"reduction": "none"}):
        with pytest.raises(ValueError, match=next(iter(setting))):
            inspect.unwrap(mfi_loss)(torch.randn(4, 4), **setting)


@pytest.mark.parametrize("num_classes", [1, 16, 20, 80, 171])
@pytest.mark.parametrize("redundancy_weight", [0.0, 0.0051, 0.2])
def test_published_settings_pass_the_guard(num_classes: int, redundancy_weight: float) -> None:
    check_mfi_stability(7e-5, num_classes, 2e-3, redundancy_weight)


def test_the_guard_names_the_setting_and_the_remedy() -> None:
    with pytest.raises(ValueError, match=r"alpha=0\.01 with 80 classes.*0\.002.*reduction='mean'"):
        check_mfi_stability(1e-2, 80, 2e-3)
    # 0.01 / (0.2 * 160^2 * 0.002) = 0.00098
    with pytest.raises(ValueError, match=r"at most 0\.00098"):
        check_mfi_stability(1e-2, 80, 2e-3)
    check_mfi_stability(0.00097, 80, 2e-3)
    with pytest.raises(ValueError, match="alpha"):
        check_mfi_stability(float("nan"), 80, 2e-3)


def highest_rise(strength: float) -> float:
    """Highest loss of 60 steps of the projector alone, relative to the first."""
    num_classes, learning_rate, weight = 20, 2e-3, 0.2
    alpha = strength / (weight * (2 * num_classes) ** 2 * learning_rate)
    torch.manual_seed(0)
    texts = correlated_texts(num_classes, 64)
    projector = TextProjector(ProjectorSizes(64, 48, 32))
    optimizer = torch.optim.SGD(projector.parameters(), lr=learning_rate, momentum=0.9)
    losses = []
    for _ in range(60):
        loss = mfi_loss(projector(texts), redundancy_weight=weight)
        losses.append(loss.item())
        optimizer.zero_grad()
        (alpha * loss).backward()
        optimizer.step()
    return max(losses) / losses[0]


def test_the_limit_lies_between_settings_that_train_and_settings_that_overshoot() -> None:
    assert highest_rise(STABILITY_LIMIT) == 1
    assert highest_rise(20 * STABILITY_LIMIT) > 1.1

"""Inter-class cosines, each under the name of what was measured."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional as F

from dclip.metrics.similarity import cosine_matrix, inter_class_cosine, similarity_report
from dclip.model import DCLIP
from dclip.projectors import ProjectorSizes

SMALL = ProjectorSizes(embed_dim=12, hidden_dim=9, output_dim=6)


def test_cosine_matrix_by_hand() -> None:
    # Angles 0, 60 and 180 degrees.
    features = torch.tensor([[2.0, 0.0], [0.5, 0.75**0.5], [-3.0, 0.0]])
    expected = torch.tensor([[1.0, 0.5, -1.0], [0.5, 1.0, -0.5], [-1.0, -0.5, 1.0]]).double()
    torch.testing.assert_close(cosine_matrix(features), expected, atol=1e-7, rtol=0)
    assert inter_class_cosine(features) == pytest.approx((0.5 - 1 - 0.5) / 3, abs=1e-7)
    assert inter_class_cosine(features, include_diagonal=True) == pytest.approx(1 / 9, abs=1e-7)


@given(seed=st.integers(0, 2**32), num_classes=st.integers(2, 9))
def test_mean_equals_a_plain_loop_over_pairs(seed: int, num_classes: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    features = torch.randn(num_classes, 5, generator=generator, dtype=torch.float64)
    cosines = [
        F.cosine_similarity(features[i], features[j], dim=0).item()
        for i in range(num_classes)
        for j in range(num_classes)
        if i != j
    ]
    assert inter_class_cosine(features) == pytest.approx(sum(cosines) / len(cosines), abs=1e-12)


@given(seed=st.integers(0, 2**32), num_classes=st.integers(2, 9))
def test_the_mean_is_bounded_by_what_directions_allow(seed: int, num_classes: int) -> None:
    # || sum of unit vectors ||^2 >= 0 bounds the mean from below by -1 / (N - 1).
    features = torch.randn(num_classes, 3, generator=torch.Generator().manual_seed(seed))
    mean = inter_class_cosine(features)
    assert -1 / (num_classes - 1) - 1e-12 <= mean <= 1 + 1e-12


def test_one_class_has_no_other() -> None:
    with pytest.raises(ValueError, match="at least two classes, got 1"):
        inter_class_cosine(torch.randn(1, 4))
    with pytest.raises(ValueError, match="at least two classes, got 1"):
        similarity_report(DCLIP(SMALL), torch.randn(2, 12))


@pytest.mark.parametrize("freeze", [True, False])
@pytest.mark.parametrize("mode", [True, False])
def test_report_leaves_the_model_as_it_was(freeze: bool, mode: bool) -> None:
    model = DCLIP(SMALL, freeze_batch_norm=freeze).train(mode)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    modes = [module.training for module in model.modules()]
    similarity_report(model, torch.randn(8, 12))
    assert [module.training for module in model.modules()] == modes
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name]), name
    assert all(parameter.grad is None for parameter in model.parameters())


def test_report_does_not_depend_on_the_mode_of_the_model() -> None:
    model = DCLIP(SMALL, freeze_batch_norm=False)
    texts = torch.randn(8, 12)
    assert similarity_report(model.train(), texts) == similarity_report(model.eval(), texts)


def test_every_key_is_what_it_says() -> None:
    model = DCLIP(SMALL, freeze_batch_norm=False)
    texts = torch.randn(8, 12) + 0.5
    negative, positive = texts[:4], texts[4:]
    report = similarity_report(model, texts)
    assert len(report) == 26

    reference = DCLIP(SMALL, freeze_batch_norm=False)
    reference.load_state_dict(model.state_dict())
    for polarity, rows in (("positive", positive), ("negative", negative)):
        raw = inter_class_cosine(rows)
        assert report[f"clip/{polarity}/raw"] == pytest.approx(raw)
        projected = reference.eval().project_texts(rows).detach()
        raw = inter_class_cosine(projected)
        assert report[f"dclip/{polarity}/eval/raw"] == pytest.approx(raw, abs=1e-6)
        raw = inter_class_cosine(projected, include_diagonal=True)
        key = f"dclip/{polarity}/eval/raw/with_diagonal"
        assert report[key] == pytest.approx(raw, abs=1e-6)
        # The running statistics of the reference change here, hence a fresh copy above.
        in_training = reference.train().project_texts(rows).detach()
        reference.load_state_dict(model.state_dict())
        raw = inter_class_cosine(in_training)
        assert report[f"dclip/{polarity}/batch_stats/raw"] == pytest.approx(raw, abs=1e-6)

    pos_neg = F.cosine_similarity(negative, positive, dim=1).mean().item()
    assert report["clip/pos_neg/raw"] == pytest.approx(pos_neg, abs=1e-6)
    projected = reference.eval().project_texts(texts).detach()
    pos_neg = F.cosine_similarity(projected[:4], projected[4:], dim=1).mean().item()
    assert report["dclip/pos_neg/eval/raw"] == pytest.approx(pos_neg, abs=1e-6)


def test_stretching_lifts_a_mean_with_negative_entries_and_leaves_others() -> None:
    # Cosines of the angles 0, 90 and 180 degrees: lowest -1, so m becomes (m + 1) / 2.
    mixed = torch.tensor([[1.0, 0.0], [0.0, 1.0], [-1.0, 0.0]])
    alike = torch.tensor([[1.0, 0.0], [1.0, 1.0], [2.0, 1.0]])
    texts = F.pad(torch.cat((mixed, alike)), (0, 10))
    report = similarity_report(DCLIP(SMALL), texts)
    assert report["clip/negative/raw"] == pytest.approx(-1 / 3)
    assert report["clip/negative/minmax"] == pytest.approx(1 / 3)
    assert report["clip/positive/minmax"] == report["clip/positive/raw"]


def test_statistics_of_the_batch_alone_pull_untrained_classes_apart() -> None:
    # Why the state of BatchNorm belongs to the name of a similarity: nothing was trained here.
    torch.manual_seed(0)
    common, own = torch.randn(1, 64), torch.randn(40, 64)
    report = similarity_report(DCLIP(ProjectorSizes.for_embed_dim(64)), common + 0.55 * own)
    assert report["clip/positive/raw"] > 0.7
    assert report["dclip/positive/eval/raw"] > 0.7
    assert report["dclip/positive/batch_stats/raw"] < 0.4


def test_an_odd_number_of_texts_is_refused() -> None:
    with pytest.raises(ValueError, match="even number of text features, got 3"):
        similarity_report(DCLIP(SMALL), torch.randn(3, 12))

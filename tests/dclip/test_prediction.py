"""Prediction of one image: presence as in training, and the rule for background."""

import pytest
import torch
from torch.nn import functional as F

from dclip.backbones import ImageFeatures
from dclip.logits import presence_probability
from dclip.model import DCLIP
from dclip.prediction import Prediction, predict_image
from dclip.projectors import ProjectorSizes

GRID, SIZE, CLASSES, DIM = (3, 4), (30, 44), 5, 16


@pytest.fixture
def model() -> DCLIP:
    sizes = ProjectorSizes.for_embed_dim(DIM)
    return DCLIP(sizes, local_scale=1.0, pooled_scale=1.0).eval()  # odds within -2 and 2


@pytest.fixture
def features() -> ImageFeatures:
    return ImageFeatures(torch.randn(1, DIM), torch.randn(1, 1 + 12, DIM))


@pytest.fixture
def pairs() -> torch.Tensor:
    return torch.randn(2 * CLASSES, DIM)


def ask(
    features: ImageFeatures, pairs: torch.Tensor, model: DCLIP | None, threshold: float = 0.5
) -> Prediction:
    return predict_image(
        features, GRID, SIZE, has_global_token=True, texts=pairs[CLASSES:], pairs=pairs,
        model=model, threshold=threshold,
    )  # fmt: skip


def test_presence_is_that_of_the_trained_model_mean_token_included(
    features: ImageFeatures, pairs: torch.Tensor, model: DCLIP
) -> None:
    found = ask(features, pairs, model)
    with torch.no_grad():
        wanted = presence_probability(model(features.local, pairs).pair_logits)[0]
    assert found.presence is not None
    torch.testing.assert_close(found.presence, wanted)


def test_a_pixel_is_background_where_the_winners_own_pair_is_not_sure(
    features: ImageFeatures, pairs: torch.Tensor, model: DCLIP
) -> None:
    sure = ask(features, pairs, model, 0.1).mask.long()
    half = ask(features, pairs, model, 0.5)
    assert sure.min() >= 1  # sigmoid(-2) is above 0.1: every pixel has a class
    is_class = half.mask > 0
    assert 0 < is_class.sum() < is_class.numel()
    assert torch.equal(half.mask.long()[is_class], sure[is_class])
    odds = F.interpolate(half.maps.logit()[None], SIZE, mode="bilinear", align_corners=False)[0]
    own = odds.gather(0, (sure - 1)[None])[0]
    clear = own.abs() > 1e-2  # away from the threshold, where logit(sigmoid) loses digits
    assert torch.equal(is_class[clear], (own > 0)[clear])


def test_only_classes_found_win_pixels_and_without_one_all_is_background(
    features: ImageFeatures, pairs: torch.Tensor, model: DCLIP
) -> None:
    found = ask(features, pairs, model, 0.1)
    assert found.presence is not None
    likely = ((found.presence >= 0.5).nonzero().flatten() + 1).tolist()
    assert 0 < len(likely) < CLASSES
    assert set(found.mask.unique().tolist()) <= set(likely)
    absent = torch.cat([pairs[CLASSES:], pairs[:CLASSES]])  # negatives for positives
    kept = [row for row in range(CLASSES) if row + 1 in likely]
    none = ask_of(features, absent, model, kept)
    assert none.presence is not None
    assert none.presence.max() < 0.5
    assert not none.mask.any()


def ask_of(
    features: ImageFeatures, pairs: torch.Tensor, model: DCLIP, kept: list[int]
) -> Prediction:
    own = torch.cat([pairs[:CLASSES][kept], pairs[CLASSES:][kept]])
    return predict_image(
        features, GRID, SIZE, has_global_token=True, texts=own[len(kept) :], pairs=own, model=model
    )


def test_without_projectors_clip_shares_sum_to_one_and_maps_are_cosines(
    features: ImageFeatures, pairs: torch.Tensor
) -> None:
    found = ask(features, pairs, None)
    assert found.presence is None
    assert float(found.zero_shot.sum()) == pytest.approx(1)
    wanted = F.cosine_similarity(features.local[0, 1 + 5], pairs[CLASSES + 2], dim=0)
    assert float(found.maps[2, 1, 1]) == pytest.approx(float(wanted), abs=1e-6)


def test_values_out_of_range_are_refused(features: ImageFeatures, pairs: torch.Tensor) -> None:
    with pytest.raises(ValueError, match="threshold must lie in"):
        ask(features, pairs, None, 1.0)
    many = torch.randn(510, DIM)
    with pytest.raises(ValueError, match="254 classes, not 255"):
        predict_image(features, GRID, SIZE, has_global_token=True, texts=many[:255], pairs=many)

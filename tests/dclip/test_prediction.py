"""Prediction of one image: presence as in training, and the rule for background."""

from typing import Any

import pytest
import torch
from torch.nn import functional as F

from dclip.backbones import ImageFeatures
from dclip.data.windows import Window
from dclip.logits import presence_probability
from dclip.methods.dclip import DCLIPMethod
from dclip.methods.linear_probe import LinearProbeMethod
from dclip.methods.method import Method, Task
from dclip.methods.settings import LinearProbeSettings, ZeroShotSettings
from dclip.methods.zero_shot import ZeroShot
from dclip.model import DCLIP
from dclip.prediction import Prediction, UntrainedWarning, predict_image
from dclip.projectors import ProjectorSizes
from dclip.segmentation import label_map, min_max

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
    features: ImageFeatures,
    pairs: torch.Tensor,
    model: Method[Any] | DCLIP | None,
    threshold: float = 0.5,
    **more: Any,
) -> Prediction:
    return predict_image(
        features, GRID, SIZE, has_global_token=True, texts=pairs[CLASSES:], pairs=pairs,
        model=model, threshold=threshold, **more,
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


def test_without_a_method_clip_shares_sum_to_one_and_maps_are_cosines(
    features: ImageFeatures, pairs: torch.Tensor
) -> None:
    found = ask(features, pairs, None)
    assert found.presence is None
    assert float(found.zero_shot.sum()) == pytest.approx(1)
    wanted = F.cosine_similarity(features.local[0, 1 + 5], pairs[CLASSES + 2], dim=0)
    assert float(found.maps[2, 1, 1]) == pytest.approx(float(wanted), abs=1e-6)


def test_untrained_classes_are_scored_by_clip_alone_and_win_no_pixel(
    features: ImageFeatures, pairs: torch.Tensor, model: DCLIP
) -> None:
    plain = ask(features, pairs, model, 0.1)
    assert plain.presence is not None
    likely = (plain.presence >= 0.5).nonzero().flatten()
    trained = torch.ones(CLASSES, dtype=torch.bool)
    trained[likely[0]] = False  # the method is sure of it all the same
    with pytest.warns(UntrainedWarning, match="not trained on 1 of 5 classes"):
        found = ask(features, pairs, model, 0.1, trained=trained)
    assert found.presence is not None
    assert found.presence.isnan().tolist() == (~trained).tolist()
    torch.testing.assert_close(found.presence[trained], plain.presence[trained])
    assert int(likely[0]) + 1 not in found.mask.unique().tolist()
    own = int(likely[0])
    cosines = F.cosine_similarity(features.local[0, 1:], pairs[CLASSES + own], dim=1)
    torch.testing.assert_close(found.maps[own].flatten(), cosines)  # CLIP's, not a probability
    torch.testing.assert_close(found.cosine[own], cosines.max())
    torch.testing.assert_close(found.maps[trained], plain.maps[trained])


@pytest.mark.filterwarnings("ignore::dclip.prediction.UntrainedWarning")
def test_where_no_class_was_trained_frozen_clip_answers(
    features: ImageFeatures, pairs: torch.Tensor, model: DCLIP
) -> None:
    none = torch.zeros(CLASSES, dtype=torch.bool)
    found, frozen = ask(features, pairs, model, trained=none), ask(features, pairs, None)
    assert torch.equal(found.mask, frozen.mask)
    assert torch.equal(found.maps, frozen.maps)
    assert found.presence is not None
    assert found.presence.isnan().all()
    asked = ask(features, pairs, model, trained=none, untrained_probability=True)
    assert torch.equal(asked.mask, frozen.mask)
    torch.testing.assert_close(asked.presence, ask(features, pairs, model).presence)


@pytest.mark.parametrize("with_model", [True, False])
def test_masks_of_many_classes_have_32_bits(
    features: ImageFeatures, model: DCLIP, with_model: bool
) -> None:
    many = torch.randn(510, DIM)
    found = predict_image(
        features, GRID, SIZE, has_global_token=True, texts=many[255:], pairs=many,
        model=model if with_model else None, threshold=0.001,
    )  # fmt: skip
    assert found.mask.dtype == torch.int32
    assert 0 <= found.mask.min() <= found.mask.max() <= 255


def test_values_out_of_range_are_refused(features: ImageFeatures, pairs: torch.Tensor) -> None:
    with pytest.raises(ValueError, match="threshold must lie in"):
        ask(features, pairs, None, 1.0)


def test_a_method_that_is_bound_to_its_classes_predicts_them_and_no_others(
    features: ImageFeatures, pairs: torch.Tensor
) -> None:
    names = [f"class {number}" for number in range(CLASSES)]
    method = LinearProbeMethod(LinearProbeSettings(), Task.of_features(names, pairs)).eval()
    torch.nn.init.normal_(method.probe.weight)
    found = ask(features, pairs, method, class_names=names)
    assert found.presence is not None
    with torch.no_grad():
        wanted = method.probe(features.local)[0].sigmoid()
    torch.testing.assert_close(found.presence, wanted)
    with pytest.raises(ValueError, match="and no others"):
        ask(features, pairs, method, class_names=[*names[1:], "x"])


class Thresholdless(DCLIPMethod):
    """The same scores, of which no threshold is to be taken."""

    gives_probabilities = False


def test_of_a_method_without_probabilities_all_trained_classes_compete(
    features: ImageFeatures, pairs: torch.Tensor, model: DCLIP
) -> None:
    names = [f"class {number}" for number in range(CLASSES)]
    method = Thresholdless.around(model, Task.of_features(names, pairs.float()))
    trained = torch.tensor([True, False, True, True, True])
    with pytest.warns(UntrainedWarning, match="the method was not trained on 1 of 5"):
        said = ask(features, pairs, method, 1e-6, trained=trained)
    assert said.presence is None
    assert said.score is not None
    assert said.score.isnan().tolist() == (~trained).tolist()
    assert said.is_located
    # no location is that unlikely, so that the classes share all pixels: as if all were found
    with torch.no_grad():
        scores = method.location_scores(features.local[:, 1:])[:, trained]
    whole = min_max(scores).reshape(1, 4, *GRID)
    winners = label_map(whole, (Window(0, 0, *SIZE),), SIZE, SIZE).long()
    assert torch.equal(said.mask.long(), trained.nonzero().flatten()[winners] + 1)


def test_a_method_without_a_word_on_locations_leaves_them_to_clip(
    features: ImageFeatures, pairs: torch.Tensor
) -> None:
    names = [f"class {number}" for number in range(CLASSES)]
    method = ZeroShot(ZeroShotSettings(), Task.of_features(names, pairs))
    said = ask(features, pairs, method, class_names=names)
    frozen = ask(features, pairs, None)
    assert not said.is_located
    assert torch.equal(said.mask, frozen.mask)
    assert torch.equal(said.maps, frozen.maps)
    assert said.score is not None
    torch.testing.assert_close(said.score.softmax(0), frozen.zero_shot)

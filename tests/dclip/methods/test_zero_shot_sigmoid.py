"""Frozen CLIPs that were trained by a sigmoid (SigLIP): their scores have a zero point."""

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from dclip.backbones import ImageFeatures
from dclip.fitting.batches import Batch
from dclip.logits import Sigmoid, kept_sigmoid, sigmoid_of, sigmoid_scores
from dclip.methods.method import Task
from dclip.methods.settings import ZeroShotSettings
from dclip.methods.zero_shot import ZeroShot
from dclip.metrics import f1_scores
from dclip.prediction import predict_image

SIGLIP = Sigmoid(112.0, -16.5)  # about what the released ones came to
# cosines of 0.8 and 0.1 with the two classes, and of 0 and 0.6
IMAGES = torch.tensor([[0.8, 0.1, 0.35**0.5], [0.0, 0.6, 0.8]])
TEXTS = torch.eye(3)[:2]


def _task(sigmoid: Sigmoid | None) -> Task:
    return replace(Task.of_features(("dog", "cat"), torch.cat([-TEXTS, TEXTS])), sigmoid=sigmoid)


def _batch() -> Batch:
    return Batch(IMAGES[:, None], torch.empty(0, 0, dtype=torch.int8), embedding=IMAGES)


def test_zero_shot_says_there_where_the_sigmoid_does() -> None:
    """By hand: 112 x cosine - 16.5 is 73.1 and -5.3, -16.5 and 50.7."""
    method = ZeroShot(ZeroShotSettings(), _task(SIGLIP))

    scores = method.scores(_batch())

    expected = torch.tensor([[73.1, -5.3], [-16.5, 50.7]]).sigmoid()
    torch.testing.assert_close(scores, expected, rtol=1e-4, atol=1e-9)
    assert method.tells_probabilities()
    labels = torch.tensor([[1, 0], [0, 1]], dtype=torch.int8)
    assert f1_scores(scores, labels, threshold=0.5).of1 == 1.0


def test_one_without_a_bias_scores_as_before() -> None:
    method = ZeroShot(ZeroShotSettings(), _task(None))

    torch.testing.assert_close(method.scores(_batch()), 100 * IMAGES[:, :2])
    assert not method.tells_probabilities()


def test_predictions_tell_the_probability_beside_the_share() -> None:
    features = ImageFeatures(IMAGES[:1], IMAGES[:1, None].expand(1, 4, 3))
    pairs = torch.cat([-TEXTS, TEXTS])

    with_bias, without = (
        predict_image(
            features, (2, 2), (8, 8), has_global_token=False, texts=TEXTS, pairs=pairs, sigmoid=own
        )
        for own in (SIGLIP, None)
    )

    assert without.clip_presence is None
    assert with_bias.clip_presence is not None
    torch.testing.assert_close(
        with_bias.clip_presence, sigmoid_scores(IMAGES[:1], TEXTS, SIGLIP)[0]
    )
    torch.testing.assert_close(with_bias.zero_shot, without.zero_shot)
    assert torch.equal(with_bias.mask, without.mask)


def test_scale_and_bias_are_those_of_the_backbone_or_of_features() -> None:
    siglip = SimpleNamespace(logit_scale=torch.tensor(112.0), logit_bias=torch.tensor(-16.5))
    clip = SimpleNamespace(logit_scale=torch.tensor(100.0), logit_bias=None)

    assert sigmoid_of(siglip) == SIGLIP
    assert sigmoid_of(clip) is None
    assert sigmoid_of(SimpleNamespace()) is None
    assert kept_sigmoid({"logit_scale": 112.0, "logit_bias": -16.5}) == SIGLIP
    assert kept_sigmoid({"logit_scale": 100.0, "logit_bias": None}) is None
    assert kept_sigmoid({"backbone": "of an older time"}) is None


def test_a_far_cosine_is_a_probability_of_nearly_nothing() -> None:
    scores = sigmoid_scores(-IMAGES[:1], TEXTS, SIGLIP)

    assert scores[0, 0] == pytest.approx(0)
    assert torch.isfinite(scores).all()

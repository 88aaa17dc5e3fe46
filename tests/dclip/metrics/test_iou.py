"""Intersection over union: by hand, against torchmetrics, and the two measures called mIoU."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torchmetrics.classification import MulticlassJaccardIndex

from dclip.metrics import (
    Confusion,
    class_iou,
    confusion_matrix,
    confusion_pairs,
    image_miou_paper,
    leakage,
    miou,
    pixel_accuracy,
)

CLASSES = 5


def masks(seed: int, images: int = 6) -> tuple[Tensor, Tensor]:
    """Predictions that are right half of the time, and targets, a tenth of them ignored."""
    generator = torch.Generator().manual_seed(seed)

    def draw(high: int) -> Tensor:
        return torch.randint(0, high, (images, 12, 9), generator=generator)

    targets = draw(CLASSES)
    predictions = torch.where(draw(2) == 0, targets, draw(CLASSES))
    targets[draw(10) == 0] = 255
    return predictions.to(torch.uint8), targets.to(torch.uint8)


def of_image(prediction: Tensor, target: Tensor, background: int | None) -> tuple[float, float]:
    counts = confusion_matrix(prediction, target, num_classes=CLASSES)
    predicted = torch.bincount(prediction.flatten().long(), minlength=CLASSES) > 0
    return image_miou_paper(counts, predicted, background=background)


def test_counts_and_scores_of_a_small_mask_by_hand() -> None:
    # true      0 0 0 1 1 1 2 .      class 0: 2 hits of 3, 1 taken by 1; none wrongly called 0
    # predicted 0 0 1 1 1 2 2 2      class 1: 2 hits of 3, 1 taken by 2; 1 wrongly called 1
    target = torch.tensor([0, 0, 0, 1, 1, 1, 2, 255])
    prediction = torch.tensor([0, 0, 1, 1, 1, 2, 2, 2])
    counts = confusion_matrix(prediction, target, num_classes=4)
    assert counts.tolist() == [[2, 1, 0, 0], [0, 2, 1, 0], [0, 0, 1, 0], [0, 0, 0, 0]]
    # IoU 2/3, 2/4, 1/2; class 3 is nowhere and has no share
    assert class_iou(counts)[:3].tolist() == pytest.approx([2 / 3, 2 / 4, 1 / 2])
    assert math.isnan(class_iou(counts)[3])
    assert miou(counts) == pytest.approx((2 / 3 + 1 / 2 + 1 / 2) / 3)
    assert pixel_accuracy(counts) == pytest.approx(5 / 7)
    assert confusion_pairs(counts, largest=2) == [
        Confusion(0, 1, pytest.approx(1 / 3), 1),
        Confusion(1, 2, pytest.approx(1 / 3), 1),
    ]


def test_miou_is_torchmetrics_jaccard_index_over_the_set() -> None:
    predictions, targets = masks(0)
    oracle = MulticlassJaccardIndex(CLASSES, average="macro", ignore_index=255)
    for prediction, target in zip(predictions, targets, strict=True):
        oracle.update(prediction[None].long(), target[None].long())
    counts = confusion_matrix(predictions, targets, num_classes=CLASSES)
    assert miou(counts) == pytest.approx(float(oracle.compute()), abs=1e-6)


@pytest.mark.parametrize("seed", range(3))
def test_miou_paper_is_what_the_scripts_read_off_torchmetrics(seed: int) -> None:
    predictions, targets = masks(seed)
    predictions[0] = 2  # of the other classes none is predicted
    predictions[1] = 0  # background alone: an IoU of 0 is all there is
    oracle = MulticlassJaccardIndex(CLASSES, average=None, ignore_index=0)
    for prediction, target in zip(predictions.long(), targets.long(), strict=True):
        scores = oracle(prediction[None], torch.where(target == 255, 0, target)[None])
        ours = of_image(prediction, target, background=0)
        assert ours[0] == pytest.approx(float(scores[prediction.unique()].mean()), abs=1e-6)
        positive = float(scores[scores > 0].mean())
        assert ours[1] == pytest.approx(positive, abs=1e-6, nan_ok=True)


def test_the_two_measures_differ_by_when_they_average_and_over_which_classes() -> None:
    # first image  a a a b -> a a a a: IoU of a 3/4; b is missed, which only miou counts
    # second image b b b b -> b b b b
    # over the set IoU of a 3/4, of b 4/5
    first = torch.tensor([[0, 0, 0, 0]]), torch.tensor([[0, 0, 0, 1]])
    second = torch.tensor([[1, 1, 1, 1]]), torch.tensor([[1, 1, 1, 1]])
    counts = [confusion_matrix(*pair, num_classes=2) for pair in (first, second)]
    assert miou(counts[0] + counts[1]) == pytest.approx((3 / 4 + 4 / 5) / 2)
    per_image = [
        image_miou_paper(count, torch.tensor(predicted)).miou_paper
        for count, predicted in zip(counts, ([True, False], [False, True]), strict=True)
    ]
    assert per_image == pytest.approx([3 / 4, 1.0])
    # one class an image, and predicted alone: then averaging is all that differs, and for one
    # image even that does not
    assert miou(counts[1]) == per_image[1]


def test_what_is_predicted_on_background_costs_miou_and_not_the_papers_iou() -> None:
    # true 0 0 0 1, predicted 1 1 1 1: IoU of 1 is 1/4 with background counted, 1 without
    counts = confusion_matrix(torch.tensor([1] * 4), torch.tensor([0, 0, 0, 1]), num_classes=2)
    predicted = torch.tensor([False, True])
    assert class_iou(counts).tolist() == [0.0, 0.25]
    assert image_miou_paper(counts, predicted, background=0) == (1.0, 1.0)
    assert image_miou_paper(counts, predicted) == (0.25, 0.25)


@given(st.integers(0, 1000), st.lists(st.integers(1, 5), max_size=3))
def test_parts_of_a_set_add_up_to_the_whole_however_it_is_cut(seed: int, cuts: list[int]) -> None:
    predictions, targets = masks(seed)
    whole = confusion_matrix(predictions, targets, num_classes=CLASSES)
    parts = [
        confusion_matrix(prediction, target, num_classes=CLASSES)
        for prediction, target in zip(
            predictions.tensor_split(sorted(cuts)), targets.tensor_split(sorted(cuts)), strict=True
        )
    ]
    assert torch.equal(torch.stack(parts).sum(0), whole)


def test_leakage_by_hand() -> None:
    # 4 pixels of each class; of 0 two are taken for 1, which is most like it; 2 has no pixel
    counts = torch.tensor([[2, 2, 0], [0, 4, 0], [0, 0, 0]])
    like = torch.tensor([[1.0, 0.9, 0.1], [0.9, 1.0, 0.5], [0.1, 0.5, 1.0]])
    # I: 2/4, 4/6. J: P_1 has 6 pixels, |P_1 n R_0| / |P_1 u R_0| = 2/8; P_0 and R_1 are apart
    result = leakage(counts, like, neighbours=1)
    assert result.target_iou == pytest.approx((1 / 2 + 2 / 3) / 2)
    assert result.leaked_iou == pytest.approx((2 / 8 + 0) / 2)
    harmonic = [2 * 0.5 * 0.75 / 1.25, 2 * (2 / 3) / (2 / 3 + 1)]
    assert result.harmonic_mean == pytest.approx(sum(harmonic) / 2)
    # with more neighbours than there are classes, all the others: J is averaged over two
    assert leakage(counts, like, neighbours=9).leaked_iou == pytest.approx((2 / 8) / 2 / 2)


def test_perfect_masks_leak_nothing_and_swapped_classes_all() -> None:
    eye = torch.eye(2)
    assert leakage(torch.tensor([[5, 0], [0, 7]]), eye) == (1.0, 0.0, 1.0)
    assert leakage(torch.tensor([[0, 5], [7, 0]]), eye) == (0.0, 1.0, 0.0)


def test_an_empty_count_is_nan_not_a_score() -> None:
    counts = confusion_matrix(torch.tensor([1]), torch.tensor([255]), num_classes=2)
    assert math.isnan(miou(counts))
    assert math.isnan(pixel_accuracy(counts))


@pytest.mark.parametrize(
    ("prediction", "target", "message"),
    [(3, 0, "prediction 3 is none of the 3"), (0, 7, "target 7 is none of the 3")],
)
def test_a_class_out_of_range_is_refused(prediction: int, target: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        confusion_matrix(torch.tensor([prediction]), torch.tensor([target]), num_classes=3)


def test_a_prediction_where_nothing_is_counted_may_be_anything() -> None:
    counts = confusion_matrix(torch.tensor([9, 1]), torch.tensor([255, 1]), num_classes=2)
    assert counts.tolist() == [[0, 0], [0, 1]]

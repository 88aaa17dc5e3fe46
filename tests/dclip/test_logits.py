"""Logits against a plain loop over the equation, and in the limits where they are known."""

import math
from collections.abc import Callable

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from dclip.logits import (
    pair_logits,
    pool_locations,
    pooled_linear_logits,
    pooled_pair_logits,
    positive_pair_logits,
    presence_probability,
    similarity_maps,
    zero_shot_scores,
)


def cosine(first: Tensor, second: Tensor) -> float:
    dot = sum(a * b for a, b in zip(first.tolist(), second.tolist(), strict=True))
    return dot / math.hypot(*first.tolist()) / math.hypot(*second.tolist())


def pair_logits_by_loops(images: Tensor, texts: Tensor, a: float, b: float) -> Tensor:
    num_classes = len(texts) // 2
    logits = torch.zeros(len(images), 2, num_classes, dtype=torch.float64)
    for i, locations in enumerate(images):
        for k, text in enumerate(texts):
            local = [a * cosine(location, text) for location in locations]
            exponentials = [math.exp(value) for value in local]
            pooled = sum(
                weight / sum(exponentials) * value
                for weight, value in zip(exponentials, local, strict=True)
            )
            polarity, column = divmod(k, num_classes)
            logits[i, polarity, column] = b * pooled
    return logits


@pytest.mark.parametrize(("a", "b"), [(20.0, 5.0), (1.0, 1.0), (7.0, 0.5)])
def test_pair_logits_are_the_equation(a: float, b: float, device: torch.device) -> None:
    images = torch.randn(3, 5, 4, dtype=torch.float64) * 9
    texts = torch.randn(6, 4, dtype=torch.float64) / 9
    logits = pair_logits(images.to(device), texts.to(device), local_scale=a, pooled_scale=b)
    torch.testing.assert_close(logits.cpu(), pair_logits_by_loops(images, texts, a, b))


def test_a_hand_worked_pair() -> None:
    # Two locations along x and y; the negative prompt looks along x, the positive along x and y.
    # Negative: cosines 1 and 0, o = (20, 0), weights (1, e^-20) / (1 + e^-20).
    # Positive: cosines 1/sqrt(2) twice, so s = 100 / sqrt(2).
    images = torch.tensor([[[2.0, 0.0], [0.0, 3.0]]], dtype=torch.float64)
    texts = torch.tensor([[1.0, 0.0], [4.0, 4.0]], dtype=torch.float64)
    expected = torch.tensor([[[100 / (1 + math.exp(-20))], [100 / math.sqrt(2)]]])
    torch.testing.assert_close(pair_logits(images, texts), expected.double())


def test_one_location_gives_the_scaled_cosine() -> None:
    images = torch.randn(3, 1, 4, dtype=torch.float64)
    texts = torch.randn(6, 4, dtype=torch.float64)
    expected = 5 * 20 * torch.cosine_similarity(images, texts[None], dim=2).reshape(3, 2, 3)
    torch.testing.assert_close(pair_logits(images, texts), expected)


def test_equal_locations_give_what_one_of_them_gives() -> None:
    images = torch.randn(3, 1, 4, dtype=torch.float64)
    texts = torch.randn(6, 4, dtype=torch.float64)
    repeated = images.expand(3, 7, 4)
    torch.testing.assert_close(pair_logits(repeated, texts), pair_logits(images, texts))


def some_dropped(images: int, locations: int) -> Tensor:
    """Locations to drop: another choice in every image, the last location always kept."""
    dropped = torch.rand(images, locations) < 0.5
    dropped[:, -1] = False
    assert dropped.any()
    return dropped


@pytest.mark.parametrize("with_dropped", [False, True])
def test_the_gradient_in_closed_form_is_that_of_finite_differences(with_dropped: bool) -> None:
    images = torch.randn(2, 3, 5, 4, dtype=torch.float64, requires_grad=True)  # of two members
    texts = torch.randn(2, 6, 4, dtype=torch.float64, requires_grad=True)
    dropped = some_dropped(3, 5) if with_dropped else None
    assert torch.autograd.gradcheck(
        lambda i, t: pair_logits(i, t, dropped=dropped, local_scale=3.0), (images, texts)
    )


def test_members_computed_together_are_those_computed_alone() -> None:
    images, texts = torch.randn(2, 3, 5, 4), torch.randn(2, 6, 4)
    together = pair_logits(images, texts)
    for member in range(2):
        torch.testing.assert_close(together[member], pair_logits(images[member], texts[member]))


def test_dropped_locations_might_as_well_not_be_there(device: torch.device) -> None:
    images = torch.randn(4, 7, 5, dtype=torch.float64)
    texts = torch.randn(6, 5, dtype=torch.float64)
    dropped = some_dropped(4, 7)
    images[dropped] *= 1e30
    given = images.to(device), texts.to(device)
    logits = pair_logits(*given, dropped=dropped.to(device)).cpu()
    pooled = pool_locations(*given, dropped=dropped.to(device)).cpu()
    for number, gone in enumerate(dropped):
        kept = images[number, ~gone][None]
        torch.testing.assert_close(logits[number], pair_logits(kept, texts)[0])
        torch.testing.assert_close(pooled[number], pool_locations(kept, texts)[0])


def test_dropping_nothing_changes_no_bit() -> None:
    images, texts = torch.randn(3, 5, 4), torch.randn(6, 4)
    nothing = torch.zeros(3, 5, dtype=torch.bool)
    assert torch.equal(pair_logits(images, texts, dropped=nothing), pair_logits(images, texts))
    assert torch.equal(
        pool_locations(images, texts, dropped=nothing), pool_locations(images, texts)
    )


@pytest.mark.parametrize("pool", [pair_logits, pool_locations])
def test_dropped_locations_get_no_gradient_and_others_a_finite_one(pool: Callable) -> None:  # type: ignore[type-arg]
    images = torch.randn(4, 7, 5, requires_grad=True)
    dropped = some_dropped(4, 7)
    pool(images, torch.randn(6, 5), dropped=dropped).square().sum().backward()
    assert images.grad is not None
    assert (images.grad[dropped] == 0).all()
    assert (images.grad[~dropped] != 0).any()
    assert images.grad.isfinite().all()


def test_a_flat_softmax_averages_the_cosines() -> None:
    # As a -> 0 with a b = 1 all weights become equal.
    images = torch.randn(2, 5, 4, dtype=torch.float64)
    texts = torch.randn(6, 4, dtype=torch.float64)
    logits = pair_logits(images, texts, local_scale=1e-9, pooled_scale=1e9)
    expected = similarity_maps(images, texts).mean(dim=2).reshape(2, 2, 3)
    torch.testing.assert_close(logits, expected)


def test_a_sharp_softmax_takes_the_best_location_of_each_polarity() -> None:
    images = torch.randn(2, 5, 4, dtype=torch.float64)
    texts = torch.randn(6, 4, dtype=torch.float64)
    logits = pair_logits(images, texts, local_scale=1e6, pooled_scale=1e-6)
    expected = similarity_maps(images, texts).amax(dim=2).reshape(2, 2, 3)
    torch.testing.assert_close(logits, expected)


@given(seed=st.integers(0, 2**32), locations=st.integers(1, 9))
def test_the_order_of_locations_does_not_matter(seed: int, locations: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    images = torch.randn(2, locations, 4, generator=generator, dtype=torch.float64)
    texts = torch.randn(6, 4, generator=generator, dtype=torch.float64)
    order = torch.randperm(locations, generator=generator)
    torch.testing.assert_close(pair_logits(images[:, order], texts), pair_logits(images, texts))


@given(seed=st.integers(0, 2**32), exponent=st.integers(-18, 18))
def test_logits_stay_within_a_hundred_at_any_length_of_features(seed: int, exponent: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    texts = torch.randn(6, 4, generator=generator)
    images = torch.cat((texts, -texts, torch.randn(3, 4, generator=generator)))[None]
    logits = pair_logits(10.0**exponent * images, texts)
    # A unit vector in float32 is off by a few parts in 1e7.
    assert logits.abs().max() <= 100 * (1 + 1e-6)


def test_classes_do_not_see_each_other() -> None:
    images, texts = torch.randn(2, 5, 4), torch.randn(6, 4)
    alone = pair_logits(images, texts[[1, 4]])
    torch.testing.assert_close(pair_logits(images, texts)[:, :, 1:2], alone)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_features_of_zeros_give_zero_logits_and_no_nan(dtype: torch.dtype) -> None:
    images = torch.zeros(1, 3, 4, dtype=dtype, requires_grad=True)
    texts = torch.zeros(2, 4, dtype=dtype, requires_grad=True)
    logits = pair_logits(images, texts)
    logits.sum().backward()
    assert torch.equal(logits, torch.zeros(1, 2, 1))
    assert images.grad.isfinite().all()
    assert texts.grad.isfinite().all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_features_are_compared_in_float32(dtype: torch.dtype) -> None:
    images, texts = torch.randn(2, 5, 4).to(dtype), torch.randn(6, 4).to(dtype)
    assert torch.equal(pair_logits(images, texts), pair_logits(images.float(), texts.float()))


def test_gradients_of_the_logits_are_those_of_the_equation() -> None:
    images = torch.randn(2, 3, 4, dtype=torch.float64, requires_grad=True)
    texts = torch.randn(4, 4, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(pair_logits, (images, texts))


def test_an_odd_number_of_prompts_is_refused() -> None:
    with pytest.raises(ValueError, match="even number of text features, got 3"):
        pair_logits(torch.randn(1, 2, 4), torch.randn(3, 4))
    with pytest.raises(ValueError, match="even number of text features, got 3"):
        pooled_pair_logits(torch.randn(1, 3, 4), torch.randn(3, 4))


def test_images_without_locations_are_refused() -> None:
    for function in (pair_logits, pool_locations):
        with pytest.raises(ValueError, match="no location"):
            function(torch.randn(1, 0, 4), torch.randn(2, 4))


def test_presence_is_the_softmax_of_the_pair() -> None:
    logits = 10 * torch.randn(4, 2, 3, dtype=torch.float64)
    torch.testing.assert_close(presence_probability(logits), logits.softmax(dim=1)[:, 1])


def test_presence_is_finite_and_certain_at_extreme_logits() -> None:
    logits = torch.tensor([[[-1e30, 1e30], [1e30, -1e30]]])
    assert presence_probability(logits).tolist() == [[1.0, 0.0]]


def test_presence_of_half_precision_logits_is_computed_after_widening() -> None:
    logits = torch.tensor([[[-60000.0], [60000.0]]], dtype=torch.float16)
    assert presence_probability(logits).tolist() == [[1.0]]


def test_zero_shot_scores_are_scaled_cosines() -> None:
    embedding, features = torch.randn(3, 4) * 8, torch.randn(2, 4) / 8
    expected = 50 * torch.cosine_similarity(embedding[:, None], features[None], dim=2)
    torch.testing.assert_close(zero_shot_scores(embedding, features, logit_scale=50), expected)


def test_similarity_maps_are_cosines_by_class_and_location() -> None:
    images, texts = torch.randn(2, 5, 4), torch.randn(3, 4)
    maps = similarity_maps(images, texts)
    assert maps[1, 2, 4].item() == pytest.approx(cosine(images[1, 4], texts[2]), abs=1e-6)


def test_pooling_gathers_the_location_a_text_looks_for() -> None:
    # Unit locations along x and y; at scale 20 a text along x gives y the weight e^-20.
    images = torch.tensor([[[9.0, 0.0], [0.0, 0.1]]], dtype=torch.float64)
    texts = torch.tensor([[1.0, 0.0], [1.0, 1.0]], dtype=torch.float64)
    pooled = pool_locations(images, texts)
    little = math.exp(-20) / (1 + math.exp(-20))
    expected = torch.tensor([[[1 - little, little], [0.5, 0.5]]], dtype=torch.float64)
    torch.testing.assert_close(pooled, expected)


def test_pooled_logits_compare_each_prompt_with_its_own_feature() -> None:
    pooled, texts = torch.randn(2, 4, 3), torch.randn(4, 3)
    logits = pooled_pair_logits(pooled, texts)
    expected = 100 * torch.cosine_similarity(pooled, texts[None], dim=2).reshape(2, 2, 2)
    torch.testing.assert_close(logits, expected)


def positive_pair_logits_by_steps(
    images: Tensor, texts: Tensor, dropped: Tensor | None = None
) -> Tensor:
    """The equation step by step, differentiated by autograd."""
    cosines = (
        torch.nn.functional.normalize(images, dim=-1)
        @ torch.nn.functional.normalize(texts, dim=-1).mT
    )
    absent, present = (20 * cosines).chunk(2, dim=-1)
    seen = present if dropped is None else present.masked_fill(dropped[..., None], -math.inf)
    weights = seen.softmax(dim=-2)
    return 5 * torch.stack([(weights * absent).sum(-2), (weights * present).sum(-2)], dim=-2)


@pytest.mark.parametrize("drop", [False, True])
def test_both_polarities_are_pooled_where_the_presence_text_fits(drop: bool) -> None:
    images = torch.randn(3, 5, 4, dtype=torch.float64, requires_grad=True)
    texts = torch.randn(6, 4, dtype=torch.float64, requires_grad=True)
    dropped = torch.rand(3, 5) < 0.4 if drop else None
    found = positive_pair_logits(images, texts, dropped=dropped)
    expected = positive_pair_logits_by_steps(images, texts, dropped)
    torch.testing.assert_close(found, expected)
    # the presence logits are those of texts that pool for themselves
    torch.testing.assert_close(found[:, 1], pair_logits(images, texts, dropped=dropped)[:, 1])
    weight = torch.randn_like(found)
    for ours, theirs in zip(
        torch.autograd.grad((found * weight).sum(), (images, texts)),
        torch.autograd.grad((expected * weight).sum(), (images, texts)),
        strict=True,
    ):
        torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("function", [pair_logits, positive_pair_logits])
@pytest.mark.parametrize("axes", [(None, 0), (0, None), (0, 0)])
def test_trials_that_share_images_or_texts_are_computed_as_each_alone(
    axes: tuple[int | None, int | None], function: Callable[..., Tensor]
) -> None:
    shapes = ((3, 5, 4), (6, 4))
    images, texts = (
        torch.randn(*([] if axis is None else [2]), *shape, dtype=torch.float64).requires_grad_()
        for axis, shape in zip(axes, shapes, strict=True)
    )
    found = torch.func.vmap(function, in_dims=axes)(images, texts)
    alone = torch.stack([
        function(images if axes[0] is None else images[n], texts if axes[1] is None else texts[n])
        for n in range(2)
    ])  # fmt: skip
    torch.testing.assert_close(found, alone)
    weight = torch.randn_like(found)
    for ours, theirs in zip(
        torch.autograd.grad((found * weight).sum(), (images, texts)),
        torch.autograd.grad((alone * weight).sum(), (images, texts)),
        strict=True,
    ):
        torch.testing.assert_close(ours, theirs)


def test_scores_of_a_linear_map_are_pooled_each_by_its_own_softmax() -> None:
    scores = torch.randn(2, 4, 6, dtype=torch.float64)
    found = pooled_linear_logits(scores, pooled_scale=2.0)
    for image in range(2):
        for row in range(6):
            own = scores[image, :, row]
            expected = 2 * float((own.softmax(0) * own).sum())
            assert float(found[image, row // 3, row % 3]) == pytest.approx(expected)
    dropped = torch.tensor([[False, True, True, False]] * 2)
    kept = pooled_linear_logits(scores[:, [0, 3]])
    torch.testing.assert_close(pooled_linear_logits(scores, dropped=dropped), kept)

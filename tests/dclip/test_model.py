"""DCLIP as the composition of its parts."""

import pytest
import torch
from jaxtyping import TypeCheckError

from dclip.logits import pair_logits, pool_locations, similarity_maps
from dclip.model import DCLIP, Aggregation
from dclip.projectors import PROJECTOR_PRESETS, ProjectorSizes

SMALL = ProjectorSizes(embed_dim=6, hidden_dim=5, output_dim=3)


@pytest.mark.parametrize(
    ("preset", "count"), [("rn101", 426_752), ("rn50", 1_705_472), ("rn50_1p2m", 1_246_720)]
)
def test_all_parameters_are_projectors(preset: str, count: int) -> None:
    model = DCLIP(PROJECTOR_PRESETS[preset])
    assert sum(parameter.numel() for parameter in model.parameters()) == count


def test_logits_are_those_of_the_projected_features(device: torch.device) -> None:
    model = DCLIP(SMALL).to(device)
    local, texts = torch.randn(2, 4, 6, device=device), torch.randn(8, 6, device=device)
    output = model(local, texts)
    expected = pair_logits(model.project_images(local), model.project_texts(texts))
    torch.testing.assert_close(output.pair_logits, expected)
    torch.testing.assert_close(output.text_features, model.project_texts(texts))


def test_text_features_are_returned_at_their_own_length() -> None:
    model = DCLIP(SMALL)
    once = model(torch.randn(1, 2, 6), texts := torch.randn(4, 6)).text_features
    # Two bias-free layers around a rectifier scale with their input.
    twice = model(torch.randn(1, 2, 6), 2 * texts).text_features
    torch.testing.assert_close(twice, 2 * once)


def test_both_orders_of_pooling_agree_at_a_single_location() -> None:
    local, texts = torch.randn(3, 1, 6), torch.randn(4, 6)
    first, second = DCLIP(SMALL), DCLIP(SMALL, aggregation="pool_then_project")
    second.load_state_dict(first.state_dict())
    torch.testing.assert_close(
        first(local, texts).pair_logits, second(local, texts).pair_logits, atol=1e-4, rtol=1e-5
    )


@pytest.mark.parametrize("aggregation", ["project_then_pool", "pool_then_project"])
def test_dropped_locations_take_no_part_in_either_order(aggregation: Aggregation) -> None:
    model = DCLIP(SMALL, aggregation=aggregation)
    local, texts = torch.randn(2, 5, 6), torch.randn(4, 6)
    dropped = torch.tensor([[False, True, False, False, True], [True, False, True, True, False]])
    logits = model(local, texts, dropped).pair_logits
    for number, gone in enumerate(dropped):
        alone = model(local[number, ~gone][None], texts).pair_logits[0]
        torch.testing.assert_close(logits[number], alone)


def test_pooling_first_looks_where_clip_looks() -> None:
    model = DCLIP(SMALL, aggregation="pool_then_project", local_scale=3.0, pooled_scale=2.0)
    local, texts = torch.randn(2, 5, 6), torch.randn(4, 6)
    weights = (3.0 * similarity_maps(local, texts)).softmax(dim=2)
    unit_local = torch.nn.functional.normalize(local, dim=2)
    pooled = torch.einsum("ikl,ild->ikd", weights, unit_local)
    torch.testing.assert_close(pool_locations(local, texts, local_scale=3.0), pooled)
    cosines = torch.cosine_similarity(
        model.project_images(pooled), model.project_texts(texts)[None], dim=2
    )
    expected = (6.0 * cosines).reshape(2, 2, 2)
    torch.testing.assert_close(model(local, texts).pair_logits, expected)


def test_scales_reach_the_logits() -> None:
    model = DCLIP(SMALL, local_scale=2.0, pooled_scale=1.5)
    local, texts = torch.randn(2, 4, 6), torch.randn(4, 6)
    expected = pair_logits(
        model.project_images(local), model.project_texts(texts), local_scale=2.0, pooled_scale=1.5
    )
    torch.testing.assert_close(model(local, texts).pair_logits, expected)


def test_training_mode_changes_nothing_while_batch_norm_is_frozen() -> None:
    model = DCLIP(SMALL)
    local, texts = torch.randn(2, 4, 6), torch.randn(4, 6)
    trained = model.train()(local, texts)
    evaluated = model.eval()(local, texts)
    assert torch.equal(trained.pair_logits, evaluated.pair_logits)


@pytest.mark.parametrize("aggregation", ["project_then_pool", "pool_then_project"])
def test_every_parameter_receives_a_gradient(aggregation: str) -> None:
    model = DCLIP(SMALL, aggregation=aggregation).train()
    output = model(torch.randn(3, 4, 6), torch.randn(8, 6))
    output.pair_logits.square().sum().backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().sum() > 0, name


def test_a_model_restored_from_its_state_gives_the_same_logits() -> None:
    model, restored = DCLIP(SMALL), DCLIP(SMALL)
    local, texts = torch.randn(2, 4, 6), torch.randn(4, 6)
    restored.load_state_dict(model.state_dict())
    assert torch.equal(restored(local, texts).pair_logits, model(local, texts).pair_logits)


def test_features_of_another_backbone_are_refused() -> None:
    model = DCLIP(SMALL)
    with pytest.raises(ValueError, match="image features have width 7, the projector expects 6"):
        model.project_images(torch.randn(2, 4, 7))
    with pytest.raises(ValueError, match="text features have width 7, the projector expects 6"):
        model.project_texts(torch.randn(4, 7))


def test_settings_without_a_meaning_are_refused() -> None:
    # With type checks on, as in these tests, the unknown word does not reach the function itself.
    with pytest.raises((ValueError, TypeCheckError)):
        DCLIP(SMALL, aggregation="pool")
    for scales in ({"local_scale": 0.0}, {"pooled_scale": -1.0}, {"local_scale": float("nan")}):
        with pytest.raises(ValueError, match="scales must be above 0"):
            DCLIP(SMALL, **scales)

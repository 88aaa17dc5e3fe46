"""Sizes of the projectors, and a BatchNorm that stays frozen."""

import inspect

import pytest
import torch
from torch.nn import functional as F

from dclip.methods.dclip import align, build_model
from dclip.methods.settings import DCLIPSettings
from dclip.projectors import PROJECTOR_PRESETS, ImageProjector, ProjectorSizes, TextProjector

SMALL = ProjectorSizes(embed_dim=6, hidden_dim=5, output_dim=3)


@pytest.mark.parametrize(
    ("preset", "count"), [("rn101", 426_752), ("rn50", 1_705_472), ("rn50_1p2m", 1_246_720)]
)
def test_presets_have_the_published_number_of_parameters(preset: str, count: int) -> None:
    sizes = PROJECTOR_PRESETS[preset]
    modules = (TextProjector(sizes), ImageProjector(sizes))
    built = sum(parameter.numel() for module in modules for parameter in module.parameters())
    assert built == sizes.parameter_count == count


def test_sizes_for_a_known_width_are_the_preset() -> None:
    assert ProjectorSizes.for_embed_dim(512) == PROJECTOR_PRESETS["rn101"]
    assert ProjectorSizes.for_embed_dim(1024) == PROJECTOR_PRESETS["rn50"]
    assert ProjectorSizes.for_embed_dim(1024, output_dim=256) == PROJECTOR_PRESETS["rn50_1p2m"]


@pytest.mark.parametrize(
    ("width", "hidden", "output"),
    [(768, 576, 384), (1152, 864, 576), (1280, 960, 640), (1536, 1152, 768)],
)
def test_other_widths_have_the_published_proportions(width: int, hidden: int, output: int) -> None:
    assert ProjectorSizes.for_embed_dim(width) == ProjectorSizes(width, hidden, output)


@torch.no_grad()
@pytest.mark.parametrize("width", [1152, 1536])
def test_an_aligned_start_carries_texts_to_where_the_text_projector_does(width: int) -> None:
    torch.manual_seed(0)
    model = build_model(DCLIPSettings(), width)
    before = model.image_projector.output.weight.norm()
    # as texts are, much alike: a common direction and a tenth of their own
    texts = F.normalize(torch.randn(1, width) + 0.1 * torch.randn(40, width), dim=1).double()

    align(model, texts)

    carried = model.image_projector(texts.float())
    wanted = model.project_texts(texts.float(), statistics="running")
    assert carried.shape == (40, width // 2)
    # but for a ridge of a ten-thousandth
    assert F.cosine_similarity(carried, wanted).min() > 0.999
    # images in other directions keep their cosines, up to chance
    images = F.normalize(torch.randn(20, width), dim=1)
    kept = F.normalize(model.image_projector(images), dim=1)
    assert float((kept @ kept.T - images @ images.T).abs().max()) < 6 / (width // 2) ** 0.5
    # float32 sums a million squares
    torch.testing.assert_close(
        model.image_projector.output.weight.norm(), before, rtol=1e-4, atol=0
    )


@pytest.mark.parametrize("widths", [(0, 1, 1), (4, 0, 1), (4, 1, -1)])
def test_a_width_below_one_is_refused(widths: tuple[int, int, int]) -> None:
    with pytest.raises(ValueError, match="at least 1"):
        ProjectorSizes(*widths)
    with pytest.raises(ValueError, match="at least 1"):
        ProjectorSizes.for_embed_dim(8, output_dim=0)


def test_untrained_text_projector_is_two_linear_maps_with_a_rectifier_between() -> None:
    projector = TextProjector(SMALL)
    texts = torch.randn(4, 6)
    # Running statistics are still mean 0, variance 1, so BatchNorm only divides by its epsilon.
    hidden = F.relu(texts @ projector.hidden.weight.T / (1 + 1e-5) ** 0.5)
    torch.testing.assert_close(projector(texts), hidden @ projector.output.weight.T)


def test_image_projector_maps_each_location_alone_and_is_linear() -> None:
    projector = ImageProjector(SMALL)
    local = torch.randn(2, 4, 6)
    torch.testing.assert_close(projector(local)[1, 2], projector(local[1, 2]))
    torch.testing.assert_close(projector(3 * local), 3 * projector(local))


def test_frozen_batch_norm_projects_alike_in_training_and_evaluation() -> None:
    projector = TextProjector(SMALL)
    texts = torch.randn(4, 6)
    trained = projector.train()(texts)
    assert projector.training
    assert not projector.batch_norm.training
    assert torch.equal(trained, projector.eval()(texts))
    assert torch.equal(projector.batch_norm.running_mean, torch.zeros(5))
    assert torch.equal(projector.batch_norm.running_var, torch.ones(5))


def test_frozen_batch_norm_still_trains_its_scale_and_shift() -> None:
    projector = TextProjector(SMALL).train()
    projector(torch.randn(4, 6)).square().sum().backward()
    assert projector.batch_norm.weight.grad.abs().sum() > 0
    assert projector.batch_norm.bias.grad.abs().sum() > 0


def test_unfrozen_batch_norm_follows_the_mode() -> None:
    projector = TextProjector(SMALL, freeze_batch_norm=False)
    texts = torch.randn(8, 6)
    projector.train()(texts)
    assert projector.batch_norm.running_mean.abs().sum() > 0
    assert not torch.allclose(projector.train()(texts), projector.eval()(texts))


def test_unknown_statistics_are_refused() -> None:
    with pytest.raises(ValueError, match="statistics must be"):
        inspect.unwrap(TextProjector.forward)(
            TextProjector(SMALL), torch.ones(2, 6), statistics="eval"
        )


@pytest.mark.parametrize("freeze", [True, False])
@pytest.mark.parametrize("mode", [True, False])
def test_asking_for_statistics_overrides_the_mode_and_changes_nothing(
    freeze: bool, mode: bool
) -> None:
    projector = TextProjector(SMALL, freeze_batch_norm=freeze)
    projector.batch_norm.running_mean.normal_()
    projector.batch_norm.running_var.uniform_(1, 2)
    texts = torch.randn(8, 6)
    reference = TextProjector(SMALL, freeze_batch_norm=False)
    reference.load_state_dict(projector.state_dict())
    by_running = reference.eval()(texts)
    by_batch = reference.train()(texts)

    projector.train(mode)
    before = {name: value.clone() for name, value in projector.state_dict().items()}
    torch.testing.assert_close(projector(texts, statistics="running"), by_running)
    torch.testing.assert_close(projector(texts, statistics="batch"), by_batch)
    assert projector.training == mode
    for name, value in projector.state_dict().items():
        assert torch.equal(value, before[name]), name

"""The linear probe recovers what is linear, and nothing depends on the scale of the features."""

from collections.abc import Callable, Iterable

import pytest
import torch
from torch import Tensor

from dclip.methods.linear_probe import LinearProbe, fit_linear_probe
from dclip.metrics.average_precision import mean_average_precision

Batch = tuple[Tensor, Tensor]


def planted(num_images: int, *, seed: int = 0) -> Batch:
    """Noise locations; a present class marks one random location with its own direction."""
    generator = torch.Generator().manual_seed(seed)
    directions = torch.linalg.qr(torch.randn(8, 8, generator=torch.Generator().manual_seed(9))).Q
    local = torch.randn(num_images, 6, 8, generator=generator)
    labels = torch.randint(0, 2, (num_images, 3), generator=generator)
    for column in range(3):
        location = torch.randint(0, 6, (num_images,), generator=generator)
        marks = 8 * labels[:, column, None] * directions[column]
        local[torch.arange(num_images), location] += marks
    return local, labels


def in_batches(data: Batch, size: int = 32) -> Callable[[], Iterable[Batch]]:
    local, labels = data
    return lambda: zip(local.split(size), labels.split(size), strict=True)


def fit(data: Batch, **settings: object) -> LinearProbe:
    return fit_linear_probe(
        in_batches(data), **{"embed_dim": 8, "num_classes": 3, "epochs": 15, **settings}
    )


def test_an_image_scores_its_best_location() -> None:
    probe = LinearProbe(2, 1)
    with torch.no_grad():
        probe.weight.copy_(torch.tensor([[1.0, -2.0]]))
        probe.bias.fill_(0.5)
    local = torch.tensor([[[1.0, 0.0], [4.0, 1.0], [0.0, 3.0]]])
    assert probe(local).tolist() == [[2.5]]


def test_finds_planted_directions_in_unseen_images(device: torch.device) -> None:
    local, labels = planted(256)
    probe = fit((local.to(device), labels.to(device)))
    unseen, truth = planted(200, seed=1)
    assert mean_average_precision(probe(unseen.to(device)).detach().cpu(), truth) > 0.98
    assert not probe.training


def test_shift_and_scale_of_channels_do_not_matter() -> None:
    local, labels = planted(128)
    shift, scale = 5 * torch.randn(8), torch.logspace(-3, 3, 8)
    plain, moved = fit((local, labels)), fit((local * scale + shift, labels))
    unseen, _ = planted(50, seed=1)
    # float32 features of size 1e3 shifted by 5 keep about 1e-4 of their digits.
    torch.testing.assert_close(moved(unseen * scale + shift), plain(unseen), atol=0.05, rtol=0.01)


def test_a_constant_channel_does_not_disturb() -> None:
    local, labels = planted(128)
    local[..., 0] = 0.1
    probe = fit((local, labels))
    assert probe.weight.isfinite().all()
    assert probe.weight[:, 0].abs().max() < 1


def test_the_same_seed_gives_the_same_probe_and_leaves_the_global_generator_alone() -> None:
    data = planted(64)
    state = torch.random.get_rng_state()
    first, second, other = fit(data, seed=3), fit(data, seed=3), fit(data, seed=4)
    assert torch.equal(first.weight, second.weight)
    assert torch.equal(first.bias, second.bias)
    assert not torch.equal(first.weight, other.weight)
    assert torch.equal(torch.random.get_rng_state(), state)


def test_unknown_labels_teach_nothing() -> None:
    local, labels = planted(64)
    labels[:, 1] = -1
    short, long = (fit((local, labels), epochs=epochs, weight_decay=0.0) for epochs in (1, 5))
    assert torch.equal(short.weight[1], long.weight[1])
    assert not torch.equal(short.weight[0], long.weight[0])


def test_a_batch_without_known_labels_is_harmless() -> None:
    local, labels = planted(64)
    labels[:32] = -1
    assert fit((local, labels), epochs=2).weight.isfinite().all()


def test_half_precision_features_are_accepted() -> None:
    local, labels = planted(64)
    probe = fit((local.half(), labels), epochs=2)
    assert probe.weight.dtype == torch.float32
    assert probe(local.half()).dtype == torch.float32


def test_the_data_is_passed_over_once_more_than_the_epochs() -> None:
    passes = []
    data = planted(32)

    def batches() -> Iterable[Batch]:
        passes.append(None)
        return in_batches(data)()

    fit_linear_probe(batches, embed_dim=8, num_classes=3, epochs=4)
    assert len(passes) == 5


def test_what_cannot_be_fitted_is_refused() -> None:
    data = planted(4)
    with pytest.raises(ValueError, match="no features"):
        fit_linear_probe(list, embed_dim=8, num_classes=3)
    with pytest.raises(ValueError, match=r"\[images, locations, 9\].*\[4, 6, 8\]"):
        fit(data, embed_dim=9)
    with pytest.raises(ValueError, match=r"\[images, 5\].*\[4, 3\]"):
        fit(data, num_classes=5)
    with pytest.raises(ValueError, match="epochs=0"):
        fit(data, epochs=0)
    with pytest.raises(ValueError, match=r"learning_rate=0\.0"):
        fit(data, learning_rate=0.0)

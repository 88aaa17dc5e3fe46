from collections.abc import Callable
from typing import Literal

import pytest
import torch
from torch import Tensor, nn

from dclip.backbones.value_projection import (
    attention_pool_tokens,
    resize_positional_embedding,
    value_projection,
)

Resize = Callable[..., Tensor]


@pytest.mark.parametrize("mode", ["bicubic", "bilinear"])
@pytest.mark.parametrize("grid", [(14, 14), (3, 9), (5, 2), (1, 1)])
def test_resizing_interpolates_over_locations_and_keeps_the_global_row(
    grid: tuple[int, int], mode: Literal["bicubic", "bilinear"], resize_by_matrices: Resize
) -> None:
    embedding = torch.randn(1 + 4 * 5, 6, dtype=torch.float64)
    resized = resize_positional_embedding(embedding, native_grid=(4, 5), grid=grid, mode=mode)
    torch.testing.assert_close(
        resized, resize_by_matrices(embedding, (4, 5), grid, mode), rtol=0, atol=1e-12
    )


def test_resizing_is_bicubic_unless_told_otherwise(resize_by_matrices: Resize) -> None:
    embedding = torch.randn(1 + 3 * 3, 2, dtype=torch.float64)
    resized = resize_positional_embedding(embedding, native_grid=(3, 3), grid=(4, 5))
    torch.testing.assert_close(resized, resize_by_matrices(embedding, (3, 3), (4, 5), "bicubic"))


def test_resizing_to_the_native_grid_changes_nothing() -> None:
    embedding = torch.randn(17, 3)
    assert resize_positional_embedding(embedding, native_grid=(4, 4), grid=(4, 4)) is embedding


def test_resizing_keeps_a_constant_embedding_constant() -> None:
    resized = resize_positional_embedding(torch.ones(10, 2), native_grid=(3, 3), grid=(7, 4))
    torch.testing.assert_close(resized, torch.ones(29, 2))


def test_an_embedding_of_another_grid_is_refused() -> None:
    with pytest.raises(ValueError, match=r"50 rows .* 14 x 14"):
        resize_positional_embedding(torch.zeros(50, 2), native_grid=(14, 14), grid=(7, 7))


def test_pool_tokens_of_a_two_location_map_by_hand() -> None:
    # locations (1, 3) and (5, 7), their mean (3, 5); positions 10, 20, 30 on both channels
    feature_map = torch.tensor([[[[1.0, 5.0]], [[3.0, 7.0]]]])
    positions = torch.tensor([[10.0, 10.0], [20.0, 20.0], [30.0, 30.0]])
    tokens = attention_pool_tokens(feature_map, positions)
    assert tokens.tolist() == [[[13.0, 15.0], [21.0, 23.0], [35.0, 37.0]]]


def test_value_projection_leaves_every_token_to_itself() -> None:
    value, output = nn.Linear(6, 6), nn.Linear(6, 4)
    tokens = torch.randn(2, 5, 6)
    changed = tokens.clone()
    changed[:, 3] += 1
    moved = value_projection(changed, value=value, output=output) - value_projection(
        tokens, value=value, output=output
    )
    assert moved[:, 3].abs().min() > 0
    assert moved[:, [0, 1, 2, 4]].abs().max() == 0

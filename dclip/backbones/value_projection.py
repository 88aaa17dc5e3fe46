r"""Local features from CLIP's last attention block with the attention taken out.

CLIP's ResNet ends in an attention pool, which mixes all locations into one embedding. Its value and
output maps alone carry each location into the joint space by itself, comparable with text features:

.. math:: z_l = W_c (W_v \tilde x_l + b_v) + b_c, \qquad \tilde x_l = x_l + e_l

where :math:`x_0` is the mean of the locations :math:`x_1, \dots, x_{HW}` and :math:`e` the
positional embedding, resized to the grid. DualCoOp and DCLIP train on this form, mean token
included.

References:
    Zhou, Loy, Dai, "Extract Free Dense Labels from CLIP" (MaskCLIP), ECCV 2022, arXiv:2112.01071;
    Sun, Hu, Saenko, "DualCoOp", NeurIPS 2022, arXiv:2206.09541;
    "Efficiently Disentangling CLIP for Multi-Object Perception" (DCLIP), arXiv:2502.02977.
"""

from typing import Literal

import open_clip
import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F


def resize_positional_embedding(
    embedding: Float[Tensor, "tokens width"],
    *,
    native_grid: tuple[int, int],
    grid: tuple[int, int],
    mode: Literal["bicubic", "bilinear"] = "bicubic",
) -> Float[Tensor, "resized width"]:
    """A positional embedding for another grid: row 0 kept, the others interpolated.

    Args:
        embedding: Row 0 for the class or mean token, then one row a location, row by row.
        native_grid: Rows and columns the embedding was learnt for.
        grid: Rows and columns wanted, each at least 1.
        mode: How to interpolate between locations.

    Returns:
        The embedding itself where the grids agree, otherwise a new tensor.

    Raises:
        ValueError: If the embedding does not have 1 + rows * columns rows.

    Example:
        >>> rows = torch.arange(5.0)[:, None]
        >>> resize_positional_embedding(rows, native_grid=(2, 2), grid=(1, 1)).flatten()
        tensor([0.0000, 2.5000])
    """
    if len(embedding) != 1 + native_grid[0] * native_grid[1]:
        raise ValueError(
            f"a positional embedding of {len(embedding)} rows does not belong to a grid of"
            f" {native_grid[0]} x {native_grid[1]} locations and one global token"
        )
    if grid == native_grid:
        return embedding
    global_row, local_rows = embedding[:1], embedding[1:]
    as_image = local_rows.T.reshape(1, -1, *native_grid)
    resized = F.interpolate(as_image, size=grid, mode=mode, align_corners=False)
    return torch.cat([global_row, resized.flatten(2)[0].T])


def attention_pool_tokens(
    feature_map: Float[Tensor, "images width height_ width_"],
    positional_embedding: Float[Tensor, "tokens width"],
) -> Float[Tensor, "images tokens width"]:
    """What enters the attention pool: the mean token, then the locations, positions added.

    Args:
        feature_map: Last map of the ResNet, one vector a location.
        positional_embedding: One row for the mean token and one a location, for this very grid.
    """
    locations = feature_map.flatten(2).transpose(1, 2)
    tokens = torch.cat([locations.mean(dim=1, keepdim=True), locations], dim=1)
    return tokens + positional_embedding


def value_projection(
    tokens: Float[Tensor, "images tokens width"], *, value: nn.Linear, output: nn.Linear
) -> Float[Tensor, "images tokens dim"]:
    """Every token through the value map and the output map of an attention block, each by itself.

    Args:
        tokens: What enters the block, positions added.
        value: The block's value map.
        output: The block's output map, into the joint space.
    """
    projected: Tensor = output(value(tokens))
    return projected


def attention_pool(
    tokens: Float[Tensor, "images tokens width"], pool: open_clip.modified_resnet.AttentionPool2d
) -> Float[Tensor, "images dim"]:
    """CLIP's own pooling of a ResNet: the mean token asks, all tokens answer.

    Args:
        tokens: From :func:`attention_pool_tokens`.
        pool: The tower's last layer; gradients flow where it requires them.

    Returns:
        Global image embeddings, as open_clip's ``encode_image`` gives them.
    """
    tokens = tokens.transpose(0, 1)
    pooled, _ = F.multi_head_attention_forward(
        query=tokens[:1],  # open_clip lets every token ask and keeps the first answer only
        key=tokens,
        value=tokens,
        embed_dim_to_check=tokens.shape[-1],
        num_heads=pool.num_heads,
        in_proj_weight=None,
        in_proj_bias=torch.cat([pool.q_proj.bias, pool.k_proj.bias, pool.v_proj.bias]),
        bias_k=None,
        bias_v=None,
        add_zero_attn=False,
        dropout_p=0.0,
        out_proj_weight=pool.c_proj.weight,
        out_proj_bias=pool.c_proj.bias,
        training=False,
        need_weights=False,
        use_separate_proj_weight=True,
        q_proj_weight=pool.q_proj.weight,
        k_proj_weight=pool.k_proj.weight,
        v_proj_weight=pool.v_proj.weight,
    )
    return pooled[0]

r"""Norm and head of a tower, on the pooled vector and on each location.

Where the norm comes before the mean, or is that of a class token, a location goes the way of the
pooled vector and nothing has to be chosen. Where the norm comes after the mean (ConvNeXt, ViTamin,
CLIPA), a location can be normed in two ways. With :math:`\mu(x)` the mean and :math:`\sigma(x)` the
deviation over channels, gain :math:`g`, bias :math:`b` and :math:`\bar x` the mean of all
locations,

.. math::
    \text{value: } W\left(g \frac{x_l - \mu(x_l)}{\sigma(x_l)} + b\right) \qquad
    \text{affine: } W\left(g \frac{x_l - \mu(x_l)}{\sigma(\bar x)} + b\right)

The first is what FC-CLIP does: each location normed as the head expects it. Its mean is not the
global embedding. The second divides by the deviation of the pooled vector, which makes it an affine
map of :math:`x_l`, so that the mean over locations is the global embedding.

References:
    Yu et al., "Convolutions Die Hard" (FC-CLIP), NeurIPS 2023, arXiv:2308.02487.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import cast

import torch
from jaxtyping import Float
from torch import Tensor, nn


@dataclass(frozen=True)
class LocationHead:
    """What follows the pool, for vectors of any number.

    Attributes:
        norm: The layer norm before the head; None where there is none.
        head: From normed vectors to the space of the texts.
        is_linear: Whether the head is one affine map, so that it may be taken into a mean.
    """

    norm: nn.Module | None
    head: Callable[[Tensor], Tensor]
    is_linear: bool

    def __call__(
        self,
        vectors: Float[Tensor, "images *locations width"],
        *,
        by: Float[Tensor, "images width"] | None = None,
    ) -> Float[Tensor, "images *locations dim"]:
        """Norm and head of vectors, each by itself.

        Args:
            vectors: Pooled ones, or those of locations.
            by: Pooled vectors by whose deviation the locations of an image are divided: kind
                ``affine``. None: each by its own.
        """
        if self.norm is None:
            return self.head(vectors)
        norm = cast(nn.LayerNorm, self.norm)
        if by is None:
            # timm's norm of a map takes channels second; the function takes them last
            normed = nn.functional.layer_norm(
                vectors, norm.normalized_shape, norm.weight, norm.bias, norm.eps
            )
        else:
            centred = vectors - vectors.mean(dim=-1, keepdim=True)
            deviation = torch.sqrt(by.var(dim=-1, correction=0) + norm.eps)
            normed = centred / deviation[:, None, None] * norm.weight + norm.bias
        return self.head(normed.to(vectors.dtype))

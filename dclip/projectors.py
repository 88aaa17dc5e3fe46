"""The trainable maps from CLIP's joint space to ours; the only parameters we learn."""

from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

BatchStatistics = Literal["running", "batch"]
"""Which mean and variance BatchNorm divides by: the stored ones, or those of the rows at hand."""


@dataclass(frozen=True)
class ProjectorSizes:
    """Widths of the two projectors.

    Args:
        embed_dim: Width D of CLIP's joint space, the input of both projectors.
        hidden_dim: Width of the text projector's hidden layer.
        output_dim: Width d' of the projected space, where images and texts meet.

    Raises:
        ValueError: If a width is below 1.

    Example:
        >>> ProjectorSizes.for_embed_dim(512)
        ProjectorSizes(embed_dim=512, hidden_dim=384, output_dim=256)
    """

    embed_dim: int
    hidden_dim: int
    output_dim: int

    def __post_init__(self) -> None:
        if min(self.embed_dim, self.hidden_dim, self.output_dim) < 1:
            raise ValueError(f"projector widths must be at least 1, got {self}")

    @classmethod
    def for_embed_dim(cls, embed_dim: int, output_dim: int | None = None) -> "ProjectorSizes":
        """The published proportions for any backbone: hidden 3/4 D, output D/2.

        Args:
            embed_dim: Width D of CLIP's joint space, at least 2.
            output_dim: Width d' of the projected space; ``None`` takes half of ``embed_dim``.

        Returns:
            Sizes with ``hidden_dim = 3 * embed_dim // 4``.
        """
        if output_dim is None:
            output_dim = embed_dim // 2
        return cls(embed_dim, 3 * embed_dim // 4, output_dim)

    @property
    def parameter_count(self) -> int:
        """Number of trainable parameters of both projectors together."""
        text = self.embed_dim * self.hidden_dim + self.hidden_dim * self.output_dim
        batch_norm = 2 * self.hidden_dim
        image = self.embed_dim * self.output_dim
        return text + batch_norm + image


PROJECTOR_PRESETS = {
    "rn101": ProjectorSizes(embed_dim=512, hidden_dim=384, output_dim=256),
    "rn50": ProjectorSizes(embed_dim=1024, hidden_dim=768, output_dim=512),
    "rn50_1p2m": ProjectorSizes(embed_dim=1024, hidden_dim=768, output_dim=256),
}
"""Published sizes. ``rn101`` (0.4M parameters) also fits ViT-B/16 and ViT-B/32; ``rn50`` is what
the authors' scripts load (1.7M), ``rn50_1p2m`` the reading that gives the paper's 1.2M."""


class TextProjector(nn.Module):
    r"""Text side: linear, BatchNorm, ReLU, linear; the linear maps have no bias.

    The method trains BatchNorm in evaluation mode with its initial running statistics (mean 0,
    variance 1), which leaves of it a learnable scale and shift per channel. ``freeze_batch_norm``
    keeps it so, whatever :meth:`train` is told; scale and shift are trained all the same.

    A residual projector (ours) changes what CLIP says instead of saying it anew. With unit texts
    :math:`u`, a frozen map :math:`R` and the hidden layer :math:`\phi` of :math:`u - \bar u`,

    .. math::
        f(u) = R u + O \, (\phi(u - \bar u) - \bar\phi)

    where :math:`\bar u` and :math:`\bar\phi` are means over the classes at the start. CLIP's texts
    are much alike; without the means every step would move all of them together.

    Args:
        sizes: Widths of the layers.
        freeze_batch_norm: Whether BatchNorm stays in evaluation mode during training.
        residual: Whether it is residual. :func:`dclip.methods.anchored.anchor` gives it
            its start.
    """

    def __init__(
        self, sizes: ProjectorSizes, *, freeze_batch_norm: bool = True, residual: bool = False
    ) -> None:
        super().__init__()
        self.freeze_batch_norm = freeze_batch_norm
        self.residual = residual
        self.hidden = nn.Linear(sizes.embed_dim, sizes.hidden_dim, bias=False)
        # a residual one divides by the deviations of the texts themselves, which are small
        self.batch_norm = nn.BatchNorm1d(sizes.hidden_dim, eps=1e-12 if residual else 1e-5)
        self.output = nn.Linear(sizes.hidden_dim, sizes.output_dim, bias=False)
        self.skip: Tensor
        self.centre: Tensor
        self.resting: Tensor
        if residual:
            self.register_buffer("skip", torch.eye(sizes.output_dim, sizes.embed_dim))
            self.register_buffer("centre", torch.zeros(sizes.embed_dim))
            self.register_buffer("resting", torch.zeros(sizes.hidden_dim))
        self.train()

    def train(self, mode: bool = True) -> "TextProjector":
        """Set training mode, except for a frozen BatchNorm, which stays in evaluation mode."""
        super().train(mode)
        if self.freeze_batch_norm:
            self.batch_norm.eval()
        return self

    def forward(
        self, texts: Float[Tensor, "texts dim"], *, statistics: BatchStatistics | None = None
    ) -> Float[Tensor, "texts output_dim"]:
        """Project text features.

        Args:
            texts: Text features in CLIP's joint space, one row a text.
            statistics: Which statistics BatchNorm uses; ``None`` lets the module's mode decide.
                ``"running"`` and ``"batch"`` leave the module's state as it is, and are for
                looking at a trained projector in either way; ``"batch"`` needs two texts.

        Returns:
            Projected text features, not normalised.

        Raises:
            ValueError: If the statistics are unknown.
        """
        if self.residual:
            unit = F.normalize(texts, dim=-1)
            changed = F.relu(self._normed(self.hidden(unit - self.centre), statistics))
            said: Tensor = unit @ self.skip.mT + self.output(changed - self.resting)
            return said
        projected: Tensor = self.output(F.relu(self._normed(self.hidden(texts), statistics)))
        return projected

    def _normed(
        self, hidden: Float[Tensor, "texts hidden_dim"], statistics: str | None
    ) -> Float[Tensor, "texts hidden_dim"]:
        norm = self.batch_norm
        match statistics:
            case None:
                normed: Tensor = norm(hidden)
                return normed
            case "running":
                return F.batch_norm(
                    hidden,
                    norm.running_mean,
                    norm.running_var,
                    norm.weight,
                    norm.bias,
                    eps=norm.eps,
                )
            case "batch":
                # Without running statistics to update, the module stays as it is.
                return F.batch_norm(
                    hidden, None, None, norm.weight, norm.bias, training=True, eps=norm.eps
                )
            case _:
                raise ValueError(f"statistics must be 'running', 'batch' or None: {statistics!r}")


class ImageProjector(nn.Module):
    """Image side: one linear map without bias, applied to every location alike.

    Args:
        sizes: Widths of the layers.
    """

    def __init__(self, sizes: ProjectorSizes) -> None:
        super().__init__()
        self.output = nn.Linear(sizes.embed_dim, sizes.output_dim, bias=False)

    def forward(self, features: Float[Tensor, "*axes dim"]) -> Float[Tensor, "*axes output_dim"]:
        """Project image features.

        Args:
            features: Image features in CLIP's joint space, any leading axes.

        Returns:
            Projected image features, not normalised.
        """
        projected: Tensor = self.output(features)
        return projected

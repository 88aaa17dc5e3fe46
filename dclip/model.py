"""DCLIP: projectors and logits on top of frozen CLIP features; no loss, no loop, no file."""

from typing import Literal, NamedTuple, get_args

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from dclip.logits import (
    LOCAL_SCALE,
    POOLED_SCALE,
    pair_logits,
    pool_locations,
    pooled_pair_logits,
    pooled_similarity,
)
from dclip.projectors import BatchStatistics, ImageProjector, ProjectorSizes, TextProjector

Aggregation = Literal["project_then_pool", "pool_then_project"]
"""Whether the spatial softmax looks at projected features (the method) or at CLIP's own."""


class DCLIPOutput(NamedTuple):
    """What one forward pass gives to the losses.

    Attributes:
        pair_logits: Absence (index 0) and presence (index 1) logit of every class.
        text_features: Projected features of the prompt pairs, negatives first, not normalised.
    """

    pair_logits: Float[Tensor, "images 2 classes"]
    text_features: Float[Tensor, "pairs output_dim"]


class DCLIP(nn.Module):
    r"""Two small projectors that disentangle the classes of a frozen CLIP.

    Local image features and the features of prompt pairs are projected into a common, smaller
    space; each prompt pools the image where it fits best, and each pair gives two logits.

    With ``aggregation="pool_then_project"`` (an ablation) each prompt pools the unit local
    features by a spatial softmax of their cosines in CLIP's space, and only what it gathered is
    projected and compared. At a single location both orders agree.

    Anchored to ``num_classes`` classes (ours), it starts from what CLIP says itself: the text
    projector is residual, and only presence is asked by a text. With :math:`s` the pooled
    similarity of :func:`dclip.logits.pair_logits` and :math:`n` one frozen text of absence for all
    classes, the logits of class c are

    .. math::
        \ell^+_c = s(x, t_c), \qquad \ell^-_c = \rho \, (s(x, n) - m) + b_c

    where :math:`\rho`, :math:`m` and :math:`b` are buffers, fitted to the training images before
    the first step (:func:`dclip.methods.anchored.calibrate`).

    Args:
        sizes: Widths of the projectors; ``sizes.embed_dim`` is the backbone's.
        aggregation: Order of projection and pooling.
        local_scale: Multiplier of the cosine at each location, above 0.
        pooled_scale: Multiplier of the pooled cosine, above 0.
        freeze_batch_norm: Whether BatchNorm keeps its initial running statistics during
            training, as in the published method.
        num_classes: Number of classes it is anchored to; None: it is not, as published.

    Raises:
        ValueError: If the aggregation is unknown, or not ``project_then_pool`` where it is
            anchored, or a scale is not above 0.

    References:
        Rawlekar et al., "Efficiently Disentangling CLIP for Multi-Object Perception",
        arXiv:2502.02977.

    Example:
        >>> model = DCLIP(ProjectorSizes.for_embed_dim(512))
        >>> sum(parameter.numel() for parameter in model.parameters())
        426752
    """

    def __init__(
        self,
        sizes: ProjectorSizes,
        *,
        aggregation: Aggregation = "project_then_pool",
        local_scale: float = LOCAL_SCALE,
        pooled_scale: float = POOLED_SCALE,
        freeze_batch_norm: bool = True,
        num_classes: int | None = None,
    ) -> None:
        super().__init__()
        if aggregation not in get_args(Aggregation):
            raise ValueError(f"aggregation must be one of {get_args(Aggregation)}: {aggregation!r}")
        if not (local_scale > 0 and pooled_scale > 0):
            raise ValueError(
                f"scales must be above 0, got local_scale={local_scale}, "
                f"pooled_scale={pooled_scale}"
            )
        is_anchored = num_classes is not None
        if is_anchored and aggregation != "project_then_pool":
            raise ValueError("anchored projectors project, then pool")
        self.sizes = sizes
        self.aggregation = aggregation
        self.local_scale = local_scale
        self.pooled_scale = pooled_scale
        self.image_projector = ImageProjector(sizes)
        self.text_projector = TextProjector(
            sizes, freeze_batch_norm=freeze_batch_norm, residual=is_anchored
        )
        self.absent: Tensor
        self.absent_share: Tensor
        self.absent_mean: Tensor
        self.bias: Tensor
        if num_classes is not None:
            self.register_buffer("absent", torch.zeros(sizes.output_dim))
            self.register_buffer("absent_share", torch.ones(()))
            self.register_buffer("absent_mean", torch.zeros(()))
            self.register_buffer("bias", torch.zeros(num_classes))

    def __repr__(self) -> str:
        sizes = self.sizes
        return (
            f"DCLIP({sizes.embed_dim} -> {sizes.output_dim} dimensions, text by way of "
            f"{sizes.hidden_dim}; {sizes.parameter_count} parameters; {self.aggregation}, scales "
            f"{self.local_scale:g} and {self.pooled_scale:g})"
        )

    @property
    def is_anchored(self) -> bool:
        """Whether it starts from what CLIP says, and is calibrated for its classes."""
        return self.text_projector.residual

    def project_images(
        self, local: Float[Tensor, "*axes embed_dim"]
    ) -> Float[Tensor, "*axes output_dim"]:
        """Project local or global image features.

        Args:
            local: Image features in CLIP's joint space, any leading axes.

        Returns:
            Projected image features, not normalised.

        Raises:
            ValueError: If the features are not as wide as the projector.
        """
        self._check_width(local, "image")
        projected: Tensor = self.image_projector(local)
        return projected

    def project_texts(
        self,
        texts: Float[Tensor, "texts embed_dim"],
        *,
        statistics: BatchStatistics | None = None,
    ) -> Float[Tensor, "texts output_dim"]:
        """Project text features.

        Args:
            texts: Text features in CLIP's joint space; training feeds them unnormalised.
            statistics: Which statistics BatchNorm uses; ``None`` lets the module's mode decide
                (see :meth:`dclip.projectors.TextProjector.forward`).

        Returns:
            Projected text features, not normalised.

        Raises:
            ValueError: If the features are not as wide as the projector.
        """
        self._check_width(texts, "text")
        projected: Tensor = self.text_projector(texts, statistics=statistics)
        return projected

    def forward(
        self,
        local: Float[Tensor, "images locations embed_dim"],
        texts: Float[Tensor, "pairs embed_dim"],
        dropped: Bool[Tensor, "images locations"] | None = None,
    ) -> DCLIPOutput:
        """Logits of every image and class, and the projected texts they came from.

        Args:
            local: Local features of the images, unnormalised.
            texts: Text features of the prompt pairs, negatives first, unnormalised.
            dropped: Locations that take no part in the pooling; one at least must stay in every
                image. Left out: none.

        Returns:
            Logits and projected text features.

        Raises:
            ValueError: If features are not as wide as the projectors, there is no location,
                the number of texts is odd, or they are of more or fewer classes than those that
                it is anchored to.
        """
        if self.is_anchored:
            return self._forward_anchored(local, texts, dropped)
        text_features = self.project_texts(texts)
        if self.aggregation == "project_then_pool":
            logits = pair_logits(
                self.project_images(local),
                text_features,
                dropped=dropped,
                local_scale=self.local_scale,
                pooled_scale=self.pooled_scale,
            )
        else:
            pooled = pool_locations(local, texts, dropped=dropped, local_scale=self.local_scale)
            logits = pooled_pair_logits(
                self.project_images(pooled),
                text_features,
                local_scale=self.local_scale,
                pooled_scale=self.pooled_scale,
            )
        return DCLIPOutput(logits, text_features)

    def _forward_anchored(
        self,
        local: Float[Tensor, "images locations embed_dim"],
        texts: Float[Tensor, "pairs embed_dim"],
        dropped: Bool[Tensor, "images locations"] | None,
    ) -> DCLIPOutput:
        if len(texts) != 2 * len(self.bias):
            raise ValueError(
                f"{len(texts)} texts are not the pairs of the {len(self.bias)} classes that these "
                "projectors are anchored to; see dclip.methods.anchored.for_classes"
            )
        positives = self.project_texts(texts[len(self.bias) :])
        pooled = pooled_similarity(
            self.project_images(local),
            torch.cat([positives, self.absent[None]]),
            dropped=dropped,
            local_scale=self.local_scale,
            pooled_scale=self.pooled_scale,
        )
        absence = self.absent_share * (pooled[:, -1:] - self.absent_mean) + self.bias
        return DCLIPOutput(
            torch.stack([absence, pooled[:, :-1]], dim=1),
            torch.cat([self.absent.expand_as(positives), positives]),
        )

    def _check_width(self, features: Tensor, kind: str) -> None:
        """Catch features of another backbone before a matrix product does."""
        if features.shape[-1] != self.sizes.embed_dim:
            raise ValueError(
                f"{kind} features have width {features.shape[-1]}, the projector expects "
                f"{self.sizes.embed_dim}; use features of the backbone it was made for"
            )

"""Images without features: with captions and without classes, none are kept of them."""

from typing import Any

import numpy as np
import torch
from jaxtyping import Float32
from torch import Tensor

from dclip.backbones import Backbone, preparation_of
from pipeline.features.images import AboutImages
from pipeline.features.plan import FeaturePlan


class ImagesAlone:
    """The rows of a split whose images have no classes, in the place of a reader of features.

    Args:
        count: How many images there are, the first of their listing.
        backbone: The frozen CLIP they are for.
        plan: What they are, for whoever writes of it.

    Attributes:
        manifest: What there is to say of them.
        indices: Position of each row in the listing.
        labels: Of no class.
        class_names: None.
    """

    def __init__(self, count: int, backbone: Backbone, plan: FeaturePlan | None = None) -> None:
        side = backbone.resolution
        known: dict[str, Any] = {} if plan is None else {**plan.space, **plan.source}
        spec = {
            "backbone_name": backbone.name,
            "resize": str(preparation_of(backbone)),
            **known,
            "resolution": side,
        }
        self.manifest = AboutImages(spec, backbone.embed_dim, backbone.grid(side, side))
        self.indices = np.arange(count)
        self.labels = torch.zeros(count, 0, dtype=torch.int8)
        self.class_names: tuple[str, ...] = ()

    def text_features(self) -> tuple[Float32[Tensor, "pairs dim"], Float32[Tensor, "classes dim"]]:
        """Of no class."""
        none = torch.zeros(0, self.manifest.dim)
        return none, none

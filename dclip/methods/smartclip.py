"""SmartCLIP's mask on frozen features: each text says which dimensions of an image it looks at."""

from collections.abc import Sequence
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn

from dclip.fitting.batches import Batch, FeatureSource
from dclip.fitting.loop import Loop
from dclip.logits import masked_cosine
from dclip.losses.contrastive import dism_loss, sidm_loss, sparsity
from dclip.methods.adapter_settings import SmartCLIPAdapterSettings
from dclip.methods.adapters import AdapterMethod
from dclip.methods.dclip import align, build_model
from dclip.methods.method import Task
from dclip.methods.settings import DCLIPSettings, MethodSettings
from dclip.metrics import mask_overlap
from dclip.precision import at_least_float32

MaskForm = Literal["hard", "soft"]
"""Masks of 0 and 1 with the gradient of soft ones, or soft ones, the sigmoid of their logits."""


def straight_through_mask(
    logits: Float[Tensor, "*masks dim"], *, form: MaskForm = "hard"
) -> Float[Tensor, "*masks dim"]:
    """Masks of logits.

    Args:
        logits: Above 0 a dimension is open.
        form: ``"hard"``: 1 where the sigmoid is at least one half and 0 elsewhere, with the
            gradient of the sigmoid; ``"soft"``: the sigmoid.

    Example:
        >>> straight_through_mask(torch.tensor([-1.0, 0.0, 2.0]))
        tensor([0., 1., 1.])
    """
    soft = logits.sigmoid()
    if form == "soft":
        return soft
    return (soft >= 0.5).to(soft.dtype) + (soft - soft.detach())  # so that a 1 is exactly 1


class SmartCLIPAdapter(AdapterMethod[SmartCLIPAdapterSettings]):
    """A mask for each class on frozen local features, trained by labels or by captions.

    This is an adapter of ours, not the published system, which trains all of CLIP on captions and
    uses no mask when it is asked: here CLIP is frozen, masks are all that is trained (with
    DCLIP's projectors, if wanted), and they are used for every answer. A mask is a vector for each
    class, or comes from the text by one linear map, where the published one is a transformer block
    over the text's tokens.

    Labels train by ASL on the pooled masked cosines and the mean of the masks. Captions train by
    SIDM and DISM, on the global embeddings, as published; texts are encoded as they are drawn, one
    caption an image in each step, and images without one take no part. Several workers each
    contrast their own share. Scales and offsets are not trained then, so that scores rank images,
    but are no probabilities.

    Args:
        settings: Hyper-parameters.
        task: Classes; with the backbone, where captions train.

    References:
        SmartCLIP, CVPR 2025, as its authors' code has it: masks, SIDM, DISM, sparsity.
    """

    Settings: ClassVar[type[MethodSettings]] = SmartCLIPAdapterSettings

    def __init__(self, settings: SmartCLIPAdapterSettings, task: Task) -> None:
        super().__init__(settings, task)
        self.model = None
        dim = task.dim
        if settings.projectors == "train":
            sizes = DCLIPSettings(hidden_dim=settings.hidden_dim, output_dim=settings.output_dim)
            self.model = build_model(sizes, dim)
            dim = self.model.sizes.output_dim
        # all open: what is compared is CLIP's own, or what the projectors make of it
        if settings.masks == "free":
            shape = len(task.class_names), dim
            self.mask_logits = nn.Parameter(torch.full(shape, settings.mask_start))
        else:
            self.mask_map = nn.Linear(dim, dim)
            nn.init.zeros_(self.mask_map.weight)
            nn.init.constant_(self.mask_map.bias, settings.mask_start)
        if settings.objective == "captions":
            self.log_scale.requires_grad_(False)
            self.offset.requires_grad_(False)
        # a buffer, as members of a pack may differ in it
        self.sparsity_weight: Tensor
        weight = torch.tensor(settings.sparsity_weight)
        self.register_buffer("sparsity_weight", weight, persistent=False)

    @classmethod
    def check(cls, settings: SmartCLIPAdapterSettings, loop: Loop, num_classes: int) -> None:
        """Refuse captions for masks that belong to classes.

        Raises:
            ValueError: Masks are free, and captions are to train them.
        """
        del loop, num_classes
        if settings.objective == "captions" and settings.masks == "free":
            raise ValueError(
                f"{settings.title}: captions train masks that are made from a text; a free mask "
                "has none. Use masks from_text, or objective labels"
            )

    def initialise(self) -> None:
        """Let the projectors agree on the texts, if there are any."""
        if self.model is not None:
            align(self.model, self.task.pairs.detach().cpu().double())

    def prepare(self, features: FeatureSource, rows: Int64[np.ndarray, " rows"]) -> None:
        """Let scales and offsets begin where the labels say, if these are what trains."""
        if self.settings.objective == "labels":
            super().prepare(features, rows)

    def compare(
        self,
        local: Float[Tensor, "images locations dim"],
        texts: Float[Tensor, "texts dim"],
        classes: Int64[Tensor, " texts"] | None = None,
    ) -> Float[Tensor, "images texts locations"]:
        """Masked cosine of each text with each location."""
        texts = self._texts(texts)
        return masked_cosine(self._images(local), texts, self.masks(texts, classes)).mT

    def masks(
        self, texts: Float[Tensor, "texts width"], classes: Int64[Tensor, " texts"] | None = None
    ) -> Float[Tensor, "texts width"]:
        """The mask of each text.

        Args:
            texts: Where masks act: CLIP's, or projected. No gradient reaches them.
            classes: Which class each speaks of; left out: each of its own, in order.
        """
        if self.settings.masks == "from_text":
            logits = self.mask_map(nn.functional.normalize(texts.detach(), dim=-1))
        else:
            logits = self.mask_logits if classes is None else self.mask_logits[classes]
        return straight_through_mask(logits, form=self.settings.mask_form)

    def losses(self, batch: Batch) -> dict[str, Float[Tensor, ""]]:
        """The weighted sum, then its terms; sparsity, which every worker computes, is shared."""
        if self.settings.objective == "captions":
            return self._caption_losses(batch)
        asl = self.main_loss(self.pooled(batch), batch)
        share = sparsity(self.masks(self._texts(self.task.positives))) / batch.workers
        loss = asl + self.sparsity_weight * share
        return {"loss": loss, "asl": asl, "sparsity": share}

    def _caption_losses(self, batch: Batch) -> dict[str, Float[Tensor, ""]]:
        own, backbone = self.settings, self.task.backbone
        assert batch.embedding is not None  # as it is what is fed
        assert batch.captions is not None
        if backbone is None:
            raise ValueError(f"{own.title} encodes captions: give it a task that has the backbone")
        draws = torch.rand(len(batch.captions)).tolist()
        rows = [row for row, captions in enumerate(batch.captions) if captions]
        if not rows:
            raise ValueError(f"{own.title}: no image of a batch has a caption")
        chosen = [batch.captions[row][int(draws[row] * len(batch.captions[row]))] for row in rows]
        images = at_least_float32(batch.embedding[rows])
        texts = self._texts(backbone.encode_texts(chosen).to(images))
        masks = self.masks(texts)
        similarity = own.matching_scale * masked_cosine(self._images(images), texts, masks)
        terms = {
            "sidm": sidm_loss(similarity),
            "dism": dism_loss(similarity),
            "sparsity": sparsity(masks),
        }
        terms = {name: value / batch.workers for name, value in terms.items()}
        matching = own.matching_weight * (terms["sidm"] + terms["dism"])
        return {"loss": matching + self.sparsity_weight * terms["sparsity"], **terms}

    def class_features(self) -> Float[Tensor, "classes width"]:
        """Positive prompts behind their masks."""
        texts = self._texts(self.task.positives)
        return self.masks(texts).detach() * texts.detach()

    def watch(self) -> dict[str, float]:
        """How alike the masked texts of different classes are, and their masks; what is open."""
        masks = self.masks(self._texts(self.task.positives)).detach()
        found = super().watch()
        if len(masks) > 1:
            found["mask_overlap"] = mask_overlap(masks)
        return found | {"mask_open": float(sparsity(masks))}

    def similarity(self) -> dict[str, float]:
        """The same, for reports."""
        return self.watch()

    def _images(self, features: Float[Tensor, "*axes dim"]) -> Float[Tensor, "*axes width"]:
        features = at_least_float32(features)
        return features if self.model is None else self.model.project_images(features)

    def _texts(self, texts: Float[Tensor, "texts dim"]) -> Float[Tensor, "texts width"]:
        if self.model is None:
            return texts
        return self.model.project_texts(texts.float(), statistics="running")

    def _of_places(self, class_names: Sequence[str], places: Sequence[int]) -> dict[str, Any]:
        found = super()._of_places(class_names, places)
        if self.settings.masks == "from_text":
            return found
        for name, place in zip(class_names, places, strict=True):
            if place < 0:
                raise ValueError(
                    f"{self.settings.title} has masks of the {len(self.task.class_names)} classes "
                    f"it was trained on, and {name!r} is none of them; masks from_text answer for "
                    "any class"
                )
        return {**found, "mask_logits": nn.Parameter(self.mask_logits.detach()[list(places)])}

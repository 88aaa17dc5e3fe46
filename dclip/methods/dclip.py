"""DCLIP as a method: its two losses, its scores, and what it says of each location."""

from typing import ClassVar

import numpy as np
import torch
from jaxtyping import Float, Float64, Int64
from torch import Tensor

from dclip.fitting.batches import Batch, FeatureSource
from dclip.fitting.loop import Loop
from dclip.logits import presence_probability, similarity_maps
from dclip.methods.anchored import anchor, calibrate, for_classes
from dclip.methods.method import Method, Task, WeightRule
from dclip.methods.objective import asl_of, check_mfi, keep_mfi_weights, watched_cosine, with_mfi
from dclip.methods.settings import DCLIPSettings, MethodSettings
from dclip.metrics import similarity_report
from dclip.model import DCLIP
from dclip.precision import at_least_float32
from dclip.projectors import ProjectorSizes
from dclip.prompts import ClassTexts, best_phrasing

RIDGE = 1e-4
"""Ridge of the aligned start, as a share of the mean square length of the texts."""


def build_model(settings: DCLIPSettings, embed_dim: int, num_classes: int | None = None) -> DCLIP:
    """Projectors of the settings' sizes for a backbone of this width, with PyTorch's weights.

    Args:
        settings: Source of the projector sizes, of the form, the order of pooling and the scales.
        embed_dim: Width D of the backbone's joint space.
        num_classes: Number of classes, which anchored ones have biases for.
    """
    sizes = ProjectorSizes.for_embed_dim(embed_dim, settings.output_dim)
    if settings.hidden_dim is not None:
        sizes = ProjectorSizes(embed_dim, settings.hidden_dim, sizes.output_dim)
    return DCLIP(
        sizes,
        aggregation=settings.aggregation,
        local_scale=settings.local_scale,
        pooled_scale=settings.pooled_scale,
        num_classes=num_classes if settings.form == "anchored" else None,
    )


@torch.no_grad()
def align(model: DCLIP, texts: Float64[Tensor, "pairs dim"]) -> None:
    r"""Let the image projector carry texts to where the text projector does.

    With PyTorch's weights, uniform in :math:`\pm 1 / \sqrt{\text{fan-in}}`, the two projectors have
    nothing in common, what CLIP knows of images and texts is lost, and every class has to be found
    again; now and then one is not. Here only the text projector f stays as it is. The image
    projector becomes a random orthonormal R, which keeps CLIP's cosines up to chance, with the
    smallest change (by ridge regression) that carries every text t to where the text projector
    carries it, :math:`W t \propto f(t)`, and is as long as PyTorch's, so that steps are as bold.

    Args:
        model: Fresh projectors, changed in place.
        texts: Text features of the prompt pairs.
    """
    weight = model.image_projector.output.weight
    projected = model.project_texts(texts.float(), statistics="running").double()
    start = torch.nn.init.orthogonal_(torch.empty_like(weight)).double()
    carried = texts @ start.T
    gram = texts @ texts.T
    gram.diagonal().add_(RIDGE * gram.diagonal().mean())  # in place: it is large
    missing = projected * (carried.norm() / projected.norm()) - carried
    aligned = start + missing.T @ torch.linalg.solve(gram, texts)
    weight.copy_(aligned * (weight.norm() / aligned.norm()))


class DCLIPMethod(Method[DCLIPSettings]):
    """Two small projectors, trained by ASL and MFI (see :class:`dclip.model.DCLIP`).

    Args:
        settings: Hyper-parameters.
        task: Classes.
        model: Projectors of these settings; left out: new ones.

    References:
        Rawlekar et al., "Efficiently Disentangling CLIP for Multi-Object Perception",
        arXiv:2502.02977.
    """

    Settings: ClassVar[type[MethodSettings]] = DCLIPSettings
    scores_locations = True

    def __init__(self, settings: DCLIPSettings, task: Task, *, model: DCLIP | None = None) -> None:
        super().__init__(settings, task)
        classes = len(task.class_names)
        self.model = build_model(settings, task.dim, classes) if model is None else model
        keep_mfi_weights(self)
        self.trust: Tensor
        self.register_buffer("trust", torch.ones(classes), persistent=False)

    @classmethod
    def around(cls, model: DCLIP, task: Task) -> Method[DCLIPSettings]:
        """Trained projectors as a method that is asked of some classes.

        Anchored ones of as many classes are taken to be of these, in this order.
        """
        if model.is_anchored and len(model.bias) != len(task.class_names):
            model = for_classes(model, [None] * len(task.class_names))
        settings = DCLIPSettings(
            form="anchored" if model.is_anchored else "pairs",
            hidden_dim=model.sizes.hidden_dim,
            output_dim=model.sizes.output_dim,
            aggregation=model.aggregation,
            local_scale=model.local_scale,
            pooled_scale=model.pooled_scale,
        )
        method = cls(settings, task, model=model)
        method.training = model.training
        return method

    def initialise(self) -> None:
        """Let the projectors say what CLIP says, or agree on the texts, if the settings say so."""
        if self.settings.form == "anchored":
            anchor(self.model, self.task.positives.detach().cpu())
        elif self.settings.initial == "aligned":
            align(self.model, self.task.pairs.detach().cpu().double())

    @classmethod
    def check(cls, settings: DCLIPSettings, loop: Loop, num_classes: int) -> None:
        """Refuse SGD on a summed MFI loss that would step too far.

        Raises:
            ValueError: See :func:`dclip.losses.check_mfi_stability`.
        """
        check_mfi(settings, loop, num_classes)

    def prepare(self, features: FeatureSource, rows: Int64[np.ndarray, " rows"]) -> None:
        """Calibrate anchored projectors, and count the images of each class."""
        if self.settings.form == "anchored":
            calibrate(self.model, self.task.positives, features, rows)
        if prior := self.settings.class_prior:
            shown = (features.labels[rows] == 1).sum(0).to(self.trust)
            self.trust.copy_(shown / (shown + prior))

    def weight_rules(self) -> dict[str, WeightRule]:
        """The image projector is moved by all classes at once."""
        most = self.settings.image_lr_classes
        classes = len(self.task.class_names)
        if most is None or classes <= most:
            return {}
        return {"model.image_projector.output.weight": WeightRule(lr_factor=most / classes)}

    def losses(self, batch: Batch) -> dict[str, Float[Tensor, ""]]:
        r""":math:`w\, L_{ASL} + \alpha\, L_{MFI}`, and both terms.

        MFI, which every worker computes, is divided by their number.
        """
        output = self.model(batch.local, self.task.pairs, batch.dropped)
        logits = output.pair_logits
        if self.settings.class_prior:  # the same loss, with less of its gradient
            logits = torch.lerp(logits.detach(), logits, self.trust)
        asl = asl_of(self.settings, logits, batch)
        return with_mfi(self, asl, output.text_features, batch)

    def scores(self, batch: Batch) -> Float[Tensor, "images classes"]:
        """Probability that each class is present."""
        return presence_probability(self._pair_logits(batch))

    def evidence(self, batch: Batch) -> Float[Tensor, "images classes"]:
        """Logit of presence less that of absence."""
        absence, presence = self._pair_logits(batch).unbind(1)
        difference: Tensor = presence - absence
        return difference

    def _pair_logits(self, batch: Batch) -> Float[Tensor, "images 2 classes"]:
        pairs: Tensor = self.model(batch.local, self.task.pairs, batch.dropped).pair_logits
        return pairs

    def location_scores(
        self, local: Float[Tensor, "images locations dim"]
    ) -> Float[Tensor, "images classes locations"]:
        """Cosine in the projected space, the largest of each class's phrasings."""
        texts = ClassTexts(self._projected(self.task.texts.features), self.task.texts.classes)
        cosines = similarity_maps(
            self.model.project_images(at_least_float32(local)), texts.features
        )
        return best_phrasing(cosines, texts.classes)

    def location_logits(
        self, local: Float[Tensor, "images locations dim"]
    ) -> Float[Tensor, "images classes locations"]:
        """What is said of the class there, as if the image had no other location."""
        if self.model.is_anchored:
            images, locations, _ = local.shape
            alone = self.model(local.reshape(images * locations, 1, -1), self.task.pairs)
            absence, presence = alone.pair_logits.unbind(1)
            odds: Tensor = (presence - absence).reshape(images, locations, -1).mT
            return odds
        cosines = similarity_maps(
            self.model.project_images(at_least_float32(local)), self._projected(self.task.pairs)
        )
        negative, positive = cosines.chunk(2, dim=1)
        return self.model.local_scale * self.model.pooled_scale * (positive - negative)

    def for_classes(self, task: Task) -> Method[DCLIPSettings]:
        """The same weights; biases of anchored ones are theirs by name, the mean for new names."""
        other = self.with_task(task)
        if self.model.is_anchored:
            model = for_classes(self.model, self.columns_of(task))
            other.__dict__["_modules"] = {**self._modules, "model": model}
        return other

    def class_features(self) -> Float[Tensor, "classes dim"]:
        """Projected positive prompts."""
        projected = self._projected(self.task.pairs)
        return projected[len(projected) // 2 :]

    def watch(self) -> dict[str, float]:
        """Mean cosine between the projected positive prompts of different classes."""
        return watched_cosine(self.class_features())

    def similarity(self) -> dict[str, float]:
        """Every reading of :func:`dclip.metrics.similarity_report`."""
        return similarity_report(self.model, self.task.pairs) if len(self.task.pairs) > 2 else {}

    def _projected(self, texts: Float[Tensor, "texts dim"]) -> Float[Tensor, "texts output_dim"]:
        return self.model.project_texts(texts.float(), statistics="running")

"""DAPT: MaPLe's prompts, taught what is in front and what is behind by masks."""

from collections.abc import Sequence
from typing import ClassVar, Literal

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor
from torch.nn import functional as F

from dclip.fitting.batches import Batch
from dclip.losses.contrastive import self_labelled_loss, triplet_loss
from dclip.methods.adapter_settings import BACKGROUND_TEMPLATE, background_prompts
from dclip.methods.method import Task
from dclip.methods.pixels.maple import PromptMethod, images_in_all, single_labels
from dclip.methods.pixels.settings import DAPTSettings
from dclip.methods.settings import MethodSettings
from dclip.precision import at_least_float32
from dclip.texts import words_beside

_EPSILON = 1e-6  # of the authors, beside the largest value


def grad_cam(
    activations: Float[Tensor, "images patches channels"],
    gradients: Float[Tensor, "images patches channels"],
    *,
    grid: tuple[int, int],
    size: tuple[int, int],
    maximum: Literal["image", "batch"] = "image",
) -> Float[Tensor, "images height width"]:
    r"""How much each pixel speaks for a class, as a share of the largest value.

    With activations :math:`A` and gradients of what is explained, :math:`w` is the mean of the
    gradients over the patches and the map is :math:`\max(0, A w)`, enlarged bilinearly, corner on
    corner.

    Args:
        activations: Of the patches, row by row.
        gradients: Derivatives by them.
        grid: Rows and columns of the patches.
        size: Height and width of the map.
        maximum: Each map has a largest value of 1, or only the batch has, as in DAPT's code.

    Returns:
        Values from 0 to 1; all 0 where no patch speaks for the class.

    References:
        Selvaraju et al., "Grad-CAM", ICCV 2017, arXiv:1610.02391; DAPT's code for the rest.
    """
    weights = gradients.mean(1, keepdim=True)
    maps = F.relu((activations * weights).sum(-1)).reshape(-1, 1, *grid)
    large = F.interpolate(maps, size, mode="bilinear", align_corners=True)[:, 0]
    if maximum == "batch":
        return large / (large.amax() + _EPSILON) if len(large) else large
    largest = large.amax((1, 2), keepdim=True)
    return torch.where(largest > 0, large / largest.clamp_min(torch.finfo(large.dtype).tiny), 0)


class DAPT(PromptMethod[DAPTSettings]):
    r"""Decouple-before-align prompt tuning: MaPLe, and three losses on what a mask parts.

    An image :math:`x` is encoded whole, its background blanked (:math:`f`), and its foreground
    blanked (:math:`b`); blank is CLIP's mean colour. Beside the classes there are words of what may
    be behind, whose texts no vector is learned for at the input, but which the deeper prompts go
    through as well. With :math:`s` the multiplier of the cosines,

    * main: cross-entropy of :math:`s \cos(x, t)` over the classes;
    * L_v: :math:`\max(0, |x - f| - |x - b| + 1.5)` of unit vectors; f and b take no gradient;
    * L_f: cross-entropy of :math:`s \cos(f, t)`; f takes no gradient, so that it teaches the texts;
    * L_b: cross-entropy of b with the word of the background that it is most like.

    The first epochs train main + 0.8 L_v, the others main + 0.1 L_f + 0.5 L_b. A training
    that ends before never learns from the last two, as the authors' runs of 5 epochs.

    Masks come with the images, or are Grad-CAM of the image's own class by the prompts as they are
    (`saliency`), which costs one more pass through the last block. An image whose mask is empty or
    full has no foreground or no background: it takes no part in the three losses, and ``unmasked``
    is the share of such images.

    Args:
        settings: Hyper-parameters.
        task: Classes, with the backbone.

    Raises:
        ValueError: As `PromptMethod`; or Grad-CAM cannot be had of the backbone, or all words of
            the background are classes.

    References:
        DAPT, T-PAMI 2025, arXiv:2508.00395, and its authors' code.
    """

    Settings: ClassVar[type[MethodSettings]] = DAPTSettings

    def __init__(self, settings: DAPTSettings, task: Task) -> None:
        words = list(settings.background_words)
        if settings.background_split is None:
            words = words_beside(words, task.class_names)
            if not words:
                raise ValueError(f"{settings.title}: all background_words are classes; give others")
        self._own_texts = background_prompts(words)
        super().__init__(settings, task)
        self.background: Tensor
        self.register_buffer("background", torch.zeros(len(words), task.dim))

    def other_texts(self) -> tuple[str, Sequence[str]]:
        """What may be behind an object."""
        return BACKGROUND_TEMPLATE, self._own_texts

    @property
    def split(self) -> int:
        """How many of the background's texts stand among the classes."""
        own = self.settings.background_split
        return 0 if own is None else len(self._own_texts) - own

    def losses(self, batch: Batch) -> dict[str, Float[Tensor, ""]]:
        """What the epoch's phase trains, then main loss and the three others, unweighted.

        All are means over the images of all workers, and so is ``unmasked``, the share of images
        that have no foreground or no background.

        Raises:
            ValueError: See `single_labels`; masks are missing or of another size than the images.
        """
        own, total = self.settings, images_in_all(batch)
        labels = single_labels(batch, for_=own.title)
        images, texts = self.normalised(batch), self.texts()
        classes = len(self.task.class_names)
        front, behind = texts[: classes + self.split], texts[classes + self.split :]
        if own.mask_source == "gradcam":
            whole, saliency = self.saliency(images, texts, labels)
            masks = saliency >= own.gradcam_threshold
        else:
            whole, masks = self.images(images).embedding, self._masks_of(batch)
        both = masks.flatten(1).any(1) & ~masks.flatten(1).all(1)
        takes_part = both if own.empty_masks == "skip" else torch.ones_like(both)

        is_first = batch.epoch < own.first_phase
        inside = masks[:, None].to(images.dtype)
        with torch.no_grad():
            foreground = self.images(images * inside).embedding
        with torch.set_grad_enabled(torch.is_grad_enabled() and not is_first):
            background = self.images(images * (1 - inside)).embedding
        of_foreground = F.cross_entropy(self.logits(foreground, front), labels, reduction="none")
        of_background = self_labelled_loss(self.logits(background, behind))
        triplet = triplet_loss(
            *map(at_least_float32, (whole, foreground, background)), margin=own.margin
        )
        terms = {
            "main": F.cross_entropy(self.logits(whole, front), labels, reduction="sum") / total,
            "triplet": (takes_part * triplet).sum() / total,
            "foreground": (takes_part * of_foreground).sum() / total,
            "background": (takes_part * of_background).sum() / total,
        }
        if is_first:
            loss = terms["main"] + own.triplet_weight * terms["triplet"]
        else:
            loss = terms["main"] + own.foreground_weight * terms["foreground"]
            loss = loss + own.background_weight * terms["background"]
        return {"loss": loss, **terms, "unmasked": (~both).sum() / total}

    def saliency(
        self,
        images: Float[Tensor, "images 3 height width"],
        texts: Float[Tensor, "texts dim"],
        labels: Int64[Tensor, " images"],
    ) -> tuple[Float[Tensor, "images dim"], Float[Tensor, "images height width"]]:
        """Embeddings of images, in the graph, and Grad-CAM of the class that each shows.

        It explains the logit of the class by what enters the attention of the last block. With
        ``gradcam_maximum`` ``batch`` the logits are divided by the number of images and texts, as
        in the authors' code, beside whose 1e-6 that tells.

        Args:
            images: Normalised.
            texts: Of the classes and the background.
            labels: Class of each image.

        Raises:
            ValueError: Prompts take no gradient here, as in a pack of several trainings.
        """
        own = self.settings
        found = self.images(images, attention=1)
        entering = found.entering[-1]
        logits = self.logits(found.embedding, texts.detach())
        objective = logits.gather(1, labels[:, None]).sum()
        if own.gradcam_maximum == "batch":
            objective = objective / max(1, logits.numel())
        if not objective.requires_grad:
            raise ValueError(
                f"{own.title} differentiates by its prompts for Grad-CAM: it trains by itself, and "
                "not in a pack of several, nor where gradients are off"
            )
        (gradients,) = torch.autograd.grad(objective, entering, retain_graph=True)
        grid = self.backbone.grid(*images.shape[-2:])
        patches = slice(1, 1 + grid[0] * grid[1])
        saliency = grad_cam(
            at_least_float32(entering[:, patches].detach()),
            at_least_float32(gradients[:, patches]),
            grid=grid,
            size=(images.shape[-2], images.shape[-1]),
            maximum=own.gradcam_maximum,
        )
        return found.embedding, saliency

    def _masks_of(self, batch: Batch) -> Bool[Tensor, "images height width"]:
        """The masks that came with the images."""
        assert batch.pixels is not None  # as it is what is fed
        if batch.masks is None:
            raise ValueError(
                f"{self.settings.title} with mask_source file takes masks, and there are none "
                "beside these images; give some, or use mask_source gradcam"
            )
        expected = batch.pixels.shape[:3]
        if batch.masks.shape != expected:
            raise ValueError(
                f"{self.settings.title}: masks {list(batch.masks.shape)} do not fit images "
                f"{list(expected)}; a mask has the height and width of its image"
            )
        return batch.masks

    def derived(self) -> dict[str, Tensor]:
        """Texts of the trained prompts, those of the background, too."""
        kept, background = self.texts().to(self.kept.dtype).tensor_split([len(self.kept)])
        return {"kept": kept, "background": background}

    def scores(self, batch: Batch) -> Float[Tensor, "images classes"]:
        """Probabilities, which sum to 1 over the classes.

        With ``test_columns`` ``all`` the words that stand among the classes have their share; an
        image that is most like one of them is none of the classes, and has 0 for each.
        """
        return self.chances(self.images(self.normalised(batch)).embedding)

    def chances(self, images: Float[Tensor, "images dim"]) -> Float[Tensor, "images classes"]:
        """The same, of embeddings."""
        classes = len(self.kept)
        if self.settings.test_columns == "classes":
            return self.logits(images, self.kept).softmax(-1)
        every = self.logits(images, torch.cat([self.kept, self.background[: self.split]]))
        is_class = every.argmax(-1, keepdim=True) < classes
        return every.softmax(-1)[:, :classes] * is_class

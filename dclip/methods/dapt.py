"""DAPT's decoupling on frozen features: what a class looks like, and what is behind it."""

from typing import ClassVar, NamedTuple

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor, nn
from torch.func import vmap
from torch.nn import functional as F

from dclip.fitting.batches import Batch
from dclip.logits import location_weights, similarity_maps
from dclip.losses.contrastive import self_labelled_loss, triplet_loss
from dclip.methods.adapter_settings import DAPTAdapterSettings, background_prompts
from dclip.methods.adapters import AdapterMethod
from dclip.methods.method import Task
from dclip.methods.settings import MethodSettings
from dclip.precision import at_least_float32
from dclip.texts import words_beside


class Parts(NamedTuple):
    """Means of an image's locations inside and outside the mask of each class.

    Attributes:
        foreground: Mean unit feature inside.
        background: Mean unit feature outside.
        both: Whether there are locations of either kind.
    """

    foreground: Float[Tensor, "images classes dim"]
    background: Float[Tensor, "images classes dim"]
    both: Bool[Tensor, "images classes"]


def parts_of(
    local: Float[Tensor, "images locations dim"],
    maps: Float[Tensor, "images classes locations"],
    *,
    threshold: float | Float[Tensor, ""],
    dropped: Bool[Tensor, "images locations"] | None = None,
) -> Parts:
    """Foreground and background of each class, by a threshold on its map.

    Args:
        local: Local features, of any length.
        maps: How much each location looks like each class, on any scale. In each image each map is
            stretched to [0, 1].
        threshold: From here on a location is foreground, in (0, 1).
        dropped: Locations that are neither.

    Returns:
        Means; a map that is the same everywhere has no background, and its means are those of what
        there is, or zero.
    """
    kept = torch.ones_like(maps, dtype=torch.bool)
    if dropped is not None:
        kept = kept & ~dropped[:, None, :]
    lowest = maps.masked_fill(~kept, torch.inf).amin(-1, keepdim=True)
    highest = maps.masked_fill(~kept, -torch.inf).amax(-1, keepdim=True)
    inside = kept & (maps - lowest >= threshold * (highest - lowest))
    outside = kept & ~inside
    unit = F.normalize(local, dim=-1)
    means, counts = [], []
    for mask in (inside, outside):
        count = mask.sum(-1)
        means.append(mask.to(unit.dtype) @ unit / count.clamp_min(1)[..., None])
        counts.append(count)
    return Parts(means[0], means[1], (counts[0] > 0) & (counts[1] > 0))


class DAPTAdapter(AdapterMethod[DAPTAdapterSettings]):
    r"""DAPT's four losses on frozen local features, for images of several classes.

    This form is ours, not the paper's. The paper trains prompts in both towers of CLIP on images of
    one class, and encodes each image three times: whole, its foreground, its background. On cached
    features prompts have no place, and there is one encoding. So:

    * what is trained are two residual linear maps, :math:`z + W z` of image features and
      :math:`t + U t` of texts, both zero at the start, beside scale and offset of each class. As
      the prompts they stand for, they are shared by all classes, and by the background's words;
      both are needed, for L_v teaches the image side alone and L_f the text side alone.
    * the foreground :math:`f_c` of a present class is the mean of the locations in which CLIP's own
      map of it is high, the background :math:`b_c` the mean of the others, in which other classes
      may be. A present class whose map is flat has none, and takes no part.
    * main: ASL on pooled scores. L_f: ASL on :math:`f_c`, in which its class is present, classes
      absent from the image are absent, and the image's other classes are unknown.
      L_b: :math:`b_c` against the background's words, labelled by itself. L_v: what the class
      pools is nearer to :math:`f_c` than to :math:`b_c`. Each is the mean over an image's present
      classes, then over images (as many as the known labels make).

    The first epochs train main + 0.8 L_v, the others main + 0.1 L_f + 0.5 L_b, as the authors'
    code does.

    Args:
        settings: Hyper-parameters.
        task: Classes; with the backbone, to train.

    References:
        DAPT, T-PAMI 2025, arXiv:2508.00395, and its authors' code.
    """

    Settings: ClassVar[type[MethodSettings]] = DAPTAdapterSettings

    def __init__(self, settings: DAPTAdapterSettings, task: Task) -> None:
        super().__init__(settings, task)
        self.image_map = nn.Linear(task.dim, task.dim, bias=False)
        self.text_map = nn.Linear(task.dim, task.dim, bias=False)
        for each in (self.image_map, self.text_map):
            nn.init.zeros_(each.weight)
        words = words_beside(settings.background_words, task.class_names)
        self._prompts = [*background_prompts(words)]
        if not self._prompts:
            raise ValueError(f"{settings.title}: all background_words are classes; give others")
        self.background: Tensor
        self.register_buffer("background", torch.zeros(len(self._prompts), task.dim))
        # buffers, as members of a pack may differ in them
        self.triplet_weight: Tensor
        self.foreground_weight: Tensor
        self.background_weight: Tensor
        self.threshold: Tensor
        self.first_phase: Tensor
        for name in sorted(settings.may_differ):
            value = torch.tensor(getattr(settings, name))
            self.register_buffer(name, value, persistent=False)

    def initialise(self) -> None:
        """Encode the background's words, which are kept beside the weights.

        Raises:
            ValueError: There is no backbone to encode them.
        """
        backbone = self.task.backbone
        if backbone is None:
            raise ValueError(
                f"{self.settings.title} encodes the words of the background: give it a task that "
                "has the backbone, as Task.of makes it"
            )
        self.background.copy_(backbone.encode_texts(self._prompts))

    def compare(
        self,
        local: Float[Tensor, "images locations dim"],
        texts: Float[Tensor, "texts dim"],
        classes: Int64[Tensor, " texts"] | None = None,  # noqa: ARG002 - maps know no class
    ) -> Float[Tensor, "images texts locations"]:
        """Cosine of each mapped text with each mapped location."""
        return similarity_maps(self._images(local), self._texts(texts))

    def losses(self, batch: Batch) -> dict[str, Float[Tensor, ""]]:
        """What the epoch's phase trains, then main loss and the three others, unweighted."""
        own, local = self.settings, at_least_float32(batch.local)
        texts = self._texts(self.task.positives)
        images = self._images(local)
        cosines = similarity_maps(images, texts)
        weights = location_weights(cosines, dropped=batch.dropped, local_scale=own.local_scale)
        asl = self.main_loss((weights * cosines).sum(-1), batch)

        maps = similarity_maps(local, self.task.positives)  # CLIP's own
        parts = parts_of(images, maps, threshold=self.threshold, dropped=batch.dropped)
        present = (batch.labels == 1) & parts.both
        # each present class has its share of an image, each image its share of the batch
        share = present / present.sum(1, keepdim=True).clamp_min(1)
        share = share * (len(self.task.class_names) / max(1, batch.known))

        pooled = weights @ F.normalize(images, dim=-1)
        triplet = triplet_loss(pooled, parts.foreground, parts.background, margin=own.margin)
        words = self._texts(self.background)
        behind = own.background_scale * similarity_maps(parts.background, words).mT
        terms = {
            "triplet": (share * triplet).sum(),
            "foreground": (share * self._of_foreground(parts.foreground, texts, batch)).sum(),
            "background": (share * self_labelled_loss(behind)).sum(),
        }
        later = self.foreground_weight * terms["foreground"]
        later = later + self.background_weight * terms["background"]
        is_first = self.first_phase > batch.epoch
        extra = torch.where(is_first, self.triplet_weight * terms["triplet"], later)
        return {"loss": asl + extra, "asl": asl, **terms}

    def _of_foreground(
        self,
        foreground: Float[Tensor, "images classes dim"],
        texts: Float[Tensor, "classes dim"],
        batch: Batch,
    ) -> Float[Tensor, "images classes"]:
        """ASL of each class's foreground by itself, a mean over classes; texts alone are taught."""
        cosines = similarity_maps(foreground.detach(), texts).mT
        logits = self.log_scale.detach().exp() * (cosines - self.offset.detach())
        # its own class is there; of the image's others, nobody knows
        own = torch.eye(logits.shape[-1], dtype=torch.bool, device=logits.device)
        absent = (batch.labels == 0)[:, None, :]
        labels = torch.where(own, 1, torch.where(absent, 0, -1))

        def row(logits: Tensor, labels: Tensor) -> Tensor:
            return self.asl(logits[None], labels[None])

        return vmap(vmap(row))(logits, labels) / logits.shape[-1]

    def class_features(self) -> Float[Tensor, "classes dim"]:
        """Positive prompts, mapped."""
        return self._texts(self.task.positives).detach()

    def _images(self, features: Float[Tensor, "*axes dim"]) -> Float[Tensor, "*axes dim"]:
        features = at_least_float32(features)
        mapped: Tensor = features + self.image_map(features)
        return mapped

    def _texts(self, texts: Float[Tensor, "texts dim"]) -> Float[Tensor, "texts dim"]:
        mapped: Tensor = texts + self.text_map(texts)
        return mapped

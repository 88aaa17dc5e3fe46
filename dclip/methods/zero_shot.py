"""Frozen CLIP as it is: of the whole image, of its best location, and pooled as DCLIP pools."""

from typing import ClassVar, TypeVar

from jaxtyping import Float
from torch import Tensor

from dclip.fitting.batches import Batch
from dclip.logits import (
    pair_logits,
    pooled_similarity,
    sigmoid_scores,
    similarity_maps,
    zero_shot_scores,
)
from dclip.methods.head_settings import ZeroShotPooledSettings
from dclip.methods.method import Method
from dclip.methods.settings import MethodSettings, ZeroShotLocalSettings, ZeroShotSettings
from dclip.prompts import best_phrasing

S = TypeVar("S", bound=MethodSettings)


class ZeroShot(Method[ZeroShotSettings]):
    """Scaled cosine of the global embedding with each class's text.

    Of a CLIP that was trained by a sigmoid (SigLIP) it is the probability that this makes of it.
    """

    Settings: ClassVar[type[MethodSettings]] = ZeroShotSettings
    gives_probabilities = False

    def scores(self, batch: Batch) -> Float[Tensor, "images classes"]:
        """CLIP's own scores, in [-100, 100], or its probabilities."""
        assert batch.embedding is not None  # as it is what is fed
        texts, sigmoid = self.task.texts, self.task.sigmoid
        if sigmoid is None:
            scores = zero_shot_scores(batch.embedding, texts.features)
        else:
            scores = sigmoid_scores(batch.embedding, texts.features, sigmoid)
        return best_phrasing(scores[..., None], texts.classes)[..., 0]

    def tells_probabilities(self) -> bool:
        """Where CLIP was trained by a sigmoid."""
        return self.task.sigmoid is not None

    def class_features(self) -> Float[Tensor, "classes dim"]:
        """The positive prompts as CLIP encodes them."""
        return self.task.positives


class _OfLocations(Method[S]):
    """What says of locations how like they are to each class's text."""

    gives_probabilities = False
    scores_locations = True

    def location_scores(
        self, local: Float[Tensor, "images locations dim"]
    ) -> Float[Tensor, "images classes locations"]:
        """Cosines, the largest of each class's phrasings."""
        texts = self.task.texts
        return best_phrasing(similarity_maps(local, texts.features), texts.classes)

    def class_features(self) -> Float[Tensor, "classes dim"]:
        """The positive prompts as CLIP encodes them."""
        return self.task.positives


class ZeroShotLocal(_OfLocations[ZeroShotLocalSettings]):
    """Cosine of each class's text with the location that is most like it."""

    Settings: ClassVar[type[MethodSettings]] = ZeroShotLocalSettings

    def scores(self, batch: Batch) -> Float[Tensor, "images classes"]:
        """Largest cosine over the locations, the mean token among them."""
        return self.location_scores(batch.local).amax(-1)


class ZeroShotPooled(_OfLocations[ZeroShotPooledSettings]):
    """CLIP's local features pooled where a class's text fits best, without any projector.

    The pooling is DCLIP's (:func:`dclip.logits.pair_logits`), with its scales.
    """

    Settings: ClassVar[type[MethodSettings]] = ZeroShotPooledSettings

    def scores(self, batch: Batch) -> Float[Tensor, "images classes"]:
        """Pooled scaled cosines, in [-100, 100] by the usual scales; of pairs the difference."""
        own, texts = self.settings, self.task.texts
        if own.asks == "pair":
            pairs = pair_logits(batch.local, self.task.pairs, local_scale=own.local_scale)
            return pairs[:, 1] - pairs[:, 0]
        pooled = pooled_similarity(batch.local, texts.features, local_scale=own.local_scale)
        return best_phrasing(pooled[..., None], texts.classes)[..., 0]

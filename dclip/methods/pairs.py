"""What methods share that tell a class by two rows, one of its absence and one of its presence.

The rows may be encoded texts, free vectors or the rows of a linear map; ASL trains them, and MFI
where they are texts.
"""

from collections.abc import Sequence
from typing import Any, TypeVar

import torch
from jaxtyping import Float
from torch import Tensor

from dclip.backbones import require
from dclip.fitting.batches import Batch
from dclip.fitting.loop import Loop
from dclip.logits import positive_pair_logits, similarity_maps
from dclip.losses.asymmetric import check_exponents, presence_logit
from dclip.methods.contexts import Prompts, token_width
from dclip.methods.method import Method, Task
from dclip.methods.objective import asl_of, check_mfi, keep_mfi_weights, watched_cosine, with_mfi
from dclip.methods.settings import ContextSettings, PairSettings

P = TypeVar("P", bound=PairSettings)
C = TypeVar("C", bound=ContextSettings)


class PairMethod(Method[P]):
    """Base of methods that give every image a pair of logits for every class."""

    scores_locations = True

    def pair_logits(
        self, batch: Batch, rows: Float[Tensor, "pairs _"] | None = None
    ) -> Float[Tensor, "images 2 classes"]:
        """Index 0 of the second axis says absent, index 1 present.

        Args:
            batch: Images.
            rows: As they are in training; left out: as they were kept for scoring.
        """
        raise NotImplementedError

    def rows(self) -> Float[Tensor, "pairs _"] | None:
        """What is compared with images, as trained so far; None where a batch needs no such."""
        return None

    @classmethod
    def check(cls, settings: P, loop: Loop, num_classes: int) -> None:
        """Refuse exponents without a finite gradient.

        Raises:
            ValueError: See :func:`dclip.losses.asymmetric.check_exponents`.
        """
        del loop, num_classes
        check_exponents(
            gamma_neg=settings.gamma_neg,
            gamma_pos=settings.gamma_pos,
            form=settings.asl_form,
            weight_gradient=settings.asl_weight_gradient,
        )

    def losses(self, batch: Batch) -> dict[str, Float[Tensor, ""]]:
        """The weighted ASL, and ASL."""
        asl = self._asl(batch, self.rows())
        return {"loss": self.settings.asl_weight * asl, "asl": asl}

    def _asl(self, batch: Batch, rows: Tensor | None) -> Float[Tensor, ""]:
        own = self.settings
        return asl_of(
            own,
            self.pair_logits(batch, rows),
            batch,
            form=own.asl_form,
            weight_gradient=own.asl_weight_gradient,
        )

    def scores(self, batch: Batch) -> Float[Tensor, "images classes"]:
        """Probability that each class is present, in the form of ASL that it was trained by."""
        return self.evidence(batch).sigmoid()

    def evidence(self, batch: Batch) -> Float[Tensor, "images classes"]:
        """Log-odds of presence, in the same form."""
        return presence_logit(self.pair_logits(batch), form=self.settings.asl_form)

    def for_classes(self, task: Task) -> Method[P]:
        """Its own classes, or some of them.

        Raises:
            ValueError: One is none of those it was trained on.
        """
        own, count = self.own_columns(task), len(self.task.class_names)
        return self._of_rows(task, [*own, *(count + column for column in own)])

    def _of_rows(self, task: Task, rows: Sequence[int]) -> Method[P]:
        """The same, asked of the classes that these rows of its pairs are of."""
        raise NotImplementedError


class ContextMethod(PairMethod[C]):
    """Base of methods whose rows come from learned contexts through the frozen text tower.

    Training runs the tower in every step. What it says of the trained contexts is kept beside them,
    so that scoring needs no backbone.

    Args:
        settings: Hyper-parameters.
        task: Classes, with the backbone. Without one it scores what is loaded, and cannot train.

    Raises:
        ValueError: The backbone lets no contexts in, or they leave no room for a class name.
    """

    def __init__(self, settings: C, task: Task) -> None:
        super().__init__(settings, task)
        self.kept: Tensor
        self.register_buffer("kept", torch.zeros(2 * len(task.class_names), task.dim))
        keep_mfi_weights(self)
        self._prompts = self._put_together(task) if task.backbone is not None else None

    @classmethod
    def check(cls, settings: C, loop: Loop, num_classes: int) -> None:
        """Refuse exponents without a gradient, and SGD on a summed MFI that would step too far.

        Raises:
            ValueError: See :func:`dclip.losses.check_mfi_stability`.
        """
        super().check(settings, loop, num_classes)
        check_mfi(settings, loop, num_classes)

    def new_context(self) -> torch.nn.Parameter:
        """A context, or one for each class, in small random vectors."""
        own, task = self.settings, self.task
        shape = [own.context_length, token_width(task, for_=own.title)]
        if own.contexts == "per_class":
            shape.insert(0, len(task.class_names))
        return torch.nn.Parameter(own.context_std * torch.randn(shape))

    def encode(self, *contexts: Tensor) -> Float[Tensor, "texts dim"]:
        """What the text tower says of all classes in each context."""
        backbone = self.task.backbone
        if backbone is None or self._prompts is None:
            raise ValueError(
                f"{self.settings.title} runs its backbone's text encoder, which this task has not"
            )
        texts = require(backbone, "token embeddings", for_=self.settings.title)
        return self._prompts.encode(texts, *contexts)

    def _put_together(self, task: Task) -> Prompts:
        own = self.settings
        assert task.backbone is not None
        return Prompts(task.backbone, task.class_names, own.context_length, for_=own.title)

    def derived(self) -> dict[str, Tensor]:
        """The rows of the trained contexts; nothing without a backbone."""
        rows = self.rows() if self._prompts is not None else None
        return {} if rows is None else {"kept": rows.to(self.kept.dtype)}

    def pair_logits(
        self, batch: Batch, rows: Float[Tensor, "pairs _"] | None = None
    ) -> Float[Tensor, "images 2 classes"]:
        """Both polarities pooled where the presence text fits best."""
        own = self.settings
        return positive_pair_logits(
            batch.local,
            self.kept if rows is None else rows,
            dropped=batch.dropped,
            local_scale=own.local_scale,
            pooled_scale=own.pooled_scale,
        )

    def losses(self, batch: Batch) -> dict[str, Float[Tensor, ""]]:
        r""":math:`w\, L_{ASL} + \alpha\, L_{MFI}`, and both terms.

        MFI, which every worker computes, is divided by their number.
        """
        rows = self.rows()
        assert rows is not None
        return with_mfi(self, self._asl(batch, rows), rows, batch)

    def location_scores(
        self, local: Float[Tensor, "images locations dim"]
    ) -> Float[Tensor, "images classes locations"]:
        """Cosine with the presence text of each class."""
        return similarity_maps(local, self.class_features())

    def location_logits(
        self, local: Float[Tensor, "images locations dim"]
    ) -> Float[Tensor, "images classes locations"]:
        """What the class's pair says there, as if the image had no other location."""
        own, cosines = self.settings, similarity_maps(local, self.kept)
        pairs = own.local_scale * own.pooled_scale * torch.stack(cosines.mT.chunk(2, -1), -2)
        return presence_logit(pairs, form=own.asl_form).mT

    def class_features(self) -> Float[Tensor, "classes dim"]:
        """Presence texts in their trained contexts."""
        return self.kept[len(self.kept) // 2 :]

    def watch(self) -> dict[str, float]:
        """Mean cosine between the presence texts of different classes."""
        return watched_cosine(self.class_features())

    def _of_rows(self, task: Task, rows: Sequence[int]) -> Method[C]:
        return self._with_kept(task, self.kept[list(rows)])

    def _with_kept(self, task: Task, kept: Float[Tensor, "pairs dim"]) -> "ContextMethod[Any]":
        """The same contexts, asked of the classes of these rows."""
        other = self.with_task(task)
        assert isinstance(other, ContextMethod)
        other._buffers = {**self._buffers, "kept": kept}
        return other

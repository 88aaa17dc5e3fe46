"""What a method is: trained or not, it says of an image which classes are there, and where.

A method is a subclass of :class:`Method` with a subclass of
:class:`~dclip.methods.settings.MethodSettings`. It is written for one training, as an ordinary
module; :class:`dclip.fitting.pack.Pack` computes many of them together.
"""

import copy
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Generic, TypeVar

import numpy as np
import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor, nn

from dclip.backbones import Backbone
from dclip.fitting.batches import Batch, FeatureSource
from dclip.fitting.loop import Loop
from dclip.logits import Sigmoid, sigmoid_of
from dclip.methods.settings import MethodSettings
from dclip.prompts import ClassTexts, encode_class_texts, encode_prompt_pairs
from dclip.templates import ZERO_SHOT_TEMPLATE


@dataclass(frozen=True)
class WeightRule:
    """How some weights step.

    Attributes:
        lr_factor: Multiple of the learning rate. With the schedule ``epoch`` it counts after the
            warm-up, whose rate is the same for all.
        weight_decay: In place of that of the loop.
        warms_up: Whether warm-up steps (of the schedule ``step``) hold for them.
    """

    lr_factor: float = 1.0
    weight_decay: float | None = None
    warms_up: bool = True


@dataclass(frozen=True)
class Task:
    """The classes to be told apart, as frozen text features.

    Attributes:
        class_names: In column order.
        pairs: Features of the prompt pairs, negatives first, unnormalised.
        texts: Unit features of every phrasing of every class.
        backbone: The frozen CLIP itself, for methods that look inside; None where features do.
        text_width: Numbers in a token of its text tower, where it is known and there is no backbone
            to ask.
        sigmoid: Of the frozen CLIP, where it was trained by one and that is known.
    """

    class_names: tuple[str, ...]
    pairs: Float[Tensor, "pairs dim"]
    texts: ClassTexts
    backbone: Backbone | None = None
    text_width: int | None = None
    sigmoid: Sigmoid | None = None

    @classmethod
    def of(
        cls,
        backbone: Backbone,
        phrasings: Sequence[Sequence[str]],
        *,
        templates: Sequence[str] = (ZERO_SHOT_TEMPLATE,),
    ) -> "Task":
        """The task of some classes, their texts encoded in float32 on the CPU.

        Args:
            backbone: Frozen encoder.
            phrasings: For each class what it is called, its display name first.
            templates: Prompt templates of ``texts``; pairs have templates of their own.

        Raises:
            ValueError: Classes without a name of their own, or a template without its ``{}``.
        """
        texts = encode_class_texts(backbone, phrasings, templates=templates)
        pairs = encode_prompt_pairs(backbone, [names[0] for names in phrasings])
        return cls(
            tuple(names[0] for names in phrasings),
            pairs.float().cpu(),
            ClassTexts(texts.features.float().cpu(), texts.classes.cpu()),
            backbone,
            sigmoid=sigmoid_of(backbone),
        )

    @classmethod
    def of_features(
        cls,
        class_names: Sequence[str],
        pairs: Float[Tensor, "pairs dim"],
        classes: Float[Tensor, "classes dim"] | None = None,
    ) -> "Task":
        """The task of features that were kept; without those of ``classes``, positives stand in."""
        known = _positives(pairs) if classes is None else classes
        return cls(tuple(class_names), pairs, ClassTexts(known, torch.arange(len(known))))

    @classmethod
    def placeholder(
        cls, class_names: Sequence[str], dim: int, text_width: int | None = None
    ) -> "Task":
        """Classes whose texts are not encoded, to count a method's parameters by."""
        task = cls.of_features(class_names, torch.ones(2 * len(class_names), dim))
        return replace(task, text_width=text_width)

    @property
    def positives(self) -> Float[Tensor, "classes dim"]:
        """Features of the prompts that say a class is present."""
        return _positives(self.pairs)

    @property
    def dim(self) -> int:
        """Width of CLIP's joint space."""
        return self.pairs.shape[1]

    def to(self, device: torch.device | str) -> "Task":
        """The same, its features on a device, and the backbone, if there is one."""
        texts = ClassTexts(self.texts.features.to(device), self.texts.classes.to(device))
        backbone = None if self.backbone is None else self.backbone.to(device)
        return replace(self, pairs=self.pairs.to(device), texts=texts, backbone=backbone)


def _positives(pairs: Float[Tensor, "pairs dim"]) -> Float[Tensor, "classes dim"]:
    return pairs[len(pairs) // 2 :]


def with_classes(task: Task, columns: Sequence[int]) -> Task:
    """The task of some of its classes, in the order given.

    Args:
        task: All classes.
        columns: Positions of those that are left.
    """
    chosen = torch.tensor([*columns], device=task.pairs.device)
    place = torch.full((len(task.class_names),), -1, device=task.pairs.device)
    place[chosen] = torch.arange(len(chosen), device=place.device)
    owners, kept = place[task.texts.classes].sort(stable=True)
    kept, owners = kept[owners >= 0], owners[owners >= 0]
    negatives = task.pairs[: len(task.class_names)]
    return replace(
        task,
        class_names=tuple(task.class_names[column] for column in columns),
        pairs=torch.cat([negatives[chosen], task.positives[chosen]]),
        texts=ClassTexts(task.texts.features[kept], owners),
    )


S = TypeVar("S", bound=MethodSettings)


class Method(nn.Module, Generic[S]):
    """Base of every method.

    A method has to have ``Settings`` and :meth:`scores`, and :meth:`losses` if it is trained by the
    loop. The rest has defaults. Its parameters are what is trained; what is frozen (the backbone,
    text features) is in ``task`` and belongs to no training.

    Args:
        settings: Hyper-parameters.
        task: Classes. Initial weights may follow from it.

    Attributes:
        Settings: Class of the settings.
        gives_probabilities: Whether :meth:`scores` are probabilities, so that a threshold on them
            means something.
        scores_locations: Whether it has :meth:`location_scores`.
        maps_images: Whether it has :meth:`maps`.
        grows: Buffers of which :meth:`fit` says how many rows they have, the same number each.
    """

    Settings: ClassVar[type[MethodSettings]]
    gives_probabilities: ClassVar[bool] = True
    scores_locations: ClassVar[bool] = False
    maps_images: ClassVar[bool] = False
    grows: ClassVar[frozenset[str]] = frozenset()

    def __init__(self, settings: S, task: Task) -> None:
        super().__init__()
        self.settings = settings
        self.task = task

    @classmethod
    def check(cls, settings: S, loop: Loop, num_classes: int) -> None:
        """Refuse settings that are bound to fail with this many classes.

        Raises:
            ValueError: They are; the message names the remedy.
        """

    def initialise(self) -> None:
        """Give a fresh method the weights that follow from its task, where its own do not do."""

    def prepare(
        self,
        features: FeatureSource,
        rows: Int64[np.ndarray, " rows"],
    ) -> None:
        """Look at the training images before the first step; it may change weights and buffers."""

    def losses(self, batch: Batch) -> dict[str, Float[Tensor, ""]]:
        """``"loss"``, which is minimised, then its terms by name, in the order they are shown.

        The sum over ``batch.workers`` workers of what each computes on its share is the loss of
        the whole batch, of whose labels ``batch.known`` are known. What is drawn at random
        (dropout) follows from the seed of the training, epoch and step; members of a pack
        draw the same. :meth:`scores` draws nothing.
        """
        raise NotImplementedError(f"{type(self).__name__} is not trained by the loop")

    def derived(self) -> dict[str, Tensor]:
        """New values of buffers that follow from the weights, which training does not keep up.

        They are computed when weights are scored or given away: what takes long to make of them,
        and scoring has to have.
        """
        return {}

    def weight_rules(self) -> dict[str, WeightRule]:
        """How weights step that do not step as the loop says, by their names."""
        return {}

    def fit(
        self,
        features: FeatureSource,
        rows: Int64[np.ndarray, " rows"],
        *,
        seed: int,
    ) -> dict[str, float]:
        """Train in place, for methods that are ``trained_by`` themselves.

        Args:
            features: Of the images; rows are read in their clean view.
            rows: Rows to train on.
            seed: Of all that is drawn.

        Returns:
            What it came to, by name: what was measured on the way, for its history.
        """
        raise NotImplementedError(f"{type(self).__name__} does not train itself")

    def scores(self, batch: Batch) -> Float[Tensor, "images classes"]:
        """What is said of every class in every image; the larger, the likelier it is there."""
        raise NotImplementedError

    def evidence(self, batch: Batch) -> Float[Tensor, "images classes"]:
        """Log-odds of presence where :meth:`scores` are probabilities, else the scores themselves.

        From it probabilities are calibrated (:mod:`dclip.calibration`).
        """
        scores = self.scores(batch)
        return torch.logit(scores.float(), eps=1e-7) if self.tells_probabilities() else scores

    def tells_probabilities(self) -> bool:
        """Whether :meth:`scores` are probabilities here, by the method or by the CLIP under it."""
        return self.gives_probabilities

    def found(self, scores: Float[Tensor, "images classes"]) -> Bool[Tensor, "images classes"]:
        """Which classes it says are there: those of probability above one half, or the largest.

        Args:
            scores: Its own, of :meth:`scores`.

        Raises:
            ValueError: It gives no probabilities, and has no rule of its own.
        """
        if not self.finds_classes():
            raise ValueError(
                f"{self.settings.title} gives no probabilities, so it does not find classes"
            )
        return scores >= scores.amax(1, keepdim=True).clamp(max=0.5)

    @classmethod
    def finds_classes(cls) -> bool:
        """Whether it has :meth:`found`."""
        return cls.gives_probabilities or cls.found is not Method.found

    def maps(
        self, batch: Batch
    ) -> tuple[Float[Tensor, "images classes"], Float[Tensor, "images classes rows columns"]]:
        """What :meth:`scores` says, and how much each location looks like each class, in one look.

        For methods that look at images themselves, and give every image a grid of its own.

        Args:
            batch: What they are fed; images of one size.
        """
        raise NotImplementedError(f"{type(self).__name__} makes no maps of images")

    def location_scores(
        self, local: Float[Tensor, "images locations dim"]
    ) -> Float[Tensor, "images classes locations"]:
        """How much each location looks like each class of the task, on any scale.

        Args:
            local: Local features, without the mean token.
        """
        raise NotImplementedError(f"{type(self).__name__} does not score locations")

    def location_logits(
        self,
        local: Float[Tensor, "images locations dim"],  # noqa: ARG002 - the signature is the contract
    ) -> Float[Tensor, "images classes locations"] | None:
        """Log-odds that each class is at each location; None for methods that do not say.

        Args:
            local: Local features, without the mean token.
        """
        return None

    @classmethod
    def locates(cls) -> bool:
        """Whether it has :meth:`location_logits`: it says where a class is by a probability."""
        return cls.scores_locations and cls.location_logits is not Method.location_logits

    def for_classes(self, task: Task) -> "Method[S]":
        """The same trained weights, asked of other classes.

        Raises:
            ValueError: The method is bound to the classes it was trained on.
        """
        return self.with_task(task)

    def columns_of(self, task: Task) -> list[int | None]:
        """Of each class of a task its column among the method's own; None for one that is none."""
        own = {name: column for column, name in enumerate(self.task.class_names)}
        return [own.get(name) for name in task.class_names]

    def own_columns(self, task: Task) -> list[int]:
        """The same, for methods that are bound to their classes.

        Raises:
            ValueError: One is none of those it was trained on.
        """
        columns = self.columns_of(task)
        own = [column for column in columns if column is not None]
        if len(own) < len(columns):
            raise ValueError(
                f"{self.settings.title} is bound to the {len(self.task.class_names)} classes it "
                f"was trained on, and {task.class_names[columns.index(None)]!r} is none of them"
            )
        return own

    def class_features(self) -> Float[Tensor, "classes dim"] | None:
        """The text feature that each class is compared by; None where there is none."""
        return None

    def watch(self) -> dict[str, float]:
        """What is worth watching each epoch, by name; values that are not finite are left out."""
        return {}

    def similarity(self) -> dict[str, float]:
        """Readings of how alike the classes are, for reports."""
        return {}

    def with_task(self, task: Task) -> "Method[S]":
        """The same weights, shared, with another task."""
        other = copy.copy(self)
        other.task = task
        return other

    def on(self, device: torch.device | str) -> "Method[S]":
        """The same method with weights and task on a device."""
        self.task = self.task.to(device)
        return self.to(device)

    def forward(self, name: str, *arguments: Any) -> Any:
        """Call a method of this object by name, as `torch.func.functional_call` can."""
        return getattr(self, name)(*arguments)


def initial(
    kind: type[Method[Any]],
    settings: MethodSettings,
    task: Task,
    *,
    seed: int,
    follow_task: bool = True,
) -> Method[Any]:
    """A method to start training from; equal seeds give equal weights.

    Args:
        kind: The method.
        settings: Its settings.
        task: Classes.
        seed: Seed of the weights; the global generator is left as it was.
        follow_task: Whether weights follow from the task where the method says so, which may take
            time and room; False for weights that are replaced.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        method = kind(settings, task)
        if follow_task:
            method.initialise()
    return method

"""MaPLe: prompts learned at several depths of a frozen CLIP, those of its towers coupled."""

import copy
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, ClassVar, TypeVar

import numpy as np
import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn
from torch.nn import functional as F

from dclip.backbones import Backbone, PromptedFeatures, Tower, require
from dclip.backbones.gradients import logit_scale_of
from dclip.data.pixels import normalise
from dclip.fitting.batches import Batch, FeatureSource
from dclip.methods.method import Method, Task
from dclip.methods.objective import watched_cosine
from dclip.methods.pixels.settings import MaPLeSettings, PromptSettings
from dclip.methods.settings import MethodSettings
from dclip.precision import at_least_float32
from dclip.words import counted

P = TypeVar("P", bound=PromptSettings)

DEPTH = 9
"""Blocks that prompts enter where nothing is said and the towers have as many."""


class Words:
    """What is frozen in the texts of some classes, and of texts that nothing is learned for.

    Args:
        backbone: Offers ``"token embeddings"``.
        class_names: Underscores are read as spaces.
        template: Prompt of a class.
        length: Words of a class's prompt whose embeddings learned vectors take the place of, from
            the first on.
        others: Further texts, with the template they were made by; theirs are learned only where
            deep prompts overwrite them.
        for_: Name of the method, for messages.

    Raises:
        ValueError: The backbone lets no vectors in, a text is too long for it, or there are more
            vectors than words before a name.
    """

    def __init__(
        self,
        backbone: Backbone,
        class_names: Sequence[str],
        template: str,
        length: int,
        *,
        others: tuple[str, Sequence[str]] = ("", ()),
        for_: str,
    ) -> None:
        self._backbone = require(backbone, "token embeddings", for_=for_)
        self._length, self._classes = length, len(class_names)
        texts = [template.replace("{}", name.replace("_", " ")) for name in class_names]
        ids = self._backbone.tokenize([*texts, *others[1]])
        for which, every, first in (
            (template, [*zip(class_names, ids[: len(texts)], strict=True)], "class"),
            (others[0], [*zip(others[1], ids[len(texts) :], strict=True)], "text"),
        ):
            if not every:
                continue
            prefix = which.partition("{}")[0].strip()
            words = self._backbone.tokenize([prefix])[0] if prefix else ids[0, :1]
            for name, own in every:
                room = int((own[: len(words)] == words).cumprod(0).sum()) - 1
                if room < length:
                    raise ValueError(
                        f"{for_}: {length} learned vectors take the place of the first words of "
                        f"{which!r}, of which {counted(max(room, 0), 'token')} stand before the "
                        f"name: they would overwrite {first} {name!r}; use a context_length of at "
                        f"most {max(room, 0)}, a longer template, or initial random"
                    )
        with torch.no_grad():
            self._ids, self._embeddings = ids, self._backbone.embed_tokens(ids)

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        """Itself: it is frozen, and large."""
        del memo
        return self

    def first(self) -> Float[Tensor, "prompts width"]:
        """Embeddings of the words that learned vectors take the place of."""
        return self._embeddings[0, 1 : 1 + self._length]

    def encode(
        self, context: Float[Tensor, "prompts width"], deep: Sequence[Float[Tensor, "_ _"]]
    ) -> Float[Tensor, "texts dim"]:
        """Text features, not normalised: of the classes, then of the other texts.

        Args:
            context: In the place of the first words of the classes' prompts.
            deep: Entry i takes the place of the states of the first words of all texts once block
                i (from 0) is done.
        """
        if self._ids.device != context.device:
            self._ids = self._ids.to(context.device)
            self._embeddings = self._embeddings.to(context.device)
        words = self._embeddings
        classes, behind = words[: self._classes], 1 + self._length
        learned = context.to(words.dtype).expand(len(classes), -1, -1)
        own = torch.cat([classes[:, :1], learned, classes[:, behind:]], dim=1)
        embeddings = torch.cat([own, words[self._classes :]])
        return self._backbone.encode_embedded(embeddings, self._ids, deep)


def single_labels(batch: Batch, *, for_: str) -> Int64[Tensor, " images"]:
    """The one class that each image shows.

    Args:
        batch: With label vectors.
        for_: Name of the method, for the message.

    Raises:
        ValueError: An image shows no class or several, or some of its labels are unknown.
    """
    present = (batch.labels == 1).sum(1)
    wrong = {
        "no class": int((present == 0).sum()),
        "several classes": int((present > 1).sum()),
        "unknown labels": int((batch.labels < 0).any(1).sum()),
    }
    if any(wrong.values()):
        told = ", ".join(f"{count} with {what}" for what, count in wrong.items() if count)
        raise ValueError(
            f"{for_} learns from images of one class each; of {counted(len(present), 'image')} "
            f"there are {told}"
        )
    return batch.labels.argmax(1)


class PromptMethod(Method[P]):
    r"""Base of methods that learn MaPLe's prompts.

    In both towers :math:`n` vectors stand among the tokens: in the text tower
    in the place of the first words of a prompt, in the image tower behind the patches. Those that
    enter the first block flow on for one block; before each of the next blocks, up to ``depth`` in
    all, learned ones take their place; after that they flow on. The vectors of the image tower
    are linear maps of those of the text tower, :math:`v_l = F_l(p_l)`, each with a bias.

    Args:
        settings: Hyper-parameters.
        task: Classes, with the backbone.

    Raises:
        ValueError: There is no backbone, its image tower is no ViT, a tower has fewer blocks than
            prompts should enter, or there are more vectors than words before a class name.
    """

    def __init__(self, settings: P, task: Task) -> None:
        super().__init__(settings, task)
        text, image = self._towers()
        blocks = min(text.blocks, image.blocks)
        depth = min(DEPTH, blocks) if settings.depth is None else settings.depth
        if depth > blocks:
            raise ValueError(
                f"{settings.title}: prompts cannot enter {depth} blocks, of which the smaller "
                f"tower has {blocks}; use a depth of at most {blocks}"
            )
        shape, std = (settings.context_length, text.width), settings.prompt_std
        self.context = nn.Parameter(std * torch.randn(shape))
        self.deep = nn.ParameterList(
            nn.Parameter(std * torch.randn(shape)) for _ in range(depth - 1)
        )
        first = [nn.Linear(text.width, image.width) for _ in range(min(depth, 2))]
        # those of the deeper blocks start as copies of one another
        copies = [copy.deepcopy(first[-1]) for _ in range(depth - len(first))]
        self.couplings = nn.ModuleList([*first, *copies])
        self.kept: Tensor
        self.register_buffer("kept", torch.zeros(len(task.class_names), task.dim))
        self._words: Words | None = self._words_of(task.class_names)

    def _towers(self) -> tuple[Tower, Tower]:
        """Sizes of the text tower and of the image tower."""
        backbone, title = self.backbone, self.settings.title
        text = require(backbone, "token embeddings", for_=title).text_tower
        for need in sorted(self.settings.needs):
            image = require(backbone, need, for_=title).image_tower  # type: ignore[call-overload]
        assert image is not None  # as it takes visual prompts
        return text, image

    def _words_of(self, names: Sequence[str]) -> Words:
        own = self.settings
        template, length = own.prompt_template(), own.context_length
        others = self.other_texts()
        return Words(self.backbone, names, template, length, others=others, for_=own.title)

    def other_texts(self) -> tuple[str, Sequence[str]]:
        """Texts beside those of the classes, and the template they were made by."""
        return "", ()

    def initialise(self) -> None:
        """Let the vectors of the input start as the words they stand for."""
        if self.settings.initial == "words":
            assert self._words is not None
            with torch.no_grad():
                self.context.copy_(self._words.first())

    def prepare(
        self,
        features: FeatureSource,
        rows: Int64[np.ndarray, " rows"],
    ) -> None:
        """Refuse training images of no class or of several, before any step.

        Raises:
            ValueError: See `single_labels`.
        """
        labels = features.labels[torch.from_numpy(rows)]
        single_labels(Batch(torch.empty(len(rows), 0, 0), labels), for_=self.settings.title)

    @property
    def backbone(self) -> Backbone:
        """The frozen CLIP.

        Raises:
            ValueError: The task has none.
        """
        if self.task.backbone is None:
            raise ValueError(
                f"{self.settings.title} goes through both towers of its CLIP for every image: give "
                "it a task that has the backbone, as Task.of makes it"
            )
        return self.task.backbone

    def scale(self) -> Float[Tensor, ""]:
        """Multiplier of the cosines."""
        own = self.settings.logit_scale
        scale = logit_scale_of(self.backbone) if own is None else own
        return torch.as_tensor(scale, device=self.context.device)

    def texts(self) -> Float[Tensor, "texts dim"]:
        """Features of the classes, then of the other texts, by the prompts as they are."""
        if self._words is None:
            self._words = self._words_of(self.task.class_names)
        return at_least_float32(self._words.encode(self.context, list(self.deep)))

    def images(
        self, images: Float[Tensor, "images 3 height width"], *, attention: int = 0
    ) -> PromptedFeatures:
        """What the image tower says of normalised images beside the prompts.

        Args:
            images: See ``encode_images`` of a backbone.
            attention: Of how many last blocks to return what enters their attention.
        """
        tower = require(self.backbone, "visual prompts", for_=self.settings.title)
        first, *deep = (
            coupling(text)
            for coupling, text in zip(self.couplings, [self.context, *self.deep], strict=True)
        )
        return tower.encode_with_prompts(images, first, deep, attention=attention)

    def normalised(self, batch: Batch) -> Float[Tensor, "images 3 height width"]:
        """The images of a batch as the backbone takes them."""
        backbone = self.backbone
        assert batch.pixels is not None  # as it is what is fed
        return normalise(batch.pixels, backbone.mean, backbone.std)

    def logits(
        self, images: Float[Tensor, "images dim"], texts: Float[Tensor, "texts dim"]
    ) -> Float[Tensor, "images texts"]:
        """Scaled cosines, in float32 at least, whatever precision the towers compute in."""
        with torch.autocast(images.device.type, enabled=False):
            unit = F.normalize(at_least_float32(images), dim=-1)
            return self.scale() * unit @ F.normalize(at_least_float32(texts), dim=-1).mT

    def class_features(self) -> Float[Tensor, "classes dim"]:
        """Texts of the classes by the trained prompts."""
        return self.kept

    def watch(self) -> dict[str, float]:
        """Mean cosine between the texts of different classes."""
        return watched_cosine(self.class_features())

    def derived(self) -> dict[str, Tensor]:
        """Texts of the trained prompts, so that scoring does not encode them for every batch."""
        return {"kept": self.texts()[: len(self.kept)].to(self.kept.dtype)}

    def for_classes(self, task: Task) -> Method[P]:
        """The same prompts, asked of any classes.

        Texts of classes that it was not trained on are encoded.

        Raises:
            ValueError: A name does not fit behind the prompts.
        """
        columns = self.columns_of(task)
        own = [column for column in columns if column is not None]
        other = self.with_task(replace(task, backbone=self.backbone))
        assert isinstance(other, PromptMethod)
        other._words = None
        if len(own) == len(columns):
            kept = self.kept[own]
        else:
            with torch.no_grad():
                kept = other.texts()[: len(columns)].to(self.kept.dtype)
        other._buffers = {**self._buffers, "kept": kept}
        return other


class MaPLe(PromptMethod[MaPLeSettings]):
    r"""Multi-modal prompt learning: the prompts of `PromptMethod`, trained to tell classes apart.

    The logit of a class is :math:`s \cdot \cos(v, t_c)` with CLIP's own multiplier; the loss is the
    mean cross-entropy. The frozen towers take gradients through, and change nothing.

    References:
        Khattak et al., "MaPLe: Multi-modal Prompt Learning", CVPR 2023, arXiv:2210.03117.
    """

    Settings: ClassVar[type[MethodSettings]] = MaPLeSettings

    def losses(self, batch: Batch) -> dict[str, Float[Tensor, ""]]:
        """Cross-entropy, a mean over the images of all workers.

        Raises:
            ValueError: See :func:`single_labels`.
        """
        labels = single_labels(batch, for_=self.settings.title)
        logits = self.logits(self.images(self.normalised(batch)).embedding, self.texts())
        loss = F.cross_entropy(logits, labels, reduction="sum")
        return {"loss": loss / images_in_all(batch)}

    def scores(self, batch: Batch) -> Float[Tensor, "images classes"]:
        """Probabilities, which sum to 1 over the classes."""
        images = self.images(self.normalised(batch)).embedding
        return self.logits(images, self.kept).softmax(-1)


def images_in_all(batch: Batch) -> int:
    """Number of images in the shares of all workers; of a batch that does not say, its own."""
    return max(1, batch.total or len(batch.labels))

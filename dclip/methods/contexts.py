"""Learned contexts through a frozen text tower: vectors in the place of a prompt's words.

The prompt of a class is the token that starts a text, the context, the class's name with a full
stop, and the token that ends it. All but the context is frozen, and is put together once.
"""

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from dclip.backbones import Backbone, TextGradients, require
from dclip.methods.method import Task


def token_width(task: Task, *, for_: str) -> int:
    """Numbers in a token of the text tower, which are those of a context vector.

    Args:
        task: With a backbone, or told what its width was.
        for_: Name of the method, for the message.

    Raises:
        ValueError: The backbone lets no context in, or there is none and no width is known.
    """
    if task.backbone is not None:
        return require(task.backbone, "token embeddings", for_=for_).text_tower.width
    if task.text_width is None:
        raise ValueError(
            f"{for_} learns vectors among the tokens of a text encoder: give it a task that has "
            "the backbone, as Task.of makes it"
        )
    return task.text_width


class Prompts:
    """What is frozen in the prompts of some classes, and the way through the text tower.

    Args:
        backbone: Offers ``"token embeddings"``.
        class_names: Of any number of tokens each; underscores are read as spaces.
        length: Vectors of a context.
        for_: Name of the method, for messages.

    Raises:
        ValueError: The backbone lets no context in, or a context leaves no room for a name.
    """

    def __init__(
        self, backbone: Backbone, class_names: Sequence[str], length: int, *, for_: str
    ) -> None:
        texts = require(backbone, "token embeddings", for_=for_)
        names = [name.replace("_", " ") for name in class_names]
        ids = texts.tokenize([*(f"{name}." for name in names), "."])
        room, padding = ids.shape[1], ids[-1, -1]
        ids = ids[:-1]
        places = torch.arange(1, room + 1, device=ids.device)
        used = int(torch.where(ids != padding, places, 0).amax())
        if used + length > room:
            longest = names[int((ids != padding).sum(1).argmax())]
            raise ValueError(
                f"{for_}: a context of {length} vectors leaves {max(0, room - length - 2)} of the "
                f"{room} tokens that {backbone.name} reads to a class, and {longest!r} takes "
                f"{used - 2} with its full stop; use a context_length of at most {room - used}"
            )
        with torch.no_grad():
            words = texts.embed_tokens(ids)
        # the ids tell where a text ends; those of the context stand for no word
        self._ids = torch.cat([ids[:, :1].expand(-1, length + 1), ids[:, 1:]], dim=1)[:, :room]
        self._start, self._name = words[:, :1], words[:, 1 : room - length]

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        """Itself: it is frozen, and large."""
        del memo
        return self

    def encode(
        self, backbone: TextGradients, *contexts: Float[Tensor, "..."]
    ) -> Float[Tensor, "texts dim"]:
        """Text features, not normalised: of all classes in the first context, then in the next.

        Gradients reach the contexts. Under :func:`torch.func.vmap` the texts of all members go
        through the tower as one batch.

        Args:
            backbone: As given at first.
            contexts: Each [length, width], the same for all classes, or [classes, length, width].
        """
        device = contexts[0].device
        if self._start.device != device:
            moved = (each.to(device) for each in (self._ids, self._start, self._name))
            self._ids, self._start, self._name = moved
        rows = len(self._ids)
        embeddings = torch.cat(
            [
                torch.cat(
                    [self._start, each.to(self._start.dtype).expand(rows, -1, -1), self._name], 1
                )
                for each in contexts
            ]
        )
        ids = self._ids.repeat(len(contexts), 1)
        keep = torch.is_grad_enabled()
        features: Tensor = _Encode.apply(embeddings, ids, backbone, keep, _Tape())
        return features.to(device)  # weights may be made before they are moved to the backbone


class _Tape:
    """What the text tower keeps of a step for its gradient."""

    entered: Tensor
    features: Tensor


class _Encode(torch.autograd.Function):
    """``encode_embedded``, whose vmap is one more axis of texts.

    What the tower keeps for its gradient stays on a tape beside it: a function that is batched has
    no other place for it.
    """

    @staticmethod
    def forward(
        embeddings: Float[Tensor, "texts tokens width"],
        ids: Int[Tensor, "texts tokens"],
        backbone: TextGradients,
        keep: bool,
        tape: _Tape,
    ) -> Float[Tensor, "texts dim"]:
        if not keep:
            with torch.no_grad():
                return backbone.encode_embedded(embeddings, ids)
        with torch.enable_grad():
            entered = embeddings.detach().requires_grad_()
            features = backbone.encode_embedded(entered, ids)
        tape.entered, tape.features = entered, features
        return features.detach()

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        del output
        ctx.tape = inputs[-1]

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(
        ctx: Any, gradient: Float[Tensor, "texts dim"]
    ) -> tuple[Tensor, None, None, None, None]:
        tape: _Tape = ctx.tape
        (by_embeddings,) = torch.autograd.grad(tape.features, tape.entered, gradient)
        return by_embeddings, None, None, None, None

    @staticmethod
    def vmap(
        info: Any,
        in_dims: tuple[int | None, ...],
        embeddings: Tensor,
        ids: Tensor,
        backbone: TextGradients,
        keep: bool,
        tape: _Tape,
    ) -> tuple[Tensor, int | None]:
        """The texts of all members of a pack, one after the other."""
        if in_dims[0] is None:
            return _Encode.apply(embeddings, ids, backbone, keep, tape), None
        together = embeddings.movedim(in_dims[0], 0).flatten(0, 1)
        every = ids.repeat(info.batch_size, 1)
        features: Tensor = _Encode.apply(together, every, backbone, keep, tape)
        return features.reshape(info.batch_size, -1, features.shape[1]), 0

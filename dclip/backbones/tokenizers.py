"""Texts to the ids of tokens, for text towers that do not read CLIP's byte pairs.

Those of SigLIP, CLIPA and MetaCLIP 2 read by a tokenizer of Hugging Face's, whose files lie on the
Hub. With random weights no word means anything, and nothing is to be fetched: a stand-in takes
CLIP's byte pairs, folded into the vocabulary that the tower has.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import open_clip
import torch
from jaxtyping import Int64
from torch import Tensor

_PAD, _END = 0, 1


class StandInTokenizer:
    """CLIP's byte pairs for a text tower with random weights and another vocabulary.

    It calls for nothing to be fetched. Different texts get different ids, equal ones the same.

    Args:
        context_length: Tokens that the tower reads.
        vocab_size: Tokens that it knows.
        text: Its configuration, which says which token ends a text.
    """

    def __init__(self, context_length: int, vocab_size: int, text: Mapping[str, Any]) -> None:
        self.context_length = context_length
        self._own = open_clip.SimpleTokenizer()
        self._end = int(text.get("eos_id", _END if text.get("pool_type") == "last" else 2))
        self._first = max(self._end, _END) + 1
        self._room = vocab_size - self._first

    def encode(self, text: str) -> list[int]:
        """The ids of a text and of the token that ends it, however many they are."""
        return [*(self._first + each % self._room for each in self._own.encode(text)), self._end]

    def __call__(
        self, texts: Sequence[str], context_length: int | None = None
    ) -> Int64[Tensor, "texts tokens"]:
        """The ids of texts, padded, and cut where they are too long."""
        length = context_length or self.context_length
        ids = torch.full((len(texts), length), _PAD, dtype=torch.int64)
        for row, text in enumerate(texts):
            words = self.encode(text)[:length]
            ids[row, : len(words)] = torch.tensor(words)
        return ids


class HuggingFaceTokenizer:
    """A tokenizer of Hugging Face's, as open_clip wraps it.

    Args:
        wrapped: open_clip's ``HFTokenizer``.
    """

    def __init__(self, wrapped: Any) -> None:
        self._wrapped = wrapped
        self.context_length = int(wrapped.context_length)

    def encode(self, text: str) -> list[int]:
        """The ids of a text, those that start and end it included, however many they are."""
        ids = self._wrapped.tokenizer(self._wrapped.clean_fn(text))["input_ids"]
        return [int(each) for each in ids]

    def __call__(
        self, texts: Sequence[str], context_length: int | None = None
    ) -> Int64[Tensor, "texts tokens"]:
        """The ids of texts, padded, and cut where they are too long."""
        ids: Tensor = self._wrapped(list(texts), context_length=context_length)
        return ids.to(torch.int64)


def hugging_face_tokenizer(name: str, text: Mapping[str, Any], label: str) -> HuggingFaceTokenizer:
    """The tokenizer that belongs to a text tower.

    Args:
        name: A folder, or a name on the Hub.
        text: Configuration of the tower: context length, cleaning, mode.
        label: How messages call the model.

    Raises:
        OSError: If its files are not on this machine and cannot be fetched.
    """
    own = dict(text.get("tokenizer_kwargs") or {})
    try:
        wrapped = open_clip.HFTokenizer(
            name,
            context_length=int(text.get("context_length", 77)),
            tokenizer_mode=text.get("tokenizer_mode"),
            **own,
        )
    except (OSError, ValueError) as error:
        reason = str(error).split("\n")[0].strip()[:160]
        raise OSError(
            f"the tokenizer {name} of {label} is not on this machine and could not be fetched"
            f" ({reason}). Where there is a network, fetch it: hf download {name}"
        ) from error
    return HuggingFaceTokenizer(wrapped)

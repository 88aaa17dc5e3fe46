"""Texts to the ids of tokens, for text towers that do not read CLIP's byte pairs.

Those of SigLIP, CLIPA and MetaCLIP 2 read by a tokenizer of Hugging Face's, whose files lie on the
Hub. With random weights no word means anything, and nothing is to be fetched: a stand-in takes
CLIP's byte pairs, folded into the vocabulary that the tower has.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import open_clip
import torch
from jaxtyping import Int64
from open_clip.tokenizer import HFTokenizer
from torch import Tensor

from dclip.backbones.released import ask_once
from dclip.words import first_line

_PAD, _END = 0, 1
_CLEANINGS = ("whitespace", "lower", "canonicalize")  # open_clip's; the first where none is said


class StandInTokenizer:
    """CLIP's byte pairs for a text tower with random weights and another vocabulary.

    It calls for nothing to be fetched. Different texts get different ids, equal ones the same.

    Args:
        context_length: Tokens that the tower reads.
        vocab_size: Tokens that it knows.
        text: Its configuration, which says which token ends a text.
        pad: What fills the rest.
    """

    def __init__(
        self, context_length: int, vocab_size: int, text: Mapping[str, Any], *, pad: int = _PAD
    ) -> None:
        self.context_length = context_length
        self._pad = pad
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
        ids = torch.full((len(texts), length), self._pad, dtype=torch.int64)
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
        own, clean = self._wrapped.tokenizer, self._wrapped.clean_fn(text)
        if self._wrapped.tokenizer_mode == "clips":
            words = own(clean, add_special_tokens=False)["input_ids"]
            ids = [own.bos_token_id, *words, own.eos_token_id, own.cls_token_id]
        else:
            ids = own(clean)["input_ids"]
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
        name: A folder, or a name on the Hub; of that the cache is looked at first.
        text: Configuration of the tower: context length, cleaning, mode.
        label: How messages call the model.

    Raises:
        ValueError: If the files of a folder, or how texts are cleaned, cannot be used.
        OSError: If files of the Hub are not on this machine and cannot be fetched.
    """
    options: dict[str, Any] = {
        "context_length": int(text.get("context_length", 77)),
        "tokenizer_mode": text.get("tokenizer_mode"),
        **(text.get("tokenizer_kwargs") or {}),
    }
    if (clean := options.get("clean", _CLEANINGS[0])) not in _CLEANINGS:
        raise ValueError(
            f"{label}: texts are to be cleaned by {clean!r}, which is none of"
            f" {', '.join(_CLEANINGS)}"
        )
    try:
        return _open(name, options | {"local_files_only": True})
    except Exception as error:  # of its readers, one raises nothing but Exception
        if Path(name).is_dir():
            raise ValueError(
                f"{label}: the folder {name} has no tokenizer that can be read"
                f" ({first_line(error, 160)}). One is tokenizer.json and tokenizer_config.json, or"
                " the model's own vocabulary, such as spiece.model"
            ) from error
    try:
        ask_once(name, "tokenizer_config.json")  # its client would go on for a minute
        return _open(name, options)
    except Exception as error:
        raise OSError(
            f"the tokenizer {name} of {label} is not on this machine and could not be fetched"
            f" ({first_line(error, 160)}). Where there is a network, fetch it: hf download {name}"
        ) from error


def _open(name: str, options: Mapping[str, Any]) -> HuggingFaceTokenizer:
    """The tokenizer, if it knows words.

    Raises:
        ValueError: It does not: transformers makes one without a vocabulary where the file of that
            is missing, and all texts are one to it.
    """
    tokenizer = HuggingFaceTokenizer(HFTokenizer(name, **options))
    if tokenizer.encode("dog") == tokenizer.encode("cat"):
        raise ValueError("its vocabulary is missing")
    return tokenizer

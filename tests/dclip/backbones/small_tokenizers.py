"""Tokenizers of each form that released models read by, small: files as the Hub has them.

Each is a folder with `tokenizer.json` and `tokenizer_config.json`. The vocabulary is that of a
dozen words, the special tokens and their places are those of the model named.
"""

import json
from pathlib import Path
from typing import Any

from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

WORDS = ("a", "photo", "of", "dog", "cat", "horse", "on", "the", "hill", "two", "dogs", "hot")
LETTERS = tuple("abcdefghijklmnopqrstuvwxyz")


def siglip(folder: Path) -> Path:
    """SigLIP's: a sentencepiece unigram model; `</s>` ends a text and fills the rest, both id 1."""
    special = ("<pad>", "</s>", "<unk>")
    return _write(
        folder,
        _unigram(special, ends=["</s>"]),
        special,
        {"tokenizer_class": "T5Tokenizer", "extra_ids": 0, "additional_special_tokens": []}
        | {"pad_token": "</s>", "eos_token": "</s>", "unk_token": "<unk>"},
    )


def mt5(folder: Path) -> Path:
    """mT5's, of MetaCLIP 2 and mT5 towers: ended by `</s>`, id 1, filled by `<pad>`, id 0."""
    special = ("<pad>", "</s>", "<unk>")
    return _write(
        folder,
        _unigram(special, ends=["</s>"]),
        special,
        {"tokenizer_class": "T5Tokenizer", "extra_ids": 0, "additional_special_tokens": []}
        | {"pad_token": "<pad>", "eos_token": "</s>", "unk_token": "<unk>"},
    )


def siglip2(folder: Path) -> Path:
    """SigLIP 2's: Gemma's byte pairs, nothing in front, `<eos>`, id 1, behind, filled by id 0."""
    special = ("<pad>", "<eos>", "<bos>", "<unk>")
    pieces = [*LETTERS, "▁"]
    bytes_ = [f"<0x{value:02X}>" for value in range(256)]
    vocabulary, merges = _merged([*special, *bytes_, *pieces], [*WORDS, *(f"▁{w}" for w in WORDS)])
    own = Tokenizer(
        models.BPE(vocabulary, merges, unk_token="<unk>", byte_fallback=True, fuse_unk=True)
    )
    own.normalizer = normalizers.Replace(" ", "▁")
    own.pre_tokenizer = pre_tokenizers.Split(" ", "merged_with_previous")
    own.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback()])
    own.post_processor = _around([], ["<eos>"], vocabulary)
    return _write(
        folder,
        own,
        special,
        {"tokenizer_class": "GemmaTokenizer", "add_bos_token": False, "add_eos_token": True}
        | {"pad_token": "<pad>", "eos_token": "<eos>", "bos_token": "<bos>", "unk_token": "<unk>"}
        | {"padding_side": "right"},
    )


def bert(folder: Path) -> Path:
    """BERT's word pieces, of CLIPA: between `[CLS]` and `[SEP]`, filled by `[PAD]`, id 0."""
    special = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
    pieces = [*special, *LETTERS, *(f"##{letter}" for letter in LETTERS), *WORDS[1:], "##s", "."]
    vocabulary = {piece: at for at, piece in enumerate(dict.fromkeys(pieces))}
    own = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    own.normalizer = normalizers.BertNormalizer(lowercase=True)
    own.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    own.decoder = decoders.WordPiece()
    own.post_processor = _around(["[CLS]"], ["[SEP]"], vocabulary)
    names = ("pad_token", "unk_token", "cls_token", "sep_token", "mask_token")
    return _write(
        folder,
        own,
        special,
        {"tokenizer_class": "BertTokenizer", "do_lower_case": True}
        | dict(zip(names, special, strict=True)),
    )


def xlm_roberta(folder: Path) -> Path:
    """XLM-RoBERTa's and XLM-V's: between `<s>`, id 0, and `</s>`, id 2, filled by `<pad>`, id 1."""
    special = ("<s>", "<pad>", "</s>", "<unk>")
    return _write(
        folder,
        _unigram(special, starts=["<s>"], ends=["</s>"], more=("<mask>",)),
        (*special, "<mask>"),
        {"tokenizer_class": "XLMRobertaTokenizer", "mask_token": "<mask>"}
        | {"bos_token": "<s>", "cls_token": "<s>", "eos_token": "</s>", "sep_token": "</s>"}
        | {"pad_token": "<pad>", "unk_token": "<unk>"},
    )


def roberta(folder: Path) -> Path:
    """RoBERTa's byte pairs: between `<s>`, id 0, and `</s>`, id 2, filled by `<pad>`, id 1."""
    special = ("<s>", "<pad>", "</s>", "<unk>", "<mask>")
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary, merges = _merged([*special, *alphabet], [*WORDS, *(f"Ġ{w}" for w in WORDS)])
    own = Tokenizer(models.BPE(vocabulary, merges))
    own.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    own.decoder = decoders.ByteLevel()
    own.post_processor = processors.RobertaProcessing(
        ("</s>", 2), ("<s>", 0), add_prefix_space=False
    )
    return _write(
        folder,
        own,
        special,
        {"tokenizer_class": "RobertaTokenizer", "mask_token": "<mask>", "trim_offsets": True}
        | {"bos_token": "<s>", "cls_token": "<s>", "eos_token": "</s>", "sep_token": "</s>"}
        | {"pad_token": "<pad>", "unk_token": "<unk>"},
    )


def nllb(folder: Path) -> Path:
    """NLLB's: the language, then the text, then `</s>`, id 2; filled by `<pad>`, id 1."""
    special = ("<s>", "<pad>", "</s>", "<unk>")
    codes = ("eng_Latn", "fra_Latn")
    pieces = [*special, "▁", *LETTERS]
    vocabulary, merges = _merged(pieces, [*WORDS, *(f"▁{w}" for w in WORDS)])
    for code in (*codes, "<mask>"):
        vocabulary[code] = len(vocabulary)
    own = Tokenizer(models.BPE(vocabulary, merges, unk_token="<unk>", fuse_unk=True))
    own.pre_tokenizer = pre_tokenizers.Metaspace(replacement="▁", prepend_scheme="always")
    own.decoder = decoders.Metaspace(replacement="▁", prepend_scheme="always")
    own.post_processor = _around(["eng_Latn"], ["</s>"], vocabulary)
    return _write(
        folder,
        own,
        (*special, *codes, "<mask>"),
        {"tokenizer_class": "NllbTokenizer", "src_lang": "eng_Latn", "mask_token": "<mask>"}
        | {"bos_token": "<s>", "cls_token": "<s>", "eos_token": "</s>", "sep_token": "</s>"}
        | {"pad_token": "<pad>", "unk_token": "<unk>"}
        | {"additional_special_tokens": list(codes)},
    )


def tips(folder: Path) -> Path:
    """TIPSv2's: lower case, byte pairs by word, no start and no end, filled by `<pad>`, id 0."""
    special = ("<pad>", "<unk>")
    bytes_ = [f"<0x{value:02X}>" for value in range(256)]
    vocabulary, merges = _merged([*special, *bytes_, "▁", *LETTERS], [f"▁{w}" for w in WORDS])
    own = Tokenizer(
        models.BPE(vocabulary, merges, unk_token="<unk>", byte_fallback=True, fuse_unk=True)
    )
    own.normalizer = normalizers.Lowercase()
    own.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.WhitespaceSplit(),
            pre_tokenizers.Metaspace(replacement="▁", prepend_scheme="always"),
        ]
    )
    own.decoder = decoders.Metaspace(replacement="▁", prepend_scheme="always")
    return _write(
        folder,
        own,
        special,
        {"tokenizer_class": "Tipsv2Tokenizer", "do_lower_case": True, "model_max_length": 64}
        | {"pad_token": "<pad>", "unk_token": "<unk>"},
    )


def _unigram(
    special: tuple[str, ...],
    *,
    starts: list[str] | None = None,
    ends: list[str],
    more: tuple[str, ...] = (),
) -> Tokenizer:
    """A unigram model: whole words are likelier than their letters."""
    scored = [(piece, 0.0) for piece in special]
    scored += [(f"▁{word}", -2.0) for word in WORDS]
    scored += [("▁", -4.0), *((letter, -5.0) for letter in LETTERS)]
    scored += [(piece, 0.0) for piece in more]
    own = Tokenizer(models.Unigram(scored, unk_id=special.index("<unk>")))
    own.normalizer = normalizers.Replace(Regex(" {2,}"), " ")
    own.pre_tokenizer = pre_tokenizers.Metaspace(replacement="▁", prepend_scheme="always")
    own.decoder = decoders.Metaspace(replacement="▁", prepend_scheme="always")
    vocabulary = {piece: at for at, (piece, _) in enumerate(scored)}
    own.post_processor = _around(starts or [], ends, vocabulary)
    return own


def _merged(pieces: list[str], words: list[str]) -> tuple[dict[str, int], list[tuple[str, str]]]:
    """A vocabulary of pieces and words, and the rules that make words of letters, left to right."""
    vocabulary = {piece: at for at, piece in enumerate(dict.fromkeys(pieces))}
    merges: dict[tuple[str, str], None] = {}
    for word in words:
        for end in range(1, len(word)):
            merges[word[:end], word[end]] = None
            vocabulary.setdefault(word[: end + 1], len(vocabulary))
    return vocabulary, list(merges)


def _around(starts: list[str], ends: list[str], vocabulary: dict[str, int]) -> Any:
    """Special tokens before and after every text."""
    own = [(token, vocabulary[token]) for token in dict.fromkeys([*starts, *ends])]
    return processors.TemplateProcessing(
        single=" ".join([*starts, "$A", *ends]),
        pair=" ".join([*starts, "$A", "$B", *ends]),
        special_tokens=own,
    )


def _write(folder: Path, own: Tokenizer, special: tuple[str, ...], config: dict[str, Any]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    own.add_special_tokens(list(special))
    own.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=1))
    return folder

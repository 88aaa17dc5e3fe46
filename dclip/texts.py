"""Class names as CLIP reads them: which are one text, which are unfit, and how long texts are.

Nothing here loads a model: byte pairs are counted by the vocabulary file that comes with open_clip.
"""

import gzip
import html
import itertools
import json
import re
import unicodedata
from collections import Counter
from collections.abc import Sequence
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

_SEPARATORS = re.compile(r"[\s_\-]+")
_VOCABULARY = "bpe_simple_vocab_16e6.txt.gz"
_MERGES = 49152 - 256 - 2  # rules of the file that CLIP uses: its vocabulary without bytes, ends
_DEFAULT_CONTEXT = 77  # open_clip's, where a configuration does not say


def fold_name(name: str) -> str:
    """A name without what CLIP hardly sees: case, and how its words are joined.

    Example:
        >>> fold_name("Traffic_Light"), fold_name(" traffic-light ")
        ('traffic light', 'traffic light')
    """
    plain = unicodedata.normalize("NFKC", name).casefold()
    return _SEPARATORS.sub(" ", plain).strip()


def same_text(class_names: Sequence[str]) -> list[tuple[str, ...]]:
    """Groups of names that are one text to CLIP, in the order they first occur.

    Names of a group get nearly the same text feature, so that a softmax splits one probability
    among them.

    Example:
        >>> same_text(("Dog", "cat", "dog", "hot dog", "hot-dog"))
        [('Dog', 'dog'), ('hot dog', 'hot-dog')]
    """
    groups: dict[str, list[str]] = {}
    for name in class_names:
        groups.setdefault(fold_name(name), []).append(name)
    return [tuple(names) for names in groups.values() if len(names) > 1]


def distinct_words(words: tuple[str, ...]) -> tuple[str, ...]:
    """The words themselves.

    Raises:
        ValueError: One is blank, or two are one text.
    """
    if any(not word.strip() for word in words) or same_text(words):
        raise ValueError("words must differ, and none may be blank")
    return words


def words_beside(words: Sequence[str], class_names: Sequence[str]) -> list[str]:
    """Those of some words that are no name of a class.

    Example:
        >>> words_beside(("sky", "Tree", "hot-dog"), ("tree", "hot dog"))
        ['sky']
    """
    taken = set(map(fold_name, class_names))
    return [word for word in words if fold_name(word) not in taken]


def check_class_names(class_names: Sequence[str]) -> None:
    """Refuse names that no columns can be called by.

    Raises:
        ValueError: There are none, or one is blank or repeated.
    """
    if isinstance(class_names, str):
        raise ValueError(f"class_names must be a sequence of names, got the string {class_names!r}")
    if not class_names:
        raise ValueError("class_names is empty; give at least one class name")
    blank = [index for index, name in enumerate(class_names) if not name.strip()]
    if blank:
        raise ValueError(f"class names must not be blank; look at positions {blank}")
    repeated = sorted(name for name, count in Counter(class_names).items() if count > 1)
    if repeated:
        raise ValueError(f"class names must be distinct; remove the repetition of {repeated}")


def name_problem(name: str) -> str:
    """Why a text cannot be a class name; empty if it can.

    Example:
        >>> name_problem("dog"), name_problem(" ")
        ('', 'is blank')
    """
    if not name.strip():
        return "is blank"
    for letter in name:
        if unicodedata.category(letter) in ("Cc", "Cs", "Zl", "Zp") or letter == "\ufeff":
            return f"has the control character {letter!r}"
    return ""


def count_tokens(text: str) -> int:
    """Tokens of a text in CLIP's byte-pair encoding, with those that start and end it."""
    import ftfy  # a tenth of a second; few names need it

    plain = html.unescape(html.unescape(ftfy.fix_text(text)))
    words = _word_pattern().findall(" ".join(plain.split()).lower())
    return 2 + sum(map(_count_in_word, words))


def too_long(
    class_names: Sequence[str], templates: Sequence[str], length: int
) -> list[tuple[str, int]]:
    """Names whose longest prompt does not fit the context, each with the tokens it takes.

    Args:
        class_names: Any names.
        templates: Prompt templates, each with one ``{}``.
        length: Tokens the text encoder reads, those that start and end a text included.
    """
    found = []
    for name in class_names:
        texts = [template.replace("{}", name) for template in templates]
        # a token is a byte at least, and nothing makes plain ASCII longer
        if name.isascii() and "&" not in name and max(map(len, texts)) + 2 <= length:
            continue
        tokens = max(map(count_tokens, texts))
        if tokens > length:
            found.append((name, tokens))
    return found


EMBEDDED = ("tiny", "tiny-vit")
"""The small CLIPs that come with the package; the first has a ResNet, the second a ViT."""


def embedded_stem(backbone: str) -> str:
    """What the files of a small CLIP are called in ``dclip/world``, without their endings."""
    return f"{backbone.replace('-', '_')}_clip"


@cache
def context_length(backbone: str) -> int | None:
    """Tokens that the text encoder of a backbone reads; None where only its own code tells.

    Args:
        backbone: A name as `dclip.backbones.load_backbone` takes it.
    """
    if backbone in EMBEDDED:
        file = Path(__file__).parent / "world" / f"{embedded_stem(backbone)}.json"
    else:
        file = _open_clip() / "model_configs" / f"{backbone.replace('/', '-')}.json"
    try:
        config = json.loads(file.read_text("utf-8"))
    except OSError:
        return None
    length: int = config.get("text_cfg", {}).get("context_length", _DEFAULT_CONTEXT)
    return length


def _open_clip() -> Path:
    """Folder of open_clip, which is not imported: that would load torch."""
    spec = find_spec("open_clip")
    assert spec is not None
    assert spec.submodule_search_locations
    return Path(spec.submodule_search_locations[0])


@cache
def _word_pattern() -> Any:
    """What CLIP takes for one word: an ending, letters, one digit, or other signs."""
    import regex  # type: ignore[import-untyped]  # few names need it

    return regex.compile(
        r"<start_of_text>|<end_of_text>|'(?:s|t|re|ve|m|ll|d)|\p{L}+|\p{N}|[^\s\p{L}\p{N}]+",
        regex.IGNORECASE,
    )


@cache
def _ranks() -> dict[tuple[str, str], int]:
    """Place of each merge among the rules, by the pair it joins."""
    with gzip.open(_open_clip() / _VOCABULARY, "rt", encoding="utf-8") as file:
        next(file)  # its version
        rules = [tuple(line.split()) for line, _ in zip(file, range(_MERGES), strict=False)]
    return {(rule[0], rule[1]): place for place, rule in enumerate(rules)}


@cache
def _letters() -> tuple[str, ...]:
    """The letter that stands for each byte in the vocabulary: itself where it can be seen."""
    seen = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    hidden = [byte for byte in range(256) if byte not in seen]
    letters = {byte: chr(byte) for byte in seen}
    letters |= {byte: chr(256 + place) for place, byte in enumerate(hidden)}
    return tuple(letters[byte] for byte in range(256))


def _count_in_word(word: str) -> int:
    """Tokens of one word: pairs are joined, the earliest rule first, until no rule fits."""
    if word in ("<start_of_text>", "<end_of_text>"):
        return 1
    parts = [_letters()[byte] for byte in word.encode()]
    parts[-1] += "</w>"
    ranks = _ranks()
    while len(parts) > 1:
        best = min(itertools.pairwise(parts), key=lambda pair: ranks.get(pair, _MERGES))
        if best not in ranks:
            break
        joined: list[str] = []
        for part in parts:
            if joined and (joined[-1], part) == best:
                joined[-1] += part
            else:
                joined.append(part)
        parts = joined
    return len(parts)

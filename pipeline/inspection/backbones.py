"""Tables of the frozen CLIPs that can be taken, for a terminal and for the documents."""

from collections.abc import Iterable, Sequence
from itertools import groupby

from dclip.architectures import DEFAULT_RESOLUTION, Architecture, Facts, Weights, is_here
from dclip.texts import EMBEDDED
from dclip.words import counted
from pipeline.terminal.pages import page
from pipeline.terminal.table import Column, aligned

BLOCKS = ("vv", "sclip", "clearclip", "naclip", "maskclip")
"""Kinds that change the last blocks of a ViT; a tower has all of them or none."""

BEGIN, END = "<!-- table of backbones: begin -->", "<!-- table of backbones: end -->"
"""Between these lines of the page on backbones stands what `markdown` makes."""

Pair = tuple[Architecture, Weights | None]

_HF = "dclip[hf]"
_LICENCES = "licence: as timm or a model card states it; open_clip states none."


def listed(pairs: Sequence[Pair], known: Facts) -> str:
    """A line for every pair of architecture and weights, and what else can be loaded.

    Args:
        pairs: Those to list; None stands for random weights.
        known: Where they come from.
    """
    left = ("name", "weights", "family", "kinds")
    right = ("width", "stride", "px", "mean")
    columns = [
        *(Column(title, is_left=True) for title in left),
        *(Column(title) for title in right),
        *(Column(title, is_left=True) for title in ("resize", "needs", "here", "licence")),
    ]
    about = f"of open_clip {known.versions['open_clip_torch']}"
    if not known.is_installed:
        about += "; another version is installed, of which 'show NAME' tells more"
    return "\n".join(
        [
            *aligned(columns, (_row(*pair) for pair in pairs)),
            "",
            f"{counted(len(pairs), 'line')}, {about}. blocks: {', '.join(BLOCKS)}.",
            f"needs {_HF}: pip install '{_HF}', for a tokenizer of Hugging Face's.",
            "here: the weights are on this machine.",
            _LICENCES,
            "Other names: tiny, tiny-vit, hf-hub:org/name, local-dir:PATH, package.module:factory;",
            f"weights from a file, or random, too ({page('backbones')}).",
        ]
    )


def _row(own: Architecture, weights: Weights | None) -> tuple[str, ...]:
    return (
        own.name,
        "random" if weights is None else weights.tag,
        own.family,
        _kinds(own),
        str(own.width),
        str(own.stride),
        _size(own),
        "-" if weights is None else f"{weights.mean[0]:.3g}",
        "-" if weights is None else weights.resize,
        "-" if own.tokenizer is None else _HF,
        "yes" if is_here(weights) else "-",
        (weights and weights.licence) or "not stated",
    )


def markdown(pairs: Iterable[Pair]) -> str:
    """A table with a line for every architecture, and all its weights in it."""
    lines = [
        "| architecture | weights | family | kinds | width | stride | px | mean, resize | needs |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for own, group in groupby(pairs, lambda pair: pair[0]):
        weights = [each for _, each in group if each is not None]
        pixels = dict.fromkeys(f"{each.mean[0]:.3g}, {each.resize}" for each in weights)
        cells = (
            own.name,
            ", ".join(each.tag for each in weights) or "-",
            own.family,
            _kinds(own),
            own.width,
            own.stride,
            _size(own),
            "; ".join(pixels) or "-",
            "-" if own.tokenizer is None else "hf",
        )
        lines.append(f"| {' | '.join(map(str, cells))} |")
    return "\n".join(lines)


def replace_section(document: str, table: str) -> str:
    """A document with another table between its two markers.

    Raises:
        ValueError: It does not have them.
    """
    before, begin, rest = document.partition(f"{BEGIN}\n")
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"the document has no lines {BEGIN} and {END}")
    return f"{before}{begin}{table}\n{end}{after}"


def shown(
    own: Architecture,
    weights: Sequence[Weights],
    *,
    chosen: str | None = None,
    tag: str | None = None,
) -> str:
    """All that is known of one model, and how to take it.

    Args:
        own: What does not depend on weights.
        weights: Those to tell of.
        chosen: What ``--pretrained`` says of them; None where it says nothing.
        tag: What ``--tag`` says of them.
    """
    rows, columns = own.grid
    reads = "CLIP's own tokenizer"
    if own.tokenizer is not None:
        reads = f"the tokenizer {own.tokenizer} of Hugging Face"
    tower = f", text tower {own.text_tower} of Hugging Face" if own.text_tower else ""
    default = DEFAULT_RESOLUTION if own.name not in EMBEDDED else own.size[0]
    sides = f"multiples of {own.stride} px"
    if default % own.stride:
        sides += f"; say --resolution, as {default} is none"
    elif default != own.size[0]:
        sides += f"; {default} unless --resolution says other"
    told = (
        ("family", own.family),
        ("kinds", " ".join(own.kinds)),
        ("width", str(own.width)),
        ("stride", f"{own.stride} px"),
        ("built for", f"{_size(own)} px: {rows} x {columns} locations"),
        ("sides", sides),
        ("texts", f"{own.context_length} tokens by {reads}, pool {own.text_pool}{tower}"),
        ("logit bias", "yes: trained by a sigmoid" if own.has_logit_bias else "no"),
        ("offers", ", ".join(own.offers) or "features only"),
        ("needs", "nothing more" if own.tokenizer is None else f"pip install '{_HF}'"),
    )
    lines = [own.name, *(f"  {key:<12}{value}" for key, value in told)]
    if weights:
        lines += ["", *_weights_table(weights)]
    elif chosen is None:
        lines += ["", "No weights were released; there are random ones, and those of a file."]
    return "\n".join([*lines, "", *_ways(own, weights, chosen, tag)])


def _weights_table(weights: Sequence[Weights]) -> list[str]:
    titles = ("weights", "mean", "std", "resize", "trained", "QuickGELU", "licence", "here")
    columns = [Column(title, is_left=True) for title in titles]
    rows = [
        (
            each.tag or "its own",
            _numbers(each.mean),
            _numbers(each.std),
            each.resize,
            each.trained,
            "yes" if each.quick_gelu else "no",
            each.licence or "not stated",
            "yes" if is_here(each) else "no",
        )
        for each in weights
    ]
    return [*aligned(columns, rows), _LICENCES]


def _ways(
    own: Architecture, weights: Sequence[Weights], chosen: str | None, tag: str | None
) -> list[str]:
    """Command lines that take it."""
    images = "shapes" if own.name in EMBEDDED else "folder:DIR"
    command = f"python -m pipeline.run --dataset {images} --backbone {own.name}"
    side = "" if DEFAULT_RESOLUTION % own.stride == 0 else f" --resolution {own.size[0]}"
    tags = [each.tag for each in weights if each.tag]
    if chosen is not None:
        said = f" --tag {tag}" if tag else ""
        return [f"{command} --pretrained {chosen}{said}{side}"]
    if weights and not tags:
        return [f"{command}{side}"]
    first = "openai" if "openai" in tags else next(iter(tags), None)
    lines = [f"{command} --pretrained {first}{side}"] if first else []
    file = f"--pretrained FILE --tag {first}" if first else "--pretrained FILE"
    return [*lines, f"{command} {file}{side}", f"{command} --pretrained random{side}"]


def _kinds(own: Architecture) -> str:
    """Kinds in few words: those of the blocks go together."""
    has_blocks = set(BLOCKS) <= set(own.kinds)
    kinds = [kind for kind in own.kinds if not (has_blocks and kind in BLOCKS)]
    return ", ".join([*kinds, "blocks"] if has_blocks else kinds)


def _size(own: Architecture) -> str:
    rows, columns = own.size
    return str(rows) if rows == columns else f"{rows} x {columns}"


def _numbers(values: Sequence[float]) -> str:
    return " ".join(f"{value:.3g}" for value in values)

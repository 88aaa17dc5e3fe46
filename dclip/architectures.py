"""Architectures and released weights of open_clip, as far as planning has to know them.

What stands here was found by building each architecture without memory (`dclip.backbones.facts`)
and is kept in a file, since to import torch and to build 144 models takes most of a minute. So a
list of all, and a wrong name, tag or resolution, take no time. ``python -m pipeline.backbones
write`` makes the file anew.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from difflib import get_close_matches
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, NamedTuple

from dclip.texts import EMBEDDED

FILE = Path(__file__).with_suffix(".json")
"""Where the facts are kept."""

DEFAULT_RESOLUTION = 448
"""Side in pixels of the images for every backbone but the embedded ones; the paper's."""

_MOST = 5  # names in a message


class Weights(NamedTuple):
    """Released weights.

    Attributes:
        tag: What open_clip calls them.
        repository: Where they lie on Hugging Face's Hub; empty where they do not.
        files: Names the file may have there.
        mean: Channel means of the images they were trained on.
        std: Channel deviations.
        trained: Resize and filter that open_clip states of them.
        resize: Those that are taken where no flag says others.
        quick_gelu: Whether they want QuickGELU.
        licence: As timm states it of the same repository; None where it does not.
    """

    tag: str
    repository: str
    files: tuple[str, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    trained: str
    resize: str
    quick_gelu: bool
    licence: str | None


class Architecture(NamedTuple):
    """What is known of an architecture without its weights.

    Attributes:
        name: As open_clip has it.
        family: How its image tower comes to local features (`dclip.backbones.towers`).
        kinds: Of local features.
        width: Dimension of the joint space.
        stride: Pixels from one location to the next.
        size: Rows and columns of pixels it was built for.
        grid: Rows and columns of locations at that size.
        context_length: Tokens that its text tower reads.
        text_pool: Which of them becomes the embedding, or how they all do.
        has_logit_bias: Whether it was trained by a sigmoid.
        tokenizer: Its name on the Hub; None for CLIP's own.
        text_tower: Name on the Hub of a text tower of Hugging Face's; None for open_clip's.
        offers: What it has for methods that look inside.
        weights: Those that were released.
    """

    name: str
    family: str
    kinds: tuple[str, ...]
    width: int
    stride: int
    size: tuple[int, int]
    grid: tuple[int, int]
    context_length: int
    text_pool: str
    has_logit_bias: bool
    tokenizer: str | None
    text_tower: str | None
    offers: tuple[str, ...]
    weights: tuple[Weights, ...]


class Facts(NamedTuple):
    """All architectures of one version of open_clip.

    Attributes:
        versions: Of the libraries that were asked, by name.
        architectures: By name, in open_clip's order.
    """

    versions: dict[str, str]
    architectures: dict[str, Architecture]

    @property
    def is_installed(self) -> bool:
        """Whether the libraries that were asked are the ones that are installed."""
        return all(_version(name) == asked for name, asked in self.versions.items())


@cache
def facts() -> Facts:
    """The facts that come with the package."""
    return read_facts(FILE)


def read_facts(path: Path) -> Facts:
    """Facts from a file of `write_facts`."""
    content = json.loads(path.read_text("utf-8"))
    every = {each["name"]: _architecture(each) for each in content["architectures"]}
    return Facts(content["versions"], every)


def write_facts(path: Path, architectures: Iterable[Architecture]) -> None:
    """Facts into a file, one line for each architecture and for each of its weights.

    Args:
        path: The file; what is there is replaced.
        architectures: In the order that lists are to have.
    """
    versions = {name: _version(name) for name in ("open_clip_torch", "timm")}
    lines = []
    for each in architectures:
        weights = ",\n".join(f"   {json.dumps(one._asdict())}" for one in each.weights)
        about = json.dumps({**each._asdict(), "weights": []}).removesuffix("[]}")
        lines.append(f"  {about}[\n{weights}\n  ]}}" if weights else f"  {about}[]}}")
    text = ",\n".join(lines)
    path.write_text(
        f'{{"versions": {json.dumps(versions)}, "architectures": [\n{text}\n]}}\n', "utf-8"
    )


def in_cache(repository: str, filenames: Sequence[str]) -> Path | None:
    """A file of the Hub's that is on this machine; nothing is asked or fetched.

    Args:
        repository: ``"org/name"``; empty for none.
        filenames: Names that the file may have; the first that is here is taken.
    """
    import huggingface_hub  # a quarter of a second, which a name alone does not need

    for filename in filenames if repository else ():
        cached = huggingface_hub.try_to_load_from_cache(repository, filename)
        if isinstance(cached, str):
            return Path(cached)
    return None


def is_here(weights: Weights | None) -> bool:
    """Whether weights are on this machine; random ones, None, are on none."""
    if weights is None:
        return False
    if weights.repository:
        return in_cache(weights.repository, weights.files) is not None
    return any(Path(file).is_file() for file in weights.files)


def check_settings(
    name: str, *, pretrained: str | None, tag: str | None, resolution: int | None
) -> None:
    """Refuse a tag that is of other architectures, and a resolution that a tower cannot take.

    Of a name that is not in the file, and of another version of open_clip, nothing is said here:
    loading says it.

    Args:
        name: As `dclip.backbones.load_backbone` takes it.
        pretrained: The same.
        tag: The same.
        resolution: The same; None is not looked at.

    Raises:
        ValueError: They do not fit.
    """
    own = facts().architectures.get(name.replace("/", "-"))
    if own is None or not facts().is_installed:
        return
    tags = [each.tag for each in own.weights]
    if tag is not None and tag not in tags:
        raise ValueError(no_such_tag(own.name, tag, tags))
    # what has a dot or a slash is meant as a file, and reading it says what is wrong
    is_tag = pretrained is not None and not {".", "/"} & set(pretrained)
    if is_tag and pretrained not in ("random", *tags) and not Path(str(pretrained)).is_file():
        raise ValueError(no_such_tag(own.name, str(pretrained), tags))
    if resolution is not None:
        label = own.name if pretrained is None else f"{own.name}/{Path(pretrained).name}"
        grid_of(resolution, resolution, own.stride, (own.size, own.grid), label)


def grid_of(
    height: int,
    width: int,
    stride: int,
    native: tuple[tuple[int, int], tuple[int, int]],
    label: str,
) -> tuple[int, int]:
    """Rows and columns of locations of an image.

    Args:
        height: Of the image, in pixels.
        width: The same.
        stride: Pixels from one location to the next.
        native: The size the tower was built for, and the grid it has there.
        label: How messages call the model.

    Raises:
        ValueError: If a side is not a positive multiple of the stride.
    """
    if (height, width) == native[0]:
        return native[1]
    for side in (height, width):
        if side < stride or side % stride:
            below = max(side // stride, 1) * stride
            near = str(below) if side < stride else f"{below} or {below + stride}"
            raise ValueError(
                f"{label} takes images whose sides are multiples of {stride} pixels, not"
                f" {height} x {width}; in place of {side} take {near}"
            )
    return height // stride, width // stride


def no_such_tag(architecture: str, tag: str, tags: Iterable[str]) -> str:
    """What to say of a tag that an architecture has no weights by.

    Args:
        architecture: Its name.
        tag: The wrong one.
        tags: Those that it has.
    """
    known = list(tags)
    others = [
        each.name
        for each in facts().architectures.values()
        if any(weights.tag == tag for weights in each.weights)
    ]
    of = f"; {tag} is of {_some(others)}" if others else ""
    near = get_close_matches(tag, known)
    own = f"did you mean {', '.join(near)}?" if near else f"it has {_some(known, 20) or 'none'}."
    return f"no weights {tag!r} for {architecture}{of}; {own} A file or random will do, too"


def unknown_name(name: str, names: Iterable[str]) -> str:
    """What to say of a name that no backbone has.

    Args:
        name: The wrong one.
        names: Those of open_clip's architectures.
    """
    lower = {known.lower(): known for known in [*EMBEDDED, *names]}
    wanted = name.replace("/", "-").lower()
    close = get_close_matches(wanted, lower, n=_MOST)
    # part of a name: the shortest of those that have it is the least special
    parts = sorted((each for each in lower if len(wanted) > 2 and wanted in each), key=len)
    near = [repr(lower[each]) for each in dict.fromkeys([*close, *parts])][:_MOST]
    suggestion = f"did you mean {', '.join(near)}? Give" if near else "give"
    return (
        f"unknown backbone {name!r}; {suggestion} 'tiny', 'tiny-vit', an open_clip architecture"
        " (python -m pipeline.backbones list), 'hf-hub:org/name', 'local-dir:PATH' or"
        " 'package.module:factory'"
    )


def _some(names: Sequence[str], most: int = _MOST) -> str:
    """The first of many names."""
    rest = len(names) - most
    return ", ".join(names[:most]) + (f" and {rest} more" if rest > 0 else "")


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return ""


def _architecture(told: Mapping[str, Any]) -> Architecture:
    """From JSON, where tuples are lists."""
    weights = tuple(Weights(**_tuples(each)) for each in told["weights"])
    return Architecture(**{**_tuples(told), "weights": weights})


def _tuples(told: Mapping[str, Any]) -> dict[str, Any]:
    return {key: tuple(value) if isinstance(value, list) else value for key, value in told.items()}

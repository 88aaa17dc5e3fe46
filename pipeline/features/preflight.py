"""What listing, class names, settings and tokenizer tell before any work is done.

Each stage refuses at once what could only fail after hours, and `pipeline.datasets` reports it.
Nothing here loads torch or reads an image.
"""

from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

from dclip.data.listing import ImageListing, Split
from dclip.data.webdataset_listing import WebdatasetListing
from dclip.store.paths import AnyPath
from dclip.templates import NEGATIVE_TEMPLATE, POSITIVE_TEMPLATE, ZERO_SHOT_TEMPLATE
from dclip.texts import context_length, name_problem, same_text, too_long
from dclip.words import counted
from pipeline.features.listings import CHECK
from pipeline.terminal.errors import StageError, UsageError

TEMPLATES = (NEGATIVE_TEMPLATE, POSITIVE_TEMPLATE, ZERO_SHOT_TEMPLATE)
"""Every prompt that a class name is put into, but for a segmentation's own templates."""

_NAMED = 5
"""How many examples of a kind a message names."""

_SHOWN = 60
"""Letters of a name that a message has."""

_LOOKED_FOR = 16
"""How many images of a split are looked for before work begins."""


def name_problems(
    names: Sequence[str], *, backbone: str, templates: Sequence[str] = TEMPLATES
) -> list[str]:
    """Why class names cannot be prompts of a backbone, a sentence for each kind of problem.

    Args:
        names: Class names, or their phrasings.
        backbone: Name of the frozen CLIP, whose context they have to fit.
        templates: Prompt templates, each with one ``{}``.
    """
    found = []
    unfit = [(name, problem) for name in names if (problem := name_problem(name))]
    if unfit:
        name, problem = unfit[0]
        found.append(
            f"class name {_short(name)} {problem}{_more(len(unfit) - 1, 'name')}; rename it"
        )
    length = context_length(backbone)
    if length is None:  # code of the user's own, which knows it alone
        return found
    long = too_long([name for name in names if not name_problem(name)], templates, length)
    if long:
        name, tokens = max(long, key=lambda pair: pair[1])
        found.append(
            f"class name {_short(name)} takes {tokens} tokens with its prompt, and {backbone} reads"
            f" {length}{_more(len(long) - 1, 'name')}; shorten it"
        )
    return found


def require_fit_names(
    names: Sequence[str],
    *,
    of: str,
    backbone: str,
    templates: Sequence[str] = TEMPLATES,
) -> None:
    """Refuse class names that cannot be prompts.

    Args:
        names: Class names, or their phrasings.
        of: What has them, for the message.
        backbone: Name of the frozen CLIP, whose context they have to fit.
        templates: Prompt templates, each with one ``{}``.

    Raises:
        UsageError: One is blank, has control characters, or is too long.
    """
    problems = name_problems(names, backbone=backbone, templates=templates)
    if problems:
        raise UsageError(f"{of}: {'; '.join(problems)}")


def one_text_note(class_names: Sequence[str]) -> str:
    """That class names are one text to CLIP; empty if they are not."""
    groups = same_text(class_names)
    if not groups:
        return ""
    shown = "; ".join(" = ".join(map(repr, names)) for names in groups[:_NAMED])
    return (
        f"names that are one text to CLIP, and share its probability: {shown}"
        f"{_more(len(groups) - _NAMED, 'group')}"
    )


def label_problem(listing: Split, num_images: int | None = None) -> str:
    """That no image of a split has a class, or none is known to lack one; empty if all is well.

    Labels that are not listed count as well.

    Args:
        listing: The split.
        num_images: How many of its images are taken, from the first on; None: all.
    """
    labels = getattr(listing, "labels", None)
    if labels is None:
        return ""
    labels = labels[:num_images]
    first = "" if num_images in (None, len(listing)) else f"the first {num_images} images of "
    if (labels == 1).any():
        if (labels == 0).any() or not (labels == -1).any():
            return ""
        return (
            f"labels of {first}split {listing.split!r} are 1 and -1 alone: -1 is unknown, so that"
            " no class is known to be absent from any image; write 0 where it is"
        )
    return (
        f"no image of {first}split {listing.split!r} has any class, so that there is nothing to"
        " learn from it or to score"
    )


def require_labels(listing: Split, num_images: int | None = None) -> None:
    """Refuse a split without any positive.

    Raises:
        UsageError: None of its images has a class.
    """
    problem = label_problem(listing, num_images)
    if problem:
        raise UsageError(
            f"{problem}; features alone are made of it by python -m pipeline.extract --split"
            f" {listing.split}"
        )


def absent_note(split: Split, what_for: str) -> str:
    """Which classes no image of a split has; empty if all have one, or labels are not listed.

    Args:
        split: The split.
        what_for: What images of a class are there for, as ``"learn from"``.
    """
    labels = getattr(split, "labels", None)
    if labels is None:
        return ""
    counts = (labels == 1).sum(axis=0)
    absent = [name for name, count in zip(split.class_names, counts, strict=True) if count == 0]
    if not absent:
        return ""
    shown = ", ".join(absent[:_NAMED]) + (", ..." if len(absent) > _NAMED else "")
    many = counted(len(absent), "class has", "classes have")
    return f"{many} no image in {split.split!r} to {what_for}: {shown}"


def image_paths(listing: Any) -> Sequence[AnyPath]:
    """Image files, where each sample has one of its own; else none."""
    if isinstance(listing, ImageListing):
        return [listing.image_dir / name for name in listing.file_names]
    return getattr(listing, "image_paths", ())


def places(listing: Any) -> Collection[object]:
    """Where each image lies: its file, or its tar and byte; none where images are drawn."""
    if isinstance(listing, WebdatasetListing):
        tars = [listing.tars[number] for number in listing.tar_of]
        return list(zip(tars, listing.offsets.tolist(), strict=True))
    if isinstance(listing, ImageListing):
        folder = listing.image_dir
        top = str(folder.resolve() if isinstance(folder, Path) else folder)
        return [f"{top}/{name}" for name in listing.file_names]
    return [str(path) for path in image_paths(listing)]


def are_nested(one: str, other: str) -> bool:
    """Whether one of two splits of a published data set is made of the other and a third."""
    return {one, other} in ({"train", "trainval"}, {"val", "trainval"})


def shared_places(train: Split, test: Split) -> int:
    """How many images of the test split are images of the training split, by where they lie."""
    return len(set(places(test)).intersection(places(train)))


def require_images(listing: Split, num_images: int | None = None) -> None:
    """Find out before any work whether images are where the listing says, by a few of them.

    Raises:
        StageError: None of them is there.
    """
    paths = [path for path in image_paths(listing)[:num_images] if isinstance(path, Path)]
    sample = [paths[row] for row in spread(len(paths), _LOOKED_FOR)]
    if sample and not any(path.is_file() for path in sample):
        raise StageError(
            f"images of split {listing.split!r} are gone: none of {len(sample)} looked for is"
            f" there, such as {sample[0]}; give the --root they are below, or ask {CHECK}"
        )


def spread(total: int, limit: int | None) -> list[int]:
    """At most ``limit`` positions below ``total``, evenly spread, both ends among them.

    Example:
        >>> spread(10, 4), spread(3, None)
        ([0, 3, 6, 9], [0, 1, 2])
    """
    if limit is None or limit >= total:
        return list(range(total))
    return [position * (total - 1) // max(limit - 1, 1) for position in range(limit)]


def _short(name: str) -> str:
    """A name as a message has it."""
    return repr(name if len(name) <= _SHOWN else f"{name[:_SHOWN]}...")


def _more(count: int, what: str) -> str:
    """How many more of a kind there are; empty if there are none."""
    return f" (and {counted(count, f'more {what}')})" if count > 0 else ""

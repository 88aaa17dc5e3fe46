"""What the project knows of a data set before it sees a file of it."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import Literal

from dclip.data.listing import Listing
from dclip.data.segmentation import SegmentationListing


@dataclass(frozen=True, kw_only=True)
class Dataset:
    """A data set as published, and how to open a copy of it.

    Attributes:
        name: What it is called on the command line.
        title: What people call it.
        task: ``"multilabel"`` opens a `Listing`, ``"segmentation"`` a `SegmentationListing`.
        train_split: Split DCLIP trains on; None where whoever made the data knows.
        test_split: Split results are reported on.
        expected: Images of each split as published, with the first value of every option.
        class_names: Display names in column order with the first value of every option; empty
            where only the annotations tell.
        phrasings: What to call each class in prompts; the first is the display name.
        options: Values that can be chosen, by the name of the option; the first is the default.
        homepage: Official page a user obtains it from.
        layout: Path patterns below the root, ``{split}`` standing for the split, and what each is.
        open: Opens a split: folder, split, options (those left out take their first value).
            Raises ValueError for what a user can repair: a missing file, an unknown split; and
            OSError for what cannot be reached.
        notes: What to know before comparing numbers.
        takes_urls: Whether ``open`` takes a remote folder as well as a local one.
        expected_with: Images of each split with one option changed, by ``"option=value"``.
        expected_also: Another number of images that is published for a split.
        open_masks: Of a data set with label vectors whose images have masks as well: opens a split
            with these, called as ``open``.
    """

    name: str
    title: str
    task: Literal["multilabel", "segmentation"]
    train_split: str | None
    test_split: str
    expected: Mapping[str, int]
    class_names: tuple[str, ...]
    phrasings: tuple[tuple[str, ...], ...]
    options: Mapping[str, tuple[str, ...]]
    homepage: str
    layout: tuple[tuple[str, str], ...]
    open: Callable[[Path, str, Mapping[str, str]], Listing | SegmentationListing]
    notes: str
    takes_urls: bool = False
    expected_with: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    expected_also: Mapping[str, int] = field(default_factory=dict)
    open_masks: Callable[[Path, str, Mapping[str, str]], SegmentationListing] | None = None

    def expected_images(self, split: str, options: Mapping[str, str]) -> int | None:
        """Images the split should have with these options; None where it is not known."""
        for option, value in options.items():
            changed = self.expected_with.get(f"{option}={value}")
            if changed is not None:
                return changed.get(split)
        return self.expected.get(split)


def settle(options: Mapping[str, tuple[str, ...]], given: Mapping[str, str]) -> dict[str, str]:
    """Every option with its value: the given one, else the first.

    Args:
        options: Values that can be chosen, by the name of the option.
        given: What was chosen; may be empty.

    Raises:
        ValueError: If an option or a value is not known.

    Example:
        >>> settle({"difficult": ("negative", "ignore")}, {})
        {'difficult': 'negative'}
    """
    for option, value in given.items():
        if option not in options:
            known = ", ".join(map(repr, options)) or "none"
            raise ValueError(f"unknown option {option!r}={value!r}; options are {known}")
        if value not in options[option]:
            known = ", ".join(map(repr, options[option]))
            raise ValueError(f"option {option!r} cannot be {value!r}; choose from {known}")
    return {option: given.get(option, values[0]) for option, values in options.items()}


def read_class_names(file: str) -> tuple[tuple[str, ...], ...]:
    """Phrasings of each class, in column order, from a file that ships with the package.

    One class a line, phrasings separated by commas, the first being the display name.

    Args:
        file: Name in ``dclip/data/class_names``, without ``.txt``.

    Raises:
        ValueError: If a line has an empty phrasing, or two classes share a display name.

    Example:
        >>> read_class_names("voc20")[8]
        ('chair',)
    """
    text = (resources.files("dclip.data") / "class_names" / f"{file}.txt").read_text("utf-8")
    return parse_class_names(text, file)


def parse_class_names(text: str, source: str, separator: str = ",") -> tuple[tuple[str, ...], ...]:
    """Phrasings of each class from the text of a class-name file; ``source`` is for errors.

    Raises:
        ValueError: If there is no class, a line has an empty phrasing, or a display name is there
            twice.
    """
    phrasings = tuple(
        tuple(phrase.strip() for phrase in line.split(separator))
        for line in text.strip().splitlines()
    )
    for number, names in enumerate(phrasings, start=1):
        if not all(names):
            raise ValueError(f"line {number} of class names {source} has an empty name: {names}")
    display = [names[0] for names in phrasings]
    twice = sorted({name for name in display if display.count(name) > 1})
    if twice or not display:
        raise ValueError(
            f"class names {source} have {twice[0]!r} twice" if twice else f"no class in {source}"
        )
    return phrasings


def first_folder(candidates: tuple[Path, ...], what: str) -> Path:
    """The first of some folders that is there.

    Raises:
        ValueError: If none is; the message names them all.
    """
    for folder in candidates:
        if folder.is_dir():
            return folder
    raise ValueError(f"no {what}: there is no folder {' nor '.join(map(str, candidates))}")

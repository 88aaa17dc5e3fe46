"""Splits as all stages see them: opened with the columns of the training split, and compared."""

import shlex
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from dclip.data.columns import match_columns
from dclip.data.listing import Listing
from dclip.data.partition import Part
from dclip.store.paths import AnyPath
from pipeline.features.listings import (
    CAPTIONS,
    FOLDER,
    SPLIT,
    find_dataset,
    is_own,
    known_splits,
    open_listing,
    open_part,
    options_of,
    pair_of,
)
from pipeline.features.preflight import (
    are_nested,
    places,
    require_fit_names,
    require_labels,
    shared_places,
)
from pipeline.settings.config import Config
from pipeline.terminal.errors import UsageError


def open_dataset(config: Config, split: str) -> Listing:
    """Images and labels of one split, with the columns of the training split.

    Raises:
        UsageError: An unknown dataset or split, or a dataset that needs ``--root``; class names
            that cannot be prompts; training and test split that have other classes, or are the same
            images without ``test_on_train``.
        ValueError: What is on disk cannot be used; the message names file and remedy.
        OSError: A file cannot be read, or a remote store not be reached.
    """
    return _open_checked(_source(config), split, config.backbone, config.test_on_train)


def tested_on_train(config: Config) -> bool:
    """Whether the test split is the training images, which has to be asked for.

    Raises:
        UsageError: It is, and is not asked for.
    """
    return _tested_on_train(_source(config), config.test_on_train)


@dataclass(frozen=True)
class _Source:
    """All settings that say what is read.

    Attributes:
        dataset: As for `pipeline.features.listings.open_listing`, as the three below.
        root: Folder of it.
        options: Settings of the data set.
        cache: Folder of listings that take long to make.
        train: Name of the training split.
        test: Name of the test split.
        fraction: Share of the test split where one source is parted; None where none is.
        seed: Of that draw.
    """

    dataset: str
    root: AnyPath | None
    options: tuple[tuple[str, str], ...]
    cache: Path
    train: str
    test: str
    fraction: float | None
    seed: int

    def is_published(self) -> bool:
        """Whether it is a registered data set whose splits and classes are known."""
        return not is_own(self.dataset) and bool(find_dataset(self.dataset).expected)


def _source(config: Config) -> _Source:
    return _Source(
        config.dataset,
        config.root,
        tuple(options_of(config.dataset, config.images, config.options).items()),
        config.output.absolute() / "listings",
        config.train_split,
        config.test_split,
        config.test_fraction,
        config.split_seed,
    )


@lru_cache(maxsize=4)
def _open_checked(source: _Source, split: str, backbone: str, test_on_train: bool) -> Listing:
    listing = _open_split(source, split)
    if split in (source.train, source.test):
        _tested_on_train(source, test_on_train)
    train = listing if split == source.train else _open_if_there(source, source.train)
    try:
        if train is not None:
            listing = match_columns(listing, train.class_names, of=source.train)
        if split == source.train and (test := _open_if_there(source, source.test)) is not None:
            match_columns(test, listing.class_names, of=source.train)
    except ValueError as error:
        if split in (source.train, source.test):
            raise UsageError(f"{source.dataset}: {error}") from None
    require_fit_names(listing.class_names, of=f"{source.dataset} {split}", backbone=backbone)
    return listing


@lru_cache(maxsize=4)
def _tested_on_train(source: _Source, is_asked_for: bool) -> bool:
    told = _same_images(source)
    if told and not is_asked_for:
        raise UsageError(
            f"{told}; part it with --test-fraction 0.2, name another --test-split, or add"
            " --test-on-train to score on the training images, which the report will say"
        )
    return bool(told)


def _same_images(source: _Source) -> str:
    """In which way training and test split are the same images; empty if they are not."""
    dataset, train, test = source.dataset, source.train, source.test
    if source.fraction is not None or dataset.startswith(CAPTIONS):  # whose test is retrieval
        return ""
    if is_own(dataset) and not dataset.startswith(FOLDER) and SPLIT not in dataset:
        return f"{dataset} has no {SPLIT}, so that train and test split are the same images"
    if train == test:
        return f"train and test split are both {train!r}, the same images"
    if source.is_published():
        told = f"splits {train!r} and {test!r} of {dataset} share images"
        return told if are_nested(train, test) else ""
    one, other = _open_if_there(source, train), _open_if_there(source, test)
    if one is None or other is None or not 0 < len(places(other)) == shared_places(one, other):
        return ""
    return f"all images of split {test!r} of {dataset} are images of {train!r}"


def _open_if_there(source: _Source, split: str) -> Listing | None:
    """A split of the user's own data, which may have other classes; None if it cannot be opened.

    A published data set has one list of classes, and opening another split of it may take long.
    """
    if source.is_published():
        return None
    try:
        return _open_split(source, split)
    except (ValueError, OSError):
        return None  # whoever needs it is told


@lru_cache(maxsize=4)
def _open_split(source: _Source, split: str) -> Listing:
    """A split as it is on disk, or the part of the one there that is called so."""
    options = dict(source.options)
    if source.fraction is None:
        try:
            return open_listing(source.dataset, source.root, split, options, cache=source.cache)
        except ValueError:
            seen = (
                [] if source.is_published() else known_splits(source.dataset, source.root, options)
            )
            if not seen or split in seen:
                raise
            if len(seen) > 1:
                train, test = pair_of(seen)
                raise UsageError(
                    f"{source.dataset} has no split {split!r}; its splits are"
                    f" {', '.join(map(repr, seen))}: give --train-split {shlex.quote(train)}"
                    f" --test-split {shlex.quote(test)}"
                ) from None
            raise UsageError(
                f"{source.dataset} has one split, {seen[0]!r}, and no {split!r}; part it with"
                f" --test-fraction 0.2, or use it for both, --train-split {seen[0]} --test-split"
                f" {seen[0]} --test-on-train, which the report will say"
            ) from None
    if source.train == source.test:
        raise UsageError(
            f"--test-fraction makes two splits, and both are called {source.train!r}; give"
            " --train-split and --test-split names of their own"
        )
    names: dict[str, Part] = {source.train: "train", source.test: "test"}
    if split not in names:
        raise UsageError(
            f"no split {split!r}: --test-fraction makes {' and '.join(map(repr, names))}"
        )
    return open_part(
        source.dataset,
        source.root,
        names[split],
        options,
        fraction=source.fraction,
        seed=source.seed,
        split=split,
        cache=source.cache,
    )


def open_labelled(config: Config, split: str, *, needs_classes: bool = True) -> Listing:
    """Images and labels of one split, which has a positive unless only features are wanted.

    No backbone is loaded for that.

    Args:
        config: Settings.
        split: Which part of the data set.
        needs_classes: False where images with captions and without classes will do.

    Raises:
        UsageError: No image has a class; or as for `open_dataset`.
    """
    listing = open_dataset(config, split)
    if not listing.class_names:
        if needs_classes:
            raise UsageError(
                f"{config.dataset} has captions and no classes: python -m pipeline.train --method "
                "smartclip trains on them, and python -m pipeline.retrieve scores what was trained"
            )
        return listing
    if config.extract.split is None:
        require_labels(listing, min(len(listing), config.extract.limit or len(listing)))
    return listing

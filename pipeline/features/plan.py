"""Frozen features as all stages see them: what they are, where they lie, how they are opened."""

import logging
import shlex
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from functools import cache, lru_cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter

import dclip
from dclip.data.augment import VERSION
from dclip.data.columns import match_columns
from dclip.data.listing import ImageListing, Listing
from dclip.data.partition import Part
from dclip.data.webdataset_listing import WebdatasetListing
from dclip.store.paths import AnyPath, write_text
from dclip.store.shards import (
    FORMAT,
    MANIFEST,
    Manifest,
    ShardError,
    Sidecar,
    Storage,
    digest,
    read_manifest,
    read_sidecars,
    shard_name,
)
from dclip.templates import NEGATIVE_TEMPLATE, POSITIVE_TEMPLATE, ZERO_SHOT_TEMPLATE
from pipeline.features.copies import FEATURES, missing_shards
from pipeline.features.listings import (
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
from pipeline.settings.config import TOY_BACKBONE, TOY_DATASET, Config
from pipeline.terminal.errors import UsageError

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class FeaturePlan:
    """What the features of one view of a split are, and where they go.

    Attributes:
        folder: Folder of the shards, local or remote; its name holds the fingerprint, so that
            features of two backbones, resolutions or listings never share a folder.
        listing: Images and labels.
        space: What gives the numbers their meaning; its hash is ``feature_space``.
        source: What is read and how it is kept; with ``space`` it gives ``fingerprint``.
        feature_space: Hash of ``space``.
        fingerprint: Hash of both.
        num_images: How many images of the listing, from the first on.
        shard_size: Images a shard.
        view: 0 for the images as they are, else which augmented view of them.
        view_seed: Seed of the augmentation.
        storage: ``"float16"`` or ``"int8"``.
        views: Of a clean plan, the plans of its augmented views.
    """

    folder: AnyPath
    listing: Listing
    space: Mapping[str, Any]
    source: Mapping[str, Any]
    feature_space: str
    fingerprint: str
    num_images: int
    shard_size: int
    view: int
    view_seed: int
    storage: Storage
    views: tuple["FeaturePlan", ...] = ()

    @property
    def folders(self) -> list[str]:
        """Folder of the clean features, then those of the views."""
        return [str(plan.folder) for plan in (self, *self.views)]

    @property
    def name(self) -> str:
        """How messages call it: the split, and the view where it is an augmented one."""
        return f"{self.listing.split} view {self.view}" if self.view else self.listing.split

    @property
    def notes(self) -> tuple[str, ...]:
        """How the split was read."""
        return getattr(self.listing, "notes", ())

    @property
    def images(self) -> str:
        """Hash of keys and files of the images, whatever their labels; empty where it is not known.

        Features of the same images are taken over where classes or labels alone are others.
        """
        listing = self.listing
        if isinstance(listing, ImageListing | WebdatasetListing):
            return listing.images_digest(self.num_images)
        return ""

    @property
    def num_shards(self) -> int:
        """Number of shards the images fill."""
        return -(-self.num_images // self.shard_size)

    def rows(self, shard: int) -> range:
        """Positions in the listing that belong to one shard."""
        start = shard * self.shard_size
        return range(start, min(start + self.shard_size, self.num_images))


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
        dataset: As for `pipeline.features.plan.listings.open_listing`, as the three below.
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
    if source.fraction is not None:
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


def warnings_of(config: Config) -> list[str]:
    """What has to be known of every result of these settings, for log and report."""
    told = []
    if not config.predict.paths and tested_on_train(config):
        told.append(
            f"split {config.test_split!r} is the training images: scores on it say nothing of"
            " other images"
        )
    is_toy = config.backbone == TOY_BACKBONE and config.pretrained is None
    if not is_toy or (config.dataset == TOY_DATASET and not config.predict.paths):
        return told
    images = "image files" if config.predict.paths else config.dataset
    return [
        *told,
        f"backbone tiny on {images}: this small CLIP has seen nothing but the drawn scenes of the "
        "data set shapes; what it says of photographs is meaningless. Take a real CLIP, such as "
        "--backbone RN101",
    ]


@cache
def _warn_once(text: str) -> None:
    log.warning("warning: %s", text)


@dataclass(frozen=True)
class BackboneInfo:
    """What planning needs to know of a backbone; kept on disk, so that none has to be loaded.

    Attributes:
        name: How reports call it.
        fingerprint: Hash of its weights and architecture.
        embed_dim: Dimension of the joint space.
        resolution: Side of its images in pixels.
        grid: Rows and columns of locations at that resolution.
        include_global_token: Whether the mean token precedes them.
        mean: Channel means subtracted from images.
        std: Channel deviations divided by.
        paths: How local features are made, by kind.
    """

    name: str
    fingerprint: str
    embed_dim: int
    resolution: int
    grid: tuple[int, int]
    include_global_token: bool
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    paths: dict[str, str]

    @property
    def locations(self) -> int:
        """Local features of an image, the mean token included."""
        return self.grid[0] * self.grid[1] + int(self.include_global_token)

    def space(self, kind: str) -> dict[str, Any]:
        """What gives the numbers of its features of a kind their meaning.

        Raises:
            UsageError: It has no such kind.
        """
        if kind not in self.paths:
            raise UsageError(
                f"backbone {self.name} has no features of kind {kind!r}; it has "
                + ", ".join(self.paths)
            )
        return {
            "backbone": self.fingerprint,
            "kind": kind,
            "path": self.paths[kind],
            "resolution": self.resolution,
            "include_global_token": self.include_global_token,
            "resize": "square, bilinear, antialiased",
            "mean": list(self.mean),
            "std": list(self.std),
        }


def describe_backbone(config: Config) -> BackboneInfo:
    """Facts about the backbone of the settings, from an earlier run where nothing changed since.

    Raises:
        UsageError: An unknown name, or an unusable resolution.
        OSError: Weights that are not here and cannot be fetched.
    """
    if not config.predict.paths:  # that stage may take another backbone yet, and warns by itself
        for warning in warnings_of(config):
            _warn_once(warning)
    weights = config.pretrained if config.pretrained and Path(config.pretrained).is_file() else None
    return _describe_backbone(
        config.backbone,
        config.pretrained,
        config.resolution,
        config.include_global_token,
        _stamp(Path(weights)) if weights else "",
        config.output.absolute() / "backbones",
    )


@lru_cache(maxsize=8)
def _describe_backbone(
    name: str,
    pretrained: str | None,
    resolution: int | None,
    include_global_token: bool | None,
    stamp: str,
    cache: Path,
) -> BackboneInfo:
    package = Path(dclip.__file__).parent
    code = sorted([*package.glob("backbones/*.*"), *package.glob("world/tiny_clip.*")])
    about = {
        "settings": [name, pretrained, resolution, include_global_token, stamp],
        "code": [_stamp(path) for path in code],
        "open_clip": version("open_clip_torch"),
    }
    path = cache / f"{digest(about)[:24]}.json"
    is_own = ":" in name  # code that cannot be told from a changed one
    facts = TypeAdapter(BackboneInfo)
    if not is_own:
        try:
            return facts.validate_json(path.read_bytes())
        except (OSError, ValueError):
            pass  # there is none, or none that can be used: it is made anew
    # torch takes seconds to load, and these facts are mostly on disk
    from pipeline.features.opened import frozen_clip

    backbone = frozen_clip(name, pretrained, resolution, include_global_token, "cpu")
    info = BackboneInfo(
        name=backbone.name,
        fingerprint=backbone.fingerprint(),
        embed_dim=backbone.embed_dim,
        resolution=backbone.resolution,
        grid=backbone.grid(backbone.resolution, backbone.resolution),
        include_global_token=backbone.include_global_token,
        mean=backbone.mean,
        std=backbone.std,
        paths={kind: backbone.feature_path(kind) for kind in backbone.kinds},
    )
    if not is_own:
        cache.mkdir(parents=True, exist_ok=True)
        write_text(path, facts.dump_json(info, indent=1).decode())
    return info


def _stamp(path: Path) -> str:
    """What changes when a file does."""
    stat = path.stat()
    return f"{path.absolute()} {stat.st_size} {stat.st_mtime_ns}"


def open_labelled(config: Config, split: str) -> Listing:
    """Images and labels of one split, which has a positive unless only features are wanted.

    No backbone is loaded for that.

    Raises:
        UsageError: No image has a class; or as for `open_dataset`.
    """
    listing = open_dataset(config, split)
    if config.extract.split is None:
        require_labels(listing, min(len(listing), config.extract.limit or len(listing)))
    return listing


def plan_features(config: Config, split: str) -> FeaturePlan:
    """Identity and place of the features of a split, whether they exist yet or not.

    Augmented views are for the training split alone. A split that is trained on or scored needs an
    image with a class; for features alone it is named by ``extract.split``.

    Raises:
        UsageError: An unknown dataset, split, backbone or feature kind; a split without any
            positive; or as for `open_dataset`.
    """
    wanted = config.extract
    listing = open_labelled(config, split)
    backbone = describe_backbone(config)
    space = backbone.space(wanted.kind)
    feature_space = digest(space)
    num_images = min(len(listing), wanted.limit or len(listing))
    clean: dict[str, Any] = {
        "format": FORMAT,
        "listing": listing.identity(),
        "num_images": num_images,
        "prompts": [NEGATIVE_TEMPLATE, POSITIVE_TEMPLATE, ZERO_SHOT_TEMPLATE],
        "shard_size": wanted.shard_size,
        "storage": wanted.storage,
    }
    home = (
        config.output.absolute() / FEATURES
        if config.features is None
        else config.features.absolute()
    )

    def plan(view: int) -> FeaturePlan:
        augmented = {"view": view, "view_seed": wanted.view_seed, "augmentation": VERSION}
        source = {**clean, **augmented} if view else clean
        fingerprint = digest({"space": space, "source": source})
        words = [backbone.name, wanted.kind, split, *([f"view{view}"] if view else [])]
        slug = "-".join(
            "".join(c if c.isalnum() or c in "-_" else "-" for c in word).strip("-")
            for word in words
        ).lower()
        return FeaturePlan(
            folder=home / config.dataset_slug / f"{slug}-{fingerprint[:12]}",
            listing=listing,
            space=space,
            source=source,
            feature_space=feature_space,
            fingerprint=fingerprint,
            num_images=num_images,
            shard_size=wanted.shard_size,
            view=view,
            view_seed=wanted.view_seed,
            storage=wanted.storage,
        )

    views = wanted.views if split == config.train_split else 0
    return replace(plan(0), views=tuple(map(plan, range(1, views + 1))))


def complete_manifest(plan: FeaturePlan) -> Manifest | None:
    """The manifest of a plan, if it stands and every shard has the size it says; else None.

    Raises:
        OSError: An object store cannot be reached.
    """
    manifest = own_manifest(plan)
    return manifest if manifest and not missing_shards(plan.folder, manifest) else None


def own_manifest(plan: FeaturePlan) -> Manifest | None:
    """The manifest of a plan, if it stands, whether or not the shards do; else None.

    Raises:
        OSError: An object store cannot be reached.
    """
    try:
        manifest = read_manifest(plan.folder)
    except ShardError:
        return None
    return manifest if manifest.fingerprint == plan.fingerprint else None


def is_complete(plan: FeaturePlan) -> bool:
    """Whether the features of a plan are all there, by name and size."""
    return complete_manifest(plan) is not None


def finished(plan: FeaturePlan) -> list[Sidecar | None]:
    """Sidecars of the finished shards of a plan, None for each that is missing."""
    return read_sidecars(plan.folder, plan.num_shards, plan.fingerprint)


def remove_shards(plan: FeaturePlan, shards: Iterable[int]) -> None:
    """Delete shards; the manifest first, so that the folder does not pass for complete."""
    names = [Path(shard_name(number)) for number in shards]
    for name in [MANIFEST, *(str(n.with_suffix(s)) for n in names for s in (".json", ".tar"))]:
        (plan.folder / name).unlink(missing_ok=True)


def require_writable(folder: AnyPath) -> None:
    """Find out before any work whether features can be written; a local folder is made.

    Raises:
        OSError: They cannot.
    """
    if isinstance(folder, Path):
        folder.mkdir(parents=True, exist_ok=True)
        return
    probe = folder / "writable"
    try:
        write_text(probe, "")
        probe.unlink()
    except OSError as error:
        raise OSError(f"cannot write features to {folder}: {error}") from None


def root_of_images(config: Config) -> str:
    """Where the images of the settings lie; empty if the name of the data set says it."""
    return "" if config.root is None else str(config.root.absolute())

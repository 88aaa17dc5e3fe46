"""Features as all stages see them: what they are, where they lie, and what stands of them."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from dclip.data.augment import VERSION
from dclip.data.listing import ImageListing, Listing
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
from pipeline.features.backbone import describe_backbone
from pipeline.features.copies import FEATURES, missing_shards
from pipeline.features.splits import open_labelled
from pipeline.settings.config import Config


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
        formerly: What version 0.1 had for ``feature_space``, for the same features.
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
    formerly: str
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


def plan_features(config: Config, split: str, *, needs_classes: bool = True) -> FeaturePlan:
    """Identity and place of the features of a split, whether they exist yet or not.

    Augmented views are for the training split alone. A split that is trained on or scored needs an
    image with a class; for features alone it is named by ``extract.split``.

    Args:
        config: Settings.
        split: Which part of the data set.
        needs_classes: False where images with captions and without classes will do; no features
            are kept of these.

    Raises:
        UsageError: An unknown dataset, split, backbone or feature kind; a split without any
            positive; or as for `open_dataset`.
    """
    wanted = config.extract
    listing = open_labelled(config, split, needs_classes=needs_classes)
    backbone = describe_backbone(config)
    spaces = [backbone.space(wanted.kind), backbone.former_space(wanted.kind)]
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

    def plan(view: int, space: dict[str, Any]) -> FeaturePlan:
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
            feature_space=digest(space),
            formerly=digest(spaces[1]),
            fingerprint=fingerprint,
            num_images=num_images,
            shard_size=wanted.shard_size,
            view=view,
            view_seed=wanted.view_seed,
            storage=wanted.storage,
        )

    space = spaces[0]
    if backbone.former != backbone.fingerprint:
        was, now = plan(0, spaces[1]).folder, plan(0, space).folder
        if (was / MANIFEST).is_file() and not (now / MANIFEST).is_file():
            space = spaces[1]  # of version 0.1; their numbers are the same
    views = wanted.views if split == config.train_split else 0
    return replace(plan(0, space), views=tuple(plan(n, space) for n in range(1, views + 1)))


def is_one_space(ours: tuple[str, str], theirs: tuple[str, str]) -> bool:
    """Whether two hashes of what gives numbers their meaning are of one meaning.

    Args:
        ours: ``feature_space`` and ``formerly``, the latter empty where it is not known.
        theirs: Likewise.
    """
    return ours[0] in theirs or theirs[0] in ours


def space_of(manifest: Manifest) -> tuple[str, str]:
    """``feature_space`` and ``formerly`` of features; the latter is empty in those of 0.1."""
    return manifest.feature_space, str(manifest.spec.get("formerly", ""))


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

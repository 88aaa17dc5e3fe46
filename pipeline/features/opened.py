"""What a plan speaks of, opened: the frozen CLIP of the settings, and features that are there.

Here torch is loaded; `pipeline.features.plan` is without it.
"""

import warnings
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path

from dclip.backbones import Backbone, UnsaidWarning, load_backbone
from dclip.clip_settings import ClipSettings
from dclip.data.listing import Listing
from dclip.data.preparation import read_preparation
from dclip.fitting.images import ImageSource
from dclip.methods.settings import MethodSettings
from dclip.store.reader import FeatureReader
from dclip.store.shards import ShardError
from pipeline.features.alone import ImagesAlone
from pipeline.features.backbone import clip_of
from pipeline.features.copies import local_folders, verified_folder
from pipeline.settings.config import Config
from pipeline.terminal.errors import StageError, UsageError


def open_backbone(config: Config, *, device: str = "cpu") -> Backbone:
    """The frozen CLIP of the settings.

    Raises:
        UsageError: An unknown name, or an unusable resolution.
        OSError: Weights that are not here and cannot be fetched.
    """
    return frozen_clip(clip_of(config), device)


def frozen_clip(clip: ClipSettings, device: str) -> Backbone:
    """As `open_backbone`, from the settings that tell one from another; the last two are kept."""
    return opened_clip(clip, device)[0]


@lru_cache(maxsize=2)
def opened_clip(clip: ClipSettings, device: str) -> tuple[Backbone, tuple[str, ...]]:
    """A frozen CLIP, and what its files leave open, which planning tells once.

    Raises:
        UsageError: An unknown name, or an unusable resolution.
        OSError: Weights that are not here and cannot be fetched.
    """
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", UnsaidWarning)
        try:
            backbone = load_backbone(**clip._asdict(), device=device)
        except ValueError as error:
            raise UsageError(str(error)) from None
    unsaid = [each for each in caught if issubclass(each.category, UnsaidWarning)]
    for each in caught:
        if each not in unsaid:
            warnings.warn_explicit(each.message, each.category, each.filename, each.lineno)
    return backbone, tuple(str(each.message) for each in unsaid)


def with_images(
    reader: FeatureReader | ImagesAlone,
    listing: Listing,
    own: MethodSettings,
    *,
    threads: int | None = None,
) -> ImageSource:
    """The images of features, beside these.

    Args:
        reader: Features, which say which images can be read, and what is in them; or the images of
            which none are kept.
        listing: That they are of.
        own: Settings of the method that is fed them.
        threads: That decode; left out: one a CPU.
    """
    manifest = reader.manifest
    side = int(manifest.spec["resolution"])
    is_native = own.image_form == "native"
    return ImageSource(
        listing,
        reader.indices,
        reader.labels,
        resolution=side // manifest.grid[0] if is_native else side,
        form=own.image_form,
        preparation=read_preparation(manifest.spec["resize"]),
        threads=threads,
        features=reader if isinstance(reader, FeatureReader) else None,
    )


def open_features(folders: Sequence[str], output: Path, *, verify: bool = True) -> FeatureReader:
    """Features for random access; remote ones are copied to the output folder first.

    Args:
        folders: Of complete plans: the clean one, then its views, if they are wanted.
        output: The output folder.
        verify: Compare every checksum, but for shards that were compared within a day and were not
            touched since; the output folder keeps which (see `dclip.store.verified`).

    Raises:
        StageError: They are missing, damaged or foreign.
    """
    places = local_folders(folders, output)
    try:
        return FeatureReader(
            places[0], views=places[1:], verify=verify, records=verified_folder(output)
        )
    except ShardError as error:
        copies = [str(p) for p, given in zip(places, folders, strict=True) if str(p) != given]
        copied = f" (these are copies: delete {' and '.join(copies)} to copy them again)"
        raise StageError(f"{error}{copied if copies else ''}") from None

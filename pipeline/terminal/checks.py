"""What of the settings can be refused before a stage is loaded."""

import os
from collections.abc import Sequence
from pathlib import Path

from dclip.architectures import DEFAULT_RESOLUTION, check_settings, facts, unknown_name
from dclip.texts import context_length
from pipeline.settings.config import Config
from pipeline.terminal.errors import StageError, UsageError


def require_backbone(config: Config) -> None:
    """Refuse a frozen CLIP that nothing knows; one of the user's own code is not looked at.

    Args:
        config: Tag and resolution are looked at where the backbone is named: a checkpoint may
            have been trained on another than the usual one.

    Raises:
        UsageError: It is neither a small one of ours nor an architecture of open_clip, or has no
            such weights, or takes no images of that size.
    """
    name = config.backbone
    if ":" not in name and context_length(name) is None:
        raise UsageError(unknown_name(name, facts().architectures))
    if "backbone" not in config.model_fields_set:
        return
    side = DEFAULT_RESOLUTION if config.resolution is None else config.resolution
    try:
        check_settings(name, pretrained=config.pretrained, tag=config.tag, resolution=side)
    except ValueError as error:
        raise UsageError(str(error)) from None


def require_checkpoints(given: Path | Sequence[Path] | None) -> None:
    """Find out before any work whether checkpoints that are named are there.

    Raises:
        StageError: One is not.
    """
    for path in [given] if isinstance(given, Path) else given or []:
        if not path.exists() and str(path) != "newest":  # pipeline.records.choice finds that
            raise StageError(
                f"no checkpoint at {path}; python -m pipeline.train makes one and prints its place"
            )


def require_output(folder: Path) -> None:
    """Find out before any work whether results can be written; nothing is made.

    Raises:
        UsageError: The folder, or the nearest above it that is there, is a file or may not be
            written to.
    """
    there = next(path for path in (folder, *folder.parents) if path.exists())
    if not there.is_dir():
        raise UsageError(f"--output {folder}: {there} is a file; name a folder")
    if not os.access(there, os.W_OK | os.X_OK):
        raise UsageError(f"--output {folder}: {there} may not be written to; name another folder")

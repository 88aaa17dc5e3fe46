"""What of the settings can be refused before a stage is loaded."""

import os
from collections.abc import Sequence
from pathlib import Path

from dclip.texts import context_length
from pipeline.terminal.errors import StageError, UsageError


def require_backbone(name: str) -> None:
    """Refuse a frozen CLIP that nothing knows; one of the user's own code is not looked at.

    Raises:
        UsageError: It is neither a small one of ours nor an architecture of open_clip.
    """
    if ":" not in name and context_length(name) is None:
        raise UsageError(
            f"unknown backbone {name!r}; give 'tiny', 'tiny-vit', an open_clip architecture such "
            "as 'RN101' or 'ViT-B-16', or 'package.module:factory'"
        )


def require_checkpoints(given: Path | Sequence[Path] | None) -> None:
    """Find out before any work whether checkpoints that are named are there.

    Raises:
        StageError: One is not.
    """
    for path in [given] if isinstance(given, Path) else given or []:
        if not path.exists():
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

"""What gives the numbers of features their meaning; equal hashes of it mean comparable features."""

from collections.abc import Sequence
from typing import Any


def feature_space(
    *,
    fingerprint: str,
    kind: str,
    path: str,
    resolution: int,
    include_global_token: bool,
    preparation: str,
    mean: Sequence[float],
    std: Sequence[float],
) -> dict[str, Any]:
    """The feature space of a frozen CLIP's local features, to be hashed and kept.

    Args:
        fingerprint: Of its weights and architecture.
        kind: Of the local features.
        path: How they are made, in words.
        resolution: Side of its images in pixels.
        include_global_token: Whether the mean token precedes the locations.
        preparation: How images become squares, in words.
        mean: Channel means.
        std: Channel deviations.
    """
    return {
        "backbone": fingerprint,
        "kind": kind,
        "path": path,
        "resolution": resolution,
        "include_global_token": include_global_token,
        "resize": preparation,
        "mean": list(mean),
        "std": list(std),
    }

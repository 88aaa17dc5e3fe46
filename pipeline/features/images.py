"""Images beside features: for methods that are fed the images themselves."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from dclip.data.listing import CaptionedListing, Listing, MaskedListing
from dclip.methods.settings import MethodSettings
from pipeline.terminal.errors import UsageError


@dataclass(frozen=True)
class AboutImages:
    """What there is to say of images of which no features are kept.

    Attributes:
        spec: As in a manifest: backbone, resolution, prompts.
        dim: Width of the joint space.
        grid: Rows and columns of its locations.
        class_names: None.
    """

    spec: Mapping[str, Any]
    dim: int
    grid: tuple[int, int]
    class_names: Sequence[str] = ()


def require_images(listing: Listing, tried: Sequence[MethodSettings]) -> None:
    """Refuse, before any work, a method that is fed what the images of a data set do not have.

    Args:
        listing: Of the split that is trained on, or scored.
        tried: Settings of the method.

    Raises:
        UsageError: They have no captions, or no masks.
    """
    for own in tried:
        fed = own.training_feeds() | own.scoring_feeds()
        if "captions" in fed and not isinstance(listing, CaptionedListing):
            raise UsageError(
                f"{own.name} is fed captions, which {listing.name} {listing.split} has not; take a "
                "data set with captions, such as shapes"
            )
        if "masks" in fed and not isinstance(listing, MaskedListing):
            raise UsageError(
                f"{own.name} is fed masks of what is in front, which {listing.name} "
                f"{listing.split} has not; take a data set with such masks"
            )

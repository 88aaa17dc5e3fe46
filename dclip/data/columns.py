"""Columns of one split brought into the order of another's, by the names of the classes."""

from collections.abc import Sequence
from dataclasses import replace

from dclip.data.listing import ImageListing, Listing
from dclip.data.webdataset_listing import WebdatasetListing

_NAMED = 5
"""How many classes a message names."""


def match_columns(listing: Listing, class_names: Sequence[str], *, of: str) -> Listing:
    """The listing with its columns in the order of some class names.

    Annotation files number classes as they like, so two splits of one data set may have the same
    classes in another order.

    Args:
        listing: One split.
        class_names: Those of another split, in column order.
        of: How messages call the other split.

    Returns:
        The listing itself where its columns are in that order; its identity is another only where
        columns moved, and a note then says so.

    Raises:
        ValueError: If one of the two lacks a class that the other has, be it one without any
            image; the message names such classes.
    """
    wanted = tuple(class_names)
    if listing.class_names == wanted:
        return listing
    missing = [name for name in wanted if name not in set(listing.class_names)]
    extra = [name for name in listing.class_names if name not in set(wanted)]
    if missing or extra or len(listing.class_names) != len(wanted):
        lacks = [
            f"{split!r} has no {_named(names)}"
            for split, names in ((listing.split, missing), (of, extra))
            if names
        ]
        raise ValueError(
            f"splits {of!r} and {listing.split!r} have other classes:"
            f" {'; '.join(lacks) or 'one of them has a class twice'}. Give both the same ones; a"
            " class without an image in a split stays among its classes"
        )
    if not isinstance(listing, ImageListing | WebdatasetListing):
        raise ValueError(
            f"columns of {listing.name} {listing.split!r} are in another order than those of"
            f" {of!r}, and cannot be moved"
        )
    column = {name: position for position, name in enumerate(listing.class_names)}
    order = [column[name] for name in wanted]
    note = f"classes are in another order than those of {of!r}: columns were matched by name"
    return replace(
        listing,
        class_names=wanted,
        labels=listing.labels[:, order],
        notes=(*listing.notes, note),
    )


def _named(names: Sequence[str]) -> str:
    """Some names, and how many more."""
    shown = " and no ".join(map(repr, names[:_NAMED]))
    return shown + (f" (nor {len(names) - _NAMED} more)" if len(names) > _NAMED else "")

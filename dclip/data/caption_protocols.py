"""Test sets of retrieval as published: which images, which captions, in which files."""

from collections.abc import Mapping
from dataclasses import dataclass, replace

from dclip.data.captions import CaptionListing, read_captions
from dclip.store.paths import AnyPath, RemotePath


@dataclass(frozen=True, kw_only=True)
class Protocol:
    """A test set.

    Attributes:
        title: In words.
        files: Where its captions may be below the root, the usual place first.
        folders: Where its images may be below the root; ``""`` for the root itself.
        split: Which part of the file.
        most: Captions of an image that count, the first; None: all.
        images: How many there are.
    """

    title: str
    files: tuple[str, ...]
    folders: tuple[str, ...]
    split: str = "all"
    most: int | None = None
    images: int


_FLICKR_IMAGES = ("flickr30k-images", "flickr30k_images", "Images", "images")
_KARPATHY = ("", "annotations/", "karpathy/", "caption_datasets/")

PROTOCOLS: Mapping[str, Protocol] = {
    "coco_val2017": Protocol(
        title="COCO val2017, the first five captions of each image",
        files=("annotations/captions_val2017.json",),
        folders=("val2017", "images/val2017"),
        most=5,
        images=5000,
    ),
    "karpathy_5k": Protocol(
        title="COCO, Karpathy's 5,000 test images, the first five captions of each",
        files=tuple(f"{place}dataset_coco.json" for place in _KARPATHY),
        folders=("", "images"),
        split="test",
        most=5,
        images=5000,
    ),
    "flickr30k_1k": Protocol(
        title="Flickr30k, Karpathy's 1,000 test images",
        files=tuple(f"{place}dataset_flickr30k.json" for place in _KARPATHY),
        folders=_FLICKR_IMAGES,
        split="test",
        most=5,
        images=1000,
    ),
    "flickr30k_all": Protocol(
        title="Flickr30k, all images, as SmartCLIP and Long-CLIP test",
        files=("results_20130124.token", "flickr30k/results_20130124.token"),
        folders=_FLICKR_IMAGES,
        most=5,
        images=31_783,
    ),
    "urban1k": Protocol(
        title="Urban1k, one long caption an image",
        files=("", "Urban1k"),
        folders=(),
        most=1,
        images=1000,
    ),
    "sharegpt4v_1k": Protocol(
        title="ShareGPT4V, the first 1,000 entries, one long caption an image",
        files=("share-captioner_coco_lcs_sam_1246k_1107.json",),
        folders=("data", ""),
        split="test",
        most=1,
        images=1000,
    ),
}
"""Test sets by name."""


def open_protocol(name: str, root: AnyPath) -> CaptionListing:
    """A test set; if images are missing or there are more, a note says so.

    Args:
        name: One of `PROTOCOLS`.
        root: Folder of the data set.

    Raises:
        ValueError: There is none of that name, or its files are not below the root.
        OSError: A file cannot be read, or a remote store not be reached.
    """
    if name not in PROTOCOLS:
        raise ValueError(f"unknown protocol {name!r}; there are {', '.join(PROTOCOLS)}")
    protocol = PROTOCOLS[name]
    tried = [_below(root, file) for file in protocol.files]
    found = next(
        (path for path in tried if path.is_file() or (path.is_dir() and _pairs(path))), None
    )
    if found is None:
        raise ValueError(
            f"no captions of {name}: there is no {' nor '.join(map(str, tried))}; give the folder "
            "that has them as root"
        )
    places = [_below(root, folder) for folder in protocol.folders]
    images = next(
        (place for place in places if isinstance(place, RemotePath) or place.is_dir()), None
    )
    if places and images is None:
        raise ValueError(
            f"no images of {name}: there is no folder {' nor '.join(map(str, places))}"
        )
    listing = read_captions(
        str(found), protocol.split, images=images, most=protocol.most, name=name
    )
    if len(listing) == protocol.images:
        return listing
    told = f"{name} has {protocol.images:,} images as published, here are {len(listing):,}"
    return replace(listing, notes=(told, *listing.notes))


def _below(root: AnyPath, place: str) -> AnyPath:
    return root / place if place else root


def _pairs(folder: AnyPath) -> bool:
    """Whether it is a folder of images beside one of texts."""
    return (folder / "caption").is_dir() and (folder / "image").is_dir()

"""Images themselves as a source of batches: decoded, cropped and stacked by threads.

Methods that train through CLIP, or look inside it, see pixels, not cached features. They are read
anew in every epoch while the step before is at work (:func:`dclip.fitting.batches.prefetch`).
"""

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, Int, Int64, UInt8
from PIL import Image
from torch import Tensor

from dclip.data.crops import Crop, Form, as_pixels, centre_crop, mask_of, random_crop
from dclip.data.images import ImageError
from dclip.data.listing import CaptionedListing, Listing, MaskedListing
from dclip.data.preparation import SQUARE, Preparation
from dclip.fitting.batches import FeatureSource


class Pictures(NamedTuple):
    """Pixels of some images, and masks where they are wanted."""

    pixels: UInt8[Tensor, "rows height width 3"]
    masks: Bool[Tensor, "rows height width"] | None


class ImageSource:
    """Images of a listing with their labels: rows are images that can be trained on.

    Args:
        listing: Where images come from.
        indices: Position of each row in it.
        labels: 1 (present), 0 (absent) or -1 (unknown); no columns where there are no classes.
        resolution: Side of the square in pixels; the stride where images keep their size.
        form: See `Form`. Random crops, where a batch asks for them, are squares in any case.
        preparation: That of the backbone, for the form ``"square"``.
        threads: That decode; left out: one a CPU.
        features: Cached features of the same rows, for methods that are fed both.

    Raises:
        ValueError: Rows, labels and features are of different numbers of images.
    """

    def __init__(
        self,
        listing: Listing,
        indices: Int64[np.ndarray, " rows"],
        labels: Int[Tensor, "rows classes"],
        *,
        resolution: int,
        form: Form = "crop",
        preparation: Preparation = SQUARE,
        threads: int | None = None,
        features: FeatureSource | None = None,
    ) -> None:
        if len(labels) != len(indices) or (
            features is not None and len(features.labels) != len(indices)
        ):
            raise ValueError(f"{len(indices)} images, labels of {len(labels)}")
        self.listing, self.indices, self.labels = listing, indices, labels
        self.resolution, self.form, self.features = resolution, form, features
        self.preparation = preparation
        self._pool = ThreadPoolExecutor(threads or os.cpu_count() or 1, thread_name_prefix="decode")

    def __len__(self) -> int:
        return len(self.indices)

    @property
    def grid(self) -> tuple[int, int]:
        """That of the cached features; 0 x 0 where there are none."""
        return (0, 0) if self.features is None else self.features.grid

    @property
    def views(self) -> int:
        """How many views of every image are cached: the clean one alone."""
        return 1

    def local(
        self,
        rows: Int64[np.ndarray, " rows"],
        views: Int64[np.ndarray, " rows"] | None = None,
    ) -> Float[Tensor, "rows locations dim"]:
        """Cached local features.

        Raises:
            ValueError: There are none beside these images.
        """
        if self.features is None:
            raise ValueError("there are no cached features beside these images")
        return self.features.local(rows, views)

    def embeddings(self, rows: Int64[np.ndarray, " rows"]) -> Float[Tensor, "rows dim"]:
        """Cached global embeddings.

        Raises:
            ValueError: There are none beside these images.
        """
        read = getattr(self.features, "embeddings", None)
        if read is None:
            raise ValueError("there are no cached embeddings beside these images")
        found: Tensor = read(rows)
        return found

    def pixels(
        self,
        rows: Int64[np.ndarray, " rows"],
        draws: Int64[np.ndarray, " rows"] | None = None,
    ) -> UInt8[Tensor, "rows height width 3"]:
        """Images of some rows, in the order given.

        Args:
            rows: Which.
            draws: For each the seed of a random crop; left out: in the source's own form.

        Raises:
            ImageError: One is missing or damaged; the message says which.
            OSError: The place of all images cannot be reached.
            ValueError: Several images that keep their own size.
        """
        return self.pictures(rows, draws, masks=False).pixels

    def captions(self, rows: Int64[np.ndarray, " rows"]) -> list[tuple[str, ...]]:
        """Captions of some rows, in the order given; any number an image.

        Raises:
            ValueError: The data set has none.
        """
        if not isinstance(self.listing, CaptionedListing):
            raise ValueError(f"{self.listing.name} has no captions of its images")
        return [tuple(own) for own in self.listing.captions(self.indices[rows])]

    def pictures(
        self,
        rows: Int64[np.ndarray, " rows"],
        draws: Int64[np.ndarray, " rows"] | None = None,
        *,
        masks: bool = True,
    ) -> Pictures:
        """Images of some rows with the masks of what is in front, cut alike.

        Args:
            rows: Which.
            draws: As for `pixels`.
            masks: Whether masks are wanted.

        Raises:
            ImageError: An image or a mask is missing or damaged, or they are of different sizes.
            OSError: The place of all images cannot be reached.
            ValueError: The data set has no masks; or several images that keep their own size.
        """
        if masks and not isinstance(self.listing, MaskedListing):
            raise ValueError(f"{self.listing.name} has no masks of its images")
        if self.form == "native" and draws is None and len(rows) > 1:
            raise ValueError("images that keep their own size come one by one")
        if not len(rows):  # the share of a worker in a batch of fewer images than workers
            side = self.resolution
            none = torch.empty(0, side, side, dtype=torch.bool) if masks else None
            return Pictures(torch.empty(0, side, side, 3, dtype=torch.uint8), none)
        seeds: Sequence[int | None] = [None] * len(rows) if draws is None else draws.tolist()
        wanted = [masks] * len(rows)
        found = list(self._pool.map(self._load, self.indices[rows].tolist(), seeds, wanted))
        pixels = torch.from_numpy(np.stack([image for image, _ in found]))
        if not masks:
            return Pictures(pixels, None)
        inside = np.stack([mask for _, mask in found if mask is not None])
        return Pictures(pixels, torch.from_numpy(inside))

    def close(self) -> None:
        """Stop the threads."""
        self._pool.shutdown(cancel_futures=True)

    def _load(
        self, index: int, draw: int | None, masked: bool
    ) -> tuple[UInt8[np.ndarray, "height width 3"], Bool[np.ndarray, "height width"] | None]:
        image, mask = self.listing.read(index).image, None
        if masked:
            assert isinstance(self.listing, MaskedListing)
            mask = self.listing.mask(index)
            if mask.size != image.size:
                raise ImageError(
                    f"image {self.listing.key(index)} has {image.width} x {image.height} pixels, "
                    f"its mask {mask.width} x {mask.height}; a mask is as large as its image"
                )
        crop = None if draw is None else random_crop(image.size, np.random.default_rng(draw))
        side = self.resolution
        square = (
            as_pixels(image, side, self.form, self.preparation)
            if crop is None
            else crop.of(image, side)
        )
        inside = None if mask is None else mask_of(self._cut_mask(mask, crop))
        return np.asarray(square), inside

    def _cut_mask(self, mask: Image.Image, crop: Crop | None) -> Image.Image:
        side, nearest = self.resolution, Image.Resampling.NEAREST
        if crop is None and self.form == "crop":
            crop = centre_crop(mask.size)
        if crop is not None:
            return crop.of(mask, side, nearest)
        if self.form == "square":
            return self.preparation.of_mask(mask, side)
        return mask.resize((-(-mask.width // side) * side, -(-mask.height // side) * side), nearest)

"""A frozen CLIP and, over it, a trained method that are asked of classes by name."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, UInt8
from PIL import Image
from torch import Tensor

from dclip.backbones import Backbone, ImageFeatures, former_fingerprint, preparation_of
from dclip.checkpoints.calibration import Calibration
from dclip.checkpoints.origin import About, kind_trained_on
from dclip.data.crops import as_pixels
from dclip.data.pixels import normalise
from dclip.data.placing import place_maps, place_mask
from dclip.logits import sigmoid_of
from dclip.methods.method import Method, Task
from dclip.prediction import Prediction, predict_images
from dclip.prompts import ClassTexts, encode_class_names, encode_prompt_pairs
from dclip.store.shards import digest
from dclip.store.space import feature_space
from dclip.texts import check_class_names, fold_name, same_text

_MOST_SCORES = 1 << 24  # of classes at places, of images that are scored together
_MOST_PIXELS = 1 << 24  # of the mask of a square with bars; a longer image has coarser ones


def space_of(backbone: Backbone, kind: str) -> dict[str, Any]:
    """The feature space of a backbone; see :func:`dclip.store.space.feature_space`."""
    return feature_space(
        fingerprint=backbone.fingerprint(),
        kind=kind,
        path=backbone.feature_path(kind),
        resolution=backbone.resolution,
        include_global_token=backbone.include_global_token,
        preparation=str(preparation_of(backbone)),
        mean=backbone.mean,
        std=backbone.std,
    )


def kind_of(about: About, backbone: Backbone, what: str) -> str:
    """The kind of a backbone's local features that a checkpoint was trained on.

    Args:
        about: Of the checkpoint.
        backbone: That is at hand.
        what: How messages call the checkpoint.

    Raises:
        CheckpointError: It was trained on another backbone, or at another resolution.
    """
    spaces = {}
    for kind in backbone.kinds:
        own = space_of(backbone, kind)
        spaces[kind] = {digest(own), digest({**own, "backbone": former_fingerprint(backbone)})}
    name = f"{backbone.name} at {backbone.resolution} px"
    return kind_trained_on(about, spaces, what=what, backbone=name)


@dataclass(frozen=True)
class Trained:
    """A trained method and what is known of it.

    Attributes:
        method: In evaluation mode.
        about: Its origin.
    """

    method: Method[Any]
    about: About


class Looker:
    """A backbone and a method that know the names of the classes.

    Args:
        backbone: Frozen CLIP, on the device.
        class_names: What is looked for; names of the training are known whatever their case.
        trained: A method over it; None for frozen CLIP alone.
        kind: Of local features, that the method was trained on.
        device: Where it computes.
        threshold: In (0, 1); a pixel less sure than that is background.
        untrained_probability: Also tell probabilities of classes that were not trained on.

    Raises:
        ValueError: There are no names, one is unfit, two are one text to CLIP, or the method is
            bound to other classes.
    """

    def __init__(
        self,
        backbone: Backbone,
        class_names: Sequence[str],
        trained: Trained | None = None,
        *,
        kind: str = "value",
        device: torch.device | str = "cpu",
        threshold: float = 0.5,
        untrained_probability: bool = False,
    ) -> None:
        names = [name.strip() for name in class_names]
        if not names:
            raise ValueError("there is no class to look for; name some")
        check_class_names(names)
        if alike := same_text(names):
            said = " and ".join(map(repr, alike[0]))
            raise ValueError(f"{said} are one text to CLIP; leave one of each")
        known = {fold_name(name): name for name in trained.about.class_names} if trained else {}
        self.class_names = tuple(names)
        # as in training, whatever the case in which a name is given
        self.trained_as = tuple(known.get(fold_name(name)) for name in names)
        self.backbone, self.kind, self.device = backbone, kind, torch.device(device)
        self.preparation = preparation_of(backbone)
        self._threshold, self._untrained = threshold, untrained_probability
        self._spelt = [old or new for old, new in zip(self.trained_as, names, strict=True)]
        self._texts = encode_class_names(backbone, self._spelt).float()
        self._pairs = encode_prompt_pairs(backbone, self._spelt).float()
        self._method: Method[Any] | None = None
        self.calibration: Calibration | None = None
        self._trained: Tensor | None = None
        if trained is not None:
            texts = ClassTexts(self._texts, torch.arange(len(names), device=self._texts.device))
            task = Task(tuple(self._spelt), self._pairs, texts, backbone)
            method = trained.method.on(self.device)
            self._method = method.for_classes(task)
            self._trained = torch.tensor([name is not None for name in self.trained_as])
            if trained.about.calibration is not None:
                column = {name: number for number, name in enumerate(trained.about.class_names)}
                columns = [None if old is None else column[old] for old in self.trained_as]
                self.calibration = trained.about.calibration.for_columns(columns)

    @cached_property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of the maps."""
        return self.backbone.grid(self.backbone.resolution, self.backbone.resolution)

    def prepare(self, image: Image.Image) -> UInt8[np.ndarray, "side side 3"]:
        """The square of an image that the backbone sees."""
        return np.array(self.preparation(image, self.backbone.resolution))

    def look(self, images: Sequence[Image.Image], *, masks: bool = True) -> list[Prediction]:
        """What some images show, in one pass of the network.

        Masks have the size of the image, and are background where the backbone sees nothing of it;
        maps are of the square that the backbone sees (`maps_on`).

        Args:
            images: RGB.
            masks: Whether masks are made.
        """
        squares = np.stack([self.prepare(image) for image in images])
        return self.say(images, self.encode(squares), masks=masks)

    def encode(self, squares: UInt8[np.ndarray, "images side side 3"]) -> ImageFeatures:
        """Features of squares that `prepare` made, the same for all classes.

        Args:
            squares: Of some images.
        """
        backbone = self.backbone
        with torch.no_grad():
            pixels = normalise(
                torch.from_numpy(squares).to(self.device), backbone.mean, backbone.std
            )
            return backbone.encode_images(pixels, kind=self.kind)

    def say(
        self, images: Sequence[Image.Image], features: ImageFeatures, *, masks: bool = True
    ) -> list[Prediction]:
        """What features of some images say, as of `look`.

        Args:
            images: RGB; of the size that they have, if masks are made.
            features: Theirs, of the kind of this one.
            masks: Whether masks are made.
        """
        rows, columns = self.grid
        together = max(1, _MOST_SCORES // (len(self.class_names) * rows * columns))
        if self._is_fed_native:
            together = 1
        said: list[Prediction] = []
        with torch.no_grad():
            for start in range(0, len(images), together):
                part = slice(start, start + together)
                some = ImageFeatures(*(each[part] for each in features))
                said += self._say(images[part], some, masks=masks)
        return said

    def maps_on(
        self,
        maps: Float[np.ndarray, "classes rows columns"],
        image: Image.Image,
        size: tuple[int, int],
    ) -> Float[np.ndarray, "classes height width"]:
        """Maps of an image over a copy of it; nan where nothing of it was seen.

        Args:
            maps: Of a prediction.
            image: That it is of.
            size: Width and height of the copy.
        """
        return place_maps(
            maps,
            self.preparation,
            seen=image.size,
            side=self.backbone.resolution,
            size=size,
        )

    def _say(
        self, images: Sequence[Image.Image], features: ImageFeatures, *, masks: bool
    ) -> list[Prediction]:
        """What features of images say, in one go."""
        if not masks:
            return self._predict(images, features, [None] * len(images))
        if self.preparation.resize == "squash":
            return self._predict(images, features, [(one.height, one.width) for one in images])
        said = self._predict(images, features, [self._seen(one.size) for one in images])
        side = self.backbone.resolution
        placed = []
        for image, one in zip(images, said, strict=True):
            assert one.mask is not None
            mask = place_mask(one.mask.cpu().numpy(), self.preparation, side=side, size=image.size)
            placed.append(replace(one, mask=torch.from_numpy(mask)))
        return placed

    def _seen(self, size: tuple[int, int]) -> tuple[int, int]:
        """Height and width of the square that the backbone sees, in pixels of the image."""
        side = self.backbone.resolution
        of_image, of_square = self.preparation.shown(*size, side)
        width = side * (of_image.right - of_image.left) / (of_square.right - of_square.left)
        height = side * (of_image.bottom - of_image.top) / (of_square.bottom - of_square.top)
        shrunk = max(1.0, math.sqrt(width * height / _MOST_PIXELS))
        return math.ceil(height / shrunk), math.ceil(width / shrunk)

    def _predict(
        self,
        images: Sequence[Image.Image],
        features: ImageFeatures,
        sizes: Sequence[tuple[int, int] | None],
    ) -> list[Prediction]:
        """With masks of all that the backbone sees, in so many rows and columns."""
        fed = self._pixels(images)
        return predict_images(
            features,
            self.grid,
            sizes,
            has_global_token=self.backbone.include_global_token,
            texts=self._texts,
            pairs=self._pairs,
            class_names=self._spelt,
            backbone=None if fed is None else self.backbone,
            pixels=fed,
            model=self._method,
            trained=self._trained,
            untrained_probability=self._untrained,
            threshold=self._threshold,
            sigmoid=sigmoid_of(self.backbone),
            calibration=self.calibration,
        )

    @property
    def _is_fed_native(self) -> bool:
        """Whether a method is fed images of the sizes that they have."""
        settings = None if self._method is None else self._method.settings
        return settings is not None and settings.sees_images() and settings.image_form == "native"

    def _pixels(
        self, images: Sequence[Image.Image]
    ) -> UInt8[Tensor, "images height width 3"] | None:
        """The images as a method is fed them, if it is."""
        if self._method is None or not self._method.settings.sees_images():
            return None
        form = self._method.settings.image_form
        side = self.backbone.stride if form == "native" else self.backbone.resolution
        fed = [np.array(as_pixels(one, side, form, self.preparation)) for one in images]
        return torch.from_numpy(np.stack(fed)).to(self.device)

"""A model that is asked by requests: images are read in threads, batches scored in one pass."""

import threading
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any

import numpy as np
from jaxtyping import UInt8
from PIL import Image
from pycocotools import mask as coco_mask

from dclip.backbones import ImageFeatures
from dclip.data.images import ImageError, ImageTooLargeError, read_image
from dclip.recognition.looking import Looker, space_of
from dclip.recognition.places import NoModelError, Which, find_model
from dclip.recognition.recognizer import Recognizer, load
from dclip.recognition.result import Result
from dclip.store.shards import digest, file_digest
from pipeline.serving.fetching import fetch
from pipeline.serving.requests import NO_IMAGE, TOO_LARGE, UNFIT, Asked, RefusedError
from pipeline.settings.serving import Limits

_LOOKERS = 16  # lists of class names whose texts are kept


@dataclass(frozen=True)
class Ready:
    """A request whose images are read.

    Attributes:
        asked: The request.
        looker: Of its classes.
        images: RGB.
        squares: Of each what the backbone sees.
    """

    asked: Asked
    looker: Looker
    images: tuple[Image.Image, ...]
    squares: tuple[UInt8[np.ndarray, "side side 3"], ...]


class Answering:
    """A model and the limits of what it is asked.

    Args:
        model: Loaded.
        limits: Of requests.
        checkpoint: Start of its file's SHA-256; None for frozen CLIP alone.
        batch_size: Images of a forward pass.
    """

    def __init__(
        self,
        model: Recognizer,
        limits: Limits,
        *,
        checkpoint: str | None = None,
        batch_size: int = 16,
    ) -> None:
        self.model, self.limits, self.batch_size = model, limits, batch_size
        self._known: OrderedDict[tuple[str, ...] | None, Looker] = OrderedDict()
        self._lock = threading.Lock()  # of what is known
        self._naming = threading.Lock()  # of the text tower
        self.about = _described(model, checkpoint)

    # -- one request -----------------------------------------------------------------------------

    def read(self, asked: Asked) -> Ready:
        """The images of a request, decoded, and what asks of its classes.

        Raises:
            RefusedError: An image or a class name cannot be used.
        """
        looker = self._looker(asked.classes)
        images = tuple(self._open(one, number, asked) for number, one in enumerate(asked.images))
        squares = tuple(looker.prepare(image) for image in images)
        return Ready(asked, looker, images, squares)

    def _open(self, given: bytes | str, number: int, asked: Asked) -> Image.Image:
        name = f"images[{number}]"
        data = fetch(given, name, self.limits) if isinstance(given, str) else given
        try:
            image = read_image(data, max_pixels=self.limits.max_pixels)
        except ImageError as error:
            status = TOO_LARGE if isinstance(error, ImageTooLargeError) else NO_IMAGE
            raise RefusedError(status, f"{name}: {error}") from None
        most = self.limits.max_mask_pixels
        if asked.masks and image.width * image.height > most:
            raise RefusedError(
                TOO_LARGE,
                f"{name} has {image.width} x {image.height} pixels, masks are made of at most "
                f"{most}; send a smaller copy, or ask without masks",
            )
        return image

    def _looker(self, classes: tuple[str, ...] | None) -> Looker:
        found = self._remembered(classes)
        if found is not None:
            return found
        with self._naming:
            found = self._remembered(classes)  # by another thread meanwhile
            if found is not None:
                return found
            try:
                made = self.model.looker(classes)
            except ValueError as error:
                raise RefusedError(UNFIT, str(error)) from None
            with self._lock:
                self._known[classes] = made
                while len(self._known) > _LOOKERS:
                    self._known.popitem(last=False)
            return made

    def _remembered(self, classes: tuple[str, ...] | None) -> Looker | None:
        with self._lock:
            if classes in self._known:
                self._known.move_to_end(classes)
            return self._known.get(classes)

    # -- several requests ------------------------------------------------------------------------

    def score(self, batch: Sequence[Ready]) -> list[dict[str, Any]]:
        """Answers to several requests, whose images go through the network together.

        Args:
            batch: Of any classes.
        """
        rows = [(ready, at) for ready in batch for at in range(len(ready.images))]
        said: list[Result] = []
        for start in range(0, len(rows), self.batch_size):
            said += self._pass(rows[start : start + self.batch_size])
        answers, start = [], 0
        for ready in batch:
            own = said[start : start + len(ready.images)]
            start += len(own)
            answers.append({
                "images": [told(one, masks=ready.asked.masks) for one in own],
                "model": self.about,
            })  # fmt: skip
        return answers

    def _pass(self, rows: Sequence[tuple[Ready, int]]) -> list[Result]:
        """Results of images in one forward pass; those of equal questions are scored together."""
        squares = np.stack([ready.squares[at] for ready, at in rows])
        features = rows[0][0].looker.encode(squares)
        groups: dict[Any, list[int]] = {}
        for row, (ready, _) in enumerate(rows):
            groups.setdefault((id(ready.looker), ready.asked.masks), []).append(row)
        found: dict[int, Result] = {}
        for (_, masks), own in groups.items():
            looker = rows[own[0]][0].looker
            some = features if len(own) == len(rows) else _of(features, own)
            images = [rows[row][0].images[rows[row][1]] for row in own]
            for row, one in zip(own, looker.say(images, some, masks=masks), strict=True):
                ready, at = rows[row]
                found[row] = self.model.result(
                    looker, one, f"images[{at}]", threshold=ready.asked.threshold
                )
        return [found[row] for row in range(len(rows))]

    def answer(self, asked: Asked) -> dict[str, Any]:
        """The answer to one request, by itself.

        Raises:
            RefusedError: An image or a class name cannot be used.
        """
        return self.score([self.read(asked)])[0]


def _of(features: ImageFeatures, rows: list[int]) -> ImageFeatures:
    return ImageFeatures(*(each[rows] for each in features))


def told(result: Result, *, masks: bool) -> dict[str, Any]:
    """What is said of an image, as JSON has it.

    Args:
        result: Of the image.
        masks: Whether masks of the classes that are there are told, as COCO's run lengths.
    """
    said = result.to_dict()
    del said["source"]
    if masks and result.mask is not None:
        numbers = {name: 1 + at for at, name in enumerate(result.class_names)}
        said["masks"] = {name: run_lengths(result.mask == numbers[name]) for name in result.present}
    return said


def run_lengths(mask: np.ndarray) -> dict[str, Any]:
    """COCO's compressed run lengths of a mask, ``{"size": [height, width], "counts": text}``.

    Example:
        >>> run_lengths(np.array([[False, True], [False, True]]))
        {'size': [2, 2], 'counts': '22'}
    """
    coded = coco_mask.encode(np.asfortranarray(mask, dtype=np.uint8))
    return {"size": list(coded["size"]), "counts": coded["counts"].decode()}


def open_model(
    place: str, which: Which = "newest", *, device: str = "auto"
) -> tuple[Recognizer, str | None]:
    """A model, and the start of its checkpoint's SHA-256; None for frozen CLIP alone.

    Args:
        place: As of `dclip.load`.
        which: Likewise.
        device: Likewise.

    Raises:
        ValueError: There is none, or it cannot be used.
        OSError: It cannot be fetched.
    """
    try:
        path = find_model(place, which)
    except NoModelError:
        return load(place, which=which, device=device), None  # a CLIP by its name, or an error
    return load(path, device=device), file_digest(path)[:16]


def _described(model: Recognizer, checkpoint: str | None) -> dict[str, Any]:
    """What answers, in few words; where it lies is its host's own business."""
    about, backbone = model.about, model.backbone
    return {
        "name": backbone.name if about is None else f"{about.name} on {about.made_on}",
        "method": None if about is None else about.method,
        "backbone": backbone.name,
        "feature_space": digest(space_of(backbone, model.kind))
        if about is None
        else about.feature_space,
        "checkpoint": checkpoint,
        "version": version("dclip"),
    }

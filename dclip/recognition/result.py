"""What a model says of one photograph, by the names of the classes."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from jaxtyping import Float, Integer
from PIL import Image

from dclip.prediction import Prediction

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Measure = Literal["probability", "score", "share", "cosine"]
"""What the score of a class is: the probability that it is there (calibrated, where the training
held images out); the score of a method that gives no probabilities; its share in CLIP's softmax
over the classes; or the largest cosine of any place with CLIP's text."""


@dataclass(frozen=True)
class Result:
    """Classes of one image, where they are, and which pixels are theirs.

    Attributes:
        source: Path, URL or number of the image.
        scores: Of each class, on the scale that ``measures`` tells; larger is likelier.
        thresholds: Score above which each class counts as present; None where there is none.
        present: Names of the classes that are there, the likeliest first.
        measures: What each score is.
        maps: Of each class, in the order of the names, how sure its presence is at each place of
            the square that the backbone sees (a cosine for classes that were not trained on).
        mask: 0 for background, else 1 + position of the class, a pixel each of the image; None
            where it was not asked for.
        prediction: All that was said, as tensors.
        image: The image, RGB; None where it was not kept.
    """

    source: str
    scores: dict[str, float]
    thresholds: dict[str, float | None]
    present: list[str]
    measures: dict[str, Measure]
    maps: Float[np.ndarray, "classes rows columns"] = field(repr=False)
    mask: Integer[np.ndarray, "height width"] | None = field(repr=False)
    prediction: Prediction = field(repr=False)
    image: Image.Image | None = field(repr=False, default=None)
    placed: Any = field(repr=False, default=None)  # from maps of the square to maps of the image

    @property
    def class_names(self) -> tuple[str, ...]:
        """The classes, in the order of maps and mask values."""
        return tuple(self.scores)

    def to_dict(self) -> dict[str, Any]:
        """Scores and classes as JSON has them, without maps and mask."""
        return {
            "source": self.source,
            "present": self.present,
            "scores": self.scores,
            "thresholds": self.thresholds,
            "measures": self.measures,
        }

    def plot(self, *, most: int = 8) -> "Figure":
        """A picture: the image, its mask with the names of the classes, and maps of the likeliest.

        Maps of probabilities go from 0 to 1, those of cosines from the smallest to the largest.

        Args:
            most: Maps that are drawn at most.

        Raises:
            ValueError: The image was not kept.
        """
        from dclip.pictures import masks  # matplotlib takes half a second

        if self.image is None:
            raise ValueError("the image was not kept with its result, so it cannot be drawn")
        ranked = sorted(
            self.scores, key=lambda name: (name not in self.present, -self.scores[name])
        )
        shown = ranked[:most]
        columns = [self.class_names.index(name) for name in shown]
        maps = self.placed(self.maps[columns], self.image, masks.small_size(self.image))
        trained = self.prediction.trained
        located = self.prediction.is_located
        is_odds = [trained is not None and located and bool(trained[column]) for column in columns]
        others = self.maps[[c for c, is_own in zip(columns, is_odds, strict=True) if not is_own]]
        free = (float(others.min()), float(others.max())) if len(others) else (0.0, 1.0)
        return masks.said_of(
            self.image,
            self.mask,
            self.class_names,
            maps,
            [_titled(name, self.scores[name], name in self.present) for name in shown],
            [(0.0, 1.0) if is_own else free for is_own in is_odds],
        )


def _titled(name: str, score: float, is_present: bool) -> str:
    return f"{name}  {score:.2f}{'' if is_present else '  (absent)'}"


def result_of(
    said: Prediction,
    class_names: Sequence[str],
    thresholds: Sequence[float] | None,
    *,
    source: str,
    untrained_cosine: float | None = None,
    image: Image.Image | None = None,
    placed: Any = None,
) -> Result:
    """A prediction by the names of its classes.

    Args:
        said: On any device.
        class_names: In the order of its classes.
        thresholds: Of probabilities, by held-out images; None where there are none.
        source: What the image is called.
        untrained_cosine: Cosine above which a class counts as present that was not trained on.
        image: To be kept.
        placed: `dclip.recognition.looking.Looker.maps_on`.
    """
    scores, limits, measures = {}, {}, {}
    for at, name in enumerate(class_names):
        limit = None if thresholds is None else thresholds[at]
        scores[name], measures[name], limits[name] = _score(said, at, limit, untrained_cosine)
    present = [
        name for name, there in zip(class_names, said.present.tolist(), strict=True) if there
    ]
    return Result(
        source=source,
        scores=scores,
        thresholds=limits,
        present=sorted(present, key=lambda name: -scores[name]),
        measures=measures,
        maps=said.maps.float().cpu().numpy(),
        mask=None if said.mask is None else said.mask.cpu().numpy(),
        prediction=said,
        image=image,
        placed=placed,
    )


def _score(
    said: Prediction, at: int, limit: float | None, untrained_cosine: float | None
) -> tuple[float, Measure, float | None]:
    """What is said of one class, on which scale, and above what it counts as present."""
    if said.trained is not None and said.trained[at]:
        if said.presence is not None:
            return float(said.presence[at]), "probability", 0.5 if limit is None else limit
        if said.score is not None:
            return float(said.score[at]), "score", None
    if untrained_cosine is not None:
        return float(said.cosine[at]), "cosine", untrained_cosine
    if said.clip_presence is not None:
        return float(said.clip_presence[at]), "probability", 0.5
    count = len(said.zero_shot)
    return float(said.zero_shot[at]), "share", 1 / count if count > 1 else 1.0

"""Scaling and thresholds that a checkpoint keeps; reading them takes no torch."""

import re
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

from pydantic import BaseModel, ConfigDict, Field, model_validator

Kind = Literal["platt", "temperature", "none"]


class Rule(NamedTuple):
    """What a threshold is chosen for.

    Attributes:
        measure: ``"f1"``: it is as large as it can be; ``"precision"``: it is reached with as much
            recall as can be; ``"recall"``: likewise.
        target: That is to be reached, in (0, 1); None for ``"f1"``.
    """

    measure: Literal["f1", "precision", "recall"] = "f1"
    target: float | None = None

    def __str__(self) -> str:
        return self.measure if self.target is None else f"{self.measure}={self.target:g}"

    @classmethod
    def parse(cls, text: str) -> "Rule":
        """A rule as people write it: ``f1``, ``precision=0.9``, ``recall=0.95``.

        Raises:
            ValueError: It is none.

        Example:
            >>> Rule.parse("precision=0.9")
            Rule(measure='precision', target=0.9)
        """
        if text.strip() == "f1":
            return cls()
        found = re.fullmatch(r"\s*(precision|recall)\s*=\s*([0-9]*\.?[0-9]+)\s*", text)
        if found is None or not 0 < float(found[2]) < 1:
            raise ValueError(
                f"{text!r} is no rule for thresholds; give f1, precision=0.9 or recall=0.9, with a "
                "number between 0 and 1"
            )
        measure: Literal["precision", "recall"] = (
            "precision" if found[1] == "precision" else "recall"
        )
        return cls(measure, float(found[2]))


class Measured(BaseModel):
    """What held-out images say of probabilities and thresholds, before and after.

    What comes "after" is measured on images that took no part: in turn each fifth of them, with
    what the other four fifths give.

    Attributes:
        ece_before: Expected calibration error of the scores as they are; None where these are no
            probabilities.
        ece_after: The same of calibrated ones.
        cf1_before: CF1 at 0.5; None where scores are no probabilities.
        cf1_after: At the chosen thresholds.
        of1_before: OF1 likewise.
        of1_after: OF1 likewise.
        map: Mean average precision.
        map_low: Lower end of its interval of 95 %, by drawing images anew; None where there are too
            many to do so.
        map_high: Upper end.
        untrained_f1: Overall F1 of CLIP's cosine at the threshold for new names, each class in turn
            as if it were one: the threshold is then that of the others.
    """

    model_config = ConfigDict(extra="ignore", frozen=True)

    ece_before: float | None = None
    ece_after: float | None = None
    cf1_before: float | None = None
    cf1_after: float | None = None
    of1_before: float | None = None
    of1_after: float | None = None
    map: float | None = None
    map_low: float | None = None
    map_high: float | None = None
    untrained_f1: float | None = None


class Calibration(BaseModel):
    """Scaling and thresholds of the classes of a method, as a checkpoint keeps them.

    Attributes:
        kind: How probabilities are made.
        scale: Multiplier of log-odds, above 0.
        offset: Added to them.
        class_offsets: Of each class, added as well.
        rule: What thresholds were chosen for, as `Rule.parse` reads it.
        thresholds: Of each class, on calibrated probabilities.
        shared_threshold: One for all of them; new names that a method gives a probability have it.
        untrained_cosine: Largest cosine of a location with CLIP's text above which a class counts
            as present that the method was not trained on; None where it is not known.
        images: How many were held out.
        positives: Images of each class among them.
        measured: What they say of it.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    kind: Kind
    scale: float = Field(gt=0)
    offset: float
    class_offsets: list[float]
    rule: str
    thresholds: list[float]
    shared_threshold: float = Field(gt=0, lt=1)
    untrained_cosine: float | None = None
    images: int = Field(ge=1)
    positives: list[int]
    measured: Measured

    @model_validator(mode="after")
    def _of_one_number_of_classes(self) -> "Calibration":
        counts = {len(self.class_offsets), len(self.thresholds), len(self.positives)}
        if len(counts) > 1:
            raise ValueError("offsets, thresholds and positives tell of different classes")
        if not all(0 < one < 1 for one in self.thresholds):
            raise ValueError("a threshold lies outside (0, 1)")
        Rule.parse(self.rule)
        return self

    def for_columns(self, columns: Sequence[int | None]) -> "Calibration":
        """The same for other classes.

        Args:
            columns: Of each its number among those it was made for; None for a new one, which has
                no offset of its own and the threshold of all.
        """

        def taken(values: Sequence[Any], other: Any) -> list[Any]:
            return [other if column is None else values[column] for column in columns]

        return self.model_copy(
            update={
                "class_offsets": taken(self.class_offsets, 0.0),
                "thresholds": taken(self.thresholds, self.shared_threshold),
                "positives": taken(self.positives, 0),
            }
        )

"""Settings that say which part of the training data is used; reading them takes no torch."""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator


def _class_list(value: object) -> object:
    """``"4"`` as a number, ``"dog, cat"`` as names; a command line brings both in a list."""
    words = value.split(",") if isinstance(value, str) else value
    if not isinstance(words, list | tuple) or not all(isinstance(word, str) for word in words):
        return value
    names = tuple(word.strip() for word in words)
    return int(names[0]) if len(names) == 1 and names[0].isdecimal() else names


class Subset(BaseModel):
    """Which part of the training data is used, for what a method makes of less or worse data.

    What is drawn follows from a seed and the row of each image
    (:func:`dclip.fitting.drawn.part_of`). Each draw of more holds that of less: 50 images are among
    the 100 of the same seed, and so are labels and shots. What is scored keeps all labels.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    num_images: int | None = Field(
        None, ge=1, description="only so many images, drawn; left out: all"
    )
    shots: int | None = Field(
        None,
        ge=1,
        description="only images that are drawn so that each class is shown by so many of them, or "
        "by all that show it where there are fewer; left out: all",
    )
    label_fraction: float = Field(
        1.0,
        gt=0,
        le=1,
        description="probability with which each label of each image is known; the others are "
        "hidden (-1), as in the partial-label protocol of DualCoOp",
    )
    label_noise: float = Field(
        0.0, ge=0, lt=1, description="probability with which each known label is the wrong one"
    )
    classes: Annotated[int | tuple[str, ...] | None, BeforeValidator(_class_list)] = Field(
        None,
        description="only so many classes, the first ones, or those of these names; of training "
        "and scoring alike; left out: all",
    )

    protocol: Literal["few_shot", "base_to_new"] | None = Field(
        None,
        description="images of one class each, whose shots are drawn as Dassl and CoOp draw them: "
        "few_shot trains and scores all classes, base_to_new trains the first half of them and "
        "scores it and the other; none is held out; left out: shots of any images",
    )

    @model_validator(mode="after")
    def _is_of_all_classes(self) -> Any:
        others = {"num_images", "label_fraction", "label_noise", "classes"} & self.identity().keys()
        if self.protocol is not None and others:
            raise ValueError(
                f"protocol {self.protocol} draws shots of whole images of all classes; take out "
                f"{' and '.join(sorted(others))}"
            )
        return self

    @property
    def is_drawn(self) -> bool:
        """Whether anything is left to chance, so that seeds have other data."""
        return bool(self.identity().keys() - {"classes"})

    def held_out(self, fraction: float) -> float:
        """Share of the images that is held out where that much is asked for; none of a protocol."""
        return fraction if self.protocol is None else 0.0

    def identity(self) -> dict[str, Any]:
        """What differs from all of the data, as JSON has it; it names results."""
        return self.model_dump(mode="json", exclude_defaults=True)

"""Sections of the stages that look at what shards already know: search and audit."""

from pydantic import BaseModel, ConfigDict, Field

from pipeline.settings.sections import LocalPath


class SearchConfig(BaseModel):
    """What is looked for among extracted images."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    queries: list[str] = Field(
        [], description="texts, or images: paths or URLs; words without a flag go here"
    )
    split: list[str] = Field(
        [],
        description="splits to search; left out: training and test split, as far as their features "
        "stand",
    )
    count: int = Field(24, ge=1, le=10_000, description="images to find for each query")
    shown: int = Field(12, ge=1, le=48, description="of these, how many are drawn")
    locations: bool = Field(
        True,
        description="also rank by the best location; without, a small part of the bytes is read",
    )


class AuditConfig(BaseModel):
    """How labels and splits are looked over."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    split: str | None = Field(
        None, description="split whose labels are looked at; left out: the training split"
    )
    folds: int = Field(
        5, ge=2, le=50, description="parts; each is scored by what was trained on the others"
    )
    scorers: list[str] = Field(
        ["linear_probe", "dclip"],
        min_length=1,
        max_length=5,
        description="methods that score, one after the other, each trained without the labels that "
        "the one before doubts; the last one's scores count",
    )
    epochs: int = Field(
        8, ge=1, description="epochs of scorers that the loop trains, by their usual presets"
    )
    copies: float = Field(
        0.98,
        gt=0,
        le=1,
        description="agreement from which two images are copies: mean over locations of the cosine "
        "there",
    )
    neighbours: int = Field(
        10, ge=1, le=1000, description="nearest images of each that are looked at for copies"
    )
    shown: int = Field(24, ge=1, le=48, description="worst labels, and pairs of copies, drawn")
    pairs: int = Field(
        12, ge=2, le=60, description="classes of the picture of those that take from each other"
    )
    write_labels: LocalPath | None = Field(
        None,
        description="also write the labels with what is suggested: a table that --dataset folder: "
        "reads, in the folder of the images or above it",
    )
    anew: bool = Field(
        False, description="look again although a report of these settings and features stands"
    )

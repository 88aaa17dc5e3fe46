"""Sections of the settings, one a stage, and the types of their values."""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PlainSerializer,
    PlainValidator,
    WithJsonSchema,
    field_validator,
    model_validator,
)
from pydantic_settings import (
    NoDecode,
)
from typing_extensions import TypeAliasType

from dclip.checkpoints.calibration import Rule
from dclip.fitting.loop import Loop
from dclip.marks import RARE, in_short
from dclip.store.paths import AnyPath, RemotePath, as_path
from dclip.templates import ZERO_SHOT_TEMPLATE
from pipeline.terminal.pages import page


def _as_path(value: object) -> AnyPath:
    if not isinstance(value, str | Path | RemotePath):
        raise ValueError("a path or URL must be text")
    return as_path(value)


PathOrURL = TypeAliasType(
    "PathOrURL",
    Annotated[
        AnyPath, PlainValidator(_as_path), PlainSerializer(str), WithJsonSchema({"type": "string"})
    ],
)
"""A local path or a URL; ``--help`` calls it by this name."""


def as_local(value: object) -> Path:
    """A path of this machine.

    Raises:
        ValueError: It is none, or a URL.
    """
    path = _as_path(value)
    if isinstance(path, RemotePath):
        raise ValueError("this must be a path of this machine or a mounted store, not a URL")
    return path


LocalPath = TypeAliasType(
    "LocalPath",
    Annotated[
        Path, PlainValidator(as_local), PlainSerializer(str), WithJsonSchema({"type": "string"})
    ],
)
"""A path of this machine; ``~`` is the home folder."""


def _paths(value: object) -> object:
    """One path, several with commas between, a list, or None for none."""
    if isinstance(value, str):
        return [path.strip() for path in value.split(",")]
    if isinstance(value, Path):
        return [value]
    return [] if value is None else value


Checkpoints = Annotated[list[LocalPath], NoDecode, BeforeValidator(_paths)]
"""Files of checkpoints, or folders of them."""


def _three(value: object) -> object:
    """Three numbers: a sequence, or text with commas between, in brackets or without."""
    if value is None:
        return None
    words = value.split(",") if isinstance(value, str) else value
    words = words if isinstance(words, list | tuple) else [words]
    try:
        numbers = tuple(float(str(word).strip(" []()")) for word in words)
    except ValueError:
        numbers = ()
    if len(numbers) != 3:
        raise ValueError("three numbers are wanted, such as 0.5,0.5,0.5")
    return numbers


Channels = Annotated[tuple[float, float, float], NoDecode, BeforeValidator(_three)]
"""A number for each channel of an RGB image."""


class BackboneWorkers(BaseModel):
    """Processes that each hold the frozen backbone, for every stage that encodes images."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    workers: int | None = Field(
        None,
        ge=1,
        description="processes that each hold the backbone; left out: one per CPU or GPU",
    )
    threads: int | None = Field(
        None,
        ge=1,
        description="threads of each worker that read and decode; left out: one per CPU of the "
        "worker; give more where storage answers slowly",
        json_schema_extra=RARE,
    )
    precision: Literal["auto", "float32", "bfloat16", "float16"] = Field(
        "auto",
        description="in which the backbone computes; auto: float16 on a GPU, else float32",
        json_schema_extra=RARE,
    )
    batch_size: int | None = Field(
        None,
        ge=1,
        description="images, or windows of them, per forward pass; left out: 32 on a CPU, 128 on a "
        "GPU",
    )


class ExtractConfig(BackboneWorkers):
    """How images become feature shards."""

    split: str | None = Field(None, description="only this split; left out: train and test split")
    kind: str = Field(
        "value", description="local features: value, or another kind the backbone has, such as vv"
    )
    storage: Literal["float16", "int8"] = Field(
        "float16", description="how features are kept; int8 halves the bytes"
    )
    views: int = Field(
        0, ge=0, description="augmented views of each training image, kept beside the clean one"
    )
    view_seed: int = Field(0, ge=0, description="seed of the augmentation", json_schema_extra=RARE)
    compile: bool = Field(
        False, description="compile the backbone; pays for long extractions", json_schema_extra=RARE
    )
    mode: Literal["resume", "overwrite", "extend"] = Field(
        "resume",
        description="resume makes what is missing; overwrite makes all anew; extend takes over "
        "images that earlier features of another listing or limit hold under the same key",
    )
    retry_failed: bool = Field(
        False, description="read images again that could not be read", json_schema_extra=RARE
    )
    verify: bool = Field(False, description="only compare every shard with its checksum")
    repair: bool = Field(False, description="verify, and make damaged shards again")
    shard_size: int = Field(256, ge=1, description="images per tar shard")
    max_failures: float = Field(
        0.01,
        ge=0,
        le=1,
        description="fraction of unreadable images above which the stage fails",
        json_schema_extra=RARE,
    )
    limit: int | None = Field(None, ge=1, description="only the first images of each split")


class TrainConfig(Loop):
    """How a method is trained: the loop, and the processes that run it."""

    workers: int = Field(
        1, ge=1, description="Ray Train workers; the global batch stays batch_size"
    )
    min_workers: int | None = Field(
        None,
        ge=1,
        description="go on with as few workers when nodes are lost; left out: wait for all",
        json_schema_extra=RARE,
    )
    max_failures: int = Field(
        1, ge=0, description="restarts after a lost worker", json_schema_extra=RARE
    )
    checkpoint_seconds: float = Field(
        60,
        gt=0,
        description="resumable state is kept after each epoch, and this often within one",
        json_schema_extra=RARE,
    )
    cache: Literal["auto", "device", "ram", "none"] = Field(
        "auto",
        description="where features lie while training: device (copied to the GPU), ram (copied "
        "once a node, shared by its workers), none (mapped from their files); auto: the GPU if "
        "they fit, ram for remote ones if they fit, else none",
        json_schema_extra=in_short("where features lie while training"),
    )
    precision: Literal["auto", "float32"] = Field(
        "auto",
        description="of matrix products: auto is TF32 on a GPU's tensor cores, else float32",
        json_schema_extra=RARE,
    )
    data_seed: int | None = Field(
        None,
        ge=0,
        description="seed of the shuffle and of the held-out images; left out: seed",
        json_schema_extra=RARE,
    )
    val_fraction: float = Field(
        0.1, ge=0, lt=1, description="share of the training split held out for val/* metrics"
    )

    @model_validator(mode="after")
    def _best_needs_held_out_images(self) -> Self:
        if self.selection == "best_on_val" and self.val_fraction == 0:
            raise ValueError("selection best_on_val needs a val_fraction above 0")
        return self

    @property
    def loop(self) -> Loop:
        """What shapes the trained weights, without where and how often."""
        return Loop.model_validate(self.model_dump(include=set(Loop.model_fields)))


TagCLIPPreset = Literal["robust", "author", "author_coco", "author_stuff"]
"""Settings of TagCLIP where it is one row among others."""


class EvaluateConfig(BaseModel):
    """What a checkpoint is compared with."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    checkpoint: Checkpoints = Field(
        [],
        description="checkpoints to evaluate, folders of them, or newest (of --output); left out: "
        "the one these settings train",
    )
    threshold: float = Field(
        0.5, gt=0, lt=1, description="probability above which a class counts as predicted"
    )
    linear_probe: bool = Field(True, description="also fit a max-pooled linear probe")
    probe_epochs: int = Field(30, ge=1, description="passes of the linear probe")
    zero_shot_pooled: bool = Field(
        False, description="also score CLIP's local features pooled as DCLIP pools them"
    )
    tagclip: TagCLIPPreset | None = Field(
        None, description="also score TagCLIP, which looks at the images, by this preset"
    )
    scenes: int = Field(4, ge=1, le=32, description="test images drawn with activation maps")
    anew: bool = Field(
        False, description="score again although a report of these settings and files stands"
    )


class RetrieveConfig(BaseModel):
    """Which captions find which images, and whose."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    checkpoint: Checkpoints = Field(
        [], description="checkpoints of smartclip to score beside frozen CLIP, or folders of them"
    )
    protocol: (
        Literal[
            "coco_val2017",
            "karpathy_5k",
            "flickr30k_1k",
            "flickr30k_all",
            "urban1k",
            "sharegpt4v_1k",
        ]
        | None
    ) = Field(None, description="a published test set; --root is its folder")
    captions: str | None = Field(
        None,
        description="a file of captions (COCO's or ShareGPT4V's JSON, .token, .csv, .tsv, .jsonl, "
        ".parquet), a pattern of tars, or a folder with image and caption; left out, and without a "
        "protocol: the captions of --dataset",
    )
    image_folder: PathOrURL | None = Field(
        None, description="folder of the images of a file of captions; left out: that of the file"
    )
    split: str | None = Field(
        None, description="part of the captions; left out: the test split of --dataset, else all"
    )
    most: int | None = Field(
        None,
        ge=1,
        description="captions of an image that count, the first; left out: all",
        json_schema_extra=RARE,
    )
    only: int | None = Field(
        None, ge=1, description="only this caption of each image, counted from 1; left out: all"
    )
    limit: int | None = Field(None, ge=1, description="only the first images")
    form: Literal["crop", "square"] = Field(
        "crop",
        description="how an image becomes a square: crop, its middle as CLIP prepares it, or "
        "square, as cached features are made (--resize; of CLIP's own models all of it squeezed)",
    )
    score: Literal["cosine", "fp16_softmax"] = Field(
        "cosine",
        description="what ranks: the cosine in float32; or the softmax in float16 of SmartCLIP's "
        "script for Flickr30k, most of which ties",
        json_schema_extra=RARE,
    )
    precision: Literal["auto", "float32", "bfloat16", "float16"] = Field(
        "auto",
        description="in which encoders compute; auto: float16 on a GPU, else float32",
        json_schema_extra=RARE,
    )
    batch_size: int | None = Field(
        None, ge=1, description="images or texts per forward pass; left out: 32, 128 on a GPU"
    )
    threads: int | None = Field(
        None,
        ge=1,
        description="threads that read and decode; left out: one per CPU",
        json_schema_extra=RARE,
    )
    masked_captions: int = Field(
        12,
        ge=2,
        le=60,
        description="captions whose masks are drawn, where a method has some",
        json_schema_extra=RARE,
    )
    anew: bool = Field(
        False, description="score again although a report of these settings and files stands"
    )


def bounds(text: str) -> tuple[float, float]:
    """Both ends of ``low..high``.

    Raises:
        ValueError: The text is no range of numbers from 0 on, or an empty one.
    """
    try:
        low, high = (float(end) for end in text.split(".."))
    except ValueError:
        raise ValueError(f"{text!r} is not LOW..HIGH, such as 0.01..1") from None
    if not 0 <= low < high < math.inf:
        raise ValueError(f"{text}: a range goes from a number, 0 at least, to a larger one")
    return low, high


System = Literal[
    "clip", "maskclip", "clip_vv", "clip_surgery", "sclip", "clearclip", "naclip",
    "checkpoints", "checkpoints_present", "projectors", "projectors_present",
    "tagclip", "tagclip_present",
]  # fmt: skip


class SegmentConfig(BackboneWorkers):
    """How pixels get classes, and which systems are compared."""

    split: str | None = Field(None, description="split to segment; left out: the test split")
    systems: list[System] = Field(
        ["clip", "maskclip", "clip_vv", "clip_surgery", "checkpoints", "checkpoints_present"],
        min_length=1,
        description="what is compared: the checkpoints (projectors is the same, as of before), "
        "_present with only those classes competing that they find in the image; tagclip, which "
        "looks at the image at its own size; the others are frozen CLIP",
        json_schema_extra=in_short(
            "what is compared: checkpoints, checkpoints_present, tagclip, or frozen CLIP as "
            "maskclip, clip_vv, ..."
        ),
    )
    tagclip: TagCLIPPreset = Field(
        "robust", description="settings of tagclip: those of a preset", json_schema_extra=RARE
    )
    checkpoint: Checkpoints = Field(
        [],
        description="checkpoints, or folders of them, as a sweep leaves them; left out: those that "
        "pipeline.run trains with these settings",
    )
    kind: str = Field("vv", description="local features that checkpoints look at here: vv or value")
    templates: list[str] = Field(
        [ZERO_SHOT_TEMPLATE],
        min_length=1,
        description="prompt templates with one {}, whose class features are averaged",
        json_schema_extra=RARE,
    )
    normalisation: Literal["minmax", "none"] = Field(
        "minmax", description="stretch the scores of each class over an image to 0..1, or do not"
    )
    background: Literal["none", "threshold", "class"] = Field(
        "none",
        description="none: its true pixels are not counted; threshold: where no class is sure; "
        "class: its phrasings compete",
    )
    threshold: float = Field(
        0.85, gt=0, lt=1, description="largest probability below which a pixel is background"
    )
    logit_scale: float = Field(
        100.0,
        gt=0,
        description="multiplier of the scores in the softmax behind threshold",
        json_schema_extra=RARE,
    )
    image_resolution: int | None = Field(
        None,
        ge=1,
        description="side of the square an image is resized to here; left out: resolution",
    )
    window: int | None = Field(
        None, ge=1, description="side of windows that slide over the image; left out: one square"
    )
    stride: int | None = Field(
        None, ge=1, description="pixels between windows; left out: half a window"
    )
    short_side: int | None = Field(
        None,
        ge=1,
        description="short side of the image under windows; left out: resolution",
        json_schema_extra=RARE,
    )
    neighbours: int = Field(
        3,
        ge=1,
        description="similar classes that the leakage measure takes",
        json_schema_extra=RARE,
    )
    group_size: int = Field(
        64, ge=1, description="images between two files of counts", json_schema_extra=RARE
    )
    scenes: int = Field(
        6,
        ge=1,
        le=32,
        description="images drawn with their masks, and as many of the worst",
        json_schema_extra=RARE,
    )
    limit: int | None = Field(None, ge=1, description="only the first images of the split")


class PredictConfig(BaseModel):
    """Which images are looked at, for which classes."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    paths: list[str] = Field(
        [], description="images, or folders of images: paths or URLs; words without a flag go here"
    )
    classes: list[str] = Field(
        [],
        description="class names of any choice, with commas between: dog, horse, person; left out: "
        "those of the training that is taken",
    )
    checkpoint: LocalPath | None = Field(
        None,
        description="trained method, on the backbone it was trained on unless another is named: a "
        "file, or newest; left out: the newest of --output, or what these settings train if they "
        "say so, else frozen CLIP alone",
    )
    zero_shot: bool = Field(False, description="frozen CLIP alone, no checkpoint")
    labels: LocalPath | None = Field(
        None,
        description="also write which classes are there as a table that --dataset folder: reads, "
        "such as DIR/train.csv in the folder of the images",
    )
    untrained_probability: bool = Field(
        False,
        description="also tell what the checkpoint says of classes it was not trained on; it is "
        f"confident and means little ({page('untrained_names')})",
    )
    threshold: float = Field(
        0.5,
        gt=0,
        lt=1,
        description="probability below which a pixel is background: that of the class's own prompt "
        "pair there; with zero_shot the largest of a softmax over the classes",
    )


class SegmentsMlrConfig(BackboneWorkers):
    """How the segments of an image help CLIP to say what it shows."""

    split: str | None = Field(None, description="split to score; left out: the test split")
    checkpoint: LocalPath | None = Field(
        None, description="trained method that segments; left out: what these settings train"
    )
    kind: str = Field("vv", description="local features that the checkpoint looks at: vv or value")
    only_present: bool = Field(
        True, description="only classes compete for pixels that the checkpoint finds in the image"
    )
    area: float = Field(
        0.01, ge=0, lt=1, description="share of an image below which a segment is left out"
    )
    weights: list[Annotated[float, Field(ge=0, le=1)]] = Field(
        [0.25, 0.5, 0.75], description="weights of the segments in the fused score"
    )
    group_size: int = Field(
        64, ge=1, description="images between two files of scores", json_schema_extra=RARE
    )
    limit: int | None = Field(None, ge=1, description="only the first images of the split")


def _values_by_key(value: Any) -> Any:
    """Text of the command line, or a mapping; a range stays text, anything else is a list."""
    if isinstance(value, str):
        value = _assignments(value)
    if not isinstance(value, Mapping):
        return value
    space: dict[str, list[Any] | str] = {}
    for key, given in value.items():
        values = given if isinstance(given, list) else [given]
        if not values:
            raise ValueError(f"{key} has no values; write KEY=VALUE,VALUE,... or KEY=LOW..HIGH")
        is_range = len(values) == 1 and isinstance(values[0], str) and ".." in values[0]
        if is_range:
            bounds(values[0])
        space[str(key).replace("-", "_")] = values[0] if is_range else values
    return space


def _assignments(text: str) -> dict[str, list[str]]:
    """``a=1,2,b=3`` as ``{"a": ["1", "2"], "b": ["3"]}``."""
    found: dict[str, list[str]] = {}
    values: list[str] | None = None
    for word in text.split(","):
        key, equals, value = word.rpartition("=")
        if equals:
            values = found.setdefault(key.strip(), [])
        if values is None or not value.strip():
            raise ValueError("write KEY=VALUE,VALUE,... or KEY=LOW..HIGH")
        values.append(value.strip())
    return found


class SweepConfig(BaseModel):
    """Which settings a sweep tries."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    search: Literal["grid", "random", "optuna"] = Field(
        "grid",
        description="grid: every combination; random: points drawn at random; optuna: points "
        "chosen by the scores of those before (TPE)",
    )
    space: Annotated[dict[str, list[Any] | str], NoDecode, BeforeValidator(_values_by_key)] = Field(
        {},
        description="what to vary, any key of the method's section, of the loop (train.*) or seed "
        "(of initial weights): train.lr=1e-3,3e-3 tries these values, train.lr=1e-4..1e-2 (random, "
        "optuna) the range between, evenly on a logarithmic scale; repeat the flag for more keys; "
        "left out: what the method proposes",
    )
    trials: int | None = Field(
        None,
        ge=1,
        description="number of trials; left out: the whole grid, or 8 random or optuna points",
    )
    epochs: int = Field(10, ge=1, description="epochs of each trial")
    asha: bool = Field(False, description="stop weak trials early (ASHA)")
    pack: Literal["auto", "never"] = Field(
        "auto",
        description="auto: trials that differ only in seed, and in what the method lets differ "
        "(DCLIP: lambda, alpha, d'), share each pass over the features, unless asha or optuna; "
        "never: each trial has a process of its own",
    )
    concurrency: int | None = Field(
        None, ge=1, description="processes at once; left out: one per CPU, or as GPUs allow"
    )
    gpus_per_trial: float = Field(
        0.25,
        gt=0,
        description="share of a GPU that a trial in a process of its own takes",
        json_schema_extra=RARE,
    )


class AblateRow(BaseModel):
    """One line of an ablation: what it changes."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    study: str = Field(min_length=1, description="which question it belongs to")
    label: str = Field(min_length=1, description="what it is called there")
    set: dict[str, Any] = Field(
        {},
        description="settings it changes: keys as in a sweep, or train.preset; x0.1 is a tenth of "
        "what the settings say; nothing: as they are",
    )


class AblateConfig(BaseModel):
    """Which parts of a method are taken away or changed, one at a time."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    rows: list[AblateRow] = Field(
        [],
        description="lines of the table; left out: those of conf/ablate.yaml for dclip with preset "
        "robust or author, else the method, its variants, and what it proposes to sweep, value by "
        "value",
    )
    studies: list[str] = Field(
        [], description="only the rows of these studies; left out: all (dry-run lists them)"
    )
    vary: Annotated[dict[str, list[Any] | str], NoDecode, BeforeValidator(_values_by_key)] = Field(
        {},
        description="instead of rows: one study a key, dclip.mfi_weight=0,x0.1,1 has a row for "
        "each value; repeat the flag for more keys",
    )
    seeds: int = Field(
        3,
        ge=1,
        description="trainings of each row, of initial weights seed, seed + 1, ...; shuffle and "
        "held-out images are those of train.data_seed for all",
    )
    epochs: int | None = Field(
        None, ge=1, description="epochs of each training; left out: what its settings say"
    )
    pack: int = Field(
        9,
        ge=1,
        description="trainings that share one pass over the features, at most",
        json_schema_extra=RARE,
    )


class CompareRow(AblateRow):
    """One line of a comparison: a method, and what it changes."""

    study: str = Field("methods", min_length=1, description="which question it belongs to")
    method: str = Field(min_length=1, description="name of the method, or package.module:Class")
    against: str | None = Field(
        None,
        description="label of the row beside it that it is compared with, its own for none; left "
        "out: the first",
    )


class CompareConfig(BaseModel):
    """Which methods are compared, and over what."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    methods: list[str] = Field(
        [],
        description="methods, or variants such as asl_only, with commas between; the others are "
        "compared with the first; left out: all that come with the package",
    )
    rows: list[CompareRow] = Field(
        [],
        description="instead of methods, in YAML: lines of the table, each with label, method and "
        "what it sets; against: the label of the row it is compared with",
    )
    studies: list[str] = Field(
        [],
        description="only the rows of these studies, or the points of these keys; left out: all",
    )
    label_fraction: list[float] = Field(
        [], description="a curve over the share of labels that are known: 0.1,0.5,1"
    )
    shots: list[int | Literal["all"]] = Field(
        [], description="a curve over images per class: 1,2,4,8,16 (or all)"
    )
    protocol: Literal["few_shot", "base_to_new"] | None = Field(
        None,
        description="top-1 accuracy of images of one class each, shots drawn as Dassl and CoOp do: "
        "few_shot, of all classes, or base_to_new, which trains the first half of the classes and "
        "is asked for the others as well (subset.protocol)",
    )
    num_images: list[int | Literal["all"]] = Field(
        [], description="a curve over the number of training images: 20,50,100,all"
    )
    vary: Annotated[dict[str, list[Any] | str], NoDecode, BeforeValidator(_values_by_key)] = Field(
        {},
        description="curves over other keys, of subset, train or a method: "
        "train.lr=x0.3,x1,x3 compares all rows at each value; repeat the flag for more keys, each "
        "is a study",
        json_schema_extra=RARE,
    )
    seeds: int = Field(
        5,
        ge=1,
        description="trainings of each row, of initial weights seed, seed + 1, ...; each draws its "
        "own part of the data, where one is asked for",
    )
    epochs: int | None = Field(
        None, ge=1, description="epochs of what the loop trains; left out: what its settings say"
    )
    pack: int = Field(
        9,
        ge=1,
        description="trainings that share one pass over the features, at most",
        json_schema_extra=RARE,
    )


class CalibrateConfig(BaseModel):
    """How probabilities are made and thresholds chosen, for checkpoints that are there."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    checkpoint: Checkpoints = Field(
        [],
        description="checkpoints that are given new thresholds, or folders of them; left out: the "
        "one these settings train",
    )
    rule: str = Field(
        "f1",
        description="what thresholds are chosen for: f1, or precision=0.9 or recall=0.9, reached "
        "by each class with as much of the other as can be",
    )
    kind: Literal["platt", "temperature", "none"] = Field(
        "platt",
        description="how probabilities are made of log-odds: platt (a scale, an offset, a small "
        "one of each class), temperature (a scale) or none (as they are)",
    )
    split: str | None = Field(
        None,
        description="split whose images tell; left out: those that the training held out",
    )

    @field_validator("rule")
    @classmethod
    def _is_a_rule(cls, value: str) -> str:
        return str(Rule.parse(value))


class ExportConfig(BaseModel):
    """What is written for others to run."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    format: Literal["onnx", "pt2", "safetensors"] = Field(
        "onnx",
        description="onnx (ONNX Runtime and others), pt2 (torch.export) or safetensors (tensors of "
        "the head alone)",
    )
    what: Literal["image", "head"] | None = Field(
        None,
        description="image: pixels in; head: local features in; left out: image, with safetensors "
        "head",
    )
    checkpoint: LocalPath | None = Field(
        None,
        description="file, or newest, on the backbone it was trained on unless another is named; "
        "left out: the newest of --output, or what these settings train if they say so",
    )
    zero_shot: bool = Field(False, description="frozen CLIP alone, for the classes of --classes")
    classes: list[str] = Field(
        [],
        description="class names, with commas between: some of those that were trained, in this "
        "order, or any with --zero-shot; left out: all that were trained",
    )

"""Frozen settings of every stage; the only reader of conf/.

One :class:`Config` serves all stages, so that one YAML file describes a whole run. Layers, weakest
first: the defaults here, ``conf/<dataset>.yaml``, each ``--config FILE`` in order, environment
variables (``DCLIP_TRAIN__LR=0.002``), the command line (``--train.lr 0.002``).
"""

import difflib
import math
import os
import re
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Annotated, Any, Literal, Self, get_args, get_origin

import yaml
from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PlainSerializer,
    PlainValidator,
    ValidationError,
    ValidationInfo,
    WithJsonSchema,
    create_model,
    field_validator,
    model_validator,
)
from pydantic_settings import (
    BaseSettings,
    NoDecode,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
)
from typing_extensions import TypeAliasType

from dclip.data.preparation import Interpolation, Resize
from dclip.fitting.loop import Loop
from dclip.fitting.subset import Subset
from dclip.methods.registry import METHODS, find_settings, own_methods
from dclip.methods.settings import MethodSettings, of_preset
from dclip.store.paths import AnyPath, RemotePath, as_path
from dclip.templates import ZERO_SHOT_TEMPLATE
from pipeline.terminal.errors import UsageError
from pipeline.terminal.pages import page

TOY_DATASET, TOY_BACKBONE = "shapes", "tiny"
"""The embedded data set and the CLIP that knows it, and nothing else."""

TOY_DATASETS = (TOY_DATASET, "shapes-single")
"""All that are drawn by the same hand."""


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


def _as_local(value: object) -> Path:
    path = _as_path(value)
    if isinstance(path, RemotePath):
        raise ValueError("this must be a path of this machine or a mounted store, not a URL")
    return path


LocalPath = TypeAliasType(
    "LocalPath",
    Annotated[
        Path, PlainValidator(_as_local), PlainSerializer(str), WithJsonSchema({"type": "string"})
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
    )
    precision: Literal["auto", "float32", "bfloat16", "float16"] = Field(
        "auto", description="in which the backbone computes; auto: float16 on a GPU, else float32"
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
    view_seed: int = Field(0, ge=0, description="seed of the augmentation")
    compile: bool = Field(False, description="compile the backbone; pays for long extractions")
    mode: Literal["resume", "overwrite", "extend"] = Field(
        "resume",
        description="resume makes what is missing; overwrite makes all anew; extend takes over "
        "images that earlier features of another listing or limit hold under the same key",
    )
    retry_failed: bool = Field(False, description="read images again that could not be read")
    verify: bool = Field(False, description="only compare every shard with its checksum")
    repair: bool = Field(False, description="verify, and make damaged shards again")
    shard_size: int = Field(256, ge=1, description="images per tar shard")
    max_failures: float = Field(
        0.01, ge=0, le=1, description="fraction of unreadable images above which the stage fails"
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
    )
    max_failures: int = Field(1, ge=0, description="restarts after a lost worker")
    checkpoint_seconds: float = Field(
        60,
        gt=0,
        description="resumable state is kept after each epoch, and this often within one",
    )
    cache: Literal["auto", "device", "ram", "none"] = Field(
        "auto",
        description="where features lie while training: device (copied to the GPU), ram (copied "
        "once a node, shared by its workers), none (mapped from their files); auto: the GPU if "
        "they fit, ram for remote ones if they fit, else none",
    )
    precision: Literal["auto", "float32"] = Field(
        "auto", description="of matrix products: auto is TF32 on a GPU's tensor cores, else float32"
    )
    data_seed: int | None = Field(
        None,
        ge=0,
        description="seed of the shuffle and of the held-out images; left out: seed",
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
        description="checkpoints to evaluate, or folders of them; left out: the one these settings "
        "train",
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
        None, ge=1, description="captions of an image that count, the first; left out: all"
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
    )
    precision: Literal["auto", "float32", "bfloat16", "float16"] = Field(
        "auto", description="in which encoders compute; auto: float16 on a GPU, else float32"
    )
    batch_size: int | None = Field(
        None, ge=1, description="images or texts per forward pass; left out: 32, 128 on a GPU"
    )
    threads: int | None = Field(
        None, ge=1, description="threads that read and decode; left out: one per CPU"
    )
    masked_captions: int = Field(
        12, ge=2, le=60, description="captions whose masks are drawn, where a method has some"
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
    )
    tagclip: TagCLIPPreset = Field("robust", description="settings of tagclip: those of a preset")
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
        100.0, gt=0, description="multiplier of the scores in the softmax behind threshold"
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
        None, ge=1, description="short side of the image under windows; left out: resolution"
    )
    neighbours: int = Field(3, ge=1, description="similar classes that the leakage measure takes")
    group_size: int = Field(64, ge=1, description="images between two files of counts")
    scenes: int = Field(
        6, ge=1, le=32, description="images drawn with their masks, and as many of the worst"
    )
    limit: int | None = Field(None, ge=1, description="only the first images of the split")


class PredictConfig(BaseModel):
    """Which images are looked at, for which classes."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    paths: list[str] = Field(
        [], description="images, or folders of images: paths or URLs; words without a flag go here"
    )
    classes: list[str] = Field(
        [], description="class names of any choice, with commas between: dog, horse, person"
    )
    checkpoint: LocalPath | None = Field(
        None,
        description="trained method, on the backbone it was trained on unless another is named; "
        "left out: what these settings train if it stands, else frozen CLIP alone",
    )
    zero_shot: bool = Field(False, description="frozen CLIP alone, no checkpoint")
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
    group_size: int = Field(64, ge=1, description="images between two files of scores")
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
        0.25, gt=0, description="share of a GPU that a trial in a process of its own takes"
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
        9, ge=1, description="trainings that share one pass over the features, at most"
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
        9, ge=1, description="trainings that share one pass over the features, at most"
    )


_NAME = re.compile(r"[^\W_](?:[\w. -]{0,62}[^\W_])?")

DEFAULT_METHOD = "dclip"
"""What is trained where nothing is said."""


def reserved_names(method: str) -> set[str]:
    """What no training of a method may be called, as reports call others so."""
    others = {name for name in METHODS if name != method}
    return {*others, *get_args(System), *find_settings(method).variants}


def usual_backbone(settings: Mapping[str, Any]) -> str:
    """The frozen CLIP that is taken where none is named: tiny for shapes, the paper's for all else.

    Args:
        settings: Those that come before it, ``dataset`` among them unless it is wrong itself.
    """
    return TOY_BACKBONE if settings.get("dataset") in TOY_DATASETS else "RN101"


class Config(BaseSettings):
    """Settings of a run: what to read, which frozen CLIP, how to train, where to write."""

    model_config = SettingsConfigDict(
        extra="forbid",
        frozen=True,
        env_prefix="DCLIP_",
        env_nested_delimiter="__",
        cli_kebab_case=True,
        cli_implicit_flags=True,
        cli_avoid_json=True,
        cli_hide_none_type=True,
    )

    dataset: str = Field(
        TOY_DATASET,
        description="shapes (embedded, nothing to download), coco (any COCO-format tree), one of "
        "the ready-made settings below, folder:DIR, webdataset:TARS, captions:FILE (to train on "
        "captions) or a COCO-format FILE.json "
        f"({page('datasets')})",
    )
    root: PathOrURL | None = Field(
        None, description="folder of the dataset; coco, coco14 and coco17 take a URL as well"
    )
    train_split: str = Field("train", description="split that is trained on")
    test_split: str = Field("test", description="split that is evaluated on")
    test_on_train: bool = Field(
        False,
        description="allow a test split that is the training images; reports then say so",
    )
    test_fraction: float | None = Field(
        None,
        gt=0,
        lt=1,
        description="part a source of one split into train_split and test_split; this share of its "
        "images is the test split, drawn so that each keeps the mix of classes",
    )
    split_seed: int = Field(0, ge=0, description="seed of the draw of test_fraction")
    images: Literal["annotated", "all"] | None = Field(
        None,
        description="of data sets in COCO's format: annotated leaves out images without an object, "
        "all keeps them; left out: annotated for coco14 and coco17, all for your own",
    )
    output: LocalPath = Field(Path("outputs"), description="folder that holds everything written")
    features: PathOrURL | None = Field(
        None,
        description="folder or URL (s3://bucket/folder) of feature shards; left out: "
        "<output>/features",
    )
    backbone: str = Field(
        default_factory=usual_backbone,
        description="an open_clip name (RN101, ViT-B-16-SigLIP2; all: python -m pipeline.backbones "
        "list), hf-hub:org/name, local-dir:PATH, tiny or tiny-vit (ship with dclip; know the drawn "
        "shapes alone) or package.module:factory; left out: tiny for shapes, RN101 for all else",
    )
    pretrained: str | None = Field(
        None,
        description="weights: an open_clip tag, a local file, or random; left out: openai, or the "
        "only ones released",
    )
    tag: str | None = Field(
        None,
        description="which released weights a local file holds, for the mean, deviation, resize "
        "and activation that go with them",
    )
    resize: Resize | None = Field(
        None,
        description="how images become squares: squash, shortest (crops) or longest (pads); left "
        "out: squash for CLIP's own models, as trained for others (segment sees all of an image)",
    )
    interpolation: Interpolation | None = Field(
        None, description="filter of the resize; left out: bilinear, or as trained"
    )
    mean: Channels | None = Field(
        None, description="channel means in [0, 1], such as 0.5,0.5,0.5; left out: of the weights"
    )
    std: Channels | None = Field(
        None, description="channel deviations, such as 0.5,0.5,0.5; left out: of the weights"
    )
    resolution: int | None = Field(
        None,
        ge=1,
        description="side of the square input in pixels, as trained, in every stage; left out: the "
        "backbone's (to segment at another size: --segment.image-resolution)",
    )
    include_global_token: bool | None = Field(
        None, description="keep the mean token of a ResNet (the authors do); left out: yes"
    )
    method: str = Field(
        DEFAULT_METHOD,
        description="what is trained: dclip, or package.module:Class of your own; its settings are "
        "in a section of its own name; repeat the flag where checkpoints are of several",
    )
    device: Literal["auto", "cpu", "cuda"] = Field("auto", description="where tensors live")
    seed: int = Field(0, ge=0, description="seed of initial weights and of the shuffle")
    name: str | None = Field(
        None, description="name shown in MLflow and reports; left out: that of the method"
    )
    experiment: str | None = Field(None, description="MLflow experiment; left out: dclip-<dataset>")
    options: dict[str, str] = Field(
        {}, description="settings of the dataset, such as difficult=ignore"
    )
    extract: ExtractConfig = Field(ExtractConfig(), description="python -m pipeline.extract")
    train: TrainConfig = Field(TrainConfig(), description="python -m pipeline.train")
    subset: Subset = Field(
        Subset(), description="which part of the training data is used; left out: all"
    )
    evaluate: EvaluateConfig = Field(EvaluateConfig(), description="python -m pipeline.evaluate")
    segment: SegmentConfig = Field(SegmentConfig(), description="python -m pipeline.segment")
    segments_mlr: SegmentsMlrConfig = Field(
        SegmentsMlrConfig(), description="python -m pipeline.segments_mlr"
    )
    retrieve: RetrieveConfig = Field(RetrieveConfig(), description="python -m pipeline.retrieve")
    predict: PredictConfig = Field(PredictConfig(), description="python -m pipeline.predict")
    sweep: SweepConfig = Field(SweepConfig(), description="python -m pipeline.sweep")
    ablate: AblateConfig = Field(AblateConfig(), description="python -m pipeline.ablate")
    compare: CompareConfig = Field(CompareConfig(), description="python -m pipeline.compare")

    @field_validator("name")
    @classmethod
    def _usable_name(cls, name: str | None) -> str | None:
        """It names files, MLflow runs and rows of tables."""
        if name is None:
            return None
        if not _NAME.fullmatch(name):
            raise ValueError(
                "a name has 1 to 64 letters, digits, '-', '_', '.' or spaces, and begins and ends "
                "with a letter or digit"
            )
        return name

    @model_validator(mode="after")
    def _own_name(self) -> Self:
        if self.name in reserved_names(self.method) and self.name != self.own.own_name():
            raise ValueError(f"name: reports call another system so ({self.name}); take another")
        return self

    @model_validator(mode="before")
    @classmethod
    def _fill_from_preset(cls, values: Any) -> Any:
        """Defaults of the loop and of the method's section, as the preset says."""
        settings = find_settings(values.get("method", cls.model_fields["method"].default))
        train = values.get("train", {})
        if not isinstance(train, Mapping):
            return values
        try:
            preset = settings.preset_values(train.get("preset", settings.usual_preset()))
        except ValueError as error:
            raise ValueError(f"train.preset: {error}; choose one by --train.preset") from None
        own = values.get(settings.name, {})
        filled = {"train": {**preset.loop, **train}}
        if isinstance(own, Mapping) and settings.name in cls.model_fields:
            filled[settings.name] = {**preset.own, **own}
        return {**values, **filled}

    @field_validator("experiment")
    @classmethod
    def _usable_experiment(cls, experiment: str | None) -> str | None:
        if experiment is not None and not (experiment.strip() and experiment.isprintable()):
            raise ValueError("an experiment has a name of printable characters")
        return experiment

    @field_validator("mean", "std")
    @classmethod
    def _usable_channels(cls, value: Channels | None, about: ValidationInfo) -> Channels | None:
        if value is None:
            return None
        is_mean = about.field_name == "mean"
        if not all(0 <= each <= 1 and (is_mean or each > 0) for each in value):
            wanted = "0 to 1" if is_mean else "above 0, up to 1"
            raise ValueError(f"of pixels from 0 to 1, each number is {wanted}")
        return value

    @field_validator("pretrained")
    @classmethod
    def _weights_at_home(cls, pretrained: str | None) -> str | None:
        is_at_home = pretrained is not None and pretrained.startswith("~")
        return str(_as_local(pretrained)) if is_at_home else pretrained

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],  # noqa: ARG003 - the signature is pydantic-settings'
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,  # noqa: ARG003
        file_secret_settings: PydanticBaseSettingsSource,  # noqa: ARG003
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Let environment variables override the YAML layers, which arrive as keyword arguments."""
        return env_settings, init_settings

    @property
    def dataset_slug(self) -> str:
        """Name of the data set as a folder name; of a path, its last part."""
        kind, _, place = self.dataset.rpartition(":")
        last = Path(place).name
        text = f"{kind}-{last}" if kind else last
        return "".join(c if c.isalnum() or c in "-_." else "-" for c in text).strip("-.")

    @property
    def data_seed(self) -> int:
        """Seed of the shuffle and of the held-out images."""
        return self.seed if self.train.data_seed is None else self.train.data_seed

    @property
    def own(self) -> MethodSettings:
        """Settings of the method: the section of its name, or the usual ones without it."""
        settings = find_settings(self.method)
        return getattr(self, settings.name, None) or of_preset(settings, self.train.preset)[1]

    @property
    def trained_name(self) -> str:
        """What reports call what these settings train: ``name`` if given, else the method's."""
        return self.name or self.own.own_name()

    @property
    def own_store(self) -> str:
        """The MLflow store in the output folder."""
        return f"sqlite:///{self.output.absolute() / 'mlflow.db'}"

    @property
    def tracking_uri(self) -> str:
        """The MLflow store: ``MLFLOW_TRACKING_URI``, or that in the output folder."""
        return os.environ.get("MLFLOW_TRACKING_URI") or self.own_store

    @property
    def experiment_name(self) -> str:
        """The MLflow experiment."""
        return self.experiment or f"dclip-{self.dataset_slug}"

    @property
    def pending(self) -> Path:
        """Folder of records that wait for an MLflow store that did not answer."""
        return self.output.absolute() / "mlflow-pending"

    def with_own(self, **changes: Any) -> Self:
        """The same settings with some of the method's replaced (checked again)."""
        own = self.own
        changed = type(own).model_validate({**own.model_dump(), **changes})
        return self.model_copy(update={own.name: changed})

    def __reduce__(self) -> tuple[Any, ...]:
        """The class of a method's settings is made as it is needed, and is pickled by its name.

        Values stay as they are: read anew, variables of the environment would come in again, above
        what the command line said. With them go all methods of the user's own that were named, of
        which a worker may be given checkpoints.
        """
        given = set(self.model_fields_set)
        return _again, (self.method, dict(self.__dict__), given, own_methods())


def _again(method: str, values: dict[str, Any], given: set[str], own: Sequence[str]) -> Config:
    for name in own:
        find_settings(name)
    return config_class(method).model_construct(given, **values)


@cache
def config_class(method: str) -> type[Config]:
    """The settings with the section of a method.

    Args:
        method: As in :func:`dclip.methods.registry.find_settings`.

    Raises:
        UsageError: There is no such method, or its section has the name of another.
    """
    try:
        settings = find_settings(method)
    except ValueError as error:
        raise UsageError(str(error)) from None
    if hasattr(Config, settings.name) or settings.name in Config.model_fields:
        raise UsageError(f"method {method!r} is called {settings.name!r}, which is another setting")
    if not re.fullmatch(r"[a-z][a-z0-9_]*", settings.name):
        raise UsageError(
            f"method {method!r} is called {settings.name!r}; a name has small letters, digits and _"
        )
    described = f"python -m pipeline.train --method {method}: {settings.title}"
    section: Any = (settings, Field(settings(), description=described))
    kept = Config.model_fields["method"]
    named: Any = (str, Field(method, description=kept.description))
    made: type[Config] = create_model(
        "Config", __base__=Config, __doc__=Config.__doc__, method=named, **{settings.name: section}
    )
    return made


def as_flags(config: Config, *sections: str) -> list[str]:
    """Words of a command line that give these settings again, where they are not the usual ones.

    Args:
        config: Settings.
        sections: Of the settings; keys of the top level are always looked at.
    """
    merged: dict[str, Any] = {"dataset": config.dataset}
    for _, content in yaml_layers(config.dataset, []):
        merged = merge(merged, content)
    usual = type(config)(**merged)
    is_usual = config.dataset == Config.model_fields["dataset"].default
    words = [] if is_usual else ["--dataset", config.dataset]
    if config.method != DEFAULT_METHOD:
        words += ["--method", config.method]
    own = [key for key, field in Config.model_fields.items() if not _is_section(field.annotation)]
    for section in ("", *sections):
        prefix = f"{section}." if section else ""
        given, known = (getattr(one, section) if section else one for one in (config, usual))
        for key in type(given).model_fields if section else own:
            value = getattr(given, key)
            if value == getattr(known, key):
                continue
            flag = f"{prefix}{key}".replace("_", "-")
            if isinstance(value, bool):
                words.append(f"--{flag}" if value else f"--no-{flag}")
            elif isinstance(value, Mapping):
                words += [f"--{flag}", ",".join(f"{k}={v}" for k, v in value.items())]
            elif isinstance(value, tuple):
                words += [f"--{flag}", ",".join(map(str, value))]
            else:
                words += [f"--{flag}", str(value)]
    return words


def _is_section(annotation: Any) -> bool:
    return isinstance(annotation, type) and issubclass(annotation, BaseModel)


def conf_folder() -> Path:
    """Folder of the shipped YAML files: beside this package, or inside it when installed."""
    installed = Path(__file__).parents[1] / "conf"
    return installed if installed.is_dir() else Path(__file__).parents[2] / "conf"


def find_config_file(name: str) -> Path:
    """A config file as a user names it: a path, or the name of a shipped one.

    Raises:
        UsageError: There is none of that name.
    """
    try:
        path = _as_local(name)
    except ValueError as error:
        raise UsageError(f"--config {name}: {error}") from None
    shipped = conf_folder() / path.name
    if not path.exists() and path.parent.name in ("", "conf") and shipped.is_file():
        return shipped
    return path


Layer = tuple[Path, dict[str, Any]]
"""A config file and the settings in it."""


def yaml_layers(dataset: str, given: Sequence[Layer]) -> list[Layer]:
    """Settings of ``conf/<dataset>.yaml``, if there is one, and of given files, weakest first.

    Raises:
        UsageError: A file has splits or a root of another data set than the chosen one.
    """
    default = conf_folder() / f"{dataset}.yaml"
    is_shipped = Path(dataset).name == dataset and default.is_file()
    layers = [*([read_layer(default)] if is_shipped else []), *given]
    for path, content in layers:
        other = content.get("dataset", dataset)
        foreign = sorted(content.keys() & _OF_ONE_DATASET) if dataset and other != dataset else []
        if foreign:
            raise UsageError(
                f"config file {path} is for dataset {other!r}, but {dataset!r} was chosen; its "
                f"{', '.join(foreign)} would be mixed in: leave out the file, the choice, or these"
            )
    return layers


# settings that mean nothing, or something else, with another data set
_OF_ONE_DATASET = {"root", "train_split", "test_split", "images", "options"}


def in_force(key: str, given: str | None, layers: Sequence[Layer], default: str) -> str:
    """A setting on which others depend, before they are read: flag, variable, last of the files."""
    files = [str(content[key]) for _, content in layers if content.get(key) is not None]
    return given or os.environ.get(f"DCLIP_{key.upper()}") or [default, *files][-1]


def check_environment(model: type[Config] = Config) -> None:
    """Refuse variables that begin as ours do and are none: a misspelt one would do nothing.

    Args:
        model: Settings with the section of the method.

    Raises:
        UsageError: There is one; the message has the nearest name.
    """
    prefix = "DCLIP_"
    for variable in sorted(os.environ):
        name = variable.upper()
        if not name.startswith(prefix) or name in _OTHER_VARIABLES:
            continue
        key = name.removeprefix(prefix).lower().replace("__", ".")
        if _field(model, key) is None and key.partition(".")[0] not in model.model_fields:
            known = {prefix + key.replace(".", "__").upper() for key in _all_keys(model)}
            close = difflib.get_close_matches(name, known | _OTHER_VARIABLES, n=1)
            hint = f"did you mean {close[0]}?" if close else "settings are DCLIP_<SECTION>__<KEY>"
            raise UsageError(f"unknown environment variable {variable}; {hint}")


# read elsewhere: records.provenance, terminal.cli, the tests
_OTHER_VARIABLES = {"DCLIP_COMMIT", "DCLIP_TRACEBACK", "DCLIP_TEST_DATA"}


def _all_keys(model: type[Config]) -> list[str]:
    return [
        key
        for top in model.model_fields
        for key in (top, *(f"{top}.{leaf}" for leaf in known_keys(model, top)))
    ]


def explain(
    error: ValidationError, layers: Sequence[Layer] = (), model: type[Config] = Config
) -> str:
    """One line per problem, in the words of the command line, with the file that has the value."""
    lines = []
    for problem in error.errors():
        key = ".".join(str(part) for part in problem["loc"])
        if problem["type"] == "default_factory_not_called":
            continue  # it follows from another setting, which has a line of its own
        if problem["type"] == "extra_forbidden":
            lines.append(_unknown_key(model, key))
        else:
            message = problem["msg"].removeprefix("Value error, ")
            where = _origin(problem["loc"], problem["input"], layers)
            is_whole = isinstance(problem["input"], Mapping)  # keys that do not go together
            got = "" if is_whole else f", got {problem['input']!r}"
            told = f"{message[:1].lower()}{message[1:]}"
            lines.append(f"{where}{key}{': ' if key else ''}{told}{got}")
    return "\n".join(lines)


def _origin(place: Sequence[str | int], value: object, layers: Sequence[Layer]) -> str:
    """The layer that says this value at this place, for a message; empty for the command line."""
    own = "DCLIP_" + "__".join(map(str, place)).upper()
    for variable, text in os.environ.items():  # whose case does not matter
        if variable.upper() == own and text == value:
            return f"{variable}: "
    for path, content in reversed(layers):
        found: Any = content
        try:
            for part in place:
                found = found[part]
        except (KeyError, IndexError, TypeError):
            continue
        if found == value and type(found) is type(value):
            return f"{path}: "
    return ""


def read_layer(path: Path) -> Layer:
    """The settings of one config file; :func:`check_layer` looks at its keys.

    Raises:
        UsageError: It is missing, is not a YAML mapping, or has a key twice.
    """
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UsageError(
            f"no config file {path}; the shipped ones are in {conf_folder()}"
        ) from None
    except (OSError, UnicodeDecodeError, yaml.YAMLError, RecursionError) as error:
        reason = " ".join(str(error).split())
        raise UsageError(f"cannot read config file {path}: {reason}") from None
    if not isinstance(content, dict):
        found = "nothing" if content is None else repr(content)
        raise UsageError(f"config file {path} must hold 'key: value' lines, and has {found}")
    try:
        return path, _nested(content)
    except UsageError as error:
        raise UsageError(f"{path}: {error}") from None


def check_layer(layer: Layer, model: type[Config]) -> None:
    """Refuse keys of a config file that are no settings.

    Raises:
        UsageError: There is one; the message has the nearest name.
    """
    path, content = layer
    for key in _flat_keys(content):
        if _field(model, key) is None:
            raise UsageError(f"{path}: {_unknown_key(model, key)}")


def of_method(content: Mapping[str, Any], model: type[Config]) -> dict[str, Any]:
    """Settings without the sections of methods that are not the one in force."""
    return {key: value for key, value in content.items() if key in model.model_fields}


def _nested(content: Mapping[Any, Any]) -> dict[str, Any]:
    """A key as the command line writes it, ``train.lr: 0.1``, as ``train: {lr: 0.1}``."""
    whole: dict[str, Any] = {}
    for key, value in content.items():
        if not isinstance(key, str):
            raise UsageError(f"key {key!r} is no name of a setting; write it as text")
        first, dot, rest = key.partition(".")
        section = whole.get(first, {})
        if not dot:
            if first in whole:
                raise UsageError(f"{first!r} is there twice, as {first} and as {first}.KEY")
            whole[key] = value
        elif not isinstance(section, dict) or rest in section:
            raise UsageError(f"{key!r} is there twice, also below {first}")
        else:
            whole[first] = {**section, rest: value}
    return whole


def merge(base: Mapping[str, Any], top: Mapping[str, Any]) -> dict[str, Any]:
    """Nested settings, those of ``top`` in place of those of ``base``."""
    merged = dict(base)
    for key, value in top.items():
        below = merged.get(key)
        both = isinstance(below, Mapping) and isinstance(value, Mapping)
        merged[key] = merge(below, value) if both else value  # type: ignore[arg-type]
    return merged


def _flat_keys(content: Mapping[Any, Any], prefix: str = "") -> list[str]:
    keys = []
    for key, value in content.items():
        name = f"{prefix}{key}"
        keys += [name]
        if isinstance(value, Mapping):
            keys += _flat_keys(value, f"{name}.")
    return keys


def _field(model: type[Config], key: str) -> object | None:
    found: Any = model
    for part in key.split("."):
        if get_origin(found) is dict:
            return str  # free keys; the data set knows them
        fields = getattr(found, "model_fields", {})
        if found is model and part not in fields and part in METHODS:
            found = find_settings(part)  # a file may serve several methods
            continue
        if part not in fields:
            return None
        found = fields[part].annotation
    return found  # type: ignore[no-any-return]


def known_keys(model: type[Config], section: str = "") -> list[str]:
    """Keys of one section of the settings; of their top level if ``section`` is empty."""
    found: Any = _field(model, section) if section else model
    return list(getattr(found, "model_fields", {}))


def _unknown_key(model: type[Config], key: str) -> str:
    section, _, leaf = key.rpartition(".")
    while section and not known_keys(model, section):
        section, _, leaf = section.rpartition(".")
    known = known_keys(model, section)
    elsewhere = [f"{one}.{leaf}" for one in model.model_fields if leaf in known_keys(model, one)]
    close = elsewhere or difflib.get_close_matches(leaf, known, n=1)
    hint = f"did you mean {' or '.join(map(repr, close))}? " if close else ""
    where = f"section {section!r}" if section else "the top level"
    return f"unknown key {key!r}; {hint}keys of {where}: {', '.join(known)}"

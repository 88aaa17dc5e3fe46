"""Frozen settings of every stage; the only reader of conf/.

One :class:`Config` serves all stages, so that one YAML file describes a whole run. Layers, weakest
first: the defaults here, ``conf/<dataset>.yaml``, each ``--config FILE`` in order, environment
variables (``DCLIP_TRAIN__LR=0.002``), the command line (``--train.lr 0.002``).
"""

import difflib
import os
import re
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any, Literal, Self, get_args, get_origin

import yaml
from pydantic import (
    BaseModel,
    Field,
    ValidationError,
    ValidationInfo,
    create_model,
    field_validator,
    model_validator,
)
from pydantic_settings import (
    BaseSettings,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
)

from dclip.data.preparation import Interpolation, Resize
from dclip.fitting.subset import Subset
from dclip.marks import in_short
from dclip.methods.registry import METHODS, find_settings, own_methods
from dclip.methods.settings import MethodSettings, of_preset
from pipeline.settings.sections import (
    AblateConfig,
    CalibrateConfig,
    Channels,
    CompareConfig,
    EvaluateConfig,
    ExportConfig,
    ExtractConfig,
    LocalPath,
    PathOrURL,
    PredictConfig,
    RetrieveConfig,
    SegmentConfig,
    SegmentsMlrConfig,
    SweepConfig,
    System,
    TrainConfig,
    as_local,
)
from pipeline.settings.serving import ServeConfig
from pipeline.settings.shard_sections import AuditConfig, SearchConfig
from pipeline.terminal.errors import UsageError
from pipeline.terminal.pages import page

TOY_DATASET, TOY_BACKBONE = "shapes", "tiny"
"""The embedded data set and the CLIP that knows it, and nothing else."""

TOY_DATASETS = (TOY_DATASET, "shapes-single")
"""All that are drawn by the same hand."""


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
        json_schema_extra=in_short(
            "folder:DIR (images and a table of labels), shapes (embedded), coco (any COCO-format "
            "tree), webdataset:TARS, FILE.json, or of python -m pipeline.datasets list"
        ),
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
        json_schema_extra=in_short(
            "frozen CLIP: RN101, ViT-B-16, ..., hf-hub:org/name, local-dir:PATH or tiny"
        ),
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
    calibrate: CalibrateConfig = Field(
        CalibrateConfig(), description="python -m pipeline.calibrate"
    )
    predict: PredictConfig = Field(PredictConfig(), description="python -m pipeline.predict")
    export: ExportConfig = Field(ExportConfig(), description="python -m pipeline.export")
    sweep: SweepConfig = Field(SweepConfig(), description="python -m pipeline.sweep")
    ablate: AblateConfig = Field(AblateConfig(), description="python -m pipeline.ablate")
    compare: CompareConfig = Field(CompareConfig(), description="python -m pipeline.compare")
    search: SearchConfig = Field(SearchConfig(), description="python -m pipeline.search")
    audit: AuditConfig = Field(AuditConfig(), description="python -m pipeline.audit")
    serve: ServeConfig = Field(ServeConfig(), description="python -m pipeline.serve")

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
        return str(as_local(pretrained)) if is_at_home else pretrained

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
    preset: str | None = config.train.preset
    if "train" in sections and preset != usual.train.preset:  # which brings values of its own
        usual = type(config)(**merge(merged, {"train": {"preset": preset}}))
    else:
        preset = None
    is_usual = config.dataset == Config.model_fields["dataset"].default
    words = [] if is_usual else ["--dataset", config.dataset]
    if config.method != DEFAULT_METHOD:
        words += ["--method", config.method]
    words += [] if preset is None else ["--train.preset", preset]
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
        path = as_local(name)
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

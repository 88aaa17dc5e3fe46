"""What is sensible after a stage, as a command that can be typed."""

from collections.abc import Mapping, Sequence
from typing import Any

from pipeline.settings.config import TOY_DATASETS, Config, as_flags
from pipeline.terminal.called import as_called, command

_ONCE = (  # settings of extract that say nothing of which features are meant
    *("split", "mode", "retry_failed", "verify", "repair"),
    *("workers", "threads", "precision", "batch_size", "compile"),
)
_OWN_IMAGES = ["--dataset", "folder:DIR"]
_IMAGE = "photo.jpg"


def following(stage: str, config: Config, report: Mapping[str, Any]) -> str:
    """The next command after a stage, with the flags that it needs.

    Args:
        stage: That is done.
        config: Its settings.
        report: What came of it.

    Returns:
        The command; empty where nothing follows.
    """
    is_toy = config.dataset in TOY_DATASETS
    given = getattr(getattr(config, stage, None), "checkpoint", None) or []
    files = [str(path) for path in (given if isinstance(given, list) else [given])]
    named = ["--checkpoint", ",".join(files)] if files else []
    trained = _flags(config, "train", "subset", config.own.name)
    if stage == "extract":
        return command("train", trained)
    if stage in ("train", "calibrate"):
        return command("evaluate", [*(_flags(config) if named else trained), *named])
    if stage in ("run", "evaluate") and is_toy:  # a CLIP that knows drawn scenes alone
        return command("segment", [*(trained if not named else _flags(config)), *named])
    if stage in ("run", "evaluate", "segment", "segments_mlr") and not is_toy:
        return command("predict", [_IMAGE, *_output(config), *named[: 2 * (len(files) == 1)]])
    if stage == "predict" and report.get("checkpoint"):
        names = ",".join(report["class_names"][:3])
        images = config.predict.paths[:1]
        return command("predict", [*images, "--classes", names, "--zero-shot", *_output(config)])
    if stage == "sweep":
        return as_called(str(report.get("evaluate", "")))  # of the best
    if stage == "search":
        return command("audit", _flags(config))
    if stage == "audit":
        return command("train", trained)
    if stage in ("export", "serve"):
        return command("predict", [_IMAGE, *_output(config)])
    if stage == "ablate":
        return command("sweep", trained)
    if stage == "compare":
        return command("ablate", trained)
    if stage == "retrieve":
        return command("train", ["--method", "smartclip", "--dataset", "captions:FILE"])
    return command("run", _OWN_IMAGES)


def _flags(config: Config, *sections: str) -> list[str]:
    """Words that give the settings again of which features and trainings there are."""
    kept = type(config.extract).model_fields
    usual = {name: kept[name].default for name in _ONCE}
    there = [name for name in sections if hasattr(config, name)]
    plain = config.model_copy(update={"extract": config.extract.model_copy(update=usual)})
    return as_flags(plain, "extract", *there)


def _output(config: Config) -> Sequence[str]:
    """The output folder, where it is not the usual one."""
    usual = type(config).model_fields["output"].default
    return [] if config.output == usual else ["--output", str(config.output)]

"""Which checkpoints a stage takes: those that are given, or those that its settings train.

Where these are missing and others of the same features stand, the stage takes what is there if
there is no doubt, and says so; a model that nobody named is never used without a word.
"""

import logging
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dclip.checkpoints.origin import About, CheckpointError, read_about
from dclip.clip_settings import ClipSettings
from dclip.words import told
from pipeline.features.plan import plan_features
from pipeline.records.trainings import checkpoint_path
from pipeline.settings.config import Config, as_flags
from pipeline.settings.space import shown
from pipeline.terminal.errors import StageError, UsageError

log = logging.getLogger(__name__)

NEWEST = "newest"
"""In the place of a file: the newest training of the output folder."""

_SUFFIX = ".safetensors"


class NoCheckpointError(StageError):
    """There is none yet; a plan (``--dry-run``) can say so and go on."""


@dataclass(frozen=True)
class _Candidate:
    path: Path
    about: About

    def __str__(self) -> str:
        return f"{self.path} ({described(self.about)})"


def described(about: About) -> str:
    """A checkpoint in words: what it was trained to."""
    settings, loop = about.settings, about.loop
    fields = type(settings).model_fields
    own = "".join(
        f"{fields[name].title or name} {shown(getattr(settings, name))}, "
        for name in settings.bold[:1]
    )
    said = about.subset.identity() if about.subset else {}
    part = "".join(f", {name} {value}" for name, value in said.items())
    if settings.trained_by != "loop":
        return f"{about.name}, fitted, {own}seed {about.seed}{part}"
    return (
        f"{about.name}, preset {loop.preset}, {own}epoch {about.epoch} of {loop.epochs}, seed "
        f"{about.seed}{part}"
    )


def own_checkpoint(config: Config) -> Path:
    """Where the checkpoint of the settings is, or would be."""
    return checkpoint_path(config, plan_features(config, config.train_split))


def take_checkpoint(config: Config) -> Path:
    """The checkpoint of the settings, or the one other that stands for the same features.

    Raises:
        NoCheckpointError: There is none.
        StageError: It is not clear which one is meant; the message names all.
    """
    return take_checkpoints(config, [config])[0]


def take_checkpoints(config: Config, settings: Sequence[Config]) -> list[Path]:
    """The checkpoints of several settings, as far as they stand; else others of the same features.

    Args:
        config: Settings of the stage.
        settings: Those of the trainings it looks for; they differ in the method.

    Raises:
        NoCheckpointError: There is none.
        StageError: It is not clear which one is meant; the message names all.
    """
    paths = [own_checkpoint(one) for one in settings]
    standing = [path for path in paths if path.is_file()]
    if standing:
        for one, path in zip(settings, paths, strict=True):
            if path not in standing:
                log.info(
                    "%s is not trained with these settings and is left out; pipeline.run trains it",
                    one.trained_name,
                )
        newer = _others(config, since=max(path.stat().st_mtime_ns for path in standing))
        newer = [other for other in newer if other.path not in paths]
        if newer:
            log.info(
                "taken is what these settings train, %s; newer for the same features, by "
                "--checkpoint FILE: %s", ", ".join(map(str, standing)), "; ".join(map(str, newer)),
            )  # fmt: skip
        return standing
    candidates = _others(config)
    taken = []
    for one in settings:
        alike = [other for other in candidates if other.about.name == one.trained_name]
        taken += [_only(alike, paths[-1])] if alike else []
    if not taken and candidates:
        taken = [_only(candidates, paths[-1])]
    if not taken:
        raise NoCheckpointError(
            f"no checkpoint at {paths[-1]}; make it by python -m pipeline.run with the same "
            "settings, or give --checkpoint FILE"
        )
    log.info(
        "these settings have no checkpoint (%s); taken, for the same features: %s",
        paths[-1].stem, "; ".join(map(str, taken)),
    )  # fmt: skip
    return [other.path for other in taken]


def newest_checkpoint(config: Config) -> tuple[Path, About]:
    """The newest training of the output folder, whatever it was trained on, and its origin.

    Of one training's pack, such as the two of ``run``, it is the one of the settings' method.
    Damaged files are left out, and told; so is what was trained on another backbone than the
    settings name, or on code of somebody's own that they do not name.

    Raises:
        NoCheckpointError: There is none.
    """
    found: list[_Candidate] = []
    for path, about in _all(config):
        if found and about.made_with != found[0].about.made_with:
            continue
        if why := _not_meant(config, about):
            log.warning("warning: left out: %s: %s", path, why)
            continue
        found.append(_Candidate(path, about))
        if about.name == config.trained_name:
            return path, about
    if not found:
        raise NoCheckpointError(
            f"no training in {config.output.absolute() / 'checkpoints'}; make one by "
            "python -m pipeline.run --dataset folder:DIR, or give --checkpoint FILE"
        )
    return found[0].path, found[0].about


def take_one(config: Config, given: Path | None) -> tuple[Config, Path, str]:
    """The checkpoint of a stage that takes one: the settings with its backbone, its file, and why.

    Args:
        config: Settings of the stage.
        given: A file, or `NEWEST`; None for the newest of the output folder where the settings say
            nothing of what is trained, else what they train.

    Raises:
        NoCheckpointError: There is none.
        StageError: It is not clear which one is meant; the message names all.
        UsageError: Its backbone is code of somebody's own, which no file may start.
    """
    if given is not None and not is_newest(given):
        if not given.is_file():
            raise NoCheckpointError(
                f"no checkpoint at {given}; give --checkpoint FILE, or leave it out for the newest"
            )
        return with_backbone_of(config, read_about(given)), given, "given"
    if given is not None or is_open(config):
        try:
            path, about = newest_checkpoint(config)
        except NoCheckpointError:
            if given is not None:
                raise
        else:
            return with_backbone_of(config, about), path, f"the newest of {config.output}"
    return config, take_checkpoint(config), "that of these settings"


def with_backbone_of(config: Config, about: About) -> Config:
    """The settings with the backbone of a checkpoint, as far as they leave it open.

    Raises:
        UsageError: It is code of somebody's own, which no file may start.
    """
    if "backbone" in config.model_fields_set:
        return config
    name, _, tag = about.backbone_name.partition("/")
    meant: dict[str, Any] = {"backbone": name, "pretrained": tag or None}  # of an older checkpoint
    if about.encoder is not None:
        names = ("backbone", *ClipSettings._fields[1:])
        meant = about.encoder.model_dump(include=set(names))
    if ":" in meant["backbone"]:
        raise UsageError(
            f"the checkpoint was trained on a backbone of somebody's own, {meant['backbone']!r}; "
            f"to run that code, say so: --backbone {meant['backbone']}"
        )
    left_open = {key: value for key, value in meant.items() if key not in config.model_fields_set}
    return config.model_copy(update=left_open)


def _not_meant(config: Config, about: About) -> str:
    """Why a training is not the one that is meant; empty if it may be."""
    known = about.encoder
    name = known.backbone if known else about.backbone_name.partition("/")[0]
    if "backbone" in config.model_fields_set and config.backbone != name:
        return f"its backbone is {name}, not {config.backbone}"
    if ":" in name and "backbone" not in config.model_fields_set:
        return f"its backbone is code of somebody's own; to run that, give --backbone {name}"
    return ""


def is_open(config: Config) -> bool:
    """Whether the settings say nothing of what is trained, but for the frozen CLIP."""
    usual = {"output": Path("outputs"), "device": "auto"}
    own = [
        name for name in ("extract", "train", "subset", config.own.name) if hasattr(config, name)
    ]
    words = as_flags(config.model_copy(update=usual), *own)
    clip = {f"--{name}".replace("_", "-") for name in ("backbone", *ClipSettings._fields[1:])}
    named = {word.replace("--no-", "--") for word in words if word.startswith("--")}
    return named <= clip


def _all(config: Config, *, since: int = 0) -> Iterator[tuple[Path, About]]:
    """Checkpoints of the output folder, newest first; damaged ones are left out, and told."""
    files = []
    for path in (config.output.absolute() / "checkpoints").glob(f"*{_SUFFIX}"):
        try:
            files.append((path.stat().st_mtime_ns, path))
        except OSError as error:  # a link to nowhere
            log.warning("warning: left out: %s: %s", path, told(error))
    for time, path in sorted(files, reverse=True):
        if time <= since:
            break
        try:
            yield path, read_about(path)
        except CheckpointError as error:
            log.warning("warning: left out: %s", error)


def _only(candidates: Sequence[_Candidate], wanted: Path) -> _Candidate:
    if len(candidates) > 1:
        raise StageError(
            f"these settings have no checkpoint ({wanted.stem}), and {len(candidates)} others "
            "stand for the same features; name one by --checkpoint FILE: "
            + "; ".join(map(str, candidates))
        )
    return candidates[0]


def _others(config: Config, *, since: int = 0) -> list[_Candidate]:
    """Checkpoints of trainings on the same features, newest first; damaged ones are left out."""
    plan, candidates = None, []
    for path, about in _all(config, since=since):
        plan = plan or plan_features(config, config.train_split)
        names = list(plan.listing.class_names)
        if about.features == plan.fingerprint and about.class_names == names:
            candidates.append(_Candidate(path, about))
    return candidates


def is_newest(path: Path) -> bool:
    """Whether a user asks for the newest training, by that word in the place of a file."""
    return str(path) == NEWEST and not path.exists()


def given_files(given: Sequence[Path], config: Config) -> list[Path]:
    """The checkpoints that a user names, each once; of a folder all that are in it.

    Args:
        given: Files, folders, and `NEWEST`.
        config: Settings; they say where the newest lies.

    Raises:
        StageError: There is no such file, or a folder has no checkpoint.
    """
    files: list[Path] = []
    for path in given:
        if is_newest(path):
            newest, about = newest_checkpoint(config)
            log.info("--checkpoint %s: %s", NEWEST, _Candidate(newest, about))
            files.append(newest)
            continue
        inside = sorted(path.glob(f"*{_SUFFIX}"))
        if path.is_dir() and not inside:
            raise StageError(f"no checkpoints (*{_SUFFIX}) in folder {path}")
        if not path.exists():
            raise StageError(f"no checkpoint at {path}; --checkpoint takes files and folders")
        files += inside if path.is_dir() else [path]
    return list({path.resolve(): path.absolute() for path in files}.values())


def names_of(methods: Mapping[Path, str], reserved: Collection[str] = ()) -> dict[Path, str]:
    """What to call checkpoints: by their method, or where that is not enough by their files.

    Args:
        methods: The method of each file.
        reserved: Names that are taken.

    Returns:
        A name each, all different; the last folders are added where files have one name, too.

    Example:
        >>> a, b, c = Path("x/t.safetensors"), Path("y/t.safetensors"), Path("x/u.safetensors")
        >>> list(names_of({a: "dclip", b: "dclip", c: "asl_only"}).values())
        ['x/t', 'y/t', 'asl_only']
    """
    parts = {path: (*path.parent.parts, path.stem) for path in methods}
    level = dict.fromkeys(methods, 0)  # 0 is the method, then so many parts of the path
    while True:
        names = {
            path: _plain("/".join(parts[path][-level[path] :]) if level[path] else method)
            for path, method in methods.items()
        }
        told = [*names.values(), *reserved]
        unclear = [path for path, name in names.items() if told.count(name) > 1]
        longer = [path for path in unclear if level[path] < len(parts[path])]
        if not longer:  # but for characters that MLflow does not take
            return {
                path: f"{name}-{number}" if path in unclear else name
                for number, (path, name) in enumerate(names.items(), start=1)
            }
        for path in longer:
            level[path] += 1


def _plain(name: str) -> str:
    """A name of characters that MLflow takes."""
    return re.sub(r"[^\w. /-]", "-", name, flags=re.ASCII).lstrip("/")

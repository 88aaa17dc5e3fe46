"""Reports of stages: written whole, found again, recorded in MLflow, and shown."""

import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, ClassVar, TypeVar

from pydantic import TypeAdapter, ValidationError

from dclip.store.paths import AnyPath, write_text
from pipeline.settings.config import Config

FILE = "report.json"
"""Name of a report in its folder."""

R = TypeVar("R", bound="StageReport")


@dataclass(frozen=True, kw_only=True)
class StageReport:
    """Base of what stages report: one field for every key of its JSON, in that order.

    Attributes:
        stage: Name of the stage; the first key.
        left_out: Fields that its JSON does not have where they are None.
    """

    stage: ClassVar[str]
    left_out: ClassVar[frozenset[str]] = frozenset()

    def to_json(self) -> dict[str, Any]:
        """The report as JSON has it."""
        content = {
            key: value
            for key, value in asdict(self).items()
            if value is not None or key not in self.left_out
        }
        return {"stage": self.stage, **content}


def folder_of(config: Config, name: str) -> Path:
    """Folder of the report of a name, and of its pictures."""
    return config.output.absolute() / "reports" / name


def write(folder: Path, report: StageReport) -> Path:
    """Write a report into its folder; the file is whole or as it was."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / FILE
    write_text(path, json.dumps(report.to_json(), indent=1))
    return path


def standing(folder: Path, kind: type[R], identity: str) -> R | None:
    """The report of an identity, if it stands in its folder and is whole."""
    try:
        content = json.loads((folder / FILE).read_bytes())
    except (OSError, ValueError, RecursionError):
        return None
    if not isinstance(content, dict) or content.get("identity") != identity:
        return None
    try:
        return TypeAdapter(kind).validate_python(content)
    except ValidationError:  # of another version, or damaged
        return None


@dataclass(frozen=True, kw_only=True)
class Record:
    """What MLflow keeps of a report.

    Attributes:
        label: Name of the run.
        key: What identifies it.
        tags: Beside that of the stage.
        seconds: How long the work took.
        params: Settings that its numbers depend on.
        metrics: Numbers by name; those that are None are left out.
        files: Files of the report.
        figures: Pictures, and what belongs to them.
        texts: Further texts, by the name of their file.
        features: Name, folder and fingerprint of the features that were read.
    """

    label: str
    key: str
    tags: Mapping[str, str]
    seconds: float
    params: Mapping[str, Any]
    metrics: Mapping[str, float | None]
    files: Sequence[Path]
    figures: Sequence[Path] = ()
    texts: Mapping[str, str] = field(default_factory=dict)
    features: tuple[str, AnyPath, str] | None = None


@dataclass(frozen=True)
class Recorded:
    """Where MLflow has a report.

    Attributes:
        uri: Of the store.
        experiment: Name of the experiment.
        run_id: None where the store was down.
        command: That starts MLflow's pages.
        url: Of the experiment in them.
    """

    uri: str
    experiment: str
    run_id: str | None
    command: str
    url: str

    def is_of(self, config: Config) -> bool:
        """Whether it is the store and the experiment of these settings."""
        return (self.uri, self.experiment) == (config.tracking_uri, config.experiment_name)

    def lines(self) -> list[str]:
        """How to look at it."""
        return [f"look at them in MLflow: {self.command}", f"  {self.url}"]


def record(config: Config, what: Record) -> Recorded:
    """Record a report in MLflow; what its run has already is not recorded again."""
    from pipeline.records.tracking import Tracker  # seconds, of which a standing report takes none

    tracker = Tracker(config)
    with tracker.run(what.label, key=what.key, tags=what.tags, seconds=what.seconds) as run:
        run.params(what.params)
        if what.features is not None:
            run.dataset(*what.features, "evaluation")
        run.metrics({name: value for name, value in what.metrics.items() if value is not None})
        for path in what.files:
            run.artifact(path)
        for path in what.figures:
            run.artifact(path, "figures")
        for name, text in what.texts.items():
            run.text(text, name)
    return Recorded(
        config.tracking_uri,
        config.experiment_name,
        run.run_id,
        tracker.ui_command,
        tracker.experiment_url(),
    )


def remarks(warnings: Sequence[str], notes: Sequence[str] = ()) -> list[str]:
    """What a reader of a report's numbers has to know, for the end of its table."""
    return [*(f"warning: {text}" for text in warnings), *(f"note: {text}" for text in notes)]


def show(*lines: str) -> None:
    """Print the table of a report and where its files are."""
    sys.stdout.write("\n".join(lines) + "\n")

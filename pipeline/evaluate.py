"""Checkpoint and shards to a report: what the projectors gain over frozen CLIP.

Rows of the report: ``zero_shot`` (CLIP's global embedding), ``zero_shot_local`` (best location of
frozen local features), ``linear_probe`` (a linear map, then the maximum over locations), and the
checkpoint.
"""

import json
import logging
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.cli import Report, main
from pipeline.config import Config

if TYPE_CHECKING:
    from torch import Tensor

    from dclip.model import DCLIP
    from dclip.reader import FeatureReader
    from pipeline.checkpoints import About

log = logging.getLogger(__name__)

DESCRIPTION = """\
Score a checkpoint on the test split, beside frozen CLIP and a linear probe on the same shards.

examples:
  python -m pipeline.evaluate                             the checkpoint these settings train
  python -m pipeline.evaluate --checkpoint FILE --test-split val2014
  python -m pipeline.evaluate --no-linear-probe --json
Writes a report (JSON) and figures (PNG), and records both in MLflow."""


@dataclass(frozen=True)
class Scores:
    """Scores of one system on the test split, larger meaning more likely present.

    Attributes:
        scores: One row an image, one column a class.
        are_probabilities: Whether a threshold on them means something.
    """

    scores: "Tensor"
    are_probabilities: bool


def baseline_scores(
    config: Config, train: "FeatureReader", test: "FeatureReader"
) -> dict[str, Scores]:
    """Scores of frozen CLIP, globally and locally, and of the linear probe."""
    import torch

    from dclip.batches import hold_out
    from dclip.logits import similarity_maps, zero_shot_scores
    from dclip.methods.linear_probe import fit_linear_probe

    _, classes = test.text_features()
    local = torch.cat([similarity_maps(batch, classes).amax(-1) for batch, _ in _batches(test)])
    result = {
        "zero_shot": Scores(zero_shot_scores(test.embeddings(), classes), False),
        "zero_shot_local": Scores(local, False),
    }
    if config.evaluate.linear_probe:
        rows, _ = hold_out(len(train), config.train.val_fraction, seed=config.data_seed)
        probe = fit_linear_probe(
            lambda: _batches(train, rows=rows, seed=config.seed),
            embed_dim=train.manifest.dim,
            num_classes=len(train.class_names),
            epochs=config.evaluate.probe_epochs,
            seed=config.seed,
        )
        with torch.no_grad():
            logits = torch.cat([probe(batch) for batch, _ in _batches(test)])
        result["linear_probe"] = Scores(logits.sigmoid(), True)
    return result


def _batches(
    reader: "FeatureReader", *, rows: Any = None, seed: int | None = None, size: int = 256
) -> "Iterator[tuple[Tensor, Tensor]]":
    """Local features in float32 and labels; in a seeded order if a seed is given."""
    import numpy as np

    order = np.arange(len(reader)) if rows is None else rows
    if seed is not None:
        order = np.random.default_rng([seed, 2]).permutation(order)
    for start in range(0, len(order), size):
        batch = order[start : start + size]
        yield reader.local(batch).float(), reader.labels[batch]


def checkpoint_scores(model: "DCLIP", texts: "Tensor", test: "FeatureReader") -> Scores:
    """Probability of presence of each class by a checkpoint."""
    import numpy as np

    from dclip.training import predict

    return Scores(predict(model, test, np.arange(len(test)), texts), True)


def measure(scores: Scores, labels: "Tensor", threshold: float) -> dict[str, Any]:
    """Metrics of one system: AP by class, mAP, and where a threshold means something, F1s."""
    from dclip.metrics import average_precision, f1_scores, mean_average_precision

    ap = average_precision(scores.scores, labels)
    result: dict[str, Any] = {
        "map": float(mean_average_precision(scores.scores, labels)),
        "ap": [None if value != value else round(value, 6) for value in ap.tolist()],
    }
    if scores.are_probabilities:
        f1 = f1_scores(scores.scores, labels, threshold=threshold)
        result |= {name: round(float(value), 6) for name, value in f1._asdict().items()}
    return result


def evaluate(
    config: Config, checkpoints: "list[Path]"
) -> "tuple[Report, dict[str, Scores], dict[str, tuple[DCLIP, Tensor, About]]]":
    """Compare checkpoints with the baselines on the test split.

    Args:
        config: Settings; they say where the features are.
        checkpoints: Files to score; each is named by its method.

    Returns:
        The report, the scores and the models behind it.

    Raises:
        StageError: Features or checkpoints are missing, damaged, or do not belong together.
    """
    from dclip.metrics import inter_class_cosine, similarity_report
    from pipeline.checkpoints import check_features, load_checkpoint
    from pipeline.features import open_features, plan_features, warnings_of
    from pipeline.provenance import git_commit

    models = {}
    test_plan = plan_features(config, config.test_split)
    test = open_features(test_plan.folders[:1], config.output)
    for path in checkpoints:
        model, texts, about = load_checkpoint(path)
        check_features(path, about, test.manifest)
        models[about.method] = (model, texts, about)
    train = open_features(plan_features(config, config.train_split).folders[:1], config.output)
    systems = baseline_scores(config, train, test)
    similarity: dict[str, Any] = {}
    pairs, _ = test.text_features()
    cosines = {"clip": float(inter_class_cosine(pairs[len(pairs) // 2 :]))}
    for method, (model, texts, _) in models.items():
        systems[method] = checkpoint_scores(model, texts, test)
        similarity[method] = similarity_report(model, texts)
        cosines[method] = similarity[method]["dclip/positive/eval/raw"]
    report = {
        "stage": "evaluate",
        "dataset": config.dataset,
        "split": config.test_split,
        "images": len(test),
        "class_names": list(test.class_names),
        "threshold": config.evaluate.threshold,
        "systems": {
            name: measure(scores, test.labels, config.evaluate.threshold)
            for name, scores in systems.items()
        },
        "inter_class_cosine": cosines,
        "similarity": similarity,
        "features": test.manifest.fingerprint,
        "checkpoints": {m: str(p) for m, p in zip(models, checkpoints, strict=True)},
        "warnings": warnings_of(config),
        "commit": git_commit(),
        "config": config.model_dump(mode="json"),
    }
    return report, systems, models


def table(report: Report) -> str:
    """The report as a table for people, in percent."""
    names = {
        "zero_shot": "CLIP zero-shot (global)",
        "zero_shot_local": "CLIP zero-shot (best location)",
        "linear_probe": "linear probe, max-pooled",
        "asl_only": "projectors, ASL only",
        "dclip": "DCLIP (ASL + MFI)",
    }
    cosine = {"zero_shot": "clip", "zero_shot_local": "clip"}
    lines = [f"{'':32}{'mAP':>7}{'CF1':>7}{'OF1':>7}{'C-P':>7}{'cosine':>9}"]
    for name, row in report["systems"].items():
        between = report["inter_class_cosine"].get(cosine.get(name, name))
        cells = [row["map"], row.get("cf1"), row.get("of1"), row.get("class_precision")]
        lines.append(
            f"{names.get(name, name):32}"
            + "".join(f"{'-' if cell is None else f'{100 * cell:.1f}':>7}" for cell in cells)
            + f"{'-' if between is None else f'{between:.3f}':>9}"
        )
    lines.append(
        f"{report['dataset']} {report['split']}, {report['images']} images; scores in percent, "
        f"threshold {report['threshold']:g};\ncosine: mean between classes, positive prompts, "
        "raw, BatchNorm in evaluation mode, diagonal out"
    )
    return "\n".join(lines)


def run(config: Config) -> Report:
    """Score one checkpoint: the given one, or the one these settings train."""
    from pipeline.features import plan_features
    from pipeline.train import checkpoint_path

    path = config.evaluate.checkpoint or checkpoint_path(
        config, plan_features(config, config.train_split)
    )
    return publish(config, [path])


def publish(config: Config, checkpoints: "list[Path]") -> Report:
    """Evaluate, draw, write report and figures, record them in MLflow, and print the table."""
    from dclip.paths import write_text
    from dclip.shards import digest
    from pipeline import figures
    from pipeline.features import plan_features
    from pipeline.tracking import Tracker

    started = time.perf_counter()
    log.info("evaluate: %s of %s", config.test_split, config.dataset)
    report, systems, models = evaluate(config, checkpoints)
    identity = digest({"checkpoints": report["checkpoints"], "features": report["features"]})
    name = f"{config.dataset_slug}-{config.test_split}-{identity[:12]}"
    folder = config.output.absolute() / "reports" / name
    folder.mkdir(parents=True, exist_ok=True)
    plan = plan_features(config, config.test_split)
    pictures = figures.draw_all(folder, config, plan, report, systems, models)
    report["figures"] = [str(path) for path in pictures]
    report["seconds"] = round(time.perf_counter() - started, 2)
    write_text(folder / "report.json", json.dumps(report, indent=1))
    tracker = Tracker(config)
    tags = {"dclip.stage": "evaluate"}
    with tracker.run("evaluate " + " ".join(models), key=name, tags=tags) as tracked:
        settings = config.model_dump(include={"dataset", "test_split", "backbone", "pretrained"})
        tracked.params({**settings, "features": report["features"][:12]})
        source = f"{config.dataset_slug}-{config.test_split}"
        tracked.dataset(source, plan.folder, report["features"], "evaluation")
        tracked.metrics(_metrics(report))
        for path in [folder / "report.json", *pictures]:
            tracked.artifact(path, "figures" if path.suffix == ".png" else None)
        tracked.text(config.model_dump_json(indent=1), "config.json")
    report["mlflow"] = {"uri": tracker.uri, "run_id": tracked.run_id}
    sys.stdout.write(f"{table(report)}\nreport and figures: {folder}\n")
    sys.stdout.write(
        f"look at them in MLflow: {tracker.ui_command}\n  {tracker.experiment_url()}\n"
    )
    return report


def _metrics(report: Report) -> dict[str, float]:
    """What MLflow shows of a report: test/map/dclip, test/inter_class_cosine/clip, ..."""
    metrics = {}
    for system, row in report["systems"].items():
        for name, value in row.items():
            if name != "ap":
                metrics[f"test/{name}/{system}"] = value
    for system, value in report["inter_class_cosine"].items():
        metrics[f"test/inter_class_cosine/{system}"] = value
    return metrics


def describe(config: Config) -> str:
    """The plan of this stage in words, for ``--dry-run``."""
    from pipeline.features import is_complete, plan_features
    from pipeline.train import checkpoint_path

    train = plan_features(config, config.train_split)
    test = plan_features(config, config.test_split)
    path = config.evaluate.checkpoint or checkpoint_path(config, train)
    state = {True: "stands", False: "missing"}
    return "\n".join(
        [
            f"checkpoint {path} ({state[path.is_file()]})",
            f"features to score {test.folder} ({state[is_complete(test)]})",
            f"features of the probe {train.folder} ({state[is_complete(train)]})",
        ]
    )


if __name__ == "__main__":
    sys.exit(main("evaluate"))

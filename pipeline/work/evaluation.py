"""Scores of methods on a test split, and the pictures of them."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor

from dclip.data.images import ImageError
from dclip.data.placing import place_maps
from dclip.data.preparation import read_preparation
from dclip.fitting.batches import FeatureSource, hold_out
from dclip.fitting.drawn import part_of
from dclip.fitting.held_out import scores_and_evidence
from dclip.logits import kept_sigmoid, similarity_maps
from dclip.methods.method import Method, Task, initial
from dclip.methods.registry import find_method
from dclip.methods.settings import MethodSettings
from dclip.metrics import cosine_matrix, inter_class_cosine
from dclip.pictures.canvas import MAX_INCHES, heading, more, one_line, save
from dclip.store.reader import FeatureReader
from pipeline.cluster.device import choose_device
from pipeline.features.images import require_images
from pipeline.features.opened import open_backbone, open_features, with_images
from pipeline.features.plan import FeaturePlan, plan_features
from pipeline.pictures import calibration_figures, figures
from pipeline.pictures.looks import short_title_of
from pipeline.records.checkpoints import check_features, load_checkpoint
from pipeline.records.choice import described
from pipeline.settings.config import Config
from pipeline.work.scores import measure, measure_calibration

log = logging.getLogger(__name__)

Methods: TypeAlias = Mapping[str, Method[Any]]

_MOST_CLASSES = 6  # of an image, whose maps are drawn


@dataclass(frozen=True)
class Evaluated:
    """What was scored, and with what result.

    Attributes:
        images: Number of images.
        class_names: In column order.
        features: Fingerprint of the features.
        systems: Metrics of every method.
        curves: Of probabilities, recall and precision, for the pictures.
        cosines: Mean cosine between classes of those that have features of them.
        similarity: Readings of how alike the classes of each checkpoint are.
        trained: What each checkpoint was trained to, in words.
        methods: Those of the checkpoints.
    """

    images: int
    class_names: list[str]
    features: str
    systems: dict[str, dict[str, Any]]
    curves: dict[str, dict[str, Any]]
    cosines: dict[str, float | None]
    similarity: dict[str, dict[str, float]]
    trained: dict[str, str]
    methods: Methods


def evaluate(
    config: Config,
    plan: FeaturePlan,
    files: Mapping[str, Path],
    baselines: Mapping[str, MethodSettings],
) -> Evaluated:
    """Compare checkpoints with the baselines on the test split; all of them are methods.

    Args:
        config: Settings; they say where the features are.
        plan: Features to score.
        files: Checkpoints to score, by what the report calls them.
        baselines: Settings of the methods that need no checkpoint, by name.

    Raises:
        StageError: Features or checkpoints are missing, damaged, or do not belong together.
    """
    test = open_features(plan.folders[:1], config.output)
    trained, abouts = {}, {}
    for name, path in files.items():
        trained[name], abouts[name] = load_checkpoint(path)
        check_features(path, abouts[name], test.manifest)
    methods = {name: baseline(config, name, own, test) for name, own in baselines.items()} | trained
    systems, cosines, curves = {}, {}, {}
    for name, method in methods.items():
        source: FeatureSource = test
        if method.settings.sees_images():
            require_images(plan.listing, [method.settings])
            source = with_images(test, plan.listing, method.settings)
        scores, evidence = scores_and_evidence(method, source, np.arange(len(test)))
        are_probabilities = method.tells_probabilities()
        threshold = config.evaluate.threshold if are_probabilities else None
        known = abouts[name].calibration if name in abouts else None
        told, curves[name] = measure_calibration(
            scores, evidence, test.labels, known, are_probabilities=are_probabilities
        )
        systems[name] = measure(scores, test.labels, threshold) | told
        features = method.class_features()
        if features is not None:  # of one class there is no cosine between classes
            cosines[name] = inter_class_cosine(features) if len(features) > 1 else None
    return Evaluated(
        images=len(test),
        class_names=list(test.class_names),
        features=test.manifest.fingerprint,
        systems=systems,
        curves=curves,
        cosines=cosines,
        similarity={name: method.similarity() for name, method in trained.items()},
        trained={name: described(about) for name, about in abouts.items()},
        methods=trained,
    )


def baseline(
    config: Config, name: str, settings: MethodSettings, test: FeatureReader
) -> Method[Any]:
    """A method that needs no checkpoint; fitted on the training split if it trains itself.

    Raises:
        StageError: Features of the training split are missing or damaged.
    """
    task = Task.of_features(test.class_names, *test.text_features())
    task = replace(task, sigmoid=kept_sigmoid(test.manifest.spec))
    device = "cpu"
    if settings.sees_images():  # which is more work than all the others
        device, _ = choose_device(config.device)
        task = replace(task, backbone=open_backbone(config, device=device))
    method = initial(find_method(name), settings, task, seed=config.seed).on(device)
    if settings.trained_by == "itself":
        train = open_features(plan_features(config, config.train_split).folders[:1], config.output)
        every = np.arange(len(train))
        left, kept, _ = part_of(
            config.subset, train, every, train.class_names, seed=config.data_seed
        )
        fraction = config.subset.held_out(config.train.val_fraction)
        rows, _ = hold_out(len(kept), fraction, seed=config.data_seed)
        method.fit(left, kept[rows], seed=config.seed)
    return method.eval()


# ---------------------------------------------------------------------------------------------
# Pictures
# ---------------------------------------------------------------------------------------------


def draw(
    config: Config,
    plan: FeaturePlan,
    files: Mapping[str, Path],
    folder: Path,
    data: str,
    systems: Mapping[str, Mapping[str, Any]],
    curves: Mapping[str, Mapping[str, Any]],
    scored: Evaluated | None,
) -> list[Path]:
    """Draw every picture of a report; the files, in the order to look at them.

    With a single class there is no similarity to draw.

    Args:
        config: Settings.
        plan: Features that were scored.
        files: Checkpoints by name.
        folder: Of the pictures.
        data: What was scored, for titles.
        systems: Metrics of every method.
        curves: As of `Evaluated`.
        scored: The result, where it is at hand; checkpoints are loaded otherwise.
    """
    folder.mkdir(parents=True, exist_ok=True)
    test = open_features(plan.folders[:1], config.output, verify=False)
    methods = scored.methods if scored else {n: load_checkpoint(p)[0] for n, p in files.items()}
    texts = {"clip": Task.of_features(test.class_names, *test.text_features()).positives}
    for name, method in methods.items():
        with torch.no_grad():
            own = method.class_features()
        if own is not None:
            texts[name] = own
    matrices = {name: cosine_matrix(features).numpy() for name, features in texts.items()}
    names = test.class_names
    known = [one_line(f"{name}: {path.stem}", 90) for name, path in files.items()]
    title = heading(f"{data}, {test.manifest.spec['backbone_name']}", *known[:4])
    paths = []

    def keep(name: str, figure: Figure) -> None:
        save(figure, folder / name)
        paths.append(folder / name)

    if len(names) > 1:
        keep("similarity.png", figures.similarity_matrices(matrices, names, title))
        keep("cosines.png", figures.cosine_histogram(matrices, title))
    del matrices  # of thousands of classes, larger than all else here
    positives = (test.labels == 1).sum(dim=0).tolist()
    keep("average_precision.png", figures.ap_bars(systems, names, positives, title))
    if any("as_it_is" in curve or "calibrated" in curve for curve in curves.values()):
        keep("reliability.png", calibration_figures.reliability_diagrams(curves, title))
    if any(curve["recall"] for curve in curves.values()):
        keep("precision_recall.png", calibration_figures.precision_recall_curves(curves, title))
    drawn, left_out = _maps(plan, test, methods, config.evaluate.scenes)
    keep("activation_maps.png", figures.activation_maps(drawn, heading(title, left_out)))
    return paths


def _maps(
    plan: FeaturePlan, test: FeatureReader, methods: Methods, limit: int
) -> tuple[list[figures.MapLine], str]:
    """Where each present class lights up, and an absent one, and what is left out.

    The images with most classes come first. Of each, frozen CLIP's cosine of every location with
    the class, then what each checkpoint says of it. The absent class is the one that frozen CLIP
    takes for most alike to a present one.
    """
    _, classes = test.text_features()
    scoring = {name: method for name, method in methods.items() if method.scores_locations}
    most = max(1, int(MAX_INCHES / (2.05 * (1 + len(scoring)))))
    counts = (test.labels == 1).sum(dim=1)
    rows = torch.argsort(counts, descending=True, stable=True)[: min(limit, most)].tolist()
    alike = cosine_matrix(classes.float())
    preparation = read_preparation(test.manifest.spec["resize"])
    lines = []
    for row in rows:
        try:
            picture = plan.listing.read(int(test.indices[row])).image
        except (ImageError, OSError) as error:
            log.warning("figures: image %s left out: %s", test.keys[row], error)
            continue
        seen = picture.size
        picture.thumbnail((256, 256))
        pixels = np.asarray(picture)
        present = torch.nonzero(test.labels[row] == 1).flatten().tolist()
        shown = present[:_MOST_CLASSES]
        absent = _confusable(alike, test.labels[row], shown)
        wanted = shown if absent is None else [*shown, absent]
        local = test.local(np.array([row])).float()
        if test.manifest.include_global_token:
            local = local[:, 1:]
        more_classes = (
            f"\nand {len(present) - len(shown)} more" if len(present) > len(shown) else ""
        )
        for name, maps in {
            "clip": similarity_maps(local, classes),
            **{name: _says(method, local) for name, method in scoring.items()},
        }.items():
            large = place_maps(
                maps[:, wanted].reshape(len(wanted), *test.manifest.grid).numpy(),
                preparation,
                seen=seen,
                side=int(test.manifest.spec["resolution"]),
                size=picture.size,
            )
            lines.append(
                figures.MapLine(
                    title=short_title_of(name) + more_classes,
                    pixels=pixels,
                    maps=large,
                    names=[test.class_names[column] for column in wanted],
                    has_absent=absent is not None,
                    limits=_limits(maps[:, wanted]),
                )
            )
    fewer = more(len(rows), limit, "scenes asked for") if len(rows) < min(limit, len(test)) else ""
    return lines, fewer


def _limits(maps: Tensor) -> tuple[float, float]:
    """Smallest and largest value of some maps."""
    return (float(maps.min()), float(maps.max())) if maps.numel() else (0.0, 1.0)


@torch.no_grad()
def _says(method: Method[Any], local: Tensor) -> Tensor:
    """What a method says of every class at every location: log-odds, where it has them."""
    odds = method.location_logits(local)
    return method.location_scores(local) if odds is None else odds


def _confusable(alike: Tensor, labels: Tensor, present: Sequence[int]) -> int | None:
    """The class known to be absent that is most alike to one of those that are present."""
    absent = torch.nonzero(labels == 0).flatten()
    if not len(absent) or not present:
        return None
    return int(absent[alike[:, list(present)][absent].amax(dim=1).argmax()])

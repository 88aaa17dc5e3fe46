"""Segmentation from images to a report: by its parts, after kills, and where users err."""

import csv
import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import mlflow
import numpy as np
import pytest
import torch
from PIL import Image
from torchmetrics.classification import MulticlassJaccardIndex

from dclip.backbones import load_backbone
from dclip.checkpoints.files import write_checkpoint
from dclip.checkpoints.origin import FORMAT, About, CheckpointError
from dclip.data.windows import whole_view
from dclip.fitting.loop import Loop
from dclip.methods.dclip import DCLIPMethod
from dclip.methods.method import Task, initial
from dclip.methods.settings import DCLIPSettings
from dclip.metrics import confusion_matrix, image_miou_paper, miou
from dclip.prompts import encode_class_texts
from dclip.segmentation import Rule, System, segment_images
from dclip.store.shards import digest
from dclip.world import shapes
from pipeline.cluster import makers
from pipeline.cluster.groups import write_arrays
from pipeline.features.backbone import describe_backbone
from pipeline.features.plan import plan_features
from pipeline.records.trainings import checkpoint_path
from pipeline.settings.config import Config
from pipeline.stages import segment
from pipeline.terminal.errors import StageError, UsageError
from pipeline.work import segmentation
from pipeline.work.plans import Counts

from ..conftest import TOY, settings, write_tree

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore::ResourceWarning"),  # Ray leaves sockets and files open
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning:ray.*"),
    pytest.mark.filterwarnings("ignore::UserWarning:ray.*"),
    pytest.mark.usefixtures("_toy_on_path"),
]

IMAGES, GROUP = 10, 4


def checkpoint(config: Config, path: Path, method: str = "dclip", seed: int = 0) -> Path:
    """Untrained projectors for the toy backbone, as if they were trained on its value path."""
    backbone = describe_backbone(config)
    about = About(
        format=FORMAT,
        method="dclip",
        name=method,
        settings=DCLIPSettings(output_dim=8),
        loop=Loop(),
        feature_space=digest(backbone.space("value")),
        backbone_name=backbone.name,
        embed_dim=backbone.embed_dim,
        class_names=list(shapes.CLASS_NAMES),
        seed=seed,
        epoch=1,
        features="f" * 64,
        history=[{"epoch": 1.0, "loss": 0.5}],
        commit=None,
    )
    task = Task.of_features(shapes.CLASS_NAMES, torch.ones(32, backbone.embed_dim))
    settings = about.settings.model_copy(update={"initial": "random"})
    write_checkpoint(path, initial(DCLIPMethod, settings, task, seed=seed), about)
    return path


def wanted(output: Path, **changes: object) -> Config:
    """Settings of a segmentation of a few scenes by the toy backbone and one checkpoint."""
    base = settings(output)
    asked = changes.pop("segment", {})
    assert isinstance(asked, dict)
    own: dict[str, object] = {"limit": IMAGES, "group_size": GROUP, "batch_size": 3, "workers": 2}
    if "checkpoint" not in asked:
        own["checkpoint"] = [checkpoint(base, output / "one.safetensors")]
    return settings(output, segment={**own, **asked}, **changes)


def numbers(report: segment.SegmentReport) -> dict[str, object]:
    """What a report says, without when and where it was made."""
    kept = {
        name: getattr(report, name) for name in ("systems", "class_names", "images", "protocol")
    }
    loaded: dict[str, object] = json.loads(json.dumps(kept))
    return loaded


@pytest.fixture(scope="module")
def finished(
    ray_session: None, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Config, segment.SegmentReport]:
    """Settings and report of one segmentation."""
    config = wanted(tmp_path_factory.mktemp("segment"))
    return config, segment.run(config)


def test_a_report_names_every_measure_of_every_system(
    finished: tuple[Config, segment.SegmentReport], capsys: pytest.CaptureFixture[str]
) -> None:
    config, report = finished
    # the toy backbone has no features of MaskCLIP: its value path stands for plain CLIP
    assert list(report.systems) == ["clip", "clip_vv", "clip_surgery", "dclip", "dclip_present"]
    kinds = [row["features"].split(":")[0] for row in report.systems.values()]
    assert kinds == ["value", "vv", "vv", "vv", "vv"]
    for row in report.systems.values():
        for name in ("miou", "miou_paper", "miou_paper_positive", "pixel_accuracy"):
            assert 0 <= row[name] <= 1
        assert row["class_iou"][0] is None  # background is neither true nor predicted
    shown = segment.table(report)
    assert all(name in shown for name in ("miou ", "miou_paper ", "cannot be compared"))
    folder = next((config.output / "reports").iterdir())
    assert json.loads((folder / "report.json").read_text())["systems"] == report.systems
    rows = list(csv.DictReader((folder / "classes.csv").open()))
    assert [row["class"] for row in rows] == ["background", *shapes.CLASS_NAMES]
    assert float(rows[1]["iou/clip_vv"]) == pytest.approx(
        report.systems["clip_vv"]["class_iou"][1], abs=1e-6
    )
    assert not list(config.output.rglob("*.tmp"))


def test_mlflow_has_each_measure_by_its_name(
    finished: tuple[Config, segment.SegmentReport],
) -> None:
    config, report = finished
    store = mlflow.MlflowClient(f"sqlite:///{config.output.absolute() / 'mlflow.db'}")
    run = store.get_run(report.mlflow.run_id)
    assert run.data.metrics["test/miou/dclip"] == report.systems["dclip"]["miou"]
    assert run.data.metrics["test/miou_paper/clip_vv"] == report.systems["clip_vv"]["miou_paper"]
    assert {file.path for file in store.list_artifacts(run.info.run_id)} == {
        "report.json", "classes.csv", "figures",
    }  # fmt: skip
    drawn = {file.path for file in store.list_artifacts(run.info.run_id, "figures")}
    assert drawn == {"figures/masks.png", "figures/failures.png"}


def test_miou_is_that_of_all_label_maps_together(
    finished: tuple[Config, segment.SegmentReport],
) -> None:
    _, report = finished
    backbone = load_backbone(TOY)
    texts = encode_class_texts(backbone, [(name,) for name in shapes.CLASS_NAMES])
    scenes = [shapes.scene("test", index) for index in range(IMAGES)]
    views = [whole_view(Image.fromarray(scene.image), backbone.resolution) for scene in scenes]
    oracle = MulticlassJaccardIndex(16, ignore_index=255)
    for scene, maps in zip(
        scenes, segment_images(backbone, views, {"vv": System("vv", texts)}, Rule()), strict=True
    ):
        target = torch.from_numpy(np.where(scene.mask == 0, 255, scene.mask - 1)).long()
        oracle.update(maps["vv"][None].long(), target[None])
    assert report.systems["clip_vv"]["miou"] == pytest.approx(float(oracle.compute()), abs=1e-6)


def test_counts_that_are_lost_or_damaged_are_made_anew_and_nothing_else(
    finished: tuple[Config, segment.SegmentReport],
) -> None:
    config, report = finished
    plan = segment.plan_segment(config)
    paths = [plan.path(group) for group in range(plan.num_groups)]
    assert len(paths) == 3
    before = [path.stat().st_mtime_ns for path in paths]
    assert "3 groups done, 0 to do" in segment.describe(config)
    paths[0].unlink()
    paths[1].write_bytes(paths[1].read_bytes()[:-20])
    assert "1 groups done, 2 to do" in segment.describe(config)
    again = segment.run(config)
    assert numbers(again) == numbers(report)
    assert [path.stat().st_mtime_ns > old for path, old in zip(paths, before, strict=True)] == [
        True, True, False,
    ]  # fmt: skip
    assert again.mlflow.run_id == report.mlflow.run_id


def test_a_killed_run_goes_on_and_gives_the_report_of_an_undisturbed_one(
    ray_session: None, tmp_path: Path
) -> None:
    asked = {"limit": 32, "group_size": 2, "batch_size": 2, "systems": ["clip_vv", "projectors"]}
    undisturbed = segment.run(wanted(tmp_path / "whole", segment=asked))
    output = tmp_path / "killed"
    one = checkpoint(settings(output), output / "one.safetensors")
    command = [
        sys.executable, "-m", "pipeline.segment", "--backbone", "toy_backbone:slow", "--output",
        str(output), "--device", "cpu", "--limit", "32", "--group-size", "2", "--batch-size", "2",
        "--systems", "clip_vv", "--systems", "projectors", "--checkpoint", str(one), "--workers",
        "2", "--json",
    ]  # fmt: skip
    environment = {key: value for key, value in os.environ.items() if key != "RAY_ADDRESS"}

    def start() -> subprocess.Popen[str]:
        return subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
            start_new_session=True, env=environment,
        )  # fmt: skip

    process, deadline = start(), time.monotonic() + 120
    while len(list(output.rglob("group-*.npz"))) < 3:
        assert time.monotonic() < deadline
        assert process.poll() is None, process.communicate()
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    kept = {path: path.stat().st_mtime_ns for path in output.rglob("group-*.npz")}
    assert 3 <= len(kept) < 16
    assert not list(output.rglob("report.json"))
    process = start()
    found, errors = process.communicate(timeout=120)
    assert process.returncode == 0, errors
    assert all(path.stat().st_mtime_ns == old for path, old in kept.items())
    report = json.loads(found.splitlines()[-1])
    for name, row in undisturbed.systems.items():
        for measure in ("miou", "miou_paper", "miou_paper_positive", "class_iou", "confusions"):
            assert report["systems"][name][measure] == row[measure]


def test_background_is_left_out_thresholded_or_a_class(ray_session: None, tmp_path: Path) -> None:
    reports = {}
    for rule in ("none", "threshold", "class"):
        asked = {"background": rule, "systems": ["clip_vv"], "limit": 4, "threshold": 0.3}
        reports[rule] = segment.run(wanted(tmp_path, segment=asked))
    rows = {rule: report.systems["clip_vv"] for rule, report in reports.items()}
    assert rows["none"]["class_iou"][0] is None
    assert rows["threshold"]["class_iou"][0] > 0
    assert rows["class"]["class_iou"][0] > 0
    assert [report.classes_scored for report in reports.values()] == [16, 16, 17]


def test_three_checkpoints_are_drawn_against_each_other(ray_session: None, tmp_path: Path) -> None:
    base = settings(tmp_path)
    (folder := tmp_path / "trials").mkdir()
    for seed, name in enumerate("abc"):
        checkpoint(base, folder / f"{name}.safetensors", seed=seed)
    asked = {"checkpoint": [folder], "systems": ["projectors"], "limit": 3, "scenes": 1}
    report = segment.run(wanted(tmp_path, segment=asked))
    names = [Path(path).name for path in report.figures]
    assert names == ["masks.png", "failures.png", "checkpoints.png", "checkpoints.csv"]
    with Path(report.figures[-1]).open(encoding="utf-8") as file:
        rows = {row["name"]: float(row["miou"]) for row in csv.DictReader(file)}
    assert rows == {name: report.systems[name]["miou"] for name in "abc"}
    (empty := tmp_path / "empty").mkdir()
    with pytest.raises(StageError, match=r"no checkpoints .* in folder .*empty"):
        segment.run(wanted(tmp_path, segment={**asked, "checkpoint": [empty]}))


def test_windows_may_slide_and_two_checkpoints_of_a_method_have_names(
    ray_session: None, tmp_path: Path
) -> None:
    base = settings(tmp_path)
    files = [checkpoint(base, tmp_path / f"{n}.safetensors", seed=s) for s, n in enumerate("ab")]
    asked = {"window": 64, "checkpoint": files, "systems": ["projectors"], "limit": 3}
    report = segment.run(wanted(tmp_path, segment=asked))
    assert list(report.systems) == ["a", "b"]
    assert report.protocol["view"] == "windows of 64 px every 32 px, short side 96 px"
    assert report.systems["a"]["miou"] != report.systems["b"]["miou"]
    assert report.systems["a"]["trained_on"] == "value"


@pytest.mark.parametrize(
    ("asked", "changes", "message"),
    [
        (
            {},
            {"backbone": "toy_backbone:other"},
            r"one\.safetensors was trained on features of toy",
        ),
        ({"checkpoint": [Path("no.safetensors")]}, {}, "no checkpoint at no.safetensors"),
        ({"kind": "naclip"}, {}, "no features of kind 'naclip'; it has value, vv"),
        ({"stride": 8}, {}, "need --segment.window"),
        ({"window": 128}, {}, "stride <= window <= short side"),
        ({"window": 64, "image_resolution": 64}, {}, "give one"),
        ({"systems": ["naclip"]}, {}, "has none of the systems"),
        ({"split": "val"}, {}, "unknown split 'val'"),
        ({}, {"dataset": "coco14"}, "has label vectors, no masks"),
    ],
)
def test_mistakes_are_told_before_any_work(
    asked: dict[str, object], changes: dict[str, object], message: str, tmp_path: Path
) -> None:
    with pytest.raises((StageError, UsageError, CheckpointError), match=message):
        segment.describe(wanted(tmp_path, segment=asked, **changes))


def test_a_checkpoint_whose_tensors_are_damaged_stops_before_workers_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = checkpoint(Config(backbone=TOY), tmp_path / "one.safetensors")
    path.write_bytes(path.read_bytes().replace(b'"weights.', b'"veights.', 1))
    monkeypatch.setattr(makers, "_make", lambda *_: pytest.fail("workers start"))
    with pytest.raises(
        CheckpointError, match=r"one\.safetensors is not a checkpoint: it has veights"
    ):
        segment.run(wanted(tmp_path, segment={"checkpoint": [path]}))


def test_settings_that_do_nothing_here_name_nothing(tmp_path: Path) -> None:
    def name(**asked: object) -> str:
        return segment.plan_segment(wanted(tmp_path, segment=asked)).name

    assert name(threshold=0.3, logit_scale=10.0) == name()
    by_threshold = {"background": "threshold"}
    assert name(**by_threshold, threshold=0.3) != name(**by_threshold)
    assert name(**by_threshold, logit_scale=10.0) != name(**by_threshold)


def test_reports_of_other_neighbours_share_the_counts_and_overwrite_nothing(tmp_path: Path) -> None:
    names = {}
    for neighbours in (3, 5):
        config = wanted(tmp_path, segment={"neighbours": neighbours})
        plan = segment.plan_segment(config)
        names[neighbours] = (plan.name, segment.report_name(config, plan))
    assert names[3][0] == names[5][0] == names[3][1]
    assert names[5][1] != names[3][1]


def test_of_one_class_and_of_no_pixel_there_are_no_numbers(tmp_path: Path) -> None:
    """Nothing leaks where there is no other class, and no IoU is where nothing was counted."""
    config = wanted(tmp_path, segment={"systems": ["clip_vv"]})
    plan = segment.plan_segment(config)
    scenes = plan.listing.scenes  # type: ignore[attr-defined]
    one = type("One", (), {"class_names": ("background", "disc"), "ignore_index": 255})()
    plan = replace(plan, listing=one, scored=range(1, 2))
    for counted in (np.array([[0, 0], [0, 9]]), np.zeros((2, 2), np.int64)):
        counts = Counts({"clip_vv": counted}, {"clip_vv": np.array([[0.0, np.nan]])})
        row = segmentation.measure(config, plan, [counts])["clip_vv"]
        assert row["miou"] == (1.0 if counted.any() else None)
        assert row["leakage_harmonic_mean"] is None
        json.loads(json.dumps(row), parse_constant=lambda word: pytest.fail(word))
        told = {"view": "-", "scores": "-", "background": "-"}
        report = segment.SegmentReport(
            dataset="one", split="test", images=1, class_names=[], classes_scored=1, backbone="toy",
            protocol=told, systems={"clip_vv": row}, warnings=[], test_on_train=False,
            notes=["two passed over"], config={}, commit=None, seconds=0.0, figures=[],
        )  # fmt: skip
        assert segment.table(report).splitlines()[1].split()[-1] == "-"
        assert "note: two passed over" in segment.table(report)
        assert segment.metrics(report).keys() >= {"test/miou_paper/clip_vv"}
    assert len(scenes)


def write_own(root: Path, classes: int, images: int = 3) -> str:
    """The user's own annotation file with boxes as outlines; the pattern of its path."""
    generator = np.random.default_rng(0)
    categories = [{"id": number, "name": f"thing {number}"} for number in range(classes)]
    for split in ("train", "test"):
        (root / split).mkdir(parents=True)
        content: dict[str, list[dict[str, object]]] = {
            "images": [], "annotations": [], "categories": list(categories),
        }  # fmt: skip
        for number in range(images):
            pixels = generator.integers(256, size=(64, 64, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(root / split / f"{split}{number}.png")
            about = {"id": number, "file_name": f"{split}{number}.png", "width": 64, "height": 64}
            content["images"].append(about)
            for place, category in enumerate(generator.integers(classes, size=4).tolist()):
                x, y = 30 * (place % 2), 30 * (place // 2)
                content["annotations"].append({
                    "id": len(content["annotations"]), "image_id": number, "area": 400,
                    "category_id": category, "iscrowd": 0, "bbox": [x, y, 20, 20],
                    "segmentation": [[x, y, x + 20, y, x + 20, y + 20, x, y + 20]],
                })  # fmt: skip
        (root / f"{split}.json").write_text(json.dumps(content))
    return str(root / "{split}.json")


@pytest.mark.parametrize("classes", [9, 254, 300])
def test_counts_of_many_classes_are_those_of_the_whole_matrix(
    classes: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    dataset = write_own(tmp_path / "own", classes)
    asked = {"systems": ["clip_vv"], "scenes": 1}
    config = settings(tmp_path, dataset=dataset, segment={**asked, "workers": 1})
    plan = segment.plan_segment(config)
    assert (plan.num_images, len(plan.listing.class_names)) == (3, classes + 1)
    assert plan.has_many_classes == (classes > 254)
    maker = segmentation.Segmenter(config, plan, segmentation.scored_texts(config, plan), "cpu", 1)
    arrays = maker.make(0)
    assert arrays["confusion/clip_vv"].size <= max((classes + 1) ** 2, 2 * 64 * 64)
    plan.folder.mkdir(parents=True)
    write_arrays(plan.path(0), arrays)  # so that there is no work for Ray

    ignored, total, paper = plan.listing.ignore_index, 0, []
    for maps, target in maker.segment(range(3)):
        mask = maker.positions(maps["clip_vv"])
        target = torch.where(target == 0, ignored, target)
        matrix = confusion_matrix(mask, target, num_classes=classes + 1, ignore_index=ignored)
        predicted = torch.bincount(mask.flatten().long(), minlength=classes + 1) > 0
        paper.append(image_miou_paper(matrix, predicted, background=0).miou_paper)
        total = total + matrix
    counts = plan.counts(0)
    assert counts is not None
    assert torch.equal(segmentation.confusion_of(plan, [counts], "clip_vv"), total)
    assert counts.per_image["clip_vv"][:, 0].tolist() == paper
    report = segment.run(config)
    assert report.systems["clip_vv"]["miou"] == miou(total)
    maker.close()


def test_an_own_file_without_outlines_is_told_so(tmp_path: Path) -> None:
    dataset = write_own(tmp_path / "own", 4)
    for path in (tmp_path / "own").glob("*.json"):
        content = json.loads(path.read_text())
        for annotation in content["annotations"]:
            del annotation["segmentation"]
        path.write_text(json.dumps(content))
    config = settings(tmp_path, dataset=dataset, segment={"systems": ["clip_vv"]})
    with pytest.raises(ValueError, match="masks need one"):
        segment.plan_segment(config)


def test_what_run_trains_is_taken_as_far_as_it_is_there(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    config = settings(tmp_path, segment={"systems": ["projectors"]})
    with pytest.raises(StageError, match=r"no checkpoint at .*, or only frozen --segment.systems"):
        segment.plan_segment(config)
    assert "missing: no checkpoint at" in segment.describe(config)
    source = plan_features(config, "train")
    checkpoint(config, checkpoint_path(config.model_copy(update={"name": "dclip"}), source))
    caplog.set_level("INFO")
    assert [system.name for system in segment.plan_segment(config).systems] == ["dclip"]
    assert any("asl_only is not trained" in line for line in caplog.messages)


@pytest.mark.parametrize(
    ("template", "message"), [("a", "exactly one '{}'"), ("a {} b {}", "exactly one '{}'")]
)
def test_a_template_that_does_not_fit_stops_before_workers_start(
    template: str, message: str, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=message):
        segment.run(wanted(tmp_path, segment={"templates": [template]}))


def voc(tmp_path: Path, trees: ModuleType, **asked: object) -> tuple[Config, Path]:
    """Settings for a tiny VOC with masks, and the folder of these."""
    root = write_tree(trees, "voc12-seg", tmp_path / "voc", {"val": 3})
    own = {"systems": ["clip_vv"], "split": "val", **asked}
    config = wanted(tmp_path, segment=own, dataset="voc12-seg", root=str(root))
    return config, next(root.rglob("SegmentationClass"))


def test_a_tree_with_masks_is_segmented_at_its_own_sizes(
    ray_session: None, tmp_path: Path, trees: ModuleType
) -> None:
    config, _ = voc(tmp_path, trees, background="class")
    report = segment.run(config)
    assert report.images == 3
    assert report.classes_scored == 21
    run = mlflow.MlflowClient(report.mlflow.uri).get_run(report.mlflow.run_id)
    assert "val/miou/clip_vv" in run.data.metrics


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda mask: mask[:-1], r"mask .*\.png is .* pixels, its image"),
        (lambda mask: np.full_like(mask, 77), r"mask .*\.png has values that are no labels.*: 77"),
    ],
)
def test_a_mask_that_does_not_fit_stops_with_its_name(
    spoil: object, message: str, ray_session: None, tmp_path: Path, trees: ModuleType
) -> None:
    config, folder = voc(tmp_path, trees)
    path = sorted(folder.glob("*.png"))[0]
    with Image.open(path) as image:
        mask = np.array(image)
    Image.fromarray(spoil(mask)).save(path)  # type: ignore[operator]
    with pytest.raises(StageError, match=f"{message}.*what finished groups made is kept"):
        segment.run(config)


def test_background_that_is_no_class_cannot_be_asked_for(tmp_path: Path, trees: ModuleType) -> None:
    config, _ = voc(tmp_path, trees, background="threshold")
    config = config.model_copy(update={"options": {"classes": "voc20"}})
    with pytest.raises(UsageError, match="background is no class of voc12-seg"):
        segment.describe(config)

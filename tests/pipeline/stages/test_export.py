"""Files for others: a user's own process gives what predict says, and mistakes are told."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from dclip.backbones import load_backbone
from dclip.checkpoints.files import write_checkpoint
from dclip.checkpoints.origin import FORMAT, About, Encoder
from dclip.fitting.loop import Loop
from dclip.methods.dclip import DCLIPMethod
from dclip.methods.method import Task, initial
from dclip.methods.settings import DCLIPSettings
from dclip.store.shards import digest
from dclip.world import shapes
from pipeline.features.backbone import describe_backbone
from pipeline.settings.config import Config, config_class
from pipeline.stages import export
from pipeline.terminal import cli
from pipeline.terminal.errors import StageError, UsageError
from pipeline.work import exporting

RUNS = (
    "import runpy, sys\n"
    "sys.argv = sys.argv[1:]\n"
    "runpy.run_path(sys.argv[0])\n"
    "strange = {{'dclip', 'pipeline', {others}}} & set(sys.modules)\n"
    "assert not strange, strange\n"
)


def config_of(output: Path, **changes: object) -> Config:
    return config_class("dclip").model_validate({"output": output, "device": "cpu", **changes})


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of projectors on the tiny CLIP, at their start."""
    path = tmp_path_factory.mktemp("trained") / "one.safetensors"
    backbone = load_backbone("tiny")
    info = describe_backbone(config_of(path.parent))
    about = About(
        format=FORMAT,
        method="dclip",
        name="dclip",
        settings=DCLIPSettings(output_dim=16),
        loop=Loop(),
        feature_space=digest(info.space("value")),
        backbone_name=info.name,
        embed_dim=info.embed_dim,
        class_names=list(shapes.CLASS_NAMES),
        seed=0,
        epoch=1,
        features="f" * 64,
        history=[{"epoch": 1.0, "loss": 0.5}],
        commit=None,
        encoder=Encoder(
            backbone="tiny",
            pretrained=None,
            resolution=info.resolution,
            include_global_token=True,
            kind="value",
            templates=["a", "b"],
        ),
    )
    task = Task.of(backbone, [(name,) for name in shapes.CLASS_NAMES])
    write_checkpoint(path, initial(DCLIPMethod, about.settings, task, seed=0), about)
    return path


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("scene") / "scene.png"
    Image.fromarray(shapes.scene("test", 3).image).resize((150, 100)).save(path)
    return path


def run_example(report: export.ExportReport, *words: object, others: str) -> dict[str, float]:
    """What the program beside a file prints, where this project cannot be imported."""
    example = Path(report.file).with_name("example.py")
    code = RUNS.format(others=others)
    command = [sys.executable, "-W", "error", "-c", code, str(example), *map(str, words)]
    done = subprocess.run(
        command, capture_output=True, text=True, check=False, cwd=example.parent, env={}
    )
    assert done.returncode == 0, done.stderr
    rows = [line.split("  ") for line in done.stdout.splitlines()]
    return {name: float(score) for score, name in rows}


def test_onnxruntime_alone_says_of_a_photograph_what_predict_says(
    trained: Path, scene: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--checkpoint", str(trained), "--output", str(tmp_path)]
    assert cli.main("export", [*words, "--json"]) == 0
    told = capsys.readouterr().out
    report = json.loads(told.splitlines()[-1])
    del report["stage"]
    made = export.ExportReport(**report)
    assert "largest difference from the model: " in told
    assert "session = onnxruntime.InferenceSession" in told
    assert made.difference < 1e-4
    assert made.bytes == Path(made.file).stat().st_size
    found = run_example(made, scene, others="'torch'")
    asked = ", ".join(shapes.CLASS_NAMES)
    assert cli.main("predict", [*words, str(scene), "--classes", asked, "--json"]) == 0
    (image,) = json.loads(capsys.readouterr().out.splitlines()[-1])["images"]
    wanted = {row["class"]: row["probability"] for row in image["scores"]}
    assert found == pytest.approx(wanted, abs=1e-4)
    folder = Path(made.file).parent
    about = json.loads((folder / "model.json").read_text())
    assert about["class_names"] == list(shapes.CLASS_NAMES)
    assert about["feature_space"] == digest(describe_backbone(config_of(tmp_path)).space("value"))
    assert about == made.description
    assert sorted(path.name for path in folder.iterdir()) == [
        "example.py", "model.json", "model.onnx", "report.json",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("form", "others"), [("onnx", "'torch'"), ("pt2", "'onnx'"), ("safetensors", "'torch'")]
)
def test_the_head_alone_runs_on_features_without_this_project(
    form: str, others: str, trained: Path, tmp_path: Path
) -> None:
    names = ["fish", "star"]  # in this order
    own = {"checkpoint": trained, "what": "head", "format": form, "classes": names}
    report = export.run(config_of(tmp_path, export=own))
    backbone = load_backbone("tiny")
    images = torch.randn(1, 3, backbone.resolution, backbone.resolution)
    local = backbone.encode_images(images).local
    np.save(tmp_path / "local.npy", local.numpy())
    found = run_example(report, tmp_path / "local.npy", others=others)
    run = exporting.exported(export.plan_export(config_of(tmp_path, export=own))).eager
    scores = run({"local": local.numpy()})["scores"][0]
    assert found == pytest.approx(dict(zip(names, scores.tolist(), strict=True)), abs=1e-4)


def test_frozen_clip_is_exported_for_names_of_any_choice(
    scene: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--zero-shot", "--classes", "star, ring, a blue dog", "--output", str(tmp_path)]
    words += ["--resize", "longest", "--interpolation", "bicubic", "--backbone", "tiny", "--json"]
    assert cli.main("export", [*words, "--format", "pt2"]) == 0
    report = json.loads(capsys.readouterr().out.splitlines()[-1])
    del report["stage"]
    found = run_example(export.ExportReport(**report), scene, others="'onnx'")
    assert cli.main("predict", [*words, str(scene)]) == 0
    (image,) = json.loads(capsys.readouterr().out.splitlines()[-1])["images"]
    assert found == pytest.approx(
        {row["class"]: row["clip_share"] for row in image["scores"]}, abs=1e-4
    )


def test_what_stands_is_not_made_again(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = {"checkpoint": trained, "what": "head", "format": "safetensors"}
    config = config_of(tmp_path, export=own)
    assert "which stands" not in export.describe(config)
    first = export.run(config)
    assert "which stands" in export.describe(config)
    before = Path(first.file).stat()
    made: list[Any] = []
    make = exporting.make
    monkeypatch.setattr(exporting, "make", lambda plan: made.append(plan) or make(plan))
    assert export.run(config) == first
    assert Path(first.file).stat().st_mtime_ns == before.st_mtime_ns
    assert not made
    damaged = bytearray(Path(first.file).read_bytes())
    damaged[-1] ^= 1
    Path(first.file).write_bytes(damaged)
    assert export.run(config).sha256 == first.sha256
    assert len(made) == 1
    other = export.run(config_of(tmp_path, export={**own, "classes": ["star"]}))
    assert Path(other.file).parent != Path(first.file).parent


@pytest.mark.parametrize(
    ("own", "error", "said"),
    [
        ({"format": "safetensors", "what": "image"}, UsageError, "give --what head, or --format"),
        ({"classes": ["star", "dog"]}, UsageError, "not trained on 'dog'; it knows circle, .*, "),
        ({"classes": ["star", " Star"]}, UsageError, "'star' is there twice"),
        ({"zero_shot": True}, UsageError, "takes no --checkpoint"),
        ({"zero_shot": True, "checkpoint": None}, UsageError, "name the classes of frozen CLIP"),
        ({"checkpoint": Path("none")}, StageError, "no checkpoint at none"),
    ],
)
def test_mistakes_are_told_before_any_work(
    own: dict[str, Any], error: type[Exception], said: str, trained: Path, tmp_path: Path
) -> None:
    with pytest.raises(error, match=said):
        export.run(config_of(tmp_path, export={"checkpoint": trained, **own}))
    assert not (tmp_path / "exports").exists()


def test_a_damaged_checkpoint_another_backbone_and_an_unknown_format_are_told(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    content = trained.read_bytes()
    cut = tmp_path / "cut.safetensors"
    cut.write_bytes(content[: len(content) - 100])
    words = ["--output", str(tmp_path), "--what", "head", "--format"]
    assert cli.main("export", [*words, "onnx", "--checkpoint", str(cut)]) == 1
    assert "cut.safetensors is not a checkpoint" in capsys.readouterr().err
    elsewhere = ["--checkpoint", str(trained), "--backbone", "tiny-vit"]
    assert cli.main("export", [*words, "onnx", *elsewhere]) == 1
    assert "was trained on features of tiny" in capsys.readouterr().err
    assert cli.main("export", [*words, "tflite"]) == 2
    assert "tflite" in (told := capsys.readouterr().err)
    assert "safetensors" in told
    assert cli.main("export", ["--output", str(tmp_path), "--dry-run"]) == 0
    assert "missing: no checkpoint at" in capsys.readouterr().out


def test_a_missing_package_names_the_extra(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dclip.exports.description.find_spec", lambda _: None)
    with pytest.raises(StageError, match=r"pip install 'dclip\[export\]'"):
        export.run(config_of(tmp_path, export={"checkpoint": trained}))


def test_a_method_that_looks_at_images_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, trained: Path
) -> None:
    monkeypatch.setattr(DCLIPSettings, "sees_images", classmethod(lambda _: True))
    with pytest.raises(StageError, match=r"one\.safetensors is of dclip, which looks at"):
        export.run(config_of(tmp_path, export={"checkpoint": trained}))

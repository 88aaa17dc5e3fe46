"""Retrieval as a stage: what it compares, that reports stand, and what it refuses; without Ray."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import pytest
import torch
from PIL import Image

from dclip.backbones import load_backbone
from dclip.checkpoints.files import write_checkpoint
from dclip.data.crops import as_pixels
from dclip.methods.method import Task, initial
from dclip.methods.pixels.settings import SmartCLIPSettings
from dclip.methods.pixels.smartclip import SmartCLIP
from dclip.metrics import inter_class_cosine, retrieval_recall
from dclip.retrieval import FrozenPairs
from dclip.world.dataset import ShapesListing
from pipeline.features.opened import open_backbone, open_features
from pipeline.features.plan import plan_features
from pipeline.records.checkpoints import load_checkpoint
from pipeline.records.origin import about_training
from pipeline.settings.config import Config, config_class
from pipeline.stages import extract, retrieve
from pipeline.terminal import cli
from pipeline.terminal.errors import StageError, UsageError

from .test_extract import make_here

pytestmark = pytest.mark.usefixtures("_toy_on_path", "new_stores_are_copies")

TOY = "toy_clip:make"
HISTORY = [{"epoch": 1.0, "loss": 0.5}]


def wanted(output: Path, **changes: Any) -> Config:
    values = {"output": output, "device": "cpu", "backbone": TOY, "method": "smartclip"}
    values |= {"extract": {"limit": 6, "shard_size": 6}, **changes}
    return config_class("smartclip").model_validate(values)


def checkpoint_of(config: Config, path: Path, **own: Any) -> Path:
    """A checkpoint of SmartCLIP with the weights that it starts from."""
    config = config.with_own(**own)
    plan = plan_features(config, "train")
    reader = open_features(plan.folders[:1], config.output)
    about = about_training(config, plan, reader.manifest, epoch=1, seed=0, history=HISTORY)
    task = Task.of_features(reader.class_names, *reader.text_features())
    task = replace(task, backbone=open_backbone(config))
    write_checkpoint(path, initial(SmartCLIP, about.settings, task, seed=0), about)
    return path


@pytest.fixture(scope="module")
def output(_toy_on_path: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Features of some scenes and two checkpoints."""
    config = wanted(tmp_path_factory.mktemp("retrieve"))
    plans = [plan_features(config, "train")]
    make_here(plans[0], config)
    extract.extract(config, plans)
    checkpoint_of(config, config.output / "masked.safetensors")
    checkpoint_of(config, config.output / "plain.safetensors", masks="none")
    return config.output


def test_the_report_has_recall_of_frozen_clip_and_of_checkpoints(output: Path) -> None:
    files = [output / "masked.safetensors", output / "plain.safetensors"]
    config = wanted(output, retrieve={"checkpoint": files, "limit": 8, "masked_captions": 5})
    report = retrieve.run(config)
    assert (report.images, report.captions, report.data) == (8, 16, "shapes")
    assert list(report.systems) == ["zero_shot", "smartclip", "smartclip_no_masks"]

    listing = ShapesListing("test")
    texts = [text for own in listing.captions(np.arange(8)) for text in own]
    backbone = load_backbone(TOY)
    squares = [np.asarray(as_pixels(listing.read(row).image, 64, "crop")) for row in range(8)]
    pixels = torch.from_numpy(np.stack(squares))
    owners = torch.arange(16) // 2
    method, _ = load_checkpoint(files[0])
    assert isinstance(method, SmartCLIP)
    with torch.no_grad():
        encoded = method.encode(texts)
        embedded = method.embed_images(pixels)
    expected = retrieval_recall(embedded, encoded.features, owners)
    found = report.systems["smartclip"]
    assert found["image_to_text"] == {str(k): v for k, v in expected.image_to_text.items()}
    assert found["text_to_image"] == {str(k): v for k, v in expected.text_to_image.items()}
    # a short caption of each image is the first, and those of different images are compared
    assert encoded.mask_logits is not None
    masked = (encoded.features * (encoded.mask_logits >= 0))[::2]
    assert found["masked_caption_cosine"] == pytest.approx(inter_class_cosine(masked), abs=1e-5)
    assert found["caption_cosine"] == pytest.approx(
        inter_class_cosine(encoded.features[::2]), abs=1e-5
    )
    frozen = report.systems["zero_shot"]
    assert frozen["cut"] > 0  # long captions take more than 32 tokens
    assert found["cut"] == 0
    assert "mask_open" not in frozen
    assert "mask_open" not in report.systems["smartclip_no_masks"]
    short = [text for text in texts[::2] if len(text.split()) < 12]  # read to their end
    torch.testing.assert_close(
        FrozenPairs(backbone).encode(short).features, backbone.encode_texts(short)
    )

    (figure,) = report.figures
    with Image.open(figure) as picture:
        assert min(picture.size) > 100
        assert len(np.unique(np.asarray(picture.convert("L")))) > 20
    kept = json.loads((Path(figure).parent / "report.json").read_text())
    assert kept["systems"] == report.systems
    assert kept["stage"] == "retrieve"


def test_a_report_that_stands_is_shown_again_and_recorded_once(
    output: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = wanted(output, retrieve={"limit": 4})
    first = retrieve.run(config)
    again = retrieve.run(config)
    assert again == first
    assert capsys.readouterr().out.count("CLIP zero-shot") == 2
    anew = retrieve.run(wanted(output, retrieve={"limit": 4, "anew": True}))
    assert anew.systems == first.systems
    store = mlflow.MlflowClient(config.own_store)
    runs = store.search_runs([e.experiment_id for e in store.search_experiments()])
    (run,) = [run for run in runs if run.data.tags["dclip.key"].endswith(first.identity[:12])]
    assert (
        run.data.metrics["test/text_to_image_r1/zero_shot"]
        == (first.systems["zero_shot"]["text_to_image"]["1"])
    )


@pytest.mark.parametrize(
    "changes",
    [{"limit": 5}, {"only": 2}, {"most": 1}, {"form": "square"}, {"score": "fp16_softmax"}],
    ids=str,
)
def test_whatever_changes_a_number_changes_the_name(output: Path, changes: dict[str, Any]) -> None:
    usual = retrieve.plan_retrieval(wanted(output, retrieve={"limit": 6}))
    other = retrieve.plan_retrieval(wanted(output, retrieve={"limit": 6, **changes}))
    assert other.identity != usual.identity


def files_of(folder: Path, count: int = 3, *, damaged: bool = False) -> Path:
    pictures = folder / "pictures"
    pictures.mkdir(parents=True)
    lines = []
    for number in range(count):
        Image.new("RGB", (90, 70), (80 * number, 20, 200)).save(pictures / f"{number}.png")
        lines += [{"image": f"{number}.png", "caption": f"caption {number}"}]
    lines += [{"image": "gone.png", "caption": "of nothing"}, {"image": "0.png", "caption": " "}]
    if damaged:
        (pictures / "1.png").write_bytes(b"no image")
    path = folder / "captions.jsonl"
    path.write_text("\n".join(map(json.dumps, lines)))
    return path


def test_captions_of_a_file_and_what_was_left_out(tmp_path: Path) -> None:
    path = files_of(tmp_path)
    own = {"captions": str(path), "image_folder": tmp_path / "pictures"}
    report = retrieve.run(wanted(tmp_path / "out", retrieve=own))
    assert (report.images, report.captions) == (3, 3)
    told = " ".join(report.notes)
    assert "1 image that is not there" in told
    assert "1 empty caption" in told
    assert retrieve.describe(wanted(tmp_path / "out", retrieve=own)).startswith("3 images and 3")
    assert report.systems["zero_shot"]["image_to_text"]["5"] == 1


def test_a_protocol_reads_its_own_files_and_says_what_is_missing(tmp_path: Path) -> None:
    (tmp_path / "annotations").mkdir()
    (tmp_path / "val2017").mkdir()
    pictures, said = [], []
    for own in (9, 4):
        Image.new("RGB", (40, 40), (20 * own, 0, 0)).save(tmp_path / "val2017" / f"{own}.png")
        pictures.append({"id": own, "file_name": f"{own}.png"})
        said += [{"image_id": own, "caption": f"image {own}, caption {n}"} for n in range(7)]
    content = {"images": pictures, "annotations": said}
    (tmp_path / "annotations" / "captions_val2017.json").write_text(json.dumps(content))
    config = wanted(tmp_path / "out", root=tmp_path, retrieve={"protocol": "coco_val2017"})
    plan = retrieve.plan_retrieval(config)
    assert plan.texts == tuple(
        tuple(f"image {own}, caption {n}" for n in range(5)) for own in (4, 9)
    )
    assert plan.notes[0] == "coco_val2017 has 5,000 images as published, here are 2"
    with pytest.raises(ValueError, match="no captions of flickr30k_all: there is no"):
        retrieve.plan_retrieval(
            wanted(tmp_path / "out", root=tmp_path, retrieve={"protocol": "flickr30k_all"})
        )


def test_an_image_that_cannot_be_read_stops_the_stage_with_its_name(tmp_path: Path) -> None:
    path = files_of(tmp_path, damaged=True)
    own = {"captions": str(path), "image_folder": tmp_path / "pictures"}
    with pytest.raises(StageError, match=r"image 1: .*1\.png.*another score"):
        retrieve.run(wanted(tmp_path / "out", retrieve=own))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"retrieve": {"protocol": "urban1k", "captions": "x.csv"}}, "give one of them"),
        ({"retrieve": {"protocol": "urban1k"}}, "--protocol urban1k needs --root"),
        ({"retrieve": {"image_folder": "."}}, "--captions, which is not given"),
        ({"retrieve": {"only": 3}}, "none of 1,000 images has the captions"),
    ],
    ids=str,
)
def test_what_cannot_be_asked_for_is_one_line(
    tmp_path: Path, changes: dict[str, Any], words: str
) -> None:
    with pytest.raises(UsageError, match=words):
        retrieve.plan_retrieval(wanted(tmp_path, **changes))


def test_the_clip_of_shapes_is_not_taken_for_photographs_unasked(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = files_of(tmp_path)
    words = ["--captions", str(path), "--image-folder", str(tmp_path / "pictures")]
    words += ["--output", str(tmp_path / "out")]
    assert cli.main("retrieve", words) == 2
    assert "name a --backbone, such as ViT-B-16" in capsys.readouterr().err
    assert cli.main("retrieve", [*words, "--backbone", "tiny", "--dry-run"]) == 0
    assert "what it says of photographs is meaningless" in capsys.readouterr().out


def test_a_checkpoint_of_classes_is_refused(output: Path, tmp_path: Path) -> None:
    from dclip.methods.dclip import DCLIPMethod

    config = config_class("dclip").model_validate(
        {
            "output": output,
            "device": "cpu",
            "backbone": TOY,
            "extract": {"limit": 6, "shard_size": 6},
        }
    )
    plan = plan_features(config, "train")
    reader = open_features(plan.folders[:1], config.output)
    about = about_training(config, plan, reader.manifest, epoch=1, seed=0, history=HISTORY)
    task = Task.of_features(reader.class_names, *reader.text_features())
    path = tmp_path / "dclip.safetensors"
    write_checkpoint(path, initial(DCLIPMethod, about.settings, task, seed=0), about)
    with pytest.raises(StageError, match="compares images with its classes, not with captions"):
        retrieve.plan_retrieval(wanted(output, retrieve={"checkpoint": [path]}))


def test_settings_of_smartclip_name_what_is_trained_without_masks() -> None:
    assert SmartCLIPSettings(masks="none").own_name() == "smartclip_no_masks"

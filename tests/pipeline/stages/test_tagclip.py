"""TagCLIP as a row of every stage that scores: on a ViT, at the size of each image."""

import json
from pathlib import Path
from typing import get_args

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from dclip.data.crops import to_stride
from dclip.fitting.batches import Batch
from dclip.methods.pixels.settings import TagCLIPSettings
from dclip.segmentation import ImageSystem, System
from pipeline.settings.config import Config
from pipeline.settings.sections import TagCLIPPreset
from pipeline.stages import evaluate, run, segment
from pipeline.terminal import cli
from pipeline.terminal.errors import UsageError
from pipeline.work import segmentation

from ..conftest import settings

VIT = {"backbone": "tiny-vit", "pretrained": "random"}


def wanted(output: Path, **asked: object) -> Config:
    own = {"limit": 3, "systems": ["clip_vv", "tagclip", "tagclip_present"], **asked}
    return settings(output, segment=own, **VIT)


def test_its_rows_of_a_segmentation_are_its_maps_at_the_size_of_the_image(tmp_path: Path) -> None:
    config = wanted(tmp_path, normalisation="none")
    plan = segment.plan_segment(config)
    texts = segmentation.scored_texts(config, plan)
    segmenter = segmentation.Segmenter(config, plan, texts, "cpu", 1)
    systems = segmenter._systems
    every, found = systems["tagclip"], systems["tagclip_present"]
    assert isinstance(every, ImageSystem)
    assert isinstance(found, ImageSystem)
    assert isinstance(systems["clip_vv"], System)
    assert (every.method is found.method, every.only_found, found.only_found) == (True, False, True)
    try:
        shown = list(segmenter.segment([0, 1, 2]))
    finally:
        segmenter.close()
    for row, (maps, target) in enumerate(shown):
        image = plan.listing.read(row).image
        pixels = torch.from_numpy(np.array(to_stride(image, 16)))[None]
        none = torch.empty(0, 0, dtype=torch.int8)
        scores, grid = every.method.maps(Batch(torch.empty(0, 0, 0), none, pixels=pixels))
        drawn = F.interpolate(grid, target.shape, mode="bilinear", align_corners=False)[0]
        assert (maps["tagclip"].long() == drawn.argmax(0)).float().mean() > 0.999  # ties
        kept = every.method.found(scores)[0].nonzero().flatten()
        assert 0 < len(kept) < 16
        assert set(maps["tagclip_present"].unique().tolist()) <= set(kept.tolist())


def test_its_settings_are_part_of_what_is_counted_and_of_nothing_else(tmp_path: Path) -> None:
    def name(**asked: object) -> str:
        return segment.plan_segment(wanted(tmp_path, **asked)).name

    assert name(tagclip="author") != name()
    alone = {"systems": ["clip_vv"]}
    assert name(**alone, tagclip="author") == name(**alone)
    assert get_args(TagCLIPPreset) == tuple(TagCLIPSettings.presets)
    said = segment.describe(wanted(tmp_path))
    assert "tagclip_present: the image at its own size, classes found present" in said


def test_a_backbone_that_is_no_vit_is_told(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    def asked(*systems: str) -> Config:
        return settings(tmp_path, backbone="tiny", segment={"systems": systems, "limit": 1})

    with pytest.raises(UsageError, match="tiny is no ViT that gives its attention"):
        segment.plan_segment(asked("tagclip"))
    with caplog.at_level("INFO"):
        plan = segment.plan_segment(asked("clip_vv", "tagclip"))
    assert [system.name for system in plan.systems] == ["clip_vv"]
    assert "left out of tagclip" in caplog.text
    config = settings(tmp_path, backbone="tiny", evaluate={"tagclip": "robust"})
    with pytest.raises(UsageError, match=r"--evaluate\.tagclip needs a ViT"):
        evaluate.publish(config, [])
    with pytest.raises(UsageError, match=r"--evaluate\.tagclip needs a ViT"):
        run.run(config)  # before features are made and methods trained
    words = ["--backbone", "tiny", "--methods", "zero_shot,tagclip", "--output", str(tmp_path)]
    assert cli.main("compare", [*words, "--dry-run"]) == 2
    assert "tagclip needs attention, which the backbone tiny does not" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.usefixtures("ray_session", "new_stores_are_copies")
@pytest.mark.filterwarnings("ignore::ResourceWarning")
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.filterwarnings("ignore::FutureWarning:ray.*")
@pytest.mark.filterwarnings("ignore::UserWarning:ray.*")
def test_it_is_a_row_of_compare_and_of_evaluate_and_both_say_the_same(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    common = [
        "--backbone", "tiny-vit", "--pretrained", "random", "--device", "cpu",
        "--output", str(tmp_path), "--extract.limit", "12", "--extract.workers", "1", "--json",
    ]  # fmt: skip

    def call(stage: str, *words: str) -> object:
        assert cli.main(stage, [*common, *words]) == 0
        return json.loads(capsys.readouterr().out.splitlines()[-1])

    call("extract")
    compared = call("compare", "--methods", "zero_shot_local,tagclip", "--compare.seeds", "1")
    assert isinstance(compared, dict)
    local, own = compared["rows"]
    assert own["method"] == "tagclip"
    assert (own["parameters"], own["of1"]) == (0, None)  # its scores are no probabilities
    trained = call("train", "--method", "linear_probe", "--train.val-fraction", "0.25")
    assert isinstance(trained, dict)
    asked = ("--checkpoint", trained["checkpoint"], "--no-evaluate.linear-probe")
    report = call("evaluate", *asked, "--evaluate.tagclip", "robust")
    assert isinstance(report, dict)
    assert report["systems"]["tagclip"]["map"] == pytest.approx(own["test_map"])
    assert report["systems"]["zero_shot_local"]["map"] == pytest.approx(local["test_map"])
    other = call("evaluate", *asked, "--evaluate.tagclip", "author")
    without = call("evaluate", *asked)
    assert isinstance(other, dict)
    assert isinstance(without, dict)
    assert len({one["identity"] for one in (report, other, without)}) == 3
    assert "tagclip" not in without["systems"]

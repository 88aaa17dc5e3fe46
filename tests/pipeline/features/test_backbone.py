"""Which frozen CLIP is taken, and what is said of it."""

import logging
import warnings
from pathlib import Path
from typing import Any

import pytest

from dclip.backbones import Backbone, UnsaidWarning
from pipeline.features import backbone, opened
from pipeline.settings.config import Config, explain
from pipeline.terminal import cli


@pytest.mark.parametrize(
    ("dataset", "backbone"),
    [
        ("shapes", "tiny"),
        ("shapes-single", "tiny"),
        ("folder:photos", "RN101"),
        ("webdataset:a-{000..001}.tar", "RN101"),
        ("annotations/instances_{split}.json", "RN101"),
        ("coco", "RN101"),
        ("voc2007", "RN101"),
    ],
)
def test_the_backbone_left_out_is_tiny_for_shapes_and_a_real_clip_for_all_else(
    dataset: str, backbone: str
) -> None:
    assert Config(dataset=dataset).backbone == backbone
    assert Config(dataset=dataset, backbone="ViT-B-16").backbone == "ViT-B-16"


def test_a_wrong_data_set_is_one_line_and_no_second_about_the_backbone(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="dataset") as caught:
        Config.model_validate({"dataset": 5})
    assert explain(caught.value) == "dataset: input should be a valid string, got 5"  # type: ignore[arg-type]


def test_tiny_on_photographs_says_what_it_is_once_a_run(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    backbone._warn_once.cache_clear()
    config = Config(dataset="folder:photos", backbone="tiny", output=tmp_path)
    with caplog.at_level(logging.WARNING, "pipeline"):
        backbone.describe_backbone(config)
        backbone.describe_backbone(config.model_copy(update={"seed": 1}))
    (warning,) = backbone.warnings_of(config)
    assert [record.getMessage() for record in caplog.records] == [f"warning: {warning}"]
    assert "tiny on folder:photos" in warning
    assert "--backbone RN101" in warning


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"dataset": "folder:photos"},
        {"dataset": "folder:photos", "backbone": "tiny", "pretrained": "own.safetensors"},
    ],
)
def test_nothing_is_said_of_tiny_on_shapes_and_of_other_weights(changes: dict[str, str]) -> None:
    assert backbone.warnings_of(Config.model_validate(changes)) == []


def test_help_says_which_backbone_is_taken(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        cli.main("extract", ["--help-all"])
    told = " ".join(capsys.readouterr().out.split())
    assert "left out: tiny for shapes, RN101 for all else" in told


def test_what_a_file_leaves_open_is_told_once_a_run_also_where_its_facts_are_kept(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    load = opened.load_backbone

    def warn(name: str, **own: Any) -> Backbone:
        warnings.warn("a.pt does not say which weights it holds", UnsaidWarning, stacklevel=2)
        return load(name, **own)

    def new_run() -> None:
        for kept in (backbone._warn_once, backbone._describe_backbone, opened.opened_clip):
            kept.cache_clear()

    monkeypatch.setattr(opened, "load_backbone", warn)
    config = Config(output=tmp_path, pretrained="random")
    for _ in range(2):
        new_run()
        caplog.clear()
        opened.open_backbone(config)
        backbone.describe_backbone(config)
        backbone.describe_backbone(config)
        assert caplog.text.count("a.pt does not say which weights it holds") == 1
    new_run()

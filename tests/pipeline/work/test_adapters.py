"""Adapters in the stages: what is refused before any work, and which names they answer for."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from dclip.backbones import load_backbone
from dclip.checkpoints.files import write_checkpoint
from dclip.checkpoints.origin import FORMAT, About, Encoder
from dclip.fitting.batches import Batch
from dclip.methods.adapter_settings import DAPTAdapterSettings, SmartCLIPAdapterSettings
from dclip.methods.dapt import DAPTAdapter
from dclip.methods.method import Task, initial
from dclip.methods.smartclip import SmartCLIPAdapter
from pipeline.features.backbone import clip_of, describe_backbone
from pipeline.features.plan import plan_features
from pipeline.records.checkpoints import export_refusal, load_checkpoint
from pipeline.settings.training import Trained
from pipeline.terminal import cli
from pipeline.work.packs import Job, begin

from .test_contexts import Kept, config_of

NAMES = ("red disc", "blue box")
SMARTCLIP = "smartclip_adapter"


@pytest.mark.parametrize(
    ("stage", "words"),
    [
        ("train", ["--smartclip-adapter.objective", "captions"]),
        ("train", ["--train.preset", "author"]),
        ("run", ["--smartclip-adapter.objective", "captions"]),
        ("sweep", ["--space", "smartclip_adapter.objective=labels,captions"]),
        ("ablate", ["--ablate.vary", "smartclip_adapter.objective=labels,captions"]),
    ],
)
def test_captions_are_refused_before_any_work_as_features_hold_none(
    stage: str, words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    common = ["--method", SMARTCLIP, "--output", str(tmp_path), "--device", "cpu"]
    assert cli.main(stage, [*common, *words]) == 2
    told = capsys.readouterr().err
    assert f"--method {SMARTCLIP} is fed captions, which features on disk do not hold" in told
    assert not (tmp_path / "features").exists()


def test_words_of_the_background_that_cannot_be_are_refused_before_any_work(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    common = ["--method", "dapt_adapter", "--output", str(tmp_path), "--device", "cpu"]
    flag = "--dapt-adapter.background-words"
    assert cli.main("train", [*common, flag, "sky," + "very " * 30 + "far"]) == 2
    told = capsys.readouterr().err
    assert "--method dapt_adapter: its text 'a clean origami very very" in told
    assert "has 37 tokens, of which tiny reads 32; give a shorter one" in told
    for words in ('["sky", " "]', '["sky", "Sky"]'):
        assert cli.main("train", [*common, flag, words]) == 2
        told = capsys.readouterr().err
        assert "dapt_adapter.background_words: words must differ, and none may be blank" in told
    assert not (tmp_path / "features").exists()


def test_a_pack_of_dapt_is_begun_with_the_words_of_the_background(tmp_path: Path) -> None:
    config = config_of(tmp_path, "--method", "dapt_adapter")
    task = Task.of(load_backbone("tiny"), [[name] for name in NAMES])
    job = Job("dapt_adapter", (Trained(config.train, config.own),) * 2, (0, 1), 0, (), tmp_path,
              clip_of(config))  # fmt: skip
    pack = begin(job, Kept(task))
    expected = load_backbone("tiny").encode_texts(DAPTAdapterSettings().own_texts())
    torch.testing.assert_close(pack.method(1).get_buffer("background"), expected)
    assert expected.shape == (25, 128)
    losses = pack.losses(Batch(torch.randn(2, 5, 128), torch.tensor([[1, 0], [0, 1]]), known=4))
    assert losses.shape == (2, 5)
    assert losses.isfinite().all()


@pytest.mark.parametrize(
    ("kind", "settings"),
    [
        (SmartCLIPAdapter, SmartCLIPAdapterSettings(masks="free")),
        (SmartCLIPAdapter, SmartCLIPAdapterSettings(projectors="train")),
        (DAPTAdapter, DAPTAdapterSettings()),
    ],
)
def test_predict_asks_new_names_and_says_so_where_masks_are_bound(
    kind: Any, settings: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    method = initial(kind, settings, Task.of(load_backbone("tiny"), [[n] for n in NAMES]), seed=0)
    config = config_of(tmp_path, "--method", settings.name)
    info = describe_backbone(config)
    about = About(
        format=FORMAT, method=settings.name, name=settings.name, settings=settings,
        loop=config.train.loop, feature_space=plan_features(config, "train").feature_space,
        backbone_name="tiny", embed_dim=128, class_names=list(NAMES), seed=0, epoch=1,
        features="f" * 64, history=[{"epoch": 1.0, "loss": 0.5}], commit=None,
        encoder=Encoder(backbone="tiny", pretrained=None, resolution=info.resolution,
                        include_global_token=info.include_global_token, kind="value",
                        templates=["{}", "{}"]),
    )  # fmt: skip
    path, photo = tmp_path / "a.safetensors", tmp_path / "photo.png"
    write_checkpoint(path, method, about)
    loaded, _ = load_checkpoint(path)
    for name, value in method.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], value), name
    assert export_refusal(loaded) == ""  # a registered model scores without this package
    Image.fromarray(np.zeros((96, 96, 3), np.uint8)).save(photo)
    words = [str(photo), "--checkpoint", str(path), "--output", str(tmp_path), "--device", "cpu"]
    assert cli.main("predict", [*words, "--classes", "blue box"]) == 0
    code = cli.main("predict", [*words, "--classes", "blue box, unicorn"])
    if kind is SmartCLIPAdapter and settings.masks == "free":
        assert code == 1
        told = capsys.readouterr().err
        assert "has masks of the 2 classes it was trained on, and 'unicorn' is none" in told
    else:
        assert code == 0

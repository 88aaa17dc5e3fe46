"""Checkpoints: whole, refusing other features, and never unpickled."""

import json
import os
import pickle
from pathlib import Path

import pytest
import safetensors.torch
import torch

from dclip.recipe import Recipe
from dclip.shards import read_manifest
from dclip.trials import build_model
from pipeline.checkpoints import (
    check_features,
    load_checkpoint,
    write_checkpoint,
)
from pipeline.config import Config
from pipeline.errors import StageError
from pipeline.features import plan_features
from pipeline.origin import FORMAT, About, Encoder

from ..dclip.test_shards import (  # noqa: TID252 - tests have no name to import them by
    CLASSES,
    DIM,
    write_folder,
)


def write(path: Path, **changes: object) -> About:
    fields = {
        "format": FORMAT,
        "method": "dclip",
        "feature_space": "e" * 64,
        "backbone_name": "toy",
        "embed_dim": DIM,
        "class_names": list(CLASSES),
        "recipe": Recipe(output_dim=4),
        "seed": 0,
        "epoch": 1,
        "features": "f" * 64,
        "history": [{"epoch": 1.0, "loss": 0.5}],
        "commit": None,
    }
    about = About.model_validate({**fields, **changes})
    torch.manual_seed(3)
    model = build_model(about.recipe, DIM)
    write_checkpoint(path, model, torch.ones(6, DIM), about)
    return about


def test_a_checkpoint_gives_back_model_texts_and_origin(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "a.safetensors"
    about = write(path)
    model, texts, read = load_checkpoint(path)
    assert read == about
    assert not model.training
    assert torch.equal(texts, torch.ones(6, DIM))
    torch.manual_seed(3)
    expected = build_model(about.recipe, DIM).state_dict()
    assert all(torch.equal(value, expected[name]) for name, value in model.state_dict().items())


ENCODER = {
    "backbone": "RN101",
    "pretrained": None,
    "resolution": 448,
    "include_global_token": True,
    "kind": "value",
    "templates": ["Not a photo of a {}", "A photo of a {}"],
}


def test_a_checkpoint_says_what_encoded_and_is_read_by_who_does_not_know_of_it(
    tmp_path: Path,
) -> None:
    path = tmp_path / "a.safetensors"
    about = write(path, encoder=ENCODER, backbone_name="RN101/openai")
    assert load_checkpoint(path)[2] == about
    assert about.made_on == "RN101/openai at 448 px, kind value"
    with safetensors.safe_open(path, "pt") as file:
        kept = json.loads(file.metadata()["dclip"])
    assert "encoder" not in kept  # earlier versions refuse a key that they do not know


def test_a_checkpoint_of_before_says_that_it_is_unknown(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    write(path)
    assert load_checkpoint(path)[2].encoder is None
    write_folder(tmp_path / "features")
    about = write(path, feature_space="0" * 64)
    with pytest.raises(StageError, match=r"toy \(resolution and kind unknown\) \(0+\), these are"):
        check_features(path, about, read_manifest(tmp_path / "features"))


def test_an_encoder_comes_from_settings_and_the_manifest_of_features(tmp_path: Path) -> None:
    config = Config(output=tmp_path, pretrained="random")
    plan = plan_features(config, "train")
    encoder = Encoder.of(config, {**plan.space, **plan.source})  # what a manifest keeps
    assert encoder.model_dump() == {
        **ENCODER, "backbone": "tiny", "pretrained": "random", "resolution": 192,
    }  # fmt: skip


def test_a_missing_checkpoint_names_the_command_that_makes_it(tmp_path: Path) -> None:
    with pytest.raises(StageError, match=r"python -m pipeline\.train"):
        load_checkpoint(tmp_path / "none.safetensors")


class Bomb:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, ("exploded",)


@pytest.mark.parametrize("kind", ["truncated", "pickle", "foreign", "other shapes", "empty"])
def test_a_damaged_or_foreign_file_is_refused_and_nothing_runs(
    tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "a.safetensors"
    about = write(path)
    if kind == "truncated":
        os.truncate(path, path.stat().st_size // 2)
    elif kind == "pickle":
        path.write_bytes(pickle.dumps(Bomb()))
    elif kind == "foreign":
        safetensors.torch.save_file({"a": torch.ones(1)}, path)
    elif kind == "other shapes":
        safetensors.torch.save_file(
            {"model.image_projector.output.weight": torch.ones(2, 2)},
            path,
            metadata={"dclip": about.model_dump_json()},
        )
    else:
        path.write_bytes(b"")
    with pytest.raises(StageError, match="is not a checkpoint") as caught:
        load_checkpoint(path)
    assert str(path) in str(caught.value)
    assert not (tmp_path / "exploded").exists()


@pytest.mark.parametrize("other", [FORMAT - 1, FORMAT + 1])
def test_another_format_is_named(tmp_path: Path, other: int) -> None:
    write(tmp_path / "a.safetensors", format=other)
    with pytest.raises(StageError, match=f"format {other}, this version reads {FORMAT}; delete it"):
        load_checkpoint(tmp_path / "a.safetensors")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"feature_space": "0" * 64}, "use the same backbone"),
        ({"class_names": ["cat", "dog", "emu"]}, "same classes"),
    ],
)
def test_features_it_was_not_made_for_are_refused(
    tmp_path: Path, changes: dict[str, object], words: str
) -> None:
    write_folder(tmp_path / "features")
    about = write(tmp_path / "a.safetensors", **changes)
    with pytest.raises(StageError, match=words):
        check_features(tmp_path / "a.safetensors", about, read_manifest(tmp_path / "features"))

"""Checkpoints: whole, refusing other features, and never unpickled."""

import json
import os
import pickle
import sys
from pathlib import Path

import pytest
import safetensors.torch
import torch

from dclip.backbones import load_backbone
from dclip.checkpoints.files import write_checkpoint
from dclip.checkpoints.origin import FORMAT, About, CheckpointError
from dclip.fitting.batches import Batch
from dclip.methods.dclip import DCLIPMethod, build_model
from dclip.methods.dualcoop import DualCoOp
from dclip.methods.method import Task, initial
from dclip.methods.settings import DCLIPSettings, DualCoOpSettings
from dclip.store.shards import read_manifest
from dclip.training import Recipe
from pipeline.features.backbone import clip_of
from pipeline.features.plan import plan_features
from pipeline.records.checkpoints import Scorer, check_features, export_refusal, load_checkpoint
from pipeline.records.origin import encoder_of
from pipeline.settings.config import Config
from pipeline.terminal.errors import StageError

from ...dclip.store.test_shards import (
    CLASSES,
    DIM,
    write_folder,
)


def about_of(**changes: object) -> About:
    fields = {
        "format": FORMAT,
        "method": "dclip",
        "feature_space": "e" * 64,
        "backbone_name": "toy",
        "embed_dim": DIM,
        "class_names": list(CLASSES),
        "name": "dclip",
        "settings": {"output_dim": 4},
        "loop": {},
        "seed": 0,
        "epoch": 1,
        "features": "f" * 64,
        "history": [{"epoch": 1.0, "loss": 0.5}],
        "commit": None,
    }
    return About.model_validate({**fields, **changes})


def write(path: Path, **changes: object) -> About:
    about = about_of(**changes)
    task = Task.of_features(CLASSES, torch.ones(6, DIM), torch.full((3, DIM), 2.0))
    write_checkpoint(path, initial(DCLIPMethod, about.settings, task, seed=3), about)
    return about


def test_a_checkpoint_gives_back_model_texts_and_origin(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "a.safetensors"
    about = write(path)
    method, read = load_checkpoint(path)
    assert read == about
    assert not method.training
    assert torch.equal(method.task.pairs, torch.ones(6, DIM))
    assert torch.equal(method.task.texts.features, torch.full((3, DIM), 2.0))
    expected = initial(DCLIPMethod, about.settings, method.task, seed=3).state_dict()
    found = method.state_dict()
    assert found.keys() == expected.keys()
    assert all(torch.equal(value, expected[name]) for name, value in found.items())


def test_a_checkpoint_of_format_2_is_read(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    model = build_model(DCLIPSettings(output_dim=4), DIM)
    kept = {f"model.{name}": value for name, value in model.state_dict().items()}
    recipe = {**Recipe(preset="author", output_dim=4).model_dump()}
    del recipe["local_scale"], recipe["pooled_scale"]  # which it had not
    about = {
        "format": 2, "method": "tuned", "feature_space": "e" * 64, "backbone_name": "toy",
        "embed_dim": DIM, "class_names": list(CLASSES), "recipe": recipe, "seed": 0, "epoch": 1,
        "features": "f" * 64, "history": [{"epoch": 1.0, "loss": 0.5}], "commit": None,
    }  # fmt: skip
    safetensors.torch.save_file(
        {**kept, "text_features.pairs": torch.ones(6, DIM)},
        path,
        metadata={"dclip": json.dumps(about), "encoder": json.dumps(ENCODER)},
    )
    method, read = load_checkpoint(path)
    assert (read.name, read.method, read.loop.lr) == ("tuned", "dclip", 0.002)
    assert (read.settings.mfi_weight, read.settings.output_dim) == (7e-5, 4)
    assert read.encoder is not None
    assert isinstance(method, DCLIPMethod)
    for name, value in method.model.state_dict().items():
        assert torch.equal(value, model.state_dict()[name]), name


@pytest.mark.parametrize("contexts", ["per_class", "shared"])
def test_a_checkpoint_of_contexts_scores_without_a_backbone(contexts: str, tmp_path: Path) -> None:
    settings = DualCoOpSettings(context_length=4, contexts=contexts)
    backbone = load_backbone("tiny")
    task = Task.of(backbone, [[name] for name in CLASSES])
    method = initial(DualCoOp, settings, task, seed=3)
    method.kept.copy_(method.derived()["kept"])
    path = tmp_path / "a.safetensors"
    about = about_of(
        method="dualcoop", name="dualcoop", settings=settings, embed_dim=128, text_width=32
    )
    write_checkpoint(path, method, about)
    read, _ = load_checkpoint(path)
    assert read.task.backbone is None
    local = torch.randn(2, 5, 128)
    batch = Batch(local, torch.zeros(2, 3))
    torch.testing.assert_close(read.scores(batch), method.scores(batch))
    assert export_refusal(read) == ""
    asked = Task.of(backbone, [["a word that is new"]])
    if contexts == "shared":  # the contexts are kept, too
        expected = method.for_classes(asked).scores(batch)
        torch.testing.assert_close(read.for_classes(asked).scores(batch), expected)
    # of weights of another width it says so, before any is made
    write_checkpoint(path, method, about.model_copy(update={"text_width": 31}))
    with pytest.raises(CheckpointError, match=r"weights\.negative is .* its training makes"):
        load_checkpoint(path)
    write_checkpoint(path, method, about.model_copy(update={"text_width": None}))
    with pytest.raises(CheckpointError, match="no weights have the widths that it tells of"):
        load_checkpoint(path)


def test_a_scorer_moves_as_a_whole_and_can_be_exported(tmp_path: Path) -> None:
    write(tmp_path / "a.safetensors")
    method, _ = load_checkpoint(tmp_path / "a.safetensors")
    local = torch.randn(2, 5, DIM)
    expected = method.scores(Batch(local, torch.zeros(2, 3)))
    scorer = Scorer(method).eval()
    assert {"pairs", "texts"} <= dict(scorer.named_buffers()).keys()
    torch.testing.assert_close(scorer(local), expected)
    exported = torch.export.export(scorer, (local,)).module()
    torch.testing.assert_close(exported(local), expected)
    double = scorer.double()  # as to another device
    torch.testing.assert_close(double(local.double()).float(), expected)


def test_a_method_of_ones_own_is_imported_when_it_is_named_only(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    about = write(path).model_dump(mode="json")
    tensors = safetensors.torch.load_file(path)
    named = {**about, "method": "antigravity:Fly"}  # a module that is noticed
    safetensors.torch.save_file(tensors, path, metadata={"dclip": json.dumps(named)})
    with pytest.raises(CheckpointError, match="name it by --method antigravity:Fly"):
        load_checkpoint(path)
    assert "antigravity" not in sys.modules


ENCODER = {
    "backbone": "RN101",
    "pretrained": None,
    "resolution": 448,
    "include_global_token": True,
    "kind": "value",
    "templates": ["Not a photo of a {}", "A photo of a {}"],
}


def test_a_checkpoint_says_what_encoded(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    about = write(path, encoder=ENCODER, backbone_name="RN101/openai")
    assert load_checkpoint(path)[1] == about
    assert about.made_on == "RN101/openai at 448 px, kind value"


def test_a_checkpoint_of_before_says_that_it_is_unknown(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    write(path)
    assert load_checkpoint(path)[1].encoder is None
    write_folder(tmp_path / "features")
    about = write(path, feature_space="0" * 64)
    with pytest.raises(StageError, match=r"toy \(resolution and kind unknown\) \(0+\), these are"):
        check_features(path, about, read_manifest(tmp_path / "features"))


def test_an_encoder_comes_from_settings_and_the_manifest_of_features(tmp_path: Path) -> None:
    own = {"resize": "longest", "mean": (0.5, 0.5, 0.5)}
    config = Config(output=tmp_path, pretrained="random", **own)
    plan = plan_features(config, "train")
    encoder = encoder_of(config, {**plan.space, **plan.source})  # what a manifest keeps
    assert encoder.model_dump() == {
        **ENCODER, "backbone": "tiny", "pretrained": "random", "resolution": 192,
        "tag": None, "resize": "longest", "interpolation": None,
        "mean": (0.5, 0.5, 0.5), "std": None,
    }  # fmt: skip
    assert encoder.clip == clip_of(config)._replace(resolution=192, include_global_token=True)


def test_a_missing_checkpoint_names_the_command_that_makes_it(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"python -m pipeline\.train"):
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
            {"weights.model.image_projector.output.weight": torch.ones(2, 2)},
            path,
            metadata={"dclip": about.model_dump_json()},
        )
    else:
        path.write_bytes(b"")
    with pytest.raises(CheckpointError, match="is not a checkpoint") as caught:
        load_checkpoint(path)
    assert str(path) in str(caught.value)
    assert not (tmp_path / "exploded").exists()


def rewrite(path: Path, old: bytes, new: bytes) -> None:
    """Change bytes of a file in place, the length kept."""
    content = path.read_bytes()
    assert content.count(old) >= 1
    assert len(old) == len(new)
    path.write_bytes(content.replace(old, new, 1))


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        (b"format", b"gormat", "no format is given"),
        (b'"dclip":', b'"eclip":', "it does not say how it was trained"),
        (b"embed_dim", b"dmbed_dim", "(embed_dim: Field required)"),
        (b"class_names", b"blass_names", "(class_names: Field required)"),
        (b'\\"epoch\\":1,', b'\\"epoch\\":9,', "(the history tells nothing of epoch 9)"),
        (b"text_features", b"uext_features", "text_features.classes is missing"),
        (b'"weights.', b'"veights.', "it has veights."),
        (b'\\"output_dim\\":4', b'\\"output_dim\\":9', "its training makes [9, 8]"),
    ],
)
def test_a_flipped_header_is_told_in_plain_words(
    tmp_path: Path, old: bytes, new: bytes, words: str
) -> None:
    path = tmp_path / "a.safetensors"
    write(path)
    rewrite(path, old, new)
    with pytest.raises(CheckpointError, match="is not a checkpoint: ") as caught:
        load_checkpoint(path)
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 300 + len(str(path))


@pytest.mark.parametrize(
    ("changes", "texts", "words"),
    [
        ({"class_names": []}, torch.ones(6, DIM), "class_names: there is none"),
        ({"class_names": ["a", "b"]}, torch.ones(6, DIM), f"is [3, {DIM}] torch.float32, its"),
        ({}, torch.ones(5, DIM), "text_features.pairs is [5, "),
        ({}, torch.ones(6 * DIM), "text_features.pairs is ["),
        ({}, torch.ones(6, DIM).half(), "torch.float16, its training makes"),
        ({}, torch.full((6, DIM), torch.nan), "text_features.pairs has values that are not finite"),
        ({"embed_dim": 10**9}, torch.ones(6, DIM), "its training makes ["),
        ({"embed_dim": 10**30}, torch.ones(6, DIM), "no weights have the widths"),
    ],
)
def test_what_a_checkpoint_says_and_what_it_holds_belong_together(
    tmp_path: Path, changes: dict[str, object], texts: torch.Tensor, words: str
) -> None:
    path = tmp_path / "a.safetensors"
    about = write(path).model_copy(update=changes)
    tensors = safetensors.torch.load_file(path)
    safetensors.torch.save_file(
        {**tensors, "text_features.pairs": texts}, path, metadata=about.metadata()
    )
    with pytest.raises(CheckpointError, match="is not a checkpoint: ") as caught:
        load_checkpoint(path)
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("told", ["[1]", "3", "null", "{", "[" * 100_000])
def test_an_origin_that_is_no_object_is_refused(tmp_path: Path, told: str) -> None:
    path = tmp_path / "a.safetensors"
    safetensors.torch.save_file({"a": torch.ones(1)}, path, metadata={"dclip": told})
    with pytest.raises(
        CheckpointError, match="is not a checkpoint: what it says of its training is"
    ):
        load_checkpoint(path)


@pytest.mark.parametrize("other", [FORMAT - 2, FORMAT + 1])
def test_another_format_is_named(tmp_path: Path, other: int) -> None:
    write(tmp_path / "a.safetensors", format=other)
    with pytest.raises(
        CheckpointError, match=f"format {other}, this version reads {FORMAT}; delete it"
    ):
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


class Branching(DCLIPMethod):
    """What it does depends on what it sees, which no graph holds."""

    def scores(self, batch: Batch) -> torch.Tensor:
        scores = super().scores(batch)
        return scores if scores.mean() > 0.5 else 1 - scores


class Global(DCLIPMethod):
    Settings = type("GlobalSettings", (DCLIPSettings,), {"feeds": frozenset({"embedding"})})


def test_what_cannot_become_a_graph_says_why() -> None:
    task = Task.of_features(CLASSES, torch.ones(6, DIM))
    assert export_refusal(DCLIPMethod(DCLIPSettings(output_dim=4), task)) == ""
    told = export_refusal(Branching(DCLIPSettings(output_dim=4), task))
    assert told.startswith("dclip cannot be traced: ")
    assert "\n" not in told
    told = export_refusal(Global(Global.Settings(output_dim=4), task))
    assert told == "dclip is fed embedding, a registered model local features alone"

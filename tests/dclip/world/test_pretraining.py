"""The pretraining program: its loss, its loop, and the weights that were made with it."""

import importlib.resources
import json
import math
import shlex
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import open_clip
import pytest
import torch
from safetensors import safe_open
from torch.nn import functional as F

from dclip.backbones import load_backbone
from dclip.metrics.similarity import inter_class_cosine
from dclip.prompts import encode_class_names
from dclip.texts import EMBEDDED
from dclip.world import clip_training, curriculum, pretraining, shapes

TINY = curriculum.Phase(
    "smoke", 96, 64, (0, 0), attributes=False, pairs=64, steps=20, batch=16, learning_rate=3e-3
)


def test_loss_of_two_distinct_pairs_by_hand() -> None:
    # Cosines are the identity and the scale is ln 3, so every softmax is (3/4, 1/4).
    loss = clip_training.contrastive_loss(
        torch.eye(2), torch.eye(2), torch.tensor([0, 1]), logit_scale=torch.tensor(math.log(3))
    )
    torch.testing.assert_close(loss, torch.tensor(math.log(4 / 3)))


def test_loss_of_three_pairs_two_of_one_caption_by_hand() -> None:
    # Images 0 and 1 share caption 0; scale ln 3, cosines 1 with the own caption and 0 else.
    # To texts (columns t0 t0 t1): images 0, 1: 3/(3+3+1); image 2: 3/(1+1+3).
    # To images: caption 0 finds 3/(3+3+1) at either of its images; caption 1 finds 3/(1+1+3).
    loss = clip_training.contrastive_loss(
        torch.tensor([[1.0, 0.0], [2.0, 0.0], [0.0, 1.0]]),
        torch.eye(2),
        torch.tensor([0, 0, 1]),
        logit_scale=torch.tensor(math.log(3)),
    )
    expected = -(2 * math.log(3 / 7) + math.log(3 / 5)) / 3
    torch.testing.assert_close(loss, torch.tensor(expected))


def test_is_the_loss_of_clip_when_all_captions_differ() -> None:
    images, texts = torch.randn(6, 5), torch.randn(6, 5)
    order = torch.randperm(6)
    logits = 7 * F.normalize(images, dim=1) @ F.normalize(texts, dim=1)[order].T
    target = torch.arange(6)
    expected = (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 2
    loss = clip_training.contrastive_loss(images, texts, order, logit_scale=torch.tensor(7.0))
    torch.testing.assert_close(loss, expected)


def test_agrees_with_a_plain_loop_over_the_equation() -> None:
    caption_of = torch.tensor([0, 2, 1, 0, 2, 2])
    images, texts = torch.randn(6, 4).double(), torch.randn(3, 4).double()
    cosines = F.cosine_similarity(images[:, None], texts[caption_of][None], dim=2)
    to_texts = (5 * cosines).log_softmax(dim=1)
    to_images = (5 * cosines).T.log_softmax(dim=1)
    total = 0.0
    for i in range(6):
        positives = [j for j in range(6) if caption_of[i] == caption_of[j]]
        for j in positives:
            total -= (to_texts[i, j] + to_images[i, j]).item() / (2 * 6 * len(positives))
    loss = clip_training.contrastive_loss(
        images, texts, caption_of, logit_scale=torch.tensor(5.0).double()
    )
    assert loss.item() == pytest.approx(total, rel=1e-12)


@pytest.mark.parametrize("name", EMBEDDED)
def test_a_window_of_the_whole_canvas_is_clips_own_embedding(name: str) -> None:
    model = clip_training.build_model(0, name).eval()
    images = torch.randn(2, 3, 192, 192)
    with torch.no_grad():
        torch.testing.assert_close(
            clip_training.encode_windows(model, images, top=0, left=0),
            model.encode_image(images),
            rtol=1e-4,
            atol=1e-5,
        )


def test_a_window_of_a_vit_takes_the_positions_it_lies_at() -> None:
    # Tokens that are alike but for their positions: the window at row 2, column 5 is that of a ViT
    # whose table begins there.
    model = clip_training.build_model(0, "tiny-vit").eval()
    images = torch.randn(1, 3, 32, 48)
    with torch.no_grad():
        there = clip_training.encode_windows(model, images, top=2, left=5)
        table = model.visual.positional_embedding[1:].view(12, 12, -1)
        moved = torch.roll(table, (-2, -5), dims=(0, 1)).flatten(0, 1)
        model.visual.positional_embedding[1:] = moved
        torch.testing.assert_close(
            there, clip_training.encode_windows(model, images, top=0, left=0)
        )


@pytest.mark.parametrize("name", EMBEDDED)
def test_cutting_the_padding_off_leaves_text_features_as_they_are(name: str) -> None:
    model = clip_training.build_model(0, name).eval()
    tokens = open_clip.SimpleTokenizer()(
        ["a star", "a photo of a ring."], context_length=model.context_length
    )
    with torch.no_grad():
        torch.testing.assert_close(
            clip_training.encode_tokens(model, tokens[:, :8]), model.encode_text(tokens)
        )


def test_pairs_of_a_phase_come_in_order_and_share_equal_captions() -> None:
    pairs = curriculum.draw_pairs(TINY, 5, seed=0, workers=0)
    assert len(pairs.images) == len(pairs.caption_of) == TINY.pairs
    assert len(set(pairs.captions)) == len(pairs.captions)
    third = shapes.photo(7, resolution=96, neighbours=(0, 0), attributes=False)
    assert pairs.captions[pairs.caption_of[2]] == third.caption
    # seen at two thirds of its resolution, with the same mean colour
    assert pairs.images.shape == (64, 3, 64, 64)
    assert pairs.images[2].float().mean() == pytest.approx(third.image.mean(), abs=1)


def test_a_larger_canvas_is_kept_for_crops_where_the_phase_asks_for_it() -> None:
    phase = replace(TINY, canvas=112, side=96, pairs=8, steps=2, batch=4, is_cropped=True)
    pairs = curriculum.draw_pairs(phase, 0, seed=0, workers=0)
    whole = shapes.photo(3, resolution=112, neighbours=(0, 0), attributes=False)
    assert (pairs.images[3].permute(1, 2, 0).numpy() == whole.image).all()
    model = clip_training.build_model(0, "tiny-vit")
    seen = []
    model.visual.conv1.register_forward_pre_hook(lambda _, given: seen.append(given[0].shape))
    tokens = open_clip.SimpleTokenizer(context_length=77)
    clip_training.fit(model, pairs, phase, tokenize=tokens, seed=0, log=[].append)
    assert seen == [(4, 3, 96, 96)] * 2


def test_twenty_steps_lower_the_loss_and_the_seed_decides_them() -> None:
    tokenizer = open_clip.SimpleTokenizer(context_length=32)
    pairs = curriculum.draw_pairs(TINY, 0, seed=0, workers=0)
    runs = []
    for _ in range(2):
        model = clip_training.build_model(0)
        runs.append(
            clip_training.fit(model, pairs, TINY, tokenize=tokenizer, seed=0, log=[].append)
        )
    assert sum(runs[0][-5:]) < sum(runs[0][:5]) - 0.5
    assert runs[0] == runs[1]


@pytest.mark.parametrize("name", EMBEDDED)
def test_the_program_writes_weights_that_load_and_reports_on_them(
    tmp_path: Path, name: str
) -> None:
    lines: list[str] = []
    path = tmp_path / "weights.safetensors"
    report = clip_training.pretrain(
        path,
        model_name=name,
        workers=0,
        curriculum=[TINY],
        sizes={"train": 100, "test": 40, "single": 16},
        log=lines.append,
    )
    assert set(report) == {
        "single/top1",
        "test/map_linear_probe",
        "test/map_zero_shot",
        "test/map_zero_shot_local",
        "text/inter_class_cosine",
        "seconds",
    }
    assert any("loss" in line for line in lines)
    assert path.stat().st_size <= 10_000_000
    assert (
        load_backbone(name, pretrained=str(path)).embed_dim == {"tiny": 128, "tiny-vit": 64}[name]
    )
    with safe_open(path, framework="pt") as weights:
        command = shlex.split(weights.metadata()["command"])[3:]
    with pytest.raises(SystemExit):  # every word is known; the last is to be told so
        pretraining.main([*command, "--threads", "0"])
    assert [item.name for item in tmp_path.iterdir()] == [path.name]  # no part file left


def test_help_does_not_import_open_clip() -> None:
    program = (
        "import sys, runpy; sys.argv = ['x', '--help']\n"
        "try: runpy.run_module('dclip.world.pretraining', run_name='__main__')\n"
        "except SystemExit: pass\n"
        "assert 'open_clip' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, check=True)
    assert b"--output" in done.stdout


def test_a_folder_that_does_not_exist_is_refused_before_any_work(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit, match="2"):
        pretraining.main(["--output", str(tmp_path / "missing" / "tiny.safetensors")])
    assert "in a folder that exists" in capsys.readouterr().err


def test_the_packaged_weights_are_small_and_say_how_they_were_made() -> None:
    folder = importlib.resources.files("dclip.world")
    with importlib.resources.as_file(folder / "tiny_clip.safetensors") as path:
        assert path.stat().st_size <= 10_000_000
        with safe_open(path, framework="pt") as weights:
            metadata = weights.metadata()
    # the module was dclip.pretraining then
    assert metadata["command"].startswith("python -m dclip.pretraining --seed 0")
    config = json.loads((folder / "tiny_clip.json").read_text())
    assert config["vision_cfg"]["image_size"] == shapes.RESOLUTION


def test_the_packaged_clip_names_single_objects_and_confuses_its_class_names_as_clip_does() -> None:
    backbone = load_backbone("tiny")
    drawn = [shapes.scene("single", index) for index in range(64)]
    mean, std = (torch.tensor(v).view(1, 3, 1, 1) for v in (backbone.mean, backbone.std))
    images = torch.stack([torch.from_numpy(scene.image).permute(2, 0, 1) for scene in drawn])
    embedding = backbone.encode_images((images.float() / 255 - mean) / std).embedding
    texts = encode_class_names(backbone, shapes.CLASS_NAMES)
    answers = (F.normalize(embedding, dim=1) @ texts.T).argmax(dim=1)
    truth = torch.tensor([scene.objects[0].class_index for scene in drawn])
    assert (answers == truth).float().mean() >= 0.9  # 0.9925 on all 400
    assert 0.5 < inter_class_cosine(texts) < 0.85  # 0.74: something is left to disentangle

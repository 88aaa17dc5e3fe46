"""MaPLe and DAPT: what they start as, what trains, what they refuse, whom they answer for."""

import copy
import hashlib
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from dclip.backbones import Tower, load_backbone
from dclip.backbones.clip import OpenCLIPBackbone
from dclip.data.pixels import normalise
from dclip.fitting.batches import Batch
from dclip.fitting.fit import fit, scores_of
from dclip.fitting.loop import Loop
from dclip.fitting.pack import Pack
from dclip.methods.method import Task, initial
from dclip.methods.pixels.dapt import DAPT, grad_cam
from dclip.methods.pixels.maple import MaPLe
from dclip.methods.pixels.settings import DAPTSettings, MaPLeSettings

NAMES = ("cat", "traffic_light", "red boat")
KINDS = [MaPLe, DAPT]


@pytest.fixture(scope="module")
def backbone() -> OpenCLIPBackbone:
    """A CLIP of random weights: 4 blocks of width 24 that see 4 x 4 patches, 3 of width 16."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = open_clip.CLIP(
            embed_dim=20,
            vision_cfg={
                "layers": 4, "width": 24, "head_width": 8, "image_size": 32, "patch_size": 8,
            },
            text_cfg={"width": 16, "heads": 2, "layers": 3},
            quick_gelu=True,
        )  # fmt: skip
    return OpenCLIPBackbone(model, open_clip.SimpleTokenizer(), name="small")


def task_of(backbone: OpenCLIPBackbone, names: Sequence[str] = NAMES) -> Task:
    return Task.of(backbone, [[name] for name in names])


def batch_of(images: int = 6, seed: int = 0, **changes: Any) -> Batch:
    random = torch.Generator().manual_seed(seed)
    pixels = torch.randint(256, (images, 32, 32, 3), generator=random, dtype=torch.uint8)
    labels = F.one_hot(torch.arange(images) % len(NAMES), len(NAMES))
    masks = torch.zeros(images, 32, 32, dtype=torch.bool)
    masks[:, 8:24, 4:20] = True
    return Batch(torch.empty(images, 0, 0), labels, pixels=pixels, masks=masks)._replace(**changes)


def fresh(kind: type[Any], task: Task, **own: Any) -> Any:
    return initial(kind, kind.Settings(**own), task, seed=0)


@pytest.mark.parametrize(
    ("depth", "count"), [(1, 395_008), (3, 1_185_024), (None, 3_555_072), (12, 4_740_096)]
)
def test_numbers_of_weights_are_those_of_the_authors(
    depth: int | None, count: int, backbone: OpenCLIPBackbone
) -> None:
    as_large = copy.copy(backbone)
    as_large.text_tower, as_large.image_tower = Tower(512, 12), Tower(768, 12)  # ViT-B/16
    task = replace(task_of(backbone), backbone=as_large)
    method = MaPLe(MaPLeSettings(depth=depth), task)
    assert sum(weight.numel() for weight in method.parameters()) == count


def test_it_starts_at_clips_own_texts_where_prompts_enter_the_first_block_alone(
    backbone: OpenCLIPBackbone,
) -> None:
    for length in (1, 4):
        method = fresh(MaPLe, task_of(backbone), depth=1, context_length=length)
        texts = [f"a photo of a {name.replace('_', ' ')}." for name in NAMES]
        torch.testing.assert_close(method.texts(), backbone.encode_texts(texts))
    # random vectors stand before the name alone
    method = fresh(MaPLe, task_of(backbone), depth=1, initial="random", context_length=5)
    ids = backbone.tokenize([f"X X X X X {name.replace('_', ' ')}." for name in NAMES])
    words = backbone.embed_tokens(ids)
    words = torch.cat([words[:, :1], method.context.expand(3, -1, -1), words[:, 6:]], 1)
    torch.testing.assert_close(method.texts(), backbone.encode_embedded(words, ids))
    assert 0.01 < float(method.context.detach().std()) < 0.03


def test_prompts_enter_as_many_blocks_as_the_smaller_tower_has(backbone: OpenCLIPBackbone) -> None:
    task = task_of(backbone)
    assert len(fresh(MaPLe, task).couplings) == 3
    with pytest.raises(ValueError, match=r"^MaPLe: .* 4 blocks, .* has 3; use a depth of at most"):
        fresh(MaPLe, task, depth=4)
    method = fresh(MaPLe, task)
    deeper = method.couplings[1:]
    assert all(torch.equal(deeper[0].weight, each.weight) for each in deeper)
    assert len({id(each) for each in deeper}) == len(deeper)


@pytest.mark.parametrize("kind", KINDS)
def test_a_clip_without_a_vit_is_refused_by_name(kind: type[Any]) -> None:
    task = Task.of(load_backbone("tiny"), [["cat"]])
    need = "attention" if kind is DAPT else "visual prompts"
    with pytest.raises(ValueError, match=f"^{kind.Settings.title} needs {need}, .* backbone tiny"):
        fresh(kind, task)
    with pytest.raises(ValueError, match="give it a task that has the backbone"):
        fresh(kind, Task.of_features(["cat"], torch.ones(2, 128)))


@pytest.mark.parametrize("kind", KINDS)
def test_vectors_that_would_overwrite_a_name_are_refused(
    kind: type[Any], backbone: OpenCLIPBackbone
) -> None:
    task = task_of(backbone)
    for template, room in (("a photo of a {}.", 4), ("a {}", 1), ("{} on a photo", 0)):
        reason = rf"{room} tokens? stand.*overwrite class 'cat'; use .* of at most {room}"
        with pytest.raises(ValueError, match=reason):
            fresh(kind, task, template=template, context_length=room + 1)
    if kind is DAPT:  # deep prompts go through these texts, too
        with pytest.raises(ValueError, match=r"3 tokens stand .* overwrite text 'a clean origami"):
            fresh(kind, task, context_length=4)


@pytest.mark.parametrize("kind", KINDS)
def test_images_of_no_class_or_several_are_refused_and_counted(
    kind: type[Any], backbone: OpenCLIPBackbone
) -> None:
    method, labels = fresh(kind, task_of(backbone)), batch_of().labels.clone()
    labels[0], labels[1, :2], labels[2], labels[3, 0] = 0, 1, 1, -1
    with pytest.raises(
        ValueError, match=r"of 6 images there are 2 with no class, 2 with several .* 1 with unknown"
    ):
        method.losses(batch_of(labels=labels))


@pytest.mark.parametrize("workers", [2, 7])
@pytest.mark.parametrize("epoch", [0, 7])
@pytest.mark.parametrize("kind", KINDS)
def test_shares_of_workers_sum_to_the_whole_batch(
    kind: type[Any], epoch: int, workers: int, backbone: OpenCLIPBackbone
) -> None:
    method, whole = fresh(kind, task_of(backbone)), batch_of(epoch=epoch, total=6)
    weights = list(method.parameters())

    def of(batch: Batch) -> tuple[Tensor, list[Tensor]]:
        losses = method.losses(batch)
        gradients = torch.autograd.grad(losses["loss"], weights, allow_unused=True)
        kept = [
            torch.zeros_like(w) if g is None else g for w, g in zip(weights, gradients, strict=True)
        ]
        return torch.stack(list(losses.values())), kept

    expected, gradients = of(whole)
    sums, summed = torch.zeros_like(expected), [torch.zeros_like(each) for each in weights]
    for rank in range(workers):  # the seventh has no image
        share = Batch(*(v[rank::workers] if isinstance(v, Tensor) else v for v in whole))
        values, own = of(share._replace(workers=workers))
        sums += values
        summed = [one + other for one, other in zip(summed, own, strict=True)]
    torch.testing.assert_close(sums, expected, rtol=1e-5, atol=1e-6)
    for one, other in zip(summed, gradients, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_other_classes_are_asked_by_the_same_prompts_and_texts_are_encoded_once(
    kind: type[Any], backbone: OpenCLIPBackbone, monkeypatch: pytest.MonkeyPatch
) -> None:
    method = fresh(kind, task_of(backbone))
    with torch.no_grad():
        for name, value in method.derived().items():
            method.get_buffer(name).copy_(value)
    some = method.for_classes(task_of(backbone, [NAMES[2], NAMES[0]]))
    assert torch.equal(some.class_features(), method.kept[[2, 0]])
    other = method.for_classes(task_of(backbone, ["owl", *NAMES]))
    torch.testing.assert_close(other.kept[1:], method.kept, rtol=1e-5, atol=1e-6)
    calls: list[int] = []
    encode = backbone.encode_embedded

    def counted(*given: Any) -> Tensor:
        calls.append(1)
        return encode(*given)

    monkeypatch.setattr(backbone, "encode_embedded", counted)
    with torch.no_grad():
        scores = other.scores(batch_of())
        assert torch.equal(scores, other.scores(batch_of()))
    assert not calls
    torch.testing.assert_close(scores.sum(1), torch.ones(6))
    # asked of four classes, the three share what the fourth leaves
    with torch.no_grad():
        alone = method.scores(batch_of())
    left = scores[:, 1:] / scores[:, 1:].sum(1, keepdim=True)
    torch.testing.assert_close(left, alone, rtol=1e-4, atol=1e-6)


class Pictures:
    """Images in memory, to train on."""

    grid, views = (0, 0), 1

    def __init__(self, batch: Batch) -> None:
        self.labels, self._batch = batch.labels, batch

    def local(self, *_: Any) -> Tensor:
        raise NotImplementedError

    def pixels(self, rows: np.ndarray, *_: Any) -> Tensor:
        assert self._batch.pixels is not None
        return self._batch.pixels[torch.from_numpy(rows)]


@pytest.mark.parametrize("kind", KINDS)
def test_the_loop_trains_them_and_clip_stays_as_it_is(
    kind: type[Any], backbone: OpenCLIPBackbone
) -> None:
    weights = {name: value.clone() for name, value in backbone.model.state_dict().items()}
    source, rows = Pictures(batch_of(12)), np.arange(12)
    loop = Loop(epochs=8, batch_size=6, lr=0.01, warmup_epochs=0)
    pack = Pack(kind, [kind.Settings(logit_scale=20.0)], loop, task_of(backbone), seeds=[0])
    losses: list[float] = []
    fit(pack, source, rows, seed=0, on_epoch=lambda reports: losses.append(reports[0].loss))  # type: ignore[arg-type]
    assert losses[-1] < 0.8 * losses[0]
    method = pack.method()
    assert method.task.backbone is backbone  # and not a copy of it
    torch.testing.assert_close(
        pack.predict(source, rows)[0],  # type: ignore[arg-type]
        scores_of(method, source, rows),  # type: ignore[arg-type]
    )
    for name, value in backbone.model.state_dict().items():
        assert torch.equal(value, weights[name]), name
    assert all(weight.grad is None for weight in backbone.model.parameters())


def test_foregrounds_teach_the_texts_alone_and_backgrounds_both(
    backbone: OpenCLIPBackbone,
) -> None:
    method = fresh(DAPT, task_of(backbone), mask_source="file")
    losses = method.losses(batch_of(epoch=7))
    visual, textual = list(method.couplings.parameters()), [method.context, *method.deep]
    of = {
        name: [
            torch.autograd.grad(losses[name], part, retain_graph=True, allow_unused=True)
            for part in (visual, textual)
        ]
        for name in ("foreground", "background", "triplet")
    }
    assert all(each is None for each in of["foreground"][0])
    assert any(float(each.abs().sum()) > 0 for each in of["foreground"][1])
    for part in (0, 1):
        assert any(float(each.abs().sum()) > 0 for each in of["background"][part])
    # L_v teaches the images, and text vectors only as far as those of images are made of them
    assert any(float(each.abs().sum()) > 0 for each in of["triplet"][0])
    first = method.losses(batch_of(epoch=6))
    torch.testing.assert_close(first["loss"], first["main"] + 0.8 * first["triplet"])
    expected = losses["main"] + 0.1 * losses["foreground"] + 0.5 * losses["background"]
    torch.testing.assert_close(losses["loss"], expected)


def test_images_without_foreground_or_background_are_left_out_and_counted(
    backbone: OpenCLIPBackbone,
) -> None:
    method, batch = fresh(DAPT, task_of(backbone), mask_source="file"), batch_of(epoch=7)
    assert batch.masks is not None
    masks = batch.masks.clone()
    masks[0], masks[1] = False, True
    found = method.losses(batch._replace(masks=masks))
    rest = Batch(*(v[2:] if isinstance(v, Tensor) else v for v in batch))
    alone = method.losses(rest._replace(total=6))
    for name in ("triplet", "foreground", "background"):
        torch.testing.assert_close(found[name], alone[name])
    assert float(found["unmasked"]) == pytest.approx(2 / 6)
    used = fresh(DAPT, task_of(backbone), mask_source="file", empty_masks="use")
    with_blanks = used.losses(batch._replace(masks=masks))
    assert with_blanks["triplet"] > found["triplet"]
    with pytest.raises(ValueError, match=r"masks \[6, 16, 32\] do not fit images \[6, 32, 32\]"):
        method.losses(batch._replace(masks=masks[:, :16]))
    with pytest.raises(ValueError, match=r"there are none beside these images; .* gradcam"):
        method.losses(batch._replace(masks=None))
    # Grad-CAM needs none
    assert fresh(DAPT, task_of(backbone)).losses(batch._replace(masks=None))["loss"].isfinite()


def test_blank_is_clips_mean_colour(backbone: OpenCLIPBackbone) -> None:
    method = fresh(DAPT, task_of(backbone), mask_source="file")
    seen: list[Tensor] = []
    images = method.images
    method.images = lambda given, **rest: seen.append(given) or images(given, **rest)  # type: ignore[func-returns-value]
    batch = batch_of()
    method.losses(batch)
    whole, front, behind = seen
    mask, whole_again = batch.masks, normalise(batch.pixels, backbone.mean, backbone.std)  # type: ignore[arg-type]
    assert torch.equal(whole, whole_again)
    torch.testing.assert_close(front + behind, whole)
    assert (front.permute(0, 2, 3, 1)[~mask] == 0).all()  # type: ignore[operator]
    assert (behind.permute(0, 2, 3, 1)[mask] == 0).all()


def test_words_of_the_background_that_are_classes_are_no_background(
    backbone: OpenCLIPBackbone,
) -> None:
    task = task_of(backbone, ["Sky", "cat", "glasses"])
    method = fresh(DAPT, task)
    assert len(method.background) == 30
    assert method.split == 0
    author = fresh(DAPT, task, **DAPTSettings.presets["author"].own)
    assert len(author.background) == 32
    assert author.split == 7
    with pytest.raises(ValueError, match="all background_words are classes; give others"):
        fresh(DAPT, task, background_words=("sky",))
    with pytest.raises(ValueError, match="2 background_words, of which 3 cannot be"):
        DAPTSettings(background_words=("sea", "sky"), background_split=3)


def test_grad_cam_worked_by_hand() -> None:
    # two patches beside each other, two channels; the mean gradients are (2, -1):
    # (1, 0) says 2, (1, 1) says 1, (0, 5) says less than nothing
    gradients = torch.tensor([[[1.0, -2.0], [3.0, 0.0]]]).expand(2, -1, -1)
    activations = torch.tensor([[[1.0, 0.0], [1.0, 1.0]], [[0.0, 5.0], [0.0, 5.0]]])
    of = {"grid": (1, 2), "size": (1, 5)}
    found = grad_cam(activations, gradients, **of)  # type: ignore[arg-type]
    expected = torch.tensor([[[1.0, 0.875, 0.75, 0.625, 0.5]], [[0.0] * 5]])
    torch.testing.assert_close(found, expected)
    weak = torch.stack([activations[0], activations[0] / 4])
    by_batch = grad_cam(weak, gradients, maximum="batch", **of)  # type: ignore[arg-type]
    torch.testing.assert_close(by_batch[0], expected[0], atol=1e-6, rtol=0)
    torch.testing.assert_close(by_batch[1], expected[0] / 4, atol=1e-6, rtol=0)
    by_image = grad_cam(weak, gradients, **of)  # type: ignore[arg-type]
    torch.testing.assert_close(by_image[1], expected[0])


def test_saliency_is_the_slope_of_the_own_class(backbone: OpenCLIPBackbone) -> None:
    """Against finite differences of the last block, its attention fed other tokens."""
    method = fresh(DAPT, task_of(backbone)).double()
    backbone.model.double()
    try:
        images = normalise(batch_of(2).pixels, backbone.mean, backbone.std).double()  # type: ignore[arg-type]
        texts, labels = method.texts().detach(), torch.tensor([2, 0])
        _, saliency = method.saliency(images, texts, labels)
        block = backbone.model.visual.transformer.resblocks[-1]
        entered: list[Tensor] = []

        def logit(change: Tensor) -> Tensor:
            hook = block.ln_1.register_forward_hook(
                lambda _, __, out: entered.append(out) or out + change  # type: ignore[func-returns-value]
            )
            with torch.no_grad():
                found = method.logits(method.images(images).embedding, texts)
            hook.remove()
            return found[[0, 1], labels]

        tokens = 1 + 16 + 2
        logit(torch.zeros(2, tokens, 24, dtype=torch.float64))
        gradients = torch.zeros(2, 16, 24, dtype=torch.float64)
        step = 1e-5
        for patch in range(16):
            for channel in range(24):
                change = torch.zeros(2, tokens, 24, dtype=torch.float64)
                change[:, 1 + patch, channel] = step
                gradients[:, patch, channel] = (logit(change) - logit(-change)) / (2 * step)
        expected = grad_cam(entered[0][:, 1:17], gradients, grid=(4, 4), size=(32, 32))
        torch.testing.assert_close(saliency, expected, rtol=1e-5, atol=1e-6)
    finally:
        backbone.model.float()


def test_a_pack_of_several_is_refused_where_grad_cam_differentiates(
    backbone: OpenCLIPBackbone,
) -> None:
    with torch.no_grad(), pytest.raises(ValueError, match="not in a pack of several"):
        fresh(DAPT, task_of(backbone)).losses(batch_of())


def test_the_golden_files_are_those_of_the_readme(golden: Path) -> None:
    told = (golden / "README.md").read_text()
    for path in sorted(golden.glob("*.npz")):
        assert f"| {path.name} | {hashlib.sha256(path.read_bytes()).hexdigest()[:16]} |" in told


def test_a_training_that_ends_in_the_first_phase_says_so() -> None:
    author = DAPTSettings.presets["author"]
    settings = DAPTSettings(**author.own)
    (told,) = settings.remarks(Loop(**{**author.loop, "epochs": 5}))
    assert told.startswith("5 epochs end in the first phase of 7: L_f and L_b are never trained")
    assert not settings.remarks(Loop(**author.loop))
    assert not MaPLeSettings().remarks(Loop(epochs=5))


@pytest.mark.parametrize("kind", KINDS)
def test_images_of_several_classes_are_refused_before_any_step(
    kind: type[Any], backbone: OpenCLIPBackbone
) -> None:
    batch = batch_of(12)
    batch.labels[11] = 1
    pack = Pack(kind, [kind.Settings()], Loop(epochs=1), task_of(backbone), seeds=[0])
    with pytest.raises(ValueError, match=r"of 12 images there are 1 with several classes"):
        fit(pack, Pictures(batch), np.arange(12), seed=0)  # type: ignore[arg-type]
    assert pack.step == 0


@pytest.mark.parametrize("kind", KINDS)
def test_half_precision_trains_to_nearly_the_same(
    kind: type[Any], backbone: OpenCLIPBackbone
) -> None:
    method, batch = fresh(kind, task_of(backbone), logit_scale=20.0), batch_of(epoch=7)
    weights = list(method.parameters())
    found = []
    for enabled in (False, True):
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            losses = method.losses(batch)
            gradients = torch.autograd.grad(losses["loss"], weights)
            assert losses["loss"].dtype == torch.float32
        found.append((losses["loss"].detach(), torch.cat([g.flatten() for g in gradients])))
    (loss, gradient), (other_loss, other) = found
    torch.testing.assert_close(other_loss, loss, rtol=0.02, atol=0)
    assert float(F.cosine_similarity(gradient, other, dim=0)) > 0.98

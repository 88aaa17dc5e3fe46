"""The adapters: their losses against the authors' numbers, what trains, and whom they answer."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from dclip.backbones import Backbone, load_backbone
from dclip.fitting.batches import Batch, MemoryFeatures, read_batch
from dclip.fitting.fit import fit
from dclip.fitting.loop import Loop
from dclip.fitting.pack import Pack
from dclip.logits import masked_cosine, pool_cosines, similarity_maps
from dclip.losses import asymmetric_loss
from dclip.losses.contrastive import (
    dism_loss,
    self_labelled_loss,
    sidm_loss,
    sparsity,
    triplet_loss,
)
from dclip.methods.adapter_settings import DAPTAdapterSettings, SmartCLIPAdapterSettings
from dclip.methods.dapt import DAPTAdapter, parts_of
from dclip.methods.method import Method, Task, initial
from dclip.methods.settings import of_preset
from dclip.methods.smartclip import SmartCLIPAdapter, straight_through_mask
from dclip.metrics import mask_overlap

NAMES = ("dog", "traffic light", "two white horses")
TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-4}
SMARTCLIP: list[dict[str, Any]] = [
    {},
    {"masks": "free"},
    {"mask_form": "soft"},
    {"projectors": "train", "output_dim": 32},
    {"projectors": "train", "masks": "free"},
]
CASES = [
    *((SmartCLIPAdapter, own) for own in SMARTCLIP),
    (SmartCLIPAdapter, {"objective": "captions"}),
    (DAPTAdapter, {}),
    (DAPTAdapter, {"first_phase": 1}),
]
BY_LABELS = [case for case in CASES if case[1].get("objective") != "captions"]
CAPTIONS = [("a dog",), (), ("two horses", "white horses"), ("a street", "a light", "red")] * 4


@pytest.fixture(scope="module")
def backbone() -> Backbone:
    return load_backbone("tiny")


@pytest.fixture
def task(backbone: Backbone) -> Task:
    return Task.of(backbone, [[name] for name in NAMES])


def scene(images: int = 16) -> MemoryFeatures:
    generator = torch.Generator().manual_seed(0)
    local = torch.randn(images, 5, 128, generator=generator)
    labels = torch.randint(-1, 2, (images, len(NAMES)), generator=generator)
    embeddings = torch.randn(images, 128, generator=generator)
    return MemoryFeatures(
        local, labels, grid=(2, 2), embeddings=embeddings, captions=CAPTIONS[:images]
    )


def batch_of(features: MemoryFeatures) -> Batch:
    rows = np.arange(len(features))
    batch = read_batch(features, rows, ("local", "embedding", "captions"))
    return batch._replace(known=int((features.labels >= 0).sum()))


def arrays_of(golden: Path, name: str, dtype: torch.dtype) -> dict[str, Tensor]:
    with np.load(golden / f"{name}.npz") as stored:
        found = {key: torch.from_numpy(stored[key]) for key in stored.files}
    return {k: v.to(dtype) if v.is_floating_point() else v for k, v in found.items()}


def assert_close(found: Tensor, expected: Tensor, name: str) -> None:
    """Relative to the largest entry: what the numbers were recorded for."""
    bound = TOLERANCE[found.dtype] * float(expected.abs().max())
    deviation = float((found.detach() - expected).abs().max())
    assert found.shape == expected.shape, name
    assert deviation <= bound, f"{name} deviates by {deviation:.2g}, {bound:.2g} is allowed"


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("form", ["hard", "soft"])
def test_losses_and_gradients_of_smartclip_are_the_authors(
    form: Any, dtype: torch.dtype, golden: Path
) -> None:
    arrays = arrays_of(golden, "smartclip", dtype)
    given = {
        name: arrays[f"head.input.{name}"].requires_grad_()
        for name in ("image", "text", "mask_logits")
    }
    masks = straight_through_mask(given["mask_logits"], form=form)
    similarity = 100 * masked_cosine(given["image"], given["text"], masks)
    found = {
        "sidm_logits": similarity,
        "dism_logits": similarity.mT,
        "loss_sidm": sidm_loss(similarity),
        "loss_dism": dism_loss(similarity),
        "loss_sparsity": sparsity(masks),
    }
    matching = found["loss_sidm"] + found["loss_dism"]
    found["loss_total"] = 10 * matching + 2 * found["loss_sparsity"]
    gradients = torch.autograd.grad(found["loss_total"], list(given.values()))
    expected = {name for name in arrays if name.startswith("head.") and f".{form}." in name}
    assert expected == {f"head.out.{form}.{name}" for name in found} | {
        f"head.grad.{form}.total_wrt_{name}" for name in given
    }
    for name, value in found.items():
        assert_close(value, arrays[f"head.out.{form}.{name}"], name)
    for name, gradient in zip(given, gradients, strict=True):
        assert_close(gradient, arrays[f"head.grad.{form}.total_wrt_{name}"], name)


@pytest.mark.parametrize("dtype", TOLERANCE)
def test_losses_of_dapt_are_the_authors(dtype: torch.dtype, golden: Path) -> None:
    arrays = arrays_of(golden, "dapt", dtype)
    scale = arrays["weight.log_logit_scale"].double().exp().to(dtype)
    texts = arrays["out.text_features_all"]
    images, foreground, background = (
        arrays[f"out.{name}_features"] for name in ("image", "foreground", "background")
    )

    def logits(features: Tensor, own: Tensor) -> Tensor:
        return scale * similarity_maps(features[:, None], own)[:, :, 0]

    behind = logits(background, texts[-25:])
    assert torch.equal(behind.argmax(1), arrays["out.background_pseudo_label"])
    found = {
        "logits": logits(images, texts[:-25]),
        "foreground_logits": logits(foreground, texts[:-25]),
        "background_logits": behind,
        "loss_b": self_labelled_loss(behind).mean(),
        "loss_v": triplet_loss(images, foreground, background, margin=1.5).mean(),
    }
    for name, value in found.items():
        assert_close(value, arrays[f"out.{name}"], name)
    # the phases, of the authors' own values
    main, f, b, v = (arrays[f"out.loss_{name}"] for name in ("main", "f", "b", "v"))
    _, own = of_preset(DAPTAdapterSettings, "author")
    assert isinstance(own, DAPTAdapterSettings)
    assert own.first_phase == 7
    assert_close(main + own.triplet_weight * v, arrays["out.epoch6.loss_total"], "epoch 6")
    later = main + own.foreground_weight * f + own.background_weight * b
    assert_close(later, arrays["out.epoch7.loss_total"], "epoch 7")


def test_masked_cosine_is_that_of_masked_features() -> None:
    torch.manual_seed(0)
    images, texts = torch.randn(4, 3, 6).double(), torch.randn(5, 6).double()
    masks = torch.rand(5, 6).double()
    expected = torch.stack(
        [F.cosine_similarity(images * m, t / t.norm(), dim=-1)  # the text is not masked
         for m, t in zip(masks, texts, strict=True)], dim=-1
    )  # fmt: skip
    torch.testing.assert_close(masked_cosine(images, texts, masks), expected)
    torch.testing.assert_close(masked_cosine(images, texts, 1e-7 * masks), expected)
    plain = similarity_maps(images, texts).mT
    torch.testing.assert_close(masked_cosine(images, texts, torch.ones_like(masks)), plain)


@pytest.mark.parametrize("dtype", TOLERANCE)
def test_a_closed_mask_sees_nothing_and_may_open_again(dtype: torch.dtype) -> None:
    image = torch.tensor([[3.0, 4.0, 0.0]], dtype=dtype, requires_grad=True)
    text = torch.tensor([[0.0, 2.0, 0.0], [1.0, 0.0, 0.0]], dtype=dtype, requires_grad=True)
    logits = torch.tensor([[-1.0, -1.0, -1.0], [2.0, -2.0, 0.5]], dtype=dtype, requires_grad=True)
    cosines = masked_cosine(image, text, straight_through_mask(logits))
    torch.testing.assert_close(cosines, torch.tensor([[0.0, 1.0]], dtype=dtype))
    by_image, by_text, by_logits = torch.autograd.grad(cosines[0, 0], [image, text, logits])
    assert torch.equal(by_image, torch.zeros_like(image))
    assert torch.equal(by_text, torch.zeros_like(text))
    # of v.(m t) / |v|: 4 * 1 / 5 where they agree, times the sigmoid's own
    slope = logits[0, 1].sigmoid() * (1 - logits[0, 1].sigmoid())
    expected = torch.zeros_like(logits)
    expected[0, 1] = 0.8 * slope.detach()
    torch.testing.assert_close(by_logits, expected)
    # an image of nothing has no direction
    nothing = torch.zeros(1, 3, dtype=dtype, requires_grad=True)
    found = masked_cosine(nothing, text, straight_through_mask(logits)).sum()
    assert found.item() == 0
    assert all(g.isfinite().all() for g in torch.autograd.grad(found, [nothing, logits]))
    # all masks of a batch closed, where the authors' form is nan
    closed = torch.full((4, 6), -3.0, dtype=dtype, requires_grad=True)
    masks = straight_through_mask(closed)
    similarity = 100 * masked_cosine(torch.randn(4, 6).to(dtype), torch.ones(4, 6).to(dtype), masks)
    total = sidm_loss(similarity) + dism_loss(similarity)
    torch.testing.assert_close(total, 2 * torch.tensor(4.0, dtype=dtype).log())
    assert torch.autograd.grad(total, closed)[0].isfinite().all()


def test_triplet_and_self_labelled_losses_by_hand() -> None:
    x = torch.tensor([[2.0, 0.0], [0.0, 1.0]], requires_grad=True)
    f, b = torch.tensor([[1.0, 0.0], [1.0, 0.0]]), torch.tensor([[-3.0, 0.0], [0.0, 5.0]])
    # distances 0 and 2, then sqrt(2) and 0
    expected = torch.tensor([0.0, 1.5 + 2**0.5])
    found = triplet_loss(x, f, b)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)
    assert torch.autograd.grad(found.sum(), x)[0].isfinite().all()
    assert not triplet_loss(x.detach(), f.requires_grad_(), b.requires_grad_()).requires_grad
    torch.testing.assert_close(
        self_labelled_loss(torch.tensor([[0.0, 0.0], [0.0, 50.0]])),
        torch.tensor([2.0, 1.0]).log(),
    )


def test_overlap_of_masks_by_hand() -> None:
    masks = torch.tensor([[1.0, 1.0, 0.0], [0.0, 1.0, 1.0], [0.0, 0.0, 0.0]])
    assert mask_overlap(masks[:2]) == pytest.approx(1 / 3)
    assert mask_overlap(masks) == pytest.approx(1 / 9)
    assert mask_overlap(torch.ones(3, 2)) == 1
    assert mask_overlap(torch.tensor([[0.5, 0.2], [0.1, 0.4]])) == pytest.approx(0.3 / 0.9)
    with pytest.raises(ValueError, match="at least two masks, got 1"):
        mask_overlap(masks[:1])


def test_numbers_of_weights() -> None:
    task = Task.placeholder([str(n) for n in range(80)], 512)

    def count(kind: type[Method[Any]], **own: Any) -> int:
        method = kind(kind.Settings(**own), task)
        return sum(weight.numel() for weight in method.parameters())

    assert count(SmartCLIPAdapter) == 512 * 513 + 160 == 262_816
    assert count(SmartCLIPAdapter, masks="free") == 80 * 512 + 160 == 41_120
    assert count(SmartCLIPAdapter, projectors="train") == 426_752 + 256 * 257 + 160
    assert count(SmartCLIPAdapter, projectors="train", masks="free") == 426_752 + 80 * 256 + 160
    assert count(DAPTAdapter) == 2 * 512 * 512 + 160 == 524_448


@pytest.mark.parametrize(("kind", "own"), BY_LABELS[:-1])
def test_it_starts_with_the_order_of_frozen_clip(
    kind: type[Any], own: dict[str, Any], task: Task
) -> None:
    method = initial(kind, kind.Settings(**own), task, seed=0)
    features, rows = scene(), np.arange(16)
    batch = batch_of(features)
    watched = method.watch()
    if kind is SmartCLIPAdapter:
        share = watched.pop("mask_open")
        assert share == 1 if own.get("mask_form") != "soft" else 0.5 < share < 1
        assert watched.pop("mask_overlap") == pytest.approx(1)
    assert [*watched] == ["inter_class_cosine"]
    if own.get("projectors") == "train":
        texts = method.model.project_texts(task.positives)
        cosines = similarity_maps(method.model.project_images(batch.local), texts)
    else:
        texts, cosines = task.positives, similarity_maps(batch.local, task.positives)
    pooled = pool_cosines(cosines)
    torch.testing.assert_close(method.pooled(batch), pooled, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(method.scores(batch), (10 * pooled).sigmoid(), rtol=1e-4, atol=1e-4)
    expected = share * texts if own.get("mask_form") == "soft" else texts
    torch.testing.assert_close(method.class_features(), expected)
    # what training images say moves no image before another
    method.prepare(features, rows)
    logits = method.scores(batch).logit()
    assert torch.equal(logits.argsort(0), pooled.argsort(0))
    torch.testing.assert_close(logits.std(0, correction=0), torch.ones(3), rtol=1e-3, atol=0)
    there, known = (batch.labels == 1).sum(0), (batch.labels != -1).sum(0)
    mean = (there.sum() + 1) / (known.sum() + 2)
    often = (there + mean) / (known + 1)
    torch.testing.assert_close(logits.mean(0).sigmoid(), often, rtol=1e-3, atol=0)


@pytest.mark.parametrize("labels", [-1, 0, 1])
def test_it_starts_with_finite_logits_whatever_the_labels(labels: int, task: Task) -> None:
    alike = torch.ones(2, 4, 128)  # two images that are one, of classes never or always there
    features = MemoryFeatures(alike, torch.full((2, 3), labels), grid=(2, 2))
    method = initial(SmartCLIPAdapter, SmartCLIPAdapterSettings(), task, seed=0)
    method.prepare(features, np.arange(2))
    scores = method.scores(Batch(alike, features.labels))
    assert ((scores > 0) & (scores < 1)).all()
    kept = initial(SmartCLIPAdapter, SmartCLIPAdapterSettings(objective="captions"), task, seed=0)
    kept.prepare(features, np.arange(2))
    assert torch.equal(kept.offset, torch.zeros(3))


@pytest.mark.parametrize(("kind", "own"), CASES)
def test_every_weight_takes_a_gradient(kind: type[Any], own: dict[str, Any], task: Task) -> None:
    settings = kind.Settings(**own)
    method = initial(kind, settings, task, seed=0)
    batch = batch_of(scene())._replace(epoch=1)
    losses = method.losses(batch)
    trained = {name: w for name, w in method.named_parameters() if w.requires_grad}
    if own.get("objective") == "captions":
        assert [*trained] == ["mask_map.weight", "mask_map.bias"]
    else:
        logits = method.logits(method.pooled(batch))
        pairs = torch.stack([torch.zeros_like(logits), logits], 1)
        expected = asymmetric_loss(pairs, batch.labels, reduction="mean")
        torch.testing.assert_close(losses["asl"], expected)
    losses["loss"].backward()
    for name, weight in trained.items():
        assert weight.grad is not None, name
        assert (weight.grad != 0).any(), name


@pytest.mark.parametrize(("kind", "own"), BY_LABELS)
def test_two_workers_sum_to_the_loss_of_one(
    kind: type[Any], own: dict[str, Any], task: Task
) -> None:
    method = initial(kind, kind.Settings(**own), task, seed=0)
    batch = batch_of(scene())
    shares = [
        batch._replace(
            local=batch.local[rank::2], labels=batch.labels[rank::2], embedding=None, workers=2
        )
        for rank in range(2)
    ]
    whole, (first, second) = method.losses(batch), map(method.losses, shares)
    for name, value in whole.items():
        torch.testing.assert_close(first[name] + second[name], value, msg=name)


@pytest.mark.parametrize(
    ("kind", "common", "members"),
    [
        (
            SmartCLIPAdapter,
            {"mask_start": 0.0},
            [{}, {"sparsity_weight": 0.5}, {"masks": "free"}],
        ),
        (
            SmartCLIPAdapter,
            {"projectors": "train"},
            [{"output_dim": 8}, {"output_dim": 8, "sparsity_weight": 0.5}, {"output_dim": 16}],
        ),
        (
            SmartCLIPAdapter,
            {"objective": "captions", "mask_start": 0.0},
            [{}, {"sparsity_weight": 50.0}],
        ),
        (
            DAPTAdapter,
            {},
            [{}, {"triplet_weight": 0.0, "threshold": 0.3}, {"first_phase": 1},
             {"first_phase": 1, "foreground_weight": 1.0, "background_weight": 0.0}],
        ),
    ],
)  # fmt: skip
def test_members_of_a_pack_end_as_each_would_alone(
    kind: type[Any], common: dict[str, Any], members: list[dict[str, Any]], task: Task
) -> None:
    features, rows = scene(), np.arange(16)
    settings = [kind.Settings(**common, **own) for own in members]
    loop = Loop(epochs=2, batch_size=8, lr=0.01, warmup_lr=0.01, feature_cutout=0.5,
                # where a gradient is next to nothing, AdamW steps by the sign of its rounding
                optimizer="sgd" if kind is DAPTAdapter else "adamw")  # fmt: skip
    together = Pack(kind, settings, loop, task, seeds=range(len(settings)))
    fit(together, features, rows, seed=0)
    scores = together.predict(features, rows)
    ends = []
    for member, own in enumerate(settings):
        alone = Pack(kind, [own], loop, task, seeds=[member])
        fit(alone, features, rows, seed=0)
        found, expected = together.method(member), alone.method()
        for name, value in expected.state_dict().items():
            torch.testing.assert_close(
                found.state_dict()[name], value, rtol=1e-3, atol=1e-4, msg=name
            )
        torch.testing.assert_close(scores[member], alone.predict(features, rows)[0], atol=1e-3,
                                   rtol=1e-3)  # fmt: skip
        ends.append(scores[member])
    for member, end in enumerate(ends[1:], 1):  # what differs makes a difference
        assert (end - ends[0]).abs().max() > 1e-5, members[member]


def test_phases_of_dapt_train_what_they_say(task: Task) -> None:
    batch = batch_of(scene())
    own = DAPTAdapterSettings(
        first_phase=2, triplet_weight=0.7, foreground_weight=0.2, background_weight=0.3
    )
    method = initial(DAPTAdapter, own, task, seed=0)
    for epoch in range(4):
        terms = method.losses(batch._replace(epoch=epoch))
        assert [*terms] == ["loss", "asl", "triplet", "foreground", "background"]
        extra = 0.7 * terms["triplet"]
        if epoch >= 2:
            extra = 0.2 * terms["foreground"] + 0.3 * terms["background"]
        torch.testing.assert_close(terms["loss"], terms["asl"] + extra)

    def taught(term: str) -> set[str]:
        method.zero_grad()
        method.losses(batch)[term].backward()
        weights = method.named_parameters()
        return {name for name, w in weights if w.grad is not None and (w.grad != 0).any()}

    assert taught("triplet") == {"image_map.weight", "text_map.weight"}  # by way of the pooling
    assert taught("foreground") == {"text_map.weight"}
    assert taught("background") == {"image_map.weight", "text_map.weight"}


def test_terms_of_dapt_are_means_over_present_classes_then_images(task: Task) -> None:
    """Against a loop over images and their classes."""
    torch.manual_seed(0)
    local = torch.randn(3, 6, 128)
    labels = torch.tensor([[1, 0, 1], [0, 1, 0], [0, 0, 0]])
    method = initial(DAPTAdapter, DAPTAdapterSettings(), task, seed=0)
    with torch.no_grad():
        for each in (method.image_map, method.text_map):
            each.weight.copy_(0.05 * torch.randn(128, 128))
    batch = Batch(local, labels, known=9)
    terms = method.losses(batch)
    image_map, text_map = method.image_map.weight.detach(), method.text_map.weight.detach()
    images = F.normalize(local + local @ image_map.T, dim=-1)
    texts = F.normalize(task.positives + task.positives @ text_map.T, dim=-1)
    words = F.normalize(method.background + method.background @ text_map.T, dim=-1)
    scale = method.log_scale.detach().exp()
    expected = dict.fromkeys(("triplet", "foreground", "background"), 0.0)
    for image in range(2):
        present = labels[image].nonzero().flatten().tolist()
        for c in present:
            maps = F.normalize(local[image], dim=-1) @ F.normalize(task.positives[c], dim=-1)
            inside = (maps - maps.min()) / (maps.max() - maps.min()) >= 0.5
            f, b = images[image, inside].mean(0), images[image, ~inside].mean(0)
            cosines = images[image] @ texts[c]
            x = (20 * cosines).softmax(0) @ images[image]
            triplet = F.triplet_margin_loss(
                *(F.normalize(each, dim=0) for each in (x, f, b)), margin=1.5
            )
            behind = 100 * words @ F.normalize(b, dim=0)
            logits = scale * (texts @ F.normalize(f, dim=0) - method.offset.detach())
            own = torch.where(labels[image] == 1, -1, 0)
            own[c] = 1
            pairs = torch.stack([torch.zeros(3), logits])[None]
            # of the three images each is a third
            share = 1 / len(present) / 3
            expected["triplet"] += share * triplet.item()
            expected["background"] += share * F.cross_entropy(behind, behind.argmax()).item()
            expected["foreground"] += share * asymmetric_loss(pairs, own[None]).item() / 3
    for name, value in expected.items():
        assert terms[name].item() == pytest.approx(value, rel=1e-4), name


def test_parts_of_an_image_by_hand() -> None:
    local = torch.tensor([[[2.0, 0.0], [0.0, 3.0], [0.0, 1.0], [-1.0, 0.0]]])
    maps = torch.tensor([[[0.9, 0.5, 0.4, 0.1], [0.3, 0.3, 0.3, 0.3]]])
    found = parts_of(local, maps, threshold=0.5)
    # stretched: 1, 0.5, 0.375, 0; a flat map is all foreground
    torch.testing.assert_close(found.foreground[0, 0], torch.tensor([0.5, 0.5]))
    torch.testing.assert_close(found.background[0, 0], torch.tensor([-0.5, 0.5]))
    assert found.both.tolist() == [[True, False]]
    torch.testing.assert_close(found.foreground[0, 1], torch.tensor([0.0, 0.5]))
    assert torch.equal(found.background[0, 1], torch.zeros(2))
    dropped = torch.tensor([[True, False, False, False]])
    found = parts_of(local, maps, threshold=0.5, dropped=dropped)  # 0.5, 0.4, 0.1: 1, 0.75, 0
    torch.testing.assert_close(found.foreground[0, 0], torch.tensor([0.0, 1.0]))
    torch.testing.assert_close(found.background[0, 0], torch.tensor([-1.0, 0.0]))


def test_images_without_parts_or_labels_leave_the_loss_finite(task: Task) -> None:
    method = initial(DAPTAdapter, DAPTAdapterSettings(first_phase=0), task, seed=0)
    same = torch.ones(2, 4, 128)  # all locations alike: no background
    for labels in (torch.ones(2, 3), torch.zeros(2, 3), -torch.ones(2, 3)):
        batch = Batch(same, labels.int(), known=int((labels >= 0).sum()))
        terms = method.losses(batch)
        assert [terms[name].item() for name in ("triplet", "foreground", "background")] == [0] * 3
        method.zero_grad()
        terms["loss"].backward()
        assert all(w.grad is None or w.grad.isfinite().all() for w in method.parameters())
    alone = Batch(torch.zeros(1, 1, 128), torch.tensor([[1, 0, -1]]), known=2)
    method.zero_grad()
    method.losses(alone)["loss"].backward()
    assert all(w.grad is None or w.grad.isfinite().all() for w in method.parameters())


def test_words_of_the_background_are_encoded_once_and_kept(backbone: Backbone, task: Task) -> None:
    own = DAPTAdapterSettings(background_words=("sky", "Traffic Light", "road"))
    method = initial(DAPTAdapter, own, task, seed=0)
    expected = backbone.encode_texts(["a clean origami sky.", "a clean origami road."])
    torch.testing.assert_close(method.background, expected)  # the other is a class
    assert len(DAPTAdapterSettings().background_words) == 25
    with pytest.raises(ValueError, match=r"all background_words are classes; give others$"):
        DAPTAdapter(DAPTAdapterSettings(background_words=("dog",)), task)
    bare = replace(task, backbone=None)
    with pytest.raises(ValueError, match=r"^DAPT's decoupling .* give it a task that has the back"):
        initial(DAPTAdapter, own, bare, seed=0)
    # which is all that going on and scoring take
    loaded = DAPTAdapter(own, Task.placeholder(NAMES, 128)).with_task(bare)
    loaded.load_state_dict(method.state_dict())
    batch = batch_of(scene())
    assert torch.equal(loaded.scores(batch), method.scores(batch))
    assert torch.equal(loaded.losses(batch)["loss"], method.losses(batch)["loss"])


@pytest.mark.parametrize(("kind", "own"), CASES)
def test_it_says_where_a_class_is(kind: type[Any], own: dict[str, Any], task: Task) -> None:
    method = initial(kind, kind.Settings(**own), task, seed=0)
    with torch.no_grad():
        method.offset.copy_(torch.tensor([0.1, -0.1, 0.3]))
    batch = batch_of(scene())
    odds = method.location_logits(batch.local)
    one = batch._replace(local=batch.local[:, 2:3])  # an image of one location
    torch.testing.assert_close(odds[:, :, 2].sigmoid(), method.scores(one))
    maps = method.location_scores(batch.local)
    assert maps.shape == odds.shape == (16, 3, 5)
    both = replace(task, texts=replace(task.texts, features=task.texts.features[[0, 0, 1, 2]],
                                       classes=torch.tensor([0, 0, 1, 2])))  # fmt: skip
    torch.testing.assert_close(method.with_task(both).location_scores(batch.local), maps)


@pytest.mark.parametrize(("kind", "own"), CASES)
def test_dropped_locations_are_as_if_they_were_not_there(
    kind: type[Any], own: dict[str, Any], task: Task
) -> None:
    method = initial(kind, kind.Settings(**own), task, seed=0)
    batch = batch_of(scene())._replace(epoch=9)
    dropped = torch.zeros(16, 5, dtype=torch.bool)
    dropped[:, 3:] = True
    torch.manual_seed(0)  # which caption is drawn
    found = method.losses(batch._replace(dropped=dropped))
    torch.manual_seed(0)
    expected = method.losses(batch._replace(local=batch.local[:, :3]))
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize(("kind", "own"), CASES)
def test_it_answers_for_its_classes_in_any_order_and_for_others_where_it_can(
    kind: type[Any], own: dict[str, Any], backbone: Backbone, task: Task
) -> None:
    method = initial(kind, kind.Settings(**own), task, seed=0)
    torch.manual_seed(0)
    with torch.no_grad():
        for weight in method.parameters():
            weight.add_(0.1 * torch.randn_like(weight))
    batch = batch_of(scene())
    some = method.for_classes(Task.of(backbone, [[NAMES[2]], [NAMES[0]]]))
    kept = method.scores(batch)
    torch.testing.assert_close(some.scores(batch), kept[:, [2, 0]])
    torch.testing.assert_close(
        some.location_logits(batch.local), method.location_logits(batch.local)[:, [2, 0]]
    )
    new = Task.of(backbone, [["unicorn"], [NAMES[1]]])
    if kind is SmartCLIPAdapter and method.settings.masks == "free":
        reason = (
            r"has masks of the 3 classes it was trained on, and 'unicorn' is none of them; masks "
            "from_text answer for any class$"
        )
        with pytest.raises(ValueError, match=reason):
            method.for_classes(new)
    else:
        asked = method.for_classes(new)
        found = asked.scores(batch)
        torch.testing.assert_close(found[:, 1], kept[:, 1])
        pooled = asked.pooled(batch)[:, 0]
        expected = (method.log_scale.mean().exp() * (pooled - method.offset.mean())).sigmoid()
        torch.testing.assert_close(found[:, 0], expected)
    assert torch.equal(method.scores(batch), kept)  # it is as it was


def test_captions_train_masks_by_what_is_drawn(task: Task, backbone: Backbone) -> None:
    own = SmartCLIPAdapterSettings(objective="captions", sparsity_weight=2.0)
    method = initial(SmartCLIPAdapter, own, task, seed=0)
    with torch.no_grad():
        method.mask_map.weight.copy_(torch.randn(128, 128))
    batch = batch_of(scene(4))
    assert batch.embedding is not None
    torch.manual_seed(3)
    found = method.losses(batch)
    images, options = batch.embedding[[0, 2, 3]], [CAPTIONS[row] for row in (0, 2, 3)]
    matches = []
    for drawn in np.ndindex(*map(len, options)):
        texts = backbone.encode_texts([o[n] for o, n in zip(options, drawn, strict=True)])
        bits = (method.mask_map(F.normalize(texts, dim=-1)) >= 0).float()
        scaled = 100 * masked_cosine(images, texts, bits)
        places = torch.arange(3)
        sidm, dism = F.cross_entropy(scaled, places), F.cross_entropy(scaled.T, places)
        total = 10 * (sidm + dism) + 2 * bits.mean()
        matches.append(total.item() == pytest.approx(found["loss"].item(), rel=1e-4))
    assert sum(matches) == 1
    totals = {method.losses(batch)["loss"].item() for _ in range(30)}
    assert len(totals) == len(matches) == 6  # each may be drawn
    with pytest.raises(ValueError, match="no image of a batch has a caption"):
        method.losses(batch._replace(captions=[(), (), (), ()]))
    with pytest.raises(ValueError, match="encodes captions: give it a task that has the backbone"):
        method.with_task(replace(task, backbone=None)).losses(batch)


def test_what_trains_is_fed_and_what_is_asked_is_not(task: Task) -> None:
    own = SmartCLIPAdapterSettings(objective="captions")
    assert own.training_feeds() == {"embedding", "captions"}
    assert own.feeds == SmartCLIPAdapterSettings().training_feeds() == {"local"}
    loop = Loop(epochs=3, batch_size=8, lr=0.01)
    pack = Pack(SmartCLIPAdapter, [own], loop, task, seeds=[0])
    features = scene()
    bare = MemoryFeatures(features.local(np.arange(16)), features.labels, grid=(2, 2))
    reports = []
    fit(pack, features, np.arange(16), seed=0, on_epoch=lambda ones: reports.append(ones[0].loss))
    assert reports[-1] < reports[0]
    assert pack.predict(bare, np.arange(16)).shape == (1, 16, 3)
    with pytest.raises(ValueError, match="made without global embeddings"):
        fit(Pack(SmartCLIPAdapter, [own], loop, task, seeds=[0]), bare, np.arange(16), seed=0)
    free = SmartCLIPAdapterSettings(objective="captions", masks="free")
    reason = "captions train masks that are made from a text; a free mask has none"
    with pytest.raises(ValueError, match=reason):
        fit(Pack(SmartCLIPAdapter, [free], loop, task, seeds=[0]), features, np.arange(16), seed=0)


def test_settings_say_which_are_idle() -> None:
    labels = SmartCLIPAdapterSettings()
    assert labels.idle() == {"matching_weight", "matching_scale", "hidden_dim", "output_dim"}
    captions = SmartCLIPAdapterSettings(objective="captions", projectors="train")
    assert captions.idle() == {"gamma_neg", "gamma_pos", "clip"}

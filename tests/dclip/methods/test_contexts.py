"""Methods that learn contexts: what trains, what is kept, which classes they answer for."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from dclip.backbones import Backbone, load_backbone
from dclip.fitting.batches import Batch, MemoryFeatures
from dclip.fitting.fit import fit
from dclip.fitting.loop import Loop
from dclip.fitting.pack import Pack
from dclip.losses import mfi_loss
from dclip.methods.dualcoop import DualCoOp
from dclip.methods.method import Method, Task, initial
from dclip.methods.pairs import ContextMethod
from dclip.methods.positivecoop import PositiveCoOp, PositiveCoOpBaseline
from dclip.methods.settings import (
    DualCoOpSettings,
    PositiveCoOpBaselineSettings,
    PositiveCoOpSettings,
)

NAMES = ("dog", "traffic_light", "two white horses")
KINDS = [DualCoOp, PositiveCoOp]


@pytest.fixture(scope="module")
def backbone() -> Backbone:
    return load_backbone("tiny")


def task_of(backbone: Backbone, names: tuple[str, ...] = NAMES) -> Task:
    return Task.of(backbone, [[name] for name in names])


def scene(images: int = 16) -> MemoryFeatures:
    generator = torch.Generator().manual_seed(0)
    local = torch.randn(images, 5, 128, generator=generator)
    labels = torch.randint(-1, 2, (images, len(NAMES)), generator=generator)
    return MemoryFeatures(local, labels, grid=(1, 5))


def batch_of(features: MemoryFeatures) -> Batch:
    labels = features.labels
    rows = np.arange(len(labels))
    return Batch(features.local(rows).float(), labels, known=int((labels >= 0).sum()))


def fresh(kind: type[Any], task: Task, **changes: Any) -> Any:
    return initial(kind, kind.Settings(**{"context_length": 4, **changes}), task, seed=0)


def test_numbers_of_weights_are_those_of_the_papers() -> None:
    task = Task.placeholder([str(n) for n in range(80)], 512, 512)

    def count(method: Method[Any]) -> int:
        return sum(weight.numel() for weight in method.parameters())

    assert count(DualCoOp(DualCoOpSettings(), task)) == 1_310_720
    assert count(DualCoOp(DualCoOpSettings(contexts="shared"), task)) == 16_384
    assert count(PositiveCoOp(PositiveCoOpSettings(), task)) == 737_280
    alone = PositiveCoOpSettings(positive_offset=False)
    assert count(PositiveCoOp(alone, task)) == 737_280 - 80 * 512
    assert count(PositiveCoOpBaseline(PositiveCoOpBaselineSettings(), task)) == 160 * 513


def test_a_context_of_words_makes_the_text_they_make(backbone: Backbone) -> None:
    task = task_of(backbone)
    for contexts in ("shared", "per_class"):
        method = fresh(DualCoOp, task, contexts=contexts)
        for context, words in ((method.positive, "a photo of a"), (method.negative, "no no no no")):
            ids = backbone.tokenize([words])
            with torch.no_grad():
                context.copy_(backbone.embed_tokens(ids)[0, 1:5])
        texts = [f"{words} {name.replace('_', ' ')}." for words in ("no no no no", "a photo of a")
                 for name in NAMES]  # fmt: skip
        expected = backbone.encode_texts(texts)
        torch.testing.assert_close(method.rows(), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_contexts_take_gradients_and_the_tower_none(
    kind: type[ContextMethod[Any]], backbone: Backbone
) -> None:
    before = backbone.fingerprint()
    method = fresh(kind, task_of(backbone), mfi_weight=0.5)
    batch = batch_of(scene())
    losses = method.losses(batch)
    assert [*losses] == ["loss", "asl", "mfi"]
    torch.testing.assert_close(losses["loss"], losses["asl"] + 0.5 * losses["mfi"])
    torch.testing.assert_close(
        losses["mfi"],
        mfi_loss(method.rows(), redundancy_weight=1.0, scope="positive", gram="class",
                 reduction="mean"),
    )  # fmt: skip
    losses["loss"].backward()
    for name, weight in method.named_parameters():
        assert weight.grad is not None, name
        assert (weight.grad != 0).any(), name
    assert all(weight.grad is None for weight in backbone.model.parameters())
    assert backbone.fingerprint() == before
    # a share of the loss of MFI for each worker
    shared = method.losses(batch._replace(workers=4))
    torch.testing.assert_close(shared["mfi"], losses["mfi"] / 4)


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
@pytest.mark.parametrize("kind", KINDS)
def test_members_of_a_pack_end_as_each_would_alone(
    kind: type[ContextMethod[Any]], optimizer: str, backbone: Backbone
) -> None:
    features, task = scene(), task_of(backbone)
    common = {"context_lr_factor": 0.1} if kind is PositiveCoOp else {}
    settings = [
        kind.Settings(**common, **own)
        for own in (
            {"context_length": 4},
            {"context_length": 4, "mfi_weight": 0.5},
            {"context_length": 3},
            {"context_length": 4, "contexts": "shared"},
        )
    ]
    loop = Loop(epochs=2, batch_size=8, lr=0.01, warmup_lr=0.01, optimizer=optimizer)
    rows = np.arange(16)
    together = Pack(kind, settings, loop, task, seeds=[0, 1, 2, 3])
    fit(together, features, rows, seed=0)
    scores = together.predict(features, rows)
    for member, own in enumerate(settings):
        alone = Pack(kind, [own], loop, task, seeds=[member])
        fit(alone, features, rows, seed=0)
        found, expected = together.method(member), alone.method()
        assert found.task.backbone is backbone  # not a copy of it
        for name, value in expected.state_dict().items():
            torch.testing.assert_close(
                found.state_dict()[name], value, rtol=1e-3, atol=1e-4, msg=name
            )
        torch.testing.assert_close(scores[member], alone.predict(features, rows)[0], atol=1e-3,
                                   rtol=1e-3)  # fmt: skip
        torch.testing.assert_close(found.scores(batch_of(features)), scores[member])


@pytest.mark.parametrize("members", [1, 2])
def test_what_is_kept_is_what_the_tower_says_of_the_trained_contexts(
    members: int, backbone: Backbone
) -> None:
    features, task = scene(), task_of(backbone)
    loop = Loop(epochs=2, batch_size=8, lr=0.01, ema_decay=0.5)
    settings = [DualCoOpSettings(context_length=4)] * members
    pack = Pack(DualCoOp, settings, loop, task, seeds=range(members))
    fit(pack, features, np.arange(16), seed=0)
    method = pack.method()
    assert isinstance(method, DualCoOp)
    torch.testing.assert_close(method.kept, method.rows())
    assert method.kept.abs().max() > 0.1
    # which is all that scoring takes
    without = Task.of_features(NAMES, task.pairs)
    bare = DualCoOp(settings[0], Task.placeholder(NAMES, 128, 32)).with_task(without)
    bare.load_state_dict(method.state_dict())
    batch = batch_of(features)
    assert torch.equal(bare.scores(batch), method.scores(batch))
    maps = bare.location_scores(batch.local)
    assert torch.equal(maps, method.location_scores(batch.local))
    odds = bare.location_logits(batch.local)
    assert odds.shape == maps.shape == (16, 3, 5)
    one = batch._replace(local=batch.local[:, 2:3])  # an image of one location
    torch.testing.assert_close(odds[:, :, 2].sigmoid(), bare.scores(one))
    assert torch.equal(bare.class_features(), method.kept[3:])
    with pytest.raises(ValueError, match="runs its backbone's text encoder, which this task has"):
        bare.losses(batch)
    # training goes on from what was kept
    again = Pack(DualCoOp, settings, loop, task, seeds=[7] * members, fresh=False)
    again.load_state_tensors(pack.state_tensors())
    assert torch.equal(
        again.predict(features, np.arange(16)), pack.predict(features, np.arange(16))
    )


def test_a_class_name_of_one_or_several_tokens_may_fill_what_a_context_leaves(
    backbone: Backbone,
) -> None:
    task = task_of(backbone)  # "two white horses." is four tokens, of 32 in all
    fresh(DualCoOp, task, context_length=26).losses(batch_of(scene()))["loss"].backward()
    reason = (
        r"^DualCoOp: a context of 27 vectors leaves 3 of the 32 tokens that tiny reads to a class,"
        r" and 'two white horses' takes 4 with its full stop; use a context_length of at most 26$"
    )
    with pytest.raises(ValueError, match=reason):
        fresh(DualCoOp, task, context_length=27)
    with pytest.raises(ValueError, match=r"^PositiveCoOp: a context of 500 vectors leaves 0 of"):
        fresh(PositiveCoOp, task, context_length=500)


def test_a_backbone_without_text_gradients_is_refused_by_name(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.syspath_prepend(Path(__file__).parents[2] / "pipeline")
    task = task_of(load_backbone("toy_backbone:make"))
    for kind in KINDS:
        reason = rf"^{kind.Settings.title} needs token embeddings, which the backbone toy does not"
        with pytest.raises(ValueError, match=reason):
            fresh(kind, task)
    with pytest.raises(ValueError, match=r"DualCoOp learns vectors among the tokens .* Task.of"):
        fresh(DualCoOp, Task.of_features(NAMES, torch.zeros(6, 16)))
    assert fresh_baseline(task).losses(batch_of(scene())._replace(local=torch.randn(16, 5, 16)))


def fresh_baseline(task: Task, **changes: Any) -> PositiveCoOpBaseline:
    return PositiveCoOpBaseline(PositiveCoOpBaselineSettings(**changes), task)


@pytest.mark.parametrize("kind", [*KINDS, PositiveCoOpBaseline])
def test_it_answers_for_some_of_its_classes_in_any_order(
    kind: type[Any], backbone: Backbone
) -> None:
    task, batch = task_of(backbone), batch_of(scene())
    own = kind.Settings() if kind is PositiveCoOpBaseline else kind.Settings(context_length=4)
    method = initial(kind, own, task, seed=0)
    if kind is not PositiveCoOpBaseline:
        method.kept.copy_(method.rows().detach())
    some = method.for_classes(task_of(backbone, (NAMES[2], NAMES[0])))
    torch.testing.assert_close(some.scores(batch), method.scores(batch)[:, [2, 0]])
    torch.testing.assert_close(
        some.location_logits(batch.local), method.location_logits(batch.local)[:, [2, 0]]
    )
    torch.testing.assert_close(
        some.location_scores(batch.local), method.location_scores(batch.local)[:, [2, 0]]
    )
    assert method.scores(batch).shape == (16, 3)  # it is as it was
    if kind is not DualCoOp or method.settings.contexts == "per_class":
        with pytest.raises(ValueError, match=r"bound to the 3 classes .* and 'unicorn' is none"):
            method.for_classes(task_of(backbone, ("dog", "unicorn")))


def test_shared_contexts_answer_for_any_class_where_the_backbone_is_at_hand(
    backbone: Backbone,
) -> None:
    task, batch = task_of(backbone), batch_of(scene())
    method = fresh(DualCoOp, task, contexts="shared")
    method.kept.copy_(method.rows().detach())
    names = ("unicorn", "dog")
    asked = method.for_classes(task_of(backbone, names))
    other = fresh(DualCoOp, task_of(backbone, names), contexts="shared")
    other.load_state_dict({**method.state_dict(), "kept": other.kept})
    other.kept.copy_(other.rows().detach())
    torch.testing.assert_close(asked.scores(batch), other.scores(batch))
    torch.testing.assert_close(asked.scores(batch)[:, 1], method.scores(batch)[:, 0])
    bare = Task.of_features(names, torch.zeros(4, 128))
    with pytest.raises(ValueError, match="not trained on 'unicorn' and has to encode its text"):
        method.for_classes(bare)
    assert method.for_classes(Task.of_features(("dog",), torch.zeros(2, 128)))


def test_the_context_steps_by_its_own_rate_after_the_warm_up(backbone: Backbone) -> None:
    features, task = scene(8), task_of(backbone)
    settings = PositiveCoOpSettings(
        context_length=4, context_lr_factor=0.01, offset_std=1.0, free_start="normal"
    )
    loop = Loop(epochs=2, batch_size=8, lr=0.1, warmup_lr=0.005, optimizer="sgd", momentum=0.9,
                weight_decay=0.0)  # fmt: skip
    pack = Pack(PositiveCoOp, [settings, settings], loop, task, seeds=[0, 1])
    rows = np.arange(8)
    fit(pack, features, rows, seed=0)
    plain = initial(PositiveCoOp, settings, task, seed=1)
    weights = dict(plain.named_parameters())
    optimizer = torch.optim.SGD(
        [{"params": [weights["positive"]]},
         {"params": [weights["free_negative"], weights["free_positive"]]}],
        lr=0.005, momentum=0.9,
    )  # fmt: skip
    for rates in ((0.005, 0.005), (0.001, 0.1)):
        for group, rate in zip(optimizer.param_groups, rates, strict=True):
            group["lr"] = rate
        optimizer.zero_grad()
        plain.losses(batch_of(features))["loss"].backward()
        optimizer.step()
    for name, value in pack.method(1).named_parameters():
        torch.testing.assert_close(value, weights[name], rtol=1e-3, atol=1e-5, msg=name)


@pytest.mark.parametrize("kind", [*KINDS, PositiveCoOpBaseline])
def test_dropped_locations_are_as_if_they_were_not_there(
    kind: type[Any], backbone: Backbone
) -> None:
    own = kind.Settings() if kind is PositiveCoOpBaseline else kind.Settings(context_length=4)
    method = initial(kind, own, task_of(backbone), seed=0)
    batch = batch_of(scene())
    dropped = torch.zeros(16, 5, dtype=torch.bool)
    dropped[:, 3:] = True
    found = method.losses(batch._replace(dropped=dropped))
    expected = method.losses(batch._replace(local=batch.local[:, :3]))
    torch.testing.assert_close(found["loss"], expected["loss"])


def test_scores_are_in_the_form_of_asl(backbone: Backbone) -> None:
    task, batch = task_of(backbone), batch_of(scene())

    def logits(form: str) -> tuple[Tensor, Tensor, Tensor]:
        method = fresh(DualCoOp, task, asl_form=form)
        method.kept.copy_(method.rows().detach())
        negative, positive = method.pair_logits(batch).unbind(1)
        return method.scores(batch), negative, positive

    scores, negative, positive = logits("pair")
    torch.testing.assert_close(scores, (positive - negative).sigmoid())
    for form in ("sigmoid_positive", "optimised"):
        assert torch.equal(logits(form)[0], positive.sigmoid())
    assert torch.equal(logits("sigmoid_negative")[0], (-negative).sigmoid())


def test_the_baseline_by_hand() -> None:
    # one class, two locations, one dimension: absence -x, presence 2 x + 1
    method = fresh_baseline(Task.of_features(["a"], torch.zeros(2, 1)))
    with torch.no_grad():
        method.linear.weight.copy_(torch.tensor([[-1.0], [2.0]]))
        method.linear.bias.copy_(torch.tensor([0.0, 1.0]))
    found = method.pair_logits(Batch(torch.tensor([[[0.0], [1.0]]]), torch.zeros(1, 1)))
    e = 2.718281828459045
    absent = 5 * -1 / (1 + e)  # scores 0, -1
    present = 5 * (1 + 3 * e**2) / (1 + e**2)  # scores 1, 3
    torch.testing.assert_close(found, torch.tensor([[[absent], [present]]]))


def test_absence_starts_at_what_the_texts_of_presence_share(backbone: Backbone) -> None:
    method = fresh(PositiveCoOp, task_of(backbone))
    rows = method.rows().detach()
    for row in rows[:3]:
        torch.testing.assert_close(row, rows[3:].mean(0))
    noise = fresh(PositiveCoOp, task_of(backbone), free_start="normal", offset_std=1.0)
    assert 0.8 < float(noise.free_negative.detach().std()) < 1.2
    assert 0.8 < float(noise.free_positive.detach().std()) < 1.2


def test_exponents_and_weights_that_would_fail_are_refused() -> None:
    loop = Loop(optimizer="sgd", lr=0.1)
    own = DualCoOpSettings(gamma_pos=0.5, asl_weight_gradient="differentiated")
    with pytest.raises(ValueError, match=r"gamma_pos=0\.5 has no finite gradient"):
        DualCoOp.check(own, loop, 80)
    DualCoOp.check(DualCoOpSettings(gamma_pos=0.5), loop, 80)
    with pytest.raises(ValueError, match="summed MFI loss would diverge"):
        PositiveCoOp.check(PositiveCoOpSettings(mfi_weight=1, mfi_reduction="sum"), loop, 80)
    with pytest.raises(ValueError, match="gamma_neg=0"):
        PositiveCoOpBaseline.check(
            PositiveCoOpBaselineSettings(gamma_neg=0.1, asl_form="optimised"), loop, 80
        )


@pytest.mark.parametrize("settings", [DualCoOpSettings, PositiveCoOpSettings])
def test_mfi_says_which_of_its_settings_are_idle(settings: type[Any]) -> None:
    assert "mfi_scope" in settings().idle()
    assert settings(mfi_weight=0.1).idle() == frozenset()
    assert settings(mfi_weight=0.1, asl_form="optimised").idle() == {"asl_weight_gradient"}

"""Training: the schedule by hand, exact resumption, shares of a batch, a problem it must solve."""

import itertools
import math
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
from torch import Tensor

from dclip.fitting.batches import Batch
from dclip.fitting.fit import (
    DivergenceError,
    EpochReport,
    check_training,
    divergence,
    fit,
    learning_rate,
    share_state,
)
from dclip.losses import asymmetric_loss, mfi_loss
from dclip.methods.dclip import DCLIPMethod
from dclip.methods.method import Task, initial
from dclip.metrics import mean_average_precision
from dclip.model import DCLIP
from dclip.training import Recipe, Training, predict

CLASSES, DIM, GRID = 4, 16, (2, 3)
LOCATIONS = GRID[0] * GRID[1]


class Cache:
    """Scenes of two locations with an object each; an object is its class direction plus noise.

    View v of an image is the clean one, the first, plus v times noise of its own.
    """

    grid = GRID

    def __init__(
        self, images: int, seed: int = 0, *, views: int = 1, noise: float = 0.0, tokens: int = 0
    ) -> None:
        self.views = views
        random = torch.Generator().manual_seed(seed)
        directions = torch.eye(DIM)[:CLASSES] * 3
        self.labels = torch.zeros(images, CLASSES, dtype=torch.uint8)
        self.features = torch.randn(images, LOCATIONS, DIM, generator=random) * 0.3
        for image in range(images):
            for location in range(2):
                kind = int(torch.randint(CLASSES, (1,), generator=random))
                self.labels[image, kind] = 1
                self.features[image, location] += directions[kind]
        self.noise = noise * torch.randn(views, *self.features.shape, generator=random)
        self.noise[0] = 0
        if tokens:
            means = self.features.mean(1, keepdim=True).expand(-1, tokens, -1)
            self.features = torch.cat([means, self.features], 1)
            self.noise = torch.nn.functional.pad(self.noise, (0, 0, tokens, 0))

    def local(self, rows: np.ndarray, views: np.ndarray | None = None) -> Tensor:
        chosen = np.zeros_like(rows) if views is None else views
        noise = self.noise[torch.as_tensor(chosen), torch.as_tensor(rows)]
        return (self.features[torch.as_tensor(rows)] + noise).half()


def texts() -> Tensor:
    """Prompt pairs as CLIP's: they mostly agree, and lean towards what they name."""
    random = torch.Generator().manual_seed(5)
    positive = 1 + 2 * torch.eye(DIM)[:CLASSES]
    positive = positive + 0.3 * torch.randn(CLASSES, DIM, generator=random)
    negative = positive + 0.1 * torch.randn(CLASSES, DIM, generator=random)
    return torch.cat([negative, positive])


def train(  # type: ignore[no-untyped-def]
    recipes: Recipe | list[Recipe], cache: Cache, *, seeds: list[int] | None = None, **options
) -> tuple[Training, list[list[EpochReport]]]:
    several = [recipes] if isinstance(recipes, Recipe) else recipes
    training = Training(several, texts(), seeds=seeds or [1] * len(several))
    reports: list[list[EpochReport]] = []
    rows = np.arange(len(cache.labels))
    fit(training, cache, rows, seed=3, on_epoch=reports.append, **options)
    return training, reports


def initial_method(recipe: Recipe, *, seed: int) -> DCLIPMethod:
    task = Task.of_features([str(number) for number in range(CLASSES)], texts())
    return initial(DCLIPMethod, recipe.method, task, seed=seed)  # type: ignore[return-value]


def initial_model(recipe: Recipe, texts: Tensor, *, seed: int) -> DCLIP:
    return initial_method(recipe, seed=seed).model


def values(report: EpochReport) -> list[float]:
    """All but the speed."""
    return [*report.losses.values(), *report.watched.values(), report.lr, report.val_map]


def weights(training: Training, member: int = 0) -> dict[str, Tensor]:
    return training.model(member).state_dict()


def test_the_schedule_is_a_constant_warm_up_and_a_cosine_counted_from_its_end() -> None:
    recipe = Recipe(epochs=4, warmup_epochs=1, lr=0.1, warmup_lr=0.001)
    # cos(0) = 1; cos(pi/4) = sqrt(1/2); cos(pi/2) = 0
    expected = [0.001, 0.1, 0.05 * (1 + math.sqrt(0.5)), 0.05]
    assert [learning_rate(recipe, epoch) for epoch in range(4)] == pytest.approx(expected)


def test_author_is_the_published_recipe() -> None:
    recipe = Recipe(preset="author")
    assert (recipe.optimizer, recipe.lr, recipe.momentum, recipe.weight_decay) == (
        "sgd", 0.002, 0.9, 5e-4,
    )  # fmt: skip
    assert (recipe.epochs, recipe.batch_size, recipe.warmup_epochs, recipe.warmup_lr) == (
        50, 32, 1, 1e-5,
    )  # fmt: skip
    assert (recipe.asl_weight, recipe.asl_reduction) == (0.05, "sum")
    assert (recipe.gamma_neg, recipe.gamma_pos, recipe.clip) == (2, 1, 0.05)
    assert (recipe.mfi_weight, recipe.redundancy_weight) == (7e-5, 0.2)
    assert (recipe.mfi_scope, recipe.mfi_gram, recipe.mfi_reduction) == ("both", "feature", "sum")


def test_it_learns_scenes_that_frozen_features_confuse() -> None:
    cache = Cache(512)
    recipe = Recipe(epochs=12, lr=1e-2, batch_size=16, hidden_dim=32, output_dim=16, mfi_weight=0.3)
    training, reports = train([recipe] * 4, cache, seeds=[0, 1, 2, 3], val_rows=np.arange(64))
    lines = [[report.line() for report in reports[epoch]] for epoch in (0, -1)]
    before, after = ({key: np.mean([one[key] for one in e]) for key in e[0]} for e in lines)
    assert after["val_map"] > 0.95
    assert after["val_map"] > before["val_map"]
    assert after["loss"] < before["loss"]
    assert after["inter_class_cosine"] < 0.1
    held_out = Cache(64, seed=9)
    scores = predict(training.model(), held_out, np.arange(64), texts())
    assert ((scores > 0.5) == held_out.labels.bool()).float().mean() > 0.85


@pytest.mark.parametrize("label", [0, -1])
def test_held_out_images_without_a_class_give_no_map(label: int) -> None:
    cache = Cache(16)
    cache.labels = cache.labels.to(torch.int8)
    cache.labels[:4] = label
    _, ((report,),) = train(Recipe(epochs=1, output_dim=4), cache, val_rows=np.arange(4))
    assert math.isnan(report.val_map)


# ---------------------------------------------------------------------------------------------
# One member is the plain method: stacked weights against the model, gradients by finite differences
# ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("aggregation", ["project_then_pool", "pool_then_project"])
def test_stacked_members_give_the_outputs_of_their_models(aggregation: str) -> None:
    recipes = [
        Recipe.model_validate({"preset": "robust", "aggregation": aggregation, "output_dim": dim})
        for dim in (8, 4, 8)
    ]
    training = Training(recipes, texts(), seeds=[0, 1, 2])
    with torch.no_grad():  # as if trained, BatchNorm's scale and shift included
        for weight in training.weights:
            weight += 0.3 * torch.rand_like(weight)
    local = Cache(5).local(np.arange(5)).float()
    dropped = torch.zeros(5, LOCATIONS, dtype=torch.bool)
    dropped[2, 1:] = True
    batch = Batch(local, Cache(5).labels, dropped, known=5 * CLASSES)
    scores, losses = training.scores(batch), training.losses(batch)
    for member in range(3):
        alone = training.method(member)
        torch.testing.assert_close(scores[member], alone.scores(batch))
        torch.testing.assert_close(losses[member], torch.stack([*alone.losses(batch).values()]))


def test_fresh_members_have_the_weights_of_their_seeds() -> None:
    training = Training([Recipe(output_dim=8), Recipe(output_dim=4)], texts(), seeds=[5, 6])
    for member, seed in enumerate([5, 6]):
        fresh = initial_model(training.recipes[member], texts(), seed=seed).state_dict()
        for name, value in weights(training, member).items():
            assert torch.equal(value, fresh[name]), name


def plain_training(recipe: Recipe, cache: Cache, seed: int) -> DCLIP:
    """The method written down plainly, in float64: one model, autograd, an optimizer of torch."""
    model = initial_model(recipe, texts(), seed=seed).double().train()
    if recipe.optimizer == "sgd":
        optimizer: torch.optim.Optimizer = torch.optim.SGD(
            model.parameters(), recipe.lr, recipe.momentum, weight_decay=recipe.weight_decay
        )
    else:
        optimizer = torch.optim.AdamW(
            model.parameters(), recipe.lr, weight_decay=recipe.weight_decay
        )
    images = len(cache.labels)
    for epoch in range(recipe.epochs):
        optimizer.param_groups[0]["lr"] = learning_rate(recipe, epoch)
        order = np.random.default_rng([3, 0, epoch]).permutation(np.arange(images))
        for start in range(0, images, recipe.batch_size):
            rows = order[start : start + recipe.batch_size]
            unit = torch.nn.functional.normalize
            projected = model.project_texts(texts().double())
            features = unit(model.project_images(cache.local(rows).double()), dim=-1)
            similarity = 20 * features @ unit(projected, dim=-1).T
            pooled = 5 * (similarity.softmax(1) * similarity).sum(1)
            labels = cache.labels[torch.as_tensor(rows)]
            asl = asymmetric_loss(
                pooled.reshape(len(rows), 2, CLASSES), labels, reduction=recipe.asl_reduction
            )
            mfi = mfi_loss(
                projected,
                redundancy_weight=recipe.redundancy_weight,
                gram=recipe.mfi_gram,
                reduction=recipe.mfi_reduction,
            )
            optimizer.zero_grad()
            (recipe.asl_weight * asl + recipe.mfi_weight * mfi).backward()
            optimizer.step()
    return model.float().eval()


@pytest.mark.parametrize("preset", ["author", "robust"])
def test_training_is_the_plain_method(preset: str) -> None:
    recipe = Recipe.model_validate({"preset": preset, "epochs": 4, "output_dim": 8})
    cache = Cache(80)
    training, _ = train(recipe, cache)
    expected = plain_training(recipe, cache, seed=1)
    for name, value in expected.state_dict().items():
        torch.testing.assert_close(weights(training)[name], value, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_members_of_a_pack_end_as_each_would_alone(optimizer: str) -> None:
    base = Recipe.model_validate({"epochs": 3, "optimizer": optimizer, "lr": 3e-3})
    points = [(0.1, 1.0, 8, 1), (1.0, 0.2, 8, 1), (0.0, 1.0, 4, 1), (0.1, 1.0, 8, 7)]
    recipes = [
        base.model_copy(update={"mfi_weight": a, "redundancy_weight": b, "output_dim": dim})
        for a, b, dim, _ in points
    ]
    cache = Cache(80)
    val = np.arange(30)
    together, reports = train(recipes, cache, seeds=[seed for *_, seed in points], val_rows=val)
    for member, recipe in enumerate(recipes):
        alone, own = train(recipe, cache, seeds=[points[member][3]], val_rows=val)
        for name, value in weights(alone).items():
            torch.testing.assert_close(weights(together, member)[name], value, rtol=1e-4, atol=1e-5)
        for several, (one,) in zip(reports, own, strict=True):
            assert values(several[member]) == pytest.approx(values(one), rel=1e-4, abs=1e-5)
    assert not torch.equal(
        *[weights(together, member)["image_projector.output.weight"] for member in (0, 3)]
    )


@pytest.mark.parametrize("selection", ["last", "best_on_val"])
@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_a_member_that_diverges_changes_no_bit_of_the_others(
    selection: str, optimizer: str
) -> None:
    settings = {"epochs": 3, "output_dim": 8, "batch_size": 16, "warmup_epochs": 0}
    settings |= {"selection": selection, "optimizer": optimizer, "ema_decay": 0.9}
    base = Recipe.model_validate(settings)
    wild = base.model_copy(update={"mfi_weight": 1e38, "redundancy_weight": 1e38})
    cache, val = Cache(48), np.arange(10)
    together, reports = train([base, wild, base], cache, seeds=[1, 1, 2], val_rows=val)
    calm, own = train([base, base, base], cache, seeds=[1, 1, 2], val_rows=val)
    assert (together.diverged, calm.diverged) == ({1: (1, 1)}, {})
    assert "step 1 of epoch 1 on (mfi_weight 1e+38" in divergence(together, 1)
    for several, expected in zip(reports, own, strict=True):
        assert math.isnan(several[1].val_map)
        assert not math.isfinite(several[1].loss)
        assert [values(several[n]) for n in (0, 2)] == [values(expected[n]) for n in (0, 2)]
    for member in (0, 2):
        assert together.best_epoch(member) == calm.best_epoch(member)
        for name, value in weights(calm, member).items():
            assert torch.equal(weights(together, member)[name], value), name


class Poisoned(Cache):
    """From one row on the features are no numbers once they have been read so often."""

    calm_reads = 7

    def local(self, rows: np.ndarray, views: np.ndarray | None = None) -> Tensor:
        self.calm_reads -= 1
        return super().local(rows, views) * (1 if self.calm_reads >= 0 else math.nan)


def test_where_a_member_diverged_is_kept_with_its_state() -> None:
    base = Recipe(preset="robust", epochs=4, output_dim=8, batch_size=16, warmup_epochs=0)
    wild = base.model_copy(update={"mfi_weight": 1e38, "redundancy_weight": 1e38})
    kept: list[dict[str, Tensor]] = []
    training = Training([base, wild], texts(), seeds=[1, 1])

    def keep(_: list[EpochReport]) -> None:
        kept.append(training.state_tensors())

    rows = np.arange(48)
    with pytest.raises(DivergenceError, match=r"step 2 of epoch 3 .*mfi_weight 0.1,"):
        fit(training, Poisoned(48), rows, seed=3, on_epoch=keep)  # three reads an epoch
    assert training.diverged == {0: (3, 2), 1: (1, 1)}
    again = Training([base, wild], texts(), seeds=[1, 1])
    again.load_state_tensors(kept[-1])
    assert again.diverged == {1: (1, 1)}
    old = {name: value for name, value in kept[-1].items() if name not in ("diverged", "finite")}
    again.load_state_tensors(old)  # as earlier versions wrote it
    assert again.diverged == {}
    reports: list[list[EpochReport]] = []
    fit(again, Cache(48), rows, seed=3, on_epoch=reports.append)
    assert again.diverged == {1: (3, 1)}
    assert all(math.isnan(report[1].loss) for report in reports)


def test_trainings_that_differ_in_more_do_not_train_together() -> None:
    with pytest.raises(ValueError, match="must agree in epochs, lr;"):
        Training([Recipe(), Recipe(lr=0.1, epochs=3)], texts(), seeds=[0, 0])
    with pytest.raises(ValueError, match="1 recipes and 2 seeds"):
        Training([Recipe()], texts(), seeds=[0, 0])


# ---------------------------------------------------------------------------------------------
# Stopping and going on; workers
# ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "views"),
    [
        ({"preset": "author"}, 1),
        ({"preset": "robust", "selection": "best_on_val", "ema_decay": 0.9}, 1),
        ({"feature_cutout": 0.7}, 3),
    ],
)
@pytest.mark.parametrize("after", [4, 5])  # of two steps an epoch: between epochs, and within one
def test_going_on_from_a_saved_state_ends_with_the_same_weights(
    settings: dict[str, object], views: int, after: int
) -> None:
    cache = Cache(48, views=views, noise=0.1)
    recipe = Recipe.model_validate({**settings, "epochs": 4, "output_dim": 8, "batch_size": 24})
    val = np.arange(9)
    straight, reports = train(recipe, cache, val_rows=val)
    saved: list[dict[str, Tensor]] = []
    first = Training([recipe], texts(), seeds=[1])

    def keep(_: object = None) -> None:
        if 2 * first.epoch + first.step == after:
            saved.append(first.state_tensors())

    rows = np.arange(48)
    fit(first, cache, rows, seed=3, val_rows=val, on_epoch=keep, on_step=keep)
    assert len(saved) == 1
    resumed = Training([recipe], texts(), seeds=[99])
    resumed.load_state_tensors(saved[0])
    rest: list[list[EpochReport]] = []
    fit(resumed, cache, rows, seed=3, val_rows=val, on_epoch=rest.append)
    for name, value in weights(straight).items():
        assert torch.equal(value, weights(resumed)[name]), name
    assert [values(line[0]) for line in rest] == [values(line[0]) for line in reports[2:]]
    assert resumed.best_epoch() == straight.best_epoch()


def test_the_state_of_another_training_is_refused() -> None:
    saved = Training([Recipe(output_dim=8)], texts(), seeds=[0]).state_tensors()
    for other in (Recipe(output_dim=4), Recipe(output_dim=8, ema_decay=0.9)):
        with pytest.raises(ValueError, match="state is that of another training"):
            Training([other], texts(), seeds=[0]).load_state_tensors(saved)


def work(rank: int, workers: int, folder: str) -> None:
    """A process of its own: one of several workers that train together."""
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=workers
    )
    torch.set_num_threads(1)
    cache = Cache(81)  # the last batch has one image, and nothing for the second worker
    recipe = Recipe(epochs=1, output_dim=8, batch_size=16, warmup_epochs=0)
    training, reports = train(recipe, cache, rank=rank, workers=workers)
    saved = {**weights(training), "loss": torch.tensor(reports[0][0].loss)}
    safetensors.torch.save_file(saved, f"{folder}/{rank}.safetensors")
    # the second worker has read an older state, then one with other weights
    rows, longer = np.arange(81), recipe.model_copy(update={"epochs": 2})
    state = training.state_tensors()
    for words in ("worker 1 stands at epoch 0, step 0, worker 0 at epoch 1, step 0", "weights of"):
        apart = Training([longer], texts(), seeds=[rank])
        if rank == 0 or words == "weights of":
            apart.load_state_tensors(state)
        apart.weights[0].data += rank
        with pytest.raises(ValueError, match=words):
            fit(apart, cache, rows, seed=3, rank=rank, workers=workers)
    share_state(apart, rank)
    fit(apart, cache, rows, seed=3, rank=rank, workers=workers)
    assert apart.epoch == 2
    safetensors.torch.save_file(weights(apart), f"{folder}/shared-{rank}.safetensors")
    torch.distributed.destroy_process_group()


def test_two_workers_train_what_one_does_and_go_on_from_one_state(tmp_path: Path) -> None:
    recipe = Recipe(epochs=1, output_dim=8, batch_size=16, warmup_epochs=0)
    alone, reports = train(recipe, Cache(81))
    torch.multiprocessing.spawn(work, (2, str(tmp_path)), nprocs=2)  # type: ignore[no-untyped-call]
    for rank in range(2):
        both = safetensors.torch.load_file(tmp_path / f"{rank}.safetensors")
        assert float(both.pop("loss")) == pytest.approx(reports[0][0].loss, rel=1e-5)
        for name, value in weights(alone).items():
            torch.testing.assert_close(both[name], value, rtol=0, atol=1e-4)
    shared = [
        safetensors.torch.load_file(tmp_path / f"shared-{rank}.safetensors") for rank in (0, 1)
    ]
    assert all(torch.equal(value, shared[1][name]) for name, value in shared[0].items())


@pytest.mark.parametrize("reduction", ["sum", "mean"])
def test_gradients_of_uneven_shares_sum_to_the_gradient_of_the_batch(reduction: str) -> None:
    cache = Cache(7)
    labels = cache.labels.long()
    labels[2, 1] = -1  # unknown labels count for the mean, too
    recipe = Recipe.model_validate({"asl_reduction": reduction, "mfi_weight": 0.3})
    method = initial_method(recipe, seed=0).double()
    pairs = texts().double()
    method.task = Task.of_features(method.task.class_names, pairs)
    known = int((labels >= 0).sum())

    def gradients(rows: list[int], workers: int) -> list[Tensor]:
        local = cache.local(np.array(rows)).double()
        loss = method.losses(Batch(local, labels[rows], known=known, workers=workers))["loss"]
        return list(torch.autograd.grad(loss, list(method.parameters())))

    whole = gradients(list(range(7)), 1)
    shares = [gradients(list(range(rank, 7, 2)), 2) for rank in range(2)]
    for one, two, expected in zip(*shares, whole, strict=True):
        torch.testing.assert_close(one + two, expected)


# ---------------------------------------------------------------------------------------------
# Which weights are kept
# ---------------------------------------------------------------------------------------------


def test_the_best_epoch_on_held_out_images_is_kept() -> None:
    cache = Cache(64)
    recipe = Recipe(
        epochs=6, lr=1.0, batch_size=16, output_dim=4, selection="best_on_val", weight_decay=0.0
    )
    val = np.arange(24)
    training = Training([recipe, recipe], texts(), seeds=[1, 2])
    reports: list[list[EpochReport]] = []
    epochs: list[list[dict[str, Tensor]]] = []

    def note(report: list[EpochReport]) -> None:
        reports.append(report)
        models = [training.model(member, selected=False) for member in range(2)]
        epochs.append([model.state_dict() for model in models])

    fit(training, cache, np.arange(64), seed=3, val_rows=val, on_epoch=note)
    for member in range(2):
        maps = [report[member].val_map for report in reports]
        best = 1 + maps.index(max(maps))
        assert training.best_epoch(member) == best
        for name, value in weights(training, member).items():
            assert torch.equal(value, epochs[best - 1][member][name]), name
    assert any(training.best_epoch(member) < 6 for member in range(2))  # else nothing was chosen


def test_the_moving_average_is_the_recurrence_over_the_steps() -> None:
    cache = Cache(48)
    recipe = Recipe(epochs=2, output_dim=4, batch_size=24, lr=1e-2)
    plain = Training([recipe], texts(), seeds=[1])
    name = "image_projector.output.weight"
    expected = plain.model().state_dict()[name].clone()

    steps = itertools.count()

    def follow(_: object = None) -> None:
        step = next(steps)
        decay = min(0.25, (1 + step) / (10 + step))
        expected.lerp_(plain.model().state_dict()[name], 1 - decay)

    rows = np.arange(48)
    fit(plain, cache, rows, seed=3, on_step=follow, on_epoch=follow)
    averaged, reports = train(
        recipe.model_copy(update={"ema_decay": 0.25}), cache, val_rows=np.arange(8)
    )
    torch.testing.assert_close(weights(averaged)[name], expected)
    scores = predict(averaged.model(), cache, np.arange(8), texts())
    assert reports[-1][0].val_map == pytest.approx(mean_average_precision(scores, cache.labels[:8]))


def test_without_mfi_only_asl_moves_the_weights() -> None:
    recipe = Recipe(mfi_weight=0.0)
    cache = Cache(4)
    local = cache.local(np.arange(4)).float()
    losses = initial_method(recipe, seed=0).losses(Batch(local, cache.labels, known=4 * CLASSES))
    assert losses["loss"].item() == losses["asl"].item()
    assert losses["mfi"].item() > 0


def test_a_loss_that_leaves_the_numbers_stops_with_a_remedy() -> None:
    cache = Cache(32)
    cache.features[3, 0, 0] = float("inf")
    with pytest.raises(DivergenceError, match="lower lr or mfi_weight") as caught:
        train(Recipe(epochs=2), cache)
    assert "epoch 1" in str(caught.value)


def test_weights_that_leave_the_numbers_in_the_last_step_are_a_divergence_too() -> None:
    recipe = Recipe(
        epochs=1, batch_size=16, optimizer="sgd", warmup_epochs=0, lr=1e38, asl_weight=1e4
    )
    rows = np.arange(16)  # one step: its loss is finite, what it leaves is not
    training = Training([recipe, recipe], texts(), seeds=[0, 1])
    with pytest.raises(DivergenceError, match="from step 1 of epoch 1 on"):
        fit(training, Cache(16), np.arange(16), seed=0, val_rows=rows)
    assert training.diverged == {0: (1, 1), 1: (1, 1)}


def test_a_recipe_that_must_diverge_is_refused_before_training() -> None:
    recipe = Recipe(preset="author", mfi_weight=10.0)
    with pytest.raises(ValueError, match="alpha"):
        train(recipe, Cache(8))


def test_no_images_is_an_error() -> None:
    with pytest.raises(ValueError, match="no images"):
        fit(Training([Recipe()], texts(), seeds=[0]), Cache(1), np.arange(0), seed=0)


def test_what_cannot_be_done_is_said_before_the_first_step() -> None:
    cache, rows = Cache(8), np.arange(8)
    best = Training([Recipe(selection="best_on_val")], texts(), seeds=[0])
    for nothing in (None, np.arange(0)):
        with pytest.raises(ValueError, match=r"best_on_val: none of the held-out.*val_fraction"):
            fit(best, cache, rows, seed=0, val_rows=nothing)
    cut = Training([Recipe(feature_cutout=0.1)], texts(), seeds=[0])
    with pytest.raises(ValueError, match=r"0\.1 of a 2 x 3 grid has no location"):
        check_training(cut, cache, rows)


def test_labels_of_other_classes_than_the_texts_are_an_error() -> None:
    cache = Cache(8)
    cache.labels = cache.labels[:, :3]
    with pytest.raises(ValueError, match="labels of 3 classes do not go with texts of 4"):
        train(Recipe(), cache)
    cache = Cache(8)
    cache.labels[3, 1] = 2
    with pytest.raises(ValueError, match="labels must be 1"):
        train(Recipe(), cache)


def test_a_class_that_never_occurs_is_trained_as_absent() -> None:
    cache = Cache(48)
    cache.labels[:, 1] = 0
    recipe = Recipe(epochs=10, lr=1e-2, output_dim=8, batch_size=4)
    training, reports = train(recipe, cache, val_rows=np.arange(16))
    assert math.isfinite(reports[-1][0].loss)
    assert math.isfinite(reports[-1][0].val_map)  # over the classes that do occur
    scores = predict(training.model(), cache, np.arange(48), texts())
    assert scores[:, 1].mean() < 0.3 < scores[:, [0, 2, 3]].mean()


def test_building_a_model_leaves_the_global_generator_alone() -> None:
    before = torch.get_rng_state()
    one = initial_model(Recipe(), texts(), seed=4).state_dict()
    assert torch.equal(before, torch.get_rng_state())
    two = initial_model(Recipe(), texts(), seed=4).state_dict()
    assert all(torch.equal(one[name], two[name]) for name in one)


def test_views_that_are_all_alike_change_no_bit() -> None:
    recipe = Recipe(epochs=3, output_dim=8)
    one, reports = train(recipe, Cache(48), val_rows=np.arange(8))
    alike, same = train(recipe, Cache(48, views=5), val_rows=np.arange(8))
    for name, value in weights(one).items():
        assert torch.equal(value, weights(alike)[name]), name
    assert [line[0].val_map for line in reports] == [line[0].val_map for line in same]


def test_other_views_and_boxes_train_other_weights() -> None:
    recipe = Recipe(epochs=2, output_dim=8)
    cutout = recipe.model_copy(update={"feature_cutout": 0.7})
    trainings = [
        train(recipe, Cache(48))[0],
        train(recipe, Cache(48, views=2, noise=0.1))[0],
        train(cutout, Cache(48))[0],
    ]
    projectors = [weights(training)["image_projector.output.weight"] for training in trainings]
    for first, second in [(0, 1), (0, 2), (1, 2)]:
        assert not torch.equal(projectors[first], projectors[second])


def test_predictions_are_of_the_clean_view_with_all_its_locations() -> None:
    model = initial_model(Recipe(feature_cutout=0.7), texts(), seed=0)
    rows = np.arange(20)
    clean = predict(model, Cache(20), rows, texts())
    assert torch.equal(predict(model, Cache(20, views=4, noise=9.0), rows, texts()), clean)


def test_it_learns_with_boxes_dropped() -> None:
    # an object fills one of six locations, and each step hides one of them
    recipe = Recipe(
        preset="robust", epochs=20, lr=1e-2, batch_size=16, hidden_dim=32, output_dim=16,
        mfi_weight=0.3, feature_cutout=0.5,
    )  # fmt: skip
    _, reports = train(recipe, Cache(256), val_rows=np.arange(64))
    assert reports[-1][0].val_map > 0.8
    assert reports[-1][0].val_map > reports[0][0].val_map

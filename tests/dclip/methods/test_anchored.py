"""Anchored DCLIP: it starts where CLIP is, believes labels as far as they go, and only gains."""

import os
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from dclip.fitting.batches import Batch, MemoryFeatures
from dclip.fitting.fit import fit
from dclip.fitting.loop import Loop
from dclip.fitting.pack import Pack
from dclip.logits import zero_shot_scores
from dclip.methods.anchored import fit_calibration
from dclip.methods.dclip import DCLIPMethod
from dclip.methods.method import Task, initial
from dclip.methods.settings import DCLIPSettings, of_preset
from dclip.metrics import cosine_matrix, mean_average_precision
from dclip.training import Recipe, Training, predict

NAMES = ("ant", "bee", "cat", "dog")
LOOP, OWN = of_preset(DCLIPSettings, "anchored")
PHOTOS = "real_features/photos212_mnv2_clipb32.npz"


def task(classes: int = 4, dim: int = 24, seed: int = 0) -> Task:
    """Classes whose texts are much alike, as CLIP's are."""
    random = torch.Generator().manual_seed(seed)
    positive = 1 + 0.4 * torch.randn(classes, dim, generator=random)
    names = [f"class {n}" for n in range(classes)] if classes != 4 else list(NAMES)
    return Task.of_features(names, torch.cat([positive + 0.01, positive]))


def source(own: Task, images: int = 60, seed: int = 1) -> MemoryFeatures:
    """Images of six locations, in two of which an object lies."""
    random = torch.Generator().manual_seed(seed)
    local = torch.randn(images, 6, own.dim, generator=random)
    labels = torch.zeros(images, len(own.class_names), dtype=torch.int8)
    for image in range(images):
        for location in range(2):
            kind = int(torch.randint(len(own.class_names), (), generator=random))
            local[image, location] += 3 * own.positives[kind]
            labels[image, kind] = 1
    return MemoryFeatures(local, labels, grid=(2, 3))


def fresh(own: Task, seed: int = 0, **changes: object) -> DCLIPMethod:
    settings = OWN.model_copy(update=changes)
    method = initial(DCLIPMethod, settings, own, seed=seed)
    assert isinstance(method, DCLIPMethod)
    return method.eval()


@pytest.mark.parametrize(("classes", "dim"), [(4, 24), (1, 24), (12, 24), (2, 8)])
def test_it_starts_at_what_clip_says(classes: int, dim: int) -> None:
    own = task(classes, dim)
    method = fresh(own)
    features = method.class_features()
    torch.testing.assert_close(
        cosine_matrix(features), cosine_matrix(own.positives), atol=1e-5, rtol=0
    )
    images = torch.randn(5, dim)
    said = method.model.project_images(images) @ features.T
    torch.testing.assert_close(
        said, images @ F.normalize(own.positives, dim=1).T, atol=1e-4, rtol=0
    )
    assert (
        sum(weight.numel() for weight in method.parameters()) == method.model.sizes.parameter_count
    )


@pytest.mark.parametrize("texts", [torch.ones(3, 8), torch.randn(20, 8)])
def test_texts_that_are_equal_and_more_classes_than_dimensions_train(texts: Tensor) -> None:
    own = Task.of_features([str(n) for n in range(len(texts))], torch.cat([texts, texts]))
    pack = Pack(DCLIPMethod, [OWN], Loop(**{**LOOP.model_dump(), "epochs": 2}), own, seeds=[0])
    features = source(own, 24)
    fit(pack, features, np.arange(24), seed=0)
    assert pack.predict(features, np.arange(24)).isfinite().all()


# ---------------------------------------------------------------------------------------------
# Calibration
# ---------------------------------------------------------------------------------------------


def scores(images: int, share: float) -> tuple[Tensor, Tensor, Tensor]:
    """Labels that follow from presence minus a share of absence."""
    random = torch.Generator().manual_seed(3)
    absent = 10 + 3 * torch.randn(images, generator=random, dtype=torch.float64)
    odds = 4 * torch.randn(images, 5, generator=random, dtype=torch.float64)
    labels = (odds > torch.randn(images, 5, generator=random)).to(torch.int8)
    return odds / 2 + share * absent[:, None], absent, labels


@pytest.mark.parametrize(
    ("images", "share", "found"), [(4000, 0.0, 0.0), (4000, 1.0, 1.0), (4000, 0.5, 0.5)]
)
def test_the_share_of_absence_is_what_the_labels_say(
    images: int, share: float, found: float
) -> None:
    present, absent, labels = scores(images, share)
    calibration = fit_calibration(present, absent, labels)
    assert float(calibration.absent_share) == pytest.approx(found, abs=0.02)


def test_few_images_leave_it_near_one_and_more_move_it() -> None:
    shares = [float(fit_calibration(*scores(images, 0.0)).absent_share) for images in (1, 5, 500)]
    assert shares[0] > 0.8 > shares[1] > 0.2 > shares[2]


def test_mean_probabilities_are_how_often_classes_are_there() -> None:
    present, absent, labels = scores(50, 1.0)
    labels[:10, 1] = -1
    found = fit_calibration(present, absent, labels)
    odds = present - found.absent_share * (absent - found.absent_mean)[:, None] - found.bias
    rate = (labels == 1).sum().double() / (labels >= 0).sum()
    for column in range(5):
        known = labels[:, column] >= 0
        wanted = ((labels[:, column] == 1).sum() + 2 * rate) / (known.sum() + 2)
        assert float(odds[known, column].sigmoid().mean()) == pytest.approx(float(wanted), abs=1e-9)


def test_a_class_of_which_nothing_is_known_has_the_mean_bias() -> None:
    present, absent, labels = scores(50, 1.0)
    labels[:, 2] = -1
    bias = fit_calibration(present, absent, labels).bias
    assert float(bias[2]) == pytest.approx(float(bias[[0, 1, 3, 4]].mean()))
    labels[:] = -1
    assert fit_calibration(present, absent, labels).bias.isfinite().all()


# ---------------------------------------------------------------------------------------------
# Training
# ---------------------------------------------------------------------------------------------


def test_classes_learn_as_much_as_images_show_them() -> None:
    own = task()
    features = source(own)
    features.labels[:, 3] = 0  # never shown
    method = fresh(own, class_prior=10.0)
    method.prepare(features, np.arange(60))
    shown = (features.labels == 1).sum(0)
    torch.testing.assert_close(method.trust, shown / (shown + 10.0))
    batch = Batch(features.local(np.arange(60)), features.labels, known=240)
    with_prior, without = (
        method.losses(batch)["asl"] if prior else _without(method).losses(batch)["asl"]
        for prior in (True, False)
    )
    torch.testing.assert_close(with_prior, without)
    logits = method.model(batch.local, own.pairs).pair_logits.detach().requires_grad_()
    torch.lerp(logits.detach(), logits, method.trust).sum().backward()  # type: ignore[no-untyped-call]
    assert logits.grad is not None
    torch.testing.assert_close(logits.grad, method.trust.expand_as(logits))


def _without(method: DCLIPMethod) -> DCLIPMethod:
    other = method.with_task(method.task)
    other.settings = method.settings.model_copy(update={"class_prior": 0.0})
    assert isinstance(other, DCLIPMethod)
    return other


def test_members_end_as_alone_and_a_stopped_training_goes_on_with_the_same_bits() -> None:
    own = task()
    features, rows = source(own), np.arange(60)
    loop = LOOP.model_copy(update={"epochs": 3, "batch_size": 16})
    several = [
        OWN,
        OWN.model_copy(update={"mfi_weight": 0.0}),
        OWN.model_copy(update={"output_dim": 6}),
    ]
    pack = Pack(DCLIPMethod, several, loop, own, seeds=[0, 1, 2])
    states: list[dict[str, Tensor]] = []
    fit(pack, features, rows, seed=0, on_epoch=lambda _: states.append(pack.state_tensors()))
    for number, settings in enumerate(several):
        alone = Pack(DCLIPMethod, [settings], loop, own, seeds=[number])
        fit(alone, features, rows, seed=0)
        torch.testing.assert_close(
            alone.predict(features, rows)[0], pack.predict(features, rows)[number]
        )
    again = Pack(DCLIPMethod, several, loop, own, seeds=[0, 1, 2], fresh=False)
    again.load_state_tensors(states[0])
    fit(again, features, rows, seed=0)
    assert torch.equal(again.predict(features, rows), pack.predict(features, rows))


def test_other_classes_take_their_own_biases_and_new_ones_the_mean() -> None:
    own = task()
    features = source(own)
    pack = Pack(DCLIPMethod, [OWN], LOOP.model_copy(update={"epochs": 1}), own, seeds=[0])
    fit(pack, features, np.arange(60), seed=0)
    method = pack.method()
    assert isinstance(method, DCLIPMethod)
    batch = Batch(features.local(np.arange(5)), torch.empty(0, 0, dtype=torch.int8))
    order = [2, 0, 3]
    pairs = own.pairs[[*order, *(4 + n for n in order)]]
    asked = Task.of_features([NAMES[n] for n in order], pairs)
    torch.testing.assert_close(
        method.for_classes(asked).scores(batch), method.scores(batch)[:, order]
    )
    renamed = method.for_classes(Task.of_features(["eel", "ant"], own.pairs[[0, 0, 4, 4]]))
    assert isinstance(renamed, DCLIPMethod)
    torch.testing.assert_close(
        renamed.model.bias, torch.stack([method.model.bias.mean(), method.model.bias[0]])
    )
    # log-odds of a location are those of an image that is this location alone
    odds = method.location_logits(batch.local)
    alone = method.scores(batch._replace(local=batch.local[:, 3:4]))
    torch.testing.assert_close(odds[:, :, 3].sigmoid(), alone)
    with pytest.raises(ValueError, match="6 texts are not the pairs of the 4 classes"):
        method.model(batch.local, pairs)


def test_pooling_first_is_refused_with_what_to_take() -> None:
    with pytest.raises(ValueError, match="take it with the preset robust or author"):
        Recipe(aggregation="pool_then_project")


@pytest.mark.parametrize("images", [20, 141])
def test_few_real_photographs_do_not_cost_what_clip_knows(images: int) -> None:
    """Never more than a point below frozen CLIP on photographs held back, and 3 above it at 141."""
    path = Path(os.environ.get("DCLIP_TEST_DATA", "../shared/data")) / PHOTOS
    if not path.is_file():
        pytest.skip(f"no real features at {path} (set DCLIP_TEST_DATA)")
    with np.load(path) as stored:
        local = torch.from_numpy(stored["local"]).float()
        labels = torch.from_numpy(stored["labels"]).to(torch.int8)
        pairs = torch.from_numpy(stored["pair_texts"])
        train, held = stored["train_rows"], stored["dev_rows"]
    side = round((local.shape[1] - 1) ** 0.5)
    features = MemoryFeatures(local, labels, grid=(side, side))
    frozen = zero_shot_scores(local[held, 0], pairs[len(pairs) // 2 :])
    bar = mean_average_precision(frozen, labels[held])
    training = Training([Recipe()], pairs, seeds=[0])

    def score() -> float:
        return mean_average_precision(
            predict(training.model(), features, held, pairs), labels[held]
        )

    assert score() > bar - 0.01
    rows = np.sort(np.random.default_rng(0).permutation(train)[:images])
    fit(training, features, rows, seed=0)
    assert score() > bar + (0.03 if images == 141 else -0.01)

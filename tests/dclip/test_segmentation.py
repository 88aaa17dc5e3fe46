"""Scores of locations to classes of pixels: by hand, against plain loops, and in any chunks."""

import math
from typing import cast

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from dclip.backbones import Backbone, ImageFeatures, load_backbone
from dclip.data.pixels import normalise
from dclip.data.windows import Window, sliding_view, whole_view
from dclip.fitting.batches import Batch
from dclip.logits import presence_probability
from dclip.methods.dclip import DCLIPMethod
from dclip.methods.method import Task
from dclip.model import DCLIP
from dclip.projectors import ProjectorSizes
from dclip.prompts import ClassTexts, encode_class_texts, encode_prompt_pairs
from dclip.segmentation import (
    ImageSystem,
    Rule,
    System,
    _decide,
    _largest,
    class_scores,
    label_map,
    min_max,
    segment_images,
    surgery_scores,
)


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def texts(features: Tensor, classes: list[int] | None = None) -> ClassTexts:
    return ClassTexts(features, torch.tensor(classes or list(range(len(features)))))


def whole(size: tuple[int, int]) -> list[Window]:
    return [Window(0, 0, *size)]


# ---------------------------------------------------------------------------------------------
# Scores
# ---------------------------------------------------------------------------------------------


def test_a_class_scores_by_its_best_phrasing() -> None:
    # locations along x and y; class 0 is called (1, 0) and (0, 3), class 1 is (1, 1)
    local = torch.tensor([[[2.0, 0.0], [0.0, 1.0]]])
    called = texts(torch.tensor([[1.0, 0.0], [0.0, 3.0], [1.0, 1.0]]), [0, 0, 1])
    expected = torch.tensor([[[1.0, 1.0], [0.5**0.5, 0.5**0.5]]])
    torch.testing.assert_close(class_scores(local, called), expected)


def test_the_order_of_phrasings_does_not_matter() -> None:
    local, features = random(2, 5, 4), random(4, 4, seed=1)
    one = class_scores(local, texts(features, [0, 1, 1, 2]))
    other = class_scores(local, texts(features[[2, 3, 0, 1]], [1, 2, 0, 1]))
    assert torch.equal(one, other)


def test_min_max_stretches_each_class_over_all_windows_of_the_image() -> None:
    scores = torch.tensor([[[0.2, 0.4], [5.0, 5.0]], [[0.3, 0.6], [5.0, 5.0]]])
    expected = torch.tensor([[[0.0, 0.5], [0.0, 0.0]], [[0.25, 1.0], [0.0, 0.0]]])
    torch.testing.assert_close(min_max(scores), expected)


def test_min_max_may_change_which_class_wins() -> None:
    scores = torch.tensor([[[0.9, 0.8], [0.1, 0.2]]])  # class 0 everywhere
    assert scores.argmax(1).tolist() == [[0, 0]]
    assert min_max(scores).argmax(1).tolist() == [[0, 1]]


def test_surgery_is_the_sum_over_channels_of_clip_surgery() -> None:
    local, features, token = random(2, 6, 8), random(3, 8, seed=1), random(2, 8, seed=2)
    expected = torch.zeros(2, 3, 6)
    for window in range(2):
        unit = F.normalize(features, dim=1)
        cosine = unit @ F.normalize(token[window], dim=0)
        weight = torch.exp(2 * cosine) / torch.exp(2 * cosine).mean()
        for place in range(6):
            point = F.normalize(local[window, place], dim=0)
            by_channel = weight[:, None] * point * unit  # [classes, channels]
            expected[window, :, place] = (by_channel - by_channel.mean(0)).sum(1)
    torch.testing.assert_close(surgery_scores(local, texts(features), token), expected)


def test_surgery_with_equal_weights_keeps_the_winner_of_every_location() -> None:
    local, features = random(2, 6, 8), random(3, 8, seed=1)
    token = torch.zeros(2, 8)  # is like no class more than another
    surgery = surgery_scores(local, texts(features), token)
    assert torch.equal(surgery.argmax(1), class_scores(local, texts(features)).argmax(1))


def test_projectors_are_normalised_after_and_the_mean_token_is_dropped() -> None:
    model = DCLIP(ProjectorSizes(embed_dim=6, hidden_dim=5, output_dim=4)).eval()
    local, features = random(2, 4, 6), F.normalize(random(3, 6, seed=1), dim=1)
    system = of_projectors("value", texts(features), model)
    found = system.scores(ImageFeatures(local[:, 0], local), has_global_token=True)
    with torch.no_grad():
        images = F.normalize(local[:, 1:] @ model.image_projector.output.weight.T, dim=-1)
        classes = F.normalize(model.project_texts(features, statistics="running"), dim=-1)
    torch.testing.assert_close(found, (images @ classes.T).mT)
    assert not found.requires_grad


def test_surgery_takes_the_mean_token_where_there_is_one_and_the_embedding_elsewhere() -> None:
    local, embedding = random(2, 5, 4), random(2, 4, seed=3)
    called = texts(random(3, 4, seed=1))
    system = System("vv", called, surgery=True)
    features = ImageFeatures(embedding, local)
    with_token = system.scores(features, has_global_token=True)
    assert torch.equal(with_token, surgery_scores(local[:, 1:], called, local[:, 0]))
    without = system.scores(features, has_global_token=False)
    assert torch.equal(without, surgery_scores(local, called, embedding))


def of_projectors(
    kind: str, called: ClassTexts, model: DCLIP, pairs: Tensor | None = None
) -> System:
    """A system of projectors; with prompt pairs, one of classes that they find."""
    known = called.features.repeat(2, 1) if pairs is None else pairs
    task = Task(tuple(str(number) for number in range(len(known) // 2)), known, called)
    presence = None if pairs is None else "value"
    return System(kind, called, DCLIPMethod.around(model, task), presence_kind=presence)


def projectors(dim: int) -> DCLIP:
    torch.manual_seed(0)
    return DCLIP(ProjectorSizes(embed_dim=dim, hidden_dim=5, output_dim=4)).eval()


def test_classes_found_present_are_those_of_the_projectors_own_answer() -> None:
    model, local, pairs = projectors(6), random(1, 9, 6), random(10, 6, seed=1)
    system = of_projectors("vv", texts(random(5, 6, seed=2)), model, pairs)
    with torch.no_grad():
        probability = presence_probability(model(local, pairs).pair_logits)[0]
    expected = [k for k, p in enumerate(probability.tolist()) if p >= 0.5]
    assert 0 < len(expected) < 5
    found = system.present(local)
    assert found is not None
    assert found.tolist() == expected
    # the windows of an image are one set of locations
    split = system.present(local.reshape(3, 3, 6))
    assert split is not None
    assert split.tolist() == expected


def test_where_no_class_is_found_the_most_probable_one_is_taken() -> None:
    model, local, pairs = projectors(6), random(1, 9, 6), random(10, 6, seed=1)
    with torch.no_grad():
        probability = presence_probability(model(local, pairs).pair_logits)[0]
    absent = (probability < 0.5).nonzero().flatten()
    few = torch.cat([pairs[absent], pairs[absent + 5]])
    found = of_projectors("vv", texts(random(len(absent), 6)), model, few).present(local)
    assert found is not None
    assert found.tolist() == [int(probability[absent].argmax())]


def test_only_projectors_tell_what_is_present() -> None:
    called = texts(random(3, 6))
    system = of_projectors("vv", called, projectors(6))
    assert system.present(random(1, 9, 6)) is None
    with pytest.raises(ValueError, match="leave out presence_kind"):
        System("vv", called, presence_kind="value")
    with pytest.raises(ValueError, match="leave out the method"):
        System("vv", called, system.method, surgery=True)


class Thresholdless(DCLIPMethod):
    """The same scores, of which no threshold is to be taken."""

    gives_probabilities = False


def test_a_method_that_gives_no_probabilities_does_not_find_classes() -> None:
    called, pairs = texts(random(5, 6)), random(10, 6)
    task = Task.of_features([str(k) for k in range(5)], pairs)
    method = Thresholdless.around(projectors(6), task)
    System("vv", called, method)
    with pytest.raises(ValueError, match=r"gives no probabilities.* leave out presence_kind"):
        System("vv", called, method, presence_kind="value")


class OfTheWhole(DCLIPMethod):
    """Presence from the global embedding alone, in which the likeliest class is the largest."""

    def scores(self, batch: Batch) -> torch.Tensor:
        assert batch.embedding is not None
        return batch.embedding.softmax(dim=1)


def test_a_method_that_is_fed_embeddings_finds_classes_by_that_of_the_image() -> None:
    called, pairs = texts(random(5, 6)), random(10, 6)
    task = Task.of_features([str(k) for k in range(6)], torch.cat([pairs, pairs[:2]]))
    system = System("vv", called, OfTheWhole.around(projectors(6), task), presence_kind="value")
    windows = torch.zeros(2, 6)
    windows[0, 1], windows[1, 4] = 1.0, 9.0  # their mean is largest at 4
    present = system.present(random(2, 9, 6), windows)
    assert present is not None
    assert present.tolist() == [4]


# ---------------------------------------------------------------------------------------------
# Label maps
# ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [(6, 6), (37, 53), (3, 2), (5, 90)])
@pytest.mark.parametrize("budget", [1, 5_000, 1 << 30])
def test_any_budget_gives_the_argmax_of_the_full_upsampling(
    size: tuple[int, int], budget: int
) -> None:
    scores = random(1, 7, 6, 6)
    full = F.interpolate(scores, size, mode="bilinear", align_corners=False)[0]
    found = label_map(scores, whole(size), size, size, budget=budget)
    assert torch.equal(found.long(), full.argmax(0))


@pytest.mark.parametrize("budget", [1, 20_000, 1 << 30])
def test_windows_are_averaged_and_the_canvas_is_resized(budget: int) -> None:
    windows = [Window(0, 0, 8, 8), Window(0, 5, 8, 8), Window(4, 0, 8, 8), Window(4, 5, 8, 8)]
    scores = random(4, 5, 2, 2)
    total, count = torch.zeros(5, 12, 13), torch.zeros(12, 13)
    for own, cut in zip(scores, windows, strict=True):
        drawn = F.interpolate(own[None], (8, 8), mode="bilinear", align_corners=False)[0]
        total[:, cut.top : cut.top + 8, cut.left : cut.left + 8] += drawn
        count[cut.top : cut.top + 8, cut.left : cut.left + 8] += 1
    for size in ((12, 13), (30, 25), (5, 6)):
        full = F.interpolate((total / count)[None], size, mode="bilinear", align_corners=False)[0]
        found = label_map(scores, windows, (12, 13), size, budget=budget)
        assert torch.equal(found.long(), full.argmax(0))


def test_no_tensor_outgrows_the_budget_by_much(monkeypatch: pytest.MonkeyPatch) -> None:
    size, classes, budget = (64, 512), 40, 1 << 19
    drawn: list[int] = []
    interpolate = F.interpolate

    def watch(source: Tensor, wanted: tuple[int, int], **options: object) -> Tensor:
        result = interpolate(source, wanted, **options)  # type: ignore[arg-type]
        drawn.append(result.numel() * result.element_size())
        return cast("Tensor", result)

    monkeypatch.setattr(F, "interpolate", watch)
    label_map(random(1, classes, 4, 4), whole(size), size, size, budget=budget)
    assert classes * 64 * 512 * 4 > 5 * budget  # all at once would be far too much
    assert 0 < max(drawn) <= budget


def test_background_is_where_no_class_is_sure_by_hand() -> None:
    # softmax over 100 x (0.03, 0): 1 / (1 + e^-3) = 0.953; over (0.01, 0): 1 / (1 + e^-1) = 0.731
    scores = torch.tensor([[[[0.03, 0.01]], [[0.0, 0.0]]]])
    found = label_map(scores, whole((1, 2)), (1, 2), (1, 2), logit_scale=100.0, background=0.85)
    assert found.tolist() == [[1, 0]]
    assert label_map(scores, whole((1, 2)), (1, 2), (1, 2)).tolist() == [[0, 0]]


def test_a_background_threshold_of_almost_nothing_is_no_background() -> None:
    scores = random(1, 4, 3, 3)
    plain = label_map(scores, whole((9, 9)), (9, 9), (9, 9))
    found = label_map(scores, whole((9, 9)), (9, 9), (9, 9), background=1e-6)
    assert torch.equal(found, plain + 1)


def test_scores_of_any_size_stay_finite() -> None:
    scores = 1e4 * random(1, 4, 3, 3)
    found = label_map(scores, whole((9, 9)), (9, 9), (9, 9), background=0.5)
    assert (found > 0).float().mean() > 0.9  # nearly every pixel is sure; no nan lets it be 0


@pytest.mark.parametrize(("classes", "dtype"), [(254, torch.uint8), (255, torch.int32)])
def test_more_classes_than_8_bits_hold_have_32(classes: int, dtype: torch.dtype) -> None:
    scores = torch.zeros(1, classes, 1, 2)
    scores[0, -1, 0, 1] = 1
    found = label_map(scores, whole((1, 2)), (1, 2), (1, 2), background=0.9)
    assert found.dtype == dtype
    assert found.tolist() == [[0, classes]]  # nothing is sure, then the last class is


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"background": 1.0}, r"background must lie in \(0, 1\)"),
        ({"logit_scale": 0.0}, "logit_scale must be above 0"),
    ],
)
def test_a_rule_out_of_range_is_refused(settings: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Rule(**settings)  # type: ignore[arg-type]


# ---------------------------------------------------------------------------------------------
# Images
# ---------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def tiny() -> Backbone:
    return load_backbone("tiny", pretrained="random")


def picture(width: int, height: int, seed: int = 0) -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)
    return Image.fromarray(pixels)


def test_images_have_maps_of_their_own_size_whatever_the_batch(tiny: Backbone) -> None:
    called = encode_class_texts(tiny, [("circle", "disc"), ("square",), ("star",)])
    systems = {"one": System("value", called), "two": System("vv", called, surgery=True)}
    images = [picture(50, 40), picture(31, 64, 1), picture(20, 20, 2)]
    views = [whole_view(image, 64) for image in images]
    together = list(segment_images(tiny, views, systems, Rule(), batch_size=8))
    single = [
        next(segment_images(tiny, [view], systems, Rule(), batch_size=1, budget=1))
        for view in views
    ]
    for found, alone, image in zip(together, single, images, strict=True):
        assert list(found) == ["one", "two"]
        for name in found:
            assert found[name].shape == (image.height, image.width)
            assert (found[name] == alone[name]).float().mean() > 0.99  # ties of batched products


@pytest.mark.parametrize("background", [None, 0.2])
def test_classes_that_are_not_found_win_no_pixel(tiny: Backbone, background: float | None) -> None:
    names = ("circle", "square", "star", "moon")
    called = encode_class_texts(tiny, [(name,) for name in names])
    pairs = encode_prompt_pairs(tiny, names)
    system = of_projectors("vv", called, projectors(tiny.embed_dim), pairs)
    view = whole_view(picture(64, 64), 64)
    images = normalise(torch.tensor(view.pixels), tiny.mean, tiny.std)
    present = system.present(tiny.encode_images(images).local)
    assert present is not None
    assert len(present) < 4
    rule = Rule(background=background)
    (found,) = segment_images(tiny, [view], {"one": system}, rule)
    shift = 0 if background is None else 1
    allowed = {*(present + shift).tolist(), *([] if background is None else [0])}
    assert set(found["one"].unique().tolist()) <= allowed


def test_the_few_that_are_found_keep_their_numbers_among_many_classes(tiny: Backbone) -> None:
    scores = torch.zeros(1, 300, 2, 2)
    scores[0, 299, 0] = 1
    view = whole_view(Image.new("RGB", (tiny.stride * 2, tiny.stride * 2)), tiny.stride * 2)
    own = torch.tensor([7, 299])
    found = _decide(scores, own, view, Rule(normalisation="none"), 1 << 26)
    assert found.dtype == torch.int32
    assert set(found.unique().tolist()) == {7, 299}


class OfPixels(DCLIPMethod):
    """Maps of an image from its colours: class c where channel c is bright; two are found."""

    maps_images = True
    looks = 0

    def maps(self, batch: Batch) -> tuple[Tensor, Tensor]:
        assert batch.pixels is not None
        OfPixels.looks += 1
        return torch.tensor([[0.9, 0.2, 0.8]]), batch.pixels.float().permute(0, 3, 1, 2)


def test_a_method_on_images_maps_all_of_one_at_its_own_size(tiny: Backbone) -> None:
    called = encode_class_texts(tiny, [("red",), ("green",), ("blue",)])
    task = Task.of_features(("red", "green", "blue"), random(6, tiny.embed_dim))
    method = OfPixels.around(projectors(tiny.embed_dim), task)
    colours = np.zeros((4, 6, 3), np.uint8)
    colours[:, :3, 0] = colours[:2, 3:, 1] = 200
    colours[2:, 3:, 2], colours[2:, 3:, 1] = 100, 150
    view = sliding_view(Image.fromarray(colours), short_side=64, window=64, stride=32)
    systems: dict[str, System | ImageSystem] = {
        "all": ImageSystem(method),
        "features": System("value", called),
        "found": ImageSystem(method, only_found=True),
    }
    given = view._replace(whole=colours[None])
    (maps,) = segment_images(tiny, [given], systems, Rule(normalisation="none"))
    assert [*maps] == ["all", "features", "found"]
    rows = [[0, 0, 0, 1, 1, 1]] * 4
    assert maps["all"].tolist() == rows  # as it is scored: 150 of green is above 100 of blue
    # green is not found: what was its is the first of equals, and blue where there is some
    assert maps["found"].tolist() == [[0] * 6] * 2 + [[0, 0, 0, 2, 2, 2]] * 2
    assert OfPixels.looks == 1  # both rows are of one look
    # stretched by itself, each class has its own brightest place: there blue is at its largest
    (stretched,) = segment_images(tiny, [given], systems, Rule())
    assert stretched["all"].tolist() == rows[:2] + [[0, 0, 0, 2, 2, 2]] * 2
    (none,) = segment_images(tiny, [given], systems, Rule(normalisation="none", background=0.999))
    assert set(none["found"].unique().tolist()) <= {0, 1, 3}
    with pytest.raises(ValueError, match="the view of this one holds none"):
        next(segment_images(tiny, [view], systems, Rule()))
    with pytest.raises(ValueError, match="makes no maps of images"):
        ImageSystem(DCLIPMethod.around(projectors(tiny.embed_dim), task))
    mute = Thresholdless.around(projectors(tiny.embed_dim), task)
    mute.maps_images = True  # type: ignore[misc]
    with pytest.raises(ValueError, match="does not find classes"):
        ImageSystem(mute, only_found=True)
    with pytest.raises(ValueError, match="gives no probabilities, so it does not find"):
        mute.found(torch.zeros(1, 3))


def test_one_window_over_everything_is_the_whole_square(tiny: Backbone) -> None:
    called = encode_class_texts(tiny, [("circle",), ("square",)])
    systems = {"one": System("value", called)}
    image = picture(64, 64)
    slid = sliding_view(image, short_side=64, window=64, stride=32)
    (found,) = segment_images(tiny, [slid], systems, Rule())
    (expected,) = segment_images(tiny, [whole_view(image, 64)], systems, Rule())
    assert torch.equal(found["one"], expected["one"])


def test_a_window_the_backbone_cannot_take_is_named(tiny: Backbone) -> None:
    called = encode_class_texts(tiny, [("circle",), ("square",)])
    view = whole_view(picture(64, 64), 50)
    with pytest.raises(ValueError, match="multiples of 32 pixels, not 50 x 50"):
        next(segment_images(tiny, [view], {"one": System("value", called)}, Rule()))


@pytest.mark.parametrize(
    ("phrasings", "message"),
    [
        ([], "class_names is empty"),
        ([("cat",), ()], r"classes \[1\] have no phrasing"),
        ([("cat",), ("dog", "cat")], "class names must be distinct"),
    ],
)
def test_classes_without_a_name_of_their_own_are_refused(
    tiny: Backbone, phrasings: list[tuple[str, ...]], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        encode_class_texts(tiny, phrasings)


def test_templates_are_averaged_as_unit_features(tiny: Backbone) -> None:
    templates = ("a photo of a {}.", "a {}")
    called = encode_class_texts(tiny, [("cat",), ("dog",)], templates=templates)
    rows = [
        F.normalize(sum(F.normalize(tiny.encode_texts([t.format(name)])) for t in templates))
        for name in ("cat", "dog")
    ]
    torch.testing.assert_close(called.features, torch.cat(rows))
    assert math.isclose(float(called.features[0].norm()), 1.0, rel_tol=1e-5)


@pytest.mark.parametrize("num_classes", [1, 2, 3, 20, 171, 300])
def test_the_largest_score_is_that_of_the_first_class_that_has_it(num_classes: int) -> None:
    scores = torch.randn(num_classes, 3, 5).round()  # whole numbers: many are equal
    scores[num_classes // 2, 0, 0] = math.nan
    scores[:, 1, 1] = -math.inf
    largest, classes = _largest(scores)
    expected = scores.max(dim=0)
    assert torch.equal(classes, expected.indices)
    assert torch.equal(largest.nan_to_num(7.0), expected.values.nan_to_num(7.0))

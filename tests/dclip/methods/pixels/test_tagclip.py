"""TagCLIP: its authors' numbers, boxes worked out by hand, and images with nothing to tell."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from torch import Tensor
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from dclip.backbones import load_backbone
from dclip.backbones.clip import OpenCLIPBackbone
from dclip.backbones.value_projection import resize_positional_embedding
from dclip.fitting.batches import Batch
from dclip.methods.method import Task
from dclip.methods.pixels.settings import TagCLIPSettings
from dclip.methods.pixels.tagclip import (
    Look,
    TagCLIP,
    agreed_attention,
    boxes_around_parts,
    class_boxes,
    part_boxes,
)
from dclip.metrics import average_precision, f1_scores

Oracle = tuple[OpenCLIPBackbone, dict[str, Tensor]]
ReadOracle = Callable[[Path], Oracle]
TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-4}
STORED_IN_FLOAT32 = {
    "affinity",
    "tokens",
    "attention_layer0",
    "attention_layer8",
    "attention_layer11",
}


@pytest.fixture(scope="module")
def oracle(golden: Path, read_oracle: ReadOracle) -> Oracle:
    return read_oracle(golden / "tagclip.npz")


def method_of(
    backbone: Any, classes: int = 5, words: int = 3, texts: Tensor | None = None, **own: Any
) -> TagCLIP:
    """A method on classes and words of made-up names; their texts are given."""
    names = tuple(f"class {number}" for number in range(classes))
    own = {"background_words": tuple(f"word {number}" for number in range(words)), **own}
    task = replace(
        Task.of_features(names, torch.ones(2 * classes, backbone.embed_dim)), backbone=backbone
    )
    method = TagCLIP(TagCLIPSettings(**own), task)
    if texts is None:
        seeded = torch.Generator().manual_seed(0)
        texts = torch.randn(classes + words, backbone.embed_dim, generator=seeded)
    method._texts = F.normalize(texts, dim=-1)
    return method.eval()


def as_authors(
    oracle: Oracle, case: str, dtype: torch.dtype, rule: str = "author"
) -> tuple[TagCLIP, Tensor]:
    """The method on the CLIP and the texts of the file, and the image that it is shown."""
    backbone, arrays = oracle
    backbone.model.to(dtype)
    own = {**TagCLIPSettings.presets[rule].own, "background_words": ("one", "two", "three")}
    method = method_of(backbone, texts=arrays[f"{case}.input.text_features"].to(dtype), **own)
    mean, std = (torch.tensor(value, dtype=dtype) for value in (backbone.mean, backbone.std))
    image = arrays[f"{case}.input.image_rgb"][None].to(dtype)
    return method, ((image / 255 - mean) / std).permute(0, 3, 1, 2)


def assert_close(found: Tensor, expected: Tensor, name: str, bound: float) -> None:
    """Relative to the largest entry: what the numbers were recorded for."""
    found = found.detach().double()
    assert found.shape == expected.shape, f"{name}: {list(found.shape)}"
    deviation = float((found - expected).abs().max() / expected.abs().max())
    assert deviation <= bound, f"{name} deviates by {deviation:.2g}, {bound:.2g} is allowed"


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("case", ["full", "early_return"])
def test_every_number_is_the_authors(case: str, dtype: torch.dtype, oracle: Oracle) -> None:
    backbone, arrays = oracle
    method, image = as_authors(oracle, case, dtype)
    with torch.no_grad():
        inside = backbone.encode_with_prompts(
            image, attention=12, heads="mean", own_values=True, positions="bilinear float16"
        )
        look = method.look(image)
        first = look.affinity @ look.coarse
        candidates = (method.local(look) > method.bound(look)).nonzero().flatten()
        again = method.second_look(look, candidates)
        crops = torch.cat(again.crops).double()
        stretched = (first - first.amin(0)) / (first.amax(0) - first.amin(0))
        found = {
            "coarse_probability": look.coarse,
            "affinity": look.affinity,
            "refined_before_class_boxes": first,
            "refined": look.refined,
            "class_box_threshold": stretched.mean(0),
            "local_score": method.local(look),
            "candidate_threshold": method.bound(look),
            "candidates": candidates,
            "number_of_crops": torch.tensor(len(again.crops)),
            "crop_cls_features": method.reidentify(again),
            "crop_cls_attention_allowed": torch.stack(again.allowed),
            "crop_pixel_mean_std": torch.stack(
                [crops.mean((1, 2, 3)), crops.std((1, 2, 3))], dim=1
            ),
            "final_score": method.score(look),
            "tokens": torch.cat([inside.embedding[:, None], inside.local], dim=1),
            **{f"attention_layer{n}": inside.attention[n] for n in (0, 8, 11)},
        }
        method, image = as_authors(oracle, case, dtype, "author_stuff")
        look = method.look(image)
        candidates = (method.local(look) > method.bound(look)).nonzero().flatten()
        crops_of_stuff = len(method.second_look(look, candidates).crops)
        found |= {
            "cocostuff_rule.final_score": method.score(look),
            "cocostuff_rule.candidates": candidates,
            "cocostuff_rule.number_of_crops": torch.tensor(crops_of_stuff),
        }
    stored = {name.removeprefix(f"{case}.out.") for name in arrays if f"{case}.out." in name}
    inner = {"tokens", "attention_layer0", "attention_layer8", "attention_layer11"}
    left_out = set() if case == "full" else inner  # of the file
    assert stored == {*found, "class_boxes_x0y0x1y1_by_class"} - left_out
    for name in sorted(found.keys() & stored):
        value = found[name]
        bound = max(TOLERANCE[dtype], 1e-6 if name in STORED_IN_FLOAT32 else 0.0)
        assert_close(value, arrays[f"{case}.out.{name}"], name, bound)
    assert len(arrays["early_return.out.candidates"]) > 1  # of which one is looked at


@pytest.mark.parametrize("case", ["full", "early_return"])
def test_the_boxes_of_the_parts_are_the_authors(case: str, oracle: Oracle) -> None:
    arrays = oracle[1]
    first = arrays[f"{case}.out.refined_before_class_boxes"].T.reshape(8, 6, 8)
    theirs: dict[int, set[tuple[int, ...]]] = {number: set() for number in range(8)}
    covered = torch.zeros(8, 6, 8, dtype=torch.bool)
    for number, x0, y0, x1, y1 in arrays[f"{case}.out.class_boxes_x0y0x1y1_by_class"].tolist():
        theirs[number].add((y0, x0, y1, x1))
        covered[number, y0:y1, x0:x1] = True
    assert torch.equal(class_boxes(first, drop_last=True), covered)
    low, high = first.amin((1, 2), keepdim=True), first.amax((1, 2), keepdim=True)
    steps = (255 * (first - low) / (high - low)).floor()
    active = steps > (255 * ((first - low) / (high - low)).mean((1, 2), keepdim=True)).floor()
    ends = torch.tensor([6, 8, 5, 7])
    for number, boxes in enumerate(part_boxes(active)):
        own = torch.minimum(boxes[active[number]], ends)
        assert {tuple(box) for box in own.tolist()} == theirs[number]


def test_positions_and_measures_are_the_authors(oracle: Oracle) -> None:
    backbone, arrays = oracle
    table = backbone.model.double().visual.positional_embedding
    grids: Any = {"native_grid": (14, 14), "grid": (6, 8)}
    resized = resize_positional_embedding(table, **grids, mode="bilinear")
    assert torch.equal(resized.half().double(), arrays["out.position_table_6x8"])
    scores, labels = arrays["metric.input.scores"], arrays["metric.input.labels"]
    ap, their = average_precision(scores, labels), arrays["metric.out.ap_per_class"]
    assert ap.isnan().tolist() == [False, False, True, False]  # no positive: theirs is 0
    assert_close(ap.nan_to_num(0.0), their, "AP", 1e-6)
    found = method_of(backbone, classes=4).found(scores).double()
    f1 = f1_scores(found, labels)
    measured = torch.tensor([f1.of1, f1.overall_precision, f1.overall_recall], dtype=torch.float64)
    assert_close(
        measured, arrays["metric.out.f1_precision_recall_overall_relative_0.5"], "F1", 1e-6
    )


def test_boxes_hold_all_of_what_is_connected_and_the_border_on_request() -> None:
    # a ring with a cell in it, two cells that touch at a corner, and one in the last row
    rows = ["1110000", "1010010", "1110100", "0000000", "0000001"]
    active = torch.tensor([[cell == "1" for cell in row] for row in rows])[None]
    wanted = ["1110000", "1110110", "1110110", "0000000", "0000001"]
    whole = torch.tensor([[cell == "1" for cell in row] for row in wanted])[None]
    assert torch.equal(boxes_around_parts(active), whole)
    whole[0, 4, 6] = False  # it lies in the last row and column alone
    assert torch.equal(boxes_around_parts(active, drop_last=True), whole)
    assert part_boxes(active)[0, 1, 5].tolist() == [1, 4, 3, 6]
    assert part_boxes(active)[0, 1, 1].tolist() == [-1] * 4
    nothing = torch.zeros(2, 3, 1, dtype=torch.bool)
    assert not boxes_around_parts(nothing).any()
    assert boxes_around_parts(~nothing).all()
    assert not boxes_around_parts(~nothing, drop_last=True).any()  # it has one column


def flooded(active: np.ndarray) -> np.ndarray:
    """The boxes around parts, each found by walking from a cell to its neighbours."""
    covered, seen = np.zeros_like(active), np.zeros_like(active)
    for start in zip(*np.nonzero(active), strict=True):
        if seen[start]:
            continue
        seen[start], part = True, [start]
        for row, column in part:
            for other in np.ndindex(3, 3):
                to = (row + other[0] - 1, column + other[1] - 1)
                inside = 0 <= to[0] < active.shape[0] and 0 <= to[1] < active.shape[1]
                if inside and active[to] and not seen[to]:
                    seen[to] = True
                    part.append(to)
        cells = np.array(part)
        (top, left), (bottom, right) = cells.min(0), cells.max(0) + 1
        covered[top:bottom, left:right] = True
    return covered


def test_boxes_are_those_of_a_walk_from_cell_to_cell() -> None:
    rng = np.random.default_rng(0)
    for size in ((1, 1), (1, 9), (7, 5), (12, 12)):
        active = rng.random((40, *size)) < rng.random((40, 1, 1))
        found = boxes_around_parts(torch.from_numpy(active)).numpy()
        assert np.array_equal(found, np.stack([flooded(own) for own in active]))
    snake = np.ones((9, 9), dtype=bool)  # as long a way as there is
    snake[1::4, :-1] = snake[3::4, 1:] = False
    assert boxes_around_parts(torch.from_numpy(snake)[None]).all()


def test_a_map_is_cut_to_steps_and_one_without_a_difference_is_one_part() -> None:
    # stretched: 0, 1/2, 1; the mean is 1/2, floor(255 / 2) = 127, and 127 > 127 does not hold
    maps = torch.tensor([[[0.0, 1.0, 2.0]], [[0.3, 0.3, 0.3]], [[0.0, 0.0, 0.0]]])
    assert class_boxes(maps)[:, 0].tolist() == [[False, False, True], [True] * 3, [True] * 3]
    # 0.5031 x 255 = 128.3 is above floor(255 x 0.5010) = 127
    assert class_boxes(torch.tensor([[[0.0, 0.5031, 1.0]]]))[0, 0].tolist() == [False, True, True]


def test_attention_counts_where_blocks_agree() -> None:
    blocks = [torch.tensor([[1.0, 3.0], [2.0, 2.0]]), torch.tensor([[4.0, 0.0], [4.0, 0.0]])]
    blocks.append(torch.full((2, 2), 0.5))  # the same everywhere: it votes for all
    # above the means 2 and 2: [0 1; 0 0] and [1 0; 1 0]
    mean = (blocks[0] + blocks[1]) / 2
    expected = mean * torch.tensor([[1, 1], [1, 0]])
    torch.testing.assert_close(agreed_attention(blocks, mean_of=3, votes=2), expected)
    torch.testing.assert_close(agreed_attention(blocks, mean_of=None, votes=2), expected)
    last = agreed_attention(blocks, mean_of=1, votes=1)
    torch.testing.assert_close(last, blocks[1])
    assert not agreed_attention(blocks, mean_of=1, votes=3).any()


@pytest.fixture(scope="module")
def vit() -> OpenCLIPBackbone:
    backbone = load_backbone("tiny-vit", pretrained="random")
    assert isinstance(backbone, OpenCLIPBackbone)
    return backbone


def pixels(height: int, width: int, images: int = 1) -> Tensor:
    seeded = torch.Generator().manual_seed(1)
    return torch.randint(256, (images, height, width, 3), generator=seeded, dtype=torch.uint8)


def batch(shown: Tensor) -> Batch:
    labels = torch.empty(len(shown), 0, dtype=torch.int8)
    return Batch(torch.empty(len(shown), 0, 0), labels, pixels=shown)


def test_an_image_of_one_patch_is_its_own_crop(vit: OpenCLIPBackbone) -> None:
    method = method_of(vit, words=0)
    (image,) = method._images(batch(pixels(16, 16)))
    look = method.look(image)
    attention = vit.encode_with_prompts(image, attention=6, heads="mean", positions="bilinear")
    share = torch.stack([each[0, 1:, 1:] for each in attention.attention[2:5]]).mean()
    local = share * look.coarse[0]
    torch.testing.assert_close(look.refined[0], local)
    large = F.interpolate(image, (192, 192), mode="bilinear", align_corners=False)
    chances = method._chances(vit.encode_images(large).embedding)[0]
    again = local > (local.min() + local.max()) / 2
    assert 0 < int(again.sum()) < 5
    expected = torch.where(again, (local + chances) / 2, local)
    scores = method.scores(batch(pixels(16, 16)))
    torch.testing.assert_close(scores[0], expected)


def test_classes_that_do_not_stand_out_are_looked_at_once(vit: OpenCLIPBackbone) -> None:
    method = method_of(vit, classes=2, words=1)
    refined = torch.tensor([[0.125, 0.25, 0.875], [0.25, 0.5, 0.125]])  # the word is above all
    unseen: Any = torch.empty(1, 3, 16, 32)
    look = Look(unseen, (1, 2), refined, torch.eye(2), refined)
    method.reidentify = None  # type: ignore[assignment]
    assert method.score(look).tolist() == pytest.approx([0.25, 0.5])  # 0.5 is not above 0.5
    constant = Look(unseen, (1, 2), refined, torch.eye(2), torch.full((2, 3), 0.4))
    assert method.score(constant).tolist() == pytest.approx([0.4, 0.4])


def test_one_class_needs_something_to_be_compared_with(vit: OpenCLIPBackbone) -> None:
    assert method_of(vit, classes=1, words=1).scores(batch(pixels(32, 32))).shape == (1, 1)
    with pytest.raises(ValueError, match="one class without background_words"):
        method_of(vit, classes=1, words=0)
    task = method_of(vit).task
    sky = replace(task, class_names=("Sky",), pairs=task.pairs[:2])
    with pytest.raises(ValueError, match="one class without"):  # the word is the class
        TagCLIP(TagCLIPSettings(background_words=("sky",)), sky)


def test_what_cannot_be_is_refused_by_name(vit: OpenCLIPBackbone) -> None:
    task = method_of(vit).task
    with pytest.raises(ValueError, match=r"TagCLIP needs attention, which the backbone tiny"):
        TagCLIP(TagCLIPSettings(), replace(task, backbone=load_backbone("tiny")))
    with pytest.raises(ValueError, match="give it a task that has the backbone"):
        TagCLIP(TagCLIPSettings(), replace(task, backbone=None))
    with pytest.raises(ValueError, match="7 votes were asked for of the 6"):
        TagCLIP(TagCLIPSettings(votes=7), task)
    with pytest.raises(ValueError, match="multiples of 16 pixels"):
        TagCLIP(TagCLIPSettings(crop_size=100), task)
    for wrong in ({"background_words": ("sky", "Sky")}, {"templates": ("a photo",)}):
        with pytest.raises(ValidationError):
            TagCLIPSettings(**wrong)


def test_texts_are_the_mean_of_85_prompts_and_words_that_are_classes_are_left_out(
    vit: OpenCLIPBackbone,
) -> None:
    settings = TagCLIPSettings()
    assert len(set(settings.all_templates())) == 85
    assert len(settings.background_words) == 25
    assert len(TagCLIPSettings.presets["author_coco"].own["background_words"]) == 23
    own = TagCLIPSettings(background_words=("sky", "keyboard"), templates=("a {}.", "the {}."))
    task = Task.of_features(("Keyboard", "dog"), torch.ones(4, 64))
    method = TagCLIP(own, replace(task, backbone=vit))
    assert method.words() == ("Keyboard", "dog", "sky")
    both = F.normalize(vit.encode_texts(["a dog.", "the dog."]), dim=-1)
    torch.testing.assert_close(method.texts()[1], F.normalize(both.mean(0), dim=-1))
    other = method.for_classes(replace(task, class_names=("cat",), pairs=task.pairs[:2]))
    assert other.class_features().shape == (1, 64)  # and it kept the backbone


@torch.no_grad()
def test_what_the_authors_do_by_mistake_is_done_on_request_alone(vit: OpenCLIPBackbone) -> None:
    shown = batch(pixels(4 * 16, 19 * 16)), batch(pixels(5 * 16, 15 * 16))  # 76 patches, and 75
    usual, as_text = method_of(vit), method_of(vit, as_text_at_76=True)
    assert not torch.allclose(usual.maps(shown[0])[1], as_text.maps(shown[0])[1])
    assert torch.equal(usual.maps(shown[1])[1], as_text.maps(shown[1])[1])
    # a class that the last row alone shows has an empty box; by early_return it is the last
    seen = torch.full((9, 3), 0.01)
    seen[8, 0] = seen[0, 1] = 0.9
    look = Look(torch.zeros(1, 3, 48, 48), (3, 3), seen, torch.eye(9), seen)
    every = torch.tensor([0, 1])
    expected = {(False, False): [0, 1], (True, False): [1], (True, True): []}
    for (drop, early), classes in expected.items():
        method = method_of(vit, 2, 1, drop_last_row_col=drop, early_return=early)
        assert method.second_look(look, every).classes == classes
    assert TagCLIPSettings().idle() == {"early_return"}


def test_a_large_image_is_made_smaller_and_batches_are_images_by_themselves(
    vit: OpenCLIPBackbone,
) -> None:
    method = method_of(vit, most_patches=12)
    shown = pixels(96, 160, images=2)  # 6 x 10 patches
    scores, maps = method.maps(batch(shown))
    assert maps.shape == (2, 5, 2, 4)  # sqrt(12 / 60) of the sides, rounded down
    for number in range(2):
        torch.testing.assert_close(scores[number], method.scores(batch(shown[number, None]))[0])
    thin = method_of(vit, most_patches=3).maps(batch(pixels(16, 320)))[1]
    assert thin.shape == (1, 5, 1, 3)
    assert ((scores >= 0) & (scores <= 1)).all()
    found = method.found(torch.tensor([[0.1, 0.5, 0.4, 0.2, 0.1], [0.3] * 5]))
    assert found.int().tolist() == [[0, 1, 1, 0, 0], [1, 0, 0, 0, 0]]  # the best of equals


@torch.no_grad()
def test_a_device_makes_no_difference(device: torch.device, vit: OpenCLIPBackbone) -> None:
    method, shown = method_of(vit), batch(pixels(96, 128))
    scores, maps = method.maps(shown)
    try:
        there = method.on(device).maps(shown.to(device))
    finally:
        method.on("cpu")
    for found, expected in zip(there, (scores, maps), strict=True):
        assert found.device.type == device.type
        torch.testing.assert_close(found.cpu(), expected, rtol=1e-3, atol=1e-5)


class Largest(TorchDispatchMode):
    """Notes the largest tensor that is made."""

    def __init__(self) -> None:
        super().__init__()
        self.numbers = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        for one in made if isinstance(made, tuple | list) else [made]:
            if isinstance(one, Tensor):
                self.numbers = max(self.numbers, one.numel())
        return made


def test_memory_does_not_grow_by_classes_times_pairs_of_patches(vit: OpenCLIPBackbone) -> None:
    method = method_of(vit, classes=171, words=0)
    with Largest() as largest, torch.no_grad():
        look = method.look(method._images(batch(pixels(96, 128)))[0])
    assert look.refined.shape == (48, 171)
    tokens, heads, width = 49, 4, 128
    assert largest.numbers <= max(heads * tokens**2, 4 * 171 * 48, 3 * 256 * 16 * width)
    assert largest.numbers < 171 * 48**2

"""Prompts into CLIP's towers, against open_clip's own forward pass with hooks in it."""

import copy
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import open_clip
import pytest
import torch
from torch import Tensor, nn

from dclip.backbones import (
    ImageGradients,
    TextGradients,
    Tower,
    load_backbone,
    require,
)
from dclip.backbones.clip import OpenCLIPBackbone

BuildModel = Callable[..., open_clip.CLIP]
ReadOracle = Callable[[Path], tuple[OpenCLIPBackbone, dict[str, Tensor]]]

TEXTS = ["a photo of a dog.", "a photo of two white horses.", "the sea"]
BLOCKS = 4


@pytest.fixture
def wrap(
    build_model: BuildModel, tokenizer: open_clip.SimpleTokenizer
) -> Callable[..., OpenCLIPBackbone]:
    """Function from a tower, its changes and a dtype to a backbone of four blocks a transformer."""

    def build(
        tower: str = "vit", dtype: torch.dtype = torch.float64, **changes: Any
    ) -> OpenCLIPBackbone:
        if tower == "vit":
            changes = {"layers": BLOCKS, **changes}
        model = build_model(tower, text={"layers": BLOCKS}, **changes).to(dtype)
        return OpenCLIPBackbone(model, tokenizer, name=tower)

    return build


def vectors(*shape: int, like: Tensor) -> Tensor:
    return torch.randn(shape, dtype=like.dtype).requires_grad_()


def replace_after(block: nn.Module, prompts: Tensor, at: int) -> Any:
    """Let open_clip's own block end with these states, from place ``at`` on."""

    def hook(_module: nn.Module, _inputs: Any, output: Tensor) -> Tensor:
        changed = output.clone()
        changed[:, at : at + prompts.shape[-2]] = prompts
        return changed

    return block.register_forward_hook(hook)


@pytest.mark.parametrize("name", ["tiny", "vit", "resnet"])
def test_without_prompts_texts_are_those_of_encode_texts(
    name: str, wrap: Callable[..., OpenCLIPBackbone]
) -> None:
    backbone = load_backbone("tiny") if name == "tiny" else wrap(name, torch.float32)
    texts = require(backbone, "token embeddings", for_="CoOp")
    ids = texts.tokenize(TEXTS)
    embeddings = texts.embed_tokens(ids)
    assert embeddings.shape == (*ids.shape, texts.text_tower.width)
    found = texts.encode_embedded(embeddings, ids)
    expected = backbone.encode_texts(TEXTS)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("attention", [0, 2, BLOCKS])
@pytest.mark.parametrize("size", [(32, 32), (24, 48)])
def test_without_prompts_images_are_those_of_encode_images(
    size: tuple[int, int], attention: int, wrap: Callable[..., OpenCLIPBackbone]
) -> None:
    backbone = wrap("vit", torch.float32)
    images = torch.randn(2, 3, *size)
    found = backbone.encode_with_prompts(images, attention=attention)
    expected = backbone.encode_images(images)
    torch.testing.assert_close(found.embedding, expected.embedding, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(found.local, expected.local, rtol=1e-5, atol=1e-5)
    assert len(found.attention) == len(found.entering) == attention


@pytest.mark.parametrize("each", [False, True], ids=["shared", "each its own"])
@pytest.mark.parametrize("position", [1, 0])
@pytest.mark.parametrize("depth", [1, 3])
def test_deep_prompts_of_texts_are_open_clips_own_pass_with_states_replaced(
    depth: int, position: int, each: bool, wrap: Callable[..., OpenCLIPBackbone]
) -> None:
    backbone = wrap()
    model = backbone.model
    ids = backbone.tokenize(TEXTS)
    embeddings = backbone.embed_tokens(ids)
    rows = (len(TEXTS),) if each else ()
    deep = [vectors(*rows, 2, 16, like=embeddings) for _ in range(depth)]
    found = backbone.encode_embedded(embeddings, ids, deep, position=position)

    hooks = [
        replace_after(model.transformer.resblocks[index], prompts, position)
        for index, prompts in enumerate(deep)
    ]
    expected = model.encode_text(ids)
    for hook in hooks:
        hook.remove()
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-10)
    assert not torch.allclose(found, model.encode_text(ids))


def test_learned_contexts_are_open_clips_own_pass_with_other_rows_in_its_table(
    wrap: Callable[..., OpenCLIPBackbone],
) -> None:
    backbone = wrap()
    ids = backbone.tokenize(["x x x dog.", "x x x white horse."])
    context = torch.randn(3, 16, dtype=torch.float64)
    embeddings = backbone.embed_tokens(ids).clone()
    embeddings[:, 1:4] = context
    found = backbone.encode_embedded(embeddings, ids)

    model = copy.deepcopy(backbone.model)
    x = int(ids[0, 1])
    other = torch.tensor([20001, 20002, 20003])
    assert not torch.isin(ids, other).any()
    model.token_embedding.weight[other] = context
    assert (ids[:, 1:4] == x).all()
    renamed = ids.clone()
    renamed[:, 1:4] = other
    torch.testing.assert_close(found, model.encode_text(renamed), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("each", [False, True], ids=["shared", "each its own"])
@pytest.mark.parametrize("depth", [0, 1, 3])
@pytest.mark.parametrize("attention", [0, BLOCKS])
def test_visual_prompts_are_open_clips_own_pass_with_states_appended_and_replaced(
    attention: int, depth: int, each: bool, wrap: Callable[..., OpenCLIPBackbone]
) -> None:
    backbone = wrap()
    tower = backbone.model.visual
    images = torch.randn(2, 3, 32, 32, dtype=torch.float64)
    rows = (2,) if each else ()
    first, *deep = (vectors(*rows, 3, 32, like=images) for _ in range(1 + depth))
    found = backbone.encode_with_prompts(images, first, deep, attention=attention)

    def append(_module: nn.Module, inputs: tuple[Tensor]) -> tuple[Tensor]:
        return (torch.cat([inputs[0], first.expand(2, 3, 32)], dim=1),)

    kept = []
    blocks = tower.transformer.resblocks
    hooks = [
        tower.ln_pre.register_forward_pre_hook(append),
        *(replace_after(blocks[i], prompts, 17) for i, prompts in enumerate(deep)),
        tower.transformer.register_forward_hook(lambda _m, _i, output: kept.append(output)),
    ]
    expected = backbone.model.encode_image(images)
    for hook in hooks:
        hook.remove()
    torch.testing.assert_close(found.embedding, expected, rtol=1e-10, atol=1e-10)
    local = tower.ln_post(kept[0][:, 1:17]) @ tower.proj
    torch.testing.assert_close(found.local, local, rtol=1e-10, atol=1e-10)


def test_attention_is_the_softmax_of_what_enters(wrap: Callable[..., OpenCLIPBackbone]) -> None:
    backbone = wrap()
    images = torch.randn(2, 3, 32, 32, dtype=torch.float64)
    found = backbone.encode_with_prompts(images, vectors(3, 32, like=images), attention=2)
    blocks = backbone.model.visual.transformer.resblocks[-2:]
    for block, entering, attention in zip(blocks, found.entering, found.attention, strict=True):
        assert attention.shape == (2, 2, 20, 20)
        maps = zip(block.attn.in_proj_weight.split(16), block.attn.in_proj_bias.split(16),
                   strict=True)  # fmt: skip
        parts = [entering @ weight.T + bias for weight, bias in maps]  # two heads of q, k and v
        for head in range(2):
            logits = parts[head] @ parts[2 + head].transpose(1, 2) / 16**0.5
            torch.testing.assert_close(attention[:, head], logits.softmax(dim=-1))


def test_prompts_after_a_block_change_their_own_places_first_and_others_a_block_later(
    wrap: Callable[..., OpenCLIPBackbone],
) -> None:
    backbone = wrap()
    images = torch.randn(2, 3, 32, 32, dtype=torch.float64)
    first, *deep = (torch.randn(2, 32, dtype=torch.float64) for _ in range(3))
    before = backbone.encode_with_prompts(images, first, deep, attention=BLOCKS).entering
    changed = [deep[0], deep[1] + torch.randn(2, 32)]
    after = backbone.encode_with_prompts(images, first, changed, attention=BLOCKS).entering
    # the second deep prompts stand when block 1 is done: block 2 is the first that they enter
    assert torch.equal(before[0], after[0])
    assert torch.equal(before[1], after[1])
    assert torch.equal(before[2][:, :17], after[2][:, :17])
    assert (before[2][:, 17:] != after[2][:, 17:]).any(dim=-1).all()
    assert (before[3] != after[3]).any(dim=-1).all()
    # the prompts enter block 2 alike for both images; behind it, none takes their place
    assert torch.equal(before[2][0, 17:], before[2][1, 17:])
    assert not torch.equal(before[3][0, 17:], before[3][1, 17:])


def test_prompts_are_forgotten_once_others_stand_in_their_place(
    wrap: Callable[..., OpenCLIPBackbone],
) -> None:
    # where block 0 carries nothing from place to place, nothing has read what they overwrite
    backbone = wrap()
    ids = backbone.tokenize(TEXTS)
    embeddings = backbone.embed_tokens(ids)
    backbone.model.transformer.resblocks[0].attn.out_proj.weight.zero_()
    deep = [torch.randn(2, 16, dtype=torch.float64)]
    expected = backbone.encode_embedded(embeddings, ids, deep)
    embeddings[:, 1:3] += 1
    assert torch.equal(backbone.encode_embedded(embeddings, ids, deep), expected)
    assert not torch.equal(backbone.encode_embedded(embeddings, ids), expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_gradients_reach_what_is_learned_and_no_weight(
    dtype: torch.dtype, wrap: Callable[..., OpenCLIPBackbone]
) -> None:
    backbone = wrap("vit", dtype)
    ids = backbone.tokenize(TEXTS)
    embeddings = backbone.embed_tokens(ids)
    assert not embeddings.requires_grad
    embeddings.requires_grad_()
    images = torch.randn(3, 3, 32, 32, dtype=dtype)
    text_deep = [vectors(2, 16, like=images) for _ in range(3)]
    visual = [vectors(2, 32, like=images) for _ in range(4)]
    texts = backbone.encode_embedded(embeddings, ids, text_deep)
    features = backbone.encode_with_prompts(images, visual[0], visual[1:], attention=1)
    (features.embedding @ texts.T).square().sum().backward(retain_graph=True)
    for learned in (embeddings, *text_deep, *visual):
        assert learned.grad is not None
        assert learned.grad.dtype == dtype
        assert (learned.grad != 0).any()
    assert not (embeddings.grad[:, 1:3] == 0).all()  # through block 0, before they are replaced
    # what stands behind the end of a text has no part in it
    ends = ids.argmax(dim=1)
    assert all((embeddings.grad[row, end + 1 :] == 0).all() for row, end in enumerate(ends))
    assert all(weight.grad is None for weight in backbone.model.parameters())
    assert not any(weight.requires_grad for weight in backbone.model.parameters())
    # by what enters the last block, as Grad-CAM has it
    (by_entering,) = torch.autograd.grad(features.embedding.sum(), features.entering[0])
    assert (by_entering[:, 1:17] != 0).any()


def test_gradients_are_finite_differences(wrap: Callable[..., OpenCLIPBackbone]) -> None:
    backbone = wrap()
    ids = backbone.tokenize(TEXTS)
    images = torch.randn(3, 3, 32, 32, dtype=torch.float64)
    generator = torch.Generator().manual_seed(3)
    learned = [
        backbone.embed_tokens(ids),
        torch.randn(2, 16, dtype=torch.float64, generator=generator),
        torch.randn(2, 32, dtype=torch.float64, generator=generator),
        torch.randn(2, 32, dtype=torch.float64, generator=generator),
    ]
    weight = torch.randn(3, 3, dtype=torch.float64, generator=generator)

    def loss(embeddings: Tensor, deep: Tensor, first: Tensor, visual: Tensor) -> Tensor:
        texts = backbone.encode_embedded(embeddings, ids, [deep])
        features = backbone.encode_with_prompts(images, first, [visual], attention=1)
        together = (features.embedding @ texts.T * weight).sum() + features.local.square().sum()
        return together + features.attention[0].square().sum()

    gradients = torch.autograd.grad(loss(*(each.requires_grad_() for each in learned)), learned)
    step = 1e-6
    for place, gradient in enumerate(gradients):
        index = (1, 3, 5) if place == 0 else (1, 7)
        sides = []
        for sign in (1, -1):
            moved = [each.detach().clone() for each in learned]
            moved[place][index] += sign * step
            sides.append(float(loss(*moved)))
        difference = (sides[0] - sides[1]) / (2 * step)
        assert float(gradient[index]) == pytest.approx(difference, rel=1e-5, abs=1e-7)


def test_rows_do_not_look_at_each_other(wrap: Callable[..., OpenCLIPBackbone]) -> None:
    backbone = wrap()
    ids = backbone.tokenize(TEXTS)
    embeddings = backbone.embed_tokens(ids)
    images = torch.randn(3, 3, 32, 32, dtype=torch.float64)
    deep = [torch.randn(3, 2, 16, dtype=torch.float64) for _ in range(2)]
    first, visual = (torch.randn(3, 2, 32, dtype=torch.float64) for _ in range(2))
    texts = backbone.encode_embedded(embeddings, ids, deep)
    features = backbone.encode_with_prompts(images, first, [visual], attention=1)
    for row in range(3):
        own = slice(row, row + 1)
        alone = backbone.encode_embedded(embeddings[own], ids[own], [each[own] for each in deep])
        torch.testing.assert_close(alone[0], texts[row])
        image = backbone.encode_with_prompts(images[own], first[own], [visual[own]], attention=1)
        torch.testing.assert_close(image.embedding[0], features.embedding[row])
        torch.testing.assert_close(image.local[0], features.local[row])
        torch.testing.assert_close(image.attention[0][0], features.attention[0][row])


def test_texts_may_be_cut_behind_their_end_and_not_before(
    wrap: Callable[..., OpenCLIPBackbone],
) -> None:
    backbone = wrap()
    ids = backbone.tokenize(TEXTS)
    embeddings = backbone.embed_tokens(ids)
    longest = int(ids.argmax(dim=1).max()) + 1
    assert longest < ids.shape[1]
    deep = [torch.randn(1, 16, dtype=torch.float64)]
    cut = backbone.encode_embedded(embeddings[:, :longest], ids[:, :longest], deep)
    torch.testing.assert_close(cut, backbone.encode_embedded(embeddings, ids, deep))
    with pytest.raises(ValueError, match="text 1 of 3 has no token that ends it"):
        backbone.encode_embedded(embeddings[:, : longest - 1], ids[:, : longest - 1])


def test_a_text_tower_that_reads_both_ways_takes_whole_texts_only(
    build_model: BuildModel, tokenizer: open_clip.SimpleTokenizer
) -> None:
    model = build_model("vit", text={"no_causal_mask": True, "layers": 2})
    backbone = OpenCLIPBackbone(model, tokenizer, name="both ways")
    ids = backbone.tokenize(TEXTS)
    embeddings = backbone.embed_tokens(ids)
    found = backbone.encode_embedded(embeddings, ids)
    torch.testing.assert_close(found, backbone.encode_texts(TEXTS), rtol=1e-5, atol=1e-5)
    with pytest.raises(ValueError, match="both ways reads 12 tokens, not 11"):
        backbone.encode_embedded(embeddings[:, :11], ids[:, :11])


@pytest.mark.parametrize(
    ("text", "vision"),
    [
        ({"ls_init_value": 0.5}, {"ls_init_value": 0.5}),
        ({"proj_bias": True}, {"no_ln_pre": True}),
        ({"proj_type": "none"}, {"final_ln_after_pool": True}),
        ({"pool_type": "eos", "eos_id": 49407}, {"patch_dropout": 0.5}),
        ({"qk_norm": True}, {"qk_norm": True}),
    ],
    ids=str,
)
def test_variants_of_the_towers_are_followed(
    text: dict[str, Any],
    vision: dict[str, Any],
    build_model: BuildModel,
    tokenizer: open_clip.SimpleTokenizer,
) -> None:
    model = build_model("vit", text=text, **vision)
    backbone = OpenCLIPBackbone(model, tokenizer, name="variant")
    ids = backbone.tokenize(TEXTS)
    found = backbone.encode_embedded(backbone.embed_tokens(ids), ids)
    torch.testing.assert_close(found, backbone.encode_texts(TEXTS), rtol=1e-5, atol=1e-5)
    images = torch.randn(2, 3, 32, 32)
    expected = backbone.encode_images(images).embedding
    for attention in (0, 1) if "attention" in backbone.offers else (0,):
        prompted = backbone.encode_with_prompts(images, attention=attention)
        torch.testing.assert_close(prompted.embedding, expected, rtol=1e-5, atol=1e-5)


def test_sizes_are_those_prompts_have_to_have(wrap: Callable[..., OpenCLIPBackbone]) -> None:
    vit = wrap("vit")
    assert (vit.text_tower, vit.image_tower) == (Tower(16, BLOCKS), Tower(32, BLOCKS))
    assert wrap("resnet").image_tower is None


@pytest.mark.parametrize(
    ("shapes", "position", "reason"),
    [
        ([(2, 16)] * 4, 1, "4 blocks, so that deep prompts follow up to 3 of them, not 4"),
        ([(2, 15)], 1, r"\[prompts, 16\] or \[3, prompts, 16\], not \[2, 15\]"),
        ([(2, 2, 16)], 1, r"not \[2, 2, 16\]"),
        ([(16,)], 1, r"not \[16\]"),
        ([(2, 16), (1, 16)], 1, r"same number of prompts.*\[1, 2\]"),
        ([(0, 16)], 1, r"1 or more.*\[0\]"),
        ([(3, 16)], 1, "3 prompts from position 1 on .* the shortest text ends at position 3"),
        ([(2, 16)], -1, "2 prompts from position -1 on do not fit"),
    ],
)
def test_deep_prompts_of_texts_that_do_not_fit_are_refused(
    shapes: list[tuple[int, ...]],
    position: int,
    reason: str,
    wrap: Callable[..., OpenCLIPBackbone],
) -> None:
    backbone = wrap("vit", torch.float32)
    ids = backbone.tokenize(TEXTS)
    embeddings = backbone.embed_tokens(ids)
    with pytest.raises(ValueError, match=reason):
        backbone.encode_embedded(
            embeddings, ids, [torch.zeros(*each) for each in shapes], position=position
        )


def test_embeddings_that_are_not_of_the_ids_are_refused(
    wrap: Callable[..., OpenCLIPBackbone],
) -> None:
    backbone = wrap("vit", torch.float32)
    ids = backbone.tokenize(TEXTS)
    embeddings = backbone.embed_tokens(ids)
    for wrong in (embeddings[:2], embeddings[:, :5], embeddings[..., :5]):
        with pytest.raises(ValueError, match=r"do not belong to ids of shape \[3, 12\]"):
            backbone.encode_embedded(wrong, ids)
    longer = [torch.cat([each, each], dim=1) for each in (embeddings, ids)]
    with pytest.raises(ValueError, match="vit reads 12 tokens, not 24"):
        backbone.encode_embedded(*longer)


@pytest.mark.parametrize(
    ("first", "deep", "attention", "reason"),
    [
        (None, [(2, 32)], 0, "there are none at the input"),
        ((2, 32), [(2, 32)] * 4, 0, "follow up to 3 of them, not 4"),
        ((2, 31), [], 0, r"\[prompts, 32\] or \[2, prompts, 32\], not \[2, 31\]"),
        ((2, 32), [(3, 32)], 0, r"same number of prompts.*\[2, 3\]"),
        (None, [], 5, "the last 5 blocks was asked for; vit has 4 blocks"),
        (None, [], -1, "the last -1 blocks"),
    ],
)
def test_visual_prompts_that_do_not_fit_are_refused(
    first: tuple[int, ...] | None,
    deep: list[tuple[int, ...]],
    attention: int,
    reason: str,
    wrap: Callable[..., OpenCLIPBackbone],
) -> None:
    backbone = wrap("vit", torch.float32)
    with pytest.raises(ValueError, match=reason):
        backbone.encode_with_prompts(
            torch.zeros(2, 3, 32, 32),
            None if first is None else torch.zeros(*first),
            [torch.zeros(*each) for each in deep],
            attention=attention,
        )
    with pytest.raises(ValueError, match=r"not pixels with values up to 255"):
        backbone.encode_with_prompts(torch.full((1, 3, 32, 32), 255.0))


def test_a_resnet_says_that_it_takes_no_visual_prompts(
    wrap: Callable[..., OpenCLIPBackbone],
) -> None:
    backbone = wrap("resnet")
    assert backbone.offers == ("token embeddings",)
    reason = r"resnet has no ViT .* visual prompts, at the input or deeper, .* not available"
    with pytest.raises(ValueError, match=reason):
        backbone.encode_with_prompts(torch.zeros(1, 3, 96, 96))
    for need in ("visual prompts", "attention"):
        reason = (
            rf"^MaPLe needs {need}, which the backbone resnet does not offer \(it offers token"
            r" embeddings\); take a ViT of open_clip, such as ViT-B-16$"
        )
        with pytest.raises(ValueError, match=reason):
            require(backbone, need, for_="MaPLe")


def test_tokens_that_keep_their_values_are_maskclips_and_what_they_would_attend_to_stays(
    wrap: Callable[..., OpenCLIPBackbone],
) -> None:
    backbone = wrap()
    images = torch.randn(2, 3, 32, 32, dtype=torch.float64)
    usual = backbone.encode_with_prompts(images, attention=BLOCKS)
    for attention in (0, BLOCKS):
        own = backbone.encode_with_prompts(
            images, attention=attention, heads="mean", own_values=True
        )
        expected = backbone.encode_images(images, kind="maskclip").local
        torch.testing.assert_close(own.local, expected, rtol=1e-10, atol=1e-10)
    assert not torch.allclose(own.embedding, usual.embedding)  # the class token keeps its own, too
    for mean, each in zip(own.attention, usual.attention, strict=True):
        torch.testing.assert_close(mean, each.mean(dim=1))


@pytest.mark.parametrize("positions", ["bilinear", "bilinear float16"])
def test_positions_are_drawn_out_as_asked_and_exact_on_their_own_grid(
    positions: Any, wrap: Callable[..., OpenCLIPBackbone]
) -> None:
    backbone = wrap()
    images = torch.randn(1, 3, 32, 32, dtype=torch.float64)
    expected = backbone.encode_images(images).embedding
    found = backbone.encode_with_prompts(images, positions=positions).embedding
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-10)
    wide = torch.randn(1, 3, 32, 48, dtype=torch.float64)
    found = backbone.encode_with_prompts(wide, positions=positions).embedding
    bilinear = backbone.encode_images(wide, kind="vv").embedding  # whose positions are bilinear
    tolerance = 1e-10 if positions == "bilinear" else 1e-3
    torch.testing.assert_close(found, bilinear, rtol=tolerance, atol=tolerance)
    assert torch.equal(found, bilinear) == (positions == "bilinear")


def test_what_a_mask_hides_from_every_token_of_one_image_does_not_matter(
    wrap: Callable[..., OpenCLIPBackbone],
) -> None:
    backbone = wrap()
    images = torch.randn(2, 3, 32, 32, dtype=torch.float64)
    changed = images.clone()
    changed[:, :, :8, 8:16] += 1.0  # the second patch
    mask = torch.zeros(2, 17, 17, dtype=torch.float64)
    mask[0, [*range(2), *range(3, 17)], 2] = -torch.inf
    before, after = (
        backbone.encode_with_prompts(each, mask=mask).embedding for each in (images, changed)
    )
    torch.testing.assert_close(before[0], after[0], rtol=1e-10, atol=1e-10)
    assert not torch.allclose(before[1], after[1])
    alone = backbone.encode_with_prompts(images[:1], mask=mask[0], attention=1)
    torch.testing.assert_close(alone.embedding[0], before[0], rtol=1e-10, atol=1e-10)
    assert (alone.attention[0][0, :, 0, 2] == 0).all()
    with pytest.raises(ValueError, match=r"masks of shape \[17, 17\] or \[2, 17, 17\], not \[16"):
        backbone.encode_with_prompts(images, mask=torch.zeros(16, 16))
    other = wrap("vit", torch.float32, qk_norm=True)
    with pytest.raises(ValueError, match="whose attention cannot be changed"):
        other.encode_with_prompts(images, own_values=True)


def test_blocks_of_another_make_give_no_attention(wrap: Callable[..., OpenCLIPBackbone]) -> None:
    backbone = wrap("vit", torch.float32, qk_norm=True)
    require(backbone, "visual prompts", for_="MaPLe")
    with pytest.raises(ValueError, match=r"offers token embeddings, visual prompts\)"):
        require(backbone, "attention", for_="TagCLIP")
    with pytest.raises(ValueError, match="4 blocks, which do not give theirs"):
        backbone.encode_with_prompts(torch.zeros(1, 3, 32, 32), attention=1)


def test_require_gives_the_backbone_back(wrap: Callable[..., OpenCLIPBackbone]) -> None:
    backbone = wrap()
    assert require(backbone, "token embeddings", for_="CoOp") is backbone
    assert require(backbone, "visual prompts", for_="MaPLe") is backbone
    assert require(backbone, "attention", for_="TagCLIP") is backbone
    assert isinstance(backbone, TextGradients)
    assert isinstance(backbone, ImageGradients)
    with pytest.raises(ValueError, match=r"X needs 'wings', .*there are token embeddings, visual"):
        require(backbone, "wings", for_="X")  # type: ignore[call-overload]


class OwnTexts:
    """A user's backbone, as far as it matters here: token embeddings and nothing else."""

    name = "own"
    offers = ("token embeddings",)
    text_tower = Tower(4, 1)

    def tokenize(self, texts: Sequence[str]) -> Tensor:
        return torch.ones(len(texts), 2, dtype=torch.long)

    def embed_tokens(self, ids: Tensor) -> Tensor:
        return torch.ones(*ids.shape, 4)

    def encode_embedded(self, embeddings: Tensor, *_: Any, **__: Any) -> Tensor:
        return embeddings.mean(dim=1)


def test_a_backbone_may_offer_a_part() -> None:
    own = OwnTexts()
    assert require(own, "token embeddings", for_="CoOp") is own
    with pytest.raises(ValueError, match="MaPLe needs visual prompts, which the backbone own does"):
        require(own, "visual prompts", for_="MaPLe")
    own.offers = ("token embeddings", "visual prompts")  # type: ignore[assignment]
    reason = "own says it offers, but it lacks image_tower, encode_with_prompts"
    with pytest.raises(ValueError, match=reason):
        require(own, "visual prompts", for_="MaPLe")


@pytest.mark.parametrize("need", ["token embeddings", "visual prompts", "attention"])
def test_a_backbone_of_cached_features_only_is_refused_by_name(
    need: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(Path(__file__).parents[2] / "pipeline")
    backbone = load_backbone("toy_backbone:make")
    reason = rf"^DualCoOp needs {need}, which the backbone toy does not offer \(it offers features"
    with pytest.raises(ValueError, match=reason):
        require(backbone, need, for_="DualCoOp")  # type: ignore[call-overload]


def coupled(arrays: dict[str, Tensor]) -> list[Tensor]:
    """MaPLe's visual prompts: each a linear map of the text prompts of its depth."""
    texts = ("shallow_text", "deep_text.layer1", "deep_text.layer2")
    maps = ("shallow_to_vision", "deep_to_vision.layer1", "deep_to_vision.layer2")
    return [
        arrays[f"weight.prompt.{text}"] @ arrays[f"weight.prompt.{name}.weight"].T
        + arrays[f"weight.prompt.{name}.bias"]
        for text, name in zip(texts, maps, strict=True)
    ]


def logits_of(features: Tensor, texts: Tensor, arrays: dict[str, Tensor]) -> Tensor:
    scale = arrays["weight.log_logit_scale"].exp()
    return scale * nn.functional.normalize(features) @ nn.functional.normalize(texts).T


def test_maple_as_its_authors_ran_it(shared_data: Path, read_oracle: ReadOracle) -> None:
    backbone, arrays = read_oracle(shared_data / "oracles" / "maple.npz")
    texts = require(backbone, "token embeddings", for_="MaPLe")
    images = require(backbone, "visual prompts", for_="MaPLe")
    start = "weight.prompt."
    learned = {k: v.requires_grad_() for k, v in arrays.items() if k.startswith(start)}
    context = learned[f"{start}shallow_text"]
    deep = [learned[f"{start}deep_text.layer{index}"] for index in (1, 2)]
    names = ["cat", "traffic light", "wine glass", "sea"]
    ids = texts.tokenize([f"a photo of a {name}." for name in names])
    words = texts.embed_tokens(ids)
    embeddings = torch.cat([words[:, :1], context.expand(4, -1, -1), words[:, 3:]], dim=1)
    text_features = texts.encode_embedded(embeddings, ids, deep)
    first, *visual = coupled(arrays)
    features = images.encode_with_prompts(arrays["input.images"], first, visual)
    logits = logits_of(features.embedding, text_features, arrays)
    loss = nn.functional.cross_entropy(logits, arrays["input.labels"])
    gradients = dict(zip(learned, torch.autograd.grad(loss, list(learned.values())), strict=True))
    found = {
        "out.text_features": text_features,
        "out.image_features": features.embedding,
        "out.logits": logits,
        "out.loss": loss,
        **{k.replace("weight.", "grad.loss_wrt_"): value for k, value in gradients.items()},
    }
    assert len(found) == 4 + 9
    for name, value in found.items():
        torch.testing.assert_close(value, arrays[name], rtol=1e-9, atol=1e-12, msg=name)


def test_what_enters_the_last_block_serves_grad_cam_as_dapts_authors_ran_it(
    shared_data: Path, read_oracle: ReadOracle
) -> None:
    backbone, arrays = read_oracle(shared_data / "oracles" / "dapt.npz")
    arrays = {k: v.requires_grad_(k.startswith("weight.prompt")) for k, v in arrays.items()}
    first, *visual = coupled(arrays)
    features = backbone.encode_with_prompts(arrays["input.images"], first, visual, attention=1)
    logits = logits_of(features.embedding, arrays["out.text_features_all"], arrays)
    torch.testing.assert_close(logits, arrays["out.gradcam.logits_all"], rtol=1e-9, atol=1e-12)
    objective = logits[torch.arange(3), arrays["input.labels"]].sum() / logits.numel()
    (gradients,) = torch.autograd.grad(objective, features.entering[-1])
    for name, value in (("activations", features.entering[-1]), ("gradients", gradients)):
        expected = arrays[f"out.gradcam.{name}"].transpose(0, 1)
        torch.testing.assert_close(value, expected, rtol=1e-9, atol=1e-12, msg=name)

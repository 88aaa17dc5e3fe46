"""The kinds of local features beside the value path, against plain loops over their formulas."""

import copy
import math
from collections.abc import Callable

import open_clip
import pytest
import torch
from torch import Tensor, nn

from dclip.backbones.blocks import maps_of
from dclip.backbones.clip import OpenCLIPBackbone
from dclip.backbones.value_projection import value_projection
from dclip.backbones.vv_attention import (
    attention_pool_qk,
    attention_pool_vv,
    neighbourhood_bias,
    self_attention,
)

BuildModel = Callable[..., open_clip.CLIP]
Resize = Callable[..., Tensor]

VIT_KINDS = ["vv", "sclip", "clearclip", "naclip", "maskclip"]
ALL = [
    *(("resnet", kind) for kind in ["value", "vv", "qk"]),
    *(("vit", kind) for kind in ["value", *VIT_KINDS]),
]


@pytest.fixture
def backbone_of(
    build_model: BuildModel, tokenizer: open_clip.SimpleTokenizer
) -> Callable[[str], OpenCLIPBackbone]:
    """Function from a tower to a backbone; the ViT has twelve blocks, of which vv changes six."""

    def build(tower: str) -> OpenCLIPBackbone:
        model = build_model("vit", layers=12) if tower == "vit" else build_model("resnet")
        return OpenCLIPBackbone(model, tokenizer, name=tower)

    return build


def relative_error(found: Tensor, expected: Tensor) -> float:
    return float((found.double() - expected).norm() / expected.norm())


def attend(compared: Tensor, values: Tensor, heads: int, bias: Tensor | None = None) -> Tensor:
    """softmax(A A^T / sqrt(d) + bias) V, one head and one asking token at a time."""
    answers = torch.zeros_like(values)
    d = values.shape[1] // heads
    for head in range(heads):
        a, v = (matrix[:, head * d : (head + 1) * d] for matrix in (compared, values))
        for asking in range(len(values)):
            logits = torch.einsum("d,td->t", a[asking], a) / math.sqrt(d)
            if bias is not None:
                logits = logits + bias[asking]
            weights = torch.exp(logits - logits.max())
            answers[asking, head * d : (head + 1) * d] = torch.einsum(
                "t,td->d", weights / weights.sum(), v
            )
    return answers


def attend_in_block(block: nn.Module, tokens: Tensor, maps: str, grid: tuple[int, int]) -> Tensor:
    """What the maps named add up to, through the block's output map; ``K`` stands for NACLIP's."""
    attention = block.attn
    normed = block.ln_1(tokens)
    rows = dict(zip("qkv", range(3), strict=True))
    projected = {}
    for letter, row in rows.items():
        part = slice(row * len(normed[0]), (row + 1) * len(normed[0]))
        projected[letter] = normed @ attention.in_proj_weight[part].T + attention.in_proj_bias[part]
    answers = torch.zeros_like(normed)
    for letter in maps:
        bias = gaussian_by_hand(grid, 5.0) if letter == "K" else None
        compared = projected[letter.lower()]
        answers += attend(compared, projected["v"], attention.num_heads, bias)
    return answers @ attention.out_proj.weight.T + attention.out_proj.bias


def gaussian_by_hand(grid: tuple[int, int], deviation: float) -> Tensor:
    places = [(i, j) for i in range(grid[0]) for j in range(grid[1])]
    bias = torch.zeros(1 + len(places), 1 + len(places), dtype=torch.float64)
    for one, (i, j) in enumerate(places, start=1):
        for other, (k, m) in enumerate(places, start=1):
            squared = (i - k) ** 2 + (j - m) ** 2
            bias[one, other] = math.exp(-squared / (2 * deviation**2))
    return bias


def resnet_oracle(model: open_clip.CLIP, images: Tensor, resize: Resize) -> Tensor:
    """CLIP Surgery's attention pool, one image at a time, over open_clip's own layer4."""
    pool = model.visual.attnpool
    maps = model.visual.forward_intermediates(images, indices=[4], intermediates_only=True)
    native = round((len(pool.positional_embedding) - 1) ** 0.5)
    local = []
    for feature_map in maps["image_intermediates"][0]:
        _, rows, columns = feature_map.shape
        positions = resize(pool.positional_embedding, (native, native), (rows, columns), "bilinear")
        locations = [feature_map[:, i, j] for i in range(rows) for j in range(columns)]
        tokens = torch.stack([sum(locations) / len(locations), *locations]) + positions
        values = tokens @ pool.v_proj.weight.T + pool.v_proj.bias
        answers = attend(values, values, pool.num_heads)
        local.append(answers @ pool.c_proj.weight.T + pool.c_proj.bias)
    return torch.stack(local)


def vit_oracle(model: open_clip.CLIP, images: Tensor, kind: str, resize: Resize) -> Tensor:
    """The patch tokens of a kind, over the tokens that open_clip's own blocks pass on."""
    tower = copy.deepcopy(model.visual)
    stride = tower.patch_size[0]
    grid = (images.shape[2] // stride, images.shape[3] // stride)
    mode = "bilinear" if kind == "vv" else "bicubic"
    tower.positional_embedding = nn.Parameter(
        resize(tower.positional_embedding, tower.grid_size, grid, mode)
    )
    passed_on = [tower._embeds(images)]
    blocks = list(tower.transformer.resblocks)
    for block in blocks:
        passed_on.append(block(passed_on[-1]))
    local = []
    for image in range(len(images)):
        original = [tokens[image] for tokens in passed_on]
        if kind == "vv":
            new = original[6]
            for index in range(6, 12):
                new = new + attend_in_block(blocks[index], original[index], "v", grid)
        elif kind == "sclip":
            new = original[11] + attend_in_block(blocks[11], original[11], "qk", grid)
            new = new + blocks[11].mlp(blocks[11].ln_2(new))
        elif kind == "maskclip":
            last, normed = blocks[11], blocks[11].ln_1(original[11])
            value = slice(2 * len(normed[0]), None)
            values = normed @ last.attn.in_proj_weight[value].T + last.attn.in_proj_bias[value]
            new = original[11] + values @ last.attn.out_proj.weight.T + last.attn.out_proj.bias
            new = new + last.mlp(last.ln_2(new))
        elif kind == "clearclip":
            new = attend_in_block(blocks[11], original[11], "q", grid)
        else:
            new = attend_in_block(blocks[11], original[11], "K", grid)
        local.append((tower.ln_post(new) @ tower.proj)[1:])
    return torch.stack(local)


@pytest.mark.parametrize(
    ("tower", "kind", "height", "width"),
    [
        *[("resnet", "vv", *size) for size in [(96, 96), (128, 64)]],
        *[("vit", kind, *size) for kind in VIT_KINDS for size in [(32, 32), (40, 24)]],
    ],
)
def test_features_follow_the_formula_of_their_kind(
    tower: str,
    kind: str,
    height: int,
    width: int,
    backbone_of: Callable[[str], OpenCLIPBackbone],
    resize_by_matrices: Resize,
) -> None:
    images = torch.randn(2, 3, height, width)
    found = backbone_of(tower).encode_images(images, kind=kind).local

    exact = backbone_of(tower)
    model = exact.model.double()
    with torch.no_grad():
        if tower == "resnet":
            expected = resnet_oracle(model, images.double(), resize_by_matrices)
        else:
            expected = vit_oracle(model, images.double(), kind, resize_by_matrices)
    assert relative_error(found, expected) < 1e-5

    found = exact.encode_images(images.double(), kind=kind).local
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize(("tower", "kind"), ALL)
def test_the_embedding_is_clips_own_whatever_the_kind(
    tower: str, kind: str, backbone_of: Callable[[str], OpenCLIPBackbone]
) -> None:
    backbone = backbone_of(tower)
    images = torch.randn(2, 3, backbone.resolution, backbone.resolution)
    with torch.no_grad():
        expected = backbone.model.encode_image(images)
    found = backbone.encode_images(images, kind=kind).embedding
    assert relative_error(found, expected.double()) < 1e-6


def test_a_resnets_embedding_is_the_same_for_every_kind_at_any_size(
    backbone_of: Callable[[str], OpenCLIPBackbone],
) -> None:
    backbone = backbone_of("resnet")
    images = torch.randn(2, 3, 64, 160)
    found = [backbone.encode_images(images, kind=kind) for kind in backbone.kinds]
    assert all(torch.equal(found[0].embedding, other.embedding) for other in found[1:])


def test_asked_by_the_mean_token_the_pool_gives_clips_embedding(
    backbone_of: Callable[[str], OpenCLIPBackbone],
) -> None:
    found = backbone_of("resnet").encode_images(torch.randn(2, 3, 64, 160), kind="qk")
    torch.testing.assert_close(found.local[:, 0], found.embedding)


def test_with_queries_and_keys_of_values_clips_pool_is_vv_attention() -> None:
    pool = pool_of(12, 3, 5)
    for other in (pool.q_proj, pool.k_proj):
        other.load_state_dict(pool.v_proj.state_dict())
    tokens = torch.randn(2, 7, 12)
    torch.testing.assert_close(attention_pool_qk(tokens, pool), attention_pool_vv(tokens, pool))


@pytest.mark.parametrize("tower", ["resnet", "vit"])
def test_value_is_the_kind_unless_another_is_named(
    tower: str, backbone_of: Callable[[str], OpenCLIPBackbone]
) -> None:
    backbone = backbone_of(tower)
    images = torch.randn(2, 3, 64, 96)
    named, unnamed = backbone.encode_images(images, kind="value"), backbone.encode_images(images)
    assert torch.equal(named.local, unnamed.local)
    assert torch.equal(named.embedding, unnamed.embedding)


@pytest.mark.parametrize(("tower", "kind"), ALL)
def test_sizes_and_kinds_may_follow_one_another_without_a_trace(
    tower: str, kind: str, backbone_of: Callable[[str], OpenCLIPBackbone]
) -> None:
    backbone = backbone_of(tower)
    before = copy.deepcopy(backbone.model.state_dict())
    images = torch.randn(1, 3, 96, 64)
    for other in backbone.kinds:
        backbone.encode_images(torch.randn(2, 3, 64, 128), kind=other)
    found = backbone.encode_images(images, kind=kind)
    fresh = backbone_of(tower).encode_images(images, kind=kind)
    assert torch.equal(found.local, fresh.local)
    assert torch.equal(found.embedding, fresh.embedding)
    assert all(torch.equal(before[name], now) for name, now in backbone.model.state_dict().items())


@pytest.mark.parametrize(("tower", "kind"), ALL)
def test_autocast_changes_no_more_than_its_precision(
    tower: str, kind: str, device: torch.device, backbone_of: Callable[[str], OpenCLIPBackbone]
) -> None:
    backbone = backbone_of(tower).to(device)
    images = torch.randn(2, 3, 64, 96, device=device)
    exact = backbone.encode_images(images, kind=kind).local
    with torch.autocast(device.type, dtype=torch.bfloat16):
        rounded = backbone.encode_images(images, kind=kind).local
    # eight bits of mantissa, and a dozen blocks of them
    assert relative_error(rounded, exact.double()) < 0.05


@pytest.mark.parametrize(("tower", "kind"), ALL)
def test_every_kind_is_the_same_on_every_device_and_leaves_images_to_themselves(
    tower: str, kind: str, device: torch.device, backbone_of: Callable[[str], OpenCLIPBackbone]
) -> None:
    images = torch.randn(2, 3, 64, 96)
    expected = backbone_of(tower).encode_images(images, kind=kind).local
    backbone = backbone_of(tower).to(device)
    # cuDNN sums convolutions in another order than the CPU, by default in TF32
    tolerance = 1e-5 if device.type == "cpu" else 1e-2
    for index in range(2):
        alone = backbone.encode_images(images[index : index + 1], kind=kind).local
        assert relative_error(alone[0].cpu(), expected[index].double()) < tolerance


def test_the_mean_token_of_vv_can_be_left_out(
    build_model: BuildModel, tokenizer: open_clip.SimpleTokenizer
) -> None:
    images = torch.randn(1, 3, 96, 64)
    kept, dropped = (
        OpenCLIPBackbone(
            build_model("resnet"), tokenizer, name="small", include_global_token=include
        )
        for include in (True, False)
    )
    with_mean = kept.encode_images(images, kind="vv").local
    assert with_mean.shape[1] == 1 + 3 * 2
    assert torch.equal(dropped.encode_images(images, kind="vv").local, with_mean[:, 1:])


def test_vv_changes_every_block_of_a_vit_that_has_fewer_than_six(
    build_model: BuildModel, tokenizer: open_clip.SimpleTokenizer, resize_by_matrices: Resize
) -> None:
    model = build_model("vit", layers=2).double()
    images = torch.randn(1, 3, 32, 32, dtype=torch.float64)
    found = OpenCLIPBackbone(model, tokenizer, name="small").encode_images(images, kind="vv")
    tower = model.visual
    with torch.no_grad():
        start = tower._embeds(images)
        first, second = tower.transformer.resblocks
        new = (
            start[0]
            + attend_in_block(first, start[0], "v", (4, 4))
            + attend_in_block(second, first(start)[0], "v", (4, 4))
        )
        torch.testing.assert_close(found.local[0], (tower.ln_post(new) @ tower.proj)[1:])


@pytest.mark.parametrize("kind", VIT_KINDS)
def test_layer_scale_weighs_what_a_block_adds(
    kind: str, build_model: BuildModel, tokenizer: open_clip.SimpleTokenizer
) -> None:
    # a scale of one changes nothing; a block whose scale is zero adds nothing to the residual
    images = torch.randn(1, 3, 32, 32)
    scaled = build_model("vit", ls_init_value=1.0)
    plain = build_model("vit")
    with torch.no_grad():
        for name, weight in scaled.state_dict().items():
            weight.copy_(torch.ones_like(weight) if "ls_" in name else plain.state_dict()[name])
    one = OpenCLIPBackbone(scaled, tokenizer, name="scaled").encode_images(images, kind=kind)
    none = OpenCLIPBackbone(plain, tokenizer, name="plain").encode_images(images, kind=kind)
    torch.testing.assert_close(one.local, none.local)

    for block in scaled.visual.transformer.resblocks:
        block.ls_1.gamma.zero_()
        block.ls_2.gamma.zero_()
    zero = OpenCLIPBackbone(scaled, tokenizer, name="scaled").encode_images(images, kind=kind)
    tower = scaled.visual
    start = tower._embeds(images) if kind in ("vv", "sclip", "maskclip") else torch.zeros(1, 17, 32)
    torch.testing.assert_close(zero.local, (tower.ln_post(start) @ tower.proj)[:, 1:])


@pytest.mark.parametrize(
    ("tower", "changes", "kinds"),
    [
        ("resnet", {}, ("value", "vv", "qk")),
        ("vit", {}, ("value", "vv", "sclip", "clearclip", "naclip", "maskclip")),
        ("vit", {"qk_norm": True}, ("value",)),
    ],
)
def test_a_backbone_names_its_kinds_and_refuses_others(
    tower: str,
    changes: dict[str, object],
    kinds: tuple[str, ...],
    build_model: BuildModel,
    tokenizer: open_clip.SimpleTokenizer,
) -> None:
    backbone = OpenCLIPBackbone(build_model(tower, **changes), tokenizer, name="small")
    assert backbone.kinds == kinds
    message = f"unknown kind of features 'surgery'; small offers {', '.join(kinds)}$"
    with pytest.raises(ValueError, match=message):
        backbone.encode_images(torch.zeros(1, 3, 96, 96), kind="surgery")
    with pytest.raises(ValueError, match=message):
        backbone.feature_path("surgery")


def test_every_kind_has_a_path_of_its_own(
    backbone_of: Callable[[str], OpenCLIPBackbone],
) -> None:
    backbone = backbone_of("vit")
    paths = [backbone.feature_path(kind) for kind in backbone.kinds]
    assert len(set(paths)) == 6
    # part of every fingerprint and so of every checkpoint: another text would disown them all
    assert paths[0] == "value path, bicubic positions, v1"
    assert "bilinear" in paths[1]


def pool_of(width: int, heads: int, dim: int) -> nn.Module:
    return open_clip.modified_resnet.AttentionPool2d(3, width, heads, dim).eval()


def test_vv_attention_between_equal_tokens_is_the_value_path() -> None:
    pool = pool_of(12, 3, 5)
    tokens = torch.randn(2, 1, 12).expand(-1, 7, -1)
    expected = value_projection(tokens, value=pool.v_proj, output=pool.c_proj)
    torch.testing.assert_close(attention_pool_vv(tokens, pool), expected)


def test_vv_attention_between_faint_tokens_is_their_mean() -> None:
    # logits go with the square of the values, so that small values all weigh the same
    pool = pool_of(12, 3, 5)
    nn.init.zeros_(pool.v_proj.bias)
    nn.init.zeros_(pool.c_proj.bias)
    tokens = torch.randn(2, 7, 12)
    found = attention_pool_vv(1e-4 * tokens, pool)
    mean = tokens.mean(dim=1, keepdim=True).expand_as(tokens)
    expected = 1e-4 * value_projection(mean, value=pool.v_proj, output=pool.c_proj)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-10)


def test_vv_attention_between_loud_unlike_tokens_is_the_value_path() -> None:
    # orthogonal values of one length: each token hears only itself
    pool = pool_of(8, 1, 5)
    nn.init.zeros_(pool.v_proj.bias)
    nn.init.eye_(pool.v_proj.weight)
    tokens = 20 * torch.eye(8)[None]
    expected = value_projection(tokens, value=pool.v_proj, output=pool.c_proj)
    torch.testing.assert_close(attention_pool_vv(tokens, pool), expected)


@pytest.mark.parametrize("by", ["q", "k", "qk"])
def test_maps_of_zero_make_every_answer_the_mean_value(by: str) -> None:
    layer = nn.MultiheadAttention(8, 2, batch_first=True)
    tokens = torch.randn(2, 5, 8)
    with torch.no_grad():
        layer.in_proj_weight[:16] = 0
        found = self_attention(tokens, maps_of(layer), by=by)
        values = tokens @ layer.in_proj_weight[16:].T + layer.in_proj_bias[16:]
        expected = len(by) * values.mean(dim=1, keepdim=True) @ layer.out_proj.weight.T
    torch.testing.assert_close(found, (expected + layer.out_proj.bias).expand(-1, 5, -1))


def test_two_equal_maps_answer_twice_what_one_does() -> None:
    layer = nn.MultiheadAttention(8, 2, bias=True, batch_first=True)
    nn.init.zeros_(layer.out_proj.bias)
    with torch.no_grad():
        layer.in_proj_weight[8:16] = layer.in_proj_weight[:8]
        tokens = torch.randn(2, 5, 8)
        both = self_attention(tokens, maps_of(layer), by="qk")
        torch.testing.assert_close(both, 2 * self_attention(tokens, maps_of(layer), by="k"))


def test_nearness_by_hand() -> None:
    # patch 1 is (0, 0), patch 6 is (1, 2): squared distance 5, and 5 / (2 * 5^2) = 0.1
    bias = neighbourhood_bias((2, 3))
    assert bias[1, 6] == pytest.approx(math.exp(-0.1), rel=1e-12)
    assert bias[0].abs().max() == bias[:, 0].abs().max() == 0
    assert torch.equal(bias.diagonal()[1:], torch.ones(6, dtype=torch.float64))
    torch.testing.assert_close(bias, gaussian_by_hand((2, 3), 5.0))


def test_a_boundless_neighbourhood_is_plain_attention_but_for_the_class_token() -> None:
    # all patches gain 1, which the softmax does not see between them; the class token gains none
    layer = nn.MultiheadAttention(8, 2, batch_first=True).double()
    tokens = torch.randn(1, 7, 8, dtype=torch.float64)
    boundless = neighbourhood_bias((2, 3), deviation=1e9)
    with torch.no_grad():
        found = self_attention(tokens, maps_of(layer), by="k", bias=boundless)
        class_apart = torch.zeros(7, 7, dtype=torch.float64)
        class_apart[1:, 0] = -1
        expected = self_attention(tokens, maps_of(layer), by="k", bias=class_apart)
        plain = self_attention(tokens, maps_of(layer), by="k")
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)
    torch.testing.assert_close(found[:, 0], plain[:, 0], rtol=0, atol=1e-12)


def test_a_neighbourhood_of_nothing_favours_the_patch_itself() -> None:
    bias = neighbourhood_bias((3, 2), deviation=1e-3)
    expected = torch.eye(7, dtype=torch.float64)
    expected[0, 0] = 0
    assert torch.equal(bias, expected)

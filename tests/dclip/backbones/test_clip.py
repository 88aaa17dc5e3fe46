import copy
from collections.abc import Callable

import open_clip
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from dclip.backbones import Backbone
from dclip.backbones.clip import OpenCLIPBackbone

BuildModel = Callable[..., open_clip.CLIP]
Resize = Callable[[Tensor, tuple[int, int], tuple[int, int]], Tensor]

# sides of the images: native, larger, smaller in one direction, not square
RESNET_SIZES = [(96, 96), (160, 160), (64, 192), (32, 32)]
VIT_SIZES = [(32, 32), (56, 56), (24, 48), (8, 8)]
SIZES = [("resnet", *size) for size in RESNET_SIZES] + [("vit", *size) for size in VIT_SIZES]


def wrap(model: open_clip.CLIP, tokenizer: open_clip.SimpleTokenizer) -> OpenCLIPBackbone:
    return OpenCLIPBackbone(model, tokenizer, name="small")


def relative_error(found: Tensor, expected: Tensor) -> float:
    return float((found.double() - expected).norm() / expected.norm())


def layer_norm_by_hand(token: Tensor, norm: nn.LayerNorm) -> Tensor:
    deviation = token - token.mean()
    return deviation / ((deviation**2).mean() + norm.eps) ** 0.5 * norm.weight + norm.bias


def resnet_oracle(model: open_clip.CLIP, images: Tensor, resize: Resize) -> tuple[Tensor, Tensor]:
    """DCLIP's ResNet path, one image and one token at a time, over open_clip's own layer4."""
    pool = model.visual.attnpool
    maps = model.visual.forward_intermediates(images, indices=[4], intermediates_only=True)
    native = round((len(pool.positional_embedding) - 1) ** 0.5)
    local = []
    for feature_map in maps["image_intermediates"][0]:
        _, rows, columns = feature_map.shape
        positions = resize(pool.positional_embedding, (native, native), (rows, columns))
        locations = [feature_map[:, i, j] for i in range(rows) for j in range(columns)]
        mean = sum(locations) / len(locations)
        tokens = []
        for token, position in zip([mean, *locations], positions, strict=True):
            value = pool.v_proj.weight @ (token + position) + pool.v_proj.bias
            tokens.append(pool.c_proj.weight @ value + pool.c_proj.bias)
        local.append(torch.stack(tokens))
    # the global embedding is open_clip's pool, built for this grid
    pool = copy.deepcopy(pool)
    pool.positional_embedding = nn.Parameter(positions)
    return pool(maps["image_intermediates"][0]), torch.stack(local)


def vit_oracle(model: open_clip.CLIP, images: Tensor, resize: Resize) -> tuple[Tensor, Tensor]:
    """Patch tokens of open_clip's own ViT, made for this grid, normed and projected one by one."""
    tower = copy.deepcopy(model.visual)
    stride = tower.patch_size[0]
    grid = (images.shape[2] // stride, images.shape[3] // stride)
    tower.positional_embedding = nn.Parameter(
        resize(tower.positional_embedding, tower.grid_size, grid)
    )
    outputs = tower.forward_intermediates(images, indices=1, output_fmt="NLC")
    local = [
        torch.stack([tower.proj.T @ layer_norm_by_hand(token, tower.ln_post) for token in tokens])
        for tokens in outputs["image_intermediates"][0]
    ]
    return tower(images), torch.stack(local)


ORACLES = {"resnet": resnet_oracle, "vit": vit_oracle}


@pytest.mark.parametrize(("kind", "height", "width"), SIZES)
def test_features_follow_the_equations(
    kind: str,
    height: int,
    width: int,
    build_model: BuildModel,
    tokenizer: open_clip.SimpleTokenizer,
    resize_by_matrices: Resize,
) -> None:
    images = torch.randn(2, 3, height, width)
    features = wrap(build_model(kind), tokenizer).encode_images(images)

    exact = build_model(kind).double()
    with torch.no_grad():
        embedding, local = ORACLES[kind](exact, images.double(), resize_by_matrices)
    assert relative_error(features.embedding, embedding) < 1e-5
    assert relative_error(features.local, local) < 1e-5

    features = wrap(exact, tokenizer).encode_images(images.double())
    torch.testing.assert_close(features.embedding, embedding, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(features.local, local, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("kind", ["resnet", "vit"])
def test_embedding_at_the_native_resolution_is_encode_image(
    kind: str, build_model: BuildModel, tokenizer: open_clip.SimpleTokenizer
) -> None:
    backbone = wrap(build_model(kind), tokenizer)
    images = torch.randn(3, 3, backbone.resolution, backbone.resolution)
    with torch.no_grad():
        expected = backbone.model.encode_image(images)
    found = backbone.encode_images(images).embedding
    assert relative_error(found, expected.double()) < 1e-6


@pytest.mark.parametrize(
    "changes",
    [
        {"final_ln_after_pool": True},
        {"no_ln_pre": True},
        {"ls_init_value": 0.1},
        {"patch_dropout": 0.5},
        {"qk_norm": True},
        {"norm_kwargs": {"eps": 1e-3}},
    ],
    ids=str,
)
def test_variants_of_the_vit_are_followed(
    changes: dict[str, object], build_model: BuildModel, tokenizer: open_clip.SimpleTokenizer
) -> None:
    backbone = wrap(build_model("vit", **changes).train(), tokenizer)
    images = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        expected = backbone.model.encode_image(images)
    found = backbone.encode_images(images).embedding
    assert relative_error(found, expected.double()) < 1e-6


@pytest.mark.parametrize(
    ("kind", "changes", "reason"),
    [
        ("vit", {"pool_type": "none"}, "pools by 'none'"),
        ("vit", {"attentional_pool": "parallel", "attn_pooler_heads": 4}, "two attentional pools"),
        ("vit", {"image_size": (32, 64)}, "not square"),
    ],
)
def test_image_towers_we_cannot_follow_are_refused(
    kind: str,
    changes: dict[str, object],
    reason: str,
    build_model: BuildModel,
    tokenizer: open_clip.SimpleTokenizer,
) -> None:
    with pytest.raises(ValueError, match=reason):
        wrap(build_model(kind, **changes), tokenizer)


def test_another_image_tower_is_refused_and_the_supported_ones_named(
    build_model: BuildModel, tokenizer: open_clip.SimpleTokenizer
) -> None:
    model = build_model("vit")
    model.visual = nn.Conv2d(3, 4, 1)
    with pytest.raises(ValueError, match=r"Conv2d .*ResNet and ViT, and towers from timm"):
        wrap(model, tokenizer)
    with pytest.raises(ValueError, match="Conv2d is not supported"):
        OpenCLIPBackbone(nn.Conv2d(3, 4, 1), tokenizer, name="small")


def test_a_non_square_native_grid_is_followed_at_its_own_size(
    build_model: BuildModel, tokenizer: open_clip.SimpleTokenizer
) -> None:
    model = build_model("vit", image_size=(32, 64))
    backbone = OpenCLIPBackbone(model, tokenizer, name="small", resolution=32)
    images = torch.randn(1, 3, 32, 64)
    with torch.no_grad():
        expected = model.encode_image(images)
    torch.testing.assert_close(backbone.encode_images(images).embedding, expected)


def test_the_mean_token_comes_first_and_can_be_left_out(
    build_model: BuildModel, tokenizer: open_clip.SimpleTokenizer
) -> None:
    images = torch.randn(1, 3, 96, 96)
    kept = wrap(build_model("resnet"), tokenizer)
    dropped = OpenCLIPBackbone(
        build_model("resnet"), tokenizer, name="small", include_global_token=False
    )
    assert kept.include_global_token
    assert kept.encode_images(images).local.shape[1] == 10
    torch.testing.assert_close(
        dropped.encode_images(images).local, kept.encode_images(images).local[:, 1:]
    )


def test_a_vit_has_no_mean_token(
    build_model: BuildModel, tokenizer: open_clip.SimpleTokenizer
) -> None:
    assert not wrap(build_model("vit"), tokenizer).include_global_token
    with pytest.raises(ValueError, match="no mean token"):
        OpenCLIPBackbone(build_model("vit"), tokenizer, name="small", include_global_token=True)


@pytest.mark.parametrize("kind", ["resnet", "vit"])
def test_sizes_may_follow_one_another_without_a_trace(
    kind: str, build_model: BuildModel, tokenizer: open_clip.SimpleTokenizer
) -> None:
    backbone = wrap(build_model(kind), tokenizer)
    before = copy.deepcopy(backbone.model.state_dict())
    images = torch.randn(1, 3, 96, 96)
    first = backbone.encode_images(images)
    backbone.encode_images(torch.randn(2, 3, 64, 160))
    again = backbone.encode_images(images)
    assert torch.equal(first.local, again.local)
    assert torch.equal(first.embedding, again.embedding)
    assert all(torch.equal(before[name], now) for name, now in backbone.model.state_dict().items())


@pytest.fixture(scope="module")
def vit(build_model: BuildModel, tokenizer: open_clip.SimpleTokenizer) -> OpenCLIPBackbone:
    return wrap(build_model("vit"), tokenizer)


@given(height=st.integers(-5, 200), width=st.integers(1, 200))
def test_grid_takes_multiples_of_the_stride_and_nothing_else(
    height: int, width: int, vit: OpenCLIPBackbone
) -> None:
    if height > 0 and height % 8 == 0 and width % 8 == 0:
        assert vit.grid(height, width) == (height / 8, width / 8)
    else:
        with pytest.raises(ValueError, match="multiples of 8 pixels"):
            vit.grid(height, width)


def test_an_odd_size_is_refused_with_the_nearest_multiples(
    build_model: BuildModel, tokenizer: open_clip.SimpleTokenizer
) -> None:
    backbone = wrap(build_model("resnet"), tokenizer)
    with pytest.raises(ValueError, match=r"not 96 x 100; in place of 100 take 96 or 128"):
        backbone.encode_images(torch.zeros(1, 3, 96, 100))
    with pytest.raises(ValueError, match=r"not 16 x 96; in place of 16 take 32$"):
        backbone.grid(16, 96)
    with pytest.raises(ValueError, match=r"in place of 450 take 448 or 480"):
        OpenCLIPBackbone(build_model("resnet"), tokenizer, name="small", resolution=450)


def test_the_model_is_frozen_and_features_are_ready_for_training(
    build_model: BuildModel, tokenizer: open_clip.SimpleTokenizer
) -> None:
    backbone = wrap(build_model("resnet").train(), tokenizer)
    assert not backbone.model.training
    assert not any(weight.requires_grad for weight in backbone.model.parameters())
    features = backbone.encode_images(torch.randn(1, 3, 64, 64).requires_grad_())
    texts = backbone.encode_texts(["a dog"])
    for tensor in (*features, texts):
        assert not tensor.requires_grad
        assert not tensor.is_inference()
    projector = nn.Linear(24, 2)
    projector(features.local).sum().backward()
    assert projector.weight.grad is not None


def test_images_do_not_look_at_each_other(
    build_model: BuildModel, tokenizer: open_clip.SimpleTokenizer
) -> None:
    for kind in ("resnet", "vit"):
        backbone = wrap(build_model(kind), tokenizer)
        images = torch.randn(3, 3, 64, 64)
        together = backbone.encode_images(images)
        for index in range(3):
            alone = backbone.encode_images(images[index : index + 1])
            torch.testing.assert_close(alone.local[0], together.local[index])
            torch.testing.assert_close(alone.embedding[0], together.embedding[index])


def test_texts_are_encoded_as_open_clip_does_in_any_batching(
    build_model: BuildModel, tokenizer: open_clip.SimpleTokenizer
) -> None:
    backbone = wrap(build_model("vit"), tokenizer)
    texts = [f"a photo of {number} dogs" for number in range(300)]
    with torch.no_grad():
        expected = backbone.model.encode_text(tokenizer(texts, context_length=12))
    found = backbone.encode_texts(texts)
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(backbone.encode_texts(texts[-1:])[0], found[-1])


def test_texts_that_would_be_cut_are_refused(
    build_model: BuildModel, tokenizer: open_clip.SimpleTokenizer
) -> None:
    backbone = wrap(build_model("vit"), tokenizer)
    backbone.encode_texts(["dog " * 10])  # ten words, a start and an end: the twelve it reads
    with pytest.raises(ValueError, match=r"reads 12 tokens and a text has 13; shorten 'dog dog"):
        backbone.encode_texts(["a dog", "dog " * 11])


def test_a_lone_string_and_no_text_at_all_are_refused(
    build_model: BuildModel, tokenizer: open_clip.SimpleTokenizer
) -> None:
    backbone = wrap(build_model("vit"), tokenizer)
    with pytest.raises(ValueError, match="the one text 'dog'"):
        backbone.encode_texts("dog")
    with pytest.raises(ValueError, match="no texts"):
        backbone.encode_texts([])


def test_fingerprint_tells_models_apart_by_weights_names_and_architecture(
    build_model: BuildModel, tokenizer: open_clip.SimpleTokenizer
) -> None:
    def fingerprint(model: open_clip.CLIP) -> str:
        return wrap(model, tokenizer).fingerprint()

    first = fingerprint(build_model("vit"))
    assert len(first) == 64
    assert fingerprint(build_model("vit")) == first

    nudged = build_model("vit")
    with torch.no_grad():
        nudged.visual.proj[0, 0] += 1e-6
    gelu = build_model("vit")
    gelu.visual.transformer.resblocks[0].mlp.gelu = nn.GELU()
    heads = build_model("vit", head_width=32)
    others = [nudged, gelu, heads, build_model("vit").half(), build_model("resnet")]
    assert len({first, *map(fingerprint, others)}) == 6


def test_fingerprint_does_not_depend_on_size_or_name(
    build_model: BuildModel, tokenizer: open_clip.SimpleTokenizer
) -> None:
    here = OpenCLIPBackbone(build_model("vit"), tokenizer, name="a", resolution=64)
    there = OpenCLIPBackbone(build_model("vit"), tokenizer, name="b")
    assert here.fingerprint() == there.fingerprint()


def test_it_is_a_backbone(build_model: BuildModel, tokenizer: open_clip.SimpleTokenizer) -> None:
    backbone = wrap(build_model("resnet"), tokenizer)
    assert isinstance(backbone, Backbone)
    assert (backbone.stride, backbone.resolution, backbone.embed_dim) == (32, 96, 24)
    assert backbone.mean == (0.48145466, 0.4578275, 0.40821073)


@pytest.mark.parametrize("kind", ["resnet", "vit"])
def test_features_are_the_same_on_every_device(
    kind: str,
    device: torch.device,
    build_model: BuildModel,
    tokenizer: open_clip.SimpleTokenizer,
) -> None:
    images = torch.randn(2, 3, 64, 96)
    expected = wrap(build_model(kind), tokenizer).encode_images(images)
    backbone = wrap(build_model(kind), tokenizer)
    before = backbone.fingerprint()
    moved = backbone.to(device)
    assert moved is backbone
    found = moved.encode_images(images)
    assert found.local.device.type == device.type
    # cuDNN and CPU sum convolutions in other orders, cuDNN by default in TF32
    tolerance = 1e-6 if device.type == "cpu" else 1e-2
    assert relative_error(found.local.cpu(), expected.local.double()) < tolerance
    assert relative_error(found.embedding.cpu(), expected.embedding.double()) < tolerance
    assert moved.encode_texts(["a dog"]).device.type == device.type
    assert wrap(moved.model, tokenizer).fingerprint() == before

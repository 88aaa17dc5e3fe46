"""Every architecture of open_clip, small: local features, and the identity of its family.

The global embedding of a tower is what its library computes. What a location would give if it were
the whole image ties local features to it, family by family.
"""

from typing import Any

import open_clip
import pytest
import torch
from torch import Tensor

from dclip.backbones.clip import OpenCLIPBackbone
from dclip.backbones.towers.trunk import TimmTower
from dclip.backbones.towers.vit import ViTTower

from .small_architectures import small_backbone

TIGHT = {"rtol": 0, "atol": 1e-9}

# One of each family and library, for what is not asked of all 144.
FEW = (
    *("RN50", "ViT-B-32", "ViT-L-14-CLIPA", "coca_ViT-B-32", "ViT-B-16-SigLIP2", "PE-Core-B-16"),
    *("EVA02-B-16", "MobileCLIP-B", "MobileCLIP-S1", "convnext_tiny", "convnext_large_d"),
    *("ViTamin-S", "swin_base_patch4_window7_224", "vit_medium_patch16_gap_256"),
    *("vit_relpos_medium_patch16_cls_224", "ViT-SO400M-14-SigLIP-384"),
)


def _images(backbone: OpenCLIPBackbone, height: int, width: int) -> Tensor:
    generator = torch.Generator().manual_seed(height + width)
    return torch.randn(2, 3, height, width, dtype=torch.float64, generator=generator)


def _whole(backbone: OpenCLIPBackbone, images: Tensor) -> Tensor:
    """open_clip's own embedding."""
    with torch.no_grad():
        said = backbone.model.visual(images)
    return said[0] if isinstance(said, tuple) else said


def _what_enters_the_pool(backbone: OpenCLIPBackbone, images: Tensor) -> Tensor:
    """Vectors of the locations before the pool, from the library's own code."""
    tower: Any = backbone.tower
    if isinstance(tower, ViTTower):
        kept: list[Tensor] = []
        hook = tower.module.transformer.register_forward_hook(lambda *seen: kept.append(seen[2]))
        _whole(backbone, images)
        hook.remove()
        return kept[0][:, 1:]
    assert isinstance(tower, TimmTower)
    with torch.no_grad():
        features = tower.trunk.forward_features(images)
    return tower._locations(features)


def _alone(backbone: OpenCLIPBackbone, location: Tensor) -> Tensor:
    """The library's own pool and head over an image of one location."""
    tower: Any = backbone.tower
    with torch.no_grad():
        if isinstance(tower, ViTTower):
            pooled = tower.module.ln_post(tower.module.attn_pool(location[:, None]))[:, 0]
            return pooled @ tower.module.proj
        trunk = tower.trunk
        pooled = trunk.head(trunk.fc_norm(trunk.attn_pool(location[:, None])))
        return tower.module.head(pooled)


@pytest.mark.parametrize("architecture", open_clip.list_models())
def test_local_features_of_every_architecture_keep_the_identity_of_its_family(
    architecture: str,
) -> None:
    backbone = small_backbone(architecture)
    tower = backbone.tower
    images = _images(backbone, *tower.native_size)

    features = backbone.encode_images(images)

    whole = _whole(backbone, images)
    rows, columns = backbone.grid(*tower.native_size)
    mean_token = int(backbone.include_global_token)
    assert features.local.shape == (2, rows * columns + mean_token, backbone.embed_dim)
    assert backbone.encode_texts(["a dog"]).shape == (1, backbone.embed_dim)
    torch.testing.assert_close(features.embedding, whole, **TIGHT)
    local = features.local
    if tower.family == "mean":
        torch.testing.assert_close(local.mean(dim=1), whole, **TIGHT)
    elif tower.family == "attention pool":
        entering = _what_enters_the_pool(backbone, images)
        torch.testing.assert_close(local[:, 1], _alone(backbone, entering[:, 1]), **TIGHT)
    elif tower.family == "normed mean":
        entering = _what_enters_the_pool(backbone, images)
        one = entering[:, :1].expand_as(entering)  # the mean of equal locations is each of them
        torch.testing.assert_close(tower.head(one.mean(dim=1)), local[:, 0], **TIGHT)
        if "affine" in backbone.kinds:
            affine = backbone.encode_images(images, kind="affine")
            torch.testing.assert_close(affine.local.mean(dim=1), whole, **TIGHT)
            assert not torch.allclose(affine.local, local)
    elif tower.family == "class token":
        entering = _what_enters_the_pool(backbone, images)
        if isinstance(tower, ViTTower):
            torch.testing.assert_close(tower.head(entering), local, **TIGHT)
        else:  # the library's own head, a patch in the place of the class token
            with torch.no_grad():
                said = tower.module.head(tower.trunk.forward_head(entering[:, [0, 0]]))
            torch.testing.assert_close(said, local[:, 0], **TIGHT)
    else:
        assert tower.family == "value path"  # test_value_projection has its formula


@pytest.mark.parametrize("architecture", FEW)
def test_sizes_of_any_order_leave_no_trace(architecture: str) -> None:
    backbone = small_backbone(architecture)
    stride, native = backbone.stride, backbone.tower.native_size
    images, wide = _images(backbone, *native), _images(backbone, 2 * stride, 4 * stride)
    before, print_before = backbone.encode_images(images), backbone.fingerprint()

    first = backbone.encode_images(wide)
    backbone.encode_images(_images(backbone, 3 * stride, stride))
    again = backbone.encode_images(wide)
    after = backbone.encode_images(images)
    backbone.encode_images(wide)
    backbone._fingerprint = None

    assert first.local.shape[1] == 8 + int(backbone.include_global_token)
    assert torch.equal(first.local, again.local)
    assert torch.equal(before.local, after.local)
    assert torch.equal(before.embedding, after.embedding)
    assert backbone.fingerprint() == print_before


@pytest.mark.parametrize("architecture", FEW)
def test_every_kind_has_the_shape_of_value_and_keeps_the_embedding(architecture: str) -> None:
    backbone = small_backbone(architecture)
    images = _images(backbone, *backbone.tower.native_size)
    value = backbone.encode_images(images)

    for kind in backbone.kinds[1:]:
        features = backbone.encode_images(images, kind=kind)

        assert features.local.shape == value.local.shape, kind
        torch.testing.assert_close(features.embedding, value.embedding, **TIGHT)
        assert not torch.allclose(features.local, value.local), kind
        assert backbone.feature_path(kind) != backbone.feature_path("value")


def test_formulas_of_blocks_are_refused_where_they_have_no_meaning() -> None:
    for architecture in ("EVA02-B-16", "PE-Core-B-16", "MobileCLIP-S1", "convnext_tiny", "RN50"):
        backbone = small_backbone(architecture)
        images = _images(backbone, *backbone.tower.native_size)

        with pytest.raises(ValueError, match=rf"unknown kind of features 'sclip'; {architecture}"):
            backbone.encode_images(images, kind="sclip")


def test_a_native_size_that_is_no_multiple_of_the_stride_is_taken() -> None:
    backbone = small_backbone("ViT-SO400M-14-SigLIP-384")
    height, width = backbone.tower.native_size

    assert (height % 14, width % 14) == (384 % 14, 384 % 14)
    assert backbone.grid(height, width) == (3, 3)
    with pytest.raises(ValueError, match="multiples of 14 pixels"):
        backbone.grid(height - 1, width)


def test_an_mlp_head_offers_no_affine_form() -> None:
    assert "affine" in small_backbone("convnext_tiny").kinds
    assert "affine" not in small_backbone("convnext_large_d").kinds


def test_a_vit_of_timm_and_one_of_open_clip_change_their_blocks_alike() -> None:
    """maskclip by hand: in the last block each token keeps its own value."""
    backbone = small_backbone("vit_medium_patch16_gap_256")
    trunk: Any = backbone.tower.module.trunk
    images = _images(backbone, *backbone.tower.native_size)

    with torch.no_grad():
        tokens = trunk.norm_pre(trunk._pos_embed(trunk.patch_embed(images)))
        for block in trunk.blocks[:-1]:
            tokens = block(tokens)
        last = trunk.blocks[-1]
        values = last.attn.qkv(last.norm1(tokens)).chunk(3, dim=-1)[2]
        tokens = tokens + last.ls1(last.attn.proj(values))
        tokens = trunk.norm(tokens + last.ls2(last.mlp(last.norm2(tokens))))
        expected = backbone.tower.module.head(tokens)

    local = backbone.encode_images(images, kind="maskclip").local
    torch.testing.assert_close(local, expected, **TIGHT)


@pytest.mark.parametrize("architecture", ["ViT-B-16-SigLIP2", "coca_ViT-B-32", "PE-Core-B-16"])
def test_texts_are_those_of_the_library(architecture: str) -> None:
    backbone = small_backbone(architecture)
    texts = ["a dog", "a horse on a hill"]

    expected = backbone.model.encode_text(
        backbone.tokenizer(texts, context_length=backbone.context_length), normalize=False
    )

    torch.testing.assert_close(backbone.encode_texts(texts), expected, **TIGHT)
    with pytest.raises(ValueError, match=f"reads {backbone.context_length} tokens"):
        backbone.encode_texts(["word " * 100])


def test_contexts_enter_the_texts_of_a_text_tower_of_its_own() -> None:
    backbone = small_backbone("EVA02-B-16")
    ids = backbone.tokenize(["a dog"])

    features = backbone.encode_embedded(backbone.embed_tokens(ids), ids)

    torch.testing.assert_close(features, backbone.encode_texts(["a dog"]), **TIGHT)
    assert backbone.offers == ("token embeddings",)


def test_a_model_trained_by_a_sigmoid_keeps_its_bias() -> None:
    with_bias, without = small_backbone("ViT-B-16-SigLIP2"), small_backbone("ViT-B-32")

    assert with_bias.logit_bias is not None
    assert with_bias.logit_bias.shape == ()
    assert without.logit_bias is None

"""TIPSv2 of transformers: its value path by hand, its texts, its folder; all small and random."""

import json
import math
import sys
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn import functional as F

from dclip.backbones import Backbone, load_backbone, preparation_of
from dclip.prompts import encode_class_names
from dclip.templates import check_template, prompt_ensemble

transformers = pytest.importorskip("transformers", reason="pip install 'dclip[hf]'")

from dclip.backbones.tips import TipsBackbone, load_tips, tips_b14  # noqa: E402

from .small_tokenizers import tips as write_tokenizer  # noqa: E402

TIGHT = {"rtol": 0, "atol": 1e-9}


def _config(**changes: Any) -> Any:
    shared = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    image = shared | {"image_size": 56, "patch_size": 14, "layerscale_value": 0.7} | changes
    text = shared | {"vocab_size": 400, "intermediate_size": 48, "max_position_embeddings": 24}
    return transformers.Tipsv2Config(vision_config=image, text_config=text)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A small model as it is saved, every weight random, so that nothing hides in a zero."""
    torch.manual_seed(3)
    model = transformers.Tipsv2Model(_config())
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(0.1 * torch.randn(weight.shape))
        model.temperature.fill_(0.02)
    model.save_pretrained(tmp_path)
    return write_tokenizer(tmp_path)


@pytest.fixture
def backbone(folder: Path) -> TipsBackbone:
    own = load_tips(folder)
    own.model.double()
    return own


def _norm(name: str, weights: dict[str, Tensor], tokens: Tensor) -> Tensor:
    centred = tokens - tokens.mean(-1, keepdim=True)
    deviation = (centred.square().mean(-1, keepdim=True) + 1e-6).sqrt()
    return centred / deviation * weights[f"{name}.weight"] + weights[f"{name}.bias"]


def _map(name: str, weights: dict[str, Tensor], tokens: Tensor) -> Tensor:
    return tokens @ weights[f"{name}.weight"].T + weights[f"{name}.bias"]


def _block(number: int, weights: dict[str, Tensor], tokens: Tensor, *, values: bool) -> Tensor:
    """A block by its formula; with ``values`` each token keeps its own."""
    own = f"encoder.layer.{number}"
    normed = _norm(f"{own}.norm1", weights, tokens)
    q, k, v = (
        _map(f"{own}.attention.{letter}_proj", weights, normed).unflatten(-1, (2, 16))
        for letter in "qkv"
    )
    weight = torch.einsum("nihd,njhd->nhij", q, k) / 4  # the root of 16
    mixed = v if values else torch.einsum("nhij,njhd->nihd", weight.softmax(-1), v)
    added = _map(f"{own}.attention.o_proj", weights, mixed.flatten(2))
    tokens = tokens + weights[f"{own}.layer_scale1.lambda1"] * added
    hidden = _map(f"{own}.mlp.fc1", weights, _norm(f"{own}.norm2", weights, tokens))
    hidden = hidden * 0.5 * (1 + torch.erf(hidden / math.sqrt(2)))
    added = _map(f"{own}.mlp.fc2", weights, hidden)
    return tokens + weights[f"{own}.layer_scale2.lambda1"] * added


def test_every_kind_is_its_formula(backbone: TipsBackbone) -> None:
    weights = backbone.model.vision_model.state_dict()
    images = torch.rand(2, 3, 56, 56, dtype=torch.float64)
    patches = images.unfold(2, 14, 14).unfold(3, 14, 14).permute(0, 2, 3, 1, 4, 5).flatten(3)
    filters = weights["embeddings.patch_embeddings.projection.weight"].flatten(1)
    tokens = patches.flatten(1, 2) @ filters.T
    tokens = tokens + weights["embeddings.patch_embeddings.projection.bias"]
    positions = weights["embeddings.position_embeddings"]
    first = (weights["embeddings.cls_token"] + positions[:, :1]).expand(2, -1, -1)
    second = weights["embeddings.register_tokens"].expand(2, -1, -1)
    tokens = torch.cat([first, second, tokens + positions[:, 1:]], dim=1)
    tokens = _block(0, weights, tokens, values=False)
    whole = _norm("layernorm", weights, _block(1, weights, tokens, values=False))
    kept = _norm("layernorm", weights, _block(1, weights, tokens, values=True))

    value, plain = (backbone.encode_images(images, kind=kind) for kind in ("value", "tokens"))

    torch.testing.assert_close(value.local, kept[:, 2:], **TIGHT)
    torch.testing.assert_close(plain.local, whole[:, 2:], **TIGHT)
    for features in (value, plain):
        torch.testing.assert_close(features.embedding, whole[:, 0], **TIGHT)
    theirs = backbone.model.get_image_features(images).pooler_output
    torch.testing.assert_close(value.embedding, theirs, **TIGHT)


def test_images_of_other_sizes_have_their_own_grid(backbone: TipsBackbone) -> None:
    features = backbone.encode_images(torch.rand(1, 3, 28, 70, dtype=torch.float64))

    assert backbone.grid(28, 70) == (2, 5)
    assert features.local.shape == (1, 10, 32)
    with pytest.raises(ValueError, match="multiples of 14 pixels, not 28 x 60"):
        backbone.encode_images(torch.rand(1, 3, 28, 60))
    with pytest.raises(ValueError, match="multiples of 14 pixels, not 60 x 60"):
        TipsBackbone(backbone.model, None, name="small", resolution=60)
    with pytest.raises(ValueError, match=r"unknown kind of features 'vv'; .* offers value, tokens"):
        backbone.encode_images(torch.rand(1, 3, 28, 28), kind="vv")


def test_a_text_is_the_mean_of_its_own_tokens(backbone: TipsBackbone) -> None:
    texts = ["A hot Dog", "the hill"]
    text = backbone.model.text_model

    features = backbone.encode_texts(texts)

    for row, words in enumerate(("a hot dog", "the hill")):
        ids = torch.tensor([backbone.tokenizer(words)["input_ids"]])
        states = text(input_ids=ids).last_hidden_state  # alone, without padding
        # the library divides by the number of tokens and 1e-8
        torch.testing.assert_close(features[row], states[0].mean(0), rtol=1e-7, atol=1e-9)
    assert len(backbone.tokenizer("a hot dog")["input_ids"]) == 3


def test_texts_that_cannot_be_read_whole_are_refused(backbone: TipsBackbone) -> None:
    backbone.encode_texts(["dog " * 24])
    with pytest.raises(ValueError, match="reads 24 tokens and a text has 25; shorten"):
        backbone.encode_texts(["dog " * 25])
    with pytest.raises(ValueError, match="finds no word in the text ' '"):
        backbone.encode_texts(["dog", " "])
    with pytest.raises(ValueError, match="got the one text"):
        backbone.encode_texts("dog")


def test_a_factory_of_two_lines_makes_a_folder_a_backbone(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (folder / "tips_of_mine.py").write_text(
        "from dclip.backbones.tips import load_tips\n"
        "def mine(*, resolution, device):\n"
        f"    return load_tips({str(folder)!r}, name='mine', resolution=resolution)\n"
    )
    monkeypatch.syspath_prepend(folder)

    backbone = load_backbone("tips_of_mine:mine", resolution=28)

    sys.modules.pop("tips_of_mine")
    assert isinstance(backbone, Backbone)
    assert (backbone.name, backbone.resolution, backbone.embed_dim) == ("mine", 28, 32)
    assert (backbone.mean, backbone.std) == ((0.0, 0.0, 0.0), (1.0, 1.0, 1.0))
    assert str(preparation_of(backbone)) == "square, bilinear, antialiased"
    scale: Any = backbone
    assert scale.logit_scale.item() == pytest.approx(50)  # one over 0.02


def test_what_weights_do_not_tell_changes_the_fingerprint(folder: Path) -> None:
    first = load_tips(folder)
    again = load_tips(folder)
    told = json.loads((folder / "config.json").read_text())
    told["vision_config"]["num_attention_heads"] = 4
    (folder / "config.json").write_text(json.dumps(told))

    assert first.fingerprint() == again.fingerprint()
    assert load_tips(folder).fingerprint() != first.fingerprint()
    assert first.feature_path("value") != first.feature_path("tokens")


def test_weights_that_are_not_whole_are_refused(folder: Path) -> None:
    file = folder / "model.safetensors"
    weights = load_file(file)
    gone = next(name for name in weights if "cls_token" in name)
    save_file({k: v for k, v in weights.items() if k != gone}, file, metadata={"format": "pt"})

    with pytest.raises(ValueError, match=r"do not fit, missing keys: .*cls_token and 0 more"):
        load_tips(folder)


def test_a_folder_of_another_model_is_refused(folder: Path, tmp_path: Path) -> None:
    (folder / "tokenizer.json").unlink()
    with pytest.raises(ValueError, match="vocabulary of the tokenizer is missing"):
        load_tips(folder)
    (folder / "config.json").write_text('{"model_type": "clip"}')
    with pytest.raises(ValueError, match=r"no config\.json of the model type tipsv2"):
        load_tips(folder)
    with pytest.raises(ValueError, match="neither a folder nor a name of the Hub"):
        load_tips(tmp_path / "none" / "at" / "all")


def test_without_a_network_it_is_said_at_once_what_to_fetch(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def nobody(*_: object, **__: object) -> None:
        raise OSError("no route to host")

    monkeypatch.setattr(huggingface_hub, "get_hf_file_metadata", nobody)

    with pytest.raises(OSError, match=r"no route .* hf download google/tipsv2-b14$"):
        tips_b14(resolution=None, device="cpu")


def test_nine_templates_describe_a_class(backbone: TipsBackbone) -> None:
    templates = prompt_ensemble("tcl9")

    features = encode_class_names(backbone, ["dog"], templates=templates)

    every = F.normalize(backbone.encode_texts([one.format("dog") for one in templates]), dim=-1)
    assert len({check_template(one) for one in templates}) == 9
    torch.testing.assert_close(features, F.normalize(every.mean(0, keepdim=True), dim=-1))

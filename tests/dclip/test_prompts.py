"""Prompt pairs and class features, on an encoder that hashes its texts."""

import hashlib
from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

from dclip.backbones import Backbone, ImageFeatures
from dclip.prompts import encode_class_names, encode_prompt_pairs, prompt_pairs


class HashingBackbone:
    """Gives every text its own fixed random feature, of a length far from 1."""

    name = "hashing"
    embed_dim = 16
    stride = 1
    resolution = 1
    mean = (0.0, 0.0, 0.0)
    std = (1.0, 1.0, 1.0)
    include_global_token = False
    kinds = ("value",)

    def __init__(self) -> None:
        self.weight = torch.nn.Parameter(torch.tensor(7.0))

    def encode_images(self, images: Tensor, *, kind: str = "value") -> ImageFeatures:
        raise NotImplementedError

    def encode_texts(self, texts: Sequence[str]) -> Tensor:
        rows = []
        for text in texts:
            seed = int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1
            generator = torch.Generator().manual_seed(seed)
            rows.append(torch.randn(self.embed_dim, generator=generator))
        return self.weight * torch.stack(rows)

    def grid(self, height: int, width: int) -> tuple[int, int]:
        return height, width

    def feature_path(self, kind: str) -> str:
        return f"hashing {kind}"

    def fingerprint(self) -> str:
        return "0" * 64

    def to(self, device: str | torch.device) -> "HashingBackbone":
        self.weight.data = self.weight.data.to(device)
        return self


@pytest.fixture
def backbone() -> HashingBackbone:
    return HashingBackbone()


def test_the_stand_in_keeps_the_protocol(backbone: HashingBackbone) -> None:
    assert isinstance(backbone, Backbone)


def test_pairs_are_all_negatives_then_all_positives_in_the_order_of_the_names() -> None:
    assert prompt_pairs(("dog", "traffic light")) == [
        "Not a photo of a dog",
        "Not a photo of a traffic light",
        "A photo of a dog",
        "A photo of a traffic light",
    ]


def test_braces_in_a_class_name_are_ordinary_letters() -> None:
    assert prompt_pairs(["{}"], positive="{}!", negative="no {}") == ["no {}", "{}!"]


def test_pair_features_are_the_encoder_s_own_unnormalised_and_without_gradient(
    backbone: HashingBackbone,
) -> None:
    features = encode_prompt_pairs(backbone, ("dog", "horse"))
    expected = backbone.encode_texts(
        ["Not a photo of a dog", "Not a photo of a horse", "A photo of a dog", "A photo of a horse"]
    )
    assert torch.equal(features, expected)
    assert not features.requires_grad
    assert (features.norm(dim=1) > 2).all()


def test_reordering_the_names_reorders_the_class_features(backbone: HashingBackbone) -> None:
    forward = encode_class_names(backbone, ("dog", "horse", "cow"))
    backward = encode_class_names(backbone, ("cow", "horse", "dog"))
    assert torch.equal(forward, backward.flip(0))


def test_one_template_gives_the_unit_feature_of_its_text(backbone: HashingBackbone) -> None:
    features = encode_class_names(backbone, ("dog",))
    text = backbone.encode_texts(["a photo of a dog."])[0]
    torch.testing.assert_close(features[0], text / text.norm())
    assert not features.requires_grad


def test_templates_weigh_alike_whatever_the_length_of_their_features() -> None:
    class LoudTemplate(HashingBackbone):
        def encode_texts(self, texts: Sequence[str]) -> Tensor:
            loudness = torch.tensor([1000.0 if "photo" in text else 1.0 for text in texts])
            return loudness[:, None] * super().encode_texts(texts)

    templates = ("a photo of a {}.", "a drawing of a {}.")
    loud = encode_class_names(LoudTemplate(), ("dog", "horse"), templates=templates)
    plain = encode_class_names(HashingBackbone(), ("dog", "horse"), templates=templates)
    torch.testing.assert_close(loud, plain)
    torch.testing.assert_close(loud.norm(dim=1), torch.ones(2))


@pytest.mark.parametrize(
    ("names", "reason"),
    [
        ((), "at least one"),
        (("dog", " "), r"positions \[1\]"),
        (("dog", "cat", "dog"), r"\['dog'\]"),
        ("dog", "the string 'dog'"),
    ],
)
def test_class_names_that_cannot_name_columns_are_refused(names: object, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        prompt_pairs(names)


@pytest.mark.parametrize("template", ["a photo", "{} and {}", "a photo of a {name}", "{0} {}", ""])
def test_a_template_without_exactly_one_gap_is_refused(
    template: str, backbone: HashingBackbone
) -> None:
    with pytest.raises(ValueError, match="exactly one"):
        prompt_pairs(("dog",), positive=template)
    with pytest.raises(ValueError, match="exactly one"):
        encode_class_names(backbone, ("dog",), templates=(template,))


def test_a_single_string_in_place_of_templates_is_refused(backbone: HashingBackbone) -> None:
    with pytest.raises(ValueError, match="sequence of templates"):
        encode_class_names(backbone, ("dog",), templates="a {}")
    with pytest.raises(ValueError, match="sequence of templates"):
        encode_class_names(backbone, ("dog",), templates=())

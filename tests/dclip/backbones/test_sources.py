"""Names, weights and pixels: what is known of a model before it is built."""

import json
import warnings
from pathlib import Path
from typing import Any

import open_clip
import pytest
import torch
from safetensors.torch import save_file

from dclip.backbones import load_backbone, preparation_of
from dclip.backbones.clip import OpenCLIPBackbone
from dclip.backbones.loading import construct
from dclip.backbones.sources import find_source, is_clips_own, pixels_of_tag, tags_of
from dclip.data.preparation import Preparation

from .small_architectures import small_config

HALF = (0.5, 0.5, 0.5)
LAION = "laion2b_s32b_b82k"  # of ViT-L-14: normalised by 0.5


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    """A file that can be read as weights; of what is never asked here."""
    save_file({"weight": torch.zeros(1)}, tmp_path / "weights.safetensors")
    return tmp_path / "weights.safetensors"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A small model with its configuration beside it, as open_clip pushes models to the Hub."""
    config = small_config("ViT-B-32") | {"quick_gelu": True}
    model = construct(config, "small")
    save_file(dict(model.state_dict()), tmp_path / "open_clip_model.safetensors")
    told = {"mean": HALF, "std": HALF, "resize_mode": "longest", "interpolation": "bicubic"}
    content = {"model_cfg": config, "preprocess_cfg": told}
    (tmp_path / "open_clip_config.json").write_text(json.dumps(content))
    return tmp_path


def test_a_folder_has_architecture_weights_and_pixels(folder: Path) -> None:
    backbone = load_backbone(f"local-dir:{folder}", resolution=96)

    assert isinstance(backbone, OpenCLIPBackbone)
    assert (backbone.mean, backbone.std) == (HALF, HALF)
    assert preparation_of(backbone) == Preparation("longest", "bicubic")
    model = construct(small_config("ViT-B-32") | {"quick_gelu": True}, "small").eval()
    model.load_state_dict(
        {k: v for k, v in backbone.model.state_dict().items()}  # noqa: C416 - a copy of its own
    )
    images = torch.randn(1, 3, 96, 96)
    torch.testing.assert_close(
        backbone.encode_images(images).embedding, model.encode_image(images).detach()
    )


def test_flags_go_before_what_a_folder_says(folder: Path) -> None:
    backbone = load_backbone(
        f"local-dir:{folder}", resolution=96, resize="squash", mean=(0.1, 0.2, 0.3)
    )

    assert preparation_of(backbone) == Preparation("squash", "bicubic")
    assert (backbone.mean, backbone.std) == ((0.1, 0.2, 0.3), HALF)


@pytest.mark.parametrize(
    ("break_it", "reason"),
    [
        (lambda folder: (folder / "open_clip_config.json").unlink(), "there is no open_clip_conf"),
        (lambda folder: (folder / "open_clip_config.json").write_text("{"), "cannot be read"),
        (lambda folder: (folder / "open_clip_config.json").write_text("{}"), "needs model_cfg"),
        (lambda folder: (folder / "open_clip_model.safetensors").unlink(), "none of open_clip_"),
    ],
)
def test_a_folder_that_lacks_something_says_what(folder: Path, break_it: Any, reason: str) -> None:
    break_it(folder)

    with pytest.raises(ValueError, match=reason):
        find_source(f"local-dir:{folder}")


def test_a_folder_with_a_preparation_nobody_knows_is_refused(folder: Path) -> None:
    file = folder / "open_clip_config.json"
    content = json.loads(file.read_text())
    file.write_text(json.dumps(content | {"preprocess_cfg": {"resize_mode": "stretch"}}))

    with pytest.raises(ValueError, match="'stretch', 'bicubic' are not known"):
        find_source(f"local-dir:{folder}")


def test_a_tag_and_a_file_said_to_be_it_are_prepared_alike(weights: Path) -> None:
    released = tags_of("ViT-L-14")[LAION]

    source = find_source("ViT-L-14", pretrained=str(weights), tag=LAION)

    assert source.pixels == pixels_of_tag("ViT-L-14", released)
    assert source.pixels.mean == HALF
    assert source.config["quick_gelu"] is False


def test_a_file_takes_pixels_from_the_configuration_beside_it(weights: Path) -> None:
    config = open_clip.get_model_config("ViT-L-14")
    content = {"model_cfg": config, "preprocess_cfg": {"mean": HALF, "std": HALF}}
    weights.with_name("open_clip_config.json").write_text(json.dumps(content))

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert find_source("ViT-L-14", pretrained=str(weights)).pixels.mean == HALF


def test_a_file_that_says_nothing_is_warned_of_where_released_weights_differ(weights: Path) -> None:
    with pytest.warns(UserWarning, match=r"images are normalised as OpenAI's.* --tag, one of"):
        source = find_source("ViT-L-14", pretrained=str(weights))

    assert source.pixels.mean == open_clip.OPENAI_DATASET_MEAN


def test_a_tag_of_another_architecture_is_refused(weights: Path) -> None:
    with pytest.raises(ValueError, match="no weights 'webli' for RN50; webli is of ViT-B-16"):
        find_source("RN50", pretrained=str(weights), tag="webli")
    with pytest.raises(ValueError, match="no weights 'webli' for RN50"):
        find_source("RN50", pretrained="webli")
    with pytest.raises(ValueError, match="is known without it"):
        find_source("tiny", tag="openai")


def test_a_side_that_does_not_fit_is_refused_before_weights_are_asked_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def never(*_: object, **__: object) -> Path:
        raise AssertionError("asked for weights")

    monkeypatch.setattr("dclip.backbones.sources.find_weights", never)
    with pytest.raises(ValueError, match="in place of 225 take 224 or 256"):
        load_backbone("RN50", resolution=225)
    with pytest.raises(ValueError, match="multiples of 18 pixels, not 448 x 448"):
        load_backbone("coca_base", pretrained="random")


def test_a_folder_whose_configuration_builds_nothing_is_told_in_one_line(folder: Path) -> None:
    file = folder / "open_clip_config.json"
    content = json.loads(file.read_text())
    content["model_cfg"]["vision_cfg"]["depth"] = 2
    file.write_text(json.dumps(content))

    with pytest.raises(ValueError, match=r"builds no model \(.*'depth'\)"):
        load_backbone(f"local-dir:{folder}", resolution=96)


def test_clips_own_models_keep_the_papers_square_and_others_take_that_of_their_weights() -> None:
    assert is_clips_own("ViT-B-16")
    assert not is_clips_own("ViT-B-16-SigLIP2")
    assert find_source("ViT-B-16", pretrained="random").pixels.preparation == Preparation()
    siglip = find_source("ViT-B-16-SigLIP2", pretrained="random").pixels
    assert siglip.preparation == Preparation("squash", "bicubic")
    assert siglip.mean == HALF
    eva = find_source("EVA02-B-16", pretrained="random").pixels
    assert eva.preparation == Preparation("shortest", "bicubic")


def test_weights_that_nobody_named_are_openais_or_the_only_ones(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked = []
    monkeypatch.setattr(
        "dclip.backbones.sources.find_weights",
        lambda *about, **_: asked.append(about[1]) or Path("weights"),
    )

    find_source("RN50")
    find_source("EVA02-B-16")

    assert asked == ["RN50/openai", "EVA02-B-16/merged2b_s8b_b131k"]
    with pytest.raises(ValueError, match=r"no weights by the tag openai; .*laion400m_e31"):
        find_source("ViT-B-16-plus-240")


def test_a_name_of_the_hub_has_two_parts() -> None:
    with pytest.raises(ValueError, match="is called hf-hub:organisation/name"):
        find_source("hf-hub:name")


def test_what_is_not_installed_is_told_with_the_command(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = folder / "open_clip_config.json"
    content = json.loads(file.read_text())
    content["model_cfg"]["text_cfg"]["hf_tokenizer_name"] = "org/words"
    file.write_text(json.dumps(content))
    monkeypatch.setitem(__import__("sys").modules, "transformers", None)

    with pytest.raises(ValueError, match=r"^local-dir:.*pip install 'dclip\[hf\]'$"):
        load_backbone(f"local-dir:{folder}")


def test_random_weights_read_every_text_without_fetching_anything() -> None:
    source = find_source("ViT-B-16-SigLIP2", pretrained="random")

    assert source.weights is None
    assert source.tokenizer == "timm/ViT-B-16-SigLIP2"

"""What is known of each architecture without building it: the file, and what it refuses."""

from importlib.metadata import version
from pathlib import Path

import huggingface_hub
import open_clip
import pytest

from dclip import architectures
from dclip.architectures import (
    Facts,
    Weights,
    check_settings,
    facts,
    in_cache,
    is_here,
    no_such_tag,
    read_facts,
    unknown_name,
    write_facts,
)
from dclip.backbones.facts import describe, released_weights
from dclip.backbones.sources import tags_of, tokenizer_of

# One of each family and library, and each kind of text tower.
FEW = (
    *("RN50", "ViT-B-32", "ViT-L-14-CLIPA", "coca_ViT-B-32", "ViT-B-16-SigLIP2", "PE-Core-B-16"),
    *("EVA02-B-16", "MobileCLIP-B", "MobileCLIP-S1", "convnext_base_w_320", "convnext_large_d"),
    *("ViTamin-S", "swin_base_patch4_window7_224", "vit_medium_patch16_gap_256"),
    *("vit_relpos_medium_patch16_cls_224", "ViT-SO400M-14-SigLIP-384", "roberta-ViT-B-32"),
    *("nllb-clip-base-siglip", "ViT-L-14-worldwide", "coca_roberta-ViT-B-32"),
)


@pytest.mark.parametrize("name", FEW)
def test_the_file_has_what_building_an_architecture_tells(name: str) -> None:
    assert facts().architectures[name] == describe(name)


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(set(open_clip.list_models()) - set(FEW)))
def test_the_file_has_what_building_any_other_tells(name: str) -> None:
    assert facts().architectures[name] == describe(name)


def test_the_file_is_of_the_libraries_and_has_all_pairs() -> None:
    assert facts().is_installed
    assert list(facts().architectures) == open_clip.list_models()
    for name, own in facts().architectures.items():
        config = open_clip.get_model_config(name)
        assert own.weights == released_weights(name)
        assert own.tokenizer == tokenizer_of(config)
        assert own.width == config["embed_dim"]
        assert own.context_length == config["text_cfg"].get("context_length", 77)
    pairs = [(own.name, each.tag) for own in facts().architectures.values() for each in own.weights]
    assert sorted(pairs) == sorted(open_clip.list_pretrained())
    assert len(pairs) == 196


def test_a_tower_that_takes_any_size_was_built_for_the_one_of_its_configuration() -> None:
    sizes = {name: facts().architectures[name].size for name in ("convnext_base_w_320", "RN50x4")}
    assert sizes == {"convnext_base_w_320": (320, 320), "RN50x4": (288, 288)}


def test_what_is_written_is_read_again(tmp_path: Path) -> None:
    every = facts().architectures
    few = [every[name] for name in ("RN50", "coca_base")]  # with and without weights
    write_facts(tmp_path / "facts.json", few)

    again = read_facts(tmp_path / "facts.json")
    assert list(again.architectures.values()) == few
    assert again.versions == {name: version(name) for name in ("open_clip_torch", "timm")}


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"pretrained": "laion2b_s32b_b82k"}, "is of ViT-L-14; did you mean laion2b_s34b_b88k?"),
        ({"pretrained": "webl"}, "no weights 'webl' for ViT-B-16; it has openai, laion400m_e31, "),
        ({"pretrained": "w.pt", "tag": "webli"}, "no weights 'webli' for ViT-B-16; webli is of"),
        ({"resolution": 225}, "sides are multiples of 16 pixels, not 225 x 225; in place of 225"),
        ({"resolution": 8}, "in place of 8 take 16"),
    ],
)
def test_settings_that_do_not_fit_are_refused(settings: dict[str, object], told: str) -> None:
    usual = {"pretrained": None, "tag": None, "resolution": None}
    with pytest.raises(ValueError, match=told):
        check_settings("ViT-B/16", **usual | settings)  # type: ignore[arg-type]


def test_settings_that_fit_pass(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    check_settings("ViT-B-16", pretrained="openai", tag=None, resolution=448)
    check_settings("ViT-B-16", pretrained="random", tag=None, resolution=16)
    check_settings("ViT-SO400M-14-SigLIP-384", pretrained=None, tag=None, resolution=384)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "weights").touch()
    check_settings("ViT-B-16", pretrained="weights", tag="openai", resolution=None)
    check_settings("my_clip:build", pretrained="any", tag="any", resolution=7)


def test_of_another_version_of_open_clip_nothing_is_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    other = Facts({"open_clip_torch": "0"}, facts().architectures)
    monkeypatch.setattr(architectures, "facts", lambda: other)
    check_settings("ViT-B-16", pretrained="a_tag_of_tomorrow", tag=None, resolution=225)


def test_an_unknown_name_is_told_with_those_that_are_near() -> None:
    names = facts().architectures
    assert "did you mean 'ViT-B-16', " in unknown_name("vit-b/61", names)
    assert "did you mean 'ViT-B-16-SigLIP2', " in unknown_name("siglip2", names)
    assert "'tiny-vit'" in unknown_name("tinyvit", names).split("Give")[0]
    assert unknown_name("nosuch", names).startswith("unknown backbone 'nosuch'; give 'tiny', ")


def test_of_many_names_the_first_are_told() -> None:
    told = no_such_tag("RN50", "webli", ["openai"])
    assert told.count("SigLIP") == 5
    assert "and 21 more; it has openai." in told


def test_weights_are_here_once_they_are_in_the_cache(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    weights = facts().architectures["RN50"].weights[0]
    assert not is_here(weights)
    assert not is_here(None)

    model = tmp_path / f"models--{weights.repository.replace('/', '--')}"
    file = model / "snapshots" / "abc" / weights.files[-1]
    file.parent.mkdir(parents=True)
    file.touch()
    (model / "refs").mkdir()
    (model / "refs" / "main").write_text("abc")
    assert is_here(weights)
    assert in_cache(weights.repository, weights.files) == file
    assert in_cache("", weights.files) is None


def test_weights_of_a_folder_are_here_if_their_file_is(tmp_path: Path) -> None:
    own = Weights("", "", (str(tmp_path / "w.pt"),), (0.0,) * 3, (1.0,) * 3, "", "", False, None)
    assert not is_here(own)
    (tmp_path / "w.pt").touch()
    assert is_here(own)


def test_the_pairs_of_one_tag_are_those_of_open_clip() -> None:
    told = no_such_tag("RN50", "merged2b_s8b_b131k", tags_of("RN50"))
    assert "; merged2b_s8b_b131k is of EVA02-B-16; it has openai, yfcc15m, cc12m." in told

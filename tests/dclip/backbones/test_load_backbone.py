import json
import subprocess
import sys
import types
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import open_clip
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from dclip.backbones import Backbone, ImageFeatures, load_backbone

BuildModel = Callable[..., open_clip.CLIP]


@pytest.fixture
def toy(monkeypatch: pytest.MonkeyPatch, configs: dict[str, dict[str, Any]]) -> str:
    """Name of a small architecture that open_clip knows for as long as the test runs."""
    monkeypatch.setitem(open_clip.factory._MODEL_CONFIGS, "Toy-B-8", configs["vit"])
    return "Toy-B-8"


@pytest.fixture
def toy_file(tmp_path: Path, build_model: BuildModel) -> Path:
    """Weights that fit the small architecture."""
    path = tmp_path / "toy.safetensors"
    save_file(build_model("vit").state_dict(), path)
    return path


def release(monkeypatch: pytest.MonkeyPatch, architecture: str, **tags: dict[str, Any]) -> None:
    """Let open_clip know of released weights, kept in files."""
    common = {"mean": (0.5, 0.4, 0.3), "std": (0.2, 0.2, 0.2)}
    known = {tag: common | values for tag, values in tags.items()}
    monkeypatch.setitem(open_clip.pretrained._PRETRAINED, architecture, known)


class MinimalBackbone:
    """The least that makes a backbone: eight dimensions of constant features."""

    name = "minimal"
    embed_dim = 8
    stride = 16
    mean = (0.5, 0.5, 0.5)
    std = (0.5, 0.5, 0.5)
    include_global_token = False
    kinds = ("value",)

    def __init__(self, resolution: int) -> None:
        self.resolution = resolution

    def encode_images(self, images: Tensor, *, kind: str = "value") -> ImageFeatures:
        assert kind == "value"
        rows, columns = self.grid(*images.shape[-2:])
        return ImageFeatures(torch.ones(len(images), 8), torch.ones(len(images), rows * columns, 8))

    def encode_texts(self, texts: Sequence[str]) -> Tensor:
        return torch.ones(len(texts), 8)

    def grid(self, height: int, width: int) -> tuple[int, int]:
        return height // 16, width // 16

    def feature_path(self, kind: str) -> str:
        return f"minimal {kind}"

    def fingerprint(self) -> str:
        return "0" * 64

    def to(self, device: torch.device | str) -> "MinimalBackbone":
        assert torch.device(device).type == "cpu"
        return self


@pytest.fixture
def plugin(monkeypatch: pytest.MonkeyPatch) -> types.ModuleType:
    """A user's module; tests put factories into it."""
    module = types.ModuleType("house.plugin")
    monkeypatch.setitem(sys.modules, "house", types.ModuleType("house"))
    monkeypatch.setitem(sys.modules, "house.plugin", module)
    return module


def test_importing_the_package_leaves_open_clip_alone() -> None:
    check = "import sys, dclip.backbones; sys.exit('open_clip' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", check], check=False).returncode == 0


@pytest.mark.parametrize(
    ("name", "hint"),
    [("RN102", "'RN101'"), ("tinny", "'tiny'"), ("vit-b/61", "'ViT-B-16'"), ("x", "'tiny'")],
)
def test_an_unknown_name_is_refused_with_near_ones(name: str, hint: str) -> None:
    with pytest.raises(ValueError, match=f"unknown backbone '{name}'.*{hint}"):
        load_backbone(name)


@pytest.mark.parametrize("name", ["roberta-ViT-B-32", "ViT-H-14-CLIPA", "ViT-B-16-SigLIP2"])
def test_texts_of_hugging_face_need_its_library_and_say_how_to_get_it(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "transformers", None)
    reason = rf"^{name} reads texts by Hugging Face's transformers, .*pip install 'dclip\[hf\]'$"
    with pytest.raises(ValueError, match=reason):
        load_backbone(name)


def test_random_weights_are_seeded_and_leave_the_generator_alone(toy: str) -> None:
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    first = load_backbone(toy, pretrained="random", resolution=48)
    assert torch.equal(torch.rand(3), expected)
    again = load_backbone("Toy-B/8", pretrained="random", resolution=48)
    assert first.name == again.name == "Toy-B-8/random"
    assert first.fingerprint() == again.fingerprint()
    assert first.resolution == 48


def test_the_resolution_of_the_paper_is_the_default(toy: str) -> None:
    assert load_backbone(toy, pretrained="random").resolution == 448
    with pytest.raises(ValueError, match="in place of 450 take 448 or 456"):
        load_backbone(toy, pretrained="random", resolution=450)


def test_weights_of_a_file_are_those_in_the_file(
    toy: str, toy_file: Path, build_model: BuildModel
) -> None:
    backbone = load_backbone(toy, pretrained=str(toy_file), resolution=32)
    assert backbone.name == "Toy-B-8/toy.safetensors"
    model = build_model("vit")
    model.visual.transformer.resblocks.apply(_use_gelu)
    images = torch.randn(1, 3, 32, 32)
    with torch.no_grad():
        expected = model.encode_image(images)
    torch.testing.assert_close(backbone.encode_images(images).embedding, expected)


def _use_gelu(module: nn.Module) -> None:
    """The plain name of an architecture means GELU; the small models are built with QuickGELU."""
    for name, child in module.named_children():
        if isinstance(child, open_clip.transformer.QuickGELU):
            setattr(module, name, nn.GELU())


def test_weights_of_another_architecture_are_refused(
    toy: str, tmp_path: Path, build_model: BuildModel
) -> None:
    path = tmp_path / "resnet.pt"
    torch.save(build_model("resnet").state_dict(), path)
    with pytest.raises(ValueError, match=r"resnet\.pt do not fit .*missing: .*unexpected: "):
        load_backbone(toy, pretrained=str(path))


def test_a_tag_decides_on_quick_gelu_and_on_mean_and_std(
    toy: str, toy_file: Path, monkeypatch: pytest.MonkeyPatch, build_model: BuildModel
) -> None:
    release(monkeypatch, toy, openai={"file": str(toy_file), "quick_gelu": True})
    backbone = load_backbone(toy, resolution=32)
    assert backbone.name == "Toy-B-8/openai"
    assert (backbone.mean, backbone.std) == ((0.5, 0.4, 0.3), (0.2, 0.2, 0.2))
    images = torch.randn(1, 3, 32, 32)
    with torch.no_grad():
        expected = build_model("vit").encode_image(images)
    torch.testing.assert_close(backbone.encode_images(images).embedding, expected)


def test_a_file_takes_quick_gelu_where_all_released_weights_do(
    toy: str, toy_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    release(monkeypatch, toy, openai={"file": str(toy_file), "quick_gelu": True})
    by_tag = load_backbone(toy, resolution=32)
    by_path = load_backbone(toy, pretrained=str(toy_file), resolution=32)
    assert by_tag.fingerprint() == by_path.fingerprint()


def test_a_file_warns_where_both_activations_are_in_use(
    toy: str, toy_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = str(toy_file)
    release(monkeypatch, toy, openai={"file": file, "quick_gelu": True}, laion={"file": file})
    with pytest.warns(
        UserWarning, match=r"GELU is taken, not QuickGELU \(OpenAI's: 'Toy-B-8-quickgelu'\)"
    ):
        plain = load_backbone(toy, pretrained=file, resolution=32)
    assert plain.fingerprint() == load_backbone(toy, pretrained="laion").fingerprint()
    assert plain.fingerprint() != load_backbone(toy, pretrained="openai").fingerprint()


def test_unknown_weights_are_refused_with_the_known_tags(toy: str, toy_file: Path) -> None:
    with pytest.raises(ValueError, match=r"'laion3b' for ViT-B-32; .*laion2b"):
        load_backbone("ViT-B-32", pretrained="laion3b")
    with pytest.raises(ValueError, match="no weights file nowhere"):
        load_backbone(toy, pretrained="nowhere/weights.pt")
    with pytest.raises(
        ValueError, match=r"Toy-B-8 has no weights by the tag openai; .*: none; give"
    ):
        load_backbone(toy)


@pytest.fixture
def tiny_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Empty folder that stands in for the one the tiny CLIP is packaged in."""
    monkeypatch.setattr("importlib.resources.files", lambda _: tmp_path)
    return tmp_path


def test_tiny_is_loaded_from_16_bit_weights_at_its_own_resolution(
    tiny_folder: Path, configs: dict[str, dict[str, Any]], build_model: BuildModel
) -> None:
    (tiny_folder / "tiny_clip.json").write_text(json.dumps(configs["resnet"]))
    half = build_model("resnet").half()
    save_file(half.state_dict(), tiny_folder / "tiny_clip.safetensors")
    backbone = load_backbone("tiny")
    assert (backbone.name, backbone.resolution) == ("tiny", 96)
    images = torch.randn(1, 3, 96, 96)
    with torch.no_grad():
        expected = half.float().encode_image(images)
    torch.testing.assert_close(backbone.encode_images(images).embedding, expected)
    assert load_backbone("tiny", pretrained="random").name == "tiny/random"
    assert load_backbone("tiny", pretrained="random").fingerprint() != backbone.fingerprint()


@pytest.mark.parametrize("config_is_there", [False, True])
def test_tiny_without_its_weights_says_how_to_make_them(
    config_is_there: bool, tiny_folder: Path, configs: dict[str, dict[str, Any]]
) -> None:
    if config_is_there:
        (tiny_folder / "tiny_clip.json").write_text(json.dumps(configs["resnet"]))
    with pytest.raises(
        ValueError, match=r"python -m dclip\.world\.pretraining --model tiny --output"
    ):
        load_backbone("tiny")


def test_a_factory_is_called_with_resolution_and_device(plugin: types.ModuleType) -> None:
    calls = []

    def build(*, resolution: int | None, device: str) -> MinimalBackbone:
        calls.append((resolution, device))
        return MinimalBackbone(resolution or 64)

    plugin.build = build  # type: ignore[attr-defined]
    backbone = load_backbone("house.plugin:build", device="cpu")
    assert isinstance(backbone, Backbone)
    assert backbone.resolution == 64
    assert load_backbone("house.plugin:build", resolution=128).resolution == 128
    assert calls == [(None, "cpu"), (128, "cpu")]


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("no_such_module:build", "no module 'no_such_module'"),
        ("house.no_such_part:build", "no module 'house.no_such_part'|no module 'house'"),
        ("house.plugin:bild", "no callable 'bild' .* did you mean 'build'"),
        ("house.plugin:number", "no callable 'number'"),
        ("house.plugin:build", "a Conv2d, is no Backbone: it lacks name, embed_dim, .*fingerprint"),
    ],
)
def test_a_factory_that_gives_no_backbone_is_refused(
    name: str, reason: str, plugin: types.ModuleType
) -> None:
    plugin.build = lambda **_: nn.Conv2d(1, 1, 1)  # type: ignore[attr-defined]
    plugin.number = 3  # type: ignore[attr-defined]
    with pytest.raises(ValueError, match=reason):
        load_backbone(name)


def test_a_factory_takes_no_weights_from_us(plugin: types.ModuleType) -> None:
    with pytest.raises(ValueError, match="pretrained='random' cannot be passed"):
        load_backbone("house.plugin:build", pretrained="random")
    with pytest.raises(ValueError, match="include_global_token=False cannot be passed"):
        load_backbone("house.plugin:build", include_global_token=False)


def test_what_is_missing_inside_a_users_module_is_the_users_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "broken_plugin.py").write_text("import no_such_dependency\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ModuleNotFoundError, match="no_such_dependency"):
        load_backbone("broken_plugin:build")


REAL = [
    ("RN50", 1024, 224, 50),
    ("ViT-B/32", 512, 448, 196),
    pytest.param("RN101", 512, 448, 197, marks=pytest.mark.slow),
    pytest.param("ViT-B/16", 512, 448, 784, marks=pytest.mark.slow),
]


@pytest.mark.parametrize(("name", "dim", "resolution", "locations"), REAL)
def test_real_architectures_give_the_papers_shapes(
    name: str, dim: int, resolution: int, locations: int
) -> None:
    backbone = load_backbone(name, pretrained="random", resolution=resolution)
    features = backbone.encode_images(torch.randn(2, 3, resolution, resolution))
    assert features.embedding.shape == (2, dim)
    assert features.local.shape == (2, locations, dim)
    # something of the image and of the place is left, enough for 16-bit storage
    size = features.local.abs().mean()
    assert (features.local[0] - features.local[1]).abs().mean() > 0.02 * size
    assert features.local.std(dim=1).mean() > 0.02 * size
    rows, columns = backbone.grid(resolution, resolution)
    assert rows * columns + backbone.include_global_token == locations
    assert backbone.encode_texts(["A photo of a dog"]).shape == (1, dim)

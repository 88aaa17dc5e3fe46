"""What a user of the library meets first: names, version, and what objects say of themselves."""

import ast
import subprocess
import sys
import tomllib
from importlib.metadata import packages_distributions, version
from pathlib import Path

import pytest
import torch
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import dclip
from dclip.backbones.clip import check_normalised


def test_every_public_name_is_there() -> None:
    assert sorted(dclip.__all__) == sorted(dclip._HOME)
    for name in dclip.__all__:
        assert getattr(dclip, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'fitt'"):
        _ = dclip.fitt


def test_the_version_is_that_of_the_package_and_costs_nothing_before_it_is_asked_for() -> None:
    assert dclip.__version__ == version("dclip")
    told = Path(dclip.__file__).parent.parent / "pyproject.toml"
    if told.is_file():
        assert tomllib.loads(told.read_text())["project"]["version"] == dclip.__version__
    code = "import dclip, sys; print('importlib.metadata' in sys.modules, 'torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-S", "-c", code], capture_output=True, text=True,
                          cwd=Path(dclip.__file__).parent.parent)  # fmt: skip
    assert done.stdout.split() == ["False", "False"], done.stderr


def test_what_is_installed_for_a_user_is_imported() -> None:
    top = Path(dclip.__file__).parent.parent
    if not (top / "pyproject.toml").is_file():
        pytest.skip("installed without its pyproject.toml")
    project = tomllib.loads((top / "pyproject.toml").read_text())["project"]
    modules = set()
    for file in (*(top / "dclip").rglob("*.py"), *(top / "pipeline").rglob("*.py")):
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Import):
                modules |= {alias.name.partition(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                modules.add(str(node.module).partition(".")[0])
    homes = packages_distributions()
    imported = {canonicalize_name(name) for module in modules for name in homes.get(module, ())}
    assert {canonicalize_name(Requirement(r).name) for r in project["dependencies"]} <= imported


def test_objects_say_what_they_are() -> None:
    clip = dclip.load_backbone("tiny", pretrained="random")
    assert repr(clip) == (
        "OpenCLIPBackbone(tiny/random: 192 px, 6 x 6 locations and the mean token of 128 "
        "dimensions, kinds value, vv, qk, on cpu)"
    )
    sizes = dclip.ProjectorSizes.for_embed_dim(512)
    assert repr(sizes) == "ProjectorSizes(embed_dim=512, hidden_dim=384, output_dim=256)"
    assert repr(dclip.DCLIP(sizes)) == (
        "DCLIP(512 -> 256 dimensions, text by way of 384; 426752 parameters; project_then_pool, "
        "scales 20 and 5)"
    )
    training = dclip.Training([dclip.Recipe(epochs=7)], torch.randn(6, 64), seeds=[0])
    assert repr(training) == (
        "Training(1 training of dclip, 3 classes in 64 dimensions, epoch 0 of 7, preset anchored, "
        "on cpu)"
    )


@pytest.mark.parametrize(
    ("images", "told"),
    [
        (torch.zeros(1, 3, 64, 64, dtype=torch.uint8), "dtype torch.uint8"),
        (torch.zeros(1, 3, 64, 64, dtype=torch.int64), "dtype torch.int64"),
        (torch.full((1, 3, 64, 64), 255.0), "values up to 255"),
    ],
)
def test_pixels_that_are_not_normalised_are_refused_and_told_what_to_do(
    images: torch.Tensor, told: str
) -> None:
    with pytest.raises(ValueError, match=f"not pixels .*{told}.*image_to_tensor"):
        check_normalised(images)


def test_encode_images_refuses_pixels_from_0_to_255() -> None:
    clip = dclip.load_backbone("tiny", pretrained="random")
    with pytest.raises(ValueError, match="values up to 255"):
        clip.encode_images(torch.full((1, 3, 64, 64), 255.0))
    assert clip.encode_images(torch.full((1, 3, 64, 64), 2.7)).local.shape == (1, 5, 128)

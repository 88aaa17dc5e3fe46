import pickle
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from dclip.backbones.weights import load_strictly, read_state_dict

WEIGHTS = {"weight": torch.tensor([[1.0, 2.0]]), "bias": torch.tensor([3.0])}


class Mischief:
    """Unpickling this makes a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, ...]:
        return (Path.touch, (self.path,))


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_a_written_state_dict_is_read_back(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"weights{suffix}"
    (save_file if suffix == ".safetensors" else torch.save)(WEIGHTS, path)
    found = read_state_dict(path)
    assert found.keys() == WEIGHTS.keys()
    assert all(torch.equal(found[name], WEIGHTS[name]) for name in WEIGHTS)


def test_training_checkpoints_and_openai_numbers_are_understood(tmp_path: Path) -> None:
    path = tmp_path / "epoch_3.pt"
    inner = {f"module.{name}": value for name, value in WEIGHTS.items()}
    torch.save({"epoch": 3, "state_dict": inner}, path)
    assert read_state_dict(path).keys() == WEIGHTS.keys()
    torch.save({**WEIGHTS, "input_resolution": torch.tensor(224)}, path)
    assert read_state_dict(path).keys() == WEIGHTS.keys()


def test_a_pickle_with_anything_but_tensors_is_refused_unrun(tmp_path: Path) -> None:
    path, made = tmp_path / "weights.pt", tmp_path / "made"
    torch.save({**WEIGHTS, "extra": Mischief(made)}, path)
    with pytest.raises(ValueError, match="cannot be read as a file of tensors only"):
        read_state_dict(path)
    assert not made.exists()


class Inner(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(3, 2).half()
        self.empty = nn.ReLU()
        self.register_buffer("count", torch.arange(4))


class Outer(nn.Module):
    """As OpenAI's: modules in modules, and three numbers among the weights."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = Inner()
        self.scale = nn.Parameter(torch.tensor(4.6))
        self.tied = nn.Parameter(torch.arange(6.0).view(2, 3))
        self.register_buffer("context_length", torch.tensor(77))

    def forward(self, x: Tensor) -> Tensor:
        return self.scale * x


@pytest.mark.filterwarnings("ignore:`torch.jit")
def test_an_archive_of_openais_form_gives_its_weights(tmp_path: Path) -> None:
    module = Outer()
    torch.jit.script(module).save(tmp_path / "RN50.pt")

    found = read_state_dict(tmp_path / "RN50.pt")

    expected = {k: v for k, v in module.state_dict().items() if k != "context_length"}
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert found[name].dtype == value.dtype
        assert torch.equal(found[name], value), name


@pytest.mark.filterwarnings("ignore:`torch.jit")
def test_an_archive_that_asks_for_anything_else_is_refused_before_it_is_called(
    tmp_path: Path,
) -> None:
    class Call:
        def __reduce__(self) -> tuple[Any, ...]:
            return (print, ("called",))

    path = tmp_path / "RN50.pt"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("RN50/data.pkl", pickle.dumps(Call()))
        archive.writestr("RN50/constants.pkl", b"")
    with pytest.raises(ValueError, match=r"asks for builtins\.print, which is no part of weights"):
        read_state_dict(path)


def test_a_damaged_archive_is_refused_by_name(tmp_path: Path) -> None:
    path = tmp_path / "RN50.pt"
    with zipfile.ZipFile(path, "w") as archive:  # the table of contents of one
        for name in ("data.pkl", "constants.pkl", "code/__torch__.py", "version"):
            archive.writestr(f"RN50/{name}", b"")
    with pytest.raises(ValueError, match=r"RN50\.pt cannot be read as a TorchScript archive"):
        read_state_dict(path)


@pytest.mark.parametrize("content", [{"epoch": 3}, [1, 2], {1: torch.zeros(1)}], ids=str)
def test_a_file_without_named_tensors_is_refused(tmp_path: Path, content: object) -> None:
    path = tmp_path / "weights.pt"
    torch.save(content, path)
    with pytest.raises(ValueError, match="does not hold a state dict"):
        read_state_dict(path)


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
@pytest.mark.parametrize("content", [b"", b"not weights at all", b"PK\x03\x04"])
def test_a_damaged_file_is_refused_by_name(tmp_path: Path, suffix: str, content: bytes) -> None:
    path = tmp_path / f"weights{suffix}"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=rf"weights\{suffix} "):
        read_state_dict(path)


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no weights file"):
        read_state_dict(tmp_path / "none.pt")


def test_loading_casts_to_the_dtype_of_the_model() -> None:
    model = nn.Linear(2, 1)
    load_strictly(model, {name: value.half() for name, value in WEIGHTS.items()}, source="x")
    assert model.weight.dtype == torch.float32
    assert model.weight.tolist() == [[1.0, 2.0]]


def test_loading_reports_everything_that_does_not_fit() -> None:
    model = nn.Linear(2, 1)
    before = model.weight.clone()
    with pytest.raises(ValueError, match=r"x\.pt do not fit") as caught:
        load_strictly(model, {"weight": torch.zeros(2, 2), "scale": torch.zeros(1)}, source="x.pt")
    assert "1 missing: bias" in str(caught.value)
    assert "1 unexpected: scale" in str(caught.value)
    assert "1 of another shape: weight (2, 2) for (1, 2)" in str(caught.value)
    assert torch.equal(model.weight, before)

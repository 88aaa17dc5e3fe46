import zipfile
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

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


def test_a_torchscript_archive_is_refused_with_the_way_to_convert_it(tmp_path: Path) -> None:
    path = tmp_path / "RN50.pt"
    with zipfile.ZipFile(path, "w") as archive:  # the table of contents of one
        for name in ("data.pkl", "constants.pkl", "code/__torch__.py", "version"):
            archive.writestr(f"RN50/{name}", b"")
    with pytest.raises(
        ValueError, match=r"TorchScript archive .*torch\.jit\.load.*RN50_weights\.pt"
    ):
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

"""Fixtures shared by all tests: device, seed, and the optional folder of real samples."""

import os
from pathlib import Path

import pytest
import torch
from hypothesis import settings

settings.register_profile("dclip", deadline=None, derandomize=True, max_examples=30)
settings.load_profile("dclip")

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def device(request: pytest.FixtureRequest) -> torch.device:
    if request.param == "cuda" and not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    return torch.device(request.param)


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Folder of small real samples; set DCLIP_TEST_DATA, or place it at ../shared/data."""
    folder = Path(os.environ.get("DCLIP_TEST_DATA", ROOT.parent / "shared" / "data"))
    if not folder.is_dir():
        pytest.skip(f"no real samples at {folder} (set DCLIP_TEST_DATA)")
    return folder

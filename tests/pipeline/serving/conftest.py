"""A head over the tiny CLIP, trained for a moment, and photographs to ask it of."""

import base64
import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import dclip
from dclip.world.dataset import ShapesListing

LISTING = ShapesListing("train")


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    samples = [LISTING.read(row) for row in range(60)]
    names = [[LISTING.class_names[k] for k in np.flatnonzero(one.labels == 1)] for one in samples]
    folder = tmp_path_factory.mktemp("served")
    model = dclip.fit(
        [one.image for one in samples], names, backbone="tiny", class_names=LISTING.class_names,
        epochs=2, val_fraction=0.3, cache=folder / "cache", device="cpu", progress=False,
    )  # fmt: skip
    return model.save(folder / "model")


@pytest.fixture(scope="session")
def photographs() -> list[bytes]:
    files = []
    for row in range(8):
        file = io.BytesIO()
        ShapesListing("test").read(row).image.resize((90 + row, 70)).save(file, "JPEG", quality=90)
        files.append(file.getvalue())
    return files


def question(*files: bytes, **more: Any) -> dict[str, Any]:
    return {"images": [{"base64": base64.b64encode(one).decode()} for one in files], **more}

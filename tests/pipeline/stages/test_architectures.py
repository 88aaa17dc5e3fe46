"""Architectures of open_clip that are no CLIP of OpenAI's, through every stage, weights random."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dclip.world import shapes
from pipeline.settings.config import Config, config_class
from pipeline.stages import evaluate, extract, predict, segment, train

from ..conftest import WITH_RAY

pytestmark = [*WITH_RAY, pytest.mark.usefixtures("ray_session")]


def few(output: Path, backbone: str, **changes: object) -> Config:
    """Settings of a run of few and small images."""
    values: dict[str, object] = {
        "backbone": backbone, "pretrained": "random", "resolution": 64, "output": output,
        "device": "cpu",
        "extract": {"limit": 8, "shard_size": 8, "workers": 1, "batch_size": 4},
        "train": {"preset": "robust", "epochs": 1, "val_fraction": 0.25},
        "evaluate": {"scenes": 1},
        "segment": {"limit": 2, "workers": 1, "kind": "value", "systems": ["clip", "checkpoints"],
                    "scenes": 1},
    }  # fmt: skip
    return config_class("dclip").model_validate(values | changes)


@pytest.mark.parametrize(
    ("backbone", "dim", "resize"),
    [
        # 384 pixels and 24 x 24 positions of its own, MAP pool, rotary positions
        ("PE-Core-T-16-384", 512, "square, bilinear, antialiased"),
        # MAP pool, a vocabulary and a tokenizer that are not CLIP's
        ("ViT-B-16-SigLIP", 768, "square, bicubic, antialiased"),
    ],
)
def test_an_architecture_goes_through_all_stages(
    backbone: str, dim: int, resize: str, tmp_path: Path
) -> None:
    config = few(tmp_path, backbone)
    extract.run(config)
    (manifest,) = (tmp_path / "features").rglob("*train*/manifest.json")
    features = json.loads(manifest.read_text())
    assert (features["dim"], features["grid"]) == (dim, [4, 4])
    assert features["spec"]["resize"] == resize

    trained = train.run(config)
    scored = evaluate.run(config).to_json()
    maps = segment.run(config).to_json()

    assert scored["systems"].keys() >= {"zero_shot", "dclip"}
    assert all(0 <= system["miou"] <= 1 for system in maps["systems"].values())
    Image.fromarray(shapes.scene("test", 3).image).resize((90, 60)).save(tmp_path / "scene.png")
    asked = {
        "paths": [str(tmp_path / "scene.png")], "classes": ["star", "ring"],
        "checkpoint": trained["checkpoint"],
    }  # fmt: skip
    told = predict.run(Config(output=tmp_path, device="cpu", predict=asked))  # type: ignore[arg-type]
    assert told.error is None
    assert told.backbone == f"{backbone}/random"
    (image,) = told.images
    assert all(0 <= row["probability"] <= 1 for row in image["scores"])
    with Image.open(image["pictures"]["mask"]) as mask:
        assert np.asarray(mask).shape == (60, 90)

"""Features and checkpoints of version 0.1, whose backbones had other fingerprints."""

import json
from pathlib import Path
from typing import Any

import pytest

from dclip.checkpoints.origin import read_about
from dclip.store.shards import MANIFEST, read_manifest
from pipeline.features.backbone import describe_backbone
from pipeline.features.plan import FeaturePlan, plan_features
from pipeline.features.reuse import earlier
from pipeline.records.checkpoints import check_features
from pipeline.records.origin import kind_trained_on
from pipeline.records.trainings import run_name
from pipeline.settings.config import Config
from pipeline.stages import evaluate, extract, train
from pipeline.terminal.errors import StageError

from ..conftest import TOY, WITH_RAY, settings
from ..stages.test_extract import make_here
from ..stages.test_segment import checkpoint

pytestmark = [*WITH_RAY, pytest.mark.usefixtures("_toy_on_path")]

NOW, TWIN, FOREIGN = "toy_former:make", "toy_former:twin", "toy_former:foreign"

LIMIT = {"limit": 24, "shard_size": 8, "workers": 1}


def of(output: Path, backbone: str, **changes: Any) -> Config:
    return settings(
        output, backbone=backbone, extract={**LIMIT, **changes.pop("extract", {})}, **changes
    )


def made(config: Config, split: str = "test") -> FeaturePlan:
    """The plan of features that were just made."""
    plan = plan_features(config, split)
    make_here(plan, config)
    extract.extract(config, [plan])
    return plan


def made_by_0_1(output: Path, split: str = "test") -> FeaturePlan:
    """Features as version 0.1 left them, by the backbone that then had its former fingerprint."""
    plan = made(of(output, TOY), split)
    assert isinstance(plan.folder, Path)
    manifest = plan.folder / MANIFEST
    content = json.loads(manifest.read_text())
    del content["spec"]["formerly"]
    manifest.write_text(json.dumps(content))
    return plan


def test_the_two_versions_call_the_same_backbone_by_other_names(tmp_path: Path) -> None:
    was, now = (describe_backbone(of(tmp_path, name)) for name in (TOY, NOW))
    assert was.fingerprint != now.fingerprint
    assert was.space("value") == now.former_space("value") != now.space("value")


def test_features_of_0_1_are_taken_and_nothing_is_computed_again(tmp_path: Path) -> None:
    was = made_by_0_1(tmp_path)
    config = of(tmp_path, NOW)

    plan = plan_features(config, "test")
    (found,) = extract.extract(config, [plan])

    assert (plan.folder, plan.fingerprint) == (was.folder, was.fingerprint)
    assert not found.is_new
    # so that a training that was done is not done again
    assert run_name(config, plan) == run_name(of(tmp_path, TOY), was)


def test_images_of_0_1_are_taken_over_by_more_of_them(tmp_path: Path) -> None:
    was = made_by_0_1(tmp_path)
    config = of(tmp_path, NOW, extract={"limit": 32, "mode": "extend"})
    plan = plan_features(config, "test")

    assert plan.feature_space != was.feature_space
    assert len(earlier(config, plan)) == 24
    foreign = of(tmp_path, FOREIGN, extract={"limit": 32, "mode": "extend"})
    assert not earlier(foreign, plan_features(foreign, "test"))


def test_a_checkpoint_of_0_1_is_scored_on_features_of_today(tmp_path: Path) -> None:
    config = of(tmp_path, NOW)
    plan, _ = made(config), made(config, "train")
    path = checkpoint(of(tmp_path, TOY), tmp_path / "a.safetensors")  # it knows no other name

    assert plan.feature_space != read_about(path).feature_space
    scored = evaluate.run(of(tmp_path, NOW, evaluate={"checkpoint": [path], "scenes": 1}))

    assert scored.to_json()["systems"].keys() >= {"dclip"}
    assert kind_trained_on(path, read_about(path), describe_backbone(config)) == "value"


def test_a_checkpoint_of_today_fits_features_of_0_1_and_of_today(tmp_path: Path) -> None:
    was, plan = made_by_0_1(tmp_path / "was"), made(of(tmp_path, NOW))
    path = checkpoint(of(tmp_path, NOW), tmp_path / "a.safetensors")
    about = read_about(path).model_copy(update={"formerly": plan.formerly})

    for folder in (was.folder, plan.folder):
        check_features(path, about, read_manifest(folder))


@pytest.mark.parametrize("name", [FOREIGN, TWIN])
def test_features_of_another_backbone_are_refused(tmp_path: Path, name: str) -> None:
    plan = made(of(tmp_path, name))
    path = checkpoint(of(tmp_path, NOW), tmp_path / "a.safetensors")
    now = plan_features(of(tmp_path, NOW), "test")
    about = read_about(path).model_copy(update={"formerly": now.formerly})

    with pytest.raises(StageError, match="was trained on features of toy"):
        check_features(path, about, read_manifest(plan.folder))


@pytest.mark.usefixtures("ray_session")
def test_features_of_0_1_are_trained_on_and_scored(tmp_path: Path) -> None:
    for split in ("train", "test"):
        made_by_0_1(tmp_path, split)
    config = of(tmp_path, NOW)

    trained = train.run(config)
    scored = evaluate.run(config)

    assert Path(trained["checkpoint"]).is_file()
    assert scored.to_json()["systems"].keys() >= {"dclip"}
    folders = list((tmp_path / "features").rglob(MANIFEST))
    assert len(folders) == 2  # those of 0.1, and no others

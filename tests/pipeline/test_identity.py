"""Names of trainings: what shapes the weights counts, and one more setting renames nothing."""

import pickle
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from pydantic import Field, ValidationError

from dclip.methods.registry import find_settings
from dclip.methods.settings import DCLIPSettings, of_preset
from pipeline.records.trainings import run_name
from pipeline.settings.config import Config, config_class
from pipeline.settings.space import checked_space
from pipeline.settings.training import compared, identity_of
from pipeline.terminal.cli import _long_form, main, parse
from pipeline.terminal.errors import UsageError

from .conftest import with_train

PLAN: Any = SimpleNamespace(fingerprint="f" * 64, views=())


def of(**values: Any) -> Config:
    return config_class("dclip").model_validate(values)


def test_the_names_of_what_stands_stay() -> None:
    # recorded when settings at their defaults left the hash; another default renames, and has to
    # be said in the CHANGELOG
    assert run_name(of(train={"preset": "robust"}), PLAN) == "dclip-aa0457e06f4f"
    assert run_name(of(), PLAN) == run_name(of(train={"preset": "anchored"}), PLAN)
    author = of(train={"preset": "author"}, seed=3)
    assert run_name(author, PLAN) == "dclip-0552427a6056"
    (plain, _) = compared(author)
    assert run_name(plain, PLAN) == "asl_only-f65a3813ce24"


def test_a_part_of_the_data_names_another_training() -> None:
    part = of(subset={"label_fraction": 0.5})
    assert run_name(part, PLAN) != run_name(of(), PLAN)
    assert run_name(of(subset={"label_fraction": 1.0}), PLAN) == run_name(of(), PLAN)
    for stage in ("train", "sweep", "evaluate"):
        assert main(stage, ["--subset.classes", "2"]) == 2


@pytest.mark.parametrize(
    "changes",
    [{"lr": 0.5}, {"mfi_weight": 0.2}, {"local_scale": 10.0}, {"val_fraction": 0.3},
     {"data_seed": 7}, {"epochs": 3}],
)  # fmt: skip
def test_what_shapes_the_weights_names_another_training(changes: dict[str, Any]) -> None:
    assert run_name(with_train(of(), **changes), PLAN) != run_name(of(), PLAN)


@pytest.mark.parametrize("changes", [{"workers": 2}, {"cache": "ram"}, {"checkpoint_seconds": 5.0}])
def test_where_and_how_often_does_not(changes: dict[str, Any]) -> None:
    assert run_name(with_train(of(), **changes), PLAN) == run_name(of(), PLAN)


def test_a_preset_is_what_it_says() -> None:
    """The author's settings written out are those of the preset."""
    preset = DCLIPSettings.presets["author"]
    written = of(train={"preset": "robust", **preset.loop}, dclip={**preset.own})
    assert run_name(written, PLAN) == run_name(of(train={"preset": "author"}), PLAN)


@pytest.mark.parametrize("name", ["best", ["robust"], None])
def test_a_preset_that_is_not_there_is_told_with_those_that_are(name: object) -> None:
    with pytest.raises(ValidationError, match="dclip has the presets anchored, robust, author"):
        of(train={"preset": name})
    loop, own = of_preset(DCLIPSettings, "author")
    config = of(train={"preset": "author"})
    assert (config.train.loop, config.own) == (loop, own)


def test_one_more_setting_of_a_method_renames_nothing() -> None:
    class More(DCLIPSettings):
        sharpness: float = Field(1.0, description="new")

    config = of(train={"preset": "robust"}, dclip={"mfi_weight": 0.3})
    grown = config.model_copy(update={"dclip": More(mfi_weight=0.3)})
    assert run_name(grown, PLAN) == run_name(config, PLAN)
    other = config.model_copy(update={"dclip": More(mfi_weight=0.3, sharpness=2.0)})
    assert run_name(other, PLAN) != run_name(config, PLAN)


def test_the_old_names_of_settings_are_told_the_new_ones() -> None:
    with pytest.raises(UsageError, match=r"did you mean .*--dclip\.mfi-weight"):
        parse("run", "", ["--train.mfi-weight", "0.3"])
    config = parse("sweep", "", ["--space", "train.output_dim=4"])[0]
    with pytest.raises(UsageError, match=r"did you mean 'dclip\.output_dim'"):
        checked_space(config)


@pytest.mark.parametrize(
    ("stage", "method", "told"),
    [
        ("sweep", "linear_probe", "fits itself, without the training loop"),
        ("ablate", "tip_adapter", "fits itself, without the training loop"),
        ("train", "zero_shot", "pipeline.evaluate has it beside every checkpoint"),
        ("train", "zero_shot_pooled", "by --evaluate.zero-shot-pooled"),
        ("train", "tagclip", "by --evaluate.tagclip robust"),
    ],
)
def test_a_method_without_the_loop_is_told(
    stage: str, method: str, told: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(stage, ["--method", method, "--output", str(tmp_path)]) == 2
    assert told in capsys.readouterr().err


def test_settings_of_the_loop_do_not_name_what_a_method_fits_by_itself() -> None:
    def named(**train: object) -> str:
        return run_name(config_class("logistic_probe")(train=train), PLAN)

    assert named(epochs=3, lr=0.5) == named()
    assert named(val_fraction=0.2) != named()
    assert named(data_seed=3) != named()


def test_a_method_that_is_not_there_is_told() -> None:
    with pytest.raises(UsageError, match=r"unknown method 'dclop'; did you mean 'dclip'"):
        parse("train", "", ["--method", "dclop"])
    with pytest.raises(UsageError, match="no module 'nowhere' for the method"):
        parse("train", "", ["--method", "nowhere:Method"])
    with pytest.raises(UsageError, match="is no method"):
        parse("train", "", ["--method", "json:JSONDecoder"])


@pytest.mark.usefixtures("_toy_on_path")
def test_all_settings_of_a_method_of_ones_own_count() -> None:
    """Their defaults may be under way."""
    own = find_settings("toy_method:MaskedCosine")()
    assert identity_of("toy_method:MaskedCosine", own) == {"sparsity": 0.01, "scale": 20.0}
    assert identity_of("dclip", DCLIPSettings(clip=0.1)) == {"clip": 0.1}


def test_settings_reach_a_worker_as_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    """Variables of the environment, which it inherits, do not come in again."""
    config = config_class("dclip")(seed=3, train={"lr": 0.5}, dclip={"clip": 0.1})
    monkeypatch.setenv("DCLIP_SEED", "7")
    monkeypatch.setenv("DCLIP_TRAIN__LR", "0.1")
    there = pickle.loads(pickle.dumps(config))
    assert there == config
    assert (there.seed, there.train.lr, there.own.clip) == (3, 0.5, 0.1)
    assert type(there) is type(config)


OWN = ("toy_method:MaskedCosine", "toy_global:GlobalHead")


@pytest.mark.usefixtures("_toy_on_path")
def test_several_methods_of_ones_own_are_named_at_once_and_workers_know_of_them() -> None:
    words = [word for name in OWN for word in ("--method", name)]
    config = parse("evaluate", "", [*words, "--global-head.sizes", "[3,4]"])[0]
    assert (config.method, config.own.sizes) == (OWN[1], [3, 4])
    code = (
        "import pickle, sys\n"
        "config = pickle.loads(sys.stdin.buffer.read())\n"
        "from dclip.methods.registry import is_known\n"
        f"print(config.own.sizes, [is_known(name) for name in {OWN}])\n"
    )
    there = subprocess.run(
        [sys.executable, "-c", code], input=pickle.dumps(config), capture_output=True, check=True
    )
    assert there.stdout.decode().strip() == "[3, 4] [True, True]"
    with pytest.raises(UsageError, match="unknown method 'dclop'"):
        parse("evaluate", "", ["--method", "dclop", *words])
    first = parse("train", "", ["--method", OWN[0], "--masked-cosine.scale", "3"])[0]
    assert first.own.scale == 3  # one after the other in one process


def test_a_key_of_a_method_does_not_take_a_flag_of_all_stages() -> None:
    sections = {"train": ["lr"], "mine": ["seed", "depth"]}
    assert _long_form("--seed=3", sections) == "--seed=3"
    assert _long_form("--depth=3", sections) == "--mine.depth=3"

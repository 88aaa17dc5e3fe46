"""The command line: layers of settings, errors that teach, exit codes, and a quick --help."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from dclip.data.registry import DATASETS
from dclip.paths import RemotePath
from pipeline import cli
from pipeline.config import Config, conf_folder, known_keys
from pipeline.errors import UsageError

STAGES = (
    "extract", "train", "evaluate", "segment", "segments_mlr", "predict", "sweep", "ablate", "run",
)  # fmt: skip


def parse(*words: str, stage: str = "train") -> Config:
    return cli.parse(stage, "", words)[0]


@pytest.mark.parametrize("stage", STAGES)
def test_help_teaches_and_imports_nothing_heavy(stage: str) -> None:
    code = (
        "import sys\n"
        f"sys.argv = ['x', '--help']\n"
        "from pipeline import cli\n"
        "try:\n"
        f"    cli.main({stage!r})\n"
        "except SystemExit as done:\n"
        "    assert done.code == 0\n"
        "heavy = {'torch', 'ray', 'mlflow', 'numpy', 'open_clip', 'pyarrow'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert f"python -m pipeline.{stage}" in done.stdout
    assert "examples:" in done.stdout


def test_later_layers_win(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = tmp_path / "first.yaml", tmp_path / "second.yaml"
    first.write_text("train: {lr: 0.1, epochs: 7, clip: 0.2}\n")
    second.write_text("train: {lr: 0.2, epochs: 8}\n")
    monkeypatch.setenv("DCLIP_TRAIN__EPOCHS", "9")
    monkeypatch.setenv("DCLIP_TRAIN__GAMMA_NEG", "3")
    config = parse("--config", str(first), "--config", str(second), "--train.gamma-neg", "4")
    assert (config.train.clip, config.train.lr) == (0.2, 0.2)
    assert (config.train.epochs, config.train.gamma_neg) == (9, 4)
    assert config.backbone == "tiny"  # conf/shapes.yaml, below all of these


def test_a_preset_fills_what_the_layers_leave_open(tmp_path: Path) -> None:
    file = tmp_path / "a.yaml"
    file.write_text("train: {lr: 0.5}\n")
    train = parse("--config", str(file), "--preset", "author").train
    assert (train.lr, train.optimizer, train.mfi_weight) == (0.5, "sgd", 7e-5)


def test_keys_of_the_stage_need_no_prefix_and_both_dashes_do() -> None:
    assert parse("--batch_size=16", stage="train").train.batch_size == 16
    assert parse("--batch-size", "16", stage="extract").extract.batch_size == 16
    space = parse("--space", "train.lr=0.1,0.2", "--space", "seed=1..3", stage="sweep").sweep.space
    assert space == {"train.lr": ["0.1", "0.2"], "seed": "1..3"}
    assert parse("--no-asha", stage="sweep").sweep.asha is False


def test_words_without_a_flag_are_images_wherever_they_stand() -> None:
    words = ["a.jpg", "--classes", "dog, red horse", "b,c.jpg", "--threshold=0.7", "d e"]
    wanted = parse(*words, stage="predict").predict
    assert wanted.paths == ["a.jpg", "b,c.jpg", "d e"]
    assert wanted.classes == ["dog", "red horse"]
    assert wanted.threshold == 0.7
    assert parse("--area", "0.1", stage="segments_mlr").segments_mlr.area == 0.1
    with pytest.raises(UsageError, match=r"unrecognized arguments: a\.jpg"):
        parse("a.jpg", stage="train")


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (["--train.lrr", "1"], "--train.lr"),
        (["--bogus", "1"], "--bogus"),
        (["--lr", "-1"], "train.lr"),
        (["--lr", "fast"], "train.lr"),
        (["--clip", "1.5"], "train.clip"),
        (["--preset", "best"], "preset"),
        (["--config", "missing.yaml"], "missing.yaml"),
        (["--options", "difficult"], "options"),
        (["--root", "ftp://host/x"], "root: cannot open 'ftp://host/x'"),
        (["--root", "simplecache::s3://b"], "root: cannot open"),
    ],
)
def test_wrong_usage_is_one_line_that_names_it(
    words: list[str], named: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main("train", words) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.count("\n") == 1
    assert named in captured.err
    assert captured.err.startswith("train: error: ")


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("train: {lrr: 1}", "did you mean 'lr'"),
        ("trian: {lr: 1}", "did you mean 'train'"),
        ("train: {deep: {er: 1}}", "unknown key 'train.deep'"),
        ("- a list", "must hold"),
        ("a: [", "cannot read"),
        ("!!python/object/apply:os.system ['false']", "cannot read"),
    ],
)
def test_a_wrong_config_file_is_named_with_its_key(tmp_path: Path, text: str, named: str) -> None:
    file = tmp_path / "wrong.yaml"
    file.write_text(text)
    with pytest.raises(UsageError, match=named) as caught:
        parse("--config", str(file))
    assert str(file) in str(caught.value)


def test_an_unknown_environment_key_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DCLIP_TRAIN__LRR", "1")
    with pytest.raises(UsageError, match="did you mean 'lr'"):
        parse()


@pytest.mark.parametrize("path", sorted(conf_folder().glob("*.yaml")), ids=lambda path: path.stem)
def test_every_shipped_config_loads_and_opens_with_its_command(path: Path) -> None:
    config = parse("--config", str(path))
    head = path.read_text().split("dataset:")[0]
    assert "#     python -m pipeline." in head
    assert config.dataset in DATASETS


def test_print_config_prints_settings_that_load_again(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main("train", ["--preset", "author", "--print-config"]) == 0
    file = tmp_path / "printed.yaml"
    file.write_text(capsys.readouterr().out)
    assert parse("--config", str(file)) == parse("--preset", "author")


@pytest.mark.parametrize("words", [["--dataset", "cocoo"], ["--backbone", "RN51"]])
def test_unknown_names_are_usage_errors(
    words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main("extract", [*words, "--dry-run"]) == 2
    assert words[1] in capsys.readouterr().err


def test_a_root_may_be_a_url(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert parse("--root", "https://host/x").root == RemotePath("https://host/x")
    assert cli.main("train", ["--root", "https://host/x", "--print-config"]) == 0
    file = tmp_path / "printed.yaml"
    file.write_text(capsys.readouterr().out)
    assert parse("--config", str(file)).root == RemotePath("https://host/x")
    monkeypatch.setenv("DCLIP_ROOT", "data/x")
    assert parse("--config", str(file)).root == Path("data/x")
    file.write_text("root: 5\n")
    monkeypatch.delenv("DCLIP_ROOT")
    with pytest.raises(UsageError, match="root: a path or URL must be text, got 5"):
        parse("--config", str(file))


def test_every_key_has_a_description() -> None:
    schema = json.dumps(Config.model_json_schema())
    assert schema.count('"description"') > 60
    for section in ("extract", "train", "evaluate", "segment", "segments_mlr", "predict", "sweep"):
        model = Config.model_fields[section].annotation
        assert model is not None
        assert all(model.model_fields[key].description for key in known_keys(section))  # type: ignore[attr-defined]

"""The command line: layers of settings, errors that teach, exit codes, and a quick --help."""

import json
import re
from pathlib import Path

import pytest

from dclip.data.registry import DATASETS
from dclip.methods.settings import DCLIPSettings
from dclip.store.paths import RemotePath
from pipeline.settings.config import (
    Config,
    as_flags,
    conf_folder,
    config_class,
    known_keys,
)
from pipeline.terminal import cli
from pipeline.terminal.errors import UsageError

from ...processes import in_a_new_process

STAGES = (
    "extract", "train", "evaluate", "segment", "segments_mlr", "predict", "sweep", "ablate",
    "compare", "retrieve", "search", "audit", "calibrate", "export", "run",
)  # fmt: skip


def parse(*words: str, stage: str = "train") -> Config:
    return cli.parse(stage, "", words)[0]


@pytest.mark.parametrize("stage", STAGES)
def test_help_teaches_and_imports_nothing_heavy(stage: str) -> None:
    code = (
        "import sys\n"
        f"sys.argv = ['x', '--help']\n"
        "from pipeline.terminal import cli\n"
        "try:\n"
        f"    cli.main({stage!r})\n"
        "except SystemExit as done:\n"
        "    assert done.code == 0\n"
        "heavy = {'torch', 'ray', 'mlflow', 'numpy', 'open_clip', 'pyarrow'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    done = in_a_new_process(code)
    assert f"python -m pipeline.{stage}" in done.stdout
    assert "examples:" in done.stdout


def test_later_layers_win(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = tmp_path / "first.yaml", tmp_path / "second.yaml"
    first.write_text("train: {lr: 0.1, epochs: 7}\ndclip: {clip: 0.2}\n")
    second.write_text("train: {lr: 0.2, epochs: 8}\n")
    monkeypatch.setenv("DCLIP_TRAIN__EPOCHS", "9")
    monkeypatch.setenv("DCLIP_DCLIP__GAMMA_NEG", "3")
    config = parse("--config", str(first), "--config", str(second), "--dclip.gamma-neg", "4")
    assert (config.own.clip, config.train.lr) == (0.2, 0.2)
    assert (config.train.epochs, config.own.gamma_neg) == (9, 4)
    assert config.backbone == "tiny"  # conf/shapes.yaml, below all of these


def test_a_preset_fills_what_the_layers_leave_open(tmp_path: Path) -> None:
    file = tmp_path / "a.yaml"
    file.write_text("train: {lr: 0.5}\n")
    config = parse("--config", str(file), "--preset", "author")
    assert (config.train.lr, config.train.optimizer) == (0.5, "sgd")
    assert config.own == DCLIPSettings(**DCLIPSettings.presets["author"].own)


def test_keys_of_the_stage_need_no_prefix_and_both_dashes_do() -> None:
    assert parse("--batch_size=16", stage="train").train.batch_size == 16
    assert parse("--batch-size", "16", stage="extract").extract.batch_size == 16
    space = parse("--space", "train.lr=0.1,0.2", "--space", "seed=1..3", stage="sweep").sweep.space
    assert space == {"train.lr": ["0.1", "0.2"], "seed": "1..3"}
    assert parse("--no-asha", stage="sweep").sweep.asha is False


def test_no_flag_means_two_things() -> None:
    """A key of a section needs no prefix in its stage, so none may be one of the top level."""
    model = config_class("dclip")
    sections = [name for name in model.model_fields if known_keys(model, name)]
    own = set(Config.model_fields) - set(sections)
    top = {*own, "config", "dry_run", "print_config", "json", "version", "help"}
    assert {"extract", "train", "segment", "segments_mlr"} <= set(sections)
    assert {
        name: shared for name in sections if (shared := top & set(known_keys(model, name)))
    } == {}
    for section in sections:
        for key in known_keys(model, section):
            flag = f"--{key.replace('_', '-')}"
            assert cli._long_form(flag, {section: known_keys(model, section)}) == (
                f"--{section.replace('_', '-')}.{key.replace('_', '-')}"
            )


def test_resolution_is_the_backbones_in_every_stage() -> None:
    config = parse("--resolution", "64", "--image-resolution", "96", stage="segment")
    assert (config.resolution, config.segment.image_resolution) == (64, 96)
    with pytest.raises(UsageError, match=r"did you mean --segment\.image-resolution"):
        parse("--segment.resolution", "64", stage="segment")


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
        (["--clip", "1.5"], "dclip.clip"),
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


@pytest.mark.parametrize(
    ("content", "key"),
    [
        ("train: {lr: }", "train.lr"),
        ("train.lr: null", "train.lr"),
        ("train: ", "train"),
        ("seed: ~", "seed"),
        ("evaluate: {checkpoint: [null]}", "evaluate.checkpoint.0"),
        ("segment: {systems: [clip, null]}", "segment.systems.1"),
    ],
)
def test_a_null_is_told_with_the_file_that_has_it(tmp_path: Path, content: str, key: str) -> None:
    file = tmp_path / "nothing.yaml"
    file.write_text(content)
    with pytest.raises(UsageError, match=f"^{re.escape(f'{file}: {key}: ')}.*, got None"):
        parse("--config", str(file))


@pytest.mark.parametrize(
    "key", ["train.lr", "dclip.mfi_weight", "train.checkpoint_seconds", "segment.logit_scale"]
)
def test_a_number_without_end_is_no_setting(key: str) -> None:
    with pytest.raises(UsageError, match=f"^{re.escape(key)}: .*finite"):
        parse(f"--{key}=inf")


@pytest.mark.parametrize(
    ("variable", "meant"),
    [
        ("DCLIP_TRAIN_LR", "DCLIP_TRAIN__LR"),
        ("DCLIP_DATSET", "DCLIP_DATASET"),
        ("DCLIP_COMIT", "DCLIP_COMMIT"),
        ("DCLIP_XYZZYXYZZY", "DCLIP_<SECTION>__<KEY>"),
    ],
)
def test_a_misspelt_variable_is_named(
    variable: str, meant: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DCLIP_COMMIT", "abc")  # read elsewhere
    parse()
    monkeypatch.setenv(variable, "1")
    with pytest.raises(UsageError, match=f"variable {variable}; .*{meant}"):
        parse()


def test_a_file_and_a_choice_of_two_data_sets_are_not_mixed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text("dataset: shapes\ntrain: {lr: 0.5}\n")
    assert parse("--config", str(file), "--dataset", "coco14").train_split == "train2014"
    monkeypatch.setenv("DCLIP_DATASET", "coco14")
    config = parse("--config", str(file))
    assert (config.dataset, config.train_split, config.backbone) == ("coco14", "train2014", "RN101")
    assert config.train.lr == 0.5
    file.write_text("dataset: shapes\ntrain_split: train\n")
    with pytest.raises(UsageError, match=r"mine.yaml is for dataset 'shapes'.*train_split"):
        parse("--config", str(file))
    monkeypatch.delenv("DCLIP_DATASET")
    assert parse("--config", str(file)).dataset == "shapes"


def test_a_wrong_value_names_where_it_stands(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "wrong.yaml"
    file.write_text("train: {lr: fast}\n")
    with pytest.raises(UsageError, match=r"^\S*wrong\.yaml: train\.lr: .* got 'fast'"):
        parse("--config", str(file))
    with pytest.raises(UsageError, match=r"^train\.lr: .* got 'slow'"):
        parse("--config", str(file), "--lr", "slow")
    monkeypatch.setenv("dclip_train__lr", "brisk")
    with pytest.raises(UsageError, match=r"^dclip_train__lr: train\.lr: .* got 'brisk'"):
        parse()
    monkeypatch.delenv("dclip_train__lr")
    monkeypatch.setenv("DCLIP_TRAIN__LR", "brisk")
    with pytest.raises(UsageError, match=r"^DCLIP_TRAIN__LR: train\.lr: .* got 'brisk'"):
        parse("--config", str(file))


def test_a_key_with_dots_is_a_key_of_a_section(tmp_path: Path) -> None:
    file = tmp_path / "flat.yaml"
    file.write_text("train.lr: 0.5\ntrain.epochs: 3\nsweep: {space: {train.lr: [1, 2]}}\n")
    config = parse("--config", str(file))
    assert (config.train.lr, config.train.epochs) == (0.5, 3)
    assert config.sweep.space == {"train.lr": [1, 2]}
    for twice in ("train.lr: 0.5\ntrain: {lr: 1}\n", "train: {lr: 1}\ntrain.lr: 0.5\n"):
        file.write_text(twice)
        with pytest.raises(UsageError, match=r"flat\.yaml: .*twice"):
            parse("--config", str(file))
    for odd in ("5: 6\n", "train: {5: 6}\n", "train.lrr: 1\n"):
        file.write_text(odd)
        with pytest.raises(UsageError, match=r"flat\.yaml: "):
            parse("--config", str(file))


def test_a_shipped_file_is_found_by_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert parse("--config", "smoke.yaml").extract.limit == 128
    assert parse("--config", "conf/smoke.yaml").extract.limit == 128
    (tmp_path / "smoke.yaml").write_text("extract: {limit: 5}\n")
    assert parse("--config", "smoke.yaml").extract.limit == 5
    with pytest.raises(UsageError, match=r"no config file other/smoke\.yaml"):
        parse("--config", "other/smoke.yaml")


def test_a_tilde_is_the_home_folder_wherever_a_path_is_set(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    file = tmp_path / "home.yaml"
    file.write_text("root: ~/r\nfeatures: ~/f\nsegment: {checkpoint: [~/c]}\n")
    words = ["--config=~/home.yaml", "--output=~/o", "--pretrained=~/w.pt"]
    config = parse(*words, "--evaluate.checkpoint=~/e")
    home = tmp_path
    assert (config.root, config.features, config.output) == (home / "r", home / "f", home / "o")
    assert config.segment.checkpoint == [home / "c"]
    assert config.evaluate.checkpoint == [home / "e"]
    assert config.pretrained == str(home / "w.pt")
    assert parse("--output", "./~").output == Path("~")
    with pytest.raises(UsageError, match="no home folder ~nobody-here"):
        parse("--root", "~nobody-here/x")
    with pytest.raises(UsageError, match=r"output: .* not a URL"):
        parse("--output", "s3://bucket/x")


@pytest.mark.parametrize(
    "name", ["it's", 'a"b', "../x", "a/b", "", " a", "a.", "zero_shot", "clip", "x" * 65]
)
def test_a_name_that_breaks_files_filters_or_tables_is_refused(name: str) -> None:
    with pytest.raises(UsageError, match="name: "):
        parse(f"--name={name}")


@pytest.mark.parametrize("name", ["a", "RN101 v2", "étude-1.5_x"])
def test_other_names_are_taken(name: str) -> None:
    assert parse(f"--name={name}").name == name


def test_asl_only_is_the_name_of_trainings_without_mfi_alone() -> None:
    assert parse("--name", "asl_only", "--mfi-weight", "0").name == "asl_only"
    with pytest.raises(UsageError, match="asl_only"):
        parse("--name", "asl_only")


def test_the_version_names_what_results_depend_on(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as done:
        cli.main("train", ["--version"])
    assert done.value.code == 0
    assert capsys.readouterr().out.startswith("dclip 0.")


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
    schema = json.dumps(config_class("dclip").model_json_schema())
    assert schema.count('"description"') > 60
    for section in ("extract", "train", "evaluate", "segment", "segments_mlr", "predict", "sweep",
                    "search", "audit", "calibrate", "export", "dclip"):  # fmt: skip
        model = config_class("dclip").model_fields[section].annotation
        assert model is not None
        assert all(field.description for field in model.model_fields.values())  # type: ignore[attr-defined]


@pytest.mark.parametrize("text", ["0.5,0.4,0.3", "[0.5,0.4,0.3]", "(0.5, 0.4, 0.3)"])
def test_channels_are_three_numbers_however_they_are_written(
    text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted = (0.5, 0.4, 0.3)
    assert parse("--mean", text).mean == wanted
    (tmp_path / "a.yaml").write_text(f"std: '{text}'\nmean: [0.5, 0.4, 0.3]")
    read = parse("--config", str(tmp_path / "a.yaml"))
    assert (read.mean, read.std) == (wanted, wanted)
    monkeypatch.setenv("DCLIP_STD", text)
    assert parse().std == wanted
    assert parse(*as_flags(read, "train")).std == wanted


@pytest.mark.parametrize(
    ("flag", "text"),
    [
        ("--std", "0,0.5,0.5"),
        ("--std", "58,57,57"),
        ("--std", "nan,1,1"),
        ("--mean", "0.5,1.5,0.5"),
        ("--mean=-0.1,0,0", None),
        ("--mean", "0.5,0.5"),
        ("--mean", "a,b,c"),
        ("--mean", "null"),
        ("--resize", "stretch"),
        ("--interpolation", "nearest"),
    ],
)
def test_channels_and_resizes_that_cannot_be_are_refused_in_a_line(
    flag: str, text: str | None
) -> None:
    with pytest.raises(UsageError, match=flag[2:5]) as caught:
        parse(flag, *([] if text is None else [text]))
    assert "\n" not in str(caught.value)

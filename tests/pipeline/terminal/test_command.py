"""The command ``dclip``: its list of stages, a page of help each, and how it is called."""

import importlib
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

import pipeline
from pipeline import __main__ as command
from pipeline.settings.config import as_flags, config_class
from pipeline.terminal import cli
from pipeline.terminal.called import as_called
from pipeline.terminal.following import following
from pipeline.terminal.short_help import MOST_LINES, flags_of

from ...processes import in_a_new_process

NAMES = sorted(path.stem for path in Path(pipeline.__file__).parent.glob("[a-z]*.py"))
STAGES = [
    name for name in NAMES if not hasattr(importlib.import_module(f"pipeline.{name}"), "parser")
]


@pytest.fixture
def _as_dclip(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["/usr/bin/dclip"])


def page_of(stage: str, capsys: pytest.CaptureFixture[str], *words: str) -> str:
    with pytest.raises(SystemExit) as done:
        cli.main(stage, [*words, "--help"])
    assert done.value.code == 0
    return capsys.readouterr().out


# ---------------------------------------------------------------------------------------------
# The list of stages
# ---------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("_as_dclip")
@pytest.mark.parametrize("words", [[], ["--help"]])
def test_all_stages_have_a_line_with_examples_before_them(
    words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert command.main(words) == 0
    page = capsys.readouterr().out
    assert {name for name in NAMES if re.search(rf"^  {name} +\w", page, re.M)} == set(NAMES)
    assert page.index("dclip run --dataset folder:photos") < page.index("start here:")
    assert page.index("  predict ") < page.index("  extract ") < page.index("  ablate ")
    assert page.count("\n") < 50


def test_a_stage_that_no_group_names_is_listed_by_what_its_module_says(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    known = {title: dict(group) for title, group in command.GROUPS.items()}
    del known["step by step:"]["train"]
    monkeypatch.setattr(command, "GROUPS", known)
    assert command.stages()["more:"]["train"] == "Feature shards to a checkpoint"


def test_the_list_and_the_version_load_nothing() -> None:
    done = in_a_new_process(
        "import sys\n"
        "from pipeline.__main__ import main\n"
        "assert main(['--help']) == 0 and main(['--version']) == 0\n"
        "heavy = {'torch', 'pydantic', 'numpy', 'yaml', 'argparse'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    assert re.search(r"^dclip 0\.\d+\.\d+, torch ", done.stdout, re.M)


@pytest.mark.usefixtures("_as_dclip")
@pytest.mark.parametrize(
    ("word", "meant"),
    [("predcit", "dclip predict"), ("Train", "dclip train"), ("eval", "dclip evaluate"),
     ("segment_mlr", "dclip segments_mlr"), ("xyzzy", ""), ("--lr", "")],
)  # fmt: skip
def test_a_mistyped_stage_gets_the_nearest_one(
    word: str, meant: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command.main([word, "--lr", "1"]) == 2
    told = capsys.readouterr()
    assert told.out == ""
    assert told.err.count("\n") == 1
    assert repr(word) in told.err
    assert (f"did you mean {meant}?" in told.err) if meant else "did you mean" not in told.err


def test_a_stage_is_the_module_of_its_name() -> None:
    def said(*words: str) -> subprocess.CompletedProcess[str]:
        whole = [sys.executable, "-m", *words]
        return subprocess.run(whole, capture_output=True, text=True, check=False)

    by_name = said("pipeline", "train", "--lr", "0.5", "--print-config")
    by_module = said("pipeline.train", "--lr", "0.5", "--print-config")
    assert (by_name.returncode, by_name.stdout) == (0, by_module.stdout)
    assert "lr: 0.5" in by_name.stdout
    wrong = said("pipeline", "train", "--lrr", "0.5")
    assert wrong.returncode == 2
    assert wrong.stderr == (
        "train: error: unrecognized arguments: --lrr 0.5. did you mean --lr? "
        "(see python -m pipeline train --help)\n"
    )


# ---------------------------------------------------------------------------------------------
# The page of a stage
# ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("columns", ["80", "100", "200"])
@pytest.mark.parametrize("stage", STAGES)
def test_a_page_has_examples_first_and_sixty_lines(
    stage: str, columns: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", columns)
    page = page_of(stage, capsys)
    lines = page.splitlines()
    assert len(lines) <= MOST_LINES == 60
    examples = [line for line in lines if line.startswith(f"  python -m pipeline.{stage}")]
    assert examples
    assert page.index(examples[-1]) < page.index("\ncontrol:")
    assert page.index(examples[-1]) < page.index("  --output PATH")
    assert lines[-1].startswith("--help-all shows the rest: ")
    assert max(map(len, lines)) <= 100


@pytest.mark.parametrize("stage", STAGES)
def test_what_a_page_leaves_out_is_marked_beside_its_declaration(
    stage: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A new setting that has no room has to be marked as rare, or another."""
    monkeypatch.setenv("COLUMNS", "100")
    page = page_of(stage, capsys)
    key, _, _ = cli.POSITIONAL.get(stage, ("", "", ""))
    model = config_class("dclip")
    flags = flags_of(model, cli.sections_of(stage, model), cli.shared_of(stage), without=[key])
    every = [flag for own in flags.values() for flag in own]
    shown = [flag for flag in every if f"\n  {flag.shown}" in page]
    assert [flag.name for flag in every if not flag.is_rare] == [flag.name for flag in shown]
    rare = len(every) - len(shown)
    assert f"rest: {rare} more setting" in page or not rare


@pytest.mark.parametrize("stage", STAGES)
def test_help_all_has_every_flag_and_those_of_the_page_work(
    stage: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        cli.main(stage, ["--help-all"])
    whole = capsys.readouterr().out
    assert all(f"--{key}" in whole for key in ("train.lr", "segment.window", "dclip.mfi-weight"))
    model = config_class("dclip")
    sections = {name: cli.known_keys(model, name) for name in cli.sections_of(stage, model)}
    flags = flags_of(model, [*sections], cli.shared_of(stage))
    for flag in (flag for own in flags.values() for flag in own):
        assert f" {cli._long_form(f'--{flag.name}', sections)}" in whole


def test_the_page_of_a_method_of_ones_own_choice_fits_too(
    capsys: pytest.CaptureFixture[str],
) -> None:
    page = page_of("train", capsys, "--method", "smartclip")
    assert "settings of smartclip:" in page
    assert page.count("\n") <= MOST_LINES


def test_help_loads_no_torch() -> None:
    in_a_new_process(
        "import sys\n"
        "from pipeline.terminal.cli import main\n"
        f"for stage in {STAGES!r}:\n"
        "    try: main(stage, ['--help'])\n"
        "    except SystemExit as done: assert not done.code\n"
        "heavy = {'torch', 'ray', 'mlflow', 'matplotlib', 'open_clip'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )


@pytest.mark.usefixtures("_as_dclip")
def test_help_and_errors_name_the_command_as_it_was_called(
    capsys: pytest.CaptureFixture[str],
) -> None:
    page = page_of("predict", capsys)
    assert page.startswith("usage: dclip predict [IMAGE ...] [flags]\n")
    assert "\n  dclip predict photo.jpg" in page
    assert "python -m" not in page
    assert cli.main("predict", []) == 2
    assert "dclip predict photo.jpg" in capsys.readouterr().err
    assert as_called("x; python -m pipeline.run first") == "x; dclip run first"


# ---------------------------------------------------------------------------------------------
# What follows, and completion
# ---------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("_as_dclip")
def test_what_follows_can_be_typed_and_means_the_same_settings() -> None:
    given = [
        "--dataset", "folder:my photos", "--test-fraction", "0.2", "--backbone", "RN50",
        "--extract.kind", "vv", "--extract.workers", "3", "--preset", "author", "--lr", "0.3",
        "--mfi-weight", "0.5",
    ]  # fmt: skip
    config, _ = cli.parse("train", "", given)
    told = following("extract", config, {})
    assert told.startswith("dclip train --dataset 'folder:my photos' ")
    assert "--train.preset author" in told
    assert "workers" not in told
    assert "optimizer" not in told  # the preset's
    again, _ = cli.parse("train", "", as_flags(config, "extract", "train", "dclip"))
    assert again == config
    assert following("train", config, {}).startswith("dclip evaluate --dataset")
    assert following("run", config, {}) == "dclip predict photo.jpg"
    toy, _ = cli.parse("run", "", ["--output", "elsewhere"])
    assert following("run", toy, {}) == "dclip segment --output elsewhere"
    assert following("extract", cli.parse("run", "", [])[0], {}) == "dclip train"


@pytest.mark.parametrize("stage", STAGES)
def test_every_stage_has_something_after_it(stage: str) -> None:
    told = following(
        stage, cli.parse(stage, "", [])[0], {"evaluate": "python -m pipeline.evaluate"}
    )
    (after,) = re.findall(r"^python -m pipeline\.(\w+)", told)
    assert after in STAGES


def test_the_line_leaves_the_json_the_last_of_stdout(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = importlib.import_module("pipeline.stages.train")
    monkeypatch.setattr(module, "run", lambda _: {"checkpoint": "x"})
    assert cli.main("train", ["--json", "--output", str(tmp_path)]) == 0
    told = capsys.readouterr()
    assert json.loads(told.out) == {"checkpoint": "x"}
    assert told.err == f"next: python -m pipeline.evaluate --output {tmp_path}\n"
    monkeypatch.setattr(module, "run", lambda _: {"error": "half of it"})
    assert cli.main("train", ["--output", str(tmp_path)]) == 1
    assert "next:" not in capsys.readouterr().err


def test_a_shell_completes_stages_flags_and_choices(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert command.main(["--completion", "bash"]) == 0
    script = tmp_path / "dclip.bash"
    script.write_text(capsys.readouterr().out)

    def completed(*words: str) -> set[str]:
        typed = " ".join(f"'{word}'" for word in words)
        code = (
            f"source {script}; COMP_WORDS=({typed}); COMP_CWORD={len(words) - 1}; "
            f"_shtab_dclip dclip '{words[-1]}' '{words[-2]}'; echo \"${{COMPREPLY[@]}}\""
        )
        done = subprocess.run(["bash", "-c", code], capture_output=True, text=True, check=True)
        return set(done.stdout.split())

    assert completed("dclip", "seg") == {"segment", "segments_mlr"}
    assert {"--zero-shot", "--no-zero-shot"} <= completed("dclip", "predict", "--")
    assert completed("dclip", "train", "--optimizer", "") == {"sgd", "adamw"}
    assert command.main(["--completion", "csh++"]) == 2
    assert "csh++" in capsys.readouterr().err

"""The documents: every command they show is one the tools accept, and the example code runs."""

import re
import shlex
from pathlib import Path

import pytest

from pipeline import cli, datasets
from pipeline.config import conf_folder

ROOT = Path(__file__).resolve().parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
COMMAND = re.compile(r"python -m pipeline\.(\w+)([^\n`|#]*)")


def commands() -> list[tuple[str, str]]:
    found = []
    for path in [*PAGES, *sorted(conf_folder().glob("*.yaml")), *sorted(ROOT.glob("docker/*"))]:
        for stage, words in COMMAND.findall(path.read_text(encoding="utf-8")):
            found.append((stage, words.split(" && ")[0].strip().rstrip(";).:,")))
    return sorted(set(found))


@pytest.mark.parametrize(("stage", "words"), commands())
def test_every_command_shown_is_accepted(
    stage: str, words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)
    known = [word for word in shlex.split(words) if word not in ("--help", "--dry-run")]
    assert (
        datasets.parser().parse_args(known) if stage == "datasets" else cli.parse(stage, "", known)
    )


def test_the_readme_has_two_set_up_commands() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert re.findall(r"^pip install.*$", text, re.M) == [
        "pip install -e . && python -m pipeline.run",
        "pip install -e '.[dev]' && pytest",
    ]


def test_the_readme_example_runs(capsys: pytest.CaptureFixture[str]) -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    (code,) = re.findall(r"```python\n(.*?)```", text, re.S)
    exec(compile(code, "README.md", "exec"), {})
    assert capsys.readouterr().out.startswith("tensor([[")


def test_links_between_documents_lead_somewhere() -> None:
    for page in PAGES:
        for target in re.findall(r"\]\((?!http)([^)#]+)\)", page.read_text(encoding="utf-8")):
            assert (page.parent / target).exists(), f"{page.name} -> {target}"

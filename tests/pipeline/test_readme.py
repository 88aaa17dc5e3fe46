"""The README's pipeline, typed in order in an empty folder, on few images."""

import csv
import re
import shlex
from importlib import import_module
from pathlib import Path

import pytest

from dclip.world.dataset import ShapesListing
from pipeline import datasets
from pipeline.terminal import cli

from .conftest import WITH_RAY

pytestmark = WITH_RAY

README = Path(__file__).resolve().parents[2] / "README.md"
SMALL = {
    "DCLIP_BACKBONE": "tiny",  # photographs would be encoded by a CLIP that has to be downloaded
    "DCLIP_DEVICE": "cpu",
    "DCLIP_EXTRACT__LIMIT": "48",
    "DCLIP_TRAIN__EPOCHS": "2",
    "DCLIP_TRAIN__BATCH_SIZE": "16",
    "DCLIP_EVALUATE__PROBE_EPOCHS": "1",
    "DCLIP_EVALUATE__SCENES": "1",
    "DCLIP_SEGMENT__SCENES": "1",
    "DCLIP_SWEEP__EPOCHS": "1",
}


def story() -> list[list[str]]:
    text = README.read_text(encoding="utf-8").partition("## The pipeline")[2]
    blocks = re.findall(r"```sh\n(.*?)```", text.partition("\n## ")[0], re.S)
    lines = [line.partition("  #")[0] for block in blocks for line in block.splitlines()]
    commands = [shlex.split(line.replace("--limit 200", "--limit 8")) for line in lines]
    return [words[1:] for words in commands if words[0] == "dclip" and "DIR" not in words]


def photographs(folder: Path) -> None:
    listing = ShapesListing("train")
    folder.mkdir()
    with (folder / "labels.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["file", "labels"])
        for row in range(40):
            image, labels = listing.read(row)
            name = f"{row:04d}.jpg"
            image.save(folder / name)
            names = [n for n, there in zip(listing.class_names, labels, strict=True) if there]
            writer.writerow([name, ";".join(names)])


@pytest.mark.usefixtures("ray_session")
def test_the_story_of_the_readme_works_in_order(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, value in SMALL.items():
        monkeypatch.setenv(name, value)
    monkeypatch.chdir(tmp_path)
    photographs(tmp_path / "photos")
    told = ""
    ShapesListing("test").read(0).image.save(tmp_path / "new.jpg")
    commands = [words for words in story() if words[0] not in ("ablate", "compare")]  # have tests
    assert len(commands) >= 9
    for words in commands:
        stage = words[0]
        import_module(f"pipeline.{stage}")
        run = (
            datasets.main
            if stage == "datasets"
            else lambda words, stage=stage: cli.main(stage, words)
        )
        code = run(words[1:])
        captured = capsys.readouterr()
        assert code == 0, f"{' '.join(words)}\n{captured.err}"
        told += captured.out
    assert "linear probe" in told
    assert "held out" in told or "test fraction" in told
    assert {path.name for path in tmp_path.iterdir()} == {"photos", "outputs", "new.jpg"}

"""The documents: every command they show is one the tools accept, and the example code runs."""

import copy
import re
import shlex
import subprocess
import sys
import warnings
import zipfile
from pathlib import Path
from typing import Any

import open_clip
import pytest
import torch
from PIL import Image

import dclip
from dclip.architectures import facts
from dclip.backbones import ImageFeatures, load_backbone
from dclip.data import registry
from dclip.methods.settings import DCLIPSettings
from dclip.prediction import predict_image
from dclip.world.dataset import ShapesListing
from pipeline import backbones, datasets
from pipeline.__main__ import stages
from pipeline.features.splits import open_dataset
from pipeline.inspection.backbones import markdown, replace_section
from pipeline.settings.config import conf_folder
from pipeline.stages.backbones import every
from pipeline.terminal import cli
from pipeline.terminal.pages import page

ROOT = Path(__file__).resolve().parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
STAGES = "|".join(name for group in stages().values() for name in group)
COMMAND = re.compile(rf"(?:python -m pipeline\.|(?<![\w/.'-])dclip )({STAGES})\b([^\n`|#]*)")


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
    programs = {"datasets": datasets.parser, "backbones": backbones.parser}
    assert programs[stage]().parse_args(known) if stage in programs else cli.parse(stage, "", known)


def test_the_readme_has_two_set_up_commands() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert re.findall(r"^pip install.*$", text, re.M) == [
        "pip install -e . && dclip run",
        "pip install -e '.[dev]' && pytest",
    ]


def test_the_examples_of_the_readme_and_of_the_library_page_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """In order, in a folder with photographs, their labels and an output folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    listing, lines = ShapesListing("train"), ["file,labels"]
    (tmp_path / "photos").mkdir()
    for row in range(60):
        image, labels = listing.read(row)
        image.save(tmp_path / "photos" / f"{row}.jpg")
        names = [n for n, there in zip(listing.class_names, labels, strict=True) if there]
        lines.append(f"{row}.jpg,{';'.join(names)}")
    (tmp_path / "photos" / "labels.csv").write_text("\n".join(lines))
    for name in ("a.jpg", "b.jpg", "new.jpg", "photo.jpg"):
        listing.read(70).image.save(tmp_path / name)
    fitted = dclip.fit(
        "photos", "labels.csv", backbone="tiny", device="cpu", epochs=2, val_fraction=0.3,
        progress=False,
    )  # fmt: skip
    fitted.save("outputs")
    library = (ROOT / "docs" / "library.md").read_text(encoding="utf-8")
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    blocks = [re.findall(r"```python\n(.*?)```", text, re.S) for text in (readme, library)]
    assert [len(each) for each in blocks] == [2, 3]
    names: dict[str, object] = {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # few images, and a name that was not trained
        for code in (*blocks[0], *blocks[1]):
            exec(code.replace('"RN101"', '"tiny", epochs=1, device="cpu"'), names)
    said = capsys.readouterr().out
    assert "tensor([[" in said
    assert "'sailing boat': 'cosine'" in said
    assert (tmp_path / "a-said.png").stat().st_size > 10_000
    assert (tmp_path / "my-model" / "README.md").is_file()


def test_the_export_of_the_documents_runs(capsys: pytest.CaptureFixture[str]) -> None:
    text = (ROOT / "docs" / "exports.md").read_text(encoding="utf-8")
    (code,) = re.findall(r"```python\n(.*?)```", text, re.S)
    exec(compile(code, "exports.md", "exec"), {})
    inputs, _, difference = capsys.readouterr().out.rpartition(" ")
    assert inputs == "{'local': ['batch', 37, 128]}"
    assert float(difference) < 1e-4


def test_the_backbone_of_the_documents_can_be_added(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    text = (ROOT / "docs" / "backbones.md").read_text(encoding="utf-8")
    module, method, folder_of_tips = re.findall(r"```python\n(.*?)```", text, re.S)
    names: dict[str, object] = {}
    exec(folder_of_tips, names)
    assert callable(names["mine"])
    (tmp_path / "my_clip.py").write_text(module)
    monkeypatch.syspath_prepend(tmp_path)
    backbone = load_backbone("my_clip:build")
    images = torch.randn(4, 3, backbone.resolution, backbone.resolution)
    features = backbone.encode_images(images)
    classes = backbone.encode_texts(["a dog", "a cat"])
    seen = predict_image(
        ImageFeatures(features.embedding[:1], features.local[:1]),
        backbone.grid(96, 96),
        (96, 96),
        has_global_token=backbone.include_global_token,
        texts=classes,
        pairs=torch.cat([classes, classes]),
    )
    assert seen.zero_shot.sum() == pytest.approx(1)
    assert backbone.fingerprint() == load_backbone("my_clip:build").fingerprint()
    shallow = copy.deepcopy(open_clip.get_model_config("ViT-B-32"))
    for tower in ("vision_cfg", "text_cfg"):
        shallow[tower]["layers"] = 2  # of twelve: to draw their weights takes most of the time
    monkeypatch.setitem(open_clip.factory._MODEL_CONFIGS, "ViT-B-32", shallow)
    exec(compile(method, "backbones.md", "exec"), {})
    assert capsys.readouterr().out.split("torch.Size")[-1].strip() == "([1, 12, 7, 7])"


def test_the_data_set_of_the_documents_can_be_added(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    text = (ROOT / "docs" / "new_dataset.md").read_text(encoding="utf-8")
    (code,) = re.findall(r"```python\n(.*?)```", text, re.S)
    module: dict[str, Any] = {}
    exec(compile(code, "new_dataset.md", "exec"), module)
    monkeypatch.setitem(registry.DATASETS, "feeder", module["FEEDER"])
    root = tmp_path / "feeder"
    (root / "images").mkdir(parents=True)
    lines = {"train": ["1,robin", "2,great tit,sparrow", "3", "4,robin,sparrow"],
             "test": ["5,robin,great tit", "6,sparrow"]}  # fmt: skip
    for split, rows in lines.items():
        for row in rows:
            number = row.partition(",")[0]
            image = Image.new("RGB", (64, 48), (40 * int(number), 90, 20))
            image.save(root / "images" / f"{number}.jpg")
        text = "".join(f"{row.replace(row[0], f'{row[0]}.jpg', 1)}\n" for row in rows)
        (root / f"{split}.txt").write_text(text)
    words = ["feeder", "--root", str(root), "--output", str(tmp_path / "out")]
    assert datasets.main(["check", *words]) == 0
    assert "feeder" in capsys.readouterr().out
    assert datasets.main(["stats", *words]) == 0
    options = ["--dataset", "feeder", "--root", str(root), "--output", str(tmp_path / "out")]
    config, _ = cli.parse("extract", "", [*options, "--backbone", "tiny"])
    listing = open_dataset(config, "train")
    assert listing.labels.tolist() == [[1, 0, 0], [0, 1, 1], [0, 0, 0], [1, 0, 1]]
    (root / "train.txt").write_text("1.jpg,robbin\n")
    assert datasets.main(["check", *words]) == 1
    assert "line 1: 'robbin' is no class of feeder" in capsys.readouterr().out


@pytest.mark.parametrize("document", PAGES[1:], ids=lambda path: path.stem)
def test_every_page_opens_with_whom_it_is_for(document: Path) -> None:
    title, first = document.read_text(encoding="utf-8").split("\n\n")[:2]
    assert title.startswith("# ")
    assert first.startswith("For whoever ")


def test_modules_that_the_documents_name_are_there() -> None:
    dotted = re.compile(r"\b(?:dclip|pipeline)(?:\.[A-Za-z_][\w-]*)+")
    keys = set(DCLIPSettings.model_fields) | {"yaml"}
    missing = []
    for document in PAGES:
        for name in dotted.findall(document.read_text(encoding="utf-8")):
            parts = name.split(".")
            if parts[0] == "dclip" and parts[1].replace("-", "_") in keys:
                continue  # a setting
            if not any(
                is_there(parts[:count], parts[count:]) for count in range(len(parts), 0, -1)
            ):
                missing.append(f"{document.name}: {name}")
    assert not missing


def is_there(module: list[str], names: list[str]) -> bool:
    """Whether a module exists and its text has the names that follow."""
    path = ROOT.joinpath(*module)
    file = path.with_suffix(".py") if path.with_suffix(".py").is_file() else path / "__init__.py"
    if not file.is_file():
        return False
    text = file.read_text(encoding="utf-8")
    return all(re.search(rf"\b{name}\b", text) for name in names)


def test_the_table_of_backbones_is_what_the_command_writes() -> None:
    text = (ROOT / "docs" / "backbones.md").read_text(encoding="utf-8")
    table = markdown(every(facts()))
    assert replace_section(text, table) == text
    assert table.count("\n") == 145  # 144 architectures below two lines of the head
    assert sum(len(line.split(" | ")[1].split(", ")) for line in table.splitlines()[2:]
               if line.split(" | ")[1] != "-") == 196  # fmt: skip


def test_messages_name_documents_that_are_there() -> None:
    named = re.compile(r"page\('(\w+)'\)|page\(\"(\w+)\"\)")
    found = set()
    for path in sorted((ROOT / "pipeline").rglob("*.py")):
        text = path.read_text(encoding="utf-8")
        found |= {first or second for first, second in named.findall(text)}
        assert not re.search(r"""["'][^"'\n]*\bdocs/\w+\.md""", text), f"{path}: use page()"
    assert "datasets" in found
    assert all(Path(page(name)).is_file() for name in found)


def test_a_wheel_has_settings_documents_and_where_the_project_is(tmp_path: Path) -> None:
    build = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path)]
    done = subprocess.run(build, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    (file,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(file) as wheel:
        names = set(wheel.namelist())
        (about,) = (name for name in names if name.endswith("METADATA"))
        metadata = wheel.read(about).decode()
    assert {"pipeline/docs/datasets.md", "pipeline/conf/shapes.yaml"} <= names
    assert {"dclip/world/tiny_clip.safetensors", "dclip/architectures.json"} <= names
    assert "Project-URL: " in metadata
    assert "Classifier: Programming Language :: Python :: 3.11" in metadata


def test_links_between_documents_lead_somewhere() -> None:
    for document in PAGES:
        for target in re.findall(r"\]\((?!http)([^)#]+)\)", document.read_text(encoding="utf-8")):
            assert (document.parent / target).exists(), f"{document.name} -> {target}"

"""Search as a stage: ranked as a plain sort would, in constant memory, and what it refuses."""

import csv
import json
import time
import weakref
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn import functional as F

from dclip.backbones import load_backbone
from dclip.data.pixels import normalise
from pipeline.features.opened import open_features
from pipeline.features.plan import plan_features
from pipeline.settings.config import Config
from pipeline.stages import extract, search
from pipeline.terminal import cli
from pipeline.terminal.errors import StageError, UsageError
from pipeline.work import search as work

from ..conftest import TOY, settings
from .test_extract import make_here

pytestmark = pytest.mark.usefixtures("_toy_on_path")


@pytest.fixture(scope="module")
def photographs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Images that are not square, of which one is lost after extraction."""
    folder = tmp_path_factory.mktemp("search") / "photos"
    folder.mkdir()
    generator = np.random.default_rng(0)
    for split, count in (("train", 20), ("test", 7)):
        lines = ["file,labels"]
        for number in range(count):
            pixels = generator.integers(0, 255, (4, 6, 3), np.uint8)
            image = Image.fromarray(pixels).resize((120, 80), Image.Resampling.NEAREST)
            image.save(folder / f"{split}{number}.png")
            lines.append(f"{split}{number}.png,{'ab'[number % 2]}")
        (folder / f"{split}.csv").write_text("\n".join(lines) + "\n")
    return folder


def wanted(photographs: Path, **search_for: Any) -> Config:
    return settings(
        photographs.parent / "outputs",
        dataset=f"folder:{photographs}",
        extract={"shard_size": 8},
        search=search_for,
    )


@pytest.fixture(scope="module")
def extracted(_toy_on_path: None, photographs: Path) -> Path:
    config = wanted(photographs)
    for split in ("train", "test"):
        plan = plan_features(config, split)
        make_here(plan, config)
        extract.extract(config, [plan])
    (photographs / "train3.png").write_bytes(b"no image any more")
    return photographs


def test_both_rankings_are_those_of_a_sort_over_all_images(extracted: Path) -> None:
    query = extracted / "test2.png"
    config = wanted(extracted, queries=["a thing", str(query)], count=9)
    report = search.run(config)
    assert (report.splits, report.images) == (["train", "test"], 27)

    backbone = load_backbone(TOY)
    readers = [
        open_features(plan_features(config, split).folders[:1], config.output)
        for split in ("train", "test")
    ]
    keys = [key for reader in readers for key in reader.keys]
    whole = torch.cat([reader.embeddings() for reader in readers])
    local = torch.cat([reader.local(np.arange(len(reader))).float()[:, 1:] for reader in readers])
    with Image.open(query) as image:
        square = image.convert("RGB").resize((96, 96), Image.Resampling.BILINEAR)
    pixels = torch.from_numpy(np.array(square))[None]
    seen = backbone.encode_images(normalise(pixels, backbone.mean, backbone.std)).embedding[0]
    for one, feature in zip(
        report.queries, (backbone.encode_texts(["a thing"])[0], seen), strict=True
    ):
        by_whole = F.cosine_similarity(whole, feature[None], dim=-1)
        places = F.cosine_similarity(local, feature[None, None], dim=-1)
        for ranking, scores in (("whole", by_whole), ("location", places.amax(1))):
            order = scores.argsort(descending=True, stable=True)[:9]
            assert [hit["key"] for hit in one[ranking]] == [keys[row] for row in order]
            found = torch.tensor([hit["score"] for hit in one[ranking]])
            torch.testing.assert_close(found, scores[order], rtol=1e-4, atol=1e-4)
        for hit in one["location"]:
            row = keys.index(hit["key"])
            assert (hit["row"], hit["column"]) == divmod(int(places[row].argmax()), 3)
    assert report.queries[1]["whole"][0]["key"] == "test2"  # the image itself
    assert report.queries[1]["whole"][0]["path"] == str(query)
    assert report.queries[1]["whole"][0]["score"] == pytest.approx(1, abs=1e-5)

    with Path(report.queries[0]["table"]).open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["by"] for row in rows] == ["whole"] * 9 + ["location"] * 9
    assert rows[9]["column"] == str(report.queries[0]["location"][0]["column"])
    assert rows[0]["column"] == ""
    kept = json.loads((Path(report.queries[0]["table"]).parent / "report.json").read_text())
    assert kept["queries"] == report.queries


def test_an_image_that_is_lost_is_grey_with_the_reason_and_a_location_is_marked(
    extracted: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sheets: list[Any] = []
    draw = work.contact_sheet
    monkeypatch.setattr(
        work, "contact_sheet", lambda rows, title: sheets.append(rows) or draw(rows, title)
    )
    config = wanted(extracted, queries=["a thing"], count=27, shown=27, split=["train"])
    report = search.run(config)
    whole, location = (
        {shot.caption.split("\n")[1]: shot for shot in row.shots} for row in sheets[0]
    )
    assert "train3.png" in whole["train3"].image
    assert isinstance(whole["train4"].image, Image.Image)
    hit = next(one for one in report.queries[0]["location"] if one["key"] == "train4")
    left, top, right, bottom = location["train4"].box
    assert (left, top) == pytest.approx((hit["column"] / 3, hit["row"] / 3))
    assert (right - left, bottom - top) == pytest.approx((1 / 3, 1 / 3))
    with Image.open(report.queries[0]["picture"]) as picture:
        assert len(np.unique(np.asarray(picture.convert("L")))) > 20


class Many:
    """A reader of any number of images, which knows how many of its parts are held at once."""

    manifest = SimpleNamespace(include_global_token=True)

    def __init__(self, count: int) -> None:
        self._count, self.most, self.rows = count, 0, 0
        self._held: weakref.WeakSet[torch.Tensor] = weakref.WeakSet()

    def __len__(self) -> int:
        return self._count

    def embeddings(self, rows: np.ndarray) -> torch.Tensor:
        self.rows = max(self.rows, len(rows))
        return torch.from_numpy(np.cos(rows[:, None] * np.arange(1, 9.0))).float()

    def local(self, rows: np.ndarray) -> torch.Tensor:
        local = self.embeddings(rows)[:, None].repeat(1, 5, 1).half()
        self._held.add(local)
        self.most = max(self.most, len(self._held))
        return local


def test_memory_does_not_grow_with_the_images(monkeypatch: pytest.MonkeyPatch) -> None:
    """Few parts of them are held at a time, and no more than what is asked for is kept."""
    kept = []
    add = work.Nearest.add

    def watched(self: Any, *arguments: Any, **named: Any) -> None:
        add(self, *arguments, **named)
        kept.append(self.best().rows.untyped_storage().nbytes())

    monkeypatch.setattr(work.Nearest, "add", watched)
    reader = Many(100_000)
    started = time.perf_counter()
    best, local = work.scan([reader], torch.randn(2, 8), 24)  # type: ignore[list-item]
    assert time.perf_counter() - started < 20
    assert (reader.most, reader.rows) <= (2, 256)
    assert max(kept) <= 2 * 24 * 8
    assert local is not None
    assert best.rows.shape == local.rows.shape == (2, 24)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "nothing to look for"),
        (["  "], "is blank"),
        (["gone.jpg"], "no image gone.jpg"),
        (["a\nb"], "control characters"),
        (["a thing", "--split", "val"], "val"),
    ],
)
def test_mistakes_are_told_in_a_line(
    words: list[str], message: str, extracted: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = str(extracted.parent / "outputs")
    common = ["--dataset", f"folder:{extracted}", "--backbone", TOY, "--output", output]
    assert cli.main("search", [*words, *common]) in (1, 2)
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert message in line


def test_features_that_are_not_there_are_named_with_the_command_that_makes_them(
    photographs: Path, tmp_path: Path
) -> None:
    config = wanted(photographs, queries=["a thing"]).model_copy(update={"output": tmp_path})
    with pytest.raises(StageError, match=r"make them by python -m pipeline\.extract"):
        search.describe(config)
    with pytest.raises(UsageError, match="nothing to look for"):
        search.describe(wanted(photographs))

"""Extraction through kills, lost nodes, bad disks and its other modes; the bytes stay equal."""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import psutil
import pytest
import torch
from PIL import Image

from dclip.backbones import Backbone, ImageFeatures
from dclip.store.extraction import Extractor
from dclip.store.paths import RemotePath, as_path
from dclip.store.reader import FeatureReader
from dclip.store.shards import FAILURES, SAMPLES, TEXT, file_digest, read_manifest
from dclip.store.verified import file_state
from dclip.world import shapes
from dclip.world.dataset import ShapesListing
from pipeline.features import splits
from pipeline.features.copies import verified_folder
from pipeline.features.opened import open_backbone, open_features
from pipeline.features.plan import FeaturePlan, finished, plan_features
from pipeline.features.reuse import earlier, sources_of
from pipeline.records.trainings import checkpoint_path
from pipeline.settings.config import Config
from pipeline.stages import extract, train
from pipeline.terminal.errors import StageError, UsageError
from pipeline.work import extraction
from pipeline.work.shard_maker import make_shard

from ...processes import in_a_new_process
from ..conftest import TOY, WITH_RAY, settings, workers_below
from ..toy_backbone import ToyBackbone

pytestmark = [*WITH_RAY, pytest.mark.usefixtures("_toy_on_path")]

IMAGES, SHARD = 160, 8
SLOW = ("--backbone", "toy_backbone:slow")  # seconds, so that kills and new nodes come in between


def tars(folder: Path) -> dict[str, str]:
    return {path.name: file_digest(path) for path in sorted(folder.glob("*.tar"))}


def make_here(plan: FeaturePlan, config: Config) -> Path:
    """The shards of a plan, made in this process without Ray."""
    assert isinstance(plan.folder, Path)
    plan.folder.mkdir(parents=True, exist_ok=True)
    extractor = Extractor(open_backbone(config), kind=config.extract.kind)
    for number in range(plan.num_shards):
        make_shard(plan, number, extractor)
    extractor.close()
    return plan.folder


def features_here(output: Path, wanted: Mapping[str, object]) -> Path:
    """Folder of the features of a training split, of which ``wanted`` is what is extracted."""
    config = settings(output, extract=dict(wanted))
    plan = plan_features(config, "train")
    make_here(plan, config)
    extract.extract(config, [plan])
    return config.output / "features"


def many(output: Path, **changes: object) -> Config:
    """Settings with more and smaller shards."""
    wanted = {"limit": IMAGES, "shard_size": SHARD, "split": "train", "workers": 2}
    return settings(output, extract={**wanted, **changes})


@pytest.fixture(scope="module")
def complete(_toy_on_path: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of an undisturbed run."""
    config = many(tmp_path_factory.mktemp("undisturbed"))
    plan = plan_features(config, "train")
    folder = make_here(plan, config)
    extract.extract(config, [plan])
    return folder


@pytest.fixture(scope="module")
def undisturbed(complete: Path) -> dict[str, str]:
    """Checksums of an undisturbed run."""
    return tars(complete)


def start(output: Path, *words: str, **environment: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [
            sys.executable, "-m", "pipeline.extract", "--backbone", TOY, "--output", str(output),
            "--device", "cpu", "--limit", str(IMAGES), "--shard-size", str(SHARD),
            "--split", "train", *words,
        ],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True,
        env={**os.environ, **environment},
    )  # fmt: skip


def wait_until(condition: Callable[[], bool], process: subprocess.Popen[str] | None = None) -> None:
    deadline = time.monotonic() + 240
    while not condition():
        assert time.monotonic() < deadline
        if process is not None:
            assert process.poll() is None, process.communicate()
        time.sleep(0.005)


def workers(pid: int) -> list[psutil.Process]:
    """Ray's processes below a process that hold a backbone."""
    return workers_below(pid, "ShardMaker")


def test_ten_kills_at_random_points_leave_the_bytes_of_an_undisturbed_run(
    tmp_path: Path, complete: Path
) -> None:
    """Eight of workers, two of everything at once."""
    undisturbed = tars(complete)
    choose = random.Random(7)
    done = 0
    killed_workers = 0

    def count() -> int:
        return len(list(tmp_path.rglob("shard-*.tar")))

    for kills in (3, 3, 2):
        process = start(tmp_path, "--workers", "2", *SLOW)
        for _ in range(kills):
            done = min(done + choose.randint(1, 2), len(undisturbed) - 3)
            wait_until(lambda: count() >= done, process)  # noqa: B023 - used at once
            wait_until(lambda: bool(workers(process.pid)), process)  # noqa: B023
            choose.choice(workers(process.pid)).kill()
            killed_workers += 1
            time.sleep(0.5 * choose.random())
        if kills == 3:
            assert process.poll() is None
            os.killpg(process.pid, signal.SIGKILL)
            process.communicate()
            assert not list(tmp_path.rglob("manifest.json"))
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 0, errors
    assert killed_workers == 8
    (manifest,) = tmp_path.rglob("manifest.json")
    assert tars(manifest.parent) == undisturbed
    for name in (SAMPLES, TEXT, FAILURES):
        assert file_digest(manifest.parent / name) == file_digest(complete / name)
    untimed = [
        read_manifest(folder).model_copy(update={"seconds": {}})
        for folder in (manifest.parent, complete)
    ]
    assert untimed[0] == untimed[1]


@pytest.fixture
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, list[int]]]:
    """Address of a head without CPUs, and process groups of three nodes with one CPU each."""
    environment = {
        **os.environ,
        "RAY_AUTH_MODE": "disabled",
        "RAY_health_check_period_ms": "500",
        "RAY_health_check_timeout_ms": "1000",
        "RAY_health_check_initial_delay_ms": "500",
        "RAY_health_check_failure_threshold": "3",
    }
    port = random.Random(os.getpid()).randint(20000, 30000)
    address = f"127.0.0.1:{port}"
    started: list[subprocess.Popen[bytes]] = []

    temporary = tmp_path_factory.mktemp("r")

    def node(*words: str) -> int:
        ray = Path(sys.executable).parent / "ray"
        told = temporary / f"node-{len(started)}.log"
        with told.open("w") as file:
            process = subprocess.Popen(
                [str(ray), "start", "--block", "--disable-usage-stats", *words], env=environment,
                start_new_session=True, stdout=file, stderr=subprocess.STDOUT,
            )  # fmt: skip
        started.append(process)
        wait_until(lambda: "Ray runtime started" in told.read_text())  # one after the other
        return process.pid

    head = ("--head", f"--port={port}", "--include-dashboard=false", f"--temp-dir={temporary}")
    try:  # what is started ends, also where a later node does not come up
        node(*head, "--num-cpus=0")
        groups = [node(f"--address={address}", "--num-cpus=1") for _ in range(3)]
        yield address, groups
    finally:
        for process in reversed(started):
            try:
                os.killpg(process.pid, signal.SIGKILL)
            except ProcessLookupError:
                continue
        for process in started:
            process.wait()


def test_a_cluster_that_loses_one_node_of_three_loses_nothing(
    tmp_path: Path, undisturbed: dict[str, str], cluster: tuple[str, list[int]]
) -> None:
    address, groups = cluster
    process = start(tmp_path, *SLOW, RAY_ADDRESS=address, RAY_AUTH_MODE="disabled")

    wait_until(lambda: sum(bool(workers(group)) for group in groups) >= 2, process)
    wait_until(lambda: len(list(tmp_path.rglob("shard-*.tar"))) >= 2, process)
    lost = next(group for group in groups if workers(group))
    os.killpg(lost, signal.SIGKILL)
    _, errors = process.communicate(timeout=180)
    assert process.returncode == 0, errors
    (manifest,) = tmp_path.rglob("manifest.json")
    assert tars(manifest.parent) == undisturbed


def break_image(root: Path, place: int) -> tuple[Path, bytes]:
    path = sorted((root / "train").glob("*.jpg"))[place]
    whole = path.read_bytes()
    path.write_bytes(whole[:300])
    return path, whole


def test_failures_are_listed_in_a_file_and_retried_alone(ray_session: None, tmp_path: Path) -> None:
    root = tmp_path / "tree"
    shapes.write_coco(root, "train", count=20)
    path, whole = break_image(root, 6)
    wanted = {"shard_size": 5, "split": "train"}
    config = settings(tmp_path / "out", dataset="coco", root=root, extract=wanted)
    with pytest.raises(StageError, match=r"failures\.jsonl") as caught:
        extract.run(config)
    assert "--retry-failed" in str(caught.value)
    folder = plan_features(config, "train").folder
    assert isinstance(folder, Path)
    (line,) = (folder / "failures.jsonl").read_text().splitlines()
    assert path.stem in line
    before = {tar.name: tar.stat().st_mtime_ns for tar in folder.glob("*.tar")}
    path.write_bytes(whole)
    again = {**wanted, "retry_failed": True}
    config = settings(tmp_path / "out", dataset="coco", root=root, extract=again)
    assert extract.run(config)["splits"]["train"]["shards_made"] == 1
    after = {tar.name: tar.stat().st_mtime_ns for tar in folder.glob("*.tar")}
    assert [name for name in before if before[name] != after[name]] == ["shard-000001.tar"]
    assert (folder / "failures.jsonl").read_text() == ""
    clean = settings(tmp_path / "clean", dataset="coco", root=root, extract=wanted)
    assert tars(make_here(plan_features(clean, "train"), clean)) == tars(folder)
    assert extract.run(config)["splits"]["train"]["shards_made"] == 0


def test_a_run_that_can_read_nothing_ends_early(ray_session: None, tmp_path: Path) -> None:
    (folder := tmp_path / "photos").mkdir()
    lines = [f"{number}.png,thing" for number in range(640)]
    for line in lines:
        (folder / line.partition(",")[0]).touch()
    (folder / "train.csv").write_text("\n".join(["file,labels", *lines, ""]))
    changes = {"limit": None, "shard_size": 32}
    config = many(tmp_path, **changes).model_copy(update={"dataset": f"folder:{folder}"})
    with pytest.raises(
        StageError, match=r"none of the first \d+ images can be read .*no image of a known"
    ):
        extract.run(config)
    assert len(list(tmp_path.rglob("*.tar"))) < 20


def flip(tar: Path) -> None:
    data = bytearray(tar.read_bytes())
    data[3000] ^= 1
    tar.write_bytes(data)


def test_flipped_bytes_are_found_named_and_made_again(
    ray_session: None, tmp_path: Path, undisturbed: dict[str, str], hashed: list[str]
) -> None:
    config = many(tmp_path)
    plan = plan_features(config, "train")
    assert isinstance(plan.folder, Path)
    extract.run(config)
    open_features(plan.folders, tmp_path)
    assert not hashed  # what workers just wrote is not read again
    flip(plan.folder / "shard-000003.tar")
    labels = plan.folder / "shard-000001.json"
    sidecar = json.loads(labels.read_text())
    sidecar["labels"][0] = [15 - column for column in sidecar["labels"][0]]
    labels.write_text(json.dumps(sidecar))
    (plan.folder / "shard-000005.json").write_text("{")
    (plan.folder / "shard-000007.tar").unlink()
    with pytest.raises(StageError) as caught:
        extract.run(many(tmp_path, verify=True))
    assert "shard-000003.tar: its checksum differs" in str(caught.value)
    assert "shard-000001.tar: its sidecar is not the one" in str(caught.value)
    assert "shard-000005.tar: cut short, or its sidecar" in str(caught.value)
    assert "shard-000007.tar: missing" in str(caught.value)
    with pytest.raises(StageError, match="--repair"):
        train.run(config)
    assert extract.run(many(tmp_path, repair=True))["splits"]["train"]["shards_made"] == 4
    assert tars(plan.folder) == undisturbed
    hashed.clear()
    assert extract.run(many(tmp_path, verify=True))["verified"] == plan.num_shards
    assert len(hashed) == plan.num_shards


def rot(folder: Path, name: str, records: Path) -> None:
    """Damage a shard as a bad disk does: nothing that is known of its file changes."""
    flip(folder / name)
    (path,) = records.glob("*.json")
    content = json.loads(path.read_text())
    content["shards"][name]["state"] = file_state(folder / name).model_dump()  # type: ignore[union-attr]
    path.write_text(json.dumps(content))


def test_verify_reads_every_shard_whatever_is_known_and_ends_what_was_trusted(
    tmp_path: Path, hashed: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    config = many(tmp_path)
    plan = plan_features(config, "train")
    folder = make_here(plan, config)
    extract.extract(config, [plan])
    for shards_read in (plan.num_shards, 0):  # made by an earlier command, which kept no record
        hashed.clear()
        open_features(plan.folders, tmp_path)
        assert len(hashed) == shards_read
    extract.run(many(tmp_path, verify=True))
    assert len(hashed) == plan.num_shards
    rot(folder, "shard-000003.tar", verified_folder(tmp_path))
    hashed.clear()
    open_features(plan.folders, tmp_path)  # trusted for a day
    assert not hashed
    with pytest.raises(StageError, match=r"shard-000003\.tar: its checksum differs"):
        extract.run(many(tmp_path, verify=True))
    assert len(hashed) == plan.num_shards
    hashed.clear()
    with pytest.raises(StageError, match=r"shard-000003\.tar: its checksum differs"):
        open_features(plan.folders, tmp_path)
    assert hashed == ["shard-000003.tar"]

    def stopped(*_: object) -> str:
        raise KeyboardInterrupt

    flip(folder / "shard-000003.tar")
    open_features(plan.folders, tmp_path)
    monkeypatch.setattr("pipeline.features.verify.check_shard", stopped)
    with pytest.raises(KeyboardInterrupt):
        extract.run(many(tmp_path, verify=True))
    hashed.clear()
    open_features(plan.folders, tmp_path)
    assert len(hashed) == plan.num_shards  # a verification that was stopped vouches for nothing


@pytest.mark.skipif(not hasattr(os, "posix_fadvise"), reason="the system cannot be asked")
def test_verify_asks_for_the_disk_not_for_what_is_in_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = many(tmp_path, limit=16)
    plan = plan_features(config, "train")
    folder = make_here(plan, config)
    extract.extract(config, [plan])
    dropped: list[int] = []

    def advise(file: int, start: int, length: int, advice: int) -> None:
        assert (start, length, advice) == (0, 0, os.POSIX_FADV_DONTNEED)
        dropped.append(os.fstat(file).st_ino)

    monkeypatch.setattr(os, "posix_fadvise", advise)
    open_features(plan.folders, tmp_path)
    assert not dropped
    extract.run(many(tmp_path, limit=16, verify=True))
    assert sorted(dropped) == sorted(path.stat().st_ino for path in folder.glob("*.tar"))


class LittleMemory(ToyBackbone):
    """Runs out of memory on more images at once than fit."""

    def __init__(self, fit: int) -> None:
        super().__init__(None)
        self.fit = fit
        self.tried: list[int] = []

    def encode_images(self, images: torch.Tensor, *, kind: str = "value") -> ImageFeatures:
        self.tried.append(len(images))
        if len(images) > self.fit:
            raise torch.cuda.OutOfMemoryError("too many images")
        return super().encode_images(images, kind=kind)


def encode(backbone: ToyBackbone, images: int) -> torch.Tensor:
    extractor = Extractor(backbone, batch_size=8)
    try:
        batches = list(extractor.encode(ShapesListing("single"), range(images)))
    finally:
        extractor.close()
    assert [row for batch in batches for row in batch.rows] == list(range(images))
    return torch.cat([batch.local for batch in batches])


def test_a_batch_that_fits_after_two_halvings_makes_all_later_ones_as_small() -> None:
    small, large = LittleMemory(fit=3), LittleMemory(fit=8)
    torch.testing.assert_close(encode(small, images=20), encode(large, images=20))
    assert small.tried == [8, 4, *10 * [2]]
    assert large.tried == [8, 8, 4]


def test_an_image_that_does_not_fit_alone_is_an_error() -> None:
    with pytest.raises(torch.cuda.OutOfMemoryError):
        encode(LittleMemory(fit=0), images=3)


class NeverAsked:
    """A backbone that must not be used."""

    def __init__(self, inner: Backbone) -> None:
        self._inner = inner

    def __getattr__(self, name: str) -> object:
        return getattr(self._inner, name)

    def encode_images(self, *_: object, **__: object) -> ImageFeatures:
        raise AssertionError("asked for features")


def test_extend_takes_over_images_that_are_there(ray_session: None, tmp_path: Path) -> None:
    small, large = many(tmp_path, limit=20), many(tmp_path, limit=30, mode="extend")
    extract.run(small)
    plan = plan_features(large, "train")
    found = earlier(large, plan)
    assert len(found) == 20
    # the same keys in another place, or another split, are other images
    assert not earlier(large.model_copy(update={"root": tmp_path}), plan)
    elsewhere = replace(plan, listing=ShapesListing("test"))
    assert not earlier(large, elsewhere)
    never = Extractor(NeverAsked(open_backbone(large)))  # type: ignore[arg-type]
    plan.folder.mkdir(parents=True)  # type: ignore[union-attr]
    make_shard(plan, 0, never, sources_of(plan, 0, found))
    with pytest.raises(AssertionError, match="asked for features"):
        make_shard(plan, 2, never, sources_of(plan, 2, found))
    flip(plan_features(small, "train").folder / "shard-000001.tar")  # type: ignore[arg-type]
    with pytest.raises(AssertionError, match="asked for features"):  # damaged bytes are no source
        make_shard(plan, 1, never, sources_of(plan, 1, found))
    never.close()
    assert extract.run(large)["splits"]["train"]["shards_made"] == 3
    other = many(tmp_path / "other", limit=30)
    assert tars(make_here(plan_features(other, "train"), other)) == tars(plan.folder)  # type: ignore[arg-type]


def photos(root: Path, labels: Sequence[str], *, parted: bool) -> Config:
    """Pictures in a folder with a class each, of which some are the test split."""
    root.mkdir(exist_ok=True)
    lines = []
    for number, label in enumerate(labels):
        file = root / f"{number}.png"
        Image.new("RGB", (16, 16), (12 * number, 0, 0)).save(file)
        lines.append(f"{file.name},{label}")
    tables = {"data": lines} if parted else {"train": lines[5:], "test": lines[:5]}
    for split, part in tables.items():
        (root / f"{split}.csv").write_text("\n".join(["file,labels", *part]))
    splits._open_split.cache_clear()
    splits._open_checked.cache_clear()
    changes: dict[str, object] = {"test_fraction": 0.25} if parted else {}
    return settings(
        root.parent / "out", dataset=f"folder:{root}", extract={"shard_size": SHARD}, **changes
    )


@pytest.mark.parametrize("parted", [False, True])
def test_a_class_that_is_renamed_makes_no_image_features_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, parted: bool, hashed: list[str]
) -> None:
    config = photos(tmp_path / "photos", ["a", "b"] * 10, parted=parted)
    before = [make_here(plan, config) for plan in extract.all_plans(config)]
    extract.extract(config, extract.all_plans(config))
    # from here on, neither a worker is started nor an image looked at
    monkeypatch.setattr(extraction, "make_shards", lambda *_: pytest.fail("starts workers"))
    monkeypatch.setattr(ToyBackbone, "encode_images", lambda *_: pytest.fail("looks at an image"))
    renamed = photos(tmp_path / "photos", ["z", "b"] * 10, parted=parted)
    hashed.clear()
    results = extract.extract(renamed, extract.all_plans(renamed))
    assert len(hashed) == sum(made for _, _, made, _ in results)  # each source is read once
    hashed.clear()
    for plan, *_ in results:
        open_features(plan.folders[:1], renamed.output)
    assert not hashed  # what was just taken over is not read again
    for folder, (plan, manifest, *_) in zip(before, results, strict=True):
        assert plan.folder != folder
        assert manifest.class_names == ["b", "z"]
        assert manifest.compute == read_manifest(folder).compute
        old, new = (open_features([str(place)], renamed.output) for place in (folder, plan.folder))
        every = np.arange(len(old))
        assert torch.equal(old.local(every), new.local(every))
        assert torch.equal(old.embeddings(), new.embeddings())
        assert torch.equal(old.labels[:, [1, 0]], new.labels)
        assert not torch.equal(old.text_features()[0], new.text_features()[0])
        assert not parted or "parted by test fraction 0.25, seed 0" in manifest.notes[-1]


def test_other_images_are_not_taken_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = photos(tmp_path / "photos", ["a", "b"] * 10, parted=False)
    folders = [make_here(plan, config) for plan in extract.all_plans(config)]
    extract.extract(config, extract.all_plans(config))
    monkeypatch.setattr(extraction, "make_shards", lambda *_: pytest.fail("starts workers"))
    one_more = photos(tmp_path / "photos", ["a", "b"] * 10 + ["a"], parted=False)
    with pytest.raises(pytest.fail.Exception, match="starts workers"):
        extract.extract(one_more, extract.all_plans(one_more))
    renamed = photos(tmp_path / "photos", ["a", "c"] * 10, parted=False)
    for folder in folders:
        flip(folder / "shard-000000.tar")
    with pytest.raises(
        pytest.fail.Exception, match="starts workers"
    ):  # damaged bytes are no source
        extract.extract(renamed, extract.all_plans(renamed))


def test_overwrite_makes_everything_anew(ray_session: None, tmp_path: Path) -> None:
    config = many(tmp_path, limit=16)
    first = extract.run(config)["splits"]["train"]
    anew = many(tmp_path, limit=16, mode="overwrite")
    folder = plan_features(config, "train").folder
    before = sorted(path.name for path in folder.iterdir())  # type: ignore[union-attr]
    if not torch.cuda.is_available():
        with pytest.raises(StageError, match="no CUDA device"):
            extract.run(anew.model_copy(update={"device": "cuda"}))
    assert sorted(path.name for path in folder.iterdir()) == before  # type: ignore[union-attr]
    assert "shards: 0 done, 2 to do (16 images)" in extract.describe(anew)
    old, young = folder / ".a.tmp", folder / ".b.tmp"
    for path in (old, young):  # of a worker that was killed, and of another command
        path.touch()  # type: ignore[union-attr]
    os.utime(old, (0, 0))  # type: ignore[arg-type]
    again = extract.run(anew)["splits"]["train"]
    assert not old.exists()  # type: ignore[union-attr]
    assert young.exists()  # type: ignore[union-attr]
    with pytest.raises(UsageError, match=r"shards computed in cpu float32.*--mode overwrite"):
        extract.run(many(tmp_path, limit=16, precision="bfloat16"))
    assert (first["shards_made"], again["shards_made"]) == (2, 2)
    assert again["folder"] == first["folder"]


def test_views_are_cached_beside_the_clean_features_and_trained_on(
    ray_session: None, tmp_path: Path
) -> None:
    config = settings(
        tmp_path,
        extract={"limit": 24, "shard_size": 12, "views": 2},
        train={"epochs": 2, "output_dim": 4, "val_fraction": 0.25},
    )
    report = extract.run(config)
    assert set(report["splits"]) == {"train", "train view 1", "train view 2", "test"}
    plan = plan_features(config, "train")
    reader = open_features(plan.folders, config.output)
    assert reader.views == 3
    rows = np.arange(6)
    clean, first, second = (reader.local(rows, np.full(6, view)) for view in range(3))
    assert torch.equal(clean, reader.local(rows))
    assert not torch.equal(clean, first)
    assert not torch.equal(first, second)
    mixed = reader.local(rows, np.array([0, 1, 2, 2, 1, 0]))
    assert torch.equal(mixed[1], first[1])
    assert torch.equal(mixed[3], second[3])
    assert torch.equal(mixed[5], clean[5])
    plain = settings(
        tmp_path,
        extract={"limit": 24, "shard_size": 12},
        train={"epochs": 2, "output_dim": 4, "val_fraction": 0.25},
    )
    without = checkpoint_path(plain, plan_features(plain, "train"))
    assert train.run(config)["checkpoint"] != str(without)


def test_kinds_and_storage_have_folders_of_their_own(ray_session: None, tmp_path: Path) -> None:
    folders, spaces = {}, {}
    for kind, storage in (("value", "float16"), ("vv", "float16"), ("value", "int8")):
        config = many(tmp_path, limit=16, kind=kind, storage=storage)
        report = extract.run(config)["splits"]["train"]
        folders[kind, storage] = Path(report["folder"])
        spaces[kind, storage] = report["feature_space"]
    assert len(set(folders.values())) == 3
    assert spaces["value", "float16"] == spaces["value", "int8"] != spaces["vv", "float16"]
    plain, small = (FeatureReader(folders["value", storage]) for storage in ("float16", "int8"))
    rows = np.arange(16)
    step = plain.local(rows).float().abs().amax(-1, keepdim=True) / 127
    error = (plain.local(rows).float() - small.local(rows).float()).abs()
    assert (error <= 0.6 * step).all()
    assert small.manifest.storage == "int8"


def test_features_on_an_object_store_are_resumed_verified_and_copied_once(
    tmp_path: Path, s3_bucket: str, undisturbed: dict[str, str]
) -> None:
    config = many(tmp_path).model_copy(update={"features": as_path(f"{s3_bucket}/features")})
    folder = plan_features(config, "train").folder
    assert isinstance(folder, RemotePath)

    def run(*words: str) -> str:
        # a session of its own: credentials reach Ray's workers when Ray starts
        process = start(tmp_path, "--features", f"{s3_bucket}/features", *words)
        output, errors = process.communicate(timeout=120)
        assert process.returncode == 0, errors
        return output

    assert "20 of 20 shards made now" in run()
    assert not list(tmp_path.rglob("*.tar"))
    (folder / "shard-000002.tar").unlink()
    assert "1 of 20 shards made now" in run()
    wanted = many(tmp_path, verify=True).model_copy(update={"features": config.features})
    assert extract.run(wanted)["verified"] == 20
    reader = open_features([str(folder)], tmp_path)
    assert tars(reader.folder) == undisturbed
    # a copy of an earlier state is brought up to date
    flip(reader.folder / "shard-000004.tar")
    about = json.loads((reader.folder / "manifest.json").read_text())
    about["shards"][4]["sha256"] = file_digest(reader.folder / "shard-000004.tar")
    (reader.folder / "manifest.json").write_text(json.dumps(about))
    assert tars(open_features([str(folder)], tmp_path).folder) == undisturbed
    flip(reader.folder / "shard-000004.tar")
    with pytest.raises(StageError, match=f"delete {reader.folder} to copy"):
        open_features([str(folder)], tmp_path)
    flip(reader.folder / "shard-000004.tar")
    (folder / "manifest.json").unlink()
    assert open_features([str(folder)], tmp_path).keys == reader.keys


def test_an_object_store_out_of_reach_is_named(
    ray_session: None, tmp_path: Path, s3_bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    import fsspec

    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    fsspec.get_filesystem_class("s3").clear_instance_cache()
    config = many(tmp_path).model_copy(update={"features": as_path(f"{s3_bucket}/features")})
    with pytest.raises(OSError, match=s3_bucket):
        extract.run(config)
    monkeypatch.undo()
    fsspec.get_filesystem_class("s3").clear_instance_cache()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may mount a small file system")
def test_a_full_disk_is_named_and_what_was_made_is_kept(ray_session: None, tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=160k", "tmpfs", str(disk)]
    if shutil.which("mount") is None or subprocess.run(mount, check=False).returncode:
        pytest.skip("tmpfs cannot be mounted here")
    try:
        config = many(tmp_path / "out").model_copy(update={"features": disk})
        with pytest.raises(StageError, match=r"No space left on device.*shard-") as caught:
            extract.run(config)
        assert "finished shards are kept" in str(caught.value)
        plan = plan_features(config, "train")
        kept = [sidecar for sidecar in finished(plan) if sidecar is not None]
        assert 0 < len(kept) < plan.num_shards
        subprocess.run(["mount", "-o", "remount,size=4m", str(disk)], check=True)
        made = extract.run(config)["splits"]["train"]["shards_made"]
        assert made == plan.num_shards - len(kept)
    finally:
        subprocess.run(["umount", str(disk)], check=True)


def test_a_bucket_that_is_not_there_is_named_before_any_work(
    ray_session: None, tmp_path: Path, s3_bucket: str
) -> None:
    place = as_path(f"{s3_bucket}-none/features")
    config = many(tmp_path).model_copy(update={"features": place})
    with pytest.raises(OSError, match=r"cannot write features to .*-none/features"):
        extract.run(config)


def test_a_place_that_cannot_be_written_is_named(ray_session: None, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    config = many(tmp_path / "out").model_copy(update={"features": tmp_path / "file"})
    with pytest.raises(OSError, match=str(tmp_path / "file")):
        extract.run(config)


def test_seconds_by_part_are_summed_and_recorded(ray_session: None, tmp_path: Path) -> None:
    import mlflow

    config = many(tmp_path, limit=32)
    folder = Path(extract.run(config)["splits"]["train"]["folder"])
    manifest = read_manifest(folder)
    parts = {"read", "decode", "wait", "forward", "write", "total"}
    assert set(manifest.seconds) == parts
    sidecars = [one for one in finished(plan_features(config, "train")) if one is not None]
    for part in parts:
        total = sum(sidecar.seconds[part] for sidecar in sidecars)
        assert manifest.seconds[part] == pytest.approx(total, abs=1e-3)
    store = mlflow.MlflowClient(f"sqlite:///{tmp_path / 'mlflow.db'}")
    experiment = store.get_experiment_by_name("dclip-shapes")
    assert experiment is not None
    (run,) = store.search_runs([experiment.experiment_id])
    assert run.data.metrics["images"] == 32
    assert run.data.metrics["seconds/forward"] == manifest.seconds["forward"]


def test_a_thousand_finished_shards_need_no_torch(tmp_path: Path) -> None:
    """What makes doing nothing quick: neither torch nor Ray is loaded for it."""
    words: Sequence[str] = ["--limit", "64", "--shard-size", "1", "--split", "train"]
    config = Config.model_validate(
        {
            "output": tmp_path, "device": "cpu",
            "extract": {"limit": 64, "shard_size": 1, "split": "train"},
        }
    )  # fmt: skip
    plan = plan_features(config, "train")
    make_here(plan, config)
    extraction.publish(config, plan, {})
    code = (
        "import sys; from pipeline.terminal import cli; "
        f"code = cli.main('extract', {['--output', str(tmp_path), *words]!r}); "
        "loaded = {'torch', 'ray', 'open_clip', 'mlflow'} & set(sys.modules); "
        "assert code == 0 and not loaded, (code, loaded)"
    )
    done = in_a_new_process(code)
    assert "nothing to do" in done.stderr

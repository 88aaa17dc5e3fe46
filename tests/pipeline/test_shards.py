"""Shards: equal bytes for equal features, readable by anyone, and never trusted blindly."""

import io
import json
import os
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch
import webdataset as wds

from pipeline import shards
from pipeline.errors import StageError
from pipeline.shards import FeatureReader, ImageRecord

CLASSES = ("cat", "dog", "cow")
LOCATIONS, DIM = 5, 8


def records(count: int, first: int = 0) -> list[ImageRecord]:
    random = np.random.default_rng(first)
    return [
        ImageRecord(
            key=f"image-{first + i}",
            index=first + i,
            labels=((first + i) % 3,),
            unknown=((first + i + 1) % 3,) if i == 2 else (),
            local=random.normal(size=(LOCATIONS, DIM)).astype(np.float16),
            embedding=random.normal(size=DIM).astype(np.float32),
        )
        for i in range(count)
    ]


def write_folder(folder: Path, counts: tuple[int, ...] = (4, 3)) -> list[ImageRecord]:
    folder.mkdir(parents=True, exist_ok=True)
    everything, sidecars = [], []
    for number, count in enumerate(counts):
        some = records(count, first=len(everything))
        sidecars.append(
            shards.write_shard(folder, number, some, [], fingerprint="f" * 64, seconds={})
        )
        everything += some
    shards.write_samples(folder / shards.SAMPLES, sidecars)
    shards.write_text_features(folder / shards.TEXT, torch.ones(6, DIM), torch.ones(3, DIM), {})
    manifest = shards.Manifest(
        format=shards.FORMAT,
        fingerprint="f" * 64,
        feature_space="e" * 64,
        dataset="toy",
        split="train",
        class_names=list(CLASSES),
        num_images=sum(counts),
        kind="value",
        dtype="float16",
        locations=LOCATIONS,
        dim=DIM,
        grid=(2, 2),
        include_global_token=True,
        spec={"backbone_name": "toy"},
        shards=[
            shards.ShardEntry(
                name=shards.shard_name(n), count=s.count, bytes=s.bytes, sha256=s.sha256
            )
            for n, s in enumerate(sidecars)
        ],
        failures=[],
        files={name: shards.file_digest(folder / name) for name in (shards.TEXT, shards.SAMPLES)},
        commit=None,
    )
    shards.write_text(folder / shards.MANIFEST, manifest.model_dump_json())
    return everything


def rewrite(path: Path, change: bytes, at: int) -> None:
    path.chmod(0o644)
    with path.open("r+b") as file:
        file.seek(at)
        file.write(change)


def test_what_was_written_is_read_back_in_any_order(tmp_path: Path) -> None:
    written = write_folder(tmp_path)
    reader = FeatureReader(tmp_path)
    rows = np.array([6, 0, 3, 3])
    local = reader.local(rows)
    assert all(np.array_equal(local[i].numpy(), written[row].local) for i, row in enumerate(rows))
    assert np.array_equal(reader.embeddings().numpy(), np.stack([r.embedding for r in written]))
    assert reader.keys == [record.key for record in written]
    assert reader.labels.argmax(1).tolist() == [0, 1, 2, 0, 1, 2, 0]
    assert (reader.labels == 1).sum().item() == len(written)
    assert (reader.labels == -1).nonzero().tolist() == [[2, 0], [6, 1]]


@pytest.mark.filterwarnings(
    "ignore::pytest.PytestUnraisableExceptionWarning"
)  # wds leaves files open
@pytest.mark.filterwarnings("ignore::ResourceWarning")
def test_plain_webdataset_reads_the_shards(tmp_path: Path) -> None:
    written = write_folder(tmp_path)
    urls = [str(path) for path in sorted(tmp_path.glob("*.tar"))]
    found = list(wds.WebDataset(urls, shardshuffle=False, empty_check=False))
    assert [sample["__key__"] for sample in found] == [record.key for record in written]
    for sample, record in zip(found, written, strict=True):
        local = np.load(io.BytesIO(sample["npy"]), allow_pickle=False)
        embedding = np.load(io.BytesIO(sample["global.npy"]), allow_pickle=False)
        assert np.array_equal(local, record.local)
        assert np.array_equal(embedding, record.embedding)
        assert json.loads(sample["json"]) == {
            "index": record.index,
            "labels": [*record.labels],
            "unknown": [*record.unknown],
        }


def test_equal_features_give_equal_bytes(tmp_path: Path) -> None:
    write_folder(tmp_path / "one")
    write_folder(tmp_path / "two")
    for name in ("shard-000000.tar", "shard-000001.tar", shards.SAMPLES, shards.MANIFEST):
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()


def test_the_bytes_of_a_fixed_shard_never_change(tmp_path: Path) -> None:
    """Golden: recorded 2026-11-22 with numpy 2.4; a change breaks every cache there is."""
    record = ImageRecord(
        "a-1", 7, (0, 2), (1,), np.arange(6, dtype=np.float16).reshape(3, 2), np.ones(2, np.float32)
    )
    sidecar = shards.write_shard(tmp_path, 0, [record], [], fingerprint="", seconds={})
    assert sidecar.sha256 == ("32bb884996e3dab788431e5e82254c14adfbf57fe5595ce558e820a085c7098e")


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda folder: os.truncate(folder / "shard-000001.tar", 1024), "truncated or replaced"),
        (lambda folder: rewrite(folder / "shard-000001.tar", b"\1\2", 700), "changed or foreign"),
        (lambda folder: (folder / "shard-000000.tar").unlink(), "missing"),
        (
            lambda folder: (folder / "shard-000001.tar").replace(folder / "shard-000000.tar"),
            "truncated or replaced",
        ),
        (lambda folder: rewrite(folder / shards.TEXT, b"\1\2", 90), "changed or foreign"),
    ],
    ids=["truncated", "flipped bytes", "missing", "foreign", "changed text features"],
)
def test_a_damaged_folder_is_refused_by_name(tmp_path: Path, damage, words: str) -> None:  # type: ignore[no-untyped-def]
    write_folder(tmp_path)
    damage(tmp_path)
    with pytest.raises(StageError, match=words) as caught:
        FeatureReader(tmp_path)
    assert str(tmp_path) in str(caught.value)
    assert "pipeline.extract" in str(caught.value)


def test_a_folder_without_a_manifest_is_not_features(tmp_path: Path) -> None:
    write_folder(tmp_path)
    (tmp_path / shards.MANIFEST).unlink()
    with pytest.raises(StageError, match=r"run python -m pipeline\.extract"):
        FeatureReader(tmp_path)


@pytest.mark.parametrize("text", ["", "{}", "[1", '{"format": 1, "evil": true}'])
def test_a_manifest_that_does_not_parse_is_named(tmp_path: Path, text: str) -> None:
    write_folder(tmp_path)
    (tmp_path / shards.MANIFEST).write_text(text)
    with pytest.raises(StageError, match="is not a manifest"):
        FeatureReader(tmp_path)


@pytest.mark.parametrize("name", ["../shard-000000.tar", "/etc/passwd", "shard-0.tar"])
def test_a_manifest_cannot_point_outside_its_folder(tmp_path: Path, name: str) -> None:
    write_folder(tmp_path)
    manifest = json.loads((tmp_path / shards.MANIFEST).read_text())
    manifest["shards"][0]["name"] = name
    (tmp_path / shards.MANIFEST).write_text(json.dumps(manifest))
    with pytest.raises(StageError):
        FeatureReader(tmp_path)


def test_an_unverified_reader_still_refuses_bytes_that_are_no_array(tmp_path: Path) -> None:
    write_folder(tmp_path)
    with tarfile.open(tmp_path / "shard-000000.tar") as tar:
        start = tar.getmembers()[0].offset_data
    rewrite(tmp_path / "shard-000000.tar", b"junk", start)
    with pytest.raises(StageError, match="no array"):
        FeatureReader(tmp_path, verify=False).local(np.array([0]))


@pytest.mark.parametrize("key", ["../up", "a/b", "a.b", "", "x" * 129])
def test_a_key_that_is_no_plain_name_is_never_written(tmp_path: Path, key: str) -> None:
    record = ImageRecord(key, 0, (), (), np.zeros((1, 1), np.float16), np.zeros(1, np.float32))
    with pytest.raises(ValueError, match="must match"):
        shards.write_shard(tmp_path, 0, [record], [], fingerprint="", seconds={})
    assert list(tmp_path.iterdir()) == []


def test_a_failed_write_leaves_nothing_behind(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError), shards.atomic_write(tmp_path / "file") as temporary:  # noqa: PT012 - the error must be raised inside
        temporary.write_text("half")
        raise RuntimeError
    assert list(tmp_path.iterdir()) == []


def test_a_shard_counts_as_finished_only_with_its_own_sidecar(tmp_path: Path) -> None:
    write_folder(tmp_path)
    assert shards.read_sidecar(tmp_path, 0, "f" * 64) is not None
    assert shards.read_sidecar(tmp_path, 0, "0" * 64) is None
    os.truncate(tmp_path / "shard-000000.tar", 512)
    assert shards.read_sidecar(tmp_path, 0, "f" * 64) is None
    (tmp_path / "shard-000001.json").write_text("{")
    assert shards.read_sidecar(tmp_path, 1, "f" * 64) is None
    assert shards.read_sidecar(tmp_path, 2, "f" * 64) is None

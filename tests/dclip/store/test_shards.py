"""Shards: equal bytes for equal features, readable by anyone, and never trusted blindly."""

import io
import json
import os
import pickle
import sys
import tarfile
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import webdataset as wds

from dclip.store import shards
from dclip.store.paths import atomic_write, write_text
from dclip.store.reader import FeatureReader, dequantise, quantise, write_text_features
from dclip.store.shards import ImageRecord, ShardError

from ...processes import in_a_new_process

CLASSES = ("cat", "dog", "cow")
LOCATIONS, DIM = 5, 8
PRINT = "f" * 64


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


def write(folder: Path, number: int, some: Iterable[ImageRecord]) -> shards.Sidecar:
    return shards.write_shard(
        folder, number, some, [], fingerprint=PRINT, compute="cpu float32", seconds={}
    )


def as_int8(record: ImageRecord) -> ImageRecord:
    values, scale = quantise(torch.from_numpy(record.local).float()[None])
    return replace(record, local=values[0].numpy(), scale=scale[0].numpy())


def write_folder(
    folder: Path, counts: tuple[int, ...] = (4, 3), storage: shards.Storage = "float16"
) -> list[ImageRecord]:
    folder.mkdir(parents=True, exist_ok=True)
    everything, sidecars = [], []
    for number, count in enumerate(counts):
        some = records(count, first=len(everything))
        if storage == "int8":
            some = [as_int8(record) for record in some]
        sidecars.append(
            shards.write_shard(
                folder, number, some, [], fingerprint=PRINT, compute="cpu float32", seconds={}
            )
        )
        everything += some
    shards.write_samples(folder / shards.SAMPLES, sidecars)
    write_text_features(
        folder / shards.TEXT, torch.ones(6, DIM), torch.ones(3, DIM), {"class_names": CLASSES}
    )
    manifest = shards.Manifest(
        format=shards.FORMAT,
        fingerprint=PRINT,
        feature_space="e" * 64,
        dataset="toy",
        split="train",
        class_names=list(CLASSES),
        num_images=sum(counts),
        kind="value",
        view=0,
        storage=storage,
        locations=LOCATIONS,
        dim=DIM,
        grid=(2, 2),
        include_global_token=True,
        spec={"backbone_name": "toy"},
        compute=["cpu float32"],
        seconds={},
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
    write_text(folder / shards.MANIFEST, manifest.model_dump_json())
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
    sidecar = shards.write_shard(
        tmp_path, 0, [record], [], fingerprint="", compute="cpu float32", seconds={}
    )
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
    with pytest.raises(ShardError, match=words) as caught:
        FeatureReader(tmp_path)
    assert str(tmp_path) in str(caught.value)
    assert "pipeline.extract" in str(caught.value)


def change_samples(folder: Path, change: Callable[[pa.Table], pa.Table]) -> None:
    """Put another samples table into a folder, with its checksum in the manifest."""
    table = pq.ParquetFile(folder / shards.SAMPLES).read()
    pq.write_table(change(table), folder / shards.SAMPLES)
    forge(folder, shards.SAMPLES)


def forge(folder: Path, name: str) -> None:
    manifest = json.loads((folder / shards.MANIFEST).read_text())
    manifest["files"][name] = shards.file_digest(folder / name)
    (folder / shards.MANIFEST).write_text(json.dumps(manifest))


def put(name: str, column: list[object], kind: pa.DataType) -> Callable[[pa.Table], pa.Table]:
    return lambda table: table.set_column(
        table.column_names.index(name), name, pa.array(column, kind)
    )


LISTS = pa.list_(pa.int32())


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (put("labels", [[0], [1], [2], [0, 3], [4], [2], [0]], LISTS), "image-3 has labels beyond"),
        (put("unknown", [[], [], [], [], [], [2], [0, -1]], LISTS), "image-6 has labels beyond"),
        (put("labels", [[0], None, [2], [0], [1], [2], [0]], LISTS), "column labels has gaps"),
        (put("unknown", [[], [], [None], [], [], [], []], LISTS), "column unknown has gaps"),
        (put("labels", ["cat"] * 7, pa.string()), "no column labels of type list"),
        (put("labels", [0] * 7, pa.int32()), "no column labels of type list"),
        (put("index", [0, 1, None, 3, 4, 5, 6], pa.int64()), "column index has gaps"),
        (put("local_offset", [0.5] * 7, pa.float64()), "no column local_offset of type int64"),
        (put("global_offset", [0, 0, 0, 0, 0, -1, 0], pa.int64()), "image-5 has the global_offset"),
        (put("shard", [0, 0, 0, 0, 1, 1, 2], pa.int32()), "image-6 has the shard 2"),
        (lambda table: table.drop_columns(["key"]), "no column key of type string"),
        (lambda table: table.slice(0, 6), "6 rows, not 7"),
    ],
)
def test_a_samples_table_that_cannot_be_right_is_named(
    tmp_path: Path, change: Callable[[pa.Table], pa.Table], words: str
) -> None:
    write_folder(tmp_path)
    change_samples(tmp_path, change)
    with pytest.raises(ShardError, match=words) as caught:
        FeatureReader(tmp_path)
    assert str(tmp_path / shards.SAMPLES) in str(caught.value)
    assert "--repair" in str(caught.value)


def test_a_samples_table_that_is_no_parquet_is_named(tmp_path: Path) -> None:
    write_folder(tmp_path)
    (tmp_path / shards.SAMPLES).write_bytes(b"key,index")
    forge(tmp_path, shards.SAMPLES)
    with pytest.raises(ShardError, match="not readable"):
        FeatureReader(tmp_path)


@pytest.mark.parametrize(
    "change",
    [
        lambda table: pa.concat_tables([table.slice(0, 2), table.slice(2)]),
        lambda table: pa.Table.from_batches(table.to_batches(max_chunksize=1)),
        put("key", [f"image-{i}" for i in range(7)], pa.large_string()),
        put("labels", [[i % 3] for i in range(7)], pa.large_list(pa.uint8())),
    ],
    ids=["two pieces", "a piece a row", "long strings", "other whole numbers"],
)
def test_how_a_samples_table_is_laid_out_does_not_matter(
    tmp_path: Path, change: Callable[[pa.Table], pa.Table]
) -> None:
    written = write_folder(tmp_path)
    expected = FeatureReader(tmp_path)
    change_samples(tmp_path, change)
    reader = FeatureReader(tmp_path)
    assert reader.keys == expected.keys == [record.key for record in written]
    assert torch.equal(reader.labels, expected.labels)
    assert np.array_equal(reader.indices, expected.indices)
    assert torch.equal(reader.local(np.arange(7)), expected.local(np.arange(7)))


def test_labels_are_those_of_a_loop_over_the_images(tmp_path: Path) -> None:
    """Any number of positives and unknowns an image, none included; who is both is unknown."""
    random = np.random.default_rng(0)
    plain = records(200)
    marks = [[np.flatnonzero(random.random(3) < 0.4).tolist() for _ in plain] for _ in range(2)]
    sidecars = [
        write(
            tmp_path,
            number,
            (
                replace(record, labels=tuple(positive), unknown=tuple(unknown))
                for record, positive, unknown in list(zip(plain, *marks, strict=True))[part]
            ),
        )
        for number, part in enumerate((slice(0, 70), slice(70, 200)))
    ]
    (tmp_path / "features").mkdir()
    write_folder(tmp_path / "features", (70, 130))
    shards.write_samples(tmp_path / "features" / shards.SAMPLES, sidecars)
    forge(tmp_path / "features", shards.SAMPLES)
    expected = torch.zeros(200, 3, dtype=torch.int8)
    for row, (positive, unknown) in enumerate(zip(*marks, strict=True)):
        expected[row, positive] = 1
        expected[row, unknown] = -1
    assert torch.equal(FeatureReader(tmp_path / "features").labels, expected)


def test_opening_takes_no_more_calls_for_more_images(tmp_path: Path) -> None:
    """What makes COCO's 82,081 images open at once: no step is taken for each."""

    def calls(folder: Path) -> int:
        count = 0

        def counting(_frame: object, event: str, _what: object) -> None:
            nonlocal count
            count += event in ("call", "c_call")

        sys.setprofile(counting)
        try:
            FeatureReader(folder)
        finally:
            sys.setprofile(None)
        return count

    write_folder(tmp_path / "few", (5, 5))
    write_folder(tmp_path / "many", (100, 300))
    calls(tmp_path / "few")
    assert calls(tmp_path / "many") < calls(tmp_path / "few") + 100


def test_opening_does_not_load_pandas(tmp_path: Path) -> None:
    write_folder(tmp_path)
    code = (
        "import sys; from pathlib import Path; from dclip.store.reader import FeatureReader; "
        f"reader = FeatureReader(Path({str(tmp_path)!r})); "
        "assert len(reader.keys) == 7; assert 'pandas' not in sys.modules"
    )
    in_a_new_process(code)


def test_a_view_of_other_images_is_refused(tmp_path: Path) -> None:
    write_folder(tmp_path / "clean")
    write_folder(tmp_path / "same")
    assert FeatureReader(tmp_path / "clean", views=[tmp_path / "same"]).views == 2
    write_folder(tmp_path / "fewer", (4, 2))
    keys = [f"image-{i}" for i in (0, 2, 1, 3, 4, 5, 6)]
    change_samples(tmp_path / "same", put("key", keys, pa.string()))
    for view in ("same", "fewer"):
        with pytest.raises(ShardError, match=f"{view} is no view of the images of .*clean"):
            FeatureReader(tmp_path / "clean", views=[tmp_path / view])


def test_a_folder_without_a_manifest_is_not_features(tmp_path: Path) -> None:
    write_folder(tmp_path)
    (tmp_path / shards.MANIFEST).unlink()
    with pytest.raises(ShardError, match=r"run python -m pipeline\.extract"):
        FeatureReader(tmp_path)


@pytest.mark.parametrize("text", ["", "{}", "[1", '{"format": 2, "evil": true}'])
def test_a_manifest_that_does_not_parse_is_named(tmp_path: Path, text: str) -> None:
    write_folder(tmp_path)
    (tmp_path / shards.MANIFEST).write_text(text)
    with pytest.raises(ShardError, match="is not a manifest"):
        FeatureReader(tmp_path)


@pytest.mark.parametrize("name", ["../shard-000000.tar", "/etc/passwd", "shard-0.tar"])
def test_a_manifest_cannot_point_outside_its_folder(tmp_path: Path, name: str) -> None:
    write_folder(tmp_path)
    manifest = json.loads((tmp_path / shards.MANIFEST).read_text())
    manifest["shards"][0]["name"] = name
    (tmp_path / shards.MANIFEST).write_text(json.dumps(manifest))
    with pytest.raises(ShardError):
        FeatureReader(tmp_path)


def test_an_unverified_reader_still_refuses_bytes_that_are_no_array(tmp_path: Path) -> None:
    write_folder(tmp_path)
    with tarfile.open(tmp_path / "shard-000000.tar") as tar:
        start = tar.getmembers()[0].offset_data
    rewrite(tmp_path / "shard-000000.tar", b"junk", start)
    with pytest.raises(ShardError, match="no array"):
        FeatureReader(tmp_path, verify=False).local(np.array([0]))


@pytest.mark.parametrize("key", ["../up", "a/b", "a.b", "", "x" * 129])
def test_a_key_that_is_no_plain_name_is_never_written(tmp_path: Path, key: str) -> None:
    record = ImageRecord(key, 0, (), (), np.zeros((1, 1), np.float16), np.zeros(1, np.float32))
    with pytest.raises(ValueError, match="must match"):
        shards.write_shard(
            tmp_path, 0, [record], [], fingerprint="", compute="cpu float32", seconds={}
        )
    assert list(tmp_path.iterdir()) == []


def test_a_failed_write_leaves_nothing_behind(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError), atomic_write(tmp_path / "file") as temporary:  # noqa: PT012 - the error must be raised inside
        temporary.write_text("half")
        raise RuntimeError
    assert list(tmp_path.iterdir()) == []


def test_a_shard_counts_as_finished_only_with_its_own_sidecar(tmp_path: Path) -> None:
    write_folder(tmp_path)
    assert None not in shards.read_sidecars(tmp_path, 2, PRINT)
    assert shards.read_sidecars(tmp_path, 2, "0" * 64) == [None, None]
    os.truncate(tmp_path / "shard-000000.tar", 512)
    (tmp_path / "shard-000001.json").write_text("{")
    assert shards.read_sidecars(tmp_path, 3, PRINT) == [None, None, None]
    assert shards.read_sidecars(tmp_path / "nowhere", 1, PRINT) == [None]


def test_every_byte_of_a_shard_is_checked(tmp_path: Path) -> None:
    write_folder(tmp_path)
    first, second = shards.read_sidecars(tmp_path, 2, PRINT)
    assert shards.check_shard(tmp_path, 0, first) == ""
    rewrite(tmp_path / "shard-000001.tar", b"\1", 5000)
    assert "checksum" in shards.check_shard(tmp_path, 1, second)
    assert shards.check_shard(tmp_path, 2, None) == "missing"


def test_tars_are_those_of_tarfile(tmp_path: Path) -> None:
    long = replace(records(1)[0], key="k" * 128)
    some = [*records(3, first=5), long]
    write(tmp_path, 0, some)
    with tarfile.open(tmp_path / "shard-000000.tar") as tar:
        members = tar.getmembers()
        contents = [tar.extractfile(member).read() for member in members]  # type: ignore[union-attr]
    written = io.BytesIO()
    with tarfile.open(fileobj=written, mode="w") as tar:
        for member, data in zip(members, contents, strict=True):
            tar.format = tarfile.GNU_FORMAT if len(member.name) > 100 else tarfile.USTAR_FORMAT
            again = tarfile.TarInfo(member.name)
            again.size, again.mode, again.mtime = len(data), 0o444, 0
            tar.addfile(again, io.BytesIO(data))
    assert (tmp_path / "shard-000000.tar").read_bytes() == written.getvalue()
    assert members[-1].name == "k" * 128 + ".json"


@pytest.mark.parametrize("storage", ["float16", "int8"])
def test_records_are_read_back_from_a_shard_alone(tmp_path: Path, storage: shards.Storage) -> None:
    written = write_folder(tmp_path, (4,), storage)
    (sidecar,) = shards.read_sidecars(tmp_path, 1, PRINT)
    assert sidecar is not None
    wanted = {written[1].key, written[3].key, "another"}
    found = list(shards.read_records(tmp_path, 0, sidecar, wanted))
    for record, expected in zip(found, (written[1], written[3]), strict=True):
        assert (record.key, record.labels, record.unknown) == (
            expected.key, expected.labels, expected.unknown,
        )  # fmt: skip
        assert np.array_equal(record.local, expected.local)
        assert np.array_equal(record.embedding, expected.embedding)
    rewrite(tmp_path / "shard-000000.tar", b"junk", sidecar.local_offsets[1])
    with pytest.raises(ShardError, match="--repair"):
        list(shards.read_records(tmp_path, 0, sidecar, wanted))


def test_int8_costs_at_most_half_a_step_and_half_the_bytes(tmp_path: Path) -> None:
    random = torch.Generator().manual_seed(0)
    local = torch.randn(2, 197, 512, generator=random) * torch.logspace(-4, 3, 197)[:, None]
    values, scale = quantise(local)
    step = local.abs().amax(-1, keepdim=True) / 127
    error = (dequantise(values, scale).float() - local).abs()
    rounding = 127 * (step * 2**-10 + 2**-24)  # of the scale, and of the product, to float16
    assert (error <= 0.5 * step + rounding).all()
    assert torch.equal(dequantise(*quantise(torch.zeros(1, 2, 3))), torch.zeros(1, 2, 3).half())
    image = ImageRecord("a", 0, (), (), local[0].half().numpy(), np.ones(512, np.float32))
    images = [replace(image, key=f"image-{i}") for i in range(16)]
    plain, small = write(tmp_path, 0, images), write(tmp_path, 1, map(as_int8, images))
    assert small.bytes <= 0.53 * plain.bytes


def test_int8_features_are_read_by_offset_and_by_webdataset(tmp_path: Path) -> None:
    written = write_folder(tmp_path, storage="int8")
    reader = FeatureReader(tmp_path)
    rows = np.array([6, 0, 3])
    for local, row in zip(reader.local(rows), rows, strict=True):
        scale = written[row].scale
        assert scale is not None
        expected = written[row].local.astype(np.float32) * scale[:, None].astype(np.float32)
        assert np.array_equal(local.numpy(), expected.astype(np.float16))
    with tarfile.open(tmp_path / "shard-000000.tar") as tar:
        names = tar.getnames()
    assert names[:4] == ["image-0.npy", "image-0.scale.npy", "image-0.global.npy", "image-0.json"]


def test_hostile_members_are_never_unpacked_nor_executed(tmp_path: Path) -> None:
    """A tar with a pickle and paths that lead outside, with the checksums of a forger."""
    write_folder(tmp_path, (1,))
    path = tmp_path / "shard-000000.tar"
    marker = tmp_path / "executed"

    class Evil:
        def __reduce__(self) -> tuple[object, ...]:
            return Path.touch, (marker,)

    with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as tar:
        for name in ("../../escaped.npy", "/tmp/absolute.npy", "image-0.pyd"):
            data = pickle.dumps(Evil())
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    manifest = json.loads((tmp_path / shards.MANIFEST).read_text())
    manifest["shards"][0] |= {
        "bytes": path.stat().st_size, "sha256": shards.file_digest(path),
    }  # fmt: skip
    (tmp_path / shards.MANIFEST).write_text(json.dumps(manifest))
    with pytest.raises(ShardError, match="no array"):
        FeatureReader(tmp_path).local(np.array([0]))
    sidecar = json.loads((tmp_path / "shard-000000.json").read_text())
    sidecar |= {name: manifest["shards"][0][name] for name in ("count", "bytes", "sha256")}
    forged = shards.Sidecar.model_validate(sidecar)
    with pytest.raises(ShardError):
        list(shards.read_records(tmp_path, 0, forged, {"image-0"}))
    assert not marker.exists()
    assert {p.name for p in tmp_path.parent.iterdir()} >= {tmp_path.name}
    assert not (tmp_path.parent.parent / "escaped.npy").exists()

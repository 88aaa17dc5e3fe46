"""Feature shards: frozen local features in plain WebDataset tars, and what it takes to trust them.

One folder, on disk or in an object store, holds one split of one dataset seen by one backbone::

    shard-000000.tar     per image: <key>.npy (local features, [locations, dim], float16 or int8),
                         <key>.scale.npy (int8 only: float16 [locations]),
                         <key>.global.npy (global embedding, float32 [dim]), <key>.json
    shard-000000.json    sidecar: count, bytes, sha256, offsets, unreadable images, seconds
    text.safetensors     text features: "pairs" [2N, dim], negatives first; "classes" [N, dim]
    samples.parquet      one row an image: key, index, labels, unknown labels, shard, offsets
    failures.jsonl       one line an image that was left out, and why
    manifest.json        written last, so it means "complete"

An int8 feature stands for ``value * scale`` of its location, the scale being a 127th of the largest
magnitude there. Every file is written under a temporary name and renamed, or uploaded whole. Equal
inputs give equal tar bytes. Any WebDataset reader can stream the tars; `dclip.store.reader` maps
them into memory and reads by offset. No file is ever unpickled.
"""

import hashlib
import io
import json
import os
import re
import tarfile
import time
from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, BinaryIO, Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
from jaxtyping import Float16, Float32, Int8
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from dclip.store.paths import AnyPath, atomic_write, is_remote, remote_errors, write_text

FORMAT = 2
MANIFEST = "manifest.json"
SAMPLES = "samples.parquet"
TEXT = "text.safetensors"
FAILURES = "failures.jsonl"
Storage = Literal["float16", "int8"]
_KEY = re.compile(r"^[A-Za-z0-9_-]{1,128}$")
_BLOCK, _RECORD = 512, 10240
_REQUESTS = 16  # to an object store, at once


class ShardError(ValueError):
    """Features that are missing, damaged or foreign; the message names the file and the remedy."""


class Failure(BaseModel):
    """An image that could not be read: its name, position in the listing, and why."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    key: str
    index: int
    error: str


class Sidecar(BaseModel):
    """What one shard holds; beside the tar, with the extension json."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    format: int
    fingerprint: str
    count: int = Field(ge=0)
    bytes: int = Field(ge=0)
    sha256: str
    keys: list[str]
    indices: list[int]
    labels: list[list[int]]
    unknown: list[list[int]]
    local_offsets: list[int]
    scale_offsets: list[int]
    global_offsets: list[int]
    failures: list[Failure]
    compute: str
    seconds: dict[str, float]


def sidecar_digest(sidecar: Sidecar) -> str:
    """SHA-256 of what a sidecar says, but for the times."""
    return hashlib.sha256(sidecar.model_dump_json(exclude={"seconds"}).encode()).hexdigest()


class ShardEntry(BaseModel):
    """One shard as the manifest knows it."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str = Field(pattern=r"^shard-\d{6}\.tar$")
    count: int = Field(ge=0)
    bytes: int = Field(ge=0)
    sha256: str
    sidecar: str = Field("", description="see sidecar_digest")


class Manifest(BaseModel):
    """Contents and origin of a folder of shards.

    ``feature_space`` is the hash of everything that gives the numbers their meaning (backbone
    weights, feature kind, resolution, preprocessing): checkpoints carry it, and features of two
    spaces never meet. ``fingerprint`` adds what was read and how it is kept: dataset, split, view,
    storage, shard size. ``compute`` says on what kind of device and in which precision, and
    ``seconds`` for how long in all, summed over workers. ``root`` is where the images lay,
    ``images`` a hash of their keys and files whatever their labels are, and ``notes`` say how the
    data set was read; all three are empty in manifests of earlier versions.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    format: int
    fingerprint: str
    feature_space: str
    dataset: str
    root: str | None = None
    split: str
    class_names: list[str] = Field(min_length=1)
    num_images: int = Field(ge=0)
    kind: str
    view: int = Field(ge=0)
    storage: Storage
    locations: int = Field(ge=1)
    dim: int = Field(ge=1)
    grid: tuple[int, int]
    include_global_token: bool
    spec: dict[str, Any]
    compute: list[str]
    seconds: dict[str, float]
    shards: list[ShardEntry]
    failures: list[Failure]
    files: dict[str, str]
    commit: str | None
    images: str = ""
    notes: list[str] = []


@dataclass(frozen=True)
class ImageRecord:
    """Features and labels of one image on their way into a shard.

    Attributes:
        key: Name of the image, unique in its split.
        index: Position in the listing.
        labels: Columns of the classes that occur.
        unknown: Columns the annotations leave open.
        local: Local features.
        embedding: Global embedding.
        scale: Of int8 features, what one step is worth at each location.
    """

    key: str
    index: int
    labels: tuple[int, ...]
    unknown: tuple[int, ...]
    local: Float16[np.ndarray, "locations dim"] | Int8[np.ndarray, "locations dim"]
    embedding: Float32[np.ndarray, " dim"]
    scale: Float16[np.ndarray, " locations"] | None = None


def label_columns(labels: np.ndarray) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Columns of the positives of a label vector, and of the labels that are unknown.

    Example:
        >>> label_columns(np.array([1, 0, -1, 1]))
        ((0, 3), (2,))
    """
    return tuple((labels == 1).nonzero()[0].tolist()), tuple((labels == -1).nonzero()[0].tolist())


def digest(value: Mapping[str, Any]) -> str:
    """SHA-256 of a JSON-able mapping, independent of key order; 64 hex digits."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def file_digest(path: AnyPath) -> str:
    """SHA-256 of a file; 64 hex digits."""
    with remote_errors(path), path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def file_problem(path: AnyPath, size: int | None, sha256: str | None) -> str:
    """What is wrong with a file; empty if it is as it was written.

    Args:
        path: Where it should be.
        size: Bytes it was written with; None: not compared.
        sha256: Checksum it was written with; None: not compared, and no byte is read.

    Raises:
        OSError: It cannot be read, or its object store not be reached.
    """
    if not path.is_file():
        return "missing"
    if size is not None:
        with remote_errors(path), path.open("rb") as file:
            actual = file.seek(0, os.SEEK_END)
        if actual != size:
            return f"{actual} bytes, not {size}: truncated or replaced"
    if sha256 is not None and file_digest(path) != sha256:
        return "its checksum differs from the manifest's: changed or foreign"
    return ""


def shard_name(number: int) -> str:
    """File name of one shard."""
    return f"shard-{number:06d}.tar"


def write_shard(
    folder: AnyPath,
    number: int,
    records: Iterable[ImageRecord],
    failures: Sequence[Failure],
    *,
    fingerprint: str,
    compute: str,
    seconds: Mapping[str, float],
) -> Sidecar:
    """Write one shard and then its sidecar; equal records give equal tar bytes.

    Args:
        folder: Where it goes.
        number: Number of the shard in its folder.
        records: Images in order; written one by one as they come.
        failures: Images that were left out; read when all records have come.
        fingerprint: That of the folder.
        compute: Device and precision of the features.
        seconds: What the records cost, by part; read when all have come.

    Raises:
        ValueError: A key is not made of 1 to 128 letters, digits, ``_`` and ``-``.
        OSError: The folder cannot be written.
    """
    path = folder / shard_name(number)
    columns: dict[str, list[Any]] = {
        name: []
        for name in (
            "keys", "indices", "labels", "unknown",
            "local_offsets", "scale_offsets", "global_offsets",
        )
    }  # fmt: skip
    writing = 0.0
    with atomic_write(path) as temporary, temporary.open("wb", buffering=1 << 20) as file:
        tar = _TarWriter(file)
        for record in records:
            started = time.perf_counter()
            if not _KEY.match(record.key):
                raise ValueError(f"image key {record.key!r} must match {_KEY.pattern}")
            columns["local_offsets"].append(tar.add(f"{record.key}.npy", _npy(record.local)))
            if record.scale is not None:
                columns["scale_offsets"].append(
                    tar.add(f"{record.key}.scale.npy", _npy(record.scale))
                )
            columns["global_offsets"].append(
                tar.add(f"{record.key}.global.npy", _npy(record.embedding))
            )
            about = {
                "index": record.index,
                "labels": list(record.labels),
                "unknown": list(record.unknown),
            }
            tar.add(f"{record.key}.json", [json.dumps(about).encode()])
            columns["keys"].append(record.key)
            columns["indices"].append(record.index)
            columns["labels"].append(list(record.labels))
            columns["unknown"].append(list(record.unknown))
            writing += time.perf_counter() - started
        started = time.perf_counter()
        tar.finish()
    writing += time.perf_counter() - started  # with what syncs, renames or uploads it
    sidecar = Sidecar(
        format=FORMAT,
        fingerprint=fingerprint,
        count=len(columns["keys"]),
        bytes=tar.position,
        sha256=tar.hash.hexdigest(),
        failures=list(failures),
        compute=compute,
        seconds={name: round(value, 4) for name, value in {**seconds, "write": writing}.items()},
        **columns,
    )
    write_text(path.with_suffix(".json"), sidecar.model_dump_json())
    return sidecar


def read_sidecars(folder: AnyPath, count: int, fingerprint: str) -> list[Sidecar | None]:
    """Sidecars of the finished shards of a folder, None for each that has to be made (again).

    A shard is finished when its sidecar parses, carries this fingerprint, and the tar has the size
    the sidecar states.

    Raises:
        OSError: An object store cannot be reached.
    """
    sizes = shard_sizes(folder)

    def read(number: int) -> Sidecar | None:
        path = folder / shard_name(number)
        if path.name not in sizes:
            return None
        try:
            sidecar = Sidecar.model_validate_json(path.with_suffix(".json").read_bytes())
        except (FileNotFoundError, ValidationError):
            return None
        is_ours = sidecar.format == FORMAT and sidecar.fingerprint == fingerprint
        return sidecar if is_ours and sizes[path.name] == sidecar.bytes else None

    if not is_remote(folder):
        return [read(number) for number in range(count)]
    with ThreadPoolExecutor(_REQUESTS) as pool:
        return list(pool.map(read, range(count)))


def shard_sizes(folder: AnyPath) -> dict[str, int]:
    """Bytes of each tar in a folder, by name; none if there is no such folder.

    Raises:
        OSError: An object store cannot be reached.
    """
    if isinstance(folder, Path):
        if not folder.is_dir():
            return {}
        with os.scandir(folder) as entries:
            return {e.name: e.stat().st_size for e in entries if e.name.endswith(".tar")}
    return {name: size for name, size in folder.sizes().items() if name.endswith(".tar")}


def write_samples(path: AnyPath, sidecars: Sequence[Sidecar]) -> None:
    """Write the Parquet table of all images: key, index, labels, unknown, shard, offsets."""
    columns = pa.list_(pa.int32())

    def offsets(name: str) -> pa.Array:
        return pa.array([o for s in sidecars for o in getattr(s, f"{name}_offsets")], pa.int64())

    table = {
        "key": pa.array([key for s in sidecars for key in s.keys], pa.string()),
        "index": pa.array([index for s in sidecars for index in s.indices], pa.int64()),
        "labels": pa.array([row for s in sidecars for row in s.labels], columns),
        "unknown": pa.array([row for s in sidecars for row in s.unknown], columns),
        "shard": pa.array(
            [number for number, s in enumerate(sidecars) for _ in s.keys], pa.int32()
        ),
        "local_offset": offsets("local"),
        "global_offset": offsets("global"),
    }
    scales = offsets("scale")
    if len(scales):
        table["scale_offset"] = scales
    with atomic_write(path) as temporary:
        pq.write_table(pa.table(table), temporary, compression="zstd")


def read_manifest(folder: AnyPath) -> Manifest:
    """Manifest of a complete folder of shards.

    Raises:
        ShardError: The folder holds none, or one that does not parse.
        OSError: An object store cannot be reached.
    """
    path = folder / MANIFEST
    try:
        manifest = Manifest.model_validate_json(path.read_bytes())
    except FileNotFoundError:
        raise ShardError(
            f"no features at {folder} ({MANIFEST} is missing); run python -m pipeline.extract first"
        ) from None
    except ValidationError as error:
        stated = _stated_format(path)
        if stated not in (None, FORMAT):
            raise ShardError(
                f"{path} has format {stated}, this version reads {FORMAT}; extract again"
            ) from None
        reason = str(error).splitlines()[0]
        raise ShardError(
            f"{path} is not a manifest ({reason}); move {folder} away and extract again"
        ) from None
    if manifest.format != FORMAT:
        raise ShardError(
            f"{path} has format {manifest.format}, this version reads {FORMAT}; extract again"
        )
    return manifest


def _stated_format(path: AnyPath) -> Any:
    try:
        content = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError):
        return None
    return content.get("format") if isinstance(content, dict) else None


def read_records(
    folder: AnyPath, number: int, sidecar: Sidecar, keys: Container[str]
) -> Iterator[ImageRecord]:
    """Images of a finished shard as they were written, those of some keys.

    Raises:
        ShardError: The shard does not hold the arrays its sidecar speaks of.
    """
    path = folder / shard_name(number)

    def array(file: Any, offset: int) -> npt.NDArray[Any]:
        file.seek(offset)
        return np.lib.format.read_array(file, allow_pickle=False)

    with remote_errors(path), path.open("rb") as file:
        for position, key in enumerate(sidecar.keys):
            if key not in keys:
                continue
            try:
                scale = (
                    array(file, sidecar.scale_offsets[position]) if sidecar.scale_offsets else None
                )
                yield ImageRecord(
                    key,
                    sidecar.indices[position],
                    tuple(sidecar.labels[position]),
                    tuple(sidecar.unknown[position]),
                    array(file, sidecar.local_offsets[position]),
                    array(file, sidecar.global_offsets[position]),
                    scale,
                )
            except (ValueError, LookupError) as error:
                raise ShardError(
                    f"{path} does not hold {key!r} ({error}); run python -m pipeline.extract"
                    " --repair"
                ) from None


def check_shard(folder: AnyPath, number: int, sidecar: Sidecar | None) -> str:
    """What is wrong with a shard, every byte of which is read; empty if it is as it was written.

    Args:
        folder: Where it lies.
        number: Its number.
        sidecar: From :func:`read_sidecars`.
    """
    path = folder / shard_name(number)
    if sidecar is None:
        return "cut short, or its sidecar is damaged" if path.is_file() else "missing"
    return file_problem(path, sidecar.bytes, sidecar.sha256)


class _TarWriter:
    """Appends members to a tar and hashes it on the way; the bytes are those of `tarfile`."""

    def __init__(self, file: BinaryIO) -> None:
        self._file, self.position, self.hash = file, 0, hashlib.sha256()

    def add(self, name: str, parts: Sequence[Any]) -> int:
        """Append a member made of some buffers; the offset of its data."""
        size = sum(len(part) for part in parts)
        self._write(_tar_header(name, size))
        start = self.position
        for part in parts:
            self._write(part)
        self._write(bytes(-size % _BLOCK))
        return start

    def finish(self) -> None:
        """Write the end mark."""
        end = self.position + 2 * _BLOCK
        self._write(bytes(2 * _BLOCK + -end % _RECORD))

    def _write(self, data: Any) -> None:
        self._file.write(data)
        self.hash.update(data)
        self.position += len(data)


def _tar_header(name: str, size: int) -> bytes:
    """Header of a member with mode 0444 and time 0, as `tarfile` makes it but quicker."""
    if len(name) > tarfile.LENGTH_NAME:
        member = tarfile.TarInfo(name)
        member.size, member.mode = size, 0o444
        return member.tobuf(tarfile.GNU_FORMAT)
    before, after, total = _tar_template(size)
    text = name.encode("ascii")
    checksum = b"%06o\0 " % (total + sum(text))
    return b"".join((text.ljust(tarfile.LENGTH_NAME, b"\0"), before, checksum, after))


@cache
def _tar_template(size: int) -> tuple[bytes, bytes, int]:
    """A header without name and checksum, and the sum of its bytes with a blank checksum."""
    member = tarfile.TarInfo("")
    member.size, member.mode = size, 0o444
    header = member.tobuf(tarfile.USTAR_FORMAT)
    start = 148  # of the eight bytes of the checksum
    before, after = header[tarfile.LENGTH_NAME : start], header[start + 8 :]
    return before, after, sum(before) + sum(after) + 8 * ord(" ")


def _npy(array: npt.NDArray[Any]) -> list[Any]:
    """Header and content of an array as a ``.npy`` file has them."""
    header = npy_header(array.shape, array.dtype)
    return [header, np.ascontiguousarray(array).reshape(-1).view(np.uint8).data]


@cache
def npy_header(shape: tuple[int, ...], dtype: np.dtype[Any]) -> bytes:
    """What comes before the content of an array in a ``.npy`` file."""
    buffer = io.BytesIO()
    header = {"descr": dtype.str, "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(buffer, header)
    return buffer.getvalue()

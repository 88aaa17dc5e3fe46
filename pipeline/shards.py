"""Feature shards: frozen local features in plain WebDataset tars, and what it takes to trust them.

One folder holds one split of one dataset seen by one backbone::

    shard-000000.tar     per image: <key>.npy (local features, float16 [locations, dim]),
                         <key>.global.npy (global embedding, float32 [dim]), <key>.json
    shard-000000.json    sidecar: count, bytes, sha256, offsets, unreadable images, seconds
    text.safetensors     text features: "pairs" [2N, dim], negatives first; "classes" [N, dim]
    samples.parquet      one row an image: key, index, labels, unknown labels, shard, offsets
    manifest.json        written last, so it means "complete"

Every file is written under a temporary name and renamed. Equal inputs give equal tar bytes. Any
WebDataset reader can stream the tars; :class:`FeatureReader` maps them into memory and reads by
offset. No file is ever unpickled.
"""

import hashlib
import io
import json
import os
import re
import tarfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
import safetensors
import safetensors.torch
import torch
from jaxtyping import Float16, Float32, Int64
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from torch import Tensor

from pipeline.errors import StageError

FORMAT = 1
MANIFEST = "manifest.json"
SAMPLES = "samples.parquet"
TEXT = "text.safetensors"
_KEY = re.compile(r"^[A-Za-z0-9_-]{1,128}$")
_BLOCK = 512


class Failure(BaseModel):
    """An image that could not be read, and why."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    key: str
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
    global_offsets: list[int]
    failures: list[Failure]
    seconds: dict[str, float]


class ShardEntry(BaseModel):
    """One shard as the manifest knows it."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str = Field(pattern=r"^shard-\d{6}\.tar$")
    count: int = Field(ge=0)
    bytes: int = Field(ge=0)
    sha256: str


class Manifest(BaseModel):
    """Contents and origin of a folder of shards.

    ``feature_space`` is the hash of everything that gives the numbers their meaning (backbone
    weights, feature kind, resolution, preprocessing, dtype): checkpoints carry it, and features of
    two spaces never meet. ``fingerprint`` adds what was read: dataset, split, shard size.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    format: int
    fingerprint: str
    feature_space: str
    dataset: str
    split: str
    class_names: list[str] = Field(min_length=1)
    num_images: int = Field(ge=0)
    kind: str
    dtype: str
    locations: int = Field(ge=1)
    dim: int = Field(ge=1)
    grid: tuple[int, int]
    include_global_token: bool
    spec: dict[str, Any]
    shards: list[ShardEntry]
    failures: list[Failure]
    files: dict[str, str]
    commit: str | None


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
    """

    key: str
    index: int
    labels: tuple[int, ...]
    unknown: tuple[int, ...]
    local: Float16[np.ndarray, "locations dim"]
    embedding: Float32[np.ndarray, " dim"]


def digest(value: Mapping[str, Any]) -> str:
    """SHA-256 of a JSON-able mapping, independent of key order; 64 hex digits."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def file_digest(path: Path) -> str:
    """SHA-256 of a file; 64 hex digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextmanager
def atomic_write(path: Path) -> Iterator[Path]:
    """Temporary path beside ``path`` that takes its name when the block ends without an error."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        yield temporary
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write a text file so that it is either whole or absent."""
    with atomic_write(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def shard_name(number: int) -> str:
    """File name of one shard."""
    return f"shard-{number:06d}.tar"


def write_shard(
    folder: Path,
    number: int,
    records: Sequence[ImageRecord],
    failures: Sequence[Failure],
    *,
    fingerprint: str,
    seconds: Mapping[str, float],
) -> Sidecar:
    """Write one shard and then its sidecar; equal records give equal tar bytes.

    Raises:
        ValueError: A key is not made of 1 to 128 letters, digits, ``_`` and ``-``.
    """
    path = folder / shard_name(number)
    local_offsets, global_offsets = [], []
    with atomic_write(path) as temporary:
        with tarfile.open(temporary, "w", format=tarfile.USTAR_FORMAT) as tar:
            for record in records:
                if not _KEY.match(record.key):
                    raise ValueError(f"image key {record.key!r} must match {_KEY.pattern}")
                local_offsets.append(_add(tar, f"{record.key}.npy", _npy(record.local)))
                global_offsets.append(_add(tar, f"{record.key}.global.npy", _npy(record.embedding)))
                about = {
                    "index": record.index,
                    "labels": list(record.labels),
                    "unknown": list(record.unknown),
                }
                _add(tar, f"{record.key}.json", json.dumps(about).encode())
        size, sha256 = temporary.stat().st_size, file_digest(temporary)
    sidecar = Sidecar(
        format=FORMAT,
        fingerprint=fingerprint,
        count=len(records),
        bytes=size,
        sha256=sha256,
        keys=[record.key for record in records],
        indices=[record.index for record in records],
        labels=[list(record.labels) for record in records],
        unknown=[list(record.unknown) for record in records],
        local_offsets=local_offsets,
        global_offsets=global_offsets,
        failures=list(failures),
        seconds={name: round(value, 4) for name, value in seconds.items()},
    )
    write_text(path.with_suffix(".json"), sidecar.model_dump_json())
    return sidecar


def read_sidecar(folder: Path, number: int, fingerprint: str) -> Sidecar | None:
    """Sidecar of a finished shard, or None if the shard has to be made (again).

    A shard is finished when its sidecar parses, carries this fingerprint, and the tar has the size
    the sidecar states.
    """
    path = folder / shard_name(number)
    try:
        sidecar = Sidecar.model_validate_json(path.with_suffix(".json").read_bytes())
        size = path.stat().st_size
    except (OSError, ValidationError):
        return None
    finished = sidecar.format == FORMAT and sidecar.fingerprint == fingerprint
    return sidecar if finished and size == sidecar.bytes else None


def write_samples(path: Path, sidecars: Sequence[Sidecar]) -> None:
    """Write the Parquet table of all images: key, index, labels, unknown, shard, offsets."""
    columns = pa.list_(pa.int32())
    table = pa.table(
        {
            "key": pa.array([key for s in sidecars for key in s.keys], pa.string()),
            "index": pa.array([index for s in sidecars for index in s.indices], pa.int64()),
            "labels": pa.array([row for s in sidecars for row in s.labels], columns),
            "unknown": pa.array([row for s in sidecars for row in s.unknown], columns),
            "shard": pa.array(
                [number for number, s in enumerate(sidecars) for _ in s.keys], pa.int32()
            ),
            "local_offset": pa.array([o for s in sidecars for o in s.local_offsets], pa.int64()),
            "global_offset": pa.array([o for s in sidecars for o in s.global_offsets], pa.int64()),
        }
    )
    with atomic_write(path) as temporary:
        pq.write_table(table, temporary, compression="zstd")


def write_text_features(
    path: Path,
    pairs: Float32[Tensor, "pairs dim"],
    classes: Float32[Tensor, "classes dim"],
    about: Mapping[str, Any],
) -> None:
    """Write the text features of all classes; ``about`` (class names, templates) as metadata."""
    with atomic_write(path) as temporary:
        safetensors.torch.save_file(
            {"pairs": pairs.contiguous(), "classes": classes.contiguous()},
            temporary,
            metadata={"about": json.dumps(about, sort_keys=True)},
        )


def read_manifest(folder: Path) -> Manifest:
    """Manifest of a complete folder of shards.

    Raises:
        StageError: The folder holds none, or one that does not parse.
    """
    path = folder / MANIFEST
    try:
        manifest = Manifest.model_validate_json(path.read_bytes())
    except FileNotFoundError:
        raise StageError(
            f"no features at {folder} ({MANIFEST} is missing); run python -m pipeline.extract first"
        ) from None
    except (OSError, ValidationError) as error:
        reason = str(error).splitlines()[0]
        raise StageError(
            f"{path} is not a manifest ({reason}); move {folder} away and extract again"
        ) from None
    if manifest.format != FORMAT:
        raise StageError(
            f"{path} has format {manifest.format}, this version reads {FORMAT}; extract again"
        )
    return manifest


class FeatureReader:
    """Random access to the features of one folder of shards.

    Tars are mapped into memory, so that reading costs a copy and the page cache is shared by all
    processes of a machine.

    Args:
        folder: Folder written by ``pipeline.extract``.
        verify: Compare the SHA-256 of every file with the manifest (about 2 GB/s).

    Raises:
        StageError: A file is missing, truncated, changed, or belongs to other features.
    """

    def __init__(self, folder: Path, *, verify: bool = True) -> None:
        self.folder = folder
        self.manifest = read_manifest(folder)
        entries = [*((e.name, e.bytes, e.sha256) for e in self.manifest.shards)]
        for name, size, sha256 in entries:
            self._check(name, size, sha256 if verify else None)
        for name, sha256 in self.manifest.files.items():
            self._check(name, None, sha256)
        table = pq.ParquetFile(folder / SAMPLES).read()  # read_table imports pandas: 2 s a process
        if table.num_rows != self.manifest.num_images:
            raise self._bad(SAMPLES, f"{table.num_rows} rows, not {self.manifest.num_images}")
        self.keys: list[str] = table["key"].to_pylist()
        self.indices: npt.NDArray[np.int64] = np.array(table["index"].to_pylist(), np.int64)
        self._shards: npt.NDArray[np.int32] = np.array(table["shard"].to_pylist(), np.int32)
        self._local: npt.NDArray[np.int64] = np.array(table["local_offset"].to_pylist(), np.int64)
        self._global: npt.NDArray[np.int64] = np.array(table["global_offset"].to_pylist(), np.int64)
        self.labels = torch.zeros(len(self), len(self.manifest.class_names), dtype=torch.int8)
        for value, column in ((1, "labels"), (-1, "unknown")):
            for row, marked in enumerate(table[column].to_pylist()):
                self.labels[row, marked] = value
        self._maps: dict[int, npt.NDArray[np.uint8]] = {}

    def __len__(self) -> int:
        return self.manifest.num_images

    @property
    def class_names(self) -> tuple[str, ...]:
        """Class names in the column order of ``labels``."""
        return tuple(self.manifest.class_names)

    def local(self, rows: Int64[np.ndarray, " images"]) -> Float16[Tensor, "images locations dim"]:
        """Local features of some images, by row of the samples table, in the order given."""
        shape = (self.manifest.locations, self.manifest.dim)
        out = np.empty((len(rows), *shape), np.float16)
        self._fill(out, rows, self._local)
        return torch.from_numpy(out)

    def embeddings(self) -> Float32[Tensor, "images dim"]:
        """Global embeddings of all images."""
        out = np.empty((len(self), self.manifest.dim), np.float32)
        self._fill(out, np.arange(len(self)), self._global)
        return torch.from_numpy(out)

    def text_features(self) -> tuple[Float32[Tensor, "pairs dim"], Float32[Tensor, "classes dim"]]:
        """Prompt-pair features, negatives first, and normalised class features."""
        tensors = safetensors.torch.load_file(self.folder / TEXT)
        return tensors["pairs"], tensors["classes"]

    def _fill(
        self,
        out: npt.NDArray[Any],
        rows: Int64[np.ndarray, " images"],
        offsets: Int64[np.ndarray, " all"],
    ) -> None:
        header = _npy_header(out.shape[1:], out.dtype)
        flat = out.reshape(len(rows), -1).view(np.uint8)
        for target, row in zip(flat, rows, strict=True):
            data = self._map(int(self._shards[row]))
            start = int(offsets[row])
            if data[start : start + len(header)].tobytes() != header:
                name = self.manifest.shards[int(self._shards[row])].name
                raise self._bad(name, f"no array of {out.shape[1:]} at offset {start}")
            start += len(header)
            target[:] = data[start : start + len(target)]

    def _map(self, shard: int) -> npt.NDArray[np.uint8]:
        if shard not in self._maps:
            path = self.folder / self.manifest.shards[shard].name
            self._maps[shard] = np.memmap(path, np.uint8, mode="r")
        return self._maps[shard]

    def _check(self, name: str, size: int | None, sha256: str | None) -> None:
        path = self.folder / name
        if Path(name).name != name:
            raise self._bad(name, "not a plain file name")
        if not path.is_file():
            raise self._bad(name, "missing")
        actual = path.stat().st_size
        if size is not None and actual != size:
            raise self._bad(name, f"{actual} bytes, not {size}: truncated or replaced")
        if sha256 is not None and file_digest(path) != sha256:
            raise self._bad(name, "its checksum differs from the manifest's: changed or foreign")

    def _bad(self, name: str, why: str) -> StageError:
        return StageError(
            f"{self.folder / name}: {why}; "
            "delete that file and run python -m pipeline.extract again"
        )


def _npy(array: npt.NDArray[Any]) -> bytes:
    buffer = io.BytesIO()
    np.lib.format.write_array(buffer, np.ascontiguousarray(array), version=(1, 0))
    return buffer.getvalue()


def _npy_header(shape: tuple[int, ...], dtype: np.dtype[Any]) -> bytes:
    buffer = io.BytesIO()
    header = {"descr": dtype.str, "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(buffer, header)
    return buffer.getvalue()


def _add(tar: tarfile.TarFile, name: str, data: bytes) -> int:
    """Append a member and return the offset of its data."""
    member = tarfile.TarInfo(name)
    member.size, member.mode, member.mtime = len(data), 0o444, 0
    start = tar.offset + _BLOCK
    tar.addfile(member, io.BytesIO(data))
    return start

"""Features out of their shards: by offset, in any order, at the speed of a copy."""

import json
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
import safetensors.torch
import torch
from jaxtyping import Float16, Float32, Int8, Int64
from torch import Tensor

from dclip.store.paths import AnyPath, atomic_write
from dclip.store.shards import SAMPLES, TEXT, ShardError, file_problem, npy_header, read_manifest
from dclip.store.verified import Verified, settled_state


def quantise(
    local: Float32[Tensor, "images locations dim"],
) -> tuple[Int8[Tensor, "images locations dim"], Float16[Tensor, "images locations"]]:
    """Local features as int8, with one scale a location.

    The scale is a 127th of the largest magnitude of its location, so that the error of a value is
    at most half a scale, and what float16 rounds off the scale.

    Example:
        >>> values, scale = quantise(torch.tensor([[[1.0, -127.0, 0.4]]]))
        >>> values.tolist(), scale.tolist()
        ([[[1, -127, 0]]], [[1.0]])
    """
    scale = (local.abs().amax(-1) / 127).half()
    steps = local / scale.float().clamp_min(2**-24).unsqueeze(-1)
    return steps.round().clamp(-127, 127).to(torch.int8), scale


def dequantise(
    values: Int8[Tensor, "images locations dim"], scale: Float16[Tensor, "images locations"]
) -> Float16[Tensor, "images locations dim"]:
    """Local features from int8 and the scales of their locations."""
    return (values.float() * scale.float().unsqueeze(-1)).half()


def write_text_features(
    path: AnyPath,
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


class FeatureReader:
    """Random access to the features of one local folder of shards.

    Tars are mapped into memory, so that reading costs a copy and the page cache is shared by all
    processes of a machine.

    Args:
        folder: Folder written by ``pipeline.extract``.
        views: Folders of augmented views of the same images.
        verify: Compare the SHA-256 of every shard with the manifest (about 2 GB/s). Small files
            are compared in any case.
        records: Folder that keeps what was compared (see `dclip.store.verified`): a shard that was
            found sound within a day and was not touched since is not read again. Left out: every
            shard is read.

    Raises:
        ShardError: A file is missing, truncated, changed, or belongs to other features.
    """

    def __init__(
        self,
        folder: Path,
        *,
        views: Sequence[Path] = (),
        verify: bool = True,
        records: Path | None = None,
    ) -> None:
        self.folder = folder
        self.manifest = read_manifest(folder)
        self._check_shards(verify, records)
        for name, sha256 in self.manifest.files.items():
            self._check(name, None, sha256)
        table = self._samples()
        self._keys = table["key"]
        self.indices = self._integers(table, "index")
        self._shards = self._integers(table, "shard", below=len(self.manifest.shards))
        self._local = self._integers(table, "local_offset")
        self._global = self._integers(table, "global_offset")
        self._scale: npt.NDArray[np.int64] | None = None
        if self.manifest.storage == "int8":
            self._scale = self._integers(table, "scale_offset")
        self.labels = self._labels(table)
        self._maps: dict[int, tuple[npt.NDArray[np.uint8], memoryview]] = {}
        self._views = [FeatureReader(view, verify=verify, records=records) for view in views]
        for view in self._views:
            ours, theirs = self.manifest, view.manifest
            if not view._keys.equals(self._keys) or ours.feature_space != theirs.feature_space:
                raise ShardError(
                    f"{view.folder} is no view of the images of {folder}: other images or another "
                    "backbone. If images could be read in one and not in the other, run python -m "
                    "pipeline.extract --retry-failed"
                )

    def __len__(self) -> int:
        return self.manifest.num_images

    @cached_property
    def keys(self) -> list[str]:
        """Names of the images, in the order of the rows."""
        keys: list[str] = self._keys.to_pylist()
        return keys

    @property
    def class_names(self) -> tuple[str, ...]:
        """Class names in the column order of ``labels``."""
        return tuple(self.manifest.class_names)

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of the locations."""
        return self.manifest.grid

    @property
    def views(self) -> int:
        """Number of views of every image, the clean one included."""
        return 1 + len(self._views)

    def local(
        self,
        rows: Int64[np.ndarray, " images"],
        views: Int64[np.ndarray, " images"] | None = None,
    ) -> Float16[Tensor, "images locations dim"]:
        """Local features of some images, in the order given.

        Args:
            rows: Of the samples table.
            views: View of each; left out: the clean one, 0.
        """
        if views is not None:
            shape = (len(rows), self.manifest.locations, self.manifest.dim)
            out = torch.empty(shape, dtype=torch.float16)
            for view in np.unique(views):
                source = self._views[view - 1] if view else self
                out[views == view] = source.local(rows[views == view])
            return out
        values, scale = self.stored(rows)
        return values if scale is None else dequantise(values, scale)

    def stored(
        self, rows: Int64[np.ndarray, " images"]
    ) -> tuple[Tensor, Float16[Tensor, "images locations"] | None]:
        """Local features as they are kept: float16 and None, or int8 and the scales."""
        shape = (self.manifest.locations, self.manifest.dim)
        values = np.empty((len(rows), *shape), self.manifest.storage)
        self._fill(values, rows, self._local)
        if self._scale is None:
            return torch.from_numpy(values), None
        scale = np.empty((len(rows), self.manifest.locations), np.float16)
        self._fill(scale, rows, self._scale)
        return torch.from_numpy(values), torch.from_numpy(scale)

    def embeddings(
        self, rows: Int64[np.ndarray, " images"] | None = None
    ) -> Float32[Tensor, "images dim"]:
        """Global embeddings of some images, or of all."""
        rows = np.arange(len(self)) if rows is None else rows
        out = np.empty((len(rows), self.manifest.dim), np.float32)
        self._fill(out, rows, self._global)
        return torch.from_numpy(out)

    def text_features(self) -> tuple[Float32[Tensor, "pairs dim"], Float32[Tensor, "classes dim"]]:
        """Prompt-pair features, negatives first, and normalised class features.

        Raises:
            ShardError: They are not those of the manifest's classes.
        """
        with safetensors.safe_open(self.folder / TEXT, "pt") as file:
            about = json.loads((file.metadata() or {}).get("about", "{}"))
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        if about.get("class_names") != list(self.manifest.class_names):
            raise self._bad(TEXT, "is of other classes, or of another order, than the manifest")
        classes, dim = len(self.manifest.class_names), self.manifest.dim
        wanted = {"pairs": (2 * classes, dim), "classes": (classes, dim)}
        found = {name: tuple(value.shape) for name, value in tensors.items()}
        if found != wanted:
            raise self._bad(TEXT, f"holds {found}, {classes} classes need {wanted}")
        return tensors["pairs"], tensors["classes"]

    def _fill(
        self,
        out: npt.NDArray[Any],
        rows: Int64[np.ndarray, " images"],
        offsets: npt.NDArray[np.int64],
    ) -> None:
        if len(rows) == 0:  # the share of a worker in a batch of fewer images than workers
            return
        header = npy_header(out.shape[1:], out.dtype)
        flat = out.reshape(len(rows), -1).view(np.uint8)
        places = zip(self._shards[rows].tolist(), offsets[rows].tolist(), strict=True)
        for number, (shard, start) in enumerate(places):
            data, head = self._maps.get(shard) or self._map(shard)
            first = start + len(header)
            if head[start:first] != header:
                name = self.manifest.shards[shard].name
                raise self._bad(name, f"no array of {out.shape[1:]} at offset {start}")
            flat[number] = data[first : first + flat.shape[1]]  # without the interpreter's lock

    def _map(self, shard: int) -> tuple[npt.NDArray[np.uint8], memoryview]:
        path = self.folder / self.manifest.shards[shard].name
        data: npt.NDArray[np.uint8] = np.memmap(path, np.uint8, mode="r").view(np.ndarray)
        self._maps[shard] = data, data.data
        return self._maps[shard]

    def _samples(self) -> pa.Table:
        """The samples table, with one row an image and all columns of the types they must have."""
        try:
            # read_table and to_numpy would import pandas: 2 s a process
            with pq.ParquetFile(self.folder / SAMPLES) as file:
                table = file.read().combine_chunks()
        except (OSError, pa.ArrowException) as error:
            raise self._bad(SAMPLES, f"not readable ({str(error).splitlines()[0]})") from None
        if table.num_rows != self.manifest.num_images:
            raise self._bad(SAMPLES, f"{table.num_rows} rows, not {self.manifest.num_images}")
        offsets = ["local_offset", "global_offset"]
        if self.manifest.storage == "int8":
            offsets.append("scale_offset")
        wanted = {
            "key": pa.string(),
            **dict.fromkeys(("index", "shard", *offsets), pa.int64()),
            **dict.fromkeys(("labels", "unknown"), pa.list_(pa.int64())),
        }
        columns = {}
        for name, kind in wanted.items():
            try:
                columns[name] = table[name].cast(kind)
            except (KeyError, pa.ArrowException):
                raise self._bad(SAMPLES, f"no column {name} of type {kind}") from None
            if columns[name].null_count:
                raise self._bad(SAMPLES, f"its column {name} has gaps")
        return pa.table(columns)

    def _integers(
        self, table: pa.Table, column: str, *, below: int | None = None
    ) -> npt.NDArray[np.int64]:
        """A column of numbers from 0 on."""
        values: npt.NDArray[np.int64] = np.array(
            np.from_dlpack(table[column].combine_chunks()), np.int64
        )
        wrong = (values < 0) | (values >= below) if below is not None else values < 0
        if wrong.any():
            row = int(wrong.argmax())
            raise self._bad(SAMPLES, f"{self._keys[row]} has the {column} {values[row]}")
        return values

    def _labels(self, table: pa.Table) -> Int8[Tensor, "images classes"]:
        """Label vectors: 1 positive, 0 negative, -1 unknown."""
        classes = len(self.manifest.class_names)
        labels = np.zeros((len(self), classes), np.int8)
        for value, column in ((1, "labels"), (-1, "unknown")):
            lists = table[column].combine_chunks()
            counts = np.diff(np.from_dlpack(lists.offsets))
            rows = np.repeat(np.arange(len(self)), counts)
            marked = lists.flatten()
            if marked.null_count:
                raise self._bad(SAMPLES, f"its column {column} has gaps")
            places = np.from_dlpack(marked)
            beyond = (places < 0) | (places >= classes)
            if beyond.any():
                key = self._keys[int(rows[beyond.argmax()])]
                raise self._bad(SAMPLES, f"{key} has labels beyond the {classes} classes")
            labels[rows, places] = value
        return torch.from_numpy(labels)

    def _check_shards(self, verify: bool, records: Path | None) -> None:
        """Compare sizes, and the checksums of those not known to be sound."""
        seen = Verified(records, self.folder, self.manifest) if verify and records else None
        is_news = False
        for entry in self.manifest.shards:
            if not verify or (seen is not None and seen.holds(entry)):
                self._check(entry.name, entry.bytes, None)
                continue
            before = settled_state(self.folder / entry.name) if seen is not None else None
            self._check(entry.name, entry.bytes, entry.sha256)
            if seen is not None:
                seen.add(entry, before)
                is_news = True
        if seen is not None and is_news:
            seen.write()

    def _check(self, name: str, size: int | None, sha256: str | None) -> None:
        if Path(name).name != name:
            raise self._bad(name, "not a plain file name")
        problem = file_problem(self.folder / name, size, sha256)
        if problem:
            raise self._bad(name, problem)

    def _bad(self, name: str, why: str) -> ShardError:
        return ShardError(
            f"{self.folder / name}: {why}; run python -m pipeline.extract --repair to make it again"
        )

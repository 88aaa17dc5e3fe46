"""Which shards are read again by whom, counted in files that are hashed."""

import json
import os
import shutil
import threading
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from dclip.store import shards, verified
from dclip.store.reader import FeatureReader
from dclip.store.shards import ShardError

from .test_shards import rewrite, write_folder

FIRST, SECOND = "shard-000000.tar", "shard-000001.tar"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_folder(tmp_path / "features")
    return tmp_path / "features"


@pytest.fixture
def records(tmp_path: Path) -> Path:
    return tmp_path / "verified"


def opened(folder: Path, records: Path | None, hashed: list[str]) -> list[str]:
    """Shards that one opening reads whole."""
    hashed.clear()
    FeatureReader(folder, records=records)
    return sorted(hashed)


def change(records: Path, **values: object) -> None:
    """Put other values into what is kept of the first shard."""
    (path,) = records.glob("*.json")
    content = json.loads(path.read_text())
    content["shards"][FIRST] |= values
    path.write_text(json.dumps(content))


def test_what_was_verified_is_not_read_again(
    folder: Path, records: Path, hashed: list[str]
) -> None:
    assert opened(folder, records, hashed) == [FIRST, SECOND]
    assert opened(folder, records, hashed) == []
    assert not list(folder.glob("*verified*"))


def test_without_a_place_for_records_every_shard_is_read(folder: Path, hashed: list[str]) -> None:
    assert opened(folder, None, hashed) == opened(folder, None, hashed) == [FIRST, SECOND]


def test_an_unverified_reader_vouches_for_nothing(
    folder: Path, records: Path, hashed: list[str]
) -> None:
    FeatureReader(folder, verify=False, records=records)
    assert not records.exists()
    assert opened(folder, records, hashed) == [FIRST, SECOND]


def rewrite_keeping_its_time(path: Path) -> None:
    before = path.stat()
    rewrite(path, b"\1\2", 700)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def replace_keeping_its_time(path: Path) -> None:
    other = path.with_name("other")
    shutil.copy2(path, other)
    rewrite_keeping_its_time(other)
    other.replace(path)


@pytest.mark.parametrize(
    "damage",
    [
        lambda path: rewrite(path, b"\1\2", 700),
        rewrite_keeping_its_time,
        replace_keeping_its_time,
    ],
    ids=["written to", "and its time put back", "replaced by a file of the same size and time"],
)
def test_a_shard_that_was_touched_is_read_again_alone_and_its_damage_found(
    folder: Path, records: Path, hashed: list[str], damage: Callable[[Path], None]
) -> None:
    opened(folder, records, hashed)
    damage(folder / SECOND)
    for _ in range(2):
        with pytest.raises(ShardError, match=f"{SECOND}: its checksum differs"):
            opened(folder, records, hashed)
        assert hashed == [SECOND]


def test_a_shard_that_is_cut_short_or_gone_is_found(folder: Path, records: Path) -> None:
    FeatureReader(folder, records=records)
    os.truncate(folder / SECOND, 1024)
    with pytest.raises(ShardError, match="truncated"):
        FeatureReader(folder, records=records)
    (folder / SECOND).unlink()
    with pytest.raises(ShardError, match="missing"):
        FeatureReader(folder, records=records)


def test_a_touched_shard_that_is_sound_is_read_once(
    folder: Path, records: Path, hashed: list[str]
) -> None:
    opened(folder, records, hashed)
    (folder / FIRST).touch()
    assert opened(folder, records, hashed) == [FIRST]
    assert opened(folder, records, hashed) == []


def test_nothing_is_trusted_across_a_change_of_the_manifest(
    folder: Path, records: Path, hashed: list[str]
) -> None:
    opened(folder, records, hashed)
    path = folder / shards.MANIFEST
    manifest = json.loads(path.read_text())
    path.write_text(json.dumps(manifest, indent=2))  # says the same
    assert opened(folder, records, hashed) == []
    path.write_text(json.dumps({**manifest, "commit": "another"}))
    assert opened(folder, records, hashed) == [FIRST, SECOND]
    manifest["shards"][0]["sha256"] = "0" * 64
    path.write_text(json.dumps(manifest))
    with pytest.raises(ShardError, match=f"{FIRST}: its checksum differs"):
        opened(folder, records, hashed)


@pytest.mark.parametrize(
    "hours", [25, -1], ids=["a day ago", "by a clock that was ahead of this one"]
)
def test_shards_are_read_again_after_a_day(
    folder: Path, records: Path, hashed: list[str], hours: int
) -> None:
    opened(folder, records, hashed)
    change(records, checked=time.time() - 3600 * hours)
    assert opened(folder, records, hashed) == [FIRST]
    assert opened(folder, records, hashed) == []


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "[]",
        "null",
        '{"shards": {}}',
        "[" * 100_000,
        '{"folder": 1, "manifest": "", "shards": []}',
    ],
)
def test_a_record_that_cannot_be_used_is_made_anew(
    folder: Path, records: Path, hashed: list[str], text: str
) -> None:
    opened(folder, records, hashed)
    (path,) = records.glob("*.json")
    path.write_text(text)
    assert opened(folder, records, hashed) == [FIRST, SECOND]
    assert opened(folder, records, hashed) == []


def test_a_record_of_other_bytes_does_not_count(
    folder: Path, records: Path, hashed: list[str]
) -> None:
    opened(folder, records, hashed)
    change(records, sha256="0" * 64)
    assert opened(folder, records, hashed) == [FIRST]


def test_a_copy_or_another_folder_in_the_same_place_is_read(
    folder: Path, records: Path, hashed: list[str], tmp_path: Path
) -> None:
    opened(folder, records, hashed)
    shutil.copytree(folder, tmp_path / "copy")
    assert opened(tmp_path / "copy", records, hashed) == [FIRST, SECOND]
    folder.rename(tmp_path / "away")
    (tmp_path / "copy").rename(folder)
    assert opened(folder, records, hashed) == [FIRST, SECOND]


def test_each_view_is_known_by_itself(
    folder: Path, records: Path, hashed: list[str], tmp_path: Path
) -> None:
    view = tmp_path / "view"
    shutil.copytree(folder, view)
    FeatureReader(folder, views=[view], records=records)
    hashed.clear()
    rewrite(view / FIRST, b"\1\2", 700)
    with pytest.raises(ShardError, match=f"view/{FIRST}"):
        FeatureReader(folder, views=[view], records=records)
    assert hashed == [FIRST]


def test_where_no_record_can_be_written_all_is_read_and_said(
    folder: Path, records: Path, hashed: list[str], caplog: pytest.LogCaptureFixture
) -> None:
    records.write_text("a file where the folder should be")
    for _ in range(2):
        caplog.clear()
        assert opened(folder, records, hashed) == [FIRST, SECOND]
        (told,) = caplog.messages
        assert f"every command hashes the shards of {folder} anew" in told
        assert str(records) in told


def test_a_folder_that_cannot_be_written_to_is_known_as_well(
    folder: Path, records: Path, hashed: list[str]
) -> None:
    before = {path.name: path.stat().st_mtime_ns for path in folder.iterdir()}
    folder.chmod(0o555)
    try:
        opened(folder, records, hashed)
        assert opened(folder, records, hashed) == []
    finally:
        folder.chmod(0o755)
    assert {path.name: path.stat().st_mtime_ns for path in folder.iterdir()} == before


def test_commands_at_once_leave_one_whole_record(
    folder: Path, records: Path, hashed: list[str]
) -> None:
    ready, failed = threading.Barrier(6), []

    def command() -> None:
        ready.wait()
        try:
            FeatureReader(folder, records=records)
        except Exception as error:
            failed.append(error)

    threads = [threading.Thread(target=command) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failed
    assert [path.suffix for path in records.iterdir()] == [".json"]
    assert opened(folder, records, hashed) == []


def test_what_is_forgotten_is_read_again(folder: Path, records: Path, hashed: list[str]) -> None:
    verified.forget(records, folder)
    opened(folder, records, hashed)
    verified.forget(records, folder)
    assert opened(folder, records, hashed) == [FIRST, SECOND]


def test_every_write_after_a_settled_state_leaves_another_one(tmp_path: Path) -> None:
    """Kernels stamp files in steps of some milliseconds: two writes within one look alike."""
    path = tmp_path / "file"
    for number in range(5):
        path.write_bytes(bytes([number]))
        settled = verified.settled_state(path)
        assert settled is not None
        path.write_bytes(bytes([number + 100]))
        assert verified.file_state(path) != settled


def test_a_file_from_the_future_is_never_known(
    folder: Path, records: Path, hashed: list[str]
) -> None:
    """Its next write may well give it the time it has."""
    future = time.time_ns() + 10**13
    os.utime(folder / FIRST, ns=(future, future))
    assert opened(folder, records, hashed) == [FIRST, SECOND]
    assert opened(folder, records, hashed) == [FIRST]
    assert verified.settled_state(folder / "missing") is None


def test_a_shard_that_changes_while_it_is_read_is_not_noted(folder: Path, records: Path) -> None:
    manifest = shards.read_manifest(folder)
    seen = verified.Verified(records, folder, manifest)
    before = verified.settled_state(folder / FIRST)
    (folder / FIRST).touch()
    seen.add(manifest.shards[0], before)
    seen.add(manifest.shards[1], None)
    seen.write()
    again = verified.Verified(records, folder, manifest)
    assert not any(map(again.holds, manifest.shards))
    assert np.array_equal(FeatureReader(folder).indices, range(7))

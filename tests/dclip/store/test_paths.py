"""Local paths and URLs: what is taken, what a store is asked, and what its errors become."""

import multiprocessing
import os
import pickle
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from dclip.store import paths
from dclip.store.paths import RemotePath, as_path, has_folders, is_remote, remote_errors


@pytest.fixture(params=["http", "s3"])
def place(
    request: pytest.FixtureRequest, tmp_path: Path, serve: Callable[[Path], Any]
) -> RemotePath:
    """A folder with two files on a server of each kind."""
    (tmp_path / "sub").mkdir()
    (tmp_path / "a b%41.txt").write_bytes(b"hello")
    (tmp_path / "sub" / "empty").write_bytes(b"")
    if request.param == "http":
        url = serve(tmp_path).url
    else:
        import fsspec

        url = f"{request.getfixturevalue('s3_bucket')}/{tmp_path.name}"
        fsspec.filesystem("s3").put(f"{tmp_path}/", f"{url}/", recursive=True)
    found = as_path(url)
    assert isinstance(found, RemotePath)
    return found


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


@pytest.mark.parametrize(
    ("text", "path"),
    [
        ("a/b.jpg", "a/b.jpg"),
        ("./a:b", "a:b"),
        ("a/b:c", "a/b:c"),
        ("file:///a/b", "/a/b"),
        ("file:/a/b", "/a/b"),
        ("file:a/b", "a/b"),
    ],
)
def test_local_places_stay_local(text: str, path: str) -> None:
    assert as_path(text) == Path(path)
    assert as_path(Path(path)) == Path(path)
    assert not is_remote(as_path(text))
    assert has_folders(as_path(text))


@pytest.mark.parametrize(
    "text",
    [
        "pipe:cat x",
        "ftp://host/x",
        "ssh://host/x",
        "memory://x",
        "s3:bucket/x",
        "S3://bucket/x",
        "simplecache::s3://bucket/x",
        "zip://a.csv::https://host/x.zip",
        "https://host/x::s3://bucket",
    ],
)
def test_other_protocols_and_chains_of_them_are_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"cannot open .*known are local paths"):
        as_path(text)


def test_a_url_names_a_host_or_bucket() -> None:
    with pytest.raises(ValueError, match="'s3://' names no bucket"):
        as_path("s3://")
    with pytest.raises(ValueError, match="'http:///' names no host"):
        as_path("http:///")
    assert is_remote(as_path("http://[::1]:8000/x"))


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(paths, "_is_installed", lambda package: package == "gcsfs")
    assert as_path("gs://bucket/a/b.csv") == RemotePath("gs://bucket/a/b.csv")
    assert has_folders(as_path("gs://bucket/a"))
    with pytest.raises(ValueError, match=r"s3://b/x needs a package: pip install s3fs"):
        as_path("s3://b/x")
    monkeypatch.setattr(paths, "_is_installed", lambda _: False)
    with pytest.raises(ValueError, match=r"gs://b/x needs a package: pip install gcsfs"):
        as_path("gs://b/x")


def test_names_of_urls_are_those_of_paths() -> None:
    for url in ("s3://bucket/photos/", "https://host/photos"):
        folder = as_path(url)
        file = folder / "sub" / "a b.tar.gz"
        assert (file.name, file.stem, file.suffix) == ("a b.tar.gz", "a b.tar", ".gz")
        assert file.parent.parent.name == "photos"
        assert pickle.loads(pickle.dumps(file)) == file
    assert str(as_path("https://host") / "50%#?.jpg") == "https://host/50%25%23%3F.jpg"
    assert str(as_path("s3://b") / "50%#?.jpg") == "s3://b/50%#?.jpg"


def test_a_store_is_read_as_a_folder_is(place: RemotePath) -> None:
    file = place / "a b%41.txt"
    assert file.is_file()
    assert not file.is_dir()
    assert (file.read_bytes(), file.read_text()) == (b"hello", "hello")
    assert (file.read_range(1, 3), file.read_range(3, 9)) == (b"ell", b"lo")
    assert (place / "sub" / "empty").read_bytes() == b""
    with remote_errors(file), file.open("rb") as opened:
        opened.seek(2)
        assert opened.read() == b"llo"
    assert not (place / "nowhere").is_file()
    for read in (RemotePath.read_bytes, RemotePath.open):
        with pytest.raises(FileNotFoundError, match=r"No such file .*/nowhere'"):
            read(place / "nowhere")
    with pytest.raises(ValueError, match="not 'w'"):
        file.open("w")


@pytest.mark.parametrize("place", ["s3"], indirect=True)
def test_an_object_store_knows_folders(place: RemotePath) -> None:
    import fsspec

    assert place.is_dir()
    assert (place / "sub").is_dir()
    assert not (place / "nowhere").is_dir()
    assert sorted(path.name for path in place.iterdir()) == ["a b%41.txt", "sub"]
    odd = place / "odd[1]"
    fsspec.filesystem("s3").pipe(f"{odd}/x/a.txt", b"")
    fsspec.filesystem("s3").touch(f"{odd}/x/")  # as some programs mark a folder
    assert [path.name for path in (odd / "x").iterdir()] == ["a.txt"]
    assert list(odd.glob("*/*.txt")) == [odd / "x" / "a.txt"]
    assert list(odd.glob("*.txt")) == []


@pytest.mark.parametrize("kind", ["http", "s3"])
def test_a_store_that_does_not_answer_is_an_error_within_seconds(
    kind: str, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(paths, "_SECONDS_TO_RETRY", 0.1)
    url = f"http://127.0.0.1:{free_port()}"
    if kind == "s3":
        import s3fs

        s3fs.S3FileSystem.clear_instance_cache()
        bucket = request.getfixturevalue("s3_bucket")
        monkeypatch.setenv("AWS_ENDPOINT_URL", url)
        url = bucket
    started = time.monotonic()
    asks: list[Callable[[RemotePath], object]] = [
        RemotePath.is_file,
        RemotePath.read_bytes,
        RemotePath.open,
        lambda path: list(path.iterdir()),
    ]
    for ask in asks:
        with pytest.raises(OSError, match=f"cannot read {url}/a: .*[Cc]onnect") as error:
            ask(RemotePath(f"{url}/a"))
        assert not isinstance(error.value, FileNotFoundError)
        pickle.loads(pickle.dumps(error.value))
    assert time.monotonic() - started < 12
    if kind == "s3":
        s3fs.S3FileSystem.clear_instance_cache()


def test_one_failure_of_a_web_server_is_survived(
    tmp_path: Path, serve: Callable[[Path], Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(paths, "_SECONDS_TO_RETRY", 0)
    (tmp_path / "a").write_bytes(b"hello")
    server = serve(tmp_path)
    server.failures = 1
    assert RemotePath(f"{server.url}/a").read_bytes() == b"hello"
    server.failures = 2
    with pytest.raises(OSError, match=r"cannot read http://.*/a: 503 Service Unavailable"):
        RemotePath(f"{server.url}/a").read_bytes()


def test_what_a_web_server_forbids_is_no_file_and_cannot_be_read(
    tmp_path: Path, serve: Callable[[Path], Any]
) -> None:
    server = serve(tmp_path)
    server.missing = 403
    assert not RemotePath(f"{server.url}/a").is_file()
    with pytest.raises(PermissionError, match=r"cannot read http://.*/a: 403 Forbidden"):
        RemotePath(f"{server.url}/a").read_bytes()
    server.missing = 401
    with pytest.raises(OSError, match="401 Unauthorized"):
        RemotePath(f"{server.url}/a").is_file()


def test_one_request_reads_a_file(tmp_path: Path, serve: Callable[[Path], Any]) -> None:
    (tmp_path / "a").write_bytes(b"hello")
    server = serve(tmp_path)
    RemotePath(f"{server.url}/a").read_bytes()
    assert server.asked == ["GET /a"]


def _read_in_child(place: RemotePath, answers: Any) -> None:
    answers.put((place / "a b%41.txt").read_bytes())


@pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork:DeprecationWarning")
def test_threads_and_forked_processes_read_at_once(place: RemotePath) -> None:
    file = place / "a b%41.txt"
    with ThreadPoolExecutor(8) as pool:
        assert set(pool.map(lambda _: file.read_bytes(), range(40))) == {b"hello"}
    fork = multiprocessing.get_context("fork")
    answers = fork.SimpleQueue()
    child = fork.Process(target=_read_in_child, args=(place, answers))
    child.start()
    child.join(20)
    assert child.exitcode == 0
    assert answers.get() == b"hello"
    assert file.read_bytes() == b"hello"  # the parent's connections are as they were


def test_only_a_url_imports_what_urls_need() -> None:
    code = (
        "import sys\n"
        "from dclip.store.paths import as_path\n"
        "as_path('a/b'), as_path('https://host/a') / 'b'\n"
        "assert not {'fsspec', 'aiohttp', 's3fs'} & set(sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, env=dict(os.environ))

"""Fixtures shared by all tests: device, seed, stores on this machine, and optional real samples."""

import importlib
import os
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import count
from pathlib import Path
from types import ModuleType
from typing import Any
from urllib.parse import unquote

import pytest

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # read as torch is loaded, and by children

import torch
from hypothesis import settings

settings.register_profile("dclip", deadline=None, derandomize=True, max_examples=30)
settings.load_profile("dclip")

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def device(request: pytest.FixtureRequest) -> torch.device:
    if request.param == "cuda" and not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    return torch.device(request.param)


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Folder of small real samples; set DCLIP_TEST_DATA, or place it at ../shared/data."""
    folder = Path(os.environ.get("DCLIP_TEST_DATA", ROOT.parent / "shared" / "data"))
    if not folder.is_dir():
        pytest.skip(f"no real samples at {folder} (set DCLIP_TEST_DATA)")
    return folder


@pytest.fixture(scope="session")
def trees() -> Iterator[ModuleType]:
    """The writers of tiny data sets in ``tests/dclip/data/trees.py``."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(ROOT / "tests" / "dclip" / "data"))
        yield importlib.import_module("trees")


# ---------------------------------------------------------------------------------------------
# Stores
# ---------------------------------------------------------------------------------------------

_bucket_numbers = count()


@pytest.fixture(scope="session")
def _s3_endpoint() -> Iterator[str]:
    """An object store on this machine, empty."""
    s3fs = pytest.importorskip("s3fs", reason="pip install -e '.[s3]'")
    moto = pytest.importorskip("moto.server", reason="pip install -e '.[dev]'")
    server = moto.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    s3fs.S3FileSystem.clear_instance_cache()
    yield f"http://{host}:{port}"
    s3fs.S3FileSystem.clear_instance_cache()
    server.stop()


@pytest.fixture(scope="module")
def s3_bucket(_s3_endpoint: str) -> Iterator[str]:
    """URL of an empty bucket; while it is in use, the environment names its server and keys."""
    import fsspec

    name = f"bucket-{next(_bucket_numbers)}"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AWS_ENDPOINT_URL", _s3_endpoint)
        patch.setenv("AWS_ACCESS_KEY_ID", "test")
        patch.setenv("AWS_SECRET_ACCESS_KEY", "test")
        patch.setenv("AWS_DEFAULT_REGION", "us-east-1")
        patch.setenv("AWS_CONFIG_FILE", os.devnull)
        patch.setenv("AWS_SHARED_CREDENTIALS_FILE", os.devnull)
        fsspec.filesystem("s3").mkdir(name)
        yield f"s3://{name}"


class WebServer(ThreadingHTTPServer):
    """A web server on this machine that gives the files of a folder, in ranges if asked.

    Attributes:
        asked: Method and path of every request.
        failures: How many of the next requests it answers with 503.
        tells_change: Whether it gives ETags.
        missing: What it answers where there is no file.
    """

    def __init__(self, folder: Path) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.folder = folder
        self.asked: list[str] = []
        self.failures = 0
        self.tells_change = True
        self.missing = 404

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def stop(self) -> None:
        self.shutdown()
        self.server_close()


class _Handler(BaseHTTPRequestHandler):
    server: WebServer

    def do_HEAD(self) -> None:
        self.answer(body=False)

    def do_GET(self) -> None:
        self.answer(body=True)

    def answer(self, *, body: bool) -> None:
        self.server.asked.append(f"{self.command} {self.path}")
        path = self.server.folder / unquote(self.path).lstrip("/")
        if self.server.failures:
            self.server.failures -= 1
            self.send_error(503)
            return
        if not path.is_file():
            self.send_error(self.server.missing)
            return
        data = path.read_bytes()
        total = len(data)
        wanted = self.headers.get("Range")
        self.send_response(206 if wanted else 200)
        if wanted:
            first, _, last = wanted.removeprefix("bytes=").partition("-")
            start, stop = int(first), min(int(last or total - 1), total - 1)
            data = data[start : stop + 1]
            self.send_header("Content-Range", f"bytes {start}-{stop}/{total}")
        if self.server.tells_change:
            self.send_header("ETag", f'"{path.stat().st_mtime_ns:x}"')
        self.send_header("Accept-Ranges", "bytes")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if body:
            self.wfile.write(data)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002
        pass


@pytest.fixture
def serve() -> Iterator[Callable[[Path], WebServer]]:
    """Starts web servers of folders, which end with the test."""
    pytest.importorskip("aiohttp", reason="fsspec reads http through it")
    servers = []

    def start(folder: Path) -> WebServer:
        server = WebServer(folder)
        servers.append(server)
        threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        return server

    yield start
    for server in servers:
        server.stop()


@pytest.fixture
def hashed(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the shards that this process reads whole, from the beginning of the test on."""
    from dclip.store import shards

    names: list[str] = []
    original = shards.hashlib.file_digest

    def counting(file: Any, name: str) -> Any:
        if file.name.endswith(".tar"):
            names.append(Path(file.name).name)
        return original(file, name)

    monkeypatch.setattr(shards.hashlib, "file_digest", counting)
    return names

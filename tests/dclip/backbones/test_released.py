"""Released weights: found without a network, and told soon where they cannot be had."""

import socket
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import huggingface_hub
import open_clip
import pytest

from dclip.backbones import load_backbone, released

TAG = {"hf_hub": "timm/resnet101_clip.openai/"}


@pytest.fixture
def _elsewhere(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """An empty cache, and no server that a test did not start."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.lower(), raising=False)


def endpoint(monkeypatch: pytest.MonkeyPatch, url: str) -> None:
    """Let the Hub be at this URL."""
    wanted = huggingface_hub.hf_hub_url
    monkeypatch.setattr(
        huggingface_hub,
        "hf_hub_url",
        lambda repository, name: wanted(repository, name, endpoint=url),
    )


@pytest.fixture
def silent() -> Iterator[str]:
    """A server that takes connections and never says a word."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield f"http://127.0.0.1:{server.getsockname()[1]}"


@pytest.fixture
def answering() -> Iterator[Callable[[int], str]]:
    """Starts servers that answer everything with one status."""
    servers = []

    def start(status: int) -> str:
        class Handler(BaseHTTPRequestHandler):
            def do_HEAD(self) -> None:
                self.send_response(status)
                self.send_header("Content-Length", "0")
                self.end_headers()

            def log_message(self, *_: object) -> None:
                pass

        server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        servers.append(server)
        threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        return f"http://127.0.0.1:{server.server_port}"

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


def never(_: object) -> str:
    raise AssertionError("asked to download without a network")


@pytest.mark.usefixtures("_elsewhere")
def test_weights_that_cannot_be_fetched_say_so_in_seconds_and_what_to_do(
    monkeypatch: pytest.MonkeyPatch, silent: str
) -> None:
    monkeypatch.setattr(open_clip, "download_pretrained", never)
    monkeypatch.setattr(released, "SECONDS_TO_ANSWER", 0.3)
    for url in ("http://127.0.0.1:9", silent):  # a closed port; a server that says nothing
        endpoint(monkeypatch, url)
        started = time.monotonic()
        with pytest.raises(OSError, match=r"the weights RN101/openai are not on this") as caught:
            load_backbone("RN101")
        assert time.monotonic() - started < 5
        told = str(caught.value)
        assert "hf download timm/resnet101_clip.openai open_clip_model.safetensors" in told
        assert "backbone 'RN101-quickgelu', --pretrained FILE" in told
        assert "HF_HUB_OFFLINE" in told


@pytest.mark.usefixtures("_elsewhere")
@pytest.mark.parametrize("status", [404, 503])
def test_a_server_that_answers_is_asked_for_the_weights_one_that_fails_is_not(
    status: int, monkeypatch: pytest.MonkeyPatch, answering: Callable[[int], str]
) -> None:
    asked = []

    def download(tag: dict[str, str]) -> str:
        asked.append(tag["hf_hub"])
        return "weights.bin"

    monkeypatch.setattr(open_clip, "download_pretrained", download)
    endpoint(monkeypatch, answering(status))
    if status == 503:
        with pytest.raises(OSError, match="503"):
            released.find_weights(TAG, "RN101/openai", architecture="RN101")
        assert asked == []
    else:
        found = released.find_weights(TAG, "RN101/openai", architecture="RN101")
        assert found == Path("weights.bin")
        assert asked == [TAG["hf_hub"]]


@pytest.mark.usefixtures("_elsewhere")
@pytest.mark.parametrize("name", ["open_clip_model.safetensors", "open_clip_pytorch_model.bin"])
def test_weights_of_the_cache_are_taken_without_a_network(
    name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    folder = tmp_path / "hub" / "models--timm--resnet101_clip.openai"
    (folder / "snapshots" / "abc").mkdir(parents=True)
    (folder / "refs").mkdir()
    (folder / "refs" / "main").write_text("abc")
    file = folder / "snapshots" / "abc" / name
    file.write_bytes(b"weights")
    monkeypatch.setattr(huggingface_hub, "get_hf_file_metadata", never)
    assert released.find_weights(TAG, "RN101/openai", architecture="RN101") == file


def test_names_on_the_hub_are_those_that_open_clip_tries(monkeypatch: pytest.MonkeyPatch) -> None:
    tried: list[str] = []

    def fail(*, filename: str, **_: object) -> str:
        tried.append(filename)
        raise OSError

    monkeypatch.setattr(open_clip.pretrained, "hf_hub_download", fail)
    for name in ("open_clip_pytorch_model.bin", "own.bin", "own.pt", "own.safetensors"):
        tried.clear()
        with pytest.raises(FileNotFoundError):
            open_clip.pretrained.download_pretrained_from_hf("a/b", filename=name)
        assert released._alternatives(name) == tried

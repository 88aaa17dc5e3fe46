"""Addresses where no cluster is are told in seconds; a start that fails is repeated."""

import http.server
import inspect
import logging
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

import grpc
import psutil
import pytest
import ray

from pipeline.cluster import session as cluster
from pipeline.cluster.address import cluster_address
from pipeline.settings.config import Config
from pipeline.stages import sweep, train
from pipeline.terminal.errors import StageError, UsageError

pytestmark = [
    pytest.mark.filterwarnings("ignore::ResourceWarning"),  # Ray leaves sockets and files open
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning:ray.*"),
]


@pytest.fixture(autouse=True)
def _no_session(monkeypatch: pytest.MonkeyPatch) -> None:
    """As in a command: no Ray of other tests is there to be joined."""
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(ray, "shutdown", lambda: None)
    for name in ("RAY_ADDRESS", "RAY_AUTH_MODE"):
        monkeypatch.delenv(name, raising=False)


def enter() -> None:
    with cluster.ray_session(Config(device="cpu")):
        pass


@contextmanager
def closed() -> Iterator[int]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = int(probe.getsockname()[1])
    yield port


@contextmanager
def silent() -> Iterator[int]:
    """Takes connections and says nothing."""
    with socket.socket() as server:
        server.bind(("0.0.0.0", 0))
        server.listen()
        yield int(server.getsockname()[1])


@contextmanager
def web() -> Iterator[int]:
    """Ray's dashboard, say."""
    server = http.server.ThreadingHTTPServer(("0.0.0.0", 0), http.server.BaseHTTPRequestHandler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield int(server.server_address[1])
    server.shutdown()
    server.server_close()


@contextmanager
def head(service: str = "NodeInfoGcsService", token: str = "") -> Iterator[int]:
    """What a head node does when it is asked for its name."""

    def answer(_: bytes, context: grpc.ServicerContext) -> bytes:
        if token and ("authorization", f"Bearer {token}") not in context.invocation_metadata():
            context.abort(grpc.StatusCode.UNAUTHENTICATED, "InvalidAuthToken")
        return b"\n\x00"

    method = grpc.unary_unary_rpc_method_handler(answer)
    handler = grpc.method_handlers_generic_handler(f"ray.rpc.{service}", {"GetClusterId": method})
    server = grpc.server(ThreadPoolExecutor(1), [handler])
    port = server.add_insecure_port("0.0.0.0:0")
    server.start()
    yield port
    server.stop(None).wait()


@pytest.mark.parametrize(
    ("there", "words"),
    [
        (closed, r"nothing answers there; start the cluster, or unset RAY_ADDRESS"),
        (silent, r"no answer within 5 s; start the cluster"),
        (web, r"RAY_ADDRESS=127.0.0.1:\d+"),
        (lambda: head("NodeManagerService"), r"what answers is no head node; .* 6379"),
        # a token of an earlier Ray in this process may be there: it is the wrong one
        (lambda: head(token="abc"), r"(asks for a|refuses our) token; set RAY_AUTH_MODE=token and"),
    ],
    ids=["closed", "silent", "web", "another port of Ray", "token"],
)
def test_an_address_without_a_cluster_is_told_in_seconds_in_one_line(
    there: Callable[[], Any], words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ray, "init", lambda **_: pytest.fail("Ray itself asks for minutes"))
    with there() as port:
        monkeypatch.setenv("RAY_ADDRESS", f"127.0.0.1:{port}")
        started = time.monotonic()
        with pytest.raises(StageError, match=words) as error:
            enter()
    assert time.monotonic() - started < 60  # Ray's own limits are minutes
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("address", "words"),
    [
        ("ray://head:10001", "Ray Client cannot run the stages; use HOST:PORT"),
        ("http://head:8265", "is not HOST:PORT"),
        ("head", "is not HOST:PORT"),
        ("head:port", "is not HOST:PORT"),
        ("head:99999", "is not HOST:PORT"),
        ("::1:6379", "is not HOST:PORT"),
        ("a b:6379", "is not HOST:PORT"),
    ],
)
def test_what_is_no_address_is_wrong_usage(
    address: str, words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_ADDRESS", address)
    with pytest.raises(UsageError, match=words):
        enter()


@pytest.mark.parametrize("stage", [train, sweep])
def test_a_cluster_that_is_not_there_is_told_before_features_are_opened(
    stage: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "garbage")
    with pytest.raises(UsageError, match="is not HOST:PORT"):
        stage.run(Config(output=tmp_path))  # without features, which are looked for afterwards
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:1")
    with pytest.raises(StageError, match="nothing answers there"):
        stage.run(Config(output=tmp_path))
    assert not (tmp_path / "mlflow.db").exists()


@pytest.mark.parametrize("address", ["head:6379", "10.0.0.1:6379", "[::1]:6379", "auto"])
def test_addresses_are_taken_as_they_are(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_ADDRESS", f" {address} ")
    assert cluster_address() == address


def test_auto_without_a_cluster_is_told(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def nothing(*_: Any) -> str:
        raise ConnectionError("Could not find any running Ray instance.")

    monkeypatch.setattr("ray._private.services.get_ray_address_from_environment", nothing)
    monkeypatch.setenv("RAY_ADDRESS", "auto")
    with pytest.raises(StageError, match="RAY_ADDRESS=auto: Could not find any running"):
        enter()


def test_a_cluster_without_a_node_on_this_machine_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    joined: list[dict[str, Any]] = []
    monkeypatch.setattr(ray, "init", lambda **options: joined.append(options))
    with head() as port:
        monkeypatch.setenv("RAY_ADDRESS", f"127.0.0.1:{port}")
        monkeypatch.setattr(psutil, "process_iter", lambda: [psutil.Process()])
        with pytest.raises(StageError, match=r"no node of the cluster .* runs on this machine"):
            enter()
        assert not joined
        monkeypatch.setattr(psutil.Process, "name", lambda _: "raylet")
        enter()
    assert len(joined) == 1


class FailingRay:
    """``ray.init`` that fails as often as told, and leaves a process each time."""

    def __init__(self, failures: int, error: Exception) -> None:
        self.left, self.error = failures, error
        self.processes: list[subprocess.Popen[bytes]] = []
        self.wait = 0.0

    def ended(self) -> list[bool]:
        return [process.poll() is not None for process in self.processes]

    def __call__(self, **_: Any) -> None:
        assert all(self.ended())
        time.sleep(self.wait)
        if self.left:
            self.left -= 1
            sleep = [sys.executable, "-c", "import time; time.sleep(60)"]
            self.processes.append(subprocess.Popen(sleep))
            raise self.error


def test_a_start_that_fails_is_repeated_once_and_leaves_no_process(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    own = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    try:
        starts = FailingRay(1, RuntimeError())  # without a text
        monkeypatch.setattr(ray, "init", starts)
        enter()
        assert "Ray did not start (RuntimeError); trying once more" in caplog.text
        assert starts.ended() == [True]
        starts = FailingRay(2, Exception("The current node timed out\nduring startup."))
        monkeypatch.setattr(ray, "init", starts)
        with pytest.raises(StageError, match="tried twice: The current node timed out during"):
            enter()
        assert starts.ended() == [True, True]
        assert own.poll() is None  # not Ray's
    finally:
        own.kill()
        own.wait()


def test_a_slow_start_says_what_is_waited_for(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "pipeline")
    starts = FailingRay(0, RuntimeError())
    monkeypatch.setattr(ray, "init", starts)
    enter()
    assert "starting Ray" not in caplog.text
    monkeypatch.setattr(cluster, "_SILENCE_SECONDS", 0.05)
    starts.wait = 0.5
    enter()
    assert f"on {os.cpu_count()} CPUs" in caplog.text


@pytest.mark.parametrize(
    ("place", "remedy"),
    [(Path.home() / ".ray" / "auth_token", "set HOME"), (Path("/tmp/ray"), "set RAY_TMPDIR")],
)
def test_a_folder_that_ray_cannot_write_is_named_and_not_tried_again(
    place: Path, remedy: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    starts = FailingRay(2, PermissionError(13, "Permission denied", str(place)))
    monkeypatch.setattr(ray, "init", starts)
    with pytest.raises(StageError, match=remedy) as error:
        enter()
    assert str(place) in str(error.value)
    assert starts.ended() == [True]


def test_ray_waits_for_its_node_as_long_as_the_process_is_there(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    from ray._private import services

    answers: list[Any] = [RuntimeError("not yet"), RuntimeError("not yet"), {"node": 1}]

    def ask(*_: Any) -> Any:
        answer = answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer

    monkeypatch.setattr(services, "get_node", ask)
    with cluster._patience(), pytest.raises(RuntimeError, match="not yet"):
        services.get_node("address", "id")  # no raylet below this process
    (tmp_path / "raylet").symlink_to(sys.executable)
    with cluster._patience():
        node = subprocess.Popen([tmp_path / "raylet", "-c", "import time; time.sleep(60)"])
        try:
            assert services.get_node("address", "id") == {"node": 1}
        finally:
            node.kill()
            node.wait()
    assert services.get_node is ask


def test_agents_get_ports_for_which_the_node_does_not_wait(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    from ray._private import services
    from ray._raylet import wait_for_persisted_port

    calls: list[dict[str, Any]] = []
    names = set(inspect.signature(services.start_raylet).parameters)
    assert names >= {"session_dir", "node_id", *cluster._AGENT_PORTS}

    def start(
        redis_address: str,
        session_dir: str,
        node_id: str,
        dashboard_agent_listen_port: int = 0,
        metrics_agent_port: int = 0,
        metrics_export_port: int = 0,
        runtime_env_agent_port: int = 0,
    ) -> None:
        calls.append({key: value for key, value in locals().items() if key in cluster._AGENT_PORTS})

    monkeypatch.setattr(services, "start_raylet", start)
    node = "ab" * 28
    with cluster._patience():
        services.start_raylet("", str(tmp_path), node, metrics_agent_port=0)
    assert services.start_raylet is start
    (ports,) = calls
    assert set(ports) == set(cluster._AGENT_PORTS)
    assert len(set(ports.values())) == 4
    assert min(ports.values()) > 1023
    for name, port in ports.items():
        assert wait_for_persisted_port(str(tmp_path), node, name, timeout_ms=0) == port

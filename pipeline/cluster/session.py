"""Starting or joining Ray, and what each worker gets of the machines."""

import logging
import os
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from inspect import signature
from pathlib import Path
from typing import Any, NoReturn

import psutil
import ray
from ray import _raylet
from ray._private import services

from dclip.words import told
from pipeline.cluster import START_SECONDS
from pipeline.cluster.address import cluster_address
from pipeline.cluster.device import choose_device
from pipeline.cluster.head import REMEDY, ask_head
from pipeline.settings.config import Config
from pipeline.terminal.errors import StageError

log = logging.getLogger(__name__)

_SILENCE_SECONDS = 10.0  # of a start, after which it is said what is waited for


@contextmanager
def ray_session(config: Config) -> Iterator[None]:
    """Run a block with Ray: a running session, the cluster of ``RAY_ADDRESS``, or a local one.

    A local one is stopped at the end; a session that was there before is left alone. A local Ray
    that does not come up, as on a busy machine, is tried a second time.

    Args:
        config: Settings; ``device`` decides whether Ray may hand out GPUs.

    Raises:
        UsageError: ``RAY_ADDRESS`` is no address of a cluster.
        StageError: The cluster cannot be reached, or Ray does not start.
    """
    address = cluster_address()
    if ray.is_initialized():
        yield
        return
    if address:
        _join(address)
    else:
        options: dict[str, Any] = {"num_gpus": 0} if config.device == "cpu" else {}
        _start(include_dashboard=False, **options)
    try:
        yield
    finally:
        ray.shutdown()


def _join(address: str) -> None:
    """Join a cluster, once its head node has answered; Ray itself asks a dead one for minutes."""
    ask_head(address)
    try:
        # progress bars and log lines of ours replace Ray's own
        ray.init(logging_level=logging.ERROR, log_to_driver=False)
    except Exception as error:
        ray.shutdown()
        raise StageError(
            f"cannot join the cluster of RAY_ADDRESS={address}: {told(error)}; {REMEDY}"
        ) from None


def _start(**options: Any) -> None:
    """Start a local Ray; a second time if the first fails, with what it left ended before."""

    def say() -> None:
        load = os.getloadavg()[0] if hasattr(os, "getloadavg") else float("nan")
        log.info(
            "starting Ray; this takes its time where the machine is busy (load %.0f on %d CPUs)",
            load,
            os.cpu_count() or 1,
        )

    me = psutil.Process()
    failures: list[str] = []
    while True:
        before = set(me.children(recursive=True))
        timer = threading.Timer(_SILENCE_SECONDS, say)
        timer.daemon = True
        timer.start()
        try:
            with _patience():
                # progress bars and log lines of ours replace Ray's own
                ray.init(
                    address="local", logging_level=logging.ERROR, log_to_driver=False, **options
                )
        except Exception as error:  # of no class of its own where a start takes too long
            ray.shutdown()
            _end([child for child in me.children(recursive=True) if child not in before])
            if isinstance(error, OSError) and error.filename is not None:
                _tell_unwritable(error)
            failures.append(told(error))
        else:
            break
        finally:
            timer.cancel()
        if len(failures) > 1:
            raise StageError(
                f"cannot start Ray, tried twice: {failures[-1]}; run the command again when the "
                "machine is less busy"
            )
        log.warning("Ray did not start (%s); trying once more", failures[-1])
    _protect_token()


@contextmanager
def _patience() -> Iterator[None]:
    """Let Ray wait longer where its seconds are no setting.

    Its node waits 15 s for the files in which agents write down the ports they chose: they are
    given ports that are free, and the files are there before. The driver waits 30 s for the node:
    it waits as long as the process is there.
    """
    start, ask = services.start_raylet, services.get_node
    deadline = time.monotonic() + START_SECONDS
    others = {child.pid for child in psutil.Process().children()}

    def start_raylet(*arguments: Any, **options: Any) -> Any:
        call = signature(start).bind(*arguments, **options)
        if hasattr(_raylet, "persist_port"):  # older versions of Ray wait for no files
            for name, port in zip(_AGENT_PORTS, _free_ports(), strict=True):
                call.arguments[name] = port
                node = call.arguments["session_dir"], call.arguments["node_id"]
                _raylet.persist_port(*node, name, port)
        return start(*call.args, **call.kwargs)

    def is_starting() -> bool:
        """Whether the node's process is there; a dead one is waited for in vain."""
        new = [child for child in psutil.Process().children() if child.pid not in others]
        return any(c.name() == "raylet" and c.status() != psutil.STATUS_ZOMBIE for c in new)

    def get_node(*place: Any) -> Any:
        while True:
            try:
                return ask(*place)
            except RuntimeError:  # it has not registered yet
                if time.monotonic() > deadline or not is_starting():
                    raise
                time.sleep(0.1)

    services.start_raylet, services.get_node = start_raylet, get_node
    try:
        yield
    finally:
        services.start_raylet, services.get_node = start, ask


_AGENT_PORTS = (
    "dashboard_agent_listen_port",
    "metrics_agent_port",
    "metrics_export_port",
    "runtime_env_agent_port",
)


def _free_ports() -> list[int]:
    """A port for each agent that nothing listens on."""
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in _AGENT_PORTS]
        for each in sockets:
            each.bind(("", 0))
        return [int(each.getsockname()[1]) for each in sockets]


def _end(processes: list[Any]) -> None:
    """End processes that a failed start left, and wait until they are gone."""
    for process in processes:
        with suppress(psutil.NoSuchProcess):
            process.kill()
    psutil.wait_procs(processes, timeout=10)


def _tell_unwritable(error: OSError) -> NoReturn:
    """Say what cannot be written, and how to have it elsewhere.

    Raises:
        StageError: Always.
    """
    home = str(Path.home())
    remedy = (
        "set HOME to a folder that can be written (Ray keeps its token there), or set "
        "RAY_AUTH_TOKEN"
        if str(error.filename).startswith(home)
        else "set RAY_TMPDIR to a folder that can be written"
    )
    raise StageError(f"cannot start Ray: {told(error)}; {remedy}") from None


@dataclass(frozen=True)
class Placement:
    """What each worker that holds a backbone gets of the cluster.

    Attributes:
        device: Where its tensors live.
        why: Why there.
        cpus: Its CPUs; Ray takes the number of threads of OpenMP from it.
        count: How many workers there should be; changes as nodes come and go.
    """

    device: str
    why: str
    cpus: int
    count: Callable[[], int]

    @property
    def options(self) -> dict[str, int]:
        """Resources to ask Ray for."""
        return {"num_cpus": self.cpus, "num_gpus": int(self.device == "cuda")}


def place_workers(config: Config, wanted: int | None) -> Placement:
    """One worker a GPU, with its share of its node's CPUs, or one a CPU; Ray must be running.

    Args:
        config: Settings; ``device`` decides where.
        wanted: Number of workers, if not as many as the cluster has places.

    Raises:
        StageError: CUDA was asked for and is not there, or no node has a GPU.
    """
    device, why = choose_device(config.device)
    share = 1
    if device == "cuda":
        nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
        shares = [int(n.get("CPU", 0) // n["GPU"]) for n in nodes if n.get("GPU", 0) >= 1]
        if not shares:
            raise StageError("no node of the cluster has a GPU; use --device cpu")
        share = max(1, min(shares))  # so that there is room for one a GPU, on every node

    def count() -> int:
        there = int(ray.cluster_resources().get("GPU" if device == "cuda" else "CPU", 0))
        return wanted or max(1, there)

    return Placement(device, why, share, count)


def cause(error: BaseException) -> BaseException:
    """The exception a worker raised, out of the wrappers that Ray puts around it."""
    inner = getattr(error, "cause", None) or error.__cause__
    if getattr(error, "actor_init_failed", False):
        inner = error.args[0]
    failures = getattr(error, "worker_failures", None)
    if failures:
        inner = next(iter(failures.values()))
    return error if inner is None or inner is error else cause(inner)


def _protect_token() -> None:
    """Make Ray's authentication token readable by its owner only; Ray writes it with mode 644."""
    token = Path.home() / ".ray" / "auth_token"
    if sys.platform != "win32" and token.is_file():
        try:
            token.chmod(0o600)
        except OSError as error:
            log.warning("ray: %s stays readable by others: %s", token, error)

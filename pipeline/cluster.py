"""Start or join Ray, and choose the device."""

import logging
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from pipeline.config import Config
from pipeline.errors import StageError

log = logging.getLogger(__name__)

# Workers at the driver's priority (Ray's default is nice +15), quick polls of Ray Train, which an
# elastic training otherwise lets wait a minute for workers of a node it has just lost, quiet
# start-up. glibc keeps the memory that tensors free: else every large
# one is mapped and zeroed page by page anew, and a CPU encodes a fifth more slowly.
_ENVIRONMENT = {
    "MALLOC_ARENA_MAX": "1",
    "MALLOC_MMAP_THRESHOLD_": str(1 << 30),
    "MALLOC_TRIM_THRESHOLD_": str((1 << 31) - 1),
    "RAY_worker_niceness": "0",
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.1",
    "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "10",
    "RAY_TRAIN_ENABLE_PRINT_PATCH": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_DEDUP_LOGS": "0",
    "RAY_AIR_NEW_OUTPUT": "0",
    "TUNE_DISABLE_SIGINT_HANDLER": "1",  # Ctrl-C ends a sweep; Tune would go on to its results
    "TUNE_GLOBAL_CHECKPOINT_S": "1",
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
}


def choose_device(wanted: str) -> tuple[str, str]:
    """Device for tensors, and why: ``("cpu", "no CUDA device")``.

    Args:
        wanted: ``auto``, ``cpu`` or ``cuda``.

    Raises:
        StageError: CUDA was asked for and is not there.
    """
    if wanted == "cpu":
        return "cpu", "as asked"
    gpus = _gpus()
    if wanted == "cuda" and not gpus:
        raise StageError("--device cuda: there is no CUDA device; use --device auto or cpu")
    return ("cuda", gpus) if gpus else ("cpu", "no CUDA device")


def _gpus() -> str:
    """The GPUs at hand, in words: those of the cluster once it is joined, else of this machine."""
    import torch

    if "ray" in sys.modules and sys.modules["ray"].is_initialized():
        count = int(sys.modules["ray"].cluster_resources().get("GPU", 0))
        if count:
            return f"{count} GPU{'s' if count > 1 else ''} of the cluster"
    return torch.cuda.get_device_name() if torch.cuda.is_available() else ""


@contextmanager
def ray_session(config: Config, *, dashboard: bool = False) -> Iterator[None]:
    """Run a block with Ray: a running session, the cluster of ``RAY_ADDRESS``, or a local one.

    A local one is stopped at the end; a session that was there before is left alone.

    Args:
        config: Settings; ``device`` decides whether Ray may hand out GPUs.
        dashboard: Whether a local session runs Ray's dashboard, which Ray Train inside Ray Tune
            needs to free the resources of stopped trials.

    Raises:
        StageError: The cluster cannot be reached.
    """
    for name, value in _ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    import ray

    if ray.is_initialized():
        yield
        return
    address = os.environ.get("RAY_ADDRESS")
    options = {} if address else {"include_dashboard": dashboard, "address": "local"}
    if config.device == "cpu" and not address:
        options["num_gpus"] = 0
    try:
        # progress bars and log lines of ours replace Ray's own
        ray.init(logging_level=logging.ERROR, log_to_driver=False, **options)
    except Exception as error:  # of no class of its own where a start takes too long
        reason = str(error).splitlines()[0]
        remedy = (
            "unset RAY_ADDRESS to run on this machine"
            if address
            else "run the command again when the machine is less busy"
        )
        raise StageError(
            f"cannot start Ray (RAY_ADDRESS={address!r}): {reason}; {remedy}"
        ) from None
    _protect_token()
    try:
        yield
    finally:
        ray.shutdown()


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
    import ray

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

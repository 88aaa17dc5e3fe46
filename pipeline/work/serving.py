"""Ray Serve, from its start to its end."""

import logging
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

import ray
from ray import serve

from dclip.words import counted
from pipeline.cluster.device import choose_device
from pipeline.cluster.session import cause, ray_session
from pipeline.serving.app import NAME, application
from pipeline.settings.config import Config
from pipeline.terminal.errors import StageError

log = logging.getLogger(__name__)


def serve_until_ended(config: Config, place: str) -> float:
    """Serve a model until Ctrl-C or SIGTERM; how many seconds.

    Args:
        config: Settings.
        place: What `dclip.load` takes.

    Raises:
        StageError: The model cannot be served.
    """
    started = time.monotonic()
    with ray_session(config), served(config, place) as url, _ended() as end:
        own = config.serve
        log.info(
            "serve: %s answers at %s/predict, %s; Ctrl-C ends it",
            place, url, counted(own.replicas, "copy", "copies"),
        )  # fmt: skip
        end.wait()
        log.info("serve: ending, after what is under way")
    return round(time.monotonic() - started, 2)


@contextmanager
def served(config: Config, place: str) -> Iterator[str]:
    """A model that is served while a block runs, and where; Ray must be running.

    Args:
        config: Settings.
        place: What `dclip.load` takes.

    Raises:
        StageError: It cannot be served.
    """
    own = config.serve
    device, _ = choose_device(config.device)
    threads = own.threads
    if threads is None and device == "cpu":
        cpus = int(ray.cluster_resources().get("CPU", 1))
        threads = max(1, cpus // max(own.replicas, own.max_replicas or 1))
    settings = own.model_copy(update={"threads": threads})
    serve.start(
        http_options={
            "host": own.host, "port": own.port, "request_timeout_s": own.request_seconds,
        },
        logging_config={"enable_access_log": False, "log_level": "WARNING"},
    )  # fmt: skip
    try:
        serve.run(
            application(settings, place, device, gpus=int(device == "cuda")),
            name=NAME,
            route_prefix="/",
        )
        yield f"http://{f'[{own.host}]' if ':' in own.host else own.host}:{own.port}"
    except (RuntimeError, ray.exceptions.RayError) as error:
        raise StageError(f"{place} cannot be served: {_why(error)}") from None
    finally:
        serve.shutdown()


def _why(error: BaseException) -> str:
    """What went wrong in the copies, of the long text that Serve gives."""
    status = serve.status().applications.get(NAME)
    said = "" if status is None else " ".join(
        [status.message, *(one.message for one in status.deployments.values())]
    )  # fmt: skip
    lines = [line.strip() for line in (said or str(cause(error))).splitlines() if line.strip()]
    named = [line for line in lines if "Error: " in line and not line.startswith("ray.exceptions")]
    return (named or lines or ["it does not start"])[-1]


@contextmanager
def _ended() -> Iterator[threading.Event]:
    """An event that Ctrl-C and SIGTERM set."""
    end = threading.Event()

    def stop(_: int, __: FrameType | None) -> None:
        end.set()

    before = {each: signal.signal(each, stop) for each in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield end
    finally:
        for each, handler in before.items():
            signal.signal(each, handler)

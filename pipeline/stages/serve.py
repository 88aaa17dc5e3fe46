"""Photographs over HTTP: what is served, and by how many copies."""

import socket
from dataclasses import dataclass
from typing import Any

from dclip.recognition.places import NoModelError, find_model
from dclip.words import counted
from pipeline.records.report import StageReport
from pipeline.settings.config import Config
from pipeline.terminal.errors import StageError


@dataclass(frozen=True, kw_only=True)
class ServeReport(StageReport):
    """What was served, until it was ended.

    Attributes:
        url: Where.
        model: What answered.
        config: All settings.
        seconds: How long.
    """

    stage = "serve"

    url: str
    model: str
    config: dict[str, Any]
    seconds: float


def run(config: Config) -> ServeReport:
    """Serve until it is ended."""
    place = _place(config)
    _require_free(config)
    from pipeline.work import serving

    seconds = serving.serve_until_ended(config, place)
    return ServeReport(
        url=_url(config), model=place, config=config.model_dump(mode="json"), seconds=seconds
    )


def _place(config: Config) -> str:
    """What `dclip.load` is given: what was named, or the one checkpoint of the output folder.

    Raises:
        StageError: There is none there.
    """
    if config.serve.model is not None:
        return config.serve.model
    try:
        return str(find_model(config.output.absolute(), config.serve.which))
    except NoModelError as error:
        raise StageError(f"{error}; or name a model: --model") from None


def _url(config: Config) -> str:
    host = config.serve.host
    return f"http://{f'[{host}]' if ':' in host else host}:{config.serve.port}"


def _require_free(config: Config) -> None:
    """Refuse a port that another program listens on; Ray would wait for it for long.

    Raises:
        StageError: It is taken, or not to be had.
    """
    host, port = config.serve.host, config.serve.port
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        with socket.socket(family) as made:
            made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            made.bind((host, port))
    except OSError as error:
        raise StageError(
            f"cannot listen on {host}, port {port}: {error.strerror or error}; choose another by "
            "--port or --host"
        ) from None


def describe(config: Config) -> str:
    """The plan of this stage in words, for ``--dry-run``."""
    own = config.serve
    copies = counted(own.replicas, "copy", "copies")
    more = f", up to {own.max_replicas} under load" if own.max_replicas else ""
    urls = ", ".join(own.allow_url) if own.allow_url else "none is fetched"
    return "\n".join(
        [
            f"{_place(config)} answers at {_url(config)}/predict",
            f"{copies}{more}, {counted(own.max_batch_size, 'image')} a forward pass",
            f"URLs of images: {urls}",
        ]
    )

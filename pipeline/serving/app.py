"""The application for Ray Serve: photographs in batches, replicas, health, limits of requests.

``pipeline.serving.app:build`` is what a config file of Serve names as ``import_path``; its ``args``
are keys of the section ``serve`` of the settings.
"""

import asyncio
import json
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch
from fastapi import FastAPI, Request, Response
from ray import serve
from ray.serve import Application
from ray.serve import config as serve_config
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from pipeline.serving.model import Answering, Ready, open_model
from pipeline.serving.requests import LATE, NO_IMAGE, TOO_LARGE, WRONG, Asked, RefusedError, parse
from pipeline.settings.serving import ServeConfig

NAME = "dclip"
"""Of the application and of its one deployment."""

_READERS = 4  # threads that decode
_FETCHERS = 8  # threads that wait for URLs
_RETRY_SECONDS = 1
_TOLD = {
    "max_request_bytes", "max_images", "max_image_bytes", "max_pixels", "max_mask_pixels",
    "max_classes", "max_class_chars",
}  # fmt: skip

app = FastAPI(title=NAME, docs_url=None, redoc_url=None, openapi_url=None)


def _json(content: Any, status: int = 200, **headers: str) -> Response:
    text = json.dumps(content, ensure_ascii=False, separators=(",", ":")).encode()
    return Response(text, status, headers, media_type="application/json")


def _refusal(status: int, message: str) -> Response:
    return _json({"error": message}, status)


@app.exception_handler(HTTPException)
async def _no_such_place(_: Request, error: HTTPException) -> Response:
    """A path or a method that is not there."""
    there = "POST /predict, GET /model, GET /health"
    return _refusal(error.status_code, f"{str(error.detail).lower()}; there are {there}")


@serve.deployment(name=NAME)
@serve.ingress(app)
class Photographs:
    """One copy of the model.

    Args:
        config: The section ``serve``, as JSON has it.
        place: What `dclip.load` takes.
        device: ``auto``, ``cpu`` or ``cuda``.
    """

    def __init__(self, config: Mapping[str, Any], place: str, device: str) -> None:
        self.config = ServeConfig.model_validate(config)
        if self.config.threads is not None:
            torch.set_num_threads(self.config.threads)
        model, checkpoint = open_model(place, self.config.which, device=device)
        self.answering = Answering(
            model, self.config, checkpoint=checkpoint, batch_size=self.config.max_batch_size
        )
        self._readers = ThreadPoolExecutor(_READERS, "read")
        self._fetchers = ThreadPoolExecutor(_FETCHERS, "fetch")
        self._network = ThreadPoolExecutor(1, "network")  # one pass at a time has all threads
        self._score.set_max_batch_size(self.config.max_batch_size)
        self._score.set_batch_wait_timeout_s(self.config.batch_wait_ms / 1000)
        self._warm_up()

    def _warm_up(self) -> None:
        """The first pass of a network takes longer than others; no request waits for it."""
        side = self.answering.model.backbone.resolution
        squares = torch.zeros(self.config.max_batch_size, side, side, 3, dtype=torch.uint8)
        self.answering.model.looker(self._names()).encode(squares.numpy())

    def _names(self) -> Sequence[str]:
        return self.answering.model.class_names or ("photograph",)

    def check_health(self) -> None:
        """Serve asks this now and then, and starts a copy anew that does not answer.

        Raises:
            RuntimeError: The thread of the network is gone.
        """
        if self._network._shutdown:
            raise RuntimeError("the network has stopped")

    @app.get("/health")
    async def health(self) -> Response:
        """Whether the model answers: 200 once it is loaded."""
        return _json({"status": "ok"})

    @app.get("/model")
    async def describe(self) -> Response:
        """What answers, its classes and thresholds, and what a request may hold."""
        model = self.answering.model
        limits = self.config.model_dump(include=_TOLD)
        return _json({
            **self.answering.about,
            "classes": list(model.class_names),
            "thresholds": dict(zip(model.class_names, model.thresholds.tolist(), strict=True)),
            "calibrated": model.calibration is not None,
            "urls": len(self.config.allow_url) > 0,
            "limits": limits,
        })  # fmt: skip

    @app.post("/predict")
    async def predict(self, request: Request) -> Response:
        """Classes of photographs."""
        loop = asyncio.get_running_loop()
        try:
            body = await self._body(request)
            kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
            if kind != "application/json":
                raise RefusedError(NO_IMAGE, f"Content-Type must be application/json, got {kind!a}")
            ready = await loop.run_in_executor(self._readers, self._parsed, body)
            if isinstance(ready, Asked):  # some are URLs
                ready = await loop.run_in_executor(self._fetchers, self.answering.read, ready)
            said = await self._score(ready)
        except RefusedError as error:
            return _refusal(error.status, str(error))
        return Response(said, media_type="application/json")

    def _parsed(self, body: bytes) -> Ready | Asked:
        """A request whose images are read, unless some are URLs, for which one has to wait."""
        asked = parse(body, self.config)
        is_here = all(isinstance(image, bytes) for image in asked.images)
        return self.answering.read(asked) if is_here else asked

    async def _body(self, request: Request) -> bytes:
        """What was sent, within its bounds of size and time.

        Raises:
            RefusedError: It is too much, or does not come.
        """
        most = self.config.max_request_bytes
        length = request.headers.get("content-length", "")
        if length.isdecimal() and int(length[:20]) > most:
            raise RefusedError(TOO_LARGE, f"a request has at most {most} bytes, got {length[:20]}")
        held = bytearray()
        try:
            async with asyncio.timeout(self.config.body_seconds):
                async for block in request.stream():
                    held += block
                    if len(held) > most:
                        raise RefusedError(TOO_LARGE, f"a request has at most {most} bytes")
        except TimeoutError:
            raise RefusedError(
                LATE, f"the request did not arrive within {self.config.body_seconds:g} seconds"
            ) from None
        except ClientDisconnect:
            raise RefusedError(WRONG, "the request ended before all of it was here") from None
        return bytes(held)

    @serve.batch(  # type: ignore[untyped-decorator]  # Ray is not followed
        max_batch_size=1, batch_wait_timeout_s=0
    )
    async def _score(self, batch: list[Ready]) -> list[bytes]:
        """Answers to what came in together."""
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._network, self._answers, batch)

    def _answers(self, batch: list[Ready]) -> list[bytes]:
        said = self.answering.score(batch)
        return [json.dumps(one, ensure_ascii=False, separators=(",", ":")).encode() for one in said]


def application(config: ServeConfig, place: str, device: str = "auto", *, gpus: int = 0) -> Any:
    """The application, ready for ``serve.run``.

    Args:
        config: Settings.
        place: What `dclip.load` takes.
        device: ``auto``, ``cpu`` or ``cuda``.
        gpus: Of each copy.
    """
    options: dict[str, Any] = {"num_cpus": config.threads or 1, "num_gpus": gpus}
    number: dict[str, Any] = {"num_replicas": config.replicas}
    if config.max_replicas is not None and config.max_replicas > config.replicas:
        number = {
            "autoscaling_config": {
                "min_replicas": config.replicas,
                "max_replicas": config.max_replicas,
                "target_ongoing_requests": max(1, config.max_batch_size),
            }
        }
    return Photographs.options(  # type: ignore[attr-defined]
        **number,
        ray_actor_options=options,
        max_ongoing_requests=config.max_ongoing_requests,
        max_queued_requests=config.max_queued_requests,
        graceful_shutdown_timeout_s=config.request_seconds,
        logging_config={"enable_access_log": False},
        **_backpressure(),
    ).bind(config.model_dump(mode="json"), place, device)


def _backpressure() -> dict[str, Any]:
    """Retry-After of a full queue, where this version of Ray can say it."""
    kind = getattr(serve_config, "BackpressureConfig", None)
    return {} if kind is None else {"backpressure_config": kind(retry_after_s=_RETRY_SECONDS)}


def build(args: Mapping[str, Any]) -> Application:
    """The application of a Serve config file.

    Args:
        args: Keys of the section ``serve``, of which ``model`` is needed; and ``device`` and
            ``gpus``, the GPUs of each copy.

    Raises:
        ValueError: A key is unknown or has a value that does not fit; or there is no model.
    """
    own = dict(args)
    device, gpus = str(own.pop("device", "auto")), int(own.pop("gpus", 0))
    config = ServeConfig.model_validate(own)
    if config.model is None:
        raise ValueError("args.model: name what dclip.load takes, such as /outputs")
    made: Application = application(config, config.model, device, gpus=gpus)
    return made

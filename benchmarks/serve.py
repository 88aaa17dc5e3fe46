"""Photographs over HTTP: Ray Serve (pipeline.serve) against `mlflow models serve`, in turn.

    python benchmarks/serve.py                     16 clients, 3 rounds of 20 s each, both services
    python benchmarks/serve.py --malformed 1000    then that many requests that are no good
    python benchmarks/serve.py --save              keep the result in benchmarks/results

Both services have one model, a head trained on the drawn shapes over the tiny CLIP, and are sent
the same photographs, 500 x 375 JPEGs of drawn scenes, one a request, scores without masks. They
start once and take turns; the one that waits is stopped (SIGSTOP), so that it takes no time. Each
has all CPUs that this program may use (taskset -c 0,1 for two), which it shares with the clients.
MLflow's command is as its documentation has it; `mlflow_one_thread` is the same with
OMP_NUM_THREADS=1, which suits it better where several requests are computed at once. The ratio is
that of medians over rounds. The last line of stdout is JSON.
"""

import argparse
import asyncio
import base64
import io
import json
import os
import random
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

import aiohttp
import numpy as np
import psutil
from common import tell

PHOTOGRAPHS = 64
SIZE = (500, 375)


def trained(folder: Path) -> Path:
    """A head over the tiny CLIP, trained for a moment."""
    import dclip
    from dclip.world.dataset import ShapesListing

    listing = ShapesListing("train")
    samples = [listing.read(row) for row in range(200)]
    names = [
        [listing.class_names[k] for k in np.flatnonzero(sample.labels == 1)] for sample in samples
    ]
    model = dclip.fit(
        [sample.image for sample in samples], names, backbone="tiny", epochs=3, device="cpu",
        class_names=listing.class_names, val_fraction=0.3, cache=folder / "cache", progress=False,
    )  # fmt: skip
    return model.save(folder / "model")


def photographs() -> list[str]:
    """Files as base64."""
    from dclip.world.dataset import ShapesListing

    listing, coded = ShapesListing("test"), []
    for row in range(PHOTOGRAPHS):
        file = io.BytesIO()
        listing.read(row).image.resize(SIZE).save(file, "JPEG", quality=90)
        coded.append(base64.b64encode(file.getvalue()).decode())
    return coded


def free_port() -> int:
    """A port that nothing listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class Service:
    """A service in a process of its own, and all that it starts."""

    def __init__(self, name: str, command: list[str], port: int, health: str, predict: str,
                 wrap: Callable[[dict[str, Any]], dict[str, Any]], env: dict[str, str],
                 log: Path) -> None:  # fmt: skip
        self.name, self.wrap, self.health = name, wrap, health
        self.url = f"http://127.0.0.1:{port}"
        self.predict, self.log = f"{self.url}{predict}", log
        self.process = subprocess.Popen(
            command, env={**os.environ, **env}, stdout=log.open("wb"), stderr=subprocess.STDOUT,
            start_new_session=True,
        )  # fmt: skip

    def tree(self) -> list[psutil.Process]:
        """Its processes."""
        own = psutil.Process(self.process.pid)
        return [own, *own.children(recursive=True)]

    def tell_all(self, what: signal.Signals) -> None:
        """Send a signal to all of them."""
        for each in self.tree():
            with suppress(psutil.NoSuchProcess):
                each.send_signal(what)

    def cpu_seconds(self) -> float:
        """CPU time of all its processes so far."""
        total = 0.0
        for each in self.tree():
            with suppress(psutil.NoSuchProcess):
                spent = each.cpu_times()
                total += spent.user + spent.system
        return total

    def stop(self) -> None:
        """End it, and what it leaves."""
        self.tell_all(signal.SIGCONT)
        tree = self.tree()
        self.process.send_signal(signal.SIGINT)
        psutil.wait_procs(tree, timeout=60)
        for each in tree:
            with suppress(psutil.NoSuchProcess):
                each.kill()


async def wait_for(service: Service) -> None:
    """Wait until it answers."""
    async with aiohttp.ClientSession() as session:
        for _ in range(600):
            with suppress(aiohttp.ClientError, asyncio.TimeoutError):
                async with session.get(service.url + service.health, timeout=_seconds(5)) as answer:
                    if answer.status == 200:
                        return
            if service.process.poll() is not None:
                break
            await asyncio.sleep(0.5)
    raise SystemExit(f"{service.name} does not start:\n{service.log.read_text()[-2000:]}")


def _seconds(count: float) -> aiohttp.ClientTimeout:
    return aiohttp.ClientTimeout(total=count)


async def load(service: Service, bodies: list[bytes], clients: int, seconds: float) -> list[float]:
    """Seconds that each answer took, of clients that ask again as soon as they are answered."""
    took: list[float] = []
    end = time.perf_counter() + seconds

    async def client(number: int, session: aiohttp.ClientSession) -> None:
        at = number
        while (begun := time.perf_counter()) < end:
            at += clients
            async with session.post(
                service.predict, data=bodies[at % len(bodies)], headers=_JSON
            ) as answer:
                text = await answer.read()
                if answer.status != 200:
                    raise SystemExit(f"{service.name}: {answer.status} {text[:300]!r}")
            if time.perf_counter() <= end:
                took.append(time.perf_counter() - begun)

    connector = aiohttp.TCPConnector(limit=clients)
    async with aiohttp.ClientSession(connector=connector, timeout=_seconds(120)) as session:
        await asyncio.gather(*(client(number, session) for number in range(clients)))
    return took


_JSON = {"Content-Type": "application/json"}


def malformed(number: int, good: bytes) -> tuple[str, bytes, dict[str, str]]:
    """A request that is no good, its kind, and its headers; no two are alike."""
    draw = random.Random(number)
    code = base64.b64encode
    photo = json.loads(good)["images"][0]["base64"]

    def asked(**what: Any) -> bytes:
        return json.dumps({"images": [{"base64": photo}], **what}).encode()

    def image(data: bytes) -> bytes:
        return asked(images=[{"base64": code(data).decode()}])

    def url(text: str) -> bytes:
        return asked(images=[{"url": text}])

    raw = base64.b64decode(photo)
    kinds: dict[str, Callable[[], bytes]] = {
        "noise": lambda: draw.randbytes(draw.randrange(1, 4000)),
        "half a body": lambda: good[: draw.randrange(1, len(good) - 1)],
        "wrong JSON": lambda: (
            draw.choice([b"[]", b"null", b"{}", b"1", b'"a"', b"NaN", b"{'a'}"]) + b" " * number
        ),
        "deep JSON": lambda: b"[" * (20_000 + number),
        "not an image": lambda: image(draw.randbytes(draw.randrange(1, 3000))),
        "half an image": lambda: image(raw[: draw.randrange(3, len(raw) // 2)]),
        "a bomb": lambda: image(bomb(20_000 + number, 20_000)),
        "a program": lambda: image(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n" * 9),
        "an SVG": lambda: image(b'<svg xmlns="http://www.w3.org/2000/svg"/>'),
        "50,000 classes": lambda: asked(classes=[f"class {k}" for k in range(50_000 + number)]),
        "a long class": lambda: asked(classes=["dog" * (1000 + number)]),
        "an empty class": lambda: asked(classes=["dog", " " * number]),
        "classes no list": lambda: asked(classes=draw.choice(["dog", {"a": 1}, 3, [1], [None]])),
        "half a character": lambda: asked(classes=["\ud800"]),
        "a wide threshold": lambda: asked(threshold=draw.choice([0, 1, -1, 7, 10**400, "a", True])),
        "an unknown key": lambda: asked(**{f"key{number}": 1}),
        "a path": lambda: asked(images=[{"base64": draw.choice(_PATHS)}]),
        "a path as URL": lambda: url(draw.choice(_PATHS)),
        "a URL of others": lambda: url(draw.choice(_URLS)),
        "too many images": lambda: asked(images=[{"base64": photo[:64]}] * (33 + number % 50)),
        "images no list": lambda: asked(images=draw.choice([{}, [], "a", None, [1], [{}], [[]]])),
        "wrong type": lambda: good,
        "too large": lambda: b" " * ((32 << 20) + 1 + number),
    }
    names = list(kinds)
    # the last is a hundred times as long as others
    kind = names[number % (len(names) - 1)] if number % 100 else "too large"
    headers = {"Content-Type": "text/plain"} if kind == "wrong type" else _JSON
    return kind, kinds[kind](), headers


_PATHS = ("/etc/passwd", "../../etc/passwd", "file:///etc/passwd", "C:\\boot.ini", "~/.ssh/id_rsa",
          "/proc/self/environ", "outputs/mlflow.db", "%2e%2e%2fetc%2fpasswd")  # fmt: skip
_URLS = ("http://169.254.169.254/latest/meta-data", "http://127.0.0.1:8265/api/version",
         "https://example.com/a.jpg", "http://localhost/", "ftp://host/a.jpg", "gopher://host/",
         "http://[::1]:8000/", "http://0x7f000001/", "https://user@host/a.jpg")  # fmt: skip


def bomb(width: int, height: int) -> bytes:
    """A PNG of few bytes that says it has as many pixels as asked for."""
    import struct
    import zlib

    def chunk(kind: bytes, data: bytes) -> bytes:
        check = struct.pack(">I", zlib.crc32(kind + data))
        return struct.pack(">I", len(data)) + kind + data + check

    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    rows = zlib.compress(bytes(1 << 20))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


async def send_malformed(service: Service, good: bytes, count: int) -> dict[str, Any]:
    """How requests that are no good were answered, by kind; and whether a good one still is."""
    found: Counter[str] = Counter()
    examples: dict[str, str] = {}
    bad: list[str] = []
    turn = asyncio.Semaphore(16)

    async def send(number: int, session: aiohttp.ClientSession) -> None:
        async with turn:
            kind, body, headers = malformed(number, good)
            async with session.post(service.predict, data=body, headers=headers) as answer:
                text = (await answer.read()).decode()
            named = ""
            with suppress(ValueError, KeyError, TypeError):
                named = json.loads(text)["error"]
            found[f"{kind}: {answer.status}"] += 1
            examples.setdefault(kind, named)
            leaks = "root:" in text or "Traceback" in text
            if not 400 <= answer.status < 500 or not named or "\n" in named or leaks:
                bad.append(f"{kind}: {answer.status} {text[:200]}")

    async with aiohttp.ClientSession(timeout=_seconds(120)) as session:
        await asyncio.gather(*(send(number, session) for number in range(count)))
        halves = await half_bodies(service, good, 20)
        async with session.post(service.predict, data=good, headers=_JSON) as answer:
            still = answer.status
    return {"sent": count, "not_4xx": bad, "cut_off": halves, "good_one_after": still,
            "answers": dict(sorted(found.items())), "examples": examples}  # fmt: skip


async def half_bodies(service: Service, good: bytes, count: int) -> int:
    """Connections that end in the middle of a body; how many were made."""
    host, port = service.url.removeprefix("http://").split(":")
    for number in range(count):
        _, writer = await asyncio.open_connection(host, int(port))
        head = f"POST /predict HTTP/1.1\r\nHost: {host}\r\nContent-Type: application/json\r\n"
        writer.write(f"{head}Content-Length: {len(good)}\r\n\r\n".encode())
        writer.write(good[: len(good) * (number + 1) // (count + 1)])
        await writer.drain()
        writer.close()
    return count


@contextmanager
def services(folder: Path, only: set[str], more: list[str]) -> Iterator[list[Service]]:
    """Both services, started and stopped."""
    import mlflow

    from pipeline.records.served import save_photograph_model

    model = trained(folder)
    save_photograph_model(folder / "mlmodel", model / "model.safetensors", mlflow.models.Model())
    port = free_port()
    ray = [
        sys.executable, "-m", "pipeline.serve", "--model", str(model), "--port", str(port),
        "--device", "cpu", "--output", str(folder / "outputs"), *more,
    ]  # fmt: skip
    made = [("ray", ray, port, "/health", "/predict", dict, {})]

    def wrapped(question: dict[str, Any]) -> dict[str, Any]:
        return {"inputs": [question]}

    for name, env in (("mlflow", {}), ("mlflow_one_thread", {"OMP_NUM_THREADS": "1"})):
        port = free_port()
        command = [
            sys.executable, "-m", "mlflow", "models", "serve", "--model-uri",
            str(folder / "mlmodel"), "--port", str(port), "--env-manager", "local",
        ]  # fmt: skip
        made.append((name, command, port, "/health", "/invocations", wrapped, env))
    with ExitStack() as stack:
        running = []
        for name, command, at, health, predict, wrap, env in made:
            if name not in only:
                continue
            service = Service(name, command, at, health, predict, wrap, env, folder / f"{name}.log")
            stack.callback(service.stop)
            asyncio.run(wait_for(service))
            service.tell_all(signal.SIGSTOP)
            running.append(service)
        yield running


def summary(rounds: list[list[float]], seconds: float) -> dict[str, float]:
    """Rates and times of all rounds."""
    every = np.array([one for some in rounds for one in some])
    p50, p95 = np.quantile(every, [0.5, 0.95]) * 1000
    return {
        "requests_per_second": round(statistics.median(len(some) / seconds for some in rounds), 1),
        "p50_ms": round(float(p50), 1), "p95_ms": round(float(p95), 1), "requests": len(every),
    }  # fmt: skip


def main() -> None:
    """Measure, and tell."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--clients", type=int, default=16)
    parser.add_argument("--seconds", type=float, default=20)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--malformed", type=int, default=0)
    parser.add_argument("--only", default="ray,mlflow,mlflow_one_thread")
    parser.add_argument("--flags", default="", help="of pipeline.serve")
    parser.add_argument("--save", action="store_true")
    flags = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # the services are ended as well
    questions = [{"images": [{"base64": one}]} for one in photographs()]
    result: dict[str, Any] = {
        "cpus": len(os.sched_getaffinity(0)), "clients": flags.clients,
        "load_before": round(os.getloadavg()[0], 1), "photograph": list(SIZE),
    }  # fmt: skip
    with tempfile.TemporaryDirectory() as place, services(
        Path(place), set(flags.only.split(",")), flags.flags.split()
    ) as running:  # fmt: skip
        took: dict[str, list[list[float]]] = {service.name: [] for service in running}
        spent: dict[str, float] = dict.fromkeys(took, 0.0)
        for number in range(flags.rounds):
            for service in running:
                bodies = [json.dumps(service.wrap(one)).encode() for one in questions]
                service.tell_all(signal.SIGCONT)
                asyncio.run(load(service, bodies, flags.clients, min(3.0, flags.seconds)))
                before = service.cpu_seconds()
                took[service.name].append(
                    asyncio.run(load(service, bodies, flags.clients, flags.seconds))
                )
                spent[service.name] += service.cpu_seconds() - before
                service.tell_all(signal.SIGSTOP)
                rate = len(took[service.name][-1]) / flags.seconds
                print(f"round {number + 1}: {service.name} {rate:.1f} requests/s", flush=True)
        for name, rounds in took.items():
            result[name] = summary(rounds, flags.seconds)
            requests = sum(map(len, rounds))
            result[name]["cpu_ms_per_request"] = round(1000 * spent[name] / requests, 2)
        for name in set(took) - {"ray"}:
            if "ray" in took:
                own, other = (result[each]["requests_per_second"] for each in ("ray", name))
                result[f"ray_over_{name}"] = round(own / other, 2)
        if flags.malformed:
            (ray,) = [service for service in running if service.name == "ray"]
            ray.tell_all(signal.SIGCONT)
            good = json.dumps(questions[0]).encode()
            result["malformed"] = asyncio.run(send_malformed(ray, good, flags.malformed))
    tell("serve-cpu", result, save=flags.save)


if __name__ == "__main__":
    main()

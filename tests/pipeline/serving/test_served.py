"""The service over HTTP: one Ray Serve for all tests of this file, and one server of MLflow's."""

import base64
import importlib.util
import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
import warnings
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from pycocotools import mask as coco_mask

import dclip
from dclip.recognition.recognizer import Recognizer
from pipeline.settings.config import Config

with warnings.catch_warnings(action="ignore"):  # of MLflow's own types
    import mlflow.pyfunc
    import mlflow.pytorch
    from mlflow.exceptions import MlflowException
    from mlflow.models import Model

    from pipeline.records.served import save_photograph_model
    from pipeline.records.tracking import Tracker

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore::ResourceWarning"),  # Ray leaves sockets and files open
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning:ray.*"),
    pytest.mark.filterwarnings("ignore::UserWarning:ray.*"),
    pytest.mark.filterwarnings("ignore::UserWarning:dclip.*"),  # of names that were not trained
    pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning"),  # pycocotools
]
ROOT = Path(__file__).parents[3]


def question(*files: bytes, **more: Any) -> dict[str, Any]:
    return {"images": [{"base64": base64.b64encode(one).decode()} for one in files], **more}


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def ask(url: str, content: Any = None, kind: str = "application/json") -> tuple[int, Any]:
    """Status and JSON of an answer."""
    body = (
        content if content is None or isinstance(content, bytes) else json.dumps(content).encode()
    )
    request = urllib.request.Request(url, body, {"Content-Type": kind} if body is not None else {})
    try:
        with urllib.request.urlopen(request, timeout=60) as answer:
            return answer.status, json.loads(answer.read())
    except urllib.error.HTTPError as error:
        return error.code, json.loads(error.read())


@pytest.fixture(scope="module")
def model(model_folder: Path) -> Recognizer:
    return dclip.load(model_folder, device="cpu")


@pytest.fixture(scope="module")
def url(model_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    from pipeline.cluster.session import ray_session
    from pipeline.work.serving import served

    section = {"port": free_port(), "threads": 1, "max_batch_size": 4, "body_seconds": 2}
    config = Config(device="cpu", output=tmp_path_factory.mktemp("out"), serve=section)
    with ray_session(config), served(config, str(model_folder)) as place:
        yield place


def assert_equal(answer: dict[str, Any], expected: Any) -> None:
    """What is told of an image is what the library says."""
    assert answer["present"] == expected.present
    assert answer["measures"] == expected.measures
    assert answer["thresholds"] == pytest.approx(expected.thresholds)
    assert answer["scores"] == pytest.approx(expected.scores, abs=1e-4)


def test_what_answers_is_told(url: str, model: Recognizer) -> None:
    assert ask(f"{url}/health") == (200, {"status": "ok"})
    status, told = ask(f"{url}/model")
    assert status == 200
    assert told["classes"] == list(model.class_names)
    assert list(told["thresholds"].values()) == pytest.approx(model.thresholds.tolist())
    assert model.about is not None
    assert told["feature_space"] == model.about.feature_space
    assert told["limits"]["max_images"] == 32
    assert "/" not in json.dumps({key: told[key] for key in ("name", "checkpoint", "backbone")})


def test_many_at_once_are_answered_as_the_library_answers_one(
    url: str, model: Recognizer, photographs: list[bytes]
) -> None:
    """Of three lists of classes, which come in mixed and leave in batches."""
    lists: list[list[str] | None] = [None, ["star", "ring"], ["dog", "moon", "car"]]
    asked = [(one, names) for one in photographs for names in lists]
    with ThreadPoolExecutor(16) as pool:
        answers = list(
            pool.map(lambda each: ask(f"{url}/predict", question(each[0], classes=each[1])), asked)
        )
    for (photo, names), (status, answer) in zip(asked, answers, strict=True):
        assert status == 200, answer
        (expected,) = model.predict(photo, names, masks=False)
        assert_equal(answer["images"][0], expected)
    status, answer = ask(f"{url}/predict", question(*photographs))
    for found, expected in zip(
        answer["images"], model.predict(photographs, masks=False), strict=True
    ):
        assert_equal(found, expected)
    assert answer["model"]["version"]


def test_masks_are_those_of_the_library(
    url: str, model: Recognizer, photographs: list[bytes]
) -> None:
    body = question(*photographs, masks=True, threshold=0.4)
    _, answer = ask(f"{url}/predict", body)
    pixels = 0
    for found, expected in zip(
        answer["images"], model.predict(photographs, threshold=0.4), strict=True
    ):
        assert found["masks"].keys() == set(expected.present)
        assert set(found["thresholds"].values()) == {0.4}
        for name, coded in found["masks"].items():
            own = expected.mask == 1 + expected.class_names.index(name)
            decoded = coco_mask.decode(coded)
            pixels += int(decoded.sum())
            assert decoded.shape == own.shape
            assert (decoded != own).mean() < 0.01
    assert pixels > 100


def benchmark() -> ModuleType:
    spec = importlib.util.spec_from_file_location("serve_bench", ROOT / "benchmarks" / "serve.py")
    assert spec is not None
    assert spec.loader is not None
    made = importlib.util.module_from_spec(spec)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(ROOT / "benchmarks"))
        spec.loader.exec_module(made)
    return made


def test_what_is_no_good_is_named_and_costs_no_other(url: str, photographs: list[bytes]) -> None:
    good = json.dumps(question(photographs[0])).encode()
    malformed = benchmark().malformed
    with ThreadPoolExecutor(8) as pool:
        sent = [malformed(number, good) for number in range(1, 93)]
        answers = list(
            pool.map(lambda one: ask(f"{url}/predict", one[1], one[2]["Content-Type"]), sent)
        )
    assert len({kind for kind, _, _ in sent}) > 20
    for (kind, _, _), (status, answer) in zip(sent, answers, strict=True):
        assert 400 <= status < 500, (kind, status, answer)
        assert answer.keys() == {"error"}
        assert "\n" not in answer["error"]
    assert ask(f"{url}/predict", good)[0] == 200


def test_half_a_body_waits_for_a_while_only(url: str, photographs: list[bytes]) -> None:
    good = json.dumps(question(photographs[0])).encode()
    host, port = url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=30) as made:
        head = f"POST /predict HTTP/1.1\r\nHost: {host}\r\nContent-Type: application/json\r\n"
        made.sendall(f"{head}Content-Length: {len(good)}\r\n\r\n".encode() + good[:100])
        answer = made.recv(4096)
    assert answer.startswith(b"HTTP/1.1 408")
    assert ask(f"{url}/predict", good)[0] == 200


@pytest.mark.parametrize(
    ("path", "status"), [("/nothing", 404), ("/../../etc/passwd", 404), ("/predict", 405)]
)
def test_there_is_nothing_else_to_ask(url: str, path: str, status: int) -> None:
    found, answer = ask(f"{url}{path}")
    assert found == status
    assert "POST /predict" in answer["error"]


# --- MLflow


@pytest.fixture(scope="module")
def mlflow_folder(model_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("mlflow") / "model"
    save_photograph_model(folder, model_folder / "model.safetensors", Model())
    return folder


def test_nothing_in_the_folder_of_a_model_is_a_pickle(mlflow_folder: Path) -> None:
    files = {path.name: path for path in mlflow_folder.rglob("*") if path.is_file()}
    assert {"MLmodel", "photographs.py", "model.safetensors"} <= files.keys()
    assert not [name for name in files if name.endswith((".pkl", ".pickle", ".pt", ".pth", ".bin"))]
    assert repr(dclip.load(mlflow_folder)).startswith("Recognizer(dclip on tiny")


def test_a_loaded_model_takes_bytes_and_names_what_is_wrong(
    mlflow_folder: Path, model: Recognizer, photographs: list[bytes]
) -> None:
    with warnings.catch_warnings(action="ignore"):  # of a map of any values
        loaded = mlflow.pyfunc.load_model(str(mlflow_folder))
    (answer,) = loaded.predict([{"images": [{"content": one} for one in photographs]}])
    for found, expected in zip(
        answer["images"], model.predict(photographs, masks=False), strict=True
    ):
        assert_equal(found, expected)
    bomb = benchmark().bomb(10_000, 8_000)
    with pytest.raises(MlflowException, match=r"^images.0.: an image .* 10000 x 8000") as error:
        loaded.predict([{"images": [{"content": bomb}]}])
    assert error.value.get_http_status_code() == 413


def test_a_registered_model_answers_photographs_and_is_loaded_by_its_name(
    model_folder: Path,
    model: Recognizer,
    photographs: list[bytes],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with Tracker(Config(output=tmp_path)).run("sweep", key="s") as run:
        checkpoint = model_folder / "model.safetensors"
        run.register("dclip-shapes", checkpoint, key="s", tags={"val_map": "0.5"})
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path / 'mlflow.db'}")
    uri = "models:/dclip-shapes@best"
    with warnings.catch_warnings(action="ignore"):  # of a map of any values
        answer = mlflow.pyfunc.load_model(uri).predict([question(photographs[0])])[0]
        head = mlflow.pytorch.load_model(uri)
    (expected,) = dclip.load(uri, device="cpu").predict(photographs[0], masks=False)
    assert_equal(answer["images"][0], expected)
    assert expected.scores == model.predict(photographs[0], masks=False)[0].scores
    assert head(torch.zeros(2, 5, model.backbone.embed_dim)).shape == (2, len(model.class_names))


def test_mlflow_serves_photographs(
    mlflow_folder: Path, model: Recognizer, photographs: list[bytes], tmp_path: Path
) -> None:
    port = free_port()
    place = f"http://127.0.0.1:{port}"
    log = (tmp_path / "log").open("wb")
    command = [
        sys.executable, "-m", "mlflow", "models", "serve", "-m", str(mlflow_folder), "--port",
        str(port), "--env-manager", "local",
    ]  # fmt: skip
    server = subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True)
    try:
        for _ in range(240):
            try:
                with urllib.request.urlopen(f"{place}/ping", timeout=5):
                    break
            except OSError:
                assert server.poll() is None, (tmp_path / "log").read_text()
                time.sleep(0.5)
        status, answer = ask(
            f"{place}/invocations", {"inputs": [question(photographs[0], classes=["star", "ring"])]}
        )
        assert status == 200, answer
        (expected,) = model.predict(photographs[0], ["star", "ring"], masks=False)
        assert_equal(answer["predictions"][0]["images"][0], expected)
        for wrong, named in (
            ([{"images": [{"base64": "/etc/passwd"}]}], "not base64"),
            ([{"images": [{"url": "http://127.0.0.1:1/a.jpg"}]}], "fetches no URLs"),
            ([question(photographs[0], classes=["a"] * 50_000)], "at most 1000 classes"),
            ([question(b"no image")], "no image of a known format"),
            ([{"image": 1}], "images"),
        ):
            status, answer = ask(f"{place}/invocations", {"inputs": wrong})
            assert 400 <= status < 500, answer
            assert named in answer["message"]
        assert ask(f"{place}/invocations", b"{")[0] == 400
        assert ask(f"{place}/invocations", {"inputs": [question(photographs[1])]})[0] == 200
    finally:
        os.killpg(server.pid, signal.SIGTERM)
        server.wait(30)
        log.close()


def test_scores_are_numbers_that_json_has(model: Recognizer, photographs: list[bytes]) -> None:
    from pipeline.serving.model import told

    (found,) = model.predict(photographs[0], ["dog", "star"], masks=True)
    assert json.loads(json.dumps(told(found, masks=True), allow_nan=False))["scores"]
    assert np.isfinite(list(found.scores.values())).all()

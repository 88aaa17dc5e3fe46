"""What a user sees of a sweep in MLflow: its pages, from a real server in a real browser."""

import asyncio
import base64
import io
import shutil
import subprocess
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import aiohttp
import mlflow
import numpy as np
import pytest
from PIL import Image

from pipeline.records.tracking import Tracker
from pipeline.settings.config import Config
from pipeline.stages import extract, sweep

from .conftest import WITH_RAY, MlflowServer, settings

CHROMIUM = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
)
pytestmark = [
    *WITH_RAY,
    pytest.mark.skipif(CHROMIUM is None, reason="no chromium on the PATH"),
]
SPACE = {
    "dclip.redundancy_weight": [0.2, 1.0],
    "dclip.mfi_weight": [0.1, 1.0],
    "dclip.output_dim": [4, 8],
}


class Browser:
    """One tab of a headless Chromium, driven over its debugging port."""

    def __init__(self, folder: Path) -> None:
        self.process = subprocess.Popen(
            [
                CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage",
                "--window-size=1600,1200", "--remote-debugging-port=0", f"--user-data-dir={folder}",
            ],
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        file = folder / "DevToolsActivePort"
        deadline = time.monotonic() + 60
        while not (file.is_file() and file.read_text().count("\n")):
            assert time.monotonic() < deadline
            time.sleep(0.1)
        self.port = file.read_text().splitlines()[0]

    def see(self, url: str, *clicks: str, until: str) -> tuple[str, np.ndarray]:
        """Text and pixels of a page.

        Args:
            url: The page.
            clicks: Elements to click one after the other, as JavaScript expressions.
            until: Text that the page must show at the end.
        """
        return asyncio.run(self._see(url, clicks, until))

    async def _see(self, url: str, clicks: tuple[str, ...], until: str) -> tuple[str, np.ndarray]:
        request = urllib.request.Request(
            f"http://127.0.0.1:{self.port}/json/new?about:blank", method="PUT"
        )
        with urllib.request.urlopen(request) as answer:
            (address,) = [line for line in answer.read().decode().split('"') if "ws://" in line]
        async with (
            aiohttp.ClientSession() as session,
            session.ws_connect(address, max_msg_size=0) as socket,
        ):
            number = 0

            async def call(method: str, **values: Any) -> dict[str, Any]:
                nonlocal number
                number += 1
                await socket.send_json({"id": number, "method": method, "params": values})
                while (reply := await socket.receive_json()).get("id") != number:
                    pass
                return dict(reply["result"])

            async def script(text: str) -> Any:
                result = await call("Runtime.evaluate", expression=text, returnByValue=True)
                return result["result"].get("value")

            async def wait(text: str) -> None:
                deadline = time.monotonic() + 120
                while not await script(text):
                    body = await script("document.body && document.body.innerText")
                    assert time.monotonic() < deadline, (text, body)
                    await asyncio.sleep(0.3)

            await call("Page.navigate", url=url)
            for found in clicks:
                await wait(f"Boolean({found})")
                await script(f"{found}.scrollIntoView({{block: 'center'}})")
                x, y = await script(
                    f"(r => [r.x + r.width / 2, r.y + r.height / 2])"
                    f"({found}.getBoundingClientRect())"
                )
                mouse = {"x": x, "y": y, "button": "left", "clickCount": 1}
                for kind in ("mousePressed", "mouseReleased"):
                    await call("Input.dispatchMouseEvent", type=kind, **mouse)
            await wait(f"document.body.innerText.includes({until!r})")
            await asyncio.sleep(3)  # plots are drawn in steps
            body = await script("document.body.innerText")
            picture = await call("Page.captureScreenshot")
            with Image.open(io.BytesIO(base64.b64decode(picture["data"]))) as image:
                return body, np.asarray(image.convert("RGB"))


def text(words: str, among: str = "*") -> str:
    """The innermost element with this text."""
    return (
        f"[...document.querySelectorAll({among!r})].filter(e => e.textContent == {words!r}).at(-1)"
    )


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    browser = Browser(tmp_path_factory.mktemp("chromium"))
    yield browser
    browser.process.kill()
    browser.process.wait()


@pytest.fixture(scope="module")
def swept(
    ray_session: None, mlflow_server: MlflowServer, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[dict[str, Any]]:
    """Report of a sweep recorded on the server."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLFLOW_TRACKING_URI", mlflow_server.uri)
        config = settings(
            tmp_path_factory.mktemp("pages"),
            experiment="pages",
            extract={"limit": 48, "shard_size": 16, "split": "train"},
            sweep={"epochs": 2, "space": SPACE},
        )
        extract.run(config)
        yield sweep.run(config)


def test_the_trials_are_listed_as_children_of_the_sweep(
    swept: dict[str, Any], mlflow_server: MlflowServer, browser: Browser
) -> None:
    # the page that a stage prints: not the one for GenAI, which shows no run
    page = Tracker(
        Config(experiment="pages", output=Path(swept["checkpoint"]).parent)
    ).experiment_url()
    assert page.startswith(mlflow_server.uri)
    trial = "redundancy_weight=0.2 mfi_weight=0.1 output_dim=4"
    short_hash = swept["name"][-12:][:6]  # the name of its run ends with it
    folded, _ = browser.see(page, until=short_hash)
    assert trial not in folded
    unfolded, _ = browser.see(
        page, "document.querySelector('[col-id*=\"Run Name\"] button')", until=trial
    )
    assert all(
        f"redundancy_weight={row['dclip.redundancy_weight']:g} "
        f"mfi_weight={row['dclip.mfi_weight']:g} output_dim={row['dclip.output_dim']}" in unfolded
        for row in swept["trials"]
    )


def test_the_best_trial_shows_its_model(
    swept: dict[str, Any], mlflow_server: MlflowServer, browser: Browser
) -> None:
    store = mlflow.MlflowClient(mlflow_server.uri)
    name, number = swept["model"].removeprefix("models:/").split("/")
    version = store.get_model_version(name, number)
    run = store.get_run(version.run_id)
    page = f"{mlflow_server.uri}/#/experiments/{run.info.experiment_id}/runs/{version.run_id}"
    body, _ = browser.see(page, until="projectors")
    assert f"{name}" in body


def test_the_printed_page_shows_lambda_alpha_and_dim_against_val_map(
    swept: dict[str, Any], browser: Browser
) -> None:
    body, pixels = browser.see(swept["compare_url"], until="Parallel Coordinates Plot")
    assert "Comparing 8 Runs from 1 Experiment" in body
    # what the plot selects by itself is what the sweep varied
    selected = body.split("Parameters:\n")[1].split("\nClear All")[0].splitlines()
    assert selected == [*sorted(SPACE), "Metrics:", "val/map"]
    plot = pixels[180:600, 520:1140].reshape(-1, 3).astype(int)
    coloured = (plot.max(axis=1) - plot.min(axis=1)) > 80
    assert coloured.mean() > 0.005  # lines from red to blue


def test_the_contour_plot_draws_val_map_over_lambda_and_alpha(
    swept: dict[str, Any], browser: Browser
) -> None:
    clicks = [text("Contour Plot")]
    for axis, name in zip("xyz", ("dclip.mfi_weight", "dclip.redundancy_weight", "val/map"),
                          strict=True):  # fmt: skip
        clicks += [f"document.querySelector('#{axis}axis-selector')", text(name, "[role=option]")]
    body, pixels = browser.see(swept["compare_url"], *clicks, until="Z-axis")
    assert body.split("Z-axis:\n")[1].startswith("val/map\n")
    assert "enough unique data points" not in body
    plot = pixels[180:600, 520:1140].reshape(-1, 3).astype(int)
    coloured = (plot.max(axis=1) - plot.min(axis=1)) > 80
    assert coloured.mean() > 0.2  # a filled surface

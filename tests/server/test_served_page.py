"""The page in a real browser: a picture is given to it, and what the server finds is listed."""

from __future__ import annotations

import json
import queue
import shutil
import subprocess
from typing import Any

import numpy as np
import pytest
from rectangles import RectangleBackend, opened, scene

pytest.importorskip("starlette")
pytest.importorskip("uvicorn")
pytest.importorskip("python_multipart")

from running import encoded, serving
from starlette.requests import Request
from starlette.responses import Response

from dfine_jax.server.engine import Engine
from dfine_jax.server.limits import Limits

BROWSER = next(
    (found for name in ("chromium", "chromium-browser", "google-chrome") if (found := shutil.which(name))), ""
)
pytestmark = pytest.mark.skipif(not BROWSER, reason="no chromium is installed")
# A page beside the page, which gives it a picture as a person does and tells what it shows then.
TRIAL = """<!doctype html><body style="margin: 0"><iframe id="frame" src="/" style="border: 0; width: WIDTHpx;
height: 900px"></iframe><script type="module">
const frame = document.getElementById("frame");
const inside = (id) => frame.contentDocument?.getElementById(id);
const until = async (true_) => { while (!true_()) await new Promise((wake) => setTimeout(wake, 30)); };
const trouble = () => inside("problem") && !inside("problem").hidden && inside("problem").textContent;
await until(() => trouble() || (inside("open") && !inside("not-started") && !inside("open").disabled
  && inside("engine").textContent));
const files = new DataTransfer();
files.items.add(new File([await (await fetch("/trial/picture")).blob()], "photo.png", { type: "image/png" }));
inside("file").files = files.files;
inside("file").dispatchEvent(new Event("change"));
await until(() => trouble() || inside("objects").querySelector(".name"));
const texts = (selector) => [...inside("objects").querySelectorAll(selector)].map((e) => e.textContent);
await fetch("/trial/done", { method: "POST", body: JSON.stringify({
  problem: trouble(), names: texts(".name"), engine: inside("engine").textContent, title: inside("title").textContent,
  times: inside("times").textContent, privacy: inside("privacy").textContent,
  width: frame.contentWindow.innerWidth, scroll: frame.contentDocument.documentElement.scrollWidth }) });
</script>"""


class Beside:
    """An application with the trial's own addresses before another one."""

    def __init__(self, app: Any, page: str, picture: bytes) -> None:
        self.app, self.page, self.picture = app, page, picture
        self.told: queue.Queue[dict[str, Any]] = queue.Queue()

    async def __call__(self, scope, receive, send):
        match scope.get("path"):
            case "/trial":
                await Response(self.page, media_type="text/html")(scope, receive, send)
            case "/trial/picture":
                await Response(self.picture, media_type="image/png")(scope, receive, send)
            case "/trial/done":
                self.told.put(json.loads(await Request(scope, receive).body()))
                await Response("")(scope, receive, send)
            case _:
                await self.app(scope, receive, send)


def shown(tmp_path, engine: Engine, picture: bytes, width: int, **options: Any) -> dict[str, Any]:
    """What the page shows of a picture, in a window of this width."""
    beside: list[Beside] = []

    def around(app):
        beside.append(Beside(app, TRIAL.replace("WIDTH", str(width)), picture))
        return beside[0]

    with serving(engine, around=around, **options) as port:
        command = [BROWSER, "--headless=new", "--no-sandbox", "--disable-gpu", "--no-first-run"]
        command += [f"--user-data-dir={tmp_path / 'profile'}", f"--window-size={max(width, 500)},900"]
        with subprocess.Popen(
            [*command, f"http://127.0.0.1:{port}/trial"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        ) as browser:
            try:
                return beside[0].told.get(timeout=90)
            finally:
                browser.terminate()


@pytest.mark.parametrize("width", [390, 1920])
def test_a_picture_is_looked_at_by_the_server(tmp_path, width):
    picture = encoded(scene(96, 64, ("red", 8, 8, 40, 30), ("blue", 50, 20, 90, 60)))
    told = shown(tmp_path, Engine(opened(RectangleBackend(mask_stride=4)), threshold=0.3), picture, width)
    assert told["problem"] is False and told["names"] == ["red", "blue"]
    assert told["title"] == "toy" and "on the server" in told["engine"] and "network" in told["times"]
    assert "sent to the server" in told["privacy"]
    assert told["width"] == width and told["scroll"] <= width


def test_a_picture_that_is_too_large_for_the_server_is_made_smaller_by_the_page(tmp_path):
    pixels = scene(300, 200, ("red", 20, 20, 120, 120))
    noise = np.random.default_rng(0).integers(0, 20, pixels.shape, np.uint8)
    picture = encoded(np.where(pixels > 20, pixels, noise).astype(np.uint8))
    limits = Limits(body_mb=0.05)
    assert len(picture) > limits.body_bytes
    told = shown(tmp_path, Engine(opened(), threshold=0.3), picture, 800, limits=limits)
    assert told["problem"] is False and told["names"] == ["red"]

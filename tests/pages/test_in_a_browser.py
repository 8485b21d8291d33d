"""Pages in a real browser: nothing is wider than the window, and letters are large enough to read."""

from __future__ import annotations

import html
import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from dfine_jax.pages.charts import Bar, Bars, Chart, Curve
from dfine_jax.pages.page import (
    Commands,
    Confusion,
    Facts,
    FigureBeside,
    FigureFile,
    Files,
    Filter,
    Folded,
    Marked,
    Pair,
    Section,
    Table,
    page,
)

BROWSER = next(
    (found for name in ("chromium", "chromium-browser", "google-chrome") if (found := shutil.which(name))), ""
)
pytestmark = pytest.mark.skipif(not BROWSER, reason="no chromium is installed")
LEAST_PX = 10.5  # of letters
LEAST_CONTRAST = 4.5  # of letters with what is behind them (WCAG AA)
LONG = "a/very/long/path/without/any/blank/in/it/" * 4
# What a frame as wide as the window to be tested measures of the page in it.
MEASURE = """
<script>
addEventListener("load", () => {
  const written = "p, th, dt, dd, code, figcaption, svg text, li b, li span, a, label";
  const letters = [...document.querySelectorAll("td, " + written)]
    .filter(e => e.textContent.trim())
    .map(e => [parseFloat(getComputedStyle(e).fontSize) * (e.getScreenCTM ? e.getScreenCTM().a : 1), e.textContent]);
  letters.sort((a, b) => a[0] - b[0]);
  const rgba = text => { const n = text.match(/[\d.]+/g).map(Number); return n.length < 4 ? [...n, 1] : n; };
  const behind = e => {
    const [r, g, b, a] = rgba(getComputedStyle(e).backgroundColor);
    if (a === 1) return [r, g, b];
    const under = e.parentElement ? behind(e.parentElement) : [255, 255, 255];
    return [r, g, b].map((c, i) => c * a + under[i] * (1 - a));
  };
  const light = c => c.slice(0, 3).map(v => v / 255).map(v => v <= .04 ? v / 12.92 : ((v + .055) / 1.055) ** 2.4)
    .reduce((sum, v, i) => sum + v * [.2126, .7152, .0722][i], 0);
  const contrasts = [...document.querySelectorAll(written)]
    .filter(e => e.textContent.trim()).map(e => {
      const style = getComputedStyle(e);
      const both = [light(rgba(e.ownerSVGElement ? style.fill : style.color)), light(behind(e))].sort((a, b) => b - a);
      return [(both[0] + .05) / (both[1] + .05), e.textContent];
    }).sort((a, b) => a[0] - b[0]);
  const figures = () => [...document.querySelectorAll(".beside")].filter(e => e.offsetWidth).length;
  const boxes = document.querySelectorAll(".filter input");
  const filtered = [figures(), ...[0, 1].map(i => { boxes[i].click(); return figures(); })];
  const pictures = [...document.querySelectorAll(".pair img, .whole img")].map(e => e.getBoundingClientRect().width);
  parent.postMessage({width: innerWidth, scroll: document.documentElement.scrollWidth, smallest: letters[0],
    palest: contrasts[0], filtered, dark: matchMedia("(prefers-color-scheme: dark)").matches, pictures}, "*");
});
</script>
"""
FRAME = """<!doctype html><body style="margin: 0"><iframe src="page.html" style="border: 0; width: {width}px;
  height: 800px"></iframe><pre id="out"></pre>
<script>addEventListener("message", e => document.getElementById("out").textContent = JSON.stringify(e.data))</script>
"""


def everything(folder: Path) -> str:
    """A page with one of each, of the kind that makes pages wide."""
    for name in ("a.png", "b.png"):
        Image.new("RGB", (800, 600), "navy").save(folder / name)
    names = [f"a class with a long name {i}" for i in range(20)]
    curves = [Curve(f"curve {i}", [(x, x * 0.000123 * i) for x in range(30)]) for i in range(1, 5)]
    counts = [[i * j for i in range(21)] for j in range(21)]
    items = [
        [Facts([("weights", LONG)]), Facts([("b", "c")]), Folded("more", LONG)],
        [Chart("Chart", "epoch", curves, (22, "best, epoch 22"), whole=True)] * 5,
        [Table(("class", *["a number"] * 9), [(name, *["0.123"] * 9) for name in names], broad=True)],
        [Confusion(names, counts)],
        [Pair(("annotated", "a.png"), ("detected", "b.png"), LONG)] * 2,
        [FigureFile("a.png", "whole")],
        [Filter("Only these", [(name, 3) for name in [*names, LONG]])],
        [FigureBeside("a.png", "b.png", [Marked("full", (1, 2, 3), "cat")], LONG, tags=[names[0]])] * 4,
        [FigureBeside("a.png", "b.png", [], "another", tags=[names[1]])],
        [Bars("Latency", "ms", [Bar(LONG, 3.0, "3 ms, AP 0.5", 4.0)])],
        [Commands([("again", f"dfine train {LONG}")]), Files([("a.png", "a picture")])],
    ]
    sections = [Section(f"Part {i}", f"Words. {LONG}", each) for i, each in enumerate(items)]
    return page(f"Run {LONG}", LONG, sections, long=True)


def shown(folder: Path, width: int, *switches: str) -> dict[str, Any]:
    """What ``MEASURE`` says of page.html in a window so wide."""
    (folder / "frame.html").write_text(FRAME.format(width=width))
    command = [BROWSER, "--headless=new", "--no-sandbox", "--disable-gpu", "--allow-file-access-from-files"]
    command += [f"--user-data-dir={folder / 'profile'}", f"--window-size={max(width, 500)},900", *switches]
    command += ["--virtual-time-budget=20000", "--dump-dom", (folder / "frame.html").as_uri()]
    dom = subprocess.run(command, capture_output=True, text=True, timeout=180, check=True).stdout
    found = re.search(r'<pre id="out">(\{.*?\})</pre>', dom, re.DOTALL)
    assert found is not None, dom[-2000:]
    return json.loads(html.unescape(found[1]))


@pytest.mark.parametrize(
    ("width", "dark"), [(390, False), (390, True), (768, False), (1280, False), (1280, True), (1920, False)]
)
def test_nothing_is_wider_than_the_window_and_everything_can_be_read(tmp_path, width, dark):
    (tmp_path / "page.html").write_text(everything(tmp_path) + MEASURE)
    measured = shown(tmp_path, width, *(["--blink-settings=preferredColorScheme=0"] if dark else []))
    assert measured["width"] == width and measured["scroll"] <= width
    size_px, text = measured["smallest"]
    assert size_px >= LEAST_PX, (size_px, text)
    assert min(measured["pictures"]) >= 300
    assert measured["dark"] == dark
    contrast, text = measured["palest"]
    assert contrast >= LEAST_CONTRAST, (contrast, text)
    assert measured["filtered"] == [5, 4, 5]  # figures at first, with the first box ticked, with both

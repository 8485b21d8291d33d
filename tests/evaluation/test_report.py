"""The page: well-formed, self-contained, numbers and curves in place."""

from __future__ import annotations

import base64
import io
import re
from xml.etree import ElementTree

import pytest
from PIL import Image

from dfine_jax.evaluation.report import (
    Chart,
    Commands,
    Curve,
    Figure,
    FigureBeside,
    Marked,
    Section,
    Table,
    _ticks,
    chart_svg,
    page,
)


def points(svg: str) -> list[list[tuple[float, float]]]:
    lines = ElementTree.fromstring(svg).findall("polyline")
    return [[tuple(map(float, p.split(","))) for p in line.attrib["points"].split()] for line in lines]


def test_curves_keep_their_shape_and_stay_inside():
    first, second = points(
        chart_svg(Chart("t", "epoch", [Curve("a", [(0, 0), (5, 0.5), (10, 1)]), Curve("b", [(2, 1)])]))
    )
    (x0, y0), (x1, y1), (x2, y2) = first
    assert (x1 - x0, y1 - y0) == pytest.approx((x2 - x1, y2 - y1), abs=0.2)
    assert x0 < x2
    assert y0 > y2  # SVG counts downwards
    assert second[0][1] == y2
    assert all(0 <= x <= 460 and 0 <= y <= 230 for x, y in first + second)


@pytest.mark.parametrize("curve", [[(1.0, 3.0)], [(0.0, 0.0), (1.0, 0.0)], [(1.0, -2.0), (2.0, -1.0)]])
def test_degenerate_curves(curve):
    (line,) = points(chart_svg(Chart("t", "x", [Curve("a", curve)])))
    assert all(0 <= x <= 460 and 0 <= y <= 230 for x, y in line)


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [
        (0, 1, [0, 0.25, 0.5, 0.75, 1]),
        (0, 34, [0, 10, 20, 30, 40]),
        (0, 0.42, [0, 0.2, 0.4, 0.6]),
        (0, 0, [0, 0.25, 0.5, 0.75, 1]),
    ],
)
def test_ticks_are_round_and_enclose(low, high, expected):
    assert _ticks(low, high) == expected


def test_page_holds_everything_and_escapes_text():
    image = Image.new("RGB", (30, 20), (200, 10, 10))
    sections = [
        Section("Numbers", "a < b", [Table(("x", "y"), [("<b>", "0.5")])]),
        Section(
            "Pictures", "", [Figure(image, 'cat & "dog"'), Chart("loss", "step", [Curve("loss", [(0, 2), (1, 1)])])]
        ),
    ]
    text = page("A & B", "intro", sections)
    assert "<title>A &amp; B</title>" in text
    assert "a &lt; b" in text
    assert "<td>&lt;b&gt;</td>" in text
    assert "<script" not in text
    assert not re.search(r'(src|href)="(?!data:)', text)  # nothing is loaded from elsewhere
    encoded = re.search(r"data:image/jpeg;base64,([^\"]+)", text)
    assert encoded
    assert Image.open(io.BytesIO(base64.b64decode(encoded[1]))).size == (30, 20)


def test_pictures_beside_the_page_lead_to_their_files():
    figure = FigureBeside("p/a b.jpg", "../x&y/ü%.png", [Marked("dashed", (255, 176, 0), "a < b")], "IoU & more ")
    text = page("t", "", [Section("One", "", [figure]), Section("Two", "")], long=True)
    assert 'src="p/a%20b.jpg"' in text and text.count('href="../x%26y/%C3%BC%25.png"') == 2
    assert ">ü%.png</a>" in text and "a &lt; b" in text and "IoU &amp; more" in text
    assert 'class="dashed" style="border-color: rgb(255, 176, 0)"' in text
    assert '<a href="#s1">Two</a>' in text and '<h2 id="s1">Two</h2>' in text
    assert "<nav>" not in page("t", "", [Section("One", "")])


def test_commands_are_shown_as_they_are_typed():
    text = page("t", "", [Section("Go on", "", [Commands([("a > b", "dfine predict 'a b' --out c")])])])
    assert "<td>a &gt; b</td><td><code>dfine predict &#x27;a b&#x27; --out c</code></td>" in text

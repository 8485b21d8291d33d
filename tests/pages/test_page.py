"""The page: well-formed, self-contained, numbers and curves in place."""

from __future__ import annotations

import re
from xml.etree import ElementTree

import pytest

from dfine_jax.pages.charts import Bar, Bars, Chart, Curve, chart, chart_svg, ticks
from dfine_jax.pages.markup import Markup, element
from dfine_jax.pages.page import (
    Commands,
    Confusion,
    FigureBeside,
    Files,
    Filter,
    Folded,
    Marked,
    Pair,
    Section,
    Table,
    page,
)
from dfine_jax.pages.smooth import smoothed, thinned


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
    assert all(0 <= x <= 420 and 0 <= y <= 220 for x, y in first + second)


@pytest.mark.parametrize("curve", [[(1.0, 3.0)], [(0.0, 0.0), (1.0, 0.0)], [(1.0, -2.0), (2.0, -1.0)]])
def test_degenerate_curves(curve):
    (line,) = points(chart_svg(Chart("t", "x", [Curve("a", curve)])))
    assert all(0 <= x <= 420 and 0 <= y <= 220 for x, y in line)


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [
        (0, 1, [0, 0.25, 0.5, 0.75, 1]),
        (0, 34, [0, 10, 20, 30, 40]),
        (0, 0.42, [0, 0.2, 0.4, 0.6]),
        (0, 0, [0, 0.25, 0.5, 0.75, 1]),
    ],
)
def testticks_are_round_and_enclose(low, high, expected):
    assert ticks(low, high) == expected


def test_counted_axes_have_whole_ticks():
    assert ticks(1, 3, whole=True) == [1, 2, 3] and ticks(1, 60, whole=True) == [0, 20, 40, 60]
    svg = ElementTree.fromstring(chart_svg(Chart("t", "epoch", [Curve("a", [(1, 2.0), (2, 3.0)])], whole=True)))
    assert [text.text for text in svg.findall("text") if text.attrib.get("y") == "192"] == ["1", "2"]


def test_a_place_is_marked_and_few_points_are_seen():
    few = chart_svg(Chart("t", "epoch", [Curve("a", [(1, 2.0), (9, 3.0)])], (9, "best, epoch 9")))
    svg = ElementTree.fromstring(few)
    (mark,) = [path for path in svg.findall("path") if path.attrib["class"] == "mark"]
    x = float(re.match(r"M([\d.]+)", mark.attrib["d"])[1])
    assert x == pytest.approx(points(few)[0][1][0], abs=0.1) and "best, epoch 9" in few
    assert [circle.find("title").text for circle in svg.findall("circle")] == ["a: 2 (epoch 1)", "a: 3 (epoch 9)"]
    many = chart_svg(Chart("t", "epoch", [Curve("a", [(i, i) for i in range(100)])]))
    assert "<circle" not in many


def test_noise_lies_behind_its_line_in_one_colour():
    curves = [Curve("raw", [(0, 1), (1, 2)], faint=True), Curve("mean", [(0, 1), (1, 1)]), Curve("b", [(0, 1)])]
    text = chart(Chart("t", "step", curves))
    assert re.findall(r'<polyline[^>]*class="([^"]+)"', text) == ["l0 faint", "l0", "l1"]
    assert re.findall(r'<i class="([^"]+)"', text) == ["b0 faint", "b0", "b1"]


def test_smoothing_keeps_lines_and_takes_noise_away():
    line = [(float(x), 3.0 - 0.5 * x) for x in range(100)]
    assert smoothed(line) == [(x, pytest.approx(y)) for x, y in line]  # also at the ends
    noisy = smoothed([(x, y + (-1) ** int(x)) for x, y in line])
    assert max(abs(y - expected) for (_, y), (_, expected) in zip(noisy, line, strict=True)) < 0.41
    assert smoothed([]) == [] and smoothed([(1.0, 2.0)]) == [(1.0, 2.0)]


def test_thinned_curves_are_means_of_all_points():
    points = [(float(x), float(x % 7)) for x in range(1001)]
    few = thinned(points, 100)
    assert len(few) == 100 and thinned(points, 2000) == points
    weights = [1001 * (i + 1) // 100 - 1001 * i // 100 for i in range(100)]
    assert sum(w * y for w, (_, y) in zip(weights, few, strict=True)) == pytest.approx(sum(y for _, y in points))


def test_a_chart_of_nothing_has_words():
    text = chart(Chart("t", "epoch", [Curve("a", [])]))
    assert "<svg" not in text and "Nothing to show yet." in text


def test_one_line_needs_no_names_and_two_do():
    one, two = (chart(Chart("t", "x", [Curve(f"c{i}", [(0, 1)]) for i in range(n)])) for n in (1, 2))
    assert "legend" not in one and two.count("<i class=") == 2


def test_elements_escape_text_and_attributes_and_keep_markup():
    assert element("p", "<b>", Markup("<i>"), title='"', none=None) == '<p title="&quot;">&lt;b&gt;<i></p>'
    assert element("img", src="a") == '<img src="a"/>'
    assert element("text", "a", text_anchor="end", class_="c") == '<text text-anchor="end" class="c">a</text>'


def test_page_holds_everything_and_escapes_text():
    sections = [
        Section("Numbers", "a < b", [Table(("x", "y"), [("<b>", "0.5")]), Folded("more", "<pre>")]),
        Section("Pictures", "", [Chart("loss", "step", [Curve("loss", [(0, 2), (1, 1)])])]),
        Section("Files", "", [Files([("a b.txt", "x & y")]), Bars("Time", "ms", [Bar("m", 2.0, "AP < 1", 4.0)])]),
    ]
    text = page("A & B", "intro", sections)
    assert "<title>A &amp; B</title>" in text
    assert "a &lt; b" in text and "x &amp; y" in text and "AP &lt; 1" in text and "<pre>&lt;pre&gt;</pre>" in text
    assert "<td>&lt;b&gt;</td>" in text and 'href="a%20b.txt"' in text
    assert "<script" not in text and "http" not in text  # nothing is loaded from elsewhere
    ElementTree.fromstring(text.removeprefix("<!doctype html>"))


def test_pairs_lead_to_their_pictures():
    text = page("t", "", [Section("One", "", [Pair(("was", "e/a b.jpg"), ("is", "e/c.jpg"), "a")])])
    assert '<a href="e/a%20b.jpg"><img loading="lazy" alt="was: a" src="e/a%20b.jpg"/></a>' in text
    assert text.count("<a href") == 2


def test_confusions_are_shaded_by_their_share_and_hits_otherwise_than_errors():
    counts = [[3, 1, 0], [0, 0, 5], [2, 0, 0]]
    text = page("t", "", [Section("One", "", [Confusion(["a", "b"], counts)])])
    cells = re.findall(r'<td class="(\w+)" style="--s:([\d.]+)">(\d+)</td>', text)
    expected = [("hit", "0.750", "3"), ("miss", "0.250", "1"), ("miss", "1.000", "5"), ("miss", "1.000", "2")]
    assert cells == expected and "<td>0</td>" in text  # of the class that is never found


def test_pictures_beside_the_page_lead_to_their_files():
    figure = FigureBeside("p/a b.jpg", "../x&y/ü%.png", [Marked("dashed", (255, 176, 0), "a < b")], "IoU & more ")
    text = page("t", "", [Section("One", "", [figure]), Section("Two", "")], long=True)
    assert 'src="p/a%20b.jpg"' in text and text.count('href="../x%26y/%C3%BC%25.png"') == 2
    assert ">ü%.png</a>" in text and "a &lt; b" in text and "IoU &amp; more" in text
    assert 'class="dashed" style="border-color: rgb(255, 176, 0)"' in text
    assert '<a href="#s1">Two</a>' in text and '<h2 id="s1">Two</h2>' in text
    assert "<nav>" not in page("t", "", [Section("One", "")])


def test_a_filter_finds_figures_by_names_of_any_letters():
    names = ["cat & dog", "größe 1"]
    figures = [FigureBeside("p.jpg", "p.jpg", [], "", None, [name]) for name in names]
    text = page("t", "", [Section("One", "", [Filter("Only these", [(name, 3) for name in names]), *figures])])
    boxes = re.findall(r'<input type="checkbox" id="(\w+)"/> ([^<]+) <small>3</small>', text)
    assert [name for _, name in boxes] == ["cat &amp; dog", "größe 1"]
    for tag, _ in boxes:
        assert f"body:has(#{tag}:checked) .beside.{tag} {{ display: block; }}" in text
        assert text.count(f'class="card beside {tag}"') == 1
    assert "<script" not in text


def test_commands_are_shown_as_they_are_typed():
    text = page("t", "", [Section("Go on", "", [Commands([("a > b", "dfine predict 'a b' --out c")])])])
    assert "<dt>a &gt; b</dt><dd><code>dfine predict &#x27;a b&#x27; --out c</code></dd>" in text

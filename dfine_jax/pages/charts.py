"""Charts as SVG inside a page: lines over a common axis, and bars; colours and sizes of letters are the page's."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

from dfine_jax.pages.markup import Markup, element, joined

_WIDTH, _HEIGHT = 420, 220  # of a chart, in SVG units: about the pixels of a narrow screen
_LEFT, _RIGHT, _TOP, _BOTTOM = 52, 14, 12, 46
_COLOURS = 6  # of lines, in the style of the page
_MOST_MARKED = 40  # points of a line up to which each is seen


class Curve(NamedTuple):
    """A line of a chart."""

    name: str
    points: Sequence[tuple[float, float]]
    faint: bool = False  # the noise behind the next line, whose colour it has


class Chart(NamedTuple):
    """Lines over a common axis."""

    title: str
    x_label: str
    curves: Sequence[Curve]
    marked: tuple[float, str] | None = None  # a place on the axis, and what is there
    from_zero: bool = True  # the vertical axis starts there
    x_range: tuple[float, float] | None = None  # None: that of the points
    whole: bool = False  # the horizontal axis counts
    y_range: tuple[float, float] | None = None  # None: that of the points
    dots: bool = True  # points of lines of few points are seen


class Bar(NamedTuple):
    """A bar of a chart, and what is said beside it."""

    name: str
    length: float
    text: str
    further: float | None = None  # end of a thin line beyond the bar


class Bars(NamedTuple):
    """Bars under each other, from a common zero."""

    title: str
    unit: str
    bars: Sequence[Bar]


def chart(of: Chart) -> Markup:
    """The chart with its title and, where there are several lines, their names."""
    legend = []
    if len(of.curves) > 1:
        colours = zip(_colours(of.curves), of.curves, strict=True)
        names = (element("span", element("i", class_=f"b{colour}"), curve.name) for colour, curve in colours)
        legend = [element("div", *names, class_="legend")]
    title = element("figcaption", of.title, class_="title")
    return element("figure", title, *legend, chart_svg(of), class_="card chart")


def chart_svg(of: Chart) -> Markup:
    """The lines alone; of no points, words."""
    points = [point for curve in of.curves for point in curve.points]
    if not points:
        return element("p", "Nothing to show yet.", class_="empty")
    x_low, x_high = of.x_range or (min(x for x, _ in points), max(x for x, _ in points))
    x_high = max(x_high, x_low + 1e-9)
    low, high = of.y_range or (min(y for _, y in points), max(y for _, y in points))
    y_ticks = ticks(min(0.0, low) if of.from_zero else low, high)

    def place(x: float, y: float) -> tuple[float, float]:
        u = (x - x_low) / (x_high - x_low)
        v = (y - y_ticks[0]) / (y_ticks[-1] - y_ticks[0])
        return _LEFT + u * (_WIDTH - _LEFT - _RIGHT), _HEIGHT - _BOTTOM - v * (_HEIGHT - _TOP - _BOTTOM)

    parts: list[Markup] = []
    for tick in y_ticks:
        y = place(x_low, tick)[1]
        parts.append(element("path", d=f"M{_LEFT} {y:.1f}H{_WIDTH - _RIGHT}", class_="grid"))
        parts.append(element("text", _short(tick), x=_LEFT - 6, y=f"{y + 4:.1f}", text_anchor="end"))
    for tick in (t for t in ticks(x_low, x_high, of.whole, 6) if x_low <= t <= x_high):
        x = place(tick, y_ticks[0])[0]
        parts.append(element("text", f"{tick:g}", x=f"{x:.1f}", y=_HEIGHT - _BOTTOM + 18, text_anchor="middle"))
    middle = (_LEFT + _WIDTH - _RIGHT) / 2
    parts.append(element("text", of.x_label, x=middle, y=_HEIGHT - 6, text_anchor="middle"))
    if of.marked:
        x, text = place(of.marked[0], 0)[0], of.marked[1]
        parts.append(element("path", d=f"M{x:.1f} {_TOP}V{_HEIGHT - _BOTTOM}", class_="mark"))
        beyond = x > middle
        at = {"x": f"{x - 5 if beyond else x + 5:.1f}", "y": _HEIGHT - _BOTTOM - 7}
        parts.append(element("text", text, **at, text_anchor="end" if beyond else "start"))
    for colour, curve in zip(_colours(of.curves), of.curves, strict=True):
        parts += _line(curve, colour, [place(*point) for point in curve.points], of.x_label if of.dots else None)
    box = {"viewBox": f"0 0 {_WIDTH} {_HEIGHT}", "role": "img", "aria_label": of.title}
    return element("svg", *parts, **box)


def _colours(curves: Sequence[Curve]) -> list[str]:
    """Class of each line's colour, without its first letter."""
    numbers = [sum(not before.faint for before in curves[:i]) % _COLOURS for i in range(len(curves))]
    return [f"{number} faint" if curve.faint else str(number) for number, curve in zip(numbers, curves, strict=True)]


def _line(curve: Curve, colour: str, placed: Sequence[tuple[float, float]], x_label: str | None) -> list[Markup]:
    """A line, and its points with their values where there are few; without a label the line alone."""
    line = " ".join(f"{x:.1f},{y:.1f}" for x, y in placed)
    parts = [element("polyline", points=line, class_=f"l{colour}")]
    if x_label is not None and len(placed) <= _MOST_MARKED:
        for (x, y), (at, value) in zip(placed, curve.points, strict=True):
            told = element("title", f"{curve.name}: {value:.4g} ({x_label} {at:g})")
            dot = Markup(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="2.8" class="d{colour}">')
            parts.append(Markup(dot + told + "</circle>"))
    return parts


def bars(of: Bars) -> Markup:
    """Bars as rows of text and boxes: they are as legible on a telephone as the text is."""
    longest = max((max(bar.length, bar.further or 0.0) for bar in of.bars), default=0.0) or 1.0
    rows = []
    for bar in of.bars:
        whisker = None
        if bar.further is not None and bar.further > bar.length:
            whisker = element("s", style=f"width:{100 * (bar.further - bar.length) / longest:.2f}%")
        track = element("div", element("i", style=f"width:{100 * bar.length / longest:.2f}%"), whisker or "")
        rows.append(element("li", element("b", bar.name), track, element("span", bar.text)))
    title = element("figcaption", f"{of.title}, {of.unit}", class_="title")
    return element("figure", title, element("ul", joined(rows), class_="bars"), class_="card")


def _short(value: float) -> str:
    """A number of few letters."""
    text = f"{value:g}"
    if len(text) <= 5:
        return text
    digits, _, exponent = f"{value:.1e}".partition("e")
    return f"{digits.removesuffix('.0')}e{int(exponent)}"


def ticks(low: float, high: float, whole: bool = False, steps: int = 4) -> list[float]:
    """Round numbers that enclose the range.

    Args:
      whole: numbers that count.
      steps: about so many lie between them.
    """
    if high <= low:
        high = low + (1.0 if low == 0 else abs(low) * 0.1)
    raw = (high - low) / steps
    magnitude = 10.0 ** math.floor(math.log10(raw))
    step = next(f * magnitude for f in (1, 2, 2.5, 5, 10) if f * magnitude >= raw * 0.999)
    if whole:
        step = max(1.0, math.ceil(step))
    first = math.floor(low / step + 1e-9)
    last = max(math.ceil(high / step - 1e-9), first + 1)
    return [round(i * step, 10) for i in range(first, last + 1)]

"""Results on one HTML page: no scripts, nothing from elsewhere, curves and a few pictures inside, many beside it."""

from __future__ import annotations

import base64
import html
import io
import math
import urllib.parse
from collections.abc import Sequence
from typing import Literal, NamedTuple

from PIL import Image

_WIDTH, _HEIGHT = 460, 230  # of a chart, in SVG units
_LEFT, _RIGHT, _TOP, _BOTTOM = 46, 14, 16, 34
_COLOURS = ("#2f6fde", "#d9822b", "#2e9e6b")
_STYLE = """
:root { color-scheme: light dark; --ink: #1c2430; --soft: #5d6b7c; --line: #d8dee6; --card: #ffffff; --page: #f4f6f9;
  --link: #1f5fc4; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e6ebf2; --soft: #9aa8b8; --line: #333d4a; --card: #1b222c; --page: #12171e;
  --link: #8ab4ff; } }
body { font: 15px/1.5 system-ui, sans-serif; color: var(--ink); background: var(--page); margin: 0; }
main { max-width: 1000px; margin: 0 auto; padding: 28px 20px 60px; }
h1 { font-size: 26px; margin: 0 0 4px; } h2 { font-size: 18px; margin: 30px 0 10px; }
p { margin: 0 0 12px; color: var(--soft); }
.row { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(340px, 100%), 1fr)); gap: 14px; }
.card { background: var(--card); border: 1px solid var(--line); border-radius: 8px; padding: 12px; margin: 0;
  overflow-x: auto; }
table { border-collapse: collapse; width: 100%; } td, th { padding: 4px 8px; text-align: left; }
tr + tr td { border-top: 1px solid var(--line); } td.n, th.n { text-align: right; font-variant-numeric: tabular-nums; }
img { width: 100%; height: auto; border-radius: 4px; display: block; }
figcaption { color: var(--soft); font-size: 13px; padding-top: 6px; }
svg { width: 100%; height: auto; } svg text { fill: var(--soft); font: 11px system-ui, sans-serif; }
main.wide { max-width: 1680px; } main.wide > p { max-width: 100ch; }
nav { display: flex; flex-wrap: wrap; gap: 6px 18px; margin-bottom: 16px; }
nav a, .beside a { color: var(--link); } p, figcaption { overflow-wrap: anywhere; }
.tiles { display: grid; grid-template-columns: repeat(auto-fill, minmax(270px, 1fr)); gap: 14px; }
.beside img { aspect-ratio: 4 / 3; object-fit: contain; background: var(--page); }
.beside b { display: block; color: var(--ink); font-size: 14px; font-weight: 600; padding-left: 9px;
  border-width: 0 0 0 5px; }
.full { border-style: solid; } .dashed { border-style: dashed; }
@media (max-width: 480px) { .card { padding: 8px; } td, th { padding: 4px 3px; font-size: 13px; } }
code { background: var(--card); border: 1px solid var(--line); border-radius: 4px; padding: 1px 5px; }
"""


class Curve(NamedTuple):
    """A line of a chart."""

    name: str
    points: Sequence[tuple[float, float]]


class Chart(NamedTuple):
    """Lines over a common axis."""

    title: str
    x_label: str
    curves: Sequence[Curve]


class Table(NamedTuple):
    """Rows of text; all columns but the first are numbers."""

    header: Sequence[str]
    rows: Sequence[Sequence[str]]


class Commands(NamedTuple):
    """What can be done next, and the command for it."""

    rows: Sequence[tuple[str, str]]


class Figure(NamedTuple):
    """A picture and what it shows."""

    image: Image.Image
    caption: str


class Marked(NamedTuple):
    """What a line of its style in a picture is."""

    line: Literal["full", "dashed"]
    colour: tuple[int, int, int]  # sRGB
    text: str


class FigureBeside(NamedTuple):
    """A picture in a file beside the page, which leads to another file, and what it shows."""

    picture: str  # path from the page
    leads_to: str  # path from the page
    marks: Sequence[Marked]
    caption: str


Item = Chart | Table | Figure | FigureBeside | Commands


class Section(NamedTuple):
    """A heading, a paragraph and what goes under it, side by side where there is room."""

    heading: str
    text: str
    items: Sequence[Item] = ()


def page(title: str, text: str, sections: Sequence[Section], *, long: bool = False) -> str:
    """The whole page.

    Args:
      long: with links to the sections, and as wide as the window.
    """
    body = "\n".join(_section(section, i) for i, section in enumerate(sections))
    if long:
        links = (f'<a href="#s{i}">{html.escape(section.heading)}</a>' for i, section in enumerate(sections))
        body = f"<nav>{' '.join(links)}</nav>\n{body}"
    main = '<main class="wide">' if long else "<main>"
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{html.escape(title)}</title>\n<style>{_STYLE}</style>\n</head>\n<body>{main}\n"
        f"<h1>{html.escape(title)}</h1>\n<p>{html.escape(text)}</p>\n{body}\n</main></body>\n</html>\n"
    )


def chart_svg(chart: Chart) -> str:
    """The chart as SVG; curves without points are left out."""
    points = [point for curve in chart.curves for point in curve.points]
    if not points:
        return "<svg></svg>"
    x_low, x_high = min(x for x, _ in points), max(x for x, _ in points)
    x_high = max(x_high, x_low + 1e-9)
    y_ticks = _ticks(min(0.0, *(y for _, y in points)), max(y for _, y in points))

    def place(x: float, y: float) -> tuple[float, float]:
        u = (x - x_low) / (x_high - x_low)
        v = (y - y_ticks[0]) / (y_ticks[-1] - y_ticks[0])
        return _LEFT + u * (_WIDTH - _LEFT - _RIGHT), _HEIGHT - _BOTTOM - v * (_HEIGHT - _TOP - _BOTTOM)

    parts = [f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-label="{html.escape(chart.title)}">']
    for tick in y_ticks:
        _, y = place(x_low, tick)
        parts.append(f'<path d="M{_LEFT} {y:.1f}H{_WIDTH - _RIGHT}" stroke="var(--line)"/>')
        parts.append(f'<text x="{_LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{tick:g}</text>')
    for tick in (t for t in _ticks(x_low, x_high) if x_low <= t <= x_high):
        x, _ = place(tick, y_ticks[0])
        parts.append(f'<text x="{x:.1f}" y="{_HEIGHT - _BOTTOM + 15}" text-anchor="middle">{tick:g}</text>')
    middle = (_LEFT + _WIDTH - _RIGHT) / 2
    parts.append(f'<text x="{middle}" y="{_HEIGHT - 4}" text-anchor="middle">{html.escape(chart.x_label)}</text>')
    for number, curve in enumerate(chart.curves):
        colour = _COLOURS[number % len(_COLOURS)]
        line = " ".join(f"{x:.1f},{y:.1f}" for x, y in (place(*point) for point in curve.points))
        parts.append(f'<polyline points="{line}" fill="none" stroke="{colour}" stroke-width="2"/>')
        swatch_x = _LEFT + 8 + 80 * number
        parts.append(f'<rect x="{swatch_x}" y="3" width="10" height="10" fill="{colour}"/>')
        parts.append(f'<text x="{swatch_x + 14}" y="12">{html.escape(curve.name)}</text>')
    return "".join([*parts, "</svg>"])


def _section(section: Section, number: int) -> str:
    items = "\n".join(_item(item) for item in section.items)
    many = any(isinstance(item, FigureBeside) for item in section.items)
    row = f'<div class="{"tiles" if many else "row"}">\n{items}\n</div>' if items else ""
    return f'<h2 id="s{number}">{html.escape(section.heading)}</h2>\n<p>{html.escape(section.text)}</p>\n{row}'


def _item(item: Item) -> str:
    if isinstance(item, Chart):
        return f'<figure class="card">{chart_svg(item)}<figcaption>{html.escape(item.title)}</figcaption></figure>'
    if isinstance(item, Figure):
        caption = html.escape(item.caption)
        source = _data_url(item.image)
        return f'<figure class="card"><img alt="{caption}" src="{source}"><figcaption>{caption}</figcaption></figure>'
    if isinstance(item, FigureBeside):
        return _beside(item)
    if isinstance(item, Commands):
        rows = (
            f"<tr><td>{html.escape(what)}</td><td><code>{html.escape(line)}</code></td></tr>"
            for what, line in item.rows
        )
        return f'<div class="card"><table>{"".join(rows)}</table></div>'
    return (
        f'<div class="card"><table>{_row(item.header, "th")}{"".join(_row(r, "td") for r in item.rows)}</table></div>'
    )


def _beside(figure: FigureBeside) -> str:
    source, target = (html.escape(urllib.parse.quote(path)) for path in (figure.picture, figure.leads_to))
    marks = "".join(
        f'<b class="{mark.line}" style="border-color: rgb{mark.colour}">{html.escape(mark.text)}</b>'
        for mark in figure.marks
    )
    alternative = html.escape("; ".join(mark.text for mark in figure.marks))
    name = html.escape(figure.leads_to.rpartition("/")[2])
    return (
        f'<figure class="card beside"><a href="{target}"><img loading="lazy" alt="{alternative}" src="{source}"></a>'
        f'<figcaption>{marks}{html.escape(figure.caption)} <a href="{target}">{name}</a></figcaption></figure>'
    )


def _row(cells: Sequence[str], tag: str) -> str:
    first, *rest = (html.escape(cell) for cell in cells)
    return f"<tr><{tag}>{first}</{tag}>" + "".join(f'<{tag} class="n">{cell}</{tag}>' for cell in rest) + "</tr>"


def _data_url(image: Image.Image) -> str:
    buffer = io.BytesIO()
    image.convert("RGB").save(buffer, "JPEG", quality=88)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")


def _ticks(low: float, high: float) -> list[float]:
    """About five round numbers that enclose the range."""
    if high <= low:
        high = low + 1.0
    raw = (high - low) / 4
    magnitude = 10.0 ** math.floor(math.log10(raw))
    step = next(f * magnitude for f in (1, 2, 2.5, 5, 10) if f * magnitude >= raw * 0.999)
    first = math.floor(low / step + 1e-9)
    last = max(math.ceil(high / step - 1e-9), first + 1)
    return [round(i * step, 10) for i in range(first, last + 1)]

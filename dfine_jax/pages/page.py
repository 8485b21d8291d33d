"""Results on one HTML page: no scripts, nothing from elsewhere; made of values, which one set of functions draws.

There is no library of templates below: what a page holds are typed values, ``markup.element`` escapes all that enters,
and what trains or evaluates needs no further package for it.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from typing import Literal, NamedTuple

from dfine_jax.pages.charts import Bars, Chart, bars, chart
from dfine_jax.pages.markup import Markup, address, element, joined
from dfine_jax.pages.style import STYLE

_LONG = 14  # sections from which links to them stand at the top


class Table(NamedTuple):
    """Rows of text; all columns but the first are numbers."""

    header: Sequence[str]
    rows: Sequence[Sequence[str]]
    broad: bool = False  # as wide as the page


class Facts(NamedTuple):
    """Names and what they stand for."""

    rows: Sequence[tuple[str, str]]


class Commands(NamedTuple):
    """What can be done next, and the command for it."""

    rows: Sequence[tuple[str, str]]


class Files(NamedTuple):
    """Files beside the page, and what they hold."""

    rows: Sequence[tuple[str, str]]


class Folded(NamedTuple):
    """Long text behind a line."""

    title: str
    text: str


class Confusion(NamedTuple):
    """Objects (rows) by prediction (columns), the last of each for none."""

    names: Sequence[str]
    counts: Sequence[Sequence[int]]


class FigureFile(NamedTuple):
    """A picture in a file beside the page, as wide as the page, and what it shows; it leads to itself."""

    picture: str  # path from the page
    caption: str


class Pair(NamedTuple):
    """Two pictures in files beside the page that are to be compared; each leads to itself."""

    left: tuple[str, str]  # what it shows, path from the page
    right: tuple[str, str]
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
    name: str | None = None  # of what it leads to; None: that of the file
    tags: Sequence[str] = ()  # by which a ``Filter`` finds it


class Filter(NamedTuple):
    """Boxes to tick: once any is ticked, the page shows only figures with a ticked tag."""

    title: str
    tags: Sequence[tuple[str, int]]  # and how many figures have it


Item = Chart | Bars | Table | Facts | Commands | Files | Folded | Confusion | FigureFile | Pair | FigureBeside | Filter


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
    body = [_section(section, i) for i, section in enumerate(sections)]
    if long or len(sections) > _LONG:
        links = (element("a", section.heading, href=f"#s{i}") for i, section in enumerate(sections))
        body.insert(0, element("nav", *links))
    head = [
        element("meta", charset="utf-8"),
        element("meta", name="viewport", content="width=device-width, initial-scale=1"),
        element("title", title),
        element("style", Markup(STYLE)),
    ]
    main = element("main", element("h1", title), element("p", text), *body, class_="wide" if long else None)
    whole = element("html", element("head", *head), "\n", element("body", main), lang="en")
    return f"<!doctype html>\n{whole}\n"


def _section(section: Section, number: int) -> Markup:
    parts: list[Markup] = [element("h2", section.heading, id=f"s{number}")]
    parts += [element("p", section.text)] if section.text else []
    if section.items:
        kinds = {type(item) for item in section.items}
        layout = "tiles" if FigureBeside in kinds else "pairs" if Pair in kinds else "row"
        beside = [_item(item) for item in section.items if not _is_broad(item)]
        parts += [element("div", joined(beside, "\n"), class_=layout)] if beside else []
        parts += [_item(item) for item in section.items if _is_broad(item)]
    return element("section", *parts)


def _is_broad(item: Item) -> bool:
    """Whether it is as wide as the page and stands below what is side by side."""
    return isinstance(item, FigureFile | Folded | Commands | Files | Filter) or (isinstance(item, Table) and item.broad)


def _item(item: Item) -> Markup:
    match item:
        case Chart():
            return chart(item)
        case Bars():
            return bars(item)
        case FigureFile():
            picture = _picture(item.picture, item.caption)
            return element("figure", picture, element("figcaption", item.caption), class_="card broad whole")
        case Pair():
            halves = (
                element("div", element("b", what), _picture(path, f"{what}: {item.caption}"))
                for what, path in (item.left, item.right)
            )
            caption = element("figcaption", item.caption)
            return element("figure", element("div", *halves, class_="pair"), caption, class_="card")
        case FigureBeside():
            return _beside(item)
        case Filter():
            return _filter(item)
        case Confusion():
            return _confusion(item)
        case Folded():
            return element("details", element("summary", item.title), element("pre", item.text), class_="card broad")
        case Facts() | Commands() | Files():
            return _rows(item)
        case Table():
            head, body = element("thead", _row(item.header, "th")), (_row(row, "td") for row in item.rows)
            table = element("table", head, element("tbody", *body))
            return element("div", table, class_="card broad" if item.broad else "card")


def _rows(item: Facts | Commands | Files) -> Markup:
    """Two columns, one under the other where the screen is narrow."""
    parts = []
    for what, about in item.rows:
        if isinstance(item, Commands):
            parts += [element("dt", what), element("dd", element("code", about))]
        elif isinstance(item, Files):
            parts += [element("dt", element("a", what, href=address(what))), element("dd", about)]
        else:
            parts += [element("dt", what), element("dd", about)]
    return element("div", element("dl", *parts), class_="card" if isinstance(item, Facts) else "card broad")


def _confusion(of: Confusion) -> Markup:
    """Hits and errors have hues of their own; a hue is as strong as the cell's share of its row."""
    last = len(of.names)
    header = element("tr", element("th", "object / found as"), *(element("th", n) for n in (*of.names, "missed")))
    rows = []
    for i, (name, counts) in enumerate(zip((*of.names, "no object"), of.counts, strict=True)):
        total = max(1, sum(counts))
        cells = []
        for j, count in enumerate(counts):
            if not count:
                cells.append(element("td", "" if i == j == last else "0" if i == j else ""))
                continue
            kind = "hit" if i == j else "miss"
            cells.append(element("td", str(count), class_=kind, style=f"--s:{count / total:.3f}"))
        rows.append(element("tr", element("th", name), *cells))
    table = element("table", element("thead", header), element("tbody", *rows), class_="confusion")
    return element("div", table, class_="card")


def _picture(path: str, what: str) -> Markup:
    """A picture in a file, which it leads to."""
    return element("a", element("img", loading="lazy", alt=what, src=address(path)), href=address(path))


def _beside(figure: FigureBeside) -> Markup:
    target = address(figure.leads_to)
    marks = [
        element("b", mark.text, class_=mark.line, style=f"border-color: rgb{mark.colour}") for mark in figure.marks
    ]
    alternative = "; ".join(mark.text for mark in figure.marks)
    picture = element("img", loading="lazy", alt=alternative, src=address(figure.picture))
    name = element("a", figure.name or figure.leads_to.rpartition("/")[2], href=target)
    caption = element("figcaption", *marks, figure.caption, " ", name)
    tags = "".join(f" {_tag(tag)}" for tag in figure.tags)
    return element("figure", element("a", picture, href=target), caption, class_=f"card beside{tags}")


def _filter(of: Filter) -> Markup:
    """Boxes and the rules that go with them, which browsers without ``:has`` pass over: there everything is shown."""
    boxes = (
        element("label", element("input", type="checkbox", id=_tag(tag)), f" {tag} ", element("small", count))
        for tag, count in of.tags
    )
    shown = "".join(f"body:has(#{_tag(tag)}:checked) .beside.{_tag(tag)} {{ display: block; }}\n" for tag, _ in of.tags)
    rules = element("style", Markup(f"body:has(.filter input:checked) .beside {{ display: none; }}\n{shown}"))
    title = element("legend", of.title)
    return element("fieldset", rules, title, element("div", *boxes), class_="card broad filter")


def _tag(name: str) -> str:
    """A name of any letters as one for CSS."""
    return f"t{zlib.crc32(name.encode()):08x}"


def _row(cells: Sequence[str], tag: str) -> Markup:
    first, *rest = cells
    return element("tr", element(tag, first), *(element(tag, cell, class_="n") for cell in rest))

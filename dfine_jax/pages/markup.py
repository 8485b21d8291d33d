"""HTML that is put together from values: text is escaped wherever it enters, so that no page has to think of it."""

from __future__ import annotations

import html
import urllib.parse
from collections.abc import Iterable

_EMPTY = {"img", "input", "meta", "path", "circle", "rect", "line", "polyline"}  # elements without content


class Markup(str):
    """Text that is HTML already."""

    __slots__ = ()


def markup(content: object) -> Markup:
    """HTML as it is; anything else as text."""
    return content if isinstance(content, Markup) else Markup(html.escape(str(content)))


def joined(parts: Iterable[object], between: str = "") -> Markup:
    """Contents one after another."""
    return Markup(between.join(markup(part) for part in parts))


def element(name: str, /, *content: object, **attributes: object) -> Markup:
    """An element; attributes that are None are left out, ``class_`` is ``class`` and ``stroke_width`` has a dash."""
    named = ((key.rstrip("_").replace("_", "-"), value) for key, value in attributes.items() if value is not None)
    start = name + "".join(f' {key}="{html.escape(str(value))}"' for key, value in named)
    return Markup(f"<{start}/>" if name in _EMPTY else f"<{start}>{joined(content)}</{name}>")


def address(path: str) -> str:
    """A path relative to the page, as an address."""
    return urllib.parse.quote(path)

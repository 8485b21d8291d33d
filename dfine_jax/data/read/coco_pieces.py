"""COCO JSON in pieces of whole entries.

A piece is so small that its objects are still in the processor's cache when they become columns, and that the next ones
take their memory: page faults would cost more than decoding.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import numpy as np

from dfine_jax.errors import UserError
from dfine_jax.system.files import distinct_keys, read_text

_PIECE_BYTES = 1 << 18
_PIECE_ENTRIES = 1 << 15
_BETWEEN = re.compile(rb"}\s*,\s*{")
_MISSING = msgspec.UNSET
_LISTS = ("images", "annotations", "categories")


class ImageEntry(msgspec.Struct, gc=False):
    """What is read of an entry of ``images``."""

    id: Any = _MISSING
    file_name: Any = _MISSING
    width: Any = _MISSING
    height: Any = _MISSING


class AnnotationEntry(msgspec.Struct, gc=False):
    """What is read of an entry of ``annotations``."""

    id: int | msgspec.UnsetType = _MISSING
    image_id: int | msgspec.UnsetType = _MISSING
    category_id: int | msgspec.UnsetType = _MISSING
    bbox: tuple[float, float, float, float] | msgspec.UnsetType = _MISSING
    iscrowd: Any = _MISSING
    ignore: Any = _MISSING
    difficult: Any = _MISSING
    area: Any = _MISSING


class OutlineEntry(msgspec.Struct, gc=False):
    """What is read of an entry of ``annotations`` for its mask."""

    id: int | msgspec.UnsetType = _MISSING
    segmentation: Any = None


Entry = ImageEntry | AnnotationEntry | OutlineEntry
_DECODERS: dict[type, Any] = {
    ImageEntry: msgspec.json.Decoder(list[ImageEntry]),
    AnnotationEntry: msgspec.json.Decoder(list[AnnotationEntry]),
    OutlineEntry: msgspec.json.Decoder(list[OutlineEntry]),
}


class Piece(NamedTuple):
    """Some entries of a list, as objects of one type; ``plain`` gives them as JSON has them.

    Only where there is ``text`` the objects are of the types declared; else their values are whatever the file has.
    """

    entries: list[Any]
    text: bytes | None
    values: list[Any]

    def plain(self) -> list[Any]:
        """The entries as Python's decoder gives them."""
        return self.values if self.text is None else json.loads(self.text)


def coco_lists(text: Any, source: Path) -> dict[str, Any]:
    """The three lists, as buffers or, where msgspec does not take the file, as Python's decoder gives them."""
    content: Any
    try:
        content = msgspec.json.decode(text, type=dict[str, msgspec.Raw])
        content = {key: memoryview(content[key]) if key in content else b" " for key in _LISTS}
        _check_once(text, content, source)
        missing = [key for key in _LISTS if content[key][:1] != b"["]
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        content = plain_json(bytes(text), source)
        missing = [key for key in _LISTS if not (isinstance(content, dict) and isinstance(content.get(key), list))]
    if missing:
        raise UserError(
            f"annotation file {source} is not COCO JSON: no list {missing[0]!r}; export it as COCO detection"
        )
    return content


def _check_once(text: Any, lists: dict[str, Any], source: Path) -> None:
    """UserError where a list is there a second time: the last would count, and the others be lost without a word."""
    start = np.frombuffer(text, np.uint8).__array_interface__["data"][0]
    spans = []
    for part in lists.values():
        first = np.frombuffer(part, np.uint8).__array_interface__["data"][0] - start
        spans.append((first, first + len(part)))
    between, before = [], 0
    for first, end in sorted(span for span, part in zip(spans, lists.values(), strict=True) if len(part) > 1):
        between.append(bytes(text[before:first]))
        before = end
    rest = b"[]".join([*between, bytes(text[before:])])  # the file without what is in the lists, which is little
    if any(rest.count(b'"%s"' % key.encode()) > 1 for key in lists):
        plain_json(rest, source)


def plain_json(text: bytes, source: Path) -> Any:
    """Content as Python's decoder gives it; it also takes NaN and any number.

    Raises:
      UserError: not JSON, or an object has a key twice.
    """
    try:
        return json.loads(text, object_pairs_hook=distinct_keys)
    except RecursionError:
        raise UserError(f"annotation file {source} is not usable JSON (nested too deeply)") from None
    except KeyError as error:
        raise UserError(f"annotation file {source}: {error.args[0]}") from None
    except ValueError as error:  # also of numbers with thousands of digits
        if isinstance(error, UnicodeDecodeError):
            read_text(source)  # says in which line of the whole file
        raise UserError(f"annotation file {source} is not JSON ({error}); export it again as COCO JSON") from None


def in_pieces(part: Any, kind: type[Entry], source: Path) -> Iterator[Piece]:
    """A list of ``coco_lists`` in pieces of whole entries. Errors as ``plain_json``."""
    if isinstance(part, list):
        for start in range(0, len(part), _PIECE_ENTRIES):
            values = part[start : start + _PIECE_ENTRIES]
            yield Piece(_structured(values, kind), None, values)
        return
    decoder, end = _DECODERS[kind], len(part) - 1
    start = 1
    while start < end:
        following, reach = start, _PIECE_BYTES
        while following == start:
            # A cut inside a text or a nested value leaves no valid JSON before it; then the next place is tried.
            found = _BETWEEN.search(part, min(start + reach, end))
            cut, resumed = (found.start() + 1, found.end() - 1) if found else (end, end)
            text = b"".join((b"[", part[start:cut], b"]"))
            try:
                yield Piece(decoder.decode(text), text, [])
                following = resumed
            except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
                try:
                    values = json.loads(text)
                except ValueError:
                    if not found:
                        plain_json(text, source)
                    reach = 2 * (cut - start)
                    continue
                yield Piece(_structured(values, kind), None, values)
                following = resumed
        start = following


def _structured(values: list[Any], kind: type[Entry]) -> list[Any]:
    names = kind.__struct_fields__
    return [kind(**{n: v[n] for n in names if n in v}) if isinstance(v, dict) else kind() for v in values]

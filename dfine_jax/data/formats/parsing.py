"""Text of annotation files as numbers, XML and JSON, with errors that name the file."""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from dfine_jax.errors import UserError
from dfine_jax.system.files import decode, encoding_of, telling

_DECLARED = re.compile(rb"""<\?xml[^>]*?encoding\s*=\s*["']([A-Za-z0-9._-]+)["']""")


def read_xml(file: Path) -> ElementTree.Element:
    """Root element of an XML file.

    Raises:
      UserError: it cannot be read, is not XML (with line and column), or declares entities, which annotations never
        need and which can make a small file fill the memory.
    """
    with telling(file):
        raw = file.read_bytes()
    text = _xml_text(raw, file)
    if "<!ENTITY" in text:
        raise UserError(f"{file} declares entities, which are not read; remove the DOCTYPE from the file")
    try:
        return ElementTree.fromstring(text.lstrip())
    except ElementTree.ParseError as error:
        line, column = error.position
        reason = str(error).partition(": line")[0]
        raise UserError(f"{file} is not XML ({reason}: line {line}, column {column}); export it again") from None
    except ValueError as error:
        raise UserError(f"{file} is not XML ({error}); export it again") from None


def _xml_text(raw: bytes, file: Path) -> str:
    declared = _DECLARED.match(raw)
    if encoding_of(raw)[0] != "utf-8" or declared is None:
        return decode(raw, file)
    try:
        return raw.decode(declared[1].decode())
    except (LookupError, UnicodeDecodeError):
        raise UserError(
            f"{file} is not in the encoding that it declares ({declared[1].decode()}); save it as UTF-8"
        ) from None


def number(value: Any, what: str, where: str) -> float:
    """A finite number from JSON or text.

    Raises:
      UserError: it is none; the message names ``what`` of ``where``.
    """
    if isinstance(value, bool) or not isinstance(value, (int, float, str)):
        out = math.nan
    else:
        try:
            out = float(value)
        except (ValueError, OverflowError):
            out = math.nan
    if not math.isfinite(out):
        raise UserError(f"{where} has {what} {value!r}; it must be a number")
    return out


def points(pairs: Any, where: str) -> list[float]:
    """x1 y1 x2 y2 ... from a list of pairs.

    Raises:
      UserError: it is no list of pairs of numbers.
    """
    if not isinstance(pairs, list) or not all(isinstance(pair, (list, tuple)) and len(pair) == 2 for pair in pairs):
        raise UserError(f"{where} has points {str(pairs)[:60]}; they must be pairs of x and y")
    return [number(value, "a coordinate", where) for pair in pairs for value in pair]

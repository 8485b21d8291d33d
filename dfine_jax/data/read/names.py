"""File names of pictures as columns: each in the order of the file, and the last parts of all in one folder together.

The second form is what folders are compared with: millions of names become Python texts a folder at a time, in one
operation, and none of them is kept.
"""

from __future__ import annotations

import operator
from collections.abc import Iterable, Iterator, Mapping, Sequence

import numpy as np

_PARTED = operator.methodcaller("rpartition", "/")
_END = "\0"  # no file's name has it


def name_at(columns: Mapping[str, np.ndarray], position: int) -> str:
    """``file_name`` of an image."""
    start, end = columns["name_bounds"][position : position + 2].tolist()
    return _text(columns["names"][start:end])


def all_names(columns: Mapping[str, np.ndarray]) -> list[str]:
    """``file_name`` of every image."""
    text, bounds = columns["names"].tobytes(), columns["name_bounds"].tolist()
    return [text[a:b].decode("utf-8", "surrogatepass") for a, b in zip(bounds, bounds[1:], strict=False)]


def plain_names(names: Sequence[str]) -> list[str]:
    """The names with slashes where an export wrote backslashes."""
    return [name.replace("\\", "/") if "\\" in name else name for name in names]


def by_head(names: Iterable[str]) -> dict[str, tuple[list[int], list[str]]]:
    """Positions and last parts of the names, by what comes before the last slash."""
    found: dict[str, tuple[list[int], list[str]]] = {}
    for position, (head, _, tail) in enumerate(map(_PARTED, names)):
        if head not in found:
            found[head] = [], []
        positions, tails = found[head]
        positions.append(position)
        tails.append(tail)
    return found


def folder_columns(columns: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """``heads`` [bytes] and ``tails`` [bytes] of the names, texts that end in ``_END``; nothing where a name has that.

    ``tail_bounds`` [h + 1] says where in ``tails`` the last parts of the names with each head are, ``names_differ`` [1]
    whether no name is there twice.
    """
    if not columns["names"].all():
        return {}
    names = plain_names(all_names(columns))
    heads = by_head(names)
    tails = [_bytes(parts) for _, parts in heads.values()]
    return {
        "heads": np.frombuffer(_bytes(heads), np.uint8),
        "tails": np.frombuffer(b"".join(tails), np.uint8),
        "tail_bounds": np.cumsum([0, *map(len, tails)], dtype=np.int64),
        "names_differ": np.array([len(set(names)) == len(names)]),
    }


def heads_of(columns: Mapping[str, np.ndarray]) -> list[str]:
    """What comes before the last slash of the names, each once, in the order of the file."""
    if "heads" in columns:
        return _texts(columns["heads"])
    return list(by_head(plain_names(all_names(columns))))


def tails_by_head(columns: Mapping[str, np.ndarray]) -> Iterator[tuple[str, list[str]]]:
    """Heads, and the last parts of the names with each, from ``folder_columns``."""
    bounds = columns["tail_bounds"].tolist()
    for head, start, end in zip(_texts(columns["heads"]), bounds, bounds[1:], strict=False):
        yield head, _texts(columns["tails"][start:end])


def _bytes(texts: Iterable[str]) -> bytes:
    return "".join([text + _END for text in texts]).encode("utf-8", "surrogatepass")


def _texts(column: np.ndarray) -> list[str]:
    return _text(column).split(_END)[:-1]


def _text(column: np.ndarray) -> str:
    return column.tobytes().decode("utf-8", "surrogatepass")

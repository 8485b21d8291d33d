"""What a compiled GPU program does, read from the text of its optimised form (HLO)."""

from __future__ import annotations

import collections
import dataclasses
import math
import re

_LARGE_BYTES = 1 << 20
_INSTRUCTION = re.compile(r"^  (?:ROOT )?%?(?P<name>[\w.-]+) = (?P<type>.*?) (?P<op>[a-z][a-z0-9-]*)\(", re.MULTILINE)
_TARGET = re.compile(r'custom_call_target="([^"]*)"')
_BODY = re.compile(r"\bbody=%?([\w.-]+)")
_ARRAY = re.compile(r"\b(pred|[a-z]+\d+[a-z0-9]*)\[([\d,]*)\]")
_COMPUTATION = re.compile(r"^(?:ENTRY )?%?(?P<name>[\w.-]+) \(.*?\{\n(?P<body>.*?)^\}", re.MULTILINE | re.DOTALL)
_NO_LAUNCH = frozenset(("get-tuple-element", "parameter", "bitcast", "constant", "tuple", "partition-id", "replica-id"))
_COLLECTIVES = (
    "all-reduce",
    "all-gather",
    "reduce-scatter",
    "all-to-all",
    "collective-permute",
    "collective-broadcast",
)
_HOST = ("infeed", "outfeed", "send", "recv")


@dataclasses.dataclass(frozen=True)
class Launches:
    """Operations of one run of a program that the GPU is asked for one by one."""

    kinds: dict[str, int]  # fusion, cuBLAS, cuDNN, copy, loop, collective, other
    calls: dict[str, int]  # of libraries, by name
    large_copies: int  # copies of 1 MiB and more
    in_loops: int  # launches of one turn of each loop, not counted above
    collectives: dict[str, int]  # by operation
    host: int  # operations that wait for the host
    float64: int  # operations with a float64 result, those inside of fusions included

    @property
    def total(self) -> int:
        """Launches outside of loops; a loop counts once."""
        return sum(self.kinds.values())


def read_launches(text: str) -> Launches:
    """Count what ``compiled.as_text()`` of a program for a GPU shows."""
    bodies = {match["name"]: match["body"] for match in _COMPUTATION.finditer(text)}
    entry = next(match["body"] for match in _COMPUTATION.finditer(text) if match[0].startswith("ENTRY"))
    kinds: collections.Counter[str] = collections.Counter()
    calls: collections.Counter[str] = collections.Counter()
    collectives: collections.Counter[str] = collections.Counter()
    large = host = in_loops = 0
    for line in entry.splitlines():
        found = _INSTRUCTION.match(line)
        if not found or (kind := _kind(found["op"], line)) is None:
            continue
        kinds[kind] += 1
        if target := _TARGET.search(line):
            calls[target[1]] += 1
        if kind == "copy":
            large += _bytes(found["type"]) >= _LARGE_BYTES
        elif kind == "collective":
            collectives[found["op"].removesuffix("-start")] += 1
        elif kind == "loop" and (body := _BODY.search(line)):
            in_loops += _launches_of(bodies.get(body[1], ""))
        host += found["op"].removesuffix("-done") in _HOST or "callback" in (target[1] if target else "")
    float64 = sum("f64[" in match["type"] for match in _INSTRUCTION.finditer(text))
    return Launches(dict(kinds), dict(calls), large, in_loops, dict(collectives), host, float64)


def _kind(op: str, line: str) -> str | None:
    """What a launch is counted as; None: nothing is launched."""
    if op in _NO_LAUNCH or op.endswith("-done"):
        return None
    if op in ("copy", "copy-start"):
        return "copy"
    if op in ("fusion", "sort"):
        return "fusion"
    if op == "while":
        return "loop"
    if op.removesuffix("-start") in _COLLECTIVES:
        return "collective"
    target = _TARGET.search(line)
    if target and target[1].startswith("__cublas"):
        return "cuBLAS"
    if target and target[1].startswith("__cudnn"):
        return "cuDNN"
    return "other"


def _launches_of(body: str) -> int:
    return sum(_kind(match["op"], "") is not None for match in _INSTRUCTION.finditer(body))


def _bytes(shape: str) -> int:
    """Of the arrays in a type such as ``f32[8,3]{1,0}``."""
    total = 0
    for kind, sides in _ARRAY.findall(shape):
        bits = re.search(r"\d+", kind)
        total += math.prod(map(int, filter(None, sides.split(",")))) * (int(bits[0]) // 8 if bits else 1)
    return total

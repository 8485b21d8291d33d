"""Functions that an exporter may replace while it traces the network."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, ParamSpec, TypeVar

P = ParamSpec("P")
R = TypeVar("R")

_Functions = Mapping[Callable[..., Any], Callable[..., Any]]
_known: set[Callable[..., Any]] = set()
_replacements: ContextVar[_Functions | None] = ContextVar("replacements", default=None)


def replaceable(function: Callable[P, R]) -> Callable[P, R]:
    """Mark a function whose sum other runtimes express better in another way."""

    @functools.wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> R:
        replacements = _replacements.get() or {}
        return replacements.get(call, function)(*args, **kwargs)

    _known.add(call)
    return call


@contextmanager
def replaced(replacements: _Functions) -> Iterator[None]:
    """Call other functions in place of ``replaceable`` ones.

    The choice is made while tracing: call ``jax.jit`` on a fresh function inside the block.

    Raises:
      ValueError: a function is not ``replaceable``, so it would be called as it is.
    """
    unmarked = [function.__name__ for function in replacements if function not in _known]
    if unmarked:
        raise ValueError(f"not replaceable: {', '.join(unmarked)}")
    token = _replacements.set({**(_replacements.get() or {}), **replacements})
    try:
        yield
    finally:
        _replacements.reset(token)

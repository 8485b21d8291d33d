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
_replacements: ContextVar[_Functions | None] = ContextVar("replacements", default=None)


def replaceable(function: Callable[P, R]) -> Callable[P, R]:
    """Mark a function whose sum other runtimes express better in another way."""

    @functools.wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> R:
        replacements = _replacements.get() or {}
        return replacements.get(call, function)(*args, **kwargs)

    return call


@contextmanager
def replaced(replacements: _Functions) -> Iterator[None]:
    """Call other functions in place of ``replaceable`` ones.

    The choice is made while tracing: call ``jax.jit`` on a fresh function inside the block.
    """
    token = _replacements.set({**(_replacements.get() or {}), **replacements})
    try:
        yield
    finally:
        _replacements.reset(token)

"""Which of several forms of an operation a program gets, by the platform that it is made for.

A program may be made for a platform that is not that of the machine: exported, compiled ahead of time, or placed on
another device than the default one. So the host is never asked. Either whoever traces says the platform
(``traced_for``), which is quickest and what exporters need, or both forms are traced and lowering takes one
(``jax.lax.platform_dependent``), which is right for any other use.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, ParamSpec, TypeVar

from jax import lax

P = ParamSpec("P")
R = TypeVar("R")

OTHER = "other"  # any platform but the CPU
_platform: ContextVar[str | None] = ContextVar("platform", default=None)


@contextmanager
def traced_for(platform: str) -> Iterator[None]:
    """Trace for this platform alone: ``cpu``, or ``cuda``, ``tpu``, ``onnx`` and so on, which get the same forms.

    The choice is made while tracing: enter it inside the traced function, or call ``jax.jit`` on a fresh function
    inside the block.
    """
    token = _platform.set(platform)
    try:
        yield
    finally:
        _platform.reset(token)


def for_cpu() -> bool:
    """Whether the forms for XLA's CPU backend are wanted; ask it in functions marked ``chosen_by_platform`` only."""
    platform = _platform.get()
    assert platform is not None, "not inside of a function marked chosen_by_platform"
    return platform == "cpu"


def chosen_by_platform(function: Callable[P, R]) -> Callable[P, R]:
    """Mark a function of arrays (given by position; all else by name) that asks ``for_cpu``."""

    @functools.wraps(function)
    def call(*arrays: P.args, **options: P.kwargs) -> R:
        if _platform.get() is not None:
            return function(*arrays, **options)

        def form(platform: str) -> Callable[..., Any]:
            def traced(*arrays: Any) -> Any:
                with traced_for(platform):
                    return function(*arrays, **options)

            return traced

        return lax.platform_dependent(*arrays, cpu=form("cpu"), default=form(OTHER))

    return call

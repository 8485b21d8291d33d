"""The type checker of the tests: array annotations are checked at every call, with their axes; others are pyright's.

``conftest`` installs it over the whole library (``jaxtyping.install_import_hook``), so that an axis string that is not
true fails the test that calls the function.
"""

from __future__ import annotations

import functools
import operator
import types
import typing
from collections.abc import Callable
from typing import Any

import beartype
from jaxtyping import AbstractArray

# Entrances that tell users themselves what is wrong with an array; tests hand them wrong ones.
_ENTRANCES = {"dfine_jax.data.picture.images.Preprocess.__call__"}
_CONFIGURATION = beartype.BeartypeConf(is_pep484_tower=True)  # an int where a float is annotated is fine


def _arrays_of(hint: Any) -> Any:
    """The annotation with NumPy arrays allowed where jax arrays are, as JAX does; None where it has no array."""
    if isinstance(hint, type) and not isinstance(hint, types.GenericAlias):
        return hint.dtype[Any, hint.dim_str] if issubclass(hint, AbstractArray) else None
    parts = typing.get_args(hint)
    arrays = [_arrays_of(part) for part in parts]
    if all(array is None for array in arrays):
        return None
    known = [part if array is None else array for part, array in zip(parts, arrays, strict=True)]
    if isinstance(hint, types.UnionType) or typing.get_origin(hint) is typing.Union:
        return functools.reduce(operator.or_, known[1:], known[0])
    return typing.get_origin(hint)[*known] if typing.get_origin(hint) is tuple else None


def _resolved(hint: Any, namespace: dict[str, Any]) -> Any:
    """The annotation itself, where it can be evaluated; names that are imported for pyright only cannot."""
    try:
        return eval(hint, namespace) if isinstance(hint, str) else hint
    except NameError:
        return None


def check_arrays(function: Callable[..., Any]) -> Callable[..., Any]:
    """The function, checking what it takes and gives where that is annotated as an array."""
    if not isinstance(function, types.FunctionType) or f"{function.__module__}.{function.__qualname__}" in _ENTRANCES:
        return function
    hints = {name: _resolved(hint, function.__globals__) for name, hint in function.__annotations__.items()}
    arrays = {name: array for name, hint in hints.items() if (array := _arrays_of(hint)) is not None}
    if not arrays:
        return function
    copy = types.FunctionType(
        function.__code__, function.__globals__, function.__name__, function.__defaults__, function.__closure__
    )
    functools.update_wrapper(copy, function)
    del copy.__wrapped__
    copy.__kwdefaults__ = function.__kwdefaults__
    copy.__annotations__ = arrays
    return beartype.beartype(conf=_CONFIGURATION)(copy)

"""Batch norms of parts that are not trained."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator, Sequence
from typing import Any

import flax.linen as nn

from dfine_jax.nn.layers import BatchNorm


@contextlib.contextmanager
def held_norms(patterns: Sequence[str]) -> Iterator[None]:
    """What is traced inside, gradients included, has its held batch norms compute in training as at inference.

    Their statistics then stay, and the layers behind them train on what they will see.

    Args:
      patterns: regular expressions; a batch norm is held if its scale and its bias match (``optim.freeze``).
    """
    compiled = [re.compile(pattern) for pattern in patterns]

    def is_held(module: nn.Module) -> bool:
        names = ("/".join((*module.path, leaf)) for leaf in ("scale", "bias"))
        return all(any(regex.search(name) for regex in compiled) for name in names)

    def call(method: Any, args: Any, kwargs: Any, context: nn.module.InterceptorContext) -> Any:
        if context.method_name == "__call__" and isinstance(context.module, BatchNorm) and is_held(context.module):
            kwargs = {**kwargs, "train": False}
        return method(*args, **kwargs)

    with nn.intercept_methods(call) if compiled else contextlib.nullcontext():
        yield

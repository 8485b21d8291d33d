"""Convolutions with everything that follows them and is linear folded in.

Batch norm goes into the convolution before it. So does the learnable affine behind an activation (PP-HGNetV2), which
leaves one comparison: ``a * max(x, 0) + b`` equals ``max(a * x + b, b)`` for positive ``a`` and ``min(a * x + b, b)``
for negative. The 3x3 and the 1x1 convolution of a RepVGG bottleneck become one.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float

Path = tuple[str, ...]
_BATCH_NORM_EPSILON = 1e-5


@dataclasses.dataclass(frozen=True)
class FoldedConv:
    """A convolution with bias, float64, and what is left of a learnable affine behind its activation."""

    kernel: Float[np.ndarray, "kh kw i o"]
    bias: Float[np.ndarray, " o"]
    bound: float | None = None  # the affine's shift
    lower: bool = True  # outputs are at least ``bound``; otherwise at most


def fold(variables: Mapping[str, Any]) -> dict[Path, FoldedConv]:
    """Folded convolutions by the path of their ``ConvNorm``; of bottlenecks, one by the path of the bottleneck.

    Those that have a bias already are there as they are.
    """
    folded: dict[Path, FoldedConv] = {}
    _fold_tree(variables["params"], variables["batch_stats"], (), folded)
    for path in [p for p in folded if p[-1] == "conv1" and p[-2].startswith("bottlenecks_")]:
        wide, narrow = folded.pop(path), folded.pop((*path[:-1], "conv2"))
        kernel = wide.kernel.copy()
        kernel[1:2, 1:2] += narrow.kernel
        folded[path[:-1]] = FoldedConv(kernel, wide.bias + narrow.bias)
    return folded


def scaled(conv: FoldedConv, pixel_scale: float) -> FoldedConv:
    """For inputs in another unit, whose padding is zero in either."""
    return dataclasses.replace(conv, kernel=conv.kernel * pixel_scale)


def standardised(conv: FoldedConv, mean: Sequence[float], deviation: Sequence[float]) -> FoldedConv:
    """For inputs whose mean is not taken off yet, and not divided; exact because there is no padding."""
    kernel = conv.kernel / np.asarray(deviation, np.float64)[:, None]
    bias = conv.bias - (kernel * np.asarray(mean, np.float64)[:, None]).sum((0, 1, 2))
    return dataclasses.replace(conv, kernel=kernel, bias=bias)


def _fold_tree(params: Mapping[str, Any], stats: Mapping[str, Any], path: Path, out: dict[Path, FoldedConv]) -> None:
    if getattr(params.get("kernel"), "ndim", 0) == 4 and "bias" in params:
        out[path] = FoldedConv(np.asarray(params["kernel"], np.float64), np.asarray(params["bias"], np.float64))
        return
    for norm in ("norm", "bn"):
        if "conv" in params and norm in stats:
            out[path] = _fold_one(params["conv"]["kernel"], params[norm], stats[norm], params.get("lab"))
            return
    for name, child in params.items():
        if isinstance(child, Mapping):
            _fold_tree(child, stats.get(name, {}), (*path, name), out)


def _fold_one(kernel: Any, norm: Mapping[str, Any], stats: Mapping[str, Any], affine: Any) -> FoldedConv:
    kernel, scale, bias, mean, var = (
        np.asarray(x, np.float64) for x in (kernel, norm["scale"], norm["bias"], stats["mean"], stats["var"])
    )
    factor = scale / np.sqrt(var + _BATCH_NORM_EPSILON)
    kernel, bias = kernel * factor, bias - mean * factor
    if affine is None:
        return FoldedConv(kernel, bias)
    a, b = (float(np.asarray(affine[name], np.float64).item()) for name in ("scale", "bias"))
    return FoldedConv(a * kernel, a * bias + b, bound=b, lower=a >= 0)

"""Vision transformers in exported graphs: blocks with few products, windows with few copies, queries of boxes.

Queries, keys and values are one product, the queries' scale is part of its weights, and the scale of each half of a
block is part of the weights of its last layer.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from dfine_jax.converters.onnx import ops
from dfine_jax.converters.onnx.sampling import linear
from dfine_jax.nn.layers import ConvLayerNorm
from dfine_jax.nn.mask_head import PixelProjection
from dfine_jax.nn.vision_transformer import EPSILON, Block
from dfine_jax.ops.box_queries import wave_periods
from dfine_jax.ops.precision import at_least_float32
from dfine_jax.ops.resize import bicubic_weights


def block(module: Block, params: Mapping[str, Any], x: Float[Array, "b n d"]) -> Float[Array, "b n d"]:
    """As ``Block``, at inference."""
    y = _attention(module, params["attention"], params["layer_scale1"], layer_norm(params["norm1"], x, EPSILON))
    x = ops.add(x, y)
    y = ops.gelu(linear(params["fc1"], layer_norm(params["norm2"], x, EPSILON), module.dtype))
    return ops.add(x, linear(_scaled(params["fc2"], params["layer_scale2"]), y, module.dtype))


def _attention(module: Block, params: Mapping[str, Any], scale: Any, x: Float[Array, "b n d"]) -> Float[Array, "b n d"]:
    tokens, width = x.shape[1:]
    heads, each = module.heads, width // module.heads
    parts = [_scaled(params["query"], each**-0.5), params["key"], params["value"]]
    fused = {name: np.concatenate([np.asarray(part[name]) for part in parts], -1) for name in ("kernel", "bias")}
    qkv = ops.regroup(linear(fused, x, module.dtype), module.joined * tokens, 3 * heads, each)
    q, k, v = ops.split(qkv.transpose(0, 2, 1, 3), 3, 1)
    weights = ops.softmax(at_least_float32(ops.matmul(q, k.transpose(0, 1, 3, 2)))).astype(v.dtype)
    y = ops.matmul(weights, v).transpose(0, 2, 1, 3)
    return linear(_scaled(params["output"], scale), ops.regroup(y, tokens, width), module.dtype)


def _scaled(params: Mapping[str, Any], scale: Any) -> dict[str, np.ndarray]:
    """A linear layer whose outputs are multiplied."""
    return {name: np.asarray(params[name], np.float64) * np.asarray(scale) for name in ("kernel", "bias")}


def layer_norm(params: Mapping[str, Any], x: Array, epsilon: float) -> Array:
    """Normalised last axis, in the type of ``x``."""
    scale, bias = (jnp.asarray(params[name], x.dtype) for name in ("scale", "bias"))
    return ops.layer_norm(x, scale, bias, epsilon)


def conv_layer_norm(module: ConvLayerNorm, params: Mapping[str, Any], x: Float[Array, "b h w _"]) -> Array:
    """As ``ConvLayerNorm``; those of one pixel are products, as channels are normalised where they lie."""
    kernel = np.asarray(params["conv"]["kernel"])
    x = x.astype(module.dtype or x.dtype)
    if module.kernel_size == 1:
        x = ops.matmul(x, kernel[0, 0].astype(x.dtype))
    else:
        padding = module.kernel_size // 2, module.kernel_size // 2
        x = ops.conv(x.transpose(0, 3, 1, 2), kernel.transpose(3, 2, 0, 1), None, 1, padding, 1).transpose(0, 2, 3, 1)
    return jax.nn.silu(layer_norm(params["bn"], x, EPSILON))


def windows_of(
    x: Float[Array, "b h w d"], positions: np.ndarray, token: np.ndarray, windows: int
) -> Float[Array, "_ n d"]:
    """As ``ops.windows.windows_of``: zeros in front of windows, then one sum with token and positions."""
    _, height, across, width = x.shape
    down, right = height // windows, across // windows
    cells = positions.reshape(windows, down, windows, right, width).swapaxes(1, 2).reshape(windows**2, -1, width)
    added = np.concatenate([np.broadcast_to(token, (windows**2, 1, width)), cells], 1).astype(x.dtype)
    x = x.transpose(0, 3, 1, 2)
    if windows == 1:
        x = ops.reshape(x, width, height * across).transpose(0, 2, 1)
        return ops.add(ops.with_zeros_first(x, 1), added[0])
    x = ops.reshape(x, width, windows, down, windows, right).transpose(0, 2, 4, 3, 5, 1)
    x = ops.reshape(x, windows**2, down * right, width)
    return ops.regroup(ops.add(ops.with_zeros_first(x, 2), added), 1 + down * right, width)


def maps_of(
    xs: Sequence[Float[Array, "_ n d"]], batch: int, height: int, across: int, windows: int
) -> tuple[Float[Array, "b h w _"], ...]:
    """As ``ops.windows.maps_of``: all in one."""
    del batch
    x = ops.concatenate(xs, 2) if len(xs) > 1 else xs[0]
    x, channels = ops.without_first(x, 1), x.shape[2]
    if windows > 1:
        x = ops.regroup(x, windows, windows, height // windows, across // windows, channels).transpose(0, 1, 3, 2, 4, 5)
    return (ops.reshape(x, height, across, channels),)


def resize_bicubic(x: np.ndarray, height: int, across: int) -> np.ndarray:
    """As ``ops.resize.resize_bicubic``, of weights."""
    if x.shape[1:3] == (height, across):
        return x
    down, right = bicubic_weights(x.shape[1], height), bicubic_weights(x.shape[2], across)
    return np.einsum("th,uw,bhwc->btuc", down, right, x.astype(np.float64)).astype(x.dtype)


def moved(at_cxcywh: Float[Array, "b q 4"], delta: Float[Array, "*b q 4"] | np.ndarray) -> Float[Array, "b q 4"]:
    """As ``ops.box_queries.moved``."""
    centre, size = ops.split(at_cxcywh, 2)
    shift, growth = ops.split(delta, 2)
    centre = ops.add(ops.multiply(shift, size), centre)
    return ops.concatenate([centre, ops.multiply(ops.exponential(growth), size)], at_cxcywh.ndim - 1)


def box_embedding(boxes_cxcywh: Float[Array, "b q 4"], each: int) -> Float[Array, "b q d"]:
    """As ``ops.box_queries.box_embedding``: all are sines of one product, the cosines a quarter of a turn further."""
    waves = np.zeros((4, 4, each))
    waves[[1, 0, 2, 3], np.arange(4)] = np.repeat(2 * np.pi / wave_periods(each), 2)
    phase = np.tile([0, np.pi / 2], 2 * each)
    dtype = boxes_cxcywh.dtype
    angle = ops.matmul(boxes_cxcywh, waves.reshape(4, -1).astype(dtype))
    return ops.sine(ops.add(angle, phase.astype(dtype)))


def pixel_projection(
    module: PixelProjection, params: Mapping[str, Any], pixels: Array, queries: Float[Array, "b q d"]
) -> tuple[Float[Array, "b q c"], Float[Array, "b q 1"]]:
    """As ``PixelProjection`` with queries, but that the sums keep their axis."""
    del pixels
    kernel, bias = np.asarray(params["kernel"])[0, 0].T, np.asarray(params["bias"])[:, None]
    x = queries.astype(module.dtype or queries.dtype)
    return ops.matmul(x, kernel.astype(x.dtype)), ops.matmul(x, bias.astype(x.dtype))

"""Resizing inside the graph: pictures of one known size, such as a camera's, brought to the network's input.

ONNX's ``Resize`` is no way to do it: runtimes without antialiasing accept it, and ONNX Runtime's differs from Pillow by
up to 17 levels. Pillow's bilinear resampling is linear in each direction, so two matrix products reproduce it in every
runtime, with its fixed-point weights and its rounding to bytes after each direction. That without antialiasing rounds
once.
"""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Float32, UInt8

from dfine_jax.converters.onnx import ops
from dfine_jax.converters.onnx.model import Forward, Parts
from dfine_jax.data.picture.images import Preprocess
from dfine_jax.data.picture.resampling import Interpolation
from dfine_jax.errors import UserError

_FIXED_POINT = 1 << 22  # one, in Pillow's weights for bytes


def resizing(network: Forward, source_hw: tuple[int, int], preprocess: Preprocess, mask_stride: int | None) -> Forward:
    """A network of pictures [b, source height, source width, 3] as bytes; boxes and masks are of the picture.

    Args:
      network: takes what ``preprocess`` makes of a picture, before the multiplication by its scale.

    Raises:
      UserError: the picture's edges lie between cells of the masks.
    """
    height, width = preprocess.height_px, preprocess.width_px
    letterbox = preprocess.resize == "letterbox"
    inner = preprocess.inner_px((source_hw[1], source_hw[0]))
    left, top, inner_width, inner_height = inner
    if mask_stride and any(side % mask_stride for side in inner):
        raise UserError(
            f"source size {source_hw[0]}x{source_hw[1]}: letterboxed to {height}x{width}, the picture is "
            f"{inner_height}x{inner_width} at {top} from the top and {left} from the left; masks can only be cut to it "
            f"at multiples of {mask_stride}, so leave the source size out, or choose another size"
        )

    cells = (top, left, inner_height, inner_width)

    def call(images: UInt8[Array, "b h w 3"]) -> Parts:
        x = resample(
            jnp.transpose(images.astype(jnp.float32), (0, 3, 1, 2)), inner_height, inner_width, preprocess.interpolation
        )
        if (inner_height, inner_width) != (height, width):
            below, right = height - inner_height - top, width - inner_width - left
            x = jnp.pad(x, ((0, 0), (0, 0), (top, below), (left, right)), constant_values=preprocess.border)
        parts = network(jnp.transpose(x, (0, 2, 3, 1)))
        if letterbox:
            stretch = np.array([width / inner_width, height / inner_height] * 2, np.float32)
            shift = np.array([-left / inner_width, -top / inner_height, 0, 0], np.float32)
            boxes_cxcywh = ops.add(ops.multiply(parts.boxes_cxcywh, jnp.asarray(stretch)), jnp.asarray(shift))
            parts = parts._replace(boxes_cxcywh=boxes_cxcywh)
        if mask_stride and parts.masks and (inner_height, inner_width) != (height, width):
            parts = parts._replace(masks=parts.masks.cut(*(side // mask_stride for side in cells)))
        return parts

    return call


def resample(
    x: Float[Array, "b c h w"], height: int, width: int, interpolation: Interpolation = "bilinear_antialias"
) -> Float[Array, "b c H W"]:
    """Whole numbers from 0 to 255 as ``data/picture/resampling.py`` makes them; across first, then down."""
    if interpolation == "bilinear":
        down, across = (jnp.asarray(_plain_weights(*sides)) for sides in ((x.shape[2], height), (x.shape[3], width)))
        return _rounded(ops.matmul(down, ops.matmul(x, across.T)))
    if x.shape[3] != width:
        x = _rounded(ops.matmul(x, jnp.asarray(weights(x.shape[3], width).T)))
    if x.shape[2] != height:
        x = _rounded(ops.matmul(jnp.asarray(weights(x.shape[2], height)), x))
    return x


def weights(source: int, target: int) -> Float32[np.ndarray, "target source"]:
    """Weight of each source pixel in each target pixel: a triangle as wide as the reduction, normalised."""
    scale = source / target
    support = max(scale, 1.0)
    centre = (np.arange(target) + 0.5) * scale
    first = np.maximum((centre - support + 0.5).astype(int), 0)[:, None]
    end = np.minimum((centre + support + 0.5).astype(int), source)[:, None]
    pixel = np.arange(source)
    triangle = np.maximum(1 - np.abs((pixel - centre[:, None] + 0.5) / support), 0)
    triangle = np.where((pixel >= first) & (pixel < end), triangle, 0)
    fixed = np.round(triangle / triangle.sum(1, keepdims=True) * _FIXED_POINT)
    return (fixed / _FIXED_POINT).astype(np.float32)


def _plain_weights(source: int, target: int) -> Float32[np.ndarray, "target source"]:
    """Weight of each source pixel in each target pixel, without antialiasing: of two neighbours."""
    at = np.clip((np.arange(target) + 0.5) * (source / target) - 0.5, 0, source - 1)
    return np.maximum(1 - np.abs(np.arange(source) - at[:, None]), 0).astype(np.float32)


def _rounded(x: Array) -> Array:
    return jnp.floor(ops.add(x, jnp.float32(0.5)))

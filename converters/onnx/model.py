"""The network as exporters want it: one ONNX operation for each operation, normalisation inside the convolutions.

Nothing here changes what is computed. The modules are the model's own; while they are traced, some of
them and some functions are replaced by equals made of ``ops``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from dfine_jax.converters.onnx import ops, transformer
from dfine_jax.converters.onnx.fold import FoldedConv, Path, fold, scaled, standardised
from dfine_jax.converters.onnx.masks import MaskFactors
from dfine_jax.converters.onnx.sampling import build_table, deformable_attention, linear
from dfine_jax.families import of
from dfine_jax.nn import fdr_head, layers, mask_head, vision_transformer
from dfine_jax.nn.deformable import DeformableAttention
from dfine_jax.nn.hybrid_encoder import Bottleneck
from dfine_jax.nn.stem import Stem
from dfine_jax.ops import box_queries, deformable, fdr, masks, pooling, resize, standardise, tokens, windows
from dfine_jax.ops.platform import traced_for
from dfine_jax.ops.precision import at_least_float32
from dfine_jax.ops.replace import replaced


class Parts(NamedTuple):
    """The answer of a network, masks as what they are a product of."""

    logits: Float[Array, "b q k"]
    boxes_cxcywh: Float[Array, "b q 4"]
    masks: MaskFactors | None


Forward = Callable[[Float[Array, "b h w 3"]], Parts]


def forward(model: Any, variables: Mapping[str, Any], pixel_scale: float | None = None) -> Forward:
    """Images to the answer, for tracing by an exporter.

    Args:
      pixel_scale: images are bytes, to be multiplied by this number; None: they are floats in [0, 1].
    """
    folded, params = fold(variables), variables["params"]
    path, unit = of(model.config).first_conv(model.config), pixel_scale or 1.0
    first = folded[path] = scaled(folded[path], unit)

    def as_they_are(images: Array, mean: Sequence[float], deviation: Sequence[float]) -> Array:
        folded[path] = standardised(first, [value / unit for value in mean], deviation)
        return images

    replacements = {**_replacements(), standardise.standardised: as_they_are}
    intercept = _interceptor(model, folded, params)

    def call(images: Float[Array, "b h w 3"]) -> Parts:
        with traced_for("onnx"), nn.intercept_methods(intercept), replaced(replacements):
            out: Any = model.apply(variables, images, train=False)
        return Parts(*out.answer)

    return call


def _interceptor(model: Any, folded: Mapping[Path, FoldedConv], params: Mapping[str, Any]) -> Callable[..., Any]:
    """Modules that are computed otherwise, as of ``flax.linen.intercept_methods``."""

    def intercept(original: Callable[..., Any], args: Any, kwargs: Any, context: Any) -> Any:
        module = context.module
        if context.method_name != "__call__":
            return original(*args, **kwargs)
        match module:
            case layers.ConvNorm():
                return _conv_norm(module, folded[module.path], *args)
            case Bottleneck():
                return _nhwc(jax.nn.silu(_conv(folded[module.path], _nchw(args[0]), pads=(1, 1))))
            case Stem():
                return _stem(module, folded, args[0], model.compute_dtype or jnp.float32)
            case nn.LayerNorm():
                return _layer_norm(module, _at(params, module.path), *args)
            case mask_head.GroupNorm():
                return _group_norm(module, _at(params, module.path), *args)
            case layers.BiasedConv():
                return _biased_conv(module, folded[module.path], args[0])
            case layers.ConvLayerNorm():
                return transformer.conv_layer_norm(module, _at(params, module.path), args[0])
            case vision_transformer.PatchEmbedding():
                return _patches(module, folded[module.path], args[0])
            case vision_transformer.Block():
                return transformer.block(module, _at(params, module.path), args[0])
            case mask_head.PixelProjection():
                return transformer.pixel_projection(module, _at(params, module.path), *args)
            case layers.Conv():
                return _bare_conv(module, _at(params, module.path)["kernel"], *args)
            case layers.Linear():
                return linear(_at(params, module.path), args[0], module.dtype)
            case layers.MultiHeadAttention():
                return _attention(module, _at(params, module.path), *args)
            case fdr_head.LocationQuality():
                return _location_quality(module, _at(params, module.path), *args)
            case DeformableAttention():
                return deformable_attention(module, _at(params, module.path), *args)
        return original(*args, **kwargs)

    return intercept


def _replacements() -> dict[Callable[..., Any], Callable[..., Any]]:
    """Functions that are computed otherwise."""
    return {
        layers.upsample2x: lambda x: _nhwc(ops.enlarge2x(_nchw(x))),
        pooling.max_pool3x3: lambda x: _nhwc(ops.max_pool3x3(_nchw(x))),
        pooling.average_pool2x2: lambda x: _nhwc(ops.average_pool2x2(_nchw(x))),
        layers.activation: _activation,
        fdr.integral: _integral,
        fdr.decode: _decode,
        tokens.gather_tokens: ops.gather_rows,
        tokens.take_rows: lambda rows, index: ops.take(rows, index, 0),
        resize.resize_bilinear: _enlarged,
        tokens.every_image: lambda rows, batch: np.asarray(rows)[None],
        resize.resize_bicubic: transformer.resize_bicubic,
        windows.windows_of: transformer.windows_of,
        windows.maps_of: transformer.maps_of,
        box_queries.moved: transformer.moved,
        box_queries.box_embedding: transformer.box_embedding,
        masks.masks_logit: lambda embedding, pixels, *offset: MaskFactors(embedding, _nchw(pixels), *offset),
        tokens.limited: lambda x, limit: ops.clip(x, -limit, limit),
        deformable.build_table: build_table,
    }


def _at(params: Any, path: Path) -> Any:
    for name in path:
        params = params[name]
    return params


def _nchw(x: Array) -> Array:
    return jnp.transpose(x, (0, 3, 1, 2))


def _nhwc(x: Array) -> Array:
    return jnp.transpose(x, (0, 2, 3, 1))


def _conv(conv: FoldedConv, x: Array, stride: int = 1, pads: tuple[int, int] = (0, 0), groups: int = 1) -> Array:
    """Convolution of [b, c, h, w] and, where an affine was folded, its activation."""
    x = ops.conv(x, conv.kernel.transpose(3, 2, 0, 1), conv.bias, stride, pads, groups)
    if conv.bound is None:
        return x
    return ops.clip(x, conv.bound, None) if conv.lower else ops.clip(x, None, conv.bound)


def _conv_norm(module: layers.ConvNorm, conv: FoldedConv, x: Array) -> Array:
    # Bytes first, because TensorRT transposes none.
    x = x.astype(module.dtype or (jnp.float32 if x.dtype == jnp.uint8 else x.dtype))
    padding = (module.kernel_size - 1) // 2 if module.padding is None else module.padding
    x = _conv(conv, _nchw(x), module.stride, (padding, padding), module.groups)
    if module.activation is not None and conv.bound is None:
        x = _activation(module.activation)(x)
    return _nhwc(x)


def _biased_conv(module: layers.BiasedConv, conv: FoldedConv, x: Array) -> Array:
    padding = module.kernel_size // 2
    return _nhwc(_conv(conv, _nchw(x.astype(module.dtype or x.dtype)), 1, (padding, padding), module.groups))


def _patches(module: vision_transformer.PatchEmbedding, conv: FoldedConv, images: Array) -> Array:
    # Bytes first, because TensorRT transposes none.
    images = images.astype(module.dtype or (jnp.float32 if images.dtype == jnp.uint8 else images.dtype))
    return _nhwc(_conv(conv, _nchw(images), module.patch_px))


def _bare_conv(module: layers.Conv, kernel: Array, x: Array) -> Array:
    x = x.astype(module.dtype or x.dtype)
    padding = (module.kernel_size - 1) // 2 if module.padding is None else module.padding
    weights = np.asarray(kernel).transpose(3, 2, 0, 1)
    return _nhwc(ops.conv(_nchw(x), weights, None, module.stride, (padding, padding), module.groups))


def _stem(module: Stem, folded: Mapping[Path, FoldedConv], images: Array, dtype: Any) -> Array:
    """The zeros behind the last row and column are padding of the 2x2 convolutions, but they take part in the maximum.

    A ``Pad`` before the ``MaxPool`` would say so, but ONNX Runtime folds it into the pooling, whose padding never wins.
    """

    def unit(name: str, x: Array, stride: int = 1, pads: tuple[int, int] = (0, 0)) -> Array:
        conv = folded[(*module.path, name)]
        x = _conv(conv, x, stride, pads)
        return ops.relu(x) if conv.bound is None else x

    if images.dtype == jnp.uint8:
        images = images.astype(dtype)  # first, because TensorRT transposes no bytes
    x = unit("stem1", _nchw(images).astype(dtype), 2, (1, 1))
    branch = unit("stem2b", unit("stem2a", x, pads=(0, 1)), pads=(0, 1))
    pool = ops.max_pool2x2_padded(x)
    if (folded[(*module.path, "stem1")].bound or 0.0) < 0:
        pool = ops.maximum(pool, ops.maximum(*_zero_border(x)))
    x = unit("stem3", ops.concatenate([pool, branch], 1), 2, (1, 1))
    return _nhwc(unit("stem4", x))


def _zero_border(x: Array) -> tuple[Array, Array]:
    """For a maximum with [b, c, h, w]: zero in the last row and column, elsewhere what never wins.

    Two lines, of which runtimes make one map when they load the file.
    """
    low = np.finfo(x.dtype).min
    h, w = x.shape[2:]
    return (
        jnp.asarray(np.where(np.arange(h) < h - 1, low, 0)[:, None], x.dtype),
        jnp.asarray(np.where(np.arange(w) < w - 1, low, 0)[None], x.dtype),
    )


def _layer_norm(module: nn.LayerNorm, params: Mapping[str, Array], x: Array) -> Array:
    dtype = module.dtype or x.dtype
    scale, bias = (jnp.asarray(params[name], dtype) for name in ("scale", "bias"))
    return ops.layer_norm(x.astype(dtype), scale, bias, module.epsilon)


def _group_norm(module: mask_head.GroupNorm, params: Mapping[str, Array], x: Array) -> Array:
    """Each group is a row; scale and bias of the channels follow, because a row has but one of each."""
    _, height, width, channels = x.shape
    assert module.num_groups is not None
    dtype = module.dtype or x.dtype
    rows = ops.reshape(_nchw(x.astype(dtype)), module.num_groups, channels // module.num_groups * height * width)
    x = ops.reshape(ops.instance_norm(rows, module.epsilon), channels, height, width)
    scale, bias = (jnp.asarray(params[name], dtype)[:, None, None] for name in ("scale", "bias"))
    return _nhwc(ops.add(ops.multiply(x, scale), bias))


def _enlarged(x: Array, height: int, width: int) -> Array:
    times = height // x.shape[1]
    assert (height, width) == (times * x.shape[1], times * x.shape[2]), "maps differ by a whole factor"
    return x if times == 1 else _nhwc(ops.enlarge_linear(_nchw(x), times))


def _activation(name: str) -> Callable[[Array], Array]:
    return {"relu": ops.relu, "silu": jax.nn.silu, "gelu": ops.gelu}[name]


def _attention(
    module: layers.MultiHeadAttention, params: Mapping[str, Any], query_key: Array, value: Array, blocked: None = None
) -> Array:
    """Self-attention; the queries' scale is part of their weights."""
    assert blocked is None, "denoising queries are for training"
    n, d = query_key.shape[1:]
    heads, width = module.num_heads, d // module.num_heads
    kernel, bias = (np.array(params["in_proj"][name], np.float32) for name in ("kernel", "bias"))
    kernel[:, :d] *= width**-0.5
    bias[:d] *= width**-0.5
    both = linear({"kernel": kernel[:, : 2 * d], "bias": bias[: 2 * d]}, query_key, module.dtype)
    v = linear({"kernel": kernel[:, 2 * d :], "bias": bias[2 * d :]}, value, module.dtype)
    q, k, v = (ops.reshape(t, n, heads, width) for t in (*ops.split(both, 2), v))
    logits = ops.matmul(q.transpose(0, 2, 1, 3), k.transpose(0, 2, 3, 1))
    weights = ops.softmax(at_least_float32(logits)).astype(v.dtype)
    x = ops.matmul(weights, v.transpose(0, 2, 1, 3)).transpose(0, 2, 1, 3)
    return linear(params["out_proj"], ops.reshape(x, n, d), module.dtype)


def _location_quality(module: fdr_head.LocationQuality, params: Mapping[str, Any], corners_logit: Array) -> Array:
    """The mean of the largest probabilities is part of the weights of the first layer."""
    top, _ = jax.lax.top_k(ops.softmax(at_least_float32(corners_logit)), fdr_head.TOP_BINS)
    first, second = (params["reg_conf"][f"layers_{i}"] for i in (0, 1))
    kernel = np.asarray(first["kernel"]).reshape(4, fdr_head.TOP_BINS + 1, -1)
    kernel = (kernel[:, :-1] + kernel[:, -1:] / fdr_head.TOP_BINS).reshape(4 * fdr_head.TOP_BINS, -1)
    x = ops.reshape(top, top.shape[1], kernel.shape[0])
    x = _activation(module.activation)(linear({**first, "kernel": kernel}, x))
    return at_least_float32(linear(second, x))


def _decode(reference_cxcywh: Array, offsets: Array, reg_scale: float) -> Array:
    """As ``fdr.decode``, without going through the corners."""
    (centre, size), (low, high) = ops.split(reference_cxcywh, 2), ops.split(offsets, 2)
    size = size / reg_scale
    return ops.concatenate([centre + (0.5 * (high - low)) * size, (low + high + reg_scale) * size], 2)


def _integral(corners_logit: Array, project: Array) -> Array:
    wide = at_least_float32(corners_logit)
    return ops.matmul(ops.softmax(wide), jnp.asarray(project, wide.dtype))

"""Backbone, encoder and decoder as one network: what it takes, how exactly it computes, what its weights start from."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping
from typing import Any, Protocol

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Key

from dfine_jax.nn.initializers import draw_variables
from dfine_jax.nn.layers import called
from dfine_jax.ops.precision import inference_products
from dfine_jax.typing import DenoisingQueries, ModelOutput

STRIDE = 32  # of the coarsest map; image sides are multiples of it


class Network(Protocol):
    """The module whose parts are called."""

    @property
    def config(self) -> Any: ...
    @property
    def remat(self) -> tuple[str, ...]: ...
    @property
    def compute_dtype(self) -> Any: ...
    def is_initializing(self) -> bool: ...


def detect(
    network: Network,
    parts: Callable[[Any], tuple[nn.Module, nn.Module, nn.Module]],
    images: Float[Array, "b h w 3"],
    denoising: DenoisingQueries | None,
    *,
    train: bool,
    finer: int = 0,
) -> ModelOutput:
    """Predict; ``train`` also returns what losses need and, with ``mutable=["batch_stats"]``, new statistics.

    Without ``train`` products of float32 numbers are float32 on every device, unless ``jax.default_matmul_precision``
    asks for less; with ``train`` they are what JAX does there (TF32 on GPUs).

    Args:
      parts: makes backbone, encoder and decoder for a compute type.
      finer: so many of the backbone's maps, the finest ones, go past the encoder to the decoder.

    Raises:
      ValueError: image sides that are not multiples of 32, or denoising queries without ``train``.
    """
    if images.ndim != 4 or images.shape[3] != 3 or images.shape[1] % STRIDE or images.shape[2] % STRIDE:
        raise ValueError(f"images must be [b, h, w, 3] with h and w multiples of {STRIDE}, not {images.shape}")
    if denoising is not None and not train:
        raise ValueError("denoising queries are for training; pass train=True or leave them out")
    dtype = network.compute_dtype or (jnp.bfloat16 if network.config.precision == "bfloat16" else None)
    backbone, encoder, decoder = parts(dtype)
    again = {name: train and name in network.remat and not network.is_initializing() for name in ("encoder", "decoder")}
    half = dtype is not None and jnp.dtype(dtype).itemsize < 4
    with contextlib.nullcontext() if train or half else inference_products():
        maps = backbone(images, train=train)  # type: ignore[operator]
        features = called(encoder, maps[finer:], train=train, remat=again["encoder"])
        return called(decoder, features, denoising, maps[:finer], train=train, remat=again["decoder"])


def init_variables(network: nn.Module, key: Key[Array, ""], copied: Mapping[str, int]) -> dict[str, Any]:
    """Fresh ``{"params", "batch_stats"}`` with the reference's initial values; nothing depends on the image size.

    Drawn on the host without compiling anything; equal keys give equal values on every device.

    Args:
      copied: by path, how many ``layers_i`` start from the values of the first, as the references copy one instance.
    """
    images = np.zeros((1, 4 * STRIDE, 4 * STRIDE, 3), np.float32)

    def init(key: Key[Array, ""]) -> dict[str, Any]:
        return dict(network.init(key, images, train=True))

    variables = draw_variables(init, key)
    params = variables["params"]
    for path, layers in copied.items():
        params = _first_copied(params, path.split("/"), layers)
    return jax.device_put({"params": params, "batch_stats": variables["batch_stats"]})


def _first_copied(tree: dict[str, Any], path: list[str], layers: int) -> dict[str, Any]:
    if path:
        return {**tree, path[0]: _first_copied(tree[path[0]], path[1:], layers)}
    return {**tree, **{f"layers_{i}": tree["layers_0"] for i in range(1, layers)}}

"""The whole detector: backbone, hybrid encoder, decoder."""

from __future__ import annotations

import contextlib
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Key

from dfine_jax.families.backbones.hgnetv2 import HGNetV2
from dfine_jax.families.dfine.config import ModelConfig
from dfine_jax.families.dfine.decoder import Decoder
from dfine_jax.nn.hybrid_encoder import HybridEncoder, depthwise_halving, split_and_chain
from dfine_jax.nn.initializers import draw_variables
from dfine_jax.nn.layers import called
from dfine_jax.ops.precision import inference_products
from dfine_jax.typing import DenoisingQueries, ModelOutput

STRIDE = 32  # of the coarsest map; image sides are multiples of it


class DFine(nn.Module):
    """D-FINE detector (arXiv 2410.13842); images [b, h, w, 3] RGB in [0, 1] of any size in steps of 32."""

    config: ModelConfig
    bn_axis_name: str | None = None  # replicas that share batch-norm statistics
    remat: tuple[
        str, ...
    ] = ()  # parts (backbone, encoder, decoder) computed again in the backward pass, to save memory
    keep_queries: tuple[int, ...] = ()  # queries that go on after each of the first decoder layers at inference
    compute_dtype: Any = None  # in place of the configuration's precision

    @nn.compact
    def __call__(
        self, images: Float[Array, "b h w 3"], denoising: DenoisingQueries | None = None, *, train: bool
    ) -> ModelOutput:
        """Predict; ``train`` also returns what losses need and, with ``mutable=["batch_stats"]``, new statistics.

        Without ``train`` products of float32 numbers are float32 on every device, unless
        ``jax.default_matmul_precision`` asks for less; with ``train`` they are what JAX does there (TF32 on GPUs).

        Raises:
          ValueError: image sides that are not multiples of 32, or denoising queries without ``train``.
        """
        config = self.config
        if images.ndim != 4 or images.shape[3] != 3 or images.shape[1] % STRIDE or images.shape[2] % STRIDE:
            raise ValueError(f"images must be [b, h, w, 3] with h and w multiples of {STRIDE}, not {images.shape}")
        if denoising is not None and not train:
            raise ValueError("denoising queries are for training; pass train=True or leave them out")
        dtype = self.compute_dtype or (jnp.bfloat16 if config.precision == "bfloat16" else None)
        backbone = HGNetV2(
            config.backbone,
            config.backbone_lab,
            config.backbone_frozen_bn,
            config.backbone_frozen_stem,
            config.return_stages,
            self.bn_axis_name,
            dtype,
            "backbone" in self.remat,
            name="backbone",
        )
        encoder = HybridEncoder(
            config.encoder_width,
            config.encoder_ffn,
            split_and_chain(config.encoder_width, config.encoder_expansion, config.encoder_depth),
            depthwise_halving(config.encoder_width),
            config.num_heads,
            bn_axis_name=self.bn_axis_name,
            dtype=dtype,
            name="encoder",
        )
        decoder = Decoder(config, self.bn_axis_name, dtype, self.keep_queries, name="decoder")
        again = {name: train and name in self.remat and not self.is_initializing() for name in ("encoder", "decoder")}
        half = dtype is not None and jnp.dtype(dtype).itemsize < 4
        with contextlib.nullcontext() if train or half else inference_products():
            features = called(encoder, backbone(images, train=train), train=train, remat=again["encoder"])
            return called(decoder, features, denoising, train=train, remat=again["decoder"])


def init_variables(config: ModelConfig, key: Key[Array, ""]) -> dict[str, Any]:
    """Fresh ``{"params", "batch_stats"}`` with the reference's initial values; nothing depends on the image size.

    Drawn on the host without compiling anything; equal keys give equal values on every device. All decoder layers start
    from identical values, as the reference copies one instance.
    """
    images = np.zeros((1, 4 * STRIDE, 4 * STRIDE, 3), np.float32)

    def init(key: Key[Array, ""]) -> dict[str, Any]:
        return dict(DFine(config).init(key, images, train=True))

    variables = draw_variables(init, key)
    decoder = dict(variables["params"]["decoder"])
    for i in range(1, config.decoder_layers):
        decoder[f"layers_{i}"] = decoder["layers_0"]
    params = {**variables["params"], "decoder": decoder}
    return jax.device_put({"params": params, "batch_stats": variables["batch_stats"]})

"""The whole detector: backbone, hybrid encoder, decoder."""

from __future__ import annotations

from typing import Any

import flax.linen as nn
from jaxtyping import Array, Float, Key

from dfine_jax.families.backbones.hgnetv2 import HGNetV2
from dfine_jax.families.backbones.resnet_vd import BACKBONES as RESNETS
from dfine_jax.families.backbones.resnet_vd import ResNetVD
from dfine_jax.families.rtdetr.config import RTDetrConfig
from dfine_jax.families.rtdetr.decoder import decoder
from dfine_jax.nn import detector
from dfine_jax.nn.hybrid_encoder import HybridEncoder, convolution_halving, cross_stage
from dfine_jax.nn.initializers import fan_in_uniform
from dfine_jax.typing import DenoisingQueries, ModelOutput

STAGES = (1, 2, 3)  # of the backbone, given to the encoder


class RTDetr(nn.Module):
    """RT-DETRv2 detector (arXiv 2407.17140); images [b, h, w, 3] RGB in [0, 1] of any size in steps of 32."""

    config: RTDetrConfig
    bn_axis_name: str | None = None  # replicas that share batch-norm statistics
    # Parts (backbone, encoder, decoder) computed again in the backward pass, to save memory.
    remat: tuple[str, ...] = ()
    keep_queries: tuple[int, ...] = ()  # queries that go on after each of the first decoder layers at inference
    compute_dtype: Any = None  # in place of the configuration's precision

    @nn.compact
    def __call__(
        self, images: Float[Array, "b h w 3"], denoising: DenoisingQueries | None = None, *, train: bool
    ) -> ModelOutput:
        """As ``nn.detector.detect``."""
        return detector.detect(self, self._parts, images, denoising, train=train)

    def _parts(self, dtype: Any) -> tuple[nn.Module, nn.Module, nn.Module]:
        config = self.config
        encoder = HybridEncoder(
            config.encoder_width,
            config.encoder_ffn,
            cross_stage(config.encoder_width, config.encoder_expansion),
            convolution_halving(config.encoder_width),
            config.num_heads,
            config.encoder_layers,
            lateral_activation="silu",
            position_order=config.position_order,
            linear_init=fan_in_uniform,
            bn_axis_name=self.bn_axis_name,
            dtype=dtype,
            name="encoder",
        )
        decode = decoder(config, self.bn_axis_name, dtype, self.keep_queries, name="decoder")
        return self._backbone(dtype), encoder, decode

    def _backbone(self, dtype: Any) -> ResNetVD | HGNetV2:
        config = self.config
        shared: dict[str, Any] = {
            "frozen_bn": config.backbone_frozen_bn,
            "frozen_stem": config.backbone_frozen_stem,
            "return_stages": STAGES,
            "bn_axis_name": self.bn_axis_name,
            "dtype": dtype,
            "remat": "backbone" in self.remat,
        }
        kind = ResNetVD if config.backbone in RESNETS else HGNetV2
        return kind(config.backbone, **shared, name="backbone")


def init_variables(config: RTDetrConfig, key: Key[Array, ""]) -> dict[str, Any]:
    """Fresh variables, as of ``nn.detector.init_variables``.

    The layers of the encoder and those of the decoder start from identical values.
    """
    copied = {"decoder": config.decoder_layers, "encoder/encoder_0": config.encoder_layers}
    return detector.init_variables(RTDetr(config), key, copied)

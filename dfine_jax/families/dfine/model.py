"""The whole detector: backbone, hybrid encoder, decoder."""

from __future__ import annotations

from typing import Any

import flax.linen as nn
from jaxtyping import Array, Float, Key

from dfine_jax.families.backbones.hgnetv2 import HGNetV2
from dfine_jax.families.dfine.config import ModelConfig
from dfine_jax.families.dfine.decoder import decoder
from dfine_jax.nn import detector
from dfine_jax.nn.hybrid_encoder import HybridEncoder, depthwise_halving, split_and_chain
from dfine_jax.typing import DenoisingQueries, ModelOutput


class DFine(nn.Module):
    """D-FINE detector (arXiv 2410.13842); images [b, h, w, 3] RGB in [0, 1] of any size in steps of 32."""

    config: ModelConfig
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
        finer = len(self.config.mask_stages)
        return detector.detect(self, self._parts, images, denoising, train=train, finer=finer)

    def _parts(self, dtype: Any) -> tuple[nn.Module, nn.Module, nn.Module]:
        config = self.config
        backbone = HGNetV2(
            config.backbone,
            config.backbone_lab,
            config.backbone_frozen_bn,
            config.backbone_frozen_stem,
            (*config.mask_stages, *config.return_stages),
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
            position_order=config.position_order,
            bn_axis_name=self.bn_axis_name,
            dtype=dtype,
            name="encoder",
        )
        return backbone, encoder, decoder(config, self.bn_axis_name, dtype, self.keep_queries, name="decoder")


def init_variables(config: ModelConfig, key: Key[Array, ""]) -> dict[str, Any]:
    """Fresh variables, as of ``nn.detector.init_variables``; all decoder layers start from identical values."""
    return detector.init_variables(DFine(config), key, {"decoder": config.decoder_layers})

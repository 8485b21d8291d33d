"""The whole detector: windowed DINOv2, projector, decoder, masks."""

from __future__ import annotations

import contextlib
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Key

from dfine_jax.families.backbones.dinov2 import BACKBONES, WindowedDINOv2
from dfine_jax.families.rfdetr.config import RFDetrConfig
from dfine_jax.families.rfdetr.decoder import Decoded, Decoder
from dfine_jax.families.rfdetr.mask_head import Embeddings, MaskHead
from dfine_jax.families.rfdetr.outputs import Draws, GroupedOutput
from dfine_jax.families.rfdetr.projector import Projector
from dfine_jax.nn.initializers import draw_variables
from dfine_jax.nn.layers import called
from dfine_jax.ops.masks import masks_logit
from dfine_jax.ops.postprocess import Answer
from dfine_jax.ops.precision import inference_products
from dfine_jax.ops.standardise import standardised
from dfine_jax.typing import HeadOutput, ModelOutput, StageOutput

PARTS = ("backbone", "decoder")  # that can be computed again
MEAN, DEVIATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of ImageNet's RGB


class RFDetr(nn.Module):
    """RF-DETR (arXiv 2511.09554); images [b, h, w, 3] RGB in [0, 1] of any size in steps of ``config.grid_px``.

    Training runs all groups of queries side by side, inference the first.
    """

    config: RFDetrConfig
    remat: tuple[str, ...] = ()  # parts of PARTS computed again in the backward pass, to save memory
    compute_dtype: Any = None  # in place of the configuration's precision
    queries: int | None = None  # at inference: the first of the first group; None: all
    layers: int | None = None  # of the decoder, at inference; None: all

    @nn.compact
    def __call__(self, images: Float[Array, "b h w 3"], queries: Draws | None = None, *, train: bool) -> ModelOutput:
        """Predict; ``train`` also returns what losses need.

        Without ``train`` products of float32 numbers are float32 on every device, unless
        ``jax.default_matmul_precision`` asks for less.

        Args:
          queries: what is random, with ``train``; None: no blocks are dropped.

        Raises:
          ValueError: image sides that are no multiples of patch times windows, or draws without ``train``.
        """
        grid = self.config.grid_px
        if images.ndim != 4 or images.shape[3] != 3 or images.shape[1] % grid or images.shape[2] % grid:
            raise ValueError(f"images must be [b, h, w, 3] with h and w multiples of {grid}, not {images.shape}")
        if queries is not None and not train:
            raise ValueError("what is random is for training; pass train=True or leave it out")
        dtype = self.compute_dtype or (jnp.bfloat16 if self.config.precision == "bfloat16" else None)
        half = dtype is not None and jnp.dtype(dtype).itemsize < 4
        with contextlib.nullcontext() if train or half else inference_products():
            return self._detect(images, None if queries is None else queries.key, dtype, train)

    def _detect(self, images: Array, key: Key[Array, ""] | None, dtype: Any, train: bool) -> ModelOutput:
        config = self.config
        size = (images.shape[1], images.shape[2])
        images = standardised(images, MEAN, DEVIATION)
        backbone = WindowedDINOv2(
            BACKBONES[config.backbone],
            config.patch_px,
            config.windows,
            config.table,
            config.taps,
            config.drop_path,
            "backbone" in self.remat,
            dtype,
            name="backbone",
        )
        features = Projector(config.width, dtype, name="projector")(backbone(images, key, train=train))
        decoder = Decoder(config, self.queries, self.layers, dtype, name="decoder")
        again = train and "decoder" in self.remat and not self.is_initializing()
        decoded = called(decoder, features, train=train, remat=again)
        masks = None
        if config.mask_width:
            layers = self.layers if self.layers and not (train or self.is_initializing()) else config.decoder_layers
            head = MaskHead(config.mask_width, dtype, name="segmentation_head")
            proposals = decoded.proposals.content if train or self.is_initializing() else None
            masks = head(features, decoded.hidden, proposals, size, layers)
        return self._trained(decoded, masks) if train else self._answered(decoded, masks)

    def _answered(self, decoded: Decoded, masks: Embeddings | None) -> ModelOutput:
        logits = decoded.logits[-1][..., : self.config.num_classes]
        found = None if masks is None else masks_logit(masks.queries[-1], masks.pixels[-1], masks.bias)
        return ModelOutput(Answer(logits, decoded.boxes_cxcywh[-1], found), decoded.proposals.index)

    def _trained(self, decoded: Decoded, masks: Embeddings | None) -> ModelOutput:
        layers = len(decoded.logits)
        stages = StageOutput(
            jnp.stack(decoded.logits),
            jnp.stack(decoded.boxes_cxcywh),
            mask_embedding=None if masks is None else jnp.stack(masks.queries[:layers]),
        )
        proposals = decoded.proposals
        training = GroupedOutput(stages, HeadOutput(proposals.logits, proposals.boxes_cxcywh))
        if masks is not None:
            training = training.replace(  # type: ignore[attr-defined]
                encoder_mask_embedding=masks.queries[-1], pixels=jnp.stack(masks.pixels), mask_bias=masks.bias
            )
        answering = slice(self.config.num_queries)
        logits = stages.logits[-1, :, answering, : self.config.num_classes]
        answer = Answer(logits, stages.boxes_cxcywh[-1, :, answering])
        return ModelOutput(answer, proposals.index, training)


def init_variables(config: RFDetrConfig, key: Key[Array, ""]) -> dict[str, Any]:
    """Fresh ``{"params", "batch_stats"}`` with the reference's initial values, drawn on the host; no statistics.

    The heads of proposals start as copies of those of the decoder.
    """
    images = np.zeros((1, 4 * config.grid_px, 4 * config.grid_px, 3), np.float32)

    def init(key: Key[Array, ""]) -> dict[str, Any]:
        return dict(RFDetr(config).init(key, images, train=True))

    params = draw_variables(init, key)["params"]
    decoder = dict(params["decoder"])
    for group in range(config.groups):
        for shared, own in (("class_embed", "enc_out_class_embed"), ("bbox_embed", "enc_out_bbox_embed")):
            decoder[f"{own}_{group}"] = decoder[shared]
    return jax.device_put({"params": {**params, "decoder": decoder}, "batch_stats": {}})

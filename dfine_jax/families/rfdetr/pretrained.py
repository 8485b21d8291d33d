"""DINOv2's own weights, as transformers writes them, for our patches and grid of positions.

Published are patches of 14 pixels and positions on a grid of 37 x 37. The reference itself starts from them for Base
alone; for other patches and grids both are resized here.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping

import numpy as np
from jaxtyping import Float

from dfine_jax.families.family import Anchor, Published
from dfine_jax.families.rfdetr.config import RFDetrConfig
from dfine_jax.ops.resize import bicubic_weights

logger = logging.getLogger(__name__)

PREFIX = "backbone.0.encoder.encoder."  # of the backbone in official files; what follows are transformers' names
POSITIONS, PATCHES = "embeddings.position_embeddings", "embeddings.patch_embeddings.projection.weight"
ANCHORS = (Anchor(tuple(PATCHES.split("."))),)
_REGISTERS = "embeddings.register_tokens"


def _published(size: str, commit: str) -> Published:
    url = f"https://huggingface.co/facebook/dinov2-{size}/resolve/{commit}/model.safetensors"
    return Published(url, licence="Apache-2.0", cached=f"dinov2-{size}.safetensors")


BACKBONES = {
    "DINOv2-S": _published("small", "ed25f3a31f01632728cabb09d1542f84ab7b0056"),
    "DINOv2-B": _published("base", "f9e44c814b77203eaa57a6bdbbd535f21ede1415"),
}


def fitted(tensors: Mapping[str, np.ndarray], model: RFDetrConfig) -> dict[str, np.ndarray]:
    """Tensors of a backbone with patches and positions of our sizes. Of registers, which ours has not, nothing is kept.

    Shapes that are of something else stay as they are.
    """
    out = {name: tensor for name, tensor in tensors.items() if name != _REGISTERS}
    patches, positions = out.get(PATCHES, np.empty(0)), out.get(POSITIONS, np.empty(0))
    done = []
    if patches.ndim == 4 and patches.shape[2] == patches.shape[3] != model.patch_px:
        out[PATCHES] = resized_patches(patches, model.patch_px)
        done.append(f"patches are resized from {patches.shape[2]} to {model.patch_px} pixels")
    if positions.ndim == 3 and (side := grid_side(positions)) not in (0, model.table):
        out[POSITIONS] = resized_positions(positions, model.table)
        done.append(f"positions are resized from {side} to {model.table} to a side")
    if done:
        logger.info("of the backbone %s", ", ".join(done))
    return out


def grid_side(positions: Float[np.ndarray, "1 n d"]) -> int:
    """Side of the grid of positions, which stand behind that of the class token; 0: they are of no square."""
    side = math.isqrt(max(positions.shape[1] - 1, 0))
    return side if side**2 == positions.shape[1] - 1 else 0


def resized_positions(positions: Float[np.ndarray, "1 n d"], side: int) -> Float[np.ndarray, "1 m d"]:
    """Positions on another grid, as the reference resizes them: bicubic with antialiasing."""
    positions, old = np.asarray(positions, np.float32), grid_side(positions)
    weights, grid = bicubic_weights(old, side), positions[0, 1:].reshape(old, old, -1)
    grid = np.einsum("th,uw,hwc->tuc", weights, weights, grid, optimize=True).astype(np.float32)
    return np.concatenate([positions[:, :1], grid.reshape(1, side**2, -1)], 1)


def resized_patches(kernel: Float[np.ndarray, "o i k k"], side: int) -> Float[np.ndarray, "o i s s"]:
    """Kernel for patches of another size that show the same: bicubic, scaled so that the sum of each is kept."""
    weights = bicubic_weights(kernel.shape[2], side).astype(np.float64)
    weights /= weights.sum(0)  # what a pixel had is shared out, no more and no less
    return np.einsum("th,uw,oihw->oitu", weights, weights, kernel, optimize=True).astype(np.float32)

"""The model itself as a backend."""

from __future__ import annotations

import platform
from typing import Any

import numpy as np
from jaxtyping import UInt8

from dfine_jax.backends.base import Backend


class JaxBackend(Backend):
    """The model in JAX; compiled once for each shape of input."""

    def __init__(self, model: Any, variables: Any, scale: float = 1 / 255) -> None:
        import jax
        import jax.numpy as jnp

        divisor = float(np.float32(1 / scale))

        def forward(variables: Any, images: Any) -> tuple[Any, Any]:
            out = model.apply(variables, images.astype(jnp.float32) / divisor, train=False)
            return out.logits, out.boxes_cxcywh

        self._variables = jax.device_put(variables)
        self._forward = jax.jit(forward)

    def predict(self, images: UInt8[np.ndarray, "b h w 3"]) -> tuple[np.ndarray, np.ndarray]:
        """As ``Backend.predict``."""
        logits, boxes_cxcywh = self._forward(self._variables, images)
        return np.asarray(logits, np.float32), np.asarray(boxes_cxcywh, np.float32)

    def describe(self) -> dict[str, Any]:
        """As ``Backend.describe``."""
        import jax

        device = jax.devices()[0]
        name = device.device_kind if device.platform != "cpu" else platform.machine()
        return {"runtime": "jax", "version": jax.__version__, "device": f"{device.platform} ({name})"}

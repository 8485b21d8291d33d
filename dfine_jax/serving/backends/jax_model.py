"""The model itself as a backend."""

from __future__ import annotations

import platform
import threading
from typing import Any

import numpy as np
from jaxtyping import Float, Int, UInt8

from dfine_jax.data.picture.images import unit_range
from dfine_jax.errors import UserError
from dfine_jax.ops.grid import on_grid
from dfine_jax.ops.postprocess import Answer, AnswerRules, rows_of
from dfine_jax.serving.backends.base import Backend
from dfine_jax.system.waiting import waiting


class JaxBackend(Backend):
    """The model in JAX; compiled once for each shape of input.

    Args:
      grid_px: sides of the input are multiples of it; others are a UserError.
      rules: how the answers become detections.
    """

    def __init__(
        self,
        model: Any,
        variables: Any,
        scale: float = 1 / 255,
        grid_px: int = 1,
        rules: AnswerRules = AnswerRules(),  # noqa: B008
    ) -> None:
        import jax
        import jax.numpy as jnp

        def forward(variables: Any, images: Any) -> Answer:
            return model.apply(variables, unit_range(images, jnp.float32, scale), train=False).answer

        self._variables = jax.device_put(variables)
        self._forward = jax.jit(forward)
        # Half the bytes; an edge moves by a thousandth of a map's cell at most, as in evaluation while training.
        self._taken = jax.jit(lambda maps, query: jnp.float16(rows_of(maps, query)))
        self._grid_px = grid_px
        self.rules = rules
        self._programs: dict[tuple[int, ...], Any] = {}  # by shape of the images
        self._compiling = threading.Lock()  # a second thread would compile the same once more

    def prepare(self, shape: tuple[int, int, int, int]) -> None:
        """As ``Backend.prepare``; a line tells of a compilation that takes longer than a moment."""
        self._program(shape)

    def predict(self, images: UInt8[np.ndarray, "b h w 3"]) -> Answer:
        """As ``Backend.predict``."""
        import jax

        return jax.tree.map(lambda x: np.asarray(x, np.float32), self._answer(images))

    def _answer(self, images: UInt8[np.ndarray, "b h w 3"]) -> Answer:
        return self._program(images.shape)(self._variables, images)

    def _rows(self, masks_logit: Any, query: Int[np.ndarray, "b m"]) -> Float[np.ndarray, "b m h w"]:
        """As ``Backend._rows``: chosen on the device, so that no map of another query comes to the host."""
        count, most = query.shape[1], masks_logit.shape[1]
        if not count:
            return np.zeros((len(query), 0, *masks_logit.shape[2:]), np.float16)
        # A program for each power of two, not for each number of objects.
        filled = min(1 << (count - 1).bit_length(), max(most, count))
        query = np.pad(query, ((0, 0), (0, filled - count)))
        return np.asarray(self._taken(masks_logit, query.astype(np.int32)))[:, :count]

    def _program(self, shape: tuple[int, ...]) -> Any:
        if shape in self._programs:
            return self._programs[shape]
        import jax

        with self._compiling:
            if shape not in self._programs:
                batch, height, width, _ = shape
                kept = jax.config.jax_compilation_cache_dir  # pyright: ignore[reportAttributeAccessIssue]
                detail = "about a minute" + (f" the first time; kept in {kept}" if kept else "; it is not kept")
                of_many = f", {batch} images at a time" if batch > 1 else ""
                self._require_grid(height, width)
                with waiting(f"compiling for {height}x{width}{of_many}", detail):
                    images = jax.ShapeDtypeStruct(shape, np.uint8)
                    self._programs[shape] = self._forward.lower(self._variables, images).compile()
        return self._programs[shape]

    def _require_grid(self, height: int, width: int) -> None:
        if height % self._grid_px or width % self._grid_px:
            near = "x".join(str(on_grid(side, self._grid_px)) for side in (height, width))
            raise UserError(f"input size {height}x{width}: sides must be multiples of {self._grid_px}, such as {near}")

    def describe(self) -> dict[str, Any]:
        """As ``Backend.describe``."""
        import jax

        device = jax.devices()[0]
        name = device.device_kind if device.platform != "cpu" else platform.machine()
        return {"runtime": "jax", "version": jax.__version__, "device": f"{device.platform} ({name})"}

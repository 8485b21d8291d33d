"""A stem of two branches, one pooled and one convolved."""

from __future__ import annotations

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from dfine_jax.nn.layers import Unit


class Stem(nn.Module):
    """Image to stride 4; the zero column and row on the right and bottom take part in the pooling."""

    mid: int
    out: int
    unit: Unit

    @nn.compact
    def __call__(self, images: Float[Array, "b h w 3"], *, train: bool) -> Float[Array, "b _ _ c"]:
        x = _pad_right_bottom(self.unit(self.mid, 3, 2, name="stem1")(images, train=train))
        conv = self.unit(self.mid // 2, 2, padding=0, name="stem2a")(x, train=train)
        conv = self.unit(self.mid, 2, padding=0, name="stem2b")(_pad_right_bottom(conv), train=train)
        rows = jnp.maximum(x[:, :-1], x[:, 1:])
        pool = jnp.maximum(rows[:, :, :-1], rows[:, :, 1:])
        x = self.unit(self.mid, 3, 2, name="stem3")(jnp.concatenate([pool, conv], axis=-1), train=train)
        return self.unit(self.out, name="stem4")(x, train=train)


def _pad_right_bottom(x: Float[Array, "b h w c"]) -> Float[Array, "b h+1 w+1 c"]:
    return jnp.pad(x, ((0, 0), (0, 1), (0, 1), (0, 0)))

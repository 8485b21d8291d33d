"""PP-HGNetV2, the backbone (reference: src/nn/backbone/hgnetv2.py of Peterande/D-FINE)."""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from dfine_jax.nn.layers import ConvNorm, Unit, called, without_gradient
from dfine_jax.nn.stem import Stem


class StageSpec(NamedTuple):
    """One stage: output and inner channels, blocks, layers per block."""

    out: int
    mid: int
    blocks: int
    layers: int


class BackboneSpec(NamedTuple):
    """Channels of the stem (inner, output) and the four stages."""

    stem: tuple[int, int]
    stages: tuple[StageSpec, ...]  # four


BACKBONES: dict[str, BackboneSpec] = {
    name: BackboneSpec(stem, tuple(StageSpec(*row, layers) for row in rows))
    for name, stem, layers, rows in (
        ("B0", (16, 16), 3, ((64, 16, 1), (256, 32, 1), (512, 64, 2), (1024, 128, 1))),
        ("B1", (24, 32), 3, ((64, 32, 1), (256, 48, 1), (512, 96, 2), (1024, 192, 1))),
        ("B2", (24, 32), 4, ((96, 32, 1), (384, 64, 1), (768, 128, 3), (1536, 256, 1))),
        ("B3", (24, 32), 5, ((128, 32, 1), (512, 64, 1), (1024, 128, 3), (2048, 256, 1))),
        ("B4", (32, 48), 6, ((128, 48, 1), (512, 96, 1), (1024, 192, 3), (2048, 384, 1))),
        ("B5", (32, 64), 6, ((128, 64, 1), (512, 128, 2), (1024, 256, 5), (2048, 512, 2))),
        ("B6", (48, 96), 6, ((192, 96, 2), (512, 192, 3), (1024, 384, 6), (2048, 768, 3))),
    )
}


class LightLayer(nn.Module):
    """1x1 convolution without activation, then a depthwise one."""

    features: int
    kernel_size: int
    unit: Unit

    @nn.compact
    def __call__(self, x: Float[Array, "b h w i"], *, train: bool) -> Float[Array, "b h w c"]:
        x = self.unit(self.features, activation=None, name="conv1")(x, train=train)
        return self.unit(self.features, self.kernel_size, groups=self.features, name="conv2")(x, train=train)


class Block(nn.Module):
    """A chain of layers whose input and outputs are all concatenated, squeezed to half and expanded."""

    spec: StageSpec
    light: bool
    residual: bool
    unit: Unit

    @nn.compact
    def __call__(self, x: Float[Array, "b h w i"], *, train: bool) -> Float[Array, "b h w c"]:
        outputs = [x]
        for i in range(self.spec.layers):
            if self.light:
                layer = LightLayer(self.spec.mid, 5, self.unit, name=f"layers_{i}")
            else:
                layer = self.unit(self.spec.mid, 3, name=f"layers_{i}")
            outputs.append(layer(outputs[-1], train=train))
        y = jnp.concatenate(outputs, axis=-1)
        y = self.unit(self.spec.out // 2, name="aggregation_0")(y, train=train)
        y = self.unit(self.spec.out, name="aggregation_1")(y, train=train)
        return x + y if self.residual else y


class Stage(nn.Module):
    """Optional halving of the grid, then blocks; all but the first are residual."""

    spec: StageSpec
    downsample: bool
    light: bool
    unit: Unit

    @nn.compact
    def __call__(self, x: Float[Array, "b h w i"], *, train: bool) -> Float[Array, "b ho wo c"]:
        if self.downsample:
            c = x.shape[-1]
            x = self.unit(c, 3, 2, groups=c, activation=None, name="downsample")(x, train=train)
        for i in range(self.spec.blocks):
            x = Block(self.spec, self.light, residual=i > 0, unit=self.unit, name=f"blocks_{i}")(x, train=train)
        return x


class HGNetV2(nn.Module):
    """Feature maps of the asked stages; stage i has stride 4 * 2**i.

    ``frozen_bn`` uses stored statistics everywhere, ``frozen_stem`` passes no gradient to the weights of the stem.
    ``remat``: only the maps between stages are kept for the backward pass, which computes each stage again.
    """

    backbone: str = "B0"
    lab: bool = False
    frozen_bn: bool = False
    frozen_stem: bool = False
    return_stages: tuple[int, ...] = (1, 2, 3)
    bn_axis_name: str | None = None
    dtype: Any = None
    remat: bool = False

    @nn.compact
    def __call__(self, images: Float[Array, "b h w 3"], *, train: bool) -> list[Float[Array, "b _ _ _"]]:
        spec = BACKBONES[self.backbone]
        unit = functools.partial(
            ConvNorm,
            activation="relu",
            lab=self.lab,
            norm_name="bn",
            frozen_bn=self.frozen_bn,
            bn_axis_name=self.bn_axis_name,
            dtype=self.dtype,
        )
        stem = without_gradient(Stem, initializing=self.is_initializing()) if self.frozen_stem else Stem
        call = functools.partial(called, train=train, remat=self.remat and train and not self.is_initializing())
        x = call(stem(*spec.stem, unit, name="stem"), images)
        outputs = []
        for i, stage in enumerate(spec.stages[: max(self.return_stages) + 1]):
            x = call(Stage(stage, downsample=i > 0, light=i > 1, unit=unit, name=f"stages_{i}"), x)
            outputs.append(x)
        return [outputs[i] for i in self.return_stages]

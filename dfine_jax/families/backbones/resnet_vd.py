"""ResNet-vd, the backbone with three 3x3 convolutions as stem and pooling in its shortcuts (arXiv 1812.01187).

Reference: rtdetrv2_pytorch/src/nn/backbone/presnet.py of lyuwenyu/RT-DETR, variant d.
"""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import flax.linen as nn
import jax
from jaxtyping import Array, Float

from dfine_jax.nn.layers import ConvNorm, Unit, called, without_gradient
from dfine_jax.ops.pooling import average_pool2x2, max_pool3x3

STEM = 64  # channels that leave the stem
WIDTHS = (64, 128, 256, 512)  # of the 3x3 convolutions of the four stages


class BackboneSpec(NamedTuple):
    """Blocks per stage, and how many times wider a block's output is than its 3x3 convolution."""

    blocks: tuple[int, int, int, int]
    expansion: int


BACKBONES: dict[str, BackboneSpec] = {
    "R18": BackboneSpec((2, 2, 2, 2), 1),
    "R34": BackboneSpec((3, 4, 6, 3), 1),
    "R50": BackboneSpec((3, 4, 6, 3), 4),
    "R101": BackboneSpec((3, 4, 23, 3), 4),
}


class Stem(nn.Module):
    """Image to stride 2."""

    unit: Unit

    @nn.compact
    def __call__(self, images: Float[Array, "b h w 3"], *, train: bool) -> Float[Array, "b _ _ c"]:
        x = self.unit(STEM // 2, 3, 2, name="conv1_1")(images, train=train)
        x = self.unit(STEM // 2, 3, name="conv1_2")(x, train=train)
        return self.unit(STEM, 3, name="conv1_3")(x, train=train)


class Block(nn.Module):
    """Two 3x3 convolutions, or with an expansion 1x1, 3x3, 1x1; the stride is that of the first 3x3 one.

    ``first``: of a stage, where the input is brought to the width and grid of the output.
    """

    width: int
    expansion: int
    stride: int
    first: bool
    unit: Unit

    @nn.compact
    def __call__(self, x: Float[Array, "b h w i"], *, train: bool) -> Float[Array, "b ho wo c"]:
        out = self.width * self.expansion
        if self.expansion == 1:
            y = self.unit(self.width, 3, self.stride, name="branch2a")(x, train=train)
            y = self.unit(out, 3, activation=None, name="branch2b")(y, train=train)
        else:
            y = self.unit(self.width, name="branch2a")(x, train=train)
            y = self.unit(self.width, 3, self.stride, name="branch2b")(y, train=train)
            y = self.unit(out, activation=None, name="branch2c")(y, train=train)
        if self.first:
            pooled = average_pool2x2(x) if self.stride == 2 else x
            x = self.unit(out, activation=None, name="short")(pooled, train=train)
        return jax.nn.relu(x + y)


class Stage(nn.Module):
    """A chain of blocks."""

    width: int
    expansion: int
    blocks: int
    stride: int
    unit: Unit

    @nn.compact
    def __call__(self, x: Float[Array, "b h w i"], *, train: bool) -> Float[Array, "b ho wo c"]:
        for i in range(self.blocks):
            stride = self.stride if i == 0 else 1
            x = Block(self.width, self.expansion, stride, i == 0, self.unit, name=f"blocks_{i}")(x, train=train)
        return x


class ResNetVD(nn.Module):
    """Feature maps of the asked stages; stage i has stride 4 * 2**i. Sides of the images are multiples of 32.

    ``frozen_bn`` uses stored statistics everywhere, ``frozen_stem`` passes no gradient to the weights of the stem.
    ``remat``: only the maps between stages are kept for the backward pass, which computes each stage again.
    """

    backbone: str = "R18"
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
            frozen_bn=self.frozen_bn,
            bn_axis_name=self.bn_axis_name,
            dtype=self.dtype,
        )
        stem = without_gradient(Stem, initializing=self.is_initializing()) if self.frozen_stem else Stem
        call = functools.partial(called, train=train, remat=self.remat and train and not self.is_initializing())
        x = max_pool3x3(call(stem(unit, name="conv1"), images))
        outputs = []
        for i in range(max(self.return_stages) + 1):
            stage = Stage(WIDTHS[i], spec.expansion, spec.blocks[i], 1 if i == 0 else 2, unit, name=f"res_layers_{i}")
            x = call(stage, x)
            outputs.append(x)
        return [outputs[i] for i in self.return_stages]

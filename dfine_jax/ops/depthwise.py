"""Depthwise convolution as shifted products, for processors.

XLA's CPU backend runs grouped convolutions through generic loops. Derived automatically, the gradient of shifted
products is one reduction and one padded array per tap, each of which computes again what lies before the convolution.
Written by hand, it is one pass over the rows of the output for the kernel and shifted products again for the input.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from dfine_jax.ops.order import after


@functools.partial(jax.jit, static_argnums=(2, 3), inline=True)  # one compilation when called outside of jit
def shifted_products(
    x: Float[Array, "b h w c"], kernel: Float[Array, "kh kw 1 c"], stride: int, padding: int
) -> Float[Array, "b ho wo c"]:
    """One filter per channel, zero padding on all four sides, sums in at least float32.

    JAX differentiates it in reverse mode only, because its gradient is written by hand.
    """
    return _shifted_products(x, kernel, stride, padding)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def _shifted_products(x: Array, kernel: Array, stride: int, padding: int) -> Array:
    size_y, size_x = kernel.shape[:2]
    batch, height, width, channels = x.shape
    out_y = (height + 2 * padding - size_y) // stride + 1
    out_x = (width + 2 * padding - size_x) // stride + 1
    padded = jnp.pad(x, ((0, 0), (padding, padding), (padding, padding), (0, 0)))
    total = jnp.zeros((batch, out_y, out_x, channels), jnp.promote_types(x.dtype, jnp.float32))
    for i in range(size_y):
        for j in range(size_x):
            end = (batch, i + (out_y - 1) * stride + 1, j + (out_x - 1) * stride + 1, channels)
            total = total + lax.slice(padded, (0, i, j, 0), end, (1, stride, stride, 1)) * kernel[i, j, 0]
    return total.astype(x.dtype)


def _forward(x: Array, kernel: Array, stride: int, padding: int) -> tuple[Array, tuple[Array, Array]]:
    return _shifted_products(x, kernel, stride, padding), (x, kernel)


def _backward(stride: int, padding: int, kept: tuple[Array, Array], cotangent: Array) -> tuple[Array, Array]:
    x, kernel = kept
    of_x = _gradient_of_input(cotangent, kernel, stride, padding, x.shape[1:3])
    of_kernel = _gradient_of_kernel(cotangent, x, kernel.shape[:2], stride, padding)
    return of_x.astype(x.dtype), of_kernel.astype(kernel.dtype)


_shifted_products.defvjp(_forward, _backward)


def _gradient_of_input(
    cotangent: Array, kernel: Array, stride: int, padding: int, size: tuple[int, ...]
) -> Float[Array, "b h w c"]:
    """Row y receives kernel[i] * cotangent[(y + padding - i) / stride] where that is whole.

    Rows and columns that are equal modulo the stride see the same taps; each such grid is computed apart, so that no
    product is one with a zero between the cotangents.
    """
    batch, _, _, channels = cotangent.shape
    cells_y, cells_x = (-(-length // stride) for length in size)
    wide = jnp.promote_types(cotangent.dtype, jnp.float32)
    taps_y, taps_x = (_taps(length, stride, padding) for length in kernel.shape[:2])
    border = tuple(_border(*args, stride) for args in zip(size, cotangent.shape[1:3], (taps_y, taps_x), strict=True))
    padded = lax.pad(cotangent, jnp.zeros((), cotangent.dtype), ((0, 0, 0), *border, (0, 0, 0)))
    rows = []
    for row_taps in taps_y:
        cells = []
        for column_taps in taps_x:
            total = jnp.zeros((batch, cells_y, cells_x, channels), wide)
            for i, shift_y in row_taps:
                for j, shift_x in column_taps:
                    y, x = shift_y + border[0][0], shift_x + border[1][0]
                    part = padded[:, y : y + cells_y, x : x + cells_x]
                    total = total + part * kernel[i, j, 0]
            cells.append(total)
        rows.append(jnp.stack(cells, 3))
    whole = jnp.stack(rows, 2).reshape(batch, cells_y * stride, cells_x * stride, channels)
    return whole[:, : size[0], : size[1]]


def _taps(size: int, stride: int, padding: int) -> list[list[tuple[int, int]]]:
    """For each remainder of a position by the stride: its taps, and the output cell of the first such position."""
    taps: list[list[tuple[int, int]]] = [[] for _ in range(stride)]
    for remainder in range(stride):
        for tap in range(size):
            cell, rest = divmod(remainder + padding - tap, stride)
            if rest == 0:
                taps[remainder].append((tap, cell))
    return taps


def _border(length: int, out: int, taps: list[list[tuple[int, int]]], stride: int) -> tuple[int, int, int]:
    """Zeros before and after the cotangents, for cells that lie outside of the output."""
    shifts = [shift for of_remainder in taps for _, shift in of_remainder]
    return -min(0, *shifts), max(0, -(-length // stride) + max(shifts) - out), 0


def _gradient_of_kernel(
    cotangent: Array, x: Array, size: tuple[int, ...], stride: int, padding: int
) -> Float[Array, "kh kw 1 c"]:
    """Sums of products, row by row of the output: all taps read the same few rows from the processor's cache."""
    batch, out_y, out_x, channels = cotangent.shape
    wide = jnp.promote_types(x.dtype, jnp.float32)
    border = (padding, padding, 0)
    zero = after(jnp.zeros((), x.dtype), cotangent)  # or XLA would keep the padded array of the forward pass
    padded = lax.pad(x, zero, ((0, 0, 0), border, border, (0, 0, 0)))
    columns = (out_x - 1) * stride + 1

    def add(totals: list[Array], position: tuple[Array, Array]) -> tuple[list[Array], None]:
        image, y = position
        row = lax.dynamic_slice(cotangent, (image, y, 0, 0), (1, 1, out_x, channels))[0, 0].astype(wide)
        window = lax.dynamic_slice(padded, (image, y * stride, 0, 0), (1, size[0], padded.shape[2], channels))[0]
        parts = [
            lax.slice(window[i], (j, 0), (j + columns, channels), (stride, 1)) * row
            for i in range(size[0])
            for j in range(size[1])
        ]
        return [total + part for total, part in zip(totals, parts, strict=True)], None

    positions = (jnp.repeat(jnp.arange(batch), out_y), jnp.tile(jnp.arange(out_y), batch))
    totals, _ = lax.scan(add, [jnp.zeros((out_x, channels), wide)] * (size[0] * size[1]), positions)
    return jnp.sum(jnp.stack(totals), 1).reshape(*size, 1, channels)

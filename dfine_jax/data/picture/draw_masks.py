"""Masks on a picture: each pixel tinted once, for the object that lies on top there, and every object outlined."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, UInt8

from dfine_jax.data.picture.object_masks import ObjectMasks

_TINT = 0.45  # share of the colour; the picture keeps the rest


def paint_masks(
    pixels: UInt8[np.ndarray, "h w 3"],
    masks: ObjectMasks,
    colours: Sequence[tuple[int, int, int]],
    line_px: int,
    enlarged: int = 1,
) -> None:
    """Tint and outline objects in place, the largest first, so that smaller ones lie on top.

    An outline that another object covers shows through its tint.

    Args:
      pixels: the picture of the masks, ``enlarged`` so many times.
      colours: of each object.
      line_px: width of the outlines, which lie inside the masks.
    """
    runs = [masks.runs(i).enlarged(enlarged) for i in range(len(masks))]
    order = sorted(range(len(masks)), key=lambda i: -runs[i].area_px)
    top = np.zeros(pixels.shape[:2], np.min_scalar_type(len(masks)))  # the object that is seen at each pixel, from 1
    for number, i in enumerate(order, start=1):
        left, upper, mask = runs[i].painted()
        np.copyto(top[upper : upper + mask.shape[0], left : left + mask.shape[1]], number, where=mask)
    for number, i in enumerate(order, start=1):
        left, upper, mask = runs[i].painted()
        part = slice(upper, upper + mask.shape[0]), slice(left, left + mask.shape[1])
        inside = _shrunk(mask, line_px)
        tinted, outline = inside & (top[part] == number), mask & ~inside
        for channel, value in enumerate(colours[i]):
            tint = np.rint(np.arange(256) * (1 - _TINT) + value * _TINT).astype(np.uint8)
            shown = pixels[part][..., channel]
            np.copyto(shown, tint[shown], where=tinted)
            np.copyto(shown, np.uint8(value), where=outline)


def _shrunk(mask: Bool[np.ndarray, "h w"], width_px: int) -> Bool[np.ndarray, "h w"]:
    """The pixels that are farther than so many from the edge of a mask, along its rows and its columns."""
    return _shrunk_down(mask, width_px) & _shrunk_down(mask.T, width_px).T


def _shrunk_down(mask: Bool[np.ndarray, "h w"], width_px: int) -> Bool[np.ndarray, "h w"]:
    """By columns: whether all of the 2 * width + 1 pixels around each are set, from windows that double."""
    window = np.zeros((len(mask) + 2 * width_px, mask.shape[1]), bool)
    window[width_px : width_px + len(mask)] = mask
    have, need = 1, 2 * width_px + 1
    while have < need:
        step = min(have, need - have)
        window = window[:-step] & window[step:]
        have += step
    return window

"""Sides of an input that a network can take."""

from __future__ import annotations


def on_grid(side_px: int, grid_px: int) -> int:
    """The multiple of the grid that is next to a side, at least one."""
    return max(grid_px, round(side_px / grid_px) * grid_px)

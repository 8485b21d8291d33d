"""Pillow's resize along one axis as text of ONNX nodes, for pictures whose size is known when they come.

The weights are those of ``onnx/resize.py``. In the text ``_A`` is the axis, y or x: ``size_A`` of the picture,
``inner_A`` of what becomes of it, ``before_A`` of what is left free in front of that.
"""

from __future__ import annotations

_BLOCKS = (8, 4, 2, 1)

# For A in y, x: source pixels of each block from start_column_A [blocks, 1] on, span_A of them; weights_A float32, down
# [blocks, per block, span] and across [blocks, span, per block]; within_A float32 [target], 1 where the picture is.
# Places are whole numbers, in units of a source pixel / (2 inner_A), so that nothing is rounded before the weights.
_AXIS = """
  larger_A = SUPPORT
  reach_A = Mul (larger_A, two)
  unit_A = Mul (inner_A, two)
  number_A = Constant <value = int64[TARGET] {NUMBERS}> ()
  inside_A = Sub (number_A, before_A)
  not_before_A = GreaterOrEqual (inside_A, zero)
  not_behind_A = Less (inside_A, inner_A)
  is_within_A = And (not_before_A, not_behind_A)
  within_A = Cast <to = 1> (is_within_A)
  inside_twice_A = Mul (inside_A, two)
  middle_A = Add (inside_twice_A, one)
  centre_A = Mul (middle_A, size_A)
  centre_half_A = Add (centre_A, inner_A)
  low_A = Sub (centre_half_A, reach_A)
  high_A = Add (centre_half_A, reach_A)
  low_pixel_A = Div (low_A, unit_A)
  high_pixel_A = Div (high_A, unit_A)
  first_A = Max (low_pixel_A, zero)
  end_A = Min (high_pixel_A, size_A)
  per_block_A = Constant <value = int64[1] {PER_BLOCK}> ()
  stretch_A = Mul (per_block_A, size_A)
  wide_A = Add (stretch_A, reach_A)
  wide_pixels_A = Div (wide_A, inner_A)
  wide_enough_A = Add (wide_pixels_A, few)
  span_A = Min (wide_enough_A, size_A)
  last_start_A = Sub (size_A, span_A)
  block_starts_A = Constant <value = int64[BLOCKS] {STARTS}> ()
  start_A = Gather <axis = 0> (first_A, block_starts_A)
  bounded_start_A = Min (start_A, last_start_A)
  rows_A = Constant <value = int64[2] {BLOCKS, 1}> ()
  start_column_A = Reshape (bounded_start_A, rows_A)
  scalar_A = Constant <value = int64 {0}> ()
  step_A = Constant <value = int64 {1}> ()
  span_scalar_A = Squeeze (span_A)
  range_A = Range (scalar_A, span_scalar_A, step_A)
  pixel_A = Add (start_column_A, range_A)
  pixel_axis_A = Constant <value = int64[1] {PIXEL_AXIS}> ()
  pixels_A = Unsqueeze (pixel_A, pixel_axis_A)
  places_A = Mul (pixels_A, unit_A)
  table_A = Constant <value = int64[3] {TABLE}> ()
  within_rows_A = Reshape (within_A, table_A)
TRIANGLE
  distance_A = Abs (away_A)
  distance_real_A = Cast <to = 1> (distance_A)
  support_A = Cast <to = 1> (reach_A)
  relative_A = Div (distance_real_A, support_A)
  slope_A = Sub (unity, relative_A)
  positive_A = Max (slope_A, nothing)
WEIGHTS
  weights_A = Mul (weight_A, within_rows_A)
"""

# Of Pillow: a triangle as wide as the reduction,
_ANTIALIASED = """
  half_rows_A = Reshape (centre_half_A, table_A)
  back_places_A = Sub (places_A, half_rows_A)
  away_A = Add (back_places_A, unit_A)
"""
# normalised, in fixed point.
_NORMALISED = """
  first_rows_A = Reshape (first_A, table_A)
  end_rows_A = Reshape (end_A, table_A)
  from_first_A = GreaterOrEqual (pixels_A, first_rows_A)
  to_end_A = Less (pixels_A, end_rows_A)
  reached_A = And (from_first_A, to_end_A)
  reached_real_A = Cast <to = 1> (reached_A)
  triangle_A = Mul (positive_A, reached_real_A)
  sum_axis_A = Constant <value = int64[1] {SUM_AXIS}> ()
  sum_A = ReduceSum (triangle_A, sum_axis_A)
  some_A = Max (sum_A, tiny)
  share_A = Div (triangle_A, some_A)
  large_A = Mul (share_A, fixed)
  rounded_A = Round (large_A)
  weight_A = Div (rounded_A, fixed)
"""

# Of two neighbours, whatever the reduction.
_PLAIN = """
  place_A = Sub (centre_A, inner_A)
  not_negative_A = Max (place_A, zero)
  last_pixel_A = Sub (size_A, one)
  last_place_A = Mul (last_pixel_A, unit_A)
  bounded_A = Min (not_negative_A, last_place_A)
  bounded_rows_A = Reshape (bounded_A, table_A)
  away_A = Sub (places_A, bounded_rows_A)
"""

# Block B of axis A, of the source pixels that it needs.
_BLOCK = """
  number_A_B = Constant <value = int64 {B}> ()
  begin_A_B = Gather <axis = 0> (start_column_A, number_A_B)
  stop_A_B = Add (begin_A_B, span_A)
  source_A_B = Slice (SOURCE, begin_A_B, stop_A_B, axis_A)
  block_weights_A_B = Gather <axis = 0> (weights_A, number_A_B)
"""
_ACROSS = """
  levels_A_B = Cast <to = 1> (source_A_B)
  done_A_B = MatMul (levels_A_B, block_weights_A_B)
"""
_DOWN = """
  done_A_B = MatMul (block_weights_A_B, source_A_B)
"""

_ROUNDED = """
  half_A = Add (joined_A, half_level)
  bytes_A = Floor (half_A)
"""


def _blocks(target: int) -> int:
    return next(count for count in _BLOCKS if target % count == 0)


def resampled(axis: str, target: int, source: str, rounded: bool) -> str:
    """Nodes from ``source`` to ``bytes_A`` along one axis, block by block."""
    blocks = _blocks(target)
    one = _BLOCK.replace("SOURCE", source) + (_ACROSS if axis == "x" else _DOWN)
    text = "".join(one.replace("B}", f"{block}}}").replace("_B", f"_{block}") for block in range(blocks))
    parts = ", ".join(f"done_A_{block}" for block in range(blocks))
    text += f"  joined_A = Concat <axis = 1> ({parts})\n"
    text += _ROUNDED if rounded else "  bytes_A = Identity (joined_A)\n"
    return text.replace("_A", f"_{axis}")


def axis_weights(axis: str, target: int, antialiased: bool) -> str:
    """Nodes of the weights of one axis and of where its blocks begin."""
    blocks = _blocks(target)
    text = _AXIS.replace("TRIANGLE", _ANTIALIASED if antialiased else _PLAIN)
    text = text.replace("WEIGHTS", _NORMALISED if antialiased else "  weight_A = Identity (positive_A)")
    support = "Max (size_A, inner_A)" if antialiased else "Identity (inner_A)"
    values = {
        "SUPPORT": support,
        "NUMBERS": ", ".join(str(number) for number in range(target)),
        "PER_BLOCK": str(target // blocks),
        "TARGET": str(target),
        "PIXEL_AXIS": "1" if axis == "y" else "2",
        "SUM_AXIS": "2" if axis == "y" else "1",
        "TABLE": f"{blocks}, {target // blocks}, 1" if axis == "y" else f"{blocks}, 1, {target // blocks}",
        "STARTS": ", ".join(str(block * (target // blocks)) for block in range(blocks)),
        "BLOCKS": str(blocks),
    }
    for name, value in values.items():
        text = text.replace(name, value)
    return text.replace("_A", f"_{axis}")

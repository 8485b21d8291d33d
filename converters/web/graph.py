"""A graph for the browser: it takes the bytes of a picture of any size and answers in pixels of that picture.

``images`` is uint8 [1, height, width, 4], RGBA as browsers hold it; alpha is not looked at. What ``Preprocess`` does on
the host is done in front of the network by products with Pillow's own fixed-point weights, as in ``onnx/resize.py``,
but the weights are computed from the picture's size when it is known. Both directions are cut into blocks of target
pixels, each of which sees the source pixels it needs: a product with the whole matrix would be many times the work. The
weights are made of whole numbers and float32: ONNX Runtime Web's build for WebGPU has no float64, on the processor
neither.

Outputs are those of a complete graph: ``labels`` int32 [1, n], ``boxes`` float32 [1, n, 4] in pixels, ``scores``
float32 [1, n] and ``masks``; and ``view_px`` float32 [4] (left, top, width, height), what the network's input shows of
the picture.
"""

from __future__ import annotations

import onnx
import onnx.parser
from onnx import compose

from dfine_jax.converters.onnx.export import IR_VERSION
from dfine_jax.data.picture.images import Preprocess
from dfine_jax.serving.artefact import SIZES_INPUT

IMAGES, VIEW = "images", "view_px"
_BLOCKS = (8, 4, 2, 1)
_FIXED_POINT = float(1 << 22)  # one, in Pillow's weights for bytes

_SIZE = """
  shape = Shape <start = 1, end = 3> (images)
  size_y, size_x = Split <axis = 0, num_outputs = 2> (shape)
  zero = Constant <value = int64[1] {0}> ()
  one = Constant <value = int64[1] {1}> ()
  two = Constant <value = int64[1] {2}> ()
  few = Constant <value = int64[1] {3}> ()
  nothing = Constant <value = float[1] {0.0}> ()
  unity = Constant <value = float[1] {1.0}> ()
  tiny = Constant <value = float[1] {0.000001}> ()
  fixed = Constant <value = float[1] {FIXED}> ()
  target_y = Constant <value = int64[1] {HEIGHT}> ()
  target_x = Constant <value = int64[1] {WIDTH}> ()
"""

_STRETCHED = """
  inner_y = Identity (target_y)
  inner_x = Identity (target_x)
  before_y = Identity (zero)
  before_x = Identity (zero)
"""

# inner_px of data/picture/resampling.py, the scale as a fraction.
_LETTERBOXED = """
  across_y = Mul (target_x, size_y)
  down_x = Mul (target_y, size_x)
  is_wide = LessOrEqual (across_y, down_x)
  part = Where (is_wide, target_x, target_y)
  of = Where (is_wide, size_x, size_y)
SMALL
"""
_KEPT = """
  fits_y = LessOrEqual (size_y, target_y)
  fits_x = LessOrEqual (size_x, target_x)
  fits = And (fits_y, fits_x)
  numerator = Where (fits, one, part)
  denominator = Where (fits, one, of)
"""
_ENLARGED = """
  numerator = Identity (part)
  denominator = Identity (of)
"""
# Rounded to the nearest, halves to even numbers, as Python does it.
_INNER = """
  product_A = Mul (size_A, numerator)
  whole_A = Div (product_A, denominator)
  back_A = Mul (whole_A, denominator)
  remainder_A = Sub (product_A, back_A)
  twice_remainder_A = Mul (remainder_A, two)
  odd_A = Mod (whole_A, two)
  judged_A = Add (twice_remainder_A, odd_A)
  goes_up_A = Greater (judged_A, denominator)
  up_A = Cast <to = 7> (goes_up_A)
  rounded_inner_A = Add (whole_A, up_A)
  inner_A = Max (rounded_inner_A, one)
  rest_A = Sub (target_A, inner_A)
  before_A = Div (rest_A, two)
"""

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

# Bytes stay bytes until a block of them is multiplied. As rows of all colours, [3 height, width], because ONNX Runtime
# moves a Transpose that comes close to a MatMul through the Cast between them and then loads no such file for WebGPU.
_PLANES = """
  planes = Transpose <perm = [0, 3, 1, 2]> (images)
  first_channel = Constant <value = int64[1] {0}> ()
  three = Constant <value = int64[1] {3}> ()
  channel_axis = Constant <value = int64[1] {1}> ()
  colours = Slice (planes, first_channel, three, channel_axis)
  all_lines = Constant <value = int64[1] {-1}> ()
  lines_shape = Concat <axis = 0> (all_lines, size_x)
  lines = Reshape (colours, lines_shape)
  half_level = Constant <value = float {0.5}> ()
  axis_y = Constant <value = int64[1] {1}> ()
  axis_x = Constant <value = int64[1] {1}> ()
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

# Across first, then down, as Pillow does it.
_STACKED = """
  stacked_shape = Constant <value = int64[3] {3, -1, WIDTH}> ()
  stacked = Reshape (bytes_x, stacked_shape)
"""

_COLOURED = """
  coloured_shape = Constant <value = int64[4] {1, 3, HEIGHT, WIDTH}> ()
  coloured = Reshape (bytes_y, coloured_shape)
"""

_BORDERED = """
  line_axis = Constant <value = int64[1] {1}> ()
  within_lines = Unsqueeze (within_y, line_axis)
  within_picture = Mul (within_lines, within_x)
  beside = Sub (unity, within_picture)
  border = Constant <value = float[1] {BORDER}> ()
  border_levels = Mul (beside, border)
  bordered = Add (coloured, border_levels)
"""

_VIEWED = """
  size_real_A = Cast <to = 1> (size_A)
  inner_real_A = Cast <to = 1> (inner_A)
  view_size_whole_A = Mul (size_A, target_A)
  view_size_real_A = Cast <to = 1> (view_size_whole_A)
  view_size_A = Div (view_size_real_A, inner_real_A)
  hidden_whole_A = Mul (size_A, before_A)
  hidden_real_A = Cast <to = 1> (hidden_whole_A)
  hidden_A = Div (hidden_real_A, inner_real_A)
  view_begin_A = Neg (hidden_A)
"""
_VIEW = """
  view_px = Concat <axis = 0> (view_begin_x, view_begin_y, view_size_x, view_size_y)
  sizes_float = Concat <axis = 0> (view_size_x, view_size_y)
  sizes_shape = Constant <value = int64[2] {1, 2}> ()
  sizes = Reshape (sizes_float, sizes_shape)
  unit = Constant <value = float {SCALE}> ()
  pixels = Mul (FILLED, unit)
"""

_MOVED = """
  view_begin = Constant <value = int64[1] {0}> ()
  view_end = Constant <value = int64[1] {2}> ()
  corner = Slice (view_px, view_begin, view_end)
  corners = Concat <axis = 0> (corner, corner)
  boxes = Add (boxes_of_view, corners)
"""


def with_pictures(network: onnx.ModelProto, preprocess: Preprocess) -> onnx.ModelProto:
    """A complete graph of float32 [1, 3, h, w] in [0, 1] and sizes as one of pictures of any size.

    Args:
      network: as ``export_onnx(graph="complete", batch=1)`` makes it; not changed.
      preprocess: of the model, with the size of the network's input.
    """
    front = onnx.parser.parse_graph(
        f"picture (uint8[1, height, width, 4] {IMAGES}) => "
        f"(float[1, 3, {preprocess.height_px}, {preprocess.width_px}] pixels, float[1, 2] sizes, float[4] {VIEW}) "
        f"{{{_front(preprocess)}}}"
    )
    front = compose.add_prefix_graph(front, "picture/", rename_inputs=False, rename_outputs=False)
    inside = onnx.GraphProto()
    inside.CopyFrom(network.graph)
    renamed = {IMAGES: "pixels", SIZES_INPUT: "sizes"}
    tail: list[onnx.NodeProto] = []
    if preprocess.resize == "letterbox":
        renamed["boxes"] = "boxes_of_view"
        text = f"moved (float[4] {VIEW}, float[1, n, 4] boxes_of_view) => (float[1, n, 4] boxes) {{{_MOVED}}}"
        moved = onnx.parser.parse_graph(text)
        tail = list(compose.add_prefix_graph(moved, "view/", rename_inputs=False, rename_outputs=False).node)
    for node in inside.node:
        for names in (node.input, node.output):
            names[:] = [renamed.get(name, name) for name in names]
    graph = onnx.helper.make_graph(
        [*front.node, *inside.node, *tail],
        "detector",
        list(front.input),
        [*inside.output, front.output[2]],
        list(inside.initializer),
    )
    model = onnx.helper.make_model(graph, opset_imports=list(network.opset_import), ir_version=IR_VERSION)
    model.producer_name, model.producer_version = network.producer_name, network.producer_version
    onnx.checker.check_model(model, full_check=True)
    return model


def _front(preprocess: Preprocess) -> str:
    """Nodes from a picture's bytes to the network's input, as text of ONNX."""
    height, width = preprocess.height_px, preprocess.width_px
    letterbox, antialiased = preprocess.resize == "letterbox", preprocess.interpolation == "bilinear_antialias"
    bordered = letterbox and preprocess.border > 0
    text = _SIZE
    if letterbox:
        text += _LETTERBOXED.replace("SMALL", _ENLARGED if preprocess.enlarge else _KEPT) + _both(_INNER)
    else:
        text += _STRETCHED
    for axis, target in (("y", height), ("x", width)):
        text += _axis(axis, target, antialiased)
    text += _PLANES + _resampled("x", width, "lines", antialiased)
    text += _STACKED + _resampled("y", height, "stacked", True) + _COLOURED
    text += _BORDERED.replace("BORDER", f"{preprocess.border:.1f}") if bordered else ""
    text += _both(_VIEWED)
    text += _VIEW.replace("FILLED", "bordered" if bordered else "coloured").replace("SCALE", repr(preprocess.scale))
    text = text.replace("FIXED", f"{_FIXED_POINT:.1f}")
    return text.replace("HEIGHT", str(height)).replace("WIDTH", str(width))


def _both(text: str) -> str:
    return text.replace("_A", "_y") + text.replace("_A", "_x")


def _blocks(target: int) -> int:
    return next(count for count in _BLOCKS if target % count == 0)


def _resampled(axis: str, target: int, source: str, rounded: bool) -> str:
    """Along one axis, block by block."""
    blocks = _blocks(target)
    one = _BLOCK.replace("SOURCE", source) + (_ACROSS if axis == "x" else _DOWN)
    text = "".join(one.replace("B}", f"{block}}}").replace("_B", f"_{block}") for block in range(blocks))
    parts = ", ".join(f"done_A_{block}" for block in range(blocks))
    text += f"  joined_A = Concat <axis = 1> ({parts})\n"
    text += _ROUNDED if rounded else "  bytes_A = Identity (joined_A)\n"
    return text.replace("_A", f"_{axis}")


def _axis(axis: str, target: int, antialiased: bool) -> str:
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

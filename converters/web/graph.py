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
from dfine_jax.converters.web.resampling import axis_weights, resampled
from dfine_jax.data.picture.images import Preprocess
from dfine_jax.serving.artefact import SIZES_INPUT

IMAGES, VIEW = "images", "view_px"
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
        text += axis_weights(axis, target, antialiased)
    text += _PLANES + resampled("x", width, "lines", antialiased)
    text += _STACKED + resampled("y", height, "stacked", True) + _COLOURED
    text += _BORDERED.replace("BORDER", f"{preprocess.border:.1f}") if bordered else ""
    text += _both(_VIEWED)
    text += _VIEW.replace("FILLED", "bordered" if bordered else "coloured").replace("SCALE", repr(preprocess.scale))
    text = text.replace("FIXED", f"{_FIXED_POINT:.1f}")
    return text.replace("HEIGHT", str(height)).replace("WIDTH", str(width))


def _both(text: str) -> str:
    return text.replace("_A", "_y") + text.replace("_A", "_x")

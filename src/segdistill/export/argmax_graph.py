"""ONNX operators that compute the class of every pixel from logits on a coarser grid, without full-size logits.

A bilinear value is a weighted mean of four cells. Where one class has the largest logit in all four, it has the largest
mean at every pixel between them. So the graph takes the argmax at the cells, and interpolates logits only between cells
that disagree: a sixth of a street frame. It never holds more in memory than plain upsampling does.

Shapes: N frames, C classes, h/w cells, H/W pixels. A point is a cell, after the graph repeats the border once on each
side and refines the grid to BLOCK pixels. A block is the BLOCK x BLOCK pixels between four points. A block is mixed
where its points disagree; M blocks are mixed.
"""

from __future__ import annotations

import numpy as np
import onnx
from onnx import numpy_helper, parser

BLOCK = 4  # divides every native stride

# The points are the cells, or (_REFINED) also places on the lines between them, where bilinear values are exact too.
_POINTS = "points = Identity (padded)"
_REFINED = """
      refinement = Constant <value_ints = [{factor}]> ()
      padded_n = Shape <end = 1> (padded)
      padded_hw = Shape <start = 1, end = 3> (padded)
      padded_c = Shape <start = 3> (padded)
      intervals = Sub (padded_hw, one)
      fine_intervals = Mul (intervals, refinement)
      point_shape_hw = Add (fine_intervals, one)
      point_shape = Concat <axis = 0> (padded_n, point_shape_hw, padded_c)
      points = Resize <mode = "linear", coordinate_transformation_mode = "align_corners"> (padded, , , point_shape)"""

# Else the size of the frame is no multiple of the stride: cells and pixels are not aligned, so upsample all logits.
_GRAPH = """
classes_of (float[N, {classes}, h, w] logits, uint8[N, H, W, 3] image) => (uint8[N, H, W] classes) {{
  size_px = Shape <start = 1, end = 3> (image)
  cells_hw = Shape <start = 2> (logits)
  stride = Constant <value_ints = [{stride}]> ()
  covered_px = Mul (cells_hw, stride)
  misfit_px = Sub (covered_px, size_px)
  misfits_px = Abs (misfit_px)
  all_misfits_px = ReduceSum <keepdims = 0> (misfits_px)
  none = Constant <value_int = 0> ()
  fits = Equal (all_misfits_px, none)
  logits_nhwc = Transpose <perm = [0, 2, 3, 1]> (logits)
  classes = If (fits) <
    then_branch = from_blocks () => (uint8[N, H, W] classes_from_blocks) {{
      zero = Constant <value_ints = [0]> ()
      one = Constant <value_ints = [1]> ()
      minus_one = Constant <value_ints = [-1]> ()
      border = Constant <value_ints = [0, 1, 1, 0, 0, 1, 1, 0]> ()
      padded = Pad <mode = "edge"> (logits_nhwc, border)
      {points}
      at_points = ArgMax <axis = 3, keepdims = 0> (points)

      hw = Constant <value_ints = [1, 2]> ()
      start = Constant <value_ints = [0, 0]> ()
      start_right = Constant <value_ints = [0, 1]> ()
      start_below = Constant <value_ints = [1, 0]> ()
      start_both = Constant <value_ints = [1, 1]> ()
      end = Constant <value_ints = [2147483647, 2147483647]> ()
      end_right = Constant <value_ints = [2147483647, -1]> ()
      end_below = Constant <value_ints = [-1, 2147483647]> ()
      end_both = Constant <value_ints = [-1, -1]> ()
      corner = Slice (at_points, start, end_both, hw)
      right = Slice (at_points, start_right, end_below, hw)
      below = Slice (at_points, start_below, end_right, hw)
      both = Slice (at_points, start_both, end, hw)
      agrees_right = Equal (corner, right)
      agrees_below = Equal (corner, below)
      agrees_both = Equal (corner, both)
      agrees_aside = And (agrees_right, agrees_below)
      agrees = And (agrees_aside, agrees_both)
      mixed = Not (agrees)
      mixed_of_all = Reshape (mixed, minus_one)
      block_1M = NonZero (mixed_of_all)
      block = Squeeze (block_1M, zero)

      frames = Shape <end = 1> (corner)
      blocks_high = Shape <start = 1, end = 2> (corner)
      blocks_wide = Shape <start = 2> (corner)
      points_wide = Add (blocks_wide, one)
      block_row = Div (block, blocks_wide)
      first_of_row = Mul (block_row, blocks_wide)
      block_column = Sub (block, first_of_row)
      frame = Div (block_row, blocks_high)
      point_row = Add (block_row, frame)
      first_point_of_row = Mul (point_row, points_wide)
      point = Add (first_point_of_row, block_column)
      point_right = Add (point, one)
      point_below = Add (point, points_wide)
      point_both = Add (point_below, one)
      corners = Concat <axis = 0> (point, point_right, point_below, point_both)

      rows_of_logits = Constant <value_ints = [-1, {classes}]> ()
      rows_of_corners = Constant <value_ints = [4, -1]> ()
      rows_of_pixels = Constant <value_ints = [{pixels}, -1, {classes}]> ()
      point_logits = Reshape (points, rows_of_logits)
      corner_logits = Gather <axis = 0> (point_logits, corners)
      corner_logits_4x = Reshape (corner_logits, rows_of_corners)
      pixel_logits_x = MatMul (bilinear_weights, corner_logits_4x)
      pixel_logits = Reshape (pixel_logits_x, rows_of_pixels)
      pixel_largest = ArgMax <axis = 2, keepdims = 0> (pixel_logits)
      pixel_classes = Cast <to = 2> (pixel_largest)

      side = Constant <value_ints = [{block}]> ()
      corner_of_all = Reshape (corner, minus_one)
      uniform = Gather <axis = 0> (uniform_blocks, corner_of_all)
      block_M1 = Unsqueeze (block, one)
      block_classes = Transpose <perm = [1, 0]> (pixel_classes)
      filled = ScatterND (uniform, block_M1, block_classes)
      split_shape = Concat <axis = 0> (frames, blocks_high, blocks_wide, side, side)
      split = Reshape (filled, split_shape)
      lines = Transpose <perm = [0, 1, 3, 2, 4]> (split)
      pixels_high = Mul (blocks_high, side)
      pixels_wide = Mul (blocks_wide, side)
      padded_shape = Concat <axis = 0> (frames, pixels_high, pixels_wide)
      padded_classes = Reshape (lines, padded_shape)
      margin = Constant <value_ints = [{margin}, {margin}]> ()
      margin_end = Add (margin, size_px)
      classes_from_blocks = Slice (padded_classes, margin, margin_end, hw)
    }},
    else_branch = from_pixels () => (uint8[N, H, W] classes_from_pixels) {{
      logits_nc = Shape <end = 2> (logits)
      full_shape = Concat <axis = 0> (logits_nc, size_px)
      full = Resize <mode = "linear", coordinate_transformation_mode = "pytorch_half_pixel"> (logits, , , full_shape)
      full_largest = ArgMax <axis = 1, keepdims = 0> (full)
      classes_from_pixels = Cast <to = 2> (full_largest)
    }}
  >
}}
"""


def add_classes(model: onnx.ModelProto, stride: int) -> None:
    """Add `classes`, uint8 (N, H, W), as the first output of a model from `image` to `logits`, in place.

    Args:
        model: has logits float32 (N, C, h, w), C known.
        stride: pixels per cell, in frames whose size is a multiple of it; a multiple of BLOCK.
    """
    (logits,) = model.graph.output
    classes, factor = logits.type.tensor_type.shape.dim[1].dim_value, stride // BLOCK
    text = _GRAPH.format(
        classes=classes,
        stride=stride,
        points=_POINTS if factor == 1 else _REFINED.format(factor=factor),
        block=BLOCK,
        pixels=BLOCK * BLOCK,
        margin=stride // 2,
    )
    graph = parser.parse_graph(text)
    # The weights of a block's four points at each of its pixels, float32 (BLOCK * BLOCK, 4), row by row.
    along = (np.arange(BLOCK) + 0.5) / BLOCK
    axis = np.stack([1 - along, along], axis=1)
    bilinear_weights = np.einsum("ya,xb->yxab", axis, axis).reshape(BLOCK * BLOCK, 4).astype(np.float32)
    uniform_blocks = np.repeat(np.arange(classes, dtype=np.uint8)[:, None], BLOCK * BLOCK, axis=1)
    model.graph.initializer.append(numpy_helper.from_array(bilinear_weights, "bilinear_weights"))
    model.graph.initializer.append(numpy_helper.from_array(uniform_blocks, "uniform_blocks"))
    model.graph.node.extend(graph.node)
    model.graph.output.remove(logits)
    model.graph.output.extend([graph.output[0], logits])

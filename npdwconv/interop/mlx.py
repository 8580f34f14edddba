"""Interop room: MLX' weights and options in ours; does not import it."""

from __future__ import annotations

from typing import Any

from npdwconv.errors import OptionError
from npdwconv.interop.conventions import MLX
from npdwconv.interop.spelling import (
    Extents,
    Pairs,
    ends,
    extents,
    integers,
    is_sequence,
    needs_one,
    one_rank,
    torch_transpose_options,
    window,
)
from npdwconv.options import integer

__all__ = [
    "depthwise_weight",
    "general_options",
    "options",
    "pointwise_weight",
    "to_depthwise_weight",
    "to_pointwise_weight",
    "to_transposed_weight",
    "transpose_options",
    "transposed_weight",
]

depthwise_weight = MLX.depthwise_weight
to_depthwise_weight = MLX.to_depthwise_weight
transposed_weight = MLX.transposed_weight
to_transposed_weight = MLX.to_transposed_weight
pointwise_weight = MLX.pointwise_weight
to_pointwise_weight = MLX.to_pointwise_weight

LAYOUT = "channels_last"


def options(*, stride: Any = 1, padding: Any = 0, dilation: Any = 1, groups: int = 1) -> dict[str, Any]:
    """Our options for those of ``mlx.nn.Conv{n}d`` and ``mlx.core.conv{n}d``.

    Args:
        stride, dilation: an int, or one per axis.
        padding: an int, or one per axis, of zeros on both sides; MLX has no names.
        groups: said by the weight's shape.

    Raises:
        OptionError: a value that MLX does not take.

    >>> options(stride=2, padding=(1, 0))
    {'stride': 2, 'padding': (1, 0), 'dilation': 1, 'layout': 'channels_last'}
    """
    integer("groups", groups, least=1)
    steps, pads, spread = extents("stride", stride), extents("padding", padding, least=0), extents("dilation", dilation)
    one_rank(stride=steps, padding=pads, dilation=spread)
    return window(steps, pads, spread, layout=LAYOUT)


def general_options(
    *,
    stride: Any = 1,
    padding: Any = 0,
    kernel_dilation: Any = 1,
    input_dilation: Any = 1,
    groups: int = 1,
    flip: bool = False,
) -> dict[str, Any]:
    """Our options for those of ``mlx.core.conv_general``.

    Args:
        padding: as in `options`, or the low ends of all axes and the high ends: two sequences.
        stride, kernel_dilation, groups: as in `options`.
        input_dilation: 1.
        flip: False; a true convolution is ours after the weight's taps are reversed.

    Raises:
        OptionError: a value that MLX does not take, or one that has no counterpart here.

    >>> general_options(padding=([0, 1], [2, 3]))["padding"]
    ((0, 2), (1, 3))
    """
    integer("groups", groups, least=1)
    steps, spread = extents("stride", stride), extents("kernel_dilation", kernel_dilation)
    dilated = extents("input_dilation", input_dilation)
    needs_one("input_dilation", dilated, "a convolution of a dilated image is a transposed one")
    if flip is not False:
        raise OptionError(f"flip is {flip!r}; needed False: reverse the weight's taps instead")
    if not is_sequence(padding) or not any(is_sequence(side) for side in padding):
        pads: Extents | Pairs = extents("padding", padding, least=0)
    elif len(padding) != 2:
        raise OptionError(f"padding is {padding!r}; needed the low ends of all axes and the high ends")
    else:
        low, high = (integers(f"padding[{side}]", widths, least=0) for side, widths in enumerate(padding))
        pads = ends("padding", low, high)
    one_rank(stride=steps, padding=pads, kernel_dilation=spread, input_dilation=dilated)
    return window(steps, pads, spread, layout=LAYOUT)


def transpose_options(
    *, stride: Any = 1, padding: Any = 0, dilation: Any = 1, output_padding: Any = 0, groups: int = 1
) -> dict[str, Any]:
    """Our options for those of ``mlx.core.conv_transpose{n}d``, which mean what PyTorch's do.

    >>> transpose_options(stride=2, padding=1)
    {'stride': 2, 'padding': 1, 'dilation': 1, 'output_padding': 0, 'layout': 'channels_last'}
    """
    integer("groups", groups, least=1)
    same = torch_transpose_options(stride=stride, padding=padding, output_padding=output_padding, dilation=dilation)
    return same | {"layout": LAYOUT}

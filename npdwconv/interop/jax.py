"""Interop room: JAX's and Flax' weights and options in ours; imports neither."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from npdwconv.errors import OptionError
from npdwconv.interop.conventions import JAX, Convention
from npdwconv.interop.spelling import (
    Pairs,
    extents,
    integers,
    integers_or,
    is_sequence,
    needs_one,
    one_rank,
    pairs,
    per_axis,
    window,
)
from npdwconv.layouts import LETTERS
from npdwconv.options import integer, one_of

__all__ = [
    "depthwise_weight",
    "flax_options",
    "kernel",
    "options",
    "pointwise_weight",
    "to_depthwise_weight",
    "to_pointwise_weight",
    "to_transposed_weight",
    "transpose_options",
    "transposed_weight",
]

# for kernels (*kernel, I, O): Flax', and lax' with "HWIO"; `kernel` has those of other orders
depthwise_weight = JAX.depthwise_weight
to_depthwise_weight = JAX.to_depthwise_weight
transposed_weight = JAX.transposed_weight
to_transposed_weight = JAX.to_transposed_weight
pointwise_weight = JAX.pointwise_weight
to_pointwise_weight = JAX.to_pointwise_weight

PADDING = {"VALID": "valid", "SAME": "same", "SAME_LOWER": "same_lower"}
# what Flax does itself, by copying the border: the mode
FLAX_MODES = {"CIRCULAR": "circular", "REFLECT": "reflect"}
TRANSPOSED = "a convolution of a dilated image is a transposed one, see transpose_options"


def kernel(spec: str | Sequence[int]) -> Convention:
    """The convention of a kernel whose axes ``dimension_numbers`` names, ``"OIHW"``, ``"HWIO"``, ``"WIO"`` or such.

    ``spec`` may also be the ``rhs_spec`` of a ``jax.lax.ConvDimensionNumbers``.

    >>> import numpy as np
    >>> kernel("OIHW").depthwise_weight(np.ones((6, 1, 3, 5))).shape
    (6, 1, 3, 5)
    >>> kernel((3, 2, 0, 1)).depthwise
    '* 1 CM'
    """
    axes = _letters("spec", spec, "OI")
    spatial = axes.replace("O", "").replace("I", "")
    if spatial not in axes:
        raise OptionError(f"spec is {axes!r}; needed the spatial axes in a row")
    taps, point = (
        [names.get(axis, axis) for axis in axes.replace(spatial, "*")]
        for names in ({"O": "CM", "I": "1"}, {"O": "K", "I": "C", "*": "1*"})
    )
    depthwise = " ".join(taps)
    return replace(JAX, depthwise=depthwise, transposed=depthwise, pointwise=" ".join(point), ranks=(len(spatial),))


def options(
    *,
    window_strides: Sequence[int],
    padding: str | Sequence[tuple[int, int]],
    lhs_dilation: Sequence[int] | None = None,
    rhs_dilation: Sequence[int] | None = None,
    dimension_numbers: Any = None,
    feature_group_count: int = 1,
    batch_group_count: int = 1,
) -> dict[str, Any]:
    """Our options for those of ``jax.lax.conv_general_dilated``.

    Args:
        window_strides, rhs_dilation: one int per axis; None: 1.
        padding: ``"VALID"``, ``"SAME"``, ``"SAME_LOWER"``, or a pair (low, high) per axis.
        dimension_numbers: the axes of image, kernel and result by letters, or a ``jax.lax.ConvDimensionNumbers``;
            None: ``("NCHW", "OIHW", "NCHW")``.
        lhs_dilation: 1 on every axis, else see `transpose_options`.
        feature_group_count: said by the weight's shape.
        batch_group_count: 1.

    Raises:
        OptionError: a value that JAX does not take, or one that has no counterpart here.

    >>> options(window_strides=(2, 2), padding="SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))
    {'stride': (2, 2), 'padding': 'same', 'dilation': 1, 'layout': 'channels_last'}
    """
    dilated = integers_or("lhs_dilation", lhs_dilation, 1)
    needs_one("lhs_dilation", dilated, TRANSPOSED)
    batches = integer("batch_group_count", batch_group_count, least=1)
    needs_one("batch_group_count", batches, "the operators have no groups of images")
    integer("feature_group_count", feature_group_count, least=1)
    pads: Any = (
        PADDING[one_of("padding", padding.upper(), PADDING)] if isinstance(padding, str) else pairs("padding", padding)
    )
    stride, dilation = integers("window_strides", window_strides), integers_or("rhs_dilation", rhs_dilation, 1)
    layout, axes = _layout(dimension_numbers)
    one_rank(window_strides=stride, padding=pads, lhs_dilation=dilated, rhs_dilation=dilation, dimension_numbers=axes)
    return window(stride, pads, dilation, layout=layout)


def transpose_options(
    *,
    lhs_dilation: Sequence[int],
    padding: Sequence[tuple[int, int]],
    kernel_shape: Sequence[int],
    rhs_dilation: Sequence[int] | None = None,
    dimension_numbers: Any = None,
) -> dict[str, Any]:
    """Our transposed convolution's options for a ``conv_general_dilated`` with ``lhs_dilation`` and strides of 1.

    It pads the dilated image: by span − 1 on both sides for the whole result, where span = (k − 1)·dilation + 1. So our
    padding, which takes away from that, is span − 1 − padding, and what is beyond at the high end is output_padding.
    The weight is `transposed_weight`'s. ``lax.conv_transpose`` has no groups.

    Args:
        lhs_dilation: one int per axis, our stride.
        padding: a pair (low, high) per axis; low at most span − 1.
        kernel_shape: the kernel's spatial extents.
        rhs_dilation, dimension_numbers: as in `options`.

    Raises:
        OptionError: a value that JAX does not take, or one that has no counterpart here.

    >>> transpose_options(lhs_dilation=(2,), padding=[(1, 2)], kernel_shape=(3,))
    {'stride': (2,), 'padding': ((1, 0),), 'dilation': 1, 'layout': 'channels_first', 'output_padding': (0,)}
    """
    stride, dilation = integers("lhs_dilation", lhs_dilation), integers_or("rhs_dilation", rhs_dilation, 1)
    given, kernel_extents = pairs("padding", padding), integers("kernel_shape", kernel_shape)
    layout, axes = _layout(dimension_numbers)
    fixed = {"lhs_dilation": stride, "padding": given, "kernel_shape": kernel_extents}
    one_rank(**fixed, rhs_dilation=dilation, dimension_numbers=axes)
    spread = per_axis(dilation, len(given))
    whole = [(k - 1) * d for k, d in zip(kernel_extents, spread, strict=True)]
    for axis, ((low, _), most) in enumerate(zip(given, whole, strict=True)):
        if low > most:
            raise OptionError(
                f"padding[{axis}] is {given[axis]}; needed at most {most} at the low end, (k − 1)·dilation"
            )
    taken = tuple((most - low, max(most - high, 0)) for (low, high), most in zip(given, whole, strict=True))
    extra = tuple(max(high - most, 0) for (_, high), most in zip(given, whole, strict=True))
    return window(stride, taken, dilation, layout=layout, output_padding=extra)


def flax_options(
    *,
    kernel_size: int | Sequence[int],
    strides: Any = 1,
    padding: Any = "SAME",
    input_dilation: Any = 1,
    kernel_dilation: Any = 1,
    feature_group_count: int = 1,
) -> dict[str, Any]:
    """Our options for those of ``flax.linen.Conv`` and ``flax.nnx.Conv``, whose images are channels_last.

    Args:
        kernel_size: one int per axis.
        strides, kernel_dilation: an int, or one per axis; None: 1.
        padding: ``"VALID"``, ``"SAME"``, ``"SAME_LOWER"``, ``"CAUSAL"`` (1-D), ``"CIRCULAR"``, ``"REFLECT"``; an int;
            an int or a pair (low, high) per axis.
        input_dilation: 1.
        feature_group_count: said by the weight's shape.

    Raises:
        OptionError: a value that Flax does not take, or one that has no counterpart here.

    >>> flax_options(kernel_size=(4,), padding="CIRCULAR")["padding"]
    ((1, 2),)
    """
    integer("feature_group_count", feature_group_count, least=1)
    sizes = per_axis(extents("kernel_size", kernel_size), 1)
    stride, dilation, dilated = (
        1 if value is None else extents(name, value)
        for name, value in (
            ("strides", strides),
            ("kernel_dilation", kernel_dilation),
            ("input_dilation", input_dilation),
        )
    )
    needs_one("input_dilation", dilated, TRANSPOSED)
    one_rank(kernel_size=sizes, strides=stride, kernel_dilation=dilation, input_dilation=dilated)
    pads, mode = _flax_padding(padding, sizes, per_axis(dilation, len(sizes)))
    one_rank(kernel_size=sizes, padding=pads)
    return window(stride, pads, dilation, padding_mode=mode, layout="channels_last")


def _flax_padding(padding: Any, sizes: tuple[int, ...], dilation: tuple[int, ...]) -> tuple[Any, str]:
    if is_sequence(padding):
        each = tuple(p if is_sequence(p) else (p, p) for p in padding)
        return pairs("padding", each), "zeros"
    if not isinstance(padding, str):
        return extents("padding", padding, least=0), "zeros"
    name = one_of("padding", padding, (*PADDING, *FLAX_MODES, "CAUSAL"))
    if name == "CAUSAL" and len(sizes) != 1:
        raise OptionError(f"padding is 'CAUSAL' with kernel_size {sizes}; Flax has it in one dimension")
    if name not in FLAX_MODES:
        return (PADDING | {"CAUSAL": "causal"})[name], "zeros"
    spans: Pairs = tuple(((k - 1) * d // 2, ((k - 1) * d + 1) // 2) for k, d in zip(sizes, dilation, strict=True))
    return spans, FLAX_MODES[name]


def _layout(dimension_numbers: Any) -> tuple[str, tuple[str, ...] | None]:
    """Of image and result, which must be alike; and the spatial axes, in the order in which options name them."""
    if dimension_numbers is None:
        return "channels_first", None
    if not is_sequence(dimension_numbers) or len(dimension_numbers) != 3:
        raise OptionError(f"dimension_numbers is {dimension_numbers!r}; needed the axes of image, kernel and result")
    image, taps, result = (
        _letters(f"dimension_numbers[{place}]", spec, ends)
        for place, (spec, ends) in enumerate(zip(dimension_numbers, ("NC", "OI", "NC"), strict=True))
    )
    spatial = taps.replace("O", "").replace("I", "")
    layouts = {f"NC{spatial}": "channels_first", f"N{spatial}C": "channels_last"}
    if image != result or image not in layouts:
        raise OptionError(
            f"dimension_numbers is {(image, taps, result)}; needed image and result alike, N first and C second or "
            f"last, and the spatial axes in the kernel's order: {' or '.join(layouts)}"
        )
    return layouts[image], tuple(spatial)


def _letters(name: str, spec: Any, ends: str) -> str:
    """An array's axes by letters: ``ends`` and between one and three others, each once.

    The numbers of a ``ConvDimensionNumbers`` are the places of the axes: of ``ends``, then of the spatial ones.
    """
    if isinstance(spec, str):
        letters = spec
    else:
        places = integers(name, spec, least=0)
        spatial_axes = LETTERS[len(places) - 2].spatial if len(places) - 2 in LETTERS else ()
        axes = [*ends, *spatial_axes]
        if sorted(places) != list(range(len(axes))):
            raise OptionError(f"{name} is {spec!r}; needed the places of {ends} and of one to three spatial axes")
        letters = "".join(axis for _, axis in sorted(zip(places, axes, strict=True)))
    spatial = set(letters) - set(ends)
    if len(set(letters)) != len(letters) or not set(ends) <= set(letters) or len(spatial) not in LETTERS:
        raise OptionError(f"{name} is {spec!r}; needed {ends[0]}, {ends[1]} and one to three spatial axes, each once")
    return letters

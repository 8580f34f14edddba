"""Interop room: JAX's and Flax' weights and options in ours; imports neither."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from npdwconv.errors import OptionError
from npdwconv.interop.conventions import JAX, Convention
from npdwconv.interop.spelling import Pairs, extents, is_sequence, needs_one, pairs, per_axis, window
from npdwconv.options import one_of

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


def kernel(spec: str) -> Convention:
    """The convention of a kernel whose axes ``dimension_numbers`` names, ``"OIHW"``, ``"HWIO"``, ``"WIO"`` or such.

    >>> import numpy as np
    >>> kernel("OIHW").depthwise_weight(np.ones((6, 1, 3, 5))).shape
    (6, 1, 3, 5)
    """
    spatial = spec.replace("O", "").replace("I", "")
    if sorted(spec) != sorted("OI" + spatial) or spatial not in spec or not 1 <= len(spatial) <= 3:
        raise OptionError(
            f"the kernel's axes are {spec!r}; needed O, I and between one and three spatial ones in a row"
        )
    taps, point = (
        [names.get(axis, axis) for axis in spec.replace(spatial, "*")]
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
    dimension_numbers: tuple[str, str, str] | None = None,
    feature_group_count: int = 1,
    batch_group_count: int = 1,
) -> dict[str, Any]:
    """Our options for those of ``jax.lax.conv_general_dilated``.

    Args:
        window_strides, rhs_dilation: one int per axis; None: 1.
        padding: ``"VALID"``, ``"SAME"``, ``"SAME_LOWER"``, or a pair (low, high) per axis.
        dimension_numbers: the axes of image, kernel and result by letters; None: ``("NCHW", "OIHW", "NCHW")``.
        lhs_dilation: 1 on every axis, else see `transpose_options`.
        feature_group_count: said by the weight's shape.
        batch_group_count: 1.

    Raises:
        OptionError: a value that JAX does not take, or one that has no counterpart here.

    >>> options(window_strides=(2, 2), padding="SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))
    {'stride': (2, 2), 'padding': 'same', 'dilation': 1, 'layout': 'channels_last'}
    """
    needs_one("lhs_dilation", lhs_dilation, TRANSPOSED)
    needs_one("batch_group_count", batch_group_count, "the operators have no groups of images")
    pads: Any = PADDING[one_of("padding", padding, PADDING)] if isinstance(padding, str) else pairs("padding", padding)
    stride = extents("window_strides", window_strides)
    return window(stride, pads, _dilation(rhs_dilation), layout=_layout(dimension_numbers))


def transpose_options(
    *,
    lhs_dilation: Sequence[int],
    padding: Sequence[tuple[int, int]],
    kernel_shape: Sequence[int],
    rhs_dilation: Sequence[int] | None = None,
    dimension_numbers: tuple[str, str, str] | None = None,
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
    given, dilation = pairs("padding", padding), _dilation(rhs_dilation)
    kernel_extents = per_axis(extents("kernel_shape", kernel_shape), len(given))
    spread = per_axis(dilation, len(given))
    whole = [(k - 1) * d for k, d in zip(kernel_extents, spread, strict=True)]
    for axis, ((low, _), most) in enumerate(zip(given, whole, strict=True)):
        if low > most:
            raise OptionError(
                f"padding[{axis}] is {given[axis]}; needed at most {most} at the low end, (k − 1)·dilation"
            )
    taken = tuple((most - low, max(most - high, 0)) for (low, high), most in zip(given, whole, strict=True))
    extra = tuple(max(high - most, 0) for (_, high), most in zip(given, whole, strict=True))
    stride, layout = extents("lhs_dilation", lhs_dilation), _layout(dimension_numbers)
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
    needs_one("input_dilation", input_dilation, TRANSPOSED)
    sizes = extents("kernel_size", kernel_size)
    sizes = (sizes,) if isinstance(sizes, int) else sizes
    stride, dilation = (
        1 if v is None else extents(n, v) for n, v in (("strides", strides), ("kernel_dilation", kernel_dilation))
    )
    pads, mode = _flax_padding(padding, sizes, per_axis(dilation, len(sizes)))
    return window(stride, pads, dilation, padding_mode=mode, layout="channels_last")


def _flax_padding(padding: Any, sizes: tuple[int, ...], dilation: tuple[int, ...]) -> tuple[Any, str]:
    if is_sequence(padding):
        each = tuple(p if is_sequence(p) else (p, p) for p in padding)
        return pairs("padding", each), "zeros"
    if not isinstance(padding, str):
        return extents("padding", padding, least=0), "zeros"
    name = one_of("padding", padding, (*PADDING, *FLAX_MODES, "CAUSAL"))
    if name == "CAUSAL" and len(sizes) != 1:
        raise OptionError(f"padding is 'CAUSAL' in {len(sizes)} dimensions; Flax has it in one")
    if name not in FLAX_MODES:
        return (PADDING | {"CAUSAL": "causal"})[name], "zeros"
    spans: Pairs = tuple(((k - 1) * d // 2, ((k - 1) * d + 1) // 2) for k, d in zip(sizes, dilation, strict=True))
    return spans, FLAX_MODES[name]


def _dilation(value: Sequence[int] | None) -> Any:
    return 1 if value is None else extents("rhs_dilation", value)


def _layout(dimension_numbers: tuple[str, str, str] | None) -> str:
    """Of image and result, which must be alike."""
    if dimension_numbers is None:
        return "channels_first"
    image, _, result = dimension_numbers
    if image == result and image.startswith("NC"):
        return "channels_first"
    if image == result and image.startswith("N") and image.endswith("C"):
        return "channels_last"
    raise OptionError(
        f"dimension_numbers is {dimension_numbers!r}; needed image and result alike, N first and C second or last"
    )

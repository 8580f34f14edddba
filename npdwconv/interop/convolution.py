"""Interop room: a convolution that a framework ran, in the terms PyTorch and ONNX share, as a case to verify."""

from __future__ import annotations

from typing import Any

import numpy as np

from npdwconv.cases import Case
from npdwconv.interop.conventions import TORCH
from npdwconv.interop.spelling import per_axis
from npdwconv.layouts import LETTERS, Array

FLOATING = ("float16", "bfloat16", "float32", "float64")


def as_case(
    name: str, operands: dict[str, Array | None], out: Array, group: int, options: dict[str, Any], *, transposed: bool
) -> Case | str:
    """The case of a convolution that our operators cover, or the reason why they do not.

    Args:
        operands: x, channels_first; weight as PyTorch and ONNX store it; bias, or None.
        out: what the framework returned.
        options: ours, of the depthwise operators. A stride of a pointwise convolution is taken out of x.
    """
    given = {each: array for each, array in operands.items() if array is not None}
    x, weight = given["x"], given["weight"]
    rank = x.ndim - 2
    if x.dtype.name not in FLOATING:
        return f"its dtype is {x.dtype}"
    if rank not in LETTERS or weight.ndim != x.ndim:
        return f"its input has {x.ndim} axes, its weight {weight.ndim}"
    if reason := uncovered(weight.shape, group, transposed=transposed):
        return reason
    padded = not isinstance(options["padding"], str) and np.any(options["padding"])  # by its name, 1 × 1 is never
    if is_pointwise(weight.shape, group, transposed=transposed) and not padded:
        strided: tuple[Any, ...] = (..., *(slice(None, None, step) for step in per_axis(options["stride"], rank)))
        return Case("pointwise_conv", given | {"x": np.ascontiguousarray(x[strided])}, {}, {"out": out}, name)
    if group != x.shape[1]:
        return f"a pointwise convolution of an image that it pads, {x.shape[1]} to {weight.shape[0]} channels"
    if transposed:
        weight = TORCH.transposed_weight(weight)
        return Case(f"depthwise_conv_transpose{rank}d", given | {"weight": weight}, options, {"out": out}, name)
    return Case(f"depthwise_conv{rank}d", given, options, {"out": out}, name)


def uncovered(weight: tuple[int, ...], group: int, *, transposed: bool) -> str:
    """Why a convolution with a weight of this shape is neither depthwise nor pointwise; empty if it is."""
    channels, outputs = (weight[0], group * weight[1]) if transposed else (group * weight[1], weight[0])
    if group == channels or is_pointwise(weight, group, transposed=transposed):
        return ""
    kind = "standard" if group == 1 else f"grouped ({group} groups)"
    return f"a {kind} {'transposed ' if transposed else ''}convolution, {channels} to {outputs} channels"


def is_pointwise(weight: tuple[int, ...], group: int, *, transposed: bool) -> bool:
    return not transposed and group == 1 and set(weight[2:]) == {1}

"""CPU kernels for separable convolution: depthwise, activation, pointwise. The middle value is never rounded.

In channels_last a strip of rows goes through both kernels at once: the middle value of a strip stays in the second
cache. Elsewhere, and where the middle value is small anyway, it is a few images that go through both.
"""

from __future__ import annotations

from math import prod

import numpy as np

from npdwconv.activations import Activation
from npdwconv.geometry import ConvGeometry
from npdwconv.kernels.cpu import depthwise, pointwise
from npdwconv.kernels.cpu.arrays import deliver, plain, target
from npdwconv.kernels.cpu.epilogue import bias_bwd
from npdwconv.kernels.cpu.strips import Strips, strips
from npdwconv.kernels.reference.borders import pad_fwd
from npdwconv.layouts import Array, shape_of
from npdwconv.precision import accumulator
from npdwconv.threads import get_num_threads

MIDDLE_BYTES = 2_000_000  # of the middle value of the images that go through both kernels together


def _middle(x: Array, weight: Array, g: ConvGeometry, layout: str) -> Array:
    shape = shape_of(layout, x.shape[0], weight.shape[0], g.out)
    return np.empty(shape, dtype=accumulator(x.dtype))


def separable_fwd(
    x: Array,
    depthwise_weight: Array,
    depthwise_bias: Array | None,
    pointwise_weight: Array,
    bias: Array | None,
    out: Array,
    g: ConvGeometry,
    layout: str,
    depthwise_activation: Activation | None,
    activation: Activation | None,
) -> None:
    """out = pointwise(middle), middle = depthwise(x), each with its bias and activation."""
    first = depthwise_weight, depthwise_bias
    second = pointwise_weight, bias
    names = tuple("" if function is None else function.name for function in (depthwise_activation, activation))
    if layout == "channels_last" and x.size and out.size:
        source, inner = pad_fwd(x, g, 1)
        shapes = source.shape, pointwise_weight.shape
        types = x.dtype, depthwise_bias is not None, bias is not None
        plan = strips(shapes, inner, types, names, get_num_threads())
        if plan is not None:
            _run(plan, plain(source), first, second, out)
            return
    one = prod(g.out) * depthwise_weight.shape[0] * accumulator(x.dtype).itemsize
    step = max(MIDDLE_BYTES // max(one, 1), 1)
    for start in range(0, x.shape[0], step):
        images = slice(start, start + step)
        middle = _middle(x[images], depthwise_weight, g, layout)
        depthwise.depthwise_fwd(x[images], *first, middle, g, layout, depthwise_activation)
        pointwise.pointwise_fwd(middle, *second, out[images], layout, activation)


def _run(
    plan: Strips, x: Array, first: tuple[Array, Array | None], second: tuple[Array, Array | None], out: Array
) -> None:
    written = target(out)
    biases = [None if bias is None else plain(bias) for _, bias in (first, second)]
    plan.run(x, plain(first[0]), biases[0], plain(second[0]), biases[1], written)
    deliver(written, out)


def separable_bwd(
    grad_out: Array,
    x: Array,
    depthwise_weight: Array,
    depthwise_bias: Array | None,
    pointwise_weight: Array,
    bias: Array | None,
    grad_x: Array | None,
    grad_depthwise_weight: Array | None,
    grad_depthwise_bias: Array | None,
    grad_pointwise_weight: Array | None,
    grad_bias: Array | None,
    g: ConvGeometry,
    layout: str,
    depthwise_activation: Activation | None,
    activation: Activation | None,
) -> None:
    """The chain rule through both stages; a gradient that is None is not computed."""
    middle = _middle(x, depthwise_weight, g, layout)
    grad_z = grad_out
    if activation is not None or grad_pointwise_weight is not None:
        depthwise.depthwise_fwd(x, depthwise_weight, depthwise_bias, middle, g, layout, depthwise_activation)
    if activation is not None:
        grad_z = np.empty(grad_out.shape, dtype=middle.dtype)
        pointwise.pointwise_bwd_activation(grad_out, middle, pointwise_weight, bias, grad_z, layout, activation)
    if grad_bias is not None:
        bias_bwd(grad_z, grad_bias, layout)
    if grad_pointwise_weight is not None:
        pointwise.pointwise_bwd_weight(grad_z, middle, grad_pointwise_weight, layout)
    if grad_x is None and grad_depthwise_weight is None and grad_depthwise_bias is None:
        return
    grad_middle = np.empty_like(middle)
    pointwise.pointwise_bwd_input(grad_z, pointwise_weight, grad_middle, layout)
    if depthwise_activation is not None:
        depthwise.depthwise_bwd_activation(
            grad_middle, x, depthwise_weight, depthwise_bias, grad_middle, g, layout, depthwise_activation
        )
    if grad_depthwise_bias is not None:
        bias_bwd(grad_middle, grad_depthwise_bias, layout)
    if grad_depthwise_weight is not None:
        depthwise.depthwise_bwd_weight(grad_middle, x, grad_depthwise_weight, g, layout)
    if grad_x is not None:
        depthwise.depthwise_bwd_input(grad_middle, depthwise_weight, grad_x, g, layout)

"""CPU kernels for separable convolution: depthwise, activation, pointwise. The middle value is never rounded.

A strip of rows goes through both kernels at once: its middle value stays in the second cache. Where the middle value is
small anyway, it is a few images that go through both.
"""

from __future__ import annotations

from math import prod

from npdwconv.activations import Activation
from npdwconv.geometry import ConvGeometry
from npdwconv.kernels.chain import separable_bwd_of
from npdwconv.kernels.cpu import depthwise, pointwise
from npdwconv.kernels.cpu.arrays import deliver, plain, room, target
from npdwconv.kernels.cpu.engine import NOWHERE, Parts, Program, Ready, checks
from npdwconv.kernels.cpu.epilogue import bias_bwd
from npdwconv.kernels.cpu.pointwise import Packed
from npdwconv.kernels.cpu.strips import Strips, strips
from npdwconv.kernels.reference.borders import pad_fwd
from npdwconv.layouts import Array, shape_of
from npdwconv.precision import accumulator
from npdwconv.threads import get_num_threads

MIDDLE_BYTES = 3_500_000  # of the middle value of the images that go through both kernels together


def separable_fwd(
    x: Array,
    depthwise_weight: Array,
    depthwise_bias: Array | None,
    pointwise_weight: Array | Packed,
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
    if x.size and out.size:
        source, inner = pad_fwd(x, g, 1 if layout == "channels_last" else 2)
        shapes = source.shape, pointwise_weight.shape
        types = x.dtype, depthwise_bias is not None, bias is not None
        plan = strips(layout, shapes, inner, types, names, get_num_threads())
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


def separable_ready(
    x: Array,
    depthwise_weight: Array,
    depthwise_bias: Array | None,
    pointwise_weight: Array | Packed,
    bias: Array | None,
    out: Array,
    g: ConvGeometry,
    layout: str,
    depthwise_activation: Activation | None,
    activation: Activation | None,
) -> Ready | None:
    """`separable_fwd` of arrays like these, where the middle value of all images is small."""
    if g.copies_border or not (x.size and out.size and checks()):
        return None
    middle = _middle(x, depthwise_weight, g, layout)
    if middle.nbytes > MIDDLE_BYTES:
        return None
    plan, given = pointwise.planned(middle, pointwise_weight, bias, out, layout, activation)
    first, place = (x, depthwise_weight, depthwise_bias), 6
    before = depthwise.forward_parts((*first, middle), g, layout, depthwise_activation, (0, 1, 2, place), place + 1)
    after = plan.parts((place, 3, 4, 5, NOWHERE), place + 1 + len(before.rooms))
    rooms = (middle.nbytes, "middle"), *before.rooms, *after.rooms
    program = Program(Parts([*before.steps, *after.steps], rooms), (*first, given, bias, out), result=5)
    if given is pointwise_weight:
        return program
    return lambda x, taps, first_bias, _, bias, out: program(x, taps, first_bias, given, bias, out)


def _run(
    plan: Strips, x: Array, first: tuple[Array, Array | None], second: tuple[Array | Packed, Array | None], out: Array
) -> None:
    written, weight = target(out), second[0]
    biases = [None if bias is None else plain(bias) for _, bias in (first, second)]
    ready = weight.weight if isinstance(weight, Packed) else plain(weight)
    if plan.packing is not None:
        if isinstance(weight, Packed):
            ready = weight.panels(plan.packing)
        else:
            plan.packing.launch(ready, panels := plan.packing.room())
            ready = panels
    plan.run(x, plain(first[0]), biases[0], ready, biases[1], written)
    deliver(written, out)


def _middle(x: Array, weight: Array, g: ConvGeometry, layout: str) -> Array:
    """Where the value between the stages lies, the same memory in every call of a thread."""
    shape, dtype = shape_of(layout, x.shape[0], weight.shape[0], g.out), accumulator(x.dtype)
    size = prod(shape) * dtype.itemsize
    return room(size, "middle")[:size].view(dtype).reshape(shape)


separable_bwd = separable_bwd_of(depthwise, pointwise, bias_bwd)

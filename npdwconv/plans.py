"""Planning room: what the depthwise operators share: checked operands, geometry, and how a plan is run."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple, cast

import numpy as np

from npdwconv.activations import ACTIVATIONS, Activation
from npdwconv.arguments import Call, check_allocatable, check_multiplier, fits_plainly
from npdwconv.device import DeviceArray
from npdwconv.dispatch import Kernel, kernel, kernels
from npdwconv.geometry import ConvGeometry, conv_geometry, transpose_geometry
from npdwconv.layouts import LAYOUTS, Array, shape_of, split_shape
from npdwconv.memory import empty
from npdwconv.options import PADDING_MODES, needed_names, one_of, padding_form, per_axis
from npdwconv.precision import accumulator
from npdwconv.recalled import at_once, make_ready, ready_key, recall, remember

Needs = str | Iterable[str]
NEEDS = ("x", "weight", "bias")


class Grads(NamedTuple):
    """Gradients of one operator in its operands; None where not needed, or where there is no bias."""

    x: Array | None = None
    weight: Array | None = None
    bias: Array | None = None


class BackwardKernels(NamedTuple):
    """One kernel for each part of a backward."""

    activation: Kernel
    input: Kernel
    weight: Kernel
    bias: Kernel


class ConvOptions(NamedTuple):
    """What a caller passes beside the arrays, unchecked."""

    stride: Any = 1
    padding: Any = 0
    dilation: Any = 1
    padding_mode: Any = "zeros"
    layout: Any = "channels_first"
    activation: Any = None
    output_padding: Any = 0
    transposed: bool = False

    def geometry(self, size: tuple[int, ...], kernel: tuple[int, ...]) -> ConvGeometry:
        """Checked and planned for inputs of extent ``size``; read the other way where ``transposed``."""
        rank = len(size)
        stride, dilation = per_axis("stride", self.stride, rank), per_axis("dilation", self.dilation, rank)
        padding, mode = padding_form(self.padding, rank), one_of("padding_mode", self.padding_mode, PADDING_MODES)
        if not self.transposed:
            return conv_geometry(size, kernel, stride, dilation, padding, mode)
        extra = per_axis("output_padding", self.output_padding, rank, least=0)
        return transpose_geometry(size, kernel, stride, dilation, padding, extra)


class Settled(NamedTuple):
    """What of a plan does not depend on the arrays' contents."""

    geometry: ConvGeometry
    activation: Activation | None
    shape: tuple[int, ...]


class DepthwisePlan(NamedTuple):
    """A checked depthwise call: operands (weight as (C·M, *kernel)), geometry, and the shape of its result."""

    call: Call
    x: Array
    weight: Array
    bias: Array | None
    geometry: ConvGeometry
    activation: Activation | None
    shape: tuple[int, ...]


_settled: dict[Any, Settled] = {}  # checks cost more than a small convolution: what passed them once is remembered


def open_call(name: str, layout: Any) -> Call:
    """A call whose layout is checked, before any operand is."""
    call = Call(name)
    with call.explained():
        call.layout = one_of("layout", layout, LAYOUTS)
    return call


def activation_named(value: Any, name: str = "activation") -> Activation | None:
    """The activation of that name, or None."""
    return None if value is None else ACTIVATIONS[one_of(name, value, ACTIVATIONS)]


def depthwise_plan(
    name: str, rank: int, x: Any, weight: Any, bias: Any, options: ConvOptions, *, stage: str = ""
) -> DepthwisePlan:
    """Check a depthwise or transposed depthwise call and plan it; ``stage`` precedes its operands' names."""
    key, (x, weight, bias) = recall(name, (x, weight, bias), options[:-1])
    known = None if key is None else _settled.get(key)
    if known is not None:
        operands = {"x": x, f"{stage}weight": weight}
        if bias is not None:
            operands[f"{stage}bias"] = bias
        return DepthwisePlan(Call(name, options.layout, operands), x, weight[:, 0], bias, *known)
    plan = _checked_plan(name, rank, x, weight, bias, options, stage)
    if key is not None:
        remember(_settled, key, Settled(plan.geometry, plan.activation, plan.shape))
    return plan


def _checked_plan(
    name: str, rank: int, x: Any, weight: Any, bias: Any, options: ConvOptions, stage: str
) -> DepthwisePlan:
    call = open_call(name, options.layout)
    with call.explained():
        xs = call.activations("x", x, rank)
        w = call.depthwise_weight(f"{stage}weight", weight, rank)
        batch, channels, size = split_shape(call.layout, xs.shape)
        check_multiplier(f"{stage}weight", w.shape[0], channels)
        b = call.vector(f"{stage}bias", bias, w.shape[0])
        geometry = options.geometry(size, w.shape[1:])
        extents = geometry.size if options.transposed else geometry.out
        shape = shape_of(call.layout, batch, w.shape[0], extents)
        check_allocatable(shape, xs.itemsize)
        if geometry.copies_border:
            check_allocatable((batch, channels, *geometry.padded), xs.itemsize)
        activation = activation_named(options.activation, f"{stage}activation")
        return DepthwisePlan(call, xs, w, b, geometry, activation, shape)


def convolve(
    name: str,
    rank: int,
    family: str,
    operands: tuple[Any, Any, Any],
    options: tuple[Any, ...],
    backend: str | None,
    out: Any,
) -> Array:
    """Check, plan and run a call of a forward of ``family`` (depthwise or transpose); one like a call before at once.

    ``options``: the first of `ConvOptions`, all but ``transposed``.
    """
    key = ready_key(name, backend, operands, options)
    result = at_once(key, operands, out)
    if result is not None:
        return result
    run = kernel(name, f"{family}_fwd", backend, *operands)
    plan = depthwise_plan(name, rank, *operands, ConvOptions(*options)._replace(transposed=family == "transpose"))
    result = forward(run, plan, out)
    how = plan.geometry, plan.call.layout, plan.activation
    make_ready(key, name, f"{family}_ready", backend, (plan.x, plan.weight, plan.bias, result), how, plan.shape)
    return result


def forward(run: Kernel, plan: DepthwisePlan, out: Any) -> Array:
    """Run a planned forward operation into ``out`` or a new array."""
    result = empty(plan.x, plan.shape) if out is None else given(plan.call, out, plan.shape)
    run(plan.x, plan.weight, plan.bias, result, plan.geometry, plan.call.layout, plan.activation)
    return result if out is None else cast(Array, out)


def given(call: Call, out: Any, shape: tuple[int, ...]) -> Array:
    """``out``, checked to fit a result of ``shape``."""
    if fits_plainly(out, shape, call.operands.values()):
        return cast(Array, out)
    with call.explained():
        return call.result(out, shape)


def backward_kernels(operator: str, family: str, backend: str | None, *operands: Any) -> BackwardKernels:
    """The kernels that a backward of ``family`` (depthwise, transpose or pointwise) is made of."""
    parts = (f"{family}_bwd_activation", f"{family}_bwd_input", f"{family}_bwd_weight", "bias_bwd")
    return BackwardKernels(*kernels(operator, parts, backend, *operands))


def backward(run: BackwardKernels, plan: DepthwisePlan, grad_out: Any, needs: Needs) -> Grads:
    """Run those of the backward operations that ``needs`` asks for."""
    call, g = plan.call, plan.geometry
    wanted, grad_z = asked(call, needs, NEEDS, grad_out, plan.shape)
    if plan.activation is not None and wanted:
        chained = empty(grad_z, plan.shape, accumulator(grad_z.dtype))
        run.activation(grad_z, plan.x, plan.weight, plan.bias, chained, g, call.layout, plan.activation)
        grad_z = chained
    grads = Grads(*empty_grads(wanted, {"x": plan.x, "weight": plan.weight, "bias": plan.bias}))
    if grads.x is not None:
        run.input(grad_z, plan.weight, grads.x, g, call.layout)
    if grads.weight is not None:
        run.weight(grad_z, plan.x, grads.weight, g, call.layout)
    if grads.bias is not None:
        run.bias(grad_z, grads.bias, call.layout)
    return grads if grads.weight is None else grads._replace(weight=grads.weight[:, None])


def asked(
    call: Call, needs: Needs, names: tuple[str, ...], grad_out: Any, shape: tuple[int, ...]
) -> tuple[frozenset[str], Array]:
    """What a backward is asked for: names out of ``names``, and the gradient in the forward's result, of ``shape``."""
    kind = type(grad_out)
    plain = kind is np.ndarray or kind is DeviceArray
    plain = plain and kind is type(next(iter(call.operands.values())))
    plain = plain and grad_out.shape == shape and grad_out.dtype == call.dtype
    if plain and (needs is names or (type(needs) is str and needs in names)):
        call.operands["grad_out"] = grad_out
        return frozenset(names if needs is names else (str(needs),)), grad_out
    with call.explained():
        wanted = needed_names(needs, names)
        grad = call.operand("grad_out", grad_out)
        call.require("grad_out", grad, shape, "the shape of the forward's result")
        return wanted, grad


def empty_grads(wanted: frozenset[str], operands: dict[str, Array | None]) -> Iterator[Array | None]:
    """For each operand an array for its gradient, or None where it is not wanted or the operand is None."""
    for name, operand in operands.items():
        yield None if operand is None or name not in wanted else empty(operand, operand.shape)

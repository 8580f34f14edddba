"""Public operators: pointwise convolution of any rank, and its gradients."""

from __future__ import annotations

from typing import Any, NamedTuple

from npdwconv.activations import Activation
from npdwconv.arguments import Call
from npdwconv.dispatch import kernel
from npdwconv.layouts import Array, shape_of, split_shape
from npdwconv.memory import empty
from npdwconv.plans import NEEDS, Grads, Needs, activation_named, asked, backward_kernels, empty_grads, given, open_call
from npdwconv.precision import accumulator
from npdwconv.recalled import at_once, make_ready, ready_key, recall, remember


class PointwisePlan(NamedTuple):
    """A checked pointwise call: operands (weight as (K, C)) and the shape of its result."""

    call: Call
    x: Array
    weight: Array
    bias: Array | None
    activation: Activation | None
    shape: tuple[int, ...]
    weight_shape: tuple[int, ...]


_settled: dict[Any, tuple[Activation | None, tuple[int, ...]]] = {}


def pointwise_plan(name: str, x: Any, weight: Any, bias: Any, layout: Any, activation: Any) -> PointwisePlan:
    """Check a pointwise call and plan it; a call like one that was checked before is not checked again."""
    key, (x, weight, bias) = recall(name, (x, weight, bias), (layout, activation))
    known = None if key is None else _settled.get(key)
    if known is None:
        plan = _checked_plan(name, x, weight, bias, layout, activation)
        if key is not None:
            remember(_settled, key, (plan.activation, plan.shape))
        return plan
    operands = {"x": x, "weight": weight} if bias is None else {"x": x, "weight": weight, "bias": bias}
    call = Call(name, layout, operands)
    return PointwisePlan(call, x, weight.reshape(weight.shape[:2]), bias, *known, weight.shape)


def _checked_plan(name: str, x: Any, weight: Any, bias: Any, layout: Any, activation: Any) -> PointwisePlan:
    call = open_call(name, layout)
    with call.explained():
        xs = call.activations("x", x, None)
        batch, channels, spatial = split_shape(call.layout, xs.shape)
        w = call.pointwise_weight("weight", weight, channels)
        b = call.vector("bias", bias, w.shape[0])
        shape = shape_of(call.layout, batch, w.shape[0], spatial)
        weight_shape = call.operands["weight"].shape
        return PointwisePlan(call, xs, w, b, activation_named(activation), shape, weight_shape)


def pointwise_conv(
    x: Any,
    weight: Any,
    bias: Any = None,
    *,
    layout: str = "channels_first",
    activation: str | None = None,
    backend: str | None = None,
    out: Array | None = None,
) -> Array:
    """Pointwise (1×1) convolution over any number of spatial axes, none included: a matrix product at every pixel.

    ``out[n, k, …] = activation(Σ_c weight[k, c] · x[n, c, …] + bias[k])``, as PyTorch's convolutions with kernel
    extent 1 and ``groups=1``.

    Args:
        x: ``(N, C, *spatial)``, or ``(N, *spatial, C)`` with ``layout="channels_last"``; float16, bfloat16,
            float32 or float64.
        weight: (K, C), or as frameworks store it, (K, C, 1, …).
        bias: (K,) or None.
        layout, activation, backend, out: as in ``depthwise_conv2d``.

    Returns:
        ``(N, K, *spatial)``, or ``(N, *spatial, K)`` channels_last; ``out`` itself where it was passed.

    Raises:
        ShapeError: operands do not fit each other.
        DTypeError, OptionError, BackendUnavailableError: as ``depthwise_conv2d``.

    >>> import numpy as np
    >>> from npdwconv import pointwise_conv
    >>> x = np.ones((1, 3, 4, 4), dtype=np.float32)
    >>> pointwise_conv(x, np.ones((5, 3), dtype=np.float32)).shape
    (1, 5, 4, 4)
    """
    name, operands = "pointwise_conv", (x, weight, bias)
    key = ready_key(name, backend, operands, (layout, activation))
    ready = at_once(key, operands, out)
    if ready is not None:
        return ready
    run = kernel(name, "pointwise_fwd", backend, *operands)
    plan = pointwise_plan(name, *operands, layout, activation)
    result, how = (
        empty(plan.x, plan.shape) if out is None else given(plan.call, out, plan.shape),
        (layout, plan.activation),
    )
    run(plan.x, plan.weight, plan.bias, result, *how)
    make_ready(key, name, "pointwise_ready", backend, (plan.x, plan.weight, plan.bias, result), how, plan.shape)
    return result if out is None else out


def pointwise_conv_backward(
    grad_out: Any,
    x: Any,
    weight: Any,
    bias: Any = None,
    *,
    layout: str = "channels_first",
    activation: str | None = None,
    needs: Needs = NEEDS,
    backend: str | None = None,
) -> Grads:
    """Gradients of ``pointwise_conv`` in ``x``, ``weight`` and ``bias``, the pre-activation recomputed.

    With ``grad_z = grad_out · activation′(z)``: ``grad_x = weightᵀ · grad_z`` at every pixel,
    ``grad_weight[k, c] = Σ_{n,…} grad_z[n, k, …] · x[n, c, …]``, ``grad_bias[k] = Σ_{n,…} grad_z[n, k, …]``.

    Args:
        grad_out: of the shape of the forward's result, ``(N, K, *spatial)`` or ``(N, *spatial, K)``.
        x, weight, bias, layout, activation: the forward's.
        needs: one or more of ``"x"``, ``"weight"``, ``"bias"``: what to compute.

    Returns:
        Grads(x, weight, bias), each of its operand's shape and dtype; None where not needed.

    Raises:
        ShapeError, DTypeError, OptionError, BackendUnavailableError: as the forward does.

    >>> import numpy as np
    >>> from npdwconv import pointwise_conv_backward
    >>> x, weight = np.ones((1, 3, 4), dtype=np.float32), np.ones((5, 3), dtype=np.float32)
    >>> pointwise_conv_backward(np.ones((1, 5, 4), dtype=np.float32), x, weight, needs="weight").weight.shape
    (5, 3)
    """
    name = "pointwise_conv_backward"
    alone = activation is bias is None and type(needs) is str and needs in ("x", "weight")
    key = ready_key(name, backend, (grad_out, x, weight), (layout, needs)) if alone else None
    ready = at_once(key, (grad_out, weight if needs == "x" else x, None), None)
    if ready is not None:
        return Grads(x=ready) if needs == "x" else Grads(weight=ready)
    run = backward_kernels(name, "pointwise", backend, x, weight, bias, grad_out)
    plan = pointwise_plan(name, x, weight, bias, layout, activation)
    call = plan.call
    wanted, grad_z = asked(call, needs, NEEDS, grad_out, plan.shape)
    if plan.activation is not None and wanted:
        chained = empty(grad_z, plan.shape, accumulator(grad_z.dtype))
        run.activation(grad_z, plan.x, plan.weight, plan.bias, chained, call.layout, plan.activation)
        grad_z = chained
    grads = Grads(*empty_grads(wanted, {"x": plan.x, "weight": plan.weight, "bias": plan.bias}))
    if grads.x is not None:
        run.input(grad_z, plan.weight, grads.x, call.layout)
        operands = grad_z, plan.weight, None, grads.x
        make_ready(key, name, "pointwise_input_ready", backend, operands, (layout,), grads.x.shape)
    if grads.weight is not None:
        run.weight(grad_z, plan.x, grads.weight, call.layout)
        operands = grad_z, plan.x, None, grads.weight
        make_ready(key, name, "pointwise_weight_ready", backend, operands, (layout,), plan.weight_shape)
    if grads.bias is not None:
        run.bias(grad_z, grads.bias, call.layout)
    return grads if grads.weight is None else grads._replace(weight=grads.weight.reshape(plan.weight_shape))

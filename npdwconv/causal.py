"""Public operators: causal depthwise convolution over time, in pieces that hand a state on."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, NamedTuple

from npdwconv.arguments import Call
from npdwconv.dispatch import kernel
from npdwconv.layouts import Array
from npdwconv.memory import add, dense, joined, zeros
from npdwconv.options import needed_names
from npdwconv.plans import ConvOptions, DepthwisePlan, Needs, backward, backward_kernels, depthwise_plan, forward
from npdwconv.precision import accumulator


class CausalGrads(NamedTuple):
    """Gradients of a causal convolution in its operands; None where not needed, or where the operand was None."""

    x: Array | None = None
    weight: Array | None = None
    bias: Array | None = None
    state: Array | None = None


CAUSAL_NEEDS = CausalGrads._fields


def causal_plan(
    name: str, x: Any, weight: Any, bias: Any, state: Any, layout: Any, activation: Any
) -> tuple[Call, DepthwisePlan, Array | None, Array]:
    """The call, its plan over what came before and ``x``, the checked state, and that joined history (N, C, S−1+W)."""
    alone = depthwise_plan(name, 1, x, weight, bias, ConvOptions(1, "causal", 1, "zeros", layout, activation))
    call, taps = alone.call, alone.weight.shape[1]
    xs = _over_time(alone.x, call.layout)
    with call.explained():
        before = call.optional("state", state)
        shape = (*xs.shape[:2], taps - 1)
        if before is not None:
            call.require("state", before, shape, "(N, C, S − 1) in both layouts")
    history = joined(zeros(xs, shape) if before is None else before, xs)
    if before is None:
        return call, alone, None, history
    geometry = replace(alone.geometry, axes=(replace(alone.geometry.axes[0], size=history.shape[2], low=0),))
    whole = dense(_over_time(history, call.layout))
    return call, alone._replace(x=whole, geometry=geometry), before, history


def causal_depthwise_conv1d(
    x: Any,
    weight: Any,
    bias: Any = None,
    *,
    state: Any = None,
    activation: str | None = None,
    layout: str = "channels_first",
    backend: str | None = None,
) -> tuple[Array, Array]:
    """Causal depthwise convolution over time: each output reads the present and the S − 1 inputs before it.

    ``out[n, c·M + m, q] = activation(Σ_s weight[c·M + m, 0, s] · x[n, c, q + s − (S − 1)] + bias[c·M + m])``, where
    inputs before the first are the ``state``, or absent. A long sequence may come in pieces, each with the state that
    the last one returned: the results are the same bits. The semantics are those of ONNX ``CausalConvWithState``
    (opset 27), the layer of Mamba and Gated DeltaNet.

    Args:
        x: (N, C, W), or (N, W, C) with ``layout="channels_last"``; W may be 0 or less than S − 1.
        weight: (C·M, 1, S).
        bias: (C·M,) or None.
        state: (N, C, S − 1) in both layouts, the inputs before ``x``; None where there were none.
        activation, layout, backend: as in ``depthwise_conv1d``.

    Returns:
        ``(out, next_state)``: out (N, C·M, W) or (N, W, C·M); next_state (N, C, S − 1), a copy.

    Raises:
        ShapeError, DTypeError, OptionError, BackendUnavailableError: as ``depthwise_conv1d``.

    >>> import numpy as np
    >>> from npdwconv import causal_depthwise_conv1d
    >>> x, weight = np.arange(6, dtype=np.float32).reshape(1, 1, 6), np.ones((1, 1, 3), dtype=np.float32)
    >>> whole, _ = causal_depthwise_conv1d(x, weight)
    >>> first, state = causal_depthwise_conv1d(x[..., :2], weight)
    >>> second, _ = causal_depthwise_conv1d(x[..., 2:], weight, state=state)
    >>> np.array_equal(whole, np.concatenate([first, second], axis=2))
    True
    """
    name = "causal_depthwise_conv1d"
    run = kernel(name, "depthwise_fwd", backend, x, weight, bias, state)
    _, plan, _, history = causal_plan(name, x, weight, bias, state, layout, activation)
    kept = history.shape[2] - (plan.weight.shape[1] - 1)
    return forward(run, plan, None), dense(history[:, :, kept:])


def causal_depthwise_conv1d_backward(
    grad_out: Any,
    x: Any,
    weight: Any,
    bias: Any = None,
    *,
    state: Any = None,
    grad_next_state: Any = None,
    activation: str | None = None,
    layout: str = "channels_first",
    needs: Needs = CAUSAL_NEEDS,
    backend: str | None = None,
) -> CausalGrads:
    """Gradients of ``causal_depthwise_conv1d`` in ``x``, ``weight``, ``bias`` and ``state``.

    The next state is a copy of the last inputs, so ``grad_next_state`` is added to the gradients of those.

    Args:
        grad_out: (N, C·M, W), or (N, W, C·M) channels_last.
        x, weight, bias, state: the forward's; so are the options.
        grad_next_state: (N, C, S − 1), the gradient that reaches the next state; None for zero.
        needs: one or more of ``"x"``, ``"weight"``, ``"bias"``, ``"state"``.

    Returns:
        CausalGrads(x, weight, bias, state), each of its operand's shape and dtype; None where not needed or not passed.

    Raises:
        ShapeError, DTypeError, OptionError, BackendUnavailableError: as the forward does.

    >>> import numpy as np
    >>> from npdwconv import causal_depthwise_conv1d_backward
    >>> x, weight = np.ones((1, 2, 6), dtype=np.float32), np.ones((2, 1, 3), dtype=np.float32)
    >>> causal_depthwise_conv1d_backward(x, x, weight, needs="x").x[0, 0]
    array([3., 3., 3., 3., 2., 1.], dtype=float32)
    """
    name = "causal_depthwise_conv1d_backward"
    run = backward_kernels(name, "depthwise", backend, x, weight, bias, state, grad_out)
    call, plan, before, history = causal_plan(name, x, weight, bias, state, layout, activation)
    taps = plan.weight.shape[1]
    with call.explained():
        wanted = needed_names(needs, CAUSAL_NEEDS)
        carried = call.optional("grad_next_state", grad_next_state)
        if carried is not None:
            call.require("grad_next_state", carried, (*history.shape[:2], taps - 1), "(N, C, S − 1) in both layouts")
    inner = (wanted - {"state"}) | ({"x"} if "state" in wanted and before is not None else set())
    grads = backward(run, plan._replace(x=plan.x.astype(accumulator(plan.x.dtype), copy=False)), grad_out, inner)
    if grads.x is None:
        return CausalGrads(None, grads.weight, grads.bias, None)
    total = _with_carried(_over_time(grads.x, call.layout), carried, history.shape[2], taps - 1)
    grad_x = dense(_over_time(total[:, :, taps - 1 :], call.layout), history.dtype) if "x" in wanted else None
    wants_state = "state" in wanted and before is not None
    grad_state = dense(total[:, :, : taps - 1], history.dtype) if wants_state else None
    return CausalGrads(grad_x, grads.weight, grads.bias, grad_state)


def _over_time(array: Array, layout: str) -> Array:
    """An array (N, C, W) as one in ``layout``, or the other way: a view."""
    return array if layout == "channels_first" else array.swapaxes(1, 2)


def _with_carried(part: Array, carried: Array | None, length: int, past: int) -> Array:
    """The gradient of the whole history: ``part`` is its end, the next state its last ``past`` entries."""
    total = zeros(part, (*part.shape[:2], length))
    add(total[:, :, length - part.shape[2] :], part)
    if carried is not None:
        add(total[:, :, length - past :], carried)
    return total

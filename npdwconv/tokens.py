"""Public operators: depthwise convolution of tokens on a grid, the Mix-FFN layer of PVT and SegFormer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from npdwconv.arguments import Call
from npdwconv.dispatch import kernel
from npdwconv.errors import OptionError, ShapeError
from npdwconv.layouts import Array
from npdwconv.memory import empty
from npdwconv.options import per_axis
from npdwconv.plans import (
    NEEDS,
    ConvOptions,
    DepthwisePlan,
    Grads,
    Needs,
    backward,
    backward_kernels,
    depthwise_plan,
    given,
    open_call,
)
from npdwconv.recalled import at_once, make_ready, ready_key, recall_key, remember

_settled: dict[Any, bool] = {}


def tokens_plan(
    name: str, x: Any, weight: Any, bias: Any, grid: Any, options: ConvOptions
) -> tuple[Call, DepthwisePlan, tuple[int, int, int]]:
    """The tokens' call, the plan of the image that they are, and the shape of the resulting tokens."""
    key = recall_key(name, (x, weight, bias), (*options[:-1], grid))
    known = None if key is None else _settled.get(key)
    call, tokens, height, width = (Call(name, "channels_last"), x, *grid) if known else _checked(name, x, grid)
    batch, _, channels = tokens.shape
    plan = depthwise_plan(name, 2, tokens.reshape(batch, height, width, channels), weight, bias, options)
    call.operands.update(plan.call.operands, x=tokens)
    rows, columns = plan.geometry.out
    if key is not None:
        remember(_settled, key, True)
    return call, plan, (batch, rows * columns, plan.weight.shape[0])


def _checked(name: str, x: Any, grid: Any) -> tuple[Call, Array, int, int]:
    call = open_call(name, "channels_last")
    with call.explained():
        tokens = call.operand("x", x)
        if not isinstance(grid, (tuple, list)):
            raise OptionError(f"grid is {grid!r}; needed (H, W)")
        height, width = per_axis("grid", grid, 2, least=0)
        if tokens.ndim != 3 or tokens.shape[1] != height * width:
            raise ShapeError(
                f"x has shape {tokens.shape} with grid ({height}, {width}); needed (N, {height * width}, C), "
                f"one token per cell of the grid"
            )
    return call, tokens, height, width


def depthwise_conv_tokens(
    x: Any,
    weight: Any,
    bias: Any = None,
    *,
    grid: tuple[int, int],
    stride: int | Sequence[int] = 1,
    padding: Any = "same",
    dilation: int | Sequence[int] = 1,
    padding_mode: str = "zeros",
    activation: str | None = None,
    backend: str | None = None,
    out: Array | None = None,
) -> Array:
    """Depthwise convolution of tokens that lie on a grid, row by row: ``DWConv`` of PVT v2 and SegFormer.

    Token ``h·W + w`` is pixel (h, w): the same as ``depthwise_conv2d`` on ``x.reshape(N, H, W, C)`` channels_last,
    with no transposition anywhere (Xie et al., arXiv:2105.15203; Wang et al., arXiv:2106.13797).

    Args:
        x: (N, H·W, C).
        weight: (C·M, 1, R, S).
        bias: (C·M,) or None.
        grid: (H, W).
        stride, padding, dilation, padding_mode, activation, backend, out: as in ``depthwise_conv2d``; ``out`` and the
            result are (N, P·Q, C·M).

    Returns:
        (N, P·Q, C·M); ``out`` itself where it was passed.

    Raises:
        ShapeError: there is not one token per cell of the grid, or as ``depthwise_conv2d``.
        DTypeError, OptionError, BackendUnavailableError: as ``depthwise_conv2d``.

    >>> import numpy as np
    >>> from npdwconv import depthwise_conv_tokens
    >>> x = np.ones((1, 4 * 6, 8), dtype=np.float32)
    >>> depthwise_conv_tokens(x, np.ones((8, 1, 3, 3), dtype=np.float32), grid=(4, 6)).shape
    (1, 24, 8)
    """
    name = "depthwise_conv_tokens"
    operands, options = (x, weight, bias), (stride, padding, dilation, padding_mode, "channels_last", activation)
    key = ready_key(name, backend, operands, (*options, grid))
    ready = at_once(key, operands, out)
    if ready is not None:
        return ready
    run = kernel(name, "depthwise_fwd", backend, *operands)
    call, plan, shape = tokens_plan(name, *operands, grid, ConvOptions(*options))
    result = empty(plan.x, shape) if out is None else given(call, out, shape)
    image, how = result.reshape(plan.shape), (plan.geometry, "channels_last", plan.activation)
    run(plan.x, plan.weight, plan.bias, image, *how)
    make_ready(key, name, "depthwise_ready", backend, (plan.x, plan.weight, plan.bias, image), how, shape)
    return result if out is None else out


def depthwise_conv_tokens_backward(
    grad_out: Any,
    x: Any,
    weight: Any,
    bias: Any = None,
    *,
    grid: tuple[int, int],
    stride: int | Sequence[int] = 1,
    padding: Any = "same",
    dilation: int | Sequence[int] = 1,
    padding_mode: str = "zeros",
    activation: str | None = None,
    needs: Needs = NEEDS,
    backend: str | None = None,
) -> Grads:
    """Gradients of ``depthwise_conv_tokens`` in ``x``, ``weight`` and ``bias``.

    Args:
        grad_out: (N, P·Q, C·M), the shape of the forward's result.
        x, weight, bias, grid: the forward's; so are the options.
        needs: one or more of ``"x"``, ``"weight"``, ``"bias"``.

    Returns:
        Grads(x, weight, bias), ``x`` as (N, H·W, C); None where not needed.

    Raises:
        ShapeError, DTypeError, OptionError, BackendUnavailableError: as the forward does.

    >>> import numpy as np
    >>> from npdwconv import depthwise_conv_tokens_backward
    >>> x = np.ones((1, 4 * 6, 8), dtype=np.float32)
    >>> depthwise_conv_tokens_backward(x, x, np.ones((8, 1, 3, 3), dtype=np.float32), grid=(4, 6)).x.shape
    (1, 24, 8)
    """
    name = "depthwise_conv_tokens_backward"
    run = backward_kernels(name, "depthwise", backend, x, weight, bias, grad_out)
    options = ConvOptions(stride, padding, dilation, padding_mode, "channels_last", activation)
    call, plan, shape = tokens_plan(name, x, weight, bias, grid, options)
    with call.explained():
        grad = call.operand("grad_out", grad_out)
        call.require("grad_out", grad, shape, "the shape of the forward's result")
    grads = backward(run, plan, grad.reshape(plan.shape), needs)
    return grads if grads.x is None else grads._replace(x=grads.x.reshape(call.operands["x"].shape))

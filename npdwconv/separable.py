"""Public operators: separable convolution in one, two and three dimensions, and its gradients."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol

from npdwconv.activations import Activation
from npdwconv.arguments import check_allocatable
from npdwconv.dispatch import kernel
from npdwconv.layouts import Array, shape_of, spelled
from npdwconv.memory import empty
from npdwconv.plans import (
    ConvOptions,
    DepthwisePlan,
    Needs,
    activation_named,
    asked,
    depthwise_plan,
    empty_grads,
    given,
)
from npdwconv.recalled import at_once, make_ready, ready_key, recall_key, remember


class SeparableGrads(NamedTuple):
    """Gradients of a separable convolution in its operands; None where not needed, or where there is no bias."""

    x: Array | None = None
    depthwise_weight: Array | None = None
    pointwise_weight: Array | None = None
    depthwise_bias: Array | None = None
    bias: Array | None = None


SEPARABLE_NEEDS = SeparableGrads._fields


class SeparablePlan(NamedTuple):
    """A checked separable call: the depthwise plan, the pointwise operands (weight as (K, C·M)), the result's shape."""

    depthwise: DepthwisePlan
    weight: Array
    bias: Array | None
    activation: Activation | None
    shape: tuple[int, ...]
    weight_shape: tuple[int, ...]


_settled: dict[Any, tuple[Activation | None, tuple[int, ...]]] = {}


def separable_plan(
    name: str,
    rank: int,
    operands: tuple[Any, Any, Any, Any, Any],
    options: ConvOptions,
    activation: Any,
) -> SeparablePlan:
    """Check a separable call and plan it; a call like one that was checked before is not checked again."""
    key = recall_key(name, operands, (*options[:-1], activation))
    known = None if key is None else _settled.get(key)
    x, depthwise_weight, depthwise_bias, weight, bias = operands
    stage = depthwise_plan(name, rank, x, depthwise_weight, depthwise_bias, options, stage="depthwise_")
    if known is None:
        plan = _checked_plan(stage, weight, bias, activation)
        if key is not None:
            remember(_settled, key, (plan.activation, plan.shape))
        return plan
    stage.call.operands["pointwise_weight"] = weight
    if bias is not None:
        stage.call.operands["bias"] = bias
    return SeparablePlan(stage, weight.reshape(weight.shape[:2]), bias, *known, weight.shape)


def _checked_plan(stage: DepthwisePlan, pointwise_weight: Any, bias: Any, activation: Any) -> SeparablePlan:
    call = stage.call
    with call.explained():
        weight = call.pointwise_weight("pointwise_weight", pointwise_weight, stage.weight.shape[0])
        shape = shape_of(call.layout, stage.x.shape[0], weight.shape[0], stage.geometry.out)
        check_allocatable(shape, stage.x.itemsize)
        b = call.vector("bias", bias, weight.shape[0])
        stored = call.operands["pointwise_weight"].shape
        return SeparablePlan(stage, weight, b, activation_named(activation), shape, stored)


class SeparableConv(Protocol):
    """Signature of ``separable_conv{n}d``."""

    def __call__(
        self,
        x: Any,
        depthwise_weight: Any,
        pointwise_weight: Any,
        bias: Any = None,
        *,
        depthwise_bias: Any = None,
        stride: int | Sequence[int] = 1,
        padding: Any = 0,
        dilation: int | Sequence[int] = 1,
        padding_mode: str = "zeros",
        layout: str = "channels_first",
        depthwise_activation: str | None = None,
        activation: str | None = None,
        backend: str | None = None,
        out: Array | None = None,
    ) -> Array: ...


class SeparableConvBackward(Protocol):
    """Signature of ``separable_conv{n}d_backward``."""

    def __call__(
        self,
        grad_out: Any,
        x: Any,
        depthwise_weight: Any,
        pointwise_weight: Any,
        bias: Any = None,
        *,
        depthwise_bias: Any = None,
        stride: int | Sequence[int] = 1,
        padding: Any = 0,
        dilation: int | Sequence[int] = 1,
        padding_mode: str = "zeros",
        layout: str = "channels_first",
        depthwise_activation: str | None = None,
        activation: str | None = None,
        needs: Needs = SEPARABLE_NEEDS,
        backend: str | None = None,
    ) -> SeparableGrads: ...


def _separable(rank: int) -> SeparableConv:
    name = f"separable_conv{rank}d"

    def separable(
        x: Any,
        depthwise_weight: Any,
        pointwise_weight: Any,
        bias: Any = None,
        *,
        depthwise_bias: Any = None,
        stride: int | Sequence[int] = 1,
        padding: Any = 0,
        dilation: int | Sequence[int] = 1,
        padding_mode: str = "zeros",
        layout: str = "channels_first",
        depthwise_activation: str | None = None,
        activation: str | None = None,
        backend: str | None = None,
        out: Array | None = None,
    ) -> Array:
        """Separable convolution over ({spatial}): depthwise, then pointwise, each with its bias and activation.

        ``out = pointwise_conv(depthwise_conv{n}d(x, depthwise_weight, depthwise_bias), pointwise_weight, bias)``, the
        block of MobileNet (Howard et al., arXiv:1704.04861). The value between the two is not rounded to the
        operands' dtype: with float16 and bfloat16 it stays float32.

        Args:
            x: (N, C, {spatial}), or (N, {spatial}, C) with ``layout="channels_last"``.
            depthwise_weight: (C·M, 1, {kernel}).
            pointwise_weight: (K, C·M), or (K, C·M, 1, …).
            bias: (K,) or None; ``depthwise_bias``: (C·M,) or None.
            depthwise_activation, activation: after the depthwise and after the pointwise stage.
            stride, padding, dilation, padding_mode: of the depthwise stage, as in ``depthwise_conv{n}d``.
            layout, backend, out: as in ``depthwise_conv{n}d``.

        Returns:
            (N, K, {out}), or (N, {out}, K) channels_last; ``out`` itself where it was passed.

        Raises:
            ShapeError, DTypeError, OptionError, BackendUnavailableError: as ``depthwise_conv{n}d``.

        >>> import numpy as np
        >>> from npdwconv import {name}
        >>> x = np.ones((1, 2, {fours}), dtype=np.float32)
        >>> depthwise, pointwise = np.ones((2, 1, {threes}), dtype=np.float32), np.ones((5, 2), dtype=np.float32)
        >>> {name}(x, depthwise, pointwise, padding="same", depthwise_activation="relu6").shape
        (1, 5, {fours})
        """
        operands = (x, depthwise_weight, depthwise_bias, pointwise_weight, bias)
        options = stride, padding, dilation, padding_mode, layout, depthwise_activation
        key = ready_key(name, backend, operands, (*options, activation))
        ready = at_once(key, operands, out)
        if ready is not None:
            return ready
        run = kernel(name, "separable_fwd", backend, *operands)
        plan = separable_plan(name, rank, operands, ConvOptions(*options), activation)
        first = plan.depthwise
        result = empty(first.x, plan.shape) if out is None else given(first.call, out, plan.shape)
        arrays = (first.x, first.weight, first.bias, plan.weight, plan.bias, result)
        how = (first.geometry, first.call.layout, first.activation, plan.activation)
        run(*arrays, *how)
        make_ready(key, name, "separable_ready", backend, arrays, how, plan.shape)
        return result if out is None else out

    return spelled(separable, name, rank)


def _separable_backward(rank: int) -> SeparableConvBackward:
    name = f"separable_conv{rank}d_backward"

    def separable_backward(
        grad_out: Any,
        x: Any,
        depthwise_weight: Any,
        pointwise_weight: Any,
        bias: Any = None,
        *,
        depthwise_bias: Any = None,
        stride: int | Sequence[int] = 1,
        padding: Any = 0,
        dilation: int | Sequence[int] = 1,
        padding_mode: str = "zeros",
        layout: str = "channels_first",
        depthwise_activation: str | None = None,
        activation: str | None = None,
        needs: Needs = SEPARABLE_NEEDS,
        backend: str | None = None,
    ) -> SeparableGrads:
        """Gradients of ``separable_conv{n}d`` in all its operands: the chain rule through both stages.

        Args:
            grad_out: of the shape of the forward's result, (N, K, {out}) or (N, {out}, K).
            x, depthwise_weight, pointwise_weight, bias, depthwise_bias: the forward's; so are the options.
            needs: one or more of ``"x"``, ``"depthwise_weight"``, ``"pointwise_weight"``, ``"depthwise_bias"``,
                ``"bias"``.

        Returns:
            SeparableGrads(x, depthwise_weight, pointwise_weight, depthwise_bias, bias), each of its operand's shape and
            dtype; None where not needed.

        Raises:
            ShapeError, DTypeError, OptionError, BackendUnavailableError: as the forward does.

        >>> import numpy as np
        >>> from npdwconv import {name}
        >>> x = np.ones((1, 2, {fours}), dtype=np.float32)
        >>> depthwise, pointwise = np.ones((2, 1, {threes}), dtype=np.float32), np.ones((5, 2), dtype=np.float32)
        >>> grads = {name}(np.ones((1, 5, {twos}), dtype=np.float32), x, depthwise, pointwise)
        >>> grads.depthwise_weight.shape, grads.pointwise_weight.shape
        ((2, 1, {threes}), (5, 2))
        """
        operands = (x, depthwise_weight, depthwise_bias, pointwise_weight, bias)
        run = kernel(name, "separable_bwd", backend, *operands, grad_out)
        options = ConvOptions(stride, padding, dilation, padding_mode, layout, depthwise_activation)
        plan = separable_plan(name, rank, operands, options, activation)
        first, call = plan.depthwise, plan.depthwise.call
        wanted, grad = asked(call, needs, SEPARABLE_NEEDS, grad_out, plan.shape)
        stages = (first.weight, first.bias, plan.weight, plan.bias)
        named = dict(zip(SEPARABLE_NEEDS, (first.x, first.weight, plan.weight, first.bias, plan.bias), strict=True))
        grads = SeparableGrads(*empty_grads(wanted, named))
        targets = (grads.x, grads.depthwise_weight, grads.depthwise_bias, grads.pointwise_weight, grads.bias)
        run(grad, first.x, *stages, *targets, first.geometry, call.layout, first.activation, plan.activation)
        return _as_stored(grads, plan)

    return spelled(separable_backward, name, rank)


def _as_stored(grads: SeparableGrads, plan: SeparablePlan) -> SeparableGrads:
    depthwise, pointwise = grads.depthwise_weight, grads.pointwise_weight
    return grads._replace(
        depthwise_weight=None if depthwise is None else depthwise[:, None],
        pointwise_weight=None if pointwise is None else pointwise.reshape(plan.weight_shape),
    )


separable_conv1d, separable_conv2d, separable_conv3d = (_separable(rank) for rank in (1, 2, 3))
separable_conv1d_backward, separable_conv2d_backward, separable_conv3d_backward = (
    _separable_backward(rank) for rank in (1, 2, 3)
)

"""Public operators: depthwise convolution in one, two and three dimensions, and its gradients."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

from npdwconv.arguments import check_allocatable, check_depthwise_shape, check_multiplier, check_rank, shape_tuple
from npdwconv.dispatch import kernel
from npdwconv.geometry import ConvGeometry
from npdwconv.layouts import Array, shape_of, spelled, split_shape
from npdwconv.memory import empty
from npdwconv.plans import (
    NEEDS,
    ConvOptions,
    Grads,
    Needs,
    backward,
    backward_kernels,
    convolve,
    depthwise_plan,
    open_call,
)
from npdwconv.recalled import at_once, make_ready, ready_key, recall, remember

_settled: dict[Any, ConvGeometry] = {}


def checked_input_grad(
    name: str, rank: int, grad_out: Any, weight: Any, input_shape: Any, options: ConvOptions
) -> tuple[ConvGeometry, Array, Array, tuple[int, ...], str]:
    call = open_call(name, options.layout)
    with call.explained():
        grad_z = call.activations("grad_out", grad_out, rank)
        w = call.depthwise_weight("weight", weight, rank)
        shape = shape_tuple("input_shape", input_shape)
        check_rank("input_shape", shape, rank, call.layout)
        batch, channels, size = split_shape(call.layout, shape)
        check_multiplier("weight", w.shape[0], channels)
        geometry = options.geometry(size, w.shape[1:])
        needed = shape_of(call.layout, batch, w.shape[0], geometry.out)
        call.require("grad_out", grad_z, needed, f"the result's shape for an input of shape {shape}")
        check_allocatable(shape_of(call.layout, batch, channels, geometry.padded), w.itemsize)
    return geometry, grad_z, call.operands["weight"], shape, call.layout


def checked_weight_grad(
    name: str, rank: int, grad_out: Any, x: Any, weight_shape: Any, options: ConvOptions
) -> tuple[ConvGeometry, Array, Array, tuple[int, ...], str]:
    call = open_call(name, options.layout)
    with call.explained():
        grad_z = call.activations("grad_out", grad_out, rank)
        xs = call.activations("x", x, rank)
        shape = shape_tuple("weight_shape", weight_shape)
        check_depthwise_shape("weight_shape", shape, rank)
        batch, channels, size = split_shape(call.layout, xs.shape)
        check_multiplier("weight_shape", shape[0], channels)
        geometry = options.geometry(size, shape[2:])
        needed = shape_of(call.layout, batch, shape[0], geometry.out)
        call.require("grad_out", grad_z, needed, f"the result's shape for a weight of shape {shape}")
        check_allocatable(shape, xs.itemsize)
    return geometry, grad_z, xs, shape, call.layout


_CHECKED: dict[str, Callable[..., Any]] = {"input": checked_input_grad, "weight": checked_weight_grad}


def _gradient(
    name: str,
    rank: int,
    part: str,
    operands: tuple[Any, Any],
    shape: Any,
    options: tuple[Any, ...],
    backend: str | None,
) -> Array:
    """The gradient in ``part``, the input or the weight, which has ``shape``; of a call like one before at once.

    ``options``: the first of `ConvOptions`, up to the layout.
    """
    how = (*options, shape)
    ready = ready_key(name, backend, operands, how)
    at_hand = at_once(ready, operands, None)
    if at_hand is not None:
        return at_hand
    run = kernel(name, f"depthwise_bwd_{part}", backend, *operands)
    key, arrays = recall(name, operands, how)
    geometry, layout = None if key is None else _settled.get(key), options[-1]
    if geometry is None:
        geometry, *arrays, shape, layout = _CHECKED[part](name, rank, *arrays, shape, ConvOptions(*options))
        if key is not None:
            remember(_settled, key, geometry)
    first, second = arrays
    result = empty(first, shape)
    of_kernel = (first, second[:, 0], result) if part == "input" else (first, second, result[:, 0])
    run(*of_kernel, geometry, layout)
    make_ready(ready, name, f"depthwise_{part}_ready", backend, of_kernel, (geometry, layout), shape)
    return result


class DepthwiseConv(Protocol):
    """Signature of ``depthwise_conv{n}d``."""

    def __call__(
        self,
        x: Any,
        weight: Any,
        bias: Any = None,
        *,
        stride: int | Sequence[int] = 1,
        padding: Any = 0,
        dilation: int | Sequence[int] = 1,
        padding_mode: str = "zeros",
        layout: str = "channels_first",
        activation: str | None = None,
        backend: str | None = None,
        out: Array | None = None,
    ) -> Array: ...


class DepthwiseConvBackward(Protocol):
    """Signature of ``depthwise_conv{n}d_backward``."""

    def __call__(
        self,
        grad_out: Any,
        x: Any,
        weight: Any,
        bias: Any = None,
        *,
        stride: int | Sequence[int] = 1,
        padding: Any = 0,
        dilation: int | Sequence[int] = 1,
        padding_mode: str = "zeros",
        layout: str = "channels_first",
        activation: str | None = None,
        needs: Needs = NEEDS,
        backend: str | None = None,
    ) -> Grads: ...


class DepthwiseConvInputGrad(Protocol):
    """Signature of ``depthwise_conv{n}d_input_grad``."""

    def __call__(
        self,
        grad_out: Any,
        weight: Any,
        input_shape: Sequence[int],
        *,
        stride: int | Sequence[int] = 1,
        padding: Any = 0,
        dilation: int | Sequence[int] = 1,
        padding_mode: str = "zeros",
        layout: str = "channels_first",
        backend: str | None = None,
    ) -> Array: ...


class DepthwiseConvWeightGrad(Protocol):
    """Signature of ``depthwise_conv{n}d_weight_grad``."""

    def __call__(
        self,
        grad_out: Any,
        x: Any,
        weight_shape: Sequence[int],
        *,
        stride: int | Sequence[int] = 1,
        padding: Any = 0,
        dilation: int | Sequence[int] = 1,
        padding_mode: str = "zeros",
        layout: str = "channels_first",
        backend: str | None = None,
    ) -> Array: ...


def _conv(rank: int) -> DepthwiseConv:
    name = f"depthwise_conv{rank}d"

    def conv(
        x: Any,
        weight: Any,
        bias: Any = None,
        *,
        stride: int | Sequence[int] = 1,
        padding: Any = 0,
        dilation: int | Sequence[int] = 1,
        padding_mode: str = "zeros",
        layout: str = "channels_first",
        activation: str | None = None,
        backend: str | None = None,
        out: Array | None = None,
    ) -> Array:
        """Depthwise convolution over ({spatial}): every channel with kernels of its own.

        ``out[n, c·M + m, {outs}] =
        activation(Σ_{taps} weight[c·M + m, 0, {taps}] · x[n, c, {source}] + bias[c·M + m])``,
        a cross-correlation as in PyTorch's ``conv{n}d(groups=C)`` and ONNX ``Conv`` with ``group = C``. Taps in zero
        padding read nothing.

        Args:
            x: (N, C, {spatial}), or (N, {spatial}, C) with ``layout="channels_last"``; float16, bfloat16, float32 or
                float64, any strides.
            weight: (C·M, 1, {kernel}) in both layouts, of the dtype of ``x``.
            bias: (C·M,) or None.
            stride, dilation: an int, or one per spatial axis.
            padding: an int; one per axis, each an int or a ``(low, high)`` pair; or ``"valid"``, ``"same"``
                (ONNX SAME_UPPER, TensorFlow SAME), ``"same_lower"``, ``"causal"`` (last axis low side only).
            padding_mode: ``"zeros"``, ``"reflect"``, ``"replicate"`` or ``"circular"``.
            activation: a name out of `npdwconv.activations.ACTIVATIONS`, applied after the bias, or None.
            backend: ``"reference"``, ``"numba"``, ``"cuda"``; None leaves the choice to `explain_backend`.
            out: an array of the result's shape and dtype to write to, sharing no memory with the operands.

        Returns:
            (N, C·M, {out}), or (N, {out}, C·M) channels_last; ``out`` itself where it was passed.

        Raises:
            ShapeError: operands do not fit each other, or the kernel exceeds the padded input.
            DTypeError: an operand is no array, or its dtype is not supported or not that of the others.
            OptionError: an option has a value that does not exist, or ``out`` cannot be written to.
            BackendUnavailableError: the backend named cannot run this here.

        >>> import numpy as np
        >>> from npdwconv import {name}
        >>> x = np.ones((1, 2, {fours}), dtype=np.float32)
        >>> weight = np.ones((2, 1, {threes}), dtype=np.float32)
        >>> {name}(x, weight, padding="same").shape
        (1, 2, {fours})
        """
        options = stride, padding, dilation, padding_mode, layout, activation
        return convolve(name, rank, "depthwise", (x, weight, bias), options, backend, out)

    return spelled(conv, name, rank)


def _conv_backward(rank: int) -> DepthwiseConvBackward:
    name = f"depthwise_conv{rank}d_backward"

    def conv_backward(
        grad_out: Any,
        x: Any,
        weight: Any,
        bias: Any = None,
        *,
        stride: int | Sequence[int] = 1,
        padding: Any = 0,
        dilation: int | Sequence[int] = 1,
        padding_mode: str = "zeros",
        layout: str = "channels_first",
        activation: str | None = None,
        needs: Needs = NEEDS,
        backend: str | None = None,
    ) -> Grads:
        """Gradients of ``depthwise_conv{n}d`` in ``x``, ``weight`` and ``bias``, the pre-activation recomputed.

        With ``grad_z = grad_out · activation′(z)``:
        ``grad_x[n, c, {pixels}] = Σ_{{m,{taps}}} weight[c·M + m, 0, {taps}] · grad_z[n, c·M + m, {outs}]`` over the
        outputs whose tap reads that input,
        ``grad_weight[c·M + m, 0, {taps}] = Σ_{{n,{outs}}} grad_z[n, c·M + m, {outs}] · x[n, c, {source}]``,
        ``grad_bias[c·M + m] = Σ_{{n,{outs}}} grad_z[n, c·M + m, {outs}]``
        (the adjoints; derived in docs/mathematics.md).

        Args:
            grad_out: of the shape of the forward's result, (N, C·M, {out}) or (N, {out}, C·M).
            x, weight, bias: the forward's operands; the options are the forward's, too.
            needs: one or more of ``"x"``, ``"weight"``, ``"bias"``: what to compute.

        Returns:
            Grads(x, weight, bias), each of its operand's shape and dtype; None where not needed.

        Raises:
            ShapeError, DTypeError, OptionError, BackendUnavailableError: as the forward does.

        >>> import numpy as np
        >>> from npdwconv import {name}
        >>> x = np.ones((1, 2, {fours}), dtype=np.float32)
        >>> weight = np.ones((2, 1, {threes}), dtype=np.float32)
        >>> grads = {name}(np.ones((1, 2, {twos}), dtype=np.float32), x, weight, needs="weight")
        >>> grads.weight.shape, grads.x is None
        ((2, 1, {threes}), True)
        """
        run = backward_kernels(name, "depthwise", backend, x, weight, bias, grad_out)
        options = ConvOptions(stride, padding, dilation, padding_mode, layout, activation)
        return backward(run, depthwise_plan(name, rank, x, weight, bias, options), grad_out, needs)

    return spelled(conv_backward, name, rank)


def _conv_input_grad(rank: int) -> DepthwiseConvInputGrad:
    name = f"depthwise_conv{rank}d_input_grad"

    def conv_input_grad(
        grad_out: Any,
        weight: Any,
        input_shape: Sequence[int],
        *,
        stride: int | Sequence[int] = 1,
        padding: Any = 0,
        dilation: int | Sequence[int] = 1,
        padding_mode: str = "zeros",
        layout: str = "channels_first",
        backend: str | None = None,
    ) -> Array:
        """The adjoint of ``depthwise_conv{n}d`` in ``x``: bilinear in ``grad_out`` and ``weight``.

        ``⟨depthwise_conv{n}d(x, weight), grad_out⟩ = ⟨x, {name}(grad_out, weight, x.shape)⟩`` for every ``x``. With
        the forward and ``depthwise_conv{n}d_weight_grad`` it closes under differentiation: second derivatives need
        no further operator.

        Args:
            grad_out: (N, C·M, {out}), or (N, {out}, C·M) channels_last.
            weight: (C·M, 1, {kernel}).
            input_shape: the shape of ``x`` in ``layout``; a stride leaves it open, so it must be said.

        Returns:
            An array of shape ``input_shape``.

        Raises:
            ShapeError, DTypeError, OptionError, BackendUnavailableError: as the forward does.

        >>> import numpy as np
        >>> from npdwconv import {name}
        >>> grad_out = np.ones((1, 2, {twos}), dtype=np.float32)
        >>> weight = np.ones((2, 1, {threes}), dtype=np.float32)
        >>> {name}(grad_out, weight, (1, 2, {fours})).shape
        (1, 2, {fours})
        """
        options = stride, padding, dilation, padding_mode, layout
        return _gradient(name, rank, "input", (grad_out, weight), input_shape, options, backend)

    return spelled(conv_input_grad, name, rank)


def _conv_weight_grad(rank: int) -> DepthwiseConvWeightGrad:
    name = f"depthwise_conv{rank}d_weight_grad"

    def conv_weight_grad(
        grad_out: Any,
        x: Any,
        weight_shape: Sequence[int],
        *,
        stride: int | Sequence[int] = 1,
        padding: Any = 0,
        dilation: int | Sequence[int] = 1,
        padding_mode: str = "zeros",
        layout: str = "channels_first",
        backend: str | None = None,
    ) -> Array:
        """The adjoint of ``depthwise_conv{n}d`` in ``weight``: bilinear in ``grad_out`` and ``x``.

        ``⟨depthwise_conv{n}d(x, weight), grad_out⟩ = ⟨weight, {name}(grad_out, x, weight.shape)⟩``
        for every ``weight``.

        Args:
            grad_out: (N, C·M, {out}), or (N, {out}, C·M) channels_last.
            x: (N, C, {spatial}), or (N, {spatial}, C) channels_last.
            weight_shape: (C·M, 1, {kernel}).

        Returns:
            An array of shape ``weight_shape``.

        Raises:
            ShapeError, DTypeError, OptionError, BackendUnavailableError: as the forward does.

        >>> import numpy as np
        >>> from npdwconv import {name}
        >>> grad_out = np.ones((1, 2, {twos}), dtype=np.float32)
        >>> x = np.ones((1, 2, {fours}), dtype=np.float32)
        >>> {name}(grad_out, x, (2, 1, {threes})).shape
        (2, 1, {threes})
        """
        options = stride, padding, dilation, padding_mode, layout
        return _gradient(name, rank, "weight", (grad_out, x), weight_shape, options, backend)

    return spelled(conv_weight_grad, name, rank)


depthwise_conv1d, depthwise_conv2d, depthwise_conv3d = (_conv(rank) for rank in (1, 2, 3))
depthwise_conv1d_backward, depthwise_conv2d_backward, depthwise_conv3d_backward = (
    _conv_backward(rank) for rank in (1, 2, 3)
)
depthwise_conv1d_input_grad, depthwise_conv2d_input_grad, depthwise_conv3d_input_grad = (
    _conv_input_grad(rank) for rank in (1, 2, 3)
)
depthwise_conv1d_weight_grad, depthwise_conv2d_weight_grad, depthwise_conv3d_weight_grad = (
    _conv_weight_grad(rank) for rank in (1, 2, 3)
)

"""Public operators: transposed depthwise convolution in one, two and three dimensions, and its gradients."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

from npdwconv.layouts import Array, spelled
from npdwconv.plans import NEEDS, ConvOptions, Grads, Needs, backward, backward_kernels, convolve, depthwise_plan


class DepthwiseConvTranspose(Protocol):
    """Signature of ``depthwise_conv_transpose{n}d``."""

    def __call__(
        self,
        x: Any,
        weight: Any,
        bias: Any = None,
        *,
        stride: int | Sequence[int] = 1,
        padding: Any = 0,
        output_padding: int | Sequence[int] = 0,
        dilation: int | Sequence[int] = 1,
        layout: str = "channels_first",
        activation: str | None = None,
        backend: str | None = None,
        out: Array | None = None,
    ) -> Array: ...


class DepthwiseConvTransposeBackward(Protocol):
    """Signature of ``depthwise_conv_transpose{n}d_backward``."""

    def __call__(
        self,
        grad_out: Any,
        x: Any,
        weight: Any,
        bias: Any = None,
        *,
        stride: int | Sequence[int] = 1,
        padding: Any = 0,
        output_padding: int | Sequence[int] = 0,
        dilation: int | Sequence[int] = 1,
        layout: str = "channels_first",
        activation: str | None = None,
        needs: Needs = NEEDS,
        backend: str | None = None,
    ) -> Grads: ...


def _transpose(rank: int) -> DepthwiseConvTranspose:
    name = f"depthwise_conv_transpose{rank}d"

    def conv_transpose(
        x: Any,
        weight: Any,
        bias: Any = None,
        *,
        stride: int | Sequence[int] = 1,
        padding: Any = 0,
        output_padding: int | Sequence[int] = 0,
        dilation: int | Sequence[int] = 1,
        layout: str = "channels_first",
        activation: str | None = None,
        backend: str | None = None,
        out: Array | None = None,
    ) -> Array:
        """Transposed depthwise convolution over ({spatial}): the adjoint's map, with a bias and an activation.

        ``out[n, c·M + m, i] = activation(Σ_{taps} weight[c·M + m, 0, {taps}] · x[n, c, o] + bias[c·M + m])`` over the
        ``o`` with ``i = o·stride + t·dilation − low`` on every axis, as PyTorch's ``conv_transpose{n}d(groups=C)`` and
        ONNX ``ConvTranspose``. An axis of extent ``o`` becomes
        ``(o − 1)·stride − low − high + (k − 1)·dilation + 1 + output_padding``; with ``padding="same"`` (or
        ``"same_lower"``, ``"causal"``) it becomes ``o·stride``, and the padding is that of the convolution back.

        Args:
            x: (N, C, {spatial}), or (N, {spatial}, C) with ``layout="channels_last"``.
            weight: (C·M, 1, {kernel}); what PyTorch stores as (C, M, {kernel}), after ``.reshape(C·M, 1, {kernel})``.
            bias: (C·M,) or None.
            output_padding: extra elements at the high end, less than stride or dilation; 0 with a named padding. From
                the stride on, no convolution takes the result back to the extent of ``x``.
            stride, padding, dilation, layout, activation, backend, out: as in ``depthwise_conv{n}d``.

        Returns:
            ``(N, C·M, *spatial)``, or ``(N, *spatial, C·M)`` channels_last; ``out`` itself where it was passed.

        Raises:
            ShapeError: operands do not fit each other, or nothing would be left of the result.
            DTypeError, OptionError, BackendUnavailableError: as ``depthwise_conv{n}d``.

        >>> import numpy as np
        >>> from npdwconv import {name}
        >>> x = np.ones((1, 2, {twos}), dtype=np.float32)
        >>> weight = np.ones((2, 1, {twos}), dtype=np.float32)
        >>> {name}(x, weight, stride=2).shape
        (1, 2, {fours})
        """
        options = stride, padding, dilation, "zeros", layout, activation, output_padding
        return convolve(name, rank, "transpose", (x, weight, bias), options, backend, out)

    return spelled(conv_transpose, name, rank)


def _transpose_backward(rank: int) -> DepthwiseConvTransposeBackward:
    name = f"depthwise_conv_transpose{rank}d_backward"

    def conv_transpose_backward(
        grad_out: Any,
        x: Any,
        weight: Any,
        bias: Any = None,
        *,
        stride: int | Sequence[int] = 1,
        padding: Any = 0,
        output_padding: int | Sequence[int] = 0,
        dilation: int | Sequence[int] = 1,
        layout: str = "channels_first",
        activation: str | None = None,
        needs: Needs = NEEDS,
        backend: str | None = None,
    ) -> Grads:
        """Gradients of ``depthwise_conv_transpose{n}d`` in ``x``, ``weight`` and ``bias``.

        With ``grad_z = grad_out · activation′(z)``: the gradient in ``x`` is the convolution of ``grad_z`` with
        ``weight``, summed over the multiplier; that in ``weight`` correlates ``x[o]`` with ``grad_z[i]``.

        Args:
            grad_out: of the shape of the forward's result.
            x, weight, bias: the forward's operands; the options are the forward's, too.
            needs: one or more of ``"x"``, ``"weight"``, ``"bias"``.

        Returns:
            Grads(x, weight, bias), each of its operand's shape and dtype; None where not needed.

        Raises:
            ShapeError, DTypeError, OptionError, BackendUnavailableError: as the forward does.

        >>> import numpy as np
        >>> from npdwconv import {name}
        >>> x = np.ones((1, 2, {twos}), dtype=np.float32)
        >>> weight = np.ones((2, 1, {twos}), dtype=np.float32)
        >>> grads = {name}(np.ones((1, 2, {fours}), dtype=np.float32), x, weight, stride=2)
        >>> grads.x.shape, grads.weight.shape, grads.bias
        ((1, 2, {twos}), (2, 1, {twos}), None)
        """
        run = backward_kernels(name, "transpose", backend, x, weight, bias, grad_out)
        options = ConvOptions(stride, padding, dilation, "zeros", layout, activation, output_padding, True)
        return backward(run, depthwise_plan(name, rank, x, weight, bias, options), grad_out, needs)

    return spelled(conv_transpose_backward, name, rank)


depthwise_conv_transpose1d, depthwise_conv_transpose2d, depthwise_conv_transpose3d = (
    _transpose(rank) for rank in (1, 2, 3)
)
depthwise_conv_transpose1d_backward, depthwise_conv_transpose2d_backward, depthwise_conv_transpose3d_backward = (
    _transpose_backward(rank) for rank in (1, 2, 3)
)

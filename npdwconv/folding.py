"""Public operator: a batch norm folded into the convolution before it."""

from __future__ import annotations

from math import inf
from numbers import Real
from typing import Any

import numpy as np

from npdwconv.arguments import Call
from npdwconv.errors import OptionError, ShapeError
from npdwconv.kernels.reference.epilogue import widened
from npdwconv.layouts import Array


def fold_batchnorm(
    weight: Any, bias: Any, gamma: Any, beta: Any, mean: Any, var: Any, *, eps: float
) -> tuple[Array, Array]:
    """The weight and bias of one convolution that does what a convolution and its batch norm do.

    ``weight′[k] = s[k] · weight[k]`` and ``bias′[k] = (bias[k] − mean[k]) · s[k] + beta[k]`` with
    ``s = gamma / √(var + eps)`` (inference form of Ioffe & Szegedy, arXiv:1502.03167).

    Args:
        weight: (K, …): depthwise ``(C·M, 1, *kernel)`` or pointwise (K, C), any axes after the output channel.
        bias: (K,) or None.
        gamma, beta, mean, var: (K,), the batch norm's scale, shift, running mean and running variance.
        eps: added to the variance, at least 0.

    Returns:
        ``(weight, bias)``, new arrays of the operands' dtype.

    Raises:
        ShapeError: an operand does not have one entry per output channel.
        DTypeError: an operand is no array, or its dtype is not supported or not that of the others.
        OptionError: ``eps`` is not a finite number of at least 0.

    >>> import numpy as np
    >>> from npdwconv import fold_batchnorm
    >>> one = np.ones(2)
    >>> weight, bias = fold_batchnorm(np.ones((2, 1, 3, 3)), None, 2 * one, one, one, 3 * one, eps=1.0)
    >>> weight[0, 0, 0], bias
    (array([1., 1., 1.]), array([0., 0.]))
    """
    call = Call("fold_batchnorm")
    with call.explained():
        w = call.operand("weight", weight)
        if w.ndim < 1:
            raise ShapeError("weight has no axes; needed (K, …), output channels first")
        b = call.vector("bias", bias, w.shape[0])
        vectors = {"gamma": gamma, "beta": beta, "mean": mean, "var": var}
        g, shift, centre, variance = (widened(_entries(call, name, value, w)) for name, value in vectors.items())
        if isinstance(eps, bool) or not isinstance(eps, Real) or not 0 <= float(eps) < inf:
            raise OptionError(f"eps is {eps!r}; needed a finite number of at least 0")
    return _fold(w, b, g, shift, centre, variance, float(eps))


def _entries(call: Call, name: str, value: Any, weight: Array) -> Array:
    array = call.operand(name, value)
    call.require(name, array, weight.shape[:1], "one per output channel")
    return array


@np.errstate(all="ignore")
def _fold(
    w: Array, b: Array | None, g: Array, shift: Array, mean: Array, var: Array, eps: float
) -> tuple[Array, Array]:
    scale = g / np.sqrt(var + var.dtype.type(eps))
    offset = -mean if b is None else widened(b) - mean
    weight = np.array(widened(w) * scale.reshape(-1, *(1,) * (w.ndim - 1)), dtype=w.dtype, order="C")
    return weight, (offset * scale + shift).astype(w.dtype)

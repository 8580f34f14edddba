"""Layer room: batch norm, with running statistics for inference and batch statistics for training."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from npdwconv.errors import OptionError, ShapeError
from npdwconv.layers.base import Arrays, Layer
from npdwconv.layers.elementwise import gradient, operand, spatial_axes
from npdwconv.layers.initial import floating
from npdwconv.layouts import LAYOUTS, Array, split_shape
from npdwconv.options import integer, one_of
from npdwconv.precision import accumulator


class BatchNorm(Layer):
    """Batch norm over the channels of inputs of any rank, as ``torch.nn.BatchNorm1d/2d/3d``.

    ``y = weight · x̂ + bias`` with ``x̂ = (x − mean) / √(var + eps)`` (S. Ioffe, C. Szegedy, arXiv:1502.03167). The
    statistics are the running ones, until `train` asks for the batch's: mean and biased variance over all axes but the
    channels', of which ``running ← (1 − momentum) · running + momentum · batch`` keeps a record (there with the
    unbiased variance). Sums are taken in float64; 16-bit inputs are computed in float32 and rounded once.

    Args:
        channels: C.
        eps: added to the variance.
        momentum: the weight of a new batch; None weights all batches the same.
        layout: "channels_first" or "channels_last".
        dtype: of ``weight`` and ``bias`` (C,), and of the buffers ``running_mean`` and ``running_var`` (C,).

    Raises:
        OptionError: an argument out of range.
        ShapeError, DTypeError: x does not fit, or in training has only one value a channel.

    >>> norm = BatchNorm(2, dtype="float64").train()
    >>> norm(np.array([[1.0, 5.0], [3.0, 5.0]])).round(3).tolist()
    [[-1.0, 0.0], [1.0, 0.0]]
    >>> norm.buffers["running_mean"].tolist()
    [0.2, 0.5]
    """

    _optional = ("num_batches_tracked",)

    def __init__(
        self,
        channels: int,
        *,
        eps: float = 1e-5,
        momentum: float | None = 0.1,
        layout: str = "channels_first",
        dtype: npt.DTypeLike = np.float32,
    ) -> None:
        super().__init__()
        self.channels = integer("channels", channels, least=0)
        self.layout = one_of("layout", layout, LAYOUTS)
        self.eps = _within("eps", eps, 0.0, float("inf"))
        self.momentum = None if momentum is None else _within("momentum", momentum, 0.0, 1.0)
        ones, zeros = np.ones(self.channels, floating(dtype)), np.zeros(self.channels, floating(dtype))
        self._params = Arrays(weight=ones, bias=zeros)
        self._buffers = {
            "running_mean": zeros.copy(),
            "running_var": ones.copy(),
            "num_batches_tracked": np.zeros((), np.int64),
        }
        self._packed: tuple[Array, Array] | None = None

    def __repr__(self) -> str:
        return f"BatchNorm({self.channels})"

    @property
    def over(self) -> tuple[int, str]:
        """How many channels there are, and where."""
        return self.channels, self.layout

    def forward(self, x: Any) -> Array:
        weight = self._params["weight"]
        checked = self._checked(x)
        wide = checked.astype(accumulator(weight.dtype), copy=False)
        with np.errstate(all="ignore"):
            mean, inverse = self._batch(wide) if self.training else self._running(wide)
            y = (wide - mean) * self._scale(inverse, wide) + self._column(self._params["bias"], wide)
        self._keep(checked, mean, inverse, self.training)
        return np.asarray(y, dtype=weight.dtype)

    def backward(self, grad_out: Any) -> Array:
        """The gradient in ``x``; with batch statistics also through these.

        With ``scale = weight / √(var + eps)`` and n values a channel: ``grad_bias = Σ g``, ``grad_weight = Σ g · x̂``,
        ``grad_x = scale · g``, and of batch statistics ``grad_x = scale · (g − (grad_bias + x̂ · grad_weight) / n)``
        (arXiv:1502.03167, section 3).
        """
        x, mean, inverse, batch = self._recall()
        grad = gradient(self, grad_out, x, x.shape)
        g = grad.astype(mean.dtype, copy=False)
        axes = self._others(g)
        with np.errstate(all="ignore"):
            normal = (x.astype(g.dtype, copy=False) - mean) * inverse
            sums = {
                "weight": (g * normal).sum(axis=axes, dtype=np.float64),
                "bias": g.sum(axis=axes, dtype=np.float64),
            }
            if batch:
                weight_sum, bias_sum = (self._column(total, g) for total in sums.values())
                g = g - (bias_sum + normal * weight_sum) / (x.size // max(self.channels, 1))
            grad_x = np.asarray(g * self._scale(inverse, g), dtype=x.dtype)
            self._fill({name: total.astype(x.dtype) for name, total in sums.items()})
        return grad_x

    def _checked(self, x: Any) -> Array:
        checked = operand(self, x, self.layout, weight=self._params["weight"])
        channels = split_shape(self.layout, checked.shape)[1]
        if channels != self.channels:
            raise ShapeError(
                f"{self!r}: x has {channels} channels (x {checked.shape}; {self.layout}), needed {self.channels}; "
                f"check that layout= is the one x is in"
            )
        return checked

    def _batch(self, x: Array) -> tuple[Array, Array]:
        """Mean and 1/√(var + eps) of this batch, of which the running statistics take note."""
        axes, count = self._others(x), x.size // max(self.channels, 1)
        if count < 2:
            raise ShapeError(
                f"{self!r}: x has shape {x.shape}, {count} values a channel; batch statistics need at least 2"
            )
        mean = x.mean(axis=axes, dtype=np.float64)
        var = np.square(x - self._column(mean, x)).mean(axis=axes, dtype=np.float64)
        self._note(mean, var * count / (count - 1))
        return self._column(mean, x), self._column(1 / np.sqrt(var + self.eps), x)

    def _note(self, mean: Array, var: Array) -> None:
        batches = self._buffers["num_batches_tracked"]
        batches += 1
        share = 1 / float(batches) if self.momentum is None else self.momentum
        for name, value in (("running_mean", mean), ("running_var", var)):
            held = self._buffers[name]
            held[...] = (1 - share) * held.astype(np.float64) + share * value

    def _running(self, x: Array) -> tuple[Array, Array]:
        mean, inverse = self._packed or self._statistics()
        return self._column(mean, x), self._column(inverse, x)

    def _statistics(self) -> tuple[Array, Array]:
        mean, var = (self._buffers[name].astype(np.float64) for name in ("running_mean", "running_var"))
        return mean, 1 / np.sqrt(var + self.eps)

    def _scale(self, inverse: Array, x: Array) -> Array:
        return inverse * self._column(self._params["weight"], x)

    def _column(self, vector: Array, x: Array) -> Array:
        """One value a channel, in the dtype of ``x`` and as it broadcasts against it."""
        ones = (1,) * (x.ndim - 2) if self.layout == "channels_first" else ()
        return vector.astype(x.dtype, copy=False).reshape(-1, *ones)

    def _others(self, x: Array) -> tuple[int, ...]:
        return (0, *spatial_axes(x.ndim, self.layout))

    def _pack(self) -> None:
        with np.errstate(all="ignore"):
            self._packed = self._statistics()

    def _unpack(self) -> None:
        self._packed = None


def _within(name: str, value: Any, low: float, high: float) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float, np.number)) or not low <= value <= high:
        raise OptionError(f"{name} is {value!r}; needed a number from {low:g} to {high:g}")
    return float(value)

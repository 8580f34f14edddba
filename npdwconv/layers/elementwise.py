"""Layer room: layers without parameters, an activation on its own and the average over space."""

from __future__ import annotations

from typing import Any

import numpy as np

from npdwconv.activations import ACTIVATIONS
from npdwconv.arguments import Call
from npdwconv.errors import ShapeError
from npdwconv.kernels.steps import Step
from npdwconv.layers.base import Layer
from npdwconv.layouts import LAYOUTS, Array
from npdwconv.options import one_of
from npdwconv.precision import accumulator


class Activation(Layer):
    """An activation by its name, where no convolution precedes it that could apply it in its own pass.

    16-bit inputs are computed in float32 and rounded once.

    Raises:
        OptionError: there is no activation of that name.

    >>> Activation("relu6")(np.array([[-1.0, 2.0, 7.0]])).tolist()
    [[0.0, 2.0, 6.0]]
    """

    def __init__(self, name: str) -> None:
        super().__init__()
        self.name = one_of("name", name, ACTIVATIONS)

    def __repr__(self) -> str:
        return f"Activation({self.name!r})"

    def forward(self, x: Any) -> Array:
        z = operand(self, x, "channels_first")
        with np.errstate(all="ignore"):
            y = ACTIVATIONS[self.name].function(z.astype(accumulator(z.dtype), copy=False))
            self._keep(z)
            return np.asarray(y, dtype=z.dtype)

    def backward(self, grad_out: Any) -> Array:
        (z,) = self._recall()
        grad = gradient(self, grad_out, z, z.shape)
        with np.errstate(all="ignore"):
            slope = ACTIVATIONS[self.name].derivative(z.astype(accumulator(z.dtype), copy=False))
            return np.asarray(grad * slope, dtype=z.dtype)


class GlobalAveragePool(Layer):
    """The mean over all spatial axes, ``(N, C, *spatial)`` or ``(N, *spatial, C)`` to (N, C); summed in float64.

    >>> GlobalAveragePool()(np.arange(8.0).reshape(1, 2, 2, 2)).tolist()
    [[1.5, 5.5]]
    """

    def __init__(self, *, layout: str = "channels_first") -> None:
        super().__init__()
        self.layout = one_of("layout", layout, LAYOUTS)

    def __repr__(self) -> str:
        return f"GlobalAveragePool(layout={self.layout!r})"

    def forward(self, x: Any) -> Array:
        whole = operand(self, x, self.layout)
        axes = spatial_axes(whole.ndim, self.layout)
        if 0 in (whole.shape[axis] for axis in axes):
            raise ShapeError(
                f"{self!r}: x has shape {whole.shape}, a mean of nothing; needed spatial extents of at least 1"
            )
        with np.errstate(all="ignore"):
            y = np.asarray(whole.mean(axis=axes, dtype=np.float64), dtype=whole.dtype)
        self._keep(whole.shape, y)
        return y

    def steps(self) -> list[Step] | None:
        return [Step("mean", layout=self.layout)]

    def backward(self, grad_out: Any) -> Array:
        shape, y = self._recall()
        grad = gradient(self, grad_out, y, y.shape)
        axes = spatial_axes(len(shape), self.layout)
        count = np.prod([shape[axis] for axis in axes])
        with np.errstate(all="ignore"):
            each = (grad.astype(np.float64) / count).astype(y.dtype)
        return np.ascontiguousarray(np.broadcast_to(np.expand_dims(each, axes), shape))


def spatial_axes(ndim: int, layout: str) -> tuple[int, ...]:
    """The axes of an activation array that are neither batch nor channels."""
    return tuple(range(2, ndim) if layout == "channels_first" else range(1, ndim - 1))


def operand(layer: Layer, x: Any, layout: str, **fellows: Array) -> Array:
    """What a layer that calls no operator is given: checked as an operator's input of any rank is."""
    call = Call(repr(layer), layout, dict(fellows))
    with call.explained():
        return call.activations("x", x, None)


def gradient(layer: Layer, grad_out: Any, like: Array, shape: tuple[int, ...]) -> Array:
    """The gradient that `backward` is given: of the forward result's shape and dtype."""
    call = Call(f"{layer!r}.backward", operands={"x": like})
    with call.explained():
        grad = call.operand("grad_out", grad_out)
        call.require("grad_out", grad, shape, "the shape of the forward's result")
    return grad

"""Calls room of the verification tests: a random legal call of any operator, drawn from a seed.

Options come from the whole space: paddings by number, by pair and by name, padding modes, strides beyond the kernel,
dilation, multipliers, both layouts, biases, activations; numbers are normal, or spread over many binary orders.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from strategies import LAYOUTS, MODES, moved

import npdwconv
from npdwconv.activations import ACTIVATIONS
from npdwconv.cases import Case
from npdwconv.verify.check import bind
from npdwconv.verify.operators import OPERATORS

Operands = dict[str, Any]
DTYPES = ("float32", "float64", "float16", "bfloat16")


def dtype_named(name: str) -> np.dtype[Any]:
    if name == "bfloat16":
        import ml_dtypes

        return np.dtype(ml_dtypes.bfloat16)
    return np.dtype(name)


@dataclass
class Draw:
    """Where a call's numbers come from; ``largest`` bounds its extents."""

    seed: int
    dtype: str = "float32"
    activations: tuple[str | None, ...] = (None, None, None, *ACTIVATIONS)
    orders: int = 0  # binary orders over which numbers spread; 0 for normal numbers
    largest: int = 7
    modes: tuple[str, ...] = ("zeros", *MODES)
    layouts: tuple[str, ...] = LAYOUTS
    rng: np.random.Generator = field(init=False)

    def __post_init__(self) -> None:
        self.rng = np.random.default_rng(self.seed)

    def one_of(self, choices: Any) -> Any:
        return choices[int(self.rng.integers(len(choices)))]

    def between(self, least: int, most: int) -> int:
        return int(self.rng.integers(least, most + 1))

    def axes(self, rank: int, least: int, most: int) -> tuple[int, ...]:
        return tuple(self.between(least, most) for _ in range(rank))

    def numbers(self, *shape: int) -> np.ndarray:
        values = self.rng.standard_normal(shape)
        if self.orders:
            values = np.ldexp(values, self.rng.integers(-self.orders, self.orders + 1, shape))
            values[self.rng.random(shape) < 0.1] = 0.0
        return values.astype(dtype_named(self.dtype))

    def maybe(self, *shape: int) -> np.ndarray | None:
        return self.numbers(*shape) if self.rng.random() < 0.6 else None

    def geometry(self, rank: int, mode: str) -> tuple[tuple[int, ...], tuple[int, ...], dict[str, Any]]:
        """Extents of image and kernel, and the options that relate them."""
        kernel, stride = self.axes(rank, 1, 4 if rank < 3 else 3), self.axes(rank, 1, 3)
        dilation = self.axes(rank, 1, 2)
        size, pads = [], []
        for k, d in zip(kernel, dilation, strict=True):
            span = (k - 1) * d + 1
            low, high = self.axes(2, 0, 3)
            least = {"zeros": 1, "replicate": 1, "reflect": max(low, high) + 1, "circular": max(low, high, 1)}[mode]
            size.append(max(least, span - low - high) + self.between(0, self.largest // rank))
            pads.append((low, high))
        named = ("same", "same_lower", "causal", None, None) if mode == "zeros" else (None,)
        padding = self.one_of(named) or tuple(pads)
        return tuple(size), kernel, {"stride": stride, "dilation": dilation, "padding": padding}


def call(op: str, draw: Draw) -> tuple[Operands, dict[str, Any]]:
    """Operands and options of a legal call of ``op``."""
    stem = op.removesuffix("_backward").removesuffix("_input_grad").removesuffix("_weight_grad")
    operands, options = _FORWARDS[_kind(stem)](stem, draw)
    operands = {name: array for name, array in operands.items() if array is not None}
    if op == stem:
        return operands, options
    run_only = {name: value for name, value in options.items() if not name.endswith("activation")}
    out = getattr(npdwconv, stem)(**operands, **run_only, backend="reference")
    if op.endswith("_backward"):
        if isinstance(out, tuple):
            operands["grad_next_state"] = draw.numbers(*out[1].shape)
            out = out[0]
        return {"grad_out": draw.numbers(*out.shape)} | operands, options
    options.pop("activation", None)
    wanted = "x" if op.endswith("_input_grad") else "weight"
    left = {name: array for name, array in operands.items() if name not in (wanted, "bias")}
    told = {"input_shape" if wanted == "x" else "weight_shape": operands[wanted].shape}
    return {"grad_out": draw.numbers(*out.shape)} | left, options | told


def observed(op: str, operands: Operands, options: dict[str, Any], backend: str) -> Case:
    """The case of what a backend of ours returns."""
    with np.errstate(all="ignore"):
        found = getattr(npdwconv, op)(**operands, **options, backend=backend)
    return bind(op, found._asdict() if hasattr(found, "_asdict") else found, (), {**operands, **options})


def _kind(stem: str) -> str:
    return next(kind for kind in _FORWARDS if kind in stem)


def _layout(draw: Draw, options: dict[str, Any]) -> str:
    options["layout"] = draw.one_of(draw.layouts)
    return options["layout"]


def _depthwise(stem: str, draw: Draw) -> tuple[Operands, dict[str, Any]]:
    rank, mode = int(stem[-2]), draw.one_of(draw.modes)
    size, kernel, options = draw.geometry(rank, mode)
    batch, channels, multiplier = draw.axes(3, 1, 3)
    options |= {"padding_mode": mode, "activation": draw.one_of(draw.activations)}
    x = moved(draw.numbers(batch, channels, *size), _layout(draw, options))
    outputs = channels * multiplier
    return {"x": x, "weight": draw.numbers(outputs, 1, *kernel), "bias": draw.maybe(outputs)}, options


def _transposed(stem: str, draw: Draw) -> tuple[Operands, dict[str, Any]]:
    rank = int(stem[-2])
    size, kernel, options = draw.geometry(rank, "zeros")
    if not isinstance(options["padding"], str):
        pads = []
        for n, k, s, d in zip(size, kernel, options["stride"], options["dilation"], strict=True):
            low = draw.between(0, min(2, (n - 1) * s + (k - 1) * d))
            pads.append((low, draw.between(0, min(2, (n - 1) * s + (k - 1) * d - low))))
        options["padding"] = tuple(pads)
    batch, channels, multiplier = draw.axes(3, 1, 3)
    options["activation"] = draw.one_of(draw.activations)
    x = moved(draw.numbers(batch, channels, *size), _layout(draw, options))
    outputs = channels * multiplier
    return {"x": x, "weight": draw.numbers(outputs, 1, *kernel), "bias": draw.maybe(outputs)}, options


def _pointwise(stem: str, draw: Draw) -> tuple[Operands, dict[str, Any]]:
    batch, rank = draw.between(1, 3), draw.between(1, 3)
    inputs, outputs = draw.axes(2, 1, 3 * draw.largest)
    options: dict[str, Any] = {"activation": draw.one_of(draw.activations)}
    x = moved(draw.numbers(batch, inputs, *draw.axes(rank, 1, draw.largest // rank + 1)), _layout(draw, options))
    return {"x": x, "weight": draw.numbers(outputs, inputs), "bias": draw.maybe(outputs)}, options


def _separable(stem: str, draw: Draw) -> tuple[Operands, dict[str, Any]]:
    given, options = _depthwise(stem, draw)
    outputs, inputs = draw.between(1, 6), given["weight"].shape[0]
    options["depthwise_activation"] = draw.one_of(draw.activations)
    operands = {
        "x": given["x"],
        "depthwise_weight": given["weight"],
        "pointwise_weight": draw.numbers(outputs, inputs),
        "bias": draw.maybe(outputs),
        "depthwise_bias": given["bias"],
    }
    return operands, options


def _tokens(stem: str, draw: Draw) -> tuple[Operands, dict[str, Any]]:
    size, kernel, options = draw.geometry(2, "zeros")
    batch, channels, multiplier = draw.axes(3, 1, 3)
    options |= {"grid": size, "activation": draw.one_of(draw.activations)}
    x = draw.numbers(batch, size[0] * size[1], channels)
    outputs = channels * multiplier
    return {"x": x, "weight": draw.numbers(outputs, 1, *kernel), "bias": draw.maybe(outputs)}, options


def _causal(stem: str, draw: Draw) -> tuple[Operands, dict[str, Any]]:
    batch, channels, multiplier = draw.axes(3, 1, 3)
    width, taps, outputs = draw.between(0, draw.largest), draw.between(1, 4), channels * multiplier
    options: dict[str, Any] = {"activation": draw.one_of(draw.activations)}
    x = moved(draw.numbers(batch, channels, width), _layout(draw, options))
    operands = {
        "x": x,
        "weight": draw.numbers(outputs, 1, taps),
        "bias": draw.maybe(outputs),
        "state": draw.maybe(batch, channels, taps - 1),
    }
    return operands, options


_FORWARDS = {
    "transpose": _transposed,
    "separable": _separable,
    "pointwise": _pointwise,
    "tokens": _tokens,
    "causal": _causal,
    "depthwise_conv": _depthwise,
}
NAMES = tuple(OPERATORS)

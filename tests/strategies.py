"""Cases for laws and oracles: legal depthwise calls over the option space, illegal ones, small integers as operands.

Sums of such products are exact in float32 whatever their order, so the laws hold to the last bit.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from hypothesis import strategies as st

import npdwconv

RANKS = (1, 2, 3)
LAYOUTS = ("channels_first", "channels_last")
MODES = ("zeros", "reflect", "replicate", "circular")
NAMED = ("valid", "same", "same_lower", "causal")
MOST = {1: 9, 2: 6, 3: 4}  # extents by rank


def op(stem: str, rank: int) -> Any:
    """The operator of that rank: ``op("depthwise_conv{}d_input_grad", 2)``."""
    return getattr(npdwconv, stem.format(rank))


def dot(one: np.ndarray, other: np.ndarray) -> float:
    """⟨one, other⟩ of arrays that must agree in shape."""
    if one.shape != other.shape:
        raise ValueError(f"shapes {one.shape} and {other.shape}")
    return float(np.sum(one.astype(np.float64) * other.astype(np.float64)))


def integers(rng: np.random.Generator, shape: tuple[int, ...], dtype: Any = np.float32) -> np.ndarray:
    """Small integers stored in floats."""
    return rng.integers(-4, 5, shape).astype(dtype)


def same_bits(one: np.ndarray, other: np.ndarray) -> bool:
    """Equal in shape, dtype and every bit (signs of zeros and NaN payloads included)."""
    return one.shape == other.shape and one.dtype == other.dtype and one.tobytes() == other.tobytes()


def moved(array: np.ndarray, layout: str) -> np.ndarray:
    """An array (N, C, …) in ``layout``."""
    return array if layout == "channels_first" else np.ascontiguousarray(np.moveaxis(array, 1, -1))


def channels_first(array: np.ndarray, layout: str) -> np.ndarray:
    """A view (N, C, …) of an array in ``layout``."""
    return array if layout == "channels_first" else np.moveaxis(array, -1, 1)


@dataclass(frozen=True)
class Case:
    """A legal depthwise call: shapes, options, and where its numbers come from."""

    rank: int
    batch: int
    channels: int
    multiplier: int
    size: tuple[int, ...]
    kernel: tuple[int, ...]
    options: dict[str, Any]
    seed: int
    rng: np.random.Generator = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "rng", np.random.default_rng(self.seed))

    @property
    def layout(self) -> str:
        return self.options["layout"]

    @property
    def outputs(self) -> int:
        return self.channels * self.multiplier

    @property
    def weight_shape(self) -> tuple[int, ...]:
        return (self.outputs, 1, *self.kernel)

    def x(self) -> np.ndarray:
        return moved(integers(self.rng, (self.batch, self.channels, *self.size)), self.layout)

    def weight(self) -> np.ndarray:
        return integers(self.rng, self.weight_shape)

    def bias(self) -> np.ndarray:
        return integers(self.rng, (self.outputs,))

    def like(self, array: np.ndarray) -> np.ndarray:
        """Other integers of the same shape."""
        return integers(self.rng, array.shape, array.dtype)

    def conv(self, x: np.ndarray, weight: np.ndarray, bias: np.ndarray | None = None, **more: Any) -> np.ndarray:
        return op("depthwise_conv{}d", self.rank)(x, weight, bias, **self.options | more)

    def input_grad(self, grad_out: np.ndarray, weight: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
        return op("depthwise_conv{}d_input_grad", self.rank)(grad_out, weight, shape, **self.options)

    def weight_grad(self, grad_out: np.ndarray, x: np.ndarray) -> np.ndarray:
        return op("depthwise_conv{}d_weight_grad", self.rank)(grad_out, x, self.weight_shape, **self.options)

    def backward(self, grad_out: np.ndarray, *operands: Any, **more: Any) -> Any:
        return op("depthwise_conv{}d_backward", self.rank)(grad_out, *operands, **self.options | more)


@st.composite
def cases(
    draw: Any,
    ranks: tuple[int, ...] = RANKS,
    modes: tuple[str, ...] = MODES,
    strides: int = 3,
    layouts: tuple[str, ...] = LAYOUTS,
    named: bool = True,
) -> Case:
    """Legal calls: asymmetric and named paddings, kernels wider than the image, every mode, stride and dilation."""
    rank = draw(st.sampled_from(ranks))
    per_axis = lambda least, most: tuple(draw(st.integers(least, most)) for _ in range(rank))  # noqa: E731 - it closes over draw and rank
    kernel, stride, dilation = per_axis(1, 4 - rank // 3), per_axis(1, strides), per_axis(1, 2)
    mode = draw(st.sampled_from(modes))
    spans = [(k - 1) * d + 1 for k, d in zip(kernel, dilation, strict=True)]
    least = [1 if mode == "zeros" else span for span in spans]
    size = tuple(n + draw(st.integers(0, MOST[rank] - 1)) for n in least)
    name = draw(st.sampled_from(NAMED[1:])) if named and draw(st.booleans()) else None
    pads = name or tuple(draw(_pairs(n, span, mode)) for n, span in zip(size, spans, strict=True))
    options = {"stride": stride, "dilation": dilation, "padding": pads, "padding_mode": mode}
    options["layout"] = draw(st.sampled_from(layouts))
    batch, channels, multiplier = (draw(st.integers(1, 3)) for _ in range(3))
    return Case(rank, batch, channels, multiplier, size, kernel, options, draw(st.integers(0, 2**32 - 1)))


def _pairs(size: int, span: int, mode: str) -> Any:
    most = {"reflect": min(size - 1, 3), "circular": min(size, 3)}.get(mode, 3)
    lows = st.integers(0, most)
    return lows.flatmap(lambda low: st.tuples(st.just(low), _at_least(max(0, span - size - low), most)))


def _at_least(least: int, most: int) -> Any:
    return st.integers(least, max(least, most))


@st.composite
def transposed(draw: Any) -> tuple[Case, dict[str, Any]]:
    """A legal transposed call: the case gives shapes and numbers, the dict its options."""
    case = draw(cases(modes=("zeros",), named=False))
    strides, dilations = case.options["stride"], case.options["dilation"]
    extra = tuple(draw(st.integers(0, max(s, d) - 1)) for s, d in zip(strides, dilations, strict=True))
    full = [
        (n - 1) * s + (k - 1) * d + 1 + more
        for n, s, k, d, more in zip(case.size, strides, case.kernel, dilations, extra, strict=True)
    ]
    pads = []
    for extent in full:
        low = draw(st.integers(0, min(2, extent - 1)))
        pads.append((low, draw(st.integers(0, min(2, extent - 1 - low)))))
    options = {key: case.options[key] for key in ("stride", "dilation", "layout")}
    if draw(st.booleans()):
        return case, options | {"padding": draw(st.sampled_from(NAMED[1:]))}
    return case, options | {"padding": tuple(pads), "output_padding": extra}


ILLEGAL: dict[str, tuple[Any, type[Exception]]] = {
    "stride": (st.sampled_from([0, -1, 1.0, True, None, "2", (1, 1, 1, 1), (0,)]), npdwconv.OptionError),
    "dilation": (st.sampled_from([0, -3, 2.0, False, None, (2, 2, 2, 2)]), npdwconv.OptionError),
    "padding": (
        st.sampled_from([-1, 1.0, True, None, "SAME", "full", (1,) * 4, ((1, 2, 3),), ((0, -1),) * 3]),
        npdwconv.OptionError,
    ),
    "padding_mode": (st.sampled_from(["", "Zeros", "symmetric", None, 0]), npdwconv.OptionError),
    "layout": (st.sampled_from(["NCHW", "", None, 1]), npdwconv.OptionError),
    "activation": (st.sampled_from(["", "RELU", "tanh", 1, np.tanh]), npdwconv.OptionError),
    "backend": (st.sampled_from(["", "NumPy", 1]), npdwconv.OptionError),
    "out": (st.sampled_from([[], 1.0, "out"]), npdwconv.DTypeError),
    "strides": (st.just(1), TypeError),
}


@st.composite
def illegal(draw: Any) -> tuple[Case, dict[str, Any], type[Exception]]:
    """A legal case, an option that makes a call of it illegal, and the error that this must raise."""
    name = draw(st.sampled_from(sorted(ILLEGAL)))
    values, error = ILLEGAL[name]
    return draw(cases(modes=("zeros",))), {name: draw(values)}, error

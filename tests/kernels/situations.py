"""Calls of every operator at extents about a kernel's tiles, for comparing one backend with another.

Extents are multiples of the machine's lanes, one less or one more: NPDWCONV_LANES changes what is called.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from math import prod
from typing import Any

import numpy as np
import pytest
from strategies import LAYOUTS, moved

import npdwconv
from npdwconv import layers
from npdwconv.activations import ACTIVATIONS
from npdwconv.kernels.cpu.machine import machine

LANES = machine().lanes(4)
DTYPES = ("float32", "float64", "float16", "bfloat16")
Arrays = dict[str, Any]

# name -> dtype in which it is summed, and the largest relative error of rounding to it
PRECISION = {"float32": (2.0**-24, 2.0**-24), "float64": (2.0**-53, 2.0**-53)}
PRECISION |= {"float16": (2.0**-24, 2.0**-11), "bfloat16": (2.0**-24, 2.0**-8)}


@dataclass(frozen=True)
class Situation:
    """An operator's call: shapes of its operands in channels_first, and options."""

    name: str
    operator: str
    shapes: dict[str, tuple[int, ...]]
    options: dict[str, Any] = field(default_factory=dict)
    terms: int = 1  # products in a result's sum
    layouts: tuple[str, ...] = LAYOUTS

    def operands(self, kind: str, layout: str, seed: int = 0) -> Arrays:
        """Small integers in float32 for the kind "integers", otherwise normal numbers of that dtype."""
        rng = np.random.default_rng(seed)
        return {name: moved_if(name, numbers(rng, kind, shape), layout) for name, shape in self.shapes.items()}

    def gradients(self, outputs: Arrays, kind: str, seed: int = 1) -> Arrays:
        """What arrives from behind, for each output of the forward."""
        rng = np.random.default_rng(seed)
        names = {"out": "grad_out", "next_state": "grad_next_state"}
        return {names[name]: numbers(rng, kind, array.shape) for name, array in outputs.items()}

    def forward(self, operands: Arrays, backend: str, layout: str, **more: Any) -> Arrays:
        """The forward's results by name."""
        options = self.options | ({} if self.operator == "depthwise_conv_tokens" else {"layout": layout}) | more
        found = getattr(npdwconv, self.operator)(**operands, **options, backend=backend)
        return dict(zip(("out", "next_state"), found, strict=True)) if isinstance(found, tuple) else {"out": found}

    def backward(self, operands: Arrays, gradients: Arrays, backend: str, layout: str, **more: Any) -> Arrays:
        """The backward's results by name; those that are None left out."""
        options = self.options | ({} if self.operator == "depthwise_conv_tokens" else {"layout": layout}) | more
        run = getattr(npdwconv, f"{self.operator}_backward")
        found = run(**gradients, **operands, **options, backend=backend)
        return {f"grad {name}": array for name, array in found._asdict().items() if array is not None}

    def both(self, operands: Arrays, gradients: Arrays, backend: str, layout: str, **more: Any) -> Arrays:
        """The results of the forward and of the backward."""
        return self.forward(operands, backend, layout, **more) | self.backward(
            operands, gradients, backend, layout, **more
        )

    @property
    def activations(self) -> tuple[str, ...]:
        """The names of its options that are activations."""
        return ("depthwise_activation", "activation") if "separable" in self.operator else ("activation",)


def numbers(rng: np.random.Generator, kind: str, shape: tuple[int, ...]) -> np.ndarray:
    if kind == "integers":
        return rng.integers(-4, 5, shape).astype(np.float32)
    return rng.standard_normal(shape).astype(dtype_named(kind))


def dtype_named(name: str) -> np.dtype[Any]:
    if name == "bfloat16":
        import ml_dtypes

        return np.dtype(ml_dtypes.bfloat16)
    return np.dtype(name)


def moved_if(name: str, array: np.ndarray, layout: str) -> np.ndarray:
    return moved(array, layout) if name == "x" else array


# what is called


def depthwise(
    name: str, channels: int, size: tuple[int, ...], kernel: tuple[int, ...], multiplier: int = 1, **options: Any
) -> Situation:
    operator = f"depthwise_conv{len(size)}d"
    return Situation(name, operator, _shapes(channels, size, kernel, multiplier), options, prod(kernel) * multiplier)


def transposed(
    name: str, channels: int, size: tuple[int, ...], kernel: tuple[int, ...], multiplier: int = 1, **options: Any
) -> Situation:
    operator = f"depthwise_conv_transpose{len(size)}d"
    return Situation(name, operator, _shapes(channels, size, kernel, multiplier), options, prod(kernel) * multiplier)


def pointwise(name: str, channels: int, outputs: int, size: tuple[int, ...], batch: int = 2) -> Situation:
    shapes = {"x": (batch, channels, *size), "weight": (outputs, channels), "bias": (outputs,)}
    return Situation(name, "pointwise_conv", shapes, terms=max(channels, outputs))


def separable(
    name: str, channels: int, outputs: int, size: tuple[int, ...], kernel: tuple[int, ...], **options: Any
) -> Situation:
    shapes = {
        "x": (2, channels, *size),
        "depthwise_weight": (channels, 1, *kernel),
        "pointwise_weight": (outputs, channels),
        "bias": (outputs,),
        "depthwise_bias": (channels,),
    }
    terms = prod(kernel) + max(channels, outputs)
    return Situation(name, f"separable_conv{len(size)}d", shapes, options, terms)


def tokens(name: str, channels: int, grid: tuple[int, int], **options: Any) -> Situation:
    shapes = {"x": (2, channels, prod(grid)), "weight": (channels, 1, 3, 3), "bias": (channels,)}
    return Situation(name, "depthwise_conv_tokens", shapes, options | {"grid": grid}, 9, ("channels_last",))


def causal(name: str, channels: int, length: int, taps: int, *, state: bool) -> Situation:
    shapes = {"x": (2, channels, length), "weight": (channels, 1, taps), "bias": (channels,)}
    shapes |= {"state": (2, channels, taps - 1)} if state else {}
    return Situation(name, "causal_depthwise_conv1d", shapes, terms=taps)


def _shapes(
    channels: int, size: tuple[int, ...], kernel: tuple[int, ...], multiplier: int
) -> dict[str, tuple[int, ...]]:
    outputs = channels * multiplier
    return {"x": (2, channels, *size), "weight": (outputs, 1, *kernel), "bias": (outputs,)}


L = LANES

# one of every operator: what is run on every dtype and at every number of lanes
CORE = (
    depthwise("k3", L + 1, (5, L + 1), (3, 3), padding=1),
    depthwise("k5-s2", L - 1, (9, 2 * L + 1), (5, 5), stride=2, padding="same"),
    depthwise("rows-of-one-tile", 8 * L + 1, (4, 13), (3, 5), stride=2, padding="same"),
    transposed("transpose-k3-s2", L + 1, (3, L - 1), (3, 3), stride=2, padding=1, output_padding=1),
    pointwise("pointwise", L + 1, 2 * L + 3, (3, L - 1)),
    separable("separable-k3", L + 1, L - 1, (4, L + 1), (3, 3), padding=1),
)
# what else each operator can be asked for
MORE = (
    depthwise("k3-multiplier-2", L // 2 + 1, (4, L), (3, 3), 2, padding=1),
    depthwise("k2x4-s2x1-d1x2", L + 1, (7, L + 2), (2, 4), stride=(2, 1), dilation=(1, 2), padding=((2, 1), (0, 3))),
    depthwise("k3-reflect", L + 1, (4, L + 1), (3, 3), padding=(2, 1), padding_mode="reflect"),
    depthwise("1d-k4-causal", L + 1, (2 * L + 1,), (4,), padding="causal"),
    depthwise("3d-k3", L - 1, (3, 4, L + 1), (3, 3, 3), padding=1),
    pointwise("pointwise-1-pixel", L + 1, 4 * L + 1, ()),
    depthwise("k13-covers", 2 * L, (7, L // 2 - 1), (13, 2 * L - 1), padding="same"),
    tokens("tokens", L + 1, (5, L - 1)),
    causal("causal-state", L - 1, L, 4, state=True),
)


def _around(middle: int) -> tuple[int, int, int]:
    return middle - 1, middle, middle + 1


def _swept() -> Iterator[Situation]:
    for c in (*_around(L), *_around(2 * L), 4 * L + 1):
        yield depthwise(f"c{c}", c, (5, 6), (3, 3), padding=1)
        yield pointwise(f"pointwise-c{c}", c, 5, (3, 5))
        yield pointwise(f"pointwise-k{c}", 5, c, (3, 5))
        yield separable(f"separable-c{c}", c, c, (5, 6), (3, 3), padding=1)
    for w in (1, 2, 3, *_around(7), *_around(L), *_around(2 * L), 4 * L + 1):
        yield depthwise(f"w{w}", 3, (4, w), (3, 3), padding=1)
        yield depthwise(f"w{w}-s2", 3, (4, w), (3, 3), stride=2, padding=1)
        yield pointwise(f"pointwise-w{w}", 7, 9, (1, w))
    for w in (1, 2, 3, 4, 6, 8):
        yield depthwise(f"one-tile-w{w}", 8 * L, (5, w), (3, 3), padding=1)
        yield depthwise(
            f"one-tile-w{w}-k7-s2", 9 * L - 1, (5, w), (7, 7), stride=2, dilation=(1, 2), padding=((3, 3), (5, 7))
        )
    yield depthwise("one-tile-multiplier-2", 4 * L + 1, (4, 7), (3, 3), 2, padding=1)
    for h in range(1, 10):
        yield depthwise(f"h{h}", L + 1, (h, L + 1), (3, 3), padding=1)
    for d in (1, 2, 3, 4):
        yield depthwise(f"3d-d{d}", 3, (d, 5, 6), (3, 3, 3), padding=1)
        yield depthwise(f"3d-d{d}-s2", L + 1, (d, 5, 6), (2, 3, 3), stride=(2, 1, 2), padding=1)
    for k in (1, 2, 4, 5, 6, 9, 13, 31):
        yield depthwise(f"k{k}", L + 1, (k + 2, k + 3), (k, k), padding=k // 2)
        yield depthwise(f"1d-k{k}", L + 1, (k + L,), (k,), padding=k // 2)
        yield depthwise(f"k{k}-wider-than-the-image", 5, (3, 2), (k, k), padding=k)
    for s in (3, 4, 5):
        for d in (1, 2, 3):
            yield depthwise(f"s{s}-d{d}", L + 1, (11, 2 * L + 3), (3, 3), stride=s, dilation=d, padding=d)
            yield transposed(f"transpose-s{s}-d{d}", L + 1, (3, 5), (3, 3), stride=s, dilation=d, padding=1)
    for m in (2, 3, 4):
        yield depthwise(f"multiplier-{m}", L + 1, (5, 7), (3, 3), m, padding=1)
        yield transposed(f"transpose-multiplier-{m}", L // 2 + 1, (3, 5), (3, 3), m, stride=2, padding=1)
    for name in ("valid", "same", "same_lower", "causal"):
        yield depthwise(f"padding-{name}", L + 1, (6, L + 3), (4, 3), stride=(1, 2), padding=name)
    for mode in ("reflect", "replicate", "circular"):
        yield depthwise(f"1d-{mode}", 3, (L + 2,), (5,), padding=((3, 2),), padding_mode=mode)
        yield depthwise(f"3d-{mode}", 3, (3, 4, 5), (3, 3, 3), padding=1, padding_mode=mode)
        yield separable(f"separable-{mode}", 3, 4, (6, L + 1), (3, 3), stride=2, padding=2, padding_mode=mode)
    for p in _around(2 * L):
        yield tokens(f"tokens-{p}", p, (4, 5), stride=2, dilation=2)
        yield causal(f"causal-{p}", 3, p, 3, state=True)
        yield causal(f"causal-short-{p}", p, 1, 4, state=True)
    yield depthwise("k3-d2-uneven", L, (9, L + 3), (3, 3), dilation=2, padding=((2, 1), (0, 3)))
    yield depthwise("k7", 2 * L + 1, (7, 7), (7, 7), padding=3)
    yield depthwise("k3-replicate", L + 1, (4, L + 1), (3, 3), padding=(2, 1), padding_mode="replicate")
    yield depthwise("k3-circular", L + 1, (4, L + 1), (3, 3), padding=((1, 2), 1), padding_mode="circular")
    yield transposed("transpose-1d-k4-s2-same", L, (L + 1,), (4,), stride=2, padding="same")
    yield pointwise("pointwise-thin", 3, 1, (L + 1,), 3)
    yield causal("causal", L + 1, L + 1, 4, state=False)
    yield depthwise("far-dilated", L + 1, (33, 33), (3, 3), dilation=12, padding=12)
    yield depthwise("large", 2 * L + 3, (40, 41), (3, 3), padding=1)
    for k, stride in ((5, 1), (5, 2), (7, 2)):
        yield depthwise(f"k{k}-s{stride}-many-rows", 3, (31, 2 * L + 3), (k, k), stride=stride, padding=k // 2)
    yield pointwise("pointwise-large", 130, 150, (13, 17))
    yield separable("separable-large", 70, 90, (30, 31), (3, 3), stride=2, padding=1)
    for name, extents in (("images", (0, 3, 4, 4)), ("channels", (2, 0, 4, 4)), ("pixels", (2, 3, 4, 0))):
        shapes = {"x": extents, "weight": (extents[1], 1, 3, 3), "bias": (extents[1],)}
        yield Situation(f"no-{name}", "depthwise_conv2d", shapes, {"padding": 2}, 9)
        shapes = {"x": extents, "weight": (5, extents[1]), "bias": (5,)}
        yield Situation(f"pointwise-no-{name}", "pointwise_conv", shapes)


SWEPT = tuple(_swept())
BY_NAME = {situation.name: situation for situation in (*CORE, *MORE, *SWEPT)}


def frozen_network(layout: str) -> tuple[layers.Layer, np.ndarray]:
    """A frozen sequence with a stem, a block and a residual, its weights small integers, and an input for it."""
    rng, options = np.random.default_rng(0), {"layout": layout}
    block = layers.Sequential(
        layers.PointwiseConv(L - 1, 2 * L + 3, activation="relu6", **options),
        layers.DepthwiseConv2d(2 * L + 3, 5, padding="same", activation="relu6", **options),
        layers.PointwiseConv(2 * L + 3, L - 1, **options),
    )
    network = layers.Sequential(
        layers.StandardConv2d(3, L + 1, 3, stride=2, padding="same", **options),
        layers.Activation("relu6"),
        layers.DepthwiseConv2d(L + 1, 3, stride=2, padding="same", activation="relu6", **options),
        layers.PointwiseConv(L + 1, L - 1, **options),
        layers.Residual(block),
    )
    for parameter in network.params.values():
        parameter[...] = rng.integers(-2, 3, parameter.shape)
    return network.freeze(), moved(numbers(rng, "integers", (2, 3, 21, 4 * L - 1)), layout)


def in_turn(turn: int, s: Situation) -> str:
    """The layout in which a situation is called where each is called in one."""
    return s.layouts[turn % len(s.layouts)]


def both_layouts(*situations: Situation, turns: bool = False) -> pytest.MarkDecorator:
    """A test for each situation and layout; in ``turns`` in one layout each, the other is the sweep's."""
    chosen = [
        pytest.param(
            s,
            layout,
            id=f"{s.name}-{layout}",
            marks=[pytest.mark.sweep] if turns and layout != in_turn(turn, s) else [],
        )
        for turn, s in enumerate(situations)
        for layout in s.layouts
    ]
    return pytest.mark.parametrize(("s", "layout"), chosen)


# comparing


def mismatch(found: Arrays, wanted: Arrays, bounds: Arrays | None = None) -> str:
    """The first difference beyond the bounds (none: any difference of value), or nothing."""
    if found.keys() != wanted.keys():
        return f"{sorted(found)} instead of {sorted(wanted)}"
    for name, want in wanted.items():
        got = found[name]
        if got.shape != want.shape:
            return f"{name} has shape {got.shape} instead of {want.shape}"
        error = np.abs(got.astype(np.float64) - want.astype(np.float64))
        wrong = ~(error <= (0.0 if bounds is None else bounds[name]))
        if wrong.any():
            place = tuple(int(i) for i in np.argwhere(wrong)[0])
            return f"{name}{list(place)} is {got[place]} instead of {want[place]}; {wrong.sum()} of {wrong.size} differ"
    return ""


def bounded(s: Situation, operands: Arrays, gradients: Arrays, layout: str, activations: dict[str, str]) -> Any:
    """What the reference gives in float64, and how far a sum in the operands' own precision may be from it.

    Rounding changes a sum of n products by at most n·u times the sum of their magnitudes; an activation's slope, or
    the change of its slope where it is chained, multiplies that.
    """
    accumulated, stored = PRECISION[operands["x"].dtype.name]
    wide = {name: array.astype(np.float64) for name, array in operands.items()}
    back = {name: array.astype(np.float64) for name, array in gradients.items()}
    wanted = s.both(wide, back, "reference", layout, **activations)
    sizes = [{name: np.abs(array) for name, array in arrays.items()} for arrays in (wide, back)]
    whole = s.both(*sizes, "reference", layout)
    slope = max([1.0, *(ACTIVATIONS[name].lipschitz for name in activations.values())]) ** len(activations)
    chained = slope * (1 + 2 * float(whole["out"].max(initial=0))) if activations else 1.0
    axis = 1 if layout == "channels_first" else -1
    summed = s.terms + 8 + max(array.size // max(array.shape[axis], 1) for array in back.values())
    bounds = {}
    for name, size in whole.items():
        backward = name.startswith("grad")
        error = accumulated * size * (chained * summed if backward else slope * (s.terms + 8))
        least = 2.0**-24 if operands["x"].dtype.name == "float16" else 0.0  # what float16 rounds below its range
        bounds[name] = error + (stored + 8 * accumulated) * abs(wanted[name]) + stored * error + least
    return wanted, bounds

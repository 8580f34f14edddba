"""Layers in plain NumPy, tap by tap in their own precision: what somebody else's implementation would compute."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import numpy as np

from npdwconv.cases import Case

Array = np.ndarray[Any, np.dtype[Any]]
Results = dict[str, Array]


@dataclass(frozen=True)
class Layer:
    """A call in (N, C, H, W): depthwise, with a (low, high) pad per axis, or pointwise where ``weight`` is (K, C)."""

    name: str
    x: Array
    weight: Array
    bias: Array | None = None
    grad: Array | None = None
    stride: int = 1
    dilation: int = 1
    pads: tuple[tuple[int, int], ...] = ((1, 1), (1, 1))
    padding: Any = None
    mode: str = "zeros"
    activation: str | None = None
    layout: str = "channels_first"

    @property
    def pointwise(self) -> bool:
        return self.weight.ndim == 2

    @property
    def fan(self) -> int:
        return 1 if self.pointwise else len(self.weight) // self.x.shape[1]

    @property
    def out(self) -> list[int]:
        spans = [(extent - 1) * self.dilation + 1 for extent in self.weight.shape[2:]]
        return [
            (size + sum(pads) - span) // self.stride + 1
            for size, pads, span in zip(self.x.shape[2:], self.pads, spans, strict=True)
        ]

    def arguments(self) -> tuple[str, dict[str, Any]]:
        """The public operator and its arguments."""
        given: dict[str, Any] = {"x": self.laid_out(self.x), "weight": self.weight, "bias": self.bias}
        given |= {"layout": self.layout, "activation": self.activation}
        if not self.pointwise:
            given |= {"stride": self.stride, "dilation": self.dilation, "padding_mode": self.mode}
            given["padding"] = self.padding or self.pads
        if self.grad is None:
            return ("pointwise_conv" if self.pointwise else "depthwise_conv2d"), given
        given |= {"grad_out": self.laid_out(self.grad), "needs": ("x", "weight")}
        return "depthwise_conv2d_backward", given

    def laid_out(self, array: Array) -> Array:
        return array if self.layout == "channels_first" else np.ascontiguousarray(np.moveaxis(array, 1, -1))

    def observed(self, results: Results) -> Results:
        return {name: self.laid_out(array) if name in ("out", "x") else array for name, array in results.items()}


def sources(layer: Layer, axis: int, tap: int, low: int) -> Array:
    """The input index that each output reads with a tap; -1 where it reads a zero."""
    size = layer.x.shape[axis + 2]
    found = []
    for place in np.arange(layer.out[axis]) * layer.stride + tap * layer.dilation - low:
        if layer.mode == "circular":
            place %= size
        elif layer.mode == "replicate":
            place = min(max(place, 0), size - 1)
        elif layer.mode == "reflect":
            place = abs(place)
            place = place if place < size else 2 * (size - 1) - place
        found.append(place if 0 <= place < size else -1)
    return np.array(found)


def taps(layer: Layer, lows: tuple[int, ...], dilation: int) -> Iterator[tuple[tuple[int, int], Array, Array]]:
    other = replace(layer, dilation=dilation)
    for r, s in np.ndindex(*layer.weight.shape[2:]):
        rows, columns = sources(other, 0, r, lows[0]), sources(other, 1, s, lows[1])
        yield (r, s), rows, columns


def read(x: Array, rows: Array, columns: Array) -> Array:
    patch = x[:, :, rows[:, None], columns]
    return np.where((rows[:, None] >= 0) & (columns >= 0), patch, np.zeros((), x.dtype))


def compute(layer: Layer, *, lows: Any = None, dilation: int | None = None, source: Any = None) -> Results:
    """What a layer gives, the result or gradients; with windows at other places, and outputs that read other inputs."""
    if layer.pointwise:
        z = np.einsum("kc,nchw->nkhw", layer.weight, layer.x, optimize=True)
        return {"out": activate(layer.activation, biased(z, layer.bias))}
    lows = tuple(low for low, _ in layer.pads) if lows is None else lows
    extents = layer.out
    source = np.arange(len(layer.weight)) // layer.fan if source is None else source
    walk = list(taps(replaced(layer, extents), lows, layer.dilation if dilation is None else dilation))
    if layer.grad is None:
        z = np.zeros((len(layer.x), len(layer.weight), *extents), layer.x.dtype)
        for (r, s), rows, columns in walk:
            z += layer.weight[:, 0, r, s][:, None, None] * read(layer.x, rows, columns)[:, source]
        return {"out": activate(layer.activation, biased(z, layer.bias))}
    dx, dw = np.zeros_like(layer.x), np.zeros_like(layer.weight)
    for (r, s), rows, columns in walk:
        dw[:, 0, r, s] = (layer.grad * read(layer.x, rows, columns)[:, source]).sum(axis=(0, 2, 3))
        inside = np.ix_(np.flatnonzero(rows >= 0), np.flatnonzero(columns >= 0))
        push = layer.weight[:, 0, r, s][:, None, None] * layer.grad
        for k, c in enumerate(source):
            part = push[:, k][:, inside[0], inside[1]]
            np.add.at(dx, (slice(None), c, rows[inside[0]], columns[inside[1]]), part)
    return {"x": dx, "weight": dw}


@dataclass(frozen=True)
class Fixed(Layer):
    """A layer whose output extents are those of another dilation."""

    extents: tuple[int, ...] = ()

    @property
    def out(self) -> list[int]:
        return list(self.extents)


def replaced(layer: Layer, extents: list[int]) -> Layer:
    fields = {name: getattr(layer, name) for name in Layer.__dataclass_fields__}
    return Fixed(**fields, extents=tuple(extents))


def biased(z: Array, bias: Array | None) -> Array:
    return z if bias is None else z + bias[:, None, None]


def activate(name: str | None, z: Array) -> Array:
    one = z.dtype.type
    return {
        None: lambda: z,
        "relu": lambda: np.maximum(z, one(0)),
        "relu6": lambda: np.clip(z, one(0), one(6)),
        "hardswish": lambda: z * np.clip(z + one(3), one(0), one(6)) / one(6),
        "silu": lambda: z / (one(1) + np.exp(-z)),
    }[name]()


def random_layers() -> list[Layer]:
    rng = np.random.default_rng(7)

    def normal(*shape: int) -> Array:
        return rng.standard_normal(shape, dtype=np.float32)

    return [
        Layer("random", normal(2, 6, 13, 11), normal(6, 1, 3, 3) * 2, normal(6), activation="relu6"),
        Layer(
            "channels last, SAME, stride 2, M = 2",
            normal(1, 5, 16, 14),
            normal(10, 1, 5, 5),
            normal(10),
            stride=2,
            pads=((1, 2), (1, 2)),
            padding="same",
            layout="channels_last",
        ),
        Layer(
            "dilated, replicated border",
            normal(2, 5, 14, 12),
            normal(5, 1, 3, 3),
            normal(5),
            dilation=2,
            pads=((1, 2), (2, 1)),
            mode="replicate",
            activation="hardswish",
        ),
        Layer(
            "backward, M = 2",
            normal(2, 4, 12, 13),
            normal(8, 1, 3, 3),
            grad=normal(2, 8, 6, 7),
            stride=2,
            pads=((0, 1), (1, 1)),
        ),
        Layer("pointwise", normal(2, 6, 9, 8), normal(8, 6) * 2, normal(8), activation="relu6"),
    ]


REAL = {
    "_blocks.0._depthwise_conv": "Lite0, 3x3",
    "_blocks.3._depthwise_conv": "Lite0, 5x5, stride 2",
    "_blocks.4._expand_conv": "Lite0, expansion",
    "_blocks.6._project_conv": "Lite0, projection",
}


@cache
def real_layers() -> tuple[Layer, ...]:
    """Layers of EfficientNet-Lite0 with their inputs for a photograph: some of their channels, a part of the image."""
    found: dict[str, Layer] = {}

    def keep(name: str, layer: Any, x: Array, *_: Any) -> None:
        if name not in REAL:
            return
        pointwise = "depthwise" not in name
        weight, bias = layer.params["weight"], layer.params["bias"]
        piece = np.ascontiguousarray(x[:, :, :20, :18] if pointwise else x[:, :24, :30, :26])
        weight, bias = (weight.reshape(len(weight), -1)[:24], bias[:24]) if pointwise else (weight[:24], bias[:24])
        made = Layer(REAL[name], piece, weight, bias, activation=layer.activation)
        if not pointwise:
            stride = layer.options["stride"][0]
            total = [max((-(-n // stride) - 1) * stride + weight.shape[2] - n, 0) for n in piece.shape[2:]]
            pads = tuple((each // 2, each - each // 2) for each in total)
            made = replace(made, stride=stride, pads=pads, padding="same")
        found[name] = made

    _photographed(keep)
    return tuple(found[name] for name in REAL)


def convolutions_of_lite0() -> Iterator[Case]:
    """Every depthwise and pointwise convolution of EfficientNet-Lite0 on a photograph, without its activation."""
    found: list[Case] = []

    def keep(name: str, layer: Any, x: Array, *_: Any) -> None:
        if not name.endswith(("_depthwise_conv", "_expand_conv", "_project_conv", "_conv_head")):
            return
        weight, options = layer.params["weight"], {}
        pointwise = "_depthwise" not in name
        if not pointwise:
            stride, extents = layer.options["stride"], weight.shape[2:]
            total = [max((-(-n // s) - 1) * s + k - n, 0) for n, s, k in zip(x.shape[2:], stride, extents, strict=True)]
            pads = tuple((each // 2, each - each // 2) for each in total)
            options = {"stride": stride, "padding": pads, "dilation": (1, 1)}
        operands = {"x": x.copy(), "weight": weight.reshape(len(weight), -1) if pointwise else weight}
        operands["bias"] = layer.params["bias"]
        found.append(Case("pointwise_conv" if pointwise else "depthwise_conv2d", operands, options, name=name))

    _photographed(keep)
    return iter(found)


def _photographed(keep: Any) -> None:
    from skimage import data

    from npdwconv.models import EfficientNetLite0

    model = EfficientNetLite0.from_pretrained().fold()
    model.forward(model.preprocess(data.chelsea()), on_layer=keep)

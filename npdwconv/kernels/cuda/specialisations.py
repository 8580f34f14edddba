"""The kernels that calls in usual use ask for, by name: found by making the calls, so that none is described twice."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import product
from typing import Any, NamedTuple

from npdwconv.activations import ACTIVATIONS, Activation
from npdwconv.device import DeviceArray
from npdwconv.geometry import ConvGeometry, conv_geometry
from npdwconv.kernels.cuda import depthwise, pointwise, separable
from npdwconv.kernels.cuda.epilogue import bias_bwd
from npdwconv.kernels.cuda.recorded import Launch, array, recorded
from npdwconv.kernels.cuda.words import real_of, rounded
from npdwconv.layouts import LAYOUTS, shape_of

BATCH, CHANNELS, SIZE = 8, 96, 56
FIRST, LAST = LAYOUTS
Taps = tuple[int, ...]
THREE: Taps = (3, 3)
FIVE: Taps = (5, 5)
SEVEN: Taps = (7, 7)
LINE: Taps = (4,)


class Layer(NamedTuple):
    """A depthwise layer: what is convolved, by what, and how."""

    layout: str
    kernel: Taps
    storage: str = "float32"
    stride: int = 1
    size: int = SIZE
    channels: int = CHANNELS
    multiplier: int = 1
    activation: str | None = None
    bias: bool = False
    mode: str = "zeros"
    dilation: int = 1

    def __str__(self) -> str:
        plain = self._field_defaults
        said = {
            "stride": f"stride {self.stride}",
            "dilation": f"dilation {self.dilation}",
            "multiplier": f"multiplier {self.multiplier}",
            "size": f"extent {self.size}",
            "channels": f"{self.channels} channels",
            "mode": self.mode,
            "bias": "bias",
            "activation": self.activation,
        }
        taps = "×".join(map(str, self.kernel)) if len(self.kernel) > 1 else f"{self.kernel[0]} in 1-D"
        others = [text for name, text in said.items() if text and getattr(self, name) != plain[name]]
        return ", ".join([f"{taps} {self.layout} {self.storage}", *others])

    @property
    def geometry(self) -> ConvGeometry:
        """With outputs as many as inputs, for a stride of 1; of an even kernel one fewer."""
        rank, padding = len(self.kernel), tuple((extent - 1) * self.dilation // 2 for extent in self.kernel)
        pads = tuple((low, low) for low in padding)
        settings = ((self.stride,) * rank, (self.dilation,) * rank, pads, self.mode)
        return conv_geometry((self.size,) * rank, self.kernel, *settings)

    @property
    def x(self) -> DeviceArray:
        return self._image(self.storage, self.channels, self.geometry.size)

    def result(self, storage: str = "") -> DeviceArray:
        """What a forward writes, or its gradient."""
        return self._image(storage or self.storage, self.channels * self.multiplier, self.geometry.out)

    @property
    def weight(self) -> DeviceArray:
        return array(self.storage, self.channels * self.multiplier, *self.kernel)

    @property
    def offset(self) -> DeviceArray | None:
        return array(self.storage, self.channels * self.multiplier) if self.bias else None

    def _image(self, storage: str, channels: int, extents: tuple[int, ...]) -> DeviceArray:
        return array(storage, *shape_of(self.layout, BATCH, channels, extents))


def forward(layer: Layer) -> None:
    operands = (layer.x, layer.weight, layer.offset, layer.result())
    depthwise.depthwise_fwd(*operands, layer.geometry, layer.layout, _activation(layer.activation))


def input_gradient(layer: Layer) -> None:
    depthwise.depthwise_bwd_input(layer.result(), layer.weight, layer.x, layer.geometry, layer.layout)


def weight_gradient(layer: Layer) -> None:
    depthwise.depthwise_bwd_weight(layer.result(), layer.x, layer.weight, layer.geometry, layer.layout)


def backward(layer: Layer) -> None:
    """Through an activation: the product with its derivative, then the gradient in the input."""
    g, layout, activation = layer.geometry, layer.layout, ACTIVATIONS[layer.activation or ""]
    chained = layer.result(real_of(layer.storage).__name__)
    operands = (layer.result(), layer.x, layer.weight, layer.offset, chained)
    depthwise.depthwise_bwd_activation(*operands, g, layout, activation)
    depthwise.depthwise_bwd_input(chained, layer.weight, layer.x, g, layout)


def bias_gradient(layer: Layer) -> None:
    bias_bwd(layer.result(), layer.offset, layer.layout)


def transposed(layer: Layer) -> None:
    """From the results of a layer to its inputs."""
    operands = (layer.result(), layer.weight, layer.offset, layer.x)
    depthwise.transpose_fwd(*operands, layer.geometry, layer.layout, _activation(layer.activation))


class Pointwise(NamedTuple):
    """A pointwise layer, or the end of a separable one."""

    layout: str
    channels: int
    results: int
    size: int
    storage: str = "float32"
    activation: str | None = None

    def __str__(self) -> str:
        text = f"{self.channels} to {self.results} channels {self.layout} {self.storage}, extent {self.size}"
        return f"{text}, {self.activation}" if self.activation else text

    def image(self, channels: int, storage: str = "") -> DeviceArray:
        return array(storage or self.storage, *shape_of(self.layout, BATCH, channels, (self.size, self.size)))

    @property
    def operands(self) -> tuple[DeviceArray, DeviceArray, DeviceArray]:
        weight, bias = array(self.storage, self.results, self.channels), array(self.storage, self.results)
        return self.image(self.channels), weight, bias


def pointwise_forward(layer: Pointwise) -> None:
    operands = (*layer.operands, layer.image(layer.results))
    pointwise.pointwise_fwd(*operands, layer.layout, _activation(layer.activation))


def pointwise_backward(layer: Pointwise) -> None:
    x, weight, bias = layer.operands
    chained = layer.image(layer.results)
    if layer.activation:
        gradient, chained = chained, layer.image(layer.results, real_of(layer.storage).__name__)
        activation = ACTIVATIONS[layer.activation]
        pointwise.pointwise_bwd_activation(gradient, x, weight, bias, chained, layer.layout, activation)
    pointwise.pointwise_bwd_input(chained, weight, x, layer.layout)
    pointwise.pointwise_bwd_weight(chained, x, weight, layer.layout)


class Separable(NamedTuple):
    """A depthwise layer, and the pointwise one behind it."""

    first: Layer
    results: int
    activation: str | None = None

    def __str__(self) -> str:
        text = f"{self.first}, to {self.results} channels"
        return f"{text}, {self.activation}" if self.activation else text


def separable_forward(layer: Separable) -> None:
    first, results = layer.first, layer.results
    g, layout, storage = first.geometry, first.layout, first.storage
    out = array(storage, *shape_of(layout, BATCH, results, g.out))
    stages = (first.x, first.weight, first.offset, array(storage, results, first.channels), array(storage, results))
    activations = (_activation(first.activation), _activation(layer.activation))
    separable.separable_fwd(*stages, out, g, layout, *activations)


def converted(storages: tuple[str, str]) -> None:
    array(storages[0], BATCH, CHANNELS, SIZE).astype(rounded(storages[1]))


def added(storage: str) -> None:
    array(storage, BATCH, CHANNELS, SIZE).assign(array(storage, BATCH, SIZE, CHANNELS).swapaxes(1, 2), adds=True)


def _activation(name: str | None) -> Activation | None:
    return None if name is None else ACTIVATIONS[name]


Call = tuple[str, Callable[[Any], None], Any]


def _depthwise() -> Iterator[Call]:
    for layout, kernel in product(LAYOUTS, (THREE, FIVE, SEVEN)):
        strided = Layer(layout, kernel, stride=2)
        yield from _each(Layer(layout, kernel))
        yield "forward", forward, strided
        yield "input gradient", input_gradient, strided
    for layout in LAYOUTS:
        yield "weight gradient", weight_gradient, Layer(layout, THREE, stride=2)
        for storage, kernel in (("float16", THREE), ("float16", SEVEN), ("bfloat16", THREE), ("float64", SEVEN)):
            yield "forward", forward, Layer(layout, kernel, storage)
        for storage in ("float16", "float64"):
            yield "input gradient", input_gradient, Layer(layout, SEVEN, storage, stride=2)
            yield "weight gradient", weight_gradient, Layer(layout, SEVEN, storage)
    for kernel, odd in product((THREE, SEVEN), (1, 2)):
        wide, many = Layer(FIRST, kernel, size=SIZE + odd), Layer(LAST, kernel, channels=CHANNELS + odd)
        for layer in (wide, many):
            yield "forward", forward, layer
            yield "weight gradient", weight_gradient, layer
    for kernel, size in product((THREE, FIVE), (14, 7)):
        yield "forward", forward, Layer(FIRST, kernel, size=size)
    yield from _activated()
    for layout in LAYOUTS:
        yield from _seldom(layout)
    for mode in ("reflect", "replicate", "circular"):
        layer = Layer(FIRST, THREE, mode=mode)
        yield "forward", forward, layer
        yield "input gradient", input_gradient, layer


def _each(layer: Layer) -> Iterator[Call]:
    yield "forward", forward, layer
    yield "input gradient", input_gradient, layer
    yield "weight gradient", weight_gradient, layer


def _activated() -> Iterator[Call]:
    for activation in ACTIVATIONS:
        yield "forward", forward, Layer(FIRST, THREE, activation=activation, bias=True)
        yield "backward", backward, Layer(FIRST, THREE, activation=activation, bias=True)
    for activation in ("relu6", "silu", "gelu"):
        yield "forward", forward, Layer(LAST, THREE, activation=activation, bias=True)
        yield "backward", backward, Layer(LAST, THREE, activation=activation, bias=True)
    for storage, activation in (("float16", "silu"), ("float64", "gelu")):
        yield "forward", forward, Layer(FIRST, THREE, storage, activation=activation, bias=True)
        yield "backward", backward, Layer(FIRST, THREE, storage, activation=activation, bias=True)


def _seldom(layout: str) -> Iterator[Call]:
    """What layers other than those of common networks have."""
    yield "forward", forward, Layer(layout, THREE, dilation=2)
    yield "forward", forward, Layer(layout, LINE, bias=True, activation="silu")
    yield "forward", forward, Layer(layout, (31,), size=512)
    yield "forward", forward, Layer(layout, (127,), size=512)
    yield from _each(Layer(layout, LINE, size=512))
    yield from _each(Layer(layout, (9, 9)))
    yield from _each(Layer(layout, (3, 3, 3), size=16))
    yield from _each(Layer(layout, THREE, multiplier=2))
    yield "transposed", transposed, Layer(layout, THREE, stride=2, bias=True, activation="relu")
    for storage in ("float32", "float16"):
        yield "bias gradient", bias_gradient, Layer(layout, THREE, storage, bias=True)


def _others() -> Iterator[Call]:
    for layout in LAYOUTS:
        large, small = Pointwise(layout, 128, 256, SIZE, activation="relu6"), Pointwise(layout, 128, 50, 7)
        for layer in (large, small):
            yield "pointwise", pointwise_forward, layer
            yield "pointwise backward", pointwise_backward, layer
        for storage in ("float16", "float64"):
            yield "pointwise", pointwise_forward, Pointwise(layout, 128, 256, SIZE, storage)
        yield from _separable(layout)
    yield "conversion", converted, ("float32", "float16")
    yield "conversion", converted, ("bfloat16", "float32")
    yield "addition", added, "float32"


def _separable(layout: str) -> Iterator[Call]:
    """Through memory, where the results are many, and in one kernel."""
    yield "separable", separable_forward, Separable(Layer(layout, THREE, "float16", size=28), 192)
    three = Layer(layout, THREE)
    yield "separable", separable_forward, Separable(three, 128)
    for stride in (1, 2):
        first = three._replace(activation="relu6", bias=True, stride=stride, size=SIZE * stride)
        yield "separable", separable_forward, Separable(first, 64, "relu6")
    yield "separable", separable_forward, Separable(three._replace(activation="silu", bias=True), 128, "silu")
    yield "separable", separable_forward, Separable(three._replace(storage="float16"), 128)
    yield "separable", separable_forward, Separable(three._replace(size=57, channels=CHANNELS + 1), 50)
    if layout == FIRST:
        yield "separable", separable_forward, Separable(Layer(layout, FIVE), 128)


def specialisations() -> dict[str, Launch]:
    """A launch of every kernel, by the call that first asks for it and the kernel's own name."""
    found: dict[str, Launch] = {}
    known = set()
    for name, call, what in (*_depthwise(), *_others()):
        with recorded() as launches:
            call(what)
        for launch in launches:
            if launch.kernel in known:
                continue
            known.add(launch.kernel)
            said = " to ".join(what) if type(what) is tuple else str(what)
            place = f"{name} {said}: {launch.kernel.source.name}"
            while place in found:
                place += "′"
            found[place] = launch
    return found

"""The kernels that calls in usual use ask for, by name: found by making the calls, so that none is described twice."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from importlib import import_module
from itertools import product
from typing import Any, NamedTuple

from npdwconv.activations import ACTIVATIONS
from npdwconv.device import DeviceArray
from npdwconv.kernels.cuda.recorded import Launch, array, recorded
from npdwconv.layouts import LAYOUTS, shape_of

BATCH, CHANNELS, SIZE = 8, 96, 56
FIRST, LAST = LAYOUTS
OTHERS = ("float16", "bfloat16", "float64")
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
    def options(self) -> dict[str, Any]:
        """As operators take them: outputs as many as inputs, for a stride of 1."""
        padding = tuple((extent - 1) * self.dilation // 2 for extent in self.kernel)
        return {
            "stride": self.stride,
            "padding": padding,
            "dilation": self.dilation,
            "padding_mode": self.mode,
            "layout": self.layout,
        }

    @property
    def weight(self) -> DeviceArray:
        return array(self.storage, self.channels * self.multiplier, 1, *self.kernel)

    @property
    def offset(self) -> DeviceArray | None:
        return array(self.storage, self.channels * self.multiplier) if self.bias else None

    @property
    def x(self) -> DeviceArray:
        return self.image(self.channels, self.size)

    def image(self, channels: int, size: int) -> DeviceArray:
        return array(self.storage, *shape_of(self.layout, BATCH, channels, (size,) * len(self.kernel)))

    @property
    def gradient(self) -> DeviceArray:
        """Of the result."""
        padded = self.size + (self.kernel[-1] - 1) * self.dilation // 2 * 2
        size = (padded - (self.kernel[-1] - 1) * self.dilation - 1) // self.stride + 1
        return self.image(self.channels * self.multiplier, size)

    def operator(self, suffix: str, transposed: bool = False) -> Any:
        name = f"depthwise_conv{'_transpose' if transposed else ''}{len(self.kernel)}d{suffix}"
        return getattr(import_module("npdwconv"), name)


def forward(layer: Layer) -> None:
    layer.operator("")(layer.x, layer.weight, layer.offset, activation=layer.activation, **layer.options)


def input_gradient(layer: Layer) -> None:
    layer.operator("_input_grad")(layer.gradient, layer.weight, layer.x.shape, **layer.options)


def weight_gradient(layer: Layer) -> None:
    layer.operator("_weight_grad")(layer.gradient, layer.x, layer.weight.shape, **layer.options)


def backward(layer: Layer) -> None:
    """The backward through an activation, whose first kernel multiplies with its derivative."""
    options = {**layer.options, "activation": layer.activation, "needs": "x"}
    layer.operator("_backward")(layer.gradient, layer.x, layer.weight, layer.offset, **options)


def bias_gradient(layer: Layer) -> None:
    layer.operator("_backward")(layer.gradient, layer.x, layer.weight, layer.offset, needs="bias", **layer.options)


def transposed(layer: Layer) -> None:
    options = {name: value for name, value in layer.options.items() if name != "padding_mode"}
    options["activation"] = layer.activation
    layer.operator("", transposed=True)(layer.x, layer.weight, layer.offset, **options)


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

    def image(self, channels: int) -> DeviceArray:
        return array(self.storage, *shape_of(self.layout, BATCH, channels, (self.size, self.size)))

    @property
    def operands(self) -> tuple[DeviceArray, DeviceArray, DeviceArray]:
        weight, bias = array(self.storage, self.results, self.channels), array(self.storage, self.results)
        return self.image(self.channels), weight, bias


def pointwise(layer: Pointwise) -> None:
    _package().pointwise_conv(*layer.operands, layout=layer.layout, activation=layer.activation)


def pointwise_backward(layer: Pointwise) -> None:
    gradient, options = layer.image(layer.results), {"layout": layer.layout, "activation": layer.activation}
    _package().pointwise_conv_backward(gradient, *layer.operands, **options)


def separable(layer: Pointwise) -> None:
    x, weight, bias = layer.operands
    options = {"layout": layer.layout, "padding": 1, "activation": layer.activation}
    _package().separable_conv2d(x, array(layer.storage, layer.channels, 1, 3, 3), weight, bias, **options)


def converted(storages: tuple[str, str]) -> None:
    array(storages[0], BATCH, CHANNELS, SIZE).astype(rounded_to(storages[1]))


def rounded_to(storage: str) -> Any:
    return array(storage, 1).dtype


def added(storage: str) -> None:
    array(storage, BATCH, CHANNELS, SIZE).assign(array(storage, BATCH, SIZE, CHANNELS).swapaxes(1, 2), adds=True)


def _package() -> Any:
    return import_module("npdwconv")


Call = tuple[str, Callable[[Any], None], Any]


def _depthwise() -> Iterator[Call]:
    for layout, kernel in product(LAYOUTS, (THREE, FIVE, SEVEN)):
        layer, strided = Layer(layout, kernel), Layer(layout, kernel, stride=2)
        yield from _each(layer)
        yield "forward", forward, strided
        yield "input gradient", input_gradient, strided
    for layout in LAYOUTS:
        yield "weight gradient", weight_gradient, Layer(layout, THREE, stride=2)
        for storage, kernel in product(OTHERS, (THREE, SEVEN)):
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
    """Every activation forward where a thread has one channel, and every derivative where it has several."""
    for activation in ACTIVATIONS:
        yield "forward", forward, Layer(FIRST, THREE, activation=activation, bias=True)
        yield "backward", backward, Layer(LAST, THREE, activation=activation, bias=True)
    yield "forward", forward, Layer(LAST, THREE, activation="gelu", bias=True)
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
            yield "pointwise", pointwise, layer
            yield "pointwise backward", pointwise_backward, layer
        for storage in ("float16", "float64"):
            yield "pointwise", pointwise, Pointwise(layout, 128, 256, SIZE, storage)
        yield "separable", separable, Pointwise(layout, CHANNELS, 192, 28, "float16")
    yield "conversion", converted, ("float32", "float16")
    yield "conversion", converted, ("bfloat16", "float32")
    yield "addition", added, "float32"


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

"""The measured network as a list of steps, from which a peer builds its own: batch norms folded, activations named."""

from __future__ import annotations

from typing import Any, NamedTuple

from npdwconv.bench.operands import network
from npdwconv.folding import fold_batchnorm
from npdwconv.geometry import conv_geometry
from npdwconv.layers import Activation, BatchNorm, GlobalAveragePool, Layer, PointwiseConv, Residual, Sequential
from npdwconv.layers.convolution import Convolution
from npdwconv.layouts import Array

Pairs = tuple[tuple[int, int], ...]


class Step(NamedTuple):
    """One step: ``conv``, ``add`` (of the value before step `source`), ``pool`` (the mean over space) or ``linear``.

    Values are numbered from 0, the network's input; step i makes value i + 1 out of value i.
    """

    kind: str
    weight: Array | None = None
    bias: Array | None = None
    stride: int = 1
    padding: Pairs = ((0, 0), (0, 0))
    groups: int = 1
    relu6: bool = False
    source: int = 0


def program(extent: int = 224) -> list[Step]:
    """The steps of `operands.network` for images of that extent."""
    builder = _Builder(extent)
    builder.take(network())
    return builder.steps


class _Builder:
    """Walks the layers in the order in which they run, and folds what follows a convolution into its step."""

    def __init__(self, extent: int) -> None:
        self.size: tuple[int, ...] = (extent, extent)
        self.steps: list[Step] = []

    def take(self, layer: Layer) -> None:
        if isinstance(layer, Residual):
            source = len(self.steps)
            self.take(layer.inner)
            self.steps.append(Step("add", source=source))
        elif isinstance(layer, Sequential):
            for part in layer.children.values():
                self.take(part)
        elif isinstance(layer, GlobalAveragePool):
            self.steps.append(Step("pool"))
        elif isinstance(layer, BatchNorm):
            self._fold(layer)
        elif isinstance(layer, Activation):
            self.steps[-1] = self.steps[-1]._replace(relu6=layer.name == "relu6")
        elif isinstance(layer, Convolution):
            self.steps.append(self._convolution(layer))
        else:
            raise TypeError(f"{layer!r} is no step that a peer can take")

    def _fold(self, norm: BatchNorm) -> None:
        weight, bias = self.steps[-1].weight, self.steps[-1].bias
        statistics = [*norm.params.values(), norm.buffers["running_mean"], norm.buffers["running_var"]]
        folded = fold_batchnorm(weight, bias, *statistics, eps=norm.eps)
        self.steps[-1] = self.steps[-1]._replace(weight=folded[0], bias=folded[1])

    def _convolution(self, layer: Convolution) -> Step:
        weight, bias = layer.params["weight"], layer.params.get("bias")
        if isinstance(layer, PointwiseConv):
            return Step("linear" if layer.kernel_size == () else "conv", weight, bias)
        options: dict[str, Any] = layer.options
        fields = ("stride", "dilation", "padding")
        geometry = conv_geometry(self.size, layer.kernel_size, *(options[name] for name in fields))
        self.size = geometry.out
        pads = tuple((axis.low, axis.high) for axis in geometry.axes)
        groups = layer.in_channels if layer.kind == "depthwise" else 1
        return Step("conv", weight, bias, options["stride"][0], pads, groups)

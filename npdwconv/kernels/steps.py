"""A network without branches but for additions, as a list of steps: what a backend is told to run it whole."""

from __future__ import annotations

from typing import Any, NamedTuple

from npdwconv.geometry import ConvGeometry, conv_geometry
from npdwconv.layouts import Array


class Window(NamedTuple):
    """How a kernel moves over its input; checked forms of the options of a convolution with zero padding."""

    kernel: tuple[int, ...]
    stride: tuple[int, ...]
    padding: Any
    dilation: tuple[int, ...]

    def geometry(self, size: tuple[int, ...]) -> ConvGeometry:
        return conv_geometry(size, self.kernel, self.stride, self.dilation, self.padding)


class Step(NamedTuple):
    """One operation on the result of the step before.

    ``kind``: "depthwise" with a weight (C·M, *kernel), "standard" with one of (K, C, *kernel), "pointwise" with one of
    (K, C), or "mean", over space. ``activation`` is a name or "". ``adds`` is the step whose result is added at the
    end: -1 is the network's input, None is none.
    """

    kind: str
    layout: str
    weight: Array | None = None
    bias: Array | None = None
    window: Window | None = None
    activation: str = ""
    adds: int | None = None

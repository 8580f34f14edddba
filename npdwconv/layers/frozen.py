"""Layer room: a frozen sequence run whole by a backend that can."""

from __future__ import annotations

from typing import Any

import numpy as np

from npdwconv.dispatch import TABLE, explain_backend, kernel
from npdwconv.kernels.steps import Step
from npdwconv.layouts import Array

_DTYPES = ("float32", "float64")


class Whole:
    """Steps of frozen layers, and what a backend has made of them."""

    def __init__(self, steps: list[Step] | None) -> None:
        self.steps = steps or []
        self.weight = next((step.weight for step in self.steps if step.weight is not None), None)
        self._network: Any = None

    def takes(self, x: Any) -> bool:
        """Whether ``x`` fits the first step, and the backend that a call would take runs networks whole."""
        if self.weight is None or type(x) is not np.ndarray or x.dtype != self.weight.dtype or not x.size:
            return False
        layouts = {step.layout for step in self.steps}
        if x.dtype.name not in _DTYPES or len(layouts) > 1 or x.ndim != 4:
            return False
        channels = x.shape[1 if self.steps[0].layout == "channels_first" else -1]
        return channels == self._inputs() and explain_backend(x).backend in TABLE["network"][1]

    def forward(self, x: Array) -> Array:
        """The last step's result."""
        if self._network is None:
            self._network = kernel("forward", "network", None, x)(self.steps, x.dtype)
        result: Array = self._network.forward(x, self.steps[0].layout)
        return result

    def _inputs(self) -> int:
        """The channels that the first step takes."""
        first = self.steps[0]
        if first.weight is None:
            return -1
        return int(first.weight.shape[0 if first.kind == "depthwise" else 1])

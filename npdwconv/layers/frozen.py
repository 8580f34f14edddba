"""Layer room: a frozen sequence run whole by a backend that can."""

from __future__ import annotations

from typing import Any

import numpy as np

from npdwconv.dispatch import exists, kernel
from npdwconv.kernels.steps import Step
from npdwconv.layouts import Array
from npdwconv.recalled import remember

_DTYPES = ("float32", "float64")


class Whole:
    """Steps of frozen layers, and what a backend has made of them."""

    def __init__(self, steps: list[Step] | None) -> None:
        self.steps = steps or []
        self.weight = next((step.weight for step in self.steps if step.weight is not None), None)
        self._network: Any = None
        self._fitting: dict[Any, bool] = {}

    def takes(self, x: Any) -> bool:
        """Whether ``x`` fits the first step, and the backend that a call would take runs networks whole."""
        if type(x) is not np.ndarray:
            return False
        key = x.shape, x.dtype
        fits = self._fitting.get(key)
        if fits is None:
            fits = self._fits(x)
            remember(self._fitting, key, fits)
        return fits and exists("network", None, x)

    def _fits(self, x: Array) -> bool:
        if self.weight is None or x.dtype != self.weight.dtype or not x.size:
            return False
        layouts = {step.layout for step in self.steps}
        if x.dtype.name not in _DTYPES or len(layouts) > 1 or x.ndim != 4:
            return False
        return bool(x.shape[1 if self.steps[0].layout == "channels_first" else -1] == self._inputs())

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

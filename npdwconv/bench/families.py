"""Families of cases: what is compared with what, and the speeds to reach."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from npdwconv.bench.cases import Case

LAYOUTS = ("channels_first", "channels_last")
TOKENS_MODULE = "module with transposes"


class Family(NamedTuple):
    """Cases that are judged together: ratios of the best peer's time to ours.

    `mean` is the geometric mean to reach, `least` the ratio that no case falls below (None: none is set).
    """

    name: str
    title: str
    mean: float
    least: float | None


FAMILIES = {
    family.name: family
    for family in (
        Family("forward-first", "depthwise forward, channels_first", 1.3, 0.9),
        Family("forward-last", "depthwise forward, channels_last", 1.2, 0.9),
        Family("input-gradient", "depthwise input gradient", 2.0, 1.0),
        Family("weight-gradient", "depthwise weight gradient, kernel 3", 2.0, 1.0),
        Family("weight-gradient-wide", "depthwise weight gradient, kernels from 5 on or dilated", 6.0, 3.0),
        Family("pointwise-layer", "pointwise forward through a frozen layer", 1.0, 0.9),
        Family("pointwise-function", "pointwise forward as a function", 0.95, 0.8),
        Family("pointwise-gradient", "pointwise gradients", 1.05, 0.9),
        Family("separable", "separable, dw → ReLU6 → pw → ReLU6", 1.2, 0.95),
        Family("tokens-module", "tokens, against a module with its transposes", 10.0, 6.0),
        Family("tokens-view", "tokens, against the convolution of a channels_last view", 1.3, 1.0),
        Family("network", "EfficientNet-Lite0, whole network", 1.15, None),
    )
}


class Contest(NamedTuple):
    """One of our ways through a case, and the family that it is judged in."""

    family: str
    ours: str

    def admits(self, rival: str) -> bool:
        """Whether a peer's way through the case is one to compare with in this family."""
        if not self.family.startswith("tokens"):
            return True
        return (TOKENS_MODULE in rival) == (self.family == "tokens-module")


def contests(case: Case) -> Iterator[Contest]:
    """Our ways through a case, each with its family."""
    if case.operation == "depthwise_fwd":
        yield from (Contest(f"forward-{layout.removeprefix('channels_')}", layout) for layout in LAYOUTS)
    elif case.operation == "pointwise_fwd":
        yield from (Contest("pointwise-layer", f"layer {layout}") for layout in LAYOUTS)
        yield from (Contest("pointwise-function", layout) for layout in LAYOUTS)
    elif case.operation == "tokens_fwd":
        yield from (Contest(family, "tokens") for family in ("tokens-module", "tokens-view"))
    elif case.operation == "network_fwd":
        yield Contest("network", "channels_last")
    else:
        yield from (Contest(_family(case), layout) for layout in LAYOUTS)


def _family(case: Case) -> str:
    if case.operation == "depthwise_bwd_weight":
        return "weight-gradient" if case.kernel <= 4 and case.dilation == 1 else "weight-gradient-wide"
    return {"depthwise_bwd_input": "input-gradient", "separable_fwd": "separable"}.get(
        case.operation, "pointwise-gradient"
    )

"""Operands of a case, the value it should have in float64, and how far float32 may stray from that.

Every process draws the same operands from the case's name. All of them, and all results, are channels_first here; who
computes in another layout converts outside the clock.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from npdwconv.bench.cases import Case
from npdwconv.depthwise import (
    depthwise_conv1d,
    depthwise_conv1d_input_grad,
    depthwise_conv1d_weight_grad,
    depthwise_conv2d,
    depthwise_conv2d_input_grad,
    depthwise_conv2d_weight_grad,
)
from npdwconv.dispatch import use_backend
from npdwconv.layouts import Array
from npdwconv.memory import empty
from npdwconv.models import EfficientNetLite0
from npdwconv.pointwise import pointwise_conv, pointwise_conv_backward

ROUNDOFF = 2.0**-24
CONFIDENCE = 6.0
NETWORK_ERROR = 1e-4

FORWARD = {1: depthwise_conv1d, 2: depthwise_conv2d}
INPUT_GRAD = {1: depthwise_conv1d_input_grad, 2: depthwise_conv2d_input_grad}
WEIGHT_GRAD = {1: depthwise_conv1d_weight_grad, 2: depthwise_conv2d_weight_grad}

Operands = dict[str, Array]


class Truth(NamedTuple):
    """A result in float64, and the error allowed in each of its elements."""

    value: Array
    bound: Array

    def fault(self, found: Array) -> str | None:
        """What is wrong with a result; None where every element is inside its bound."""
        if found.shape != self.value.shape:
            return f"has shape {found.shape}, needed {self.value.shape}"
        error = np.abs(found - self.value)
        inside = error <= self.bound  # False where the error is NaN
        if inside.all():
            return None
        worst = int(np.argmax(np.where(np.isnan(error), np.inf, error / np.maximum(self.bound, 1e-300))))
        place = tuple(map(int, np.unravel_index(worst, error.shape)))
        return (
            f"{np.count_nonzero(~inside)} of {error.size} elements outside their bound; at {place} it is "
            f"{found[place]:.9g}, needed {self.value[place]:.9g} ± {self.bound[place]:.2g}"
        )


def operands(case: Case) -> Operands:
    """The arrays that a case is about, by the operators' names of them, float32 and channels_first."""
    rng = np.random.default_rng(zlib.crc32(case.name.encode()))

    def draw(*shape: int) -> Array:
        return rng.standard_normal(shape, dtype=np.float32)

    found = {"x": draw(case.batch, case.channels, *case.size)}
    if case.kernel > 1:
        found["depthwise_weight"] = draw(case.middle, 1, *(case.kernel,) * case.rank) / np.float32(case.kernel)
        found["depthwise_bias"] = draw(case.middle)
    if case.outputs:
        found["weight"] = draw(case.outputs, case.middle) / np.float32(math.sqrt(case.middle))
        found["bias"] = draw(case.outputs)
    if "_bwd_" in case.operation:
        found["grad_out"] = draw(case.batch, case.outputs or case.middle, *case.geometry.out)
    return found


def laid(array: Array) -> Array:
    """A C-contiguous copy as `empty` allocates: what everyone reads and writes lies so that nobody is held up by it."""
    copy = empty(array, array.shape)
    copy[...] = array
    return copy


def options(case: Case) -> dict[str, Any]:
    """The options of our depthwise operators for a case."""
    return {"stride": case.stride, "padding": case.padding, "dilation": case.dilation}


def network(layout: str = "channels_first", dtype: str = "float32") -> EfficientNetLite0:
    """The network that is measured: the architecture, with weights and statistics drawn from a seed."""
    model = EfficientNetLite0(layout=layout, dtype=dtype, rng=0)
    state = EfficientNetLite0(rng=0).state_dict()
    rng = np.random.default_rng(0)
    for name, array in state.items():
        if name.endswith("running_var"):
            array[...] = rng.uniform(0.5, 1.5, array.shape)
        elif name.endswith(("running_mean", "bias")):
            array[...] = 0.1 * rng.standard_normal(array.shape)
    model.load_state_dict(state)
    return model


def truth(case: Case, given: Operands) -> Truth:
    """The case's value by the reference backend in float64, and its error bound in float32.

    A sum of n products rounded at every step strays from its value by at most γ_n·Σ|products|, γ_n = n·u / (1 − n·u),
    in any order (N. Higham, "Accuracy and Stability of Numerical Algorithms", section 3.1), and by λ·√n·u·Σ|products|
    but with probability 2·exp(−λ²/2) where roundings are independent and of mean zero (N. Higham, T. Mary, SIAM J.
    Sci. Comput. 41 (2019) A2815); λ is 6 here. The network is allowed 1e-4 of its largest logit.
    """
    if case.operation == "network_fwd":
        with use_backend("reference"):
            value = network(dtype="float64").fold().forward(given["x"].astype(np.float64))
        return Truth(value, np.full_like(value, NETWORK_ERROR * np.abs(value).max()))
    wide = {name: array.astype(np.float64) for name, array in given.items()}
    if case.operation == "separable_fwd":
        return _separable(case, wide)
    compute, terms = _linear(case)
    sizes = compute({name: np.abs(array) for name, array in wide.items()})
    return Truth(compute(wide), _gamma(terms) * sizes)


def _gamma(terms: int) -> float:
    certain = terms * ROUNDOFF / (1 - terms * ROUNDOFF)
    return min(certain, CONFIDENCE * math.sqrt(terms) * ROUNDOFF)


def _linear(case: Case) -> tuple[Callable[[Operands], Array], int]:
    """A case that is one sum of products, and how many products there are in an element."""
    taps, rank = case.taps, case.rank
    reference = options(case) | {"backend": "reference"}
    out_sum = case.pixels
    table: dict[str, tuple[Callable[[Operands], Array], int]] = {
        "depthwise_fwd": (
            lambda a: FORWARD[rank](a["x"], a["depthwise_weight"], a["depthwise_bias"], **reference),
            taps + 1,
        ),
        "depthwise_bwd_input": (
            lambda a: INPUT_GRAD[rank](a["grad_out"], a["depthwise_weight"], a["x"].shape, **reference),
            taps * case.multiplier,
        ),
        "depthwise_bwd_weight": (
            lambda a: WEIGHT_GRAD[rank](a["grad_out"], a["x"], a["depthwise_weight"].shape, **reference),
            out_sum,
        ),
        "pointwise_fwd": (
            lambda a: pointwise_conv(a["x"], a["weight"], a["bias"], backend="reference"),
            case.middle + 1,
        ),
        "pointwise_bwd_input": (lambda a: _pointwise_grad(a, "x"), case.outputs),
        "pointwise_bwd_weight": (lambda a: _pointwise_grad(a, "weight"), out_sum),
    }
    if case.operation == "tokens_fwd":
        return table["depthwise_fwd"]
    return table[case.operation]


def _pointwise_grad(a: Operands, name: str) -> Array:
    grads = pointwise_conv_backward(a["grad_out"], a["x"], a["weight"], needs=name, backend="reference")
    found: Array = getattr(grads, name)
    return found


def _separable(case: Case, a: Operands) -> Truth:
    """Both activations change an error by no more than itself; the middle's error passes through |weight|."""
    reference = options(case) | {"backend": "reference"}
    zero = np.zeros_like(a["bias"])
    middle = FORWARD[case.rank](a["x"], a["depthwise_weight"], a["depthwise_bias"], activation="relu6", **reference)
    value = pointwise_conv(middle, a["weight"], a["bias"], activation="relu6", backend="reference")
    magnitude = {name: np.abs(array) for name, array in a.items()}
    sizes = FORWARD[case.rank](magnitude["x"], magnitude["depthwise_weight"], magnitude["depthwise_bias"], **reference)
    error = _gamma(case.taps + 1) * sizes
    inherited = pointwise_conv(error, magnitude["weight"], zero, backend="reference")
    own = pointwise_conv(middle + error, magnitude["weight"], magnitude["bias"], backend="reference")
    return Truth(value, inherited + _gamma(case.middle + 1) * own)

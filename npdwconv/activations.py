"""Activation room: each activation's definition, derivative and Lipschitz constant, in one table.

The definitions are PyTorch's. A derivative is the one of the piece to the outer side at a kink: ``relu′(0) = 0``,
``relu6′`` is 0 at both kinks, ``hardswish′(−3) = 0`` and ``hardswish′(3) = 1``. NaN passes through both functions.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from npdwconv.layouts import Array

Elementwise = Callable[[Array], Any]

_SQRT_HALF = math.sqrt(0.5)
_INV_SQRT_TAU = 1.0 / math.sqrt(2.0 * math.pi)
_SQRT_2_OVER_PI = math.sqrt(2.0 / math.pi)
_TANH_CUBIC = 0.044715
_SATURATED = (-1000.0, 1000.0)  # every derivative is 0 or 1 beyond; keeps 0·∞ out of the products


@dataclass(frozen=True)
class Activation:
    """One activation: ``function(z)``, ``derivative(z)``, and ``lipschitz``, the largest absolute derivative."""

    name: str
    function: Elementwise
    derivative: Elementwise
    lipschitz: float


def _erfc(z: Array) -> Array:
    """The complementary error function in float64, by the C library (NumPy has none)."""
    return np.asarray(np.frompyfunc(math.erfc, 1, 1)(z.astype(np.float64)), dtype=np.float64)


def _normal_cdf(z: Array) -> Any:
    return (0.5 * _erfc(-_SQRT_HALF * z.astype(np.float64))).astype(z.dtype)


def _pieces(z: Array, low: float, high: float, between: Array | float, above: float) -> Any:
    """0 up to ``low``, ``between`` inside, ``above`` from ``high`` on; NaN stays NaN."""
    inside = np.where(z >= high, above, between)
    return np.where(np.isnan(z), z, np.where(z <= low, 0.0, inside)).astype(z.dtype)


def _relu(z: Array) -> Any:
    return np.maximum(z, 0)


def _relu_prime(z: Array) -> Any:
    return _pieces(z, 0.0, math.inf, 1.0, 1.0)


def _relu6(z: Array) -> Any:
    return np.minimum(np.maximum(z, 0), 6)


def _relu6_prime(z: Array) -> Any:
    return _pieces(z, 0.0, 6.0, 1.0, 0.0)


def _hardsigmoid(z: Array) -> Any:
    return np.minimum(np.maximum(z + 3, 0), 6) / 6


def _hardsigmoid_prime(z: Array) -> Any:
    return _pieces(z, -3.0, 3.0, 1.0 / 6.0, 0.0)


def _hardswish(z: Array) -> Any:
    return z * _hardsigmoid(z)


def _hardswish_prime(z: Array) -> Any:
    return _pieces(z, -3.0, 3.0, z / 3 + z.dtype.type(0.5), 1.0)


def _sigmoid(z: Array) -> Any:
    return 1 / (1 + np.exp(-z))


def _sigmoid_prime(z: Array) -> Any:
    return _sigmoid(z) * _sigmoid(-z)


def _silu(z: Array) -> Any:
    return z * _sigmoid(z)


def _silu_prime(z: Array) -> Any:
    return _sigmoid(z) * (1 + np.clip(z, *_SATURATED) * _sigmoid(-z))


def _gelu(z: Array) -> Any:
    return z * _normal_cdf(z)


def _gelu_prime(z: Array) -> Any:
    finite = np.clip(z, *_SATURATED)
    return _normal_cdf(z) + finite * np.exp(-0.5 * finite * finite) * _INV_SQRT_TAU


def _gelu_tanh(z: Array) -> Any:
    return 0.5 * z * (1 + np.tanh(_SQRT_2_OVER_PI * (z + _TANH_CUBIC * z * z * z)))


def _gelu_tanh_prime(z: Array) -> Any:
    finite = np.clip(z, *_SATURATED)
    t = np.tanh(_SQRT_2_OVER_PI * (finite + _TANH_CUBIC * finite * finite * finite))
    slope = _SQRT_2_OVER_PI * (1 + 3 * _TANH_CUBIC * finite * finite)
    return 0.5 * (1 + t) + 0.5 * finite * (1 - t * t) * slope


ACTIVATIONS = {
    activation.name: activation
    for activation in (
        Activation("relu", _relu, _relu_prime, 1.0),
        Activation("relu6", _relu6, _relu6_prime, 1.0),
        Activation("hardswish", _hardswish, _hardswish_prime, 1.5),
        Activation("silu", _silu, _silu_prime, 1.09983932013),
        Activation("gelu", _gelu, _gelu_prime, 1.12890414519),
        Activation("gelu_tanh", _gelu_tanh, _gelu_tanh_prime, 1.12899306868),
        Activation("sigmoid", _sigmoid, _sigmoid_prime, 0.25),
        Activation("hardsigmoid", _hardsigmoid, _hardsigmoid_prime, 1.0 / 6.0),
    )
}

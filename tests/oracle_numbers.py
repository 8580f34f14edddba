"""Scalars of the oracles: activations as PyTorch defines them, and a number that carries its rounding error.

A `Bounded` is a sum of `terms` products whose absolute values add up to `size`, with an `error` inherited from its
operands. `Rounded.finish` turns the sum into an operand of the next stage: any order of summation, with or without FMA,
is within `error + γ_m·size` (Higham, Accuracy and Stability of Numerical Algorithms, 2nd ed., §3.1).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

Scalar = Any  # float, int, Fraction or Bounded

ROUNDOFF = {"float16": 2.0**-11, "bfloat16": 2.0**-8, "float32": 2.0**-24, "float64": 2.0**-53}
SUBNORMAL = {"float16": 2.0**-24, "bfloat16": 2.0**-133, "float32": 2.0**-149, "float64": 5e-324}
COMPUTED_IN = {"float16": "float32", "bfloat16": "float32", "float32": "float32", "float64": "float64"}
EVALUATION_ULPS = 8.0


@dataclass(frozen=True)
class Activation:
    """`lipschitz` bounds |f'|, `curvature` |f''| between the kinks, where f' jumps by `jump`.

    `noise` is the size of the intermediate values of an evaluation of f, as a function of z.
    """

    value: Callable[[Scalar], Scalar]
    derivative: Callable[[Scalar], Scalar]
    lipschitz: float
    curvature: float
    kinks: tuple[float, ...] = ()
    jump: float = 0.0
    noise: Callable[[float], float] = abs


def relu(z: Scalar) -> Scalar:
    return 0 if z <= 0 else z


def relu6(z: Scalar) -> Scalar:
    return 0 if z <= 0 else 6 if z >= 6 else z


def hardsigmoid(z: Scalar) -> Scalar:
    return relu6(z + 3) / 6


def hardswish(z: Scalar) -> Scalar:
    return z * relu6(z + 3) / 6


def hardswish_derivative(z: Scalar) -> Scalar:
    return 0 if z <= -3 else 1 if z >= 3 else (2 * z + 3) / 6


def sigmoid(z: Scalar) -> float:
    small = math.exp(-abs(z))
    return (1.0 if z >= 0 else small) / (1.0 + small)


def sigmoid_derivative(z: Scalar) -> float:
    return sigmoid(z) * sigmoid(-z)


def silu(z: Scalar) -> float:
    return z * sigmoid(z)


def silu_derivative(z: Scalar) -> float:
    return sigmoid(z) + z * sigmoid_derivative(z)


def normal_cdf(z: Scalar) -> float:
    return 0.5 * math.erfc(-z / math.sqrt(2.0))


def gelu(z: Scalar) -> float:
    return z * normal_cdf(z)


def gelu_derivative(z: Scalar) -> float:
    return normal_cdf(z) + z * math.exp(-0.5 * z * z) / math.sqrt(2.0 * math.pi)


def gelu_tanh(z: Scalar) -> float:
    return 0.5 * z * (1.0 + math.tanh(math.sqrt(2.0 / math.pi) * (z + 0.044715 * z * z * z)))


def gelu_tanh_derivative(z: Scalar) -> float:
    t = math.tanh(math.sqrt(2.0 / math.pi) * (z + 0.044715 * z * z * z))
    slope = math.sqrt(2.0 / math.pi) * (1.0 + 3.0 * 0.044715 * z * z)
    return 0.5 * (1.0 + t) + 0.5 * z * (1.0 - t * t) * slope


def nothing(z: float) -> float:
    return 0.0


def unity(z: float) -> float:
    return 1.0


ACTIVATIONS: dict[str, Activation] = {
    "relu": Activation(relu, lambda z: 0 if z <= 0 else 1, 1.0, 0.0, (0.0,), 1.0, nothing),
    "relu6": Activation(relu6, lambda z: 0 if z <= 0 or z >= 6 else 1, 1.0, 0.0, (0.0, 6.0), 1.0, nothing),
    "hardswish": Activation(hardswish, hardswish_derivative, 1.5, 1 / 3, (-3.0, 3.0), 0.5),
    "hardsigmoid": Activation(
        hardsigmoid, lambda z: 0 if z <= -3 or z >= 3 else 1 / 6, 1 / 6, 0.0, (-3.0, 3.0), 1 / 6, unity
    ),
    "sigmoid": Activation(sigmoid, sigmoid_derivative, 0.25, 0.1, noise=unity),
    "silu": Activation(silu, silu_derivative, 1.1, 0.5),
    "gelu": Activation(gelu, gelu_derivative, 1.13, 0.8),
    "gelu_tanh": Activation(gelu_tanh, gelu_tanh_derivative, 1.13, 0.81),
}


class Bounded:
    """A float with the sum of its terms' absolute values, their number, and the error they inherit."""

    __slots__ = ("error", "size", "terms", "value")

    def __init__(self, value: float, size: float | None = None, terms: int = 1, error: float = 0.0) -> None:
        self.value = value
        self.size = abs(value) if size is None else size
        self.terms = terms
        self.error = error

    def __add__(self, other: Bounded) -> Bounded:
        value, size = self.value + other.value, self.size + other.size
        return Bounded(value, size, self.terms + other.terms, self.error + other.error)

    def __radd__(self, zero: int) -> Bounded:
        return self

    def __mul__(self, other: Bounded) -> Bounded:
        value = self.value * other.value
        error = abs(self.value) * other.error + self.error * abs(other.value) + self.error * other.error
        return Bounded(value, abs(value) + error, 1, error)


class Exact:
    """Arithmetic of a plain number type: `float`, `int` or `Fraction`."""

    def __init__(self, number: Callable[[float], Scalar]) -> None:
        self.lift = number

    def finish(self, total: Scalar) -> Scalar:
        return total

    def stored(self, result: Scalar, dtype: np.dtype[Any]) -> tuple[float, float]:
        """The result as the dtype stores it, and the error which that leaves: none."""
        return float(dtype.type(result)), 0.0

    def activate(self, name: str, z: Scalar) -> Scalar:
        return ACTIVATIONS[name].value(z)

    def derivative(self, name: str, z: Scalar) -> Scalar:
        return ACTIVATIONS[name].derivative(z)


class Rounded:
    """Arithmetic of a dtype: every number is a `Bounded`, whose error covers the dtype's rounding and our own."""

    def __init__(self, dtype: np.dtype[Any] | str) -> None:
        compute = COMPUTED_IN[str(dtype)]
        self.unit = ROUNDOFF[compute] + ROUNDOFF["float64"]
        self.tiny = SUBNORMAL[compute]

    def lift(self, value: float) -> Bounded:
        return Bounded(value)

    def finish(self, total: Bounded | int) -> Bounded:
        if isinstance(total, int):  # an empty sum
            return Bounded(0.0)
        rounding = total.terms * self.unit
        error = total.error + rounding / (1.0 - rounding) * total.size + total.terms * self.tiny
        return Bounded(total.value, abs(total.value) + error, 1, error)

    def _operand(self, value: float, error: float) -> Bounded:
        return Bounded(float(value), abs(value) + error, 1, error)

    def activate(self, name: str, z: Bounded) -> Bounded:
        f = ACTIVATIONS[name]
        evaluation = EVALUATION_ULPS * self.unit * f.noise(z.value)
        return self._operand(f.value(z.value), f.lipschitz * z.error + evaluation)

    def derivative(self, name: str, z: Bounded) -> Bounded:
        f = ACTIVATIONS[name]
        jumps = sum(abs(z.value - kink) <= z.error for kink in f.kinks)
        evaluation = 0.0 if f.noise is nothing else EVALUATION_ULPS * self.unit * (1.0 + abs(z.value))
        return self._operand(f.derivative(z.value), f.curvature * z.error + f.jump * jumps + evaluation)

    def stored(self, result: Bounded, dtype: np.dtype[Any]) -> tuple[float, float]:
        """Value and error bound: that of the computation, and one rounding where the dtype is narrower."""
        name = str(dtype)
        if COMPUTED_IN[name] == name:
            return result.value, result.error
        return result.value, result.error + ROUNDOFF[name] * result.size + SUBNORMAL[name]


def arithmetic(number: Callable[[float], Scalar] | Exact | Rounded) -> Exact | Rounded:
    return number if isinstance(number, Exact | Rounded) else Exact(number)

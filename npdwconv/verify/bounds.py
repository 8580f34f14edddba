"""How far a right result may be from the exact one: error bounds that are carried through every stage of an operator.

A sum of n products in any order, with or without fused multiply-adds, is off by at most γₙ·Σ|products|,
γₙ = n·u / (1 − n·u), u the unit roundoff (N. Higham, Accuracy and Stability of Numerical Algorithms, 2nd ed., 2002,
section 3.1). What a stage inherits from the one before, it multiplies by its own weights' absolute values.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from npdwconv.activations import Activation
from npdwconv.layouts import Array
from npdwconv.verify.double import Double, add, lifted, multiply
from npdwconv.verify.reference import RUNGS, Map

EVALUATION_UNITS = 8.0  # roundings that an evaluation of an activation may have, each of `noise`
_EXACT_UNIT = 2.0**-53
_UNBOUNDED = 1e200  # an error from here on is infinite


@dataclass(frozen=True)
class Precision:
    """An arithmetic: what it makes of operands, and how it sums.

    ``digits``, ``least`` and ``largest`` are of an operand's format: significant bits, exponent of the smallest normal
    number, largest number. Operands are rounded to it, to nearest or, where ``truncates``, to either neighbour. Sums
    have the unit roundoff ``unit`` and the range of float32, of float64 where operands are.
    """

    name: str
    digits: int
    least: int
    largest: float
    unit: float
    tiny: float
    overflow: float
    truncates: bool = False

    def gap(self, values: Array) -> Array:
        """How far each value may move where it is rounded to an operand: 0 where the format has it."""
        size = np.abs(values)
        finite = np.where(np.isfinite(size), size, 0.0)
        exponent = np.maximum(np.frexp(finite)[1] - 1, self.least) - (self.digits - 1)
        scaled = np.ldexp(finite, -exponent)
        step = np.ldexp(1.0 if self.truncates else 0.5, exponent)
        moved = np.where(scaled == np.rint(scaled), 0.0, step)
        return np.where(finite > self.largest, np.inf, moved)


_FLOAT32 = (2.0**-126, float(np.finfo(np.float32).max))
_FLOAT64 = (2.0**-1022, float(np.finfo(np.float64).max))

# Tensor cores add without rounding to nearest (M. Fasi et al., PeerJ Comput. Sci. 7 (2021) e330): twice the roundoff.
PRECISIONS = {
    precision.name: precision
    for precision in (
        Precision("float64", 53, -1022, _FLOAT64[1], 2.0**-53, *_FLOAT64),
        Precision("float32", 24, -126, _FLOAT32[1], 2.0**-24, *_FLOAT32),
        Precision("tf32", 11, -126, _FLOAT32[1], 2.0**-23, *_FLOAT32, truncates=True),
        Precision("bfloat16", 8, -126, 3.3895313892515355e38, 2.0**-23, *_FLOAT32),
        Precision("float16", 11, -14, 65504.0, 2.0**-23, *_FLOAT32),
    )
}


@dataclass(frozen=True)
class Smoothness:
    """``curvature`` bounds |f″| between the ``kinks``, where f′ jumps by ``jump``.

    An evaluation of f has intermediate values of size ``noise``·|z| + ``floor``.
    """

    curvature: float
    kinks: tuple[float, ...] = ()
    jump: float = 0.0
    noise: float = 1.0
    floor: float = 0.0


SMOOTHNESS = {
    "relu": Smoothness(0.0, (0.0,), 1.0, 0.0),
    "relu6": Smoothness(0.0, (0.0, 6.0), 1.0, 0.0),
    "hardswish": Smoothness(1.0 / 3.0, (-3.0, 3.0), 0.5),
    "hardsigmoid": Smoothness(0.0, (-3.0, 3.0), 1.0 / 6.0, 0.0, 1.0),
    "sigmoid": Smoothness(0.1, noise=0.0, floor=1.0),
    "silu": Smoothness(0.5),
    "gelu": Smoothness(0.8),
    "gelu_tanh": Smoothness(0.81),
}


class Enclosure(NamedTuple):
    """What a right implementation has at a stage: the exact ``value``, to within ``error``."""

    value: Double
    error: Array

    def shaped(self, *shape: int) -> Enclosure:
        return self.each(lambda array: array.reshape(shape))

    def each(self, view: Any) -> Enclosure:
        """Of a view of every array, such as a slice or other axes."""
        return Enclosure(Double(view(self.value.hi), view(self.value.lo)), view(self.error))

    @property
    def size(self) -> Array:
        """|value| + error, where the value is finite; otherwise 0."""
        hi = np.abs(self.value.hi)
        return np.where(np.isfinite(hi), hi, 0.0) + np.minimum(self.error, _UNBOUNDED)


@dataclass(frozen=True)
class Arithmetic:
    """The stages of an operator, computed with ``precision``; the storage format is that of its results."""

    precision: Precision
    rung: str
    storage_unit: float
    storage_least: float
    storage_largest: float

    def operand(self, array: Array) -> Enclosure:
        """An operand, which the implementation may round to its own format first."""
        value = lifted(np.asarray(array))
        return Enclosure(value, self.precision.gap(value.hi))

    def optional(self, array: Array | None) -> Enclosure | None:
        """A bias, or None."""
        return None if array is None else self.operand(array)

    def bilinear(self, function: Map, a: Enclosure, b: Enclosure, bias: Enclosure | None = None) -> Enclosure:
        """A sum of products for each element, and a bias per channel on axis 1."""
        size = function(a.size, b.size)
        terms = function((a.size > 0) * 1.0, (b.size > 0) * 1.0)
        value, error = RUNGS[self.rung](function, a.value, b.value, terms, size)
        if a.error.any():
            error = error + function(np.minimum(a.error, _UNBOUNDED), b.size)
        if b.error.any():
            error = error + function(a.size, np.minimum(b.error, _UNBOUNDED))
        if bias is not None:
            shape = (1, -1, *(1,) * (size.ndim - 2))
            offset = bias.shaped(*shape)
            value, size, error = add(value, offset.value), size + offset.size, error + offset.error
            terms = terms + (offset.size > 0)
        gamma = self._gamma(terms)
        error = (error + gamma * size + terms * self.precision.tiny) * (1.0 + 2.0**-40)
        return self._ranged(value, error, size * (1.0 + gamma))

    def activate(self, activation: Activation | None, z: Enclosure) -> Enclosure:
        """f(z) of a z that may have been rounded to the storage format before."""
        if activation is None:
            return z
        smooth, f = SMOOTHNESS[activation.name], activation
        slope = np.where(np.isfinite(z.value.hi), f.derivative(z.value.hi), 0.0)
        value = Double(f.function(z.value.hi), slope * z.value.lo)
        noise = smooth.noise * z.size + smooth.floor
        units = EVALUATION_UNITS * (self.precision.unit + _EXACT_UNIT)
        error = f.lipschitz * (z.error + self._stored(z)) + units * noise
        return Enclosure(value, error)

    def derivative(self, activation: Activation, z: Enclosure) -> Enclosure:
        """f′(z), which may be that of either side where a kink lies within z's error."""
        smooth = SMOOTHNESS[activation.name]
        error = z.error + self._stored(z)
        jumps = sum((np.abs(z.value.hi - kink) <= error) * smooth.jump for kink in smooth.kinks)
        noisy = bool(smooth.noise or smooth.floor)
        evaluation = EVALUATION_UNITS * (self.precision.unit + _EXACT_UNIT) * (1.0 + z.size) if noisy else 0.0
        return Enclosure(lifted(activation.derivative(z.value.hi)), smooth.curvature * error + jumps + evaluation)

    def times(self, a: Enclosure, b: Enclosure) -> Enclosure:
        """Elementwise product."""
        size = a.size * b.size
        error = np.minimum(a.error, _UNBOUNDED) * b.size + a.size * np.minimum(b.error, _UNBOUNDED)
        unit = self.precision.unit + 2.0**-100
        return self._ranged(multiply(a.value, b.value), error + unit * size + self.precision.tiny, size)

    def plus(self, a: Enclosure, b: Enclosure) -> Enclosure:
        """Elementwise sum."""
        size = a.size + b.size
        return self._ranged(add(a.value, b.value), a.error + b.error + self.precision.unit * size, size)

    def stored(self, e: Enclosure) -> Enclosure:
        """Rounded to the format in which the result is stored."""
        error = np.where(e.size > self.storage_largest, np.inf, e.error + self._stored(e))
        return Enclosure(e.value, np.where(np.isfinite(e.value.hi), error, 0.0))

    def fed(self, e: Enclosure) -> Enclosure:
        """A stage's result as an operand of the next, rounded to an operand's format and, maybe, stored before."""
        p, summed = self.precision, 24 if self.precision.unit > _EXACT_UNIT else 53
        unit = 2.0**-p.digits * (2.0 if p.truncates else 1.0) if p.digits < summed else 0.0
        least = 2.0 ** (p.least - p.digits) if unit else 0.0
        error = e.error + np.maximum(unit * e.size + least, self._stored(e)) * (2.0 if self.storage_unit else 1.0)
        return Enclosure(e.value, np.where(e.size > p.largest, np.inf, error))

    def _stored(self, e: Enclosure) -> Array:
        return self.storage_unit * e.size + self.storage_least

    def _gamma(self, terms: Array) -> Array:
        rounding = terms * self.precision.unit
        return np.where(rounding < 1.0, rounding / np.where(rounding < 1.0, 1.0 - rounding, 1.0), np.inf)

    def _ranged(self, value: Double, error: Array, most: Array) -> Enclosure:
        """Unbounded where a partial sum may overflow; nothing to bound where the value is not finite."""
        unbounded = (error >= _UNBOUNDED) | np.isnan(error) | (most >= self.precision.overflow)
        return Enclosure(value, np.where(unbounded, np.inf, error))


def arithmetic(compute: Precision, stored: np.dtype[Any], rung: str) -> Arithmetic:
    """The arithmetic ``compute`` with results stored as ``stored``; no rounding where that is no narrower."""
    kept = PRECISIONS[stored.name]
    narrower = kept.digits < PRECISIONS["float32" if compute.unit > _EXACT_UNIT else "float64"].digits
    unit, least = (2.0**-kept.digits, 2.0 ** (kept.least - kept.digits)) if narrower else (0.0, 0.0)
    largest = kept.largest * (1.0 + 2.0 ** -(kept.digits + 1)) if narrower else np.inf
    return Arithmetic(compute, rung, unit, least, largest)

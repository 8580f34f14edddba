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
    have the unit roundoff ``unit`` and, up to ``overflow``, the range of float32, of float64 where operands are, or of
    the operands' format where it has their digits: what is below ``tiny`` may count as 0.
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
        """How far each value may move where it becomes an operand: not at all where the format has it."""
        size = np.abs(values)
        finite = np.where(np.isfinite(size), size, 0.0)
        exponent = np.maximum(np.frexp(finite)[1] - 1, self.least) - (self.digits - 1)
        scaled = np.ldexp(finite, -exponent)
        step = np.ldexp(1.0 if self.truncates else 0.5, exponent)
        moved = np.where(scaled == np.rint(scaled), 0.0, step)
        flushed = np.where(finite < self.tiny, np.maximum(finite, moved), moved)
        return np.where(finite > self.largest, np.inf, flushed)


_FLOAT32 = (2.0**-126, float(np.finfo(np.float32).max))
_FLOAT64 = (2.0**-1022, float(np.finfo(np.float64).max))

# Tensor cores cut each term off where the largest of a block ends, and the block's sum again (M. Fasi et al., PeerJ
# Comput. Sci. 7 (2021) e330): 2^-23 twice.
PRECISIONS = {
    precision.name: precision
    for precision in (
        Precision("float64", 53, -1022, _FLOAT64[1], 2.0**-53, *_FLOAT64),
        Precision("float32", 24, -126, _FLOAT32[1], 2.0**-24, *_FLOAT32),
        Precision("tf32", 11, -126, _FLOAT32[1], 2.0**-22, *_FLOAT32, truncates=True),
        Precision("bfloat16", 8, -126, 3.3895313892515355e38, 2.0**-22, *_FLOAT32),
        Precision("float16", 11, -14, 65504.0, 2.0**-22, *_FLOAT32),
        Precision("bfloat16_accumulation", 8, -126, 3.3895313892515355e38, 2.0**-8, 2.0**-126, 3.3895313892515355e38),
        Precision("float16_accumulation", 11, -14, 65504.0, 2.0**-11, 2.0**-24, 65504.0),  # with its subnormal numbers
    )
}


@dataclass(frozen=True)
class Smoothness:
    """``curvature`` bounds |f″| between the ``kinks``, where f′ jumps by ``jump``.

    An evaluation of f has intermediate values of size ``noise``·|z| + ``floor``; neither where it only compares and
    selects, and so gives the same of a rounded z as rounded of z.
    """

    curvature: float
    kinks: tuple[float, ...] = ()
    jump: float = 0.0
    noise: float = 1.0
    floor: float = 0.0

    @property
    def exact(self) -> bool:
        return not (self.noise or self.floor)


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
        return np.where(np.isfinite(hi), hi, 0.0) + self.shift

    @property
    def shift(self) -> Array:
        """The error as a number that 0 times is 0."""
        return np.minimum(self.error, _UNBOUNDED)

    @property
    def unbounded(self) -> Array:
        return (self.error >= _UNBOUNDED) * 1.0

    @property
    def wild(self) -> Array:
        """Infinite, NaN or unbounded."""
        return (~np.isfinite(self.value.hi) | (self.error >= _UNBOUNDED)) * 1.0

    @property
    def unsure(self) -> Array:
        """Of either sign, or 0: an infinity times it may be anything."""
        return ((self.error > 0) & (self.error >= np.abs(self.value.hi))) * 1.0


@dataclass(frozen=True)
class Arithmetic:
    """The stages of an operator, computed with ``precision``; the storage format is that of its results.

    A rounding to it moves a value z by at most ``storage_unit``·|z| + ``storage_least``, and from ``storage_limit`` on
    to infinity. What has a name of its own in an operator's definition may have been stored: a sum before its bias,
    and before its activation, a stage's result.
    """

    precision: Precision
    rung: str
    storage_unit: float
    storage_least: float
    storage_limit: float

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
            error = error + function(a.shift, b.size)
        if b.error.any():
            error = error + function(a.size, b.shift)
        if a.wild.any() or b.wild.any():
            error = np.where(_lost(function, a, b), np.inf, error)
        if bias is not None:
            offset = bias.shaped(1, bias.error.size, *(1,) * (size.ndim - 2))
            error = error + offset.error + self._stored(Enclosure(value, error + self._gamma(terms) * size))
            value, size = add(value, offset.value), size + offset.size
            terms = terms + (offset.size > 0)
        gamma = self._gamma(terms)
        error = (error + gamma * size + 2.0 * terms * self.precision.tiny) * (1.0 + (terms + 16.0) * 2.0**-52)
        return self._ranged(value, error, size * (1.0 + gamma))

    def activate(self, activation: Activation | None, z: Enclosure) -> Enclosure:
        """f(z) of a z that may have been rounded to the storage format before."""
        if activation is None:
            return z
        smooth, f, (hi, lo) = SMOOTHNESS[activation.name], activation, z.value
        slope = f.derivative(np.nextafter(hi, np.copysign(np.inf, lo))) if lo.any() else 0.0
        value = Double(f.function(hi), np.where(lo == 0.0, 0.0, slope * lo))
        units = EVALUATION_UNITS * (self.precision.unit + _EXACT_UNIT)
        before = z.error if smooth.exact else z.error + self._stored(z)
        error = f.lipschitz * before + units * (smooth.noise * z.size + smooth.floor) + self.precision.tiny
        return Enclosure(value, error)

    def derivative(self, activation: Activation, z: Enclosure) -> Enclosure:
        """f′(z), which may be that of either side where a kink lies within z's error."""
        smooth, hi = SMOOTHNESS[activation.name], z.value.hi
        reach = z.error + self._stored(z) + np.abs(z.value.lo)
        jumps = sum((np.abs(hi - kink) <= reach) * smooth.jump for kink in smooth.kinks)
        evaluation = 0.0 if smooth.exact else EVALUATION_UNITS * (self.precision.unit + _EXACT_UNIT) * (1.0 + z.size)
        from_result = self.storage_unit * smooth.floor  # sigmoid′ = f·(1 − f), of an f that was stored
        error = smooth.curvature * np.minimum(reach, _UNBOUNDED) + jumps + evaluation + from_result
        return Enclosure(lifted(activation.derivative(hi)), np.where(reach >= _UNBOUNDED, np.inf, error))

    def times(self, a: Enclosure, b: Enclosure) -> Enclosure:
        """Elementwise product."""
        size = a.size * b.size
        error = a.shift * b.size + a.size * b.shift + (self.precision.unit + 2.0**-100) * size + self.precision.tiny
        error = np.where(_lost(np.multiply, a, b), np.inf, error * (1.0 + 2.0**-48))
        return self._ranged(multiply(a.value, b.value), error, size)

    def plus(self, a: Enclosure, b: Enclosure) -> Enclosure:
        """Elementwise sum, of an ``a`` that may have been rounded to the storage format before."""
        size = a.size + b.size
        error = a.error + b.error + self._stored(a) + self.precision.unit * size + self.precision.tiny
        return self._ranged(add(a.value, b.value), error * (1.0 + 2.0**-48), size)

    def stored(self, e: Enclosure) -> Enclosure:
        """Rounded to the format in which the result is stored: infinite where it surely exceeds that."""
        hi, error = e.value.hi, e.error + self._stored(e)
        exceeds = np.abs(hi) > e.error + self.storage_limit
        hi = np.where(exceeds, np.copysign(np.inf, hi), hi)
        exact = exceeds | (~np.isfinite(hi) & (e.error < _UNBOUNDED))
        return Enclosure(Double(hi, np.where(exceeds, 0.0, e.value.lo)), np.where(exact, 0.0, error))

    def fed(self, e: Enclosure) -> Enclosure:
        """A stage's result as an operand of the next: stored before, maybe, and rounded to an operand's format."""
        p = self.precision
        kept = self._stored(e)
        unit = 2.0**-p.digits * (2.0 if p.truncates else 1.0)
        narrowed = unit * (e.size + np.minimum(kept, _UNBOUNDED)) + 2.0 ** (p.least - p.digits)
        summed = p.digits >= (24 if p.unit > _EXACT_UNIT else 53)
        error = e.error + p.tiny + (kept if summed or unit == self.storage_unit else kept + narrowed)
        return Enclosure(e.value, np.where(e.size > p.largest, np.inf, error))

    def _stored(self, e: Enclosure) -> Array:
        """How far a rounding to the storage format may move a value."""
        if not self.storage_unit:
            return np.zeros(())
        return np.where(e.size >= self.storage_limit, np.inf, self.storage_unit * e.size + self.storage_least)

    def _gamma(self, terms: Array) -> Array:
        rounding = terms * self.precision.unit
        return np.where(rounding < 1.0, rounding / np.where(rounding < 1.0, 1.0 - rounding, 1.0), np.inf)

    def _ranged(self, value: Double, error: Array, most: Array) -> Enclosure:
        """Unbounded where a partial sum may overflow."""
        unbounded = (error >= _UNBOUNDED) | np.isnan(error) | (most >= self.precision.overflow)
        return Enclosure(value, np.where(unbounded, np.inf, error))


def _lost(function: Map, a: Enclosure, b: Enclosure) -> Array:
    """Where a bilinear map may give anything: it reads what is unbounded, or an infinity times what may be 0."""
    anywhere = function(a.unbounded, np.ones_like(b.error)) + function(np.ones_like(a.error), b.unbounded)
    return np.asarray(anywhere + function(a.wild, b.unsure) + function(a.unsure, b.wild) > 0)


def arithmetic(compute: Precision, stored: np.dtype[Any], rung: str) -> Arithmetic:
    """The arithmetic ``compute`` with results stored as ``stored``; no rounding where that is no narrower."""
    kept = PRECISIONS[stored.name]
    narrower = kept.digits < PRECISIONS["float32" if compute.unit > _EXACT_UNIT else "float64"].digits
    if not narrower:
        return Arithmetic(compute, rung, 0.0, 0.0, np.inf)
    unit, last = 2.0**-kept.digits, 2.0 ** float(np.frexp(kept.largest)[1] - 1)
    least = max(2.0 ** (kept.least - kept.digits), kept.tiny)
    return Arithmetic(compute, rung, unit, least, kept.largest + unit * last)

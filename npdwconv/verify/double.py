"""Double-double numbers, hi + lo, in NumPy: twice the digits of float64 out of exact sums and products.

`two_sum` and `two_prod` are error-free transformations (D. Knuth, The Art of Computer Programming, vol. 2, 4.2.2;
T. Dekker, Numer. Math. 18 (1971) 224): a + b and a·b as a rounded result and the exact rest. `split` cuts numbers into
slices so narrow that float64 sums of their products are exact (K. Ozaki, T. Ogita, S. Oishi, S. Rump, Numer. Algorithms
59 (2012) 95), so that any bilinear map that NumPy computes is computed without error, slice by slice.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from npdwconv.layouts import Array

_SPLITTER = 2.0**27 + 1.0
_DIGITS = 53


class Double(NamedTuple):
    """hi + lo, |lo| at most half a unit in the last place of hi; of what is not finite, lo is 0."""

    hi: Array
    lo: Array


def lifted(array: Array) -> Double:
    """``array`` as it is."""
    hi = array.astype(np.float64)
    return Double(hi, np.zeros_like(hi))


def two_sum(a: Array, b: Array) -> Double:
    """a + b: rounded, and the exact rest."""
    total = a + b
    part = total - a
    return _settled(total, (a - (total - part)) + (b - part))


def two_prod(a: Array, b: Array) -> Double:
    """a·b: rounded, and the exact rest; exact unless a factor exceeds 2⁹⁹⁶ or the rest is subnormal."""
    product = a * b
    a_high, b_high = _upper(a), _upper(b)
    a_low, b_low = a - a_high, b - b_high
    rest = ((a_high * b_high - product) + a_high * b_low + a_low * b_high) + a_low * b_low
    return _settled(product, rest)


def add(a: Double, b: Double) -> Double:
    """a + b to within 2⁻¹⁰⁴ of |a| + |b|."""
    total, rest = two_sum(a.hi, b.hi)
    return two_sum(total, rest + (a.lo + b.lo))


def multiply(a: Double, b: Double) -> Double:
    """a·b to within 2⁻¹⁰² of |a·b|."""
    product, rest = two_prod(a.hi, b.hi)
    rest = rest + (a.hi * b.lo + a.lo * b.hi)
    return two_sum(product, np.where(np.isfinite(product), rest, 0.0))  # an infinity times a rest of 0 is NaN


def minus(observed: Array, value: Double) -> Array:
    """observed − value, rounded once or twice: the difference of near numbers is exact."""
    return (observed - value.hi) - value.lo


def increased(value: Double, term: Array) -> Double:
    """value + term to within 2⁻¹⁰⁴ of |value| + |term|, of finite numbers."""
    total = value.hi + term
    part = total - value.hi
    rest = ((value.hi - (total - part)) + (term - part)) + value.lo
    hi = total + rest
    return Double(hi, rest - (hi - total))


def split(number: Double, bits: int) -> tuple[Iterator[Array], int]:
    """Slices of at most ``bits`` binary digits each, from the first on, and an exponent: number = Σ slices·2^exponent.

    What the first n of them leave out is at most 2^(−bits·n) in the same unit, and nothing where the slices end.
    Numbers that are not finite count as 0.
    """
    finite = np.isfinite(number.hi)
    hi, lo = (np.where(finite, part, 0.0) for part in number)
    exponent = int(np.frexp(np.max(np.abs(hi), initial=0.0))[1])
    return _slices(np.ldexp(hi, -exponent), np.ldexp(lo, -exponent), bits), exponent


def _slices(hi: Array, lo: Array, bits: int) -> Iterator[Array]:
    unit = 2.0**-bits
    while hi.any():
        shift = 1.5 * 2.0 ** (_DIGITS - 1) * unit
        part = (hi + shift) - shift
        yield part
        hi, lo = two_sum(hi - part, lo) if lo.any() else (hi - part, lo)
        unit *= 2.0**-bits


def _upper(a: Array) -> Array:
    scaled = _SPLITTER * a
    upper: Array = scaled - (scaled - a)
    return upper


def _settled(hi: Array, lo: Array) -> Double:
    return Double(hi, np.where(np.isfinite(hi) & np.isfinite(lo), lo, 0.0))

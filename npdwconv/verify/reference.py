"""What a bilinear map gives, exactly or nearly: three rungs, each precise enough to judge the one before.

A map is a function of two arrays, linear in each, written with nothing but sums and products of NumPy arrays, so that
it takes any numbers: float64, slices of them, `fractions.Fraction`. A rung evaluates it and says how far it may be off.
"""

from __future__ import annotations

from collections.abc import Callable
from fractions import Fraction
from itertools import islice
from math import ceil, inf, isfinite, log2, prod
from typing import Any, NamedTuple

import numpy as np

from npdwconv.geometry import ConvGeometry
from npdwconv.kernels.reference.borders import pad_bwd, pad_fwd
from npdwconv.kernels.reference.depthwise import correlate, gather, scatter
from npdwconv.layouts import Array
from npdwconv.verify.double import Double, increased, lifted, split

Map = Callable[[Array, Array], Array]

_UNIT = 2.0**-53
_DIGITS_OF_SUM = 53
_ENOUGH = 2.0**-75  # of an element's size: what the double-double rung may leave out
_MOST_BITS = 240  # that it goes down from the largest product to find that for the least element


class Sum(NamedTuple):
    """The value of a bilinear map, and a bound for what the rung left out of it."""

    value: Double
    error: Array


Rung = Callable[[Map, Double, Double, Array, Array], Sum]


class Windows(NamedTuple):
    """The three bilinear maps of a depthwise convolution: of (N, C, *) and (C·M, *kernel), channels first.

    ``transposed`` reads the geometry the other way: the forward scatters, its adjoint gathers.
    """

    geometry: ConvGeometry
    transposed: bool = False

    def forward(self, x: Array, weight: Array) -> Array:
        """z[n, cM+m, o] = Σ_t w[cM+m, t]·x[n, c, i]; transposed: z[n, cM+m, i] = Σ_t w[cM+m, t]·x[n, c, o]."""
        weights, source = _grouped_weights(weight, x.shape[1]), x[:, :, None]
        extents = self.geometry.size if self.transposed else self.geometry.out
        z = _zeros((*x.shape[:2], weights.shape[1], *extents), x, weight)
        if self.transposed:
            scatter(z, weights, source, self.geometry)
        else:
            gather(z, weights, *_padded(source, self.geometry))
        return z.reshape(x.shape[0], weight.shape[0], *extents)

    def input(self, z: Array, weight: Array, channels: int) -> Array:
        """The adjoint in x."""
        weights = _grouped_weights(weight, channels)
        source = z.reshape(z.shape[0], channels, weights.shape[1], *z.shape[2:])
        if self.transposed:
            x = _zeros((z.shape[0], channels, 1, *self.geometry.out), z, weight)
            gather(x, weights, source, self.geometry)
            return x[:, :, 0]
        inner = self.geometry.inside() if self.geometry.copies_border else self.geometry
        padded = _zeros((z.shape[0], channels, 1, *inner.size), z, weight)
        scatter(padded, weights, source, inner)
        return pad_bwd(padded, self.geometry)[:, :, 0]

    def weight(self, z: Array, x: Array, shape: tuple[int, ...]) -> Array:
        """The adjoint in the weight, of ``shape`` (C·M, *kernel)."""
        channels = x.shape[1]
        weights = _grouped_weights(_zeros(shape, z, x), channels)
        gradient = z.reshape(z.shape[0], channels, weights.shape[1], *z.shape[2:])
        if self.transposed:
            correlate(weights, x[:, :, None], gradient, self.geometry)
        else:
            source, inner = _padded(x[:, :, None], self.geometry)
            correlate(weights, gradient, source, inner)
        return weights.reshape(shape)


def mix(x: Array, weight: Array) -> Array:
    """z[n, k, …] = Σ_c w[k, c]·x[n, c, …]."""
    pixels = x.reshape(*x.shape[:2], prod(x.shape[2:]))
    shape = (x.shape[0], weight.shape[0], *x.shape[2:])
    z: Array = np.matmul(weight, pixels) if x.size else _zeros(shape, x, weight)
    return z.reshape(shape)


def mix_weight(z: Array, x: Array) -> Array:
    """w[k, c] = Σ_n,… z[n, k, …]·x[n, c, …]."""
    if not (x.size and z.size):
        return _zeros((z.shape[1], x.shape[1]), z, x)
    rows, columns = (np.moveaxis(array, 1, 0).reshape(array.shape[1], -1) for array in (z, x))
    product: Array = np.matmul(rows, columns.T)
    return product


def total(z: Array, ones: Array) -> Array:
    """b[k] = Σ_n,… z[n, k, …]·1."""
    sums: Array = z.sum(axis=(0, *range(2, z.ndim)))
    return sums * ones


def plain(function: Map, a: Double, b: Double, terms: Array, size: Array) -> Sum:
    """In float64, for operands of at most half its digits: off by no more than γ of the terms' number.

    Two roundings more are for operands that are results of a stage, whose ``lo`` is left out.
    """
    value = function(a.hi, b.hi)
    rounding = (terms + 2.0) * _UNIT
    return Sum(Double(value, np.zeros_like(value)), rounding / (1.0 - rounding) * size)


def double(function: Map, a: Double, b: Double, terms: Array, size: Array) -> Sum:
    """As double-double numbers: of slices of the operands, whose float64 sums of products are exact.

    Products of slices are added by the order of their size, until no element can miss more than 2⁻⁷⁵ of its own.
    """
    most = max(float(np.max(terms, initial=1.0)), 1.0)
    bits = (_DIGITS_OF_SUM - ceil(log2(most))) // 2
    left_a, scale_a = split(a, bits)
    left_b, scale_b = split(b, bits)
    scale = scale_a + scale_b
    enough = np.ldexp(_ENOUGH * np.min(size, where=size > 0, initial=np.inf), -scale)
    value, rest = lifted(np.zeros_like(size)), 0.0
    cut_a: list[Array] = []
    cut_b: list[Array] = []
    for order in range(ceil(_MOST_BITS / bits)):
        cut_a += islice(left_a, 1)
        cut_b += islice(left_b, 1)
        places = range(max(0, order + 1 - len(cut_b)), min(order + 1, len(cut_a)))
        for place in places:
            value = increased(value, function(cut_a[place], cut_b[order - place]))
        rest = most * (order + 3) * 2.0 ** (-bits * (order + 1)) if places else 0.0
        if rest <= enough:
            break
    error = np.where(size > 0, np.ldexp(rest, scale) + 2.0**-90 * size, 0.0)
    return Sum(_kept(function, a, b, Double(np.ldexp(value.hi, scale), np.ldexp(value.lo, scale))), error)


def fraction(function: Map, a: Double, b: Double, terms: Array, size: Array) -> Sum:
    """In rational numbers, exactly, and rounded to double-double at the end: for tiny cases."""
    value = function(_fractions(a), _fractions(b))
    hi = np.vectorize(_nearest, otypes=[np.float64])(value) if value.size else np.zeros(value.shape)
    lo = np.vectorize(_rest, otypes=[np.float64])(value, hi) if value.size else hi
    return Sum(_kept(function, a, b, Double(hi, lo)), 2.0**-104 * np.abs(hi))


RUNGS: dict[str, Rung] = {"float64": plain, "double-double": double, "fraction": fraction}


def _kept(function: Map, a: Double, b: Double, value: Double) -> Double:
    """``value``, but what reads an infinity or NaN as float64 has it: slices and fractions leave them out."""
    if np.isfinite(a.hi).all() and np.isfinite(b.hi).all():
        return value
    rough = function(_signs(a.hi), _signs(b.hi))
    finite = np.isfinite(rough)
    return Double(np.where(finite, value.hi, rough), np.where(finite, value.lo, 0.0))


def _signs(array: Array) -> Array:
    """-1, 0 or 1 for what is finite: no sum of them overflows."""
    return np.where(np.isfinite(array), np.sign(array), array)


def _nearest(exact: Any) -> float:
    try:
        return float(exact)
    except OverflowError:
        return inf if exact > 0 else -inf


def _rest(exact: Any, near: float) -> float:
    return float(exact - Fraction(near)) if isfinite(near) else 0.0


def _fractions(number: Double) -> Array:
    exact = np.empty(number.hi.shape, dtype=object)
    for index in np.ndindex(exact.shape):
        hi, lo = float(number.hi[index]), float(number.lo[index])
        exact[index] = Fraction(hi) + Fraction(lo) if np.isfinite(hi) else Fraction(0)
    return exact


def _grouped_weights(weight: Array, channels: int) -> Array:
    each = weight.shape[0] // channels if channels else 1
    return weight.reshape(channels, each, *weight.shape[1:])


def _zeros(shape: tuple[int, ...], *like: Array) -> Array:
    """Zeros of the numbers that the arrays have: integer zeros where they hold objects."""
    dtype: Any = np.result_type(*like)
    return np.full(shape, 0, dtype=dtype)


def _padded(x: Array, geometry: ConvGeometry) -> tuple[Array, ConvGeometry]:
    return pad_fwd(x, geometry)

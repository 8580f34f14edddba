"""Bounds room of the peer tests: how far two right results may lie apart, from the dtype and the numbers of terms.

A sum of m products of operands that carry errors lies within ``inherited + γ_m·Σ|a||b|`` of the exact one, in any order
and with or without FMA (Higham, Accuracy and Stability of Numerical Algorithms, 2nd ed., §3.1). Σ|a||b| is the peer's
own bilinear map, in float64, of the absolute values; m is that map of ones. Both results err: they may differ by twice
the bound.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from oracle_numbers import ACTIVATIONS, COMPUTED_IN, EVALUATION_ULPS, ROUNDOFF, SUBNORMAL, nothing

Array = np.ndarray[Any, np.dtype[Any]]
Bilinear = Callable[[Array, Array], Array]
SLACK = 2  # two more terms, for the roundings of the bound itself


@dataclass(frozen=True)
class Estimate:
    """Values in float64, and by how much a computation of them in the dtype may be wrong."""

    value: Array
    error: Array

    @property
    def most(self) -> Array:
        return abs(self.value) + self.error


@dataclass(frozen=True)
class Maps:
    """The peer's three bilinear maps on float64 arrays: (x, w), (grad, w) -> grad_x, (grad, x) -> grad_w."""

    forward: Bilinear
    input_grad: Bilinear
    weight_grad: Bilinear


def given(array: Array) -> Estimate:
    value = np.asarray(array, dtype=np.float64)
    return Estimate(value, np.zeros_like(value))


def gamma(terms: Array | float, dtype: str) -> Any:
    rounding = (terms + SLACK) * ROUNDOFF[COMPUTED_IN[dtype]]
    return rounding / (1 - rounding)


def product(bilinear: Bilinear, a: Estimate, b: Estimate, dtype: str, bias: Array | None = None) -> Estimate:
    """A bilinear map of two estimates, plus a bias per channel (axis 1)."""
    terms = bilinear(np.ones_like(a.value), np.ones_like(b.value))
    size, value = bilinear(a.most, b.most), bilinear(a.value, b.value)
    inherited = bilinear(a.error, abs(b.value)) + bilinear(a.most, b.error)
    if bias is not None:
        offset = np.asarray(bias, dtype=np.float64).reshape(-1, *(1,) * (value.ndim - 2))
        value, size, terms = value + offset, size + abs(offset), terms + 1
    return Estimate(value, inherited + gamma(terms, dtype) * size + terms * SUBNORMAL[COMPUTED_IN[dtype]])


def total(grad: Estimate, dtype: str) -> Estimate:
    """The sum over everything but channels (axis 1): a bias's gradient."""
    axes = (0, *range(2, grad.value.ndim))
    terms = grad.value.size / max(grad.value.shape[1], 1)
    return Estimate(grad.value.sum(axes), grad.error.sum(axes) + gamma(terms, dtype) * grad.most.sum(axes))


def activate(name: str | None, z: Estimate, dtype: str) -> Estimate:
    if name is None:
        return z
    f, unit = ACTIVATIONS[name], ROUNDOFF[COMPUTED_IN[dtype]]
    return Estimate(each(f.value, z.value), f.lipschitz * z.error + EVALUATION_ULPS * unit * f.noise(z.value))


def chain(name: str | None, grad: Estimate, z: Estimate, dtype: str) -> Estimate:
    """grad · activation′(z)."""
    if name is None:
        return grad
    f, unit = ACTIVATIONS[name], ROUNDOFF[COMPUTED_IN[dtype]]
    jumps = sum((abs(z.value - kink) <= z.error).astype(float) for kink in f.kinks)
    evaluation = 0.0 if f.noise is nothing else EVALUATION_ULPS * unit * (1 + abs(z.value))
    slope = Estimate(each(f.derivative, z.value), f.curvature * z.error + f.jump * jumps + evaluation)
    return product(np.multiply, grad, slope, dtype)


def each(function: Callable[[float], Any], values: Array) -> Array:
    flat = [float(function(value)) for value in values.ravel().tolist()]
    return np.array(flat, dtype=np.float64).reshape(values.shape)


def estimates(
    maps: Maps, x: Array, weight: Array, bias: Array | None, grad: Array, activation: str | None, dtype: str
) -> dict[str, Estimate]:
    """Of ``out = activation(forward(x, weight) + bias)`` and the gradients that ``grad`` sends back."""
    xs, ws = given(x), given(weight)
    z = product(maps.forward, xs, ws, dtype, bias)
    grad_z = chain(activation, given(grad), z, dtype)
    found = {
        "out": activate(activation, z, dtype),
        "x": product(maps.input_grad, grad_z, ws, dtype),
        "weight": product(maps.weight_grad, grad_z, xs, dtype),
    }
    return found if bias is None else found | {"bias": total(grad_z, dtype)}


def agree(name: str, ours: Array, theirs: Array, estimate: Estimate) -> None:
    """Two computations of one estimate, each in error by at most its bound."""
    assert ours.shape == theirs.shape == estimate.value.shape, f"{name}: {ours.shape}, the peer has {theirs.shape}"
    assert ours.dtype == theirs.dtype, f"{name}: {ours.dtype}, the peer has {theirs.dtype}"
    gap = abs(ours.astype(np.float64) - theirs.astype(np.float64))
    wrong = ~(gap <= 2 * estimate.error)
    assert not wrong.any(), _report(name, ours, theirs, 2 * estimate.error, wrong)


def agree_rounded(name: str, ours: Array, theirs: Array, estimate: Estimate) -> None:
    """Ours is the 16-bit rounding of a float32 which may differ from the peer's float32 by twice the bound."""
    assert ours.shape == theirs.shape == estimate.value.shape, f"{name}: {ours.shape}, the peer has {theirs.shape}"
    wide, middle = ours.astype(np.float64), theirs.astype(np.float64)
    low, high = ((middle + sign * 2 * estimate.error).astype(ours.dtype).astype(np.float64) for sign in (-1, 1))
    wrong = ~((low <= wide) & (wide <= high))
    assert not wrong.any(), _report(name, ours, theirs, 2 * estimate.error, wrong)


def _report(name: str, ours: Array, theirs: Array, bound: Array, wrong: Array) -> str:
    index = tuple(int(i) for i in np.argwhere(wrong)[0])
    return (
        f"{name}{list(index)} is {ours[index]}, the peer has {theirs[index]}, they may differ by {bound[index]:.3g}; "
        f"{int(wrong.sum())} of {wrong.size} are wrong"
    )

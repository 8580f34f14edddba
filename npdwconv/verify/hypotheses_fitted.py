"""Mistakes with numbers that the observation tells: by which factor values were multiplied, what was added."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np

from npdwconv.activations import ACTIVATIONS
from npdwconv.layouts import Array
from npdwconv.verify.bounds import Enclosure
from npdwconv.verify.double import Double, lifted
from npdwconv.verify.hypotheses_evidence import Evidence, Finding
from npdwconv.verify.hypotheses_order import linear, rows_of

_LEAST_FACTOR = 2.0**-20  # less is no factor: nothing was written
_ENOUGH, _FEW = 12, 4  # elements that tell a channel's numbers, and one alone
_SMALLER = 0.5  # of a channel's errors
_HUGE = 1e30
_STEPS = 12  # of Gauss-Newton
_AFFINE = {
    (True, True): "what goes into the activation, {}, and another offset",
    (True, False): "each channel by {}, and another offset",
    (False, True): "before the activation, {}",
    (False, False): "{}",
}


def scale(e: Evidence) -> Iterator[Finding]:
    """A factor of the result, of each of its channels, or of what goes into the activation, with an offset."""
    return _smaller(e, _scales(e))


def offset(e: Evidence) -> Iterator[Finding]:
    """A number that is added in each channel, before the activation."""
    if e.role == "out":
        yield from _smaller(e, _affine(e, factors=False))


def _smaller(e: Evidence, found: Iterator[Finding]) -> Iterator[Finding]:
    """Findings in the channels whose errors they make smaller, all in all: fits spread those of a few elements."""
    before = _sizes(e, e.compared.ratio)
    for finding in found:
        better = _sizes(e, finding.ratio) < _SMALLER * before
        if better.any():
            yield finding._replace(ratio=np.where(_along(e, better), finding.ratio, e.compared.ratio))


def _sizes(e: Evidence, ratio: Array) -> Array:
    """The ratios' root mean square in each channel."""
    sizes: Array = np.sqrt(np.mean(np.minimum(rows_of(ratio, e.channel_axis), _HUGE) ** 2, axis=1))
    return sizes


def _scales(e: Evidence) -> Iterator[Finding]:
    whole = _factor(e, axis=None)
    if whole is not None:
        ratio = e.compare(_times(e, whole))
        yield Finding(f"the whole result by {_numbers(whole)}", ratio)
        if not (ratio > 1.0).any():
            return
    single = _factor(e, axis=e.channel_axis)
    if single is not None:
        yield Finding(f"each channel by its own, {_numbers(single)}", e.compare(_times(e, single)))
    if e.role == "out":
        yield from _affine(e, factors=True)


def _times(e: Evidence, factor: Array) -> Enclosure:
    value, size = e.truth.value, np.abs(factor) * e.truth.size
    error = np.abs(factor) * e.truth.error + 2.0 * e.ar.precision.unit * size
    return Enclosure(Double(value.hi * factor, value.lo * factor), error)


def _factor(e: Evidence, axis: int | None) -> Array | None:
    """observed / expected where that is well determined, for all or for each index of an axis; None where it is 1."""
    observed, expected = e.observed.astype(np.float64), e.compared.expected
    axes = tuple(other for other in range(observed.ndim) if other != axis)
    good = np.isfinite(observed) & np.isfinite(expected) & (np.abs(expected) > 4.0 * e.compared.bound)
    with np.errstate(all="ignore"):
        ratio = np.where(good, observed / expected, np.nan)
        size = np.where(good, np.abs(expected), 0.0)
        large = size >= 0.25 * size.max(axis=axes, keepdims=True, initial=0.0)
        middle = _median(np.where(large, ratio, np.nan), axes)
        slack = 4.0 * e.compared.bound * np.maximum(1.0, np.abs(middle))
        near = good & (np.abs(observed - middle * expected) <= slack)
        weights = np.where(near, expected, 0.0)
        number = (near * 1.0).sum(axis=axes, keepdims=True)
        fitted = (np.where(near, observed, 0.0) * weights).sum(axis=axes, keepdims=True)
        fitted = fitted / (weights**2).sum(axis=axes, keepdims=True)
    usable = (number >= (3 if axis is None else _ENOUGH)) & np.isfinite(fitted) & (np.abs(fitted) > _LEAST_FACTOR)
    wrong = e.bad.any(axis=axes, keepdims=True)
    factor = np.where(usable & wrong, fitted, 1.0)
    return factor if (factor != 1.0).any() else None


def _median(ratio: Array, axes: tuple[int, ...]) -> Array:
    kept = [axis for axis in range(ratio.ndim) if axis not in axes]
    rows = ratio.transpose(*kept, *axes).reshape(*(ratio.shape[axis] for axis in kept), -1)
    ordered = np.sort(rows, axis=-1)
    middle = np.maximum(np.isfinite(ordered).sum(axis=-1, keepdims=True) - 1, 0) // 2
    found = np.take_along_axis(ordered, middle, axis=-1)[..., 0]
    return found.reshape(tuple(ratio.shape[axis] if axis in kept else 1 for axis in range(ratio.ndim)))


def _affine(e: Evidence, *, factors: bool) -> Iterator[Finding]:
    """f(s·z + t) per channel, z the sum of products without bias: a batch norm folded otherwise; or s = 1.

    Factors are not named where offsets alone explain as much.
    """
    operands = {key: array for key, array in e.case.operands.items() if key != "bias"}
    bare = replace(e.case, operands=operands, options=e.case.options | {"activation": None})
    z = Evidence(bare, e.name, e.compared, e.ar, e.norm).enclosed()
    offsets = _fitted(e, z, factors=False)
    found = _fitted(e, z, factors=True) if factors else offsets
    if found is not None and (found is offsets or offsets is None or _left(found) < _left(offsets)):
        yield found


def _left(finding: Finding) -> int:
    return int(np.count_nonzero(finding.ratio > 1.0))


def _fitted(e: Evidence, z: Enclosure, *, factors: bool) -> Finding | None:
    """f(s·z + t) with the numbers that fit best in each channel that has bad elements; None where there are none."""
    name, held = e.case.options.get("activation"), e.case.operands.get("bias")
    rows, seen = rows_of(z.value.hi, e.channel_axis), rows_of(e.observed, e.channel_axis).astype(np.float64)
    bias = np.zeros(len(rows)) if held is None else held.astype(np.float64)
    s, t = _gauss_newton(rows, seen, bias, name, factors=factors)
    moved = rows_of(e.bad, e.channel_axis).any(axis=1) & (np.abs(s) > _LEAST_FACTOR) & ((s != 1.0) | (t != bias))
    if not moved.any():
        return None
    exact = _shifted(e, z, np.where(moved, s, 1.0), np.where(moved, t, bias), name)
    number = _numbers(s[moved]) if factors else _numbers((t - bias)[moved])
    ratio = np.where(_along(e, moved), e.compare(exact), e.compared.ratio)
    return Finding(_AFFINE[factors, name is not None].format(number), ratio)


def _along(e: Evidence, channels: Array) -> Array:
    return channels.reshape([-1 if axis == e.channel_axis else 1 for axis in range(e.observed.ndim)])


def _shifted(e: Evidence, z: Enclosure, factor: Array, offset: Array, name: str | None) -> Enclosure:
    """f(s·z + t), to within what the bound allows f(z + bias)."""
    s, t = _along(e, factor), _along(e, offset)
    error = np.abs(s) * z.error + 1.5 * e.ar.precision.unit * (np.abs(s) * z.size + np.abs(t))
    exact = e.ar.activate(ACTIVATIONS[name] if name else None, Enclosure(lifted(s * z.value.hi + t), error))
    return exact._replace(error=np.maximum(exact.error, np.maximum(np.abs(s), 1.0) * e.truth.error))


def _gauss_newton(z: Array, seen: Array, bias: Array, name: str | None, *, factors: bool) -> tuple[Array, Array]:
    """s and t of each row with f(s·z + t) ≈ seen, from s = 1, t = bias on; as they began where f(z) does not tell."""
    f = ACTIVATIONS[name] if name else None
    s, t = np.ones(len(z)), bias.copy()
    finite = np.isfinite(seen) & np.isfinite(z)
    z, seen = np.where(finite, z, 0.0), np.where(finite, seen, 0.0)
    clear = finite & linear(seen, name)
    with np.errstate(all="ignore"):
        for step in range(_STEPS if f else 2):
            inner = s[:, None] * z + t[:, None]
            if f is None or step == 0:
                slope, rest = clear * 1.0, (seen - inner) * clear
            else:
                slope, rest = f.derivative(inner) * finite, (seen - f.function(inner)) * finite
            one, two, three = slope**2, slope**2 * z, slope**2 * z**2
            a, b, c = one.sum(axis=1), two.sum(axis=1), three.sum(axis=1)
            right, slanted = (slope * rest).sum(axis=1), (slope * rest * z).sum(axis=1)
            determinant, usable = a * c - b * b, np.count_nonzero(slope, axis=1) >= (_ENOUGH if factors else _FEW)
            if factors:
                usable &= determinant > 1e-9 * a * c
                step_s, step_t = (a * slanted - b * right) / determinant, (c * right - b * slanted) / determinant
            else:
                step_s, step_t = np.zeros(len(z)), right / a
            s, t = np.where(usable, s + step_s, s), np.where(usable, t + step_t, t)
    known = np.isfinite(s) & np.isfinite(t) & usable
    return np.where(known, s, 1.0), np.where(known, t, bias)


def _number(factor: float) -> str:
    for many in range(2, 4097):
        for nice, text in ((float(many), str(many)), (1.0 / many, f"1/{many}")):
            if abs(factor / nice - 1.0) < 1e-6:
                return text
    return f"{factor:.7g}"


def _numbers(factors: Array) -> str:
    changed: Any = np.ravel(factors)
    changed = changed[changed != 1.0]
    if not changed.size:
        return "1"
    low, high = float(changed.min()), float(changed.max())
    return _number(low) if high - low <= 1e-6 * abs(high) else f"from {low:.6g} to {high:.6g}"

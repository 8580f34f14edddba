"""Mistakes with numbers that the observation tells: which channel went where, and by which factor."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np

from npdwconv.activations import ACTIVATIONS
from npdwconv.layouts import Array
from npdwconv.verify.bounds import Enclosure
from npdwconv.verify.double import Double, lifted
from npdwconv.verify.hypotheses_evidence import Evidence, Finding, Variant, channel_axis, substituted, taken

_SAMPLES = 256  # places of a channel that are compared to find its like
_PAIRS = 2**20  # weights times inputs that are tried with one another, at most
_LEAST_FACTOR = 2.0**-20  # less is no factor: nothing was written
_ENOUGH = 12  # elements that tell a channel's numbers
_SMALLER = 0.5
_HUGE = 1e30
_STEPS = 12  # of Gauss-Newton


def channels_permuted(e: Evidence) -> Iterator[Finding]:
    """Channels of the result, of the input or of the weights in another order."""
    observed, expected = (_by_channel(e, array) for array in (e.observed, e.compared.expected))
    wrong: Array = np.any(_by_channel(e, e.bad), axis=1)
    places = _places(_by_channel(e, e.bad), _SAMPLES)
    unit = _by_channel(e, e.compared.bound)[:, places].mean(axis=0)
    unit = np.where((unit > 0) & np.isfinite(unit), unit, 1.0)
    moved = _matched(observed[:, places] / unit, expected[:, places] / unit, wrong)
    if moved is not None:
        exact = e.truth.each(lambda array: taken(array, moved, e.channel_axis))
        yield Finding(f"of the result: {described(moved)}", e.compare(exact))
    if e.kind == "depthwise" and e.role == "out" and (wrong & ~_alone(observed)).any():
        yield from _crossed(e, observed, wrong)


def _by_channel(e: Evidence, array: Array) -> Array:
    first = np.moveaxis(array, e.channel_axis, 0)
    return first.reshape(first.shape[0], -1)


def _places(bad: Array, count: int) -> Array:
    """Up to ``count`` places of a channel, those first where most channels are bad."""
    return np.sort(np.argsort(-bad.sum(axis=0), kind="stable")[:count])


def _matched(observed: Array, expected: Array, wrong: Array) -> Array | None:
    """For each wrong channel the one that it is most like; None where that is no order of several channels."""
    lively: Array = np.all(np.isfinite(expected), axis=1)
    if expected.shape[1] > 1:
        lively &= np.ptp(np.where(np.isfinite(expected), expected, 0.0), axis=1) > 0
    wide = observed.astype(np.float64)
    centre = np.where(lively[:, None], expected, 0.0).mean(axis=0)
    seen, like = np.where(np.isfinite(wide), wide, 0.0) - centre, np.where(lively[:, None], expected, 0.0) - centre
    far = (seen**2).sum(axis=1)[:, None] + (like**2).sum(axis=1) - 2.0 * seen @ like.T
    far[:, ~lively] = np.inf
    own, alone = np.arange(len(wrong)), _alone(wide)
    nearest = np.where(wrong & lively.any() & ~alone, far.argmin(axis=1), own)
    if len(wrong) < 2 or (nearest == own).all():
        return None  # what holds one value is a channel elsewhere only if others are
    return np.where(wrong & alone, _free(nearest, ~lively), nearest)


def _alone(rows: Array) -> Array:
    """Whether a channel holds one value everywhere."""
    same: Array = (rows == rows[:, :1]).all(axis=1) & (rows.shape[1] > 1)
    return same


def _free(nearest: Array, still: Array) -> Array:
    """Each index, or one of a channel that is still, where there is one."""
    found = np.flatnonzero(still)
    return np.full_like(nearest, found[0]) if found.size else nearest


def _crossed(e: Evidence, observed: Array, wrong: Array) -> Iterator[Finding]:
    """Each output as the convolution of another input or with another weight, out of all pairs at some places."""
    given, activation = e.case.operands, e.case.options.get("activation")
    weight, channels = given["weight"], given["x"].shape[channel_axis(e.case, given["x"].ndim)]
    each = len(weight) // max(channels, 1)
    if len(weight) * channels > _PAIRS or channels < 2 or "state" in given:
        return
    places = _places(_by_channel(e, e.bad), 64 if len(weight) * channels < _PAIRS // 16 else 8)
    patches = _patches(e, channels)[:, :, places]  # (C, taps, places)
    pairs = np.einsum("kt,ctp->kcp", weight.reshape(len(weight), -1).astype(np.float64), patches, optimize=True)
    bias = given["bias"].astype(np.float64) if "bias" in given else np.zeros(len(weight))
    f = ACTIVATIONS[activation].function if activation else lambda z: z
    seen, own = observed[:, places].astype(np.float64), np.arange(len(weight)) // each
    source = _nearest(seen, f(pairs + bias[:, None, None]))
    if each == 1:
        source = np.where(wrong, source, own)
        if (source != own).any():
            axis = channel_axis(e.case, given["x"].ndim)
            yield from _judged(e, f"of x: {described(source)}", x=taken(given["x"], source, axis))
    mine = pairs.transpose(1, 0, 2)[own]  # (k, all weights, places) with k's input
    weights = np.where(wrong, _nearest(seen, f(mine + bias[:, None, None])), np.arange(len(weight)))
    if (weights != np.arange(len(weight))).any():
        yield from _judged(e, f"of the weight: {described(weights)}", weight=weight[weights])
    if "bias" in given:
        weights = np.where(wrong, _nearest(seen, f(mine + bias[:, None])), np.arange(len(weight)))
        moved = {"weight": weight[weights], "bias": given["bias"][weights]}
        yield from _judged(e, f"of weight and bias: {described(weights)}", **moved)
        offsets = np.stack([f(mine[np.arange(len(own)), np.arange(len(own))] + b) for b in bias], axis=1)
        others = np.where(wrong, _nearest(seen, offsets), np.arange(len(weight)))
        yield from _judged(e, f"of the bias: {described(others)}", bias=given["bias"][others])


def _nearest(seen: Array, candidates: Array) -> Array:
    """For each channel (k, places) the candidate (k, any, places) that it is most like."""
    found: Array = np.nan_to_num(np.abs(candidates - seen[:, None]), nan=np.inf).sum(axis=2).argmin(axis=1)
    return found


def _patches(e: Evidence, channels: int) -> Array:
    """What every tap of every output place reads, (C, taps, places), as the convolution with each tap alone."""
    weight = e.case.operands["weight"]
    taps = int(np.prod(weight.shape[2:]))
    single = np.tile(np.eye(taps, dtype=weight.dtype), (channels, 1)).reshape(-1, *weight.shape[1:])
    plain = e.case.options | {"activation": None}
    operands = {"x": e.case.operands["x"], "weight": single}
    found = Evidence(replace(e.case, operands=operands, options=plain), e.name, e.compared, e.ar, e.norm)
    value = np.moveaxis(found.enclosed().value.hi, e.channel_axis, 0)
    return value.reshape(channels, taps, -1)


def _judged(e: Evidence, detail: str, **operands: Array) -> Iterator[Finding]:
    ratio = e.judged(Variant(detail, substituted(e.case, **operands)))
    if ratio is not None:
        yield Finding(detail, ratio)


def described(order: Array) -> str:
    """A map of channels in words: at each place, which one was found."""
    count = len(order)
    places = np.arange(count)
    moved = np.flatnonzero(order != places)
    if (order == places[::-1]).all():
        return f"the {count} channels reversed"
    if (order == (places + order[0]) % count).all():
        return f"rotated, channel {order[0]} comes first"
    for groups in range(2, count):
        if count % groups == 0 and (order == places.reshape(groups, -1).T.ravel()).all():
            return f"interleaved, {groups} groups of {count // groups} channels shuffled"
    shown = ", ".join(f"{place} holds {order[place]}" for place in moved[:6])
    more = f", and {len(moved) - 6} more" if len(moved) > 6 else ""
    twice = "" if len(set(order.tolist())) == count else "; some twice"
    return f"{len(moved)} of {count} channels: {shown}{more}{twice}"


def scale(e: Evidence) -> Iterator[Finding]:
    """A factor of the result, of each of its channels, or of what goes into the activation, with an offset.

    It must make all errors smaller: fitted numbers spread those of a few elements over the others.
    """
    return (finding for finding in _scales(e) if _size(e, finding.ratio) < _SMALLER * _size(e, e.compared.ratio))


def _size(e: Evidence, ratio: Array) -> float:
    """Root mean square of the ratios in channels with bad elements."""
    wrong: Array = np.any(_by_channel(e, e.bad), axis=1)
    known = np.minimum(_by_channel(e, ratio)[wrong], _HUGE)
    return float(np.sqrt(np.mean(known**2)))


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
        yield from _affine(e)


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


def _affine(e: Evidence) -> Iterator[Finding]:
    """f(s·z + t) per channel, z the sum of products without bias: a batch norm folded otherwise."""
    name = e.case.options.get("activation")
    operands = {key: array for key, array in e.case.operands.items() if key != "bias"}
    bare = replace(e.case, operands=operands, options=e.case.options | {"activation": None})
    z = Evidence(bare, e.name, e.compared, e.ar, e.norm).enclosed()
    shape = [1] * e.observed.ndim
    shape[e.channel_axis] = -1
    rows, seen = _by_channel(e, z.value.hi), _by_channel(e, e.observed).astype(np.float64)
    held = e.case.operands.get("bias")
    bias = np.zeros(len(rows)) if held is None else held.astype(np.float64)
    fit = _gauss_newton(rows, seen, bias, name)
    factor, offset = fit
    wrong = _by_channel(e, e.bad).any(axis=1) & (np.abs(factor) > _LEAST_FACTOR)
    factor, offset = np.where(wrong, factor, 1.0), np.where(wrong, offset, bias)
    if not wrong.any():
        return
    s, t = factor.reshape(shape), offset.reshape(shape)
    value = s * z.value.hi + t
    error = np.abs(s) * z.error + 4.0 * e.ar.precision.unit * (np.abs(s) * z.size + np.abs(t))
    exact = e.ar.activate(ACTIVATIONS[name] if name else None, Enclosure(lifted(value), error))
    exact = exact._replace(error=np.maximum(exact.error, np.maximum(np.abs(s), 1.0) * e.truth.error))
    detail = f"what goes into the activation, {_numbers(factor[wrong])}, and another offset" if name else ""
    yield Finding(detail or f"each channel by {_numbers(factor[wrong])}, and another offset", e.compare(exact))


def _gauss_newton(z: Array, seen: Array, bias: Array, name: str | None) -> tuple[Array, Array]:
    """s and t of each row with f(s·z + t) ≈ seen, from s = 1, t = bias on; as they began where z does not tell."""
    f = ACTIVATIONS[name] if name else None
    s, t = np.ones(len(z)), bias.copy()
    finite = np.isfinite(seen) & np.isfinite(z)
    z, seen = np.where(finite, z, 0.0), np.where(finite, seen, 0.0)
    with np.errstate(all="ignore"):
        for _ in range(_STEPS if f else 2):
            inner = s[:, None] * z + t[:, None]
            slope = (f.derivative(inner) if f else 1.0) * finite
            rest = (seen - (f.function(inner) if f else inner)) * finite
            one, two, three = slope**2, slope**2 * z, slope**2 * z**2
            a, b, c = one.sum(axis=1), two.sum(axis=1), three.sum(axis=1)
            right, slanted = (slope * rest).sum(axis=1), (slope * rest * z).sum(axis=1)
            scale_of = a * c - b * b
            usable = (np.count_nonzero(slope, axis=1) >= _ENOUGH) & (scale_of > 1e-9 * a * c)
            step_s, step_t = (a * slanted - b * right) / scale_of, (c * right - b * slanted) / scale_of
            s, t = np.where(usable, s + step_s, s), np.where(usable, t + step_t, t)
    known = np.isfinite(s) & np.isfinite(t)
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

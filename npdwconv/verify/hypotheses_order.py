"""Parts in another order, which the observation tells: channels of results, inputs and weights, images of a batch."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np

from npdwconv.activations import ACTIVATIONS
from npdwconv.layouts import Array
from npdwconv.verify.hypotheses_evidence import Evidence, Finding, Variant, channel_axis, substituted, taken

_SAMPLES = 256  # places of a part that are compared to find its like
_PAIRS = 2**20  # weights times inputs that are tried with one another, at most
_ROWS = 8  # output channels whose weights are estimated
_MOST_MIXED, _PIXELS = 512, 4096  # input channels of which they are; pixels that are enough for it
_LINEAR = {None: (-np.inf, np.inf), "relu": (0.0, np.inf), "relu6": (0.0, 6.0), "hardswish": (3.0, np.inf)}


def channels_permuted(e: Evidence) -> Iterator[Finding]:
    """Channels of the result, of the input or of the weights in another order."""
    yield from _moved(e, e.channel_axis, "channel", "of the result: ")
    observed, wrong = rows_of(e.observed, e.channel_axis), np.any(rows_of(e.bad, e.channel_axis), axis=1)
    if e.role == "out" and (wrong & ~_alone(observed)).any():
        if e.kind == "depthwise":
            yield from _crossed(e, observed, wrong)
        elif e.kind == "pointwise":
            yield from _mixed(e, observed)


def images_permuted(e: Evidence) -> Iterator[Finding]:
    """Images of the batch in another order."""
    if e.per_image:
        yield from _moved(e, 0, "image", "")


def rows_of(array: Array, axis: int) -> Array:
    """The elements at each index of an axis, a row each."""
    first = np.moveaxis(array, axis, 0)
    return first.reshape(first.shape[0], -1)


def _moved(e: Evidence, axis: int, what: str, of: str) -> Iterator[Finding]:
    """Parts of the result along an axis that hold what others should."""
    observed, expected, bad, bound = (
        rows_of(array, axis) for array in (e.observed, e.compared.expected, e.bad, e.compared.bound)
    )
    places = _places(bad, _SAMPLES)
    unit = bound[:, places].mean(axis=0)
    unit = np.where((unit > 0) & np.isfinite(unit), unit, 1.0)
    wrong: Array = np.any(bad, axis=1)
    order = _matched(observed[:, places] / unit, expected[:, places] / unit, wrong)
    if order is not None:
        exact = e.truth.each(lambda array: taken(array, order, axis))
        yield Finding(of + described(order, what), e.compare(exact))


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
    places = _places(rows_of(e.bad, e.channel_axis), 64 if len(weight) * channels < _PAIRS // 16 else 8)
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


def linear(results: Array, activation: str | None) -> Array:
    """Where f(z) = z can be told from the result."""
    low, high = _LINEAR.get(activation, (np.inf, -np.inf))
    inside: Array = np.isfinite(results) & (results > low) & (results < high)
    return inside


def _mixed(e: Evidence, observed: Array) -> Iterator[Finding]:
    """Input channels of a pointwise convolution against its weights in another order, a usual one or an estimated."""
    weight, axis = e.case.operands["weight"], channel_axis(e.case, e.case.operands["x"].ndim)
    channels = weight.shape[1]
    for source in [*_usual(channels), *_estimated(e, observed, axis)]:
        whole = len(set(source.tolist())) == channels
        where = f"of x: {described(np.argsort(source))}" if whole else f"of the weight's inputs: {described(source)}"
        found = list(_judged(e, where, weight=weight[:, source]))
        yield from found
        if found and not (found[0].ratio > 1.0).any():
            return


def _usual(count: int) -> Iterator[Array]:
    """Reversed, and a shuffle of groups."""
    places = np.arange(count)
    if count > 1:
        yield places[::-1]
    yield from (places.reshape(groups, -1).T.ravel() for groups in range(2, count) if count % groups == 0)


def _estimated(e: Evidence, observed: Array, axis: int) -> Iterator[Array]:
    """The order by which the weight's columns are most like those that least squares give.

    Where the activation is the identity, each output is linear in the inputs, with the weights as factors.
    """
    given = e.case.operands
    weight = given["weight"].reshape(len(given["weight"]), -1).astype(np.float64)
    x, clear = rows_of(given["x"], axis).astype(np.float64), linear(observed, e.case.options.get("activation"))
    bias = given["bias"].astype(np.float64) if "bias" in given else np.zeros(len(weight))
    if len(x) > _MOST_MIXED or not np.isfinite(x).all():
        return
    telling = [row for row in np.argsort(-clear.sum(axis=1), kind="stable")[:_ROWS] if clear[row].sum() >= len(x)]
    found = []
    for row in telling:
        pixels = np.flatnonzero(clear[row])
        pixels = pixels[:: max(1, len(pixels) // max(_PIXELS, 4 * len(x)))]
        wanted = observed[row, pixels].astype(np.float64) - bias[row]
        found.append(np.linalg.lstsq(x[:, pixels].T, wanted, rcond=None)[0])
    if found:
        far = (np.asarray(found)[:, :, None] - weight[telling][:, None, :]) ** 2
        source = far.sum(axis=0).argmin(axis=1)
        if (source != np.arange(len(x))).any():
            yield source


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


def described(order: Array, what: str = "channel") -> str:
    """A map of channels, or other parts, in words: at each place, which one was found."""
    count = len(order)
    places = np.arange(count)
    moved = np.flatnonzero(order != places)
    if (order == places[::-1]).all():
        return f"the {count} {what}s reversed"
    if (order == (places + order[0]) % count).all():
        return f"rotated, {what} {order[0]} comes first"
    for groups in range(2, count):
        if count % groups == 0 and (order == places.reshape(groups, -1).T.ravel()).all():
            return f"interleaved, {groups} groups of {count // groups} {what}s shuffled"
    shown = ", ".join(f"{place} holds {order[place]}" for place in moved[:6])
    more = f", and {len(moved) - 6} more" if len(moved) > 6 else ""
    twice = "" if len(set(order.tolist())) == count else "; some twice"
    return f"{len(moved)} of {count} {what}s: {shown}{more}{twice}"

"""Where the bad elements are, and what they hold, if nothing predicts them: rows, channels, tiles; NaN, zeros."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from npdwconv.layouts import Array
from npdwconv.verify.hypotheses_evidence import Evidence, Finding

_SPATIAL = {0: (), 1: ("column",), 2: ("row", "column"), 3: ("slice", "row", "column")}
_FEW = 8  # bad elements, that are a place whatever they are
_SURE = 10.0  # bits by which a place must be shorter to tell than its bad elements are unlikely to lie in it by chance
_SHOWN = 4


class Place(NamedTuple):
    """A part of an array in words, the bits that these take, and a mask of it that broadcasts to the array."""

    text: str
    bits: float
    mask: Array


def local_defect(e: Evidence) -> Iterator[Finding]:
    """A few elements, some indices of some axes (every 8th column, channel 3), or lines across the others."""
    if not e.bad.any() or e.bad.all():
        return
    bad, names = _viewed(e, e.bad)
    for place in (_box(bad, names), _lines(bad, names)):
        inside, share = int(np.sum(bad & place.mask)), float(np.mean(np.broadcast_to(place.mask, bad.shape)))
        sure = share > 0 and -np.log2(share) * inside > place.bits + _SURE
        if place.text and (sure or bad.sum() <= _FEW) and inside >= 0.9 * bad.sum():
            mask = _restored(e, np.broadcast_to(place.mask, bad.shape))
            first = ", ".join(str(int(index)) for index in np.argwhere(e.bad)[0])
            detail = f"{place.text}; {e.bad.sum()} elements, first [{first}]"
            yield Finding(detail, np.where(mask, 0.0, e.compared.ratio))
            return


def unwritten(e: Evidence) -> Iterator[Finding]:
    """NaN, zeros, or one other value again and again."""
    held = e.observed[e.bad].astype(np.float64)
    if not held.size:
        return
    nan = int(np.isnan(held).sum())
    values, counts = np.unique(held[~np.isnan(held)], return_counts=True)
    value, count = (float(values[counts.argmax()]), int(counts.max())) if counts.size else (np.nan, 0)
    if nan >= count:
        value, count = np.nan, nan
    if count < 0.5 * held.size or (count < 2 and value != 0 and not np.isnan(value)):
        return
    same = np.isnan(e.observed) if np.isnan(value) else e.observed == value
    named = "NaN" if np.isnan(value) else "zeros" if value == 0 else f"the constant {value:.6g}"
    bad, names = _viewed(e, e.bad & same)
    box, lines = _box(bad, names), _lines(bad, names)
    filled = bad.sum() >= 0.5 * np.mean(np.broadcast_to(box.mask, bad.shape)) * bad.size
    text = box.text if filled or not lines.text or (bad & ~lines.mask).any() else lines.text
    where = " everywhere" if bad.all() else f" in {text}" if text else ""
    yield Finding(f"{named}{where}; {count} elements", np.where(same & e.bad, 0.0, e.compared.ratio))


def _viewed(e: Evidence, array: Array) -> tuple[Array, tuple[str, ...]]:
    """The result with its channels second, tokens as an image, and what each axis is called."""
    if not e.per_image:
        rank = max(array.ndim - 2, 0)
        pointwise = e.role == "pointwise_weight" or (e.role == "weight" and e.kind == "pointwise")
        second = ("input channel",) if pointwise else ("",)
        taps = tuple(f"tap {name}" for name in _SPATIAL.get(rank, ("",) * rank))
        return array, ("output channel", *second, *taps)[: array.ndim]
    view = np.moveaxis(array, e.channel_axis, 1)
    if "tokens" in e.case.op and e.geometry is not None:
        view = view.reshape(*view.shape[:2], *(e.geometry.out if e.role == "out" else e.geometry.size))
    names = _SPATIAL.get(view.ndim - 2, tuple(f"axis {axis}" for axis in range(2, view.ndim)))
    return view, ("image", "channel", *names)


def _restored(e: Evidence, view: Array) -> Array:
    """A view of `_viewed` as the result has it."""
    if not e.per_image:
        return view
    shape = list(e.observed.shape)
    channels = shape.pop(e.channel_axis)
    return np.moveaxis(view.reshape(shape[0], channels, *shape[1:]), 1, e.channel_axis)


def _box(bad: Array, names: tuple[str, ...]) -> Place:
    """The product of the indices that hold bad elements, along every axis where these are worth telling."""
    number = int(np.count_nonzero(bad))
    mask, bits = np.ones((1,) * bad.ndim, dtype=bool), 0.0
    parts: list[str] = []
    for axis, name in enumerate(names):
        held = bad.any(axis=tuple(other for other in range(bad.ndim) if other != axis))
        if held.all() or not held.any():
            continue
        text, cost = _indices(name, np.flatnonzero(held), held.size)
        if number <= _FEW or cost < number * -np.log2(held.mean()):
            mask, parts, bits = mask & held.reshape(_along(axis, bad.ndim)), [*parts, text], bits + cost
    return Place(", ".join(parts), bits, mask)


def _lines(bad: Array, names: tuple[str, ...]) -> Place:
    """The indices of spatial axes at which much is bad, and the union of these lines: a border, a tile's seams."""
    mask, bits = np.zeros((1,) * bad.ndim, dtype=bool), 0.0
    parts: list[str] = []
    for axis in range(2, bad.ndim):
        share = bad.mean(axis=tuple(other for other in range(bad.ndim) if other != axis))
        held = share > max(0.5 * float(share.max()), 2.0 * float(np.median(share)))
        if held.any() and not held.all():
            mask = mask | held.reshape(_along(axis, bad.ndim))
            text, cost = _indices(names[axis], np.flatnonzero(held), held.size)
            parts, bits = [*parts, text], bits + cost
    return Place(" and ".join(parts), bits, mask)


def _along(axis: int, rank: int) -> tuple[int, ...]:
    return tuple(-1 if other == axis else 1 for other in range(rank))


def _indices(name: str, found: Array, extent: int) -> tuple[str, float]:
    """Indices in words: one, a run, or runs with a period; and the bits that name them among all."""
    number = float(np.log2(extent + 1))
    starts = found[np.diff(found, prepend=-2) != 1]
    lengths = np.diff(np.searchsorted(found, [*starts, found[-1] + 1]))
    pairs = zip(starts, lengths, strict=True)
    runs = [f"{start}" if size == 1 else f"{start}-{start + size - 1}" for start, size in pairs]
    plural = name if len(found) == 1 else f"{name}s"
    if len(runs) == 1:
        edge = " (the first)" if runs[0] == "0" else " (the last)" if found[0] == extent - 1 else ""
        return f"{plural} {runs[0]}{edge}", 2 * number
    steps = np.diff(starts)
    if len(runs) > 2 and len(set(steps.tolist())) == 1 and len(set(lengths[1:-1].tolist())) <= 1:
        return f"{plural} {runs[0]}, {runs[1]}, … (period {steps[0]})", 4 * number
    more = f" and {len(runs) - _SHOWN} more" if len(runs) > _SHOWN else ""
    return f"{plural} {', '.join(runs[:_SHOWN])}{more}", 2 * number * len(runs)

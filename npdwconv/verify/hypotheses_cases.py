"""Mistakes that make another call of the one meant: each yields the calls, whose results are then predicted."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from functools import partial
from itertools import permutations, product

import numpy as np

from npdwconv.activations import ACTIVATIONS
from npdwconv.cases import Case
from npdwconv.geometry import Axis, ConvGeometry
from npdwconv.layouts import Array
from npdwconv.options import PADDING_MODES
from npdwconv.verify.bounds import PRECISIONS, Precision
from npdwconv.verify.hypotheses_evidence import Evidence, Variant, View, channel_axis, substituted, taken

Maps = Iterable[tuple[str, View]]
_PAIRS = (("relu", "relu6"), ("hardswish", "silu"), ("gelu", "gelu_tanh"), ("sigmoid", "hardsigmoid"))
_RELATIVES: dict[str | None, str] = {**dict(_PAIRS), **{second: first for first, second in _PAIRS}}
_FANNED = {"depthwise_weight": 0, "depthwise_bias": 0, "pointwise_weight": 1}  # axes of C·M of a separable one
_SPATIAL = {1: ("width",), 2: ("height", "width"), 3: ("depth", "height", "width")}


def _reweighted(e: Evidence, name: str, maps: Maps) -> Iterator[Variant]:
    """A weight read otherwise, or its gradient stored otherwise, or both."""
    held = e.case.operands.get(name)
    for detail, change in maps:
        if e.role == name:
            yield Variant(f"{detail} (in its gradient)", e.case, then=change)
        if held is not None:
            other = substituted(e.case, **{name: change(held)})
            yield Variant(detail, other)
            if e.role == name:
                yield Variant(f"{detail} (in it and in its gradient)", other, then=change)


def _taps(e: Evidence) -> tuple[str, tuple[int, ...]]:
    """The name of the depthwise weight, and its kernel's extents."""
    name = "depthwise_weight" if e.kind == "separable" else "weight"
    return name, e.geometry.kernel if e.geometry else ()


def kernel_flipped(e: Evidence) -> Iterator[Variant]:
    """Taps read from the end, on every axis and on some."""
    name, kernel = _taps(e)
    names = _SPATIAL.get(len(kernel), ())
    wide = [axis for axis, extent in enumerate(kernel) if extent > 1]
    subsets = [chosen for chosen in product((True, False), repeat=len(wide)) if any(chosen)]
    for chosen in subsets:
        axes = [axis for axis, flipped in zip(wide, chosen, strict=True) if flipped]
        detail = "along " + " and ".join(names[axis] for axis in axes)
        yield from _reweighted(e, name, [(detail, partial(np.flip, axis=[axis + 2 for axis in axes]))])


def kernel_axes_swapped(e: Evidence) -> Iterator[Variant]:
    """The kernel's axes in another order, as values or as bytes."""
    name, kernel = _taps(e)
    names = _SPATIAL.get(len(kernel), ())
    for order in permutations(range(len(kernel))):
        if order == tuple(sorted(order)) or sum(extent > 1 for extent in kernel) < 2:
            continue
        detail = "read as (" + ", ".join(names[axis] for axis in order) + ")"
        maps = [(detail, partial(_stored_in, order=order))]
        if len(set(kernel)) > 1:
            maps.append((f"{detail}, the other way", partial(_read_in, order=order)))
        yield from _reweighted(e, name, maps)


def _stored_in(weight: Array, order: tuple[int, ...]) -> Array:
    moved: Array = weight.transpose(0, 1, *(axis + 2 for axis in order)).reshape(weight.shape)
    return moved


def _read_in(weight: Array, order: tuple[int, ...]) -> Array:
    other = weight.reshape(*weight.shape[:2], *(weight.shape[axis + 2] for axis in order))
    moved: Array = other.transpose(0, 1, *(int(place) + 2 for place in np.argsort(order)))
    return moved


def weight_layout(e: Evidence) -> Iterator[Variant]:
    """Weights (C·M, 1, *kernel) taken for (*kernel, C·M), or the reverse; pointwise ones for (C, K)."""
    if e.kind != "pointwise":
        name, kernel = _taps(e)
        if np.prod(kernel) > 1:
            maps = [("(C, R, S) bytes as (R, S, C)", _last_first), ("(R, S, C) bytes as (C, R, S)", _first_last)]
            yield from _reweighted(e, name, maps)
    if e.kind != "depthwise":
        name = "pointwise_weight" if e.kind == "separable" else "weight"
        maps = [("(K, C) bytes as (C, K)", _matrix_read), ("(C, K) bytes as (K, C)", _matrix_stored)]
        yield from _reweighted(e, name, maps)


def _last_first(weight: Array) -> Array:
    outputs, _, *kernel = weight.shape
    return np.moveaxis(weight.reshape(*kernel, outputs), -1, 0).reshape(weight.shape)


def _first_last(weight: Array) -> Array:
    return np.moveaxis(weight, 0, -1).reshape(weight.shape)


def _matrix_read(weight: Array) -> Array:
    rows, columns = weight.shape[:2]
    moved: Array = weight.reshape(columns, rows).T.reshape(weight.shape)
    return moved


def _matrix_stored(weight: Array) -> Array:
    moved: Array = weight.reshape(weight.shape[:2]).T.reshape(weight.shape)
    return moved


def _low(axis: Axis, low: int) -> Axis:
    """The same windows over an axis padded by ``low`` in front, and by the rest behind."""
    return replace(axis, low=low, high=axis.low + axis.high - low)


def padding_side(e: Evidence) -> Iterator[Variant]:
    """Padding of the same extent at other sides, where these have a name."""
    if e.geometry is None:
        return
    rules: dict[str, Callable[[Axis], int]] = {
        "with the sides swapped": lambda axis: axis.high,
        "with as much in front as behind": lambda axis: (axis.span - 1) // 2 if axis.low != axis.high else axis.low,
        "all of it in front": lambda axis: axis.low + axis.high,
        "all of it behind": lambda axis: 0,
    }
    axes, seen = e.geometry.axes, {tuple(axis.low for axis in e.geometry.axes)}
    uneven = [axis.low != axis.high for axis in axes]
    for rule, low_of in rules.items():
        lows = tuple(low_of(axis) for axis in axes)
        far = any(abs(low - axis.low) > 1 for low, axis in zip(lows, axes, strict=True))
        if lows in seen or not (any(uneven) or far):
            continue
        seen.add(lows)
        pads = ", ".join(f"({low}, {axis.low + axis.high - low})" for low, axis in zip(lows, axes, strict=True))
        meant = ", ".join(f"({axis.low}, {axis.high})" for axis in axes)
        yield Variant(f"{rule}: {pads} for {meant}", e.case, partial(_with_lows, lows=lows))


def _with_lows(geometry: ConvGeometry, lows: tuple[int, ...]) -> ConvGeometry:
    return replace(geometry, axes=tuple(_low(axis, low) for axis, low in zip(geometry.axes, lows, strict=True)))


def padding_mode(e: Evidence) -> Iterator[Variant]:
    """Padding that holds something else."""
    g = e.geometry
    if g is None or g.padded == g.size or "transpose" in e.case.op:
        return
    for mode in PADDING_MODES:
        narrow = mode == "reflect" and any(max(axis.low, axis.high) >= axis.size for axis in g.axes)
        if mode != g.padding_mode and not narrow and min(g.size):
            yield Variant(f"{mode} for {g.padding_mode}", e.case, partial(replace, padding_mode=mode))


def stride_phase(e: Evidence) -> Iterator[Variant]:
    """Windows that begin one place late or early: on all axes, on one, and on two in opposite directions."""
    if e.geometry is None:
        return
    rank = len(e.geometry.axes)
    names = _SPATIAL[rank]
    for shift in sorted(product((1, -1, 0), repeat=rank), key=lambda each: each.count(0)):
        moved = [f"{'late' if step > 0 else 'early'} along {names[axis]}" for axis, step in enumerate(shift) if step]
        if moved and (rank < 3 or len(set(shift)) == 1 or len(moved) == 1):
            lows = tuple(axis.low - step for axis, step in zip(e.geometry.axes, shift, strict=True))
            yield Variant("one " + ", ".join(moved), e.case, partial(_with_lows, lows=lows))


def dilation_ignored(e: Evidence) -> Iterator[Variant]:
    """Taps side by side, with the padding of the dilated kernel or about the same centre."""
    if e.geometry is None or all(axis.span == axis.kernel for axis in e.geometry.axes):
        return
    yield Variant("from the same first tap on", e.case, partial(_undilated, centred=False))
    yield Variant("about the same centre", e.case, partial(_undilated, centred=True))


def _undilated(geometry: ConvGeometry, centred: bool) -> ConvGeometry:
    return replace(geometry, axes=tuple(_undilated_axis(axis, centred) for axis in geometry.axes))


def _undilated_axis(axis: Axis, centred: bool) -> Axis:
    lost = (axis.span - axis.kernel) // 2 if centred else 0
    return replace(_low(axis, axis.low - lost), dilation=1)


def multiplier_order(e: Evidence) -> Iterator[Variant]:
    """Output channels of a multiplier M numbered m·C + c."""
    if e.kind == "pointwise":
        return
    name, _ = _taps(e)
    held = e.case.operands.get(name)
    outputs = held.shape[0] if held is not None else e.case.options["weight_shape"][0]
    channels = _input_channels(e.case)
    if channels < 2 or outputs == channels:
        return
    order = np.arange(outputs).reshape(-1, channels).T.ravel()  # at c·M + m: m·C + c
    back = np.argsort(order)
    yield Variant("output k reads input k mod C", _fanned(e.case, order), then=_fanned_result(e, back))
    result, inverse = _fanned_result(e, back), _fanned_result(e, order)
    if result is not None:
        yield Variant("the results lie in the order m·C + c", e.case, then=result)
        yield Variant("the results lie in the order of M inputs each", e.case, then=inverse)
    several = [(name,), (name, "depthwise_bias" if e.kind == "separable" else "bias"), ("grad_out",)]
    for each, detail in product(several, (order, back)):
        some = {one: e.case.operands[one] for one in each if one in e.case.operands}
        if len(some) == len(each) and not (e.kind == "separable" and "grad_out" in each):
            axis = {one: channel_axis(e.case, array.ndim) if one == "grad_out" else 0 for one, array in some.items()}
            moved = {one: taken(array, detail, axis[one]) for one, array in some.items()}
            yield Variant(f"{' and '.join(some)} in another order", substituted(e.case, **moved))


def _input_channels(case: Case) -> int:
    shape = case.operands["x"].shape if "x" in case.operands else tuple(case.options["input_shape"])
    return int(shape[channel_axis(case, len(shape))])


def _fanned(case: Case, order: Array) -> Case:
    """The operands with output channels of the depthwise stage taken in ``order``."""
    separable = "pointwise_weight" in case.operands
    axes = dict(_FANNED) if separable else {"weight": 0, "bias": 0}
    if "grad_out" in case.operands and not separable:
        axes["grad_out"] = channel_axis(case, case.operands["grad_out"].ndim)
    moved = {name: taken(case.operands[name], order, axis) for name, axis in axes.items() if name in case.operands}
    return substituted(case, **moved)


def _fanned_result(e: Evidence, order: Array) -> View | None:
    axes = _FANNED if e.kind == "separable" else {"out": e.channel_axis, "weight": 0, "bias": 0}
    axis = axes.get(e.role)
    return None if axis is None else partial(np.take, indices=order, axis=axis)


def layout_misread(e: Evidence) -> Iterator[Variant]:
    """Bytes of one layout taken for the other: of what goes in, of what comes out, of both."""
    given = e.case.operands
    names = [name for name in ("x", "grad_out") if name in given and given[name].ndim > 2]
    axes = {name: channel_axis(e.case, given[name].ndim) for name in names}
    pairs = ((_taken_for_other, _other_taken), (_other_taken, _taken_for_other))
    for read, stored in pairs:
        inputs = [names, *([name] for name in names)] if len(names) > 1 else [names]
        results: list[View | None] = [None]
        if e.role in ("out", "x") and e.observed.ndim > 2:
            results += [partial(change, axis=e.channel_axis) for change in (stored, read)]
        for some, then in product([*inputs, []], results):
            if not some and then is None:
                continue
            case = substituted(e.case, **{name: read(given[name], axis=axes[name]) for name in some})
            text = [*some, *(["the result"] if then else [])]
            yield Variant("of " + " and ".join(text), case, then=then)


def _taken_for_other(array: Array, axis: int) -> Array:
    """The memory of an array with its channels on ``axis`` (1 or the last), read as that of the other layout."""
    if axis == 1:
        return np.moveaxis(array.reshape(array.shape[0], *array.shape[2:], array.shape[1]), -1, 1)
    return np.moveaxis(array.reshape(array.shape[0], array.shape[-1], *array.shape[1:-1]), 1, -1)


def _other_taken(array: Array, axis: int) -> Array:
    """The memory of the array in the other layout, read as one of its own."""
    return np.moveaxis(array, *((1, -1) if axis == 1 else (-1, 1))).reshape(array.shape)


def _scaled_bias(e: Evidence, factor: float) -> Iterator[Variant]:
    bare = e.case.options.get("activation") is None and e.case.options.get("depthwise_activation") is None
    if "grad_out" in e.case.operands and bare and e.kind != "separable":
        return  # no gradient depends on the bias
    for name in ("bias", "depthwise_bias"):
        if name in e.case.operands:
            other = (e.case.operands[name] * factor).astype(e.case.operands[name].dtype)
            yield Variant(name, substituted(e.case, **{name: other}))


def bias_missing(e: Evidence) -> Iterator[Variant]:
    """No bias."""
    return _scaled_bias(e, 0.0)


def bias_doubled(e: Evidence) -> Iterator[Variant]:
    """The bias twice."""
    return _scaled_bias(e, 2.0)


def state_missing(e: Evidence) -> Iterator[Variant]:
    """A causal convolution from a state of zeros."""
    if "state" in e.case.operands and e.role != "state":
        rest = {name: array for name, array in e.case.operands.items() if name != "state"}
        yield Variant("zeros", replace(e.case, operands=rest))


def _other_activation(e: Evidence, others: Iterable[str | None]) -> Iterator[Variant]:
    if e.case.op.endswith(("_input_grad", "_weight_grad")):
        return
    wanted = list(others)
    for option in ("activation", "depthwise_activation")[: 2 if e.kind == "separable" else 1]:
        meant = e.case.options.get(option)
        for name in sorted(wanted, key=lambda one: one != _RELATIVES.get(meant)):
            if name != meant and not (name is None and meant is None):
                detail = f"{name or 'none'} for {meant or 'none'}" + (f" ({option})" if e.kind == "separable" else "")
                yield Variant(detail, replace(e.case, options=e.case.options | {option: name}))


def activation_missing(e: Evidence) -> Iterator[Variant]:
    """No activation."""
    return _other_activation(e, [None])


def activation_swapped(e: Evidence) -> Iterator[Variant]:
    """Another activation, or one where none is meant."""
    return _other_activation(e, ACTIVATIONS)


def narrowed(e: Evidence, name: str) -> Iterator[Variant]:
    """Operands rounded to a narrower format, to nearest or towards zero, and sums as they should be."""
    form = PRECISIONS[name]
    if form.digits >= min(e.ar.precision.digits, PRECISIONS[e.case.operands[_first(e)].dtype.name].digits):
        return
    factors = [one for one in e.case.operands if "bias" not in one and "state" not in one]
    weights = [one for one in factors if "weight" in one]
    groups = {"all operands": factors, "operands and bias": list(e.case.operands), "the weight": weights, "x": ["x"]}
    for (which, names), (how, rounds) in product(groups.items(), (("to nearest", np.rint), ("truncated", np.trunc))):
        if all(one in e.case.operands for one in names) and (which != "operands and bias" or names != factors):
            yield Variant(f"{which}, {how}", e.case, each=partial(_rounded, names=names, form=form, rounds=rounds))


def _first(e: Evidence) -> str:
    return next(iter(e.case.operands))


def _rounded(case: Case, names: list[str], form: Precision, rounds: View) -> Case:
    return substituted(case, **{name: rounded(case.operands[name], form, rounds) for name in names})


def rounded(array: Array, form: Precision, rounds: View = np.rint) -> Array:
    """Numbers to the digits and range of a format, in their own."""
    wide = array.astype(np.float64)
    exponent = np.maximum(np.frexp(np.where(np.isfinite(wide), wide, 0.0))[1] - 1, form.least) - (form.digits - 1)
    near = np.ldexp(rounds(np.ldexp(wide, -exponent)), exponent)
    kept: Array = np.where(np.abs(near) > form.largest, np.copysign(np.inf, near), near).astype(array.dtype)
    return kept

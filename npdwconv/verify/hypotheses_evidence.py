"""What hypotheses are judged by: one wrong result beside the exact one, and a piece of it that is judged first."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np

from npdwconv.cases import Case
from npdwconv.errors import DTypeError, OptionError, ShapeError
from npdwconv.geometry import ConvGeometry
from npdwconv.layouts import Array
from npdwconv.verify.bounds import PRECISIONS, Arithmetic, Enclosure, arithmetic
from npdwconv.verify.check import compare
from npdwconv.verify.double import lifted
from npdwconv.verify.operators import Rewire, enclose
from npdwconv.verify.report import Compared, Report

_RUNG = "float64"  # of predictions, for operands of any precision: its error is part of theirs
_CHANNELS, _ROWS, _WINDOW = 4, 8, 12  # extents of the piece
_SURVIVES = 0.75  # a variant that leaves more of the piece's bad elements than this is not computed in full

View = Callable[[Array], Array]


@dataclass(frozen=True)
class Variant:
    """A call that a mistake turns the case into: other operands, options or windows, or a result stored otherwise.

    ``then`` moves the elements of the result; ``each`` changes operands number by number, whole or in pieces alike.
    """

    detail: str
    case: Case
    rewire: Rewire | None = None
    then: View | None = None
    each: Callable[[Case], Case] | None = None


class Finding(NamedTuple):
    """A hypothesis made definite: |observed − hypothesis| / bound of every element; 0 where it says nothing."""

    detail: str
    ratio: Array


class Piece(NamedTuple):
    """A part of a call: the case of it, its windows, and the view of the result that it computes."""

    case: Callable[[Case], Case]
    rewire: Rewire
    view: View


@dataclass(frozen=True)
class Evidence:
    """A result of a report: its name there, and what its bad elements say."""

    case: Case
    name: str
    compared: Compared
    ar: Arithmetic
    norm: str

    @property
    def observed(self) -> Array:
        return self.compared.observed

    @cached_property
    def bad(self) -> Array:
        return self.compared.bad

    @cached_property
    def role(self) -> str:
        """``out``, ``next_state``, or the operand whose gradient the result is."""
        if self.case.op.endswith("_input_grad"):
            return "x"
        return "weight" if self.case.op.endswith("_weight_grad") else self.name

    @property
    def kind(self) -> str:
        """``depthwise``, ``pointwise`` or ``separable``."""
        return next((kind for kind in ("pointwise", "separable") if self.case.op.startswith(kind)), "depthwise")

    @property
    def per_image(self) -> bool:
        """Whether the result is (N, channels, *), in some layout: an activation or its gradient."""
        return self.role in ("out", "x", "state", "next_state")

    @property
    def channel_axis(self) -> int:
        """Of the result."""
        if self.role in ("out", "x"):
            return channel_axis(self.case, self.observed.ndim)
        return 1 if self.per_image else 0

    @cached_property
    def truth(self) -> Enclosure:
        return self.enclosed()

    @property
    def known(self) -> Enclosure:
        """The truth as the report has it: its value, to within the bound."""
        return Enclosure(lifted(self.compared.expected), self.compared.bound)

    @cached_property
    def geometry(self) -> ConvGeometry | None:
        """Of the call's windows; None of a pointwise convolution."""
        seen: list[ConvGeometry] = []

        def record(geometry: ConvGeometry) -> ConvGeometry:
            seen.append(geometry)
            return geometry

        case = self.piece.case(self.case) if self.piece else self.case
        enclose(case, self.ar, frozenset({self.name}), record)
        return seen[0] if seen else None

    @cached_property
    def piece(self) -> Piece | None:
        return piece_of(self)

    def enclosed(self) -> Enclosure:
        """What the case gives, in whatever shape."""
        return enclose(self.case, self.ar, frozenset({self.name}))[self.name]

    def compare(self, exact: Enclosure) -> Array:
        """|observed − exact| / bound."""
        return compare(self.observed, exact, self.ar, self.norm).ratio

    def predicted(self, variant: Variant) -> Enclosure | None:
        """The result that a variant gives; None where it gives none of this shape."""
        plain = variant.case is self.case and variant.rewire is None and variant.each is None
        exact = self.truth if plain else self._enclosed(_changed(variant, variant.case), variant.rewire or _as_it_is)
        if exact is not None and variant.then is not None:
            exact = exact.each(variant.then)
        return exact if exact is not None and exact.error.shape == self.observed.shape else None

    def judged(self, variant: Variant) -> Array | None:
        """A variant's ratios; None where it has no such result, or leaves most of the piece's bad elements bad."""
        with np.errstate(all="ignore"):
            glimpse = self._glimpse(variant)
            if glimpse is not None:
                exact, view = glimpse
                observed, bad = (_unmoved(array, variant.then) for array in (self.observed, self.bad))
                ratio = compare(view(observed), exact, self.ar, self.norm).ratio
                if np.count_nonzero(ratio > 1.0) > _SURVIVES * max(int(np.count_nonzero(view(bad))), 1):
                    return None
            whole = self.predicted(variant)
            return None if whole is None else self.compare(whole)

    def shows(self, exact: Enclosure) -> bool:
        """Whether a prediction differs from the truth by more than the bound."""
        return _differs(exact, self.compared, lambda array: array)

    def distinguishes(self, variant: Variant) -> bool:
        """Whether the data would show that a variant was computed."""
        with np.errstate(all="ignore"):
            glimpse = self._glimpse(variant)
            if glimpse is not None and variant.then is None and _differs(glimpse[0], self.compared, glimpse[1]):
                return True
            whole = self.predicted(variant)
            return whole is not None and self.shows(whole)

    def _glimpse(self, variant: Variant) -> tuple[Enclosure, View] | None:
        if self.piece is None:
            return None
        rewire, inner, view = variant.rewire or _as_it_is, self.piece.rewire, self.piece.view
        case = _changed(variant, self.piece.case(variant.case))
        exact = self._enclosed(case, lambda geometry: inner(rewire(geometry)))
        return (exact, view) if exact is not None and exact.error.shape == view(self.observed).shape else None

    def _enclosed(self, case: Case, rewire: Rewire) -> Enclosure | None:
        try:
            return enclose(case, self.ar, frozenset({self.name}), rewire).get(self.name)
        except (ShapeError, DTypeError, OptionError):
            return None


def evidence(report: Report) -> list[Evidence]:
    """Each result of a report."""
    compute = PRECISIONS[report.compute]
    return [
        Evidence(report.case, name, each, arithmetic(compute, each.observed.dtype, _RUNG), report.norm)
        for name, each in report.compared.items()
    ]


def channel_axis(case: Case, rank: int) -> int:
    """Of activations of a call."""
    last = "tokens" in case.op or case.options.get("layout", "channels_first") == "channels_last"
    return rank - 1 if last else 1


def substituted(case: Case, **operands: Array) -> Case:
    """``case`` with other operands."""
    return replace(case, operands=case.operands | operands)


def _changed(variant: Variant, case: Case) -> Case:
    return case if variant.each is None else variant.each(case)


def _unmoved(array: Array, then: View | None) -> Array:
    """The array that ``then`` makes this one of."""
    if then is None:
        return array
    places = then(np.arange(array.size).reshape(array.shape))
    if places.shape != array.shape:
        return array
    found = np.zeros(array.size, dtype=array.dtype)
    found[places.ravel()] = array.ravel()
    return found.reshape(array.shape)


def taken(array: Array, indices: Any, axis: int) -> Array:
    found: Array = np.take(array, indices, axis=axis)
    return found


def _differs(exact: Enclosure, true: Compared, view: View) -> bool:
    value, expected, bound = exact.value.hi, view(true.expected), view(true.bound)
    same = (value == expected) | (np.isnan(value) & np.isnan(expected))
    return bool(np.any(~same & ~(np.abs(value - expected) <= bound)))


def piece_of(e: Evidence) -> Piece | None:
    """A few channels of an image, or of all images where a sum goes over them; a few rows; None where all is needed."""
    if not e.observed.size:
        return None
    return {"depthwise": _depthwise_piece, "pointwise": _pointwise_piece, "separable": _separable_piece}[e.kind](e)


def _worst(e: Evidence, axis: int, count: int) -> Array:
    """The ``count`` indices of an axis with the most bad elements, in order; evenly spread ones where none is."""
    others = tuple(other for other in range(e.bad.ndim) if other != axis)
    bad = e.bad.sum(axis=others)
    extent = bad.shape[0]
    if extent <= count:
        return np.arange(extent)
    spread = np.linspace(0, extent - 1, count).astype(int)
    return np.sort(np.argsort(-bad, kind="stable")[:count]) if bad.any() else spread


def _image(e: Evidence) -> slice:
    if not e.per_image:
        return slice(None)
    first = int(_worst(e, 0, 1)[0])
    return slice(first, first + 1)


def _depthwise_piece(e: Evidence) -> Piece | None:
    given, options = e.case.operands, e.case.options
    outputs = given["weight"].shape[0] if "weight" in given else options["weight_shape"][0]
    source = given["x"].shape if "x" in given else tuple(options["input_shape"])
    channels = source[channel_axis(e.case, len(source))]
    each = outputs // channels if channels else 1
    wide = outputs if e.role in ("out", "weight", "bias") else channels
    per = wide // channels if channels else 1
    chosen = np.unique(_worst(e, e.channel_axis, _CHANNELS) // max(per, 1))
    fan = (chosen[:, None] * each + np.arange(each)).ravel()
    image = _image(e)

    def case(whole: Case) -> Case:
        given = whole.operands
        operands = {name: _cut_operand(whole, name, given[name], chosen, fan, image) for name in given}
        changed = dict(whole.options)
        if "input_shape" in changed:
            shape = list(changed["input_shape"])
            shape[channel_axis(whole, len(shape))] = len(chosen)
            shape[0] = len(range(shape[0])[image])
            changed["input_shape"] = tuple(shape)
        if "weight_shape" in changed:
            changed["weight_shape"] = (len(fan), *changed["weight_shape"][1:])
        return replace(whole, operands=operands, options=changed)

    own, axis = (fan if wide == outputs else chosen), e.channel_axis
    return Piece(case, _as_it_is, lambda array: taken(array[image] if e.per_image else array, own, axis))


def _cut_operand(case: Case, name: str, array: Array, channels: Array, fan: Array, image: slice) -> Array:
    if name in ("weight", "bias"):
        return array[fan]
    axis = 1 if "state" in name else channel_axis(case, array.ndim)
    return taken(array[image], fan if name == "grad_out" else channels, axis)


def _pointwise_piece(e: Evidence) -> Piece | None:
    image, axis = _image(e), e.channel_axis
    rows = _worst(e, axis, _ROWS) if e.role != "x" else np.arange(e.case.operands["weight"].shape[0])
    rank = e.case.operands["x"].ndim
    first = 2 if channel_axis(e.case, rank) == 1 else 1
    lines = _worst(e, first, _ROWS) if e.per_image and rank > 2 else None

    def some(array: Array) -> Array:
        return array[image] if lines is None else taken(array[image], lines, first)

    def case(whole: Case) -> Case:
        operands = dict(whole.operands)
        for name in ("weight", "bias"):
            if name in operands:
                operands[name] = operands[name][rows]
        operands["x"] = some(operands["x"])
        if "grad_out" in operands:
            operands["grad_out"] = taken(some(operands["grad_out"]), rows, channel_axis(whole, rank))
        return replace(whole, operands=operands)

    if e.role == "x":
        return Piece(case, _as_it_is, some)
    return Piece(case, _as_it_is, lambda array: taken(some(array) if e.per_image else array, rows, axis))


def _separable_piece(e: Evidence) -> Piece | None:
    if e.role not in ("out", "x"):
        return None
    image, axis = _image(e), e.channel_axis
    if e.role == "x":

        def single(whole: Case) -> Case:
            return substituted(whole, **{name: whole.operands[name][image] for name in ("x", "grad_out")})

        return Piece(single, _as_it_is, lambda array: array[image])
    rows = _worst(e, axis, _ROWS)
    spatial = [place for place in range(1, e.observed.ndim) if place != axis]
    starts = [_start(e, place) for place in spatial]
    cut = {place: slice(start, start + _WINDOW) for place, start in zip(spatial, starts, strict=True)}

    def case(whole: Case) -> Case:
        names = [name for name in ("pointwise_weight", "bias") if name in whole.operands]
        rest = {name: whole.operands[name][rows] for name in names}
        return substituted(whole, x=whole.operands["x"][image], **rest)

    def window(geometry: ConvGeometry) -> ConvGeometry:
        axes = zip(geometry.axes, starts, strict=True)
        return replace(
            geometry,
            axes=tuple(
                replace(one, low=one.low - start * one.stride, out=min(_WINDOW, one.out - start)) for one, start in axes
            ),
        )

    def view(array: Array) -> Array:
        index = tuple(image if place == 0 else cut.get(place, slice(None)) for place in range(array.ndim))
        return taken(array[index], rows, axis)

    return Piece(case, window, view)


def _start(e: Evidence, axis: int) -> int:
    extent = e.observed.shape[axis]
    worst = int(_worst(e, axis, 1)[0]) if e.bad.any() else 0
    return int(max(0, min(worst - _WINDOW // 2, extent - _WINDOW)))


def _as_it_is(geometry: ConvGeometry) -> ConvGeometry:
    return geometry

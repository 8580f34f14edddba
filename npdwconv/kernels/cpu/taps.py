"""Register tiles for kernels that are not compiled in: any extent, stride and dilation, the loops over taps in Numba.

For one column of taps the input rows pass under a tile of output rows. Where every output row counts the passing row
(`steady`), it is loaded once for all of them; the rows before and after, which only some count, are unrolled
(`corner`). That needs output rows one row of taps apart; with another row step each tap is taken by itself (`single`).
A single row is its own: a vector of it meets the next vector's sums with the tap a vector further on (`along`).
"""

from __future__ import annotations

from typing import Any

from numba.extending import intrinsic

from npdwconv.kernels.cpu.columns import Columns, Tile, Weights, field_or_fixed, where
from npdwconv.kernels.cpu.simd import STORED, Value, int64
from npdwconv.kernels.cpu.spec import Spec


class _Window:
    """What one column of taps reads: the input columns, and the weights going down the kernel."""

    def __init__(self, builder: Any, spec: Spec, task: Value, left: Value, reads: str) -> None:
        self.tile, self.spec = Tile(spec), spec
        self.v = self.tile.vectors_of(builder)
        width = field_or_fixed(builder, spec, task, "width")
        plain = "array" if self.tile.merges else "inside"
        self.columns = Columns(self.v, self.tile, left, width, plain if reads == "plain" else reads)
        self.row_pitch = self.v.index(field_or_fixed(builder, spec, task, "row_pitch"), self.columns.size)
        size = STORED[str(spec.weight_type)][1]
        self.tap_pitch = self.v.index(field_or_fixed(builder, spec, task, "tap_pitch"), size)

    def weights(self, address: Value, back: int) -> list[Value]:
        """For every vector the weight ``back`` rows of taps before the one at ``address``."""
        b = self.v.builder
        place = b.sub(address, b.mul(self.tap_pitch, int64(back)))
        weight = Weights(self.v, self.spec, place).tap(0, 0)
        exist = [None if self.tile.merges else self.columns.exist(0, k) for k in range(self.tile.vectors)]
        return [weight if mask is None else b.select(mask, weight, self.v.zero()) for mask in exist]

    def inputs(self, row: Value) -> list[Value]:
        return [self.columns.load(row, 0, k, {}) for k in range(self.tile.vectors)]

    def add(self, acc: list[Value], row: int, inputs: list[Value], weights: list[Value]) -> None:
        """Add one tap to the sums of one output row."""
        for k, value in enumerate(inputs):
            place = self.tile.place(row, 0, k, 0)
            exist = self.columns.exist(0, k) if self.tile.merges else None
            acc[place] = self.v.fma(value, weights[k], acc[place], exist)


def _steady(reads: str) -> Any:
    @intrinsic
    def steady(typing: Any, task: Any, sums: Any, x: Any, weight: Any, left: Any) -> Any:
        """Add the input row at ``x``: output row 0 counts it with the tap at ``weight``, the next with that before."""

        def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            task_, sums_, x_, weight_, left_ = arguments
            window = _Window(builder, task.spec, task_, left_, reads)
            acc = [builder.extract_value(sums_, i) for i in range(window.tile.sums)]
            inputs = window.inputs(x_)
            for row in range(window.tile.rows):
                window.add(acc, row, inputs, window.weights(weight_, row))
            return context.make_tuple(builder, sums, acc)

        return sums(task, sums, x, weight, left), generate

    return steady


def _corner(reads: str, *, after: bool) -> Any:
    @intrinsic
    def corner(typing: Any, task: Any, sums: Any, x: Any, weight: Any, low: Any, high: Any, left: Any) -> Any:
        """Add the input rows that only the first output rows count (from ``x`` on), or ``after`` them the last.

        Of these input rows those in [low, high) are in the image. ``weight`` is the tap that output row 0 counts the
        first one with; after, that would be the one past the kernel's end.
        """

        def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            task_, sums_, x_, weight_, low_, high_, left_ = arguments
            window = _Window(builder, task.spec, task_, left_, reads)
            rows = window.tile.rows
            acc = [builder.extract_value(sums_, i) for i in range(window.tile.sums)]
            for i in range(rows - 1):
                exists = builder.and_(
                    builder.icmp_signed("<=", low_, int64(i)), builder.icmp_signed(">", high_, int64(i))
                )
                with where(builder, exists, acc) as changed:
                    inputs = window.inputs(window.v.at(x_, builder.mul(window.row_pitch, int64(i))))
                    for row in range(i + 1, rows) if after else range(i + 1):
                        window.add(changed, row, inputs, window.weights(weight_, row - i))
            return context.make_tuple(builder, sums, acc)

        return sums(task, sums, x, weight, low, high, left), generate

    return corner


def _single(reads: str) -> Any:
    @intrinsic
    def single(typing: Any, task: Any, sums: Any, x: Any, weight: Any, top: Any, left: Any) -> Any:
        """Add one tap to every output row: row ``top`` of the image is what output row 0 counts."""
        spec = task.spec

        def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            task_, sums_, x_, weight_, top_, left_ = arguments
            window = _Window(builder, spec, task_, left_, reads)
            height = field_or_fixed(builder, spec, task_, "height")
            step = field_or_fixed(builder, spec, task_, "row_step")
            pitch = builder.mul(
                window.v.index(field_or_fixed(builder, spec, task_, "width"), window.columns.size), step
            )
            weights = window.weights(weight_, 0)
            acc = [builder.extract_value(sums_, i) for i in range(window.tile.sums)]
            for row in range(window.tile.rows):
                exists = builder.icmp_unsigned("<", builder.add(top_, builder.mul(step, int64(row))), height)
                with where(builder, exists, acc) as changed:
                    inputs = window.inputs(window.v.at(x_, builder.mul(pitch, int64(row))))
                    window.add(changed, row, inputs, weights)
            return context.make_tuple(builder, sums, acc)

        return sums(task, sums, x, weight, top, left), generate

    return single


steady_plain, steady_lanes = _steady("plain"), _steady("lanes")
before_plain, before_lanes = _corner("plain", after=False), _corner("lanes", after=False)
after_plain, after_lanes = _corner("plain", after=True), _corner("lanes", after=True)
single_plain, single_lanes = _single("plain"), _single("lanes")


def _along(taps: int) -> Any:
    @intrinsic
    def along(typing: Any, task: Any, sums: Any, x: Any, weight: Any, left: Any) -> Any:
        """Add a tap of a single row to every sum, and with two ``taps`` the one as many columns on as a vector has.

        The first vector that is read is at ``x``, in column ``left``: each is loaded once for both taps.
        """
        spec, tile = task.spec, Tile(task.spec)

        def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            task_, sums_, x_, weight_, left_ = arguments
            v, b = tile.vectors_of(builder), builder
            width = field_or_fixed(b, spec, task_, "width")
            stored, size = str(spec.source_type), int(spec.source_size)
            step = v.index(field_or_fixed(b, spec, task_, "tap_step_w"), int(spec.weight_size) * v.lanes)
            weights = [Weights(v, spec, v.at(weight_, b.mul(step, int64(i)))).tap(0, 0) for i in range(taps)]
            acc = [b.extract_value(sums_, i) for i in range(tile.sums)]
            for number in range(tile.vectors + taps - 1):
                first = b.add(left_, int64(number * v.lanes))
                at = v.at(x_, number * v.lanes * size)
                reads = [(number - i, weights[i]) for i in range(taps) if 0 <= number - i < tile.vectors]
                begins, last = b.icmp_signed(">=", first, int64(0)), b.add(first, int64(v.lanes))
                inside = b.and_(begins, b.icmp_signed("<=", last, width))
                with where(b, inside, acc) as changed:
                    value = v.load(at, stored)
                    for place, weight_of in reads:
                        changed[place] = v.fma(value, weight_of, changed[place])
                with where(b, b.not_(inside), acc) as changed:
                    exist = v.between(b.neg(first), b.sub(width, first))
                    value = v.load(at, stored, exist)
                    for place, weight_of in reads:
                        counted = weight_of if tile.merges else b.select(exist, weight_of, v.zero())
                        changed[place] = v.fma(value, counted, changed[place], exist if tile.merges else None)
            return context.make_tuple(builder, sums, acc)

        return sums(task, sums, x, weight, left), generate

    return along


along_once, along_twice = _along(1), _along(2)

"""The weight gradient of few taps over wide planes, where a lane is a column: nothing is turned.

A sum for every tap stays in registers while a vector of columns rolls down z's plane and x's (`rolling` turned around:
rows of z are held where it holds sums of outputs). An input row is loaded once for all rows of z that meet it; lanes
are added up at the end. Where half a vector holds a row, two channels' planes share a vector.
"""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

from numba.core import types
from numba.extending import intrinsic

from npdwconv.kernels.cpu.column_tiles import fetch
from npdwconv.kernels.cpu.columns import Tile, field_or_fixed, halves, twice, twin_load, where
from npdwconv.kernels.cpu.engine import Kernel, inlined
from npdwconv.kernels.cpu.rolling import Turn, columns_under
from npdwconv.kernels.cpu.simd import Value, int64
from npdwconv.kernels.cpu.spec import Spec
from npdwconv.kernels.cpu.vectors import VectorType

UniTuple: Any = types.UniTuple  # untyped in numba


def _taps(tile: Tile) -> list[tuple[int, int]]:
    """The taps (row, column), each with a sum."""
    columns = sorted(tap for pairs in tile.shifts().values() for _, tap in pairs)
    return [(row, column) for row in tile.row_taps() for column in columns]


@intrinsic
def begin(typing: Any, task: Any) -> Any:
    """The sums of all taps and the rows of z that are held, of nothing."""
    tile = Tile(task.spec)
    count = len(_taps(tile)) + tile.rows
    result = UniTuple(VectorType(tile.dtype, tile.vectors_of(None).lanes), count)

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return context.make_tuple(builder, result, [tile.vectors_of(builder).zero()] * count)

    return result(task), generate


class _Turned:
    """The code of one turn: what `Turn` lists, from ``x`` and ``z`` on, for the columns of z from ``q`` on."""

    def __init__(self, builder: Any, spec: Spec, task: Value, q: Value, reads: str) -> None:
        self.builder, self.tile = builder, Tile(spec)
        self.v, self.turn, self.sums = self.tile.vectors_of(builder), Turn(self.tile), _taps(self.tile)
        width, out_w, height, out_h = (
            field_or_fixed(builder, spec, task, name) for name in ("width", "out_w", "height", "out_h")
        )
        self.stored = str(spec.z_type)
        self.x_pitch, self.z_pitch = self.v.index(width, int(spec.source_size)), self.v.index(out_w, int(spec.z_size))
        x_twin, self.z_twin = (
            builder.mul(pitch, rows) if self.tile.twins else None
            for pitch, rows in ((self.x_pitch, height), (self.z_pitch, out_h))
        )
        self.columns = columns_under(self.v, self.tile, task, q, reads, x_twin)
        there = None if reads == "inside" else self.v.between(int64(0), builder.sub(out_w, q))
        self.there = there if there is None or not self.tile.twins else twice(self.v, there)
        self.counts = {offset: self._both(self.there, self.columns.exist(offset, 0)) for offset in self.tile.shifts()}

    def _both(self, a: Value | None, b: Value | None) -> Value | None:
        return a if b is None else b if a is None else self.builder.and_(a, b)

    def hold(self, z: Value, row: int, held: list[Value], place: int) -> None:
        """Load a row of z."""
        at = self.v.at(z, self.builder.mul(self.z_pitch, int64(row)))
        if self.z_twin is None:
            held[len(self.sums) + place] = self.v.load(at, self.stored, self.there)
        else:
            held[len(self.sums) + place] = twin_load(self.v, at, self.z_twin, self.stored, self.there)

    def inputs(self, x: Value, row: int) -> dict[int, Value]:
        """What the columns of taps read of a row of x."""
        seen: dict[int, Value] = {}
        at = self.v.at(x, self.builder.mul(self.x_pitch, int64(row)))
        return {offset: self.columns.load(at, offset, 0, seen) for offset in self.tile.shifts()}

    def add(self, inputs: dict[int, Value], place: int, tap_row: int, acc: list[Value]) -> None:
        """Add the products of a row of x and a held row of z: one tap of each column."""
        for offset, ((_, column),) in self.tile.shifts().items():
            at = self.sums.index((tap_row, column))
            value, gradient, mask = inputs[offset], acc[len(self.sums) + place], self.counts[offset]
            if mask is not None and not self.tile.merges:
                value, gradient = (self.builder.select(mask, factor, self.v.zero()) for factor in (value, gradient))
                mask = None
            acc[at] = self.v.fma(value, gradient, acc[at], mask)


def _roll(reads: str, *, steady: bool) -> Any:
    @intrinsic
    def roll(
        typing: Any,
        task: Any,
        held: Any,
        x: Any,
        z: Any,
        top: Any,
        first: Any,
        rows: Any,
        end: Any,
        q: Any,
        x_ahead: Any,
        z_ahead: Any,
    ) -> Any:
        """Add what a turn's rows of x give, from ``top`` at ``x`` on; ``first`` is the row of z at ``z``.

        Of z ``rows`` rows exist, of x those from 0 to ``end``; ``steady`` where all that meet do. Meanwhile what is at
        ``x_ahead`` and ``z_ahead`` is fetched.
        """
        spec = task.spec

        def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            task_, held_, x_, z_, top_, first_, rows_, end_, q_, x_ahead_, z_ahead_ = arguments
            code = _Turned(builder, spec, task_, q_, reads)
            acc = [builder.extract_value(held_, i) for i in range(held.count)]
            for row in range(code.turn.rows):
                fetch(code.v, x_ahead_, int(spec.piece), row)
                for output in code.turn.begun(row):
                    fetch(code.v, z_ahead_, int(spec.z_piece), output)
                    exists = builder.icmp_unsigned("<", builder.add(first_, int64(output)), rows_)
                    with nullcontext(acc) if steady else where(builder, exists, acc) as changed:
                        code.hold(z_, output, changed, code.turn.sum(output))
                exists = builder.icmp_unsigned("<", builder.add(top_, int64(row)), end_)
                with nullcontext(acc) if steady else where(builder, exists, acc) as changed:
                    inputs = code.inputs(x_, row)
                    for output, tap_row in code.turn.meetings(row):
                        met = builder.icmp_unsigned("<", builder.add(first_, int64(output)), rows_)
                        with nullcontext(changed) if steady else where(builder, met, changed) as both:
                            code.add(inputs, code.turn.sum(output), tap_row, both)
            return context.make_tuple(builder, held, acc)

        return held(task, held, x, z, top, first, rows, end, q, x_ahead, z_ahead), generate

    return roll


def _strip(reads: str) -> Any:
    steady, edge = _roll(reads, steady=True), _roll(reads, steady=False)

    @inlined
    def strip(
        task: Any, held: Any, x: Any, z: Any, top: Any, rows: Any, end: Any, q: Any, x_ahead: Any, z_ahead: Any
    ) -> Any:
        """Add what a vector of columns gives: ``rows`` rows of z, whose first meets row ``top`` of x first."""
        for p in range(0, rows + task.late, task.rows):
            if p >= task.late and p + task.rows <= rows and top >= 0 and top + task.turn <= end:
                held = steady(task, held, x, z, top, p, rows, end, q, x_ahead, z_ahead)
            else:
                held = edge(task, held, x, z, top, p, rows, end, q, x_ahead, z_ahead)
            top += task.turn
            x += task.turn * task.width * task.source_size
            z += task.rows * task.out_w * task.z_size
            x_ahead += task.turn * task.piece
            z_ahead += task.rows * task.z_piece
        return held

    return strip


strip_inside, strip_array, strip_lanes = _strip("inside"), _strip("array"), _strip("lanes")


@intrinsic
def total(typing: Any, task: Any, held: Any, place: Any, pitch: Any) -> Any:
    """Write every tap's sum over all lanes, in order, ``pitch`` bytes apart, over either half where planes share."""
    tile = Tile(task.spec)

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        _, held_, place_, pitch_ = arguments
        v = tile.vectors_of(builder)
        narrow, *both = halves(v) if tile.twins else (v, range(v.lanes))
        for number in range(len(_taps(tile))):
            value, at = builder.extract_value(held_, number), v.at(place_, builder.mul(pitch_, int64(number)))
            for channel, lanes in enumerate(both):
                sum_ = narrow.total(v.shuffle(value, value, lanes))
                there = builder.inttoptr(v.at(at, channel * v.bytes), sum_.type.as_pointer())
                builder.store(sum_, there, align=1)
        return context.get_dummy_value()

    return types.none(task, held, place, pitch), generate


@inlined
def _planes(task: Any, channel: Any, unit: Any) -> Any:
    """The rows of z and of x, counted from their beginnings, at which a unit's planes begin."""
    image = unit // task.blocks
    z_plane = image * task.z_channels + channel // task.z_each
    return z_plane * task.out_h, (image * task.x_channels + channel // task.x_each) * task.height


@inlined
def _add_block(task: Any, held: Any, channel: Any, unit: Any) -> Any:
    """Add what a block of rows of a channel's planes gives, a vector of columns after another."""
    p0, p1 = unit % task.blocks * task.block_h, (unit + 1) % task.blocks * task.block_h
    rows = min(task.block_h, task.out_h - p0)
    top = p0 * task.row_step - task.low_h
    end = min(top + (rows - 1) * task.row_step + task.deep, task.height)
    z_row, x_row = _planes(task, channel, unit)
    z_next, x_next = _planes(task, channel, unit + 1)
    z_ahead = task.z + (z_next + p1) * task.out_w * task.z_size if task.z_piece else 0
    x_ahead = task.x + (x_next + p1 * task.row_step) * task.width * task.source_size if task.piece else 0
    for q in range(0, task.out_w, task.lanes):
        left = q * task.column_step - task.low_w
        inside = left >= 0 and left + task.reach <= task.width and q + task.lanes <= task.out_w
        begins = (x_row + max(top, 0)) * task.width + left
        ends = (x_row + (task.mates - 1) * task.height + end - 1) * task.width + left + task.reach
        array = task.merges and begins >= 0 and ends <= task.x_end
        x = task.x + ((x_row + top) * task.width + left) * task.source_size
        z = task.z + ((z_row + p0) * task.out_w + q) * task.z_size
        if inside:
            held = strip_inside(task, held, x, z, top, rows, end, q, x_ahead, z_ahead)
        elif array:
            held = strip_array(task, held, x, z, top, rows, end, q, x_ahead, z_ahead)
        else:
            held = strip_lanes(task, held, x, z, top, rows, end, q, x_ahead, z_ahead)
        x_ahead += rows * task.row_step * task.piece
        z_ahead += rows * task.z_piece
    return held


def _rolled(task: Any, item: Any) -> None:
    """Some channels, or pairs of them, over a chunk of blocks of rows."""
    chunk = item // task.groups
    first = item % task.groups * task.group
    for channel in range(first, min(first + task.group, task.channels), task.mates):
        held = begin(task)
        for unit in range(chunk * task.block, min((chunk + 1) * task.block, task.units)):
            held = _add_block(task, held, channel, unit)
        vector = channel // task.lanes + chunk * task.channel_vectors
        place = task.partial + (vector * task.sums * task.lanes + channel % task.lanes) * task.size
        total(task, held, place, task.lanes * task.size)


rolled = Kernel(_rolled)

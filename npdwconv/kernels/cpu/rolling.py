"""Tiles that roll down a plane: a vector of columns, all rows of a block, every input row met once.

An input row adds to the few outputs that read it, whose sums stay in registers. With its last row an output is
finished, written, and its registers begin another. Unlike a tile of many rows, nothing is set up between rows, and
nothing ends but once a block.
"""

from __future__ import annotations

from typing import Any

from numba.core import types
from numba.extending import intrinsic

from npdwconv.kernels.cpu.arrays import LINE
from npdwconv.kernels.cpu.column_tiles import Output, Taps, fetch, place_taps
from npdwconv.kernels.cpu.columns import Columns, Tile, Weights, field_or_fixed, where
from npdwconv.kernels.cpu.engine import Kernel, inlined
from npdwconv.kernels.cpu.simd import Value, Vectors, int64
from npdwconv.kernels.cpu.spec import Spec
from npdwconv.kernels.cpu.vectors import VectorType

UniTuple: Any = types.UniTuple  # untyped in numba


class Turn:
    """The rows after which the same registers hold the same outputs' sums again."""

    def __init__(self, tile: Tile) -> None:
        (self.taps,) = tile.row_phases
        self.step, self.alive = tile.row_step, tile.rows
        self.rows = self.step * self.alive
        self.reach = max(offset for offset, _ in self.taps)

    def sum(self, output: int) -> int:
        """Which registers hold an output's sum."""
        return output % self.alive

    def begun(self, row: int) -> list[int]:
        """The outputs that begin with this row, counted from the one that begins with the turn's first."""
        return [row // self.step] if row % self.step == 0 else []

    def meetings(self, row: int) -> list[tuple[int, int]]:
        """The (output, row tap) pairs of an input row."""
        return [((row - offset) // self.step, tap) for offset, tap in self.taps if (row - offset) % self.step == 0]

    def finished(self, row: int) -> list[int]:
        """The outputs that end with this row."""
        return [(row - self.reach) // self.step] if (row - self.reach) % self.step == 0 else []


def _held(tile: Tile) -> list[tuple[int, int, int]]:
    """The taps that stay in registers, behind the bias; with a mask in every vector's own."""
    vectors = range(1 if tile.merges else tile.vectors)
    taps = sorted({tap for pairs in tile.shifts().values() for _, tap in pairs})
    return [(row, tap, vector) for row in tile.row_taps() for tap in taps for vector in vectors]


def _hold(reads: str) -> Any:
    @intrinsic
    def hold(typing: Any, task: Any, weight: Any, bias: Any, q: Any) -> Any:
        """The bias and the taps of a plane, for the results from column ``q`` on."""
        spec, tile = task.spec, Tile(task.spec)
        held = _held(tile)
        result = UniTuple(VectorType(tile.dtype, tile.vectors_of(None).lanes), 1 + len(held))

        def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            task_, weight_, bias_, q_ = arguments
            v, stored = tile.vectors_of(builder), str(spec.bias_type)
            columns = columns_under(v, tile, task_, q_, reads)
            taps = place_taps(tile, columns, Weights(v, spec, weight_), tile.shifts())
            first = v.splat(v.load_scalar(bias_, stored)) if stored else v.zero()
            return context.make_tuple(builder, result, [first, *(taps[place] for place in held)])

        return result(task, weight, bias, q), generate

    return hold


@intrinsic
def begin(typing: Any, task: Any) -> Any:
    """Sums of nothing."""
    tile = Tile(task.spec)
    result = tile.tuple()

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return context.make_tuple(builder, result, [tile.vectors_of(builder).zero()] * tile.sums)

    return result(task), generate


def _roll(reads: str) -> Any:
    @intrinsic
    def roll(
        typing: Any,
        task: Any,
        sums: Any,
        held: Any,
        x: Any,
        out: Any,
        other: Any,
        top: Any,
        first: Any,
        rows: Any,
        end: Any,
        q: Any,
        ahead: Any,
    ) -> Any:
        """Take a turn's input rows, from ``top`` at ``x`` on, and write the outputs that end with them.

        ``first`` is the output that begins with row ``top``, of the ``rows`` that there are; ``out`` and ``other`` are
        where it is in column ``q``. Input rows exist from 0 to ``end``; meanwhile what is at ``ahead`` is fetched.
        """
        spec, tile = task.spec, Tile(task.spec)

        def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            task_, sums_, held_, x_, out_, other_, top_, first_, rows_, end_, q_, ahead_ = arguments
            v, turn = tile.vectors_of(builder), Turn(tile)
            width, pitch = (field_or_fixed(builder, spec, task_, name) for name in ("width", "tile_pitch"))
            inputs = columns_under(v, tile, task_, q_, reads)
            store = _output(v, tile, task_, pitch, q_, reads)
            bias, taps = _unpacked(builder, spec, held_)
            acc = [builder.extract_value(sums_, i) for i in range(tile.sums)]
            down = v.index(width, inputs.size)
            for row in range(turn.rows):
                for output in turn.begun(row):
                    place = turn.sum(output) * tile.vectors
                    acc[place : place + tile.vectors] = [bias] * tile.vectors
                exists = builder.icmp_unsigned("<", builder.add(top_, int64(row)), end_)
                met = [(turn.sum(output), tap) for output, tap in turn.meetings(row)]
                fetch(v, ahead_, int(spec.piece), row)
                with where(builder, exists, acc) as changed:
                    _add_row(tile, inputs, taps, v.at(x_, builder.mul(down, int64(row))), met, changed)
                for output in turn.finished(row):
                    there = builder.icmp_unsigned("<", builder.add(first_, int64(output)), rows_)
                    with builder.if_then(there, likely=True):
                        for vector in range(tile.vectors):
                            total = acc[turn.sum(output) * tile.vectors + vector]
                            store.write([total], out_, other_, output, vector)
            return context.make_tuple(builder, sums, acc)

        return sums(task, sums, held, x, out, other, top, first, rows, end, q, ahead), generate

    return roll


def columns_under(v: Vectors, tile: Tile, task: Value, q: Value, reads: str, twin: Value | None = None) -> Columns:
    """The input columns of the results from column ``q`` on, ``twin`` bytes further on those of half the lanes."""
    b, spec = v.builder, tile.spec
    width, low = (field_or_fixed(b, spec, task, name) for name in ("width", "low_w"))
    return Columns(v, tile, b.sub(b.mul(q, int64(tile.column_step)), low), width, reads, twin)


def _output(v: Vectors, tile: Tile, task: Value, pitch: Value, q: Value, reads: str) -> Output:
    """Where the results from column ``q`` on go; it may be before the first."""
    if reads == "inside" or tile.spec.back:
        return Output(v, tile, pitch, None, streams=bool(tile.spec.streams))
    end = v.builder.sub(field_or_fixed(v.builder, tile.spec, task, "out_w"), q)
    streams = bool(tile.spec.streams)
    return Output(v, tile, pitch, end, v.builder.neg(q) if streams else int64(0), streams=streams)


def _unpacked(builder: Any, spec: Spec, held: Value) -> tuple[Value, Taps]:
    """The bias and the taps that `hold` put together."""
    tile = Tile(spec)
    places = _held(tile)
    values = [builder.extract_value(held, i) for i in range(1 + len(places))]
    taps = dict(zip(places, values[1:], strict=True))
    if tile.merges:
        taps = {(r, s, k): tap for (r, s, _), tap in taps.items() for k in range(tile.vectors)}
    return values[0], taps


def _add_row(
    tile: Tile, columns: Columns, taps: Taps, row: Value, meetings: list[tuple[int, int]], acc: list[Value]
) -> None:
    """Add an input row to the sums that it meets."""
    seen: dict[int, Value] = {}
    for offset, pairs in tile.shifts().items():
        for vector in range(tile.vectors):
            value = columns.load(row, offset, vector, seen)
            exist = columns.exist(offset, vector) if tile.merges else None
            for place, tap_row in meetings:
                for _, tap in pairs:
                    at = place * tile.vectors + vector
                    acc[at] = columns.v.fma(value, taps[tap_row, tap, vector], acc[at], exist)


def _strip(reads: str) -> Any:
    hold, roll = _hold(reads), _roll(reads)

    @inlined
    def strip(
        task: Any,
        weight: Any,
        bias: Any,
        x: Any,
        out: Any,
        other: Any,
        top: Any,
        rows: Any,
        end: Any,
        q: Any,
        ahead: Any,
    ) -> None:
        """Write ``rows`` results of each column of a vector at ``q`` to ``out``; the first one reads row ``top``."""
        held, sums = hold(task, weight, bias, q), begin(task)
        for p in range(0, rows + task.late, task.rows):
            sums = roll(task, sums, held, x, out, other, top, p, rows, end, q, ahead)
            ahead += task.turn * task.piece
            top += task.turn
            x += task.turn * task.width * task.source_size
            out += task.rows * task.tile_pitch * task.out_size
            other += task.rows * task.tile_pitch * task.other_size

    return strip


strip_inside, strip_array, strip_lanes = _strip("inside"), _strip("array"), _strip("lanes")


def _rolled(task: Any, item: Any) -> None:
    """A run of units: blocks of rows of a plane, a vector of columns after another."""
    unit = item * task.group
    last = min(unit + task.group, task.units)
    plane = unit // task.blocks
    block = unit - plane * task.blocks
    channel = plane % task.channels
    while unit < last:
        weight = task.weight + channel * task.kernel * task.weight_size
        bias = task.bias_at + channel * task.bias_size
        p0 = block * task.block_tiles
        rows = min(task.block_tiles, task.out_rows - p0)
        top = p0 * task.row_step - task.low_h
        end = min(top + (rows - 1) * task.row_step + task.deep, task.height)
        source = plane // task.spread * task.height
        o = task.out + (plane * task.out_plane + p0 * task.tile_pitch) * task.out_size
        y = task.other + (plane * task.out_plane + p0 * task.tile_pitch) * task.other_size
        done = top + rows * task.row_step if block < task.blocks - 1 else task.height
        ahead = task.source + (source + done) * task.width * task.source_size if task.piece else 0
        shift = task.out // task.out_size % min(task.tile_columns, LINE // task.out_size) if task.streams else 0
        for start in range(-shift, task.out_w, task.tile_columns):
            q = min(start, task.last_q)
            left = q * task.column_step - task.low_w
            inside = task.wide and left >= 0 and left + task.reach <= task.width
            inside = inside and q + task.tile_columns <= task.out_w
            inside = inside and not (task.streams and task.out % task.out_size)
            begins = (source + max(top, 0)) * task.width + left
            ends = (source + end - 1) * task.width + left + task.reach
            array = task.merges and begins >= 0 and ends <= task.source_end
            x = task.source + ((source + top) * task.width + left) * task.source_size
            oq, yq = o + q * task.out_size, y + q * task.other_size
            if inside:
                strip_inside(task, weight, bias, x, oq, yq, top, rows, end, q, ahead)
            elif array:
                strip_array(task, weight, bias, x, oq, yq, top, rows, end, q, ahead)
            else:
                strip_lanes(task, weight, bias, x, oq, yq, top, rows, end, q, ahead)
            ahead += rows * task.row_step * task.piece
        unit += 1
        block += 1
        if block == task.blocks:
            block = 0
            plane += 1
            channel += 1
        if channel == task.channels:
            channel = 0


rolled = Kernel(_rolled)

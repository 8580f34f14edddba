"""What Numba calls on a tile whose lanes are columns: begin its sums, add a plane's taps to them, write them."""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba.core import types
from numba.extending import intrinsic

from npdwconv.kernels.cpu import activate
from npdwconv.kernels.cpu.arrays import LINE
from npdwconv.kernels.cpu.assembly import opaque
from npdwconv.kernels.cpu.columns import (
    Columns,
    Reach,
    Shifts,
    Tile,
    Weights,
    field_or_fixed,
    halves,
    interleave,
    meetings,
    twin_load,
    twin_splat,
    where,
)
from npdwconv.kernels.cpu.fetching import prefetch
from npdwconv.kernels.cpu.simd import STORED, Value, Vectors, int64


@intrinsic
def start(typing: Any, task: Any, bias: Any) -> Any:
    """The sums of a tile, at the bias."""
    tile = Tile(task.spec)
    result, stored = tile.tuple(), str(task.spec.bias_type)

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        v = tile.vectors_of(builder)
        twin = int64(STORED[stored][1]) if stored and tile.twins else None
        value = twin_splat(v, arguments[1], twin, stored) if stored else v.zero()
        rest = [v.zero()] * (tile.sums * (tile.splits - 1))
        return context.make_tuple(builder, result, [value] * tile.sums + rest)

    return result(task, bias), generate


class Rows:
    """Which of a tile's input rows are in the image: bits of one register where they fit in it."""

    def __init__(self, builder: Any, rows: list[int], top: Value, height: Value) -> None:
        self.builder, self.rows, self.top, self.height = builder, rows, top, height
        self.bits = None
        if len(rows) <= 32 and not isinstance(top, ir.Constant):
            self.bits = int64(0)
            for place, row in enumerate(rows):
                bit = builder.select(self._inside(row), int64(1 << place), int64(0))
                self.bits = builder.or_(self.bits, bit)

    def row(self, row: int) -> Value:
        if self.bits is None:
            return self._inside(row)
        bit = self.builder.and_(self.bits, int64(1 << self.rows.index(row)))
        return self.builder.icmp_unsigned("!=", bit, int64(0))

    def _inside(self, row: int) -> Value:
        return self.builder.icmp_unsigned("<", self.builder.add(self.top, int64(row)), self.height)


def fetch(v: Vectors, ahead: Value, piece: int, number: int) -> None:
    """Ask for the cache lines that begin in piece ``number``, each of ``piece`` bytes, of what is at ``ahead``.

    So all of what comes next is asked for, in the order of memory, while a column of tiles reads a little of each of
    many rows, which the processor does not take for a pattern.
    """
    for place in range(-(-number * piece // LINE) * LINE, (number + 1) * piece, LINE):
        prefetch(v.builder, v.at(ahead, place))


def _gather(reads: str) -> Any:
    @intrinsic
    def gather(typing: Any, task: Any, sums: Any, x: Any, weight: Any, top: Any, left: Any, ahead: Any) -> Any:
        """Add one plane's taps to the sums of the tile whose origin reads row ``top``, column ``left`` of ``x``.

        Meanwhile what is at ``ahead`` is fetched.
        """
        spec, tile = task.spec, Tile(task.spec)

        def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            task_, sums_, x_, weight_, top_, left_, ahead_ = arguments
            v = tile.vectors_of(builder)
            height, width = (
                field_or_fixed(builder, spec, task_, "height"),
                field_or_fixed(builder, spec, task_, "width"),
            )
            plane = builder.mul(v.index(height, STORED[str(spec.source_type)][1]), width) if tile.twins else None
            columns = Columns(v, tile, left_, width, reads, plane)
            pitch = v.index(width, columns.size)
            kernel = field_or_fixed(builder, spec, task_, "kernel")
            size = STORED[str(spec.weight_type)][1]
            weights = Weights(v, spec, weight_, v.index(kernel, size) if tile.twins else None)
            acc = [builder.extract_value(sums_, i) for i in range(tile.sums * tile.splits)]
            rows = meetings(tile.rows, tile.row_step, tile.row_phases)
            exist = Rows(builder, list(rows), top_, height)
            for turn, shifts in enumerate(tile.groups()):
                # opaque: else all rows' addresses are kept for the next group, in memory, for registers are too few
                taps, place, at = place_taps(tile, columns, weights, shifts), opaque(builder, x_), 0
                for row, reaches in rows.items():
                    place, at = v.at(place, builder.mul(pitch, int64(row - at))), row
                    if turn == 0 and row < tile.rows * tile.row_step:
                        fetch(v, ahead_, int(spec.piece), row)
                    with where(builder, exist.row(row), acc) as changed:
                        _add_row(tile, columns, taps, place, shifts, reaches, changed)
            return context.make_tuple(builder, sums, acc)

        return sums(task, sums, x, weight, top, left, ahead), generate

    return gather


Taps = dict[tuple[int, int, int], Value]  # (row tap, column tap, vector) -> the weight in the lanes that it counts in


def place_taps(tile: Tile, columns: Columns, weights: Weights, shifts: Shifts) -> Taps:
    """The weights of some column offsets; without merging FMAs zero where the column is outside, as the input is."""
    v, taps = columns.v, Taps()
    for row in tile.row_taps():
        for offset, pairs in shifts.items():
            for _, column in pairs:
                weight = weights.tap(row, column)
                for vector in range(tile.vectors):
                    exist = None if tile.merges else columns.exist(offset, vector)
                    taps[row, column, vector] = weight if exist is None else v.builder.select(exist, weight, v.zero())
    return taps


def _add_row(
    tile: Tile, columns: Columns, taps: Taps, row: Value, shifts: Shifts, reaches: list[Reach], acc: list[Value]
) -> None:
    """Add what some column offsets of one input row give to every sum that reads them."""
    v, seen = columns.v, dict[int, Value]()
    for turn, (offset, pairs) in enumerate(tile.shifts().items()):
        if offset not in shifts:
            continue
        split = turn % tile.splits * tile.sums
        inputs = [columns.load(row, offset, vector, seen) for vector in range(tile.vectors)]
        for reach in reaches:
            for phase, tap in pairs:
                for vector, value in enumerate(inputs):
                    place = split + tile.place(reach.row, reach.phase, vector, phase)
                    exist = columns.exist(offset, vector) if tile.merges else None
                    acc[place] = v.fma(value, taps[reach.tap, tap, vector], acc[place], exist)


gather_inside, gather_array, gather_lanes = _gather("inside"), _gather("array"), _gather("lanes")


def _finish(*, edge: bool) -> Any:
    @intrinsic
    def finish(typing: Any, task: Any, sums: Any, out: Any, other: Any, rows: Any, columns: Any) -> Any:
        """Write the tile's sums: ``rows`` rows and ``columns`` columns of its output exist."""
        spec, tile = task.spec, Tile(task.spec)

        def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            task_, sums_, out_, other_, rows_, columns_ = arguments
            v = tile.vectors_of(builder)
            plane = field_or_fixed(builder, spec, task_, "out_plane") if tile.twins else None
            pitch = field_or_fixed(builder, spec, task_, "tile_pitch")
            end = int(spec.out_columns) if spec.knows("out_columns") else columns_
            store = Output(v, tile, pitch, end if edge else None, twin=plane)
            kinds = len(tile.row_phases)
            for row in range(tile.rows * kinds):
                with builder.if_then(builder.icmp_signed("<", int64(row), rows_), likely=True):
                    for vector in range(tile.vectors):
                        first = tile.place(row // kinds, row % kinds, vector, 0)
                        parts = [
                            _total(tile, builder, sums_, first + phase) for phase in range(len(tile.column_phases))
                        ]
                        store.write(parts, out_, other_, row, vector)
            return context.get_dummy_value()

        return types.none(task, sums, out, other, rows, columns), generate

    return finish


def _total(tile: Tile, builder: Any, sums: Value, place: int) -> Value:
    """One vector of results."""
    total = builder.extract_value(sums, place)
    for split in range(1, tile.splits):
        total = builder.fadd(total, builder.extract_value(sums, place + split * tile.sums), flags=("contract", "nsz"))
    return total


class Output:
    """Where a tile's results go: activated, or times the chain rule's other factor."""

    def __init__(
        self,
        v: Vectors,
        tile: Tile,
        pitch: Value,
        end: Value | int | None,
        first: Value | None = None,
        *,
        streams: bool = False,
        twin: Value | None = None,
    ) -> None:
        """Of its columns those from ``first`` (0) to ``end`` exist, all without it; whole vectors may be streamed,
        past the caches: where all exist ``out`` is aligned for that.

        ``twin`` is how many values further on the second half of the lanes is written.
        """
        self.v, self.tile, self.pitch, self.end = v, tile, pitch, end
        self.first, self.streams, self.twin = first or int64(0), streams, twin
        spec = tile.spec
        self.activation = str(spec.activation)
        self.stored, self.other_stored = str(spec.out_type), str(spec.other_type)
        self.step = int(spec.out_step)

    def write(self, parts: list[Value], out: Value, other: Value, row: int, vector: int) -> None:
        """The vectors of all column phases at one place of the tile."""
        v = self.v
        activated = [self._activate(z) for z in parts]
        own = self.twin is not None and len(parts) > 1  # two phases of half the lanes are a vector for each plane
        for k, value in enumerate(interleave(v, activated)):
            column = 0 if own else (vector * len(parts) + k) * v.lanes
            plane = self.twin if own and k else None
            mask = self._exist(column)
            if self.other_stored:
                factor = self._at(other, row, column, self.other_stored, plane)
                value = v.builder.fmul(self._read(factor, mask, own=own), value, flags=("contract", "nsz"))
            self._store(value, self._at(out, row, column, self.stored, plane), mask, own=own)

    def _exist(self, column: int) -> Value | None:
        """The mask of the columns that exist, of a vector from this one on; None where all do."""
        if isinstance(self.end, int):
            exist = [column + lane < self.end for lane in range(self.v.lanes)]
            return None if all(exist) else ir.Constant(self.v.mask, exist)
        if self.end is None:
            return None
        return self.v.between(*(self._after(column, place) for place in (self.first, self.end)))

    def _after(self, column: int, place: Value) -> Value:
        return place if isinstance(place, ir.Constant) else self.v.builder.sub(place, int64(column))

    def _activate(self, z: Value) -> Value:
        if self.other_stored:
            return activate.derivative(self.v, self.activation, z)
        return activate.activate(self.v, self.activation, z)

    def _at(self, origin: Value, row: int, column: int, stored: str, plane: Value | None) -> Value:
        size = STORED[stored][1]
        rows = self.v.builder.mul(self.pitch, int64(row * size))
        place = self.v.at(origin, rows, column * self.step * size)
        return place if plane is None else self.v.at(place, self.v.index(plane, size))

    def _read(self, address: Value, mask: Value | None, *, own: bool) -> Value:
        if self.twin is not None and not own:
            twin = self.v.index(self.twin, STORED[self.other_stored][1])
            return twin_load(self.v, address, twin, self.other_stored, mask)
        if self.step == 1:
            return self.v.load(address, self.other_stored, mask)
        return self.v.gather(address, int64(self.step * STORED[self.other_stored][1]), self.other_stored, mask)

    def _store(self, value: Value, address: Value, mask: Value | None, *, own: bool) -> None:
        if self.twin is not None and not own:
            narrow, *lanes = halves(self.v)
            some = None if mask is None else self.v.shuffle(mask, mask, lanes[0])
            for half in lanes:
                narrow.store(self.v.shuffle(value, value, half), address, self.stored, some)
                address = self.v.at(address, self.v.index(self.twin, STORED[self.stored][1]))
        elif self.streams:
            self._stream(value, address, mask)
        elif self.step == 1:
            self.v.store(value, address, self.stored, mask, first=isinstance(self.first, ir.Constant))
        else:
            self.v.scatter(value, address, int64(self.step * STORED[self.stored][1]), self.stored, mask)

    def _stream(self, value: Value, address: Value, mask: Value | None) -> None:
        """Write past the caches what is a vector as a whole and begins as one may; a line in part would cost more.

        A store of no lanes brings its line all the same.
        """
        v, b = self.v, self.v.builder
        if mask is None:
            v.stream(value, address)
            return
        aligned = b.icmp_unsigned("==", b.and_(address, int64(v.lanes * v.bytes - 1)), int64(0))
        with b.if_else(b.and_(v.all(mask), aligned), likely=True) as (whole, some):
            with whole:
                v.stream(value, address)
            with some, b.if_then(v.any(mask)):
                v.store(value, address, self.stored, mask, first=False)


finish_inner, finish_edge = _finish(edge=False), _finish(edge=True)

"""Register tiles of depthwise correlation whose lanes are columns, unrolled by ordinary Python loops.

A tile is a block of output rows and columns whose sums stay in registers. Every input vector that it reads is loaded
once and used by every output and tap that meet there: `meetings` lists them. An adjoint of stride s has s kinds of
rows and of columns, its *phases*, each with taps of its own; a tile holds them all, so that what interleaves in memory
is interleaved in registers. Input rows outside the image are branched over, columns outside it masked out of loads and
sums alike: padding reads nothing.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

from llvmlite import ir
from numba.core import types
from numba.extending import intrinsic

from npdwconv.kernels.cpu import activate
from npdwconv.kernels.cpu.simd import I32, I64, STORED, Value, Vectors, int64
from npdwconv.kernels.cpu.spec import Spec, field
from npdwconv.kernels.cpu.vectors import VectorType

Phases = list[list[tuple[int, int]]]  # for each phase of an axis its (offset in the source, tap) pairs
Shifts = dict[int, list[tuple[int, int]]]  # column offset -> the (column phase, tap) pairs that read it

HELD = 12  # kernels of so many taps stay in registers as a whole
SHUFFLED = 4  # the widest column step that is taken apart or put together by shuffles


class Reach(NamedTuple):
    """One output of a tile and the weight by which it counts an input: row, row phase and row tap."""

    row: int
    phase: int
    tap: int


def written(phases: Phases) -> str:
    """Phases as text: what a spec holds."""
    return "/".join(" ".join(f"{offset}:{tap}" for offset, tap in phase) for phase in phases)


def read(text: str) -> Phases:
    """The phases that `written` put down."""
    return [[(int(o), int(t)) for o, t in (pair.split(":") for pair in phase.split())] for phase in text.split("/")]


def meetings(rows: int, step: int, phases: Phases) -> dict[int, list[Reach]]:
    """Input row -> the outputs of a tile of ``rows`` rows that read it, and with which tap."""
    found: dict[int, list[Reach]] = {}
    for row in range(rows):
        for phase, pairs in enumerate(phases):
            for offset, tap in pairs:
                found.setdefault(row * step + offset, []).append(Reach(row, phase, tap))
    return dict(sorted(found.items()))


def columns_read(lanes: int, step: int, phases: Phases) -> int:
    """How many columns from a tile's origin its unmasked loads reach over."""
    last = max((offset for phase in phases for offset, _ in phase), default=0)
    return last - last % step + lanes * step if step <= SHUFFLED else last + (lanes - 1) * step + 1


class Tile:
    """The shape of a spec's tile."""

    def __init__(self, spec: Spec) -> None:
        self.spec = spec
        self.rows, self.vectors, self.splits = int(spec.rows), int(spec.vectors), int(spec.splits)
        self.row_phases, self.column_phases = read(str(spec.row_taps)), read(str(spec.column_taps))
        self.row_step = int(spec.row_step) if spec.knows("row_step") else 1
        self.column_step = int(spec.column_step)
        self.dtype, self.merges = str(spec.dtype), bool(spec.merges)

    def vectors_of(self, builder: Any) -> Vectors:
        return Vectors(builder, self.dtype)

    @property
    def sums(self) -> int:
        """How many vectors of results it has; each is the sum of `splits` sums, so that FMAs need not wait."""
        return self.rows * len(self.row_phases) * self.vectors * len(self.column_phases)

    def place(self, row: int, row_phase: int, vector: int, column_phase: int) -> int:
        """Where among the sums one vector is."""
        place = (row * len(self.row_phases) + row_phase) * self.vectors + vector
        return place * len(self.column_phases) + column_phase

    def tuple(self) -> Any:
        return types.UniTuple(VectorType(self.dtype, self.vectors_of(None).lanes), self.sums * self.splits)

    def row_taps(self) -> list[int]:
        """The row taps that any phase uses."""
        return sorted({tap for phase in self.row_phases for _, tap in phase})

    def groups(self) -> list[Shifts]:
        """Column offsets whose taps stay in registers while all rows pass: all of them, or those that share loads."""
        shifts = self.shifts()
        if len(self.row_taps()) * sum(map(len, shifts.values())) <= HELD:
            return [shifts]
        step = self.column_step if self.column_step <= SHUFFLED else 1
        groups: dict[int, Shifts] = {}
        for offset, pairs in shifts.items():
            groups.setdefault(offset // step, {})[offset] = pairs
        return list(groups.values())

    def shifts(self) -> Shifts:
        found: Shifts = {}
        for phase, pairs in enumerate(self.column_phases):
            for offset, tap in pairs:
                found.setdefault(offset, []).append((phase, tap))
        return dict(sorted(found.items()))


class Columns:
    """The input columns under a tile: vectors of them by offset, and which of their lanes are in the image.

    ``reads`` says what a vector may load: "inside" (all its columns are in the image), "array" (all are in the array:
    lanes outside the image hold something, which the sums leave out) or "lanes" (only those in the image).
    """

    def __init__(self, v: Vectors, tile: Tile, left: Value, width: Value, reads: str) -> None:
        self.v, self.step, self.reads = v, tile.column_step, reads
        self.parts = min(tile.column_step, int(tile.spec.parts))
        self.stored, self.size = str(tile.spec.source_type), STORED[str(tile.spec.source_type)][1]
        b = v.builder
        self._left, self._width = v.splat(b.trunc(left, I32)), v.splat(b.trunc(width, I32))
        self._masks: dict[tuple[int, int], Value] = {}
        for offset in tile.shifts():
            for vector in range(tile.vectors):
                self.exist(offset, vector)
                self._prepare(offset, vector)

    def exist(self, offset: int, vector: int) -> Value | None:
        """The mask of the lanes whose input column is in the image; None where all are."""
        if self.reads == "inside":
            return None
        return self._mask(offset + vector * self.v.lanes * self.step, self.step)

    def load(self, row: Value, offset: int, vector: int, seen: dict[int, Value]) -> Value:
        """The input columns that ``vector`` reads with a tap at ``offset``; ``seen`` keeps a row's loads."""
        first = offset + vector * self.v.lanes * self.step
        if self.step == 1:
            return self._consecutive(row, first, seen)
        if not self._shuffled:
            step = int64(self.step * self.size)
            return self.v.gather(self.v.at(row, first * self.size), step, self.stored, self._loaded(first, self.step))
        grid = self._grid(offset, vector)
        parts = [self._consecutive(row, grid + part * self.v.lanes, seen) for part in range(self.parts)]
        return pick(self.v, parts, [first - grid + lane * self.step for lane in range(self.v.lanes)])

    @property
    def _shuffled(self) -> bool:
        return 1 < self.step <= SHUFFLED

    def _grid(self, offset: int, vector: int) -> int:
        return offset - offset % self.step + vector * self.v.lanes * self.step

    def _consecutive(self, row: Value, offset: int, seen: dict[int, Value]) -> Value:
        if offset not in seen:
            seen[offset] = self.v.load(self.v.at(row, offset * self.size), self.stored, self._loaded(offset, 1))
        return seen[offset]

    def _prepare(self, offset: int, vector: int) -> None:
        """Make the masks that loads need, before any branch."""
        if not self._shuffled:
            self._loaded(offset + vector * self.v.lanes * self.step, self.step)
            return
        for part in range(self.parts):
            self._loaded(self._grid(offset, vector) + part * self.v.lanes, 1)

    def _loaded(self, offset: int, step: int) -> Value | None:
        return self._mask(offset, step) if self.reads == "lanes" else None

    def _mask(self, offset: int, step: int) -> Value:
        if (offset, step) not in self._masks:
            b, lanes = self.v.builder, self.v.lanes
            places = ir.Constant(ir.VectorType(I32, lanes), [offset + lane * step for lane in range(lanes)])
            self._masks[offset, step] = b.icmp_unsigned("<", b.add(self._left, places), self._width)
        return self._masks[offset, step]


def pick(v: Vectors, parts: Sequence[Value], places: Sequence[int]) -> Value:
    """Lanes of the concatenation of ``parts`` (zero for a place beyond it), by a shuffle for every part but one."""
    lanes, result = v.lanes, parts[0]
    if len(parts) == 1:
        return v.shuffle(result, v.zero(), [min(place, lanes) for place in places])
    taken = [place if place < lanes else 0 for place in places]
    for index, part in enumerate(parts[1:], 1):
        low = index * lanes
        taken = [p - low + lanes if low <= p < low + lanes else t for p, t in zip(places, taken, strict=True)]
        result = v.shuffle(result, part, taken)
        taken = list(range(lanes))
    return result


def interleave(v: Vectors, parts: Sequence[Value]) -> list[Value]:
    """The lanes of ``parts`` in turn: as many vectors, in order of memory."""
    count, lanes = len(parts), v.lanes
    if count == 1:
        return list(parts)
    turns = [divmod(place, count) for place in range(count * lanes)]
    places = [phase * lanes + lane for lane, phase in turns]
    return [pick(v, parts, places[k * lanes : (k + 1) * lanes]) for k in range(count)]


@contextmanager
def where(builder: Any, flag: Value, values: list[Value]) -> Iterator[list[Value]]:
    """Run the body where ``flag`` holds; the values that it replaces in its copy are merged into ``values``."""
    before, changed = builder.block, list(values)
    with builder.if_then(flag, likely=True):
        yield changed
        after = builder.block
    for index, value in enumerate(changed):
        if value is not values[index]:
            merged = builder.phi(value.type)
            merged.add_incoming(values[index], before)
            merged.add_incoming(value, after)
            values[index] = merged


@intrinsic
def start(typing: Any, task: Any, bias: Any) -> Any:
    """The sums of a tile, at the bias."""
    tile = Tile(task.spec)
    result, stored = tile.tuple(), str(task.spec.bias_type)

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        v = tile.vectors_of(builder)
        value = v.splat(v.load_scalar(arguments[1], stored)) if stored else v.zero()
        rest = [v.zero()] * (tile.sums * (tile.splits - 1))
        return context.make_tuple(builder, result, [value] * tile.sums + rest)

    return result(task, bias), generate


class Weights:
    """One plane's kernel: its taps in every lane."""

    def __init__(self, v: Vectors, spec: Spec, address: Value) -> None:
        self.v, self.address = v, address
        self.stored = str(spec.weight_type)
        self.pitch = int(spec.kernel_w) if spec.knows("kernel_w") else 0

    def tap(self, row: int, column: int) -> Value:
        place = (row * self.pitch + column) * STORED[self.stored][1]
        return self.v.splat(self.v.load_scalar(self.v.at(self.address, place), self.stored))


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


def opaque(builder: Any, address: Value) -> Value:
    """The same address, but LLVM does not know that: what is computed from it is not kept for another group's use.

    Else the addresses of all rows are, in memory, for there are not so many registers.
    """
    return builder.asm(ir.FunctionType(I64, [I64]), "", "=r,0", [address], False)


def _gather(reads: str) -> Any:
    @intrinsic
    def gather(typing: Any, task: Any, sums: Any, x: Any, weight: Any, top: Any, left: Any) -> Any:
        """Add one plane's taps to the sums of the tile whose origin reads row ``top``, column ``left`` of ``x``."""
        spec, tile = task.spec, Tile(task.spec)

        def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            task_, sums_, x_, weight_, top_, left_ = arguments
            v = tile.vectors_of(builder)
            height, width = (
                field_or_fixed(builder, spec, task_, "height"),
                field_or_fixed(builder, spec, task_, "width"),
            )
            columns = Columns(v, tile, left_, width, reads)
            pitch = v.index(width, columns.size)
            weights = Weights(v, spec, weight_)
            acc = [builder.extract_value(sums_, i) for i in range(tile.sums * tile.splits)]
            rows = meetings(tile.rows, tile.row_step, tile.row_phases)
            exist = Rows(builder, list(rows), top_, height)
            for shifts in tile.groups():
                taps, place, at = _taps(tile, columns, weights, shifts), opaque(builder, x_), 0
                for row, reaches in rows.items():
                    place, at = v.at(place, builder.mul(pitch, int64(row - at))), row
                    with where(builder, exist.row(row), acc) as changed:
                        _add_row(tile, columns, taps, place, shifts, reaches, changed)
            return context.make_tuple(builder, sums, acc)

        return sums(task, sums, x, weight, top, left), generate

    return gather


Taps = dict[tuple[int, int, int], Value]  # (row tap, column tap, vector) -> the weight in the lanes that it counts in


def _taps(tile: Tile, columns: Columns, weights: Weights, shifts: Shifts) -> Taps:
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


def field_or_fixed(builder: Any, spec: Spec, task: Value, name: str) -> Value:
    """A number of the task, wherever it is kept."""
    return int64(int(getattr(spec, name))) if spec.knows(name) else field(builder, spec, task, name)


gather_inside, gather_array, gather_lanes = _gather("inside"), _gather("array"), _gather("lanes")


def _finish(*, edge: bool) -> Any:
    @intrinsic
    def finish(typing: Any, task: Any, sums: Any, out: Any, other: Any, rows: Any, columns: Any) -> Any:
        """Write the tile's sums: ``rows`` rows and ``columns`` columns of its output exist."""
        spec, tile = task.spec, Tile(task.spec)

        def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            task_, sums_, out_, other_, rows_, columns_ = arguments
            v = tile.vectors_of(builder)
            store = Output(v, tile, field_or_fixed(builder, spec, task_, "tile_pitch"), columns_ if edge else None)
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

    def __init__(self, v: Vectors, tile: Tile, pitch: Value, columns: Value | None) -> None:
        self.v, self.tile, self.pitch, self.columns = v, tile, pitch, columns
        spec = tile.spec
        self.activation = str(spec.activation)
        self.stored, self.other_stored = str(spec.out_type), str(spec.other_type)
        self.step = int(spec.out_step)

    def write(self, parts: list[Value], out: Value, other: Value, row: int, vector: int) -> None:
        """The vectors of all column phases at one place of the tile."""
        v = self.v
        activated = [self._activate(z) for z in parts]
        for k, value in enumerate(interleave(v, activated)):
            column = (vector * len(parts) + k) * v.lanes
            mask = None if self.columns is None else v.between(int64(0), v.builder.sub(self.columns, int64(column)))
            if self.other_stored:
                factor = self._at(other, row, column, self.other_stored)
                value = v.builder.fmul(self._read(factor, mask), value, flags=("contract", "nsz"))
            self._store(value, self._at(out, row, column, self.stored), mask)

    def _activate(self, z: Value) -> Value:
        if self.other_stored:
            return activate.derivative(self.v, self.activation, z)
        return activate.activate(self.v, self.activation, z)

    def _at(self, origin: Value, row: int, column: int, stored: str) -> Value:
        size = STORED[stored][1]
        rows = self.v.builder.mul(self.pitch, int64(row * size))
        return self.v.at(origin, rows, column * self.step * size)

    def _read(self, address: Value, mask: Value | None) -> Value:
        if self.step == 1:
            return self.v.load(address, self.other_stored, mask)
        return self.v.gather(address, int64(self.step * STORED[self.other_stored][1]), self.other_stored, mask)

    def _store(self, value: Value, address: Value, mask: Value | None) -> None:
        if self.step == 1:
            self.v.store(value, address, self.stored, mask)
        else:
            self.v.scatter(value, address, int64(self.step * STORED[self.stored][1]), self.stored, mask)


finish_inner, finish_edge = _finish(edge=False), _finish(edge=True)

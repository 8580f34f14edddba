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

from npdwconv.kernels.cpu.simd import I32, STORED, Value, Vectors, int64
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
        self.twins = spec.knows("mates") and spec.mates == 2

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

    def __init__(
        self, v: Vectors, tile: Tile, left: Value, width: Value, reads: str, twin: Value | None = None
    ) -> None:
        """``twin`` is the distance to the plane that the second half of the lanes reads."""
        self.v, self.step, self.reads, self.twin = v, tile.column_step, reads, twin
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
        mask = self._mask(offset + vector * self.v.lanes * self.step, self.step)
        return mask if self.twin is None else twice(self.v, mask)

    def load(self, row: Value, offset: int, vector: int, seen: dict[int, Value]) -> Value:
        """The input columns that ``vector`` reads with a tap at ``offset``; ``seen`` keeps a row's loads."""
        first = offset + vector * self.v.lanes * self.step
        if self.step == 1:
            return self._consecutive(row, first, seen) if self.twin is None else self._halves(row, first)
        if not self._shuffled:
            step = int64(self.step * self.size)
            return self.v.gather(self.v.at(row, first * self.size), step, self.stored, self._loaded(first, self.step))
        grid = self._grid(offset, vector)
        parts = [self._consecutive(row, grid + part * self.v.lanes, seen) for part in range(self.parts)]
        places = [first - grid + lane * self.step for lane in range(self.v.lanes)]
        if self.twin is None:
            return pick(self.v, parts, places)
        if grid + self.v.lanes not in seen:  # no part is there: one vector holds all columns
            row = self.v.at(row, grid * self.size, self.twin)
            seen[grid + self.v.lanes] = self.v.load(row, self.stored, self._loaded(grid, 1))
        half = self.v.lanes // 2
        return self.v.shuffle(
            parts[0], seen[grid + self.v.lanes], places[:half] + [self.v.lanes + place for place in places[:half]]
        )

    @property
    def _shuffled(self) -> bool:
        return 1 < self.step <= SHUFFLED

    def _grid(self, offset: int, vector: int) -> int:
        return offset - offset % self.step + vector * self.v.lanes * self.step

    def _consecutive(self, row: Value, offset: int, seen: dict[int, Value]) -> Value:
        if offset not in seen:
            seen[offset] = self.v.load(self.v.at(row, offset * self.size), self.stored, self._loaded(offset, 1))
        return seen[offset]

    def _halves(self, row: Value, offset: int) -> Value:
        """Consecutive columns of either plane."""
        v, mask = self.v, self._loaded(offset, 1)
        return twin_load(v, v.at(row, offset * self.size), self.twin, self.stored, mask)

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


def halves(v: Vectors) -> tuple[Vectors, list[int], list[int]]:
    """Half a vector, and where the lanes of either half are."""
    half = v.lanes // 2
    return Vectors(v.builder, v.dtype, half), list(range(half)), list(range(half, v.lanes))


def twice(v: Vectors, value: Value) -> Value:
    """The first half of the lanes (of a mask, say), in both halves."""
    _, first, _ = halves(v)
    return v.shuffle(value, value, first + first)


def twin_load(v: Vectors, address: Value, twin: Value, stored: str, mask: Value | None) -> Value:
    """Half a vector there and half a vector ``twin`` bytes on, both under the first half of ``mask``."""
    narrow, first, second = halves(v)
    some = None if mask is None else v.shuffle(mask, mask, first)
    low, high = (narrow.load(at, stored, some) for at in (address, v.at(address, twin)))
    return v.shuffle(low, high, first + second)


def twin_splat(v: Vectors, address: Value, twin: Value | None, stored: str) -> Value:
    """The scalar there in every lane; in the second half of them the one ``twin`` bytes on, if there is one."""
    value = v.splat(v.load_scalar(address, stored))
    if twin is None:
        return value
    _, first, second = halves(v)
    low = ir.Constant(v.mask, [1] * len(first) + [0] * len(second))
    return v.builder.select(low, value, v.splat(v.load_scalar(v.at(address, twin), stored)))


class Weights:
    """One plane's kernel: its taps in every lane; or two planes', ``twin`` bytes apart, in a half each."""

    def __init__(self, v: Vectors, spec: Spec, address: Value, twin: Value | None = None) -> None:
        self.v, self.address, self.twin = v, address, twin
        self.stored = str(spec.weight_type)
        self.pitch = int(spec.kernel_w) if spec.knows("kernel_w") else 0

    def tap(self, row: int, column: int) -> Value:
        place = (row * self.pitch + column) * STORED[self.stored][1]
        return twin_splat(self.v, self.v.at(self.address, place), self.twin, self.stored)


def field_or_fixed(builder: Any, spec: Spec, task: Value, name: str) -> Value:
    """A number of the task, wherever it is kept."""
    return int64(int(getattr(spec, name))) if spec.knows(name) else field(builder, spec, task, name)

"""Tiles that roll down an image in channels_last: pixels side by side, all rows of a block, every input pixel met once.

Lanes are channels. An input row adds to the few rows of results that read it, whose sums stay in registers; with its
last row a result is finished and written. Which columns lie beside the image is compiled in: a tile is the leftmost
one, the rightmost one, between these, or all there is, and leaves out what it does not have.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

from llvmlite import ir
from numba.core import types
from numba.extending import intrinsic

from npdwconv.kernels.cpu.arrays import LINE
from npdwconv.kernels.cpu.assembly import opaque
from npdwconv.kernels.cpu.columns import Phases, read, where
from npdwconv.kernels.cpu.fetching import prefetch
from npdwconv.kernels.cpu.pixels import existing, load_x, vectors, write
from npdwconv.kernels.cpu.simd import I64, STORED, Value, Vectors, int64
from npdwconv.kernels.cpu.spec import Spec, field
from npdwconv.kernels.cpu.vectors import VectorType

UniTuple: Any = types.UniTuple  # untyped in numba


class Sum(NamedTuple):
    """A sum in registers: of a result's row phase and column phase, ``age`` steps after it began."""

    row: int
    age: int
    pixel: int
    column: int


class Tile:
    """The shape of a spec's tile: places side by side, at each a result of every phase.

    A step takes ``row_step`` input rows, with the first of which the results of one more place begin.
    """

    def __init__(self, spec: Spec) -> None:
        self.spec, self.dtype = spec, STORED[spec.x_type][2]
        self.rows, self.columns = read(spec.row_taps), read(spec.column_taps)
        self.row_step, self.column_step, self.pixels = int(spec.row_step), int(spec.column_step), int(spec.pixels)

    def sums(self, row: int, age: int) -> list[Sum]:
        """Those of a row of results."""
        return [Sum(row, age, p, c) for p in range(self.pixels) for c in range(len(self.columns))]

    def last(self, row: int) -> int:
        """The age at which results of a row phase are finished."""
        return _reach(self.rows[row]) // self.row_step

    def carried(self) -> list[Sum]:
        """The sums that go on from one step to the next, by their age in the next."""
        rows = range(len(self.rows))
        return [s for row in rows for age in range(1, self.last(row) + 1) for s in self.sums(row, age)]

    def meetings(self, i: int) -> list[tuple[int, int, int]]:
        """(row phase, age, row tap) of the results that read the ``i``-th input row of a step."""
        return [
            (row, (offset - i) // self.row_step, tap)
            for row, pairs in enumerate(self.rows)
            for offset, tap in pairs
            if offset >= i and (offset - i) % self.row_step == 0
        ]

    def readers(self) -> dict[int, list[tuple[int, int, int]]]:
        """Input column -> the (pixel, column phase, column tap) that read it."""
        found: dict[int, list[tuple[int, int, int]]] = {}
        for pixel in range(self.pixels):
            for column, pairs in enumerate(self.columns):
                for offset, tap in pairs:
                    found.setdefault(pixel * self.column_step + offset, []).append((pixel, column, tap))
        return dict(sorted(found.items()))

    def taps(self) -> list[tuple[int, int]]:
        """The taps that stay in registers."""
        rows, columns = ({tap for pairs in phases for _, tap in pairs} for phases in (self.rows, self.columns))
        return [(r, s) for r in sorted(rows) for s in sorted(columns)]

    def tuple_of(self, count: int) -> Any:
        return UniTuple(VectorType(self.dtype, vectors(None, self.spec).lanes), count)


def _reach(pairs: list[tuple[int, int]]) -> int:
    return max((offset for offset, _ in pairs), default=0)


def steps_late(rows: Phases, row_step: int) -> int:
    """Steps after a place's first in which its results are finished."""
    return max(map(_reach, rows)) // row_step


def live(rows: Phases, columns: Phases, row_step: int) -> int:
    """How many sums a place has at most in registers."""
    return len(columns) * sum(_reach(pairs) // row_step + 1 for pairs in rows)


@intrinsic
def hold(typing: Any, task: Any, weight: Any) -> Any:
    """The taps of a vector of channels."""
    spec, tile = task.spec, Tile(task.spec)
    kind = tile.tuple_of(len(tile.taps()))

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        task_, weight_ = arguments
        v, step = vectors(builder, spec), field(builder, spec, task_, "weight_tap")
        places = [r * int(spec.kernel_w) + s for r, s in tile.taps()]
        return context.make_tuple(builder, kind, [v.load(v.at(weight_, builder.mul(step, int64(p)))) for p in places])

    return kind(task, weight), generate


@intrinsic
def begin(typing: Any, task: Any) -> Any:
    """Sums of nothing."""
    tile = Tile(task.spec)
    kind = tile.tuple_of(max(len(tile.carried()), 1))

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return context.make_tuple(builder, kind, [vectors(builder, task.spec).zero()] * kind.count)

    return kind(task), generate


def stepping(*, leftmost: bool, rightmost: bool) -> Any:
    @intrinsic
    def step(
        typing: Any,
        task: Any,
        sums: Any,
        held: Any,
        bias: Any,
        x: Any,
        out: Any,
        down: Any,
        place: Any,
        results: Any,
        top: Any,
        channel: Any,
    ) -> Any:
        """Take ``spec.turns`` steps: a step's input rows, from row ``top`` at ``x`` on; write the results that end.

        ``place`` is the one that begins here, of a block that has ``results`` rows of results, ``down`` values apart;
        ``out`` is where its first result is.
        """
        spec, tile = task.spec, Tile(task.spec)
        columns = {
            column: readers
            for column, readers in tile.readers().items()
            if not (leftmost and column < spec.missing) and not (rightmost and column >= spec.existing)
        }

        def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            task_, sums_, held_, bias_, x_, out_, down_, place_, results_, top_, channel_ = arguments
            v = vectors(builder, spec)
            left_ = builder.sub(field(builder, spec, task_, "channels"), channel_)
            mask, height = existing(v, spec, left_), field(builder, spec, task_, "height")
            row_size, pixel_size = (
                v.index(field(builder, spec, task_, f"x_{name}"), STORED[spec.x_type][1]) for name in ("row", "pixel")
            )
            out_size = v.index(down_, STORED[spec.out_type][1])
            taps = {tap: builder.extract_value(held_, i) for i, tap in enumerate(tile.taps())}
            going = [builder.extract_value(sums_, i) for i in range(len(tile.carried()))]

            def add(row: Value, met: list[tuple[int, int, int]], acc: dict[Sum, Value]) -> None:
                """Add an input row to the sums that it meets."""
                at, last = row, 0
                if spec.streams:
                    _fetch_next(v, tile, row, pixel_size, channel_)
                for column, readers in columns.items() if met else ():
                    at, last = opaque(builder, v.at(at, builder.mul(pixel_size, int64(column - last)))), column
                    value = load_x(v, spec, at, channel_, left_, mask)
                    for kind, age, tap_row in met:
                        for pixel, phase, tap in readers:
                            sum_ = Sum(kind, age, pixel, phase)
                            acc[sum_] = v.fma(value, taps[tap_row, tap], acc[sum_])

            for _ in range(spec.turns):
                acc = dict(zip(tile.carried(), going, strict=True))
                first = v.load(bias_, spec.bias_type, mask) if spec.bias_type else v.zero()
                acc |= {each: first for row in range(len(tile.rows)) for each in tile.sums(row, 0)}
                for i in range(tile.row_step):
                    total = [*acc.values()]
                    with where(builder, builder.icmp_unsigned("<", top_, height), total) as changed:
                        added = dict(zip(acc, changed, strict=True))
                        add(x_, tile.meetings(i), added)
                        changed[:] = added.values()
                    acc = dict(zip(acc, total, strict=True))
                    top_, x_ = builder.add(top_, int64(1)), v.at(x_, row_size)
                for row in range(len(tile.rows)):
                    _write(v, tile, task_, row, acc, (out_, down_), (place_, results_), mask, rightmost=rightmost)
                going = [acc[each._replace(age=each.age - 1)] for each in tile.carried()]
                place_, out_ = builder.add(place_, int64(1)), v.at(out_, builder.mul(out_size, int64(len(tile.rows))))
            return context.make_tuple(builder, sums, going or [v.zero()])

        return sums(task, sums, held, bias, x, out, down, place, results, top, channel), generate

    return step


def _fetch_next(v: Vectors, tile: Tile, row: Value, pixel_size: Value, channel: Value) -> None:
    """Bring what the tile to the right reads of an input row, and this one does not: a share for each vector of
    channels, in the order of memory."""
    size, pixels = STORED[tile.spec.x_type][1], tile.pixels * tile.column_step
    next_ = max(tile.readers()) + 1 + (int(tile.spec.ahead) - 1) * pixels
    share = v.builder.mul(channel, int64((pixels - 1) * size))  # the row begins at the channel
    first = v.at(row, v.builder.mul(pixel_size, int64(next_)), share)
    for place in range(0, pixels * v.lanes * size, LINE):
        prefetch(v.builder, v.at(first, place))


def _write(
    v: Vectors,
    tile: Tile,
    task: Value,
    row: int,
    acc: dict[Sum, Value],
    where_to: tuple[Value, Value],
    bounds: tuple[Value, Value],
    mask: Value | None,
    *,
    rightmost: bool,
) -> None:
    """Write the row of results of a phase that a step finishes, where there is one."""
    b, spec, age, phases = v.builder, tile.spec, tile.last(row), len(tile.columns)
    behind = row - age * len(tile.rows)  # rows of results from the place's first to this one
    (out, down), (place, results) = where_to, bounds
    across = field(b, spec, task, "out_pixel")
    other = _beside(b, spec, task, out) if spec.other_type else None
    number = b.add(b.mul(place, int64(len(tile.rows))), int64(behind))
    with b.if_then(b.icmp_unsigned("<", number, results), likely=True):
        at = b.mul(down, int64(behind))
        missing = phases - int(spec.last) if rightmost else 0  # of the last place's results
        written = tile.sums(row, age)[: tile.pixels * phases - missing]
        for way in _ways(b, spec, task):
            place_ = at
            for each in written:
                write(v, spec, acc[each], out, other, place_, mask, streams=way)
                place_ = opaque(b, b.add(place_, across))


def _ways(b: Any, spec: Spec, task: Value) -> Iterator[bool]:
    """Whether what is written goes past the caches: it does where vectors are whole lines of `out`."""
    if not (spec.streams and spec.lined):
        yield False
        return
    size = STORED[spec.out_type][1] * int(spec.lanes)
    begins = b.and_(field(b, spec, task, "out"), int64(size - 1))
    with b.if_else(b.icmp_unsigned("==", begins, int64(0)), likely=True) as (lines, others):
        with lines:
            yield True
        with others:
            yield False


def _beside(b: Any, spec: Spec, task: Value, out: Value) -> Value:
    """The address in `other` of what belongs to the result at ``out``."""
    first, other = (field(b, spec, task, name) for name in ("out", "other"))
    (_, size, _), (_, other_size, _) = STORED[spec.out_type], STORED[spec.other_type]
    distance = b.sub(out, first)
    if size != other_size:
        distance = b.mul(b.sdiv(distance, int64(size)), int64(other_size))
    return b.add(other, distance)


@intrinsic
def stage(typing: Any, task: Any) -> Any:
    """Room on the stack for results that are on their way past the caches."""
    size = int(task.spec.stage)

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        with builder.goto_entry_block():  # Numba's own helper would fill it with zeros
            place = builder.alloca(ir.ArrayType(ir.IntType(8), size))
            place.align = LINE
        return builder.ptrtoint(place, I64)

    return types.int64(task), generate


@intrinsic
def pass_on(typing: Any, task: Any, source: Any, target: Any, count: Any) -> Any:
    """Write ``count`` values, at most a vector, past the caches if they are a vector that is a whole line's."""
    spec = task.spec

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        _, source_, target_, count_ = arguments
        v = vectors(builder, spec)
        whole = builder.icmp_signed("==", count_, int64(v.lanes))
        with builder.if_else(whole, likely=True) as (all_, some):
            with all_:
                v.stream(v.load(source_), target_)
            with some:
                mask = v.between(int64(0), count_)
                v.store(v.load(source_, mask=mask), target_, mask=mask)
        return context.get_dummy_value()

    return types.none(task, source, target, count), generate

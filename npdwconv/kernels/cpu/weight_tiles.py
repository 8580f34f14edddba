"""Register tiles of the weight gradient with one channel a lane.

A tile is a few neighbouring pixels of z and the block of taps that meets them: one accumulator a tap stays in a
register while the tile moves along a row. A column of x is loaded once for every tap and pixel that meet at it, and a
column outside the input is jumped over: it reads nothing, and costs nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from numba.core import types
from numba.extending import intrinsic

from npdwconv.kernels.cpu.fetching import prefetch
from npdwconv.kernels.cpu.pixels import meetings
from npdwconv.kernels.cpu.simd import STORED, Value, Vectors, int64
from npdwconv.kernels.cpu.spec import Spec, field
from npdwconv.kernels.cpu.vectors import VectorType
from npdwconv.kernels.cpu.weight_blocks import lanes_used

UniTuple: Any = types.UniTuple  # untyped in numba
Pairs = list[tuple[int, int]]


class Shape:
    """What a tile is made of: rows × columns of taps, and how many sums each has, to be in flight at once."""

    def __init__(self, spec: Spec) -> None:
        self.rows: int = spec.rows
        self.columns: int = spec.columns
        self.sets: int = spec.sets
        self.taps = self.rows * self.columns
        self.sums = self.taps * self.sets
        self.dtype: str = spec.dtype
        self.vector = VectorType(self.dtype, Vectors(None, self.dtype).lanes)

    def place(self, row: int, column: int, pixel: int) -> int:
        """Which sum a product of this tap and pixel is added to."""
        at: int = (pixel % self.sets) * self.taps + row * self.columns + column
        return at


def when(builder: Any, flag: Value, values: list[Value], body: Callable[[list[Value]], list[Value]]) -> list[Value]:
    """``body(values)`` where ``flag``, else ``values``: a branch."""
    before = builder.block
    with builder.if_then(flag):
        changed = body(list(values))
        after = builder.block
    return [
        value if value is new else _joined(builder, value, before, new, after)
        for value, new in zip(values, changed, strict=True)
    ]


def least(builder: Any, a: Value, b: Value) -> Value:
    return builder.select(builder.icmp_signed("<", a, b), a, b)


def _joined(builder: Any, old: Value, before: Any, new: Value, after: Any) -> Value:
    joined = builder.phi(old.type)
    joined.add_incoming(old, before)
    joined.add_incoming(new, after)
    return joined


@intrinsic
def load_sums(typing: Any, task: Any, place: Any) -> Any:
    """The sums of a block of taps, from a workspace of [rows][columns][lanes]."""
    shape = Shape(task.spec)
    result = UniTuple(shape.vector, shape.sums)

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        v = Vectors(builder, shape.dtype)
        pitch = field(builder, task.spec, arguments[0], "row_sums")
        sums = [v.load(_tap(v, shape, arguments[1], pitch, tap)) for tap in range(shape.taps)]
        return context.make_tuple(builder, result, sums + [v.zero()] * (shape.sums - shape.taps))

    return result(task, place), generate


@intrinsic
def store_sums(typing: Any, task: Any, sums: Any, place: Any) -> Any:
    """Write what `load_sums` read, the sums of a tap added in order."""
    shape = Shape(task.spec)

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        v = Vectors(builder, shape.dtype)
        pitch = field(builder, task.spec, arguments[0], "row_sums")
        values = [builder.extract_value(arguments[1], i) for i in range(shape.sums)]
        for tap in range(shape.taps):
            total = values[tap]
            for other in values[tap + shape.taps :: shape.taps]:
                total = builder.fadd(total, other)
            v.store(total, _tap(v, shape, arguments[2], pitch, tap))
        return context.get_dummy_value()

    return types.none(task, sums, place), generate


def _tap(v: Vectors, shape: Shape, place: Value, pitch: Value, tap: int) -> Value:
    row, column = divmod(tap, shape.columns)
    size = v.lanes * v.bytes
    return v.at(place, v.builder.mul(pitch, int64(row * size)), int64(column * size))


def _columns(builder: Any, spec: Spec, task: Value, pixels: int) -> list[tuple[Value, Pairs]]:
    """Columns of x after the first pixel's first tap, each with the (pixel, tap) pairs that meet there, in order."""
    if spec.knows("stride_w"):
        found = meetings(pixels, spec.columns, spec.stride_w, spec.dilation_w)
        return [(int64(column), pairs) for column, pairs in found.items()]
    stride, dilation = (field(builder, spec, task, name) for name in ("stride_w", "dilation_w"))
    return [
        (builder.add(builder.mul(stride, int64(pixel)), builder.mul(dilation, int64(tap))), [(pixel, tap)])
        for tap in range(spec.columns)
        for pixel in range(pixels)
    ]


def _lines(spec: Spec, lines: int) -> list[tuple[int, Pairs]]:
    """Rows of x after the first line's first tap, each with the (line, tap) pairs that meet there."""
    if lines == 1:
        return [(row, [(0, row)]) for row in range(spec.rows)]
    return list(meetings(lines, spec.rows, spec.stride_h, 1).items())


def operand(builder: Any, spec: Spec, task: Value, address: Value, stored: str, each: int, left: Value) -> Value:
    """One value a lane, where the array has one for every ``each`` of the ``left`` channels from ``address`` on."""
    v, b = Vectors(builder, spec.dtype), builder
    if each == 1:
        return v.load(address, stored, _counted(v, spec, left))
    if each <= v.lanes:
        few = int64(v.lanes // each)
        if spec.tail:
            few = least(b, few, b.sdiv(left, int64(each)))
        value = v.load(address, stored, v.between(int64(0), few))
        return v.shuffle(value, value, [min(lane // each, v.lanes - 1) for lane in range(v.lanes)])
    first = b.srem(b.sub(field(b, spec, task, "channels"), left), int64(each))
    mine = least(b, b.sub(int64(each), first), left)
    beyond = least(b, mine, int64(v.lanes))
    further = b.icmp_signed("<", beyond, least(b, left, int64(v.lanes)))
    other = v.at(address, b.select(further, int64(STORED[stored][1]), int64(0)))
    pair = (v.splat(v.load_scalar(place, stored)) for place in (address, other))
    return b.select(v.between(int64(0), beyond), *pair)


def _counted(v: Vectors, spec: Spec, left: Value) -> Value | None:
    """The lanes whose channels exist and count: as many as whole shares fill; None where all do."""
    used = lanes_used(v.lanes, max(int(spec.z_each), int(spec.x_each)))
    if spec.tail:
        return v.between(int64(0), least(v.builder, left, int64(used)))
    return v.between(int64(0), int64(used)) if used < v.lanes else None


class _Tile:
    """The code of one tile: ``lines`` × ``pixels`` of z against a block of taps."""

    def __init__(self, builder: Any, spec: Spec, task: Value, z: Value, x: Value, column: Value, left: Value) -> None:
        self.builder, self.spec, self.task = builder, spec, task
        self.shape = Shape(spec)
        self.v = Vectors(builder, self.shape.dtype)
        self.z, self.x, self.column = z, x, column
        self.left = left

    def number(self, name: str) -> Value:
        return field(self.builder, self.spec, self.task, name)

    def gradient(self, line: int, pixel: int) -> Value:
        """z of one pixel, loaded where it is first met."""
        b = self.builder
        pitch, step = self.number("z_line"), self.number("z_pixel")
        place = self.v.at(self.z, b.mul(pitch, int64(line)), b.mul(step, int64(pixel)))
        return self.operand(place, self.spec.z_type, self.spec.z_each)

    def operand(self, address: Value, stored: str, each: int) -> Value:
        """One value a lane."""
        if self.spec.laid:
            return self.v.load(address)
        return operand(self.builder, self.spec, self.task, address, stored, each, self.left)

    def sweep(self, acc: list[Value], lines: int, pixels: int, rows: list[tuple[int, Pairs]]) -> list[Value]:
        """Add what these rows of x give, a column at a time."""
        b = self.builder
        width, step = self.number("width"), self.number("x_pixel")
        gradients: dict[tuple[int, int], Value] = {}
        for offset, pairs in _columns(b, self.spec, self.task, pixels):
            for pixel, _ in pairs:
                for line in range(lines):
                    if (line, pixel) not in gradients:
                        gradients[line, pixel] = self.gradient(line, pixel)
            place = b.mul(offset, step)
            exists = b.icmp_unsigned("<", b.add(self.column, offset), width)
            met = partial(self.meet, gradients=gradients, place=place, pairs=pairs, rows=rows)
            acc = when(b, exists, acc, met)
        return acc

    def meet(
        self,
        acc: list[Value],
        gradients: dict[tuple[int, int], Value],
        place: Value,
        pairs: Pairs,
        rows: list[tuple[int, Pairs]],
    ) -> list[Value]:
        """Add what one column of these rows of x gives."""
        b = self.builder
        pitch = self.number("x_tap_row")
        for row, lines in rows:
            at = self.v.at(self.x, b.mul(pitch, int64(row)), place)
            value = self.operand(at, self.spec.x_type, self.spec.x_each)
            for line, tap_row in lines:
                for pixel, tap in pairs:
                    to = self.shape.place(tap_row, tap, pixel)
                    acc[to] = self.v.fma(value, gradients[line, pixel], acc[to])
        return acc


def _tile(*, lines: bool, many: bool, clipped: bool) -> Any:
    """A tile of ``spec.lines`` rows, or of one; ``spec.pixels`` pixels, or one; with all its taps, or some rows."""

    @intrinsic
    def tile(typing: Any, task: Any, sums: Any, z: Any, x: Any, column: Any, low: Any, high: Any, left: Any) -> Any:
        """Add to the sums what the pixels at ``z`` give; the first meets its first tap at ``x``, in ``column``."""
        spec, shape = task.spec, Shape(task.spec)
        height, pixels = spec.lines if lines else 1, spec.pixels if many else 1

        def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            task_, sums_, z_, x_, column_, low_, high_, left_ = arguments
            if (lines and spec.lines == 1) or (clipped and spec.rows == 1):  # such a tile is never wanted
                return sums_
            code = _Tile(builder, spec, task_, z_, x_, column_, left_)
            acc = [builder.extract_value(sums_, i) for i in range(shape.sums)]
            rows = _lines(spec, height)
            if not clipped:
                acc = code.sweep(acc, height, pixels, rows)
            else:
                for row in rows:
                    above, below = (
                        builder.icmp_signed(sign, int64(row[0]), end) for sign, end in ((">=", low_), ("<", high_))
                    )
                    present = builder.and_(above, below)
                    acc = when(builder, present, acc, partial(code.sweep, lines=1, pixels=pixels, rows=[row]))
            return context.make_tuple(builder, sums, acc)

        return sums(task, sums, z, x, column, low, high, left), generate

    return tile


tile_lines, pixel_lines = (_tile(lines=True, many=many, clipped=False) for many in (True, False))
tile_full, pixel_full = (_tile(lines=False, many=many, clipped=False) for many in (True, False))
tile_clipped, pixel_clipped = (_tile(lines=False, many=many, clipped=True) for many in (True, False))


@intrinsic
def clear(typing: Any, task: Any, place: Any) -> Any:
    """Zero the vector there."""
    dtype = task.spec.dtype

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        v = Vectors(builder, dtype)
        v.store(v.zero(), arguments[1])
        return context.get_dummy_value()

    return types.none(task, place), generate


@intrinsic
def move(typing: Any, task: Any, place: Any, source: Any) -> Any:
    """Write the vector at ``source`` to ``place``."""
    dtype = task.spec.dtype

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        v = Vectors(builder, dtype)
        v.store(v.load(arguments[2]), arguments[1])
        return context.get_dummy_value()

    return types.none(task, place, source), generate


@intrinsic
def add(typing: Any, task: Any, place: Any, other: Any) -> Any:
    """Add the vector at ``other`` to that at ``place``."""
    dtype = task.spec.dtype

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        v = Vectors(builder, dtype)
        v.store(builder.fadd(v.load(arguments[1]), v.load(arguments[2])), arguments[1])
        return context.get_dummy_value()

    return types.none(task, place, other), generate


@intrinsic
def fetch(typing: Any, task: Any, place: Any) -> Any:
    """Ask for the line at ``place``, which need not exist."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        prefetch(builder, arguments[1])
        return context.get_dummy_value()

    return types.none(task, place), generate

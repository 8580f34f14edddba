"""Register tiles of depthwise convolution in channels_last: lanes are channels, a tile is a few pixels of one row.

The sums of a tile's pixels stay in registers while rows of taps are added to them. Every input vector is loaded once
and used by every pixel and tap that meet at it (`meetings`).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import nullcontext
from typing import Any

from llvmlite import ir
from numba.core import types
from numba.extending import intrinsic

from npdwconv.kernels.cpu import activate
from npdwconv.kernels.cpu.assembly import opaque
from npdwconv.kernels.cpu.columns import where
from npdwconv.kernels.cpu.machine import machine
from npdwconv.kernels.cpu.shuffles import square
from npdwconv.kernels.cpu.simd import I64, STORED, Value, Vectors, int64
from npdwconv.kernels.cpu.spec import Spec, field
from npdwconv.kernels.cpu.vectors import VectorType

Pairs = list[tuple[int, int]]
SPARE = 2  # registers beside a tile's sums and taps


def meetings(outputs: int, taps: int, stride: int, dilation: int) -> dict[int, Pairs]:
    """Input offset -> the (output, tap) pairs that read it: those with output·stride + tap·dilation = offset."""
    found: dict[int, Pairs] = {}
    for output in range(outputs):
        for tap in range(taps):
            found.setdefault(output * stride + tap * dilation, []).append((output, tap))
    return dict(sorted(found.items()))


def _columns(builder: Any, spec: Spec, task: Value) -> Iterator[tuple[Value, Value, Pairs]]:
    """The tile's input columns, how far each is from the one before, and who reads it.

    One tap at a time where stride and dilation are not compiled in. Where the image's width is, its rows are one tile
    each, and columns outside the image are left out.
    """
    if spec.knows("stride_w"):
        last = 0
        for column, pairs in meetings(spec.pixels, spec.taps_w, spec.stride_w, spec.dilation_w).items():
            if spec.knows("width") and not 0 <= column - spec.low_w < spec.width:
                continue
            yield int64(column), int64(column - last), pairs
            last = column
        return
    stride = field(builder, spec, task, "stride_w")
    for output in range(spec.pixels):
        yield builder.mul(stride, int64(output)), stride if output else int64(0), [(output, 0)]


def vectors(builder: Any, spec: Spec) -> Vectors:
    """The vocabulary in the dtype in which this spec's operands are summed."""
    return Vectors(builder, STORED[spec.x_type][2])


def existing(v: Vectors, spec: Spec, left: Value) -> Value | None:
    """The mask of the channels that exist; None where every vector is full."""
    return v.between(int64(0), left) if spec.tail else None


def load_x(v: Vectors, spec: Spec, address: Value, channel: Value, left: Value, mask: Value | None) -> Value:
    """The input that the output channels ``channel``, ``channel + 1``, … read.

    Output channel k reads input channel k // repeat, or, in the adjoint, every fold-th from k·fold on.
    """
    b, size, repeat = v.builder, STORED[spec.x_type][1], spec.repeat
    if spec.fold > 1:
        return v.gather(address, int64(spec.fold * size), spec.x_type, mask)
    if repeat == 1:
        return v.load(address, spec.x_type, mask)
    if v.lanes % repeat == 0:
        few = v.between(int64(0), b.sdiv(left, int64(repeat))) if spec.tail else None
        some = ir.Constant(v.mask, [i < v.lanes // repeat for i in range(v.lanes)])
        value = v.load(address, spec.x_type, some if few is None else b.and_(few, some))
        return v.shuffle(value, value, [i // repeat for i in range(v.lanes)])
    if repeat % v.lanes == 0:
        return v.splat(v.load_scalar(address, spec.x_type))
    place = b.add(v.splat(b.srem(channel, int64(repeat))), v.iota(I64))
    offsets = b.mul(b.udiv(place, v.splat(int64(repeat))), v.splat(int64(size)))
    return v.collect(address, offsets, spec.x_type, mask)


@intrinsic
def start(typing: Any, task: Any, bias: Any, left: Any) -> Any:
    """The sums of a tile's pixels at the bias."""
    spec = task.spec
    count = spec.pixels
    result = types.UniTuple(VectorType(STORED[spec.x_type][2], vectors(None, spec).lanes), count)

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        v = vectors(builder, spec)
        mask = existing(v, spec, arguments[2])
        value = v.load(arguments[1], spec.bias_type, mask) if spec.bias_type else v.zero()
        return context.make_tuple(builder, result, [value] * count)

    return result(task, bias, left), generate


class _Taps:
    """The taps of a row. If registers cannot hold all, each is loaded as the first column that needs it comes."""

    def __init__(self, v: Vectors, spec: Spec, task: Value, weight: Value) -> None:
        self._v, self._step, self._place = v, field(v.builder, spec, task, "weight_tap"), weight
        self._held: list[Value] = []
        if spec.pixels + spec.taps_w + SPARE <= machine().registers:
            self.bring(spec.taps_w - 1)

    def bring(self, tap: int) -> None:
        """Load all taps up to this one."""
        b = self._v.builder
        while len(self._held) <= tap:
            if self._held:
                self._place = opaque(b, b.add(self._place, self._step))
            self._held.append(self._v.load(self._place))

    def __getitem__(self, tap: int) -> Value:
        return self._held[tap]


def _row(*, edge: bool) -> Any:
    @intrinsic
    def row(typing: Any, task: Any, sums: Any, x: Any, weight: Any, channel: Any, left: Any, low: Any) -> Any:
        """Add an input row times a row of taps.

        The tile's column ``low`` is the image's first; at an edge, columns outside the image are not read.
        """
        spec = task.spec

        def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            task_, sums_, x_, weight_, channel_, left_, low_ = arguments
            v = vectors(builder, spec)
            mask, width = existing(v, spec, left_), field(builder, spec, task_, "width") if edge else None
            pixel = v.index(field(builder, spec, task_, "x_pixel"), STORED[spec.x_type][1])
            taps = _Taps(v, spec, task_, weight_)
            total = [builder.extract_value(sums_, i) for i in range(spec.pixels)]
            place_x = x_
            for column, step, pairs in _columns(builder, spec, task_):
                inside = builder.icmp_unsigned("<", builder.sub(column, low_), width) if edge else None
                place_x = opaque(builder, builder.add(place_x, builder.mul(pixel, step)))
                taps.bring(max(s for _, s in pairs))
                with where(builder, inside, total) if edge else nullcontext(total) as changed:
                    value = load_x(v, spec, place_x, channel_, left_, mask)
                    for output, s in pairs:
                        changed[output] = v.fma(value, taps[s], changed[output])
            return context.make_tuple(builder, sums, total)

        return sums(task, sums, x, weight, channel, left, low), generate

    return row


row_inside, row_at_edge = _row(edge=False), _row(edge=True)


def write(
    v: Vectors,
    spec: Spec,
    z: Value,
    out: Value,
    other: Value | None,
    place: Value,
    mask: Value | None,
    *,
    streams: bool = False,
) -> None:
    """Write ``z`` activated, or ``other`` times the activation's derivative there, ``place`` values after ``out``."""
    if spec.other_type:
        factor = v.load(v.at(other, v.index(place, STORED[spec.other_type][1])), spec.other_type, mask)
        value = v.builder.fmul(factor, activate.derivative(v, spec.activation, z))
    else:
        value = activate.activate(v, spec.activation, z)
    address = v.at(out, v.index(place, STORED[spec.out_type][1]))
    if streams:
        v.stream(value, address)
    else:
        v.store(value, address, spec.out_type, mask)


@intrinsic
def finish(typing: Any, task: Any, sums: Any, out: Any, other: Any, left: Any, count: Any) -> Any:
    """Write ``count`` pixels: sums activated, or ``other`` times the activation's derivative there."""
    spec = task.spec

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        task_, sums_, out_, other_, left_, count_ = arguments
        v, place = vectors(builder, spec), int64(0)
        mask, step = existing(v, spec, left_), field(builder, spec, task_, "out_pixel")
        for pixel in range(spec.pixels):
            with builder.if_then(builder.icmp_signed("<", int64(pixel), count_), likely=True):
                write(v, spec, builder.extract_value(sums_, pixel), out_, other_, place, mask)
            place = opaque(builder, builder.add(place, step))
        return context.get_dummy_value()

    return types.none(task, sums, out, other, left, count), generate


@intrinsic
def turn_taps(typing: Any, task: Any, raw: Any, packed: Any, left: Any, taps: Any) -> Any:
    """Write the first of ``taps`` taps, as many as a vector has lanes, of a vector of channels: a vector for each tap.

    Channels are ``raw_channel`` values apart, ``left`` of them exist; past the last it writes that one's.
    """
    spec = task.spec

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        task_, raw_, packed_, left_, taps_ = arguments
        v = Vectors(builder, STORED[spec.raw_type][2])
        step = v.index(field(builder, spec, task_, "raw_channel"), STORED[spec.raw_type][1])
        down, last = field(builder, spec, task_, "packed_tap"), builder.sub(left_, int64(1))
        mask, rows = v.between(int64(0), taps_), []
        for lane in range(v.lanes):
            channel = builder.select(builder.icmp_signed("<", int64(lane), last), int64(lane), last)
            rows.append(v.load(v.at(raw_, builder.mul(step, channel)), spec.raw_type, mask))
        for tap, value in enumerate(square(v, rows)):
            with builder.if_then(builder.icmp_signed("<", int64(tap), taps_), likely=True):
                v.store(value, v.at(packed_, builder.mul(down, int64(tap))))
        return context.get_dummy_value()

    return types.none(task, raw, packed, left, taps), generate

"""Register tiles of depthwise convolution in channels_last: lanes are channels, a tile is a few pixels of one row.

The sums of a tile's pixels stay in registers while rows of taps are added to them. Every input vector is loaded once
and used by every pixel and tap that meet at it (`meetings`).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from llvmlite import ir
from numba.core import types
from numba.extending import intrinsic

from npdwconv.kernels.cpu import activate
from npdwconv.kernels.cpu.simd import I64, STORED, Value, Vectors, int64
from npdwconv.kernels.cpu.spec import Spec, field
from npdwconv.kernels.cpu.vectors import VectorType

Pairs = list[tuple[int, int]]


def meetings(outputs: int, taps: int, stride: int, dilation: int) -> dict[int, Pairs]:
    """Input offset -> the (output, tap) pairs that read it: those with output·stride + tap·dilation = offset."""
    found: dict[int, Pairs] = {}
    for output in range(outputs):
        for tap in range(taps):
            found.setdefault(output * stride + tap * dilation, []).append((output, tap))
    return dict(sorted(found.items()))


def _columns(builder: Any, spec: Spec, task: Value) -> Iterator[tuple[Value, Pairs]]:
    """The tile's input columns and who reads each; one tap at a time where stride and dilation are not compiled in."""
    if spec.knows("stride_w"):
        for column, pairs in meetings(spec.pixels, spec.taps_w, spec.stride_w, spec.dilation_w).items():
            yield int64(column), pairs
        return
    for output in range(spec.pixels):
        yield builder.mul(field(builder, spec, task, "stride_w"), int64(output)), [(output, 0)]


def vectors(builder: Any, spec: Spec) -> Vectors:
    """The vocabulary in the dtype in which this spec's operands are summed."""
    return Vectors(builder, STORED[spec.x_type][2])


def _existing(v: Vectors, spec: Spec, left: Value) -> Value | None:
    """The mask of the channels that exist; None where every vector is full."""
    return v.between(int64(0), left) if spec.tail else None


def _load_x(v: Vectors, spec: Spec, address: Value, channel: Value, left: Value, mask: Value | None) -> Value:
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
    """The sums of a tile's pixels, at the bias."""
    spec = task.spec
    result = types.UniTuple(VectorType(STORED[spec.x_type][2], vectors(None, spec).lanes), spec.pixels)

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        v = vectors(builder, spec)
        mask = _existing(v, spec, arguments[2])
        value = v.load(arguments[1], spec.bias_type, mask) if spec.bias_type else v.zero()
        return context.make_tuple(builder, result, [value] * spec.pixels)

    return result(task, bias, left), generate


def _row(*, edge: bool) -> Any:
    @intrinsic
    def row(
        typing: Any, task: Any, sums: Any, x: Any, weight: Any, channel: Any, left: Any, low: Any, high: Any
    ) -> Any:
        """Add one row of taps to the sums; at an edge, columns outside [low, high) are padding and read nothing."""
        spec = task.spec

        def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            task_, sums_, x_, weight_, channel_, left_, low_, high_ = arguments
            v = vectors(builder, spec)
            mask = _existing(v, spec, left_)
            pixel = v.index(field(builder, spec, task_, "x_pixel"), STORED[spec.x_type][1])
            tap = v.index(field(builder, spec, task_, "weight_tap"), v.bytes)
            taps = [v.load(v.at(weight_, v.index(tap, s)), "", mask) for s in range(spec.taps_w)]
            total = [builder.extract_value(sums_, i) for i in range(spec.pixels)]
            for column, pairs in _columns(builder, spec, task_):
                exists = None
                if edge:
                    low_enough = builder.icmp_signed("<", column, high_)
                    inside = builder.and_(builder.icmp_signed(">=", column, low_), low_enough)
                    column = builder.select(inside, column, low_)
                    exists = v.everywhere(inside)
                value = _load_x(v, spec, v.at(x_, builder.mul(pixel, column)), channel_, left_, mask)
                for output, s in pairs:
                    total[output] = v.fma(value, taps[s], total[output], exists)
            return context.make_tuple(builder, sums, total)

        return sums(task, sums, x, weight, channel, left, low, high), generate

    return row


row_inside, row_at_edge = _row(edge=False), _row(edge=True)


@intrinsic
def finish(typing: Any, task: Any, sums: Any, out: Any, other: Any, left: Any, count: Any) -> Any:
    """Write the first ``count`` pixels: their sums activated, or ``other`` times the activation's derivative there."""
    spec = task.spec

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        task_, sums_, out_, other_, left_, count_ = arguments
        v = vectors(builder, spec)
        mask = _existing(v, spec, left_)
        step = field(builder, spec, task_, "out_pixel")
        for pixel in range(spec.pixels):
            with builder.if_then(builder.icmp_signed("<", int64(pixel), count_), likely=True):
                value = builder.extract_value(sums_, pixel)
                if spec.other_type:
                    place = v.at(other_, v.index(step, pixel * STORED[spec.other_type][1]))
                    slope = activate.derivative(v, spec.activation, value)
                    value = builder.fmul(v.load(place, spec.other_type, mask), slope)
                else:
                    value = activate.activate(v, spec.activation, value)
                v.store(value, v.at(out_, v.index(step, pixel * STORED[spec.out_type][1])), spec.out_type, mask)
        return context.get_dummy_value()

    return types.none(task, sums, out, other, left, count), generate


@intrinsic
def pack_taps(typing: Any, task: Any, weight: Any, packed: Any, left: Any) -> Any:
    """Write one tap of up to a vector of channels, which lie ``weight_channel`` values apart, side by side."""
    spec = task.spec

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        task_, weight_, packed_, left_ = arguments
        v = Vectors(builder, STORED[spec.weight_type][2])
        mask = v.between(int64(0), left_)
        step = v.index(field(builder, spec, task_, "weight_channel"), STORED[spec.weight_type][1])
        v.store(v.gather(weight_, step, spec.weight_type, mask), packed_, "", mask)
        return context.get_dummy_value()

    return types.none(task, weight, packed, left), generate

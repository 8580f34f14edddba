"""Register tiles of depthwise convolution, unrolled by ordinary Python loops.

A tile is a block of outputs whose sums stay in registers. Every input vector that the tile reads is loaded once and
used by every output and tap that meet at it: `meetings` lists them.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba.core import types
from numba.extending import intrinsic

from npdwconv.kernels.cpu import activate
from npdwconv.kernels.cpu.simd import STORED, Vectors, int64
from npdwconv.kernels.cpu.spec import Spec, field
from npdwconv.kernels.cpu.vectors import VectorType


def meetings(outputs: int, taps: int, stride: int, dilation: int) -> dict[int, list[tuple[int, int]]]:
    """Input offset -> the (output, tap) pairs that read it: those with output·stride + tap·dilation = offset."""
    found: dict[int, list[tuple[int, int]]] = {}
    for output in range(outputs):
        for tap in range(taps):
            found.setdefault(output * stride + tap * dilation, []).append((output, tap))
    return dict(sorted(found.items()))


def _vectors(builder: Any, spec: Spec) -> Vectors:
    return Vectors(builder, STORED[spec.stored][2])


def _tuple(spec: Spec, count: int) -> Any:
    dtype = STORED[spec.stored][2]
    return types.UniTuple(VectorType(dtype, Vectors(None, dtype).lanes), count)


def _channels(v: Vectors, spec: Spec, left: Any) -> Any:
    """The mask of the channels that exist; None where every vector is full."""
    return v.between(int64(0), left) if spec.tail else None


@intrinsic
def start(typing: Any, task: Any, bias: Any, left: Any) -> Any:
    """The accumulators of a tile of pixels, at the bias."""
    spec = task.spec
    result = _tuple(spec, spec.pixels)

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        v = _vectors(builder, spec)
        value = v.load(arguments[1], spec.stored, _channels(v, spec, arguments[2])) if spec.bias else v.zero()
        return context.make_tuple(builder, result, [value] * spec.pixels)

    return result(task, bias, left), generate


def _row(edge: bool) -> Any:
    @intrinsic
    def row(typing: Any, task: Any, sums: Any, x: Any, weight: Any, left: Any, low: Any, high: Any) -> Any:
        """Add one row of taps to the pixels' sums; columns outside [low, high) are padding and read nothing."""
        spec = task.spec

        def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            task_, sums_, x_, weight_, left_, low_, high_ = arguments
            v = _vectors(builder, spec)
            mask = _channels(v, spec, left_)
            size = STORED[spec.stored][1]
            step = v.index(field(builder, spec, task_, "x_pixel"), size)
            weights = field(builder, spec, task_, "weight_tap")
            acc = [builder.extract_value(sums_, i) for i in range(spec.pixels)]
            taps = [
                v.load(v.at(weight_, v.index(weights, s * size)), spec.stored, mask) for s in range(spec.kernel_w)
            ]
            for column, pairs in meetings(spec.pixels, spec.kernel_w, spec.stride_w, spec.dilation_w).items():
                place = v.at(x_, builder.mul(step, int64(column)))
                exists = None
                if edge:
                    inside = builder.and_(
                        builder.icmp_signed(">=", int64(column), low_), builder.icmp_signed("<", int64(column), high_)
                    )
                    place = builder.select(inside, place, v.at(x_, builder.mul(step, low_)))
                    exists = v.everywhere(inside)
                value = v.load(place, spec.stored, mask)
                for output, tap in pairs:
                    acc[output] = v.fma(value, taps[tap], acc[output], exists)
            return context.make_tuple(builder, sums, acc)

        return sums(task, sums, x, weight, left, low, high), generate

    return row


row_inner, row_edge = _row(edge=False), _row(edge=True)


@intrinsic
def finish(typing: Any, task: Any, sums: Any, out: Any, left: Any, count: Any) -> Any:
    """Activate the first ``count`` pixels' sums and write them."""
    spec = task.spec

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        task_, sums_, out_, left_, count_ = arguments
        v = _vectors(builder, spec)
        mask = _channels(v, spec, left_)
        step = v.index(field(builder, spec, task_, "out_pixel"), STORED[spec.stored][1])
        for pixel in range(spec.pixels):
            with builder.if_then(builder.icmp_signed("<", int64(pixel), count_), likely=True):
                value = activate.activate(v, spec.activation, builder.extract_value(sums_, pixel))
                v.store(value, v.at(out_, builder.mul(step, int64(pixel))), spec.stored, mask)
        return context.get_dummy_value()

    return types.none(task, sums, out, left, count), generate

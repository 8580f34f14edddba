"""Pixels laid out so that a vector holds one of as many channels, planes by turning them: what tiles work on."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

from llvmlite import ir
from numba.core import types
from numba.extending import intrinsic

from npdwconv.kernels.cpu.arrays import LINE
from npdwconv.kernels.cpu.fetching import prefetch
from npdwconv.kernels.cpu.simd import STORED, Value, Vectors, int64
from npdwconv.kernels.cpu.spec import field
from npdwconv.kernels.cpu.weight_tiles import operand

CHUNK = 16  # bytes that shuffles move freely: a lane of AVX, a register of SSE and NEON


@intrinsic
def scratch(typing: Any, task: Any) -> Any:
    """The address of ``spec.scratch`` vectors on the stack, which last as long as the item."""
    spec = task.spec

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        v = Vectors(builder, spec.dtype)
        with builder.goto_entry_block():
            space = builder.alloca(ir.ArrayType(v.type, spec.scratch))
        space.align = v.lanes * v.bytes
        return builder.ptrtoint(space, ir.IntType(64))

    return types.int64(task), generate


def _turn(side: str, *, full: bool) -> Any:
    @intrinsic
    def turn(typing: Any, task: Any, source: Any, channel: Any, left: Any, out: Any, ahead: Any) -> Any:
        """Write a vector a pixel: ``left`` pixels at ``source``, in the planes of ``channel`` and those that follow.

        At most as many vectors are written as a vector has lanes; those past ``left`` hold nothing of meaning. What is
        ``ahead`` bytes further on is fetched, if anything is.
        """
        spec = task.spec
        stored, each = getattr(spec, f"{side}_type"), getattr(spec, f"{side}_each")

        def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            task_, source_, channel_, left_, out_, ahead_ = arguments
            v = Vectors(builder, spec.dtype)
            pitch, last = (field(builder, spec, task_, name) for name in (f"{side}_channel", "final"))
            places = []
            for lane in range(v.lanes):
                plane = builder.add(channel_, int64(lane))
                plane = builder.select(builder.icmp_signed("<", plane, last), plane, last)
                plane = plane if each == 1 else builder.sdiv(plane, int64(each))
                places.append(v.at(source_, builder.mul(plane, pitch)))
                if spec.fetches:
                    prefetch(builder, v.at(places[-1], ahead_))
            for first in range(0, v.lanes, CHUNK // v.bytes):
                more = builder.icmp_signed(">", left_, int64(first))
                with nullcontext() if full else builder.if_then(more):
                    some = None if full else builder.sub(left_, int64(first))
                    for pixel, value in enumerate(columns(v, places, stored, first, some), first):
                        v.store(value, v.at(out_, int64(pixel * v.lanes * v.bytes)))
            return context.get_dummy_value()

        return types.none(task, source, channel, left, out, ahead), generate

    return turn


def _lay(side: str) -> Any:
    @intrinsic
    def lay(typing: Any, task: Any, source: Any, out: Any, ahead: Any) -> Any:
        """Write the ``spec.group`` vectors of channels at ``source``, each into a block of its own from ``out`` on.

        What is ``ahead`` bytes further on is fetched, if anything is.
        """
        spec = task.spec
        stored, size = getattr(spec, f"{side}_type"), getattr(spec, f"{side}_size")

        def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            task_, source_, out_, ahead_ = arguments
            v = Vectors(builder, spec.dtype)
            for place in range(0, spec.group * v.lanes * size if spec.fetches else 0, LINE):
                prefetch(builder, v.at(source_, ahead_, int64(place)))
            space = field(builder, spec, task_, "space")
            for number in range(spec.group):
                value = v.load(v.at(source_, int64(number * v.lanes * size)), stored)
                v.store(value, v.at(out_, builder.mul(space, int64(number))))
            return context.get_dummy_value()

        return types.none(task, source, out, ahead), generate

    return lay


def _lay_some(side: str) -> Any:
    @intrinsic
    def lay(typing: Any, task: Any, source: Any, out: Any, left: Any) -> Any:
        """Write one vector of channels, of which ``left`` are there from ``source`` on."""
        spec = task.spec
        stored, each = getattr(spec, f"{side}_type"), getattr(spec, f"{side}_each")

        def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            task_, source_, out_, left_ = arguments
            value = operand(builder, spec, task_, source_, stored, each, left_)
            Vectors(builder, spec.dtype).store(value, out_)
            return context.get_dummy_value()

        return types.none(task, source, out, left), generate

    return lay


def transposed(v: Vectors, places: list[Value], stored: str) -> list[Value]:
    """The columns of the square block whose rows begin at ``places``."""
    return [column for first in range(0, v.lanes, CHUNK // v.bytes) for column in columns(v, places, stored, first)]


def columns(v: Vectors, places: list[Value], stored: str, first: int, left: Value | None = None) -> list[Value]:
    """A chunk of those columns, from number ``first`` on, of which ``left`` exist (all without it).

    Chunks of rows are put together so that the chunk of every column is already in its place; what remains is to
    transpose small squares inside the chunks, all of a vector at once.
    """
    width = CHUNK // v.bytes
    narrow, offset = Vectors(v.builder, v.dtype, width), int64(first * STORED[stored][1])
    exists = None if left is None else narrow.between(int64(0), left)
    rows = [narrow.load(v.at(place, offset), stored, exists) for place in places]
    return _squares(v, [_joined(v, rows[row::width]) for row in range(width)], width)


def _joined(v: Vectors, parts: list[Value]) -> Value:
    """The concatenation of vectors."""
    while len(parts) > 1:
        count = 2 * parts[0].type.count
        parts = [v.shuffle(a, b, range(count)) for a, b in zip(parts[::2], parts[1::2], strict=True)]
    return parts[0]


def _squares(v: Vectors, rows: list[Value], width: int) -> list[Value]:
    """Transpose, in every chunk, the square that the rows' chunks form."""
    if width == 2:
        return [_picked(v, rows[0], rows[1], ((0, place), (1, place))) for place in range(2)]
    low = [_picked(v, rows[i], rows[i + 1], ((0, 0), (1, 0), (0, 1), (1, 1))) for i in (0, 2)]
    high = [_picked(v, rows[i], rows[i + 1], ((0, 2), (1, 2), (0, 3), (1, 3))) for i in (0, 2)]
    halves = (((0, 0), (0, 1), (1, 0), (1, 1)), ((0, 2), (0, 3), (1, 2), (1, 3)))
    return [_picked(v, pair[0], pair[1], places) for pair in (low, high) for places in halves]


def _picked(v: Vectors, a: Value, b: Value, places: Any) -> Value:
    """In every chunk, the places (0 for a, 1 for b; where in its chunk)."""
    width = len(places)
    chunks = range(0, v.lanes, width)
    return v.shuffle(a, b, [side * v.lanes + start + place for start in chunks for side, place in places])


# how pixels of z and of x are laid out: turned, as many as there are lanes or fewer; all vectors of a group, or one
sides = {side: (_turn(side, full=True), _turn(side, full=False), _lay(side), _lay_some(side)) for side in "zx"}


@intrinsic
def spread(typing: Any, task: Any, source: Any, out: Any, taps: Any, channels: Any) -> Any:
    """Write the first ``taps`` values of every channel, from as many vectors: a row of ``out`` is a channel.

    A square of vectors is read, whatever the number of taps.
    """
    spec = task.spec

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        task_, source_, out_, taps_, channels_ = arguments
        v = Vectors(builder, spec.dtype)
        pitch = field(builder, spec, task_, "out_channel")
        places = [v.at(source_, int64(tap * v.lanes * v.bytes)) for tap in range(v.lanes)]
        exists = v.between(int64(0), taps_)
        for lane, value in enumerate(transposed(v, places, spec.dtype)):
            with builder.if_then(builder.icmp_signed("<", int64(lane), channels_), likely=True):
                v.store(value, v.at(out_, builder.mul(pitch, int64(lane))), spec.out_type, exists)
        return context.get_dummy_value()

    return types.none(task, source, out, taps, channels), generate

"""Register tiles for kernels so wide that every output of a row counts every input of it: none is spent on padding.

Lanes are output columns, and where a kernel moves along its row, taps leave the image at one end as fast as they enter
at the other: half of a vector of inputs meets nothing. So inputs take the place of taps: one input, in every lane, is
multiplied by the taps that the outputs count it with, which are neighbours in the kernel's row. Where they stand there
backwards, so do the sums in their vectors meanwhile.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba.extending import intrinsic

from npdwconv.kernels.cpu.columns import Tile, field_or_fixed, halves, twin_splat, where
from npdwconv.kernels.cpu.gemm import repeat
from npdwconv.kernels.cpu.simd import STORED, Value, Vectors, int64


class _Taps:
    """Vectors of taps: those with which the outputs of a row count one input."""

    def __init__(self, v: Vectors, tile: Tile, twin: Value | None) -> None:
        """``twin`` is the distance to the kernel in the second half of the lanes."""
        spec = tile.spec
        self.v, self.stored, self.twin = v, str(spec.weight_type), twin
        self.narrow, *_ = (v, None) if twin is None else halves(v)
        self.backwards, self.size = int(spec.tap_step_w) > 0, STORED[str(spec.weight_type)][1]
        self.first = int(spec.tap_w) + int(spec.tap_step_w) * int(spec.low_w)  # tap of the first output, first input
        self.masks = [self._mask(vector * self.narrow.lanes, int(spec.outputs)) for vector in range(tile.vectors)]

    def load(self, row: Value) -> list[Value]:
        """For the input that the first output counts with the tap at ``row``."""
        return [self._one(row, vector) for vector in range(len(self.masks))]

    def turned(self, value: Value) -> Value:
        """A vector of sums with its outputs in the order of the taps, or such a vector in the order of outputs."""
        lanes = self.narrow.lanes
        places = [part + lane for part in range(0, self.v.lanes, lanes) for lane in reversed(range(lanes))]
        return self.v.shuffle(value, value, places) if self.backwards else value

    def _one(self, row: Value, vector: int) -> Value:
        lanes = self.narrow.lanes
        place = -((vector + 1) * lanes - 1) if self.backwards else vector * lanes
        at = self.v.at(row, place * self.size)
        low = self.narrow.load(at, self.stored, self.masks[vector])
        if self.twin is None:
            return low
        high = self.narrow.load(self.v.at(at, self.twin), self.stored, self.masks[vector])
        return self.v.shuffle(low, high, range(self.v.lanes))

    def _mask(self, first: int, outputs: int) -> Value | None:
        """The lanes whose output exists, ``first`` being that of the first."""
        exist = [lane < outputs for lane in range(first, first + self.narrow.lanes)]
        if self.backwards:
            exist.reverse()
        return None if all(exist) else ir.Constant(self.narrow.mask, exist)


@intrinsic
def cover(typing: Any, task: Any, sums: Any, x: Any, weight: Any, top: Any) -> Any:
    """Add all taps of the kernel at ``weight`` to the sums of a tile, whose first row reads row ``top`` of the plane
    that begins at ``x`` with the kernel's first row.

    A row of taps meets as many input rows as the tile has rows: `part` of them, where the others are outside.
    """
    spec, tile = task.spec, Tile(task.spec)

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        task_, sums_, x_, weight_, top_ = arguments
        v, b, stored = tile.vectors_of(builder), builder, str(spec.source_type)
        height, width = (field_or_fixed(b, spec, task_, name) for name in ("height", "width"))
        size, taps_h = STORED[stored][1], int(spec.taps_h)
        pitch = v.index(width, size)
        plane = b.mul(height, pitch) if tile.twins else None
        size_w = STORED[str(spec.weight_type)][1]
        taps = _Taps(v, tile, v.index(field_or_fixed(b, spec, task_, "kernel"), size_w) if tile.twins else None)
        first = v.at(weight_, (int(spec.tap_h) * int(spec.kernel_w) + taps.first) * size_w)

        def part(r: Value, rows: range, acc: list[Value]) -> list[Value]:
            """Add row ``r`` of the taps to the sums of these rows, from the first input on."""
            begin = v.at(x_, b.mul(pitch, b.add(top_, r)))
            places = [tile.place(p, 0, k, 0) for p in rows for k in range(tile.vectors)]

            def column(at: Value, tap: Value, *held: Value) -> list[Value]:
                weights, values = taps.load(tap), list(held)
                for i, p in enumerate(rows):
                    value = twin_splat(v, v.at(at, b.mul(pitch, int64(p))), plane, stored)
                    for k in range(tile.vectors):
                        place = i * tile.vectors + k
                        values[place] = v.fma(value, weights[k], values[place])
                return [v.at(at, size), v.at(tap, int(spec.tap_step_w) * size_w), *values]

            tap = v.at(first, v.index(r, int(spec.tap_pitch) * size_w))
            _, _, *found = repeat(b, width, [begin, tap, *(acc[place] for place in places)], column)
            result = list(acc)
            for place, total in zip(places, found, strict=True):
                result[place] = total
            return result

        def corner(r: Value, rows: range) -> None:
            exists = b.icmp_unsigned("<", r, int64(taps_h))
            with where(b, exists, acc) as changed:
                changed[:] = part(r, rows, changed)

        acc = [taps.turned(b.extract_value(sums_, i)) for i in range(tile.sums)]
        low, past = b.neg(top_), b.add(b.sub(height, top_), int64(1 - tile.rows))
        for outside in reversed(range(1, tile.rows)):
            corner(b.sub(low, int64(outside)), range(outside, tile.rows))
        begin, end = v.clamped(low, taps_h), v.clamped(past, taps_h)
        _, *acc = repeat(
            b, b.sub(end, begin), [begin, *acc], lambda r, *held: [v.at(r, 1), *part(r, range(tile.rows), [*held])]
        )
        for outside in range(1, tile.rows):
            corner(b.add(past, int64(outside - 1)), range(tile.rows - outside))
        return context.make_tuple(builder, sums, [taps.turned(total) for total in acc])

    return sums(task, sums, x, weight, top), generate

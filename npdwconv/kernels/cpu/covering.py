"""Register tiles for kernels so wide that every output of a row counts every input of it: none is spent on padding.

Lanes are output columns, and where a kernel moves along its row, taps leave the image at one end as fast as they enter
at the other: half of a vector of inputs meets nothing. So inputs take the place of taps: one input, in every lane, is
multiplied by the taps that the outputs count it with, which are neighbours in the kernel's row, backwards.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba.extending import intrinsic

from npdwconv.kernels.cpu.columns import Tile, field_or_fixed, halves, twin_splat
from npdwconv.kernels.cpu.gemm import repeat
from npdwconv.kernels.cpu.simd import STORED, Value, Vectors, int64
from npdwconv.kernels.cpu.spec import Spec


class _Taps:
    """Vectors of taps: those with which the outputs of a row count one input."""

    def __init__(self, v: Vectors, spec: Spec, twin: Value | None) -> None:
        """``twin`` is the distance to the kernel in the second half of the lanes."""
        self.v, self.stored, self.twin = v, str(spec.weight_type), twin
        self.narrow, *_ = (v, None) if twin is None else halves(v)
        self.backwards = int(spec.tap_step_w) > 0
        self.first = int(spec.tap_w) + int(spec.tap_step_w) * int(spec.low_w)  # tap of the first output, first input
        lanes, outputs = self.narrow.lanes, int(spec.outputs)
        exist = [lane < outputs for lane in range(lanes)]
        if self.backwards:
            self.first -= lanes - 1
            exist.reverse()
        self.mask = ir.Constant(self.narrow.mask, exist)

    def load(self, row: Value) -> Value:
        """For the input whose first tap is at ``first`` of the row of taps there."""
        places = [*range(self.narrow.lanes)]
        if self.backwards:
            places.reverse()
        low = self.narrow.load(row, self.stored, self.mask)
        if self.twin is None:
            return self.v.shuffle(low, low, places) if self.backwards else low
        high = self.narrow.load(self.v.at(row, self.twin), self.stored, self.mask)
        return self.v.shuffle(low, high, places + [self.narrow.lanes + place for place in places])


@intrinsic
def cover(typing: Any, task: Any, sums: Any, x: Any, weight: Any) -> Any:
    """Add all taps of the kernel at ``weight`` to the sums of a plane, whose first input is at ``x``."""
    spec, tile = task.spec, Tile(task.spec)

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        task_, sums_, x_, weight_ = arguments
        v, stored = tile.vectors_of(builder), str(spec.source_type)
        size, weight_size = STORED[stored][1], STORED[str(spec.weight_type)][1]
        height, width, step = int(spec.height), int(spec.width), int(spec.tap_step_w)
        plane = int64(height * width * size) if tile.twins else None
        kernel = v.index(field_or_fixed(builder, spec, task_, "kernel"), weight_size) if tile.twins else None
        taps = _Taps(v, spec, kernel)
        acc = [builder.extract_value(sums_, i) for i in range(tile.sums)]
        for r in range(int(spec.taps_h)):
            rows = [p for p in range(tile.rows) if 0 <= p + r - int(spec.low_h) < height]
            place = (int(spec.tap_h) * int(spec.kernel_w) + r * int(spec.tap_pitch) + taps.first) * weight_size

            def column(at: Value, tap: Value, *held: Value, r: int = r, rows: list[int] = rows) -> list[Value]:
                values, weights = [], taps.load(tap)
                for p, total in zip(rows, held, strict=True):
                    row = v.at(at, (p + r - int(spec.low_h)) * width * size)
                    values.append(v.fma(twin_splat(v, row, plane, stored), weights, total))
                return [v.at(at, size), v.at(tap, step * weight_size), *values]

            if rows:
                _, _, *found = repeat(
                    builder, int64(width), [x_, v.at(weight_, place), *(acc[p] for p in rows)], column
                )
                for p, total in zip(rows, found, strict=True):
                    acc[p] = total
        return context.make_tuple(builder, sums, acc)

    return sums(task, sums, x, weight), generate

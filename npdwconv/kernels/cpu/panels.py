"""Packing a matrix into panels: a few vectors of columns, all of the depth, each step contiguous.

A source whose columns are neighbours is copied row by row; one whose depth is contiguous is turned in square blocks of
registers. Columns that do not exist repeat the last that does: nobody reads what is computed from them.
"""

from __future__ import annotations

from typing import Any

from numba.core import types
from numba.extending import intrinsic

from npdwconv.kernels.cpu.engine import compiled
from npdwconv.kernels.cpu.gemm import transposed
from npdwconv.kernels.cpu.simd import STORED, Vectors, int64
from npdwconv.kernels.cpu.spec import field


@intrinsic(prefer_literal=True)
def _copy(typing: Any, task: Any, vectors: Any, source: Any, target: Any, left: Any) -> Any:
    """One step of the depth: ``left`` neighbouring columns."""
    spec = task.spec

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        _, _, source_, target_, left_ = arguments
        v, count = Vectors(builder, STORED[spec.b_type][2]), vectors.literal_value
        for j in range(count):
            here = builder.sub(left_, int64(j * v.lanes))
            mask = v.between(int64(0), here) if spec.tail and j == count - 1 else None
            value = v.load(v.at(source_, j * v.lanes * spec.b_size), spec.b_type, mask)
            v.store(value, v.at(target_, j * v.lanes * v.bytes))
        return context.get_dummy_value()

    return types.none(task, vectors, source, target, left), generate


@intrinsic
def _turn(typing: Any, task: Any, source: Any, target: Any, step: Any, columns: Any, depth: Any) -> Any:
    """A square block: as many columns, ``b_column`` apart, as there are lanes, and as many steps of the depth.

    ``columns`` and ``depth`` of them exist; a step is written ``step`` bytes behind the one before.
    """
    spec = task.spec

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        task_, source_, target_, step_, columns_, depth_ = arguments
        v = Vectors(builder, STORED[spec.b_type][2])
        pitch = v.index(field(builder, spec, task_, "b_column"), spec.b_size)
        mask, last = v.between(int64(0), depth_), builder.sub(columns_, int64(1))
        rows = []
        for lane in range(v.lanes):
            place = int64(lane)
            if spec.tail:
                place = builder.select(builder.icmp_signed("<", place, last), place, last)
            rows.append(v.load(builder.add(source_, builder.mul(pitch, place)), spec.b_type, mask))
        for lane, value in enumerate(transposed(v, rows)):
            with builder.if_then(builder.icmp_signed("<", int64(lane), depth_), likely=True):
                v.store(value, builder.add(target_, builder.mul(step_, int64(lane))))
        return context.get_dummy_value()

    return types.none(task, source, target, step, columns, depth), generate


def _pack_panel(task: Any, source: Any, target: Any, wide: Any, left: Any, depth: Any) -> None:
    """Pack one panel of which ``left`` columns exist."""
    vectors = task.vectors if wide else task.last
    line = vectors * task.lanes * task.size
    if task.turning:
        for start in range(0, depth, task.lanes):
            for j in range(vectors):
                column = j * task.lanes
                _turn(
                    task,
                    source + (column * task.b_column + start) * task.b_size,
                    target + start * line + column * task.size,
                    line,
                    left - column,
                    depth - start,
                )
    else:
        for step in range(depth):
            row, packed = source + step * task.b_step * task.b_size, target + step * line
            if wide:
                _copy(task, task.vectors, row, packed, left)
            else:
                _copy(task, task.last, row, packed, left)


pack_panel = compiled(_pack_panel)

"""Packing a matrix into panels: a few vectors of columns, all of the depth, each step contiguous.

A source whose columns are neighbours is copied row by row; one whose depth is contiguous is turned in square blocks of
registers. Columns that do not exist repeat the last that does: nobody reads what is computed from them.
"""

from __future__ import annotations

from typing import Any

from numba.core import types
from numba.extending import intrinsic

from npdwconv.kernels.cpu.arrays import LINE
from npdwconv.kernels.cpu.engine import compiled, inlined
from npdwconv.kernels.cpu.fetching import prefetch
from npdwconv.kernels.cpu.gemm import first_vector
from npdwconv.kernels.cpu.shuffles import square
from npdwconv.kernels.cpu.simd import I1, STORED, Vectors, int64
from npdwconv.kernels.cpu.spec import Spec, field

FAR = 6  # steps of the depth ahead of the one copied
AHEAD = 128  # bytes beyond what is read that are asked for


@intrinsic(prefer_literal=True)
def _copy(typing: Any, task: Any, of_a: Any, vectors: Any, source: Any, target: Any, left: Any) -> Any:
    """One step of the depth: ``left`` neighbouring columns of b, or rows of a."""
    spec = task.spec

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        *_, source_, target_, left_ = arguments
        stored, size = _stored(spec, of_a)
        v, count = Vectors(builder, STORED[stored][2]), vectors.literal_value
        if of_a.literal_value:
            v = Vectors(builder, v.dtype, spec.tile_lanes)
        for j in range(count):
            here = builder.sub(left_, int64(j * v.lanes))
            partial = of_a.literal_value or (spec.tail and j == count - 1)
            mask = v.between(int64(0), here) if partial else None
            value = v.load(v.at(source_, j * v.lanes * size), stored, mask)
            v.store(value, v.at(target_, j * v.lanes * v.bytes))
        step = v.index(field(builder, spec, arguments[0], "a_step" if of_a.literal_value else "b_step"), size)
        far = builder.add(source_, builder.mul(step, int64(FAR)))
        for place in range(0, (spec.rows if of_a.literal_value else count * v.lanes) * size, LINE):
            prefetch(builder, v.at(far, place))
        return context.get_dummy_value()

    return types.none(task, of_a, vectors, source, target, left), generate


@intrinsic(prefer_literal=True)
def _turn(
    typing: Any, task: Any, of_a: Any, whole: Any, source: Any, target: Any, step: Any, columns: Any, depth: Any
) -> Any:
    """A square block: as many columns of b, or rows of a, as there are lanes, and as many steps of the depth.

    ``columns`` and ``depth`` of them exist, all where ``whole``; a step is written ``step`` bytes behind the last.
    """
    spec = task.spec

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        task_, _, _, source_, target_, step_, columns_, depth_ = arguments
        stored, size = _stored(spec, of_a)
        v = Vectors(builder, STORED[stored][2])
        pitch = v.index(field(builder, spec, task_, "a_line" if of_a.literal_value else "b_line"), size)
        mask, last = None, builder.sub(columns_, int64(1))
        if not whole.literal_value:
            mask = v.between(int64(0), depth_)
        rows = []
        for lane in range(v.lanes):
            place = int64(lane)
            if not whole.literal_value:
                place = builder.select(builder.icmp_signed("<", place, last), place, last)
            row = builder.add(source_, builder.mul(pitch, place))
            rows.append(v.load(row, stored, mask))
            if whole.literal_value:
                prefetch(builder, v.at(row, AHEAD))
        for lane, value in enumerate(square(v, rows)):
            exists = I1(1) if whole.literal_value else builder.icmp_signed("<", int64(lane), depth_)
            with builder.if_then(exists, likely=True):
                v.store(value, builder.add(target_, builder.mul(step_, int64(lane))))
        return context.get_dummy_value()

    return types.none(task, of_a, whole, source, target, step, columns, depth), generate


def _stored(spec: Spec, of_a: Any) -> tuple[str, int]:
    """The dtype of a or of b in memory, and its bytes."""
    name = "a" if of_a.literal_value else "b"
    return str(getattr(spec, f"{name}_type")), int(getattr(spec, f"{name}_size"))


def _turner(of_a: bool) -> Any:
    def turn(task: Any, source: Any, target: Any, vectors: Any, line: Any, size: Any, left: Any, depth: Any) -> None:
        """``vectors`` of columns, ``line`` elements apart; after the first blocks, loads begin with a cache line."""
        pitch, step = line * size, vectors * task.lanes * task.size
        start, end = 0, task.lanes - source // size % task.lanes
        while start < depth:
            end = min(end, depth)
            for j in range(vectors):
                column = j * task.lanes
                place, packed = source + column * pitch + start * size, target + start * step + column * task.size
                if end - start == task.lanes and left - column >= task.lanes:
                    _turn(task, of_a, True, place, packed, step, left - column, end - start)
                else:
                    _turn(task, of_a, False, place, packed, step, left - column, end - start)
            start, end = end, end + task.lanes

    return compiled(turn)


turn_rows, turn_columns = _turner(True), _turner(False)


@inlined
def _turn_panels(task: Any, source: Any, target: Any, p: Any, count: Any, columns: Any, depth: Any) -> None:
    first = first_vector(task, p)
    for i in range(count):
        column = (first_vector(task, p + i) - first) * task.lanes
        place, packed = source + column * task.b_line * task.b_size, target + column * depth * task.size
        vectors = task.vectors if p + i < task.wide else task.last
        turn_columns(task, place, packed, vectors, task.b_line, task.b_size, columns - column, depth)


@inlined
def _copy_panels(task: Any, source: Any, target: Any, p: Any, count: Any, columns: Any, depth: Any) -> None:
    """Each step of the depth of all the panels, before the next step."""
    first = first_vector(task, p)
    for step in range(depth):
        for i in range(count):
            column = (first_vector(task, p + i) - first) * task.lanes
            place, packed = source + (step * task.b_step + column) * task.b_size, target + column * depth * task.size
            if p + i < task.wide:
                line = packed + step * task.vectors * task.lanes * task.size
                _copy(task, False, task.vectors, place, line, columns - column)
            else:
                line = packed + step * task.last * task.lanes * task.size
                _copy(task, False, task.last, place, line, columns - column)


@inlined
def pack_panels(task: Any, source: Any, target: Any, p: Any, count: Any, columns: Any, depth: Any) -> None:
    """Pack ``count`` panels of b from panel p on, where ``columns`` are left."""
    if task.b_turning:
        _turn_panels(task, source, target, p, count, columns, depth)
    else:
        _copy_panels(task, source, target, p, count, columns, depth)


@inlined
def _turned_rows(task: Any, a: Any, scratch: Any, count: Any, depth: Any) -> Any:
    for row in range(0, count, task.rows):
        place, packed = a + row * task.a_line * task.a_size, scratch + row // task.rows * task.tile_next * task.size
        turn_rows(task, place, packed, task.tile_vectors, task.a_line, task.a_size, count - row, depth)
    return scratch


@inlined
def _copied_rows(task: Any, a: Any, scratch: Any, count: Any, depth: Any) -> Any:
    """A few tiles at a time, so that whole lines are used up where a step of the depth is in other lines."""
    wide = max(LINE // (task.rows * task.a_size), 1) * task.rows
    for first in range(0, count, wide):
        for step in range(depth):
            for row in range(first, min(first + wide, count), task.rows):
                here = a + (row * task.a_line + step * task.a_step) * task.a_size
                there = scratch + (row // task.rows * task.tile_next + step * task.tile_step) * task.size
                _copy(task, True, task.tile_vectors, here, there, min(count - row, task.rows))
    return scratch


@inlined
def rows_of_a(task: Any, a: Any, scratch: Any, count: Any, depth: Any) -> Any:
    """Where ``count`` rows of a are read: in place, or packed tile by tile in the scratch."""
    if not task.a_packs:
        return a
    if task.a_turning:
        return _turned_rows(task, a, scratch, count, depth)
    return _copied_rows(task, a, scratch, count, depth)

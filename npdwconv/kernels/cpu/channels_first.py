"""Depthwise correlations over planes (N, C, *spatial): arrays and ints, no validation.

One work item is a run of *units*: blocks of rows of one output plane (of one depth slice in 3-D). Every output is
summed in one order, over the channels that fold into it, then depth, rows and columns, whatever the tile or the item.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from math import prod
from typing import Any

from npdwconv.kernels.cpu import planes as plans
from npdwconv.kernels.cpu.column_tiles import (
    finish_edge,
    finish_inner,
    gather_array,
    gather_inside,
    gather_lanes,
    start,
)
from npdwconv.kernels.cpu.covering import cover
from npdwconv.kernels.cpu.engine import NOWHERE, Kernel, Launch, Parts, inlined
from npdwconv.kernels.cpu.phases import Sweeps
from npdwconv.kernels.cpu.rolling import rolled
from npdwconv.kernels.cpu.taps import (
    after_lanes,
    after_plain,
    along_once,
    along_twice,
    before_lanes,
    before_plain,
    single_lanes,
    single_plain,
    steady_lanes,
    steady_plain,
)
from npdwconv.layouts import Array

POINTERS = ("source", "weight", "bias_at", "out", "other")


@inlined
def _unrolled(
    task: Any, sums: Any, x: Any, weight: Any, top: Any, left: Any, inside: Any, array: Any, ahead: Any
) -> Any:
    """A kernel that is compiled in."""
    if inside:
        return gather_inside(task, sums, x, weight, top, left, ahead)
    if array:
        return gather_array(task, sums, x, weight, top, left, ahead)
    return gather_lanes(task, sums, x, weight, top, left, ahead)


@inlined
def _sliding(task: Any, sums: Any, x: Any, weight: Any, top: Any, left: Any, inside: Any, array: Any) -> Any:
    """Any kernel whose output rows are one row of taps apart: for each column of taps input rows pass."""
    plain = array or (inside and not task.merges)
    low = -(top // task.gap)
    high = (task.height - 1 - top) // task.gap + 1
    pitch = task.row_pitch * task.source_size
    down = task.tap_pitch * task.weight_size
    w = weight + (task.tap_h * task.kernel_w + task.tap_w) * task.weight_size
    for s in range(task.taps_w):
        column = left + s * task.dilation_w
        if low < task.rows - 1:
            if plain:
                sums = before_plain(task, sums, x, w, low, high, column)
            else:
                sums = before_lanes(task, sums, x, w, low, high, column)
        for i in range(max(task.rows - 1, low), min(task.taps_h, high)):
            if plain:
                sums = steady_plain(task, sums, x + i * pitch, w + i * down, column)
            else:
                sums = steady_lanes(task, sums, x + i * pitch, w + i * down, column)
        if high > task.taps_h:
            past, end = x + task.taps_h * pitch, w + task.taps_h * down
            if plain:
                sums = after_plain(task, sums, past, end, low - task.taps_h, high - task.taps_h, column)
            else:
                sums = after_lanes(task, sums, past, end, low - task.taps_h, high - task.taps_h, column)
        x += task.dilation_w * task.source_size
        w += task.tap_step_w * task.weight_size
    return sums


@inlined
def _along(task: Any, sums: Any, x: Any, weight: Any, left: Any) -> Any:
    """Any kernel over a single row, whose taps a vector apart share what they read."""
    weight += task.tap_w * task.weight_size
    both = 2 * task.lanes if task.paired else task.lanes
    for block in range(0, task.taps_w, both):
        count = min(task.taps_w - block, both)
        for s in range(block, block + min(count, task.lanes)):
            row = x + s * task.dilation_w * task.source_size
            w = weight + s * task.tap_step_w * task.weight_size
            if task.paired and s - block < count - task.lanes:
                sums = along_twice(task, sums, row, w, left + s * task.dilation_w)
            else:
                sums = along_once(task, sums, row, w, left + s * task.dilation_w)
    return sums


@inlined
def _single(task: Any, sums: Any, x: Any, weight: Any, top: Any, left: Any, inside: Any, array: Any) -> Any:
    """Any kernel, tap by tap."""
    plain = array or (inside and not task.merges)
    weight += (task.tap_h * task.kernel_w + task.tap_w) * task.weight_size
    for s in range(task.taps_w):
        row = x + s * task.dilation_w * task.source_size
        w = weight + s * task.tap_step_w * task.weight_size
        for r in range(task.taps_h):
            if plain:
                sums = single_plain(task, sums, row, w, top + r * task.dilation_h, left + s * task.dilation_w)
            else:
                sums = single_lanes(task, sums, row, w, top + r * task.dilation_h, left + s * task.dilation_w)
            row += task.row_pitch * task.source_size
            w += task.tap_pitch * task.weight_size
    return sums


@inlined
def _add_plane(
    task: Any, sums: Any, x: Any, weight: Any, top: Any, left: Any, inside: Any, array: Any, ahead: Any
) -> Any:
    """Add one plane's taps to a tile."""
    if task.unrolled:
        return _unrolled(task, sums, x, weight, top, left, inside, array, ahead)
    if task.covers:
        return cover(task, sums, x - (top * task.width + left) * task.source_size, weight, top)
    if task.along:
        return _along(task, sums, x, weight, left)
    if task.sliding:
        return _sliding(task, sums, x, weight, top, left, inside, array)
    return _single(task, sums, x, weight, top, left, inside, array)


def _planes(task: Any, item: Any) -> None:
    """A run of units, tile by tile."""
    unit = item * task.group
    last = min(unit + task.group, task.units)
    slice_ = unit // task.blocks
    block = unit - slice_ * task.blocks
    plane = slice_ // task.out_d
    depth = slice_ - plane * task.out_d
    plane *= task.mates
    channel = plane % task.channels
    height = task.mates * task.height
    while unit < last:
        weight = task.weight + channel * task.folds * task.kernel * task.weight_size
        bias = task.bias_at + channel * task.bias_size
        place = plane * task.out_plane + depth * task.out_slice + task.out_first
        front = depth * task.stride_d - task.low_d
        t0 = max(0, (task.dilation_d - 1 - front) // task.dilation_d)
        t1 = min(task.taps_d, (task.depth - 1 - front) // task.dilation_d + 1)
        first_plane = plane * task.folds // task.spread * task.depth
        first = 0 if task.blocks == 1 else block * task.block_tiles
        done = (first + task.block_tiles) * task.rows * task.row_step if block < task.blocks - 1 else height
        ahead = task.source + (first_plane * task.height + done) * task.width * task.source_size if task.piece else 0
        for tile in range(first, min(first + task.block_tiles, task.tiles)):
            p = tile // task.gap * task.gap * task.rows + tile % task.gap
            top = p * task.row_step - task.low_h
            for start_q in range(0, task.out_w, task.tile_columns):
                q = min(start_q, task.last_q)
                left = q * task.column_step - task.low_w
                inside = task.wide and left >= 0 and left + task.reach <= task.width
                inside = inside and q + task.tile_columns <= task.full_w
                at = first_plane + front + t0 * task.dilation_d
                begin = (at * task.height + max(top, 0)) * task.width + left
                at = first_plane + front + (task.folds - 1) * task.depth + (t1 - 1) * task.dilation_d + task.mates - 1
                bottom = min(top + task.tile_height, task.height) - 1
                end = (at * task.height + bottom) * task.width + left + task.reach
                array = task.merges and begin >= 0 and end <= task.source_end
                sums = start(task, bias)
                for m in range(task.folds):
                    for t in range(t0, t1):
                        at = first_plane + m * task.depth + front + t * task.dilation_d
                        x = task.source + ((at * task.height + top) * task.width + left) * task.source_size
                        tap = m * task.kernel + (task.tap_d + t * task.tap_step_d) * task.kernel_plane
                        w = weight + tap * task.weight_size
                        sums = _add_plane(task, sums, x, w, top, left, inside, array, ahead)
                ahead += task.rows * task.row_step * task.piece
                here = place + p * task.row_kinds * task.out_pitch + q * task.column_kinds * task.out_step
                o = task.out + here * task.out_size
                y = task.other + here * task.other_size
                rows = (task.out_rows - p * task.row_kinds + task.gap - 1) // task.gap
                if inside or task.back:
                    finish_inner(task, sums, o, y, rows, 0)
                else:
                    finish_edge(task, sums, o, y, rows, task.out_columns - q * task.column_kinds)
        unit += 1
        block += 1
        if block == task.blocks:
            block = 0
            depth += 1
        if depth == task.out_d:
            depth = 0
            plane += task.mates
            channel += task.mates
        if channel == task.channels:
            channel = 0


planes = Kernel(_planes)


def gather(
    source: Array,
    weight: Array,
    bias: Array | None,
    out: Array,
    passes: tuple[Sweeps, ...],
    activation: str = "",
    other: Array | None = None,
) -> None:
    """out = activation(Σ_t w[t]·source[i] + b), or other·activation′(that) where ``other`` is, over all ``passes``.

    Arrays are C-contiguous, (N, C, *spatial) and (C·M, *kernel); with more channels in ``source`` than in ``out`` a
    result sums over the M source channels that are its own.
    """
    for launch in _launches(source, weight, bias, out, passes, activation, other):
        launch(source, weight, bias, out, other)


def parts(
    arrays: tuple[Array, Array, Array | None, Array],
    passes: tuple[Sweeps, ...],
    activation: str,
    places: Sequence[int],
    first: int,
) -> Parts:
    """`gather` of ``arrays``, (source, weight, bias, out), as part of a program where they have these places."""
    return Parts([(launch, (*places, NOWHERE)) for launch in _launches(*arrays, passes, activation, None)])


def _launches(
    source: Array,
    weight: Array,
    bias: Array | None,
    out: Array,
    passes: tuple[Sweeps, ...],
    activation: str,
    other: Array | None,
) -> tuple[Launch, ...]:
    dtypes = tuple([None if array is None else array.dtype for array in (source, weight, bias, out, other)])
    return launches(plans.Call(source.shape, weight.shape, out.shape, dtypes, activation), passes)


@lru_cache(maxsize=4096)
def launches(call: plans.Call, passes: tuple[Sweeps, ...]) -> tuple[Launch, ...]:
    if not prod(call.out):
        return ()
    return tuple(_launch(plans.Plan(call, *axes)) for axes in plans.passes(call, passes))


def _launch(plan: plans.Plan) -> Launch:
    fixed, numbers = plan.settled()
    kernel = rolled if plan.tile[0].rolls else planes
    return Launch(kernel, POINTERS, fixed, numbers, items=plan.items, work=plan.work)

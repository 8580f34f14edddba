"""Depthwise correlations over planes (N, C, *spatial): arrays and ints, no validation.

One work item is a run of *units*: blocks of rows of one output plane (of one depth slice in 3-D). Every output is
summed in one order, over the channels that fold into it, then depth, rows and columns, whatever the tile or the item.
"""

from __future__ import annotations

from functools import lru_cache
from math import prod
from typing import Any, NamedTuple

import numpy as np

from npdwconv.kernels.cpu import columns
from npdwconv.kernels.cpu.columns import Phases, finish_edge, finish_inner, gather_array, gather_inside, gather_lanes, start
from npdwconv.kernels.cpu.engine import Kernel, Launch
from npdwconv.kernels.cpu.machine import machine
from npdwconv.kernels.cpu.phases import Sweep, Sweeps
from npdwconv.kernels.cpu.simd import STORED
from npdwconv.kernels.cpu.spec import Fixed
from npdwconv.layouts import Array

POINTERS = ("source", "weight", "bias_at", "out", "other")
ROWS = (14, 8, 4, 2, 1)
WHOLE = 200_000  # multiply-adds from which a tile compiled for planes of one height pays
ITEMS = 64  # about as many work items as a launch has


def _planes(task, item):  # type: ignore[no-untyped-def] - compiled by Numba
    """A run of units, tile by tile."""
    unit = item * task.group
    last = min(unit + task.group, task.units)
    slice_ = unit // task.blocks
    block = unit - slice_ * task.blocks
    plane = slice_ // task.out_d
    depth = slice_ - plane * task.out_d
    channel = plane % task.channels
    while unit < last:
        weight = task.weight + channel * task.folds * task.kernel * task.weight_size
        bias = task.bias_at + channel * task.bias_size
        place = plane * task.out_plane + depth * task.out_slice + task.out_first
        front = depth * task.stride_d - task.low_d
        t0 = max(0, (task.dilation_d - 1 - front) // task.dilation_d)
        t1 = min(task.taps_d, (task.depth - 1 - front) // task.dilation_d + 1)
        first_plane = plane * task.folds // task.spread * task.depth
        p1 = min((block + 1) * task.block_rows, task.out_h)
        for p in range(block * task.block_rows, p1, task.rows):
            top = p * task.row_step - task.low_h
            for q in range(0, task.out_w, task.tile_columns):
                left = q * task.column_step - task.low_w
                inside = task.wide and left >= 0 and left + task.reach <= task.width and q + task.tile_columns <= task.full_w
                at = first_plane + front + t0 * task.dilation_d
                begin = (at * task.height + max(top, 0)) * task.width + left
                at = first_plane + front + (task.folds - 1) * task.depth + (t1 - 1) * task.dilation_d
                end = (at * task.height + min(top + task.tile_height, task.height) - 1) * task.width + left + task.reach
                array = task.merges and begin >= 0 and end <= task.source_end
                sums = start(task, bias)
                for m in range(task.folds):
                    for t in range(t0, t1):
                        at = first_plane + m * task.depth + front + t * task.dilation_d
                        x = task.source + ((at * task.height + top) * task.width + left) * task.source_size
                        tap = m * task.kernel + (task.tap_d + t * task.tap_step_d) * task.kernel_plane
                        w = weight + tap * task.weight_size
                        if inside:
                            sums = gather_inside(task, sums, x, w, top, left)
                        elif array:
                            sums = gather_array(task, sums, x, w, top, left)
                        else:
                            sums = gather_lanes(task, sums, x, w, top, left)
                here = place + p * task.row_kinds * task.out_pitch + q * task.column_kinds * task.out_step
                o = task.out + here * task.out_size
                y = task.other + here * task.other_size
                rows = (p1 - p) * task.row_kinds
                rows = min(rows, task.out_rows - p * task.row_kinds)
                if inside:
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
            plane += 1
            channel += 1
        if channel == task.channels:
            channel = 0


planes = Kernel(_planes)


class Call(NamedTuple):
    """Everything that a launch depends on; ``fold`` says that result channels sum over M source channels."""

    source: tuple[int, ...]
    weight: tuple[int, ...]
    out: tuple[int, ...]
    dtypes: tuple[Any, ...]  # of source, weight, bias, out, other; None where absent
    activation: str
    fold: bool


def gather(
    source: Array,
    weight: Array,
    bias: Array | None,
    out: Array,
    sweeps: Sweeps,
    activation: str = "",
    other: Array | None = None,
    *,
    fold: bool = False,
) -> None:
    """out = activation(Σ_t w[t]·source[i] + b) for one dense correlation; other·activation′(…) where ``other`` is."""
    gather_all(source, weight, bias, out, (sweeps,), activation, other, fold=fold)


def gather_all(
    source: Array,
    weight: Array,
    bias: Array | None,
    out: Array,
    all_sweeps: tuple[Sweeps, ...],
    activation: str = "",
    other: Array | None = None,
    *,
    fold: bool = False,
) -> None:
    """`gather` for every dense correlation of an adjoint: residues of rows and columns share a pass where they can."""
    dtypes = (
        source.dtype,
        weight.dtype,
        None if bias is None else bias.dtype,
        out.dtype,
        None if other is None else other.dtype,
    )
    for launch in _launches(Call(source.shape, weight.shape, out.shape, dtypes, activation, fold), all_sweeps):
        launch(source, weight, bias, out, other)


class Axis(NamedTuple):
    """One spatial axis of a pass: the phases that it writes, one or all residues of an adjoint."""

    size: int
    out: int  # positions of the tile along the axis; each gives a result of every phase
    results: int  # results that exist
    step: int
    low: int
    phases: Phases
    out_first: int
    out_step: int


@lru_cache(maxsize=4096)
def _launches(call: Call, all_sweeps: tuple[Sweeps, ...]) -> tuple[Launch, ...]:
    if not prod(call.out):
        return ()
    return tuple(_launch(call, depth, rows, cols) for depth, rows, cols in _passes(all_sweeps))


def _passes(all_sweeps: tuple[Sweeps, ...]) -> list[tuple[Sweep, Axis, Axis]]:
    """The depth residue and the row and column axes of every pass."""
    full = [_two_axes(sweeps) for sweeps in all_sweeps]
    found = []
    for depth in dict.fromkeys(d for d, _, _ in full):
        rows = list(dict.fromkeys(h for d, h, _ in full if d == depth))
        cols = list(dict.fromkeys(w for d, _, w in full if d == depth))
        found += [(depth, h, w) for h in _together(rows) for w in _together(cols)]
    return found


def _two_axes(sweeps: Sweeps) -> Sweeps:
    """Sweeps over depth, rows and columns, whatever the rank."""
    return (*(Sweep(1, 1, 1, 1, 1, 0) for _ in range(3 - len(sweeps))), *sweeps)


def _together(residues: list[Sweep]) -> list[Axis]:
    """Axes that cover the residues: one for all, where they are all there and shuffles can interleave them."""
    if 1 < len(residues) == residues[0].out_step <= columns.SHUFFLED:
        base = max(s.low for s in residues)
        phases = [_phase(s, base - s.low) for s in residues]
        return [Axis(residues[0].size, residues[0].out, sum(s.out for s in residues), 1, base, phases, 0, 1)]
    return [
        Axis(s.size, s.out, s.out, s.stride, s.low, [_phase(s, 0)], s.out_first, s.out_step) for s in residues
    ]


def _phase(s: Sweep, shift: int) -> list[tuple[int, int]]:
    return [(shift + u * s.dilation, s.tap_first + u * s.tap_step) for u in range(s.taps)]


def _launch(call: Call, depth: Sweep, h: Axis, w: Axis) -> Launch:
    names = tuple(d.name if d is not None else "" for d in call.dtypes)
    dtype = max((STORED[name][2] for name in names if name))
    lanes = machine().lanes(STORED[dtype][1])
    kernel = (*(1,) * (4 - len(call.weight)), *call.weight[1:])
    source, out = (shape[:2] + (1,) * (5 - len(shape)) + shape[2:] for shape in (call.source, call.out))
    multiplier = call.weight[0] // min(source[1], out[1])
    batch, channels, out_d, out_h, out_w = out
    few = {
        "folds": multiplier if call.fold else 1,
        "spread": 1 if call.fold else multiplier,
        "out_d": depth.out,
        "depth": depth.size,
        "stride_d": depth.stride,
        "low_d": depth.low,
        "dilation_d": depth.dilation,
        "taps_d": depth.taps,
        "tap_d": depth.tap_first,
        "tap_step_d": depth.tap_step,
    }
    taps = prod(sum(len(phase) for phase in axis.phases) for axis in (h, w)) * depth.taps
    work = batch * channels * depth.out * h.out * w.out * taps * few["folds"]
    rows, vectors, splits, whole = _shape(h, w, lanes, work)
    row_tiles = -(-h.out // rows)
    slices = batch * channels * depth.out
    blocks = min(row_tiles, max(1, ITEMS // slices)) if slices < ITEMS else 1
    block_rows = -(-row_tiles // blocks) * rows
    blocks = -(-h.out // block_rows)
    units = slices * blocks
    group = -(-units // ITEMS)
    tile_columns = vectors * lanes
    reach = columns.columns_read(lanes, w.step, w.phases) + (vectors - 1) * lanes * w.step
    sizes = [STORED[name][1] if name else 0 for name in names]
    fixed: dict[str, Fixed] = {
        "dtype": dtype,
        **dict(zip(("source_type", "weight_type", "bias_type", "out_type", "other_type"), names, strict=True)),
        **dict(zip(("source_size", "weight_size", "bias_size", "out_size", "other_size"), sizes, strict=True)),
        "activation": call.activation,
        "rows": rows,
        "vectors": vectors,
        "splits": splits,
        "tile_columns": tile_columns,
        "row_taps": columns.written(h.phases),
        "column_taps": columns.written(w.phases),
        "row_kinds": len(h.phases),
        "column_kinds": len(w.phases),
        "row_step": h.step,
        "column_step": w.step,
        "kernel_w": kernel[2],
        "out_step": w.out_step,
        "wide": h.out > 0 and w.out >= tile_columns,
        "reach": reach,
        "tile_height": (rows - 1) * h.step + max((o for phase in h.phases for o, _ in phase), default=0) + 1,
        "merges": machine().name == "AVX-512",
        "parts": 1 if w.out <= lanes and w.size + w.low <= lanes else w.step,
    }
    numbers: dict[str, int] = {
        "group": group,
        "units": units,
        "block_rows": block_rows,
        "channels": channels,
        "source_end": prod(source),
        "kernel": prod(kernel),
        "kernel_plane": kernel[1] * kernel[2],
        "out_plane": out_d * out_h * out_w,
        "out_slice": depth.out_step * out_h * out_w,
        "out_first": (depth.out_first * out_h + h.out_first) * out_w + w.out_first,
        "out_pitch": h.out_step * out_w,
        "out_h": h.out,
        "out_w": w.out,
        "out_rows": h.results,
        "out_columns": w.results,
        "full_w": w.results // len(w.phases),
        "height": h.size,
        "width": w.size,
        "low_h": h.low,
        "low_w": w.low,
    }
    few["blocks"] = blocks
    flat = depth == Sweep(1, 1, 1, 1, 1, 0)
    compiled_in = {name: value for name, value in few.items() if value == 1 or (flat and name not in ("folds", "spread", "blocks"))}
    fixed |= compiled_in
    numbers |= {name: value for name, value in few.items() if name not in compiled_in}
    if whole:
        for name in ("height", "low_h", "out_h", "out_rows", "block_rows"):
            fixed[name] = numbers.pop(name)
    return Launch(planes, POINTERS, fixed, numbers, items=-(-units // group), work=work)


def _shape(h: Axis, w: Axis, lanes: int, work: int) -> tuple[int, int, int, bool]:
    """Rows, vectors and splits of a tile, and whether it is a whole plane, compiled for its height."""
    kinds = len(h.phases) * len(w.phases)
    budget = 16 if machine().registers == 32 else 8
    vectors = min(-(-w.out // lanes), max(1, 8 // kinds)) if h.out == 1 else 1
    most = max(1, budget // (kinds * vectors))
    whole = work >= WHOLE and h.out <= most and w.out <= lanes
    rows = h.out if whole else min((r for r in ROWS if r <= most), key=lambda r: -(-h.out // r) * (r + 1))
    splits = 1 if rows * vectors * kinds >= 8 else 2
    return rows, vectors, splits, whole

"""CPU kernels for the gradient of a depthwise convolution in its weight: arrays and ints, no validation.

``grad_w[k,t] = Σ_n,o z[n,k,o]·x[n,c,o·stride + t·dilation − low]``: one sum for every channel and tap.

A lane is a channel in both layouts. Where channels come first, blocks of planes are turned on the way (`weight_planes`)
into a scratch that stays in the nearest caches; but for few taps and wide planes a lane is a column (`weight_rolling`).
Where they come last, small images are laid out in the scratch, too, larger ones are read where they are.

Work is cut into chunks of rows by the shape alone; each has partial sums of its own, which a second launch adds in
order: no bit depends on the number of threads.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Any

import numpy as np

from npdwconv.geometry import Axis, ConvGeometry
from npdwconv.kernels.cpu import caches
from npdwconv.kernels.cpu.arrays import deliver, plain, target
from npdwconv.kernels.cpu.columns import columns_read, written
from npdwconv.kernels.cpu.engine import Kernel, Launch, Parts, Program, Ready
from npdwconv.kernels.cpu.machine import machine
from npdwconv.kernels.cpu.planes import FEW, NEAR, items_of
from npdwconv.kernels.cpu.simd import STORED
from npdwconv.kernels.cpu.spec import Fixed
from npdwconv.kernels.cpu.weight_blocks import (
    LAID,
    SCRATCH,
    Tile,
    cheapest,
    is_dense,
    laid_together,
    lanes_used,
    space,
    tile_of,
)
from npdwconv.kernels.cpu.weight_jobs import Job
from npdwconv.kernels.cpu.weight_kernels import collect, laid, rows
from npdwconv.kernels.cpu.weight_rolling import rolled
from npdwconv.layouts import Array, split_shape

GROUP, LARGE_GROUP = 4, 16  # vectors of channels, neighbours in memory, that an item walks together
LARGE = 4_000_000  # bytes of z and x above which they come from far away, and longer runs come faster
FETCHED = 256  # bytes of a pixel from which on rows are fetched ahead
ITEMS = 8  # that a launch aims at: enough for any number of threads worth having


def correlate(z: Array, x: Array, grad_weight: Array, g: ConvGeometry, layout: str) -> None:
    """grad_w[cM+m,t] = Σ_n,o z[n,cM+m,o]·x[n,c,i]; or with x[n,cM+m,i] and z[n,c,o], where x has more channels."""
    if not grad_weight.size:
        return
    if not z.size or not x.size:
        grad_weight[...] = 0
        return
    dense, z, x = target(grad_weight), plain(z), plain(x)
    _plan_of(z, x, dense, g, layout).whole(z, x, dense)
    deliver(dense, grad_weight)


def correlate_ready(z: Array, x: Array, grad_weight: Array, g: ConvGeometry, layout: str) -> Ready:
    """`correlate` of arrays like these, none of them empty."""
    return Program(_plan_of(z, x, grad_weight, g, layout).parts, (z, x, grad_weight), result=2)


def _plan_of(z: Array, x: Array, grad_weight: Array, g: ConvGeometry, layout: str) -> _Plan:
    return _plan(z.shape, x.shape, (z.dtype, x.dtype, grad_weight.dtype), g.axes, layout)


@dataclass(frozen=True)
class _Plan:
    """Both launches and the workspace between them."""

    sum_chunks: Launch
    collect: Launch
    space: int
    dtype: str

    @cached_property
    def parts(self) -> Parts:
        """Both over (z, x, gradient)."""
        room = self.space * np.dtype(self.dtype).itemsize, "sums"
        return Parts([(self.sum_chunks, (0, 1, 3)), (self.collect, (3, 2))], (room,))

    @cached_property
    def whole(self) -> Program:
        return Program(self.parts)


@lru_cache(maxsize=512)
def _plan(
    z_shape: tuple[int, ...],
    x_shape: tuple[int, ...],
    dtypes: tuple[np.dtype[Any], np.dtype[Any], np.dtype[Any]],
    axes: tuple[Axis, ...],
    layout: str,
) -> _Plan:
    stored = dtypes[0].name, dtypes[1].name, dtypes[2].name
    batch, z_channels, _ = split_shape(layout, z_shape)
    missing = (Axis(1, 1, 1, 1, 1, 0, 0),) * (3 - len(axes))
    job = Job(stored, batch, z_channels, split_shape(layout, x_shape)[1], (*missing, *axes))
    if layout == "channels_last":
        group = _together(job)
        return _plan_laid(job, group) if group else _plan_direct(job)
    return _plan_rolled(job) if job.rolls() else _plan_laid(job, 0)


def _together(job: Job) -> int:
    """Vectors of channels that are laid out together in channels_last; 0 where z and x are read where they are."""
    d, h, w = job.axes
    vectors, items = -(-job.channels // _used(job)), -(-ITEMS // job.batch)
    return laid_together(h, w, job.lanes, job.lanes * job.size, vectors, items) if d.kernel == 1 else 0


def _plan_direct(job: Job) -> _Plan:
    """Channels last: z and x are read where they are."""
    _, h, w = job.axes
    used = _used(job)
    vectors = -(-job.channels // used)
    group = min(LARGE_GROUP if job.nbytes() > LARGE else GROUP, vectors)
    groups = -(-vectors // group)
    units = job.batch * job.axes[0].out * h.out
    block, chunks = _chunks(units, groups)
    (z_size, x_size), x_row = job.sizes(), w.size * job.x_channels * job.sizes()[1]
    numbers = {
        "groups": groups,
        "group": group,
        "block": block,
        "units": units,
        "image_units": job.axes[0].out * h.out,
        "z_pixel": job.z_channels * z_size,
        "z_line": w.out * job.z_channels * z_size,
        "x_pixel": job.x_channels * x_size,
        "x_row": x_row,
        "x_tap_row": h.dilation * x_row,
        "x_plane": h.size * x_row,
        "x_image": job.axes[0].size * h.size * x_row,
    }
    tile = tile_of(h, w, narrow=False)
    fixed = {"laid": False, "tail": job.channels < used, "fetches": _fetches(job)}
    return _launches(job, rows, tile, fixed, numbers, used, groups, chunks)


def _fetches(job: Job) -> bool:
    """Whether the next rows are fetched while these are read where they are: rows of many channels, from memory."""
    shared, pixel = max(job.shares()) > 1, job.channels * min(job.sizes())
    return job.axes[0].kernel == 1 and not shared and pixel >= FETCHED and caches.far(job.nbytes(), 0)


def _plan_laid(job: Job, group: int) -> _Plan:
    """Blocks of ``group`` vectors of channels are laid out; 0 where channels come first, and planes are turned."""
    d, h, w = job.axes
    turned, vector = not group, job.lanes * job.size
    used, room = (job.lanes, SCRATCH) if turned else (_used(job), LAID // vector // group)
    tile = tile_of(h, w, narrow=min((w.kernel - 1) * w.dilation, w.size) > SCRATCH // 4)
    cover = cheapest(h, w, tile, job.lanes, room)
    if cover.tap_rows < h.kernel:
        tile = tile._replace(lines=1)
    group, vectors, blocks = max(group, 1), -(-job.channels // used), -(-h.out // cover.height)
    groups, units = -(-vectors // group), job.batch * d.out * blocks
    block, chunks = _chunks(units, groups)
    (z_size, x_size), z_space = job.sizes(), cover.height * cover.width + job.lanes
    steps = {"z_step": z_size * (1 if turned else job.z_channels), "x_step": x_size * (1 if turned else job.x_channels)}
    numbers = {
        "final": job.channels - 1,
        "groups": groups,
        "whole": 0 if max(job.shares()) > 1 else job.channels // job.lanes,
        "space": space(z_space, cover.vectors - cover.height * cover.width, vector) * vector,
        "block": block,
        "units": units,
        "image_units": d.out * blocks,
        "blocks": blocks,
        "block_h": cover.height,
        "block_w": cover.width,
        "tap_rows": cover.tap_rows,
        "tap_columns": cover.tap_columns,
        "z_space": z_space,
        "rolling": int(cover.rolling and d.kernel == 1),
        "x_whole": int(cover.x_width == w.size),
        "z_pixel": vector,
        "z_line": cover.width * vector,
        "x_pixel": vector,
        "x_row": cover.x_width * vector,
        "x_tap_row": h.dilation * cover.x_width * vector,
        "z_channel": d.out * h.out * w.out * z_size,
        "z_image": job.z_channels * d.out * h.out * w.out * z_size,
        "x_channel": d.size * h.size * w.size * x_size,
        "x_plane": h.size * w.size * steps["x_step"],
        "x_image": job.x_channels * d.size * h.size * w.size * x_size,
        **({} if turned else steps),
    }
    scratch = SCRATCH + 2 * job.lanes if turned else LAID // vector
    fetches = units == job.batch and caches.fetched(job.nbytes() * 2 // 3)  # the next image, not part of a large one
    fixed = {"laid": True, "turned": turned, "group": group, "tail": False, "scratch": scratch, "fetches": fetches}
    return _launches(job, laid, tile, fixed | (steps if turned else {}), numbers, used, groups, chunks)


def _plan_rolled(job: Job) -> _Plan:
    """Channels first, wide planes: lanes are columns, and only sums are turned."""
    _, h, w = job.axes
    (z_type, x_type, _), (z_size, x_size), (z_each, x_each) = job.stored, job.sizes(), job.shares()
    height = min(h.out, max(FEW, NEAR // (w.size * x_size)))
    blocks = -(-h.out // height)
    block, chunks = _chunks(job.batch * blocks, job.channels)
    mates = job.mates()
    group = -(-job.channels // (mates * items_of(job.work()))) * mates
    groups = -(-job.channels // group)
    alive = -(-h.kernel // h.stride)
    fetches = caches.fetched(job.nbytes())
    taps = [[[(tap, tap) for tap in range(axis.kernel)]] for axis in (h, w)]
    fixed: dict[str, Fixed] = {
        "dtype": job.dtype,
        "size": job.size,
        "lanes": job.lanes,
        "merges": machine().name == "AVX-512",
        "z_type": z_type,
        "z_size": z_size,
        "z_each": z_each,
        "source_type": x_type,
        "source_size": x_size,
        "x_each": x_each,
        "rows": alive,
        "vectors": 1,
        "splits": 1,
        "mates": mates,
        "parts": 1 if mates > 1 else w.stride,
        "late": (h.kernel - 1) // h.stride,
        "row_taps": written(taps[0]),
        "column_taps": written(taps[1]),
        "row_step": h.stride,
        "column_step": w.stride,
        "turn": alive * h.stride,
        "piece": job.lanes * w.stride * x_size if fetches else 0,
        "z_piece": job.lanes * z_size if fetches else 0,
        "deep": h.kernel,
        "reach": columns_read(job.lanes, w.stride, taps[1]),
    }
    sums = _sums(job, w.kernel, job.lanes)
    sums["last"] = (sums["vectors"] - 1) * job.lanes
    numbers = {
        "channels": job.channels,
        "group": group,
        "groups": groups,
        "channel_vectors": sums["vectors"],
        "sums": sums["sums"],
        "z_channels": job.z_channels,
        "x_channels": job.x_channels,
        "x_end": job.batch * job.x_channels * h.size * w.size,
        "block": block,
        "blocks": blocks,
        "block_h": height,
        "units": job.batch * blocks,
        "height": h.size,
        "width": w.size,
        "out_h": h.out,
        "out_w": w.out,
        "low_h": h.low,
        "low_w": w.low,
    }
    first = Launch(rolled, ("z", "x", "partial"), fixed, numbers, items=groups * chunks, work=job.work())
    return _collected(job, first, sums, chunks)


def _used(job: Job) -> int:
    """Lanes that count of a vector of channels in channels_last."""
    return lanes_used(job.lanes, max(job.shares()))


def _chunks(units: int, across: int) -> tuple[int, int]:
    """Units of a chunk and how many chunks, by the shape alone: `ITEMS` items of ``across`` in parallel already."""
    block = max(1, -(-units // -(-ITEMS // across)))
    return block, -(-units // block)


def _launches(
    job: Job,
    kernel: Kernel,
    tile: Tile,
    layout: Mapping[str, Fixed],
    numbers: Mapping[str, int],
    used: int,
    across: int,
    chunks: int,
) -> _Plan:
    """``across`` · ``chunks`` items that sum, and what adds the chunks' sums of ``used`` channels a vector."""
    d, h, w = job.axes
    (z_type, x_type, _), (z_size, x_size), (z_each, x_each) = job.stored, job.sizes(), job.shares()
    shared: dict[str, Fixed] = {"lanes": job.lanes, "size": job.size, "dtype": job.dtype}
    sums = _sums(job, tile.columns, used)
    steps = {"stride_h": h.stride, "stride_w": w.stride, "dilation_h": h.dilation, "dilation_w": w.dilation}
    known, unknown = (steps, {}) if is_dense(h, w) else ({}, steps)
    operands: dict[str, Fixed] = {"z_type": z_type, "z_size": z_size, "z_each": z_each}
    operands |= {"x_type": x_type, "x_size": x_size, "x_each": x_each}
    first = Launch(
        kernel,
        ("z", "x", "partial"),
        {**shared, **layout, **tile._asdict(), **operands, **known},
        {**numbers, **sums, **unknown, **_extents(d, h, w)},
        items=across * chunks,
        work=job.work(),
    )
    return _collected(job, first, sums, chunks)


def _sums(job: Job, columns: int, used: int) -> dict[str, int]:
    """Where a chunk's sums are: vectors of ``used`` channels, whose taps' columns come ``columns`` at a time."""
    d, h, w = job.axes
    row_sums = -(-w.kernel // columns) * columns
    return {
        "vectors": -(-job.channels // used),
        "used": used,
        "channels": job.channels,
        "last": max(0, job.channels - used),
        "sums": d.kernel * h.kernel * row_sums,
        "depth_sums": h.kernel * row_sums,
        "row_sums": row_sums,
        "kernel_d": d.kernel,
    }


def _collected(job: Job, first: Launch, sums: dict[str, int], chunks: int) -> _Plan:
    """``first``, and what adds its chunks' sums."""
    (d, h, w), out_type, vectors = job.axes, job.stored[2], sums["vectors"]
    taps = d.kernel * h.kernel * w.kernel
    runs = 1 if sums["row_sums"] == w.kernel else d.kernel * h.kernel
    second = Launch(
        collect,
        ("partial", "out"),
        {
            "lanes": job.lanes,
            "size": job.size,
            "dtype": job.dtype,
            "out_type": out_type,
            "out_size": STORED[out_type][1],
        },
        sums | {"chunks": chunks, "runs": runs, "run": taps // runs, "out_channel": taps * STORED[out_type][1]},
        items=vectors,
        work=chunks * vectors * job.lanes * taps,
    )
    space = (chunks * vectors * sums["sums"] + job.lanes) * job.lanes  # squares are read past the last sum
    return _Plan(first, second, space, job.dtype)


def _extents(d: Axis, h: Axis, w: Axis) -> dict[str, int]:
    return {
        "kernel_h": h.kernel,
        "kernel_w": w.kernel,
        "stride_d": d.stride,
        "dilation_d": d.dilation,
        "low_d": d.low,
        "low_h": h.low,
        "low_w": w.low,
        "depth": d.size,
        "height": h.size,
        "width": w.size,
        "out_h": h.out,
        "out_w": w.out,
    }

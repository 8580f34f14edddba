"""CPU kernels for the gradient of a depthwise convolution in its weight: arrays and ints, no validation.

``grad_w[k,t] = Σ_n,o z[n,k,o]·x[n,c,o·stride + t·dilation − low]``: one sum for every channel and tap.

A lane is a channel in both layouts. Where channels come first, blocks of planes are turned on the way (`weight_planes`)
into a scratch that stays in the nearest cache. Work is cut into chunks of rows by the shape alone; each has partial
sums of its own, which a second launch adds in order: no bit depends on the number of threads.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from math import prod
from typing import Any, NamedTuple

import numpy as np

from npdwconv.geometry import Axis, ConvGeometry
from npdwconv.kernels.cpu.arrays import deliver, plain, target
from npdwconv.kernels.cpu.engine import Kernel, Launch
from npdwconv.kernels.cpu.machine import machine
from npdwconv.kernels.cpu.simd import STORED
from npdwconv.kernels.cpu.spec import Fixed
from npdwconv.kernels.cpu.weight_kernels import collect, rows, turned
from npdwconv.layouts import Array, split_shape

WIDE = 8  # at most so many taps of a row in a tile
PIXELS = 7  # of a tile: extents in networks are multiples of it
GROUP, LARGE_GROUP = 4, 16  # vectors of channels, neighbours in memory, that an item walks together
LARGE = 4_000_000  # bytes of z and x above which they come from far away, and longer runs come faster
ITEMS = 8  # that a launch aims at: enough for any number of threads worth having
SCRATCH = 1024  # vectors of one item's turned planes


def correlate(z: Array, x: Array, grad_weight: Array, g: ConvGeometry, layout: str) -> None:
    """grad_w[cM+m,t] = Σ_n,o z[n,cM+m,o]·x[n,c,i]; or with x[n,cM+m,i] and z[n,c,o], where x has more channels."""
    if not grad_weight.size:
        return
    if not z.size or not x.size:
        grad_weight[...] = 0
        return
    dense, z, x = target(grad_weight), plain(z), plain(x)
    _plan(z.shape, x.shape, (z.dtype, x.dtype, dense.dtype), g.axes, layout)(z, x, dense)
    deliver(dense, grad_weight)


class _Plan(NamedTuple):
    """Both launches and the workspace between them."""

    sum_chunks: Launch
    collect: Launch
    space: int
    dtype: str

    def __call__(self, z: Array, x: Array, grad_weight: Array) -> None:
        partial = np.empty(self.space, self.dtype)
        self.sum_chunks(z, x, partial)
        self.collect(partial, grad_weight)


class _Tile(NamedTuple):
    """The taps that a register tile holds, sums for each, and the rows and pixels of z that it takes at once."""

    rows: int
    columns: int
    sets: int
    lines: int
    pixels: int


class _Blocks(NamedTuple):
    """What a turned block of planes covers: rows and columns of z, rows and columns of taps, columns of x."""

    height: int
    width: int
    tap_rows: int
    tap_columns: int
    x_width: int
    vectors: int
    cost: int
    rolling: bool


def _tile(h: Axis, w: Axis, *, narrow: bool) -> _Tile:
    """The largest tile whose sums, with the pixels and the column of x that meet them, stay in registers."""
    columns = 1 if narrow else -(-w.kernel // -(-w.kernel // WIDE))
    fit = 1 if narrow else max(1, (machine().registers - 2 - min(PIXELS, columns)) // columns)
    rows_ = -(-h.kernel // -(-h.kernel // min(h.kernel, fit)))
    lines = 2 if _is_dense(h, w) and (rows_, columns) == (h.kernel, w.kernel) and rows_ * columns <= 9 else 1
    return _Tile(rows_, columns, -(-8 // (rows_ * columns)), lines, PIXELS)


def _is_dense(h: Axis, w: Axis) -> bool:
    """Whether neighbouring pixels share what they read: then strides are compiled in."""
    return max(h.stride, w.stride) <= 2 and h.dilation == w.dilation == 1


def _blocks(h: Axis, w: Axis, tile: _Tile, lanes: int) -> _Blocks:
    """The cheapest cover: of all blocks that fit in the scratch, the one that turns the fewest vectors in all."""
    padded = -(-w.kernel // tile.columns) * tile.columns
    tap_rows = {h.kernel, 1, *(min(h.kernel, m * tile.rows) for m in (1, 2, 4))}
    tap_columns = {padded, *(min(padded, m * tile.columns) for m in (1, 2, 4))}
    widths = {-(-w.out // parts) for parts in range(1, w.out + 1) if parts < 9 or not parts & (parts - 1)} | {1}
    widths |= set(range(2 * lanes, w.out, lanes))
    every = (_block(h, w, lanes, tr, tc, width) for tr in tap_rows for tc in tap_columns for width in widths)
    return min((block for block in every if block is not None), key=lambda block: (block.cost, block))


def _block(h: Axis, w: Axis, lanes: int, tap_rows: int, tap_columns: int, width: int) -> _Blocks | None:
    """The tallest block of that width for these taps; None where none fits."""
    x_width = min(w.size, (width - 1) * w.stride + (tap_columns - 1) * w.dilation + 1)
    rolling = width == w.out and tap_rows == h.kernel and tap_columns >= w.kernel
    for height in sorted({-(-h.out // parts) for parts in range(1, min(h.out, 64) + 1)} | {1}, reverse=True):
        x_height = min(h.size, (height - 1) * h.stride + (tap_rows - 1) * h.dilation + 1)
        vectors = height * width + x_height * x_width
        if vectors <= SCRATCH:
            fresh = min(x_height, height * h.stride) if rolling else x_height
            turns = _turns(height, width, w.out, lanes) + _turns(fresh, x_width, w.size, lanes)
            passes = -(-h.kernel // tap_rows) * -(-w.kernel // tap_columns)
            cost = -(-h.out // height) * -(-w.out // width) * passes * turns
            return _Blocks(height, width, tap_rows, tap_columns, x_width, vectors, cost, rolling)
    return None


def _turns(rows_: int, columns: int, whole: int, lanes: int) -> int:
    """What turning rows × columns costs: whole rows are one long one; a square that is not full counts twice."""
    lines, length = (1, rows_ * columns) if columns == whole else (rows_, columns)
    return lines * (length // lanes + 2 * (length % lanes > 0))


class _Job(NamedTuple):
    """What there is to sum: stored dtypes of z, x and the weight, channels, and the spatial axes, padded to three."""

    stored: tuple[str, str, str]
    batch: int
    z_channels: int
    x_channels: int
    axes: tuple[Axis, ...]  # three

    @property
    def channels(self) -> int:
        return max(self.z_channels, self.x_channels)

    @property
    def dtype(self) -> str:
        """In which sums are kept."""
        return STORED[self.stored[2]][2]

    @property
    def size(self) -> int:
        return STORED[self.dtype][1]

    @property
    def lanes(self) -> int:
        return machine().lanes(self.size)

    def sizes(self) -> tuple[int, int]:
        """Bytes of a stored value of z and of x."""
        return STORED[self.stored[0]][1], STORED[self.stored[1]][1]

    def nbytes(self) -> int:
        """Of z and x."""
        outs, sizes = [axis.out for axis in self.axes], [axis.size for axis in self.axes]
        z_size, x_size = self.sizes()
        return self.batch * (self.z_channels * prod(outs) * z_size + self.x_channels * prod(sizes) * x_size)

    def work(self) -> int:
        """Multiply-adds."""
        outs, taps = [axis.out for axis in self.axes], [axis.kernel for axis in self.axes]
        return self.batch * self.channels * prod(outs) * prod(taps)


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
    job = _Job(stored, batch, z_channels, split_shape(layout, x_shape)[1], (*missing, *axes))
    return _plan_turned(job) if layout == "channels_first" else _plan_direct(job)


def _plan_direct(job: _Job) -> _Plan:
    """Channels last: z and x are read where they are."""
    _, h, w = job.axes
    each = max(_shares(job))
    used = job.lanes if each > job.lanes else job.lanes // each * each
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
    tile = _tile(h, w, narrow=False)
    return _launches(job, rows, tile, {"turned": False, "tail": job.channels < used}, numbers, used, groups, chunks)


def _plan_turned(job: _Job) -> _Plan:
    """Channels first: blocks of planes are turned."""
    d, h, w = job.axes
    tile = _tile(h, w, narrow=min((w.kernel - 1) * w.dilation, w.size) > SCRATCH // 4)
    cover = _blocks(h, w, tile, job.lanes)
    if cover.tap_rows < h.kernel:
        tile = tile._replace(lines=1)
    vectors, blocks = -(-job.channels // job.lanes), -(-h.out // cover.height)
    units = job.batch * d.out * blocks
    block, chunks = _chunks(units, vectors)
    (z_size, x_size), vector = job.sizes(), job.lanes * job.size
    space = cover.height * cover.width + job.lanes
    numbers = {
        "final": job.channels - 1,
        "block": block,
        "units": units,
        "image_units": d.out * blocks,
        "blocks": blocks,
        "block_h": cover.height,
        "block_w": cover.width,
        "tap_rows": cover.tap_rows,
        "tap_columns": cover.tap_columns,
        "z_space": space,
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
        "x_plane": h.size * w.size * x_size,
        "x_image": job.x_channels * d.size * h.size * w.size * x_size,
    }
    fixed = {"turned": True, "tail": False, "scratch": SCRATCH + 2 * job.lanes}
    return _launches(job, turned, tile, fixed, numbers, job.lanes, vectors, chunks)


def _shares(job: _Job) -> tuple[int, int]:
    """Channels of the weight for each channel of z and of x."""
    return job.channels // job.z_channels, job.channels // job.x_channels


def _chunks(units: int, across: int) -> tuple[int, int]:
    """Units of a chunk and how many chunks, by the shape alone: `ITEMS` items of ``across`` in parallel already."""
    block = max(1, -(-units // -(-ITEMS // across)))
    return block, -(-units // block)


def _launches(
    job: _Job,
    kernel: Kernel,
    tile: _Tile,
    layout: Mapping[str, Fixed],
    numbers: Mapping[str, int],
    used: int,
    across: int,
    chunks: int,
) -> _Plan:
    """``across`` · ``chunks`` items that sum, and what adds the chunks' sums of ``used`` channels a vector."""
    d, h, w = job.axes
    (z_type, x_type, out_type), (z_size, x_size), (z_each, x_each) = job.stored, job.sizes(), _shares(job)
    vectors = -(-job.channels // used)
    row_sums = -(-w.kernel // tile.columns) * tile.columns
    depth_sums = h.kernel * row_sums
    shared: dict[str, Fixed] = {"lanes": job.lanes, "size": job.size, "dtype": job.dtype}
    sums = {
        "vectors": vectors,
        "used": used,
        "channels": job.channels,
        "last": max(0, job.channels - used),
        "sums": d.kernel * depth_sums,
        "depth_sums": depth_sums,
        "row_sums": row_sums,
        "kernel_d": d.kernel,
    }
    steps = {"stride_h": h.stride, "stride_w": w.stride, "dilation_h": h.dilation, "dilation_w": w.dilation}
    known, unknown = (steps, {}) if _is_dense(h, w) else ({}, steps)
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
    taps = d.kernel * h.kernel * w.kernel
    runs = 1 if row_sums == w.kernel else d.kernel * h.kernel
    second = Launch(
        collect,
        ("partial", "out"),
        shared | {"out_type": out_type, "out_size": STORED[out_type][1]},
        sums | {"chunks": chunks, "runs": runs, "run": taps // runs, "out_channel": taps * STORED[out_type][1]},
        items=vectors,
        work=chunks * vectors * job.lanes * taps,
    )
    space = (chunks * vectors * d.kernel * depth_sums + job.lanes) * job.lanes  # squares are read past the last sum
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

"""CPU kernels for the gradient of a depthwise convolution in its weight: arrays and ints, no validation.

``grad_w[k,t] = Σ_n,o z[n,k,o]·x[n,c,o·stride + t·dilation − low]``: one sum for every channel and tap.

A lane is a channel in both layouts. Where channels come first, blocks of planes are turned on the way (`weight_planes`)
into a scratch that stays in the nearest cache. Work is cut into chunks of rows by the shape alone; each has partial
sums of its own, which a second launch adds in order: no bit depends on the number of threads.
"""

from __future__ import annotations

from functools import lru_cache
from math import prod
from typing import NamedTuple

import numpy as np

from npdwconv.geometry import Axis, ConvGeometry
from npdwconv.kernels.cpu import weight_planes as planes
from npdwconv.kernels.cpu import weight_tiles as tiles
from npdwconv.kernels.cpu.engine import Kernel, Launch, compiled
from npdwconv.kernels.cpu.epilogue import plain
from npdwconv.kernels.cpu.machine import machine
from npdwconv.kernels.cpu.simd import STORED
from npdwconv.kernels.cpu.spec import Fixed
from npdwconv.layouts import Array, split_shape

WIDE = 8  # at most so many taps of a row in a tile
PIXELS = 7  # of a tile: extents in networks are multiples of it
GROUP = 4  # vectors of channels that an item walks together: neighbours in memory
ITEMS = 8  # that a launch aims at: enough for any number of threads worth having
SCRATCH = 1024  # vectors of one item's turned planes


@compiled
def _walk(task, place, z, x, top, taps, several, columns, pixels, left):  # type: ignore[no-untyped-def] - compiled by Numba
    """One row of z, or ``task.lines`` of them, against the taps of ranges ``taps`` and ``columns``: q in ``pixels``."""
    vector = task.lanes * task.size
    for r in range(taps[0], taps[1], task.rows):
        base = min(r, task.kernel_h - task.rows)
        low = r - base
        high = min(low + task.rows, taps[1] - base)
        row = x + (top + base * task.dilation_h) * task.x_row
        for s in range(columns[0], columns[1], task.columns):
            at = place + (base * task.row_sums + s) * vector
            shift = s * task.dilation_w - task.low_w
            reach = shift + (task.columns - 1) * task.dilation_w
            q = max((max(-reach, 0) + task.stride_w - 1) // task.stride_w, pixels[0])
            end = min((task.width - 1 - shift) // task.stride_w + 1, pixels[1])
            sums = tiles.load_sums(task, at)
            if several:
                while q + task.pixels <= end:
                    j = q * task.stride_w + shift
                    sums = tiles.tile_lines(task, sums, z + q * task.z_pixel, row + j * task.x_pixel, j, low, high, left)
                    q += task.pixels
                while q < end:
                    j = q * task.stride_w + shift
                    sums = tiles.pixel_lines(task, sums, z + q * task.z_pixel, row + j * task.x_pixel, j, low, high, left)
                    q += 1
            elif high - low == task.rows:
                while q + task.pixels <= end:
                    j = q * task.stride_w + shift
                    sums = tiles.tile_full(task, sums, z + q * task.z_pixel, row + j * task.x_pixel, j, low, high, left)
                    q += task.pixels
                while q < end:
                    j = q * task.stride_w + shift
                    sums = tiles.pixel_full(task, sums, z + q * task.z_pixel, row + j * task.x_pixel, j, low, high, left)
                    q += 1
            else:
                while q + task.pixels <= end:
                    j = q * task.stride_w + shift
                    sums = tiles.tile_clipped(task, sums, z + q * task.z_pixel, row + j * task.x_pixel, j, low, high, left)
                    q += task.pixels
                while q < end:
                    j = q * task.stride_w + shift
                    sums = tiles.pixel_clipped(task, sums, z + q * task.z_pixel, row + j * task.x_pixel, j, low, high, left)
                    q += 1
            tiles.store_sums(task, sums, at)


@compiled
def _reach(first, taps, size, dilation):  # type: ignore[no-untyped-def] - compiled by Numba
    """The taps that read inputs: t with 0 ≤ first + t·dilation < size."""
    return (max(-first, 0) + dilation - 1) // dilation, min((size - 1 - first) // dilation + 1, taps)


@compiled
def _several(task, top, p, limit):  # type: ignore[no-untyped-def] - compiled by Numba
    """Whether ``task.lines`` rows from p on are there and none of their taps falls in padding."""
    bottom = top + (task.lines - 1) * task.stride_h + (task.rows - 1) * task.dilation_h
    return task.lines > 1 and top >= 0 and bottom < task.height and p + task.lines <= limit


def _rows(task, item):  # type: ignore[no-untyped-def] - compiled by Numba
    """Channels last: a group of vectors of channels over a chunk of rows."""
    group = item % task.groups
    chunk = item // task.groups
    v0 = group * task.group
    v1 = min(v0 + task.group, task.vectors)
    vector = task.lanes * task.size
    start = task.partial + (chunk * task.vectors + v0) * task.sums * vector
    for place in range(start, start + (v1 - v0) * task.sums * vector, vector):
        tiles.clear(task, place)
    line = chunk * task.block
    end = min(line + task.block, task.units)
    while line < end:
        n = line // task.image_units
        o = line % task.image_units // task.out_h
        p = line % task.out_h
        front = o * task.stride_d - task.low_d
        top = p * task.stride_h - task.low_h
        depths = _reach(front, task.kernel_d, task.depth, task.dilation_d)
        taps = _reach(top, task.kernel_h, task.height, task.dilation_h)
        several = _several(task, top, p, min(task.out_h, p + end - line))
        z = task.z + line * task.z_line
        line += task.lines if several else 1
        for d in range(depths[0], depths[1]):
            x = task.x + n * task.x_image + (front + d * task.dilation_d) * task.x_plane
            for v in range(v0, v1):
                c = min(v * task.used, task.last)
                place = start + ((v - v0) * task.sums + d * task.depth_sums) * vector
                zc = z + c // task.z_each * task.z_size
                xc = x + c // task.x_each * task.x_size
                _walk(task, place, zc, xc, top, taps, several, (0, task.kernel_w), (0, task.out_w), task.channels - c)


@compiled
def _copy_z(task, source, c, rows, columns, out):  # type: ignore[no-untyped-def] - compiled by Numba
    """Turn rows × columns of z's planes."""
    lines, length = (1, rows * columns) if columns == task.out_w else (rows, columns)
    for line in range(lines):
        at = source + line * task.out_w * task.z_size
        to = out + line * task.z_line
        full = length // task.lanes * task.lanes
        for f in range(0, full, task.lanes):
            planes.z_full(task, at + f * task.z_size, c, task.lanes, to + f * task.z_pixel)
        if full < length:
            planes.z_some(task, at + full * task.z_size, c, length - full, to + full * task.z_pixel)


@compiled
def _copy_x(task, source, c, rows, columns, out):  # type: ignore[no-untyped-def] - compiled by Numba
    """Turn rows × columns of x's planes."""
    lines, length = (1, rows * columns) if columns == task.width else (rows, columns)
    for line in range(lines):
        at = source + line * task.width * task.x_size
        to = out + line * task.x_row
        full = length // task.lanes * task.lanes
        for f in range(0, full, task.lanes):
            planes.x_full(task, at + f * task.x_size, c, task.lanes, to + f * task.x_pixel)
        if full < length:
            planes.x_some(task, at + full * task.x_size, c, length - full, to + full * task.x_pixel)


@compiled
def _patch(task, c, place, x_at, z_at, ps, qs, rs, ss, scratch_x, have):  # type: ignore[no-untyped-def] - compiled by Numba
    """A block of z's pixels, turned already, against a block of taps: turn what they read of x, and walk.

    ``have`` is the range of rows of x that the scratch holds already; what it holds afterwards is returned.
    """
    i0 = max(ps[0] * task.stride_h + rs[0] * task.dilation_h - task.low_h, 0)
    i1 = min((ps[1] - 1) * task.stride_h + (rs[1] - 1) * task.dilation_h - task.low_h + 1, task.height)
    j0 = max(qs[0] * task.stride_w + ss[0] * task.dilation_w - task.low_w, 0)
    j1 = min((qs[1] - 1) * task.stride_w + (ss[1] - 1) * task.dilation_w - task.low_w + 1, task.width)
    if i0 >= i1 or j0 >= j1:
        return have
    if task.x_whole:
        j0, j1 = 0, task.width
    kept = max(min(have[1], i1) - i0, 0)
    moved = (i0 - have[0]) * task.x_row
    for at in range(scratch_x, scratch_x + kept * task.x_row, task.x_pixel):
        tiles.move(task, at, at + moved)
    first = i0 + kept
    _copy_x(task, x_at + (first * task.width + j0) * task.x_size, c, i1 - first, j1 - j0, scratch_x + kept * task.x_row)
    x = scratch_x - i0 * task.x_row - j0 * task.x_pixel
    p = ps[0]
    while p < ps[1]:
        top = p * task.stride_h - task.low_h
        taps = _reach(top, task.kernel_h, task.height, task.dilation_h)
        several = _several(task, top, p, ps[1])
        z = z_at + (p - ps[0]) * task.z_line - qs[0] * task.z_pixel
        _walk(task, place, z, x, top, (max(taps[0], rs[0]), min(taps[1], rs[1])), several, ss, qs, task.lanes)
        p += task.lines if several else 1
    return i0, i1


def _planes(task, item):  # type: ignore[no-untyped-def] - compiled by Numba
    """Channels first: a vector of channels over a chunk of blocks of rows."""
    v = item % task.vectors
    chunk = item // task.vectors
    vector = task.lanes * task.size
    c = min(v * task.used, task.last)
    start = task.partial + item * task.sums * vector
    for place in range(start, start + task.sums * vector, vector):
        tiles.clear(task, place)
    z_at = planes.scratch(task)
    x_at = z_at + task.z_space * vector
    have = (0, 0)
    for unit in range(chunk * task.block, min((chunk + 1) * task.block, task.units)):
        if not task.rolling or unit % task.blocks == 0:
            have = (0, 0)
        n = unit // task.image_units
        o = unit % task.image_units // task.blocks
        p0 = unit % task.blocks * task.block_h
        ps = (p0, min(p0 + task.block_h, task.out_h))
        front = o * task.stride_d - task.low_d
        depths = _reach(front, task.kernel_d, task.depth, task.dilation_d)
        for q0 in range(0, task.out_w, task.block_w):
            qs = (q0, min(q0 + task.block_w, task.out_w))
            z = task.z + n * task.z_image + ((o * task.out_h + p0) * task.out_w + q0) * task.z_size
            _copy_z(task, z, c, ps[1] - p0, qs[1] - q0, z_at)
            for d in range(depths[0], depths[1]):
                x = task.x + n * task.x_image + (front + d * task.dilation_d) * task.x_plane
                place = start + d * task.depth_sums * vector
                for r in range(0, task.kernel_h, task.tap_rows):
                    rs = (r, min(r + task.tap_rows, task.kernel_h))
                    for s in range(0, task.kernel_w, task.tap_columns):
                        ss = (s, min(s + task.tap_columns, task.row_sums))
                        found = _patch(task, c, place, x, z_at, ps, qs, rs, ss, x_at, have)
                        if task.rolling:
                            have = found


def _collect(task, item):  # type: ignore[no-untyped-def] - compiled by Numba
    """Add the chunks' sums of one vector of channels, in order, and write them a channel at a time."""
    vector = task.lanes * task.size
    block = task.sums * vector
    base = task.partial + item * block
    c = min(item * task.used, task.last)
    for chunk in range(1, task.chunks):
        other = base + chunk * task.vectors * block
        for place in range(0, block, vector):
            tiles.add(task, base + place, other + place)
    out = task.out + c * task.out_channel
    for run in range(task.runs):
        for s in range(0, task.run, task.lanes):
            planes.spread(task, base + (run * task.row_sums + s) * vector, out, task.run - s, task.channels - c)
            out += min(task.lanes, task.run - s) * task.out_size


rows, turned, collect = Kernel(_rows), Kernel(_planes), Kernel(_collect)


def correlate(z: Array, x: Array, grad_weight: Array, g: ConvGeometry, layout: str) -> None:
    """grad_w[cM+m,t] = Σ_n,o z[n,cM+m,o]·x[n,c,i]; or with x[n,cM+m,i] and z[n,c,o], where x has more channels."""
    if not grad_weight.size:
        return
    if not z.size or not x.size:
        grad_weight[...] = 0
        return
    dense = grad_weight if plain(grad_weight) else np.empty(grad_weight.shape, grad_weight.dtype)
    z, x = (a if plain(a) else np.array(a, order="C") for a in (z, x))
    _plan(z.shape, x.shape, (z.dtype.name, x.dtype.name, dense.dtype.name), g.axes, layout)(z, x, dense)
    if dense is not grad_weight:
        grad_weight[...] = dense


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
    axes: tuple[Axis, Axis, Axis]

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

    def work(self) -> int:
        """Multiply-adds."""
        outs, taps = ([getattr(axis, name) for axis in self.axes] for name in ("out", "kernel"))
        return self.batch * self.channels * prod(outs) * prod(taps)


@lru_cache(maxsize=512)
def _plan(
    z_shape: tuple[int, ...], x_shape: tuple[int, ...], stored: tuple[str, str, str], axes: tuple[Axis, ...], layout: str
) -> _Plan:
    batch, z_channels, _ = split_shape(layout, z_shape)
    missing = (Axis(1, 1, 1, 1, 1, 0, 0),) * (3 - len(axes))
    job = _Job(stored, batch, z_channels, split_shape(layout, x_shape)[1], (*missing, *axes))  # type: ignore[arg-type] - three
    return _plan_turned(job) if layout == "channels_first" else _plan_direct(job)


def _plan_direct(job: _Job) -> _Plan:
    """Channels last: z and x are read where they are."""
    _, h, w = job.axes
    each = max(_shares(job))
    used = job.lanes if each > job.lanes else job.lanes // each * each
    vectors = -(-job.channels // used)
    group = min(GROUP, vectors)
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
    job: _Job, kernel: Kernel, tile: _Tile, layout: dict[str, Fixed], numbers: dict[str, int], used: int, across: int, chunks: int
) -> _Plan:
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
    operands = {"z_type": z_type, "x_type": x_type, "z_size": z_size, "x_size": x_size, "z_each": z_each, "x_each": x_each}
    first = Launch(
        kernel,
        ("z", "x", "partial"),
        shared | layout | tile._asdict() | operands | known,
        numbers | sums | unknown | _extents(d, h, w),
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

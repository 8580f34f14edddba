"""Kernels of the weight gradient: rows where they are, blocks that are laid out in a scratch, and their sum.

A lane is a channel in all of them. Every item has sums of its own, a vector a tap, in a workspace; `collect` adds those
of the chunks.
"""

from __future__ import annotations

from typing import Any

from npdwconv.kernels.cpu import weight_planes as planes
from npdwconv.kernels.cpu import weight_tiles as tiles
from npdwconv.kernels.cpu.arrays import LINE
from npdwconv.kernels.cpu.engine import Kernel, compiled, inlined


def _row(tile: Any, pixel: Any) -> Any:
    @inlined
    def row(task: Any, sums: Any, z: Any, x: Any, shift: Any, q: Any, end: Any, low: Any, high: Any, left: Any) -> Any:
        """Add what the pixels of a row, from ``q`` to ``end``, give to the sums of a block of taps, of rows of them
        those from ``low`` to ``high``; the first tap of pixel 0 meets column ``shift`` of the row at ``x``.
        """
        while q + task.pixels <= end:
            j = q * task.stride_w + shift
            sums = tile(task, sums, z + q * task.z_pixel, x + j * task.x_pixel, j, low, high, left)
            q += task.pixels
        while q < end:
            j = q * task.stride_w + shift
            sums = pixel(task, sums, z + q * task.z_pixel, x + j * task.x_pixel, j, low, high, left)
            q += 1
        return sums

    return row


_lines = _row(tiles.tile_lines, tiles.pixel_lines)
_full = _row(tiles.tile_full, tiles.pixel_full)
_clipped = _row(tiles.tile_clipped, tiles.pixel_clipped)


@compiled
def _walk(task: Any, place: Any, z: Any, x: Any, ps: Any, qs: Any, rs: Any, ss: Any, left: Any) -> None:
    """The pixels of rows ``ps`` and columns ``qs`` of z, from ``z`` on, against the taps of ranges ``rs`` and ``ss``.

    ``x`` is where row 0 is, ``z`` the first of the rows. A block of taps keeps its sums over all of the rows.
    """
    vector = task.lanes * task.size
    for r in range(rs[0], rs[1], task.rows):
        base = min(r, task.kernel_h - task.rows)
        for s in range(ss[0], ss[1], task.columns):
            at = place + (base * task.row_sums + s) * vector
            shift = s * task.dilation_w - task.low_w
            reach = shift + (task.columns - 1) * task.dilation_w
            q = max((max(-reach, 0) + task.stride_w - 1) // task.stride_w, qs[0])
            end = min((task.width - 1 - shift) // task.stride_w + 1, qs[1])
            sums = tiles.load_sums(task, at)
            p, zp = ps[0], z
            while p < ps[1]:
                top = p * task.stride_h - task.low_h
                row = x + (top + base * task.dilation_h) * task.x_row
                taps = _reach(top, task.kernel_h, task.height, task.dilation_h)
                low, high = max(r, taps[0]) - base, min(min(base + task.rows, rs[1]), taps[1]) - base
                done = 1
                if task.lines > 1 and _several(task, top, p, ps[1]):
                    sums = _lines(task, sums, zp, row, shift, q, end, low, high, left)
                    done = task.lines
                elif (task.lines == 1 or task.rows == 1) and high - low == task.rows:
                    sums = _full(task, sums, zp, row, shift, q, end, low, high, left)
                elif low < high:
                    sums = _clipped(task, sums, zp, row, shift, q, end, low, high, left)
                p += done
                zp += done * task.z_line
            tiles.store_sums(task, sums, at)


@compiled
def _reach(first: Any, taps: Any, size: Any, dilation: Any) -> Any:
    """The taps that read inputs: t with 0 ≤ first + t·dilation < size."""
    return (max(-first, 0) + dilation - 1) // dilation, min((size - 1 - first) // dilation + 1, taps)


@compiled
def _several(task: Any, top: Any, p: Any, limit: Any) -> Any:
    """Whether ``task.lines`` rows from p on are there and none of their taps falls in padding."""
    bottom = top + (task.lines - 1) * task.stride_h + (task.rows - 1) * task.dilation_h
    return task.lines > 1 and top >= 0 and bottom < task.height and p + task.lines <= limit


@compiled
def _fetch_rows(task: Any, z: Any, x: Any, ps: Any, v0: Any, v1: Any, v: Any) -> None:
    """Ask for what as many rows behind ``ps`` read of the vectors of channels ``v0`` to ``v1``: the share of ``v``.

    ``z`` is where the first of the rows is, ``x`` where row 0 is.
    """
    lines = ps[1] - ps[0]
    below = (ps[1] - 1) * task.stride_h - task.low_h + (task.kernel_h - 1) * task.dilation_h + 1
    first, run = v0 * task.lanes, (v1 - v0) * task.lanes
    z += lines * task.z_line + first * task.z_size
    x += below * task.x_row + first * task.x_size
    _fetch(task, z, lines * task.out_w, task.z_pixel, run * task.z_size, v - v0, v1 - v0)
    _fetch(task, x, lines * task.stride_h * task.width, task.x_pixel, run * task.x_size, v - v0, v1 - v0)


@compiled
def _fetch(task: Any, first: Any, pixels: Any, pixel: Any, run: Any, share: Any, shares: Any) -> None:
    """Ask for a share of ``run`` bytes of each of the ``pixels`` from ``first`` on, in the order of memory."""
    for i in range(pixels * share // shares, pixels * (share + 1) // shares):
        for place in range(0, run, LINE):
            tiles.fetch(task, first + i * pixel + place)


def _rows(task: Any, item: Any) -> None:
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
        ps = (p, p + (task.lines if _several(task, top, p, min(task.out_h, p + end - line)) else 1))
        z = task.z + line * task.z_line
        line += ps[1] - p
        for d in range(depths[0], depths[1]):
            x = task.x + n * task.x_image + (front + d * task.dilation_d) * task.x_plane
            for v in range(v0, v1):
                c = min(v * task.used, task.last)
                place = start + ((v - v0) * task.sums + d * task.depth_sums) * vector
                zc = z + c // task.z_each * task.z_size
                xc = x + c // task.x_each * task.x_size
                _walk(
                    task, place, zc, xc, ps, (0, task.out_w), (0, task.kernel_h), (0, task.kernel_w), task.channels - c
                )
                if task.fetches:
                    _fetch_rows(task, z, x, ps, v0, v1, v)


def _laying(side: str) -> Any:
    turn, turn_some, lay, lay_some = planes.sides[side]

    @inlined
    def copy(
        task: Any,
        source: Any,
        v0: Any,
        count: Any,
        pixels: Any,
        step: Any,
        size: Any,
        each: Any,
        out: Any,
        pixel: Any,
        ahead: Any,
    ) -> None:
        """Lay out neighbouring pixels at ``source`` for ``count`` vectors of channels, each of them in its own block.

        A pixel is ``step`` bytes behind the last, and a vector of it ``pixel`` bytes; what is laid out next lies
        ``ahead`` bytes further on.
        """
        if task.turned:
            c, full = min(v0 * task.used, task.last), pixels // task.lanes * task.lanes
            for f in range(0, full, task.lanes):
                turn(task, source + f * step, c, task.lanes, out + f * pixel, ahead)
            if full < pixels:
                turn_some(task, source + full * step, c, pixels - full, out + full * pixel, ahead)
        elif v0 + task.group <= task.whole:
            at = source + v0 * task.lanes * size
            for to in range(out, out + pixels * pixel, pixel):
                lay(task, at, to, ahead)
                at += step
        else:
            for v in range(count):
                c = min((v0 + v) * task.used, task.last)
                at = source + c // each * size
                for to in range(out + v * task.space, out + v * task.space + pixels * pixel, pixel):
                    lay_some(task, at, to, task.channels - c)
                    at += step

    return copy


_lay_z, _lay_x = _laying("z"), _laying("x")


@inlined
def _copy_z(task: Any, source: Any, v0: Any, count: Any, rows: Any, columns: Any, out: Any, ahead: Any) -> None:
    """Lay out rows × columns of z."""
    lines, length = (1, rows * columns) if columns == task.out_w else (rows, columns)
    for line in range(lines):
        at, to = source + line * task.out_w * task.z_step, out + line * task.z_line
        _lay_z(task, at, v0, count, length, task.z_step, task.z_size, task.z_each, to, task.z_pixel, ahead)


@inlined
def _copy_x(task: Any, source: Any, v0: Any, count: Any, rows: Any, columns: Any, out: Any, ahead: Any) -> None:
    """Lay out rows × columns of x."""
    lines, length = (1, rows * columns) if columns == task.width else (rows, columns)
    for line in range(lines):
        at, to = source + line * task.width * task.x_step, out + line * task.x_row
        _lay_x(task, at, v0, count, length, task.x_step, task.x_size, task.x_each, to, task.x_pixel, ahead)


@inlined
def _patch(
    task: Any,
    v0: Any,
    count: Any,
    place: Any,
    x_at: Any,
    z_at: Any,
    ps: Any,
    qs: Any,
    rs: Any,
    ss: Any,
    scratch_x: Any,
    have: Any,
    more: Any,
) -> Any:
    """A block of z's pixels, laid out already, against a block of taps: lay out what they read of x, and walk.

    ``have`` is the range of rows of x that the scratch holds already; what it holds afterwards is returned. ``more`` is
    1 where an image follows, which is fetched meanwhile, else 0.
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
    for v in range(count):
        first = scratch_x + v * task.space
        for at in range(first, first + kept * task.x_row, task.x_pixel):
            tiles.move(task, at, at + moved)
    first = i0 + kept
    source = x_at + (first * task.width + j0) * task.x_step
    _copy_x(task, source, v0, count, i1 - first, j1 - j0, scratch_x + kept * task.x_row, more * task.x_image)
    for v in range(count):
        x = scratch_x + v * task.space - i0 * task.x_row - j0 * task.x_pixel
        z = z_at + v * task.space - qs[0] * task.z_pixel
        _walk(task, place + v * task.sums * task.x_pixel, z, x, ps, qs, rs, ss, task.lanes)
    return i0, i1


def _blocks(task: Any, item: Any) -> None:
    """A group of vectors of channels over a chunk of blocks of rows, which are laid out, and walked from there."""
    v0 = item % task.groups * task.group
    count = min(task.group, task.vectors - v0)
    chunk = item // task.groups
    vector = task.lanes * task.size
    start = task.partial + (chunk * task.vectors + v0) * task.sums * vector
    for place in range(start, start + count * task.sums * vector, vector):
        tiles.clear(task, place)
    z_at = planes.scratch(task)
    x_at = z_at + task.z_space * vector
    have = nothing = start * 0, start * 0  # of the type that `_patch` returns, which is compiled for each
    end = min((chunk + 1) * task.block, task.units)
    for unit in range(chunk * task.block, end):
        more = 1 if unit + task.image_units < end else 0
        if not task.rolling or unit % task.blocks == 0:
            have = nothing
        n = unit // task.image_units
        o = unit % task.image_units // task.blocks
        p0 = unit % task.blocks * task.block_h
        ps = (p0, min(p0 + task.block_h, task.out_h))
        front = o * task.stride_d - task.low_d
        depths = _reach(front, task.kernel_d, task.depth, task.dilation_d)
        for q0 in range(0, task.out_w, task.block_w):
            qs = (q0, min(q0 + task.block_w, task.out_w))
            z = task.z + n * task.z_image + ((o * task.out_h + p0) * task.out_w + q0) * task.z_step
            _copy_z(task, z, v0, count, ps[1] - p0, qs[1] - q0, z_at, more * task.z_image)
            for d in range(depths[0], depths[1]):
                x = task.x + n * task.x_image + (front + d * task.dilation_d) * task.x_plane
                place = start + d * task.depth_sums * vector
                for r in range(0, task.kernel_h, task.tap_rows):
                    rs = (r, min(r + task.tap_rows, task.kernel_h))
                    for s in range(0, task.kernel_w, task.tap_columns):
                        ss = (s, min(s + task.tap_columns, task.row_sums))
                        found = _patch(task, v0, count, place, x, z_at, ps, qs, rs, ss, x_at, have, more)
                        if task.rolling:
                            have = found


def _collect(task: Any, item: Any) -> None:
    """Add the chunks' sums of one vector of channels, in order, and write them a channel at a time."""
    vector = task.lanes * task.size
    block = task.sums * vector
    base = task.partial + item * block
    c = min(item * task.used, task.last)
    for chunk in range(1, task.chunks):
        other = base + chunk * task.vectors * block
        for place in range(0, block, vector):
            tiles.add(task, base + place, other + place)
    count = min(task.used, task.channels - c)  # the lanes behind them are another item's
    out = task.out + c * task.out_channel
    for run in range(task.runs):
        for s in range(0, task.run, task.lanes):
            planes.spread(task, base + (run * task.row_sums + s) * vector, out, task.run - s, count)
            out += min(task.lanes, task.run - s) * task.out_size


rows, laid, collect = Kernel(_rows), Kernel(_blocks), Kernel(_collect)

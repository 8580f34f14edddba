"""Dense depthwise correlations in channels_last: lanes are channels.

An item is an image, a block of rows and a block of channels. Rows of taps that lie above or below the image are left
out of a tile's loop; columns beside it are masked: padding reads nothing, whatever the weights hold.
"""

from __future__ import annotations

from functools import lru_cache
from math import gcd, prod
from typing import Any, NamedTuple

import numpy as np

from npdwconv.kernels.cpu.engine import SMALL, Kernel, Launch, compiled
from npdwconv.kernels.cpu.machine import machine
from npdwconv.kernels.cpu.phases import Sweep, Sweeps
from npdwconv.kernels.cpu.pixels import (
    both_at_edge,
    both_inside,
    finish,
    lower_at_edge,
    lower_inside,
    pack_taps,
    start,
    upper_at_edge,
    upper_inside,
)
from npdwconv.kernels.cpu.pool import run_all
from npdwconv.kernels.cpu.simd import STORED
from npdwconv.kernels.cpu.spec import Fixed
from npdwconv.layouts import Array
from npdwconv.threads import get_num_threads

POINTERS = ("x", "weight", "bias", "out", "other")
WIDEST = 32  # taps of a row that are unrolled; beyond, and at rare strides and dilations, one tap at a time
MANY = 8  # vectors of channels beside which one more, so that the others begin with cache lines, is little
L1_BYTES, L2_BYTES = 40_000, 1_500_000  # what a core's caches hold beside everything else


def _first_tap(low: Any, dilation: Any) -> Any:
    """The first tap whose source exists, ``low`` being how far before the image the window begins."""
    return (max(low, 0) + dilation - 1) // dilation


def _last_tap(low: Any, size: Any, taps: Any, dilation: Any) -> Any:
    """One past the last tap whose source exists."""
    return min((size - 1 + low) // dilation + 1, taps)


first_tap, last_tap = compiled(_first_tap), compiled(_last_tap)


def _adder(upper: Any, both: Any, lower: Any) -> Any:
    """What adds all taps to a tile, an input row at a time: one for edges, so that only these look at columns.

    An input row reaches the tile's upper row of sums, its lower one, or both.
    """

    def add(
        task: Any, sums: Any, source: Any, taps: Any, c: Any, before: Any, t0: Any, t1: Any, r0: Any, r1: Any, one: Any
    ) -> Any:
        left = task.channels - c
        alone = task.kernel_h if one else 1
        for m in range(task.fold):
            for t in range(t0, t1):
                x = source + (m + t * task.dilation_d * task.x_plane) * task.x_size
                w = taps + m * task.weight_fold + t * task.weight_plane
                for s in range(0, task.kernel_w, task.taps_w):
                    shift = s * task.dilation_w
                    xs, ws = x + shift * task.x_pixel * task.x_size, w + s * task.weight_tap
                    low = before - shift
                    for r in range(r0, min(r1, alone)):
                        sums = upper(task, sums, xs + r * task.x_down, ws + r * task.weight_row, c, left, low)
                    if task.rows > 1:
                        for r in range(max(r0, alone), min(r1, task.kernel_h)):
                            sums = both(task, sums, xs + r * task.x_down, ws + r * task.weight_row, c, left, low)
                        for r in range(max(r0, task.kernel_h), r1):
                            sums = lower(task, sums, xs + r * task.x_down, ws + r * task.weight_row, c, left, low)
        return sums

    return compiled(add, inline="always")


add_inside = _adder(upper_inside, both_inside, lower_inside)
add_at_edge = _adder(upper_at_edge, both_at_edge, lower_at_edge)


def _add(
    task: Any, sums: Any, source: Any, taps: Any, c: Any, before: Any, t0: Any, t1: Any, r0: Any, r1: Any, one: Any
) -> Any:
    """All taps, where tiles begin anywhere in a row."""
    reach = (task.pixels - 1) * task.stride_w + (task.kernel_w - 1) * task.dilation_w - before
    if before <= 0 and reach < task.width:
        return add_inside(task, sums, source, taps, c, before, t0, t1, r0, r1, one)
    return add_at_edge(task, sums, source, taps, c, before, t0, t1, r0, r1, one)


def _correlator(add: Any) -> Any:
    def correlate(task: Any, item: Any) -> None:
        strip_block = item % task.channel_blocks
        rest = item // task.channel_blocks
        row_block = rest % task.row_blocks
        plane = rest // task.row_blocks
        image, o = plane // task.out_d, plane % task.out_d
        begin = strip_block * task.block_channels
        end = min(begin + task.block_channels, task.channels)
        ahead = task.x % (task.lanes * task.x_size) // task.x_size if task.aligns else 0
        final = end - task.lanes if task.aligns else end
        last_row = min((row_block + 1) * task.block_rows, task.out_h)
        front = task.low_d - o * task.stride_d
        t0, t1 = first_tap(front, task.dilation_d), last_tap(front, task.depth, task.kernel_d, task.dilation_d)
        for strip in range(begin - ahead, end, task.strip):
            for p in range(row_block * task.block_rows, last_row, task.rows):
                above = task.low_h - p * task.stride_h
                alone = task.rows == 1 or last_row - p == 1
                taps_h = task.kernel_h if alone else task.kernel_h + 1
                r0, r1 = first_tap(above, task.dilation_h), last_tap(above, task.height, taps_h, task.dilation_h)
                row = image * task.out_image + o * task.out_plane + p * task.out_row + task.out_start
                for q in range(0, task.out_w, task.pixels):
                    before = task.low_w - q * task.stride_w
                    corner = image * task.x_image - front * task.x_plane - above * task.x_row - before * task.x_pixel
                    place = row + q * task.out_pixel
                    for lane in range(strip, min(strip + task.strip, end), task.lanes):
                        c = min(max(lane, begin), final)
                        left = task.channels - c
                        sums = start(task, task.bias + c * task.bias_size, left)
                        source = task.x + (corner + c * task.fold // task.repeat) * task.x_size
                        taps = task.weight + task.weight_start + c * task.weight_size
                        sums = add(task, sums, source, taps, c, before, t0, t1, r0, r1, alone)
                        finish(
                            task,
                            sums,
                            task.out + (place + c) * task.out_size,
                            task.other + (place + c) * task.other_size,
                            left,
                            last_row - p,
                            min(task.out_w - q, task.pixels),
                        )

    return correlate


def _pack(task: Any, item: Any) -> None:
    c = item * task.lanes
    packed = task.packed + c * task.packed_size
    for m in range(task.fold):
        weight = task.weight + (c * task.fold + m) * task.taps * task.weight_size
        for tap in range(task.taps):
            pack_taps(task, weight + tap * task.weight_size, packed, task.channels - c)
            packed += task.packed_tap


correlate = Kernel(_correlator(compiled(_add, inline="always")))
correlate_whole = Kernel(_correlator(add_inside))  # rows that are one tile, whose columns beside the image are left out
pack = Kernel(_pack)


class Dense(NamedTuple):
    """The launches of one dense correlation: all weights packed to [fold][taps][channels], then the sums.

    Packing is the same for every pass of a call.
    """

    packed: int
    dtype: str
    pack: Launch
    run: Launch


class Call(NamedTuple):
    """What a correlation's launches depend on, apart from the arrays' addresses."""

    source: tuple[int, ...]
    result: tuple[int, ...]
    kernel: tuple[int, ...]
    passes: tuple[Sweeps, ...]
    types: tuple[str, ...]  # stored types of x, weight, bias, out, other; "" where absent
    activation: str
    threads: int
    by_channels: bool  # whether threads share out the channels, as whoever wrote the source did


def gather(
    source: Array,
    weight: Array,
    bias: Array | None,
    out: Array,
    passes: tuple[Sweeps, ...],
    activation: str = "",
    other: Array | None = None,
) -> None:
    """Run the dense correlations ``passes`` (N, *spatial, channels), which together write all of ``out``.

    Output channel k reads input channel k // M where ``out`` has M times the channels of ``source``; where ``source``
    has M times those of ``out``, result channel c sums the source's channels c·M, …, c·M + M − 1. With ``other`` the
    result is ``other · activation′(z)``.
    """
    dtypes = (source.dtype, weight.dtype, bias is not None, out.dtype, None if other is None else other.dtype)
    threads = get_num_threads()
    found = launches(source.shape, out.shape, weight.shape, passes, dtypes, activation, threads)
    packed = np.empty(found[0].packed, dtype=found[0].dtype)
    if len(found) == 1:
        found[0].pack(weight, packed)
        found[0].run(source, packed, bias, out, other)
        return
    sums = [dense.run.bound(source, packed, bias, out, other) for dense in found]
    small = sum(dense.run.work for dense in found) < SMALL
    run_all([found[0].pack.bound(weight, packed), *sums], 1 if small else threads)


@lru_cache(maxsize=1024)
def launches(
    source: tuple[int, ...],
    result: tuple[int, ...],
    weight: tuple[int, ...],
    passes: tuple[Sweeps, ...],
    dtypes: tuple[Any, ...],
    activation: str,
    threads: int,
    by_channels: bool = False,
) -> tuple[Dense, ...]:
    """The launches of every pass."""
    x, w, bias, out, other = dtypes
    names = (x.name, w.name, w.name if bias else "", out.name, "" if other is None else other.name)
    call = Call(source, result, weight[1:], passes, names, activation, threads, by_channels)
    return tuple(_dense(call, sweeps) for sweeps in passes)


def _dense(call: Call, sweeps: Sweeps) -> Dense:
    lone = Sweep(1, 1, 1, 1, 1, 0)
    d, h, w = (lone,) * (3 - len(sweeps)) + sweeps
    channels, inputs = call.result[-1], call.source[-1]
    fold = max(inputs // channels, 1)
    packed = fold * prod(call.kernel) * _tap(call)
    return Dense(packed, STORED[call.types[1]][2], _pack_launch(call, fold), _sum_launch(call, d, h, w, fold))


def _sum_launch(call: Call, d: Sweep, h: Sweep, w: Sweep, fold: int) -> Launch:
    dtype = STORED[call.types[0]][2]
    lanes, channels = machine().lanes(STORED[dtype][1]), call.result[-1]
    common = w.taps <= WIDEST and w.stride <= 3 and (w.taps - 1) * w.dilation <= 2 * WIDEST
    fixed: dict[str, Fixed] = {
        "x_type": call.types[0],
        "bias_type": call.types[2],
        "out_type": call.types[3],
        "other_type": call.types[4],
        "activation": call.activation,
        "tail": channels % lanes != 0,
        "lanes": lanes,
        "rows": tile_rows(h) if common else 1,
        "pixels": tile_pixels(w.out),
        "taps_w": max(w.taps, 1) if common else 1,
        "repeat": max(channels // max(call.source[-1], 1), 1),
        "fold": fold,
        "x_size": STORED[call.types[0]][1],
        "weight_size": STORED[dtype][1],
        "out_size": STORED[call.types[3]][1],
    }
    column = {"kernel_w": w.taps, "stride_w": w.stride, "dilation_w": w.dilation}
    strip, block_channels, block_rows = _blocks(call, d, h, w, lanes)
    fixed["aligns"] = (
        block_channels >= MANY * lanes
        and not (fixed["tail"] or call.types[4])
        and fixed["fold"] == fixed["repeat"] == 1
        and fixed["x_size"] == fixed["out_size"]
    )
    beside = {"width": w.size, "low_w": w.low}
    whole = common and w.out <= tile_pixels(w.out) and channels >= MANY * lanes  # each width is compiled
    row_blocks, channel_blocks = -(-h.out // block_rows), -(-channels // block_channels)
    numbers = {
        **_strides("x", call.source),
        **_strides("out", call.result),
        "out_start": sum(s.out_first * step for s, step in zip((d, h, w), _steps(call.result)[1:], strict=True)),
        "bias_size": STORED[call.types[2] or dtype][1],
        "other_size": STORED[call.types[4] or dtype][1],
        "depth": d.size,
        "height": h.size,
        "channels": channels,
        "out_d": d.out,
        "out_h": h.out,
        "out_w": w.out,
        **_weight_steps(call, d, h, w),
        **{
            f"{field}_{axis}": value for axis, sweep in (("d", d), ("h", h)) for field, value in _numbers(sweep).items()
        },
        "strip": strip,
        "block_channels": block_channels,
        "channel_blocks": channel_blocks,
        "block_rows": block_rows,
        "row_blocks": row_blocks,
    }
    for axis, sweep in (("plane", d), ("row", h), ("pixel", w)):
        numbers[f"out_{axis}"] *= sweep.out_step
    numbers["x_down"] = numbers["x_row"] * h.dilation * STORED[call.types[0]][1]
    (fixed if common else numbers).update(column)
    (fixed if whole else numbers).update(beside)
    items = call.result[0] * d.out * row_blocks * channel_blocks if w.out and channels else 0
    work = prod(call.result[:1]) * channels * d.out * h.out * w.out * fold * max(d.taps * h.taps * w.taps, 4)
    return Launch(correlate_whole if whole else correlate, POINTERS, fixed, numbers, items=items, work=work)


def _weight_steps(call: Call, d: Sweep, h: Sweep, w: Sweep) -> dict[str, int]:
    """Bytes of packed weights from one tap of a pass to the next along each axis, and to its first."""
    _, rows, columns = (1,) * (3 - len(call.kernel)) + call.kernel
    tap = _tap(call) * STORED[STORED[call.types[1]][2]][1]
    return {
        "weight_start": ((d.tap_first * rows + h.tap_first) * columns + w.tap_first) * tap,
        "weight_tap": w.tap_step * tap,
        "weight_row": h.tap_step * columns * tap,
        "weight_plane": d.tap_step * rows * columns * tap,
        "weight_fold": prod(call.kernel) * tap,
    }


def _tap(call: Call) -> int:
    """Packed weights from one tap to the next: whole vectors, an odd number, for a power of two would share a set."""
    lanes = machine().lanes(STORED[STORED[call.types[1]][2]][1])
    return (-(-call.result[-1] // lanes) | 1) * lanes


def _numbers(sweep: Sweep) -> dict[str, int]:
    return {"kernel": sweep.taps, "stride": sweep.stride, "dilation": sweep.dilation, "low": sweep.low}


def _steps(shape: tuple[int, ...]) -> tuple[int, int, int, int]:
    """Values from one image, plane, row and pixel to the next."""
    _, h, w = (1,) * (3 - (len(shape) - 2)) + shape[1:-1]
    pixel = shape[-1]
    return prod(shape[1:]), h * w * pixel, w * pixel, pixel


def _strides(name: str, shape: tuple[int, ...]) -> dict[str, int]:
    return dict(zip((f"{name}_image", f"{name}_plane", f"{name}_row", f"{name}_pixel"), _steps(shape), strict=True))


def tile_rows(rows: Sweep) -> int:
    """Rows in a tile: two where they share rows of the input and registers hold their sums."""
    return 2 if machine().registers >= 32 and rows.stride == rows.dilation == 1 < min(rows.taps, rows.out) else 1


def tile_pixels(width: int) -> int:
    """Pixels in a tile: 4, or 7 or 8, as few as possible wasted at the end of a row; each is compiled, so few."""
    return 4 if width <= 4 else min((8, 7), key=lambda pixels: -width % pixels)


def _blocks(call: Call, d: Sweep, h: Sweep, w: Sweep, lanes: int) -> tuple[int, int, int]:
    """Channels walked together, channels of an item, rows of an item: as measured, see docs/performance.md.

    Many taps reuse each input often, which pays while the rows of a strip stay in L1; few taps are bound by memory,
    which likes long runs. An image beyond L2 is taken a few rows at a time, in the order of memory.
    """
    channels, planes = max(call.result[-1], 1), max(call.result[0] * d.out, 1)
    step = lanes * STORED[STORED[call.types[0]][2]][1]
    large = (w.size * h.size + w.out * h.out) * channels * STORED[call.types[0]][1] > call.threads * L2_BYTES
    held = L1_BYTES // max(h.taps * w.size * step, 1)
    vectors = (16 if large else 8) if h.taps * w.taps < 16 else min(max(held, 2), 4)
    strip, blocks = vectors * lanes, call.threads // gcd(planes, call.threads)
    strips = -(-channels // strip)
    if call.by_channels:
        each = -(-channels // (lanes * call.threads)) * lanes
        return min(strip, each), each, max(h.out, 1)
    if h.out < 4 * blocks and strips >= blocks > 1:
        return strip, -(-strips // blocks) * strip, max(h.out, 1)
    rows = max(-(-h.out // blocks), 1)
    return strip, channels, min(rows, 4) if large else rows


def _pack_launch(call: Call, fold: int) -> Launch:
    dtype = STORED[call.types[1]][2]
    lanes, channels, taps = machine().lanes(STORED[dtype][1]), call.result[-1], prod(call.kernel)
    fixed: dict[str, Fixed] = {"weight_type": call.types[1], "lanes": lanes}
    numbers = {
        "weight_size": STORED[call.types[1]][1],
        "weight_channel": taps * fold,
        "packed_size": STORED[dtype][1],
        "packed_tap": _tap(call) * STORED[dtype][1],
        "channels": channels,
        "fold": fold,
        "taps": taps,
    }
    work = 16 * taps * channels * fold
    return Launch(pack, ("weight", "packed"), fixed, numbers, items=-(-channels // lanes), work=work)

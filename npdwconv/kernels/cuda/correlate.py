"""Kernels for the gradient in the weight: each tap correlates the result's gradient with the input, in two passes.

A thread keeps one sum for every tap and walks over tiles of the outputs; a block adds its threads' sums in a fixed tree
and writes them, and a second pass adds the blocks' in order. How the outputs are split depends on shapes alone, so the
same call gives the same bits, without atomics.

A source outside the image counts as zero, and zero times a gradient is zero unless that is not finite: the second pass
forms a sum that is not finite again, output by output, without what lies outside.
"""

from __future__ import annotations

from functools import cache
from itertools import product
from typing import Any, NamedTuple

import numpy as np

from npdwconv.device import DeviceArray
from npdwconv.kernels.cuda import provider
from npdwconv.kernels.cuda.entry import place_of
from npdwconv.kernels.cuda.gather import LANES, MOST_TAPS, VECTORS, _name
from npdwconv.kernels.cuda.provider import Source
from npdwconv.kernels.cuda.relation import AxisRun, AxisSpec
from npdwconv.kernels.cuda.source import Text
from npdwconv.kernels.cuda.words import real_of, vocabulary
from npdwconv.layouts import split_shape

THREADS = 8 if provider.simulated() else 256  # of a block; a power of two
CHUNK = 8  # sums that a block adds up at once
BLOCKS = 2048  # that the first pass aims at
ROUNDS = 4  # tiles that a thread has at least, where blocks are enough
UNROLLED = 8  # blocks' sums that the second pass has under way at once


class CorrelateSpec(NamedTuple):
    """What the first pass is written for: sums of ``window`` taps at a time, which is the kernel where it is small."""

    layout: str
    axes: tuple[AxisSpec, AxisSpec, AxisSpec]
    window: tuple[int, int]
    gradient: str  # storage dtypes
    source: str
    multiplier: int = 1
    turned: bool = False  # whether the input's side has the multiplied channels: the transposed convolution
    vector: int = 1
    tile: tuple[int, int] = (4, 1)

    @property
    def groups(self) -> tuple[int, int, int]:
        """How many windows the kernel has: depth, height, width."""
        depth, rows, columns = self.axes
        return depth.kernel, -(-rows.kernel // self.window[0]), -(-columns.kernel // self.window[1])


ARGUMENTS = (
    *("pz", "px", "pp"),
    *("images", "channels", "ds", "hs", "ws", "dt", "ht", "wt", "sh", "sw", "ld", "items", "splits"),
)
FINISH = ("pz", "px", "pp", "pw", "images", "channels", "ds", "hs", "ws", "dt", "ht", "wt", "ld", "lh", "lw", "splits")


@cache
def source(spec: CorrelateSpec) -> Source:
    """The first pass: a block's sums."""
    text = Text("correlate", ARGUMENTS)
    first = spec.layout == "channels_first"
    (high, wide), (tall, broad), vector = spec.tile, spec.window, spec.vector
    depth, rows, columns = spec.axes
    lanes = 1 if first else LANES
    text("lane = cuda.threadIdx.x", "thread = cuda.threadIdx.y * cuda.blockDim.x + lane", "split = cuda.blockIdx.y")
    text("group = cuda.blockIdx.z")
    _, down_groups, across_groups = spec.groups
    text(f"s0 = rem(group, {across_groups}) * {broad}", f"group = div(group, {across_groups})")
    text(f"r0 = rem(group, {down_groups}) * {tall}", f"tz = div(group, {down_groups})")
    if first:
        text("channel = cuda.blockIdx.x", f"item = split * {THREADS} + thread", f"stride = splits * {THREADS}")
    else:
        text(
            f"channel = (cuda.blockIdx.x * {LANES} + lane) * {vector}",
            f"item = split * {THREADS // LANES} + cuda.threadIdx.y",
            f"stride = splits * {THREADS // LANES}",
        )
        with text.block("if channel >= channels:"):
            text("item = items")
    text(*_channels(spec))
    text(f"down = div(ht + {high - 1}, {high})", f"across = div(wt + {wide - 1}, {wide})")
    sums = [_name("a", r, s, k) for r, s, k in product(range(tall), range(broad), range(vector))]
    text(*(f"{name} = zero" for name in sums))
    with text.block("while item < items:"):
        text("t = div(item, across)", f"c = (item - t * across) * {wide}")
        text("i = div(t, down)", f"y = (t - i * down) * {high}")
        text("n = div(i, dt)", "z = i - n * dt", f"iz = z * {depth.stride} + tz * {depth.dilation} - ld")
        with text.block("if iz >= 0 and iz < ds:"):
            _tile(text, spec)
        text("item += stride")
    text(f"part = cuda.shared.array({CHUNK * THREADS}, real)")
    taps = depth.kernel * rows.kernel * columns.kernel
    entries = list(product(range(tall), range(broad), range(vector)))
    for begin in range(0, len(entries), CHUNK):
        some = entries[begin : begin + CHUNK]
        text(*(f"put(part, {k * THREADS} + thread, {_name('a', *entry)})" for k, entry in enumerate(some)))
        text("cuda.syncthreads()", f"half = {THREADS // 2}")
        with text.block(f"while half >= {lanes}:"):
            with text.block("if thread < half:"):
                for k in range(len(some)):
                    place = f"{k * THREADS} + thread"
                    text(f"put(part, {place}, get(part, {place}) + get(part, {place} + half))")
            text("cuda.syncthreads()", "half = half // 2")
        with text.block(f"if thread < {lanes} and channel < channels:"):
            for k, (r, s, v) in enumerate(some):
                guards = [f"r0 + {r} < {rows.kernel}"] * (down_groups > 1) + [f"s0 + {s} < {columns.kernel}"] * (
                    across_groups > 1
                )
                with text.block(f"if {' and '.join(guards) or 'True'}:"):
                    tap = f"(tz * {rows.kernel} + r0 + {r}) * {columns.kernel} + s0 + {s}"
                    place = f"(split * channels + channel + {v}) * {taps} + {tap}"
                    text(f"store_p(at_p(pp, {place}), 0, get(part, {k * THREADS} + thread))")
        text("cuda.syncthreads()")
    real = real_of(spec.source)
    words = vocabulary(z=spec.gradient, x=spec.source, p=np.dtype(real).name)
    words.update(zero=real(0), real=real)
    return Source("correlate", ARGUMENTS, text.text, words)


def _channels(spec: CorrelateSpec) -> tuple[str, ...]:
    """The channels that either side has, and which of them belongs to the weight's."""
    many, few = "channels", f"div(channels, {spec.multiplier})" if spec.multiplier > 1 else "channels"
    one, other = "channel", f"div(channel, {spec.multiplier})" if spec.multiplier > 1 else "channel"
    gradient, source = ((few, other), (many, one)) if spec.turned else ((many, one), (few, other))
    return f"zs = {gradient[0]}", f"zc = {gradient[1]}", f"xs = {source[0]}", f"xc = {source[1]}"


def _tile(text: Text, spec: CorrelateSpec) -> None:
    """Every product of one tile's gradients with their sources."""
    first = spec.layout == "channels_first"
    (high, wide), (tall, broad), vector = spec.tile, spec.window, spec.vector
    _, rows, columns = spec.axes
    width = "" if vector == 1 else str(vector)
    if first:
        text("g = at_z(pz, (((n * zs + zc) * dt + z) * ht + y) * wt + c)")
        text("x = at_x(px, ((n * xs + xc) * ds + iz) * hs * ws)")
    else:
        text("g = at_z(pz, (((n * dt + z) * ht + y) * wt + c) * zs + zc)")
        text("x = at_x(px, ((n * ds + iz) * hs * ws) * xs + xc)")
    for v, u in product(range(high), range(wide)):
        names = ", ".join(_name("g", v, u, k) for k in range(vector))
        place = f"{v} * wt + {u}" if first else f"({v} * wt + {u}) * zs"
        guard = f"(y + {v} < ht) & (c + {u} < wt)"
        text(f"{names} = load{width}_z(step_z(g, {place}), 0, {guard})")
    text(
        f"sy = y * {rows.stride} + sh + r0 * {rows.dilation}",
        f"sx = c * {columns.stride} + sw + s0 * {columns.dilation}",
    )
    down = rows._replace(kernel=tall).terms(high)
    across = columns._replace(kernel=broad).terms(wide)
    text(*(f"{_name('c', off)} = (sx + {off} >= 0) & (sx + {off} < ws)" for off in across))
    for off, pairs in down.items():
        text(f"inside = (sy + {off} >= 0) & (sy + {off} < hs)")
        text(f"row = step_x(x, ((sy + {off}) * ws + sx){'' if first else ' * xs'})")
        for place in across:
            names = ", ".join(_name("x", place, k) for k in range(vector))
            guard = f"inside & {_name('c', place)}"
            if first:
                text(f"{names} = load{width}_x(row, {place}, {guard})")
            else:
                text(f"{names} = load{width}_x(step_x(row, {place} * xs), 0, {guard})")
        for place, sideways in across.items():
            for (v, r), (u, s), k in product(pairs, sideways, range(vector)):
                total = _name("a", r, s, k)
                text(f"{total} = fma({_name('g', v, u, k)}, {_name('x', place, k)}, {total})")


class FinishSpec(NamedTuple):
    """What the second pass is written for."""

    layout: str
    axes: tuple[AxisSpec, AxisSpec, AxisSpec]
    gradient: str
    source: str
    weight: str
    multiplier: int
    turned: bool


@cache
def finish_source(spec: FinishSpec) -> Source:
    """The second pass: the blocks' sums in order, one tap of one channel a thread."""
    depth, rows, columns = spec.axes
    taps = depth.kernel * rows.kernel * columns.kernel
    text = Text("finish", FINISH)
    text("j = cuda.blockIdx.x * cuda.blockDim.x + cuda.threadIdx.x", f"count = channels * {taps}")
    with text.block("if j < count:"):
        text("sum = zero", "p = at_p(pp, j)", "k = 0")
        with text.block(f"while k + {UNROLLED} <= splits:"):
            text(*(f"v{n} = peek_p(step_p(p, (k + {n}) * count), 0)" for n in range(UNROLLED)))
            text(*(f"sum = sum + v{n}" for n in range(UNROLLED)))
            text(f"k += {UNROLLED}")
        with text.block("while k < splits:"):
            text("sum = sum + peek_p(step_p(p, k * count), 0)", "k += 1")
        with text.block("if not finite(sum):"):
            text(f"channel = div(j, {taps})", f"tap = j - channel * {taps}", *_channels_of(spec))
            text(f"ts = rem(tap, {columns.kernel})", f"tr = rem(div(tap, {columns.kernel}), {rows.kernel})")
            text(f"tz = div(tap, {rows.kernel * columns.kernel})", "sum = zero")
            with text.block("for n in range(images):"):
                for name, axis, tap, low, target, extent in zip(
                    "zyc",
                    spec.axes,
                    ("tz", "tr", "ts"),
                    ("ld", "lh", "lw"),
                    ("dt", "ht", "wt"),
                    ("ds", "hs", "ws"),
                    strict=True,
                ):
                    text.open(f"for {name} in range({target}):")
                    text(f"i{name} = {name} * {axis.stride} + {tap} * {axis.dilation} - {low}")
                    text.open(f"if i{name} >= 0 and i{name} < {extent}:")
                if spec.layout == "channels_first":
                    gradient = "(((n * zs + zc) * dt + z) * ht + y) * wt + c"
                    source = "(((n * xs + xc) * ds + iz) * hs + iy) * ws + ic"
                else:
                    gradient = "(((n * dt + z) * ht + y) * wt + c) * zs + zc"
                    source = "(((n * ds + iz) * hs + iy) * ws + ic) * xs + xc"
                text(f"sum = fma(read_z(at_z(pz, {gradient}), 0), read_x(at_x(px, {source}), 0), sum)")
                text.close(6)
        text("store_w(at_w(pw, j), 0, sum)")
    real = real_of(spec.source)
    words = vocabulary(z=spec.gradient, x=spec.source, p=np.dtype(real).name, w=spec.weight)
    words.update(zero=real(0))
    return Source("finish", FINISH, text.text, words)


def _channels_of(spec: FinishSpec) -> tuple[str, ...]:
    return _channels(
        CorrelateSpec(spec.layout, spec.axes, (1, 1), spec.gradient, spec.source, spec.multiplier, spec.turned)
    )


@cache
def _kernel(spec: CorrelateSpec) -> provider.Kernel:
    return provider.Kernel(source(spec))


@cache
def _finish(spec: FinishSpec) -> provider.Kernel:
    return provider.Kernel(finish_source(spec))


def settled(spec: CorrelateSpec, runs: tuple[AxisRun, AxisRun, AxisRun]) -> CorrelateSpec:
    """The specification with the window and the tile that suit."""
    _, rows, columns = spec.axes
    small = rows.kernel * columns.kernel <= MOST_TAPS and max(rows.stride, columns.stride) <= 4
    window = (rows.kernel, columns.kernel) if small else (1, min(8, columns.kernel))
    if spec.layout == "channels_first":
        tile = (min(4, runs[1].target), 1)
    else:
        tile = (2, 4) if runs[1].target > 1 else (1, 8)
        if window[0] * window[1] * spec.vector > 50:
            spec = spec._replace(vector=1)
            tile = (1, 4)
    return spec._replace(window=window, tile=tile)


def splits_of(spec: CorrelateSpec, items: int, channels: int) -> tuple[int, int]:
    """Blocks of channels, and into how many blocks each one's outputs are split: by shapes alone."""
    groups = spec.groups[0] * spec.groups[1] * spec.groups[2]
    if spec.layout == "channels_first":
        blocks, together = channels, THREADS
    else:
        blocks, together = -(-channels // (LANES * spec.vector)), THREADS // LANES
    most = max(1, -(-items // (together * ROUNDS)))
    return blocks, max(1, min(most, -(-BLOCKS // (blocks * groups)), 65535))


def run(
    grad_z: DeviceArray,
    x: DeviceArray,
    grad_weight: DeviceArray,
    passed: Any,
    layout: str,
    *,
    turned: bool = False,
) -> None:
    """grad_weight[k,t] = Σ_n,o grad_z[n,o]·x[n,i]; either side may have the fewer channels."""
    if not grad_weight.size:
        return
    specs, runs = passed
    channels = grad_weight.shape[0]
    images = grad_z.shape[0]
    fewer = split_shape(layout, (grad_z if turned else x).shape)[1]
    multiplier = channels // fewer
    vector = 1
    if layout == "channels_last" and multiplier == 1:
        vector = min(2, *(VECTORS[array.dtype.name] for array in (grad_z, x)))
        if channels % vector or any(array.address % (vector * array.itemsize) for array in (grad_z, x)):
            vector = 1
    spec = settled(
        CorrelateSpec(layout, specs, (1, 1), grad_z.dtype.name, x.dtype.name, multiplier, turned, vector), runs
    )
    depth, rows, columns = (axis.target for axis in runs)
    items = images * depth * -(-rows // spec.tile[0]) * -(-columns // spec.tile[1])
    blocks, splits = splits_of(spec, items, channels)
    real = np.dtype(real_of(x.dtype.name))
    taps = specs[0].kernel * specs[1].kernel * specs[2].kernel
    partial = grad_weight.empty((splits, channels, taps), real)
    lanes = 1 if layout == "channels_first" else LANES
    groups = spec.groups[0] * spec.groups[1] * spec.groups[2]
    extents = (*(axis.source for axis in runs), depth, rows, columns)
    places = (place_of(grad_z), place_of(x), place_of(partial))
    block = (THREADS, 1, 1) if lanes == 1 else (LANES, THREADS // LANES, 1)
    _kernel(spec)(
        (blocks, splits, groups),
        block,
        grad_weight.stream,
        *places,
        *(images, channels, *extents, runs[1].shift, runs[2].shift, runs[0].low, items, splits),
    )
    count = channels * taps
    threads = 8 if provider.simulated() else 64
    finish = FinishSpec(layout, specs, grad_z.dtype.name, x.dtype.name, grad_weight.dtype.name, multiplier, turned)
    _finish(finish)(
        (-(-count // threads), 1, 1),
        (threads, 1, 1),
        grad_weight.stream,
        *places,
        place_of(grad_weight),
        *(images, channels, *extents, *(axis.low for axis in runs), splits),
    )

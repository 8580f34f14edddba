"""Kernels for the gradient in the weight: each tap correlates the result's gradient with the input, in two passes.

A thread keeps one sum for every tap and walks over tiles of the outputs; a block adds its threads' sums in a fixed tree
and writes them, and a second pass adds the blocks' in order. How the outputs are split depends on shapes alone, so the
same call gives the same bits, without atomics.

A source outside the image counts as zero, and zero times a gradient is zero unless that is not finite: the second pass
forms a sum that is not finite again, output by output, without what lies outside.
"""

from __future__ import annotations

from functools import cache, lru_cache
from itertools import product
from math import prod
from typing import NamedTuple

import numpy as np

from npdwconv.device import DeviceArray
from npdwconv.geometry import ConvGeometry
from npdwconv.kernels.cuda import provider, sums
from npdwconv.kernels.cuda.entry import aligned, place_of
from npdwconv.kernels.cuda.gather import scalar
from npdwconv.kernels.cuda.gather_spec import LANES, MOST_TAPS, VECTORS, divisor
from npdwconv.kernels.cuda.provider import Source
from npdwconv.kernels.cuda.relation import AxisRun, AxisSpec, passed
from npdwconv.kernels.cuda.source import Text
from npdwconv.kernels.cuda.words import real_of, vocabulary
from npdwconv.layouts import split_shape
from npdwconv.precision import storage

THREADS = 8 if provider.simulated() else 256  # of a block; a power of two
CHUNK = 16  # sums that a block adds up at once
BLOCKS = 1024  # that the first pass aims at
ROUNDS = 4  # tiles that a thread has at least, where blocks are enough


class CorrelateSpec(NamedTuple):
    """What the first pass is written for: sums of ``window`` taps at a time, which is the kernel where it is small."""

    layout: str
    axes: tuple[AxisSpec, AxisSpec, AxisSpec]
    window: tuple[int, int]
    gradient: str  # storage dtypes
    source: str
    multiplier: int = 1
    turned: bool = False  # whether the input's side has the multiplied channels: the transposed convolution
    vector: int = 1  # elements read at once: channels of a thread channels_last, columns channels_first
    tile: tuple[int, int] = (4, 1)
    lead: int = 0  # columns by which a tile's first source lies beyond a whole vector, channels_first

    @property
    def groups(self) -> tuple[int, int, int]:
        """How many windows the kernel has: depth, height, width."""
        depth, rows, columns = self.axes
        return depth.kernel, -(-rows.kernel // self.window[0]), -(-columns.kernel // self.window[1])

    @property
    def lanes(self) -> int:
        """Channels that a thread owns."""
        return self.vector if self.layout == "channels_last" else 1

    @property
    def together(self) -> int:
        """Columns that are read at once."""
        return 1 if self.layout == "channels_last" else self.vector

    @property
    def abreast(self) -> int:
        """Threads of a block that own different channels."""
        return LANES if self.layout == "channels_last" else 1


ARGUMENTS = (
    *("pz", "px", "pp"),
    *("channels", "ds", "hs", "ws", "dt", "ht", "wt", "sh", "sw", "ld", "items", "splits"),
)
FINISH = (
    *("pz", "px", "pp", "po", "count", "splits"),
    *("images", "channels", "ds", "hs", "ws", "dt", "ht", "wt", "ld", "lh", "lw"),
)


@cache
def source(spec: CorrelateSpec) -> Source:
    """The first pass: a block's sums."""
    text = Text("correlate", ARGUMENTS)
    (high, wide), (tall, broad) = spec.tile, spec.window
    depth, rows, columns = spec.axes
    _, down_groups, across_groups = spec.groups
    each = THREADS // spec.abreast
    text("thread = cuda.threadIdx.x", "split = cuda.blockIdx.y", "group = int(cuda.blockIdx.z)")
    text(f"s0 = rem(group, {across_groups}) * {broad}", f"group = div(group, {across_groups})")
    text(f"r0 = rem(group, {down_groups}) * {tall}", f"tz = div(group, {down_groups})")
    if spec.layout == "channels_first":
        text("channel = cuda.blockIdx.x", f"item = split * {each} + thread")
    else:
        text(f"channel = (cuda.blockIdx.x * {LANES} + rem(thread, {LANES})) * {spec.vector}")
        text(f"item = split * {each} + div(thread, {LANES})")
        with text.block("if channel >= channels:"):
            text("item = items")
    text(*_channels(spec.multiplier, spec.turned))
    text(f"down = div(ht + {high - 1}, {high})", f"across = div(wt + {wide - 1}, {wide})")
    entries = [(k, r, s) for r, s, k in product(range(tall), range(broad), range(spec.lanes))]
    text(*(f"{scalar('a', r, s, k)} = zero" for k, r, s in entries))
    with text.block("while item < items:"):
        text("t = div(item, across)", f"c = (item - t * across) * {wide}")
        text("i = div(t, down)", f"y = (t - i * down) * {high}")
        text("n = div(i, dt)", "z = i - n * dt", f"iz = z * {depth.stride} + tz * {depth.dilation} - ld")
        with text.block("if iz >= 0 and iz < ds:"):
            _tile(text, spec)
        text(f"item += splits * {each}")
    text(f"part = cuda.shared.array({min(CHUNK, len(entries)) * THREADS}, real)")
    for begin in range(0, len(entries), CHUNK):
        some = entries[begin : begin + CHUNK]
        sums.tree(text, [scalar("a", r, s, k) for k, r, s in some], THREADS, spec.abreast)
        with text.block(f"if thread < {spec.abreast} and channel < channels:"):
            for place, (k, r, s) in enumerate(some):
                guards = [f"r0 + {r} < {rows.kernel}"] if down_groups > 1 else []
                guards += [f"s0 + {s} < {columns.kernel}"] if across_groups > 1 else []
                with text.block(f"if {' and '.join(guards) or 'True'}:"):
                    tap = f"(tz * {rows.kernel} + r0 + {r}) * {columns.kernel} + s0 + {s}"
                    text(f"p = at_p(pp, (split * channels + channel + {k}) * {_taps(spec.axes)} + {tap})")
                    text(f"store_p(p, 0, {sums.part_of(place, THREADS)})")
        text("cuda.syncthreads()")
    real = real_of(spec.source)
    words = vocabulary(z=spec.gradient, x=spec.source, p=np.dtype(real).name)
    words.update(zero=real(0), real=real)
    return Source("correlate", ARGUMENTS, text.text, words)


def _taps(axes: tuple[AxisSpec, AxisSpec, AxisSpec]) -> int:
    return prod(axis.kernel for axis in axes)


def _channels(multiplier: int, turned: bool) -> tuple[str, ...]:
    """The channels that either side has, and which of them belongs to the weight's."""
    many, one = ("channels", "channel")
    few, other = (f"div(channels, {multiplier})", f"div(channel, {multiplier})") if multiplier > 1 else (many, one)
    gradient, source = ((few, other), (many, one)) if turned else ((many, one), (few, other))
    return f"zs = {gradient[0]}", f"zc = {gradient[1]}", f"xs = {source[0]}", f"xc = {source[1]}"


def _tile(text: Text, spec: CorrelateSpec) -> None:
    """Every product of one tile's gradients with their sources."""
    first = spec.layout == "channels_first"
    (high, wide), (tall, broad), together = spec.tile, spec.window, spec.together
    _, rows, columns = spec.axes
    if first:
        text("g = at_z(pz, (((n * zs + zc) * dt + z) * ht + y) * wt + c)")
        text("x = at_x(px, ((n * xs + xc) * ds + iz) * hs * ws)")
    else:
        text("g = at_z(pz, (((n * dt + z) * ht + y) * wt + c) * zs + zc)")
        text("x = at_x(px, ((n * ds + iz) * hs * ws) * xs + xc)")
    width = "" if spec.vector == 1 else str(spec.vector)
    for v, u in product(range(high), range(0, wide, together)):
        names = [scalar("g", v, u + n, k) for n, k in product(range(together), range(spec.lanes))]
        place = f"{v} * wt + {u}" if first else f"({v} * wt + {u}) * zs"
        text(f"{', '.join(names)} = load{width}_z(step_z(g, {place}), 0, (y + {v} < ht) & (c + {u} < wt))")
    text(f"sy = y * {rows.stride} + sh + r0 * {rows.dilation}")
    text(f"sx = c * {columns.stride} + sw + s0 * {columns.dilation} - {spec.lead}")
    down = rows._replace(kernel=tall).terms(high)
    across = columns._replace(kernel=broad).terms(wide)
    groups = sorted({(off + spec.lead) // together for off in across})
    text(*(f"{scalar('c', group)} = within(sx + {group * together}, ws)" for group in groups))
    text(f"row = step_x(x, (sy * ws + sx){'' if first else ' * xs'})")
    before = 0
    for off, pairs in down.items():
        if off != before:
            text(f"row = step_x(row, {off - before} * ws{'' if first else ' * xs'})")
            before = off
        text(f"inside = within(sy + {off}, hs)")
        for group in groups:
            names = [scalar("x", group * together + n, k) for n, k in product(range(together), range(spec.lanes))]
            row = f"row, {group * together}" if first else f"step_x(row, {group} * xs), 0"
            text(f"{', '.join(names)} = load{width}_x({row}, inside & {scalar('c', group)})")
        for (v, r), s, k in product(pairs, range(broad), range(spec.lanes)):
            joined = [(u, off_x + spec.lead) for off_x, found in across.items() for u, t in found if t == s]
            factors = [scalar("g", v, u, k) for u, _ in joined] + [scalar("x", place, k) for _, place in joined]
            total = scalar("a", r, s, k)
            text(f"{total} = dot{len(joined)}({', '.join([total, *factors])})")


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
    """The second pass: the blocks' sums; one that is not finite is formed again, without what lies outside."""
    _, rows, columns = spec.axes
    taps = _taps(spec.axes)
    text = Text("finish", FINISH)
    sums.second_pass(text)
    with text.block(f"if thread < {sums.ABREAST} and j < count:"):
        text("sum = get(part, thread)")
        with text.block("if not finite(sum):"):
            text(f"channel = div(j, {taps})", f"tap = j - channel * {taps}")
            text(*_channels(spec.multiplier, spec.turned))
            text(f"tc = rem(tap, {columns.kernel})", f"ty = rem(div(tap, {columns.kernel}), {rows.kernel})")
            text(f"tz = div(tap, {rows.kernel * columns.kernel})", "sum = zero")
            with text.block("for n in range(images):"):
                for name, axis, extent in zip("zyc", spec.axes, ("d", "h", "w"), strict=True):
                    text.open(f"for {name} in range({extent}t):")
                    text(f"i{name} = {name} * {axis.stride} + t{name} * {axis.dilation} - l{extent}")
                    text.open(f"if i{name} >= 0 and i{name} < {extent}s:")
                if spec.layout == "channels_first":
                    gradient = "(((n * zs + zc) * dt + z) * ht + y) * wt + c"
                    source = "(((n * xs + xc) * ds + iz) * hs + iy) * ws + ic"
                else:
                    gradient = "(((n * dt + z) * ht + y) * wt + c) * zs + zc"
                    source = "(((n * ds + iz) * hs + iy) * ws + ic) * xs + xc"
                text(f"sum = fma(read_z(at_z(pz, {gradient}), 0), read_x(at_x(px, {source}), 0), sum)")
                text.close(6)
        text("store_o(at_o(po, j), 0, sum)")
    real = real_of(spec.source)
    words = vocabulary(z=spec.gradient, x=spec.source, p=np.dtype(real).name, o=spec.weight)
    words.update(zero=real(0), real=real)
    return Source("finish", FINISH, text.text, words)


@cache
def _kernel(spec: CorrelateSpec) -> provider.Kernel:
    return provider.Kernel(source(spec), repr(spec))


@cache
def _finish(spec: FinishSpec) -> provider.Kernel:
    return provider.Kernel(finish_source(spec), repr(spec))


def settled(spec: CorrelateSpec, runs: tuple[AxisRun, AxisRun, AxisRun], channels: int, together: int) -> CorrelateSpec:
    """The specification with the window, the vector and the tile that suit, as in `gather_spec.settled`."""
    _, rows, columns = spec.axes
    small = rows.kernel * columns.kernel <= MOST_TAPS and max(rows.stride, columns.stride) <= 4
    window = (rows.kernel, columns.kernel) if small else (1, min(8, columns.kernel))
    taps = window[0] * window[1]
    most = min(together, VECTORS[spec.gradient], VECTORS[spec.source])
    high = max(1, min(2 if spec.layout == "channels_last" or taps > 25 else 4, runs[1].target))
    if spec.layout == "channels_last":
        most = min(most, 4 if taps <= 9 else 2 if taps <= 25 else 1)
        vector = 1 if spec.multiplier > 1 else divisor(channels, most)
        return spec._replace(window=window, vector=vector, tile=(high, 4 if runs[1].target > 1 else 8))
    vector = divisor(runs[2].source, divisor(runs[2].target, most)) if small else 1
    wide = 4 if vector > 1 else 1
    return spec._replace(window=window, vector=vector, tile=(high, wide), lead=runs[2].shift % vector)


def splits_of(spec: CorrelateSpec, items: int, channels: int) -> tuple[int, int]:
    """Blocks of channels, and into how many blocks each one's outputs are split: by shapes alone."""
    blocks = -(-channels // (spec.abreast * spec.lanes))
    most = max(1, -(-items // (THREADS // spec.abreast * ROUNDS)))
    return blocks, max(1, min(most, -(-BLOCKS // (blocks * prod(spec.groups)))))


class _Plan(NamedTuple):
    """Both passes, with everything settled but the addresses and the stream."""

    first: provider.Kernel
    grid: provider.Extents
    numbers: tuple[int, ...]
    second: provider.Kernel
    results: int
    splits: int
    finish: tuple[int, ...]


@lru_cache(maxsize=4096)
def _plan(
    layout: str,
    g: ConvGeometry,
    dtypes: tuple[str, str, str],
    counts: tuple[int, int, int],
    turned: bool,
    together: int,
) -> _Plan:
    images, channels, fewer = counts
    specs, runs = passed(g, False)
    multiplier = channels // fewer
    gradient, source, weight = dtypes
    spec = CorrelateSpec(layout, specs, (1, 1), gradient, source, multiplier, turned)
    spec = settled(spec, runs, channels, together)
    targets = tuple(axis.target for axis in runs)
    items = images * targets[0] * -(-targets[1] // spec.tile[0]) * -(-targets[2] // spec.tile[1])
    blocks, splits = splits_of(spec, items, channels)
    extents = (channels, *(axis.source for axis in runs), *targets)
    return _Plan(
        _kernel(spec),
        (blocks, splits, prod(spec.groups)),
        (*extents, runs[1].shift, runs[2].shift, runs[0].low, items, splits),
        _finish(FinishSpec(layout, specs, gradient, source, weight, multiplier, turned)),
        channels * _taps(specs),
        splits,
        (images, *extents, *(axis.low for axis in runs)),
    )


def run(
    grad_z: DeviceArray, x: DeviceArray, grad_weight: DeviceArray, g: ConvGeometry, layout: str, *, turned: bool = False
) -> None:
    """grad_weight[k,t] = Σ_n,o grad_z[n,o]·x[n,i]; either side may have the fewer channels."""
    if not grad_weight.size:
        return
    counts = (grad_z.shape[0], grad_weight.shape[0], split_shape(layout, (grad_z if turned else x).shape)[1])
    dtypes = (storage(grad_z.dtype), storage(x.dtype), storage(grad_weight.dtype))
    plan = _plan(layout, g, dtypes, counts, turned, min(aligned(grad_z), aligned(x)))
    partial = grad_weight.empty((plan.splits, plan.results), np.dtype(real_of(storage(x.dtype))))
    stream, places = grad_weight.stream, (place_of(grad_z), place_of(x), place_of(partial))
    plan.first(plan.grid, (THREADS, 1, 1), stream, *places, *plan.numbers)
    plan.second(
        *sums.second_grid(plan.results), stream, *places, place_of(grad_weight), plan.results, plan.splits, *plan.finish
    )

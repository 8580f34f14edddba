"""Dense depthwise correlations in channels_last: lanes are channels.

An item is a block of channels, an image and a block of rows. Rows of taps that lie above or below the image are left
out of a tile's loop; columns beside it are masked: padding reads nothing, whatever the weights hold.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache, partial
from typing import Any

from npdwconv.kernels.cpu import pixel_plans as plans
from npdwconv.kernels.cpu.arrays import room_for
from npdwconv.kernels.cpu.engine import NOWHERE, Kernel, Launch, Parts, Program, compiled, inlined
from npdwconv.kernels.cpu.packed_taps import pack, pack_own
from npdwconv.kernels.cpu.phases import Sweeps
from npdwconv.kernels.cpu.pixel_calls import Call
from npdwconv.kernels.cpu.pixels import finish, row_at_edge, row_inside, start
from npdwconv.kernels.cpu.rolled_pixels import rolled_whole, rolled_wide, streamed
from npdwconv.kernels.cpu.simd import STORED
from npdwconv.layouts import Array
from npdwconv.threads import get_num_threads

POINTERS = ("x", "weight", "bias", "out", "other")


def _first_tap(low: Any, dilation: Any) -> Any:
    """The first tap whose source exists, ``low`` being how far before the image the window begins."""
    return (max(low, 0) + dilation - 1) // dilation


def _last_tap(low: Any, size: Any, taps: Any, dilation: Any) -> Any:
    """One past the last tap whose source exists."""
    return min((size - 1 + low) // dilation + 1, taps)


first_tap, last_tap = compiled(_first_tap), compiled(_last_tap)


def _adder(row: Any) -> Any:
    """What adds all taps to a tile, an input row at a time: one for edges, so that only these look at columns."""

    def add(
        task: Any, sums: Any, source: Any, taps: Any, c: Any, before: Any, t0: Any, t1: Any, r0: Any, r1: Any
    ) -> Any:
        left = task.channels - c
        for m in range(task.fold):
            for t in range(t0, t1):
                x = source + (m + t * task.dilation_d * task.x_plane) * task.x_size
                w = taps + m * task.weight_fold + t * task.weight_plane
                for s in range(0, task.kernel_w, task.taps_w):
                    shift = s * task.dilation_w
                    xs, ws = x + shift * task.x_pixel * task.x_size, w + s * task.weight_tap
                    for r in range(r0, r1):
                        sums = row(task, sums, xs + r * task.x_down, ws + r * task.weight_row, c, left, before - shift)
        return sums

    return inlined(add)


add_inside, add_at_edge = _adder(row_inside), _adder(row_at_edge)


def _add(task: Any, sums: Any, source: Any, taps: Any, c: Any, before: Any, t0: Any, t1: Any, r0: Any, r1: Any) -> Any:
    """All taps, where tiles begin anywhere in a row."""
    reach = (task.pixels - 1) * task.stride_w + (task.kernel_w - 1) * task.dilation_w - before
    if before <= 0 and reach < task.width:
        return add_inside(task, sums, source, taps, c, before, t0, t1, r0, r1)
    return add_at_edge(task, sums, source, taps, c, before, t0, t1, r0, r1)


def _correlator(add: Any) -> Any:
    def correlate(task: Any, item: Any) -> None:
        strip_block, rest = item // task.slices, item % task.slices
        row_block = rest % task.row_blocks
        plane = rest // task.row_blocks
        image, o = plane // task.out_d, plane % task.out_d
        begin = strip_block * task.block_channels
        end = min(begin + task.block_channels, task.channels)
        pack_own(task, begin, end)
        ahead = task.x % (task.lanes * task.x_size) // task.x_size if task.aligns else 0
        final = end - task.lanes if task.aligns else end
        last_row = min((row_block + 1) * task.block_rows, task.out_h)
        front = task.low_d - o * task.stride_d
        t0, t1 = first_tap(front, task.dilation_d), last_tap(front, task.depth, task.kernel_d, task.dilation_d)
        for strip in range(begin - ahead, end, task.strip):
            for p in range(row_block * task.block_rows, last_row):
                above = task.low_h - p * task.stride_h
                r0, r1 = first_tap(above, task.dilation_h), last_tap(above, task.height, task.kernel_h, task.dilation_h)
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
                        sums = add(task, sums, source, taps, c, before, t0, t1, r0, r1)
                        finish(
                            task,
                            sums,
                            task.out + (place + c) * task.out_size,
                            task.other + (place + c) * task.other_size,
                            left,
                            min(task.out_w - q, task.pixels),
                        )

    return correlate


correlate = Kernel(_correlator(inlined(_add)))
correlate_whole = Kernel(_correlator(add_inside))  # rows that are one tile, whose columns beside the image are left out

KERNELS = {
    "correlate": correlate,
    "correlate_whole": correlate_whole,
    "rolled_whole": rolled_whole,
    "rolled_wide": rolled_wide,
    "streamed": streamed,
}


@dataclass(frozen=True)
class Dense:
    """A dense correlation: all weights packed to [fold][taps][channels], then the sums of every pass."""

    packed: int  # packed weights, for all passes the same
    dtype: str
    pack: Launch  # over no items where the one pass does it
    passes: tuple[Launch, ...]

    def parts(self, places: Sequence[int], first: int) -> Parts:
        """All of it, (source, weight, bias, out, other) being at these places, and its room at ``first``."""
        source, weight, *rest = places
        operands = source, first, *rest
        if self.pack.items:
            steps = [(self.pack, (weight, first)), *((run, operands) for run in self.passes)]
        else:
            steps = [(run, (*operands, weight)) for run in self.passes]
        return Parts(steps, ((self.packed * STORED[self.dtype][1], "taps"),))

    @cached_property
    def whole(self) -> Program:
        """All of it over (source, weight, bias, out, other)."""
        return Program(self.parts(range(5), 5))

    def room(self) -> Array:
        """Where the packed weights lie."""
        return room_for(self.packed, self.dtype, "taps")


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
    dense = _unpacked(source.shape, out.shape, weight.shape, passes, dtypes, activation, get_num_threads())
    dense.whole(source, weight, bias, out, other)


def parts(
    arrays: tuple[Array, Array, Array | None, Array],
    passes: tuple[Sweeps, ...],
    activation: str,
    places: Sequence[int],
    first: int,
) -> Parts:
    """`gather` of ``arrays``, (source, weight, bias, out), as part of a program where they have these places."""
    source, weight, bias, out = arrays
    dtypes = (source.dtype, weight.dtype, bias is not None, out.dtype, None)
    dense = _unpacked(source.shape, out.shape, weight.shape, passes, dtypes, activation, get_num_threads())
    return dense.parts((*places, NOWHERE), first)


@lru_cache(maxsize=1024)
def launches(
    source: tuple[int, ...],
    result: tuple[int, ...],
    weight: tuple[int, ...],
    passes: tuple[Sweeps, ...],
    dtypes: tuple[Any, ...],
    activation: str,
    threads: int,
    *,
    by_channels: bool = False,
    unpacked: bool = False,
) -> Dense:
    """The launches of all passes. The weight is packed before, but for one that is ``unpacked`` and packed by items."""
    x, w, bias, out, other = dtypes
    names = (x.name, w.name, w.name if bias else "", out.name, "" if other is None else other.name)
    call = Call(source, result, weight[1:], passes, names, activation, threads, by_channels, unpacked)
    chosen = plans.plans(call)
    own = any(plan.fixed["packs"] for plan in chosen)
    fixed, numbers = plans.packing(call)
    vectors, work = 0 if own else -(-call.channels // call.lanes), plans.packing_work(call)
    packs = Launch(pack, ("raw", "weight"), fixed, numbers, items=vectors, work=work)
    pointers = (*POINTERS, "raw") if own else POINTERS
    runs = [Launch(KERNELS[p.kernel], pointers, p.fixed, p.numbers, items=p.items, work=p.work) for p in chosen]
    return Dense(call.packed, call.dtype, packs, tuple(runs))


_unpacked = partial(launches, unpacked=True)

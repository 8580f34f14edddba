"""How a correlation over planes runs: passes, tiles, what is compiled in and what is a number. No arrays."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from math import prod
from typing import Any, NamedTuple

from npdwconv.kernels.cpu import caches, columns
from npdwconv.kernels.cpu.arrays import LINE
from npdwconv.kernels.cpu.axes import ONE, Axis, grouped
from npdwconv.kernels.cpu.columns import Phases
from npdwconv.kernels.cpu.machine import machine
from npdwconv.kernels.cpu.phases import Sweep, Sweeps
from npdwconv.kernels.cpu.plane_tiles import (
    MUCH,
    ROLLED,
    Shape,
    along,
    held,
    most_of_covering,
    shape_covering,
    shape_run,
    shape_unrolled,
)
from npdwconv.kernels.cpu.simd import STORED
from npdwconv.kernels.cpu.spec import Fixed

FEWEST, MOST, GRAIN = 16, 64, 100_000  # work items of a launch, and multiply-adds that make taking one worth while
NEAR, FEW = (
    1 << 15,
    8,
)  # bytes of input rows of a rolling tile's block, half of that where they are fetched; rows at least
SQUARE = (3, 5, 7)  # extents of square kernels that are compiled in
ONE_ROW = (3, 4, 5, 7)  # and of kernels over a single row


class Call(NamedTuple):
    """Everything that a launch depends on."""

    source: tuple[int, ...]
    weight: tuple[int, ...]
    out: tuple[int, ...]
    dtypes: tuple[Any, ...]  # of source, weight, bias, out, other; None where absent
    activation: str


def items_of(work: int) -> int:
    """About as many items as a launch of so many multiply-adds has."""
    return min(max(work // GRAIN, FEWEST), MOST)


def passes(call: Call, all_sweeps: tuple[Sweeps, ...]) -> list[tuple[Sweep, Axis, Axis]]:
    """Depth, row and column axes of every pass: the residues of an adjoint by themselves, or those of rows and columns
    together where their kernel is one of those compiled in."""
    full = [(*(ONE,) * (3 - len(sweeps)), *sweeps) for sweeps in all_sweeps]
    return grouped(full, lambda depth, h, w: unrolled(h, w, effort(call, depth, h, w)))


def effort(call: Call, depth: Sweep, h: Axis, w: Axis) -> int:
    """Multiply-adds of one image: what is compiled may depend on them, for a batch and its singles sum alike."""
    channels = max(call.source[1], call.out[1])
    return channels * depth.out * h.first.out * w.first.out * depth.taps * h.taps * w.taps


def unrolled(h: Axis, w: Axis, effort: int) -> bool:
    """Whether the kernel is compiled in."""
    if not (h.whole() and w.whole() and max(h.first.stride, w.first.stride) <= 2):
        return False
    if not (h.dense() and w.dense()) and effort < MUCH:
        return False
    if h.sweeps == (ONE,):
        return w.taps in ONE_ROW
    return h.taps == w.taps and h.taps in SQUARE and h.first.stride == w.first.stride and len(h.sweeps) == len(w.sweeps)


@dataclass(frozen=True)
class Plan:
    """One pass, made ready for a launch."""

    call: Call
    depth: Sweep
    h: Axis
    w: Axis

    @cached_property
    def names(self) -> tuple[str, ...]:
        return tuple(d.name if d is not None else "" for d in self.call.dtypes)

    @cached_property
    def dtype(self) -> str:
        return max(STORED[name][2] for name in self.names if name)

    @cached_property
    def lanes(self) -> int:
        return machine().lanes(STORED[self.dtype][1])

    @cached_property
    def source(self) -> tuple[int, ...]:
        return _five(self.call.source)

    @cached_property
    def out(self) -> tuple[int, ...]:
        return _five(self.call.out)

    @cached_property
    def kernel(self) -> tuple[int, ...]:
        return (*(1,) * (4 - len(self.call.weight)), *self.call.weight[1:])

    @cached_property
    def channels(self) -> dict[str, int]:
        """Source channels that a result sums over, and results that a source channel has."""
        fold, spread = self.source[1] // self.out[1] or 1, self.out[1] // self.source[1] or 1
        return {"folds": fold, "spread": spread}

    @cached_property
    def work(self) -> int:
        """Multiply-adds."""
        return self.out[0] * self.effort

    @cached_property
    def effort(self) -> int:
        return effort(self.call, self.depth, self.h, self.w)

    @cached_property
    def unrolled(self) -> bool:
        return unrolled(self.h, self.w, self.effort)

    @cached_property
    def covers(self) -> bool:
        """Whether every output of a row counts every input of it, and one tile holds a row."""
        h, w = self.h.first, self.w.first
        plain = (
            self.depth == ONE and self.channels["folds"] == 1 and h.stride == h.dilation == w.stride == w.dilation == 1
        )
        fits = w.out <= most_of_covering() * self.lanes and self.effort >= MUCH
        return not self.unrolled and plain and fits and abs(w.tap_step) == 1 and w.out - 1 <= w.low <= w.taps - w.size

    @cached_property
    def tile(self) -> tuple[Shape, bool]:
        if self.unrolled:
            return shape_unrolled(
                self.h, self.w, self.lanes, self.effort, rolls=self._rolls(), lines=self._streams()
            ), False
        if self.covers:
            return shape_covering(self.h, self.w, self.lanes), False
        return shape_run(self.h, self.w, self.lanes)

    @cached_property
    def mates(self) -> int:
        """How many planes share a vector: two, of which each has half of the lanes, where that is wide enough.

        That is for tiles that hold a plane, and for the two phases of an adjoint, which interleave to a vector a plane.
        """
        w, phases = self.w, (len(self.h.sweeps), len(self.w.sweeps))
        single = self.depth == ONE and prod(self.channels.values()) == 1
        narrow = w.first.out <= self.lanes // 2 and (w.first.stride == 1 or self._narrow())
        even = self.call.out[1] % 2 == 0 and machine().name == "AVX-512"
        fits = phases == (2, 2) or (phases == (1, 1) and self.tile[0].whole)
        return 2 if fits and single and narrow and even else 1

    @property
    def _traffic(self) -> tuple[int, int]:
        """Bytes of source and of results."""
        read, written = (STORED[self.names[operand]][1] for operand in (0, 3))
        return prod(self.source) * read, prod(self.out) * written

    def _streams(self) -> bool:
        """Whether results are written past the caches: then every row of them begins alike in a cache line."""
        past, row = caches.past_caches(*self._traffic), self.w.first.out * STORED[self.names[3]][1]
        return past and row % LINE == 0 and self.names[3] == self.dtype

    def _fetches(self) -> bool:
        """Whether the input of the next unit is fetched meanwhile, in the order of memory.

        Not where a tile rolls by single rows and reads its taps from the stack: an address more costs what is gained.
        """
        single = self.depth == ONE and self.channels["folds"] == 1
        short = self.tile[0].rolls and self.h.first.stride == 1 and not held(self.h, self.w)
        return self.unrolled and single and not short and caches.fetched(sum(self._traffic))

    def _rolls(self) -> bool:
        """Whether a tile may roll: one source plane for each result, and taps that stay in registers as a whole.

        Where only 16 registers are, more taps than those are read from the stack no slower than a tile of few rows
        reads its inputs again.
        """
        single = self.depth == ONE and self.channels["folds"] == 1 and len(self.h.sweeps) == len(self.w.sweeps) == 1
        few = self.h.taps * self.w.taps > 1 and (held(self.h, self.w) or machine().registers <= 16)
        return single and self.h.dense() and few and self.h.first.size > 1

    @cached_property
    def gap(self) -> int:
        """Output rows of a tile are so many rows apart."""
        return self.h.first.dilation if self.tile[1] else 1

    @cached_property
    def units(self) -> dict[str, int]:
        """How the work is divided: tiles down a plane (rows if a tile rolls); blocks, each a unit; items of units."""
        down = -(-self.h.first.out // self.gap)
        tiles = -(-down // self.tile[0].rows) * self.gap if not self.tile[0].rolls else down
        slices = self.out[0] * self.out[1] * self.depth.out // self.mates
        items = items_of(self.work)
        block_tiles = -(-tiles // -(-items // slices))
        if self.tile[0].rolls:
            pitch = self.w.first.size * self.h.first.stride * STORED[self.names[0]][1]
            near = NEAR // 2 if self._fetches() else NEAR
            block_tiles = min(max(block_tiles, ROLLED), max(near // pitch, FEW), tiles)
        blocks = -(-tiles // block_tiles)
        units = slices * blocks
        group = -(-units // items)
        return {"units": units, "group": group, "tiles": tiles, "blocks": blocks, "block_tiles": block_tiles}

    @cached_property
    def items(self) -> int:
        return -(-self.units["units"] // self.units["group"])

    def settled(self) -> tuple[dict[str, Fixed], dict[str, int]]:
        """What is compiled in, and the numbers of a launch."""
        numbers = self._numbers()
        fixed = self._fixed(numbers) | self._compiled_in(numbers)
        return fixed, {name: value for name, value in numbers.items() if name not in fixed}

    def _compiled_in(self, numbers: dict[str, int]) -> dict[str, int]:
        """The numbers that make a difference to the code, or are the same for most."""
        names = {name for name in ("folds", "spread", "blocks", "gap") if numbers[name] == 1}
        if self.depth == ONE:
            names |= {"out_d", "depth", "stride_d", "low_d", "dilation_d", "taps_d", "tap_d", "tap_step_d"}
        if self.unrolled:
            names |= {"row_step", "kernel_w", "reach", "tile_height", "deep", "late", "turn"}
            names |= {"taps_h", "taps_w", "dilation_h", "dilation_w", "tap_h", "tap_w", "tap_step_w"}
        elif self.covers:
            names |= {"row_step", "width", "low_w", "kernel_w", "taps_h", "tap_h", "tap_w", "tap_step_w", "tap_pitch"}
        if self.tile[0].whole:
            names |= {"height", "low_h", "out_rows", "tiles", "block_tiles"}
            if not machine().masks:
                names |= {"out_columns", "out_w", "width", "low_w", "full_w", "out_plane"}
        return {name: numbers[name] for name in sorted(names)}

    def _fixed(self, numbers: dict[str, int]) -> dict[str, Fixed]:
        sizes = [STORED[name][1] if name else 0 for name in self.names]
        shape, sliding = self.tile
        alone = not (self.unrolled or self.covers) and along(self.h, self.w)
        operands = ("source", "weight", "bias", "out", "other")
        once: Phases = [[(0, 0)]]
        return {
            "dtype": self.dtype,
            **{f"{operand}_type": name for operand, name in zip(operands, self.names, strict=True)},
            **{f"{operand}_size": size for operand, size in zip(operands, sizes, strict=True)},
            "activation": self.call.activation,
            "merges": machine().name == "AVX-512",
            "unrolled": self.unrolled,
            "covers": self.covers,
            "outputs": self.w.first.out if self.covers else 0,
            "sliding": sliding,
            "along": alone,
            "paired": alone and self.w.first.dilation == 1 and self.w.taps > self.lanes,
            "lanes": self.lanes,
            "mates": self.mates,
            "piece": shape.vectors * self.lanes * self.w.first.stride * sizes[0] if self._fetches() else 0,
            "streams": shape.rolls and self._streams(),
            "stacked": (shape.rolls or self.mates > 1) and not held(self.h, self.w),
            "rows": shape.rows,
            "vectors": shape.vectors,
            "splits": shape.splits,
            "back": self._backs(),
            "row_taps": columns.written(self.h.phases if self.unrolled else once),
            "column_taps": columns.written(self.w.phases if self.unrolled else once),
            "row_kinds": len(self.h.sweeps),
            "column_kinds": len(self.w.sweeps),
            "column_step": self.w.first.stride,
            "out_step": self.w.out_step,
            "wide": self._wide(shape.vectors * self.lanes, numbers["reach"]),
            "parts": 1 if self._narrow() else min(self.w.first.stride, columns.SHUFFLED),
        }

    def _wide(self, columns_: int, reach: int) -> bool:
        """Whether any tile that begins with a vector is inside, whose code is compiled only then."""
        w = self.w.first
        firsts = [*range(0, w.out - columns_ + 1, columns_), *([w.out - columns_] if self._backs() else [])]
        return any(0 <= q * w.stride - self.w.low <= w.size - reach for q in firsts)

    def _backs(self) -> bool:
        """Whether the last tile of a row ends with it, and so computes some results again: all vectors are whole.

        That is cheaper where writing some lanes is not an instruction like others. Results that are multiplied by
        another array are computed once, for it may be the one that they overwrite.
        """
        w, wide = self.w, self.tile[0].vectors * self.lanes
        even = w.first.out >= wide and w.results == w.first.out * len(w.sweeps) and w.out_step == 1
        return even and not machine().masks and not self.names[4] and not (self.tile[0].rolls and self._streams())

    def _narrow(self) -> bool:
        """Whether one vector holds all columns of the source, from the first that the tile reads."""
        return self.w.first.out <= self.lanes and self.w.first.size + self.w.low <= self.lanes

    def _numbers(self) -> dict[str, int]:
        d, h, w = self.depth, self.h, self.w
        shape, sliding = self.tile
        down = h.first.stride if not sliding else self.gap
        _, channels, out_d, out_h, out_w = self.out
        loads = columns.columns_read(self.lanes, w.first.stride, w.phases if self.unrolled else [[(0, 0)]])
        across = 0 if self.unrolled else max(w.taps - 1, 0) * w.first.dilation
        return {
            **self.units,
            **self.channels,
            "channels": channels,
            "source_end": prod(self.source),
            "kernel": prod(self.kernel),
            "kernel_plane": self.kernel[1] * self.kernel[2],
            "kernel_w": self.kernel[2],
            "out_plane": out_d * out_h * out_w,
            "out_slice": d.out_step * out_h * out_w,
            "out_first": (d.out_first * out_h + h.out_first) * out_w + w.out_first,
            "out_pitch": h.out_step * out_w,
            "tile_pitch": h.out_step * out_w * self.gap,
            "tile_columns": shape.vectors * self.lanes,
            "out_w": w.first.out,
            "last_q": w.first.out - shape.vectors * self.lanes if self._backs() else w.first.out,
            "out_rows": h.results,
            "out_columns": w.results,
            "full_w": w.results // len(w.sweeps),
            "height": h.first.size,
            "width": w.first.size,
            "low_h": h.low,
            "low_w": w.low,
            "gap": self.gap,
            "row_step": h.first.stride,
            "row_pitch": h.first.dilation * w.first.size,
            "reach": loads + (shape.vectors - 1) * self.lanes * w.first.stride + across,
            "tile_height": (shape.rows - 1) * down + h.reach + 1,
            "deep": h.reach + 1,
            "late": h.reach // h.first.stride,
            "turn": shape.rows * h.first.stride,
            "taps_h": h.taps,
            "taps_w": w.taps,
            "dilation_h": h.first.dilation,
            "dilation_w": w.first.dilation,
            "tap_h": h.first.tap_first,
            "tap_w": w.first.tap_first,
            "tap_step_w": w.first.tap_step,
            "tap_pitch": h.first.tap_step * self.kernel[2],
            "out_d": d.out,
            "depth": d.size,
            "stride_d": d.stride,
            "low_d": d.low,
            "dilation_d": d.dilation,
            "taps_d": d.taps,
            "tap_d": d.tap_first,
            "tap_step_d": d.tap_step,
        }


def _five(shape: tuple[int, ...]) -> tuple[int, ...]:
    """A shape (N, C, D, H, W), whatever the rank."""
    return (*shape[:2], *(1,) * (5 - len(shape)), *shape[2:])

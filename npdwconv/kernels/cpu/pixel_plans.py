"""How correlations in channels_last run: passes, tiles, what is compiled in and what is a number. No arrays."""

from __future__ import annotations

from math import prod
from typing import NamedTuple

from npdwconv.kernels.cpu import caches, columns
from npdwconv.kernels.cpu.arrays import LINE
from npdwconv.kernels.cpu.axes import ONE, Axis, grouped
from npdwconv.kernels.cpu.machine import machine
from npdwconv.kernels.cpu.phases import Sweep
from npdwconv.kernels.cpu.pixel_calls import Call
from npdwconv.kernels.cpu.pixel_rolling import live, steps_late
from npdwconv.kernels.cpu.pixels import SPARE, meetings
from npdwconv.kernels.cpu.simd import STORED
from npdwconv.kernels.cpu.spec import Fixed

WIDEST = 32  # taps of a row that are unrolled; beyond, and at rare strides and dilations, one tap at a time
MANY = 8  # vectors of channels beside which one more, so that the others begin with cache lines, is little
PAGE = 4096  # bytes
STREAMED, STAGE = 8, 1 << 17  # rows of results on their way past the caches; bytes of those made and those written
FETCHED = 1024  # bytes of a row that are fetched ahead, at least
UNSEEN, WRITTEN, FEW_TAPS = 3, 5, 9  # times a load may run down a block; copies, and taps, up to which it is worth it
WIDE = (17, 14)  # pixels of a tile where taps are far apart
ROLLED = (7, 4, 3, 2)  # places side by side in a tile that rolls; each is compiled, so few


class Plan(NamedTuple):
    """A launch but for its kernel's code: what is compiled in, the numbers, items and multiply-adds."""

    kernel: str
    fixed: dict[str, Fixed]
    numbers: dict[str, int]
    items: int
    work: int


def plans(call: Call) -> tuple[Plan, ...]:
    """One for each pass; the residues of an adjoint are one pass where a tile can hold them all."""
    full = [(*(ONE,) * (3 - len(sweeps)), *sweeps) for sweeps in call.passes]
    found, groups = [], grouped(full, lambda depth, h, w: _shape(call, depth, h, w) is not None)
    if len(groups) > 1:  # which read the same packed weight
        call = call._replace(unpacked=False)
    for depth, h, w in groups:
        pixels = _shape(call, depth, h, w)
        found.append(_tiled(call, depth, h.first, w.first) if pixels is None else _rolled(call, h, w, pixels))
    return tuple(found)


def packing(call: Call) -> tuple[dict[str, Fixed], dict[str, int]]:
    """What is compiled in, and the numbers, of the launch that packs all weights."""
    fixed, numbers = _raw(call)
    own = {"weight_size": STORED[call.dtype][1], "channels": call.channels, "fold": call.fold}
    return fixed | {"lanes": call.lanes}, numbers | own


def packing_work(call: Call) -> int:
    """What packing takes, in multiply-adds."""
    return 5 * call.packed


def _raw(call: Call) -> tuple[dict[str, Fixed], dict[str, int]]:
    """Of any kernel that packs, what the weight was before and how packed taps lie."""
    stored, taps = call.types[1], prod(call.kernel)
    numbers = {
        "raw_size": STORED[stored][1],
        "raw_channel": taps * call.fold,
        "packed_tap": call.tap * STORED[call.dtype][1],
        "taps": taps,
    }
    return {"raw_type": stored}, numbers


def _common(call: Call, block_channels: int, slices: int) -> tuple[dict[str, Fixed], dict[str, int]]:
    """What is compiled in, and the numbers, of any kernel, ``slices`` of whose items read the same taps."""
    x, _, bias, out, other = call.types
    packs = call.unpacked and slices == 1
    raw, raw_numbers = _raw(call) if packs else ({}, {})
    tail = call.channels % call.lanes != 0
    aligns = block_channels >= MANY * call.lanes and not (tail or other) and call.fold == call.repeat == 1
    fixed: dict[str, Fixed] = {
        "x_type": x,
        "bias_type": bias,
        "out_type": out,
        "other_type": other,
        "activation": call.activation,
        "tail": tail,
        "lanes": call.lanes,
        "repeat": call.repeat,
        "fold": call.fold,
        "x_size": STORED[x][1],
        "weight_size": STORED[call.dtype][1],
        "out_size": STORED[out][1],
        "aligns": aligns and STORED[x][1] == STORED[out][1],
        "packs": packs,
        **raw,
    }
    numbers = {
        **_strides("x", call.source),
        **_strides("out", call.result),
        "bias_size": STORED[bias or call.dtype][1],
        "other_size": STORED[other or call.dtype][1],
        "channels": call.channels,
        "slices": slices,
        **raw_numbers,
    }
    return fixed, numbers


def _shape(call: Call, depth: Sweep, h: Axis, w: Axis) -> int | None:
    """Places side by side in a tile that rolls down the image; None where none can."""
    kinds, places = len(w.sweeps), w.first.out
    if depth != ONE or call.fold > 1 or h.results < 2 or not _rolls(h, w):
        return None
    most = (24 if machine().registers >= 32 else 12) // live(h.phases, w.phases, h.first.stride)
    near = not caches.far(*call.sizes)
    if call.channels * STORED[call.types[0]][1] > PAGE // 2 or (kinds == 1 and not (near and w.first.stride > 1)):
        most = min(most, ROLLED[1])  # lines that are stored at once are apart, and of many channels each in a page
    fitting = [p for p in ROLLED if p <= min(most, places) and (kinds == 1 or p < ROLLED[0])]
    if call.types[4]:  # it may be the array that is overwritten: no tile may compute results of another's again
        fitting = [p for p in fitting if places % p == 0]
    if not fitting or (kinds == 1 and fitting[0] < ROLLED[1]):
        return None
    if kinds > 1:  # four columns of results, each lines apart, in two rows: only where nothing is written twice
        whole = [p for p in fitting if places % p == 0 and near]
        pixels = max(whole, default=min(fitting))
    else:
        pixels = min(fitting, key=lambda p: -(-places // p) * (p + 1))
    step, span = w.first.stride, (pixels - 1) * w.first.stride + w.reach + 1
    before_last = (-(-places // pixels) - 2) * pixels  # where the last tile begins but one
    apart = min(pixels, places - pixels) * step >= w.low and before_last * step + span - w.low <= w.first.size
    return pixels if places == pixels or apart else None  # only the first tile and the last reach beyond the image


def _rolls(h: Axis, w: Axis) -> bool:
    """Whether all taps are next to each other and few, strides small, and every residue is there."""
    few = 1 < h.taps * w.taps <= columns.HELD and max(h.first.stride, w.first.stride) <= 2
    return few and h.dense() and w.dense() and h.whole() and w.whole()


def _streams(call: Call, h: Axis, w: Axis, pixels: int) -> tuple[dict[str, Fixed], dict[str, int]]:
    """What is compiled in, and the numbers, of results that go past the caches; nothing where they had better stay."""
    plain = call.types[3] == call.dtype and not call.types[4] and len(h.sweeps) == len(w.sweeps) == h.out_step == 1
    if not (caches.past_caches(*call.sizes) and plain) or w.first.out <= pixels:
        return {}, {}
    size = STORED[call.types[0]][1]
    lined = call.lanes * STORED[call.dtype][1] == LINE and call.channels % call.lanes == 0
    tile = min(STREAMED, h.first.out) * pixels * call.channels * STORED[call.dtype][1]
    group = min(STAGE // 2 // tile, -(-w.first.out // pixels))
    if not (lined or group):
        return {}, {}
    fetched = pixels * w.first.stride * call.source[-1] * size
    return {"lined": lined, "stage": STAGE, "ahead": -(-FETCHED // fetched)}, {"group": group}


def _turns(steps: int, taps: int) -> int:
    """Steps of a tile whose instructions are written out one after the other.

    A processor sees the address of a load grow by a row with every step; after a few it fetches rows by itself, and
    does not know where the block ends. It seems not to begin where each load runs ``UNSEEN`` times at most.
    """
    few = [turns for turns in range(1, WRITTEN + 1) if steps % turns == 0 and steps // turns <= UNSEEN]
    return few[0] if few and taps <= FEW_TAPS else 1


def _rolled(call: Call, h: Axis, w: Axis, pixels: int) -> Plan:
    places, step = w.first.out, w.first.stride
    strip, block_channels, block_rows = call.blocks(ONE, h.first, w.first, kinds=len(h.sweeps) * len(w.sweeps))
    whole, (streams, group) = places == pixels, _streams(call, h, w, pixels)
    late = steps_late(h.phases, h.first.stride)
    if streams:
        block_channels, block_rows = call.channels, min(STREAMED, h.first.out)
    row_blocks, channel_blocks = -(-h.first.out // block_rows), -(-call.channels // block_channels)
    fixed, numbers = _common(call, block_channels, call.result[0] * row_blocks)
    fixed |= {
        "whole": whole,
        "streams": bool(streams),
        "pixels": pixels,
        "row_taps": columns.written(h.phases),
        "column_taps": columns.written(w.phases),
        "row_step": h.first.stride,
        "column_step": step,
        "row_kinds": len(h.sweeps),
        "column_kinds": len(w.sweeps),
        "late": late,
        "turns": _turns(block_rows + late, h.taps * w.taps) if streams or row_blocks == 1 else 1,
        "kernel_w": call.kernel[-1],
        "missing": max(w.low, 0),
        "existing": min(w.first.size + w.low - (places - pixels) * step, (pixels - 1) * step + w.reach + 1),
        "last": w.results - (places - 1) * len(w.sweeps),
        **streams,
    }
    numbers |= {
        "height": h.first.size,
        "low_h": h.low,
        "low_w": w.low,
        "out_h": h.first.out,
        "out_rows": h.results,
        "out_w": places,
        "tiles": -(-places // pixels),
        "out_start": h.out_first * numbers["out_row"] + w.out_first * numbers["out_pixel"],
        "weight_tap": call.tap * STORED[call.dtype][1],
        "strip": strip,
        "block_channels": block_channels,
        "block_rows": block_rows,
        "row_blocks": row_blocks,
        **group,
    }
    numbers["out_row"] *= h.out_step
    numbers["out_pixel"] *= w.out_step
    items = numbers["slices"] * channel_blocks if call.channels else 0
    work = call.result[0] * call.channels * h.first.out * places * max(h.taps * w.taps, 4)
    work += packing_work(call) if fixed["packs"] else 0
    kernel = "streamed" if streams else "rolled_whole" if whole else "rolled_wide"
    return Plan(kernel, fixed, numbers, items, work)


def _tiled(call: Call, d: Sweep, h: Sweep, w: Sweep) -> Plan:
    """A tile of a few pixels of a row, which takes a row of taps at a time."""
    common = w.taps <= WIDEST and w.stride <= 3 and (w.taps - 1) * w.dilation <= 2 * WIDEST
    strip, block_channels, block_rows = call.blocks(d, h, w)
    row_blocks, channel_blocks = -(-h.out // block_rows), -(-call.channels // block_channels)
    fixed, numbers = _common(call, block_channels, call.result[0] * d.out * row_blocks)
    many = common and call.channels >= MANY * call.lanes  # each width is compiled
    row = many and _covers(w)
    pixels = w.out if row else tile_pixels(w, many=many)
    fixed |= {
        "pixels": pixels,
        "taps_w": max(w.taps, 1) if common else 1,
    }
    whole = many and w.out <= pixels
    numbers |= {
        "out_start": sum(s.out_first * step for s, step in zip((d, h, w), _steps(call.result)[1:], strict=True)),
        "depth": d.size,
        "height": h.size,
        "out_d": d.out,
        "out_h": h.out,
        "out_w": w.out,
        **_weight_steps(call, d, h, w),
        **{
            f"{field}_{axis}": value for axis, sweep in (("d", d), ("h", h)) for field, value in _numbers(sweep).items()
        },
        "strip": strip,
        "block_channels": block_channels,
        "block_rows": block_rows,
        "row_blocks": row_blocks,
    }
    for axis, sweep in (("plane", d), ("row", h), ("pixel", w)):
        numbers[f"out_{axis}"] *= sweep.out_step
    numbers["x_down"] = numbers["x_row"] * h.dilation * STORED[call.types[0]][1]
    (fixed if common else numbers).update(kernel_w=w.taps, stride_w=w.stride, dilation_w=w.dilation)
    (fixed if whole else numbers).update(width=w.size, low_w=w.low)
    items = numbers["slices"] * channel_blocks if w.out and call.channels else 0
    work = call.result[0] * call.channels * d.out * h.out * w.out * call.fold * max(d.taps * h.taps * w.taps, 4)
    work += packing_work(call) if fixed["packs"] else 0
    return Plan("correlate_whole" if whole else "correlate", fixed, numbers, items, work)


def _weight_steps(call: Call, d: Sweep, h: Sweep, w: Sweep) -> dict[str, int]:
    """Bytes of packed weights from one tap of a pass to the next along each axis, and to its first."""
    _, rows, columns = (1,) * (3 - len(call.kernel)) + call.kernel
    tap = call.tap * STORED[call.dtype][1]
    return {
        "weight_start": ((d.tap_first * rows + h.tap_first) * columns + w.tap_first) * tap,
        "weight_tap": w.tap_step * tap,
        "weight_row": h.tap_step * columns * tap,
        "weight_plane": d.tap_step * rows * columns * tap,
        "weight_fold": prod(call.kernel) * tap,
    }


def _numbers(sweep: Sweep) -> dict[str, int]:
    return {"kernel": sweep.taps, "stride": sweep.stride, "dilation": sweep.dilation, "low": sweep.low}


def _steps(shape: tuple[int, ...]) -> tuple[int, int, int, int]:
    """Values from one image, plane, row and pixel to the next."""
    _, h, w = (1,) * (3 - (len(shape) - 2)) + shape[1:-1]
    pixel = shape[-1]
    return prod(shape[1:]), h * w * pixel, w * pixel, pixel


def _strides(name: str, shape: tuple[int, ...]) -> dict[str, int]:
    return dict(zip((f"{name}_image", f"{name}_plane", f"{name}_row", f"{name}_pixel"), _steps(shape), strict=True))


def tile_pixels(w: Sweep, *, many: bool = True) -> int:
    """Pixels in a tile: 4, or 7 or 8, as few as possible wasted at the end of a row; each is compiled, so few.

    Where taps are further apart than such a tile is wide, no input is met twice in a row of it; of many channels a
    wider tile is taken that meets some of its inputs twice, if registers hold it.
    """
    if w.out <= 4:
        return 4
    if many and machine().registers >= 32 and w.dilation > 1:
        wide = [p for p in WIDE if w.dilation < p <= w.out and p + w.taps + SPARE <= machine().registers]
        return min((8, 7, *wide), key=lambda pixels: _row_cost(w, pixels))
    return min((8, 7), key=lambda pixels: -w.out % pixels)


def _row_cost(w: Sweep, pixels: int) -> int:
    """Cycles for a row of taps of a row of results in tiles of ``pixels``: multiply-adds, and loads that miss L1."""
    columns = len(meetings(pixels, w.taps, w.stride, w.dilation))
    return -(-w.out // pixels) * (pixels * w.taps + 2 * columns)


def _covers(w: Sweep) -> bool:
    """Whether a row of results that registers hold counts every input of its rows: they are all that a tile has."""
    few = tile_pixels(w) < w.out <= (16 if machine().registers >= 32 else 8)
    return few and w.stride == w.dilation == 1 and w.out - 1 <= w.low <= w.taps - w.size

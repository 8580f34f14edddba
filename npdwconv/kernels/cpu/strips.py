"""Separable convolution a strip at a time: the depthwise kernel and the product as a pair, in either layout."""

from __future__ import annotations

from functools import lru_cache
from math import prod
from typing import Any, NamedTuple

import numpy as np

from npdwconv.geometry import ConvGeometry
from npdwconv.kernels.cpu import caches, channels_first, channels_last, phases, planes
from npdwconv.kernels.cpu.arrays import LINE, room
from npdwconv.kernels.cpu.caches import second
from npdwconv.kernels.cpu.engine import Launch
from npdwconv.kernels.cpu.pointwise import cheaper
from npdwconv.kernels.cpu.products import (
    WAYS,
    Matrices,
    Packing,
    Strides,
    packed_product,
    packing,
    packing_product,
    sets,
)
from npdwconv.kernels.cpu.together import Bounds, Fetched, First, Pair, Steps, rows_of, together
from npdwconv.layouts import Array, shape_of, split_shape
from npdwconv.precision import accumulator

LEAST_BYTES = 3_000_000  # of all depthwise results; fewer stay in caches
POINTERS = {"channels_first": ("source", "weight", "bias_at"), "channels_last": ("x", "weight", "bias")}


class Strips(NamedTuple):
    """The pair of kernels for one shape, and what packs their weights where they want panels."""

    pack: channels_last.Dense | None
    packing: Packing | None
    pair: Pair
    pointers: tuple[str, ...]  # the depthwise kernel's fields for x, weight and bias

    def run(
        self, x: Array, taps: Array, first_bias: Array | None, weight: Array, second_bias: Array | None, out: Array
    ) -> None:
        """Run over arrays that are contiguous and aligned; ``weight`` is the pointwise weight, or its panels."""
        if self.pack is not None:
            self.pack.pack(taps, packed := self.pack.room())
            taps = packed
        _, kernel, bias = self.pointers
        panels = "a" if self.packing is None else "packed"
        operands = {kernel: taps, bias: first_bias}, {panels: weight, "bias": second_bias}
        self.pair.launch(*self.pair.blocks(*operands, room(self.pair.scratch)), x, out, None)


@lru_cache(maxsize=256)
def strips(
    layout: str,
    shapes: tuple[tuple[int, ...], ...],
    g: ConvGeometry,
    dtypes: tuple[np.dtype[Any], bool, bool],
    activations: tuple[str, ...],
    threads: int,
) -> Strips | None:
    """What runs a separable convolution of x and pointwise weight of these shapes strip by strip.

    ``dtypes``: the operands', and whether there are a depthwise and a pointwise bias. None where the depthwise results
    are few: then the pointwise weight is what had better be shared out.
    """
    x_shape, (outputs, channels) = shapes
    dtype, first_bias, second_bias = dtypes
    batch, inputs, size = split_shape(layout, x_shape)
    middle, pixels = accumulator(dtype), prod(g.out)
    if batch * pixels * channels * middle.itemsize < LEAST_BYTES:
        return None
    (sweeps,) = phases.forward(g)
    axis, width = (0, 1) if len(sweeps) == 1 else (len(sweeps) - 2, g.out[-1])
    depth, moved = prod(g.out[:axis]), sweeps[axis]
    rows = rows_of(moved.out, width * channels * middle.itemsize, batch * depth, threads)
    bounds = Bounds(batch, depth, moved.out, width, rows)
    strip = tuple(
        s._replace(out=1 if place < axis else rows if place == axis else s.out) for place, s in enumerate(sweeps)
    )
    one, result = shape_of(layout, 1, inputs, size), shape_of(layout, 1, channels, tuple(s.out for s in strip))
    types = dtype, dtype, first_bias, middle, None
    pack, launch = _depthwise(layout, one, (channels, *g.kernel), result, (strip,), types, activations[0])
    pitch = rows * width if layout == "channels_last" else _pitch(rows * width, middle.itemsize)
    first = First(
        launch,
        launch.items,
        POINTERS[layout][0],
        "low_w" if len(sweeps) == 1 else "low_h",
        moved,
        sweeps[0] if depth > 1 else None,
        () if layout == "channels_last" else (("out_plane", pitch),),
    )
    if not first.fits():
        return None
    moved_bytes = batch * prod(size) * inputs * dtype.itemsize, batch * pixels * outputs * dtype.itemsize
    fetched = _fetched(layout, inputs, size, axis, moved, rows, dtype) if len(sweeps) <= 2 else None
    rest = {
        "bias_type": dtype.name if second_bias else "",
        "activation": activations[1],
        "past_caches": caches.past_caches(*moved_bytes),
        "walks": fetched is not None and caches.fetched(sum(moved_bytes)),
    }
    m = _product(layout, (rows * width, pitch, pixels), (channels, outputs), (middle.name, dtype.name), rest)
    packs = m.turned or layout == "channels_last"
    product, read = (packed_product(m), "a") if packs else (packing_product(m), "b")
    steps = Steps(
        prod(one) * dtype.itemsize,
        pixels * outputs * dtype.itemsize,
        dtype.itemsize * (outputs if layout == "channels_last" else 1),
    )
    size_between = pitch * channels * middle.itemsize
    pair = together(first, product, read, size_between, bounds, steps, bounds.items(threads), fetched)
    return Strips(pack, packing(m) if packs else None, pair, POINTERS[layout])


def _fetched(
    layout: str, channels: int, size: tuple[int, ...], axis: int, sweep: phases.Sweep, rows: int, dtype: np.dtype[Any]
) -> Fetched | None:
    """What a strip reads anew of x, strips lying along ``axis`` of two at most; None where it would not stay.

    Channels a large power of two apart share so few sets of the second cache that their lines push each other out.
    """
    last = layout == "channels_last"
    runs, pixel, plane = (1, channels, 0) if last else (channels, 1, prod(size))
    if runs > WAYS * sets(plane, dtype.name, second() // WAYS):
        return None
    row = prod(size[axis + 1 :]) * pixel * dtype.itemsize
    length = rows * sweep.stride * row
    overlap = max((sweep.taps - 1) * sweep.dilation + 1 - sweep.stride, 0)
    return Fetched(runs, length, length if last else plane * dtype.itemsize, row, overlap)


def _depthwise(
    layout: str,
    x: tuple[int, ...],
    weight: tuple[int, ...],
    result: tuple[int, ...],
    passes: tuple[phases.Sweeps, ...],
    types: tuple[Any, ...],
    activation: str,
) -> tuple[channels_last.Dense | None, Launch]:
    """The depthwise kernel over one strip, and what packs its weight."""
    if layout == "channels_last":
        dense = channels_last.launches(x, result, weight, passes, types, activation, 1)
        (launch,) = dense.passes
        return dense, launch
    dtypes = (*types[:2], types[0] if types[2] else None, *types[3:])
    (launch,) = channels_first.launches(planes.Call(x, weight, result, dtypes, activation), passes)
    return None, launch


def _product(
    layout: str,
    pixels: tuple[int, int, int],
    channels: tuple[int, int],
    types: tuple[str, str],
    rest: dict[str, Any],
) -> Matrices:
    """The product of a strip with the pointwise weight: pixels of the strip, from channel to channel, of a result."""
    (count, pitch, whole), (depth, outputs), (middle, stored) = pixels, channels, types
    weight, a, out = Strides(depth), Strides(1, pitch), Strides(whole, 1)
    if layout == "channels_last":
        return Matrices(1, count, outputs, depth, weight, weight, Strides(outputs), middle, stored, stored, **rest)
    return cheaper(
        Matrices(1, outputs, count, depth, weight, a, out, stored, middle, stored, **rest),
        Matrices(1, count, outputs, depth, a, weight, out, middle, stored, stored, turned=True, **rest),
    )


def _pitch(pixels: int, size: int) -> int:
    """Elements from one channel's results to the next: an odd number of lines, which spreads them over a cache."""
    line = LINE // size
    return (-(-pixels // line) | 1) * line

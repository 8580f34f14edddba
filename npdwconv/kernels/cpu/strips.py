"""Depthwise and pointwise convolution of a strip at a time: some rows of an image, or a part of a line.

Each item has a place for the depthwise results of one strip, small enough for the second cache, and takes its strips
one after another: the depthwise kernel writes there, the product reads from there. Both kernels are the ones that
whole arrays go through, planned for a strip; an item tells them by its own copies of their blocks where it is: windows
that begin elsewhere, and the place of the results. All strips are as high: the last begins where it ends in time.
"""

from __future__ import annotations

from functools import lru_cache
from math import prod
from typing import Any, NamedTuple

import numpy as np
from llvmlite import ir
from numba.core import types
from numba.extending import intrinsic

from npdwconv.geometry import ConvGeometry
from npdwconv.kernels.cpu import channels_first, channels_last, phases, planes
from npdwconv.kernels.cpu.arrays import LINE, aligned, room
from npdwconv.kernels.cpu.engine import Kernel, Launch
from npdwconv.kernels.cpu.pointwise import cheaper
from npdwconv.kernels.cpu.products import (
    Matrices,
    Packing,
    Strides,
    packed_product,
    packing,
    packing_product,
)
from npdwconv.kernels.cpu.simd import I64
from npdwconv.layouts import Array, shape_of, split_shape
from npdwconv.precision import accumulator

STRIP_BYTES = 256_000  # of the depthwise results of a strip
LEAST_BYTES = {
    "channels_first": 3_000_000,
    "channels_last": 1_000_000,
}  # of all depthwise results; fewer stay in caches
WORD = 8  # bytes of a number in a block
POINTERS = {"channels_first": ("source", "weight", "bias_at", "out"), "channels_last": ("x", "weight", "bias", "out")}


@intrinsic
def _put(typing: Any, address: Any, value: Any) -> Any:
    """Write a number of a block."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        builder.store(arguments[1], builder.inttoptr(arguments[0], I64.as_pointer()))
        return context.get_dummy_value()

    return types.none(types.int64, types.int64), generate


@intrinsic
def _call(typing: Any, entry: Any, block: Any, item: Any) -> Any:
    """Run the kernel at ``entry``."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        pointer = I64.as_pointer()
        kind = ir.FunctionType(ir.IntType(8).as_pointer(), [pointer, I64])
        kernel = builder.inttoptr(arguments[0], kind.as_pointer())
        builder.call(kernel, [builder.inttoptr(arguments[1], pointer), arguments[2]])
        return context.get_dummy_value()

    return types.none(types.int64, types.int64, types.int64), generate


def _both(task: Any, item: Any) -> None:
    """An item's strips through both kernels."""
    first, second = task.first + item * task.first_size, task.second + item * task.second_size
    strips = task.images * task.planes * task.blocks
    for strip in range(strips * item // task.items, strips * (item + 1) // task.items):
        row = min(strip % task.blocks * task.rows, task.height - task.rows)
        plane, image = strip // task.blocks % task.planes, strip // task.blocks // task.planes
        _put(first + task.first_x, task.x + image * task.x_image)
        _put(first + task.first_low, task.low - row * task.stride)
        if task.deep:
            _put(first + task.first_low_d, task.low_d - plane * task.stride_d)
        pixel = (plane * task.height + row) * task.width
        _put(second + task.second_out, task.out + image * task.out_image + pixel * task.out_pixel)
        for i in range(task.first_items):
            _call(task.first_entry, first, i)
        for i in range(task.second_items):
            _call(task.second_entry, second, i)


both = Kernel(_both)


class Block(NamedTuple):
    """A launch's block of numbers, once for every item, and the places in it of some of its fields."""

    numbers: Array
    launch: Launch

    def place(self, name: str) -> int:
        return self.launch.spec.fields.index(name)

    def with_addresses(self, arrays: dict[str, Array | None], own: dict[str, Array]) -> Array:
        """A copy that holds these arrays' addresses; of ``own``, each item has an entry."""
        filled: Array = self.numbers.copy()
        for name, array in arrays.items():
            filled[:, self.place(name)] = 0 if array is None else array.ctypes.data
        for name, addresses in own.items():
            filled[:, self.place(name)] = addresses
        return filled


class Strips(NamedTuple):
    """The launches of one shape, and the blocks that they are copied to."""

    pack: channels_last.Dense | None  # of the depthwise weight, where the layout wants it packed
    packing: Packing | None  # of the pointwise weight, where its panels are wanted
    launch: Launch
    first: Block
    second: Block
    pointers: tuple[str, ...]
    middle: int  # bytes for each item
    scratch: int  # bytes for each item

    def run(
        self, x: Array, taps: Array, first_bias: Array | None, weight: Array, second_bias: Array | None, out: Array
    ) -> None:
        """Run over arrays that are contiguous and aligned; ``weight`` is the pointwise weight, or its panels."""
        if self.pack is not None:
            packed = aligned((self.pack.packed,), self.pack.dtype)
            self.pack.pack(taps, packed)
            taps = packed
        _, kernel, bias, result = self.pointers
        items, each = self.launch.items, self.middle + self.scratch
        places = room(items * each).ctypes.data + np.arange(items) * each
        first = self.first.with_addresses({kernel: taps, bias: first_bias}, {result: places})
        read, panels = ("b", "a") if self.packing is None else ("a", "packed")
        own = {read: places, "scratch": places + self.middle}
        second = self.second.with_addresses({panels: weight, "bias": second_bias}, own)
        self.launch(first, second, x, out)


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

    None where the depthwise results are few: then the pointwise weight is what had better be shared out.
    """
    x_shape, (outputs, channels) = shapes
    dtype, first_bias, second_bias = dtypes
    batch, inputs, size = split_shape(layout, x_shape)
    middle, pixels = accumulator(dtype), prod(g.out)
    if batch * pixels * channels * middle.itemsize < LEAST_BYTES[layout]:
        return None
    (sweeps,) = phases.forward(g)
    axis, width = (0, 1) if len(sweeps) == 1 else (len(sweeps) - 2, g.out[-1])
    depth, moved = prod(g.out[:axis]), sweeps[axis]
    rows = _rows(moved.out, width * channels * middle.itemsize, batch * depth, threads)
    strip = tuple(
        s._replace(out=1 if place < axis else rows if place == axis else s.out) for place, s in enumerate(sweeps)
    )
    extents = tuple(s.out for s in strip)
    one, result = shape_of(layout, 1, inputs, size), shape_of(layout, 1, channels, extents)
    kernel, types = (channels, *g.kernel), (dtype, dtype, first_bias, middle, None)
    dense, launch = _depthwise(layout, one, kernel, result, (strip,), types, activations[0])
    pitch = rows * width if layout == "channels_last" else _pitch(rows * width, middle.itemsize)
    m = _product(
        layout, (rows * width, pitch, pixels), (channels, outputs), (middle, dtype, second_bias), activations[1]
    )
    packs = m.turned or layout == "channels_last"
    product = packed_product(m) if packs else packing_product(m)
    blocks = -(-moved.out // rows)
    items = min(threads, batch * depth * blocks)
    changes = {} if layout == "channels_last" else {"out_plane": pitch}
    first, second = _block(launch, changes, items), _block(product.launch, {}, items)
    low, deep = "low_w" if len(sweeps) == 1 else "low_h", depth > 1
    if not {low, *(("low_d",) if deep else ())} <= set(launch.spec.fields):
        return None
    numbers = {
        "first_entry": launch.entry,
        "first_items": launch.items,
        "first_size": first.numbers.shape[1] * WORD,
        "first_x": first.place(POINTERS[layout][0]) * WORD,
        "first_low": first.place(low) * WORD,
        "first_low_d": first.place("low_d") * WORD if deep else 0,
        "second_entry": product.launch.entry,
        "second_items": product.launch.items,
        "second_size": second.numbers.shape[1] * WORD,
        "second_out": second.place("out") * WORD,
        "low": moved.low,
        "stride": moved.stride,
        "low_d": sweeps[0].low,
        "stride_d": sweeps[0].stride,
        "items": items,
        "images": batch,
        "planes": depth,
        "blocks": blocks,
        "rows": rows,
        "height": moved.out,
        "width": width,
        "x_image": prod(one) * dtype.itemsize,
        "out_image": pixels * outputs * dtype.itemsize,
        "out_pixel": dtype.itemsize * (outputs if layout == "channels_last" else 1),
    }
    work = batch * pixels * outputs * channels
    run = Launch(both, ("first", "second", "x", "out"), {"deep": deep}, numbers, items=items, work=work)
    place = -(-pitch * channels * middle.itemsize // LINE) * LINE
    return Strips(dense, packing(m) if packs else None, run, first, second, POINTERS[layout], place, product.scratch)


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
        (dense,) = channels_last.launches(x, result, weight, passes, types, activation, 1)
        return dense, dense.run
    dtypes = (*types[:2], types[0] if types[2] else None, *types[3:])
    (launch,) = channels_first.launches(planes.Call(x, weight, result, dtypes, activation), passes)
    return None, launch


def _product(
    layout: str,
    pixels: tuple[int, int, int],
    channels: tuple[int, int],
    types: tuple[np.dtype[Any], np.dtype[Any], bool],
    activation: str,
) -> Matrices:
    """The product of a strip with the pointwise weight: pixels of the strip, from channel to channel, of a result."""
    (count, pitch, whole), (depth, outputs) = pixels, channels
    middle, stored, bias = types[0].name, types[1].name, types[1].name if types[2] else ""
    weight = Strides(depth)
    rest: dict[str, Any] = {"bias_type": bias, "activation": activation}
    if layout == "channels_last":
        return Matrices(
            1, count, outputs, depth, Strides(depth), weight, Strides(outputs), middle, stored, stored, **rest
        )
    return cheaper(
        Matrices(
            1, outputs, count, depth, weight, Strides(1, pitch), Strides(whole, 1), stored, middle, stored, **rest
        ),
        Matrices(
            1,
            count,
            outputs,
            depth,
            Strides(1, pitch),
            weight,
            Strides(whole, 1),
            middle,
            stored,
            stored,
            turned=True,
            **rest,
        ),
    )


def _pitch(pixels: int, size: int) -> int:
    """Elements from one channel's results to the next: an odd number of lines, which spreads them over a cache."""
    line = LINE // size
    return (-(-pixels // line) | 1) * line


def _rows(height: int, row: int, planes: int, threads: int) -> int:
    """Rows of a strip: as many as its bytes allow, and the same number of strips for every thread."""
    blocks = -(-height // max(STRIP_BYTES // max(row, 1), 1))
    if planes % threads:
        blocks = -(-blocks // threads) * threads
    return -(-height // min(blocks, height))


def _block(launch: Launch, changes: dict[str, int], items: int) -> Block:
    numbers = np.frombuffer(launch.numbers, dtype=np.int64)
    pointers = np.zeros(len(launch.spec.fields) - len(numbers), dtype=np.int64)
    block = Block(np.tile(np.concatenate([pointers, numbers]), (items, 1)), launch)
    for name, value in changes.items():
        block.numbers[:, block.place(name)] = value
    return block

"""Depthwise and pointwise convolution of a strip of rows at a time, in channels_last.

Each item has a place for the depthwise results of one strip, small enough for the second cache, and takes its strips
one after another: the depthwise kernel writes there, the product reads from there. Both kernels are the ones that
whole images go through; an item tells them by its own copies of their blocks where the strip is.
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
from npdwconv.kernels.cpu import channels_last, phases
from npdwconv.kernels.cpu.engine import Kernel, Launch
from npdwconv.kernels.cpu.products import Matrices, Packing, Strides, packed_product, packing
from npdwconv.kernels.cpu.simd import I64
from npdwconv.layouts import Array
from npdwconv.precision import accumulator

STRIP_BYTES = 256_000  # of the depthwise results of a strip
LEAST_BYTES = 1_000_000  # of all the depthwise results, below which they stay in the caches anyway
WORD = 8  # bytes of a number in a block


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
    place = task.scratch + item * task.scratch_size
    strips = task.planes * task.row_blocks
    for strip in range(strips * item // task.items, strips * (item + 1) // task.items):
        row = strip % task.row_blocks * task.block_rows
        pixel = (strip // task.row_blocks * task.out_h + row) * task.out_w
        _put(first + task.first_out, place - pixel * task.middle_pixel)
        _put(second + task.second_out, task.out + pixel * task.out_pixel)
        _put(second + task.second_height, min(task.block_rows, task.out_h - row) * task.out_w)
        _call(task.first_entry, first, strip)
        _call(task.second_entry, second, 0)


both = Kernel(_both)


class Strips(NamedTuple):
    """The launches of one shape, and the blocks that they are copied to."""

    dense: channels_last.Dense
    packing: Packing
    launch: Launch
    first: Array
    second: Array
    places: tuple[int, ...]  # of x, weight and bias in the first block; of a, panels and bias in the second
    scratch: int  # elements for each item
    middle: np.dtype[Any]

    def run(
        self, x: Array, taps: Array, first_bias: Array | None, panels: Array, second_bias: Array | None, out: Array
    ) -> None:
        """Run over arrays that are contiguous and aligned, the pointwise weight packed."""
        packed = np.empty(self.dense.packed, self.dense.dtype)
        self.dense.pack(taps, packed)
        scratch = np.empty((self.launch.items, self.scratch), self.middle)
        first, second = self.first.copy(), self.second.copy()
        arrays = x, packed, first_bias
        for place, array in zip(self.places[:3], arrays, strict=True):
            first[:, place] = 0 if array is None else array.ctypes.data
        second[:, self.places[3]] = scratch.ctypes.data + np.arange(len(scratch)) * scratch.strides[0]
        for place, array in zip(self.places[4:], (panels, second_bias), strict=True):
            second[:, place] = 0 if array is None else array.ctypes.data
        self.launch(first, second, scratch, out)


@lru_cache(maxsize=256)
def strips(
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
    pixels, middle = x_shape[0] * prod(g.out), accumulator(dtype)
    if pixels * channels * middle.itemsize < LEAST_BYTES:
        return None
    types = dtype, dtype, first_bias, middle, None
    (dense,) = channels_last.launches(
        x_shape,
        (x_shape[0], *g.out, channels),
        (channels, *g.kernel),
        phases.forward(g),
        types,
        activations[0],
        threads,
    )
    *_, height, width = (1, *g.out)
    planes = pixels // (height * width)
    rows = _block_rows(height, width * channels * middle.itemsize, planes, threads)
    bias = dtype.name if second_bias else ""
    strides, names = (Strides(channels), Strides(channels), Strides(outputs)), (middle.name, dtype.name, dtype.name)
    m = Matrices(1, rows * width, outputs, channels, *strides, *names, bias_type=bias, activation=activations[1])
    product, row_blocks = packed_product(m), -(-height // rows)
    blocks = {"block_rows": rows, "row_blocks": row_blocks, "block_channels": channels, "channel_blocks": 1}
    items = min(threads, planes * row_blocks)
    first, second = _block(dense.run, blocks, items), _block(product, {}, items)
    numbers = {
        "first_entry": dense.run.entry,
        "second_entry": product.entry,
        "first_size": first.shape[1] * WORD,
        "second_size": second.shape[1] * WORD,
        "first_out": dense.run.spec.fields.index("out") * WORD,
        "second_out": product.spec.fields.index("out") * WORD,
        "second_height": product.spec.fields.index("height") * WORD,
        "scratch_size": rows * width * channels * middle.itemsize,
        "items": items,
        "planes": planes,
        "row_blocks": row_blocks,
        "block_rows": rows,
        "out_h": height,
        "out_w": width,
        "middle_pixel": channels * middle.itemsize,
        "out_pixel": outputs * dtype.itemsize,
    }
    launch = Launch(
        both, ("first", "second", "scratch", "out"), {}, numbers, items=items, work=pixels * outputs * channels
    )
    places = [dense.run.spec.fields.index(name) for name in ("x", "weight", "bias")]
    places += [product.spec.fields.index(name) for name in ("a", "packed", "bias")]
    return Strips(dense, packing(m), launch, first, second, tuple(places), rows * width * channels, middle)


def _block_rows(height: int, row: int, planes: int, threads: int) -> int:
    """Rows of a strip: as many as its bytes allow, and the same number of strips for every thread."""
    blocks = -(-height // max(STRIP_BYTES // max(row, 1), 1))
    if planes % threads:
        blocks = -(-blocks // threads) * threads
    return -(-height // min(blocks, height))


def _block(launch: Launch, changes: dict[str, int], items: int) -> Array:
    """A launch's block of numbers, some changed, once for every item."""
    fields, numbers = launch.spec.fields, np.frombuffer(launch.numbers, dtype=np.int64)
    block = np.concatenate([np.zeros(len(fields) - len(numbers), dtype=np.int64), numbers])
    for name, value in changes.items():
        block[fields.index(name)] = value
    return np.tile(block, (items, 1))

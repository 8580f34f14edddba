"""Two kernels over the same strips: what the first makes of a strip, a matrix product reads before the next is made.

A strip is some rows of a plane of the result, or a part of a line. Each work item has a place for what lies between the
kernels, small enough for the second cache, and takes its strips one after another. The kernels are those that whole
arrays go through, planned for one strip; an item tells them by its own copies of their blocks where it is: from which
address on the first one's windows begin, and where the product's results go. All strips of a plane are as high: the
last begins where it ends in time.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numba.core import types
from numba.extending import intrinsic

from npdwconv.kernels.cpu.arrays import LINE
from npdwconv.kernels.cpu.engine import Kernel, Launch
from npdwconv.kernels.cpu.fetching import WALK, step_of
from npdwconv.kernels.cpu.phases import Sweep
from npdwconv.kernels.cpu.products import Scratched
from npdwconv.kernels.cpu.simd import I64
from npdwconv.kernels.cpu.words import call
from npdwconv.layouts import Array

STRIP_BYTES = 256_000  # between the kernels
WORD = 8  # bytes of a number in a block


@intrinsic
def _put(typing: Any, address: Any, value: Any) -> Any:
    """Write a number of a block."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        builder.store(arguments[1], builder.inttoptr(arguments[0], I64.as_pointer()))
        return context.get_dummy_value()

    return types.none(types.int64, types.int64), generate


def _both(task: Any, item: Any) -> None:
    """An item's strips through both kernels."""
    first, second = task.first + item * task.first_size, task.second + item * task.second_size
    strips = task.images * task.planes * task.blocks
    last = strips * (item + 1) // task.items - 1
    for strip in range(strips * item // task.items, last + 1):
        row = min(strip % task.blocks * task.rows, task.height - task.rows)
        plane, image = strip // task.blocks % task.planes, strip // task.blocks // task.planes
        _put(first + task.first_x, task.x + image * task.x_image)
        _put(first + task.first_low, task.low - row * task.stride)
        if task.deep:
            _put(first + task.first_low_d, task.low_d - plane * task.stride_d)
        place = image * task.out_image + (plane * task.height + row) * task.width * task.out_pixel
        _put(second + task.second_out, task.out + place)
        _put(second + task.second_other, task.other + place)
        if task.walks:
            after = min(strip + 1, last)
            row = min(after % task.blocks * task.rows, task.height - task.rows) * task.stride - task.low + task.overlap
            start = task.x + after // task.blocks * task.x_image + row * task.x_row
            _put(second + task.second_fetch, start)
            _put(second + task.second_fetch_end, start + task.fetch_length)
        for i in range(task.first_items):
            call(task.first_entry, first, i)
        for i in range(task.second_items):
            call(task.second_entry, second, i)


both = Kernel(_both)


class Bounds(NamedTuple):
    """What is shared out: images and planes, the rows and columns of each, the rows of a strip."""

    images: int
    planes: int
    height: int
    width: int
    rows: int

    @property
    def blocks(self) -> int:
        """Strips of a plane."""
        return -(-self.height // self.rows)

    def items(self, threads: int) -> int:
        return min(threads, self.images * self.planes * self.blocks)


class First(NamedTuple):
    """The first kernel, planned for one strip: over how many items, and which fields say where the strip is."""

    launch: Launch
    items: int
    x: str
    low: str  # of the sweep along which strips lie
    sweep: Sweep
    plane: Sweep | None = None  # the sweep over planes, where there are several, whose field is low_d
    changes: tuple[tuple[str, int], ...] = ()  # to its numbers

    def fits(self) -> bool:
        """Whether those fields are not compiled in."""
        return {self.x, self.low, *(("low_d",) if self.plane else ())} <= set(self.launch.spec.fields)


class Steps(NamedTuple):
    """Bytes from one image of x to the next, and of the result; from one pixel of the result to the next."""

    x_image: int
    out_image: int
    out_pixel: int


class Fetched(NamedTuple):
    """What a strip reads that the one before did not: ``runs`` of ``length`` bytes, ``pitch`` apart.

    They begin ``overlap`` rows of ``row`` bytes below the strip's first.
    """

    runs: int
    length: int
    pitch: int
    row: int
    overlap: int


class Pair(NamedTuple):
    """A launch over (first, second, x, out, other), with the blocks of both kernels that `blocks` fills."""

    launch: Launch
    first: Array
    second: Array
    fields: tuple[tuple[str, ...], tuple[str, ...]]
    read: str  # the product's field for what the first has made
    middle: int  # bytes of it
    scratch: int  # bytes of all items together, for what lies between and what the product keeps for itself

    def blocks(self, first: dict[str, Array | None], second: dict[str, Array | None], scratch: Array) -> list[Array]:
        """Both blocks, once for every item, with these operands' addresses."""
        items = self.launch.items
        places = scratch.ctypes.data + np.arange(items) * (self.scratch // items)
        own = {"out": places}, {self.read: places, "scratch": places + self.middle}
        filled = []
        for block, fields, operands, mine in zip(
            (self.first, self.second), self.fields, (first, second), own, strict=True
        ):
            copy: Array = block.copy()
            for name, array in operands.items():
                copy[:, fields.index(name)] = 0 if array is None else array.ctypes.data
            for name, addresses in mine.items():
                copy[:, fields.index(name)] = addresses
            filled.append(copy)
        return filled


def together(
    first: First,
    product: Scratched,
    read: str,
    middle: int,
    bounds: Bounds,
    steps: Steps,
    items: int,
    fetched: Fetched | None = None,
) -> Pair:
    """A pair of kernels; ``read`` is the product's field for the ``middle`` bytes that the first makes of a strip."""
    launch, second = first.launch, product.launch
    before, after = launch.spec.fields, second.spec.fields
    changes, walk = {}, {}
    if fetched is not None and second.spec.walks:
        step = step_of(fetched.runs * fetched.length, product.rounds)
        changes = dict(zip(WALK[2:], (step, fetched.length, fetched.pitch), strict=True))
        place, end = (after.index(name) * WORD for name in WALK[:2])
        walk = {"second_fetch": place, "second_fetch_end": end, "fetch_length": fetched.length}
        walk |= {"x_row": fetched.row, "overlap": fetched.overlap}
    blocks = _block(launch, dict(first.changes), items), _block(second, changes, items)
    numbers = {
        "first_entry": launch.entry,
        "first_items": first.items,
        "first_size": blocks[0].shape[1] * WORD,
        "first_x": before.index(first.x) * WORD,
        "first_low": before.index(first.low) * WORD,
        "first_low_d": before.index("low_d") * WORD if first.plane else 0,
        "second_entry": second.entry,
        "second_items": second.items,
        "second_size": blocks[1].shape[1] * WORD,
        "second_out": after.index("out") * WORD,
        "second_other": after.index("other") * WORD,
        "low": first.sweep.low,
        "stride": first.sweep.stride,
        "low_d": first.plane.low if first.plane else 0,
        "stride_d": first.plane.stride if first.plane else 0,
        "items": items,
        "blocks": bounds.blocks,
        **bounds._asdict(),
        **steps._asdict(),
        **walk,
    }
    work = (second.work + launch.work) * bounds.images * bounds.planes * bounds.blocks
    fixed = {"deep": first.plane is not None, "walks": bool(walk)}
    run = Launch(both, ("first", "second", "x", "out", "other"), fixed, numbers, items=items, work=work)
    place = -(-middle // LINE) * LINE
    return Pair(run, *blocks, (before, after), read, place, items * (place + product.scratch))


def rows_of(height: int, row: int, planes: int, threads: int) -> int:
    """Rows of a strip: as many as its bytes allow, and the same number of strips for every thread."""
    blocks = -(-height // max(STRIP_BYTES // max(row, 1), 1))
    if planes % threads:
        blocks = -(-blocks // threads) * threads
    return -(-height // min(blocks, height))


def _block(launch: Launch, changes: dict[str, int], items: int) -> Array:
    """A launch's block, some numbers changed, once for every item."""
    fields, numbers = launch.spec.fields, np.frombuffer(launch.numbers, dtype=np.int64)
    block = np.concatenate([np.zeros(len(fields) - len(numbers), dtype=np.int64), numbers])
    for name, value in changes.items():
        block[fields.index(name)] = value
    return np.tile(block, (items, 1))

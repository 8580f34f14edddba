"""Matrix products of whole arrays: the kernels that walk over panels and rows."""

from __future__ import annotations

from typing import Any

from npdwconv.kernels.cpu.engine import Kernel, inlined
from npdwconv.kernels.cpu.gemm import first_vector, rows_by_panel
from npdwconv.kernels.cpu.panels import pack_panels, rows_of_a

NOTHING = 0, 0, 0, 0, 0  # packed ahead


@inlined
def _next_panel(task: Any, b: Any, p: Any, exists: Any, target: Any) -> Any:
    """What tiles pack of b's panel p, if it ``exists``: whether they do, and what `rows_by_panel` needs for that.

    Where they do not they stay at one step of columns that exist, and what they copy is never read.
    """
    vectors, begin = task.vectors if p < task.wide else task.last, first_vector(task, p) * task.lanes
    columns = min(vectors * task.lanes, task.columns - begin)
    if exists and columns >= task.slice:
        source, pitch = b + begin * task.b_line * task.b_size, vectors * task.lanes * task.size
        return True, (source, target, task.b_step * task.b_size, pitch, columns)
    return False, (task.b, target, 0, 0, task.slice)


@inlined
def _next_chunk(task: Any, image: Any, start: Any, depth: Any, p: Any, first: Any, last: Any, target: Any) -> Any:
    """`_next_panel` of a reduction: after the last panel comes the first one of the next chunk, if that is as deep."""
    p += 1
    if p == last:
        p, start = first, start + depth
    if start == task.depth:
        image, start = image + 1, 0
    exists = image < task.images and min(task.chunk, task.depth - start) == depth
    b = task.b + (image * task.b_image + start * task.b_step) * task.b_size
    return _next_panel(task, b, p, exists, target)


def _pack(task: Any, item: Any) -> None:
    """One panel of a matrix, into its place among the panels."""
    vector = first_vector(task, item)
    column = vector * task.lanes
    source = task.b + column * task.b_line * task.b_size
    target = task.packed + column * task.depth * task.size
    pack_panels(task, source, target, item, 1, task.columns - column, task.depth)


def _multiply(task: Any, item: Any) -> None:
    """A block of rows (of all images) by a block of packed panels."""
    row_block, column_block = item // task.column_blocks, item % task.column_blocks
    tiles = (task.height + task.rows - 1) // task.rows
    total = task.images * tiles
    tile, end = total * row_block // task.row_blocks, total * (row_block + 1) // task.row_blocks
    first = task.panels * column_block // task.column_blocks
    last = task.panels * (column_block + 1) // task.column_blocks
    column_step = task.out_row if task.turned else 1
    row_step = 1 if task.turned else task.out_row
    scratch = task.scratch + item * task.scratch_item
    while tile < end:
        image, row = tile // tiles, tile % tiles * task.rows
        count = min(task.height - row, task.group * task.rows, (end - tile) * task.rows)
        place = task.a + (image * task.a_image + row * task.a_line) * task.a_size
        a = rows_of_a(task, place, scratch, count, task.depth)
        for p in range(first, last):
            column = first_vector(task, p) * task.lanes
            place = image * task.out_image + row * row_step + column * column_step
            rows_by_panel(
                task,
                a,
                task.packed + column * task.depth * task.size,
                task.bias + column * task.bias_size,
                task.out + place * task.out_size,
                task.other + place * task.other_size,
                task.depth,
                count,
                p < task.wide,
                task.columns - column,
                0,
                NOTHING,
            )
        tile += (count + task.rows - 1) // task.rows


def _multiply_packing(task: Any, item: Any) -> None:
    """A block of rows, of one a, by a block of panels (of all images), each packed where the item keeps it."""
    row_block, column_block = item // task.column_blocks, item % task.column_blocks
    tiles = (task.height + task.rows - 1) // task.rows
    start = tiles * row_block // task.row_blocks * task.rows
    end = min(tiles * (row_block + 1) // task.row_blocks * task.rows, task.height)
    units = task.images * task.panels
    first = units * column_block // task.column_blocks
    scratch = task.scratch + item * task.scratch_item
    panels = scratch + task.group * task.tile_next * task.size if task.a_packs else scratch
    spare, packed = panels + task.spare, False
    for row in range(start, end, task.group * task.rows):
        count = min(end - row, task.group * task.rows)
        a = rows_of_a(task, task.a + row * task.a_line * task.a_size, scratch, count, task.depth)
        unit, last = first, units * (column_block + 1) // task.column_blocks
        while unit < last:
            image, p = unit // task.panels, unit % task.panels
            together = min(task.together, task.panels - p, last - unit)
            after = unit + together
            begin = first_vector(task, p) * task.lanes
            source = task.b + (image * task.b_image + begin * task.b_line) * task.b_size
            if not (task.direct or packed):
                pack_panels(task, source, panels, p, together, task.columns - begin, task.depth)
            ahead = NOTHING
            if task.slice:
                b = task.b + after // task.panels * task.b_image * task.b_size
                packed, ahead = _next_panel(task, b, after % task.panels, after < last, spare)
            for q in range(p, p + together):
                column = first_vector(task, q) * task.lanes
                panel = panels + (column - begin) * task.depth * task.size
                if task.direct:
                    panel = source + (column - begin) * task.b_line * task.b_size
                place = image * task.out_image + row * task.out_row + column
                if task.turned:
                    place = image * task.out_image + row + column * task.out_row
                rows_by_panel(
                    task,
                    a,
                    panel,
                    task.bias + (row if task.bias_of_rows else column) * task.bias_size,
                    task.out + place * task.out_size,
                    task.other + place * task.other_size,
                    task.depth,
                    count,
                    q < task.wide,
                    task.columns - column,
                    0,
                    ahead,
                )
            unit = after
            panels, spare = spare, panels


def _reduce(task: Any, item: Any) -> None:
    """A block of rows by a block of columns of a product over long depths, a chunk after another, image after image."""
    row_block, column_block = item // task.column_blocks, item % task.column_blocks
    tiles = (task.height + task.rows - 1) // task.rows
    top = tiles * row_block // task.row_blocks * task.rows
    bottom = min(tiles * (row_block + 1) // task.row_blocks * task.rows, task.height)
    first = task.panels * column_block // task.column_blocks
    last = task.panels * (column_block + 1) // task.column_blocks
    scratch = task.scratch + item * task.scratch_item
    panels = scratch + task.group * task.tile_next * task.size if task.a_packs else scratch
    spare, packed = panels + task.spare, False
    for image in range(task.images):
        for start in range(0, task.depth, task.chunk):
            depth = min(task.chunk, task.depth - start)
            for row in range(top, bottom, task.group * task.rows):
                count = min(bottom - row, task.group * task.rows)
                place = task.a + (image * task.a_image + start * task.a_step + row * task.a_line) * task.a_size
                a = rows_of_a(task, place, scratch, count, depth)
                for p in range(first, last, task.together):
                    together, begin = min(task.together, last - p), first_vector(task, p) * task.lanes
                    place = image * task.b_image + start * task.b_step + begin * task.b_line
                    source = task.b + place * task.b_size
                    if not (task.direct or packed):
                        pack_panels(task, source, panels, p, together, task.columns - begin, depth)
                    ahead = NOTHING
                    if task.slice:
                        packed, ahead = _next_chunk(task, image, start, depth, p, first, last, spare)
                    for q in range(p, p + together):
                        column = first_vector(task, q) * task.lanes
                        panel = panels + (column - begin) * depth * task.size
                        if task.direct:
                            panel = source + (column - begin) * task.b_line * task.b_size
                        place = column * task.out_row + row if task.turned else row * task.out_row + column
                        out, left, add = task.out + place * task.out_size, task.columns - column, image + start
                        rows_by_panel(task, a, panel, 0, out, 0, depth, count, q < task.wide, left, add, ahead)
                    panels, spare = spare, panels


pack, multiply, multiply_packing, reduce = (
    Kernel(function) for function in (_pack, _multiply, _multiply_packing, _reduce)
)

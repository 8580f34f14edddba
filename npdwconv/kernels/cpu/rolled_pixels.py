"""Kernels whose tiles roll down an image in channels_last (`pixel_rolling`): blocks of rows and channels, tile by tile.

Results stay in the caches, or go past them by way of the stack, some tiles together.
"""

from __future__ import annotations

from typing import Any

from npdwconv.kernels.cpu.engine import Kernel, inlined
from npdwconv.kernels.cpu.packed_taps import pack_own
from npdwconv.kernels.cpu.pixel_rolling import begin, hold, pass_on, stage, stepping


def _strip(*, leftmost: bool, rightmost: bool) -> Any:
    step = stepping(leftmost=leftmost, rightmost=rightmost)

    @inlined
    def strip(
        task: Any,
        weight: Any,
        bias: Any,
        x: Any,
        out: Any,
        down: Any,
        top: Any,
        count: Any,
        results: Any,
        channel: Any,
    ) -> None:
        """Write the results of ``count`` places down the image from those at ``out`` on, whose first row is ``top``."""
        held, sums = hold(task, weight), begin(task)
        for place in range(0, count + task.late, task.turns):
            sums = step(task, sums, held, bias, x, out, down, place, results, top, channel)
            top += task.turns * task.row_step
            x += task.turns * task.row_step * task.x_row * task.x_size
            out += task.turns * task.row_kinds * down * task.out_size

    return strip


strip_whole = _strip(leftmost=True, rightmost=True)
strip_left, strip_inside, strip_right = (
    _strip(leftmost=left, rightmost=right) for left, right in ((True, False), (False, False), (False, True))
)


def _whole(
    task: Any,
    tile: Any,
    weight: Any,
    bias: Any,
    x: Any,
    out: Any,
    down: Any,
    top: Any,
    count: Any,
    results: Any,
    channel: Any,
) -> None:
    strip_whole(task, weight, bias, x, out, down, top, count, results, channel)


def _wide(
    task: Any,
    tile: Any,
    weight: Any,
    bias: Any,
    x: Any,
    out: Any,
    down: Any,
    top: Any,
    count: Any,
    results: Any,
    channel: Any,
) -> None:
    if tile == 0:
        strip_left(task, weight, bias, x, out, down, top, count, results, channel)
    elif tile == task.tiles - 1:
        strip_right(task, weight, bias, x, out, down, top, count, results, channel)
    else:
        strip_inside(task, weight, bias, x, out, down, top, count, results, channel)


wide = inlined(_wide)


@inlined
def stream(task: Any, source: Any, target: Any, count: Any) -> None:
    """Write ``count`` values past the caches, but for those that share a line with others."""
    first = min(-(target // task.out_size) % task.lanes, count)
    if first:
        pass_on(task, source, target, first)
    for i in range(first, count - task.lanes + 1, task.lanes):
        pass_on(task, source + i * task.out_size, target + i * task.out_size, task.lanes)
    rest = (count - first) % task.lanes
    if rest:
        pass_on(task, source + (count - rest) * task.out_size, target + (count - rest) * task.out_size, rest)


def _roller(roll: Any) -> Any:
    def rolled(task: Any, item: Any) -> None:
        """A block of rows and of channels of an image, a tile's columns after another."""
        strip_block, rest = item // task.slices, item % task.slices
        row_block, image = rest % task.row_blocks, rest // task.row_blocks
        begin_ = strip_block * task.block_channels
        end = min(begin_ + task.block_channels, task.channels)
        pack_own(task, begin_, end)
        ahead = task.x % (task.lanes * task.x_size) // task.x_size if task.aligns else 0
        final = end - task.lanes if task.aligns else end
        p = row_block * task.block_rows
        count = min(task.block_rows, task.out_h - p)
        results = min(count * task.row_kinds, task.out_rows - p * task.row_kinds)
        top = p * task.row_step - task.low_h
        corner = image * task.x_image + top * task.x_row - task.low_w * task.x_pixel
        place = image * task.out_image + task.out_start + p * task.row_kinds * task.out_row
        for strip in range(begin_ - ahead, end, task.strip):
            for tile in range(task.tiles):
                q = min(tile * task.pixels, task.out_w - task.pixels)
                source = corner + q * task.column_step * task.x_pixel
                there = place + q * task.column_kinds * task.out_pixel
                for lane in range(strip, min(strip + task.strip, end), task.lanes):
                    c = min(max(lane, begin_), final)
                    roll(
                        task,
                        tile,
                        task.weight + c * task.weight_size,
                        task.bias + c * task.bias_size,
                        task.x + (source + c // task.repeat) * task.x_size,
                        task.out + (there + c) * task.out_size,
                        task.out_row,
                        top,
                        count,
                        results,
                        c,
                    )

    return rolled


def _streamed(task: Any, item: Any) -> None:
    """A block of rows of an image, all channels, results past the caches.

    Vectors that are whole lines are written at once. Others lie on the stack until some tiles' columns are done; while
    the next ones are made, they are written row by row: memory reads and writes at once.
    """
    row_block, image = item % task.row_blocks, item // task.row_blocks
    pack_own(task, 0, task.channels)
    p = row_block * task.block_rows
    count = min(task.block_rows, task.out_h - p)
    top = p * task.row_step - task.low_h
    corner = image * task.x_image + top * task.x_row - task.low_w * task.x_pixel
    place = image * task.out_image + task.out_start + p * task.out_row
    straight = task.lined and (task.group == 0 or task.out % (task.lanes * task.out_size) == 0)
    room, down = stage(task), task.out_row if straight else task.group * task.pixels * task.channels
    ready, held, length, there = room + task.stage // 2, 0, 0, 0  # rows on the stack, their values, where they belong
    for first in range(0, task.tiles, max(task.group, 1)):
        origin, last = min(first * task.pixels, task.out_w - task.pixels), min(first + max(task.group, 1), task.tiles)
        target = task.out + (place + origin * task.channels) * task.out_size
        rolls, rolled, row = (last - first) * -(-task.channels // task.lanes), 0, 0
        for tile in range(first, last):
            q = min(tile * task.pixels, task.out_w - task.pixels)
            source = corner + q * task.column_step * task.x_pixel
            for c in range(0, task.channels, task.lanes):
                wide(
                    task,
                    tile,
                    task.weight + c * task.weight_size,
                    task.bias + c * task.bias_size,
                    task.x + (source + c // task.repeat) * task.x_size,
                    (target if straight else room) + ((q - origin) * task.channels + c) * task.out_size,
                    down,
                    top,
                    count,
                    count,
                    c,
                )
                rolled += 1
                while row < held * rolled // rolls:
                    stream(task, ready + row * down * task.out_size, there + row * task.out_row * task.out_size, length)
                    row += 1
        if not straight:
            room, ready, held = ready, room, count
            there, length = target, (min(last * task.pixels, task.out_w) - origin) * task.channels
    for row in range(held):
        stream(task, ready + row * down * task.out_size, there + row * task.out_row * task.out_size, length)


rolled_whole, rolled_wide, streamed = Kernel(_roller(inlined(_whole))), Kernel(_roller(wide)), Kernel(_streamed)

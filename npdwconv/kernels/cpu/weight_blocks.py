"""What the weight gradient's register tiles hold, and how planes are covered by blocks that are turned. No arrays."""

from __future__ import annotations

from typing import NamedTuple

from npdwconv.geometry import Axis
from npdwconv.kernels.cpu.arrays import LINE
from npdwconv.kernels.cpu.machine import machine

WIDE = 8  # at most so many taps of a row in a tile
PIXELS = 7  # of a tile: extents in networks are multiples of it
SCRATCH = 1024  # vectors of one item's turned planes
LAID = 1 << 16  # bytes of one item's images in channels_last
TOGETHER = (8, 4, 2)  # vectors of channels that are laid out together


class Tile(NamedTuple):
    """The taps that a register tile holds, sums for each, and the rows and pixels of z that it takes at once."""

    rows: int
    columns: int
    sets: int
    lines: int
    pixels: int


class Blocks(NamedTuple):
    """What a turned block of planes covers: rows and columns of z, rows and columns of taps, columns of x."""

    height: int
    width: int
    tap_rows: int
    tap_columns: int
    x_width: int
    vectors: int
    cost: int
    rolling: bool


def lanes_used(lanes: int, each: int) -> int:
    """Lanes of a vector of channels that count where ``each`` of them share an operand: whole shares, if one fits."""
    return lanes if each > lanes else lanes // each * each


def tile_of(h: Axis, w: Axis, *, narrow: bool) -> Tile:
    """The largest tile whose sums, with the pixels and the column of x that meet them, stay in registers."""
    columns = 1 if narrow else -(-w.kernel // -(-w.kernel // WIDE))
    fit = 1 if narrow else max(1, (machine().registers - 2 - min(PIXELS, columns)) // columns)
    rows_ = -(-h.kernel // -(-h.kernel // min(h.kernel, fit)))
    lines = 2 if is_dense(h, w) and (rows_, columns) == (h.kernel, w.kernel) and rows_ * columns <= 9 else 1
    return Tile(rows_, columns, -(-8 // (rows_ * columns)), lines, PIXELS)


def is_dense(h: Axis, w: Axis) -> bool:
    """Whether neighbouring pixels share what they read: then strides are compiled in."""
    return max(h.stride, w.stride) <= 2 and h.dilation == w.dilation == 1


def laid_together(h: Axis, w: Axis, lanes: int, vector: int, vectors: int, items: int) -> int:
    """Vectors of channels of an image in channels_last that are laid out together; 0 if it is read where it is.

    What is laid out are whole lines, two of them at least, of all pixels: sums stay in registers for all of an image,
    and a line that several vectors share is fetched once, wherever the next pixel's is. There should be ``items``
    groups of the ``vectors``, of ``vector`` bytes each.
    """
    most = LAID // (space(h.out * w.out + lanes, h.size * w.size, vector) * vector)
    fitting = [group for group in TOGETHER if group <= min(most, vectors) and group * vector >= 2 * LINE]
    if not fitting or not is_dense(h, w):
        return 0
    return next((group for group in fitting if vectors // group >= items), fitting[-1])


def space(z: int, x: int, vector: int) -> int:
    """Vectors from one block of the scratch to the next: an odd number of lines, which are in other sets of a cache."""
    line = max(LINE // vector, 1)
    return (-(-(z + x) // line) | 1) * line


def cheapest(h: Axis, w: Axis, tile: Tile, lanes: int, room: int = SCRATCH) -> Blocks:
    """The cheapest cover: of all blocks that fit in ``room`` vectors, the one that turns the fewest vectors in all."""
    padded = -(-w.kernel // tile.columns) * tile.columns
    tap_rows = {h.kernel, 1, *(min(h.kernel, m * tile.rows) for m in (1, 2, 4))}
    tap_columns = {padded, *(min(padded, m * tile.columns) for m in (1, 2, 4))}
    widths = {-(-w.out // parts) for parts in range(1, w.out + 1) if parts < 9 or not parts & (parts - 1)} | {1}
    widths |= set(range(2 * lanes, w.out, lanes))
    every = (_block(h, w, lanes, tr, tc, width, room) for tr in tap_rows for tc in tap_columns for width in widths)
    return min((block for block in every if block is not None), key=lambda block: (block.cost, block))


def _block(h: Axis, w: Axis, lanes: int, tap_rows: int, tap_columns: int, width: int, room: int) -> Blocks | None:
    """The tallest block of that width for these taps; None where none fits."""
    x_width = min(w.size, (width - 1) * w.stride + (tap_columns - 1) * w.dilation + 1)
    rolling = width == w.out and tap_rows == h.kernel and tap_columns >= w.kernel
    for height in sorted({-(-h.out // parts) for parts in range(1, min(h.out, 64) + 1)} | {1}, reverse=True):
        x_height = min(h.size, (height - 1) * h.stride + (tap_rows - 1) * h.dilation + 1)
        vectors = height * width + x_height * x_width
        if vectors <= room:
            fresh = min(x_height, height * h.stride) if rolling else x_height
            turns = _turns(height, width, w.out, lanes) + _turns(fresh, x_width, w.size, lanes)
            passes = -(-h.kernel // tap_rows) * -(-w.kernel // tap_columns)
            cost = -(-h.out // height) * -(-w.out // width) * passes * turns
            return Blocks(height, width, tap_rows, tap_columns, x_width, vectors, cost, rolling)
    return None


def _turns(rows_: int, columns: int, whole: int, lanes: int) -> int:
    """What turning rows × columns costs: whole rows are one long one; a square that is not full counts twice."""
    lines, length = (1, rows_ * columns) if columns == whole else (rows_, columns)
    return lines * (length // lanes + 2 * (length % lanes > 0))

"""How a matrix product is cut into tiles, panels and work for each thread. No arrays."""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache
from itertools import pairwise
from math import ceil
from typing import NamedTuple


class Tile(NamedTuple):
    """A register tile of rows × vectors of columns, and the rows of the one that takes what is left over."""

    rows: int
    rest: int
    vectors: int


# By the number of registers, which must hold the sums, a line of the panel and an element. Measured: 12×2 is slow.
TILES = {
    32: (Tile(14, 7, 1), Tile(14, 7, 2), Tile(8, 8, 2), Tile(7, 7, 3), Tile(8, 8, 3), Tile(6, 6, 4)),
    16: (Tile(8, 8, 1), Tile(6, 6, 2), Tile(4, 4, 3)),
}


READING = 0.25  # cycles for an element that a thread reads from beyond its caches
STRADDLING = 1.1  # what six rows cost that are neighbours in memory: they lie across cache lines
TALL = 14  # rows of the tallest tiles


class Cut(NamedTuple):
    """A tile; ``wide`` panels of its width before panels of ``last`` vectors; blocks of rows and of panels.

    ``half`` is the width of the one panel whose last vector is a half one, 0 where every vector is whole.
    """

    tile: Tile
    wide: int
    last: int
    panels: int
    row_blocks: int
    column_blocks: int
    cost: float  # cycles of the busiest thread for one step of the depth
    half: int


def panels(vectors: int, width: int) -> tuple[int, int, int]:
    """``vectors`` as (panels of ``width``, vectors in each that follows, how many follow): 7 by threes is 3 + 2 + 2."""
    wide, left = divmod(vectors, width)
    if not left:
        return wide, 0, 0
    if width == 3 and left == 1 and wide:
        return wide - 1, 2, 2
    return wide, left, 1


@lru_cache(maxsize=4096)
def best_cut(
    images: int,
    height: int,
    vectors: float,
    depth: int,
    registers: int,
    threads: int,
    split_images: str,
    neighbours: bool = False,
    low: float = 1.0,
    whole: int = 1,
) -> Cut:
    """The cheapest cut; ``split_images`` says whether blocks of "rows" or of "columns" share the images out.

    There may be half a vector at the end of ``vectors``. ``neighbours``: rows lie next to each other in memory.
    ``low``: what tiles cost more that are not the tallest. ``whole``: panels are multiples of so many vectors, if any.
    """
    fitting = [tile for tile in TILES[registers] if tile.vectors <= ceil(vectors)]
    tiles = [tile for tile in fitting if tile.vectors % whole == 0] or fitting
    cuts = (
        _cut(tile, images, height, vectors, depth, row_blocks, threads // row_blocks, split_images, neighbours, low)
        for tile in tiles
        for row_blocks in divisors(threads)
    )
    return min(cuts, key=lambda cut: cut.cost)


def divisors(number: int) -> Iterator[int]:
    """From the number itself down to 1."""
    return (divisor for divisor in range(number, 0, -1) if number % divisor == 0)


def _cut(
    tile: Tile,
    images: int,
    height: int,
    vectors: float,
    depth: int,
    row_blocks: int,
    column_blocks: int,
    split: str,
    neighbours: bool,
    low: float,
) -> Cut:
    wide, last, others = panels(ceil(vectors), tile.vectors)
    half = (last if others else tile.vectors) if vectors % 1 and (others or wide) == 1 else 0
    tiles, count = max(-(-height // tile.rows), 1), wide + others
    row_images, column_images = (images if split == axis else 1 for axis in ("rows", "columns"))
    row_blocks = max(min(row_blocks, tiles * row_images), 1)
    column_blocks = max(min(column_blocks, count * column_images), 1)
    share = -(-tiles * row_images // row_blocks) / tiles  # of an image, for the busiest thread
    most = _most(wide, others, tile.vectors, last, column_blocks)
    if column_images > 1:
        most = wide * column_images / column_blocks, others * column_images / column_blocks
    lines = most[0] * tile.vectors + most[1] * last
    widths = [width - 0.5 * (width == half) for width in (tile.vectors, last)]
    sums = sum(number * _column(tile, width, height, depth) for number, width in zip(most, widths, strict=True))
    sums *= STRADDLING if neighbours and tile == Tile(6, 6, 2) else 1.0
    sums *= low if tile.rows < TALL else 1.0
    traffic = (share * height + 16 * lines) * READING
    return Cut(tile, wide, last, count, row_blocks, column_blocks, share * sums + traffic, half)


def _most(wide: int, others: int, width: int, last: int, blocks: int) -> tuple[float, float]:
    """The wide and other panels of the block that has most vectors."""
    total = wide + others
    edges = [total * block // blocks for block in range(blocks + 1)]
    shares = [(max(min(end, wide) - start, 0), end - max(start, wide)) for start, end in pairwise(edges)]
    return max(((a, max(b, 0)) for a, b in shares), key=lambda share: share[0] * width + share[1] * last)


def _column(tile: Tile, vectors: float, rows: int, depth: int) -> float:
    """Cycles for one step of the depth of all rows of a panel."""
    if vectors <= 0:
        return 0.0
    whole = rows // tile.rows if tile.rows != tile.rest else 0
    rest = -(-(rows - whole * tile.rows) // tile.rest)
    return whole * _step(tile.rows, vectors, depth) + rest * _step(tile.rest, vectors, depth)


def _step(rows: int, vectors: float, depth: int) -> float:
    """Cycles for one step of a tile's depth: two products or two loads a cycle, four until a sum is ready again."""
    sums = rows * vectors
    slow = 1.04 if vectors > 3 else 1.0
    return slow * max(sums / 2, (rows + vectors) / 2, 4.0) + (24 + sums + 6 * rows) / max(depth, 1)

"""Sums of products along contiguous depths, about the edges of tiles: see `npdwconv.kernels.cpu.dots`."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import product
from typing import Any

import numpy as np

from npdwconv.kernels.cpu import dots
from npdwconv.kernels.cpu.machine import machine
from npdwconv.kernels.cpu.products import Matrices, Strides
from npdwconv.precision import accumulator

LANES = machine().lanes(4)
ROWS, WIDTH = dots.TILES[machine().registers]
IMAGES = 2
ALWAYS = 1e18  # cycles of any other way


def planned(shape: tuple[int, int, int], dtype: str, threads: int = 2) -> Any:
    """The product of so many rows, columns and steps of the depth."""
    rows, columns, depth = shape
    a, b = Strides(depth, 1, rows * depth), Strides(depth, 1, columns * depth)
    total = accumulator(np.dtype(dtype)).name
    m = Matrices(IMAGES, rows, columns, depth, a, b, Strides(columns), dtype, dtype, total, threads=threads)
    return dots.dot_product(m, ALWAYS)


def results(dtype: str, make: Callable[[np.ndarray], np.ndarray]) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Products of small integers and what they should be, of operands that ``make`` made; two or three chunks."""
    rng = np.random.default_rng(0)
    lanes = machine().lanes(np.dtype(accumulator(np.dtype(dtype))).itemsize)
    extents = (1, ROWS, 2 * ROWS + 1), (1, WIDTH, 2 * WIDTH - 1), (1, lanes - 1, lanes, 2 * dots.CHUNK + lanes + 1)
    for rows, columns, depth in product(*extents):
        a, b = (rng.integers(-3, 4, (IMAGES, count, depth)) for count in (rows, columns))
        out = make(np.full((rows, columns), np.nan, accumulator(np.dtype(dtype))))
        planned((rows, columns, depth), dtype).launch(*(make(x.astype(dtype)) for x in (a, b)), None, out, None, None)
        yield out, (a @ b.transpose(0, 2, 1)).sum(0)

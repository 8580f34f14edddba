"""Small products whose tiles pack the next panel: see `npdwconv.kernels.cpu.slices`."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from math import ceil
from typing import Any

import numpy as np

from npdwconv.kernels.cpu import cuts, products
from npdwconv.kernels.cpu.arrays import LINE, room
from npdwconv.kernels.cpu.machine import machine
from npdwconv.kernels.cpu.products import Matrices, Strides

LANES = machine().lanes(4)
TILE = cuts.TILES[machine().registers][1]
WIDTH = TILE.vectors * LANES  # columns of a panel
# tiles, whether the depth of b is contiguous, whether images are summed; of 16 lanes slices have 8, 16, 7, 16 columns
CASES = {
    "turned": (8, True, False),
    "neighbours": (7, False, False),
    "turned-sum": (5, True, True),
    "neighbours-sum": (16, False, True),
}
SETTINGS = {"IDLE": 0.25, "TOGETHER": 0, "FEW": 0, "CHUNK": 8, "_stays": lambda m, cut: False}  # of `products`


def settings(put: Callable[[Any, str, Any], None] = setattr) -> None:
    """Make tiles of one kind pack panels of any shape."""
    put(cuts, "TILES", {machine().registers: (TILE,)})
    for name, value in SETTINGS.items():
        put(products, name, value)
    cuts.best_cut.cache_clear()


def results(name: str, make: Callable[[np.ndarray], np.ndarray]) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Products of small integers and what they should be, of operands that ``make`` made.

    The last panel is narrow, of fewer columns than a slice or of more, of neighbours its last vector is partial; chunks
    of the depth are of two lengths.
    """
    tiles, turned, summed = CASES[name]
    rows, images, depth = (tiles - 1) * TILE.rows + TILE.rest // 2, 1 + summed, 19
    rng = np.random.default_rng(tiles)
    for ragged in sorted({3, min(7, LANES - 1)}) if turned else (LANES + 3,):  # one specialisation for both
        columns = 3 * WIDTH + ragged
        a, b = (rng.integers(-3, 4, (images, count, depth)).astype(np.float32) for count in (rows, columns))
        wanted = (a @ b.transpose(0, 2, 1)).sum(0)
        b = b if turned else np.ascontiguousarray(b.transpose(0, 2, 1))
        lines = (depth, 1) if turned else (1, columns)
        strides = Strides(depth, 1, rows * depth), Strides(*lines, columns * depth), Strides(columns)
        m = Matrices(images, rows, columns, depth, *strides, "float32", "float32", "float32", threads=2)
        plan: Any = products.reduction(m) if summed else products.packing_once(m)
        cut = m.cut("" if summed else "rows")
        expected = ceil(WIDTH / (tiles // cut.row_blocks)) if turned else LANES * (4 * LANES == LINE or summed)
        assert plan.launch.spec.slice == expected, f"{name}: slices of {plan.launch.spec.slice}"
        out = make(np.full((rows, columns), np.nan, np.float32))
        plan.launch(make(a), make(b), None, out, None, room(plan.scratch))
        yield out, wanted

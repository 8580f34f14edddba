"""Which register tile a correlation over planes takes."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from npdwconv.kernels.cpu.axes import ONE, Axis
from npdwconv.kernels.cpu.columns import HELD
from npdwconv.kernels.cpu.machine import machine

MUCH = 200_000  # multiply-adds an image from which code for one dilation, or planes of one height, pays
ROLLED = 14  # rows from which a tile that rolls down a plane beats one that holds them all


class Shape(NamedTuple):
    """A tile: rows and vectors, sums for each result, whether it is a plane whose height is compiled in, and whether it
    rolls down the plane, its rows those whose sums are alive."""

    rows: int
    vectors: int
    splits: int = 1
    whole: bool = False
    rolls: bool = False


def held(h: Axis, w: Axis) -> bool:
    """Whether all taps stay in registers."""
    return h.taps * w.taps <= HELD


def shape_unrolled(h: Axis, w: Axis, lanes: int, effort: int, *, rolls: bool, lines: bool) -> Shape:
    """The tile of a kernel that is compiled in; whether one ``rolls`` that could, its shape decides.

    ``lines``: whether it had better write whole cache lines.
    """
    kinds = len(h.sweeps) * len(w.sweeps)
    height, width = h.first.out, w.first.out
    vectors = min(-(-width // lanes), max(1, 8 // kinds)) if height == 1 else 1
    most = max(1, _sums() // (kinds * vectors))
    whole = effort >= MUCH and height <= most and width <= lanes
    rows = height if whole else _rows(height, (14, 8, 4, 2, 1), most)
    if not whole and rolls and height > ROLLED and (held(h, w) or h.first.stride == 2 or rows < most):
        return Shape(-(-(h.reach + 1) // h.first.stride), 2 if lines and held(h, w) else 1, rolls=True)
    return Shape(rows, vectors, 1 if rows * vectors * kinds >= _busy() else 2, whole)


def shape_covering(h: Axis, w: Axis, lanes: int) -> Shape:
    """The tile of a kernel that covers rows: whole rows, no more than the image has, so that none is missing at the top
    and another at the bottom."""
    height, vectors = h.first.out, -(-w.first.out // lanes)
    most = min(most_of_covering() // vectors, h.first.size)
    rows = height if height <= most else _rows(height, range(1, most + 1), most)
    return Shape(rows, vectors, whole=rows == height)


def shape_run(h: Axis, w: Axis, lanes: int) -> tuple[Shape, bool]:
    """The tile of a kernel that is not compiled in, and whether input rows slide past its output rows."""
    height, width, taps = -(-h.first.out // h.first.dilation), -(-w.first.out // lanes), h.taps
    if along(h, w):
        return Shape(1, _rows(width, range(1, _sums() + 1), _sums())), False
    sliding = h.first.stride == 1 and taps >= 4
    vectors = 1 if width == 1 or width == 3 else 2
    if h.first.out == 1:
        vectors, sliding = 4 if width > 2 else vectors, False
    if not sliding:
        height = h.first.out
    most = min(_sums() // vectors, taps if sliding else _sums())
    return Shape(_rows(height, (14, 7, 4, 2, 1), most), vectors), sliding


def along(h: Axis, w: Axis) -> bool:
    """Whether there is a single row, of which a tile holds vectors of sums that are neighbours."""
    return h.sweeps == (ONE,) and w.first.stride == 1


def most_of_covering() -> int:
    """How many vectors of sums the tile of a covering kernel may have, whose taps need few registers."""
    return _sums() * 3 // 2


def _sums() -> int:
    """How many vectors of sums a tile may have."""
    return 16 if machine().registers == 32 else 8


def _busy() -> int:
    """From how many sums on one for each result will do: while one is added to, there are others to add to."""
    return 7 if machine().registers == 32 else 8


def _rows(height: int, choices: Iterable[int], most: int) -> int:
    """The rows of a tile that waste least: one counts for what a tile costs besides its rows."""
    return min((r for r in choices if r <= most), key=lambda r: -(-height // r) * (r + 1))

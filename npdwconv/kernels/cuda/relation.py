"""One axis of a correlation or of its adjoint, tile by tile: which taps join a tile's targets to which sources.

A tile is a run of ``tile`` targets that one thread computes. Its targets read sources at an origin, known at run time,
plus offsets, known when the kernel is written: for the correlation ``o·stride + t·dilation − low`` with
``o = tile·n + v`` is ``(tile·stride·n − low) + (v·stride + t·dilation)``; for its adjoint, where a target ``i``
collects from ``o = (i + low − t·dilation) / stride`` where that is whole, with ``low = stride·a + phase`` it is
``(tile/stride·n + a) + (v + phase − t·dilation) / stride``. A tile of the adjoint is a multiple of the stride, so that
which taps are whole does not depend on ``n``: nothing is scattered, and every input is written once.
"""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

from npdwconv.geometry import Axis, ConvGeometry


class AxisSpec(NamedTuple):
    """What a kernel is written for: one axis of a correlation, or of its adjoint (``phase`` is low mod stride)."""

    kernel: int = 1
    stride: int = 1
    dilation: int = 1
    adjoint: bool = False
    phase: int = 0

    def tile(self, wanted: int) -> int:
        """The least tile of at least ``wanted`` targets."""
        return -(-wanted // self.stride) * self.stride if self.adjoint else wanted

    def step(self, tile: int) -> int:
        """By how many sources the origin moves from one tile to the next."""
        return tile // self.stride if self.adjoint else tile * self.stride

    def terms(self, tile: int) -> dict[int, list[tuple[int, int]]]:
        """For every source offset, in order, the (target, tap) pairs that it joins."""
        found: dict[int, list[tuple[int, int]]] = {}
        for target in range(tile):
            for tap in range(self.kernel):
                offset = target * self.stride + tap * self.dilation
                if self.adjoint:
                    offset, rest = divmod(target + self.phase - tap * self.dilation, self.stride)
                    if rest:
                        continue
                found.setdefault(offset, []).append((target, tap))
        return dict(sorted(found.items()))


class AxisRun(NamedTuple):
    """What a launch passes: the sources, the targets, the origin of the first tile, and the padding."""

    source: int = 1
    target: int = 1
    shift: int = 0
    low: int = 0


def forward(axis: Axis) -> tuple[AxisSpec, AxisRun]:
    """A correlation's axis."""
    return AxisSpec(axis.kernel, axis.stride, axis.dilation), AxisRun(axis.size, axis.out, -axis.low, axis.low)


def adjoint(axis: Axis) -> tuple[AxisSpec, AxisRun]:
    """Its adjoint's."""
    whole, phase = divmod(axis.low, axis.stride)
    spec = AxisSpec(axis.kernel, axis.stride, axis.dilation, True, phase)
    return spec, AxisRun(axis.out, axis.size, whole, axis.low)


TRIVIAL = Axis(1, 1, 1, 1, 1, 0, 0)


class Passed(NamedTuple):
    """A geometry as kernels take it: what they are written for, and what a launch passes."""

    specs: tuple[AxisSpec, AxisSpec, AxisSpec]
    runs: tuple[AxisRun, AxisRun, AxisRun]


@lru_cache(maxsize=4096)
def passed(g: ConvGeometry, transposed: bool) -> Passed:
    """Three axes of a correlation or its adjoint; those that are missing have one element."""
    turn = adjoint if transposed else forward
    axes = (*(TRIVIAL,) * (3 - len(g.axes)), *g.axes)
    depth, rows, columns = ((AxisSpec(), AxisRun()) if axis is TRIVIAL else turn(axis) for axis in axes)
    return Passed((depth[0], rows[0], columns[0]), (depth[1], rows[1], columns[1]))

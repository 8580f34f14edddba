"""Spatial axes of a pass: the sweeps along each, and passes whose residues a tile holds together. No arrays."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from npdwconv.kernels.cpu.columns import Phases
from npdwconv.kernels.cpu.phases import Sweep, Sweeps

ONE = Sweep(1, 1, 1, 1, 1, 0)  # an axis that is not there


class Axis(NamedTuple):
    """One spatial axis of a pass: the residues of an adjoint that it writes, or the one sweep of a correlation."""

    sweeps: tuple[Sweep, ...]

    @property
    def first(self) -> Sweep:
        return self.sweeps[0]

    @property
    def results(self) -> int:
        """How many results it writes; each place of the tile along the axis has one of every phase."""
        return sum(s.out for s in self.sweeps)

    @property
    def low(self) -> int:
        return max(s.low for s in self.sweeps)

    @property
    def taps(self) -> int:
        return sum(s.taps for s in self.sweeps)

    @property
    def out_first(self) -> int:
        return self.first.out_first

    @property
    def out_step(self) -> int:
        """The step from one result to the next in the output."""
        return 1 if len(self.sweeps) > 1 else self.first.out_step

    @property
    def phases(self) -> Phases:
        return [
            [(self.low - s.low + u * s.dilation, s.tap_first + u * s.tap_step) for u in range(s.taps)]
            for s in self.sweeps
        ]

    @property
    def reach(self) -> int:
        """How far beyond the first source of a result its last one lies."""
        return max((offset for phase in self.phases for offset, _ in phase), default=0)

    def dense(self) -> bool:
        """Whether its taps are next to each other."""
        return all(s.dilation == 1 or s.taps < 2 for s in self.sweeps)

    def whole(self) -> bool:
        """Whether there are as many residues as the step from one to the next says, and no more than two."""
        return len(self.sweeps) == self.first.out_step and len(self.sweeps) <= 2


def grouped(full: list[Sweeps], together: Callable[[Sweep, Axis, Axis], bool]) -> list[tuple[Sweep, Axis, Axis]]:
    """Passes of three sweeps each: the residues of rows and columns ``together`` where that is so, else one by one."""
    found: list[tuple[Sweep, Axis, Axis]] = []
    for depth in dict.fromkeys(sweeps[0] for sweeps in full):
        rows, cols = (tuple(dict.fromkeys(s[axis] for s in full if s[0] == depth)) for axis in (1, 2))
        if together(depth, Axis(rows), Axis(cols)):
            found.append((depth, Axis(rows), Axis(cols)))
        else:
            found += [(depth, Axis((h,)), Axis((w,))) for h in rows for w in cols]
    return found

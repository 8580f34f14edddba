"""What a weight gradient sums, and whether its planes roll. No arrays."""

from __future__ import annotations

from math import prod
from typing import NamedTuple

from npdwconv.geometry import Axis
from npdwconv.kernels.cpu.machine import machine
from npdwconv.kernels.cpu.simd import STORED
from npdwconv.kernels.cpu.weight_blocks import is_dense

ROLLING = 7  # vectors of a row from which on rolling is faster than turning, if lanes that do not count cost something


class Job(NamedTuple):
    """What there is to sum: stored dtypes of z, x and the weight, channels, and the spatial axes, padded to three."""

    stored: tuple[str, str, str]
    batch: int
    z_channels: int
    x_channels: int
    axes: tuple[Axis, ...]  # three

    @property
    def channels(self) -> int:
        return max(self.z_channels, self.x_channels)

    @property
    def dtype(self) -> str:
        """In which sums are kept."""
        return STORED[self.stored[2]][2]

    @property
    def size(self) -> int:
        return STORED[self.dtype][1]

    @property
    def lanes(self) -> int:
        return machine().lanes(self.size)

    def sizes(self) -> tuple[int, int]:
        """Bytes of a stored value of z and of x."""
        return STORED[self.stored[0]][1], STORED[self.stored[1]][1]

    def nbytes(self) -> int:
        """Of z and x."""
        outs, sizes = [axis.out for axis in self.axes], [axis.size for axis in self.axes]
        z_size, x_size = self.sizes()
        return self.batch * (self.z_channels * prod(outs) * z_size + self.x_channels * prod(sizes) * x_size)

    def work(self) -> int:
        """Multiply-adds."""
        outs, taps = [axis.out for axis in self.axes], [axis.kernel for axis in self.axes]
        return self.batch * self.channels * prod(outs) * prod(taps)

    def shares(self) -> tuple[int, int]:
        """Channels of the weight for each channel of z and of x."""
        return self.channels // self.z_channels, self.channels // self.x_channels

    def rolls(self) -> bool:
        """Whether rows of planes are wide, and taps so few that all of their sums stay in registers.

        With masks, which cost little, that is two thirds of a vector: turning costs more than the lanes that are left.
        """
        d, h, w = self.axes
        few = d.kernel == d.size == 1 and 1 < h.kernel * w.kernel <= 9 and h.kernel > 1
        wide = self.lanes * 2 // 3 + 1 if machine().masks else ROLLING * self.lanes * w.stride
        return few and is_dense(h, w) and h.stride == w.stride and w.out * self.mates() >= wide

    def mates(self) -> int:
        """How many planes share a vector where they roll: two, where half holds a row of z, and all one of x."""
        w, even = self.axes[-1], self.channels % 2 == 0 and max(self.shares()) == 1
        narrow = w.out <= self.lanes // 2 and w.low + w.size <= self.lanes
        return 2 if narrow and even and machine().name == "AVX-512" else 1

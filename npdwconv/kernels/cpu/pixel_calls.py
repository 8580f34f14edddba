"""What correlations in channels_last depend on, and how their work is shared out. No arrays."""

from __future__ import annotations

from math import gcd, prod
from typing import NamedTuple

from npdwconv.kernels.cpu import caches
from npdwconv.kernels.cpu.arrays import LINE
from npdwconv.kernels.cpu.machine import machine
from npdwconv.kernels.cpu.phases import Sweep, Sweeps
from npdwconv.kernels.cpu.simd import STORED

FEW = 4  # vectors of channels that a thread has at least where channels are shared out
LOW, LOWER = 28, 16  # rows of an image whose channels are shared out where tiles do not roll, from 7 taps on, and below
MUCH = 8000  # multiply-adds for a pixel from which that pays, for lines at the border between threads cost the same
L1_BYTES, L2_BYTES = 40_000, 1_500_000  # what a core's caches hold beside everything else


class Call(NamedTuple):
    """What a correlation's launches depend on, apart from the arrays' addresses."""

    source: tuple[int, ...]
    result: tuple[int, ...]
    kernel: tuple[int, ...]
    passes: tuple[Sweeps, ...]
    types: tuple[str, ...]  # stored types of x, weight, bias, out, other; "" where absent
    activation: str
    threads: int
    by_channels: bool  # whether threads share out the channels, as whoever wrote the source did
    unpacked: bool = False  # whether the weight is yet to be packed: where it can, by the items that read it

    @property
    def dtype(self) -> str:
        """In which it is summed."""
        return STORED[self.types[0]][2]

    @property
    def sizes(self) -> tuple[int, int]:
        """Bytes of the source and of the result."""
        x, _, _, out, _ = self.types
        return prod(self.source) * STORED[x][1], prod(self.result) * STORED[out][1]

    @property
    def lanes(self) -> int:
        return machine().lanes(STORED[self.dtype][1])

    @property
    def channels(self) -> int:
        return self.result[-1]

    @property
    def fold(self) -> int:
        """Channels of the source that a result sums."""
        return max(self.source[-1] // self.channels, 1)

    @property
    def repeat(self) -> int:
        """Results of a channel of the source."""
        return max(self.channels // max(self.source[-1], 1), 1)

    @property
    def tap(self) -> int:
        """Packed weights from one tap to the next: an odd number of vectors, for powers of two would share a set."""
        return (-(-self.channels // self.lanes) | 1) * self.lanes

    @property
    def packed(self) -> int:
        """Packed weights: [fold][taps][channels]."""
        return self.fold * prod(self.kernel) * self.tap

    def blocks(self, d: Sweep, h: Sweep, w: Sweep, kinds: int = 0) -> tuple[int, int, int]:
        """Channels walked together, channels of an item, rows of an item: as measured, see docs/performance.md.

        Many taps reuse each input often, which pays while the rows of a strip stay in L1; few taps are bound by memory,
        which likes long runs, and so are many where the image comes from beyond all caches. An image beyond L2 is taken
        a few rows at a time, in the order of memory. Where a tile rolls down images, with results of ``kinds`` phases
        at each place (0: it does not roll), and `_apart` says so, threads share out the channels of images within reach
        of L2, in whole cache lines.
        """
        lanes, channels, images = self.lanes, max(self.channels, 1), max(self.result[0] * d.out, 1)
        step = lanes * STORED[STORED[self.types[0]][2]][1]
        met = w.size * h.size + w.out * h.out * max(kinds, 1)
        reached = met * channels * STORED[self.types[0]][1] / (self.threads * L2_BYTES)
        held = L1_BYTES // max(h.taps * w.size * step, 1)
        many = h.taps * w.taps >= 16
        long = many and not kinds and reached > 1 and caches.far(*self.sizes)
        vectors = 16 if long or (not many and reached > 1 and kinds < 2) else min(max(held, 2), 4) if many else 8
        strip, blocks = vectors * lanes, self.threads // gcd(images, self.threads)
        strips = -(-channels // strip)
        line = max(LINE // STORED[self.types[0]][1], lanes)
        each = -(-channels // (line * self.threads)) * line
        if self.by_channels:
            return min(strip, each), each, max(h.out, 1)
        if h.out < 4 * blocks and strips >= blocks > 1:
            return strip, -(-strips // blocks) * strip, max(h.out, 1)
        few = reached <= 2 and channels >= FEW * self.threads * lanes
        if self.threads > 1 and few and self._apart(h, w, kinds, alone=blocks > 1):
            return min(strip, each), each, max(h.out, 1)
        most = max(h.out, 1)
        if reached > 1 and (kinds < 2 or caches.far(*self.sizes)):
            most = 28 if long else 16 if kinds == 1 else 4
        count = max(-(-h.out // (blocks * most)), 1) * blocks  # as many for each thread
        return strip, channels, max(-(-h.out // count), 1)

    def _apart(self, h: Sweep, w: Sweep, kinds: int, *, alone: bool) -> bool:
        """Whether threads had better have channels of their own than rows, or images.

        Beyond a tile's last row the processor fetches the next ones, and takes from another thread what that writes.
        Tiles that do not roll gain where an image is ``alone`` and of few rows, all of them a pass's, and there is much
        to do for each pixel.
        """
        if kinds:
            return alone or kinds == h.stride == w.stride == 1
        much = self.channels * h.taps * w.taps >= MUCH
        return alone and much and h.out_step == w.out_step == 1 and h.out <= (LOW if h.taps >= 7 else LOWER)

"""What a gathering kernel is written for, which tile suits it, and the grid that covers all targets. No text."""

from __future__ import annotations

from typing import NamedTuple

from npdwconv.kernels.cuda import provider
from npdwconv.kernels.cuda.relation import AxisRun, AxisSpec

MOST_TAPS = 49  # of a kernel whose taps are written out
ENOUGH = 200 if provider.simulated() else 6_000_000  # targets from which on large tiles still fill the device
LANES = 4 if provider.simulated() else 32  # neighbouring channels of a block, channels_last, each a vector
FIRST, LAST = (16, 16) if provider.simulated() else (128, 256)  # threads of a block, in either layout
RESIDENT = 4  # blocks a multiprocessor that walk over the pixels, channels_last
MOST_ITEMS = 1 << 30  # tiles of a launch
VECTORS = {"float16": 4, "bfloat16": 4, "float32": 4, "float64": 2}  # elements read at once
MOST_SHARED = 40_000  # bytes of shared memory that a block's kernels may take


class GatherSpec(NamedTuple):
    """What a gathering kernel is written for."""

    layout: str
    axes: tuple[AxisSpec, AxisSpec, AxisSpec]  # depth, height, width
    source: str  # storage dtypes
    weight: str
    target: str
    other: str = ""  # of what the activation's derivative is multiplied with; none where there is no such product
    multiplier: int = 1
    folds: bool = False  # whether targets sum over the multiplier, rather than sources serve several targets
    bias: bool = False
    activation: str = ""
    vector: int = 1  # elements read and written at once: channels of a thread channels_last, columns channels_first
    tile: tuple[int, int] = (4, 1)
    lead: int = 0  # columns by which a tile's first source lies beyond a whole vector, channels_first

    @property
    def lanes(self) -> int:
        """Channels that a thread owns."""
        return self.vector if self.layout == "channels_last" else 1

    @property
    def together(self) -> int:
        """Columns that are read and written at once."""
        return 1 if self.layout == "channels_last" else self.vector

    @property
    def written_out(self) -> bool:
        """Whether the taps are written out; otherwise the kernel loops over them."""
        _, rows, columns = self.axes
        return rows.kernel * columns.kernel <= MOST_TAPS and max(rows.stride, columns.stride) <= 4


def settled(
    spec: GatherSpec, runs: tuple[AxisRun, AxisRun, AxisRun], images: int, channels: int, together: int
) -> GatherSpec:
    """The specification with the vector and the tile that its kernel and extents suit.

    ``together`` is how many elements of an array lie aligned together, in the array where they are fewest.
    """
    _, rows, columns = spec.axes
    if not spec.written_out:
        return spec._replace(tile=(1, 1), vector=1)
    taps = rows.kernel * columns.kernel
    most = min(together, *(VECTORS[storage] for storage in (spec.source, spec.target, spec.other) if storage))
    if spec.layout == "channels_last":
        vector = 1 if spec.multiplier > 1 else divisor(channels, min(most, 4 if taps <= 9 else 2))
        high, wide = (2, 4) if rows.kernel > 1 or runs[1].target > 1 else (1, 8)
        if taps > 25 or (max(rows.stride, columns.stride) > 1 and not rows.adjoint):
            high = 1
        return spec._replace(vector=vector, tile=(rows.tile(min(high, runs[1].target)), columns.tile(wide)))
    few = images * channels * runs[0].target * runs[1].target * runs[2].target < ENOUGH
    wide = columns.tile(2 if few else 4)
    vector = divisor(runs[2].source, divisor(runs[2].target, divisor(columns.step(wide), divisor(wide, most))))
    if vector == 1:
        wide = columns.tile(1)
    high = _strip(runs[1].target, (4, 7) if taps <= 25 and vector > 1 else (8, 7, 4) if taps <= 25 else (4,))
    return spec._replace(vector=vector, tile=(rows.tile(high), wide), lead=runs[2].shift % vector)


def divisor(extent: int, most: int) -> int:
    """The largest power of two up to ``most`` that divides ``extent``."""
    vector = most
    while extent % vector:
        vector //= 2
    return vector


def _strip(extent: int, heights: tuple[int, ...]) -> int:
    """The height whose strips waste the fewest rows."""
    return min(extent, min(heights, key=lambda high: -(-extent // high) * high))


def grids(
    spec: GatherSpec, runs: tuple[AxisRun, AxisRun, AxisRun], images: int, channels: int
) -> list[tuple[tuple[int, int, int], tuple[int, int, int], int, int]]:
    """Grid, block, what is done before and how many tiles there are, for the launches that cover all targets."""
    depth, rows, columns = (run.target for run in runs)
    tiles = -(-rows // spec.tile[0]) * -(-columns // spec.tile[1])
    first = spec.layout == "channels_first"
    whole, each = (images * channels * depth, tiles) if first else (images, tiles * depth)
    some = max(1, MOST_ITEMS // each)
    found = []
    for begin in range(0, whole, some):
        items = min(some, whole - begin) * each
        if first:
            found.append(((-(-items // FIRST), 1, 1), (FIRST, 1, 1), begin, items))
            continue
        lanes = -(-channels // spec.vector)
        wide = min(LANES, lanes)
        high = LAST // wide
        across = -(-lanes // wide)
        blocks = max(1, min(-(-items // high), -(-provider.processors() * RESIDENT // across)))
        found.append(((blocks, across, 1), (wide, high, 1), begin, items))
    return found

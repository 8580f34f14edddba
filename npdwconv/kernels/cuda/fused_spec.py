"""What a fused separable kernel is written for, which layers have one, its tile and its grid. No text."""

from __future__ import annotations

from typing import NamedTuple

from npdwconv.geometry import ConvGeometry
from npdwconv.kernels.cuda import provider
from npdwconv.kernels.cuda.gather_spec import MOST_ITEMS, VECTORS, divisor
from npdwconv.kernels.cuda.product import Tile
from npdwconv.kernels.cuda.relation import AxisRun, AxisSpec, passed

# Rows and columns of the product, depth of a slice (at most the threads), a thread's sums: results by pixels.
WIDE, DEEP = (
    (Tile(8, 8, 4, 4, 4), Tile(8, 8, 4, 4, 4))
    if provider.simulated()
    else (Tile(64, 128, 8, 8, 8), Tile(128, 64, 16, 8, 8))
)
STRIP = 4  # neighbouring pixels of a row: what a thread of the product has in a group
PATCH = 2 * STRIP  # pixels of two strips, one below the other or, of an image of one row, beside it
MOST_TAPS = 25
MOST_STRIDE = 2
MOST_HELD = 64  # sources that a thread holds while it multiplies: with its sums, what fits in registers
SHORT = 128  # channels up to which a block is done in the time of a launch
CHEAP = ("", "relu", "relu6")  # activations that need hardly a register


class FusedSpec(NamedTuple):
    """What a fused kernel is written for."""

    layout: str
    axes: tuple[AxisSpec, AxisSpec, AxisSpec]  # depth, which is one, height, width
    storage: str
    biases: tuple[bool, bool]  # of the depthwise and of the pointwise stage
    activations: tuple[str, str]
    tile: Tile
    patch: tuple[int, int]  # rows and columns
    vector: int  # elements read at once: channels of a thread channels_last, columns channels_first
    panel: int  # pointwise weights read at once, along the sum
    written: int  # elements written at once: results channels_last, columns channels_first
    lead: int  # columns by which a patch's first source lies beyond a whole vector, channels_first

    @property
    def first(self) -> bool:
        """Whether rows of the product are results and its columns pixels, rather than the other way round."""
        return self.layout == "channels_first"

    @property
    def pixels(self) -> int:
        """Pixels of a tile."""
        return self.tile.columns if self.first else self.tile.rows

    @property
    def lanes(self) -> int:
        """Channels that a thread forms at once."""
        return 1 if self.first else self.vector

    @property
    def part(self) -> tuple[int, int]:
        """Rows and columns of a patch that a thread forms at once."""
        high, wide = self.patch
        return (high, wide) if self.first else (high, wide // 4)

    @property
    def units(self) -> int:
        """How many parts a thread forms of every slice."""
        high, wide = self.part
        return self.pixels * self.tile.depth // (self.tile.threads * high * wide * self.lanes)

    @property
    def taps(self) -> int:
        """Taps of a channel."""
        return self.axes[1].kernel * self.axes[2].kernel

    @property
    def held(self) -> int:
        """Sources that a thread holds."""
        across = sum(width for _, width in pieces(self)) * self.lanes
        return self.units * across * len(self.axes[1].terms(self.part[0]))

    @property
    def resident(self) -> int:
        """Blocks of a multiprocessor that its registers are shared out to."""
        return 3 if self.held <= 24 and self.activations[0] in CHEAP else 2


def pieces(spec: FusedSpec) -> list[tuple[int, int]]:
    """How a row of a part's sources is read: a vector where most of it is needed, else what is needed of it."""
    needed = [off + spec.lead for off in spec.axes[2].terms(spec.part[1])]
    if not spec.first:
        return [(off, 1) for off in needed]
    found: list[tuple[int, int]] = []

    def read(begin: int, width: int) -> None:
        inside = sum(begin <= off < begin + width for off in needed)
        if inside and (width == 1 or 2 * inside > width):
            found.append((begin, width))
        elif inside:
            read(begin, width // 2)
            read(begin + width // 2, width // 2)

    for group in sorted({off // spec.vector for off in needed}):
        read(group * spec.vector, spec.vector)
    return found


def settled(
    layout: str,
    g: ConvGeometry,
    storages: frozenset[str],
    counts: tuple[int, int, int, int],
    biases: tuple[bool, bool],
    activations: tuple[str, str],
    aligned: tuple[int, int, int],
) -> FusedSpec | None:
    """The fused kernel of a layer with those images and channels before, between and after; None for two calls.

    A block must own all results of its pixels, so that no window is summed twice; a thread must hold a slice's sources
    in registers beside its sums; and what is between is a float32, which is what shared memory is divided for. Windows
    are few taps, whose sums cost little beside the product's. Where blocks are fewer than multiprocessors and the sum
    over the channels is long, two kernels cut the work finer; where it is short either way takes as long as a launch.
    """
    images, read, middle, results = counts
    specs, runs = passed(g, False)
    _, rows, columns = specs
    simple = len(g.axes) < 3 and not g.copies_border and middle == read
    small = rows.kernel * columns.kernel <= MOST_TAPS and max(rows.stride, columns.stride) <= MOST_STRIDE
    plain = len(storages) == 1 and not storages & {"float64"}
    first = layout == "channels_first"
    tile = WIDE if results <= WIDE.rows else DEEP
    if not (simple and small and plain) or results > tile.rows:
        return None
    (storage,) = storages
    patch = (1, PATCH) if runs[1].target == 1 else (2, STRIP)
    most = min(aligned[0], VECTORS[storage])
    vector = divisor(runs[2].source, most) if first else divisor(read, min(most, tile.depth))
    spec = FusedSpec(
        layout,
        specs,
        storage,
        biases,
        activations,
        tile if first else tile._replace(rows=tile.columns, columns=tile.rows),
        patch,
        vector,
        divisor(read, min(aligned[2], VECTORS[storage], tile.depth)),
        divisor(runs[2].target if first else results, min(aligned[1], VECTORS[storage])),
        runs[2].shift % vector if first else 0,
    )
    count = patches(spec, runs, images)
    idle = blocks(spec, count) < provider.processors() and read > SHORT
    return None if idle or spec.held > MOST_HELD or count >= MOST_ITEMS else spec


def patches(spec: FusedSpec, runs: tuple[AxisRun, AxisRun, AxisRun], images: int) -> int:
    """Patches of all images."""
    return images * -(-runs[1].target // spec.patch[0]) * -(-runs[2].target // spec.patch[1])


def blocks(spec: FusedSpec, count: int) -> int:
    """How many blocks own so many patches."""
    return -(-count * PATCH // spec.pixels)

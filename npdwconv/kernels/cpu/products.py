"""Matrix products of whole arrays: how a shape is cut, what is packed, and the launches of `product_kernels`."""

from __future__ import annotations

from math import gcd
from typing import NamedTuple

from npdwconv.kernels.cpu.arrays import LINE, room_for
from npdwconv.kernels.cpu.caches import second
from npdwconv.kernels.cpu.cuts import Cut, best_cut
from npdwconv.kernels.cpu.engine import Kernel, Launch
from npdwconv.kernels.cpu.fetching import WALK
from npdwconv.kernels.cpu.gemm import UNROLLED
from npdwconv.kernels.cpu.machine import halves, machine, pairs
from npdwconv.kernels.cpu.product_kernels import multiply, multiply_packing, pack, reduce
from npdwconv.kernels.cpu.simd import STORED
from npdwconv.kernels.cpu.slices import MOST
from npdwconv.kernels.cpu.spec import Fixed
from npdwconv.layouts import Array


class Strides(NamedTuple):
    """Elements between neighbours: rows of ``a`` and ``out`` or columns of ``b``; steps of the depth; images."""

    line: int
    step: int = 1
    image: int = 0


class Matrices(NamedTuple):
    """``out[n, i, j] = Σ_l a[n, i, l]·b[n, l, j]``: extents, strides, dtypes (None where an array is absent)."""

    images: int
    height: int
    columns: int
    depth: int
    a: Strides
    b: Strides
    out: Strides
    a_type: str
    b_type: str
    out_type: str
    bias_type: str = ""
    other_type: str = ""
    activation: str = ""
    chain: bool = False
    turned: bool = False
    threads: int = 1
    past_caches: bool = False
    fetches: bool = False
    walks: bool = False

    @property
    def dtype(self) -> str:
        """In which sums are accumulated and panels are stored."""
        return STORED[self.a_type][2]

    @property
    def lanes(self) -> int:
        return machine().lanes(STORED[self.dtype][1])

    @property
    def streams(self) -> bool:
        """Whether vectors of results are written past the caches, as whole ones can be where all rows begin alike."""
        alike = self.out.line % self.lanes == 0 and self.out_type == self.dtype
        return self.past_caches and alike and not self.turned

    @property
    def chunked(self) -> bool:
        """Whether the depth is summed a chunk after another where the product is a `reduction`."""
        return self.depth > CHUNK

    def cut(self, split: str) -> Cut:
        """The cheapest cut; see `best_cut`."""
        left = self.columns % self.lanes
        vectors = -(-self.columns // self.lanes) - (0.5 if halves() and 0 < left <= self.lanes // 2 else 0)
        low = LOW if self.chunked and not split and machine().vector_bytes == LINE and pairs() else 1.0
        whole = max(LINE // machine().vector_bytes, 1) if self.streams else 1  # half a line goes to memory by itself
        extents, unit = (self.images, self.height, vectors, self.depth), machine().registers
        return best_cut(*extents, unit, self.threads, split, self.a.line == 1, low, whole)

    def tile_lanes(self, cut: Cut) -> int:
        """Lanes of the vectors in which a tile's rows are packed: half ones for neighbours of a low tile."""
        low = machine().registers <= 16 and cut.tile.rows <= self.lanes // 2
        return self.lanes // 2 if self.a.line == 1 and low else self.lanes

    def packing(self, cut: Cut) -> dict[str, Fixed]:
        """What is compiled into the packing of ``b``."""
        return {
            "lanes": self.lanes,
            "size": STORED[self.dtype][1],
            "vectors": cut.tile.vectors,
            "last": cut.last,
            "tail": self.columns % self.lanes != 0,
            "b_type": self.b_type,
            "b_size": STORED[self.b_type][1],
            "b_turning": self.b.line != 1,
        }

    def multiplying(
        self,
        cut: Cut,
        bias: str,
        *,
        adds: bool = False,
        direct: bool = False,
        ahead: bool = False,
        packs: bool = False,
        right: int = 0,
    ) -> dict[str, Fixed]:
        """What is compiled into the product, the bias being of "rows" or "columns", whether a is packed, too.

        ``right``: bytes to the right of what is read of a packed panel, which are fetched.
        """
        wide = self.tile_lanes(cut)
        width = -(-cut.tile.rows // wide)
        return {
            "lanes": self.lanes,
            "size": STORED[self.dtype][1],
            "rows": cut.tile.rows,
            "rest": cut.tile.rest,
            "vectors": cut.tile.vectors,
            "last": cut.last,
            "tail": self.columns % self.lanes != 0,
            "half": cut.half,
            "half_tail": self.columns % (self.lanes // 2) != 0,
            "turned": self.turned,
            "bias_of": bias if self.bias_type else "",
            "bias_of_rows": bias == "rows",
            "activation": self.activation,
            "chain": self.chain,
            "adds": adds,
            "direct": direct,
            "right": RIGHT if direct and self.fetches else right,
            "a_next": NEXT if adds and self.chunked and not packs and self.a.line == 1 else 0,
            "walks": self.walks,
            "streams": self.streams,
            "ahead": ahead and not self.streams,
            "a_packs": packs,
            "a_turning": self.a.line != 1,
            "tile_lanes": wide,
            "tile_vectors": width,
            **({"tile_row": 1, "tile_step": width * wide} if packs else {}),
            **_typed("tile", self.dtype if packs else self.a_type),
            **_typed("a", self.a_type),
            **_typed("out", self.out_type),
            **_typed("bias", self.bias_type),
            **_typed("other", self.other_type),
        }

    def numbers(self, cut: Cut) -> dict[str, int]:
        """What a kernel is told when it runs."""
        return {
            "images": self.images,
            "height": self.height,
            "columns": self.columns,
            "depth": self.depth,
            "a_line": self.a.line,
            "a_step": self.a.step,
            "a_image": self.a.image,
            "b_line": self.b.line,
            "b_step": self.b.step,
            "b_image": self.b.image,
            "out_row": self.out.line,
            "out_image": self.out.image,
            "wide": cut.wide,
            "panels": cut.panels,
            "row_blocks": cut.row_blocks,
            "column_blocks": cut.column_blocks,
            **dict.fromkeys(WALK if self.walks else (), 0),
        }

    @property
    def work(self) -> int:
        return self.images * self.height * self.columns * self.depth


def _typed(name: str, dtype: str) -> dict[str, Fixed]:
    return {f"{name}_type": dtype, f"{name}_size": STORED[dtype][1] if dtype else 0}


class Packing(NamedTuple):
    """How ``b`` is packed: what tells panels apart, elements, their dtype, and the launch over (b, packed)."""

    width: tuple[int, int, bool]
    size: int
    dtype: str
    launch: Launch

    @property
    def bytes(self) -> int:
        return self.size * STORED[self.dtype][1]

    def room(self) -> Array:
        """Where the panels of one call lie: the next one of this thread takes the same memory."""
        return room_for(self.size, self.dtype, "panels")


def packing(m: Matrices) -> Packing:
    """The packing of a ``b`` that all images share."""
    cut = m.cut("rows")
    launch = Launch(
        pack,
        ("b", "packed"),
        m.packing(cut),
        {"columns": m.columns, "depth": m.depth, "b_line": m.b.line, "b_step": m.b.step, "wide": cut.wide},
        items=cut.panels,
        work=2 * m.columns * m.depth,
    )
    vectors = cut.wide * cut.tile.vectors + (cut.panels - cut.wide) * cut.last
    return Packing((cut.tile.vectors, cut.last, m.b.line == 1), vectors * m.lanes * m.depth, m.dtype, launch)


PANEL = 1536  # bytes of a packed panel, which may be in a cache that cores share, that are fetched ahead
NEXT = 16  # steps of a long depth that are fetched ahead where each has a line of its own
RIGHT = 512  # bytes to the right of what is read of a panel in place, which are fetched if it comes from memory
PAGE = 4096  # bytes; lines a page apart share a set of a core's first cache
FEW = 50  # rows up to which a panel is not used often enough to be worth packing
SPREAD = 8  # sets of a cache over which lines must be spread to be read more than once
TOGETHER = 512 * 1024  # bytes of panels packed together where a step of the depth of many is one run of memory
WAYS = 8  # lines that a set of the first or second cache holds
TWICE = 64 * 1024  # elements of b that every block of rows had better pack for itself, though tiles pack none of it
OFTEN = 16  # panels of an item for which rows are worth packing that are neighbours in memory
REFETCH = 8  # cycles for a line that is in neither of a core's caches any more
ALL_ROWS = 4 << 20  # bytes of packed rows, of all items, that are as good as in a cache which cores share
LOW = 1.06  # what a reduction costs more of low tiles where two vectors of 64 bytes are multiplied in a cycle
IDLE = 3  # cycles of a step of the depth for every element that it packs meanwhile
PACKING = 3  # cycles to pack a vector of a panel
CHUNK = 512  # steps of a long depth that are summed before they are added to the result


class Scratched(NamedTuple):
    """A launch over (a, b, bias, out, other, scratch), the bytes of its scratch, and the rounds of its tiles' loops.

    b is packed ahead or not.
    """

    launch: Launch
    scratch: int
    rounds: int


def _first() -> int:
    """Bytes that are as good as in the first cache, of 32 KB: with loads of whole lines the second one keeps up."""
    return 48 << 10 if machine().vector_bytes == LINE else 32 << 10


def packed_product(m: Matrices) -> Scratched:
    """The product with the panels that `packing` makes."""
    cut = m.cut("rows")
    panels_stay = m.columns * m.depth * STORED[m.dtype][1] / cut.column_blocks <= second()
    held = _first() // 2 if panels_stay else second() // 2
    return _scratched(m, cut, multiply, m.depth, "columns", held, right=PANEL)


def packing_once(m: Matrices) -> Scratched | None:
    """`packed_product` that packs ``b`` on its way or reads it in place; None where several blocks would pack it."""
    cut = m.cut("rows")
    direct = m.b.line == 1 and (_stays(m, cut) or (m.height <= FEW and sets(m.b.step, m.b_type) >= SPREAD))
    cheap = m.columns * m.depth <= TWICE or (cut.panels > cut.row_blocks and _slice(m, cut, m.depth) > 0)
    if m.images > 1 or (cut.row_blocks > 1 and not (direct or cheap)):
        return None
    return _scratched(m, cut, multiply_packing, m.depth, "columns", second() // 2, direct=direct)


def packing_product(m: Matrices) -> Scratched:
    """The product with a ``b`` that only one image uses: its panels are packed, or read where they lie."""
    cut, direct = m.cut("columns"), in_place(m)
    return _scratched(m, cut, multiply_packing, m.depth, "rows", second() // 2, direct=direct, ahead=direct)


def in_place(m: Matrices) -> bool:
    """Whether `packing_product` reads ``b`` where it lies."""
    return m.height <= FEW or _stays(m, m.cut("columns"))


def _stays(m: Matrices, cut: Cut) -> bool:
    """Whether a panel read where it lies, a line of it ``b.step`` elements from the next, stays in the first cache."""
    size, ways = STORED[m.b_type][1], _first() // PAGE
    return m.depth <= sets(m.b.step, m.b_type) * ways and m.depth * cut.tile.vectors * m.lanes * size <= _first()


def sets(step: int, dtype: str, way: int = PAGE) -> int:
    """Over how many sets lines are spread that are ``step`` elements apart, in a cache whose ways have these bytes."""
    return way // gcd(step * STORED[dtype][1], way)


def _rows_packed(m: Matrices, cut: Cut, depth: int) -> bool:
    """Whether the rows of a tile had better be packed: their lines share too few sets of the first cache.

    So may steps of the depth where rows are neighbours, or they are too many, which matters to low tiles.
    """
    if m.a.line != 1:
        return cut.tile.rows > WAYS * sets(m.a.line, m.a_type)
    leave = depth > WAYS * sets(m.a.step, m.a_type) or depth * LINE > _first() // 2
    return machine().registers <= 16 and cut.panels >= OFTEN * cut.column_blocks and leave


def scattered(m: Matrices, cut: Cut) -> float:
    """Cycles, as measured, for what every tile reads anew of an ``a`` whose rows are neighbours.

    A step of the depth is a line of memory that several tiles share; where too many of them share a set of the second
    cache, none stays. Tiles of 16 registers are low and fetch it often.
    """
    if m.a.line != 1 or machine().registers > 16 or m.depth <= WAYS * sets(m.a.step, m.a_type, second() // WAYS):
        return 0.0
    return REFETCH * m.depth * -(-m.height // cut.tile.rows) * cut.panels * m.images / m.threads


def reduction(m: Matrices) -> Scratched:
    """The product summed over the images, too, a chunk of the depth after another."""
    cut = m.cut("")
    direct = m.b.line == 1 and (m.height <= FEW or cut.panels == 1)
    return _scratched(m, cut, reduce, CHUNK, "", second() // 2, adds=True, direct=direct)


def _slice(m: Matrices, cut: Cut, depth: int) -> int:
    """Columns of the next panel, of ``depth`` steps, that each tile packs; 0 where panels are packed by themselves.

    That is where no panel follows, tiles are too few, or so many that packing hardly matters, or where values change
    their dtype. Of neighbours a tile packs a vector, had better be a line of memory that no other tile reads, and where
    they are few, all panels together are packed sooner.
    """
    if m.b_type != m.dtype or m.images * cut.panels * -(-m.depth // depth) <= cut.column_blocks:
        return 0
    tiles, columns = max(-(-m.height // cut.tile.rows) // cut.row_blocks, 1), cut.tile.vectors * m.lanes
    lines = machine().vector_bytes == LINE
    if m.b.line == 1:
        much = depth < m.depth or (lines and depth * m.columns * STORED[m.b_type][1] > TOGETHER)
        return m.lanes if much and tiles >= cut.tile.vectors and m.columns >= m.lanes else 0
    each, cycles = -(-columns // tiles), cut.tile.rows * cut.tile.vectors // (1 if lines else 2)
    return each if tiles <= columns and each <= min(cycles // IDLE, MOST, m.columns) else 0


def _scratched(
    m: Matrices, cut: Cut, kernel: Kernel, depth: int, bias: str, held: int, right: int = 0, **options: bool
) -> Scratched:
    """A kernel that keeps ``held`` bytes of rows for each item, and a panel or two, of at most ``depth`` steps."""
    items, size = cut.row_blocks * cut.column_blocks, STORED[m.dtype][1]
    depth = -(-m.depth // -(-m.depth // depth)) if m.depth else 0  # of equal chunks
    wide = m.tile_lanes(cut)
    next_tile = -(-cut.tile.rows // wide) * wide * max(depth, 1)
    tiles = max(m.height // (cut.tile.rows * cut.row_blocks), 1) + 1
    group = min(max(held // (next_tile * size), 1), tiles)
    packs = _rows_packed(m, cut, depth)
    if kernel is multiply_packing and group < tiles:  # b would be packed for each group of rows
        fit = items * tiles * next_tile * size <= ALL_ROWS
        packs, group = packs and (fit or m.a.line != 1), tiles if fit or m.a.line == 1 else group
    panel = 0 if options.get("direct") or kernel is multiply else cut.tile.vectors * m.lanes * depth
    columns = _slice(m, cut, depth) if panel and not (packs and group < tiles) else 0
    together = 1 if m.b.line != 1 or columns else min(max(TOGETHER // max(panel * size, 1), 1), cut.panels)
    apart = -(-panel * size // LINE) * LINE if columns else 0
    each = -(-(packs * group * next_tile + together * panel) * size // LINE) * LINE + apart
    fixed = {**m.packing(cut), **m.multiplying(cut, bias, **options, packs=packs, right=right), "slice": columns}
    numbers = {
        **m.numbers(cut),
        "tile_next": next_tile if packs else cut.tile.rows * m.a.line,
        **({} if packs else {"tile_row": m.a.line, "tile_step": m.a.step}),
        "group": group if packs or kernel is multiply else max(m.height, 1),
        "together": together,
        "scratch_item": each,
        "chunk": max(depth, 1),
        "spare": apart,
    }
    pointers = ("a", "packed" if kernel is multiply else "b", "bias", "out", "other", "scratch")
    scratch = items * each
    rounds = m.images * -(-m.height // cut.tile.rows) * cut.panels * (m.depth // UNROLLED)
    return Scratched(Launch(kernel, pointers, fixed, numbers, items=items, work=m.work), scratch, rounds)

"""Matrix products of whole arrays: the kernels that walk over panels and rows, and how a shape is cut for them."""

from __future__ import annotations

from math import gcd
from typing import Any, NamedTuple

from npdwconv.kernels.cpu.cuts import Cut, best_cut
from npdwconv.kernels.cpu.engine import Kernel, Launch
from npdwconv.kernels.cpu.gemm import first_vector, rows_by_panel
from npdwconv.kernels.cpu.machine import machine
from npdwconv.kernels.cpu.panels import pack_panel
from npdwconv.kernels.cpu.simd import STORED
from npdwconv.kernels.cpu.spec import Fixed


def _pack(task: Any, item: Any) -> None:
    """One panel of a matrix, into its place among the panels."""
    vector = first_vector(task, item)
    column = vector * task.lanes
    source = task.b + column * task.b_column * task.b_size
    target = task.packed + column * task.depth * task.size
    pack_panel(task, source, target, item < task.wide, task.columns - column, task.depth)


def _multiply(task: Any, item: Any) -> None:
    """A block of rows (of all images) by a block of packed panels."""
    row_block, column_block = item // task.column_blocks, item % task.column_blocks
    tiles = (task.height + task.rows - 1) // task.rows
    total = task.images * tiles
    tile, end = total * row_block // task.row_blocks, total * (row_block + 1) // task.row_blocks
    first = task.panels * column_block // task.column_blocks
    last = task.panels * (column_block + 1) // task.column_blocks
    column_step = task.out_row if task.turned else 1
    row_step = 1 if task.turned else task.out_row
    while tile < end:
        image, row = tile // tiles, tile % tiles * task.rows
        count = min(task.height - row, task.group * task.rows, (end - tile) * task.rows)
        a = task.a + (image * task.a_image + row * task.a_row) * task.a_size
        for p in range(first, last):
            column = first_vector(task, p) * task.lanes
            place = image * task.out_image + row * row_step + column * column_step
            rows_by_panel(
                task,
                a,
                task.packed + column * task.depth * task.size,
                task.bias + column * task.bias_size,
                task.out + place * task.out_size,
                task.other + place * task.other_size,
                task.depth,
                count,
                p < task.wide,
                task.columns - column,
                0,
            )
        tile += (count + task.rows - 1) // task.rows


def _multiply_packing(task: Any, item: Any) -> None:
    """A block of rows by a block of panels (of all images), each packed where the item keeps it."""
    row_block, column_block = item // task.column_blocks, item % task.column_blocks
    tiles = (task.height + task.rows - 1) // task.rows
    row = tiles * row_block // task.row_blocks * task.rows
    count = min(tiles * (row_block + 1) // task.row_blocks * task.rows, task.height) - row
    units = task.images * task.panels
    panel = task.scratch + item * task.scratch_item * task.size
    for unit in range(units * column_block // task.column_blocks, units * (column_block + 1) // task.column_blocks):
        image, p = unit // task.panels, unit % task.panels
        column = first_vector(task, p) * task.lanes
        b = task.b + (image * task.b_image + column * task.b_column) * task.b_size
        if task.direct:
            panel = b
        else:
            pack_panel(task, b, panel, p < task.wide, task.columns - column, task.depth)
        place = image * task.out_image + row * task.out_row + column
        if task.turned:
            place = image * task.out_image + row + column * task.out_row
        rows_by_panel(
            task,
            task.a + (image * task.a_image + row * task.a_row) * task.a_size,
            panel,
            task.bias + (row if task.bias_of_rows else column) * task.bias_size,
            task.out + place * task.out_size,
            task.other + place * task.other_size,
            task.depth,
            count,
            p < task.wide,
            task.columns - column,
            0,
        )


def _reduce(task: Any, item: Any) -> None:
    """A block of rows by a block of columns of a product over long depths, a chunk after another, image after image."""
    row_block, column_block = item // task.column_blocks, item % task.column_blocks
    tiles = (task.height + task.rows - 1) // task.rows
    row = tiles * row_block // task.row_blocks * task.rows
    count = min(tiles * (row_block + 1) // task.row_blocks * task.rows, task.height) - row
    first = task.panels * column_block // task.column_blocks
    last = task.panels * (column_block + 1) // task.column_blocks
    panel = task.scratch + item * task.scratch_item * task.size
    for image in range(task.images):
        for start in range(0, task.depth, task.chunk):
            depth = min(task.chunk, task.depth - start)
            a = task.a + (image * task.a_image + start * task.a_step + row * task.a_row) * task.a_size
            for p in range(first, last):
                column = first_vector(task, p) * task.lanes
                b = task.b + (image * task.b_image + column * task.b_column + start * task.b_step) * task.b_size
                if task.direct:
                    panel = b
                else:
                    pack_panel(task, b, panel, p < task.wide, task.columns - column, depth)
                place = row * task.out_row + column
                if task.turned:
                    place = column * task.out_row + row
                out = task.out + place * task.out_size
                rows_by_panel(
                    task, a, panel, 0, out, 0, depth, count, p < task.wide, task.columns - column, image + start
                )


pack, multiply, multiply_packing, reduce = (
    Kernel(function) for function in (_pack, _multiply, _multiply_packing, _reduce)
)


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

    @property
    def dtype(self) -> str:
        """In which sums are accumulated and panels are stored."""
        return STORED[self.a_type][2]

    @property
    def lanes(self) -> int:
        return machine().lanes(STORED[self.dtype][1])

    def cut(self, split: str) -> Cut:
        """The cheapest cut; see `best_cut`."""
        vectors = -(-self.columns // self.lanes)
        return best_cut(self.images, self.height, vectors, self.depth, machine().registers, self.threads, split)

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
            "turning": self.b.line != 1,
        }

    def multiplying(
        self, cut: Cut, bias: str, *, adds: bool = False, direct: bool = False, ahead: bool = False
    ) -> dict[str, Fixed]:
        """What is compiled into the product with a packed ``b``, the bias being of "rows" or "columns"."""
        return {
            "lanes": self.lanes,
            "size": STORED[self.dtype][1],
            "rows": cut.tile.rows,
            "rest": cut.tile.rest,
            "vectors": cut.tile.vectors,
            "last": cut.last,
            "tail": self.columns % self.lanes != 0,
            "turned": self.turned,
            "bias_of": bias if self.bias_type else "",
            "bias_of_rows": bias == "rows",
            "activation": self.activation,
            "chain": self.chain,
            "adds": adds,
            "direct": direct,
            "ahead": ahead,
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
            "a_row": self.a.line,
            "a_step": self.a.step,
            "a_image": self.a.image,
            "b_column": self.b.line,
            "b_step": self.b.step,
            "b_image": self.b.image,
            "out_row": self.out.line,
            "out_image": self.out.image,
            "wide": cut.wide,
            "panels": cut.panels,
            "row_blocks": cut.row_blocks,
            "column_blocks": cut.column_blocks,
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


def packing(m: Matrices) -> Packing:
    """The packing of a ``b`` that all images share."""
    cut = m.cut("rows")
    launch = Launch(
        pack,
        ("b", "packed"),
        m.packing(cut),
        {"columns": m.columns, "depth": m.depth, "b_column": m.b.line, "b_step": m.b.step, "wide": cut.wide},
        items=cut.panels,
        work=2 * m.columns * m.depth,
    )
    vectors = cut.wide * cut.tile.vectors + (cut.panels - cut.wide) * cut.last
    return Packing((cut.tile.vectors, cut.last, m.b.line == 1), vectors * m.lanes * m.depth, m.dtype, launch)


POINTERS = ("a", "packed", "bias", "out", "other")
L1_BYTES, L2_BYTES, PAGE = 48 * 1024, 1_000_000, 4096  # caches of a core; lines a page apart share a set of the first
FEW = 50  # rows up to which a panel is not used often enough to be worth packing
SPREAD = 8  # sets of a cache over which lines must be spread to be read more than once
CHUNK = 512  # steps of a long depth that are summed before they are added to the result


def packed_product(m: Matrices) -> Launch:
    """The product with the panels that `packing` makes, over (a, packed, bias, out, other)."""
    cut = m.cut("rows")
    row = m.depth * STORED[m.a_type][1]
    panels_stay = m.columns * m.depth * STORED[m.dtype][1] / cut.column_blocks <= L2_BYTES
    group = L1_BYTES // 2 if panels_stay else L2_BYTES // 2
    numbers = {**m.numbers(cut), "group": max(group // max(row * cut.tile.rows, 1), 1)}
    items = cut.row_blocks * cut.column_blocks
    return Launch(multiply, POINTERS, m.multiplying(cut, "columns"), numbers, items=items, work=m.work)


class Scratched(NamedTuple):
    """A launch over (a, b, bias, out, other, scratch) and the elements of its scratch."""

    launch: Launch
    scratch: int


def packing_once(m: Matrices) -> Scratched | None:
    """`packed_product` that packs ``b`` on its way or reads it in place; None where several blocks would pack it."""
    cut = m.cut("rows")
    direct = m.b.line == 1 and (_stays(m, cut) or (m.height <= FEW and _sets(m) >= SPREAD))
    if m.images > 1 or (cut.row_blocks > 1 and not direct):
        return None
    return _scratched(m, cut, multiply_packing, m.depth, "columns", direct=direct)


def packing_product(m: Matrices) -> Scratched:
    """The product with a ``b`` that only one image uses: its panels are packed, or read where they lie."""
    cut = m.cut("columns")
    direct = m.height <= FEW or _stays(m, cut)
    return _scratched(m, cut, multiply_packing, m.depth, "rows", direct=direct, ahead=direct)


def _stays(m: Matrices, cut: Cut) -> bool:
    """Whether a panel read where it lies, a line of it ``b.step`` elements from the next, stays in the first cache."""
    size, ways = STORED[m.b_type][1], L1_BYTES // PAGE
    return m.depth <= _sets(m) * ways and m.depth * cut.tile.vectors * m.lanes * size <= L1_BYTES


def _sets(m: Matrices) -> int:
    """Over how many sets of the first cache the lines of a panel are spread."""
    return PAGE // gcd(m.b.step * STORED[m.b_type][1], PAGE)


def reduction(m: Matrices) -> Scratched:
    """The product summed over the images, too, a chunk of the depth after another."""
    cut = m.cut("")
    direct = m.b.line == 1 and (m.height <= FEW or cut.panels == 1)
    return _scratched(m, cut, reduce, CHUNK, "", adds=True, direct=direct)


def _scratched(m: Matrices, cut: Cut, kernel: Kernel, depth: int, bias: str, **options: bool) -> Scratched:
    items = cut.row_blocks * cut.column_blocks
    each = 0 if options.get("direct") else cut.tile.vectors * m.lanes * min(depth, m.depth)
    fixed = {**m.packing(cut), **m.multiplying(cut, bias, **options)}
    numbers = {**m.numbers(cut), "scratch_item": each, "chunk": max(depth, 1)}
    pointers = ("a", "b", "bias", "out", "other", "scratch")
    return Scratched(Launch(kernel, pointers, fixed, numbers, items=items, work=m.work), items * each)

"""Sums of products along what is contiguous in both operands, for the CPU: weight gradients in channels_first.

``out[i, j] = Σ_n,l a[n, i, l]·b[n, j, l]``. Lanes are steps l of the depth, so nothing is packed: a tile of rows i and
columns j multiplies vectors as they lie, and adds up the lanes of its sums at the end, all together. A chunk of the
depth of a few columns stays in the first cache while the rows go by.
"""

from __future__ import annotations

from typing import Any

from numba.core import types
from numba.extending import intrinsic

from npdwconv.kernels.cpu.assembly import opaque
from npdwconv.kernels.cpu.cuts import divisors
from npdwconv.kernels.cpu.engine import Kernel, Launch
from npdwconv.kernels.cpu.gemm import repeat
from npdwconv.kernels.cpu.machine import machine
from npdwconv.kernels.cpu.products import PACKING, Matrices, Scratched
from npdwconv.kernels.cpu.simd import STORED, Value, Vectors, int64
from npdwconv.kernels.cpu.spec import Fixed, Spec, field
from npdwconv.kernels.cpu.weight_tiles import when

TILES = {32: (4, 6), 16: (4, 3)}  # rows and columns of a tile: its sums, a line of the columns and an element of a row
CHUNK = 1024  # steps of the depth whose columns stay in the first cache
ADDING = 70  # cycles to add up the lanes of a tile's sums and write them: reckoned by instructions
WORTH = {32: 1.0, 16: 0.8}  # part of that product's cycles up to which this one was the faster, as measured


def totals(v: Vectors, values: list[Value]) -> Value:
    """A vector whose lanes are the sums of the lanes of ``values``, as many as it has: pairs of lanes first."""
    even, odd = (range(first, 2 * v.lanes, 2) for first in (0, 1))
    while len(values) > 1:
        pairs = zip(values[::2], values[1::2], strict=True)
        values = [v.builder.fadd(v.shuffle(x, y, even), v.shuffle(x, y, odd)) for x, y in pairs]
    return values[0]


class _Tile:
    """Emits ``rows`` × ``width`` sums, of which so many exist as a call says."""

    def __init__(self, builder: Any, task: Value, spec: Spec) -> None:
        self.builder, self.task, self.spec = builder, task, spec
        self.v = Vectors(builder, STORED[str(spec.stored)][2])
        self.rows, self.width = int(spec.rows), int(spec.width)

    def lines(self, name: str, first: Value, count: int, exist: Value) -> list[Value]:
        """Addresses of an operand's lines; of the last that exists in place of those that do not."""
        b = self.builder
        pitch = self.v.index(field(b, self.spec, self.task, f"{name}_line"), int(self.spec.stored_size))
        last = b.sub(exist, int64(1))
        numbers = [b.select(b.icmp_signed("<", int64(n), last), int64(n), last) for n in range(count)]
        return [opaque(b, b.add(first, b.mul(pitch, number))) for number in numbers]

    def sums(self, a: list[Value], b: list[Value], depth: Value) -> list[Value]:
        """Vectors whose lanes are parts of the sums over the depth, row after row: whole vectors, then what is left."""
        builder, v, stored, size = self.builder, self.v, str(self.spec.stored), int(self.spec.stored_size)

        def step(at: Value, sums: list[Value], mask: Value | None) -> list[Value]:
            line = [v.load(v.at(column, at), stored, mask) for column in b]
            results = []
            for number, row in enumerate(a):
                element = v.load(v.at(row, at), stored, mask)
                each = sums[number * self.width : (number + 1) * self.width]
                results += [v.fma(element, y, z) for y, z in zip(line, each, strict=True)]
            return results

        def body(at: Value, *sums: Value) -> list[Value]:
            return [v.at(at, v.lanes * size), *step(at, list(sums), None)]

        whole = builder.udiv(depth, int64(v.lanes))
        at, *sums = repeat(builder, whole, [int64(0), *[v.zero()] * (self.rows * self.width)], body)
        left = builder.urem(depth, int64(v.lanes))
        some = builder.icmp_signed(">", left, int64(0))
        return when(builder, some, sums, lambda sums: step(at, sums, v.between(int64(0), left)))

    def write(self, sums: list[Value], out: Value, rows: Value, columns: Value, add: Value) -> None:
        """Every row's totals, plus what is there where ``add`` is not zero; several rows may share a vector."""
        b, v = self.builder, self.v
        part = Vectors(b, v.dtype, min(1 << (self.width - 1).bit_length(), v.lanes))
        pitch = v.index(field(b, self.spec, self.task, "out_row"), v.bytes)
        adds = part.everywhere(b.icmp_signed("!=", add, int64(0)))
        for column in range(0, self.width, part.lanes):
            mask = part.between(int64(0), b.sub(columns, int64(column)))
            for first in range(0, self.rows, v.lanes // part.lanes):
                group = range(first, min(first + v.lanes // part.lanes, self.rows))
                lines = [sums[row * self.width : (row + 1) * self.width][column : column + part.lanes] for row in group]
                values = [value for line in lines for value in [*line, *[v.zero()] * (part.lanes - len(line))]]
                total = totals(v, values + [v.zero()] * (v.lanes - len(values)))
                for row in group:
                    with b.if_then(b.icmp_signed("<", int64(row), rows), likely=True):
                        place = v.at(out, b.mul(pitch, int64(row)), column * v.bytes)
                        begin = (row - first) * part.lanes
                        value = part.shuffle(total, total, range(begin, begin + part.lanes))
                        before = part.load(place, mask=b.and_(mask, adds))
                        part.store(b.fadd(value, before), place, mask=mask)


@intrinsic
def _tile(typing: Any, task: Any, a: Any, b: Any, out: Any, rows: Any, columns: Any, depth: Any, add: Any) -> Any:
    """One tile, of so many rows and columns; what is there is added to where ``add`` is not zero."""
    spec = task.spec

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        task_, a_, b_, out_, rows_, columns_, depth_, add_ = arguments
        tile = _Tile(builder, task_, spec)
        lines_a = tile.lines("a", a_, tile.rows, rows_)
        lines_b = tile.lines("b", b_, tile.width, columns_)
        tile.write(tile.sums(lines_a, lines_b, depth_), out_, rows_, columns_, add_)
        return context.get_dummy_value()

    arguments = (task, a, b, out, rows, columns, depth, add)
    return types.none(*arguments), generate


def _dots(task: Any, item: Any) -> None:
    """A block of rows by a block of columns, a chunk of the depth after another, image after image."""
    row_block, column_block = item // task.column_blocks, item % task.column_blocks
    tiles = (task.height + task.rows - 1) // task.rows
    top = tiles * row_block // task.row_blocks * task.rows
    bottom = min(tiles * (row_block + 1) // task.row_blocks * task.rows, task.height)
    panels = (task.columns + task.width - 1) // task.width
    left = panels * column_block // task.column_blocks * task.width
    right = min(panels * (column_block + 1) // task.column_blocks * task.width, task.columns)
    for image in range(task.images):
        for start in range(0, task.depth, task.chunk):
            depth = min(task.chunk, task.depth - start)
            a = task.a + (image * task.a_image + start) * task.stored_size
            b = task.b + (image * task.b_image + start) * task.stored_size
            for column in range(left, right, task.width):
                here = b + column * task.b_line * task.stored_size
                for row in range(top, bottom, task.rows):
                    out = task.out + (row * task.out_row + column) * task.out_size
                    there = a + row * task.a_line * task.stored_size
                    _tile(task, there, here, out, bottom - row, right - column, depth, image + start)


dots = Kernel(_dots)


def dot_product(m: Matrices, cycles: float) -> Scratched | None:
    """The product summed over the images, too, where that is faster than by panels, which takes so many ``cycles``.

    None where it is not, or an operand's depth is not contiguous. Cycles are those of one thread: which way it is, and
    so the bits, must not depend on how many there are.
    """
    registers = machine().registers
    if m.a.step != 1 or m.b.step != 1 or m.a_type != m.b_type or m.turned:
        return None
    rows, width = TILES[registers]
    tiles, panels, chunks = -(-m.height // rows), -(-m.columns // width), -(-m.depth // CHUNK)
    steps = -(-m.depth // (chunks * m.lanes))  # of a vector, in equal chunks
    packing = PACKING * m.images * m.depth * min(m.height, m.columns) / m.lanes
    if m.images * chunks * tiles * panels * (steps * rows * width / 2 + ADDING) > WORTH[registers] * (cycles + packing):
        return None
    shares = [(min(blocks, tiles), min(m.threads // blocks, panels)) for blocks in divisors(m.threads)]
    row_blocks, column_blocks = min(shares, key=lambda share: (-(-tiles // share[0]) * -(-panels // share[1]), share))
    fixed: dict[str, Fixed] = {"rows": rows, "width": width, "stored": m.a_type, "stored_size": STORED[m.a_type][1]}
    fixed |= {"out_size": STORED[m.out_type][1]}
    numbers = {
        "images": m.images,
        "height": m.height,
        "columns": m.columns,
        "depth": m.depth,
        "a_line": m.a.line,
        "a_image": m.a.image,
        "b_line": m.b.line,
        "b_image": m.b.image,
        "out_row": m.out.line,
        "row_blocks": row_blocks,
        "column_blocks": column_blocks,
        "chunk": steps * m.lanes,
    }
    pointers = ("a", "b", "bias", "out", "other", "scratch")
    return Scratched(Launch(dots, pointers, fixed, numbers, items=row_blocks * column_blocks, work=m.work), 0, 0)

"""A matrix product on the device: tiles in shared memory, a patch of the result in each thread's scalars.

``c[b] = epilogue(a[b] · b[b] + bias)`` with matrices that are contiguous along either axis. A block owns a tile of the
result; it brings a slice of both factors into shared memory while it multiplies the one before, and every thread keeps
a patch of sums (two groups of four rows times two of four columns, so that shared memory is read in vectors without
bank conflicts). A sum's order is that of its index, whatever the tile: bits do not depend on the batch.
"""

from __future__ import annotations

from functools import cache
from itertools import product
from typing import Any, NamedTuple

import numpy as np

from npdwconv.kernels.cuda import activate, provider
from npdwconv.kernels.cuda.provider import Source
from npdwconv.kernels.cuda.source import Text
from npdwconv.kernels.cuda.words import real_of, vocabulary


class Tile(NamedTuple):
    """A block's tile: rows and columns of the result, the slice's depth, and each thread's patch."""

    rows: int
    columns: int
    depth: int
    high: int
    wide: int

    @property
    def threads(self) -> int:
        return (self.rows // self.high) * (self.columns // self.wide)


PAD = 4  # elements between rows in shared memory: neighbours along the sum fall into other banks
LARGE, SMALL, TINY = Tile(128, 128, 8, 8, 8), Tile(64, 64, 8, 4, 4), Tile(8, 8, 4, 4, 4)


class ProductSpec(NamedTuple):
    """What a product is written for."""

    a: str  # storage dtypes
    b: str
    c: str
    a_along_sum: bool  # whether the first factor is contiguous along the sum, rather than along its rows
    b_along_sum: bool
    bias: str = ""  # "rows", "columns" or none
    bias_storage: str = ""
    activation: str = ""
    other: str = ""  # storage of what the activation's derivative is multiplied with
    tile: Tile = LARGE
    vector: int = 1  # columns of the result that are written at once


ARGUMENTS = (
    *("pa", "pb", "pc", "pv", "pe"),
    *("rows", "columns", "depth", "lda", "ldb", "ldc", "batch_a", "batch_b", "batch_c"),
    *("total", "apart", "piece", "pieces"),
)


@cache
def source(spec: ProductSpec) -> Source:
    """The text of a product.

    Block z computes result z: it sums over pairs of matrices out of ``total``, those from ``z // pieces`` on, ``apart``
    from one to the next, and over the piece ``z % pieces`` of the sum.
    """
    tile = spec.tile
    text = Text("multiply", ARGUMENTS)
    across = tile.columns // tile.wide
    text(
        "thread = cuda.threadIdx.x",
        f"tiles = div(columns + {tile.columns - 1}, {tile.columns})",
        "i0 = div(cuda.blockIdx.x, tiles)",
        f"j0 = (cuda.blockIdx.x - i0 * tiles) * {tile.columns}",
        f"i0 = i0 * {tile.rows}",
        "z = cuda.blockIdx.z",
        "image = div(z, pieces)",
        "images = div(total - image + apart - 1, apart)",
        "first = rem(z, pieces) * piece",
        "last = min(first + piece, depth)",
        f"ti = div(thread, {across}) * 4",
        f"tj = rem(thread, {across}) * 4",
        f"kept = cuda.shared.array({tile.depth * (tile.rows + tile.columns + 2 * PAD)}, real)",
    )
    second = f"{tile.depth * (tile.rows + PAD)}"
    begin(text, tile)
    loads = [
        *factor("a", ("i0 + ", "rows", "lda"), spec.a_along_sum, tile.rows, tile, "0"),
        *factor("b", ("j0 + ", "columns", "ldb"), spec.b_along_sum, tile.columns, tile, second),
    ]
    text(*(line for load in loads for line in load.places))
    text("a = at_a(pa, image * batch_a)", "b = at_b(pb, image * batch_b)", "round = 0", "k0 = first")
    with text.block("if images <= 0 or first >= last:"):
        text("round = images")
    with text.block("if round < images:"):
        text(*(line for load in loads for line in load.fetch))
    with text.block("while round < images:"):
        text(*(line for load in loads for line in load.keep), "cuda.syncthreads()", f"k0 += {tile.depth}")
        with text.block("if k0 >= last:"):
            text("k0 = first", "round += 1", "a = step_a(a, apart * batch_a)", "b = step_b(b, apart * batch_b)")
        with text.block("if round < images:"):
            text(*(line for load in loads for line in load.fetch))
        multiply(text, tile, "0", second)
        text("cuda.syncthreads()")
    _store(text, spec)
    real: Any = real_of(spec.a)
    storages = {"a": spec.a, "b": spec.b, "c": spec.c}
    if spec.bias:
        storages["v"] = spec.bias_storage
    if spec.other:
        storages["e"] = spec.other
    words = vocabulary(**storages)
    words.update(zero=real(0), real=real)
    if spec.activation:
        words["act"] = activate.function(spec.activation, real, bool(spec.other))
    return Source("multiply", ARGUMENTS, text.text, words)


def begin(text: Text, tile: Tile) -> None:
    """A thread's sums: none yet."""
    text(*(f"s{i}_{j} = zero" for i, j in product(range(tile.high), range(tile.wide))))


def multiply(text: Text, tile: Tile, first: str, second: str, unrolled: int = 1) -> None:
    """Add the products of two slices, ``[depth, rows]`` and ``[depth, columns]``, that lie in shared memory there."""
    step = f", {unrolled}" if unrolled > 1 else ""
    with text.block(f"for k in range({f'0, {tile.depth}{step}' if step else tile.depth}):"):
        starts = (f"{first} + k * {tile.rows + PAD}", f"{second} + k * {tile.columns + PAD}")
        if unrolled > 1:
            text(f"af = {starts[0]} + ti", f"bf = {starts[1]} + tj")
        for number in range(unrolled):
            for group in range(tile.high // 4):
                names = ", ".join(f"x{4 * group + i}" for i in range(4))
                place = number * (tile.rows + PAD) + group * tile.rows // 2
                text(f"{names} = get4(kept, {f'af + {place}' if step else f'{starts[0]} + {place} + ti'})")
            for group in range(tile.wide // 4):
                names = ", ".join(f"y{4 * group + j}" for j in range(4))
                place = number * (tile.columns + PAD) + group * tile.columns // 2
                text(f"{names} = get4(kept, {f'bf + {place}' if step else f'{starts[1]} + {place} + tj'})")
            text(*(f"s{i}_{j} = fma(x{i}, y{j}, s{i}_{j})" for i, j in product(range(tile.high), range(tile.wide))))


class Load(NamedTuple):
    """One element that a thread brings: where it lies, how it is fetched, and how it is kept."""

    places: tuple[str, ...]
    fetch: tuple[str, ...]
    keep: tuple[str, ...]


def factor(
    letter: str, names: tuple[str, str, str], along_sum: bool, extent: int, tile: Tile, origin: str
) -> list[Load]:
    """A slice of a factor, kept from ``origin`` on; ``names``: where it begins, its extent and leading dimension."""
    (begin, most, name), found = names, []
    for number in range(-(-extent * tile.depth // tile.threads)):
        k, i, index = f"{letter}k{number}", f"{letter}i{number}", f"thread + {number * tile.threads}"
        split = (
            (f"{i} = div({index}, {tile.depth})", f"{k} = {index} - {i} * {tile.depth}")
            if along_sum
            else (f"{k} = div({index}, {extent})", f"{i} = {index} - {k} * {extent}")
        )
        offset = f"({begin}{i}) * {name} + {k}" if along_sum else f"{k} * {name} + {begin}{i}"
        sum_step = "k0" if along_sum else f"k0 * {name}"
        inside = f"{letter}g{number}"
        value, element = f"{letter}v{number}", f"step_{letter}({letter}, {letter}o{number} + {sum_step})"
        found.append(
            Load(
                (*split, f"{letter}o{number} = {offset}", f"{inside} = {begin}{i} < {most}", f"{value} = zero"),
                (f"{value} = load_{letter}({element}, 0, {inside} & (k0 + {k} < last))",),
                (f"put(kept, {origin} + {k} * {extent + PAD} + {i}, {value})",),
            )
        )
    return found


def _store(text: Text, spec: ProductSpec) -> None:
    tile, vector = spec.tile, spec.vector
    width = "" if vector == 1 else str(vector)
    for i in range(tile.high):
        row = f"i0 + {i // 4 * (tile.rows // 2)} + ti + {i % 4}"
        with text.block(f"if {row} < rows:"):
            text(f"row = {row}")
            if spec.bias == "rows":
                text("bias = read_v(at_v(pv, row), 0)")
            for j in range(0, tile.wide, vector):
                column = f"j0 + {j // 4 * (tile.columns // 2)} + tj + {j % 4}"
                with text.block(f"if {column} < columns:"):
                    text(f"column = {column}", "place = z * batch_c + row * ldc + column")
                    names = [f"s{i}_{j + n}" for n in range(vector)]
                    for n, name in enumerate(names):
                        added = {"rows": "bias", "columns": f"read_v(at_v(pv, column), {n})"}.get(spec.bias, "")
                        finish(text, name, added, "act" if spec.activation else "")
                    if spec.other:
                        others = ", ".join(f"e{n}" for n in range(vector))
                        text(f"{others} = peek{width}_e(at_e(pe, place), 0)")
                        text(*(f"{name} = e{n} * {name}" for n, name in enumerate(names)))
                    text(f"store{width}_c(at_c(pc, place), 0, {', '.join(names)})")


def finish(text: Text, name: str, bias: str, activation: str) -> None:
    """Bias and activation of a sum, where there are any."""
    if bias:
        text(f"{name} = {name} + {bias}")
    if activation:
        text(f"{name} = {activation}({name})")


@cache
def kernel(spec: ProductSpec) -> provider.Kernel:
    """The kernel of a specification, compiled when it is first launched."""
    return provider.Kernel(source(spec), repr(spec))


def grid(tile: Tile, rows: int, columns: int, count: int) -> provider.Extents:
    """Blocks for ``count`` results of this extent: tiles along the only axis of a grid that may be long."""
    return (-(-rows // tile.rows) * -(-columns // tile.columns), 1, count)


def tile_for(rows: int, columns: int, count: int) -> Tile:
    """The tile for ``count`` results of this extent: a large one where it is filled and there are enough of them."""
    if provider.simulated():
        return TINY
    large = -(-rows // LARGE.rows) * -(-columns // LARGE.columns) * count
    wasted = -(-rows // LARGE.rows) * LARGE.rows * -(-columns // LARGE.columns) * LARGE.columns
    return LARGE if large >= 200 and wasted <= 1.35 * rows * columns else SMALL


def width_of(columns: int, ldc: int, batch_c: int, *arrays: Any) -> int:
    """How many columns are written at once: four where they lie whole and aligned in every array."""
    given = [array for array in arrays if array is not None]
    whole = not (columns % 4 or ldc % 4 or batch_c % 4)
    narrow = any(a.dtype == np.float64 or a.address % (4 * a.itemsize) for a in given)
    return 4 if whole and not narrow else 1

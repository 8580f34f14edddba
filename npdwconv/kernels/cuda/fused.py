"""A separable convolution in one kernel: the matrix product of `product`, whose pixels are depthwise sums.

A block owns a tile of pixels and all results. For every slice of channels it forms the depthwise values, with their
bias and activation, in shared memory, as `gather` would, and multiplies them there; they are never in the device's
memory. It works one slice ahead: what slice s + 1 reads is asked for before slice s is multiplied, and summed after,
into the other half of shared memory, so that one barrier a slice is enough.

Sums have the order of `gather` and `product`: the bits are those of the two calls.
"""

from __future__ import annotations

from functools import cache
from itertools import product
from typing import Any

from npdwconv.kernels.cuda import activate, gather, provider
from npdwconv.kernels.cuda.fused_spec import PATCH, STRIP, FusedSpec, pieces
from npdwconv.kernels.cuda.gather import scalar
from npdwconv.kernels.cuda.product import PAD, Load, begin, finish, multiply
from npdwconv.kernels.cuda.provider import Source
from npdwconv.kernels.cuda.source import Text
from npdwconv.kernels.cuda.words import real_of, registers, vocabulary

ARGUMENTS = (
    *("px", "pw", "pd", "pa", "pv", "po"),
    *("channels", "results", "hs", "ws", "ht", "wt", "sh", "sw", "patches"),
)
NOWHERE = -(1 << 30)  # a row that no image has


@cache
def kernel(spec: FusedSpec) -> provider.Kernel:
    """The kernel of a specification, compiled when it is first launched."""
    return provider.Kernel(source(spec), repr(spec))


@cache
def source(spec: FusedSpec) -> Source:
    """The text of a specification's kernel, and what it refers to."""
    text, tile, places = Text("separable", ARGUMENTS), spec.tile, _Places(spec)
    text(
        "thread = cuda.threadIdx.x",
        f"down = div(ht + {spec.patch[0] - 1}, {spec.patch[0]})",
        f"across = div(wt + {spec.patch[1] - 1}, {spec.patch[1]})",
        f"ti = div(thread, {tile.columns // tile.wide}) * 4",
        f"tj = rem(thread, {tile.columns // tile.wide}) * 4",
        f"kept = cuda.shared.array({2 * places.half}, real)",
        f"wide = ws{'' if spec.first else ' * channels'}",
        f"ahead = {f'{tile.depth} * hs * ws' if spec.first else tile.depth}",
        *("k0 = 0", "k1 = 0", "here = 0", "there = 0"),
    )
    begin(text, tile)
    parts = [_weights(spec, places), _taps(spec, places)]
    parts += [_bias(spec, places)] if spec.biases[0] else []
    text(*(line for part in parts for line in part.places))
    for number in range(spec.units):
        _unit(text, spec, number)
    text(*(line for part in parts[1:] for line in (*part.fetch, *part.keep)), "cuda.syncthreads()")
    with text.block(f"while k0 < channels + {tile.depth}:"):
        text(f"there = {places.half} - here", f"k1 = k0 + {tile.depth}")
        for number in range(spec.units):
            _fetch(text, spec, number)
        text(*(line for part in parts for line in part.fetch))
        with text.block("if k0 > 0:"):
            multiply(text, tile, "there", f"there + {places.second}", min(4, tile.depth))
        with text.block("if k0 < channels:"):
            for number in range(spec.units):
                _form(text, spec, places, number)
            text(*(line for part in parts for line in part.keep))
        text("cuda.syncthreads()", "here = there", "k0 = k1")
    _store(text, spec)
    return Source("separable", ARGUMENTS, text.text, _words(spec), (tile.threads, spec.resident))


def _words(spec: FusedSpec) -> dict[str, Any]:
    words = vocabulary(**dict.fromkeys("xwdavo", spec.storage))
    real: Any = real_of(spec.storage)
    words.update(zero=real(0), real=real, again=gather.again(spec.axes, spec.storage, spec.storage, 1))
    for name, activation in zip(("middle", "act"), spec.activations, strict=True):
        if activation:
            words[name] = activate.function(activation, real)
    return words


class _Places:
    """Where things lie in either half of shared memory."""

    def __init__(self, spec: FusedSpec) -> None:
        tile, each = spec.tile, spec.taps + spec.biases[0]
        self.second = tile.depth * (tile.rows + PAD)
        self.weights, self.values = (0, self.second) if spec.first else (self.second, 0)
        self.taps = self.second + tile.depth * (tile.columns + PAD)
        self.each = -(-each // 4) * 4  # from one channel's taps to the next, channels_first
        self.half = self.taps + (tile.depth * self.each if spec.first else -(-tile.depth * each // 4) * 4)


def _weights(spec: FusedSpec, places: _Places) -> Load:
    """The pointwise weights of the slice at ``k0``, in vectors along the sum."""
    tile, vector = spec.tile, spec.panel
    extent, abreast = tile.rows if spec.first else tile.columns, tile.depth // vector
    rows, width = tile.threads // abreast, "" if vector == 1 else str(vector)
    fetch, keep = ["live = within(k0 + ak, channels)", "row = a"], ["place = here + ap"]
    for row in range(0, extent, rows):
        held = [f"ar{row}_{number}" for number in range(registers(spec.storage, vector))]
        values = [f"av{number}" for number in range(vector)]
        fetch.append(f"{', '.join(held)} = hold{width}_a(row, 0, live & within(ai + {row}, results))")
        fetch.append("row = step_a(row, below)")
        keep.append(f"{', '.join(values)} = held{width}_a({', '.join(held)})")
        keep += [f"put(kept, place + {row + k * (extent + PAD)}, {value})" for k, value in enumerate(values)]
    return Load(
        (
            f"ak = rem(thread, {abreast}) * {vector}",
            f"ai = div(thread, {abreast})",
            f"ap = {places.weights} + ak * {extent + PAD} + ai",
            "a = at_a(pa, ai * channels + ak)",
            f"below = {rows} * channels",
        ),
        (*fetch, f"a = step_a(a, {tile.depth})"),
        tuple(keep),
    )


def _taps(spec: FusedSpec, places: _Places) -> Load:
    """The taps of slice ``k1``'s channels, kept by channel, channels_first, or by tap."""
    (depth, threads), each = (spec.tile.depth, spec.tile.threads), spec.tile.depth * spec.taps
    first, fetch, keep = ["taps = at_w(pw, thread)", f"left = channels * {spec.taps}"], [], []
    for number in range(-(-each // threads)):
        index, place, value = f"thread + {number * threads}", f"tp{number}", f"tv{number}"
        channel, tap = f"div({index}, {spec.taps})", f"rem({index}, {spec.taps})"
        where = f"{channel} * {places.each} + {tap}" if spec.first else f"{tap} * {depth} + {channel}"
        first.append(f"{place} = {places.taps} + {where}")
        inside = f"({index} < left)"
        put = f"put(kept, there + {place}, held_w({value}))"
        if each < (number + 1) * threads:
            inside, put = f"{inside} & ({index} < {each})", f"if {index} < {each}: {put}"
        fetch.append(f"{value} = hold_w(taps, {number * threads}, {inside})")
        keep.append(put)
    return Load(tuple(first), (*fetch, f"taps = step_w(taps, {each})", f"left -= {each}"), tuple(keep))


def _bias(spec: FusedSpec, places: _Places) -> Load:
    """The bias of slice ``k1``'s channels, kept as one tap more."""
    depth = spec.tile.depth
    where = f"thread * {places.each} + {spec.taps}" if spec.first else f"{spec.taps * depth} + thread"
    return Load(
        ("bias = at_d(pd, thread)", "more = channels"),
        (
            f"bv = hold_d(bias, 0, (thread < more) & (thread < {depth}))",
            f"bias = step_d(bias, {depth})",
            f"more -= {depth}",
        ),
        (f"if thread < {depth}: put(kept, there + {places.taps} + {where}, held_d(bv))",),
    )


def _unit(text: Text, spec: FusedSpec, number: int) -> None:
    """A part of a patch in some channels of a slice, that the thread forms for every slice: where its sources lie."""
    wide, (_, rows, columns), n = spec.patch[1], spec.axes, number
    text(f"u = thread + {n * spec.tile.threads}")
    if spec.first:
        text(f"d{n} = div(u, {spec.pixels // PATCH})", f"p = rem(u, {spec.pixels // PATCH})")
        text(f"t{n} = p * {PATCH}", "m = 0")
    else:
        vectors = spec.tile.depth // spec.vector
        text(f"d{n} = rem(u, {vectors}) * {spec.vector}", f"u = div(u, {vectors})")
        text(f"m = rem(u, 4) * {wide // 4}", "p = div(u, 4)", f"t{n} = p * {PATCH} + m")
    text(f"p = cuda.blockIdx.x * {spec.pixels // PATCH} + p")
    _patch(text, spec, "p")
    text(f"sy{n} = y * {rows.stride} + sh", f"sx{n} = (c + m) * {columns.stride} + sw - {spec.lead}")
    with text.block("if p >= patches:"):
        text(f"sy{n} = {NOWHERE}")
    text(*(f"m{n}_{word} = 0" for word in range(-(-len(_reads(spec)) // 32))))
    for place, (row, off, _) in enumerate(_reads(spec)):
        mask, inside = f"m{n}_{place // 32}", f"within(sy{n} + {row}, hs) & within(sx{n} + {off}, ws)"
        text(f"{mask} = mark({mask}, {place % 32}, {inside})")
    if spec.first:
        text(f"q{n} = at_x(px, ((i * channels + d{n}) * hs + sy{n}) * ws + sx{n})")
    else:
        text(f"q{n} = at_x(px, ((i * hs + sy{n}) * ws + sx{n}) * channels + d{n})")


def _patch(text: Text, spec: FusedSpec, patch: str) -> None:
    """A patch's image ``i``, row ``y`` and column ``c``."""
    high, wide = spec.patch
    text(f"i = div({patch}, across)", f"c = ({patch} - i * across) * {wide}")
    text("y = i", "i = div(y, down)", f"y = (y - i * down) * {high}")


def _reads(spec: FusedSpec) -> list[tuple[int, int, int]]:
    """Row, column and width of every read of a part."""
    return [(row, *piece) for row in spec.axes[1].terms(spec.part[0]) for piece in pieces(spec)]


def _fetch(text: Text, spec: FusedSpec, n: int) -> None:
    """Ask for what the part's sums read in the slice at ``k0``; what lies outside is marked so, once for all slices."""
    reads, before, count = _reads(spec), 0, spec.vector if not spec.first else 1
    text(f"live = within(k0 + d{n}, channels)", f"row = q{n}")
    text(*(f"e{word} = m{n}_{word} if live else 0" for word in range(-(-len(reads) // 32))))
    for place, (down, off, together) in enumerate(reads):
        if down != before:
            text(f"row = step_x(row, {down - before} * wide)")
            before = down
        width = together * count
        held = ", ".join(_registers(spec, n, place, width))
        where = f"row, {off}" if spec.first else f"step_x(row, {off} * channels), 0"
        inside = f"marked(e{place // 32}, {place % 32})"
        text(f"{held} = hold{'' if width == 1 else width}_x({where}, {inside})")
    text(f"q{n} = step_x(q{n}, ahead)")


def _registers(spec: FusedSpec, n: int, place: int, width: int) -> list[str]:
    """What a read is held in."""
    return [scalar("r", n, place, word) for word in range(registers(spec.storage, width))]


def _sources(text: Text, spec: FusedSpec, n: int) -> None:
    """What was asked for, as numbers: ``x`` row, column, lane."""
    for place, (row, off, together) in enumerate(_reads(spec)):
        names = [_source(row, off + j, k) for j, k in product(range(together), range(spec.lanes))]
        width = "" if len(names) == 1 else str(len(names))
        text(f"{', '.join(names)} = held{width}_x({', '.join(_registers(spec, n, place, len(names)))})")


def _source(row: int, column: int, k: int) -> str:
    return scalar("x", row, column, k)


def _form(text: Text, spec: FusedSpec, places: _Places, n: int) -> None:
    """The part's depthwise values, summed in the order of `gather`, into shared memory."""
    (high, wide), (_, rows, columns), tile = spec.part, spec.axes, spec.tile
    lanes, across = spec.lanes, columns.terms(wide)
    _sources(text, spec, n)
    if spec.first:
        text(f"place = here + {places.taps} + d{n} * {places.each}")
        names = [f"w{tap}_0" for tap in range(places.each)]
        for group in range(0, places.each, 4):
            text(f"{', '.join(names[group : group + 4])} = get4(kept, place + {group})")
    else:
        text(f"place = here + {places.taps} + d{n}")
        for tap in range(spec.taps + spec.biases[0]):
            names, place = [f"w{tap}_{k}" for k in range(lanes)], f"place + {tap * tile.depth}"
            if lanes == 4:
                text(f"{', '.join(names)} = get4(kept, {place})")
            else:
                text(*(f"{name} = get(kept, {place} + {k})" for k, name in enumerate(names)))
    sums = {(v, u, k): scalar("a", v, u, k) for v, u, k in product(range(high), range(wide), range(lanes))}
    text(*(f"{name} = zero" for name in sums.values()))
    for row, pairs in rows.terms(high).items():
        for (v, r), u, k in product(pairs, range(wide), range(lanes)):
            joined = [(off + spec.lead, s) for off, found in across.items() for t, s in found if t == u]
            weights = [f"w{r * columns.kernel + s}_{k}" for _, s in joined]
            gather.add(text, sums[v, u, k], weights, [_source(row, off, k) for off, _ in joined])
    gather.checked(text, list(sums.values()))
    stride, target = (tile.columns if spec.first else tile.rows) + PAD, f"here + {places.values} + t{n}"
    with text.block("if finite(check):"):
        for (_, _, k), name in sums.items():
            _middle(text, spec, name, f"w{spec.taps}_{k}")
        text(f"values = {target} + d{n} * {stride}")
        if spec.first:
            ordered = list(sums.values())
            for strip in range(2):
                text(f"put4(kept, values + {STRIP * strip}, {', '.join(ordered[STRIP * strip :][:STRIP])})")
        else:
            for (v, u, k), name in sums.items():
                text(f"put(kept, values + {k * stride + v * STRIP + u}, {name})")
    with text.block("else:"):
        _form_again(text, spec, n, target, stride)


def _form_again(text: Text, spec: FusedSpec, n: int, target: str, stride: int) -> None:
    """The part's values, each formed tap by tap from the sources that exist."""
    (high, wide), (_, rows, columns) = spec.part, spec.axes
    pixel, plane = ("1", "hs * ws") if spec.first else ("channels", "1")
    text(f"y = div(sy{n} - sh, {rows.stride})", f"c = div(sx{n} + {spec.lead} - sw, {columns.stride})")
    text(f"x = step_x(q{n}, -((sy{n} * ws + sx{n}) * {pixel} + ahead))")
    with (
        text.block(f"for v in range({high}):"),
        text.block(f"for u in range({wide}):"),
        text.block(f"for k in range({spec.lanes}):"),
        text.block(f"if k0 + d{n} + k < channels:"),
    ):
        text(f"w = at_w(pw, (k0 + d{n} + k) * {spec.taps})")
        text(f"s = again(step_x(x, k * {plane}), w, 0, y + v, c + u, 1, hs, ws, 0, -sh, -sw, {pixel}, {plane})")
        bias = f"read_d(at_d(pd, k0 + d{n} + k), 0)"
        _middle(text, spec, "s", bias)
        text(f"put(kept, {target} + (d{n} + k) * {stride} + v * {STRIP} + u, s)")


def _middle(text: Text, spec: FusedSpec, name: str, bias: str) -> None:
    finish(text, name, bias if spec.biases[0] else "", "middle" if spec.activations[0] else "")


def _store(text: Text, spec: FusedSpec) -> None:
    """The tile's results that exist, strip by strip."""
    tile, first = spec.tile, spec.first
    pixels, mine, patch = (tile.columns, "tj", tile.wide) if first else (tile.rows, "ti", tile.high)
    results, other = (range(tile.high), "ti") if first else (range(tile.wide), "tj")
    for j in results if spec.biases[1] else ():
        text(f"j = {_place(tile.rows if first else tile.columns, j)} + {other}")
        text(f"v{j} = load_v(at_v(pv, j), 0, j < results)")
    for group in range(patch // STRIP):
        text(f"p = {_place(pixels, group * STRIP)} + {mine}", f"strip = rem(div(p, {STRIP}), 2)")
        text(f"p = cuda.blockIdx.x * {spec.pixels // PATCH} + div(p, {PATCH})")
        _patch(text, spec, "p")
        text("y = y + strip" if spec.patch[0] == 2 else f"c = c + strip * {STRIP}")
        with text.block("if p < patches and y < ht:"):
            (_store_first if first else _store_last)(text, spec, group)


def _place(extent: int, place: int) -> int:
    """The row or column of a thread's patch, in the tile and less its first."""
    return place // 4 * (extent // 2) + place % 4


def _store_first(text: Text, spec: FusedSpec, group: int) -> None:
    """A strip of every result that the thread has."""
    extent, before = spec.tile.rows, 0
    text("plane = ht * wt", "o = at_o(po, ((i * results + ti) * ht + y) * wt + c)")
    for i in range(spec.tile.high):
        row = _place(extent, i)
        if row:
            text(f"o = step_o(o, {row - before} * plane)")
            before = row
        with text.block(f"if ti + {row} < results:"):
            for j in range(0, STRIP, spec.written):
                with text.block(f"if c + {j} < wt:"):
                    names = {f"s{i}_{group * STRIP + j + each}": f"v{i}" for each in range(spec.written)}
                    _write(text, spec, names, f"o, {j}")


def _store_last(text: Text, spec: FusedSpec, group: int) -> None:
    """The results that the thread has of every pixel of a strip."""
    tile = spec.tile
    text("o = at_o(po, ((i * ht + y) * wt + c) * results + tj)")
    for i in range(STRIP):
        with text.block(f"if c + {i} < wt:"):
            for j in range(0, tile.wide, spec.written):
                column = _place(tile.columns, j)
                with text.block(f"if tj + {column} < results:"):
                    each = range(j, j + spec.written)
                    names = {f"s{group * STRIP + i}_{place}": f"v{place}" for place in each}
                    _write(text, spec, names, f"o, {column}")
        text("o = step_o(o, results)")


def _write(text: Text, spec: FusedSpec, names: dict[str, str], place: str) -> None:
    """Neighbouring sums, each with its bias, activated."""
    for name, bias in names.items():
        finish(text, name, bias if spec.biases[1] else "", "act" if spec.activations[1] else "")
    text(f"store{'' if spec.written == 1 else spec.written}_o({place}, {', '.join(names)})")

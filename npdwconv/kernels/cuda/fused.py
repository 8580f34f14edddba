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
from npdwconv.kernels.cuda.product import PAD, Load, begin, factor, finish, multiply
from npdwconv.kernels.cuda.provider import Source
from npdwconv.kernels.cuda.source import Text
from npdwconv.kernels.cuda.words import real_of, vocabulary

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
    text, tile = Text("separable", ARGUMENTS), spec.tile
    places = _Places(spec)
    text(
        "thread = cuda.threadIdx.x",
        f"down = div(ht + {spec.patch[0] - 1}, {spec.patch[0]})",
        f"across = div(wt + {spec.patch[1] - 1}, {spec.patch[1]})",
        f"ti = div(thread, {tile.columns // tile.wide}) * 4",
        f"tj = rem(thread, {tile.columns // tile.wide}) * 4",
        f"kept = cuda.shared.array({2 * places.half}, real)",
        *("a = at_a(pa, 0)", "last = channels", "k0 = 0", "k1 = 0", "here = 0", "there = 0"),
    )
    begin(text, tile)
    extent = tile.rows if spec.first else tile.columns
    weights = factor("a", ("", "results", "channels"), True, extent, tile, f"here + {places.weights}")
    taps = _taps(spec, places)
    text(*(line for load in (*weights, *taps) for line in load.places))
    for number in range(spec.units):
        _unit(text, spec, number)
    text(*(line for load in taps for line in (*load.fetch, *load.keep)), "cuda.syncthreads()")
    with text.block(f"while k0 < channels + {tile.depth}:"):
        text(f"there = {places.half} - here", f"k1 = k0 + {tile.depth}")
        for number in range(spec.units):
            _fetch(text, spec, number)
        text(*(line for load in (*weights, *taps) for line in load.fetch))
        with text.block("if k0 > 0:"):
            multiply(text, tile, "there", f"there + {places.second}")
        with text.block("if k0 < channels:"):
            for number in range(spec.units):
                _form(text, spec, places, number)
            text(*(line for load in (*weights, *taps) for line in load.keep))
        text("cuda.syncthreads()", "here = there", "k0 = k1")
    _store(text, spec)
    return Source("separable", ARGUMENTS, text.text, _words(spec))


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


def _taps(spec: FusedSpec, places: _Places) -> list[Load]:
    """The taps and the bias of slice ``k1``'s channels: by channel, channels_first, or by tap."""
    (depth, threads), found = (spec.tile.depth, spec.tile.threads), []
    for number in range(-(-depth * spec.taps // threads)):
        index, value, place = f"thread + {number * threads}", f"tv{number}", f"tp{number}"
        channel, tap = f"div({index}, {spec.taps})", f"rem({index}, {spec.taps})"
        where = f"{channel} * {places.each} + {tap}" if spec.first else f"{tap} * {depth} + {channel}"
        inside = f"({index} < {depth * spec.taps}) & (k1 * {spec.taps} + {index} < channels * {spec.taps})"
        keep = (f"put(kept, there + {place}, {value})",)
        if depth * spec.taps < (number + 1) * threads:
            keep = (f"if {index} < {depth * spec.taps}:", f"    {keep[0]}")
        found.append(
            Load(
                (f"{place} = {places.taps} + {where}",),
                (f"{value} = load_w(at_w(pw, k1 * {spec.taps} + {index}), 0, {inside})",),
                keep,
            )
        )
    if spec.biases[0]:
        where = f"thread * {places.each} + {spec.taps}" if spec.first else f"{spec.taps * depth} + thread"
        found.append(
            Load(
                (),
                (f"dv = load_d(at_d(pd, k1 + thread), 0, (thread < {depth}) & (k1 + thread < channels))",),
                (f"if thread < {depth}:", f"    put(kept, there + {places.taps} + {where}, dv)"),
            )
        )
    return found


def _unit(text: Text, spec: FusedSpec, number: int) -> None:
    """A part of a patch in some channels of a slice, that the thread forms for every slice: where its sources lie."""
    (high, wide), (_, rows, columns), n = spec.patch, spec.axes, number
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
    if spec.first:
        text(f"q{n} = at_x(px, ((i * channels + d{n}) * hs + sy{n}) * ws + sx{n})")
    else:
        text(f"q{n} = at_x(px, ((i * hs + sy{n}) * ws + sx{n}) * channels + d{n})")


def _patch(text: Text, spec: FusedSpec, patch: str) -> None:
    """A patch's image ``i``, row ``y`` and column ``c``."""
    high, wide = spec.patch
    text(f"i = div({patch}, across)", f"c = ({patch} - i * across) * {wide}")
    text("y = i", "i = div(y, down)", f"y = (y - i * down) * {high}")


def _held(n: int, row: int, column: int, k: int) -> str:
    return scalar("x", n, row, column, k)


def _fetch(text: Text, spec: FusedSpec, n: int) -> None:
    """Ask for what the part's sums read in the slice at ``k0``."""
    _, rows, columns = spec.axes
    pixel = "" if spec.first else " * channels"
    text(f"live = k0 + d{n} < channels")
    read = pieces(spec)
    text(*(f"{scalar('c', off)} = within(sx{n} + {off}, ws) & live" for off, _ in read))
    for row in rows.terms(spec.part[0]):
        text(f"inside = within(sy{n} + {row}, hs)", f"row = step_x(q{n}, {row} * ws{pixel})")
        for off, together in read:
            names = [_held(n, row, off + j, k) for j, k in product(range(together), range(spec.lanes))]
            width = "" if len(names) == 1 else str(len(names))
            place = f"row, {off}" if spec.first else f"step_x(row, {off}{pixel}), 0"
            text(f"{', '.join(names)} = load{width}_x({place}, inside & {scalar('c', off)})")
    text(f"q{n} = step_x(q{n}, {spec.tile.depth}{' * hs * ws' if spec.first else ''})")


def _form(text: Text, spec: FusedSpec, places: _Places, n: int) -> None:
    """The part's depthwise values, summed in the order of `gather`, into shared memory."""
    (high, wide), (_, rows, columns), tile = spec.part, spec.axes, spec.tile
    lanes, across = spec.lanes, columns.terms(wide)
    if spec.first:
        text(f"taps = here + {places.taps} + d{n} * {places.each}")
        names = [f"w{tap}_0" for tap in range(places.each)]
        for group in range(0, places.each, 4):
            text(f"{', '.join(names[group : group + 4])} = get4(kept, taps + {group})")
    else:
        text(f"taps = here + {places.taps} + d{n}")
        for tap in range(spec.taps + spec.biases[0]):
            names, place = [f"w{tap}_{k}" for k in range(lanes)], f"taps + {tap * tile.depth}"
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
            gather.add(text, sums[v, u, k], weights, [_held(n, row, off, k) for off, _ in joined])
    gather.checked(text, list(sums.values()))
    stride, target = (tile.columns if spec.first else tile.rows) + PAD, f"here + {places.values} + t{n}"
    with text.block("if finite(check):"):
        for (_, _, k), name in sums.items():
            _middle(text, spec, name, f"w{spec.taps}_{k}")
        if spec.first:
            text(f"values = {target} + d{n} * {stride}")
            ordered = list(sums.values())
            for strip in range(2):
                text(f"put4(kept, values + {STRIP * strip}, {', '.join(ordered[STRIP * strip :][:STRIP])})")
        else:
            for (v, u, k), name in sums.items():
                text(f"put(kept, {target} + (d{n} + {k}) * {stride} + {v * STRIP + u}, {name})")
    with text.block("else:"):
        _form_again(text, spec, n, target, stride)


def _form_again(text: Text, spec: FusedSpec, n: int, target: str, stride: int) -> None:
    """The part's values, each formed tap by tap from the sources that exist."""
    (high, wide), (_, rows, columns) = spec.part, spec.axes
    pixel, plane = ("1", "hs * ws") if spec.first else ("channels", "1")
    text(f"y = div(sy{n} - sh, {rows.stride})", f"c = div(sx{n} + {spec.lead} - sw, {columns.stride})")
    text(f"x = step_x(q{n}, -((sy{n} * ws + sx{n}) * {pixel} + {spec.tile.depth} * {plane}))")
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
    tile, act = spec.tile, "act" if spec.activations[1] else ""
    extent, mine, patch = (tile.columns, "tj", tile.wide) if spec.first else (tile.rows, "ti", tile.high)
    if spec.biases[1] and not spec.first:
        for j in range(tile.wide):
            text(f"column = {_column(tile.columns, j, 'tj')}")
            text(f"v{j} = load_v(at_v(pv, column), 0, column < results)")
    for group in range(patch // STRIP):
        text(f"p = {group * extent // 2} + {mine}", f"strip = rem(div(p, {STRIP}), 2)")
        text(f"p = cuda.blockIdx.x * {spec.pixels // PATCH} + div(p, {PATCH})")
        _patch(text, spec, "p")
        text("y = y + strip" if spec.patch[0] == 2 else f"c = c + strip * {STRIP}")
        with text.block("if p < patches and y < ht:"):
            (_store_first if spec.first else _store_last)(text, spec, group, act)


def _column(extent: int, place: int, mine: str) -> str:
    """The row or column of a thread's patch in the tile."""
    return f"{place // 4 * (extent // 2)} + {mine} + {place % 4}"


def _store_first(text: Text, spec: FusedSpec, group: int, act: str) -> None:
    """A strip of every result that the thread has."""
    tile = spec.tile
    for i in range(tile.high):
        text(f"row = {_column(tile.rows, i, 'ti')}")
        with text.block("if row < results:"):
            text("o = at_o(po, ((i * results + row) * ht + y) * wt + c)")
            if spec.biases[1]:
                text("bias = read_v(at_v(pv, row), 0)")
            for j in range(0, STRIP, spec.written):
                with text.block(f"if c + {j} < wt:"):
                    names = [f"s{i}_{group * STRIP + j + each}" for each in range(spec.written)]
                    for name in names:
                        finish(text, name, "bias" if spec.biases[1] else "", act)
                    _write(text, spec, names, f"o, {j}")


def _store_last(text: Text, spec: FusedSpec, group: int, act: str) -> None:
    """The results that the thread has of every pixel of a strip."""
    tile = spec.tile
    for i in range(STRIP):
        with text.block(f"if c + {i} < wt:"):
            text(f"o = at_o(po, ((i * ht + y) * wt + c + {i}) * results)")
            for j in range(0, tile.wide, spec.written):
                text(f"column = {_column(tile.columns, j, 'tj')}")
                with text.block("if column < results:"):
                    each = range(j, j + spec.written)
                    for place in each:
                        name = f"s{group * STRIP + i}_{place}"
                        finish(text, name, f"v{place}" if spec.biases[1] else "", act)
                    names = [f"s{group * STRIP + i}_{place}" for place in each]
                    _write(text, spec, names, "step_o(o, column), 0")


def _write(text: Text, spec: FusedSpec, names: list[str], place: str) -> None:
    width = "" if spec.written == 1 else str(spec.written)
    text(f"store{width}_o({place}, {', '.join(names)})")

"""Kernels that sum a window: forward, adjoint in the input, transposed convolution, and the product with a derivative.

Each is one relation between targets and sources on every axis (`relation`), so one text serves all: a thread owns a
tile of targets whose sums stay in scalars, reads each source of the tile once, and adds it wherever it belongs.

* channels_first: a thread owns a strip of rows in a few columns of one plane, and reads rows in whole vectors;
  neighbours in a warp own neighbouring columns, and what they share comes from the cache.
* channels_last: a thread owns a patch of pixels in a vector of channels, then the next patch; neighbours in a warp own
  neighbouring channels. The kernels of the block's channels are staged in shared memory, once.

A source outside the image is not read and counts as zero, and zero times a weight is zero unless the weight is not
finite. So a sum that is not finite is formed again, tap by tap, without the taps outside (`again`).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import cache
from itertools import product
from typing import Any

from npdwconv.kernels.cuda import activate, provider
from npdwconv.kernels.cuda.gather_spec import LANES, MOST_SHARED, GatherSpec
from npdwconv.kernels.cuda.provider import Source
from npdwconv.kernels.cuda.relation import AxisSpec
from npdwconv.kernels.cuda.source import Text
from npdwconv.kernels.cuda.words import MOST_FACTORS, real_of, vocabulary

ARGUMENTS = (
    *("px", "pw", "pb", "pe", "po"),
    *("begin", "items", "channels", "ds", "hs", "ws", "dt", "ht", "wt", "sh", "sw", "ld", "lh", "lw"),
)


@cache
def kernel(spec: GatherSpec) -> provider.Kernel:
    """The kernel of a specification, compiled when it is first launched."""
    return provider.Kernel(source(spec), repr(spec))


@cache
def source(spec: GatherSpec) -> Source:
    """The text of a specification's kernel, and what it refers to."""
    text = Text("gather", ARGUMENTS)
    (_first if spec.layout == "channels_first" else _last)(text, spec)
    return Source("gather", ARGUMENTS, text.text, _words(spec))


def _words(spec: GatherSpec) -> dict[str, Any]:
    storages = {"x": spec.source, "w": spec.weight, "o": spec.target, "b": spec.weight}
    if spec.other:
        storages["e"] = spec.other
    real: Any = real_of(spec.target)
    words = vocabulary(**storages)
    words.update(zero=real(0), real=real, again=again(spec.axes, spec.source, spec.weight, _folded(spec)))
    if spec.activation:
        words["act"] = activate.function(spec.activation, real, bool(spec.other))
    return words


def _folded(spec: GatherSpec) -> int:
    """How many source channels a target sums over."""
    return spec.multiplier if spec.folds else 1


@cache
def again(axes: tuple[AxisSpec, AxisSpec, AxisSpec], source: str, weight: str, folded: int) -> Any:
    """One sum, tap by tap, over the taps that read a real source; every loop runs on the device.

    ``x`` is the address of the first source of the image and channel, ``w`` that of the kernel, ``z``, ``y`` and ``c``
    the target; ``pixel`` is the distance in elements from a source pixel to the next, ``plane`` to the next channel.
    """
    arguments = ("x", "w", "z", "y", "c", "ds", "hs", "ws", "ld", "lh", "lw", "pixel", "plane")
    text = Text("again", arguments)
    depth, rows, columns = axes
    text("sum = zero")
    with (
        text.block(f"for m in range({folded}):"),
        _each_tap(text, depth, "z", "ds", "ld"),
        _each_tap(text, rows, "y", "hs", "lh"),
        _each_tap(text, columns, "c", "ws", "lw"),
    ):
        tap = f"((m * {depth.kernel} + tz) * {rows.kernel} + ty) * {columns.kernel} + tc"
        text("v = read_x(step_x(x, ((iz * hs + iy) * ws + ic) * pixel + m * plane), 0)")
        text(f"sum = fma(read_w(step_w(w, {tap}), 0), v, sum)")
    text("return sum")
    words = vocabulary(x=source, w=weight)
    words["zero"] = real_of(source)(0)
    return provider.device_function(Source("again", arguments, text.text, words))


@contextmanager
def _each_tap(text: Text, axis: AxisSpec, name: str, extent: str, low: str) -> Iterator[None]:
    """For every tap ``t`` of an axis that reads a real source ``i`` for the target."""
    with text.block(f"for t{name} in range({axis.kernel}):"):
        inside = f"i{name} >= 0 and i{name} < {extent}"
        if axis.adjoint:
            text(f"f{name} = {name} + {low} - t{name} * {axis.dilation}", f"i{name} = f{name} // {axis.stride}")
            inside += f" and i{name} * {axis.stride} == f{name}"
        else:
            text(f"i{name} = {name} * {axis.stride} + t{name} * {axis.dilation} - {low}")
        with text.block(f"if {inside}:"):
            yield


def scalar(prefix: str, *numbers: int) -> str:
    """A scalar's name: negative numbers are written with an underscore."""
    return prefix + "_".join(str(number).replace("-", "n") for number in numbers)


def _first(text: Text, spec: GatherSpec) -> None:
    """A patch of one plane: a strip of rows in a few columns."""
    high, wide = spec.tile
    text("item = cuda.blockIdx.x * cuda.blockDim.x + cuda.threadIdx.x")
    text(f"down = div(ht + {high - 1}, {high})", f"across = div(wt + {wide - 1}, {wide})")
    with text.block("if item < items:"):
        text("k = div(item, across)", f"c = (item - k * across) * {wide}")
        text("plane = div(k, down)", f"y = (k - plane * down) * {high}", "plane = plane + begin")
        deep = spec.axes[0] != AxisSpec()
        text(*(("k = div(plane, dt)", "z = plane - k * dt") if deep else ("k = plane", "z = 0")))
        text("channel = rem(k, channels)", "area = ds * hs * ws")
        if spec.multiplier == 1:
            text("x = at_x(px, k * area)")
        else:
            text(f"x = at_x(px, {f'k * {spec.multiplier}' if spec.folds else f'div(k, {spec.multiplier})'} * area)")
        text(f"w = at_w(pw, channel * {_folded(spec) * _taps(spec)})")
        text("o = at_o(po, (plane * ht + y) * wt + c)")
        if spec.other:
            text("e = at_e(pe, (plane * ht + y) * wt + c)")
        if spec.bias:
            text("b0 = read_b(at_b(pb, channel), 0)")
        _sum(text, spec, "area", "1")
        _store(text, spec)


def _last(text: Text, spec: GatherSpec) -> None:
    """Patches of pixels in one channel or a vector of them, one after the other."""
    (high, wide), vector, taps = spec.tile, spec.vector, _taps(spec)
    text(
        f"channel = (cuda.blockIdx.y * cuda.blockDim.x + cuda.threadIdx.x) * {vector}",
        "item = cuda.blockIdx.x * cuda.blockDim.y + cuda.threadIdx.y",
        f"down = div(ht + {high - 1}, {high})",
        f"across = div(wt + {wide - 1}, {wide})",
    )
    if staged(spec):
        text(
            f"kept = cuda.shared.array({LANES * vector * taps}, real)",
            f"head = cuda.blockIdx.y * cuda.blockDim.x * {vector}",
            f"count = min(cuda.blockDim.x * {vector}, channels - head) * {taps}",
            "i = cuda.threadIdx.y * cuda.blockDim.x + cuda.threadIdx.x",
        )
        with text.block("while i < count:"):
            text(f"k = div(i, {taps})", f"t = i - k * {taps}")
            text(f"put(kept, t * {LANES * vector} + k, read_w(at_w(pw, head * {taps} + i), 0))")
            text("i += cuda.blockDim.x * cuda.blockDim.y")
        text("cuda.syncthreads()", f"mine = cuda.threadIdx.x * {vector}")
    with text.block("if channel >= channels:"):
        text("item = items")
    many = f"channels * {spec.multiplier}" if spec.folds else f"div(channels, {spec.multiplier})"
    read = f"channel * {spec.multiplier}" if spec.folds else f"div(channel, {spec.multiplier})"
    text(f"pixel = {many if spec.multiplier > 1 else 'channels'}")
    text(f"first = {read if spec.multiplier > 1 else 'channel'}")
    if spec.bias:
        text("b = at_b(pb, min(channel, channels - 1))" if vector == 1 else "b = at_b(pb, channel)")
    with text.block("while item < items:"):
        text("k = div(item, across)", f"c = (item - k * across) * {wide}")
        text("n = div(k, down)", f"y = (k - n * down) * {high}")
        deep = spec.axes[0] != AxisSpec()
        text(*(("z = n", "n = div(n, dt)", "z = z - n * dt") if deep else ("z = 0",)))
        text("n = n + begin")
        text("x = at_x(px, n * ds * hs * ws * pixel + first)")
        text(f"w = at_w(pw, channel * {_folded(spec) * taps})")
        place = "(((n * dt + z) * ht + y) * wt + c) * channels + channel"
        text(f"o = at_o(po, {place})")
        if spec.other:
            text(f"e = at_e(pe, {place})")
        _sum(text, spec, "1", "pixel")
        _store(text, spec)
        text("item += cuda.gridDim.x * cuda.blockDim.y")


def _taps(spec: GatherSpec) -> int:
    return spec.axes[0].kernel * spec.axes[1].kernel * spec.axes[2].kernel


def staged(spec: GatherSpec) -> bool:
    """Whether a block's kernels go through shared memory."""
    size = 8 if spec.source == "float64" else 4
    return (
        spec.layout == "channels_last"
        and spec.written_out
        and _folded(spec) == 1
        and LANES * spec.vector * _taps(spec) * size <= MOST_SHARED
    )


def _sum(text: Text, spec: GatherSpec, plane: str, pixel: str) -> None:
    """The tile's sums, in scalars: every source is read once, and added wherever it belongs."""
    if not spec.written_out:
        return
    (high, wide), (depth, rows, columns) = spec.tile, spec.axes
    lanes = spec.lanes
    text(*(f"{scalar('a', v, u, k)} = zero" for v, u, k in product(range(high), range(wide), range(lanes))))
    down, across = rows.terms(high), columns.terms(wide)
    text(f"sy = {origin('y', rows, high)} + sh", f"sx = {origin('c', columns, wide)} + sw")
    groups = sorted({(off + spec.lead) // spec.together for off in across})
    if spec.lead:
        text(f"sx = sx - {spec.lead}")
    text(*(f"{scalar('c', group)} = within(sx + {group * spec.together}, ws)" for group in groups))
    if pixel != "1":
        text(*(f"{scalar('k', group)} = {group} * {pixel}" for group in groups))
    wide_row = "ws" if pixel == "1" else f"ws * {pixel}"
    with ExitStack() as stack:
        weights, sources, deep = "w", "x", depth != AxisSpec()
        if _folded(spec) > 1:
            stack.enter_context(text.block(f"for m in range({_folded(spec)}):"))
            text(f"xm = step_x(x, m * {plane})", f"wm = step_w(w, m * {_taps(spec)})")
            weights, sources = "wm", "xm"
        if deep:
            stack.enter_context(_each_tap(text, depth, "z", "ds", "ld"))
            text(f"wz = step_w({weights}, tz * {rows.kernel * columns.kernel})")
            weights = "wz"
        text(f"row = step_x({sources}, ({'(iz * hs + sy)' if deep else 'sy'} * ws + sx) * {pixel})")
        known: set[tuple[int, int]] = set()
        before = 0
        for off, pairs in down.items():
            if off != before:
                text(f"row = step_x(row, {off - before} * {wide_row})")
                before = off
            text(f"inside = within(sy + {off}, hs)" if off else "inside = within(sy, hs)")
            for group in groups:
                _load(text, spec, group, pixel)
            for v, r in pairs:
                for u in range(wide):
                    joined = [(off_x + spec.lead, s) for off_x, found in across.items() for t, s in found if t == u]
                    for _, s in joined:
                        if (r, s) not in known:
                            known.add((r, s))
                            _weight(text, spec, r, s, weights, deep)
                    for k in range(lanes):
                        weight = [scalar("w", r, s, k) for _, s in joined]
                        add(text, scalar("a", v, u, k), weight, [scalar("x", place, k) for place, _ in joined])


def add(text: Text, total: str, weights: list[str], sources: list[str]) -> None:
    """total + Σ weight·source, in order."""
    for begin in range(0, len(weights), MOST_FACTORS):
        some = slice(begin, begin + MOST_FACTORS)
        text(f"{total} = dot{len(weights[some])}({', '.join([total, *weights[some], *sources[some]])})")


def checked(text: Text, sums: list[str]) -> None:
    """``check``: zero where every sum is finite, for zero times a number is zero unless that is not finite."""
    text("check = zero")
    add(text, "check", sums, ["zero"] * len(sums))


def origin(name: str, axis: AxisSpec, tile: int) -> str:
    """The source under a tile's first target, less the shift."""
    step = axis.step(tile)
    if step == tile:
        return name
    return f"{name} * {axis.stride}" if not axis.adjoint else f"div({name}, {axis.stride})"


def _weight(text: Text, spec: GatherSpec, r: int, s: int, weights: str, deep: bool) -> None:
    """A tap of every channel that the thread owns."""
    _, rows, columns = spec.axes
    names, index = [scalar("w", r, s, k) for k in range(spec.lanes)], r * columns.kernel + s
    if not staged(spec):
        text(*(f"{name} = read_w({weights}, {k * _taps(spec) + index})" for k, name in enumerate(names)))
        return
    tap = f"(tz * {rows.kernel * columns.kernel} + {index})" if deep else f"{index}"
    place = f"{tap} * {LANES * spec.vector} + mine"
    if spec.vector == 4:
        text(f"{', '.join(names)} = get4(kept, {place})")
    else:
        text(*(f"{name} = get(kept, {place} + {k})" for k, name in enumerate(names)))


def _load(text: Text, spec: GatherSpec, group: int, pixel: str) -> None:
    """The sources of one pixel in a vector of channels, or of one channel in a vector of pixels, guarded."""
    names = [
        scalar("x", group * spec.together + place, k) for place, k in product(range(spec.together), range(spec.lanes))
    ]
    width = "" if spec.vector == 1 else str(spec.vector)
    guard = f"inside & {scalar('c', group)}"
    if pixel == "1":
        text(f"{', '.join(names)} = load{width}_x(row, {group * spec.together}, {guard})")
    else:
        text(f"{', '.join(names)} = load{width}_x(step_x(row, {scalar('k', group)}), 0, {guard})")


def _store(text: Text, spec: GatherSpec) -> None:
    """The tile's targets that exist; where any sum is not finite, every one is formed again."""
    if not spec.written_out:
        _store_again(text, spec)
        return
    (high, wide), step = spec.tile, spec.together
    sums = [scalar("a", v, u, k) for v, u, k in product(range(high), range(wide), range(spec.lanes))]
    checked(text, sums)
    with text.block("if finite(check):"):
        for v in range(high):
            with text.block(f"if y + {v} < ht:"):
                for u in range(0, wide, step):
                    with text.block(f"if c + {u} < wt:"):
                        names = [scalar("a", v, u + n, k) for n, k in product(range(step), range(spec.lanes))]
                        for k, name in enumerate(names):
                            _finish(text, spec, name, str(k if step == 1 else 0))
                        _write(text, spec, names, _place(spec, str(v), str(u), "0"))
    with text.block("else:"):
        _store_again(text, spec)


def _place(spec: GatherSpec, v: str, u: str, k: str) -> str:
    """Where a target of the tile lies, in elements from the first."""
    pixel = f"({v} * wt + {u})"
    return pixel if spec.layout == "channels_first" else f"{pixel} * channels + {k}"


def _store_again(text: Text, spec: GatherSpec) -> None:
    """The tile's targets, each formed tap by tap."""
    (high, wide), pixel, plane = spec.tile, "1", "area"
    if spec.layout == "channels_last":
        pixel, plane = "pixel", "1"
    with (
        text.block(f"for v in range(min({high}, ht - y)):"),
        text.block(f"for u in range(min({wide}, wt - c)):"),
        text.block(f"for k in range({spec.lanes}):"),
    ):
        kernel = f"step_w(w, k * {_taps(spec)})"
        text(f"s = again(step_x(x, k), {kernel}, z, y + v, c + u, ds, hs, ws, ld, lh, lw, {pixel}, {plane})")
        _finish(text, spec, "s", "k")
        _write(text, spec._replace(vector=1), ["s"], _place(spec, "v", "u", "k"))


def _finish(text: Text, spec: GatherSpec, name: str, k: str) -> None:
    """Bias and activation."""
    if spec.bias:
        text(f"{name} = {name} + {f'peek_b(step_b(b, {k}), 0)' if spec.layout == 'channels_last' else 'b0'}")
    if spec.activation:
        text(f"{name} = act({name})")


def _write(text: Text, spec: GatherSpec, names: list[str], index: str) -> None:
    width = "" if spec.vector == 1 else str(spec.vector)
    if spec.other:
        others = [scalar("e", k) for k in range(len(names))]
        text(f"{', '.join(others)} = peek{width}_e(step_e(e, {index}), 0)")
        text(*(f"{name} = {other} * {name}" for name, other in zip(names, others, strict=True)))
    text(f"store{width}_o(step_o(o, {index}), 0, {', '.join(names)})")

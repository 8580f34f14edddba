"""Sums across threads and blocks, in a fixed order: a tree within a block, and a second pass over the blocks' sums."""

from __future__ import annotations

from functools import cache

from npdwconv.device import DeviceArray
from npdwconv.kernels.cuda import provider
from npdwconv.kernels.cuda.entry import place_of
from npdwconv.kernels.cuda.provider import Source
from npdwconv.kernels.cuda.source import Text
from npdwconv.kernels.cuda.words import real_of, vocabulary
from npdwconv.precision import storage

ABREAST, PARTS = (4, 2) if provider.simulated() else (32, 16)  # results of a block, and threads that share each
UNROLLED = 8  # blocks' sums that a thread has under way at once
ARGUMENTS = ("pp", "po", "count", "splits")


def tree(text: Text, names: list[str], threads: int, lanes: int) -> None:
    """Add ``names`` over a block's threads, by halves, down to the first ``lanes``: there `part_of` finds the sums."""
    text(*(f"put(part, {place * threads} + thread, {name})" for place, name in enumerate(names)))
    text("cuda.syncthreads()", f"half = {threads // 2}")
    with text.block(f"while half >= {lanes}:"):
        with text.block("if thread < half:"):
            for place in range(len(names)):
                mine = f"{place * threads} + thread"
                text(f"put(part, {mine}, get(part, {mine}) + get(part, {mine} + half))")
        text("cuda.syncthreads()", "half = half // 2")


def part_of(place: int, threads: int) -> str:
    """Where a lane finds the sum of the name at ``place``."""
    return f"get(part, {place * threads} + thread)"


def second_pass(text: Text) -> None:
    """``sum`` over the blocks' sums of result ``j``, for the thread that has ``part_j`` 0; needs ``pp``, ``splits``."""
    text(
        f"j = cuda.blockIdx.x * {ABREAST} + cuda.threadIdx.x",
        "k = int(cuda.threadIdx.y)",
        "sum = zero",
        "p = at_p(pp, min(j, count - 1))",
    )
    with text.block(f"while k + {(UNROLLED - 1) * PARTS} < splits:"):
        text(*(f"v{n} = peek_p(step_p(p, (k + {n * PARTS}) * count), 0)" for n in range(UNROLLED)))
        text(*(f"sum = sum + v{n}" for n in range(UNROLLED)), f"k += {UNROLLED * PARTS}")
    with text.block("while k < splits:"):
        text("sum = sum + peek_p(step_p(p, k * count), 0)", f"k += {PARTS}")
    text(
        f"part = cuda.shared.array({ABREAST * PARTS}, real)",
        f"thread = cuda.threadIdx.y * {ABREAST} + cuda.threadIdx.x",
    )
    tree(text, ["sum"], ABREAST * PARTS, ABREAST)


def second_grid(count: int) -> tuple[provider.Extents, provider.Extents]:
    """Grid and block of a second pass over ``count`` results."""
    return (-(-count // ABREAST), 1, 1), (ABREAST, PARTS, 1)


@cache
def source(read: str, written: str) -> Source:
    """The second pass alone."""
    text = Text("add_up", ARGUMENTS)
    second_pass(text)
    with text.block(f"if thread < {ABREAST} and j < count:"):
        text("store_o(at_o(po, j), 0, get(part, thread))")
    words = vocabulary(p=read, o=written)
    words.update(zero=real_of(read)(0), real=real_of(read))
    return Source("add_up", ARGUMENTS, text.text, words)


@cache
def _kernel(read: str, written: str) -> provider.Kernel:
    return provider.Kernel(source(read, written), f"sums {read} {written}")


def add_up(partial: DeviceArray, total: DeviceArray) -> None:
    """total = Σ_s partial[s], in a fixed order."""
    count = total.size
    _kernel(storage(partial.dtype), storage(total.dtype))(
        *second_grid(count), total.stream, place_of(partial), place_of(total), count, partial.shape[0]
    )

"""Arrays that end, or begin, where memory ends: reading or writing one byte beyond ends the process.

Run as a program it calls operators on such arrays, and with `np.empty` and its like replaced so that results and what
kernels keep in between lie there too. Before each call it prints what it is about to do.
"""

from __future__ import annotations

import ctypes
import mmap
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from itertools import product
from math import prod
from typing import Any

import numpy as np

PAGE, PROTECTED = mmap.PAGESIZE, 0  # PROT_NONE
_libc = ctypes.CDLL(None, use_errno=True)
_libc.mprotect.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)


def guarded(shape: Any, dtype: Any, *, at_end: bool) -> np.ndarray:
    """An array of zeros flush against a page that nobody may touch, behind it or before it."""
    kind, shape = np.dtype(dtype), (shape,) if isinstance(shape, (int, np.integer)) else tuple(shape)
    size = prod(shape) * kind.itemsize
    inner = -(-size // PAGE) * PAGE
    memory = mmap.mmap(-1, inner + 2 * PAGE)
    start = ctypes.addressof(ctypes.c_char.from_buffer(memory))
    for page in (start, start + PAGE + inner):
        if _libc.mprotect(page, PAGE, PROTECTED):
            raise OSError(ctypes.get_errno(), "mprotect")
    first = PAGE + (inner - size if at_end else 0)
    return np.frombuffer(memory, np.uint8, size, first).view(kind).reshape(shape)


def like(array: np.ndarray, *, at_end: bool) -> np.ndarray:
    """The same values, guarded and read-only."""
    copy = guarded(array.shape, array.dtype, at_end=at_end)
    copy[...] = array
    copy.flags.writeable = False
    return copy


@contextmanager
def guarded_numpy(*, at_end: bool) -> Iterator[None]:
    """`np.empty`, `np.zeros` and their like give guarded arrays; what is empty is NaN."""
    from npdwconv import memory

    def filled(value: Any) -> Callable[..., np.ndarray]:
        def make(shape: Any, dtype: Any = float, *rest: Any, **options: Any) -> np.ndarray:
            array = guarded(shape, dtype, at_end=at_end)
            array[...] = value if array.dtype.kind in "fV" else 0
            return array

        return make

    def filled_like(value: Any) -> Callable[..., np.ndarray]:
        return lambda array, dtype=None, **options: filled(value)(array.shape, dtype or array.dtype)

    replaced = {
        "empty": filled(np.nan),
        "zeros": filled(0),
        "empty_like": filled_like(np.nan),
        "zeros_like": filled_like(0),
    }
    kept = {name: getattr(np, name) for name in replaced}
    vars(np).update(replaced)
    memory.KEPT = 0  # each result is guarded anew
    try:
        yield
    finally:
        vars(np).update(kept)


def call(s: Any, kind: str, layout: str, **activations: str) -> None:
    """Forward and backward on arrays guarded at either end; the results must be the reference's too."""
    operands = s.operands(kind, layout)
    gradients = s.gradients(s.forward(operands, "reference", layout, **activations), kind)
    wanted = s.both(operands, gradients, "reference", layout, **activations)
    for at_end in (True, False):
        print(s.name, kind, layout, activations, "against the page", "behind" if at_end else "before", flush=True)
        held = [{name: like(array, at_end=at_end) for name, array in group.items()} for group in (operands, gradients)]
        with guarded_numpy(at_end=at_end):
            found = s.both(*held, "numba", layout, **activations)
        if kind == "integers":
            for name, want in wanted.items():
                assert np.array_equal(found[name], want), name


def call_network(layout: str) -> None:
    """A frozen network, whole, on guarded arrays; the result must be the reference's."""
    from kernels.situations import frozen_network

    import npdwconv
    from npdwconv.kernels.cpu import chains

    with npdwconv.use_backend("reference"):
        network, x = frozen_network(layout)
        wanted = network(x)
    for at_end, cached in product((True, False), (chains.CACHED, 2000)):
        print("network", layout, cached, "against the page", "behind" if at_end else "before", flush=True)
        chains.CACHED = cached
        with guarded_numpy(at_end=at_end), npdwconv.use_backend("numba"):
            network, x = frozen_network(layout)
            assert np.array_equal(network(like(x, at_end=at_end)), wanted)


def call_far(*, every: bool = False) -> None:
    """Convolutions and products whose results go past the caches, and whose inputs are fetched, whatever their size.

    In channels_last ``every`` pair of channels and stride, or each of both once.
    """
    from kernels import situations

    from npdwconv.kernels.cpu import caches

    caches.FAR = 0
    channels = situations.LANES, situations.LANES + 3
    for c, stride in product(channels, (1, 2)) if every else zip(channels, (1, 2), strict=True):
        s = situations.depthwise(f"far-c{c}-s{stride}", c, (9, 18), (3, 3), stride=stride, padding=1)
        call(s, "integers", "channels_last")
    for stride in (1, 2):
        s = situations.depthwise(f"far-s{stride}", 2, (33, 32 * stride), (3, 3), stride=stride, padding=1)
        call(s, "integers", "channels_first")
    s = situations.pointwise("far-product", 5, 2 * situations.LANES, (2, 2 * situations.LANES))
    for layout in ("channels_first", "channels_last"):
        call(s, "integers", layout)
    print("done")


def call_sliced() -> None:
    """Products whose tiles pack the next panel."""
    from kernels import sliced

    sliced.settings()
    for name, at_end in product(sliced.CASES, (True, False)):
        print(name, "against the page", "behind" if at_end else "before", flush=True)
        with guarded_numpy(at_end=at_end):
            for found, wanted in sliced.results(name, partial(like, at_end=at_end)):
                assert np.array_equal(found, wanted)
    print("done")


def call_dotted() -> None:
    """Sums of products along contiguous depths."""
    from kernels import dotted

    from npdwconv.kernels.cpu import dots

    dots.CHUNK = 2 * dotted.LANES
    for dtype, at_end in product(("float32", "float16"), (True, False)):
        print(dtype, "against the page", "behind" if at_end else "before", flush=True)
        with guarded_numpy(at_end=at_end):
            for found, wanted in dotted.results(dtype, partial(like, at_end=at_end)):
                assert np.array_equal(found, wanted)
    print("done")


def call_covering() -> None:
    """Kernels that cover rows of the image, in tiles that are the plane and in tiles of a few rows."""
    from kernels import situations

    from npdwconv.kernels.cpu import planes

    lanes, planes.MUCH = situations.LANES, 0  # however little work
    for name, size, kernel in (
        ("covers-plane", (7, lanes // 2 - 1), (13, 2 * lanes - 1)),
        ("covers-rows", (7, lanes + 3), (9, 2 * lanes + 7)),
    ):
        for kind in ("integers", "float16"):
            call(situations.depthwise(name, 2, size, kernel, padding="same"), kind, "channels_first")
    print("done")


def call_along() -> None:
    """Kernels over a single row, a vector of which serves taps a vector apart."""
    from kernels import situations

    lanes = situations.LANES
    for kind, width, kernel, dilation in (
        ("integers", 3 * lanes + 1, 2 * lanes - 1, 1),
        ("float16", lanes - 1, lanes + 1, 1),
        ("integers", 2 * lanes, 5, 3),
    ):
        s = situations.depthwise(f"along-{width}-{kernel}", 2, (width,), (kernel,), padding="same", dilation=dilation)
        call(s, kind, "channels_first")
    print("done")


def call_masked() -> None:
    """Loads and stores under masks that LLVM may move or decide: each in an instruction of its own."""
    from kernels import situations

    for kind in ("integers", "bfloat16"):
        call(situations.BY_NAME["1d-k4-causal"], kind, "channels_first")
    print("done")


def call_in_pairs() -> None:
    """Planes of which two share a vector: gradients of stride 2, and of weights over rows of half a vector."""
    from kernels import situations

    half = situations.LANES // 2
    for kind in ("integers", "float16"):
        for size, stride in (((2 * half - 2, 2 * half - 2), 2), ((5, half - 1), 1)):
            s = situations.depthwise(f"pairs-s{stride}", 4, size, (3, 3), stride=stride, padding=1)
            call(s, kind, "channels_first")
    print("done")


def over(offset: int, *, at_end: bool, write: bool) -> None:
    """Read or write a byte ``offset`` from the end or the beginning of an array."""
    array = guarded(7, np.float32, at_end=at_end)
    place = array.ctypes.data + (array.nbytes if at_end else 0) + offset
    if write:
        ctypes.memset(place, 1, 1)
    else:
        ctypes.string_at(place, 1)


def main(which: str, kinds: str, *, turns: bool = False) -> None:
    """Some situations of these kinds of numbers, in each of their layouts or, in ``turns``, one layout each."""
    from kernels import situations

    for layout in ("channels_first", "channels_last") if "integers" in kinds else ():
        call_network(layout)
    core = (*situations.CORE, situations.BY_NAME["multiplier-3"])
    chosen = {"core": core, "all": (*situations.CORE, *situations.MORE, *situations.SWEPT)}[which]
    for kind in kinds.split(","):
        for turn, s in enumerate(chosen):
            for layout in (situations.in_turn(turn, s),) if turns else s.layouts:
                call(s, kind, layout, **dict.fromkeys(s.activations, "relu6") if kind == "integers" else {})
    print("done")


if __name__ == "__main__":
    main(*sys.argv[1:])

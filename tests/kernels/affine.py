"""A kernel for tests of the engine: out = 2·x + 1, one vector at a time, an item a row of vectors."""

from __future__ import annotations

from functools import cache

import numpy as np
from numba import types
from numba.extending import intrinsic

from npdwconv.kernels import watchers
from npdwconv.kernels.cpu.engine import Kernel, Launch
from npdwconv.kernels.cpu.simd import Vectors
from npdwconv.kernels.watchers import Compiling

LANES = 8
compiled: list[str] = []  # each time that this process compiled it


def _remember(news: Compiling) -> None:
    if news.seconds is not None and news.kernel == affine.name:
        compiled.append(news.kernel)


watchers._watchers.append(_remember)


@intrinsic
def one_vector(typing, task, x, out):
    def generate(context, builder, signature, arguments):
        v = Vectors(builder, "float32", LANES)
        result = v.fma(v.load(arguments[1]), v.constant(task.spec.factor), v.constant(1.0))
        v.store(result, arguments[2])
        return context.get_dummy_value()

    return types.none(task, x, out), generate


def _affine(task, item):
    for i in range(task.vectors):
        place = (item * task.vectors + i) * 4 * LANES
        one_vector(task, task.x + place, task.out + place)


affine = Kernel(_affine)


@cache
def launch(factor: int, items: int, vectors: int, work: int) -> Launch:
    return Launch(affine, ("x", "out"), {"factor": factor}, {"vectors": vectors}, items=items, work=work)


def right(factor: int = 2, items: int = 16, vectors: int = 64, work: int = 10**9) -> bool:
    """Whether a launch, in parallel unless ``work`` is small, gives factor·x + 1."""
    x = np.arange(items * vectors * LANES, dtype=np.float32)
    out = np.zeros_like(x)
    launch(factor, items, vectors, work)(x, out)
    return bool(np.array_equal(out, factor * x + 1))

"""What the machine can do at most: chains of multiply-adds that never wait, and copies. What kernels are held against.

S. Williams, A. Waterman, D. Patterson, "Roofline", Communications of the ACM 52 (2009) 65-76.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import numpy as np
from llvmlite import ir
from numba.core import types
from numba.extending import intrinsic

from npdwconv.kernels.cpu.engine import Kernel, Launch
from npdwconv.kernels.cpu.machine import machine
from npdwconv.kernels.cpu.simd import I32, Vectors, int64
from npdwconv.kernels.cpu.vectors import VectorType

LANES = machine().lanes(4)
UniTuple: Any = types.UniTuple  # untyped in numba
CHAINS = machine().registers // 2  # independent sums: more than latency times ports, and all in registers
ROUNDS = 1 << 16
UNROLLED = 4  # vectors a turn of the copy
LEAST_MOVED = 1 << 22  # bytes a launch copies: small arrays several times over, so that the launch does not count


class Ceiling(NamedTuple):
    """Something to time, and the flops or the bytes (read and written) of one call."""

    run: Callable[[], None]
    amount: int


def multiply_adds(items: int) -> Ceiling:
    """Float32 multiply-adds in registers, as many items as there are threads."""
    fixed = {"chains": CHAINS}
    work = items * ROUNDS * CHAINS * LANES
    launch = Launch(_fma, ("values", "out"), fixed, {"rounds": ROUNDS, "item": 4 * LANES}, items=items, work=work)
    values, out = np.full(2 * LANES, 0.5, np.float32), np.empty((items, LANES), np.float32)
    return Ceiling(partial(launch, values, out), 2 * work)


def copy(size: int, items: int, *, streaming: bool = False) -> Ceiling:
    """A copy of ``size`` bytes read and written together; ``streaming`` writes past the caches."""
    turn = 4 * LANES * UNROLLED
    part = max(1, size // (2 * items * turn)) * turn
    passes = max(1, LEAST_MOVED // (2 * items * part))
    numbers = {"part": part, "passes": passes, "turn": turn}
    source, target = _aligned(items * part), _aligned(items * part)
    work = items * part * passes
    launch = Launch(_copy, ("source", "target"), {"streaming": streaming}, numbers, items=items, work=work)
    return Ceiling(partial(launch, source, target), 2 * work)


def _aligned(size: int) -> Any:
    """An array that begins with a cache line, every page of it written: unwritten ones are one page of zeros."""
    raw = np.full(size + 64, 1, np.uint8)
    return raw[-raw.ctypes.data % 64 :][:size].view(np.float32)


@intrinsic
def _started(typing: Any, task: Any) -> Any:
    result = UniTuple(VectorType("float32", LANES), task.spec.chains)

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return context.make_tuple(builder, result, [Vectors(builder, "float32").zero()] * task.spec.chains)

    return result(task), generate


@intrinsic
def _advanced(typing: Any, task: Any, sums: Any, values: Any) -> Any:
    """One more multiply-add in every chain."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        v, (_, held, address) = Vectors(builder, "float32"), arguments
        a, b = v.load(address), v.load(v.at(address, 4 * v.lanes))
        chains = [v.fma(a, b, builder.extract_value(held, i)) for i in range(task.spec.chains)]
        return context.make_tuple(builder, sums, chains)

    return sums(task, sums, values), generate


@intrinsic
def _summed(typing: Any, task: Any, sums: Any, out: Any) -> Any:
    """Write the sum of the chains, so that none of them is for nothing."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        v, (_, held, address) = Vectors(builder, "float32"), arguments
        total = v.zero()
        for i in range(task.spec.chains):
            total = builder.fadd(total, builder.extract_value(held, i))
        v.store(total, address)
        return context.get_dummy_value()

    return types.none(task, sums, out), generate


@intrinsic
def _moved(typing: Any, task: Any, source: Any, target: Any) -> Any:
    """Copy `UNROLLED` vectors."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        v, (_, read, written) = Vectors(builder, "float32"), arguments
        values = [v.load(v.at(read, 4 * v.lanes * i)) for i in range(UNROLLED)]
        for i, value in enumerate(values):
            place = builder.inttoptr(builder.add(written, int64(4 * v.lanes * i)), v.type.as_pointer())
            stored = builder.store(value, place, align=4 * v.lanes)
            if task.spec.streaming:
                stored.set_metadata("nontemporal", builder.module.add_metadata([ir.Constant(I32, 1)]))
        return context.get_dummy_value()

    return types.none(task, source, target), generate


def _multiply_adds(task: Any, item: Any) -> None:
    sums = _started(task)
    for _ in range(task.rounds):
        sums = _advanced(task, sums, task.values)
    _summed(task, sums, task.out + item * task.item)


def _copied(task: Any, item: Any) -> None:
    first = item * task.part
    for _ in range(task.passes):
        for offset in range(first, first + task.part, task.turn):
            _moved(task, task.source + offset, task.target + offset)


_fma, _copy = Kernel(_multiply_adds), Kernel(_copied)

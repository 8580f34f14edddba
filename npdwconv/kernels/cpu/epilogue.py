"""CPU kernels for what every backward shares: arrays and ints, no validation."""

from __future__ import annotations

from functools import lru_cache
from math import prod
from typing import Any

import numpy as np
from numba.core import types
from numba.extending import intrinsic

from npdwconv.kernels.cpu.arrays import deliver, plain, room_for, target
from npdwconv.kernels.cpu.engine import Kernel, Launch
from npdwconv.kernels.cpu.machine import machine
from npdwconv.kernels.cpu.simd import STORED, Vectors, int64
from npdwconv.kernels.cpu.spec import Fixed, Spec, field
from npdwconv.kernels.cpu.vectors import VectorType
from npdwconv.layouts import Array, split_shape

UniTuple: Any = types.UniTuple  # untyped in numba
SUMS = 8  # in flight at once: additions take about four cycles, and two begin in each
BLOCK = 16384  # values that an item sums, about: the partition is by shape alone, so no bit depends on threads


def _vector(spec: Spec) -> VectorType:
    return VectorType(spec.dtype, Vectors(None, str(spec.dtype)).lanes)


@intrinsic
def _zeros(typing: Any, task: Any) -> Any:
    """`SUMS` sums of nothing."""
    result = UniTuple(_vector(task.spec), SUMS)

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return context.make_tuple(builder, result, [Vectors(builder, task.spec.dtype).zero()] * SUMS)

    return result(task), generate


@intrinsic
def _add_each(typing: Any, task: Any, sums: Any, place: Any) -> Any:
    """Add `SUMS` vectors, ``task.step`` bytes apart, each to a sum of its own."""
    spec = task.spec

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        v = Vectors(builder, spec.dtype)
        step = field(builder, spec, arguments[0], "step")
        added = [
            builder.fadd(
                builder.extract_value(arguments[1], i),
                v.load(v.at(arguments[2], builder.mul(step, int64(i))), spec.stored),
            )
            for i in range(SUMS)
        ]
        return context.make_tuple(builder, sums, added)

    return sums(task, sums, place), generate


@intrinsic
def _add_one(typing: Any, task: Any, sums: Any, place: Any, left: Any) -> Any:
    """Add a vector, of which ``left`` values are there, to the first sum."""
    spec = task.spec

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        v = Vectors(builder, spec.dtype)
        value = v.load(arguments[2], spec.stored, v.between(int64(0), arguments[3]))
        first = builder.fadd(builder.extract_value(arguments[1], 0), value)
        return builder.insert_value(arguments[1], first, 0)

    return sums(task, sums, place, left), generate


@intrinsic
def _keep(typing: Any, task: Any, sums: Any, place: Any, left: Any) -> Any:
    """Write the sum of the sums, in order: ``left`` lanes of it, or the sum of its lanes where ``spec.total``."""
    spec = task.spec

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        v = Vectors(builder, spec.dtype)
        value = builder.extract_value(arguments[1], 0)
        for i in range(1, SUMS):
            value = builder.fadd(value, builder.extract_value(arguments[1], i))
        if spec.total:
            v.store(v.splat(v.total(value)), arguments[2], spec.out_type, v.between(int64(0), int64(1)))
        else:
            v.store(value, arguments[2], spec.out_type, v.between(int64(0), arguments[3]))
        return context.get_dummy_value()

    return types.none(task, sums, place, left), generate


def _sum_rows(task: Any, item: Any) -> None:
    """Channels last: a chunk of pixels, a vector of channels after another."""
    first = item * task.block
    last = min(first + task.block, task.pixels)
    for v in range(task.vectors):
        c = v * task.lanes
        place = task.z + first * task.step + c * task.stored_size
        end = task.z + last * task.step + c * task.stored_size
        sums = _zeros(task)
        if task.channels - c >= task.lanes:
            while place + SUMS * task.step <= end:
                sums = _add_each(task, sums, place)
                place += SUMS * task.step
        while place < end:
            sums = _add_one(task, sums, place, task.channels - c)
            place += task.step
        _keep(task, sums, task.partial + (item * task.channels + c) * task.out_size, task.channels - c)


def _sum_planes(task: Any, item: Any) -> None:
    """Channels first: some channels, in a chunk of images."""
    chunk = item // task.groups
    first = item % task.groups * task.group
    for k in range(first, min(first + task.group, task.channels)):
        sums = _zeros(task)
        for n in range(chunk * task.block, min((chunk + 1) * task.block, task.batch)):
            place = task.z + (n * task.channels + k) * task.plane
            end = place + task.plane
            while place + SUMS * task.step <= end:
                sums = _add_each(task, sums, place)
                place += SUMS * task.step
            while place < end:
                sums = _add_one(task, sums, place, (end - place) // task.stored_size)
                place += task.step
        _keep(task, sums, task.partial + (chunk * task.channels + k) * task.out_size, 1)


rows, planes = Kernel(_sum_rows), Kernel(_sum_planes)


def bias_bwd(grad_z: Array, grad_bias: Array, layout: str) -> None:
    """grad_b[k] = Σ_n,pq grad_z[n,k,pq]."""
    if not grad_z.size:
        grad_bias[...] = 0
        return
    dense, z = target(grad_bias), plain(grad_z)
    first, second, chunks = _plan(z.shape, z.dtype, dense.dtype, layout)
    if second is None:
        first(z, dense)
    else:
        partial = room_for(chunks * dense.size, str(first.spec.dtype), "sums")
        first(z, partial)
        second(partial, dense)
    deliver(dense, grad_bias)


@lru_cache(maxsize=512)
def _plan(
    shape: tuple[int, ...], read: np.dtype[Any], written: np.dtype[Any], layout: str
) -> tuple[Launch, Launch | None, int]:
    """What sums chunks, what adds the chunks' sums if there are several, and how many there are."""
    batch, channels, spatial = split_shape(layout, shape)
    stored, out_type = read.name, written.name
    dtype = STORED[stored][2]
    if layout == "channels_first":
        block = max(1, BLOCK // (channels * prod(spatial)))
        chunks = -(-batch // block)
        first = _sum_of_planes(batch, channels, prod(spatial), stored, out_type if chunks == 1 else dtype, block)
    else:
        block = max(1, BLOCK // channels)
        chunks = -(-batch * prod(spatial) // block)
        first = _sum_of_rows(batch * prod(spatial), channels, stored, out_type if chunks == 1 else dtype, block)
    second = None if chunks == 1 else _sum_of_rows(chunks, channels, dtype, out_type, chunks)
    return first, second, chunks


def _sum_of_rows(pixels: int, channels: int, stored: str, out_type: str, block: int) -> Launch:
    """Sums of ``block`` rows of channels each."""
    step = channels * STORED[stored][1]
    numbers = {"channels": channels, "pixels": pixels, "block": block, "step": step}
    vectors = -(-channels // machine().lanes(STORED[STORED[stored][2]][1]))
    return _launch(rows, stored, out_type, numbers | {"vectors": vectors}, -(-pixels // block), pixels * channels)


def _sum_of_planes(batch: int, channels: int, pixels: int, stored: str, out_type: str, block: int) -> Launch:
    """Sums of the planes of a channel in ``block`` images each."""
    size = STORED[stored][1]
    group = max(1, BLOCK // (min(block, batch) * pixels))
    groups = -(-channels // group)
    numbers = {"channels": channels, "batch": batch, "block": block, "group": group, "groups": groups}
    numbers |= {"plane": pixels * size, "step": machine().lanes(STORED[STORED[stored][2]][1]) * size}
    return _launch(planes, stored, out_type, numbers, -(-batch // block) * groups, batch * channels * pixels)


def _launch(kernel: Kernel, stored: str, out_type: str, numbers: dict[str, int], items: int, work: int) -> Launch:
    dtype = STORED[stored][2]
    fixed: dict[str, Fixed] = {
        "dtype": dtype,
        "lanes": machine().lanes(STORED[dtype][1]),
        "stored": stored,
        "stored_size": STORED[stored][1],
        "out_type": out_type,
        "out_size": STORED[out_type][1],
        "total": kernel is planes,
    }
    return Launch(kernel, ("z", "partial"), fixed, numbers, items=items, work=work)

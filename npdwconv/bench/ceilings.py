"""The participant that measures the machine: how many flops a second, and how many bytes a second at every size."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from importlib import import_module
from typing import Any, NamedTuple

import numpy as np

import npdwconv
from npdwconv.bench.cases import Case
from npdwconv.bench.operands import Operands
from npdwconv.bench.participant import Way
from npdwconv.bench.processes import Worker

SIZES = tuple(1 << power for power in (17, 19, 21, 23, 25, 27, 29))  # bytes read and written, 128 KB to 512 MB
STREAMED = 1 << 23  # bytes from which a copy past the caches is tried too
NOTHING, PEAK = Case("", 1, 1, (1,)), "peak"
_threads: list[int] = []


class Ceilings(NamedTuple):
    """The measured peak in GFLOP/s, and copy speeds in GB/s (read and written) by bytes."""

    gflops: float
    copy: dict[int, float]

    def bandwidth(self, size: int) -> float:
        """The speed of a copy of so many bytes, read off between those that were measured."""
        sizes, speeds = list(self.copy), list(self.copy.values())
        return float(np.interp(np.log2(max(size, 1)), np.log2(sizes), speeds))

    def seconds(self, flops: int, size: int) -> float:
        """The least time that work can take: the longer of its arithmetic and its traffic."""
        return max(flops / self.gflops, size / self.bandwidth(size)) / 1e9


def setup(threads: int) -> str:
    npdwconv.set_num_threads(threads)
    _threads[:] = [threads]
    return npdwconv.__version__


def ways(case: Case, given: Operands) -> Iterator[tuple[str, Callable[[], Way]]]:
    """The peak and every copy; a way's value is the flops or the bytes of one call."""
    kernels = import_module("npdwconv.kernels.cpu.ceilings")
    threads = _threads[0]
    yield PEAK, partial(_way, partial(kernels.multiply_adds, threads))
    for size in SIZES:
        for streaming in (False, True)[: 1 + (size >= STREAMED)]:
            yield f"{size} {streaming}", partial(_way, partial(kernels.copy, size, threads, streaming=streaming))


def _way(build: Callable[[], Any]) -> Way:
    ceiling = build()
    return Way(ceiling.run, lambda _: np.asarray(ceiling.amount))


def measured(worker: Worker, rounds: int, seconds: float) -> Ceilings:
    """The best of some bursts of each."""
    names = list(worker.open(NOTHING))
    rates = {name: max(_rates(worker, name, rounds, seconds)) for name in names}
    copies: dict[int, float] = {}
    for name in names:
        if name != PEAK:
            size = int(name.split()[0])
            copies[size] = max(copies.get(size, 0.0), rates[name])
    return Ceilings(rates[PEAK], copies)


def peaks(worker: Worker, rounds: int, seconds: float) -> list[float]:
    """GFLOP/s of some bursts of the peak, which are the same on a machine that does nothing else."""
    worker.open(NOTHING)
    return _rates(worker, PEAK, rounds, seconds)


def _rates(worker: Worker, name: str, rounds: int, seconds: float) -> list[float]:
    amount = float(worker.result(name))
    return [amount / worker.burst(name, seconds, seconds / 2) / 1e9 for _ in range(rounds)]

"""What a participant in a comparison is: a module that builds ways through a case, and how one of them is timed."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Protocol

from npdwconv.bench.cases import Case
from npdwconv.bench.operands import Operands
from npdwconv.layouts import Array

LEAST_CALLS, SLICE, STILL = 3, 0.005, 0.2


@dataclass(frozen=True)
class Way:
    """One way through a case, ready to run: `call` is what the clock sees, `result` its value channels_first."""

    call: Callable[[], Any]
    result: Callable[[Any], Array]


class Participant(Protocol):
    """A module in `npdwconv.bench.peers`, or one that stands in for one."""

    def setup(self, threads: int) -> str:
        """Import and configure; the version to report."""

    def ways(self, case: Case, given: Operands) -> Iterator[tuple[str, Callable[[], Way]]]:
        """The ways that there are through a case, by name; each is built outside the clock."""


def burst(call: Callable[[], Any], seconds: float, warm: float) -> float:
    """Seconds that a call takes: the median over one burst of calls, after some that are not counted."""
    clock = time.perf_counter
    end = clock() + warm
    call()
    while clock() < end:
        call()
    spent: list[float] = []
    end = clock() + seconds
    while len(spent) < LEAST_CALLS or clock() < end:
        start = clock()
        call()
        spent.append(clock() - start)
        if spent[0] > 10 * seconds:
            break
    return sorted(spent)[len(spent) // 2]


def settle(most: float = 0.5) -> None:
    """Wait until this process's threads have stopped spinning, so that they take no time from the next participant."""
    end = time.perf_counter() + most
    while time.perf_counter() < end:
        before = time.process_time()
        time.sleep(SLICE)
        if time.process_time() - before < STILL * SLICE:
            return

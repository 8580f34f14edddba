"""Measuring one case: who takes part, the check that comes first, and rounds in which everyone has a turn."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from types import TracebackType
from typing import NamedTuple

from npdwconv.bench.cases import Case
from npdwconv.bench.families import contests
from npdwconv.bench.operands import Truth, operands, truth
from npdwconv.bench.processes import Worker, WorkerError
from npdwconv.bench.scores import OURS, Timings, ours

OWN_MODULE = "npdwconv.bench.ours"
HOPELESS = 5.0  # times slower than the best rival after the first round: no further ones


class Peer(NamedTuple):
    """A participant's module, and the packages that it needs."""

    module: str
    packages: tuple[str, ...]

    def missing(self) -> list[str]:
        return [package for package in self.packages if find_spec(package) is None]


PEERS = {
    "torch": Peer("npdwconv.bench.peers.torch_peer", ("torch",)),
    "onnxruntime": Peer("npdwconv.bench.peers.onnxruntime_peer", ("onnxruntime", "onnx")),
    "openvino": Peer("npdwconv.bench.peers.openvino_peer", ("openvino", "onnx")),
    "numpy": Peer("npdwconv.bench.peers.numpy_peer", ("numpy",)),
    "jax": Peer("npdwconv.bench.peers.jax_peer", ("jax",)),
}


@dataclass(frozen=True)
class Settings:
    """How long to measure: rounds, seconds of a burst in which calls are timed, seconds of calls before it."""

    threads: int
    rounds: int
    seconds: float
    warm: float
    backend: str | None = None

    @property
    def environment(self) -> dict[str, str]:
        """What our own processes are told by it."""
        return {} if self.backend is None else {"NPDWCONV_BACKEND": self.backend}


class Field:
    """The participants, each in its process; one that dies is started anew for the next case. Leaving ends them all."""

    def __init__(self, modules: Mapping[str, str], settings: Settings) -> None:
        self.modules, self.settings = modules, settings
        self.versions: dict[str, str] = {}
        self.lost: dict[str, str] = {}
        self._workers: dict[str, Worker] = {}

    def __enter__(self) -> Field:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with contextlib.ExitStack() as stack:
            for worker in self._workers.values():
                stack.callback(worker.close)

    def workers(self) -> Iterator[tuple[str, Worker]]:
        """Everyone whose process runs, our own first."""
        for name, module in self.modules.items():
            if name in self.lost:
                continue
            worker = self._workers.get(name)
            if worker is None or not worker.alive:
                worker = self._started(name, module)
            if worker is not None:
                yield name, worker

    def _started(self, name: str, module: str) -> Worker | None:
        """A new process; None where it does not even start, which is not tried again."""
        if name in self._workers:
            self._workers.pop(name).close()
        own = self.settings.environment if name == OURS else {}
        worker = self._workers[name] = Worker(module, self.settings.threads, environment=own)
        try:
            self.versions[name] = worker.hello()
        except WorkerError as error:
            self.lost[name] = str(error)
            return None
        return worker


class Entrant(NamedTuple):
    """A way that has passed the check, and the process that runs it."""

    label: str
    way: str
    worker: Worker


def measure(case: Case, field: Field, families: Collection[str] = ()) -> Timings:
    """Check every way through a case, then time those that are right; of ours only what the families ask for."""
    timings = Timings(case)
    asked = {f"{OURS} {c.ours}" for c in contests(case) if not families or c.family in families}
    wanted = truth(case, operands(case))
    entrants = [
        entrant for name, worker in field.workers() for entrant in _admitted(name, worker, timings, wanted, asked)
    ]
    del wanted
    for turn in range(field.settings.rounds):
        if turn == 1:
            entrants = list(_promising(entrants, timings))
        for entrant in entrants:
            _burst(entrant, timings, field.settings)
    return timings


def _admitted(name: str, worker: Worker, timings: Timings, wanted: Truth, asked: set[str]) -> Iterator[Entrant]:
    """A participant's ways that give the right result; the others' faults are noted."""
    try:
        built = worker.open(timings.case)
    except WorkerError as error:
        timings.faults[name] = str(error)
        return
    for way, report in built.items():
        label = f"{name} {way}"
        if ours(label) and label not in asked:
            continue
        if isinstance(report, str):
            timings.faults[label] = report
            continue
        timings.build[label] = report
        try:
            fault = wanted.fault(worker.result(way))
        except WorkerError as error:
            fault = str(error)
        if fault is None:
            yield Entrant(label, way, worker)
        else:
            timings.faults[label] = fault


def _burst(entrant: Entrant, timings: Timings, settings: Settings) -> None:
    label = entrant.label
    if label in timings.faults:
        return
    try:
        seconds = entrant.worker.burst(entrant.way, settings.seconds, settings.warm)
    except WorkerError as error:
        timings.faults[label] = str(error)
        timings.seconds.pop(label, None)
    else:
        timings.seconds.setdefault(label, []).append(seconds)


def _promising(entrants: Sequence[Entrant], timings: Timings) -> Iterator[Entrant]:
    """Our own ways, and the rivals that in some contest were not far behind the best after the first round."""
    first = {label: seconds[0] for label, seconds in timings.seconds.items()}
    near: set[str] = set()
    for contest in contests(timings.case):
        rivals = {label: seconds for label, seconds in first.items() if not ours(label) and contest.admits(label)}
        near |= {label for label, seconds in rivals.items() if seconds <= HOPELESS * min(rivals.values())}
    yield from (entrant for entrant in entrants if ours(entrant.label) or entrant.label in near)


def first_call(case: Case, way: str, settings: Settings, cache: str | os.PathLike[str]) -> float:
    """Seconds of the first call of a way in a new process that keeps its compiled code in the folder ``cache``.

    Importing numba is not in it; compiling, or loading what an earlier process compiled, is.
    """
    environment = settings.environment | {"NUMBA_CACHE_DIR": os.fspath(cache)}
    with Worker(OWN_MODULE, settings.threads, environment=environment) as worker:
        worker.open(case)
        return worker.first(way)

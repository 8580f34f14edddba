"""The process of one participant: ``python -m npdwconv.bench.worker MODULE THREADS``, spoken to by `processes`.

Requests come in on standard input and answers go out on what was standard output, pickled. Whatever the participant
itself prints goes to standard error. The process ends when its input does, so it does not outlive who started it.
"""

from __future__ import annotations

import importlib
import os
import pickle
import signal
import sys
import time
from collections.abc import Callable
from typing import Any, BinaryIO

from npdwconv.bench.cases import Case
from npdwconv.bench.operands import operands
from npdwconv.bench.participant import Participant, Way, burst, settle
from npdwconv.layouts import Array


class Server:
    """Answers requests about the case that is open."""

    def __init__(self, participant: Participant, threads: int) -> None:
        self.participant, self.threads = participant, threads
        self.version = participant.setup(threads)
        self.ways: dict[str, Way] = {}

    def hello(self) -> str:
        """The participant's version."""
        return self.version

    def open(self, case: Case) -> dict[str, float | str]:
        """Build the ways through a case; for each, the seconds that took, or why it could not be built."""
        self.ways.clear()
        report: dict[str, float | str] = {}
        for name, build in self.participant.ways(case, operands(case)):
            start = time.perf_counter()
            try:
                self.ways[name] = build()
                report[name] = time.perf_counter() - start
            except Exception as error:
                report[name] = f"{type(error).__name__}: {error}"
        return report

    def result(self, way: str) -> Array:
        """The value of one way, to be checked."""
        return self.ways[way].result(self.ways[way].call())

    def first(self, way: str) -> float:
        """Seconds of one call, the first one where nothing else was asked before."""
        start = time.perf_counter()
        self.ways[way].call()
        return time.perf_counter() - start

    def burst(self, way: str, seconds: float, warm: float) -> float:
        """Seconds a call, by one burst of calls."""
        found = burst(self.ways[way].call, seconds, warm)
        settle()
        return found


REQUESTS = ("hello", "open", "result", "first", "burst")


def serve(server: Callable[[], Server], requests: BinaryIO, answers: BinaryIO) -> None:
    """Answer until the input ends. An answer is ("done", value) or ("failed", why)."""
    made: Server | None = None
    while True:
        try:
            name, arguments = pickle.load(requests)
        except EOFError:
            return
        try:
            made = made or server()
            answer: tuple[str, Any] = "done", getattr(made, name)(*arguments)
        except Exception as error:
            answer = "failed", f"{type(error).__name__}: {error}"
        try:
            pickle.dump(answer, answers, protocol=pickle.HIGHEST_PROTOCOL)
            answers.flush()
        except BrokenPipeError:
            return


def main(module: str, threads: int) -> None:
    """Serve a participant's module on this process's streams."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # who started this process ends it
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    serve(lambda: Server(importlib.import_module(module), threads), sys.stdin.buffer, answers)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))

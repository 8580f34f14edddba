"""Participants' processes, seen from the one that measures: started, asked, ended."""

from __future__ import annotations

import contextlib
import os
import pickle
import subprocess
import sys
import tempfile
import threading
from collections.abc import Mapping
from typing import IO, Any

from npdwconv.bench.cases import Case
from npdwconv.layouts import Array

PATIENCE = 300.0  # seconds after which an answer is no longer waited for
GRACE = 2.0  # seconds a process has to end by itself
THREADS = (
    "OMP_NUM_THREADS",
    "OPENBLAS_NUM_THREADS",
    "MKL_NUM_THREADS",
    "VECLIB_MAXIMUM_THREADS",
    "NUMBA_NUM_THREADS",
    "NPROC",  # what jaxlib reads
)


class WorkerError(Exception):
    """A participant failed, or its process has ended."""


class Worker:
    """The process of one participant; a context manager that ends it."""

    def __init__(
        self,
        module: str,
        threads: int,
        *,
        environment: Mapping[str, str] | None = None,
        patience: float = PATIENCE,
    ) -> None:
        self.patience = patience
        counts = dict.fromkeys(THREADS, str(threads))
        self._errors: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115 - closed by `close`
        self._process = subprocess.Popen(
            [sys.executable, "-m", "npdwconv.bench.worker", module, str(threads)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            env={**os.environ, **counts, **(environment or {})},
        )

    def __enter__(self) -> Worker:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def alive(self) -> bool:
        return self._process.poll() is None

    def hello(self) -> str:
        """The participant's version."""
        return str(self._ask("hello"))

    def open(self, case: Case) -> dict[str, float | str]:
        """Build the ways through a case; for each, the seconds that took, or why it could not be built."""
        report: dict[str, float | str] = self._ask("open", case)
        return report

    def result(self, way: str) -> Array:
        """The value of one way, channels_first."""
        value: Array = self._ask("result", way)
        return value

    def first(self, way: str) -> float:
        """Seconds of one call."""
        return float(self._ask("first", way))

    def burst(self, way: str, seconds: float, warm: float) -> float:
        """Seconds a call, by one burst of calls."""
        return float(self._ask("burst", way, seconds, warm))

    def close(self) -> None:
        """End the process, by closing its input, then by force."""
        process = self._process
        for stream in (process.stdin, process.stdout):
            with contextlib.suppress(OSError):  # what is left to be written to a process that has ended
                if stream is not None:
                    stream.close()
        try:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(GRACE)
        finally:
            process.kill()
            process.wait()
            self._errors.close()

    def _ask(self, request: str, *arguments: Any) -> Any:
        if self._process.stdin is None or self._process.stdout is None or not self.alive:
            raise WorkerError(self._last_words())
        watch = threading.Timer(self.patience, self._process.kill)
        watch.start()
        try:
            pickle.dump((request, arguments), self._process.stdin)
            self._process.stdin.flush()
            state, value = pickle.load(self._process.stdout)
        except (EOFError, OSError, pickle.UnpicklingError) as error:
            self._process.kill()
            self._process.wait()
            raise WorkerError(self._last_words()) from error
        finally:
            watch.cancel()
        if state == "failed":
            raise WorkerError(str(value))
        return value

    def _last_words(self) -> str:
        self._errors.seek(0)
        lines = [line for line in self._errors.read().decode(errors="replace").splitlines() if line.strip()]
        said = f": {lines[-1].strip()}" if lines else ""
        return f"its process ended with code {self._process.poll()}{said}"

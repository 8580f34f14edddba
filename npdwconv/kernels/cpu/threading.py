"""When several threads may run, and when one must.

A launch runs in parallel where its work is worth waking threads for, where no other launch of ours is running in
parallel (Numba's `workqueue` layer aborts the process when two threads launch at once; under the others a pool of
Python threads would have more threads than cores), and where the threads survive: after a fork GNU OpenMP ends the
child at its next launch. In every other case the same items run one after another, with the same result.

A fork waits for compilers at work in other threads, for in the child nobody would free their locks.
"""

from __future__ import annotations

import os
import threading
import warnings
from typing import Any

from llvmlite.binding import ffi
from numba.core.compiler_lock import global_compiler_lock
from numba.np.ufunc import parallel

from npdwconv.threads import get_num_threads

# Numba's threading layer, its lock around compilation, and llvmlite's around each call; none is typed
_layer: Any = parallel
compiling: Any = global_compiler_lock
_llvm: Any = ffi.lib._lock

# multiply-adds below which waking threads costs more than they save: a launch takes 2 microseconds, under workqueue 70
SMALL = {"omp": 100_000, "tbb": 200_000, "workqueue": 2_000_000}


class _Region:
    """The one parallel region of ours that may run at a time."""

    def __init__(self) -> None:
        self.free = threading.Lock()
        self.small: int | None = None  # None before the first launch that is not small
        self.dead = False

    def start(self) -> None:
        """Let Numba start its threads, once; it warns where it finds no semaphores to guard that with."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            _layer._launch_threads()
        self.small = SMALL.get(_layer.threading_layer(), SMALL["omp"])

    def forked(self) -> None:
        """In a forked child: whoever held the lock is not here, and the threads of GNU OpenMP are not either."""
        self.free = threading.Lock()
        self.dead = _layer._is_initialized and _layer.threading_layer() == "omp"


_region = _Region()


def _before_fork() -> None:
    compiling.acquire()
    _llvm.__enter__()


def _after_fork() -> None:
    _llvm.__exit__(None, None, None)
    compiling.release()


def _in_child() -> None:
    _after_fork()
    _region.forked()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_before_fork, after_in_parent=_after_fork, after_in_child=_in_child)


def threads_for(items: int, work: int) -> int:
    """How many threads a launch of ``items`` with ``work`` multiply-adds gets."""
    if items < 2 or work < SMALL["omp"] or _region.dead:
        return 1
    if _region.small is None:
        _region.start()
    if work < (_region.small or 0):
        return 1
    return min(items, get_num_threads(), int(_layer.NUM_THREADS))


def enter() -> bool:
    """Begin a parallel region; False where another is running, and the launch must be serial."""
    return _region.free.acquire(blocking=False)


def leave() -> None:
    """End the parallel region that `enter` began."""
    _region.free.release()

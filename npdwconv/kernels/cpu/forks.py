"""A fork waits for compilers at work in other threads: in the child nobody would free their locks."""

from __future__ import annotations

import os
from typing import Any

from llvmlite.binding import ffi
from numba.core.compiler_lock import global_compiler_lock

# Numba's lock around compilation, and llvmlite's around each call; neither is typed
compiling: Any = global_compiler_lock
_llvm: Any = ffi.lib._lock


def _before_fork() -> None:
    compiling.acquire()
    _llvm.__enter__()


def _after_fork() -> None:
    _llvm.__exit__(None, None, None)
    compiling.release()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_before_fork, after_in_parent=_after_fork, after_in_child=_after_fork)

"""Thread count of our own kernels; nobody else's threads are touched."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cache

from npdwconv.options import integer

_chosen: int | None = None
_alone: ContextVar[bool] = ContextVar("npdwconv_one_thread", default=False)


def set_num_threads(n: int) -> None:
    """Let kernels use ``n`` threads from now on; results do not depend on it.

    Raises:
        OptionError: ``n`` is not an int of at least 1.

    >>> import npdwconv
    >>> before = npdwconv.get_num_threads()
    >>> npdwconv.set_num_threads(1)
    >>> npdwconv.get_num_threads()
    1
    >>> npdwconv.set_num_threads(before)
    """
    global _chosen
    _chosen = integer("n", n, least=1)


def get_num_threads() -> int:
    """How many threads kernels may use: what `set_num_threads` said, else the cores that this process may run on.

    >>> import npdwconv
    >>> npdwconv.get_num_threads() >= 1
    True
    """
    if _alone.get():
        return 1
    return _chosen if _chosen is not None else usable_cores()


@contextmanager
def one_thread() -> Iterator[None]:
    """Kernels called inside use one thread; those called elsewhere meanwhile are not concerned."""
    token = _alone.set(True)
    try:
        yield
    finally:
        _alone.reset(token)


@cache
def usable_cores() -> int:
    """Cores this process might run on when it was first asked: the system's answer takes as long as a tiny launch."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1

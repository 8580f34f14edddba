"""Thread count of our own kernels; nobody else's threads are touched."""

from __future__ import annotations

import os

from npdwconv.options import integer

_chosen: int | None = None


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
    """How many threads kernels may use: what `set_num_threads` said, else the cores this process may run on.

    >>> import npdwconv
    >>> npdwconv.get_num_threads() >= 1
    True
    """
    return _chosen if _chosen is not None else usable_cores()


def usable_cores() -> int:
    """Cores this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1

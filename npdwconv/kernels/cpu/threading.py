"""When several threads may run, and when one must."""

from __future__ import annotations

import contextlib

from npdwconv.threads import get_num_threads

SMALL = 100_000  # multiply-adds below which starting threads costs more than they save


def threads_for(items: int, work: int) -> int:
    """How many threads a launch of ``items`` with ``work`` multiply-adds gets."""
    return 1 if work < SMALL else min(items, get_num_threads())


def region() -> contextlib.AbstractContextManager[None]:
    return contextlib.nullcontext()

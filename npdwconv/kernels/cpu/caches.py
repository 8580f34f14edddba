"""What fits into the caches that all cores share, and whether results had better be written past them."""

from __future__ import annotations

FAR = 3 << 23  # bytes of source and results that come from memory and go there; measured, of a cache of 32 MB


def far(read: int, written: int) -> bool:
    """Whether so many bytes of source and of results come from memory and go there."""
    return read + written >= FAR


def past_caches(read: int, written: int) -> bool:
    """Whether results are written past the caches: they are far, and not so few that they stay in a cache even so.

    The few results of a strip of a large image are read again.
    """
    return far(read, written) and written >= FAR // 8

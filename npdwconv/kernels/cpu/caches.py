"""What fits into a core's own caches and into those that cores share; when results had better be written past them."""

from __future__ import annotations

from contextlib import suppress
from functools import cache
from pathlib import Path

CACHES = Path("/sys/devices/system/cpu/cpu0/cache")  # where Linux describes those of the first core
USUAL = 1 << 20  # bytes of a second cache where nothing is known about it
FAR = 3 << 23  # bytes of source and results that come from memory and go there; measured, of a cache of 32 MB


def fetched(nbytes: int) -> bool:
    """Whether so many bytes of all operands are more than caches hold for sure, and had better be fetched ahead.

    From some 6 MB on it was up to twice as fast, though a cache of 32 MB would hold them if others left it alone.
    """
    return nbytes >= FAR // 4


def far(read: int, written: int) -> bool:
    """Whether so many bytes of source and of results come from memory and go there."""
    return read + written >= FAR


def past_caches(read: int, written: int) -> bool:
    """Whether results are written past the caches: they are far, and not so few that they stay in a cache even so.

    The few results of a strip of a large image are read again.
    """
    return far(read, written) and written >= FAR // 8


@cache
def second() -> int:
    """Bytes of a core's second cache."""
    for place in CACHES.glob("index*"):
        with suppress(OSError, ValueError):
            kind, level, size = ((place / name).read_text().strip() for name in ("type", "level", "size"))
            if level == "2" and kind != "Instruction":
                return int(size.removesuffix("K")) << 10
    return USUAL

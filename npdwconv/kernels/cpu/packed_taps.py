"""A weight as kernels of channels_last read it, [fold][taps][channels]: packed by a launch of its own, or by the items
that read it, each the taps of its own channels, where no other item has these.

Lines that one core has just written reach another one slowly: 1024×7×7 takes a fifth less when nobody else packs.
"""

from __future__ import annotations

from typing import Any

from npdwconv.kernels.cpu.engine import Kernel, compiled, inlined
from npdwconv.kernels.cpu.pixels import turn_taps


def _pack_vector(task: Any, c: Any) -> None:
    """Pack the taps of the channels from ``c`` on, a vector of them."""
    packed = task.weight + c * task.weight_size
    for m in range(task.fold):
        raw = task.raw + (c * task.fold + m) * task.taps * task.raw_size
        for tap in range(0, task.taps, task.lanes):
            turn_taps(task, raw + tap * task.raw_size, packed, task.channels - c, task.taps - tap)
            packed += min(task.taps - tap, task.lanes) * task.packed_tap


pack_vector = compiled(_pack_vector)


@inlined
def pack_own(task: Any, begin: Any, end: Any) -> None:
    """Pack the taps of an item's channels, where that is the item's to do."""
    if task.packs:
        for c in range(begin, end, task.lanes):
            pack_vector(task, c)


def _pack(task: Any, item: Any) -> None:
    pack_vector(task, item * task.lanes)


pack = Kernel(_pack)

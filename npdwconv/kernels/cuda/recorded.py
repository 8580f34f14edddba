"""What calls launch, recorded without a device: the room's operations run on arrays that lie nowhere.

For a process of its own: what is settled once for a call stays settled, as for the device that is made up here.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from math import prod
from typing import Any, NamedTuple

from npdwconv.device import DeviceArray
from npdwconv.kernels.cuda import provider
from npdwconv.kernels.cuda.words import rounded

PROCESSORS = 132  # multiprocessors of the device that is made up: an H100's
APART = 1 << 44  # from where one array begins to the next: by the address one knows which it is


class Operand(NamedTuple):
    """The bytes of an operand, and of one element where that is known; or else 0."""

    size: int
    itemsize: int


class Launch(NamedTuple):
    """One launch: the kernel, its blocks and threads, and its operands and numbers by the argument's name."""

    kernel: provider.Kernel
    grid: tuple[int, int, int]
    block: tuple[int, int, int]
    operands: dict[str, Operand]
    numbers: dict[str, int]


_operands: list[Operand] = []


class _Memory:
    """Memory that is not there."""

    def __init__(self, size: int, stream: int, itemsize: int = 0) -> None:
        _operands.append(Operand(size, itemsize))
        self.size, self.stream, self.address = size, stream, len(_operands) * APART

    def used_on(self, stream: int) -> None:
        self.stream = stream


def array(storage: str, *shape: int) -> DeviceArray:
    """An array that lies nowhere."""
    dtype = rounded(storage)
    memory = _Memory(prod(shape) * dtype.itemsize, provider.LEGACY, dtype.itemsize)
    return DeviceArray(memory, memory.address, shape, dtype)


@contextmanager
def recorded() -> Iterator[list[Launch]]:
    """Calls inside launch nothing; what they would have launched is added to the list."""
    found: list[Launch] = []

    def record(kernel: provider.Kernel, grid: Any, block: Any, stream: int, *arguments: Any) -> None:
        named = dict(zip(kernel.source.arguments, arguments, strict=True))
        operands = {name: _operands[value // APART - 1] for name, value in named.items() if value >= APART}
        numbers = {name: value for name, value in named.items() if value < APART}
        found.append(Launch(kernel, grid, block, operands, numbers))

    answers = {"wait_for": None, "clear": None, "current_device": 0, "processors": PROCESSORS}
    replaced: list[tuple[Any, str, Any]] = [(provider.Kernel, "__call__", record), (provider, "Memory", _Memory)]
    replaced += [(provider, name, lambda *_, answer=answer: answer) for name, answer in answers.items()]
    held = [getattr(owner, name) for owner, name, _ in replaced]
    try:
        for owner, name, value in replaced:
            setattr(owner, name, value)
        yield found
    finally:
        for (owner, name, _), value in zip(replaced, held, strict=True):
            setattr(owner, name, value)

"""Launching kernels: code, numbers and work items are settled once for a shape, addresses with every call."""

from __future__ import annotations

import ctypes
import struct
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from typing import NamedTuple

import numpy as np

from npdwconv.kernels.cpu.arrays import room
from npdwconv.kernels.cpu.compilation import Kernel, compiled, inlined
from npdwconv.kernels.cpu.pool import AT_FLAGS, NOWHERE, PLACES, READABLE, WORD, WRITABLE, program, run, sealed
from npdwconv.kernels.cpu.spec import Fixed, Spec
from npdwconv.layouts import Array
from npdwconv.threads import get_num_threads

__all__ = [
    "NOWHERE",
    "Kernel",
    "Launch",
    "Parts",
    "Program",
    "Ready",
    "address",
    "checks",
    "compiled",
    "inlined",
]

# packs the number of threads and the arrays of a call, by how many there are; places without one are zero
_PACK = [struct.Struct(f"{count + 1}q{WORD * (PLACES - count)}x").pack for count in range(PLACES + 1)]
SMALL = 100_000  # multiply-adds below which waking threads costs more than they save


class Launch:
    """A kernel ready to run over arrays of one shape: code, numbers and items are settled, addresses are not.

    ``pointers`` names the arrays in the order in which a call passes them (None for one that is absent); ``numbers``
    are the other fields of the task, ``fixed`` what is compiled in. ``work`` is the launch's number of multiply-adds,
    by which it is decided whether several threads are worth their waking. `entry` is the address of its code, `numbers`
    what follows the addresses in the kernel's block.
    """

    def __init__(
        self,
        kernel: Kernel,
        pointers: tuple[str, ...],
        fixed: Mapping[str, Fixed],
        numbers: Mapping[str, int],
        *,
        items: int,
        work: int,
    ) -> None:
        self.spec = Spec((*pointers, *numbers), tuple(fixed.items()))
        self.items, self.work, self.pointers = items, work, len(pointers)
        self.most = 1 if work < SMALL else items  # threads that are worth having
        self.numbers = struct.pack(f"{len(numbers)}q", *numbers.values())
        self.entry = kernel.entry(self.spec) if items else 0

    @cached_property
    def _alone(self) -> Program:
        return Program(Parts([(self, tuple(range(self.pointers)))]))

    def __call__(self, *arrays: Array | None) -> None:
        """Run over these arrays, which must be as the numbers say: nothing here is checked."""
        if self.items:
            self._alone(*arrays)

    def bound(self, *arrays: Array | None) -> bytes:
        """This launch over these arrays for `pool.run_series`, as long as they live."""
        pointers = struct.pack(f"{len(arrays)}q", *map(address, arrays))
        return sealed(self.entry, self.items, self.most, pointers + self.numbers)

    def placed(self, places: Sequence[int]) -> bytes:
        """This launch as part of a program, over the arrays at these places among the program's."""
        pointers = struct.pack(f"{len(places)}q", *places)
        return sealed(self.entry, self.items, self.most, pointers + self.numbers, len(places))


class Parts(NamedTuple):
    """Launches one after another, with the places of their arrays among a program's, and rooms, (bytes, use) each."""

    steps: Sequence[tuple[Launch, tuple[int, ...]]]
    rooms: tuple[tuple[int, str], ...] = ()


class Program:
    """Launches one after another over the arrays of a call and, at the places behind these, the rooms of its own.

    With ``arrays`` like those that will be passed, and ``result``, the place of the one that is written, a call runs
    nothing and returns False unless each array is one aligned run of memory and the result's is its own and may be
    written to. Shapes and dtypes are not looked at.
    """

    def __init__(self, parts: Parts, arrays: Sequence[Array | None] = (), result: int = NOWHERE) -> None:
        steps, self._rooms = parts
        self._work, self._most = sum(launch.work for launch, _ in steps), max(launch.most for launch, _ in steps)
        sizes = [0 if array is None else array.nbytes for array in arrays]
        fields = struct.pack(f"{3 + PLACES}q", len(steps), _OFFSET, result, *sizes, *[0] * (PLACES - len(sizes)))
        self._rest = fields + b"".join(launch.placed(places) for launch, places in steps)

    def __call__(self, *arrays: Array | None) -> bool:
        """Run over these arrays."""
        if self._rooms:
            arrays = (*arrays, *[room(size, use) for size, use in self._rooms])
        count = 1 if self._most == 1 else min(self._most, get_num_threads())
        holders = [0 if array is None else id(array) for array in arrays] if _OFFSET else map(address, arrays)
        return run(program(), _PACK[len(arrays)](count, *holders) + self._rest, count, self._work)


def _data_offset() -> int:
    """Where an array object holds the address of its data: right behind the object's head (NumPy's ndarraytypes.h).

    0 where that is not so, or its flags are not where programs look; then addresses are asked of NumPy, which takes a
    microsecond for each, and programs check nothing.
    """
    probe, head = np.empty(2), object.__basicsize__
    first, flags = (ctypes.c_int64.from_address(id(probe) + head + WORD * word) for word in (0, AT_FLAGS))
    known = first.value == probe.ctypes.data and flags.value & WRITABLE == WRITABLE
    probe.flags.writeable = False
    return head if known and flags.value & WRITABLE == READABLE else 0


_OFFSET = _data_offset()


Ready = Callable[..., bool]  # runs over an operation's operands and its result, or returns False


def checks() -> bool:
    """Whether programs can check their arrays."""
    return _OFFSET != 0


def address(array: Array | None) -> int:
    """The address of an array's first element; 0 of None."""
    if array is None:
        return 0
    return ctypes.c_int64.from_address(id(array) + _OFFSET).value if _OFFSET else int(array.ctypes.data)

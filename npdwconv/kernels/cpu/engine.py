"""Launching kernels: code, numbers and work items are settled once for a shape, addresses with every call."""

from __future__ import annotations

import ctypes
import struct
from collections.abc import Mapping

import numpy as np

from npdwconv.kernels.cpu.compilation import OPTIONS, Kernel, compiled, inlined
from npdwconv.kernels.cpu.pool import run, sealed
from npdwconv.kernels.cpu.spec import Fixed, Spec
from npdwconv.layouts import Array
from npdwconv.threads import get_num_threads

__all__ = ["OPTIONS", "Kernel", "Launch", "address", "compiled", "inlined"]

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
        self.items, self.work = items, work
        self._addresses = struct.Struct(f"{len(pointers)}q").pack
        self.numbers = struct.pack(f"{len(numbers)}q", *numbers.values())
        self.entry = kernel.entry(self.spec) if items else 0
        self._heads: dict[int, bytes] = {}  # by the number of threads

    def __call__(self, *arrays: Array | None) -> None:
        """Run over these arrays, which must be as the numbers say: nothing here is checked."""
        if not self.items:
            return
        threads = self._threads()
        head = self._heads.get(threads)
        if head is None:
            head = self._heads[threads] = sealed(
                self.entry, self.items, threads, len(arrays) if _OFFSET else 0, _OFFSET
            )
        holders = [0 if array is None else id(array) for array in arrays] if _OFFSET else map(address, arrays)
        run(head + self._addresses(*holders) + self.numbers, threads, self.work)

    def bound(self, *arrays: Array | None) -> bytes:
        """This launch over these arrays for `pool.run_all`, as long as they live."""
        return sealed(self.entry, self.items, self._threads()) + self._addresses(*map(address, arrays)) + self.numbers

    def _threads(self) -> int:
        return 1 if self.work < SMALL else min(self.items, get_num_threads())


def _data_offset() -> int:
    """Where an array object holds the address of its data: right behind the object's head (NumPy's ndarraytypes.h).

    0 where that is not so; then addresses are asked of NumPy, which takes a microsecond for each.
    """
    probe, head = np.empty(1), object.__basicsize__
    return head if ctypes.c_int64.from_address(id(probe) + head).value == probe.ctypes.data else 0


_OFFSET = _data_offset()


def address(array: Array | None) -> int:
    """The address of an array's first element; 0 of None."""
    if array is None:
        return 0
    return ctypes.c_int64.from_address(id(array) + _OFFSET).value if _OFFSET else int(array.ctypes.data)

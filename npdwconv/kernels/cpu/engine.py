"""Compiling kernels for their specs, and launching them: one parallel driver and its serial twin for all.

A compiled kernel is an address. The drivers call it for every work item; they are the only functions that know about
threads, and the only parallel code that is ever compiled.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from llvmlite import ir
from numba import njit, prange, types
from numba.core.cgutils import get_or_insert_function
from numba.extending import intrinsic

from npdwconv.kernels.cpu.simd import I32, I64
from npdwconv.kernels.cpu.spec import Fixed, Spec, TaskType
from npdwconv.kernels.cpu.threading import region, threads_for
from npdwconv.layouts import Array

OPTIONS: dict[str, Any] = {"nogil": True, "error_model": "numpy", "fastmath": {"contract", "nsz"}}


def compiled(function: Callable[..., Any], **options: Any) -> Any:
    """``function`` for Numba, kept on disk where some directory for it can be written."""
    try:
        return njit(cache=True, **OPTIONS, **options)(function)
    except RuntimeError:  # no directory to keep it in
        return njit(**OPTIONS, **options)(function)


class Kernel:
    """A function of ``(task, item)`` in Numba, compiled once for each spec; `entry` is where its machine code begins."""

    def __init__(self, function: Callable[..., Any]) -> None:
        self.dispatcher = compiled(function)
        self._entries: dict[Spec, tuple[int, Any]] = {}
        self._lock = threading.Lock()

    def entry(self, spec: Spec) -> int:
        """The address of the code for ``spec``: a C function of (block, item)."""
        found = self._entries.get(spec)
        if found is None:
            with self._lock:
                found = self._entries.get(spec) or self._build(spec)
                self._entries[spec] = found
        return found[0]

    def _build(self, spec: Spec) -> tuple[int, Any]:
        signature = (TaskType(spec), types.int64)
        result = self._overload(self.dispatcher, signature) or self._overload(njit(**OPTIONS)(self.dispatcher.py_func), signature)
        return result.library.get_pointer_to_function(result.fndesc.llvm_cfunc_wrapper_name), result

    @staticmethod
    def _overload(dispatcher: Any, signature: tuple[Any, ...]) -> Any:
        """The compiled form; None where the cache gave another's, which two processes filling it at once can cause."""
        dispatcher.compile(signature)
        return dispatcher.overloads.get(signature)


class Launch:
    """A kernel ready to run over arrays of one shape: code, numbers and items are settled, addresses are not.

    ``pointers`` names the arrays in the order in which a call passes them (None for one that is absent); ``numbers``
    are the other fields of the task, ``fixed`` what is compiled in. ``work`` is the launch's number of multiply-adds,
    by which `threading` decides whether several threads are worth their start.
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
        self._template = np.array([*(0 for _ in pointers), *numbers.values()], dtype=np.int64)
        self._entry = kernel.entry(self.spec) if items else 0

    def __call__(self, *arrays: Array | None) -> None:
        """Run over these arrays, which must be as the numbers say: nothing here is checked."""
        if not self.items:
            return
        block = self._template.copy()
        for place, array in enumerate(arrays):
            if array is not None:
                block[place] = array.ctypes.data
        count = threads_for(self.items, self.work)
        if count > 1:
            with region():
                parallel(self._entry, block, self.items, count)
        else:
            serial(self._entry, block, self.items)


@intrinsic
def _invoke(typing: Any, entry: Any, block: Any, item: Any) -> Any:
    """Call the kernel at ``entry``."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        address, task, number = arguments
        kind = ir.FunctionType(ir.IntType(8).as_pointer(), [I64.as_pointer(), I64])
        function = builder.inttoptr(address, kind.as_pointer())
        builder.call(function, [builder.inttoptr(task, I64.as_pointer()), number])
        return context.get_dummy_value()

    return types.none(types.int64, types.int64, types.int64), generate


@intrinsic
def _exchange_threads(typing: Any, count: Any) -> Any:
    """Let the next parallel region of this thread have ``count`` threads; what it would have had before."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        module = builder.module
        get = get_or_insert_function(module, ir.FunctionType(I64, []), "get_num_threads")  # C ints, as Numba declares
        put = get_or_insert_function(module, ir.FunctionType(ir.VoidType(), [I64]), "set_num_threads")
        before = builder.call(get, [])
        builder.call(put, arguments)
        return builder.sext(builder.trunc(before, I32), I64)

    return types.int64(types.int64), generate


def _serial(entry, block, items):  # type: ignore[no-untyped-def] - compiled by Numba
    for item in range(items):
        _invoke(entry, block.ctypes.data, item)


def _parallel(entry, block, items, count):  # type: ignore[no-untyped-def] - compiled by Numba
    before = _exchange_threads(count)
    address = block.ctypes.data
    for item in prange(items):
        _invoke(entry, address, item)
    _exchange_threads(before)


serial, parallel = compiled(_serial), compiled(_parallel, parallel=True)

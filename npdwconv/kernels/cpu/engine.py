"""Compiling kernels for their specs, keeping them on disk, and launching them.

A compiled kernel is an address: a C function of a block of numbers and an item. The drivers call it for every item;
they alone know about threads, so nothing parallel is ever compiled by Numba.
"""

from __future__ import annotations

import ctypes
import hashlib
import inspect
import struct
import time
from collections.abc import Callable, Mapping
from functools import cache, cached_property
from pathlib import Path
from typing import Any

import llvmlite
import llvmlite.binding as llvm
import numba
import numpy as np
from numba import njit, types
from numba.core import config
from numba.core.registry import cpu_target
from numba.core.runtime import nrt

from npdwconv.kernels.cpu import drivers, store
from npdwconv.kernels.cpu.spec import Fixed, Spec, TaskType, sources
from npdwconv.kernels.cpu.threading import compiling, enter, leave, threads_for
from npdwconv.kernels.watchers import Compiling, tell
from npdwconv.layouts import Array

OPTIONS: dict[str, Any] = {"nogil": True, "error_model": "numpy", "fastmath": {"contract", "nsz"}}


def compiled(function: Callable[..., Any]) -> Any:
    """``function`` for kernels to call."""
    return njit(**OPTIONS)(function)


class Kernel:
    """A function of ``(task, item)``, compiled by Numba once for each spec and kept on disk."""

    def __init__(self, function: Callable[..., Any]) -> None:
        self.function = function
        self.name = f"{function.__module__.rpartition('.')[2]}.{function.__name__.lstrip('_')}"
        self._entries: dict[Spec, int] = {}

    @cached_property
    def dispatcher(self) -> Any:
        """The function for Numba, without parts that only calls from Python need."""
        return njit(**OPTIONS | {"no_cpython_wrapper": True})(self.function)

    def entry(self, spec: Spec) -> int:
        """The address of the code for ``spec``: a C function of (block, item)."""
        found = self._entries.get(spec)
        if found is None:
            with compiling:
                found = self._entries.get(spec) or self._find(spec)
                self._entries[spec] = found
        return found

    def assembly(self, spec: Spec) -> str:
        """The code for ``spec`` in the machine's assembly language."""
        with compiling:
            return str(self._compile(spec).library.get_asm_str())

    def _find(self, spec: Spec) -> int:
        key = f"{spec.text()};{_origin(self.function)};{_toolchain()}"
        code = store.load(self.name, sources(), key)
        if code is None or not _callable(code):
            code = self._build(spec)
            store.save(self.name, sources(), key, code)
        return drivers.loaded(code.machine, code.entry)

    def _build(self, spec: Spec) -> store.Code:
        tell(Compiling(self.name))
        began = time.perf_counter()
        result = self._compile(spec)
        machine = result.library.serialize_using_object_code()[2][0]
        code = store.Code(result.fndesc.llvm_cfunc_wrapper_name, _calls(result.library), machine)
        tell(Compiling(self.name, time.perf_counter() - began))
        return code

    def _compile(self, spec: Spec) -> Any:
        signature = (TaskType(spec), types.int64)
        self.dispatcher.compile(signature)
        return self.dispatcher.overloads[signature]


def _calls(library: Any) -> tuple[str, ...]:
    """The functions outside the library that its code calls."""
    module = llvm.parse_assembly(library.get_llvm_str())
    outside = [*module.functions, *module.global_variables]
    return tuple(f.name for f in outside if f.is_declaration and not f.name.startswith("llvm."))


def _callable(code: store.Code) -> bool:
    """Whether this process has every function that the code calls; LLVM would end it for one that is missing."""
    if not all(map(llvm.address_of_symbol, code.calls)):
        nrt.rtsys.initialize(cpu_target.target_context)  # Numba's runtime, which the code for errors calls
    return all(map(llvm.address_of_symbol, code.calls))


@cache
def _toolchain() -> str:
    """What compiles: versions, settings, and the processor."""
    processor = cpu_target.target_context.codegen().magic_tuple()
    effort = vars(config).get("OPT")  # what NUMBA_OPT said
    return f"{numba.__version__};{llvmlite.__version__};{effort};{processor}"


def _origin(function: Callable[..., Any]) -> str:
    """The function and the file that it stands in."""
    path = inspect.getfile(function)
    return f"{function.__module__}.{function.__qualname__}:{_file_digest(path)}"


@cache
def _file_digest(path: str) -> str:
    return hashlib.sha256(Path(path).read_bytes()).hexdigest()[:16]


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
        self._addresses = struct.Struct(f"{len(pointers)}q").pack
        self._numbers = struct.pack(f"{len(numbers)}q", *numbers.values())
        self._entry = kernel.entry(self.spec) if items else 0

    def __call__(self, *arrays: Array | None) -> None:
        """Run over these arrays, which must be as the numbers say: nothing here is checked."""
        if not self.items:
            return
        block = self._addresses(*[0 if array is None else _data(array) for array in arrays]) + self._numbers
        count = threads_for(self.items, self.work)
        if count == 1 or not enter():
            drivers.serial()(self._entry, block, self.items)
            return
        try:
            drivers.parallel()(self._entry, block, self.items, count)
        finally:
            leave()


def _data_offset() -> int:
    """Where an array object holds the address of its data: right behind the object's head (NumPy's ndarraytypes.h).

    0 where that is not so; then addresses are asked of NumPy, which takes a microsecond for each.
    """
    probe, head = np.empty(1), object.__basicsize__
    return head if ctypes.c_int64.from_address(id(probe) + head).value == probe.ctypes.data else 0


_OFFSET = _data_offset()


def _data(array: Array) -> int:
    """The address of an array's first element."""
    return ctypes.c_int64.from_address(id(array) + _OFFSET).value if _OFFSET else int(array.ctypes.data)

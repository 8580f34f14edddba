"""Compiling kernels for their specs, and keeping them on disk. A compiled kernel is an address: a C function of a block
of numbers and an item.
"""

from __future__ import annotations

import hashlib
import inspect
import time
from collections.abc import Callable
from functools import cache, cached_property
from pathlib import Path
from typing import Any

import llvmlite
import llvmlite.binding as llvm
import numba
from numba import njit, types
from numba.core import config
from numba.core.compiler_lock import global_compiler_lock
from numba.core.registry import cpu_target
from numba.core.runtime import nrt

from npdwconv.kernels.cpu import store
from npdwconv.kernels.cpu.forks import compiling
from npdwconv.kernels.cpu.loader import loaded
from npdwconv.kernels.cpu.pipeline import Pipeline
from npdwconv.kernels.cpu.spec import Spec, TaskType, sources
from npdwconv.kernels.watchers import Compiling, tell

OPTIONS: dict[str, Any] = {
    "nogil": True,
    "error_model": "numpy",
    "fastmath": {"contract", "nsz"},
    "pipeline_class": Pipeline,
    "no_cpython_wrapper": True,
}


def compiled(function: Callable[..., Any], **options: Any) -> Any:
    """``function`` for kernels to call, and for nobody else; ``options`` are those of `numba.njit`."""
    return njit(**OPTIONS, no_cfunc_wrapper=True, **options)(function)


def inlined(function: Callable[..., Any]) -> Any:
    """``function`` without a call, wherever a kernel uses it: its sums stay in registers."""
    return compiled(function, forceinline=True)


class Kernel:
    """A function of ``(task, item)``, compiled by Numba once for each spec and kept on disk."""

    def __init__(self, function: Callable[..., Any]) -> None:
        self.function = function
        self.name = f"{function.__module__.rpartition('.')[2]}.{function.__name__.lstrip('_')}"
        self._entries: dict[Spec, int] = {}

    @cached_property
    def dispatcher(self) -> Any:
        """The function for Numba, without parts that only calls from Python need."""
        return njit(**OPTIONS)(self.function)

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
        return loaded(code.machine, code.entry)

    def _build(self, spec: Spec) -> store.Code:
        tell(Compiling(self.name))
        began = time.perf_counter()
        result = self._compile(spec)
        machine = result.library._get_compiled_object()
        code = store.Code(result.fndesc.llvm_cfunc_wrapper_name, _calls(result.library), machine)
        tell(Compiling(self.name, time.perf_counter() - began))
        return code

    def _compile(self, spec: Spec) -> Any:
        llvm.initialize_native_asmparser()  # for what is written in assembly language
        signature = (TaskType(spec), types.int64)
        with global_compiler_lock:
            self.dispatcher.compile(signature)
            result = self.dispatcher.overloads[signature]
            result.library._ensure_finalized()
        return result


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

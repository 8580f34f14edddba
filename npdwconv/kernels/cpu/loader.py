"""Machine code in memory: an object file that was compiled before, ready to be called."""

from __future__ import annotations

from functools import cache
from typing import Any

import llvmlite.binding as llvm

from npdwconv.kernels.cpu.forks import compiling

_engines: list[Any] = []  # code lives as long as the process


def loaded(machine: bytes, name: str) -> int:
    """Where the function ``name`` of an object file begins, loaded."""
    with compiling:
        _initialise()
        engine = _engine(llvm.parse_assembly(""))
        engine.add_object_file(llvm.ObjectFileRef.from_data(machine))
        engine.finalize_object()
        return int(engine.get_function_address(name))


def _engine(module: Any) -> Any:
    target = llvm.Target.from_default_triple().create_target_machine(codemodel="jitdefault", jit=True)
    engine = llvm.create_mcjit_compiler(module, target)
    engine.finalize_object()
    _engines.append(engine)
    return engine


@cache
def _initialise() -> None:
    llvm.initialize_native_target()
    llvm.initialize_native_asmprinter()

"""The two loops over work items, serial and parallel, written in LLVM's language: nothing to compile at length.

``serial(entry, block, items)`` calls the kernel at ``entry`` with (block, item) for every item. ``parallel`` hands the
items to Numba's threading layer, by the function through which Numba's own ``prange`` does: ``numba_parallel_for``
splits a range among ``count`` threads and calls a function of (char **args, size_t *dims, size_t *steps, void *data)
for each part, as the inner loop of a NumPy generalised ufunc is called (numba/np/ufunc/workqueue.h).
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from functools import cache
from typing import Any

import llvmlite.binding as llvm
from llvmlite import ir

from npdwconv.kernels.cpu.threading import compiling

I8P, I32, I64 = ir.IntType(8).as_pointer(), ir.IntType(32), ir.IntType(64)
VOID, I64P = ir.VoidType(), I64.as_pointer()
KERNEL = ir.FunctionType(I8P, [I64P, I64])
PART = ir.FunctionType(VOID, [I64P, I64P, I64P, I64P])

Driver = Callable[..., None]


@cache
def serial() -> Driver:
    """``serial(entry, block, items)``."""
    module = ir.Module()
    function = ir.Function(module, ir.FunctionType(VOID, [I64, I64P, I64]), "serial")
    builder = ir.IRBuilder(function.append_basic_block())
    entry, block, items = function.args
    _each(builder, entry, block, I64(0), items)
    builder.ret_void()
    return ctypes.CFUNCTYPE(None, ctypes.c_int64, ctypes.c_char_p, ctypes.c_int64)(address(module, "serial"))


@cache
def parallel() -> Driver:
    """``parallel(entry, block, items, count)``; Numba must have started its threads."""
    module = ir.Module()
    part = _part(module)
    function = ir.Function(module, ir.FunctionType(VOID, [I64, I64P, I64, I32]), "parallel")
    builder = ir.IRBuilder(function.append_basic_block())
    entry, block, items, count = function.args
    before = builder.call(ir.Function(module, ir.FunctionType(I32, []), "get_num_threads"), [])
    arguments = [
        builder.bitcast(part, I8P),
        _array(builder, [I64(0)]),  # args: a pointer that advances by one with each item, so its value is the item
        _array(builder, [items]),
        _array(builder, [I64(1)]),
        _array(builder, [entry, builder.ptrtoint(block, I64)]),
        I64(0),
        I64(1),
        count,
    ]
    kind = ir.FunctionType(VOID, [argument.type for argument in arguments])
    builder.call(ir.Function(module, kind, "numba_parallel_for"), arguments)
    builder.call(ir.Function(module, ir.FunctionType(VOID, [I32]), "set_num_threads"), [before])
    builder.ret_void()
    types = (ctypes.c_int64, ctypes.c_char_p, ctypes.c_int64, ctypes.c_int32)
    return ctypes.CFUNCTYPE(None, *types)(address(module, "parallel"))


def _part(module: Any) -> Any:
    """What one thread runs: items args[0], …, args[0] + dims[0] − 1 of the kernel data[0] with the block data[1]."""
    function = ir.Function(module, PART, "part")
    builder = ir.IRBuilder(function.append_basic_block())
    args, dims, _, data = function.args
    first, count, entry, block = (
        builder.load(builder.gep(array, [I64(place)])) for array, place in ((args, 0), (dims, 0), (data, 0), (data, 1))
    )
    _each(builder, entry, builder.inttoptr(block, I64P), first, builder.add(first, count))
    builder.ret_void()
    return function


def _each(builder: Any, entry: Any, block: Any, first: Any, last: Any) -> None:
    """Call the kernel for every item from ``first`` to ``last``."""
    before, body, after = (builder.block, *(builder.append_basic_block() for _ in range(2)))
    kernel = builder.inttoptr(entry, KERNEL.as_pointer())
    builder.cbranch(builder.icmp_signed("<", first, last), body, after)
    builder.position_at_end(body)
    item = builder.phi(I64)
    item.add_incoming(first, before)
    builder.call(kernel, [block, item])
    following = builder.add(item, I64(1))
    item.add_incoming(following, body)
    builder.cbranch(builder.icmp_signed("<", following, last), body, after)
    builder.position_at_end(after)


def _array(builder: Any, values: list[Any]) -> Any:
    space = builder.alloca(I64, len(values))
    for place, value in enumerate(values):
        builder.store(value, builder.gep(space, [I64(place)]))
    return space


# code in memory

_engines: list[Any] = []  # code lives as long as the process


def address(module: Any, name: str) -> int:
    """Where the function ``name`` of an LLVM module begins, compiled."""
    with compiling:
        _initialise()
        engine = _engine(llvm.parse_assembly(str(module)))
        return int(engine.get_function_address(name))


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

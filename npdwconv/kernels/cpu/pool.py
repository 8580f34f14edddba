"""Threads of our own that share the items of a launch.

Whoever launches opens a *ticket*, one word that holds the launch's number and the range of chunks of items not yet
taken, and takes chunks from its front; helpers take from its back, so neighbouring items stay with one thread. A chunk
is taken by exchanging the ticket for a shorter one, which fails if anything about it has changed: a helper that comes
late, however late, takes nothing. What a helper does not need it does not look at: a line of memory that two cores
write and read costs a launch microseconds. The launch waits for chunks that were taken, never for a thread: where the
machine is busy with something else, it does all the work itself. It waits in compiled code, where no signal's handler
can make it give up and free what helpers still use. Helpers look for the next launch for a moment, then sleep.

A pool of OpenMP, which Numba's own parallel loops use, waits at a barrier for every thread: beside another busy process
each launch may wait until the scheduler gives a thread its turn (docs/performance.md).
"""

from __future__ import annotations

import atexit
import ctypes
import os
import struct
import sys
import threading
from collections.abc import Sequence
from contextlib import suppress
from functools import cache
from typing import Any, NamedTuple

import numpy as np
from llvmlite import ir
from numba.core import cgutils, types
from numba.extending import intrinsic

from npdwconv.kernels.cpu.compilation import Kernel, compiled
from npdwconv.kernels.cpu.simd import I64
from npdwconv.kernels.cpu.spec import Spec

BITS = 18  # of a chunk's number in a ticket: launch number, first chunk left, one past the last chunk left
MASK = (1 << BITS) - 1
PATIENCE = 100_000  # times that a helper looks for work before it sleeps: a millisecond, more than Python takes between
POLITE = 4000  # times that a launch looks whether helpers are done before it offers its core to others
WAKING = 2_000_000  # multiply-adds that are worth waking a helper for: 20 microseconds, most of them the caller's
FAREWELL = 1.0  # seconds that the interpreter's end waits for a helper

# bytes of the shared state: the ticket and what goes with it in one cache line, which a helper looks at, then DONE's
TICKET, ENTRY, BLOCK, ITEMS, CHUNK, COUNT, DONE = 0, 8, 16, 24, 32, 40, 64
HEADER = ("entry", "items", "chunk", "chunks", "count", "arrays", "offset")  # what precedes a kernel's own block
WORD = 8
HEADER_BYTES = WORD * len(HEADER)
AT_ENTRY, AT_ITEMS, AT_CHUNK, AT_CHUNKS, AT_COUNT = range(5)
_SPEC = Spec(HEADER, ())
_header = struct.Struct(f"{len(HEADER)}q").pack


def _pointer(builder: Any, address: Any) -> Any:
    return builder.inttoptr(address, I64.as_pointer())


@intrinsic
def _read(typing: Any, address: Any) -> Any:
    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.load_atomic(_pointer(builder, arguments[0]), "seq_cst", 8)

    return types.int64(types.int64), generate


@intrinsic
def _write(typing: Any, address: Any, value: Any) -> Any:
    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        builder.store_atomic(arguments[1], _pointer(builder, arguments[0]), "seq_cst", 8)
        return context.get_dummy_value()

    return types.none(types.int64, types.int64), generate


@intrinsic
def _note(typing: Any, address: Any, value: Any) -> Any:
    """Write what is read only by who sees a later `_write`."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        builder.store_atomic(arguments[1], _pointer(builder, arguments[0]), "release", 8)
        return context.get_dummy_value()

    return types.none(types.int64, types.int64), generate


@intrinsic
def _word(typing: Any, address: Any, place: Any) -> Any:
    """The word at ``place`` of a block."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.load(builder.gep(_pointer(builder, arguments[0]), [arguments[1]]))

    return types.int64(types.int64, types.int64), generate


@intrinsic
def _add(typing: Any, address: Any, value: Any) -> Any:
    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.atomic_rmw("add", _pointer(builder, arguments[0]), arguments[1], "seq_cst")

    return types.int64(types.int64, types.int64), generate


@intrinsic
def _exchanged(typing: Any, address: Any, old: Any, new: Any) -> Any:
    """Put ``new`` where ``old`` is; False where something else is."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        place = _pointer(builder, arguments[0])
        return builder.extract_value(builder.cmpxchg(place, arguments[1], arguments[2], "seq_cst", "seq_cst"), 1)

    return types.boolean(types.int64, types.int64, types.int64), generate


@intrinsic
def _pause(typing: Any) -> Any:
    """Tell the processor that this is a waiting loop."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        if "x86_64" in builder.module.triple:
            kind = ir.FunctionType(ir.VoidType(), [])
            name = "llvm.x86.sse2.pause"
            builder.call(builder.module.globals.get(name) or ir.Function(builder.module, kind, name), [])
        return context.get_dummy_value()

    return types.none(), generate


@intrinsic
def _offer(typing: Any) -> Any:
    """Let another thread have the core."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        if sys.platform != "win32":
            kind = ir.FunctionType(ir.IntType(32), [])
            builder.call(cgutils.get_or_insert_function(builder.module, kind, "sched_yield"), [])
        return context.get_dummy_value()

    return types.none(), generate


@intrinsic
def call(typing: Any, entry: Any, block: Any, item: Any) -> Any:
    """Run the kernel at ``entry``."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        kind = ir.FunctionType(ir.IntType(8).as_pointer(), [I64.as_pointer(), I64])
        function = builder.inttoptr(arguments[0], kind.as_pointer())
        builder.call(function, [_pointer(builder, arguments[1]), arguments[2]])
        return context.get_dummy_value()

    return types.none(types.int64, types.int64, types.int64), generate


@intrinsic
def _own_block(typing: Any, task: Any) -> Any:
    """The address of what follows the header."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.add(builder.ptrtoint(arguments[0], I64), I64(HEADER_BYTES))

    return types.int64(task), generate


def _found(task: Any) -> Any:
    """The block, in place of its first ``arrays`` words that are addresses of objects those of their data."""
    block = _own_block(task)
    for i in range(task.arrays):
        holder = _word(block, i)
        if holder != 0:
            _note(block + 8 * i, _word(holder + task.offset, 0))
    return block


found = compiled(_found)


def _serial(task: Any, _: Any) -> None:
    block = found(task)
    for item in range(task.items):
        call(task.entry, block, item)


def _shared(state: Any, entry: Any, block: Any, items: Any, chunk: Any, chunks: Any, count: Any) -> None:
    """Open a ticket, take chunks from its front, and wait for those that others took."""
    closed = ((_read(state + TICKET) >> (2 * BITS)) + 1) << (2 * BITS)
    _write(state + TICKET, closed)
    _note(state + ENTRY, entry)
    _note(state + BLOCK, block)
    _note(state + ITEMS, items)
    _note(state + CHUNK, chunk)
    _note(state + COUNT, count)
    _note(state + DONE, 0)
    _write(state + TICKET, closed + chunks)
    while True:
        ticket = _read(state + TICKET)
        first, last = (ticket >> BITS) & MASK, ticket & MASK
        if first >= last:
            break
        if _exchanged(state + TICKET, ticket, ticket + (1 << BITS)):
            for item in range(first * chunk, min((first + 1) * chunk, items)):
                call(entry, block, item)
            _add(state + DONE, 1)
    looked = 0
    while _read(state + DONE) < chunks:
        looked += 1
        if looked < POLITE:
            _pause()
        else:
            _offer()


shared = compiled(_shared)


def _lead(task: Any, state: Any) -> None:
    """Run a launch with the helpers."""
    shared(state, task.entry, found(task), task.items, task.chunk, task.chunks, task.count)


def _lead_all(task: Any, state: Any) -> None:
    """Run the launches whose blocks' addresses follow the header, one after another; small ones alone."""
    addresses = _own_block(task)
    for step in range(task.items):
        block = _word(addresses, step)
        entry, items, own = _word(block, AT_ENTRY), _word(block, AT_ITEMS), block + HEADER_BYTES
        count = min(_word(block, AT_COUNT), task.count)
        if count > 1:
            shared(state, entry, own, items, _word(block, AT_CHUNK), _word(block, AT_CHUNKS), count)
        else:
            for item in range(items):
                call(entry, own, item)


def _help(task: Any, worker: Any) -> None:
    """Take chunks from the back of tickets, until there have been none for a while; ``entry`` is the shared state's."""
    state, idle = task.entry, 0
    while idle < task.items:
        ticket = _read(state + TICKET)
        first, last = (ticket >> BITS) & MASK, ticket & MASK
        if first < last and worker < _read(state + COUNT):
            entry, block, items = _read(state + ENTRY), _read(state + BLOCK), _read(state + ITEMS)
            chunk = _read(state + CHUNK)
            if _exchanged(state + TICKET, ticket, ticket - 1):
                for item in range((last - 1) * chunk, min(last * chunk, items)):
                    call(entry, block, item)
                _add(state + DONE, 1)
                idle = 0
        else:
            _pause()
            idle += 1


class _Helper(threading.Thread):
    """A thread that helps with launches of more than ``number`` threads."""

    def __init__(self, number: int, help_: Any, state: int) -> None:
        super().__init__(name=f"npdwconv-{number}", daemon=True)
        self.asleep, self.dismissed, self.bell = False, False, threading.Lock()
        self.bell.acquire()
        self._number, self._help = number, help_
        self._block = _header(state, PATIENCE, 0, 0, 0, 0, 0)

    def run(self) -> None:
        while not self.dismissed:
            self._help(self._block, self._number)
            self.asleep = True
            self.bell.acquire()

    def wake(self) -> None:
        """Ring the bell once for a helper that sleeps."""
        if self.asleep:
            self.asleep = False
            self.bell.release()

    def dismiss(self) -> None:
        """Let it end, whether it works, sleeps or is about to."""
        self.dismissed = True
        with suppress(RuntimeError):  # the bell has been rung already
            self.bell.release()


class _Pool:
    """The helpers, and the state that they share with the one launch that is open."""

    def __init__(self) -> None:
        self.state = np.zeros(64, np.int64)
        self.place = -(-self.state.ctypes.data // 64) * 64  # a cache line's beginning
        self.helpers: list[_Helper] = []
        self.free = threading.Lock()
        self.work = 0  # since sleeping helpers were last woken

    def gather(self, count: int, work: int) -> None:
        """Have ``count`` threads, the caller's among them; fewer where the system gives no more. A little work alone
        wakes none that sleep, but a series of launches does.
        """
        if len(self.helpers) < count - 1:
            self._hire(count - 1)
        self.work += work
        if self.work >= WAKING:
            self.work = 0
            for helper in self.helpers[: count - 1]:
                helper.wake()

    def _hire(self, count: int) -> None:
        with suppress(RuntimeError):  # a thread cannot be started
            for number in range(len(self.helpers) + 1, count + 1):
                helper = _Helper(number, functions().help, self.place)
                helper.start()
                self.helpers.append(helper)

    def close(self) -> None:
        """At the interpreter's end: launches that still come are serial, and no thread runs in code that goes away."""
        self.free.acquire(timeout=FAREWELL)
        for helper in self.helpers:
            helper.dismiss()
        for helper in self.helpers:
            helper.join(FAREWELL)


_pool = _Pool()


def _renew() -> None:
    """In a forked child there are no helpers, and whoever held the pool is not here either."""
    global _pool
    _pool = _Pool()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_renew)
atexit.register(lambda: _pool.close())


def run(launch: bytes, count: int, work: int = WAKING) -> None:
    """Run a launch, `sealed` and with its block, by ``count`` threads where no other launch has them.

    ``work`` is its number of multiply-adds.
    """
    pool = _pool
    if count > 1 and pool.free.acquire(blocking=False):
        try:
            pool.gather(count, work)
            functions().lead(launch, pool.place)
        finally:
            pool.free.release()
    else:
        functions().serial(launch, 0)


def run_all(launches: Sequence[bytes], count: int) -> None:
    """Run launches whose blocks hold addresses of data, one after another, with as little as possible between them."""
    run_series(struct.pack(f"{len(launches)}q", *map(_address, launches)), count)


def run_series(addresses: bytes, count: int) -> None:
    """`run_all` for launches that lie at these addresses, a word each."""
    pool, number = _pool, len(addresses) // WORD
    if count > 1 and pool.free.acquire(blocking=False):
        try:
            pool.gather(count, WAKING)
            functions().lead_all(_header(0, number, 0, 0, count, 0, 0) + addresses, pool.place)
        finally:
            pool.free.release()
    else:
        functions().lead_all(_header(0, number, 0, 0, 1, 0, 0) + addresses, 0)


def sealed(entry: int, items: int, count: int, arrays: int = 0, offset: int = 0) -> bytes:
    """What precedes the block of a launch of the kernel at ``entry``.

    The first ``arrays`` words of the block are the addresses of Python objects (or 0), which hold the address that the
    kernel wants at ``offset``. They are replaced in the block: it must be a fresh one.
    """
    chunk = -(-items // MASK) or 1
    return _header(entry, items, chunk, -(-items // chunk), count, arrays, offset)


def _address(block: bytes) -> int:
    return ctypes.cast(ctypes.c_char_p(block), ctypes.c_void_p).value or 0


class _Functions(NamedTuple):
    """The loops over items as C functions of (block, number), which run without Python's lock."""

    serial: Any
    lead: Any
    lead_all: Any
    help: Any


@cache
def functions() -> _Functions:
    """`_Functions`, compiled."""
    kind = ctypes.CFUNCTYPE(None, ctypes.c_char_p, ctypes.c_int64)
    return _Functions(*(kind(Kernel(function).entry(_SPEC)) for function in (_serial, _lead, _lead_all, _help)))

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
import threading
from contextlib import suppress
from functools import cache
from typing import Any

import numpy as np

from npdwconv.kernels.cpu.compilation import Kernel, inlined
from npdwconv.kernels.cpu.spec import Spec
from npdwconv.kernels.cpu.words import add as add_to
from npdwconv.kernels.cpu.words import address_of, call, exchanged, note, offer, pause, read, word, write

BITS = 18  # of a chunk's number in a ticket: launch number, first chunk left, one past the last chunk left
MASK = (1 << BITS) - 1
PATIENCE = 100_000  # times that a helper looks for work before it sleeps: a millisecond, more than Python takes between
POLITE = 4000  # times that a launch looks whether helpers are done before it offers its core to others
WAKING = 2_000_000  # multiply-adds that are worth waking a helper for: 20 microseconds, most of them the caller's
FAREWELL = 1.0  # seconds that the interpreter's end waits for a helper

# bytes of the shared state: the ticket and what goes with it in one cache line, which a helper looks at, then DONE's
TICKET, ENTRY, BLOCK, ITEMS, CHUNK, COUNT, DONE = 0, 8, 16, 24, 32, 40, 64
HEADER = ("entry", "items", "chunk", "chunks", "most", "bytes", "pointers")  # what precedes a kernel's own block
WORD = 8
HEADER_BYTES = WORD * len(HEADER)
AT_ENTRY, AT_ITEMS, AT_CHUNK, AT_CHUNKS, AT_MOST, AT_BYTES, AT_POINTERS = range(len(HEADER))
PLACES = 10  # arrays of a program at most
NOWHERE = -1  # the place of an array that is absent
AT_ARRAYS = 1
AT_SIZES = 4 + PLACES
PROGRAM = ("count", *(f"array{i}" for i in range(PLACES)), "launches", "offset", "result")  # then sizes, launches
AT_FLAGS = 6  # word of an array object, counted from its data's address (NumPy's ndarraytypes.h)
READABLE, WRITABLE = 0x101, 0x501  # flags: one run of memory and aligned; and writeable
_header = struct.Struct(f"{len(HEADER)}q").pack


def _shared(state: Any, entry: Any, block: Any, items: Any, chunk: Any, chunks: Any, count: Any) -> None:
    """Open a ticket, take chunks from its front, and wait for those that others took."""
    closed = ((read(state + TICKET) >> (2 * BITS)) + 1) << (2 * BITS)
    write(state + TICKET, closed)
    note(state + ENTRY, entry)
    note(state + BLOCK, block)
    note(state + ITEMS, items)
    note(state + CHUNK, chunk)
    note(state + COUNT, count)
    note(state + DONE, 0)
    write(state + TICKET, closed + chunks)
    while True:
        ticket = read(state + TICKET)
        first, last = (ticket >> BITS) & MASK, ticket & MASK
        if first >= last:
            break
        if exchanged(state + TICKET, ticket, ticket + (1 << BITS)):
            for item in range(first * chunk, min((first + 1) * chunk, items)):
                call(entry, block, item)
            add_to(state + DONE, 1)
    looked = 0
    while read(state + DONE) < chunks:
        looked += 1
        if looked < POLITE:
            pause()
        else:
            offer()


shared = inlined(_shared)


def _launch(state: Any, count: Any, header: Any) -> None:
    """Run a launch, by ``count`` threads where it is worth it and there are helpers."""
    entry, items, block = word(header, AT_ENTRY), word(header, AT_ITEMS), header + HEADER_BYTES
    count = min(count, word(header, AT_MOST))
    if count > 1 and state != 0:
        shared(state, entry, block, items, word(header, AT_CHUNK), word(header, AT_CHUNKS), count)
    else:
        for item in range(items):
            call(entry, block, item)


launch = inlined(_launch)


def _series(task: Any, state: Any) -> Any:
    """Run the launches at the addresses that follow the fields."""
    addresses = address_of(task) + 2 * WORD
    for step in range(task.launches):
        launch(state, task.count, word(addresses, step))
    return 1


def _fits(task: Any, block: Any) -> Any:
    """Whether every array is one run of memory, and the result's is its own and may be written."""
    target = word(word(block, AT_ARRAYS + task.result) + task.offset, 0)
    end = target + word(block, AT_SIZES + task.result)
    for i in range(PLACES):
        holder = word(block, AT_ARRAYS + i)
        if holder != 0:
            place, needed = word(holder + task.offset, 0), WRITABLE if i == task.result else READABLE
            if word(holder + task.offset, AT_FLAGS) & needed != needed:
                return False
            if i != task.result and place < end and target < place + word(block, AT_SIZES + i):
                return False
    return True


fits = inlined(_fits)


def _program(task: Any, state: Any) -> Any:
    """Run launches whose blocks name their arrays by place; 0, and nothing done, where the arrays do not fit.

    The addresses are put into the blocks: these must be fresh ones.
    """
    block = address_of(task)
    if task.result >= 0 and not fits(task, block):
        return 0
    for i in range(AT_ARRAYS, AT_ARRAYS + PLACES):
        holder = word(block, i)
        if holder != 0 and task.offset != 0:
            note(block + WORD * i, word(holder + task.offset, 0))
    header = block + WORD * (AT_SIZES + PLACES)
    for _ in range(task.launches):
        own = header + HEADER_BYTES
        for i in range(word(header, AT_POINTERS)):
            place = word(own, i)
            note(own + WORD * i, word(block, AT_ARRAYS + place) if place != NOWHERE else 0)
        launch(state, task.count, header)
        header += word(header, AT_BYTES)
    return 1


def _help(task: Any, worker: Any) -> None:
    """Take chunks from the back of tickets, until there have been none for a while."""
    state, idle = task.state, 0
    while idle < task.patience:
        ticket = read(state + TICKET)
        first, last = (ticket >> BITS) & MASK, ticket & MASK
        if first < last and worker < read(state + COUNT):
            entry, block, items = read(state + ENTRY), read(state + BLOCK), read(state + ITEMS)
            chunk = read(state + CHUNK)
            if exchanged(state + TICKET, ticket, ticket - 1):
                for item in range((last - 1) * chunk, min(last * chunk, items)):
                    call(entry, block, item)
                add_to(state + DONE, 1)
                idle = 0
        else:
            pause()
            idle += 1


class _Helper(threading.Thread):
    """A thread that helps with launches of more than ``number`` threads."""

    def __init__(self, number: int, help_: Any, state: int) -> None:
        super().__init__(name=f"npdwconv-{number}", daemon=True)
        self.asleep, self.dismissed, self.bell = False, False, threading.Lock()
        self.bell.acquire()
        self._number, self._help = number, help_
        self._block = struct.pack("2q", state, PATIENCE)

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
                helper = _Helper(number, _helping(), self.place)
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


def run(function: Any, block: bytes, count: int, work: int = WAKING) -> bool:
    """Call `program`, or its like, with helpers where ``count`` threads are wanted and no other launch has them.

    ``work`` is its number of multiply-adds.
    """
    pool = _pool
    if count > 1 and pool.free.acquire(blocking=False):
        try:
            pool.gather(count, work)
            return bool(function(block, pool.place))
        finally:
            pool.free.release()
    return bool(function(block, 0))


def run_series(addresses: bytes, count: int) -> None:
    """Run the launches that lie at these addresses, a word each, one after another."""
    run(_running_series(), struct.pack("2q", count, len(addresses) // WORD) + addresses, count)


def sealed(entry: int, items: int, most: int, block: bytes, pointers: int = 0) -> bytes:
    """A launch of the kernel at ``entry``, by ``most`` threads, with its block.

    The first ``pointers`` words of the block are not addresses, but places among a program's arrays.
    """
    chunk = -(-items // MASK) or 1
    return _header(entry, items, chunk, -(-items // chunk), most, HEADER_BYTES + len(block), pointers) + block


def _entry(function: Any, fields: tuple[str, ...]) -> Any:
    """A C function of (block, state), which runs without Python's lock."""
    kind = ctypes.CFUNCTYPE(ctypes.c_int64, ctypes.c_char_p, ctypes.c_int64)
    return kind(Kernel(function).entry(Spec(fields, ())))


@cache
def program() -> Any:
    """What runs a program, compiled."""
    return _entry(_program, PROGRAM)


@cache
def _running_series() -> Any:
    return _entry(_series, ("count", "launches"))


@cache
def _helping() -> Any:
    return _entry(_help, ("state", "patience"))

"""Memory room: new arrays where their fellows lie, in the host's memory or on a device, and copies between them."""

from __future__ import annotations

import sys
from collections import deque
from collections.abc import Iterable
from ctypes import addressof, c_byte
from itertools import cycle
from math import prod
from typing import Any

import numpy as np

from npdwconv.layouts import Array

LINE, PAGE = 64, 4096  # bytes of a cache line and of a page
LARGE = 1 << 16  # bytes from which it matters where in its page an array begins
Block = tuple[Array, int]  # memory, and where results begin in it: the same lines each time, which a core has at hand
KEPT = 48_000_000  # bytes, at most, of the memory of earlier results that is kept
SAME = 4  # results of one size whose memory is kept
_kept: dict[int, deque[Block]] = {}  # by size, the one asked for last at the end
_places = cycle(range(17 * LINE, PAGE, 17 * LINE))  # a load is held up by a store as far into another page


def empty(like: Any, shape: tuple[int, ...], dtype: Any = None) -> Array:
    """A new array of ``shape`` where ``like`` lies, of its dtype unless another is named."""
    if type(like) is np.ndarray or isinstance(like, np.ndarray):
        kind = like.dtype if dtype is None else np.dtype(dtype)
        size = prod(shape) * kind.itemsize
        return np.empty(shape, kind) if size < LARGE else _placed(shape, kind, size)
    made: Array = like.empty(shape, dtype)
    return made


def _placed(shape: tuple[int, ...], kind: np.dtype[Any], size: int) -> Array:
    """An array of ``size`` bytes that begins with a cache line, and not as far into a page as the one before.

    It lies where an earlier one lay that nobody holds any more, if there is one: the first write to each new page waits
    for the system to clear it, which for a large result takes longer than the convolution does.
    """
    blocks = _kept.pop(size, None)  # which no other thread sees meanwhile
    block = None if blocks is None else _idle(blocks, _ALONE)
    if block is None:
        blocks = deque(blocks or (), min(SAME, KEPT // size) if _EXACT else 0)
        _forget(KEPT - size * (len(blocks) + 1))
        memory = np.empty(size + PAGE, np.uint8)
        block = memory, (next(_places) - addressof(c_byte.from_buffer(memory.data))) % PAGE
        blocks.append(block)
    array: Array = np.ndarray(shape, kind, *block)
    if blocks:
        _kept[size] = blocks  # not before the array holds its block
    return array


def _idle(blocks: Iterable[Block], alone: int) -> Block | None:
    """A block whose memory is referred to ``alone`` times, no more than here."""
    for memory, start in blocks:
        if sys.getrefcount(memory) == alone:
            return memory, start
    return None


def _forget(room: int) -> None:
    """Keep no more than ``room`` bytes: what was asked for longest ago goes first."""
    for size in reversed(list(_kept)):
        room -= size * len(_kept.get(size, ()))
        if room < 0:
            _kept.pop(size, None)


# of memory that nobody holds but this module
_ALONE = next(count for count in range(10) if _idle([(np.empty(1), 0)], count))
_EXACT = getattr(sys, "_is_gil_enabled", lambda: True)()  # counts are, where threads share the interpreter's lock


def zeros(like: Any, shape: tuple[int, ...]) -> Array:
    """A new array of zeros where ``like`` lies, of its dtype."""
    if isinstance(like, np.ndarray):
        return np.zeros(shape, dtype=like.dtype)
    made: Array = like.empty(shape).clear()
    return made


def joined(first: Any, second: Any) -> Array:
    """Two arrays one after the other along the last axis."""
    if isinstance(first, np.ndarray):
        return np.concatenate([first, second], axis=-1)
    length = first.shape[-1]
    whole = first.empty((*first.shape[:-1], length + second.shape[-1]))
    whole[..., :length].assign(first)
    whole[..., length:].assign(second)
    made: Array = whole
    return made


@np.errstate(all="ignore")
def dense(array: Any, dtype: Any = None) -> Array:
    """A contiguous copy, in another dtype where one is named."""
    if isinstance(array, np.ndarray):
        return np.array(array, dtype=dtype, order="C")
    made: Array = array.empty(array.shape, dtype).assign(array)
    return made


@np.errstate(all="ignore")
def add(total: Any, part: Any) -> None:
    """total += part."""
    if isinstance(total, np.ndarray):
        total += part
    else:
        total.assign(part, adds=True)

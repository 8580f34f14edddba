"""The words of `words` as plain Python, for the CUDA simulator: an address is an array with an index."""

from __future__ import annotations

from typing import Any

import numpy as np

from npdwconv.kernels.cuda.words import MOST_FACTORS, WIDTHS, Word, real_of, registers

Address = tuple[Any, int]


def at(memory: Any, index: int) -> Address:
    return memory.elements, int(index)


def step(address: Address, index: int) -> Address:
    return address[0], address[1] + int(index)


def fma(a: Any, b: Any, c: Any) -> Any:
    return a * b + c


def dot(total: Any, *factors: Any) -> Any:
    half = len(factors) // 2
    for a, b in zip(factors[:half], factors[half:], strict=True):
        total = a * b + total
    return total


def within(index: int, extent: int) -> bool:
    return bool(0 <= index < extent)


def mark(mask: int, place: int, flag: bool) -> int:
    return mask | int(flag) << place


def marked(mask: int, place: int) -> bool:
    return bool(mask >> place & 1)


def div(a: int, b: int) -> int:
    return int(a) // int(b)


def rem(a: int, b: int) -> int:
    return int(a) % int(b)


def shared_get(array: Any, index: int) -> Any:
    return array[int(index)]


def shared_get4(array: Any, index: int) -> tuple[Any, Any, Any, Any]:
    first = int(index)
    return array[first], array[first + 1], array[first + 2], array[first + 3]


def shared_set(array: Any, index: int, value: Any) -> None:
    array[int(index)] = value


def shared_set4(array: Any, index: int, *values: Any) -> None:
    for place, value in enumerate(values, int(index)):
        array[place] = value


def finite(value: Any) -> bool:
    return bool(np.isfinite(value))


def plain() -> dict[str, Word]:
    """The words that touch no memory."""
    return {
        "fma": fma,
        "within": within,
        "mark": mark,
        "marked": marked,
        **{f"dot{count}": dot for count in range(1, MOST_FACTORS + 1)},
        "div": div,
        "rem": rem,
        "finite": finite,
        "get": shared_get,
        "get4": shared_get4,
        "put": shared_set,
        "put4": shared_set4,
    }


def memory(storage: str) -> dict[str, Word]:
    """The words for memory that holds ``storage``."""
    words: dict[str, Word] = {"at": at, "step": step}
    for width in WIDTHS[storage]:
        suffix = "" if width == 1 else str(width)
        words[f"load{suffix}"] = _load(real_of(storage), width)
        words[f"hold{suffix}"], words[f"held{suffix}"] = _hold(words[f"load{suffix}"], storage, width), _held
        words[f"read{suffix}"] = words[f"peek{suffix}"] = _read(real_of(storage), width)
        words[f"store{suffix}"] = _store(width)
    return words


def _load(real: Any, width: int) -> Word:
    read, zeros = _read(real, width), real(0) if width == 1 else (real(0),) * width

    def load(address: Address, offset: int, inside: bool) -> Any:
        return read(address, offset) if inside else zeros

    return load


def _hold(load: Word, storage: str, width: int) -> Word:
    count = registers(storage, width)

    def hold(address: Address, offset: int, inside: bool) -> Any:
        values = load(address, offset, inside)
        values = (values,) if width == 1 else values
        found = tuple(values[place::count] for place in range(count))
        return found[0] if count == 1 else found

    return hold


def _held(*words: Any) -> Any:
    values = tuple(value for group in zip(*words, strict=True) for value in group)
    return values[0] if len(values) == 1 else values


def _read(real: Any, width: int) -> Word:
    def read(address: Address, offset: int) -> Any:
        array, first = address[0], address[1] + offset
        if first < 0 or first + width > array.shape[0]:
            raise IndexError(f"{width} elements from {first} are read, of {array.shape[0]}")
        return real(array[first]) if width == 1 else tuple(real(v) for v in array[first : first + width])

    return read


def _store(width: int) -> Word:
    def store(address: Address, offset: int, *values: Any) -> None:
        array, first = address[0], address[1] + offset
        if first < 0 or first + width > array.shape[0]:
            raise IndexError(f"{width} elements from {first} are written, of {array.shape[0]}")
        for place, value in enumerate(values):
            array[first + place] = value

    return store

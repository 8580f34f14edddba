"""Parsing room: options as users write them -> ints and pairs per axis. No arrays."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches
from numbers import Integral
from typing import Any

from npdwconv.errors import OptionError

PADDING_NAMES = ("valid", "same", "same_lower", "causal")
PADDING_MODES = ("zeros", "reflect", "replicate", "circular")

Pads = tuple[tuple[int, int], ...]


def integer(name: str, value: Any, *, least: int) -> int:
    """An int (or NumPy integer) of at least ``least``; ``True`` and ``2.0`` are not ints."""
    if isinstance(value, bool) or not isinstance(value, Integral):
        raise OptionError(f"{name} is {value!r} ({type(value).__name__}); needed an int of at least {least}")
    if value < least:
        raise OptionError(f"{name} is {value}; needed an int of at least {least}")
    return int(value)


def per_axis(name: str, value: Any, rank: int, *, least: int = 1) -> tuple[int, ...]:
    """An int for every spatial axis, or one int per axis, as a tuple of ``rank`` ints."""
    if not isinstance(value, (tuple, list)):
        return (integer(name, value, least=least),) * rank
    if len(value) != rank:
        raise OptionError(
            f"{name} is {value!r} with {len(value)} entries; needed one int, or one per spatial axis ({rank})"
        )
    return tuple(integer(f"{name}[{axis}]", entry, least=least) for axis, entry in enumerate(value))


def padding_form(value: Any, rank: int) -> str | Pads:
    """A name out of `PADDING_NAMES`, or one ``(low, high)`` pair per spatial axis."""
    if isinstance(value, str):
        return one_of("padding", value, PADDING_NAMES)
    if not isinstance(value, (tuple, list)):
        return ((integer("padding", value, least=0),) * 2,) * rank
    if len(value) != rank:
        raise OptionError(f"padding is {value!r} with {len(value)} entries; {_padding_needed(rank)}")
    return tuple(_pair(axis, entry) for axis, entry in enumerate(value))


def one_of(name: str, value: Any, choices: Iterable[str]) -> str:
    """``value``, which must be one of ``choices``; a near miss is pointed out."""
    known = tuple(choices)
    if isinstance(value, str) and value in known:
        return value
    near = get_close_matches(value.lower(), known, n=1) if isinstance(value, str) else []
    hint = f" (did you mean {near[0]!r}?)" if near else ""
    raise OptionError(f"{name} is {value!r}; needed one of {', '.join(map(repr, known))}{hint}")


def needed_names(needs: Any, names: tuple[str, ...]) -> frozenset[str]:
    """``needs`` as a set: one name, or an iterable of names out of ``names``."""
    try:
        listed = (needs,) if isinstance(needs, str) else tuple(needs)
    except TypeError:
        raise OptionError(f"needs is {needs!r}; needed one or more of {', '.join(map(repr, names))}") from None
    return frozenset(one_of("needs", name, names) for name in listed)


def _pair(axis: int, entry: Any) -> tuple[int, int]:
    if not isinstance(entry, (tuple, list)):
        return (integer(f"padding[{axis}]", entry, least=0),) * 2
    if len(entry) != 2:
        raise OptionError(
            f"padding[{axis}] is {entry!r} with {len(entry)} entries; needed an int or a (low, high) pair"
        )
    low, high = (integer(f"padding[{axis}][{side}]", width, least=0) for side, width in enumerate(entry))
    return low, high


def _padding_needed(rank: int) -> str:
    if rank == 1:
        return "needed an int, or in 1-D one entry: a (low, high) pair is written ((low, high),)"
    return (
        f"needed an int, one int or (low, high) pair per spatial axis ({rank}), or a name: {', '.join(PADDING_NAMES)}"
    )

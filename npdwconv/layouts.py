"""Layout room: where an array's axes stand, spelled once, by the letters of the field."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]
Function = TypeVar("Function", bound=Callable[..., Any])

LAYOUTS = ("channels_first", "channels_last")


@dataclass(frozen=True)
class Letters:
    """The letters of a rank: input extent, kernel extent, output extent."""

    spatial: tuple[str, ...]
    kernel: tuple[str, ...]
    out: tuple[str, ...]


LETTERS = {
    1: Letters(("W",), ("S",), ("Q",)),
    2: Letters(("H", "W"), ("R", "S"), ("P", "Q")),
    3: Letters(("D", "H", "W"), ("T", "R", "S"), ("O", "P", "Q")),
}


def shape_of(layout: str, batch: int, channels: int, spatial: tuple[int, ...]) -> tuple[int, ...]:
    """The shape of an activation array in ``layout``."""
    return (batch, channels, *spatial) if layout == "channels_first" else (batch, *spatial, channels)


def split_shape(layout: str, shape: tuple[int, ...]) -> tuple[int, int, tuple[int, ...]]:
    """``(batch, channels, spatial extents)`` of an activation array's shape."""
    if layout == "channels_first":
        return shape[0], shape[1], shape[2:]
    return shape[0], shape[-1], shape[1:-1]


def channels_second(array: Array, layout: str) -> Array:
    """A view (N, C, *spatial) of an activation array in either layout."""
    return array if layout == "channels_first" else np.moveaxis(array, -1, 1)


def grouped(array: Array, layout: str, groups: int) -> Array:
    """A view (N, groups, channels per group, *spatial) of an activation array in either layout."""
    view = channels_second(array, layout)
    each = view.shape[1] // groups if groups else 1
    return view.reshape(view.shape[0], groups, each, *view.shape[2:])


def per_channel(vector: Array, groups: int, rank: int) -> Array:
    """A bias (C·M,) as (C, M, 1, …), to be added to what `grouped` returns."""
    each = vector.shape[0] // groups if groups else 1
    return vector.reshape(groups, each, *(1,) * rank)


def axes_text(layout: str, channels: str, spatial: tuple[str, ...]) -> str:
    """A shape by its letters, for messages and docstrings: ``(N, C, H, W)``."""
    middle = ", ".join(spatial)
    return f"(N, {channels}, {middle})" if layout == "channels_first" else f"(N, {middle}, {channels})"


def spelled(function: Function, name: str, rank: int) -> Function:
    """``function`` as the public operator ``name`` of one rank, its docstring's letters filled in."""
    letters = LETTERS[rank]
    function.__name__ = function.__qualname__ = name
    function.__doc__ = (function.__doc__ or "").format(
        n=rank,
        name=name,
        spatial=", ".join(letters.spatial),
        kernel=", ".join(letters.kernel),
        out=", ".join(letters.out),
        taps="".join(letters.kernel).lower(),
        fours=", ".join("4" * rank),
        threes=", ".join("3" * rank),
        twos=", ".join("2" * rank),
        source=", ".join(
            f"{o.lower()}·stride + {t.lower()}·dilation − low" for o, t in zip(letters.out, letters.kernel, strict=True)
        ),
        outs="".join(letters.out).lower(),
        pixels="".join(letters.spatial).lower(),
    )
    return function

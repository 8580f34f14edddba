"""The vocabulary in which kernels for the device are written: addresses, guarded loads, stores, and integer division.

An address is what `at` returns: bytes in the device's memory, and in the simulator a NumPy array with an index. Loads
convert to the dtype in which sums are accumulated and stores convert from it, once, to nearest even. The guard of a
load is a predicate on the instruction, not a branch: a load that is not made gives zero. Offsets and widths are
literals, so they stand in the instruction (PTX ISA 9.0, ``ld``, ``st``, ``cvt``).

Numba wraps negative indices and types int32 + int32 as int64; addresses of our own have neither cost.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from typing import Any

import numpy as np

from npdwconv.kernels.cuda import provider
from npdwconv.precision import ACCUMULATORS

Word = Callable[..., Any]

MOST_FACTORS = 16  # products that one word adds up
WIDTHS = {"float16": (1, 2, 4, 8), "bfloat16": (1, 2, 4, 8), "float32": (1, 2, 4), "float64": (1, 2)}
SIZES = {"float16": 2, "bfloat16": 2, "float32": 4, "float64": 8}


def real_of(storage: str) -> type[Any]:
    """The dtype in which values stored as ``storage`` are summed."""
    return ACCUMULATORS[storage]


def registers(storage: str, width: int) -> int:
    """How many registers hold so many neighbouring elements as they lie in memory."""
    return -(-width * SIZES[storage] // 4) if SIZES[storage] < 4 else width


def vocabulary(**storages: str) -> dict[str, Any]:
    """The words that a kernel's text may use; for each storage named, ``load_NAME``, ``read_NAME`` and the like.

    ``load(a, offset, inside)`` is guarded, ``read(a, offset)`` is not, ``peek(a, offset)`` reads what this kernel may
    write, ``store(a, offset, value)`` writes; each with a width as suffix where it is more than one (``load4``), which
    gives or takes as many values. ``hold`` is a load that converts nothing: ``held`` makes the values of its registers
    when they are needed. ``at(p, i)`` is the address of element ``i``, ``step(a, i)`` of one ``i`` further.
    """
    made = _simulated if provider.simulated() else _compiled
    words: dict[str, Any] = {"cuda": provider.cuda(), **made().plain()}
    for name, storage in storages.items():
        words.update({f"{word}_{name}": function for word, function in made().memory(storage).items()})
    return words


def _compiled() -> Any:
    from npdwconv.kernels.cuda import compiled_words

    return compiled_words


def _simulated() -> Any:
    from npdwconv.kernels.cuda import simulated_words

    return simulated_words


def rounded(storage: str) -> Any:
    """NumPy's dtype of a storage."""
    if storage == "bfloat16":
        return np.dtype(import_module("ml_dtypes").bfloat16)
    return np.dtype(storage)

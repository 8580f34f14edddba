"""Precision room: the dtypes of the contract and the dtype in which each is accumulated."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np

ACCUMULATORS = {"float16": np.float32, "bfloat16": np.float32, "float32": np.float32, "float64": np.float64}


@cache  # a dtype takes a microsecond to tell its name
def is_supported(dtype: np.dtype[Any]) -> bool:
    """Whether the operators compute in ``dtype``: float16, bfloat16 (of ``ml_dtypes``), float32 or float64."""
    return dtype.isnative and dtype.name in ACCUMULATORS


@cache
def storage(dtype: np.dtype[Any]) -> str:
    """A dtype's name, which takes NumPy three microseconds to say."""
    return str(dtype.name)


@cache
def accumulator(dtype: np.dtype[Any]) -> np.dtype[Any]:
    """The dtype in which products of ``dtype`` are summed: float32 for the 16-bit ones, otherwise itself."""
    return np.dtype(ACCUMULATORS[dtype.name])

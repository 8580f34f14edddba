"""Vectors as Numba values: the type that kernels hold their accumulators in."""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba.core import types
from numba.core.datamodel import models, register_default

from npdwconv.kernels.cpu.simd import STORED


class VectorType(types.Type):
    """A register of ``lanes`` values of ``dtype``."""

    def __init__(self, dtype: str, lanes: int) -> None:
        self.dtype, self.lanes = dtype, lanes
        super().__init__(name=f"Vector({dtype} x {lanes})")


@register_default(VectorType)
class _VectorModel(models.PrimitiveModel):
    def __init__(self, manager: Any, kind: VectorType) -> None:
        super().__init__(manager, kind, ir.VectorType(STORED[kind.dtype][0], kind.lanes))

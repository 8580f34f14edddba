"""Panels packed while the panel before them is multiplied.

Packing by itself is all lines that come and go; a product is all arithmetic, and leaves general registers and half of
the loads and stores idle. So each tile packs a *slice* of the next panel, a few columns of it: in each step of its
depth one element of every column, a step of the panel's. After as many tiles as there are slices the panel is there.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir

from npdwconv.kernels.cpu.assembly import opaque
from npdwconv.kernels.cpu.simd import Value, int64
from npdwconv.kernels.cpu.spec import Spec, field

MOST = 8  # columns of a slice: more loads and stores than that are no longer idle ones
WORD = 8  # bytes of a general register


class Slice:
    """Emits a tile's share of the packing, if it has one: ``spec.slice`` columns of b, as they lie.

    ``ahead``: the address of the first column, where it goes in the panel, and the bytes from one of the panel's steps
    to the next.
    """

    def __init__(self, builder: Any, spec: Spec, task: Value, ahead: list[Value]) -> None:
        self.builder, self.columns, self.size = builder, int(spec.slice), int(spec.b_size)
        self.places, self.pitch = ahead[:2], ahead[2]
        self.neighbours = not spec.b_turning
        if self.columns and self.neighbours:
            self.step = builder.mul(field(builder, spec, task, "b_step"), int64(self.size))
        elif self.columns:
            line = builder.mul(field(builder, spec, task, "b_line"), int64(self.size))
            self.step = int64(self.size)
            self.lines = {n: opaque(builder, builder.mul(line, int64(n))) for n in range(1, self.columns, 2)}

    def start(self) -> list[Value]:
        """Where it reads and writes, for `round`; nothing where there is no slice."""
        return self.places if self.columns else []

    def round(self, places: list[Value]) -> list[Value]:
        """One step of the depth."""
        if not places:
            return []
        b, (source, target) = self.builder, places
        if self.neighbours:
            end = self.columns * self.size
            words = [(place, WORD) for place in range(0, end - WORD + 1, WORD)]
            words += [(place, self.size) for place in range(end // WORD * WORD, end, self.size)]
            for place, width in words:
                self._copy(b.add(source, int64(place)), b.add(target, int64(place)), width)
        else:
            for column in range(self.columns):
                scale = column & -column  # which an address has for nothing: lines are kept of odd columns alone
                here = b.add(source, b.mul(self.lines[column // scale], int64(scale))) if column else source
                self._copy(here, b.add(target, int64(column * self.size)), self.size)
        return [opaque(b, b.add(source, self.step)), opaque(b, b.add(target, self.pitch))]

    def _copy(self, source: Value, target: Value, width: int) -> None:
        b, word = self.builder, ir.IntType(8 * width).as_pointer()
        b.store(b.load(b.inttoptr(source, word), align=1), b.inttoptr(target, word), align=1)

"""Panels packed while the panel before them is multiplied.

Packing by itself is all lines that come and go; a product is all arithmetic, and leaves general registers and half of
the loads and stores idle. So each tile packs a *slice* of the next panel, a few columns of it: in each step of its
depth one element of every column, a step of the panel's. After as many tiles as there are slices the panel is there.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir

from npdwconv.kernels.cpu.assembly import opaque
from npdwconv.kernels.cpu.fetching import prefetch
from npdwconv.kernels.cpu.simd import Value, Vectors
from npdwconv.kernels.cpu.spec import Spec, field

MOST = 8  # columns of a slice that are no neighbours: more loads and stores than that are no longer idle ones
SOON = 8  # steps of neighbours, each with a line of its own, that are fetched ahead


class Slice:
    """Emits a tile's share of the packing, if it has one: ``spec.slice`` columns of b, of neighbours a vector.

    ``ahead``: the address of the first column, where it goes in the panel, and the bytes from a step to the next there
    and here.
    """

    def __init__(self, builder: Any, spec: Spec, task: Value, ahead: list[Value]) -> None:
        self.builder, self.columns, self.neighbours = builder, int(spec.slice), not spec.b_turning
        self.v, size = Vectors(builder, str(spec.b_type)), int(spec.b_size)
        self.places, self.steps = ahead[:2], ahead[2:]
        if self.columns and self.neighbours:
            self.soon = opaque(builder, self.v.index(self.steps[0], SOON))
        elif self.columns:
            line = self.v.index(field(builder, spec, task, "b_line"), size)
            self.lines = {n: opaque(builder, self.v.index(line, n)) for n in range(1, self.columns, 2)}

    def start(self) -> list[Value]:
        """Where it reads and writes, for `round`; nothing where there is no slice."""
        return self.places if self.columns else []

    def round(self, places: list[Value]) -> list[Value]:
        """One step of the depth."""
        if not places:
            return []
        b, v, (source, target) = self.builder, self.v, places
        if self.neighbours:
            prefetch(b, v.at(source, self.soon), near=True)
            v.store(v.load(source), target)
        else:
            for column in range(self.columns):
                scale = column & -column  # which an address has for nothing: lines are kept of odd columns alone
                here = v.at(source, v.index(self.lines[column // scale], scale)) if column else source
                self._copy(here, v.at(target, column * v.bytes))
        return [opaque(b, v.at(place, step)) for place, step in zip(places, self.steps, strict=True)]

    def _copy(self, source: Value, target: Value) -> None:
        """One element, by way of a general register."""
        b, word = self.builder, ir.IntType(8 * self.v.bytes).as_pointer()
        b.store(b.load(b.inttoptr(source, word), align=1), b.inttoptr(target, word), align=1)

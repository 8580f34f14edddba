"""Memory that is fetched before it is read: single lines, and walks along the rounds of a product.

A product's sums stay in registers and its operands in near caches, so it leaves the memory idle. Some lines in each
round of its tiles' loops, few enough to be under way together, bring what the kernel that runs next will read.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir

from npdwconv.kernels.cpu.arrays import LINE
from npdwconv.kernels.cpu.simd import I32, Value
from npdwconv.kernels.cpu.spec import Spec, field, place

WALK = "fetch", "fetch_end", "fetch_step", "fetch_length", "fetch_pitch"  # a walk's fields; it moves the first two


def prefetch(builder: Any, address: Value, *, write: bool = False, near: bool = False) -> None:
    """Ask for the line at ``address``, which need not exist: to write or (``near``) read it soon, or read it later."""
    pointer = builder.inttoptr(address, ir.IntType(8).as_pointer())
    kind = ir.FunctionType(ir.VoidType(), [pointer.type, I32, I32, I32])
    module, name = builder.module, "llvm.prefetch.p0"
    function = module.globals.get(name) or ir.Function(module, kind, name)
    builder.call(function, [pointer, I32(int(write)), I32(3 if write or near else 2), I32(1)])


class Walk:
    """Emits a kernel's walk, if it has one: runs of ``fetch_length`` bytes, ``fetch_pitch`` apart.

    ``fetch_step`` bytes of them are a round's. Where it is, and where that run ends, are fields of a block that no
    other thread has.
    """

    def __init__(self, builder: Any, spec: Spec, task: Value) -> None:
        self.builder = builder
        self.kept = [place(builder, spec, task, name) for name in WALK[:2] if spec.walks]
        self.numbers = [field(builder, spec, task, name) for name in WALK[2:] if spec.walks]

    def start(self) -> list[Value]:
        """Where it is, for `round` and `stop`; nothing where there is no walk."""
        return [self.builder.load(word) for word in self.kept]

    def round(self, walked: list[Value]) -> list[Value]:
        if not walked:
            return []
        b, (here, end), (step, length, pitch) = self.builder, walked, self.numbers
        prefetch(b, here)
        here = b.add(here, step)
        over, next_run = b.icmp_signed(">=", here, end), b.add(here, b.sub(pitch, length))
        return [b.select(over, next_run, here), b.select(over, b.add(end, pitch), end)]

    def stop(self, walked: list[Value]) -> None:
        for value, word in zip(walked, self.kept, strict=True):
            self.builder.store(value, word)


def step_of(nbytes: int, rounds: int) -> int:
    """Bytes of each round, for so many in all; no more than a line, which is all that a round fetches."""
    return min(-(-nbytes // max(rounds, 1)), LINE)

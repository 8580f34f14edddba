"""The vector vocabulary: what a SIMD unit can do, as functions that emit LLVM IR.

An address is an int64 in bytes; nothing here checks one. A `Vectors` knows the type in which values are computed and
how many a register holds; its methods append instructions to an LLVM builder and return SSA values. LLVM legalises any
number of lanes on any target, so one source serves AVX-512, AVX2, SSE and NEON.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from llvmlite import ir

from npdwconv.kernels.cpu.machine import machine

Value = Any  # an SSA value of llvmlite

I1, I16, I32, I64 = (ir.IntType(bits) for bits in (1, 16, 32, 64))
FAST = ("contract", "nsz")  # nothing that reorders a sum or assumes that no NaN comes

# storage dtype -> (LLVM type in memory, bytes, dtype in which it is computed)
STORED = {
    "float32": (ir.FloatType(), 4, "float32"),
    "float64": (ir.DoubleType(), 8, "float64"),
    "float16": (ir.HalfType(), 2, "float32"),
    "bfloat16": (I16, 2, "float32"),
}


def int64(value: int) -> Value:
    """A constant index or number of bytes."""
    return ir.Constant(I64, value)


class Vectors:
    """Instructions on vectors of ``dtype`` (float32 or float64)."""

    def __init__(self, builder: Any, dtype: str, lanes: int | None = None) -> None:
        self.builder, self.dtype = builder, dtype
        self.scalar, self.bytes, _ = STORED[dtype]
        self.lanes = lanes or machine().lanes(self.bytes)
        self.type = ir.VectorType(self.scalar, self.lanes)
        self.bits = ir.VectorType(ir.IntType(8 * self.bytes), self.lanes)
        self.mask = ir.VectorType(I1, self.lanes)

    # addresses

    def at(self, address: Value, *offsets: Value) -> Value:
        """The address that many bytes further on."""
        for offset in offsets:
            address = self.builder.add(address, int64(offset) if isinstance(offset, int) else offset)
        return address

    def index(self, offset: Value, step: int) -> Value:
        """``offset`` items of ``step`` bytes, in bytes."""
        return self.builder.mul(offset, int64(step))

    def clamped(self, value: Value, most: int) -> Value:
        """A number, at least 0 and at most ``most``."""
        b = self.builder
        least = b.select(b.icmp_signed("<", value, int64(0)), int64(0), value)
        return b.select(b.icmp_signed(">", least, int64(most)), int64(most), least)

    # values

    def constant(self, value: float) -> Value:
        """The same value in every lane."""
        return ir.Constant(self.type, [value] * self.lanes)

    def zero(self) -> Value:
        return ir.Constant(self.type, None)

    def splat(self, scalar: Value) -> Value:
        """A scalar in every lane."""
        b = self.builder
        one = b.insert_element(ir.Constant(ir.VectorType(scalar.type, self.lanes), ir.Undefined), scalar, I32(0))
        return b.shuffle_vector(one, one, ir.Constant(ir.VectorType(I32, self.lanes), [0] * self.lanes))

    def fma(self, a: Value, b: Value, c: Value, mask: Value | None = None) -> Value:
        """a·b + c with one rounding; ``c`` in the lanes that ``mask`` leaves out, whatever a and b hold there.

        A plain select would be merged with that of the FMA before it, and no longer be free.
        """
        product = self._call(f"llvm.fma.{self._suffix()}", self.type, [a, b, c])
        if mask is None:
            return product
        return self._call(f"llvm.vp.merge.{self._suffix()}", self.type, [mask, product, c, I32(self.lanes)])

    # memory

    def load(self, address: Value, stored: str = "", mask: Value | None = None) -> Value:
        """Consecutive values of dtype ``stored``, widened; zero in the lanes that ``mask`` leaves out, never read."""
        element, _, _ = STORED[stored or self.dtype]
        raw = ir.VectorType(element, self.lanes)
        pointer = self.builder.inttoptr(address, raw.as_pointer())
        if mask is None:
            value = self.builder.load(pointer, align=1)
        else:
            name = f"llvm.masked.load.v{self.lanes}{_short(element)}.p0"
            value = self._call(name, raw, [pointer, I32(1), mask, ir.Constant(raw, None)])
        value = self._widen(value, stored)
        return self._by_itself(value) if mask is not None and machine().masks else value

    def _by_itself(self, value: Value) -> Value:
        """The same value, which LLVM does not make part of an instruction that uses it.

        It makes a masked load the operand of an FMA under the same mask, which is right, and then, where a register
        that the FMA would overwrite is needed again, a load of its own, which has lost the mask. Of a masked store of
        values made half as wide, whose mask turns out to keep a single lane, it makes a store of twice that (LLVM 22).
        """
        b, kind = self.builder, value.type
        if kind.element == I16:  # of which assembly language has no vectors
            value = b.bitcast(value, ir.VectorType(I32, kind.count // 2))
        value = b.asm(ir.FunctionType(value.type, [value.type]), "", "=v,0", [value], False)
        return b.bitcast(value, kind)

    def load_scalar(self, address: Value, stored: str = "") -> Value:
        """One value, widened."""
        element, _, _ = STORED[stored or self.dtype]
        value = self.builder.load(self.builder.inttoptr(address, element.as_pointer()), align=1)
        return self._widen(value, stored)

    def store(
        self,
        value: Value,
        address: Value,
        stored: str = "",
        mask: Value | None = None,
        *,
        first: bool = True,
    ) -> None:
        """Write consecutive values, rounded once to ``stored``; nothing in the lanes that ``mask`` leaves out.

        ``first``: those that it keeps are the first ones.
        """
        value = self._narrow(value, stored)
        pointer = self.builder.inttoptr(address, value.type.as_pointer())
        if mask is None:
            self.builder.store(value, pointer, align=1)
        elif first and not machine().masks and isinstance(mask, ir.Constant):
            self._store_count(
                value, address, STORED[stored or self.dtype][1], sum(lane.constant for lane in mask.constant)
            )
        elif first and not machine().masks:
            self._store_first(value, address, STORED[stored or self.dtype][1], mask)
        else:
            value = self._by_itself(value) if stored == "bfloat16" and machine().masks else value
            name = f"llvm.masked.store.v{self.lanes}{_short(value.type.element)}.p0"
            self._call(name, ir.VoidType(), [value, pointer, I32(1), mask])

    def _store_count(self, value: Value, address: Value, size: int, count: int) -> None:
        """Write the first ``count`` lanes: half a vector, a quarter, … from the first, and as much up to the last."""
        most = value.type.count
        while most > count:
            most //= 2
        for first in sorted({0, count - most}) if count else ():
            part = self.shuffle(value, value, range(first, first + most))
            place = self.builder.inttoptr(self.at(address, first * size), part.type.as_pointer())
            self.builder.store(part, place, align=1)

    def _store_first(self, value: Value, address: Value, size: int, mask: Value) -> None:
        """Write the first lanes, as many as ``mask`` keeps: all, or half of them, half of the rest, and so on."""
        b, kind = self.builder, ir.IntType(self.lanes)
        kept = b.bitcast(mask, kind)  # a bit for each lane
        with b.if_else(self.all(mask), likely=True) as (all_, some):
            with all_:
                b.store(value, b.inttoptr(address, value.type.as_pointer()), align=1)
            with some:
                half = self.lanes // 2
                while half:
                    low, high = (self.shuffle(value, value, range(at, at + half)) for at in (0, half))
                    there = b.icmp_unsigned("!=", b.and_(kept, kind(1 << (half - 1))), kind(0))
                    with b.if_then(there):
                        b.store(low, b.inttoptr(address, low.type.as_pointer()), align=1)
                    value = b.select(there, high, low)
                    address = b.select(there, self.at(address, half * size), address)
                    kept = b.select(there, b.lshr(kept, kind(half)), kept)
                    half //= 2

    def stream(self, value: Value, address: Value) -> None:
        """Write a vector past the caches, to an address that is a multiple of its size."""
        stored = self.builder.store(
            value, self.builder.inttoptr(address, self.type.as_pointer()), align=self.lanes * self.bytes
        )
        stored.set_metadata("nontemporal", self.builder.module.add_metadata([I32(1)]))

    def gather(self, address: Value, step: Value, stored: str = "", mask: Value | None = None) -> Value:
        """Values ``step`` bytes apart, widened; lanes that ``mask`` leaves out are zero and never read."""
        return self.collect(address, self.builder.mul(self.splat(step), self.iota(I64)), stored, mask)

    def collect(self, address: Value, offsets: Value, stored: str = "", mask: Value | None = None) -> Value:
        """Values at ``address`` plus a vector of int64 ``offsets`` in bytes, widened; masked as in `gather`."""
        element, _, _ = STORED[stored or self.dtype]
        raw, b = ir.VectorType(element, self.lanes), self.builder
        kind = ir.VectorType(ir.PointerType(element), self.lanes)
        places = b.inttoptr(b.add(self.splat(address), offsets), kind)
        every = ir.Constant(self.mask, [1] * self.lanes) if mask is None else mask
        name = f"llvm.masked.gather.v{self.lanes}{_short(element)}.v{self.lanes}p0"
        return self._widen(self._call(name, raw, [places, I32(1), every, ir.Constant(raw, None)]), stored)

    def scatter(self, value: Value, address: Value, step: Value, stored: str = "", mask: Value | None = None) -> None:
        """Write values ``step`` bytes apart, rounded once to ``stored``; nothing in lanes that ``mask`` leaves out."""
        value, b = self._narrow(value, stored), self.builder
        element = value.type.element
        offsets = b.mul(self.splat(step), self.iota(I64))
        places = b.inttoptr(b.add(self.splat(address), offsets), ir.VectorType(ir.PointerType(element), self.lanes))
        every = ir.Constant(self.mask, [1] * self.lanes) if mask is None else mask
        name = f"llvm.masked.scatter.v{self.lanes}{_short(element)}.v{self.lanes}p0"
        self._call(name, ir.VoidType(), [value, places, I32(1), every])

    # lanes

    def iota(self, kind: Any = I64) -> Value:
        """0, 1, 2, … in the lanes."""
        return ir.Constant(ir.VectorType(kind, self.lanes), list(range(self.lanes)))

    def between(self, low: Value, high: Value) -> Value:
        """The mask of the lanes i with low ≤ i < high."""
        b, iota = self.builder, self.iota(I32)
        ends = [b.trunc(self.clamped(end, self.lanes), I32) for end in (low, high)]
        first, last = (self.splat(end) for end in ends)
        return b.and_(b.icmp_signed(">=", iota, first), b.icmp_signed("<", iota, last))

    def all(self, mask: Value) -> Value:
        """Whether a mask keeps all lanes."""
        kind = ir.IntType(self.lanes)
        return self.builder.icmp_unsigned("==", self.builder.bitcast(mask, kind), kind(-1))

    def any(self, mask: Value) -> Value:
        """Whether a mask keeps a lane."""
        kind = ir.IntType(self.lanes)
        return self.builder.icmp_unsigned("!=", self.builder.bitcast(mask, kind), kind(0))

    def everywhere(self, flag: Value) -> Value:
        """The mask of all lanes or none."""
        return self.splat(flag)

    def shuffle(self, a: Value, b: Value, places: Sequence[int]) -> Value:
        """Lanes of the concatenation of a and b."""
        chosen = ir.Constant(ir.VectorType(I32, len(places)), list(places))
        return self.builder.shuffle_vector(a, b, chosen)

    def total(self, value: Value) -> Value:
        """The sum of the lanes, halves added to halves: a fixed order."""
        b, width = self.builder, self.lanes
        while width > 1:
            width //= 2
            low = self.shuffle(value, value, range(width))
            high = self.shuffle(value, value, range(width, 2 * width))
            value = b.fadd(low, high)
        return b.extract_element(value, I32(0))

    # private

    def _suffix(self) -> str:
        return f"v{self.lanes}{_short(self.scalar)}"

    def _call(self, name: str, result: Any, operands: Sequence[Value]) -> Value:
        kind = ir.FunctionType(result, [operand.type for operand in operands])
        module = self.builder.module
        function = module.globals.get(name) or ir.Function(module, kind, name)
        return self.builder.call(function, operands)

    def _widen(self, value: Value, stored: str) -> Value:
        if not stored or stored == self.dtype:
            return value
        b, vector = self.builder, isinstance(value.type, ir.VectorType)
        wide = ir.VectorType(self.scalar, value.type.count) if vector else self.scalar
        if stored != "bfloat16":
            return b.fpext(value, wide)
        bits = ir.VectorType(I32, value.type.count) if vector else I32
        sixteen = ir.Constant(bits, [16] * value.type.count) if vector else I32(16)
        return b.bitcast(b.shl(b.zext(value, bits), sixteen), wide)

    def _narrow(self, value: Value, stored: str) -> Value:
        if not stored or stored == self.dtype:
            return value
        b, count = self.builder, self.lanes
        if stored != "bfloat16":
            return b.fptrunc(value, ir.VectorType(STORED[stored][0], count))
        many = ir.VectorType(I32, count)

        def each(number: int) -> Value:
            return ir.Constant(many, [number] * count)

        bits = b.bitcast(value, many)
        odd = b.and_(b.lshr(bits, each(16)), each(1))
        rounded = b.lshr(b.add(b.add(bits, odd), each(0x7FFF)), each(16))
        quiet = b.or_(b.lshr(bits, each(16)), each(0x40))
        nan = b.fcmp_unordered("uno", value, value)
        return b.trunc(b.select(nan, quiet, rounded), ir.VectorType(I16, count))


def _short(element: Any) -> str:
    return {"float": "f32", "double": "f64", "half": "f16", "i16": "i16"}[str(element)]

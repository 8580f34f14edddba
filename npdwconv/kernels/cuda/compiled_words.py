"""The words of `words` as intrinsics of numba.cuda: PTX written into the kernel where LLVM has no word for it."""

from __future__ import annotations

from typing import Any

from llvmlite import ir

from npdwconv.kernels.cuda import provider
from npdwconv.kernels.cuda.compiled_memory import literal
from npdwconv.kernels.cuda.compiled_memory import memory as memory  # the other half of the vocabulary
from npdwconv.kernels.cuda.words import MOST_FACTORS

intrinsic, types = provider.intrinsic(), provider.types()

I32, I64 = ir.IntType(32), ir.IntType(64)


@intrinsic
def fma(context: Any, a: Any, b: Any, c: Any) -> Any:
    """a·b + c, rounded once."""
    return a(a, a, a), lambda context, builder, signature, args: builder.fma(*args)


@intrinsic
def div(context: Any, a: Any, b: Any) -> Any:
    """a // b of two ints from 0 to 2³¹ − 1."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        small = [builder.trunc(value, I32) for value in args]
        return builder.zext(builder.udiv(*small), I64)

    return types.int64(types.int64, types.int64), generate


@intrinsic
def rem(context: Any, a: Any, b: Any) -> Any:
    """a % b of two ints from 0 to 2³¹ − 1."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        small = [builder.trunc(value, I32) for value in args]
        return builder.zext(builder.urem(*small), I64)

    return types.int64(types.int64, types.int64), generate


@intrinsic
def finite(context: Any, value: Any) -> Any:
    """Whether a number is neither infinite nor NaN: only then it less itself is zero."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.fcmp_ordered("==", builder.fsub(args[0], args[0]), ir.Constant(args[0].type, 0.0))

    return types.boolean(value), generate


@intrinsic
def get(context: Any, array: Any, index: Any) -> Any:
    """An element of an array in shared memory, by an index that is not negative."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        data = context.make_array(array)(context, builder, args[0]).data
        return builder.load(builder.gep(data, [args[1]]))

    return array.dtype(array, types.int64), generate


@intrinsic
def get4(context: Any, array: Any, index: Any) -> Any:
    """Four elements of an array in shared memory that begins at a multiple of 16 bytes, from a multiple of four."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        vector = builder.load(_four(context, builder, array, args), align=16)
        packed = ir.Constant(ir.ArrayType(vector.type.element, 4), ir.Undefined)
        for lane in range(4):
            packed = builder.insert_value(packed, builder.extract_element(vector, ir.Constant(I32, lane)), lane)
        return packed

    return types.UniTuple(array.dtype, 4)(array, types.int64), generate


@intrinsic
def put(context: Any, array: Any, index: Any, value: Any) -> Any:
    """Set an element of an array in shared memory, by an index that is not negative."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        data = context.make_array(array)(context, builder, args[0]).data
        builder.store(args[2], builder.gep(data, [args[1]]))
        return context.get_dummy_value()

    return types.void(array, types.int64, array.dtype), generate


@intrinsic
def put4(context: Any, array: Any, index: Any, a: Any, b: Any, c: Any, d: Any) -> Any:
    """Set four elements, as `get4` reads them."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        vector: Any = ir.Constant(ir.VectorType(args[2].type, 4), ir.Undefined)
        for lane, value in enumerate(args[2:]):
            vector = builder.insert_element(vector, value, ir.Constant(I32, lane))
        builder.store(vector, _four(context, builder, array, args), align=16)
        return context.get_dummy_value()

    return types.void(array, types.int64, *[array.dtype] * 4), generate


def _four(context: Any, builder: Any, array: Any, args: Any) -> Any:
    """Where four elements of an array in shared memory lie."""
    data = context.make_array(array)(context, builder, args[0]).data
    kind = ir.PointerType(ir.VectorType(data.type.pointee, 4), data.type.addrspace)
    return builder.bitcast(builder.gep(data, [args[1]]), kind)


@intrinsic
def within(context: Any, index: Any, extent: Any) -> Any:
    """Whether 0 ≤ index < extent, of ints of 32 bits: one unsigned comparison."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        small = [builder.trunc(value, I32) for value in args]
        return builder.icmp_unsigned("<", *small)

    return types.boolean(types.int64, types.int64), generate


@intrinsic
def mark(context: Any, mask: Any, place: Any, flag: Any) -> Any:
    """The mask with bit ``place``, of 32, set where the flag is."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        bit = builder.shl(builder.zext(args[2], I64), ir.Constant(I64, literal(place)))
        return builder.or_(args[0], bit)

    literal(place)
    return types.int64(types.int64, place, types.boolean), generate


@intrinsic
def marked(context: Any, mask: Any, place: Any) -> Any:
    """Whether bit ``place``, of 32, is set."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        bit = builder.and_(builder.trunc(args[0], I32), ir.Constant(I32, 1 << literal(place)))
        return builder.icmp_unsigned("!=", bit, ir.Constant(I32, 0))

    literal(place)
    return types.boolean(types.int64, place), generate


def _dot(count: int) -> Any:
    """``dot(total, a…, b…)``: total + Σ a·b, each product added by one fma, in order."""
    factors = ", ".join(f"{letter}{n}" for letter in "ab" for n in range(count))
    words: dict[str, Any] = {"chained": _chained}
    exec(f"def dot(context, total, {factors}):\n    return chained(total, {count})\n", words)
    return intrinsic(words["dot"])


def _chained(total: Any, count: int) -> Any:
    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        found = args[0]
        for a, b in zip(args[1 : count + 1], args[count + 1 :], strict=True):
            found = builder.fma(a, b, found)
        return found

    return total(*[total] * (1 + 2 * count)), generate


_DOTS = {f"dot{count}": _dot(count) for count in range(1, MOST_FACTORS + 1)}


def plain() -> dict[str, Any]:
    """The words that touch no memory."""
    return {
        **_DOTS,
        "within": within,
        "mark": mark,
        "marked": marked,
        "fma": fma,
        "div": div,
        "rem": rem,
        "finite": finite,
        "get": get,
        "get4": get4,
        "put": put,
        "put4": put4,
    }

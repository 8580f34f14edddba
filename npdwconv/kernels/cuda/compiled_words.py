"""The words of `words` as intrinsics of numba.cuda: PTX written into the kernel where LLVM has no word for it."""

from __future__ import annotations

from typing import Any

from llvmlite import ir

from npdwconv.kernels.cuda import provider
from npdwconv.kernels.cuda.words import MOST_FACTORS, SIZES, WIDTHS

intrinsic, types = provider.intrinsic(), provider.types()

I1, I16, I32, I64 = ir.IntType(1), ir.IntType(16), ir.IntType(32), ir.IntType(64)
_REALS = {"float64": (ir.DoubleType(), "d", types.float64)}
_FLOAT = (ir.FloatType(), "f", types.float32)


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
        "fma": fma,
        "div": div,
        "rem": rem,
        "finite": finite,
        "get": get,
        "get4": get4,
        "put": put,
        "put4": put4,
    }


def memory(storage: str) -> dict[str, Any]:
    """The words for memory that holds ``storage``."""
    words: dict[str, Any] = {"at": _at(SIZES[storage]), "step": _at(SIZES[storage])}
    for width in WIDTHS[storage]:
        suffix = "" if width == 1 else str(width)
        words[f"load{suffix}"] = _load(storage, width)
        words[f"read{suffix}"] = _read(storage, width, ".nc")
        words[f"peek{suffix}"] = _read(storage, width, "")
        words[f"store{suffix}"] = _store(storage, width)
    return words


def _literal(number: Any) -> int:
    """The value of an offset; Numba tries types without values first, and with them after this error."""
    value = getattr(number, "literal_value", None)
    if value is None:
        raise provider.typing_error()("an offset is a literal")
    return int(value)


def _at(size: int) -> Any:
    @intrinsic
    def at(context: Any, address: Any, index: Any) -> Any:
        def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            return builder.add(args[0], builder.mul(args[1], ir.Constant(I64, size)))

        return types.int64(types.int64, types.int64), generate

    return at


def _instruction(storage: str, width: int, cache: str, guard: str, address: str) -> str:
    """PTX that loads ``width`` values and converts them to the outputs $0, $1, …"""
    size = SIZES[storage]
    outputs = [f"${place}" for place in range(width)]
    if size > 2:
        kind, zero = ("f32", "0f00000000") if size == 4 else ("f64", "0d0000000000000000")
        clear = [f"mov.{kind} {name}, {zero};" for name in outputs] if guard else []
        vector, names = (f".v{width}", "{" + ", ".join(outputs) + "}") if width > 1 else ("", outputs[0])
        return " ".join([*clear, f"{guard} ld.global{cache}{vector}.{kind} {names}, {address};"])
    wide = storage == "float16"
    if width == 1:
        clear = ["mov.b16 h, 0;"] if guard else []
        convert = "cvt.f32.f16 $0, h;" if wide else "mov.b32 $0, {z, h};"
        head = [".reg .b16 h, z; mov.b16 z, 0;", *clear]
        return " ".join([*head, f"{guard} ld.global{cache}.b16 h, {address};", convert])
    words = [f"w{place}" for place in range(width // 2)]
    clear = [f"mov.b32 {word}, 0;" for word in words] if guard else []
    vector, names = (f".v{len(words)}", "{" + ", ".join(words) + "}") if len(words) > 1 else ("", words[0])
    lines = [f".reg .b32 {', '.join(words)}; .reg .b16 l, h, z; mov.b16 z, 0;", *clear]
    lines.append(f"{guard} ld.global{cache}{vector}.b32 {names}, {address};")
    for place, word in enumerate(words):
        low, high = outputs[2 * place], outputs[2 * place + 1]
        lines.append(f"mov.b32 {{l, h}}, {word};")
        lines.append(
            f"cvt.f32.f16 {low}, l; cvt.f32.f16 {high}, h;"
            if wide
            else f"mov.b32 {low}, {{z, l}}; mov.b32 {high}, {{z, h}};"
        )
    return " ".join(lines)


def _called(builder: Any, storage: str, width: int, text: str, inputs: list[Any], letters: str) -> Any:
    """Inline PTX with ``width`` outputs, as one value or a tuple of them."""
    real, letter, _ = _REALS.get(storage, _FLOAT)
    result = real if width == 1 else ir.LiteralStructType([real] * width)
    kind = ir.FunctionType(result, [value.type for value in inputs])
    constraints = ",".join([f"={letter}"] * width + list(letters))
    found = builder.call(ir.InlineAsm(kind, "{ " + text + " }", constraints), inputs)
    if width == 1:
        return found
    values = [builder.extract_value(found, place) for place in range(width)]
    packed = ir.Constant(ir.ArrayType(real, width), ir.Undefined)
    for place, value in enumerate(values):
        packed = builder.insert_value(packed, value, place)
    return packed


def _returned(storage: str, width: int) -> Any:
    real = _REALS.get(storage, _FLOAT)[2]
    return real if width == 1 else types.UniTuple(real, width)


def _load(storage: str, width: int) -> Any:
    @intrinsic
    def load(context: Any, address: Any, offset: Any, inside: Any) -> Any:
        place = _literal(offset) * SIZES[storage]

        def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            text = f".reg .pred q; setp.ne.s32 q, ${width + 1}, 0; " + _instruction(
                storage, width, ".nc", "@q", f"[${width}+{place}]"
            )
            return _called(builder, storage, width, text, [args[0], builder.zext(args[2], I32)], "lr")

        return _returned(storage, width)(types.int64, offset, types.boolean), generate

    return load


def _read(storage: str, width: int, cache: str) -> Any:
    @intrinsic
    def read(context: Any, address: Any, offset: Any) -> Any:
        place = _literal(offset) * SIZES[storage]

        def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            text = _instruction(storage, width, cache, "", f"[${width}+{place}]")
            return _called(builder, storage, width, text, [args[0]], "l")

        return _returned(storage, width)(types.int64, offset), generate

    return read


def _store(storage: str, width: int) -> Any:
    """``store(address, offset, value, …)``, of ``width`` values."""
    _, letter, kind = _REALS.get(storage, _FLOAT)
    size = SIZES[storage]

    def text(place: int) -> str:
        address, values = f"[$0+{place}]", [f"${1 + number}" for number in range(width)]
        if size > 2:
            names = values[0] if width == 1 else "{" + ", ".join(values) + "}"
            vector = "" if width == 1 else f".v{width}"
            return f"st.global{vector}.f{8 * size} {address}, {names};"
        short = "f16" if storage == "float16" else "bf16"
        halves = [f"h{number}" for number in range(width)]
        convert = " ".join(f"cvt.rn.{short}.f32 {half}, {value};" for half, value in zip(halves, values, strict=True))
        head = f".reg .b16 {', '.join(halves)}; {convert}"
        if width == 1:
            return f"{head} st.global.b16 {address}, h0;"
        words = [f"w{number}" for number in range(width // 2)]
        pack = " ".join(f"mov.b32 {word}, {{h{2 * n}, h{2 * n + 1}}};" for n, word in enumerate(words))
        names = words[0] if len(words) == 1 else "{" + ", ".join(words) + "}"
        vector = "" if len(words) == 1 else f".v{len(words)}"
        return f"{head} .reg .b32 {', '.join(words)}; {pack} st.global{vector}.b32 {address}, {names};"

    def written(address: Any, offset: Any, values: tuple[Any, ...]) -> Any:
        place = _literal(offset) * size

        def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            inputs = [args[0], *args[2:]]
            shape = ir.FunctionType(ir.VoidType(), [value.type for value in inputs])
            constraints = ",".join(["l", *[letter] * width])
            builder.call(ir.InlineAsm(shape, "{ " + text(place) + " }", constraints, side_effect=True), inputs)
            return context.get_dummy_value()

        return types.void(types.int64, offset, *[kind] * width), generate

    return _STORES[width](written)


def _store1(written: Any) -> Any:
    @intrinsic
    def store(context: Any, address: Any, offset: Any, a: Any) -> Any:
        return written(address, offset, (a,))

    return store


def _store2(written: Any) -> Any:
    @intrinsic
    def store(context: Any, address: Any, offset: Any, a: Any, b: Any) -> Any:
        return written(address, offset, (a, b))

    return store


def _store4(written: Any) -> Any:
    @intrinsic
    def store(context: Any, address: Any, offset: Any, a: Any, b: Any, c: Any, d: Any) -> Any:
        return written(address, offset, (a, b, c, d))

    return store


def _store8(written: Any) -> Any:
    @intrinsic
    def store(
        context: Any, address: Any, offset: Any, a: Any, b: Any, c: Any, d: Any, e: Any, f: Any, g: Any, h: Any
    ) -> Any:
        return written(address, offset, (a, b, c, d, e, f, g, h))

    return store


_STORES = {1: _store1, 2: _store2, 4: _store4, 8: _store8}

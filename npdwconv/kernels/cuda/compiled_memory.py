"""The words of `words` that touch the device's memory, as intrinsics of numba.cuda: PTX, written into the kernel."""

from __future__ import annotations

from typing import Any

from llvmlite import ir

from npdwconv.kernels.cuda import provider
from npdwconv.kernels.cuda.words import SIZES, WIDTHS, registers

intrinsic, types = provider.intrinsic(), provider.types()

I32, I64 = ir.IntType(32), ir.IntType(64)
_REALS = {"float64": (ir.DoubleType(), "d", types.float64)}
_FLOAT = (ir.FloatType(), "f", types.float32)


def memory(storage: str) -> dict[str, Any]:
    """The words for memory that holds ``storage``."""
    words: dict[str, Any] = {"at": _at(SIZES[storage]), "step": _at(SIZES[storage])}
    for width in WIDTHS[storage]:
        suffix = "" if width == 1 else str(width)
        words[f"load{suffix}"] = _load(storage, width)
        words[f"hold{suffix}"], words[f"held{suffix}"] = _hold(storage, width), _held(storage, width)
        words[f"read{suffix}"] = _read(storage, width, ".nc")
        words[f"peek{suffix}"] = _read(storage, width, "")
        words[f"store{suffix}"] = _store(storage, width)
    return words


def literal(number: Any) -> int:
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
    if width == 1:
        clear = ["mov.b16 h, 0;"] if guard else []
        convert = "cvt.f32.f16 $0, h;" if storage == "float16" else "mov.b32 $0, {z, h};"
        head = [".reg .b16 h, z; mov.b16 z, 0;", *clear]
        return " ".join([*head, f"{guard} ld.global{cache}.b16 h, {address};", convert])
    words = [f"w{place}" for place in range(width // 2)]
    clear = [f"mov.b32 {word}, 0;" for word in words] if guard else []
    vector, names = (f".v{len(words)}", "{" + ", ".join(words) + "}") if len(words) > 1 else ("", words[0])
    lines = [f".reg .b32 {', '.join(words)}; .reg .b16 l, h, z; mov.b16 z, 0;", *clear]
    lines.append(f"{guard} ld.global{cache}{vector}.b32 {names}, {address};")
    return " ".join([*lines, _widened(storage, words, outputs)])


def _widened(storage: str, words: list[str], outputs: list[str]) -> str:
    """PTX that makes numbers out of pairs of halves; it needs registers l, h and z, which is zero."""
    lines = []
    for word, low, high in zip(words, outputs[::2], outputs[1::2], strict=True):
        lines.append(f"mov.b32 {{l, h}}, {word};")
        lines.append(
            f"cvt.f32.f16 {low}, l; cvt.f32.f16 {high}, h;"
            if storage == "float16"
            else f"mov.b32 {low}, {{z, l}}; mov.b32 {high}, {{z, h}};"
        )
    return " ".join(lines)


def _called(builder: Any, storage: str, width: int, text: str, inputs: list[Any], letters: str) -> Any:
    """Inline PTX with ``width`` numbers as outputs, as one value or a tuple of them."""
    real, letter, _ = _REALS.get(storage, _FLOAT)
    return _asked(builder, (real, letter), width, text, inputs, letters)


def _asked(builder: Any, kind: tuple[Any, str], width: int, text: str, inputs: list[Any], letters: str) -> Any:
    real, letter = kind
    result = real if width == 1 else ir.LiteralStructType([real] * width)
    shape = ir.FunctionType(result, [value.type for value in inputs])
    constraints = ",".join([f"={letter}"] * width + list(letters))
    found = builder.call(ir.InlineAsm(shape, "{ " + text + " }", constraints), inputs)
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
        place = literal(offset) * SIZES[storage]

        def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            text = f".reg .pred q; setp.ne.s32 q, ${width + 1}, 0; " + _instruction(
                storage, width, ".nc", "@q", f"[${width}+{place}]"
            )
            return _called(builder, storage, width, text, [args[0], builder.zext(args[2], I32)], "lr")

        return _returned(storage, width)(types.int64, offset, types.boolean), generate

    return load


def _hold(storage: str, width: int) -> Any:
    """A guarded load that converts nothing: until `_held` makes numbers of its registers nothing waits for it."""
    size, count = SIZES[storage], registers(storage, width)
    if size > 2:
        return _load(storage, width)

    @intrinsic
    def hold(context: Any, address: Any, offset: Any, inside: Any) -> Any:
        place = literal(offset) * size

        def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            names = [f"${number}" for number in range(count)]
            clear, address = " ".join(f"mov.b32 {name}, 0;" for name in names), f"[${count}+{place}]"
            vector, into = (f".v{count}", "{" + ", ".join(names) + "}") if count > 1 else ("", names[0])
            guard = f".reg .pred q; setp.ne.s32 q, ${count + 1}, 0;"
            kind = "u16" if width == 1 else "b32"
            text = f"{guard} {clear} @q ld.global.nc{vector}.{kind} {into}, {address};"
            return _asked(builder, (I32, "r"), count, text, [args[0], builder.zext(args[2], I32)], "lr")

        found = types.int32 if count == 1 else types.UniTuple(types.int32, count)
        return found(types.int64, offset, types.boolean), generate

    return hold


def _held(storage: str, width: int) -> Any:
    """The ``width`` numbers in the registers that `_hold` loaded."""
    count = registers(storage, width)
    arguments = ", ".join(f"r{number}" for number in range(count))

    def numbers() -> Any:
        def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            if SIZES[storage] > 2:
                return args[0] if count == 1 else context.make_tuple(builder, signature.return_type, args)
            outputs = [f"${number}" for number in range(width)]
            words = [f"${width + number}" for number in range(count)]
            head = ".reg .b16 l, h, z; mov.b16 z, 0;"
            if width == 1:
                outputs.append("w")
                head = ".reg .f32 w; " + head
            text = f"{head} {_widened(storage, words, outputs)}"
            return _called(builder, storage, width, text, list(args), "r" * count)

        register = _REALS.get(storage, _FLOAT)[2] if SIZES[storage] > 2 else types.int32
        return _returned(storage, width)(*[register] * count), generate

    words: dict[str, Any] = {"numbers": numbers}
    exec(f"def held(context, {arguments}):\n    return numbers()\n", words)
    return intrinsic(words["held"])


def _read(storage: str, width: int, cache: str) -> Any:
    @intrinsic
    def read(context: Any, address: Any, offset: Any) -> Any:
        place = literal(offset) * SIZES[storage]

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
        place = literal(offset) * size

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

"""Inline assembly that keeps LLVM to what a kernel writes: values it knows nothing of, loads that stay in place."""

from __future__ import annotations

from typing import Any

from llvmlite import ir

from npdwconv.kernels.cpu.simd import Value, Vectors


def opaque(builder: Any, value: Value) -> Value:
    """``value``, of which LLVM knows nothing, so that it computes nothing in some other way than the one written."""
    kind = ir.FunctionType(value.type, [value.type])
    return builder.asm(kind, "", "=r,0", [value], False)


def pinned(builder: Any, values: list[Value]) -> list[Value]:
    """Vectors, before which no later load may move: loads too early hold registers that the sums need."""
    kinds = [value.type for value in values]
    one = len(kinds) == 1
    result = kinds[0] if one else ir.LiteralStructType(kinds)
    register = "=v" if "x86_64" in builder.module.triple else "=w"
    names = ",".join([register] * len(kinds) + [str(i) for i in range(len(kinds))])
    held = builder.asm(ir.FunctionType(result, kinds), "", names, values, True)
    return [held] if one else [builder.extract_value(held, i) for i in range(len(kinds))]


def halved(builder: Any, v: Vectors, element: Value, line: list[Value], sums: list[Value]) -> list[Value]:
    """`pinned` sums plus ``element`` times a line, of whose vectors the last is a half one.

    Written out for AVX-512, where a register's lower half is a register: LLVM would spread the element once more. It
    names the halves (modifier t) of the first 16 registers only, hence x.
    """
    count = len(sums)
    multiply = "vfmadd231ps" if v.bytes == 4 else "vfmadd231pd"
    widths = ["g"] * (count - 1) + ["t"]
    text = "\n".join(f"{multiply} ${{{count}:{width}}}, ${count + 1 + j}, ${j}" for j, width in enumerate(widths))
    names = ",".join(["=&v"] * count + ["x"] + ["v"] * count + [str(j) for j in range(count)])
    operands = [element, *line, *sums]
    result = ir.LiteralStructType([value.type for value in sums]) if count > 1 else sums[0].type
    held = builder.asm(ir.FunctionType(result, [x.type for x in operands]), text, names, operands, True)
    return [builder.extract_value(held, j) for j in range(count)] if count > 1 else [held]

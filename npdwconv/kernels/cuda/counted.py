"""What a thread does in one pass of its main loop, counted in a kernel's PTX, beside the bytes that must move for it.

An estimate: the assembler turns an instruction of PTX into none, one or several of the device's. A loop inside the main
one, over a kernel's depth or a multiplier, counts once; of a product the loop over a slice in shared memory is counted,
and of a fused kernel a whole slice, that loop as often as it runs.
"""

from __future__ import annotations

import re
from typing import NamedTuple

from npdwconv.kernels.cuda import provider
from npdwconv.kernels.cuda.provider import Source
from npdwconv.kernels.cuda.recorded import Launch

_HEAD = re.compile(r"([{}]|\$\w+:)\s*")
_JUMP = re.compile(r"(?:@\S+ )?bra(?:\.uni)?\s+(\$\w+)$")
_ACCESS = re.compile(r"(?:@\S+ )?(ld|st)\.global\S*\s")
_WIDTH = re.compile(r"(?:\.v(\d))?\.[fbus](\d+)\s")
_GRADIENTS = re.compile(r"= load(\d?)_z\(")
_SLICE = re.compile(r"for k in range\(0, (\d+), (\d+)\)")
_LOOPS = re.compile(r"^    while (?!i < count)", re.MULTILINE)


class Work(NamedTuple):
    """A pass: multiplications with an addition, loads, all instructions, and bytes; None where that says nothing."""

    fma: int
    loads: int
    instructions: int
    bytes: int | None


def work(launch: Launch, capability: tuple[int, int]) -> Work:
    """Counted over the main loop, or the whole kernel where it has none; every guard open, every sum finite."""
    source = launch.kernel.source
    statements, labels = _statements(provider.ptx_of(finite(source), capability))
    if _LOOPS.search(source.text):
        whole, inner = statements, source.name == "multiply"
        statements = _main_loop(whole, labels, inner)
        if source.name == "separable":
            depth, together = map(int, _SLICE.findall(source.text)[0])
            statements = statements + _slice(statements, whole, labels) * (depth // together - 1)
    return Work(
        _multiplications(statements),
        len(_moved(statements, "ld")),
        len(statements),
        _needed(launch, sum(_moved(statements, "st"))),
    )


def finite(source: Source) -> Source:
    """The kernel without the second way to form a sum, where it has a first: what follows where one is not finite."""
    kept: list[str] = []
    asked = depth = -1  # where a question whether sums are finite stands, and where what is left out hangs from
    for line in source.text.splitlines():
        words = line.lstrip()
        inside = len(line) - len(words)
        if 0 <= depth < inside:
            continue
        depth = inside if words.startswith("if not finite(") or (words == "else:" and inside == asked) else -1
        asked = inside if words.startswith("if finite(") else asked
        if depth < 0:
            kept.append(line)
    return source._replace(text="\n".join(kept) + "\n")


def _statements(ptx: str) -> tuple[list[str], dict[str, int]]:
    """The instructions of the kernel, in order, and the place of each label among them."""
    body = re.sub(r"//.*", "", ptx[ptx.index("\n{") + 1 :])
    found: list[str] = []
    labels: dict[str, int] = {}
    for part in body.split(";"):
        statement = part.strip()
        while head := _HEAD.match(statement):
            labels[head[1].rstrip(":")] = len(found)
            statement = statement[head.end() :]
        if statement and not statement.startswith("."):
            found.append(statement)
    return found, labels


def _main_loop(statements: list[str], labels: dict[str, int], inner: bool) -> list[str]:
    """The loop with the most loads, of those the longest; or with the most arithmetic, of those the shortest."""
    loops = _loops(statements, labels)
    if inner:
        return max(loops, key=lambda loop: (_multiplications(loop), -len(loop)), default=statements)
    return max(loops, key=lambda loop: (len(_moved(loop, "ld")), len(loop)), default=statements)


def _loops(statements: list[str], labels: dict[str, int]) -> list[list[str]]:
    loops = []
    for place, statement in enumerate(statements):
        jump = _JUMP.match(statement)
        if jump and labels[jump[1]] <= place:
            loops.append(statements[labels[jump[1]] : place + 1])
    return loops


def _slice(main: list[str], statements: list[str], labels: dict[str, int]) -> list[str]:
    """The loop over a slice in shared memory, inside the main one."""
    inside = [loop for loop in _loops(statements, labels) if len(loop) < len(main)]
    return max(inside, key=_multiplications, default=main)


def _multiplications(statements: list[str]) -> int:
    return sum("fma.rn." in statement for statement in statements)


def _moved(statements: list[str], way: str) -> list[int]:
    """The bytes of every access to global memory."""
    found = []
    for statement in statements:
        access, width = _ACCESS.match(statement), _WIDTH.search(statement)
        if access and width and access[1] == way:
            found.append(int(width[1] or 1) * int(width[2]) // 8)
    return found


def _needed(launch: Launch, stored: int) -> int | None:
    """The bytes of the operands, each once, over the passes that all threads make together.

    All passes of a gather write its whole result, and all passes of a correlation read the whole gradient.
    """
    whole, name = sum(operand.size for operand in launch.operands.values()), launch.kernel.source.name
    if name in ("gather", "copy", "border"):
        return round(whole * stored / launch.operands["po"].size)
    if name != "correlate":
        return None
    gradient, source = launch.operands["pz"], launch.operands["px"]
    elements = sum(int(width or 1) for width in _GRADIENTS.findall(launch.kernel.source.text))
    return round((gradient.size + source.size) * elements * gradient.itemsize / gradient.size) or None

"""What a separable convolution costs in one kernel and in two, without a device: instructions issued, bytes moved.

Instructions are counted in the machine code that nvdisasm shows (it is in pip's nvidia-cuda-nvdisasm), a loop as often
as it runs, every guard open. A kernel takes at least as long as its schedulers issue, one instruction a cycle each, and
as long as its operands' bytes, each once, take at the speed of a copy: the greater of the two is the estimate, which
knows nothing of waiting. ``python -m npdwconv.kernels.cuda.estimate`` prints the table.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable
from functools import cache
from importlib.util import find_spec
from math import prod
from pathlib import Path
from shutil import which
from typing import NamedTuple

from npdwconv.geometry import ConvGeometry, conv_geometry
from npdwconv.kernels.cuda import counted, depthwise, pointwise, provider, separable
from npdwconv.kernels.cuda.provider import Source
from npdwconv.kernels.cuda.recorded import PROCESSORS, Launch, array, recorded
from npdwconv.layouts import LAYOUTS, shape_of

CAPABILITY = (9, 0)  # an H100: its clock, its schedulers, and the speed of a copy that docs/gpu.md has measured
SCHEDULERS, CLOCK, COPY = 4 * PROCESSORS, 1.755e9, 2.99e12
BATCH = 32
CASES = ((32, 64, 112), (64, 128, 56), (128, 64, 56), (128, 128, 56), (96, 96, 28))
KINDS = ((LAYOUTS[0], "float32"), (LAYOUTS[1], "float16"))

_INSTRUCTION = re.compile(r"\s*/\*[0-9a-f]{4,}\*/\s+([^;]+);")
_LABEL = re.compile(r"\s*(\.L_x_\d+):")
_JUMP = re.compile(r"BRA.*\((\.L_x_\d+)\)")


class Cost(NamedTuple):
    """Of one or several launches: instructions of warps, bytes, and seconds."""

    issued: float
    bytes: float
    seconds: float

    def __add__(self, other: object) -> Cost:
        return Cost(*map(sum, zip(self, other, strict=True))) if isinstance(other, Cost) else NotImplemented


def tool() -> str | None:
    """The disassembler, of a toolkit or of pip."""
    found = which("nvdisasm")
    package = find_spec("nvidia")
    places = [] if package is None else [Path(place) for place in package.submodule_search_locations or ()]
    return found or next((str(path) for place in places for path in place.glob("**/bin/nvdisasm")), None)


@cache
def _machine_code(text: str, source: Callable[[], Source]) -> list[str]:
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(provider.binary_of(source(), CAPABILITY))
        file.flush()
        return subprocess.run(
            [tool() or "nvdisasm", "-c", file.name], capture_output=True, text=True, check=True
        ).stdout.splitlines()


def _loops(lines: list[str]) -> tuple[int, list[list[str]]]:
    """How many instructions there are, and the bodies of the loops among them."""
    found: list[str] = []
    labels: dict[str, int] = {}
    for line in lines:
        label, instruction = _LABEL.match(line), _INSTRUCTION.match(line)
        if label:
            labels[label[1]] = len(found)
        elif instruction:
            found.append(instruction[1])
    loops = []
    for place, text in enumerate(found):
        jump = _JUMP.search(text)
        if jump and labels.get(jump[1], place) < place:
            loops.append(found[labels[jump[1]] : place + 1])
    return len(found), loops


def _issued(launch: Launch) -> float:
    """Instructions of one warp."""
    source = counted.finite(launch.kernel.source)
    whole, loops = _loops(_machine_code(source.text, lambda: source))
    numbers, (blocks, _, _), (_, high, _) = launch.numbers, launch.grid, launch.block
    if source.name == "gather":
        if "channels_last" not in launch.kernel.description:
            return whole
        return whole + (max(map(len, loops))) * (numbers["items"] / (blocks * high) - 1)
    outer = max((loop for loop in loops if any("BAR" in line for line in loop)), key=len)
    inner = max((loop for loop in loops if not any("BAR" in line for line in loop)), key=_products, default=[])
    depth = int(re.findall(r"depth=(\d+)", launch.kernel.description)[0])
    patch = prod(map(int, re.findall(r"(?:high|wide)=(\d+)", launch.kernel.description)))
    again = depth * patch / _products(inner) - 1 if _products(inner) else 0  # or the loop is written out
    slices = -(-numbers["channels" if source.name == "separable" else "depth"] // depth)
    return whole + again * len(inner) + (slices - 1) * (len(outer) + again * len(inner))


def _products(loop: list[str]) -> int:
    return sum("FFMA" in line for line in loop)


def cost(launch: Launch) -> Cost:
    """Of one launch."""
    issued = _issued(launch) * prod(launch.grid) * prod(launch.block) / 32
    moved = float(sum(operand.size for operand in launch.operands.values()))
    return Cost(issued, moved, max(issued / (SCHEDULERS * CLOCK), moved / COPY))


def ways(layout: str, storage: str, case: tuple[int, int, int]) -> dict[str, list[Launch]]:
    """The launches of one call, and of a depthwise one with a pointwise one behind it."""
    channels, results, size = case
    g: ConvGeometry = conv_geometry((size,) * 2, (3, 3), (1, 1), (1, 1), ((1, 1), (1, 1)))
    x, out = (array(storage, *shape_of(layout, BATCH, n, (size,) * 2)) for n in (channels, results))
    middle, w, v = array(storage, *x.shape), array(storage, channels, 1, 3, 3), array(storage, results, channels)
    with recorded() as one:
        separable.separable_fwd(x, w, None, v, None, out, g, layout, None, None)
    with recorded() as two:
        depthwise.depthwise_fwd(x, w, None, middle, g, layout, None)
        pointwise.pointwise_fwd(middle, v, None, out, layout, None)
    return {"one kernel": one, "two calls": two}


def main() -> None:
    """Print the table."""
    argparse.ArgumentParser(description="What a separable convolution costs in one kernel and in two.").parse_args()
    if tool() is None or provider.simulated():
        sys.exit("the estimate needs nvdisasm (pip install nvidia-cuda-nvdisasm), and no simulator")
    heads = ("case", "way", "MB", "instructions a product", "issuing", "copying", "estimate", "two to one")
    sys.stdout.write(f"| {' | '.join(heads)} |\n|---|---|{'---:|' * (len(heads) - 2)}\n")
    for layout, storage in KINDS:
        for case in CASES:
            channels, results, size = case
            products, before = BATCH * size * size * channels * results / 32, 0.0
            for way, launches in reversed(ways(layout, storage, case).items()):
                whole = sum(map(cost, launches), Cost(0, 0, 0))
                ratio = f"{before / whole.seconds:.2f}" if before else ""
                before = whole.seconds
                cells = (
                    f"c{channels}to{results}-{size}x{size} {layout} {storage}",
                    way,
                    f"{whole.bytes / 1e6:.0f}",
                    f"{whole.issued / products:.2f}",
                    f"{whole.issued / (SCHEDULERS * CLOCK) * 1e6:.0f} µs",
                    f"{whole.bytes / COPY * 1e6:.0f} µs",
                    f"{whole.seconds * 1e6:.0f} µs",
                    ratio,
                )
                sys.stdout.write(f"| {' | '.join(cells)} |\n")
                sys.stdout.flush()


if __name__ == "__main__":
    main()

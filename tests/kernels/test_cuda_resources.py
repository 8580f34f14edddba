"""Every CUDA kernel in usual use, compiled and linked without a device: what it takes is what the table says."""

from __future__ import annotations

import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

from npdwconv.kernels.cuda import estimate
from npdwconv.kernels.cuda.resources import CAPABILITIES, stored

pytestmark = [
    pytest.mark.ptx,
    pytest.mark.skipif(find_spec("numba_cuda") is None, reason="numba-cuda is not installed: pip install '.[cuda]'"),
]

TABLE = Path(__file__).parents[2] / "docs" / "_cuda_resources.md"
RENEW = "python -m npdwconv.kernels.cuda.resources --markdown docs/_cuda_resources.md"
MORE_REGISTERS = 8  # than stored that another version of the compiler may take


DIVIDES = """
from npdwconv.kernels.cuda import copies, provider
binary = provider.binary_of(copies.source("float32", "float16", False), (9, 0))
names = {part.split(b"\\0")[0].decode() for part in binary.split(b"\\0.text.")[1:]}
print(provider.ENTRY in names, len(names) > 1)
"""


def run(*arguments: str) -> str:
    """What a process without the simulator prints."""
    environment = {name: value for name, value in os.environ.items() if name != "NUMBA_ENABLE_CUDASIM"}
    process = subprocess.run(
        [sys.executable, *arguments], env=environment, capture_output=True, text=True, timeout=1800
    )
    assert process.returncode == 0, process.stderr[-4000:]
    return process.stdout


@pytest.fixture(scope="module")
def found():
    return stored(run("-m", "npdwconv.kernels.cuda.resources"))


def test_a_kernel_has_its_name_in_a_binary_that_holds_other_functions():
    assert run("-c", DIVIDES).split() == ["True", "True"]


ESTIMATED = """
from npdwconv.kernels.cuda import estimate
for layout, storage in estimate.KINDS:
    ways = estimate.ways(layout, storage, estimate.CASES[0])
    print(*[launch.kernel.source.name for way in ways.values() for launch in way])
cost = estimate.cost(ways["one kernel"][0])
products = 32 * 32 * 64 * 112 * 112 / 32
print(1 < cost.issued / products < 3, cost.bytes == 2 * (32 * 96 * 112 * 112 + 32 * 9 + 32 * 64))
"""


@pytest.mark.skipif(estimate.tool() is None, reason="no nvdisasm: pip install nvidia-cuda-nvdisasm")
def test_the_estimate_counts_one_kernel_and_two():
    """More than one instruction for a product, and the bytes of every operand once."""
    *launches, counts = run("-c", ESTIMATED).splitlines()
    assert launches == ["separable gather multiply"] * 2
    assert counts.split() == ["True", "True"]


@pytest.fixture(scope="module")
def table():
    return stored(TABLE.read_text())


def test_no_kernel_spills_or_takes_local_memory(found):
    assert {name: each for name, each in found.items() if any(spilt or local for _, _, spilt, local in each)} == {}
    assert all(len(each) == len(CAPABILITIES) for each in found.values())


def test_the_table_has_every_kernel(found, table):
    assert list(table) == list(found), RENEW


def test_registers_and_shared_memory_are_those_of_the_table(found, table):
    wrong = {}
    for name, each in found.items():
        for capability, now, then in zip(CAPABILITIES, each, table.get(name, each), strict=True):
            if now[0] > then[0] + MORE_REGISTERS or now[1] != then[1]:
                wrong[name, capability] = (now, then)
    assert wrong == {}, RENEW

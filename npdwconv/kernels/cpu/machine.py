"""What the host's vector unit is: one table, from which every tile is shaped."""

from __future__ import annotations

import os
from dataclasses import dataclass
from functools import cache

import llvmlite.binding as llvm
from numba.core import config

from npdwconv.errors import OptionError

LANES_VARIABLE = "NPDWCONV_LANES"


@dataclass(frozen=True)
class Machine:
    """A vector unit: the feature that LLVM knows it by, bytes in a register, how many registers there are.

    ``masks``: whether writing some lanes of a vector is an instruction like others. AVX2's takes 15 cycles of a Zen 3,
    as measured; SSE and NEON have none.
    """

    name: str
    feature: str
    vector_bytes: int
    registers: int
    masks: bool = False

    def lanes(self, itemsize: int) -> int:
        """Values of ``itemsize`` bytes in one vector."""
        return self.vector_bytes // itemsize


MACHINES = (
    Machine("AVX-512", "avx512f", 64, 32, masks=True),
    Machine("AVX2", "fma", 32, 16),
    Machine("NEON", "neon", 16, 32),
    Machine("SSE", "", 16, 16),
)


@cache
def halves() -> bool:
    """Whether vectors of half the width are compiled as such and cost half as much, as they may with AVX-512."""
    return machine().feature == "avx512f" and "avx512f" in _features()


@cache
def pairs() -> bool:
    """Whether two vectors are multiplied in a cycle: of 64 bytes by an Emerald Rapids, not by a Zen 4 (measured)."""
    return machine().feature != "avx512f" or (config.CPU_NAME or llvm.get_host_cpu_name()) != "znver4"


# Processors whose features Numba is not told when NUMBA_CPU_NAME names one
_NAMED = {"haswell": "AVX2", "skylake": "AVX2", "znver3": "AVX2", "skylake-avx512": "AVX-512", "znver4": "AVX-512"}


@cache
def machine() -> Machine:
    """The vector unit that code is compiled for: the host's, or a narrower one asked for by the environment.

    NPDWCONV_LANES sets the number of float32 lanes (16, 8 or 4). NUMBA_CPU_NAME and NUMBA_CPU_FEATURES count as they
    do for Numba's own code.
    """
    asked = os.environ.get(LANES_VARIABLE)
    if asked:
        narrower = next((m for m in MACHINES if str(m.lanes(4)) == asked and m.name != "NEON"), None)
        if narrower is None:
            raise OptionError(f"environment variable {LANES_VARIABLE} is {asked!r}; needed 16, 8 or 4")
        return narrower
    features = _features()
    return next(m for m in MACHINES if not m.feature or m.feature in features)


def _features() -> frozenset[str]:
    if config.CPU_FEATURES is not None:
        return frozenset(f.removeprefix("+") for f in config.CPU_FEATURES.split(",") if f.startswith("+"))
    if config.CPU_NAME is not None:
        name = _NAMED.get(config.CPU_NAME, "SSE")
        return frozenset(m.feature for m in MACHINES if m.name == name)
    return frozenset(name for name, present in llvm.get_host_cpu_features().items() if present)

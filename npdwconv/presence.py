"""Presence room: whether CUDA can be used here, and what of it is missing. Imports no package."""

from __future__ import annotations

import ctypes
import os
from functools import cache
from importlib.util import find_spec

DRIVER = "nvcuda.dll" if os.name == "nt" else "libcuda.so.1"


@cache
def simulated() -> bool:
    """Whether kernels run on the CPU, in the simulator."""
    return os.environ.get("NUMBA_ENABLE_CUDASIM", "0") not in ("", "0")


@cache
def missing() -> str | None:
    """What CUDA lacks here: the package, the driver or a device; None where nothing does. Imports no package."""
    if find_spec("numba") is None:
        return "the package numba is not installed (pip install 'npdwconv[cuda]')"
    if simulated():
        return None
    if find_spec("numba_cuda") is None:
        return "the package numba-cuda is not installed (pip install 'npdwconv[cuda]')"
    try:
        driver = ctypes.CDLL(DRIVER)
    except OSError:
        return f"the NVIDIA driver is not installed ({DRIVER} was not found); the package numba-cuda is"
    count = ctypes.c_int(0)
    status = driver.cuInit(0) or driver.cuDeviceGetCount(ctypes.byref(count))
    if status or not count.value:
        return f"there is no NVIDIA GPU (the driver is installed and counts {count.value}, status {status})"
    return None

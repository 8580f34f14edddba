"""What Numba's simulator needs to be relied on, and to be quick: its threads are Python's, and share one lock."""

from __future__ import annotations

import sys
import threading
from contextlib import contextmanager

import numpy as np
import pytest
from cuda_calls import MISSING, provider


@pytest.fixture(autouse=True, scope="package")
def _simulator():
    if MISSING is not None or not provider.simulated():
        yield
        return
    provider.cuda()
    held = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)  # at a barrier threads ask again and again whether the others are there
    patch = pytest.MonkeyPatch()
    patch.setattr("numba.cuda.simulator.kernelapi.FakeCUDAShared.array", _locked())
    patch.setattr("numba.cuda.simulator.kernel.swapped_cuda_module", _swapped)
    yield
    patch.undo()
    sys.setswitchinterval(held)


@contextmanager
def _swapped(function, simulated):
    """The simulated module in place of ``numba.cuda`` in a function: Numba's reads names while others may be added."""
    names = [name for name, value in list(function.__globals__.items()) if value is provider.cuda()]
    function.__globals__.update(dict.fromkeys(names, simulated))
    try:
        yield
    finally:
        function.__globals__.update(dict.fromkeys(names, provider.cuda()))


def _locked():
    """``cuda.shared.array`` in which two threads cannot each be the first: Numba's gives both an array of their own."""
    lock = threading.Lock()

    def array(self, shape, dtype):
        caller = sys._getframe(1)
        key = caller.f_code.co_filename, caller.f_lineno
        with lock:
            if key not in self._allocations:
                self._allocations[key] = np.empty(shape, dtype)
            return self._allocations[key]

    return array

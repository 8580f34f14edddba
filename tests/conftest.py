"""Shared test set-up: hypothesis profiles, and `empty` arrays that are full of NaN."""

from __future__ import annotations

import os

import numpy as np
import pytest
from hypothesis import HealthCheck, settings

# The specification is what most tests are about, and it compiles nothing; tests/kernels compare other backends with it.
# NPDWCONV_BACKEND=numba runs every test on that backend.
os.environ.setdefault("NPDWCONV_BACKEND", "reference")

# CUDA kernels run in Numba's simulator, which must be asked for before Numba is imported and leaves its CPU side alone.
# NPDWCONV_TEST_GPU=1 runs the same tests, and those marked gpu, on the machine's GPU.
if os.environ.get("NPDWCONV_TEST_GPU", "0") in ("", "0"):
    os.environ.setdefault("NUMBA_ENABLE_CUDASIM", "1")

_SLOW_DRAWS = (HealthCheck.too_slow, HealthCheck.data_too_large)
settings.register_profile("ci", derandomize=True, deadline=None, max_examples=60, suppress_health_check=_SLOW_DRAWS)
settings.register_profile("thorough", deadline=None, max_examples=2000, suppress_health_check=_SLOW_DRAWS)
settings.load_profile(os.environ.get("NPDWCONV_HYPOTHESIS_PROFILE", "ci"))


@pytest.fixture(autouse=True, scope="session")
def _poisoned_empty():
    """What `numpy.empty` returns is never meant to be read: in tests it is NaN, so that reading it shows."""
    from npdwconv import memory  # not before what is set above

    real_empty, real_empty_like = np.empty, np.empty_like

    def poisoned(array):
        if array.dtype.kind == "f" or array.dtype.name == "bfloat16":
            array.fill(np.nan)
        return array

    patch = pytest.MonkeyPatch()
    patch.setattr(np, "empty", lambda *args, **kwargs: poisoned(real_empty(*args, **kwargs)))
    patch.setattr(memory, "KEPT", 0)  # an earlier result's would hold numbers
    patch.setattr(np, "empty_like", lambda *args, **kwargs: poisoned(real_empty_like(*args, **kwargs)))
    yield
    patch.undo()


def pytest_collection_modifyitems(items):
    """What takes a minute comes first, so that no worker is left with it at the end."""
    items.sort(key=lambda item: "test_guarded" not in item.nodeid)

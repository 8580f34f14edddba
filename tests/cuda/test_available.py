"""Where CUDA cannot be used, everything says which of the package, the driver and the GPU is missing."""

from __future__ import annotations

import ctypes
import json

import numpy as np
import pytest
from kernels.children import run

import npdwconv
from npdwconv import BackendUnavailableError, cli, dispatch, presence
from npdwconv.device import to_device

NUMBA = "the package numba is not installed (pip install 'npdwconv[cuda]')"
PACKAGE = "the package numba-cuda is not installed (pip install 'npdwconv[cuda]')"
DRIVER = f"the NVIDIA driver is not installed ({presence.DRIVER} was not found); the package numba-cuda is"
NO_GPU = "there is no NVIDIA GPU (the driver is installed and counts 0, status 0)"
REFUSED = "there is no NVIDIA GPU (the driver is installed and counts 0, status 100)"


class Driver:
    """A driver's library that counts so many GPUs, or refuses to begin."""

    def __init__(self, count: int, status: int = 0) -> None:
        self.count, self.status = count, status

    def cuInit(self, flags: int) -> int:
        return self.status

    def cuDeviceGetCount(self, place) -> int:
        place._obj.value = self.count
        return 0


@pytest.fixture
def machine(monkeypatch):
    """Makes this machine one with these packages and that driver, and forgets what was chosen on the other."""

    def make(packages: tuple[str, ...], driver: Driver | None) -> None:
        def library(name):
            if driver is None:
                raise OSError(f"{name}: cannot open shared object file")
            return driver

        spec = presence.find_spec
        hidden = {"numba", "numba_cuda"} - set(packages)
        monkeypatch.setattr(presence, "find_spec", lambda name: None if name in hidden else spec("json"))
        monkeypatch.setattr(presence, "simulated", lambda: False)
        monkeypatch.setattr(ctypes, "CDLL", library)
        reason = presence.missing.__wrapped__()
        monkeypatch.setattr(presence, "missing", lambda: reason)
        monkeypatch.setattr(dispatch, "_kernels", {})
        monkeypatch.delenv("NPDWCONV_BACKEND")

    return make


MACHINES = {
    "no-numba": ((), Driver(1), NUMBA),
    "no-package": (("numba",), Driver(1), PACKAGE),
    "neither-package-nor-driver": (("numba",), None, PACKAGE),
    "no-driver": (("numba", "numba_cuda"), None, DRIVER),
    "no-gpu": (("numba", "numba_cuda"), Driver(0), NO_GPU),
    "driver-refuses": (("numba", "numba_cuda"), Driver(0, 100), REFUSED),
    "all": (("numba", "numba_cuda"), Driver(1), None),
}
LACKING = [name for name in MACHINES if MACHINES[name][2]]


@pytest.mark.parametrize("name", list(MACHINES))
def test_what_is_missing(machine, name: str):
    packages, driver, reason = MACHINES[name]
    machine(packages, driver)
    assert presence.missing() == reason
    assert npdwconv.backend_status()["cuda"] == reason


@pytest.mark.parametrize("name", LACKING)
def test_a_call_and_the_command_line_say_it(machine, capsys, name: str):
    packages, driver, reason = MACHINES[name]
    machine(packages, driver)
    x, weight = np.ones((1, 1, 3), np.float32), np.ones((1, 1, 1), np.float32)
    message = f"backend 'cuda' cannot be used: {reason}"
    with pytest.raises(BackendUnavailableError) as caught:
        npdwconv.depthwise_conv1d(x, weight, backend="cuda")
    assert f"depthwise_conv1d: {message}; usable here: reference" in str(caught.value)
    for refused in (lambda: to_device(x), lambda: npdwconv.use_backend("cuda").__enter__()):
        with pytest.raises(BackendUnavailableError) as caught:
            refused()
        assert message in str(caught.value)
    assert cli.main(["info", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["backends"]["cuda"] == {"available": False, "reason": reason}


@pytest.mark.parametrize("name", LACKING)
def test_explain_backend_says_it(machine, name: str):
    packages, driver, reason = MACHINES[name]
    machine(packages, driver)
    choice = npdwconv.explain_backend(backend="cuda")
    assert choice.backend == "cuda"
    assert reason in choice.reason


def test_a_process_without_the_simulator():
    """Whatever this machine has, it is found out without loading a package, and a call says the same."""
    code = """
        import sys
        import numpy as np
        import npdwconv
        reason = npdwconv.backend_status()["cuda"]
        assert not {"numba", "numba_cuda", "cuda"} & set(sys.modules), "a package was loaded to see whether it is there"
        try:
            npdwconv.depthwise_conv1d(np.ones((1, 1, 3)), np.ones((1, 1, 1)), backend="cuda")
        except npdwconv.BackendUnavailableError as error:
            assert reason and reason in str(error)
        else:
            assert reason is None
        print(reason)
    """
    found = run(code, NUMBA_ENABLE_CUDASIM=None, NPDWCONV_BACKEND=None)
    assert any(
        found.startswith(words) for words in ("None", "the package", "the NVIDIA driver", "there is no NVIDIA GPU")
    )


def test_a_process_with_the_simulator():
    code = """
        import npdwconv
        assert npdwconv.backend_status()["cuda"] is None
        print(npdwconv.explain_backend(backend="cuda"))
    """
    assert run(code, NUMBA_ENABLE_CUDASIM=1) == "cuda: the call names backend='cuda'"

"""The tests notice mistakes: each mutation of the package, alone, makes a fast test fail."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from mutation import Mutation
from mutations import MUTATIONS

import npdwconv
from npdwconv.kernels.cpu.machine import machine

PACKAGE = Path(npdwconv.__file__).parent
HERE = Path(__file__).parent
TESTS = {
    "definition": (
        "test_geometry.py",
        "test_activations.py",
        "test_arrays.py",
        "test_errors.py",
        "test_folding.py",
        "test_memory.py",
        "test_remembered.py",
        "test_operators.py",
        "interop/test_conventions.py",
        "laws",
    ),
    "verify": tuple(f"verify/test_{what}.py" for what in ("gradcheck", "double", "bounds", "reference", "report")),
    "cuda": (
        "cuda/test_parity.py::test_integers",
        "cuda/test_nan_locality.py",
        "cuda/test_splits.py",
        "cuda/test_fused.py",
    ),
    "cpu": (
        "kernels/test_channels_first.py::test_kernels_that_cover_the_plane",
        "kernels/test_channels_first.py::test_past_the_caches",
        "kernels/test_channels_last.py::test_past_the_caches",
        "kernels/test_ready.py",
        "kernels/test_pipeline.py",
        "kernels/test_simd.py",
        "kernels/test_network.py::test_rows_of_a_chain",
        "kernels/test_network.py::test_strips_of_a_chain_of_steps_give_the_same_bits[True-3000]",
        "kernels/test_channels_last.py::test_the_factor_may_be_what_is_overwritten",
        "kernels/test_channels_first.py::test_a_single_row",
        "kernels/test_channels_first.py::test_two_planes_of_an_adjoint_in_a_vector",
        "kernels/test_weight_gradient.py::test_two_planes_in_a_vector",
        "kernels/test_channels_last.py::test_who_packs_the_taps",
        "kernels/test_guarded.py::test_what_masks_leave_out_is_not_touched",
        "kernels/test_gemm.py::test_tiles_pack_the_next_panel",
    ),
}

# The copy comes first on the path, and it must be what is tested.
RUN = """
import sys
sys.path.insert(0, sys.argv[1])
import npdwconv, pytest
if not npdwconv.__file__.startswith(sys.argv[1]):
    sys.exit("the copy is not what is imported")
sys.exit(pytest.main(["-x", "-q", "-p", "no:cacheprovider", *sys.argv[2:]]))
"""


def named(mutation: Mutation) -> str:
    return mutation.what.replace(" ", "_")


@pytest.mark.parametrize("mutation", MUTATIONS, ids=named)
def test_the_text_still_stands_there_once(mutation: Mutation):
    assert (PACKAGE / mutation.file).read_text().count(mutation.old) == 1


@pytest.mark.slow
@pytest.mark.parametrize("room", TESTS)
def test_the_unchanged_copy_passes(room: str, tmp_path: Path):
    copied(tmp_path)
    ran = run_tests(tmp_path, room)
    assert ran.returncode == 0, f"exit code {ran.returncode}\n{ran.stdout[-2000:]}{ran.stderr}"


@pytest.mark.slow
@pytest.mark.parametrize("mutation", [m for m in MUTATIONS if m.machine in ("", machine().name)], ids=named)
def test_a_test_notices(mutation: Mutation, tmp_path: Path):
    changed = copied(tmp_path) / mutation.file
    changed.write_text(changed.read_text().replace(mutation.old, mutation.new))
    ran = run_tests(tmp_path, mutation.room)
    told = f"exit code {ran.returncode} where tests should fail\n{ran.stdout[-2000:]}{ran.stderr}"
    # an interpreter that could not import the copy exits with 1 as well, but no test has failed in it
    assert ran.returncode == 1, told
    assert re.search(r"^FAILED ", ran.stdout, re.MULTILINE), told


def copied(folder: Path) -> Path:
    return Path(shutil.copytree(PACKAGE, folder / "npdwconv", ignore=shutil.ignore_patterns("__pycache__")))


def run_tests(folder: Path, room: str) -> subprocess.CompletedProcess[str]:
    tests = [str(HERE / name) for name in TESTS[room]]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST")}
    return subprocess.run(
        [sys.executable, "-c", RUN, str(folder), *tests],
        capture_output=True,
        text=True,
        cwd=HERE.parent,
        env=environment,
        timeout=300,
    )

"""No byte outside an array is touched: a kernel that strays ends its process."""

from __future__ import annotations

import signal
import sys

import numpy as np
import pytest
from kernels.children import finish, start
from kernels.guarded import guarded
from kernels.situations import LANES

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="mprotect")

GUARDED = """
    from kernels import guarded
    guarded.main("{which}", "{kinds}", turns={turns})
"""
EACH_LANES = [lanes for lanes in (16, 8, 4) if lanes <= LANES]


def stays_inside(which: str, kinds: str, lanes: int, *, turns: bool = False, seconds: float = 600) -> None:
    printed = finish(start(GUARDED.format(which=which, kinds=kinds, turns=turns), NPDWCONV_LANES=lanes), seconds)
    assert printed.endswith("done")


@pytest.mark.parametrize("at_end", [True, False], ids=["behind", "before"])
@pytest.mark.parametrize("write", [True, False], ids=["write", "read"])
def test_a_stray_byte_ends_the_process(at_end: bool, write: bool):
    inside, outside = (-1, 0) if at_end else (0, -1)
    code = "from kernels import guarded; guarded.over({offset}, at_end={at_end}, write={write})"
    finish(start(code.format(offset=inside, at_end=at_end, write=write)))
    process = start(code.format(offset=outside, at_end=at_end, write=write))
    with process:
        process.communicate(timeout=60)
    assert process.returncode in (-signal.SIGSEGV, -signal.SIGBUS)


def test_a_stray_vector_of_a_kernel_ends_the_process():
    code = """
        from kernels import guarded
        import numpy as np
        import affine
        x, out = (guarded.guarded({values}, np.float32, at_end=True) for _ in range(2))
        affine.launch(2, 1, 1, 0)(x, out)
        print("survived")
    """
    assert finish(start(code.format(values=8))) == "survived"
    process = start(code.format(values=7))
    with process:
        out, _ = process.communicate(timeout=60)
    assert (process.returncode, out) == (-signal.SIGSEGV, "")


@pytest.mark.parametrize("at_end", [True, False])
@pytest.mark.parametrize("shape", [(), (0, 3), (5,), (3, 4096), (1024,)])
def test_guarded_arrays_are_arrays(shape: tuple[int, ...], at_end: bool):
    array = guarded(shape, np.float32, at_end=at_end)
    assert array.shape == shape
    assert array.flags.aligned
    assert array.flags.c_contiguous
    array[...] = 3.0
    assert (array == 3.0).all()


@pytest.mark.parametrize("lanes", EACH_LANES)
def test_operators_stay_inside(lanes: int):
    stays_inside("core", "integers", lanes, turns=lanes < LANES)


@pytest.mark.parametrize("lanes", EACH_LANES)
def test_results_past_the_caches_stay_inside(lanes: int):
    printed = finish(start("from kernels import guarded; guarded.call_far()", NPDWCONV_LANES=lanes))
    assert printed.endswith("done")


@pytest.mark.parametrize("lanes", EACH_LANES)
def test_tiles_that_pack_stay_inside(lanes: int):
    assert finish(start("from kernels import guarded; guarded.call_sliced()", NPDWCONV_LANES=lanes)).endswith("done")


@pytest.mark.parametrize("lanes", EACH_LANES)
def test_sums_along_contiguous_depths_stay_inside(lanes: int):
    assert finish(start("from kernels import guarded; guarded.call_dotted()", NPDWCONV_LANES=lanes)).endswith("done")


@pytest.mark.parametrize("lanes", EACH_LANES)
def test_kernels_that_cover_rows_stay_inside(lanes: int):
    assert finish(start("from kernels import guarded; guarded.call_covering()", NPDWCONV_LANES=lanes)).endswith("done")


@pytest.mark.parametrize("lanes", EACH_LANES)
def test_kernels_over_a_single_row_stay_inside(lanes: int):
    assert finish(start("from kernels import guarded; guarded.call_along()", NPDWCONV_LANES=lanes)).endswith("done")


def test_what_masks_leave_out_is_not_touched():
    assert finish(start("from kernels import guarded; guarded.call_masked()")).endswith("done")


@pytest.mark.skipif(LANES < 16, reason="planes share vectors of 16 lanes alone")
def test_planes_in_pairs_stay_inside():
    assert finish(start("from kernels import guarded; guarded.call_in_pairs()")).endswith("done")


def test_float16_stays_inside():
    stays_inside("core", "float16", LANES, turns=True)


@pytest.mark.sweep
@pytest.mark.parametrize("lanes", EACH_LANES)
def test_all_results_past_the_caches_stay_inside(lanes: int):
    printed = finish(start("from kernels import guarded; guarded.call_far(every=True)", NPDWCONV_LANES=lanes))
    assert printed.endswith("done")


@pytest.mark.sweep
@pytest.mark.parametrize("lanes", EACH_LANES)
@pytest.mark.parametrize("kind", ["integers", "float64", "float16", "bfloat16"])
def test_everything_stays_inside(kind: str, lanes: int):
    stays_inside("all", kind, lanes, seconds=3000)

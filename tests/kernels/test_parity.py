"""Every operator on the numba backend against the reference: the same bits, or inside the bound that rounding leaves.

What few specs can show runs by default; `-m sweep` calls everything at every extent about a tile.
"""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from kernels.children import run
from kernels.situations import (
    BY_NAME,
    CORE,
    DTYPES,
    LANES,
    MORE,
    SWEPT,
    Situation,
    both_layouts,
    bounded,
    frozen_network,
    mismatch,
)
from strategies import LAYOUTS, Case, cases, op, same_bits, transposed

from npdwconv import use_backend
from npdwconv.activations import ACTIVATIONS

PIECEWISE = ("relu", "relu6")
ENDING = "relu6"  # of every test that any activation serves: what is compiled for one serves all


def ending(s: Situation) -> dict[str, str]:
    return dict.fromkeys(s.activations, ENDING)


def exactly(s: Situation, layout: str, **activations: str) -> None:
    """On small integers no sum is rounded, so nothing may differ."""
    operands = s.operands("integers", layout)
    outputs = s.forward(operands, "reference", layout, **activations)
    arguments = operands, s.gradients(outputs, "integers")
    found = s.both(*arguments, "numba", layout, **activations)
    assert not mismatch(found, s.both(*arguments, "reference", layout, **activations))


def closely(s: Situation, dtype: str, layout: str, **activations: str) -> None:
    """On other numbers the sums may differ by rounding, and by no more than it explains."""
    operands = s.operands(dtype, layout)
    outputs = s.forward(operands, "reference", layout, **activations)
    arguments = operands, s.gradients(outputs, dtype)
    found = s.both(*arguments, "numba", layout, **activations)
    assert {array.dtype for array in found.values()} == {operands["x"].dtype}
    assert not mismatch(found, *bounded(s, *arguments, layout, activations))


@both_layouts(*CORE, *MORE)
def test_integers(s: Situation, layout: str):
    exactly(s, layout, **ending(s))


@both_layouts(*CORE, turns=True)  # the layouts that test_guarded.py takes, whose code is compiled then
def test_float16(s: Situation, layout: str):
    closely(s, "float16", layout)


@pytest.mark.parametrize("dtype", ["float64", "bfloat16"])
@both_layouts(*CORE[:1], *CORE[3:4], turns=True)
def test_other_dtypes(s: Situation, layout: str, dtype: str):
    if dtype == "bfloat16":
        pytest.importorskip("ml_dtypes", reason="bfloat16")
    closely(s, dtype, layout, **ending(s))


CURVES = [name for name in ACTIVATIONS if name not in PIECEWISE]
SOME = CURVES[::2]  # test_activate.py has the numbers of each


@pytest.mark.parametrize(
    ("s", "layout", "activation"),
    [(CORE[0], "channels_first", name) for name in SOME] + [(CORE[3], "channels_last", name) for name in SOME[:1]],
)
def test_activations(s: Situation, layout: str, activation: str):
    closely(s, "float32", layout, activation=activation)


@both_layouts(*CORE)
def test_floats(s: Situation, layout: str):
    """Each situation with a curve in one layout: of one it is long code, compiled for every tile."""
    curved = layout == LAYOUTS[CORE.index(s) % 2 - 1]
    closely(s, "float32", layout, **(dict.fromkeys(s.activations, "silu") if curved else ending(s)))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_frozen_network(layout: str):
    results = []
    for backend in ("numba", "reference"):
        with use_backend(backend):
            network, x = frozen_network(layout)
            results.append(network(x))
            assert same_bits(network(x), results[-1])
            assert same_bits(network(x[:1]), results[-1][:1])
    assert np.array_equal(*results)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_frozen_network_in_many_threads(layout: str):
    with use_backend("numba"):
        network, x = frozen_network(layout)
        images = [np.roll(x, i, axis=0 if i % 2 else 2) for i in range(8)]
        wanted = [network(image) for image in images]

    def work(i: int) -> bool:
        with use_backend("numba"):
            return all(same_bits(network(images[i]), wanted[i]) for _ in range(20))

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(work, range(8)))


# what a result may not depend on


@both_layouts(*CORE)
def test_strides_and_out(s: Situation, layout: str):
    operands = s.operands("float32", layout)
    gradients = s.gradients(s.forward(operands, "reference", layout), "float32")
    wanted = s.both(operands, gradients, "numba", layout, **ending(s))
    assert all(array.flags.c_contiguous for array in wanted.values())
    strided, behind = ({name: _strided(array) for name, array in arrays.items()} for arrays in (operands, gradients))
    kept = [array.copy() for array in (*strided.values(), *behind.values())]
    found = s.both(strided, behind, "numba", layout, **ending(s))
    assert all(same_bits(found[name], wanted[name]) for name in wanted)
    assert all(map(same_bits, (*strided.values(), *behind.values()), kept)), "an input was written to"
    out = _strided(np.zeros_like(wanted["out"]))
    out.base[...] = 7.0
    assert s.forward(operands, "numba", layout, out=out, **ending(s))["out"] is out
    assert same_bits(out.copy(), wanted["out"])
    assert (out.base == 7.0).sum() >= out.base.size - out.size, "something beside out was written to"


def _strided(array: np.ndarray) -> np.ndarray:
    """The same values, read-only where they may be, backwards and with gaps in a larger array."""
    wide = np.full([2 * n + 3 for n in array.shape], np.nan, array.dtype)
    view = wide[tuple(slice(2 * n, None if n == 0 else 0, -2) for n in array.shape)]
    view[...] = array
    return view


@both_layouts(*CORE)
def test_batch_mates_and_repetition(s: Situation, layout: str):
    operands = s.operands("float32", layout)
    gradients = s.gradients(s.forward(operands, "reference", layout), "float32")
    together = s.both(operands, gradients, "numba", layout, **ending(s))
    again = s.both(operands, gradients, "numba", layout, **ending(s))
    assert all(same_bits(again[name], together[name]) for name in together)
    for image in range(2):
        one = operands | {"x": operands["x"][image : image + 1]}
        behind = {"grad_out": gradients["grad_out"][image : image + 1]}
        alone = s.both(one, behind, "numba", layout, **ending(s))
        for name in ("out", "grad x"):
            assert same_bits(alone[name], together[name][image : image + 1]), name


@pytest.mark.parametrize("bad", [np.nan, np.inf])
@both_layouts(*CORE, BY_NAME["k2x4-s2x1-d1x2"])
def test_nan_stays_where_it_is_read(s: Situation, layout: str, bad: float):
    rng = np.random.default_rng(2)
    whole = s.operands("float32", layout)
    gradients = s.gradients(s.forward(whole, "reference", layout), "float32")
    for name in (*whole, *gradients):
        arrays = {key: array.copy() for key, array in (whole | gradients).items()}
        last = tuple(n - 1 for n in arrays[name].shape)
        for place in (last, tuple(int(rng.integers(n)) for n in arrays[name].shape)):
            arrays[name][place] = bad
        operands, behind = ({key: arrays[key] for key in group} for group in (whole, gradients))
        found, wanted = (s.both(operands, behind, backend, layout) for backend in ("numba", "reference"))
        for result in wanted:
            assert np.array_equal(np.isfinite(found[result]), np.isfinite(wanted[result])), (name, result)


DIGESTS = """
    import hashlib, json
    from kernels import situations
    from kernels.test_parity import ending
    import npdwconv
    from npdwconv.kernels.cpu import engine
    engine.SMALL = 0
    def digests(s, layout):
        operands = s.operands("float32", layout)
        gradients = s.gradients(s.forward(operands, "reference", layout), "float32")
        found = s.both(operands, gradients, "numba", layout, **ending(s))
        return [hashlib.sha256(array.tobytes()).hexdigest() for array in found.values()]
    results = []
    for count in (1, 2, 7):
        npdwconv.set_num_threads(count)
        results.append([digests(s, layout) for s in SITUATIONS for layout in s.layouts])
    print(json.dumps(results))
"""


def test_any_number_of_threads():
    code = DIGESTS.replace("SITUATIONS", "situations.CORE")
    one, two, seven = json.loads(run(code))
    assert one == two == seven


LANES_CODE = """
    from kernels import situations, test_parity
    assert situations.LANES == {lanes}
    for s in {situations}:
        for layout in s.layouts:
            test_parity.exactly(s, layout, **test_parity.ending(s))
            for dtype in {dtypes}:
                test_parity.closely(s, dtype, layout)
"""


def other_lanes() -> list[int]:
    """Numbers of lanes narrower than the machine's own; test_guarded.py has the core at each, layouts in turn."""
    return [lanes for lanes in (16, 8, 4) if lanes < LANES]


# everything


@pytest.mark.sweep
@both_layouts(*CORE, *MORE, *SWEPT)
def test_sweep(s: Situation, layout: str):
    exactly(s, layout)
    for dtype in DTYPES if s in CORE else dtypes_of(s):
        closely(s, dtype, layout)


def dtypes_of(s: Situation) -> tuple[str, ...]:
    """The dtypes that the sweep gives a situation: each gets one beside float32, in turn."""
    turn = list(BY_NAME).index(s.name) % 3
    return DTYPES[0], DTYPES[1 + turn]


@pytest.mark.sweep
@pytest.mark.parametrize("activation", list(ACTIVATIONS))
@pytest.mark.parametrize("dtype", DTYPES)
@both_layouts(*CORE)
def test_sweep_of_activations(s: Situation, layout: str, dtype: str, activation: str):
    closely(s, dtype, layout, **dict.fromkeys(s.activations, activation))


@pytest.mark.sweep
@pytest.mark.parametrize("lanes", other_lanes())
@pytest.mark.parametrize("part", range(4))
def test_sweep_of_lanes(lanes: int, part: int):
    names = f"(*situations.CORE, *situations.MORE, *situations.SWEPT)[{part}::4]"
    code = LANES_CODE.format(lanes=lanes, situations=names, dtypes="test_parity.dtypes_of(s)[1:]")
    run(code, NPDWCONV_LANES=lanes, seconds=3000)


@pytest.mark.sweep
@pytest.mark.parametrize("part", range(4))
def test_sweep_of_threads(part: int):
    code = DIGESTS.replace("SITUATIONS", f"(*situations.MORE, *situations.SWEPT)[{part}::4]")
    one, two, seven = json.loads(run(code, seconds=3000))
    assert one == two == seven


@pytest.mark.sweep
@given(case=cases(), activation=st.sampled_from((None, *PIECEWISE)))
@settings(max_examples=300)
def test_drawn(case: Case, activation: str | None):
    x, weight, bias = case.x(), case.weight(), case.bias()
    wanted = case.conv(x, weight, bias, backend="reference", activation=activation)
    assert np.array_equal(case.conv(x, weight, bias, backend="numba", activation=activation), wanted)
    arguments = case.like(wanted), x, weight, bias
    found, want = (case.backward(*arguments, backend=name, activation=activation) for name in ("numba", "reference"))
    assert all(map(np.array_equal, found, want))


@pytest.mark.sweep
@given(drawn=transposed())
@settings(max_examples=150)
def test_drawn_transposed(drawn):
    case, options = drawn
    forward, backward = (op(f"depthwise_conv_transpose{{}}d{kind}", case.rank) for kind in ("", "_backward"))
    x, weight, bias = case.x(), case.weight(), case.bias()
    wanted = forward(x, weight, bias, backend="reference", **options)
    assert np.array_equal(forward(x, weight, bias, backend="numba", **options), wanted)
    arguments = case.like(wanted), x, weight, bias
    found, want = (backward(*arguments, backend=name, **options) for name in ("numba", "reference"))
    assert all(map(np.array_equal, found, want))

"""Operators inside functions that Numba compiles: every one of them, options, errors, threads, the cache on disk."""

from __future__ import annotations

import subprocess
import sys
import textwrap
import tracemalloc
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from numba import njit, prange
from numba.core.errors import TypingError

import npdwconv
from npdwconv import dispatch, presence
from npdwconv.errors import BackendUnavailableError, DTypeError, OptionError, ShapeError
from npdwconv.kernels.cpu import calls
from npdwconv.njit import RESULTS, Call

OPERATORS = sorted(name for name in npdwconv.__all__ if "conv" in name or name == "fold_batchnorm")
SPATIAL, KERNEL = (5, 6, 7), (2, 3, 3)


def array(*shape, dtype=np.float32):
    return np.random.default_rng(sum(shape)).standard_normal(shape).astype(dtype)


def operands(name):
    """Names and values of what a call of the operator takes."""
    rank = next((int(digit) for digit in name if digit.isdigit()), 2)
    x, weight = array(2, 4, *SPATIAL[:rank]), array(4, 1, *KERNEL[:rank])
    given = {"x": x, "weight": weight, "bias": array(4)}
    if name.startswith("pointwise"):
        given["weight"] = array(4, 4)
    elif name.startswith("separable"):
        named = {"depthwise_weight": weight, "pointwise_weight": array(5, 4)}
        given = {"x": x, **named, "bias": array(5), "depthwise_bias": array(4)}
    elif "tokens" in name:
        given |= {"x": array(2, 30, 4), "grid": (5, 6)}
    elif name.startswith("causal"):
        given["state"] = array(2, 4, 1)
    elif name == "fold_batchnorm":
        vectors = {vector: abs(array(4)) for vector in ("gamma", "beta", "mean", "var")}
        return {"weight": weight, "bias": array(4), **vectors, "eps": 1e-5}
    stem, _, ending = name.rpartition("_")
    if ending == "backward":
        forward = getattr(npdwconv, stem)(**given)
        given = {"grad_out": forward[0] if isinstance(forward, tuple) else forward, **given}
    if ending == "grad":
        grad_out = npdwconv.__dict__[stem.rpartition("_")[0]](x, weight)
        shapes = (
            {"weight": weight, "input_shape": x.shape} if "input" in name else {"x": x, "weight_shape": weight.shape}
        )
        given = {"grad_out": grad_out, **shapes}
    return given


def compiled(name, arguments, options="", **settings):
    """A function of those arguments, compiled, that calls the operator with ``options`` spelled out."""
    keywords = ", ".join([*(f"{argument}={argument}" for argument in arguments), *filter(None, [options])])
    scope = {"npdwconv": npdwconv}
    exec(f"def call({', '.join(arguments)}):\n    return npdwconv.{name}({keywords})", scope)
    return njit(**settings)(scope["call"])


def assert_same(got, wanted):
    if not isinstance(wanted, tuple):
        got, wanted = (got,), (wanted,)
    assert type(got) is type(wanted)
    for one, other in zip(got, wanted, strict=True):
        assert (one is None) == (other is None)
        if other is not None:
            assert one.dtype == other.dtype
            assert one.flags.c_contiguous
            np.testing.assert_array_equal(one, other)


def test_every_operator_is_registered():
    assert sorted(RESULTS) == OPERATORS


@pytest.mark.parametrize("name", OPERATORS)
def test_the_same_bits_as_called_from_python(name):
    given = operands(name)
    assert_same(compiled(name, given)(**given), getattr(npdwconv, name)(**given))


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("depthwise_conv2d", "stride=(2, 1), padding=((1, 0), (2, 1)), activation='relu6'"),
        ("depthwise_conv2d", "padding='same', dilation=2, padding_mode='reflect'"),
        ("depthwise_conv1d_backward", "padding=1, needs='weight', activation='silu'"),
        ("depthwise_conv3d_backward", "padding=1, needs=('x', 'bias')"),
        ("pointwise_conv", "activation='gelu', backend='reference'"),
        ("causal_depthwise_conv1d_backward", "needs=('state', 'weight')"),
    ],
)
def test_options_are_passed_on(name, options):
    given = operands(name)
    chosen = eval(f"dict({options})")
    if "grad_out" in given:
        forward = {key: value for key, value in chosen.items() if key != "needs"}
        stem = name.removesuffix("_backward")
        result = getattr(npdwconv, stem)(**{k: v for k, v in given.items() if k != "grad_out"}, **forward)
        given["grad_out"] = result[0] if isinstance(result, tuple) else result
    assert_same(compiled(name, given, options)(**given), getattr(npdwconv, name)(**given, **chosen))


def test_positions_options_of_run_time_and_a_default_of_the_caller():
    @njit
    def call(x, weight, stride, mode, bias=None):
        return npdwconv.depthwise_conv2d(x, weight, bias, stride=(stride, 1), padding=1, padding_mode=mode)

    x, weight, bias = array(2, 4, 6, 6), array(8, 1, 3, 3), array(8)
    for arguments in ((2, "zeros"), (1, "circular"), (2, "reflect", bias)):
        stride, mode, *rest = arguments
        wanted = npdwconv.depthwise_conv2d(x, weight, *rest, stride=(stride, 1), padding=1, padding_mode=mode)
        assert_same(call(x, weight, *arguments), wanted)


def test_a_bias_that_may_be_absent():
    @njit
    def call(grad, x, weight, bias, there):
        return npdwconv.depthwise_conv1d_backward(grad, x, weight, bias if there else None)

    x, weight, bias = array(1, 2, 6), array(2, 1, 3), array(2)
    for there in (True, False):
        wanted = npdwconv.depthwise_conv1d_backward(x[..., 2:], x, weight, bias if there else None)
        assert_same(call(x[..., 2:], x, weight, bias, there), wanted)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_dtypes_strides_and_read_only_arrays(dtype):
    x = array(2, 12, 10, 4, dtype=dtype)[:, ::2].transpose(0, 3, 1, 2)
    weight = array(4, 1, 3, 3, dtype=dtype)
    weight.flags.writeable = False
    call = compiled("depthwise_conv2d", ("x", "weight"), "padding=1")
    assert_same(call(x, weight), npdwconv.depthwise_conv2d(x, weight, padding=1))


def test_out_is_written_and_returned():
    @njit
    def call(x, weight, out):
        return npdwconv.pointwise_conv(x, weight, out=out[:, ::2])

    x, weight, out = array(1, 3, 4), array(5, 3), np.zeros((1, 10, 4), np.float32)
    returned = call(x, weight, out)
    np.testing.assert_array_equal(out[:, ::2], npdwconv.pointwise_conv(x, weight))
    assert np.shares_memory(returned, out)
    assert not out[:, 1::2].any()


def test_fields_of_gradients_and_arithmetic():
    @njit
    def step(grad, x, weight):
        grads = npdwconv.pointwise_conv_backward(grad, x, weight, needs=("x", "weight"))
        return weight - np.float32(0.5) * grads.weight, grads.x.sum()

    x, weight = array(2, 3, 4), array(5, 3)
    grad = npdwconv.pointwise_conv(x, weight)
    moved, total = step(grad, x, weight)
    grads = npdwconv.pointwise_conv_backward(grad, x, weight)
    np.testing.assert_array_equal(moved, weight - np.float32(0.5) * grads.weight)
    assert total == pytest.approx(grads.x.sum(), rel=1e-5)


X, W = array(1, 2, 5), array(2, 1, 3)


@pytest.mark.parametrize(
    ("error", "arguments", "options"),
    [
        (ShapeError, (X, array(3, 1, 3)), ""),
        (ShapeError, (X, array(2, 1, 9)), ""),
        (DTypeError, (X, W.astype(np.float64)), ""),
        (OptionError, (X, W), "stride=0"),
        (BackendUnavailableError, (X, W), "backend='cuda'"),
    ],
)
def test_errors_are_those_of_python(monkeypatch, error, arguments, options):
    monkeypatch.setattr(presence, "missing", lambda: "there is none")  # nor is the tests' simulator
    monkeypatch.setattr(dispatch, "_kernels", {})
    with pytest.raises(error) as wanted:
        npdwconv.depthwise_conv1d(*arguments, **eval(f"dict({options})"))
    with pytest.raises(error) as got:
        compiled("depthwise_conv1d", ("x", "weight"), options)(*arguments)
    assert str(got.value) == str(wanted.value)


def test_an_error_can_be_caught_in_compiled_code():
    @njit
    def call(x, weight):
        try:
            return npdwconv.depthwise_conv1d(x, weight).sum()
        except Exception:
            return np.float32(-1)

    assert call(X, array(3, 1, 3)) == -1
    assert call(X, W) == pytest.approx(npdwconv.depthwise_conv1d(X, W).sum(), rel=1e-5)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("depthwise_conv1d(x, w, strides=2)", "unexpected keyword argument 'strides'"),
        ("depthwise_conv1d(x)", "missing a required argument: 'weight'"),
        ("depthwise_conv1d(x, w, None, 2)", "too many positional arguments"),
        ("depthwise_conv1d(1.0, w)", "x is a value of type"),
        ("depthwise_conv1d_backward(x, x, w, needs=n)", "needs literals"),
    ],
)
def test_a_wrong_call_does_not_compile(source, message):
    scope = {"npdwconv": npdwconv}
    exec(f"def call(x, w, n):\n    return npdwconv.{source}", scope)
    with pytest.raises(TypingError, match=message):
        njit(scope["call"])(X, W, "x")


def test_a_call_uses_one_thread(monkeypatch):
    seen = []

    def operator(x):
        seen.append(npdwconv.get_num_threads())
        return x

    monkeypatch.setattr(npdwconv, "probe", operator, raising=False)
    assert Call("probe", {}, ("x",))(1) == (1, None)
    assert seen == [1]
    assert npdwconv.get_num_threads() == npdwconv.threads.usable_cores()


def test_what_no_error_of_ours_names_is_a_runtime_error():
    kinds = [calls.failure(kind("why"))[0] for kind in (*calls.ERRORS, KeyError)]
    assert kinds == list(range(len(calls.ERRORS) + 1))
    assert calls.failure(MemoryError()) == (4, "MemoryError")


def test_loops_in_parallel_and_threads_without_the_lock():
    @njit(parallel=True)
    def sums(xs, weight):
        found = np.zeros(len(xs), np.float32)
        for i in prange(len(xs)):
            found[i] = npdwconv.depthwise_conv2d(xs[i : i + 1], weight, padding=1)[0, 1, 2, 3]
        return found

    xs, weight = array(40, 4, 9, 9), array(4, 1, 3, 3)
    wanted = npdwconv.depthwise_conv2d(xs, weight, padding=1)
    np.testing.assert_array_equal(sums(xs, weight), wanted[:, 1, 2, 3])
    one = compiled("depthwise_conv2d", ("x", "weight"), "padding=1", nogil=True)
    with ThreadPoolExecutor(4) as pool:
        images = pool.map(lambda i: one(xs[i : i + 1], weight), range(40))
    np.testing.assert_array_equal(np.concatenate(list(images)), wanted)


def test_no_reference_is_lost_or_kept():
    @njit
    def call(x, weight):
        try:
            return npdwconv.depthwise_conv1d(x, weight).sum()
        except Exception:
            return np.float32(0)

    x, weight = array(1, 2, 5), array(2, 1, 3)
    before = sys.getrefcount(x), sys.getrefcount(weight)
    for _ in range(50):
        assert call(x, weight) != 0
        assert call(x, weight[:, :, :0]) == 0
    assert (sys.getrefcount(x), sys.getrefcount(weight)) == before


def test_results_are_freed():
    @njit
    def call(x, weight, times):
        total = np.float32(0)
        for _ in range(times):
            grads = npdwconv.depthwise_conv1d_backward(x, x, weight, padding="same")
            total += grads.x[0, 0, 0] + npdwconv.depthwise_conv1d(x, weight)[0, 0, 0]
        return total

    x, weight = array(1, 2, 50_000), array(2, 1, 3)
    call(x, weight, 1)
    tracemalloc.start()
    try:
        call(x, weight, 20)
        assert tracemalloc.get_traced_memory()[0] < x.nbytes
    finally:
        tracemalloc.stop()


PROGRAM = textwrap.dedent("""
    import numpy as np
    from numba import njit
    import npdwconv

    @njit(cache=True)
    def call(x, weight):
        grads = npdwconv.depthwise_conv2d_backward(x, x, weight, padding="same", needs="x")
        return grads.x

    x, weight = np.ones((1, 2, 4, 4), np.float32), np.ones((2, 1, 3, 3), np.float32)
    wanted = npdwconv.depthwise_conv2d_backward(x, x, weight, padding="same", needs="x").x
    print(np.array_equal(call(x, weight), wanted), sum(call.stats.cache_hits.values()))
    try:
        call(x, weight[:1])
    except ValueError as error:
        print(type(error).__name__, str(error)[:26])
""")


def test_nothing_need_be_imported_and_the_code_is_kept_on_disk(tmp_path):
    program = tmp_path / "program.py"
    program.write_text(PROGRAM)

    def run():
        command = [sys.executable, "-W", "error", str(program)]
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout.splitlines()

    error = "ShapeError depthwise_conv2d_backward:"[:37]
    assert [run(), run()] == [["True 0", error], ["True 1", error]]

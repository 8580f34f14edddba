"""Awkward arrays: any strides, read-only, empty, sliced out of poison, by DLPack, in 16 bits; `out` of any strides."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import Any

import numpy as np
import pytest

import npdwconv as n
from npdwconv.memory import LARGE, LINE, PAGE

Make = Callable[[np.ndarray], np.ndarray]


def out_of_poison(array: np.ndarray) -> np.ndarray:
    """The same values with NaN all around them."""
    buffer = np.full([3 * extent + 2 for extent in array.shape], np.nan, dtype=array.dtype)
    view = buffer[tuple(slice(1, 1 + 2 * extent, 2) for extent in array.shape)]
    view[...] = array
    return view


def backwards(array: np.ndarray) -> np.ndarray:
    turned = tuple(slice(None, None, -1) for _ in array.shape)
    return array[turned].copy()[turned]


def read_only(array: np.ndarray) -> np.ndarray:
    array = array.copy()
    array.flags.writeable = False
    return array


class Subclass(np.ndarray):
    """An array of another type."""


AWKWARD: dict[str, Make] = {
    "read_only": read_only,
    "backwards": backwards,
    "out_of_poison": out_of_poison,
    "fortran": np.asfortranarray,
    "swapped": lambda array: np.ascontiguousarray(array.T).T,
    "subclass": lambda array: array.view(Subclass),
}


def operands(layout: str = "channels_first", dtype: Any = np.float32) -> tuple[np.ndarray, ...]:
    rng = np.random.default_rng(3)
    x = rng.standard_normal((2, 3, 6, 5) if layout == "channels_first" else (2, 6, 5, 3)).astype(dtype)
    return x, *(rng.standard_normal(shape).astype(dtype) for shape in ((6, 1, 3, 2), (6,), (4, 6)))


def everything(x: Any, w: Any, b: Any, pw: Any, layout: str) -> dict[str, np.ndarray]:
    """Every kind of operator and its gradients."""
    options: dict[str, Any] = {"layout": layout, "stride": 2, "padding": 1}
    results = {"conv": n.depthwise_conv2d(x, w, b, activation="silu", **options)}
    g = np.cos(results["conv"])
    results |= n.depthwise_conv2d_backward(g, x, w, b, activation="silu", **options)._asdict()
    results["reflect"] = n.depthwise_conv2d(x, w, padding=2, padding_mode="reflect", layout=layout)
    results["transpose"] = n.depthwise_conv_transpose2d(x, w, b, **options)
    results["separable"] = n.separable_conv2d(x, w, pw, depthwise_bias=b, **options)
    separable = n.separable_conv2d_backward(np.cos(results["separable"]), x, w, pw, depthwise_bias=b, **options)
    results |= {f"separable {name}": value for name, value in separable._asdict().items() if value is not None}
    return results


@pytest.mark.parametrize("layout", ["channels_first", "channels_last"])
@pytest.mark.parametrize("make", AWKWARD.values(), ids=AWKWARD)
def test_same_bits_whatever_the_strides(make, layout):
    arrays = operands(layout)
    awkward = [make(array) for array in arrays]
    before = [array.tobytes() for array in awkward]
    wanted, found = everything(*arrays, layout), everything(*awkward, layout)
    for name, array in wanted.items():
        assert type(found[name]) is np.ndarray
        assert found[name].flags.c_contiguous, name
        assert found[name].tobytes() == array.tobytes(), name
    assert [array.tobytes() for array in awkward] == before


def sequences(make: Make) -> dict[str, np.ndarray]:
    """The operators of other ranks, and of tokens and time, on operands that ``make`` made awkward."""
    rng = np.random.default_rng(5)

    def some(*shape: int) -> np.ndarray:
        return make(rng.standard_normal(shape).astype(np.float32))

    line, w1, state, tokens, w2 = some(2, 3, 7), some(3, 1, 3), some(2, 3, 2), some(2, 12, 3), some(6, 1, 3, 3)
    causal, after = n.causal_depthwise_conv1d(line, w1, state=state)
    grads = n.causal_depthwise_conv1d_backward(some(2, 3, 7), line, w1, state=state, grad_next_state=some(2, 3, 2))
    token_grads = n.depthwise_conv_tokens_backward(some(2, 12, 6), tokens, w2, grid=(3, 4))
    results = {"causal": causal, "next state": after, "1-D": n.depthwise_conv1d(line, w1, stride=2)}
    results["tokens"] = n.depthwise_conv_tokens(tokens, w2, grid=(3, 4))
    results["3-D"] = n.depthwise_conv3d(some(1, 2, 3, 4, 3), some(2, 1, 2, 2, 1), dilation=2)
    results["pointwise"] = n.pointwise_conv(line, some(4, 3))
    results |= {f"grad_{name} of tokens": g for name, g in token_grads._asdict().items() if g is not None}
    return results | {f"grad_{name} of causal": g for name, g in grads._asdict().items() if g is not None}


@pytest.mark.parametrize("make", AWKWARD.values(), ids=AWKWARD)
def test_sequences_whatever_the_strides(make):
    wanted, found = sequences(np.array), sequences(make)
    for name, array in wanted.items():
        assert type(found[name]) is np.ndarray
        assert found[name].flags.c_contiguous, name
        assert found[name].tobytes() == array.tobytes(), name


def test_stride_0():
    x, w, *_ = operands()
    flat = np.broadcast_to(x[:1, :, :1, :1], x.shape)
    np.testing.assert_array_equal(n.depthwise_conv2d(flat, w), n.depthwise_conv2d(flat.copy(), w))
    one = np.broadcast_to(np.float32(1.5), (2, 6, 4, 4))
    found, wanted = (n.depthwise_conv2d_backward(g, x, w) for g in (one, one.copy()))
    np.testing.assert_array_equal(found.x, wanted.x)
    np.testing.assert_array_equal(found.weight, wanted.weight)


OUTS: dict[str, Callable[[tuple[int, ...]], tuple[np.ndarray, np.ndarray]]] = {
    "sliced": lambda shape: (
        buffer := np.full([2 * e + 1 for e in shape], 7.0, np.float32),
        buffer[1::2, 1::2, 1::2, 1::2],
    ),
    "backwards": lambda shape: (buffer := np.full(shape, 7.0, np.float32), buffer[::-1, :, ::-1, ::-1]),
    "fortran": lambda shape: (buffer := np.full(shape[::-1], 7.0, np.float32), buffer.T),
}


@pytest.mark.parametrize("make", OUTS.values(), ids=OUTS)
def test_out_is_written_and_nothing_around_it(make):
    x, w, b, pw = operands()
    calls = {
        "conv": lambda out: n.depthwise_conv2d(x, w, b, padding="same", out=out),
        "pointwise": lambda out: n.pointwise_conv(x, pw[:, :3], out=out),
        "separable": lambda out: n.separable_conv2d(x, w, pw, stride=2, out=out),
        "transpose": lambda out: n.depthwise_conv_transpose2d(x, w, stride=2, out=out),
    }
    for name, call in calls.items():
        wanted = call(None)
        buffer, out = make(wanted.shape)
        assert call(out) is out, name
        np.testing.assert_array_equal(out, wanted)
        out[...] = 7.0
        assert (buffer == 7.0).all(), name


@pytest.mark.parametrize("layout", ["channels_first", "channels_last"])
@pytest.mark.parametrize("empty", ["batch", "channels", "extent"])
def test_empty(empty, layout):
    batch, channels, extent = (0 if name == empty else 4 for name in ("batch", "channels", "extent"))
    first = layout == "channels_first"
    x = np.ones((batch, channels, extent, 3) if first else (batch, extent, 3, channels), np.float32)
    w, pw = np.ones((channels, 1, 3, 3), np.float32), np.ones((2, channels), np.float32)
    options: dict[str, Any] = {"padding": "same", "layout": layout}
    y = n.depthwise_conv2d(x, w, **options)
    assert y.shape == x.shape
    grads = n.depthwise_conv2d_backward(y, x, w, **options)
    assert grads.x.shape == x.shape
    assert grads.weight.shape == w.shape
    assert channels == 0 or not grads.weight.any()
    bias = np.full(2, 5.0, np.float32)
    z = n.separable_conv2d(x, w, pw, bias, **options)
    assert (z == 5.0).all() if empty == "channels" else z.size == 0
    assert n.separable_conv2d_backward(z, x, w, pw, bias, **options).pointwise_weight.shape == pw.shape


class Speaks:
    """Nothing but DLPack."""

    def __init__(self, array: np.ndarray) -> None:
        self.array = array

    def __dlpack__(self, **options: Any) -> Any:
        return self.array.__dlpack__(**options)

    def __dlpack_device__(self) -> tuple[int, int]:
        return self.array.__dlpack_device__()


def test_operands_are_taken_without_a_copy():
    from npdwconv.arguments import as_array

    x, w, b, _ = operands()
    found = n.depthwise_conv2d(Speaks(x), Speaks(w), Speaks(b))
    assert type(found) is np.ndarray
    np.testing.assert_array_equal(found, n.depthwise_conv2d(x, w, b))
    assert np.shares_memory(as_array("x", Speaks(x)), x)
    assert np.shares_memory(as_array("x", x[:, ::-1]), x)


def test_a_refused_dlpack_names_the_way_out():
    class Refuses(Speaks):
        def __dlpack__(self, **options: Any) -> Any:
            raise BufferError("requires grad")

    x, w, *_ = operands()
    with pytest.raises(n.DTypeError, match=r"x is a Refuses .* requires grad; .* detached"):
        n.depthwise_conv2d(Refuses(x), w)


def narrow_types() -> list[Any]:
    try:
        import ml_dtypes
    except ModuleNotFoundError:
        return [np.float16]
    return [np.float16, ml_dtypes.bfloat16]


@pytest.mark.parametrize("dtype", narrow_types(), ids=str)
def test_16_bit_is_float32_rounded_once(dtype):
    arrays = operands(dtype=dtype)
    wide = [array.astype(np.float32) for array in arrays]
    y, grads = (
        n.separable_conv2d(*arrays[:2], arrays[3], depthwise_activation="gelu", activation="silu"),
        n.depthwise_conv2d_backward(np.ones((2, 6, 4, 4), dtype), *arrays[:3], activation="gelu"),
    )
    wanted = n.separable_conv2d(*wide[:2], wide[3], depthwise_activation="gelu", activation="silu")
    back = n.depthwise_conv2d_backward(np.ones((2, 6, 4, 4), np.float32), *wide[:3], activation="gelu")
    assert y.dtype == dtype
    assert y.tobytes() == wanted.astype(dtype).tobytes()
    for found, exact in zip(grads, back, strict=True):
        assert found.tobytes() == exact.astype(dtype).tobytes()


def test_16_bit_sums_do_not_stop_at_2048():
    x = np.ones((1, 1, 4000), np.float16)
    assert n.depthwise_conv1d(x, np.ones((1, 1, 4000), np.float16))[0, 0, 0] == 4000


def test_overflow_is_infinite_and_silent():
    x = np.full((1, 1, 5), 6e4, np.float16)
    assert np.isinf(n.depthwise_conv1d(x, np.ones((1, 1, 3), np.float16))).all()
    assert np.isinf(n.depthwise_conv1d(np.full((1, 1, 5), 3e38, np.float32), np.ones((1, 1, 3), np.float32))).all()
    assert np.isfinite(n.depthwise_conv1d(-x, np.ones((1, 1, 3), np.float16), activation="sigmoid")).all()


def test_a_memory_map(tmp_path):
    x, w, *_ = operands()
    np.save(tmp_path / "x.npy", x)
    mapped = np.load(tmp_path / "x.npy", mmap_mode="r")
    np.testing.assert_array_equal(n.depthwise_conv2d(mapped, w), n.depthwise_conv2d(x, w))


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
def test_large_results_begin_with_cache_lines(dtype: str):
    """Each elsewhere in its page, and each its own memory: nothing of a call before changes."""
    x = np.ones((1, 8, 96, 96), dtype)
    results = [n.depthwise_conv2d(x, np.full((8, 1, 1, 1), i, dtype)) for i in range(5)]
    assert x.nbytes >= LARGE
    assert all(result.ctypes.data % LINE == 0 and result.flags.c_contiguous for result in results)
    assert all(result.flags.writeable and result.flags.aligned for result in results)
    places = [result.ctypes.data % PAGE for result in results]
    assert all(place != other for place, other in pairwise(places))
    assert [result.min() == i == result.max() for i, result in enumerate(results)] == [True] * 5

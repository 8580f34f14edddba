"""Activations on the device against float64: within a few ulp; kinks, NaN and infinities exactly."""

from __future__ import annotations

import numpy as np
import pytest
from cuda_calls import needs_cuda, silent
from kernels.situations import DTYPES, PRECISION, dtype_named

import npdwconv
from npdwconv.activations import ACTIVATIONS

pytestmark = [needs_cuda, silent]

NUMBERS = (0.0, 0.25, 0.5, 1.0, 2.0, 2.5, 3.0, 3.5, 5.0, 6.0, 7.0, 9.0, 30.0, 100.0, 1000.0)
POINTS = np.array([sign * number for number in NUMBERS for sign in (-1.0, 1.0)] + [np.inf, -np.inf, np.nan])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", list(ACTIVATIONS))
def test_values_and_slopes(name: str, dtype: str):
    if dtype == "bfloat16":
        pytest.importorskip("ml_dtypes", reason="bfloat16")
    z = POINTS.astype(dtype_named(dtype)).reshape(1, 1, -1)
    one = np.ones((1, 1), z.dtype)
    out = npdwconv.pointwise_conv(z, one, activation=name, backend="cuda")
    back = npdwconv.pointwise_conv_backward(np.ones_like(z), z, one, activation=name, needs="x", backend="cuda")
    assert (out.dtype, back.x.dtype) == (z.dtype, z.dtype)
    wide = z.astype(np.float64)
    with np.errstate(all="ignore"):
        value, slope = ACTIVATIONS[name].function(wide), ACTIVATIONS[name].derivative(wide)
    for found, want in ((out, value), (back.x, slope)):
        whole = np.isfinite(wide)
        assert np.array_equal(found[~whole].astype(np.float64), want[~whole], equal_nan=True)
        accumulated, stored = PRECISION[dtype]
        least = 2.0**-24 if dtype == "float16" else 0.0
        bound = 8 * accumulated * (np.abs(want) + np.abs(wide)) + stored * np.abs(want) + least
        assert (np.abs(found - want)[whole] <= bound[whole]).all()


KINKS = {
    "relu": ([-1, 0, 1], [0, 0, 1], [0, 0, 1]),
    "relu6": ([0, 1, 6, 7], [0, 1, 6, 6], [0, 1, 0, 0]),
    "hardswish": ([-3, 3, -4, 4, 0], [0, 3, 0, 4, 0], [0, 1, 0, 1, 0.5]),
    "hardsigmoid": ([-3, 3, -4, 4, 0], [0, 1, 0, 1, 0.5], [0, 0, 0, 0, np.float32(1 / 6)]),
}


@pytest.mark.parametrize("name", list(KINKS))
@pytest.mark.parametrize("layout", ["channels_first", "channels_last"])
def test_kinks(name: str, layout: str):
    points, values, slopes = (np.array(numbers, np.float32) for numbers in KINKS[name])
    z = points.reshape((1, 1, -1) if layout == "channels_first" else (1, -1, 1))
    one = np.ones((1, 1, 1), np.float32)
    out = npdwconv.depthwise_conv1d(z, one, activation=name, layout=layout, backend="cuda")
    assert np.array_equal(out.reshape(-1), values)
    options = {"activation": name, "layout": layout, "needs": "x", "backend": "cuda"}
    back = npdwconv.depthwise_conv1d_backward(np.ones_like(z), z, one, **options)
    assert np.array_equal(back.x.reshape(-1), slopes)


@pytest.mark.parametrize("name", list(ACTIVATIONS))
def test_nan_passes(name: str):
    z, one = np.array([[[1.0, np.nan, 2.0]]], np.float32), np.ones((1, 1, 1), np.float32)
    options = {"activation": name, "backend": "cuda"}
    assert np.isnan(npdwconv.depthwise_conv1d(z, one, **options)).tolist() == [[[False, True, False]]]
    grads = npdwconv.depthwise_conv1d_backward(np.ones_like(z), z, one, **options)
    assert np.isnan(grads.x).tolist() == [[[False, True, False]]]

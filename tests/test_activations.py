"""The activation table: derivatives against slopes, values at kinks, Lipschitz constants, NaN and extremes."""

from __future__ import annotations

import numpy as np
import pytest

from npdwconv.activations import ACTIVATIONS

GRID = np.linspace(-12.0, 12.0, 4801)
KINKS = {"relu": (0.0,), "relu6": (0.0, 6.0), "hardswish": (-3.0, 3.0), "hardsigmoid": (-3.0, 3.0)}

every = pytest.mark.parametrize("name", ACTIVATIONS)


@every
def test_derivative_is_the_slope_of_the_function(name):
    activation, step = ACTIVATIONS[name], 1e-6
    z = GRID[np.all([abs(GRID - kink) > 2 * step for kink in KINKS.get(name, ())], axis=0)] if name in KINKS else GRID
    slope = (activation.function(z + step) - activation.function(z - step)) / (2 * step)
    np.testing.assert_allclose(activation.derivative(z), slope, rtol=0, atol=1e-8)


@every
def test_lipschitz_constant_is_a_bound_and_is_reached(name):
    steepest = np.abs(ACTIVATIONS[name].derivative(np.linspace(-4, 4, 800_001))).max()
    assert steepest <= ACTIVATIONS[name].lipschitz <= steepest * (1 + 1e-9) + 1e-12 or name == "hardswish"


def test_hardswish_is_steepest_towards_its_kink():
    below = np.nextafter(3.0, 0.0)
    assert ACTIVATIONS["hardswish"].derivative(np.array([below]))[0] == pytest.approx(1.5)
    assert ACTIVATIONS["hardswish"].lipschitz == 1.5


@pytest.mark.parametrize(
    ("name", "z", "expected"),
    [
        ("relu", 0.0, 0.0),
        ("relu6", 0.0, 0.0),
        ("relu6", 6.0, 0.0),
        ("hardswish", -3.0, 0.0),
        ("hardswish", 3.0, 1.0),
        ("hardsigmoid", -3.0, 0.0),
        ("hardsigmoid", 3.0, 0.0),
    ],
)
def test_derivative_at_a_kink(name, z, expected):
    assert ACTIVATIONS[name].derivative(np.array([z]))[0] == expected


@every
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_nan_passes_and_the_dtype_stays(name, dtype):
    z = np.array([np.nan, 1.0], dtype=dtype)
    for function in (ACTIVATIONS[name].function, ACTIVATIONS[name].derivative):
        result = function(z)
        assert result.dtype == dtype
        assert np.isnan(result).tolist() == [True, False]


@every
def test_derivative_is_0_or_1_far_out(name):
    z = np.array([-1e30, -1e4, 1e4, 1e30], dtype=np.float32)
    with np.errstate(all="ignore"):
        derivative = ACTIVATIONS[name].derivative(z)
    bounded = name in ("relu6", "sigmoid", "hardsigmoid")
    assert derivative.tolist() == [0.0, 0.0, 0.0 if bounded else 1.0, 0.0 if bounded else 1.0]


@every
def test_float32_is_close_to_float64(name):
    z = GRID.astype(np.float32)
    for function in (ACTIVATIONS[name].function, ACTIVATIONS[name].derivative):
        wide = function(z.astype(np.float64))
        assert np.all(np.abs(function(z) - wide) <= 16 * np.finfo(np.float32).eps * (1 + np.abs(wide)))

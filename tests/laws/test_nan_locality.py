"""Law: a NaN or infinity reaches exactly the results whose window reads it; taps in zero padding read nothing."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from strategies import Case, cases, op, transposed

import npdwconv

BAD = st.sampled_from([np.nan, np.inf])


def poisoned(array: np.ndarray, index: tuple[int, ...], value: float) -> np.ndarray:
    changed = array.copy()
    changed[index] = value
    return changed


def picked(case: Case, array: np.ndarray) -> tuple[int, ...]:
    return tuple(int(case.rng.integers(n)) for n in array.shape)


def spreads_as_read(function, array: np.ndarray, index: tuple[int, ...], value: float) -> None:
    """Only those results are not finite that depend on the element: with all else 1, those that it changes."""
    reached = ~np.isfinite(function(poisoned(array, index, value)))
    depends = function(poisoned(np.zeros_like(array), index, 1.0)) != 0
    assert np.array_equal(reached, depends)


@given(cases(), BAD)
def test_forward(case: Case, bad: float):
    x, weight = case.x(), np.ones(case.weight_shape, np.float32)
    spreads_as_read(lambda x: case.conv(x, weight), x, picked(case, x), bad)


@given(cases(), BAD)
def test_a_tap_in_zero_padding_reads_nothing(case: Case, bad: float):
    x, weight = np.abs(case.x()) + 1, case.weight()
    spreads_as_read(lambda weight: case.conv(x, weight), weight, picked(case, weight), bad)


@given(cases(), BAD)
def test_gradients(case: Case, bad: float):
    x, weight = np.abs(case.x()) + 1, np.ones(case.weight_shape, np.float32)
    g = np.abs(case.like(case.conv(x, weight))) + 1
    spreads_as_read(lambda g: case.input_grad(g, weight, x.shape), g, picked(case, g), bad)
    spreads_as_read(lambda w: case.input_grad(g, w, x.shape), weight, picked(case, weight), bad)
    spreads_as_read(lambda g: case.weight_grad(g, x), g, picked(case, g), bad)
    spreads_as_read(lambda x: case.weight_grad(g, x), x, picked(case, x), bad)


@given(transposed(), BAD)
def test_transposed(drawn, bad: float):
    case, options = drawn
    conv = op("depthwise_conv_transpose{}d", case.rank)
    x, weight = np.abs(case.x()) + 1, np.ones(case.weight_shape, np.float32)
    spreads_as_read(lambda x: conv(x, weight, **options), x, picked(case, x), bad)
    spreads_as_read(lambda weight: conv(x, weight, **options), weight, picked(case, weight), bad)


@pytest.mark.parametrize("activation", sorted(npdwconv.activations.ACTIVATIONS))
def test_activations_pass_nan_on(activation):
    x = np.array([[[1.0, np.nan, 2.0]]], np.float32)
    one = np.ones((1, 1, 1), np.float32)
    out = npdwconv.depthwise_conv1d(x, one, activation=activation)
    assert np.array_equal(np.isnan(out), np.isnan(x))
    grads = npdwconv.depthwise_conv1d_backward(np.ones_like(x), x, one, activation=activation)
    assert np.array_equal(np.isnan(grads.x), np.isnan(x))


@pytest.mark.parametrize("activation", sorted(npdwconv.activations.ACTIVATIONS))
def test_slopes_are_0_or_1_at_infinity(activation):
    x, one = np.array([[[-np.inf, np.inf]]], np.float32), np.ones((1, 1, 1), np.float32)
    grads = npdwconv.depthwise_conv1d_backward(np.ones_like(x), x, one, activation=activation)
    bounded = activation in ("relu6", "sigmoid", "hardsigmoid")
    assert grads.x.tolist() == [[[0.0, 0.0 if bounded else 1.0]]]

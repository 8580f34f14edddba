"""Law: a result does not depend on which images share its batch, nor on how often it is asked for: same bits."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from strategies import LAYOUTS, Case, cases, moved, op, same_bits

import npdwconv


def normal(case: Case, shape: tuple[int, ...]) -> np.ndarray:
    return case.rng.standard_normal(shape).astype(np.float32)


def independent(function, x: np.ndarray) -> None:
    """``function`` of a batch is that of its images alone, of the images in another order, and of itself again."""
    whole = function(x)
    assert same_bits(function(x), whole)
    assert same_bits(np.concatenate([function(x[n : n + 1]) for n in range(len(x))]), whole)
    assert same_bits(function(x[::-1]), np.ascontiguousarray(whole[::-1]))


@given(cases())
def test_forward_and_input_grad(case: Case):
    x, weight, bias = normal(case, case.x().shape), normal(case, case.weight_shape), normal(case, (case.outputs,))
    independent(lambda x: case.conv(x, weight, bias, activation="gelu_tanh"), x)
    g = normal(case, case.conv(x, weight).shape)
    independent(lambda g: case.input_grad(g, weight, (len(g), *x.shape[1:])), g)


@given(cases())
def test_separable(case: Case):
    x, depthwise = normal(case, case.x().shape), normal(case, case.weight_shape)
    pointwise = normal(case, (3, case.outputs))
    independent(lambda x: op("separable_conv{}d", case.rank)(x, depthwise, pointwise, **case.options), x)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("channels", [1, 3, 64])
@pytest.mark.parametrize("pixels", [1, 7, 130])
def test_pointwise(layout, channels, pixels):
    rng = np.random.default_rng(8)
    x = moved(rng.standard_normal((5, channels, pixels), np.float32), layout)
    weight = rng.standard_normal((33, channels), np.float32)
    independent(lambda x: npdwconv.pointwise_conv(x, weight, layout=layout), x)
    g = moved(rng.standard_normal((5, 33, pixels), np.float32), layout)
    again = [npdwconv.pointwise_conv_backward(g, x, weight, layout=layout) for _ in range(2)]
    assert same_bits(again[0].x, again[1].x)
    assert same_bits(again[0].weight, again[1].weight)


@given(cases())
def test_weight_grad_repeats(case: Case):
    x, weight = normal(case, case.x().shape), normal(case, case.weight_shape)
    g = normal(case, case.conv(x, weight).shape)
    assert same_bits(case.weight_grad(g, x), case.weight_grad(g, x))

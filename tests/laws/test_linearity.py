"""Law: every operator without activation is linear in each operand; a bias adds."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from strategies import LAYOUTS, Case, cases, channels_first, integers, moved, op, transposed

import npdwconv


def combined(function, one, other):
    """Whether function(2·one − 3·other) = 2·function(one) − 3·function(other), exactly."""
    return np.array_equal(function(2 * one - 3 * other), 2 * function(one) - 3 * function(other))


@given(cases())
def test_forward_in_each_operand(case: Case):
    x, weight = case.x(), case.weight()
    assert combined(lambda x: case.conv(x, weight), x, case.x())
    assert combined(lambda weight: case.conv(x, weight), weight, case.weight())


@given(cases())
def test_gradients_in_each_operand(case: Case):
    x, weight = case.x(), case.weight()
    g = case.like(case.conv(x, weight))
    assert combined(lambda g: case.input_grad(g, weight, x.shape), g, case.like(g))
    assert combined(lambda w: case.input_grad(g, w, x.shape), weight, case.weight())
    assert combined(lambda g: case.weight_grad(g, x), g, case.like(g))
    assert combined(lambda x: case.weight_grad(g, x), x, case.x())


@given(cases())
def test_a_bias_adds_to_every_output_of_its_channel(case: Case):
    x, weight, bias = case.x(), case.weight(), case.bias()
    added = channels_first(case.conv(x, weight, bias) - case.conv(x, weight), case.layout)
    assert np.array_equal(added, np.broadcast_to(bias.reshape(-1, *(1,) * case.rank), added.shape))


@given(transposed())
def test_transposed_in_each_operand(drawn):
    case, options = drawn
    conv = op("depthwise_conv_transpose{}d", case.rank)
    x, weight = case.x(), case.weight()
    assert combined(lambda x: conv(x, weight, **options), x, case.x())
    assert combined(lambda weight: conv(x, weight, **options), weight, case.weight())


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("spatial", [(), (5,), (3, 4), (2, 3, 2)])
def test_pointwise_in_each_operand(spatial, layout):
    rng = np.random.default_rng(1)
    x, y = (moved(integers(rng, (2, 3, *spatial)), layout) for _ in range(2))
    weight, other = integers(rng, (5, 3)), integers(rng, (5, 3))
    assert combined(lambda x: npdwconv.pointwise_conv(x, weight, layout=layout), x, y)
    assert combined(lambda w: npdwconv.pointwise_conv(x, w, layout=layout), weight, other)


@given(cases())
def test_separable_in_each_operand(case: Case):
    conv = op("separable_conv{}d", case.rank)
    x, depthwise, pointwise = case.x(), case.weight(), integers(case.rng, (2, case.outputs))
    assert combined(lambda x: conv(x, depthwise, pointwise, **case.options), x, case.x())
    assert combined(lambda w: conv(x, w, pointwise, **case.options), depthwise, case.weight())
    assert combined(lambda w: conv(x, depthwise, w, **case.options), pointwise, case.like(pointwise))

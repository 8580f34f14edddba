"""Law: gradients are adjoints, ⟨f(x, w), g⟩ = ⟨x, grad_x⟩ = ⟨w, grad_w⟩, to the last bit on small integers.

With the three bilinear maps C(x, w), X(g, w), W(g, x) the gradient of a gradient is another of them: from
⟨X(g, w), v⟩ = ⟨g, C(v, w)⟩ = ⟨w, W(g, v)⟩ and ⟨W(g, x), u⟩ = ⟨g, C(x, u)⟩ = ⟨x, X(g, u)⟩.
"""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from strategies import LAYOUTS, Case, cases, channels_first, dot, integers, moved, op, transposed

import npdwconv


@given(cases())
def test_depthwise(case: Case):
    x, weight = case.x(), case.weight()
    out = case.conv(x, weight)
    g = case.like(out)
    assert dot(out, g) == dot(x, case.input_grad(g, weight, x.shape)) == dot(weight, case.weight_grad(g, x))


@given(cases())
def test_second_derivatives_are_the_same_maps(case: Case):
    x, weight, v, u = case.x(), case.weight(), case.x(), case.weight()
    g = case.like(case.conv(x, weight))
    grad_x, grad_weight = case.input_grad(g, weight, x.shape), case.weight_grad(g, x)
    assert dot(grad_x, v) == dot(g, case.conv(v, weight)) == dot(weight, case.weight_grad(g, v))
    assert dot(grad_weight, u) == dot(g, case.conv(x, u)) == dot(x, case.input_grad(g, u, x.shape))


@given(cases(ranks=(1,)))
def test_second_derivatives_element_by_element(case: Case):
    """d/dw[j] ⟨X(g, w), v⟩ is the j-th entry of W(g, v): the derivative of a linear map, by unit vectors."""
    x, v = case.x(), case.x()
    g = case.like(case.conv(x, case.weight()))
    expected = case.weight_grad(g, v)
    for index in np.ndindex(expected.shape):
        unit = np.zeros_like(expected)
        unit[index] = 1
        assert dot(case.input_grad(g, unit, x.shape), v) == expected[index]


@given(cases())
def test_backward_is_the_adjoints_and_a_sum(case: Case):
    x, weight, bias = case.x(), case.weight(), case.bias()
    g = case.like(case.conv(x, weight))
    grads = case.backward(g, x, weight, bias)
    assert np.array_equal(grads.x, case.input_grad(g, weight, x.shape))
    assert np.array_equal(grads.weight, case.weight_grad(g, x))
    assert np.array_equal(grads.bias, channels_first(g, case.layout).sum(axis=(0, *range(2, case.rank + 2))))


@given(transposed())
def test_transposed(drawn):
    case, options = drawn
    x, weight, bias = case.x(), case.weight(), case.bias()
    out = op("depthwise_conv_transpose{}d", case.rank)(x, weight, **options)
    g = case.like(out)
    grads = op("depthwise_conv_transpose{}d_backward", case.rank)(g, x, weight, bias, **options)
    assert dot(out, g) == dot(x, grads.x) == dot(weight, grads.weight)
    assert np.array_equal(grads.bias, channels_first(g, case.layout).sum(axis=(0, *range(2, case.rank + 2))))


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("spatial", [(), (5,), (3, 4), (2, 3, 2)])
@pytest.mark.parametrize("ones", [(), (1,), (1, 1, 1)], ids=["KC", "KC1", "KC111"])
def test_pointwise(spatial, layout, ones):
    rng = np.random.default_rng(2)
    x, weight = moved(integers(rng, (2, 3, *spatial)), layout), integers(rng, (5, 3, *ones))
    out = npdwconv.pointwise_conv(x, weight, layout=layout)
    g = integers(rng, out.shape)
    grads = npdwconv.pointwise_conv_backward(g, x, weight, integers(rng, (5,)), layout=layout)
    assert dot(out, g) == dot(x, grads.x) == dot(weight, grads.weight)
    assert np.array_equal(grads.bias, channels_first(g, layout).sum(axis=(0, *range(2, len(spatial) + 2))))


@given(cases(), st.integers(1, 4))
def test_separable(case: Case, outputs: int):
    x, depthwise, pointwise = case.x(), case.weight(), integers(case.rng, (outputs, case.outputs))
    out = op("separable_conv{}d", case.rank)(x, depthwise, pointwise, **case.options)
    g = case.like(out)
    grads = op("separable_conv{}d_backward", case.rank)(g, x, depthwise, pointwise, **case.options)
    assert dot(out, g) == dot(x, grads.x)
    assert dot(out, g) == dot(depthwise, grads.depthwise_weight) == dot(pointwise, grads.pointwise_weight)


@given(cases())
def test_separable_depthwise_bias_spreads_through_the_pointwise_stage(case: Case):
    conv, backward = op("separable_conv{}d", case.rank), op("separable_conv{}d_backward", case.rank)
    x, depthwise, pointwise, b = case.x(), case.weight(), integers(case.rng, (2, case.outputs)), case.bias()
    only_bias = conv(0 * x, depthwise, pointwise, depthwise_bias=b, **case.options)
    g = case.like(only_bias)
    grads = backward(g, x, depthwise, pointwise, depthwise_bias=b, needs="depthwise_bias", **case.options)
    assert dot(only_bias, g) == dot(b, grads.depthwise_bias)


@given(cases(ranks=(2,), layouts=("channels_last",)))
def test_tokens(case: Case):
    options = {key: value for key, value in case.options.items() if key != "layout"} | {"grid": case.size}
    x, weight = case.x().reshape(case.batch, -1, case.channels), case.weight()
    out = npdwconv.depthwise_conv_tokens(x, weight, **options)
    g = case.like(out)
    grads = npdwconv.depthwise_conv_tokens_backward(g, x, weight, case.bias(), **options)
    assert dot(out, g) == dot(x, grads.x) == dot(weight, grads.weight)
    assert np.array_equal(grads.bias, g.sum(axis=(0, 1)))


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("with_state", [True, False], ids=["state", "no_state"])
@pytest.mark.parametrize("width", [0, 1, 2, 6])
@pytest.mark.parametrize("taps", [1, 2, 4])
def test_causal(layout, with_state, width, taps):
    rng = np.random.default_rng(3)
    x, weight = moved(integers(rng, (2, 3, width)), layout), integers(rng, (6, 1, taps))
    state = integers(rng, (2, 3, taps - 1)) if with_state else None
    out, carried = npdwconv.causal_depthwise_conv1d(x, weight, state=state, layout=layout)
    g, g_next = integers(rng, out.shape), integers(rng, carried.shape)
    grads = npdwconv.causal_depthwise_conv1d_backward(g, x, weight, state=state, grad_next_state=g_next, layout=layout)
    inputs = dot(x, grads.x) + (dot(state, grads.state) if with_state else 0)
    assert dot(out, g) + dot(carried, g_next) == inputs
    assert dot(out, g) == dot(weight, grads.weight)

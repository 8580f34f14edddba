"""Law: permuting channels permutes the result, and no channel hears another."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from strategies import Case, cases, channels_first, integers, moved, op, transposed

import npdwconv


def permuted(array: np.ndarray, layout: str, order: np.ndarray) -> np.ndarray:
    return moved(channels_first(array, layout)[:, order], layout)


def orders(case: Case) -> tuple[np.ndarray, np.ndarray]:
    """A permutation of the input channels, and the one of the output channels c·M + m that goes with it."""
    order = case.rng.permutation(case.channels)
    return order, (order[:, None] * case.multiplier + np.arange(case.multiplier)).reshape(-1)


@given(cases())
def test_forward_and_gradients(case: Case):
    x, weight, bias = case.x(), case.weight(), case.bias()
    order, outputs = orders(case)
    whole = case.conv(x, weight, bias)
    mixed = case.conv(permuted(x, case.layout, order), weight[outputs], bias[outputs])
    assert np.array_equal(mixed, permuted(whole, case.layout, outputs))
    g = case.like(whole)
    grads = case.backward(g, x, weight)
    again = case.backward(permuted(g, case.layout, outputs), permuted(x, case.layout, order), weight[outputs])
    assert np.array_equal(again.x, permuted(grads.x, case.layout, order))
    assert np.array_equal(again.weight, grads.weight[outputs])


@given(transposed())
def test_transposed(drawn):
    case, options = drawn
    conv = op("depthwise_conv_transpose{}d", case.rank)
    x, weight = case.x(), case.weight()
    order, outputs = orders(case)
    mixed = conv(permuted(x, case.layout, order), weight[outputs], **options)
    assert np.array_equal(mixed, permuted(conv(x, weight, **options), case.layout, outputs))


@given(cases())
def test_each_channel_alone(case: Case):
    x, weight = case.x(), case.weight()
    whole, images = channels_first(case.conv(x, weight), case.layout), channels_first(x, case.layout)
    for c in range(case.channels):
        mine = slice(c * case.multiplier, (c + 1) * case.multiplier)
        alone = case.conv(moved(images[:, c : c + 1], case.layout), weight[mine])
        assert np.array_equal(channels_first(alone, case.layout), whole[:, mine])


@given(cases())
def test_pointwise(case: Case):
    x, weight = case.x(), integers(case.rng, (4, case.channels))
    rows, columns = case.rng.permutation(4), case.rng.permutation(case.channels)
    whole = npdwconv.pointwise_conv(x, weight, layout=case.layout)
    mixed = npdwconv.pointwise_conv(permuted(x, case.layout, columns), weight[rows][:, columns], layout=case.layout)
    assert np.array_equal(mixed, permuted(whole, case.layout, rows))

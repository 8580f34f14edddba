"""Law: operators that are made of one another agree."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from strategies import LAYOUTS, Case, cases, channels_first, integers, moved, op, same_bits, transposed

import npdwconv

ACTIVATIONS = (None, *npdwconv.activations.ACTIVATIONS)


@given(cases(), st.sampled_from(ACTIVATIONS), st.sampled_from(ACTIVATIONS))
def test_separable_is_pointwise_after_depthwise(case: Case, inner, outer):
    x, depthwise, pointwise = case.x(), case.weight(), integers(case.rng, (3, case.outputs))
    first, last = case.bias(), integers(case.rng, (3,))
    whole = op("separable_conv{}d", case.rank)(
        x,
        depthwise,
        pointwise,
        last,
        depthwise_bias=first,
        depthwise_activation=inner,
        activation=outer,
        **case.options,
    )
    middle = case.conv(x, depthwise, first, activation=inner)
    assert same_bits(whole, npdwconv.pointwise_conv(middle, pointwise, last, layout=case.layout, activation=outer))


@given(transposed())
def test_transposed_is_the_input_grad(drawn):
    case, options = drawn
    # more output padding than a stride (a dilation allows it) is an extent that no convolution takes back to x
    extra = options.get("output_padding", (0,) * case.rank)
    assume(all(more < stride for more, stride in zip(extra, options["stride"], strict=True)))
    case = replace(case, multiplier=1)
    x, weight = case.x(), case.weight()
    out = op("depthwise_conv_transpose{}d", case.rank)(x, weight, **options)
    back = {key: value for key, value in options.items() if key != "output_padding"}
    assert np.array_equal(out, op("depthwise_conv{}d_input_grad", case.rank)(x, weight, out.shape, **back))


@given(cases(ranks=(2,), layouts=("channels_last",)))
def test_tokens_are_an_image(case: Case):
    x, weight, bias = case.x(), case.weight(), case.bias()
    options = {key: value for key, value in case.options.items() if key != "layout"} | {"grid": case.size}
    image = case.conv(x, weight, bias)
    flat = npdwconv.depthwise_conv_tokens(x.reshape(case.batch, -1, case.channels), weight, bias, **options)
    assert same_bits(flat, image.reshape(flat.shape))


@given(cases())
def test_layouts_agree(case: Case):
    x, weight, bias = channels_first(case.x(), case.layout), case.weight(), case.bias()
    first, last = (replace(case, options=case.options | {"layout": layout}) for layout in LAYOUTS)
    one, other = first.conv(x, weight, bias), last.conv(moved(x, "channels_last"), weight, bias)
    assert same_bits(moved(one, "channels_last"), other)
    g = case.like(one)
    grads = first.backward(g, x, weight, bias)
    others = last.backward(moved(g, "channels_last"), moved(x, "channels_last"), weight, bias)
    assert np.array_equal(moved(grads.x, "channels_last"), others.x)
    assert np.array_equal(grads.weight, others.weight)
    assert np.array_equal(grads.bias, others.bias)


@given(cases(ranks=(1,)))
def test_one_dimension_is_two_with_height_one(case: Case):
    x, weight = case.x(), case.weight()
    axis = 2 if case.layout == "channels_first" else 1
    pads = case.options["padding"]
    flat = {
        "stride": (1, *case.options["stride"]),
        "dilation": (1, *case.options["dilation"]),
        "padding": pads if isinstance(pads, str) else ((0, 0), *pads),
    }
    image = npdwconv.depthwise_conv2d(np.expand_dims(x, axis), weight[:, :, None], **case.options | flat)
    assert np.array_equal(image.squeeze(axis), case.conv(x, weight))


@given(cases(ranks=(3,), modes=("zeros",), named=False))
def test_three_dimensions_are_a_sum_of_two_over_depth_taps(case: Case):
    x, weight = channels_first(case.x(), case.layout), case.weight()
    whole = channels_first(case.conv(moved(x, case.layout), weight), case.layout)
    (low, _), *pads = case.options["padding"]
    (step, *stride), (gap, *dilation) = case.options["stride"], case.options["dilation"]
    total = np.zeros_like(whole)
    for o, t in np.ndindex(whole.shape[2], case.kernel[0]):
        depth = o * step + t * gap - low
        if 0 <= depth < x.shape[2]:
            total[:, :, o] += npdwconv.depthwise_conv2d(
                x[:, :, depth], weight[:, :, t], stride=tuple(stride), padding=tuple(pads), dilation=tuple(dilation)
            )
    assert np.array_equal(total, whole)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("activation", [None, "silu"])
@pytest.mark.parametrize("pieces", [(3, 7), (1, 1, 8), (0, 10), (9, 1)], ids=str)
def test_causal_in_pieces_is_the_whole(layout, activation, pieces):
    rng = np.random.default_rng(5)
    x, weight = rng.standard_normal((2, 3, 10), np.float32), rng.standard_normal((6, 1, 4), np.float32)
    whole, end = npdwconv.causal_depthwise_conv1d(moved(x, layout), weight, activation=activation, layout=layout)
    state, parts = None, []
    for piece in np.split(x, np.cumsum(pieces)[:-1], axis=2):
        part, state = npdwconv.causal_depthwise_conv1d(
            moved(piece, layout), weight, state=state, activation=activation, layout=layout
        )
        parts.append(part)
    assert same_bits(np.concatenate(parts, axis=2 if layout == "channels_first" else 1), whole)
    assert same_bits(state, end)
    assert same_bits(end, np.ascontiguousarray(x[:, :, -3:]))

"""Law: moving the input by the stride moves the output by one; in circular padding everywhere, else off the border."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from strategies import Case, cases, same_bits


@given(cases(modes=("circular",), strides=1, named=True), st.data())
def test_circular_shift_at_stride_one(case: Case, data):
    axis = data.draw(st.integers(0, case.rank - 1))
    place = axis + (2 if case.layout == "channels_first" else 1)
    x, weight = case.x(), case.weight()
    whole = case.conv(x, weight)
    if whole.shape[place] == x.shape[place]:
        assert same_bits(case.conv(np.roll(x, 2, place), weight), np.ascontiguousarray(np.roll(whole, 2, place)))


@given(cases(modes=("zeros",), named=False), st.data())
def test_cutting_one_stride_off_the_input_cuts_one_output_off(case: Case, data):
    axis = data.draw(st.integers(0, case.rank - 1))
    step = case.options["stride"][axis]
    case = replace(case, size=_longer(case, axis, step), options=case.options | {"padding": 0})
    x, weight = case.x(), case.weight()
    place = axis + (2 if case.layout == "channels_first" else 1)
    cut = np.take(x, range(step, x.shape[place]), axis=place)
    moved, whole = case.conv(cut, weight), case.conv(x, weight)
    assert np.array_equal(moved, np.take(whole, range(1, whole.shape[place]), axis=place))


def _longer(case: Case, axis: int, step: int) -> tuple[int, ...]:
    """Extents that hold the kernel without padding, and one more step of it along ``axis``."""
    spans = [(k - 1) * d + 1 for k, d in zip(case.kernel, case.options["dilation"], strict=True)]
    return tuple(max(n, s) + (step if i == axis else 0) for i, (n, s) in enumerate(zip(case.size, spans, strict=True)))

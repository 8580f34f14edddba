"""Law: the convolution of a tile with its halo is that part of the whole, the same bits."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from strategies import Case, cases, channels_first, moved, same_bits


@given(cases(modes=("zeros",), named=False), st.data())
def test_a_tile_of_outputs_needs_only_its_halo(case: Case, data):
    """Outputs first … last of one axis read inputs first·stride − low … last·stride − low + span − 1."""
    axis = data.draw(st.integers(0, case.rank - 1))
    x = case.rng.standard_normal((case.batch, case.channels, *case.size)).astype(np.float32)
    weight = case.rng.standard_normal(case.weight_shape).astype(np.float32)
    whole = channels_first(case.conv(moved(x, case.layout), weight), case.layout)
    first = data.draw(st.integers(0, whole.shape[2 + axis] - 1))
    last = data.draw(st.integers(first, whole.shape[2 + axis] - 1))
    pads = list(case.options["padding"])
    stride, span = case.options["stride"][axis], (case.kernel[axis] - 1) * case.options["dilation"][axis] + 1
    begin = first * stride - pads[axis][0]
    end = last * stride - pads[axis][0] + span
    size = case.size[axis]
    pads[axis] = (max(0, -begin) if begin < size else 0, max(0, end - size))
    here = slice(min(max(begin, 0), size), max(min(end, size), 0))
    if here.stop <= here.start:
        return
    tile = np.take(x, range(here.start, here.stop), axis=2 + axis)
    part = channels_first(case.conv(moved(tile, case.layout), weight, padding=tuple(pads)), case.layout)
    expected = np.take(whole, range(first, last + 1), axis=2 + axis)
    assert same_bits(np.ascontiguousarray(part), np.ascontiguousarray(expected))

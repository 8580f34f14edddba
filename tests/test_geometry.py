"""Geometry against enumeration: which output reads which input with which tap, for every padding form."""

from __future__ import annotations

from itertools import product

import pytest

from npdwconv.errors import OptionError, ShapeError
from npdwconv.geometry import Axis, conv_geometry, same_padding, transpose_geometry

SIZES, KERNELS, STRIDES, DILATIONS = range(8), range(1, 5), range(1, 4), range(1, 4)
every_axis = list(product(SIZES, KERNELS, STRIDES, DILATIONS))


def axis(size: int, kernel: int, stride: int, dilation: int, padding: object) -> Axis:
    form = padding if isinstance(padding, str) else (padding,)
    return conv_geometry((size,), (kernel,), (stride,), (dilation,), form).axes[0]


def reads(a: Axis) -> set[tuple[int, int, int]]:
    """Every (output, tap, input) that the relation allows, by trying them all."""
    pairs = product(range(a.out), range(a.kernel))
    triples = {(o, t, o * a.stride + t * a.dilation - a.low) for o, t in pairs}
    return {(o, t, i) for o, t, i in triples if 0 <= i < a.size}


@pytest.mark.parametrize("padding", ["same", "same_lower", "causal", (0, 0), (2, 0), (0, 3), (9, 9)], ids=str)
def test_reach_is_the_relation(padding):
    seen = 0
    for size, kernel, stride, dilation in every_axis:
        span = (kernel - 1) * dilation + 1
        if not isinstance(padding, str) and sum(padding) + size < span:
            continue
        a = axis(size, kernel, stride, dilation, padding)
        found = set()
        for tap in range(kernel):
            outputs, inputs = a.reach(tap)
            assert 0 <= outputs.start <= outputs.stop <= max(a.out, 0)
            pairs = zip(range(a.out)[outputs], range(a.size)[inputs], strict=True)
            found |= {(o, tap, i) for o, i in pairs}
        assert found == reads(a)
        seen += len(found)
    assert seen > 500


@pytest.mark.parametrize("name", ["same", "same_lower"])
def test_same_pads_as_little_as_its_extent_allows(name):
    for size, kernel, stride, dilation in every_axis:
        a = axis(size, kernel, stride, dilation, name)
        assert a.out == -(-size // stride)
        needed = (a.out - 1) * stride + a.span - size
        assert a.low + a.high == max(needed, 0)
        odd = a.high - a.low if name == "same" else a.low - a.high
        assert odd in (0, 1)
        if size:
            assert axis(size, kernel, stride, dilation, (a.low, a.high)).out == a.out


@pytest.mark.parametrize(
    ("size", "span", "stride", "name", "pads"),
    [
        (5, 4, 1, "same", (1, 2)),
        (5, 4, 1, "same_lower", (2, 1)),
        (8, 3, 2, "same", (0, 1)),
        (7, 3, 2, "same", (1, 1)),
        (224, 3, 2, "same", (0, 1)),
        (5, 1, 3, "same", (0, 0)),
        (6, 5, 3, "same_lower", (1, 1)),
        (9, 5, 1, "causal", (4, 0)),
    ],
)
def test_same_by_hand(size, span, stride, name, pads):
    assert same_padding(size, span, stride, name) == pads


def test_causal_reads_nothing_later():
    for size, kernel, stride, dilation in every_axis:
        a = axis(size, kernel, stride, dilation, "causal")
        assert a.out == -(-size // stride)
        assert all(i <= o * stride for o, _, i in reads(a))
        assert all((o, kernel - 1, o * stride) in reads(a) for o in range(a.out))


def test_causal_is_same_on_the_other_axes():
    shape = ((6, 7), (4, 3), (1, 1), (1, 1))
    causal, same = conv_geometry(*shape, "causal"), conv_geometry(*shape, "same")
    assert causal.axes[0] == same.axes[0]
    assert (causal.axes[1].low, causal.axes[1].high) == (2, 0)


@pytest.mark.parametrize("pads", [(0, 0), (1, 2), (3, 0)])
def test_transpose_undoes_a_convolution_with_its_output_padding(pads):
    for size, kernel, stride, dilation in every_axis:
        if size + sum(pads) < (kernel - 1) * dilation + 1 or size == 0:
            continue
        a = axis(size, kernel, stride, dilation, pads)
        assert 0 <= a.output_padding < stride
        back = transpose_geometry((a.out,), (kernel,), (stride,), (dilation,), (pads,), (a.output_padding,))
        assert back.axes[0] == a


@pytest.mark.parametrize("name", ["same", "same_lower", "causal"])
def test_transpose_of_a_named_padding_multiplies_the_extent(name):
    for out, kernel, stride, dilation in every_axis:
        back = transpose_geometry((out,), (kernel,), (stride,), (dilation,), name, (0,)).axes[0]
        assert back.size == out * stride
        assert back == axis(out * stride, kernel, stride, dilation, name)


def test_a_kernel_wider_than_the_image_reads_what_is_there():
    a = axis(1, 5, 1, 1, (2, 2))
    assert a.out == 1
    assert reads(a) == {(0, 2, 0)}
    assert [a.reach(tap)[0] for tap in (0, 4)] == [slice(0, 0)] * 2


@pytest.mark.parametrize("name", ["same", "same_lower", "causal"])
def test_an_empty_input_has_an_empty_output(name):
    a = axis(0, 3, 2, 1, name)
    assert a.out == 0
    assert reads(a) == set()


def test_taps_are_the_product_of_the_axes():
    g = conv_geometry((4, 5), (2, 3), (1, 2), (1, 1), ((0, 1), (1, 1)))
    taps = list(g.taps())
    assert [t for t, _, _ in taps] == list(product(range(2), range(3)))
    for (r, s), outputs, inputs in taps:
        assert (outputs, inputs) == tuple(zip(g.axes[0].reach(r), g.axes[1].reach(s), strict=True))


@pytest.mark.parametrize("huge", [2**31, 2**62, 2**70])
def test_extents_beyond_a_machine_word_stay_exact(huge):
    a = axis(5, 3, 1, 1, (huge, huge))
    assert a.out == 5 + 2 * huge - 2
    assert a.reach(1) == (slice(huge - 1, huge + 4), slice(0, 5, 1))


def test_errors():
    with pytest.raises(ShapeError, match=r"extent 3 with dilation 2 spans 5 .* has 4 \(0 \+ 4 \+ 0\)"):
        axis(4, 3, 1, 2, (0, 0))
    with pytest.raises(OptionError, match="output_padding is 2 on spatial axis 0"):
        transpose_geometry((4,), (3,), (2,), (1,), ((0, 0),), (2,))
    with pytest.raises(OptionError, match="output_padding is 1 with padding='same'"):
        transpose_geometry((4,), (3,), (2,), (1,), "same", (1,))
    with pytest.raises(ShapeError, match="would have -2 elements"):
        transpose_geometry((1,), (2,), (1,), (1,), ((2, 2),), (0,))

"""Correlations over planes against the reference backend: bitwise on small integers, at the extents where tiles end."""

from __future__ import annotations

import os
from itertools import product

import numpy as np
import pytest
from kernels.children import narrower
from kernels.factors import multiplied_once

import npdwconv
from npdwconv.activations import ACTIVATIONS
from npdwconv.geometry import conv_geometry
from npdwconv.kernels.cpu import channels_first, phases, planes
from npdwconv.kernels.cpu.arrays import LINE
from npdwconv.kernels.cpu.machine import LANES_VARIABLE, machine
from npdwconv.kernels.reference import depthwise as reference

LANES = machine().lanes(4)
FLOATS = LINE // 4  # of a cache line
WIDTHS = (1, LANES - 1, LANES, LANES + 1, 2 * LANES + 1)
HEIGHTS = (1, 2, 7, 8, 9, 14, 15, 16, 17, 30, 61)


def geometry(size, kernel, stride=1, dilation=1, padding=None):
    rank = len(size)
    kernel, stride, dilation = ((v,) * rank if isinstance(v, int) else v for v in (kernel, stride, dilation))
    padding = padding or tuple((k // 2 * d, (k - 1) // 2 * d) for k, d in zip(kernel, dilation, strict=True))
    return conv_geometry(tuple(size), kernel, stride, dilation, padding)


class Case:
    """Operands of one convolution: small integers."""

    def __init__(self, g, batch=1, channels=2, multiplier=1, dtype=np.float32, seed=0):
        self.g, self.rng = g, np.random.default_rng(seed)
        self.x = self._integers((batch, channels, *g.size), dtype)
        self.weight = self._integers((channels * multiplier, *g.kernel), dtype)
        self.bias = self._integers((channels * multiplier,), dtype)
        self.z = self._integers((batch, channels * multiplier, *g.out), dtype)

    def _integers(self, shape, dtype):
        return self.rng.integers(-3, 4, shape).astype(dtype)

    def forward(self, x=None, **options):
        x = self.x if x is None else x
        out = np.full((x.shape[0], *self.z.shape[1:]), np.nan, self.z.dtype)
        channels_first.gather(x, self.weight, self.bias, out, phases.forward(self.g), **options)
        return out

    def expected(self, activation=None):
        out = np.empty_like(self.z)
        reference.depthwise_fwd(self.x, self.weight, self.bias, out, self.g, "channels_first", activation)
        return out

    def input_gradient(self):
        out = np.full_like(self.x, np.nan)
        channels_first.gather(self.z, self.weight, None, out, phases.adjoint(self.g))
        return out

    def expected_gradient(self):
        out = np.empty_like(self.x)
        reference.depthwise_bwd_input(self.z, self.weight, out, self.g, "channels_first")
        return out

    def adjoint_call(self):
        return planes.Call(self.z.shape, self.weight.shape, self.x.shape, (self.z.dtype,) * 4 + (None,), "")

    def check(self):
        np.testing.assert_array_equal(self.forward(), self.expected())
        np.testing.assert_array_equal(self.input_gradient(), self.expected_gradient())


@pytest.mark.parametrize(
    ("height", "stride"),
    [
        pytest.param(height, stride, marks=[] if turn % 2 == stride - 1 else [pytest.mark.sweep])
        for turn, height in enumerate(HEIGHTS)
        for stride in (1, 2)
    ],
)
def test_extents_around_the_tile(height, stride):
    for width in WIDTHS:
        Case(geometry((height, width), 3, stride)).check()


@pytest.mark.parametrize("width", [1, LANES + 1, 3 * LANES - 1, 9 * LANES + 3])
def test_a_single_row(width):
    """Taps a vector apart together, and those that have none; a tap that no padding meets is not seen in it."""
    for kernel in (2, LANES - 1, LANES + 1, 2 * LANES, 2 * LANES + 1, 4 * LANES + 3):
        for dilation in (1, 3) if kernel < 2 * LANES else (1,):
            case = Case(geometry((width,), kernel, 1, dilation))
            case.check()
            case.x[case.x == 0], case.weight[:, 0] = 1, np.inf
            np.testing.assert_array_equal(case.forward(), case.expected())


@pytest.mark.parametrize(("kernel", "stride"), [(3, 1), (3, 2), (5, 2)])
@pytest.mark.parametrize(("width", "streams"), [(4 * FLOATS, True), (12 * FLOATS, True), (5 * FLOATS + 2, False)])
@pytest.mark.usefixtures("far")
def test_past_the_caches(width, streams, kernel, stride):
    """Whole vectors are streamed where rows are whole lines, wherever the array begins; nothing around is written."""
    case = Case(geometry((31, width), kernel, stride))
    call = planes.Call(case.x.shape, case.weight.shape, case.z.shape, (*[np.dtype(np.float32)] * 4, None), "")
    (launch,) = channels_first.launches(call, phases.forward(case.g))
    rolls = kernel == 3 or machine().registers <= 16  # 25 taps do only where registers are few
    assert (launch.spec.streams, launch.spec.piece > 0) == (streams and rolls, True)
    wanted, bytes_around = case.expected(), 4 * LANES
    for offset in (0, 4, 3 * LANES, 1):
        raw = np.full(wanted.nbytes + 4 * bytes_around, 77, np.uint8)
        first = -raw.ctypes.data % bytes_around + bytes_around + offset
        out = raw[first : first + wanted.nbytes].view(np.float32).reshape(wanted.shape)
        channels_first.gather(case.x, case.weight, case.bias, out, phases.forward(case.g))
        np.testing.assert_array_equal(out, wanted)
        assert (raw[:first] == 77).all()
        assert (raw[first + wanted.nbytes :] == 77).all()


@pytest.mark.skipif(machine().masks, reason="vectors of which some lanes are written cost nothing there")
@pytest.mark.parametrize("height", [9, 31])
def test_the_last_tile_of_a_row_ends_with_it(height):
    """All vectors are whole where a row has one at least."""
    for width, back in [(LANES - 1, False), (LANES, True), (LANES + 1, True), (3 * LANES - 1, True)]:
        case = Case(geometry((height, width), 3))
        call = planes.Call(case.x.shape, case.weight.shape, case.z.shape, (*[np.dtype(np.float32)] * 4, None), "")
        (launch,) = channels_first.launches(call, phases.forward(case.g))
        assert launch.spec.back == back
        case.check()


@pytest.mark.parametrize("height", [9, 31])
def test_the_factor_may_be_what_is_overwritten(height):
    """Each result is multiplied once, at a row's end too; backward of a separable convolution relies on it."""
    case = Case(geometry((height, LANES + 1), 3))
    multiplied_once(case, "channels_first")


@pytest.mark.parametrize(("kernel", "stride"), [(5, 1), (5, 2), (7, 1)])
def test_square_kernels(kernel, stride):
    for size in [(16, 2 * LANES + 1), (5, LANES), (31, 3 * LANES + 3)]:
        Case(geometry(size, kernel, stride)).check()


@pytest.mark.parametrize(
    ("kernel", "stride", "dilation"),
    [
        pytest.param((2, 4), (1, 1), (1, 1), marks=pytest.mark.sweep),
        ((4, 2), (1, 1), (2, 3)),
        pytest.param((3, 3), (1, 1), (4, 2), marks=pytest.mark.sweep),
        ((9, 9), (1, 1), (1, 1)),
        ((13, 10), (1, 1), (1, 2)),
        ((3, 5), (2, 3), (1, 1)),
        pytest.param((4, 4), (2, 2), (3, 1), marks=pytest.mark.sweep),
        ((3, 3), (5, 6), (2, 1)),
        ((1, 1), (1, 1), (1, 1)),
        pytest.param((2, 2), (3, 4), (1, 1), marks=pytest.mark.sweep),
    ],
)
def test_any_kernel(kernel, stride, dilation):
    for size in [(31, 2 * LANES + 5), (40, LANES - 2), (4, 3)]:
        Case(geometry(size, kernel, stride, dilation)).check()


@pytest.mark.parametrize("padding", [((0, 0), (0, 0)), ((2, 0), (0, 2)), ((0, 5), (6, 0)), ((4, 4), (40, 3))])
@pytest.mark.parametrize("stride", [1, 2])
def test_asymmetric_padding(padding, stride):
    for size in [(9, LANES + 3), (4, 5)]:
        Case(geometry(size, 3, stride, 1, padding)).check()


@pytest.mark.parametrize("stride", [1, 2])
def test_multiplier(stride):
    Case(geometry((9, LANES + 3), 3, stride), batch=2, channels=3, multiplier=2).check()


@pytest.mark.parametrize(("kernel", "stride", "dilation"), [(4, 1, 1), (3, 2, 1), (31, 1, 1), (3, 1, 7), (2, 3, 1)])
def test_one_axis(kernel, stride, dilation):
    for width in (LANES + 1, 9 * LANES + 3):
        Case(geometry((width,), kernel, stride, dilation), batch=2, multiplier=2).check()
    causal = conv_geometry((40,), (4,), (1,), (1,), ((3, 0),))
    Case(causal).check()


@pytest.mark.parametrize(("stride", "dilation"), [(1, 1), (2, 1), ((2, 1, 1), (1, 1, 1)), (1, (2, 1, 3))])
def test_three_axes(stride, dilation):
    Case(geometry((5, 6, LANES + 2), 3, stride, dilation), batch=2, multiplier=2).check()


@pytest.mark.parametrize("extent", [7, 14])
def test_planes_compiled_for_their_height(extent):
    """Enough channels that one image has the work from which the height is compiled in."""
    for kernel, stride in [(3, 1), (3, 2)]:
        Case(geometry((extent, extent), kernel, stride), channels=512).check()


@pytest.mark.parametrize("channels", [511, 512])
@pytest.mark.parametrize(("kernel", "stride"), [(3, 1), (5, 1), (5, 2)])
def test_two_planes_in_a_vector(kernel, stride, channels):
    """Of an even number of channels two neighbours' planes share a vector that is wide enough."""
    for width in (LANES // 2, LANES // 2 - 1):
        Case(geometry((7 * stride, width * stride), kernel, stride), batch=2, channels=channels).check()


@pytest.mark.skipif(machine().name != "AVX-512", reason="two planes share a vector of AVX-512")
@pytest.mark.parametrize(("channels", "kernel"), [(512, 5), (512, 3), (511, 5)])
def test_where_two_planes_keep_sums_on_the_stack_it_begins_with_a_vector(channels, kernel):
    case = Case(geometry((7, LANES // 2 - 1), kernel), channels=channels)
    (axes,) = planes.passes(case.adjoint_call(), phases.adjoint(case.g))
    fixed, _ = planes.Plan(case.adjoint_call(), *axes).settled()
    assert fixed["splits"] == 1
    assert fixed["mates"] == (2 if channels == 512 else 1)
    assert fixed["stacked"] == (fixed["mates"] == 2 and kernel == 5)


@pytest.mark.parametrize("kernel", [3, 5])
@pytest.mark.parametrize("extent", [LANES, LANES - 1, LANES - 2, LANES // 2 + 1])
def test_two_planes_of_an_adjoint_in_a_vector(extent, kernel):
    """The phases of two neighbours' planes, half a vector each, interleave to a vector for each plane."""
    Case(geometry((extent + 3, extent), kernel, 2), channels=4, dtype=np.float16).check()
    case = Case(geometry((extent + 3, extent), kernel, 2), batch=2, channels=4)
    (axes,) = planes.passes(case.adjoint_call(), phases.adjoint(case.g))
    assert planes.Plan(case.adjoint_call(), *axes).mates == (2 if machine().name == "AVX-512" else 1)
    case.check()
    other, out = case.x + 5, np.full_like(case.x, np.nan)
    channels_first.gather(case.z, case.weight, None, out, phases.adjoint(case.g), "relu", other)
    np.testing.assert_array_equal(out, np.where(case.expected_gradient() > 0, other, 0))


@pytest.mark.parametrize("channels", [1, 2, 3])
@pytest.mark.parametrize(
    ("size", "kernel", "padding"),
    [
        ((7, LANES - 2), (13, 2 * LANES - 5), None),
        ((2, LANES), (1, 2 * LANES - 1), None),
        ((7, LANES // 2), (5, LANES - 1), ((4, 1), (LANES // 2 - 1, LANES // 2 - 1))),
        ((7, 3), (4, 9), ((0, 3), (3, 5))),
        ((3, 1), (2, 4), ((1, 1), (1, 2))),
        ((7, LANES + 3), (9, 2 * LANES + 7), None),
        ((14, 2 * LANES), (3, 4 * LANES - 1), ((4, 3), (2 * LANES - 1, 2 * LANES - 1))),
        ((2, 3 * LANES + 1), (5, 6 * LANES + 2), ((7, 4), (3 * LANES, 3 * LANES + 1))),
    ],
)
@pytest.mark.usefixtures("replanned")
def test_kernels_that_cover_the_plane(size, kernel, padding, channels, monkeypatch):
    """Every output of a row counts every input of it; whatever the rows do."""
    monkeypatch.setattr(planes, "MUCH", 0)
    case = Case(geometry(size, kernel, padding=padding), batch=2, channels=channels)
    dtypes = (np.dtype(np.float32),) * 4 + (None,)
    call = planes.Call(case.x.shape, case.weight.shape, case.z.shape, dtypes, "")
    (axes,) = planes.passes(call, phases.forward(case.g))
    assert planes.Plan(call, *axes).covers
    case.check()
    case.x[...] = np.nan
    case.x[0] = 1.0
    assert np.isfinite(case.forward()[0]).all()
    case = Case(geometry(size, kernel, padding=padding), channels=channels, dtype=np.float16)
    case.check()


def test_dilation_compiled_in():
    Case(geometry((33, 33), 3, 1, 6), channels=32).check()


@pytest.mark.parametrize("dtype", ["float64", "float16", "bfloat16"])
@pytest.mark.parametrize("stride", [1, 2])
def test_dtypes(dtype, stride):
    if dtype == "bfloat16":
        dtype = pytest.importorskip("ml_dtypes").bfloat16
    Case(geometry((9, LANES + 3), 3, stride), dtype=dtype).check()


def test_half_weights_with_float32_gradient():
    case = Case(geometry((9, LANES + 3), 3), dtype=np.float16)
    case.z = case.z.astype(np.float32)
    case.x = case.x.astype(np.float32)
    np.testing.assert_array_equal(case.input_gradient(), case.expected_gradient())


@pytest.mark.parametrize("name", ["relu6", "silu"])
def test_activation_and_its_chain(name):
    activation = ACTIVATIONS[name]
    case = Case(geometry((9, LANES + 3), 3))
    np.testing.assert_allclose(case.forward(activation=name), case.expected(activation), rtol=1e-6, atol=1e-6)
    chained = np.empty_like(case.z)
    reference.depthwise_bwd_activation(
        case.z, case.x, case.weight, case.bias, chained, case.g, "channels_first", activation
    )
    ours = case.forward(activation=name, other=case.z)
    np.testing.assert_allclose(ours, chained, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(("kernel", "stride"), [(3, 1), (3, 2), (9, 1), ((2, 3), (2, 5))])
@pytest.mark.parametrize("value", [np.inf, np.nan])
def test_padding_reads_no_weight(kernel, stride, value):
    """Where a tap falls in padding, its infinite weight counts for nothing."""
    for width in (LANES - 3, 2 * LANES + 1):
        case = Case(geometry((11, width), kernel, stride))
        case.x = np.abs(case.x) + 1
        case.z = np.abs(case.z) + 1
        case.weight[:, 0, 0] = value
        case.check()


@pytest.mark.parametrize(("kernel", "stride"), [(3, 1), (3, 2), (9, 1), ((2, 3), (2, 5))])
def test_nan_reaches_its_windows_alone(kernel, stride):
    for width, place in product((LANES - 3, 2 * LANES + 1), ((0, 0), (5, LANES - 4), (-1, -1))):
        case = Case(geometry((11, width), kernel, stride), batch=3)
        case.x[(1, 0, *place)] = np.nan
        case.z[(1, 0, *(max(p, -1) % n for p, n in zip(place, case.g.out, strict=True)))] = np.nan
        case.check()


@pytest.mark.parametrize(("kernel", "stride"), [(3, 1), (3, 2), (9, 1), ((2, 3), (2, 5))])
def test_neighbours_in_memory_do_not_matter(kernel, stride):
    """Operands in the middle of NaN, the result in the middle of sentinels."""
    case = Case(geometry((11, 2 * LANES + 1), kernel, stride))
    expected = case.expected()
    case.x, case.weight, case.bias = (_surrounded(a, np.nan) for a in (case.x, case.weight, case.bias))
    out = _surrounded(np.zeros_like(expected), 7.0)
    channels_first.gather(case.x, case.weight, case.bias, out, phases.forward(case.g))
    np.testing.assert_array_equal(out, expected)
    assert (out.base[:99] == 7).all()
    assert (out.base[-99:] == 7).all()


def _surrounded(array, value):
    buffer = np.full(array.size + 198, value, array.dtype)
    view = buffer[99:-99].reshape(array.shape)
    view[...] = array
    return view


@pytest.mark.parametrize(
    ("size", "kernel", "stride"), [((14, 14), 3, 1), ((7, 7), 3, 1), ((9, 40), 3, 2), ((20, 30), 9, 1)]
)
def test_same_bits_for_any_batch_and_threads(size, kernel, stride):
    channels = 512 if size[0] == 7 else 64
    case = Case(geometry(size, kernel, stride), batch=3, channels=channels)
    case.x, case.weight = (case.rng.standard_normal(a.shape).astype(np.float32) for a in (case.x, case.weight))
    whole = case.forward()
    for image in range(3):
        assert case.forward(case.x[image : image + 1]).tobytes() == whole[image].tobytes()
    before = npdwconv.get_num_threads()
    try:
        for threads in (1, 2, 7):
            npdwconv.set_num_threads(threads)
            assert case.forward().tobytes() == whole.tobytes()
    finally:
        npdwconv.set_num_threads(before)


@pytest.mark.sweep
@pytest.mark.skipif(LANES_VARIABLE in os.environ, reason="is itself the run with narrower lanes")
@pytest.mark.parametrize("lanes", [8, 4])
def test_narrower_lanes(lanes):
    chosen = "around_the_tile and 9 or square or dtypes or padding_reads or (any_kernel and kernel3) or neighbours"
    narrower(__file__, chosen, lanes)

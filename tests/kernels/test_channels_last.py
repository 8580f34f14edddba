"""Depthwise correlations whose lanes are channels: extents about the tiles, results past the caches."""

from __future__ import annotations

import os

import numpy as np
import pytest
from kernels.children import narrower
from kernels.factors import multiplied_once

from npdwconv.geometry import conv_geometry
from npdwconv.kernels.cpu import channels_last, phases, pixel_calls, pixel_plans
from npdwconv.kernels.cpu.arrays import LINE
from npdwconv.kernels.cpu.machine import LANES_VARIABLE, machine
from npdwconv.kernels.cpu.pixel_calls import Call
from npdwconv.kernels.reference import depthwise as reference
from npdwconv.threads import get_num_threads

LANES = machine().lanes(4)
WIDTHS = (3, 4, 7, 8, 13)  # about tiles of four and of seven
SAME, VALID = ((1, 1), (1, 1)), ((0, 0), (0, 0))


class Case:
    """Small integers, so that nothing is rounded, and what the reference makes of them."""

    def __init__(self, size, kernel=3, stride=1, padding=SAME, channels=LANES + 1, batch=1, multiplier=1, dilation=1):
        kernel = (kernel, kernel) if isinstance(kernel, int) else kernel
        rng = np.random.default_rng([*size, *kernel, stride, channels])
        self.g = conv_geometry(size, kernel, (stride, stride), (dilation, dilation), padding)
        self.multiplier = multiplier

        def draw(*shape):
            return rng.integers(-4, 5, shape).astype(np.float32)

        self.x = draw(batch, *size, channels)
        self.weight, self.bias = draw(channels * multiplier, *kernel), draw(channels * multiplier)
        self.z = draw(batch, *self.g.out, channels * multiplier)

    def expected(self):
        out = np.empty_like(self.z)
        reference.depthwise_fwd(self.x, self.weight, self.bias, out, self.g, "channels_last", None)
        return out

    def expected_gradient(self):
        out = np.empty_like(self.x)
        reference.depthwise_bwd_input(self.z, self.weight, out, self.g, "channels_last")
        return out

    def forward(self, out=None):
        out = np.full_like(self.z, np.nan) if out is None else out
        channels_last.gather(self.x, self.weight, self.bias, out, phases.forward(self.g))
        return out

    def gradient(self):
        out = np.full_like(self.x, np.nan)
        channels_last.gather(self.z, self.weight, None, out, phases.adjoint(self.g))
        return out

    def kernels(self):
        """What runs: the names of the kernels of the forward."""
        return [plan.kernel for plan in self.plans()]

    def plans(self):
        dtype = np.dtype("float32")
        call = Call(
            self.x.shape,
            self.z.shape,
            self.weight.shape[1:],
            phases.forward(self.g),
            (dtype.name,) * 4 + ("",),
            "",
            get_num_threads(),
            by_channels=False,
            unpacked=True,
        )
        return pixel_plans.plans(call)

    def check(self):
        np.testing.assert_array_equal(self.forward(), self.expected())
        np.testing.assert_array_equal(self.gradient(), self.expected_gradient())


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("width", [7, 10, 14, 17])
def test_the_factor_may_be_what_is_overwritten(width, stride):
    """Each result is multiplied once, whatever tiles a row is cut into; a separable convolution relies on it."""
    multiplied_once(Case((9, width), stride=stride), "channels_last")


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("width", WIDTHS)
def test_widths_about_the_tile(width, stride):
    for height in (2, 3, 9):
        Case((height, stride * width), stride=stride).check()


@pytest.mark.parametrize("width", WIDTHS[1:])
def test_tiles_roll(width):
    """The kernel under test is the one that runs."""
    assert Case((5, width)).kernels() == ["rolled_whole" if width == 4 else "rolled_wide"]
    if machine().registers >= 32:
        wide = "rolled_whole" if width in (4, 7) else "rolled_wide"
        assert Case((5, 2 * width), stride=2).kernels() == [wide]
    assert Case((5, 3)).kernels() == ["correlate"]


@pytest.mark.parametrize(
    ("kernel", "stride", "padding"),
    [
        (3, 1, VALID),
        (3, 2, VALID),
        pytest.param(3, 1, ((2, 0), (0, 2)), marks=pytest.mark.sweep),
        pytest.param(3, 2, ((0, 1), (0, 1)), marks=pytest.mark.sweep),
        (3, 1, ((0, 5), (6, 0))),
        pytest.param(3, 1, ((8, 1), (9, 1)), marks=pytest.mark.sweep),
        (3, 1, ((1, 8), (1, 9))),
        (3, 2, ((0, 9), (17, 9))),
        pytest.param(2, 2, VALID, marks=pytest.mark.sweep),
        (2, 1, ((1, 0), (1, 0))),
    ],
)
def test_windows(kernel, stride, padding):
    for size in [(9, 16), (5, 9)]:
        Case(size, kernel, stride, padding).check()


@pytest.mark.parametrize("channels", [LANES - 1, LANES, 2 * LANES, 8 * LANES, 9 * LANES, 65 * LANES])
def test_channels_about_the_lanes(channels):
    for batch in (1, 3):
        Case((6, 8), channels=channels, batch=batch).check()


@pytest.mark.parametrize("width", [9, 14, 16, 17])
def test_kernels_that_cover_a_row(width):
    """Every output of a row counts every input of it; one tile holds the row, if it is no wider than registers hold."""
    for padding in ((width - 1, width - 1), (width, width - 1)):
        case = Case((3, width), (2, sum(padding) + 1), 1, ((1, 0), padding), channels=9 * LANES)
        (plan,) = case.plans()
        fits = width <= (16 if machine().registers >= 32 else 8) and sum(padding) < pixel_plans.WIDEST
        assert (plan.fixed["pixels"] == width) == fits
        case.check()


@pytest.mark.parametrize("width", [29, 34, 45])
def test_taps_far_apart(width):
    """Tiles so wide that a row of them meets some inputs twice, if registers hold them."""
    case = Case((13, width), padding=((6, 6), (6, 6)), dilation=6, channels=9 * LANES)
    (plan,) = case.plans()
    assert (plan.fixed["pixels"] in pixel_plans.WIDE) == (machine().registers >= 32)
    case.check()


def test_more_taps_in_a_row_than_registers():
    Case((3, 11), (2, 31), padding=((1, 0), (15, 15)), channels=9 * LANES).check()


@pytest.mark.parametrize("multiplier", [2, 3])
def test_multipliers(multiplier):
    Case((6, 8), multiplier=multiplier).check()


def test_an_infinite_weight_meets_no_padding():
    """What is beside or above the image is not read as zeros, whose product with infinity is NaN."""
    case = Case((5, 8))
    case.x[...] = 1.0
    case.weight[...] = np.inf
    case.bias[...] = 0.0
    assert np.isposinf(case.forward()).all()


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("channels", [2 * LANES, 2 * LANES + 3])
@pytest.mark.usefixtures("far")
def test_past_the_caches(channels, stride):
    """Whole lines are streamed, wherever the array begins; nothing around it is written."""
    for width in (8, 14, 69):  # of 21 rows the last block has fewer steps than are written out, or no multiple of them
        case = Case((21, stride * width), stride=stride, channels=channels)
        assert case.kernels() == ["streamed"]
        assert case.plans()[0].fixed["turns"] > 1
        stays_inside(case)


@pytest.mark.usefixtures("far")
def test_many_taps_over_an_image_in_memory(monkeypatch):
    """A strip is 16 vectors of channels then, and a block has as many rows as each thread takes, up to 28."""
    monkeypatch.setattr(pixel_calls, "L2_BYTES", 1)
    case = Case((31, 9), (5, 5), padding=((2, 2), (2, 2)), channels=17 * LANES)
    (plan,) = case.plans()
    assert plan.kernel == "correlate"
    threads = get_num_threads()
    blocks = -(-31 // (28 * threads)) * threads
    assert (plan.numbers["strip"], plan.numbers["block_rows"]) == (16 * LANES, -(-31 // blocks))
    case.check()


@pytest.mark.skipif(4 * LANES != LINE, reason="a vector is less than a line")
@pytest.mark.usefixtures("far")
def test_more_channels_past_the_caches_than_the_stack_holds():
    """They are written at once, past the caches or, where the array does not begin with a line, into them."""
    case = Case((9, 10), channels=33 * LANES)
    assert case.kernels() == ["streamed"]
    assert case.plans()[0].numbers["group"] == 0
    stays_inside(case)


def stays_inside(case):
    """What is written is right, at any offset from a line, and nothing around it is."""
    wanted, bytes_around = case.expected(), 4 * LANES
    for offset in (0, 4, 3 * LANES - 3 * LANES % 4):
        raw = np.full(wanted.nbytes + 4 * bytes_around, 77, np.uint8)
        first = -raw.ctypes.data % bytes_around + bytes_around + offset
        out = raw[first : first + wanted.nbytes].view(np.float32).reshape(wanted.shape)
        np.testing.assert_array_equal(case.forward(out), wanted)
        assert (raw[:first] == 77).all()
        assert (raw[first + wanted.nbytes :] == 77).all()


@pytest.mark.parametrize(("rows", "turns"), [(2, 2), (6, 4), (7, 3), (8, 5), (9, 1), (14, 1)])
def test_steps_written_out(rows, turns):
    """Where they come out even, so that a load runs down an image three times at most."""
    case = Case((rows, 9), batch=get_num_threads())  # whole images for each
    assert case.plans()[0].fixed["turns"] == turns
    case.check()


@pytest.mark.parametrize(("rows", "kernel"), [(1024, "streamed"), (2, "rolled_wide")])
def test_a_strip_of_a_large_image_stays_in_the_caches(rows, kernel):
    """It is read again at once; the image's whole result is not."""
    (h, w) = phases.forward(conv_geometry((1024, 1024), (3, 3), (1, 1), (1, 1), SAME))[0]
    shapes, types = ((1, 1024, 1024, 32), (1, rows, 1024, 32)), ("float32",) * 4 + ("",)
    call = Call(*shapes, (3, 3), ((h._replace(out=rows), w),), types, "", 2, by_channels=False)
    assert [plan.kernel for plan in pixel_plans.plans(call)] == [kernel]


@pytest.mark.parametrize("images", [1, 2, 3])
@pytest.mark.parametrize("channels", [144, 192, 200])
def test_threads_share_out_channels(images, channels):
    """In whole cache lines, the same ones of all images; the first thread's items come before the second's."""
    (sweeps,) = phases.forward(conv_geometry((14, 14), (3, 3), (1, 1), (1, 1), SAME))
    shape, types = (images, 14, 14, channels), ("float32",) * 4 + ("",)
    (plan,) = pixel_plans.plans(Call(shape, shape, (3, 3), (sweeps,), types, "", 2, by_channels=False))
    assert plan.kernel.startswith("rolled")
    assert plan.numbers["block_channels"] % 16 == 0
    assert channels / 2 <= plan.numbers["block_channels"] < channels
    assert plan.items == 2 * plan.numbers["slices"] == 2 * images


@pytest.mark.parametrize(
    ("rows", "kernel", "channels", "dilation", "shared"),
    [
        (14, 7, 192, 1, True),
        (14, 7, 200, 1, True),
        (14, 7, 192, 2, True),
        (28, 7, 192, 1, True),
        (16, 5, 336, 1, True),
        (17, 5, 336, 1, False),
        (14, 5, 256, 1, False),
        (14, 7, 160, 1, False),
        (14, 7, 16, 1, False),
    ],
)
def test_threads_share_out_the_channels_of_an_image_whose_tiles_do_not_roll(rows, kernel, channels, dilation, shared):
    """Where rows are few and there is much to do for a pixel; else they share the rows."""
    padding = ((kernel // 2 * dilation,) * 2,) * 2
    (sweeps,) = phases.forward(conv_geometry((rows, rows), (kernel,) * 2, (1, 1), (dilation,) * 2, padding))
    shape, types = (1, rows, rows, channels), ("float32",) * 4 + ("",)
    (plan,) = pixel_plans.plans(Call(shape, shape, (kernel, kernel), (sweeps,), types, "", 2, by_channels=False))
    assert plan.kernel.startswith("correlate")
    assert plan.items == 2
    assert (plan.numbers["block_channels"] < channels, plan.numbers["row_blocks"]) == (shared, 1 if shared else 2)
    if rows == 14:
        Case((rows, rows), kernel, padding=padding, channels=channels, dilation=dilation).check()


@pytest.mark.parametrize("channels", [144, 192])
@pytest.mark.parametrize("images", [1, 2])
def test_threads_share_out_the_channels_of_phases(images, channels):
    """Of one image; of two, each has one."""
    shapes = (images, 14, 14, channels), (images, 28, 28, channels)
    passes = phases.adjoint(conv_geometry((28, 28), (3, 3), (2, 2), (1, 1), SAME))
    types = ("float32",) * 4 + ("",)
    (plan,) = pixel_plans.plans(Call(*shapes, (3, 3), passes, types, "", 2, by_channels=False))
    assert plan.items == 2
    assert (plan.numbers["block_channels"] < channels) == (images == 1)


@pytest.mark.parametrize("size", [(5, 8), (5, 3), (1, 5)], ids=["rolled", "tiles", "a row"])
def test_who_packs_the_taps(size):
    """The only item of a block of channels packs its own taps; what several items read is packed before."""
    for images, channels in ((1, 40 * LANES + 3), (2, 40 * LANES)):
        case = Case(size, channels=channels, batch=images)
        (plan,) = case.plans()
        assert plan.fixed["packs"] == (images == 1)
        case.check()


def test_what_several_passes_read_is_packed_before():
    """The residues of stride 3 are passes of their own."""
    case = Case((9, 9), stride=3)
    call = (case.z.shape, case.x.shape, case.weight.shape, phases.adjoint(case.g))
    dtypes = (case.x.dtype, case.x.dtype, False, case.x.dtype, None)
    dense = channels_last.launches(*call, dtypes, "", get_num_threads(), unpacked=True)
    assert len(dense.passes) > 1
    assert dense.pack.items
    case.check()


@pytest.mark.sweep
@pytest.mark.skipif(LANES_VARIABLE in os.environ, reason="is itself the run with narrower lanes")
@pytest.mark.parametrize("lanes", [8, 4])
def test_narrower_lanes(lanes):
    narrower(__file__, "", lanes)

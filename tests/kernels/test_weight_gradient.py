"""The CPU engine's weight and bias gradients: the reference's bits on small integers, within a bound on floats."""

from __future__ import annotations

import sys
from typing import NamedTuple

import numpy as np
import pytest
from kernels.children import finish, start

pytest.importorskip("numba")

from npdwconv import get_num_threads, set_num_threads
from npdwconv.geometry import conv_geometry
from npdwconv.kernels.cpu import weight_gradient
from npdwconv.kernels.cpu.epilogue import bias_bwd
from npdwconv.kernels.cpu.machine import machine
from npdwconv.kernels.cpu.weight_gradient import correlate
from npdwconv.kernels.reference import depthwise, epilogue
from npdwconv.layouts import shape_of

LANES = machine().lanes(4)
LAYOUTS = ("channels_last", "channels_first")


class Case(NamedTuple):
    """One correlation; ``channels`` counts lanes and what is added to them: (1, -1) is one less than a vector."""

    size: tuple[int, ...]
    kernel: tuple[int, ...]
    stride: int = 1
    dilation: int = 1
    padding: tuple[int, int] | None = None  # k // 2 on both sides
    channels: tuple[int, int] = (1, 1)
    multiplier: int = 1
    batch: int = 2

    def geometry(self):
        pads = [self.padding or (k // 2 * self.dilation,) * 2 for k in self.kernel]
        rank = len(self.size)
        return conv_geometry(self.size, self.kernel, (self.stride,) * rank, (self.dilation,) * rank, tuple(pads))

    @property
    def count(self) -> int:
        return max(1, self.channels[0] * LANES + self.channels[1])

    def __str__(self) -> str:
        sizes, kernel = ("x".join(map(str, extent)) for extent in (self.size, self.kernel))
        lanes, extra = self.channels
        text = f"n{self.batch}-c{lanes}lanes{extra:+d}-{sizes}-k{kernel}-s{self.stride}-d{self.dilation}"
        pads = "" if self.padding is None else f"-p{self.padding[0]},{self.padding[1]}"
        return f"{text}{pads}-m{self.multiplier}"


CASES = [
    # channels around a vector and around a group of vectors; rows and columns around a tile
    Case((7, 7), (3, 3), channels=(1, -1)),
    Case((7, 7), (3, 3), channels=(1, 0)),
    Case((8, 6), (3, 3)),
    Case((9, 15), (3, 3), channels=(4, 1)),
    Case((1, 1), (3, 3)),
    Case((2, 3), (3, 3), padding=(2, 2)),
    Case((21, 35), (3, 3), padding=(0, 1), batch=3),
    Case((13, 14), (3, 3), padding=(2, 0)),
    Case((40, 61), (3, 3), batch=1),
    Case((15, 16), (3, 3), stride=2),
    Case((33, 47), (3, 3), stride=2, padding=(0, 1)),
    Case((5, 28 * LANES + 3), (3, 3), stride=2, batch=1, channels=(0, 3)),
    Case((8, 9), (5, 5)),
    Case((14, 15), (7, 7)),
    Case((7, 4), (7, 7)),
    # strides and dilations that are not compiled in
    Case((13, 12), (3, 3), dilation=2),
    Case((33, 33), (3, 3), dilation=18, batch=1),
    Case((17, 19), (3, 3), stride=3, dilation=2, padding=(1, 3)),
    # one and three dimensions, and kernels larger than any tile
    Case((50,), (4,), padding=(3, 0)),
    Case((90,), (31,)),
    Case((300,), (257,), padding=(200, 56), batch=1),
    Case((4, 5, 9), (3, 3, 3)),
    Case((5, 4, 8), (3, 3, 3), stride=2, padding=(1, 0)),
    Case((10, 11), (13, 12), padding=(6, 6)),
    Case((400, 3), (3, 3), padding=(1, 1), batch=1, channels=(0, 3)),
    Case((2, 700), (3, 3), batch=1, channels=(0, 3)),
    # several outputs a channel, on either side
    Case((9, 8), (3, 3), multiplier=2),
    Case((9, 8), (3, 3), multiplier=3, channels=(0, 2)),
    Case((5, 6), (3, 3), multiplier=LANES + 3, channels=(0, 3)),
]


def drawn(shape, dtype="float32", *, whole=True, seed=0):
    rng = np.random.default_rng(seed)
    values = rng.integers(-3, 4, shape) if whole else rng.standard_normal(shape)
    return values.astype(dtype)


def arrays(case, layout, dtypes=("float32", "float32"), *, transposed=False, whole=True):
    """z and x; the transposed convolution has its outputs, several a channel, on the side of x."""
    g, several = case.geometry(), case.count * case.multiplier
    z_channels, x_channels = (case.count, several) if transposed else (several, case.count)
    z = drawn(shape_of(layout, case.batch, z_channels, g.out), dtypes[0], whole=whole)
    x = drawn(shape_of(layout, case.batch, x_channels, g.size), dtypes[1], whole=whole, seed=1)
    return z, x, g


def gradients(case, layout, dtypes=("float32",) * 3, *, transposed=False, whole=True, prepare=None):
    """The engine's gradient and the reference's."""
    z, x, g = arrays(case, layout, dtypes[:2], transposed=transposed, whole=whole)
    if prepare is not None:
        prepare(z, x)
    ours, theirs = (np.empty((case.count * case.multiplier, *g.kernel), dtypes[2]) for _ in range(2))
    correlate(z, x, ours, g, layout)
    if transposed:
        depthwise.transpose_bwd_weight(x, z, theirs, g, layout)
    else:
        depthwise.depthwise_bwd_weight(z, x, theirs, g, layout)
    return ours, theirs


# planes are turned whatever the multiplier: one will do
PAIRS = [(case, layout) for case in CASES for layout in LAYOUTS if case.multiplier < 3 or layout == "channels_last"]
TRANSPOSED = [(case, layout) for case, layout in PAIRS if case.multiplier in (2, LANES + 3) or case.stride == 3]


@pytest.mark.parametrize(("case", "layout"), PAIRS, ids=str)
def test_small_integers_give_the_same_bits(case, layout):
    ours, theirs = gradients(case, layout)
    np.testing.assert_array_equal(ours, theirs)


@pytest.mark.parametrize(
    ("case", "dtype"),
    [
        (Case((7, 7), (3, 3), channels=(8, 0)), "float32"),
        (Case((7, 7), (3, 3), channels=(9, 3), batch=3), "float16"),
        (Case((2, 3), (3, 3), channels=(8, 1), padding=(2, 2)), "float32"),
        (Case((9, 11), (3, 3), stride=2, channels=(9, 3), padding=(0, 1)), "float32"),
        (Case((7, 9), (5, 5), channels=(8, 1)), "float32"),
        (Case((7, 4), (7, 7), channels=(8, 1)), "float32"),
        (Case((6, 9), (2, 13), channels=(8, 1), padding=(1, 6)), "float32"),
        (Case((9, 8), (3, 3), channels=(4, 1), multiplier=2), "float32"),
        (Case((9, 8), (3, 3), channels=(3, 0), multiplier=3), "float32"),
    ],
    ids=str,
)
def test_images_laid_out(case, dtype):
    """Small images of many channels in channels_last, which are laid out group by group, the last of them smaller."""
    dtypes = ("float32", dtype, "float32")
    z, x, g = arrays(case, "channels_last", dtypes[:2])
    plan = weight_gradient._plan(z.shape, x.shape, (z.dtype, x.dtype, z.dtype), g.axes, "channels_last")
    assert plan.sum_chunks.spec.laid
    assert plan.sum_chunks.spec.group > 1
    ours, theirs = gradients(case, "channels_last", dtypes)
    np.testing.assert_array_equal(ours, theirs)


@pytest.mark.usefixtures("replanned")
def test_an_item_writes_the_channels_that_are_its_own():
    """Of a multiplier that does not divide the lanes some do not count: their channels are another item's to write."""
    z, x, g = arrays(Case((5, 7), (3, 3), channels=(1, 1), multiplier=3), "channels_last")
    weight = np.full((z.shape[-1], 3, 3), np.nan, "float32")
    plan = weight_gradient._plan(z.shape, x.shape, (z.dtype,) * 3, g.axes, "channels_last")
    partial = np.empty(plan.space, "float32")
    plan.sum_chunks(z, x, partial)
    plan.collect.items = 1
    plan.collect(partial, weight)
    own = LANES // 3 * 3
    assert np.isfinite(weight[:own]).all()
    assert np.isnan(weight[own:]).all()


@pytest.mark.parametrize("dtype", ["float32", "float16"])
@pytest.mark.parametrize("channels", [(0, 6), (2, 0), (1, 1)])
@pytest.mark.parametrize(("extents", "stride"), [((7, 7), 1), ((17, 8), 1), ((14, 14), 2), ((15, 15), 2)])
def test_two_planes_in_a_vector(extents, stride, channels, dtype):
    """Of an even number of channels two neighbours' planes share a vector; what is beside them counts for nothing."""
    height, width = extents[0] * LANES // 16, extents[1] * LANES // 16
    case = Case((height, width), (3, 3), stride=stride, channels=channels, batch=3)
    dtypes = (dtype, dtype, "float32")
    z, x, g = arrays(case, "channels_first", dtypes[:2])
    plan = weight_gradient._plan(z.shape, x.shape, (z.dtype, x.dtype, np.dtype("f")), g.axes, "channels_first")
    shared = machine().name == "AVX-512" and case.count % 2 == 0
    assert (plan.sum_chunks.spec.knows("mates") and plan.sum_chunks.spec.mates == 2) == shared
    ours, theirs = gradients(case, "channels_first", dtypes)
    np.testing.assert_array_equal(ours, theirs)


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.usefixtures("far")
def test_fetching_ahead_changes_nothing(monkeypatch, stride):
    """Blocks and images that come next are only asked for; past the last one there is nothing."""
    monkeypatch.setattr(weight_gradient, "NEAR", 1)  # blocks of few rows
    case = Case((stride * 21, stride * stride * 7 * LANES), (3, 3), stride=stride, batch=2)
    z, x, g = arrays(case, "channels_first")
    plan = weight_gradient._plan(z.shape, x.shape, (z.dtype,) * 3, g.axes, "channels_first")
    assert plan.sum_chunks.spec.piece > 0
    ours, theirs = gradients(case, "channels_first")
    np.testing.assert_array_equal(ours, theirs)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.usefixtures("far")
def test_fetching_the_next_image_changes_nothing(layout):
    case = Case((7, 7), (3, 3), channels=(8, 1), batch=3)
    z, x, g = arrays(case, layout)
    plan = weight_gradient._plan(z.shape, x.shape, (z.dtype,) * 3, g.axes, layout)
    assert plan.sum_chunks.spec.fetches
    ours, theirs = gradients(case, layout)
    np.testing.assert_array_equal(ours, theirs)


@pytest.mark.parametrize(("channels", "fetches"), [((8, 0), True), ((8, 3), True), ((1, 0), False)])
@pytest.mark.usefixtures("far")
def test_fetching_the_next_rows_changes_nothing(channels, fetches):
    """Of many channels; past the last row there is nothing."""
    case = Case((41, 37), (3, 3), stride=2, channels=channels, batch=2)
    z, x, g = arrays(case, "channels_last")
    plan = weight_gradient._plan(z.shape, x.shape, (z.dtype,) * 3, g.axes, "channels_last")
    assert (plan.sum_chunks.spec.laid, plan.sum_chunks.spec.fetches) == (False, fetches)
    ours, theirs = gradients(case, "channels_last")
    np.testing.assert_array_equal(ours, theirs)


@pytest.mark.parametrize(("case", "layout"), TRANSPOSED, ids=str)
def test_transposed(case, layout):
    ours, theirs = gradients(case, layout, transposed=True)
    np.testing.assert_array_equal(ours, theirs)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(
    "dtypes",
    [
        ("float32", "float32", "float32"),
        ("float64",) * 3,
        ("float32", "float16", "float16"),
        ("float32", "bfloat16", "bfloat16"),
    ],
    ids="-".join,
)
def test_floats_are_within_the_bound(dtypes, layout):
    """Each product and each addition rounds once: |error| ≤ terms · ε · Σ|z·x|, and the result is rounded once more."""
    if "bfloat16" in dtypes:
        pytest.importorskip("ml_dtypes")
    case = Case((21, 35), (3, 3), channels=(2, 1))
    z, x, g = arrays(case, layout, dtypes[:2], whole=False)
    ours = np.empty((case.count, *g.kernel), dtypes[2])
    correlate(z, x, ours, g, layout)
    exact, size = np.empty(ours.shape), np.empty(ours.shape)
    z, x = z.astype("float64"), x.astype("float64")
    depthwise.depthwise_bwd_weight(z, x, exact, g, layout)
    depthwise.depthwise_bwd_weight(abs(z), abs(x), size, g, layout)
    terms = case.batch * np.prod(g.out)
    epsilon = np.finfo("float64" if dtypes[2] == "float64" else "float32").eps
    rounding = {"float16": 2.0**-11, "bfloat16": 2.0**-8}.get(dtypes[2], epsilon)
    assert (abs(ours.astype("float64") - exact) <= terms * epsilon * size + rounding * abs(exact)).all()


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtypes", [("float64",) * 3, ("float32", "float16", "float32")], ids="-".join)
def test_dtypes_on_small_integers(dtypes, layout):
    ours, theirs = gradients(Case((7, 7), (3, 3), channels=(1, 1)), layout, dtypes)
    np.testing.assert_array_equal(ours, theirs)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(
    "case",
    [
        Case((9, 15), (3, 3), batch=3),
        Case((9, 15), (3, 3), channels=(9, 1)),
        Case((40, 61), (3, 3)),
        Case((14, 15), (7, 7)),
    ],
    ids=str,
)
def test_bits_do_not_depend_on_threads(case, layout):
    z, x, g = arrays(case, layout, whole=False)
    results, before = [], get_num_threads()
    try:
        for threads in (1, 2, 7, 1):
            set_num_threads(threads)
            weight, bias = np.empty((case.count, *g.kernel), "float32"), np.empty(case.count, "float32")
            correlate(z, x, weight, g, layout)
            bias_bwd(z, bias, layout)
            results.append((weight.tobytes(), bias.tobytes()))
    finally:
        set_num_threads(before)
    assert len(set(results)) == 1


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(
    "case",
    [
        Case((7, 9), (3, 3)),
        Case((7, 9), (3, 3), channels=(8, 1)),
        Case((7, 9), (5, 5)),
        Case((13, 12), (3, 3), dilation=2),
        Case((15, 16), (3, 3), stride=2),
    ],
    ids=str,
)
def test_padding_reads_nothing(case, layout):
    """NaN and infinities in the corners of z and x reach the taps that read them, and no other."""

    def prepare(z, x):
        view = z if layout == "channels_first" else np.moveaxis(z, -1, 1)
        view[0, 0, 0, 0], view[0, 1, -1, -1], view[-1, 2, 0, -1], view[-1, 3, -1, 0] = np.nan, np.inf, -np.inf, np.nan
        other = x if layout == "channels_first" else np.moveaxis(x, -1, 1)
        other[0, 3, 0, 0], other[-1, 4, -1, -1] = np.nan, np.inf

    ours, theirs = gradients(case, layout, prepare=prepare)
    assert np.isnan(theirs).any()
    np.testing.assert_array_equal(ours, theirs)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_nothing_to_sum_is_zero(layout):
    for case in (Case((0, 5), (3, 3), padding=(2, 2)), Case((7, 7), (3, 3), batch=0)):
        ours, _ = gradients(case, layout)
        np.testing.assert_array_equal(ours, 0)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_any_strides(layout):
    z, x, g = arrays(Case((7, 7), (3, 3)), layout)
    plain, odd = np.empty((LANES + 1, 3, 3), "float32"), np.empty((3, 3, LANES + 1), "float32").T
    correlate(z, x, plain, g, layout)
    correlate(np.repeat(z, 2, axis=0)[::2], np.asfortranarray(x), odd, g, layout)
    np.testing.assert_array_equal(plain, odd)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(
    "dtypes", [("float32", "float32"), ("float64", "float64"), ("float32", "float16")], ids="-".join
)
@pytest.mark.parametrize("channels", [1, LANES - 1, LANES, LANES + 1, 5 * LANES + 3])
@pytest.mark.parametrize("size", [(3, 1), (1, 8 * LANES + 1), (2, 57 * 57)])
def test_bias(size, channels, dtypes, layout):
    z = drawn(shape_of(layout, *(size[0], channels), (size[1],)), dtypes[0])
    ours, theirs = (np.empty(channels, dtypes[1]) for _ in range(2))
    bias_bwd(z, ours, layout)
    epilogue.bias_bwd(z, theirs, layout)
    np.testing.assert_array_equal(ours, theirs)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_bias_of_nothing_is_zero(layout):
    bias = np.empty(3, "float32")
    bias_bwd(np.empty(shape_of(layout, 0, 3, (4, 4)), "float32"), bias, layout)
    np.testing.assert_array_equal(bias, 0)


GUARDED = """
import numpy as np
from kernels.guarded import guarded
from npdwconv.geometry import conv_geometry
from npdwconv.kernels.cpu.epilogue import bias_bwd
from npdwconv.kernels.cpu.machine import machine
from npdwconv.kernels.cpu.weight_gradient import correlate
from npdwconv.layouts import shape_of

lanes = machine().lanes(4)
for layout in ("channels_last", "channels_first"):
    for size, kernel, stride in (((7, 7), 3, 1), ((9, 15), 3, 1), ((2, 3), 3, 1), ((15, 16), 3, 2), ((8, 9), 5, 1)):
        g = conv_geometry(size, (kernel,) * 2, (stride,) * 2, (1, 1), ((kernel // 2,) * 2,) * 2)
        for channels in (lanes - 1, lanes, lanes + 1, 8 * lanes + 1):
            for at_end in (False, True):
                shapes = (shape_of(layout, 2, channels, extent) for extent in (g.out, g.size))
                z, x, weight, bias = (
                    guarded(shape, np.float32, at_end=at_end)
                    for shape in (*shapes, (channels, kernel, kernel), (channels,))
                )
                z[...], x[...] = 1, 1
                correlate(z, x, weight, g, layout)
                bias_bwd(z, bias, layout)
                assert bias[0] == 2 * g.out[0] * g.out[1] and weight.min() > 0
print("done")
"""


@pytest.mark.skipif(sys.platform == "win32", reason="mprotect is POSIX")
def test_no_byte_outside_the_arrays_is_touched():
    """Every array lies between protected pages, flush with one of them: a stray byte ends the process."""
    assert finish(start(GUARDED), 600) == "done"

"""Separable convolution strip by strip, on the numba backend, against the reference; what is fetched meanwhile."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest

from npdwconv import get_num_threads
from npdwconv.activations import ACTIVATIONS
from npdwconv.geometry import conv_geometry
from npdwconv.kernels.cpu import caches, separable, strips, together
from npdwconv.kernels.reference import separable as reference
from npdwconv.layouts import LAYOUTS, shape_of

RELU6 = ACTIVATIONS["relu6"]


def integers(rng, shape):
    return rng.integers(-3, 4, shape).astype("float32")


@pytest.fixture
def short_strips(monkeypatch, replanned):
    """Small images go strip by strip, too; what was planned so is forgotten."""
    monkeypatch.setattr(strips, "LEAST_BYTES", 0)
    monkeypatch.setattr(together, "STRIP_BYTES", 4000)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(
    ("spatial", "stride", "mode", "multiplier"),
    [
        pytest.param((15, 37), 1, "zeros", 1, id="plane"),
        pytest.param((15, 17), 2, "reflect", 1, id="copied-border"),
        pytest.param((5, 9, 8), 1, "zeros", 1, id="volume"),
        pytest.param((90,), 1, "zeros", 2, id="line-multiplied"),
    ],
)
@pytest.mark.parametrize("fetches", [pytest.param(False, id="near"), pytest.param(True, id="far")])
def test_strips(spatial, stride, mode, multiplier, fetches, layout, short_strips, monkeypatch):
    """A separable convolution strip by strip is the one of whole images, with several strips for an item."""
    monkeypatch.setattr(caches, "fetched", lambda nbytes: fetches)
    rng, rank, channels = np.random.default_rng(7), len(spatial), 6
    g = conv_geometry(spatial, (3,) * rank, (stride,) * rank, (1,) * rank, ((1, 1),) * rank, mode)
    x = integers(rng, shape_of(layout, 3, channels, spatial))
    depthwise_weight = integers(rng, (channels * multiplier, 1, *g.kernel))
    weight, bias = integers(rng, (7, channels * multiplier)), integers(rng, 7)
    shape = shape_of(layout, 3, 7, g.out)
    expected, found = np.full((2, *shape), np.nan, np.float32)
    operands = x, depthwise_weight, integers(rng, channels * multiplier), weight, bias
    separable.separable_fwd(*operands, found, g, layout, RELU6, None)
    reference.separable_fwd(*operands, expected, g, layout, RELU6, None)
    assert strips.strips.cache_info().currsize == 1
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(
    "spatial",
    [
        pytest.param((192, 200), id="plane"),
        pytest.param((9, 64, 66), id="volume", marks=pytest.mark.sweep),
        pytest.param((40_000,), id="line", marks=pytest.mark.sweep),
    ],
)
def test_the_value_between_the_stages_is_never_whole(layout, spatial):
    """Beside operands and result, 4 MB are enough; the middle value would take more."""
    rank, channels = len(spatial), 48
    g = conv_geometry(spatial, (3,) * rank, (1,) * rank, (1,) * rank, ((1, 1),) * rank, "zeros")
    x = np.ones(shape_of(layout, 1, channels, spatial), np.float32)
    depthwise_weight, weight = np.ones((channels, *g.kernel), np.float32), np.ones((8, channels), np.float32)
    out = np.empty(shape_of(layout, 1, 8, g.out), np.float32)
    assert x.nbytes > 6e6
    for _ in range(2):  # the first compiles
        tracemalloc.start()
        separable.separable_fwd(x, depthwise_weight, None, weight, None, out, g, layout, None, None)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert peak < 4e6
    centre = tuple(extent // 2 for extent in g.out)
    assert out[(0, 3, *centre) if layout == "channels_first" else (0, *centre, 3)] == channels * 3**rank


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(("kernel", "stride"), [(3, 1), (3, 2), (5, 1)])
@pytest.mark.usefixtures("short_strips")
def test_a_product_fetches_the_rows_that_the_next_strip_reads(layout, kernel, stride, monkeypatch):
    """Seen by where the walk ends that an item's last strip takes: behind that strip's own rows, of every channel."""
    monkeypatch.setattr(caches, "fetched", lambda nbytes: True)
    monkeypatch.setattr(strips, "rows_of", lambda *_: 3)
    kept, blocks_of = [], together.Pair.blocks
    monkeypatch.setattr(
        together.Pair, "blocks", lambda *given: kept.append((given[0], blocks_of(*given))) or kept[0][1]
    )
    batch, channels, rows, width, outputs, low = 3, 12, 40, 24, 200, kernel // 2
    g = conv_geometry((rows, width), (kernel,) * 2, (stride,) * 2, (1, 1), ((low, low),) * 2, "zeros")
    x = np.zeros(shape_of(layout, batch, channels, (rows, width)), np.float32)
    out = np.zeros(shape_of(layout, batch, outputs, g.out), np.float32)
    taps, weight = np.zeros((channels, kernel, kernel), np.float32), np.zeros((outputs, channels), np.float32)
    separable.separable_fwd(x, taps, None, weight, None, out, g, layout, None, None)

    ((pair, (_, blocks)),) = kept
    runs, row = (1, width * channels * 4) if layout == "channels_last" else (channels, width * 4)
    length, plane, each = 3 * stride * row, rows * row, -(-g.out[0] // 3)
    assert len(blocks) == min(get_num_threads(), batch * each)
    for item, block in enumerate(blocks):
        image, strip = divmod(batch * each * (item + 1) // len(blocks) - 1, each)
        first = min(strip * 3, g.out[0] - 3) * stride - low + kernel - stride
        begin = x[image].ctypes.data + first * row
        here, end = (int(block[pair.fields[1].index(name)]) for name in ("fetch", "fetch_end"))
        run, walked = divmod(here - begin, plane) if runs > 1 else (0, here - begin)
        assert end == begin + (run * plane if runs > 1 else walked // length * length) + length
        assert runs * length <= run * length + walked < 1.2 * runs * length

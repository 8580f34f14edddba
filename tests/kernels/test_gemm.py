"""Matrix products of the numba backend against the reference: at the edges of tiles, in every dtype, bit by bit."""

from __future__ import annotations

from itertools import product
from math import ceil

import numpy as np
import pytest
from kernels import dotted, sliced

from npdwconv import get_num_threads, set_num_threads
from npdwconv.activations import ACTIVATIONS
from npdwconv.kernels.cpu import cuts, dots, pointwise, products
from npdwconv.kernels.cpu.arrays import room
from npdwconv.kernels.cpu.cuts import TILES, best_cut, panels
from npdwconv.kernels.cpu.engine import Launch
from npdwconv.kernels.cpu.machine import MACHINES, machine
from npdwconv.kernels.cpu.products import Matrices, Strides, packed_product, packing
from npdwconv.kernels.reference import pointwise as reference
from npdwconv.layouts import LAYOUTS

LANES = machine().lanes(4)
RELU6 = ACTIVATIONS["relu6"]


def integers(rng, shape, dtype="float32"):
    return rng.integers(-3, 4, shape).astype(dtype)


def nothing(shape, dtype="float32"):
    return np.full(shape, np.nan).astype(dtype)


class Problem:
    """Operands of one pointwise convolution, small integers in ``dtype``."""

    def __init__(self, batch, pixels, channels, outputs, layout, dtype="float32"):
        rng = np.random.default_rng([batch, pixels, channels, outputs])
        self.layout, self.dtype = layout, np.dtype(dtype)
        self.wide = np.dtype("float64" if dtype == "float64" else "float32")
        x, out = ((batch, c, pixels) if layout == "channels_first" else (batch, pixels, c) for c in (channels, outputs))
        self.x, self.grad = integers(rng, x, dtype), integers(rng, out, dtype)
        self.weight, self.bias = integers(rng, (outputs, channels), dtype), integers(rng, outputs, dtype)

    def results(self, kernels, activation=RELU6):
        """The forward and what a backward needs, by the functions of ``kernels``."""
        out, grad_z = nothing(self.grad.shape, self.dtype), nothing(self.grad.shape, self.wide)
        grad_x, grad_weight = nothing(self.x.shape, self.dtype), nothing(self.weight.shape, self.dtype)
        operands = self.x, self.weight, self.bias
        kernels.pointwise_fwd(*operands, out, self.layout, activation)
        kernels.pointwise_bwd_activation(self.grad, *operands, grad_z, self.layout, activation or RELU6)
        kernels.pointwise_bwd_input(grad_z, self.weight, grad_x, self.layout)
        kernels.pointwise_bwd_weight(grad_z, self.x, grad_weight, self.layout)
        return {"out": out, "grad_z": grad_z, "grad_x": grad_x, "grad_weight": grad_weight}


def assert_same(found, expected):
    for name, array in expected.items():
        np.testing.assert_array_equal(found[name], array, err_msg=name)


def forget_plans():
    for planned in (best_cut, pointwise._plan, pointwise._weight_plan):
        planned.cache_clear()


@pytest.fixture(autouse=True)
def one_tile(monkeypatch):
    """One tile and no more, so that little is compiled; `test_tile_edges` has them all."""
    monkeypatch.setattr(cuts, "TILES", {machine().registers: TILES[machine().registers][:1]})
    forget_plans()
    yield
    forget_plans()


@pytest.fixture
def threads():
    before = get_num_threads()
    yield set_num_threads
    set_num_threads(before)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(
    ("batch", "pixels", "channels", "outputs"),
    [
        pytest.param(1, 49, 2 * LANES, 2 * LANES, id="full-panels"),
        pytest.param(2, 49, 2 * LANES + 1, LANES - 1, id="partial-panels"),
        pytest.param(2, 49, 2 * LANES + LANES // 2, LANES + 3, id="half-vectors"),
        pytest.param(1, 4 * LANES + 1, 5, 4 * LANES - 1, id="pixels-gt-panel"),
        pytest.param(3, 1, 5, 9, id="one-pixel"),
        pytest.param(1, 50, 1, 1, id="one-channel"),
        pytest.param(2, 700, 3, 5, id="long-reduction"),
        pytest.param(1, 4096, 49, 64, id="panels-that-conflict"),
        pytest.param(1, 17, 1024, 2 * LANES + 3, id="rows-that-conflict"),
        pytest.param(2, 30, 33, 1024, id="rows-that-conflict-in-the-gradient"),
        pytest.param(0, 4, 3, 2, id="no-image"),
        pytest.param(2, 0, 3, 2, id="no-pixel"),
        pytest.param(2, 4, 0, 3, id="no-channel"),
        pytest.param(2, 4, 3, 0, id="no-output"),
    ],
)
def test_parity(batch, pixels, channels, outputs, layout):
    problem = Problem(batch, pixels, channels, outputs, layout)
    assert_same(problem.results(pointwise), problem.results(reference))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_last_panels(layout, monkeypatch):
    """Panels of which the last is narrower, in every kernel."""
    monkeypatch.setattr(cuts, "TILES", {machine().registers: TILES[machine().registers][1:2]})
    problem = Problem(2, 3 * LANES, 3 * LANES, 3 * LANES, layout)
    assert_same(problem.results(pointwise), problem.results(reference))


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.usefixtures("far")
def test_past_the_caches(layout):
    """Whole vectors are streamed, if rows begin with one, wherever the array begins; nothing around it is written.

    Of pixels read where they lie those to the right are fetched.
    """
    bytes_around = 4 * LANES
    for extra in (0, 3):  # pixels and outputs beyond whole vectors
        problem = Problem(2, 4 * LANES + extra, 5, 2 * LANES + extra, layout)
        wanted = problem.results(reference)["out"]
        for offset in (0, 4, 3 * LANES - 3 * LANES % 4):
            raw = np.full(wanted.nbytes + 4 * bytes_around, 77, np.uint8)
            first = -raw.ctypes.data % bytes_around + bytes_around + offset
            out = raw[first : first + wanted.nbytes].view(np.float32).reshape(wanted.shape)
            pointwise.pointwise_fwd(problem.x, problem.weight, problem.bias, out, layout, RELU6)
            np.testing.assert_array_equal(out, wanted)
            assert (raw[:first] == 77).all()
            assert (raw[first + wanted.nbytes :] == 77).all()
        plan, _ = pointwise.planned(problem.x, problem.weight, problem.bias, wanted, layout, RELU6)
        spec = plan.run.launch.spec
        assert spec.streams is (not extra)
        in_place = layout == "channels_first"
        assert (plan.weight_first, spec.direct, spec.right > 0) == (in_place,) * 3


@pytest.mark.parametrize(
    ("dtype", "layout"),
    [
        ("float64", "channels_first"),
        ("float64", "channels_last"),
        ("float16", "channels_last"),
        ("bfloat16", "channels_first"),
    ],
)
def test_dtypes(dtype, layout):
    if dtype == "bfloat16":
        pytest.importorskip("ml_dtypes", reason="bfloat16")
    problem = Problem(2, 2 * LANES + 1, 11, LANES + 1, layout, dtype)
    assert_same(problem.results(pointwise), problem.results(reference))


@pytest.mark.parametrize("tile", TILES[machine().registers], ids=lambda tile: f"{tile.rows}x{tile.vectors}")
def test_tile_edges(tile, monkeypatch):
    """Every tile at its edges: rows about the tile and its rest, columns about a vector, an odd depth."""
    monkeypatch.setattr(cuts, "TILES", {machine().registers: (tile,)})
    rng = np.random.default_rng(tile)
    full = tile.vectors * LANES
    widths = full, full + LANES - 1, full - LANES // 2, full - LANES + 3
    for columns, rows in product(widths, sorted({r + d for r in tile[:2] for d in (-1, 0, 1)})):
        x, w, bias = integers(rng, (rows, 3)), integers(rng, (columns, 3)), integers(rng, columns)
        types = ("float32",) * 4
        m = Matrices(1, rows, columns, 3, Strides(3), Strides(3), Strides(columns), *types, threads=2)
        plan, out = packing(m), nothing((rows, columns))
        packed = nothing(plan.size)
        plan.launch(w, packed)
        run = packed_product(m)
        run.launch(x, packed, bias, out, None, room(run.scratch))
        np.testing.assert_array_equal(out, x @ w.T + bias)


@pytest.mark.parametrize("name", sliced.CASES)
def test_tiles_pack_the_next_panel(name, monkeypatch):
    sliced.settings(monkeypatch.setattr)
    for found, wanted in sliced.results(name, np.copy):
        np.testing.assert_array_equal(found, wanted)


@pytest.mark.parametrize("dtype", ["float32", "float64", "float16"])
def test_sums_along_contiguous_depths(dtype, monkeypatch):
    monkeypatch.setattr(dots, "CHUNK", 2 * LANES)
    for found, wanted in dotted.results(dtype, np.copy):
        np.testing.assert_array_equal(found, wanted)


def test_bits_of_sums_along_contiguous_depths_depend_on_no_thread():
    rng = np.random.default_rng(0)
    shape = 3 * dotted.ROWS + 1, 3 * dotted.WIDTH + 1, 2 * dots.CHUNK + 7
    a, b = (rng.standard_normal((dotted.IMAGES, count, shape[-1]), np.float32) for count in shape[:2])
    found = []
    for threads in (1, 2, 3, 4):
        found.append(np.full(shape[:2], np.nan, np.float32))
        dotted.planned(shape, "float32", threads).launch(a, b, None, found[-1], None, None)
        np.testing.assert_array_equal(found[-1], found[0])


def test_where_sums_run_along_contiguous_depths():
    """For few channels or many pixels, in channels_first alone, of one dtype; the other way where depths are short."""

    def along(channels, pixels, layout="channels_first", dtypes=("float32", "float32")):
        plan = pointwise._weight_plan(1, pixels, channels, channels, layout, *map(np.dtype, dtypes), 2)
        return plan.run.launch.spec.knows("width")

    assert along(16, 12544)
    assert along(64, 1024)
    assert not along(1024, 49)
    assert not along(16, 12544, "channels_last")
    assert not along(16, 12544, dtypes=("float32", "float16"))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_bits_depend_on_nothing_else(layout, threads):
    """Not on the number of threads, on the rest of the batch, or on weights packed ahead."""
    rng = np.random.default_rng(5)
    shape = (3, 37, 29) if layout == "channels_first" else (3, 29, 37)
    x, w = rng.standard_normal(shape).astype("float32"), rng.standard_normal((50, 37)).astype("float32")
    grad = rng.standard_normal((3, 50, 29) if layout == "channels_first" else (3, 29, 50)).astype("float32")

    def forward(x, weight):
        out = nothing((len(x), *grad.shape[1:]))
        pointwise.pointwise_fwd(x, weight, None, out, layout, None)
        return out

    def weight_gradient():
        result = nothing(w.shape)
        pointwise.pointwise_bwd_weight(grad, x, result, layout)
        return result

    threads(1)
    once, gradient = forward(x, w), weight_gradient()
    for count in (2, 7):
        threads(count)
        np.testing.assert_array_equal(forward(x, w), once)
        np.testing.assert_array_equal(weight_gradient(), gradient)
    np.testing.assert_array_equal(forward(x, pointwise.Packed(w)), once)
    np.testing.assert_array_equal(np.concatenate([forward(image[None], w) for image in x]), once)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_rounding_is_bounded(layout):
    rng = np.random.default_rng(6)
    shape = (1, 300, 70) if layout == "channels_first" else (1, 70, 300)
    x, w = rng.standard_normal(shape).astype("float32"), rng.standard_normal((20, 300)).astype("float32")
    out = nothing((1, 20, 70) if layout == "channels_first" else (1, 70, 20))
    pointwise.pointwise_fwd(x, w, None, out, layout, None)
    axes = "kc,ncp->nkp" if layout == "channels_first" else "kc,npc->npk"
    exact = np.einsum(axes, w.astype("float64"), x.astype("float64"))
    size = np.einsum(axes, abs(w).astype("float64"), abs(x).astype("float64"))
    assert (abs(out - exact) <= 301 * np.finfo("float32").eps / 2 * size).all()


@pytest.mark.parametrize("layout", LAYOUTS)
def test_nan_stays_where_it_is(layout):
    """A NaN or infinity reaches the outputs that read it and no other, padding of panels included."""
    problem = Problem(2, 2 * LANES + 3, 5, LANES + 1, layout)
    problem.x[0, -1, -1] = np.nan
    problem.weight[-1, 0] = np.inf
    with np.errstate(all="ignore"):
        assert_same(problem.results(pointwise, None), problem.results(reference, None))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_any_strides(layout):
    problem = Problem(2, 2 * LANES + 1, 5, 7, layout)
    expected = problem.results(reference)["out"]
    x, weight, bias = (np.repeat(a, 2, axis=-1)[..., ::2] for a in (problem.x, problem.weight, problem.bias))
    for array in (x, weight, bias):
        array.flags.writeable = False
    out = np.repeat(nothing(expected.shape), 2, axis=-1)[..., ::2]
    pointwise.pointwise_fwd(x, weight, bias, out, layout, RELU6)
    np.testing.assert_array_equal(out, expected)


@pytest.mark.parametrize("width", [1, 2, 3, 4])
def test_panels_cover_every_vector(width):
    for vectors in range(width, 60):
        wide, last, others = panels(vectors, width)
        assert wide * width + others * last == vectors
        assert 0 <= last < width


def test_cuts_share_the_work():
    """No more blocks than threads, or than there is to share; a tile that fits the columns."""
    for images, height, vectors, depth, threads, split in product(
        (1, 3), (1, 49, 3136), (1, 2, 2.5, 5, 62.5, 64), (1, 512), (1, 2, 6), ("rows", "columns", "")
    ):
        cut = best_cut(images, height, vectors, depth, machine().registers, threads, split)
        assert cut.row_blocks * cut.column_blocks <= threads
        assert cut.tile.vectors <= ceil(vectors)
        assert cut.wide * cut.tile.vectors + (cut.panels - cut.wide) * cut.last == ceil(vectors)
        assert cut.half in (0, cut.last or cut.tile.vectors)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("low", [False, True])
def test_packed_rows(layout, low, monkeypatch):
    """Rows packed tile by tile, neighbours in memory or not; low tiles in half vectors."""
    tiles = TILES[machine().registers]
    tile = next((tile for tile in tiles if low and tile.rows <= LANES // 2), tiles[0])
    monkeypatch.setattr(cuts, "TILES", {machine().registers: (tile,)})
    monkeypatch.setattr(products, "_rows_packed", lambda m, cut, depth: True)
    forget_plans()
    problem = Problem(2, 3 * LANES + 5, 4 * LANES + 3, 2 * LANES + 1, layout)
    assert_same(problem.results(pointwise), problem.results(reference))


@pytest.mark.parametrize("most", [0, products.ALL_ROWS])
def test_all_rows_are_packed_where_panels_are_packed_once(most, monkeypatch):
    """Neighbouring rows, of which a core's caches hold few: all are packed, or none, but never group after group."""
    packed = set()

    def launch(kernel, pointers, fixed, *rest, **options):
        if kernel is products.multiply_packing and not fixed["a_turning"]:
            packed.add(fixed["a_packs"])
        return Launch(kernel, pointers, fixed, *rest, **options)

    monkeypatch.setattr(products, "ALL_ROWS", most)
    monkeypatch.setattr(products, "second", lambda: 1000)
    monkeypatch.setattr(products, "_rows_packed", lambda m, cut, depth: True)
    monkeypatch.setattr(products, "Launch", launch)
    forget_plans()
    problem = Problem(1, 3 * LANES + 5, 4 * LANES + 3, 2 * LANES + 1, "channels_first")
    assert_same(problem.results(pointwise), problem.results(reference))
    assert packed == {most > 0}


def test_six_rows_that_are_neighbours_lie_across_lines(monkeypatch):
    """Where one tile is about as good as another, neighbours take the one whose rows share a line."""
    monkeypatch.setattr(cuts, "TILES", TILES)
    apart, neighbours = (best_cut(1, 196, 64, 512, 16, 2, "rows", near) for near in (False, True))
    assert (apart.tile.rows, neighbours.tile.rows) == (6, 4)


@pytest.mark.parametrize("split", ["rows", "columns"])
def test_panels_of_results_past_the_caches_are_whole_lines(split, monkeypatch):
    """Half a line at a time goes to memory by itself: AVX2's 4×3 tiles took three times as long."""
    monkeypatch.setattr(cuts, "TILES", TILES)
    monkeypatch.setattr(products, "machine", lambda: next(m for m in MACHINES if m.name == "AVX2"))

    def width(columns, past_caches):
        strides = Strides(32), Strides(32), Strides(columns)
        m = Matrices(1, 100352, columns, 32, *strides, "float32", "float32", "float32", past_caches=past_caches)
        return m.cut(split).tile.vectors

    assert (width(64, False), width(64, True), width(8, True)) == (3, 2, 1)


def test_low_tiles_of_a_reduction(monkeypatch):
    """Where two vectors of 64 bytes are multiplied in a cycle, tall tiles are worth rows that do not exist."""
    monkeypatch.setattr(cuts, "TILES", TILES)
    rows = [best_cut(1, 128, 8, 3136, 32, 1, "", low=low).tile.rows for low in (1.0, products.LOW)]
    assert rows == [8, 14]


def test_lines_that_are_read_anew(monkeypatch):
    """A transposed weight of 512 columns, lines 2 KB apart, does not stay in half a megabyte; one of 128 does."""
    monkeypatch.setattr(cuts, "TILES", TILES)
    monkeypatch.setattr(products, "second", lambda: 512 << 10)
    monkeypatch.setattr(products, "machine", lambda: next(m for m in MACHINES if m.name == "AVX2"))

    def cycles(columns, line=1):
        strides = Strides(line, columns), Strides(196), Strides(196)
        m = Matrices(1, columns, 196, columns, *strides, "float32", "float32", "float32")
        return products.scattered(m, m.cut("columns"))

    assert cycles(512) > 0 == cycles(128) == cycles(512, line=512)

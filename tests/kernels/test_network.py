"""Frozen sequences run whole by the numba backend: the same values as layer by layer on the reference."""

from __future__ import annotations

import threading
from itertools import pairwise

import numpy as np
import pytest

import npdwconv
from npdwconv import dispatch
from npdwconv.kernels.cpu import chains
from npdwconv.kernels.steps import Step, Window
from npdwconv.layers import (
    Activation,
    DepthwiseConv2d,
    GlobalAveragePool,
    PointwiseConv,
    Residual,
    Sequential,
    StandardConv2d,
)

LAYOUTS = ("channels_first", "channels_last")


def network(layout, dtype=np.float32, *, ending=True):
    options = {"layout": layout, "dtype": dtype}
    layers = [
        StandardConv2d(3, 20, 3, stride=2, padding="same", activation="relu6", **options),
        Sequential(
            PointwiseConv(20, 37, activation="relu6", **options),
            DepthwiseConv2d(37, 3, stride=2, padding=1, activation="relu6", **options),
            PointwiseConv(37, 24, **options),
        ),
        Residual(
            Sequential(
                PointwiseConv(24, 48, activation="relu6", **options),
                DepthwiseConv2d(48, 5, padding=2, bias=False, activation="hardswish", **options),
                PointwiseConv(48, 24, **options),
            )
        ),
    ]
    if ending:
        layers += [GlobalAveragePool(layout=layout), PointwiseConv(24, 10, spatial_rank=0, **options)]
    return Sequential(*layers)


def photographs(layout, batch=1, size=(31, 40), dtype=np.float32, seed=0):
    x = np.random.default_rng(seed).standard_normal((batch, *size, 3)).astype(dtype)
    return x if layout == "channels_last" else np.ascontiguousarray(np.moveaxis(x, -1, 1))


@pytest.fixture(autouse=True)
def _numba(monkeypatch):
    if dispatch.unusable("numba"):
        pytest.skip(reason=f"the numba backend cannot be used here: {dispatch.unusable('numba')}")
    monkeypatch.setenv("NPDWCONV_BACKEND", "numba")


def by_reference(model, x):
    """Layer by layer, for a frozen model, too: the reference runs no network whole."""
    with npdwconv.use_backend("reference"):
        return model(x)


def was_whole(model):
    return model._network._network is not None


@pytest.mark.parametrize("ending", [True, False])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_values(layout, ending):
    model = network(layout, ending=ending).freeze()
    for batch, size in ((1, (31, 40)), (2, (31, 40)), (1, (16, 9))):
        x = photographs(layout, batch, size)
        np.testing.assert_allclose(model(x), by_reference(model, x), rtol=0, atol=2e-6)
    assert was_whole(model)


@pytest.mark.parametrize(
    ("channels", "kernel", "stride", "padding", "size"),
    [
        (3, (3, 3), (2, 2), "same", (9, 12)),
        (3, (2, 5), (1, 3), ((0, 1), (4, 0)), (5, 11)),
        (4, (3, 7), (3, 2), (2, 6), (7, 5)),  # a row of taps is longer than a vector, and than the image
        (1, (5, 3), (1, 1), ((4, 7), (2, 9)), (2, 3)),  # windows that lie in padding alone
        (5, (1, 3), (1, 4), (0, 1), (3, 14)),  # inputs that nothing reads
    ],
)
def test_windows_of_a_standard_convolution(channels, kernel, stride, padding, size):
    rng = np.random.default_rng(0)
    standard = StandardConv2d(channels, 6, kernel, stride=stride, padding=padding, layout="channels_last")
    for values in standard.params.values():
        values[...] = rng.integers(-4, 5, values.shape)
    same = PointwiseConv(6, 6, bias=False, layout="channels_last")
    same.params["weight"][..., 0, 0] = np.eye(6)
    model = Sequential(standard, same)
    x = rng.integers(-4, 5, (2, *size, channels)).astype(np.float32)
    wanted = by_reference(model, x)
    assert np.array_equal(model.freeze()(x), wanted)
    assert was_whole(model)


def test_float64():
    model, x = network("channels_last", np.float64).freeze(), photographs("channels_last", dtype=np.float64)
    np.testing.assert_allclose(model(x), by_reference(model, x), rtol=0, atol=1e-14)
    assert was_whole(model)


@pytest.mark.parametrize("cached", [1, 3000, 20_000])
@pytest.mark.parametrize("ending", [True, False])
def test_strips_of_a_chain_of_steps_give_the_same_bits(monkeypatch, ending, cached):
    model, x = network("channels_last", ending=ending).freeze(), photographs("channels_last", 2)
    whole = model(x)
    monkeypatch.setattr(chains, "CACHED", cached)
    chained = network("channels_last", ending=ending).freeze()
    assert np.array_equal(chained(x), whole)
    assert np.array_equal(chained(x[:, ::-1, ::-1]), model(np.ascontiguousarray(x[:, ::-1, ::-1])))
    runs = [
        len(each._network._network._idle[x.shape, npdwconv.get_num_threads()][0]._blocks) for each in (model, chained)
    ]
    assert runs[1] > runs[0]


def geometric(padding, stride=(1, 1), kernel=(3, 3), dilation=(1, 1)):
    return Step("depthwise", "channels_last", window=Window(kernel, stride, padding, dilation))


@pytest.mark.parametrize("padding", ["same", "same_lower", ((2, 1), (0, 3)), "valid"])
@pytest.mark.parametrize("stride", [1, 2, 3])
def test_rows_of_a_chain(monkeypatch, padding, stride):
    """Every row of the last result is written once; a strip's geometry is the part of the whole that it should be."""
    steps = [geometric("valid"), geometric(padding, (stride, 1), dilation=(2, 1)), Step("pointwise", "channels_last")]
    rows = [40, 38, steps[1].window.geometry((38, 9)).axes[0].out]
    shapes = [(1, 40, 11, 4), (1, 38, 9, 4), (1, rows[2], 9, 4), (1, rows[2], 9, 4)]
    monkeypatch.setattr(chains, "CACHED", 1500)
    plan = [*chains.strips(steps, shapes, 4, 1)]
    assert len(plan) > 3
    assert [row for parts in plan for row in range(*parts[-1].written)] == [*range(rows[2])]
    for parts in plan:
        for before, part in pairwise(parts):
            assert before.written == part.read
        for part, size in zip(parts[:2], rows, strict=False):
            whole = steps[parts.index(part)].window.geometry((size, 9)).axes[0]
            axis = part.step.window.geometry((part.read[1] - part.read[0], 9)).axes[0]
            assert axis.out == part.written[1] - part.written[0]
            for tap in range(3):
                outputs, inputs = axis.reach(tap)
                found = {(o + part.written[0], i + part.read[0]) for o, i in pairs(outputs, inputs)}
                assert found == {(o, i) for o, i in pairs(*whole.reach(tap)) if part.written[0] <= o < part.written[1]}


def pairs(outputs, inputs):
    return zip(range(outputs.start, outputs.stop), range(inputs.start, inputs.stop, inputs.step or 1), strict=True)


def test_what_is_no_chain():
    """A result that something else reads, too, or that fits in the caches, or that windows may miss."""
    wide, point = (1, 64, 64, 64), Step("pointwise", "channels_last")
    shapes = [wide] * 4
    assert [*chains.chains([point, geometric("same"), point], shapes, 4, 1)] == [(0, 3)]
    assert [*chains.chains([point, geometric("same"), point._replace(adds=0)], shapes, 4, 1)] == [(0, 1), (1, 3)]
    assert [*chains.chains([point, geometric("same"), point], [(1, 8, 64, 64)] * 4, 4, 1)] == [(0, 1), (1, 2), (2, 3)]
    beyond = geometric(((3, 0), (0, 0)))
    assert [*chains.chains([point, beyond, point], shapes, 4, 1)] == [(0, 1), (1, 2), (2, 3)]
    mean = Step("mean", "channels_last")
    assert [*chains.chains([point, point, mean], [*shapes[:3], (1, 64)], 4, 1)] == [(0, 2), (2, 3)]


def test_an_image_alone_and_in_a_batch_has_the_same_bits():
    model, x = network("channels_last").freeze(), photographs("channels_last", 3)
    assert np.array_equal(model(x)[1:2], model(x[1:2]))


def test_bits_do_not_depend_on_threads():
    model, x = network("channels_last").freeze(), photographs("channels_last", 2, (64, 64))
    before = npdwconv.get_num_threads()
    try:
        results = []
        for count in (1, 2, 7):
            npdwconv.set_num_threads(count)
            results.append(model(x))
    finally:
        npdwconv.set_num_threads(before)
    assert np.array_equal(results[0], results[1])
    assert np.array_equal(results[0], results[2])


def test_threads_at_once():
    model = network("channels_last").freeze()
    inputs = [photographs("channels_last", seed=seed) for seed in range(6)]
    wanted = [model(x) for x in inputs]
    found = [[] for _ in inputs]

    def call(place):
        for _ in range(20):
            found[place].append(model(inputs[place]))

    threads = [threading.Thread(target=call, args=(place,)) for place in range(len(inputs))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for want, each in zip(wanted, found, strict=True):
        assert len(each) == 20
        assert all(np.array_equal(want, result) for result in each)


def test_results_are_not_shared_between_calls():
    model = network("channels_last", ending=False).freeze()
    first = model(photographs("channels_last"))
    kept = first.copy()
    model(photographs("channels_last", seed=1))
    assert np.array_equal(first, kept)


def test_weights_of_the_time_of_freezing_count():
    model, x = network("channels_last").freeze(), photographs("channels_last")
    before = model(x)
    model.unfreeze()
    model.params["0.bias"][...] += 1
    after = model.freeze()(x)
    assert not np.array_equal(before, after)
    np.testing.assert_allclose(after, by_reference(model, x), rtol=0, atol=2e-6)


@pytest.mark.parametrize("last", [Activation("relu"), DepthwiseConv2d(24, 3, padding=1, padding_mode="reflect")])
def test_what_is_no_step_is_run_layer_by_layer(last):
    model = Sequential(network("channels_first", ending=False), last).freeze()
    x = photographs("channels_first")
    np.testing.assert_allclose(model(x), by_reference(model, x), rtol=0, atol=2e-6)
    assert not was_whole(model)


def test_a_weight_that_is_not_finite_meets_no_padding():
    model = network("channels_last", ending=False)
    model.params["0.weight"][0, 0, 0, 0] = np.inf
    model.freeze()
    x = photographs("channels_last")
    model(x)
    assert not was_whole(model)


def test_wrong_channels_are_refused():
    model = network("channels_last").freeze()
    with pytest.raises(npdwconv.ShapeError, match="needed 3"):
        model(np.zeros((1, 8, 8, 4), np.float32))

"""Layers without a framework: exact on small integers and dyadic numbers, so nearly every comparison is for equality."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from npdwconv.depthwise import depthwise_conv2d, depthwise_conv2d_backward
from npdwconv.errors import CheckpointError, DTypeError, OptionError, ShapeError
from npdwconv.layers import (
    Activation,
    BatchNorm,
    DepthwiseConv1d,
    DepthwiseConv2d,
    DepthwiseConv3d,
    DWConv,
    GlobalAveragePool,
    Layer,
    Module,
    PointwiseConv,
    Residual,
    SeparableConv1d,
    SeparableConv2d,
    SeparableConv3d,
    Sequential,
    StandardConv2d,
)
from npdwconv.pointwise import pointwise_conv
from npdwconv.separable import separable_conv2d

F64 = "float64"
Made = tuple[Layer, tuple[int, ...]]

# each with the shape of an input
LAYERS: dict[str, Callable[[], Made]] = {
    "depthwise1d": lambda: (DepthwiseConv1d(3, 3, padding="causal", dtype=F64), (2, 3, 7)),
    "depthwise2d": lambda: (DepthwiseConv2d(3, (3, 2), stride=(2, 1), padding=((1, 0), 1), dtype=F64), (2, 3, 7, 5)),
    "depthwise2d_multiplier": lambda: (DepthwiseConv2d(3, 3, depth_multiplier=2, bias=False, dtype=F64), (2, 3, 5, 5)),
    "depthwise2d_circular": lambda: (DepthwiseConv2d(2, 3, padding=1, padding_mode="circular", dtype=F64), (1, 2, 4, 4)),
    "depthwise2d_last": lambda: (DepthwiseConv2d(3, 3, dilation=2, layout="channels_last", dtype=F64), (2, 6, 6, 3)),
    "depthwise3d": lambda: (DepthwiseConv3d(2, (1, 3, 3), dtype=F64), (1, 2, 2, 4, 5)),
    "pointwise": lambda: (PointwiseConv(3, 4, dtype=F64), (2, 3, 4, 5)),
    "pointwise_last": lambda: (PointwiseConv(3, 4, layout="channels_last", dtype=F64), (2, 4, 5, 3)),
    "linear": lambda: (PointwiseConv(3, 4, spatial_rank=0, dtype=F64), (2, 3)),
    "separable1d": lambda: (SeparableConv1d(3, 4, 3, dtype=F64), (2, 3, 6)),
    "separable2d": lambda: (SeparableConv2d(3, 4, 3, stride=2, padding="same", depthwise_bias=True, dtype=F64), (2, 3, 5, 6)),
    "separable3d": lambda: (SeparableConv3d(2, 3, (1, 2, 2), bias=False, dtype=F64), (1, 2, 2, 3, 3)),
    "standard2d": lambda: (StandardConv2d(3, 4, (3, 2), stride=2, padding="same", dtype=F64), (2, 3, 6, 5)),
    "standard2d_last": lambda: (StandardConv2d(2, 3, 3, dilation=2, layout="channels_last", dtype=F64), (2, 6, 6, 2)),
    "pool": lambda: (GlobalAveragePool(), (2, 3, 4, 4)),
    "pool_last": lambda: (GlobalAveragePool(layout="channels_last"), (2, 4, 2, 3)),
    "residual": lambda: (Residual(Sequential(DepthwiseConv2d(3, 3, padding=1, dtype=F64))), (2, 3, 4, 4)),
    "sequential": lambda: (Sequential(PointwiseConv(3, 4, dtype=F64), DepthwiseConv2d(4, 3, dtype=F64)), (1, 3, 5, 5)),
}


@pytest.fixture(params=LAYERS)
def made(request: pytest.FixtureRequest) -> Made:
    layer, shape = LAYERS[request.param]()
    set_integers(layer)
    return layer, shape


def integers(seed: int, shape: tuple[int, ...], dtype: Any = np.float64) -> Any:
    return np.random.default_rng(seed).integers(-4, 5, shape).astype(dtype)


def set_integers(layer: Module, seed: int = 0) -> None:
    for index, array in enumerate(layer.params.values()):
        array[...] = integers(seed + index, array.shape)


def block(layout: str = "channels_first", dtype: Any = np.float64) -> Sequential:
    """A MobileNet block whose batch norms have dyadic scales, so that folding is exact."""
    options: dict[str, Any] = {"layout": layout, "dtype": dtype}
    net = Sequential(
        DepthwiseConv2d(4, 3, padding=1, bias=False, **options),
        BatchNorm(4, eps=0.0, **options),
        Activation("relu6"),
        PointwiseConv(4, 6, **options),
        BatchNorm(6, eps=0.0, **options),
    )
    set_integers(net)
    for norm in (net[1], net[4]):
        norm.buffers["running_mean"][...] = integers(8, norm.buffers["running_mean"].shape)
        norm.buffers["running_var"][...] = 4.0 ** integers(9, norm.buffers["running_var"].shape)
    return net


# values and gradients


def test_the_linear_part_is_adjoint_to_backward(made: Made) -> None:
    layer, shape = made
    x = integers(1, shape)
    y = layer(x)
    grad = integers(2, y.shape)
    grad_x = layer.backward(grad)
    constant = layer(np.zeros(shape))
    assert grad_x.shape == shape
    np.testing.assert_allclose(np.vdot(y - constant, grad), np.vdot(x, grad_x), rtol=0, atol=1e-11 if "Pool" in repr(layer) else 0)


def test_every_gradient_is_the_difference_that_its_parameter_makes(made: Made) -> None:
    layer, shape = made
    x = integers(1, shape)
    before = layer(x)
    grad = integers(2, before.shape)
    layer.backward(grad)
    grads = {name: array.copy() for name, array in layer.grads.items()}
    assert grads.keys() == layer.params.keys()
    for seed, (name, param) in enumerate(layer.params.items()):
        assert grads[name].shape == param.shape
        step = integers(30 + seed, param.shape)
        param += step
        assert np.vdot(layer(x) - before, grad) == np.vdot(step, grads[name]), name
        param -= step


def test_options_reach_the_operators() -> None:
    x = integers(0, (2, 7, 6, 3), np.float32)
    given: dict[str, Any] = {"stride": (2, 1), "padding": "same_lower", "dilation": (1, 2), "layout": "channels_last"}
    depthwise = DepthwiseConv2d(3, 3, depth_multiplier=2, activation="hardswish", **given)
    weight, bias = depthwise.params.values()
    np.testing.assert_array_equal(depthwise(x), depthwise_conv2d(x, weight, bias, activation="hardswish", **given))
    separable = SeparableConv2d(3, 4, 3, depthwise_activation="relu6", activation="relu", **given)
    weight, mix, bias = separable.params.values()
    wanted = separable_conv2d(x, weight, mix, bias, depthwise_activation="relu6", activation="relu", **given)
    np.testing.assert_array_equal(separable(x), wanted)
    mixing = PointwiseConv(3, 4, layout="channels_last", activation="relu6")
    wanted = pointwise_conv(x, *mixing.params.values(), layout="channels_last", activation="relu6")
    np.testing.assert_array_equal(mixing(x), wanted)


def test_standard_convolution_is_the_sum_over_its_window() -> None:
    layer = StandardConv2d(2, 3, (2, 3), stride=(1, 2), padding=((1, 0), (0, 2)), dilation=(2, 1), dtype=F64)
    set_integers(layer)
    weight, bias = layer.params.values()
    x = integers(5, (2, 2, 5, 4))
    padded = np.pad(x, ((0, 0), (0, 0), (1, 0), (0, 2)))
    y = layer(x)
    assert y.shape == (2, 3, 4, 2)
    for n, k, p, q in np.ndindex(*y.shape):
        window = padded[n, :, p : p + 3 : 2, 2 * q : 2 * q + 3]
        assert y[n, k, p, q] == (window * weight[k]).sum() + bias[k]


def test_tokens_are_an_image_channels_last() -> None:
    layer = DWConv(5, activation="relu", dtype=F64)
    set_integers(layer)
    x, grad = integers(0, (2, 12, 5)), integers(1, (2, 12, 5))
    options: dict[str, Any] = {"padding": 1, "layout": "channels_last", "activation": "relu"}
    weight, bias = layer.params["dwconv.weight"], layer.params["dwconv.bias"]
    image = depthwise_conv2d(x.reshape(2, 3, 4, 5), weight, bias, **options)
    np.testing.assert_array_equal(layer(x, 3, 4), image.reshape(2, 12, 5))
    grads = depthwise_conv2d_backward(grad.reshape(2, 3, 4, 5), x.reshape(2, 3, 4, 5), weight, bias, **options)
    assert grads.x is not None
    np.testing.assert_array_equal(layer.backward(grad), grads.x.reshape(2, 12, 5))
    np.testing.assert_array_equal(layer.grads["dwconv.weight"], grads.weight)
    np.testing.assert_array_equal(layer.grads["dwconv.bias"], grads.bias)
    assert (DWConv().dim, DWConv().params["dwconv.weight"].shape) == (768, (768, 1, 3, 3))
    with pytest.raises(ShapeError, match=r"x has 10 channels \(x \(2, 6, 10\)\), needed 5"):
        layer(np.zeros((2, 6, 10)), 2, 3)


@pytest.mark.parametrize("training", [False, True], ids=["running", "batch"])
@pytest.mark.parametrize("layout", ["channels_first", "channels_last"])
def test_batch_norm_gradients_are_its_slopes(layout: str, training: bool) -> None:
    rng = np.random.default_rng(0)
    norm = BatchNorm(3, layout=layout, dtype=F64).train(training)
    for array in norm.params.values():
        array[...] = rng.normal(size=3)
    norm.buffers["running_mean"][...] = rng.normal(size=3)
    norm.buffers["running_var"][...] = rng.uniform(0.5, 2, 3)
    x = rng.normal(size=(4, 3, 5) if layout == "channels_first" else (4, 5, 3))
    grad = rng.normal(size=x.shape)
    norm(x)
    found = {"x": norm.backward(grad)} | norm.grads
    for name, point in {"x": x, **norm.params}.items():
        direction = rng.normal(size=point.shape)
        slope = directional(lambda: float(np.vdot(norm(x), grad)), point, direction, 1e-5)
        # a central difference is off by O(h²) ≈ 1e-10 and by rounding of the values, 1e-16/h ≈ 1e-11
        assert abs(slope - np.vdot(found[name], direction)) < 1e-7, name


def directional(value: Callable[[], float], point: Any, direction: Any, h: float) -> float:
    held = point.copy()
    point[...] = held + h * direction
    above = value()
    point[...] = held - h * direction
    below = value()
    point[...] = held
    return (above - below) / (2 * h)


def test_batch_statistics_exclude_only_the_channels_and_are_recorded_unbiased() -> None:
    norm = BatchNorm(2, eps=0.0, momentum=0.25, dtype=F64).train()
    x = np.array([[[0.0, 4.0], [1.0, 3.0]], [[2.0, 6.0], [1.0, 3.0]]])
    y = norm(x)
    np.testing.assert_allclose(y.mean(axis=(0, 2)), 0, atol=1e-15)
    np.testing.assert_allclose(y.var(axis=(0, 2)), 1, rtol=1e-15)
    np.testing.assert_array_equal(norm.buffers["running_mean"], [0.75, 0.5])
    np.testing.assert_allclose(norm.buffers["running_var"], [0.75 + 0.25 * 20 / 3, 0.75 + 0.25 * 4 / 3], rtol=1e-15)
    assert norm.buffers["num_batches_tracked"] == 1


def test_momentum_none_weights_all_batches_the_same() -> None:
    norm = BatchNorm(1, momentum=None, dtype=F64).train()
    for value in (1.0, 2.0, 6.0):
        norm(np.array([[value - 1], [value + 1]]))
    np.testing.assert_allclose(norm.buffers["running_mean"], 3.0, rtol=1e-15)


def test_batch_norm_in_evaluation_leaves_its_statistics_alone() -> None:
    norm = BatchNorm(3)
    before = norm.state_dict()
    norm(integers(0, (2, 3, 4), np.float32))
    for name, array in norm.state_dict().items():
        np.testing.assert_array_equal(array, before[name])


@pytest.mark.parametrize("name", ["relu", "relu6", "hardswish", "silu", "gelu", "gelu_tanh", "sigmoid", "hardsigmoid"])
def test_activation_layer_is_what_an_operator_applies(name: str) -> None:
    layer, one = Activation(name), np.ones((3, 1, 1, 1))
    x, grad = np.random.default_rng(0).normal(size=(2, 3, 4, 5)), integers(1, (2, 3, 4, 5))
    np.testing.assert_array_equal(layer(x), depthwise_conv2d(x, one, activation=name))
    wanted = depthwise_conv2d_backward(grad, x, one, activation=name, needs="x").x
    np.testing.assert_array_equal(layer.backward(grad), wanted)


def test_activation_of_huge_numbers_does_not_warn() -> None:
    x = np.array([[-1e5, -0.0, 1e5]], np.float32)
    for name in ("sigmoid", "silu", "gelu", "gelu_tanh"):
        layer = Activation(name)
        assert np.isfinite(layer(x)).all()
        assert np.isfinite(layer.backward(np.ones_like(x))).all()


@pytest.mark.parametrize("layer", [Activation("silu"), BatchNorm(2, dtype="float16"), GlobalAveragePool()], ids=repr)
def test_half_precision_is_rounded_once(layer: Layer) -> None:
    if isinstance(layer, BatchNorm):
        layer.params["weight"][...] = [1.7, -0.3]
        layer.buffers["running_mean"][...] = [0.2, 5.0]
    wide = copy.deepcopy(layer)
    if isinstance(wide, BatchNorm):
        wide = BatchNorm(2)
        wide.load_state_dict(layer.state_dict())
    x = np.random.default_rng(0).normal(size=(3, 2, 50)).astype(np.float16)
    y = layer(x)
    assert y.dtype == np.float16
    np.testing.assert_array_equal(y, wide(x.astype(np.float32)).astype(np.float16))
    grad = np.full_like(y, 0.3)
    np.testing.assert_array_equal(layer.backward(grad), np.float16(wide.backward(grad.astype(np.float32))))


def test_bfloat16_throughout() -> None:
    dtype = pytest.importorskip("ml_dtypes").bfloat16
    net = block(dtype=dtype)
    x = integers(0, (2, 4, 5, 5), dtype)
    y = net(x)
    assert y.dtype == net.backward(y).dtype == net.grads["1.weight"].dtype == dtype
    net.load_state_dict(block(dtype=np.float32).state_dict())
    np.testing.assert_array_equal(net(x), y)


# initial values


def test_initial_values_are_reproducible_and_within_pytorchs_bound() -> None:
    one, same, other = (DepthwiseConv2d(64, 5, rng=rng).params for rng in (0, np.random.default_rng(0), 1))
    np.testing.assert_array_equal(one["weight"], same["weight"])
    assert (one["weight"] != other["weight"]).any()
    for array in one.values():
        assert 0.19 < abs(array).max() <= 0.2
    assert abs(PointwiseConv(100, 50).params["weight"]).max() <= 0.1
    assert abs(StandardConv2d(4, 50, 5).params["weight"]).max() <= 0.1


# parameters


def test_changes_in_place_are_seen_by_the_next_call() -> None:
    net = Residual(Sequential({"a": PointwiseConv(3, 3, dtype=F64), "b": BatchNorm(3, eps=0.0, dtype=F64)}))
    set_integers(net)
    x = integers(0, (2, 3, 4))
    before = net(x)
    params = net.params
    params["b.bias"] += 2.0
    np.testing.assert_array_equal(net(x), before + 2)
    net.params["b.bias"] = params["b.bias"] - 1.0
    np.testing.assert_array_equal(net(x), before + 1)
    with pytest.raises(ShapeError, match=r"b.bias: found shape \(1,\), needed \(3,\)"):
        params["b.bias"] = [1.0]
    with pytest.raises(KeyError):
        params["b.bais"] = [1.0, 1.0, 1.0]


def test_params_are_the_arrays_of_the_leaves() -> None:
    net = block()
    assert list(net.params) == ["0.weight", "1.weight", "1.bias", "3.weight", "3.bias", "4.weight", "4.bias"]
    assert net.params["3.bias"] is net[3].params["bias"]
    assert net.buffers["4.running_var"] is net["4"].buffers["running_var"]
    assert (len(net), [*net][1]) == (5, net[1])


def test_gradients_are_replaced_not_added_to(made: Made) -> None:
    layer, shape = made
    grad = integers(2, layer(integers(1, shape)).shape)
    layer.backward(grad)
    once = {name: array.copy() for name, array in layer.grads.items()}
    layer.backward(grad)
    for name, array in layer.grads.items():
        np.testing.assert_array_equal(array, once[name])


def test_copies_and_pickles_are_independent(made: Made) -> None:
    layer, shape = made
    x = integers(1, shape)
    before = layer(x)
    for twin in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
        for array in twin.params.values():
            array += 1
        np.testing.assert_array_equal(layer(x), before)
        assert list(twin.params) == list(layer.params)


# state


def test_state_round_trip(made: Made) -> None:
    layer, shape = made
    state = layer.state_dict()
    twin = copy.deepcopy(layer)
    set_integers(twin, 50)
    x = integers(1, shape)
    assert twin.load_state_dict(state) == ([], [])
    np.testing.assert_array_equal(twin(x), layer(x))
    for array in state.values():
        array += 1
    np.testing.assert_array_equal(twin(x), layer(x))


def test_state_names_and_shapes() -> None:
    net = Sequential(
        {
            "stem": StandardConv2d(3, 8, 3, bias=False),
            "mix": Residual(SeparableConv2d(8, 8, 3, padding=1, depthwise_bias=True)),
            "norm": BatchNorm(8),
            "fc": PointwiseConv(8, 2, spatial_rank=0),
        }
    )
    assert {name: array.shape for name, array in net.state_dict().items()} == {
        "stem.weight": (8, 3, 3, 3),
        "mix.depthwise.weight": (8, 1, 3, 3),
        "mix.depthwise.bias": (8,),
        "mix.pointwise.weight": (8, 8, 1, 1),
        "mix.pointwise.bias": (8,),
        "norm.weight": (8,),
        "norm.bias": (8,),
        "norm.running_mean": (8,),
        "norm.running_var": (8,),
        "norm.num_batches_tracked": (),
        "fc.weight": (2, 8),
        "fc.bias": (2,),
    }


@pytest.mark.parametrize("spatial_rank", [0, 1, 2, 3])
@pytest.mark.parametrize("stored", [(4, 3), (4, 3, 1), (4, 3, 1, 1)], ids=str)
def test_pointwise_weights_load_with_any_number_of_ones(spatial_rank: int, stored: tuple[int, ...]) -> None:
    layer = PointwiseConv(3, 4, bias=False, spatial_rank=spatial_rank)
    layer.load_state_dict({"weight": integers(0, stored)})
    np.testing.assert_array_equal(layer.params["weight"].ravel(), integers(0, stored).ravel())
    assert layer.state_dict()["weight"].shape == (4, 3, *(1,) * spatial_rank)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"3.bias": None}, "missing: 3.bias"),
        ({"2.weight": np.zeros(3)}, "unexpected: 2.weight"),
        ({"0.weight": np.zeros((4, 1, 5, 5))}, r"0.weight has shape \(4, 1, 5, 5\), needed \(4, 1, 3, 3\)"),
        ({"3.weight": np.zeros((6, 4, 1, 2))}, r"3.weight has shape \(6, 4, 1, 2\), needed \(6, 4, 1, 1\)"),
        ({"0.weight": np.zeros((4, 1, 3, 3), complex)}, "0.weight has dtype complex128, needed one that converts to float64"),
        ({"1.running_var": None, "x": 0}, "missing: 1.running_var; unexpected: x"),
    ],
    ids=["missing", "unexpected", "kernel", "not_pointwise", "dtype", "several"],
)
def test_state_that_does_not_fit_is_refused_whole(change: dict[str, Any], message: str) -> None:
    net = block()
    before = net.state_dict()
    state = {name: array + 1 for name, array in before.items()} | change
    state = {name: array for name, array in state.items() if array is not None}
    with pytest.raises(CheckpointError, match=f"Sequential.load_state_dict: {message}"):
        net.load_state_dict(state)
    for name, array in net.state_dict().items():
        np.testing.assert_array_equal(array, before[name])


def test_not_strict_passes_over_names_but_not_shapes() -> None:
    net = block()
    bias = integers(3, (6,))
    keys = net.load_state_dict({"3.bias": bias, "more": bias}, strict=False)
    assert (keys.unexpected, keys.missing[0], len(keys.missing)) == (["more"], "0.weight", 10)
    np.testing.assert_array_equal(net.params["3.bias"], bias)
    with pytest.raises(CheckpointError, match=r"3.bias has shape \(7,\), needed \(6,\)"):
        net.load_state_dict({"3.bias": np.zeros(7)}, strict=False)


def test_batch_count_may_be_missing() -> None:
    norm = BatchNorm(3)
    state = {name: array for name, array in norm.state_dict().items() if name != "num_batches_tracked"}
    assert norm.load_state_dict(state) == ([], [])


def test_state_is_converted_to_the_layers_dtype() -> None:
    layer = PointwiseConv(3, 4, dtype=np.float32)
    layer.load_state_dict(PointwiseConv(3, 4, dtype=F64, rng=7).state_dict())
    assert layer.params["weight"].dtype == np.float32
    np.testing.assert_array_equal(layer.params["weight"], PointwiseConv(3, 4, rng=7).params["weight"])


# freezing


def test_frozen_layers_give_the_same_bits_and_cannot_change(made: Made) -> None:
    layer, shape = made
    x = integers(1, shape)
    before = layer(x)
    assert layer.freeze() is layer
    assert layer.frozen
    np.testing.assert_array_equal(layer(x), before)
    for array in layer.params.values():
        with pytest.raises(ValueError, match="read-only"):
            array += 1
    with pytest.raises(RuntimeError, match=r"backward: frozen layers keep nothing.*unfreeze\(\)"):
        layer.backward(before)
    with pytest.raises(RuntimeError, match=r"load_state_dict: frozen.*unfreeze\(\)"):
        layer.load_state_dict(layer.state_dict())
    with pytest.raises(RuntimeError, match=r"train: frozen"):
        layer.train()


def test_unfreezing_undoes_it(made: Made) -> None:
    layer, shape = made
    x = integers(1, shape)
    layer.freeze()
    layer(x)
    layer.unfreeze()
    assert not layer.frozen
    for array in layer.params.values():
        array += 1
    twin = copy.deepcopy(layer)
    np.testing.assert_array_equal(layer(x), twin(x))
    assert layer.backward(layer(x)).shape == shape


def test_freezing_ends_training_and_covers_buffers() -> None:
    net = block().train()
    net.freeze()
    assert not net.training
    with pytest.raises(ValueError, match="read-only"):
        net.buffers["1.running_mean"] += 1
    np.testing.assert_array_equal(net(np.ones((1, 4, 3, 3))), block()(np.ones((1, 4, 3, 3))))


# folding


@pytest.mark.parametrize("layout", ["channels_first", "channels_last"])
def test_folding_changes_the_work_and_not_the_result(layout: str) -> None:
    net, plain = block(layout), block(layout)
    x = integers(1, (2, 4, 5, 5) if layout == "channels_first" else (2, 5, 5, 4))
    assert net.fold() is net
    assert list(net.params) == ["0.weight", "0.bias", "3.weight", "3.bias"]
    np.testing.assert_array_equal(net(x), plain(x))
    grad = integers(2, net(x).shape)
    np.testing.assert_array_equal(net.backward(grad), plain.backward(grad))


@pytest.mark.parametrize(
    "conv",
    [
        StandardConv2d(4, 6, 3, bias=False, dtype=F64),
        SeparableConv2d(4, 6, 3, depthwise_bias=True, depthwise_activation="relu", dtype=F64),
        DepthwiseConv2d(4, 3, depth_multiplier=2, dtype=F64),
    ],
    ids=repr,
)
def test_every_kind_of_convolution_takes_over_what_follows(conv: Any) -> None:
    norm = BatchNorm(conv.out_channels, eps=0.0, dtype=F64)
    net = Sequential({"outer": Sequential(conv, norm, Activation("hardswish"))})
    set_integers(net)
    norm.buffers["running_var"][...] = 0.25
    x = integers(1, (2, 4, 5, 5))
    before = net(x)
    net.fold()
    assert [name for name, _ in net.walk()] == ["outer.0"]
    np.testing.assert_array_equal(net(x), before)


@pytest.mark.parametrize(
    "layers",
    [
        (BatchNorm(4), PointwiseConv(4, 4)),
        (PointwiseConv(4, 4, activation="relu"), BatchNorm(4)),
        (PointwiseConv(4, 4, layout="channels_last"), BatchNorm(4)),
        (PointwiseConv(4, 4, activation="relu"), Activation("relu")),
    ],
    ids=["norm_first", "activation_between", "other_layout", "two_activations"],
)
def test_what_cannot_be_folded_stays(layers: tuple[Layer, ...]) -> None:
    net = Sequential(*layers)
    x = integers(1, (4, 4, 4), np.float32)
    before = net(x)
    assert len(net.fold()) == 2
    np.testing.assert_array_equal(net(x), before)


def test_folding_needs_fixed_statistics_and_arrays_that_may_change() -> None:
    with pytest.raises(RuntimeError, match=r"fold: in training mode.*eval\(\)"):
        block().train().fold()
    with pytest.raises(RuntimeError, match=r"fold: frozen.*unfreeze\(\)"):
        block().freeze().fold()


# containers


def test_watching_names_every_leaf_with_what_it_saw() -> None:
    net = Sequential({"a": PointwiseConv(3, 3), "b": Residual(Sequential(Activation("relu"), PointwiseConv(3, 3)))})
    seen: list[tuple[Any, ...]] = []
    x = integers(0, (2, 3, 4), np.float32)
    y = net.forward(x, on_layer=lambda *step: seen.append(step))
    assert [name for name, *_ in seen] == ["a", "b.0", "b.1"]
    assert seen[0][1] is net["a"]
    assert seen[0][2] is x
    np.testing.assert_array_equal(seen[0][3] + seen[2][3], y)
    assert all(seconds >= 0 for *_, seconds in seen)
    seen.clear()
    grad_x = net.backward(y, on_layer=lambda *step: seen.append(step))
    assert [name for name, *_ in seen] == ["b.1", "b.0", "a"]
    assert seen[2][3] is grad_x


def test_a_layer_cannot_stand_in_two_places() -> None:
    twice = PointwiseConv(3, 3)
    with pytest.raises(OptionError, match="stands in two places"):
        Sequential(twice, Residual(twice))
    with pytest.raises(OptionError, match="'1' is a function; needed a layer"):
        Sequential(twice, integers)  # type: ignore[arg-type]


def test_residual_needs_equal_shapes() -> None:
    with pytest.raises(ShapeError, match=r"x has shape \(1, 3, 2\), inner\(x\) \(1, 4, 2\)"):
        Residual(PointwiseConv(3, 4))(np.ones((1, 3, 2), np.float32))


def test_nothing_in_sequence_is_the_identity() -> None:
    x = integers(0, (2, 3))
    np.testing.assert_array_equal(Sequential()(x), x)
    assert Sequential({}).params == {}


# wrong calls


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: DepthwiseConv2d(4, 3, paddding=1), TypeError, "paddding"),  # type: ignore[call-arg]
        (lambda: BatchNorm(4, 1e-3), TypeError, "positional"),  # type: ignore[misc]
        (lambda: DepthwiseConv2d(4, 3, padding="smae"), OptionError, "did you mean 'same'"),
        (lambda: DepthwiseConv2d(4, 3, stride=2.0), OptionError, "stride is 2.0"),  # type: ignore[arg-type]
        (lambda: DepthwiseConv2d(4, (3, 3, 3)), OptionError, "kernel_size"),
        (lambda: DepthwiseConv2d(4, 3, depth_multiplier=0), OptionError, "depth_multiplier is 0"),
        (lambda: DepthwiseConv2d(4, 3, bias=None), OptionError, "bias is None; needed True or False"),  # type: ignore[arg-type]
        (lambda: SeparableConv2d(4, 4, 3, depthwise_activation="swish"), OptionError, "depthwise_activation is 'swish'"),
        (lambda: PointwiseConv(4, 4, layout="NHWC"), OptionError, "layout is 'NHWC'"),
        (lambda: PointwiseConv(4, 4, dtype=np.int32), DTypeError, "dtype is int32; needed one of float16"),
        (lambda: Activation("relu7"), OptionError, "name is 'relu7'"),
        (lambda: BatchNorm(4, momentum=2), OptionError, "momentum is 2; needed a number from 0 to 1"),
    ],
)
def test_wrong_constructor_arguments(make: Callable[[], object], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        make()


@pytest.mark.parametrize(
    ("layer", "x", "error", "message"),
    [
        (DepthwiseConv2d(4, 3), np.zeros((1, 2, 5, 5), np.float32), ShapeError, "x has 2 channels .* needed 4"),
        (DepthwiseConv2d(4, 3), np.zeros((1, 4, 5, 5)), DTypeError, "float64"),
        (DepthwiseConv2d(4, 3), np.zeros((4, 5, 5), np.float32), ShapeError, "x has 5 channels"),
        (BatchNorm(4), np.zeros((1, 5, 4), np.float32), ShapeError, "x has 5 channels .* needed 4; check that layout="),
        (BatchNorm(4), np.zeros((1, 4)), DTypeError, "float64"),
        (BatchNorm(4), np.zeros(4, np.float32), ShapeError, "1 axes"),
        (BatchNorm(4).train(), np.zeros((1, 4), np.float32), ShapeError, "1 values a channel; .* at least 2"),
        (GlobalAveragePool(), np.zeros((1, 4, 0, 2), np.float32), ShapeError, "a mean of nothing"),
        (Activation("relu"), [[1.0]], DTypeError, "x is a list"),
    ],
)
def test_wrong_inputs(layer: Layer, x: Any, error: type[Exception], message: str) -> None:
    before = layer.state_dict()
    with pytest.raises(error, match=message):
        layer(x)
    for name, array in layer.state_dict().items():
        np.testing.assert_array_equal(array, before[name])


def test_backward_needs_a_forward_and_a_gradient_of_its_shape(made: Made) -> None:
    layer, shape = made
    with pytest.raises(RuntimeError, match=r"there was no forward call.*call forward\(x\) first"):
        layer.backward(np.zeros(shape))
    y = layer(integers(1, shape))
    with pytest.raises(ShapeError, match="grad_out has shape"):
        layer.backward(np.zeros((*y.shape[:-1], y.shape[-1] + 1)))
    with pytest.raises(DTypeError, match="grad_out has dtype float32"):
        layer.backward(np.zeros(y.shape, np.float32))


@pytest.mark.parametrize("layer", [Activation("relu"), BatchNorm(3, dtype=F64), BatchNorm(3, dtype=F64).train()], ids=str)
def test_backward_of_elementwise_layers_checks_its_gradient(layer: Layer) -> None:
    layer(integers(1, (2, 3, 4)))
    with pytest.raises(ShapeError, match=r"grad_out has shape \(2, 3, 1\); needed \(2, 3, 4\)"):
        layer.backward(np.zeros((2, 3, 1)))


def test_empty_batches_pass_through() -> None:
    net = block(dtype=np.float32)
    y = net(np.zeros((0, 4, 5, 5), np.float32))
    assert y.shape == (0, 6, 5, 5)
    assert net.backward(y).shape == (0, 4, 5, 5)
    assert not net.grads["1.weight"].any()
    assert GlobalAveragePool()(y).shape == (0, 6)

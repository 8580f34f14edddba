"""Layers without a framework: values, gradients and wrong calls. Exact on small integers wherever that can be."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from layer_cases import F64, block, every_layer, integers, make, set_integers

from npdwconv.depthwise import depthwise_conv2d, depthwise_conv2d_backward
from npdwconv.errors import DTypeError, OptionError, ShapeError
from npdwconv.layers import (
    Activation,
    BatchNorm,
    DepthwiseConv2d,
    DWConv,
    GlobalAveragePool,
    Layer,
    PointwiseConv,
    Residual,
    SeparableConv2d,
    Sequential,
    StandardConv2d,
)
from npdwconv.pointwise import pointwise_conv
from npdwconv.separable import separable_conv2d

# values and gradients


@every_layer
def test_the_linear_part_is_adjoint_to_backward(case: str) -> None:
    layer, shape = make(case)
    x = integers(1, shape)
    y = layer(x)
    grad = integers(2, y.shape)
    grad_x = layer.backward(grad)
    constant = layer(np.zeros(shape))
    assert grad_x.shape == shape
    np.testing.assert_allclose(
        np.vdot(y - constant, grad), np.vdot(x, grad_x), rtol=0, atol=1e-11 if "Pool" in repr(layer) else 0
    )


@every_layer
def test_every_gradient_is_the_difference_that_its_parameter_makes(case: str) -> None:
    layer, shape = make(case)
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
        Sequential(twice, integers)


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
        (lambda: DepthwiseConv2d(4, 3, paddding=1), TypeError, "paddding"),
        (lambda: BatchNorm(4, 1e-3), TypeError, "positional"),
        (lambda: DepthwiseConv2d(4, 3, padding="smae"), OptionError, "did you mean 'same'"),
        (lambda: DepthwiseConv2d(4, 3, stride=2.0), OptionError, "stride is 2.0"),
        (lambda: DepthwiseConv2d(4, (3, 3, 3)), OptionError, "kernel_size"),
        (lambda: DepthwiseConv2d(4, 3, depth_multiplier=0), OptionError, "depth_multiplier is 0"),
        (lambda: DepthwiseConv2d(4, 3, bias=None), OptionError, "bias is None; needed True or False"),
        (
            lambda: SeparableConv2d(4, 4, 3, depthwise_activation="swish"),
            OptionError,
            "depthwise_activation is 'swish'",
        ),
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


@every_layer
def test_backward_needs_a_forward_and_a_gradient_of_its_shape(case: str) -> None:
    layer, shape = make(case)
    with pytest.raises(RuntimeError, match=r"there was no forward call.*call forward\(x\) first"):
        layer.backward(np.zeros(shape))
    y = layer(integers(1, shape))
    with pytest.raises(ShapeError, match="grad_out has shape"):
        layer.backward(np.zeros((*y.shape[:-1], y.shape[-1] + 1)))
    with pytest.raises(DTypeError, match="grad_out has dtype float32"):
        layer.backward(np.zeros(y.shape, np.float32))


@pytest.mark.parametrize(
    "layer", [Activation("relu"), BatchNorm(3, dtype=F64), BatchNorm(3, dtype=F64).train()], ids=str
)
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

"""What layers hold: parameters, state that comes and goes, freezing, folding. Dyadic numbers, so that all is exact."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import numpy as np
import pytest
from layer_cases import F64, block, every_layer, integers, make, set_integers

from npdwconv.errors import CheckpointError, ShapeError
from npdwconv.layers import (
    Activation,
    BatchNorm,
    DepthwiseConv2d,
    Layer,
    PointwiseConv,
    Residual,
    SeparableConv2d,
    Sequential,
    StandardConv2d,
)

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


@every_layer
def test_gradients_are_replaced_not_added_to(case: str) -> None:
    layer, shape = make(case)
    grad = integers(2, layer(integers(1, shape)).shape)
    layer.backward(grad)
    once = {name: array.copy() for name, array in layer.grads.items()}
    layer.backward(grad)
    for name, array in layer.grads.items():
        np.testing.assert_array_equal(array, once[name])


@every_layer
def test_copies_and_pickles_are_independent(case: str) -> None:
    layer, shape = make(case)
    x = integers(1, shape)
    before = layer(x)
    for twin in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
        for array in twin.params.values():
            array += 1
        np.testing.assert_array_equal(layer(x), before)
        assert list(twin.params) == list(layer.params)


# state


@every_layer
def test_state_round_trip(case: str) -> None:
    layer, shape = make(case)
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
        (
            {"0.weight": np.zeros((4, 1, 3, 3), complex)},
            "0.weight has dtype complex128, needed one that converts to float64",
        ),
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


@every_layer
def test_frozen_layers_give_the_same_bits_and_cannot_change(case: str) -> None:
    layer, shape = make(case)
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


@every_layer
def test_unfreezing_undoes_it(case: str) -> None:
    layer, shape = make(case)
    x = integers(1, shape)
    layer.freeze()
    layer(x)
    assert layer.unfreeze() is layer
    assert not layer.frozen
    with pytest.raises(RuntimeError, match="there was no forward call"):
        layer.backward(x)
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
    x = integers(1, (1, 4, 3, 3))
    before = net(x)
    np.testing.assert_array_equal(before, block()(x))
    net.unfreeze().buffers["4.running_mean"] += 1
    assert (net(x) != before).any()


# folding


@pytest.mark.parametrize("layout", ["channels_first", "channels_last"])
def test_folding_changes_the_work_and_not_the_result(layout: str) -> None:
    net, plain = block(layout), block(layout)
    x = integers(1, (2, 4, 5, 5) if layout == "channels_first" else (2, 5, 5, 4))
    before = net.freeze().unfreeze()(x)
    assert net.fold() is net
    assert list(net.params) == ["0.weight", "0.bias", "3.weight", "3.bias"]
    with pytest.raises(RuntimeError, match="there was no forward call"):
        net.backward(before)
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

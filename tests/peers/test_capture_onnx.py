"""Captured ONNX models: what onnxruntime returned for each covered node passes, each other is named with a reason."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from npdwconv import OptionError, verify
from npdwconv.interop.onnx import capture_onnx

onnx = pytest.importorskip("onnx", reason="captured from")
pytest.importorskip("onnxruntime", reason="runs the graphs")
pytestmark = pytest.mark.peers

OPSETS = {"": 19, "com.microsoft": 1, "own": 1}


def graph(
    nodes: list[Any], constants: dict[str, np.ndarray], shape: tuple[Any, ...], dtype: str = "FLOAT", **more: Any
) -> Any:
    """A model with one input, x, whose last node gives its output."""
    helper = onnx.helper
    tensors = [onnx.numpy_helper.from_array(array, name) for name, array in constants.items()]
    taken = [helper.make_tensor_value_info("x", getattr(onnx.TensorProto, dtype), shape)]
    given = [helper.make_empty_tensor_value_info(nodes[-1].output[0])]
    made = helper.make_graph(nodes, "g", taken, given, tensors)
    opsets = [helper.make_opsetid(domain, version) for domain, version in OPSETS.items()]
    return helper.make_model(made, opset_imports=opsets, ir_version=9, **more)


def passing(model: Any, inputs: Any = None) -> dict[str, str]:
    """The cases of a model, each of which is right: their operators by their names."""
    found = capture_onnx(model, inputs)
    for case in found.cases:
        verify.assert_conv(case)
    return {case.name: case.op for case in found.cases}


def reasons(model: Any, inputs: Any = None) -> dict[str, str]:
    return {left.name: left.reason for left in capture_onnx(model, inputs).skipped}


def normal(*shape: int) -> np.ndarray:
    return np.random.default_rng(3).standard_normal(shape, dtype=np.float32)


def test_onnx_nodes_of_every_kind():
    node = onnx.helper.make_node
    constants = {"a": normal(8, 1, 3, 3), "b": normal(8), "c": normal(6, 8, 1, 1), "d": normal(6, 1, 2, 2)}
    constants["f"] = normal(4, 6, 3, 3)
    nodes = [
        node("Conv", ["x", "a", "b"], ["1"], "depthwise", group=8, auto_pad="SAME_UPPER", strides=[2, 2]),
        node("Conv", ["1", "c"], ["2"], "pointwise", strides=[1, 2]),
        node("ConvTranspose", ["2", "d"], ["3"], "up", group=6, strides=[2, 2], pads=[0, 1, 1, 0]),
        node("Conv", ["3", "f"], ["4"], "standard"),
    ]
    model = graph(nodes, constants, (2, 8, 9, 12))
    assert passing(model) == {
        "depthwise": "depthwise_conv2d",
        "pointwise": "pointwise_conv",
        "up": "depthwise_conv_transpose2d",
    }
    assert list(reasons(model)) == ["standard"]


def test_onnx_gemm_and_matmul_are_pointwise():
    node = onnx.helper.make_node
    constants = {"w": normal(5, 8), "b": normal(5), "v": normal(5, 3)}
    nodes = [node("Gemm", ["x", "w", "b"], ["1"], "gemm", transB=1), node("MatMul", ["1", "v"], ["2"], "matmul")]
    model = graph(nodes, constants, ("batch", 8))
    assert passing(model, {"x": normal(4, 8)}) == {"gemm": "pointwise_conv", "matmul": "pointwise_conv"}
    nodes = [node("Gemm", ["x", "w", "b"], ["1"], "scaled", transB=1, alpha=2.0)]
    assert capture_onnx(graph(nodes, constants, (4, 8))).skipped[0].reason.startswith("it transposes")


def test_wrong_models_and_inputs(tmp_path):
    (tmp_path / "m.onnx").write_bytes(b"nonsense")
    with pytest.raises(OptionError, match="needed an ONNX model"):
        capture_onnx(tmp_path / "m.onnx")
    node = onnx.helper.make_node("Conv", ["x", "w"], ["y"], group=2)
    model = graph([node], {"w": normal(2, 1, 3, 3)}, (1, 2, 5, 5))
    with pytest.raises(OptionError, match="needed by name: x"):
        capture_onnx(model, {"y": normal(1, 2, 5, 5)})
    with pytest.raises(OptionError, match=r"onnxruntime .*x \(1, 3, 5, 5\)"):
        capture_onnx(model, normal(1, 3, 5, 5))


@pytest.mark.parametrize("rank", [1, 2, 3])
@pytest.mark.parametrize("auto_pad", ["NOTSET", "SAME_UPPER", "SAME_LOWER"])
@pytest.mark.parametrize("longer", [-4, -1, 0, 1])
def test_the_padding_of_a_transposed_convolution_follows_from_its_output_shape(rank: int, auto_pad: str, longer: int):
    """A stride of 2 and a kernel of 3 make 2·n + 1 out of n; by one less, the odd element is at one side."""
    size = (5, 6, 4)[:rank]
    shape = [2 * n + 1 + longer for n in size]
    up = onnx.helper.make_node(
        "ConvTranspose", ["x", "w"], ["y"], "up", group=3, strides=[2] * rank, output_shape=shape, auto_pad=auto_pad
    )
    model = graph([up], {"w": normal(3, 2, *(3,) * rank)}, (2, 3, *size))
    assert passing(model) == {"up": f"depthwise_conv_transpose{rank}d"}
    (case,) = capture_onnx(model).cases
    assert case.observed["out"].shape == (2, 6, *shape)


def test_weights_that_other_nodes_compute():
    node = onnx.helper.make_node
    constants = {"s": np.float32([0.5]), "a": normal(8, 1, 3, 3), "c": normal(6, 8, 1, 1), "u": normal(6, 1, 2, 2)}
    constants["f"] = normal(4, 6, 3, 3)
    nodes = [node("Mul", [name, "s"], [f"{name}2"]) for name in ("a", "c", "u", "f")]
    nodes += [
        node("Conv", ["x", "a2"], ["1"], "depthwise", group=8),
        node("Conv", ["1", "c2"], ["2"], "pointwise"),
        node("ConvTranspose", ["2", "u2"], ["3"], "up", group=6, strides=[2, 2], output_shape=[13, 19]),
        node("Conv", ["3", "f2"], ["4"], "standard"),
    ]
    model = graph(nodes, constants, (2, 8, 9, 12))
    assert passing(model) == {
        "depthwise": "depthwise_conv2d",
        "pointwise": "pointwise_conv",
        "up": "depthwise_conv_transpose2d",
    }
    assert reasons(model) == {"standard": "a standard convolution, 6 to 4 channels"}


def test_a_weight_that_is_an_input_of_the_model():
    node = onnx.helper.make_node("Conv", ["x", "w"], ["y"], "depthwise", group=4)
    model = graph([node], {}, (1, 4, 6, 6))
    model.graph.input.append(onnx.helper.make_tensor_value_info("w", onnx.TensorProto.FLOAT, (8, 1, 3, 3)))
    assert passing(model) == {"depthwise": "depthwise_conv2d"}


def test_groups_that_are_neither_one_nor_the_channels():
    node = onnx.helper.make_node
    constants = {"g": normal(12, 2, 3, 3), "u": normal(12, 2, 3, 3), "t": normal(4, 3, 3, 3)}
    nodes = [
        node("Conv", ["x", "g"], ["1"], "grouped", group=4),
        node("ConvTranspose", ["1", "u"], ["2"], "grouped up", group=2),
        node("ConvTranspose", ["2", "t"], ["3"], "standard up"),
    ]
    model = graph(nodes, constants, (2, 8, 9, 9))
    assert passing(model) == {}
    assert reasons(model) == {
        "grouped": "a grouped (4 groups) convolution, 8 to 12 channels",
        "grouped up": "a grouped (2 groups) transposed convolution, 12 to 4 channels",
        "standard up": "a standard transposed convolution, 4 to 3 channels",
    }


@pytest.mark.parametrize("auto_pad", ["SAME_UPPER", "SAME_LOWER", "VALID"])
def test_a_pointwise_convolution_is_not_padded_by_a_name(auto_pad: str):
    node = onnx.helper.make_node("Conv", ["x", "w"], ["y"], "point", auto_pad=auto_pad, strides=[2, 3])
    assert passing(graph([node], {"w": normal(5, 4, 1, 1)}, (2, 4, 7, 9))) == {"point": "pointwise_conv"}


def test_a_pointwise_convolution_that_pads_is_named():
    node = onnx.helper.make_node("Conv", ["x", "w"], ["y"], "padded", pads=[0, 0, 0, 1])
    found = reasons(graph([node], {"w": normal(5, 4, 1, 1)}, (2, 4, 7, 9)))
    assert found == {"padded": "a pointwise convolution of an image that it pads, 4 to 5 channels"}


def quantised(kind: str) -> Any:
    node, zero, scale = onnx.helper.make_node, np.uint8(3), np.float32(0.1)
    constants: dict[str, Any] = {"w": np.ones((4, 1, 3, 3), np.uint8), "zero": np.array(zero), "scale": np.array(scale)}
    if kind == "QLinearConv":
        both = ["scale", "zero"]
        nodes = [node(kind, ["x", *both, "w", *both, *both], ["y"], "layer", group=4)]
    else:
        nodes = [node(kind, ["x", "w", "zero", "zero"], ["y"], "layer", group=4)]
    return graph(nodes, constants, (1, 4, 6, 6), "UINT8")


@pytest.mark.parametrize("kind", ["QLinearConv", "ConvInteger"])
def test_quantised_convolutions_are_named(kind: str):
    model = quantised(kind)
    assert passing(model) == {}
    assert reasons(model) == {"layer": "its operands are quantised"}


def test_a_convolution_between_quantised_values_is_one_of_floats():
    """Values leave int8 before the convolution and enter it behind: what it computes is floats."""
    node = onnx.helper.make_node
    constants = {"w": np.arange(-18, 18, dtype=np.int8).reshape(4, 1, 3, 3), "zero": np.array(np.int8(1))}
    constants |= {"scale": np.array(np.float32(0.03)), "b": np.arange(4, dtype=np.int32)}
    nodes = [
        node("QuantizeLinear", ["x", "scale", "zero"], ["xq"]),
        node("DequantizeLinear", ["xq", "scale", "zero"], ["xf"]),
        node("DequantizeLinear", ["w", "scale", "zero"], ["wf"]),
        node("DequantizeLinear", ["b", "scale"], ["bf"]),
        node("Conv", ["xf", "wf", "bf"], ["y"], "layer", group=4),
        node("QuantizeLinear", ["y", "scale", "zero"], ["yq"]),
    ]
    assert passing(graph(nodes, constants, (1, 4, 6, 6))) == {"layer": "depthwise_conv2d"}


def test_fused_convolutions_are_named():
    node = onnx.helper.make_node(
        "FusedConv", ["x", "w"], ["y"], "layer", domain="com.microsoft", group=4, activation="Relu"
    )
    model = graph([node], {"w": normal(4, 1, 3, 3)}, (1, 4, 6, 6))
    assert passing(model) == {}
    assert reasons(model) == {"layer": "fused by an optimiser; export without optimising"}


def test_other_operators_that_convolve_are_named():
    node = onnx.helper.make_node
    constants = {"w": normal(4, 4, 3, 3), "o": normal(1, 18, 4, 4)}
    deformed = graph([node("DeformConv", ["x", "w", "o"], ["y"], "deformed")], constants, (1, 4, 6, 6))
    assert reasons(deformed) == {"deformed": "an operator of its own, of ai.onnx"}


def test_convolutions_of_a_models_functions_are_covered():
    helper = onnx.helper
    body = [helper.make_node("Conv", ["a", "b"], ["c"], "within", group=4), helper.make_node("Relu", ["c"], ["d"])]
    function = helper.make_function("own", "Layer", ["a", "b"], ["d"], body, [helper.make_opsetid("", 19)])
    call = helper.make_node("Layer", ["x", "w"], ["y"], "call", domain="own")
    model = graph([call], {"w": normal(4, 1, 3, 3)}, (1, 4, 6, 6), functions=[function])
    (op,) = passing(model).values()
    assert op == "depthwise_conv2d"


def branch(dtype: int, taken: list[Any] | None = None, first: list[Any] | None = None) -> Any:
    """A graph within a node: a convolution of x, behind the nodes and results that the node wants first."""
    helper = onnx.helper
    inner = helper.make_node("Conv", ["x", "w"], ["inner"], "within", group=4)
    results = [*(first or []), helper.make_tensor_value_info("inner", dtype, None)]
    nodes = [helper.make_node("Identity", ["go"], ["on"]), inner] if first else [inner]
    return helper.make_graph(nodes, "branch", taken or [], results)


@pytest.mark.parametrize("kind", ["If", "Loop", "Scan"])
def test_convolutions_of_graphs_within_nodes_are_named(kind: str):
    helper, floats, truth = onnx.helper, onnx.TensorProto.FLOAT, onnx.TensorProto.BOOL
    info = helper.make_tensor_value_info
    if kind == "If":
        within = branch(floats)
        outer = helper.make_node(kind, ["yes"], ["y"], "outer", then_branch=within, else_branch=within)
    elif kind == "Loop":
        within = branch(floats, [info("i", onnx.TensorProto.INT64, ()), info("go", truth, ())], [info("on", truth, ())])
        outer = helper.make_node(kind, ["two", "yes"], ["y"], "outer", body=within)
    else:
        within = branch(floats, [info("row", floats, None)])
        outer = helper.make_node(kind, ["rows"], ["y"], "outer", num_scan_inputs=1, body=within)
    constants = {"w": normal(4, 1, 3, 3), "yes": np.array(True), "two": np.array(2), "rows": normal(2, 3)}
    nodes = [helper.make_node("Conv", ["x", "w"], ["1"], "covered", group=4), outer]
    model = graph(nodes, constants, (1, 4, 9, 9))
    assert passing(model) == {"covered": "depthwise_conv2d"}
    assert reasons(model) == {"within": f"inside {kind}: a run gives no values of a graph within a node"}


def test_float16_that_nodes_computed_is_named():
    node = onnx.helper.make_node
    kernel = normal(4, 1, 3, 3).astype(np.float16)
    nodes = [
        node("Conv", ["x", "w"], ["1"], "first", group=4),
        node("Conv", ["1", "w"], ["2"], "second", group=4),
        node("Mul", ["w", "w"], ["v"]),
        node("Conv", ["x", "v"], ["3"], "third", group=4),
    ]
    model = graph(nodes, {"w": kernel}, (1, 4, 9, 9), "FLOAT16")
    assert passing(model) == {"first": "depthwise_conv2d"}
    found = reasons(model)
    assert set(found) == {"second", "third"}
    assert all("float32 between nodes" in reason for reason in found.values())

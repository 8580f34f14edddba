"""Cases as ONNX models of a node or a few, which onnxruntime and OpenVINO run."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from importlib import import_module
from typing import Any, NamedTuple

import numpy as np

from npdwconv.bench.cases import Case
from npdwconv.bench.network import Step, program
from npdwconv.bench.operands import Operands
from npdwconv.layouts import Array

OPSET, IR_VERSION = 17, 8  # old enough for every runtime that takes NumPy 2


class Graph(NamedTuple):
    """A serialised model, what it is given, the shape of its only output, and how that becomes channels_first."""

    model: bytes
    inputs: Operands
    output: tuple[int, ...]
    result: Callable[[Array], Array]


def graphs(case: Case, given: Operands) -> Iterator[tuple[str, Callable[[], Graph]]]:
    """The models that a case can be. Weights are constants, packed outside the clock, but in products for gradients."""
    if case.operation == "depthwise_fwd":
        yield "Conv", partial(_depthwise, case, given)
    elif case.operation == "depthwise_bwd_input":
        yield "ConvTranspose", partial(_transposed, case, given)
    elif case.operation == "separable_fwd":
        yield "Conv, Clip, Conv, Clip", partial(_separable, case, given)
    elif case.operation == "network_fwd":
        yield "whole network", partial(_network, given)
    elif case.operation == "pointwise_fwd":
        yield "Conv", partial(_pointwise, case, given)
        yield "MatMul, Add", partial(_product, case, given)
    elif case.operation == "pointwise_bwd_input":
        yield "MatMul", partial(_product_input, case, given)
    elif case.operation == "pointwise_bwd_weight":
        yield "Gemm", partial(_product_weight, case, given)


class _Model:
    """Nodes and constants, collected in order."""

    def __init__(self) -> None:
        self.onnx: Any = import_module("onnx")
        self.nodes: list[Any] = []
        self.constants: list[Any] = []

    def constant(self, array: Array) -> str:
        name = f"c{len(self.constants)}"
        self.constants.append(self.onnx.numpy_helper.from_array(np.ascontiguousarray(array), name))
        return name

    def node(self, kind: str, *inputs: str, **attributes: Any) -> str:
        """Add a node; the name of its result."""
        name = f"v{len(self.nodes)}"
        self.nodes.append(self.onnx.helper.make_node(kind, list(inputs), [name], **attributes))
        return name

    def clip(self, value: str) -> str:
        return self.node("Clip", value, self.constant(np.float32(0)), self.constant(np.float32(6)))

    def graph(self, inputs: Operands, output: tuple[int, ...], result: Callable[[Array], Array] | None = None) -> Graph:
        helper, float32 = self.onnx.helper, self.onnx.TensorProto.FLOAT
        taken = [helper.make_tensor_value_info(name, float32, array.shape) for name, array in inputs.items()]
        given = [helper.make_tensor_value_info(self.nodes[-1].output[0], float32, output)]
        graph = helper.make_graph(self.nodes, "case", taken, given, self.constants)
        opset = [helper.make_opsetid("", OPSET)]
        model = helper.make_model(graph, opset_imports=opset, ir_version=IR_VERSION)
        self.onnx.checker.check_model(model)
        return Graph(model.SerializeToString(), inputs, output, result or (lambda array: array))


def _window(case: Case) -> dict[str, Any]:
    rank = case.rank
    lows, highs = zip(*case.padding, strict=True)
    return {
        "strides": [case.stride] * rank,
        "dilations": [case.dilation] * rank,
        "pads": [*lows, *highs],
        "group": case.channels,
    }


def _depthwise(case: Case, a: Operands) -> Graph:
    model = _Model()
    weight, bias = model.constant(a["depthwise_weight"]), model.constant(a["depthwise_bias"])
    model.node("Conv", "x", weight, bias, **_window(case))
    return model.graph({"x": a["x"]}, (case.batch, case.middle, *case.geometry.out))


def _transposed(case: Case, a: Operands) -> Graph:
    """The input gradient as the transposed convolution that it is."""
    model, kernel = _Model(), a["depthwise_weight"].shape[2:]
    weight = a["depthwise_weight"].reshape(case.middle, 1, *kernel)
    extra = [axis.output_padding for axis in case.geometry.axes]
    model.node("ConvTranspose", "grad_out", model.constant(weight), output_padding=extra, **_window(case))
    return model.graph({"grad_out": a["grad_out"]}, a["x"].shape)


def _pointwise(case: Case, a: Operands) -> Graph:
    model = _Model()
    weight = a["weight"].reshape(case.outputs, -1, *(1,) * case.rank)
    model.node("Conv", "x", model.constant(weight), model.constant(a["bias"]))
    return model.graph({"x": a["x"]}, (case.batch, case.outputs, *case.size))


def _product(case: Case, a: Operands) -> Graph:
    model, x = _Model(), matrix(a["x"])
    product = model.node("MatMul", "x", model.constant(a["weight"].T))
    model.node("Add", product, model.constant(a["bias"]))
    return model.graph({"x": x}, (len(x), case.outputs), partial(image, case))


def _product_input(case: Case, a: Operands) -> Graph:
    model, grad_out = _Model(), matrix(a["grad_out"])
    model.node("MatMul", "grad_out", "weight")
    inputs = {"grad_out": grad_out, "weight": a["weight"]}
    return model.graph(inputs, (len(grad_out), case.channels), partial(image, case))


def _product_weight(case: Case, a: Operands) -> Graph:
    model = _Model()
    model.node("Gemm", "grad_out", "x", transA=1)
    return model.graph({"grad_out": matrix(a["grad_out"]), "x": matrix(a["x"])}, (case.outputs, case.channels))


def _separable(case: Case, a: Operands) -> Graph:
    model = _Model()
    weight, bias = model.constant(a["depthwise_weight"]), model.constant(a["depthwise_bias"])
    middle = model.clip(model.node("Conv", "x", weight, bias, **_window(case)))
    mixing = model.constant(a["weight"].reshape(case.outputs, -1, *(1,) * case.rank))
    model.clip(model.node("Conv", middle, mixing, model.constant(a["bias"])))
    return model.graph({"x": a["x"]}, (case.batch, case.outputs, *case.geometry.out))


def _network(a: Operands) -> Graph:
    model, values, steps = _Model(), ["x"], program(a["x"].shape[-1])
    for step in steps:
        values.append(_step(model, step, values))
    classes = steps[-1].weight
    return model.graph({"x": a["x"]}, (len(a["x"]), 0 if classes is None else len(classes)))


def _step(model: _Model, step: Step, values: list[str]) -> str:
    x = values[-1]
    if step.kind == "add":
        return model.node("Add", x, values[step.source])
    if step.kind == "pool":
        return model.node("Flatten", model.node("GlobalAveragePool", x))
    parameters = [model.constant(p) for p in (step.weight, step.bias) if p is not None]
    if step.kind == "linear":
        return model.node("Gemm", x, *parameters, transB=1)
    lows, highs = zip(*step.padding, strict=True)
    strides = [step.stride] * len(lows)
    y = model.node("Conv", x, *parameters, strides=strides, pads=[*lows, *highs], group=step.groups)
    return model.clip(y) if step.relu6 else y


def matrix(array: Array) -> Array:
    """Pixels by channels."""
    return np.ascontiguousarray(np.moveaxis(array, 1, -1)).reshape(-1, array.shape[1])


def image(case: Case, found: Array) -> Array:
    """A matrix of pixels by channels as (N, channels, *spatial)."""
    return np.moveaxis(found.reshape(case.batch, *case.geometry.out, -1), -1, 1)

"""ONNX models: what their convolutions were given and what onnxruntime returned for them, as cases to verify."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from importlib import import_module
from typing import Any

import numpy as np

from npdwconv.cases import Captured, Case, Skipped
from npdwconv.errors import OptionError
from npdwconv.interop.convolution import FLOATING, as_case, uncovered
from npdwconv.interop.spelling import onnx_options, onnx_transpose_options
from npdwconv.layouts import Array

SPATIAL, OTHER = 64, 1  # extents that stand for a model's symbolic ones: of axes from the third on, of the first two
_OWN = ("", "ai.onnx")  # the domain of ONNX' own operators, by either name
_QUANTISED = ("QLinearConv", "ConvInteger", "QLinearMatMul", "MatMulInteger", "QGemm")
_WIDE = "onnxruntime keeps float16 values in float32 between nodes on a CPU: its operands are not what was seen"
_CONVOLUTIONS = ("Conv", "ConvTranspose")
_FUSED = ("FusedConv", "NhwcFusedConv", "FusedMatMul", "FusedGemm")


@dataclass(frozen=True)
class _Node:
    """A node that may be a case: its attributes, and its arrays once they are known."""

    name: str
    kind: str
    inputs: list[str]
    output: str
    attributes: dict[str, Any]


def capture_onnx(model: Any, inputs: Mapping[str, Array] | Array | None = None) -> Captured:
    """Run an ONNX model once in onnxruntime, and keep each convolution that our operators cover as a case.

    Every such node's input and output becomes an output of the model. With that, onnxruntime may choose its kernels and
    memory layouts as it would for a deployment, but fuses no node into the next: a case is one node.

    Args:
        model: a path, the bytes of a model, or an ``onnx.ModelProto``.
        inputs: arrays by the inputs' names; one array where there is one input; None for random normal numbers (zeros
            for integers), with 1 for a symbolic batch or channel extent and 64 for other symbolic ones.

    Returns:
        Captured(cases, skipped): depthwise and transposed depthwise convolutions, whose weights may be computed by
        other nodes; pointwise ones, a stride taken out of their input; MatMul and Gemm with a constant weight, as
        pointwise convolutions in channels_last. And every other convolution, with the reason why it is no case.

    Raises:
        OptionError: onnx or onnxruntime is not installed, the model cannot be read or run, or inputs do not fit it.
    """
    onnx, runtime = _packages()
    proto = _read(onnx, model)
    constants = _constants(onnx, proto.graph)
    skipped: list[Skipped] = []
    nodes = list(_candidates(onnx, proto.graph, constants, skipped))
    given = _inputs(onnx, proto.graph, constants, inputs)
    arrays = constants | _run(runtime, onnx, proto, _dynamic(nodes, constants), given)
    found = Captured([], skipped)
    for node in nodes:
        computed = [arrays[name] for name in node.inputs if name and name not in given and name not in constants]
        if any(array.dtype == np.float16 for array in computed):
            skipped.append(Skipped(node.name, node.kind, _WIDE))
            continue
        made = _KINDS[node.kind](node, [arrays[name] if name else None for name in node.inputs], arrays[node.output])
        if isinstance(made, str):
            skipped.append(Skipped(node.name, node.kind, made))
        else:
            found.cases.append(made)
    return found


def _packages() -> tuple[Any, Any]:
    try:
        return import_module("onnx"), import_module("onnxruntime")
    except ImportError as error:
        raise OptionError(f"ONNX models need onnx and onnxruntime ({error}): pip install 'npdwconv[peers]'") from error


def _read(onnx: Any, model: Any) -> Any:
    if isinstance(model, onnx.ModelProto):
        copy = onnx.ModelProto()
        copy.CopyFrom(model)
        return _inlined(copy)
    try:
        return _inlined(onnx.load_from_string(model) if isinstance(model, bytes) else onnx.load(os.fspath(model)))
    except Exception as error:  # protobuf has its own errors, in several versions
        raise OptionError(f"{str(model)[:200]}: {error}; needed an ONNX model") from error


def _inlined(proto: Any) -> Any:
    """The model with the nodes of its functions where they are called."""
    return import_module("onnx.inliner").inline_local_functions(proto) if proto.functions else proto


def _constants(onnx: Any, graph: Any) -> dict[str, Array]:
    found = {entry.name: onnx.numpy_helper.to_array(entry) for entry in graph.initializer}
    for node in graph.node:
        if node.op_type == "Constant":
            values = {entry.name: onnx.helper.get_attribute_value(entry) for entry in node.attribute}
            if "value" in values:
                found[node.output[0]] = onnx.numpy_helper.to_array(values["value"])
        elif node.op_type == "Identity" and node.input[0] in found:
            found[node.output[0]] = found[node.input[0]]
    return found


def _candidates(onnx: Any, graph: Any, constants: dict[str, Array], skipped: list[Skipped]) -> Iterator[_Node]:
    for node in graph.node:
        name, reason = node.name or next(iter(node.output), ""), _foreign(node)
        skipped += _inside(onnx, node)
        if node.op_type in _KINDS and node.domain in _OWN and not reason:
            attributes = {entry.name: onnx.helper.get_attribute_value(entry) for entry in node.attribute}
            found = _Node(name, node.op_type, list(node.input), node.output[0], attributes)
            weight = constants.get((*node.input, "", "")[1])
            if node.op_type not in _CONVOLUTIONS and (weight is None or weight.ndim != 2):
                continue  # a product of two values is no layer
            if node.op_type in _CONVOLUTIONS and weight is not None:
                reason = uncovered(weight.shape, attributes.get("group", 1), transposed=_is_transposed(found))
            if not reason:
                yield found
        if reason:
            skipped.append(Skipped(name, node.op_type, reason))


def _foreign(node: Any) -> str:
    """Why an operator that convolves is none of ours; empty where it is, or does not convolve."""
    if node.op_type in _QUANTISED:
        return "its operands are quantised"
    if node.op_type in _FUSED:
        return "fused by an optimiser; export without optimising"
    if "Conv" not in node.op_type or (node.op_type in _CONVOLUTIONS and node.domain in _OWN):
        return ""
    return f"an operator of its own, of {node.domain or 'ai.onnx'}"


def _inside(onnx: Any, node: Any) -> Iterator[Skipped]:
    """The convolutions of the graphs within a node, which a run gives no values of."""
    for attribute in node.attribute:
        if attribute.type == onnx.AttributeProto.GRAPH:
            for inner in attribute.g.node:
                yield from _inside(onnx, inner)
                if inner.op_type in _CONVOLUTIONS or _foreign(inner):
                    reason = f"inside {node.op_type}: a run gives no values of a graph within a node"
                    yield Skipped(inner.name or inner.output[0], inner.op_type, reason)


def _is_transposed(node: _Node) -> bool:
    return node.kind == "ConvTranspose"


def _dynamic(nodes: list[_Node], constants: dict[str, Array]) -> list[str]:
    names = {name for node in nodes for name in (*node.inputs, node.output) if name and name not in constants}
    return sorted(names)


def _run(runtime: Any, onnx: Any, proto: Any, wanted: list[str], inputs: dict[str, Array]) -> dict[str, Array]:
    """The values of the names that are wanted, in one run."""
    given = {name: array for name, array in inputs.items() if name in wanted}
    asked = [name for name in wanted if name not in given]
    if not asked:
        return given
    outputs = {entry.name for entry in proto.graph.output}
    proto.graph.output.extend(onnx.ValueInfoProto(name=name) for name in asked if name not in outputs)
    settings = runtime.SessionOptions()
    settings.log_severity_level = 4  # what fails is raised
    try:
        session = runtime.InferenceSession(proto.SerializeToString(), settings, providers=["CPUExecutionProvider"])
        values = session.run(asked, inputs)
    except Exception as error:  # onnxruntime raises a dozen kinds, one for each status
        shapes = ", ".join(f"{name} {array.shape} {array.dtype}" for name, array in inputs.items())
        raise OptionError(
            f"onnxruntime could not run the model with {shapes}: {error}; pass inputs that fit"
        ) from error
    return given | dict(zip(asked, values, strict=True))


def _inputs(onnx: Any, graph: Any, constants: dict[str, Array], inputs: Any) -> dict[str, Array]:
    entries = {entry.name: entry.type.tensor_type for entry in graph.input if entry.name not in constants}
    if inputs is None:
        rng = np.random.default_rng(0)
        return {name: _random(onnx, kind, rng) for name, kind in entries.items()}
    named = dict(inputs) if isinstance(inputs, Mapping) else dict.fromkeys(entries, inputs)
    if set(named) != set(entries) or (not isinstance(inputs, Mapping) and len(entries) != 1):
        raise OptionError(f"inputs are {', '.join(named) or 'one array'}; needed by name: {', '.join(entries)}")
    return {name: np.asarray(array) for name, array in named.items()}


def _random(onnx: Any, kind: Any, rng: np.random.Generator) -> Array:
    dtype = onnx.helper.tensor_dtype_to_np_dtype(kind.elem_type)
    known = [axis.dim_value for axis in kind.shape.dim]
    shape = [extent if extent > 0 else (SPATIAL if place > 1 else OTHER) for place, extent in enumerate(known)]
    return rng.standard_normal(shape).astype(dtype) if dtype.kind == "f" else np.zeros(shape, dtype)


def _conv(node: _Node, operands: list[Any], out: Array) -> Case | str:
    x, weight, bias = [*operands, None][:3]
    attributes = node.attributes | {"kernel_shape": weight.shape[2:]}
    try:
        if _is_transposed(node):
            options = onnx_transpose_options(**attributes, input_size=x.shape[2:])
        else:
            options = onnx_options(**attributes)
    except OptionError as error:
        return str(error)
    named = {"x": x, "weight": weight, "bias": bias}
    group = attributes.get("group", 1)
    return as_case(node.name, named, out, group, options, transposed=_is_transposed(node))


def _product(node: _Node, operands: list[Any], out: Array) -> Case | str:
    """A matrix product with a constant weight on its right: pointwise, the channels last."""
    x, weight, bias = [*operands, None][:3]
    if x.dtype.name not in FLOATING:
        return f"its dtype is {x.dtype}"
    factors = [node.attributes.get(name, 1.0) for name in ("alpha", "beta")]
    if node.attributes.get("transA") or factors != [1.0, 1.0]:
        return "it transposes its input, or has factors alpha and beta"
    if x.ndim < 2 or (bias is not None and bias.shape != (out.shape[-1],)):
        return "its input has one axis, or its bias is none per column"
    columns = weight if node.attributes.get("transB") else weight.T
    named = {"x": x, "weight": np.ascontiguousarray(columns)} | ({} if bias is None else {"bias": bias})
    return Case("pointwise_conv", named, {"layout": "channels_last"}, {"out": out}, node.name)


_KINDS: dict[str, Callable[[_Node, list[Any], Array], Case | str]] = {
    "Conv": _conv,
    "ConvTranspose": _conv,
    "MatMul": _product,
    "Gemm": _product,
}

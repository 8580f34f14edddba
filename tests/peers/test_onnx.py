"""The operators beside the vectors that the onnx package publishes, and beside onnxruntime where padding is named.

Stored vectors, never onnx's own evaluator, which has ``auto_pad`` and depthwise ConvTranspose with a bias wrong.
"""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest

import npdwconv

onnx = pytest.importorskip("onnx", reason="its published vectors")

pytestmark = pytest.mark.peers

DATA = Path(onnx.__file__).parent / "backend" / "test" / "data"
FOUND_IN_1_22 = 34
NAMED = {b"SAME_UPPER": "same", b"SAME_LOWER": "same_lower", b"VALID": "valid"}
RANK_OF = {3: 1, 4: 2, 5: 3}


class Stored(NamedTuple):
    """One published case: a graph of one node, its operands (None where left out), attributes and results."""

    name: str
    kind: str
    operands: list[Any]
    attributes: dict[str, Any]
    results: list[Any]


def read(folder: Path) -> Stored | None:
    graph = onnx.load(folder / "model.onnx").graph
    if len(graph.node) != 1 or graph.node[0].op_type not in ("Conv", "ConvTranspose", "CausalConvWithState"):
        return None
    node = graph.node[0]
    values = {entry.name: onnx.numpy_helper.to_array(entry) for entry in graph.initializer}
    names = [entry.name for entry in graph.input if entry.name not in values]
    values |= {name: tensor(folder, "input", number) for number, name in enumerate(names)}
    attributes = {entry.name: onnx.helper.get_attribute_value(entry) for entry in node.attribute}
    operands = [values[name] if name else None for name in node.input]
    results = [tensor(folder, "output", number) for number in range(len(graph.output))]
    return Stored(folder.name, node.op_type, operands, attributes, results)


def tensor(folder: Path, kind: str, number: int) -> Any:
    return onnx.numpy_helper.to_array(onnx.load_tensor(folder / "test_data_set_0" / f"{kind}_{number}.pb"))


def is_ours(case: Stored) -> bool:
    """Depthwise (group = C), or pointwise."""
    x, weight = case.operands[:2]
    group = case.attributes.get("group", 1)
    return case.kind == "CausalConvWithState" or group == x.shape[1] or (group == 1 and set(weight.shape[2:]) == {1})


def published() -> list[Stored]:
    cases = (read(path.parent) for path in sorted(DATA.glob("*/*/model.onnx")))
    return [case for case in cases if case is not None and is_ours(case)]


CASES = published()


def pads(attributes: dict[str, Any], rank: int) -> Any:
    if attributes.get("auto_pad", b"NOTSET") in NAMED:
        return NAMED[attributes["auto_pad"]]
    given = attributes.get("pads", [0] * 2 * rank)
    return tuple(zip(given[:rank], given[rank:], strict=True))


def window(case: Stored) -> dict[str, Any]:
    rank = case.operands[0].ndim - 2
    options = {"padding": pads(case.attributes, rank)}
    names = {"strides": "stride", "dilations": "dilation"}
    return options | {
        ours: tuple(case.attributes[theirs]) for theirs, ours in names.items() if theirs in case.attributes
    }


def conv(case: Stored, operands: list[Any]) -> Any:
    x, weight, bias = [*operands, None][:3]
    if case.attributes.get("group", 1) != x.shape[1]:
        return npdwconv.pointwise_conv(x, weight, bias)
    return getattr(npdwconv, f"depthwise_conv{RANK_OF[x.ndim]}d")(x, weight, bias, **window(case))


def transpose(case: Stored, operands: list[Any]) -> Any:
    x, weight, bias = [*operands, None][:3]
    options = window(case)
    extra = tuple(case.attributes.get("output_padding", (0,) * (x.ndim - 2)))
    if "output_shape" in case.attributes:
        natural = [(n - 1) * s + k for n, s, k in zip(x.shape[2:], options["stride"], weight.shape[2:], strict=True)]
        extra = tuple(wanted - n for wanted, n in zip(case.attributes["output_shape"], natural, strict=True))
    stacked = weight.reshape(-1, 1, *weight.shape[2:])
    operator = getattr(npdwconv, f"depthwise_conv_transpose{RANK_OF[x.ndim]}d")
    return operator(x, stacked, bias, output_padding=extra, **options)


def agree(observed: Any, stored: Any, absolute: Any, terms: int) -> None:
    """Within the rounding errors of two sums of so many terms in float32, and of the dtype that both are stored in."""
    assert observed.shape == stored.shape
    unit = 2.0**-24
    error = 2 * terms * unit / (1 - terms * unit) * absolute
    error += float(np.finfo(stored.dtype).eps) * np.abs(stored.astype(np.float64)) + 1e-40
    assert np.all(np.abs(observed.astype(np.float64) - stored) <= error)


def test_the_published_cases_are_found():
    assert len(CASES) >= FOUND_IN_1_22


@pytest.mark.parametrize("case", [case for case in CASES if case.kind != "CausalConvWithState"], ids=lambda c: c.name)
def test_published_convolution(case: Stored):
    run = transpose if case.kind == "ConvTranspose" else conv
    absolute = run(case, [None if array is None else np.abs(array.astype(np.float64)) for array in case.operands])
    terms = int(np.prod(case.operands[1].shape[1:])) + 1
    agree(run(case, case.operands), case.results[0], absolute, terms)


@pytest.mark.parametrize("case", [case for case in CASES if case.kind == "CausalConvWithState"], ids=lambda c: c.name)
def test_published_causal_convolution(case: Stored):
    x, weight, bias, state = [*case.operands, None, None][:4]
    activation = {b"none": None, b"silu": "silu", b"swish": "silu"}[case.attributes.get("activation", b"none")]
    out, after = npdwconv.causal_depthwise_conv1d(x, weight, bias, state=state, activation=activation)
    wide = [None if array is None else np.abs(array.astype(np.float64)) for array in (x, weight, bias, state)]
    absolute, _ = npdwconv.causal_depthwise_conv1d(*wide[:3], state=wide[3])
    agree(out, case.results[0], 2 * absolute + 1, weight.shape[2] + 8)
    np.testing.assert_array_equal(after, case.results[1])


def through_onnxruntime(kind: str, operands: list[Any], **attributes: Any) -> Any:
    runtime = pytest.importorskip("onnxruntime", reason="runs the graph")
    names = ["x", "w", "b"][: len(operands)]
    node = onnx.helper.make_node(kind, names, ["y"], **attributes)
    floats = onnx.TensorProto.FLOAT
    inputs = [onnx.helper.make_tensor_value_info(n, floats, a.shape) for n, a in zip(names, operands, strict=True)]
    output = onnx.helper.make_tensor_value_info("y", floats, None)
    graph = onnx.helper.make_graph([node], "one", inputs, [output])
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 18)], ir_version=9)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        session = runtime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return session.run(["y"], dict(zip(names, operands, strict=True)))[0]


@pytest.mark.parametrize("auto_pad", NAMED)
@pytest.mark.parametrize("kernel", [(2, 3), (4, 5)])
@pytest.mark.parametrize("stride", [1, 2, 3])
def test_named_padding_is_onnxruntimes(auto_pad: bytes, kernel: tuple[int, int], stride: int):
    rng = np.random.default_rng(stride)
    x, bias = rng.standard_normal((2, 3, 9, 8), np.float32), rng.standard_normal(6, np.float32)
    weight = rng.standard_normal((6, 1, *kernel), np.float32)
    options = {"stride": stride, "padding": NAMED[auto_pad]}
    theirs = through_onnxruntime(
        "Conv", [x, weight, bias], auto_pad=auto_pad.decode(), group=3, strides=[stride] * 2, kernel_shape=kernel
    )
    absolute = npdwconv.depthwise_conv2d(*(np.abs(a.astype(np.float64)) for a in (x, weight, bias)), **options)
    agree(npdwconv.depthwise_conv2d(x, weight, bias, **options), theirs, absolute, kernel[0] * kernel[1] + 1)


@pytest.mark.parametrize("padding", [(0, 0, 0, 0), (1, 0, 0, 2)])
@pytest.mark.parametrize("stride", [1, 2, 3])
def test_depthwise_transpose_with_a_bias_is_onnxruntimes(padding: tuple[int, ...], stride: int):
    rng = np.random.default_rng(stride)
    x, bias = rng.standard_normal((2, 4, 5, 6), np.float32), rng.standard_normal(4, np.float32)
    weight = rng.standard_normal((4, 1, 3, 4), np.float32)
    theirs = through_onnxruntime(
        "ConvTranspose", [x, weight, bias], group=4, strides=[stride] * 2, pads=padding, kernel_shape=(3, 4)
    )
    options = {"stride": stride, "padding": tuple(zip(padding[:2], padding[2:], strict=True))}
    absolute = npdwconv.depthwise_conv_transpose2d(
        *(np.abs(a.astype(np.float64)) for a in (x, weight, bias)), **options
    )
    agree(npdwconv.depthwise_conv_transpose2d(x, weight, bias, **options), theirs, absolute, 13)

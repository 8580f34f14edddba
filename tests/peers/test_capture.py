"""Captured models: each covered layer of torch and onnxruntime passes, each other one is named with a reason."""

from __future__ import annotations

import json
from collections import Counter
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from npdwconv import OptionError, cli, verify
from npdwconv.bench import cases as bench_cases
from npdwconv.bench import operands as bench_operands
from npdwconv.bench.peers.onnx_graph import graphs
from npdwconv.interop.onnx import capture_onnx
from npdwconv.interop.torch import capture_torch

torch = pytest.importorskip("torch", reason="captured from")
onnx = pytest.importorskip("onnx", reason="captured from")
pytest.importorskip("onnxruntime", reason="runs the graphs")
pytestmark = pytest.mark.peers

LITE0 = {"depthwise_conv2d": 16, "pointwise_conv": 32}


class Block(torch.nn.Module):
    """One layer of each kind, one of them called twice."""

    def __init__(self) -> None:
        super().__init__()
        conv = torch.nn.Conv2d
        self.stem = conv(3, 8, 3, padding=1)
        self.depthwise = conv(8, 16, (3, 5), stride=2, padding=(1, 2), groups=8, padding_mode="reflect")
        self.same = conv(16, 16, (2, 4), padding="same", dilation=(1, 2), groups=16, bias=False)
        self.pointwise = conv(16, 16, 1)
        self.strided = conv(16, 16, 1, stride=2)
        self.grouped = conv(16, 16, 3, groups=4)
        self.up = torch.nn.ConvTranspose2d(16, 16, 3, stride=2, padding=1, output_padding=1, groups=16)

    def forward(self, x: Any) -> Any:
        x = self.pointwise(self.same(self.depthwise(self.stem(x)).relu()))
        return self.up(self.pointwise(x)), self.strided(x), self.grouped(x)


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel")
def test_torch_layers_pass_and_the_others_are_named():
    torch.manual_seed(0)
    found = capture_torch(Block(), torch.randn(2, 3, 20, 17))
    assert {case.name for case in found.cases} == {"depthwise", "same", "pointwise", "pointwise#2", "strided", "up"}
    assert {left.name: left.reason.split(",")[0] for left in found.skipped} == {
        "stem": "a standard convolution",
        "grouped": "a grouped (4 groups) convolution",
    }
    for case in found.cases:
        verify.assert_conv(case)


@pytest.mark.parametrize("rank", [1, 3])
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_torch_ranks_and_dtypes(rank, dtype):
    module = getattr(torch.nn, f"Conv{rank}d")(4, 8, 3, padding=1, groups=4).to(dtype)
    found = capture_torch(module, torch.randn(1, 4, *(7,) * rank).to(dtype))
    (case,) = found.cases
    assert case.operands["x"].dtype.name == str(dtype).removeprefix("torch.")
    verify.assert_conv(case)


def test_hooks_are_gone_and_a_failing_module_raises():
    module = torch.nn.Conv2d(4, 4, 3, groups=4)
    with pytest.raises(RuntimeError):
        capture_torch(module, torch.randn(1, 3, 5, 5))
    assert not module._forward_hooks
    with pytest.raises(OptionError, match=r"needed a torch\.nn\.Module"):
        capture_torch(torch.relu, torch.randn(3))


def graph(nodes: list[Any], constants: dict[str, np.ndarray], shape: tuple[Any, ...]) -> Any:
    helper = onnx.helper
    tensors = [onnx.numpy_helper.from_array(array, name) for name, array in constants.items()]
    taken = [helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, shape)]
    given = [helper.make_empty_tensor_value_info(nodes[-1].output[0])]
    made = helper.make_graph(nodes, "g", taken, given, tensors)
    return helper.make_model(made, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


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
    found = capture_onnx(model)
    assert {case.name: case.op for case in found.cases} == {
        "depthwise": "depthwise_conv2d",
        "pointwise": "pointwise_conv",
        "up": "depthwise_conv_transpose2d",
    }
    for case in found.cases:
        verify.assert_conv(case)
    assert [left.name for left in found.skipped] == ["standard"]


def test_onnx_gemm_and_matmul_are_pointwise():
    node = onnx.helper.make_node
    constants = {"w": normal(5, 8), "b": normal(5), "v": normal(5, 3)}
    nodes = [node("Gemm", ["x", "w", "b"], ["1"], "gemm", transB=1), node("MatMul", ["1", "v"], ["2"], "matmul")]
    found = capture_onnx(graph(nodes, constants, ("batch", 8)), {"x": normal(4, 8)})
    assert [case.name for case in found.cases] == ["gemm", "matmul"]
    for case in found.cases:
        verify.assert_conv(case)
    nodes = [node("Gemm", ["x", "w", "b"], ["1"], "scaled", transB=1, alpha=2.0)]
    assert capture_onnx(graph(nodes, constants, (4, 8))).skipped[0].reason.startswith("it transposes")


def test_float16_between_nodes_and_graphs_within_nodes_are_named():
    helper, half = onnx.helper, onnx.TensorProto.FLOAT16
    node, kernel = helper.make_node, normal(4, 1, 3, 3).astype(np.float16)
    inner = helper.make_graph(
        [node("Conv", ["x", "w"], ["inner"], "within", group=4)],
        "branch",
        [],
        [helper.make_tensor_value_info("inner", half, None)],
    )
    nodes = [
        node("Conv", ["x", "w"], ["1"], "first", group=4),
        node("Conv", ["1", "w"], ["2"], "second", group=4),
        node("If", ["yes"], ["3"], "choice", then_branch=inner, else_branch=inner),
    ]
    constants = [onnx.numpy_helper.from_array(a, n) for a, n in ((kernel, "w"), (np.array(True), "yes"))]
    taken = [helper.make_tensor_value_info("x", half, (1, 4, 9, 9))]
    given = [helper.make_tensor_value_info(name, half, None) for name in ("2", "3")]
    made = helper.make_graph(nodes, "g", taken, given, constants)
    found = capture_onnx(helper.make_model(made, opset_imports=[helper.make_opsetid("", 17)], ir_version=8))
    (case,) = found.cases
    assert case.name == "first"
    verify.assert_conv(case)
    reasons = {left.name: left.reason for left in found.skipped}
    assert reasons["within"] == "inside If"
    assert "float32 between nodes" in reasons["second"]


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


def verified(capsys, path: Path) -> dict[str, Any]:
    code = cli.main(["verify", str(path), "--json"])
    found = json.loads(capsys.readouterr().out)
    assert (code, found["ok"]) == (0, True)
    return found


def test_the_whole_of_efficientnet_lite0(tmp_path, capsys):
    """Every layer but the stem is right."""
    (case,) = (case for case in bench_cases.cases() if case.operation == "network_fwd")
    _, make = next(iter(graphs(case, bench_operands.operands(case))))
    (tmp_path / "lite0.onnx").write_bytes(make().model)
    found = verified(capsys, tmp_path / "lite0.onnx")
    assert Counter(layer["op"] for layer in found["layers"]) == {"depthwise_conv2d": 16, "pointwise_conv": 33}
    assert [left["reason"] for left in found["skipped"]] == ["a standard convolution, 3 to 32 channels"]


MODELS = {"ch_PP-OCRv4_det_infer": 56, "ch_PP-OCRv4_rec_infer": 44, "ch_ppocr_mobile_v2.0_cls_infer": 52}


@pytest.mark.skipif(find_spec("rapidocr_onnxruntime") is None, reason="the package that ships the models")
@pytest.mark.parametrize(("name", "least"), MODELS.items())
def test_models_that_packages_ship(name, least, capsys):
    (folder,) = find_spec("rapidocr_onnxruntime").submodule_search_locations
    found = verified(capsys, Path(folder) / "models" / f"{name}.onnx")
    assert len(found["layers"]) >= least
    assert all(left["reason"] for left in found["skipped"])

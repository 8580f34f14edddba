"""OpenVINO on the CPU: the same ONNX models, one stream, computed in float32, tensors bound once."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from importlib import import_module
from typing import Any

import numpy as np

from npdwconv.bench.cases import Case
from npdwconv.bench.operands import Operands
from npdwconv.bench.participant import Way
from npdwconv.bench.peers.onnx_graph import Graph, graphs
from npdwconv.layouts import Array

openvino: Any = None  # `setup` imports it
_core: Any = None
_settings: dict[str, Any] = {}


def setup(threads: int) -> str:
    """Without the last hint a CPU that has bfloat16 units computes in bfloat16."""
    global openvino, _core
    openvino = import_module("openvino")
    _core = openvino.Core()
    _settings.update(
        INFERENCE_NUM_THREADS=threads, NUM_STREAMS=1, PERFORMANCE_HINT="LATENCY", INFERENCE_PRECISION_HINT="f32"
    )
    return str(openvino.__version__)


def ways(case: Case, given: Operands) -> Iterator[tuple[str, Callable[[], Way]]]:
    """Every model that the case can be."""
    for name, graph in graphs(case, given):
        yield name, partial(_way, graph)


def _way(build: Callable[[], Graph]) -> Way:
    graph = build()
    compiled = _core.compile_model(_core.read_model(graph.model), "CPU", _settings)
    request = compiled.create_infer_request()
    for name, array in graph.inputs.items():
        request.set_tensor(name, openvino.Tensor(np.ascontiguousarray(array), shared_memory=True))
    out = np.empty(graph.output, np.float32)
    request.set_output_tensor(openvino.Tensor(out, shared_memory=True))

    def result(_: Any) -> Array:
        found: Array = graph.result(out.copy())
        return found

    return Way(request.infer, result)

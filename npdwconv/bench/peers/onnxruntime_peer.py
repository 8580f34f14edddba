"""onnxruntime on its CPU provider: models of a node or a few, inputs and outputs bound to buffers once."""

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

runtime: Any = None  # `setup` imports it
_options: Any = None


def setup(threads: int) -> str:
    global runtime, _options
    runtime = import_module("onnxruntime")
    _options = runtime.SessionOptions()
    _options.intra_op_num_threads = threads
    _options.inter_op_num_threads = 1
    _options.graph_optimization_level = runtime.GraphOptimizationLevel.ORT_ENABLE_ALL
    return str(runtime.__version__)


def ways(case: Case, given: Operands) -> Iterator[tuple[str, Callable[[], Way]]]:
    """Every model that the case can be."""
    for name, graph in graphs(case, given):
        yield name, partial(_way, graph)


def _way(build: Callable[[], Graph]) -> Way:
    graph = build()
    session = runtime.InferenceSession(graph.model, _options, providers=["CPUExecutionProvider"])
    binding = session.io_binding()
    held = {name: runtime.OrtValue.ortvalue_from_numpy(array) for name, array in graph.inputs.items()}
    for name, value in held.items():
        binding.bind_ortvalue_input(name, value)
    out = runtime.OrtValue.ortvalue_from_numpy(np.empty(graph.output, np.float32))
    binding.bind_ortvalue_output(session.get_outputs()[0].name, out)
    run = partial(session.run_with_iobinding, binding)

    def result(_: Any) -> Array:
        found: Array = graph.result(out.numpy().copy())
        return found

    return Way(run, result)

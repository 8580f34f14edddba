"""OpenVINO on the CPU: the same ONNX models, one stream, computed in float32, tensors bound once."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from importlib import import_module
from typing import Any

import numpy as np

from npdwconv.bench.cases import Case
from npdwconv.bench.operands import Operands, laid
from npdwconv.bench.participant import Way
from npdwconv.bench.peers.onnx_graph import Graph, graphs
from npdwconv.layouts import Array

openvino: Any = None  # `setup` imports it
_core: Any = None
_settings: dict[str, Any] = {}
IMAGES = ("Conv", "ConvTranspose", "Conv, Clip, Conv, Clip", "whole network")  # models whose input is one image


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
    """Every model that the case can be, and images channels_last too."""
    for name, graph in graphs(case, given):
        yield name, partial(_way, graph, False)
        if name in IMAGES and case.rank == 2:
            yield f"{name}, channels_last", partial(_way, graph, True)


def _way(build: Callable[[], Graph], last: bool) -> Way:
    graph = build()
    model = _core.read_model(graph.model)
    request = _core.compile_model(_last(model) if last else model, "CPU", _settings).create_infer_request()
    held = {n: laid(np.moveaxis(a, 1, -1) if last else a) for n, a in graph.inputs.items()}
    for name, array in held.items():
        request.set_tensor(name, openvino.Tensor(array, shared_memory=True))
    moved = last and len(graph.output) == 4
    shape = (graph.output[0], *graph.output[2:], graph.output[1]) if moved else graph.output
    out = laid(np.empty(shape, np.float32))
    request.set_output_tensor(openvino.Tensor(out, shared_memory=True))

    def result(_: Any) -> Array:
        found: Array = graph.result(np.moveaxis(out, -1, 1).copy() if moved else out.copy())
        return found

    return Way(partial(_infer, request, held), result)


def _infer(request: Any, held: Operands) -> None:
    """Run; the tensors do not keep the arrays that they share from being freed, so whoever runs has them."""
    request.infer()


def _last(model: Any) -> Any:
    """The model of an image, whose input and output are channels_last."""
    processor = openvino.preprocess.PrePostProcessor(model)
    inside, outside = openvino.Layout("NCHW"), openvino.Layout("NHWC")
    sides = [processor.input(), *([processor.output()] if len(model.output().shape) == 4 else [])]
    for side in sides:
        side.tensor().set_layout(outside)
        side.model().set_layout(inside)
    return processor.build()

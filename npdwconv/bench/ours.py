"""Our own ways through a case: the public operators and layers, in both layouts, on the backend in force."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import numpy as np

import npdwconv
from npdwconv.bench.cases import Case
from npdwconv.bench.families import LAYOUTS
from npdwconv.bench.operands import FORWARD, INPUT_GRAD, WEIGHT_GRAD, Operands, laid, network, options
from npdwconv.bench.participant import Way
from npdwconv.dispatch import explain_backend
from npdwconv.layers import Layer, PointwiseConv, SeparableConv1d, SeparableConv2d
from npdwconv.layouts import Array
from npdwconv.memory import empty
from npdwconv.pointwise import pointwise_conv, pointwise_conv_backward
from npdwconv.tokens import depthwise_conv_tokens

_FLOAT32 = np.empty(0, np.float32)
Ways = Iterator[tuple[str, Callable[[], Way]]]


def setup(threads: int) -> str:
    """Set the threads; numba is imported now, so that a first call does not pay for it."""
    npdwconv.set_num_threads(threads)
    backend = explain_backend().backend
    if backend == "numba":
        importlib.import_module("numba")
    return f"{npdwconv.__version__} ({backend})"


def ways(case: Case, given: Operands) -> Ways:
    """Every way of ours through a case."""
    if case.operation == "ceiling":
        yield from importlib.import_module("npdwconv.bench.ceilings").ways(case)
    elif case.operation == "tokens_fwd":
        yield "tokens", partial(_tokens, case, given)
    elif case.operation == "network_fwd":
        yield "channels_last", partial(_network, given)
    else:
        for layout in LAYOUTS:
            yield layout, partial(_WAYS[case.operation], case, given, layout)
        if case.operation == "pointwise_fwd":
            for layout in LAYOUTS:
                yield f"layer {layout}", partial(_pointwise_layer, case, given, layout)


def _in(layout: str, array: Array) -> Array:
    return laid(array if layout == "channels_first" else np.moveaxis(array, 1, -1))


def _first(layout: str) -> Callable[[Array], Array]:
    return lambda array: array if layout == "channels_first" else np.moveaxis(array, -1, 1)


def _empty(layout: str, case: Case, channels: int) -> Array:
    spatial = case.geometry.out
    shape = (case.batch, channels, *spatial) if layout == "channels_first" else (case.batch, *spatial, channels)
    return empty(_FLOAT32, shape)


def _forward(case: Case, a: Operands, layout: str) -> Way:
    x, out = _in(layout, a["x"]), _empty(layout, case, case.middle)
    call = partial(
        FORWARD[case.rank], x, a["depthwise_weight"], a["depthwise_bias"], **options(case), layout=layout, out=out
    )
    return Way(call, _first(layout))


def _input_grad(case: Case, a: Operands, layout: str) -> Way:
    shape, grad_out = _in(layout, a["x"]).shape, _in(layout, a["grad_out"])
    call = partial(INPUT_GRAD[case.rank], grad_out, a["depthwise_weight"], shape, **options(case), layout=layout)
    return Way(call, _first(layout))


def _weight_grad(case: Case, a: Operands, layout: str) -> Way:
    x, grad_out, shape = _in(layout, a["x"]), _in(layout, a["grad_out"]), a["depthwise_weight"].shape
    call = partial(WEIGHT_GRAD[case.rank], grad_out, x, shape, **options(case), layout=layout)
    return Way(call, lambda grad: grad)


def _pointwise(case: Case, a: Operands, layout: str) -> Way:
    x, out = _in(layout, a["x"]), _empty(layout, case, case.outputs)
    return Way(partial(pointwise_conv, x, a["weight"], a["bias"], layout=layout, out=out), _first(layout))


def _pointwise_grad(name: str, case: Case, a: Operands, layout: str) -> Way:
    x, grad_out = _in(layout, a["x"]), _in(layout, a["grad_out"])
    call = partial(pointwise_conv_backward, grad_out, x, a["weight"], layout=layout, needs=name)
    as_first = _first(layout) if name == "x" else lambda grad: grad
    return Way(call, lambda grads: as_first(getattr(grads, name)))


def _pointwise_layer(case: Case, a: Operands, layout: str) -> Way:
    layer = PointwiseConv(case.channels, case.outputs, spatial_rank=case.rank, layout=layout)
    return _layer(layer, {"weight": a["weight"], "bias": a["bias"]}, _in(layout, a["x"]), layout)


def _separable(case: Case, a: Operands, layout: str) -> Way:
    build = {1: SeparableConv1d, 2: SeparableConv2d}[case.rank]
    layer = build(
        case.channels,
        case.outputs,
        case.kernel,
        **options(case),
        depthwise_bias=True,
        layout=layout,
        depthwise_activation="relu6",
        activation="relu6",
    )
    state = {
        "depthwise.weight": a["depthwise_weight"],
        "depthwise.bias": a["depthwise_bias"],
        "pointwise.weight": a["weight"].reshape(layer.params["pointwise.weight"].shape),
        "pointwise.bias": a["bias"],
    }
    return _layer(layer, state, _in(layout, a["x"]), layout)


def _layer(layer: Layer, state: dict[str, Any], x: Array, layout: str) -> Way:
    layer.load_state_dict(state)
    layer.freeze()
    return Way(partial(layer.forward, x), _first(layout))


def _tokens(case: Case, a: Operands) -> Way:
    image, (height, width) = _in("channels_last", a["x"]), case.size
    x = image.reshape(case.batch, height * width, case.channels)
    settings: dict[str, Any] = {"grid": (height, width), "padding": case.padding, "out": empty(x, x.shape)}
    call = partial(depthwise_conv_tokens, x, a["depthwise_weight"], a["depthwise_bias"], **settings)
    return Way(call, lambda tokens: np.moveaxis(tokens.reshape(image.shape), -1, 1))


def _network(a: Operands) -> Way:
    model = network(layout="channels_last").fold().freeze()
    return Way(partial(model.forward, _in("channels_last", a["x"])), lambda logits: logits)


_WAYS: dict[str, Callable[[Case, Operands, str], Way]] = {
    "depthwise_fwd": _forward,
    "depthwise_bwd_input": _input_grad,
    "depthwise_bwd_weight": _weight_grad,
    "pointwise_fwd": _pointwise,
    "pointwise_bwd_input": partial(_pointwise_grad, "x"),
    "pointwise_bwd_weight": partial(_pointwise_grad, "weight"),
    "separable_fwd": _separable,
}

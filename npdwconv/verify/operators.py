"""Every operator of the contract as stages of an `Arithmetic`: the exact results, and how far right ones may be off.

Inside, arrays are (N, C, *spatial) and weights (C·M, *kernel); results leave in the layout of the call.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple

import numpy as np

from npdwconv.activations import Activation
from npdwconv.arguments import Call
from npdwconv.cases import Case
from npdwconv.causal import CAUSAL_NEEDS, causal_plan
from npdwconv.depthwise import checked_input_grad, checked_weight_grad
from npdwconv.geometry import ConvGeometry
from npdwconv.layouts import Array, channels_second
from npdwconv.options import needed_names
from npdwconv.plans import NEEDS, ConvOptions, DepthwisePlan, depthwise_plan
from npdwconv.pointwise import pointwise_plan
from npdwconv.separable import SEPARABLE_NEEDS, separable_plan
from npdwconv.tokens import tokens_plan
from npdwconv.verify.bounds import Arithmetic, Enclosure
from npdwconv.verify.double import lifted
from npdwconv.verify.reference import Windows, mix, mix_weight, total

Results = dict[str, Enclosure]
Rewire = Callable[[ConvGeometry], ConvGeometry]
_RUN_ONLY = ("backend", "out")  # options that say where a result is computed, not which


class Stage(NamedTuple):
    """A depthwise or pointwise stage before its activation, and its three bilinear maps."""

    forward: Callable[[Array, Array], Array]
    input: Callable[[Array, Array], Array]
    weight: Callable[[Array, Array], Array]


class Request(NamedTuple):
    """A case with the arithmetic that it is to be bounded for, and the results that are wanted.

    ``rewire`` makes other windows of the convolution's: a mistake to be predicted.
    """

    case: Case
    ar: Arithmetic
    needs: frozenset[str]
    rewire: Rewire = lambda geometry: geometry

    @property
    def layout(self) -> str:
        return str(self.case.options.get("layout", "channels_first"))

    @property
    def operands(self) -> dict[str, Array]:
        return self.case.operands

    def options(self) -> dict[str, Any]:
        left_out = (*_RUN_ONLY, "needs")
        return {name: value for name, value in self.case.options.items() if name not in left_out}

    def first(self, name: str) -> Array:
        """The operand ``name`` as (N, C, *spatial)."""
        return channels_second(self.operands[name], self.layout)


def _depthwise_stage(request: Request, plan: DepthwisePlan, transposed: bool) -> Stage:
    windows = Windows(request.rewire(plan.geometry), transposed)
    channels = channels_second(plan.x, plan.call.layout).shape[1]
    return Stage(
        windows.forward,
        partial(windows.input, channels=channels),
        partial(windows.weight, shape=plan.weight.shape),
    )


_POINTWISE = Stage(mix, lambda z, weight: mix(z, weight.T), mix_weight)


def _forward(ar: Arithmetic, stage: Stage, x: Enclosure, weight: Array, bias: Array | None) -> Enclosure:
    return ar.bilinear(stage.forward, x, ar.operand(weight), ar.optional(bias))


def _gradients(
    ar: Arithmetic, stage: Stage, grad_z: Enclosure, x: Enclosure, weight: Array, needs: frozenset[str]
) -> Results:
    """Those of a stage's gradients that are needed: x, weight, bias."""
    found: Results = {}
    if "x" in needs:
        found["x"] = ar.bilinear(stage.input, grad_z, ar.operand(weight))
    if "weight" in needs:
        found["weight"] = ar.bilinear(stage.weight, grad_z, x)
    if "bias" in needs:
        ones = np.ones(grad_z.error.shape[1])
        found["bias"] = ar.bilinear(total, grad_z, Enclosure(lifted(ones), np.zeros_like(ones)))
    return found


def _through(ar: Arithmetic, grad: Enclosure, activation: Activation | None, z: Callable[[], Enclosure]) -> Enclosure:
    """The gradient before an activation."""
    return grad if activation is None else ar.fed(ar.times(grad, ar.derivative(activation, z())))


def _laid_out(e: Enclosure, layout: str) -> Enclosure:
    return e if layout == "channels_first" else e.each(lambda array: np.moveaxis(array, 1, -1))


def _backward_of(
    request: Request,
    stage: Stage,
    operands: tuple[Array, Array, Array | None],
    activation: Activation | None,
    grad_out: Array,
) -> Results:
    """A backward of one stage; operands (N, C, *) and weight (K, …)."""
    ar, (x, weight, bias) = request.ar, operands
    source, needs = ar.operand(x), request.needs if bias is not None else request.needs - {"bias"}
    grad_z = _through(ar, ar.operand(grad_out), activation, lambda: _forward(ar, stage, source, weight, bias))
    return _gradients(ar, stage, grad_z, source, weight, needs)


def _plan(request: Request, rank: int, transposed: bool) -> DepthwisePlan:
    given = request.operands
    options = ConvOptions(**request.options(), transposed=transposed)
    return depthwise_plan(request.case.op, rank, given["x"], given["weight"], given.get("bias"), options)


def _depthwise(request: Request, *, rank: int, transposed: bool = False) -> Results:
    plan = _plan(request, rank, transposed)
    stage = _depthwise_stage(request, plan, transposed)
    z = _forward(request.ar, stage, request.ar.operand(request.first("x")), plan.weight, plan.bias)
    return {"out": _laid_out(request.ar.activate(plan.activation, z), request.layout)}


def _depthwise_backward(request: Request, *, rank: int, transposed: bool = False) -> Results:
    plan = _plan(request, rank, transposed)
    _require_grad(plan.call, request, plan.shape)
    stage = _depthwise_stage(request, plan, transposed)
    operands = (request.first("x"), plan.weight, plan.bias)
    found = _backward_of(request, stage, operands, plan.activation, request.first("grad_out"))
    return _as_stored(found, request, plan)


def _as_stored(found: Results, request: Request, plan: DepthwisePlan) -> Results:
    if "x" in found:
        found["x"] = _laid_out(found["x"], request.layout)
    if "weight" in found:
        found["weight"] = found["weight"].shaped(plan.weight.shape[0], 1, *plan.weight.shape[1:])
    return found


def _input_grad(request: Request, *, rank: int) -> Results:
    options = request.options()
    shape = options.pop("input_shape")
    op, (grad_out, weight) = request.case.op, (request.operands["grad_out"], request.operands["weight"])
    geometry, _, _, shape, layout = checked_input_grad(op, rank, grad_out, weight, shape, ConvOptions(**options))
    channels = shape[1] if layout == "channels_first" else shape[-1]
    ar, function = request.ar, partial(Windows(request.rewire(geometry)).input, channels=channels)
    grad = ar.bilinear(function, ar.operand(request.first("grad_out")), ar.operand(weight[:, 0]))
    return {"out": _laid_out(grad, layout)}


def _weight_grad(request: Request, *, rank: int) -> Results:
    options = request.options()
    shape = options.pop("weight_shape")
    op, (grad_out, x) = request.case.op, (request.operands["grad_out"], request.operands["x"])
    geometry, _, _, shape, _ = checked_weight_grad(op, rank, grad_out, x, shape, ConvOptions(**options))
    ar, function = request.ar, partial(Windows(request.rewire(geometry)).weight, shape=(shape[0], *shape[2:]))
    grad = ar.bilinear(function, ar.operand(request.first("grad_out")), ar.operand(request.first("x")))
    return {"out": grad.shaped(*shape)}


def _all(request: Request) -> dict[str, Any]:
    return {"layout": request.layout, "activation": None} | request.options()


def _pointwise(request: Request) -> Results:
    given = request.operands
    plan = pointwise_plan(request.case.op, given["x"], given["weight"], given.get("bias"), **_all(request))
    ar = request.ar
    z = _forward(ar, _POINTWISE, ar.operand(request.first("x")), plan.weight, plan.bias)
    return {"out": _laid_out(ar.activate(plan.activation, z), request.layout)}


def _pointwise_backward(request: Request) -> Results:
    given = request.operands
    plan = pointwise_plan(request.case.op, given["x"], given["weight"], given.get("bias"), **_all(request))
    _require_grad(plan.call, request, plan.shape)
    operands = (request.first("x"), plan.weight, plan.bias)
    found = _backward_of(request, _POINTWISE, operands, plan.activation, request.first("grad_out"))
    if "x" in found:
        found["x"] = _laid_out(found["x"], request.layout)
    if "weight" in found:
        found["weight"] = found["weight"].shaped(*given["weight"].shape)
    return found


def _separable_stages(request: Request, rank: int) -> tuple[Any, Stage, Callable[[Enclosure], Enclosure]]:
    given, options = request.operands, request.options()
    activation = options.pop("activation", None)
    options["activation"] = options.pop("depthwise_activation", None)
    names = ("x", "depthwise_weight", "depthwise_bias", "pointwise_weight", "bias")
    x, depthwise_weight, depthwise_bias, weight, bias = map(given.get, names)
    plan = separable_plan(
        request.case.op, rank, (x, depthwise_weight, depthwise_bias, weight, bias), ConvOptions(**options), activation
    )
    first, ar = plan.depthwise, request.ar
    stage = _depthwise_stage(request, first, transposed=False)
    return plan, stage, lambda source: _forward(ar, stage, source, first.weight, first.bias)


def _separable(request: Request, *, rank: int) -> Results:
    ar = request.ar
    plan, _, before = _separable_stages(request, rank)
    middle = ar.fed(ar.activate(plan.depthwise.activation, before(ar.operand(request.first("x")))))
    z = _forward(ar, _POINTWISE, middle, plan.weight, plan.bias)
    return {"out": _laid_out(ar.activate(plan.activation, z), request.layout)}


def _separable_backward(request: Request, *, rank: int) -> Results:
    ar, needs = request.ar, request.needs & frozenset(request.operands)
    plan, stage, before = _separable_stages(request, rank)
    first = plan.depthwise
    _require_grad(first.call, request, plan.shape)
    source = ar.operand(request.first("x"))
    inner = before(source)
    middle = ar.fed(ar.activate(first.activation, inner))
    grad = ar.operand(request.first("grad_out"))
    grad_z = _through(ar, grad, plan.activation, lambda: _forward(ar, _POINTWISE, middle, plan.weight, plan.bias))
    outer = {"pointwise_weight": "weight", "bias": "bias"}
    found = _renamed(ar, _POINTWISE, grad_z, middle, plan.weight, needs, outer)
    names = {"x": "x", "depthwise_weight": "weight", "depthwise_bias": "bias"}
    if needs & set(names):
        grad_middle = ar.fed(ar.bilinear(_POINTWISE.input, grad_z, ar.operand(plan.weight)))
        grad_inner = _through(ar, grad_middle, first.activation, lambda: inner)
        found |= _renamed(ar, stage, grad_inner, source, first.weight, needs, names)
    shapes = {name: request.operands[name].shape for name in found if name != "x"}
    stored = {name: e if name == "x" else e.shaped(*shapes[name]) for name, e in found.items()}
    return stored | ({"x": _laid_out(stored["x"], request.layout)} if "x" in stored else {})


def _renamed(
    ar: Arithmetic,
    stage: Stage,
    grad_z: Enclosure,
    x: Enclosure,
    weight: Array,
    needs: frozenset[str],
    names: dict[str, str],
) -> Results:
    """A stage's gradients under the names that the separable operator has for them."""
    wanted = frozenset(inner for outer, inner in names.items() if outer in needs)
    found = _gradients(ar, stage, grad_z, x, weight, wanted)
    return {outer: found[inner] for outer, inner in names.items() if inner in found}


def _as_image(request: Request) -> tuple[Request, tuple[int, ...]]:
    """A call on tokens as one on the image (N, H, W, C) that they are, and the shape of the resulting tokens."""
    options = request.options()
    grid, given = options.pop("grid"), dict(request.operands)
    padded = {"padding": "same"} | options
    _, plan, shape = tokens_plan(
        request.case.op,
        given["x"],
        given["weight"],
        given.get("bias"),
        grid,
        ConvOptions(**padded, layout="channels_last"),
    )
    given["x"] = plan.x
    if "grad_out" in given:
        given["grad_out"] = given["grad_out"].reshape(plan.shape)
    case = replace(request.case, operands=given, options=padded | {"layout": "channels_last"})
    return request._replace(case=case), shape


def _tokens(request: Request) -> Results:
    image, shape = _as_image(request)
    return {"out": _depthwise(image, rank=2)["out"].shaped(*shape)}


def _tokens_backward(request: Request) -> Results:
    image, _ = _as_image(request)
    found = _depthwise_backward(image, rank=2)
    return found | ({"x": found["x"].shaped(*request.operands["x"].shape)} if "x" in found else {})


def _causal_plan(request: Request) -> tuple[DepthwisePlan, Array]:
    given = request.operands
    operands = (given["x"], given["weight"], given.get("bias"), given.get("state"))
    activation = request.options().get("activation")
    _, plan, _, history = causal_plan(request.case.op, *operands, request.layout, activation)
    return plan, history


def _causal(request: Request) -> Results:
    plan, history = _causal_plan(request)
    ar, past = request.ar, plan.weight.shape[1] - 1
    source = ar.operand(channels_second(plan.x, request.layout))
    z = _forward(ar, _depthwise_stage(request, plan, transposed=False), source, plan.weight, plan.bias)
    kept = history[:, :, history.shape[2] - past :]
    return {"out": _laid_out(ar.activate(plan.activation, z), request.layout), "next_state": ar.operand(kept)}


def _causal_backward(request: Request) -> Results:
    plan, history = _causal_plan(request)
    _require_grad(plan.call, request, plan.shape)
    ar, past, carried = request.ar, plan.weight.shape[1] - 1, request.operands.get("grad_next_state")
    inner = request.needs | ({"x"} if "state" in request.needs else set())
    operands = (channels_second(plan.x, request.layout), plan.weight, plan.bias)
    stage = _depthwise_stage(request, plan, transposed=False)
    found = _backward_of(request._replace(needs=inner), stage, operands, plan.activation, request.first("grad_out"))
    joined = found.pop("x", None)
    if joined is not None:
        missing = history.shape[2] - joined.error.shape[2]
        whole = joined.each(lambda array: np.pad(array, ((0, 0), (0, 0), (missing, 0))))
        if carried is not None:
            late = np.zeros(history.shape)
            late[:, :, history.shape[2] - past :] = carried
            whole = ar.plus(whole, ar.operand(late))
        if "x" in request.needs:
            found["x"] = _laid_out(whole.each(lambda array: array[:, :, past:]), request.layout)
        if "state" in request.needs and "state" in request.operands:
            found["state"] = whole.each(lambda array: array[:, :, :past])
    if "weight" in found:
        found["weight"] = found["weight"].shaped(*request.operands["weight"].shape)
    return found


def _require_grad(call: Call, request: Request, shape: tuple[int, ...]) -> None:
    with call.explained():
        call.require("grad_out", request.operands["grad_out"], shape, "the shape of the forward's result")


OPERATORS: dict[str, Callable[[Request], Results]] = {
    "pointwise_conv": _pointwise,
    "pointwise_conv_backward": _pointwise_backward,
    "depthwise_conv_tokens": _tokens,
    "depthwise_conv_tokens_backward": _tokens_backward,
    "causal_depthwise_conv1d": _causal,
    "causal_depthwise_conv1d_backward": _causal_backward,
}
for _rank in (1, 2, 3):
    OPERATORS |= {
        f"depthwise_conv{_rank}d": partial(_depthwise, rank=_rank),
        f"depthwise_conv{_rank}d_backward": partial(_depthwise_backward, rank=_rank),
        f"depthwise_conv{_rank}d_input_grad": partial(_input_grad, rank=_rank),
        f"depthwise_conv{_rank}d_weight_grad": partial(_weight_grad, rank=_rank),
        f"depthwise_conv_transpose{_rank}d": partial(_depthwise, rank=_rank, transposed=True),
        f"depthwise_conv_transpose{_rank}d_backward": partial(_depthwise_backward, rank=_rank, transposed=True),
        f"separable_conv{_rank}d": partial(_separable, rank=_rank),
        f"separable_conv{_rank}d_backward": partial(_separable_backward, rank=_rank),
    }

NEEDED = {
    op: CAUSAL_NEEDS if op.startswith("causal") else SEPARABLE_NEEDS if op.startswith("separable") else NEEDS
    for op in OPERATORS
    if op.endswith("_backward")
}
RESULTS = {op: ("out", "next_state") if op.startswith("causal") else ("out",) for op in OPERATORS if op not in NEEDED}


def needed(case: Case) -> frozenset[str]:
    """The results that a call returns: gradients by name, or those of a forward."""
    if case.op not in NEEDED:
        return frozenset(RESULTS[case.op])
    return needed_names(case.options.get("needs", NEEDED[case.op]), NEEDED[case.op])


def enclose(
    case: Case, ar: Arithmetic, needs: frozenset[str] | None = None, rewire: Rewire = lambda geometry: geometry
) -> Results:
    """The exact results of a call, to within what ``ar`` may be off before it stores them, by name."""
    with np.errstate(all="ignore"):
        return OPERATORS[case.op](Request(case, ar, needed(case) if needs is None else needs, rewire))

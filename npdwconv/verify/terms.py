"""Which products an element is the sum of: its receptive field, found by asking the operators' own adjoints.

Element i of a map f that is linear in a is Σ_j a_j · (f*(e_i))_j: the adjoint of the unit array e_i holds the factors,
whatever the operator, its strides and its padding.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np

import npdwconv
from npdwconv.activations import ACTIVATIONS
from npdwconv.cases import Case
from npdwconv.layouts import Array

_RUN_ONLY = ("activation", "backend", "out", "needs", "input_shape", "weight_shape")


class Terms(NamedTuple):
    """The products of one element: an array that is read, and by what each of its elements is multiplied."""

    name: str
    values: Array
    factors: Array
    bias: float = 0.0

    @property
    def products(self) -> Array:
        """Those that are not zero by their factor, NaN and infinities included."""
        return np.where(self.factors == 0, 0.0, self.values * self.factors)


def terms(case: Case, result: str, index: tuple[int, ...]) -> Terms:
    """The products that element ``index`` of ``result`` is the sum of, before an activation; in float64."""
    wide = {name: array.astype(np.float64) for name, array in case.operands.items()}
    with np.errstate(all="ignore"):
        return _terms(replace(case, operands=wide), result, index)


def _terms(case: Case, result: str, index: tuple[int, ...]) -> Terms:
    given, op = case.operands, case.op
    if op.startswith("separable"):
        return _separable(case, result, index)
    if op.endswith("_input_grad"):
        unit = _unit(case.options["input_shape"], index)
        return Terms("grad_out", given["grad_out"], _forward(op, unit, given["weight"], case))
    if op.endswith("_weight_grad"):
        unit = _unit(case.options["weight_shape"], index)
        return Terms("grad_out", given["grad_out"], _forward(op, given["x"], unit, case))
    if op.endswith("_backward"):
        return _gradient(case, result, index)
    if result == "next_state":
        return Terms("x", given["x"], np.zeros_like(given["x"]))
    shape = _forward(op, given["x"], given["weight"], case).shape
    channel = index[-1] if _layout(case) == "channels_last" else index[1]
    bias = float(given["bias"][channel]) if "bias" in given else 0.0
    carried = {"state": given["state"]} if "state" in given else {}
    backward = _reference(f"{op}_backward")
    grads = backward(_unit(shape, index), given["x"], given["weight"], **carried, **_linear(case))
    return Terms("x", given["x"], grads.x, bias)


def _gradient(case: Case, result: str, index: tuple[int, ...]) -> Terms:
    given, op = case.operands, case.op
    grad, name = given["grad_out"], "grad_out"
    activation = case.options.get("activation")
    if activation is not None:
        z = _forward(op, given["x"], given["weight"], case, bias=given.get("bias"), state=given.get("state"))
        grad, name = grad * ACTIVATIONS[activation].derivative(z), f"grad_out · {activation}′"
    if result == "x":
        return Terms(name, grad, _forward(op, _unit(given["x"].shape, index), given["weight"], case))
    if result == "state":
        state = _unit(given["state"].shape, index)
        return Terms(name, grad, _forward(op, np.zeros_like(given["x"]), given["weight"], case, state=state))
    if result == "weight":
        unit = _unit(given["weight"].shape, index)
        return Terms(name, grad, _forward(op, given["x"], unit, case, state=given.get("state")))
    ones, axis = np.zeros_like(grad), -1 if _layout(case) == "channels_last" else 1
    np.moveaxis(ones, axis, 0)[index] = 1.0
    return Terms(name, grad, ones)


def _separable(case: Case, result: str, index: tuple[int, ...]) -> Terms:
    """As the stage that has the result: pointwise on the value between the stages, or depthwise below it."""
    given, options = case.operands, dict(case.options)
    rank = case.op.removesuffix("_backward")[-2:]
    outer: dict[str, Any] = {name: options[name] for name in ("layout", "activation") if name in options}
    inner = {name: value for name, value in options.items() if name not in (*_RUN_ONLY, "depthwise_activation")}
    inner["activation"] = options.get("depthwise_activation")
    taps, bias = given["depthwise_weight"], given.get("depthwise_bias")
    middle = _reference(f"depthwise_conv{rank}")(given["x"], taps, bias, **inner)
    pointwise = {"x": middle, "weight": given["pointwise_weight"]} | _named("bias", given.get("bias"))
    if not case.op.endswith("_backward"):
        found = _terms(Case("pointwise_conv", pointwise, outer), result, index)
        return found._replace(name="depthwise result")
    pointwise["grad_out"] = given["grad_out"]
    names = {"pointwise_weight": "weight", "bias": "bias"}
    if result in names:
        return _terms(Case("pointwise_conv_backward", pointwise, outer), names[result], index)
    operands = (given["grad_out"], middle, given["pointwise_weight"], given.get("bias"))
    grad = _reference("pointwise_conv_backward")(*operands, **outer, needs="x").x
    depthwise = {"grad_out": grad, "x": given["x"], "weight": taps} | _named("bias", bias)
    return _terms(Case(f"depthwise_conv{rank}_backward", depthwise, inner), result.removeprefix("depthwise_"), index)


def _forward(op: str, x: Array, weight: Array, case: Case, **operands: Any) -> Array:
    """The forward that ``op`` belongs to, without its activation."""
    for ending in ("_backward", "_input_grad", "_weight_grad"):
        op = op.removesuffix(ending)
    given = {name: array for name, array in operands.items() if array is not None}
    found = _reference(op)(x, weight, **given, **_linear(case))
    result: Array = found[0] if isinstance(found, tuple) else found
    return result


def _reference(op: str) -> Any:
    operator = getattr(npdwconv, op)
    return lambda *arrays, **options: operator(*arrays, **options, backend="reference")


def _linear(case: Case) -> dict[str, Any]:
    return {name: value for name, value in case.options.items() if name not in _RUN_ONLY}


def _layout(case: Case) -> str:
    return "channels_last" if "tokens" in case.op else str(case.options.get("layout", "channels_first"))


def _named(name: str, array: Array | None) -> dict[str, Array]:
    return {} if array is None else {name: array}


def _unit(shape: tuple[int, ...], index: tuple[int, ...]) -> Array:
    unit = np.zeros(shape)
    unit[index] = 1.0
    return unit

"""One small call of every operator, forward and backward, with options that make its terms uneven."""

from __future__ import annotations

from typing import Any

import numpy as np
from strategies import moved

import npdwconv
from npdwconv.cases import OPERANDS, Case
from npdwconv.verify.check import bind

EXTENTS = {1: (9,), 2: (6, 5), 3: (4, 5, 3)}
_rng = np.random.default_rng(7)


def normal(*shape: int, dtype: Any = np.float32) -> np.ndarray:
    return _rng.standard_normal(shape).astype(dtype)


def _options(rank: int, layout: str) -> dict[str, Any]:
    return {"stride": 2 if rank < 3 else 1, "padding": 1, "layout": layout}


def forward_calls(layout: str = "channels_first", activation: str | None = None, dtype: Any = np.float32) -> list[Case]:
    """A forward of every kind, with its operands and options and nothing observed."""

    def drawn(*shape: int) -> np.ndarray:
        return normal(*shape, dtype=dtype)

    calls: list[tuple[str, dict[str, Any], dict[str, Any]]] = []
    shared = {"activation": activation}
    for rank, size in EXTENTS.items():
        x, taps, bias = moved(drawn(2, 3, *size), layout), drawn(6, 1, *(3,) * rank), drawn(6)
        options = _options(rank, layout)
        single = {"x": x, "weight": taps, "bias": bias}
        calls.append((f"depthwise_conv{rank}d", single, options | shared))
        calls.append((f"depthwise_conv_transpose{rank}d", single, options | shared))
        stages = {"x": x, "depthwise_weight": taps, "depthwise_bias": bias, "pointwise_weight": drawn(4, 6)}
        calls.append(
            (
                f"separable_conv{rank}d",
                stages | {"bias": drawn(4)},
                options | shared | {"depthwise_activation": "relu6"},
            )
        )
    pointwise = {"x": moved(drawn(2, 5, 3, 2), layout), "weight": drawn(4, 5), "bias": drawn(4)}
    calls.append(("pointwise_conv", pointwise, {"layout": layout} | shared))
    tokens = {"x": drawn(2, 30, 3), "weight": drawn(3, 1, 3, 3), "bias": drawn(3)}
    calls.append(("depthwise_conv_tokens", tokens, {"grid": (6, 5)} | shared))
    causal = {"x": moved(drawn(2, 3, 7), layout), "weight": drawn(3, 1, 4), "state": drawn(2, 3, 3)}
    calls.append(("causal_depthwise_conv1d", causal, {"layout": layout} | shared))
    return [Case(*call) for call in calls]


def run(case: Case) -> Any:
    return getattr(npdwconv, case.op)(**case.operands, **case.options)


def observed(case: Case) -> Case:
    """The case with what the operator returns for it."""
    return bind(case.op, run(case), (), case.operands | case.options)


def backward_of(case: Case, dtype: Any = np.float32) -> Case:
    """The backward of a forward call, for a random gradient, with what the operator returns for it."""
    result = run(case)
    out = result[0] if isinstance(result, tuple) else result
    return observed(
        Case(f"{case.op}_backward", {"grad_out": normal(*out.shape, dtype=dtype)} | case.operands, case.options)
    )


def gradient_calls(case: Case) -> list[Case]:
    """The input gradient and the weight gradient alone, of a depthwise forward."""
    grad, options = normal(*run(case).shape), {k: v for k, v in case.options.items() if k != "activation"}
    x, weight = case.operands["x"], case.operands["weight"]
    return [
        observed(
            Case(f"{case.op}_input_grad", {"grad_out": grad, "weight": weight}, options | {"input_shape": x.shape})
        ),
        observed(Case(f"{case.op}_weight_grad", {"grad_out": grad, "x": x}, options | {"weight_shape": weight.shape})),
    ]


def every_call(layout: str = "channels_first", activation: str | None = None) -> list[Case]:
    """Every operator once, with what it returns."""
    forwards = forward_calls(layout, activation)
    plain = [case for case in forwards if case.op in ("depthwise_conv1d", "depthwise_conv2d", "depthwise_conv3d")]
    alone = [call for case in plain for call in gradient_calls(case)]
    return [observed(case) for case in forwards] + [backward_of(case) for case in forwards] + alone


__all__ = ["OPERANDS", "backward_of", "every_call", "forward_calls", "gradient_calls", "normal", "observed", "run"]

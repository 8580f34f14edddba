"""Case room: one call of an operator and what was observed for it, in memory and in a ``.npz`` file."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from npdwconv.layouts import Array

# operands of the operators, by the names of their parameters
OPERANDS = (
    "grad_out",
    "x",
    "weight",
    "depthwise_weight",
    "pointwise_weight",
    "depthwise_bias",
    "bias",
    "state",
    "grad_next_state",
)


@dataclass(frozen=True)
class Case:
    """One call of a public operator, and what somebody's implementation of it returned.

    Attributes:
        op: the operator's name, such as ``"depthwise_conv2d"``.
        operands: its array arguments by their names (`OPERANDS`); what is None is left out.
        options: its other arguments by their names.
        observed: ``{"out": array}`` for a forward (and ``"next_state"`` for a causal one), gradients by their operand's
            name for a backward.
        name: what the report calls it, such as a layer's name.

    >>> import numpy as np
    >>> from npdwconv.cases import Case
    >>> x, weight = np.ones((1, 2, 4, 4), np.float32), np.ones((2, 1, 1, 1), np.float32)
    >>> Case("depthwise_conv2d", {"x": x, "weight": weight}, {"stride": 2}, {"out": x[:, :, ::2, ::2]}).op
    'depthwise_conv2d'
    """

    op: str
    operands: dict[str, Array]
    options: dict[str, Any] = field(default_factory=dict)
    observed: dict[str, Array] = field(default_factory=dict)
    name: str = ""

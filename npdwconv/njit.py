"""Compiled callers: the public operators inside functions that Numba compiles (``@njit``).

Numba calls `register_all` itself, by the package's entry point in the group ``numba_extensions``, before it compiles
anything: nothing has to be imported for it. A call runs on one thread, whatever `set_num_threads` says: its caller may
be one of many.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import npdwconv
from npdwconv.causal import CausalGrads
from npdwconv.kernels.cpu.calls import arrays, failure, gradients, like, register
from npdwconv.plans import Grads
from npdwconv.separable import SeparableGrads
from npdwconv.threads import one_thread

_RANKED = {
    "depthwise_conv{}d": like("x"),
    "depthwise_conv{}d_backward": gradients(Grads),
    "depthwise_conv{}d_input_grad": like("grad_out"),
    "depthwise_conv{}d_weight_grad": like("grad_out"),
    "depthwise_conv_transpose{}d": like("x"),
    "depthwise_conv_transpose{}d_backward": gradients(Grads),
    "separable_conv{}d": like("x"),
    "separable_conv{}d_backward": gradients(SeparableGrads),
}
# operator -> what it returns
RESULTS = {name.format(rank): result for name, result in _RANKED.items() for rank in (1, 2, 3)} | {
    "pointwise_conv": like("x"),
    "pointwise_conv_backward": gradients(Grads),
    "depthwise_conv_tokens": like("x"),
    "depthwise_conv_tokens_backward": gradients(Grads),
    "causal_depthwise_conv1d": arrays("x", "x"),
    "causal_depthwise_conv1d_backward": gradients(CausalGrads),
    "fold_batchnorm": arrays("weight", "gamma"),
}


class Call(NamedTuple):
    """An operator with the arguments that were known at compilation; takes the others, in the order of ``names``."""

    operator: str
    known: Mapping[str, Any]
    names: tuple[str, ...]

    def __call__(self, *values: Any) -> tuple[Any, tuple[int, str] | None]:
        arguments = {**self.known, **dict(zip(self.names, values, strict=True))}
        try:
            with one_thread():
                return getattr(npdwconv, self.operator)(**arguments), None
        except Exception as error:  # raised again where the call stands
            return None, failure(error)


def register_all() -> None:
    """Tell Numba of every operator."""
    for name, result in RESULTS.items():
        register(getattr(npdwconv, name), Call, result)

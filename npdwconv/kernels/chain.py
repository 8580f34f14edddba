"""The chain rule through the two stages of a separable convolution, by any backend's kernels for each.

The middle value is never rounded: it, and its gradient, have the dtype in which sums are accumulated.
"""

from __future__ import annotations

from collections.abc import Callable
from types import ModuleType

from npdwconv.activations import Activation
from npdwconv.geometry import ConvGeometry
from npdwconv.layouts import Array, shape_of
from npdwconv.memory import empty
from npdwconv.precision import accumulator


def empty_middle(x: Array, weight: Array, g: ConvGeometry, layout: str) -> Array:
    """An array for the value between the stages."""
    shape = shape_of(layout, x.shape[0], weight.shape[0], g.out)
    return empty(x, shape, accumulator(x.dtype))


def separable_bwd_of(
    depthwise: ModuleType, pointwise: ModuleType, bias_bwd: Callable[[Array, Array, str], None]
) -> Callable[..., None]:
    """``separable_bwd`` of the backend whose kernels these are."""

    def separable_bwd(
        grad_out: Array,
        x: Array,
        depthwise_weight: Array,
        depthwise_bias: Array | None,
        pointwise_weight: Array,
        bias: Array | None,
        grad_x: Array | None,
        grad_depthwise_weight: Array | None,
        grad_depthwise_bias: Array | None,
        grad_pointwise_weight: Array | None,
        grad_bias: Array | None,
        g: ConvGeometry,
        layout: str,
        depthwise_activation: Activation | None,
        activation: Activation | None,
    ) -> None:
        """The chain rule through both stages; a gradient that is None is not computed."""
        middle = empty_middle(x, depthwise_weight, g, layout)
        grad_z = grad_out
        if activation is not None or grad_pointwise_weight is not None:
            depthwise.depthwise_fwd(x, depthwise_weight, depthwise_bias, middle, g, layout, depthwise_activation)
        if activation is not None:
            grad_z = empty(middle, grad_out.shape)
            pointwise.pointwise_bwd_activation(grad_out, middle, pointwise_weight, bias, grad_z, layout, activation)
        if grad_bias is not None:
            bias_bwd(grad_z, grad_bias, layout)
        if grad_pointwise_weight is not None:
            pointwise.pointwise_bwd_weight(grad_z, middle, grad_pointwise_weight, layout)
        if grad_x is None and grad_depthwise_weight is None and grad_depthwise_bias is None:
            return
        grad_middle = empty(middle, middle.shape)
        pointwise.pointwise_bwd_input(grad_z, pointwise_weight, grad_middle, layout)
        if depthwise_activation is not None:
            depthwise.depthwise_bwd_activation(
                grad_middle, x, depthwise_weight, depthwise_bias, grad_middle, g, layout, depthwise_activation
            )
        if grad_depthwise_bias is not None:
            bias_bwd(grad_middle, grad_depthwise_bias, layout)
        if grad_depthwise_weight is not None:
            depthwise.depthwise_bwd_weight(grad_middle, x, grad_depthwise_weight, g, layout)
        if grad_x is not None:
            depthwise.depthwise_bwd_input(grad_middle, depthwise_weight, grad_x, g, layout)

    return separable_bwd

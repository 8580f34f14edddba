"""NumPy kernels for separable convolution: depthwise, activation, pointwise. The middle value is never rounded."""

from __future__ import annotations

from npdwconv.activations import Activation
from npdwconv.geometry import ConvGeometry
from npdwconv.kernels.chain import empty_middle, separable_bwd_of
from npdwconv.kernels.reference import depthwise, pointwise
from npdwconv.kernels.reference.epilogue import bias_bwd
from npdwconv.layouts import Array


def separable_fwd(
    x: Array,
    depthwise_weight: Array,
    depthwise_bias: Array | None,
    pointwise_weight: Array,
    bias: Array | None,
    out: Array,
    g: ConvGeometry,
    layout: str,
    depthwise_activation: Activation | None,
    activation: Activation | None,
) -> None:
    """out = pointwise(middle), middle = depthwise(x), each with its bias and activation."""
    middle = empty_middle(x, depthwise_weight, g, layout)
    depthwise.depthwise_fwd(x, depthwise_weight, depthwise_bias, middle, g, layout, depthwise_activation)
    pointwise.pointwise_fwd(middle, pointwise_weight, bias, out, layout, activation)


separable_bwd = separable_bwd_of(depthwise, pointwise, bias_bwd)

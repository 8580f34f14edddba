"""The CUDA room's separable convolution: depthwise, activation, pointwise. The middle value is never rounded."""

from __future__ import annotations

from npdwconv.activations import Activation
from npdwconv.geometry import ConvGeometry
from npdwconv.kernels.chain import empty_middle, separable_bwd_of
from npdwconv.kernels.cuda import depthwise, pointwise
from npdwconv.kernels.cuda.entry import Operand, entered
from npdwconv.kernels.cuda.epilogue import bias_bwd


def separable_fwd(
    x: Operand,
    depthwise_weight: Operand,
    depthwise_bias: Operand,
    pointwise_weight: Operand,
    bias: Operand,
    out: Operand,
    g: ConvGeometry,
    layout: str,
    depthwise_activation: Activation | None,
    activation: Activation | None,
) -> None:
    """out = pointwise(middle), middle = depthwise(x), each with its bias and activation."""
    with entered((x, depthwise_weight, depthwise_bias, pointwise_weight, bias), (out,)) as (xs, w, b, pw, pb, result):
        middle = empty_middle(xs, w, g, layout)
        depthwise.depthwise_fwd(xs, w, b, middle, g, layout, depthwise_activation)
        pointwise.pointwise_fwd(middle, pw, pb, result, layout, activation)


separable_bwd = separable_bwd_of(depthwise, pointwise, bias_bwd)

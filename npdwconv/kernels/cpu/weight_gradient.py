"""Placeholder until the kernels are here."""

from __future__ import annotations

from npdwconv.geometry import ConvGeometry
from npdwconv.kernels.reference import depthwise
from npdwconv.layouts import Array, split_shape


def correlate(z: Array, x: Array, grad_weight: Array, g: ConvGeometry, layout: str) -> None:
    turned = split_shape(layout, x.shape)[1] > split_shape(layout, z.shape)[1]
    run = depthwise.transpose_bwd_weight if turned else depthwise.depthwise_bwd_weight
    run(*((x, z) if turned else (z, x)), grad_weight, g, layout)

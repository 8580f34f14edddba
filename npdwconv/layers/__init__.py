"""Layer room: parameters and what backward needs; the arithmetic is the operators'.

Every layer begins in evaluation mode. A ``rng`` that is an int seeds a generator of the layer's own, so layers of one
shape and seed begin alike: hand one ``numpy.random.Generator`` to all layers of a network.
"""

from npdwconv.layers.base import Arrays, Keys, Layer, Module
from npdwconv.layers.container import Container, OnLayer, Residual, Sequential
from npdwconv.layers.convolution import Convolution, DepthwiseConv1d, DepthwiseConv2d, DepthwiseConv3d, PointwiseConv
from npdwconv.layers.elementwise import Activation, GlobalAveragePool
from npdwconv.layers.normalization import BatchNorm
from npdwconv.layers.separable import SeparableConv1d, SeparableConv2d, SeparableConv3d, StandardConv2d
from npdwconv.layers.tokens import DWConv

__all__ = [
    "Activation",
    "Arrays",
    "BatchNorm",
    "Container",
    "Convolution",
    "DWConv",
    "DepthwiseConv1d",
    "DepthwiseConv2d",
    "DepthwiseConv3d",
    "GlobalAveragePool",
    "Keys",
    "Layer",
    "Module",
    "OnLayer",
    "PointwiseConv",
    "Residual",
    "SeparableConv1d",
    "SeparableConv2d",
    "SeparableConv3d",
    "Sequential",
    "StandardConv2d",
]

"""Layers to test, one of each kind, with small integers in them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from npdwconv.layers import (
    Activation,
    BatchNorm,
    DepthwiseConv1d,
    DepthwiseConv2d,
    DepthwiseConv3d,
    GlobalAveragePool,
    Layer,
    Module,
    PointwiseConv,
    Residual,
    SeparableConv1d,
    SeparableConv2d,
    SeparableConv3d,
    Sequential,
    StandardConv2d,
)

F64 = "float64"
Made = tuple[Layer, tuple[int, ...]]

# each with the shape of an input
LAYERS: dict[str, Callable[[], Made]] = {
    "depthwise1d": lambda: (DepthwiseConv1d(3, 3, padding="causal", dtype=F64), (2, 3, 7)),
    "depthwise2d": lambda: (DepthwiseConv2d(3, (3, 2), stride=(2, 1), padding=((1, 0), 1), dtype=F64), (2, 3, 7, 5)),
    "depthwise2d_multiplier": lambda: (DepthwiseConv2d(3, 3, depth_multiplier=2, bias=False, dtype=F64), (2, 3, 5, 5)),
    "depthwise2d_circular": lambda: (
        DepthwiseConv2d(2, 3, padding=1, padding_mode="circular", dtype=F64),
        (1, 2, 4, 4),
    ),
    "depthwise2d_last": lambda: (DepthwiseConv2d(3, 3, dilation=2, layout="channels_last", dtype=F64), (2, 6, 6, 3)),
    "depthwise3d": lambda: (DepthwiseConv3d(2, (1, 3, 3), dtype=F64), (1, 2, 2, 4, 5)),
    "pointwise": lambda: (PointwiseConv(3, 4, dtype=F64), (2, 3, 4, 5)),
    "pointwise_last": lambda: (PointwiseConv(3, 4, layout="channels_last", dtype=F64), (2, 4, 5, 3)),
    "linear": lambda: (PointwiseConv(3, 4, spatial_rank=0, dtype=F64), (2, 3)),
    "separable1d": lambda: (SeparableConv1d(3, 4, 3, dtype=F64), (2, 3, 6)),
    "separable2d": lambda: (
        SeparableConv2d(3, 4, 3, stride=2, padding="same", depthwise_bias=True, dtype=F64),
        (2, 3, 5, 6),
    ),
    "separable3d": lambda: (SeparableConv3d(2, 3, (1, 2, 2), bias=False, dtype=F64), (1, 2, 2, 3, 3)),
    "standard2d": lambda: (StandardConv2d(3, 4, (3, 2), stride=2, padding="same", dtype=F64), (2, 3, 6, 5)),
    "standard2d_last": lambda: (StandardConv2d(2, 3, 3, dilation=2, layout="channels_last", dtype=F64), (2, 6, 6, 2)),
    "pool": lambda: (GlobalAveragePool(), (2, 3, 4, 4)),
    "pool_last": lambda: (GlobalAveragePool(layout="channels_last"), (2, 4, 2, 3)),
    "residual": lambda: (Residual(Sequential(DepthwiseConv2d(3, 3, padding=1, dtype=F64))), (2, 3, 4, 4)),
    "sequential": lambda: (Sequential(PointwiseConv(3, 4, dtype=F64), DepthwiseConv2d(4, 3, dtype=F64)), (1, 3, 5, 5)),
}


every_layer = pytest.mark.parametrize("case", LAYERS)


def make(case: str) -> Made:
    """A layer with small integers for parameters, and the shape of an input."""
    layer, shape = LAYERS[case]()
    set_integers(layer)
    return layer, shape


def integers(seed: int, shape: tuple[int, ...], dtype: Any = np.float64) -> Any:
    return np.random.default_rng(seed).integers(-4, 5, shape).astype(dtype)


def set_integers(layer: Module, seed: int = 0) -> None:
    for index, array in enumerate(layer.params.values()):
        array[...] = integers(seed + index, array.shape)


def block(layout: str = "channels_first", dtype: Any = np.float64) -> Sequential:
    """A MobileNet block whose batch norms have dyadic scales, so that folding is exact."""
    options: dict[str, Any] = {"layout": layout, "dtype": dtype}
    net = Sequential(
        DepthwiseConv2d(4, 3, padding=1, bias=False, **options),
        BatchNorm(4, eps=0.0, **options),
        Activation("relu6"),
        PointwiseConv(4, 6, **options),
        BatchNorm(6, eps=0.0, **options),
    )
    set_integers(net)
    for norm in (net[1], net[4]):
        norm.buffers["running_mean"][...] = integers(8, norm.buffers["running_mean"].shape)
        norm.buffers["running_var"][...] = 4.0 ** integers(9, norm.buffers["running_var"].shape)
    return net

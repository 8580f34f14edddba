"""Layer room: the depthwise convolution inside a vision transformer's feed-forward block."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from npdwconv.arguments import as_array
from npdwconv.errors import ShapeError
from npdwconv.layers.base import Arrays, Module, join
from npdwconv.layers.initial import Rng, activation_name, uniform
from npdwconv.layouts import Array
from npdwconv.options import integer
from npdwconv.tokens import depthwise_conv_tokens, depthwise_conv_tokens_backward


class DWConv(Module):
    """The 3x3 depthwise convolution of PVT v2 and of SegFormer's Mix-FFN, on tokens (N, H·W, C).

    W. Wang et al., "PVT v2", arXiv:2106.13797; E. Xie et al., "SegFormer", arXiv:2105.15203, section 3.1. The
    parameters are named as in the code published with both: ``dwconv.weight`` (C, 1, 3, 3) and ``dwconv.bias`` (C,).

    Args:
        dim: C.
        activation: applied in the same pass; "gelu" is what both networks apply next. None: nothing.
        dtype: of the parameters.
        rng: a seed, or a Generator to draw the initial values from.

    >>> layer = DWConv(8)
    >>> y = layer(np.ones((2, 12, 8), np.float32), 3, 4)
    >>> y.shape, layer.backward(np.ones_like(y)).shape, sorted(layer.grads)
    ((2, 12, 8), (2, 12, 8), ['dwconv.bias', 'dwconv.weight'])
    """

    def __init__(
        self, dim: int = 768, *, activation: str | None = None, dtype: npt.DTypeLike = np.float32, rng: Rng = 0
    ) -> None:
        super().__init__()
        self.dim = integer("dim", dim, least=0)
        self.activation = activation_name("activation", activation)
        params = uniform(rng, dtype, (self.dim, 1, 3, 3), True)
        self._params = Arrays({join("dwconv", name): array for name, array in params.items()})

    def __repr__(self) -> str:
        return f"DWConv({self.dim})"

    def __call__(self, x: Any, H: int, W: int) -> Array:
        return self.forward(x, H, W)

    def forward(self, x: Any, H: int, W: int) -> Array:
        """The convolution of tokens (N, H·W, C), which lie row by row on a grid of H rows; of the same shape."""
        shape = tuple(getattr(x, "shape", ()))
        if len(shape) == 3 and shape[2] != self.dim:
            raise ShapeError(
                f"{self!r}: x has {shape[2]} channels (x {shape}), needed {self.dim}; tokens are (N, H·W, C)"
            )
        y = depthwise_conv_tokens(x, *self._params.values(), grid=(H, W), padding=1, activation=self.activation)
        self._keep(x, (H, W))
        return y

    def backward(self, grad_out: Any) -> Array:
        """The gradient in the last ``x``; fills ``grads``."""
        x, grid = self._recall()
        grads = depthwise_conv_tokens_backward(
            grad_out, x, *self._params.values(), grid=grid, padding=1, activation=self.activation
        )
        self._fill({"dwconv.weight": grads.weight, "dwconv.bias": grads.bias})
        return as_array("grad_x", grads.x)

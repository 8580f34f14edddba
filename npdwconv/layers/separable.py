"""Layer room: depthwise and pointwise convolution in one pass, and the standard convolution as one of these."""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from npdwconv.kernels.steps import Step
from npdwconv.layers.base import join
from npdwconv.layers.convolution import Arranged, Convolution, Pack, Padding, window
from npdwconv.layers.initial import Rng, activation_name, uniform
from npdwconv.layouts import Array
from npdwconv.options import integer, per_axis
from npdwconv.plans import ConvOptions
from npdwconv.separable import (
    separable_conv1d,
    separable_conv1d_backward,
    separable_conv2d,
    separable_conv2d_backward,
    separable_conv3d,
    separable_conv3d_backward,
    separable_plan,
)


class _OnePass(Convolution):
    """What the layers share that a separable convolution runs."""

    _family = "separable"
    _rank: ClassVar[int]

    def _arrange(self, x: Array, pack: Pack) -> Arranged:
        given = {"depthwise_bias": None, **self._packed, **self._all_options()}
        operands = x, *(given.pop(name) for name in ("depthwise_weight", "depthwise_bias", "pointwise_weight", "bias"))
        activation = given.pop("activation")
        options = ConvOptions(activation=given.pop("depthwise_activation", None), **given)
        plan = separable_plan(repr(self), self._rank, operands, options, activation)
        first = plan.depthwise
        stages = first.weight, first.bias, self._packed_once(plan.weight, pack), plan.bias
        return Arranged(plan.shape, stages, (first.geometry, self.layout, first.activation, plan.activation))


class SeparableConv(_OnePass):
    """Depthwise and pointwise convolution in one pass, in 1, 2 or 3 dimensions, by the classes that follow."""

    kind = "separable"
    _operands: ClassVar[dict[str, str]] = {
        "depthwise_weight": "depthwise.weight",
        "depthwise_bias": "depthwise.bias",
        "pointwise_weight": "pointwise.weight",
        "bias": "pointwise.bias",
    }

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | tuple[int, ...],
        *,
        stride: int | tuple[int, ...] = 1,
        padding: Padding = 0,
        dilation: int | tuple[int, ...] = 1,
        depth_multiplier: int = 1,
        bias: bool = True,
        depthwise_bias: bool = False,
        padding_mode: str = "zeros",
        layout: str = "channels_first",
        depthwise_activation: str | None = None,
        activation: str | None = None,
        dtype: npt.DTypeLike = np.float32,
        rng: Rng = 0,
    ) -> None:
        kernel = per_axis("kernel_size", kernel_size, self._rank)
        channels = integer("in_channels", in_channels, least=0), integer("out_channels", out_channels, least=0)
        self.depth_multiplier = integer("depth_multiplier", depth_multiplier, least=1)
        middle = channels[0] * self.depth_multiplier
        shared = np.random.default_rng(rng)
        depthwise = uniform(shared, dtype, (middle, 1, *kernel), depthwise_bias)
        pointwise = uniform(shared, dtype, (channels[1], middle, *(1,) * self._rank), bias)
        params = {join("depthwise", k): v for k, v in depthwise.items()} | {
            join("pointwise", k): v for k, v in pointwise.items()
        }
        options = window(self._rank, stride, padding, dilation, padding_mode)
        options["depthwise_activation"] = activation_name("depthwise_activation", depthwise_activation)
        super().__init__(channels, kernel, params, layout, activation, options)


class SeparableConv1d(SeparableConv):
    """`separable_conv1d` with parameters named as those of a module with ``depthwise`` and ``pointwise`` in it.

    >>> SeparableConv1d(4, 6, 3)(np.ones((1, 4, 10), np.float32)).shape
    (1, 6, 8)
    """

    _rank = 1
    _operator = staticmethod(separable_conv1d)
    _adjoint = staticmethod(separable_conv1d_backward)


class SeparableConv2d(SeparableConv):
    """`separable_conv2d` with parameters named as those of a module with ``depthwise`` and ``pointwise`` in it.

    >>> layer = SeparableConv2d(4, 6, 3, padding=1)
    >>> layer(np.ones((1, 4, 9, 9), np.float32)).shape
    (1, 6, 9, 9)
    >>> {name: array.shape for name, array in layer.params.items()}
    {'depthwise.weight': (4, 1, 3, 3), 'pointwise.weight': (6, 4, 1, 1), 'pointwise.bias': (6,)}
    """

    _rank = 2
    _operator = staticmethod(separable_conv2d)
    _adjoint = staticmethod(separable_conv2d_backward)


class SeparableConv3d(SeparableConv):
    """`separable_conv3d` with parameters named as those of a module with ``depthwise`` and ``pointwise`` in it.

    >>> SeparableConv3d(4, 6, (1, 3, 3))(np.ones((1, 4, 2, 5, 5), np.float32)).shape
    (1, 6, 2, 3, 3)
    """

    _rank = 3
    _operator = staticmethod(separable_conv3d)
    _adjoint = staticmethod(separable_conv3d_backward)


class StandardConv2d(_OnePass):
    """A standard (dense) convolution, with parameters ``weight`` (K, C, R, S), ``bias`` (K,), as ``torch.nn.Conv2d``.

    It is a separable one: give every channel R·S depthwise kernels, each 1 at one tap and 0 elsewhere, so that the
    middle value holds every element of the window, ``middle[c·R·S + r·S + s] = x[c, p·stride + r·dilation − low, …]``;
    the pointwise convolution with ``weight.reshape(K, C·R·S)`` then is ``Σ_crs weight[k, c, r, s] · x[c, …]``. So
    `separable_conv2d` runs it, forward and backward. For the first layer of a network, which sees three channels: the
    middle value is R·S times the size of x. An Inf, which other taps multiply by 0, makes NaN of its windows' outputs.

    >>> layer = StandardConv2d(3, 8, 3, stride=2, padding="same")
    >>> layer(np.ones((1, 3, 9, 9), np.float32)).shape
    (1, 8, 5, 5)
    """

    kind = "standard"
    _rank = 2
    _operator = staticmethod(separable_conv2d)
    _adjoint = staticmethod(separable_conv2d_backward)
    _operands: ClassVar[dict[str, str]] = {"pointwise_weight": "weight", "bias": "bias"}

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | tuple[int, int],
        *,
        stride: int | tuple[int, ...] = 1,
        padding: Padding = 0,
        dilation: int | tuple[int, ...] = 1,
        bias: bool = True,
        padding_mode: str = "zeros",
        layout: str = "channels_first",
        activation: str | None = None,
        dtype: npt.DTypeLike = np.float32,
        rng: Rng = 0,
    ) -> None:
        kernel = per_axis("kernel_size", kernel_size, 2)
        channels = integer("in_channels", in_channels, least=0), integer("out_channels", out_channels, least=0)
        params = uniform(rng, dtype, (channels[1], channels[0], *kernel), bias)
        options = window(2, stride, padding, dilation, padding_mode)
        options["depthwise_weight"] = single_taps(channels[0], kernel, params["weight"].dtype)
        super().__init__(channels, kernel, params, layout, activation, options)

    def steps(self) -> list[Step] | None:
        """None where the weight is not finite, for as a step it meets the zeros of padding; or dilated."""
        plain = set(self.options["dilation"]) == {1} and bool(np.isfinite(self._params["weight"]).all())
        return super().steps() if plain else None

    def _current(self) -> dict[str, Array | None]:
        operands = super()._current()
        return operands | {"pointwise_weight": self._params["weight"].reshape(self.out_channels, -1)}


def single_taps(channels: int, kernel: tuple[int, ...], dtype: np.dtype[Any]) -> Array:
    """Depthwise kernels (C·R·S, 1, R, S), of which the one at c·R·S + t is 1 at tap t alone."""
    taps = int(np.prod(kernel))
    return np.tile(np.eye(taps, dtype=dtype).reshape(taps, 1, *kernel), (channels, *(1,) * (1 + len(kernel))))

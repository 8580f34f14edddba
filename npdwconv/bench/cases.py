"""Cases to measure: one operation at one shape, and the work that it takes. No arrays.

Shapes are those of published networks. MobileNet: A. Howard et al., arXiv:1704.04861; V2: M. Sandler et al.,
arXiv:1801.04381; V3: A. Howard et al., arXiv:1905.02244. EfficientNet: M. Tan, Q. Le, arXiv:1905.11946. ConvNeXt:
Z. Liu et al., arXiv:2201.03545. SegFormer: E. Xie et al., arXiv:2105.15203. RepLKNet: X. Ding et al.,
arXiv:2203.06717. Conformer: A. Gulati et al., arXiv:2005.08100. Mamba: A. Gu, T. Dao, arXiv:2312.00752. Dilated:
L.-C. Chen et al., arXiv:1802.02611.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from math import prod

from npdwconv.geometry import Axis, ConvGeometry, conv_geometry

OPERATIONS = (
    "depthwise_fwd",
    "depthwise_bwd_input",
    "depthwise_bwd_weight",
    "pointwise_fwd",
    "pointwise_bwd_input",
    "pointwise_bwd_weight",
    "separable_fwd",
    "tokens_fwd",
    "network_fwd",
)
BATCHES = (1, 8)
ITEMSIZE = 4  # everything measured is float32
NETWORK_MULTIPLY_ADDS = 385_000_000  # EfficientNet-Lite0 at 224x224: `npdwconv demo` adds them up
NETWORK_PARAMETERS = 4_650_000


@dataclass(frozen=True)
class Case:
    """One operation at one shape.

    `outputs` is K, of pointwise and separable cases; `source` the network; `quick` whether the short run has it.
    """

    operation: str
    batch: int
    channels: int
    size: tuple[int, ...]
    kernel: int = 1
    stride: int = 1
    dilation: int = 1
    multiplier: int = 1
    outputs: int = 0
    causal: bool = False
    source: str = ""
    quick: bool = False

    @property
    def name(self) -> str:
        """What one reads in a table: ``n1-c32-112x112-k3-s2``."""
        parts = [f"n{self.batch}", f"c{self.channels}" + (f"to{self.outputs}" if self.outputs else "")]
        parts += [f"m{self.multiplier}"] * (self.multiplier > 1) + ["x".join(map(str, self.size))]
        parts += [f"k{self.kernel}"] * (self.kernel > 1) + [f"s{self.stride}"] * (self.stride > 1)
        return "-".join([*parts, *[f"d{self.dilation}"] * (self.dilation > 1)])

    @property
    def title(self) -> str:
        """The name, and which gradient it is where it is one: ``n1-c32-112x112-k3 (weight)``."""
        _, gradient, operand = self.operation.partition("_bwd_")
        return f"{self.name} ({operand})" if gradient else self.name

    @property
    def id(self) -> str:
        return f"{self.operation}/{self.name}"

    @property
    def rank(self) -> int:
        return len(self.size)

    @property
    def padding(self) -> tuple[tuple[int, int], ...]:
        """Low and high on every axis: what keeps the extent at stride 1, or all in front where causal."""
        reach = (self.kernel - 1) * self.dilation
        return ((reach, 0) if self.causal else (reach // 2, reach - reach // 2),) * self.rank

    @property
    def geometry(self) -> ConvGeometry:
        strides, dilations = (self.stride,) * self.rank, (self.dilation,) * self.rank
        return conv_geometry(self.size, (self.kernel,) * self.rank, strides, dilations, self.padding)

    @property
    def middle(self) -> int:
        """C·M, the channels of a depthwise result."""
        return self.channels * self.multiplier

    @property
    def taps(self) -> int:
        """Of the depthwise part; 0 where there is none."""
        return prod((self.kernel,) * self.rank) if self.kernel > 1 else 0

    @property
    def pixels(self) -> int:
        """N times the output's extent."""
        return self.batch * prod(self.geometry.out)

    @property
    def multiply_adds(self) -> int:
        """Multiply-adds on real inputs; what falls on padding takes none."""
        if self.operation == "network_fwd":
            return self.batch * NETWORK_MULTIPLY_ADDS
        depthwise = self.batch * prod(map(_meetings, self.geometry.axes)) if self.taps else 0
        return self.middle * (depthwise + self.pixels * self.outputs)

    @property
    def flops(self) -> int:
        return 2 * self.multiply_adds

    @property
    def bytes(self) -> int:
        """The least that any implementation moves: each operand read once, the result written once."""
        if self.operation == "network_fwd":
            return ITEMSIZE * (NETWORK_PARAMETERS + self.batch * self.channels * prod(self.size))
        weights = self.middle * (self.taps + self.outputs)
        values = self.batch * self.channels * prod(self.size) + self.pixels * (self.outputs or self.middle)
        return ITEMSIZE * (weights + values)


def _meetings(axis: Axis) -> int:
    """Pairs of an output and a tap that read a real input."""
    reached = (axis.reach(tap)[0] for tap in range(axis.kernel))
    return sum(outputs.stop - outputs.start for outputs in reached)


# channels, extent, kernel, stride
DEPTHWISE: dict[str, tuple[tuple[int, int, int, int], ...]] = {
    "MobileNetV1": (
        (32, 112, 3, 1),
        (64, 112, 3, 2),
        (128, 56, 3, 1),
        (128, 56, 3, 2),
        (256, 28, 3, 1),
        (256, 28, 3, 2),
        (512, 14, 3, 1),
        (512, 14, 3, 2),
        (1024, 7, 3, 1),
    ),
    "MobileNetV2": (
        (96, 112, 3, 2),
        (144, 56, 3, 1),
        (144, 56, 3, 2),
        (192, 28, 3, 1),
        (384, 14, 3, 1),
        (576, 14, 3, 1),
        (576, 14, 3, 2),
        (960, 7, 3, 1),
    ),
    "MobileNetV3-L": (
        (72, 56, 5, 2),
        (120, 28, 5, 1),
        (240, 28, 3, 2),
        (200, 14, 3, 1),
        (672, 14, 5, 2),
        (960, 7, 5, 1),
    ),
    "EfficientNet": (
        (144, 56, 5, 2),
        (240, 28, 5, 1),
        (480, 14, 5, 1),
        (672, 14, 5, 1),
        (1152, 7, 5, 1),
        (1152, 7, 3, 1),
    ),
    "ConvNeXt-T": ((96, 56, 7, 1), (192, 28, 7, 1), (384, 14, 7, 1), (768, 7, 7, 1)),
    "RepLKNet": ((128, 56, 31, 1), (256, 28, 29, 1), (512, 14, 27, 1), (1024, 7, 13, 1)),
}
SHORT = {(32, 112, 3, 1), (256, 28, 3, 1), (512, 14, 3, 2), (1024, 7, 3, 1), (240, 28, 5, 1), (96, 56, 7, 1)}

# channels, outputs, extent
POINTWISE: dict[str, tuple[tuple[int, int, int], ...]] = {
    "MobileNetV1": (
        (32, 64, 112),
        (64, 128, 56),
        (128, 128, 56),
        (128, 256, 28),
        (256, 256, 28),
        (256, 512, 14),
        (512, 512, 14),
        (512, 1024, 7),
        (1024, 1024, 7),
    ),
    "MobileNetV2": ((32, 16, 112), (16, 96, 112), (24, 144, 56), (144, 24, 56), (384, 64, 14), (160, 960, 7)),
    "EfficientNet": ((240, 40, 28), (80, 480, 14), (672, 112, 14), (192, 1152, 7), (1152, 320, 7), (320, 1280, 7)),
}
SHORT_POINTWISE = {(24, 144, 56), (128, 128, 56), (512, 512, 14), (1024, 1024, 7)}

# channels, outputs, extent, stride
SEPARABLE = ((32, 64, 112, 1), (128, 128, 56, 1), (256, 512, 28, 2), (512, 512, 14, 1), (1024, 1024, 7, 1))
TOKENS = ((128, 128), (256, 64), (640, 32), (1024, 16))


def cases() -> list[Case]:
    """Every case, families in order, batch 1 before batch 8."""
    forward = [*_depthwise()]
    found = [
        *forward,
        *(replace(case, operation=name) for name in OPERATIONS[1:3] for case in forward),
        *(replace(case, operation=name) for name in OPERATIONS[3:6] for case in _pointwise()),
        *_separable(),
        *_tokens(),
        Case("network_fwd", 1, 3, (224, 224), source="EfficientNet-Lite0", quick=True),
    ]
    return list(dict.fromkeys(found))


def _depthwise() -> Iterator[Case]:
    name = OPERATIONS[0]
    for batch in BATCHES:
        for source, shapes in DEPTHWISE.items():
            for shape in shapes:
                channels, extent, kernel, stride = shape
                quick = batch == 1 and shape in SHORT
                yield Case(name, batch, channels, (extent, extent), kernel, stride, source=source, quick=quick)
        yield Case(name, 16, 256, (400,), 31, source="Conformer")
        yield Case(name, batch, 1536, (1024,), 4, causal=True, source="Mamba")
        yield Case(name, 1, 5120, (2048,), 4, causal=True, source="Mamba")
        for dilation in (6, 12, 18):
            yield Case(name, batch, 256, (33, 33), 3, dilation=dilation, source="dilated")
        yield Case(name, batch, 64, (64, 64), 7, 2, multiplier=2, source="multiplier 2")


def _pointwise() -> Iterator[Case]:
    for batch in BATCHES:
        for source, shapes in POINTWISE.items():
            for shape in shapes:
                channels, outputs, extent = shape
                quick = batch == 1 and shape in SHORT_POINTWISE
                yield Case("", batch, channels, (extent, extent), outputs=outputs, source=source, quick=quick)


def _separable() -> Iterator[Case]:
    for batch in BATCHES:
        for channels, outputs, extent, stride in SEPARABLE:
            quick = batch == 1 and extent in (56, 14)
            size = (extent, extent)
            yield Case(
                OPERATIONS[6], batch, channels, size, 3, stride, outputs=outputs, source="MobileNetV1", quick=quick
            )


def _tokens() -> Iterator[Case]:
    for batch in BATCHES:
        for channels, extent in TOKENS:
            quick = batch == 1 and extent in (128, 16)
            yield Case(OPERATIONS[7], batch, channels, (extent, extent), 3, source="SegFormer-B0", quick=quick)

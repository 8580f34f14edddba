"""Accounting room: parameters, multiply-adds and bytes of a convolution, from its extents alone. No arrays."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod

from npdwconv.errors import OptionError, ShapeError
from npdwconv.geometry import conv_geometry
from npdwconv.options import Pads, integer, one_of, padding_form, per_axis

__all__ = ["KINDS", "Cost", "cost"]

KINDS = ("standard", "depthwise", "pointwise", "separable")


@dataclass(frozen=True)
class Cost:
    """What one convolution of one image takes.

    A bias counts among the parameters and the bytes; its additions are no multiply-adds. Every operand is counted as
    read once and the result as written once, so the bytes are the least that any implementation moves.
    """

    kind: str
    out_channels: int
    output_size: tuple[int, ...]
    parameters: int
    multiply_adds: int
    bytes_read: int
    bytes_written: int

    @property
    def bytes(self) -> int:
        """Bytes read and written."""
        return self.bytes_read + self.bytes_written

    @property
    def arithmetic_intensity(self) -> float:
        """Floating-point operations (two a multiply-add) per byte moved, the abscissa of the roofline model.

        S. Williams, A. Waterman, D. Patterson, "Roofline", Communications of the ACM 52 (2009) 65-76.
        """
        return 2 * self.multiply_adds / self.bytes if self.bytes else 0.0


def cost(
    kind: str,
    in_channels: int,
    out_channels: int | None,
    kernel_size: int | tuple[int, ...],
    input_size: int | tuple[int, ...],
    *,
    stride: int | tuple[int, ...] = 1,
    padding: int | str | tuple[int | tuple[int, int], ...] = 0,
    dilation: int | tuple[int, ...] = 1,
    depth_multiplier: int = 1,
    bias: bool = True,
    itemsize: int = 4,
) -> Cost:
    """Parameters, multiply-adds and bytes of one convolution of one image (N = 1).

    With kernel R x S, output P x Q and without bias, the parameters are

    * ``"standard"``: C·K·R·S
    * ``"depthwise"``: C·M·R·S
    * ``"pointwise"``: C·K
    * ``"separable"``: C·M·R·S + C·M·K

    and the multiply-adds are P·Q times as many. With M = 1 separable over standard is 1/K + 1/(R·S) (A. Howard et al.,
    "MobileNets", arXiv:1704.04861, section 3.1). In 1-D and 3-D the extents are S and T·R·S, Q and O·P·Q.

    Args:
        kind: "standard", "depthwise", "pointwise" or "separable".
        in_channels: C.
        out_channels: K; of a depthwise convolution C·M, or None to have it computed.
        kernel_size: int, or one per spatial axis; 1 for a pointwise convolution.
        input_size: int (one spatial axis), or a tuple of one to three.
        stride: int, or one per spatial axis.
        padding: any form that the operators take.
        dilation: int, or one per spatial axis.
        depth_multiplier: M, of a depthwise or separable convolution.
        bias: whether there is a bias on the output channels; a separable convolution has it after its pointwise part.
        itemsize: bytes an element; 4 is float32.

    Bytes of a separable convolution are those of one pass: its middle value is neither written nor read back.

    Raises:
        OptionError: an argument of the wrong type or out of range, or one that does not fit the kind.
        ShapeError: more than three spatial axes, or a kernel that exceeds the padded input.

    >>> separable = cost("separable", 32, 64, 3, (112, 112), padding="same", bias=False)
    >>> standard = cost("standard", 32, 64, 3, (112, 112), padding="same", bias=False)
    >>> separable.parameters, standard.parameters
    (2336, 18432)
    >>> separable.multiply_adds / standard.multiply_adds == 1 / 64 + 1 / 9
    True
    """
    one_of("kind", kind, KINDS)
    size = _input_size(input_size)
    kernel = per_axis("kernel_size", kernel_size, len(size))
    strides = per_axis("stride", stride, len(size))
    form = padding_form(padding, len(size))
    out = conv_geometry(size, kernel, strides, per_axis("dilation", dilation, len(size)), form).out
    if kind == "pointwise":
        _check_pointwise(kernel, strides, form)
    channels = integer("in_channels", in_channels, least=0)
    multiplier = _multiplier(kind, depth_multiplier)
    results = _out_channels(kind, channels, multiplier, out_channels)
    weights = _weights(kind, channels, multiplier, results, prod(kernel))
    parameters = weights + results * _flag("bias", bias)
    item = integer("itemsize", itemsize, least=1)
    return Cost(
        kind=kind,
        out_channels=results,
        output_size=out,
        parameters=parameters,
        multiply_adds=weights * prod(out),
        bytes_read=item * (channels * prod(size) + parameters),
        bytes_written=item * results * prod(out),
    )


def _weights(kind: str, channels: int, multiplier: int, results: int, taps: int) -> int:
    middle = channels * multiplier
    return {
        "standard": channels * results * taps,
        "depthwise": middle * taps,
        "pointwise": channels * results,
        "separable": middle * taps + middle * results,
    }[kind]


def _input_size(value: int | tuple[int, ...]) -> tuple[int, ...]:
    rank = len(value) if isinstance(value, (tuple, list)) else 1
    if not 1 <= rank <= 3:
        raise ShapeError(f"input_size is {value!r} with {rank} spatial axes; needed an int, or a tuple of one to three")
    return per_axis("input_size", value, rank, least=0)


def _multiplier(kind: str, value: int) -> int:
    multiplier = integer("depth_multiplier", value, least=1)
    if multiplier != 1 and kind not in ("depthwise", "separable"):
        raise OptionError(
            f"depth_multiplier is {multiplier} for kind {kind!r}, which has none; leave it out, or ask for 'separable'"
        )
    return multiplier


def _out_channels(kind: str, channels: int, multiplier: int, value: int | None) -> int:
    if kind != "depthwise":
        if value is None:
            raise OptionError(f"out_channels is None for kind {kind!r}; needed an int (only a depthwise one follows)")
        return integer("out_channels", value, least=0)
    needed = channels * multiplier
    if value is not None and integer("out_channels", value, least=0) != needed:
        raise OptionError(
            f"out_channels is {value} for a depthwise convolution of {channels} channels with depth_multiplier "
            f"{multiplier}; needed {channels}·{multiplier} = {needed}, or None to have it computed"
        )
    return needed


def _check_pointwise(kernel: tuple[int, ...], stride: tuple[int, ...], padding: str | Pads) -> None:
    padded = not isinstance(padding, str) and any(map(any, padding))
    if set(kernel) | set(stride) != {1} or padded:
        raise OptionError(
            f"kernel_size is {kernel}, stride {stride}, padding {padding!r} for kind 'pointwise'; "
            "needed kernel_size 1, stride 1 and no padding; a 1x1 convolution with stride or padding is 'standard'"
        )


def _flag(name: str, value: bool) -> bool:
    if not isinstance(value, bool):
        raise OptionError(f"{name} is {value!r}; needed True or False")
    return value

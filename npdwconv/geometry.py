"""Planning room: extents, paddings and taps of a convolution, as ints. Knows no array.

One spatial axis of a correlation is the relation ``i = o·stride + t·dilation − low`` between an input index ``i``, an
output index ``o`` and a tap ``t``. The forward map, its two adjoints and the transposed convolution are the same
relation read in different directions, so everything here is derived once, from the correlation.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import product

from npdwconv.errors import OptionError, ShapeError
from npdwconv.options import Pads

Slices = tuple[slice, ...]


@dataclass(frozen=True)
class Axis:
    """One spatial axis of a correlation: output ``o`` reads input ``o·stride + t·dilation − low`` with tap ``t``."""

    size: int
    out: int
    kernel: int
    stride: int
    dilation: int
    low: int
    high: int

    @property
    def span(self) -> int:
        """Extent of the dilated kernel."""
        return (self.kernel - 1) * self.dilation + 1

    @property
    def padded(self) -> int:
        """Extent of the input with its padding."""
        return self.low + self.size + self.high

    @property
    def output_padding(self) -> int:
        """Inputs at the high end that no output's window reaches: what the adjoint must add to its extent."""
        return self.padded - ((self.out - 1) * self.stride + self.span)

    def reach(self, tap: int) -> tuple[slice, slice]:
        """The outputs for which ``tap`` reads a real input, and those inputs: two slices of equal length."""
        offset = tap * self.dilation - self.low
        first = max(0, -(offset // self.stride))
        last = min(self.out - 1, (self.size - 1 - offset) // self.stride)
        if last < first:
            return slice(0, 0), slice(0, 0)
        start = first * self.stride + offset
        return slice(first, last + 1), slice(start, start + (last - first) * self.stride + 1, self.stride)


@dataclass(frozen=True)
class ConvGeometry:
    """The spatial axes of one correlation and how its padding is filled."""

    axes: tuple[Axis, ...]
    padding_mode: str = "zeros"

    def __hash__(self) -> int:
        return self._hash

    @cached_property
    def _hash(self) -> int:
        return hash((self.axes, self.padding_mode))

    @property
    def size(self) -> tuple[int, ...]:
        return tuple(axis.size for axis in self.axes)

    @property
    def out(self) -> tuple[int, ...]:
        return tuple(axis.out for axis in self.axes)

    @property
    def kernel(self) -> tuple[int, ...]:
        return tuple(axis.kernel for axis in self.axes)

    @property
    def padded(self) -> tuple[int, ...]:
        return tuple(axis.padded for axis in self.axes)

    @property
    def copies_border(self) -> bool:
        """Whether padding repeats real inputs (reflect, replicate, circular) and is not empty."""
        return self.padding_mode != "zeros" and self.padded != self.size

    def inside(self) -> ConvGeometry:
        """The same correlation over the already padded input."""
        return ConvGeometry(tuple(replace(axis, size=axis.padded, low=0, high=0) for axis in self.axes))

    def taps(self) -> Iterator[tuple[tuple[int, ...], Slices, Slices]]:
        """Each tap's index, the outputs it contributes to, and the inputs that it reads for them."""
        reach = [[axis.reach(tap) for tap in range(axis.kernel)] for axis in self.axes]
        for tap in product(*(range(axis.kernel) for axis in self.axes)):
            pairs = [reach[axis][t] for axis, t in enumerate(tap)]
            yield tap, tuple(o for o, _ in pairs), tuple(i for _, i in pairs)


def conv_geometry(
    size: tuple[int, ...],
    kernel: tuple[int, ...],
    stride: tuple[int, ...],
    dilation: tuple[int, ...],
    padding: str | Pads,
    padding_mode: str = "zeros",
) -> ConvGeometry:
    """The geometry of a convolution over inputs of extent ``size``.

    Raises ShapeError where a kernel exceeds the padded input, or where the padding mode has too few inputs to copy.
    """
    fields = zip(size, kernel, stride, dilation, strict=True)
    axes = tuple(
        _conv_axis(*field, _axis_padding(padding, index, last=index == len(size) - 1))
        for index, field in enumerate(fields)
    )
    for index, axis in enumerate(axes):
        _check_border(index, axis, padding_mode)
    return ConvGeometry(axes, padding_mode)


def transpose_geometry(
    size: tuple[int, ...],
    kernel: tuple[int, ...],
    stride: tuple[int, ...],
    dilation: tuple[int, ...],
    padding: str | Pads,
    output_padding: tuple[int, ...],
) -> ConvGeometry:
    """The geometry of the convolution whose adjoint is the transposed convolution of inputs of extent ``size``.

    In it ``out`` is the transposed convolution's input and ``size`` its result, which has
    ``(size − 1)·stride + span − low − high + output_padding`` elements; with SAME padding ``size·stride``.
    """
    fields = zip(size, kernel, stride, dilation, output_padding, strict=True)
    return ConvGeometry(
        tuple(
            _transpose_axis(index, *field, _axis_padding(padding, index, last=index == len(size) - 1))
            for index, field in enumerate(fields)
        )
    )


def same_padding(size: int, span: int, stride: int, name: str) -> tuple[int, int]:
    """SAME padding of one axis, the odd element at the high end (``same``) or the low end (``same_lower``).

    The output has ``⌈size / stride⌉`` elements: ``total = max((out − 1)·stride + span − size, 0)``
    (ONNX ``auto_pad``; TensorFlow's SAME is ``same``).
    """
    if name == "causal":
        return span - 1, 0
    total = max((-(-size // stride) - 1) * stride + span - size, 0)
    return (total // 2, total - total // 2) if name == "same" else (total - total // 2, total // 2)


def _axis_padding(padding: str | Pads, index: int, *, last: bool) -> str | tuple[int, int]:
    if not isinstance(padding, str):
        return padding[index]
    if padding == "valid":
        return (0, 0)
    return "same" if padding == "causal" and not last else padding


def _conv_axis(size: int, kernel: int, stride: int, dilation: int, padding: str | tuple[int, int]) -> Axis:
    span = (kernel - 1) * dilation + 1
    named = isinstance(padding, str)
    low, high = same_padding(size, span, stride, padding) if isinstance(padding, str) else padding
    padded = low + size + high
    if span > padded and not named:
        raise ShapeError(
            f"a kernel of extent {kernel} with dilation {dilation} spans {span} elements, the padded input has "
            f"{padded} ({low} + {size} + {high}); pad more, or use a smaller kernel or dilation"
        )
    out = -(-size // stride) if named else (padded - span) // stride + 1
    return Axis(size, out, kernel, stride, dilation, low, high)


def _transpose_axis(
    index: int, out: int, kernel: int, stride: int, dilation: int, extra: int, padding: str | tuple[int, int]
) -> Axis:
    span = (kernel - 1) * dilation + 1
    if extra >= max(stride, dilation):
        raise OptionError(
            f"output_padding is {extra} on spatial axis {index}; "
            f"needed less than its stride {stride} or dilation {dilation}"
        )
    if isinstance(padding, str):
        if extra:
            raise OptionError(
                f"output_padding is {extra} with padding={padding!r}, which fixes the output extent; needed 0"
            )
        low, high = same_padding(out * stride, span, stride, padding)
        return Axis(out * stride, out, kernel, stride, dilation, low, high)
    low, high = padding
    size = (out - 1) * stride + span - low - high + extra
    if size < (1 if out else 0):
        raise ShapeError(
            f"the result would have {size} elements on spatial axis {index} "
            f"(({out} - 1)·{stride} + {span} - {low} - {high} + {extra}); use less padding"
        )
    return Axis(size, out, kernel, stride, dilation, low, high)


def _check_border(index: int, axis: Axis, mode: str) -> None:
    most = {"zeros": None, "reflect": axis.size - 1, "circular": axis.size, "replicate": None if axis.size else 0}[mode]
    widest = max(axis.low, axis.high)
    if most is not None and widest > max(most, 0):
        raise ShapeError(
            f"padding_mode {mode!r} has {axis.size} inputs to copy on spatial axis {index} and can pad at most "
            f"{max(most, 0)}, the padding is ({axis.low}, {axis.high}); pad less, or use 'zeros'"
        )

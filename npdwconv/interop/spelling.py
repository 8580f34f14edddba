"""Interop room: the options of a convolution as frameworks spell them, turned into ours; imports none of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from npdwconv.errors import OptionError
from npdwconv.layouts import LAYOUTS, LETTERS
from npdwconv.options import PADDING_MODES, integer, one_of

__all__ = ["data_layout", "onnx_options", "onnx_transpose_options", "torch_options", "torch_transpose_options"]

DATA_FORMATS = {
    name: layout
    for letters in LETTERS.values()
    for name, layout in (
        (f"NC{''.join(letters.spatial)}", "channels_first"),
        (f"N{''.join(letters.spatial)}C", "channels_last"),
    )
} | {layout: layout for layout in LAYOUTS}


def data_layout(data_format: str) -> str:
    """Our ``layout`` for what a framework calls a data format: ``"NHWC"``, ``"NCW"``, ``"channels_first"`` and so on.

    >>> data_layout("NDHWC")
    'channels_last'
    """
    return DATA_FORMATS[one_of("data_format", data_format, DATA_FORMATS)]


Extents = int | tuple[int, ...]
Pairs = tuple[tuple[int, int], ...]


def integers(name: str, value: Any, *, least: int = 1) -> tuple[int, ...]:
    """A sequence of ints, which an option is that has one for each axis and none for all."""
    if not is_sequence(value):
        raise OptionError(f"{name} is {value!r} ({type(value).__name__}); needed a sequence, one int for each axis")
    return tuple(integer(f"{name}[{axis}]", entry, least=least) for axis, entry in enumerate(value))


def integers_or(name: str, value: Any, default: int, *, least: int = 1) -> Extents:
    """A sequence of ints, or the int that None stands for."""
    return default if value is None else integers(name, value, least=least)


def extents(name: str, value: Any, *, least: int = 1) -> Extents:
    """An int, or a sequence of one int per axis, as the operators take it."""
    return integers(name, value, least=least) if is_sequence(value) else integer(name, value, least=least)


def pairs(name: str, value: Any) -> Pairs:
    """A sequence of pairs (low, high), one per axis."""
    if not is_sequence(value):
        raise OptionError(f"{name} is {value!r} ({type(value).__name__}); needed a sequence of pairs (low, high)")
    return tuple(_pair(f"{name}[{axis}]", entry) for axis, entry in enumerate(value))


def ends(name: str, low: tuple[int, ...], high: tuple[int, ...]) -> Pairs:
    """Pairs (low, high) out of the low ends of all axes and the high ends."""
    if len(low) != len(high):
        raise OptionError(f"{name} is {[*low]} and {[*high]}; needed as many low ends as high ends, one for each axis")
    return tuple(zip(low, high, strict=True))


def one_rank(**options: Any) -> int | None:
    """The number of spatial axes that options have entries for, who must agree; None where none has entries.

    Args:
        options: by their names, read: an int or a name stands for all axes, a tuple has an entry for each.
    """
    entries = {name: len(value) for name, value in options.items() if isinstance(value, tuple)}
    ranks = set(entries.values())
    if len(ranks) > 1 or not ranks <= set(LETTERS):
        found = ", ".join(f"{name} has {count}" for name, count in entries.items())
        raise OptionError(f"{found}; needed one entry for each spatial axis, of which there are one to three")
    return next(iter(ranks), None)


def per_axis(value: Extents, rank: int) -> tuple[int, ...]:
    """One int for each of ``rank`` axes."""
    return (value,) * rank if isinstance(value, int) else value


def is_sequence(value: Any) -> bool:
    return isinstance(value, Sequence) and not isinstance(value, (str, bytes, bytearray, memoryview))


def needs_one(name: str, value: Extents, way_out: str) -> None:
    """An option that has no counterpart here unless it is 1 on every axis."""
    if set(per_axis(value, 1)) - {1}:
        raise OptionError(f"{name} is {value!r}; needed 1: {way_out}")


def window(stride: Any, padding: Any, dilation: Any, **more: Any) -> dict[str, Any]:
    """The options that every depthwise operator has, under our names."""
    return {"stride": stride, "padding": padding, "dilation": dilation, **more}


def _pair(name: str, entry: Any) -> tuple[int, int]:
    if not is_sequence(entry) or len(entry) != 2:
        raise OptionError(f"{name} is {entry!r}; needed a pair (low, high)")
    return integer(f"{name}[0]", entry[0], least=0), integer(f"{name}[1]", entry[1], least=0)


def torch_options(
    *, stride: Any = 1, padding: Any = 0, dilation: Any = 1, padding_mode: str = "zeros"
) -> dict[str, Any]:
    """Our options for those of ``torch.nn.Conv{n}d`` and ``torch.nn.functional.conv{n}d``.

    Args:
        stride, dilation: an int, or one per axis.
        padding: an int, or one per axis, for both sides; ``"valid"`` or ``"same"``. Where ``"same"`` pads an odd number
            of elements, the one more is at the high end, as ours; PyTorch has it at a stride of 1 only.
        padding_mode: ``"zeros"``, ``"reflect"``, ``"replicate"`` or ``"circular"``; a module's, functions have zeros.

    Raises:
        OptionError: a value that PyTorch does not take.

    >>> torch_options(stride=(2, 1), padding=1)
    {'stride': (2, 1), 'padding': 1, 'dilation': 1, 'padding_mode': 'zeros'}
    """
    steps, spread = extents("stride", stride), extents("dilation", dilation)
    if isinstance(padding, str):
        pads: Any = one_of("padding", padding, ("valid", "same"))
        if pads == "same" and set(per_axis(steps, 1)) != {1}:
            raise OptionError(f"padding is 'same' with stride {stride!r}; PyTorch has it for stride 1 only")
    else:
        pads = extents("padding", padding, least=0)
    one_rank(stride=steps, padding=pads, dilation=spread)
    return window(steps, pads, spread, padding_mode=one_of("padding_mode", padding_mode, PADDING_MODES))


def torch_transpose_options(
    *, stride: Any = 1, padding: Any = 0, output_padding: Any = 0, dilation: Any = 1
) -> dict[str, Any]:
    """Our options for those of ``torch.nn.ConvTranspose{n}d`` and ``torch.nn.functional.conv_transpose{n}d``.

    >>> torch_transpose_options(stride=2, padding=1, output_padding=1)
    {'stride': 2, 'padding': 1, 'dilation': 1, 'output_padding': 1}
    """
    steps, spread = extents("stride", stride), extents("dilation", dilation)
    taken, extra = extents("padding", padding, least=0), extents("output_padding", output_padding, least=0)
    one_rank(stride=steps, padding=taken, output_padding=extra, dilation=spread)
    return window(steps, taken, spread, output_padding=extra)


AUTO_PAD = {"VALID": "valid", "SAME_UPPER": "same", "SAME_LOWER": "same_lower"}


def onnx_options(
    *,
    auto_pad: str | bytes = "NOTSET",
    pads: Sequence[int] | None = None,
    strides: Sequence[int] | None = None,
    dilations: Sequence[int] | None = None,
    kernel_shape: Sequence[int] | None = None,
    group: int = 1,
) -> dict[str, Any]:
    """Our options for the attributes of an ONNX ``Conv`` node, which may be passed as they are: ``**attributes``.

    Args:
        auto_pad: ``"NOTSET"``, ``"VALID"``, ``"SAME_UPPER"`` or ``"SAME_LOWER"``.
        pads: the low ends of all axes, then the high ends.
        strides, dilations: one int per axis; None: 1.
        kernel_shape, group: said by the weight's shape.

    Raises:
        OptionError: a value that ONNX does not take, negative pads, or both ``pads`` and ``auto_pad``.

    >>> onnx_options(pads=[0, 1, 2, 3], strides=[2, 2])
    {'stride': (2, 2), 'padding': ((0, 2), (1, 3)), 'dilation': 1}
    >>> onnx_options(auto_pad="SAME_LOWER")["padding"]
    'same_lower'
    """
    stride, dilation = integers_or("strides", strides, 1), integers_or("dilations", dilations, 1)
    padding = _onnx_padding(auto_pad, pads)
    _onnx_kernel(kernel_shape, group, strides=stride, pads=padding, dilations=dilation)
    return window(stride, padding, dilation)


def onnx_transpose_options(
    *,
    auto_pad: str | bytes = "NOTSET",
    pads: Sequence[int] | None = None,
    strides: Sequence[int] | None = None,
    dilations: Sequence[int] | None = None,
    output_padding: Sequence[int] | None = None,
    output_shape: Sequence[int] | None = None,
    kernel_shape: Sequence[int] | None = None,
    group: int = 1,
    input_size: Sequence[int] | None = None,
) -> dict[str, Any]:
    """Our options for the attributes of an ONNX ``ConvTranspose`` node.

    Args:
        auto_pad, pads, strides, dilations, group: as in `onnx_options`.
        output_padding: elements more at the high end, one int per axis.
        output_shape: extents of the result, from which the padding follows; then ``kernel_shape``, and the spatial
            extents of the input, ``input_size``, are needed.

    Raises:
        OptionError: as `onnx_options`; ``output_shape`` without what it needs; ``output_padding`` with a SAME padding.

    >>> onnx_transpose_options(strides=[2], output_shape=[10], kernel_shape=[3], input_size=[5])
    {'stride': (2,), 'padding': ((1, 0),), 'dilation': 1, 'output_padding': (0,)}
    """
    stride, dilation = integers_or("strides", strides, 1), integers_or("dilations", dilations, 1)
    extra, padding = integers_or("output_padding", output_padding, 0, least=0), _onnx_padding(auto_pad, pads)
    given = {"strides": stride, "pads": padding, "dilations": dilation, "output_padding": extra}
    if output_shape is None:
        _onnx_kernel(kernel_shape, group, **given)
        if padding in ("same", "same_lower") and any(per_axis(extra, 1)):
            raise OptionError(f"output_padding is {output_padding!r} with auto_pad {_text(auto_pad)!r}; needed 0")
        return window(stride, padding, dilation, output_padding=extra)
    if kernel_shape is None or input_size is None:
        raise OptionError("output_shape is given; needed with it kernel_shape and input_size, which say the padding")
    wanted, size = integers("output_shape", output_shape), integers("input_size", input_size)
    kernel = _onnx_kernel(kernel_shape, group, **given, output_shape=wanted, input_size=size)
    steps, spread, more = (per_axis(value, len(wanted)) for value in (stride, dilation, extra))
    fields = zip(size, kernel, steps, spread, more, wanted, strict=True)
    total = [s * (n - 1) + e + (k - 1) * d + 1 - out for n, k, s, d, e, out in fields]
    halves = [(max(t, 0) // 2, max(t, 0) - max(t, 0) // 2) for t in total]
    taken = tuple(half if padding == "same" else half[::-1] for half in halves)
    longer = tuple(e + max(-t, 0) for e, t in zip(more, total, strict=True))
    return window(stride, taken, dilation, output_padding=longer)


def _text(value: Any) -> Any:
    return value.decode(errors="replace") if isinstance(value, bytes) else value


def _onnx_padding(auto_pad: str | bytes, pads: Sequence[int] | None) -> int | str | Pairs:
    name = one_of("auto_pad", _text(auto_pad), ("NOTSET", *AUTO_PAD))
    widths = integers_or("pads", pads, 0, least=0)
    if name != "NOTSET":
        if any(per_axis(widths, 1)):
            raise OptionError(f"pads is {pads!r} with auto_pad {name!r}; ONNX has one or the other")
        return AUTO_PAD[name]
    if isinstance(widths, int):
        return widths
    if len(widths) % 2:
        raise OptionError(f"pads is {pads!r}; needed the low ends of all axes, then the high ends")
    return ends("pads", widths[: len(widths) // 2], widths[len(widths) // 2 :])


def _onnx_kernel(kernel_shape: Any, group: Any, **options: Any) -> tuple[int, ...]:
    """The kernel's extents, none where they are left out; as many as the options have entries."""
    integer("group", group, least=1)
    kernel = integers_or("kernel_shape", kernel_shape, 1)
    one_rank(**options, kernel_shape=kernel)
    return per_axis(kernel, 0)

"""Interop room: TensorFlow's and Keras' weights and options in ours; imports neither."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from npdwconv.errors import OptionError
from npdwconv.interop.conventions import TENSORFLOW
from npdwconv.interop.spelling import DATA_FORMATS, Extents, data_layout, extents, one_rank, pairs, window
from npdwconv.options import one_of

__all__ = [
    "depthwise_weight",
    "keras_options",
    "options",
    "pointwise_weight",
    "to_depthwise_weight",
    "to_pointwise_weight",
    "to_transposed_weight",
    "transposed_weight",
]

depthwise_weight = TENSORFLOW.depthwise_weight
to_depthwise_weight = TENSORFLOW.to_depthwise_weight
transposed_weight = TENSORFLOW.transposed_weight
to_transposed_weight = TENSORFLOW.to_transposed_weight
pointwise_weight = TENSORFLOW.pointwise_weight
to_pointwise_weight = TENSORFLOW.to_pointwise_weight

PADDING = {"VALID": "valid", "SAME": "same"}
KERAS_PADDING = ("valid", "same", "causal")


def options(
    *, strides: Any, padding: str | Sequence[Any], data_format: str | None = None, dilations: Any = 1
) -> dict[str, Any]:
    """Our options for those of ``tf.nn.depthwise_conv2d``, ``tf.nn.conv{n}d`` and their gradients.

    Args:
        strides, dilations: an int, one per spatial axis, or one per axis of the images, of which those of batch and
            channels are 1; None: 1.
        padding: ``"VALID"``; ``"SAME"``, whose odd element is at the high end; or a pair (low, high) for every axis of
            the images, (0, 0) for batch and channels.
        data_format: such as ``"NHWC"`` (that is None), ``"NCW"``, ``"NDHWC"``.

    Raises:
        OptionError: a value that TensorFlow does not take.

    >>> options(strides=[1, 2, 2, 1], padding="SAME")
    {'stride': (2, 2), 'padding': 'same', 'dilation': 1, 'layout': 'channels_last'}
    >>> options(strides=1, padding=[[0, 0], [0, 0], [1, 2], [3, 4]], data_format="NCHW")["padding"]
    ((1, 2), (3, 4))
    """
    axes = (
        "NHWC" if data_format is None else one_of("data_format", data_format, [f for f in DATA_FORMATS if f.isupper()])
    )
    if isinstance(padding, str):
        pads: Any = PADDING[one_of("padding", padding, PADDING)]
    else:
        pads = _spatial("padding", pairs("padding", padding), axes, (0, 0))
    return window(
        _steps("strides", strides, axes), pads, _steps("dilations", dilations, axes), layout=data_layout(axes)
    )


def keras_options(
    *, strides: Any = 1, padding: str = "valid", data_format: str | None = None, dilation_rate: Any = 1
) -> dict[str, Any]:
    """Our options for those of Keras' ``DepthwiseConv{n}D``, ``SeparableConv{n}D`` and ``Conv{n}D(groups=C)``.

    Args:
        strides, dilation_rate: an int, or one per axis.
        padding: ``"valid"``, ``"same"`` (its odd element is at the high end) or, of ``Conv1D``, ``"causal"``; in any
            case.
        data_format: ``"channels_last"`` (that is None, unless Keras is configured otherwise) or ``"channels_first"``.

    Raises:
        OptionError: a value that Keras does not take.

    >>> keras_options(strides=2, padding="same")
    {'stride': 2, 'padding': 'same', 'dilation': 1, 'layout': 'channels_last'}
    """
    pads = one_of("padding", padding.lower() if isinstance(padding, str) else padding, KERAS_PADDING)
    layout = one_of("data_format", "channels_last" if data_format is None else data_format, TENSORFLOW.layouts)
    steps, spread = extents("strides", strides), extents("dilation_rate", dilation_rate)
    one_rank(strides=steps, dilation_rate=spread)
    return window(steps, pads, spread, layout=layout)


def _steps(name: str, value: Any, axes: str) -> Extents:
    """Strides or dilations without those of batch and channels."""
    if value is None:
        return 1
    steps = extents(name, value)
    if isinstance(steps, int) or len(steps) == 1:
        return steps if isinstance(steps, int) else steps[0]
    return steps if len(steps) == len(axes) - 2 else _spatial(name, steps, axes, 1)


def _spatial(name: str, values: tuple[Any, ...], axes: str, none: Any) -> tuple[Any, ...]:
    """The entries of spatial axes; those of batch and channels must be ``none``."""
    if len(values) != len(axes) or any(v != none for v, axis in zip(values, axes, strict=True) if axis in "NC"):
        raise OptionError(
            f"{name} is {list(values)}; needed one entry for each axis of data_format {axes}, {none} for N and C"
        )
    return tuple(value for value, axis in zip(values, axes, strict=True) if axis not in "NC")

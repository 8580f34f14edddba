"""Interop room: TFLite's (LiteRT's) weights and options in ours; does not import it."""

from __future__ import annotations

from typing import Any

from npdwconv.errors import OptionError
from npdwconv.interop.conventions import TFLITE
from npdwconv.interop.spelling import window
from npdwconv.options import integer, one_of

__all__ = ["depthwise_weight", "options", "pointwise_weight", "to_depthwise_weight", "to_pointwise_weight"]

depthwise_weight = TFLITE.depthwise_weight
to_depthwise_weight = TFLITE.to_depthwise_weight
pointwise_weight = TFLITE.pointwise_weight
to_pointwise_weight = TFLITE.to_pointwise_weight

# by their numbers in the schema: the names, and what each is here
PADDINGS = {"SAME": "same", "VALID": "valid"}
FUSED = ("NONE", "RELU", "RELU_N1_TO_1", "RELU6", "TANH", "SIGN_BIT")
ACTIVATIONS = {"NONE": None, "RELU": "relu", "RELU6": "relu6"}


def options(
    *,
    padding: str | int,
    stride_h: int = 1,
    stride_w: int = 1,
    dilation_h_factor: int = 1,
    dilation_w_factor: int = 1,
    depth_multiplier: int = 1,
    fused_activation_function: str | int = "NONE",
) -> dict[str, Any]:
    """Our options for those of ``DEPTHWISE_CONV_2D`` and ``CONV_2D``, named as in the schema of TFLite's files.

    Args:
        padding: ``"SAME"``, whose odd element is at the high end, or ``"VALID"``; or the number that the file has.
        stride_h, stride_w, dilation_h_factor, dilation_w_factor: ints.
        depth_multiplier: said by the weight's shape.
        fused_activation_function: ``"NONE"``, ``"RELU"`` or ``"RELU6"``; or the number that the file has.

    Raises:
        OptionError: a value that the schema does not have, or an activation that has no counterpart here.

    >>> options(padding="SAME", stride_h=2, stride_w=2, fused_activation_function="RELU6")
    {'stride': (2, 2), 'padding': 'same', 'dilation': (1, 1), 'layout': 'channels_last', 'activation': 'relu6'}
    """
    integer("depth_multiplier", depth_multiplier, least=0)  # a file may leave it out, which is 0
    stride, dilation = (
        tuple(integer(name, value, least=1) for name, value in named.items())
        for named in (
            {"stride_h": stride_h, "stride_w": stride_w},
            {"dilation_h_factor": dilation_h_factor, "dilation_w_factor": dilation_w_factor},
        )
    )
    pads = PADDINGS[_named("padding", padding, tuple(PADDINGS))]
    fused = _named("fused_activation_function", fused_activation_function, FUSED)
    if fused not in ACTIVATIONS:
        raise OptionError(f"fused_activation_function is {fused!r}; there is one for {', '.join(ACTIVATIONS)} here")
    return window(stride, pads, dilation, layout="channels_last", activation=ACTIVATIONS[fused])


def _named(name: str, value: str | int, names: tuple[str, ...]) -> str:
    """A name of the schema, which may be given by its number."""
    if isinstance(value, str):
        return one_of(name, value, names)
    number = integer(name, value, least=0)
    if number >= len(names):
        raise OptionError(f"{name} is {number}; the schema has {len(names)}, {', '.join(names)}")
    return names[number]

"""Weights and options of frameworks as ours: by the frameworks' documented formulas, in plain loops; none is needed."""

from __future__ import annotations

from collections.abc import Callable
from itertools import product
from typing import Any

import numpy as np
import pytest

import npdwconv
from npdwconv.errors import OptionError, ShapeError
from npdwconv.interop import conventions, jax, mlx, spelling, tensorflow, tflite
from npdwconv.interop.conventions import CONVENTIONS, convention

Array = np.ndarray[Any, np.dtype[Any]]
Index = tuple[int, ...]

CHANNELS, MULTIPLIER, KERNEL = 3, 2, (2, 4, 5)  # no two extents alike


def counted(*shape: int) -> Array:
    """An array no two elements of which are alike."""
    return np.arange(1.0, np.prod(shape) + 1).reshape(shape)


# Where a framework's documentation puts the weight of channel c, its m-th filter, and a tap: shape and index.
Place = Callable[[int, int, Index], Index]
DEPTHWISE: dict[str, Place] = {
    "torch": lambda c, m, tap: (c * MULTIPLIER + m, 0, *tap),
    "onnx": lambda c, m, tap: (c * MULTIPLIER + m, 0, *tap),
    "tensorflow": lambda c, m, tap: (*tap, c, m),
    "jax": lambda c, m, tap: (*tap, 0, c * MULTIPLIER + m),
    "mlx": lambda c, m, tap: (c * MULTIPLIER + m, *tap, 0),
    "tflite": lambda c, m, tap: (0, *tap, c * MULTIPLIER + m),
}
TRANSPOSED: dict[str, Place] = {
    "torch": lambda c, m, tap: (c, m, *tap),
    "onnx": lambda c, m, tap: (c, m, *tap),
    "tensorflow": lambda c, m, tap: (*tap, c, 0),
    "jax": lambda c, m, tap: (*(k - 1 - t for k, t in zip(KERNEL, tap, strict=False)), 0, c * MULTIPLIER + m),
    "mlx": lambda c, m, tap: (c * MULTIPLIER + m, *tap, 0),
}
POINTWISE: dict[str, Callable[[int, int, Index], Index]] = {
    "torch": lambda k, c, ones: (k, c, *ones),
    "onnx": lambda k, c, ones: (k, c, *ones),
    "tensorflow": lambda k, c, ones: (*ones, c, k),
    "jax": lambda k, c, ones: (*ones, c, k),
    "mlx": lambda k, c, ones: (k, *ones, c),
    "tflite": lambda k, c, ones: (k, *ones, c),
}


def stored_by(place: Place, weight: Array, channels: int, multiplier: int) -> Array:
    """Our weight as a framework stores it, element by element."""
    kernel = weight.shape[2:]
    last = place(channels - 1, multiplier - 1, tuple(k - 1 for k in kernel))
    first = place(0, 0, (0,) * len(kernel))
    stored = np.zeros([max(low, high) + 1 for low, high in zip(first, last, strict=True)])
    for c, m, *tap in product(range(channels), range(multiplier), *map(range, kernel)):
        stored[place(c, m, tuple(tap))] = weight[(c * multiplier + m, 0, *tap)]
    return stored


def test_the_places_are_those_of_the_table() -> None:
    assert set(DEPTHWISE) == set(POINTWISE) == set(CONVENTIONS)
    assert set(TRANSPOSED) == {name for name, row in CONVENTIONS.items() if row.transposed}


CASES = [(name, rank) for name, row in CONVENTIONS.items() for rank in row.ranks]


@pytest.mark.parametrize(("name", "rank"), CASES)
@pytest.mark.parametrize("kind", ["depthwise", "transposed"])
def test_taps(name: str, rank: int, kind: str) -> None:
    places, row = {"depthwise": DEPTHWISE, "transposed": TRANSPOSED}[kind], convention(name)
    if name not in places:
        pytest.skip(reason="the framework has no such operator")
    multiplier = 1 if (name, kind) == ("tensorflow", "transposed") else MULTIPLIER
    weight = counted(CHANNELS * multiplier, 1, *KERNEL[:rank])
    stored = stored_by(places[name], weight, CHANNELS, multiplier)
    ours = getattr(row, f"{kind}_weight")(stored)
    theirs = getattr(row, f"to_{kind}_weight")(weight, multiplier=multiplier)
    np.testing.assert_array_equal(ours, weight)
    np.testing.assert_array_equal(theirs, stored)
    assert ours.flags.c_contiguous
    assert theirs.flags.c_contiguous


@pytest.mark.parametrize("name", POINTWISE)
@pytest.mark.parametrize("ones", [0, 1, 2, 3])
def test_pointwise(name: str, ones: int) -> None:
    weight = counted(4, 3)
    stored = np.zeros([n + 1 for n in POINTWISE[name](3, 2, (0,) * ones)])
    for k, c in product(range(4), range(3)):
        stored[POINTWISE[name](k, c, (0,) * ones)] = weight[k, c]
    row = convention(name)
    np.testing.assert_array_equal(row.pointwise_weight(stored), weight)
    np.testing.assert_array_equal(row.to_pointwise_weight(weight, rank=ones), stored)
    np.testing.assert_array_equal(row.to_pointwise_weight(weight[..., None], rank=ones), stored)


@pytest.mark.parametrize("dtype", ["int8", "float16", "float64"])
def test_dtypes_stay(dtype: str) -> None:
    stored = counted(3, 3, 4, 2).astype(dtype)
    assert tensorflow.depthwise_weight(stored).dtype == dtype
    assert tensorflow.to_depthwise_weight(counted(4, 1, 3, 3).astype(dtype)).dtype == dtype


def test_a_grouped_convolutions_filter_is_read_like_a_depthwise_one() -> None:
    """Keras' ``Conv2D(groups=C)`` stores (R, S, 1, C·M) and ``DepthwiseConv2D`` (R, S, C, M): the same elements."""
    stored = counted(2, 4, 3, 2)
    np.testing.assert_array_equal(
        tensorflow.depthwise_weight(stored.reshape(2, 4, 1, 6)), tensorflow.depthwise_weight(stored)
    )


@pytest.mark.parametrize("spec", ["OIHW", "HWIO", "IOHW", "OHWI", "IHWO", "HWOI"])
def test_kernels_of_jax_in_any_order(spec: str) -> None:
    weight = counted(6, 1, 2, 4)
    stored = np.einsum(f"OIHW->{spec}", weight)
    np.testing.assert_array_equal(jax.kernel(spec).depthwise_weight(stored), weight)
    np.testing.assert_array_equal(jax.kernel(spec).to_depthwise_weight(weight), stored)
    np.testing.assert_array_equal(jax.kernel(spec).transposed_weight(stored), weight[:, :, ::-1, ::-1])


# What the documentation of TensorFlow, Keras, TFLite and MLX says that is computed, as loops.


def tensorflow_says(x: Array, filters: Array, strides: Index, rate: Index) -> Array:
    """https://www.tensorflow.org/api_docs/python/tf/nn/depthwise_conv2d, VALID: ``output[b, i, j, k·M + q] =
    Σ filter[di, dj, k, q] · input[b, strides[1]·i + rate[0]·di, strides[2]·j + rate[1]·dj, k]``.
    """
    n, height, width, channels = x.shape
    r, s, _, multiplier = filters.shape
    size = [(e - (k - 1) * d - 1) // t + 1 for e, k, d, t in zip((height, width), (r, s), rate, strides, strict=True)]
    output = np.zeros((n, *size, channels * multiplier))
    for b, i, j, k, q in product(range(n), *map(range, size), range(channels), range(multiplier)):
        output[b, i, j, k * multiplier + q] = sum(
            filters[di, dj, k, q] * x[b, strides[0] * i + rate[0] * di, strides[1] * j + rate[1] * dj, k]
            for di, dj in product(range(r), range(s))
        )
    return output


def tflite_says(x: Array, filters: Array, strides: Index, dilation: Index, padding: str) -> Array:
    """Lite's reference kernel, ``depthwiseconv_float.h``, with the padding of ``kernels/padding.h``.

    ``oc = m + ic·depth_multiplier`` reads ``in = out·stride − pad + dilation·filter``, of the filter's row 0.
    """
    n, *size, channels = x.shape
    _, *kernel, filter_channels = filters.shape
    multiplier = filter_channels // channels
    spans = [(k - 1) * d + 1 for k, d in zip(kernel, dilation, strict=True)]
    if padding == "SAME":
        outs = [(e + t - 1) // t for e, t in zip(size, strides, strict=True)]
    else:
        outs = [(e + t - span) // t for e, t, span in zip(size, strides, spans, strict=True)]
    pads = [max((o - 1) * t + p - e, 0) // 2 for o, t, p, e in zip(outs, strides, spans, size, strict=True)]
    output = np.zeros((n, *outs, filter_channels))
    for b, y, z, ic, m in product(range(n), *map(range, outs), range(channels), range(multiplier)):
        oc = m + ic * multiplier
        for fy, fx in product(*map(range, kernel)):
            at = y * strides[0] - pads[0] + dilation[0] * fy, z * strides[1] - pads[1] + dilation[1] * fx
            if 0 <= at[0] < size[0] and 0 <= at[1] < size[1]:
                output[b, y, z, oc] += x[(b, *at, ic)] * filters[0, fy, fx, oc]
    return output


def mlx_says(x: Array, filters: Array, stride: Index, padding: Index, dilation: Index) -> Array:
    """https://ml-explore.github.io/mlx/build/html/python/_autosummary/mlx.core.conv2d.html: symmetric padding.

    Input (N, H, W, C_in), weight (C_out, KH, KW, C_in / groups); a group's output channels are C_out / groups in a row.
    """
    n, height, width, channels = x.shape
    out_channels, r, s, _ = filters.shape
    padded = np.zeros((n, height + 2 * padding[0], width + 2 * padding[1], channels))
    padded[:, padding[0] : padding[0] + height, padding[1] : padding[1] + width] = x
    outs = [
        (e - (k - 1) * d - 1) // t + 1 for e, k, d, t in zip(padded.shape[1:3], (r, s), dilation, stride, strict=True)
    ]
    output = np.zeros((n, *outs, out_channels))
    for b, i, j, o, di, dj in product(range(n), *map(range, outs), range(out_channels), range(r), range(s)):
        group = o // (out_channels // channels)
        place = stride[0] * i + dilation[0] * di, stride[1] * j + dilation[1] * dj
        output[b, i, j, o] += filters[o, di, dj, 0] * padded[(b, *place, group)]
    return output


STEPS = [((1, 1), (1, 1)), ((2, 3), (1, 1)), ((1, 1), (2, 1))]


@pytest.mark.parametrize(("stride", "dilation"), STEPS)
def test_tensorflow_by_its_formula(stride: Index, dilation: Index) -> None:
    x, filters = counted(2, 6, 7, 3), counted(2, 3, 3, 2)
    options = tensorflow.options(strides=[1, *stride, 1], padding="VALID", dilations=dilation)
    ours = npdwconv.depthwise_conv2d(x, tensorflow.depthwise_weight(filters), **options)
    np.testing.assert_array_equal(ours, tensorflow_says(x, filters, stride, dilation))


@pytest.mark.parametrize(
    ("padding", "rows"),
    [
        ("VALID", [[[10, 14], [14, 20]], [[18, 26], [22, 32]]]),
        (
            [[0, 0], [1, 0], [1, 0], [0, 0]],
            [[[0, 0], [3, 4], [6, 8]], [[0, 0], [10, 14], [14, 20]], [[0, 0], [18, 26], [22, 32]]],
        ),
    ],
    ids=["valid", "explicit"],
)
def test_the_example_in_tensorflows_documentation(padding: Any, rows: Any) -> None:
    x, filters = counted(1, 3, 2, 1), counted(2, 1, 1, 2)
    options = tensorflow.options(strides=[1, 1, 1, 1], padding=padding)
    found = npdwconv.depthwise_conv2d(x, tensorflow.depthwise_weight(filters), **options)
    np.testing.assert_array_equal(found, np.array(rows)[None])


@pytest.mark.parametrize("padding", ["SAME", "VALID"])
@pytest.mark.parametrize(("stride", "dilation"), STEPS)
def test_tflite_by_its_reference_kernel(stride: Index, dilation: Index, padding: str) -> None:
    x, filters = counted(2, 6, 7, 3), counted(1, 2, 4, 6)
    options = tflite.options(
        padding=padding,
        stride_h=stride[0],
        stride_w=stride[1],
        dilation_h_factor=dilation[0],
        dilation_w_factor=dilation[1],
    )
    ours = npdwconv.depthwise_conv2d(x, tflite.depthwise_weight(filters), **options)
    np.testing.assert_array_equal(ours, tflite_says(x, filters, stride, dilation, padding))


@pytest.mark.parametrize(("stride", "dilation"), STEPS)
def test_mlx_by_its_documentation(stride: Index, dilation: Index) -> None:
    x, filters = counted(2, 6, 7, 3), counted(6, 2, 4, 1)
    options = mlx.options(stride=stride, padding=(1, 2), dilation=dilation)
    ours = npdwconv.depthwise_conv2d(x, mlx.depthwise_weight(filters), **options)
    np.testing.assert_array_equal(ours, mlx_says(x, filters, stride, (1, 2), dilation))


def test_mlx_by_hand() -> None:
    """Two channels, two filters each of two taps, worked out on paper; MLX 0.32 returns the same."""
    x = np.array([[[1.0, 10], [2, 20], [3, 30]]])
    filters = np.array([[[1.0], [2]], [[3], [4]], [[5], [6]], [[7], [8]]])
    found = npdwconv.depthwise_conv1d(x, mlx.depthwise_weight(filters), **mlx.options())
    np.testing.assert_array_equal(found, [[[5, 11, 170, 230], [8, 18, 280, 380]]])
    up = npdwconv.depthwise_conv_transpose1d(x, mlx.transposed_weight(filters), **mlx.transpose_options(stride=2))
    wanted = [[1, 3, 50, 70], [2, 4, 60, 80], [2, 6, 100, 140], [4, 8, 120, 160], [3, 9, 150, 210], [6, 12, 180, 240]]
    np.testing.assert_array_equal(up, [wanted])


# Options: what becomes of each, and what is refused, which the text of the error names.

LAST = {"layout": "channels_last"}
PLAIN = {"stride": 1, "padding": 0, "dilation": 1}
NAMED: dict[str, Any] = {"strides": 1, "padding": "SAME"}

TAKEN: list[tuple[Callable[..., Any], dict[str, Any], dict[str, Any]]] = [
    (spelling.torch_options, {}, PLAIN | {"padding_mode": "zeros"}),
    (spelling.torch_options, {"padding": "same", "dilation": (2, 1)}, {"padding": "same", "dilation": (2, 1)}),
    (spelling.torch_transpose_options, {}, PLAIN | {"output_padding": 0}),
    (spelling.onnx_options, {}, PLAIN),
    (spelling.onnx_options, {"auto_pad": b"VALID", "pads": [0, 0], "kernel_shape": [3]}, {"padding": "valid"}),
    (spelling.onnx_options, {"pads": [1, 2, 3, 4, 5, 6]}, {"padding": ((1, 4), (2, 5), (3, 6))}),
    (spelling.onnx_transpose_options, {"auto_pad": "SAME_LOWER"}, {"padding": "same_lower", "output_padding": 0}),
    (tensorflow.options, {"strides": 1, "padding": "VALID"}, PLAIN | {"padding": "valid"} | LAST),
    (tensorflow.options, NAMED | {"strides": [1, 1, 2, 3], "data_format": "NCHW"}, {"stride": (2, 3)}),
    (tensorflow.options, NAMED | {"strides": [2], "data_format": "NWC"}, {"stride": 2}),
    (tensorflow.options, NAMED | {"strides": [1, 2, 1], "data_format": "NWC"}, {"stride": (2,)}),
    (tensorflow.options, NAMED | {"dilations": [1, 2, 2, 1]}, {"padding": "same", "dilation": (2, 2)}),
    (tensorflow.options, NAMED | {"dilations": None, "data_format": "NCDHW"}, {"layout": "channels_first"}),
    (tensorflow.keras_options, {}, PLAIN | {"padding": "valid"} | LAST),
    (tensorflow.keras_options, {"padding": "Causal", "data_format": "channels_first"}, {"padding": "causal"}),
    (jax.options, {"window_strides": (1,), "padding": [(1, 0)]}, {"padding": ((1, 0),), "layout": "channels_first"}),
    (jax.options, {"window_strides": (1,), "padding": "SAME_LOWER"}, {"padding": "same_lower"}),
    (
        jax.flax_options,
        {"kernel_size": 3, "strides": None},
        PLAIN | LAST | {"padding": "same", "padding_mode": "zeros"},
    ),
    (jax.flax_options, {"kernel_size": (3, 2), "padding": [1, (2, 0)]}, {"padding": ((1, 1), (2, 0))}),
    (
        jax.flax_options,
        {"kernel_size": (3, 2), "padding": "REFLECT", "kernel_dilation": 3},
        {"padding": ((3, 3), (1, 2)), "padding_mode": "reflect"},
    ),
    (mlx.options, {}, PLAIN | LAST),
    (mlx.general_options, {"padding": [1, 2]}, {"padding": (1, 2)}),
    (mlx.general_options, {"padding": ([0, 1], [2, 3])}, {"padding": ((0, 2), (1, 3))} | LAST),
    (mlx.transpose_options, {"output_padding": 1}, PLAIN | {"output_padding": 1} | LAST),
    (tflite.options, {"padding": 0, "fused_activation_function": 3}, {"padding": "same", "activation": "relu6"}),
    (tflite.options, {"padding": 1, "stride_h": 2}, {"padding": "valid", "stride": (2, 1), "activation": None}),
    (tflite.options, {"padding": "SAME", "fused_activation_function": "RELU"}, {"activation": "relu"} | LAST),
]


@pytest.mark.parametrize(("function", "arguments", "wanted"), TAKEN)
def test_options(function: Callable[..., Any], arguments: dict[str, Any], wanted: dict[str, Any]) -> None:
    found = function(**arguments)
    assert {name: found[name] for name in wanted} == wanted


REFUSED: list[tuple[Callable[..., Any], dict[str, Any], str]] = [
    (spelling.torch_options, {"padding": "SAME"}, "padding is 'SAME'; needed one of 'valid', 'same'"),
    (spelling.torch_options, {"padding": "same", "stride": 2}, "stride 2; PyTorch has it for stride 1"),
    (spelling.torch_options, {"padding": (1, -1)}, r"padding\[1\] is -1"),
    (spelling.torch_options, {"stride": 2.0}, "stride is 2.0"),
    (spelling.torch_options, {"padding_mode": "wrap"}, "padding_mode is 'wrap'"),
    (spelling.onnx_options, {"auto_pad": "SAME"}, "auto_pad is 'SAME'"),
    (spelling.onnx_options, {"auto_pad": "VALID", "pads": [1, 1]}, "one or the other"),
    (spelling.onnx_options, {"pads": [1, 1, 1]}, "the low ends of all axes, then the high"),
    (spelling.onnx_options, {"pads": [0, 0, 0, -1]}, r"pads\[3\] is -1"),
    (spelling.onnx_transpose_options, {"output_shape": [9]}, "kernel_shape and input_size"),
    (spelling.onnx_transpose_options, {"auto_pad": "SAME_UPPER", "output_padding": [1]}, "needed 0"),
    (tensorflow.options, {"strides": [1, 2, 2, 2], "padding": "SAME"}, "1 for N and C"),
    (tensorflow.options, {"strides": 1, "padding": "same"}, "did you mean|needed one of 'VALID', 'SAME'"),
    (tensorflow.options, {"strides": 1, "padding": [[0, 0], [1, 1]]}, "each axis of data_format NHWC"),
    (tensorflow.options, {"strides": 1, "padding": [[1, 0], [1, 1], [1, 1], [0, 0]]}, "for N and C"),
    (tensorflow.options, {"strides": 1, "padding": "SAME", "data_format": "NHWCC"}, "data_format is 'NHWCC'"),
    (tensorflow.keras_options, {"padding": "full"}, "padding is 'full'"),
    (tensorflow.keras_options, {"data_format": "NHWC"}, "data_format is 'NHWC'"),
    (jax.options, {"window_strides": [1], "padding": "SAME", "lhs_dilation": [2]}, "transposed one, see transpose_opt"),
    (jax.options, {"window_strides": [1], "padding": "CIRCULAR"}, "padding is 'CIRCULAR'"),
    (jax.options, {"window_strides": [1], "padding": [1]}, r"padding\[0\] is 1; needed a pair"),
    (jax.options, {"window_strides": [1], "padding": "SAME", "batch_group_count": 2}, "batch_group_count is 2"),
    (
        jax.options,
        {"window_strides": [1], "padding": "SAME", "dimension_numbers": ("CWN", "WIO", "CWN")},
        "N first and C second or last",
    ),
    (
        jax.transpose_options,
        {"lhs_dilation": [2], "padding": [(3, 0)], "kernel_shape": [3]},
        "at most 2 at the low end",
    ),
    (jax.flax_options, {"kernel_size": (3, 3), "padding": "CAUSAL"}, "Flax has it in one"),
    (jax.flax_options, {"kernel_size": 3, "input_dilation": 2}, "input_dilation is 2"),
    (jax.kernel, {"spec": "HIWO"}, "spatial axes in a row"),
    (jax.kernel, {"spec": "OI"}, "one to three spatial axes"),
    (mlx.options, {"padding": "same"}, "padding is 'same'"),
    (mlx.general_options, {"flip": True}, "reverse the weight's taps"),
    (mlx.general_options, {"padding": ([1, 1], [1])}, "as many low ends as high ends"),
    (mlx.general_options, {"input_dilation": (1, 2)}, "input_dilation"),
    (tflite.options, {"padding": 2}, "the schema has 2"),
    (tflite.options, {"padding": "SAME", "fused_activation_function": "TANH"}, "'TANH'; there is one for NONE"),
    (conventions.TFLITE.transposed_weight, {"array": np.ones((1, 3, 3, 2))}, "no transposed depthwise"),
    (tensorflow.to_transposed_weight, {"weight": np.ones((4, 1, 3, 3)), "multiplier": 2}, "needed 1"),
    (convention, {"framework": "pytorch"}, "did you mean 'torch'"),
    (spelling.data_layout, {"data_format": "NCHWC"}, "data_format is 'NCHWC'"),
]


@pytest.mark.parametrize(("function", "arguments", "message"), REFUSED)
def test_refused(function: Callable[..., Any], arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(OptionError, match=message):
        function(**arguments)


@pytest.mark.parametrize(
    ("function", "shape", "message"),
    [
        (conventions.TORCH.depthwise_weight, (4, 2, 3, 3), r"has shape \(4, 2, 3, 3\); needed \(C·M, 1, \*kernel\)"),
        (conventions.TORCH.depthwise_weight, (4, 1), "with 1 or 2 or 3 kernel axes"),
        (conventions.TORCH.depthwise_weight, (), "with 1 or 2 or 3 kernel axes"),
        (conventions.MLX.depthwise_weight, (4, 3, 3, 3, 1), "with 1 or 2 kernel axes"),
        (conventions.TFLITE.depthwise_weight, (2, 3, 3, 4), r"needed \(1, \*kernel, C·M\)"),
        (conventions.TENSORFLOW.transposed_weight, (3, 3, 2, 2), r"\(\*kernel, C, 1\)"),
        (conventions.TENSORFLOW.to_depthwise_weight, (4, 2, 3, 3), r"needed \(C·M, 1, \*kernel\)"),
        (conventions.TORCH.pointwise_weight, (4, 3, 3, 3), r"needed \(K, C, 1, …\)"),
        (conventions.TORCH.pointwise_weight, (4,), r"needed \(K, C, 1, …\)"),
        (conventions.TORCH.to_pointwise_weight, (4, 3, 2), r"needed \(K, C\)"),
    ],
)
def test_shapes_refused(function: Callable[..., Any], shape: Index, message: str) -> None:
    with pytest.raises(ShapeError, match=message):
        function(np.zeros(shape))


def test_channels_that_no_multiplier_gives() -> None:
    with pytest.raises(ShapeError, match="5 channels; needed a multiple of multiplier 2"):
        tensorflow.to_depthwise_weight(np.zeros((5, 1, 3, 3)), multiplier=2)

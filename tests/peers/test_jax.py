"""Depthwise convolution beside JAX: SAME, SAME_LOWER and VALID at every stride and dilation, and gradients by vjp."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from peers.peer_bounds import Array, Maps, agree, estimates

import npdwconv

jax = pytest.importorskip("jax", reason="compares with JAX")
lax: Any = jax.lax
pytestmark = pytest.mark.peers

SPATIAL = {1: "W", 2: "HW", 3: "DHW"}
PADDING = {"same": "SAME", "same_lower": "SAME_LOWER", "valid": "VALID"}
CASES = 5


class Case:
    """A convolution drawn from a seed; even kernels, strides beyond the kernel and extents below it included."""

    def __init__(self, rank: int, layout: str, padding: str, seed: int) -> None:
        rng = np.random.default_rng([seed, rank, *padding.encode()])
        most = 4 if rank < 3 else 3
        self.rng, self.rank, self.layout, self.padding = rng, rank, layout, padding
        self.channels, self.multiplier = (int(v) for v in rng.integers(1, 4, 2))
        self.kernel, self.stride = (tuple(rng.integers(1, most + 1, rank).tolist()) for _ in range(2))
        self.dilation = tuple(rng.integers(1, 3, rank).tolist())
        spans = [(k - 1) * d + 1 for k, d in zip(self.kernel, self.dilation, strict=True)]
        least = spans if padding == "valid" else [1] * rank
        self.size = tuple(int(n + rng.integers(0, 7 if rank < 3 else 4)) for n in least)

    def shape(self, channels: int, spatial: tuple[int, ...]) -> tuple[int, ...]:
        return (2, channels, *spatial) if self.layout == "channels_first" else (2, *spatial, channels)

    @property
    def options(self) -> dict[str, Any]:
        names = {"stride": self.stride, "padding": self.padding, "dilation": self.dilation}
        return names | {"layout": self.layout}

    def conv(self, x: Any, weight: Any) -> Any:
        """JAX's convolution, its kernel from our (C·M, 1, *kernel) to the layout that goes with the image's."""
        axes = SPATIAL[self.rank]
        order = (f"NC{axes}", f"OI{axes}", f"NC{axes}")
        if self.layout == "channels_last":
            order = (f"N{axes}C", f"{axes}IO", f"N{axes}C")
            weight = weight.transpose(*range(2, self.rank + 2), 1, 0)
        return lax.conv_general_dilated(
            x,
            weight,
            self.stride,
            PADDING[self.padding],
            rhs_dilation=self.dilation,
            dimension_numbers=order,
            feature_group_count=self.channels,
        )


def maps(conv: Callable[[Any, Any], Any], x: Array, weight: Array) -> Maps:
    """JAX's map and its adjoints on float64 arrays. The adjoint in one operand does not depend on where that is."""

    forward = jax.jit(conv)
    input_grad = jax.jit(lambda grad, w: jax.vjp(lambda x: conv(x, w), x)[1](grad)[0])
    weight_grad = jax.jit(lambda grad, x: jax.vjp(lambda w: conv(x, w), weight)[1](grad)[0])
    return Maps(*(lambda a, b, f=f: np.asarray(f(a, b)) for f in (forward, input_grad, weight_grad)))


def second(array: Array, layout: str) -> Array:
    return np.moveaxis(array, -1, 1) if layout == "channels_last" else array


def channels_first(linear: Maps, layout: str) -> Maps:
    """Maps of channels_last activations as maps of channels_first ones, which the bounds need for a bias."""
    if layout == "channels_first":
        return linear

    def last(array: Array) -> Array:
        return np.moveaxis(array, 1, -1)

    return Maps(
        lambda x, w: second(linear.forward(last(x), w), layout),
        lambda g, w: second(linear.input_grad(last(g), w), layout),
        lambda g, x: linear.weight_grad(last(g), last(x)),
    )


def compare(case: Case, conv: Callable[[Any, Any], Any], x: Array, names: tuple[str, str], options: Any) -> None:
    """``conv`` and its gradients beside our operators, in float32 within the bound."""
    rng, layout = case.rng, case.layout
    weight = rng.standard_normal((case.channels * case.multiplier, 1, *case.kernel)).astype(np.float32)
    out, pull = jax.vjp(conv, x, weight)
    grad = rng.standard_normal(out.shape).astype(np.float32)
    wanted = [np.asarray(array) for array in (out, *pull(grad))]
    with jax.enable_x64(True):
        linear = channels_first(maps(conv, x.astype(np.float64), weight.astype(np.float64)), layout)
        bound = estimates(linear, second(x, layout), weight, None, second(grad, layout), None, "float32")
    mine = getattr(npdwconv, names[0])(x, weight, **options)
    grads = getattr(npdwconv, names[1])(grad, x, weight, **options)
    for name, array, other in zip(("out", "x"), (mine, grads.x), wanted, strict=False):
        agree(name, second(array, layout), second(other, layout), bound[name])
    agree("weight", grads.weight, wanted[2], bound["weight"])


@pytest.mark.parametrize("seed", range(CASES))
@pytest.mark.parametrize("padding", PADDING)
@pytest.mark.parametrize("layout", ["channels_first", "channels_last"])
@pytest.mark.parametrize("rank", [1, 2, 3])
def test_forward_and_gradients(rank: int, layout: str, padding: str, seed: int) -> None:
    case = Case(rank, layout, padding, seed)
    x = case.rng.standard_normal(case.shape(case.channels, case.size)).astype(np.float32)
    compare(case, case.conv, x, (f"depthwise_conv{rank}d", f"depthwise_conv{rank}d_backward"), case.options)


@pytest.mark.parametrize("seed", range(CASES))
@pytest.mark.parametrize("padding", ["same", "same_lower"])
@pytest.mark.parametrize("rank", [1, 2, 3])
def test_transposed_same_is_the_adjoint_of_jaxs_same(rank: int, padding: str, seed: int) -> None:
    """With SAME padding extents are multiplied by the stride: the adjoint of the convolution from there."""
    case = Case(rank, "channels_last", padding, seed)
    case.multiplier = 1
    large = tuple(n * s for n, s in zip(case.size, case.stride, strict=True))

    def conv_transpose(x: Any, weight: Any) -> Any:
        blank = jax.numpy.zeros(case.shape(case.channels, large), x.dtype)
        return jax.linear_transpose(lambda image: case.conv(image, weight), blank)(x)[0]

    x = case.rng.standard_normal(case.shape(case.channels, case.size)).astype(np.float32)
    names = (f"depthwise_conv_transpose{rank}d", f"depthwise_conv_transpose{rank}d_backward")
    compare(case, conv_transpose, x, names, case.options)


def test_jax_arrays_are_taken() -> None:
    x, weight = jax.numpy.arange(24.0).reshape(1, 2, 3, 4), jax.numpy.ones((2, 1, 3, 3))
    found = npdwconv.depthwise_conv2d(x, weight, padding="same")
    assert isinstance(found, np.ndarray)
    np.testing.assert_array_equal(found, npdwconv.depthwise_conv2d(np.asarray(x), np.asarray(weight), padding="same"))

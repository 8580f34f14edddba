"""Every way to write a legal call, extents of zero in every operator, and silence whatever the numbers are."""

from __future__ import annotations

import itertools
from typing import Any, NamedTuple

import numpy as np
import oracles
import pytest
from strategies import LAYOUTS, integers, moved

import npdwconv
from npdwconv.activations import ACTIVATIONS

OPERATORS = [name for name in oracles.ORACLES if not name.endswith(("backward", "grad"))]
X, WEIGHT = (integers(np.random.default_rng(7), shape) for shape in ((2, 2, 7, 6), (4, 1, 3, 2)))


@pytest.mark.parametrize(
    ("option", "forms"),
    [
        ("padding", [1, (1, 1), [1, 1], ((1, 1), (1, 1)), [[1, 1], (1, 1)], (1, (1, 1)), np.int64(1)]),
        ("padding", [0, "valid", (0, 0), ((0, 0), 0)]),
        ("stride", [2, (2, 2), [2, 2], np.int32(2), (np.int64(2), 2)]),
        ("dilation", [2, (2, 2), [2, 2], np.uint8(2)]),
    ],
    ids=["pads", "no_pads", "stride", "dilation"],
)
def test_forms_of_an_option(option, forms):
    """Written in any form, an option means the same."""
    first, *others = (npdwconv.depthwise_conv2d(X, WEIGHT, **{option: form}) for form in forms)
    back = [npdwconv.depthwise_conv_transpose2d(X, WEIGHT, **{option: form}) for form in forms]
    oracles.check("depthwise_conv2d", first, {"x": X, "weight": WEIGHT}, {option: forms[0]}, exact=True)
    assert all(np.array_equal(first, other) for other in others)
    assert all(np.array_equal(back[0], other) for other in back)


def test_one_axis():
    x, weight = X[:, :, 0], WEIGHT[:, :, 0]
    forms = [((1, 2),), [(1, 2)], [[1, 2]]]
    assert {npdwconv.depthwise_conv1d(x, weight, padding=form).shape for form in forms} == {(2, 4, 8)}


@pytest.mark.parametrize("rank", [0, 1, 2, 5])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_pointwise_weights_with_axes_of_one(rank, layout):
    rng = np.random.default_rng(rank)
    x, matrix = moved(integers(rng, (2, 3, *(2,) * rank)), layout), integers(rng, (4, 3))
    wanted = npdwconv.pointwise_conv(x, matrix, layout=layout)
    for ones in range(1, 4):
        weight = matrix.reshape(4, 3, *(1,) * ones)
        np.testing.assert_array_equal(npdwconv.pointwise_conv(x, weight, layout=layout), wanted)
        grads = npdwconv.pointwise_conv_backward(wanted, x, weight, layout=layout)
        operands = {"grad_out": wanted, "x": x, "weight": weight}
        oracles.check("pointwise_conv_backward", grads, operands, {"layout": layout}, exact=True)


def call_of(name: str, rng: Any, batch: int = 2, channels: int = 2, outputs: int = 3, layout: str = LAYOUTS[0]) -> Any:
    """Operands and options of a small call of an operator; ``rng`` makes an array of a shape."""
    rank = int(name[-2]) if name[-2].isdigit() else 2
    options: dict[str, Any] = {} if name.endswith("tokens") else {"layout": layout}
    size, kernel = (4, 3, 2)[:rank], (3, 2, 2)[:rank]
    operands: dict[str, Any] = {"x": moved(rng((batch, channels, *size)), layout)}
    if name.endswith("tokens"):
        operands["x"], options["grid"] = rng((batch, 12, channels)), (4, 3)
    if name == "causal_depthwise_conv1d":
        options["state"] = rng((batch, channels, 2))
    if name == "pointwise_conv":
        return operands | {"weight": rng((outputs, channels)), "bias": rng((outputs,))}, options
    weight, bias = rng((2 * channels, 1, *kernel)), rng((2 * channels,))
    if name.startswith("separable"):
        operands |= {"depthwise_weight": weight, "pointwise_weight": rng((outputs, 2 * channels))}
        return operands | {"depthwise_bias": bias, "bias": rng((outputs,))}, options
    return operands | {"weight": weight, "bias": bias}, options


class Both(NamedTuple):
    """A forward's result and its backward's, with what the backward was asked."""

    result: Any
    operands: dict[str, Any]
    options: dict[str, Any]
    grads: Any


def both(name: str, operands: dict[str, Any], options: dict[str, Any], rng: Any) -> Both:
    result = getattr(npdwconv, name)(**operands, **options)
    out = result[0] if isinstance(result, tuple) else result
    if isinstance(result, tuple):
        options = options | {"grad_next_state": rng(result[1].shape)}
    operands = {"grad_out": rng(out.shape)} | operands
    return Both(result, operands, options, getattr(npdwconv, f"{name}_backward")(**operands, **options))


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("name", OPERATORS)
def test_extents_of_zero(name, layout):
    """An empty sum is zero, or the bias; an empty array stays empty."""
    rng = np.random.default_rng(3)
    for batch, channels, outputs in itertools.product((0, 2), (0, 2), (0, 3)):
        operands, options = call_of(name, lambda s: integers(rng, s), batch, channels, outputs, layout)
        found = both(name, operands, options, lambda s: integers(rng, s))
        oracles.check(name, found.result, operands, options, exact=True)
        oracles.check(f"{name}_backward", found.grads, found.operands, found.options, exact=True)


HOSTILE = (0.0, -0.0, 1e-45, -1e-30, -3e38, 3e38, np.inf, -np.inf, np.nan)


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64], ids=["float16", "float32", "float64"])
@pytest.mark.parametrize("name", OPERATORS)
def test_silent_whatever_the_numbers_are(name, dtype):
    """Overflow, underflow and NaN are results: neither warnings nor, where the caller asks NumPy to raise, errors."""
    rng = np.random.default_rng(5)

    def mostly_tame(shape: tuple[int, ...]) -> np.ndarray:
        tame = rng.standard_normal(shape) * rng.choice([1.0, 1e-4])
        with np.errstate(all="ignore"):
            return np.where(rng.random(shape) < 0.9, tame, rng.choice(HOSTILE, shape)).astype(dtype)

    for activation in (None, *ACTIVATIONS) * 3:
        operands, options = call_of(name, mostly_tame)
        with np.errstate(all="raise"):
            both(name, operands, options | {"activation": activation}, mostly_tame)

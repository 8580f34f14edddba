"""The oracles themselves: answers worked out by hand, derivatives by differences, and that they can refuse."""

from __future__ import annotations

import math
from fractions import Fraction
from types import SimpleNamespace
from typing import Any

import numpy as np
import oracles
import pytest
from oracle_numbers import ACTIVATIONS

TENS = [1, 10, 100]  # taps whose sums show in their digits which input each of them read
CONV, TRANSPOSED, CAUSAL = "depthwise_conv1d", "depthwise_conv_transpose1d", "causal_depthwise_conv1d"


def line(*values: float) -> np.ndarray:
    """One image of one channel, or one channel's kernel: (1, 1, W)."""
    return np.array(values, dtype=np.float64).reshape(1, 1, -1)


def listed(array: Any) -> list[float]:
    return np.asarray(array, dtype=np.float64).ravel().tolist()


@pytest.mark.parametrize(
    ("x", "taps", "options", "wanted"),
    [
        ([1, 2, 3, 4], 2, {}, [21, 32, 43]),
        ([1, 2, 3, 4], 2, {"padding": "valid", "stride": 2}, [21, 43]),
        ([1, 2, 3, 4], 2, {"dilation": 2}, [31, 42]),
        ([1, 2, 3, 4], 3, {"padding": 1}, [210, 321, 432, 43]),
        ([1, 2], 2, {"padding": ((1, 2),)}, [10, 21, 2, 0]),
        ([1, 2, 3, 4], 3, {"padding": "same", "stride": 2}, [321, 43]),
        ([1, 2, 3, 4], 3, {"padding": "same_lower", "stride": 2}, [210, 432]),
        ([1, 2, 3, 4], 2, {"padding": "same"}, [21, 32, 43, 4]),
        ([1, 2, 3, 4], 2, {"padding": "same_lower"}, [10, 21, 32, 43]),
        ([1, 2, 3], 1, {"padding": "same", "stride": 2}, [1, 3]),
        ([1, 2, 3], 2, {"padding": "causal", "dilation": 2}, [10, 20, 31]),
        ([1, 2, 3], 2, {"padding": "causal", "stride": 2}, [10, 32]),
        ([1, 2, 3], 3, {"padding": 1, "padding_mode": "reflect"}, [212, 321, 232]),
        ([1, 2, 3], 3, {"padding": 1, "padding_mode": "replicate"}, [211, 321, 332]),
        ([1, 2, 3], 3, {"padding": 1, "padding_mode": "circular"}, [213, 321, 132]),
        ([1, 2, 3], 3, {"padding": ((0, 2),), "padding_mode": "reflect"}, [321, 232, 123]),
        ([], 3, {"padding": "same"}, []),
    ],
)
def test_paddings(x, taps, options, wanted):
    assert listed(oracles.depthwise(line(*x), line(*TENS[:taps]), **options)) == wanted


@pytest.mark.parametrize(
    ("options", "wanted"),
    [
        ({}, [1, 10, 102, 20, 200]),
        ({"output_padding": 1}, [1, 10, 102, 20, 200, 0]),
        ({"padding": 1}, [10, 102, 20]),
        ({"padding": ((2, 0),)}, [102, 20, 200]),
        ({"padding": "same"}, [1, 10, 102, 20]),
        ({"padding": "same_lower"}, [10, 102, 20, 200]),
        ({"padding": "causal"}, [102, 20, 200, 0]),
        ({"dilation": 2}, [1, 0, 12, 0, 120, 0, 200]),
    ],
)
def test_transposed_paddings(options, wanted):
    assert listed(oracles.transpose(line(1, 2), line(*TENS), stride=2, **options)) == wanted


def test_axes_are_not_confused():
    image, taps = np.arange(1.0, 7).reshape(1, 1, 2, 3), np.array([1.0, 10, 100]).reshape(1, 1, 1, 3)
    assert listed(oracles.depthwise(image, taps)) == [321, 654]
    assert listed(oracles.depthwise(image, taps, padding=(0, 1), stride=(2, 1))) == [210, 321, 32]
    causal = oracles.depthwise(image, taps.reshape(1, 1, 3, 1), padding="causal")
    assert listed(causal) == [410, 520, 630, 41, 52, 63]  # same in height


def test_channels():
    x, taps = np.array([[[1.0, 2], [3, 4]]]), np.array([1.0, 10, 100, 1000]).reshape(4, 1, 1)
    wanted = [1, 2, 10, 20, 300, 400, 3000, 4000]
    assert listed(oracles.depthwise(x, taps)) == wanted
    assert listed(oracles.transpose(x, taps)) == wanted
    last = oracles.depthwise(x.swapaxes(1, 2), taps, np.full(4, 5.0), layout="channels_last")
    assert last.shape == (1, 2, 4)
    assert listed(last.swapaxes(1, 2)) == [value + 5 for value in wanted]
    mixed = oracles.pointwise(x, np.array([[1.0, 10], [100, 1000], [0, 1]]), np.array([5.0, 0, 0]))
    assert listed(mixed) == [36, 47, 3100, 4200, 3, 4]


def test_gradients():
    x, taps, g = line(1, 2, 3), line(1, 10), line(1, 100)
    grads = oracles.depthwise_backward(g, x, taps, np.zeros(1))
    assert {name: listed(grad) for name, grad in grads.items()} == {
        "x": [1, 110, 1000],
        "weight": [201, 302],
        "bias": [101],
    }
    assert listed(oracles.depthwise_input_grad(g, taps, x.shape)) == [1, 110, 1000]
    assert listed(oracles.depthwise_weight_grad(g, x, taps.shape)) == [201, 302]
    border = {"padding": 1, "padding_mode": "reflect"}
    assert listed(oracles.depthwise_input_grad(line(1, 2, 4, 8, 16), line(1), (1, 1, 3), **border)) == [2, 21, 8]
    back = oracles.transpose_backward(line(1, 10, 100), line(1, 2), line(1, 10), needs="x")
    assert listed(back["x"]) == [101, 1010]
    assert back["weight"] is None


def test_separable_and_tokens():
    x, taps, matrix = np.array([[[-1.0], [2]]]), np.array([1.0, 3]).reshape(2, 1, 1), np.array([[10.0, 1]])
    options: dict[str, Any] = {"depthwise_activation": "relu", "depthwise_bias": np.array([0.0, 1])}
    assert listed(oracles.separable(x, taps, matrix, np.array([5.0]), **options)) == [12]
    grads = oracles.separable_backward(np.full((1, 1, 1), 2.0), x, taps, matrix, np.array([5.0]), **options)
    assert {name: listed(grad) for name, grad in grads.items()} == {
        "x": [0, 6],
        "depthwise_weight": [0, 4],
        "pointwise_weight": [0, 14],
        "depthwise_bias": [0, 2],
        "bias": [2],
    }
    tokens, row = np.arange(1.0, 7).reshape(1, 6, 1), np.array([1.0, 10]).reshape(1, 1, 1, 2)
    assert listed(oracles.tokens(tokens, row, grid=(2, 3))) == [21, 32, 3, 54, 65, 6]
    grads = oracles.tokens_backward(tokens, tokens, row, grid=(2, 3))
    assert listed(grads["x"]) == [1, 12, 23, 4, 45, 56]


def test_causal():
    x, taps = line(1, 2, 3), line(1, 10)
    assert [listed(result) for result in oracles.causal(x, taps)] == [[10, 21, 32], [3]]
    assert [listed(result) for result in oracles.causal(x, taps, state=line(7))] == [[17, 21, 32], [3]]
    out, state = oracles.causal(line(4), line(1, 10, 100, 1000), state=line(1, 2, 3))
    assert (listed(out), listed(state)) == ([4321], [2, 3, 4])
    out, state = oracles.causal(line(4), line(1, 10, 100), state=None)
    assert (listed(out), listed(state)) == ([400], [0, 4])
    past: dict[str, Any] = {"state": line(7, 8), "grad_next_state": line(1000, 2000)}
    grads = oracles.causal_backward(line(1), line(4), line(1, 10, 100), **past)
    assert [listed(grads[name]) for name in ("state", "x", "weight")] == [[1, 1010], [2100], [7, 8, 4]]
    assert grads["bias"] is None


def test_any_arithmetic():
    x, taps = line(0.1, 0.2, 0.3), line(0.7, 0.9)
    exact = oracles.depthwise(x, taps, activation="hardswish", number=Fraction)
    z = Fraction(0.1) * Fraction(0.7) + Fraction(0.2) * Fraction(0.9)
    assert exact[0, 0, 0] == z * (z + 3) / 6
    assert listed(oracles.depthwise(x, taps, activation="hardswish")) == pytest.approx(listed(exact), rel=1e-15)
    assert oracles.depthwise(line(1, 2), line(3), number=int).ravel().tolist() == [3, 6]


GRID = [step / 64 for step in range(-64 * 12, 64 * 12 + 1)]
WORTH_KNOWING = {
    "relu": [0, 0, 1],
    "relu6": [0, 0, 1],
    "hardswish": [-1 / 3, 0, 2 / 3],
    "sigmoid": [0.26894142, 0.5, 0.73105858],
}
WORTH_KNOWING |= {"hardsigmoid": [1 / 3, 1 / 2, 2 / 3], "silu": [-0.26894142, 0, 0.73105858]}
WORTH_KNOWING |= {"gelu": [-0.15865525, 0, 0.84134475], "gelu_tanh": [-0.15880801, 0, 0.84119199]}


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_activations(name):
    f, step = ACTIVATIONS[name], 2.0**-16
    smooth = [z for z in GRID if all(abs(z - kink) > step for kink in f.kinks)]
    slopes = [f.derivative(z) for z in smooth]
    for z, slope in zip(smooth, slopes, strict=True):
        assert slope == pytest.approx((f.value(z + step) - f.value(z - step)) / (2 * step), abs=1e-8)
        bend = (f.derivative(z + step) - f.derivative(z - step)) / (2 * step)
        assert abs(bend) <= f.curvature + 1e-8
    assert 0.98 * f.lipschitz <= max(map(abs, slopes)) <= f.lipschitz
    for kink in f.kinks:
        jump = f.derivative(kink + step) - f.derivative(kink - step)
        assert abs(jump) == pytest.approx(f.jump, abs=1e-4)
    assert math.isnan(f.value(math.nan))
    assert [f.value(z) for z in (-1, 0, 1)] == pytest.approx(WORTH_KNOWING[name])


def test_derivatives_at_kinks():
    at = {name: [f.derivative(kink) for kink in f.kinks] for name, f in ACTIVATIONS.items() if f.kinks}
    assert at == {"relu": [0], "relu6": [0, 0], "hardswish": [0, 1], "hardsigmoid": [0, 0]}


def in_float32(x: np.ndarray, taps: np.ndarray) -> np.ndarray:
    """A right result of single precision: every product and every sum rounded."""
    out = np.zeros((1, 1, x.shape[2] - taps.shape[2] + 1), np.float32)
    for o, t in np.ndindex(out.shape[2], taps.shape[2]):
        out[0, 0, o] += taps[0, 0, t] * x[0, 0, o + t]
    return out


class TestCheck:
    rng = np.random.default_rng(1)
    operands: dict[str, Any] = {  # noqa: RUF012 - read only
        "x": rng.standard_normal((1, 1, 200)).astype(np.float32),
        "weight": rng.standard_normal((1, 1, 8)).astype(np.float32),
    }

    def test_honest_rounding_passes_and_is_near_the_bound(self):
        assert 0.05 < oracles.check(CONV, in_float32(**self.honest()), self.operands, {}) < 0.7

    def honest(self) -> dict[str, Any]:
        return {"x": self.operands["x"], "taps": self.operands["weight"]}

    @pytest.mark.parametrize("fault", [1e-5, np.nan, np.inf])
    def test_one_wrong_element(self, fault):
        out = in_float32(**self.honest())
        out[0, 0, 17] += fault
        with pytest.raises(AssertionError, match=r"out\[0, 0, 17\] is"):
            oracles.check(CONV, out, self.operands, {})

    def test_half_precision_is_rounded_once(self):
        """The bound of float16 is little more than half a unit in the last place."""
        operands = {name: array.astype(np.float16) for name, array in self.operands.items()}
        out = in_float32(*(array.astype(np.float32) for array in operands.values())).astype(np.float16)
        assert 0.5 < oracles.check(CONV, out, operands, {}) < 1
        with pytest.raises(AssertionError):
            oracles.check(CONV, np.nextafter(out, np.float16(np.inf)), operands, {})

    @pytest.mark.parametrize("off", [0.0, 1.0])
    def test_exact(self, off):
        operands = {"x": line(1, 2, 3).astype(np.float32), "weight": line(1, 10).astype(np.float32)}
        out = line(21, 32 + off).astype(np.float32)
        if not off:
            assert oracles.check(CONV, out, operands, {}, exact=True) == 0
            return
        with pytest.raises(AssertionError, match="should be 32"):
            oracles.check(CONV, out, operands, {}, exact=True)

    def test_shape_dtype_kind_and_none(self):
        out = in_float32(**self.honest())
        for wrong in (out[0], out.astype(np.float64), out.tolist(), None):
            with pytest.raises(AssertionError, match="out is "):
                oracles.check(CONV, wrong, self.operands, {})
        grads = oracles.depthwise_backward(out, **self.operands)
        asked = {"grad_out": out} | self.operands
        with pytest.raises(AssertionError, match="x should be None"):
            oracles.check(f"{CONV}_backward", SimpleNamespace(**grads), asked, {"needs": ()})

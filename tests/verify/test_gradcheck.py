"""gradcheck: every operator's backward passes, wrong ones fail in the operand that is wrong."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from verify_calls import forward_calls, normal

import npdwconv
from npdwconv import Grads, verify
from npdwconv.plans import NEEDS

CALLS = [
    pytest.param(case, id=f"{case.op}-{layout}-{activation}")
    for layout, activation in (("channels_first", None), ("channels_last", "gelu"))
    for case in forward_calls(layout, activation)
]


@pytest.mark.parametrize("case", CALLS)
def test_every_operator_passes(case):
    report = verify.gradcheck(case.op, **case.operands, **case.options)
    assert report.ok, str(report)
    gradients = {each.operand for each in report.identities}
    assert gradients == set(case.operands)
    assert any(each.left for each in report.identities if each.kind == "adjoint")


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float64"])
def test_other_dtypes(dtype):
    if dtype == "bfloat16":
        dtype = pytest.importorskip("ml_dtypes", reason="bfloat16").bfloat16
    x, weight = normal(2, 3, 9, 8, dtype=dtype), normal(3, 1, 3, 3, dtype=dtype)
    assert verify.gradcheck("depthwise_conv2d", x, weight, padding=1).ok


OPTIONS = {"stride": 2, "padding": 1}


def forward(x: Any, weight: Any, bias: Any) -> Any:
    return npdwconv.depthwise_conv2d(x, weight, bias, **OPTIONS)


def right(grad: Any, x: Any, weight: Any, bias: Any) -> Grads:
    return npdwconv.depthwise_conv2d_backward(grad, x, weight, bias, **OPTIONS)


def flipped(grad: Any, x: Any, weight: Any, bias: Any) -> Grads:
    grads = right(grad, x, weight, bias)
    return grads._replace(x=right(grad, x, weight[:, :, ::-1, ::-1], bias).x)


def scaled(grad: Any, x: Any, weight: Any, bias: Any) -> Grads:
    grads = right(grad, x, weight, bias)
    return grads._replace(weight=grads.weight * np.float32(1 + 1e-3))


def one_image(grad: Any, x: Any, weight: Any, bias: Any) -> Grads:
    return right(grad, x, weight, bias)._replace(bias=right(grad[:1], x[:1], weight, bias).bias)


def border(grad: Any, x: Any, weight: Any, bias: Any) -> Grads:
    grads = right(grad, x, weight, bias)
    grads.x[:, :, -1] = 0
    return grads


def phase(grad: Any, x: Any, weight: Any, bias: Any) -> Grads:
    moved = {"stride": 2, "padding": ((0, 2), (1, 1))}
    grads = right(grad, x, weight, bias)
    return grads._replace(weight=npdwconv.depthwise_conv2d_backward(grad, x, weight, bias, **moved).weight)


@pytest.mark.parametrize(
    ("backward", "wrong"),
    [(right, None), (flipped, "x"), (scaled, "weight"), (one_image, "bias"), (border, "x"), (phase, "weight")],
)
def test_a_pair_of_ones_own(backward, wrong):
    report = verify.gradcheck((forward, backward), normal(2, 4, 9, 9), normal(4, 1, 3, 3), normal(4))
    places = tuple(f"operand {NEEDS.index(name)}" for name in (wrong,) if name)
    assert (report.ok, report.failed) == (wrong is None, places)
    assert all(place in str(report) for place in places)


def test_an_activation_is_named_as_what_stands_in_the_way():
    def bent(x, weight):
        return npdwconv.pointwise_conv(x, weight, activation="relu")

    def backward(grad, x, weight):
        return npdwconv.pointwise_conv_backward(grad, x, weight, activation="relu")[:2]

    report = verify.gradcheck((bent, backward), normal(2, 5, 6), normal(7, 5))
    assert not report.ok
    assert "not affine" in str(report)


def test_wrong_calls():
    with pytest.raises(npdwconv.OptionError, match="op is"):
        verify.gradcheck("depthwise_conv2d_backward", normal(1, 1, 3, 3))
    with pytest.raises(npdwconv.ShapeError):
        verify.gradcheck("depthwise_conv2d", normal(1, 2, 5, 5), normal(3, 1, 3, 3))
    with pytest.raises(npdwconv.OptionError, match="int64"):
        verify.gradcheck((lambda x: x, lambda g, x: g), np.arange(3))

"""NaN and infinities reach exactly the results whose sums read them, whatever sums: zero padding reads nothing."""

from __future__ import annotations

import numpy as np
import pytest
from cuda_calls import C, depthwise, needs_cuda, pointwise, separable, silent, transposed
from kernels.situations import Situation, both_layouts

import npdwconv

pytestmark = [needs_cuda, silent]

READ = (
    depthwise("k3", 2, (3, 4), (3, 3), padding=1),
    depthwise("k3-s2-lanes", C, (3, 5), (3, 3), stride=2, padding=((2, 1), (1, 3))),
    depthwise("k1x9-loops", 1, (2, 5), (1, 9), padding=((0, 0), (4, 4))),
    depthwise("m2-3d", 1, (2, 2, 3), (2, 1, 3), 2, padding=(1, 0, 1)),
    depthwise("reflect", 1, (3, 4), (3, 2), padding=(2, 1), padding_mode="reflect"),
    transposed("transpose", 2, (2, 3), (3, 3), stride=2, padding=1, output_padding=1),
    transposed("transpose-loops", 1, (2, 2), (2, 3), stride=5, dilation=2),
    pointwise("pointwise", 3, 5, (4,)),
    separable("separable", 2, 3, (2, 4), (2, 3), padding=1),
)


@both_layouts(*READ, turns=False)
def test_what_is_not_finite_goes_where_it_is_read(s: Situation, layout: str):
    """One element of each operand after the other; the reference's laws are tests of their own."""
    rng = np.random.default_rng(4)
    whole = s.operands("integers", layout)
    behind = s.gradients(s.forward(whole, "reference", layout), "integers")
    for turn, name in enumerate((*whole, *behind)):
        arrays = {key: array.copy() for key, array in (whole | behind).items()}
        place = tuple(int(rng.integers(n)) for n in arrays[name].shape)
        arrays[name][place] = (np.inf, np.nan)[turn % 2]
        operands, back = ({key: arrays[key] for key in group} for group in (whole, behind))
        results = []
        for backend in ("cuda", "reference"):
            forward = s.forward(operands, backend, layout) if name in whole else {}
            backward = s.backward(operands, back, backend, layout) if name not in ("bias", "depthwise_bias") else {}
            results.append(forward | backward)
        for result, want in results[1].items():
            assert np.array_equal(results[0][result], want, equal_nan=True), (name, place, result)


@pytest.mark.parametrize("layout", ["channels_first", "channels_last"])
@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_an_infinite_tap_beside_zero_padding(layout: str, bad: float):
    """The first tap of a row reads padding for the first output, and every other output reads a real input."""
    shape = (1, 1, 2, 4) if layout == "channels_first" else (1, 2, 4, 1)
    x, weight = np.ones(shape, np.float32), np.ones((1, 1, 3, 3), np.float32)
    weight[0, 0, 1, 0] = bad
    out = npdwconv.depthwise_conv2d(x, weight, padding=1, layout=layout, backend="cuda").reshape(2, 4)
    assert np.isfinite(out[:, 0]).all()
    assert not np.isfinite(out[:, 1:]).any()
    grad = npdwconv.depthwise_conv2d_input_grad(x, weight, x.shape, padding=1, layout=layout, backend="cuda")
    assert np.isfinite(grad.reshape(2, 4)[:, -1]).all()
    assert not np.isfinite(grad.reshape(2, 4)[:, :-1]).any()


@pytest.mark.parametrize("layout", ["channels_first", "channels_last"])
def test_a_gradient_that_only_some_taps_meet(layout: str):
    """The gradient of the first output meets a real input under the middle and the last tap alone."""
    shape = (1, 1, 5) if layout == "channels_first" else (1, 5, 1)
    x, grad = np.ones(shape, np.float32), np.ones(shape, np.float32)
    grad.reshape(-1)[0] = np.inf
    found = npdwconv.depthwise_conv1d_weight_grad(grad, x, (1, 1, 3), padding=1, layout=layout, backend="cuda")
    assert found.reshape(-1).tolist() == [4.0, np.inf, np.inf]

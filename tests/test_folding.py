"""Folding a batch norm: the folded convolution is the convolution and its batch norm."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest

import npdwconv


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shape", [(4, 1, 3, 3), (4, 5), (4,)], ids=str)
def test_by_hand(shape, bias):
    rng = np.random.default_rng(1)
    w, b = rng.integers(-4, 5, shape).astype(float), rng.integers(-4, 5, 4).astype(float)
    gamma, beta, mean = rng.integers(-4, 5, (3, 4)).astype(float)
    var = np.array([3.0, 0.0, 8.0, 15.0])  # with eps 1 every root is an integer
    weight, offset = npdwconv.fold_batchnorm(w, b if bias else None, gamma, beta, mean, var, eps=1.0)
    for k, root in enumerate((2, 1, 3, 4)):
        scale = Fraction(int(gamma[k]), root)
        wanted = (int(b[k]) * bias - int(mean[k])) * scale + int(beta[k])
        assert offset[k] == pytest.approx(float(wanted), rel=1e-15, abs=1e-15)
        np.testing.assert_allclose(weight[k], float(scale) * w[k], rtol=1e-15)


def test_dtype_and_inputs_stay():
    arrays = [np.ones(shape, np.float16) for shape in ((2, 1, 3), (2,), (2,), (2,), (2,), (2,))]
    weight, bias = npdwconv.fold_batchnorm(*arrays, eps=1e-3)
    assert weight.dtype == bias.dtype == np.float16
    assert all((array == 1).all() for array in arrays)
    assert weight.flags.c_contiguous

"""A call like one that was checked before is not checked again: nothing else may pass for like it."""

from __future__ import annotations

import numpy as np
import pytest

import npdwconv as n

X, W, P = np.ones((1, 2, 5, 5), np.float32), np.ones((2, 1, 3, 3), np.float32), np.ones((4, 2), np.float32)

CALLS = {
    "forward": lambda x=X, w=W, **options: n.depthwise_conv2d(x, w, **options),
    "backward": lambda x=X, w=W, **options: (
        n.depthwise_conv2d_backward(np.ones((1, 2, 3, 3), np.float32), x, w, **options).x
    ),
    "input_grad": lambda x=X, w=W, **options: n.depthwise_conv2d_input_grad(
        np.ones((1, 2, 3, 3), x.dtype), w, x.shape, **options
    ),
    "weight_grad": lambda x=X, w=W, **options: n.depthwise_conv2d_weight_grad(
        np.ones((1, 2, 3, 3), w.dtype), x, w.shape, **options
    ),
    "separable": lambda x=X, w=W, **options: n.separable_conv2d(x, w, P, **options),
}
each = pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)


@each
@pytest.mark.parametrize("option", ["stride", "dilation"])
@pytest.mark.parametrize("value", [True, 1.0])
def test_an_equal_value_that_is_no_int_is_refused(call, option, value):
    call(**{option: 1})
    with pytest.raises(n.OptionError, match=option):
        call(**{option: value})


@each
def test_other_shapes_and_dtypes_are_checked(call):
    call()
    with pytest.raises(n.DTypeError):
        call(x=X.astype(np.float64))
    with pytest.raises(n.ShapeError):
        call(w=np.ones((3, 1, 3, 3), np.float32))
    with pytest.raises(n.DTypeError):
        call(x=X.astype(">f4"))


@pytest.mark.parametrize("name", CALLS)
def test_a_mask_is_not_ignored(name):
    """A masked array's shape and dtype are those of the call before."""
    CALLS[name]()
    masked = {"x": np.ma.masked_array(X)} if name == "weight_grad" else {"w": np.ma.masked_array(W)}
    with pytest.raises(n.DTypeError, match="masked"):
        CALLS[name](**masked)


@pytest.mark.parametrize("backend", ["reference", "numba"])
def test_another_input_shape_is_another_call(backend):
    """With a stride, inputs of several extents have a result of the same shape."""
    grad = np.ones((1, 2, 3, 3), np.float32)
    for size in (5, 6, 5, 6):
        shape = (1, 2, size, size)
        found = n.depthwise_conv2d_input_grad(grad, W, shape, stride=2, padding=1, backend=backend)
        assert found.shape == shape


@each
def test_the_second_result_is_the_first(call):
    assert np.array_equal(call(padding=0), call(padding=[0, 0]))
    assert np.array_equal(call(padding=0), call(padding=0))


def test_an_input_shape_of_other_types():
    grad = np.ones((1, 2, 3, 3), np.float32)
    n.depthwise_conv2d_input_grad(grad, W, (1, 2, 5, 5))
    with pytest.raises(n.OptionError, match="input_shape"):
        n.depthwise_conv2d_input_grad(grad, W, (True, 2, 5, 5))


def test_out_is_checked_every_time():
    out = np.empty((1, 2, 3, 3), np.float32)
    n.depthwise_conv2d(X, W, out=out)
    out.flags.writeable = False
    with pytest.raises(n.OptionError, match="read-only"):
        n.depthwise_conv2d(X, W, out=out)


@pytest.mark.parametrize(
    ("grid", "error"), [((True, 4), n.OptionError), ((1.0, 4), n.OptionError), ((2, 4), n.ShapeError)]
)
def test_another_grid_is_checked(grid, error):
    tokens = np.ones((1, 4, 2), np.float32)
    first = n.depthwise_conv_tokens(tokens, W, grid=(1, 4))
    assert np.array_equal(first, n.depthwise_conv_tokens(tokens, W, grid=(1, 4)))
    with pytest.raises(error, match="grid"):
        n.depthwise_conv_tokens(tokens, W, grid=grid)


@pytest.mark.parametrize("name", ["depthwise_conv2d", "depthwise_conv_tokens", "pointwise_conv"])
def test_a_result_array_is_checked_each_time(name):
    """A call that passed with one ``out`` says nothing of another."""
    memory = np.ones((1, 25 * 8), np.float32)
    x = memory[:, :100].reshape(1, 25, 4) if name == "depthwise_conv_tokens" else memory[:, :100].reshape(1, 4, 5, 5)
    weight = np.ones((4, 4), np.float32) if name == "pointwise_conv" else np.ones((4, 1, 3, 3), np.float32)
    options = {"depthwise_conv2d": {"padding": 1}, "depthwise_conv_tokens": {"grid": (5, 5)}, "pointwise_conv": {}}[
        name
    ]
    call = getattr(n, name)
    good = memory[:, 100:].reshape(x.shape)
    assert call(x, weight, out=good, **options) is good
    locked = np.ones_like(x)
    locked.flags.writeable = False
    half = memory[:, 50:150].reshape(x.shape)
    double = np.ones(x.shape, np.float64)
    for bad, found in ((x, n.OptionError), (half, n.OptionError), (locked, n.OptionError), (double, n.DTypeError)):
        kept = bad.copy()
        with pytest.raises(found, match="out"):
            call(x, weight, out=bad, **options)
        assert np.array_equal(bad, kept)
    with pytest.raises(n.ShapeError, match="out"):
        call(x, weight, out=np.ones((1, *x.shape), np.float32), **options)
    turned = np.ones(x.shape[::-1], np.float32).T
    assert np.array_equal(call(x, weight, out=turned, **options), call(x, weight, out=good, **options))

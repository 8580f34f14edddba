"""Calls that run at once, as calls like them did before: whatever differs must be noticed by the compiled code."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import pytest

import npdwconv as n
from npdwconv import layers, recalled

C, H, W = 6, 5, 7


class Form(NamedTuple):
    """A call, the shapes of its operands, whether it takes ``out``, and which operand's values it never reads."""

    call: Callable[..., Any]
    shapes: tuple[tuple[int, ...], ...]
    takes_out: bool = True
    unread: int | None = None


def forward(function, *shapes, **options):
    def call(*operands, **how):
        return function(*operands, **options, **how)

    return Form(call, shapes)


def gradient(needs, layout, x):
    def call(grad_out, weight, x, **how):
        return getattr(n.pointwise_conv_backward(grad_out, x, weight, needs=needs, layout=layout, **how), needs)

    grad = (2, 5, H, W) if layout == "channels_first" else (2, H, W, 5)
    return Form(call, (grad, (5, C), x), takes_out=False, unread=2 if needs == "x" else 1)


def depthwise_gradient(function, layout, *shapes, of):
    """Of ``function(grad_out, operand, shape of the gradient)``."""

    def call(grad_out, operand, **how):
        return function(grad_out, operand, of, padding=1, layout=layout, **how)

    return Form(call, shapes, takes_out=False)


def separable(x, layout):
    def call(x, depthwise_weight, pointwise_weight, bias, depthwise_bias, **how):
        options = {"padding": 1, "layout": layout, "depthwise_activation": "relu6", "activation": "relu"}
        return n.separable_conv2d(
            x, depthwise_weight, pointwise_weight, bias, depthwise_bias=depthwise_bias, **options, **how
        )

    return Form(call, (x, (C, 1, 3, 3), (5, C), (5,), (C,)))


FIRST, LAST, TAPS = (2, C, H, W), (2, H, W, C), (C, 1, 3, 3)
FORMS = {
    "channels_first": forward(n.depthwise_conv2d, FIRST, TAPS, (C,), padding=1),
    "channels_last": forward(n.depthwise_conv2d, LAST, TAPS, (C,), padding=1, layout="channels_last"),
    "transposed": forward(n.depthwise_conv_transpose2d, FIRST, TAPS, (C,), padding=1),
    "transposed, channels_last": forward(
        n.depthwise_conv_transpose2d, LAST, TAPS, (C,), padding=1, layout="channels_last"
    ),
    "tokens": forward(n.depthwise_conv_tokens, (2, H * W, C), TAPS, (C,), grid=(H, W)),
    "pointwise": forward(n.pointwise_conv, FIRST, (5, C), (5,), activation="relu"),
    "pointwise, channels_last": forward(n.pointwise_conv, LAST, (5, C, 1, 1), (5,), layout="channels_last"),
    "pointwise input gradient": gradient("x", "channels_first", FIRST),
    "pointwise input gradient, channels_last": gradient("x", "channels_last", LAST),
    "pointwise weight gradient": gradient("weight", "channels_first", FIRST),
    "pointwise weight gradient, channels_last": gradient("weight", "channels_last", LAST),
    "input gradient": depthwise_gradient(n.depthwise_conv2d_input_grad, "channels_first", FIRST, TAPS, of=FIRST),
    "input gradient, channels_last": depthwise_gradient(
        n.depthwise_conv2d_input_grad, "channels_last", LAST, TAPS, of=LAST
    ),
    "weight gradient": depthwise_gradient(n.depthwise_conv2d_weight_grad, "channels_first", FIRST, FIRST, of=TAPS),
    "weight gradient, channels_last": depthwise_gradient(
        n.depthwise_conv2d_weight_grad, "channels_last", LAST, LAST, of=TAPS
    ),
    "separable": separable(FIRST, "channels_first"),
    "separable, channels_last": separable(LAST, "channels_last"),
}
each = pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
each_out = pytest.mark.parametrize(
    "form", [f for f in FORMS.values() if f.takes_out], ids=[name for name, f in FORMS.items() if f.takes_out]
)


def operands_of(form, seed, *, bias=True):
    """Small integers, of which every sum is exact; without ``bias`` what has one axis is None."""
    rng = np.random.default_rng(seed)
    drawn = [rng.integers(-4, 5, shape).astype(np.float32) for shape in form.shapes]
    return [a if bias or a.ndim > 1 else None for a in drawn]


@pytest.fixture(autouse=True)
def forgotten():
    recalled._ready.clear()


def ready(form, *, bias=True):
    """Operands, of which a call is ready, and the result."""
    operands = operands_of(form, 0, bias=bias)
    right = form.call(*operands, backend="reference")
    assert np.array_equal(form.call(*operands, backend="numba"), right)
    return operands, right


def count_runs(monkeypatch, kept_by=recalled):
    """Whether each call that is ready ran, as it is made."""
    runs = []

    def noting(ready):
        def run(*arrays):
            runs.append(ready.run(*arrays))
            return runs[-1]

        return ready._replace(run=run)

    for key, kept in list(kept_by._ready.items()):
        assert kept is not None
        monkeypatch.setitem(kept_by._ready, key, noting(kept))
    return runs


@each
@pytest.mark.parametrize("bias", [False, True])
def test_other_contents_at_other_places(form, bias, monkeypatch):
    ready(form, bias=bias)
    runs = count_runs(monkeypatch)
    for seed in (3, 4):
        operands = operands_of(form, seed, bias=bias)
        right = form.call(*operands, backend="reference")
        if form.takes_out:
            out = np.empty_like(right)
            assert form.call(*operands, backend="numba", out=out) is out
            assert np.array_equal(out, right)
        assert np.array_equal(form.call(*operands, backend="numba"), right)
    assert runs == [True] * (4 if form.takes_out else 2)


def strided(a):
    wide = np.zeros((*a.shape[:-1], 2 * a.shape[-1]), a.dtype)
    wide[..., ::2] = a
    return wide[..., ::2]


def misaligned(a):
    memory = np.zeros(a.nbytes + 1, np.uint8)
    memory[1:] = a.view(np.uint8).ravel()
    return memory[1:].view(a.dtype).reshape(a.shape)


@each
@pytest.mark.parametrize("lay", [strided, misaligned])
def test_arrays_that_lie_otherwise(form, lay, monkeypatch):
    """Right all the same, by the way that copies them."""
    operands, right = ready(form)
    runs = count_runs(monkeypatch)
    for place, array in enumerate(operands):
        laid = [*operands[:place], lay(array), *operands[place + 1 :]]
        assert np.array_equal(form.call(*laid, backend="numba"), right)
        assert runs[-1] == (place == form.unread)
    if form.takes_out:
        out = lay(np.empty_like(right))
        assert form.call(*operands, backend="numba", out=out) is out
        assert np.array_equal(out, right)
        assert not runs[-1]


@each
def test_operands_that_are_read_only(form, monkeypatch):
    operands, right = ready(form)
    runs = count_runs(monkeypatch)
    for array in operands:
        array.flags.writeable = False
    assert np.array_equal(form.call(*operands, backend="numba"), right)
    assert runs == [True]


@each_out
@pytest.mark.parametrize("end", ["first", "last"])
def test_out_that_shares_an_element(form, end):
    operands, right = ready(form)
    for place, array in enumerate(operands):
        size, other = right.size, array.size
        memory = np.zeros(size + other - 1, np.float32)
        out, shared = (memory[:size], memory[size - 1 :]) if end == "first" else (memory[other - 1 :], memory[:other])
        out, shared = out.reshape(right.shape), shared.reshape(array.shape)
        shared[...] = array
        kept = memory.copy()
        with pytest.raises(n.OptionError, match="out shares memory"):
            form.call(*operands[:place], shared, *operands[place + 1 :], backend="numba", out=out)
        assert np.array_equal(memory, kept)


@each_out
def test_out_right_beside_the_operands(form, monkeypatch):
    operands, right = ready(form)
    runs = count_runs(monkeypatch)
    first, second, *others = operands
    memory = np.zeros(first.size + right.size + second.size, np.float32)
    x, out, weight = np.split(memory, [first.size, first.size + right.size])
    x, weight, out = x.reshape(first.shape), weight.reshape(second.shape), out.reshape(right.shape)
    x[...], weight[...] = first, second
    assert form.call(x, weight, *others, backend="numba", out=out) is out
    assert np.array_equal(out, right)
    assert np.array_equal(x, first)
    assert np.array_equal(weight, second)
    assert runs == [True]


@each_out
def test_out_that_cannot_be_written(form):
    operands, right = ready(form)
    out = np.zeros_like(right)
    out.flags.writeable = False
    with pytest.raises(n.OptionError, match="read-only"):
        form.call(*operands, backend="numba", out=out)
    assert not out.any()


@each
def test_what_else_a_call_depends_on(form, monkeypatch):
    """Another backend, number of threads or environment is another call."""
    operands, right = ready(form)
    threads = n.get_num_threads()
    try:
        for count in (1, 3):
            n.set_num_threads(count)
            assert np.array_equal(form.call(*operands, backend="numba"), right)
    finally:
        n.set_num_threads(threads)
    with n.use_backend("reference"):
        kept = len(recalled._ready)
        form.call(*operands)
        form.call(*operands)
        assert len(recalled._ready) == kept
    monkeypatch.setenv("NPDWCONV_BACKEND", "numba")
    assert np.array_equal(form.call(*operands), right)
    assert len(recalled._ready) == kept + 1
    monkeypatch.setenv("NPDWCONV_BACKEND", "reference")
    form.call(*operands)
    assert len(recalled._ready) == kept + 1
    with pytest.raises(n.OptionError, match="backend"):
        form.call(*operands, backend=["numba"])


def test_a_border_that_is_copied_is_never_ready():
    x, weight = operands_of(FORMS["channels_first"], 0)[:2]
    results = [
        n.depthwise_conv2d(x, weight, padding=1, padding_mode="reflect", backend=backend)
        for backend in ("reference", "numba", "numba")
    ]
    assert np.array_equal(results[0], results[1])
    assert np.array_equal(results[0], results[2])
    assert list(recalled._ready.values()) == [None]


LAYERS = {
    "depthwise": lambda layout: layers.DepthwiseConv2d(C, 3, padding=1, layout=layout),
    "pointwise": lambda layout: layers.PointwiseConv(C, 5, layout=layout, activation="relu"),
    "separable": lambda layout: layers.SeparableConv2d(C, 5, 3, padding=1, layout=layout),
    "standard": lambda layout: layers.StandardConv2d(C, 5, 3, stride=2, layout=layout),
}


@pytest.mark.parametrize("shape", [FIRST, LAST], ids=["channels_first", "channels_last"])
@pytest.mark.parametrize("kind", LAYERS)
def test_a_frozen_layer(kind, shape, monkeypatch):
    """Its second forward runs at once, on contents of its own; where x lies otherwise, step by step."""
    rng = np.random.default_rng(7)
    layer = LAYERS[kind]("channels_first" if shape is FIRST else "channels_last")
    layer.load_state_dict({k: rng.integers(-4, 5, a.shape).astype(a.dtype) for k, a in layer.params.items()})
    inputs = [rng.integers(-4, 5, shape).astype(np.float32) for _ in range(2)]
    with n.use_backend("reference"):
        right = [layer(x) for x in inputs]
    layer.freeze()
    with n.use_backend("numba"):
        assert np.array_equal(layer(inputs[0]), right[0])
        runs = count_runs(monkeypatch, layer)
        for x, wanted, lies_well in ((inputs[1], right[1], True), (strided(inputs[0]), right[0], False)):
            assert np.array_equal(layer(x), wanted)
            assert runs[-1] is lies_well
    with n.use_backend("reference"):
        assert np.array_equal(layer(inputs[1]), right[1])
    assert len(runs) == 2

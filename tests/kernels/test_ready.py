"""Forwards that run at once, as calls like them did before: whatever differs must be noticed by the compiled code."""

from __future__ import annotations

import numpy as np
import pytest

import npdwconv as n
from npdwconv import recalled

C, H, W = 6, 5, 7
FORMS = {
    "channels_first": (n.depthwise_conv2d, (2, C, H, W), {"padding": 1}),
    "channels_last": (n.depthwise_conv2d, (2, H, W, C), {"padding": 1, "layout": "channels_last"}),
    "transposed": (n.depthwise_conv_transpose2d, (2, C, H, W), {"padding": 1}),
    "transposed, channels_last": (
        n.depthwise_conv_transpose2d,
        (2, H, W, C),
        {"padding": 1, "layout": "channels_last"},
    ),
    "tokens": (n.depthwise_conv_tokens, (2, H * W, C), {"grid": (H, W)}),
}
each = pytest.mark.parametrize("form", FORMS)


def integers(seed, shape):
    return np.random.default_rng(seed).integers(-4, 5, shape).astype(np.float32)


@pytest.fixture(autouse=True)
def forgotten():
    recalled._ready.clear()


def call(form, x, weight, bias=None, out=None, backend="numba"):
    function, _, options = FORMS[form]
    return function(x, weight, bias, backend=backend, out=out, **options)


def ready(form, *, bias=True):
    """Operands, of which a call is ready, and the result."""
    x, weight = integers(0, FORMS[form][1]), integers(1, (C, 1, 3, 3))
    b = integers(2, (C,)) if bias else None
    right = call(form, x, weight, b, backend="reference")
    assert np.array_equal(call(form, x, weight, b), right)
    return x, weight, b, right


def count_runs(monkeypatch):
    """Whether each call that is ready ran, as it is made."""
    runs = []

    def noting(ready):
        def run(*arrays):
            runs.append(ready.run(*arrays))
            return runs[-1]

        return ready._replace(run=run)

    for key, kept in list(recalled._ready.items()):
        monkeypatch.setitem(recalled._ready, key, noting(kept))
    return runs


@each
@pytest.mark.parametrize("bias", [False, True])
def test_other_contents_at_other_places(form, bias, monkeypatch):
    ready(form, bias=bias)
    runs = count_runs(monkeypatch)
    for seed in (3, 4):
        x, weight = integers(seed, FORMS[form][1]), integers(seed + 10, (C, 1, 3, 3))
        b = integers(seed + 20, (C,)) if bias else None
        right = call(form, x, weight, b, backend="reference")
        out = np.empty_like(right)
        assert call(form, x, weight, b, out=out) is out
        assert np.array_equal(out, right)
        assert np.array_equal(call(form, x, weight, b), right)
    assert runs == [True] * 4


@each
def test_arrays_that_lie_otherwise(form, monkeypatch):
    """Strided, misaligned, read-only: right all the same, and by another way where they must be copied."""
    x, weight, bias, right = ready(form)
    runs = count_runs(monkeypatch)

    def strided(a):
        wide = np.zeros((*a.shape[:-1], 2 * a.shape[-1]), a.dtype)
        wide[..., ::2] = a
        return wide[..., ::2]

    def misaligned(a):
        memory = np.zeros(a.nbytes + 1, np.uint8)
        memory[1:] = a.view(np.uint8).ravel()
        return memory[1:].view(a.dtype).reshape(a.shape)

    for lay in (strided, misaligned):
        for place in range(3):
            operands = [lay(a) if i == place else a for i, a in enumerate((x, weight, bias))]
            assert np.array_equal(call(form, *operands), right)
        out = lay(np.empty_like(right))
        assert call(form, x, weight, bias, out=out) is out
        assert np.array_equal(out, right)
    assert not any(runs)
    for a in (x, weight, bias):
        a.flags.writeable = False
    assert np.array_equal(call(form, x, weight, bias), right)
    assert runs[-1]


@each
@pytest.mark.parametrize("place", range(3))
@pytest.mark.parametrize("end", ["first", "last"])
def test_out_that_shares_an_element(form, place, end):
    x, weight, bias, right = ready(form)
    operands = [x, weight, bias]
    size, other = right.size, operands[place].size
    memory = np.zeros(size + other - 1, np.float32)
    out, shared = (memory[:size], memory[size - 1 :]) if end == "first" else (memory[other - 1 :], memory[:other])
    out, shared = out.reshape(right.shape), shared.reshape(operands[place].shape)
    shared[...] = operands[place]
    operands[place] = shared
    kept = memory.copy()
    with pytest.raises(n.OptionError, match="out shares memory"):
        call(form, *operands, out=out)
    assert np.array_equal(memory, kept)


@each
def test_out_right_beside_the_operands(form, monkeypatch):
    x, weight, _, right = ready(form, bias=False)
    runs = count_runs(monkeypatch)
    memory = np.zeros(x.size + right.size + weight.size, np.float32)
    first, out, second = np.split(memory, [x.size, x.size + right.size])
    first, second, out = first.reshape(x.shape), second.reshape(weight.shape), out.reshape(right.shape)
    first[...], second[...] = x, weight
    assert call(form, first, second, out=out) is out
    assert np.array_equal(out, right)
    assert np.array_equal(first, x)
    assert np.array_equal(second, weight)
    assert runs == [True]


@each
def test_out_that_cannot_be_written(form):
    x, weight, bias, right = ready(form)
    out = np.zeros_like(right)
    out.flags.writeable = False
    with pytest.raises(n.OptionError, match="read-only"):
        call(form, x, weight, bias, out=out)
    assert not out.any()


@each
def test_what_else_a_call_depends_on(form):
    """Another backend, number of threads or environment is another call."""
    x, weight, bias, right = ready(form)
    threads = n.get_num_threads()
    try:
        for count in (1, 3):
            n.set_num_threads(count)
            assert np.array_equal(call(form, x, weight, bias), right)
    finally:
        n.set_num_threads(threads)
    with n.use_backend("reference"):
        kept = len(recalled._ready)
        call(form, x, weight, bias, backend=None)
        call(form, x, weight, bias, backend=None)
        assert len(recalled._ready) == kept
    with pytest.raises(n.OptionError, match="backend"):
        call(form, x, weight, bias, backend=["numba"])


def test_a_border_that_is_copied_is_never_ready(monkeypatch):
    x, weight = integers(0, (1, C, H, W)), integers(1, (C, 1, 3, 3))
    results = [
        n.depthwise_conv2d(x, weight, padding=1, padding_mode="reflect", backend=backend)
        for backend in ("reference", "numba", "numba")
    ]
    assert np.array_equal(results[0], results[1])
    assert np.array_equal(results[0], results[2])

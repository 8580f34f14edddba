"""Every operator on the CUDA backend against the reference: the same bits on small integers, else within rounding.

In the simulator by default; on the machine's GPU with NPDWCONV_TEST_GPU=1, where `-m gpu` runs the table at real sizes.
"""

from __future__ import annotations

import numpy as np
import oracles
import pytest
from cuda_calls import (
    closely,
    core,
    depthwise,
    exactly,
    more,
    needs_cuda,
    needs_gpu,
    on_device,
    on_host,
    pointwise,
    swept,
)
from kernels.situations import DTYPES, Situation, both_layouts, mismatch
from strategies import LAYOUTS, moved, same_bits

import npdwconv
from npdwconv import dispatch, layers, use_backend
from npdwconv.activations import ACTIVATIONS

pytestmark = needs_cuda
GPU_SCALE = 16


@both_layouts(*core())
def test_integers(s: Situation, layout: str):
    exactly(s, layout, **dict.fromkeys(s.activations, "relu6"))


@both_layouts(*more())
def test_integers_of_every_option(s: Situation, layout: str):
    exactly(s, layout)


@pytest.mark.parametrize("dtype", [dtype for dtype in DTYPES if dtype != "float32"])
@both_layouts(*core(), turns=True)
def test_integers_of_every_dtype(s: Situation, layout: str, dtype: str):
    if dtype == "bfloat16":
        pytest.importorskip("ml_dtypes", reason="bfloat16")
    exactly(s, layout, dtype)


def test_the_middle_value_of_a_separable_convolution_is_not_rounded():
    """2048 + 1 is no float16; less 2048 it is 1 again."""
    x, taps = np.array([[[2048, 1]]], np.float16), np.ones((1, 1, 2), np.float16)
    mixed, bias = np.ones((1, 1), np.float16), np.array([-2048], np.float16)
    assert npdwconv.separable_conv1d(x, taps, mixed, bias, backend="cuda").tolist() == [[[1.0]]]


@both_layouts(*core(), turns=True)
def test_floats(s: Situation, layout: str):
    closely(s, layout, "float32", **dict.fromkeys(s.activations, "silu"))


@both_layouts(*core(), *(s for s in more() if s.name in ("causal-state", "tokens", "uneven")), turns=True)
def test_the_definition_in_loops(s: Situation, layout: str):
    """The same calls against loops that know nothing of this package."""
    operands = s.operands("integers", layout)
    options = s.options | ({} if s.operator == "depthwise_conv_tokens" else {"layout": layout})
    found = getattr(npdwconv, s.operator)(**operands, **options, backend="cuda")
    oracles.check(s.operator, found, operands, options, exact=True)
    outputs = s.forward(operands, "reference", layout)
    behind = s.gradients(outputs, "integers")
    grads = getattr(npdwconv, f"{s.operator}_backward")(**behind, **operands, **options, backend="cuda")
    oracles.check(f"{s.operator}_backward", grads, behind | operands, options, exact=True)


@both_layouts(*core(), turns=True)
def test_the_same_call_twice(s: Situation, layout: str):
    operands = on_device(s.operands("float32", layout))
    host = s.forward(s.operands("float32", layout), "reference", layout)
    behind = on_device(s.gradients(host, "float32"))
    once, again = (on_host(s.both(operands, behind, "cuda", layout)) for _ in range(2))
    assert all(same_bits(once[name], again[name]) for name in once)


EMPTY = {
    "no-images": {"x": (0, 2, 3, 4), "weight": (2, 1, 3, 3), "bias": (2,)},
    "no-channels": {"x": (2, 0, 3, 4), "weight": (0, 1, 3, 3), "bias": (0,)},
    "no-pixels": {"x": (2, 2, 3, 0), "weight": (2, 1, 3, 3), "bias": (2,)},
    "pointwise-no-images": {"x": (0, 3, 4), "weight": (2, 3), "bias": (2,)},
    "pointwise-no-channels": {"x": (2, 0, 4), "weight": (2, 0), "bias": (2,)},
    "pointwise-no-results": {"x": (2, 3, 4), "weight": (0, 3), "bias": (0,)},
    "pointwise-no-pixels": {"x": (2, 3, 0), "weight": (2, 3), "bias": (2,)},
}


def nothing() -> list[Situation]:
    made = []
    for name, shapes in EMPTY.items():
        flat = name.startswith("pointwise")
        operator, options = ("pointwise_conv", {}) if flat else ("depthwise_conv2d", {"padding": 2})
        made.append(Situation(name, operator, shapes, options))
    made.append(Situation("causal-no-time", "causal_depthwise_conv1d", {"x": (1, 2, 0), "weight": (2, 1, 3)}))
    grid = {"grid": (0, 3)}
    shapes = {"x": (1, 2, 0), "weight": (2, 1, 3, 3)}
    made.append(Situation("tokens-none", "depthwise_conv_tokens", shapes, grid, layouts=("channels_last",)))
    return made


@both_layouts(*nothing())
def test_extents_of_zero(s: Situation, layout: str):
    exactly(s, layout)
    operands = s.operands("integers", layout)
    behind = s.gradients(s.forward(operands, "reference", layout), "integers")
    found = on_host(s.both(on_device(operands), on_device(behind), "cuda", layout))
    assert not mismatch(found, s.both(operands, behind, "reference", layout))


def test_gradients_alone():
    """``…_input_grad`` and ``…_weight_grad``, of every rank."""
    rng = np.random.default_rng(3)
    for rank in (1, 2, 3):
        x = rng.integers(-4, 5, (1, 2, *(3,) * rank)).astype(np.float32)
        weight = rng.integers(-4, 5, (2, 1, *(2,) * rank)).astype(np.float32)
        grad = rng.integers(-4, 5, (1, 2, *(4,) * rank)).astype(np.float32)
        for stem, operands in (("input", (grad, weight, x.shape)), ("weight", (grad, x, weight.shape))):
            run = getattr(npdwconv, f"depthwise_conv{rank}d_{stem}_grad")
            found, wanted = (run(*operands, padding=1, backend=backend) for backend in ("cuda", "reference"))
            assert np.array_equal(found, wanted)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_frozen_layers(layout: str):
    """A layer keeps its weight as the backend's forward takes it, for as many calls as come."""
    layer = layers.PointwiseConv(3, 4, activation="relu6", layout=layout)
    for parameter in layer.params.values():
        parameter[...] = np.random.default_rng(5).integers(-2, 3, parameter.shape)
    x = moved(np.random.default_rng(6).integers(-4, 5, (2, 3, 5)).astype(np.float32), layout)
    wanted = layer(x)
    frozen = layer.freeze()
    with use_backend("cuda"):
        assert same_bits(frozen(x), wanted)
        assert same_bits(frozen(x), wanted)


def test_every_operation_of_the_table_is_called(monkeypatch):
    """What the table lists for this backend is what the situations above call."""
    called = set()
    chosen = dispatch._chosen

    def watched(operator, operation, backend, x):
        if backend == "cuda":
            called.add(operation)
        return chosen(operator, operation, "reference", x)

    monkeypatch.setattr(dispatch, "_chosen", watched)
    monkeypatch.setattr(dispatch, "_kernels", {})
    for s in (*core(), *more()):
        operands = s.operands("integers", s.layouts[0])
        outputs = s.forward(operands, "cuda", s.layouts[0])
        s.backward(operands, s.gradients(outputs, "integers"), "cuda", s.layouts[0])
    listed = {operation for operation, (_, backends) in dispatch.TABLE.items() if "cuda" in backends}
    assert listed - called == {"pointwise_panels"}, "what a frozen layer keeps; see test_frozen_layers"


# everything, and on a GPU


@pytest.mark.sweep
@both_layouts(*swept())
def test_sweep(s: Situation, layout: str):
    exactly(s, layout)


@pytest.mark.sweep
@pytest.mark.parametrize("dtype", DTYPES)
@both_layouts(*core(), *more())
def test_sweep_of_dtypes(s: Situation, layout: str, dtype: str):
    exactly(s, layout, dtype)
    closely(s, layout, dtype)


@pytest.mark.sweep
@pytest.mark.parametrize("activation", list(ACTIVATIONS))
@both_layouts(*core())
def test_sweep_of_activations(s: Situation, layout: str, activation: str):
    closely(s, layout, "float32", **dict.fromkeys(s.activations, activation))


@needs_gpu
@pytest.mark.gpu
@pytest.mark.parametrize("dtype", DTYPES)
@both_layouts(*core(GPU_SCALE), *more(GPU_SCALE))
def test_real_sizes(s: Situation, layout: str, dtype: str):
    exactly(s, layout, dtype)
    closely(s, layout, dtype, **dict.fromkeys(s.activations, "silu"))


@needs_gpu
@pytest.mark.gpu
@both_layouts(
    pointwise("more-images-than-a-grid-has", 2, 3, (2,), 70_000),
    pointwise("more-pixels-than-a-grid-has", 1, 64, (2048, 2049), 1),
    depthwise("more-planes-than-a-grid-has", 70_000, (2, 3), (3, 3), padding=1),
)
def test_more_than_a_grid_has(s: Situation, layout: str):
    exactly(s, layout)


@needs_gpu
@pytest.mark.gpu
@both_layouts(*swept(), *swept(GPU_SCALE))
def test_sweep_at_real_sizes(s: Situation, layout: str):
    exactly(s, layout)

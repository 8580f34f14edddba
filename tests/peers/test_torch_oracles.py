"""The oracles beside PyTorch in float64: its own padding modes, named paddings as JAX resolves them, autograd."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import oracles
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from oracle_numbers import ACTIVATIONS
from peers.torch_cases import ACTIVATION, CONV, PAD_MODE, TRANSPOSE, F, torch
from strategies import LAYOUTS, RANKS, Case, cases, channels_first, moved, transposed

lax: Any = pytest.importorskip("jax", reason="resolves named paddings").lax
pytestmark = pytest.mark.peers

activations = st.sampled_from([None, *ACTIVATIONS])
Pads = list[tuple[int, int]]


def spans(case: Case) -> list[int]:
    return [(k - 1) * d + 1 for k, d in zip(case.kernel, case.options["dilation"], strict=True)]


def resolved(padding: Any, size: tuple[int, ...], case: Case) -> Pads:
    """(low, high) per axis."""
    if not isinstance(padding, str):
        return list(padding)
    name = {"same_lower": "SAME_LOWER", "valid": "VALID"}.get(padding, "SAME")
    pads: Pads = lax.padtype_to_pads(size, spans(case), case.options["stride"], name)
    return [*pads[:-1], (spans(case)[-1] - 1, 0)] if padding == "causal" else pads


def flat(pads: Pads) -> list[int]:
    """As `F.pad` takes them: the last axis first."""
    return [extent for pair in reversed(pads) for extent in pair]


def depthwise(case: Case) -> Callable[..., Any]:
    pads, mode = flat(resolved(case.options["padding"], case.size, case)), PAD_MODE[case.options["padding_mode"]]
    options = {"stride": case.options["stride"], "dilation": case.options["dilation"], "groups": case.channels}
    return lambda x, weight, bias: CONV[case.rank](F.pad(x, pads, mode=mode), weight, bias, **options)


def transpose(case: Case, options: dict[str, Any]) -> Callable[..., Any]:
    """The unpadded result, cropped (or continued by zeros) to what is asked for."""
    named, stride = isinstance(options["padding"], str), options["stride"]
    wide = tuple(n * s for n, s in zip(case.size, stride, strict=True))
    whole = [(n - 1) * s + span for n, s, span in zip(case.size, stride, spans(case), strict=True)]
    more = options.get("output_padding", (0,) * case.rank)
    crop = []
    for axis, (low, high) in enumerate(resolved(options["padding"], wide, case)):
        end = low + wide[axis] if named else whole[axis] - high + more[axis]
        crop.append((-low, end - whole[axis]))

    def peer(x: Any, weight: Any, bias: Any) -> Any:
        taps = weight.reshape(case.channels, case.multiplier, *case.kernel)
        z = TRANSPOSE[case.rank](x, taps, stride=stride, dilation=options["dilation"], groups=case.channels)
        return F.pad(z, flat(crop)) + bias.reshape(-1, *(1,) * case.rank)

    return peer


def agree(op: str, arrays: dict[str, np.ndarray], options: dict[str, Any], peer: Callable[..., Any], seed: int) -> None:
    """Result and gradients; ``arrays`` are channels_first and in the order of the peer's arguments."""
    layout = options["layout"]
    theirs = {name: torch.tensor(array, requires_grad=True) for name, array in arrays.items()}
    out = peer(**theirs)
    grad_out = np.random.default_rng(seed).standard_normal(tuple(out.shape))
    out.backward(torch.tensor(grad_out))
    ours = arrays | {"x": moved(arrays["x"], layout)}
    found = oracles.expect(f"{op}_backward", ours | {"grad_out": moved(grad_out, layout)}, options)
    found["out"] = oracles.expect(op, ours, options)
    for name, wanted in {"out": out, **{name: tensor.grad for name, tensor in theirs.items()}}.items():
        result = channels_first(found[name], layout) if name in ("out", "x") else found[name]
        np.testing.assert_allclose(result.astype(float), wanted.detach().numpy(), rtol=1e-12, atol=1e-12)


def operands(case: Case) -> dict[str, np.ndarray]:
    shapes = {"x": (case.batch, case.channels, *case.size), "weight": case.weight_shape, "bias": (case.outputs,)}
    return {name: case.rng.standard_normal(shape) for name, shape in shapes.items()}


@pytest.mark.parametrize("rank", RANKS)
@given(data=st.data(), activation=activations)
@settings(max_examples=30)
def test_depthwise(rank: int, data: st.DataObject, activation: str | None):
    case = data.draw(cases(ranks=(rank,)))
    conv = depthwise(case)

    def peer(x: Any, weight: Any, bias: Any) -> Any:
        return ACTIVATION[activation](conv(x, weight, bias))

    options = case.options | {"activation": activation}
    agree(f"depthwise_conv{rank}d", operands(case), options, peer, case.seed)


@pytest.mark.parametrize("rank", RANKS)
@given(data=st.data(), activation=activations)
@settings(max_examples=30)
def test_transposed(rank: int, data: st.DataObject, activation: str | None):
    case, options = data.draw(transposed().filter(lambda drawn: drawn[0].rank == rank))
    conv = transpose(case, options)

    def peer(x: Any, weight: Any, bias: Any) -> Any:
        return ACTIVATION[activation](conv(x, weight, bias))

    agree(f"depthwise_conv_transpose{rank}d", operands(case), options | {"activation": activation}, peer, case.seed)


@given(data=st.data(), inner=activations, outer=activations, outputs=st.integers(1, 3))
@settings(max_examples=40)
def test_separable(data: st.DataObject, inner: str | None, outer: str | None, outputs: int):
    """Depthwise and pointwise with both activations: the chain of all the parts."""
    case = data.draw(cases())
    conv, drawn = depthwise(case), operands(case)
    arrays = {"x": drawn["x"], "depthwise_weight": drawn["weight"], "depthwise_bias": drawn["bias"]}
    arrays |= {"pointwise_weight": case.rng.standard_normal((outputs, case.outputs))}
    arrays |= {"bias": case.rng.standard_normal(outputs)}

    def peer(x: Any, depthwise_weight: Any, depthwise_bias: Any, pointwise_weight: Any, bias: Any) -> Any:
        middle = ACTIVATION[inner](conv(x, depthwise_weight, depthwise_bias))
        dense = pointwise_weight.reshape(*pointwise_weight.shape, *(1,) * case.rank)
        return ACTIVATION[outer](CONV[case.rank](middle, dense, bias))

    options = case.options | {"depthwise_activation": inner, "activation": outer}
    agree(f"separable_conv{case.rank}d", arrays, options, peer, case.seed)


@given(
    shape=st.tuples(*[st.integers(1, 3)] * 4),
    length=st.integers(1, 5),
    layout=st.sampled_from(LAYOUTS),
    act=activations,
)
@settings(max_examples=40)
def test_causal(shape: tuple[int, int, int, int], length: int, layout: str, act: str | None):
    """The state in front, and no padding: ONNX's CausalConvWithState is Concat, Conv and Slice."""
    batch, channels, multiplier, taps = shape
    rng = np.random.default_rng(sum(shape))
    arrays = {
        "x": rng.standard_normal((batch, channels, length)),
        "state": rng.standard_normal((batch, channels, taps - 1)),
    }
    weight, bias = rng.standard_normal((channels * multiplier, 1, taps)), rng.standard_normal(channels * multiplier)
    theirs = {
        name: torch.tensor(a, requires_grad=True) for name, a in {**arrays, "weight": weight, "bias": bias}.items()
    }
    whole = torch.cat([theirs["state"], theirs["x"]], dim=2)
    out = ACTIVATION[act](CONV[1](whole, theirs["weight"], theirs["bias"], groups=channels))
    grads = [rng.standard_normal(tuple(a.shape)) for a in (out, theirs["state"])]
    torch.autograd.backward([out, whole[:, :, length:]], [torch.tensor(grad) for grad in grads])
    operands = {"x": moved(arrays["x"], layout), "state": arrays["state"], "weight": weight, "bias": bias}
    options = {"layout": layout, "activation": act}
    result, _ = oracles.expect("causal_depthwise_conv1d", operands, options)
    asked = operands | {"grad_out": moved(grads[0], layout), "grad_next_state": grads[1]}
    found = oracles.expect("causal_depthwise_conv1d_backward", asked, options) | {"out": result}
    for name, wanted in {"out": out, **{name: tensor.grad for name, tensor in theirs.items()}}.items():
        ours = channels_first(found[name], layout) if name in ("out", "x") else found[name]
        np.testing.assert_allclose(ours.astype(float), wanted.detach().numpy(), rtol=1e-12, atol=1e-12)

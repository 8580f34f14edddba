"""The other operators beside PyTorch: transposed, pointwise, separable, tokens, causal; forward and gradients."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from oracle_numbers import ACTIVATIONS
from peers.peer_bounds import (
    Array,
    Estimate,
    Maps,
    activate,
    agree,
    chain,
    estimates,
    product,
    total,
)
from peers.peer_bounds import given as exactly
from peers.torch_cases import (
    ACTIVATION,
    CONV,
    Case,
    conv_cases,
    differentiate,
    first,
    maps,
    stored,
    torch,
    transpose_cases,
)

import npdwconv

pytestmark = pytest.mark.peers
RANKS = (1, 2, 3)
LAYOUTS = ("channels_first", "channels_last")
DTYPES = ("float32", "float64")
NAMES = st.sampled_from((None, *ACTIVATIONS))


def compare(found: dict[str, Any], wanted: dict[str, Array], estimate: dict[str, Estimate], where: str) -> None:
    assert {name for name, array in found.items() if array is not None} == wanted.keys() == estimate.keys()
    for name, array in wanted.items():
        agree(f"{where} {name}", found[name], array, estimate[name])


def cast(arrays: dict[str, Array | None], dtype: str) -> dict[str, Any]:
    return {name: None if array is None else array.astype(dtype) for name, array in arrays.items()}


def normal(seed: int, **shapes: tuple[int, ...] | None) -> dict[str, Array | None]:
    rng = np.random.default_rng(seed)
    return {name: None if shape is None else 1.5 * rng.standard_normal(shape) for name, shape in shapes.items()}


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("rank", RANKS)
@given(data=st.data())
def test_transposed(rank: int, dtype: str, data: st.DataObject) -> None:
    case: Case = data.draw(transpose_cases(rank))
    shape = case.transpose(torch.empty(case.x_shape), torch.empty(case.weight_shape)).shape
    arrays = cast(case.draw(tuple(shape), integers=False), dtype)
    g = arrays.pop("grad_out")
    linear = maps(case.transpose, case.x_shape, case.weight_shape)
    estimate = estimates(linear, *arrays.values(), g, case.activation, dtype)
    wanted = differentiate(
        lambda x, weight, bias: ACTIVATION[case.activation](case.transpose(x, weight, bias)), arrays, g
    )
    forward = getattr(npdwconv, f"depthwise_conv_transpose{rank}d")
    backward = getattr(npdwconv, f"depthwise_conv_transpose{rank}d_backward")
    options = case.options | {"output_padding": case.output_padding, "activation": case.activation}
    for layout in LAYOUTS:
        mine = (stored(arrays["x"], layout), arrays["weight"], arrays["bias"])
        out = first(forward(*mine, layout=layout, **options), layout)
        grads = backward(stored(g, layout), *mine, layout=layout, **options)._asdict()
        grads["x"] = first(grads["x"], layout)
        compare({"out": out} | grads, wanted, estimate, layout)


def mix(x: Any, weight: Any, bias: Any = None) -> Any:
    """Pointwise convolution by PyTorch: a linear layer where there are no spatial axes."""
    rank = x.ndim - 2
    if rank == 0:
        return torch.nn.functional.linear(x, weight, bias)
    return CONV[rank](x, weight.reshape(*weight.shape, *(1,) * rank), bias)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("rank", [0, *RANKS])
@given(data=st.data(), activation=NAMES, bias=st.booleans())
def test_pointwise(rank: int, dtype: str, data: st.DataObject, activation: str | None, bias: bool) -> None:
    n, c, k, *size = data.draw(st.tuples(*[st.integers(1, 7)] * 3, *[st.integers(1, 4)] * rank))
    shapes = {"x": (n, c, *size), "weight": (k, c), "bias": (k,) if bias else None, "g": (n, k, *size)}
    arrays = cast(normal(data.draw(st.integers(0, 2**32 - 1)), **shapes), dtype)
    g = arrays.pop("g")
    estimate = estimates(maps(mix, shapes["x"], shapes["weight"]), *arrays.values(), g, activation, dtype)
    wanted = differentiate(lambda x, weight, bias: ACTIVATION[activation](mix(x, weight, bias)), arrays, g)
    weight = arrays["weight"].reshape(k, c, *(1,) * data.draw(st.integers(0, 3)))
    for layout in LAYOUTS:
        mine = (stored(arrays["x"], layout), weight, arrays["bias"])
        out = first(npdwconv.pointwise_conv(*mine, layout=layout, activation=activation), layout)
        found = npdwconv.pointwise_conv_backward(stored(g, layout), *mine, layout=layout, activation=activation)
        grads = found._asdict()
        assert grads["weight"].shape == weight.shape
        grads |= {"x": first(grads["x"], layout), "weight": grads["weight"].reshape(k, c)}
        compare({"out": out} | grads, wanted, estimate, layout)


def separable_estimates(
    depthwise: Maps, pointwise: Maps, arrays: dict[str, Any], g: Array, names: tuple[str | None, str | None], dtype: str
) -> dict[str, Estimate]:
    x, dw, pw = (exactly(arrays[name]) for name in ("x", "depthwise_weight", "pointwise_weight"))
    middle = product(depthwise.forward, x, dw, dtype, arrays["depthwise_bias"])
    active = activate(names[0], middle, dtype)
    z = product(pointwise.forward, active, pw, dtype, arrays["bias"])
    grad_z = chain(names[1], exactly(g), z, dtype)
    inner = chain(names[0], product(pointwise.input_grad, grad_z, pw, dtype), middle, dtype)
    found = {
        "out": activate(names[1], z, dtype),
        "x": product(depthwise.input_grad, inner, dw, dtype),
        "depthwise_weight": product(depthwise.weight_grad, inner, x, dtype),
        "pointwise_weight": product(pointwise.weight_grad, grad_z, active, dtype),
        "depthwise_bias": total(inner, dtype),
        "bias": total(grad_z, dtype),
    }
    return {name: value for name, value in found.items() if name == "out" or arrays[name] is not None}


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("rank", RANKS)
@given(data=st.data(), activation=NAMES, bias=st.booleans(), k=st.integers(1, 5))
def test_separable(rank: int, dtype: str, data: st.DataObject, activation: str | None, bias: bool, k: int) -> None:
    case: Case = data.draw(conv_cases(rank))
    rows = case.channels * case.multiplier
    out = case.correlate(torch.empty(case.x_shape), torch.empty(case.weight_shape)).shape[2:]
    shapes = {
        "x": case.x_shape,
        "depthwise_weight": case.weight_shape,
        "pointwise_weight": (k, rows),
        "depthwise_bias": (rows,) if case.bias else None,
        "bias": (k,) if bias else None,
        "g": (case.batch, k, *out),
    }
    arrays = cast(normal(case.seed, **shapes), dtype)
    g = arrays.pop("g")

    def peer(x: Any, depthwise_weight: Any, pointwise_weight: Any, depthwise_bias: Any, bias: Any) -> Any:
        middle = ACTIVATION[case.activation](case.correlate(x, depthwise_weight, depthwise_bias))
        return ACTIVATION[activation](mix(middle, pointwise_weight, bias))

    depthwise = maps(case.correlate, case.x_shape, case.weight_shape)
    pointwise = maps(mix, (case.batch, rows, *out), (k, rows))
    estimate = separable_estimates(depthwise, pointwise, arrays, g, (case.activation, activation), dtype)
    wanted = differentiate(peer, arrays, g)
    options = case.options | {"padding_mode": case.padding_mode, "activation": activation}
    options |= {"depthwise_activation": case.activation, "depthwise_bias": arrays["depthwise_bias"]}
    for layout in LAYOUTS:
        mine = (stored(arrays["x"], layout), arrays["depthwise_weight"], arrays["pointwise_weight"], arrays["bias"])
        y = getattr(npdwconv, f"separable_conv{rank}d")(*mine, layout=layout, **options)
        backward = getattr(npdwconv, f"separable_conv{rank}d_backward")
        grads = backward(stored(g, layout), *mine, layout=layout, **options)._asdict()
        grads["x"] = first(grads["x"], layout)
        compare({"out": first(y, layout)} | grads, wanted, estimate, layout)


class MixFFNConv(torch.nn.Module):
    """The depthwise layer between the two linear ones of SegFormer's Mix-FFN (Xie et al., arXiv:2105.15203, §3.1)."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.dwconv = torch.nn.Conv2d(dim, dim, kernel_size=3, padding=1, groups=dim)

    def forward(self, x: Any, height: int, width: int) -> Any:
        image = x.reshape(x.shape[0], height, width, x.shape[2]).permute(0, 3, 1, 2)
        return self.dwconv(image).permute(0, 2, 3, 1).reshape(x.shape)


@pytest.mark.parametrize("activation", [None, "gelu"])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("grid", [(1, 1), (1, 6), (5, 2), (7, 9)], ids=str)
def test_tokens(grid: tuple[int, int], dtype: str, activation: str | None) -> None:
    height, width = grid
    layer = MixFFNConv(6)
    shapes = {"x": (2, height * width, 6), "weight": (6, 1, 3, 3), "bias": (6,), "g": (2, height * width, 6)}
    arrays = cast(normal(height, **shapes), dtype)
    g = arrays.pop("g")

    def peer(x: Any, weight: Any, bias: Any) -> Any:
        state = {"dwconv.weight": weight, "dwconv.bias": bias}
        return ACTIVATION[activation](torch.func.functional_call(layer, state, (x, height, width)))

    wanted = differentiate(peer, arrays, g)
    image = [a.reshape(2, height, width, 6).transpose(0, 3, 1, 2) for a in (arrays["x"], g)]
    conv = maps(lambda x, w: CONV[2](x, w, None, 1, 1, 1, 6), image[0].shape, (6, 1, 3, 3))
    estimate = estimates(conv, image[0], arrays["weight"], arrays["bias"], image[1], activation, dtype)
    for name in ("out", "x"):
        tokens = (a.transpose(0, 2, 3, 1).reshape(shapes["x"]) for a in (estimate[name].value, estimate[name].error))
        estimate[name] = Estimate(*tokens)
    options = {"grid": grid, "activation": activation}
    grads = npdwconv.depthwise_conv_tokens_backward(g, *arrays.values(), **options)._asdict()
    compare({"out": npdwconv.depthwise_conv_tokens(*arrays.values(), **options)} | grads, wanted, estimate, "tokens")


def after(state: Any, x: Any) -> Any:
    return x if state is None else torch.cat([state, x], dim=2)


@pytest.mark.parametrize("dtype", DTYPES)
@given(
    sizes=st.tuples(*[st.integers(1, 3)] * 3, st.integers(1, 9), st.integers(1, 5)),
    flags=st.tuples(st.booleans(), st.booleans(), st.booleans()),
    activation=NAMES,
    seed=st.integers(0, 2**32 - 1),
)
def test_causal(dtype: str, sizes: Any, flags: Any, activation: str | None, seed: int) -> None:
    """Gradients reach x and the state by two ways: the outputs, and the next state."""
    (n, c, m, w, s), (bias, with_state, carried) = sizes, flags
    past, rows = (n, c, s - 1), c * m
    shapes = {"x": (n, c, w), "weight": (rows, 1, s), "bias": (rows,) if bias else None}
    shapes |= {"state": past if with_state else None, "g": (n, rows, w), "g_next": past if carried else None}
    arrays = cast(normal(seed, **shapes), dtype)
    g, g_next = arrays.pop("g"), arrays.pop("g_next")
    low = 0 if with_state else s - 1

    def conv(history: Any, weight: Any, bias: Any = None) -> Any:
        return CONV[1](history, weight, bias, 1, low, 1, c)[..., :w]

    def peer(x: Any, weight: Any, bias: Any, state: Any) -> Any:
        history = after(state, x)
        before = torch.zeros(past, dtype=x.dtype) if state is None else state
        following = torch.cat([before, x], dim=2)[:, :, w:]
        out = ACTIVATION[activation](conv(history, weight, bias))
        carry = (following * torch.from_numpy(np.zeros(past, dtype) if g_next is None else g_next)).sum()
        return out.flatten(), carry

    history = arrays["x"] if not with_state else np.concatenate([arrays["state"], arrays["x"]], axis=2)
    estimate = estimates(
        maps(conv, history.shape, shapes["weight"]), history, arrays["weight"], arrays["bias"], g, activation, dtype
    )
    estimate = causal_estimates(estimate, w, s, g_next, dtype, with_state)

    def joined(**operands: Any) -> Any:
        out, carry = peer(**operands)
        return torch.cat([out, carry.reshape(1)])

    wanted = differentiate(joined, arrays, np.append(g.ravel(), np.ones(1)).astype(dtype))
    wanted["out"] = wanted["out"][:-1].reshape(g.shape)
    for layout in LAYOUTS:
        mine = (stored(arrays["x"], layout), arrays["weight"], arrays["bias"])
        options = {"state": arrays["state"], "activation": activation, "layout": layout}
        out, following = npdwconv.causal_depthwise_conv1d(*mine, **options)
        backward = npdwconv.causal_depthwise_conv1d_backward
        grads = backward(stored(g, layout), *mine, grad_next_state=g_next, **options)._asdict()
        grads["x"] = first(grads["x"], layout)
        compare({"out": first(out, layout)} | grads, wanted, estimate, layout)
        whole = np.concatenate([np.zeros(past, dtype) if not with_state else arrays["state"], arrays["x"]], axis=2)
        np.testing.assert_array_equal(following, whole[:, :, w:])


def causal_estimates(
    found: dict[str, Estimate], w: int, s: int, g_next: Array | None, dtype: str, with_state: bool
) -> dict[str, Estimate]:
    """The gradient of [state, x] with what the next state sends back to its last S − 1 places, cut in two."""
    value, error = found["x"].value, found["x"].error
    if not with_state:
        head = np.zeros((*value.shape[:2], s - 1))
        value, error = (np.concatenate([head, part], axis=2) for part in (value, error))
    if g_next is not None:
        one = np.zeros_like(value)
        one[:, :, w:] = g_next
        added = product(np.multiply, exactly(one), exactly(np.ones_like(one)), dtype)
        unit = abs(value) + error + added.most
        value, error = value + one, error + added.error + product(np.multiply, exactly(unit), exactly(1.0), dtype).error
    x = Estimate(value[:, :, s - 1 :], error[:, :, s - 1 :])
    state = {"state": Estimate(value[:, :, : s - 1], error[:, :, : s - 1])} if with_state else {}
    return found | {"x": x} | state

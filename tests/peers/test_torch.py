"""Depthwise convolution beside PyTorch: random cases of every option, forward, gradients and second derivatives."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from oracle_numbers import ACTIVATIONS
from peers.peer_bounds import Array, agree, agree_rounded, estimates
from peers.torch_cases import ACTIVATION, Case, conv_cases, differentiate, first, maps, stored, tensor, torch

import npdwconv

pytestmark = pytest.mark.peers
RANKS = (1, 2, 3)
LAYOUTS = ("channels_first", "channels_last")
PIECEWISE = (None, "relu", "relu6")


def ours(name: str, case: Case, *arrays: Array | None, layout: str, activations: int, **options: Any) -> Any:
    """An operator of the package in ``layout``; the first ``activations`` arrays are stored in it."""
    operands = [stored(a, layout) if i < activations and a is not None else a for i, a in enumerate(arrays)]
    options |= case.options | {"padding_mode": case.padding_mode, "layout": layout}
    return getattr(npdwconv, name.format(n=case.rank))(*operands, **options)


def peer(case: Case) -> Any:
    return lambda x, weight, bias: ACTIVATION[case.activation](case.correlate(x, weight, bias))


def operands(case: Case, dtype: Any, *, integers: bool) -> dict[str, Any]:
    shape = case.correlate(torch.empty(case.x_shape), torch.empty(case.weight_shape)).shape
    drawn = case.draw(tuple(shape), integers=integers)
    return {name: None if array is None else array.astype(dtype) for name, array in drawn.items()}


def run(case: Case, arrays: dict[str, Any], layout: str) -> dict[str, Array]:
    """Our result and gradients, channels_first."""
    x, weight, bias, grad_out = (arrays[name] for name in ("x", "weight", "bias", "grad_out"))
    call = {"layout": layout, "activation": case.activation}
    out = ours("depthwise_conv{n}d", case, x, weight, bias, activations=1, **call)
    grads = ours("depthwise_conv{n}d_backward", case, grad_out, x, weight, bias, activations=2, **call)
    assert (grads.bias is None) == (bias is None)
    found = {"out": first(out, layout), "x": first(grads.x, layout), "weight": grads.weight, "bias": grads.bias}
    return {name: array for name, array in found.items() if array is not None}


def theirs(case: Case, arrays: dict[str, Any]) -> dict[str, Array]:
    return differentiate(peer(case), {name: arrays[name] for name in ("x", "weight", "bias")}, arrays["grad_out"])


def bounds(case: Case, arrays: dict[str, Any], dtype: str) -> Any:
    linear = maps(case.correlate, case.x_shape, case.weight_shape)
    numbers = (arrays[name] for name in ("x", "weight", "bias", "grad_out"))
    return estimates(linear, *numbers, case.activation, dtype)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("rank", RANKS)
@given(data=st.data())
def test_forward_and_gradients(rank: int, dtype: str, data: st.DataObject) -> None:
    case = data.draw(conv_cases(rank))
    arrays = operands(case, dtype, integers=False)
    wanted, estimate = theirs(case, arrays), bounds(case, arrays, dtype)
    for layout in LAYOUTS:
        found = run(case, arrays, layout)
        assert found.keys() == wanted.keys() == estimate.keys()
        for name, array in found.items():
            agree(f"{layout} {name}", array, wanted[name], estimate[name])


@pytest.mark.parametrize("rank", RANKS)
@given(data=st.data())
def test_exact_on_small_integers(rank: int, data: st.DataObject) -> None:
    """No tolerance: these sums are exact in any order, and pre-activations fall on the kinks."""
    case = data.draw(conv_cases(rank, PIECEWISE))
    arrays = operands(case, "float64", integers=True)
    wanted = theirs(case, arrays)
    for layout in LAYOUTS:
        found = run(case, arrays, layout)
        assert found.keys() == wanted.keys()
        for name, array in found.items():
            np.testing.assert_array_equal(array, wanted[name], err_msg=f"{layout} {name}")


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@given(data=st.data())
def test_16_bit_is_float32_rounded_once(dtype: str, data: st.DataObject) -> None:
    narrow = np.dtype(dtype) if dtype == "float16" else pytest.importorskip("ml_dtypes").bfloat16
    case = data.draw(conv_cases(data.draw(st.sampled_from(RANKS))))
    arrays = operands(case, narrow, integers=False)
    wide = {name: None if array is None else array.astype(np.float32) for name, array in arrays.items()}
    wanted, estimate = theirs(case, wide), bounds(case, wide, "float32")
    for layout in LAYOUTS:
        for name, array in run(case, arrays, layout).items():
            assert array.dtype == narrow, name
            agree_rounded(f"{layout} {name}", array, wanted[name], estimate[name])


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_slopes_at_the_kinks_are_pytorchs(activation: str) -> None:
    z = np.array([-6.0, -3.0, 0.0, 3.0, 6.0]).reshape(1, 1, 5)
    one = np.ones((1, 1, 1))
    slopes = npdwconv.depthwise_conv1d_backward(np.ones_like(z), z, one, activation=activation, needs="x").x
    wanted = differentiate(lambda x: ACTIVATION[activation](x), {"x": z}, np.ones_like(z))["x"]
    np.testing.assert_allclose(slopes, wanted, rtol=1e-14, atol=1e-15)


@given(data=st.data())
@pytest.mark.parametrize("rank", RANKS)
def test_double_backward_is_a_composition(rank: int, data: st.DataObject) -> None:
    """Second derivatives of ``Σ v·conv(x, w)²`` by the three bilinear maps; exact, since the numbers are integers."""
    case = data.draw(conv_cases(rank, (None,)))
    arrays = operands(case, "float64", integers=True)
    x, weight, v = arrays["x"], arrays["weight"], arrays["grad_out"]
    rng = np.random.default_rng(case.seed + 1)
    dx, dw = rng.integers(-2, 3, x.shape).astype(float), rng.integers(-2, 3, weight.shape).astype(float)
    layout = data.draw(st.sampled_from(LAYOUTS))

    def conv(x: Array, w: Array) -> Array:
        return first(ours("depthwise_conv{n}d", case, x, w, layout=layout, activations=1), layout)

    def input_grad(g: Array, w: Array) -> Array:
        shape = stored(x, layout).shape
        name = "depthwise_conv{n}d_input_grad"
        return first(ours(name, case, g, w, input_shape=shape, layout=layout, activations=1), layout)

    def weight_grad(g: Array, x: Array) -> Array:
        name = "depthwise_conv{n}d_weight_grad"
        return ours(name, case, g, x, weight_shape=weight.shape, layout=layout, activations=2)

    slope = 2 * v * conv(x, weight)
    change = 2 * v * (conv(dx, weight) + conv(x, dw))
    found = (
        input_grad(slope, weight),
        weight_grad(slope, x),
        input_grad(change, weight) + input_grad(slope, dw),
        weight_grad(change, x) + weight_grad(slope, dx),
    )
    for mine, wanted in zip(found, hessian_product(case, x, weight, v, dx, dw), strict=True):
        np.testing.assert_array_equal(mine, wanted)


def hessian_product(case: Case, *arrays: Array) -> tuple[Array, ...]:
    """PyTorch's gradients in x and weight, and the change of both along (dx, dw), by double backward."""
    x, weight, v, dx, dw = (tensor(array) for array in arrays)
    point = (x.requires_grad_(), weight.requires_grad_())
    loss = (v * case.correlate(*point) ** 2).sum()
    grads = torch.autograd.grad(loss, point, create_graph=True)
    along = (grads[0] * dx).sum() + (grads[1] * dw).sum()
    return tuple(t.detach().numpy() for t in (*grads, *torch.autograd.grad(along, point)))


MISTAKES = {
    "flipped_kernel": lambda case, arrays: arrays | {"weight": arrays["weight"][..., ::-1].copy()},
    "multiplier_order": lambda case, arrays: (
        arrays | {"weight": arrays["weight"].reshape(2, 3, 1, 3, 4).swapaxes(0, 1).reshape(6, 1, 3, 4)}
    ),
    "shifted_gradient": lambda case, arrays: arrays | {"grad_out": np.roll(arrays["grad_out"], 1, axis=-1)},
    "small_error": lambda case, arrays: arrays | {"x": arrays["x"] * np.float32(1 + 2.0**-18)},
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_the_bound_notices(mistake: str) -> None:
    pads = ((0, 1), (2, 1))
    case = Case(2, 2, 3, (7, 9), (3, 4), (1, 2), (1, 1), pads, "zeros", (0, 0), "silu", True, 0)
    arrays = operands(case, "float32", integers=False)
    wanted, estimate = theirs(case, arrays), bounds(case, arrays, "float32")
    found = run(case, MISTAKES[mistake](case, arrays), "channels_first")

    def agree_on_all() -> None:
        for name, array in found.items():
            agree(name, array, wanted[name], estimate[name])

    with pytest.raises(AssertionError, match="may differ by"):
        agree_on_all()


def test_tensors_are_taken_without_a_copy() -> None:
    """An ``out`` that is the tensor's own memory is refused, so the tensor was not copied."""
    x, weight = torch.randn(2, 3, 5, 4), torch.randn(3, 1, 3, 3)
    with pytest.raises(npdwconv.errors.OptionError, match="shares memory with x"):
        npdwconv.depthwise_conv2d(x, weight, padding=1, out=x.numpy())


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
def test_strided_tensors(dtype: str) -> None:
    whole = torch.randn(2, 12, 10, 3).to(getattr(torch, dtype))
    x, weight = whole.permute(0, 3, 1, 2)[:, :, ::2, 1:], torch.randn(3, 1, 3, 3).to(whole.dtype)
    found = npdwconv.depthwise_conv2d(x, weight, padding=1)
    assert isinstance(found, np.ndarray)
    assert found.dtype == dtype
    np.testing.assert_array_equal(found, npdwconv.depthwise_conv2d(x.numpy().copy(), weight.numpy(), padding=1))


@pytest.mark.parametrize(
    ("x", "way_out"),
    [
        (torch.ones(1, 1, 4, 4, requires_grad=True), r"detach"),
        (torch.ones(1, 1, 4, 4, dtype=torch.bfloat16), "of a dtype NumPy has"),
    ],
    ids=["requires_grad", "bfloat16"],
)
def test_tensors_that_dlpack_refuses(x: Any, way_out: str) -> None:
    with pytest.raises(npdwconv.errors.DTypeError, match=way_out):
        npdwconv.depthwise_conv2d(x, np.ones((1, 1, 3, 3), np.float32))

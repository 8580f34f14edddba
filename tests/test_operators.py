"""Every operator, forward and backward, against plain loops: exact on small integers, inside the bound on floats."""

from __future__ import annotations

from itertools import combinations
from typing import Any

import numpy as np
import oracles
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from strategies import LAYOUTS, RANKS, Case, cases, moved, transposed

import npdwconv
from npdwconv.activations import ACTIVATIONS

DTYPES = ("float32", "float64", "float16", "bfloat16")
PIECEWISE = (None, "relu", "relu6")  # exact on integers

data_kinds = st.sampled_from(["integers", *DTYPES])
every_rank = pytest.mark.parametrize("rank", RANKS)


class Numbers:
    """Draws operands of one kind: small integers in float32, or normal numbers in a dtype."""

    def __init__(self, kind: str, seed: int) -> None:
        self.exact, self.rng = kind == "integers", np.random.default_rng(seed)
        self.dtype: Any = np.float32 if self.exact else kind
        if kind == "bfloat16":
            self.dtype = pytest.importorskip("ml_dtypes", reason="bfloat16").bfloat16

    def __call__(self, *shape: int) -> np.ndarray:
        drawn = self.rng.integers(-4, 5, shape) if self.exact else self.rng.standard_normal(shape)
        return drawn.astype(self.dtype)


def activations(numbers: Numbers, draw: Any) -> str | None:
    return draw(st.sampled_from(PIECEWISE if numbers.exact else (None, *ACTIVATIONS)))


def compare(name: str, numbers: Numbers, operands: dict[str, Any], options: dict[str, Any], draw: Any) -> None:
    """The operator and its backward against the oracle; the gradient's shape is that of the forward's result."""
    forward = getattr(npdwconv, name)(**operands, **options)
    oracles.check(name, forward, operands, options, exact=numbers.exact)
    out = forward[0] if isinstance(forward, tuple) else forward
    assert out.flags.c_contiguous
    asked = {"grad_out": numbers(*out.shape)} | operands
    if isinstance(forward, tuple) and draw(st.booleans()):
        options = options | {"grad_next_state": numbers(*forward[1].shape)}
    grads = getattr(npdwconv, f"{name}_backward")(**asked, **options)
    oracles.check(f"{name}_backward", grads, asked, options, exact=numbers.exact)


def image(case: Case, numbers: Numbers) -> np.ndarray:
    return moved(numbers(case.batch, case.channels, *case.size), case.layout)


@every_rank
@given(data=st.data(), kind=data_kinds, bias=st.booleans())
@settings(max_examples=40)
def test_depthwise(rank: int, data: st.DataObject, kind: str, bias: bool):
    case = data.draw(cases(ranks=(rank,)))
    numbers = Numbers(kind, case.seed)
    operands = {
        "x": image(case, numbers),
        "weight": numbers(*case.weight_shape),
        "bias": numbers(case.outputs) if bias else None,
    }
    options = case.options | {"activation": activations(numbers, data.draw)}
    compare(f"depthwise_conv{rank}d", numbers, operands, options, data.draw)


@every_rank
@given(data=st.data(), kind=data_kinds)
@settings(max_examples=30)
def test_adjoints_by_themselves(rank: int, data: st.DataObject, kind: str):
    case = data.draw(cases(ranks=(rank,)))
    numbers = Numbers(kind, case.seed)
    name = f"depthwise_conv{rank}d"
    x, weight = image(case, numbers), numbers(*case.weight_shape)
    grad_out = numbers(*getattr(npdwconv, name)(x, weight, **case.options).shape)
    for adjoint, operand in (
        ("input", {"weight": weight, "input_shape": x.shape}),
        ("weight", {"x": x, "weight_shape": weight.shape}),
    ):
        asked = {"grad_out": grad_out} | operand
        found = getattr(npdwconv, f"{name}_{adjoint}_grad")(**asked, **case.options)
        oracles.check(f"{name}_{adjoint}_grad", found, asked, case.options, exact=numbers.exact)


@every_rank
@given(data=st.data(), kind=data_kinds, bias=st.booleans())
@settings(max_examples=30)
def test_transposed(rank: int, data: st.DataObject, kind: str, bias: bool):
    case, options = data.draw(transposed().filter(lambda drawn: drawn[0].rank == rank))
    numbers = Numbers(kind, case.seed)
    operands = {
        "x": image(case, numbers),
        "weight": numbers(*case.weight_shape),
        "bias": numbers(case.outputs) if bias else None,
    }
    options = options | {"activation": activations(numbers, data.draw)}
    compare(f"depthwise_conv_transpose{rank}d", numbers, operands, options, data.draw)


@every_rank
@given(data=st.data(), kind=data_kinds, biases=st.tuples(st.booleans(), st.booleans()), outputs=st.integers(1, 3))
@settings(max_examples=25)
def test_separable(rank: int, data: st.DataObject, kind: str, biases: tuple[bool, bool], outputs: int):
    case = data.draw(cases(ranks=(rank,)))
    numbers = Numbers(kind, case.seed)
    operands = {
        "x": image(case, numbers),
        "depthwise_weight": numbers(*case.weight_shape),
        "pointwise_weight": numbers(outputs, case.outputs),
        "bias": numbers(outputs) if biases[0] else None,
        "depthwise_bias": numbers(case.outputs) if biases[1] else None,
    }
    names = {name: activations(numbers, data.draw) for name in ("depthwise_activation", "activation")}
    compare(f"separable_conv{rank}d", numbers, operands, case.options | names, data.draw)


@given(data=st.data(), kind=data_kinds, bias=st.booleans(), layout=st.sampled_from(LAYOUTS))
@settings(max_examples=60)
def test_pointwise(data: st.DataObject, kind: str, bias: bool, layout: str):
    batch, channels, outputs, *size = data.draw(st.lists(st.integers(1, 4), min_size=3, max_size=6))
    numbers = Numbers(kind, data.draw(st.integers(0, 2**32 - 1)))
    operands = {
        "x": moved(numbers(batch, channels, *size), layout),
        "weight": numbers(outputs, channels),
        "bias": numbers(outputs) if bias else None,
    }
    options = {"layout": layout, "activation": activations(numbers, data.draw)}
    compare("pointwise_conv", numbers, operands, options, data.draw)


@given(data=st.data(), kind=data_kinds, bias=st.booleans())
@settings(max_examples=40)
def test_tokens(data: st.DataObject, kind: str, bias: bool):
    case = data.draw(cases(ranks=(2,), layouts=("channels_last",)))
    numbers = Numbers(kind, case.seed)
    operands = {
        "x": numbers(case.batch, case.size[0] * case.size[1], case.channels),
        "weight": numbers(*case.weight_shape),
        "bias": numbers(case.outputs) if bias else None,
    }
    options = {name: value for name, value in case.options.items() if name != "layout"}
    options |= {"grid": case.size, "activation": activations(numbers, data.draw)}
    compare("depthwise_conv_tokens", numbers, operands, options, data.draw)


@given(data=st.data(), kind=data_kinds, given_=st.tuples(st.booleans(), st.booleans()), layout=st.sampled_from(LAYOUTS))
@settings(max_examples=60)
def test_causal(data: st.DataObject, kind: str, given_: tuple[bool, bool], layout: str):
    batch, channels, multiplier, taps = (data.draw(st.integers(1, 4)) for _ in range(4))
    length = data.draw(st.integers(0, 7))
    numbers = Numbers(kind, data.draw(st.integers(0, 2**32 - 1)))
    operands = {
        "x": moved(numbers(batch, channels, length), layout),
        "weight": numbers(channels * multiplier, 1, taps),
        "bias": numbers(channels * multiplier) if given_[0] else None,
    }
    options = {"layout": layout, "activation": activations(numbers, data.draw)}
    if given_[1]:
        options["state"] = numbers(batch, channels, taps - 1)
    compare("causal_depthwise_conv1d", numbers, operands, options, data.draw)


FAMILIES = {
    "depthwise_conv2d": {"x": (1, 2, 5, 5), "weight": (4, 1, 3, 3), "bias": (4,)},
    "depthwise_conv_transpose2d": {"x": (1, 2, 5, 5), "weight": (4, 1, 3, 3), "bias": (4,)},
    "pointwise_conv": {"x": (1, 2, 5, 5), "weight": (4, 2), "bias": (4,)},
    "depthwise_conv_tokens": {"x": (1, 20, 2), "weight": (4, 1, 3, 3), "bias": (4,)},
    "causal_depthwise_conv1d": {"x": (1, 2, 5), "weight": (4, 1, 3), "bias": (4,), "state": (1, 2, 2)},
    "separable_conv2d": {
        "x": (1, 2, 5, 5),
        "depthwise_weight": (4, 1, 3, 3),
        "pointwise_weight": (3, 4),
        "depthwise_bias": (4,),
        "bias": (3,),
    },
}


@pytest.mark.parametrize("name", FAMILIES)
def test_needs_computes_what_is_asked_and_nothing_else(name: str):
    numbers = Numbers("float32", 0)
    operands = {operand: numbers(*shape) for operand, shape in FAMILIES[name].items()}
    options: dict[str, Any] = {"activation": "silu"} | ({"grid": (4, 5)} if "tokens" in name else {})
    out = getattr(npdwconv, name)(**operands, **options)
    backward = getattr(npdwconv, f"{name}_backward")
    given_ = {"grad_out": numbers(*(out[0] if isinstance(out, tuple) else out).shape)} | operands
    whole = backward(**given_, **options)._asdict()
    assert {operand: grad.shape for operand, grad in whole.items()} == FAMILIES[name]
    for count in range(len(operands) + 1):
        for needs in combinations(operands, count):
            found = backward(**given_, **options, needs=needs)._asdict()
            assert {operand for operand, grad in found.items() if grad is not None} == set(needs)
            assert all(found[operand].tobytes() == whole[operand].tobytes() for operand in needs)
    assert [
        operand for operand, grad in backward(**given_, **options, needs="x")._asdict().items() if grad is not None
    ] == ["x"]

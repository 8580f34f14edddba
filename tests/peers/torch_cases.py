"""Cases room of the PyTorch tests: what may be drawn, and PyTorch's side of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from hypothesis import strategies as st
from oracle_numbers import ACTIVATIONS
from peers.peer_bounds import Array, Maps

torch = pytest.importorskip("torch", reason="compares with PyTorch")
F: Any = torch.nn.functional

CONV = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}
TRANSPOSE = {1: F.conv_transpose1d, 2: F.conv_transpose2d, 3: F.conv_transpose3d}
ACTIVATION: dict[str | None, Callable[[Any], Any]] = {
    None: lambda z: z,
    "relu": F.relu,
    "relu6": F.relu6,
    "hardswish": F.hardswish,
    "silu": F.silu,
    "gelu": F.gelu,
    "gelu_tanh": lambda z: F.gelu(z, approximate="tanh"),
    "sigmoid": torch.sigmoid,
    # F.hardsigmoid multiplies float64 gradients by a float32 1/6; this is its definition
    "hardsigmoid": lambda z: F.relu6(z + 3) / 6,
}
PAD_MODE = {"zeros": "constant", "reflect": "reflect", "replicate": "replicate", "circular": "circular"}
Pads = tuple[tuple[int, int], ...]


@dataclass(frozen=True)
class Case:
    """One convolution, plain or transposed, and the seed of its numbers."""

    batch: int
    channels: int
    multiplier: int
    size: tuple[int, ...]
    kernel: tuple[int, ...]
    stride: tuple[int, ...]
    dilation: tuple[int, ...]
    padding: Pads
    padding_mode: str
    output_padding: tuple[int, ...]
    activation: str | None
    bias: bool
    seed: int

    @property
    def rank(self) -> int:
        return len(self.size)

    @property
    def x_shape(self) -> tuple[int, ...]:
        return (self.batch, self.channels, *self.size)

    @property
    def weight_shape(self) -> tuple[int, ...]:
        return (self.channels * self.multiplier, 1, *self.kernel)

    @property
    def options(self) -> dict[str, Any]:
        return {"stride": self.stride, "padding": self.padding, "dilation": self.dilation}

    def correlate(self, x: Any, weight: Any, bias: Any = None) -> Any:
        widths = [width for pair in reversed(self.padding) for width in pair]
        padded = F.pad(x, widths, mode=PAD_MODE[self.padding_mode])
        return CONV[self.rank](padded, weight, bias, self.stride, 0, self.dilation, self.channels)

    def transpose(self, x: Any, weight: Any, bias: Any = None) -> Any:
        """PyTorch's padding is one number an axis: asymmetric padding crops a result that was made without."""
        stored = weight.reshape(self.channels, self.multiplier, *self.kernel)
        options = (self.stride, 0, self.output_padding, self.channels, self.dilation)
        whole = TRANSPOSE[self.rank](x, stored, bias, *options)
        spans = [slice(low, n - high) for (low, high), n in zip(self.padding, whole.shape[2:], strict=True)]
        return whole[(..., *spans)]

    def draw(self, out_shape: tuple[int, ...], *, integers: bool) -> dict[str, Array | None]:
        """Operands by name, and a ``grad_out``: small integers, or normal numbers that reach every kink."""
        rng = np.random.default_rng(self.seed)
        number = (lambda *s: rng.integers(-3, 4, s)) if integers else (lambda *s: 1.5 * rng.standard_normal(s))
        return {
            "x": number(*self.x_shape),
            "weight": number(*self.weight_shape),
            "bias": number(self.weight_shape[0]) if self.bias else None,
            "grad_out": number(*out_shape),
        }


@st.composite
def conv_cases(draw: Any, rank: int, activations: Any = (None, *ACTIVATIONS)) -> Case:
    mode = draw(st.sampled_from(["zeros", "zeros", "reflect", "replicate", "circular"]))
    fields = _shared(draw, rank, activations)
    most = 3 if rank < 3 else 2
    pads = tuple((draw(st.integers(0, most)), draw(st.integers(0, most))) for _ in range(rank))
    least = {"zeros": 1, "replicate": 1, "reflect": most + 1, "circular": most}[mode]
    spans = [(k - 1) * d + 1 for k, d in zip(fields["kernel"], fields["dilation"], strict=True)]
    size = tuple(
        max(least, span - sum(pad)) + draw(st.integers(0, 5 if rank < 3 else 2))
        for span, pad in zip(spans, pads, strict=True)
    )
    return Case(size=size, padding=pads, padding_mode=mode, output_padding=(0,) * rank, **fields)


@st.composite
def transpose_cases(draw: Any, rank: int, activations: Any = (None, *ACTIVATIONS)) -> Case:
    fields = _shared(draw, rank, activations)
    size = tuple(draw(st.integers(1, 5 if rank < 3 else 3)) for _ in range(rank))
    steps = list(zip(fields["stride"], fields["dilation"], strict=True))
    extra = tuple(draw(st.integers(0, max(step) - 1)) for step in steps)
    pads = []
    for n, k, (s, d), more in zip(size, fields["kernel"], steps, extra, strict=True):
        room = (n - 1) * s + (k - 1) * d + more
        low = draw(st.integers(0, min(3, room)))
        pads.append((low, draw(st.integers(0, min(3, room - low)))))
    return Case(size=size, padding=tuple(pads), padding_mode="zeros", output_padding=extra, **fields)


def _shared(draw: Any, rank: int, activations: Any) -> dict[str, Any]:
    def axes(most: int) -> tuple[int, ...]:
        return tuple(draw(st.integers(1, most)) for _ in range(rank))

    return {
        "batch": draw(st.integers(1, 3 if rank < 3 else 2)),
        "channels": draw(st.integers(1, 4)),
        "multiplier": draw(st.integers(1, 3)),
        "kernel": axes(4 if rank < 3 else 3),
        "stride": axes(3),
        "dilation": axes(3 if rank < 3 else 2),
        "activation": draw(st.sampled_from(activations)),
        "bias": draw(st.booleans()),
        "seed": draw(st.integers(0, 2**32 - 1)),
    }


def tensor(array: Array | None) -> Any:
    return None if array is None else torch.from_numpy(np.ascontiguousarray(array))


def maps(conv: Callable[[Any, Any], Any], x_shape: tuple[int, ...], weight_shape: tuple[int, ...]) -> Maps:
    """PyTorch's bilinear map and, by autograd, its adjoints, on float64 arrays."""

    def adjoint(grad: Array, x: Any, weight: Any, wanted: Any) -> Array:
        (result,) = torch.autograd.grad(conv(x, weight), wanted, tensor(grad))
        return result.numpy()

    def blank(shape: tuple[int, ...]) -> Any:
        return torch.zeros(shape, dtype=torch.float64, requires_grad=True)

    def input_grad(grad: Array, weight: Array) -> Array:
        x = blank(x_shape)
        return adjoint(grad, x, tensor(weight), x)

    def weight_grad(grad: Array, x: Array) -> Array:
        weight = blank(weight_shape)
        return adjoint(grad, tensor(x), weight, weight)

    return Maps(lambda x, weight: conv(tensor(x), tensor(weight)).numpy(), input_grad, weight_grad)


def differentiate(
    forward: Callable[..., Any], operands: Mapping[str, Array | None], grad_out: Array
) -> dict[str, Array]:
    """PyTorch's result, "out", and its gradient in every operand that is not None, by name."""
    leaves = {name: tensor(array).requires_grad_() for name, array in operands.items() if array is not None}
    out = forward(**(dict.fromkeys(operands) | leaves))
    grads = torch.autograd.grad(out, list(leaves.values()), tensor(grad_out))
    return {"out": out.detach().numpy()} | {name: g.numpy() for name, g in zip(leaves, grads, strict=True)}


def first(array: Array, layout: str) -> Array:
    return np.moveaxis(array, -1, 1) if layout == "channels_last" else array


def stored(array: Array, layout: str) -> Array:
    """A channels_first array in ``layout``."""
    return np.ascontiguousarray(np.moveaxis(array, 1, -1)) if layout == "channels_last" else array

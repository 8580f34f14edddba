"""Oracles: every operator of the public interface in plain loops, and `check`, which compares with them.

Each oracle takes the operator's arguments and options (without `backend` and `out`) and `number`, the arithmetic:
`float`, `int`, `fractions.Fraction`, or `Rounded(dtype)`, whose results carry their error bound. Gradients come as a
dict by name.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import oracle_loops as loops
from oracle_loops import Arithmetic, Array, Wiring
from oracle_numbers import Exact, Rounded, arithmetic

NEEDS = ("x", "weight", "bias")
SEPARABLE_NEEDS = ("x", "depthwise_weight", "pointwise_weight", "depthwise_bias", "bias")
CAUSAL_NEEDS = ("x", "weight", "bias", "state")
Gradients = dict[str, Array | None]
Needs = str | Iterable[str]


def first(array: Array, layout: str) -> Array:
    return np.moveaxis(array, -1, 1) if layout == "channels_last" else array


def last(array: Array, layout: str) -> Array:
    return np.moveaxis(array, 1, -1) if layout == "channels_last" else array


def lift(array: Array | None, arith: Arithmetic) -> Any:
    return None if array is None else loops.each(lambda value: arith.lift(float(value)), array)


def needed(needs: Needs, grads: Mapping[str, Callable[[], Array]], **optional: Array | None) -> Gradients:
    """Only what is asked for, and nothing for an operand that is None."""
    wanted = {needs} if isinstance(needs, str) else set(needs)
    wanted -= {name for name, operand in optional.items() if operand is None}
    return {name: grad() if name in wanted else None for name, grad in grads.items()}


def forward(
    wire: Callable[..., Wiring],
    x: Array,
    weight: Array,
    bias: Array | None = None,
    *,
    layout: str = "channels_first",
    activation: str | None = None,
    number: Any = float,
    **geometry: Any,
) -> Array:
    arith = arithmetic(number)
    xs, ws, bs = lift(first(x, layout), arith), lift(weight, arith), lift(bias, arith)
    z = loops.correlate(xs, ws, bs, wire(xs.shape[2:], ws.shape[2:], **geometry), arith)
    return last(loops.activate(activation, z, arith), layout)


def backward(
    wire: Callable[..., Wiring],
    grad_out: Array,
    x: Array,
    weight: Array,
    bias: Array | None = None,
    *,
    layout: str = "channels_first",
    activation: str | None = None,
    needs: Needs = NEEDS,
    number: Any = float,
    **geometry: Any,
) -> Gradients:
    arith = arithmetic(number)
    g, xs, ws = lift(first(grad_out, layout), arith), lift(first(x, layout), arith), lift(weight, arith)
    wiring = wire(xs.shape[2:], ws.shape[2:], **geometry)
    if activation is not None:
        g = loops.through(activation, g, loops.correlate(xs, ws, lift(bias, arith), wiring, arith), arith)
    grads = {
        "x": lambda: last(finish(loops.correlate_input_grad(g, ws, xs.shape, wiring), arith), layout),
        "weight": lambda: loops.correlate_weight_grad(g, xs, ws.shape, wiring, arith),
        "bias": lambda: loops.bias_grad(g, arith),
    }
    return needed(needs, grads, bias=bias)


def finish(sums: Array, arith: Arithmetic) -> Array:
    return loops.each(arith.finish, sums)


depthwise = partial(forward, loops.wire_conv)
depthwise_backward = partial(backward, loops.wire_conv)
transpose = partial(forward, loops.wire_transpose)
transpose_backward = partial(backward, loops.wire_transpose)


def depthwise_input_grad(grad_out: Array, weight: Array, input_shape: Sequence[int], **options: Any) -> Any:
    """Any x of that shape will do: the gradient does not depend on it."""
    return depthwise_backward(grad_out, np.zeros(tuple(input_shape)), weight, needs="x", **options)["x"]


def depthwise_weight_grad(grad_out: Array, x: Array, weight_shape: Sequence[int], **options: Any) -> Any:
    return depthwise_backward(grad_out, x, np.zeros(tuple(weight_shape)), needs="weight", **options)["weight"]


def pointwise(
    x: Array,
    weight: Array,
    bias: Array | None = None,
    *,
    layout: str = "channels_first",
    activation: str | None = None,
    number: Any = float,
) -> Array:
    arith = arithmetic(number)
    matrix = lift(weight.reshape(weight.shape[:2]), arith)
    z = loops.mix(lift(first(x, layout), arith), matrix, lift(bias, arith), arith)
    return last(loops.activate(activation, z, arith), layout)


def pointwise_backward(
    grad_out: Array,
    x: Array,
    weight: Array,
    bias: Array | None = None,
    *,
    layout: str = "channels_first",
    activation: str | None = None,
    needs: Needs = NEEDS,
    number: Any = float,
) -> Gradients:
    arith = arithmetic(number)
    g, xs = lift(first(grad_out, layout), arith), lift(first(x, layout), arith)
    matrix = lift(weight.reshape(weight.shape[:2]), arith)
    g = loops.through(activation, g, loops.mix(xs, matrix, lift(bias, arith), arith), arith)
    grads = {
        "x": lambda: last(loops.mix_input_grad(g, matrix, xs.shape, arith), layout),
        "weight": lambda: loops.mix_weight_grad(g, xs, matrix.shape, arith).reshape(weight.shape),
        "bias": lambda: loops.bias_grad(g, arith),
    }
    return needed(needs, grads, bias=bias)


def separable(
    x: Array,
    depthwise_weight: Array,
    pointwise_weight: Array,
    bias: Array | None = None,
    *,
    depthwise_bias: Array | None = None,
    layout: str = "channels_first",
    depthwise_activation: str | None = None,
    activation: str | None = None,
    number: Any = float,
    **geometry: Any,
) -> Array:
    arith = arithmetic(number)
    xs, taps = lift(first(x, layout), arith), lift(depthwise_weight, arith)
    wiring = loops.wire_conv(xs.shape[2:], taps.shape[2:], **geometry)
    middle = loops.correlate(xs, taps, lift(depthwise_bias, arith), wiring, arith)
    matrix = lift(pointwise_weight.reshape(pointwise_weight.shape[:2]), arith)
    z = loops.mix(loops.activate(depthwise_activation, middle, arith), matrix, lift(bias, arith), arith)
    return last(loops.activate(activation, z, arith), layout)


def separable_backward(
    grad_out: Array,
    x: Array,
    depthwise_weight: Array,
    pointwise_weight: Array,
    bias: Array | None = None,
    *,
    depthwise_bias: Array | None = None,
    layout: str = "channels_first",
    depthwise_activation: str | None = None,
    activation: str | None = None,
    needs: Needs = SEPARABLE_NEEDS,
    number: Any = float,
    **geometry: Any,
) -> Gradients:
    arith = arithmetic(number)
    g, xs, taps = lift(first(grad_out, layout), arith), lift(first(x, layout), arith), lift(depthwise_weight, arith)
    matrix = lift(pointwise_weight.reshape(pointwise_weight.shape[:2]), arith)
    wiring = loops.wire_conv(xs.shape[2:], taps.shape[2:], **geometry)
    middle = loops.correlate(xs, taps, lift(depthwise_bias, arith), wiring, arith)
    active = loops.activate(depthwise_activation, middle, arith)
    g = loops.through(activation, g, loops.mix(active, matrix, lift(bias, arith), arith), arith)
    inner = loops.mix_input_grad(g, matrix, active.shape, arith)
    inner = loops.through(depthwise_activation, inner, middle, arith)
    grads = {
        "x": lambda: last(finish(loops.correlate_input_grad(inner, taps, xs.shape, wiring), arith), layout),
        "depthwise_weight": lambda: loops.correlate_weight_grad(inner, xs, taps.shape, wiring, arith),
        "pointwise_weight": lambda: loops.mix_weight_grad(g, active, matrix.shape, arith).reshape(
            pointwise_weight.shape
        ),
        "depthwise_bias": lambda: loops.bias_grad(inner, arith),
        "bias": lambda: loops.bias_grad(g, arith),
    }
    return needed(needs, grads, bias=bias, depthwise_bias=depthwise_bias)


def as_image(tokens: Array, grid: Sequence[int]) -> Array:
    return tokens.reshape(tokens.shape[0], *grid, tokens.shape[2])


def as_tokens(image: Array) -> Array:
    return image.reshape(image.shape[0], image.shape[1] * image.shape[2], image.shape[3])


def tokens(
    x: Array, weight: Array, bias: Array | None = None, *, grid: Sequence[int], padding: Any = "same", **options: Any
) -> Array:
    image = as_image(x, grid)
    return as_tokens(depthwise(image, weight, bias, padding=padding, layout="channels_last", **options))


def tokens_backward(
    grad_out: Array,
    x: Array,
    weight: Array,
    bias: Array | None = None,
    *,
    grid: Sequence[int],
    padding: Any = "same",
    **options: Any,
) -> Gradients:
    geometry = {name: options[name] for name in ("stride", "dilation") if name in options}
    plans = loops.conv_axes(grid, weight.shape[2:], padding=padding, **geometry)
    g = as_image(grad_out, [plan[-1] for plan in plans])
    options |= {"padding": padding, "layout": "channels_last"}
    grads = depthwise_backward(g, as_image(x, grid), weight, bias, **options)
    return grads | {"x": None if grads["x"] is None else as_tokens(grads["x"])}


def sequence(x: Array, state: Array | None, kernel: int) -> tuple[Array, Wiring]:
    """What the taps slide over: with a state nothing is padding, without one the past is zeros that nothing reads."""
    if state is None:
        return x, loops.wire_conv(x.shape[2:], [kernel], padding="causal")
    whole = np.concatenate([state, x], axis=2)
    return whole, loops.wire_conv(whole.shape[2:], [kernel])


def causal(
    x: Array,
    weight: Array,
    bias: Array | None = None,
    *,
    state: Array | None = None,
    activation: str | None = None,
    layout: str = "channels_first",
    number: Any = float,
) -> tuple[Array, Array]:
    """The next state is the last S - 1 places of the state (or zeros) followed by x."""
    arith = arithmetic(number)
    xs, past = lift(first(x, layout), arith), lift(state, arith)
    whole, wiring = sequence(xs, past, weight.shape[2])
    z = loops.correlate(whole, lift(weight, arith), lift(bias, arith), wiring, arith)
    if past is None:
        whole = np.concatenate([lift(np.zeros((*xs.shape[:2], weight.shape[2] - 1)), arith), xs], axis=2)
    return last(loops.activate(activation, z, arith), layout), whole[:, :, xs.shape[2] :]


def causal_backward(
    grad_out: Array,
    x: Array,
    weight: Array,
    bias: Array | None = None,
    *,
    state: Array | None = None,
    grad_next_state: Array | None = None,
    activation: str | None = None,
    layout: str = "channels_first",
    needs: Needs = CAUSAL_NEEDS,
    number: Any = float,
) -> Gradients:
    arith = arithmetic(number)
    g, xs, ws = lift(first(grad_out, layout), arith), lift(first(x, layout), arith), lift(weight, arith)
    whole, wiring = sequence(xs, lift(state, arith), weight.shape[2])
    g = loops.through(activation, g, loops.correlate(whole, ws, lift(bias, arith), wiring, arith), arith)
    sums = loops.correlate_input_grad(g, ws, whole.shape, wiring)
    if state is None:
        sums = np.concatenate([loops.blank((*xs.shape[:2], weight.shape[2] - 1)), sums], axis=2)
    if grad_next_state is not None:
        for n, c, j in np.ndindex(grad_next_state.shape):
            sums[n, c, xs.shape[2] + j] += arith.lift(float(grad_next_state[n, c, j]))
    sums, past = finish(sums, arith), weight.shape[2] - 1
    grads = {
        "x": lambda: last(sums[:, :, past:], layout),
        "weight": lambda: loops.correlate_weight_grad(g, whole, weight.shape, wiring, arith),
        "bias": lambda: loops.bias_grad(g, arith),
        "state": lambda: sums[:, :, :past],
    }
    return needed(needs, grads, bias=bias, state=state)


ORACLES: dict[str, Callable[..., Any]] = {
    "pointwise_conv": pointwise,
    "pointwise_conv_backward": pointwise_backward,
    "depthwise_conv_tokens": tokens,
    "depthwise_conv_tokens_backward": tokens_backward,
    "causal_depthwise_conv1d": causal,
    "causal_depthwise_conv1d_backward": causal_backward,
}
for _rank in (1, 2, 3):
    ORACLES |= {
        f"depthwise_conv{_rank}d": depthwise,
        f"depthwise_conv{_rank}d_backward": depthwise_backward,
        f"depthwise_conv{_rank}d_input_grad": depthwise_input_grad,
        f"depthwise_conv{_rank}d_weight_grad": depthwise_weight_grad,
        f"depthwise_conv_transpose{_rank}d": transpose,
        f"depthwise_conv_transpose{_rank}d_backward": transpose_backward,
        f"separable_conv{_rank}d": separable,
        f"separable_conv{_rank}d_backward": separable_backward,
    }


def expect(op: str, operands: Mapping[str, Any], options: Mapping[str, Any], number: Any = float) -> Any:
    """The oracle's result; operands by name."""
    told = {name: value for name, value in options.items() if name not in ("backend", "out")}
    return ORACLES[op](**operands, **told, number=number)


def pairs(observed: Any, expected: Any) -> list[tuple[str, Any, Any]]:
    """(name, observed array, expected array) of each result."""
    if isinstance(expected, dict):
        return [(name, getattr(observed, name), want) for name, want in expected.items()]
    if isinstance(expected, tuple):
        return list(zip(("out", "next_state"), observed, expected, strict=True))
    return [("out", observed, expected)]


def check(
    op: str, observed: Any, operands: Mapping[str, Any], options: Mapping[str, Any], *, exact: bool = False
) -> float:
    """Raise AssertionError unless every element is right; return the largest error as a fraction of its bound.

    `exact` is for integers stored in floats: the sums are exact whatever their order, and no error is left to them.
    """
    dtype = next(array.dtype for array in operands.values() if isinstance(array, np.ndarray))
    arith = Exact(int) if exact else Rounded(dtype)
    worst = 0.0
    for name, got, want in pairs(observed, expect(op, operands, options, arith)):
        where = f"{op} {name}"
        if want is None:
            assert got is None, f"{where} should be None"
            continue
        assert isinstance(got, np.ndarray), f"{where} is a {type(got).__name__}, not an array"
        assert (got.shape, got.dtype) == (want.shape, dtype), f"{where} is {got.dtype} {got.shape}, not {want.shape}"
        for index in np.ndindex(want.shape):
            value, bound = arith.stored(want[index], dtype)
            ratio = error_ratio(float(got[index]), value, bound)
            assert ratio <= 1.0, f"{where}{list(index)} is {got[index]}, should be {value} ± {bound:.3g}"
            worst = max(worst, ratio)
    return worst


def error_ratio(got: float, want: float, bound: float) -> float:
    """|got - want| / bound; NaN and infinities must be met exactly."""
    if got == want or (np.isnan(got) and np.isnan(want)):
        return 0.0
    error = abs(got - want)
    return error / bound if error <= bound else np.inf

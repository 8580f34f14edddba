"""Loops of the oracles: which input each tap of each output reads, and the sums over them.

Everything follows from *links*, the list of all (output, tap, source) that the definition visits:
`out[output] += weight[tap] * x[source]`. Gradients scatter over the links of their forward, so they are right by
construction. Arrays are channels_first here, hold any number type, and are only indexed.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np
from oracle_numbers import Exact, Rounded

Array = np.ndarray[Any, np.dtype[Any]]
Arithmetic = Exact | Rounded
Index = tuple[int, ...]


class Wiring(NamedTuple):
    """Spatial extents of the output, and (output, tap, source) of every product."""

    extents: Index
    links: list[tuple[Index, Index, Index]]


def source(position: int, extent: int, mode: str) -> int | None:
    """Where a tap at `position`, maybe outside of 0 … extent - 1, reads; None where it reads nothing."""
    if mode == "circular":
        return position % extent
    if mode == "replicate":
        return min(max(position, 0), extent - 1)
    if mode == "reflect":
        position = abs(position)
        return position if position < extent else 2 * (extent - 1) - position
    return position if 0 <= position < extent else None


def per_axis(value: Any, rank: int) -> tuple[Any, ...]:
    return tuple(value) if isinstance(value, Sequence) else (value,) * rank


def axis_pads(padding: Any, rank: int) -> list[Any]:
    """One entry per axis: (low, high), or a name which the extent resolves."""
    if padding == "causal":
        return ["same"] * (rank - 1) + ["causal"]
    if padding == "valid":
        return [(0, 0)] * rank
    if isinstance(padding, str):
        return [padding] * rank
    return [pad if isinstance(pad, Sequence) else (pad, pad) for pad in per_axis(padding, rank)]


def resolve(pad: Any, extent: int, kernel: int, stride: int, dilation: int) -> tuple[int, int]:
    reach = (kernel - 1) * dilation
    if pad == "causal":
        return reach, 0
    if not isinstance(pad, str):
        return int(pad[0]), int(pad[1])
    total = max((-(-extent // stride) - 1) * stride + reach + 1 - extent, 0)
    return (total // 2, total - total // 2) if pad == "same" else (total - total // 2, total // 2)


def conv_axes(
    extents: Sequence[int], kernel: Sequence[int], *, stride: Any = 1, padding: Any = 0, dilation: Any = 1
) -> list[Index]:
    """(stride, dilation, low, outputs) along each axis."""
    rank = len(kernel)
    options = (per_axis(stride, rank), axis_pads(padding, rank), per_axis(dilation, rank))
    axes = []
    for n, k, s, pad, d in zip(extents, kernel, *options, strict=True):
        low, high = resolve(pad, n, k, s, d)
        axes.append((s, d, low, (n + low + high - (k - 1) * d - 1) // s + 1))
    return axes


def transpose_axes(
    extents: Sequence[int],
    kernel: Sequence[int],
    *,
    stride: Any = 1,
    padding: Any = 0,
    output_padding: Any = 0,
    dilation: Any = 1,
) -> list[Index]:
    """Likewise; a named padding is that of the convolution from `extent * stride` back to `extent`."""
    rank = len(kernel)
    options = [per_axis(stride, rank), axis_pads(padding, rank), per_axis(output_padding, rank)]
    axes = []
    for n, k, s, pad, more, d in zip(extents, kernel, *options, per_axis(dilation, rank), strict=True):
        low, high = resolve(pad, n * s, k, s, d)
        outputs = n * s if isinstance(pad, str) else (n - 1) * s - low - high + (k - 1) * d + 1 + more
        axes.append((s, d, low, outputs))
    return axes


def axis_links(extent: int, kernel: int, stride: int, dilation: int, low: int, outputs: int, mode: str) -> list[Index]:
    """(output, tap, source) along one axis."""
    links = []
    for o, t in itertools.product(range(outputs), range(kernel)):
        place = source(o * stride + t * dilation - low, extent, mode)
        if place is not None:
            links.append((o, t, place))
    return links


def wire(plans: list[Index], axes: list[list[Index]]) -> Wiring:
    links = [tuple(zip(*visit, strict=True)) for visit in itertools.product(*axes)]
    return Wiring(tuple(plan[-1] for plan in plans), links)


def wire_conv(extents: Sequence[int], kernel: Sequence[int], *, padding_mode: str = "zeros", **geometry: Any) -> Wiring:
    plans = conv_axes(extents, kernel, **geometry)
    return wire(plans, [axis_links(n, k, *p, padding_mode) for n, k, p in zip(extents, kernel, plans, strict=True)])


def wire_transpose(extents: Sequence[int], kernel: Sequence[int], **geometry: Any) -> Wiring:
    """The links of the convolution from the output back to the input, read the other way round."""
    plans = transpose_axes(extents, kernel, **geometry)
    axes = []
    for n, k, (s, d, low, outputs) in zip(extents, kernel, plans, strict=True):
        axes.append([(i, t, o) for o, t, i in axis_links(outputs, k, s, d, low, n, "zeros")])
    return wire(plans, axes)


def blank(shape: Iterable[int]) -> Array:
    """Empty sums: the int 0, to which any number can be added."""
    return np.full(tuple(shape), 0, dtype=object)


def each(function: Callable[..., Any], *arrays: Array) -> Array:
    out = blank(arrays[0].shape)
    for index in np.ndindex(out.shape):
        out[index] = function(*(array[index] for array in arrays))
    return out


def outputs_of(x: Array, weight: Array) -> Iterable[tuple[int, int, int]]:
    """(n, c, k) of every output channel k = c·M + m of every image."""
    channels = x.shape[1]
    multiplier = weight.shape[0] // max(channels, 1)
    for n, c, m in itertools.product(range(x.shape[0]), range(channels), range(multiplier)):
        yield n, c, c * multiplier + m


def add_bias(out: Array, bias: Array | None) -> Array:
    if bias is not None:
        for index in np.ndindex(out.shape):
            out[index] += bias[index[1]]
    return out


def correlate(x: Array, weight: Array, bias: Array | None, wiring: Wiring, arith: Arithmetic) -> Array:
    out = blank((x.shape[0], weight.shape[0], *wiring.extents))
    for n, c, k in outputs_of(x, weight):
        sums, taps, image = out[n, k], weight[k, 0], x[n, c]
        for o, t, s in wiring.links:
            sums[o] += taps[t] * image[s]
    return each(arith.finish, add_bias(out, bias))


def correlate_input_grad(grad: Array, weight: Array, shape: Index, wiring: Wiring) -> Array:
    """Unfinished sums."""
    out = blank(shape)
    for n, c, k in outputs_of(out, weight):
        sums, taps, g = out[n, c], weight[k, 0], grad[n, k]
        for o, t, s in wiring.links:
            sums[s] += taps[t] * g[o]
    return out


def correlate_weight_grad(grad: Array, x: Array, shape: Index, wiring: Wiring, arith: Arithmetic) -> Array:
    out = blank(shape)
    for n, c, k in outputs_of(x, out):
        sums, image, g = out[k, 0], x[n, c], grad[n, k]
        for o, t, s in wiring.links:
            sums[t] += image[s] * g[o]
    return each(arith.finish, out)


def bias_grad(grad: Array, arith: Arithmetic) -> Array:
    out = blank(grad.shape[1:2])
    for index in np.ndindex(grad.shape):
        out[index[1]] += grad[index]
    return each(arith.finish, out)


def mix(x: Array, weight: Array, bias: Array | None, arith: Arithmetic) -> Array:
    """Pointwise: (K, C) times the channels at each place."""
    out = blank((x.shape[0], weight.shape[0], *x.shape[2:]))
    for n, *place in np.ndindex((x.shape[0], *x.shape[2:])):
        for k, c in np.ndindex(weight.shape):
            out[(n, k, *place)] += weight[k, c] * x[(n, c, *place)]
    return each(arith.finish, add_bias(out, bias))


def mix_input_grad(grad: Array, weight: Array, shape: Index, arith: Arithmetic) -> Array:
    out = blank(shape)
    for n, *place in np.ndindex((shape[0], *shape[2:])):
        for k, c in np.ndindex(weight.shape):
            out[(n, c, *place)] += weight[k, c] * grad[(n, k, *place)]
    return each(arith.finish, out)


def mix_weight_grad(grad: Array, x: Array, shape: Index, arith: Arithmetic) -> Array:
    out = blank(shape)
    for n, *place in np.ndindex((x.shape[0], *x.shape[2:])):
        for k, c in np.ndindex(shape):
            out[k, c] += x[(n, c, *place)] * grad[(n, k, *place)]
    return each(arith.finish, out)


def activate(activation: str | None, z: Array, arith: Arithmetic) -> Array:
    return z if activation is None else each(lambda v: arith.activate(activation, v), z)


def through(activation: str | None, grad: Array, z: Array, arith: Arithmetic) -> Array:
    """The gradient before an activation, from that behind it."""
    if activation is None:
        return grad
    return each(lambda g, v: arith.finish(g * arith.derivative(activation, v)), grad, z)

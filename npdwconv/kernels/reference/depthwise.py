"""NumPy kernels for depthwise convolution and its transpose: arrays and ints, no validation.

Everything is one relation, ``i = o·stride + t·dilation − low``, and three bilinear maps over it, a line each:
`gather` (a window's sum), `scatter` (its adjoint in the input) and `correlate` (its adjoint in the weight).
A tap that falls in zero padding has no place in the slices of ``geometry.taps()``, so it reads nothing. NumPy sums in
the order of memory: what is summed is laid out first, so that no bit depends on the strides of an operand.
Arrays are viewed as (N, C, M, *spatial) with M = 1 where there is one value a channel, weights as (C, M, *kernel).
"""

from __future__ import annotations

from typing import Any

import numpy as np

from npdwconv.activations import Activation
from npdwconv.geometry import ConvGeometry
from npdwconv.kernels.reference.borders import pad_bwd, pad_fwd
from npdwconv.kernels.reference.epilogue import store, store_chain, widened
from npdwconv.layouts import Array, grouped, per_channel, split_shape


def gather(z: Array, weight: Array, x: Array, g: ConvGeometry) -> None:
    """z[o] += Σ_t w[t]·x[i]."""
    for t, o, i in g.taps():
        z[_at(o)] += _fit(_tap(weight, t) * x[_at(i)], z)


def scatter(x: Array, weight: Array, z: Array, g: ConvGeometry) -> None:
    """x[i] += Σ_t w[t]·z[o]."""
    for t, o, i in g.taps():
        x[_at(i)] += _fit(_tap(weight, t) * z[_at(o)], x)


def correlate(weight: Array, z: Array, x: Array, g: ConvGeometry) -> None:
    """w[t] = Σ_n,o z[o]·x[i]."""
    for t, o, i in g.taps():
        weight[_at(t)] = np.multiply(z[_at(o)], x[_at(i)], order="C").sum(axis=(0, *range(3, z.ndim)))


def _at(place: tuple[Any, ...]) -> tuple[Any, ...]:
    """The index of ``place`` on the last axes."""
    return (..., *place)


def _tap(weight: Array, t: tuple[int, ...]) -> Array:
    """One tap of every kernel, (C, M, 1, …)."""
    tap: Array = weight[_at(t)]
    return tap.reshape(*weight.shape[:2], *(1,) * len(t))


def _fit(product: Array, target: Array) -> Array:
    """``product`` summed over M where ``target`` has one value a channel."""
    fitted: Array = (
        product if product.shape[2] == target.shape[2] else np.ascontiguousarray(product).sum(axis=2, keepdims=True)
    )
    return fitted


def _weights(weight: Array, channels: int) -> Array:
    each = weight.shape[0] // channels if channels else 1
    return widened(weight).reshape(channels, each, *weight.shape[1:])


def _biased(bias: Array | None, shape: tuple[int, ...], like: Array, layout: str, channels: int) -> tuple[Array, Array]:
    """An accumulator of ``shape`` that starts at the bias, and its view (N, C, M, *spatial)."""
    z = np.zeros(shape, dtype=widened(like).dtype)
    view = grouped(z, layout, channels)
    if bias is not None:
        view[...] = per_channel(widened(bias), channels, view.ndim - 3)
    return z, view


def _sum_windows(
    x: Array, weight: Array, bias: Array | None, shape: tuple[int, ...], g: ConvGeometry, layout: str
) -> Array:
    channels = split_shape(layout, x.shape)[1]
    z, view = _biased(bias, shape, x, layout, channels)
    source, inner = pad_fwd(grouped(widened(x), layout, channels), g)
    gather(view, _weights(weight, channels), source, inner)
    return z


def _spread_windows(
    x: Array, weight: Array, bias: Array | None, shape: tuple[int, ...], g: ConvGeometry, layout: str
) -> Array:
    channels = split_shape(layout, x.shape)[1]
    y, view = _biased(bias, shape, x, layout, channels)
    scatter(view, _weights(weight, channels), grouped(widened(x), layout, channels), g)
    return y


@np.errstate(all="ignore")
def depthwise_fwd(
    x: Array, weight: Array, bias: Array | None, out: Array, g: ConvGeometry, layout: str, activation: Activation | None
) -> None:
    """out[n,cM+m,o] = activation(Σ_t w[cM+m,t]·x[n,c,i] + b[cM+m])."""
    store(_sum_windows(x, weight, bias, out.shape, g, layout), activation, out)


@np.errstate(all="ignore")
def depthwise_bwd_activation(
    grad_out: Array,
    x: Array,
    weight: Array,
    bias: Array | None,
    grad_z: Array,
    g: ConvGeometry,
    layout: str,
    activation: Activation,
) -> None:
    """grad_z = grad_out · activation′(z), with z recomputed."""
    store_chain(grad_out, _sum_windows(x, weight, bias, grad_z.shape, g, layout), activation, grad_z)


@np.errstate(all="ignore")
def depthwise_bwd_input(grad_z: Array, weight: Array, grad_x: Array, g: ConvGeometry, layout: str) -> None:
    """grad_x[n,c,i] = Σ_m,t w[cM+m,t]·grad_z[n,cM+m,o], over the o for which tap t reads i."""
    batch, channels, _ = split_shape(layout, grad_x.shape)
    inner = g.inside() if g.copies_border else g
    padded = np.zeros((batch, channels, 1, *inner.size), dtype=widened(weight).dtype)
    scatter(padded, _weights(weight, channels), grouped(widened(grad_z), layout, channels), inner)
    grouped(grad_x, layout, channels)[...] = pad_bwd(padded, g)


@np.errstate(all="ignore")
def depthwise_bwd_weight(grad_z: Array, x: Array, grad_weight: Array, g: ConvGeometry, layout: str) -> None:
    """grad_w[cM+m,t] = Σ_n,o grad_z[n,cM+m,o]·x[n,c,i]."""
    channels = split_shape(layout, x.shape)[1]
    source, inner = pad_fwd(grouped(widened(x), layout, channels), g)
    gradient = np.zeros_like(_weights(grad_weight, channels))
    correlate(gradient, grouped(widened(grad_z), layout, channels), source, inner)
    grad_weight[...] = gradient.reshape(grad_weight.shape)


@np.errstate(all="ignore")
def transpose_fwd(
    x: Array, weight: Array, bias: Array | None, out: Array, g: ConvGeometry, layout: str, activation: Activation | None
) -> None:
    """out[n,cM+m,i] = activation(Σ_t w[cM+m,t]·x[n,c,o] + b[cM+m]), over the o for which tap t reads i."""
    store(_spread_windows(x, weight, bias, out.shape, g, layout), activation, out)


@np.errstate(all="ignore")
def transpose_bwd_activation(
    grad_out: Array,
    x: Array,
    weight: Array,
    bias: Array | None,
    grad_z: Array,
    g: ConvGeometry,
    layout: str,
    activation: Activation,
) -> None:
    """grad_z = grad_out · activation′(z), with z recomputed."""
    store_chain(grad_out, _spread_windows(x, weight, bias, grad_z.shape, g, layout), activation, grad_z)


@np.errstate(all="ignore")
def transpose_bwd_input(grad_z: Array, weight: Array, grad_x: Array, g: ConvGeometry, layout: str) -> None:
    """grad_x[n,c,o] = Σ_m,t w[cM+m,t]·grad_z[n,cM+m,i]."""
    channels = split_shape(layout, grad_x.shape)[1]
    total = np.zeros(grad_x.shape, dtype=widened(weight).dtype)
    gather(grouped(total, layout, channels), _weights(weight, channels), grouped(widened(grad_z), layout, channels), g)
    grad_x[...] = total


@np.errstate(all="ignore")
def transpose_bwd_weight(grad_z: Array, x: Array, grad_weight: Array, g: ConvGeometry, layout: str) -> None:
    """grad_w[cM+m,t] = Σ_n,o x[n,c,o]·grad_z[n,cM+m,i]."""
    channels = split_shape(layout, x.shape)[1]
    gradient = np.zeros_like(_weights(grad_weight, channels))
    correlate(gradient, grouped(widened(x), layout, channels), grouped(widened(grad_z), layout, channels), g)
    grad_weight[...] = gradient.reshape(grad_weight.shape)

"""Numba kernels for depthwise convolution and its transpose: arrays and ints, no validation.

Everything is dense correlations (`phases`): a forward is one, an adjoint several, and either may end in an activation
or in the product with an activation's derivative. `channels_first` and `channels_last` run them; `weight_gradient` has
the adjoint in the weight.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import numpy as np

from npdwconv.activations import Activation
from npdwconv.geometry import ConvGeometry
from npdwconv.kernels.cpu import channels_first, channels_last, phases
from npdwconv.kernels.cpu.arrays import deliver, plain, target
from npdwconv.kernels.cpu.engine import NOWHERE, Parts, Program, Ready, checks
from npdwconv.kernels.cpu.weight_gradient import correlate, correlate_ready
from npdwconv.kernels.reference import depthwise as reference
from npdwconv.kernels.reference.borders import pad_bwd, pad_fwd
from npdwconv.layouts import Array
from npdwconv.precision import accumulator

_LAYOUTS = {"channels_first": channels_first, "channels_last": channels_last}
_FIRST_AXIS = {"channels_first": 2, "channels_last": 1}

_forward, _adjoint = lru_cache(phases.forward), lru_cache(phases.adjoint)


def _gather(
    source: Array,
    weight: Array,
    bias: Array | None,
    out: Array,
    passes: tuple[phases.Sweeps, ...],
    layout: str,
    activation: Activation | None = None,
    other: Array | None = None,
) -> None:
    written, name = target(out), "" if activation is None else activation.name
    b, factor = None if bias is None else plain(bias), None if other is None else plain(other)
    _LAYOUTS[layout].gather(plain(source), plain(weight), b, written, passes, name, factor)
    deliver(written, out)


def forward_parts(
    arrays: tuple[Array, Array, Array | None, Array],
    g: ConvGeometry,
    layout: str,
    activation: Activation | None,
    places: Sequence[int] = range(4),
    first: int = 4,
) -> Parts:
    """`depthwise_fwd` of ``arrays``, (x, weight, bias, out), as part of a program where they have these places."""
    return _parts(arrays, _forward(g), layout, activation, places, first)


def _parts(
    arrays: tuple[Array, Array, Array | None, Array],
    passes: tuple[phases.Sweeps, ...],
    layout: str,
    activation: Activation | None,
    places: Sequence[int] = range(4),
    first: int = 4,
) -> Parts:
    name = "" if activation is None else activation.name
    parts: Parts = _LAYOUTS[layout].parts(arrays, passes, name, places, first)
    return parts


def depthwise_ready(
    x: Array, weight: Array, bias: Array | None, out: Array, g: ConvGeometry, layout: str, activation: Activation | None
) -> Ready | None:
    """`depthwise_fwd` of arrays like these; None where something has to be copied."""
    arrays = x, weight, bias, out
    if g.copies_border or not (x.size and out.size and checks()):
        return None
    return Program(forward_parts(arrays, g, layout, activation), arrays, result=3)


def transpose_ready(
    x: Array, weight: Array, bias: Array | None, out: Array, g: ConvGeometry, layout: str, activation: Activation | None
) -> Ready | None:
    """`transpose_fwd` of arrays like these."""
    arrays = x, weight, bias, out
    if not (x.size and out.size and checks()):
        return None
    return Program(_parts(arrays, _adjoint(g), layout, activation), arrays, result=3)


def depthwise_input_ready(grad_z: Array, weight: Array, grad_x: Array, g: ConvGeometry, layout: str) -> Ready | None:
    """`depthwise_bwd_input` of arrays like these."""
    if g.copies_border or not (grad_z.size and grad_x.size and checks()):
        return None
    parts = _parts((grad_z, weight, None, grad_x), _adjoint(g), layout, None, (0, 1, NOWHERE, 2), 3)
    return Program(parts, (grad_z, weight, grad_x), result=2)


def depthwise_weight_ready(grad_z: Array, x: Array, grad_weight: Array, g: ConvGeometry, layout: str) -> Ready | None:
    """`depthwise_bwd_weight` of arrays like these."""
    if g.copies_border or not (grad_z.size and x.size and grad_weight.size and checks()):
        return None
    return correlate_ready(grad_z, x, grad_weight, g, layout)


def depthwise_fwd(
    x: Array, weight: Array, bias: Array | None, out: Array, g: ConvGeometry, layout: str, activation: Activation | None
) -> None:
    """out[n,cM+m,o] = activation(Σ_t w[cM+m,t]·x[n,c,i] + b[cM+m])."""
    if not (x.size and out.size):
        reference.depthwise_fwd(x, weight, bias, out, g, layout, activation)
        return
    source, inner = pad_fwd(x, g, _FIRST_AXIS[layout])
    _gather(source, weight, bias, out, _forward(inner), layout, activation)


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
    if not (x.size and grad_z.size):
        reference.depthwise_bwd_activation(grad_out, x, weight, bias, grad_z, g, layout, activation)
        return
    source, inner = pad_fwd(x, g, _FIRST_AXIS[layout])
    _gather(source, weight, bias, grad_z, _forward(inner), layout, activation, grad_out)


def depthwise_bwd_input(grad_z: Array, weight: Array, grad_x: Array, g: ConvGeometry, layout: str) -> None:
    """grad_x[n,c,i] = Σ_m,t w[cM+m,t]·grad_z[n,cM+m,o], over the o for which tap t reads i."""
    if not (grad_z.size and grad_x.size):
        reference.depthwise_bwd_input(grad_z, weight, grad_x, g, layout)
        return
    if not g.copies_border:
        _gather(grad_z, weight, None, grad_x, _adjoint(g), layout)
        return
    first, inner, shape = _FIRST_AXIS[layout], g.inside(), list(grad_x.shape)
    shape[first : first + len(g.axes)] = inner.size
    padded = np.empty(shape, dtype=accumulator(grad_x.dtype))
    _gather(grad_z, weight, None, padded, _adjoint(inner), layout)
    with np.errstate(all="ignore"):
        grad_x[...] = pad_bwd(padded, g, first)


def depthwise_bwd_weight(grad_z: Array, x: Array, grad_weight: Array, g: ConvGeometry, layout: str) -> None:
    """grad_w[cM+m,t] = Σ_n,o grad_z[n,cM+m,o]·x[n,c,i]."""
    if not (x.size and grad_z.size):
        reference.depthwise_bwd_weight(grad_z, x, grad_weight, g, layout)
        return
    source, inner = pad_fwd(x, g, _FIRST_AXIS[layout])
    correlate(grad_z, source, grad_weight, inner, layout)


def transpose_fwd(
    x: Array, weight: Array, bias: Array | None, out: Array, g: ConvGeometry, layout: str, activation: Activation | None
) -> None:
    """out[n,cM+m,i] = activation(Σ_t w[cM+m,t]·x[n,c,o] + b[cM+m]), over the o for which tap t reads i."""
    if not (x.size and out.size):
        reference.transpose_fwd(x, weight, bias, out, g, layout, activation)
        return
    _gather(x, weight, bias, out, _adjoint(g), layout, activation)


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
    if not (x.size and grad_z.size):
        reference.transpose_bwd_activation(grad_out, x, weight, bias, grad_z, g, layout, activation)
        return
    _gather(x, weight, bias, grad_z, _adjoint(g), layout, activation, grad_out)


def transpose_bwd_input(grad_z: Array, weight: Array, grad_x: Array, g: ConvGeometry, layout: str) -> None:
    """grad_x[n,c,o] = Σ_m,t w[cM+m,t]·grad_z[n,cM+m,i]."""
    if not (grad_z.size and grad_x.size):
        reference.transpose_bwd_input(grad_z, weight, grad_x, g, layout)
        return
    _gather(grad_z, weight, None, grad_x, _forward(g), layout)


def transpose_bwd_weight(grad_z: Array, x: Array, grad_weight: Array, g: ConvGeometry, layout: str) -> None:
    """grad_w[cM+m,t] = Σ_n,o x[n,c,o]·grad_z[n,cM+m,i]."""
    if not (x.size and grad_z.size):
        reference.transpose_bwd_weight(grad_z, x, grad_weight, g, layout)
        return
    correlate(x, grad_z, grad_weight, g, layout)

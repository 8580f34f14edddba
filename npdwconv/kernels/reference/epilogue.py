"""NumPy epilogues: what happens to a sum before it is stored, and what every backward shares."""

from __future__ import annotations

import numpy as np

from npdwconv.activations import Activation
from npdwconv.layouts import Array, channels_second
from npdwconv.precision import accumulator


def widened(array: Array) -> Array:
    """``array`` in the dtype in which it is accumulated."""
    return array.astype(accumulator(array.dtype), copy=False)


def store(z: Array, activation: Activation | None, out: Array) -> None:
    """out = activation(z), rounded once."""
    out[...] = z if activation is None else activation.function(z)


def store_chain(grad_out: Array, z: Array, activation: Activation, grad_z: Array) -> None:
    """grad_z = grad_out · activation′(z)."""
    grad_z[...] = widened(grad_out) * activation.derivative(z)


@np.errstate(all="ignore")
def bias_bwd(grad_z: Array, grad_bias: Array, layout: str) -> None:
    """grad_b[k] = Σ_n,pq grad_z[n,k,pq]."""
    view = np.ascontiguousarray(channels_second(widened(grad_z), layout))
    grad_bias[...] = view.sum(axis=(0, *range(2, view.ndim)))

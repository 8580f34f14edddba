"""NumPy kernels for pointwise convolution: a matrix product an image. Arrays and ints, no validation.

One product an image, never one for the whole batch: a matrix library may sum in another order when the matrix is
another, and a result must not depend on which images share its batch.
"""

from __future__ import annotations

import numpy as np

from npdwconv.activations import Activation
from npdwconv.kernels.reference.epilogue import store, store_chain, widened
from npdwconv.layouts import Array, channels_second


def _pixels(array: Array, layout: str) -> Array:
    """A view (N, C, pixels) of the widened array, of one stride pattern for each layout."""
    dense = np.ascontiguousarray(widened(array))
    flat = (dense.shape[0], dense.shape[1], -1) if layout == "channels_first" else (dense.shape[0], -1, dense.shape[-1])
    if dense.size:
        return channels_second(dense.reshape(flat), layout)
    shape = channels_second(dense, layout).shape
    return np.zeros((*shape[:2], int(np.prod(shape[2:]))), dtype=dense.dtype)


def _product(x: Array, weight: Array, bias: Array | None, layout: str, shape: tuple[int, ...]) -> Array:
    """z[n,k] = Σ_c w[k,c]·x[n,c] + b[k], in the layout and the shape asked for."""
    w, pixels = np.ascontiguousarray(widened(weight)), _pixels(x, layout)
    if layout == "channels_first":
        z = np.matmul(w, pixels)
        b = None if bias is None else widened(bias)[:, None]
    else:
        z = np.matmul(pixels.transpose(0, 2, 1), w.T)
        b = None if bias is None else widened(bias)
    biased: Array = z if b is None else z + b
    return biased.reshape(shape)


def pointwise_panels(weight: Array) -> Array:
    """A weight (K, C) as `pointwise_fwd` takes it from a frozen layer: as it is."""
    return weight


@np.errstate(all="ignore")
def pointwise_fwd(
    x: Array, weight: Array, bias: Array | None, out: Array, layout: str, activation: Activation | None
) -> None:
    """out[n,k,pq] = activation(Σ_c w[k,c]·x[n,c,pq] + b[k])."""
    store(_product(x, weight, bias, layout, out.shape), activation, out)


@np.errstate(all="ignore")
def pointwise_bwd_activation(
    grad_out: Array,
    x: Array,
    weight: Array,
    bias: Array | None,
    grad_z: Array,
    layout: str,
    activation: Activation,
) -> None:
    """grad_z = grad_out · activation′(z), with z recomputed."""
    store_chain(grad_out, _product(x, weight, bias, layout, grad_z.shape), activation, grad_z)


@np.errstate(all="ignore")
def pointwise_bwd_input(grad_z: Array, weight: Array, grad_x: Array, layout: str) -> None:
    """grad_x[n,c,pq] = Σ_k w[k,c]·grad_z[n,k,pq]: the forward with the weight transposed."""
    grad_x[...] = _product(grad_z, weight.T, None, layout, grad_x.shape)


@np.errstate(all="ignore")
def pointwise_bwd_weight(grad_z: Array, x: Array, grad_weight: Array, layout: str) -> None:
    """grad_w[k,c] = Σ_n,pq grad_z[n,k,pq]·x[n,c,pq]."""
    total = np.zeros(grad_weight.shape, dtype=widened(grad_weight).dtype)
    for grad_image, image in zip(_pixels(grad_z, layout), _pixels(x, layout), strict=True):
        total += grad_image @ image.T
    grad_weight[...] = total

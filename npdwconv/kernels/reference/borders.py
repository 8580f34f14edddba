"""NumPy kernels for borders that repeat real inputs (reflect, replicate, circular): a gather and its adjoint."""

from __future__ import annotations

import numpy as np

from npdwconv.geometry import Axis, ConvGeometry
from npdwconv.layouts import Array


def _sources(axis: Axis, mode: str) -> Array:
    """The input index that each position of the padded axis copies."""
    index, last = np.arange(axis.padded) - axis.low, axis.size - 1
    if mode == "circular":
        return index % axis.size
    if mode == "replicate":
        return np.clip(index, 0, last)
    reflected: Array = last - abs(last - abs(index))
    return reflected


def pad_fwd(x: Array, g: ConvGeometry, first: int | None = None) -> tuple[Array, ConvGeometry]:
    """padded[j] = x[source(j)] along every spatial axis, with the geometry inside it; as given for zero padding.

    The spatial axes are the last ones, or those from ``first`` on.
    """
    if not g.copies_border:
        return x, g
    for place, axis in enumerate(g.axes, start=x.ndim - len(g.axes) if first is None else first):
        x = np.take(x, _sources(axis, g.padding_mode), axis=place)
    return x, g.inside()


def pad_bwd(grad_padded: Array, g: ConvGeometry, first: int | None = None) -> Array:
    """grad_x[i] = Σ_j grad_padded[j] over the j with source(j) = i; axes as in `pad_fwd`."""
    if not g.copies_border:
        return grad_padded
    for place, axis in enumerate(g.axes, start=grad_padded.ndim - len(g.axes) if first is None else first):
        rows = np.moveaxis(grad_padded, place, 0)
        total = np.zeros((axis.size, *rows.shape[1:]), dtype=rows.dtype)
        for index, source in enumerate(_sources(axis, g.padding_mode)):
            total[source] += rows[index]
        grad_padded = np.moveaxis(total, 0, place)
    return grad_padded

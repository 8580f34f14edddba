"""CPU kernels for pointwise convolution: matrix products in either layout. Arrays and ints, no validation."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np

from npdwconv.activations import Activation
from npdwconv.kernels.cpu.products import Matrices, Strides, packed_product, packing, packing_product, reduction
from npdwconv.layouts import Array, split_shape
from npdwconv.precision import accumulator
from npdwconv.threads import get_num_threads


class Packed:
    """A weight (K, C) and the panels made of it, each width once: what a frozen layer keeps."""

    def __init__(self, weight: Array) -> None:
        self.weight = _dense(weight)
        self._panels: dict[tuple[int, int], Array] = {}

    def panels(self, m: Matrices) -> Array:
        """The panels that a product needs."""
        plan = packing(m)
        found = self._panels.get(plan.width)
        if found is None:
            found = self._panels[plan.width] = np.empty(plan.size, dtype=m.dtype)
            plan.launch(self.weight, found)
        return found


def pointwise_fwd(
    x: Array,
    weight: Array | Packed,
    bias: Array | None,
    out: Array,
    layout: str,
    activation: Activation | None,
    residual: Array | None = None,
) -> None:
    """out[n,k,pq] = activation(Σ_c w[k,c]·x[n,c,pq] + b[k]), plus the residual where there is one."""
    _apply(x, weight, bias, out, layout, activation, other=residual)


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
    _apply(x, weight, bias, grad_z, layout, activation, other=grad_out, chain=True)


def pointwise_bwd_input(grad_z: Array, weight: Array, grad_x: Array, layout: str) -> None:
    """grad_x[n,c,pq] = Σ_k w[k,c]·grad_z[n,k,pq]: the forward with the weight transposed."""
    _apply(grad_z, weight, None, grad_x, layout, None, turned=True)


def pointwise_bwd_weight(grad_z: Array, x: Array, grad_weight: Array, layout: str) -> None:
    """grad_w[k,c] = Σ_n,pq grad_z[n,k,pq]·x[n,c,pq]."""
    if not grad_weight.size:
        return
    if not grad_z.size:
        grad_weight[...] = 0
        return
    grad_z, x = _dense(grad_z), _dense(x)
    batch, _, spatial = split_shape(layout, x.shape)
    pixels = int(np.prod(spatial, dtype=np.int64))
    types = grad_z.dtype.name, x.dtype.name
    plan, turned = _weight_plan(batch, pixels, *grad_weight.shape, layout, *types, get_num_threads())
    total, copied = _target(grad_weight, accumulator(grad_weight.dtype))
    scratch = np.empty(plan.scratch, dtype=total.dtype)
    a, b = (x, grad_z) if turned else (grad_z, x)
    plan.launch(a, b, None, total, None, scratch)
    if copied:
        grad_weight[...] = total


def _apply(
    x: Array,
    weight: Array | Packed,
    bias: Array | None,
    out: Array,
    layout: str,
    activation: Activation | None,
    *,
    other: Array | None = None,
    chain: bool = False,
    turned: bool = False,
) -> None:
    """The product of the pixels with the weight, or with its transpose where ``turned``."""
    if not out.size:
        return
    x = _dense(x)
    packed = weight if isinstance(weight, Packed) else Packed(weight)
    bias, other = (None if array is None else _dense(array) for array in (bias, other))
    target, copied = _target(out, out.dtype)
    batch, _, spatial = split_shape(layout, x.shape)
    pixels = int(np.prod(spatial, dtype=np.int64))
    types = tuple("" if array is None else array.dtype.name for array in (x, packed.weight, target, bias, other))
    name = "" if activation is None else activation.name
    m, packs = _product(batch, pixels, *packed.weight.shape, layout, types, name, chain, turned, get_num_threads())
    if packs:
        plan = packing_product(m)
        plan.launch(packed.weight, x, bias, target, other, np.empty(plan.scratch, dtype=m.dtype))
    else:
        packed_product(m)(x, packed.panels(m), bias, target, other)
    if copied:
        out[...] = target


@lru_cache(maxsize=1024)
def _product(
    batch: int,
    pixels: int,
    rows: int,
    columns: int,
    layout: str,
    types: tuple[str, ...],
    activation: str,
    chain: bool,
    transposed: bool,
    threads: int,
) -> tuple[Matrices, bool]:
    """The product for a weight (rows, columns), and whether it is the pixels that are packed."""
    x_type, w_type, out_type, bias_type, other_type = types
    outs, depth = (columns, rows) if transposed else (rows, columns)
    line, step = (1, columns) if transposed else (columns, 1)
    rest: dict[str, Any] = {"out_type": out_type, "bias_type": bias_type, "other_type": other_type}
    rest |= {"activation": activation, "chain": chain, "threads": threads}
    weight = Strides(line, step)
    if layout == "channels_last" or pixels == 1:
        pixel = Strides(depth), weight, Strides(outs), x_type, w_type
        return Matrices(1, batch * pixels, outs, depth, *pixel, **rest), False
    source, result = Strides(1, pixels, depth * pixels), Strides(pixels, 1, outs * pixels)
    across = Matrices(batch, pixels, outs, depth, source, weight, result, x_type, w_type, turned=True, **rest)
    along = Matrices(batch, outs, pixels, depth, weight, source, result, w_type, x_type, **rest)
    packs = _cost(along, packs=True) < _cost(across, packs=False)
    return (along, True) if packs else (across, False)


def _cost(m: Matrices, *, packs: bool) -> float:
    """Cycles of a product in channels_first: its sums, and packing the pixels or turning the results."""
    vectors = m.images * -(-m.columns // m.lanes) / m.threads
    extra = vectors * 3 * m.depth if packs else vectors * m.height * 6
    return m.cut("columns" if packs else "rows").cost * m.depth + extra


@lru_cache(maxsize=1024)
def _weight_plan(
    batch: int, pixels: int, rows: int, columns: int, layout: str, grad_type: str, x_type: str, threads: int
) -> tuple[Any, bool]:
    """The reduction that gives a weight's gradient, and whether x is its rows and grad_z its columns."""
    if layout == "channels_last" or pixels == 1:
        batch, pixels, layout = 1, batch * pixels, "channels_last"
    grad, x = (
        Strides(1, count) if layout == "channels_last" else Strides(pixels, 1, count * pixels)
        for count in (rows, columns)
    )
    dtype = Matrices(1, 1, 1, 1, grad, x, grad, grad_type, x_type, "").dtype
    plain = Matrices(batch, rows, columns, pixels, grad, x, Strides(columns), grad_type, x_type, dtype, threads=threads)
    other = Matrices(
        batch, columns, rows, pixels, x, grad, Strides(columns), x_type, grad_type, dtype, turned=True, threads=threads
    )
    turned = other.cut("").cost < 0.95 * plain.cut("").cost
    return reduction(other if turned else plain), turned


def _dense(array: Array) -> Array:
    """``array`` as kernels read it: contiguous and aligned."""
    return np.require(array, requirements=("C", "A"))


def _target(array: Array, dtype: Any) -> tuple[Array, bool]:
    """Where a kernel writes what ``array`` is to hold, and whether that is somewhere else."""
    if array.dtype == dtype and array.flags.c_contiguous and array.flags.aligned:
        return array, False
    return np.empty(array.shape, dtype=dtype), True

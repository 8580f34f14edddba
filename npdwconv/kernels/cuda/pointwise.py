"""The CUDA room's pointwise convolution: a matrix product at every pixel."""

from __future__ import annotations

from math import prod
from typing import Any

import numpy as np

from npdwconv.activations import Activation
from npdwconv.device import DeviceArray
from npdwconv.kernels.cuda import product, sums
from npdwconv.kernels.cuda.entry import Operand, entered, place_of
from npdwconv.kernels.cuda.product import ProductSpec
from npdwconv.kernels.cuda.words import real_of
from npdwconv.layouts import split_shape
from npdwconv.precision import storage

ALONE = 1 << 30  # from one matrix of a sum to the next, where a sum is over one
BLOCKS = 512  # that a sum over all pixels is split into, at most and about


def pointwise_panels(weight: Any) -> Any:
    """A weight (K, C) as `pointwise_fwd` takes it from a frozen layer: as it is."""
    return weight


def _multiply(
    x: DeviceArray,
    weight: DeviceArray,
    out: DeviceArray,
    layout: str,
    *,
    transposed: bool = False,
    bias: DeviceArray | None = None,
    activation: Activation | None = None,
    other: DeviceArray | None = None,
) -> None:
    """out = weight · x at every pixel, or weightᵀ · x."""
    if not out.size:
        return
    images, summed, spatial = split_shape(layout, x.shape)
    results, pixels = split_shape(layout, out.shape)[1], prod(spatial)
    name = "" if activation is None else activation.name
    biased, chained = ("" if bias is None else storage(bias.dtype)), ("" if other is None else storage(other.dtype))
    if layout == "channels_first":
        rows, columns, count = results, pixels, images
        spec = ProductSpec(
            storage(weight.dtype), storage(x.dtype), storage(out.dtype), not transposed, False, "rows" if biased else ""
        )
        leading = (weight.shape[1], pixels, pixels, 0, summed * pixels, results * pixels)
        factors = (weight, x)
    else:
        rows, columns, count = images * pixels, results, 1
        spec = ProductSpec(
            storage(x.dtype),
            storage(weight.dtype),
            storage(out.dtype),
            True,
            not transposed,
            "columns" if biased else "",
        )
        leading = (summed, weight.shape[1], results, 0, 0, 0)
        factors = (x, weight)
    tile = product.tile_for(rows, columns, count)
    spec = spec._replace(
        bias_storage=biased,
        activation=name,
        other=chained,
        tile=tile,
        vector=product.width_of(columns, leading[2], leading[5], out, other),
    )
    for begin in range(0, count, 65535):
        some = min(65535, count - begin)
        product.kernel(spec)(
            product.grid(tile, rows, columns, some),
            (tile.threads, 1, 1),
            out.stream,
            *(place_of(_from(factor, begin * stride)) for factor, stride in zip(factors, leading[3:5], strict=True)),
            place_of(_from(out, begin * leading[5])),
            place_of(bias),
            place_of(None if other is None else _from(other, begin * leading[5])),
            *(rows, columns, summed, *leading, some, ALONE, max(summed, 1), 1),
        )


def _from(array: DeviceArray, elements: int) -> DeviceArray:
    """The array's elements from one on, flat."""
    return array if not elements else array.reshape(-1)[elements:]


def pointwise_fwd(
    x: Operand, weight: Operand, bias: Operand, out: Operand, layout: str, activation: Activation | None
) -> None:
    """out[n,k,pq] = activation(Σ_c w[k,c]·x[n,c,pq] + b[k])."""
    with entered((x, weight, bias), (out,)) as (xs, w, b, result):
        _multiply(xs, w, result, layout, bias=b, activation=activation)


def pointwise_bwd_activation(
    grad_out: Operand,
    x: Operand,
    weight: Operand,
    bias: Operand,
    grad_z: Operand,
    layout: str,
    activation: Activation,
) -> None:
    """grad_z = grad_out · activation′(z), with z recomputed."""
    with entered((grad_out, x, weight, bias), (grad_z,)) as (grad, xs, w, b, result):
        _multiply(xs, w, result, layout, bias=b, activation=activation, other=grad)


def pointwise_bwd_input(grad_z: Operand, weight: Operand, grad_x: Operand, layout: str) -> None:
    """grad_x[n,c,pq] = Σ_k w[k,c]·grad_z[n,k,pq]: the forward with the weight transposed."""
    with entered((grad_z, weight), (grad_x,)) as (grad, w, result):
        _multiply(grad, w, result, layout, transposed=True)


def pointwise_bwd_weight(grad_z: Operand, x: Operand, grad_weight: Operand, layout: str) -> None:
    """grad_w[k,c] = Σ_n,pq grad_z[n,k,pq]·x[n,c,pq], split over the pixels by shapes alone."""
    with entered((grad_z, x), (grad_weight,)) as (grad, xs, result):
        if not result.size:
            return
        images, channels, spatial = split_shape(layout, xs.shape)
        rows, pixels = result.shape[0], prod(spatial)
        first = layout == "channels_first"
        spec = ProductSpec(storage(grad.dtype), storage(xs.dtype), "", first, first)
        images, depth = (images, pixels) if first else (1, images * pixels)
        tile = product.tile_for(rows, channels, 200)
        tiles = -(-rows // tile.rows) * -(-channels // tile.columns)
        wanted = max(1, BLOCKS // tiles)
        together = min(images, wanted)  # results that images are dealt out to
        pieces = max(1, min(wanted // max(together, 1), depth // 256))
        piece = -(-depth // (pieces * tile.depth)) * tile.depth
        pieces = max(1, -(-depth // max(piece, 1)))
        splits = max(1, together) * pieces
        real = np.dtype(real_of(storage(grad.dtype)))
        partial = result.empty((splits, rows, channels), real)
        spec = spec._replace(
            c=real.name, tile=tile, vector=product.width_of(channels, channels, rows * channels, partial)
        )
        leading = (pixels, pixels) if first else (rows, channels)
        batches = (rows * pixels, channels * pixels) if first else (0, 0)
        product.kernel(spec)(
            product.grid(tile, rows, channels, splits),
            (tile.threads, 1, 1),
            result.stream,
            *(place_of(grad), place_of(xs), place_of(partial), 0, 0),
            *(rows, channels, depth, *leading, channels, *batches, rows * channels),
            *(images, max(together, 1), max(piece, 1), pieces),
        )
        sums.add_up(partial, result)

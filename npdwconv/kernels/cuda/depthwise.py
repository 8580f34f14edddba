"""The CUDA room's depthwise convolution and its transpose: arrays and ints, no validation."""

from __future__ import annotations

from functools import lru_cache

from npdwconv.activations import Activation
from npdwconv.device import DeviceArray
from npdwconv.geometry import ConvGeometry
from npdwconv.kernels.cuda import borders, correlate, gather, gather_spec
from npdwconv.kernels.cuda.entry import Operand, aligned, entered, place_of
from npdwconv.kernels.cuda.provider import Extents, Kernel
from npdwconv.kernels.cuda.relation import passed
from npdwconv.layouts import shape_of, split_shape
from npdwconv.precision import accumulator, storage


def _gather(
    x: DeviceArray,
    weight: DeviceArray,
    bias: DeviceArray | None,
    out: DeviceArray,
    g: ConvGeometry,
    layout: str,
    *,
    adjoint: bool = False,
    activation: Activation | None = None,
    other: DeviceArray | None = None,
) -> None:
    batch, channels, _ = split_shape(layout, out.shape)
    if not out.size:
        return
    dtypes = (
        storage(x.dtype),
        storage(weight.dtype),
        storage(out.dtype),
        "" if other is None else storage(other.dtype),
    )
    options = (bias is not None, "" if activation is None else activation.name)
    counts = (batch, channels, split_shape(layout, x.shape)[1])
    together = min(aligned(x), aligned(out), 16 if other is None else aligned(other))
    kernel, grids, numbers = _plan(layout, g, adjoint, dtypes, options, counts, together)
    places = [place_of(array) for array in (x, weight, bias, other, out)]
    for grid, block, begin, items in grids:
        kernel(grid, block, out.stream, *places, begin, items, *numbers)


@lru_cache(maxsize=4096)
def _plan(
    layout: str,
    g: ConvGeometry,
    adjoint: bool,
    dtypes: tuple[str, str, str, str],
    options: tuple[bool, str],
    counts: tuple[int, int, int],
    together: int,
) -> tuple[Kernel, list[tuple[Extents, Extents, int, int]], tuple[int, ...]]:
    """A kernel, its launches, and the numbers that each passes."""
    specs, runs = passed(g, adjoint)
    batch, channels, read = counts
    folds = read > channels
    multiplier = (read // channels if folds else channels // read) if read else 1
    spec = gather_spec.GatherSpec(layout, specs, *dtypes, multiplier, folds, *options)
    spec = gather_spec.settled(spec, runs, batch, channels, together)
    numbers = (
        channels,
        *(run.source for run in runs),
        *(run.target for run in runs),
        *(runs[1].shift, runs[2].shift),
        *(run.low for run in runs),
    )
    return gather.kernel(spec), gather_spec.grids(spec, runs, batch, channels), numbers


def depthwise_fwd(
    x: Operand,
    weight: Operand,
    bias: Operand,
    out: Operand,
    g: ConvGeometry,
    layout: str,
    activation: Activation | None,
) -> None:
    """out[n,cM+m,o] = activation(Σ_t w[cM+m,t]·x[n,c,i] + b[cM+m])."""
    with entered((x, weight, bias), (out,)) as (xs, w, b, result):
        source, inner = borders.pad(xs, g, layout)
        _gather(source, w, b, result, inner, layout, activation=activation)


def depthwise_bwd_activation(
    grad_out: Operand,
    x: Operand,
    weight: Operand,
    bias: Operand,
    grad_z: Operand,
    g: ConvGeometry,
    layout: str,
    activation: Activation,
) -> None:
    """grad_z = grad_out · activation′(z), with z recomputed."""
    with entered((grad_out, x, weight, bias), (grad_z,)) as (grad, xs, w, b, result):
        source, inner = borders.pad(xs, g, layout)
        _gather(source, w, b, result, inner, layout, activation=activation, other=grad)


def depthwise_bwd_input(grad_z: Operand, weight: Operand, grad_x: Operand, g: ConvGeometry, layout: str) -> None:
    """grad_x[n,c,i] = Σ_m,t w[cM+m,t]·grad_z[n,cM+m,o], over the o for which tap t reads i."""
    with entered((grad_z, weight), (grad_x,)) as (grad, w, result):
        if not g.copies_border:
            _gather(grad, w, None, result, g, layout, adjoint=True)
            return
        inner, (batch, channels, _) = g.inside(), split_shape(layout, result.shape)
        padded = result.empty(shape_of(layout, batch, channels, inner.size), accumulator(result.dtype))
        _gather(grad, w, None, padded, inner, layout, adjoint=True)
        borders.unpad(padded, result, g, layout)


def depthwise_bwd_weight(grad_z: Operand, x: Operand, grad_weight: Operand, g: ConvGeometry, layout: str) -> None:
    """grad_w[cM+m,t] = Σ_n,o grad_z[n,cM+m,o]·x[n,c,i]."""
    with entered((grad_z, x), (grad_weight,)) as (grad, xs, result):
        source, inner = borders.pad(xs, g, layout)
        correlate.run(grad, source, result, inner, layout)


def transpose_fwd(
    x: Operand,
    weight: Operand,
    bias: Operand,
    out: Operand,
    g: ConvGeometry,
    layout: str,
    activation: Activation | None,
) -> None:
    """out[n,cM+m,i] = activation(Σ_t w[cM+m,t]·x[n,c,o] + b[cM+m]), over the o for which tap t reads i."""
    with entered((x, weight, bias), (out,)) as (xs, w, b, result):
        _gather(xs, w, b, result, g, layout, adjoint=True, activation=activation)


def transpose_bwd_activation(
    grad_out: Operand,
    x: Operand,
    weight: Operand,
    bias: Operand,
    grad_z: Operand,
    g: ConvGeometry,
    layout: str,
    activation: Activation,
) -> None:
    """grad_z = grad_out · activation′(z), with z recomputed."""
    with entered((grad_out, x, weight, bias), (grad_z,)) as (grad, xs, w, b, result):
        _gather(xs, w, b, result, g, layout, adjoint=True, activation=activation, other=grad)


def transpose_bwd_input(grad_z: Operand, weight: Operand, grad_x: Operand, g: ConvGeometry, layout: str) -> None:
    """grad_x[n,c,o] = Σ_m,t w[cM+m,t]·grad_z[n,cM+m,i]."""
    with entered((grad_z, weight), (grad_x,)) as (grad, w, result):
        _gather(grad, w, None, result, g, layout)


def transpose_bwd_weight(grad_z: Operand, x: Operand, grad_weight: Operand, g: ConvGeometry, layout: str) -> None:
    """grad_w[cM+m,t] = Σ_n,o x[n,c,o]·grad_z[n,cM+m,i]."""
    with entered((grad_z, x), (grad_weight,)) as (grad, xs, result):
        correlate.run(xs, grad, result, g, layout, turned=True)

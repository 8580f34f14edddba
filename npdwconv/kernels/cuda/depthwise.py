"""The CUDA room's depthwise convolution and its transpose: arrays and ints, no validation."""

from __future__ import annotations

from functools import lru_cache
from typing import Any, NamedTuple

from npdwconv.activations import Activation
from npdwconv.device import DeviceArray
from npdwconv.geometry import Axis, ConvGeometry
from npdwconv.kernels.cuda import borders, correlate, gather, relation
from npdwconv.kernels.cuda.entry import Operand, entered, place_of
from npdwconv.kernels.cuda.relation import AxisRun, AxisSpec
from npdwconv.layouts import shape_of, split_shape
from npdwconv.precision import accumulator

TRIVIAL = Axis(1, 1, 1, 1, 1, 0, 0)


class Passed(NamedTuple):
    """A geometry as kernels take it: what they are written for, and what a launch passes."""

    specs: tuple[AxisSpec, AxisSpec, AxisSpec]
    runs: tuple[AxisRun, AxisRun, AxisRun]


@lru_cache(maxsize=4096)
def passed(g: ConvGeometry, adjoint: bool) -> Passed:
    """Three axes of a correlation or its adjoint; those that are missing have one element."""
    turn = relation.adjoint if adjoint else relation.forward
    axes = (*(TRIVIAL,) * (3 - len(g.axes)), *g.axes)
    depth, rows, columns = ((AxisSpec(), AxisRun()) if axis is TRIVIAL else turn(axis) for axis in axes)
    return Passed((depth[0], rows[0], columns[0]), (depth[1], rows[1], columns[1]))


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
    specs, runs = passed(g, adjoint)
    batch, channels, _ = split_shape(layout, out.shape)
    read = split_shape(layout, x.shape)[1]
    folds = read > channels
    multiplier = (read // channels if folds else channels // read) if channels and read else 1
    if not out.size:
        return
    launch = _launch(
        layout,
        specs,
        runs,
        (x.dtype.name, weight.dtype.name, out.dtype.name, "" if other is None else other.dtype.name),
        (multiplier, folds, bias is not None, "" if activation is None else activation.name),
        (batch, channels),
        min(_aligned(x), _aligned(out), 8 if other is None else _aligned(other)),
    )
    launch([place_of(array) for array in (x, weight, bias, other, out)], out.stream)


def _aligned(array: DeviceArray) -> int:
    """How many elements lie aligned together at the array's beginning: a power of two, up to 16 bytes."""
    low = array.address & -array.address
    return (min(low, 16) if low else 16) // array.dtype.itemsize


@lru_cache(maxsize=4096)
def _launch(layout: str, specs: Any, runs: Any, dtypes: Any, options: Any, counts: Any, aligned: int) -> Any:
    """A launch with everything settled but the addresses and the stream."""
    multiplier, folds, bias, activation = options
    spec = gather.GatherSpec(layout, specs, *dtypes, multiplier, folds, bias, activation)
    spec = gather.settled(spec, runs, counts[1], aligned)
    grids = gather.grids(spec, runs, *counts)
    kernel = gather.kernel(spec)
    _, rows, columns = runs
    numbers = (
        counts[1],
        *(run.source for run in runs),
        *(run.target for run in runs),
        *(rows.shift, columns.shift),
        *(run.low for run in runs),
    )

    def launch(places: list[Any], stream: int) -> None:
        for grid, block, begin, items in grids:
            kernel(grid, block, stream, *places, begin, items, *numbers)

    return launch


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
        correlate.run(grad, source, result, passed(inner, False), layout)


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
        correlate.run(xs, grad, result, passed(g, False), layout, turned=True)

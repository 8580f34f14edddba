"""CPU kernels for pointwise convolution: matrix products in either layout. Arrays and ints, no validation."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from math import prod
from typing import Any, NamedTuple

import numpy as np

from npdwconv.activations import Activation
from npdwconv.kernels.cpu import caches
from npdwconv.kernels.cpu.arrays import aligned, deliver, plain, room, target
from npdwconv.kernels.cpu.dots import dot_product
from npdwconv.kernels.cpu.engine import NOWHERE, Parts, Program, Ready, checks
from npdwconv.kernels.cpu.products import (
    PACKING,
    Matrices,
    Packing,
    Scratched,
    Strides,
    in_place,
    packed_product,
    packing,
    packing_once,
    packing_product,
    reduction,
    scattered,
)
from npdwconv.kernels.cpu.simd import STORED
from npdwconv.layouts import Array, split_shape
from npdwconv.precision import accumulator
from npdwconv.threads import get_num_threads


class Packed:
    """A weight (K, C) and the panels made of it, each width once: what a frozen layer keeps."""

    def __init__(self, weight: Array) -> None:
        self.weight, self.shape = plain(weight), weight.shape
        self._panels: dict[tuple[int, int, bool], Array] = {}

    def panels(self, packing: Packing) -> Array:
        """The panels that a product needs."""
        found = self._panels.get(packing.width)
        if found is None:
            found = self._panels[packing.width] = aligned((packing.size,), packing.dtype)
            packing.launch(self.weight, found)
        return found


def pointwise_panels(weight: Array) -> Packed:
    """A weight (K, C) packed for `pointwise_fwd` and `separable_fwd`, which take it in the weight's place."""
    return Packed(weight.copy())


def pointwise_fwd(
    x: Array,
    weight: Array | Packed,
    bias: Array | None,
    out: Array,
    layout: str,
    activation: Activation | None,
) -> None:
    """out[n,k,pq] = activation(Σ_c w[k,c]·x[n,c,pq] + b[k])."""
    _apply(x, weight, bias, out, layout, activation)


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
    _apply(grad_z, weight, None, grad_x, layout, None, transposed=True)


def pointwise_bwd_weight(grad_z: Array, x: Array, grad_weight: Array, layout: str) -> None:
    """grad_w[k,c] = Σ_n,pq grad_z[n,k,pq]·x[n,c,pq]."""
    if not grad_weight.size:
        return
    if not grad_z.size:
        grad_weight[...] = 0
        return
    plan = _weight_plan_of(grad_z, x, grad_weight, layout)
    total = target(grad_weight) if grad_weight.dtype == plan.dtype else np.empty(grad_weight.shape, plan.dtype)
    a, b = (x, grad_z) if plan.swapped else (grad_z, x)
    plan.run.launch(plain(a), plain(b), None, total, None, room(plan.run.scratch))
    deliver(total, grad_weight)


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
    transposed: bool = False,
) -> None:
    """The product of the pixels with the weight, or with its transpose; times or plus ``other``."""
    if not out.size:
        return
    plan, given = planned(x, weight, bias, out, layout, activation, other=other, chain=chain, transposed=transposed)
    result = target(out)
    x, bias, other = plain(x), None if bias is None else plain(bias), None if other is None else plain(other)
    plan.whole(x, plain(given), bias, result, other)
    deliver(result, out)


def planned(
    x: Array,
    weight: Array | Packed,
    bias: Array | None,
    out: Array,
    layout: str,
    activation: Activation | None,
    *,
    other: Array | None = None,
    chain: bool = False,
    transposed: bool = False,
) -> tuple[Plan, Array]:
    """The product of such operands, and what it is called with in the weight's place."""
    packed, w = (weight, weight.weight) if isinstance(weight, Packed) else (None, weight)
    plan = _plan(
        x.shape,
        w.shape,
        tuple([None if array is None else array.dtype for array in (x, w, bias, out, other)]),
        layout,
        "" if activation is None else activation.name,
        chain,
        transposed,
        packed is not None,
        get_num_threads(),
    )
    return plan, w if packed is None or plan.packing is None else packed.panels(plan.packing)


def pointwise_ready(
    x: Array, weight: Array | Packed, bias: Array | None, out: Array, layout: str, activation: Activation | None
) -> Ready | None:
    """`pointwise_fwd` of arrays like these."""
    return _ready(x, weight, bias, out, layout, activation)


def pointwise_input_ready(grad_z: Array, weight: Array, _: Array | None, grad_x: Array, layout: str) -> Ready | None:
    """`pointwise_bwd_input` of arrays like these."""
    return _ready(grad_z, weight, None, grad_x, layout, None, transposed=True)


def _ready(
    x: Array,
    weight: Array | Packed,
    bias: Array | None,
    out: Array,
    layout: str,
    activation: Activation | None,
    *,
    transposed: bool = False,
) -> Ready | None:
    if not (out.size and checks()):
        return None
    plan, given = planned(x, weight, bias, out, layout, activation, transposed=transposed)
    program = Program(plan.parts((0, 1, 2, 3, NOWHERE), 4), (x, given, bias, out), result=3)
    return program if given is weight else lambda x, _, bias, out: program(x, given, bias, out)


def pointwise_weight_ready(grad_z: Array, x: Array, _: Array | None, grad_weight: Array, layout: str) -> Ready | None:
    """`pointwise_bwd_weight` of arrays like these."""
    if not (grad_weight.size and grad_z.size and checks()):
        return None
    plan = _weight_plan_of(grad_z, x, grad_weight, layout)
    if grad_weight.dtype != plan.dtype:
        return None
    places = (1, 0) if plan.swapped else (0, 1)
    steps = [(plan.run.launch, (*places, NOWHERE, 2, NOWHERE, 3))]
    program = Program(Parts(steps, ((plan.run.scratch, ""),)), [grad_z, x, grad_weight], result=2)
    return lambda grad_z, x, bias, grad_weight: program(grad_z, x, grad_weight)


@dataclass(frozen=True)
class Plan:
    """A product's launch, over the weight as it is or its panels, which are packed ahead unless they are given."""

    run: Scratched
    packing: Packing | None = None
    kept: bool = False
    weight_first: bool = False

    def parts(self, places: Sequence[int], first: int) -> Parts:
        """All of it, (x, weight or panels, bias, out, other) being at these places, and its rooms from ``first`` on."""
        x, weight, *rest = places
        product, room = self.run.launch, (self.run.scratch, "")
        if self.packing is None or self.kept:
            operands = (weight, x) if self.weight_first else (x, weight)
            return Parts([(product, (*operands, *rest, first))], (room,))
        run = product, (x, first, *rest, first + 1)
        return Parts([(self.packing.launch, (weight, first)), run], ((self.packing.bytes, "panels"), room))

    @cached_property
    def whole(self) -> Program:
        """All of it over (x, weight or panels, bias, out, other)."""
        return Program(self.parts(range(5), 5))


@lru_cache(maxsize=1024)
def _plan(
    x_shape: tuple[int, ...],
    weight_shape: tuple[int, ...],
    dtypes: tuple[np.dtype[Any] | None, ...],
    layout: str,
    activation: str,
    chain: bool,
    transposed: bool,
    frozen: bool,
    threads: int,
) -> Plan:
    """The product for a weight (rows, columns): in channels_first pixels or outputs are lanes, whichever is cheaper."""
    batch, depth, spatial = split_shape(layout, x_shape)
    pixels, (rows, columns) = prod(spatial), weight_shape
    outs = columns if transposed else rows
    weight = Strides(1, columns) if transposed else Strides(columns)
    x_type, w_type, bias_type, out_type, other_type = ("" if dtype is None else dtype.name for dtype in dtypes)
    rest: dict[str, Any] = {"out_type": out_type, "bias_type": bias_type, "other_type": other_type}
    rest |= {"activation": activation, "chain": chain, "threads": threads}
    x_size, out_size = STORED[x_type][1], STORED[out_type][1]
    moved = batch * pixels * depth * x_size, batch * pixels * outs * out_size
    rest["past_caches"] = caches.past_caches(*moved)
    if layout == "channels_last" or pixels == 1:
        flat = Matrices(1, batch * pixels, outs, depth, Strides(depth), weight, Strides(outs), x_type, w_type, **rest)
        return _weight_packed(flat, frozen)
    source, result = Strides(1, pixels, depth * pixels), Strides(pixels, 1, outs * pixels)
    across = Matrices(batch, pixels, outs, depth, source, weight, result, x_type, w_type, turned=True, **rest)
    rest["fetches"] = caches.fetched(sum(moved))
    along = Matrices(batch, outs, pixels, depth, weight, source, result, w_type, x_type, **rest)
    if cheaper(along, across) is across:
        return _weight_packed(across, frozen)
    return Plan(packing_product(along), weight_first=True)


def _weight_packed(m: Matrices, frozen: bool) -> Plan:
    """The product whose panels are the weight's: packed ahead, or on the way where that packs each once."""
    once = None if frozen else packing_once(m)
    return Plan(packed_product(m), packing(m), kept=frozen) if once is None else Plan(once)


def cheaper(along: Matrices, across: Matrices) -> Matrices:
    """Of the products of channels_first the cheaper: pixels are columns, or the results are turned."""
    return across if _cost(along, packs=True) >= _cost(across, packs=False) else along


def _cost(m: Matrices, *, packs: bool) -> float:
    """Cycles of a product in channels_first: its sums, and packing the pixels or turning the results."""
    vectors = m.images * -(-m.columns // m.lanes) / m.threads
    extra = vectors * (PACKING * m.depth * (not in_place(m)) if packs else 6 * m.height)
    cut = m.cut("columns" if packs else "rows")
    return cut.cost * m.depth + extra + scattered(m, cut)


def _weight_plan_of(grad_z: Array, x: Array, grad_weight: Array, layout: str) -> WeightPlan:
    batch, channels, spatial = split_shape(layout, x.shape)
    rows = grad_weight.shape[0]
    return _weight_plan(batch, prod(spatial), rows, channels, layout, grad_z.dtype, x.dtype, get_num_threads())


class WeightPlan(NamedTuple):
    """A reduction, the dtype it sums in, and whether x is its rows and grad_z its columns."""

    run: Scratched
    dtype: str
    swapped: bool


@lru_cache(maxsize=1024)
def _weight_plan(
    batch: int,
    pixels: int,
    rows: int,
    columns: int,
    layout: str,
    grad_dtype: np.dtype[Any],
    x_dtype: np.dtype[Any],
    threads: int,
) -> WeightPlan:
    """The reduction that gives a weight's gradient: along contiguous depths, or by panels, the cheaper of two sides."""
    last = layout == "channels_last" or pixels == 1
    if last:
        batch, pixels = 1, batch * pixels
    grad, x = (Strides(1, count) if last else Strides(pixels, 1, count * pixels) for count in (rows, columns))
    out, dtype = Strides(columns), accumulator(x_dtype).name
    plain = Matrices(batch, rows, columns, pixels, grad, x, out, grad_dtype.name, x_dtype.name, dtype, threads=threads)
    swapped = Matrices(
        batch, columns, rows, pixels, x, grad, out, x_dtype.name, grad_dtype.name, dtype, turned=True, threads=threads
    )
    alone = [m._replace(threads=1).cut("").cost for m in (plain, swapped)]
    along = dot_product(plain, min(alone) * batch * pixels)
    if along is not None:
        return WeightPlan(along, dtype, False)
    if swapped.cut("").cost < 0.95 * plain.cut("").cost:
        return WeightPlan(reduction(swapped), dtype, True)
    return WeightPlan(reduction(plain), dtype, False)

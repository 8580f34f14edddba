"""The CUDA room's separable convolution: depthwise, activation, pointwise. The middle value is never rounded."""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

from npdwconv.activations import Activation
from npdwconv.geometry import ConvGeometry
from npdwconv.kernels.chain import empty_middle, separable_bwd_of
from npdwconv.kernels.cuda import depthwise, fused, fused_spec, pointwise
from npdwconv.kernels.cuda.entry import Operand, aligned, entered, place_of
from npdwconv.kernels.cuda.epilogue import bias_bwd
from npdwconv.kernels.cuda.provider import Extents, Kernel
from npdwconv.kernels.cuda.relation import passed
from npdwconv.layouts import split_shape
from npdwconv.precision import storage


class _Plan(NamedTuple):
    """A fused kernel's launch, with everything settled but the addresses and the stream."""

    kernel: Kernel
    grid: Extents
    block: Extents
    numbers: tuple[int, ...]


@lru_cache(maxsize=4096)
def _plan(
    layout: str,
    g: ConvGeometry,
    storages: frozenset[str],
    counts: tuple[int, int, int, int],
    biases: tuple[bool, bool],
    activations: tuple[str, str],
    together: tuple[int, int, int],
) -> _Plan | None:
    """The launch of one kernel for both stages, or None where two calls are made (`fused_spec.settled`)."""
    spec = fused_spec.settled(layout, g, storages, counts, biases, activations, together)
    if spec is None:
        return None
    runs = passed(g, False).runs
    count = fused_spec.patches(spec, runs, counts[0])
    sources, targets = zip(*((run.source, run.target) for run in runs[1:]), strict=True)
    numbers = (counts[1], counts[3], *sources, *targets, runs[1].shift, runs[2].shift, count)
    return _Plan(fused.kernel(spec), (fused_spec.blocks(spec, count), 1, 1), (spec.tile.threads, 1, 1), numbers)


def separable_fwd(
    x: Operand,
    depthwise_weight: Operand,
    depthwise_bias: Operand,
    pointwise_weight: Operand,
    bias: Operand,
    out: Operand,
    g: ConvGeometry,
    layout: str,
    depthwise_activation: Activation | None,
    activation: Activation | None,
) -> None:
    """out = pointwise(middle), middle = depthwise(x), each with its bias and activation."""
    with entered((x, depthwise_weight, depthwise_bias, pointwise_weight, bias), (out,)) as (xs, w, b, pw, pb, result):
        if not result.size:
            return
        operands = [array for array in (xs, w, b, pw, pb, result) if array is not None]
        images, read, _ = split_shape(layout, xs.shape)
        plan = _plan(
            layout,
            g,
            frozenset(storage(array.dtype) for array in operands),
            (images, read, w.shape[0], pw.shape[0]),
            (b is not None, pb is not None),
            ("" if depthwise_activation is None else depthwise_activation.name, activation.name if activation else ""),
            (aligned(xs), aligned(result), aligned(pw)),
        )
        if plan is not None:
            places = [place_of(array) for array in (xs, w, b, pw, pb, result)]
            plan.kernel(plan.grid, plan.block, result.stream, *places, *plan.numbers)
            return
        middle = empty_middle(xs, w, g, layout)
        depthwise.depthwise_fwd(xs, w, b, middle, g, layout, depthwise_activation)
        pointwise.pointwise_fwd(middle, pw, pb, result, layout, activation)


separable_bwd = separable_bwd_of(depthwise, pointwise, bias_bwd)

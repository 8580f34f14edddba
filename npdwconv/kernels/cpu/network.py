"""A whole network of frozen weights in channels_last: everything packed once, the arrays between its steps reused.

A step is one launch; a standard convolution is two: its windows side by side, then their product with the weight.
Bias, activation and the addition of an earlier result happen in the launch that makes a value, before it is stored.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import Any, NamedTuple, cast

import numpy as np

from npdwconv.geometry import ConvGeometry
from npdwconv.kernels.cpu import channels_last, phases
from npdwconv.kernels.cpu.arrays import aligned
from npdwconv.kernels.cpu.engine import Launch
from npdwconv.kernels.cpu.patches import patches
from npdwconv.kernels.cpu.pool import run_all
from npdwconv.kernels.cpu.products import Matrices, Strides, packed_product, packing
from npdwconv.kernels.steps import Step, Window
from npdwconv.layouts import Array
from npdwconv.threads import get_num_threads

Shape = tuple[int, ...]
Run = tuple[Launch, tuple[Array | None, ...]]


class Network:
    """Steps whose weights no longer change, ready to run on float32 or float64 inputs of any size."""

    def __init__(self, steps: Sequence[Step], dtype: np.dtype[Any]) -> None:
        self.steps, self.dtype = tuple(steps), dtype
        self.panels: dict[tuple[int, tuple[int, int, bool]], Array] = {}
        self.taps: dict[int, Array] = {}
        self._idle: dict[tuple[Shape, int], list[_Prepared]] = {}

    def forward(self, x: Array, layout: str) -> Array:
        """The last step's result at ``x``, in the layout of ``x``."""
        image = x if layout == "channels_last" else np.moveaxis(x, 1, -1)
        idle = self._idle.setdefault((image.shape, get_num_threads()), [])
        prepared = idle.pop() if idle else _prepare(self, image.shape)
        prepared.first[...] = image
        run_all(prepared.launches, get_num_threads())
        result = prepared.last.copy()
        idle.append(prepared)
        return (
            result
            if layout == "channels_last" or result.ndim == 2
            else np.ascontiguousarray(np.moveaxis(result, -1, 1))
        )


def network(steps: Sequence[Step], dtype: np.dtype[Any]) -> Network:
    """The steps of a network whose weights no longer change, ready to run."""
    return Network(steps, dtype)


class _Prepared(NamedTuple):
    """The launches over one shape, bound to the arrays between them: for one call at a time."""

    first: Array
    last: Array
    launches: list[bytes]
    arrays: list[Array | None]  # kept, for the launches hold addresses


class _Arrays:
    """Arrays for results: memory is used again once nothing reads it any more."""

    def __init__(self, network: Network) -> None:
        self.dtype, self.steps = network.dtype, network.steps
        self._free: list[Array] = []
        self._memory: dict[int, Array] = {}

    def take(self, shape: Shape) -> tuple[Array, Array]:
        """An array and the memory it lies in."""
        size = prod(shape)
        fitting = [memory for memory in self._free if memory.size >= size]
        memory = min(fitting, key=lambda each: each.size) if fitting else aligned((size,), self.dtype.name)
        self._free = [other for other in self._free if other is not memory]
        return memory[:size].reshape(shape), memory

    def result(self, index: int, shape: Shape) -> Array:
        """The array of the result of step ``index`` (-1: the input)."""
        array, self._memory[index] = self.take(shape)
        return array

    def release(self, memory: Array) -> None:
        self._free.append(memory)

    def pass_by(self, index: int) -> None:
        """Free what no step after ``index`` reads."""
        read = {index} | {step.adds for step in self.steps[index + 1 :]}
        for old in [key for key in self._memory if key not in read]:
            self.release(self._memory.pop(old))


def _prepare(network: Network, shape: Shape) -> _Prepared:
    arrays = _Arrays(network)
    results = {-1: arrays.result(-1, shape)}
    runs: list[Run] = []
    by_channels = False  # whether the last result was shared out so among the threads, in whose caches it lies
    for index, step in enumerate(network.steps):
        x, added = results[index - 1], None if step.adds is None else results[step.adds]
        if step.kind == "standard":
            x, memory = _windows(step, x, arrays, runs)
        out = results[index] = arrays.result(index, _shape(step, x.shape))
        if step.kind in ("depthwise", "mean"):
            runs.append(_depthwise(network, index, step, x, out, by_channels=by_channels))
            by_channels = False
        else:
            launch, operands, by_channels = _pointwise(network, arrays, index, step, x, out, added)
            runs.append((launch, operands))
        if step.kind == "standard":
            arrays.release(memory)
        arrays.pass_by(index)
    kept = [array for _, operands in runs for array in operands]
    return _Prepared(
        results[-1], results[len(network.steps) - 1], [launch.bound(*operands) for launch, operands in runs], kept
    )


def _shape(step: Step, x: Shape) -> Shape:
    """The shape of a step's result; a standard convolution's ``x`` is its windows."""
    if step.kind == "mean":
        return (x[0], x[-1])
    if step.kind == "depthwise":
        return (x[0], *_geometry(step, x).out, _weight(step).shape[0])
    return (*x[:-1], _weight(step).shape[0])


def _weight(step: Step) -> Array:
    """The weight of a step that is not a mean."""
    return cast(Array, step.weight)


def _geometry(step: Step, x: Shape) -> ConvGeometry:
    """The geometry of a step that has a window, at an input of shape ``x``; a mean's window is all of it."""
    window = step.window
    if window is None:
        size = x[1:-1]
        window = Window(size, (1,) * len(size), ((0, 0),) * len(size), (1,) * len(size))
    return window.geometry(x[1:-1])


def _windows(step: Step, x: Array, arrays: _Arrays, runs: list[Run]) -> tuple[Array, Array]:
    g = _geometry(step, x.shape)
    windows, memory = arrays.take((x.shape[0], *g.out, prod(g.kernel) * x.shape[-1]))
    runs.append((patches(x.shape[0], x.shape[-1], g, x.dtype.name), (x, windows)))
    return windows, memory


def _depthwise(network: Network, index: int, step: Step, x: Array, out: Array, *, by_channels: bool) -> Run:
    """A depthwise convolution; a mean is one whose every tap is the same."""
    weight = _weight(step)
    if step.kind == "mean":
        size = x.shape[1:-1]
        weight = np.full((x.shape[-1], *size), 1 / prod(size), x.dtype)
        out = out.reshape(x.shape[0], *(1,) * len(size), x.shape[-1])
    passes = phases.forward(_geometry(step, x.shape))
    dtypes = (x.dtype, weight.dtype, step.bias is not None, out.dtype, None)
    (dense,) = channels_last.launches(
        x.shape, out.shape, weight.shape, passes, dtypes, step.activation, get_num_threads(), by_channels
    )
    taps = network.taps.get(index)
    if taps is None or step.kind == "mean":
        taps = network.taps[index] = np.empty(dense.packed, x.dtype)
        dense.pack(weight, taps)
    return dense.run, (x, taps, step.bias, out, None)


def _pointwise(
    network: Network, arrays: _Arrays, index: int, step: Step, x: Array, out: Array, added: Array | None
) -> tuple[Launch, tuple[Array | None, ...], bool]:
    outputs = _weight(step).shape[0]
    weight = _weight(step) if step.kind == "pointwise" else np.moveaxis(_weight(step), 1, -1)
    weight = np.ascontiguousarray(weight).reshape(outputs, -1)
    depth = weight.shape[1]
    name = x.dtype.name
    m = Matrices(
        1,
        prod(x.shape[:-1]),
        outputs,
        depth,
        Strides(depth),
        Strides(depth),
        Strides(outputs),
        name,
        name,
        name,
        bias_type=name if step.bias is not None else "",
        other_type=name if added is not None else "",
        activation=step.activation,
        threads=get_num_threads(),
    )
    plan = packing(m)
    panels = network.panels.get((index, plan.width))
    if panels is None:
        panels = network.panels[index, plan.width] = aligned((plan.size,), name)
        plan.launch(weight, panels)
    run = packed_product(m)
    scratch, memory = arrays.take((run.scratch // x.itemsize,))
    arrays.release(memory)
    return run.launch, (x, panels, step.bias, out, added, scratch), m.cut("rows").row_blocks == 1

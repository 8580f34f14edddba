"""A whole network of frozen weights in channels_last: everything packed once, the arrays between its steps reused.

A step is one launch; in a standard convolution each row's windows are laid side by side, then multiplied.
Bias, activation and the addition of an earlier result happen in the launch that makes a value, before it is stored.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from math import prod
from typing import Any, cast

import numpy as np

from npdwconv.geometry import ConvGeometry
from npdwconv.kernels.cpu import channels_last, phases
from npdwconv.kernels.cpu.arrays import aligned
from npdwconv.kernels.cpu.engine import Launch, address
from npdwconv.kernels.cpu.patches import patches
from npdwconv.kernels.cpu.pool import HEADER, run_series
from npdwconv.kernels.cpu.products import Matrices, Packing, Strides, packed_product, packing, packing_product
from npdwconv.kernels.cpu.strips import Strips, strips
from npdwconv.kernels.cpu.together import Bounds, First, Steps, together
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
        threads = get_num_threads()
        idle = self._idle.setdefault((image.shape, threads), [])
        prepared = idle.pop() if idle else _prepare(self, image.shape)
        result = prepared.run(image, threads)
        idle.append(prepared)
        if layout == "channels_last" or result.ndim == 2:
            return result
        return np.ascontiguousarray(np.moveaxis(result, -1, 1))


def network(steps: Sequence[Step], dtype: np.dtype[Any]) -> Network:
    """The steps of a network whose weights no longer change, ready to run."""
    return Network(steps, dtype)


class _Prepared:
    """The launches over one shape, bound to the arrays between them: for one call at a time.

    ``runs`` have ``first`` in place of a call's input and ``last`` in place of its result.
    """

    def __init__(self, runs: Sequence[Run], first: Array, last: Array, kept: list[Array | None]) -> None:
        self._first, self._last, self._kept = first, last, [kept, runs]  # whose addresses the blocks hold
        self._blocks = [np.frombuffer(bytearray(launch.bound(*operands)), np.int64) for launch, operands in runs]
        self._addresses = np.array([*map(address, self._blocks)], np.int64).tobytes()
        self._reading, self._writing = ([*_places(runs, self._blocks, end)] for end in (first, last))

    def run(self, image: Array, threads: int) -> Array:
        """The result at ``image``, which is read where it lies if that is one run of memory."""
        if not (image.flags.c_contiguous and image.flags.aligned):
            self._first[...] = image
            image = self._first
        result = np.empty_like(self._last)
        for places, array in ((self._reading, image), (self._writing, result)):
            for block, word in places:
                block[word] = address(array)
        run_series(self._addresses, threads)
        return result


def _places(runs: Sequence[Run], blocks: Sequence[Array], array: Array) -> Iterator[tuple[Array, int]]:
    """Where the address of ``array`` stands in the blocks."""
    for (_, operands), block in zip(runs, blocks, strict=True):
        yield from ((block, len(HEADER) + place) for place, operand in enumerate(operands) if operand is array)


class _Arrays:
    """Arrays for results: memory is used again once nothing reads it any more."""

    def __init__(self, network: Network) -> None:
        self.dtype, self.steps = network.dtype, network.steps
        self._free: list[Array] = []
        self._memory: dict[int, Array] = {}
        self.kept: list[Array | None] = []  # whose addresses are in blocks of numbers

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

    def scratch(self, size: int) -> Array:
        """Bytes that a step uses while it runs; to be taken after its result, whose memory they must not be."""
        array, memory = self.take((-(-size // self.dtype.itemsize),))
        self._free.append(memory)
        return array

    def pass_by(self, index: int) -> None:
        """Free what no step after ``index`` reads."""
        read = {index} | {step.adds for step in self.steps[index + 1 :]}
        for old in [key for key in self._memory if key not in read]:
            self._free.append(self._memory.pop(old))


def _prepare(network: Network, shape: Shape) -> _Prepared:
    arrays = _Arrays(network)
    results = {-1: arrays.result(-1, shape)}
    runs: list[Run] = []
    by_channels = False  # whether the last result was shared out so among the threads, in whose caches it lies
    waiting: Strips | None = None  # which do the depthwise step before with this one
    for index, step in enumerate(network.steps):
        x, added = results[index - 1], None if step.adds is None else results[step.adds]
        if waiting is None and (waiting := _strips(network.steps, index, x)) is not None:
            results[index] = x
            continue
        shape = x.shape if waiting is None else _shape(network.steps[index - 1], x.shape)
        out = results[index] = arrays.result(index, _shape(step, shape))
        if waiting is not None:
            runs.append(_separable(network, arrays, index - 1, waiting, x, out, added))
            waiting, by_channels = None, False
        elif step.kind == "standard":
            runs.append(_standard(network, arrays, index, step, x, out, added))
            by_channels = False
        elif step.kind == "mean":
            runs.append(_mean(arrays, x, out))
            by_channels = False
        elif step.kind == "depthwise":
            runs.append(_depthwise(network, index, step, x, out, by_channels=by_channels))
            by_channels = False
        else:
            launch, operands, by_channels = _pointwise(network, arrays, index, step, x, out, added)
            runs.append((launch, operands))
        arrays.pass_by(index)
    return _Prepared(runs, results[-1], results[len(network.steps) - 1], arrays.kept)


def _shape(step: Step, x: Shape) -> Shape:
    """The shape of a step's result."""
    if step.kind == "mean":
        return (x[0], x[-1])
    if step.kind in ("depthwise", "standard"):
        return (x[0], *_geometry(step, x).out, _weight(step).shape[0])
    return (*x[:-1], _weight(step).shape[0])


def _weight(step: Step) -> Array:
    """The weight of a step that is not a mean."""
    return cast(Array, step.weight)


def _geometry(step: Step, x: Shape) -> ConvGeometry:
    """The geometry of a convolution at an input of shape ``x``."""
    return cast(Window, step.window).geometry(x[1:-1])


def _standard(
    network: Network, arrays: _Arrays, index: int, step: Step, x: Array, out: Array, added: Array | None
) -> Run:
    """A standard convolution, a row of its result at a time: windows side by side, then their product."""
    g, channels, threads = _geometry(step, x.shape), x.shape[-1], get_num_threads()
    (sweeps,) = phases.forward(g)
    m = _matrices(step, g.out[-1], prod(g.kernel) * channels, added, x.dtype.name, threads=1)
    height, width = g.out
    bounds = Bounds(x.shape[0], 1, height, width, rows=1)
    first = First(patches(1, channels, g, x.dtype.name), 1, "x", "low_h", sweeps[0])
    steps = Steps(x[0].nbytes, out[0].nbytes, m.columns * x.itemsize)
    between = m.height * m.depth * x.itemsize
    pair = together(first, packed_product(m), "a", between, bounds, steps, bounds.items(threads))
    panels, scratch = _panels(network, index, step, packing(m)), arrays.scratch(pair.scratch)
    blocks = pair.blocks({}, {"packed": panels, "bias": step.bias}, scratch)
    arrays.kept += [panels, step.bias, scratch]
    return pair.launch, (*blocks, x, out, added)


def _mean(arrays: _Arrays, x: Array, out: Array) -> Run:
    """The mean over space: the product of one row, whose every element is the same, with the pixels of an image."""
    batch, pixels, channels = x.shape[0], prod(x.shape[1:-1]), x.shape[-1]
    name, strides = x.dtype.name, (Strides(pixels), Strides(1, channels, pixels * channels))
    m = Matrices(
        batch, 1, channels, pixels, *strides, Strides(1, 1, channels), name, name, name, threads=get_num_threads()
    )
    run = packing_product(m)
    return run.launch, (np.full(pixels, 1 / pixels, x.dtype), x, None, out, None, arrays.scratch(run.scratch))


def _depthwise(network: Network, index: int, step: Step, x: Array, out: Array, *, by_channels: bool) -> Run:
    launch, taps = _dense(network, index, x, out.shape, by_channels=by_channels)
    return launch, (x, taps, step.bias, out, None)


def _dense(network: Network, index: int, x: Array, out: Shape, *, by_channels: bool) -> tuple[Launch, Array]:
    """The launch of a depthwise step, and its weight, packed."""
    step = network.steps[index]
    weight, passes = _weight(step), phases.forward(_geometry(step, x.shape))
    dtypes = (x.dtype, weight.dtype, step.bias is not None, x.dtype, None)
    dense = channels_last.launches(
        x.shape, out, weight.shape, passes, dtypes, step.activation, get_num_threads(), by_channels
    )
    (run,) = dense.passes
    return run, _taps(network, index, dense)


def _taps(network: Network, index: int, dense: channels_last.Dense) -> Array:
    """A depthwise step's weight, packed."""
    taps = network.taps.get(index)
    if taps is None:
        taps = network.taps[index] = aligned((dense.packed,), dense.dtype)
        dense.pack(_weight(network.steps[index]), taps)
    return taps


def _separable(
    network: Network, arrays: _Arrays, index: int, plan: Strips, x: Array, out: Array, added: Array | None
) -> Run:
    """A depthwise step and the pointwise one behind it, strip by strip."""
    first, second = network.steps[index : index + 2]
    pack, packs = cast(channels_last.Dense, plan.pack), cast(Packing, plan.packing)
    taps, panels = _taps(network, index, pack), _panels(network, index + 1, second, packs)
    scratch = arrays.scratch(plan.pair.scratch)
    arrays.kept += [taps, first.bias, panels, second.bias, scratch]
    return plan.pair.launch, (*plan.blocks(taps, first.bias, panels, second.bias, scratch), x, out, added)


def _strips(steps: tuple[Step, ...], index: int, x: Array) -> Strips | None:
    """Strips for a depthwise step whose result only the product behind it reads, if it would not stay in the caches."""
    pair = steps[index : index + 2]
    if [step.kind for step in pair] != ["depthwise", "pointwise"] or any(step.adds == index for step in steps):
        return None
    first, second = pair
    shapes, g = (x.shape, _weight(second).shape), _geometry(first, x.shape)
    types = x.dtype, first.bias is not None, second.bias is not None, second.adds is not None
    return strips("channels_last", shapes, g, types, (first.activation, second.activation), get_num_threads())


def _pointwise(
    network: Network, arrays: _Arrays, index: int, step: Step, x: Array, out: Array, added: Array | None
) -> tuple[Launch, tuple[Array | None, ...], bool]:
    m = _matrices(step, prod(x.shape[:-1]), x.shape[-1], added, x.dtype.name, get_num_threads())
    run = packed_product(m)
    operands = x, _panels(network, index, step, packing(m)), step.bias, out, added, arrays.scratch(run.scratch)
    return run.launch, operands, m.cut("rows").row_blocks == 1


def _matrices(step: Step, rows: int, depth: int, added: Array | None, name: str, threads: int) -> Matrices:
    """The product with a step's weight, of windows in a standard convolution."""
    outputs = _weight(step).shape[0]
    strides = Strides(depth), Strides(depth), Strides(outputs)
    return Matrices(
        1,
        rows,
        outputs,
        depth,
        *strides,
        *(name, name, name),
        bias_type=name if step.bias is not None else "",
        other_type=name if added is not None else "",
        activation=step.activation,
        threads=threads,
    )


def _panels(network: Network, index: int, step: Step, plan: Packing) -> Array:
    """A step's weight, packed."""
    panels = network.panels.get((index, plan.width))
    if panels is None:
        weight = _weight(step) if step.kind == "pointwise" else np.moveaxis(_weight(step), 1, -1)
        panels = network.panels[index, plan.width] = aligned((plan.size,), plan.dtype)
        plan.launch(np.ascontiguousarray(weight).reshape(weight.shape[0], -1), panels)
    return panels

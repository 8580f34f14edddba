"""A whole network of frozen weights in channels_last: everything packed once, the arrays between its steps reused.

A step is one launch; in a standard convolution each row's windows are laid side by side, then multiplied.
Bias, activation and the addition of an earlier result happen in the launch that makes a value, before it is stored.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import product
from math import prod
from typing import Any, cast

import numpy as np

from npdwconv.geometry import ConvGeometry
from npdwconv.kernels.cpu import chains, channels_last, phases
from npdwconv.kernels.cpu.arrays import aligned
from npdwconv.kernels.cpu.engine import Launch, address
from npdwconv.kernels.cpu.patches import patches
from npdwconv.kernels.cpu.pool import HEADER, run_series
from npdwconv.kernels.cpu.products import Matrices, Packing, Strides, packed_product, packing, packing_product
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

    def __init__(self, runs: Sequence[Run], first: Array, last: Array, arrays: _Arrays) -> None:
        self._first, self._last, self._kept = first, last, [arrays.kept, runs]  # whose addresses the blocks hold
        self._blocks = [np.frombuffer(bytearray(launch.bound(*operands)), np.int64) for launch, operands in runs]
        self._addresses = np.array([*map(address, self._blocks)], np.int64).tobytes()
        self._reading, self._writing = ([*_places(runs, self._blocks, end, arrays)] for end in (first, last))

    def run(self, image: Array, threads: int) -> Array:
        """The result at ``image``, which is read where it lies if that is one run of memory."""
        if not (image.flags.c_contiguous and image.flags.aligned):
            self._first[...] = image
            image = self._first
        result = np.empty_like(self._last)
        for places, array in ((self._reading, image), (self._writing, result)):
            for block, word, offset in places:
                block[word] = address(array) + offset
        run_series(self._addresses, threads)
        return result


def _places(
    runs: Sequence[Run], blocks: Sequence[Array], array: Array, arrays: _Arrays
) -> Iterator[tuple[Array, int, int]]:
    """Where an address within ``array`` stands in the blocks, and how far within it is."""
    for (_, operands), block in zip(runs, blocks, strict=True):
        for place, operand in enumerate(operands):
            if operand is not None and arrays.whole(operand) is array:
                yield block, len(HEADER) + place, address(operand) - address(array)


class _Arrays:
    """Arrays for results: memory is used again once nothing reads it any more."""

    def __init__(self, network: Network) -> None:
        self.dtype, self.steps = network.dtype, network.steps
        self._free: list[Array] = []
        self._memory: dict[int, Array] = {}
        self.kept: list[Array | None] = []  # whose addresses are in blocks of numbers
        self._parts: dict[int, tuple[Array, Array]] = {}  # some rows of an array, and the array, by the rows' identity

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

    def rows(self, array: Array, image: int, rows: tuple[int, int]) -> Array:
        """Some rows of one image of an array."""
        part = array[image : image + 1, rows[0] : rows[1]]
        self._parts[id(part)] = part, array
        return part

    def whole(self, array: Array) -> Array:
        """The array that these are `rows` of; else itself."""
        return self._parts.get(id(array), (array, array))[1]

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
    arrays, size, threads = _Arrays(network), network.dtype.itemsize, get_num_threads()
    shapes = [shape]
    for step in network.steps:
        shapes.append(_shape(step, shapes[-1]))
    results = {-1: arrays.result(-1, shape)}
    runs: list[Run] = []
    by_channels = False  # whether the last result was shared out so among the threads, in whose caches it lies
    for begin, end in chains.chains(network.steps, shapes, size, threads):
        results[end - 1] = arrays.result(end - 1, shapes[end])
        if end - begin == 1:
            step, x, out = network.steps[begin], results[begin - 1], results[begin]
            run, by_channels = _run(network, arrays, begin, step, x, out, _added(step, results), by_channels)
            runs.append(run)
        else:
            runs += _chain(network, arrays, begin, shapes[begin : end + 1], results)
            by_channels = False
        arrays.pass_by(end - 1)
    return _Prepared(runs, results[-1], results[len(network.steps) - 1], arrays)


def _chain(
    network: Network, arrays: _Arrays, begin: int, shapes: Sequence[Shape], results: dict[int, Array]
) -> Iterator[Run]:
    """The launches of a chain of steps: each image, strip by strip, through all of them."""
    last = begin + len(shapes) - 2
    plan = [*chains.strips(network.steps[begin : last + 1], shapes, network.dtype.itemsize, get_num_threads())]
    for index, rows in zip(range(begin, last), chains.most_rows(plan), strict=False):
        results[index] = arrays.result(index, (1, rows, *shapes[index - begin + 1][2:]))
    for image, parts in product(range(shapes[0][0]), plan):
        x, by_channels = arrays.rows(results[begin - 1], image, parts[0].read), False
        for index, (step, _, (first, end)) in enumerate(parts, begin):
            place = (image, (first, end)) if index == last else (0, (0, end - first))
            out, added = arrays.rows(results[index], *place), _added(step, results)
            added = None if added is None else arrays.rows(added, image, (first, end))
            run, by_channels = _run(network, arrays, index, step, x, out, added, by_channels)
            yield run
            x = out


def _added(step: Step, results: dict[int, Array]) -> Array | None:
    """What is added to a step's result."""
    return None if step.adds is None else results[step.adds]


def _run(
    network: Network,
    arrays: _Arrays,
    index: int,
    step: Step,
    x: Array,
    out: Array,
    added: Array | None,
    by_channels: bool,
) -> tuple[Run, bool]:
    """The launch of a step, and whether it shares out its result by channels, as that of x was or was not."""
    if step.kind == "pointwise":
        return _pointwise(network, arrays, index, step, x, out, added)
    if step.kind == "standard":
        return _standard(network, arrays, index, step, x, out, added), False
    if step.kind == "mean":
        return _mean(arrays, x, out), False
    return _depthwise(network, index, step, x, out, by_channels=by_channels), False


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
    weight, passes = _weight(step), phases.forward(_geometry(step, x.shape))
    dtypes = (x.dtype, weight.dtype, step.bias is not None, x.dtype, None)
    dense = channels_last.launches(
        x.shape, out.shape, weight.shape, passes, dtypes, step.activation, get_num_threads(), by_channels=by_channels
    )
    (run,) = dense.passes
    return run, (x, _taps(network, index, dense), step.bias, out, None)


def _taps(network: Network, index: int, dense: channels_last.Dense) -> Array:
    """A depthwise step's weight, packed."""
    taps = network.taps.get(index)
    if taps is None:
        taps = network.taps[index] = aligned((dense.packed,), dense.dtype)
        dense.pack(_weight(network.steps[index]), taps)
    return taps


def _pointwise(
    network: Network, arrays: _Arrays, index: int, step: Step, x: Array, out: Array, added: Array | None
) -> tuple[Run, bool]:
    m = _matrices(step, prod(x.shape[:-1]), x.shape[-1], added, x.dtype.name, get_num_threads())
    run = packed_product(m)
    operands = x, _panels(network, index, step, packing(m)), step.bias, out, added, arrays.scratch(run.scratch)
    return (run.launch, operands), m.cut("rows").row_blocks == 1


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

"""Steps of a network that run strip by strip, so that what is between them stays in the caches. No arrays.

A value that does not fit there is written to memory by one step and fetched from it by the next. In a *chain* of such
steps a strip, some rows of the last one's result, goes through all of them before the next strip does. Windows reach
over a strip's edge: the rows there are computed for both strips, in the same order, to the same bits.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from math import prod
from typing import NamedTuple

from npdwconv.kernels.steps import Step

CACHED = 512 * 1024  # bytes of a value for each thread that its core's cache keeps beside everything else

Shape = tuple[int, ...]
Rows = tuple[int, int]


class Part(NamedTuple):
    """A step over a strip: with the padding that the strip has, the rows that it reads, and those that it writes."""

    step: Step
    read: Rows
    written: Rows


def chains(steps: Sequence[Step], shapes: Sequence[Shape], size: int, threads: int) -> Iterator[Rows]:
    """The first step and one past the last, of each chain in turn; most have one step.

    ``shapes`` are those of the input and of every step's result, whose elements have ``size`` bytes.
    """
    begin, wanted_later = 0, {step.adds for step in steps}
    for index, (step, after) in enumerate(zip(steps, [*steps[1:], None], strict=True)):
        before, shape = shapes[index : index + 2]
        large = len(shape) == 4 and _bytes(shape, size) > threads * CACHED
        joins = large and after is not None and _by_rows(step, before) and _by_rows(after, shape)
        if not joins or index in wanted_later:
            yield begin, index + 1
            begin = index + 1


def strips(steps: Sequence[Step], shapes: Sequence[Shape], size: int, threads: int) -> Iterator[list[Part]]:
    """What each strip of an image is to a chain's steps; ``shapes`` are those of its input and of every result."""
    rows = shapes[-1][1]
    count = max(-(-_bytes(shape, size) // (threads * CACHED)) for shape in shapes[1:-1])
    each = -(-rows // (count * threads)) * threads
    for begin in range(0, rows, each):
        written, parts = (begin, min(begin + each, rows)), []
        for step, shape in zip(reversed(steps), reversed(shapes[:-1]), strict=True):
            parts.append(_part(step, shape, written))
            written = parts[-1].read
        yield parts[::-1]


def most_rows(plan: Sequence[Sequence[Part]]) -> list[int]:
    """For each of a chain's steps, the rows of the largest strip of its result."""
    return [max(part.written[1] - part.written[0] for part in parts) for parts in zip(*plan, strict=True)]


def _by_rows(step: Step, x: Shape) -> bool:
    """Whether rows of a step's result can be computed from rows of ``x``; every window must reach one."""
    if step.window is None:
        return step.kind == "pointwise"
    h = step.window.geometry(x[1:-1]).axes[0]
    return max(h.low, h.high) < h.span


def _bytes(shape: Shape, size: int) -> int:
    """Of one image."""
    return prod(shape[1:]) * size


def _part(step: Step, x: Shape, written: Rows) -> Part:
    if step.window is None:
        return Part(step, written, written)
    h, w = step.window.geometry(x[1:3]).axes
    first, last = written[0] * h.stride - h.low, (written[1] - 1) * h.stride - h.low + h.span
    read = max(first, 0), min(last, h.size)
    padding = (read[0] - first, last - read[1]), (w.low, w.high)
    return Part(step._replace(window=step.window._replace(padding=padding)), read, written)

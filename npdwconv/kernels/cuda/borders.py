"""Borders that repeat real inputs (reflect, replicate, circular), on the device: a gather along an axis, its adjoint.

An array is seen as (outer, axis, inner). The adjoint sums, for every input, over the positions of the padded axis that
copy it, in order.
"""

from __future__ import annotations

from functools import cache
from math import prod

from npdwconv.device import DeviceArray
from npdwconv.geometry import Axis, ConvGeometry
from npdwconv.kernels.cuda import copies, provider
from npdwconv.kernels.cuda.entry import place_of
from npdwconv.kernels.cuda.provider import Source
from npdwconv.kernels.cuda.source import Text
from npdwconv.kernels.cuda.words import vocabulary
from npdwconv.precision import storage

ARGUMENTS = ("pi", "po", "count", "inner", "size", "padded", "low")

_SOURCE = {
    "circular": ("s = (j - low) % size",),
    "replicate": ("s = min(max(j - low, 0), size - 1)",),
    "reflect": ("s = size - 1 - abs(size - 1 - abs(j - low))",),
}


@cache
def source(read: str, written: str, mode: str, adjoint: bool) -> Source:
    """The kernel that pads, or its adjoint; one element a thread."""
    text = Text("border", ARGUMENTS)
    text("n = cuda.blockIdx.x * cuda.blockDim.x + cuda.threadIdx.x")
    with text.block("if n < count:"):
        text("i = n % inner", "a = n // inner")
        if not adjoint:
            text("j = a % padded", "a = a // padded", *_SOURCE[mode])
            text("store_o(at_o(po, n), 0, read_i(at_i(pi, (a * size + s) * inner + i), 0))")
        else:
            text("k = a % size", "a = a // size", "sum = read_i(at_i(pi, (a * padded + k + low) * inner + i), 0)")
            for head in ("for j in range(low):", "for j in range(low + size, padded):"):
                with text.block(head):
                    text(*_SOURCE[mode])
                    with text.block("if s == k:"):
                        text("sum = sum + read_i(at_i(pi, (a * padded + j) * inner + i), 0)")
            text("store_o(at_o(po, n), 0, sum)")
    return Source("border", ARGUMENTS, text.text, vocabulary(i=read, o=written))


@cache
def _kernel(read: str, written: str, mode: str, adjoint: bool) -> provider.Kernel:
    return provider.Kernel(source(read, written, mode, adjoint), f"border {read} {written} {mode} {adjoint}")


def _run(read: DeviceArray, written: DeviceArray, place: int, axis: Axis, mode: str, adjoint: bool) -> None:
    count, inner = written.size, prod(written.shape[place + 1 :])
    if count:
        _kernel(storage(read.dtype), storage(written.dtype), mode, adjoint)(
            (-(-count // copies.THREADS), 1, 1),
            (copies.THREADS, 1, 1),
            written.stream,
            *(place_of(read), place_of(written), count, inner, axis.size, axis.padded, axis.low),
        )


def pad(x: DeviceArray, g: ConvGeometry, layout: str) -> tuple[DeviceArray, ConvGeometry]:
    """padded[j] = x[source(j)] along every spatial axis, with the geometry inside it; as given for zero padding."""
    if not g.copies_border:
        return x, g
    for place, axis in enumerate(g.axes, start=2 if layout == "channels_first" else 1):
        shape = (*x.shape[:place], axis.padded, *x.shape[place + 1 :])
        wider = x.empty(shape)
        _run(x, wider, place, axis, g.padding_mode, adjoint=False)
        x = wider
    return x, g.inside()


def unpad(padded: DeviceArray, grad_x: DeviceArray, g: ConvGeometry, layout: str) -> None:
    """grad_x[i] = Σ_j padded[j] over the j with source(j) = i, along every spatial axis."""
    first = 2 if layout == "channels_first" else 1
    for place, axis in enumerate(g.axes, start=first):
        last = place == first + len(g.axes) - 1
        shape = (*padded.shape[:place], axis.size, *padded.shape[place + 1 :])
        inner = grad_x if last else padded.empty(shape)
        _run(padded, inner, place, axis, g.padding_mode, adjoint=True)
        padded = inner

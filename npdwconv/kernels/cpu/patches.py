"""The windows of a standard convolution side by side, so that a matrix product does the rest (im2col).

In channels_last a window's row of taps is one run of kernel_w·C values of the image, so a window is kernel_h copied
runs: of zeros where it lies in padding, which multiplies finite weights only.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

from llvmlite import ir
from numba.core import types
from numba.extending import intrinsic

from npdwconv.geometry import ConvGeometry
from npdwconv.kernels.cpu.engine import Kernel, Launch, inlined
from npdwconv.kernels.cpu.machine import machine
from npdwconv.kernels.cpu.simd import STORED, Vectors
from npdwconv.kernels.cpu.spec import Fixed


@intrinsic
def _copy_run(typing: Any, task: Any, source: Any, target: Any) -> Any:
    """Copy a run that fits in a vector, none of it padding."""
    spec = task.spec

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        v = Vectors(builder, spec.dtype)
        mask = ir.Constant(v.mask, [lane < spec.run for lane in range(v.lanes)])
        v.store(v.load(arguments[1], "", mask), arguments[2], "", mask)
        return context.get_dummy_value()

    return types.none(task, source, target), generate


@intrinsic
def _copy(typing: Any, task: Any, source: Any, target: Any, low: Any, high: Any, count: Any) -> Any:
    """Write the first ``count`` lanes: those of ``source`` from ``low`` to ``high``, zeros elsewhere."""
    spec = task.spec

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        _, source_, target_, low_, high_, count_ = arguments
        v = Vectors(builder, spec.dtype)
        value = v.load(source_, "", v.between(low_, high_))
        v.store(value, target_, "", v.between(builder.sub(count_, count_), count_))
        return context.get_dummy_value()

    return types.none(task, source, target, low, high, count), generate


@inlined
def _edge(task: Any, source: Any, target: Any, before: Any, line: Any) -> None:
    """Copy a run that begins ``before`` values before its row of ``line`` values; of a row that does not exist, 0."""
    low, high = max(before, 0), min(line + before, task.run)
    for i in range(0, task.run, task.lanes):
        rest = min(task.run - i, task.lanes)
        _copy(task, source + i * task.size, target + i * task.size, low - i, high - i, rest)


def _patches(task: Any, item: Any) -> None:
    """The windows of a row of results, one row of taps after another: those at the edges with care, the others fast."""
    image, p = item // task.out_h, item % task.out_h
    line, step, low = task.width * task.channels, task.stride_w * task.channels, task.low_w * task.channels
    window = task.kernel_h * task.run * task.size
    first = min((low + step - 1) // step, task.out_w)
    last = max(min((low + line - task.run) // step + 1, task.out_w), first) if task.run <= task.lanes else first
    for r in range(task.kernel_h):
        row = p * task.stride_h - task.low_h + r
        here = line if 0 <= row < task.height else 0
        begin, end = (first, last) if here > 0 else (task.out_w, task.out_w)
        source = task.x + ((image * task.height + row) * line - low) * task.size
        target = task.out + (item * task.out_w * task.kernel_h + r) * task.run * task.size
        for q in range(begin):
            _edge(task, source + q * step * task.size, target + q * window, low - q * step, here)
        for q in range(begin, end):
            _copy_run(task, source + q * step * task.size, target + q * window)
        for q in range(end, task.out_w):
            _edge(task, source + q * step * task.size, target + q * window, low - q * step, here)


_kernel = Kernel(_patches)


@lru_cache(maxsize=256)
def patches(batch: int, channels: int, g: ConvGeometry, dtype: str) -> Launch:
    """The launch over (x, out): out (batch·P·Q, R·S·C) for x (batch, H, W, C); no dilation."""
    h, w = g.axes
    size = STORED[dtype][1]
    fixed: dict[str, Fixed] = {
        "dtype": dtype,
        "size": size,
        "lanes": machine().lanes(size),
        "run": w.kernel * channels,
        "kernel_h": h.kernel,
        "stride_w": w.stride,
        "channels": channels,
    }
    numbers = {
        "height": h.size,
        "width": w.size,
        "out_h": h.out,
        "out_w": w.out,
        "stride_h": h.stride,
        "low_h": h.low,
        "low_w": w.low,
    }
    work = batch * h.out * w.out * h.kernel * w.kernel * channels
    return Launch(_kernel, ("x", "out"), fixed, numbers, items=batch * h.out, work=work)

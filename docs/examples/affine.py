"""An example of a kernel: batch norm of fixed statistics, out[p, c] = x[p, c]·scale[c] + shift[c] in channels_last."""

from __future__ import annotations

from typing import Any

import numpy as np
from numba.core import types
from numba.extending import intrinsic

from npdwconv.kernels.cpu.engine import Kernel, Launch
from npdwconv.kernels.cpu.machine import machine
from npdwconv.kernels.cpu.simd import Vectors, int64
from npdwconv.layouts import Array

ROWS = 64  # pixels of an item


@intrinsic
def _vector(typing: Any, task: Any, x: Any, scale: Any, shift: Any, out: Any, left: Any) -> Any:
    """One vector of channels, of which ``left`` exist."""
    spec = task.spec

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        _, x_, scale_, shift_, out_, left_ = arguments
        v = Vectors(builder, "float32")
        mask = v.between(int64(0), left_) if spec.tail else None
        z = v.fma(v.load(x_, "", mask), v.load(scale_, "", mask), v.load(shift_, "", mask))
        v.store(z, out_, "", mask)
        return context.get_dummy_value()

    return types.none(task, x, scale, shift, out, left), generate


def _affine(task: Any, item: Any) -> None:
    first = item * task.rows
    for p in range(first, min(first + task.rows, task.pixels)):
        for c in range(0, task.channels, task.lanes):
            place = (p * task.channels + c) * 4
            _vector(task, task.x + place, task.scale + c * 4, task.shift + c * 4, task.out + place, task.channels - c)


kernel = Kernel(_affine)


def affine(x: Array, scale: Array, shift: Array, fixed: tuple[str, ...] = ()) -> tuple[Array, Launch]:
    """The result and its launch; ``fixed`` names numbers that are compiled in."""
    channels = x.shape[-1]
    numbers = {"pixels": x.size // channels, "channels": channels, "rows": ROWS}
    lanes = machine().lanes(4)
    known = {"lanes": lanes, "tail": channels % lanes != 0} | {name: numbers.pop(name) for name in fixed}
    items = -(-x.size // channels // ROWS)
    launch = Launch(kernel, ("x", "scale", "shift", "out"), known, numbers, items=items, work=x.size)
    out = np.empty_like(x)
    launch(x, scale, shift, out)
    return out, launch

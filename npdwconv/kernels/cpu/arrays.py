"""Arrays as the kernels want them: C-contiguous and aligned, copied where they are not."""

from __future__ import annotations

import numpy as np

from npdwconv.layouts import Array


def plain(array: Array) -> Array:
    """``array`` itself where it is C-contiguous and aligned, else a copy that is."""
    flags = array.flags
    return array if flags.c_contiguous and flags.aligned else np.array(array, order="C")


def target(out: Array) -> Array:
    """Where a kernel may write what belongs in ``out``: itself, or a new array that `deliver` copies from."""
    flags = out.flags
    return out if flags.c_contiguous and flags.aligned else np.empty(out.shape, out.dtype)


def deliver(written: Array, out: Array) -> None:
    """Bring what was written to `target` into ``out``."""
    if written is not out:
        out[...] = written

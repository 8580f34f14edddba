"""NumPy's matmul: pointwise convolution and its gradients as matrix products of channels_last arrays."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

import numpy as np

from npdwconv.bench.cases import Case
from npdwconv.bench.operands import Operands
from npdwconv.bench.participant import Way
from npdwconv.layouts import Array


def setup(threads: int) -> str:
    """The threads of its BLAS were set by this process's environment."""
    return str(np.__version__)


def ways(case: Case, given: Operands) -> Iterator[tuple[str, Callable[[], Way]]]:
    """One product where the case is one."""
    if case.operation.startswith("pointwise"):
        yield "matmul", partial(_product, case, given)


def _product(case: Case, a: Operands) -> Way:
    spatial = case.geometry.out
    x, weight = _matrix(a["x"]), a["weight"]
    if case.operation == "pointwise_fwd":
        out = np.empty((len(x), case.outputs), np.float32)
        transposed, bias = weight.T, a["bias"]

        def forward() -> Array:
            np.matmul(x, transposed, out=out)
            return np.add(out, bias, out=out)

        return Way(forward, partial(_image, case.batch, spatial))
    grad_out = _matrix(a["grad_out"])
    if case.operation == "pointwise_bwd_input":
        into = partial(np.matmul, grad_out, weight, out=np.empty_like(x))
        return Way(into, partial(_image, case.batch, spatial))
    return Way(partial(np.matmul, grad_out.T, x, out=np.empty_like(weight)), lambda grad: grad)


def _matrix(array: Array) -> Array:
    """Pixels by channels."""
    return np.ascontiguousarray(np.moveaxis(array, 1, -1)).reshape(-1, array.shape[1])


def _image(batch: int, spatial: tuple[int, ...], matrix: Array) -> Array:
    return np.moveaxis(matrix.reshape(batch, *spatial, -1), -1, 1)

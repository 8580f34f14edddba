"""JAX on the CPU, compiled by `jax.jit`, channels_last. Its depthwise convolution is an oracle rather than a rival."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from importlib import import_module
from typing import Any

import numpy as np

from npdwconv.bench.cases import Case
from npdwconv.bench.operands import Operands
from npdwconv.bench.participant import Way
from npdwconv.layouts import Array

jax: Any = None  # `setup` imports it
MOST = 200_000_000  # multiply-adds beyond which a depthwise convolution takes seconds a call, and is left out


def setup(threads: int) -> str:
    """The threads were set by this process's environment."""
    global jax
    jax = import_module("jax")
    jax.config.update("jax_platforms", "cpu")
    return str(jax.__version__)


def ways(case: Case, given: Operands) -> Iterator[tuple[str, Callable[[], Way]]]:
    """channels_last; not the network, not a gradient of a depthwise convolution, none that takes seconds."""
    if case.operation in ("depthwise_fwd", "tokens_fwd", "separable_fwd") and _depthwise_work(case) <= MOST:
        yield "channels_last", partial(_convolution, case, given)
    elif case.operation.startswith("pointwise"):
        yield "matmul", partial(_product, case, given)


def _depthwise_work(case: Case) -> int:
    return case.pixels * case.middle * case.taps


def _convolution(case: Case, a: Operands) -> Way:
    letters = "WXYZ"[: case.rank]
    layouts = (f"N{letters}C", f"OI{letters}", f"N{letters}C")
    convolve = partial(
        jax.lax.conv_general_dilated,
        window_strides=(case.stride,) * case.rank,
        padding=case.padding,
        rhs_dilation=(case.dilation,) * case.rank,
        dimension_numbers=layouts,
        feature_group_count=case.channels,
        precision=jax.lax.Precision.HIGHEST,
    )

    def depthwise(x: Any, weight: Any, bias: Any) -> Any:
        return convolve(x, weight) + bias

    def separable(x: Any, weight: Any, bias: Any, mixing: Any, offset: Any) -> Any:
        middle = jax.numpy.clip(depthwise(x, weight, bias), 0, 6)
        return jax.numpy.clip(jax.numpy.matmul(middle, mixing.T, precision="highest") + offset, 0, 6)

    names = ["depthwise_weight", "depthwise_bias"]
    whole = case.operation == "separable_fwd"
    names += ["weight", "bias"] if whole else []
    return _way(separable if whole else depthwise, [_last(a["x"]), *(a[name] for name in names)], 1)


def _product(case: Case, a: Operands) -> Way:
    matmul = partial(jax.numpy.matmul, precision="highest")
    x, weight = _last(a["x"]), a["weight"]
    if case.operation == "pointwise_fwd":
        return _way(lambda x, weight, bias: matmul(x, weight.T) + bias, [x, weight, a["bias"]], 1)
    grad_out = _last(a["grad_out"])
    if case.operation == "pointwise_bwd_input":
        return _way(matmul, [grad_out, weight], 1)
    matrices = [array.reshape(-1, array.shape[-1]) for array in (grad_out, x)]
    return _way(lambda grad_out, x: matmul(grad_out.T, x), matrices, 0)


def _way(function: Callable[..., Any], operands: list[Array], last: int) -> Way:
    compiled = jax.jit(function)
    held = [jax.device_put(array) for array in operands]

    def result(value: Any) -> Array:
        found = np.asarray(value)
        return np.moveaxis(found, -1, 1) if last else found

    return Way(lambda: compiled(*held).block_until_ready(), result)


def _last(array: Array) -> Array:
    return np.ascontiguousarray(np.moveaxis(array, 1, -1))

"""Layer room: what a new layer's parameters hold, and the checks of what its constructor is told."""

from __future__ import annotations

from math import prod
from typing import Any

import numpy as np
import numpy.typing as npt

from npdwconv.activations import ACTIVATIONS
from npdwconv.errors import DTypeError, OptionError
from npdwconv.layouts import Array
from npdwconv.options import one_of
from npdwconv.precision import ACCUMULATORS, is_supported

Rng = int | np.random.Generator


def uniform(rng: Rng, dtype: npt.DTypeLike, weight: tuple[int, ...], bias: bool) -> dict[str, Array]:
    """PyTorch's initial values of a convolution: ``weight`` and, where wanted, ``bias``, uniform within 1/√fan_in.

    For the weight that is the uniform rule of K. He et al. (arXiv:1502.01852) with a = √5, as ``reset_parameters`` of
    ``torch.nn`` applies it. A Generator is drawn from; an int seeds a new one.
    """
    checked = floating(dtype)
    shapes = {"weight": weight, "bias": weight[:1]} if flag("bias", bias) else {"weight": weight}
    generator = np.random.default_rng(rng)
    bound = 1 / np.sqrt(max(prod(weight[1:]), 1))
    return {name: generator.uniform(-bound, bound, shape).astype(checked) for name, shape in shapes.items()}


def floating(dtype: npt.DTypeLike) -> np.dtype[Any]:
    """A dtype that the operators compute in."""
    checked = np.dtype(dtype)
    if not is_supported(checked):
        raise DTypeError(f"dtype is {checked}; needed one of {', '.join(ACCUMULATORS)}")
    return checked


def activation_name(name: str, value: Any) -> str | None:
    """The name of an activation, or None."""
    return None if value is None else one_of(name, value, ACTIVATIONS)


def flag(name: str, value: Any) -> bool:
    """True or False, and nothing that is merely truthy."""
    if not isinstance(value, bool):
        raise OptionError(f"{name} is {value!r}; needed True or False")
    return value

"""Activations and their derivatives on the device: the functions of `npdwconv.activations`, one number at a time.

Comparisons are written so that NaN passes. Every constant is a number of the dtype in which sums are accumulated.
"""

from __future__ import annotations

import math
from functools import cache
from typing import Any

from npdwconv.kernels.cuda import provider
from npdwconv.kernels.cuda.provider import Source, device_function

_CLIPPED = "c = -most if z < -most else (most if z > most else z)"
_SIXTHS = "t = z + three\nt = zero if t <= zero else (six if t >= six else t)"
_SLOPE = "s = root * (one + three * cubic * c * c)\nreturn half * (one + t) + half * c * (one - t * t) * s"
_TABLE = {
    "relu": ("return zero if z <= zero else z", "return z if z != z else (one if z > zero else zero)"),
    "relu6": (
        "return zero if z <= zero else (six if z >= six else z)",
        "return z if z != z else (one if z > zero and z < six else zero)",
    ),
    "hardsigmoid": (
        f"{_SIXTHS}\nreturn t / six",
        "return z if z != z else (sixth if z > -three and z < three else zero)",
    ),
    "hardswish": (
        f"{_SIXTHS}\nreturn z * (t / six)",
        "return z if z != z else (zero if z <= -three else (one if z >= three else z / three + half))",
    ),
    "sigmoid": (
        "return one / (one + exp(-z))",
        "return (one / (one + exp(-z))) * (one / (one + exp(z)))",
    ),
    "silu": (
        "return z / (one + exp(-z))",
        f"{_CLIPPED}\nreturn (one / (one + exp(-z))) * (one + c * (one / (one + exp(z))))",
    ),
    "gelu": (
        "return z * (half * erfc(-sqrt_half * z))",
        f"{_CLIPPED}\nreturn half * erfc(-sqrt_half * z) + c * exp(-half * c * c) * inv_sqrt_tau",
    ),
    "gelu_tanh": (
        "return half * z * (one + tanh(root * (z + cubic * z * z * z)))",
        f"{_CLIPPED}\nt = tanh(root * (c + cubic * c * c * c))\n{_SLOPE}",
    ),
}
_CONSTANTS = {
    "zero": 0.0,
    "half": 0.5,
    "one": 1.0,
    "three": 3.0,
    "six": 6.0,
    "sixth": 1.0 / 6.0,
    "most": 1000.0,
    "sqrt_half": math.sqrt(0.5),
    "inv_sqrt_tau": 1.0 / math.sqrt(2.0 * math.pi),
    "root": math.sqrt(2.0 / math.pi),
    "cubic": 0.044715,
}


@cache
def function(name: str, real: Any, derivative: bool = False) -> Any:
    """The activation of that name, or its derivative, as a function of the device."""
    full = f"{name}_prime" if derivative else name
    body = "\n".join("    " + line for line in _TABLE[name][derivative].splitlines())
    words = {key: real(value) for key, value in _CONSTANTS.items()}
    words.update(_elementary(real))
    return device_function(Source(full, ("z",), f"def {full}(z):\n{body}\n", words))


def _elementary(real: Any) -> dict[str, Any]:
    if not provider.simulated():
        return {"exp": math.exp, "erfc": math.erfc, "tanh": math.tanh}

    def exp(z: Any) -> Any:
        return real(math.inf) if z > 709.0 else real(math.exp(z))

    return {"exp": exp, "erfc": lambda z: real(math.erfc(z)), "tanh": lambda z: real(math.tanh(z))}

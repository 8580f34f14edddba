"""Activations and their derivatives as instructions on a vector: `npdwconv.activations`, lane by lane.

What that table says at kinks, at infinities and of NaN holds here, and the straight pieces are its very bits. The
curves are within 4 ulp of the exact value or, where that is larger, of min(|z|, 1/4); their derivatives within 4 ulp of
the exact value or of 1/4. To the left sigmoid and silu keep 4 ulp as far as e^−z is finite, gelu 10 ulp as far as Φ is
a normal number.
"""

from __future__ import annotations

import math
from collections.abc import Callable

from npdwconv.kernels.cpu.elementary import (
    INV_SQRT_TAU,
    clamped,
    in_span,
    larger,
    logistic,
    magnitude,
    normal_tail,
)
from npdwconv.kernels.cpu.simd import Value, Vectors

# gelu_tanh(z) = z·σ(_STEEP·(z + _CUBIC·z³)), since (1 + tanh u)/2 = σ(2u); σ is 0 or 1 beyond |z| = _FAR
_STEEP = 2 * math.sqrt(2 / math.pi)
_CUBIC = 0.044715
_FAR = 32.0


def activate(v: Vectors, name: str, z: Value) -> Value:
    """activation(z); z itself where ``name`` is empty. NaN passes."""
    return ACTIVATE[name](v, z) if name else z


def derivative(v: Vectors, name: str, z: Value) -> Value:
    """activation′(z); 1 where ``name`` is empty. NaN passes."""
    return DERIVE[name](v, z) if name else v.constant(1.0)


def _relu(v: Vectors, z: Value) -> Value:
    return larger(v, z, v.zero())


def _relu_prime(v: Vectors, z: Value) -> Value:
    return _pieces(v, z, 0.0, math.inf, v.constant(1.0), 1.0)


def _relu6(v: Vectors, z: Value) -> Value:
    return clamped(v, z, 0.0, 6.0)


def _relu6_prime(v: Vectors, z: Value) -> Value:
    return _pieces(v, z, 0.0, 6.0, v.constant(1.0), 0.0)


def _hardsigmoid(v: Vectors, z: Value) -> Value:
    return _divided(v, clamped(v, v.builder.fadd(z, v.constant(3.0)), 0.0, 6.0), 6.0)


def _hardsigmoid_prime(v: Vectors, z: Value) -> Value:
    return _pieces(v, z, -3.0, 3.0, v.constant(1.0 / 6.0), 0.0)


def _hardswish(v: Vectors, z: Value) -> Value:
    return v.builder.fmul(z, _hardsigmoid(v, z))


def _hardswish_prime(v: Vectors, z: Value) -> Value:
    slope = v.builder.fadd(_divided(v, z, 3.0), v.constant(0.5))
    return _pieces(v, z, -3.0, 3.0, slope, 1.0)


def _sigmoid(v: Vectors, z: Value) -> Value:
    denominator, _ = logistic(v, in_span(v, v.builder.fneg(z)))
    return v.builder.fdiv(v.constant(1.0), denominator)


def _sigmoid_prime(v: Vectors, z: Value) -> Value:
    """σ(−|z|)·(1 − σ(−|z|)): an even function, and 1 − σ is exact enough where σ ≤ 1/2."""
    b, one = v.builder, v.constant(1.0)
    denominator, _ = logistic(v, in_span(v, magnitude(v, z)))
    low = b.fdiv(one, denominator)
    return b.fmul(low, b.fsub(one, low))


def _silu(v: Vectors, z: Value) -> Value:
    denominator, _ = logistic(v, in_span(v, v.builder.fneg(z)))
    return v.builder.fdiv(z, denominator)


def _silu_prime(v: Vectors, z: Value) -> Value:
    t = in_span(v, v.builder.fneg(z))
    return _swish_prime(v, t, v.builder.fmul(t, v.constant(-2.0)))


def _gelu_tanh(v: Vectors, z: Value) -> Value:
    denominator, _ = logistic(v, in_span(v, _gelu_tanh_exponent(v, z)))
    return v.builder.fdiv(z, denominator)


def _gelu_tanh_prime(v: Vectors, z: Value) -> Value:
    z = clamped(v, z, -_FAR, _FAR)
    slope = v.fma(v.builder.fmul(z, z), v.constant(6 * _STEEP * _CUBIC), v.constant(2 * _STEEP))
    return _swish_prime(v, in_span(v, _gelu_tanh_exponent(v, z)), v.builder.fmul(z, slope))


def _gelu(v: Vectors, z: Value) -> Value:
    """z·Φ(z), with Φ by its lower tail: 1 − Φ(−z) to the right."""
    b = v.builder
    _, density, ratio, _ = normal_tail(v, z)
    return b.fmul(z, _reflected(v, z, b.fmul(density, ratio)))


def _gelu_prime(v: Vectors, z: Value) -> Value:
    """Φ(z) + z·φ(z), which is 1 − (the same of −z) to the right."""
    x, density, ratio, unit = normal_tail(v, z)
    both = v.fma(x, v.constant(-INV_SQRT_TAU * unit), ratio)
    return _reflected(v, z, v.builder.fmul(density, both))


def _gelu_tanh_exponent(v: Vectors, z: Value) -> Value:
    b = v.builder
    return b.fmul(z, v.fma(b.fmul(z, z), v.constant(-_STEEP * _CUBIC), v.constant(-_STEEP)))


def _swish_prime(v: Vectors, t: Value, twice: Value) -> Value:
    """(z·σ(−t))′ = σ(−t)·(1 − z·t′·σ(t)), with ``twice`` = −2·z·t′ finite and t in span."""
    b = v.builder
    denominator, half = logistic(v, t)
    s = b.fdiv(v.constant(1.0), denominator)
    return b.fmul(s, v.fma(b.fmul(half, s), twice, v.constant(1.0)))


def _reflected(v: Vectors, z: Value, left: Value) -> Value:
    """``left`` where z ≤ 0 or is NaN, and 1 − ``left`` where z > 0."""
    b = v.builder
    return b.select(b.fcmp_ordered(">", z, v.zero()), b.fsub(v.constant(1.0), left), left)


def _pieces(v: Vectors, z: Value, low: float, high: float, between: Value, above: float) -> Value:
    """0 up to ``low``, ``between`` inside, ``above`` from ``high`` on; NaN where z is."""
    b = v.builder
    inside = b.select(b.fcmp_ordered(">=", z, v.constant(high)), v.constant(above), between)
    value = b.select(b.fcmp_ordered("<=", z, v.constant(low)), v.zero(), inside)
    return b.select(b.fcmp_unordered("uno", z, z), z, value)


def _divided(v: Vectors, a: Value, divisor: float) -> Value:
    """a / divisor, correctly rounded (Markstein 1990) in three instructions instead of a slow division."""
    b, inverse = v.builder, v.constant(1.0 / divisor)
    quotient = b.fmul(a, inverse)
    return v.fma(v.fma(quotient, v.constant(-divisor), a), inverse, quotient)


ACTIVATE: dict[str, Callable[[Vectors, Value], Value]] = {
    "relu": _relu,
    "relu6": _relu6,
    "hardswish": _hardswish,
    "silu": _silu,
    "gelu": _gelu,
    "gelu_tanh": _gelu_tanh,
    "sigmoid": _sigmoid,
    "hardsigmoid": _hardsigmoid,
}
DERIVE: dict[str, Callable[[Vectors, Value], Value]] = {
    "relu": _relu_prime,
    "relu6": _relu6_prime,
    "hardswish": _hardswish_prime,
    "silu": _silu_prime,
    "gelu": _gelu_prime,
    "gelu_tanh": _gelu_tanh_prime,
    "sigmoid": _sigmoid_prime,
    "hardsigmoid": _hardsigmoid_prime,
}

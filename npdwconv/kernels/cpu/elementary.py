"""Elementary functions as instructions on a vector: exp, the logistic function, the lower tail of the normal law.

Each is a range reduction and a polynomial or a quotient of two: no table, no call, no branch, so every lane costs the
same. A factor of two is moved to where the machine adds it for nothing: an exponential comes scaled by a power of two
that keeps it a normal number, and who uses it scales back.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from llvmlite import ir

from npdwconv.kernels.cpu.simd import Value, Vectors

INV_SQRT_TAU = 1 / math.sqrt(2 * math.pi)


@dataclass(frozen=True)
class _Numbers:
    """What a precision's functions are made of.

    ``exp``: q with e^r ≈ 1 + r + r²·q(r) on |r| ≤ 1.001·ln 2 / 2, of least relative error by Remez exchange in 60
    digits, coefficients then rounded.
    ``tail``: (P, Q) with P/Q ≈ Φ(−x)·e^(x²/2) on [0, reach], of least relative error by Lawson's iteration in 50 digits
    on the linearised quotient until the error had p + q + 2 level extrema. Every coefficient is positive, so that
    nothing cancels; the tail at ``reach`` is below half the smallest subnormal.
    """

    mantissa: int  # bits
    bias: int  # of the exponent
    ln2: tuple[float, float]  # rounded, and what rounding left
    exp: tuple[float, ...]
    span: tuple[float, float]  # where e^t/2 is finite; beyond, 1 + e^t is 1 or infinite, as it is at either end
    tail: tuple[tuple[float, ...], tuple[float, ...]]
    reach: float
    power: int  # keeps e^(−reach²/2)·2^power normal


_NUMBERS = {
    "float32": _Numbers(
        mantissa=23,
        bias=127,
        ln2=(0.693147182464599609375, -1.904654299957768e-09),
        exp=(
            0.49999228829115619556,
            0.1666711630280932272,
            0.041890549778251728486,
            0.0083124786581159645495,
        ),  # 1.1e-7
        span=(-87.0, 88.73),
        tail=(  # 6.3e-9; 4e-8 with its coefficients rounded
            (0.5000000031464499, 0.43928292110281697, 0.18396870878704036, 0.040880967906109386, 0.004153201807725117),
            (
                1.0,
                1.6764508490585388,
                1.2055466093773097,
                0.4714075507282545,
                0.1024795064929418,
                0.0104104214198793,
            ),
        ),
        reach=15.0,
        power=64,
    ),
    "float64": _Numbers(
        mantissa=52,
        bias=1023,
        ln2=(0.6931471805599453094, 2.3190468138462996e-17),
        exp=(  # 3.7e-18
            0.50000000000000107205,
            0.16666666666666410238,
            0.041666666666529193085,
            0.0083333333334956267492,
            0.0013888888943921454018,
            0.00019841269504751637252,
            0.000024801492763973955391,
            2.755758735753165398e-6,
            2.763037822818674268e-7,
            2.4999960208336418212e-8,
        ),
        span=(-708.5, 709.79),
        tail=(  # 5.2e-17; 1.2e-16 with its coefficients rounded
            (
                0.5,
                0.7748781007205254,
                0.5940526109218188,
                0.2893373610516524,
                0.09770155896680206,
                0.023623126982805942,
                0.004089468321400409,
                0.0004904406058572472,
                3.7256353921253467e-05,
                1.3858035522234108e-06,
            ),
            (
                1.0,
                2.347640762243906,
                2.5612515403498435,
                1.7143989216226445,
                0.7820518845735034,
                0.25496547972807876,
                0.060436803356631014,
                0.010344164741592528,
                0.001232825984235286,
                9.338783014653908e-05,
                3.473694367097588e-06,
            ),
        ),
        reach=39.0,
        power=128,
    ),
}


def larger(v: Vectors, z: Value, bound: Value) -> Value:
    """max(z, bound), NaN where z is."""
    return v.builder.select(v.builder.fcmp_ordered(">", bound, z), bound, z)


def smaller(v: Vectors, z: Value, bound: Value) -> Value:
    """min(z, bound), NaN where z is."""
    return v.builder.select(v.builder.fcmp_ordered("<", bound, z), bound, z)


def clamped(v: Vectors, z: Value, low: float, high: float) -> Value:
    """z brought into [low, high], NaN where it is."""
    return smaller(v, larger(v, z, v.constant(low)), v.constant(high))


def magnitude(v: Vectors, z: Value) -> Value:
    """|z|."""
    b, bits = v.builder, 8 * v.bytes
    return b.bitcast(b.and_(b.bitcast(z, v.bits), _integers(v, (1 << (bits - 1)) - 1)), v.type)


def polynomial(v: Vectors, x: Value, coefficients: Sequence[float]) -> Value:
    """Σ coefficients[k]·x^k, by Horner's rule."""
    *lower, highest = coefficients
    value = v.constant(highest)
    for coefficient in reversed(lower):
        value = v.fma(value, x, v.constant(coefficient))
    return value


def scaled_exp(v: Vectors, t: Value, power: int, rest: Value | None = None) -> Value:
    """exp(t + rest)·2^power within 2.5 ulp; NaN where t is.

    With n = t / ln 2 to the nearest integer, e^t = e^(t − n·ln 2)·2^n. Adding 1.5·2^mantissa rounds to an integer and
    leaves it in the low bits, from where a shift makes it an exponent. 2^(n + power) must be a normal number or the
    next power below them, which becomes 0.
    """
    b, c = v.builder, _NUMBERS[v.dtype]
    magic = v.constant(1.5 * 2.0**c.mantissa + c.bias + power)
    shifted = v.fma(t, v.constant(1 / math.log(2)), magic)
    n = b.fsub(shifted, magic)
    r = v.fma(n, v.constant(-c.ln2[1]), v.fma(n, v.constant(-c.ln2[0]), t))
    if rest is not None:
        r = b.fadd(r, rest)
    scale = b.bitcast(b.shl(b.bitcast(shifted, v.bits), _integers(v, c.mantissa)), v.type)
    return b.fmul(polynomial(v, r, (1.0, 1.0, *c.exp)), scale)


def in_span(v: Vectors, t: Value) -> Value:
    """t brought to where `logistic` can tell it from ±∞."""
    return clamped(v, t, *_NUMBERS[v.dtype].span)


def logistic(v: Vectors, t: Value) -> tuple[Value, Value]:
    """``(1 + e^t, e^t/2)`` for t in span: σ(−t) is the first's reciprocal, and σ(t) twice the second times that."""
    half = scaled_exp(v, t, -1)
    return v.fma(half, v.constant(2.0), v.constant(1.0)), half


def normal_tail(v: Vectors, z: Value) -> tuple[Value, Value, Value, float]:
    """``(x, density, ratio, unit)`` with x = |z| ≤ reach and Φ(−x) = density·ratio, each within a few ulp.

    e^(−x²/2) is density·unit, where unit is a power of two. The square is taken with what rounding drops from it: in
    the tail that is many ulp of the exponential.
    """
    b, c = v.builder, _NUMBERS[v.dtype]
    x = smaller(v, magnitude(v, z), v.constant(c.reach))
    half = b.fmul(x, v.constant(-0.5))
    square = b.fmul(half, x)
    density = scaled_exp(v, square, c.power, v.fma(half, x, b.fneg(square)))
    unit = 2.0**-c.power
    above, below = c.tail
    ratio = b.fdiv(polynomial(v, x, [unit * a for a in above]), polynomial(v, x, below))
    return x, density, ratio, unit


def _integers(v: Vectors, value: int) -> Value:
    return ir.Constant(v.bits, [value] * v.lanes)

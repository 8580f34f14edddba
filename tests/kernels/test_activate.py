"""Activations as vector instructions: exact values, the reference's bits and special values, every number of lanes."""

from __future__ import annotations

import math

import mpmath
import numpy as np
import pytest
from numba import types
from numba.extending import intrinsic

from npdwconv.activations import ACTIVATIONS
from npdwconv.kernels.cpu.activate import activate, derivative
from npdwconv.kernels.cpu.elementary import scaled_exp
from npdwconv.kernels.cpu.engine import Kernel, Launch
from npdwconv.kernels.cpu.simd import STORED, Vectors, int64

LINES = ("relu", "relu6", "hardswish", "hardsigmoid")
CURVES = ("silu", "gelu", "gelu_tanh", "sigmoid")
LANES = {"float32": 16, "float64": 8, "float16": 16, "bfloat16": 16}

every = pytest.mark.parametrize("name", ACTIVATIONS)
both = pytest.mark.parametrize("dtype", ["float32", "float64"])
curves = pytest.mark.parametrize("name", CURVES)


@intrinsic
def _apply(typing, task, x, out, slope, left):
    spec = task.spec

    def generate(context, builder, signature, arguments):
        _, x_, out_, slope_, left_ = arguments
        v = Vectors(builder, STORED[spec.stored][2], spec.lanes)
        mask = v.between(int64(0), left_)
        z = v.load(x_, spec.stored, mask)
        if spec.name == "exp":
            v.store(scaled_exp(v, z, 0), out_, spec.stored, mask)
        else:
            v.store(activate(v, spec.name, z), out_, spec.stored, mask)
            v.store(derivative(v, spec.name, z), slope_, spec.stored, mask)
        return context.get_dummy_value()

    return types.none(task, x, out, slope, left), generate


def _elementwise(task, item):
    for i in range(0, task.count, task.lanes):
        at = i * task.size
        _apply(task, task.x + at, task.out + at, task.slope + at, task.count - i)


elementwise = Kernel(_elementwise)


def applied(name, z, lanes=0, dtype=""):
    """(activation(z), activation′(z)) by the vector code."""
    out, slope = np.full_like(z, 7), np.full_like(z, 7)
    stored = dtype or z.dtype.name
    fixed = {"stored": stored, "lanes": lanes or LANES[stored], "size": z.itemsize, "name": name}
    Launch(elementwise, ("x", "out", "slope"), fixed, {"count": z.size}, items=1, work=0)(z, out, slope)
    return out, slope


def reference(name, z):
    with np.errstate(all="ignore"):
        return ACTIVATIONS[name].function(z), ACTIVATIONS[name].derivative(z)


def samples(dtype):
    """Dense where things happen, and every exponent of both signs (in float64 every eighth)."""
    rng, info = np.random.default_rng(5), np.finfo(dtype)
    fewer, skip = (1, 1) if dtype == "float32" else (100, 8)
    exponents = np.repeat(np.arange(int(info.minexp) - info.nmant, 100, skip), 4 if fewer == 1 else 1)
    scattered = np.ldexp(rng.uniform(1, 2, exponents.size), exponents)
    near, far = np.linspace(-9, 9, 100_001 // fewer), rng.uniform(-40, 40, 40_000 // fewer)
    tail = rng.uniform(math.log(float(info.tiny)) * 1.05, 0, 10_000 // fewer)
    return np.concatenate([near, far, tail, scattered, -scattered]).astype(dtype)


def _wide(name, z):
    """In float64, from formulas that cancel nowhere; good enough to judge float32."""
    logistic = lambda t: 1 / (1 + np.exp(-t))  # noqa: E731 - two letters of a formula
    erfc = np.frompyfunc(math.erfc, 1, 1)
    if name == "gelu":
        return z * erfc(-z * math.sqrt(0.5)).astype(float) / 2, _gelu_slope(z, erfc, np.exp, math).astype(float)
    inner, slope = _inner(name, z, math)
    s, rest = logistic(inner), logistic(-inner)
    if name == "sigmoid":
        return s, s * rest
    return z * s, s * (1 + z * rest * slope)


def _gelu_slope(z, erfc, exp, functions):
    return erfc(-z / functions.sqrt(2)) / 2 + z * exp(-z * z / 2) / functions.sqrt(2 * functions.pi)


def _inner(name, z, functions):
    """(t, t′) of z·σ(t)."""
    if name != "gelu_tanh":
        return z, 1
    steep, cubic = 2 * functions.sqrt(2 / functions.pi), 44715 * z * z / 1000000
    return steep * (z + cubic * z), steep * (1 + 3 * cubic)


def _exact(name, z):
    """In 40 digits, for float64."""
    with mpmath.workdps(40):
        z = mpmath.mpf(float(z))
        if name == "gelu":
            return z * mpmath.erfc(-z / mpmath.sqrt(2)) / 2, _gelu_slope(z, mpmath.erfc, mpmath.exp, mpmath)
        inner, slope = _inner(name, z, mpmath.mp)
        s, rest = 1 / (1 + mpmath.exp(-inner)), 1 / (1 + mpmath.exp(inner))
        return (s, s * rest) if name == "sigmoid" else (z * s, s * (1 + z * rest * slope))


def exact(name, z):
    if z.dtype == np.float32:
        with np.errstate(over="ignore", under="ignore", invalid="ignore"):
            return _wide(name, z.astype(np.float64))
    values = np.array([_exact(name, value) for value in z])
    return values[:, 0], values[:, 1]


def errors(got, wanted):
    """|got − wanted|, taken before either is rounded."""
    return np.array(abs(got.astype(np.float64) - wanted), dtype=np.float64)


def ulp(value, dtype):
    return np.spacing(np.abs(np.asarray(value, dtype=np.float64)).astype(dtype)).astype(np.float64)


@both
@curves
def test_curves_are_within_4_ulp_of_the_exact_value_or_of_a_quarter_or_of_z(name, dtype):
    z = samples(dtype)
    (out, slope), (wanted, wanted_slope) = applied(name, z), exact(name, z)
    floor = ulp(np.minimum(np.abs(z), 0.25), dtype)
    assert np.all(errors(out, wanted) <= 4 * np.maximum(ulp(wanted, dtype), floor))
    assert np.all(errors(slope, wanted_slope) <= 4 * np.maximum(ulp(wanted_slope, dtype), ulp(0.25, dtype)))


@both
@pytest.mark.parametrize(
    ("name", "ulps", "lowest"),
    [("sigmoid", 4, {"float32": -88.7, "float64": -709.7}), ("gelu", 10, {"float32": -13.0, "float64": -37.4})],
)
def test_the_left_tail_keeps_its_digits(name, ulps, lowest, dtype):
    """Of sigmoid, and so of silu, as far as e^−z is finite; of gelu as far as Φ is a normal number."""
    z = np.linspace(lowest[dtype], 0, 3001).astype(dtype)
    wanted, _ = exact(name, z)
    assert np.all(errors(applied(name, z)[0], wanted) <= ulps * ulp(wanted, dtype))


@both
def test_exp(dtype):
    lowest, highest = {"float32": (-87.3, 88.3), "float64": (-708.3, 709.4)}[dtype]
    t = np.random.default_rng(6).uniform(lowest, highest, 4000).astype(dtype)
    with mpmath.workdps(40):
        wanted = np.array([mpmath.exp(float(value)) for value in t])
    assert np.all(errors(applied("exp", t)[0], wanted) <= 2.5 * ulp(wanted, dtype))


@both
@pytest.mark.parametrize("name", LINES)
def test_straight_lines_have_the_bits_of_the_reference(name, dtype):
    kinks = np.array([-3, 0, 3, 6], dtype)
    beside = [np.nextafter(kinks, kinks + side) for side in (-1, 1)]
    z = np.concatenate([samples(dtype), kinks, *beside]).astype(dtype)
    for got, wanted in zip(applied(name, z), reference(name, z), strict=True):
        np.testing.assert_array_equal(got, wanted)


def test_sixths_are_correctly_rounded_for_every_significand():
    z = np.arange(1 << 23, dtype=np.uint32) + np.float32(1).view(np.uint32)
    z = z.view(np.float32) - np.float32(1)
    np.testing.assert_array_equal(applied("hardsigmoid", z)[0], (z + 3) / np.float32(6))


@both
@every
def test_special_values_are_those_of_the_reference(name, dtype):
    info = np.finfo(dtype)
    positive = [0, info.smallest_subnormal, info.tiny, 3, 6, 20, 89, 104, 710, 800, 1e5, 1e19, 1e30, info.max, np.inf]
    z = np.array([*positive, *(-value for value in positive), np.nan, -np.nan]).astype(dtype)
    for got, wanted in zip(applied(name, z), reference(name, z), strict=True):
        finite = np.isfinite(wanted)
        np.testing.assert_array_equal(got[~finite], wanted[~finite])
        assert np.all(np.isfinite(got[finite]))
        assert np.all(np.abs(got[finite] - wanted[finite]) <= 8 * info.eps * np.maximum(np.abs(wanted[finite]), 0.25))


@both
@every
def test_any_nan_passes(name, dtype):
    """Also those whose payload reaches the exponent when it is shifted."""
    kind, quiet = ("u4", 0x7FC00000) if dtype == "float32" else ("u8", 0x7FF8 << 48)
    payloads = [0, 1, 2, 3, 0xFF, 0x100, 0x1FF, 0x3FF, 0x400, 0x7FF, 0x1FFFFF]
    bits = np.array([sign | quiet | low for sign in (0, 1 << (8 * int(kind[1]) - 1)) for low in payloads], kind)
    for result in applied(name, bits.view(dtype)):
        assert np.isnan(result).all()


@both
@every
def test_every_number_of_lanes_gives_the_same_bits(name, dtype):
    z = np.random.default_rng(7).normal(0, 4, 37).astype(dtype)
    widest = applied(name, z)
    for lanes in (4, 8) if dtype == "float32" else (2, 4):
        for got, wanted in zip(applied(name, z, lanes), widest, strict=True):
            np.testing.assert_array_equal(got, wanted)


@pytest.mark.parametrize("name", ["silu", "gelu", "hardswish"])
def test_half_types_compute_in_float32_and_round_once(name):
    z = np.random.default_rng(8).normal(0, 4, 1000).astype(np.float32)
    half = z.astype(np.float16)
    got, wanted = applied(name, half), applied(name, half.astype(np.float32))
    np.testing.assert_array_equal(got, [value.astype(np.float16) for value in wanted])
    upper = z.view(np.uint32) & np.uint32(0xFFFF0000)  # a bfloat16 is the upper half of a float32
    out, _ = applied(name, (upper >> 16).astype(np.uint16), dtype="bfloat16")
    wide = (out.astype(np.uint32) << 16).view(np.float32)
    np.testing.assert_allclose(wide, applied(name, upper.view(np.float32))[0], rtol=2**-8, atol=0)


def test_no_activation_is_the_identity():
    z = np.array([-1.5, np.nan, 2.0], dtype=np.float32)
    out, slope = applied("", z)
    np.testing.assert_array_equal(out, z)
    np.testing.assert_array_equal(slope, 1)

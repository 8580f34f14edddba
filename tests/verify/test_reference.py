"""The ladder: float64 against double-double, that against rational numbers, those against the tests' own loops."""

from __future__ import annotations

from fractions import Fraction
from typing import Any

import numpy as np
import oracles
import pytest
from verify.calls import NAMES, Draw, call

from npdwconv.geometry import ConvGeometry, conv_geometry
from npdwconv.verify.bounds import PRECISIONS, arithmetic
from npdwconv.verify.check import bind
from npdwconv.verify.double import Double, lifted
from npdwconv.verify.operators import enclose
from npdwconv.verify.reference import RUNGS, Sum, Windows, mix, mix_weight, total

RATIONAL = (None, "relu", "relu6", "hardswish", "hardsigmoid")
WIDE, NARROW = 40, 10  # binary orders over which operands spread
GEOMETRIES = {
    "strided": conv_geometry((7, 6), (3, 2), (2, 1), (1, 2), ((1, 2), (0, 1))),
    "reflect": conv_geometry((5, 4), (3, 3), (1, 2), (1, 1), ((2, 1), (1, 1)), "reflect"),
    "circular": conv_geometry((4, 5), (2, 3), (1, 1), (2, 1), ((1, 2), (2, 0)), "circular"),
}


def fractions_of(value: Double) -> np.ndarray:
    return np.vectorize(lambda hi, lo: Fraction(hi) + Fraction(lo), otypes=[object])(value.hi, value.lo)


def windows(g: ConvGeometry, transposed: bool) -> dict[str, Any]:
    maps = Windows(g, transposed)
    image, out = ((2, 2, *g.out), (2, 4, *g.size)) if transposed else ((2, 2, *g.size), (2, 4, *g.out))
    taps = (4, *g.kernel)
    return {
        "forward": (maps.forward, image, taps),
        "input": (lambda z, w: maps.input(z, w, 2), out, taps),
        "weight": (lambda z, x: maps.weight(z, x, taps), out, image),
    }


MAPS = {f"{name} {kind}": entry for name, g in GEOMETRIES.items() for kind, entry in windows(g, False).items()}
MAPS |= {f"transposed {kind}": entry for kind, entry in windows(GEOMETRIES["strided"], True).items()}
MAPS |= {
    "mix": (mix, (2, 9, 3, 2), (4, 9)),
    "mix weight": (mix_weight, (2, 4, 3, 5), (2, 3, 3, 5)),
    "total": (total, (2, 4, 3, 5), (4,)),
}


def climb(name: str, rung: str, dtype: str, orders: int, seed: int) -> tuple[Sum, np.ndarray, np.ndarray]:
    """A map on a rung, the same in rational numbers, and the elements' sizes."""
    function, *shapes = MAPS[name]
    draw = Draw(seed, dtype, orders=orders)
    a, b = (lifted(draw.numbers(*shape)) for shape in shapes)
    if name == "total":
        b = lifted(np.ones(shapes[1]))
    size = function(np.abs(a.hi), np.abs(b.hi))
    terms = function((a.hi != 0) * 1.0, (b.hi != 0) * 1.0)
    exact = function(*(fractions_of(number) for number in (a, b)))
    return RUNGS[rung](function, a, b, terms, size), exact, size


@pytest.mark.parametrize("orders", [0, NARROW, WIDE])
@pytest.mark.parametrize("name", MAPS)
@pytest.mark.parametrize(("rung", "dtype", "least"), [("float64", "float32", 45), ("double-double", "float64", 70)])
def test_a_rung_is_as_near_as_it_says(name: str, rung: str, dtype: str, least: int, orders: int) -> None:
    found, exact, size = climb(name, rung, dtype, orders, seed=len(name))
    missed = np.abs(fractions_of(found.value) - exact)
    for gap, error in zip(missed.ravel(), found.error.ravel(), strict=True):
        assert gap <= Fraction(float(error))
    assert np.all(found.error <= 2.0**-least * size)


@pytest.mark.parametrize("name", MAPS)
def test_rational_numbers_are_rounded_once(name: str) -> None:
    found, exact, _ = climb(name, "fraction", "float64", WIDE, seed=1)
    for gap, value in zip((fractions_of(found.value) - exact).ravel(), exact.ravel(), strict=True):
        assert abs(gap) <= abs(value) / 2**104


def test_only_what_is_needed_is_computed() -> None:
    """Of numbers with few digits one product of slices is all; of full ones the double-double rung takes ten."""
    calls: list[int] = []

    def counted(a: np.ndarray, b: np.ndarray) -> np.ndarray:
        calls.append(1)
        return a * b

    ones = np.ones(4)
    for values in (ones * 3.0, np.pi * np.arange(1.0, 5.0)):
        number = lifted(values)
        RUNGS["double-double"](counted, number, number, ones, values * values)
    assert len(calls) <= 11


@pytest.mark.parametrize("activations", [(None,), RATIONAL], ids=["linear", "activated"])
@pytest.mark.parametrize("op", NAMES)
def test_operators_are_what_the_loops_say(op: str, activations: tuple[str | None, ...]) -> None:
    """Our stages, in rational numbers or double-double, against plain loops in rational numbers."""
    for seed in range(2):
        draw = Draw(seed, "float64", activations, orders=6 * seed, largest=4)
        operands, options = call(op, draw)
        case = bind(op, {}, (), {**operands, **options})
        wanted = oracles.expect(op, operands, options, Fraction)
        named = wanted if isinstance(wanted, dict) else None
        pairs = ("out", "next_state") if isinstance(wanted, tuple) else ("out",)
        named = named or dict(zip(pairs, wanted if isinstance(wanted, tuple) else (wanted,), strict=True))
        for rung in ("fraction", "double-double", "float64"):
            for name, e in enclose(case, arithmetic(PRECISIONS["float64"], np.dtype("float64"), rung)).items():
                exact, found = named[name].ravel(), fractions_of(e.value).ravel()
                for value, want, error in zip(found, exact, e.error.ravel(), strict=True):
                    allowed = Fraction(float(error)) * (1 if rung == "float64" or len(activations) > 1 else 2**-10)
                    assert abs(value - want) <= allowed, (op, seed, rung, name)


@pytest.mark.parametrize("rung", RUNGS)
def test_what_is_not_finite_is_as_float64_has_it(rung: str) -> None:
    x, weight = np.ones((1, 1, 6)), np.array([[2.0, 0.0]])
    x[0, 0, 1], x[0, 0, 4] = np.inf, np.nan
    function = Windows(conv_geometry((6,), (2,), (1,), (1,), ((0, 0),))).forward
    with np.errstate(all="ignore"):
        found = RUNGS[rung](function, lifted(x), lifted(weight), np.full((1, 1, 5), 2.0), np.full((1, 1, 5), 2.0))
    np.testing.assert_array_equal(found.value.hi, [[[np.nan, np.inf, 2.0, np.nan, np.nan]]])


@pytest.mark.parametrize("rung", ["double-double", "fraction"])
def test_partial_sums_may_overflow_beside_nan(rung: str) -> None:
    """What float64 would lose on the way is kept, where no infinity or NaN is read."""
    x = np.array([[[1e308, 1e308, -1e308, 0.0, np.nan]]])
    function = Windows(conv_geometry((5,), (3,), (1,), (1,), ((0, 0),))).forward
    terms = np.full((1, 1, 3), 3.0)
    with np.errstate(all="ignore"):
        found = RUNGS[rung](function, lifted(x), lifted(np.ones((1, 3))), terms, np.full((1, 1, 3), 1.5e308))
    np.testing.assert_array_equal(found.value.hi, [[[1e308, 0.0, np.nan]]])

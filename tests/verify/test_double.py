"""Double-double numbers against rational ones: transformations are without error, the rest within what it says."""

from __future__ import annotations

from fractions import Fraction
from itertools import islice

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from npdwconv.verify.double import Double, add, increased, lifted, minus, multiply, split, two_prod, two_sum

moderate = st.floats(-(2.0**400), 2.0**400, allow_subnormal=False).filter(lambda v: v == 0 or abs(v) > 2.0**-400)
numbers = st.floats(-(2.0**1000), 2.0**1000)


def one(value: float) -> np.ndarray:
    return np.array([value])


def exact(number: Double) -> Fraction:
    return Fraction(float(number.hi[0])) + Fraction(float(number.lo[0]))


def doubled(pair: tuple[float, float]) -> Double:
    return two_sum(one(pair[0]), one(pair[0] * pair[1]))


pairs = st.tuples(moderate, st.floats(-(2.0**-53), 2.0**-53)).map(doubled)


@given(numbers, numbers)
def test_a_sum_and_its_rest_are_exact(a: float, b: float) -> None:
    found = two_sum(one(a), one(b))
    assert found.hi[0] == a + b
    assert exact(found) == Fraction(a) + Fraction(b)


@given(moderate, moderate)
def test_a_product_and_its_rest_are_exact(a: float, b: float) -> None:
    found = two_prod(one(a), one(b))
    assert found.hi[0] == a * b
    assert exact(found) == Fraction(a) * Fraction(b)


@given(pairs, pairs)
def test_sums_and_products_have_twice_the_digits(a: Double, b: Double) -> None:
    size = abs(exact(a)) + abs(exact(b))
    assert abs(exact(add(a, b)) - (exact(a) + exact(b))) <= size / 2**104
    assert abs(exact(increased(a, b.hi)) - (exact(a) + Fraction(float(b.hi[0])))) <= size / 2**104
    product = exact(a) * exact(b)
    assert abs(exact(multiply(a, b)) - product) <= abs(product) / 2**102


@given(pairs, st.integers(-4, 4))
def test_the_difference_of_near_numbers(value: Double, ulps: int) -> None:
    near = value.hi + ulps * np.spacing(value.hi)
    wanted = Fraction(float(near[0])) - exact(value)
    assert abs(Fraction(float(minus(near, value)[0])) - wanted) <= abs(wanted) / 2**52


@given(st.lists(pairs, min_size=1, max_size=5), st.integers(4, 26))
def test_slices_are_narrow_and_add_up(drawn: list[Double], bits: int) -> None:
    number = Double(*(np.concatenate(parts) for parts in zip(*drawn, strict=True)))
    slices, exponent = split(number, bits)
    left = [exact(each) / Fraction(2) ** exponent for each in drawn]
    for place, part in enumerate(islice(slices, 4), start=1):
        digits = np.abs(part) * 2.0 ** (bits * place)
        assert np.all(digits == np.rint(digits))
        assert np.all(digits <= 2.0**bits)
        left = [rest - Fraction(float(cut)) for rest, cut in zip(left, part, strict=True)]
        assert all(abs(rest) <= Fraction(1, 2 ** (bits * place)) for rest in left)


def test_slices_end_where_nothing_is_left() -> None:
    slices, exponent = split(lifted(np.array([3.0, -0.25, np.nan, np.inf, 0.0])), 8)
    whole = sum(slices) * 2.0**exponent
    np.testing.assert_array_equal(whole, [3.0, -0.25, 0.0, 0.0, 0.0])


@pytest.mark.parametrize("operation", [add, multiply], ids=["add", "multiply"])
def test_what_is_not_finite_has_no_rest(operation) -> None:
    with np.errstate(all="ignore"):
        found = operation(lifted(np.array([np.inf, np.nan, -np.inf])), lifted(np.array([1.0, 1.0, 2.0])))
    np.testing.assert_array_equal(found.hi, [np.inf, np.nan, -np.inf])
    np.testing.assert_array_equal(found.lo, 0.0)

"""The bounds: no order of summation exceeds them, some come near, and nothing beyond them is right."""

from __future__ import annotations

from dataclasses import replace
from time import process_time

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from verify_calls import every_call, normal

import npdwconv
from npdwconv import verify
from npdwconv.verify import Case
from npdwconv.verify.check import needed

CALLS = [
    pytest.param(case, id=f"{case.op}-{layout}")
    for layout in ("channels_first", "channels_last")
    for case in every_call(layout, "silu")
]


def one_by_one(products: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    total = np.zeros(products.shape[1:], np.float32)
    for place in rng.permutation(len(products)):
        total = total + products[place].astype(np.float32)
    return total


def fused(products: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Each product added before it is rounded."""
    total = np.zeros(products.shape[1:], np.float32)
    for place in rng.permutation(len(products)):
        total = (total.astype(np.float64) + products[place]).astype(np.float32)
    return total


def in_blocks(products: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    order = rng.permutation(len(products))
    blocks = np.array_split(products[order], rng.integers(1, len(products) + 1))
    return one_by_one(np.stack([fused(block, rng) for block in blocks if len(block)]), rng)


def by_pairs(products: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    sums = list(products.astype(np.float32)[rng.permutation(len(products))])
    while len(sums) > 1:
        sums = [sums[i] + sums[i + 1] if i + 1 < len(sums) else sums[i] for i in range(0, len(sums), 2)]
    return sums[0]


@given(st.sampled_from([one_by_one, fused, in_blocks, by_pairs]), st.integers(1, 60), st.integers(0, 2**32 - 1))
def test_no_order_of_summation_exceeds_the_bound(order, terms, seed):
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((1, terms, 7), dtype=np.float32) * np.float32(2.0 ** rng.integers(-20, 20))
    weight = rng.standard_normal((3, terms), dtype=np.float32)
    products = np.moveaxis(weight.astype(np.float64)[:, :, None] * x[0].astype(np.float64), 1, 0)
    report = verify.check("pointwise_conv", order(products, rng)[None], x, weight, diagnose=False)
    assert report.ok, f"{report.worst_ratio}"


@pytest.mark.parametrize(("dtype", "terms"), [("float16", 10), ("bfloat16", 8)])
@pytest.mark.parametrize("seed", range(20))
def test_sums_in_16_bits_are_right_only_where_these_are_named(dtype, terms, seed):
    ml_dtypes, rng = pytest.importorskip("ml_dtypes"), np.random.default_rng(seed)
    narrow = ml_dtypes.bfloat16 if dtype == "bfloat16" else np.float16
    x, weight = rng.standard_normal((1, terms, 50)).astype(narrow), rng.standard_normal((3, terms)).astype(narrow)
    total = np.zeros((3, 50), narrow)
    for term in rng.permutation(terms):
        total = (total + weight[:, term, None] * x[0, term]).astype(narrow)
    within = verify.check("pointwise_conv", total[None], x, weight, compute=f"{dtype}_accumulation", diagnose=False)
    assert within.ok
    assert within.worst_ratio > 0.05
    assert not verify.check("pointwise_conv", total[None], x, weight, compute=dtype, diagnose=False).ok


@pytest.mark.parametrize("terms", [2, 9, 100, 4000])
def test_roundings_that_all_go_one_way_come_near_the_bound(terms):
    """1 and then halves of its last place, each of which is lost: an error of half a unit for every term."""
    x = np.full((1, terms + 1, 1), 2.0**-24, np.float32)
    x[0, 0] = 1
    report = verify.check("pointwise_conv", np.ones((1, 1, 1), np.float32), x, np.ones((1, terms + 1), np.float32))
    assert 0.6 < report.worst_ratio <= 1


@pytest.mark.parametrize("case", CALLS)
def test_beyond_its_bound_no_element_is_right(case):
    bounds = verify.error_bound(case)
    bounds = bounds if isinstance(bounds, dict) else {"out": bounds}
    for name in needed(case) & set(case.observed):
        away = np.sign(case.observed[name]) + (case.observed[name] == 0)
        # never less than a unit in the last place, or the sum would not move
        moved = case.observed[name] + away * np.maximum(4 * bounds[name], np.spacing(np.abs(case.observed[name])) * 4)
        report = verify.check(replace(case, observed={name: moved.astype(np.float32)}), diagnose=False)
        assert (report.bad, report.checked) == (moved.size, moved.size)


X, WEIGHT = normal(1, 2, 6, 6), normal(2, 1, 3, 3)


def test_infinities_and_nan_must_be_where_they_belong():
    x = X.copy()
    x[0, 0, 2, 2], x[0, 1, 0, 0] = np.inf, np.nan
    out = npdwconv.depthwise_conv2d(x, WEIGHT, padding=1)
    assert verify.check("depthwise_conv2d", out, x, WEIGHT, padding=1).ok
    for index, value in (
        ((0, 0, 2, 2), 1.0),
        ((0, 0, 2, 2), -out[0, 0, 2, 2]),
        ((0, 1, 0, 0), 0.0),
        ((0, 1, 5, 5), np.nan),
    ):
        wrong = out.copy()
        wrong[index] = value
        report = verify.check("depthwise_conv2d", wrong, x, WEIGHT, padding=1, diagnose=False)
        assert (report.bad, report.worst_index) == (1, index)


def test_a_partial_sum_may_overflow():
    x = np.array([[[3e38], [3e38], [-3e38]]], np.float32)
    for value in (3e38, np.inf, np.nan):
        out = np.full((1, 1, 1), value, np.float32)
        assert verify.check("pointwise_conv", out, x, np.ones((1, 3), np.float32)).ok


@pytest.mark.parametrize(("middle", "either"), [(1.0, True), (64.0, False)])
def test_beside_a_kink_a_derivative_may_be_that_of_either_side(middle, either):
    """1e8 + 1 − 1e8 is 0 in float32 if it is added from the left."""
    x, weight = np.array([[[1e8], [middle], [-1e8]]], np.float32), np.ones((1, 3), np.float32)
    for grad in (0.0, 1.0):
        observed = {"x": np.full((1, 3, 1), grad, np.float32)}
        report = verify.check(
            "pointwise_conv_backward", observed, np.ones((1, 1, 1), np.float32), x, weight, activation="relu"
        )
        assert report.ok == (either or grad == 1.0)


def test_a_float16_result_beyond_its_range_is_infinite():
    x, weight = np.full((1, 2, 1), 60000, np.float16), np.ones((1, 2), np.float16)
    assert verify.check("pointwise_conv", np.full((1, 1, 1), np.inf, np.float16), x, weight).ok
    assert not verify.check("pointwise_conv", np.full((1, 1, 1), 65504, np.float16), x, weight).ok


def test_results_flushed_to_zero_are_right():
    x, weight = np.full((1, 1, 1), 2.0**-100, np.float32), np.full((1, 1), 2.0**-30, np.float32)
    assert verify.check("pointwise_conv", np.zeros((1, 1, 1), np.float32), x, weight).ok


def test_terms_are_those_that_the_element_has():
    """Zero padding has no terms, a copied border has; a zero weight has none either."""
    ones = np.ones((1, 1, 5), np.float32)
    kernel = np.ones((1, 1, 3), np.float32)

    def counted(**options):
        return np.round(verify.error_bound("depthwise_conv1d", ones, kernel, padding=1, **options)[0, 0] * 2**24, 3)

    np.testing.assert_array_equal(counted(), [4, 9, 9, 9, 4])
    np.testing.assert_array_equal(counted(padding_mode="replicate"), [9] * 5)
    kernel[0, 0, 0] = 0
    np.testing.assert_array_equal(counted(), [4, 4, 4, 4, 1])


def test_wider_operands_are_rounded_to_the_arithmetic():
    x, weight = normal(1, 30, 50, dtype=np.float64), normal(20, 30, dtype=np.float64)
    out = npdwconv.pointwise_conv(x.astype(np.float32), weight.astype(np.float32))
    assert not verify.check("pointwise_conv", out, x, weight, diagnose=False).ok
    assert verify.check("pointwise_conv", out, x, weight, compute="float32").ok


@pytest.mark.parametrize("shape", [(0, 2, 5, 5), (2, 0, 5, 5)])
def test_nothing_is_right(shape):
    x, weight = np.zeros(shape, np.float32), np.zeros((shape[1], 1, 3, 3), np.float32)
    report = verify.check("depthwise_conv2d", npdwconv.depthwise_conv2d(x, weight), x, weight)
    assert (report.ok, report.checked, report.worst_ratio) == (True, 0, 0)
    assert "right" in str(report)


def test_a_layer_is_checked_within_a_second():
    x, weight = normal(1, 128, 56, 56), normal(128, 1, 3, 3)
    case = Case("depthwise_conv2d", {"x": x, "weight": weight}, {"padding": 1})
    out = npdwconv.depthwise_conv2d(x, weight, padding=1)
    whole = replace(case, observed={"out": out})
    assert verify.check(whole).blind_to == ()  # what is imported on the way is not part of it
    start = process_time()
    assert verify.check(whole).blind_to == ()
    assert process_time() - start < 1

"""The report: numbers, the page's sections, and that an element's products add up to it."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
from verify_calls import every_call, normal, observed

import npdwconv
from npdwconv import verify
from npdwconv.cases import Case
from npdwconv.verify.places import axis_names, period, places
from npdwconv.verify.terms import terms

CALLS = [
    pytest.param(case, id=f"{case.op}-{layout}-{activation}")
    for layout in ("channels_first", "channels_last")
    for activation in (None, "hardswish")
    for case in every_call(layout, activation)
]


@pytest.mark.parametrize("case", CALLS)
def test_products_of_an_element_add_up_to_it(case):
    """Before the activation: the factors come from adjoints, the sum is the operator's own."""
    linear = case if case.op.endswith("_backward") else replace(case, options=case.options | {"activation": None})
    if linear.op.endswith("_grad"):
        linear = case
    for name, result in observed(linear).observed.items():
        if name == "next_state":
            continue
        index = tuple(extent // 2 for extent in result.shape)
        each = terms(case, name, index)
        missing = _carried(case, name, index)
        assert float(each.products.sum()) + each.bias + missing == pytest.approx(
            float(result[index]), rel=2e-5, abs=2e-5
        )


def _carried(case: Case, name: str, index: tuple[int, ...]) -> float:
    """What a causal output sums from its state, which is not among the products of x."""
    if case.op != "causal_depthwise_conv1d":
        return 0.0
    channel, place = (index[2], index[1]) if case.options["layout"] == "channels_last" else index[1:]
    state, taps = case.operands["state"][index[0], channel], case.operands["weight"][channel, 0]
    return float(sum(taps[s] * state[place + s] for s in range(len(taps)) if place + s < len(state)))


def test_fields_of_a_right_report():
    case = every_call()[0]
    report = verify.check(case)
    assert (report.ok, report.bad, report.compute, report.worst_array) == (True, 0, "float32", "out")
    assert report.checked == case.observed["out"].size
    assert 0 < report.worst_ratio <= 1
    assert report.diagnoses == ()
    assert "right: all" in str(report)


def planted(index: tuple[int, ...], amount: float) -> verify.Report:
    x, weight, bias = normal(1, 4, 10, 9), normal(4, 1, 3, 3), normal(4)
    out = npdwconv.depthwise_conv2d(x, weight, bias, padding=1)
    out[index] += amount
    return verify.check("depthwise_conv2d", out, x, weight, bias, padding=1)


def test_the_worst_element_and_its_receptive_field_are_shown():
    report = planted((0, 2, 5, 4), 0.5)
    text = str(report)
    assert (report.bad, report.worst_array, report.worst_index) == (1, "out", (0, 2, 5, 4))
    assert "worst element: out[0, 2, 5, 4]" in text
    assert "9 products of x[0, 2, 4:7, 3:6]" in text
    assert "plus the bias" in text
    assert "channel: 2 of 0 … 3" in text
    assert "WRONG: 1 of 360" in text


def test_at_a_corner_only_what_is_read_is_shown():
    assert "4 products of x[0, 0, 0:2, 0:2]" in str(planted((0, 0, 0, 0), 1.0))


def test_nan_is_the_worst_of_all_and_survives_json():
    report = planted((0, 1, 3, 3), np.nan)
    assert (report.ok, report.worst_ratio, report.worst_index) == (False, np.inf, (0, 1, 3, 3))
    found = json.loads(json.dumps(report.to_dict(), allow_nan=False))
    assert found["worst_ratio"] is None
    assert "nan" in str(report)


def test_json_has_the_documented_fields():
    report = planted((0, 1, 3, 3), 1.0)
    found = report.to_dict()
    documented = {"schema", "name", "op", "ok", "compute", "norm", "checked", "bad", "worst_ratio", "worst_array"}
    assert set(found) == documented | {"worst_index", "diagnoses", "blind_to"}
    assert found["worst_index"] == [0, 1, 3, 3]


def test_assert_conv_fails_with_the_page():
    x, weight = normal(1, 3, 4, 4), normal(2, 3)
    out = npdwconv.pointwise_conv(x, weight)
    verify.assert_conv("pointwise_conv", out, x, weight)
    with pytest.raises(AssertionError, match="pointwise_conv is WRONG"):
        verify.assert_conv("pointwise_conv", out * 1.01, x, weight)


def test_several_arithmetics_are_tried_and_the_best_is_reported():
    x, weight = normal(1, 2, 8, 8), normal(2, 1, 3, 3)
    kept = (x.view(np.uint32) & np.uint32(0xFFFFE000)).view(np.float32)  # tf32, truncated
    out = npdwconv.depthwise_conv2d(kept, weight)
    assert not verify.check("depthwise_conv2d", out, x, weight).ok
    report = verify.check("depthwise_conv2d", out, x, weight, compute=["float32", "tf32"])
    assert (report.ok, report.compute) == (True, "tf32")


def test_norm_max_forgives_what_is_small_beside_the_largest():
    x, weight = np.ones((1, 1, 1, 2), np.float32), np.ones((1, 1, 1, 1), np.float32)
    x[..., 1] = 1e-6
    out = npdwconv.depthwise_conv2d(x, weight)
    out[..., 1] += np.float32(3e-8)
    assert not verify.check("depthwise_conv2d", out, x, weight).ok
    assert verify.check("depthwise_conv2d", out, x, weight, norm="max").ok


def test_wrong_calls_say_what_was_needed():
    x, weight = normal(1, 2, 8, 8), normal(2, 1, 3, 3)
    out = npdwconv.depthwise_conv2d(x, weight)
    with pytest.raises(npdwconv.ShapeError, match=r"observed out has shape \(1, 2, 6, 5\); needed \(1, 2, 6, 6\)"):
        verify.check("depthwise_conv2d", out[..., :5], x, weight)
    with pytest.raises(npdwconv.OptionError, match="did you mean 'depthwise_conv2d'"):
        verify.check("depthwise_conv_2d", out, x, weight)
    with pytest.raises(npdwconv.OptionError, match="compute"):
        verify.check("depthwise_conv2d", out, x, weight, compute="float8")
    with pytest.raises(npdwconv.DTypeError, match="observed out"):
        verify.check("depthwise_conv2d", out.astype(np.int32), x, weight)
    with pytest.raises(npdwconv.OptionError, match="needed gradients"):
        verify.check("depthwise_conv2d_backward", out, out, x, weight)
    with pytest.raises(TypeError, match="strides"):
        verify.check("depthwise_conv2d", out, x, weight, strides=2)
    with pytest.raises(npdwconv.OptionError, match="nothing was observed"):
        verify.check("depthwise_conv2d", {}, x, weight)


NAMES = axis_names("out", (1, 4, 16, 12), "channels_first")


@pytest.mark.parametrize(
    ("where", "said"),
    [
        ((..., slice(None, None, 4), slice(None)), "row: 0 modulo 4 (4 of 16)"),
        ((slice(None), 2), "channel: 2 of 0 … 3"),
        ((..., 11), "column: 11 of 0 … 11"),
        ((...,), "everywhere"),
        ((..., slice(3, 14), slice(None)), "row: 3 … 13 of 0 … 15"),
    ],
)
def test_places(where, said):
    bad = np.zeros((1, 4, 16, 12), dtype=bool)
    bad[where] = True
    assert said in places(bad, NAMES)


def test_a_wrong_border_is_told_by_its_distance():
    bad = np.ones((1, 1, 12, 12), dtype=bool)
    bad[..., 1:-1, 1:-1] = False
    assert places(bad, NAMES) == ["bad by distance from the border — 0: 100 %, 1: 0 %, 2: 0 %, 3 and more: 0 %"]


def test_period_needs_every_index_of_its_residues():
    assert period(np.array([1, 5, 9]), 12) == (4, [1])
    assert period(np.array([1, 5]), 12) is None

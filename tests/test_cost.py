"""Parameters, multiply-adds and bytes: hand-computed, by the papers' formula, and of published networks."""

from __future__ import annotations

from fractions import Fraction

import pytest

from npdwconv.cost import cost
from npdwconv.errors import OptionError, ShapeError


def test_by_hand():
    found = cost("depthwise", 8, None, 3, (5, 7), stride=2, padding=1)
    assert (found.out_channels, found.output_size) == (8, (3, 4))
    assert (found.parameters, found.multiply_adds) == (8 * 9 + 8, 8 * 9 * 12)
    assert (found.bytes_read, found.bytes_written) == (4 * (8 * 35 + 80), 4 * 8 * 12)
    assert found.arithmetic_intensity == 2 * 864 / (1440 + 384)


@pytest.mark.parametrize(
    ("kind", "weights"),
    [("standard", 6 * 10 * 15), ("depthwise", 6 * 15), ("pointwise", 6 * 10), ("separable", 6 * 15 + 6 * 10)],
)
def test_parameters_by_formula(kind, weights):
    kernel = 1 if kind == "pointwise" else (3, 5)
    found = cost(kind, 6, None if kind == "depthwise" else 10, kernel, (8, 8), bias=False)
    assert found.parameters == weights
    assert found.multiply_adds == weights * found.output_size[0] * found.output_size[1]


@pytest.mark.parametrize(("outputs", "kernel"), [(64, (3, 3)), (128, (5, 3)), (7, (1, 9))])
def test_share_of_standard_is_1_over_k_and_1_over_rs(outputs, kernel):
    few, many = (cost(kind, 32, outputs, kernel, (20, 20), bias=False) for kind in ("separable", "standard"))
    assert Fraction(few.multiply_adds, many.multiply_adds) == Fraction(1, outputs) + Fraction(1, kernel[0] * kernel[1])


def test_multiplier_and_ranks():
    assert cost("depthwise", 4, 8, 3, 10, depth_multiplier=2, bias=False).multiply_adds == 8 * 3 * 8
    assert cost("depthwise", 4, None, (1, 3, 3), (2, 5, 5), bias=False).multiply_adds == 4 * 9 * 2 * 9
    assert cost("separable", 4, 6, 3, 10, depth_multiplier=2, bias=False).parameters == 8 * 3 + 8 * 6


def test_mobilenet_v1_is_as_published():
    """4.2 million parameters, 569 million multiply-adds (Howard et al., arXiv:1704.04861, table 4)."""
    blocks = [(32, 64, 1), (64, 128, 2), (128, 128, 1), (128, 256, 2), (256, 256, 1), (256, 512, 2)]
    blocks += [(512, 512, 1)] * 5 + [(512, 1024, 2), (1024, 1024, 1)]
    parts = [cost("standard", 3, 32, 3, (224, 224), stride=2, padding="same", bias=False)]
    size = parts[0].output_size
    for channels, outputs, stride in blocks:
        parts.append(cost("separable", channels, outputs, 3, size, stride=stride, padding="same", bias=False))
        size = parts[-1].output_size
    parts.append(cost("pointwise", 1024, 1000, 1, 1))
    norms = 2 * (32 + sum(channels + outputs for channels, outputs, _ in blocks))
    assert size == (7, 7)
    assert round((sum(part.parameters for part in parts) + norms) / 1e6, 1) == 4.2
    assert round(sum(part.multiply_adds for part in parts) / 1e6) == 569


def test_efficientnet_lite0_is_as_published():
    """4.652 million parameters, 385 million multiply-adds (README of d-li14/efficientnet-lite.pytorch).

    TensorFlow's own README has 4.7 and 407 million.
    """
    stages = [(1, 3, 1, 1, 16), (2, 3, 2, 6, 24), (2, 5, 2, 6, 40), (3, 3, 2, 6, 80), (3, 5, 1, 6, 112)]
    stages += [(4, 5, 2, 6, 192), (1, 3, 1, 6, 320)]
    parts = [cost("standard", 3, 32, 3, (224, 224), stride=2, padding="same", bias=False)]
    for repeats, kernel, first_stride, expansion, outputs in stages:
        for stride in [first_stride, *[1] * (repeats - 1)]:
            channels, size = parts[-1].out_channels, parts[-1].output_size
            if expansion > 1:
                parts.append(cost("pointwise", channels, channels * expansion, 1, size, bias=False))
            middle = channels * expansion
            parts.append(cost("depthwise", middle, None, kernel, size, stride=stride, padding="same", bias=False))
            parts.append(cost("pointwise", middle, outputs, 1, parts[-1].output_size, bias=False))
    parts.append(cost("pointwise", 320, 1280, 1, (7, 7), bias=False))
    norms = 2 * sum(part.out_channels for part in parts)
    parts.append(cost("pointwise", 1280, 1000, 1, 1))
    assert parts[-2].output_size == (7, 7)
    assert sum(part.parameters for part in parts) + norms == 4_652_008
    assert round(sum(part.multiply_adds for part in parts) / 1e6) == 385


@pytest.mark.parametrize(
    ("arguments", "options", "error", "words"),
    [
        (("dense", 3, 8, 3, 9), {}, OptionError, ("'dense'", "'standard'")),
        (("standard", 3, None, 3, 9), {}, OptionError, ("out_channels is None", "needed an int")),
        (("depthwise", 3, 8, 3, 9), {}, OptionError, ("out_channels is 8", "3·1 = 3")),
        (("pointwise", 3, 8, 3, 9), {}, OptionError, ("kernel_size is (3,)", "'standard'")),
        (("standard", 3, 8, 3, 9), {"depth_multiplier": 2}, OptionError, ("depth_multiplier is 2", "'separable'")),
        (("standard", 3, 8, 3, (9, 9, 9, 9)), {}, ShapeError, ("4 spatial axes", "one to three")),
        (("standard", 3, 8, 11, 9), {}, ShapeError, ("extent 11", "padded input has 9")),
        (("standard", 3, 8, 3, 9), {"bias": 1}, OptionError, ("bias is 1", "True or False")),
        (("standard", 2.0, 8, 3, 9), {}, OptionError, ("in_channels is 2.0", "int")),
    ],
    ids=lambda value: value if isinstance(value, str) else None,
)
def test_wrong_calls(arguments, options, error, words):
    with pytest.raises(error) as caught:
        cost(*arguments, **options)
    assert [word for word in words if word not in str(caught.value)] == []

"""Warming up: what is named is compiled and kept on disk, and nothing is compiled for the same call afterwards."""

from __future__ import annotations

import json
from importlib import import_module

import pytest
from kernels.children import run

from npdwconv import dispatch
from npdwconv.errors import OptionError, ShapeError
from npdwconv.kernels.watchers import Compiling, tell
from npdwconv.warmup import OPERATORS, Warmed, reporting, warmup

WARM = """
    import json
    from npdwconv.warmup import warmup
    print(json.dumps([made.compiled for made in warmup({calls})]))
"""


def compiled(calls: str, **variables) -> list[int]:
    found: list[int] = json.loads(run(WARM.format(calls=calls), **variables))
    return found


def test_every_kind_and_its_backward(tmp_path):
    shapes = {"causal": "2x17x9", "pointwise": "2x17x5x6:o9:relu", "separable": "2x17x5x6:o9:k5:s2:p1:silu"}
    calls = [f"{kind}:{shapes.get(kind, '2x17x5x6:nobias')}" for kind in OPERATORS]
    arguments = ", ".join(map(repr, calls)) + ", layout='channels_last', backward=True"
    first = compiled(arguments, NUMBA_CACHE_DIR=tmp_path)
    assert first[0] > 0
    assert sum(first[2:4]) > 0
    assert compiled(arguments, NUMBA_CACHE_DIR=tmp_path) == [0] * len(calls)


def test_the_call_that_follows_compiles_nothing(tmp_path):
    compiled("'depthwise:2x5x6x7:k5x3:s2:d1x2:psame:m2:gelu'", NUMBA_CACHE_DIR=tmp_path)
    code = """
        import numpy as np
        import npdwconv
        from npdwconv.kernels.watchers import watching
        news = []
        x, weight = np.ones((2, 5, 6, 7), "f4"), np.ones((10, 1, 5, 3), "f4")
        options = dict(stride=2, dilation=(1, 2), padding="same", activation="gelu")
        with watching(news.append):
            npdwconv.depthwise_conv2d(x, weight, weight[:, 0, 0, 0], backend="numba", **options)
        print(news)
    """
    assert run(code, NUMBA_CACHE_DIR=tmp_path) == "[]"


def test_results_say_what_was_made():
    (made,) = warmup("pointwise:1x3x4x4")
    assert isinstance(made, Warmed)
    assert made.call == "pointwise:1x3x4x4"
    assert made.seconds > 0


@pytest.mark.parametrize(
    ("call", "said"),
    [
        ("", "needed a model"),
        ("depthwise", "needed a model"),
        ("convolution:1x3x4x4", "needed a model"),
        ("depthwise:3", "at least 3"),
        ("depthwise:1x3xa", "needed numbers"),
        ("depthwise:1x3x4x4:q", "with the part 'q'"),
        ("depthwise:1x3x4x4:k", "needed numbers"),
        ("depthwise:1x3x4x4:relu7", "or an activation"),
    ],
)
def test_calls_of_another_form(call, said):
    with pytest.raises(OptionError, match=said):
        warmup(call)


def test_options_of_another_form():
    with pytest.raises(OptionError, match="layout"):
        warmup("pointwise:1x3x4x4", layout="NCHW")
    with pytest.raises(OptionError, match="dtype"):
        warmup("pointwise:1x3x4x4", dtype="int8")
    with pytest.raises((OptionError, ShapeError)):
        warmup("depthwise:1x3x4x4:k9:p0")


def test_nothing_is_run_when_a_later_call_is_wrong(monkeypatch):
    monkeypatch.setattr(import_module("npdwconv.warmup"), "_made", lambda *_: pytest.fail("made"))
    with pytest.raises(OptionError):
        warmup("pointwise:1x3x4x4", "depthwise")


def test_without_numba(monkeypatch):
    monkeypatch.setattr(dispatch, "unusable", lambda name: "no")
    with pytest.raises(dispatch.BackendUnavailableError):
        warmup("pointwise:1x3x4x4")


def test_compiling_is_reported_when_it_takes_long():
    said: list[str] = []
    with reporting(said.append):
        for seconds in (0.6, 0.6, 0.1):
            tell(Compiling("kernel.name"))
            tell(Compiling("kernel.name", seconds))
    assert said == ["compiling kernels for this processor, once: 2 so far, now kernel.name", ""]
    tell(Compiling("kernel.name"))
    assert len(said) == 2


def test_little_compiling_is_not_reported():
    said: list[str] = []
    with reporting(said.append):
        tell(Compiling("kernel.name"))
        tell(Compiling("kernel.name", 0.5))
    assert said == []

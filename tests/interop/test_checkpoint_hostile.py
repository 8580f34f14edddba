"""Weights files that lie or attack: each ends in CheckpointError, having run nothing and read nothing out of bounds."""

from __future__ import annotations

import contextlib
import copyreg
import os
import pickle
import random
import struct
import sys
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from checkpoint_files import (
    LEGACY,
    MAGIC,
    ORDERED_DICT,
    REBUILD,
    ZIP,
    Blob,
    Built,
    Call,
    Format,
    Name,
    Opcodes,
    Persistent,
    encode,
    pickled,
    rebuilt,
    rebuilt_v3,
    write_legacy,
    write_zip,
)

from npdwconv.errors import CheckpointError
from npdwconv.interop.checkpoint import load

FORMATS = pytest.mark.parametrize("form", [pytest.param(ZIP, id="zip"), pytest.param(LEGACY, id="legacy")])
FLOAT = Name("torch", "FloatStorage")
SET, COMPLEX = Name("builtins", "set"), Name("builtins", "complex")
TWO = {"0": Blob(2, struct.pack("<2f", 4, 5))}


def op(*parts: Any) -> Opcodes:
    """Raw opcodes among encoded values."""
    return Opcodes(b"".join(part if isinstance(part, bytes) else encode(part) for part in parts))


def refused(path: Path, match: str, **options: Any) -> None:
    """Loading says so, and names the file first."""
    with pytest.raises(CheckpointError, match=match) as info:
        load(path, **options)
    assert str(info.value).startswith(str(path))
    assert len(str(info.value)) < 2000


class Attack:
    """What `pickle.load` would run."""

    def __init__(self, *call: Any) -> None:
        self.call = call

    def __reduce__(self) -> Any:
        return self.call[0], self.call[1:]


@FORMATS
@pytest.mark.parametrize("protocol", [2, 4])
def test_code_is_named_and_not_run(tmp_path: Path, form: Format, protocol: int) -> None:
    trace = tmp_path / "trace"
    attacks = {
        rf"asks for '{os.name}.mkdir'": Attack(os.mkdir, str(trace)),
        r"asks for '(builtins|__builtin__).eval'": Attack(eval, f"open({str(trace)!r}, 'w')"),
        r"asks for '(builtins|__builtin__).getattr'": Attack(getattr, "text", "upper"),
    }
    for match, attack in attacks.items():
        refused(form.write(tmp_path / "a", pickle.dumps({"w": [attack]}, protocol), {}), match)
    assert not trace.exists()


def test_code_in_each_pickle_of_the_legacy_format(tmp_path: Path) -> None:
    attack = pickle.dumps(Attack(os.mkdir, str(tmp_path / "trace")), 2)
    heads = [pickled(MAGIC), pickled(1001), pickled({}), pickled({})]
    for count in range(5):
        (tmp_path / "a").write_bytes(b"".join(heads[:count]) + attack)
        refused(tmp_path / "a", "mkdir")
    assert not (tmp_path / "trace").exists()


GLOBALS = {
    "os.system": Name("os", "system"),
    "numpy.core.multiarray._reconstruct": Name("numpy.core.multiarray", "_reconstruct"),
    "torch.storage._load_from_bytes": Name("torch.storage", "_load_from_bytes"),
    "torch._utils._rebuild_qtensor": Name("torch._utils", "_rebuild_qtensor"),
    "torch.QInt8Storage": Name("torch", "QInt8Storage"),
    "torch._utils._rebuild_tensor_v2.__globals__": op("torch._utils", "_rebuild_tensor_v2.__globals__", b"\x93"),
    "collections.OrderedDict.__class__": op("collections", "OrderedDict.__class__", b"\x93"),
    "torch._utils._rebuild_tensor_v2.__call__.__globals__": Name(
        "torch._utils", "_rebuild_tensor_v2.__call__.__globals__"
    ),
    "npdwconv.interop._globals.GLOBALS": Name("npdwconv.interop._globals", "GLOBALS"),
    ".": op("", "", b"\x93"),
}


@FORMATS
@pytest.mark.parametrize("name", GLOBALS)
def test_unknown_globals_are_named_even_if_never_called(tmp_path: Path, form: Format, name: str) -> None:
    refused(form.write(tmp_path / "a", [GLOBALS[name]], {}), f"asks for '{name}'")


OPCODES = {
    "EXT1": op(b"\x82\xf0"),
    "EXT2": op(b"\x83\xf0\x00"),
    "EXT4": op(b"\x84\xf0\x00\x00\x00"),
    "INST 'os system'": op(b"(ios\nsystem\n"),
    "OBJ": op(b"(", ORDERED_DICT, b"o"),
    "NEWOBJ": op(ORDERED_DICT, (), b"\x81"),
    "NEWOBJ_EX": op(ORDERED_DICT, (), {}, b"\x92"),
    "PERSID 'storage'": op(b"Pstorage\n"),
    "NEXT_BUFFER": op(b"\x97"),
    "DUP": op(b"N2"),
    "STRING": op(b"S'\\d'\n"),
}


@FORMATS
@pytest.mark.parametrize("name", OPCODES)
def test_opcodes_that_no_checkpoint_needs(
    tmp_path: Path, form: Format, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    # An extension that some other unpickler has already resolved: that cache bypasses `find_class`.
    cache = getattr(copyreg, "_extension_cache", {})
    monkeypatch.setitem(cache, 0xF0, os.system)
    match = "damaged: invalid escape|STRING" if name == "STRING" else f"opcode {name}, which no tensor"
    refused(form.write(tmp_path / "a", [OPCODES[name]], {}), match)


CALLS = {
    "a str": Call("text", ()),
    "a tensor": Call(rebuilt(Persistent(("storage", FLOAT, "0", "cpu", 2)), 0, (), ()), ()),
    "a storage class": Call(FLOAT, (2,)),
    "a dict": Call({}, ()),
    "no tuple": Call(ORDERED_DICT, []),
    "too few": Call(REBUILD, (1, 2)),
    "no pairs": Call(ORDERED_DICT, ([1, 2],)),
    "text for pairs": Call(ORDERED_DICT, ("ab",)),
    "a set of lists": Call(SET, ([[]],)),
    "a set of text": Call(SET, ("ab",)),
    "an enormous bytearray": Call(Name("builtins", "bytearray"), (2**40,)),
    "enormous bytes": Call(Name("builtins", "bytes"), (2**40,)),
    "an encoding with a codec": Call(Name("_codecs", "encode"), ("text", "zlib")),
    "text that is no latin1": Call(Name("_codecs", "encode"), ("\u0141", "latin1")),
    "complex of an enormous int": Call(COMPLEX, (10**400, 0)),
    "a device of anything": Call(Name("torch", "device"), ([], 1)),
    "the class Tensor": Call(Name("torch", "Tensor"), (3,)),
    "a parameter of anything": Call(Name("torch._utils", "_rebuild_parameter"), ([], True, None)),
    "a subclass of anything": Call(
        Name("torch._tensor", "_rebuild_from_type_v2"), (ORDERED_DICT, Name("torch", "Tensor"), (), {})
    ),
    "a class of anything": Call(
        Name("torch._tensor", "_rebuild_from_type_v2"),
        (REBUILD, ORDERED_DICT, (Persistent(("storage", FLOAT, "0", "cpu", 2)), 0, (), (), False, None), {}),
    ),
    "a dtype of anything": Call(
        Name("torch._utils", "_rebuild_tensor_v3"),
        (Persistent(("storage", FLOAT, "0", "cpu", 2)), 0, (), (), False, None, 7),
    ),
}


@pytest.mark.parametrize("name", CALLS)
def test_calls_of_the_wrong_kind(tmp_path: Path, name: str) -> None:
    refused(write_zip(tmp_path / "a", [CALLS[name]], TWO), "the pickle calls a|unfit arguments|as a key")


STATES = {
    "tensor": rebuilt(Persistent(("storage", FLOAT, "0", "cpu", 2)), 0, (2,), (1,)),
    "storage": Persistent(("storage", FLOAT, "0", "cpu", 2)),
    "function": REBUILD,
    "class": ORDERED_DICT,
    "storage class": FLOAT,
    "list": [],
    "tuple": (),
    "set": op(b"\x8f"),
    "text": "text",
}


@pytest.mark.parametrize("state", [{"nbytes": 2**40}, (None, {"__setstate__": 1}), (2**40,)])
@pytest.mark.parametrize("name", STATES)
def test_states_are_set_on_nothing(tmp_path: Path, name: str, state: Any) -> None:
    refused(write_zip(tmp_path / "a", [Built(STATES[name], state)], TWO), "fills a .* as if it were a dict")
    assert load(write_zip(tmp_path / "b", [STATES["tensor"]], TWO))[0].tolist() == [4.0, 5.0]


STACKS = {
    "append-to-tensor": (op(STATES["tensor"], 1, b"a"), "fills a Tensor as if it were a list"),
    "append-to-dict": (op({}, 1, b"a"), "fills a dict"),
    "setitem-on-list": (op([], 1, 2, b"s"), "fills a list"),
    "setitem-on-global": (op(REBUILD, "make", 2, b"s"), "fills a Global"),
    "additems-on-list": (op([], b"(", 1, b"\x90"), "fills a list as if it were a set"),
    "odd-items": (op({}, b"(", 1, b"u"), "a key without a value"),
    "underflow": (op(b"\x87"), "takes more from its stack"),
    "pops-its-group": (op(1, 2, b"(\x86"), "takes more from its stack"),
    "no-mark": (op(b"t"), "takes a group that it did not begin"),
    "memo-of-nothing": (op(b"h\x07"), "has not put into its memo"),
    "memo-from-nothing": (op(b"q\x07"), "has not put on its stack"),
    "list-as-key": (op({}, [], 1, b"s"), "a list as a key"),
    "tensor-as-key": (op({}, STATES["tensor"], 1, b"s"), "a Tensor as a key"),
    "list-in-frozenset": (op(b"(", [], b"\x91"), "a list as a key"),
    "deep-key": (op({}, 1, b"\x85" * 200_000, 1, b"s"), "a tuple as a key"),
    "long-key": (op({}, tuple(range(65)), 1, b"s"), "a tuple as a key"),
    "name-of-no-text": (op(1, 2, b"\x93"), "whose name is no string"),
    "deep-name": (op([], b"\x85" * 200_000, "x", b"\x93"), "whose name is no string"),
    "bare-function": (REBUILD, "a Global stands where a value"),
    "bare-storage-class": (FLOAT, "a StorageType stands where a value"),
    "unknown-opcode": (op(b"\xff"), "damaged: .*unknown"),
    "string-longer-than-file": (op(b"X\xff\xff\xff\x7fabc"), "damaged: expected 2147483647 bytes"),
    "string-longer-than-memory": (op(b"\x8e", struct.pack("<Q", 2**62), b"abc"), "damaged|longer than memory"),
    "bad-utf8": (op(b"X\x02\x00\x00\x00\xff\xff"), "damaged"),
}


@FORMATS
@pytest.mark.parametrize("name", STACKS)
def test_machine_abuse(tmp_path: Path, form: Format, name: str) -> None:
    code, match = STACKS[name]
    refused(form.write(tmp_path / "a", [code], {} if "bare" in name else TWO), match)


def test_enormous_memo_slot_costs_nothing(tmp_path: Path) -> None:
    path = write_zip(tmp_path / "a", op(1, b"r\xff\xff\xff\xff", b"0"), {})
    refused(path, "opcode POP")
    assert load(write_zip(path, [op(1, b"r\xff\xff\xff\xff"), op(b"j\xff\xff\xff\xff")], {})) == [1, 1]


@FORMATS
@pytest.mark.parametrize("depth", [150, 200_000])
def test_deep_nesting(tmp_path: Path, form: Format, depth: int) -> None:
    refused(form.write(tmp_path / "a", op([], b"\x85" * depth), {}), "nested more than 100 deep")


def test_a_list_in_itself(tmp_path: Path) -> None:
    loop: list[Any] = []
    loop.append(loop)
    refused(write_zip(tmp_path / "a", pickle.dumps(loop, 2), {}), "nested more than 100 deep, or in themselves")


def test_a_list_twice_in_a_list_twice_in_a_list(tmp_path: Path) -> None:
    laughs: Any = ["ha"]
    for _ in range(90):
        laughs = [laughs, laughs]
    got = load(write_zip(tmp_path / "a", pickle.dumps(laughs, 2), {}))
    for _ in range(90):
        assert got[0] is got[1]
        got = got[0]
    assert got == ["ha"]


def test_one_value_copied_a_thousand_times(tmp_path: Path) -> None:
    again = op(ORDERED_DICT, b"h\x00\x85R")
    numbers = dict.fromkeys(range(5000))
    value = [op(numbers, b"q\x00"), *[again] * 1000]
    refused(write_zip(tmp_path / "a", value, {}), "copies the same values over and over")


PIDS = {
    "text": "storage",
    "empty": (),
    "other-kind": ("module", FLOAT, "0", "cpu", 2),
    "too-short": ("storage", FLOAT, "0", "cpu"),
    "too-long": ("storage", FLOAT, "0", "cpu", 2, None, None),
    "type-is-text": ("storage", "FloatStorage", "0", "cpu", 2),
    "type-is-function": ("storage", REBUILD, "0", "cpu", 2),
    "key-is-number": ("storage", FLOAT, 0, "cpu", 2),
    "key-is-list": ("storage", FLOAT, [], "cpu", 2),
    "numel-negative": ("storage", FLOAT, "0", "cpu", -1),
    "numel-float": ("storage", FLOAT, "0", "cpu", 2.0),
    "numel-true": ("storage", FLOAT, "0", "cpu", True),
    "numel-enormous": ("storage", FLOAT, "0", "cpu", 10**1000),
}


@FORMATS
@pytest.mark.parametrize("name", PIDS)
def test_persistent_ids(tmp_path: Path, form: Format, name: str) -> None:
    value = [rebuilt(Persistent(PIDS[name]), 0, (2,), (1,))]
    refused(form.write(tmp_path / "a", value, TWO), "refers to|number of elements")


@pytest.mark.parametrize("view", ["text", (), ("1", 0), ("1", -1, 1), ("1", 0, 3), ("1", 2, 1), ("1", 2**62, 2**62)])
def test_views_of_storages(tmp_path: Path, view: Any) -> None:
    value = [rebuilt(Persistent(("storage", FLOAT, "0", "cpu", 2, view)), 0, (), ())]
    refused(write_legacy(tmp_path / "a", value, TWO), "view")


def test_tensor_beyond_its_view_of_a_storage(tmp_path: Path) -> None:
    value = [rebuilt(Persistent(("storage", FLOAT, "0", "cpu", 2, ("1", 0, 1))), 0, (2,), (1,))]
    refused(write_legacy(tmp_path / "a", value, TWO), "element 1 of a storage of 1")


def test_view_inside_an_element(tmp_path: Path) -> None:
    storage = Persistent(("storage", Name("torch.storage", "UntypedStorage"), "0", "cpu", 8, ("1", 1, 4)))
    value = [rebuilt_v3(storage, (1,), (1,), "float32")]
    refused(write_legacy(tmp_path / "a", value, {"0": Blob(8, bytes(8))}), "inside a float32")


VIEWS = {
    "offset": (1, (2,), (1,)),
    "offset-far": (2**62, (1,), (1,)),
    "offset-of-scalar": (2, (), ()),
    "offset-negative": (-1, (1,), (1,)),
    "offset-true": (True, (1,), (1,)),
    "extent": (0, (3,), (1,)),
    "stride": (0, (2,), (2,)),
    "stride-negative": (1, (2,), (-1,)),
    "extent-negative": (0, (-1,), (1,)),
    "extents-negative": (0, (-2, -1), (1, 1)),
    "two-axes": (0, (2, 2), (1, 1)),
    "stride-times-extent-wraps": (0, (2**31 + 1,), (2**31,)),
    "bytes-wrap": (0, (2,), (2**62,)),
    "offset-in-bytes-wraps": (2**62, (1,), (1,)),
    "beyond-64-bits": (0, (2**64,), (0,)),
    "offset-beyond-64-bits": (2**64, (1,), (1,)),
    "stride-of-one-beyond-memory": (0, (1,), (2**62,)),
    "extents-wrap": (0, (2**32, 2**32, 2), (0, 0, 1)),
    "extents-wrap-around-zero": (0, (2**62, 2**62, 0), (1, 1, 1)),
    "ranks-differ": (0, (2, 1), (1,)),
    "ranks-differ-empty": (0, (0,), ()),
    "rank-of-a-thousand": (0, (1,) * 1000, (1,) * 1000),
    "shape-is-list": (0, [2], (1,)),
    "stride-is-text": (0, (2,), "1"),
    "extent-is-float": (0, (2.0,), (1,)),
    "extent-is-enormous": (0, (10**2000,), (1,)),
    "shape-none": (0, None, (1,)),
}


@FORMATS
@pytest.mark.parametrize("dtype", [None, "float64"])
@pytest.mark.parametrize("name", VIEWS)
def test_views_out_of_bounds(tmp_path: Path, form: Format, name: str, dtype: str | None) -> None:
    path = form.write(tmp_path / "a", [form.tensor("0", 2, *VIEWS[name])], TWO)
    refused(path, "tensor|storage offset|shape|stride", dtype=dtype)


def test_expanded_tensors_are_not_materialised(tmp_path: Path) -> None:
    path = write_zip(tmp_path / "a", ZIP.tensor("0", 2, 0, (2**40, 2), (0, 1)), TWO)
    got = load(path, dtype="float64")
    assert (got.shape, got.strides, got[-1].tolist()) == ((2**40, 2), (0, 8), [4.0, 5.0])


def test_storage_of_bytes_seen_as_wider_elements(tmp_path: Path) -> None:
    storage = ZIP.storage("0", 7, "UntypedStorage", "torch.storage")
    blobs = {"0": Blob(7, bytes(7))}
    assert load(write_zip(tmp_path / "a", rebuilt_v3(storage, (3,), (1,), "uint16"), blobs)).shape == (3,)
    refused(write_zip(tmp_path / "a", rebuilt_v3(storage, (4,), (1,), "uint16"), blobs), "element 3 of a storage of 3")


def test_conjugates_and_lacking_storages(tmp_path: Path) -> None:
    value = [rebuilt(ZIP.storage("0", 2), 0, (), (), metadata=({"conj": True},))]
    refused(write_zip(tmp_path / "a", value, TWO), r"resolve_conj\(\)")
    refused(write_zip(tmp_path / "a", [rebuilt([1.0, 2.0], 0, (), ())], TWO), "needs a storage, found list")


@FORMATS
def test_one_storage_under_two_dtypes_or_sizes(tmp_path: Path, form: Format) -> None:
    for other in (form.tensor("0", 2, 0, (), (), "IntStorage"), form.tensor("0", 1, 0, (), ())):
        value = [form.tensor("0", 2, 0, (), ()), other]
        refused(form.write(tmp_path / "a", value, TWO), "'0' is used with two dtypes or two sizes")


@FORMATS
def test_more_storage_than_file(tmp_path: Path, form: Format) -> None:
    refused(form.write(tmp_path / "a", [form.tensor("0", 2**50, 0, (1,), (1,))], TWO), "more than the file has left")


def test_storages_that_fit_one_by_one_but_not_together(tmp_path: Path) -> None:
    value = [LEGACY.tensor(str(n), 200, 0, (1,), (1,)) for n in range(100)]
    refused(write_legacy(tmp_path / "a", value, {"0": Blob(200, bytes(800))}), "more than the file has left")


def test_zip_entries(tmp_path: Path) -> None:
    path, value = tmp_path / "a", [ZIP.tensor("0", 2, 0, (2,), (1,))]
    refused(write_zip(path, value, {}), "entry 'archive/data/0' is missing")
    refused(write_zip(path, value, {"0": Blob(2, bytes(7))}), "has 7 bytes, the pickle needs 8")
    refused(write_zip(path, value, {"0": Blob(2, bytes(9))}), "has 9 bytes, the pickle needs 8")
    refused(write_zip(path, value, TWO, compression=zipfile.ZIP_DEFLATED), "is compressed, which torch.save never does")
    refused(write_zip(path, value, TWO, byteorder=b"middle"), "byte order is b'middle'")
    path.write_bytes(write_zip(path, value, TWO).read_bytes().replace(TWO["0"].data, bytes(8)))
    refused(path, "Bad CRC-32 for file 'archive/data/0'")
    path.write_bytes(b"PK\x03\x04" + bytes(100))
    refused(path, "not a zip file")


def test_zip_bomb(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "a", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", pickled("x" * 10_000_000))
    refused(tmp_path / "a", "'archive/data.pkl' is compressed")


def test_legacy_storages(tmp_path: Path) -> None:
    path, value = tmp_path / "a", [LEGACY.tensor("0", 2, 0, (2,), (1,))]
    lying = {"0": Blob(2**40, TWO["0"].data)}
    refused(write_legacy(path, value, lying), "has 1099511627776 elements in the file, 2 in the pickle")
    refused(write_legacy(path, value, {"0": Blob(-1, TWO["0"].data)}), "has -1 elements in the file")
    refused(write_legacy(path, value, {"0": Blob(2, bytes(7))}), "'0' ends after 7 of 8 bytes")
    for names in ([], [0, "0"], ["1"], ["0", "0"], ["0", "1"], [0], [[]], "0", op(b"N"), {"0": 0}):
        refused(write_legacy(path, value, TWO, names=names), "list of storages")
    refused(write_legacy(path, value, TWO, names=[Persistent(("storage", FLOAT, "0", "cpu", 2, None))]), "none can be")


def test_legacy_protocol(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(pickled(MAGIC) + pickled(1002) + pickled({}))
    refused(tmp_path / "a", "protocol other than 1001")


def small_files(folder: Path) -> list[Path]:
    """A file of each kind that is read without optional packages."""
    files = [
        form.write(folder / str(len(form.tail)), {"w": form.tensor("0", 2, 0, (2, 1), (1, 2)), "n": [1, "a"]}, TWO)
        for form in (ZIP, LEGACY)
    ]
    np.savez(folder / "a.npz", w=np.ones(2), n=np.arange(3))
    return [*files, folder / "a.npz"]


def test_truncated_files(tmp_path: Path) -> None:
    for path in small_files(tmp_path):
        whole = path.read_bytes()
        for length in range(len(whole) - 1):
            path.write_bytes(whole[:length])
            with pytest.raises(CheckpointError):
                load(path)


def test_damaged_files_load_or_are_refused(tmp_path: Path) -> None:
    rng = random.Random(0)
    for path in small_files(tmp_path):
        whole = path.read_bytes()
        for _ in range(1500):
            damaged = bytearray(whole)
            for _ in range(rng.choice((1, 1, 2, 4))):
                damaged[rng.randrange(len(damaged))] = rng.choice((0, 1, 0x2E, 0x7F, 0xFF, rng.randrange(256)))
            path.write_bytes(damaged)
            with contextlib.suppress(CheckpointError):  # damage in a value, say, is not to be noticed
                load(path, dtype="float32")


def test_npz_with_objects(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", w=np.array([Attack(os.mkdir, str(tmp_path / "trace"))], dtype=object))
    refused(tmp_path / "a.npz", "Object arrays cannot be loaded")
    assert not (tmp_path / "trace").exists()


@pytest.mark.parametrize("method", [zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_npz_of_other_compressions(tmp_path: Path, method: int) -> None:
    with zipfile.ZipFile(tmp_path / "a.npz", "w", method) as archive:
        archive.writestr("w.npy", b"")
    refused(tmp_path / "a.npz", "compressed in a way that NumPy never uses")


def test_safetensors(tmp_path: Path) -> None:
    pytest.importorskip("safetensors", reason="reads the .safetensors files")
    path = tmp_path / "a.safetensors"
    header = b'{"w":{"dtype":"F32","shape":[4],"data_offsets":[0,8]}}'
    path.write_bytes(len(header).to_bytes(8, "little") + header + bytes(8))
    refused(path, "the file is damaged")
    path.write_bytes(len(header).to_bytes(8, "little") + header[:20])
    refused(path, "the file is damaged")
    four_bits = header.replace(b"F32", b"F4").replace(b"8]", b"2]")
    path.write_bytes(len(four_bits).to_bytes(8, "little") + four_bits + bytes(2))
    refused(path, "F4|the file is damaged")


def test_a_name_in_a_file_imports_nothing(tmp_path: Path) -> None:
    refused(write_zip(tmp_path / "a", [Name("antigravity", "geohash")], {}), "asks for 'antigravity.geohash'")
    assert "antigravity" not in sys.modules

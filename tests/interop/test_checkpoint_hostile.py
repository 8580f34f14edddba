"""Pickles that attack: each ends in CheckpointError that names what was asked for, and has run nothing."""

from __future__ import annotations

import copyreg
import os
import pickle
import struct
import sys
from pathlib import Path
from typing import Any

import pytest
from checkpoint_files import (
    FORMATS,
    MAGIC,
    ORDERED_DICT,
    REBUILD,
    Attack,
    Blob,
    Built,
    Call,
    Format,
    Name,
    Persistent,
    op,
    pickled,
    rebuilt,
    refused,
    write_zip,
)

from npdwconv.interop.checkpoint import load

FLOAT = Name("torch", "FloatStorage")
SET, COMPLEX = Name("builtins", "set"), Name("builtins", "complex")
TWO = {"0": Blob(2, struct.pack("<2f", 4, 5))}


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


def test_a_name_in_a_file_imports_nothing(tmp_path: Path) -> None:
    refused(write_zip(tmp_path / "a", [Name("antigravity", "geohash")], {}), "asks for 'antigravity.geohash'")
    assert "antigravity" not in sys.modules

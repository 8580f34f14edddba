"""Checkpoints written by hand, opcode by opcode, so that the reader is tested without PyTorch and with lies in them."""

from __future__ import annotations

import struct
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest

from npdwconv.errors import CheckpointError
from npdwconv.interop.checkpoint import load

MAGIC = 0x1950A86A20F9469CFC6C
SYSTEM = {"protocol_version": 1001, "little_endian": True, "type_sizes": {"short": 2, "int": 4, "long": 4}}


class Name(NamedTuple):
    """A global."""

    module: str
    name: str


class Call(NamedTuple):
    """A global called with arguments."""

    called: Any
    args: Any


class Persistent(NamedTuple):
    """A persistent id."""

    pid: Any


class Built(NamedTuple):
    """A value on which a state is set."""

    value: Any
    state: Any


class Opcodes(NamedTuple):
    """Opcodes as they are."""

    code: bytes


class Blob(NamedTuple):
    """What a storage holds: its number of elements, as the legacy format states it, and bytes."""

    numel: int
    data: bytes


ORDERED_DICT = Name("collections", "OrderedDict")
REBUILD = Name("torch._utils", "_rebuild_tensor_v2")
REBUILD_V3 = Name("torch._utils", "_rebuild_tensor_v3")


def encode(value: Any) -> bytes:
    """Opcodes of protocol 2 that push ``value``."""
    if isinstance(value, Opcodes):
        return value.code
    if isinstance(value, Name):
        return f"c{value.module}\n{value.name}\n".encode()
    if isinstance(value, Call):
        return encode(value.called) + encode(value.args) + b"R"
    if isinstance(value, Persistent):
        return encode(value.pid) + b"Q"
    if isinstance(value, Built):
        return encode(value.value) + encode(value.state) + b"b"
    return PLAIN[type(value)](value)


def _text(value: str) -> bytes:
    data = value.encode()
    return b"X" + struct.pack("<I", len(data)) + data


def _int(value: int) -> bytes:
    data = value.to_bytes(value.bit_length() // 8 + 1, "little", signed=True)
    return b"\x8b" + struct.pack("<i", len(data)) + data


def _pair(name: Any, value: Any) -> bytes:
    return encode(name) + encode(value)


PLAIN: dict[type, Callable[[Any], bytes]] = {
    type(None): lambda _: b"N",
    bool: lambda value: b"\x88" if value else b"\x89",
    int: _int,
    float: lambda value: b"G" + struct.pack(">d", value),
    str: _text,
    tuple: lambda value: b"(" + b"".join(map(encode, value)) + b"t",
    list: lambda value: b"](" + b"".join(map(encode, value)) + b"e",
    dict: lambda value: b"}(" + b"".join(_pair(*item) for item in value.items()) + b"u",
}


def pickled(value: Any) -> bytes:
    """A pickle of protocol 2."""
    return b"\x80\x02" + encode(value) + b"."


class Format(NamedTuple):
    """One of the formats of PyTorch: how it refers to a storage, and how it is written."""

    tail: tuple[None, ...]
    write: Callable[..., Path]

    def storage(self, name: Any, numel: Any, kind: Any = "FloatStorage", module: str = "torch") -> Persistent:
        """A reference to a storage."""
        return Persistent(("storage", Name(module, kind), name, "cpu", numel, *self.tail))

    def tensor(self, name: str, numel: int, offset: Any, shape: Any, stride: Any, kind: str = "FloatStorage") -> Call:
        """A tensor on a storage."""
        return rebuilt(self.storage(name, numel, kind), offset, shape, stride)


def rebuilt(storage: Any, offset: Any, shape: Any, stride: Any, *, metadata: tuple[Any, ...] = ()) -> Call:
    """A tensor as PyTorch 0.4 and later write it."""
    return Call(REBUILD, (storage, offset, shape, stride, False, Call(ORDERED_DICT, ()), *metadata))


def rebuilt_v3(storage: Any, shape: Any, stride: Any, dtype: str) -> Call:
    """A tensor of a dtype that has no storage class of its own."""
    return Call(REBUILD_V3, (storage, 0, shape, stride, False, Call(ORDERED_DICT, ()), Name("torch", dtype)))


def write_zip(
    path: Path, value: Any, blobs: Mapping[str, Blob], *, byteorder: bytes | None = b"little", compression: int = 0
) -> Path:
    """The zip format; a value that is bytes is the pickle itself."""
    with zipfile.ZipFile(path, "w", compression) as archive:
        archive.writestr("archive/data.pkl", value if isinstance(value, bytes) else pickled(value))
        archive.writestr("archive/.format_version", "1")
        if byteorder is not None:
            archive.writestr("archive/byteorder", byteorder)
        for name, blob in blobs.items():
            archive.writestr(f"archive/data/{name}", blob.data)
        archive.writestr("archive/version", "3\n")
    return path


def write_legacy(path: Path, value: Any, blobs: Mapping[str, Blob], *, names: Any = None) -> Path:
    """The legacy format; a value that is bytes is the pickle itself."""
    head = pickled(MAGIC) + pickled(1001) + pickled(SYSTEM)
    body = value if isinstance(value, bytes) else pickled(value)
    tail = pickled(list(blobs) if names is None else names)
    raw = b"".join(struct.pack("<q", blob.numel) + blob.data for blob in blobs.values())
    path.write_bytes(head + body + tail + raw)
    return path


ZIP, LEGACY = Format((), write_zip), Format((None,), write_legacy)
FORMATS = pytest.mark.parametrize("form", [pytest.param(ZIP, id="zip"), pytest.param(LEGACY, id="legacy")])

# Values of bfloat16 with their 16 bits: signed zero, one, a third rounded, the largest, infinity, a subnormal, NaN.
BF16_BITS = [0x0000, 0x8000, 0x3F80, 0x3EAB, 0x7F7F, 0xFF80, 0x0001, 0x7FC0]
BF16_VALUES = [0.0, -0.0, 1.0, 0.333984375, 3.3895313892515355e38, -np.inf, 2.0**-133, np.nan]


class Attack:
    """What `pickle.load` would run."""

    def __init__(self, *call: Any) -> None:
        self.call = call

    def __reduce__(self) -> Any:
        return self.call[0], self.call[1:]


def op(*parts: Any) -> Opcodes:
    """Raw opcodes among encoded values."""
    return Opcodes(b"".join(part if isinstance(part, bytes) else encode(part) for part in parts))


def refused(path: Path, match: str, **options: Any) -> None:
    """Loading says so, and names the file first."""
    with pytest.raises(CheckpointError, match=match) as info:
        load(path, **options)
    assert str(info.value).startswith(str(path))
    assert len(str(info.value)) < 2000

"""The other kinds of file: .npz, .safetensors, those that are none, and what is wrong with each."""

from __future__ import annotations

import io
import os
import pickle
import sys
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pytest
from checkpoint_files import (
    BF16_BITS,
    BF16_VALUES,
    Attack,
    refused,
    write_zip,
)

from npdwconv.errors import CheckpointError, DTypeError
from npdwconv.interop.checkpoint import load


def test_npz(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", w=np.array([[1.5, 2]]), n=np.array(3), h=np.array([1], np.float16))
    got = load(tmp_path / "a.npz")
    assert {name: (a.dtype.name, a.tolist()) for name, a in got.items()} == {
        "w": ("float64", [[1.5, 2.0]]),
        "n": ("int64", 3),
        "h": ("float16", [1.0]),
    }
    assert [a.dtype.name for a in load(str(tmp_path / "a.npz"), dtype="float32").values()] == [
        "float32",
        "int64",
        "float32",
    ]
    np.savez_compressed(tmp_path / "empty")
    assert load(tmp_path / "empty.npz") == {}


def safetensors_file(path: Path) -> Path:
    header = (
        b'{"__metadata__":{"format":"pt"},"w":{"dtype":"BF16","shape":[2,4],"data_offsets":[0,16]},'
        b'"n":{"dtype":"I64","shape":[],"data_offsets":[16,24]},"e":{"dtype":"F32","shape":[0,3],"data_offsets":[24,24]}}'
    )
    data = np.array(BF16_BITS, "<u2").tobytes() + np.array(-5, "<i8").tobytes()
    path.write_bytes(len(header).to_bytes(8, "little") + header + data)
    return path


def test_safetensors(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("safetensors", reason="reads the .safetensors files")
    path = safetensors_file(tmp_path / "any suffix")
    got = load(path, dtype="float32")
    np.testing.assert_array_equal(got["w"], np.array(BF16_VALUES, np.float32).reshape(2, 4))
    assert (got["n"].dtype, got["n"].shape, got["n"]) == (np.int64, (), -5)
    assert (got["e"].dtype, got["e"].shape) == (np.float32, (0, 3))
    assert all(a.flags.writeable for a in got.values())
    monkeypatch.setitem(sys.modules, "ml_dtypes", None)
    with pytest.raises(DTypeError, match=r"bfloat16 is .*install ml_dtypes"):
        load(path)


def test_safetensors_package_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "safetensors", None)
    with pytest.raises(ModuleNotFoundError, match=r"pip install 'npdwconv\[interop\]'"):
        load(safetensors_file(tmp_path / "a"))


def test_no_file(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        load(tmp_path / "none.pth")


@pytest.mark.parametrize("content", [b"", b"\x89HDF\r\n\x1a\n", b'{"json": true}', b"cos\nsystem\n."])
def test_other_kinds_of_file(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "model.bin"
    path.write_bytes(content)
    with pytest.raises(
        CheckpointError, match=r"model\.bin: the file begins with b.*legacy.*safetensors and .npz"
    ) as info:
        load(path)
    assert repr(content[:16]) in str(info.value)


def test_files_that_are_refused_by_name(tmp_path: Path) -> None:
    path = tmp_path / "a"
    with tarfile.open(path, "w") as archive:
        archive.addfile(tarfile.TarInfo("pickle"), io.BytesIO())
    with pytest.raises(CheckpointError, match="this is a tar file"):
        load(path)
    with zipfile.ZipFile(path, "w") as archive_of_text:
        archive_of_text.writestr("readme.txt", "hello")
    with pytest.raises(CheckpointError, match=r"readme\.txt.*neither data\.pkl nor \.npy"):
        load(path)
    with zipfile.ZipFile(write_zip(path, [], {}), "a") as program:
        program.writestr("archive/constants.pkl", b"")
    with pytest.raises(CheckpointError, match=r"TorchScript.*state_dict\(\)"):
        load(path)
    path.write_bytes(pickle.dumps([1, 2]))
    with pytest.raises(CheckpointError, match=r"a pickle, but not one that torch\.save wrote"):
        load(path)


def test_npz_with_objects(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", w=np.array([Attack(os.mkdir, str(tmp_path / "trace"))], dtype=object))
    refused(tmp_path / "a.npz", "Object arrays cannot be loaded")
    assert not (tmp_path / "trace").exists()


@pytest.mark.parametrize("method", [zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_npz_of_other_compressions(tmp_path: Path, method: int) -> None:
    with zipfile.ZipFile(tmp_path / "a.npz", "w", method) as archive:
        archive.writestr("w.npy", b"")
    refused(tmp_path / "a.npz", "compressed in a way that NumPy never uses")


def test_damaged_safetensors(tmp_path: Path) -> None:
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

"""Interop room: weights files read into NumPy arrays, without the framework that wrote them."""

from __future__ import annotations

import errno
import math
import os
import struct
import zipfile
import zlib
from typing import IO, Any

import numpy as np
import numpy.typing as npt

from npdwconv.errors import CheckpointError, DTypeError
from npdwconv.interop._globals import SCALARS
from npdwconv.interop._tensors import ITEMSIZES, Storage, Tensor, Window, target_dtype, tensor
from npdwconv.interop._torch_file import read_legacy, read_zip

__all__ = ["load"]

HEAD = 512
MAX_DEPTH = 100
READ = "PyTorch files (.pth, .pt; zip or legacy), .safetensors and .npz"

# What `zipfile` and NumPy raise for damaged files; RuntimeError is that of encrypted or unknown compression.
DAMAGE = (zipfile.BadZipFile, zlib.error, struct.error, EOFError, OverflowError, RuntimeError, ValueError)

SAFETENSORS_DTYPES = {
    "F64": "float64",
    "F32": "float32",
    "F16": "float16",
    "BF16": "bfloat16",
    "F8_E4M3": "float8_e4m3fn",
    "F8_E5M2": "float8_e5m2",
    "F8_E8M0": "float8_e8m0fnu",
    "C64": "complex64",
    "I64": "int64",
    "I32": "int32",
    "I16": "int16",
    "I8": "int8",
    "U64": "uint64",
    "U32": "uint32",
    "U16": "uint16",
    "U8": "uint8",
    "BOOL": "bool",
}


def load(path: str | os.PathLike[str], *, dtype: npt.DTypeLike | None = None) -> Any:
    """Read a weights file: what was saved, with NumPy arrays in place of tensors.

    The content decides the kind, not the suffix: PyTorch files, in the zip format and in the legacy one that came
    before it; ``.safetensors`` (needs the package of that name: extra ``interop``); ``.npz``. A pickle in a PyTorch
    file can make tensors and plain containers and nothing else; no code of the file is ever run.

    Args:
        path: the file.
        dtype: float16, bfloat16, float32 or float64, into which every floating array is converted (as by NumPy's
            ``astype``); other arrays keep theirs. None: as saved. bfloat16 and float8 are dtypes of the package
            ``ml_dtypes`` (extra ``interop``); bfloat16 is also read without it if ``dtype`` is one of NumPy's, and
            float32 holds it exactly.

    Returns:
        For a PyTorch file the saved object: dicts (also for ``OrderedDict``), lists, tuples, sets, numbers, strings,
        None, a device or dtype as its name, and arrays of any shape and strides. Tensors that share a storage share
        memory, as in PyTorch. For the other kinds, a dict from names to arrays. All arrays are writable and the
        file is closed.

    Raises:
        CheckpointError: the file is damaged, of another kind, or asks for anything but tensors and containers; the
            message names it.
        DTypeError: ``dtype`` is not one of the four, or the file needs ``ml_dtypes`` and that is not installed.
        ModuleNotFoundError: a ``.safetensors`` file, and the package is not installed.
        OSError: the file cannot be read; FileNotFoundError if there is none.

    >>> import pathlib, tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = pathlib.Path(folder, "weights.npz")
    ...     np.savez(path, scale=np.ones(3, np.float16))
    ...     load(path, dtype="float32")
    {'scale': array([1., 1., 1.], dtype=float32)}
    """
    target, name = target_dtype(dtype), os.fsdecode(path)
    with open(path, "rb") as stream:
        try:
            return _read(stream, name.endswith(".safetensors"), target)
        except (CheckpointError, DTypeError) as err:
            raise type(err)(f"{name}: {err}") from err.__cause__
        except DAMAGE as err:
            raise CheckpointError(f"{name}: the file cannot be read: {err}") from err
        except OSError as err:
            if err.errno != errno.EINVAL:
                raise
            raise CheckpointError(f"{name}: the file refers to places where no file can be") from err


def _read(stream: IO[bytes], is_safetensors: bool, target: np.dtype[Any] | None) -> Any:
    size = stream.seek(0, os.SEEK_END)
    stream.seek(0)
    head = stream.read(HEAD)
    stream.seek(0)
    if head.startswith((b"PK\x03\x04", b"PK\x05\x06")):
        return _read_archive(stream, size, target)
    if head[8:9] == b"{" and (is_safetensors or 8 + int.from_bytes(head[:8], "little") <= size):
        return _read_safetensors(stream.read(), target)
    if head.startswith(b"\x80"):
        return _Arrays(target).of(read_legacy(stream, size))
    raise CheckpointError(_unknown(head))


def _unknown(head: bytes) -> str:
    if head[257:262] == b"ustar":
        return f"this is a tar file, which PyTorch wrote at first; read are {READ}"
    return f"the file begins with {head[:16]!r} and is of no kind that is read: {READ}"


def _read_archive(stream: IO[bytes], size: int, target: np.dtype[Any] | None) -> Any:
    with zipfile.ZipFile(stream) as archive:
        names = archive.namelist()
        root = next((name[: -len("/data.pkl")] for name in names if name.endswith("/data.pkl")), None)
        if root is not None:
            return _Arrays(target).of(read_zip(archive, root, size))
    if not all(name.endswith(".npy") for name in names):
        raise CheckpointError(
            f"this zip file holds {str(names[:3])[:200]}, neither data.pkl nor .npy files; {READ} are read"
        )
    if not {entry.compress_type for entry in archive.infolist()} <= {zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED}:
        raise CheckpointError("the .npz file is compressed in a way that NumPy never uses; write it anew")
    return _read_npz(stream, target)


def _read_npz(stream: IO[bytes], target: np.dtype[Any] | None) -> dict[str, npt.NDArray[Any]]:
    stream.seek(0)
    with np.load(stream, allow_pickle=False) as arrays:
        loaded = {name: arrays[name] for name in arrays.files}
    if target is None:
        return loaded
    return {name: a.astype(target, copy=False) if a.dtype.kind == "f" else a for name, a in loaded.items()}


def _read_safetensors(data: bytes, target: np.dtype[Any] | None) -> dict[str, npt.NDArray[Any]]:
    try:
        import safetensors
    except ImportError as err:
        raise ModuleNotFoundError(
            "reading .safetensors needs the package safetensors: pip install 'npdwconv[interop]'", name="safetensors"
        ) from err
    try:
        entries = safetensors.deserialize(data)
    except safetensors.SafetensorError as err:
        raise CheckpointError(f"the file is damaged: {err}") from err
    return {name: _safetensor(entry).array(target) for name, entry in entries}


def _safetensor(entry: Any) -> Tensor:
    dtype = SAFETENSORS_DTYPES.get(entry["dtype"])
    if dtype is None:
        raise CheckpointError(f"a tensor is {entry['dtype']}; read are {', '.join(SAFETENSORS_DTYPES)}")
    storage = Storage(dtype, np.frombuffer(entry["data"], np.uint8))
    shape = tuple(entry["shape"])
    steps = tuple(math.prod(shape[axis + 1 :]) for axis in range(len(shape)))
    return tensor(Window(storage, 0, storage.raw.size // ITEMSIZES[dtype]), 0, shape, steps)


class _Arrays:
    """Copies containers with arrays in place of tensors; what is one object in the file is one object here."""

    def __init__(self, target: np.dtype[Any] | None) -> None:
        self.target = target
        self.made: dict[int, tuple[object, Any]] = {}

    def of(self, value: Any, depth: int = 0) -> Any:
        """The counterpart of ``value``."""
        if type(value) in (*SCALARS, bytearray, set, frozenset):
            return value
        if depth > MAX_DEPTH:
            raise CheckpointError(f"containers are nested more than {MAX_DEPTH} deep, or in themselves")
        if id(value) not in self.made:
            # The original is kept too, lest its id be given to another object.
            self.made[id(value)] = value, self._make(value, depth + 1)
        return self.made[id(value)][1]

    def _make(self, value: Any, depth: int) -> Any:
        if type(value) is dict:
            return {name: self.of(item, depth) for name, item in value.items()}
        if type(value) in (list, tuple):
            return type(value)(self.of(item, depth) for item in value)
        if type(value) is Tensor:
            return value.array(self.target)
        if type(value) is Window:
            return tensor(value, 0, (value.numel,), (1,)).array(self.target)
        raise CheckpointError(f"a {type(value).__name__} stands where a value should be")

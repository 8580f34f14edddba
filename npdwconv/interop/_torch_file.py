"""Interop room: the two file formats of `torch.save`, zip (PyTorch 1.6 and later) and legacy, read without PyTorch.

Source for both: torch/serialization.py (`_save`, `_legacy_save`, `_load`, `_legacy_load`); the storages of the legacy
format are little-endian whatever its system information says (torch/csrc/serialization.cpp).
"""

from __future__ import annotations

import zipfile
from collections.abc import Callable
from typing import IO, Any

import numpy as np
import numpy.typing as npt

from npdwconv.errors import CheckpointError
from npdwconv.interop._globals import StorageType
from npdwconv.interop._tensors import ITEMSIZES, Storage, Window, index
from npdwconv.interop._unpickler import Unpickler

MAGIC = 0x1950A86A20F9469CFC6C
PROTOCOL = 1001
CHUNK = 1 << 20

Bytes = npt.NDArray[np.uint8]


class Storages:
    """Storages by the key a pickle asks them for: ``fill`` reads one, ``budget`` bytes are all there can be."""

    def __init__(self, budget: int, fill: Callable[[str, Bytes], None], byteorder: str = "little") -> None:
        self.budget, self.fill, self.byteorder = budget, fill, byteorder
        self.by_key: dict[str, Storage] = {}

    def persistent_load(self, pid: object) -> Window:
        """The storage of a persistent id ``("storage", type, key, location, numel[, view])``."""
        if type(pid) is not tuple or len(pid) not in (5, 6) or pid[0] != "storage":
            raise CheckpointError("the pickle refers to something that is no storage")
        kind, name, _location, numel, view = (*pid[1:], None)[:5]
        if type(kind) is not StorageType or type(name) is not str:
            raise CheckpointError("the pickle refers to a storage without a type or a key")
        storage = self._storage(kind.dtype, name, index(numel, "number of elements"))
        return _window(storage, view)

    def _storage(self, dtype: str, name: str, numel: int) -> Storage:
        nbytes = numel * ITEMSIZES[dtype]
        if name not in self.by_key:
            self.by_key[name] = self._new(dtype, name, nbytes)
        found = self.by_key[name]
        if (found.dtype, found.raw.size) != (dtype, nbytes):
            raise CheckpointError(f"storage {_shown(name)} is used with two dtypes or two sizes")
        return found

    def _new(self, dtype: str, name: str, nbytes: int) -> Storage:
        self.budget -= nbytes
        if self.budget < 0:
            raise CheckpointError(f"storage {_shown(name)} of {nbytes} bytes is more than the file has left")
        raw = np.empty(nbytes, np.uint8)
        self.fill(name, raw)
        return Storage(dtype, raw, self.byteorder)


def read_zip(archive: zipfile.ZipFile, root: str, size: int) -> object:
    """The object in a zip file of ``size`` bytes, whose entries lie under ``root``."""
    if f"{root}/constants.pkl" in archive.namelist():
        raise CheckpointError("this is a TorchScript program; save its state_dict() with torch.save instead")

    def fill(name: str, raw: Bytes) -> None:
        _read_entry(archive, f"{root}/data/{name}", raw)

    storages = Storages(size, fill, _byteorder(archive, root))
    with _stored(archive, f"{root}/data.pkl") as stream:
        return Unpickler(stream, storages.persistent_load).load()


def read_legacy(stream: IO[bytes], size: int) -> object:
    """The object in a legacy file of ``size`` bytes: four pickles, then the storages one after the other."""
    if _plain_pickle(stream) != MAGIC:
        raise CheckpointError("this is a pickle, but not one that torch.save wrote")
    if _plain_pickle(stream) != PROTOCOL:
        raise CheckpointError(f"the legacy format has a protocol other than {PROTOCOL}; save the file anew")
    _plain_pickle(stream)
    storages = Storages(size, lambda name, raw: None)
    value = Unpickler(stream, storages.persistent_load).load()
    _read_storages(stream, _plain_pickle(stream), storages.by_key)
    return value


def _read_storages(stream: IO[bytes], names: object, storages: dict[str, Storage]) -> None:
    if type(names) is not list or not all(type(name) is str for name in names) or sorted(names) != sorted(storages):
        raise CheckpointError("the list of storages is not that of the storages used")
    for name in names:
        storage, count = storages[name], np.empty(1, "<i8")
        what = f"storage {_shown(name)}"
        _read_exactly(stream, count.view(np.uint8), what)
        numel = storage.raw.size // ITEMSIZES[storage.dtype]
        if count[0] != numel:
            raise CheckpointError(f"{what} has {count[0]} elements in the file, {numel} in the pickle")
        _read_exactly(stream, storage.raw, what)


def _plain_pickle(stream: IO[bytes]) -> object:
    return Unpickler(stream, _no_storage).load()


def _no_storage(_pid: object) -> Any:
    raise CheckpointError("the pickle refers to a storage where none can be")


def _window(storage: Storage, view: object) -> Window:
    numel = storage.raw.size // ITEMSIZES[storage.dtype]
    if view is None:
        return Window(storage, 0, numel)
    if type(view) is not tuple or len(view) != 3:
        raise CheckpointError("a view of a storage is no (key, offset, size)")
    start, length = index(view[1], "view's offset"), index(view[2], "view's size")
    if start + length > numel:
        raise CheckpointError(f"a view of a storage reaches element {start + length} of {numel}")
    return Window(storage, start, length)


def _byteorder(archive: zipfile.ZipFile, root: str) -> str:
    # Files from before PyTorch 2.1 have no such entry and are little-endian.
    if f"{root}/byteorder" not in archive.namelist():
        return "little"
    with _stored(archive, f"{root}/byteorder") as entry:
        order = entry.read(16)
    if order not in (b"little", b"big"):
        raise CheckpointError(f"the byte order is {order!r}, neither little nor big")
    return order.decode()


def _read_entry(archive: zipfile.ZipFile, name: str, raw: Bytes) -> None:
    with _stored(archive, name) as entry:
        size = archive.getinfo(name).file_size
        if size != raw.size:
            raise CheckpointError(f"entry {_shown(name)} has {size} bytes, the pickle needs {raw.size}")
        _read_exactly(entry, raw, f"entry {_shown(name)}")


def _stored(archive: zipfile.ZipFile, name: str) -> IO[bytes]:
    if name not in archive.NameToInfo:
        raise CheckpointError(f"entry {_shown(name)} is missing")
    if archive.getinfo(name).compress_type != zipfile.ZIP_STORED:
        raise CheckpointError(f"entry {_shown(name)} is compressed, which torch.save never does; zip the file anew")
    return archive.open(name)


def _read_exactly(stream: IO[bytes], raw: Bytes, what: str) -> None:
    view, filled = raw.data, 0
    while filled < raw.size:
        part = stream.read(min(CHUNK, raw.size - filled))
        if not part:
            raise CheckpointError(f"{what} ends after {filled} of {raw.size} bytes")
        view[filled : filled + len(part)] = part
        filled += len(part)


def _shown(name: str) -> str:
    return repr(name[:80])

"""Compiled kernels on disk: one file of machine code for each kernel and spec, named by all that it depends on.

Numba's own cache has an index for each function, which two processes that fill it at once can leave pointing at the
wrong code, and loading from it first sets up the whole of Numba's compiler, a quarter of a second. Here a file says
itself what it is for; it is written under another name and moved into place, so a reader finds all of it or nothing,
and whatever is not exactly what was asked for is compiled anew. Where nothing can be written, nothing is kept.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple
from uuid import uuid4

from numba.core import config

FOLDER = "npdwconv"
KEPT = 8  # versions of the sources whose code is kept


class Code(NamedTuple):
    """Machine code: an object file, the function in it, and the functions that it calls by name."""

    entry: str
    calls: tuple[str, ...]
    machine: bytes


def load(kernel: str, sources: str, key: str) -> Code | None:
    """The code kept for ``key``, or None."""
    for root in _roots():
        with suppress(OSError, ValueError, KeyError, TypeError):
            return _parsed((root / sources / _name(kernel, key)).read_bytes(), key)
    return None


def save(kernel: str, sources: str, key: str, code: Code) -> None:
    """Keep the code in the first place that takes it, if any does."""
    header = {"key": key, "entry": code.entry, "calls": code.calls, "digest": _digest(code.machine)}
    content = json.dumps(header).encode() + b"\n" + code.machine
    for root in _roots():
        with suppress(OSError):
            _write(root, root / sources, _name(kernel, key), content)
            return


def places() -> list[str]:
    """The folders that are searched, in order; the first that can be written is written to."""
    return [str(root) for root in _roots()]


def _roots() -> Iterator[Path]:
    chosen = vars(config).get("CACHE_DIR")  # what NUMBA_CACHE_DIR said
    if chosen:
        yield Path(chosen) / FOLDER
        return
    yield Path(__file__).parent / "__pycache__" / FOLDER
    with suppress(RuntimeError):  # no home
        yield _user_cache() / FOLDER


def _user_cache() -> Path:
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Caches"
    variable = "LOCALAPPDATA" if sys.platform == "win32" else "XDG_CACHE_HOME"
    return Path(os.environ.get(variable) or Path.home() / ".cache")


def _name(kernel: str, key: str) -> str:
    return f"{kernel}-{_digest(key.encode())[:24]}.code"


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def _parsed(content: bytes, key: str) -> Code:
    line, _, machine = content.partition(b"\n")
    header = json.loads(line)
    if header["key"] != key or header["digest"] != _digest(machine):
        raise ValueError("code of something else, or not all of it")
    return Code(header["entry"], tuple(header["calls"]), machine)


def _write(root: Path, folder: Path, name: str, content: bytes) -> None:
    if not folder.exists():
        folder.mkdir(parents=True, exist_ok=True)
        _clear(root)
    draft = folder / f"{name}.{uuid4().hex[:12]}"
    try:
        draft.write_bytes(content)
        os.replace(draft, folder / name)
    except BaseException:
        draft.unlink(missing_ok=True)
        raise


def _clear(root: Path) -> None:
    """Throw away the code of all but the last few versions of the sources."""
    folders = sorted((folder.stat().st_mtime, folder) for folder in root.iterdir() if folder.is_dir())
    for _, folder in folders[:-KEPT]:
        shutil.rmtree(folder, ignore_errors=True)

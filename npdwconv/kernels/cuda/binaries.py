"""Compiled kernels on disk, so that the next process finds them: one file for each kernel and compute capability.

They lie where Numba's own cache does: in ``NUMBA_CACHE_DIR``, else beside this file, else in the user's cache folder.
A name holds a digest of what the kernel is written for, of every file in this room and of numba-cuda's version; a file
is written whole and then renamed, so that processes that fill one cache do not disturb each other. Where nothing can be
written, kernels are compiled again.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import cache
from hashlib import sha256
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

_ELF = b"\x7fELF"  # what a cubin begins with


@cache
def fingerprint() -> str:
    """A digest of this room's files and of the package that compiles them."""
    digest = sha256()
    for path in sorted(Path(__file__).parent.glob("*.py")):
        digest.update(path.read_bytes())
    with suppress(PackageNotFoundError):
        digest.update(version("numba-cuda").encode())
    return digest.hexdigest()


def folders() -> Iterator[Path]:
    """Where binaries may lie, in order of preference."""
    named = os.environ.get("NUMBA_CACHE_DIR")
    if named:
        yield Path(named)
        return
    yield Path(__file__).parent / "__pycache__"
    base = os.environ.get("XDG_CACHE_HOME")
    yield (Path(base) if base else Path.home() / ".cache") / "npdwconv"


def stored(description: str, capability: tuple[int, int], build: Callable[[], bytes]) -> bytes:
    """The binary of the kernel that ``description`` says, from disk, or built and written there."""
    digest = sha256(f"{fingerprint()} {description}".encode()).hexdigest()[:40]
    name = f"npdwconv-{digest}-sm{capability[0]}{capability[1]}.cubin"
    for folder in folders():
        with suppress(OSError):
            found = (folder / name).read_bytes()
            if found.startswith(_ELF):
                return found
    made = build()
    for folder in folders():
        if _written(folder, name, made):
            break
    return made


def _written(folder: Path, name: str, binary: bytes) -> bool:
    """Whether the file could be written."""
    temporary = ""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=folder)
        with os.fdopen(handle, "wb") as file:
            file.write(binary)
        os.replace(temporary, folder / name)
    except OSError:
        with suppress(OSError):
            os.unlink(temporary)
        return False
    return True

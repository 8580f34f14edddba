"""What a mistake made on purpose is, and which tests must notice it."""

from __future__ import annotations

from typing import NamedTuple


class Mutation(NamedTuple):
    """One mistake: what it is, the file in the package, the text that stands there once, and what replaces it.

    ``machine``: the only one whose kernels take the way that it is on, if not all do.
    """

    what: str
    file: str
    old: str
    new: str
    machine: str = ""

    @property
    def room(self) -> str:
        """Whose tests must notice."""
        return next((room for room, folder in ROOMS.items() if self.file.startswith(folder)), "definition")


VERIFY, CUDA, CPU = "verify", "kernels/cuda", "kernels/cpu"
ROOMS = {"verify": VERIFY, "cuda": CUDA, "cpu": CPU}

"""Writing a kernel's text: lines with indentation, and what most kernels begin with."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager


class Text:
    """A Python function under construction."""

    def __init__(self, name: str, arguments: tuple[str, ...]) -> None:
        self._lines = [f"def {name}({', '.join(arguments)}):"]
        self._depth = 1

    def __call__(self, *lines: str) -> None:
        """Write lines at the present depth."""
        self._lines += ["    " * self._depth + line for line in lines]

    @contextmanager
    def block(self, head: str) -> Iterator[None]:
        """Lines written inside are the body of ``head``."""
        self.open(head)
        yield
        self.close(1)

    def open(self, head: str) -> None:
        """What follows is the body of ``head``, until it is closed."""
        self(head)
        self._depth += 1

    def close(self, times: int) -> None:
        """End as many bodies."""
        self._depth -= times

    @property
    def text(self) -> str:
        return "\n".join(self._lines) + "\n"

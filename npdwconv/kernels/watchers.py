"""Who is told that a kernel is compiled. Nothing is imported for it, so that a command can listen before any is."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import NamedTuple


class Compiling(NamedTuple):
    """A kernel is about to be compiled (``seconds`` is None), or was, in that time."""

    kernel: str
    seconds: float | None = None


Watcher = Callable[[Compiling], None]

_watchers: list[Watcher] = []


def tell(news: Compiling) -> None:
    """Tell everyone who watches."""
    for watcher in tuple(_watchers):
        watcher(news)


@contextmanager
def watching(watcher: Watcher) -> Iterator[None]:
    """Call ``watcher`` before and after each compilation."""
    _watchers.append(watcher)
    try:
        yield
    finally:
        _watchers.remove(watcher)

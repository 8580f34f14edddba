"""What a person reads on a terminal: tables, drawn by rich where it is installed, aligned text where it is not."""

from __future__ import annotations

import importlib.util
import shutil
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.table import Table

__all__ = ["count", "table"]

_LEAST = 16  # columns of the terminal below which running text is not squeezed
_UNITS = ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"))


def count(number: int) -> str:
    """A number as a person reads it in a table: three digits and a unit from ten thousand on.

    >>> count(9500), count(31_250), count(4_652_008), count(384_867_000)
    ('9500', '31.2 k', '4.65 M', '385 M')
    """
    if abs(number) < 10_000:
        return str(number)
    size, unit = next((size, unit) for size, unit in _UNITS if abs(number) >= size)
    value = number / size
    return f"{value:.{2 if abs(value) < 10 else 1 if abs(value) < 100 else 0}f} {unit}"


def table(
    title: str,
    columns: Sequence[str],
    rows: Sequence[Sequence[str]],
    *,
    totals: Sequence[Sequence[str]] = (),
) -> str:
    """Lay rows of text out under a title.

    Args:
        title: the line above.
        columns: their names. One that begins with ``>`` is set flush right; one that begins with ``?`` (before any
            ``>``) is left out, with all others of its sort, on a terminal too narrow for the whole table.
        rows: one text a column.
        totals: rows set off at the end.

    >>> print(plain_table("fruit", ["name", ">count"], [["fig", "12"], ["quince", "3"]], totals=[["all", "15"]]))
    fruit
    name    count
    ------  -----
    fig        12
    quince      3
    ------  -----
    all        15
    """
    shown = _fitting(columns, [*rows, *totals], _terminal_width())
    names, *cells = ([line[column] for column in shown] for line in (columns, *rows, *totals))
    draw = rich_table if importlib.util.find_spec("rich") else plain_table
    return draw(title, [name.removeprefix("?") for name in names], cells[: len(rows)], totals=cells[len(rows) :])


def plain_table(
    title: str, columns: Sequence[str], rows: Sequence[Sequence[str]], *, totals: Sequence[Sequence[str]] = ()
) -> str:
    """The table as aligned text."""
    names = [name.removeprefix(">") for name in columns]
    widths = _widths(columns, [*rows, *totals])
    rule = ["-" * width for width in widths]
    lines = [names, rule, *rows, *([rule, *totals] if totals else [])]
    text = ["  ".join(_set(*cell) for cell in zip(columns, line, widths, strict=True)).rstrip() for line in lines]
    return "\n".join([title, *text] if title else text)


def rich_table(
    title: str, columns: Sequence[str], rows: Sequence[Sequence[str]], *, totals: Sequence[Sequence[str]] = ()
) -> str:
    """The table as rich draws it: colours on a terminal, plain characters in a file or a pipe."""
    from rich.console import Console

    console = Console(highlight=False)
    *fixed, last = _widths(columns, [*rows, *totals])
    breaks = console.is_terminal and not columns[-1].startswith(">")
    console.width = max(console.width, sum(fixed) + 2 * len(fixed) + (min(last, _LEAST) if breaks else last) + 1)
    with console.capture() as capture:
        console.print(_rich(title, columns, rows, totals))
    return "\n".join(line.rstrip() for line in capture.get().rstrip().splitlines())


def _rich(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]], totals: Sequence[Sequence[str]]) -> Table:
    from rich import box
    from rich.table import Table
    from rich.text import Text

    drawn = Table(title=title or None, title_justify="left", title_style="bold", box=box.SIMPLE_HEAD, show_edge=False)
    drawn.padding, drawn.pad_edge = (0, 1, 0, 0), False
    for name in columns:
        drawn.add_column(name.removeprefix(">"), justify="right" if name.startswith(">") else "left", no_wrap=True)
    # Only a last column of running text may be broken into lines; no cell is ever cut short.
    drawn.columns[-1].no_wrap, drawn.columns[-1].overflow = columns[-1].startswith(">"), "fold"
    for row in rows:
        drawn.add_row(*map(Text, row))
    if totals:
        drawn.add_section()
    for row in totals:
        drawn.add_row(*map(Text, row), style="bold")
    return drawn


def _fitting(columns: Sequence[str], rows: Sequence[Sequence[str]], width: int | None) -> list[int]:
    """The columns to show: all that there are, or where they do not fit, those that cannot be left out."""
    whole = sum(_widths(columns, rows)) + 2 * (len(columns) - 1)
    return [i for i, name in enumerate(columns) if width is None or whole <= width or not name.startswith("?")]


def _terminal_width() -> int | None:
    return shutil.get_terminal_size().columns if sys.stdout is not None and sys.stdout.isatty() else None


def _widths(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> list[int]:
    names = [name.removeprefix("?").removeprefix(">") for name in columns]
    return [max(map(len, cells)) for cells in zip(names, *rows, strict=True)]


def _set(column: str, text: str, width: int) -> str:
    return text.rjust(width) if column.startswith(">") else text.ljust(width)

"""What a person reads on a terminal: tables, drawn by rich where it is installed, aligned text where it is not."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence

__all__ = ["count", "table"]

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
    """Lay rows of text out under a title; a column whose name begins with ``>`` is set flush right.

    >>> print(plain_table("fruit", ["name", ">count"], [["fig", "12"], ["quince", "3"]], totals=[["all", "15"]]))
    fruit
    name    count
    ------  -----
    fig        12
    quince      3
    ------  -----
    all        15
    """
    draw = rich_table if importlib.util.find_spec("rich") else plain_table
    return draw(title, columns, rows, totals=totals)


def plain_table(
    title: str, columns: Sequence[str], rows: Sequence[Sequence[str]], *, totals: Sequence[Sequence[str]] = ()
) -> str:
    """The table as aligned text."""
    names = [name.removeprefix(">") for name in columns]
    widths = [max(map(len, cells)) for cells in zip(names, *rows, *totals, strict=True)]
    rule = ["-" * width for width in widths]
    lines = [names, rule, *rows, *([rule, *totals] if totals else [])]
    text = ["  ".join(_set(*cell) for cell in zip(columns, line, widths, strict=True)).rstrip() for line in lines]
    return "\n".join([title, *text] if title else text)


def rich_table(
    title: str, columns: Sequence[str], rows: Sequence[Sequence[str]], *, totals: Sequence[Sequence[str]] = ()
) -> str:
    """The table as rich draws it: colours on a terminal, plain characters in a file or a pipe."""
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    drawn = Table(title=title or None, title_justify="left", box=box.SIMPLE_HEAD, title_style="bold", pad_edge=False)
    for name in columns:
        drawn.add_column(
            name.removeprefix(">"), justify="right" if name[:1] == ">" else "left", no_wrap=name[:1] == ">"
        )
    for row in rows:
        drawn.add_row(*map(Text, row))
    if totals:
        drawn.add_section()
    for row in totals:
        drawn.add_row(*map(Text, row), style="bold")
    console = Console(highlight=False)
    if not console.is_terminal:
        console.width = max(console.width, console.measure(drawn, options=console.options.update(width=400)).maximum)
    with console.capture() as capture:
        console.print(drawn)
    return capture.get().rstrip("\n")


def _set(column: str, text: str, width: int) -> str:
    return text.rjust(width) if column.startswith(">") else text.ljust(width)

"""What a GPU reached, as a person reads it: on a terminal, and as the generated part of a page."""

from __future__ import annotations

from collections.abc import Iterator

from npdwconv.bench.device import DeviceReport, Row, mean
from npdwconv.bench.report import grid
from npdwconv.console import table

SUMMARY = ["operation", "layout", "dtype", "beside", ">cases", ">mean ratio", ">least", ">share of copy"]
CASES = ["case", ">ours", ">theirs", ">ratio", ">MB", ">share of copy"]


def describe(report: DeviceReport) -> str:
    """Every case by operation, and the operations' means."""
    parts = [table(", ".join(key), CASES, [_case(row) for row in rows]) for key, rows in _groups(report)]
    parts.append(table("ratios of the peer's time to ours", SUMMARY, _summary(report)))
    return "\n\n".join([*parts, "\n".join(_notes(report))])


def markdown(report: DeviceReport) -> str:
    """The generated part of a page."""
    parts = [*_notes(report), "", *grid(SUMMARY, _summary(report))]
    for key, rows in _groups(report):
        parts += ["", f"### {', '.join(key)}", "", *grid(CASES, [_case(row) for row in rows])]
    return "\n".join(parts)


def _groups(report: DeviceReport) -> Iterator[tuple[tuple[str, ...], list[Row]]]:
    found: dict[tuple[str, ...], list[Row]] = {}
    for row in report.rows:
        found.setdefault((row.operation, row.layout, row.dtype, row.peer), []).append(row)
    yield from found.items()


def _summary(report: DeviceReport) -> list[list[str]]:
    lines = []
    for key, rows in _groups(report):
        ratios = [row.ratio for row in rows if row.ratio is not None]
        shares = [row.share for row in rows if row.share is not None]
        numbers = [f"{mean(ratios):.2f}", f"{min(ratios):.2f}"] if ratios else ["", ""]
        span = f"{min(shares):.2f} to {max(shares):.2f}" if shares else ""
        lines.append([*key, str(len(rows)), *numbers, span])
    return lines


def _case(row: Row) -> list[str]:
    if row.ours is None:
        return [row.case, row.wrong, f"{row.theirs:.1f} µs", "", f"{row.megabytes:.0f}", ""]
    return [
        row.case,
        f"{row.ours:.1f} µs",
        f"{row.theirs:.1f} µs",
        f"{row.ratio:.2f}",
        f"{row.megabytes:.0f}",
        f"{row.share:.2f}",
    ]


def _notes(report: DeviceReport) -> list[str]:
    host = ", ".join(f"{name} {micros:.0f} µs" for name, micros in report.host.items())
    return [
        f"* {report.card}; {report.versions}.",
        f"* A copy by {report.copier} reads and writes {report.copied:.2f} TB/s.",
        f"* The host's part of a call of 1x32x14x14: {host}.",
        f"* First calls, which compile, took {report.compiled:.0f} s in all; they are not in the times.",
    ]

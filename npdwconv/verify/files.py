"""What ``npdwconv verify`` does: the cases of saved files and models, one verdict each, a table and what to keep."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from npdwconv import cases
from npdwconv.cases import Case
from npdwconv.console import table
from npdwconv.errors import OptionError
from npdwconv.layouts import Array
from npdwconv.verify.check import check
from npdwconv.verify.report import Report

SCHEMA = 1
_BLIND_NAMES = 3  # of the mistakes that a layer's data cannot show, as many as a row of the table names
Tell = Callable[[str], None]


class Left(NamedTuple):
    """A layer that was not checked, and why."""

    file: str
    name: str
    kind: str
    reason: str


@dataclass
class Verdicts:
    """The reports of several files' cases, in their order, and what in them was left out."""

    reports: list[Report] = field(default_factory=list)
    skipped: list[Left] = field(default_factory=list)
    seconds: float = 0.0

    @property
    def ok(self) -> bool:
        return all(report.ok for report in self.reports)

    def as_dict(self) -> dict[str, Any]:
        return {
            "schema": SCHEMA,
            "ok": self.ok,
            "seconds": self.seconds,
            "layers": [report.to_dict() for report in self.reports],
            "skipped": [left._asdict() for left in self.skipped],
        }


def verify(
    paths: Sequence[str],
    *,
    inputs: Mapping[str, Array] | Array | None = None,
    compute: Sequence[str] | None = None,
    norm: str = "elementwise",
    tell: Tell,
) -> Verdicts:
    """Check every case of every file; ``tell`` hears what is being done.

    Raises:
        OptionError: a file is neither a case nor a model, or cannot be read.
        ShapeError, DTypeError: a case does not hold together.
    """
    start, found = time.perf_counter(), Verdicts()
    for path in paths:
        read = _cases(path, inputs, found.skipped, tell)
        for number, case in enumerate(read, 1):
            tell(f"{path}: {number} of {len(read)}, {case.name or case.op}")
            report = check(case, compute=compute, norm=norm)
            _ = report.blind_to  # part of the verdict
            found.reports.append(report)
    tell("")
    found.seconds = time.perf_counter() - start
    return found


def inputs_named(texts: Sequence[str]) -> Mapping[str, Array] | Array | None:
    """``x.npy`` or ``name=x.npy``, several times, as arrays by their input's name; one without a name as it is.

    Raises:
        OptionError: a file cannot be read, or names are missing.
    """
    named = {name if path else "": _array(path or name) for name, _, path in (text.partition("=") for text in texts)}
    if len(named) < len(texts) or ("" in named and len(named) > 1):
        raise OptionError("--input: several inputs need a name each, as in --input image=x.npy")
    return named.get("", named) if named else None


def describe(found: Verdicts) -> str:
    """A table, a row a layer; the page of each that fails; what was left out, and why."""
    parts = [str(report) for report in found.reports if not report.ok or len(found.reports) == 1]
    if len(found.reports) > 1:
        columns = ["layer", "operator", "?result", ">elements", ">worst / bound", "verdict", "cannot show"]
        wrong = sum(not report.ok for report in found.reports)
        whole = f"{len(found.reports)} layers, {wrong} wrong, in {found.seconds:.1f} s"
        parts.insert(0, table(whole, columns, [_row(report) for report in found.reports]))
    if found.skipped:
        rows = [[left.name, left.kind, left.reason] for left in found.skipped]
        parts.append(table("not checked", ["layer", "kind", "why"], rows))
    return "\n\n".join(parts or ["nothing to check"])


def save(found: Verdicts, path: str) -> list[str]:
    """Write what was checked, so that a report of a bug can carry it: the case, or of several the failing ones.

    Several get their numbers in their names. Returns the names.

    Raises:
        OptionError: a file cannot be written.
    """
    several = len(found.reports) > 1
    kept = [(number, report) for number, report in enumerate(found.reports, 1) if not several or not report.ok]
    target = Path(path)
    written = []
    for number, report in kept:
        name = str(target.with_name(f"{target.stem}-{number}{target.suffix}")) if len(kept) > 1 else path
        cases.save(report.case, name)
        written.append(name)
    return written


def worst(found: Verdicts) -> Report | None:
    """The report with the largest error for its bound."""
    return max(found.reports, key=lambda report: report.worst_ratio, default=None)


def _row(report: Report) -> list[str]:
    shape = "x".join(map(str, report.compared[report.worst_array].ratio.shape))
    verdict = "right" if report.ok else report.diagnoses[0].name if report.diagnoses else "unexplained"
    blind = list(report.blind_to)
    more = f" and {len(blind) - _BLIND_NAMES} more" if len(blind) > _BLIND_NAMES else ""
    return [
        report.case.name,
        report.case.op,
        shape,
        str(report.checked),
        f"{report.worst_ratio:.3g}",
        verdict if report.ok else f"WRONG: {verdict}",
        ", ".join(blind[:_BLIND_NAMES]) + more,
    ]


def _cases(path: str, inputs: Any, skipped: list[Left], tell: Tell) -> list[Case]:
    ending = Path(path).suffix.lower()
    if not Path(path).is_file():
        raise OptionError(f"{path}: no such file; needed a case (.npz) or a model (.onnx)")
    if ending == ".npz":
        return [_loaded(path)]
    if ending != ".onnx":
        raise OptionError(f"{path}: needed a case (.npz) or a model (.onnx)")
    from npdwconv.interop.onnx import capture_onnx

    tell(f"{path}: running the model")
    captured = capture_onnx(path, inputs)
    skipped += [Left(path, left.name, left.kind, left.reason) for left in captured.skipped]
    return list(captured.cases)


def _loaded(path: str) -> Case:
    case = cases.load(path)
    return case if case.name else replace(case, name=path)


def _array(path: str) -> Array:
    try:
        return np.asarray(np.load(path, allow_pickle=False))
    except (OSError, ValueError, EOFError) as error:
        raise OptionError(f"--input {path}: {error}; needed an array saved by numpy.save") from error

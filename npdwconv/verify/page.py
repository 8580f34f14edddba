"""The page that a person reads: verdict, worst element with its receptive field, where the bad ones lie, what to do."""

from __future__ import annotations

from npdwconv.verify.report import Report


def page(report: Report) -> str:
    """A report in words."""
    verdict = "right" if report.ok else f"WRONG in {report.bad} of {report.checked} elements"
    lines = [f"{report.case.op}: {verdict}; worst ratio {report.worst_ratio:.3g} at {report.worst_array}"]
    return "\n".join([*lines, *(f"  {each.name}: {each.explanation}" for each in report.diagnoses)])

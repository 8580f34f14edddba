"""What may have gone wrong: a table of mistakes, each a function from the arguments to what it would have given."""

from __future__ import annotations

from npdwconv.verify.report import Diagnosis, Report


def diagnoses(report: Report, rung: str) -> tuple[Diagnosis, ...]:
    """What explains the bad elements of a report, the best first."""
    return ()


def blind_to(report: Report, rung: str) -> tuple[str, ...]:
    """The mistakes that would have stayed within the bound on this data."""
    return ()

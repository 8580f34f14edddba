"""Planted defects: wrong results by plain NumPy loops, at a chosen severity, and what `verify.check` says of them.

A defect's data lies between data that cannot show it (a symmetric kernel, a constant image) and the layer's own, so
near to the first that the worst error is so many times its bound. `python tests/planted.py --markdown docs/_planted.md`
writes the table.
"""

from __future__ import annotations

import argparse
import itertools
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from planted_defects import DEFECTS, FIXED, Defect
from planted_layers import Layer, Results, random_layers, real_layers

from npdwconv import verify

SEVERITIES = (4.0, 100.0, 1e4, np.inf)


@dataclass(frozen=True)
class Verdict:
    defect: Defect
    layer: str
    severity: float
    report: verify.Report
    data: Layer

    @property
    def flagged(self) -> bool:
        return not self.report.ok

    @property
    def rank(self) -> int:
        """1 where the right name comes first, or among equals that all explain everything; 0 where it is not named."""
        names = [each.name for each in self.report.diagnoses]
        if self.defect.name not in names:
            return 0
        best = self.report.diagnoses[0]
        perfect = [each.name for each in self.report.diagnoses if each.worst_ratio <= 1 and each.explained == 1]
        equal = best.name in perfect and self.defect.name in perfect
        return 1 if equal else names.index(self.defect.name) + 1

    @property
    def hidden(self) -> bool:
        return self.defect.name in self.report.blind_to

    def __str__(self) -> str:
        named = ", ".join(f"{each.name} {each.worst_ratio:.2g}" for each in self.report.diagnoses) or "nothing"
        size = "full" if np.isinf(self.severity) else f"{self.severity:g}"
        return (
            f"{self.defect.name} ({self.defect.what}) in {self.layer} at {size}: {self.report.worst_ratio:.3g}, {named}"
        )


def check(layer: Layer, results: Results, *, diagnose: bool = True) -> verify.Report:
    op, given = layer.arguments()
    observed = layer.observed(results)
    return verify.check(op, observed if op.endswith("backward") else observed["out"], **given, diagnose=diagnose)


def planted(defect: Defect, layer: Layer, severity: float) -> Verdict | None:
    """The verdict on a defect whose worst error is about ``severity`` bounds; None where it cannot be made so."""
    t, low, high = 1.0, 0.0, 1.0
    data, wrong = defect.at(layer, t)
    if wrong is None:
        return None
    if not np.isinf(severity):
        if (defect.name, defect.what) in FIXED:
            return None
        ratio = check(data, wrong, diagnose=False).worst_ratio
        if ratio < severity:
            return None
        for _ in range(24):
            if severity / 1.4 <= ratio <= severity * 1.4:
                break
            low, high = (t, high) if ratio < severity else (low, t)
            guess = t * severity / ratio if 0 < ratio < np.inf else 0.0
            t = guess if low < guess < high else (low + high) / 2
            data, wrong = defect.at(layer, t)
            ratio = check(data, wrong, diagnose=False).worst_ratio if wrong is not None else 0.0
        if wrong is None or not severity / 2 <= ratio <= severity * 4:
            return None
    return Verdict(defect, layer.name, severity, check(data, wrong), data)


def verdicts(layers: Any, severities: tuple[float, ...] = SEVERITIES) -> Iterator[Verdict]:
    for layer, defect, severity in itertools.product(layers, DEFECTS, severities):
        found = planted(defect, layer, severity)
        if found is not None:
            yield found


def markdown(found: list[Verdict]) -> str:
    """The table: how many of the planted defects were named first, by defect and data."""
    layers = list(dict.fromkeys(each.layer for each in found))
    cells: dict[tuple[str, str], list[Verdict]] = defaultdict(list)
    for each in found:
        cells[f"`{each.defect.name}` {each.defect.what}".strip(), each.layer].append(each)
    rows = ["| planted | " + " | ".join(layers) + " |", "|---" * (len(layers) + 1) + "|"]
    for name in dict.fromkeys(name for name, _ in cells):
        rows.append(f"| {name} | " + " | ".join(cell(cells[name, layer]) for layer in layers) + " |")
    shown = [each for each in found if each.flagged]
    first = sum(each.rank == 1 for each in shown)
    missed = [each for each in found if not each.flagged and not each.hidden]
    summary = (
        f"{len(found)} planted, {len(shown)} flagged, {first} ({100 * first / max(len(shown), 1):.1f} %) named first; "
        f"{len(found) - len(shown)} not flagged, of which `blind_to` names all but {len(missed)}."
    )
    others = [f"* {each}" for each in shown if each.rank != 1] + [f"* missed: {each}" for each in missed]
    return "\n".join([summary, "", *rows, *(["", "Not named first:", "", *others] if others else [])]) + "\n"


def cell(found: list[Verdict]) -> str:
    """Ranks from the mildest to the gravest; "blind" where the data cannot show the defect."""
    return " ".join("blind" if not each.flagged and each.hidden else str(each.rank or "–") for each in found)


def main() -> None:
    parser = argparse.ArgumentParser(description="Plants every defect in every layer and tabulates the verdicts.")
    parser.add_argument("--markdown", type=Path, help="file to write")
    text = markdown(list(verdicts([*random_layers(), *real_layers()])))
    target = parser.parse_args().markdown
    if target is None:
        print(text)
    else:
        target.write_text(f"<!-- generated by tests/planted.py -->\n{text}")


if __name__ == "__main__":
    main()

"""What a check found: numbers for machines, and a page that a person reads."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np

from npdwconv.cases import Case
from npdwconv.layouts import Array

SCHEMA = 1


@dataclass(frozen=True)
class Diagnosis:
    """An explanation of what was observed.

    Attributes:
        name: one out of `npdwconv.verify.hypotheses.HYPOTHESES`.
        explanation: a sentence that says what was done instead, and what to look at.
        worst_ratio: the largest ``|observed − hypothesis| / bound`` over all elements; at most 1 explains them all.
        explained: the share of the bad elements that the hypothesis makes good.
    """

    name: str
    explanation: str
    worst_ratio: float
    explained: float


class Compared(NamedTuple):
    """One result beside its reference: arrays of one shape."""

    observed: Array
    expected: Array
    bound: Array
    ratio: Array

    @property
    def bad(self) -> Array:
        return self.ratio > 1.0


@dataclass
class Report:
    """The verdict on one case.

    Attributes:
        ok: whether every element lies within its bound.
        checked, bad: numbers of elements.
        worst_ratio: the largest ``|observed − reference| / bound``; above 1 is a defect.
        worst_array: the result that has it: ``"out"``, or a gradient by its operand's name.
        worst_index: its index there.
        compute: the arithmetic that the bound is for.
        diagnoses: what explains the bad elements, the best first; empty where all is well.
        blind_to: the defects that this data could not have shown. Computed when asked for.
        case, compared: what was checked, and each result beside its reference.
    """

    case: Case
    compute: str
    norm: str
    compared: dict[str, Compared]
    diagnoses: tuple[Diagnosis, ...] = ()
    blindness: Callable[[], tuple[str, ...]] = field(default=lambda: (), repr=False)

    @property
    def ok(self) -> bool:
        return self.bad == 0

    @property
    def checked(self) -> int:
        return sum(each.ratio.size for each in self.compared.values())

    @property
    def bad(self) -> int:
        return sum(int(np.count_nonzero(each.bad)) for each in self.compared.values())

    @cached_property
    def _worst(self) -> tuple[float, str, tuple[int, ...]]:
        worst: tuple[float, str, tuple[int, ...]] = (0.0, next(iter(self.compared), "out"), ())
        for name, each in self.compared.items():
            if each.ratio.size:
                index = np.unravel_index(int(np.argmax(each.ratio)), each.ratio.shape)
                found = (float(each.ratio[index]), name, tuple(int(place) for place in index))
                worst = max(worst, found, key=lambda entry: (entry[0], bool(entry[2]) and not worst[2]))
        return worst

    @property
    def worst_ratio(self) -> float:
        return self._worst[0]

    @property
    def worst_array(self) -> str:
        return self._worst[1]

    @property
    def worst_index(self) -> tuple[int, ...]:
        return self._worst[2]

    @cached_property
    def blind_to(self) -> tuple[str, ...]:
        return self.blindness()

    def to_dict(self) -> dict[str, Any]:
        """For machines; the schema is documented in docs/verification.md."""
        return {
            "schema": SCHEMA,
            "name": self.case.name,
            "op": self.case.op,
            "ok": self.ok,
            "compute": self.compute,
            "norm": self.norm,
            "checked": self.checked,
            "bad": self.bad,
            "worst_ratio": _finite(self.worst_ratio),
            "worst_array": self.worst_array,
            "worst_index": list(self.worst_index),
            "diagnoses": [
                vars(diagnosis) | {"worst_ratio": _finite(diagnosis.worst_ratio)} for diagnosis in self.diagnoses
            ],
            "blind_to": list(self.blind_to),
        }

    def __str__(self) -> str:
        from npdwconv.verify.page import page

        return page(self)


def _finite(ratio: float) -> float | None:
    """JSON has no infinity: None stands for it."""
    return ratio if np.isfinite(ratio) else None

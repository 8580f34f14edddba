"""Arithmetic with fewer digits, which cannot be predicted digit by digit: a wider bound, and a sign of it."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from npdwconv.layouts import Array
from npdwconv.verify.bounds import PRECISIONS, Enclosure, Precision
from npdwconv.verify.hypotheses_cases import rounded
from npdwconv.verify.hypotheses_evidence import Evidence, Finding

_NOISE = 0.2  # more is not: roundings do not all go the same way
_MOST = 0.75  # of results that a finer format would have had anyway
_FEW = 4  # values: fewer may have few digits by chance
_OUTLIER = 12.0  # of errors by their root mean square: roundings have none, a defect is one
_ROUNDS = 2e-4  # root mean square of errors by the wide bound: less is not that arithmetic's


def accumulated(e: Evidence, name: str) -> Iterator[Finding]:
    """Sums in a format, if the results are numbers of it, or if errors all over are of the size that it makes."""
    form = PRECISIONS[name]
    if not _narrower(e, form):
        return
    wide = _wide(e, form)
    ratio = e.compare(wide)
    if PRECISIONS[e.observed.dtype.name].digits > form.digits and _keeps_numbers(e):
        coarser = name == "float16" and _coarser(e, PRECISIONS["bfloat16"], form)
        if not coarser and _share(e, e.observed, form) == 1.0:
            yield Finding(f"the results are {name} numbers", ratio)
    elif _scattered(e, wide.error):
        yield Finding(f"errors all over have the size of {name} roundings", ratio)


def _keeps_numbers(e: Evidence) -> bool:
    """Whether a result without bias is a sum, or 0, or 6."""
    return e.role != "out" or e.case.options.get("activation") in (None, "relu", "relu6")


def _coarser(e: Evidence, coarse: Precision, form: Precision) -> bool:
    """Whether results are numbers of the coarser of two formats, which those of the other would not have been."""
    return _share(e, e.observed, coarse) == 1.0 and _share(e, rounded(e.compared.expected, form), coarse) < _MOST


def _scattered(e: Evidence, wide: Array) -> bool:
    """Whether errors are of the size of roundings, most of them and none much more."""
    with np.errstate(all="ignore"):
        error = np.abs(e.observed.astype(np.float64) - e.compared.expected) / np.where(wide > 0, wide, np.inf)
    moved = error[(wide > 0) & (e.observed != 0)]
    if moved.size < 2 * _FEW or not np.isfinite(error).all():
        return False
    size = float(np.sqrt(np.mean(moved**2)))
    return _ROUNDS < size < _NOISE and float(moved.max()) < _OUTLIER * size < _OUTLIER**2 * float(np.median(moved))


def rounding_hidden(e: Evidence, name: str) -> Iterator[Enclosure]:
    """The truth rounded to a format, or moved by what its sums may be off, if results are stored in it."""
    form = PRECISIONS[name]
    if not _narrower(e, form):
        return
    if PRECISIONS[e.observed.dtype.name].digits > form.digits:
        yield _moved(e.truth, rounded(e.compared.expected, form))
    else:
        yield _moved(e.truth, e.compared.expected + _wide(e, form).error / 4.0)


def _moved(exact: Enclosure, value: Array) -> Enclosure:
    return exact._replace(value=exact.value._replace(hi=value, lo=np.zeros_like(value)))


def _narrower(e: Evidence, form: Precision) -> bool:
    """Whether sums should have more digits than the format."""
    return 2.0**-form.digits > e.ar.precision.unit * 2.0


def _wide(e: Evidence, form: Precision) -> Enclosure:
    """The truth, to within the bound of sums in the format, to first order in its roundoff."""
    unit = 2.0 ** (1 - form.digits)
    error = e.truth.error * (unit / e.ar.precision.unit) + unit * e.truth.size
    beyond = e.truth.size > form.largest / 2.0
    return e.truth._replace(error=np.where(beyond, np.inf, error))


def _share(e: Evidence, results: Array, form: Precision) -> float:
    """How many results are numbers of the format, or are so less the bias; 0 where too few can tell."""
    wide = results.astype(np.float64)
    candidates = [(wide, np.zeros(1))]
    bias = e.case.operands.get("bias")
    if e.role == "out" and bias is not None:
        shape = [1] * wide.ndim
        shape[e.channel_axis] = -1
        without = wide - bias.astype(np.float64).reshape(shape)
        candidates.append((without, np.abs(wide) + np.abs(without)))
    shares = [0.0]
    for values, size in candidates:
        slack = 2.0 ** (1 - PRECISIONS[e.observed.dtype.name].digits) * size
        told = np.isfinite(wide) & (wide != 0) & (wide != 6.0)
        told &= slack < 2.0 ** -(form.digits + 3) * np.abs(values)  # the others may be within it by chance
        exact = np.abs(rounded(values, form) - values) <= slack
        if told.sum() >= _FEW and np.any(told & e.bad):
            shares.append(float(np.mean(exact[told])))
    return max(shares)

"""The verdict: what somebody's implementation returned, against what a right one may return."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np

import npdwconv
from npdwconv.arguments import as_array
from npdwconv.cases import OPERANDS, Case
from npdwconv.errors import DTypeError, OptionError, ShapeError
from npdwconv.layouts import Array
from npdwconv.options import one_of
from npdwconv.precision import is_supported
from npdwconv.verify.bounds import PRECISIONS, Arithmetic, Enclosure, Precision, arithmetic
from npdwconv.verify.double import minus
from npdwconv.verify.operators import NEEDED, OPERATORS, RESULTS, enclose, needed
from npdwconv.verify.reference import RUNGS
from npdwconv.verify.report import Compared, Report

NORMS = ("elementwise", "max")
Compute = str | Sequence[str] | None


def check(
    op: str | Case,
    observed: Any = None,
    *arrays: Any,
    compute: Compute = None,
    norm: str = "elementwise",
    reference: str | None = None,
    diagnose: bool = True,
    **options: Any,
) -> Report:
    """Whether ``observed`` may be the result of ``op`` on these arguments; if not, what it is instead.

    Every element has a bound of its own, ``γₙ·(Σ|w||x| + |b|)`` with n the terms that it really has, which no right
    implementation exceeds, whatever the order of its sums: see docs/verification.md for what is derived, and from what.

    Args:
        op: a public operator's name, or a `Case`, which holds all the rest.
        observed: what was returned for it: an array; for a backward the gradients (a tuple, ``Grads``, or a dict by
            name; None for what was not computed); for a causal convolution ``(out, next_state)``.
        arrays, options: the operator's own arguments.
        compute: the arithmetic that was used: ``"float64"``, ``"float32"``; ``"tf32"``, ``"bfloat16"`` or ``"float16"``
            (operands of that format, sums in float32); ``"bfloat16_accumulation"`` or ``"float16_accumulation"`` (sums
            rounded to it too); several where any of them will do; None for the operands' own.
        norm: ``"elementwise"``; or ``"max"``, for algorithms such as Winograd's or the FFT, which only bound the error
            of an element by the largest of the whole result.
        reference: ``"float64"``, ``"double-double"`` or ``"fraction"``; None for the first that is precise enough.
        diagnose: whether to look for explanations.

    Returns:
        A `Report`; printing it gives a page.

    Raises:
        ShapeError, DTypeError, OptionError: as the operator does, or where ``observed`` does not fit its result.

    >>> import numpy as np
    >>> from npdwconv import depthwise_conv2d, verify
    >>> rng = np.random.default_rng(0)
    >>> x = rng.standard_normal((1, 4, 8, 8), dtype=np.float32)
    >>> weight = rng.standard_normal((4, 1, 3, 3), dtype=np.float32)
    >>> verify.check("depthwise_conv2d", depthwise_conv2d(x, weight, padding=1), x, weight, padding=1).ok
    True
    >>> flipped = depthwise_conv2d(x, weight[:, :, ::-1, ::-1], padding=1)
    >>> verify.check("depthwise_conv2d", flipped, x, weight, padding=1).diagnoses[0].name
    'kernel_flipped'
    """
    case = op if isinstance(op, Case) else bind(op, observed, arrays, options)
    computes, rung = _computes(case, compute), _rung(case, reference)
    one_of("norm", norm, NORMS)
    reports = [_checked(case, each, norm, rung) for each in computes]
    report = min(reports, key=lambda each: (each.bad > 0, each.bad, each.worst_ratio))
    return explained(report, diagnose=diagnose)


def explained(report: Report, *, diagnose: bool) -> Report:
    """The report with what explains its bad elements, and with what says to which defects its data is blind."""
    from npdwconv.verify.hypotheses import blind_to, diagnoses

    found = diagnoses(report) if diagnose and not report.ok else ()
    return replace(report, diagnoses=found, blindness=partial(blind_to, report))


def assert_conv(op: str | Case, observed: Any = None, *arrays: Any, **options: Any) -> None:
    """`check`, for tests: raise AssertionError with the report's page unless every element is within its bound.

    Raises:
        AssertionError: some element is not.
        ShapeError, DTypeError, OptionError: as `check` does.

    >>> import numpy as np
    >>> from npdwconv import pointwise_conv, verify
    >>> x, weight = np.ones((1, 3, 4, 4), np.float32), np.ones((2, 3), np.float32)
    >>> verify.assert_conv("pointwise_conv", pointwise_conv(x, weight), x, weight)
    """
    report = check(op, observed, *arrays, **options)
    if not report.ok:
        raise AssertionError(f"\n{report}")


def error_bound(
    op: str | Case, *arrays: Any, compute: str | None = None, norm: str = "elementwise", **options: Any
) -> Any:
    """How far each element of a right result may be from the exact one.

    Args:
        op, arrays, options, compute, norm: as in `check`.

    Returns:
        A float64 array of the result's shape; for a backward and for a causal operator a dict of them by name.

    Raises:
        ShapeError, DTypeError, OptionError: as the operator does.

    >>> import numpy as np
    >>> from npdwconv import verify
    >>> x, weight = np.ones((1, 1, 4), np.float32), np.ones((1, 1, 3), np.float32)
    >>> (verify.error_bound("depthwise_conv1d", x, weight, padding=1)[0, 0] * 2**24).round(3)
    array([4., 9., 9., 4.])
    """
    case = op if isinstance(op, Case) else bind(op, {}, arrays, options)
    (precision,) = _computes(case, compute)
    one_of("norm", norm, NORMS)
    ar = arithmetic(precision, _dtype(case), _rung(case, None))
    bounds = {name: _normed(ar.stored(each).error, norm) for name, each in enclose(case, ar).items()}
    return bounds["out"] if list(bounds) == ["out"] else bounds


def bind(op: str, observed: Any, arrays: tuple[Any, ...], options: dict[str, Any], name: str = "") -> Case:
    """The case of a call as a user writes it: arguments by position and by name."""
    one_of("op", op, OPERATORS)
    signature = inspect.signature(getattr(npdwconv, op))
    bound = signature.bind(*arrays, **options)
    operands = {
        key: as_array(key, value) for key, value in bound.arguments.items() if key in OPERANDS and value is not None
    }
    rest = {key: value for key, value in bound.arguments.items() if key not in OPERANDS}
    return Case(op, operands, rest, _by_name(op, observed), name)


def compare(observed: Array, exact: Enclosure, ar: Arithmetic, norm: str = "elementwise") -> Compared:
    """An observed result beside the exact one, its errors as fractions of their bounds."""
    stored = ar.stored(exact)
    bound, value = _normed(stored.error, norm), stored.value
    wide = observed.astype(np.float64)
    with np.errstate(all="ignore"):
        error = np.abs(minus(wide, value))
        same = (wide == value.hi + value.lo) | (np.isnan(wide) & np.isnan(value.hi))
        ratio = np.where(bound > 0, error / bound, np.inf)
    ratio = np.where(same | np.isinf(bound), 0.0, np.where(np.isnan(ratio), np.inf, ratio))
    return Compared(observed, value.hi, bound, ratio)


def _checked(case: Case, precision: Precision, norm: str, rung: str) -> Report:
    names = needed(case)
    _require_names(case, names)
    found: dict[str, Compared] = {}
    stored = min((_dtype(case), *(array.dtype for array in case.observed.values())), key=lambda dtype: dtype.itemsize)
    results = enclose(case, arithmetic(precision, stored, rung), frozenset(case.observed))
    for name, exact in results.items():
        observed = case.observed.get(name)
        if observed is None:
            continue
        if observed.shape != exact.error.shape:
            raise ShapeError(
                f"{case.op}: observed {name} has shape {observed.shape}; needed {exact.error.shape}, the result's"
            )
        found[name] = compare(observed, exact, arithmetic(precision, observed.dtype, rung), norm)
    if not found:
        raise OptionError(f"{case.op}: nothing was observed; needed one or more of {', '.join(sorted(names))}")
    return Report(case, precision.name, norm, found)


def _require_names(case: Case, names: frozenset[str]) -> None:
    for name, array in case.observed.items():
        one_of(f"{case.op}: the observed result", name, names)
        if not is_supported(array.dtype):
            raise DTypeError(f"{case.op}: observed {name} has dtype {array.dtype}; needed a floating one")


def _by_name(op: str, observed: Any) -> dict[str, Array]:
    """The observed results by their names, those that are None left out."""
    names = NEEDED.get(op) or RESULTS[op]
    if isinstance(observed, Mapping):
        given = dict(observed)
    elif isinstance(observed, (tuple, list)):
        if len(observed) > len(names):
            raise OptionError(f"{op}: {len(observed)} results were observed; needed {', '.join(names)}")
        given = dict(zip(names, observed, strict=False))
    elif op in NEEDED:
        raise OptionError(f"{op}: observed is a {type(observed).__name__}; needed gradients, ({', '.join(names)})")
    else:
        given = {"out": observed}
    return {name: as_array(f"observed {name}", value) for name, value in given.items() if value is not None}


def _dtype(case: Case) -> np.dtype[Any]:
    return next(iter(case.operands.values())).dtype


def _computes(case: Case, compute: Compute) -> list[Precision]:
    if compute is None:
        return [PRECISIONS[_dtype(case).name]] if is_supported(_dtype(case)) else [PRECISIONS["float32"]]
    names = (compute,) if isinstance(compute, str) else tuple(compute)
    if not names:
        raise OptionError(f"compute is {compute!r}; needed one or more of {', '.join(PRECISIONS)}")
    return [PRECISIONS[one_of("compute", name, PRECISIONS)] for name in names]


def _rung(case: Case, reference: str | None) -> str:
    if reference is not None:
        return one_of("reference", reference, RUNGS)
    return "double-double" if _dtype(case).name == "float64" else "float64"


def _normed(bound: Array, norm: str) -> Array:
    if norm == "elementwise" or not bound.size:
        return bound
    finite = np.isfinite(bound)
    return np.where(finite, float(np.max(bound, where=finite, initial=0.0)), bound)

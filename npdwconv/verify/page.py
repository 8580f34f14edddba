"""The page that a person reads: verdict, worst element with its receptive field, where the bad ones lie, what to do."""

from __future__ import annotations

from itertools import pairwise

import numpy as np

from npdwconv.cases import Case
from npdwconv.layouts import Array
from npdwconv.verify.places import axis_names, places
from npdwconv.verify.report import Compared, Report
from npdwconv.verify.terms import Terms, terms

_WIDEST, _HIGHEST = 9, 9  # of a patch that is drawn as a grid
_LISTED = 10  # products of an element that has too many for a grid
_BAR = 40
_EDGES = (1e-3, 1e-2, 0.1, 0.5, 1.0, 10.0, 1e3, 1e6)


def page(report: Report) -> str:
    """A report in words and numbers, a section for each question that a reader has."""
    sections = [_verdict(report)]
    if report.checked:
        sections.append(_worst(report))
    sections.append(_histogram(report))
    if not report.ok:
        sections += [_places(report), _diagnoses(report)]
    sections.append(_blind(report))
    return "\n\n".join(section for section in sections if section)


def _verdict(report: Report) -> str:
    case = report.case
    named = f"{case.name}: " if case.name else ""
    wrong = f"WRONG: {report.bad} of {report.checked} elements exceed their bounds"
    found = f"right: all {report.checked} elements are within their bounds" if report.ok else wrong
    shapes = ", ".join(f"{name} {array.shape} {array.dtype}" for name, array in case.operands.items())
    options = ", ".join(f"{name}={value!r}" for name, value in case.options.items())
    norm = " of the largest element" if report.norm == "max" else ""
    return "\n".join(
        [
            f"{named}{case.op} is {found}",
            f"  {shapes}",
            *([f"  {options}"] if options else []),
            f"  bounds{norm} for sums in {report.compute}; the worst error is {_share(report.worst_ratio)} its bound",
        ]
    )


def _share(ratio: float) -> str:
    return f"{ratio:.3g} times" if ratio > 1 else f"{ratio:.3g} of"


def _worst(report: Report) -> str:
    name, index = report.worst_array, report.worst_index
    each = report.compared[name]
    observed, expected = float(each.observed[index]), float(each.expected[index])
    lines = [
        f"worst element: {name}{list(index)}",
        f"  observed  {observed: .9g}",
        f"  right     {expected: .9g}",
        f"  apart     {abs(observed - expected): .3g}, allowed {float(each.bound[index]):.3g}",
    ]
    return "\n".join(lines if report.ok else [*lines, *_field(report.case, name, index)])


def _field(case: Case, name: str, index: tuple[int, ...]) -> list[str]:
    """The receptive field: what the element is the sum of."""
    found = terms(case, name, index)
    read = np.argwhere(found.factors != 0)
    if not len(read):
        return ["  it reads nothing but padding"]
    low, high = read.min(axis=0), read.max(axis=0)
    patch = tuple(slice(int(a), int(b) + 1) for a, b in zip(low, high, strict=True))
    where = ", ".join(str(a) if a == b else f"{a}:{b + 1}" for a, b in zip(low, high, strict=True))
    lines = [f"  it is the sum of {len(read)} products of {found.name}[{where}]"]
    extents = [part.stop - part.start for part in patch if part.stop - part.start > 1]
    grid = len(extents) <= 2 and (extents or [1])[-1] <= _WIDEST and len(read) <= _WIDEST * _HIGHEST
    lines += _grid(found, patch, extents) if grid else _largest(found)
    sums = f"{found.products.sum():.9g}"
    return [*lines, f"  sum {sums}" + (f", plus the bias {found.bias:.9g}" if found.bias else "")]


def _grid(found: Terms, patch: tuple[slice, ...], extents: list[int]) -> list[str]:
    """Values, factors and products beside each other, row by row."""
    rows = 1 if len(extents) < 2 else extents[0]
    blocks = [array[patch].reshape(rows, -1) for array in (found.values, found.factors, found.products)]
    titles = [found.name, "times", "products"]
    columns = [[_numbers(row) for row in block] for block in blocks]
    widths = [max(map(len, [title, *column])) for title, column in zip(titles, columns, strict=True)]
    lines = [titles, *([column[row] for column in columns] for row in range(rows))]
    return ["    " + "   ".join(text.ljust(w) for text, w in zip(line, widths, strict=True)).rstrip() for line in lines]


def _largest(found: Terms) -> list[str]:
    products = found.products
    listed = min(_LISTED, int(np.count_nonzero(found.factors)))
    order = np.argsort(-np.abs(np.nan_to_num(products, nan=np.inf)), axis=None, kind="stable")[:listed]
    lines = [f"    the {len(order)} largest:"]
    for flat in order:
        index = np.unravel_index(int(flat), products.shape)
        place = ", ".join(str(int(part)) for part in index)
        value, factor, product = (float(array[index]) for array in (found.values, found.factors, products))
        lines.append(f"    {found.name}[{place}]: {value: .6g} · {factor: .6g} = {product: .6g}")
    return lines


def _numbers(row: Array) -> str:
    return " ".join(f"{value:10.4g}" for value in row)


def _histogram(report: Report) -> str:
    """How many elements have an error of which share of their bound."""
    ratios = np.concatenate([each.ratio.ravel() for each in report.compared.values()] or [np.zeros(0)])
    if not ratios.size:
        return ""
    edges = [-1.0, 0.0, *_EDGES, np.inf]
    counts = [int(np.count_nonzero((ratios > low) & (ratios <= high))) for low, high in pairwise(edges)]
    labels = ["exact", *(f"up to {edge:g}" for edge in _EDGES), "more"]
    last = max(place for place, number in enumerate(counts) if number)
    rows = list(zip(labels, counts, strict=True))[: last + 1]
    width = max(len(label) for label, _ in rows)
    most = max(counts)
    lines = [f"  {label.rjust(width)}  {'█' * round(_BAR * n / most):<{_BAR}}  {n}" for label, n in rows]
    return "\n".join(["errors as shares of their bounds:", *lines])


def _places(report: Report) -> str:
    lines = []
    for name, each in report.compared.items():
        if each.bad.any():
            found = places(each.bad, _axes(report.case, name, each))
            lines += [f"  {name}: {int(each.bad.sum())} of {each.bad.size}", *(f"    {line}" for line in found)]
    return "\n".join(["where the bad elements lie:", *lines])


def _axes(case: Case, name: str, each: Compared) -> tuple[str, ...]:
    layout = str(case.options.get("layout", "channels_first"))
    if "tokens" in case.op and name in ("out", "x"):
        return ("image", "position", "channel")
    layout = "channels_first" if name in ("state", "next_state") else layout
    result = case.op.rpartition("_")[0] if case.op.endswith("weight_grad") else name
    return axis_names("weight" if case.op.endswith("weight_grad") else result, each.ratio.shape, layout)


def _diagnoses(report: Report) -> str:
    if not report.diagnoses:
        return "diagnosis: unexplained by any known mistake; the places above may tell"
    lines = ["diagnosis, the best first:"]
    for each in report.diagnoses:
        explained = f"explains {100 * each.explained:.3g} % of the bad elements"
        lines += [f"  {each.name} ({explained}, worst ratio {each.worst_ratio:.3g})", f"    {each.explanation}"]
    return "\n".join(lines)


def _blind(report: Report) -> str:
    names = report.blind_to
    return f"this data could not have shown: {', '.join(names)}" if names else ""

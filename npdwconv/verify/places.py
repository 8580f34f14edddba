"""Where bad elements lie: along each axis, by their distance from the border, and with what period."""

from __future__ import annotations

import numpy as np

from npdwconv.layouts import LETTERS, Array

_FEW = 8  # indices that are listed one by one


def axis_names(result: str, shape: tuple[int, ...], layout: str) -> tuple[str, ...]:
    """What the axes of a result are called, by the letters of the contract."""
    if result.endswith("weight"):
        kernel = LETTERS[len(shape) - 2].kernel if 3 <= len(shape) <= 5 else ("",) * (len(shape) - 2)
        return ("output channel", "input channel", *(f"tap {letter}" for letter in kernel))
    if result.endswith("bias"):
        return ("channel",)
    spatial = {1: ("position",), 2: ("row", "column"), 3: ("depth", "row", "column")}.get(len(shape) - 2, ())
    spatial = spatial or tuple(f"axis {place}" for place in range(len(shape) - 2))
    return ("image", "channel", *spatial) if layout == "channels_first" else ("image", *spatial, "channel")


def spatial_axes(names: tuple[str, ...]) -> list[int]:
    return [axis for axis, name in enumerate(names) if name in ("position", "depth", "row", "column")]


def places(bad: Array, names: tuple[str, ...]) -> list[str]:
    """A line for each axis along which the bad elements are not everywhere, and one for their border distance."""
    lines = []
    for axis, name in enumerate(names):
        hit = np.flatnonzero(bad.any(axis=tuple(other for other in range(bad.ndim) if other != axis)))
        if 0 < len(hit) < bad.shape[axis]:
            lines.append(f"{name}: {_spelled(hit, bad.shape[axis])}")
    by_border = _border(bad, names)
    if by_border:
        lines.append(by_border)
    return lines or ["everywhere"]


def period(hit: Array, extent: int) -> tuple[int, list[int]] | None:
    """The smallest period of which the indices fill some residues and leave at least half of them free, or None."""
    marks = np.zeros(extent, dtype=bool)
    marks[hit] = True
    for step in range(2, extent // 2 + 1):
        residues = np.unique(hit % step)
        if 2 * len(residues) <= step and marks[np.isin(np.arange(extent) % step, residues)].all():
            return step, [int(residue) for residue in residues]
    return None


def _spelled(hit: Array, extent: int) -> str:
    repeated = period(hit, extent) if len(hit) > 2 else None
    if repeated is not None and len(repeated[1]) <= _FEW:
        step, residues = repeated
        return f"{', '.join(map(str, residues))} modulo {step} ({len(hit)} of {extent})"
    if len(hit) <= _FEW:
        return f"{', '.join(map(str, hit))} of 0 … {extent - 1}"
    if len(hit) == hit[-1] - hit[0] + 1:
        return f"{hit[0]} … {hit[-1]} of 0 … {extent - 1}"
    return f"{len(hit)} of {extent}, between {hit[0]} and {hit[-1]}"


def _border(bad: Array, names: tuple[str, ...]) -> str:
    """Shares of the elements at each distance from the border that are bad, where they differ much."""
    axes = spatial_axes(names)
    if not axes or min(bad.shape[axis] for axis in axes) < 3:
        return ""
    distance = np.full(bad.shape, max(bad.shape))
    for axis in axes:
        along = np.arange(bad.shape[axis])
        near = np.minimum(along, along[::-1]).reshape([-1 if place == axis else 1 for place in range(bad.ndim)])
        distance = np.minimum(distance, near)
    shares = [float(bad[distance == step].mean()) for step in range(3) if (distance == step).any()]
    inner = bad[distance >= 3]
    shares += [float(inner.mean())] if inner.size else []
    if max(shares) < 2 * min(shares) + 0.01:
        return ""
    labels = ["0", "1", "2", "3 and more"]
    parts = (f"{label}: {100 * share:.3g} %" for label, share in zip(labels, shares, strict=False))
    return f"bad by distance from the border — {', '.join(parts)}"

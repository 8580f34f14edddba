"""A convolution and its adjoint as dense correlations, one axis at a time. No arrays.

The adjoint of a strided correlation scatters: output ``o`` adds to inputs ``o·stride + t·dilation − low``. Read from
the input's side it gathers: input ``i`` collects from ``o = (i + low − t·dilation) / stride``, over the taps for which
the division is exact. Those taps depend on ``i mod stride`` only, so each residue is a dense correlation of stride 1
over an evenly spaced subset of the taps, taken backwards, that writes every ``stride``-th input.
"""

from __future__ import annotations

from itertools import product
from math import gcd
from typing import NamedTuple

from npdwconv.geometry import Axis, ConvGeometry


class Sweep(NamedTuple):
    """One axis of a dense correlation: for every j < out

    ``result[out_first + j·out_step] = Σ_u weight[tap_first + u·tap_step] · source[j·stride + u·dilation − low]``,
    over the u < taps whose source index lies in [0, size).
    """

    size: int
    out: int
    taps: int
    stride: int
    dilation: int
    low: int
    tap_first: int = 0
    tap_step: int = 1
    out_first: int = 0
    out_step: int = 1


Sweeps = tuple[Sweep, ...]


def forward(g: ConvGeometry) -> tuple[Sweeps, ...]:
    """The correlation itself: one dense correlation."""
    return (tuple(Sweep(a.size, a.out, a.kernel, a.stride, a.dilation, a.low) for a in g.axes),)


def adjoint(g: ConvGeometry) -> tuple[Sweeps, ...]:
    """Its adjoint: one dense correlation for every combination of residues, which together write every input."""
    return tuple(product(*(_residues(axis) for axis in g.axes)))


def _residues(axis: Axis) -> list[Sweep]:
    """The input's residues modulo the stride that hold any input."""
    return [_residue(axis, first) for first in range(min(axis.stride, axis.size))]


def _residue(axis: Axis, first: int) -> Sweep:
    count = -(-(axis.size - first) // axis.stride)
    taps = [t for t in range(axis.kernel) if (first + axis.low - t * axis.dilation) % axis.stride == 0]
    if not taps:
        return Sweep(axis.out, count, 0, 1, 1, 0, out_first=first, out_step=axis.stride)
    common = gcd(axis.dilation, axis.stride)
    last = taps[-1]
    source = (first + axis.low - last * axis.dilation) // axis.stride  # what the last tap reads for j = 0
    return Sweep(
        axis.out,
        count,
        len(taps),
        1,
        axis.dilation // common,
        -source,
        tap_first=last,
        tap_step=-(axis.stride // common),
        out_first=first,
        out_step=axis.stride,
    )

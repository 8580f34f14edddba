"""A report as a picture: every case under the machine's roofline, and each family's ratios as bars."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from npdwconv.bench.families import FAMILIES
from npdwconv.bench.run import Report
from npdwconv.bench.scores import Score
from npdwconv.errors import OptionError

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def draw(report: Report, path: str) -> None:
    """Write the picture.

    Raises:
        OptionError: it cannot be written.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(15, 7), layout="constrained")
    FigureCanvasAgg(figure)
    left, right = figure.subplots(1, 2)
    names = [standing.family.name for standing in report.standings]
    roofline(left, report, names)
    bars(right, report, names)
    figure.suptitle(f"{report.host['cpu']}, {report.settings.threads} threads, float32")
    try:
        figure.savefig(path, dpi=120)
    except OSError as error:
        raise OptionError(f"--plot {path}: {error}; needed a file that can be written") from error


def roofline(axes: Axes, report: Report, names: Sequence[str]) -> None:
    """GFLOP/s over flops per byte, below the two limits that were measured."""
    for index, name in enumerate(names):
        found = [(s.case.flops / s.case.bytes, s.gflops) for s in _of(report, name) if s.gflops is not None]
        intensity, gflops = [x for x, _ in found], [y for _, y in found]
        axes.scatter(intensity, gflops, s=16, color=_colour(index), label=FAMILIES[name].title)
    limits = report.ceilings
    if limits is not None:
        span = np.logspace(-1, 3, 100)
        for size, speed in (min(limits.copy.items()), max(limits.copy.items())):
            roof = np.minimum(span * speed, limits.gflops)
            axes.plot(span, roof, color="black", linewidth=1, linestyle="-" if size < 1 << 20 else "--")
            axes.annotate(f"copy {speed:.0f} GB/s", (span[0], roof[0]), fontsize=8, va="bottom")
        axes.annotate(f"{limits.gflops:.0f} GFLOP/s", (span[-1], limits.gflops), fontsize=8, ha="right", va="bottom")
    axes.set(xscale="log", yscale="log", xlabel="flops per byte", ylabel="GFLOP/s", title="roofline")
    axes.legend(fontsize=7)


def bars(axes: Axes, report: Report, names: Sequence[str]) -> None:
    """Each family's geometric mean as a bar, its cases as dots, what is to be reached as a line."""
    for index, standing in enumerate(report.standings):
        ratios = [s.ratio.median for s in _of(report, standing.family.name) if s.ratio is not None]
        if standing.mean is None:
            continue
        axes.barh(index, standing.mean - 1, left=1, color=_colour(index), alpha=0.5)
        axes.plot(ratios, [index] * len(ratios), ".", color=_colour(index), markersize=4)
        axes.plot([standing.family.mean] * 2, [index - 0.4, index + 0.4], color="black", linewidth=2)
    axes.axvline(1, color="grey", linewidth=1, linestyle=":")
    axes.set_yticks(range(len(names)), [FAMILIES[name].title for name in names], fontsize=8)
    axes.invert_yaxis()
    axes.set(xscale="log", xlabel="best peer's time / ours", title="ratios (line: to be reached)")


def _of(report: Report, family: str) -> list[Score]:
    return [score for score in report.scores if score.family == family]


def _colour(index: int) -> str:
    return f"C{index % 10}"

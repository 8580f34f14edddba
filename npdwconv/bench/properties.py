"""Our own kernels against the machine and themselves: shares of its limits, scaling, flatness, the cost of a call."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from statistics import median

from npdwconv.bench.cases import Case
from npdwconv.bench.ceilings import Ceilings
from npdwconv.bench.measure import OWN_MODULE, Field, Settings, measure
from npdwconv.bench.scores import OURS, Timings, scores

BEYOND_CACHES = (Case("depthwise_fwd", 1, 32, (1024, 1024), 3),)
PRODUCTS = tuple(Case("pointwise_fwd", 1, c, (56, 56), outputs=c) for c in (128, 256, 512))
LONG = (
    Case("depthwise_fwd", 8, 128, (112, 112), 3),
    Case("depthwise_bwd_input", 8, 128, (56, 56), 5),
    Case("depthwise_bwd_weight", 8, 128, (56, 56), 5),
    Case("separable_fwd", 8, 128, (56, 56), 3, outputs=128),
    Case("pointwise_fwd", 8, 256, (28, 28), outputs=512),
)
SQUARES = tuple(Case("depthwise_fwd", 1, 256, (extent, extent), 3) for extent in (28, 56, 112, 224, 448))
TINY = (Case("depthwise_fwd", 1, 8, (4, 4), 3), Case("pointwise_fwd", 1, 8, (4, 4), outputs=8))

Found = Iterator[tuple[str, float, float | None]]  # a case and our way through it, what was found, and at the limits


@dataclass(frozen=True)
class Property:
    """What was found where it is worst, and the limit; `least` where the limit is one from below.

    ``at_limits`` is what that case would have if it ran at the limits of the machine, where these are known.
    """

    title: str
    found: float
    limit: float
    least: bool
    where: str
    at_limits: float | None = None

    @property
    def met(self) -> bool:
        return self.found >= self.limit if self.least else self.found <= self.limit


def properties(
    settings: Settings, limits: Ceilings | None, one: Ceilings | None, tell: Callable[[str], None]
) -> list[Property]:
    """Measure them; those that need the machine's limits are left out where these are not known.

    ``one``: the limits of one thread.
    """
    chosen = dict.fromkeys((*BEYOND_CACHES, *PRODUCTS, *LONG, *SQUARES, *TINY))
    tell("properties of our own kernels")
    timed, alone = _timed(chosen, settings)
    wanted = [
        ("3x3 beyond the caches, share of copy", _shares(BEYOND_CACHES, timed, limits, "bytes_share"), 0.85, True),
        ("pointwise from 128 channels on, share of peak", _shares(PRODUCTS, timed, limits, "flops_share"), 0.85, True),
        (f"{settings.threads} threads over one", _speedups(timed, alone, limits, one), 0.9 * settings.threads, True),
        (
            "time an output element of 256 channels, 28x28 to 448x448, most over least",
            _flatness(timed, limits),
            1.5,
            False,
        ),
        ("a call with a tiny array, µs", _microseconds(timed), 15.0, False),
    ]
    return [worst for each in wanted if (worst := _worst(*each)) is not None]


def _timed(cases: Iterable[Case], settings: Settings) -> tuple[dict[Case, Timings], dict[Case, Timings]]:
    """All cases with all threads, and the long ones right after that with one: a machine changes by the minute."""
    timed, alone, one = {}, {}, replace(settings, threads=1)
    with Field({OURS: OWN_MODULE}, settings) as field, Field({OURS: OWN_MODULE}, one) as single:
        for case in cases:
            timed[case] = measure(case, field)
            if case in LONG and settings.threads > 1:
                alone[case] = measure(case, single)
    return timed, alone


def _worst(title: str, found: Found, limit: float, least: bool) -> Property | None:
    values = {where: (value, bound) for where, value, bound in found}
    if not values:
        return None
    where = (min if least else max)(values, key=lambda each: values[each][0])
    value, bound = values[where]
    return Property(title, value, limit, least, where, bound)


def _shares(cases: Iterable[Case], timed: dict[Case, Timings], limits: Ceilings | None, name: str) -> Found:
    for case in cases:
        for score in scores(timed[case], limits):
            share = getattr(score, name)
            if share is not None:
                yield f"{case.title} {score.ours}", share, 1.0


def _speedups(
    timed: dict[Case, Timings], alone: dict[Case, Timings], limits: Ceilings | None, one: Ceilings | None
) -> Found:
    for case, single in alone.items():
        bound = None
        if limits is not None and one is not None:
            bound = one.seconds(case.flops, case.bytes) / limits.seconds(case.flops, case.bytes)
        for way, seconds in single.seconds.items():
            if way in timed[case].seconds:
                yield _where(case, way), median(seconds) / median(timed[case].seconds[way]), bound


def _flatness(timed: dict[Case, Timings], limits: Ceilings | None) -> Found:
    least = [] if limits is None else [limits.seconds(case.flops, case.bytes) / case.pixels for case in SQUARES]
    bound = max(least) / min(least) if least else None
    for way in timed[SQUARES[0]].seconds:
        each = [median(timed[c].seconds[way]) / c.pixels for c in SQUARES if way in timed[c].seconds]
        yield way.removeprefix(f"{OURS} "), max(each) / min(each), bound


def _microseconds(timed: dict[Case, Timings]) -> Found:
    for case in TINY:
        for way, seconds in timed[case].seconds.items():
            yield _where(case, way), 1e6 * median(seconds), None


def _where(case: Case, way: str) -> str:
    return f"{case.id} {way.removeprefix(f'{OURS} ')}"

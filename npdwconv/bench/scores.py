"""What timings mean: ratios with their spread, shares of what the machine can do, and means over a family."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import geometric_mean, median

import numpy as np

from npdwconv.bench.cases import Case
from npdwconv.bench.ceilings import Ceilings
from npdwconv.bench.families import FAMILIES, Contest, Family, contests

OURS = "npdwconv"


def ours(label: str) -> bool:
    """Whether a way is one of our own."""
    return label.startswith(f"{OURS} ")


@dataclass
class Timings:
    """What was found out about one case.

    Attributes:
        seconds: by participant and way, as in ``"torch channels_last"``: seconds a call, one figure a round.
        faults: ways that have no speed, and why: a result outside its bound, or one that could not be had.
        build: seconds that building a way took, outside the clock.
    """

    case: Case
    seconds: dict[str, list[float]] = field(default_factory=dict)
    faults: dict[str, str] = field(default_factory=dict)
    build: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Spread:
    """A median and the quartiles around it."""

    median: float
    low: float
    high: float


@dataclass(frozen=True)
class Score:
    """One of our ways through a case beside the best rival: `ratio` is the rival's time over ours, round by round."""

    family: str
    case: Case
    ours: str
    seconds: Spread | None
    fault: str | None = None
    rival: str | None = None
    rival_seconds: float | None = None
    ratio: Spread | None = None
    gflops: float | None = None
    gbps: float | None = None
    flops_share: float | None = None
    bytes_share: float | None = None
    floor_share: float | None = None


@dataclass(frozen=True)
class Standing:
    """A family's ratios: their geometric mean and the least of them, beside what is to be reached."""

    family: Family
    cases: int
    wrong: int
    mean: float | None
    least: float | None
    least_case: str | None

    @property
    def met(self) -> bool | None:
        """Whether both are reached; None where nothing was compared."""
        if self.mean is None or self.least is None:
            return None if not self.wrong else False
        low_enough = self.family.least is None or self.least >= self.family.least
        return not self.wrong and self.mean >= self.family.mean and low_enough


def spread(values: Sequence[float]) -> Spread:
    """Median and quartiles."""
    low, middle, high = (float(q) for q in np.percentile(values, (25, 50, 75)))
    return Spread(middle, low, high)


def ratios(ours: Sequence[float], theirs: Sequence[float]) -> Spread:
    """Their time over ours within each round that both ran in: what is common to a round falls out.

    >>> ratios([1.0, 2.0, 1.0], [3.0, 6.0, 3.0])
    Spread(median=3.0, low=3.0, high=3.0)
    """
    return spread([other / own for own, other in zip(ours, theirs, strict=False)])


def best(seconds: Mapping[str, Sequence[float]]) -> str | None:
    """The way with the least median, among those that ran in most rounds."""
    if not seconds:
        return None
    most = max(map(len, seconds.values()))
    return min(
        (name for name, rounds in seconds.items() if len(rounds) == most), key=lambda name: median(seconds[name])
    )


def scores(timings: Timings, ceilings: Ceilings | None) -> list[Score]:
    """One for each of our ways through the case."""
    return [_score(timings, contest, ceilings) for contest in contests(timings.case)]


def standings(found: Iterable[Score]) -> list[Standing]:
    """One for each family that has a score."""
    by_family: dict[str, list[Score]] = {}
    for score in found:
        by_family.setdefault(score.family, []).append(score)
    return [_standing(FAMILIES[name], by_family[name]) for name in FAMILIES if name in by_family]


def _score(timings: Timings, contest: Contest, ceilings: Ceilings | None) -> Score:
    case, label = timings.case, f"{OURS} {contest.ours}"
    own = timings.seconds.get(label)
    if own is None:
        return Score(contest.family, case, contest.ours, None, timings.faults.get(label, "was not run"))
    rivals = {name: rounds for name, rounds in timings.seconds.items() if not ours(name) and contest.admits(name)}
    rival, seconds = best(rivals), spread(own)
    ratio = ratios(own, rivals[rival]) if rival else None
    rival_seconds = median(rivals[rival]) if rival else None
    flops, moved = case.flops / seconds.median / 1e9, case.bytes / seconds.median / 1e9
    shares = _shares(case, seconds.median, ceilings)
    return Score(contest.family, case, contest.ours, seconds, None, rival, rival_seconds, ratio, flops, moved, *shares)


def _shares(case: Case, seconds: float, ceilings: Ceilings | None) -> tuple[float | None, ...]:
    """Of the peak of arithmetic, of a copy of as many bytes, and of whichever of the two binds."""
    if ceilings is None:
        return None, None, None
    of_flops = case.flops / seconds / 1e9 / ceilings.gflops
    of_bytes = case.bytes / seconds / 1e9 / ceilings.bandwidth(case.bytes)
    return of_flops, of_bytes, ceilings.seconds(case.flops, case.bytes) / seconds


def _standing(family: Family, found: Sequence[Score]) -> Standing:
    compared = [(score.ratio.median, score) for score in found if score.ratio is not None]
    wrong = sum(score.fault is not None for score in found)
    if not compared:
        return Standing(family, 0, wrong, None, None, None)
    least, score = min(compared, key=lambda pair: pair[0])
    mean = geometric_mean(ratio for ratio, _ in compared)
    return Standing(family, len(compared), wrong, mean, least, f"{score.case.title} {score.ours}")

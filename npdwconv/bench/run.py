"""The whole measurement: choose cases, measure the machine, measure each case, and report."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import datetime, timezone
from statistics import median
from typing import Any

from npdwconv.bench import ceilings, host
from npdwconv.bench.cases import Case, cases
from npdwconv.bench.ceilings import Ceilings
from npdwconv.bench.families import FAMILIES, contests
from npdwconv.bench.measure import OWN_MODULE, PEERS, Field, Settings, first_call, measure
from npdwconv.bench.processes import Worker, WorkerError
from npdwconv.bench.properties import Property, properties
from npdwconv.bench.scores import OURS, Score, Standing, Timings, scores, standings
from npdwconv.errors import OptionError
from npdwconv.options import one_of

SCHEMA = 1
Tell = Callable[[str], None]


@dataclass(frozen=True)
class FirstCalls:
    """Seconds of the first call in a new process: with an empty folder of compiled code, and with that of the first."""

    case: str
    ours: str
    cold: float
    warm: float


@dataclass(frozen=True)
class Report:
    """Everything that was measured."""

    when: str
    host: dict[str, Any]
    settings: Settings
    versions: dict[str, str]
    skipped: dict[str, str]
    ceilings: Ceilings | None
    peaks: list[float]
    timings: list[Timings]
    scores: list[Score]
    standings: list[Standing]
    first_calls: dict[str, list[FirstCalls]]
    properties: list[Property]

    @property
    def wrong(self) -> list[Score]:
        """Ways of our own without a speed: the result was outside its bound, or there was none."""
        return [score for score in self.scores if score.fault is not None]

    def as_dict(self) -> dict[str, Any]:
        """The report as JSON has it; `docs/cli.md` lists the fields."""
        return {
            "schema": SCHEMA,
            "when": self.when,
            "machine": self.host,
            "settings": asdict(self.settings),
            "versions": self.versions,
            "skipped": self.skipped,
            "ceilings": self.ceilings and {"gflops": self.ceilings.gflops, "copy_gbps": self.ceilings.copy},
            "peaks": self.peaks,
            "families": [_family(standing, self.first_calls) for standing in self.standings],
            "properties": [asdict(each) | {"met": each.met} for each in self.properties],
            "cases": [_case(timings, self.scores) for timings in self.timings],
        }


def choose(families: Sequence[str] = (), match: str = "", quick: bool = False) -> list[Case]:
    """The cases of some families (none named: all), whose name has ``match`` in it.

    Raises:
        OptionError: there is no such family, or no such case.
    """
    wanted = {one_of("family", name, FAMILIES) for name in families} or set(FAMILIES)
    found = [
        case
        for case in cases()
        if (case.quick or not quick) and match in case.id and any(c.family in wanted for c in contests(case))
    ]
    if not found:
        raise OptionError(f"no case has {match!r} in its name; needed part of one such as 'n1-c32-112x112-k3'")
    return found


def run(
    chosen: Sequence[Case],
    settings: Settings,
    *,
    families: Sequence[str] = (),
    peers: Iterable[str] | None = None,
    compile_times: bool = True,
    own: bool = False,
    tell: Tell = lambda text: None,
) -> Report:
    """Measure the chosen cases beside the peers that are installed (None: all that there are).

    Args:
        chosen: what `choose` returns.
        settings: how long, with how many threads, on which backend of ours.
        families: those of the cases' families that are judged; none named: all.
        peers: names out of `PEERS`.
        compile_times: whether to measure first calls in new processes.
        own: whether to measure `properties` too.
        tell: is told what is measured next.

    Raises:
        OptionError: there is no such peer.
    """
    named = list(PEERS) if peers is None else [one_of("peer", name, PEERS) for name in peers]
    missing = {name: PEERS[name].missing() for name in named}
    skipped = {name: f"not installed: {', '.join(packages)}" for name, packages in missing.items() if packages}
    modules = {OURS: OWN_MODULE} | {name: PEERS[name].module for name in named if name not in skipped}
    tell("the machine's limits")
    limits = _limits(settings, skipped)
    peaks = _peaks(settings, limits)
    timings, found = [], []
    with Field(modules, settings) as field:
        for number, case in enumerate(chosen):
            tell(f"{number + 1}/{len(chosen)} {case.id}")
            timings.append(measure(case, field, families))
            found += [s for s in scores(timings[-1], limits) if not families or s.family in families]
        versions, lost = field.versions, field.lost
    firsts = _first_calls(found, settings, tell) if compile_times else {}
    traits = _traits(settings, tell) if own else []
    when = datetime.now(timezone.utc).isoformat(timespec="seconds")
    return Report(
        when,
        host.describe(),
        settings,
        versions,
        skipped | lost,
        limits,
        peaks + _peaks(settings, limits),
        timings,
        found,
        standings(found),
        firsts,
        traits,
    )


def network_seconds(settings: Settings) -> dict[str, float]:
    """Seconds that EfficientNet-Lite0 takes at batch 1, by participant that is installed, each in its best way."""
    (case,) = choose(["network"])
    modules = {OURS: OWN_MODULE} | {name: peer.module for name, peer in PEERS.items() if not peer.missing()}
    with Field(modules, settings) as field:
        found = measure(case, field).seconds
    each: dict[str, list[float]] = {}
    for label, seconds in found.items():
        each.setdefault(label.split()[0], []).append(median(seconds))
    return {name: min(seconds) for name, seconds in each.items()}


def _traits(settings: Settings, tell: Tell) -> list[Property]:
    """`properties` beside limits measured right before: what memory gives can double from one minute to another."""
    one = _limits(replace(settings, threads=1), {}) if settings.threads > 1 else None
    return properties(settings, _limits(settings, {}), one, tell)


def _limits(settings: Settings, skipped: dict[str, str]) -> Ceilings | None:
    """The machine's limits, which the CPU kernels' vocabulary measures; None, and why, where there are none."""
    try:
        with Worker(ceilings.__name__, settings.threads) as worker:
            return ceilings.measured(worker, min(settings.rounds, 3), settings.seconds)
    except WorkerError as error:
        skipped["limits"] = str(error)
        return None


def _peaks(settings: Settings, limits: Ceilings | None) -> list[float]:
    """Bursts of the peak, before and after, that tell whether the machine was quiet."""
    if limits is None:
        return []
    with Worker(ceilings.__name__, settings.threads) as worker:
        return ceilings.peaks(worker, 3, settings.seconds)


def _first_calls(found: Sequence[Score], settings: Settings, tell: Tell) -> dict[str, list[FirstCalls]]:
    """Of each family's first case, by each of our ways."""
    firsts: dict[str, list[FirstCalls]] = {}
    for name in dict.fromkeys(score.family for score in found if score.fault is None):
        mine = [score for score in found if score.family == name and score.fault is None]
        ways = [score for score in mine if score.case == mine[0].case]
        tell(f"first calls: {name}")
        firsts[name] = [_first_calls_of(score, settings) for score in ways]
    return firsts


def _first_calls_of(score: Score, settings: Settings) -> FirstCalls:
    with tempfile.TemporaryDirectory() as cache:
        cold, warm = (first_call(score.case, score.ours, settings, cache) for _ in range(2))
    return FirstCalls(score.case.title, score.ours, cold, warm)


def _family(standing: Standing, firsts: dict[str, list[FirstCalls]]) -> dict[str, Any]:
    family, found = standing.family, asdict(standing)
    del found["family"]
    return {
        "name": family.name,
        "title": family.title,
        "target": {"mean": family.mean, "least": family.least},
        **found,
        "met": standing.met,
        "first_calls": [asdict(each) for each in firsts.get(family.name, [])],
    }


def _case(timings: Timings, found: Sequence[Score]) -> dict[str, Any]:
    case = timings.case
    own = [asdict(score) for score in found if score.case == case]
    for score in own:
        del score["case"]
    return {
        "id": case.id,
        "source": case.source,
        "flops": case.flops,
        "bytes": case.bytes,
        "scores": own,
        "seconds": timings.seconds,
        "build_seconds": timings.build,
        "faults": timings.faults,
    }

"""What may have gone wrong: a table of mistakes, each a function from the arguments to what it would have given.

A hypothesis explains what it predicts to within the bound. Of those that explain everything, the ones that took the
least from the observation are named: first mistakes that predict every value, then those with numbers that were
estimated, then coarser arithmetic, then values that are missing, then a mere place.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import numpy as np

from npdwconv.verify import hypotheses_cases as cases
from npdwconv.verify import hypotheses_fitted as fitted
from npdwconv.verify import hypotheses_order as order
from npdwconv.verify import hypotheses_places as places
from npdwconv.verify import hypotheses_rounded as roundings
from npdwconv.verify.bounds import Enclosure
from npdwconv.verify.hypotheses_evidence import Evidence, Finding, Variant, evidence
from npdwconv.verify.report import Diagnosis, Report

# what an explanation takes from the observation: the less, the better
NOTHING, NUMBERS, ROUNDING, VALUES, PLACES = range(5)
_NEARLY_ALL = 0.95  # an explanation of fewer is worse than one that takes more from the observation
_GOOD_SHARE = 0.5  # of the bad elements that an explanation makes good, less those that it makes bad


def _no_variants(e: Evidence) -> Iterator[Variant]:
    return iter(())


def _no_findings(e: Evidence) -> Iterator[Finding]:
    return iter(())


def _no_predictions(e: Evidence) -> Iterator[Enclosure]:
    return iter(())


@dataclass(frozen=True)
class Hypothesis:
    """A mistake.

    Attributes:
        name: in `Report.diagnoses` and `Report.blind_to`.
        explanation: what was done instead, ``{}`` the details, and what to look at.
        variants: the calls that it makes of a case, the plainest first, whose results are predicted.
        find: findings that need the observation.
        taken: what `find` takes from it: `NUMBERS`, `ROUNDING`, `VALUES` or `PLACES`.
        probe: results that data must tell from the truth to show what `find` looks for.
        coarse: whether it is an arithmetic of fewer digits, of which several may give the same.
    """

    name: str
    explanation: str
    variants: Callable[[Evidence], Iterator[Variant]] = _no_variants
    find: Callable[[Evidence], Iterator[Finding]] = _no_findings
    taken: int = NUMBERS
    probe: Callable[[Evidence], Iterator[Enclosure]] = _no_predictions
    coarse: bool = False

    def findings(self, e: Evidence, level: int) -> Iterator[Finding]:
        """Those that take as much from the observation as a level says."""
        if level == self.taken:
            yield from self.find(e)
        for variant in self.variants(e) if level == NOTHING else ():
            ratio = e.judged(variant)
            if ratio is not None:
                yield Finding(variant.detail, ratio)

    def hidden(self, pieces: list[Evidence]) -> bool:
        """Whether it could have been made here, in its plainest form, and the data would not show it."""
        possible = False
        for e in pieces:
            variant = next(iter(self.variants(e)), None)
            exact = next(iter(self.probe(e)), None) if variant is None else None
            if (variant is not None and e.distinguishes(variant)) or (exact is not None and e.shows(exact)):
                return False
            possible = possible or variant is not None or exact is not None
        return possible


def _rolled_channels(e: Evidence) -> Iterator[Enclosure]:
    return _rolled(e, e.channel_axis)


def _rolled_images(e: Evidence) -> Iterator[Enclosure]:
    return _rolled(e, 0) if e.per_image else iter(())


def _rolled(e: Evidence, axis: int) -> Iterator[Enclosure]:
    if e.observed.shape[axis] > 1:
        yield e.known.each(lambda array: np.roll(array, 1, axis))


def _times(e: Evidence, factor: float) -> Iterator[Enclosure]:
    yield e.known.each(lambda array: array * factor)


HYPOTHESES = (
    Hypothesis(
        "kernel_flipped",
        "the kernel was flipped {}: a convolution in the mathematical sense instead of a cross-correlation, or in an "
        "input gradient the reverse; check which of the two the implementation defines, and how weights are imported",
        cases.kernel_flipped,
    ),
    Hypothesis(
        "kernel_axes_swapped",
        "the kernel's axes were swapped, {}; check the order of height and width where weights are imported",
        cases.kernel_axes_swapped,
    ),
    Hypothesis(
        "padding_side",
        "the padding lies elsewhere, {}; check how SAME and low/high pads are resolved (SAME is not symmetric with "
        "an even kernel or a stride)",
        cases.padding_side,
    ),
    Hypothesis("padding_mode", "the padding was filled by another rule, {}; check padding_mode", cases.padding_mode),
    Hypothesis(
        "stride_phase",
        "the windows begin {}; check where the first window lies, and the padding in front",
        cases.stride_phase,
    ),
    Hypothesis(
        "dilation_ignored",
        "the dilation was ignored, taps were read {}; check that the option reaches the kernel",
        cases.dilation_ignored,
    ),
    Hypothesis(
        "multiplier_order",
        "output channels are numbered m·C + c instead of c·M + m: {}; check how the multiplier's axis is merged",
        cases.multiplier_order,
    ),
    Hypothesis(
        "channels_permuted",
        "channels are in another order, {}; check what shuffles, groups or concatenates channels",
        find=order.channels_permuted,
        probe=_rolled_channels,
    ),
    Hypothesis(
        "images_permuted",
        "images of the batch are in another order, {}; check what gathers, shuffles or splits the batch",
        find=order.images_permuted,
        probe=_rolled_images,
    ),
    Hypothesis(
        "layout_misread",
        "the memory of one layout was read as the other: {}; transpose instead of reshaping",
        cases.layout_misread,
    ),
    Hypothesis(
        "weight_layout",
        "the weight's memory was read in another order: {}; transpose it on import instead of reshaping",
        cases.weight_layout,
    ),
    Hypothesis("bias_missing", "{} was not added; check that it reaches the kernel", cases.bias_missing),
    Hypothesis("bias_doubled", "{} was added twice; check for one in the kernel and one after it", cases.bias_doubled),
    Hypothesis(
        "state_missing",
        "the state was taken for {}; check that what one call returns reaches the next",
        cases.state_missing,
    ),
    Hypothesis("activation_missing", "the activation was left out: {}; check what is fused", cases.activation_missing),
    Hypothesis("activation_swapped", "another activation was applied: {}; check its name", cases.activation_swapped),
    Hypothesis(
        "scale",
        "values are multiplied: {}; check a batch norm's eps, an average over the batch, a quantisation's scale",
        find=fitted.scale,
        probe=partial(_times, factor=2.0),
    ),
    Hypothesis(
        "offset",
        "a number was added in each channel: {}; check the bias, a batch norm's mean, a quantisation's zero point",
        find=fitted.offset,
    ),
    Hypothesis(
        "tf32_inputs",
        "{} were rounded to TF32; turn it off (torch.backends.cudnn.allow_tf32, NVIDIA_TF32_OVERRIDE=0), or check "
        "with compute='tf32'",
        partial(cases.narrowed, name="tf32"),
        coarse=True,
    ),
    Hypothesis(
        "bfloat16_inputs",
        "{} were rounded to bfloat16; check autocast and fast-math modes, or check with compute='bfloat16'",
        partial(cases.narrowed, name="bfloat16"),
        coarse=True,
    ),
    Hypothesis(
        "bfloat16_accumulation",
        "sums were rounded to bfloat16: {}; accumulate in float32, or check with compute='bfloat16_accumulation'",
        find=partial(roundings.accumulated, name="bfloat16"),
        taken=ROUNDING,
        probe=partial(roundings.rounding_hidden, name="bfloat16"),
        coarse=True,
    ),
    Hypothesis(
        "float16_compute",
        "float16 took the place of a wider arithmetic: {}; accumulate in float32, or check with compute='float16', or "
        "'float16_accumulation' where sums are rounded too",
        partial(cases.narrowed, name="float16"),
        partial(roundings.accumulated, name="float16"),
        ROUNDING,
        partial(roundings.rounding_hidden, name="float16"),
        coarse=True,
    ),
    Hypothesis(
        "unwritten",
        "values are missing: {}; look for elements that no thread owns, and for what `out` held before",
        find=places.unwritten,
        taken=VALUES,
        probe=partial(_times, factor=0.0),
    ),
    Hypothesis(
        "local_defect",
        "only some places are wrong: {}; look at tile borders, remainders of vectors, races and overflows there",
        find=places.local_defect,
        taken=PLACES,
    ),
)


class _Explained(NamedTuple):
    diagnosis: Diagnosis
    level: int
    coarse: bool

    @property
    def perfect(self) -> bool:
        return self.diagnosis.worst_ratio <= 1.0 and self.diagnosis.explained == 1.0

    @property
    def merit(self) -> tuple[bool, int, float, float]:
        """Less is better."""
        explained = self.diagnosis.explained
        return explained < _NEARLY_ALL, self.level, -explained, self.diagnosis.worst_ratio


def diagnoses(report: Report) -> tuple[Diagnosis, ...]:
    """What explains the bad elements of a report, the best first; nothing weaker beside what explains them all."""
    wrong = [e for e in evidence(report) if e.bad.any()]
    found: list[_Explained] = []
    with np.errstate(all="ignore"):
        for level in range(PLACES + 1):
            found += _at(level, wrong)
            best = [each for each in found if each.perfect]
            if best:
                if level < ROUNDING and all(each.coarse for each in best):
                    found += _at(ROUNDING, wrong)
                break
    perfect = [each for each in found if each.perfect and each.level <= ROUNDING]
    ranked = sorted(perfect or found, key=lambda each: each.merit)
    names: dict[str, Diagnosis] = {}
    for each in ranked:
        names.setdefault(each.diagnosis.name, each.diagnosis)
    return tuple(names.values())


def blind_to(report: Report) -> tuple[str, ...]:
    """The mistakes that would have stayed within the bound on this data."""
    pieces = [e for e in evidence(report) if e.observed.size]
    with np.errstate(all="ignore"):
        return tuple(hypothesis.name for hypothesis in HYPOTHESES if hypothesis.hidden(pieces))


def _at(level: int, wrong: list[Evidence]) -> list[_Explained]:
    explained = (_explained(hypothesis, wrong, level) for hypothesis in HYPOTHESES)
    return [each for each in explained if each is not None]


def _explained(hypothesis: Hypothesis, wrong: list[Evidence], level: int) -> _Explained | None:
    """The best findings for every wrong result together, if they make more good than bad."""
    details, good, left, bad, worst = [], 0, 0, 0, 0.0
    for e in wrong:
        count = int(np.count_nonzero(e.bad))
        bad += count
        best = max(hypothesis.findings(e, level), key=lambda each: _merit(e, each), default=None)
        if best is None:
            left, worst = left + count, max(worst, float(e.compared.ratio.max()))
            continue
        made_good, still = _merit(e, best)[:2]
        good, left, worst = good + made_good, left - still, max(worst, float(best.ratio.max()))
        details.append(best.detail if len(wrong) == 1 else f"{best.detail} [{e.name}]")
    if not details or good < _GOOD_SHARE * bad or left > (1.0 - _GOOD_SHARE) * bad:
        return None
    text = hypothesis.explanation.format("; ".join(dict.fromkeys(details)))
    return _Explained(Diagnosis(hypothesis.name, text, worst, good / bad), level, hypothesis.coarse)


def _merit(e: Evidence, finding: Finding) -> tuple[int, int, float]:
    """How many bad elements it makes good; how many are still bad or become so, negative; the worst, negative."""
    still = finding.ratio > 1.0
    return int(np.count_nonzero(e.bad & ~still)), -int(np.count_nonzero(still)), -float(finding.ratio.max(initial=0.0))

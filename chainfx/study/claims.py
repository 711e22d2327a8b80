"""What others claim about orders of compression, each with a verdict from the records of one study or several.

A claim is broken into tests, each on differences of which there is one a seed, as for verdicts on pairs. The tests of
a claim under one training are one family, corrected by Holm, so that the chance of any wrong word on that claim is at
most ``alpha``; claims are not corrected for each other.
"""

import dataclasses
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from chainfx.rendering import rendered
from chainfx.study import claim_settings as settings
from chainfx.study import claim_tests as tests
from chainfx.study.analysis import StudyResult
from chainfx.study.claim_tests import ClaimTest, Results, Sample, Says
from chainfx.study.statistics import decide
from chainfx.study.tuning import Training

__all__ = ["CLAIMS", "Claim", "ClaimOutcome", "ClaimTest", "claims_on"]

ClaimOutcome = Literal["supported", "contradicted", "undecided", "not tested"]
Rule = Literal["every", "some"]
Tested = Callable[[Results, Training], Iterator[Sample] | Iterator[ClaimTest]]


@dataclass(frozen=True, slots=True)
class Claim:
    """A claim, under one training, and what the records say of it.

    ``rule``: ``"every"`` if one test against it contradicts it and all have to be for it; ``"some"`` if one test for it
    supports it and all have to be against it.
    """

    name: str
    training: Training
    rule: Rule
    tests: tuple[ClaimTest, ...]

    @property
    def outcome(self) -> ClaimOutcome:
        """The verdict; ``"not tested"`` if the records have nothing that bears on it."""
        said = [test.says for test in self.tests]
        if not said:
            return "not tested"
        strong: Says = "against" if self.rule == "every" else "for"
        if strong in said:
            return "contradicted" if self.rule == "every" else "supported"
        if "nothing" in said:
            return "undecided"
        return "supported" if self.rule == "every" else "contradicted"

    def to_dict(self) -> dict[str, Any]:
        """The claim with its outcome as plain JSON."""
        return {**dataclasses.asdict(self), "outcome": self.outcome}

    def __str__(self) -> str:
        return rendered(self, "text")


def claims_on(results: Results) -> tuple[Claim, ...]:
    """Every claim of :data:`CLAIMS` under every training that the studies have, from all their records together.

    ``results``: of studies that may differ in design, network and data; two of the same network and data are parts of
    one. Margin, level and kind of test are those of the first.
    """
    trainings = dict.fromkeys(training for each in results for training in each.design.trainings)
    return tuple(
        Claim(name, training, rule, _tests(list(found(results, training)), results[0]))
        for training in trainings
        for name, (rule, found) in CLAIMS.items()
    )


def _tests(samples: Sequence[Sample | ClaimTest], result: StudyResult) -> tuple[ClaimTest, ...]:
    """The tests of a claim: samples are decided as one family, what is decided already stays."""
    made = [each for each in samples if isinstance(each, ClaimTest)]
    design, family = result.design, [each for each in samples if isinstance(each, Sample) and len(each.differences)]
    decisions = decide([each.differences for each in family], math.log10(1 + design.margin), design.alpha, design.test)
    for sample, decision in zip(family, decisions, strict=True):
        size, says = f"{10**decision.difference:.2f} times further", sample.says(decision.outcome)
        seeds = len(sample.differences)
        made.append(ClaimTest(sample.what, sample.where, says, size, decision.confidence, seeds))
    return tuple(made)


CLAIMS: Mapping[str, tuple[Rule, Tested]] = {
    "combining helps (the whole is more than its parts)": ("every", tests.combining),
    "order matters": ("some", tests.reordering),
    "insertion keeps the pair order": ("every", tests.inserting),
    "larger-ratio-first is no rule": ("some", tests.larger_ratio_first),
    "repetition does not help": ("every", tests.repeating),
    "distillation first beats distillation last": ("every", tests.distilling_first),
    "weakest step first": ("every", tests.weakest_first),
    "later stages make up for an earlier loss": ("every", tests.making_up),
    "stable across networks": ("every", settings.stability(0)),
    "stable across data sets": ("every", settings.stability(1)),
    "easier tasks compress further": ("every", settings.easier_tasks),
    "stable under measured latency": ("every", settings.stable_under_latency),
}
"""The claims by name, each with its rule and what tests it, whose docstring says how."""

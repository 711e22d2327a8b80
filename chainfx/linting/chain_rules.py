"""The rules of lint that follow from the passes and what there is to run them with."""

import dataclasses
from collections.abc import Callable, Iterator
from itertools import pairwise

from chainfx.linting.chain import Chain, Step
from chainfx.passes import Pass
from chainfx.scheduler import Finding, lost_facts, unserved_needs

__all__ = ["CHAIN_RULES", "FEW_BITS", "milder"]

Rule = Callable[[Chain], Iterator[Finding]]

FEW_BITS = 4
"""At most so many bits for weights are too few without training."""

_MANY_STAGES = 3
_KERNEL_BITS = 8
_EXERCISE = "compatibility exercise"
_DECLARED = "declared by the passes"


def pairs_to_watch(chain: Chain) -> Iterator[Finding]:
    """Two passes whose order is right, and that the evidence rates moderate together."""
    for first, second in chain.pairs():
        for row in chain.evidence:
            if row.rating == "moderate" and row.applies(first.one, second.one, chain.trainer):
                reason = f"{first.name} and then {second.name} is rated moderate: {row.reason}"
                fix = f"look at the accuracy after {second.name}, and use a milder setting of it if it falls"
                yield Finding("pair", "info", (first.position, second.position), reason, row.source, fix)


def too_many_stages(chain: Chain) -> Iterator[Finding]:
    """More than three lossy stages."""
    lossy = chain.lossy
    if len(lossy) > _MANY_STAGES:
        yield Finding(
            "stages",
            "warning",
            (),
            f"{len(lossy)} lossy stages: each further one gains less and costs accuracy",
            f"{_EXERCISE}: two or three methods at most",
            "compare with the chain without the stage that gains least; the report has the costs of each",
            contested="four passes together gave more than any part of them (arXiv 2403.17447)",
        )


def could_be_omitted(chain: Chain) -> Iterator[Finding]:
    """Pruning of a student that is small already."""
    for first, second in chain.pairs():
        if (first.family, second.family) == ("distillation", "pruning"):
            yield Finding(
                "optional",
                "info",
                (second.position,),
                f"the student of {first.name} is smaller already, so that {second.name} is optional",
                f"{_EXERCISE}, corrected chain",
                f"compare with the chain without {second.name}",
            )


def repeated(chain: Chain) -> Iterator[Finding]:
    """A pass that stands in the chain twice."""
    for first, second in chain.pairs():
        if first.name == second.name and not first.one.info.exact:
            yield Finding(
                "repeated",
                "info",
                (first.position, second.position),
                f"{first.name} stands twice, and once with a stronger setting did as well or nearly so",
                "arXiv 2403.17447, sec. 6",
                f"use {first.name} once, with the setting that the two reach together",
            )


def no_recovery(chain: Chain) -> Iterator[Finding]:
    """A lossy stage that is not tuned before the next lossy one."""
    for first, second in pairwise(chain.lossy):
        if not first.tuned:
            yield Finding(
                "recovery",
                "warning",
                (first.position, second.position),
                f"nothing is tuned between {first.name} and {second.name}, so that the errors of both add up",
                "arXiv 2403.17447, whose protocol fine-tunes right after every compression",
                _how_to_tune(chain, first),
            )


def post_training(chain: Chain) -> Iterator[Finding]:
    """A lossy stage that no trainer tunes, where that costs much: all but quantization to more than four bits."""
    for step in chain.lossy:
        if step.tuned or "training" in step.one.needs:
            continue
        mended = milder(step.one)
        if mended is not step.one:
            bits, fix = step.bits("weights"), f"{_how_to_tune(chain, step)}, or use {mended.label}"
            reason = (
                f"{step.name} to {bits} bits without training: so few levels need weights that were trained for them"
            )
        elif step.family in ("pruning", "factorization"):
            fix, reason = _how_to_tune(chain, step), f"{step.name} is applied and not tuned"
        else:
            continue
        source = f"{_EXERCISE}: training-time methods before post-training ones"
        yield step.finding("post-training", "warning", reason, source, fix)


def loses_facts(chain: Chain) -> Iterator[Finding]:
    """A pass that destroys what an earlier one made, before anything used it."""
    steps = chain.steps
    for first, second, fact in lost_facts([step.one for step in steps]):
        maker, loser = steps[first], steps[second]
        yield Finding(
            "lost-fact",
            "error",
            (maker.position, loser.position),
            f"{loser.name} loses the {fact} that {maker.name} makes",
            _DECLARED,
            f"let {loser.name} go first, or leave {maker.name} out",
        )


def unserved(chain: Chain) -> Iterator[Finding]:
    """A need that nothing serves: training, evaluation, calibration data, or a fact that a pass requires."""
    for place, step in enumerate(chain.steps):
        for problem in unserved_needs(step.one, trainer=chain.trainer, calibration=chain.calibration):
            reason, _, fix = problem.partition("; ")
            yield step.finding("need", "error", f"{step.name}: {reason}", _DECLARED, fix)
        made = frozenset(fact for earlier in chain.steps[:place] for fact in earlier.one.info.establishes)
        there = made | (chain.network.facts if chain.network else frozenset())
        for fact in sorted(step.one.info.requires - there):
            reason = f"{step.name} requires {fact}, which no pass before it establishes"
            yield step.finding("need", "error", reason, _DECLARED, f"put a pass that makes {fact} before {step.name}")


def milder(one: Pass) -> Pass:
    """A quantization to at most four bits as one to eight, which needs no training; any other pass as it is.

    >>> from chainfx.passes import Quantize
    >>> milder(Quantize(4, 4)).label, milder(Quantize(6, 6)).label
    ('quantize(8, 8)', 'quantize(6, 6)')
    """
    weights = getattr(one, "weights", None)
    if one.info.family != "quantization" or not isinstance(weights, int) or weights > FEW_BITS:
        return one
    bits = {name: getattr(one, name, None) for name in ("weights", "activations")}
    wider = {name: _KERNEL_BITS for name, value in bits.items() if isinstance(value, int) and value < _KERNEL_BITS}
    changed: Pass = dataclasses.replace(one, **wider)  # type: ignore[type-var]  # every concrete pass is a dataclass
    return changed


def _how_to_tune(chain: Chain, step: Step) -> str:
    """What to do so that a stage is tuned."""
    return f"use a pass that is trained in place of {step.name}" if chain.trainer else "give a trainer"


CHAIN_RULES: tuple[Rule, ...] = (
    loses_facts,
    unserved,
    no_recovery,
    post_training,
    too_many_stages,
    pairs_to_watch,
    could_be_omitted,
    repeated,
)
"""The rules in the order in which findings of equal severity are listed."""

"""Order studies as text: the design before it runs, how far it is, the verdicts, and the law."""

import statistics
from collections.abc import Iterator, Sequence

from rich.table import Table

from chainfx.report.text_tables import plain_table, text_of, times
from chainfx.study import (
    Arm,
    ArmPoint,
    Design,
    LawEdge,
    MeasuredLaw,
    Status,
    StudyResult,
    Training,
    Verdict,
    detectable,
    least_p,
)

__all__ = [
    "ALONE",
    "EQUALLY_LONG",
    "alone_rows",
    "design_text",
    "endpoint_text",
    "law_text",
    "outcome_text",
    "result_text",
    "status_text",
]

ALONE = ("pass alone", "ratio", "loss of accuracy", "least", "most", "seeds")
"""The columns of :func:`alone_rows`."""

EQUALLY_LONG = "arms trained equally long in all"
"""What the second table of a study of both budgets is about."""

_WIDTH = 120
_TRAININGS = {
    "paper": "stages trained as the paper defines them",
    "equal": "training held equal: all parameters, one loss, one rate, as many epochs",
}


def design_text(design: Design) -> str:
    """What a study will do, and what it can find out, one fact a line."""
    grids = [f"  {letter}  {', '.join(one.label for one in grid)}" for letter, grid in design.passes.items()]
    counts = sorted({len(design.configurations(arm)) for arm in design.arms if len(arm.steps) > 1})
    primary, seeds = sum(each.primary for each in design.comparisons), len(design.seeds)
    few = ", a reduced grid: the paper tries about 20" if design.reduced else ""
    lines = [
        f"study {design.orders!r} of {design.network.get('name')} on {design.data_name}",
        *grids,
        f"{len(design.arms)} arms ({', '.join(map(str, design.arms))})",
        *([f"{' or '.join(map(str, counts))} configurations of an order{few}"] if counts else []),
        f"{seeds} seeds, each with its own original; trainings: {', '.join(design.trainings)}; budget {design.budget}",
        f"{design.stages} stages to train; {design.stages_unshared} if beginnings were not shared",
        *_unequal(design),
        f"primary endpoint: {endpoint_text(design)}, mean of the best log-ratio over losses of accuracy up to "
        f"{design.reference:.1%}; {primary} comparisons a training",
        f"equivalent within {design.margin:.0%}; {design.test} test over seeds, Holm correction, alpha {design.alpha}",
        *(_power(design, primary) if primary else ["nothing is compared: the points of each pass alone are measured"]),
    ]
    return "\n".join(lines)


def _unequal(design: Design) -> list[str]:
    """What a reader should know of how long arms train, and of those that are given up."""
    unequal = design.budget != "total" and design.lengths_differ
    longer = "arms of more steps train longer; " + (
        "a second table has them equally long"
        if design.budget == "both"
        else "budget 'both' also has them equally long"
    )
    given_up = f"chains that lost more than {design.hopeless:.1%} are not trained further" if design.hopeless else ""
    return [*([longer] if unequal else []), *([given_up] if given_up else [])]


def endpoint_text(design: Design) -> str:
    """What verdicts are about, in words."""
    return {
        "bitops": f"BitOps ({design.convention})",
        "storage": "storage",
        "latency-1": "time of one sample",
        "latency-64": "time of 64 samples",
        "bytes": "bytes on disk",
        "memory": "memory at its peak, counted",
        "peak-memory": "memory at its peak, measured",
    }[design.endpoint]


def _power(design: Design, primary: int) -> list[str]:
    """What the number of seeds can show."""
    seeds = len(design.seeds)
    if seeds < 8:
        return [f"with {seeds} {'seed' if seeds == 1 else 'seeds'}, fewer than 8, every verdict will be 'undecided'"]
    least = least_p(seeds, primary, design.test)
    smallest = "no least p (t test)" if least == 0 else f"the least p after correction is {least:.2g}"
    size = detectable(seeds, design.alpha / max(primary, 1))
    return [f"{smallest}; a difference of {size:.1f} standard deviations is found in four of five studies"]


def status_text(status: Status) -> str:
    """How far a study is, and why cases failed."""
    rest = "" if status.recorded == status.cases else f", about {status.left / 60:.0f} minutes left on one process"
    done = f"{status.recorded} of {status.cases} cases, {status.seconds / 60:.1f} minutes of stages{rest}"
    return "\n".join([done, *(f"failed: {line}" for line in status.failures)])


def result_text(result: StudyResult) -> str:
    """A table of verdicts for each training, the law that they give, and how far the study is."""
    parts = []
    for training in result.design.trainings:
        heading = f"{training}: {_TRAININGS[training]}"
        if not any(each.training == training for each in result.verdicts):
            parts.append(text_of(_alone(heading, result, training), width=_WIDTH).rstrip())
            continue
        for design in result.design.readings:
            found = [each for each in result.under(design.budget).verdicts if each.training == training]
            tables = [_verdicts(heading, found), _tiers(found, design.tiers)]
            parts += [text_of(each, width=_WIDTH).rstrip() for each in tables]
            heading = f"{training}, and {EQUALLY_LONG}"
        parts.append(f"law ({training})\n{law_text(result.law(training))}")
    return "\n\n".join([*parts, status_text(result.status)])


def _alone(heading: str, result: StudyResult, training: Training) -> Table:
    table = plain_table(heading, ALONE, texts=1)
    table.show_edge = False
    for row in alone_rows(result, training):
        table.add_row(*row)
    return table


def alone_rows(result: StudyResult, training: Training) -> Iterator[list[str]]:
    """What each pass does alone, medians over seeds: a row for each of its options and each threshold of its exits."""
    for letter in result.design.passes:
        of: dict[tuple[str, float | None], list[ArmPoint]] = {}
        for point in result.points(Arm((letter,)), training):
            of.setdefault((point.passes[-1], point.threshold), []).append(point)
        for (label, threshold), points in of.items():
            losses = [point.loss for point in points]
            yield [
                label if threshold is None else f"{label} at {threshold:g}",
                times(statistics.median(point.ratio for point in points)),
                *(f"{loss:.2%}" for loss in (statistics.median(losses), min(losses), max(losses))),
                str(len(points)),
            ]


def _verdicts(heading: str, verdicts: Sequence[Verdict]) -> Table:
    table = plain_table(heading, ["comparison", "verdict", "confidence", "factor", "95 %", "seeds"], texts=2)
    table.show_edge = False
    for each in verdicts:
        table.add_row(*_cells(each))
    return table


def _tiers(verdicts: Sequence[Verdict], tiers: Sequence[float]) -> Table:
    """The best ratio of both arms by loss of accuracy, median over seeds."""
    heading = "best ratio at a loss of accuracy"
    table = plain_table(heading, ["comparison", *(f"{tier:.1%}" for tier in tiers)], texts=1)
    table.show_edge = False
    for each in verdicts:
        best = [f"{times(first)} / {times(second)}" for first, second in each.tiers.values()]
        table.add_row(f"{each.first} / {each.second}", *best)
    return table


def _cells(verdict: Verdict) -> list[str]:
    low, high = verdict.interval
    return [
        f"{verdict.first} / {verdict.second}",
        outcome_text(verdict),
        f"{verdict.decision.confidence:.3f}",
        f"{verdict.factor:.2f}",
        f"{low:.2f}..{high:.2f}" if verdict.seeds else "-",
        str(len(verdict.seeds)),
    ]


def outcome_text(verdict: Verdict) -> str:
    """The verdict in words."""
    decision = verdict.decision
    text = f"{verdict.better} better" if verdict.better else decision.outcome
    if verdict.empty:
        text += " (all lose too much)"
    elif decision.outcome == "undecided":
        text += " (more than 1,000 seeds)" if decision.more_seeds is None else f" (+{decision.more_seeds} seeds)"
    return text if verdict.primary else f"{text}, descriptive"


def law_text(law: MeasuredLaw) -> str:
    """The order, whether it is the only one, and a line for each edge and each pair without one."""
    lines = [
        f"order: {' -> '.join(law.order)}" + ("" if law.unique else " (other orders agree with the edges as well)")
    ]
    for edge in law.edges:
        if edge.kind == "cited":
            lines.append(f"  {edge.before} before {edge.after}: undecided, as cited{_leaning(edge)}")
            continue
        said = {name: "agree" if yes else "disagree" for name, yes in edge.agrees.items() if yes is not None}
        others = "".join(f", {name} {word}" for name, word in said.items())
        lines.append(
            f"  {edge.before} before {edge.after}: {edge.factor:.2f} times further, "
            f"confidence {edge.confidence:.3f}{others}"
        )
    for edge in law.gave_way:
        strength = f"confidence {edge.confidence:.3f}" if edge.kind == "measured" else f"cited{_leaning(edge)}"
        lines.append(f"  {edge.before} before {edge.after} gave way, the weakest edge of a cycle: {strength}")
    lines += [f"  {first} and {second}: equivalent" for first, second in law.equivalent]
    known = {frozenset((edge.before, edge.after)) for edge in (*law.edges, *law.gave_way)}
    open_pairs = [pair for pair in law.undecided if frozenset(pair) not in known]
    lines += [f"  {first} and {second}: undecided" for first, second in open_pairs]
    return "\n".join(lines)


def _leaning(edge: LawEdge) -> str:
    """Whether the study leans to a cited edge that it did not decide."""
    return f"; the study leans {'that' if edge.confidence > 0 else 'the other'} way ({abs(edge.confidence):.2f})"

"""What came of a study: verdicts, the law, and how far it is, from its records alone."""

import dataclasses
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from chainfx.errors import StudyError
from chainfx.rendering import rendered
from chainfx.scheduler import Ground
from chainfx.study.design import Budget, Design, Endpoint
from chainfx.study.order_law import MeasuredLaw, law_of
from chainfx.study.orders import Arm
from chainfx.study.records import CaseRecord, Origin
from chainfx.study.store import StudyStore
from chainfx.study.tuning import Training
from chainfx.study.verdicts import Verdict, verdicts_on

__all__ = ["ArmPoint", "Status", "StudyResult", "analyse", "status_of"]


@dataclass(frozen=True)
class Status:
    """How far a study is: cases with a record, of those that the design has, and those of them that failed.

    ``seconds``: spent on stages so far. ``left``: an estimate of the seconds that the rest takes on one process.
    ``failures``: a line for each case that failed.
    """

    recorded: int
    cases: int
    seconds: float
    left: float
    failures: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """The status as plain JSON."""
        return dataclasses.asdict(self)

    def __str__(self) -> str:
        return rendered(self, "text")


@dataclass(frozen=True, slots=True)
class ArmPoint:
    """A point of an arm: the chain of passes of a seed that gave it, at a threshold of its exits.

    ``ratio``: how many times cheaper than the original of the seed by the endpoint of the design, such as times fewer
    bit operations; ``loss``: accuracy lost against it, on the part that judges.
    """

    seed: int
    passes: tuple[str, ...]
    threshold: float | None
    ratio: float
    loss: float


@dataclass(frozen=True)
class StudyResult:
    """The verdicts of a study, under each training, and what they were made of; ``print`` shows them.

    ``records``: by seed, the records that were compared, by the hash of their case. ``ground``: the network, the data
    and the device that evidence from it says it was measured on.
    """

    design: Design
    records: Mapping[int, Mapping[str, CaseRecord]] = dataclasses.field(repr=False)
    origins: tuple[Origin, ...]
    verdicts: tuple[Verdict, ...]
    status: Status
    ground: Ground = dataclasses.field(default_factory=Ground)

    @property
    def seeds(self) -> tuple[int, ...]:
        """The seeds that have records."""
        return tuple(self.records)

    def points(self, arm: Arm, training: Training) -> tuple[ArmPoint, ...]:
        """The points of all cases of an arm that have not failed, seed by seed."""
        found = []
        for seed, records in self.records.items():
            cases = [records.get(case.hash) for case in self.design.cases_of(arm, seed, training)]
            original = next(each for each in records.values() if not each.passes)
            (origin,) = original.points
            found += [
                ArmPoint(
                    seed,
                    record.passes,
                    point.threshold,
                    original.cost(origin, self.design.cost) / record.cost(point, self.design.cost),
                    origin.accuracy - point.accuracy,
                )
                for record in cases
                if record is not None
                for point in record.points
            ]
        return tuple(found)

    def judged_by(self, endpoint: Endpoint) -> Self:
        """The same records with verdicts by another endpoint; what the design fixed beforehand is the primary one.

        Raises :class:`~chainfx.errors.StudyError` for what was not measured.
        """
        design = dataclasses.replace(self.design, endpoint=endpoint)
        return dataclasses.replace(self, design=design, verdicts=verdicts_on(design, self.records))

    def under(self, budget: Budget) -> Self:
        """The same records with verdicts on arms as they were trained under one budget of a study of both.

        Raises :class:`~chainfx.errors.StudyError` if they were not trained so.
        """
        design = next((each for each in self.design.readings if each.budget == budget), None)
        if design is None:
            raise StudyError(
                f"arms of the study were trained under the budget {self.design.budget!r} and not {budget!r}; "
                "run it with budget='both'."
            )
        return dataclasses.replace(self, design=design, verdicts=verdicts_on(design, self.records))

    def law(self, training: Training | None = None) -> MeasuredLaw:
        """The order that the primary verdicts on pairs give, under a training; the first of the design unless said.

        A comparison counts as one on a pair if its arms are two steps, one order and the other.
        """
        chosen = training or self.design.trainings[0]
        names = {letter: grid[0].info.name for letter, grid in self.design.passes.items()}
        edges, equivalent, undecided = [], [], []
        for comparison in self.design.comparisons:
            pair = _pair(comparison.first, comparison.second)
            verdict = self._verdict(str(comparison.first), str(comparison.second), chosen)
            if pair is None or verdict is None or not verdict.primary:
                continue
            first, second = names[pair[0]], names[pair[1]]
            match verdict.decision.outcome:
                case "first":
                    edges.append((first, second, verdict.decision.confidence, verdict.factor))
                case "second":
                    edges.append((second, first, verdict.decision.confidence, 1 / verdict.factor))
                case "equivalent":
                    equivalent.append((first, second))
                case _:
                    lean = math.copysign(1 - verdict.decision.p, verdict.decision.difference)
                    undecided.append((first, second, lean, verdict.factor))
        passes = [grid[0] for grid in self.design.passes.values()]
        return law_of(passes, edges, equivalent, undecided, self.source(chosen), self.ground)

    def source(self, training: Training) -> str:
        """The study in words: network, data, seeds, training, machine and versions."""
        network, data = self.design.network.get("name", "a network"), self.design.data_name
        options = dict(self.design.network.get("options", {}))
        machines = ", ".join(sorted({f"{each.machine}, torch {each.torch}" for each in self.origins})) or "no machine"
        return (
            f"chainfx study {self.design.orders!r} of {network} {options} on {data}, "
            f"{len(self.seeds)} seeds, training {training!r}, on {machines}"
        )

    def to_html(self) -> str:
        """One self-contained page: verdicts, laws, and a plot of every comparison."""
        return rendered(self, "html")

    def _verdict(self, first: str, second: str, training: Training) -> Verdict | None:
        wanted = (first, second, training)
        return next((each for each in self.verdicts if (each.first, each.second, each.training) == wanted), None)

    def to_dict(self) -> dict[str, Any]:
        """Verdicts, law and status as plain JSON; of a study of both budgets also the verdicts by the total one."""
        both = self.design.budget == "both"
        total = {"verdicts_total": _plain(self.under("total").verdicts)} if both else {}
        return {
            "design": self.design.to_dict(),
            "seeds": list(self.seeds),
            "verdicts": _plain(self.verdicts),
            **total,
            "laws": {training: self.law(training).to_dict() for training in self.design.trainings},
            "status": self.status.to_dict(),
        }

    def __str__(self) -> str:
        return rendered(self, "text")


def _plain(verdicts: Sequence[Verdict]) -> list[dict[str, Any]]:
    return [dataclasses.asdict(each) for each in verdicts]


def analyse(store: StudyStore | str | Path) -> StudyResult:
    """The result of a study from its records, at any time, also while it runs.

    ``store``: a store, its folder, or a file that :meth:`StudyStore.pack` wrote. Of each seed the records of one origin
    count: the trained original, machine and versions with the most of them. Raises
    :class:`~chainfx.errors.StudyError` if there is no study.
    """
    if not isinstance(store, StudyStore) and Path(store).is_file():
        return _analysed(*StudyStore.unpack(store))
    opened = store if isinstance(store, StudyStore) else StudyStore.open(store)
    return _analysed(opened.design, opened.records(), opened.ground)


def _analysed(design: Design, records: Sequence[CaseRecord], ground: Ground) -> StudyResult:
    found = comparable(records)
    origins = {next(iter(each.values())).origin for each in found.values()}
    verdicts = verdicts_on(design, found)
    ordered = tuple(sorted(origins, key=dataclasses.astuple))
    machines = {each.machine for each in origins}
    ground = dataclasses.replace(ground, device=machines.pop() if len(machines) == 1 else "")
    return StudyResult(design, found, ordered, verdicts, _status(design, records), ground)


def comparable(records: Sequence[CaseRecord]) -> Mapping[int, Mapping[str, CaseRecord]]:
    """By seed, in order, the records that can be compared, by the hash of their case; each begins with its original."""
    by_seed: dict[int, dict[Origin, dict[str, CaseRecord]]] = {}
    for record in records:
        by_seed.setdefault(record.seed, {}).setdefault(record.origin, {})[record.case] = record
    found = {}
    for seed, origins in sorted(by_seed.items()):
        whole = [each for each in origins.values() if any(not record.passes for record in each.values())]
        if whole:
            found[seed] = max(whole, key=len)
    return found


def status_of(store: StudyStore) -> Status:
    """How far a study is."""
    return _status(store.design, store.records())


def _status(design: Design, records: Sequence[CaseRecord]) -> Status:
    wanted = {case.hash for case in design.all_cases()}
    mine = {record.case: record for record in records if record.case in wanted}
    seconds = sum(record.seconds for record in mine.values())
    each = seconds / max(1, sum(record.seconds > 0 for record in mine.values()))
    failures = Counter(_failure(record) for record in mine.values() if record.failed is not None)
    return Status(
        recorded=len(mine),
        cases=len(wanted),
        seconds=seconds,
        left=each * (len(wanted) - len(mine)),
        failures=tuple(f"{count} times: {text}" if count > 1 else text for text, count in sorted(failures.items())),
    )


def _failure(record: CaseRecord) -> str:
    return f"{' > '.join(record.passes)} ({record.training}): {record.failed}"


def _pair(first: Arm, second: Arm) -> tuple[str, str] | None:
    """The letters of a pair that is compared with its reverse."""
    if len(first.steps) == 2 and first.steps == second.steps[::-1] and first.salt == second.salt:
        return first.steps[0], first.steps[1]
    return None

"""What a study is: passes with their options, orders, tuning, seeds and how it is judged, fixed before it runs."""

import dataclasses
import itertools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, Self, get_args

from chainfx.bitops import get_convention
from chainfx.errors import ChainfxError, StudyError, why_no_file
from chainfx.ir.graph import content_hash
from chainfx.passes import Distill, EarlyExit, Pass, pass_from_spec
from chainfx.rendering import rendered
from chainfx.study.measuring import MEASURED
from chainfx.study.orders import MARKS, ORDERS, Arm, Comparison, Orders, letter_of, orders_of
from chainfx.study.strength import as_strong_as_two, milder
from chainfx.study.students import ContrastedStudent, FreshStudent, Recovery, UntaughtStudent
from chainfx.study.tuning import Training, Tuning

__all__ = ["Budget", "Case", "Design", "Endpoint", "load_design"]

Budget = Literal["per stage", "total", "both"]
"""How long arms train: every stage equally long, or every arm in all; or each arm once so and once so."""

Endpoint = Literal["bitops", "storage", "latency-1", "latency-64", "bytes", "memory", "peak-memory"]
"""The cost that verdicts are about: bit operations, counted storage, or one of what is measured; see `Design`."""

PAPER_CASES = 20
"""About how many configurations the paper tries of every order (section 3.1)."""


@dataclass(frozen=True, slots=True)
class Case:
    """One configuration of an arm with one seed: a chain of passes to be run on the network of that seed.

    ``epochs``: of every stage. ``steps``: each step of the chain by its letter and which pass of the grid it is, such
    as ``"P:0"``. Cases with a common beginning share its stages.
    """

    seed: int
    salt: int
    training: Training
    epochs: int
    steps: tuple[str, ...]
    passes: tuple[Pass, ...]

    def beginning(self, length: int) -> "Case":
        """The case that ends after so many passes."""
        return dataclasses.replace(self, steps=self.steps[:length], passes=self.passes[:length])

    @property
    def unit(self) -> tuple[int, int, Training, int]:
        """What cases have in common that can share stages."""
        return self.seed, self.salt, self.training, self.epochs

    @property
    def hash(self) -> str:
        """Identifies the case in the records of a study, also for versions of chainfx with other options of passes."""
        return content_hash(*self.unit, self.steps)


@dataclass(frozen=True)
class Design:
    """An order study, fixed before anything runs; ``print`` shows what it will do.

    Parameters:
        orders: which orders are tried and compared, a key of :data:`~chainfx.study.ORDERS` such as ``"pairwise"``.
        passes: the passes under a letter each, in the order that is expected to be best; of each a grid of options.
        network: ``{"name": ..., "options": {...}}`` as :func:`chainfx.models.resolve_model` takes them.
        data: ``{"source": ..., ...}`` with the options of the source, as in a recipe. What is held out by its
            ``validation`` is halved: one part for choices inside a stage, one on which the study judges.
        seeds: each trains an original network of its own; the unit of every test.
        trainings: how stages are trained, see :class:`~chainfx.study.StudyTrainer`; each gives verdicts of its own.
        budget: ``"per stage"``: every stage trains for ``tuning.epochs``; ``"total"``: every arm trains as long as the
            longest, in equal parts; ``"both"``: verdicts by the first, and beside them those by the second.
        hopeless: a chain whose beginning lost more than this is not trained further, and keeps the points of that
            beginning; ``None`` to train all. At least ``reference``, so that such points count for nothing.
        cases: how many configurations of an arm are run, evenly spread over its grid; ``None`` for all.
        thresholds: of networks with exits each one gives a point, the same for all exits; 1.01 is above every
            confidence.
        convention: under which bit operations are counted for the primary verdict; ``"strict"`` is recorded too.
        measured: whether each point also carries what :data:`~chainfx.study.MEASURED` lists: latency beside the
            original, bytes on disk and memory. Such a study should have the machine to itself.
        endpoint: the cost that the primary verdicts are about: ``"bitops"``, ``"storage"``, or one of what is measured.
        reference: the largest loss of accuracy, against the original of the seed, that counts for anything.
        margin: orders whose ratios differ by less than this share are equivalent: 0.05 is five percent.
        tiers: losses of accuracy at which the best ratio is shown.
        test: ``"t"``, or ``"sign-flip"``, which assumes less and decides later.
        alpha: the chance of any wrong verdict in a family.

    Raises :class:`~chainfx.errors.StudyError` on what cannot be run.
    """

    orders: str
    passes: Mapping[str, tuple[Pass, ...]]
    network: Mapping[str, Any]
    data: Mapping[str, Any]
    seeds: tuple[int, ...] = tuple(range(8))
    tuning: Tuning = field(default_factory=Tuning)
    trainings: tuple[Training, ...] = ("paper", "equal")
    budget: Budget = "per stage"
    hopeless: float | None = None
    cases: int | None = None
    thresholds: tuple[float, ...] = (0.0, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.98, 0.99, 0.999, 1.01)
    convention: str = "mac_bw_ba"
    measured: bool = False
    endpoint: Endpoint = "bitops"
    reference: float = 0.1
    margin: float = 0.05
    tiers: tuple[float, ...] = (0.002, 0.006, 0.01, 0.02)
    test: Literal["t", "sign-flip"] = "t"
    alpha: float = 0.05

    def __post_init__(self) -> None:
        self._check(self.orders in ORDERS, "orders", f"one of {', '.join(ORDERS)}")
        grids = self.passes.values()
        self._check(len(self.passes) >= 2, "passes", "two letters or more, each with a grid of passes")
        for letter, grid in self.passes.items():
            if not grid or len({one.info.name for one in grid}) != 1:
                raise StudyError(f"design: the grid of {letter!r} is {grid!r}; give passes of one class.")
            if not letter or letter != letter.strip(MARKS + " "):
                marks = ", ".join(map(repr, MARKS))
                raise StudyError(f"design: a pass has the letter {letter!r}; use letters without {marks} and blanks.")
        names = [grid[0].info.name for grid in grids]
        self._check(len(set(names)) == len(names), "passes", "a pass under one letter only")
        self._check(bool(self.seeds) and len(set(self.seeds)) == len(self.seeds), "seeds", "seeds that differ")
        self._check(bool(self.trainings) and set(self.trainings) <= {"paper", "equal"}, "trainings", "paper, equal")
        self._check(self.budget in get_args(Budget), "budget", "'per stage', 'total' or 'both'")
        hope = "None, or a loss from reference"
        self._check(self.hopeless is None or self.hopeless >= self.reference, "hopeless", hope)
        self._check(self.cases is None or self.cases >= 1, "cases", "None or a number from 1")
        self._check(bool(self.thresholds) and min(self.thresholds) >= 0, "thresholds", "numbers from 0")
        self._check(0 < self.reference <= 1, "reference", "a share of accuracy in (0, 1]")
        self._check(self.margin > 0, "margin", "a share above 0")
        self._check(all(0 <= tier <= self.reference for tier in self.tiers), "tiers", "losses from 0 to reference")
        self._check(self.test in ("t", "sign-flip"), "test", "'t' or 'sign-flip'")
        self._check(0 < self.alpha < 0.5, "alpha", "a chance in (0, 0.5)")
        endpoints = get_args(Endpoint)
        self._check(self.endpoint in endpoints, "endpoint", f"one of {', '.join(endpoints)}")
        self._check(self.measured or self.endpoint not in MEASURED, "endpoint", "measured=True with it")
        get_convention(self.convention)
        for arm in self.arms:
            self.chain(arm, dict.fromkeys(arm.letters, 0))  # raises where a step has no stronger form

    def _check(self, holds: bool, option: str, allowed: str) -> None:
        if not holds:
            raise StudyError(f"design: {option}={getattr(self, option)!r} cannot be; use {allowed}.")

    @property
    def cost(self) -> str:
        """The name of the cost that verdicts are about, see :meth:`~chainfx.study.CaseRecord.cost`."""
        return self.convention if self.endpoint == "bitops" else self.endpoint

    @property
    def data_name(self) -> str:
        """The data in a word: their source, and of files the folder that they lie in."""
        source = str(self.data.get("source", "data"))
        return Path(self.data["path"]).parent.name or source if source == "npz" and "path" in self.data else source

    @cached_property
    def _orders(self) -> Orders:
        return orders_of(self.orders, {letter: grid[0] for letter, grid in self.passes.items()})

    @property
    def arms(self) -> tuple[Arm, ...]:
        """The orders that are run, each pass alone first."""
        return self._orders.arms

    @property
    def comparisons(self) -> tuple[Comparison, ...]:
        """What is compared."""
        return self._orders.comparisons

    def configurations(self, arm: Arm) -> list[dict[str, int]]:
        """Which pass of each grid an arm uses, for each of its configurations: equal for arms with equal letters."""
        grids = [range(len(self.passes[letter])) for letter in arm.letters]
        found = [dict(zip(arm.letters, each, strict=True)) for each in itertools.product(*grids)]
        count = len(found) if self.cases is None else min(self.cases, len(found))
        return [found[index * len(found) // count] for index in range(count)]

    def chain(self, arm: Arm, configuration: Mapping[str, int]) -> tuple[Pass, ...]:
        """The passes of one configuration of an arm."""
        return tuple(self._step(arm, place, configuration) for place in range(len(arm.steps)))

    def _names(self, arm: Arm, configuration: Mapping[str, int]) -> tuple[str, ...]:
        """The steps of one configuration of an arm by name; a fresh student has one of its own."""
        names = [f"{step}:{configuration[letter_of(step)]}" for step in arm.steps]
        fresh = [isinstance(one, FreshStudent) for one in self.chain(arm, configuration)]
        return tuple(f"{name}:fresh" if new else name for name, new in zip(names, fresh, strict=True))

    def _step(self, arm: Arm, place: int, configuration: Mapping[str, int]) -> Pass:
        step = arm.steps[place]
        letter = letter_of(step)
        one = self.passes[letter][configuration[letter]]
        match step.removeprefix(letter):
            case "+":
                return as_strong_as_two(one)
            case "-":
                return milder(one)
            case "~":
                return Recovery(_distillation(one))
            case "*":
                return UntaughtStudent(_distillation(one))
            case "^":
                return ContrastedStudent(_distillation(one))
        if place and arm.student == "fresh" and isinstance(one, Distill):
            return FreshStudent(one)
        return one

    def trains(self, arm: Arm) -> tuple[Training, ...]:
        """The trainings that an arm is run with: trained like all others, a student has one reading."""
        other = arm.student == "fresh" or any(step.endswith(("*", "^")) for step in arm.steps)
        return tuple(each for each in self.trainings if each == "paper" or not other)

    def cases_of(self, arm: Arm, seed: int, training: Training) -> list[Case]:
        """The cases of an arm, one for each configuration."""
        return [
            Case(seed, arm.salt, training, self._epochs(arm), self._names(arm, each), self.chain(arm, each))
            for each in self.configurations(arm)
        ]

    def _epochs(self, arm: Arm) -> int:
        if self.budget != "total":
            return self.tuning.epochs
        longest = max(len(other.steps) for other in self.arms)
        return max(1, self.tuning.epochs * longest // len(arm.steps))

    @property
    def lengths_differ(self) -> bool:
        """Whether some comparison is of arms with different numbers of steps, of which the longer trains longer."""
        return any(len(each.first.steps) != len(each.second.steps) for each in self.comparisons if each.primary)

    @property
    def readings(self) -> tuple[Self, ...]:
        """The designs of one budget that this one is made of: itself, or of both budgets one for each."""
        if self.budget != "both":
            return (self,)
        one, other = (dataclasses.replace(self, budget=each) for each in ("per stage", "total"))
        return one, other

    def all_cases(self) -> Iterator[Case]:
        """Every case with every beginning of its chain, seed after seed, each once; the original has no passes."""
        for seed in self.seeds:
            found: dict[Case, None] = {}
            for one, training, arm in itertools.product(self.readings, self.trainings, self.arms):
                for case in one.cases_of(arm, seed, training) if training in self.trains(arm) else ():
                    for length in range(len(case.passes) + 1):
                        found[case.beginning(length)] = None
            yield from found

    @property
    def stages(self) -> int:
        """How many stages are trained; beginnings that cases share are trained once."""
        return sum(bool(case.passes) for case in self.all_cases())

    @property
    def stages_unshared(self) -> int:
        """How many stages would be trained if every case began with the original."""
        return len(self.readings) * sum(
            len(arm.steps) * len(self.configurations(arm)) * len(self.trains(arm)) * len(self.seeds)
            for arm in self.arms
        )

    @property
    def reduced(self) -> bool:
        """Whether an order of several passes has fewer configurations than the paper tries, about 20.

        Every threshold of exits counts as one.
        """
        orders = [arm for arm in self.arms if len(arm.steps) > 1]
        return any(len(self.configurations(arm)) * self._thresholds(arm) < PAPER_CASES for arm in orders)

    def _thresholds(self, arm: Arm) -> int:
        """How many points each configuration of an arm gives."""
        has_exits = any(isinstance(self.passes[letter][0], EarlyExit) for letter in arm.letters)
        return len(self.thresholds) if has_exits else 1

    @property
    def hash(self) -> str:
        """Identifies what is measured; how many seeds measure it may grow."""
        return content_hash(dataclasses.replace(self, seeds=(0,)).to_dict())

    def to_dict(self) -> dict[str, Any]:
        """The design as plain JSON; :meth:`from_dict` rebuilds it."""
        plain = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        passes = {letter: [one.spec() for one in grid] for letter, grid in self.passes.items()}
        plain |= {"passes": passes, "tuning": dataclasses.asdict(self.tuning)}
        return {name: list(value) if isinstance(value, tuple) else value for name, value in plain.items()}

    @classmethod
    def from_dict(cls, plain: Mapping[str, Any]) -> Self:
        """The design that :meth:`to_dict` wrote, or a mapping as YAML has it: what is left out has its default."""
        known = {f.name for f in dataclasses.fields(cls)}
        for name in plain:
            if name not in known:
                raise StudyError(f"design: unknown key {name!r}; allowed are {', '.join(sorted(known))}.")
        for name in ("orders", "passes", "network", "data"):
            if name not in plain:
                raise StudyError(f"design: it has no {name!r}; give it.")
        values: dict[str, Any] = {
            name: tuple(value) if isinstance(value, list) else value for name, value in plain.items()
        }
        try:
            passes = {letter: tuple(_pass(item) for item in grid) for letter, grid in plain["passes"].items()}
            values |= {"passes": passes, "tuning": Tuning(**plain.get("tuning", {}))}
            return cls(**values)
        except (TypeError, AttributeError, ValueError) as error:
            raise StudyError(f"design: it does not have the form of a design ({error}); see docs/study.md.") from error

    def __str__(self) -> str:
        return rendered(self, "text")


def load_design(path: str | Path) -> Design:
    """The design in a YAML file with the fields of :class:`Design`.

    Raises :class:`~chainfx.errors.StudyError`, naming the file, if it cannot be read or run.
    """
    import yaml

    try:
        content = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise StudyError(
            f"the design {path} cannot be read: {why_no_file(error)}; give a YAML file with the fields of "
            "chainfx.study.Design, or the name of a design."
        ) from error
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f"{path}:{mark.line + 1}" if mark else f"{path}"
        problem = getattr(error, "problem", None) or error
        raise StudyError(f"the design {where} is not valid YAML: {problem}; mend it there.") from error
    if not isinstance(content, dict):
        raise StudyError(f"the design {path} is no mapping; give the fields of chainfx.study.Design.")
    try:
        return Design.from_dict(content)
    except ChainfxError as error:
        raise StudyError(f"{path}: {error}") from error


def _distillation(one: Pass) -> Distill:
    if isinstance(one, Distill):
        return one
    raise StudyError(f"{one.label} is no distillation, which alone has a teacher to be with or without.")


def _pass(item: Any) -> Pass:
    """A pass as a recipe writes it, ``{name: {option: value}}`` or a name, or as :meth:`Pass.spec` does."""
    if isinstance(item, str):
        return pass_from_spec({"pass": item})
    if "pass" in item:
        return pass_from_spec(item)
    ((name, options),) = item.items()
    return pass_from_spec({"pass": name, **(options or {})})

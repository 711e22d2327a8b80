"""A search over the options of passes: which of them compress furthest, within a budget of accuracy?

Give a :class:`Search` to :func:`chainfx.compile`, and what comes back is a :class:`SearchResult`: every :class:`Trial`,
the Pareto front of them, and the compressed network of the best one within the budget.
"""

import itertools
import math
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any, Literal, Self

from chainfx.bitops import get_convention
from chainfx.deploy import CompressedModel, EngineChoice
from chainfx.errors import ChainfxError, InputError
from chainfx.passes import Metric, Pass, is_number
from chainfx.rendering import rendered
from chainfx.scheduler import Plan, StageRecord

__all__ = ["Range", "Search", "SearchResult", "Trial", "searched"]

Options = Mapping[str, Mapping[str, Any]]
"""By the name of a pass, the values of some of its options."""

Outcome = tuple[float, float]
"""By how much the metric is worse than that of the original network, and the share of its cost that is left."""


@dataclass(frozen=True, slots=True)
class Range:
    """The numbers from ``low`` to ``high``, both included, as values that an option may have.

    Whole numbers if both are. ``log``: small numbers are tried as densely as large ones.

    >>> Range(2, 8)
    Range(low=2, high=8, log=False)
    """

    low: float
    high: float
    log: bool = False

    def __post_init__(self) -> None:
        numbers = all(is_number(each, -math.inf) for each in (self.low, self.high))
        if not numbers or self.low >= self.high or (self.log and self.low <= 0):
            raise InputError(f"search: {self} has no numbers; give low < high, and for log=True low > 0.")

    @property
    def whole(self) -> bool:
        """Whether only whole numbers are meant."""
        return isinstance(self.low, int) and isinstance(self.high, int)


def _range(option: str, values: Any) -> Any:
    """The values of an option; a mapping is a :class:`Range`."""
    if not isinstance(values, Mapping):
        return values
    if not {"low", "high"} <= values.keys() <= {"low", "high", "log"}:
        raise InputError(f"search: {option}={dict(values)!r} is no range; give it low and high, and perhaps log.")
    return Range(**values)


@dataclass(frozen=True)
class Search:
    """Which options of which passes are tried, and how much accuracy the result may lose.

    Parameters:
        options: by the name of a pass, by the name of an option: a list of values, or a :class:`Range` of numbers. They
            are set in every pass of that name; all other options stay as they were given.
        budget: by how much the metric of the trainer may be worse than that of the original network, in its units: 0.01
            is one point of accuracy. It has to be given.
        trials: how many combinations of options are tried. If there are no more than that, all of them are; else
            optuna chooses (``pip install chainfx[search]``), by a multi-objective tree-structured Parzen estimator.
        seed: of that choice. Finished stages are found again in ``workdir``, so the same search goes on where it ended.
        cost: what is to be small: ``"bitops"``, the bit operations expected of a sample, or ``"storage"``.
        convention: under which bit operations are counted.

    >>> search = Search({"prune-channels": {"ratio": [0.25, 0.5]}, "quantize": {"weight_bits": [8, 4, 2]}}, budget=0.01)
    >>> search.combinations
    6
    """

    options: Mapping[str, Mapping[str, Sequence[Any] | Range]] = field(default_factory=dict)
    budget: float = math.nan
    trials: int = 20
    seed: int = 0
    cost: Literal["bitops", "storage"] = "bitops"
    convention: str = "mac_bw_ba"

    def __post_init__(self) -> None:
        if not any(self.options.values()):
            raise InputError(
                "search: there are no options to try; give some, such as {'prune-channels': {'ratio': [0.25, 0.5]}}."
            )
        for (name, option), values in self.space.items():
            listed = isinstance(values, Sequence) and not isinstance(values, str) and len(values) > 0
            if not listed and not isinstance(values, Range):
                raise InputError(
                    f"search: {option} of {name} is {values!r}; give a list of values to try, or a Range of numbers."
                )
        if isinstance(self.budget, float) and math.isnan(self.budget):
            raise InputError(
                "search: there is no budget; give by how much the metric may get worse, such as budget=0.01."
            )
        if not is_number(self.budget, 0):
            raise InputError(f"search: budget={self.budget!r} is out of range; use a number from 0.")
        if type(self.trials) is not int or self.trials < 1:
            raise InputError(f"search: trials={self.trials!r} is out of range; use a whole number from 1.")
        if self.cost not in ("bitops", "storage"):
            raise InputError(f"search: cost={self.cost!r} is not known; use 'bitops' or 'storage'.")
        get_convention(self.convention)

    @classmethod
    def from_plain(cls, options: Any, **settings: Any) -> Self:
        """The search whose options are written as a recipe has them: ``{low: 2, high: 8}`` stands for a range.

        ``settings``: the other parameters. Raises :class:`~chainfx.errors.InputError` as the search itself does, and
        for options that do not have this form.

        >>> Search.from_plain({"quantize": {"weights": {"low": 2, "high": 8}}}, budget=0.01).options
        {'quantize': {'weights': Range(low=2, high=8, log=False)}}
        """
        if not isinstance(options, Mapping) or not all(isinstance(each, Mapping) for each in options.values()):
            raise InputError(f"search: options={options!r} cannot be; give a mapping for each pass.")
        of_passes = {name: {key: _range(key, each) for key, each in of.items()} for name, of in options.items()}
        return cls(of_passes, **settings)

    @property
    def space(self) -> dict[tuple[str, str], Sequence[Any] | Range]:
        """What is tried, by the name of a pass and of its option."""
        return {(name, option): values for name, of_pass in self.options.items() for option, values in of_pass.items()}

    @property
    def combinations(self) -> float:
        """How many combinations of options there are; infinite with a :class:`Range`."""
        return math.prod(math.inf if isinstance(each, Range) else len(each) for each in self.space.values())

    def cost_of(self, record: StageRecord) -> float:
        """What a stage costs."""
        costs = record.costs_under(self.convention)
        if self.cost == "storage":
            return costs.storage_bits
        return costs.bitops if costs.expected_bitops is None else costs.expected_bitops


@dataclass(frozen=True)
class Trial:
    """One combination of options, and what came of it.

    ``passes``: the chain in the order in which it ran. ``metric``: the trainer's, on held-out data; ``loss``: by how
    much it is worse than that of the original network; ``cost``: the share of the original's that is left. ``failed``:
    why it could not be compiled; it then has no numbers.
    """

    options: Options = field(hash=False)
    passes: tuple[Pass, ...]
    metric: float = math.nan
    loss: float = math.inf
    cost: float = math.inf
    failed: str | None = None

    @property
    def outcome(self) -> Outcome:
        """What is to be small."""
        return self.loss, self.cost


@dataclass(frozen=True)
class SearchResult:
    """What a search found; ``print`` shows it.

    ``measured_by``: the metric of the trials. ``original``: that of the original network. ``model``: the compressed
    network of the trial that is :attr:`chosen`, ``None`` if none is.
    """

    search: Search
    measured_by: Metric
    original: float
    trials: tuple[Trial, ...]
    model: CompressedModel | None = field(default=None, repr=False)

    @property
    def front(self) -> tuple[Trial, ...]:
        """The trials that no other one beats in loss and cost, from small loss to large."""
        found: list[Trial] = []
        for trial in sorted((each for each in self.trials if each.failed is None), key=lambda each: each.outcome):
            if not found or trial.cost < found[-1].cost:
                found.append(trial)
        return tuple(found)

    @cached_property
    def chosen(self) -> Trial | None:
        """The trial with the smallest cost of those that lose no more than the budget, ``None`` if all lose more."""
        within = [trial for trial in self.front if trial.loss <= self.search.budget + 1e-12]
        return within[-1] if within else None

    def __str__(self) -> str:
        return rendered(self, "text")


def searched(
    search: Search,
    passes: Sequence[Pass] | Plan,
    compiled: Callable[..., CompressedModel],
    engine: EngineChoice,
    workdir: str | Path | None,
) -> SearchResult:
    """Try combinations of options one after the other, and compile the best of them.

    ``compiled`` is :func:`chainfx.compile` without passes, engine and workdir. It is called with the chain of every
    trial on the float engine, and once more with the best one on ``engine``. All of them share the stages in
    ``workdir``, or in a folder that is deleted at the end. A combination that cannot be compiled is a failed trial.
    Raises :class:`~chainfx.errors.InputError` for passes, options and values that do not exist, where optuna is needed
    and missing, and if every trial failed.
    """
    if workdir is None:
        with tempfile.TemporaryDirectory() as folder:
            return searched(search, passes, compiled, engine, folder)
    _check(search, passes)
    kept = partial(compiled, workdir=workdir)
    source = _Grid(search) if search.combinations <= search.trials else _Sampler(search)
    trials, original = dict[str, Trial](), None
    for _ in range(int(min(search.trials, search.combinations))):
        options = source.ask()
        trial = trials.get(repr(options))
        if trial is None:
            trial, found = _tried(search, options, _with(passes, options), kept)
            trials[repr(options)], original = trial, original or found
        source.tell(trial)
    tried = tuple(trials.values())
    if original is None:
        raise InputError(f"search: none of {len(tried)} trials can be compiled; the first: {tried[0].failed}")
    result = SearchResult(search, original.measured_by, _metric(original), tried)
    if result.chosen is None:
        return result
    return replace(result, model=kept(_with(passes, result.chosen.options), engine=engine))


def _tried(
    search: Search, options: Options, chain: Sequence[Pass] | Plan, compiled: Callable[..., CompressedModel]
) -> tuple[Trial, StageRecord | None]:
    """What comes of a combination, and the record of the original network if it can be compiled."""
    try:
        records = compiled(chain, engine="float").report.records
    except ChainfxError as error:
        return Trial(options, _passes(chain), failed=str(error)), None
    first, last = records[0], records[-1]
    loss = first.measured_by.loss(_metric(first), _metric(last))
    cost = search.cost_of(last) / search.cost_of(first)
    return Trial(options, _passes(chain), _metric(last), loss, cost), first


def _metric(record: StageRecord) -> float:
    assert record.metric is not None  # a search has a trainer
    return record.metric


def _passes(chain: Sequence[Pass] | Plan) -> tuple[Pass, ...]:
    return chain.passes if isinstance(chain, Plan) else tuple(chain)


def _with(chain: Sequence[Pass] | Plan, options: Options) -> Sequence[Pass] | Plan:
    """The chain with options set in every pass of their names."""
    passes = tuple(_set(one, options.get(one.info.name, {})) for one in _passes(chain))
    return replace(chain, passes=passes) if isinstance(chain, Plan) else passes


def _set(one: Any, options: Mapping[str, Any]) -> Pass:
    """The pass with other options."""
    changed: Pass = replace(one, **options)
    return changed


def _check(search: Search, chain: Sequence[Pass] | Plan) -> None:
    """Raise :class:`InputError` for a pass or an option that does not exist, and what a pass raises for a value."""
    passes: dict[str, Any] = {one.info.name: one for one in _passes(chain)}
    for (name, option), values in search.space.items():
        if name not in passes:
            raise InputError(f"search: there is no pass {name!r} in the chain; use {', '.join(passes)}.")
        known = [each.name for each in fields(passes[name])]
        if option not in known:
            raise InputError(f"search: {name} has no option {option!r}; use {', '.join(known)}.")
        for value in (values.low, values.high) if isinstance(values, Range) else values:
            _set(passes[name], {option: value})


class _Grid:
    """All combinations, one after the other."""

    def __init__(self, search: Search) -> None:
        lists = [values for values in search.space.values() if not isinstance(values, Range)]
        self._left = iter([dict(zip(search.space, each, strict=True)) for each in itertools.product(*lists)])

    def ask(self) -> Options:
        """The next combination."""
        return _nested(next(self._left))

    def tell(self, trial: Trial) -> None:
        """What came of it; it does not matter for the next one."""


class _Sampler:
    """Combinations that optuna chooses, by what came of those before."""

    def __init__(self, search: Search) -> None:
        try:
            import optuna
        except ImportError as error:
            raise InputError(
                f"search: {search.trials} of {search.combinations} combinations are to be chosen, and optuna, which "
                "does that, is not installed; pip install chainfx[search], or give fewer values or more trials."
            ) from error
        said = optuna.logging.get_verbosity()
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        sampler = optuna.samplers.TPESampler(seed=search.seed)
        self._study = optuna.create_study(directions=["minimize", "minimize"], sampler=sampler)
        optuna.logging.set_verbosity(said)
        self._space = search.space
        self._spread = {f"{name} {option}": _distribution(each) for (name, option), each in search.space.items()}

    def ask(self) -> Options:
        """The next combination."""
        self._asked = self._study.ask(self._spread)
        chosen = zip(self._space.items(), self._asked.params.values(), strict=True)
        return _nested({key: each if isinstance(values, Range) else values[each] for (key, values), each in chosen})

    def tell(self, trial: Trial) -> None:
        """What came of it."""
        import optuna

        if trial.failed is None:
            self._study.tell(self._asked, trial.outcome)
        else:
            self._study.tell(self._asked, state=optuna.trial.TrialState.FAIL)


def _distribution(values: Sequence[Any] | Range) -> Any:
    """The values of an option as optuna takes them: a list by its places."""
    import optuna

    if not isinstance(values, Range):
        return optuna.distributions.CategoricalDistribution(range(len(values)))
    if values.whole:
        return optuna.distributions.IntDistribution(int(values.low), int(values.high), log=values.log)
    return optuna.distributions.FloatDistribution(values.low, values.high, log=values.log)


def _nested(flat: Mapping[tuple[str, str], Any]) -> Options:
    """Values by pass and option, by the name of a pass first."""
    found: dict[str, dict[str, Any]] = {}
    for (name, option), value in flat.items():
        found.setdefault(name, {})[option] = value
    return found

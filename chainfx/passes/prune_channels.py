"""Structural pruning: whole channels are removed, with everything that depends on them."""

import copy
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar, Literal, final

import torch
from torch import Tensor
from torch.fx import GraphModule

from chainfx.errors import PassError
from chainfx.ir.channels import ChannelAnalysis, ChannelGroup, analyse_channels, prune
from chainfx.ir.graph import Matrix, layer_path, left_alone, matrices_of
from chainfx.passes.base import (
    Granularity,
    Kind,
    Pass,
    PassContext,
    PassInfo,
    PassResult,
    Skipped,
    TuneRequest,
    is_number,
)
from chainfx.passes.pruning import (
    COSTS,
    Candidate,
    Cost,
    CostModel,
    Criterion,
    Evidence,
    Interval,
    Keep,
    Ladder,
    Limits,
    Stopwatch,
    Weights,
    constants_of,
    first_step,
    fold_removed,
    gather,
    get_importance,
    group_of,
    importance_names,
    left_whole,
    name_makers,
    removed_inputs,
    score_groups,
    take_over,
    wanted_units,
)

__all__ = ["PruneChannels"]

_TARGETS: tuple[Cost | Literal["latency"], ...] = (*COSTS, "latency")
_TRIES = 16  # how often a choice of channels that was fast enough once is made narrower if it is not when timed again


@final
@dataclass(frozen=True)
class PruneChannels(Pass):
    """Remove the least important units of the groups of coupled channels.

    ::

        conv1 (64, 3, 7, 7) -> bn1 (64) -> layer1.0.conv1 (64, 64, 3, 3)         ratio=0.4
        conv1 (38, 3, 7, 7) -> bn1 (38) -> layer1.0.conv1 (38, 38, 3, 3)

    A unit is a set of channels that only go together (Fang et al. 2023, "DepGraph", sec. 3): for plain networks one
    output channel of each layer of the group, for a grouped convolution one channel of each of its groups. The outputs
    of the network and its inputs are never pruned.

    How much goes, at most one of: ``ratio``, the share of units removed (0.5 if nothing is given); ``macs``,
    ``bitops``, ``parameters`` or ``latency``, the share of that cost which is to be left, of the network as it entered
    the pass. The least pruning that reaches a cost is found by bisection on costs computed from the channel analysis,
    which equal those counted afterwards (bit operations: convention ``strict``). For latency it is found by pruning
    copies and timing each in turns with the network as it entered, on the example inputs, to a confidence interval
    (:class:`~chainfx.passes.pruning.latency.Stopwatch`): a target counts as reached only where the whole interval lies
    below it, in the search and when timed again. The result depends on this machine. ``profile`` has the ratio as
    ``latency`` and the interval as ``latency_interval``.

    Which go, by ``scope``: ``"uniform"`` keeps ``int(C (1 - ratio))`` of every group of C units (Hu et al. 2024, "Order
    of Compression", sec. 3.1.1; the product is taken as a real number: one tenth of 10 is 1); ``"global"`` ranks the
    units of all groups together, by importance, over the cost a unit saves where a cost is the target and the
    importance compares across groups. No group loses more than ``max_ratio`` of its units. The number kept is rounded
    down to a multiple of ``round_to``, but to no less than ``round_to``, or all of a smaller group. ``"auto"`` rounds
    groups of 32 units or more to a multiple of 8, since kernels run no faster in between, and smaller ones not at all;
    the paper rounds nothing, ``round_to=1``. ``include`` and ``skip`` are patterns (``fnmatch``) of layers, like
    ``"layer1.*"``: only groups with an included layer are pruned, and none with a skipped one.

    A network that is no cheaper by the counter afterwards is left as it was by :func:`chainfx.compile`, which says so;
    ``keep=True`` keeps the result.

    ``importance`` of a unit, over all parameters of the group (formulas: :mod:`chainfx.passes.pruning.criteria`; one's
    own: :mod:`chainfx.passes.pruning.importance`): ``"l1"``, ``"l2"``, ``"bn"``, ``"fpgm"``, ``"random"`` look at the
    weights; ``"activation"``, ``"reconstruction"``, ``"obs"`` and ``"taylor"`` run the network on the first 512 samples
    of calibration data, without labels.

    ``rounds``: the pass is applied, and tuned, that often; after round r of n the share (r / n) of the reduction is
    done with ``schedule="linear"``, ``1 - (1 - r / n)^3`` with ``"gradual"`` (Zhu & Gupta 2017, eq. 1).

    Exact as a masked network: the pruned one computes what the original does when every layer ignores its removed input
    channels. A removed channel that was constant (its BatchNorm scale is 0, so that it gave its bias) is added to the
    bias of the layers that read it, or taken off the running mean of the BatchNorm after them, where that is exact:
    then the pruned network equals the original. With ``compensate`` the weights that read the channels which stay, and
    these biases, change so that they give most of what the others gave on the calibration data
    (:func:`~chainfx.passes.pruning.compensation.take_over`), which is not exact but closer. Scales of quantizers that
    see a whole tensor are those of the smaller tensor; layer normalizations take their statistics over what is left.

    Asks for tuning of all parameters. MACs and parameters of a layer between two pruned groups fall
    to about (1 - ratio) squared. Departure from Fang et al.: the norms are of all filters that make or read a unit as
    one vector, not means of norms.

    Raises :class:`PassError` if a group would be emptied, a pattern matches nothing, a weight is not finite, a target
    cannot be reached (it says how far one gets), or a group has no BatchNorm for ``"bn"``.
    """

    info: ClassVar[PassInfo] = PassInfo(
        name="prune-channels",
        kind=Kind.STATIC,
        granularity=Granularity.NEURON,
        needs=frozenset({"calibration"}),
        family="pruning",
    )

    ratio: float | None = None
    importance: str = "l1"
    round_to: int | Literal["auto"] = "auto"
    skip: tuple[str, ...] = ()
    include: tuple[str, ...] = ()
    scope: Literal["uniform", "global"] = "uniform"
    max_ratio: float = 1.0
    macs: float | None = None
    bitops: float | None = None
    parameters: float | None = None
    latency: float | None = None
    rounds: int = 1
    schedule: Literal["linear", "gradual"] = "linear"
    compensate: bool = False
    keep: bool = False

    def __post_init__(self) -> None:
        given = [name for name in ("ratio", *_TARGETS) if getattr(self, name) is not None]
        if len(given) > 1:
            raise PassError(
                f"prune-channels: {' and '.join(given)} are given; "
                f"give one of ratio, {', '.join(_TARGETS[:-1])} and {_TARGETS[-1]}."
            )
        for name in given:
            value = getattr(self, name)
            good = is_number(value, 0) and (value < 1 if name == "ratio" else 0 < value <= 1)
            self._check(
                good, name, "a number " + ("from 0 up to but not including 1" if name == "ratio" else "in (0, 1]")
            )
        self._check_importance()
        rounds = self.round_to == "auto" or (type(self.round_to) is int and self.round_to >= 1)
        self._check(rounds, "round_to", "'auto' or an integer of at least 1")
        for name in ("skip", "include"):
            patterns = getattr(self, name)
            self._check(
                isinstance(patterns, tuple) and all(isinstance(p, str) for p in patterns), name, "a tuple of patterns"
            )
        self._check(self.scope in ("uniform", "global"), "scope", "'uniform' or 'global'")
        self._check(is_number(self.max_ratio, 0) and self.max_ratio <= 1, "max_ratio", "a number from 0 to 1")
        self._check(type(self.rounds) is int and self.rounds >= 1, "rounds", "an integer of at least 1")
        self._check(self.schedule in ("linear", "gradual"), "schedule", "'linear' or 'gradual'")
        for name in ("compensate", "keep"):
            self._check(isinstance(getattr(self, name), bool), name, "true or false")
        if self.scope == "uniform" and self._target is None and self._ratio > self.max_ratio:
            raise PassError(
                f"prune-channels: ratio={self._ratio} is above max_ratio={self.max_ratio}; "
                f"raise max_ratio, or use scope='global'."
            )

    def _check_importance(self) -> None:
        if callable(self.importance):
            raise PassError(
                "prune-channels: importance is a function, which a recipe or record cannot hold; register it with "
                "chainfx.passes.pruning.register_importance('name') and give the name."
            )
        known = ", ".join(importance_names())
        self._check(get_importance(str(self.importance)) is not None, "importance", f"one of {known}")

    @property
    def needs(self) -> frozenset[str]:
        """Calibration data, if the importance or ``compensate`` looks at activations."""
        return self.info.needs if self._measures else frozenset()

    @property
    def must_pay(self) -> bool:
        """Yes, without ``keep``."""
        return not self.keep

    @property
    def _measures(self) -> frozenset[str]:
        """What has to be measured on calibration data."""
        return self._criterion.needs | (frozenset({"activity", "moment"}) if self.compensate else frozenset())

    @property
    def _criterion(self) -> Criterion:
        found = get_importance(self.importance)
        if found is None:
            raise PassError(f"prune-channels: importance={self.importance!r} is not registered any more.")
        return found

    @property
    def _target(self) -> tuple[Cost | Literal["latency"], float] | None:
        """The cost to reach, and the share of it that is to be left."""
        return next(((name, getattr(self, name)) for name in _TARGETS if getattr(self, name) is not None), None)

    @property
    def _ratio(self) -> float:
        return 0.5 if self.ratio is None else self.ratio

    def apply(self, graph_module: GraphModule, context: PassContext, /) -> PassResult:
        """Analyse, rank and remove; see the class."""
        analysis = analyse_channels(graph_module, context.example_inputs)
        at_entry = matrices_of(context.entry or graph_module)
        skipped = [Skipped(each.node, f"{each.channels} channels stay: {each.reason}") for each in analysis.frozen]
        chosen, left = self._chosen(analysis)
        for group, reason in left.items():
            skipped += name_makers(group, reason)
        evidence = gather(graph_module, context.calibration, self._measures, context.rng("prune-channels labels"))
        generator = context.rng("prune-channels")
        whole = self._sizes_at_entry(analysis, context)
        weights = Weights(graph_module)
        scores = score_groups(self._criterion, weights, chosen, evidence, generator)
        candidates = [
            Candidate(group, score, whole.get(group.name, group.size))
            for group, score in zip(chosen, scores, strict=True)
        ]
        keep, profile = self._keep(graph_module, analysis, candidates, context)
        if keep:
            folded, lost = self._fold(weights, analysis, keep, evidence)
            profile["folded"] = list(folded)
            skipped += lost
            prune(graph_module, analysis, keep)
        if context.round + 1 == self.rounds:
            skipped += left_whole(at_entry, graph_module, skipped, partial(_why_whole, analysis, left))
        tune = TuneRequest() if keep else None
        return PassResult(graph_module, bool(keep), tune, tuple(skipped), profile)

    def _chosen(self, analysis: ChannelAnalysis) -> tuple[list[ChannelGroup], dict[ChannelGroup, str]]:
        """The groups that are pruned, and those that a pattern leaves alone, with the reason."""
        paths = {group.name: [layer_path(source.path) for source in group.sources] for group in analysis.groups}
        known = [path for each in paths.values() for path in each]
        known += [layer_path(each.path) for each in analysis.frozen]
        reasons = left_alone(paths, self.info.name, known, include=self.include, skip=self.skip)
        chosen = [group for group in analysis.groups if group.name not in reasons]
        return chosen, {analysis.group(name): reason for name, reason in reasons.items()}

    def _sizes_at_entry(self, analysis: ChannelAnalysis, context: PassContext) -> dict[str, int]:
        """The number of units of every group as it entered the pass, by name."""
        if context.round and context.entry is not None:
            analysis = analyse_channels(context.entry, context.example_inputs)
        return {group.name: group.size for group in analysis.groups}

    def _keep(
        self,
        graph_module: GraphModule,
        analysis: ChannelAnalysis,
        candidates: Sequence[Candidate],
        context: PassContext,
    ) -> tuple[Keep, dict[str, Any]]:
        """The units to keep of every group that loses some, and what is known of that choice."""
        done = self._done(context.round)
        model = CostModel(graph_module, analysis, context.example_inputs) if self._target else None
        ranks = None if self.scope == "uniform" else self._ranks(candidates, model)
        ladder = Ladder(candidates, Limits(self.max_ratio, self.round_to), ranks)
        profile: dict[str, Any] = {"units": sum(each.group.size for each in candidates)}
        keep: Keep | None
        if self._target is None or model is None:
            self._check_emptied(candidates)
            keep = ladder.at_share(self._ratio * done)
            if keep is None:
                raise PassError(
                    f"prune-channels: ratio={self._ratio} of {profile['units']} units cannot be removed; with "
                    f"max_ratio={self.max_ratio} and round_to={self.round_to!r} at least "
                    f"{profile['units'] - ladder.last} of them stay."
                )
        else:
            cost, left = self._target
            goal = 1 - (1 - left) * done
            if cost == "latency":
                keep, found = self._fastest(goal, ladder, graph_module, analysis, context)
                profile |= {"latency": found.middle, "latency_interval": [found.low, found.high]}
            else:
                whole = self._cost_at_entry(cost, model, context)
                keep = self._cheapest(cost, whole * goal, whole, ladder, model)
                profile[cost] = model.of(cost, keep) / whole
        kept = [keep.get(each.group.name, each.score).shape[0] for each in candidates]
        profile["removed"] = profile["units"] - sum(kept)
        return keep, profile

    def _done(self, number: int) -> float:
        """The share of the whole reduction that is done after round ``number`` (from 0)."""
        share = (number + 1) / self.rounds
        return share if self.schedule == "linear" else 1 - (1 - share) ** 3

    def _ranks(self, candidates: Sequence[Candidate], model: CostModel | None) -> list[Tensor]:
        """Scores that compare across groups."""
        if not self._criterion.comparable:
            return [each.score / each.score.mean().clamp_min(torch.finfo(torch.float64).tiny) for each in candidates]
        if model is None or self._target is None:
            return [each.score for each in candidates]
        cost: Cost = "macs" if self._target[0] == "latency" else self._target[0]
        whole = model.of(cost, {})
        savings = [whole - model.of(cost, {each.group.name: each.best(each.group.size - 1)}) for each in candidates]
        return [each.score / max(saving, 1) for each, saving in zip(candidates, savings, strict=True)]

    def _check_emptied(self, candidates: Sequence[Candidate]) -> None:
        for each in candidates if self.scope == "uniform" else ():
            if wanted_units(each.whole, self._ratio) == 0:
                most = math.floor(1e4 * (1 - 1 / each.whole)) / 1e4
                raise PassError(
                    f"prune-channels: ratio={self._ratio} leaves none of the {each.whole} units of group "
                    f"{each.group.name!r}; use a ratio of at most {most} or add "
                    f"{layer_path(each.group.sources[0].path)!r} to skip."
                )

    def _cost_at_entry(self, cost: Cost, model: CostModel, context: PassContext) -> float:
        if not context.round or context.entry is None:
            return model.of(cost, {})
        analysis = analyse_channels(context.entry, context.example_inputs)
        return CostModel(context.entry, analysis, context.example_inputs).of(cost, {})

    def _cheapest(self, cost: Cost, goal: float, whole: float, ladder: Ladder, model: CostModel) -> Keep:
        """The least pruning whose cost is at most ``goal``."""
        step = first_step(ladder.last, lambda step: model.of(cost, ladder.keep(step)) <= goal)
        if step is None:
            lowest = math.ceil(1e4 * model.of(cost, ladder.keep(ladder.last)) / whole) / 1e4
            raise PassError(
                f"prune-channels: {cost}={getattr(self, cost)} cannot be reached; with as few units as max_ratio, "
                f"round_to, include and skip allow, {lowest} of it is left: use that or more."
            )
        return ladder.keep(step)

    def _fastest(
        self, goal: float, ladder: Ladder, graph_module: GraphModule, analysis: ChannelAnalysis, context: PassContext
    ) -> tuple[Keep, Interval]:
        """The least pruning that takes at most the share ``goal`` of the time at entry, and what it takes."""
        if goal >= 1:
            return {}, Interval(1.0, 1.0, 1.0)
        stopwatch = Stopwatch(context.entry or graph_module, context.example_inputs)

        def timed(step: int) -> Interval:
            trial = copy.deepcopy(graph_module)
            prune(trial, analysis, ladder.keep(step))
            return stopwatch.ratio(trial, goal)

        step = first_step(ladder.last, lambda step: timed(step).high <= goal)
        step = ladder.last if step is None else step
        while (found := timed(step)).high > goal and step < ladder.last:
            step = min(step + math.ceil(ladder.last / _TRIES), ladder.last)
        if found.high > goal:
            least = math.ceil(1e4 * found.high) / 1e4
            raise PassError(
                f"prune-channels: latency={self.latency} was not reached; with as few units as max_ratio, round_to, "
                f"include and skip allow, {found.low:.4f} to {found.high:.4f} of the time is left: use {least} or more."
            )
        return ladder.keep(step), found

    def _fold(
        self, weights: Weights, analysis: ChannelAnalysis, keep: Keep, evidence: Evidence
    ) -> tuple[tuple[str, ...], tuple[Skipped, ...]]:
        """Give the readers of removed channels what these gave; see :func:`fold_removed`."""
        graph_module, known = weights.graph_module, constants_of(weights)
        if not known and not self.compensate:
            return (), ()
        removed = removed_inputs(graph_module, analysis, keep)
        means, unfitted = take_over(graph_module, removed, evidence) if self.compensate else (None, ())
        folded, lost = fold_removed(graph_module, removed, known, means)
        return folded, (*unfitted, *lost)


def _why_whole(analysis: ChannelAnalysis, left: Mapping[ChannelGroup, str], matrix: Matrix) -> str:
    """Why a matrix has the shape that it had; ``left``: the groups that are left alone, with the reason."""
    group = group_of(matrix, analysis.groups)
    if group is None:
        return analysis.outside[matrix.path]
    return left.get(group, f"none of the {group.size} units of group {group.name!r} goes")

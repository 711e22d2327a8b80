"""Structural pruning of attention: whole heads, and the width of those that stay."""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import ClassVar, Literal, cast, final

import numpy as np
import torch
from torch import Tensor
from torch.fx import GraphModule, Node

from chainfx.errors import PassError
from chainfx.ir.channels import ChannelAnalysis, ChannelGroup, Fold, analyse_channels, prune
from chainfx.ir.graph import Matrix, layer_path, layers_of, left_alone, matrices_of
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
    Criterion,
    Evidence,
    Weights,
    fold_removed,
    gather,
    get_importance,
    group_of,
    left_whole,
    name_makers,
    removed_inputs,
    score_groups,
    take_over,
)

__all__ = ["PruneHeads"]

_IMPORTANCES = ("l1", "l2", "taylor")
_ROUNDING = 1e-9  # 10 * (1 - 0.9) is 0.9999999999999998 in binary, but one head in ten


@final
@dataclass(frozen=True)
class PruneHeads(Pass):
    """Remove the least important attention heads, and the least important channels of every head that stays.

    ::

        qkv (3 x 12 x 64, 768) -> softmax(q k^T / 8) v -> proj (768, 12 x 64)      ratio=0.5
        qkv (3 x  6 x 64, 768) -> softmax(q k^T / 8) v -> proj (768,  6 x 64)      width_ratio=0.25
        qkv (3 x  6 x 48, 768) -> softmax(q k^T / 8) v -> proj (768,  6 x 48)

    Formula: of h heads that go one by one ``int(h (1 - ratio))`` are kept, but at least one (Michel et al. 2019, arXiv
    1905.10650, who rank by the slope); then of the d channels of a head, the same ones in every head,
    ``int(d (1 - width_ratio))``, at least one. The products are taken as real numbers: one tenth of 10 is 1.
    ``importance`` of a head or channel: the norm, ``"l1"`` or ``"l2"``, of all weights that make or read it, or
    ``"taylor"``, how much the answer on calibration data depends on it; the formulas are in
    :mod:`chainfx.passes.pruning.importance`. The factor that scales the scores stays what it was. ``skip``: patterns
    (``fnmatch``) of these layers; attention with such a layer stays whole. ``compensate``: the layer after the
    attention is fitted anew on calibration data, so that the heads which stay give most of what the others gave
    (:func:`~chainfx.passes.pruning.compensation.take_over`).

    Exact as a masked network, without ``compensate``: with heads removed it computes what the original does when the
    layer after the attention ignores them. Found by :func:`~chainfx.ir.channels.analyse_channels` (``fold="heads"``,
    then ``"width"``) on the products of the graph, in whatever way queries, keys and values are cut out of one layer or
    several; tables of relative positions lose the columns of the heads.

    Needs calibration data for ``"taylor"`` and ``compensate``; asks for tuning of all parameters.
    MACs, bit operations and bytes of the attention fall with the heads, those of the other layers stay. Raises
    :class:`PassError` for a network without attention, options out of range, a pattern in ``skip`` that matches
    nothing, and weights that are not finite.

    >>> PruneHeads(0.25, importance="l2").label
    "prune-heads(ratio=0.25, importance='l2')"
    """

    info: ClassVar[PassInfo] = PassInfo(
        "prune-heads",
        Kind.STATIC,
        Granularity.NEURON,
        needs=frozenset({"calibration"}),
        family="pruning",
    )

    ratio: float = 0.5
    width_ratio: float = 0.0
    importance: Literal["l1", "l2", "taylor"] = "l1"
    skip: tuple[str, ...] = ()
    compensate: bool = False

    def __post_init__(self) -> None:
        for option in ("ratio", "width_ratio"):
            value = getattr(self, option)
            self._check(is_number(value, 0) and value < 1, option, "a number from 0 up to but not including 1")
        self._check(self.importance in _IMPORTANCES, "importance", f"one of {', '.join(_IMPORTANCES)}")
        self._check(isinstance(self.skip, tuple), "skip", "a tuple of patterns")
        self._check(isinstance(self.compensate, bool), "compensate", "true or false")

    @property
    def needs(self) -> frozenset[str]:
        """Calibration data, if the importance or ``compensate`` looks at activations."""
        return self.info.needs if self._measures else frozenset()

    @property
    def _measures(self) -> frozenset[str]:
        """What has to be measured on calibration data."""
        return self._criterion.needs | (frozenset({"activity", "moment"}) if self.compensate else frozenset())

    @property
    def _criterion(self) -> Criterion:
        return cast(Criterion, get_importance(self.importance))

    def apply(self, graph_module: GraphModule, context: PassContext, /) -> PassResult:
        """Remove heads, then width; see the class."""
        skipped: list[Skipped] = []
        modified = False
        at_entry = matrices_of(graph_module)
        why_whole: Callable[[Matrix], str] = _asked_for_nothing
        folds: tuple[tuple[Fold, float], ...] = (("heads", self.ratio), ("width", self.width_ratio))
        for fold, ratio in folds:
            if ratio == 0:
                continue
            analysis = analyse_channels(graph_module, context.example_inputs, fold=fold)
            layers = _layers(graph_module, analysis)
            if not layers:
                raise PassError(
                    "prune-heads: the network has no attention (no product of two activations that layers make); "
                    "remove the pass."
                )
            skipped += [Skipped(e.node, f"its {fold} stay: {e.reason}") for e in analysis.frozen if e.node in layers]
            found = list(_attention(graph_module, analysis, context))
            patterns = self._left_alone([group for group, _ in found], layers)
            left = {
                group: "it has one head" if single else patterns.get(group.name, _obstacle(group, ratio))
                for group, single in found
            }
            groups = [group for group, reason in left.items() if not reason]
            for group, reason in left.items():
                skipped += name_makers(group, reason) if reason else ()
            why_whole = partial(_why_whole, analysis, left)
            generator = context.rng(self.info.name)
            evidence = gather(graph_module, context.calibration, self._measures, generator, self.info.name)
            keep = self._keep(graph_module, groups, ratio, evidence, generator)
            if self.compensate:
                removed = removed_inputs(graph_module, analysis, keep)
                means, unfitted = take_over(graph_module, removed, evidence)
                _, lost = fold_removed(graph_module, removed, {}, means)
                skipped += [*unfitted, *lost]
            prune(graph_module, analysis, keep)
            modified = modified or bool(groups)
        skipped += left_whole(at_entry, graph_module, skipped, why_whole)
        return PassResult(graph_module, modified, TuneRequest() if modified else None, tuple(skipped))

    def _left_alone(self, groups: Sequence[ChannelGroup], layers: Mapping[str, str]) -> dict[str, str]:
        """The groups with a layer that a pattern of ``skip`` matches, by name, with the reason."""
        paths = {group.name: [layer_path(source.path) for source in group.sources] for group in groups}
        return left_alone(paths, self.info.name, list(layers.values()), skip=self.skip, kind="layer of attention")

    def _keep(
        self,
        graph_module: GraphModule,
        groups: Sequence[ChannelGroup],
        ratio: float,
        evidence: Evidence,
        generator: torch.Generator,
    ) -> dict[str, Tensor]:
        """The units of every group that stay, in order."""
        scores = score_groups(self._criterion, Weights(graph_module), groups, evidence, generator, self.info.name)
        orders = [score.argsort(descending=True, stable=True) for score in scores]
        kept = zip(groups, orders, strict=True)
        return {group.name: order[: _kept_of(group, ratio)].sort().values for group, order in kept}


def _asked_for_nothing(matrix: Matrix) -> str:
    return "ratio and width_ratio are 0"


def _why_whole(analysis: ChannelAnalysis, left: Mapping[ChannelGroup, str], matrix: Matrix) -> str:
    """Why a matrix has the shape that it had; ``left``: the groups of attention, with the reason why one stays."""
    group = group_of(matrix, left)
    if group is not None:
        return left[group]
    return analysis.outside.get(matrix.path, "it holds no part of attention that can go")


def _kept_of(group: ChannelGroup, ratio: float) -> int:
    return max(1, math.floor(group.size * (1 - ratio) + _ROUNDING))


def _obstacle(group: ChannelGroup, ratio: float) -> str:
    """Why a group of heads, or of the channels of a head, loses nothing; empty if it does."""
    return f"none of {group.size} goes at a ratio of {ratio}" if _kept_of(group, ratio) == group.size else ""


def _attention(
    graph_module: GraphModule, analysis: ChannelAnalysis, context: PassContext
) -> Iterator[tuple[ChannelGroup, bool]]:
    """The groups of attention, and whether one that should be of heads is of the channels of a single head.

    Where nothing is folded into heads, both folds find the same units.
    """
    widths: list[ChannelGroup] = []
    if analysis.fold == "heads":
        widths = list(analyse_channels(graph_module, context.example_inputs, fold="width").groups)
    for group in analysis.groups:
        if group.name in analysis.attention:
            yield group, any(_equal(group, other) for other in widths)


def _equal(one: ChannelGroup, other: ChannelGroup) -> bool:
    """Whether two groups, of two analyses of one graph, have the same units."""
    return len(one.members) == len(other.members) and all(
        (a.path, a.dim) == (b.path, b.dim)
        and np.array_equal(a.positions, b.positions)
        and np.array_equal(a.units, b.units)
        for a, b in zip(one.members, other.members, strict=True)
    )


def _layers(graph_module: GraphModule, analysis: ChannelAnalysis) -> dict[str, str]:
    """The layers that make the operands of products of two activations: their paths by the names of their nodes."""
    layers = {layer.node: layer.path for layer in layers_of(graph_module)}
    waiting = [node for node in graph_module.graph.nodes if node.name in analysis.products]
    seen: set[Node] = set(waiting)
    while waiting:
        for node in waiting.pop().all_input_nodes:
            if node not in seen and _holds_tensors(node.meta.get("val")):
                seen.add(node)
                waiting += [] if node in layers else [node]
    return {node.name: path for node, path in layers.items() if node in seen}


def _holds_tensors(value: object) -> bool:
    """Whether a node's value is a tensor or several, not a size."""
    return isinstance(value, Tensor) or (isinstance(value, tuple | list) and any(map(_holds_tensors, value)))

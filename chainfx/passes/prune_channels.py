"""Structural pruning: whole channels are removed, with everything that depends on them."""

import math
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import ClassVar, Literal, final

import torch
from torch import Tensor
from torch.fx import GraphModule
from torch.nn.modules.batchnorm import _BatchNorm

from chainfx.errors import PassError
from chainfx.ir.channels import ChannelAnalysis, ChannelGroup, SourceLayer, analyse_channels
from chainfx.ir.edit import get_tensor, parent_of
from chainfx.ir.surgery import prune
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

__all__ = ["PruneChannels"]

_IMPORTANCES = ("bn", "l1", "l2", "random")
_ROUNDING = 1e-9  # 10 * (1 - 0.9) is 0.9999999999999998 in binary, but one channel in ten


@final
@dataclass(frozen=True)
class PruneChannels(Pass):
    """Remove the least important share ``ratio`` of every group of coupled channels.

    ::

        conv1 (64, 3, 7, 7) -> bn1 (64) -> layer1.0.conv1 (64, 64, 3, 3)         ratio=0.4
        conv1 (38, 3, 7, 7) -> bn1 (38) -> layer1.0.conv1 (38, 38, 3, 3)

    Formula: of a group of C units ``int(C (1 - ratio))`` are kept (uniform pruning, Hu et al. 2024, "Order of
    Compression", sec. 3.1.1; the product is taken as a real number: one tenth of 10 is 1), then rounded down to a
    multiple of ``round_to``. That rounding never empties a group: one with fewer kept units than ``round_to`` keeps
    ``round_to`` of them, or all if it is smaller. A unit is a set of channels that only go together (Fang et al. 2023,
    "DepGraph", sec. 3): for plain networks one output channel of each layer of the group, for a grouped convolution
    one channel of each of its groups. The outputs of the network and its inputs are never pruned.

    ``importance`` of a unit, mean over the layers that make the group's channels: ``"l1"`` sum of |w| of the unit's
    filters (Li et al. 2017), ``"l2"`` the Euclidean norm of them, ``"bn"`` mean |scale| of the group's BatchNorms (Liu
    et al. 2017), ``"random"`` from the seed. ``skip``: patterns (``fnmatch``) of layers, like ``"layer1.*"``; a group
    with such a layer stays whole.

    Exact as a masked network: the pruned one computes what the original does when every layer ignores its removed input
    channels. Scales of quantizers that see a whole tensor are those of the smaller tensor.

    Needs nothing; asks for tuning of all parameters with the task loss. MACs and parameters of a layer between two
    pruned groups fall to about (1 - ratio) squared. Departure from Fang et al.: importance is taken on the layers that
    make the channels, not on those that read them, and channels whose removal would change a layer or group
    normalization stay.

    Raises :class:`PassError` if a group would be emptied, a pattern matches nothing, a weight is not finite, or a group
    has no BatchNorm for ``"bn"``.
    """

    info: ClassVar[PassInfo] = PassInfo(
        name="prune-channels",
        kind=Kind.STATIC,
        granularity=Granularity.NEURON,
        establishes=frozenset({"channels-removed"}),
    )

    ratio: float = 0.5
    importance: Literal["l1", "l2", "bn", "random"] = "l1"
    round_to: int = 1
    skip: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        self._check(is_number(self.ratio, 0) and self.ratio < 1, "ratio", "a number from 0 up to but not including 1")
        self._check(self.importance in _IMPORTANCES, "importance", f"one of {', '.join(_IMPORTANCES)}")
        self._check(isinstance(self.round_to, int) and self.round_to >= 1, "round_to", "an integer of at least 1")
        self._check(isinstance(self.skip, tuple), "skip", "a tuple of patterns")

    def apply(self, graph_module: GraphModule, context: PassContext, /) -> PassResult:
        """Analyse, rank and remove; see the class."""
        analysis = analyse_channels(graph_module, context.example_inputs)
        skipped = [Skipped(each.node, f"{each.channels} channels stay: {each.reason}") for each in analysis.frozen]
        chosen = self._chosen(analysis)
        skipped += [Skipped(g.name, "a pattern of skip matches it") for g in analysis.groups if g not in chosen]
        generator = context.rng("prune-channels")
        keep: dict[str, Tensor] = {}
        for group in chosen:
            kept = self._kept(group)
            if kept < group.size:
                score = self._score(graph_module, group, generator)
                keep[group.name] = score.argsort(descending=True, stable=True)[:kept].sort().values
        if keep:
            prune(graph_module, analysis, keep)
        return PassResult(graph_module, bool(keep), TuneRequest() if keep else None, tuple(skipped))

    def _chosen(self, analysis: ChannelAnalysis) -> tuple[ChannelGroup, ...]:
        """The groups that no pattern of ``skip`` matches."""
        layers = [_layer(source.path) for group in analysis.groups for source in group.sources]
        layers += [_layer(each.path) for each in analysis.frozen]
        for pattern in self.skip:
            if not any(fnmatchcase(layer, pattern) for layer in layers):
                raise PassError(
                    f"prune-channels: the pattern {pattern!r} in skip matches no layer; "
                    f"layers are {', '.join(dict.fromkeys(layers))}."
                )
        return tuple(group for group in analysis.groups if not any(self._skips(source) for source in group.sources))

    def _skips(self, source: SourceLayer) -> bool:
        return any(fnmatchcase(_layer(source.path), pattern) for pattern in self.skip)

    def _kept(self, group: ChannelGroup) -> int:
        kept = math.floor(group.size * (1 - self.ratio) + _ROUNDING)
        if kept == 0:
            most = math.floor(1e4 * (1 - 1 / group.size)) / 1e4
            raise PassError(
                f"prune-channels: ratio={self.ratio} leaves none of the {group.size} units of group {group.name!r}; "
                f"use a ratio of at most {most} or add {_layer(group.sources[0].path)!r} to skip."
            )
        return max(kept - kept % self.round_to, min(self.round_to, group.size))

    def _score(self, graph_module: GraphModule, group: ChannelGroup, generator: torch.Generator) -> Tensor:
        """The importance of every unit, shape (size,), float64 on the CPU."""
        for source in group.sources:
            if not bool(get_tensor(graph_module, source.path).isfinite().all()):
                raise PassError(
                    f"prune-channels: the weight {source.path!r} of group {group.name!r} is not finite everywhere; "
                    f"train the network again before pruning."
                )
        if self.importance == "random":
            return torch.rand(group.size, generator=generator, dtype=torch.float64)
        if self.importance == "bn":
            return self._scales(graph_module, group)
        sources = {(source.path, source.dim) for source in group.sources}
        power = 1 if self.importance == "l1" else 2
        return _mean(graph_module, group, sources, power)

    def _scales(self, graph_module: GraphModule, group: ChannelGroup) -> Tensor:
        scales = set()
        for member in group.members:
            module, name = parent_of(graph_module, member.path)
            if isinstance(module, _BatchNorm) and name == "weight":
                scales.add((member.path, member.dim))
        if not scales:
            raise PassError(
                f"prune-channels: group {group.name!r} has no BatchNorm with a scale, which importance='bn' needs; "
                f"use importance='l1' or add {_layer(group.sources[0].path)!r} to skip."
            )
        return _mean(graph_module, group, scales, 1)


def _mean(graph_module: GraphModule, group: ChannelGroup, tensors: set[tuple[str, int]], power: int) -> Tensor:
    """The norm (of order ``power``) of every unit in each of the tensors, averaged over them; shape (size,)."""
    total = torch.zeros(group.size, dtype=torch.float64)
    for member in group.members:
        if (member.path, member.dim) in tensors:
            tensor = get_tensor(graph_module, member.path).detach().to("cpu", torch.float64)
            each = (
                tensor.abs().pow(power).movedim(member.dim, 0).flatten(1).sum(1) if tensor.dim() > 1 else tensor.abs()
            )
            norm = torch.zeros_like(total)
            norm.index_add_(0, torch.from_numpy(member.units), each[torch.from_numpy(member.positions)])
            total += norm.pow(1 / power)
    return total / len(tensors)


def _layer(path: str) -> str:
    """The path of the layer that a weight belongs to."""
    return path.rpartition(".")[0] or path

"""What each pass could do to a network, before anything runs."""

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor
from torch.fx import GraphModule

from chainfx.bitops import CostReport, count
from chainfx.errors import ChainfxError
from chainfx.ir.channels import FrozenChannels, analyse_channels
from chainfx.ir.graph import Skipped, facts_of
from chainfx.linting.network import Network, NetworkKind
from chainfx.linting.predicting import applied_dry
from chainfx.passes import (
    Distill,
    EarlyExit,
    LowRank,
    Pass,
    PassContext,
    PruneChannels,
    PruneHeads,
    PruneWeights,
    Quantize,
    exit_places,
    get_pass,
    pass_names,
)
from chainfx.rendering import rendered

__all__ = ["Explanation", "PassOutlook", "explain"]

# the options that each pass is tried with: the first that fit the network
_HALF: Mapping[str, tuple[Pass, ...]] = {
    "distill": (Distill(depth=0.5), Distill(width=0.5)),
    "early-exit": tuple(
        EarlyExit(exits=exits, criterion=criterion)
        for criterion in ("token-max-softmax", "pixel-max-softmax", "max-softmax")
        for exits in (3, 1)
    ),
    "low-rank": (LowRank(energy=0.9),),
    "prune-channels": (PruneChannels(0.5),),
    "prune-heads": (PruneHeads(0.5),),
    "prune-weights": (PruneWeights(0.5),),
    "quantize": (Quantize(8, 8),),
}


@dataclass(frozen=True)
class PassOutlook:
    """What one pass, with the options of ``label``, would do to a network.

    ``macs``, ``bitops`` and ``storage``: how many times less there would be (below 1: more); ``None`` where the pass
    cannot be applied, and then ``obstacle`` says why. ``changed``: whether it would change anything. ``left_alone``:
    what it would leave alone, and why.
    """

    name: str
    label: str
    changed: bool = False
    macs: float | None = None
    bitops: float | None = None
    storage: float | None = None
    obstacle: str = ""
    left_alone: tuple[Skipped, ...] = ()


@dataclass(frozen=True)
class Explanation:
    """What could be done to a network; ``print`` shows it.

    ``kind``: what it is as far as advice depends on it. ``costs``: of one sample. ``prunable``: the share of the
    parameters that lie in channel groups; ``groups``: how many groups there are; ``frozen``: the channels that must
    stay and why. ``heads``: for every group of attention, by its first layer, how many heads can go. ``exit_places``:
    the nodes where an exit can be. ``quantizable``: the share of the multiply-accumulates that are in layers which
    quantization reaches. ``ranks``: for every layer that ``low-rank`` would replace at 90 % of the energy, by its
    weight, the ranks. ``outlooks``: one for each installed pass.
    """

    kind: NetworkKind
    costs: CostReport
    groups: int
    prunable: float
    frozen: tuple[FrozenChannels, ...]
    heads: Mapping[str, int]
    exit_places: tuple[str, ...]
    quantizable: float
    ranks: Mapping[str, Sequence[int]]
    outlooks: tuple[PassOutlook, ...]

    def __str__(self) -> str:
        return rendered(self, "text")

    def to_dict(self) -> dict[str, Any]:
        """The explanation as plain JSON; of the costs the totals."""
        plain = {name: getattr(self, name) for name in ("kind", "groups", "prunable", "quantizable")}
        costs = {name: getattr(self.costs, name) for name in ("macs", "bitops", "parameters", "storage_bits")}
        return {
            **plain,
            "costs": costs,
            "frozen": [dataclasses.asdict(each) for each in self.frozen],
            "heads": dict(self.heads),
            "exit_places": list(self.exit_places),
            "ranks": {name: list(ranks) for name, ranks in self.ranks.items()},
            "outlooks": [dataclasses.asdict(each) for each in self.outlooks],
        }


def explain(graph_module: GraphModule, example_inputs: tuple[Tensor, ...]) -> Explanation:
    """Say what each installed pass could do to a captured network, which is not changed; nothing is trained.

    Each pass is tried on a copy, with options that take about half, and its costs are counted. The weights matter where
    a pass decides by them, as with the energy of ranks: those of a network that is not trained say little.

    >>> import torch
    >>> from chainfx.ir.capture import capture
    >>> x = torch.zeros(1, 8)
    >>> net = torch.nn.Sequential(torch.nn.Linear(8, 32), torch.nn.ReLU(), torch.nn.Linear(32, 4)).eval()
    >>> explained = explain(capture(net, (x,)), (x,))
    >>> explained.groups, explained.exit_places, [each.macs for each in explained.outlooks if each.name == "quantize"]
    (1, ('_1',), [1.0])
    """
    network = Network.of(graph_module, example_inputs)
    costs = count(graph_module, example_inputs)
    analysis = analyse_channels(graph_module, example_inputs)
    by_heads = analyse_channels(graph_module, example_inputs, fold="heads")
    context = PassContext(graph_module, example_inputs, calibration=[example_inputs], tunes=True)
    tried = [_tried(name, graph_module, costs, context) for name in pass_names()]
    reached, ranks = 0.0, {}
    for outlook, profile, layers in tried:
        if outlook.name == "quantize":
            reached = sum(row.macs for row in costs.rows if row.node in layers) / max(costs.macs, 1)
        if outlook.name == "low-rank":
            ranks = dict(profile.get("ranks", {}))
    return Explanation(
        kind=network.kind,
        costs=costs,
        groups=len(analysis.groups),
        prunable=analysis.prunable / max(analysis.parameters, 1),
        frozen=analysis.frozen,
        heads={group.name: group.size for group in by_heads.groups if group.name in by_heads.attention},
        exit_places=exit_places(graph_module, example_inputs),
        quantizable=reached,
        ranks=ranks,
        outlooks=tuple(outlook for outlook, _, _ in tried),
    )


def _tried(
    name: str, graph_module: GraphModule, costs: CostReport, context: PassContext
) -> tuple[PassOutlook, Mapping[str, Any], frozenset[str]]:
    """The outlook of a pass, what it measured, and the layers that it gave a width."""
    obstacle = "it has options that must be given"
    label = name
    for one in _HALF.get(name) or _with_defaults(name):
        label = one.label
        try:
            done = applied_dry(one, graph_module, context)
        except ChainfxError as error:
            obstacle = str(error).removeprefix(f"{name}: ").removesuffix(".")
            continue
        after = count(done.graph_module, context.example_inputs)
        outlook = PassOutlook(
            name,
            label,
            done.modified,
            macs=costs.macs / max(after.macs, 1),
            bitops=float(costs.bitops) / max(float(after.bitops), 1.0),
            storage=costs.storage_bits / max(after.storage_bits, 1),
            left_alone=done.skipped,
        )
        return outlook, done.profile, frozenset(facts_of(done.graph_module).bit_widths)
    return PassOutlook(name, label, obstacle=obstacle), {}, frozenset()


def _with_defaults(name: str) -> tuple[Pass, ...]:
    """A pass with its defaults, if every option has one."""
    try:
        return (get_pass(name)(),)
    except TypeError:
        return ()
